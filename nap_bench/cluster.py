"""Runs on SLURM: what they ask for, what is refused before the first job, and a guard without which a workflow can wait for ever.

The workflow loads this file by its path. Standard library only: as a script it stands in for `sbatch`, `sacct` and `srun`.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

WARNING_SECONDS = 120
"""SLURM sends SIGTERM this long before the time limit, so that what runs writes its checkpoint and exits 75."""
START_SECONDS = 60
"""For three nested Pythons, torch and the data, before the first update."""
EXTRA = f"--signal=TERM@{WARNING_SECONDS} --open-mode=append"
CLASSES: dict[str, dict[str, int]] = {
    "small": {"mem_mb": 4000, "runtime": 240},
    "image": {"mem_mb": 12000, "runtime": 480},
    "atari": {"mem_mb": 24000, "runtime": 1440},
    "lm": {"mem_mb": 32000, "runtime": 1440},
}
"""Resource class of a plan's line -> memory of a run, and minutes. A core a run, and one GPU a job where the device is cuda."""

OVER = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "LAUNCH_FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
    "PREEMPTED", "RECONFIG_FAIL", "REVOKED", "TIMEOUT",
}  # fmt: skip
"""States of a job that will not run again, unless it was requeued, which the controller knows."""


def resources(kind: str, device: str, num_slots: int = 1) -> dict[str, Any]:
    """What a job of a resource class asks for, with so many runs at a time."""
    if kind not in CLASSES:
        raise ValueError(f"The plan names resource class {kind!r}. Known: {', '.join(sorted(CLASSES))}.")
    gpus = {"gpu": 1} if device.startswith("cuda") else {}
    asked = {**CLASSES[kind], "mem_mb": num_slots * CLASSES[kind]["mem_mb"]}
    return {**asked, **gpus, "slurm_extra": EXTRA}


def prepare(workflow: Any, config: Mapping[str, Any]) -> None:
    """Before the first job of an invocation: refuse what SLURM would not run, then stand guard. Elsewhere nothing.

    workflow: Snakemake's. Raises ValueError, a line for each thing to put right.
    """
    if workflow.executor_plugin.name != "slurm":
        return
    asked: dict[str, dict[str, Any]] = {}
    for job in workflow.dag.needrun_jobs():
        if not job.is_local:
            found = {name: value for name, value in job.resources.items() if not name.startswith("_")}
            asked.setdefault(repr(sorted((k, v) for k, v in found.items() if k in REQUESTED)), found)
    if problems := check(list(asked.values()), config["checkpoint_seconds"]):
        raise ValueError("\n".join(problems))
    folder = Path(".snakemake") / "slurm_guard"
    if said := clear(folder):
        print(said, file=sys.stderr)
    workflow.executor_settings.status_command = "sacct"  # which is the guard
    os.environ["PATH"] = f"{install(folder)}{os.pathsep}{os.environ['PATH']}"


# What is refused

REQUESTED = {"slurm_account", "slurm_partition", "runtime", "mem_mb", "gpu", "gpu_model", "gres", "slurm_extra", "qos"}
SET = "--default-resources slurm_account=NAME slurm_partition=NAME, or the same lines in the profile"


def check(asked: Iterable[Mapping[str, Any]], checkpoint_seconds: float) -> list[str]:
    """What stands against these requests, a line each: seen from the login node, and before anything is submitted."""
    absent = [name for name in ("sbatch", "squeue", "scancel", "sinfo") if shutil.which(name) is None]
    if absent:
        return [
            f"No SLURM here: found no {', '.join(absent)} on the PATH. Start on a login node, or run locally without "
            f"--workflow-profile."
        ]
    partitions, problems = _partitions(), []
    if isinstance(partitions, str):
        return [f"SLURM does not answer: {partitions}. Nothing was submitted; try `sinfo`."]
    for request in asked:
        problems += _problems(request, partitions, checkpoint_seconds)
    return list(dict.fromkeys(problems))


def _problems(request: Mapping[str, Any], partitions: dict[str, dict], checkpoint_seconds: float) -> list[str]:
    """Of one request. SLURM's own opinion is asked only if nothing clearer is known."""
    account, partition = (str(request.get(f"slurm_{what}") or "") for what in ("account", "partition"))
    found = []
    default = next((name for name, about in partitions.items() if about["default"]), "")
    if not (partition or default):
        found.append(f"No partition was named, and this cluster has no default one. Set {SET}: {_list(partitions)}.")
    elif (partition or default) not in partitions:
        found.append(f"Unknown partition {partition!r}. This cluster has {_list(partitions)}.")
    found += _account_problems(account)
    minutes = request.get("runtime")
    lead = re.search(r"--signal=\S*@(\d+)", str(request.get("slurm_extra") or ""))
    if minutes:
        wanted = checkpoint_seconds + START_SECONDS + (int(lead[1]) if lead else 0)
        if 60 * minutes < wanted:
            found.append(
                f"A time limit of {minutes} min is too short: a job starts for up to {START_SECONDS} s, saves every "
                f"{checkpoint_seconds:g} s (checkpoint_seconds) and is asked to stop {lead[1] if lead else 0} s before the "
                f"end, so it would never get on. Ask for runtime={-(-int(wanted) // 60)} or more."
            )
    about = partitions.get(partition or default)
    if about:
        name = partition or default
        if minutes and about["minutes"] is not None and minutes > about["minutes"]:
            found.append(
                f"Partition {name} allows {about['minutes']} min, {minutes} were asked for. Ask for less (runs go on "
                f"from their checkpoints): --set-resources run_small:runtime={about['minutes']}"
            )
        if request.get("gpu") and not about["gpus"]:
            having = [name for name, other in partitions.items() if other["gpus"]]
            found.append(f"Partition {name} has no GPU, and device is cuda. Partitions with GPUs: {_list(having)}.")
        if not about["up"]:
            found.append(f"Partition {name} takes no jobs now (`sinfo` says it is not up).")
    return found or _refused_by_slurm(request, account, partition)


def _list(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def _ask(*words: str, **more: Any) -> subprocess.CompletedProcess[str]:
    """The answer of one of SLURM's programs; a failed one where it does not exist or does not answer."""
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False, **more)
    except (FileNotFoundError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(words, 1, "", str(error))


def _partitions() -> dict[str, dict[str, Any]] | str:
    """Name -> minutes (None: no limit), up, gpus, default; or why they are not known."""
    answer = _ask("sinfo", "-h", "-o", "%P|%l|%a|%G")
    if answer.returncode != 0:
        return _last_line(answer.stderr)
    found: dict[str, dict[str, Any]] = {}
    for line in answer.stdout.splitlines():
        name, limit, up, gres = line.strip().split("|")
        about = found.setdefault(name.rstrip("*"), {"gpus": False})
        about.update(default=name.endswith("*"), minutes=_minutes(limit), up=up == "up")
        about["gpus"] |= gres.startswith("gpu") or ",gpu" in gres
    return found


def _minutes(limit: str) -> int | None:
    """Of SLURM's [days-]hours:minutes:seconds; None without a limit."""
    parts = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", limit)
    if not parts:
        return None
    days, hours, minutes, _ = (int(part or 0) for part in parts.groups())
    return 60 * (24 * days + hours) + minutes


def _account_problems(account: str) -> list[str]:
    answer = _ask("sacctmgr", "-nP", "list", "assoc", f"user={getpass.getuser()}", "format=account")
    known = {line.strip() for line in answer.stdout.splitlines()} - {""}
    if account and answer.returncode != 0:
        return [
            f"slurm_account={account} was given, but no accounts are kept here ({_last_line(answer.stderr)}). Leave it out."
        ]
    if account and known and account.lower() not in {name.lower() for name in known}:
        return [f"Account {account!r} is none of yours: {_list(known)}."]
    return []


def _refused_by_slurm(request: Mapping[str, Any], account: str, partition: str) -> list[str]:
    """SLURM's own opinion: `sbatch --test-only` places the job and submits nothing."""
    words = ["sbatch", "--test-only", "--ntasks=1"]
    for option, value in (
        ("--account", account),
        ("--partition", partition),
        ("--time", request.get("runtime")),
        ("--mem", request.get("mem_mb")),
        ("--gpus", ":".join(str(request[name]) for name in ("gpu_model", "gpu") if request.get(name))),
        ("--gres", request.get("gres")),
        ("--qos", request.get("qos")),
    ):
        if value:
            words.append(f"{option}={value}")
    answer = _ask(*words, "--wrap", "true")
    if answer.returncode == 0:
        return []
    return [f"SLURM would refuse the jobs: {_last_line(answer.stderr)}. Asked: {shlex.join(words)}. Set {SET}."]


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no reason given"])[-1].removeprefix("allocation failure: ")


def clear(folder: Path) -> str:
    """Cancel what an earlier invocation, killed, left waiting in the queue: this one submits it anew. Returns what to say of it.

    What runs goes on, and new jobs wait for it. folder: of the guard, where each invocation left a folder of its jobs' name.
    """
    ours: dict[str, str] = {}
    for path in folder.glob("*"):
        if path.name == "bin":
            continue
        queue = _states("squeue", "--noheader", "--format=%i|%T", "--name", path.name)
        if queue is None:
            return ""
        if not queue:
            shutil.rmtree(path)
        ours |= queue
    waiting = [job_id for job_id, state in ours.items() if state == "PENDING"]
    if waiting:
        _ask("scancel", "--state=PENDING", *waiting)
    if not ours:
        return ""
    return (
        f"SLURM: of an earlier invocation, {len(waiting)} jobs were waiting and were cancelled, to be submitted anew; "
        f"{len(ours) - len(waiting)} are running and go on, and new jobs wait for them."
    )


# The guard
#
# Plugin 2.8.0 waits for ever for a job that is `CANCELLED by 1000`, PREEMPTED and not requeued, lost with its node while
# requeueing is on, or known to nobody any more; it forgets its jobs when `sacct` fails five times; it needs accounting. So its
# `sbatch` and `sacct` go through here.

QUESTION = "--format=JobIdRaw,State"


def install(folder: Path) -> str:
    """Make `sbatch`, `sacct` and `srun` that go through here; returns the folder to put first on the PATH."""
    folder = folder.absolute()
    own = folder / "bin"
    own.mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join(part for part in os.environ["PATH"].split(os.pathsep) if part != str(own))
    real = {name: shutil.which(name, path=path) or "" for name in ("sbatch", "sacct", "squeue", "srun")}
    guard = shlex.join([sys.executable, "-I", str(Path(__file__).absolute())])
    other = (
        f'exec {shlex.quote(real["sacct"])} "$@"' if real["sacct"] else "echo sacct: not on this cluster >&2; exit 1"
    )
    texts = {
        "sbatch": f'exec {guard} submit {shlex.join([str(folder), real["sbatch"]])} "$@"',
        "sacct": f'case " $* " in *" {QUESTION} "*) exec {guard} states '
        f'{shlex.join([str(folder), real["sacct"], real["squeue"]])} "$@" ;; esac\n{other}',
    }
    if real["srun"]:
        texts["srun"] = f'exec {guard} launch {shlex.quote(real["srun"])} "$@"'
    for name, text in texts.items():
        temporary = own / f".{name}.{os.getpid()}"
        temporary.write_text(f"#!/bin/sh\n{text}\n")
        temporary.chmod(0o755)
        os.replace(temporary, own / name)
    return str(own)


def submit(folder: str, sbatch: str, *words: str) -> int:
    """In place of `sbatch`: submit, and keep the job's id under the invocation's name.

    The name comes first: of what is killed before it learns the id, `clear` finds the job by its name.
    """
    kept = Path(folder) / words[words.index("--job-name") + 1] if "--job-name" in words else None
    if kept:
        kept.mkdir(parents=True, exist_ok=True)
    done = subprocess.run([sbatch, *words], stdout=subprocess.PIPE, text=True, check=False)
    job_id = done.stdout.strip()
    if kept and done.returncode == 0 and job_id.isdigit():  # of another cluster: "id;cluster"
        (kept / job_id).touch()
    sys.stdout.write(done.stdout)
    return done.returncode


def states(folder: str, sacct: str, squeue: str, *words: str) -> int:
    """In place of `sacct`, where the plugin asks how its jobs are: always an answer, see `judge`."""
    name = words[words.index("--name") + 1]
    queue = _states(squeue, "--noheader", "--states=all", "--format=%i|%T", "--name", name)
    books = _states(sacct, *words) if sacct else None
    for job_id, state in judge(Path(folder) / name, queue, books).items():
        print(f"{job_id}|{state}")
    return 0


def _states(*words: str) -> dict[str, str] | None:
    """Job -> state without what follows it (`CANCELLED by 1000`), or None if the program did not answer."""
    answer = _ask(*words)
    if answer.returncode != 0:
        return None
    rows = (line.split("|") for line in answer.stdout.splitlines() if "|" in line)
    return {job_id.strip(): (state.split() or ["PENDING"])[0].rstrip("+") for job_id, state, *_ in rows}


def judge(folder: Path, queue: dict[str, str] | None, books: dict[str, str] | None) -> dict[str, str]:
    """Job -> the state to tell the plugin. folder: a file for each submitted job, holding what was last amiss with it.

    queue: what the controller (`squeue`) says, which knows who is requeued. books: what accounting (`sacct`) says.
    A job that neither knows twice in a row is UNKNOWN: the plugin takes that for its end, and its outputs decide.
    """
    kept = {path.name: path.read_text() for path in folder.glob("*")}
    told = {}
    for job_id in sorted({*kept, *(queue or {}), *(books or {})}):
        in_queue, in_books = (queue or {}).get(job_id), (books or {}).get(job_id)
        before, amiss = kept.get(job_id, ""), ""
        if in_queue:
            state = in_queue
        elif queue is None:  # the controller is away, and with it who was requeued
            state = in_books if in_books in OVER - {"PREEMPTED", "NODE_FAIL"} else "PENDING"
        elif in_books in OVER or job_id not in kept:
            state = in_books
        else:
            amiss = "missing"
            state = "UNKNOWN" if before == amiss else "PENDING"
        if state == "PREEMPTED":  # over: a requeued job is PENDING in the queue
            state = "CANCELLED"
        if state == "NODE_FAIL":  # once, for the plugin to avoid the node; with requeueing on it would then wait
            amiss = "node failed"
            state = "FAILED" if before == amiss else state
        if job_id in kept and amiss != before:
            (folder / job_id).write_text(amiss)
        told[job_id] = state
    return told


# The signal

FILE_SYSTEMS = ("squashfuse", "fuse", "gocryptfs")
"""Processes that hold an image open, by the beginning of their names. Ended by a signal, they take away what is in it."""


def launch(srun: str, *words: str) -> None:
    """In place of `srun`: what it starts is watched by `step`."""
    first = next(number for number, word in enumerate(words) if not word.startswith("-"))
    os.execv(srun, [srun, *words[:first], sys.executable, "-I", __file__, "step", *words[first:]])


def step(*words: str) -> int:
    """Run a command, and pass SIGTERM on to everything that works below it.

    SLURM signals the process it started, on most clusters no other. That is a Snakemake, which only waits for its job to end.
    """
    came: list[int] = []

    def stop(number: int, frame: Any) -> None:
        came.append(number)
        for pid in _descendants(os.getpid()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    signal.signal(signal.SIGTERM, stop)
    child = subprocess.Popen(words)
    if came:  # before there was anybody to tell; once more does no harm
        stop(came[0], None)
    code = child.wait()
    return code if code >= 0 else 128 - code


def _descendants(pid: int) -> list[int]:
    """Processes below one, file systems aside."""
    children: dict[int, list[tuple[int, str]]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended
            name, _, rest = path.read_text().partition("(")[2].rpartition(")")
            children.setdefault(int(rest.split()[1]), []).append((int(path.parent.name), name))
    found, below = [], [pid]
    while below:
        for child, name in children.get(below.pop(), ()):
            below.append(child)
            found += [child] if not name.startswith(FILE_SYSTEMS) else []
    return found


if __name__ == "__main__":
    commands = {"submit": submit, "states": states, "launch": launch, "step": step}
    sys.exit(commands[sys.argv[1]](*sys.argv[2:]))
