"""ReGraMa: units that no gradient reaches start anew (Liu et al. 2025, arXiv 2505.24061)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nap_bench.methods.base import Method
from nap_bench.methods.redo import recycle
from nap_bench.spec import Run


@dataclass(frozen=True)
class ReGraMa(Method):
    """Every `period` updates, units whose incoming weights have a small gradient beside their layer's are recycled as ReDo does.

        score_i = G_i / mean_k G_k,   G_i = mean_j |dL / dw_ij| over what comes into unit i,   dormant if score_i <= tau

    The gradient is that of the update just done, as the optimizer saw it: clipped, penalties and the whole batch in it. A layer
    that no gradient reaches at all is left alone. The reset is `redo`'s: incoming weights drawn anew; bias, outgoing weights and
    both moments 0. All layers are scored before any is changed.

    period: updates between recyclings, >= 1; None recycles nothing and is the baseline, bit for bit.  tau: in [0, 1].
    reset_norm: scale and offset of the norm (and their moments) start anew too.
    """

    name: ClassVar[str] = "regrama"

    period: int | None = 1000
    tau: float = 0.01
    reset_norm: bool = False

    def __post_init__(self) -> None:
        if self.period is not None and (type(self.period) is not int or self.period < 1):
            raise ValueError(f"regrama wants a whole period >= 1 or None; found {self.period}.")
        if not 0.0 <= self.tau <= 1.0:
            raise ValueError(f"regrama wants tau in [0, 1]; found {self.tau}.")

    def why_not(self, run: Run) -> str | None:
        if self.tau == 0.0 and run.model.activation != "relu":
            return f"tau=0 recycles units without any gradient, which {run.model.activation!r} never makes"
        return None

    @torch.no_grad()
    def after_step(self, state) -> None:
        if self.period is None or state.step % self.period:
            return
        dormant = []
        for units in state.units:
            name = units.incoming[0]
            gradient = state.by_unit(units, name, state.view(state.flat.grad, name))
            dormant.append((units, self.score(gradient) <= self.tau))
        recycle(state, dormant, self.name, reset_norm=self.reset_norm)

    @staticmethod
    def score(gradient: Tensor) -> Tensor:
        """Scores [S, U] of gradients [S, U, ...]. Their mean over a layer is 1; of a layer without gradient all are infinite."""
        size_SU = gradient.abs().mean(dim=tuple(range(2, gradient.dim())))
        mean_S1 = size_SU.mean(dim=1, keepdim=True)
        return torch.where(mean_S1 > 0, size_SU / mean_S1, torch.inf)
