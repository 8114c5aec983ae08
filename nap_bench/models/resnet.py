"""Residual networks of the second version: nonlinearities before the convolutions of a bottleneck (He et al. 2016, 1603.05027)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from nap_bench.models.blocks import (
    Conv2d,
    Group,
    Output,
    Units,
    activation_of,
    features_per_unit,
    has_norm,
    hidden_scale,
    leaves,
    norm_names,
    norm_of,
)
from nap_bench.spec import ModelSpec, nearest

RESNET50 = (
    ("blocks", (3, 4, 6, 3)),
    ("channels", (256, 512, 1024, 2048)),
    ("own_norm", "batch"),
    ("stem", "large"),
)
"""ResNet-50 v2 (paper B.4)."""
BOTTLENECK = 4
"""Channels of a block's stream over those inside it."""
STEMS = ("large", "small")


class Block(nn.Module):
    """x <- shortcut(x) + c2(f2(c1(f1(c0(f0(x)))))), each f a norm and a nonlinearity, c1 3 x 3, the others 1 x 1.

    The shortcut is x, or, in a stage's first block, a 1 x 1 convolution of f0(x) that brings x to the stage's size.
    """

    def __init__(self, spec: ModelSpec, num_seeds: int, inputs: int, outputs: int, *, stride: int, projected: bool):
        super().__init__()
        self.activation, per_unit, inside = activation_of(spec), features_per_unit(spec), outputs // BOTTLENECK
        common = dict(
            bias=not has_norm(spec), init=spec.init, init_scale=hidden_scale(spec), unit_scale=spec.unit_scale
        )
        sizes = (inputs, inside, inside, outputs)
        self.norms = nn.ModuleList(
            norm_of(spec, num_seeds, size) if has_norm(spec) else nn.Identity() for size in sizes[:3]
        )
        self.convs = nn.ModuleList(
            Conv2d(num_seeds, before * per_unit, after, kernel=kernel, stride=step, **common)
            for before, after, kernel, step in zip(sizes[:3], sizes[1:], (1, 3, 1), (1, stride, 1), strict=True)
        )
        if projected:
            self.shortcut = Conv2d(num_seeds, inputs * per_unit, outputs, kernel=1, stride=stride, **common)
        self.projected = projected

    def forward(self, x: Tensor, name: str, acts: dict[str, Tensor] | None) -> Tensor:
        h, stream = x, x
        for index, (norm, conv) in enumerate(zip(self.norms, self.convs, strict=True)):
            h = self.activation(norm(h))
            if acts is not None:
                acts[f"{name}_{index}"] = h
            if index == 0 and self.projected:
                stream = self.shortcut(h)
            h = conv(h)
        return stream + h


class ResNet(nn.Module):
    """x_SBCHW -> logits_SBK: a convolution, stages of bottleneck blocks, a norm and a nonlinearity, the mean over space, an output.

    `size`: blocks, of each stage; channels, of each stage's stream, multiples of 4; stem: "large" (7 x 7, stride 2, then 3 x 3
    max-pooling, stride 2) or "small" (3 x 3, for small images); own_norm, "batch" or "none" (the default), the norm that the
    network has before every nonlinearity whatever the methods: what they add stands before it (paper A.4). Every stage but the
    first halves height and width, in its first block's 3 x 3 convolution.

    groups: every kernel by itself, then the output layer. Those that a norm follows (the stem's, the first two of a block) are
    scale-invariant; those that write into a residual sum (a block's last, shortcuts) are so only together, and are flagged as
    not invariant.  units: the channels between a block's convolutions, which one kernel makes and one reads; those of the
    residual streams, which many write and read, are no units.
    """

    def __init__(self, spec: ModelSpec, num_seeds: int, inputs: tuple[int, int, int], outputs: int):
        super().__init__()
        size = dict(spec.size)
        blocks, channels, self.stem_kind = size["blocks"], size["channels"], size["stem"]
        if len(blocks) != len(channels) or min(blocks, default=0) < 1 or any(wide % BOTTLENECK for wide in channels):
            raise ValueError(
                f"A resnet wants as many stages of blocks as of channels, the channels multiples of {BOTTLENECK}; "
                f"found blocks={blocks} and channels={channels}."
            )
        if self.stem_kind not in STEMS:
            raise ValueError(nearest(self.stem_kind, STEMS, "stem of a resnet"))
        self.activation, width = activation_of(spec), channels[0] // BOTTLENECK
        kernel, stride = (7, 2) if self.stem_kind == "large" else (3, 1)
        common = dict(
            bias=not has_norm(spec), init=spec.init, init_scale=hidden_scale(spec), unit_scale=spec.unit_scale
        )
        is_normed = spec.unit_scale == "weight_norm"
        self.stem = Conv2d(num_seeds, inputs[0], width, kernel=kernel, stride=stride, **common)
        groups, units, made = [Group("stem", ("stem.weight",), is_normed or has_norm(spec))], [], []
        for stage, (count, wide) in enumerate(zip(blocks, channels, strict=True)):
            for index in range(count):
                name, path, is_first = f"block{len(made)}", f"blocks.{len(made)}", index == 0
                stride = 2 if is_first and stage else 1
                made.append(Block(spec, num_seeds, width, wide, stride=stride, projected=is_first))
                width = wide
                groups += [
                    Group(f"{name}_conv{i}", (f"{path}.convs.{i}.weight",), is_normed or has_norm(spec) and i < 2)
                    for i in range(3)
                ]
                groups += [Group(f"{name}_shortcut", (f"{path}.shortcut.weight",), is_normed)] * is_first
                units += [
                    Units(
                        name=f"{name}_{i}",
                        size=wide // BOTTLENECK,
                        features=features_per_unit(spec),
                        incoming=tuple(f"{path}.convs.{i - 1}.{leaf}" for leaf in leaves(spec)),
                        norm=norm_names(spec, f"{path}.norms.{i}"),
                        outgoing=(f"{path}.convs.{i}.weight",),
                    )
                    for i in (1, 2)
                ]
        self.blocks = nn.ModuleList(made)
        self.norm = norm_of(spec, num_seeds, width) if has_norm(spec) else nn.Identity()
        per_unit, kind = features_per_unit(spec), spec.unit_scale
        self.output = Output(num_seeds, width * per_unit, outputs, bias=True, init=spec.init, unit_scale=kind)
        self.groups, self.units = (*groups, Group("output", ("output.weight",), is_normed)), tuple(units)

    def forward(self, inputs: Tensor, acts: dict[str, Tensor] | None = None) -> Tensor:
        """Logits [S, B, K]. acts, if given, receives every post-activation under block<n>_<i>, in order, at last the features."""
        x = self.stem(inputs)
        if self.stem_kind == "large":
            x = F.max_pool2d(x.flatten(0, 1), 3, stride=2, padding=1).unflatten(0, x.shape[:2])
        for index, block in enumerate(self.blocks):
            x = block(x, f"block{index}", acts)
        features_SBD = self.activation(self.norm(x)).mean(dim=(3, 4))
        if acts is not None:
            acts["features"] = features_SBD
        return self.output(features_SBD)
