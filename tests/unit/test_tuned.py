"""config/tuned.json: what was chosen is what its own table says, and the reported runs use it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nap_bench.experiments import EXPERIMENTS
from nap_bench.tune import ENOUGH, TUNING_SEEDS, first_task, late, winner

TUNED = json.loads((Path(__file__).parents[2] / "config" / "tuned.json").read_text())
SECTIONS = [(scale, exhibit) for scale, exhibits in TUNED.items() for exhibit in exhibits]


@pytest.mark.parametrize(("scale", "exhibit"), SECTIONS)
def test_the_choice_is_the_argmax_of_the_sweep(scale, exhibit):
    section = TUNED[scale][exhibit]
    expected = {arm: winner(trials)["hyper"] for arm, trials in section["by_first_task_accuracy"].items()}
    expected |= {arm: winner(trials)["hyper"] for arm, trials in section["by_late_accuracy"].items()}
    assert section["chosen"] == expected


@pytest.mark.parametrize(("scale", "exhibit"), SECTIONS)
def test_the_sweeps_run_ids_are_those_of_its_runs_on_tuning_seeds(scale, exhibit):
    section, module = TUNED[scale][exhibit], EXPERIMENTS[exhibit]
    first_choice = {arm: winner(trials)["hyper"] for arm, trials in section["by_first_task_accuracy"].items()}
    sweeps = {"by_first_task_accuracy": module.sweep(scale, TUNING_SEEDS)}
    if hasattr(module, "sweep_late"):
        sweeps["by_late_accuracy"] = module.sweep_late(scale, TUNING_SEEDS, first_choice)
    for table, sweep in sweeps.items():
        planned = {arm: [(hyper, entry.run.run_id) for hyper, entry in trials] for arm, trials in sweep.items()}
        assert planned == {arm: [(t["hyper"], t["run_id"]) for t in trials] for arm, trials in section[table].items()}


@pytest.mark.parametrize(("scale", "exhibit"), SECTIONS)
def test_every_arm_learns_the_first_task_well_enough_to_be_compared_on_late_ones(scale, exhibit):
    for arm, trials in TUNED[scale][exhibit]["by_first_task_accuracy"].items():
        assert winner(trials)["scores"]["first_task_accuracy"] >= ENOUGH, arm


@pytest.mark.parametrize(("scale", "exhibit"), SECTIONS)
def test_the_reported_runs_use_the_choice(scale, exhibit):
    module, chosen = EXPERIMENTS[exhibit], TUNED[scale][exhibit]["chosen"]
    alike = getattr(module, "TUNED_LIKE", {})
    for entry in module.runs(scale):
        arm = f"{entry.setting}/{entry.arm}" if entry.setting else alike.get(entry.arm, entry.arm)
        assert dict(entry.run.schedule.params)["lr"] == chosen[arm]["lr"]


def test_a_diverged_seed_counts_zero_in_a_sweep():
    from nap_bench.experiments.base import Labelled

    metrics = {name: {"steps": [1, 2], "values": [[1.0, None], [1.0, None]]} for name in ("task_end/accuracy", "online/accuracy")}
    labelled = Labelled("a", "", {"metrics": metrics})
    assert first_task(labelled) == {"first_task_accuracy": 0.5, "first_task_online_accuracy": 0.5}
    assert late(labelled) == {"late_accuracy": 0.5}
