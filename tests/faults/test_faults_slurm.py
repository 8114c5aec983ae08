"""The process that sends runs to SLURM is killed: its jobs in the queue are not done twice."""

from __future__ import annotations

import json
import os
import subprocess
import time

import pytest
from cluster import fake_slurm, slurm_suite

from nap_bench import cluster

NUM_JOBS = 100


@pytest.fixture
def queue(tmp_path, monkeypatch):
    """A cluster with the jobs of three invocations, of which c was killed before it learned its job's number."""
    folder = tmp_path / "slurm"
    monkeypatch.setenv("PATH", f"{fake_slurm.install(folder)}{os.pathsep}{os.environ['PATH']}")
    made, guard = fake_slurm.Cluster(folder), tmp_path / "guard"
    for number, (name, state) in enumerate(
        [
            ("a", "PENDING"),
            ("a", "RUNNING"),
            ("a", "COMPLETED"),
            ("b", "COMPLETED"),
            ("c", "PENDING"),
            ("others", "PENDING"),
        ],
        1,
    ):
        made.write(str(number), name=name, comment="", log=str(tmp_path / "log"), state=state, starts=0)
        if name != "others":
            (guard / name).mkdir(parents=True, exist_ok=True)
            if name != "c":
                (guard / name / str(number)).touch()
    return folder, guard


@pytest.mark.fault(
    "slurm: jobs of a killed invocation wait in the queue or run, and the suite is started again",
    outcome="those that wait are cancelled and submitted anew; those that run go on, and new jobs wait for them",
)
def test_what_a_killed_invocation_left_waiting_is_cancelled_and_nothing_else(queue):
    folder, guard = queue
    said = cluster.clear(guard)
    assert "2 jobs were waiting and were cancelled" in said and "1 are running and go on" in said
    assert sorted(path.stem for path in (folder / "jobs").glob("*.cancel")) == ["1", "5"]
    assert sorted(path.name for path in guard.iterdir()) == ["a", "c"], "of which no job is left is forgotten"


def test_where_nothing_was_left_nothing_is_said_and_a_controller_that_is_away_is_not_asked_twice(
    queue, tmp_path, monkeypatch
):
    _, guard = queue
    assert cluster.clear(tmp_path / "absent") == ""
    monkeypatch.setattr(cluster, "_states", lambda *words: None)
    assert cluster.clear(guard) == "" and len(list(guard.iterdir())) == 3


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.fault(
    "slurm: the head process is killed with 100 jobs queued (fake SLURM, real plugin)",
    outcome="started again, none of the old jobs starts and every run is trained once",
)
def test_a_head_killed_with_a_hundred_jobs_queued_does_no_run_twice(tmp_path):
    pytest.importorskip("snakemake_executor_plugin_slurm", reason="the cluster's extra is not installed: make cluster")
    run_ids = slurm_suite.write_plan(tmp_path, slurm_suite.lines(NUM_JOBS, num_tasks=1, steps_per_task=5))
    slurm = tmp_path / "slurm"
    environment = slurm_suite.surroundings(fake_slurm.install(slurm), tmp_path)
    (slurm / "fates.json").write_text(json.dumps({"": ["queued", str(tmp_path / "open")]}))
    targets = [slurm_suite.result(run_id) for run_id in run_ids]
    fast = ("--slurm-init-seconds-before-status-checks", "1", "--set-resources", "run_small:runtime=30")
    words = slurm_suite.command(tmp_path, *fast, "--max-jobs-per-timespan", "100/1s", targets=targets)
    with open(tmp_path / "log", "w") as log:
        head = subprocess.Popen(words, env=environment, cwd=tmp_path, stdout=log, stderr=log)
        while len(fake_slurm.Cluster(slurm).jobs()) < NUM_JOBS:
            assert head.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.5)
        head.kill()
        head.wait()
    (slurm / "fates.json").write_text("{}")
    words = slurm_suite.command(tmp_path, *fast, targets=targets, pack_size=NUM_JOBS)
    again = subprocess.run(
        words, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=400
    )
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"{NUM_JOBS} jobs were waiting and were cancelled" in again.stderr, again.stderr
    (tmp_path / "open").touch()
    jobs = fake_slurm.Cluster(slurm).jobs()
    assert {jobs[str(number)]["state"] for number in range(1, NUM_JOBS + 1)} == {"CANCELLED by 0"}
    assert len(jobs) == NUM_JOBS + 1 and all(jobs[str(number)]["starts"] == 0 for number in range(1, NUM_JOBS + 1))
    for run_id in run_ids:
        assert json.loads((tmp_path / slurm_suite.result(run_id)).read_text())["cost"]["num_sessions"] == 1
