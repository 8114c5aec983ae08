"""Do runs: many in one process, each under its lease, with progress that reads well in a plain log.

torch is imported only when something has to be trained, so that remaking results from the store takes milliseconds.
"""

from __future__ import annotations

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
    "rl": ("nap_bench.rl.loop", "reinforce"),
    "simulation": ("nap_bench.simulate", "simulate"),
    "supervised": ("nap_bench.train", "train"),
}
"""A benchmark's `loop` -> module and function that does its runs; imported when one has to be done."""
LINE_SECONDS = 8.0
"""At most one progress line of a run, and one of the suite, in this time."""
WARM_SECONDS = 30.0
"""Before so much of an invocation has passed its mean speed says little."""


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
            make_result(folder, self.results)
            folder.checkpoint.unlink(missing_ok=True)
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
        control.report = meter.report
        ended = loop(run, folder, data_dir=data_dir, device=device, control=control)
        lease.check()
        write_whole(folder.environment, as_json({**made_with, "resolved_model": ended["model"]}))
        write_whole(folder.done, as_json({"status": ended["status"], "cost": ended["cost"]}))
        make_result(folder, self.results)
        folder.checkpoint.unlink(missing_ok=True)
        folder.failed.unlink(missing_ok=True)
        meter.ended(ended)


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
        self.suite.tell(last=self.suite.num_left() == 0)


class Suite:
    """Progress of everything planned at a scale: one line, from whichever process looks first."""

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

    def num_left(self) -> int:
        return sum(not result_path(self.results, line["run_id"]).exists() for line in self.lines)

    def tell(self, *, last: bool = False) -> None:
        """Print the suite's line, unless another process did in the last LINE_SECONDS or this is the `last` run."""
        if not self.lines:
            return
        turn = self.store / ".suite-line"
        if not last and turn.exists() and time.time() - turn.stat().st_mtime < LINE_SECONDS:
            return
        done = {line["run_id"] for line in self.lines if result_path(self.results, line["run_id"]).exists()}
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


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """12 s, 3 min 20 s, 5 h 10 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def do(
    jobs: Sequence[Job], *, data_dir: str | None, device: str, suite: Suite, checkpoint_seconds: float = 30.0
) -> int:
    """Do all jobs, one after another; a failing one does not lose the others. Returns the exit code.

    0: every result is there.  1: some failed (named, with log).  75: asked to stop; checkpoints are written.
    A run that another process holds is left for the end and waited for.
    """
    pending, failed = [], []
    for job in jobs:
        try:
            if not job.is_done() and not job.remake():
                pending.append(job)
        except (ValueError, OSError) as error:  # damaged files of one run must not lose the others
            failed.append(job)
            say(f"[run] {job.run_id} FAILED: {error}")
    if not pending:
        return 1 if failed else 0
    import torch

    from nap_bench.session import Control, Interrupted

    torch.set_num_threads(1)  # one thread per process: measured fastest, and what bitwise equality is stated for
    if device != "cpu" and not torch.cuda.is_available():
        raise ValueError(f"Wanted device {device!r}, but torch {torch.__version__} finds no GPU here. Set device: cpu.")
    control = Control(checkpoint_seconds=checkpoint_seconds)

    def stop(signum: int, frame: Any) -> None:
        control.stop = True

    previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    told = time.monotonic()
    try:
        while pending:
            waiting = []
            for job in pending:
                if job.is_done():
                    continue
                folder = RunFolder(job.store, job.run())
                try:
                    folder.open()
                    with leased(folder) as lease:
                        if lease is None:
                            waiting.append(job)
                        elif folder.is_complete:
                            make_result(folder, job.results)
                        else:
                            job.train(lease, data_dir=data_dir, device=device, control=control, suite=suite)
                except Interrupted as reason:
                    say(f"[run] {reason}")
                    return 75
                except LeaseLost as reason:
                    say(f"[run] {reason}")
                    waiting.append(job)
                except Exception as error:  # a failing member must not lose the others: it is named, and exits 1
                    failed.append(job)
                    _record_failure(folder, error)
            if waiting and control.stop:
                return 75
            if waiting:
                time.sleep(1.0)
                if time.monotonic() - told > LINE_SECONDS:
                    told = time.monotonic()
                    holder = Lease(waiting[0].store / waiting[0].run_id / "lease.json").holder()
                    say(
                        f"[run] waiting for {waiting[0].run_id}: process {holder.get('pid')} on {holder.get('host')} is "
                        f"training it (update {holder.get('step', 0)})"
                    )
            pending = waiting
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return 1 if failed else 0


def _record_failure(folder: RunFolder, error: Exception) -> None:
    reason = f"{type(error).__name__}: {error}"
    say(
        f"[run] {folder.run.run_id} FAILED: {reason}\n      log: {folder.log}\n      again: nap-bench run {folder.run.run_id}"
    )
    try:
        with open(folder.log, "a") as log:
            log.write("".join(traceback.format_exception(error)))
        write_whole(folder.failed, as_json({"run_id": folder.run.run_id, "reason": reason, "log": str(folder.log)}))
    except OSError as second:
        say(f"[run] could not write down why: {second}")


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
        "processor": _processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "num_cores": os.cpu_count(),
        "device": torch.device(device).type,
        "device_name": torch.cuda.get_device_name(device) if on_gpu else _processor(),
        "threads": torch.get_num_threads(),
    }


def _commit() -> tuple[str | None, bool | None]:
    """The code's commit, and whether the code differs from it. Images have no git: whoever starts one says it (apptainer.py)."""
    if stated := os.environ.get("NAP_BENCH_COMMIT"):
        commit, plus, _ = stated.partition("+")
        return commit, bool(plus)
    changed = _git("status", "--porcelain", "--", ":/", f":(top,exclude){LOCK_FILE}")
    return _git("rev-parse", "HEAD"), None if changed is None else bool(changed)


def _git(*arguments: str) -> str | None:
    here = Path(__file__).parent
    try:
        done = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, timeout=20, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except FileNotFoundError:
        return platform.processor()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
