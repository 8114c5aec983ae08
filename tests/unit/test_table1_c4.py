"""The exhibit on language: what differs between its arms, what its claims ask, its size in closed form, and that runs can be."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter

import numpy as np
import pytest
import torch

from nap_bench import plan, update
from nap_bench.benchmarks import BENCHMARKS
from nap_bench.benchmarks.language import Texts
from nap_bench.data import c4
from nap_bench.experiments import table1_c4 as exhibit
from nap_bench.experiments.base import Labelled
from nap_bench.methods import stack_of
from nap_bench.plan import SCALES, compact, expand, transformer_size
from nap_bench.report.claims import NOT_RUN, judge
from nap_bench.report.scores import Scores
from nap_bench.state import build
from nap_bench.train import micro_losses
from nap_bench.tune import TUNING_SEEDS

TINY_NET = (("d_model", 24), ("embedding_std", 0.3), ("entrance", "layer"), ("heads", 12), ("widths", (96,) * 12))


def made_up(entry, final, first=0.2, sets=(), data=None):
    """A result with the shape that training gives: accuracy from `first` to `final`, seeds a thousandth apart; a bigram's 0.25."""
    params = dict(entry.run.benchmark.params)
    steps = [params["steps_per_evaluation"] * (i + 1) for i in range(params["num_evaluations"])]
    noise = 1e-3 * np.array(entry.run.seeds)
    values = (np.linspace(first, final, len(steps))[:, None] + noise).tolist()
    metrics = {m: values for m in exhibit.CURVES.values()} | {f"task_end/{name}_accuracy": values for name in sets}
    metrics["task_end/bigram_accuracy"] = [[0.25] * len(entry.run.seeds)] * len(steps)
    result = {"spec": entry.run.as_dict(), "metrics": {m: {"steps": steps, "values": v} for m, v in metrics.items()}}
    result |= {"run_id": entry.run.run_id, "environment": {"data": data or {}}}
    return Labelled(entry.arm, entry.setting, result)


def judged(scale, final, **more):
    entries = exhibit.runs(scale)
    scores = Scores(exhibit.score(made_up(e, final(e.arm), **more) for e in entries))
    seeds: dict = {}
    for e in entries:
        seeds.setdefault((e.arm, e.setting), []).extend(e.run.seeds)
    found = judge(exhibit.CLAIMS, scores, exhibit="table1_c4", scale=scale, expected_seeds=seeds)
    return {claim["id"]: claim["verdict"] for claim in found["claims"]}, scores


@pytest.mark.parametrize("scale", SCALES)
def test_every_run_can_be_is_told_apart_and_builds_on_the_meta_device(scale):
    entries = exhibit.runs(scale)
    assert max(Counter((e.arm, e.setting, seed) for e in entries for seed in e.run.seeds).values()) == 1
    runs = {e.run.run_id: e.run for e in entries}
    assert len(runs) * len({e.setting for e in entries}) == len(entries)
    for run in runs.values():
        assert stack_of(run.methods).why_not(run) is None and not set(run.seeds) & set(TUNING_SEEDS)
        assert expand(json.loads(json.dumps(compact(run)))) == run
        benchmark = run.benchmark.build(BENCHMARKS, "benchmark")
        spec = stack_of(run.methods).transform_model(run.model)
        assert build(spec, run.optimizer, run.seeds[:1], benchmark.shapes, "meta", run.precision).flat.is_meta


@pytest.mark.parametrize("scale", SCALES)
def test_arms_differ_in_their_methods_alone_and_all_decay(scale):
    entries = exhibit.runs(scale)
    assert len({dataclasses.replace(e.run, methods=(), seeds=(0,)) for e in entries}) == 1
    assert all("weight_decay" in {part.name for part in e.run.methods} for e in entries)
    assert {e.arm for e in entries} == set(exhibit.CORE if scale == "laptop" else {**exhibit.CORE, **exhibit.LARGE})


def test_the_paper_scale_is_the_papers_protocol():
    run = exhibit.runs("paper")[0].run
    task, size, schedule = run.benchmark.build(BENCHMARKS, "benchmark"), dict(run.model.size), dict(run.schedule.params)
    assert (task.num_steps, task.batch_size, task.dataset) == (30_000, 128, "c4")
    assert (size["d_model"], size["heads"], len(size["widths"])) == (1536, 12, 12)
    assert run.schedule.name == "cosine" and (schedule["lr"], schedule["warmup_steps"]) == (2e-4, 1000)
    (decay,) = run.methods
    assert (run.optimizer.name, decay.name, dict(decay.params)) == ("adam", "weight_decay", {"coef": 0.1})
    assert run.precision == "bf16" and task.train_tokens == c4.TRAIN_TOKENS and task.vocabulary == c4.VOCABULARY


@pytest.mark.parametrize("scale", SCALES)
def test_the_number_of_parameters_is_the_closed_form(scale):
    run = exhibit.runs(scale)[0].run
    task = run.benchmark.build(BENCHMARKS, "benchmark")
    state = build(run.model, run.optimizer, (0,), task.shapes, "meta")
    assert transformer_size({**compact(run), "benchmark": run.benchmark.as_dict()})[0] == state.num_parameters
    blocks = sum(p.numel() for name, p in state.params.items() if name.startswith("blocks.") and p.dim() == 3)
    if scale == "paper":
        assert blocks == 12 * 12 * 1536**2 and 4.2e8 < state.num_parameters < 4.5e8


def test_flops_are_six_for_every_weight_and_attentions_products():
    run = exhibit.runs("paper")[0].run
    _, flops = transformer_size(compact(run))
    assert flops == 6 * (12 * 12 * 1536**2 + 1536 * 32_000) + 12 * 12 * 1536 * 512


def test_the_papers_network_takes_three_steps_at_a_tiny_width():
    small = dict(length=16, vocabulary=300, batch_size=8)
    for arm in exhibit.CORE:
        run = exhibit.make("paper", arm, (0,), task=small)
        run = dataclasses.replace(run, model=dataclasses.replace(run.model, size=TINY_NET))
        task, stack = run.benchmark.build(BENCHMARKS, "benchmark"), stack_of(run.methods)
        state = build(stack.transform_model(run.model), run.optimizer, run.seeds, task.shapes, "cpu", run.precision)
        state.lr.fill_(1e-3)
        stack.setup(state)
        noise = np.random.default_rng(0).integers(1, 300, 5000, dtype=np.uint16)
        data = Texts(noise, {}, 0.0, {}, "cpu")
        before = state.flat.detach().clone()
        for _ in range(3):
            batch = task.batch(data, run.seeds, state.step)
            update.grad_step(state, micro_losses(state, stack, task, *batch, []), stack)
            update.tail(state, stack)
        assert torch.isfinite(state.flat).all() and state.alive.all() and not torch.equal(before, state.flat)


def test_what_c4_takes_is_said_beyond_laptop_scale():
    def lines(scale):
        runs = {e.run.run_id: e.run for e in exhibit.runs(scale)}.values()
        return [
            {"run": compact(run), "demand": run.benchmark.build(BENCHMARKS, "benchmark").demand(len(run.seeds))}
            for run in runs
        ]

    assert plan.demand(lines("laptop")) is None
    said, tokens = plan.demand(lines("paper")), 27 * 30_000 * 128 * 512 / 1e9
    assert f"C4: 27 runs, {tokens:,.1f} G tokens" in said and "439 M parameters" in said and "GPU-hours" in said


def test_small_costs_support_the_claims_and_a_point_contradicts_them():
    verdicts, _ = judged("paper", lambda arm: 0.448 if "nap" in arm else 0.45)
    assert verdicts.pop("nap_is_better_on_transfer_sets") == NOT_RUN
    assert set(verdicts.values()) == {"SUPPORTED"}
    verdicts, _ = judged("laptop", lambda arm: 0.44 if "nap" in arm else 0.45)
    assert verdicts["nap_costs_a_language_model_no_accuracy"] == "CONTRADICTED"
    assert verdicts["every_arm_beats_a_bigram_model"] == "SUPPORTED"
    verdicts, _ = judged("laptop", lambda arm: 0.252, first=0.25)
    assert verdicts["every_arm_beats_a_bigram_model"] == "CONTRADICTED"
    assert verdicts["training_changes_per_token_accuracy_by_more_than_a_point"] == "CONTRADICTED"


def test_better_on_transfer_sets_is_asked_of_the_five_sets():
    better, _ = judged("paper", lambda arm: 0.46 if arm == "nap" else 0.45, sets=exhibit.TRANSFER)
    assert better["nap_is_better_on_transfer_sets"] == "SUPPORTED"
    worse, _ = judged("paper", lambda arm: 0.449 if arm == "nap" else 0.45, sets=exhibit.TRANSFER)
    assert worse["nap_is_better_on_transfer_sets"] == "CONTRADICTED"


def test_the_margin_of_the_noninferiority_is_half_a_point():
    (claim,) = [claim for claim in exhibit.CLAIMS if claim.kind == "noninferiority"]
    assert claim.margin == 0.005 and claim.paper_claim == 16


def test_results_of_different_texts_are_not_compared():
    entries = exhibit.runs("laptop")
    results = [made_up(e, 0.4, data={"tokenizer": e.arm[0]}) for e in entries]
    with pytest.raises(ValueError, match="different texts or tokenizers .tokenizer: b and n."):
        list(exhibit.score(results))


@pytest.mark.parametrize("scale", SCALES)
def test_panels_and_claims_name_what_is_planned(scale):
    arms = {e.arm for e in exhibit.runs(scale)}
    assert {arm for panel in exhibit.PANELS for arm in panel.arms} <= arms
    cells = {(e.arm, e.setting) for e in exhibit.runs(scale)}
    for claim in exhibit.CLAIMS:
        asked = {side[1:] for m in claim.measurements for side in m.plus + m.minus}
        assert asked <= cells or (scale == "laptop" and "not at laptop scale" in claim.sentence)


def test_recalled_numbers_are_called_recalled_and_stand_beside_ours():
    _, scores = judged("paper", lambda arm: 0.45, sets=("pile",))
    (table,) = exhibit.tables(scores)
    assert {len(row) for row in table["rows"]} == {len(table["columns"])} == {7}
    assert "recalled and unverified" in table["note"]
    assert table["rows"][0][0] == "baseline, paper (recalled)" and table["rows"][0][1:3] == ["44.8", "47.4"]
    assert (
        table["rows"][1][1].startswith("45")
        and table["rows"][1][2].startswith("45")
        and table["rows"][1][3] == "\u2013"
    )
