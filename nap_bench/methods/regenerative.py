"""Regenerative regularisation, L2-Init: a pull towards the initial parameters (Kumar, Marklund & Van Roy 2023, 2308.11958)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nap_bench.methods.base import Method
from nap_bench.methods.l2 import OVER, strengths
from nap_bench.spec import nearest

DISTANCES = ("squared", "l1", "norm")


@dataclass(frozen=True)
class Regenerative(Method):
    """A penalty on the distance d = theta - theta_0 to the initial parameters; its gradient is added once the loss's is clipped.

    coef: >= 0; 0 is the baseline, bit for bit.
    distance: "squared", coef/2 ||d||^2 (the method); "l1", coef ||d||_1 (Kumar's L1-Init); "norm", coef ||d|| over all regularised
      parameters together, whose pull does not fade near theta_0 (RLE-Foundation/Plasticine). At d = 0 the pull is 0.
    over: as for `l2`: "weights_and_biases" (all but a norm's scale and offset), "weights", or "all".
    """

    name: ClassVar[str] = "regenerative"

    coef: float = 0.01
    distance: str = "squared"
    over: str = "weights_and_biases"

    def __post_init__(self) -> None:
        if not 0 <= self.coef < math.inf:
            raise ValueError(f"regenerative wants a finite coef >= 0; found {self.coef}.")
        if self.distance not in DISTANCES:
            raise ValueError(nearest(self.distance, DISTANCES, "distance of regenerative"))
        if self.over not in OVER:
            raise ValueError(nearest(self.over, OVER, "over of regenerative"))

    def setup(self, state) -> dict[str, Tensor]:
        if not self.coef:
            return {}
        return {"initial": state.values.clone(), "coef": strengths(state, self.coef, self.over)}

    @torch.no_grad()
    def after_backward(self, state) -> None:
        if not self.coef:
            return
        slots = state.slots[self.name]
        if self.distance == "squared":
            state.gradient.addcmul_(state.values, slots["coef"]).addcmul_(slots["initial"], slots["coef"], value=-1.0)
            return
        pull_SP = state.values - slots["initial"]
        if self.distance == "l1":
            pull_SP.sign_()
        else:
            pull_SP.mul_(slots["coef"] > 0)
            norm_S1 = torch.linalg.vector_norm(pull_SP, dim=1, keepdim=True)
            pull_SP.div_(torch.where(norm_S1 > 0, norm_S1, 1.0))
        state.gradient.addcmul_(pull_SP, slots["coef"])
