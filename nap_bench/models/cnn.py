"""A small convolutional network: [convolution -> norm -> nonlinearity (-> max-pool)], then linear layers (paper B.1, B.4)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from nap_bench.models.blocks import (
    Conv2d,
    Group,
    Linear,
    Output,
    activation_of,
    chain,
    features_per_unit,
    has_norm,
    hidden_scale,
    injected,
    norm_of,
    shifted,
)
from nap_bench.models.mlp import head_of
from nap_bench.spec import ModelSpec


class CNN(nn.Module):
    """x_SBCHW -> logits_SBK.

    `size`: channels, of each convolution; pool_after, indices of the convolutions that 2 x 2 max-pooling follows; widths, of
    the hidden linear layers; kernel, odd; padding, zeros on each side, by default as many as keep a map's size; own_norm,
    "batch" or "none" (the default): see `norm_of`.
    groups: one per hidden layer in order, then the output layer.  units: one entry per hidden layer, a channel being a unit.
    frozen, head: as in `MLP`, of linear layers alone.
    """

    def __init__(self, spec: ModelSpec, num_seeds: int, inputs: tuple[int, int, int], outputs: int):
        super().__init__()
        size = dict(spec.size)
        self.activation, self.pool_after = activation_of(spec), frozenset(size["pool_after"])
        channels, height, width = inputs
        kernel = size["kernel"]
        padding = size.get("padding", kernel // 2)
        if kernel % 2 == 0:
            raise ValueError(f"A cnn wants an odd kernel, which padding can centre; found {kernel}.")
        if not 0 <= padding <= kernel // 2:
            raise ValueError(f"A cnn with a kernel of {kernel} wants padding in [0, {kernel // 2}]; found {padding}.")
        common = dict(
            bias=not has_norm(spec), init=spec.init, init_scale=hidden_scale(spec), unit_scale=spec.unit_scale
        )
        per_unit, is_invariant = features_per_unit(spec), spec.unit_scale == "weight_norm"
        layers, norms, groups = [], [], []
        for index, wanted in enumerate(size["channels"]):
            layers.append(Conv2d(num_seeds, channels, wanted, kernel=kernel, padding=padding, **common))
            channels = wanted * per_unit
            pooled = 2 if index in self.pool_after else 1
            height, width = ((extent + 2 * padding - kernel + 1) // pooled for extent in (height, width))
            if min(height, width) < 1:
                raise ValueError(f"A cnn on images of {inputs[1:]} has nothing left after convolution {index}.")
        features = channels * height * width
        fan_ins = [features, *[wanted * per_unit for wanted in size["widths"]]]
        for features, wanted in zip(fan_ins, size["widths"], strict=False):
            layers.append(Linear(num_seeds, features, wanted, **common))
        sizes = (*size["channels"], *size["widths"])
        for index, wanted in enumerate(sizes):
            if has_norm(spec):
                norms.append(norm_of(spec, num_seeds, wanted))
            groups.append(Group(f"layer{index}", (f"layers.{index}.weight",), is_invariant or has_norm(spec)))
        self.layers, self.norms = nn.ModuleList(layers), nn.ModuleList(norms)
        self.output = Output(num_seeds, fan_ins[-1], outputs, bias=True, init=spec.init, unit_scale=spec.unit_scale)
        self.groups = (*groups, Group("output", ("output.weight",), is_invariant))
        self.units = chain(spec, [f"layers.{index}" for index in range(len(sizes))], sizes)
        self.head_layers, first = spec.head_layers, len(size["widths"]) + 1 - spec.head_layers
        make = head_of(spec, size["widths"][first:], num_seeds, fan_ins[first], outputs) if spec.injections else None
        before = len(size["channels"]) + first
        shifts = {"linears": ("layers", before), "norms": ("norms", before)}
        self.frozen, self.head = injected(spec, make, lambda name: shifted(name, shifts))

    def forward(self, inputs: Tensor, acts: dict[str, Tensor] | None = None) -> Tensor:
        """Logits [S, B, K]. acts, if given, receives every post-activation under its layer's name, in order."""
        x, entrances = inputs, []
        for index, layer in enumerate(self.layers):
            if isinstance(layer, Linear):
                x = x.flatten(2)
                entrances.append(x)
            x = layer(x)
            if self.norms:
                x = self.norms[index](x)
            x = self.activation(x)
            if acts is not None:
                acts[f"layer{index}"] = x
            if index in self.pool_after:
                x = F.max_pool2d(x.flatten(0, 1), 2).unflatten(0, x.shape[:2])
        x = x.flatten(2)
        if self.frozen is None:
            return self.output(x)
        return self.output(x) + self.frozen([*entrances, x][-self.head_layers])
