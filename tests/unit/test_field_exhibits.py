"""The exhibits on the field, on schedules and on NaP in Rainbow: scores from results whose numbers are known, and what is
planned."""

from __future__ import annotations

import zlib
from collections import Counter

import numpy as np
import pytest

from nap_bench.experiments import ablation_nap_rl, ablation_schedule, fig5_continual, fig6_atari57, rl_sequence
from nap_bench.experiments import field_comparison as field
from nap_bench.experiments.base import Labelled
from nap_bench.methods import METHODS
from nap_bench.plan import SCALES
from nap_bench.report.claims import NOT_RUN, judge
from nap_bench.report.figures import OF_MANY, at
from nap_bench.report.scores import Scores

EXHIBITS = {module.__name__.rpartition(".")[2]: module for module in (ablation_nap_rl, ablation_schedule, field)}
OF_TASK = (
    "online/accuracy",
    "online/loss",
    "task_end/test_accuracy",
    "probe/explicit_learning_rate",
    "probe/effective_learning_rate",
)


@pytest.fixture(scope="module")
def planned():
    """Exhibit -> its entries at laptop scale."""
    return {name: module.runs("laptop") for name, module in EXHIBITS.items()}


def made_up(entry, level=0.5, noise=0.01):
    """A result with the shape that training gives, every metric around `level`."""
    run = entry.run
    params = dict(run.benchmark.params)
    if run.benchmark.name in ("catch", "atari"):
        visits = 1 if params.get("first_visit") else params.get("num_variants", 1) * params.get("cycles", 1)
        names, num = ("return/evaluation", "online/loss"), visits * params["bins_per_visit"]
    else:
        names, num = OF_TASK, params["num_tasks"]
    steps = [params.get("steps_per_task", 10) * (index + 1) for index in range(num)]
    generator = np.random.default_rng(zlib.crc32(run.run_id.encode()))
    values = (level + noise * generator.standard_normal((num, len(run.seeds)))).tolist()
    return Labelled(
        entry.arm,
        entry.setting,
        {
            "spec": run.as_dict(),
            "metrics": {name: {"steps": steps, "values": values} for name in names},
            "cost": {"steps_per_second": 100.0 if entry.arm == "baseline" else 50.0},
        },
    )


def judged(name, entries, level=lambda arm, setting: 0.5, scale="laptop"):
    scores = Scores(EXHIBITS[name].score([made_up(e, level(e.arm, e.setting)) for e in entries]))
    seeds: dict[tuple[str, str], list[int]] = {}
    cells = getattr(EXHIBITS[name], "cells", lambda arm, setting, scale: [(arm, setting)])
    for entry in entries:
        for cell in cells(entry.arm, entry.setting, scale):
            seeds.setdefault(cell, []).extend(entry.run.seeds)
    found = judge(EXHIBITS[name].CLAIMS, scores, exhibit=name, scale=scale, expected_seeds=seeds)
    return {claim["id"]: claim for claim in found["claims"]}, scores


@pytest.mark.parametrize("name", EXHIBITS)
def test_every_claim_is_answered_by_planned_runs_unless_it_says_that_it_is_not(name, planned):
    claims, _ = judged(name, planned[name])
    for claim in claims.values():
        assert (claim["verdict"] == NOT_RUN) == ("not at laptop scale" in claim["sentence"].replace("\n", " ")), claim
        assert not claim["partial"]


@pytest.mark.parametrize("name", EXHIBITS)
@pytest.mark.parametrize("scale", SCALES)
def test_no_cell_is_planned_twice_with_a_seed_and_no_panel_is_empty(name, scale):
    entries = EXHIBITS[name].runs(scale)
    cells = Counter((entry.arm, entry.setting, seed) for entry in entries for seed in entry.run.seeds)
    assert max(cells.values()) == 1
    games = set(fig6_atari57.FIVE)
    scores = Scores(EXHIBITS[name].score([made_up(e) for e in entries if e.setting not in games]))
    for panel in at(EXHIBITS[name].PANELS, scale):
        if panel.kind not in OF_MANY:
            arms = panel.arms or scores.arms()
            assert any(scores.has(panel.measure, arm, panel.setting) for arm in arms), panel.title


@pytest.mark.parametrize("name", EXHIBITS)
def test_half_of_the_runs_give_scores_and_tables_too(name, planned):
    _, scores = judged(name, planned[name][::2])
    for table in getattr(EXHIBITS[name], "tables", lambda scores: [])(scores):
        assert {len(row) for row in table["rows"]} == {len(table["columns"])}


# The field


def test_every_method_is_compared_or_is_no_method_against_plasticity_loss():
    compared = {arm.partition("(")[0] for arm in field.ALONE}
    assert set(METHODS) - compared - {"baseline"} == {"implicit_schedule"}
    assert set(field.OLD) == {"baseline", "layer_norm", *fig5_continual.METHODS, *fig5_continual.MORE_METHODS}


@pytest.mark.parametrize("scale", SCALES)
def test_every_method_is_on_every_stream_but_in_the_cells_that_are_said_to_be_impossible(scale):
    there = {(e.arm, e.setting) for e in field.runs(scale)}
    streams = (field.MAIN, *field.streams(scale), *[field.RL] * (scale in field.LARGER))
    single = [stream for stream, (benchmark, *_) in field.streams(scale).items() if benchmark.batch_size == 1]
    absent = {("batch_norm", stream) for stream in single} | {("group_norm", "regression")}
    if scale in field.LARGER:
        absent |= {("weight_norm", field.RL), ("optimizer_reset", field.RL)}  # the second is in all of Rainbow's arms
    assert {(arm, stream) for arm in field.ALONE for stream in streams} - there == absent


def test_snrs_threshold_stays_above_a_hundred_examples_where_it_is_not_tuned():
    shortest = {}
    for scale in ("laptop", "paper"):
        for entry in field.runs(scale):
            if entry.arm == "snr":
                (params,) = [dict(part.params) for part in entry.run.methods if part.name == "snr"]
                shortest[scale, entry.setting] = params.get("shortest", 1)
                assert params["start"] >= params.get("shortest", 1)
    assert shortest["laptop", ""] == 1 and shortest["laptop", "regression"] == 100
    assert [shortest["paper", stream] for stream in field.NAMES] == [1, *[100] * 5, 3, 1, 3]


def test_the_share_of_better_methods_is_counted_seed_by_seed_with_ties_as_half_and_divergence_as_worst():
    values_AS = np.array([[3.0, 1.0, np.nan], [2.0, 1.0, np.nan], [1.0, 5.0, -9.0]])
    assert field.share_better(values_AS).tolist() == [[0.0, 0.75, 0.75], [0.5, 0.75, 0.75], [1.0, 0.0, 0.0]]


def test_the_mean_is_over_the_streams_that_all_that_are_claimed_about_ran_on(planned):
    entries = [e for e in planned["field_comparison"] if e.arm in ("baseline", "nap", "snr")]
    level = {"nap": 0.9, "snr": 0.7, "baseline": 0.1}
    _, scores = judged("field_comparison", entries, lambda arm, setting: level[arm])
    assert scores.has("share_better", "nap", field.RL), "where SNR did not run"
    for arm in level:
        own = [np.mean(list(scores.values("share_better", arm, stream).values())) for stream in ("", "regression")]
        assert np.mean(list(scores.values("share_better", arm, field.ALL).values())) == pytest.approx(np.mean(own))


def test_streams_count_alike_and_a_method_that_misses_one_has_no_mean_over_them(planned):
    entries = [e for e in planned["field_comparison"] if e.arm in ("baseline", "nap", "batch_norm")]
    level = {"nap": 0.9, "batch_norm": 0.7, "baseline": 0.1}
    wanted = {"": {"nap": 0.0, "batch_norm": 0.5, "baseline": 1.0}, "regression": {"nap": 1.0, "baseline": 0.0}}
    wanted[field.RL] = {"nap": 0.0, "baseline": 1.0}
    _, scores = judged("field_comparison", entries, lambda arm, setting: level[arm])
    for stream, shares in wanted.items():  # of the regression the loss is 0.9 for nap: worse
        for arm, share in shares.items():
            assert set(scores.values("share_better", arm, stream).values()) == {share}
    mean = {arm: np.mean(list(scores.values("share_better", arm, field.ALL).values())) for arm in ("nap", "baseline")}
    assert mean == {"nap": pytest.approx(1 / 3), "baseline": pytest.approx(2 / 3)}
    assert not scores.has("share_better", "batch_norm", "regression")
    assert not scores.has("share_better", "batch_norm", field.ALL), "it misses a stream of the mean"
    (table,) = field.tables(scores)
    assert [row[0] for row in table["rows"]] == ["NaP", "baseline", "BatchNorm"]
    assert [float(row[-1]) for row in table["rows"]] == [2.0, 1.0, 2.0]


def test_a_seed_that_diverges_has_no_performance_and_is_the_worst_in_rank(planned):
    results = [
        made_up(e) for e in planned["field_comparison"] if e.setting == "" and e.arm in ("baseline", "nap", "l2")
    ]
    for labelled in results:
        if labelled.arm == "nap":
            for row in labelled.result["metrics"]["online/accuracy"]["values"][5:]:
                row[3] = None
    scores = Scores(field.score(results))
    seed = results[0].seeds[3]
    assert np.isnan(scores.values("performance", "nap")[seed]) and scores.values("share_better", "nap")[seed] == 1.0


def test_arms_that_are_better_support_the_claims_and_worse_ones_contradict_them(planned):
    def better(arm, setting):
        level = {"nap": 0.9, "baseline": 0.2, "layer_norm": 0.5}.get(arm, 0.6 if "+nap" in arm else 0.4)
        return -level if setting == "regression" else level

    claims, _ = judged("field_comparison", planned["field_comparison"], better)
    assert {claim["verdict"] for claim in claims.values()} == {"SUPPORTED"}
    claims, _ = judged("field_comparison", planned["field_comparison"], lambda arm, setting: 1.0 - better(arm, setting))
    assert {claim["verdict"] for claim in claims.values()} == {"CONTRADICTED"}


def test_performance_is_what_each_stream_is_about(planned):
    by_stream = {e.setting: e for e in field.runs("paper") if e.arm == "nap"}
    for stream in ("hard_and_easy", "warm_start", "regression"):
        labelled = made_up(by_stream[stream], noise=0.0)
        metrics = labelled.result["metrics"]
        num = len(metrics["online/accuracy"]["steps"])
        for name in metrics:
            metrics[name] = {**metrics[name], "values": [[float(index)] * 8 for index in range(num)]}
        wanted = {"hard_and_easy": np.arange(0, num, 2).mean(), "warm_start": num - 1.0, "regression": -(num - 1) / 2}
        assert set(field.performance(labelled).tolist()) == {wanted[stream]}


def test_hyperparameters_are_the_tuned_ones_where_there_are_some_and_the_authors_elsewhere(planned):
    chosen = field.tuned("field_comparison", "laptop")
    for entry in planned["field_comparison"]:
        method = entry.arm.partition("+")[0]
        if entry.setting or method not in chosen:
            continue
        used = {key: value for part in entry.run.methods if part.name == method for key, value in part.params}
        own = {key: value for key, value in chosen[entry.arm].items() if key != "lr"}
        assert {key: used[key] for key in own} == own
        assert dict(entry.run.schedule.params)["lr"] == chosen[entry.arm]["lr"]
    (snr,) = [e.run for e in field.runs("paper") if (e.arm, e.setting) == ("snr", "")]
    assert dict(snr.methods[0].params)["refresh"] == 1000 and dict(snr.schedule.params)["lr"] == 1e-4


def test_injection_is_in_the_middle_of_every_stream():
    for entry in field.runs("workstation"):
        if entry.arm == "plasticity_injection":
            params, (part,) = dict(entry.run.benchmark.params), [p for p in entry.run.methods if p.name == entry.arm]
            num = params["num_tasks"] if "num_tasks" in params else params["num_variants"] * params["cycles"]
            assert dict(part.params)["tasks"] == (num // 2,)


def test_runs_are_shared_with_the_exhibits_that_have_them(planned):
    ids = {e.run.run_id for e in planned["field_comparison"]}
    fig5 = {e.run.run_id for e in fig5_continual.runs("laptop") if not e.setting and e.arm in field.ALONE}
    rainbow = {e.run.run_id for e in rl_sequence.runs("laptop") if e.arm in rl_sequence.STACKS}
    assert fig5 | rainbow <= ids and len(fig5) == len(field.OLD) + 1
    assert {e.run.run_id for e in planned["ablation_schedule"] if e.arm == "constant"} <= fig5
    fresh = {e.run.run_id for e in rl_sequence.runs("laptop") if e.arm == "nap_fresh"}
    assert len({e.run.run_id for e in planned["ablation_nap_rl"] if e.arm == "decay"} & fresh) == 1


# Schedules


def test_schedules_end_where_they_say_and_only_those_of_each_task_begin_anew(planned):
    from nap_bench.experiments import ablation_schedule
    from nap_bench.schedules import SCHEDULES

    runs = {e.arm: e.run for e in planned["ablation_schedule"]}
    assert runs.keys() < {e.arm for e in ablation_schedule.runs("workstation")} == set(ablation_schedule.ARMS)
    top = dict(runs["constant"].schedule.params)["lr"]

    def rate(arm, step):
        schedule = ablation_schedule.schedule(arm, top, 2000)
        if arm in runs:
            assert runs[arm].schedule.build(SCHEDULES, "schedule") == schedule
        return schedule(step, 2000, 100)

    peak = rate("constant", 0)
    assert rate("linear", 0) == rate("cosine", 0) == rate("linear_each_task", 100) == peak
    assert rate("linear", 1000) == rate("linear", 1999) == pytest.approx(peak / 60)
    assert rate("cosine", 1000) == pytest.approx(peak * (1 + 1 / 60) / 2)
    assert rate("linear_each_task", 150) == pytest.approx(peak / 60) and rate("cosine_each_task", 1900) == peak
    assert rate("warm_up", 0) == 0.0 and rate("warm_up", 50) == pytest.approx(peak / 2) and rate("warm_up", 100) == peak
    assert [part.name for part in runs["implicit"].methods] == ["implicit_schedule", "nap"]


# NaP in Rainbow


def test_arms_of_rainbow_differ_from_each_other_in_nap_alone():
    for scale in ("laptop", "workstation"):
        for setting in ("visit", "sequence"):
            runs = [e.run for e in ablation_nap_rl.runs(scale) if e.setting == setting]
            assert len({(run.benchmark, run.model, run.optimizer, run.schedule, run.seeds) for run in runs}) <= 1
            others = {tuple(part for part in run.methods if part.name != "nap") for run in runs}
            assert len(others) <= 1


def test_a_period_has_ten_projections_or_more_wherever_it_is_tried():
    for scale in SCALES:
        for entry in ablation_nap_rl.runs(scale):
            if entry.arm.startswith("every_"):
                from nap_bench.benchmarks import BENCHMARKS

                num_updates = entry.run.benchmark.build(BENCHMARKS, "benchmark").num_steps
                assert num_updates >= 10 * int(entry.arm.removeprefix("every_")), (scale, entry.arm, entry.setting)


def test_the_papers_claim_about_rainbow_is_asked_of_rainbow():
    claims = [claim for claim in ablation_nap_rl.CLAIMS if claim.paper_claim == 20]
    assert [claim.kind for claim in claims] == ["equivalence"] * 2
    entries = ablation_nap_rl.runs("workstation")
    for claim in claims:
        for measurement in claim.measurements:
            for _, arm, setting in measurement.plus + measurement.minus:
                assert any((e.arm, e.setting) == (arm, setting) for e in entries)
