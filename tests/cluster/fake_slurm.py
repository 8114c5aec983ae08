"""A SLURM of one file: sbatch, srun, squeue, sacct, scancel, sinfo, scontrol, sacctmgr. Standard library only.

Jobs really run, and meet the fate that DIR/fates.json had for them when they were submitted:
{end of the job's comment: [fate, file to wait for]}.
States are what SLURM 22.05 prints: sacct says `CANCELLED by 0`, squeue `CANCELLED`; who is requeued is PENDING in both.
`install` can leave programs out, as on clusters without accounting.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

PROGRAMS = ("sbatch", "srun", "squeue", "sacct", "scancel", "sinfo", "scontrol", "sacctmgr")
KILL_WAIT_SECONDS = 30.0
PARTITIONS = ["low*|1:00:00|up|gpu:h200:4", "high|1-00:00:00|up|(null)", "closed|infinite|down|(null)"]
ACCOUNTS = ["lab"]
OVER = ("COMPLETED", "FAILED", "CANCELLED by 0", "PREEMPTED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT")
"""States that squeue shows only where all are asked for."""
KILLED = {
    "out_of_memory": "OUT_OF_MEMORY",
    "node_fail": "NODE_FAIL",
    "killed": "FAILED",
    "preempted": "PREEMPTED",
    "cancelled": "CANCELLED by 0",
    "vanished": "VANISHED",
}
ASKED = {"timeout": "TIMEOUT", "requeued": "PENDING", "stopped": "CANCELLED by 0"}
"""Fate -> the state it ends in. KILLED: before it started. ASKED: after SIGTERM, and what the job makes of it."""


def install(folder: Path, programs: tuple[str, ...] = PROGRAMS) -> Path:
    """Make the programs for a cluster that lives in `folder`; returns what goes on the PATH."""
    (folder / "bin").mkdir(parents=True)
    (folder / "jobs").mkdir()
    for name in programs:
        words = shlex.join([sys.executable, "-I", __file__, name, str(folder)])
        (folder / "bin" / name).write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        (folder / "bin" / name).chmod(0o755)
    return folder / "bin"


class Cluster:
    def __init__(self, folder: Path):
        self.folder = folder

    def jobs(self, name: str | None = None) -> dict[str, dict]:
        found = {path.stem: json.loads(path.read_text()) for path in (self.folder / "jobs").glob("[0-9]*.json")}
        return {job_id: job for job_id, job in found.items() if name in (None, job["name"])}

    def write(self, job_id: str, **changes) -> dict:
        path = self.folder / "jobs" / f"{job_id}.json"
        job = (json.loads(path.read_text()) if path.exists() else {}) | changes
        path.with_suffix(".tmp").write_text(json.dumps(job))
        os.replace(path.with_suffix(".tmp"), path)
        return job

    def note(self, program: str, words: list[str]) -> None:
        with open(self.folder / "calls", "a") as calls:
            calls.write(json.dumps([program, *words]) + "\n")

    # the programs

    def sbatch(self, words: list[str]) -> int:
        def after(option: str) -> str:
            joined = [word.partition("=")[2] for word in words if word.startswith(f"{option}=")]
            return joined[0] if joined else words[words.index(option) + 1] if option in words else ""

        if "--test-only" in words:
            if int(after("--mem") or 0) > 16000:
                print("allocation failure: Requested node configuration is not available", file=sys.stderr)
                return 1
            return 0
        with open(self.folder / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            job_id = str(len(self.jobs()) + 1)
            comment, path = after("--comment"), self.folder / "fates.json"
            fates = json.loads(path.read_text()) if path.exists() else {}
            self.write(
                job_id,
                name=after("--job-name"),
                comment=comment,
                fate=next((fate for end, fate in fates.items() if comment.endswith(end)), ("", "")),
                log=after("--output").replace("%j", job_id),
                command=after("--wrap"),
                state="PENDING",
                starts=0,
            )
        subprocess.Popen(
            [sys.executable, "-I", __file__, "supervise", str(self.folder), job_id],
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,  # or who submits waits for the job's end
        )
        print(job_id)
        return 0

    def srun(self, words: list[str]) -> int:
        while words[0].startswith("-"):
            words = words[1:]
        os.setsid()  # a step's processes can be told from the batch script's
        (self.folder / "jobs" / f"{os.environ['SLURM_JOB_ID']}.step").write_text(str(os.getpid()))
        os.execvp(words[0], words)

    def squeue(self, words: list[str]) -> int:
        names = words[words.index("--name") + 1].split(",")
        over = () if "--states=all" in words else OVER
        for job_id, job in ((i, j) for name in names for i, j in self.jobs(name).items()):
            if job["state"] not in ("VANISHED", "FORGOTTEN", *over):
                print(f"{job_id}|{job['state'].split()[0]}")
        return 0

    def sacct(self, words: list[str]) -> int:
        if "--name" in words:
            for job_id, job in self.jobs(words[words.index("--name") + 1]).items():
                if job["state"] not in ("VANISHED", "FORGOTTEN"):
                    print(f"{job_id}|{job['state']}")
        elif "nodelist%-256" in words:
            print("n1")
        return 0

    def scancel(self, words: list[str]) -> int:
        for job_id in (word for word in words if word.isdigit()):
            (self.folder / "jobs" / f"{job_id}.cancel").touch()
        return 0

    def sinfo(self, words: list[str]) -> int:
        print("\n".join(PARTITIONS if "%P|%l|%a|%G" in words else ["PARTITION", "low*", "high", "closed"]))
        return 0

    def scontrol(self, words: list[str]) -> int:
        print("MaxArraySize            = 1001\nMinJobAge               = 300 sec")
        return 0

    def sacctmgr(self, words: list[str]) -> int:
        print("\n".join(ACCOUNTS))
        return 0

    # a job's life

    def supervise(self, words: list[str]) -> int:
        (job_id,) = words
        job = self.jobs()[job_id]
        fate, mark = job["fate"]
        while fate == "queued" and not Path(mark).exists():
            if (self.folder / "jobs" / f"{job_id}.cancel").exists():
                self.write(job_id, state="CANCELLED by 0")
                return 0
            time.sleep(0.5)
        state = self.live(job_id, job, fate, mark)
        if state == "PENDING":
            self.write(job_id, state=state)
            time.sleep(0.5)
            state = self.live(job_id, job, "", "")
        self.write(job_id, state=state)
        return 0

    def live(self, job_id: str, job: dict, fate: str, mark: str) -> str:
        """Run it once, up to its fate; returns the state it ends in."""
        self.write(job_id, state="RUNNING", starts=self.jobs()[job_id]["starts"] + 1)
        if fate in KILLED:
            time.sleep(0.5)
            return KILLED[fate]
        environment = {**os.environ, "SLURM_JOB_ID": job_id, "SLURM_JOBID": job_id}
        with open(job["log"], "a") as log:
            batch = subprocess.Popen(
                ["/bin/sh", "-c", job["command"]], env=environment, stdout=log, stderr=log, start_new_session=True
            )
            while batch.poll() is None:
                cancelled = (self.folder / "jobs" / f"{job_id}.cancel").exists()
                if cancelled or (fate in ASKED and Path(mark).exists()):
                    self.stop(job_id, batch, everything=fate != "timeout")
                    return ASKED["stopped" if cancelled else fate]
                time.sleep(0.02)
        return "FORGOTTEN" if fate == "forgotten" else "COMPLETED" if batch.returncode == 0 else "FAILED"

    def stop(self, job_id: str, batch: subprocess.Popen, everything: bool) -> None:
        """SIGTERM to the step, or to the batch script as well; SIGKILL to what is left after KILL_WAIT_SECONDS.

        Only to the process that SLURM started, as with proctrack/cgroup and without SignalChildrenProcesses.
        """
        step = int((self.folder / "jobs" / f"{job_id}.step").read_text())
        sessions = {step, batch.pid}
        for pid in {step, batch.pid} if everything else {step}:
            kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + KILL_WAIT_SECONDS
        while time.monotonic() < deadline and members(sessions):
            batch.poll()
            time.sleep(0.05)
        for pid in members(sessions):
            kill(pid, signal.SIGKILL)
        batch.wait()


def members(sessions: set[int]) -> list[int]:
    """The living processes of these sessions."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
            if int(session) in sessions and state != "Z":
                found.append(int(stat.parent.name))
    return found


def kill(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


if __name__ == "__main__":
    program, where, *rest = sys.argv[1:]
    cluster = Cluster(Path(where))
    cluster.note(program, rest)
    sys.exit(getattr(cluster, program)(rest))
