"""Optimizers as parts of a run. Each steps the one flat parameter [S, P]; the learning rate comes from the schedule.

PyTorch's fused kernels rather than its classes: same arithmetic, a fifth of the time per call, and moments are there from the
start.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nap_bench.spec import Component, later


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
        memory["step"] += 1
        torch._fused_adam_(
            [flat],
            [gradient],
            [memory["exp_avg"]],
            [memory["exp_avg_sq"]],
            [],
            [memory["step"]],
            amsgrad=False,
            beta1=self.beta1,
            beta2=self.beta2,
            lr=lr,
            weight_decay=0.0,
            eps=self.eps,
            maximize=False,
        )

    def rate(self, memory: dict[str, Tensor], lr: Tensor) -> Tensor:
        """The learning rate of the step just done: a scalar, or one per seed."""
        return lr


@dataclass(frozen=True)
class SGD(Component):
    """Stochastic gradient descent, with heavy-ball momentum if momentum > 0. clip_norm as in Adam.

    nesterov: step along gradient + momentum * buffer, the buffer after its update, as PyTorch does (Sutskever et al. 2013).
    """

    name: ClassVar[str] = "sgd"
    steps_are_normalised: ClassVar[bool] = False
    moments: ClassVar[tuple[str, ...]] = ("momentum_buffer",)

    momentum: float = 0.0
    clip_norm: float | None = None
    nesterov: bool = later(False)

    def __post_init__(self) -> None:
        if self.nesterov and not self.momentum > 0.0:
            raise ValueError(f"sgd wants momentum > 0 for nesterov=True; found momentum={self.momentum}.")

    def start(self, flat: Tensor) -> dict[str, Tensor]:
        """What it remembers before the first step: the momentum buffer [S, P], where there is momentum."""
        return {name: torch.zeros_like(flat) for name in self.moments} if self.momentum else {}

    def step(self, flat: Tensor, gradient: Tensor, memory: dict[str, Tensor], lr: Tensor) -> None:
        """As Adam's."""
        torch._fused_sgd_(
            [flat],
            [gradient],
            [memory["momentum_buffer"]] if self.momentum else [],
            weight_decay=0.0,
            momentum=self.momentum,
            lr=lr,
            dampening=0.0,
            nesterov=self.nesterov,
            maximize=False,
            is_first_step=False,
        )

    def rate(self, memory: dict[str, Tensor], lr: Tensor) -> Tensor:
        """As Adam's."""
        return lr


@dataclass(frozen=True)
class Prodigy(Component):
    """Adam whose rate is lr times an estimate d of the distance to a solution (Mishchenko & Defazio 2023, arXiv 2306.06101).

        m <- b1 m + (1 - b1) d g,   v <- b2 v + (1 - b2) d^2 g^2
        r <- sqrt(b2) r + (1 - sqrt(b2)) lr d^2 <g, x_0 - x>,   s <- sqrt(b2) s + (1 - sqrt(b2)) lr d^2 g
        x <- x - lr d m / (sqrt(v) + d eps),   d <- max(d, r / |s|_1)

    Algorithm 4, without bias correction; a rate for every seed. x_0 - x is the sum of the steps taken since the last reset: what
    else moves parameters, such as a projection, is not among them.  start_distance: d at first, > 0.  clip_norm as in Adam.
    """

    name: ClassVar[str] = "prodigy"
    steps_are_normalised: ClassVar[bool] = True
    moments: ClassVar[tuple[str, ...]] = ("exp_avg", "exp_avg_sq")

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    start_distance: float = 1e-6
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        if not self.start_distance > 0.0:
            raise ValueError(f"prodigy wants start_distance > 0; found {self.start_distance}.")

    def start(self, flat: Tensor) -> dict[str, Tensor]:
        """As Adam's; `slow` and `moved` are s and x_0 - x [S, P]; `dot` and `distance` are r and d [S, 1]."""
        wide = {name: torch.zeros_like(flat) for name in (*self.moments, "slow", "moved")}
        return wide | {name: torch.zeros_like(flat[:, :1]) for name in ("dot", "distance")}

    def distance(self, memory: dict[str, Tensor]) -> Tensor:
        """[S, 1]"""
        return memory["distance"].clamp(min=self.start_distance)

    def step(self, flat: Tensor, gradient: Tensor, memory: dict[str, Tensor], lr: Tensor) -> None:
        """As Adam's."""
        d_S1, slowly = self.distance(memory), self.beta2**0.5
        weight_S1 = (1.0 - slowly) * lr * d_S1.square()
        memory["dot"].mul_(slowly).add_(weight_S1 * (gradient * memory["moved"]).sum(dim=1, keepdim=True))
        memory["slow"].mul_(slowly).addcmul_(gradient, weight_S1)
        memory["exp_avg"].mul_(self.beta1).addcmul_(gradient, (1.0 - self.beta1) * d_S1)
        memory["exp_avg_sq"].mul_(self.beta2).addcmul_(gradient, gradient * ((1.0 - self.beta2) * d_S1.square()))
        move = lr * d_S1 * memory["exp_avg"] / (memory["exp_avg_sq"].sqrt() + d_S1 * self.eps)
        found_S1 = memory["dot"] / memory["slow"].abs().sum(dim=1, keepdim=True)
        memory["distance"].copy_(torch.fmax(d_S1, found_S1))  # 0 / 0 before anything has moved
        memory["moved"] += move
        flat -= move

    def rate(self, memory: dict[str, Tensor], lr: Tensor) -> Tensor:
        """[S]"""
        return lr * self.distance(memory).squeeze(1)


OPTIMIZERS = {"adam": Adam, "prodigy": Prodigy, "sgd": SGD}
