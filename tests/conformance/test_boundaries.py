"""Task switches: a run cut exactly there, and weights that are zero after one."""

from __future__ import annotations

import dataclasses

import pytest

from nap_bench import session
from nap_bench import train as loop
from nap_bench.benchmarks import RandomLabels
from nap_bench.experiments.base import make_run
from nap_bench.methods import stack_of
from nap_bench.optimizers import Adam
from nap_bench.schedules import Constant
from nap_bench.spec import ModelSpec
from nap_bench.store import RunFolder

STEPS = 5


def run_of(stack: str, **benchmark):
    task = dict(dataset="digits", num_examples=64, num_tasks=3, steps_per_task=STEPS, batch_size=16) | benchmark
    return make_run(
        benchmark=RandomLabels(**task),
        model=ModelSpec(family="mlp", size=(("widths", (16, 16)),)),
        stack=stack,
        optimizer=Adam(),
        schedule=Constant(1e-2),
        seeds=(0, 1),
    )


class StopAt(session.Control):
    """Asks to stop once an update was done: the loop reports at every one."""

    def __init__(self, step: int):
        super().__init__(report=self.look)
        self.last = step

    def look(self, step: int, rate: float) -> None:
        self.stop = step >= self.last


@pytest.mark.parametrize("stop", [STEPS, STEPS + 2])
@pytest.mark.parametrize(
    "stack",
    [
        "shrink_perturb(variant='lr_gaussian', shrink=0.5, noise=1.0, told_of_tasks=True, period=None)",
        "layer_reset",
        "noisy_updates+nap",
    ],
)
def test_a_run_cut_at_a_task_switch_goes_on_to_the_same_bytes(stack, stop, tmp_path, monkeypatch):
    run = run_of(stack)
    clock = iter(range(10**9))  # a second passes at every look, so that every update is reported
    monkeypatch.setattr(session.time, "perf_counter", lambda: 2.0 * next(clock))
    folders = [RunFolder(tmp_path / name, run) for name in ("whole", "cut")]
    for folder in folders:
        folder.open()
    never = dict(data_dir=None, device="cpu")
    loop.train(run, folders[0], control=session.Control(checkpoint_seconds=1e9), **never)
    with pytest.raises(session.Interrupted, match=f"update {stop} "):
        loop.train(run, folders[1], control=StopAt(stop), **never)
    loop.train(run, folders[1], control=session.Control(checkpoint_seconds=1e9), **never)
    assert folders[0].metrics.read_bytes() == folders[1].metrics.read_bytes()


@pytest.mark.parametrize(
    "stack",
    [
        "layer_reset(to='zero')+nap(head=True)",
        "layer_reset(to='zero')+nap(head=True, per='neuron')",
        "shrink_perturb(shrink=0.0, noise=0.0, told_of_tasks=True, period=None)+nap",
    ],
)
def test_a_weight_that_was_reset_to_zero_is_left_alone_by_the_projection(stack, tmp_path):
    run = run_of(stack)
    folder = RunFolder(tmp_path, run)
    folder.open()
    ended = loop.train(run, folder, data_dir=None, device="cpu", control=session.Control())
    assert [seed["status"] for seed in ended["status"]] == ["complete"] * 2


@pytest.mark.parametrize(
    ("stack", "changes", "reason"),
    [
        ("nap(norm='batch')", dict(batch_size=1), "batch_size is 1"),
        ("nap(norm='group')", {}, "does not divide a hidden layer of 15"),
        ("layer_reset(layers=7)", {}, "layers=7 of a network that has 3"),
    ],
)
def test_what_cannot_be_built_or_trained_is_refused_before_it_starts(stack, changes, reason):
    run = run_of(stack, **changes)
    run = dataclasses.replace(run, model=dataclasses.replace(run.model, size=(("widths", (15, 16)),)))
    assert reason in stack_of(run.methods).why_not(run)
