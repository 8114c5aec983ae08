"""Layers with a native seed axis: axis 0 of every parameter and activation is S. The only file that knows how.

Shape suffixes: S seeds, B batch, D features, I inputs, O outputs, C channels, H height, W width.

Modules only declare parameters (on the meta device) and say how they start; `state.build` gives them storage. Nothing here
reduces over S, so a seed trained in a block equals the seed trained alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nap_bench.spec import ModelSpec, nearest

Draw = Callable[[tuple[int, ...], torch.Generator], Tensor]
"""(shape of one seed's tensor, generator) -> float32 tensor on the CPU."""


@dataclass(frozen=True)
class Group:
    """Parameters projected as one: names, and whether the output is invariant to their common scale."""

    name: str
    members: tuple[str, ...]
    scale_invariant: bool


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


class Conv2d(nn.Module):
    """A hidden convolution with `kernel` x `kernel` weights, stride 1, zero padding that keeps the size: x_SBIHW -> x_SBOHW.

    weight [S, O, I, kernel, kernel] (the structured matrix of paper A.1 is made of it); bias [S, O] or None.
    On a CPU a loop over seeds, each in channels_last; elsewhere one grouped convolution (bench/cnn.py measures both).
    """

    def __init__(
        self, num_seeds: int, inputs: int, outputs: int, *, kernel: int, bias: bool, init: str, init_scale: float = 1.0
    ):
        super().__init__()
        fan_in = inputs * kernel * kernel
        self.padding = kernel // 2
        self.weight = declare(num_seeds, outputs, inputs, kernel, kernel)
        self.bias = declare(num_seeds, outputs) if bias else None
        self.draws = {"weight": weight_draw(init, fan_in, init_scale), "bias": bias_draw(init, fan_in)}

    def forward(self, x_SBIHW: Tensor) -> Tensor:
        return self.by_seed(x_SBIHW) if x_SBIHW.device.type == "cpu" else self.grouped(x_SBIHW)

    def by_seed(self, x_SBIHW: Tensor) -> Tensor:
        biases = self.bias if self.bias is not None else [None] * len(self.weight)
        out = [
            F.conv2d(x.contiguous(memory_format=torch.channels_last), weight, bias, padding=self.padding)
            for x, weight, bias in zip(x_SBIHW, self.weight, biases, strict=True)
        ]
        return torch.stack(out)

    def grouped(self, x_SBIHW: Tensor) -> Tensor:
        num_seeds, num_examples, _, height, width = x_SBIHW.shape
        bias = None if self.bias is None else self.bias.flatten()
        x = x_SBIHW.transpose(0, 1).flatten(1, 2)
        out = F.conv2d(x, self.weight.flatten(0, 1), bias, padding=self.padding, groups=num_seeds)
        return out.view(num_examples, num_seeds, -1, height, width).transpose(0, 1)


class Output(Linear):
    """The final linear layer: nothing normalises what it returns, so its scale is part of the function."""


class LayerNorm(nn.Module):
    """(h - mean) / sqrt(var + eps), then scale and offset (Ba et al. 2016). scale, offset [S, D] or None.

    Statistics over all that belongs to one example: D features of h_SBD; C, H and W of h_SBCHW (paper A.1 normalises the whole
    vector), with a scale and an offset per channel.
    """

    def __init__(self, num_seeds: int, features: int, *, eps: float, affine: bool):
        super().__init__()
        self.eps = eps
        self.scale = declare(num_seeds, features) if affine else None
        self.offset = declare(num_seeds, features) if affine else None
        self.draws = {"scale": constant(1.0), "offset": constant(0.0)}

    def normalise(self, h: Tensor) -> Tensor:
        return F.layer_norm(h, h.shape[2:], eps=self.eps)

    def forward(self, h: Tensor) -> Tensor:
        unit = self.normalise(h)
        if self.scale is None:
            return unit
        per_feature = (len(self.scale), 1, -1, *[1] * (h.dim() - 3))
        return torch.addcmul(self.offset.view(per_feature), unit, self.scale.view(per_feature))


class RMSNorm(LayerNorm):
    """h / sqrt(mean(h^2) + eps), then scale and offset: LayerNorm without centring (paper 3.1; Zhang & Sennrich 2019)."""

    def normalise(self, h: Tensor) -> Tensor:
        return F.rms_norm(h, h.shape[2:], eps=self.eps)


NORMS: dict[str, type[LayerNorm]] = {"layer": LayerNorm, "rms": RMSNorm}
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu}


def norm_of(spec: ModelSpec, num_seeds: int, features: int) -> LayerNorm:
    """The norm that a spec asks for. Raises for an unknown one."""
    if spec.norm not in NORMS:
        raise ValueError(nearest(spec.norm, ["none", *NORMS], "norm"))
    return NORMS[spec.norm](num_seeds, features, eps=spec.norm_eps, affine=spec.norm_affine)


def activation_of(spec: ModelSpec) -> Callable[[Tensor], Tensor]:
    """The nonlinearity that a spec asks for. Raises for an unknown one."""
    if spec.activation not in ACTIVATIONS:
        raise ValueError(nearest(spec.activation, ACTIVATIONS, "activation"))
    return ACTIVATIONS[spec.activation]
