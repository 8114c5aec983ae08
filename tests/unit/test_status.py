"""How far a suite is, and why a run would run again: true to the files, in a hundred columns, with a command that works."""

from __future__ import annotations

import json
import shlex

import pytest

from nap_bench import cli, plan
from nap_bench.experiments import arms, arms_map
from nap_bench.spec import PROTOCOL


@pytest.fixture
def lines() -> list[dict]:
    made = []
    for name, module in (("arms", arms), ("arms_map", arms_map)):
        for entry in module.runs("laptop")[:4]:
            uses = {"laptop": {name: [[entry.arm, entry.setting]]}}
            methods = [part.name for part in entry.run.methods]
            line = {"run_id": entry.run.run_id, "methods": methods, "uses": uses, "resources": "small", "work": 1000}
            made.append({**line, "run": plan.compact(entry.run)})
    made[0]["uses"]["laptop"]["arms_map"] = made[0]["uses"]["laptop"]["arms"]
    return made


@pytest.fixture
def suite(tmp_path, lines):
    """Of eight runs two are done, one runs, one failed, one was begun, three are missing."""
    (tmp_path / "plan.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [{}, *lines]))
    (tmp_path / "results" / "runs").mkdir(parents=True)
    folders = [tmp_path / "store" / line["run_id"] for line in lines]
    for folder, line in list(zip(folders, lines, strict=True))[:5]:
        folder.mkdir(parents=True)
        (folder / "spec.json").write_text(json.dumps(plan.expand(line["run"]).as_dict()))
    for line in lines[:2]:
        result = {
            "format": 1,
            "protocol": PROTOCOL,
            "run_id": line["run_id"],
            "cost": {"wall_seconds": 75},
            "status": [],
        }
        (tmp_path / "results" / "runs" / f"{line['run_id']}.json").write_text(json.dumps(result))
    (folders[2] / "lease.json").write_text(json.dumps({"host": "h", "pid": 7, "token": "t", "step": 40}))
    failure = {"run_id": lines[3]["run_id"], "reason": "ValueError: Checkpoint is damaged", "log": "store/x/log"}
    (folders[3] / "failed.json").write_text(json.dumps(failure))
    (folders[4] / "checkpoint").write_text("x")
    return tmp_path


@pytest.fixture
def status(suite, capsys, monkeypatch):
    monkeypatch.chdir(suite)

    def call(*words: str, code: int = 0) -> str:
        before = sorted(suite.rglob("*"))
        assert cli.main(["status", "--plan", "plan.jsonl", *words]) == code
        assert sorted(suite.rglob("*")) == before, "it writes nothing"
        printed = capsys.readouterr()
        assert max(map(len, printed.out.splitlines()), default=0) <= 100
        return printed.out if code == 0 else printed.err

    return call


def test_every_exhibit_is_counted_and_a_shared_run_counts_once_in_all(status):
    rows = {line.split()[0]: line.split()[-5:] for line in status().splitlines()[1:4]}
    assert rows["arms"] == ["4", "2", "1", "1", "."]
    assert rows["arms_map"] == ["5", "1", ".", ".", "4"]
    assert rows["all"] == ["8", "2", "1", "1", "4"]
    assert "5 to do (1 of them begun: they go on from their checkpoints). next: snakemake\n" in status()


def test_a_failure_comes_with_its_reason_its_log_and_a_command_that_is_understood(status, suite, lines):
    said = status()
    assert "failed: ValueError: Checkpoint is damaged (log: store/x/log)" not in said  # the heading says failed
    assert "ValueError: Checkpoint is damaged (log: store/x/log)" in said
    (command,) = [text.strip().removeprefix("next: nap-bench ") for text in said.splitlines() if "next: nap" in text]
    parsed = cli._parser().parse_args(shlex.split(command))
    assert parsed.run_ids == [lines[3]["run_id"]] and str(parsed.plan) == "plan.jsonl"


def test_one_exhibit_alone_and_a_finished_suite(status, suite, lines):
    assert "arms_map" not in status("--experiments", "arms")
    assert "next: snakemake --config experiments=[arms]\n" in status("--experiments", "arms")
    for line in lines[2:]:
        (suite / "results" / "runs" / f"{line['run_id']}.json").write_text("{}")
    assert status().endswith("All 8 runs of laptop scale are done.\n")
    assert "Known: arms, arms_map" in status("--experiments", "armz", code=2)


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (0, "would not run again: results/runs/"),
        (2, "is running: process 7 on h, update 40"),
        (3, "would run again: it failed. ValueError: Checkpoint is damaged"),
        (4, "would run: it was begun: it goes on from the checkpoint in store/"),
        (5, "would run: neither results/runs/"),
    ],
)
def test_why_a_run_would_run_again_or_would_not(number, said, status, lines):
    answer = " ".join(status("--why", f"results/runs/{lines[number]['run_id']}.json").split())
    assert answer.startswith(lines[number]["run_id"]) and said in answer
    assert ("next: nap-bench run" in answer) == (number > 2)


def test_a_result_of_another_protocol_or_cut_short_is_why(status, suite, lines):
    path = suite / "results" / "runs" / f"{lines[0]['run_id']}.json"
    path.write_text(path.read_text().replace(f'"protocol": {PROTOCOL}', '"protocol": 99'))
    assert "its result cannot be used" in (said := status("--why", lines[0]["run_id"])) and "protocol 99" in said
    path.write_text("{")
    assert "is not whole JSON" in status("--why", lines[0]["run_id"])


def test_what_the_store_has_is_made_into_a_result_without_training(status, suite, lines):
    (suite / "store" / lines[4]["run_id"] / "done.json").write_text("{}")
    assert "would not be trained again: it is in store/" in " ".join(status("--why", lines[4]["run_id"]).split())


def test_a_run_that_is_nowhere_is_compared_field_by_field_with_the_closest_stored_one(status, suite, lines):
    """The edited experiment: the same run, with another rate and a further method."""
    run = plan.expand(lines[0]["run"]).as_dict()
    (params,) = [run["schedule"]["params"]]
    stored = {**run, "schedule": {**run["schedule"], "params": {**params, "lr": 0.123}}}
    stored["methods"] = [*run["methods"], {"name": "l2", "version": 1, "params": {"coef": 0.1}}]
    run_id = lines[0]["run_id"]
    (suite / "results" / "runs" / f"{run_id}.json").unlink()
    for path in suite.glob("store/*/spec.json"):
        path.unlink()
    other = suite / "store" / "random_labels.mlp.l2-0000000000"
    other.mkdir()
    (other / "spec.json").write_text(json.dumps(stored))
    said = status("--why", run_id)
    assert "closest to it, random_labels.mlp.l2-0000000000, differs in 2 fields:" in said
    assert f"schedule.params.lr: {params['lr']}, there 0.123" in said
    assert "methods.l2: false, there true" in said
    gone = status("--why", "random_labels.mlp.l2-0000000000")
    assert "no run of plan.jsonl any more" in gone and run_id in gone


def test_a_run_that_nobody_knows_is_refused_with_the_nearest_name(status, lines):
    said = status("--why", lines[0]["run_id"][:-1] + "z", code=2)
    assert f"Did you mean '{lines[0]['run_id']}'" in said and "8 runs are in" in said
