"""Gaussian noise added to every update, a heuristic Langevin dynamics (an arm of the NaP paper, Fig. 5)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from nap_bench.methods.base import Method, Phase
from nap_bench.spec import nearest

SCALINGS = ("lr", "langevin", "absolute", "gradient")


@dataclass(frozen=True)
class NoisyUpdates(Method):
    """theta <- theta + s n after the optimizer's step, n ~ N(0, 1) for every entry of every parameter.

    sigma: >= 0; 0 is the baseline, bit for bit, and draws nothing.
    scaling: what s is. "lr": lr sigma, noise on the gradient of plain SGD (perturbed gradient descent, as in UPGD's suite);
      "langevin": sqrt(2 lr) sigma, Langevin dynamics of temperature sigma^2; "absolute": sigma; "gradient": lr sigma ||g||, g the
      gradient of the update, all parameters together (noise relative to it, after ajoudaki's NoisySGD).
    """

    name: ClassVar[str] = "noisy_updates"
    version: ClassVar[int] = 2
    phase: ClassVar[Phase] = Phase.SHRINK

    sigma: float = 0.01
    scaling: str = "lr"

    def __post_init__(self) -> None:
        if not 0 <= self.sigma < math.inf:
            raise ValueError(f"noisy_updates wants a finite sigma >= 0; found {self.sigma}.")
        if self.scaling not in SCALINGS:
            raise ValueError(nearest(self.scaling, SCALINGS, "scaling of noisy_updates"))

    @torch.no_grad()
    def after_step(self, state) -> None:
        if not self.sigma:
            return
        noise_SP = state.normal(self.name)
        if self.scaling == "absolute":
            state.values.add_(noise_SP, alpha=self.sigma)
            return
        scale = (2.0 * state.lr).sqrt() if self.scaling == "langevin" else state.lr
        if self.scaling == "gradient":
            scale = scale * torch.linalg.vector_norm(state.gradient, dim=1, keepdim=True)
        state.values.addcmul_(noise_SP, (scale * self.sigma).to(noise_SP.dtype))
