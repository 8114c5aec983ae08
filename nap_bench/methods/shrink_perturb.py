"""Shrink & Perturb (Ash & Adams 2020, 1910.08475), and what else is published under that name."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nap_bench.methods.base import Method, Phase
from nap_bench.methods.l2 import OVER
from nap_bench.spec import nearest

VARIANTS = ("fresh", "weights", "initial", "gaussian", "lr_gaussian")


@dataclass(frozen=True)
class ShrinkPerturb(Method):
    """theta <- shrink theta + noise phi, after every `period`-th update or at task switches; not a norm's scale and offset.

    variant: what phi is.
      "fresh": a new draw from the initial distribution (Ash & Adams; Kumar et al. 2023, at every update).
      "weights": the same for weights, while biases are left alone (LucMc/continual-learning).
      "initial": the run's own initial parameters (RLE-Foundation/Plasticine; Hare & Tortoise, Lee et al. 2024). Nothing is drawn.
      "gaussian": standard normal, whatever the layer (Dohare et al. 2024, who shrink by weight decay).
      "lr_gaussian": the same times the learning rate: theta <- (1 - lr (1 - shrink)) theta + lr noise phi (UPGD, Elsayed 2024).
    shrink: in [0, 1].  noise: >= 0.  shrink=1 with noise=0 is the baseline, bit for bit.
    period: updates between two, >= 1, or None for never.  told_of_tasks: act before the first update of every new task too.
    A fresh draw at an update is a normal one with the initial distribution's standard deviation; at a task switch it is exact.
    """

    name: ClassVar[str] = "shrink_perturb"
    version: ClassVar[int] = 2
    phase: ClassVar[Phase] = Phase.SHRINK

    variant: str = "fresh"
    shrink: float = 0.9999
    noise: float = 0.01
    period: int | None = 1
    told_of_tasks: bool = False

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise ValueError(nearest(self.variant, VARIANTS, "variant of shrink_perturb"))
        if not 0.0 <= self.shrink <= 1.0:
            raise ValueError(f"shrink_perturb wants shrink in [0, 1]; found {self.shrink}.")
        if not 0 <= self.noise < math.inf:
            raise ValueError(f"shrink_perturb wants a finite noise >= 0; found {self.noise}.")
        if self.period is not None and self.period < 1:
            raise ValueError(f"shrink_perturb wants period >= 1 or None; found {self.period}.")

    @property
    def is_neutral(self) -> bool:
        return self.shrink == 1.0 and self.noise == 0.0

    @property
    def edits_at_boundaries(self) -> bool:
        return self.told_of_tasks and not self.is_neutral

    def _touched(self, state) -> Tensor:
        """[P]: 1 for the entries it acts on, 0 for those left alone."""
        over = "weights" if self.variant == "weights" else "weights_and_biases"
        return state.of_roles(*OVER[over]).to(state.values.dtype)

    def setup(self, state) -> dict[str, Tensor]:
        """shrinkage [P]: the share that an entry loses.  gain [P]: what multiplies a normal draw ("initial": [S, P], is added)."""
        if self.is_neutral:
            return {}
        scales = {"fresh": state.initial_std, "weights": state.initial_std, "initial": state.values.clone}
        scale = scales[self.variant]() if self.variant in scales else 1.0
        touched_P = self._touched(state)
        return {"shrinkage": (1.0 - self.shrink) * touched_P, "gain": self.noise * touched_P * scale}

    def after_step(self, state) -> None:
        if not self.is_neutral and self.period is not None and state.step % self.period == 0:
            self._act(state, self.name)

    def on_task_boundary(self, state, task: int) -> None:
        if not self.is_neutral:
            self._act(state, f"{self.name}/boundary", exact=True)

    @torch.no_grad()
    def _act(self, state, purpose: str, *, exact: bool = False) -> None:
        """Shrink and perturb. exact: draw from the initial distribution itself where the variant is about it."""
        shrinkage, gain = (state.slots[self.name][key] for key in ("shrinkage", "gain"))
        if self.variant == "lr_gaussian":
            shrinkage, gain = shrinkage * state.lr, gain * state.lr
        state.values.addcmul_(state.values, shrinkage, value=-1.0)
        if not self.noise:
            return
        if self.variant == "initial":
            state.values.add_(gain)
        elif exact and self.variant in ("fresh", "weights"):
            phi = [state.fresh(name, purpose, state.step).flatten(1) for name in state.params]
            state.values.addcmul_(torch.cat(phi, dim=1), self._touched(state), value=self.noise)
        else:
            state.values.addcmul_(state.normal(purpose), gain)
