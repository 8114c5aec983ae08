"""The exhibits on the sequence of small problems: scores from results whose numbers are known, and what the plan asks for."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nap_bench import cli, plan
from nap_bench.experiments import ablation_schedule_rl, rl_sequence
from nap_bench.experiments.base import Labelled
from nap_bench.report.claims import judge
from nap_bench.report.scores import Scores
from nap_bench.rl import pixels

PARAMS = dict(num_variants=2, cycles=2, bins_per_visit=2, frame_shape=[5, 4], first_visit=0)


def result(arm: str, values_TS: list[list[float]], setting: str = "", **params) -> Labelled:
    """A result in which every metric has these values."""
    steps = list(range(1, len(values_TS) + 1))
    table = {"steps": steps, "values": values_TS}
    metrics = [
        "return/evaluation",
        "probe/parameter_norm",
        "probe/effective_learning_rate",
        "probe/explicit_learning_rate",
        "probe/dormant_fraction_tau0.1",
        "probe/feature_rank",
    ]
    spec = {"seeds": list(range(len(values_TS[0]))), "benchmark": {"params": {**PARAMS, **params}}}
    return Labelled(arm, setting, {"spec": spec, "metrics": dict.fromkeys(metrics, table)})


def test_scores_are_normalised_between_a_blind_policy_and_the_best():
    assert rl_sequence.normalised(result("nap", [[-0.5], [1.0], [0.25], [-1.0]])).tolist() == [
        [[0.0], [1.0]],
        [[0.5], [rl_sequence.WORST]],
    ]
    for width in (4, 5):
        blind = 2.0 / width - 1.0
        assert blind == pytest.approx(pixels.random_return((10, width)))
        assert pixels.optimum(pixels.Task(), (10, width)) == 1.0
        assert (-1.0 - blind) / (1.0 - blind) >= rl_sequence.WORST - 1e-12


def test_the_last_cycle_of_a_chain_is_compared_with_its_controls_on_the_same_visits():
    chain = [[-0.5], [1.0], [1.0], [1.0], [0.25], [0.25], [-0.5], [1.0]]  # visits 0 1 2 3, two bins each
    results = [
        result("nap", chain),
        result("nap_fresh", [[1.0], [1.0]], "visit 3", first_visit=3),
        result("nap_fresh", [[-0.5], [0.25]], "visit 2", first_visit=2),
    ]
    rows = {(row.arm, row.measure): row.value for row in rl_sequence.score(results) if row.x is None}
    assert rows["nap", "last_cycle"] == pytest.approx((0.5 + 0.5 + 0.0 + 1.0) / 4)
    assert rows["nap", "first_cycle"] == pytest.approx((0.0 + 1.0 + 1.0 + 1.0) / 4)
    assert rows["nap", "final"] == pytest.approx(0.75)
    assert rows["nap", "jump_start"] == pytest.approx(0.25)
    assert rows["nap", "forgotten"] == pytest.approx(((1.0 - 0.5) + (1.0 - 0.0)) / 2)
    assert rows["nap_fresh", "last_cycle"] == pytest.approx((0.0 + 0.5 + 1.0 + 1.0) / 4)
    assert (rows["nap_fresh", "final_0"], rows["nap_fresh", "final_1"]) == (0.5, 1.0)
    assert ("nap_fresh", "first_cycle") not in rows


def test_controls_say_nothing_until_all_are_there():
    rows = list(rl_sequence.score([result("nap_fresh", [[1.0], [1.0]], "visit 3", first_visit=3)]))
    assert not rows


@pytest.mark.parametrize("scale", ["laptop", "workstation"])
def test_every_arm_has_a_control_for_each_visit_of_the_last_cycle_with_its_own_schedule(scale):
    entries = rl_sequence.runs(scale)
    chains = {entry.arm: entry.run for entry in entries if entry.arm in rl_sequence.STACKS}
    assert set(chains) == set(rl_sequence.STACKS)
    visits = rl_sequence.last_visits(rl_sequence.SIZES[scale]["task"])
    for arm, control in rl_sequence.FRESH.items():
        found = [entry.run for entry in entries if entry.arm == control]
        assert [dict(run.benchmark.params)["first_visit"] for run in found] == list(visits)
        for run in found:
            own = {key: value for key, value in run.benchmark.params if key != "first_visit"}
            assert own == dict(chains[arm].benchmark.params)
            for part in ("model", "methods", "optimizer", "schedule", "seeds"):
                assert getattr(run, part) == getattr(chains[arm], part)
    assert len(rl_sequence.SIZES[scale]["seeds"]) >= 8


def judged(claims, rows, exhibit):
    """Verdicts on made-up results, whose seeds stand for the planned ones."""
    planned = cli.planned_seeds(rl_sequence, plan.load(plan.ROOT / "config" / "plan.jsonl"), "laptop", exhibit)
    assert all(seeds == list(range(300, 308)) for seeds in planned.values())
    seeds = dict.fromkeys(planned, range(3))
    found = judge(claims, Scores(rows), exhibit=exhibit, scale="laptop", expected_seeds=seeds)
    return {claim["id"]: claim["verdict"] for claim in found["claims"]}


def test_verdicts_follow_from_scores_and_are_not_fixed():
    def rows(nap: float, plain: float):
        made = []
        for arm, level in {"nap": nap, "layer_norm": 0.7, "baseline": plain, "redo": 0.5}.items():
            noise_S = np.array([0.0, 0.01, -0.01])
            chain_TS = 1.5 * (level + noise_S) - 0.5 + np.zeros((16, 3))
            fresh_TS = 1.5 * (0.95 + noise_S[::-1]) - 0.5 + np.zeros((2, 3))
            made.append(result(arm, chain_TS.tolist(), num_variants=4))
            made += [
                result(f"{arm}_fresh", fresh_TS.tolist(), f"visit {visit}", num_variants=4, first_visit=visit)
                for visit in range(4, 8)
            ]
        return [row for row in rl_sequence.score(made)]

    good, bad = (judged(rl_sequence.CLAIMS, rows(*levels), "rl_sequence") for levels in ((0.94, 0.3), (0.4, 0.94)))
    for claim in ("nap_relearns_as_a_fresh_network_does", "plain_rainbow_relearns_worse_than_a_fresh_network"):
        assert (good[claim], bad[claim]) == ("SUPPORTED", "CONTRADICTED")


def test_the_schedules_share_agent_problems_and_cosine_with_the_sequence():
    entries = {entry.arm: entry.run for entry in ablation_schedule_rl.runs("laptop")}
    nap = next(entry.run for entry in rl_sequence.runs("laptop") if entry.arm == "nap")
    assert entries["cosine"].run_id == nap.run_id
    assert set(entries) == set(ablation_schedule_rl.ARMS)
    for arm, run in entries.items():
        assert (run.benchmark, run.model, run.seeds) == (nap.benchmark, nap.model, nap.seeds)
        assert (run.optimizer.name == "prodigy") == (arm == "adaptive")
        assert ("implicit_schedule" in run.stack) == (arm == "implicit")
    rows = list(ablation_schedule_rl.score([result("linear", [[1.0]] * 4 + [[-0.5]] * 4, "sequence")]))
    area = [row.value for row in rows if row.measure == "area"]
    assert area == [0.5] and not any(math.isnan(row.value) for row in rows)


def test_the_table_says_how_the_last_visits_compare_with_fresh_agents():
    chain = [[-0.5, -0.5], [1.0, 1.0], [1.0, 1.0], [1.0, 1.0], [0.25, 1.0], [0.25, 1.0], [-0.5, 1.0], [1.0, 1.0]]
    fresh = [[1.0, 1.0], [1.0, 1.0]]
    results = [result("nap", chain)]
    assert not rl_sequence.tables(Scores(rl_sequence.score(results)))
    results += [result("nap_fresh", fresh, f"visit {visit}", first_visit=visit) for visit in (2, 3)]
    (table,) = rl_sequence.tables(Scores(rl_sequence.score(results)))
    (row,) = table["rows"]
    assert row[0] == "NaP" and row[1:4] == ["0.750", "1.000", "0.750"]  # (0.5 + 1) / 2
    assert row[4].startswith("\u22120.250") and row[5].startswith("\u22120.375") and row[6].startswith("+0.375")
