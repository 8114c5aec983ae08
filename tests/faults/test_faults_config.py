"""Bad configurations are refused in one line, before any work; an edited experiment mixes with nothing that was made before."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import yaml
from faults import toy
from workflow import small

from nap_bench import cli, cluster, plan, store
from nap_bench.spec import Part

SCHEMA = yaml.safe_load((small.ROOT / "config" / "schema.yaml").read_text())
SHIPPED = yaml.safe_load((small.ROOT / "config" / "config.yaml").read_text())

CONFIGURATIONS = {
    "unknown key": ({"scal": "paper"}, "unknown key 'scal'. Did you mean 'scale'?"),
    "unknown key, nothing near": ({"zzz": 1}, "unknown key 'zzz'. Known: "),
    "a method's parameter as a key": ({"lr": 0.1}, "unknown key 'lr'"),
    "scale misspelt": ({"scale": "papr"}, "Did you mean 'paper'?"),
    "scale empty": ({"scale": ""}, "config: scale: unknown ''"),
    "scale a number": ({"scale": 3}, "scale wants a value of type string, found 3"),
    "scale a list": ({"scale": ["laptop"]}, "scale wants a value of type string"),
    "scale missing": ({"scale": None}, "scale wants a value of type string, found None"),
    "device unknown": ({"device": "tpu"}, "device wants cpu|cuda(:[0-9]+)?, found 'tpu'"),
    "device with a space": ({"device": "cuda: 0"}, "device wants"),
    "device a number": ({"device": 0}, "device wants a value of type string, found 0"),
    "exhibit misspelt": ({"experiments": ["armz"]}, "Did you mean 'arms'?"),
    "exhibit of another scale": ({"experiments": ["fig9"]}, "experiments at scale laptop: unknown 'fig9'"),
    "exhibits not a list": ({"experiments": "arms"}, "experiments wants a value of type array, found 'arms'"),
    "method misspelt": ({"methods": ["napp"]}, "Did you mean 'nap'?"),
    "method not a list": ({"methods": "nap"}, "methods wants a value of type array"),
    "methods a stack": ({"methods": ["nap+redo"]}, "methods at scale laptop: unknown 'nap+redo'"),
    "pack size zero": ({"pack_size": 0}, "pack_size wants at least 1, found 0"),
    "pack size negative": ({"pack_size": -4}, "pack_size wants at least 1, found -4"),
    "pack size a fraction": ({"pack_size": 2.5}, "pack_size wants a value of type integer, found 2.5"),
    "pack size in words": ({"pack_size": "four"}, "pack_size wants a value of type integer, found 'four'"),
    "seconds negative": ({"checkpoint_seconds": -1}, "checkpoint_seconds wants at least 0, found -1"),
    "seconds in words": ({"checkpoint_seconds": "30s"}, "checkpoint_seconds wants a value of type number, found '30s'"),
    "folder a list": ({"store_dir": ["store"]}, "store_dir wants a value of type string"),
    "folder missing": ({"results_dir": None}, "results_dir wants a value of type string, found None"),
    "tracker a number": ({"tracking_uri": 5000}, "tracking_uri wants a value of type string, found 5000"),
    "plan absent": ({"plan": "absent.jsonl"}, "No plan at absent.jsonl. Make it with: nap-bench plan"),
    "plan a folder": ({"plan": "."}, "is a folder"),
}
PLANS = {
    "empty": ("", "is empty"),
    "no JSON": ("{\n", "line 1 is not JSON"),
    "cut off": ('{"num_runs": 1}\n{"run_id": "a", "us', "line 2 is not JSON"),
    "lacks what a line needs": ('{"num_runs": 1}\n{"run_id": "a"}\n', "line 2 lacks run, uses"),
    "not a table of lines": ("[1, 2]\n", "line 1 is no JSON object"),
    "the same run twice": (
        '{"num_runs": 2}\n' + '{"run_id": "a", "uses": {}, "run": {}}\n' * 2,
        "line 3 names a again",
    ),
    "unknown resource class": (
        '{"num_runs": 1}\n{"run_id": "a", "uses": {"laptop": {"arms": [["x", ""]]}}, "run": {}, "resources": "huge"}\n',
        "resource class 'huge'. Known: atari, image, lm, small",
    ),
}
COMMANDS = {
    "run unknown": (["run", "no-such-run"], "Unknown run 'no-such-run'"),
    "several runs without --pack": (["run", "a", "b"], "2 runs in one job: say so with --pack"),
    "exhibit unknown": (["score", "--exhibit", "armz"], "Did you mean 'arms'?"),
    "dataset unknown": (["data", "minst"], "Did you mean 'mnist'?"),
    "own plan without a stack": (["plan", "--exhibit", "arms", "--out", "mine.jsonl"], "at least one --with STACK"),
    "archive absent": (["store", "import", "absent.tar"], "absent.tar"),
    "export of an unknown run": (["store", "export", "out.tar", "no-such-run"], "Nothing of no-such-run"),
    "merge from nowhere": (["store", "merge", "--from-store", "x", "--from-results", "y"], "Nothing to merge"),
    "crate of an unfinished suite": (["store", "crate"], "A crate is of a finished suite"),
}


def as_the_workflow_does(config: dict) -> None:
    """What workflows/common.smk asks before there is any rule."""
    plan.check_config(config, SCHEMA)
    lines = plan.select(plan.load(config["plan"]), config["scale"], config["experiments"], config["methods"])
    for line in lines:
        cluster.resources(line["resources"], config["device"])


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty folder with a small plan, in which nothing may appear."""
    small.write_plan(tmp_path, small.lines())
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert [path.name for path in tmp_path.iterdir() if path.name not in ("plan.jsonl", "bad.jsonl")] in (
        [],
        ["results"],
    )
    assert not list(tmp_path.glob("results/runs/*"))


@pytest.mark.fault(
    "configuration: 28 bad ones: unknown keys, wrong types, values out of range, names misspelt, plans that are not there",
    outcome="refused before any work, in one line that names the key and, where there is one, the nearest name",
)
@pytest.mark.parametrize("case", CONFIGURATIONS)
def test_a_bad_configuration_is_refused_in_one_line(case, elsewhere):
    changed, said = CONFIGURATIONS[case]
    with pytest.raises(ValueError) as refused:
        as_the_workflow_does({**SHIPPED, "plan": "plan.jsonl", **changed})
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_the_shipped_configuration_with_the_same_plan_is_not_refused(elsewhere):
    as_the_workflow_does({**SHIPPED, "plan": "plan.jsonl"})


@pytest.mark.fault(
    "configuration: seven bad plans: empty, no JSON, cut off, lines that lack something, a run twice, an unknown class",
    outcome="refused before any work, in one line that names the plan's line",
)
@pytest.mark.parametrize("case", PLANS)
def test_a_bad_plan_is_refused_in_one_line(case, elsewhere):
    text, said = PLANS[case]
    (elsewhere / "bad.jsonl").write_text(text)
    with pytest.raises(ValueError) as refused:
        as_the_workflow_does({**SHIPPED, "plan": "bad.jsonl"})
    assert said in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.fault(
    "configuration: nine bad command lines",
    outcome="exit code 2 and one line",
)
@pytest.mark.parametrize("case", COMMANDS)
def test_a_bad_command_line_is_refused_in_one_line(case, elsewhere, capsys):
    words, said = COMMANDS[case]
    planned = (
        [] if words[0] == "data" or words[:2] in (["store", "import"], ["store", "merge"]) else ["--plan", "plan.jsonl"]
    )
    assert cli.main([*words, *planned]) == 2
    line = capsys.readouterr().err
    assert said in line and line.count("\n") == 1


@pytest.mark.fault(
    "edited: an arm's learning rate, after its run was made and with another arm's run under way",
    outcome="another run under another name: it is trained, what was made or begun is left, and nothing of it is mixed in",
)
def test_an_edited_experiment_trains_what_it_changed_and_mixes_nothing(tmp_path, capsys):
    first, second = toy.lines(2)
    assert toy.do(tmp_path, [first, second]) == 0
    run = toy.expand(first)
    schedule = dataclasses.replace(run.schedule, params=tuple({**dict(run.schedule.params), "lr": 0.5}.items()))
    edited = dataclasses.replace(run, schedule=schedule)
    planned = [{**first, "run_id": edited.run_id, "run": plan.compact(edited)}, second]
    before = small.fingerprint(tmp_path / "results")
    capsys.readouterr()
    assert toy.do(tmp_path, planned) == 0
    said = capsys.readouterr().err
    assert f"{edited.run_id}: done" in said and second["run_id"] not in said and first["run_id"] not in said
    after = small.fingerprint(tmp_path / "results")
    assert {name: after[name] for name in before} == before and len(after) == len(before) + 1
    small.write_plan(tmp_path, planned)
    at = ["--plan", str(tmp_path / "plan.jsonl"), "--results", str(tmp_path / "results")]
    assert cli.main(["score", *at, "--exhibit", "arms"]) == 0
    scored = json.loads((tmp_path / "results" / "runs" / f"{edited.run_id}.json").read_text())["metrics"]
    last = scored["task_end/accuracy"]["values"][-1][0]
    rows = (tmp_path / "results" / "laptop" / "scores" / "arms.csv").read_text().splitlines()
    assert any(repr(last) in row and "baseline" in row for row in rows), rows[:5]


@pytest.mark.fault(
    "paths: a stack of so many methods that its run's name is no file's name",
    outcome="refused in one line before anything is trained",
)
def test_a_name_that_no_file_can_have_is_refused_before_training(tmp_path):
    run = toy.expand(toy.lines()[0])
    many = tuple(Part(f"method_number_{number}") for number in range(12))
    with pytest.raises(ValueError, match="bytes, a file system wants at most 200: stack fewer methods"):
        store.RunFolder(tmp_path, dataclasses.replace(run, methods=many)).open()
    assert list(tmp_path.iterdir()) == []
    planned = (small.ROOT / "config" / "plan.jsonl").read_text().splitlines()[1:]
    assert max(len(json.loads(line)["run_id"]) for line in planned) < store.LONGEST_NAME / 2


@pytest.mark.fault(
    "edited: a plan's line by hand, so that it no longer describes the run that it names",
    outcome="that run fails in one line; nothing is trained under a wrong name",
)
def test_a_line_that_describes_another_run_is_refused(tmp_path, capsys):
    line, other = toy.lines(2)
    assert toy.do(tmp_path, [{**line, "run": other["run"]}]) == 1
    assert f"The plan's line for {line['run_id']} describes {other['run_id']}" in capsys.readouterr().err
    assert not Path(tmp_path / "results").exists()
