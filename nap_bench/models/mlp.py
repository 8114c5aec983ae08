"""A multi-layer perceptron: [linear -> norm -> nonlinearity] for each width, then a linear output (paper A.1)."""

from __future__ import annotations

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
    norm_of,
)
from nap_bench.spec import ModelSpec


class MLP(nn.Module):
    """x_SB... -> logits_SBK; inputs of any shape are flattened. `size`: widths, a tuple of hidden sizes.

    groups: one per hidden layer (each weight is its own group), then the output layer.  units: one entry per hidden layer.
    """

    def __init__(self, spec: ModelSpec, num_seeds: int, inputs: tuple[int, ...], outputs: int):
        super().__init__()
        self.activation = activation_of(spec)
        features, scale = features_per_unit(spec), hidden_scale(spec)
        linears, norms, groups, fan_in = [], [], [], prod(inputs)
        widths = dict(spec.size)["widths"]
        for index, width in enumerate(widths):
            linears.append(Linear(num_seeds, fan_in, width, bias=not has_norm(spec), init=spec.init, init_scale=scale))
            if has_norm(spec):
                norms.append(norm_of(spec, num_seeds, width))
            groups.append(Group(f"layer{index}", (f"linears.{index}.weight",), has_norm(spec)))
            fan_in = width * features
        self.linears, self.norms = nn.ModuleList(linears), nn.ModuleList(norms)
        self.output = Output(num_seeds, fan_in, outputs, bias=True, init=spec.init)
        self.groups = (*groups, Group("output", ("output.weight",), False))
        self.units = chain(spec, [f"linears.{index}" for index in range(len(widths))], widths)

    def forward(self, inputs: Tensor, acts: dict[str, Tensor] | None = None) -> Tensor:
        """Logits [S, B, K]. acts, if given, receives every post-activation under its layer's name, in order."""
        x_SBD = inputs.flatten(2)
        for index, linear in enumerate(self.linears):
            h_SBD = linear(x_SBD)
            if self.norms:
                h_SBD = self.norms[index](h_SBD)
            x_SBD = self.activation(h_SBD)
            if acts is not None:
                acts[f"layer{index}"] = x_SBD
        return self.output(x_SBD)
