"""The workflow on a real SLURM of one node, with accounting and counted GPUs that are no GPUs. `make test-cluster` runs it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
import slurm_suite

from nap_bench import apptainer

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1200)]

FIXTURE = Path(__file__).with_name("one_node_slurm.sh")
WORKFLOWS: list[subprocess.Popen] = []
PROGRAMS = ("slurmctld", "slurmd", "slurmdbd", "munged", "mariadbd")


@pytest.fixture(scope="module")
def slurm():
    """A SLURM for this module's tests."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    if absent := [name for name in PROGRAMS if shutil.which(name, path=path) is None]:
        pytest.skip(f"no SLURM to start: found no {', '.join(absent)}")
    folder = Path(tempfile.mkdtemp(prefix="slurm"))
    folder.chmod(0o755)  # the authentication daemon is another user
    cgroups = os.access("/sys/fs/cgroup/freezer", os.W_OK)  # of version 1
    environment = {**os.environ, "ACCOUNTING": "1", "CGROUP": str(int(cgroups)), "PATH": path}
    try:
        subprocess.run([FIXTURE, "up", folder], env=environment, check=True, stdin=subprocess.DEVNULL)
        yield folder
    finally:
        subprocess.run([FIXTURE, "down", folder], env=environment, check=True)
        shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def no_workflow_is_left():
    """A test that fails cancels its jobs."""
    yield
    while WORKFLOWS:
        workflow = WORKFLOWS.pop()
        if workflow.poll() is None:
            workflow.send_signal(signal.SIGINT)
            workflow.wait(timeout=60)


def ask(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


def jobs(state: str) -> dict[str, str]:
    """Rule -> id of the jobs in a state."""
    rows = (line.split("|") for line in ask("squeue", "-h", "--states=all", "-o", "%k|%i|%T").splitlines())
    return {comment: job_id for comment, job_id, found in rows if found == state}


def until(condition, what: str, seconds: float = 300.0):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"waited {seconds:.0f} s in vain: {what}"
        time.sleep(0.3)
    return found


def start(folder: Path, planned, *options: str, profile: str = "slurm", partition: str = "low", **config):
    run_ids = slurm_suite.write_plan(folder, planned)
    words = slurm_suite.command(
        folder,
        *("--slurm-init-seconds-before-status-checks", "2"),
        *("--default-resources", "slurm_account=lab", f"slurm_partition={partition}"),
        *options,
        targets=[slurm_suite.result(run_id) for run_id in run_ids],
        profile=profile,
        **config,
    )
    output = open(folder / "output", "w")
    environment = slurm_suite.surroundings(None, folder)
    WORKFLOWS.append(subprocess.Popen(words, cwd=folder, env=environment, stdout=output, stderr=output, text=True))
    return run_ids, WORKFLOWS[-1]


def ended(process: subprocess.Popen, folder: Path, code: int = 0, seconds: float = 500.0) -> str:
    assert process.wait(timeout=seconds) == code, (folder / "output").read_text()
    return (folder / "output").read_text()


def trains(folder: Path, run_id: str) -> bool:
    """Whether a run is under way, with a line of progress in its lease."""
    lease = folder / "store" / run_id / "lease.json"
    return lease.exists() and "step" in lease.read_text()


def need_an_image():
    if shutil.which("apptainer") is None:
        pytest.skip("no apptainer")
    try:
        apptainer.recorded(slurm_suite.ROOT, "cpu", "containers/images")
    except ValueError as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("profile", ["slurm", "slurm-apptainer"])
@pytest.mark.fault(
    "slurm: a real one (one node): runs are requeued, preempted and cancelled",
    outcome="they go on, and leave the bytes of runs made here",
)
def test_runs_are_requeued_preempted_and_cancelled_and_leave_the_bytes_of_runs_made_here(slurm, tmp_path, profile):
    if profile == "slurm-apptainer":
        need_an_image()
    planned = slurm_suite.lines(3, num_tasks=4, steps_per_task=2500)
    folder, here = tmp_path / "there", tmp_path / "here"
    asked = ("--set-resources", "run_small:runtime=30", "run_small:gpu=1")
    run_ids, workflow = start(folder, planned, *asked, profile=profile)
    rules = [f"rule_run_small.arms.{i}" for i in range(3)]
    until(lambda: workflow.poll() is not None or all(trains(folder, run_id) for run_id in run_ids), "training")
    running = jobs("RUNNING")
    assert set(running) == set(rules), (folder / "output").read_text()
    if profile == "slurm":
        found = {json.loads(line) for line in (folder / "visible").read_text().splitlines()}
        assert found == {"0", "1", "2"}, "each job sees the GPU that it was given, and no other"
    ask("scancel", running[rules[0]])
    ask("scontrol", "requeue", running[rules[1]])
    until(lambda: rules[0] not in jobs("RUNNING"), "the cancelled job's end")
    assert "CANCELLED by 0" in ask("sacct", "-nXP", "-j", running[rules[0]], "-o", "State")
    until(lambda: trains(folder, run_ids[2]) or workflow.poll() is not None, "training")
    ask("sbatch", "-p", "high", "-A", "lab", "-n8", "-o", "/dev/null", "--wrap", "sleep 5")  # wants the whole node
    until(lambda: rules[2] not in jobs("RUNNING"), "the preemption")
    said = ended(workflow, folder)
    assert f"SLURM-job '{running[rules[0]]}' failed, SLURM status is: 'CANCELLED'" in said
    slurm_suite.write_plan(here, planned)
    whole = slurm_suite.run_here(here, run_ids)
    output, _ = whole.communicate(timeout=600)
    assert whole.returncode == 0, output
    for run_id in run_ids:
        assert slurm_suite.fingerprint(folder, run_id) == slurm_suite.fingerprint(here, run_id)
        result = json.loads((folder / slurm_suite.result(run_id)).read_text())
        assert result["cost"]["num_sessions"] >= 2, "it was interrupted, and went on"
        assert bool(result["environment"]["container"]) == (profile == "slurm-apptainer")


@pytest.mark.fault(
    "slurm: a real one: a job is preempted and not requeued",
    outcome="the workflow ends, and a second one goes on",
)
def test_a_job_preempted_without_requeueing_ends_the_workflow_and_a_second_one_goes_on(slurm, tmp_path):
    planned = slurm_suite.lines(1, num_tasks=4, steps_per_task=2500)
    limits = ("--set-resources", "run_small:runtime=30", "--retries", "0")
    (run_id,), workflow = start(tmp_path, planned, *limits, partition="fragile")
    until(lambda: workflow.poll() is not None or trains(tmp_path, run_id), "training")
    ask("sbatch", "-p", "high", "-A", "lab", "-n8", "-o", "/dev/null", "--wrap", "sleep 2")
    said = ended(workflow, tmp_path, code=1)
    assert "SLURM status is: 'CANCELLED'" in said
    assert (tmp_path / "store" / run_id / "checkpoint").exists()
    _, again = start(tmp_path, planned, *limits)
    ended(again, tmp_path)
    assert json.loads((tmp_path / slurm_suite.result(run_id)).read_text())["cost"]["num_sessions"] == 2


@pytest.mark.fault(
    "slurm: a real one: a job nears its time limit",
    outcome="it is warned, and its checkpoint is written",
)
def test_slurm_warns_a_job_before_its_time_limit_and_its_checkpoint_is_written(slurm, tmp_path):
    planned = slurm_suite.lines(1, num_tasks=4, steps_per_task=100_000)
    early = "--signal=TERM@55 --open-mode=append"  # SLURM may be a minute earlier still
    limits = ("--set-resources", "run_small:runtime=3", f"run_small:slurm_extra='{early}'", "--retries", "0")
    (run_id,), workflow = start(tmp_path, planned, *limits, checkpoint_seconds=30)
    ended(workflow, tmp_path, code=1)
    assert f"{run_id} stopped at update" in (tmp_path / "logs" / "run" / "small.arms.0.log").read_text()
    assert (tmp_path / "store" / run_id / "checkpoint").exists()
