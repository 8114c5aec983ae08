"""The learning-rate schedule that growing weights impose, made explicit on a projected network (paper 4.1, Fig. 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nap_bench.methods.base import Method, Phase
from nap_bench.models.roles import Role
from nap_bench.spec import Run, nearest

RESCALINGS = ("layer", "global")


@dataclass(frozen=True)
class ImplicitSchedule(Method):
    """A network projected after every update takes the steps of its unprojected twin, without coupling two runs.

    Per projected layer it keeps c, the norm the twin would have over the initial one: c <- c ||V|| / rho, V the weights after
    the update and before projection. A scale-invariant layer of norm c rho has the gradient of the projected one divided by c,
    and moves the function as the projected one does at the rate divided by c (Definition 1). So the gradient is divided by c
    before the optimizer sees it, and the update is divided by c after.

    rescale: "layer", each layer by its own c; "global", all projected layers by the ratio of their joint norms.
    gradients: divide the gradient too. SGD's step, linear in it, is then divided by c twice: lr / c^2, which is exact. Without,
      SGD divides its rate by c^2 directly, the same; Adam, whose step ignores the gradient's scale, is exact only with it,
      because its moments mix gradients taken at different norms (the paper calls the twins "identical by construction").
    Needs `nap` in the stack, projecting at every update.
    """

    name: ClassVar[str] = "implicit_schedule"
    phase: ClassVar[Phase] = Phase.PROJECT  # before nap, by name

    rescale: str = "layer"
    gradients: bool = True

    def __post_init__(self) -> None:
        if self.rescale not in RESCALINGS:
            raise ValueError(nearest(self.rescale, RESCALINGS, "rescale of implicit_schedule"))

    def why_not(self, run: Run) -> str | None:
        nap = next((part for part in run.methods if part.name == "nap"), None)
        if nap is None or not dict(nap.params)["project"] or dict(nap.params)["period"] != 1:
            return "needs nap in the stack, projecting at every update"
        return None

    def setup(self, state) -> dict[str, Tensor]:
        ones = torch.ones(len(state.seeds), device=state.device, dtype=state.flat.dtype)
        return {"before": state.flat.detach().clone()} | {group.name: ones.clone() for group in self._groups(state)}

    def _groups(self, state):
        return [g for g in state.groups if Role.OUTPUT not in {state.roles[name] for name in g.members}]

    def _pieces(self, state, flat: Tensor):
        """(c [S, 1, ...], slice of a flat tensor) of every projected parameter."""
        slots = state.slots[self.name]
        for group in self._groups(state):
            for name in group.members:
                piece = state.view(flat, name)
                yield slots[group.name].view(-1, *[1] * (piece.dim() - 1)), piece

    @torch.no_grad()
    def after_backward(self, state) -> None:
        state.slots[self.name]["before"].copy_(state.flat)
        if self.gradients:
            for c, gradient in self._pieces(state, state.flat.grad):
                gradient.div_(c)

    @torch.no_grad()
    def after_step(self, state) -> None:
        slots, targets = state.slots[self.name], state.slots["nap"]
        squared = not self.gradients and not state.optimizer.steps_are_normalised
        before = (piece for _, piece in self._pieces(state, slots["before"]))
        for (c, after), piece in zip(self._pieces(state, state.flat), before, strict=True):
            weight = 1.0 / c**2 if squared else 1.0 / c
            torch.lerp(piece, after, weight, out=after)  # in place: a new tensor of this size costs more
        groups = self._groups(state)
        if self.rescale == "layer":
            for group in groups:
                slots[group.name].mul_(state.group_norm(group) / targets[group.name])
            return
        # the twin's layer has norm c ||V||: one c for all, from the joint norm that the twin would have
        now = torch.stack([state.group_norm(group) for group in groups]).square().sum(dim=0).sqrt()
        start = torch.stack([targets[group.name] for group in groups]).square().sum(dim=0).sqrt()
        for group in groups:
            slots[group.name].mul_(now / start)
