"""The exhibits on methods and NaP: every claim is answered by the runs that are planned for it, and by the right contrast."""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections import Counter

import numpy as np
import pytest

from nap_bench.experiments import (
    ablation_norm,
    ablation_projection,
    ablation_scale_offset,
    fig5_continual,
    fig8_statistics,
    interactions,
    streams_kumar,
)
from nap_bench.experiments.base import TUNED as TUNED_FILE
from nap_bench.experiments.base import Labelled
from nap_bench.metrics.probe import OF_UPDATE
from nap_bench.plan import SCALES
from nap_bench.report.claims import NOT_RUN, judge
from nap_bench.report.figures import at
from nap_bench.report.scores import Scores
from nap_bench.spec import Run
from nap_bench.tune import NUM_ONLINE_SEEDS, TUNING_SEEDS

EXHIBITS = {
    module.__name__.rpartition(".")[2]: module
    for module in (
        fig5_continual,
        fig8_statistics,
        interactions,
        ablation_norm,
        ablation_projection,
        ablation_scale_offset,
        streams_kumar,
    )
}
TUNED = json.loads(TUNED_FILE.read_text())
METRICS = (
    "online/accuracy",
    "probe/linearised_fraction",
    "probe/feature_rank",
    "probe/parameter_norm",
    "probe/gradient_norm",
    *(f"probe/{name}" for name in OF_UPDATE),
)


@pytest.fixture(scope="module")
def planned():
    """Exhibit -> its entries at laptop scale."""
    return {name: module.runs("laptop") for name, module in EXHIBITS.items()}


def made_up(entry, level=0.5, noise=0.01, num_seeds=None, num_tasks=None):
    """A result with the shape that training gives: one value per task and seed, around `level`. num_...: only so many."""
    run: Run = dataclasses.replace(entry.run, seeds=entry.run.seeds[:num_seeds])
    params = dict(run.benchmark.params)
    steps = [params["steps_per_task"] * (task + 1) for task in range(params["num_tasks"])][:num_tasks]
    generator = np.random.default_rng(zlib.crc32(run.run_id.encode()))
    values = (level + noise * generator.standard_normal((len(steps), len(run.seeds)))).tolist()
    result = {
        "run_id": run.run_id,
        "spec": run.as_dict(),
        "metrics": {metric: {"steps": steps, "values": values} for metric in METRICS},
        "environment": {"resolved_model": run.model.as_dict()},
    }
    return Labelled(entry.arm, entry.setting, result)


def judged(name, entries, level):
    """Verdicts by claim id, of results in which arm and setting decide the accuracy: level(arm, setting)."""
    scores = Scores(EXHIBITS[name].score([made_up(e, level(e.arm, e.setting)) for e in entries]))
    seeds = {(e.arm, e.setting): e.run.seeds for e in entries}
    found = judge(EXHIBITS[name].CLAIMS, scores, exhibit=name, scale="laptop", expected_seeds=seeds)
    return {claim["id"]: claim for claim in found["claims"]}, scores


@pytest.mark.parametrize("name", EXHIBITS)
def test_every_claim_is_answered_by_planned_runs_unless_it_says_that_it_is_not(name, planned):
    claims, _ = judged(name, planned[name], lambda arm, setting: 0.5)
    for claim in claims.values():
        assert (claim["verdict"] == NOT_RUN) == ("not at laptop scale" in claim["sentence"]), claim["note"]


@pytest.mark.parametrize("name", EXHIBITS)
@pytest.mark.parametrize("scale", SCALES)
def test_claims_and_panels_name_arms_that_are_planned_and_no_cell_is_planned_twice(name, scale):
    entries, module = EXHIBITS[name].runs(scale), EXHIBITS[name]
    cells = Counter((entry.arm, entry.setting) for entry in entries)
    assert max(cells.values()) == 1
    not_here = ["not at laptop scale"] * (scale == "laptop") + ["where it was tuned"] * (scale not in TUNED)
    claims = [claim for claim in module.CLAIMS if not any(words in claim.sentence for words in not_here)]
    claimed = {side[1:] for c in claims for m in c.measurements for side in m.plus + m.minus}
    assert claimed <= set(cells)
    untuned = {"ln_weight_decay"} if name == "fig5_continual" and scale not in TUNED else set()
    assert {arm for panel in at(module.PANELS, scale) for arm in panel.arms} <= {arm for arm, _ in cells} | untuned


@pytest.mark.parametrize("name", EXHIBITS)
@pytest.mark.parametrize("scale", SCALES)
def test_no_panel_is_empty_where_every_planned_run_is_done(name, scale):
    entries = [entry for entry in EXHIBITS[name].runs(scale) if "fresh" not in entry.setting or entry.arm == "nap"]
    scores = Scores(EXHIBITS[name].score([made_up(entry, num_seeds=1, num_tasks=3) for entry in entries]))
    for panel in at(EXHIBITS[name].PANELS, scale):
        shown, settings = panel.contrast or panel.arms or scores.arms(), [panel.setting]
        if panel.contrast:
            settings = [setting for setting in scores.settings() if "=" in setting]
        found = [[scores.has(panel.measure, arm, setting) for arm in shown] for setting in settings]
        assert any(all(row) if panel.contrast else any(row) for row in found), panel.title


def test_networks_that_a_scale_does_not_train_have_no_panel_there():
    for name in ("fig5_continual", "fig8_statistics"):
        panels = EXHIBITS[name].PANELS
        of_cnn = [panel for panel in panels if panel.setting.startswith("cnn")]
        assert of_cnn and not set(of_cnn) & set(at(panels, "laptop")) and set(at(panels, "paper")) == set(panels)


@pytest.mark.parametrize("name", EXHIBITS)
def test_half_of_the_runs_give_scores_too(name, planned):
    """A partial report is made from whatever is there."""
    claims, scores = judged(name, planned[name][::2], lambda arm, setting: 0.5)
    assert NOT_RUN in {claim["verdict"] for claim in claims.values()}
    for table in getattr(EXHIBITS[name], "tables", lambda scores: [])(scores):
        assert {len(row) for row in table["rows"]} == {len(table["columns"])}


def test_runs_are_shared_between_exhibits_where_they_are_the_same(planned):
    ids = {name: {entry.run.run_id for entry in entries} for name, entries in planned.items()}
    assert ids["fig8_statistics"] <= ids["fig5_continual"]
    relabelled = {e.run.run_id for e in planned["interactions"] if e.setting == "random_labels"}
    on_layer_norm = len(fig5_continual.METHODS) - 1 + len(fig5_continual.MORE_WITH_LAYER_NORM)
    assert len(relabelled - ids["fig5_continual"]) == on_layer_norm
    assert ids["ablation_norm"] <= ids["fig5_continual"]
    assert ids["ablation_scale_offset"] & ids["fig5_continual"]


def test_a_fresh_network_meets_the_very_last_task_of_the_aged_one(planned):
    entries = {(e.arm, e.setting): e.run for e in planned["fig5_continual"]}
    aged, fresh = entries["redo+nap", ""], entries["redo+nap", "fresh"]
    params, alone = dict(aged.benchmark.params), dict(fresh.benchmark.params)
    assert (alone["first_task"], alone["num_tasks"]) == (params["num_tasks"] - 1, 1)
    assert fresh == dataclasses.replace(aged, benchmark=fresh.benchmark)


def test_the_gap_is_fresh_minus_aged(planned):
    _, scores = judged("fig5_continual", planned["fig5_continual"], lambda arm, setting: 0.7 if setting else 0.4)
    gaps = scores.values("gap_to_fresh", "l2+nap")
    assert len(gaps) == 8 and all(0.2 < gap < 0.4 for gap in gaps.values())


def test_a_curve_over_learning_rates_has_an_arms_own_rate_from_its_main_run(planned):
    entries = [entry for entry in planned["fig5_continual"] if entry.arm == "nap"]
    results = {entry.setting: made_up(entry) for entry in entries}
    own = dict(next(entry for entry in entries if not entry.setting).run.schedule.params)["lr"]
    scores = Scores(fig5_continual.score(results.values()))
    rates, seeds, values = scores.curve("sensitivity", "nap", fig5_continual.BY_RATE)
    assert rates == pytest.approx([own / 4, own, 4 * own])
    assert seeds.tolist() == list(fig5_continual.SEEDS)
    num_tasks = fig5_continual.SIZES["laptop"]["sensitivity"]["num_tasks"]
    first = results[""].series("online/accuracy")[1][:num_tasks].mean(axis=0)
    assert values[1] == pytest.approx(first)


def test_the_first_tasks_of_a_run_are_the_run_of_the_first_tasks(planned, tmp_path):
    """What the point of an arm's own rate rests on."""
    from nap_bench.store import RunFolder
    from nap_bench.train import Control, train

    (run,) = [entry.run for entry in planned["fig5_continual"] if (entry.arm, entry.setting) == ("nap", "")]
    tables = []
    for num_tasks in (1, 2):
        benchmark = dict(run.benchmark.params) | {"num_tasks": num_tasks, "steps_per_task": 5}
        part = dataclasses.replace(run.benchmark, params=tuple(sorted(benchmark.items())))
        folder = RunFolder(tmp_path, dataclasses.replace(run, benchmark=part, seeds=run.seeds[:2]))
        folder.open()
        train(folder.run, folder, data_dir=None, device="cpu", control=Control())
        rows = folder.metrics.read_text().splitlines()
        tables.append([row for row in rows if row.partition(",")[0] in ("step", "5")])
    assert tables[0] == tables[1] and len(tables[0]) > 10


def test_methods_that_nap_makes_alike_support_the_papers_claims_and_others_contradict_them(planned):
    levels = dict(zip(fig5_continual.METHODS, (0.2, 0.3, 0.61, 0.3, 0.62, 0.25, 0.2), strict=True))

    def shrinking(arm, setting):
        method = "baseline" if arm == "nap" else arm.removesuffix("+nap")
        return 0.62 if arm.endswith("nap") else levels.get(method, 0.5)

    claims, _ = judged("fig5_continual", planned["fig5_continual"], shrinking)
    assert claims["nap_shrinks_the_spread"]["verdict"] == "SUPPORTED"
    assert claims["regenerative_and_redo_are_best_without_nap"]["verdict"] == "SUPPORTED"
    assert claims["nap_does_not_improve_redo"]["verdict"] == "SUPPORTED"
    improves = {m["label"]: m["verdict"] for m in claims["nap_improves_every_method_but_redo"]["measurements"]}
    assert len(improves) == 6 and not any("redo" in label for label in improves)
    assert improves.pop("regenerative with NaP - without") != "SUPPORTED" and set(improves.values()) == {"SUPPORTED"}

    def widening(arm, setting):
        method = "baseline" if arm == "nap" else arm.removesuffix("+nap")
        return levels.get(method, 0.5) if arm.endswith("nap") else 0.5

    claims, _ = judged("fig5_continual", planned["fig5_continual"], widening)
    assert claims["nap_shrinks_the_spread"]["verdict"] == "CONTRADICTED"


def classes(planned, level):
    """Method -> (with NaP, the norm's part, the projection's part) on re-drawn labels."""
    entries = [entry for entry in planned["interactions"] if entry.arm in interactions.PAPERS]
    _, scores = judged("interactions", entries, level)
    rows = interactions.tables(scores)[0]["rows"]
    assert len(rows) == len(interactions.OWN)
    return {row[0]: tuple(cell.split()[0] for cell in row[4:]) for row in rows}


def test_what_a_method_gains_is_classed_as_additive_redundant_or_complementary(planned):
    gains = {  # alone, on LayerNorm, on NaP
        "l2": (0.1, 0.1, 0.1),
        "regenerative": (0.2, 0.0, 0.0),
        "shrink_perturb": (0.2, 0.2, 0.0),
        "redo": (0.0, 0.0, 0.2),
        "leaky_relu": (0.0, 0.2, 0.0),
        "noisy_updates": (-0.2, -0.2, -0.2),
    }
    base = {"baseline": 0.3, "layer_norm": 0.5, "nap": 0.6}

    def level(arm, setting):
        method, _, norm = arm.rpartition("+")
        if arm in base:
            return base[arm]
        if not method:
            return base["baseline"] + gains[arm][0]
        return base[norm] + gains[method][1 if norm == "layer_norm" else 2]

    found = classes(planned, level)
    assert found["l2"] == ("additive", "additive", "additive")
    assert found["regenerative"] == ("redundant", "redundant", "additive")
    assert found["shrink perturb"] == ("redundant", "additive", "redundant")
    assert found["redo"] == ("complementary", "additive", "complementary")
    assert found["leaky relu"] == ("additive", "complementary", "redundant")
    assert found["noisy updates"] == ("additive", "additive", "additive")


def test_every_method_is_classed_and_a_norm_has_no_gain_on_another_norm(planned):
    _, scores = judged("interactions", planned["interactions"], lambda arm, setting: 0.5)
    first, second = interactions.tables(scores)
    rows = {row[0]: row[1:] for row in first["rows"]}
    assert len(rows) == len(interactions.OWN) + len(fig5_continual.MORE_METHODS)
    for method, row in rows.items():
        empty = [cell == "\u2013" for cell in row]
        assert empty == ([False, True, False, False, True, True] if method.endswith("norm") else [False] * 6), method
    assert len(second["rows"]) == len(interactions.OWN)  # the other methods do not run there at laptop scale


def test_the_norms_part_and_the_projections_add_up_to_the_change_with_nap():
    whole, norm, projection = interactions.parts("redo", "random_labels").values()
    assert Counter(norm.arms + projection.arms) - Counter(norm.against + projection.against) == Counter(whole.arms)
    assert Counter(norm.against + projection.against) - Counter(norm.arms + projection.arms) == Counter(whole.against)


def test_every_arm_is_tuned_on_as_many_configurations_and_three_tuning_seeds():
    sweep = fig5_continual.sweep_online("laptop", TUNING_SEEDS[:NUM_ONLINE_SEEDS])
    assert set(sweep) == set(fig5_continual.STACKS)
    assert {entry.arm for entry in interactions.runs("paper")} <= set(sweep)
    assert {len(trials) for trials in sweep.values()} == {12}
    for trials in sweep.values():
        runs = [entry.run for _, entry in trials]
        assert len({run.run_id for run in runs}) == 12 and {len(run.seeds) for run in runs} == {3}
        assert not set(runs[0].seeds) & set(fig5_continual.SEEDS)


def test_a_cross_moves_one_axis_at_a_time_away_from_the_middle():
    tried = fig5_continual.cross(a=(1, 2, 3), b=(4, 5, 6))
    assert tried == ({"a": 2, "b": 5}, {"a": 1, "b": 5}, {"a": 3, "b": 5}, {"a": 2, "b": 4}, {"a": 2, "b": 6})


def test_the_reported_runs_use_what_was_chosen(monkeypatch):
    chosen = {"redo+nap": {"lr": 0.123, "period": 7, "tau": 0.5}}
    monkeypatch.setattr(fig5_continual, "tuned", lambda exhibit, scale: chosen)
    run = fig5_continual.entry("laptop", "redo+nap").run
    (redo,) = [dict(part.params) for part in run.methods if part.name == "redo"]
    assert dict(run.schedule.params)["lr"] == 0.123 and (redo["period"], redo["tau"]) == (7, 0.5)
