"""A multi-layer perceptron: [linear -> norm -> nonlinearity] for each width, then a linear output (paper A.1)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from nap_bench.models.blocks import ACTIVATIONS, NORMS, Linear, Output
from nap_bench.spec import ModelSpec, nearest


@dataclass(frozen=True)
class Group:
    """Parameters projected as one: names, and whether the output is invariant to their common scale."""

    name: str
    members: tuple[str, ...]
    scale_invariant: bool


class MLP(nn.Module):
    """x_SBD -> logits_SBK. `size`: widths, a tuple of hidden sizes.

    groups: one per hidden layer (each weight is its own group), then the output layer.
    """

    def __init__(self, spec: ModelSpec, num_seeds: int, inputs: int, outputs: int):
        super().__init__()
        if spec.norm not in ("none", *NORMS):
            raise ValueError(nearest(spec.norm, ["none", *NORMS], "norm"))
        if spec.activation not in ACTIVATIONS:
            raise ValueError(nearest(spec.activation, ACTIVATIONS, "activation"))
        self.activation = ACTIVATIONS[spec.activation]
        has_norm = spec.norm != "none"
        linears, norms, groups, fan_in = [], [], [], inputs
        for index, width in enumerate(dict(spec.size)["widths"]):
            linears.append(Linear(num_seeds, fan_in, width, bias=not has_norm, init=spec.init, init_scale=spec.init_scale))
            if has_norm:
                norms.append(NORMS[spec.norm](num_seeds, width, eps=spec.norm_eps, affine=spec.norm_affine))
            groups.append(Group(f"layer{index}", (f"linears.{index}.weight",), has_norm))
            fan_in = width
        self.linears, self.norms = nn.ModuleList(linears), nn.ModuleList(norms)
        self.output = Output(num_seeds, fan_in, outputs, bias=True, init=spec.init)
        self.groups = (*groups, Group("output", ("output.weight",), False))

    def forward(self, x_SBD: Tensor, acts: dict[str, Tensor] | None = None) -> Tensor:
        """Logits [S, B, K]. acts, if given, receives every post-activation under its layer's name, in order."""
        for index, linear in enumerate(self.linears):
            h_SBD = linear(x_SBD)
            if self.norms:
                h_SBD = self.norms[index](h_SBD)
            x_SBD = self.activation(h_SBD)
            if acts is not None:
                acts[f"layer{index}"] = x_SBD
        return self.output(x_SBD)
