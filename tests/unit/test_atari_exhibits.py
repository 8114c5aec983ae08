"""The exhibits on single Atari games: runs, what is pooled over games, claims at the scales where they are asked, figures."""

from __future__ import annotations

import re
import subprocess
import sys
import zlib

import numpy as np
import pytest

from nap_bench import plan, stats
from nap_bench.benchmarks import BENCHMARKS
from nap_bench.experiments import fig4_schedules as fig4
from nap_bench.experiments import fig6_atari57 as fig6
from nap_bench.experiments import fig7_decay_duration as fig7
from nap_bench.experiments.base import Labelled
from nap_bench.report import figures
from nap_bench.report.claims import NOT_RUN, Pooled, judge
from nap_bench.report.scores import Scores
from nap_bench.rl.scores_atari import HUMAN_RANDOM, RAINBOW_PUBLISHED, human_normalised
from nap_bench.schedules import SCHEDULES

EXHIBITS = {"fig4_schedules": fig4, "fig6_atari57": fig6, "fig7_decay_duration": fig7}
GOOD = {"nap_linear": 2.0, "layer_norm": 1.5, "baseline": 1.2, "nap": 1.0, "nap_until_eighth": 1.4}


def made_up(entry, level, num_bins=12, noise=0.05):
    """A result as training gives it: evaluations that rise to `level`, human-normalised, of the entry's game."""
    run, game = entry.run, dict(entry.run.benchmark.params)["games"][0]
    draws = np.random.default_rng(zlib.crc32(run.run_id.encode()))
    normalised = level * np.linspace(0.1, 1.0, num_bins) + noise * draws.standard_normal(num_bins)
    random, human = (human_normalised(game, x) for x in (0.0, 1.0))
    values = [[float((x - random) / (human - random))] for x in normalised]  # the inverse of human_normalised
    benchmark = run.benchmark.build(BENCHMARKS, "benchmark")
    steps = [benchmark.num_steps * (i + 1) // num_bins for i in range(num_bins)]
    metrics = {name: {"steps": steps, "values": values} for name in ("return/evaluation", "online/loss")}
    result = {"run_id": run.run_id, "spec": run.as_dict(), "metrics": metrics}
    return Labelled(entry.arm, entry.setting, result)


def judged(name, scale, levels=GOOD, entries=None):
    planned = EXHIBITS[name].runs(scale)
    rows = EXHIBITS[name].score(made_up(e, levels.get(e.arm, 1.3)) for e in (planned if entries is None else entries))
    seeds: dict[tuple[str, str], list[int]] = {}
    for entry in planned:
        seeds.setdefault((entry.arm, entry.setting), []).extend(entry.run.seeds)
    scores = Scores(rows)
    found = judge(EXHIBITS[name].CLAIMS, scores, exhibit=name, scale=scale, expected_seeds=seeds)
    return {claim["id"]: claim for claim in found["claims"]}, scores


# runs


def test_what_the_paper_scale_takes_is_said_and_a_smoke_run_says_nothing():
    lines = plan.load(plan.ROOT / "config" / "plan.jsonl")
    at = {scale: [line for line in lines if "fig6_atari57" in line["uses"].get(scale, {})] for scale in plan.SCALES}
    assert plan.demand(at["laptop"]) is None
    said = plan.demand(at["paper"])
    frames = 57 * 4 * 4 * (200_000_000 + 200 * (500_000 // 4 // 16) * 16 * 4)
    assert f"912 runs, {frames / 1e9:,.1f} G frames" in said and "up to 7.1 GB" in said and "NOT MEASURED" in said
    assert f"{frames / 3600 / plan.AIMED_FPS:,.0f} GPU-hours" in said


def test_paper_scale_is_57_games_4_agents_4_seeds_of_200_million_frames():
    entries = fig6.runs("paper")
    assert len(entries) == len({e.run.run_id for e in entries}) == 57 * 4 * 4
    for entry in entries[::97]:
        benchmark = entry.run.benchmark.build(BENCHMARKS, "benchmark")
        assert benchmark.num_visits * benchmark.frames_per_visit == 200_000_000
        assert (benchmark.sticky, benchmark.full_action_space, benchmark.capacity) == (0.0, False, 1_000_000)
        assert (benchmark.min_fill, benchmark.steps_per_update, benchmark.target_period) == (20_000, 4, 2_000)
        assert 490_000 < benchmark.eval_steps * benchmark.eval_envs * 4 <= 500_000 and benchmark.bins_per_visit == 200
        assert benchmark.eval_steps * 4 >= benchmark.max_frames  # the longest episode can end
        assert entry.run.optimizer.as_dict()["params"]["eps"] == pytest.approx(1.5625e-4)


def test_the_decay_ends_halfway_at_the_papers_rates_and_only_one_agent_decays():
    entries = {e.arm: e.run for e in fig6.runs("paper") if e.setting == "pong"}
    rates = {}
    for arm, run in entries.items():
        total = run.benchmark.build(BENCHMARKS, "benchmark").num_steps
        schedule = run.schedule.build(SCHEDULES, "schedule")
        rates[arm] = [schedule(step, total, total) for step in (0, total // 4, total // 2, total - 1)]
    assert rates.pop("nap_linear") == pytest.approx([6.25e-5, 3.175e-5, 1e-6, 1e-6], rel=1e-4)
    assert all(found == [6.25e-5] * 4 for found in rates.values()) and len(rates) == 3


def test_the_game_lists_are_those_of_the_57_games():
    assert len(fig6.GAMES) == len(HUMAN_RANDOM) == 57 and len(fig7.EVERY_THIRD) == 19
    assert "fishing_derby" in fig6.FIVE and set(fig6.FIVE) <= set(fig7.EVERY_THIRD)
    assert set(fig6.SMOKE_GAMES) <= set(fig6.GAMES)


@pytest.mark.parametrize("scale", ["workstation", "paper"])
def test_exhibits_share_the_runs_that_are_the_same(scale):
    ids = {name: {e.run.run_id for e in module.runs(scale)} for name, module in EXHIBITS.items()}
    assert ids["fig4_schedules"] <= ids["fig6_atari57"]
    halfway = {e.run.run_id for e in fig7.runs(scale) if e.arm == "nap_linear"}
    assert halfway == ids["fig7_decay_duration"] & ids["fig6_atari57"]


def test_the_laptop_has_a_smoke_run_of_two_games_and_four_agents_and_nothing_else():
    entries = fig6.runs("laptop")
    assert not fig4.runs("laptop") and not fig7.runs("laptop")
    assert {e.arm for e in entries} == set(fig6.AGENTS) and len(entries) == 8
    assert all(e.setting.startswith(fig6.SMOKE) for e in entries)
    assert {e.run.benchmark.build(BENCHMARKS, "benchmark").num_steps for e in entries} == {120}


# scores and claims


def test_a_smoke_run_gives_no_score_answers_no_claim_and_is_drawn_as_what_it_is(tmp_path):
    claims, scores = judged("fig6_atari57", "laptop")
    assert scores.measures() == ("smoke_loss",)
    assert {claim["verdict"] for claim in claims.values()} == {NOT_RUN}
    assert all("not planned at laptop scale" in claim["note"] for claim in claims.values())
    assert fig6.tables(scores) == []
    figures.draw("fig6_atari57", fig6.PANELS, scores, tmp_path / "a.svg", tmp_path / "a.png")
    assert re.findall(r'<g id="(panel-\d+)">', (tmp_path / "a.svg").read_text()) == ["panel-0", "panel-1"]


def test_the_better_agent_supports_the_claims_where_they_are_asked_and_a_worse_one_contradicts_them():
    for name, scale, asked in (
        ("fig6_atari57", "workstation", ["nap_with_linear_schedule_is_best_on_five_games"]),
        ("fig7_decay_duration", "workstation", ["halfway_is_best_on_five_games"]),
        ("fig4_schedules", "workstation", [claim.id for claim in fig4.CLAIMS]),
    ):
        claims, _ = judged(name, scale)
        assert {id: c["verdict"] for id, c in claims.items() if c["verdict"] != NOT_RUN} == dict.fromkeys(
            asked, "SUPPORTED"
        )
        worse = {"nap_linear": 0.2, "layer_norm": 0.4, "nap": 0.9}
        claims, _ = judged(name, scale, worse)
        assert {claims[id]["verdict"] for id in asked} == {"CONTRADICTED"}


def test_all_57_games_decide_the_papers_claim_and_one_missing_game_leaves_it_open():
    claims, scores = judged("fig6_atari57", "paper")
    assert {claim["verdict"] for claim in claims.values()} == {"SUPPORTED"}
    best = claims["nap_with_linear_schedule_is_best"]
    assert len(best["measurements"]) == 6 and {m["n"] for m in best["measurements"]} == {4}
    over_games, published, elsewhere, by_game = fig6.tables(scores)
    assert [row[1:3] for row in over_games["rows"]] == [["57", "4"]] * 4
    assert [row[1] for row in published["rows"]] == ["1.140", "1.730", "1.870"]
    assert [row[2] for row in elsewhere["rows"]] == ["54", "55", "55"]
    assert by_game["rows"][-1][2:] == ["22,209.5", "14,686.5"] and len(by_game["rows"]) == 57
    low, high = HUMAN_RANDOM["zaxxon"]
    at_end = np.mean(list(scores.values("human_normalised", "baseline", "zaxxon").values()))
    assert float(by_game["rows"][-1][1].replace(",", "")) == pytest.approx(low + at_end * (high - low), abs=0.1)
    assert float(published["rows"][-1][2]) == pytest.approx(1.2, abs=0.1)
    entries = [e for e in fig6.runs("paper") if e.setting != "zaxxon"]
    claims, scores = judged("fig6_atari57", "paper", entries=entries)
    assert claims["nap_with_linear_schedule_is_best"]["verdict"] == NOT_RUN
    assert claims["nap_with_linear_schedule_is_best_on_five_games"]["verdict"] == "SUPPORTED"
    assert [row[1] for row in fig6.tables(scores)[0]["rows"]] == ["56"] * 4
    assert {row[2] for row in fig6.tables(scores)[1]["rows"]} == {"–"}


def test_published_scores_by_game_give_the_medians_that_are_shown_beside_ours():
    for column, row in ((0, fig6.ELSEWHERE[0]), (1, fig6.ELSEWHERE[2])):
        found = [human_normalised(g, both[column]) for g, both in RAINBOW_PUBLISHED.items() if both[column] is not None]
        assert (len(found), np.median(found)) == (row[2], pytest.approx(row[3], abs=1e-3))


def test_a_score_is_the_mean_of_the_last_tenth_and_curves_are_thinned_by_averaging():
    entry = next(e for e in fig6.runs("paper") if e.setting == "pong")
    labelled = made_up(entry, level=1.0, num_bins=200, noise=0.0)
    scores = Scores(fig6.score([labelled]))
    wanted = np.linspace(0.1, 1.0, 200)
    assert scores.values("human_normalised", entry.arm, "pong")[0] == pytest.approx(wanted[-20:].mean())
    frames, _, values_TS = scores.curve("human_normalised_curve", entry.arm, "pong")
    assert len(frames) == 50 and frames[-1] == pytest.approx(200.0)
    np.testing.assert_allclose(values_TS[:, 0], wanted.reshape(50, 4).mean(axis=1))


# pooling


def pooled(**changes):
    fields = dict(label="a - b", measure="m", better="higher", arm="a", against="b", settings=("x", "y"))
    return Pooled(**{**fields, **changes})


def test_a_pooled_measurement_asks_for_every_setting_of_both_arms():
    assert pooled().plus == (("m", "a", "x"), ("m", "a", "y")) and pooled().minus == (("m", "b", "x"), ("m", "b", "y"))
    for changes in ({"settings": ()}, {"pool": "mode"}):
        with pytest.raises(ValueError, match="a pool of iqm, mean"):
            pooled(**changes)


@pytest.mark.parametrize("pool", ["iqm", "mean"])
def test_a_pooled_effect_is_the_difference_of_what_is_pooled_and_turns_with_the_direction(pool):
    draws = np.random.default_rng(0)
    plus_KS, minus_KS = draws.normal(1.0, 0.3, (5, 4)), draws.normal(0.0, 0.3, (5, 4))
    asked = pooled(settings=tuple("vwxyz"), pool=pool)
    interval, method = asked.interval(plus_KS, minus_KS)
    assert (
        interval.estimate == pytest.approx(stats.POOLS[pool](plus_KS.T) - stats.POOLS[pool](minus_KS.T))
        and interval.low < interval.estimate < interval.high
    )
    assert interval.n == 4 and method == "stratified bootstrap t"
    by_seed = [stats.POOLS[pool](plus_KS[:, [s]].T) - stats.POOLS[pool](minus_KS[:, [s]].T) for s in range(4)]
    np.testing.assert_allclose(asked.effects(plus_KS, minus_KS), by_seed)
    turned = pooled(settings=tuple("vwxyz"), pool=pool, better="lower")
    assert turned.interval(plus_KS, minus_KS)[0].estimate == pytest.approx(-interval.estimate)


def test_one_seed_pools_to_an_estimate_without_limits():
    found = stats.pooled_interval([[1.0, 2.0, 3.0, 4.0]], "iqm")
    assert found.estimate == 2.5 and np.isnan(found.low) and found.n == 1
    assert np.isnan(stats.pooled_difference([[1.0]], [[0.0]], "mean").high)


@pytest.mark.parametrize("pool", ["iqm", "mean"])
def test_the_interval_covers_the_true_difference_at_four_seeds(pool):
    """Levels of games differ much more than seeds do, as in Atari."""
    draws, hits, num = np.random.default_rng(0), 0, 150
    level_T, spread_T = draws.lognormal(0, 1, 20), draws.uniform(0.05, 0.5, 20)
    true = 0.1 if pool == "mean" else None
    if true is None:
        a, b = (level_T + shift + spread_T * draws.standard_normal((4000, 4, 20)) for shift in (0.1, 0.0))
        true = float((stats.POOLS[pool](a) - stats.POOLS[pool](b)).mean())
    for _ in range(num):
        a, b = (level_T + shift + spread_T * draws.standard_normal((4, 20)) for shift in (0.1, 0.0))
        found = stats.pooled_difference(a, b, pool)
        hits += found.low <= true <= found.high
    assert hits / num > 0.89


# figures


def test_pooled_panels_and_profiles_draw_every_arm_over_the_games_that_all_have(tmp_path, monkeypatch):
    from matplotlib.text import Text

    written, drawn = [], Text.draw
    monkeypatch.setattr(Text, "draw", lambda self, r: (written.append(self.get_text()), drawn(self, r))[1])
    entries = [e for e in fig6.runs("workstation") if (e.arm, e.setting) != ("nap", "qbert")]
    _, scores = judged("fig6_atari57", "workstation", entries=entries)
    figures.draw("fig6_atari57", fig6.PANELS, scores, tmp_path / "a.svg", tmp_path / "a.png")
    assert written.count("4 x n=3") == 2 * 2 * len(fig6.AGENTS)  # SVG and PNG, IQM and mean; qbert is left out
    assert "fishing derby" in written and "qbert" in written and "zaxxon" not in written


def test_panels_of_games_without_results_say_so_once(tmp_path, monkeypatch):
    from matplotlib.text import Text

    written, drawn = [], Text.draw
    monkeypatch.setattr(Text, "draw", lambda self, r: (written.append(self.get_text()), drawn(self, r))[1])
    figures.draw("fig6_atari57", fig6.PANELS, Scores([]), tmp_path / "a.svg", tmp_path / "a.png")
    assert written.count("no results yet") >= 1 and "Performance profile" not in written


@pytest.mark.parametrize("name", EXHIBITS)
def test_importing_an_exhibit_imports_no_torch(name):
    code = f"import sys, nap_bench.experiments.{name}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
