"""Hyperspherical weights: every unit's are projected to a sphere after every update (SimbaV2, Lee et al. 2025, 2502.15280)."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nap_bench.methods.base import Method, Phase
from nap_bench.models import UNIT_SCALED
from nap_bench.models.blocks import lengths
from nap_bench.models.roles import Role
from nap_bench.spec import ModelSpec, Run

RESETS = ("continual_backprop", "full_reset", "layer_reset", "redo", "regrama", "snr")
"""Methods that draw units anew, with the factor of the initial distribution."""


@dataclass(frozen=True)
class Hyperspherical(Method):
    """w <- radius w / ||w|| for the incoming weights w of every unit and output, at the start and after every `period`-th update.

    radius: > 0.
    scale: every unit's output, before its bias, has a learned factor (SimbaV2's Scaler), which starts at ||w|| / radius, so that
      the network starts as without.
    period: updates between projections, >= 1; None is the baseline, bit for bit.
    Of a noisy layer's unit, means and noise are projected together. Weights that are zero throughout stay.
    """

    name: ClassVar[str] = "hyperspherical"
    phase: ClassVar[Phase] = Phase.PROJECT
    moves_start: ClassVar[bool] = True

    radius: float = 1.0
    scale: bool = True
    period: int | None = 1

    def __post_init__(self) -> None:
        if not 0.0 < self.radius < math.inf:
            raise ValueError(f"hyperspherical wants a finite radius > 0; found {self.radius}.")
        if self.period is not None and (type(self.period) is not int or self.period < 1):
            raise ValueError(f"hyperspherical wants a whole period >= 1 or None; found {self.period}.")

    def why_not(self, run: Run) -> str | None:
        if self.period is None:
            return None
        if run.model.family not in (*UNIT_SCALED, "rainbow"):
            return f"it is not said what the units of a {run.model.family}'s embeddings and stream are"
        resets = [part.name for part in run.methods if part.name in RESETS]
        if self.scale and self.radius != 1.0 and resets:
            return f"{resets[0]} draws units for radius 1, found {self.radius}"
        if self.scale and run.model.family not in UNIT_SCALED:
            return f"no layer of a {run.model.family} has a learned factor: scale=False, beside a norm, can be"
        return None

    def transform_model(self, spec: ModelSpec) -> ModelSpec:
        if self.period is None or not self.scale:
            return spec
        return dataclasses.replace(spec, unit_scale="length")

    @staticmethod
    def _lengths(state, group) -> Tensor:
        """[S, O], of all that the group holds of a unit."""
        return sum(state.matrix(name).square().sum(dim=2) for name in group.members).sqrt()

    def setup(self, state) -> dict:
        if self.period is None:
            return {}
        for name, role in state.roles.items():
            if role is Role.UNIT_SCALE:
                weight = state.matrix(name.removesuffix("unit_scale") + "weight")
                state.params[name].detach().copy_(lengths(weight, dim=2) / self.radius)
        self.restore(state)
        return {}

    def after_step(self, state) -> None:
        if self.period is not None and state.step % self.period == 0:
            self.restore(state)

    @torch.no_grad()
    def restore(self, state) -> None:
        if self.period is None:
            return
        for group in state.groups:
            length_SO = self._lengths(state, group)
            factor_SO = torch.where(length_SO > 0, self.radius / length_SO, 1.0)
            for name in group.members:
                state.matrix(name).mul_(factor_SO.unsqueeze(2))
