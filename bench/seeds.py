"""A block of seeds of the 784-100-100-10 MLP against the plain one-seed loop: microseconds per seed-step.

    python bench/seeds.py [--device cuda] [--tiny]

A step is forward, loss, backward and Adam on batches that lie ready on the device: 16 images of MNIST's shape, synthetic.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from measure import goal, header, interleaved, ratios, spread
from torch import nn
from torch.nn import functional as F

from nap_bench import update
from nap_bench.benchmarks import BENCHMARKS
from nap_bench.methods import parse_stack, stack_of
from nap_bench.optimizers import Adam
from nap_bench.spec import ModelSpec, Part
from nap_bench.state import build

SHAPES = ((1, 28, 28), 10)
NUM_BATCHES = 4


def batches(num_seeds: int, batch_size: int, device: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Inputs [S, B, 1, 28, 28] and labels [S, B]."""
    gen = torch.Generator().manual_seed(0)
    shape = (num_seeds, batch_size)
    return [
        (torch.randn(*shape, *SHAPES[0], generator=gen).to(device), torch.randint(10, shape, generator=gen).to(device))
        for _ in range(NUM_BATCHES)
    ]


def plain(width: int, batch_size: int, num_steps: int, device: str) -> Callable[[], None]:
    """One seed as anybody would write it: nn.Module, default torch.optim.Adam."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
    ).to(device)
    optimizer = torch.optim.Adam(model.parameters())
    data = [(inputs[0], labels[0]) for inputs, labels in batches(1, batch_size, device)]

    def block() -> None:
        for step in range(num_steps):
            inputs, labels = data[step % NUM_BATCHES]
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), labels).backward()
            optimizer.step()

    return block


def stacked(stack: str, num_seeds: int, width: int, batch_size: int, num_steps: int, device: str) -> Callable[[], None]:
    """A block of seeds through nap_bench's own update."""
    methods = stack_of(parse_stack(stack))
    spec = methods.transform_model(ModelSpec(family="mlp", size=(("widths", (width, width)),)))
    state = build(spec, Part.of(Adam()), tuple(range(num_seeds)), SHAPES, device)
    state.lr.fill_(1e-3)
    methods.setup(state)
    task = BENCHMARKS["random_labels"](
        dataset="mnist", num_examples=1, num_tasks=1, steps_per_task=1, batch_size=batch_size
    )
    data = batches(num_seeds, batch_size, device)

    def block() -> None:
        for step in range(num_steps):
            inputs, y_SB = data[step % NUM_BATCHES]
            losses_S = task.loss(update.forward(state, methods, inputs), y_SB)
            update.grad_step(state, [losses_S], methods)
            update.tail(state, methods)

    return block


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tiny", action="store_true", help="seconds; numbers mean nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device = arguments.device
    on_gpu = device.startswith("cuda")
    sizes = (1, 8, 64, 256) if on_gpu else (8,)
    blocks, num_steps = (2, 3) if arguments.tiny else (9, 200)
    header(
        "Seeds of a 784-100-100-10 MLP, batch 16, Adam, in one block",
        device,
        f"{blocks} interleaved blocks of {num_steps} steps each; median [min, max] of blocks",
    )
    subjects = {"plain loop": plain(100, 16, num_steps, device)}
    subjects |= {f"{size} seeds": stacked("baseline", size, 100, 16, num_steps, device) for size in sizes}
    times = interleaved(subjects, blocks=blocks, device=device)
    print(f"{'':14}{'us per seed-step':>34}{'times faster than the plain loop':>42}")
    each, faster = {}, {}
    for name, seconds in times.items():
        num_seeds = 1 if name == "plain loop" else int(name.split()[0])
        each[name] = [1e6 * s / num_steps / num_seeds for s in seconds]
        faster[name] = [num_seeds * r for r in ratios(times, "plain loop", name)]
        print(f"{name:14}{spread(each[name]):>34}{spread(faster[name]):>42}")
    print()
    on_cpu = None if on_gpu else "8 seeds"
    cpu_each = statistics.median(each[on_cpu]) if on_cpu else None
    cpu_faster = statistics.median(faster[on_cpu]) if on_cpu else None
    goal("8 seeds on one CPU thread, per seed-step", cpu_each, 120, at_most=True, unit="us", tiny=arguments.tiny)
    goal("8 seeds on one CPU thread, over the plain loop", cpu_faster, 4, at_most=False, unit="x", tiny=arguments.tiny)
    gpu_faster = statistics.median(faster["256 seeds"]) if on_gpu else None
    goal(
        "256 seeds on a GPU, per seed over the plain loop there",
        gpu_faster,
        100,
        at_most=False,
        unit="x",
        tiny=arguments.tiny,
    )


if __name__ == "__main__":
    main()
