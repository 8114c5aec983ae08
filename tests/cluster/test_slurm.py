"""The workflow on SLURM, with SLURM's programs faked and the real executor plugin: every way a job can end, and it ends."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys

import fake_slurm
import pytest
import slurm_suite

pytest.importorskip("snakemake_executor_plugin_slurm", reason="the cluster's extra is not installed: make cluster")
pytestmark = pytest.mark.timeout(500)

FAST = ("--slurm-init-seconds-before-status-checks", "1")
FATES = (
    *("success", "forgotten", "requeued", "timeout"),
    *("preempted", "cancelled", "out_of_memory", "node_fail", "killed", "vanished"),
)
"""Of run 0, 1, ...; only jobs of the first line come to start."""
GOOD = {"success", "forgotten", "requeued"}
PLUGIN_SAYS = {
    "timeout": "TIMEOUT",
    "preempted": "CANCELLED",
    "cancelled": "CANCELLED",
    "out_of_memory": "OUT_OF_MEMORY",
    "node_fail": "NODE_FAIL|node failure|FAILED",
    "killed": "FAILED",
}


def invoke(folder, environment, *options, targets, seconds=240, **config):
    words = slurm_suite.command(folder, *FAST, *options, targets=targets, **config)
    return subprocess.run(
        words,
        env=environment,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=seconds,
    )


@pytest.fixture(scope="module")
def fated(tmp_path_factory):
    """Ten jobs with ten fates in one invocation without retries, the same runs made here, and a second invocation."""
    folder, here = (tmp_path_factory.mktemp(name) for name in ("with space", "here"))
    planned = slurm_suite.lines(len(FATES))
    run_ids = slurm_suite.write_plan(folder, planned)
    slurm_suite.write_plan(here, planned)
    slurm = folder / "slurm"
    environment = slurm_suite.surroundings(fake_slurm.install(slurm), folder)
    mark = [str(folder / "store" / run_id / "metrics.csv") for run_id in run_ids]
    fates = {f"run_small.arms.{i}": [fate, mark[i]] for i, fate in enumerate(FATES)}
    (slurm / "fates.json").write_text(json.dumps(fates))
    whole = slurm_suite.run_here(here, run_ids)
    targets = [slurm_suite.result(run_id) for run_id in run_ids]
    limits = ("--set-resources", "run_small:runtime=30")
    first = invoke(folder, environment, "--retries", "0", *limits, targets=targets)
    left = {fate: (folder / slurm_suite.result(run_id)).exists() for fate, run_id in zip(FATES, run_ids, strict=True)}
    stores = {run_id: sorted(path.name for path in (folder / "store").glob(f"{run_id}/*")) for run_id in run_ids}
    (slurm / "fates.json").unlink()
    second = invoke(folder, environment, *limits, targets=targets, pack_size=len(FATES))
    said, _ = whole.communicate(timeout=100)
    assert whole.returncode == 0, said
    return dict(
        folder=folder, here=here, run_ids=run_ids, first=first, left=left, stores=stores, second=second, slurm=slurm
    )


@pytest.mark.fault(
    "slurm: ten jobs end in ten ways: well, requeued, at a limit, preempted, cancelled, killed, lost with a node, forgotten",
    outcome="the workflow ends, and says which failed",
)
def test_a_workflow_ends_whatever_becomes_of_its_jobs_and_says_that_some_failed(fated):
    assert fated["first"].returncode == 1, fated["first"].stdout
    assert fated["left"] == {fate: fate in GOOD for fate in FATES}, fated["first"].stdout


@pytest.mark.parametrize("fate", PLUGIN_SAYS)
@pytest.mark.fault("slurm: a job ends early", outcome="reported with its state")
def test_a_job_that_ended_early_is_reported_with_its_state(fated, fate):
    job_id = job_of(fated, fate)
    said = re.search(rf"SLURM-job '{job_id}' failed.*?(?=For further)", fated["first"].stdout, re.DOTALL)
    assert said and re.search(PLUGIN_SAYS[fate], said[0]), fated["first"].stdout


def job_of(fated, fate):
    jobs = fake_slurm.Cluster(fated["slurm"]).jobs()
    return next(i for i, job in jobs.items() if job["comment"].endswith(f"run_small.arms.{FATES.index(fate)}"))


@pytest.mark.fault("slurm: a job is requeued", outcome="it goes on from its checkpoint, under the same number")
def test_a_requeued_job_goes_on_from_its_checkpoint_under_the_same_number(fated):
    job = fake_slurm.Cluster(fated["slurm"]).jobs()[job_of(fated, "requeued")]
    assert (job["state"], job["starts"]) == ("COMPLETED", 2)
    assert num_sessions(fated, "requeued") == 2


@pytest.mark.fault(
    "slurm: a job reaches its time limit", outcome="it writes its checkpoint before, and goes on in the next job"
)
def test_a_job_at_its_time_limit_writes_its_checkpoint_and_says_so_in_its_log(fated):
    run_id = fated["run_ids"][FATES.index("timeout")]
    assert "checkpoint" in fated["stores"][run_id] and "lease.json" not in fated["stores"][run_id]
    log = (fated["folder"] / "logs" / "run" / f"small.arms.{FATES.index('timeout')}.log").read_text()
    assert f"{run_id} stopped at update" in log
    assert num_sessions(fated, "timeout") == 2


def num_sessions(fated, fate):
    path = fated["folder"] / slurm_suite.result(fated["run_ids"][FATES.index(fate)])
    return json.loads(path.read_text())["cost"]["num_sessions"]


@pytest.mark.fault("slurm: a job is known to nobody any more", outcome="its results decide whether it was done")
def test_a_job_that_nobody_knows_any_more_is_judged_by_its_outputs(fated):
    assert fated["left"]["forgotten"] and not fated["left"]["vanished"]
    assert "MissingOutputException" in fated["first"].stdout


@pytest.mark.fault(
    "slurm: the suite is started again after all that",
    outcome="what is missing is done; every run has the bytes of one made here",
)
def test_a_second_invocation_packs_what_is_missing_into_one_job_and_leaves_the_bytes_of_a_run_made_here(fated):
    assert fated["second"].returncode == 0, fated["second"].stdout
    jobs = fake_slurm.Cluster(fated["slurm"]).jobs()
    assert len(jobs) == len(FATES) + 1 and jobs[str(len(FATES) + 1)]["state"] == "COMPLETED"
    for run_id in fated["run_ids"]:
        assert slurm_suite.fingerprint(fated["folder"], run_id) == slurm_suite.fingerprint(fated["here"], run_id)


def test_a_pack_is_one_job_with_a_core_and_the_memory_of_a_run_for_every_slot(tmp_path):
    run_ids = slurm_suite.write_plan(tmp_path, slurm_suite.lines(3, num_tasks=1, steps_per_task=20))
    slurm = tmp_path / "slurm"
    environment = slurm_suite.surroundings(fake_slurm.install(slurm), tmp_path)
    targets = [slurm_suite.result(run_id) for run_id in run_ids]
    limits = ("--set-resources", "run_small:runtime=30", "--default-resources", "slurm_partition=high")
    config = dict(pack_size=3, pack_slots=2)
    done = invoke(tmp_path, environment, *limits, targets=targets, **config)
    assert done.returncode == 0, done.stdout
    assert all((tmp_path / target).exists() for target in targets)
    assert len(fake_slurm.Cluster(slurm).jobs()) == 1
    calls = [json.loads(line) for line in (slurm / "calls").read_text().splitlines()]
    (submitted,) = [" ".join(words) for program, *words in calls if program == "sbatch" and "--test-only" not in words]
    assert re.search(r"--cpus-per-task[= ]2 ", submitted) and re.search(r"--mem[= ]8000 ", submitted), submitted
    assert "laptop scale: 3 runs to do, 0 done already" in done.stdout


@pytest.mark.parametrize(
    ("options", "config", "said"),
    [
        (["slurm_partition=loww"], {}, "Unknown partition 'loww'. This cluster has closed, high, low."),
        (["slurm_partition=low"], {"checkpoint_seconds": 7200}, "too short: a job starts for up to 60 s"),
    ],
)
@pytest.mark.fault(
    "slurm: a partition that is not there, a time limit that is too short",
    outcome="refused in one line before anything is submitted",
)
def test_what_slurm_would_not_run_is_refused_in_one_line_before_anything_is_submitted(tmp_path, options, config, said):
    (run_id,) = slurm_suite.write_plan(tmp_path, slurm_suite.lines(1))
    environment = slurm_suite.surroundings(fake_slurm.install(tmp_path / "slurm"), tmp_path)
    more = ("--default-resources", *options, "--set-resources", "run_small:runtime=60")
    done = invoke(tmp_path, environment, *more, targets=[slurm_suite.result(run_id)], seconds=60, **config)
    assert done.returncode != 0 and said in done.stdout, done.stdout
    assert "Traceback" not in done.stdout and not fake_slurm.Cluster(tmp_path / "slurm").jobs()


def commands_of_the_page():
    """The snakemake commands that docs/cluster.md gives, as words."""
    page = (slurm_suite.ROOT / "docs" / "cluster.md").read_text()
    blocks = re.findall(r"^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    lines = dict.fromkeys(line for block in blocks for line in block.splitlines() if line.startswith("snakemake"))
    return [shlex.split(line.replace("ACCOUNT", "lab").replace("PARTITION", "low"))[1:] for line in lines]


@pytest.mark.parametrize("words", commands_of_the_page(), ids=lambda words: " ".join(words[2:5]))
def test_the_commands_of_the_page_for_cluster_users_are_understood(tmp_path, words):
    environment = slurm_suite.surroundings(fake_slurm.install(tmp_path / "slurm"), tmp_path)
    again = [sys.executable, "-m", "snakemake", *words, "--dry-run"]
    done = subprocess.run(again, cwd=slurm_suite.ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "run_small" in done.stdout + done.stderr
