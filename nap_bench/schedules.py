"""Learning rates as pure functions of the step. Standard library only.

A step is the number of updates done, so 0 asks for the rate of the first update.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from nap_bench.spec import Component, nearest

RESTARTS = ("never", "task")


@dataclass(frozen=True)
class Schedule(Component):
    """Linear warm-up from `initial_lr` to `lr` over `warmup_steps` updates, then whatever the kind of schedule does.

    lr: peak rate, > 0.  initial_lr: in [0, lr], rate of the first update of a warm-up.
    restart: "never", one schedule over the whole run; or "task", it begins anew at every task (paper 5.3).
    """

    lr: float
    _: KW_ONLY
    warmup_steps: int = 0
    initial_lr: float = 0.0
    restart: str = "never"

    def __post_init__(self) -> None:
        if not 0.0 < self.lr < math.inf:
            raise ValueError(f"Schedule {self.name!r} wants a positive, finite lr; found {self.lr}.")
        if self.restart not in RESTARTS:
            raise ValueError(nearest(self.restart, RESTARTS, f"restart of schedule {self.name!r}"))
        if self.warmup_steps != int(self.warmup_steps) or self.warmup_steps < 0:
            raise ValueError(f"Schedule {self.name!r} wants a whole number of warmup_steps; found {self.warmup_steps}.")
        if not 0.0 <= self.initial_lr <= self.lr:
            raise ValueError(f"Schedule {self.name!r} wants initial_lr in [0, {self.lr}]; found {self.initial_lr}.")
        if self.initial_lr and not self.warmup_steps:
            raise ValueError(f"Schedule {self.name!r}: initial_lr={self.initial_lr} does nothing without warmup_steps.")

    def __call__(self, step: int, total_steps: int, steps_per_task: int) -> float:
        """The rate of the update that follows `step` updates. Raises if the warm-up leaves no room for the rest."""
        length = total_steps
        if self.restart == "task":
            step, length = step % steps_per_task, steps_per_task
        end = self.end(length)
        if self.warmup_steps >= end:
            raise ValueError(
                f"Schedule {self.name!r} wants its warm-up of {self.warmup_steps} steps to end before step {end:g}, "
                f"where the schedule ends (restart={self.restart!r})."
            )
        if step < self.warmup_steps:
            return self.initial_lr + (self.lr - self.initial_lr) * (step / self.warmup_steps)
        return self.after_warmup(min(1.0, (step - self.warmup_steps) / (end - self.warmup_steps)))

    def end(self, length: int) -> float:
        """Step at which the schedule stops changing, of `length` steps of the run or the task."""
        return length

    def after_warmup(self, progress: float) -> float:
        """The rate at a fraction in [0, 1] of what follows the warm-up."""
        raise NotImplementedError


@dataclass(frozen=True)
class Constant(Schedule):
    """`lr` after the warm-up."""

    name: ClassVar[str] = "constant"

    def after_warmup(self, progress: float) -> float:
        return self.lr


@dataclass(frozen=True)
class _Decay(Schedule):
    """From `lr` to `final_lr`, reached after the fraction `until` of the run (or task), warm-up included; then flat.

    final_lr: in [0, lr].  until: in (0, 1].
    """

    final_lr: float
    _: KW_ONLY
    until: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.final_lr <= self.lr:
            raise ValueError(f"Schedule {self.name!r} wants final_lr in [0, {self.lr}]; found {self.final_lr}.")
        if not 0.0 < self.until <= 1.0:
            raise ValueError(f"Schedule {self.name!r} wants until, a fraction, in (0, 1]; found {self.until}.")

    def end(self, length: int) -> float:
        return self.until * length

    def after_warmup(self, progress: float) -> float:
        if progress == 1.0:
            return self.final_lr
        return max(self.final_lr, self.lr + (self.final_lr - self.lr) * self.share(progress))

    def share(self, progress: float) -> float:
        """Share of the way from lr to final_lr: 0 at progress 0, 1 at progress 1."""
        raise NotImplementedError


@dataclass(frozen=True)
class Linear(_Decay):
    """A straight line. The paper's for Rainbow (4.2): Linear(6.25e-5, 1e-6, until=0.5)."""

    name: ClassVar[str] = "linear"

    def share(self, progress: float) -> float:
        return progress


@dataclass(frozen=True)
class Cosine(_Decay):
    """Half a period of a cosine (Loshchilov & Hutter 2017).

    The paper's for sequential Atari (5.3): Cosine(6.25e-5, 1e-6, warmup_steps=1000, initial_lr=1e-8, restart="task").
    """

    name: ClassVar[str] = "cosine"

    def share(self, progress: float) -> float:
        return 0.5 * (1.0 - math.cos(math.pi * progress))


@dataclass(frozen=True)
class Steps(Schedule):
    """`lr`, multiplied by `factor` at every fraction in `at` of what follows the warm-up (of the run, or of the task).

    The update at the fraction itself has the new rate. The paper's for CIFAR-10 (B.4) starts at 0.025 with factor 0.1; where it
    steps is not given.

    at: strictly increasing, in (0, 1); none is a constant rate.  factor: in (0, 1).
    """

    name: ClassVar[str] = "steps"

    at: tuple[float, ...]
    _: KW_ONLY
    factor: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        bounds = (0.0, *self.at, 1.0)
        if not all(before < after for before, after in itertools.pairwise(bounds)):
            raise ValueError(f"Schedule {self.name!r} wants increasing fractions `at` in (0, 1); found {self.at}.")
        if not 0.0 < self.factor < 1.0:
            raise ValueError(f"Schedule {self.name!r} wants factor in (0, 1); found {self.factor}.")

    def after_warmup(self, progress: float) -> float:
        return self.lr * self.factor ** sum(progress >= fraction for fraction in self.at)


SCHEDULES: dict[str, type[Schedule]] = {kind.name: kind for kind in (Constant, Linear, Cosine, Steps)}
