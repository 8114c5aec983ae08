"""config/tuned.json: what was chosen is what its own table says, and the reported runs use it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nap_bench.experiments import EXPERIMENTS
from nap_bench.tune import ENOUGH, TUNING_SEEDS, first_task, late, shared, winner

TUNED = json.loads((Path(__file__).parents[2] / "config" / "tuned.json").read_text())
SECTIONS = [(scale, exhibit) for scale, exhibits in TUNED.items() for exhibit in exhibits]


@pytest.mark.parametrize(("scale", "exhibit"), SECTIONS)
def test_the_choice_is_the_argmax_of_the_sweep(scale, exhibit):
    section = TUNED[scale][exhibit]
    expected = shared(section["by_first_task_accuracy"])
    expected |= {arm: winner(trials)["hyper"] for arm, trials in section["by_late_accuracy"].items()}
    assert section["chosen"] == expected


@pytest.mark.parametrize(("scale", "exhibit"), SECTIONS)
def test_the_sweeps_run_ids_are_those_of_its_runs_on_tuning_seeds(scale, exhibit):
    section, module = TUNED[scale][exhibit], EXPERIMENTS[exhibit]
    first_choice = shared(section["by_first_task_accuracy"])
    sweeps = {"by_first_task_accuracy": module.sweep(scale, TUNING_SEEDS)}
    if hasattr(module, "sweep_late"):
        sweeps["by_late_accuracy"] = module.sweep_late(scale, TUNING_SEEDS, first_choice)
    for table, sweep in sweeps.items():
        planned = {arm: [(hyper, entry.run.run_id) for hyper, entry in trials] for arm, trials in sweep.items()}
        assert planned == {arm: [(t["hyper"], t["run_id"]) for t in trials] for arm, trials in section[table].items()}


@pytest.mark.parametrize(("scale", "exhibit"), SECTIONS)
def test_every_arm_learns_the_first_task_well_enough_to_be_compared_on_late_ones(scale, exhibit):
    section = TUNED[scale][exhibit]
    rates = shared(section["by_first_task_accuracy"])
    for arm, trials in section["by_first_task_accuracy"].items():
        (chosen,) = [trial for trial in trials if trial["hyper"] == rates[arm]]
        assert chosen["scores"]["first_task_accuracy"] >= ENOUGH, arm


def test_arms_that_are_compared_share_their_learning_rate():
    for exhibits in TUNED.values():
        for section in exhibits.values():
            groups: dict[str, set[float]] = {}
            for arm, hyper in section["chosen"].items():
                groups.setdefault(arm.rpartition("/")[0], set()).add(hyper["lr"])
            assert all(len(rates) == 1 for rates in groups.values())


def test_the_shared_rate_is_the_one_whose_worst_arm_does_best():
    def trials(*scores):
        return [{"hyper": {"lr": i}, "scores": {"a": score, "b": 0.5}} for i, score in enumerate(scores)]

    assert shared({"g/x": trials(1.0, 0.9, 0.5), "g/y": trials(0.2, 0.8, 0.9), "h/x": trials(0.1, 0.2, 0.3)}) == {
        "g/x": {"lr": 1},
        "g/y": {"lr": 1},
        "h/x": {"lr": 2},
    }


@pytest.mark.parametrize(("scale", "exhibit"), SECTIONS)
def test_the_reported_runs_use_the_choice(scale, exhibit):
    module, chosen = EXPERIMENTS[exhibit], TUNED[scale][exhibit]["chosen"]
    alike = getattr(module, "TUNED_LIKE", {})
    for entry in module.runs(scale):
        arm = f"{entry.setting}/{entry.arm}" if entry.setting else alike.get(entry.arm, entry.arm)
        assert dict(entry.run.schedule.params)["lr"] == chosen[arm]["lr"]
        for part in entry.run.methods:
            if part.name == "weight_decay":
                assert dict(part.params)["coef"] == chosen[arm]["weight_decay"]


def test_a_diverged_seed_counts_zero_in_a_sweep():
    from nap_bench.experiments.base import Labelled

    metrics = {
        name: {"steps": [1, 2], "values": [[1.0, None], [1.0, None]]}
        for name in ("task_end/accuracy", "online/accuracy")
    }
    labelled = Labelled("a", "", {"metrics": metrics})
    assert first_task(labelled) == {"first_task_accuracy": 0.5, "first_task_online_accuracy": 0.5}
    assert late(labelled) == {"late_accuracy": 0.5}
