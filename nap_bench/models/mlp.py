"""A multi-layer perceptron: [linear -> norm -> nonlinearity] for each width, then a linear output (paper A.1)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from math import prod

from torch import Tensor, nn

from nap_bench.models.blocks import (
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
from nap_bench.spec import ModelSpec


class MLP(nn.Module):
    """x_SB... -> logits_SBK; inputs of any shape are flattened. `size`: widths, a tuple of hidden sizes.

    groups: one per hidden layer (each weight is its own group), then the output layer.  units: one entry per hidden layer.
    frozen: frozen heads beside the last `head_layers` layers, or None.  head: name in one of them -> own name.
    """

    def __init__(self, spec: ModelSpec, num_seeds: int, inputs: tuple[int, ...], outputs: int):
        super().__init__()
        self.activation = activation_of(spec)
        features, scale = features_per_unit(spec), hidden_scale(spec)
        linears, norms, groups, fan_in = [], [], [], prod(inputs)
        widths = dict(spec.size)["widths"]
        common = dict(init=spec.init, unit_scale=spec.unit_scale)
        is_invariant = spec.unit_scale == "weight_norm"
        fan_ins = [fan_in, *[width * features for width in widths]]
        for index, width in enumerate(widths):
            bias = not has_norm(spec)
            linears.append(Linear(num_seeds, fan_ins[index], width, bias=bias, init_scale=scale, **common))
            if has_norm(spec):
                norms.append(norm_of(spec, num_seeds, width))
            groups.append(Group(f"layer{index}", (f"linears.{index}.weight",), is_invariant or has_norm(spec)))
        self.linears, self.norms = nn.ModuleList(linears), nn.ModuleList(norms)
        self.output = Output(num_seeds, fan_ins[-1], outputs, bias=True, **common)
        self.groups = (*groups, Group("output", ("output.weight",), is_invariant))
        self.units = chain(spec, [f"linears.{index}" for index in range(len(widths))], widths)
        self.head_layers, first = spec.head_layers, len(widths) + 1 - spec.head_layers
        make = head_of(spec, widths[first:], num_seeds, fan_ins[first], outputs) if spec.injections else None
        shifts = {name: (name, first) for name in ("linears", "norms")}
        self.frozen, self.head = injected(spec, make, lambda name: shifted(name, shifts))

    def forward(self, inputs: Tensor, acts: dict[str, Tensor] | None = None) -> Tensor:
        """Logits [S, B, K]. acts, if given, receives every post-activation under its layer's name, in order."""
        x_SBD = inputs.flatten(2)
        entrances = [x_SBD]
        for index, linear in enumerate(self.linears):
            h_SBD = linear(x_SBD)
            if self.norms:
                h_SBD = self.norms[index](h_SBD)
            x_SBD = self.activation(h_SBD)
            entrances.append(x_SBD)
            if acts is not None:
                acts[f"layer{index}"] = x_SBD
        out_SBK = self.output(x_SBD)
        return out_SBK if self.frozen is None else out_SBK + self.frozen(entrances[-self.head_layers])


def head_of(
    spec: ModelSpec, widths: tuple[int, ...], num_seeds: int, inputs: int, outputs: int
) -> Callable[[], nn.Module]:
    """Makes a copy of a network's head, hidden layers of these widths and the output layer: an `MLP` by itself."""
    size = tuple((key, widths if key == "widths" else value) for key, value in spec.size)
    head = dataclasses.replace(spec, family="mlp", size=size, injections=0)
    return lambda: MLP(head, num_seeds, (inputs,), outputs)
