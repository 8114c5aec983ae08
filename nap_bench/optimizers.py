"""Optimizers as parts of a run. Each steps the one flat parameter [S, P]; the learning rate comes from the schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

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

    def build(self, parameter: nn.Parameter, lr: Tensor) -> torch.optim.Optimizer:
        return torch.optim.Adam(
            [parameter],
            lr=lr,
            betas=(self.beta1, self.beta2),
            eps=self.eps,
            fused=True,
            capturable=lr.is_cuda,
        )


@dataclass(frozen=True)
class SGD(Component):
    """Stochastic gradient descent, with heavy-ball momentum if momentum > 0. clip_norm as in Adam."""

    name: ClassVar[str] = "sgd"
    steps_are_normalised: ClassVar[bool] = False
    moments: ClassVar[tuple[str, ...]] = ("momentum_buffer",)

    momentum: float = 0.0
    clip_norm: float | None = None

    def build(self, parameter: nn.Parameter, lr: Tensor) -> torch.optim.Optimizer:
        return torch.optim.SGD([parameter], lr=lr, momentum=self.momentum, fused=True)


OPTIMIZERS = {"adam": Adam, "sgd": SGD}
