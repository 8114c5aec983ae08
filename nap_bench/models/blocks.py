"""Layers with a native seed axis: axis 0 of every parameter and activation is S. The only file that knows how.

Shape suffixes: S seeds, B batch, D features, I inputs, O outputs, C channels, H height, W width.

Modules only declare parameters (on the meta device) and say how they start; `state.build` gives them storage. Nothing here
reduces over S, so a seed trained in a block equals the seed trained alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nap_bench.spec import ModelSpec, nearest


@dataclass(frozen=True)
class Draw:
    """How the entries of a parameter start, each independently: their standard deviation, and how they are drawn.

    sample: (shape of one seed's tensor, generator) -> float32 tensor on the CPU.
    """

    std: float
    sample: Callable[[tuple[int, ...], torch.Generator], Tensor]


@dataclass(frozen=True)
class Group:
    """Parameters projected as one: names, and whether the output is invariant to their common scale."""

    name: str
    members: tuple[str, ...]
    scale_invariant: bool


@dataclass(frozen=True)
class Units:
    """The units of one hidden layer and the names of the parameters around them (see `TrainState.by_unit`).

    name: their key among post-activations.  size: how many, U.  features: how many post-activations each has (2 for "crelu").
    incoming: weight, and bias if there is one.  norm: scale and offset of the norm between, if any.  outgoing: weights that read
    them.
    """

    name: str
    size: int
    features: int
    incoming: tuple[str, ...]
    norm: tuple[str, ...]
    outgoing: tuple[str, ...]


def chain(spec: ModelSpec, layers: Sequence[str], sizes: Sequence[int]) -> tuple[Units, ...]:
    """Units of hidden layers that follow each other: paths of their modules (then `norms.<index>`, at last `output`), and sizes."""
    has_norm = spec.norm != "none"
    return tuple(
        Units(
            name=f"layer{index}",
            size=size,
            features=features_per_unit(spec),
            incoming=(f"{layer}.weight",) if has_norm else (f"{layer}.weight", f"{layer}.bias"),
            norm=(f"norms.{index}.scale", f"norms.{index}.offset") if has_norm and spec.norm_affine else (),
            outgoing=(f"{after}.weight",),
        )
        for index, (layer, after, size) in enumerate(zip(layers, [*layers[1:], "output"], sizes, strict=True))
    )


def declare(num_seeds: int, *shape: int) -> nn.Parameter:
    """A parameter [S, *shape] without storage."""
    return nn.Parameter(torch.empty(num_seeds, *shape, device="meta"))


def uniform(bound: float) -> Draw:
    return Draw(bound / math.sqrt(3.0), lambda shape, gen: torch.empty(shape).uniform_(-bound, bound, generator=gen))


def normal(std: float) -> Draw:
    return Draw(std, lambda shape, gen: torch.empty(shape).normal_(0.0, std, generator=gen))


def constant(value: float) -> Draw:
    return Draw(0.0, lambda shape, gen: torch.full(shape, value))


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
    """A hidden convolution with `kernel` x `kernel` weights: x_SBIHW -> x_SBOHW. padding: zeros on each side, by default what keeps
    the size at stride 1.

    weight [S, O, I, kernel, kernel] (the structured matrix of paper A.1 is made of it); bias [S, O] or None.
    On a CPU a loop over seeds, each in channels_last; elsewhere one grouped convolution (bench/cnn.py measures both).
    """

    def __init__(
        self,
        num_seeds: int,
        inputs: int,
        outputs: int,
        *,
        kernel: int,
        bias: bool,
        init: str,
        init_scale: float = 1.0,
        stride: int = 1,
        padding: int | None = None,
    ):
        super().__init__()
        fan_in = inputs * kernel * kernel
        self.stride, self.padding = stride, kernel // 2 if padding is None else padding
        self.weight = declare(num_seeds, outputs, inputs, kernel, kernel)
        self.bias = declare(num_seeds, outputs) if bias else None
        self.draws = {"weight": weight_draw(init, fan_in, init_scale), "bias": bias_draw(init, fan_in)}

    def forward(self, x_SBIHW: Tensor) -> Tensor:
        return self.by_seed(x_SBIHW) if x_SBIHW.device.type == "cpu" else self.grouped(x_SBIHW)

    def by_seed(self, x_SBIHW: Tensor) -> Tensor:
        """Seeds stay channels_last in memory from layer to layer and back: split and cat keep that, unbind and stack do not."""
        biases = self.bias.unbind() if self.bias is not None else [None] * len(self.weight)
        examples = x_SBIHW.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        out = [
            F.conv2d(x, weight, bias, stride=self.stride, padding=self.padding)
            for x, weight, bias in zip(examples.split(x_SBIHW.shape[1]), self.weight.unbind(), biases, strict=True)
        ]
        return torch.cat(out).unflatten(0, x_SBIHW.shape[:2])

    def grouped(self, x_SBIHW: Tensor) -> Tensor:
        num_seeds = len(x_SBIHW)
        bias = None if self.bias is None else self.bias.flatten()
        x = x_SBIHW.transpose(0, 1).flatten(1, 2)
        out = F.conv2d(
            x, self.weight.flatten(0, 1), bias, stride=self.stride, padding=self.padding, groups=num_seeds
        )
        return out.unflatten(1, (num_seeds, -1)).transpose(0, 1)


class Output(Linear):
    """The final linear layer: nothing normalises what it returns, so its scale is part of the function."""


class LayerNorm(nn.Module):
    """(h - mean) / sqrt(var + eps), then scale and offset (Ba et al. 2016). scale, offset [S, D] or None.

    Statistics over all that belongs to one example: D features of h_SBD; C, H and W of h_SBCHW (paper A.1 normalises the whole
    vector), with a scale and an offset per channel.
    """

    def __init__(self, spec: ModelSpec, num_seeds: int, features: int):
        super().__init__()
        self.eps = spec.norm_eps
        self.scale = declare(num_seeds, features) if spec.norm_affine else None
        self.offset = declare(num_seeds, features) if spec.norm_affine else None
        self.draws = {"scale": constant(1.0), "offset": constant(0.0)}

    def normalise(self, h: Tensor) -> Tensor:
        return F.layer_norm(h, h.shape[2:], eps=self.eps)

    def forward(self, h: Tensor) -> Tensor:
        unit = self.normalise(h)
        if self.scale is None:
            return unit
        shape = per_feature(h)
        return torch.addcmul(self.offset.view(shape), unit, self.scale.view(shape))


def per_feature(h: Tensor) -> tuple[int, ...]:
    """The shape in which a tensor [S, D] meets h_SBD or h_SBDHW."""
    return (len(h), 1, -1, *[1] * (h.dim() - 3))


class RMSNorm(LayerNorm):
    """h / sqrt(mean(h^2) + eps), then scale and offset: LayerNorm without centring (paper 3.1; Zhang & Sennrich 2019)."""

    def normalise(self, h: Tensor) -> Tensor:
        return F.rms_norm(h, h.shape[2:], eps=self.eps)


class GroupNorm(LayerNorm):
    """LayerNorm of each of `norm_groups` equal groups of features or channels by itself (Wu & He 2018)."""

    def __init__(self, spec: ModelSpec, num_seeds: int, features: int):
        super().__init__(spec, num_seeds, features)
        self.num_groups = spec.norm_groups
        if features % self.num_groups:
            raise ValueError(
                f"Group norm wants every layer's size to be a multiple of norm_groups={self.num_groups}; found a layer of "
                f"{features}. Choose another size or number of groups."
            )

    def normalise(self, h: Tensor) -> Tensor:
        grouped = h.unflatten(2, (self.num_groups, -1))
        return F.layer_norm(grouped, grouped.shape[3:], eps=self.eps).flatten(2, 3)


class BatchNorm(LayerNorm):
    """Each feature or channel of each seed normalised over the batch (Ioffe & Szegedy 2015), and over H and W of feature maps.

    Training uses the batch's own mean and variance and lets the running ones follow (momentum 0.1, unbiased variance, as
    PyTorch does); evaluation uses the running ones. running_mean, running_var [S, D] start at 0 and 1.
    """

    MOMENTUM = 0.1

    def __init__(self, spec: ModelSpec, num_seeds: int, features: int):
        super().__init__(spec, num_seeds, features)
        for name in ("running_mean", "running_var"):
            self.register_buffer(name, torch.empty(num_seeds, features, device="meta"))
        self.starts = {"running_mean": 0.0, "running_var": 1.0}

    def normalise(self, h: Tensor) -> Tensor:
        shape = per_feature(h)
        if not self.training:
            return (h - self.running_mean.view(shape)) * torch.rsqrt(self.running_var.view(shape) + self.eps)
        over = (1, *range(3, h.dim()))
        size = h.numel() // self.running_mean.numel()
        if size < 2:
            raise ValueError("Batch norm wants more than one example in a training batch; found one. Raise batch_size.")
        mean = h.mean(dim=over, keepdim=True)
        centred = h - mean
        var = centred.square().mean(dim=over, keepdim=True)
        with torch.no_grad():
            self.running_mean.lerp_(mean.view_as(self.running_mean), self.MOMENTUM)
            self.running_var.lerp_(var.view_as(self.running_var) * (size / (size - 1)), self.MOMENTUM)
        return centred * torch.rsqrt(var + self.eps)


NORMS: dict[str, type[LayerNorm]] = {"batch": BatchNorm, "group": GroupNorm, "layer": LayerNorm, "rms": RMSNorm}


def crelu(h: Tensor) -> Tensor:
    """relu(h) and relu(-h) side by side, twice the features (Shang et al. 2016; Abbas et al. 2023)."""
    return F.relu(torch.cat([h, -h], dim=2))


ACTIVATIONS = ("crelu", "leaky_relu", "relu", "tanh")


def norm_of(spec: ModelSpec, num_seeds: int, features: int) -> LayerNorm:
    """The norm that a spec asks for. Raises for an unknown one."""
    if spec.norm not in NORMS:
        raise ValueError(nearest(spec.norm, ["none", *NORMS], "norm"))
    return NORMS[spec.norm](spec, num_seeds, features)


def activation_of(spec: ModelSpec) -> Callable[[Tensor], Tensor]:
    """The nonlinearity that a spec asks for. Raises for an unknown one."""
    if spec.activation not in ACTIVATIONS:
        raise ValueError(nearest(spec.activation, ACTIVATIONS, "activation"))
    if spec.activation == "leaky_relu":
        return partial(F.leaky_relu, negative_slope=spec.negative_slope)
    return {"crelu": crelu, "relu": F.relu, "tanh": torch.tanh}[spec.activation]


def features_per_unit(spec: ModelSpec) -> int:
    """How many post-activations a unit has."""
    return 2 if spec.activation == "crelu" else 1


def hidden_scale(spec: ModelSpec) -> float:
    """What multiplies a hidden weight's initial draw: He's gain for a leaky ReLU of slope a is sqrt(2 / (1 + a^2))."""
    leaky = spec.init == "he" and spec.activation == "leaky_relu"
    return spec.init_scale / math.sqrt(1.0 + spec.negative_slope**2) if leaky else spec.init_scale
