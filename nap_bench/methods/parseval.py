"""Parseval regularisation: hidden weights are pulled to orthogonal rows of one length (Chung et al. 2024, 2412.07224)."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nap_bench.methods.base import Method
from nap_bench.models import UNIT_SCALED
from nap_bench.models.roles import Role
from nap_bench.spec import ModelSpec, Run

REFERENCE_WIDTH = 64
"""For which coefficients are stated (the authors' code)."""


@dataclass(frozen=True)
class Parseval(Method):
    """The penalty coef (64 / width)^2 ||W W^T - scale I||_F^2 on every hidden layer's weights W [width, fan_in].

    Its gradient is added once the loss's is clipped. A layer with more units than inputs is pulled to orthogonal columns, which
    is as near as it can come.

    coef: >= 0; 0 is the baseline, bit for bit.  scale: > 0, the squared length of a unit's weights.
    orthogonal: start there: hidden weights become the orthogonal factor of what was drawn, times sqrt(scale).
    diagonal: a learned factor for every unit's output, which starts at 1: what the penalty takes away in capacity.
    """

    name: ClassVar[str] = "parseval"
    moves_start: ClassVar[bool] = True

    coef: float = 1e-3
    scale: float = 2.0
    orthogonal: bool = True
    diagonal: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.coef < math.inf:
            raise ValueError(f"parseval wants a finite coef >= 0; found {self.coef}.")
        if not 0 < self.scale < math.inf:
            raise ValueError(f"parseval wants a finite scale > 0; found {self.scale}.")

    def why_not(self, run: Run) -> str | None:
        if self.coef and self.diagonal and run.model.family not in UNIT_SCALED:
            return f"no layer of a {run.model.family} has a learned factor: diagonal=False can be"
        return None

    def transform_model(self, spec: ModelSpec) -> ModelSpec:
        return dataclasses.replace(spec, unit_scale="one") if self.coef and self.diagonal else spec

    @staticmethod
    def _hidden(state) -> list[str]:
        return [name for name in state.params if state.roles[name] is Role.WEIGHT]

    @staticmethod
    def _matrix(tensor: Tensor) -> Tensor:
        """[S, R, C]: as a layer keeps it, transposed or not; a convolution's kernels flattened."""
        return tensor if tensor.dim() == 3 else tensor.flatten(2)

    @torch.no_grad()
    def setup(self, state) -> dict:
        if self.coef and self.orthogonal:
            for name in self._hidden(state):
                weight = self._matrix(state.params[name])
                for weight_RC in weight:  # one by one: kernels for small matrices depend on where in memory they lie
                    weight_RC.copy_(orthogonal(weight_RC) * math.sqrt(self.scale))
        return {}

    @torch.no_grad()
    def after_backward(self, state) -> None:
        """4 c (W W^T - scale I) W = 4 c W (W^T W - scale I): the smaller product is formed."""
        if not self.coef:
            return
        for name in self._hidden(state):
            weight, gradient = (
                self._matrix(t) for t in (state.params[name].detach(), state.view(state.gradient, name))
            )
            factor = 4.0 * self.coef * (REFERENCE_WIDTH / state.matrix(name).shape[1]) ** 2
            is_tall = weight.shape[1] > weight.shape[2]
            left, right = (weight.mT, weight) if is_tall else (weight, weight.mT)
            gram = torch.bmm(left, right, out=state.aligned(left.shape[1], left.shape[1]))
            gram.diagonal(dim1=1, dim2=2).sub_(self.scale)
            gradient.baddbmm_(*((weight, gram) if is_tall else (gram, weight)), alpha=factor)


def orthogonal(weight_RC: Tensor) -> Tensor:
    """Orthonormal rows or columns, whichever are fewer: the factor Q of QR, with the signs that make it unique."""
    is_tall = weight_RC.shape[0] >= weight_RC.shape[1]
    q, r = torch.linalg.qr((weight_RC if is_tall else weight_RC.mT).clone())
    q = q * r.diagonal().sign()
    return q if is_tall else q.mT
