"""What the suite says of its progress."""

from __future__ import annotations

import os
import time

import pytest

from nap_bench import jobs, plan


@pytest.fixture
def suite(tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "WARM_SECONDS", 0.0)
    monkeypatch.setattr(jobs, "LINE_SECONDS", 0.0)
    (tmp_path / "store").mkdir()
    lines = [{"run_id": f"r{index}", "uses": {}, "work": 100, "run": {"seeds": [0]}} for index in range(4)]
    return jobs.Suite(lines, "laptop", store=tmp_path / "store", results=tmp_path / "results")


def finish(suite, run_id):
    path = jobs.result_path(suite.results, run_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{}")


def test_time_left_follows_from_the_mean_speed_since_this_invocation_began(suite, capsys, monkeypatch):
    now = [time.time() + 60]  # later than any file here
    monkeypatch.setattr(time, "time", lambda: now[0])
    finish(suite, "r0")  # by an earlier invocation: no part of this one's speed
    held = plan.hold("store", suite.store)
    suite.tell()
    now[0] += 0.5
    finish(suite, "r1")
    suite.tell()
    first, second = capsys.readouterr().err.splitlines()
    assert (
        "left" not in first and "50 % of the work, about 1 s left" in second
    )  # a run took half a second, two are left
    held.close()


def test_without_an_invocation_on_this_machine_there_is_no_mean_to_tell(suite, capsys):
    (suite.store / ".invocation").write_text(f"{2**22 + os.getpid()}\n")
    finish(suite, "r0")
    suite.tell()
    suite.tell()
    assert "left" not in capsys.readouterr().err
