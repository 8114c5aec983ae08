"""Weights clipped to a multiple of the range they were drawn from (Elsayed, Lan, Lyle & Mahmood 2024, 2407.01704)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from math import prod
from typing import ClassVar

import torch
from torch import Tensor

from nap_bench.methods.base import Method, Phase
from nap_bench.models.roles import Role

CLIPPED = (Role.WEIGHT, Role.OUTPUT, Role.EMBEDDING, Role.BIAS)


@dataclass(frozen=True)
class WeightClipping(Method):
    """w <- min(max(w, -kappa s), kappa s) after every update, for weights and biases; s is the bound of their initial range.

    s = sqrt(3) times the initial distribution's standard deviation: the bound itself where that is uniform, 1/sqrt(fan_in) under
    PyTorch's default. Biases that start at 0 have the bound of their layer's weights. Norms, learned factors and the strength of
    noise are left alone.

    kappa: > 0; None clips nothing and is the baseline, bit for bit.  head: clip the output layer too.
    """

    name: ClassVar[str] = "weight_clipping"
    phase: ClassVar[Phase] = Phase.SHRINK

    kappa: float | None = 2.0
    head: bool = True

    def __post_init__(self) -> None:
        if self.kappa is not None and not 0.0 < self.kappa < math.inf:
            raise ValueError(f"weight_clipping wants a finite kappa > 0 or None; found {self.kappa}.")

    def setup(self, state) -> dict[str, Tensor]:
        """bound [P]: infinite for what is left alone."""
        if self.kappa is None:
            return {}
        bound_P = torch.full_like(state.values[0], math.inf)
        outputs = {name.rpartition(".")[0] for name, role in state.roles.items() if role is Role.OUTPUT}
        for name in state.params:
            owner, _, leaf = name.rpartition(".")
            if state.roles[name] in CLIPPED and (self.head or owner not in outputs):
                draws, (start, shape) = state.model.get_submodule(owner).draws, state.views[name]
                std = draws[leaf].std or draws["weight"].std
                bound_P[start : start + prod(shape[1:])] = self.kappa * math.sqrt(3.0) * std
        return {"bound": bound_P}

    @torch.no_grad()
    def after_step(self, state) -> None:
        if self.kappa is not None:
            bound_P = state.slots[self.name]["bound"]
            state.values.clamp_(min=-bound_P, max=bound_P)
