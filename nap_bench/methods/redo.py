"""ReDo: recycling dormant units (Sokar et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nap_bench.methods.base import Method
from nap_bench.models.blocks import Units
from nap_bench.models.roles import Role
from nap_bench.spec import Run

EPS = 1e-9
"""Added to a layer's mean score, as in the authors' code: the units of a layer that is zero throughout have score 0."""


@dataclass(frozen=True)
class ReDo(Method):
    """Every `period` updates, units whose post-activation is small beside their layer's start anew.

        score_i = E|h_i| / (mean_k E|h_k| + 1e-9),   dormant if score_i <= tau

    Expectations run over the training batch of the update just done, and over the space of a feature map. Of a dormant unit the
    incoming weights are drawn from their initial distribution, its bias and its outgoing weights are 0, and so are both moments
    of all of these; the biases it feeds and the optimizer's step count stay. All layers are scored before any is changed, and
    where a dormant unit feeds a dormant unit the weight between them is 0.

    period: updates between recyclings, >= 1; None recycles nothing and is the baseline, bit for bit.  tau: in [0, 1].
    reset_norm: scale and offset of the norm (and their moments) start anew too; the paper's reset ignores normalisation.
    """

    name: ClassVar[str] = "redo"
    needs_acts: ClassVar[bool] = True

    period: int | None = 1000
    tau: float = 0.1
    reset_norm: bool = False

    def __post_init__(self) -> None:
        if self.period is not None and (type(self.period) is not int or self.period < 1):
            raise ValueError(f"redo wants a whole period >= 1 or None; found {self.period}.")
        if not 0.0 <= self.tau <= 1.0:
            raise ValueError(f"redo wants tau in [0, 1]; found {self.tau}.")

    def why_not(self, run: Run) -> str | None:
        if run.model.activation == "crelu":
            return "a unit of crelu is a pair of features of which one is always active: none is dormant"
        if self.tau == 0.0 and run.model.activation != "relu":
            return f"tau=0 recycles units that are exactly 0, which {run.model.activation!r} never makes"
        return None

    @torch.no_grad()
    def after_step(self, state) -> None:
        if self.period is None or state.step % self.period:
            return
        dormant = [(units, self.score(state.acts[units.name]) <= self.tau) for units in state.units]
        recycle(state, dormant, self.name, reset_norm=self.reset_norm)

    @staticmethod
    def score(act: Tensor) -> Tensor:
        """Scores [S, U] of post-activations [S, B, U] or [S, B, U, H, W]. Their mean over a layer is 1, not their sum."""
        size_SU = act.abs().mean(dim=(1, *range(3, act.dim())))
        return size_SU / (size_SU.mean(dim=1, keepdim=True) + EPS)


def recycle(state, dormant: list[tuple[Units, Tensor]], purpose: str, *, reset_norm: bool) -> None:
    """Start the units of masks [S, U] anew, without asking the device how many there are."""
    for units, mask_SU in dormant:
        for name in (*units.incoming, *(units.norm if reset_norm else ())):
            is_bias = state.roles[name] is Role.BIAS
            new = torch.zeros_like(state.params[name]) if is_bias else state.fresh(name, purpose, state.step)
            view = state.by_unit(units, name)
            torch.where(like(mask_SU, view), state.by_unit(units, name, new), view, out=view)
            _forget(state, units, name, mask_SU)
    for units, mask_SU in dormant:
        for name in units.outgoing:
            view = state.by_unit(units, name)
            view.masked_fill_(like(mask_SU, view), 0.0)
            _forget(state, units, name, mask_SU)


def _forget(state, units: Units, name: str, mask_SU: Tensor) -> None:
    for moment in state.optimizer.moments(name).values():
        view = state.by_unit(units, name, moment)
        view.masked_fill_(like(mask_SU, view), 0.0)


def like(mask_SU: Tensor, view: Tensor) -> Tensor:
    """The mask with as many axes as a view [S, U, ...]."""
    return mask_SU.view(*mask_SU.shape, *[1] * (view.dim() - 2))
