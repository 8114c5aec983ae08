"""Do runs: many in one process, each under its lease, with progress that reads well in a plain log.

torch is imported only when something has to be trained, so that remaking results from the store takes milliseconds.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import platform
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nap_bench import plan
from nap_bench.apptainer import LOCK_FILE
from nap_bench.estimate import duration, processor
from nap_bench.spec import Run
from nap_bench.store import (
    STALE_SECONDS,
    Lease,
    LeaseLost,
    RunFolder,
    as_json,
    leased,
    make_result,
    read_result,
    result_path,
    write_whole,
)

LOOPS = {
    "policy": ("nap_bench.policy.loop", "optimise"),
    "rl": ("nap_bench.rl.loop", "reinforce"),
    "simulation": ("nap_bench.simulate", "simulate"),
    "supervised": ("nap_bench.train", "train"),
}
"""A benchmark's `loop` -> module and function that does its runs; imported when one has to be done."""
LINE_SECONDS = 8.0
"""At most one progress line of a run, and one of the suite, in this time."""
WARM_SECONDS = 30.0
"""Before so much of an invocation has passed its mean speed says little."""
HELD_SECONDS = 1.0
"""Between two looks at a run that another process holds."""
STOPS = (signal.SIGTERM, signal.SIGINT)
"""Signals that ask for checkpoints and an end."""


class Job:
    """One run at its place: where it is stored, whether it is done, and doing it."""

    def __init__(self, line: dict[str, Any], *, store: Path, results: Path):
        self.line, self.store, self.results = line, Path(store), Path(results)
        self.run_id: str = line["run_id"]

    def is_done(self) -> bool:
        """Whether the result is there and whole."""
        path = result_path(self.results, self.run_id)
        if not path.exists():
            return False
        read_result(path)
        return True

    def remake(self) -> bool:
        """Make the result from a complete store entry, if there is one and nobody else is at it. Imports no torch."""
        spec = self.store / self.run_id / "spec.json"
        if not spec.exists() or not (spec.parent / "done.json").exists():
            return False
        run = Run.from_dict(json.loads(spec.read_text()))
        if run.run_id != self.run_id:
            raise ValueError(
                f"{spec} describes {run.run_id}: the folder was renamed or copied. Delete it: the run is made anew."
            )
        folder = RunFolder(self.store, run)
        with leased(folder) as lease:
            if lease is None:
                return False
            finish(folder, self.results)
        return True

    def run(self) -> Run:
        run = plan.expand(self.line["run"])
        if run.run_id != self.run_id:
            raise ValueError(
                f"The plan's line for {self.run_id} describes {run.run_id}. Renew the plan with: nap-bench plan"
            )
        return run

    def train(self, lease: Lease, *, data_dir: str | None, device: str, control: Any, suite: Suite) -> None:
        """Train to the end, then make the result. Under the lease."""
        from nap_bench.benchmarks import BENCHMARKS

        run = self.run()
        module, function = LOOPS[BENCHMARKS[run.benchmark.name].loop]
        loop = getattr(importlib.import_module(module), function)
        folder = RunFolder(self.store, run)
        made_with = environment(device)
        meter = Meter(self, lease, suite)
        control.report, control.check = meter.report, lease.check
        ended = loop(run, folder, data_dir=data_dir, device=device, control=control)
        lease.check()
        write_whole(folder.environment, as_json({**made_with, "resolved_model": ended["model"], **_data(ended)}))
        # a disk may take longer over a file than a lease lasts, and another owner has cut metrics.csv back to its checkpoint
        write_whole(folder.done, as_json({"status": ended["status"], "cost": ended["cost"]}), lease.check)
        lease.check()
        finish(folder, self.results)
        meter.ended(ended)

    def fail(self, reason: str, trace: str = "") -> None:
        """Say and write down why the run failed."""
        folder = self.store / self.run_id
        log = folder / "log"
        say(f"[run] {self.run_id} FAILED: {reason}\n      log: {log}\n      again: nap-bench run {self.run_id}")
        try:
            with open(log, "a") as file:
                file.write(trace or f"{reason}\n")
            write_whole(folder / "failed.json", as_json({"run_id": self.run_id, "reason": reason, "log": str(log)}))
        except OSError as second:
            say(f"[run] could not write down why: {second}")


def _data(ended: dict[str, Any]) -> dict[str, Any]:
    """What a loop said about its data, where other machines may have others."""
    return {"data": ended["data"]} if "data" in ended else {}


def finish(folder: RunFolder, results: Path) -> None:
    """Make a complete folder's result. What is not needed any more goes first: after the result nobody looks again."""
    folder.checkpoint.unlink(missing_ok=True)
    folder.failed.unlink(missing_ok=True)
    make_result(folder, results)


class Meter:
    """Progress of one run: beats its lease, prints a line now and then."""

    def __init__(self, job: Job, lease: Lease, suite: Suite):
        self.job, self.lease, self.suite = job, lease, suite
        self.name = f"{suite.label(job.run_id)}{job.run_id}"
        self.total = job.line["work"] // len(job.line["run"]["seeds"])
        self.last_line = time.monotonic()

    def report(self, step: int, rate: float) -> None:
        self.lease.beat(step=step, steps_per_second=rate)
        now = time.monotonic()
        if now - self.last_line >= LINE_SECONDS:
            self.last_line = now
            left = duration((self.total - step) / rate) if rate > 0 else "?"
            say(f"[run] {self.name}: {step}/{self.total} updates, {rate:.0f} steps/s, {left} left")
            self.suite.tell()

    def ended(self, ended: dict[str, Any]) -> None:
        cost, lost = ended["cost"], [s["seed"] for s in ended["status"] if s["status"] == "diverged"]
        note = f", DIVERGED at seeds {lost} (kept in the result)" if lost else ""
        say(f"[run] {self.name}: done, {cost['steps_per_second']:.0f} steps/s, {duration(cost['wall_seconds'])}{note}")
        self.suite.tell(last=len(self.suite.done()) == len(self.suite.lines))


class Suite:
    """Progress of what an invocation was asked for: one line, from whichever process looks first."""

    def __init__(self, lines: Sequence[dict[str, Any]], scale: str, *, store: Path, results: Path):
        self.lines, self.scale, self.store, self.results = lines, scale, Path(store), Path(results)
        self.uses = {line["run_id"]: line["uses"].get(scale, {}) for line in lines}

    def label(self, run_id: str) -> str:
        """Where a run is used, e.g. "arms/nap "."""
        found = [
            f"{exhibit}/{' '.join(filter(None, place))}"
            for exhibit, places in self.uses.get(run_id, {}).items()
            for place in places
        ]
        return f"{found[0]}{' ...' if len(found) > 1 else ''} " if found else ""

    def done(self) -> set[str]:
        """Ids of the runs whose results are there, by one look at their folder: there may be thousands."""
        return {line["run_id"] for line in self.lines} & results_in(self.results)

    def tell(self, *, last: bool = False) -> None:
        """Print the suite's line, unless another process did in the last LINE_SECONDS or this is the `last` run."""
        if len(self.lines) < 2:
            return
        turn = self.store / ".suite-line"
        if not last and turn.exists() and time.time() - turn.stat().st_mtime < LINE_SECONDS:
            return
        done = self.done()
        left, rate, running = 0.0, 0.0, 0
        for line in self.lines:
            if line["run_id"] in done:
                continue
            left += line["work"]
            progress = self._progress(line)
            if progress is not None:
                num_seeds = len(line["run"]["seeds"])
                running += 1
                left -= progress.get("step", 0) * num_seeds
                rate += progress.get("steps_per_second", 0.0) * num_seeds
        total = sum(line["work"] for line in self.lines)
        share = 100 * (total - left) / total
        rate = self._mean_rate(turn, total - left) or rate
        about = f", about {duration(left / rate)} left" if rate else ""
        say(
            f"[suite] {self.scale}: {len(done)}/{len(self.lines)} runs done, {running} running, {share:.0f} % of the work{about}"
        )

    def _mean_rate(self, turn: Path, done: float) -> float | None:
        """Work per second since the first line of this invocation of the workflow, if it is on this machine: runs differ
        tenfold in speed. None before WARM_SECONDS.

        turn: the file that says who told last; it keeps when, and from where, the invocation began.
        """
        held = self.store / ".invocation"
        if not held.exists() or not Path("/proc", held.read_text().strip() or "none").exists():
            turn.touch()
            return None
        invocation = held.stat().st_mtime
        try:
            began = json.loads(turn.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            began = {}
        if began.get("invocation") != invocation:
            began = {"invocation": invocation, "at": time.time(), "done": done}
        write_whole(turn, json.dumps(began))
        seconds = time.time() - began["at"]
        return (done - began["done"]) / seconds if seconds > WARM_SECONDS else None

    def _progress(self, line: dict[str, Any]) -> dict[str, Any] | None:
        lease = self.store / line["run_id"] / "lease.json"
        try:
            if time.time() - lease.stat().st_mtime > STALE_SECONDS:
                return None
            return json.loads(lease.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return None


def results_in(folder: Path) -> set[str]:
    """Ids of all runs whose results are in a results folder."""
    return {path.stem for path in (Path(folder) / "runs").glob("[!.]*.json")}


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def do(
    jobs: Sequence[Job], *, data_dir: str | None, device: str, suite: Suite, checkpoint_seconds: float = 30.0
) -> int:
    """Do all jobs in this process, one after another; a failing one does not lose the others. Returns the exit code.

    0: every result is there.  1: some failed (named, with log).  75: asked to stop; checkpoints are written.
    A run that another process holds is left for the end and waited for. Many at once, each safe from what becomes of another:
    see `pack`.
    """
    pending, num_failed = unmade(jobs)
    if not pending:
        return 1 if num_failed else 0
    import torch

    from nap_bench.session import Control

    torch.set_num_threads(1)  # one thread per process: measured fastest, and what bitwise equality is stated for
    check_device(device)
    control = Control(checkpoint_seconds=checkpoint_seconds)

    def stop(signum: int, frame: Any) -> None:
        control.stop = True

    previous = {number: signal.signal(number, stop) for number in STOPS}
    waits = Waits()
    try:
        while pending:
            held = []
            for job in pending:
                ended = attempt(job, data_dir=data_dir, device=device, control=control, suite=suite)
                if ended == STOPPED:
                    return 75
                num_failed += ended == FAILED
                held += [job] if ended == HELD else []
            if held and control.stop:
                return 75
            if held:
                time.sleep(HELD_SECONDS)
                waits.tell(held[0])
            pending = held
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return 1 if num_failed else 0


def unmade(jobs: Sequence[Job]) -> tuple[list[Job], int]:
    """Jobs that have to be trained, in order, and how many failed: results that the store has are made here. Imports no torch."""
    pending, num_failed = [], 0
    for job in jobs:
        try:
            if not job.is_done() and not job.remake():
                pending.append(job)
        except (ValueError, OSError) as error:  # damaged files of one run must not lose the others
            num_failed += 1
            say(f"[run] {job.run_id} FAILED: {error}")
    return pending, num_failed


def check_device(device: str) -> None:
    """Refuse a GPU where torch finds none. Starts CUDA in this process, which cannot be forked after that."""
    import torch

    if device != "cpu" and not torch.cuda.is_available():
        raise ValueError(f"Wanted device {device!r}, but torch {torch.__version__} finds no GPU here. Set device: cpu.")


DONE, FAILED, HELD, STOPPED = "done", "failed", "held", "stopped"
"""What becomes of a run: its result is there; it failed, and says why; another process holds it; it was asked to stop."""


def attempt(job: Job, *, data_dir: str | None, device: str, control: Any, suite: Suite) -> str:
    """Do one run under its lease; whatever goes wrong with it, the process can do the next."""
    from nap_bench.session import Interrupted

    try:
        if job.is_done():
            return DONE
        folder = RunFolder(job.store, job.run())
        folder.open()
        with leased(folder) as lease:
            if lease is None:
                return HELD
            if folder.is_complete:
                finish(folder, job.results)
            else:
                job.train(lease, data_dir=data_dir, device=device, control=control, suite=suite)
    except Interrupted as reason:
        say(f"[run] {reason}")
        return STOPPED
    except LeaseLost as reason:
        say(f"[run] {reason}")
        return HELD
    except Exception as error:  # a failing member must not lose the others: it is named, and the exit code says so
        job.fail(_reason(error), "".join(traceback.format_exception(error)))
        return FAILED
    return DONE


def _reason(error: Exception) -> str:
    """Why a run failed, in one line."""
    import torch

    said = " ".join(str(error).split())
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in said:
        return f"Out of memory. Let fewer runs share it (slots), or use a machine that has more: {said[:300]}"
    return f"{type(error).__name__}: {said}"


class Waits:
    """Says now and then which run is waited for, and who has it."""

    def __init__(self) -> None:
        self.told = time.monotonic()

    def tell(self, job: Job) -> None:
        if time.monotonic() - self.told <= LINE_SECONDS:
            return
        self.told = time.monotonic()
        holder = Lease(job.store / job.run_id / "lease.json").holder()
        say(
            f"[run] waiting for {job.run_id}: process {holder.get('pid')} on {holder.get('host')} is "
            f"training it (update {holder.get('step', 0)})"
        )


def failures(lines: Sequence[dict[str, Any]], store: Path) -> list[dict[str, str]]:
    """Why runs failed: what their last attempt wrote down."""
    found = []
    for line in lines:
        path = Path(store) / line["run_id"] / "failed.json"
        if path.exists():
            found.append(json.loads(path.read_text()))
    return found


def environment(device: str) -> dict[str, Any]:
    """What a result was made with. No host name: results are shared."""
    import numpy
    import torch

    on_gpu = device != "cpu"
    commit, dirty = _commit()
    return {
        "commit": commit,
        "dirty": dirty,
        "container": os.environ.get("NAP_BENCH_CONTAINER"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "platform": platform.platform(),
        "processor": processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "num_cores": os.cpu_count(),
        "device": torch.device(device).type,
        "device_name": torch.cuda.get_device_name(device) if on_gpu else processor(),
        "threads": torch.get_num_threads(),
    }


def _commit() -> tuple[str | None, bool | None]:
    """The code's commit, and whether the code differs from it. Images have no git: whoever starts one says it (apptainer.py)."""
    if stated := os.environ.get("NAP_BENCH_COMMIT"):
        commit, plus, _ = stated.partition("+")
        return commit, bool(plus)
    changed = _git("status", "--porcelain", "--", ":/", f":(top,exclude){LOCK_FILE}")
    return _git("rev-parse", "HEAD"), None if changed is None else bool(changed)


@functools.cache  # what a process does is what its code was when it began; and it asks for every run
def _git(*arguments: str) -> str | None:
    here = Path(__file__).parent
    try:
        done = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, timeout=20, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
