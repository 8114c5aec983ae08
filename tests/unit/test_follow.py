"""`nap-bench publish --follow`: what is new is published as it comes, and the last word is the workflow's."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import time
from pathlib import Path

import pytest

from nap_bench import cli
from nap_bench.spec import PROTOCOL
from nap_bench.tracking import TrackerError
from nap_bench.tracking import publish as publishing
from nap_bench.tracking.publish import Summary

RUNS = {"r.a.b-0": ("arms", "nap"), "r.a.b-1": ("arms", "off"), "r.a.b-2": ("arms_map", "nap")}


def finish(run_id: str) -> None:
    """The run ends: its result appears."""
    part = {"name": "x", "version": 1, "params": {}}
    spec = {"benchmark": part, "optimizer": part, "schedule": part, "model": {}, "methods": [], "seeds": [0]}
    environment = {"commit": "0123abc", "dirty": False, "device": "cpu", "device_name": "a processor"}
    result = {
        "format": 1,
        "protocol": PROTOCOL,
        "run_id": run_id,
        "cell_id": run_id,
        "spec": {**spec, "precision": "fp32", "protocol": PROTOCOL},
        "status": [{"seed": 0, "status": "complete"}],
        "metrics": {"task_end/accuracy": {"steps": [10, 20], "values": [[0.5], [0.75]]}},
        "environment": {**environment, "platform": "Linux", "python": "3.11", "torch": "2.13.0", "resolved_model": {}},
        "cost": {"wall_seconds": 3.0, "steps_per_second": 100.0, "peak_memory_bytes": 1000, "num_sessions": 1},
    }
    os.makedirs("results/runs", exist_ok=True)
    with open(f"results/runs/{run_id}.json", "w") as file:
        json.dump(result, file)


@pytest.fixture
def suite(tmp_path, monkeypatch):
    """A working directory with a plan of three runs. Returns the list of what happens between rounds."""
    monkeypatch.chdir(tmp_path)
    part = {"methods": [], "resources": "small", "work": 20, "run": {"seeds": [0]}}
    lines = [
        {"run_id": run_id, "uses": {"laptop": {exhibit: [[arm, ""]]}}, **part}
        for run_id, (exhibit, arm) in RUNS.items()
    ]
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "plan.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [{}, *lines]))
    between, now = [], [1000.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds
        assert between, "followed for longer than anything happened"
        between.pop(0)()

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return between


@pytest.fixture
def rounds(monkeypatch) -> list:
    """What each round would publish: exhibits and run ids. An error put into it is raised by the next round."""
    made: list = []

    def publish(results, exhibits, **_) -> Summary:
        if made and isinstance(made[-1], Exception):
            raise made.pop()
        made.append((sorted(exhibits), sorted(result["run_id"] for result, _ in results)))
        return Summary()

    monkeypatch.setattr(publishing, "publish", publish)
    return made


def test_only_exhibits_of_which_something_is_new_are_published(suite, rounds):
    os.makedirs("results/laptop/scores")
    finish("r.a.b-0")
    suite += [
        lambda: None,
        lambda: finish("r.a.b-1"),
        lambda: open("results/laptop/scores/arms.csv", "w").close(),
        lambda: finish("r.a.b-2"),
    ]
    assert cli.main(["publish", "--follow", "--done", "done.json"]) == 0
    both = ["r.a.b-0", "r.a.b-1"]
    assert rounds == [(["arms"], ["r.a.b-0"]), (["arms"], both), (["arms"], both), (["arms_map"], ["r.a.b-2"])]
    assert os.path.exists("done.json")


def test_following_is_never_silent_for_a_minute_and_says_little(suite, rounds, capsys):
    suite += [lambda: None] * 12 + [lambda: [finish(run_id) for run_id in RUNS]]
    assert cli.main(["publish", "--follow"]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("publish:")]
    assert said == ["publish: 0 of 3 runs are done"] * 6 + ["publish: 3 of 3 runs are done"]  # 240 s, and the end


def test_ctrl_c_ends_following_in_peace_and_claims_nothing(suite, rounds, capsys):
    def interrupt() -> None:
        raise KeyboardInterrupt

    suite += [interrupt]
    assert cli.main(["publish", "--follow", "--done", "done.json"]) == 0
    assert "stopped following" in capsys.readouterr().err and not os.path.exists("done.json")


@pytest.mark.fault("tracker: fails while a suite is followed", outcome="said in a line, and tried again")
def test_a_tracker_that_fails_at_first_is_an_error_and_later_is_tried_again(suite, rounds, capsys):
    finish("r.a.b-0")
    rounds.append(TrackerError("no tracker"))
    assert cli.main(["publish", "--follow"]) == 1
    suite += [
        lambda: (finish("r.a.b-1"), finish("r.a.b-2"), rounds.append(TrackerError("gone"))),
        lambda: None,
    ]
    assert cli.main(["publish", "--follow"]) == 0
    assert rounds[-1] == (["arms", "arms_map"], sorted(RUNS))
    assert "gone Trying again" in capsys.readouterr().err


def test_the_publish_after_following_is_as_if_nobody_had_followed(suite):
    def score() -> None:
        with open("results/laptop/scores/arms.csv", "w") as file:
            file.write("arm,setting,measure,x,seed,value\nnap,,last_accuracy,,0,0.75\n")

    def shown(database: str) -> list[tuple]:
        """Runs that MLflow shows, and their digests."""
        asked = "SELECT r.name, t.value FROM runs r JOIN tags t ON r.run_uuid = t.run_uuid WHERE t.key = 'nap.digest'"
        with sqlite3.connect(database) as connection:
            return sorted(connection.execute(f"{asked} AND r.lifecycle_stage = 'active'"))

    publishing._create_database(Path("followed.db"))
    shutil.copyfile("followed.db", "direct.db")  # making a database takes MLflow seconds
    os.makedirs("results/laptop/scores")
    finish("r.a.b-0")
    suite += [lambda: (finish("r.a.b-1"), finish("r.a.b-2"))]
    assert cli.main(["publish", "--follow", "--tracking-uri", "sqlite:///followed.db"]) == 0
    before = shown("followed.db")
    assert len(before) == 8, "three seeds, three cells, two summaries"
    score()
    assert cli.main(["publish", "--tracking-uri", "sqlite:///followed.db"]) == 0
    after = shown("followed.db")
    assert after != before
    assert cli.main(["publish", "--follow", "--tracking-uri", "sqlite:///followed.db"]) == 0
    assert shown("followed.db") == after
    assert cli.main(["publish", "--tracking-uri", "sqlite:///direct.db"]) == 0
    assert shown("direct.db") == after
