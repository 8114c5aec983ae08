"""Forget the optimizer's moments and step count at a task switch (a reference that is told of task boundaries)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nap_bench.methods.base import Method


@dataclass(frozen=True)
class OptimizerReset(Method):
    """At every boundary the optimizer is as if no step had been taken; parameters are kept.

    The paper does so in its sequential Atari setup (section 5.3). enabled=False is the baseline, bit for bit.
    """

    name: ClassVar[str] = "optimizer_reset"
    told_of_tasks: ClassVar[bool] = True

    enabled: bool = True

    def on_task_boundary(self, state, task: int) -> None:
        if self.enabled:
            state.optimizer.reset()
