"""The learning-rate schedule that growing weights impose, made explicit on a projected network (NaP paper, 4.1, Fig. 3)."""

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

    Per projected layer it keeps c, the norm the twin has over the initial one, rho. A scale-invariant layer of norm c rho has the
    gradient of the projected one divided by c (Definition 1). So once the gradient is known it is divided by c and the weights W
    are multiplied by c: they are the twin's, and the optimizer takes the twin's step, to V. Then c <- ||V|| / rho, and nap brings
    V back to norm rho. As the direction is all that counts, the projected network's rate is divided by c for an optimizer whose
    step ignores the gradient's scale, and by c^2 for SGD.

    rescale: "layer", each layer by its own c; "global", all projected layers by the ratio of their joint norms.
    gradients: False leaves the gradient to optimizers that ignore its scale, so that only the rate is divided by c. Adam is exact
      only with True, because its moments mix gradients taken at different norms (the paper calls the twins "identical by
      construction"). SGD, whose step is linear in the gradient, does the same with either.
    Needs `nap` in the stack, projecting at every update.
    """

    name: ClassVar[str] = "implicit_schedule"
    version: ClassVar[int] = 2
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
        return {f"rate_divisor/{group.name}": ones.clone() for group in self._groups(state)}

    def _groups(self, state):
        return [g for g in state.groups if Role.OUTPUT not in {state.roles[name] for name in g.members}]

    @torch.no_grad()
    def after_backward(self, state) -> None:
        """The twin's weights and gradient, for the optimizer's step. They stay until `nap` projects."""
        divides = self.gradients or not state.optimizer.steps_are_normalised
        for group in self._groups(state):
            c_S = state.slots[self.name][f"rate_divisor/{group.name}"]
            for name in group.members:
                weight = state.params[name].detach()
                c = c_S.view(-1, *[1] * (weight.dim() - 1))
                weight.mul_(c)
                if divides:
                    state.view(state.flat.grad, name).mul_(c.reciprocal())  # dividing takes twice as long

    @torch.no_grad()
    def after_step(self, state) -> None:
        slots, targets, groups = state.slots[self.name], state.slots["nap"], self._groups(state)
        if self.rescale == "layer":
            for group in groups:
                slots[f"rate_divisor/{group.name}"].copy_(state.group_norm(group) / targets[group.name])
            return
        now = torch.stack([state.group_norm(group) for group in groups]).square().sum(dim=0).sqrt()
        start = torch.stack([targets[group.name] for group in groups]).square().sum(dim=0).sqrt()
        for group in groups:
            slots[f"rate_divisor/{group.name}"].copy_(now / start)
