"""UPGD: useful weights move little, the others move and are perturbed (Elsayed & Mahmood 2024, arXiv 2404.00781)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nap_bench.methods.base import Method, Phase
from nap_bench.spec import Run


@dataclass(frozen=True)
class UPGD(Method):
    """Utility-based perturbed gradient descent, first order, with one largest utility for the whole network of each seed.

        u <- decay u + (1 - decay) (-g w),   s = sigmoid(u / max u),   w <- w + (d - lr sigma n) (1 - s)

    d is the optimizer's step: -lr g for plain SGD, which is the paper's algorithm; for Adam its own, which is the authors'
    adaptive variant. g is the gradient of the loss and of penalties that go backward, clipped, before other methods edit it;
    n ~ N(0, 1) for every entry. The correction of the running mean's bias is the same for every entry and cancels in u / max u.
    Where no utility is positive, s is 1/2.

    sigma: >= 0; 0 draws nothing.  decay: in [0, 1).
    gated: False puts 0 in place of s: perturbed gradient descent; with sigma=0 the baseline, bit for bit.
    """

    name: ClassVar[str] = "upgd"
    phase: ClassVar[Phase] = Phase.STEP

    sigma: float = 0.001
    decay: float = 0.999
    gated: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.sigma < math.inf:
            raise ValueError(f"upgd wants a finite sigma >= 0; found {self.sigma}.")
        if not 0.0 <= self.decay < 1.0:
            raise ValueError(f"upgd wants decay in [0, 1); found {self.decay}.")

    def why_not(self, run: Run) -> str | None:
        if self.gated and "implicit_schedule" in {part.name for part in run.methods}:
            return "implicit_schedule rescales weights between gradient and step: a part of that change is no step"
        return None

    def setup(self, state) -> dict[str, Tensor]:
        """utility, before, gate [S, P]: running mean of -g w, weights before the step, and 1 - s."""
        return {key: torch.zeros_like(state.flat.grad) for key in ("utility", "before", "gate")} if self.gated else {}

    @torch.no_grad()
    def after_backward(self, state) -> None:
        if self.gated:
            slots = state.slots[self.name]
            slots["utility"].mul_(self.decay).addcmul_(state.flat.grad, state.flat, value=self.decay - 1.0)
            slots["before"].copy_(state.flat)

    @torch.no_grad()
    def after_step(self, state) -> None:
        if not self.gated:
            self._perturb(state)
            return
        utility, before, gate = (state.slots[self.name][key] for key in ("utility", "before", "gate"))
        largest_S1 = utility.amax(dim=1, keepdim=True)
        torch.mul(utility, torch.where(largest_S1 > 0, -1.0 / largest_S1, 0.0), out=gate).sigmoid_()
        moved = state.flat.detach().sub_(before)
        self._perturb(state)
        torch.addcmul(before, moved, gate, out=moved)

    def _perturb(self, state) -> None:
        if self.sigma:
            noise_SP = state.normal(self.name)
            state.values.addcmul_(noise_SP, (-self.sigma * state.lr).to(noise_SP.dtype))
