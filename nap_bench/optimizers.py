"""Optimizers as parts of a run. Each steps the one flat parameter [S, P]; the learning rate comes from the schedule.

PyTorch's functions rather than its classes: same arithmetic, half the time per call, and moments are there from the start.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from nap_bench.spec import Component


@dataclass(frozen=True)
class Adam(Component):
    """Adam (Kingma & Ba 2015), PyTorch's fused kernel. clip_norm: largest gradient norm per seed, None for no clipping."""

    name: ClassVar[str] = "adam"
    steps_are_normalised: ClassVar[bool] = True
    moments: ClassVar[tuple[str, ...]] = ("exp_avg", "exp_avg_sq")

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    clip_norm: float | None = None

    def start(self, flat: Tensor) -> dict[str, Tensor]:
        """What it remembers before the first step: both moments [S, P] and the number of steps."""
        return {name: torch.zeros_like(flat) for name in self.moments} | {"step": torch.zeros((), device=flat.device)}

    def step(self, flat: Tensor, gradient: Tensor, memory: dict[str, Tensor], lr: Tensor) -> None:
        """Move the parameters and the memory in place. flat, gradient [S, P]; lr a scalar on their device."""
        adam(
            [flat],
            [gradient],
            [memory["exp_avg"]],
            [memory["exp_avg_sq"]],
            [],
            [memory["step"]],
            fused=True,
            capturable=lr.is_cuda,
            amsgrad=False,
            beta1=self.beta1,
            beta2=self.beta2,
            lr=lr,
            weight_decay=0.0,
            eps=self.eps,
            maximize=False,
        )


@dataclass(frozen=True)
class SGD(Component):
    """Stochastic gradient descent, with heavy-ball momentum if momentum > 0. clip_norm as in Adam."""

    name: ClassVar[str] = "sgd"
    steps_are_normalised: ClassVar[bool] = False
    moments: ClassVar[tuple[str, ...]] = ("momentum_buffer",)

    momentum: float = 0.0
    clip_norm: float | None = None

    def start(self, flat: Tensor) -> dict[str, Tensor]:
        """What it remembers before the first step: the momentum buffer [S, P], where there is momentum."""
        return {name: torch.zeros_like(flat) for name in self.moments} if self.momentum else {}

    def step(self, flat: Tensor, gradient: Tensor, memory: dict[str, Tensor], lr: Tensor) -> None:
        """As Adam's."""
        sgd(
            [flat],
            [gradient],
            [memory.get("momentum_buffer")],
            fused=True,
            weight_decay=0.0,
            momentum=self.momentum,
            lr=lr,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )


OPTIMIZERS = {"adam": Adam, "sgd": SGD}
