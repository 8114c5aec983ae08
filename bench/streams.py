"""Streams of single examples: a whole run of a block of seeds, against a plain one-seed loop in PyTorch.

    python bench/streams.py [--tiny]

A run is `train` as `nap-bench run` calls it: making the data, updates, metrics, evaluation at the end of every task and writing
files are all in its time. The plain loop has its data ready and measures nothing. For a CPU: a step of these is too small
for a GPU.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from measure import goal, header, interleaved, ratios, spread
from torch import nn
from torch.nn import functional as F

from nap_bench.benchmarks import BENCHMARKS
from nap_bench.experiments.base import make_run
from nap_bench.optimizers import SGD, Adam
from nap_bench.schedules import Constant
from nap_bench.session import Control
from nap_bench.spec import ModelSpec
from nap_bench.store import RunFolder
from nap_bench.train import train

NUM_SEEDS = 30
SMALL = ModelSpec(family="mlp", size=(("widths", (5,)),), init="he_uniform")
ELSAYED = ModelSpec(family="mlp", size=(("widths", (300, 150)),))
LEARNERS = {"SGD": (SGD(), "baseline"), "Adam": (Adam(), "baseline"), "Adam, NaP": (Adam(), "nap")}


def whole_run(benchmark, model: ModelSpec, optimizer, stack: str, num_seeds: int) -> Callable[[], None]:
    def block() -> None:
        run = make_run(
            benchmark=benchmark,
            model=model,
            stack=stack,
            optimizer=optimizer,
            schedule=Constant(0.003),
            seeds=tuple(range(num_seeds)),
        )
        with tempfile.TemporaryDirectory() as store:
            folder = RunFolder(store, run)
            folder.open()
            train(run, folder, data_dir=None, device="cpu", control=Control())

    return block


def plain(num_steps: int) -> Callable[[], None]:
    """One seed of the regression as anybody would write it: 20-5-1, batch 1, SGD."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 5), nn.ReLU(), nn.Linear(5, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.003)
    inputs, targets = torch.randint(2, (num_steps, 20)).float(), torch.randn(num_steps, 1)
    errors = torch.zeros(num_steps)

    def block() -> None:
        for step in range(num_steps):
            optimizer.zero_grad()
            loss = F.mse_loss(model(inputs[step : step + 1]), targets[step : step + 1])
            loss.backward()
            optimizer.step()
            errors[step] = loss.detach()

    return block


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=["cpu"])
    parser.add_argument("--tiny", action="store_true", help="seconds; numbers mean nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    blocks, num_tasks, per_task = (2, 2, 10) if arguments.tiny else (5, 1, 4_000)
    num_steps = num_tasks * per_task
    header(
        "Streams of single examples",
        "cpu",
        f"{blocks} interleaved blocks, each a whole run of {num_steps} updates; median [min, max] of blocks",
    )
    regression = BENCHMARKS["slowly_changing_regression"](num_tasks=num_tasks, steps_per_task=per_task)
    labels = BENCHMARKS["random_labels"](
        dataset="digits",
        num_examples=1797,
        num_tasks=num_tasks,
        steps_per_task=max(1, per_task // 4),
        batch_size=1,
        labels="permuted",
        pixels="symmetric",
        whole_passes=True,
        eval_examples=256,
    )
    sizes = {"plain loop": 1}
    subjects = {"plain loop": plain(num_steps)}
    for name, (optimizer, stack) in LEARNERS.items():
        subjects[f"regression, {name}"] = whole_run(regression, SMALL, optimizer, stack, NUM_SEEDS)
        sizes[f"regression, {name}"] = NUM_SEEDS
    subjects["permuted labels, SGD"] = whole_run(labels, ELSAYED, SGD(), "baseline", 8)
    sizes["permuted labels, SGD"] = 8
    steps = dict.fromkeys(subjects, num_steps) | {"permuted labels, SGD": labels.num_steps}
    times = interleaved(subjects, blocks=blocks, device="cpu")
    print(f"{'':24}{'seeds':>6}{'us per update of the block':>34}{'times faster per seed':>34}{'1M updates, min':>18}")
    each = {}
    for name, seconds in times.items():
        each[name] = [1e6 * s / steps[name] for s in seconds]
        is_regression = not name.startswith("permuted")
        faster = spread([sizes[name] * r for r in ratios(times, "plain loop", name)]) if is_regression else "-"
        minutes = statistics.median(each[name]) / 60
        print(f"{name:24}{sizes[name]:>6}{spread(each[name]):>34}{faster:>34}{minutes:>18.1f}")
    print()
    for name in ("SGD", "Adam"):
        label = f"{NUM_SEEDS} seeds of the regression, {name}, 1M updates"
        minutes = statistics.median(each[f"regression, {name}"]) / 60
        goal(label, minutes, 10, at_most=True, unit="min", tiny=arguments.tiny)


if __name__ == "__main__":
    main()
