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
from typing import ClassVar

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
            incoming=tuple(f"{layer}.{leaf}" for leaf in leaves(spec)),
            norm=norm_names(spec, f"norms.{index}"),
            outgoing=(f"{after}.weight",),
        )
        for index, (layer, after, size) in enumerate(zip(layers, [*layers, "output"][1:], sizes, strict=True))
    )


def leaves(spec: ModelSpec) -> tuple[str, ...]:
    """The parameters of a hidden layer."""
    return ("weight", *["bias"] * (not has_norm(spec)), *["unit_scale"] * (spec.unit_scale != "none"))


def declare(num_seeds: int, *shape: int) -> nn.Parameter:
    """A parameter [S, *shape] without storage."""
    return nn.Parameter(torch.empty(num_seeds, *shape, device="meta"))


def uniform(bound: float) -> Draw:
    return Draw(bound / math.sqrt(3.0), lambda shape, gen: torch.empty(shape).uniform_(-bound, bound, generator=gen))


def normal(std: float) -> Draw:
    return Draw(std, lambda shape, gen: torch.empty(shape).normal_(0.0, std, generator=gen))


def constant(value: float) -> Draw:
    return Draw(0.0, lambda shape, gen: torch.full(shape, value))


def weight_draw(init: str, fan_in: int, scale: float = 1.0, gain: float = 2.0) -> Draw:
    """`torch`: U(+-1/sqrt(fan_in)), what nn.Linear does; `he`: N(0, 2/fan_in) (He et al. 2015); `he_uniform`: U(+-sqrt(3 gain /
    fan_in)), of variance gain / fan_in, where the gain is 2 before a nonlinearity and 1 after the last; all times `scale`.
    """
    if init == "torch":
        return uniform(scale / math.sqrt(fan_in))
    if init == "he":
        return normal(scale * math.sqrt(2.0 / fan_in))
    if init == "he_uniform":
        return uniform(scale * math.sqrt(3.0 * gain / fan_in))
    raise ValueError(nearest(init, ("torch", "he", "he_uniform"), "init"))


def bias_draw(init: str, fan_in: int) -> Draw:
    return uniform(1.0 / math.sqrt(fan_in)) if init == "torch" else constant(0.0)


UNIT_SCALES = ("none", "one", "length", "weight_norm")
"""Learned factors of a layer's outputs, before the bias: none; starting at 1; starting at the length of a unit's weights, in the
mean square; the same with the weights divided by their length, w = scale v / ||v|| (weight normalisation)."""
SMALLEST_SQUARE = 1e-24
"""Weights that are zero throughout have no direction: they stay zero."""


def lengths(weight: Tensor, dim: int) -> Tensor:
    """Euclidean norms over one axis. `vector_norm` over one that is not the last takes five times as long on a CPU."""
    return weight.square().sum(dim=dim).clamp(min=SMALLEST_SQUARE).sqrt()


def unit_scale_draw(kind: str, weight: Draw, fan_in: int) -> Draw:
    """How a factor starts. Raises for an unknown kind."""
    if kind not in UNIT_SCALES:
        raise ValueError(nearest(kind, UNIT_SCALES, "unit_scale"))
    return constant(1.0 if kind == "one" else weight.std * math.sqrt(fan_in))


class WeightNormed(torch.autograd.Function):
    """x_SBI, v_SIO, scale_SO -> x (scale v / ||v||), with the gradient that automatic differentiation has in twice the time.

    With dy' = dy scale / ||v|| it is dv = x^T dy' less its part along v, whose size is known: (v_o . dv)_o = scale_o dscale_o.
    """

    @staticmethod
    def forward(ctx, x: Tensor, v: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(x, v, scale)
        h, length = ctx.products = torch.bmm(x, v), lengths(v, dim=1)
        return h * (scale / length).unsqueeze(1)

    @staticmethod
    def backward(ctx, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, v, scale = ctx.saved_tensors
        is_differentiated = torch.is_grad_enabled()  # in its turn: then through the products too
        h, length = (torch.bmm(x, v), lengths(v, dim=1)) if is_differentiated else ctx.products
        dscale = (dy * h).sum(dim=1) / length
        dy = dy * (scale / length).unsqueeze(1)
        dx = torch.bmm(dy, v.mT) if ctx.needs_input_grad[0] else None
        dv = v * (-scale * dscale / length.square()).unsqueeze(1)
        return dx, dv.baddbmm_(x.to(v.dtype).mT, dy), dscale


BY_VECTOR = 400
"""From so many multiplications on, PyTorch hands a product with one row or column to a CPU kernel for vectors, whose bits depend on
where in memory a seed's row begins: a seed in a block differs from the seed alone. With four rows or columns it takes the kernel
for matrices, and every seed's begin at a multiple of 16 bytes."""


class Linear(nn.Module):
    """A hidden layer, x_SBI -> x_SBO. weight [S, I, O], so that its gradient comes out contiguous; bias [S, O] or None.

    unit_scale: see `UNIT_SCALES`; the factor is a parameter [S, O], or None.
    """

    gain: ClassVar[float] = 2.0
    """Of what follows, for `weight_draw`: a ReLU."""

    def __init__(
        self,
        num_seeds: int,
        inputs: int,
        outputs: int,
        *,
        bias: bool,
        init: str,
        init_scale: float = 1.0,
        unit_scale: str = "none",
    ):
        super().__init__()
        draw = weight_draw(init, inputs, init_scale, self.gain)
        self.weight = declare(num_seeds, inputs, outputs)
        self.bias = declare(num_seeds, outputs) if bias else None
        self.draws = {"weight": draw, "bias": bias_draw(init, inputs)}
        self.draws["unit_scale"] = unit_scale_draw(unit_scale, draw, inputs)
        self.unit_scale = None if unit_scale == "none" else declare(num_seeds, outputs)
        self.is_weight_normed = unit_scale == "weight_norm"

    def forward(self, x_SBI: Tensor) -> Tensor:
        rows, (inputs, outputs) = x_SBI.shape[1], self.weight.shape[1:]
        if (rows == 1 or outputs == 1) and rows * inputs * outputs >= BY_VECTOR and x_SBI.device.type == "cpu":
            four = x_SBI.expand(-1, 4 if rows == 1 else -1, -1), self.weight.expand(-1, -1, 4 if outputs == 1 else -1)
            return self._of(*four)[:, :rows, :outputs]
        return self._of(x_SBI, self.weight)

    def _of(self, x_SBI: Tensor, weight_SIO: Tensor) -> Tensor:
        if self.unit_scale is not None:
            scale_SO = self.unit_scale.expand(-1, weight_SIO.shape[2])
            if self.is_weight_normed:
                h_SBO = WeightNormed.apply(x_SBI, weight_SIO, scale_SO)
            else:
                h_SBO = torch.bmm(x_SBI, weight_SIO) * scale_SO.unsqueeze(1)
            return h_SBO if self.bias is None else h_SBO + self.bias.unsqueeze(1)
        if self.bias is None:
            return torch.bmm(x_SBI, weight_SIO)
        return torch.baddbmm(self.bias.unsqueeze(1), x_SBI, weight_SIO)


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
        unit_scale: str = "none",
    ):
        super().__init__()
        fan_in = inputs * kernel * kernel
        draw = weight_draw(init, fan_in, init_scale)
        self.stride, self.padding = stride, kernel // 2 if padding is None else padding
        self.weight = declare(num_seeds, outputs, inputs, kernel, kernel)
        self.bias = declare(num_seeds, outputs) if bias else None
        self.draws = {"weight": draw, "bias": bias_draw(init, fan_in)}
        self.draws["unit_scale"] = unit_scale_draw(unit_scale, draw, fan_in)
        self.unit_scale = None if unit_scale == "none" else declare(num_seeds, outputs)
        self.is_weight_normed = unit_scale == "weight_norm"

    def scaled_weight(self) -> Tensor:
        """The weight [S, O, I, kernel, kernel] as it acts."""
        if self.unit_scale is None:
            return self.weight
        factor_SO = self.unit_scale
        if self.is_weight_normed:
            factor_SO = factor_SO / lengths(self.weight.flatten(2), dim=2)
        return self.weight * factor_SO[:, :, None, None, None]

    def forward(self, x_SBIHW: Tensor) -> Tensor:
        return self.by_seed(x_SBIHW) if x_SBIHW.device.type == "cpu" else self.grouped(x_SBIHW)

    def by_seed(self, x_SBIHW: Tensor) -> Tensor:
        """Seeds stay channels_last in memory from layer to layer and back: split and cat keep that, unbind and stack do not."""
        biases = self.bias.unbind() if self.bias is not None else [None] * len(self.weight)
        examples = x_SBIHW.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        out = [
            F.conv2d(x, weight, bias, stride=self.stride, padding=self.padding)
            for x, weight, bias in zip(
                examples.split(x_SBIHW.shape[1]), self.scaled_weight().unbind(), biases, strict=True
            )
        ]
        return torch.cat(out).unflatten(0, x_SBIHW.shape[:2])

    def grouped(self, x_SBIHW: Tensor) -> Tensor:
        num_seeds = len(x_SBIHW)
        bias = None if self.bias is None else self.bias.flatten()
        x = x_SBIHW.transpose(0, 1).flatten(1, 2)
        weight = self.scaled_weight().flatten(0, 1)
        out = F.conv2d(x, weight, bias, stride=self.stride, padding=self.padding, groups=num_seeds)
        return out.unflatten(1, (num_seeds, -1)).transpose(0, 1)


class Output(Linear):
    """The final linear layer: nothing normalises what it returns, so its scale is part of the function."""

    gain: ClassVar[float] = 1.0


class Frozen(nn.Module):
    """What plasticity injection adds to a head: for every pair of heads like it that are not trained, the first's answer less the
    second's. All their parameters start at zero, and so does the sum: whatever comes of zeros comes of both.
    """

    def __init__(self, make: Callable[[], nn.Module], num_pairs: int):
        super().__init__()
        self.heads = nn.ModuleList(make() for _ in range(2 * num_pairs))

    def forward(self, x: Tensor, **given: Tensor) -> Tensor:
        answers = [head(x, **given) for head in self.heads]
        first, *others = (original - copy for original, copy in zip(answers[::2], answers[1::2], strict=True))
        return sum(others, first)


def injected(
    spec: ModelSpec, make: Callable[[], nn.Module], own: Callable[[str], str]
) -> tuple[Frozen | None, dict[str, str]]:
    """The frozen heads that a spec asks for, or None; and parameter or buffer of a head by its name in a copy -> its own name."""
    if not spec.injections:
        return None, {}
    frozen = Frozen(make, spec.injections)
    head = frozen.heads[0]
    return frozen, {name: own(name) for name, _ in (*head.named_parameters(), *head.named_buffers())}


def shifted(name: str, shifts: dict[str, tuple[str, int]]) -> str:
    """`linears.0.weight` -> `layers.2.weight` for {"linears": ("layers", 2)}; names that none begins stay."""
    start, _, rest = name.partition(".")
    if start not in shifts:
        return name
    number, _, leaf = rest.partition(".")
    return f"{shifts[start][0]}.{int(number) + shifts[start][1]}.{leaf}"


class Embedding(nn.Module):
    """A table of `num_rows` vectors, weight [S, R, D], entries N(0, std^2): index_S... (int64) -> x_S...D. PyTorch's std is 1."""

    def __init__(self, num_seeds: int, num_rows: int, features: int, std: float = 1.0):
        super().__init__()
        self.weight = declare(num_seeds, num_rows, features)
        self.draws = {"weight": normal(std)}

    def forward(self, index: Tensor) -> Tensor:
        num_seeds, num_rows = self.weight.shape[:2]
        first = torch.arange(0, num_seeds * num_rows, num_rows, device=index.device)
        return F.embedding(index + first.view(-1, *[1] * (index.dim() - 1)), self.weight.flatten(0, 1))

    def rows(self, num_rows: int) -> Tensor:
        """The first rows, [S, num_rows, D]."""
        return self.weight[:, :num_rows]


class Perturbed(torch.autograd.Function):
    """weight + noise_weight * noise, all [S, I, O]: `torch.addcmul`, with one pass for its gradient instead of two."""

    @staticmethod
    def forward(ctx, weight: Tensor, noise_weight: Tensor, noise: Tensor) -> Tensor:
        ctx.save_for_backward(noise)
        return torch.addcmul(weight, noise_weight, noise)

    @staticmethod
    def backward(ctx, dy: Tensor) -> tuple[Tensor, Tensor, None]:
        (noise,) = ctx.saved_tensors
        return dy, dy * noise, None


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
        weights = self.weight, self.noise_weight, e_in.transpose(1, 2) * e_out
        weight = Perturbed.apply(*weights) if torch.is_grad_enabled() else torch.addcmul(*weights, out=weights[2])
        bias = noise_bias * e_out if self.bias is None else torch.addcmul(self.bias.unsqueeze(1), noise_bias, e_out)
        return torch.baddbmm(bias, x_SBI, weight)


class NoisyOutput(NoisyLinear):
    """A final noisy layer: nothing normalises what it returns. Its bias is noise only (DQN Zoo)."""

    gain: ClassVar[float] = 1.0

    def __init__(self, num_seeds: int, inputs: int, outputs: int, *, init: str, sigma: float):
        super().__init__(num_seeds, inputs, outputs, bias=False, init=init, sigma=sigma)


class Auxiliary(Linear):
    """`heads` linear heads without bias on a network's last hidden features (`TrainState.features`); no output comes of them."""

    def __init__(self, network: nn.Module, num_seeds: int, heads: int, *, init: str):
        features = sum(units.size * units.features for units in last_units(network))
        super().__init__(num_seeds, features or network.output.weight.shape[1], heads, bias=False, init=init)


def last_units(network: nn.Module) -> tuple[Units, ...]:
    """The units that final layers read: those of one layer, or of one per head; none where a residual stream stands between."""
    finals = {path for path, module in network.named_modules() if isinstance(module, (Output, NoisyOutput))}
    return tuple(u for u in network.units if {name.rpartition(".")[0] for name in u.outgoing} & finals)


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
    """Attention of `heads` heads, x_SND -> y_SND; N = B x T tokens, string after string. No token sees a later one if spec.causal.

    With a norm in the spec, whichever, queries and keys pass through RMSNorm without offset over all D features of a token,
    before heads are split (paper A.4). Queries, keys and values have no bias; `out` has one.
    """

    def __init__(self, spec: ModelSpec, num_seeds: int, features: int, heads: int):
        super().__init__()
        if heads < 1 or features % heads:
            raise ValueError(f"Attention wants a number of heads that divides d_model={features}; found {heads}.")
        self.heads, self.causal = heads, spec.causal
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
        mixed = F.scaled_dot_product_attention(*heads, is_causal=self.causal)  # [S x B, heads, T, D / heads]
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
    leaky = spec.init in ("he", "he_uniform") and spec.activation == "leaky_relu"
    return spec.init_scale / math.sqrt(1.0 + spec.negative_slope**2) if leaky else spec.init_scale
