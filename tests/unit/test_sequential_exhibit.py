"""Games in sequence: what is planned, what is scored where, and a small sequence of real games that is killed and resumed."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from nap_bench import cli, plan
from nap_bench.benchmarks import BENCHMARKS
from nap_bench.experiments import fig6_sequential as fig6
from nap_bench.experiments.base import Labelled
from nap_bench.report.claims import NOT_RUN, judge
from nap_bench.report.scores import Scores
from nap_bench.rl.loop import Playing, reinforce
from nap_bench.rl.scores_atari import human_normalised
from nap_bench.session import Control
from nap_bench.spec import Part
from nap_bench.store import RunFolder

METRICS = (
    "return/training",
    "return/episodes",
    "online/loss",
    "probe/parameter_norm",
    "probe/effective_learning_rate",
    "probe/dormant_fraction_tau0.1",
    "probe/feature_rank",
)


def params(run) -> dict:
    return dict(run.benchmark.params)


def test_the_chain_is_ten_games_twice_of_20_million_frames_with_18_actions():
    chain = next(entry.run for entry in fig6.runs("paper") if entry.arm == "nap")
    benchmark = chain.benchmark.build(BENCHMARKS, "benchmark")
    assert len(set(benchmark.games)) == 10 and set(fig6.KNOWN) < set(benchmark.games)
    assert benchmark.num_visits == 20 and benchmark.frames_per_visit == 20_000_000 and benchmark.num_actions == 18
    assert benchmark.updates_per_visit == (5_000_000 - 20_000) // 4
    assert benchmark.num_steps == 20 * benchmark.updates_per_visit
    assert (benchmark.replay, benchmark.target) == ("clear", "copy")
    schedule = dict(chain.schedule.params)
    assert (schedule["lr"], schedule["initial_lr"], schedule["final_lr"]) == (6.25e-5, 1e-8, 1e-6)
    assert (schedule["warmup_steps"], schedule["restart"]) == (1000, "task")
    assert chain.stack == "nap+optimizer_reset"


@pytest.mark.parametrize("scale", ["workstation", "paper"])
def test_each_agent_has_a_control_of_the_same_head_schedule_and_streams_at_every_second_visit(scale):
    entries = fig6.runs(scale)
    games = fig6.SIZES[scale]["task"]["games"]
    for arm in fig6.stacks(scale):
        chains = {entry.run.seeds: entry.run for entry in entries if entry.arm == arm}
        controls = [entry for entry in entries if entry.arm == f"{arm}_fresh"]
        assert len(controls) == len(chains) * len(games)
        for control in controls:
            chain, own = chains[control.run.seeds], params(control.run)
            visit = own.pop("first_visit")
            assert own == {key: value for key, value in params(chain).items() if key != "first_visit"}
            assert games[visit - len(games)] == control.setting
            assert control.run.benchmark.build(BENCHMARKS, "benchmark").num_visits == 1
            for part in ("model", "methods", "optimizer", "schedule"):
                assert getattr(control.run, part) == getattr(chain, part)


def test_what_the_paper_leaves_open_is_an_arm_that_differs_in_that_alone():
    entries = {entry.arm: entry.run for entry in fig6.runs("paper") if entry.run.seeds == (0,)}
    nap = entries["nap"]
    assert params(entries["nap_replay_kept"]) == params(nap) | {"replay": "keep"}
    assert params(entries["nap_target_kept"]) == params(nap) | {"target": "keep"}
    assert entries["nap_optimizer_kept"].benchmark == nap.benchmark and entries["nap_optimizer_kept"].stack == "nap"
    assert dict(entries["nap_not_told"].schedule.params)["restart"] == "never"


def made_up(entry, second_visit: float):
    """A result whose training returns are human level on first visits and `second_visit` of it on second ones."""
    run = entry.run
    benchmark = run.benchmark.build(BENCHMARKS, "benchmark")
    returns = []
    for index in range(benchmark.num_visits):
        visit = index + benchmark.first_visit
        game = benchmark.games[visit % len(benchmark.games)]
        level = 1.0 if visit < len(benchmark.games) else second_visit
        random, human = (human_normalised(game, x) for x in (0.0, 1.0))
        wobble = 0.01 * np.cos(np.arange(benchmark.bins_per_visit) + run.seeds[0] + visit)
        returns += [[float((level + w - random) / (human - random))] for w in wobble]
    steps = list(range(1, len(returns) + 1))
    table, ones = ({"steps": steps, "values": values} for values in (returns, [[1.0]] * len(returns)))
    result = {"spec": run.as_dict(), "metrics": {**dict.fromkeys(METRICS, table), "return/episodes": ones}}
    return Labelled(entry.arm, entry.setting, result)


def verdicts(scale: str, levels: dict[str, float]) -> dict[str, str]:
    entries = [entry for entry in fig6.runs(scale) if entry.arm.removesuffix("_fresh") in fig6.STACKS]
    results = [made_up(entry, levels.get(entry.arm, 1.0)) for entry in entries]
    lines = [
        line
        for line in plan.load(plan.ROOT / "config" / "plan.jsonl")
        if "fig6_sequential" in line["uses"].get(scale, {})
    ]
    seeds = cli.planned_seeds(fig6, lines, scale, "fig6_sequential")
    scores = Scores(fig6.score(results))
    judged = judge(fig6.CLAIMS, scores, exhibit="fig6_sequential", scale=scale, expected_seeds=seeds)
    return {claim["id"]: claim["verdict"] for claim in judged["claims"]}


def test_verdicts_follow_from_returns():
    as_paper = verdicts("paper", {"nap": 0.97, "layer_norm": 0.6, "baseline": 0.2})
    assert as_paper["nap_relearns_as_a_fresh_agent_does"] == "SUPPORTED"
    assert as_paper["rainbow_relearns_worse_than_a_fresh_agent"] == "SUPPORTED"
    assert as_paper["layer_norm_is_between_rainbow_and_nap"] == "SUPPORTED"
    other = verdicts("paper", {"nap": 0.5, "layer_norm": 0.6, "baseline": 1.0})
    assert set(other[claim] for claim in as_paper if "three" not in claim) == {"CONTRADICTED"}


def test_a_smoke_run_decides_nothing():
    entries = fig6.runs("laptop")
    scores = Scores(fig6.score(made_up(entry, 1.0) for entry in entries))
    judged = judge(fig6.CLAIMS, scores, exhibit="fig6_sequential", scale="laptop", expected_seeds={})
    assert {claim["verdict"] for claim in judged["claims"]} == {NOT_RUN}
    assert len({params(entry.run)["games"] for entry in entries}) == 1


def test_bins_without_an_episode_are_left_out_and_a_seed_that_diverged_has_no_area():
    scores = np.array([[1.0, np.nan, 1.0], [np.nan, np.nan, np.nan], [3.0, np.nan, np.nan]])
    episodes = np.array([[2.0, 0.0, 2.0], [0.0, 0.0, np.nan], [1.0, 0.0, np.nan]])
    found = fig6.area(scores, episodes)
    assert found[0] == 2.0 and np.isnan(found[1:]).all()


def small_run():
    run = next(entry.run for entry in fig6.runs("laptop") if entry.arm == "nap")
    task = run.benchmark.build(BENCHMARKS, "benchmark")
    size = {**dict(run.model.size), "channels": (4,), "kernels": (8,), "strides": (8,), "hidden": 8, "atoms": 5}
    task = dataclasses.replace(
        task, games=("pong", "boxing"), frames_per_visit=320, num_envs=2, min_fill=24, rebuild_frames=160, batch_size=8
    )
    return dataclasses.replace(
        run,
        benchmark=Part.of(task),
        model=dataclasses.replace(run.model, size=tuple(sorted(size.items()))),
    )


def reinforced(path) -> bytes:
    run = small_run()
    folder = RunFolder(path, run)
    folder.open()
    reinforce(run, folder, data_dir=None, device="cpu", control=Control(checkpoint_seconds=0.0))
    return folder.metrics.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("killed_at", [30, 40, 41, 95])
def test_a_sequence_of_games_killed_in_a_visit_or_at_a_switch_goes_on_to_the_same_bytes(
    tmp_path, monkeypatch, killed_at
):
    expected = reinforced(tmp_path / "whole")
    assert expected.count(b"online/loss") == 2 * 2 * 2  # bins, games, cycles
    step, steps = Playing.step, []

    def dying(self, actions_SE):
        steps.append(1)
        if len(steps) == killed_at + 1:
            raise KeyboardInterrupt
        step(self, actions_SE)

    monkeypatch.setattr(Playing, "step", dying)
    with pytest.raises(KeyboardInterrupt):
        reinforced(tmp_path / "killed")
    monkeypatch.setattr(Playing, "step", step)
    assert reinforced(tmp_path / "killed") == expected
