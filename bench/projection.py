"""What NaP's projection costs, in percent of a step of the same network with LayerNorm alone. 8 seeds, one thread.

python bench/projection.py [--device cuda] [--tiny]
"""

from __future__ import annotations

import argparse
import os
import statistics

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from measure import goal, header, interleaved, ratios, spread
from seeds import stacked

SIZES = ((100, 16, 5.0), (512, 16, 1.0), (512, 128, 1.0))
"""Width of both hidden layers, batch size, goal in percent."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tiny", action="store_true", help="seconds; numbers mean nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    blocks = 2 if arguments.tiny else 15
    updates = {100: 2, 512: 1} if arguments.tiny else {100: 100, 512: 8}
    header(
        "Projection over LayerNorm alone: 784-width-width-10 MLP, 8 seeds, Adam, projected after every update",
        arguments.device,
        f"{blocks} interleaved blocks of {updates[100]} (width 100) and {updates[512]} (width 512) updates; median [min, max]",
    )
    print(
        f"{'width':>5} {'batch':>5}{'LayerNorm, us a step':>34}{'NaP, us a step':>34}{'projection, % of the step':>34}"
    )
    found = []
    for width, batch_size, limit in SIZES:
        steps = updates[width]
        subjects = {
            stack: stacked(stack, 8, width, batch_size, steps, arguments.device) for stack in ("layer_norm", "nap")
        }
        times = interleaved(subjects, blocks=blocks, device=arguments.device)
        percent = [100 * (ratio - 1) for ratio in ratios(times, "nap", "layer_norm")]
        norm, nap = ([1e6 * s / steps for s in times[stack]] for stack in subjects)
        print(f"{width:5} {batch_size:5}{spread(norm):>34}{spread(nap):>34}{spread(percent):>34}")
        found.append((f"projection at width {width}, batch {batch_size}", statistics.median(percent), limit))
    print()
    for name, percent, limit in found:
        goal(name, percent, limit, at_most=True, unit="%", tiny=arguments.tiny)


if __name__ == "__main__":
    main()
