"""config/tuned.json: what was chosen is what its own table says, and the reported runs use it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nap_bench import tune
from nap_bench.experiments import EXPERIMENTS
from nap_bench.tune import (
    ENOUGH,
    NUM_ONLINE_SEEDS,
    RULES,
    TUNING_SEEDS,
    choose,
    first_task,
    late,
    online,
    planned,
    shared,
    sweeps,
    winner,
)

TUNED = json.loads((Path(__file__).parents[2] / "config" / "tuned.json").read_text())
SECTIONS = [(scale, exhibit) for scale, exhibits in TUNED.items() for exhibit in exhibits]
ONE_RATE = [(scale, exhibit) for scale, exhibit in SECTIONS if "by_first_task_accuracy" in TUNED[scale][exhibit]]
EACH_ITS_OWN = [
    (scale, exhibit) for scale, exhibit in SECTIONS if "by_average_online_accuracy" in TUNED[scale][exhibit]
]


@pytest.mark.parametrize(("scale", "exhibit"), SECTIONS)
def test_the_choice_is_the_argmax_of_the_sweep(scale, exhibit):
    section = TUNED[scale][exhibit]
    assert set(section) - {"chosen"} <= {table for table, _ in RULES.values()}
    expected = shared(section.get("by_first_task_accuracy", {}))
    for table in ("by_late_accuracy", "by_late_online_accuracy", "by_average_online_accuracy"):
        expected |= {arm: winner(trials)["hyper"] for arm, trials in section.get(table, {}).items()}
    assert section["chosen"] == expected == choose(section)


@pytest.mark.parametrize(("scale", "exhibit"), SECTIONS)
def test_the_sweeps_run_ids_are_those_of_its_runs_on_tuning_seeds(scale, exhibit):
    section = TUNED[scale][exhibit]
    for declared, sweep in sweeps(EXPERIMENTS[exhibit], scale, shared(section.get("by_first_task_accuracy", {}))):
        table = section[RULES[declared][0]]
        wanted = {arm: [(hyper, entry.run.run_id) for hyper, entry in trials] for arm, trials in sweep.items()}
        assert wanted == {arm: [(t["hyper"], t["run_id"]) for t in trials] for arm, trials in table.items()}


@pytest.mark.parametrize(("scale", "exhibit"), ONE_RATE)
def test_every_arm_learns_the_first_task_well_enough_to_be_compared_on_late_ones(scale, exhibit):
    section = TUNED[scale][exhibit]
    rates = shared(section["by_first_task_accuracy"])
    for arm, trials in section["by_first_task_accuracy"].items():
        (chosen,) = [trial for trial in trials if trial["hyper"] == rates[arm]]
        assert chosen["scores"]["first_task_accuracy"] >= ENOUGH, arm


@pytest.mark.parametrize(("scale", "exhibit"), ONE_RATE)
def test_arms_that_are_compared_at_one_rate_share_it(scale, exhibit):
    groups: dict[str, set[float]] = {}
    for arm, hyper in TUNED[scale][exhibit]["chosen"].items():
        groups.setdefault(arm.rpartition("/")[0], set()).add(hyper["lr"])
    assert all(len(rates) == 1 for rates in groups.values())


@pytest.mark.parametrize(("scale", "exhibit"), EACH_ITS_OWN)
def test_every_arm_that_is_tuned_by_itself_tried_as_many_configurations_and_at_least_twelve(scale, exhibit):
    tables = TUNED[scale][exhibit]["by_average_online_accuracy"]
    (number,) = {len({trial["run_id"] for trial in trials}) for trials in tables.values()}
    assert number >= 12 and NUM_ONLINE_SEEDS >= 3
    assert all(trial["wall_seconds"] > 0 for trials in tables.values() for trial in trials)


AT_A_LIMIT = {("layer_reset", "layers"): 1}
"""Where a choice may lie at its grid's edge, because the range ends there: no fewer layers can be reset."""


@pytest.mark.parametrize(("scale", "exhibit"), EACH_ITS_OWN)
def test_no_choice_lies_at_its_grids_edge_but_where_the_range_ends(scale, exhibit):
    for arm, trials in TUNED[scale][exhibit]["by_average_online_accuracy"].items():
        for axis, chosen in TUNED[scale][exhibit]["chosen"][arm].items():
            tried = sorted({trial["hyper"][axis] for trial in trials})
            at_edge = len(tried) > 1 and chosen in (tried[0], tried[-1])
            assert not at_edge or AT_A_LIMIT.get((arm, axis)) == chosen, (arm, axis, chosen, tried)


@pytest.mark.parametrize(("scale", "exhibit"), EACH_ITS_OWN)
def test_every_method_reports_the_values_that_were_chosen_for_it(scale, exhibit):
    chosen, seen = TUNED[scale][exhibit]["chosen"], set()
    for entry in EXPERIMENTS[exhibit].runs(scale):
        if entry.setting == "" and entry.arm in chosen:
            seen.add(entry.arm)
            parts = sorted(entry.run.methods, key=lambda part: part.name != "nap")  # a period of both is the method's
            used = {key: value for part in parts for key, value in part.params}
            used |= {"lr": dict(entry.run.schedule.params)["lr"], "weight_decay": used.get("coef")}
            assert {key: used[key] for key in chosen[entry.arm]} == chosen[entry.arm]
    assert len(seen) >= min(14, len(chosen))


def test_the_sweep_stands_in_the_plan_and_has_no_reported_seed():
    entries = list(planned())
    assert {exhibit for exhibit, _ in entries} >= {"arms", "fig5_continual"}
    assert all(set(entry.run.seeds) <= set(TUNING_SEEDS) for _, entry in entries)
    settings = {entry.setting for _, entry in entries if entry.arm == "l2+nap"}
    assert len(settings) == 12 and "lr=0.003 coef=0.01" in settings


def test_the_shared_rate_is_the_one_whose_worst_arm_does_best():
    def trials(*scores):
        return [{"hyper": {"lr": i}, "scores": {"a": score, "b": 0.5}} for i, score in enumerate(scores)]

    assert shared({"g/x": trials(1.0, 0.9, 0.5), "g/y": trials(0.2, 0.8, 0.9), "h/x": trials(0.1, 0.2, 0.3)}) == {
        "g/x": {"lr": 1},
        "g/y": {"lr": 1},
        "h/x": {"lr": 2},
    }


@pytest.mark.parametrize(("scale", "exhibit"), ONE_RATE)
def test_the_reported_runs_use_the_choice(scale, exhibit):
    module, chosen = EXPERIMENTS[exhibit], TUNED[scale][exhibit]["chosen"]
    alike = getattr(module, "TUNED_LIKE", {})
    for entry in module.runs(scale):
        arm = f"{entry.setting}/{entry.arm}" if entry.setting else alike.get(entry.arm, entry.arm)
        assert dict(entry.run.schedule.params)["lr"] == chosen[arm]["lr"]
        for part in entry.run.methods:
            if part.name == "weight_decay":
                assert dict(part.params)["coef"] == chosen[arm]["weight_decay"]


def test_what_tuned_json_has_is_not_run_again_and_what_it_lacks_is(tmp_path, monkeypatch):
    table = TUNED["laptop"]["fig5_continual"]["by_average_online_accuracy"]
    sweep = EXPERIMENTS["fig5_continual"].sweep_online("laptop", TUNING_SEEDS[:NUM_ONLINE_SEEDS])
    known = {trial["run_id"]: trial for trials in table.values() for trial in trials}
    asked = []
    monkeypatch.setattr(tune, "do", lambda jobs, **how: asked.extend(job.line["run_id"] for job in jobs) or len(jobs))
    places = dict(store=tmp_path / "store", results=tmp_path / "results", data_dir=None, device="cpu")
    assert tune._tried(sweep, online, known, **places) == table and not asked
    lacking = table["redo"][3]["run_id"]
    with pytest.raises(ValueError, match="nothing was chosen"):
        tune._tried(sweep, online, {run_id: trial for run_id, trial in known.items() if run_id != lacking}, **places)
    assert asked == [lacking]


def test_a_diverged_seed_counts_zero_in_a_sweep():
    from nap_bench.experiments.base import Labelled

    metrics = {
        name: {"steps": [1, 2], "values": [[1.0, None], [1.0, None]]}
        for name in ("task_end/accuracy", "online/accuracy")
    }
    labelled = Labelled("a", "", {"metrics": metrics})
    assert first_task(labelled) == {"first_task_accuracy": 0.5, "first_task_online_accuracy": 0.5}
    assert late(labelled) == {"late_accuracy": 0.5}
    assert online(labelled) == {"average_online_accuracy": 0.5}


def test_each_arm_for_itself_takes_its_best_and_a_tie_goes_to_the_first():
    def trials(*scores):
        return [{"hyper": {"lr": i}, "scores": {"average_online_accuracy": s}} for i, s in enumerate(scores)]

    section = {"by_average_online_accuracy": {"x": trials(0.1, 0.3, 0.3), "y": trials(0.4, 0.2, 0.1)}}
    assert choose(section) == {"x": {"lr": 1}, "y": {"lr": 0}}


def test_a_rivals_own_value_overrides_the_shared_rate_of_its_arm_only():
    first = [{"hyper": {"lr": 0.1}, "scores": {"a": 1.0}}]
    own = [{"hyper": {"lr": 0.1, "weight_decay": w}, "scores": {"late": s}} for w, s in ((1, 0.2), (2, 0.5))]
    section = {"by_first_task_accuracy": {"nap": first, "rival": first}, "by_late_accuracy": {"rival": own}}
    assert choose(section) == {"nap": {"lr": 0.1}, "rival": {"lr": 0.1, "weight_decay": 2}}
