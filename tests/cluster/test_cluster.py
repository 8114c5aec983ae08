"""What is refused before a submission, what the guard tells the executor plugin, and the profiles; without Snakemake."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
import time

import fake_slurm
import pytest
import slurm_suite
import yaml
from packaging.requirements import Requirement

from nap_bench import cluster

PROFILES = {
    path.parent.name: yaml.safe_load(path.read_text()) for path in slurm_suite.ROOT.glob("profiles/*/config.yaml")
}
ON_SLURM = [name for name in PROFILES if name.startswith("slurm")]
COMMON = ("scheduler", "keep-going", "rerun-incomplete", "rerun-triggers", "nolock", "show-failed-logs")
REQUEST = {"runtime": 60, "mem_mb": 4000, "slurm_extra": cluster.EXTRA}


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Install fake programs; afterwards they are the only ones on the PATH, Python and a shell aside."""

    def install(programs=fake_slurm.PROGRAMS):
        path = fake_slurm.install(tmp_path / "slurm", programs)
        monkeypatch.setenv("PATH", f"{path}:/bin" if not os.path.exists("/bin/sbatch") else str(with_shell(path)))
        return tmp_path / "slurm"

    def with_shell(path):
        for name in ("sh", "which"):
            if not (path / name).exists() and os.path.exists(f"/bin/{name}"):
                (path / name).symlink_to(f"/bin/{name}")
        return path

    return install


# refusals


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({"slurm_partition": "loww"}, "Unknown partition 'loww'. This cluster has closed, high, low."),
        ({"slurm_partition": "closed"}, "takes no jobs now"),
        ({"slurm_account": "labb"}, "Account 'labb' is none of yours: lab."),
        ({"runtime": 120}, "Partition low allows 60 min, 120 were asked for"),
        ({"runtime": 3}, "too short"),
        (
            {"slurm_partition": "high", "gpu": 1},
            "Partition high has no GPU, and device is cuda. Partitions with GPUs: low.",
        ),
        ({"mem_mb": 99999}, "SLURM would refuse the jobs: Requested node configuration is not available"),
    ],
)
def test_a_request_that_cannot_run_is_one_line_that_says_what_is_there(slurm, request_, said):
    slurm()
    (problem,) = cluster.check([REQUEST | request_], checkpoint_seconds=30)
    assert said in problem and "\n" not in problem


def test_a_request_that_can_run_is_not_refused(slurm):
    slurm()
    assert cluster.check([REQUEST, REQUEST | {"slurm_account": "LAB", "slurm_partition": "low", "gpu": 1}], 30) == []


def test_without_a_default_partition_one_has_to_be_named(slurm, monkeypatch):
    folder = slurm()
    monkeypatch.setattr(cluster, "_partitions", lambda: {"one": dict(minutes=None, up=True, gpus=False, default=False)})
    (problem,) = cluster.check([REQUEST], checkpoint_seconds=30)
    assert problem.startswith("No partition was named") and problem.endswith(": one.")
    assert not cluster.check([REQUEST | {"slurm_partition": "one"}], checkpoint_seconds=30), folder


def test_an_account_where_none_are_kept_is_refused_and_none_is_needed(slurm):
    slurm(tuple(name for name in fake_slurm.PROGRAMS if name not in ("sacct", "sacctmgr")))
    assert cluster.check([REQUEST], checkpoint_seconds=30) == []
    (problem,) = cluster.check([REQUEST | {"slurm_account": "lab"}], checkpoint_seconds=30)
    assert "no accounts are kept here" in problem and "Leave it out" in problem


@pytest.mark.fault("slurm: there is none", outcome="one line")
def test_a_machine_without_slurm_is_named_as_one(slurm):
    slurm(())
    (problem,) = cluster.check([REQUEST], checkpoint_seconds=30)
    assert problem.startswith("No SLURM here: found no sbatch, squeue, scancel, sinfo on the PATH.")


def test_an_unknown_resource_class_is_refused_by_name():
    with pytest.raises(ValueError, match="resource class 'huge'. Known: atari, image, lm, small"):
        cluster.resources("huge", "cpu")


@pytest.mark.parametrize(
    ("limit", "minutes"), [("1:00:00", 60), ("30:00", 30), ("2-12:00:00", 3600), ("infinite", None), ("n/a", None)]
)
def test_a_partitions_limit_is_read_as_slurm_writes_it(limit, minutes):
    assert cluster._minutes(limit) == minutes


def test_every_class_of_the_plan_has_resources_and_time_for_many_checkpoints():
    from nap_bench import plan

    for line in plan.load(slurm_suite.ROOT / "config" / "plan.jsonl"):
        asked = cluster.resources(line["resources"], "cuda")
        assert asked["gpu"] == 1 and asked["mem_mb"] >= 2000
        assert 60 * asked["runtime"] > 10 * (30 + cluster.START_SECONDS + cluster.WARNING_SECONDS)
    assert "gpu" not in cluster.resources("small", "cpu")


# the guard


@pytest.mark.parametrize(
    ("queue", "books", "first", "later"),
    [
        ("RUNNING", "RUNNING", "RUNNING", "RUNNING"),
        ("COMPLETED", "COMPLETED", "COMPLETED", "COMPLETED"),
        (None, "COMPLETED", "COMPLETED", "COMPLETED"),
        ("CANCELLED", "CANCELLED", "CANCELLED", "CANCELLED"),
        ("PENDING", "PREEMPTED", "PENDING", "PENDING"),  # requeued
        ("PREEMPTED", "PREEMPTED", "CANCELLED", "CANCELLED"),
        (None, "PREEMPTED", "CANCELLED", "CANCELLED"),
        ("PENDING", "NODE_FAIL", "PENDING", "PENDING"),
        ("NODE_FAIL", "NODE_FAIL", "NODE_FAIL", "FAILED"),
        (None, "RUNNING", "PENDING", "UNKNOWN"),  # accounting missed its end
        (None, None, "PENDING", "UNKNOWN"),
    ],
)
@pytest.mark.fault(
    "slurm: every state of a job that queue and accounting can report together",
    outcome="told to the executor as what it is: over, or not",
)
def test_the_guard_tells_the_end_of_a_job_and_only_the_end(tmp_path, queue, books, first, later):
    (tmp_path / "7").touch()
    known = [{"7": state} if state else {} for state in (queue, books)]
    assert [cluster.judge(tmp_path, *known)["7"] for _ in range(3)] == [first, later, later]


@pytest.mark.parametrize("books", [None, {}, {"7": "RUNNING"}, {"7": "PREEMPTED"}, {"7": "NODE_FAIL"}])
@pytest.mark.fault("slurm: the controller does not answer", outcome="no job is given up")
def test_a_controller_that_is_away_ends_no_job(tmp_path, books):
    (tmp_path / "7").touch()
    assert [cluster.judge(tmp_path, None, books)["7"] for _ in range(3)] == ["PENDING"] * 3
    assert cluster.judge(tmp_path, None, {"7": "COMPLETED"})["7"] == "COMPLETED"


def test_a_job_missed_once_and_seen_again_is_not_given_up(tmp_path):
    (tmp_path / "7").touch()
    told = [cluster.judge(tmp_path, queue, {})["7"] for queue in ({}, {"7": "RUNNING"}, {}, {})]
    assert told == ["PENDING", "RUNNING", "PENDING", "UNKNOWN"]


@pytest.mark.parametrize("programs", [fake_slurm.PROGRAMS, ("sbatch", "squeue", "sinfo", "scancel")])
@pytest.mark.fault("slurm: a cluster without accounting", outcome="works all the same")
def test_the_guard_answers_with_and_without_accounting(slurm, tmp_path, programs):
    folder = slurm(programs)
    own = cluster.install(tmp_path / "guard")

    def ask(*words):
        done = subprocess.run(
            words, capture_output=True, text=True, env={**os.environ, "PATH": f"{own}:{os.environ['PATH']}"}
        )
        return done.returncode, done.stdout.strip()

    submitted = ("--job-name", "nap_1", "--output", f"{tmp_path}/%j.log", "--comment", "rule_x", "--wrap", "true")
    assert ask("sbatch", *submitted) == (0, "1")
    assert [path.name for path in (tmp_path / "guard" / "nap_1").iterdir()] == ["1"]
    while fake_slurm.Cluster(folder).jobs()["1"]["state"] != "COMPLETED":
        time.sleep(0.02)
    fake_slurm.Cluster(folder).write("1", state="CANCELLED by 1000")
    question = ("sacct", "-X", "--noheader", "--format=JobIdRaw,State", "--endtime", "now", "--name", "nap_1")
    assert ask(*question) == (0, "1|CANCELLED")
    code, said = ask("sacct", "-j", "1", "-n", "-X", "-o", "nodelist%-256")
    assert (code, said) == ((0, "n1") if "sacct" in programs else (1, ""))


# profiles, requirements, documentation


def test_profiles_agree_where_they_have_no_reason_to_differ():
    assert {"default", "slurm", "slurm-apptainer"} <= set(PROFILES)
    for name, profile in PROFILES.items():
        assert {key: profile.get(key) for key in COMMON} == {key: PROFILES["default"][key] for key in COMMON}, name


def test_profiles_for_slurm_differ_only_in_the_container():
    inside = {"software-deployment-method", "apptainer-args", "apptainer-prefix", "config"}
    plain, contained = ({k: v for k, v in PROFILES[name].items() if k not in inside} for name in sorted(ON_SLURM))
    assert plain == contained
    assert PROFILES["slurm-apptainer"]["software-deployment-method"] == "apptainer"


@pytest.mark.parametrize("name", ON_SLURM)
def test_profiles_for_slurm_submit_again_what_ended_early_and_name_no_site(name):
    profile = PROFILES[name]
    assert profile["executor"] == "slurm" and profile["retries"] >= 3 and profile["slurm-requeue"] is True
    assert profile["latency-wait"] >= 30
    assert "default-resources" not in profile and "slurm-array-jobs" not in profile and "rules" not in profile["quiet"]


def test_only_runs_are_submitted_so_that_no_job_needs_a_network():
    text = "".join(path.read_text() for path in sorted(slurm_suite.ROOT.glob("workflows/*.smk")))
    text += (slurm_suite.ROOT / "Snakefile").read_text()
    named = {line.split()[1].rstrip(":") for line in text.splitlines() if line.startswith("rule ")}
    local = (slurm_suite.ROOT / "workflows" / "common.smk").read_text().split("localrules:\n")[1]
    assert named == {name.strip(" ,") for name in local.splitlines()}


def test_the_page_for_cluster_users_says_what_jobs_ask_for():
    page = (slurm_suite.ROOT / "docs" / "cluster.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (\d+) MB \| (\d+) min \|$", page, re.MULTILINE)
    assert {kind: {"mem_mb": int(mb), "runtime": int(minutes)} for kind, mb, minutes in rows} == cluster.CLASSES


def test_the_plugins_are_pinned_with_hashes_and_fit_the_lock():
    folder = slurm_suite.ROOT / "requirements"
    lines = [line for line in (folder / "cluster.txt").read_text().splitlines() if not line.startswith("#")]
    pinned = dict(line.rstrip(" \\").split("==") for line in lines if "==" in line)
    assert [line.strip().split(":")[0] for line in lines if "==" not in line] == ["--hash=sha256"] * len(pinned)
    locked = dict(re.findall(r"^([A-Za-z0-9_.-]+)==([^\s;]+)", (folder / "constraints.txt").read_text(), re.MULTILINE))
    for name, version in pinned.items():
        assert name not in locked, "the core installs without it"
        assert importlib.metadata.version(name) == version
        for need in map(Requirement, importlib.metadata.requires(name)):
            assert need.specifier.contains((locked | pinned)[need.name]), f"{name} needs {need}"


def test_the_module_needs_the_standard_library_only():
    tree = ast.parse((slurm_suite.ROOT / "nap_bench" / "cluster.py").read_text())
    names = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names} <= set(sys.stdlib_module_names)


# the signal


def test_a_signal_to_the_process_that_slurm_started_reaches_what_works_below_it_and_no_file_system(tmp_path):
    (tmp_path / "squashfuse_ll").symlink_to(sys.executable)
    below = "import signal, sys; signal.signal(15, lambda *_: sys.exit(75)); print('up', flush=True); signal.pause()"
    code = (
        "import signal, subprocess, sys\n"
        "signal.signal(15, lambda *_: print('waits', flush=True))  # as Snakemake does\n"
        f"files = subprocess.Popen([{str(tmp_path / 'squashfuse_ll')!r}, '-c', 'import time; time.sleep(60)'])\n"
        f"code = subprocess.call([sys.executable, '-c', {below!r}])\n"
        "print('files', files.poll(), flush=True); files.kill(); sys.exit(code)"
    )
    words = [sys.executable, "-I", cluster.__file__, "step", sys.executable, "-c", code]
    step = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert step.stdout.readline() == "up\n"
    step.terminate()
    assert step.wait(timeout=20) == 75
    assert step.stdout.read().split() == ["waits", "files", "None"]


def test_a_signal_that_comes_before_the_command_has_begun_reaches_it():
    code = (
        "import os, subprocess, sys\nfrom nap_bench import cluster\nbegin = subprocess.Popen\n"
        "cluster.subprocess.Popen = lambda words: (os.kill(os.getpid(), 15), begin(words))[1]\n"
        "sys.exit(cluster.step(sys.executable, '-c', 'import time; time.sleep(60)'))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=slurm_suite.ROOT, timeout=50, check=False).returncode == 143


def test_srun_starts_what_it_was_given_under_watch(slurm, tmp_path):
    slurm()
    own = cluster.install(tmp_path / "guard")
    environment = {**os.environ, "SLURM_JOB_ID": "1"}
    words = [f"{own}/srun", "-n1", "--cpu-bind=q", sys.executable, "-c", "import os; print(os.getppid()); exit(7)"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 7, done.stderr
    assert done.stdout.strip() == (tmp_path / "slurm" / "jobs" / "1.step").read_text(), (
        "the watch is what SLURM signals"
    )
