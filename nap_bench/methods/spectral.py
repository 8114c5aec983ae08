"""Spectral regularisation: the largest singular value of every layer is pulled to one (Lewandowski et al. 2025, 2406.06811)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from nap_bench.methods.base import Method
from nap_bench.models.roles import Role
from nap_bench.rng import generator
from nap_bench.spec import Run

MATRICES = (Role.WEIGHT, Role.OUTPUT)
VECTORS = (Role.BIAS, Role.OFFSET)
SMALLEST = 1e-30
WARM_UP = 20
"""Power iterations before the first update; afterwards one for every update."""


@dataclass(frozen=True)
class Spectral(Method):
    """A penalty that leaves a layer's other singular values free; its gradient is added once the loss's is clipped.

        coef * [sum_W (sigma(W)^k - 1)^2 + sum_b (||b||^2)^k + sum_s ||s - 1||^2]

    W: weights [out, fan_in] of hidden and output layers, sigma(W) their largest singular value.  b: biases, and norms' offsets.
    s: norms' scales. The vectors u, v of sigma follow the weights by power iteration, one step for every update, and count as
    constants: the gradient of sigma is u v^T.

    coef: >= 0; 0 is the baseline, bit for bit.  k: >= 1.
    """

    name: ClassVar[str] = "spectral"

    coef: float = 1e-3
    k: int = 2

    def __post_init__(self) -> None:
        if not 0 <= self.coef < math.inf:
            raise ValueError(f"spectral wants a finite coef >= 0; found {self.coef}.")
        if self.k < 1:
            raise ValueError(f"spectral wants k >= 1; found {self.k}.")

    def why_not(self, run: Run) -> str | None:
        if self.coef and run.model.unit_scale != "none":
            return "a layer's learned factors stand between its weights and what it does to its inputs"
        return None

    def setup(self, state) -> dict[str, Tensor]:
        """Weight -> v as [S, 1, fan_in]; a convolution's as [S, 1, out]."""
        found = {}
        for name in self._of(state, MATRICES) if self.coef else ():
            weight = self._matrix(state.params[name].detach())
            drawn = [torch.randn(weight.shape[1], generator=generator(s, f"{self.name}/{name}")) for s in state.seeds]
            found[name] = F.normalize(torch.stack(drawn).unsqueeze(1).to(weight), dim=2)
            for _ in range(WARM_UP):
                self._iterate(state, weight, found[name])
        return found

    @staticmethod
    def _of(state, wanted: tuple[Role, ...]) -> list[str]:
        return [name for name in state.params if state.roles[name] in wanted]

    @staticmethod
    def _matrix(tensor: Tensor) -> Tensor:
        """[S, R, C]: as a layer keeps it, transposed or not; a convolution's kernels flattened."""
        return tensor if tensor.dim() == 3 else tensor.flatten(2)

    @staticmethod
    def _iterate(state, weight_SRC: Tensor, v_S1R: Tensor) -> tuple[Tensor, Tensor]:
        """One step of power iteration, v in place: (sigma [S, 1, 1], u [S, 1, C]). Zero weights leave v as it is, with u = 0."""
        _, num_rows, num_columns = weight_SRC.shape
        start_S1R, u_S1C = state.aligned(1, num_rows).copy_(v_S1R), state.aligned(1, num_columns)
        torch.bmm(start_S1R, weight_SRC, out=u_S1C)
        u_S1C.div_(torch.linalg.vector_norm(u_S1C, dim=2, keepdim=True).clamp(min=SMALLEST))
        grown_S1R = torch.bmm(u_S1C, weight_SRC.mT, out=state.aligned(1, num_rows))
        sigma_S11 = torch.linalg.vector_norm(grown_S1R, dim=2, keepdim=True)
        v_S1R.copy_(torch.where(sigma_S11 > 0, grown_S1R / sigma_S11, v_S1R))
        return sigma_S11, u_S1C

    @torch.no_grad()
    def after_backward(self, state) -> None:
        if not self.coef:
            return
        for name, v_S1R in state.slots[self.name].items():
            sigma_S11, u_S1C = self._iterate(state, self._matrix(state.params[name].detach()), v_S1R)
            pull_S11 = (2.0 * self.coef * self.k) * (sigma_S11**self.k - 1.0) * sigma_S11 ** (self.k - 1)
            self._matrix(state.view(state.gradient, name)).addcmul_(v_S1R.mT, u_S1C * pull_S11)
        for name in self._of(state, VECTORS):
            b_SD = state.params[name].detach()
            squared_S1 = b_SD.square().sum(dim=1, keepdim=True)
            state.view(state.gradient, name).addcmul_(b_SD, squared_S1 ** (self.k - 1), value=2.0 * self.coef * self.k)
        for name in self._of(state, (Role.SCALE,)):
            state.view(state.gradient, name).add_(state.params[name].detach() - 1.0, alpha=2.0 * self.coef)
