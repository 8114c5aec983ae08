"""Decoupled weight decay (Loshchilov & Hutter 2019), the rival that also stops norm growth (Lyle et al. 2024, 2402.18762)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from nap_bench.methods.base import Method, Phase
from nap_bench.models.roles import Role


@dataclass(frozen=True)
class WeightDecay(Method):
    """W <- (1 - lr * coef) W after the step, for hidden and output weights and embeddings; not for biases, scales and offsets.

    AdamW shrinks before its step; shrinking after it differs by a factor (1 - lr * coef) on that one step.
    coef: per unit of learning rate, >= 0; 0 is the baseline, bit for bit.
    """

    name: ClassVar[str] = "weight_decay"
    phase: ClassVar[Phase] = Phase.SHRINK

    coef: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.coef < math.inf:
            raise ValueError(f"weight_decay wants a finite coef >= 0; found {self.coef}.")

    @torch.no_grad()
    def after_step(self, state) -> None:
        factor = 1.0 - state.lr * self.coef
        for name, role in state.roles.items():
            if role in (Role.WEIGHT, Role.OUTPUT, Role.EMBEDDING):
                state.params[name].mul_(factor)
