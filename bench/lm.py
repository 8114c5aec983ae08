"""The paper's 400M language model: tokens per second, model FLOPs utilisation, and what NaP costs.

python bench/lm.py [--device cuda] [--tiny]
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
from functools import partial

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

import numpy as np
import torch
from measure import goal, header, interleaved, ratios, spread

from nap_bench import plan, update
from nap_bench.benchmarks import BENCHMARKS
from nap_bench.benchmarks.language import Texts
from nap_bench.experiments import table1_c4
from nap_bench.methods import stack_of
from nap_bench.state import build
from nap_bench.train import micro_losses

PEAK_TFLOPS = {"H100": 989.0, "H200": 989.0, "A100": 312.0}
"""Dense bfloat16, as sold."""
ARMS = ("baseline", "norm_only", "nap")
TINY = dict(length=32, vocabulary=300, batch_size=4, micro_batches=2)
TINY_NET = (("d_model", 24), ("embedding_std", 0.3), ("entrance", "layer"), ("heads", 12), ("widths", (96,) * 12))


def run_of(arm: str, *, tiny: bool):
    run = table1_c4.make("paper", arm, (0,), task=TINY if tiny else None)
    return dataclasses.replace(run, model=dataclasses.replace(run.model, size=TINY_NET)) if tiny else run


def stepper(run, device: str):
    """A function that takes so many whole updates: batch, micro-batches forward and backward, methods. The text is noise."""
    task, stack = run.benchmark.build(BENCHMARKS, "benchmark"), stack_of(run.methods)
    state = build(stack.transform_model(run.model), run.optimizer, run.seeds, task.shapes, device, run.precision)
    state.lr.fill_(1e-4)
    stack.setup(state)
    noise = np.random.default_rng(0).integers(1, task.vocabulary, 5_000_000, dtype=np.uint16)
    data = Texts(noise, {}, 0.0, {}, device)

    def steps(num_steps: int) -> None:
        for _ in range(num_steps):
            batch = task.batch(data, run.seeds, state.step)
            update.grad_step(state, micro_losses(state, stack, task, *batch, []), stack)
            update.tail(state, stack)

    return steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tiny", action="store_true", help="seconds; numbers mean nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device, tiny = arguments.device, arguments.tiny
    if not (tiny or device.startswith("cuda")):
        parser.error("the 400M model on a CPU takes minutes an update: add --tiny, or --device cuda")
    blocks, num_steps = (2, 1) if tiny else (7, 3)
    runs = {arm: run_of(arm, tiny=tiny) for arm in ARMS}
    line = {"run": plan.compact(runs["baseline"])}
    num_parameters, flops_per_token = plan.transformer_size(line["run"])
    task = runs["baseline"].benchmark.build(BENCHMARKS, "benchmark")
    tokens = task.batch_size * task.length
    header(
        f"{num_parameters / 1e6:.0f} M parameters, {task.batch_size} strings of {task.length} tokens in {task.micro_batches} "
        f"micro-batches, bfloat16 autocast",
        device,
        f"{blocks} interleaved blocks of {num_steps} steps; median [min, max] of blocks",
    )
    times = interleaved(
        {arm: partial(stepper(run, device), num_steps) for arm, run in runs.items()}, blocks=blocks, device=device
    )
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else ""
    peak = next((tflops for card, tflops in PEAK_TFLOPS.items() if card in name), None)
    shares = {}
    print(f"{'arm':12}{'tokens per second':>38}{'TFLOP/s':>34}")
    for arm, seconds in times.items():
        speeds = [num_steps * tokens / s for s in seconds]
        tflops = [speed * flops_per_token / 1e12 for speed in speeds]
        shares[arm] = peak and 100 * statistics.median(tflops) / peak
        print(f"{arm:12}{spread(speeds):>38}{spread(tflops):>34}")
    if device.startswith("cuda"):
        print(
            f"peak memory of the {len(ARMS)} arms together: {torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB"
        )
    print()
    for arm in ("baseline", "nap"):
        goal(f"model FLOPs utilisation, {arm}", shares[arm], 40.0, at_most=False, unit="%", tiny=tiny)
    for over, under in (("nap", "norm_only"), ("norm_only", "baseline")):
        percent = [100 * (ratio - 1) for ratio in ratios(times, over, under)]
        limit = dict(limit=1.0, at_most=True, unit="%", tiny=tiny)
        goal(f"{over} over {under}, of a step", statistics.median(percent), **limit)


if __name__ == "__main__":
    main()
