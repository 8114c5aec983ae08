"""Plasticity injection: a fresh head learns a change to the frozen old one (Nikishin et al. 2023, 2305.15555)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nap_bench.methods.base import Method, Phase
from nap_bench.models import INJECTED
from nap_bench.models.roles import Role
from nap_bench.spec import ModelSpec, Run

MATRICES = (Role.WEIGHT, Role.OUTPUT)
MOVED = {
    "full_reset": "would start the fresh head anew and leave the frozen ones where they are",
    "hare_tortoise": "averages what is frozen with what stood there before the injection",
    "layer_reset": "would start the fresh head anew and leave the frozen ones where they are",
}
"""Methods beside which the head is not what the injection made it."""


@dataclass(frozen=True)
class PlasticityInjection(Method):
    """At an injection the head h is frozen, and a fresh one a learns in its place, less a frozen copy b of itself: a = b.

        out(x) = a(x) + [h(x) - b(x)]

    The output does not change, nor does the number of trained parameters. All three pass gradients on to what feeds them. The
    fresh head's moments are 0; the optimizer's step count and all other moments stay. A further injection freezes a in turn,
    beside a new pair. Before the first the network is the baseline's, bit for bit; with no injection it is the baseline.

    updates: inject after each of these many updates, >= 1, increasing.
    tasks: inject before the first update of each of these tasks, >= 1, increasing: the method is told of task switches.
    layers: of the head, the output layer included, >= 1. With 1 it is linear, and training a is training h: nothing changes but
      rounding and moments.
    A fresh unit's weights are as long as that unit's were at the start, so that a projection leaves a = b.
    """

    name: ClassVar[str] = "plasticity_injection"
    phase: ClassVar[Phase] = Phase.PROJECT  # after nap, by name: what is frozen has been projected

    updates: tuple[int, ...] = ()
    tasks: tuple[int, ...] = (1,)
    layers: int = 2

    def __post_init__(self) -> None:
        for name, values in (("updates", self.updates), ("tasks", self.tasks)):
            if any(type(value) is not int or value < 1 for value in values) or sorted(set(values)) != list(values):
                raise ValueError(
                    f"plasticity_injection wants {name} to be increasing whole numbers >= 1; found {values}."
                )
        if self.layers < 1:
            raise ValueError(f"plasticity_injection wants layers >= 1; found {self.layers}.")

    @property
    def num_injections(self) -> int:
        return len(self.updates) + len(self.tasks)

    @property
    def told_of_tasks(self) -> bool:
        return bool(self.tasks)

    @property
    def edits_at_boundaries(self) -> bool:
        return bool(self.tasks)

    def why_not(self, run: Run) -> str | None:
        if not self.num_injections:
            return None
        if run.model.family not in INJECTED:
            return f"no head of a {run.model.family} has frozen heads beside it: {', '.join(INJECTED)} have"
        if run.model.family == "rainbow" and self.layers != 2:
            return f"a rainbow network's heads have 2 layers each; found layers={self.layers}"
        widths = dict(run.model.size).get("widths")
        if widths is not None and self.layers > len(widths) + 1:
            return f"layers={self.layers} of a head that has {len(widths) + 1}: linear layers alone can be in it"
        for part in run.methods:
            if part.name in MOVED:
                return f"{part.name} {MOVED[part.name]}"
        return None

    def transform_model(self, spec: ModelSpec) -> ModelSpec:
        if not self.num_injections:
            return spec
        return dataclasses.replace(spec, injections=self.num_injections, head_layers=self.layers)

    def setup(self, state) -> dict[str, Tensor | int]:
        """done: injections so far. Of the head's weights their lengths [S, 1, O], of its learned factors their values."""
        if not self.num_injections:
            return {}
        start: dict[str, Tensor | int] = {"done": 0}
        for name in state.model.head.values():
            role = state.roles.get(name)
            if role in MATRICES:
                start[name] = torch.linalg.vector_norm(state.params[name].detach(), dim=1, keepdim=True)
            elif role is Role.UNIT_SCALE:
                start[name] = state.params[name].detach().clone()
        return start

    def after_step(self, state) -> None:
        if state.step in self.updates:
            self._inject(state)

    def on_task_boundary(self, state, task: int) -> None:
        if task in self.tasks:
            self._inject(state)

    @torch.no_grad()
    def _inject(self, state) -> None:
        slots = state.slots[self.name]
        number = slots["done"]
        slots["done"] = number + 1
        for inside, name in state.model.head.items():
            original, copy = (f"frozen.heads.{2 * number + index}.{inside}" for index in (0, 1))
            if name in state.buffers:  # running statistics, the same for all three
                state.buffers[original].copy_(state.buffers[name])
                state.buffers[copy].copy_(state.buffers[name])
                continue
            parameter = state.params[name]
            state.frozen[original].copy_(parameter)
            parameter.copy_(self._fresh(state, name, number))
            state.frozen[copy].copy_(parameter)
            for moment in state.optimizer.moments(name).values():
                moment.zero_()

    def _fresh(self, state, name: str, number: int) -> Tensor:
        start = state.slots[self.name].get(name)
        if state.roles[name] is Role.UNIT_SCALE:
            return start
        drawn = state.fresh(name, self.name, number)
        if state.roles[name] not in MATRICES:
            return drawn
        return drawn * (start / torch.linalg.vector_norm(drawn, dim=1, keepdim=True))
