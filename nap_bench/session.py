"""What every loop shares: it goes on from a checkpoint, counts what it cost, tells its progress, saves, and stops when asked."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nap_bench import checkpoint
from nap_bench.ranks import Ranks
from nap_bench.record import Recorder
from nap_bench.spec import Run
from nap_bench.store import RunFolder

SAVING_SHARE = 0.05
"""At most this share of the time goes into checkpoints: one that takes long (a replay of gigabytes) is written less often."""


class Interrupted(RuntimeError):
    """The run was asked to stop; its checkpoint is written and it goes on from there."""


@dataclass
class Control:
    """What surrounds a loop: progress is told, a stop is asked for. Nothing here changes a number.

    report(step, steps_per_second): called every second or so.  check(): called before the run's files are written; raises if
    another process took the run over.  stop: set by a signal.  ranks: the processes that train together (ranks.py), of which
    the first writes; None for one.
    """

    report: Callable[[int, float], None] = lambda step, rate: None
    check: Callable[[], None] = lambda: None
    stop: bool = False
    checkpoint_seconds: float = 30.0
    ranks: Ranks | None = None


@dataclass
class Cost:
    """Seconds and sessions spent on a run, over all its sessions."""

    wall_seconds: float = 0.0
    num_sessions: int = 0
    started: float = field(default_factory=time.perf_counter)

    def seconds(self) -> float:
        return self.wall_seconds + time.perf_counter() - self.started

    def as_dict(self, num_steps: int, device: torch.device) -> dict[str, float | int]:
        seconds = self.seconds()
        if device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(device)
        else:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {
            "wall_seconds": seconds,
            "steps_per_second": num_steps / seconds,
            "peak_memory_bytes": peak,
            "num_sessions": self.num_sessions,
        }


def _forget_peak_memory() -> None:
    """Start the process's peak memory anew, so that a run of a pack does not report its predecessor's; on Linux only."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    if os.access("/proc/self/clear_refs", os.W_OK):
        Path("/proc/self/clear_refs").write_text("5")


class Session:
    """One process's part of a run. Make it before the run's tensors; then `made_of`, `begin`, and `after` every step.

    saved: what the checkpoint holds, None without one.  recorder: writes metrics.csv.  cost: over all sessions.
    """

    def __init__(self, run: Run, folder: RunFolder, device: str, control: Control):
        _forget_peak_memory()
        self.run, self.folder, self.device, self.control = run, folder, device, control
        self.saved = checkpoint.load(folder.checkpoint, run.run_id, device)
        found = self.saved or {"wall_seconds": 0.0, "num_sessions": 0, "offset": 0}
        self.cost = Cost(found["wall_seconds"], found["num_sessions"] + 1)
        self.is_first = control.ranks is None or control.ranks.rank == 0
        self.recorder = Recorder(folder.metrics, run.seeds, found["offset"] if self.is_first else 0)
        self._began = self._saved_at = self._told_at = time.perf_counter()
        self._first_step = self._saving_seconds = 0.0
        self._data: dict[str, str] = {}

    def made_of(self, data: dict[str, str]) -> None:
        """Hashes of the run's data: kept in its checkpoint, told with its result. Raises ValueError if it began on others."""
        if self.saved and self.saved.get("data") != data:
            raise ValueError(
                f"The run began on other data: bring them back, or delete the checkpoint {self.folder.checkpoint}."
            )
        self._data = data

    def begin(self, step: int) -> None:
        """The loop is about to do its first step of this session; step: how many are done."""
        self._began = self._saved_at = self._told_at = time.perf_counter()
        self._first_step = step

    def tell(self, step: int) -> float:
        """Tell progress if it was not told within a second; also to be called by what takes long between two steps. Returns now."""
        now = time.perf_counter()
        if now - self._told_at > 1.0:
            self.control.report(step, (step - self._first_step) / (now - self._began))
            self._told_at = now
        return now

    def after(self, step: int, total: int, content: Callable[[], dict[str, Any]]) -> None:
        """Call once `step` of `total` steps are done. content: what the loop needs to go on from here.

        Raises Interrupted after a stop was asked for, with the checkpoint written.
        """
        now = self.tell(step)
        wait = max(self.control.checkpoint_seconds, self._saving_seconds / SAVING_SHARE)
        stop = self.control.stop if self.control.ranks is None else self.control.ranks.any(self.control.stop)
        if stop or now - self._saved_at > wait:
            if self.is_first:
                self._save(content())
            self._saved_at = time.perf_counter()
            self._saving_seconds = self._saved_at - now
            if stop:
                raise Interrupted(f"{self.run.run_id} stopped at update {step} of {total}; it goes on from there.")

    def _save(self, content: dict[str, Any]) -> None:
        self.control.check()
        frame = {
            "offset": self.recorder.flush(),
            "wall_seconds": self.cost.seconds(),
            "data": self._data,
            "num_sessions": self.cost.num_sessions,
        }
        checkpoint.save(self.folder.checkpoint, self.run.run_id, self.device, content | frame)

    def end(self, alive_S: Tensor, updates_S: Tensor, total: int) -> dict[str, Any]:
        """Status of every seed, and cost. alive_S: seeds that lived; updates_S: how many steps each seed lived to do."""
        self.control.check()
        self.recorder.flush()
        status = [
            {"seed": seed, "status": "complete"} if alive else {"seed": seed, "status": "diverged", "step": updates}
            for seed, alive, updates in zip(self.run.seeds, alive_S.tolist(), updates_S.tolist(), strict=True)
        ]
        ended = {"status": status, "cost": self.cost.as_dict(total, torch.device(self.device))}
        return ended | ({"data": self._data} if self._data else {})
