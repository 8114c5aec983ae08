"""Normalize-and-Project (Lyle et al. 2024, arXiv 2407.01800, Algorithm 1 as reconstructed from sections 3.3 and A.4)."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nap_bench.methods.base import Method, Phase
from nap_bench.methods.batch_norm import BatchNorm
from nap_bench.methods.group_norm import GroupNorm
from nap_bench.models.blocks import NORMS, has_norm
from nap_bench.models.roles import Role
from nap_bench.spec import ModelSpec, Run, later, nearest

HOMOGENEOUS = ("crelu", "leaky_relu", "relu")
POLICIES = ("free", "decay", "joint", "none")


@dataclass(frozen=True)
class NaP(Method):
    """Norm before every nonlinearity; every `period` updates each layer's weights return to their initial Frobenius norm.

        W_l <- rho_l W_l / ||W_l||_F,   rho_l = ||W_l(0)||_F

    norm: "layer", "rms", "batch", "group", or "none" (projection only: the network keeps its own norm, or its biases, which are not
      projected).
    project: False leaves the norm only.  period: updates between projections, >= 1 (paper 3.3: 1 and 1000 nearly equal).
    head: project the final linear layer too. The paper does not; it is an arm of its own here.
    scale_offset: what happens to the norm's scale and offset at a projection (paper 3.3, App. D):
      "free"; "decay": (s, o) <- (a s + (1 - a), a o), a = `decay`; "joint": (s, o) scaled per layer to joint norm sqrt(D),
      their initial one (the paper prints 1, which would change the last layer's output), homogeneous activations only;
      "none": the norm has neither.
    per: "layer" as in the paper, or "neuron": every unit's incoming weights keep their own norm (SimbaV2 and nGPT do so).
    Optimizer moments are left alone; gradients are not projected.
    """

    name: ClassVar[str] = "nap"
    phase: ClassVar[Phase] = Phase.PROJECT

    norm: str = "layer"
    project: bool = True
    period: int = 1
    head: bool = False
    scale_offset: str = "free"
    decay: float = 0.999
    per: str = later("layer")

    def __post_init__(self) -> None:
        if self.norm not in ("none", *NORMS):
            raise ValueError(nearest(self.norm, ("none", *NORMS), "norm of nap"))
        if self.per not in ("layer", "neuron"):
            raise ValueError(nearest(self.per, ("layer", "neuron"), "per of nap"))
        if self.scale_offset not in POLICIES:
            raise ValueError(nearest(self.scale_offset, POLICIES, "scale_offset of nap"))
        if self.period < 1 or not 0.0 <= self.decay <= 1.0:
            raise ValueError(f"nap wants period >= 1 and decay in [0, 1]; found {self.period} and {self.decay}.")

    def why_not(self, run: Run) -> str | None:
        if self.scale_offset == "joint" and run.model.activation not in HOMOGENEOUS:
            return f"scale_offset='joint' needs a positively homogeneous activation, found {run.model.activation!r}"
        if self.norm == "none" and (
            self.scale_offset == "none" or self.scale_offset != "free" and not has_norm(run.model)
        ):
            return f"scale_offset={self.scale_offset!r} has nothing to act on where norm='none'"
        norms = {"batch": BatchNorm(), "group": GroupNorm(groups=run.model.norm_groups)}
        return norms[self.norm].why_not(run) if self.norm in norms else None

    def transform_model(self, spec: ModelSpec) -> ModelSpec:
        if self.norm == "none":
            return spec
        return dataclasses.replace(spec, norm=self.norm, norm_affine=spec.norm_affine and self.scale_offset != "none")

    def _groups(self, state):
        """The groups that are projected: all but the output layer, or all."""
        return [g for g in state.groups if self.head or Role.OUTPUT not in {state.roles[name] for name in g.members}]

    def setup(self, state) -> dict[str, Tensor]:
        if not self.project:
            return {}
        norms = self._neuron_norms if self.per == "neuron" else type(state).group_norm
        return {group.name: norms(state, group) for group in self._groups(state)}

    @staticmethod
    def _neuron_norms(state, group) -> Tensor:
        """[S, out], of all that the group holds of a unit: of a noisy layer its means and its noise together."""
        rows = [torch.linalg.vector_norm(state.matrix(name), dim=2) for name in group.members]
        return rows[0] if len(rows) == 1 else torch.linalg.vector_norm(torch.stack(rows), dim=0)

    @torch.no_grad()
    def after_step(self, state) -> None:
        if not self.project or state.step % self.period:
            return
        self.restore(state)
        if self.scale_offset == "decay":
            for scale_SD, *offsets in self._scales_and_offsets(state):
                scale_SD.mul_(self.decay).add_(1.0 - self.decay)
                for offset_SD in offsets:
                    offset_SD.mul_(self.decay)

    @torch.no_grad()
    def restore(self, state) -> None:
        """Weights to their initial norms; each pair of scale and offset to its own, where the policy is "joint".

        What is zero throughout, as after a reset to zero, has no direction to be scaled along and stays.
        """
        if not self.project:
            return
        targets = state.slots[self.name]
        for group in self._groups(state):
            if self.per == "neuron":
                norms_SO = self._neuron_norms(state, group)
                factor_SO = torch.where(norms_SO > 0, targets[group.name] / norms_SO, 1.0)
                for name in group.members:
                    state.matrix(name).mul_(factor_SO.unsqueeze(2))
                continue
            norm_S = state.group_norm(group)
            factor_S = torch.where(norm_S > 0, targets[group.name] / norm_S, 1.0)
            for name in group.members:
                state.params[name].mul_(factor_S.view(-1, *[1] * (state.params[name].dim() - 1)))
        if self.scale_offset == "joint":
            for pair in self._scales_and_offsets(state):
                joint_S1 = torch.linalg.vector_norm(torch.cat(pair, dim=1), dim=1, keepdim=True)
                factor_S1 = math.sqrt(pair[0].shape[1]) / joint_S1
                for part_SD in pair:
                    part_SD.mul_(factor_S1)

    def _scales_and_offsets(self, state):
        """(scale, offset), or (scale,) of a norm that another one follows, which has no offset."""
        for name, role in state.roles.items():
            if role is Role.SCALE:
                pair = (name, name.removesuffix("scale") + "offset")
                yield tuple(state.params[member] for member in pair if member in state.params)
