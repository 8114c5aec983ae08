"""Everything drawn anew, every so often or at task switches: what keeps nothing has nothing to lose (a simple reference)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nap_bench.methods.base import Method
from nap_bench.methods.layer_reset import start
from nap_bench.spec import nearest

POINTS = ("fresh", "initial")


@dataclass(frozen=True)
class FullReset(Method):
    """All parameters start anew, the optimizer forgets moments and step count, and running statistics return to their start.

    What other methods remember, and the learning rate, are left alone. With neither boundaries nor a period it is the baseline,
    bit for bit.

    period: updates between resets, >= 1, or None.
    told_of_tasks: reset before the first update of every new task, which most methods here are not told of.
    to: "fresh", a new draw from the initial distribution; "initial", the run's own initial values.
    """

    name: ClassVar[str] = "full_reset"

    period: int | None = None
    told_of_tasks: bool = True
    to: str = "fresh"

    def __post_init__(self) -> None:
        if self.period is not None and (type(self.period) is not int or self.period < 1):
            raise ValueError(f"full_reset wants a whole period >= 1 or None; found {self.period}.")
        if self.to not in POINTS:
            raise ValueError(nearest(self.to, POINTS, "to of full_reset"))

    @property
    def edits_at_boundaries(self) -> bool:
        return self.told_of_tasks

    def setup(self, state) -> dict[str, Tensor]:
        return {name: buffer.clone() for name, buffer in state.buffers.items()}

    def after_step(self, state) -> None:
        if self.period is not None and state.step % self.period == 0:
            self._reset(state)

    def on_task_boundary(self, state, task: int) -> None:
        self._reset(state)

    @torch.no_grad()
    def _reset(self, state) -> None:
        for name, parameter in state.params.items():
            parameter.copy_(start(state, name, self.to, self.name))
        for name, buffer in state.slots[self.name].items():
            state.buffers[name].copy_(buffer)
        state.optimizer.reset()
