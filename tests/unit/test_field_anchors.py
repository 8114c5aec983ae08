"""Anchors of the field's streams outside ourselves: closed forms, a plain loop in PyTorch, and what is published.

Of single examples on images no number is at hand that a CPU could reach: the papers show theirs in figures, of networks or lengths
that take GPU-hours. Of the regression Dohare et al. 2024 publish a figure too; the program that draws it
(lop/slowly_changing_regression/plots/online_performance.py of their repository) gives the ReLU network's squared error an axis
from 0.6 to 1.4, which is what is held to here. Of warm starts Ash & Adams 2020 have a table.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nap_bench.benchmarks import SlowlyChangingRegression, WarmStart
from nap_bench.experiments.base import make_run
from nap_bench.optimizers import SGD, Adam
from nap_bench.schedules import Constant
from nap_bench.session import Control
from nap_bench.spec import ModelSpec, Part
from nap_bench.state import build
from nap_bench.store import RunFolder
from nap_bench.train import train

SMALL = ModelSpec(family="mlp", size=(("widths", (5,)),), init="he_uniform")
PUBLISHED_AXIS = (0.6, 1.4)


def tail(num: int, least: int) -> float:
    """P(at least so many heads of `num` fair coins)."""
    return sum(math.comb(num, k) for k in range(least, num + 1)) / 2**num


def test_targets_have_the_mean_square_that_the_threshold_network_has_in_closed_form():
    """A unit is active if the inputs that agree with its weights, and 1.5 times its bias, exceed beta (M + 1) = 14.7: at
    least 14 of
    20 for a bias of 1, at least 17 for -1. Outputs are sums of independent signs, so E[y^2] = 1 + 100 P(active).
    """
    stream = SlowlyChangingRegression(num_tasks=1)
    active = 0.5 * (tail(20, 14) + tail(20, 17))
    seeds = tuple(range(400))
    gen = torch.Generator().manual_seed(0)
    x_SNM = torch.randint(2, (400, 200, 20), generator=gen).float()  # all bits drawn for every example
    mean_square_S = stream.answers(seeds, x_SNM).square().mean(dim=1)
    error = mean_square_S.std().item() / math.sqrt(len(seeds))
    assert mean_square_S.mean().item() == pytest.approx(1.0 + 100.0 * active, abs=4.0 * error) and error < 0.1


@pytest.mark.parametrize("rule", ["sgd", "adam"])
def test_a_stacked_run_makes_the_errors_of_a_plain_loop_seed_by_seed(rule, tmp_path):
    """The authors' loop as anybody would write it: nn.Linear, torch.optim, one example at a time; from the same weights."""
    stream, seeds = SlowlyChangingRegression(num_tasks=3, steps_per_task=100, eval_examples=10), (0, 5)
    run = make_run(
        benchmark=stream,
        model=SMALL,
        stack="baseline",
        optimizer=SGD() if rule == "sgd" else Adam(),
        schedule=Constant(0.01),
        seeds=seeds,
    )
    folder = RunFolder(tmp_path, run)
    folder.open()
    train(run, folder, data_dir=None, device="cpu", control=Control())
    rows = [line.split(",") for line in folder.metrics.read_text().splitlines() if ",online/loss," in line]
    ours = {(int(step), int(seed)): float(value) for step, seed, _, value in rows}
    data, start = stream.load(None, "cpu"), build(SMALL, Part.of(SGD()), seeds, stream.shapes, "cpu").params
    for index, seed in enumerate(seeds):
        model = nn.Sequential(nn.Linear(20, 5), nn.ReLU(), nn.Linear(5, 1))
        with torch.no_grad():
            for layer, name in ((model[0], "linears.0"), (model[2], "output")):
                layer.weight.copy_(start[f"{name}.weight"][index].T)
                layer.bias.copy_(start[f"{name}.bias"][index])
        optimizer = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[rule](model.parameters(), lr=0.01)
        errors = []
        for step in range(stream.num_steps):
            x_SBM, y_SB = stream.batch(data, seeds, step)
            loss = F.mse_loss(model(x_SBM[index]), y_SB[index].unsqueeze(1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            errors.append(loss.item())
        for task in range(3):
            theirs = sum(errors[100 * task : 100 * task + 100]) / 100
            assert ours[100 * (task + 1), seed] == pytest.approx(theirs, rel=1e-4)


@pytest.mark.slow
def test_the_error_of_the_published_learner_lies_where_its_authors_draw_it(tmp_path):
    """SGD at 0.01, 30 seeds, batch 1. Shortened to 20,000 examples, one point of their curve."""
    run = make_run(
        benchmark=SlowlyChangingRegression(num_tasks=2),
        model=SMALL,
        stack="baseline",
        optimizer=SGD(),
        schedule=Constant(0.01),
        seeds=tuple(range(30)),
    )
    folder = RunFolder(tmp_path, run)
    folder.open()
    train(run, folder, data_dir=None, device="cpu", control=Control())
    rows = [line.split(",") for line in folder.metrics.read_text().splitlines() if ",online/loss," in line]
    mean = sum(float(value) for *_, value in rows) / len(rows)
    assert len(rows) == 60 and PUBLISHED_AXIS[0] < mean < PUBLISHED_AXIS[1], mean


ASH_AND_ADAMS = {"fresh": 39.4, "warm": 36.1}
"""Percent of held-out CIFAR-10 that a perceptron with Adam gets right: Table 1 of arXiv 1910.08475v3, five runs each."""
UNTIL_KNOWN = 45_000
"""Updates after which the perceptron knows 97 to 100 % of what it was shown; they train until 99 %."""


def on_images_never_shown(store: Path, data_dir: Path, first_task: int) -> float:
    """Percent of the held-out images that their perceptron gets right: three layers, 100 units, tanh (ReLU in their code)."""
    benchmark = WarmStart(
        dataset="cifar10",
        num_examples=33333,
        held_out=16667,
        num_tasks=2 - first_task,
        first_task=first_task,
        steps_per_task=UNTIL_KNOWN,
        batch_size=128,
        pixels="symmetric",
        eval_examples=4000,
    )
    run = make_run(
        benchmark=benchmark,
        model=ModelSpec(family="mlp", size=(("widths", (100, 100)),), activation="tanh"),
        stack="optimizer_reset",
        optimizer=Adam(),
        schedule=Constant(1e-3),
        seeds=(0,),
    )
    folder = RunFolder(store, run)
    folder.open()
    train(run, folder, data_dir=data_dir, device="cpu", control=Control())
    rows = [line.split(",") for line in folder.metrics.read_text().splitlines()]
    last = {name: 100.0 * float(value) for step, _, name, value in rows if step == str(benchmark.num_steps)}
    assert last["task_end/accuracy"] > 96.0
    return last["task_end/test_accuracy"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_warm_start_costs_a_perceptron_what_ash_and_adams_publish(real_data_dir, tmp_path):
    """12 minutes of one core. Tolerances: 1.5 points, and 1.2 of the 3.3 between the two; one seed on 16,667 images errs by 0.4."""
    found = {name: on_images_never_shown(tmp_path, real_data_dir, first) for name, first in (("fresh", 1), ("warm", 0))}
    assert found == {name: pytest.approx(published, abs=1.5) for name, published in ASH_AND_ADAMS.items()}
    gap = ASH_AND_ADAMS["fresh"] - ASH_AND_ADAMS["warm"]
    assert found["fresh"] - found["warm"] == pytest.approx(gap, abs=1.2)
