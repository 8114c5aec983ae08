"""InFeR: heads beside the output keep the features able to answer what they could at the start (Lyle et al. 2022)."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nap_bench.methods.base import Method
from nap_bench.models import CAUSAL
from nap_bench.spec import ModelSpec, Run, nearest

REDUCTIONS = ("sum", "mean")


@dataclass(frozen=True)
class InFeR(Method):
    """`heads` linear heads on the last hidden features regress to `scale` times what they said at the start, of the same inputs:

        penalty = coef E_x sum_i (<f(x), w_i> - scale <f_0(x), w_i0>)^2

    f are the features that the output layer reads and w_i a head's weights, both trained; f_0 and w_i0 are the initial ones,
    frozen. A feature map counts by its mean over space. The heads are parameters as all others (of a role of their own: penalties
    and resets of other methods leave them alone), so the optimizer steps them; the penalty goes backward with the loss.

    coef: alpha, >= 0; 0 has no heads and is the baseline, bit for bit.  heads: >= 1.  scale: beta.
    over_heads: "sum", or "mean", which divides by the number of heads.
    """

    name: ClassVar[str] = "infer"
    needs_acts: ClassVar[bool] = True

    coef: float = 0.1
    heads: int = 10
    scale: float = 100.0
    over_heads: str = "sum"

    def __post_init__(self) -> None:
        if not 0 <= self.coef < math.inf:
            raise ValueError(f"infer wants a finite coef >= 0; found {self.coef}.")
        if self.heads < 1 or not math.isfinite(self.scale):
            raise ValueError(f"infer wants heads >= 1 and a finite scale; found {self.heads} and {self.scale}.")
        if self.over_heads not in REDUCTIONS:
            raise ValueError(nearest(self.over_heads, REDUCTIONS, "over_heads of infer"))

    def why_not(self, run: Run) -> str | None:
        if self.coef and run.model.family in CAUSAL:
            return "the output of a transformer reads its residual stream, which holds the tokens: no layer's features"
        return None

    def transform_model(self, spec: ModelSpec) -> ModelSpec:
        return dataclasses.replace(spec, auxiliary=self.heads) if self.coef else spec

    def setup(self, state) -> dict[str, Tensor]:
        """initial [S, P], and initial/NAME of every buffer: the frozen network."""
        if not self.coef:
            return {}
        buffers = {f"initial/{name}": buffer.clone() for name, buffer in state.buffers.items()}
        return {"initial": state.flat.detach().clone(), **buffers}

    def loss_penalty(self, state) -> Tensor:
        if not self.coef:
            return state.flat.new_zeros(len(state.seeds))
        slots, acts = state.slots[self.name], {}
        buffers = {name: slots[f"initial/{name}"] for name in state.buffers}
        with torch.no_grad():
            state.fed_again(slots["initial"], buffers, acts)
            wanted_SBH = self.scale * torch.bmm(state.features(acts), state.view(slots["initial"], HEADS))
        errors_SBH = torch.bmm(state.features(state.acts), state.params[HEADS]) - wanted_SBH
        each_SB = errors_SBH.square().sum(dim=2)
        return (self.coef if self.over_heads == "sum" else self.coef / self.heads) * each_SB.mean(dim=1)


HEADS = "auxiliary.weight"
