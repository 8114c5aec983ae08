"""The plan: current, complete, buildable; the configuration: checked before any work."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import yaml

from nap_bench import plan
from nap_bench.benchmarks import BENCHMARKS
from nap_bench.methods import stack_of
from nap_bench.simulate import check
from nap_bench.state import build

ROOT = Path(__file__).parents[2]
SCHEMA = yaml.safe_load((ROOT / "config" / "schema.yaml").read_text())
CONFIG = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())


@pytest.fixture(scope="module")
def lines():
    return plan.load(ROOT / "config" / "plan.jsonl", ROOT)


def test_law_11_the_committed_plan_is_what_the_experiments_say():
    assert (ROOT / "config" / "plan.jsonl").read_text() == plan.make(ROOT)


def test_law_11_every_planned_run_builds_on_the_meta_device(lines):
    for line in lines:
        run = plan.expand(line["run"])
        assert run.run_id == line["run_id"]
        benchmark = run.benchmark.build(BENCHMARKS, "benchmark")
        assert line["work"] == benchmark.num_steps * len(run.seeds)
        if benchmark.loop == "simulation":  # it has no model to build
            check(run)
            continue
        state = build(
            stack_of(run.methods).transform_model(run.model), run.optimizer, run.seeds, benchmark.shapes, "meta"
        )
        assert state.flat.is_meta


def test_the_plan_is_small_and_its_runs_are_distinct(lines):
    assert (ROOT / "config" / "plan.jsonl").stat().st_size < 5_000_000
    assert len({line["run_id"] for line in lines}) == len(lines)


def test_reported_seeds_are_at_least_eight_and_never_tuning_seeds(lines):
    from nap_bench.tune import TUNING_SEEDS

    for line in lines:
        if set(line["uses"]) == {plan.TUNING}:
            assert set(line["run"]["seeds"]) <= set(TUNING_SEEDS)
        else:
            assert not set(line["run"]["seeds"]) & set(TUNING_SEEDS)
            # a large run is one seed of the paper's few
            large = line["resources"] in ("atari", "lm") or line.get("data") == "imagenet"
            assert large or len(line["run"]["seeds"]) >= 8


def test_identical_cells_are_run_once_and_shared_between_exhibits(tmp_path, monkeypatch):
    from nap_bench import experiments

    monkeypatch.setattr(experiments, "EXPERIMENTS", {"one": experiments.arms, "two": experiments.arms})
    header, *lines = (json.loads(line) for line in plan.make(ROOT).splitlines())
    assert all(
        set(line["uses"][scale]) == {"one", "two"} for line in lines for scale in set(line["uses"]) & set(plan.SCALES)
    )


@pytest.mark.fault(
    "edited: an experiment, and the plan was not renewed", outcome="refused in one line with the command that renews it"
)
def test_a_stale_plan_is_refused_with_the_command_that_renews_it(tmp_path):
    stale = tmp_path / "plan.jsonl"
    stale.write_text('{"digest": "0", "num_runs": 0}\n')
    with pytest.raises(ValueError, match="is older than the sources.*nap-bench plan"):
        plan.load(stale, ROOT)


def test_a_users_own_plan_is_taken_as_it_is(tmp_path):
    own = tmp_path / "mine.jsonl"
    line = {"run_id": "x", "methods": [], "resources": "small", "work": 1, "uses": {}, "run": {}}
    own.write_text(f'{{"num_runs": 1}}\n{json.dumps(line)}\n')
    assert plan.load(own, ROOT) == [line]


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "is empty"), ('{}\n{"run_id', "line 2 is not JSON"), ('{}\n{"run_id": "x"}\n', "line 2 lacks run, uses")],
)
def test_a_damaged_plan_is_refused_naming_the_line(tmp_path, text, message):
    (tmp_path / "plan.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        plan.load(tmp_path / "plan.jsonl", ROOT)


def test_every_pack_is_of_one_kind_and_every_run_is_in_one_pack(lines):
    packs = plan.packs(lines, 4)
    members = [member for pack in packs.values() for member in pack]
    assert sorted(members) == sorted(line["run_id"] for line in lines)
    assert max(map(len, packs.values())) <= 4
    chosen = lines[1::3]
    narrowed = plan.packs(lines, 4, chosen)
    assert all(set(narrowed[name]) == set(packs[name]) & {line["run_id"] for line in chosen} for name in narrowed)


def test_the_shipped_configuration_is_valid_and_has_under_fifteen_keys():
    plan.check_config(CONFIG, SCHEMA)
    assert set(CONFIG) == set(SCHEMA["properties"]) and len(CONFIG) < 15


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scal": "paper"}, "unknown key 'scal'. Did you mean 'scale'"),
        ({"scale": "papr"}, "Did you mean 'paper'"),
        ({"device": "gpu"}, "device wants .*cuda.* found 'gpu'"),
        ({"pack_size": 0}, "pack_size wants at least 1"),
        ({"pack_size": "four"}, "wants a value of type integer"),
        ({"experiments": "arms"}, "wants a value of type array"),
    ],
)
def test_bad_configuration_is_refused_in_words(change, message):
    with pytest.raises(ValueError, match=message):
        plan.check_config({**CONFIG, **change}, SCHEMA)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"experiments": ["armz"]}, "experiments at scale laptop: unknown 'armz'. Did you mean 'arms'"),
        ({"methods": ["napp"]}, "methods at scale laptop: unknown 'napp'. Did you mean 'nap'"),
    ],
)
def test_unknown_exhibits_and_methods_are_refused_with_the_nearest_name(lines, arguments, message):
    with pytest.raises(ValueError, match=message):
        plan.select(lines, "laptop", **arguments)


def test_the_config_narrows_the_plan(lines):
    some = plan.select(lines, "laptop", ["arms"], ["nap", "baseline"])
    assert some and all(set(line["methods"]) <= {"nap"} and "arms" in line["uses"]["laptop"] for line in some)


def test_reading_checking_and_packing_every_scale_takes_well_under_a_second():
    began = time.process_time()
    lines = plan.load(ROOT / "config" / "plan.jsonl", ROOT)
    for scale in plan.SCALES:
        plan.packs(plan.select(lines, scale), 4)
    assert time.process_time() - began < 1.0


@pytest.mark.fault(
    "killed: the holder of the workflow's lock", outcome="the lock dies with it; nothing has to be unlocked"
)
def test_a_second_holder_is_refused_and_the_lock_dies_with_its_holder(tmp_path):
    first = plan.hold("store", tmp_path)
    with pytest.raises(ValueError, match="Another invocation"):
        plan.hold("store", tmp_path)
    first.close()
    plan.hold("store", tmp_path).close()
