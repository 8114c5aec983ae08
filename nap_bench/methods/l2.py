"""L2 regularisation: a quadratic penalty in the loss, which the optimizer sees (an arm of the NaP paper, Fig. 5)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nap_bench.methods.base import Method
from nap_bench.models.roles import Role
from nap_bench.spec import nearest

OVER = {
    "all": tuple(Role),
    "weights_and_biases": (Role.WEIGHT, Role.OUTPUT, Role.BIAS, Role.EMBEDDING, Role.UNIT_SCALE),
    "weights": (Role.WEIGHT, Role.OUTPUT, Role.EMBEDDING, Role.UNIT_SCALE),
}
"""Named choices of what is regularised."""


def strengths(state, coef: float, over: str) -> Tensor:
    """[P]: the coefficient of each entry, 0 for those left alone."""
    return state.of_roles(*OVER[over]).to(state.values.dtype) * coef


@dataclass(frozen=True)
class L2(Method):
    """The penalty coef/2 ||theta||^2: coef * theta is added to the gradient, once it is clipped and before the optimizer sees it.

    Under Adam it is therefore rescaled like any gradient; `weight_decay` is the decoupled kind.

    coef: >= 0, with the factor 1/2; 0 is the baseline, bit for bit.
    over: "weights_and_biases" (all but a norm's scale and offset), "weights" (hidden, output and embeddings), or "all" parameters.
    """

    name: ClassVar[str] = "l2"

    coef: float = 0.01
    over: str = "weights_and_biases"

    def __post_init__(self) -> None:
        if not 0 <= self.coef < math.inf:
            raise ValueError(f"l2 wants a finite coef >= 0; found {self.coef}.")
        if self.over not in OVER:
            raise ValueError(nearest(self.over, OVER, "over of l2"))

    def setup(self, state) -> dict[str, Tensor]:
        return {"coef": strengths(state, self.coef, self.over)} if self.coef else {}

    @torch.no_grad()
    def after_backward(self, state) -> None:
        if self.coef:
            state.gradient.addcmul_(state.values, state.slots[self.name]["coef"])
