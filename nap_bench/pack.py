"""Many runs in one job: a few worker processes, forked from one that has imported everything, each fed one run at a time.

A worker does run after run, so torch is imported, and a GPU's context made, once. What becomes of a worker is no concern of the
others: one that is killed, or shows no life for an hour, is named with its run and replaced. Numbers cannot depend on any of this:
a worker is the process that `jobs.do` would be, with one thread, and does a run from its beginning or its checkpoint to its end.

With device `cuda` a worker leases a slot of a GPU before it touches one (see `gpus`); `cuda:1` is that GPU, and nothing is leased.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import multiprocessing
import multiprocessing.connection
import os
import random
import signal
import time
from collections.abc import Sequence
from typing import Any

from nap_bench import gpus
from nap_bench.jobs import (
    FAILED,
    HELD,
    HELD_SECONDS,
    LINE_SECONDS,
    LOOPS,
    STOPPED,
    STOPS,
    Job,
    Suite,
    Waits,
    attempt,
    check_device,
    say,
    unmade,
)

HANG_SECONDS = 3600.0
"""A worker whose run shows no progress for so long hangs. The longest that any loop is silent is an evaluation on a CPU."""
LOOK_SECONDS = 1.0
READY, UNFIT = "ready", "unfit"
"""What a worker says before its first run: it has what it needs, or why it never will."""
END_SECONDS = 60.0
"""A worker that was asked to stop and has not by then is killed."""
PR_SET_PDEATHSIG = 1


def do(
    jobs: Sequence[Job],
    *,
    slots: int,
    data_dir: str | None,
    device: str,
    suite: Suite,
    checkpoint_seconds: float = 30.0,
    hang_seconds: float = HANG_SECONDS,
) -> int:
    """Do all jobs in at most `slots` workers at a time. Returns the exit code, as `jobs.do`: 1 only after all were tried."""
    if slots < 1:
        raise ValueError(f"A pack wants at least 1 slot, found {slots}.")
    pending, num_failed = unmade(jobs)
    if not pending:
        return 1 if num_failed else 0
    warm_up(pending)
    how = dict(data_dir=data_dir, device=device, suite=suite, checkpoint_seconds=checkpoint_seconds)
    pack = Pack(pending, min(slots, len(pending)), slots, hang_seconds, how)
    previous = {number: signal.signal(number, pack.stop) for number in STOPS}
    try:
        pack.run()
    finally:
        pack.dismiss()
        for number, handler in previous.items():
            signal.signal(number, handler)
    if pack.failed:
        said = f"{len(pack.failed)} of {len(jobs)} runs failed, the others' results are kept"
        say(f"[pack] {said}: {', '.join(job.run_id for job in pack.failed)}")
    if pack.stopped:
        return 75
    return 1 if pack.failed or num_failed else 0


def warm_up(jobs: Sequence[Job]) -> None:
    """Import what the jobs need, for all workers at once. Nothing is computed and CUDA is not started: neither survives a fork."""
    import torch

    from nap_bench.benchmarks import BENCHMARKS

    torch.set_num_threads(1)
    for name in {job.line["run"]["benchmark"]["name"] for job in jobs} & set(BENCHMARKS):
        importlib.import_module(LOOPS[BENCHMARKS[name].loop][0])


STARTING, IDLE, BUSY, LEAVING = "starting", "idle", "busy", "leaving"


class Worker:
    """A worker as the pack sees it: its process, what it does, and when it last showed life."""

    def __init__(self, jobs: Sequence[Job], capacity: int, how: dict[str, Any]):
        context = multiprocessing.get_context("fork")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs, jobs, capacity, os.getpid(), how), daemon=True)
        self.process.start()
        theirs.close()
        self.state = STARTING
        self.number = -1
        self.hung = False

    def give(self, number: int, job: Job) -> None:
        self.state, self.number = BUSY, number
        self.lease, self.life, self.seen = job.store / job.run_id / "lease.json", None, time.monotonic()
        self.pipe.send(number)

    def silent_seconds(self) -> float:
        """Since the heartbeat of its run last changed, by this process's own clock."""
        life = self.lease.stat().st_mtime_ns if self.lease.exists() else None
        if life != self.life:
            self.life, self.seen = life, time.monotonic()
        return time.monotonic() - self.seen


class Pack:
    """The jobs left to do, the workers, and what came of them. One thread; no method takes longer than about a second.

    slots: how many workers at a time.  capacity: how many may share a GPU.
    """

    def __init__(self, jobs: Sequence[Job], slots: int, capacity: int, hang_seconds: float, how: dict[str, Any]):
        self.jobs, self.slots, self.capacity, self.hang_seconds, self.how = jobs, slots, capacity, hang_seconds, how
        self.queue = list(range(len(jobs)))
        self.not_before = [0.0] * len(jobs)
        self.workers: list[Worker] = []
        self.failed: list[Job] = []
        self.stopped = False
        self.waits = Waits()

    def run(self) -> None:
        while self.busy() or (self.queue and not self.stopped):
            self.hire()
            self.feed()
            self.listen()
            self.watch()

    def busy(self) -> list[Worker]:
        return [worker for worker in self.workers if worker.state == BUSY]

    def stop(self, *signal_and_frame: Any) -> None:
        """Ask every worker for its checkpoint and its end."""
        self.stopped = True
        for worker in self.workers:
            worker.process.terminate()

    def hire(self) -> None:
        while not self.stopped and len(self.workers) < min(self.slots, len(self.queue) + len(self.busy())):
            signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)  # a worker that has no handler yet must not miss one
            try:
                self.workers.append(Worker(self.jobs, self.capacity, self.how))
            finally:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)

    def feed(self) -> None:
        now = time.monotonic()
        for worker in self.workers:
            due = [number for number in self.queue if self.not_before[number] <= now]
            if due and worker.state == IDLE and not self.stopped:
                try:
                    worker.give(due[0], self.jobs[due[0]])
                    self.queue.remove(due[0])
                except OSError:  # it has just ended; another does the run
                    worker.state = LEAVING
        if self.queue and {worker.state for worker in self.workers} == {IDLE}:
            self.waits.tell(self.jobs[self.queue[0]])

    def listen(self) -> None:
        """Until a worker says something or ends, or a second has passed."""
        ends = [end for worker in self.workers for end in (worker.pipe, worker.process.sentinel)]
        multiprocessing.connection.wait(ends, LOOK_SECONDS)
        for worker in list(self.workers):
            ended = not worker.process.is_alive()  # looked at first: what it said before is read below
            try:
                while worker.pipe.poll():
                    self.hear(worker, *worker.pipe.recv())
            except (EOFError, ConnectionResetError):
                ended = True
            if ended:
                self.bury(worker)

    def hear(self, worker: Worker, said: str, why: str = "") -> None:
        if said == UNFIT:
            raise ValueError(why)
        worker.state = LEAVING if said in (FAILED, STOPPED) else IDLE
        if said == FAILED:
            self.failed.append(self.jobs[worker.number])
        elif said == HELD:
            self.queue.append(worker.number)
            self.not_before[worker.number] = time.monotonic() + HELD_SECONDS
        elif said == STOPPED:
            self.stop()

    def bury(self, worker: Worker) -> None:
        """A worker has ended: if it was at a run, that failed."""
        worker.process.join()
        self.workers.remove(worker)
        code = worker.process.exitcode
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        if worker.hung:
            how = f"was killed: no progress for {self.hang_seconds:.0f} s"
        elif code == -signal.SIGKILL:
            how += " (out of memory?)"
        if worker.state == BUSY:
            self.failed.append(self.jobs[worker.number])
            self.jobs[worker.number].fail(f"its process {worker.process.pid} {how}")
        elif worker.state == STARTING and not self.stopped:
            raise RuntimeError(f"A worker {how} before its first run; what it said is above.")

    def watch(self) -> None:
        for worker in self.busy():
            if worker.silent_seconds() > self.hang_seconds:
                worker.hung = True
                worker.process.kill()

    def dismiss(self) -> None:
        """No worker is left behind, whatever went wrong here."""
        for worker in self.workers:
            if worker.state == IDLE:
                with contextlib.suppress(OSError):  # it has just ended
                    worker.pipe.send(None)
            else:
                worker.process.terminate()
        for worker in self.workers:
            worker.process.join(END_SECONDS)
            worker.process.kill()


def work(pipe: Any, jobs: Sequence[Job], capacity: int, parent: int, how: dict[str, Any]) -> None:
    """A worker's life: lease a GPU if one is wanted, then do runs by their numbers until there are no more.

    It ends, with a checkpoint, when it is told to and when the process that feeds it is gone; and after a run that failed, so that
    nothing of that one reaches the next.
    """
    from nap_bench.session import Control

    kept = {name: how[name] for name in ("data_dir", "device", "suite")}
    control = Control(checkpoint_seconds=how["checkpoint_seconds"])

    def stop(signum: int, frame: Any) -> None:
        control.stop = True

    def over() -> bool:
        return control.stop or os.getppid() != parent

    for number in STOPS:
        signal.signal(number, stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
    _end_with_parent()
    try:
        held = lease_gpu(capacity, over) if how["device"] == "cuda" else None
        if over():
            say_stopped(pipe)
            return
        check_device(how["device"])
    except ValueError as error:
        pipe.send((UNFIT, str(error)))
        return
    pipe.send((READY, held.gpu if held else ""))
    ended = READY
    while ended not in (FAILED, STOPPED) and not over():
        if pipe.poll(LOOK_SECONDS):
            number = pipe.recv()
            if number is None:
                return
            ended = attempt(jobs[number], control=control, **kept)
            pipe.send((ended,))
    if ended not in (FAILED, STOPPED):
        say_stopped(pipe)  # it may have been given a run since: that one did not begin


def say_stopped(pipe: Any) -> None:
    with contextlib.suppress(OSError):  # who feeds it is gone
        pipe.send((STOPPED,))


def lease_gpu(capacity: int, over: Any) -> gpus.Held | None:
    """Wait for a slot of a GPU and make it the only one that this process sees. None if it was told to end before.

    capacity: how many workers may share a GPU.
    """
    found = gpus.present()
    if not found:
        raise ValueError(
            "Wanted device 'cuda', but no GPU was found here: nvidia-smi names none, and CUDA_VISIBLE_DEVICES is "
            f"{os.environ.get('CUDA_VISIBLE_DEVICES', 'not set')!r}. Set device: cpu."
        )
    told = time.monotonic()
    while not over():
        if held := gpus.try_lease(found, capacity):
            os.environ.update(CUDA_DEVICE_ORDER="PCI_BUS_ID", CUDA_VISIBLE_DEVICES=held.gpu)
            return held
        if time.monotonic() - told > LINE_SECONDS:
            told = time.monotonic()
            owners = ", ".join(map(str, gpus.holders(found, capacity)))
            say(f"[pack] waiting for a GPU: {len(found)} x {capacity} slots are taken by processes {owners}")
        time.sleep(random.uniform(0.2, 0.6))
    return None


def _end_with_parent() -> None:
    """SIGTERM comes when the parent is gone, even if it was killed; on Linux only. Elsewhere a worker notices between runs."""
    with_prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if with_prctl:
        with_prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))
