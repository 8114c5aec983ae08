"""Layers with a native seed axis: axis 0 of every parameter and activation is S. The only file that knows how.

Shape suffixes: S seeds, B batch, D features, I inputs, O outputs.

Modules only declare parameters (on the meta device) and say how they start; `state.build` gives them storage. Nothing here
reduces over S, so a seed trained in a block equals the seed trained alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Draw = Callable[[tuple[int, ...], torch.Generator], Tensor]
"""(shape of one seed's tensor, generator) -> float32 tensor on the CPU."""


def declare(num_seeds: int, *shape: int) -> nn.Parameter:
    """A parameter [S, *shape] without storage."""
    return nn.Parameter(torch.empty(num_seeds, *shape, device="meta"))


def uniform(bound: float) -> Draw:
    return lambda shape, gen: torch.empty(shape).uniform_(-bound, bound, generator=gen)


def normal(std: float) -> Draw:
    return lambda shape, gen: torch.empty(shape).normal_(0.0, std, generator=gen)


def constant(value: float) -> Draw:
    return lambda shape, gen: torch.full(shape, value)


def weight_draw(init: str, fan_in: int, scale: float = 1.0) -> Draw:
    """`torch`: U(+-1/sqrt(fan_in)), what nn.Linear does; `he`: N(0, 2/fan_in) (He et al. 2015); both times `scale`."""
    if init == "torch":
        return uniform(scale / math.sqrt(fan_in))
    if init == "he":
        return normal(scale * math.sqrt(2.0 / fan_in))
    raise ValueError(f"Unknown init {init!r}. Known: torch, he.")


def bias_draw(init: str, fan_in: int) -> Draw:
    return uniform(1.0 / math.sqrt(fan_in)) if init == "torch" else constant(0.0)


class Linear(nn.Module):
    """A hidden layer, x_SBI -> x_SBO. weight [S, I, O], so that its gradient comes out contiguous; bias [S, O] or None."""

    def __init__(self, num_seeds: int, inputs: int, outputs: int, *, bias: bool, init: str, init_scale: float = 1.0):
        super().__init__()
        self.weight = declare(num_seeds, inputs, outputs)
        self.bias = declare(num_seeds, outputs) if bias else None
        self.draws = {"weight": weight_draw(init, inputs, init_scale), "bias": bias_draw(init, inputs)}

    def forward(self, x_SBI: Tensor) -> Tensor:
        if self.bias is None:
            return torch.bmm(x_SBI, self.weight)
        return torch.baddbmm(self.bias.unsqueeze(1), x_SBI, self.weight)


class Output(Linear):
    """The final linear layer: nothing normalises what it returns, so its scale is part of the function."""


class LayerNorm(nn.Module):
    """(h - mean) / sqrt(var + eps) over features, then scale and offset (Ba et al. 2016). scale, offset [S, D] or None."""

    def __init__(self, num_seeds: int, features: int, *, eps: float, affine: bool):
        super().__init__()
        self.eps = eps
        self.scale = declare(num_seeds, features) if affine else None
        self.offset = declare(num_seeds, features) if affine else None
        self.draws = {"scale": constant(1.0), "offset": constant(0.0)}

    def normalise(self, h_SBD: Tensor) -> Tensor:
        return F.layer_norm(h_SBD, h_SBD.shape[-1:], eps=self.eps)

    def forward(self, h_SBD: Tensor) -> Tensor:
        unit_SBD = self.normalise(h_SBD)
        if self.scale is None:
            return unit_SBD
        return torch.addcmul(self.offset.unsqueeze(1), unit_SBD, self.scale.unsqueeze(1))


class RMSNorm(LayerNorm):
    """h / sqrt(mean(h^2) + eps), then scale and offset: LayerNorm without centring (paper 3.1; Zhang & Sennrich 2019)."""

    def normalise(self, h_SBD: Tensor) -> Tensor:
        return F.rms_norm(h_SBD, h_SBD.shape[-1:], eps=self.eps)


NORMS: dict[str, type[nn.Module]] = {"layer": LayerNorm, "rms": RMSNorm}
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu}
