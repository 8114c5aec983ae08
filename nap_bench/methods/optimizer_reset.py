"""Forget the optimizer's moments and step count at a task switch or every so often (a simple reference)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nap_bench.methods.base import Method
from nap_bench.spec import later


@dataclass(frozen=True)
class OptimizerReset(Method):
    """At every boundary the optimizer is as if no step had been taken; parameters are kept.

    The paper does so in its sequential Atari setup (section 5.3).

    enabled: at boundaries.  period: after every so many updates, >= 1, or None. With neither it is the baseline, bit for bit.
    """

    name: ClassVar[str] = "optimizer_reset"
    told_of_tasks: ClassVar[bool] = True

    enabled: bool = True
    period: int | None = later(None)

    def __post_init__(self) -> None:
        if self.period is not None and (type(self.period) is not int or self.period < 1):
            raise ValueError(f"optimizer_reset wants a whole period >= 1 or None; found {self.period}.")

    def after_step(self, state) -> None:
        if self.period is not None and state.step % self.period == 0:
            state.optimizer.reset()

    def on_task_boundary(self, state, task: int) -> None:
        if self.enabled:
            state.optimizer.reset()
