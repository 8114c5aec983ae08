"""Weight normalisation: direction and length of every unit's weights learned apart (Salimans & Kingma 2016, 1602.07868)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch

from nap_bench.methods.base import Method
from nap_bench.models import UNIT_SCALED
from nap_bench.models.blocks import lengths
from nap_bench.models.roles import Role
from nap_bench.spec import ModelSpec, Run


@dataclass(frozen=True)
class WeightNorm(Method):
    """w = g v / ||v|| for the incoming weights w of every unit and output; the direction v and the length g are trained.

    g starts at ||v||, so that the network starts as without. It does not depend on the length of v, which therefore can only
    grow under gradient descent, and the effective learning rate of the direction falls with it (what NaP undoes).
    """

    name: ClassVar[str] = "weight_norm"
    moves_start: ClassVar[bool] = True

    def why_not(self, run: Run) -> str | None:
        if run.model.family not in UNIT_SCALED:
            return f"no layer of a {run.model.family} has a learned length: those of {', '.join(UNIT_SCALED)} have"
        return None

    def transform_model(self, spec: ModelSpec) -> ModelSpec:
        return dataclasses.replace(spec, unit_scale="weight_norm")

    @torch.no_grad()
    def setup(self, state) -> dict:
        for name, role in state.roles.items():
            if role is Role.UNIT_SCALE:
                weight = state.matrix(name.removesuffix("unit_scale") + "weight")
                state.params[name].copy_(lengths(weight, dim=2))
        return {}
