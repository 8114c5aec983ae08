"""The exhibit on noisy ratios: what is planned, scores from results whose numbers are known, and verdicts that follow from them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nap_bench.experiments import stable_drl as exhibit
from nap_bench.experiments.base import Labelled
from nap_bench.report.claims import judge
from nap_bench.report.figures import at
from nap_bench.report.scores import Scores
from nap_bench.tune import TUNING_SEEDS

PARAMS = dict(pretrain_steps=100)
STEPS = [100, *(100 + 4 * (i + 1) for i in range(8))]
"""One bin of denoising, eight of training by reward."""


def result(arm: str, reward_TS, setting: str = exhibit.NOISY, **metrics) -> Labelled:
    """A result in which every metric but those given is as the reward."""
    values_TS = np.vstack([np.full((1, np.shape(reward_TS)[1]), 9.0), reward_TS]).tolist()
    table = dict.fromkeys(exhibit.CURVES.values(), {"steps": STEPS, "values": values_TS})
    for name, values in metrics.items():
        metric = exhibit.CURVES[name]
        table[metric] = {"steps": STEPS, "values": np.vstack([np.full((1, len(values[0])), 9.0), values]).tolist()}
    spec = {"seeds": list(range(len(values_TS[0]))), "benchmark": {"params": PARAMS}}
    return Labelled(arm, setting, {"spec": spec, "metrics": table})


def scalars(*results: Labelled) -> dict[tuple[str, str, str, int], float]:
    rows = list(exhibit.score(results))
    return {(row.arm, row.setting, row.measure, row.seed): row.value for row in rows if row.x is None}


def test_collapse_is_less_in_the_last_quarter_than_half_of_the_best():
    kept, lost, learned, diverged = (
        [0.4] * 6 + [0.21, 0.21],
        [0.4] * 6 + [0.19, 0.19],
        [0.1] * 6 + [0.9] * 2,
        [0.5] * 5 + [math.nan] * 3,
    )
    found = scalars(result("stable", np.transpose([kept, lost, learned, diverged])))
    collapsed = [found["stable", exhibit.NOISY, "collapsed", seed] for seed in range(4)]
    assert collapsed == [0.0, 1.0, 0.0, 1.0]
    assert found["stable", exhibit.NOISY, "best_reward", 2] == pytest.approx(0.9)
    assert found["stable", exhibit.NOISY, "best_reward", 3] == pytest.approx(0.5)
    assert math.isnan(found["stable", exhibit.NOISY, "last_reward", 3])


def test_a_spike_is_a_bin_far_above_the_seeds_own_median():
    reward_TS, norm_TS = np.full((8, 2), 0.5), np.full((8, 2), 2.0)
    largest_TS = np.full((8, 2), 9.9)
    largest_TS[3:5, 1] = 10.1
    found = scalars(result("stable", reward_TS, gradient_norm=norm_TS, largest_gradient_norm=largest_TS))
    assert [found["stable", exhibit.NOISY, "spikes", seed] for seed in (0, 1)] == [0.0, 0.25]


def test_denoising_is_in_no_score_and_updates_are_counted_from_its_end():
    rows = [row for row in exhibit.score([result("stable", np.full((8, 1), 0.5))]) if row.measure == "reward"]
    assert [(row.x, row.value) for row in rows] == [(4.0 * (i + 1), 0.5) for i in range(8)]


def test_runs_of_one_arm_stand_over_the_number_of_masks_and_controls_do_not():
    settings = ("M=1", "M=16", exhibit.COMMON, exhibit.LOW)
    rows = list(exhibit.score([result("conditional", np.full((8, 2), 0.5), setting) for setting in settings]))
    table = Scores(rows)
    x_T, _, values_TS = table.curve("last_reward_by_masks", "conditional")
    assert x_T.tolist() == [1.0, 16.0] and values_TS.shape == (2, 2)
    assert ("conditional", "") in exhibit.cells("conditional", "M=16", "laptop")
    assert exhibit.cells("conditional", exhibit.COMMON, "laptop") == [("conditional", exhibit.COMMON)]


@pytest.mark.parametrize("scale", ["laptop", "workstation"])
def test_arms_differ_in_rule_and_stack_and_settings_in_what_they_say(scale):
    entries = exhibit.runs(scale)
    assert {entry.arm for entry in entries if entry.setting == exhibit.NOISY} == set(exhibit.ARMS)
    assert len({entry.run.run_id for entry in entries}) == len(entries)
    first = dict(entries[0].run.benchmark.params)
    for entry in entries:
        rule, stack = exhibit.ARMS[entry.arm]
        assert entry.run.stack == ("nap+" if stack else "") + "optimizer_reset"
        said = {"rule": rule, "samples": exhibit.samples_of(entry.setting)}
        said |= {"clip": exhibit.CAP} if entry.setting == exhibit.CODE else {}
        said |= {"common_masks": True} if entry.setting == exhibit.COMMON else {}
        assert dict(entry.run.benchmark.params) == {**first, **said}
        is_low = entry.setting == exhibit.LOW
        assert (entry.run.schedule == entries[0].run.schedule) != is_low
        assert (entry.run.model, entry.run.optimizer) == (entries[0].run.model, entries[0].run.optimizer)
        assert len(entry.run.seeds) >= 8 and not set(entry.run.seeds) & set(TUNING_SEEDS)


def test_the_rate_falls_where_training_by_reward_begins():
    run = exhibit.entry("laptop", "stable", exhibit.NOISY).run
    from nap_bench.benchmarks import BENCHMARKS
    from nap_bench.schedules import SCHEDULES

    benchmark, schedule = run.benchmark.build(BENCHMARKS, "b"), run.schedule.build(SCHEDULES, "s")
    first, total = benchmark.pretrain_steps, benchmark.num_steps
    assert schedule(first - 1, total, total) == exhibit.PRETRAIN_LR
    assert schedule(first, total, total) == pytest.approx(exhibit.LR)


def made_up(reward: dict[tuple[str, str], float]) -> list[Labelled]:
    """All runs of the laptop, each ending at its reward (0.8 where none is given), begun at 0.4."""
    made = []
    for entry in exhibit.runs("laptop"):
        end = reward.get((entry.arm, entry.setting), 0.8)
        noise_S = np.array([0.0, 0.005, -0.005])
        reward_TS = np.linspace(0.4, end, 8)[:, None] + noise_S
        reward_TS[-2:] = end + noise_S
        spikes = np.full((8, 3), 1.0)
        spikes[:4] = 1.0 if end > 0.4 else 50.0
        made.append(
            result(entry.arm, reward_TS, entry.setting, gradient_norm=np.ones((8, 3)), largest_gradient_norm=spikes)
        )
    return made


def verdicts(results: list[Labelled]) -> dict[str, str]:
    cells = {cell for e in exhibit.runs("laptop") for cell in exhibit.cells(e.arm, e.setting, "laptop")}
    seeds = dict.fromkeys(cells, range(3))
    found = judge(
        exhibit.CLAIMS, Scores(exhibit.score(results)), exhibit="stable_drl", scale="laptop", expected_seeds=seeds
    )
    return {claim["id"]: claim["verdict"] for claim in found["claims"]}


def test_verdicts_follow_from_scores_and_are_not_fixed():
    collapsed = {("conditional", "M=1"): 0.05, ("conditional", "M=4"): 0.1, ("conditional", exhibit.LOW): 0.3}
    collapsed |= {(rule, "M=1"): 0.6 for rule in ("unconditional", "self_normalised")}
    good = verdicts(made_up({**collapsed, ("conditional+nap", "M=1"): 0.4, ("stable+nap", "M=1"): 0.9}))
    bad = verdicts(
        made_up({("stable", "M=1"): 0.1, ("conditional", exhibit.LOW): 0.9, ("conditional+nap", "M=1"): 0.2})
    )
    assert set(good.values()) == {"SUPPORTED"}
    contradicted = {claim for claim, verdict in bad.items() if verdict == "CONTRADICTED"}
    assert contradicted >= {
        "conditional_clipping_collapses_under_noise",
        "stable_drl_is_better_than_conditional_clipping",
        "stable_drl_learns",
        "common_masks_help_conditional_clipping",
        "gradients_spike_less_under_stable_drl",
        "both_parts_are_needed",
        "nap_helps_conditional_clipping",
    }


def test_a_diverged_seed_counts_as_a_collapse_and_as_no_reward():
    results = made_up({})
    worst = np.full((8, 3), math.nan)
    results = [result("conditional", worst) if (r.arm, r.setting) == ("conditional", "M=1") else r for r in results]
    found = verdicts(results)
    assert found["conditional_clipping_collapses_under_noise"] == "SUPPORTED"
    assert found["common_masks_help_conditional_clipping"] == "SUPPORTED"


def test_the_table_counts_collapses_by_arm_and_setting():
    assert not exhibit.tables(Scores([]))
    (table,) = exhibit.tables(Scores(exhibit.score(made_up({("conditional", "M=1"): 0.05}))))
    cells = {(row[0], row[1]): row[2] for row in table["rows"]}
    assert cells["conditional", "M=1"] == "3 of 3" and cells["StableDRL", "M=1"] == "0 of 3"
    assert len(table["rows"]) == len(exhibit.runs("laptop")) and all(
        len(row) == len(table["columns"]) for row in table["rows"]
    )


def test_every_panel_has_something_to_draw():
    table = Scores(exhibit.score(made_up({})))
    for panel in at(exhibit.PANELS, "laptop"):
        arms = panel.arms or table.arms()
        assert any(table.has(panel.measure, arm, panel.setting) for arm in arms), panel.title
