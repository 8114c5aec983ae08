"""Law 2: a run killed at any moment and resumed leaves the same bytes, timings aside."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time

import pytest
import small

DETERMINED = ("claims", "scores", "figures", "runs")


def nap_bench(folder, *arguments, **more):
    words = [sys.executable, "-c", "import sys; from nap_bench.cli import main; sys.exit(main())", *arguments]
    return subprocess.Popen(words, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **more)


def run(folder, run_id):
    return nap_bench(folder, "run", "--plan", "plan.jsonl", "--checkpoint-seconds", "0.05", run_id)


def files(folder, run_id):
    found = small.fingerprint(folder / "results")
    return found, (folder / "store" / run_id / "metrics.csv").read_bytes()


@pytest.mark.timeout(300)
@pytest.mark.fault(
    "killed: the trainer, four times at random moments",
    outcome="it goes on from its last checkpoint, to the same bytes",
)
def test_a_run_killed_while_it_trains_and_writes_checkpoints_resumes_to_the_same_bytes(tmp_path):
    planned = small.lines(num_tasks=4, steps_per_task=150)[3:4]
    run_id = planned[0]["run_id"]
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        small.write_plan(tmp_path / name, planned)
    whole = run(tmp_path / "whole", run_id)
    assert whole.wait() == 0, whole.stdout.read()
    checkpoint = tmp_path / "killed" / "store" / run_id / "checkpoint"
    chance, num_kills = random.Random(0), 0
    for _ in range(4):
        process = run(tmp_path / "killed", run_id)
        stamp = checkpoint.stat().st_mtime_ns if checkpoint.exists() else None
        while process.poll() is None and (not checkpoint.exists() or checkpoint.stat().st_mtime_ns == stamp):
            time.sleep(0.005)
        time.sleep(chance.uniform(0.0, 0.2))
        num_kills += process.poll() is None
        process.kill()
        process.wait()
    last = run(tmp_path / "killed", run_id)
    assert last.wait() == 0, last.stdout.read()
    assert num_kills >= 3, "the run was over before it could be killed: make it longer"
    assert files(tmp_path / "killed", run_id) == files(tmp_path / "whole", run_id)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.fault(
    "killed: the trainer is asked to stop (SIGTERM, Ctrl-C)",
    outcome="it writes a checkpoint, gives its lease back and exits with code 75",
)
def test_a_run_asked_to_stop_writes_a_checkpoint_and_exits_75(tmp_path, number):
    planned = small.lines(num_tasks=40, steps_per_task=300)[:1]
    small.write_plan(tmp_path, planned)
    process = nap_bench(tmp_path, "run", "--plan", "plan.jsonl", planned[0]["run_id"])
    folder = tmp_path / "store" / planned[0]["run_id"]
    while not (folder / "metrics.csv").exists():
        assert process.poll() is None
        time.sleep(0.02)
    time.sleep(0.3)
    process.send_signal(number)
    assert process.wait(timeout=30) == 75
    assert "it goes on from there" in process.stdout.read()
    assert (folder / "checkpoint").exists() and not (folder / "lease.json").exists()


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.fault(
    "killed: Snakemake, twenty times at random moments of a suite, with its jobs or leaving them as orphans",
    outcome="the next start goes on; the same results, scores, claims and figures, byte for byte",
)
def test_twenty_kills_at_random_moments_leave_the_same_results(tmp_path):
    """Half of them kill the workflow and all its children, half leave the children alive as orphans."""
    planned = small.lines(num_tasks=4, steps_per_task=400)
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        small.write_plan(tmp_path / name, planned)
    began = time.monotonic()
    done = small.snakemake(tmp_path / "whole", checkpoint_seconds=0.1)
    assert done.returncode == 0, done.stdout
    whole_seconds = time.monotonic() - began
    chance, log = random.Random(7), tmp_path / "log"
    for number in range(20):
        words, settings = small.command(tmp_path / "killed", checkpoint_seconds=0.1)
        with open(log, "a") as output:
            process = subprocess.Popen(words, **settings, stdout=output, stderr=output, start_new_session=True)
            # early kills hit training and checkpoints, late ones results, scores, the report and MLflow
            time.sleep(chance.uniform(2.0, max(6.0, 0.6 * whole_seconds)))
            if number % 2:
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
            process.wait()
    mended = small.snakemake(tmp_path / "killed", checkpoint_seconds=0.1)
    assert mended.returncode == 0, log.read_text()[-3000:] + mended.stdout
    assert small.fingerprint(tmp_path / "killed" / "results") == small.fingerprint(tmp_path / "whole" / "results")
