"""Figs. 9 and 10: every claim is answered by what is planned, in the right direction; the paper's numbers stand at its scale."""

from __future__ import annotations

import zlib
from collections import Counter

import numpy as np
import pytest

from nap_bench.experiments import ablation_projection, ablation_scale_offset, fig9_copying, fig10_memorisation
from nap_bench.experiments.base import Labelled
from nap_bench.methods import stack_of
from nap_bench.plan import SCALES
from nap_bench.report.claims import judge
from nap_bench.report.scores import Scores
from nap_bench.tune import TUNING_SEEDS, late_online

EXHIBITS = {"fig9_copying": fig9_copying, "fig10_memorisation": fig10_memorisation}
METRICS = (
    "online/accuracy",
    "probe/dead_fraction",
    "probe/parameter_norm",
    "probe/relative_update",
    "task_end/accuracy",
)


def made_up(entry, level):
    """A result with the shape that training gives; level(share of the run done) decides every metric, but for a little noise."""
    params = dict(entry.run.benchmark.params)
    total, probes = params["num_tasks"] * params["steps_per_task"], params["num_tasks"] * params["probes_per_task"]
    steps = [total * (index + 1) // probes for index in range(probes)]
    noise = np.random.default_rng(zlib.crc32(entry.run.run_id.encode()))
    values = [[level(s / total) + 0.005 * noise.standard_normal() for _ in entry.run.seeds] for s in steps]
    result = {
        "run_id": entry.run.run_id,
        "spec": entry.run.as_dict(),
        "metrics": {metric: {"steps": steps, "values": values} for metric in METRICS},
    }
    return Labelled(entry.arm, entry.setting, result)


def verdicts(name, level):
    """Claim -> verdict, of results in which level(arm, share of the run done) decides everything."""
    entries = EXHIBITS[name].runs("laptop")
    results = [made_up(entry, lambda share, arm=entry.arm: level(arm, share)) for entry in entries]
    seeds = {(entry.arm, entry.setting): entry.run.seeds for entry in entries}
    scores = Scores(EXHIBITS[name].score(results))
    found = judge(EXHIBITS[name].CLAIMS, scores, exhibit=name, scale="laptop", expected_seeds=seeds)
    return {claim["id"]: claim["verdict"] for claim in found["claims"]}


@pytest.mark.parametrize("name", EXHIBITS)
@pytest.mark.parametrize("scale", SCALES)
def test_claims_and_panels_name_planned_arms_and_every_run_can_exist(name, scale):
    entries, module = EXHIBITS[name].runs(scale), EXHIBITS[name]
    cells = Counter((entry.arm, entry.setting) for entry in entries)
    assert max(cells.values()) == 1 and {arm for arm, _ in cells} == set(module.ARMS)
    claimed = {side[1:] for claim in module.CLAIMS for m in claim.measurements for side in m.plus + m.minus}
    assert claimed <= set(cells)
    assert {arm for panel in module.PANELS for arm in panel.arms} <= {arm for arm, _ in cells}
    for entry in entries:
        assert stack_of(entry.run.methods).why_not(entry.run) is None
        assert len(entry.run.seeds) >= 8 and max(entry.run.seeds) < min(TUNING_SEEDS)


def test_arms_differ_in_their_methods_alone():
    for module in EXHIBITS.values():
        runs = [entry.run for entry in module.runs("laptop")]
        assert len({run.methods for run in runs}) == len(runs)
        assert len({(run.benchmark, run.model, run.schedule, run.optimizer, run.seeds) for run in runs}) == 1


def test_a_network_without_scales_has_none_and_the_others_have():
    for module in EXHIBITS.values():
        for entry in module.runs("laptop"):
            edited = stack_of(entry.run.methods).transform_model(entry.run.model)
            assert edited.norm_affine == ("no_scale" not in entry.arm)
            assert (edited.norm == "layer") == (entry.arm not in ("baseline", "projection_only"))


def test_the_papers_numbers_stand_at_its_scale():
    for module in EXHIBITS.values():
        size = dict(module.runs("paper")[0].run.model.size)
        assert (size["d_model"], size["heads"], len(size["widths"])) == (256, 8, 4)
    task = dict(fig10_memorisation.runs("paper")[0].run.benchmark.params)
    assert (task["num_strings"], task["length"], task["vocabulary"], task["batch_size"]) == (1024, 512, 256, 128)
    assert task["steps_per_task"] == 1000 and task["num_tasks"] * task["steps_per_task"] >= 10_000
    copied = {scale: dict(fig9_copying.runs(scale)[0].run.benchmark.params) for scale in ("workstation", "paper")}
    assert {s: (p["length"] - p["copied"], p["copied"]) for s, p in copied.items()} == {
        "workstation": (100, 50),
        "paper": (412, 100),
    }


@pytest.mark.parametrize("name", EXHIBITS)
def test_the_sweep_has_every_arm_at_the_same_rates_on_tuning_seeds(name):
    sweep = EXHIBITS[name].sweep("laptop", TUNING_SEEDS)
    assert set(sweep) == set(EXHIBITS[name].ARMS)
    assert len({tuple(hyper["lr"] for hyper, _ in trials) for trials in sweep.values()}) == 1
    assert all(set(entry.run.seeds) <= set(TUNING_SEEDS) for trials in sweep.values() for _, entry in trials)


def test_the_rival_is_tuned_on_the_measure_that_is_compared():
    (entry,) = [entry for entry in fig10_memorisation.runs("laptop") if entry.arm == "ln_weight_decay"]
    result = made_up(entry, lambda share: share)
    scores = Scores(fig10_memorisation.score([result]))
    measured = scores.values("late_online_accuracy", entry.arm)
    assert late_online(result)["late_online_accuracy"] == pytest.approx(sum(measured.values()) / len(measured))
    trials = fig10_memorisation.sweep_late_online("laptop", TUNING_SEEDS, {"ln_weight_decay": {"lr": 0.5}})
    tried = [dict(run.methods[1].params)["coef"] for _, (_, _, run) in trials["ln_weight_decay"]]
    assert tried == list(fig10_memorisation.GRID_WEIGHT_DECAY)
    assert not set(trials["ln_weight_decay"][0][1].run.seeds) & set(fig10_memorisation.SEEDS)


AS_FAST = (
    "nap_learns_late_strings_as_fast_as_the_first",
    "projection_alone_or_decay_learns_late_strings_as_fast_as_the_first",
)


def test_losing_less_than_without_projection_is_not_as_fast_as_the_first():
    plain = {"baseline", "norm_only", "norm_only_no_scale"}
    found = verdicts("fig10_memorisation", lambda arm, share: 0.9 - (0.6 if arm in plain else 0.3) * share)
    assert found["plasticity_is_lost_and_projection_or_decay_keeps_more_of_it"] == "SUPPORTED"
    assert [found[claim] for claim in AS_FAST] == ["CONTRADICTED"] * 2


def test_what_the_paper_says_about_replaced_strings_is_supported_by_results_that_show_it_and_by_no_others():
    falling = {"baseline", "norm_only", "norm_only_no_scale"}

    def as_the_paper_says(arm, share):
        slope = 0.4 if arm == "norm_only_no_scale" else 0.6
        return 0.9 - slope * share * (arm in falling)

    assert set(verdicts("fig10_memorisation", as_the_paper_says).values()) == {"SUPPORTED"}
    nothing_lost = verdicts("fig10_memorisation", lambda arm, share: 0.9)
    assert [nothing_lost.pop(claim) for claim in AS_FAST] == ["SUPPORTED"] * 2
    assert nothing_lost.pop("projection_resembles_a_large_weight_decay") == "SUPPORTED"
    assert set(nothing_lost.values()) == {"CONTRADICTED"}
    everything_lost = verdicts("fig10_memorisation", lambda arm, share: 0.9 - 0.5 * share)
    assert [everything_lost[claim] for claim in AS_FAST] == ["CONTRADICTED"] * 2
    assert "SUPPORTED" not in {
        everything_lost["plasticity_is_lost_and_projection_or_decay_keeps_more_of_it"],
        everything_lost["an_unregularised_scale_slows_learning"],
    }


def test_the_order_of_figure_9_is_supported_by_results_that_have_it_and_by_no_others():
    bonus = {"norm_only": 0.1, "nap": 0.2, "nap_no_scale": 0.2}
    assert set(verdicts("fig9_copying", lambda arm, share: 0.5 + bonus.get(arm, 0.0)).values()) == {"SUPPORTED"}
    same = verdicts("fig9_copying", lambda arm, share: 0.5)
    assert same["norm_speeds_up_copying_and_projection_further"] == "CONTRADICTED"
    assert same["copying_needs_no_learnable_scale"] == "SUPPORTED"
    needed = verdicts("fig9_copying", lambda arm, share: 0.5 - 0.3 * ("no_scale" in arm))
    assert needed["copying_needs_no_learnable_scale"] == "CONTRADICTED"


@pytest.mark.parametrize("scale", SCALES)
def test_the_ablations_have_the_transformer_at_larger_scales_and_share_its_runs(scale):
    known = {entry.run.run_id for entry in fig10_memorisation.runs(scale)}
    for module, setting in (
        (ablation_scale_offset, "transformer"),
        (ablation_projection, ablation_projection.STRINGS),
    ):
        found = {entry.arm: entry.run for entry in module.runs(scale) if entry.setting == setting}
        assert bool(found) == (scale != "laptop")
        if found:
            assert {run.model.family for run in found.values()} == {"transformer"}
            assert known & {run.run_id for run in found.values()}
