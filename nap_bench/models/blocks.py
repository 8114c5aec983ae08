"""Layers with a native seed axis: axis 0 of every parameter and activation is S. The only file that knows how.

Shape suffixes: S seeds, B batch, D features, I inputs, O outputs, C channels, H height, W width.

Modules only declare parameters (on the meta device) and say how they start; `state.build` gives them storage. Nothing here
reduces over S, so a seed trained in a block equals the seed trained alone.
"""

from __future__ import annotations

import dataclasses
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
    return tuple(
        Units(
            name=f"layer{index}",
            size=size,
            features=features_per_unit(spec),
            incoming=(f"{layer}.weight",) if has_norm(spec) else (f"{layer}.weight", f"{layer}.bias"),
            norm=norm_names(spec, f"norms.{index}"),
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
        out = F.conv2d(x, self.weight.flatten(0, 1), bias, stride=self.stride, padding=self.padding, groups=num_seeds)
        return out.unflatten(1, (num_seeds, -1)).transpose(0, 1)


class Output(Linear):
    """The final linear layer: nothing normalises what it returns, so its scale is part of the function."""


class Embedding(nn.Module):
    """A table of `num_rows` vectors, weight [S, R, D], each entry N(0, 1) as PyTorch's: index_S... (int64) -> x_S...D."""

    def __init__(self, num_seeds: int, num_rows: int, features: int):
        super().__init__()
        self.weight = declare(num_seeds, num_rows, features)
        self.draws = {"weight": normal(1.0)}

    def forward(self, index: Tensor) -> Tensor:
        num_seeds, num_rows = self.weight.shape[:2]
        first = torch.arange(0, num_seeds * num_rows, num_rows, device=index.device)
        return F.embedding(index + first.view(-1, *[1] * (index.dim() - 1)), self.weight.flatten(0, 1))

    def rows(self, num_rows: int) -> Tensor:
        """The first rows, [S, num_rows, D]."""
        return self.weight[:, :num_rows]


class NoisyLinear(Linear):
    """A hidden layer whose weights and biases are perturbed by factorised noise (Fortunato et al. 2018): x_SBI -> x_SBO.

        y = x (W + W' * e_in e_out^T) + b + b' * e_out

    W [S, I, O] and b [S, O] or None are the means, as in `Linear`; W' = noise_weight and b' = noise_bias, always there, start at
    sigma / sqrt(I). e_in [S, R, I] and e_out [S, R, O] are given: with R = 1 one draw for the whole batch, else one per example.
    """

    def __init__(
        self,
        num_seeds: int,
        inputs: int,
        outputs: int,
        *,
        bias: bool,
        init: str,
        sigma: float,
        init_scale: float = 1.0,
    ):
        super().__init__(num_seeds, inputs, outputs, bias=bias, init=init, init_scale=init_scale)
        self.noise_weight = declare(num_seeds, inputs, outputs)
        self.noise_bias = declare(num_seeds, outputs)
        self.draws |= dict.fromkeys(("noise_weight", "noise_bias"), constant(sigma / math.sqrt(inputs)))

    def forward(self, x_SBI: Tensor, e_in: Tensor, e_out: Tensor) -> Tensor:
        """One draw perturbs the weights; a draw per example their product, the same sums in another order (faster for few rows)."""
        noise_bias = self.noise_bias.unsqueeze(1)
        if e_in.shape[1] > 1:
            return torch.addcmul(
                super().forward(x_SBI), torch.baddbmm(noise_bias, x_SBI * e_in, self.noise_weight), e_out
            )
        weight = torch.addcmul(self.weight, self.noise_weight, e_in.transpose(1, 2) * e_out)
        bias = noise_bias * e_out if self.bias is None else torch.addcmul(self.bias.unsqueeze(1), noise_bias, e_out)
        return torch.baddbmm(bias, x_SBI, weight)


class NoisyOutput(NoisyLinear):
    """A final noisy layer: nothing normalises what it returns. Its bias is noise only (DQN Zoo)."""

    def __init__(self, num_seeds: int, inputs: int, outputs: int, *, init: str, sigma: float):
        super().__init__(num_seeds, inputs, outputs, bias=False, init=init, sigma=sigma)


class LayerNorm(nn.Module):
    """(h - mean) / sqrt(var + eps), then scale and offset (Ba et al. 2016). scale, offset [S, D] or None.

    Statistics over all that belongs to one example: D features of h_SBD; C, H and W of h_SBCHW (paper A.1 normalises the whole
    vector), with a scale and an offset per channel.  has_offset: False where another norm follows (paper A.4).
    """

    def __init__(self, spec: ModelSpec, num_seeds: int, features: int, *, has_offset: bool = True):
        super().__init__()
        self.eps = spec.norm_eps
        self.scale = declare(num_seeds, features) if spec.norm_affine else None
        self.offset = declare(num_seeds, features) if spec.norm_affine and has_offset else None
        self.draws = {"scale": constant(1.0), "offset": constant(0.0)}

    def normalise(self, h: Tensor) -> Tensor:
        return F.layer_norm(h, h.shape[2:], eps=self.eps)

    def forward(self, h: Tensor) -> Tensor:
        unit = self.normalise(h)
        if self.scale is None:
            return unit
        shape = per_feature(h)
        if self.offset is None:
            return unit * self.scale.view(shape)
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

    def __init__(self, spec: ModelSpec, num_seeds: int, features: int, *, has_offset: bool = True):
        super().__init__(spec, num_seeds, features, has_offset=has_offset)
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

    def __init__(self, spec: ModelSpec, num_seeds: int, features: int, *, has_offset: bool = True):
        super().__init__(spec, num_seeds, features, has_offset=has_offset)
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


class Attention(nn.Module):
    """Causal attention of `heads` heads, x_SND -> y_SND; N = B x T tokens, string after string. No token sees a later one.

    With a norm in the spec, whichever, queries and keys pass through RMSNorm without offset over all D features of a token,
    before heads are split (paper A.4). Queries, keys and values have no bias; `out` has one.
    """

    def __init__(self, spec: ModelSpec, num_seeds: int, features: int, heads: int):
        super().__init__()
        if heads < 1 or features % heads:
            raise ValueError(f"Attention wants a number of heads that divides d_model={features}; found {heads}.")
        self.heads = heads
        for name in ("query", "key", "value", "out"):
            linear = Linear(
                num_seeds, features, features, bias=name == "out", init=spec.init, init_scale=spec.init_scale
            )
            setattr(self, name, linear)
        for name in ("query_norm", "key_norm"):
            norm = nn.Identity() if spec.norm == "none" else RMSNorm(spec, num_seeds, features, has_offset=False)
            setattr(self, name, norm)

    def forward(self, x_SND: Tensor, shape: tuple[int, int]) -> Tensor:
        """shape: (B, T)."""
        query, key = self.query_norm(self.query(x_SND)), self.key_norm(self.key(x_SND))
        parts = [part.unflatten(1, shape).flatten(0, 1) for part in (query, key, self.value(x_SND))]  # [S x B, T, D]
        heads = [part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in parts]
        mixed = F.scaled_dot_product_attention(*heads, is_causal=True)  # [S x B, heads, T, D / heads]
        return self.out(mixed.transpose(1, 2).reshape(x_SND.shape))


NORMS: dict[str, type[LayerNorm]] = {"batch": BatchNorm, "group": GroupNorm, "layer": LayerNorm, "rms": RMSNorm}


def crelu(h: Tensor) -> Tensor:
    """relu(h) and relu(-h) side by side, twice the features (Shang et al. 2016; Abbas et al. 2023)."""
    return F.relu(torch.cat([h, -h], dim=2))


ACTIVATIONS = ("crelu", "leaky_relu", "relu", "tanh")


OWN_NORMS = ("batch", "none")


def own_norm(spec: ModelSpec) -> str:
    """The norm that a network has of its own, whatever the methods: `own_norm` of its sizes, "none" where they name none."""
    own = dict(spec.size).get("own_norm", "none")
    if own not in OWN_NORMS:
        raise ValueError(nearest(own, OWN_NORMS, "own_norm"))
    return own


def has_norm(spec: ModelSpec) -> bool:
    """Whether anything normalises what reaches a nonlinearity."""
    return spec.norm != "none" or own_norm(spec) != "none"


def norm_of(spec: ModelSpec, num_seeds: int, features: int) -> nn.Module:
    """What stands before a nonlinearity: the spec's norm, then the network's own (paper A.4, B.4: LN before BN, without offset).

    The network's own has a scale and an offset whatever `norm_affine` says. Raises for an unknown norm, and for BN before BN.
    """
    if spec.norm not in NORMS and not (spec.norm == "none" and has_norm(spec)):
        raise ValueError(nearest(spec.norm, ["none", *NORMS], "norm"))
    own = own_norm(spec)
    if own == "none":
        return NORMS[spec.norm](spec, num_seeds, features)
    last = NORMS[own](dataclasses.replace(spec, norm_affine=True), num_seeds, features)
    if spec.norm == "none":
        return last
    if spec.norm == own:
        raise ValueError(
            f"norm {spec.norm!r} before the network's own {own!r} normalises twice by the same: choose another."
        )
    return nn.Sequential(NORMS[spec.norm](spec, num_seeds, features, has_offset=False), last)


def norm_names(spec: ModelSpec, path: str) -> tuple[str, ...]:
    """Scales and offsets of what `norm_of` returns, by name, where it is registered as `path`."""
    own = own_norm(spec) != "none"
    if spec.norm == "none" or not own:
        is_affine = own or (spec.norm != "none" and spec.norm_affine)
        return (f"{path}.scale", f"{path}.offset") if is_affine else ()
    return (*((f"{path}.0.scale",) if spec.norm_affine else ()), f"{path}.1.scale", f"{path}.1.offset")


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
