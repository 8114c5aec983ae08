"""The exhibit on stationary images: what differs between its arms, what its claims ask, and that every run can be."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter

import numpy as np
import pytest

from nap_bench import plan
from nap_bench.benchmarks import BENCHMARKS
from nap_bench.experiments import table1_images as exhibit
from nap_bench.experiments.base import Labelled
from nap_bench.jobs import Job, Suite, do
from nap_bench.methods import stack_of
from nap_bench.plan import SCALES, compact, expand
from nap_bench.report.claims import NOT_RUN, judge
from nap_bench.report.scores import Scores
from nap_bench.state import build
from nap_bench.store import read_result, result_path
from nap_bench.tune import TUNING_SEEDS


def made_up(entry, final, first=0.5):
    """A result with the shape that training gives: accuracy from `first` to `final`, seeds a thousandth apart."""
    params = dict(entry.run.benchmark.params)
    steps = [params["steps_per_evaluation"] * (i + 1) for i in range(params["num_evaluations"])]
    noise = 1e-3 * np.arange(len(entry.run.seeds))
    values = (np.linspace(first, final, len(steps))[:, None] + noise).tolist()
    metrics = (*exhibit.CURVES.values(), "task_end/accuracy")
    result = {"spec": entry.run.as_dict(), "metrics": {m: {"steps": steps, "values": values} for m in metrics}}
    return Labelled(entry.arm, entry.setting, result)


def judged(scale, final, first=0.5):
    entries = exhibit.runs(scale)
    scores = Scores(exhibit.score(made_up(e, final(e.arm), first) for e in entries))
    seeds: dict = {}
    for e in entries:
        seeds.setdefault((e.arm, e.setting), []).extend(e.run.seeds)
    found = judge(exhibit.CLAIMS, scores, exhibit="table1_images", scale=scale, expected_seeds=seeds)
    return {claim["id"]: claim["verdict"] for claim in found["claims"]}, scores


@pytest.mark.parametrize("scale", SCALES)
def test_every_run_can_be_is_told_apart_and_builds_on_the_meta_device(scale):
    entries = exhibit.runs(scale)
    assert len({e.run.run_id for e in entries}) == len(entries)
    assert max(Counter((e.arm, e.setting, seed) for e in entries for seed in e.run.seeds).values()) == 1
    for e in entries:
        run = e.run
        assert stack_of(run.methods).why_not(run) is None and not set(run.seeds) & set(TUNING_SEEDS)
        assert expand(json.loads(json.dumps(compact(run)))) == run
        benchmark = run.benchmark.build(BENCHMARKS, "benchmark")
        spec = stack_of(run.methods).transform_model(run.model)
        assert build(spec, run.optimizer, run.seeds[:1], benchmark.shapes, "meta").flat.is_meta


@pytest.mark.parametrize("scale", SCALES)
def test_arms_of_a_setting_differ_in_their_methods_alone(scale):
    by_setting: dict = {}
    for e in exhibit.runs(scale):
        by_setting.setdefault(e.setting, set()).add(dataclasses.replace(e.run, methods=(), seeds=(0,)))
    assert {setting: len(found) for setting, found in by_setting.items()} == dict.fromkeys(by_setting, 1)
    assert set(by_setting) == ({"", "imagenet"} if scale == "paper" else {""})


def test_the_paper_scale_is_the_papers_protocol():
    runs = {(e.arm, e.setting): e.run for e in exhibit.runs("paper")}
    cifar, imagenet = runs["baseline", ""], runs["baseline", "imagenet"]
    task = cifar.benchmark.build(BENCHMARKS, "benchmark")
    assert (task.num_steps, task.batch_size, task.dataset) == (400_000, 32, "cifar10")
    assert dict(cifar.schedule.params)["lr"] == 0.025 and cifar.schedule.name == "steps" and cifar.methods == ()
    for run in (cifar, imagenet):
        assert dict(run.optimizer.params) == {"clip_norm": None, "momentum": 0.9, "nesterov": True}
    task = imagenet.benchmark.build(BENCHMARKS, "benchmark")
    assert (task.batch_size, task.label_smoothing, imagenet.schedule.name) == (256, 0.1, "cosine")
    assert task.num_steps == pytest.approx(90 * 1_281_167 / 256, rel=1e-3)
    (decay,) = imagenet.methods
    assert dict(decay.params) == {"coef": 1e-4, "over": "weights"}
    assert (cifar.model.family, imagenet.model.family) == ("vgg", "resnet")


def test_small_costs_support_the_claims_and_a_point_and_a_half_contradicts_them():
    verdicts, _ = judged("paper", lambda arm: 0.895 if "nap" in arm or arm == "norm_only" else 0.9)
    assert set(verdicts.values()) == {"SUPPORTED"}
    verdicts, _ = judged("laptop", lambda arm: 0.885 if "nap" in arm else 0.9)
    assert verdicts.pop("nap_costs_no_accuracy_on_imagenet") == NOT_RUN
    assert verdicts["nap_costs_no_accuracy_on_stationary_images"] == "CONTRADICTED"
    assert verdicts["nap_costs_no_method_accuracy"] == "CONTRADICTED"
    assert verdicts["layer_norm_before_batch_norm_costs_no_accuracy"] == "SUPPORTED"


def test_a_task_that_shows_nothing_fails_the_control():
    verdicts, _ = judged("laptop", lambda arm: 0.9, first=0.897)
    assert verdicts["training_changes_the_accuracy_by_more_than_a_point"] == "CONTRADICTED"


def test_the_margin_of_every_noninferiority_is_one_point():
    assert {claim.margin for claim in exhibit.CLAIMS} == {0.01}
    assert [claim.paper_claim for claim in exhibit.CLAIMS].count(16) == 2


@pytest.mark.parametrize("scale", SCALES)
def test_panels_and_claims_name_what_is_planned(scale):
    entries = exhibit.runs(scale)
    arms = {e.arm for e in entries}
    assert {arm for panel in exhibit.PANELS for arm in panel.arms} <= arms
    cells = {(e.arm, e.setting) for e in entries}
    for claim in exhibit.CLAIMS:
        asked = {side[1:] for m in claim.measurements for side in m.plus + m.minus}
        assert asked <= cells or (scale != "paper" and "not at laptop scale" in claim.sentence)


def test_recalled_numbers_are_called_recalled_and_stand_beside_ours():
    _, scores = judged("laptop", lambda arm: 0.9)
    (table,) = exhibit.tables(scores)
    assert {len(row) for row in table["rows"]} == {len(table["columns"])} == {5}
    assert "recalled and unverified" in table["note"] and table["rows"][0][1] == "94.65"
    assert table["rows"][0][2].startswith("90") and table["rows"][0][4] == "\u2013"


def test_an_arm_at_laptop_scale_trains_to_the_end_and_its_result_is_scored(tmp_path):
    few = exhibit.entry("laptop", "redo+nap", seeds=TUNING_SEEDS[:2], task={"num_evaluations": 2})
    line = {"run_id": few.run.run_id, "work": 120, "uses": {}, "run": compact(few.run)}
    places = dict(store=tmp_path / "store", results=tmp_path / "results")
    assert do([Job(line, **places)], data_dir=None, device="cpu", suite=Suite([line], "laptop", **places)) == 0
    result = read_result(result_path(tmp_path / "results", few.run.run_id))
    scores = Scores(exhibit.score([Labelled(few.arm, "", result)]))
    final = scores.values("test_accuracy", "redo+nap")
    assert set(final) == set(TUNING_SEEDS[:2]) and min(final.values()) > 0.9  # chance is 0.1
    x_T, _, curve_TS = scores.curve("test_accuracy_curve", "redo+nap")
    assert x_T.tolist() == [0.03, 0.06] and curve_TS[-1].tolist() == list(final.values())


def test_what_imagenet_takes_is_said_at_paper_scale_alone():
    lines = plan.load(plan.ROOT / "config" / "plan.jsonl")
    at = {scale: [line for line in lines if "table1_images" in line["uses"].get(scale, {})] for scale in plan.SCALES}
    assert plan.demand(at["laptop"]) is None and plan.demand(at["workstation"]) is None
    runs = [line for line in at["paper"] if line.get("data") == "imagenet"]
    said = plan.demand(at["paper"])
    assert f"ImageNet: {len(runs)} runs" in said and "NOT MEASURED" in said
    images = sum(line["work"] * line["run"]["benchmark"]["params"].get("batch_size", 0) for line in runs)
    assert f"{images / 1e9:,.2f} G images" in said
