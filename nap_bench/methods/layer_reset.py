"""The last layers drawn anew, every so often or at task switches (a simple reference, after Nikishin et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from nap_bench.methods.base import Method
from nap_bench.models import BRANCHED
from nap_bench.models.roles import Role
from nap_bench.spec import Run, nearest

POINTS = ("fresh", "initial", "zero")


@dataclass(frozen=True)
class LayerReset(Method):
    """The last `layers` layers start anew: weights, biases, and the scale and offset of the norms behind them.

    Both moments of their parameters are 0 afterwards; the optimizer's step count stays. With neither boundaries nor a period it
    is the baseline, bit for bit.

    layers: how many, the output layer included, >= 1.  period: updates between resets, >= 1, or None.
    told_of_tasks: reset before the first update of every new task, which most methods here are not told of.
    to: "fresh", a new draw from the initial distribution; "initial", the run's own initial values; "zero", for layers=1 only.
    """

    name: ClassVar[str] = "layer_reset"

    layers: int = 1
    period: int | None = None
    told_of_tasks: bool = True
    to: str = "fresh"

    def __post_init__(self) -> None:
        if self.layers < 1:
            raise ValueError(f"layer_reset wants layers >= 1; found {self.layers}.")
        if self.period is not None and (type(self.period) is not int or self.period < 1):
            raise ValueError(f"layer_reset wants a whole period >= 1 or None; found {self.period}.")
        if self.to not in POINTS:
            raise ValueError(nearest(self.to, POINTS, "to of layer_reset"))
        if self.to == "zero" and self.layers > 1:
            raise ValueError(
                f"layer_reset wants layers=1 for to='zero', hidden units would be dead; found {self.layers}."
            )

    def why_not(self, run: Run) -> str | None:
        if self.layers > 1 and run.model.family in BRANCHED:
            return (
                f"the layers of a {run.model.family} do not follow each other: layers=1, the output layer, can be reset"
            )
        size = dict(run.model.size)
        num_layers = len(size.get("channels", ())) + len(size.get("widths", ())) + 1
        return f"layers={self.layers} of a network that has {num_layers}" if self.layers > num_layers else None

    @property
    def edits_at_boundaries(self) -> bool:
        return self.told_of_tasks

    def names(self, state) -> list[str]:
        """The parameters that are reset. Raises where the network has fewer layers."""
        if self.layers > len(state.units) + 1:
            raise ValueError(
                f"layer_reset wants layers in [1, {len(state.units) + 1}] of this network; found {self.layers}."
            )
        outputs = {name.rpartition(".")[0] for name, role in state.roles.items() if role is Role.OUTPUT}
        hidden = state.units[len(state.units) + 1 - self.layers :]
        wanted = {name for units in hidden for name in (*units.incoming, *units.norm)}
        return [name for name in state.params if name in wanted or name.rpartition(".")[0] in outputs]

    def setup(self, state) -> dict:
        self.names(state)
        return {}

    def after_step(self, state) -> None:
        if self.period is not None and state.step % self.period == 0:
            self._reset(state)

    def on_task_boundary(self, state, task: int) -> None:
        self._reset(state)

    @torch.no_grad()
    def _reset(self, state) -> None:
        for name in self.names(state):
            if self.to == "zero":
                state.params[name].zero_()
            else:
                state.params[name].copy_(start(state, name, self.to, self.name))
            for moment in state.optimizer.moments(name).values():
                moment.zero_()


def start(state, name: str, to: str, purpose: str) -> torch.Tensor:
    """Where a parameter starts: its initial values, or a new draw of the update's own."""
    return state.fresh(name) if to == "initial" else state.fresh(name, purpose, state.step)
