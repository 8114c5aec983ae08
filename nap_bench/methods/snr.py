"""Self-normalised resets: a unit starts anew once it is silent for longer than it used to be (Farias & Jozefiak 2025)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nap_bench.methods.base import Method
from nap_bench.methods.continual_backprop import restart
from nap_bench.spec import Run, later


@dataclass(frozen=True)
class SNR(Method):
    """Each unit of each seed has a threshold of its own: the `percentile` of the gaps between the updates at which it fired.

        a_i <- 0 if the unit fired, else a_i + 1              a unit fires where it is positive for any example (and pixel)
        counts_i[g] <- counts_i[g] + 1 where a gap of g updates ended: the unit fired, after g - 1 silent ones
        reset if a_i >= tau_i: the gap, a_i + 1 so far, is counted, and a_i <- 0

    and every `refresh` updates q_i, the least gap that a share `percentile` of those counted does not exceed, becomes tau_i; but
    where q_i > tau_i, gaps longer than tau_i are not seen in full, and tau_i grows by `expansion` instead. Then counting starts
    anew; tau_i is never less than `shortest`. A unit of which no gap ended keeps its threshold. Of a unit that is reset incoming
    weights are drawn anew; bias, outgoing weights and both moments of all of these are 0 (the biases it feeds and the optimizer's
    step count stay).

    percentile: in (0, 1); None resets nothing and is the baseline, bit for bit.  start: first threshold, in [shortest, longest].
    refresh: updates between two looks at the counts, >= 1.  expansion: >= 1.
    shortest: smallest threshold, in updates, >= 1.
    longest: largest threshold, in updates, and longest gap counted: as many counters are kept for every unit.
    reset_norm: scale and offset of the norm (and their moments) start anew too.
    """

    name: ClassVar[str] = "snr"
    needs_acts: ClassVar[bool] = True

    percentile: float | None = 0.99
    start: int = 100
    refresh: int = 1000
    expansion: float = 2.0
    longest: int = 1000
    reset_norm: bool = False
    shortest: int = later(1)

    def __post_init__(self) -> None:
        if self.percentile is not None and not 0.0 < self.percentile < 1.0:
            raise ValueError(f"snr wants percentile in (0, 1) or None; found {self.percentile}.")
        if not 1 <= self.shortest <= self.start <= self.longest:
            found = f"{self.shortest}, {self.start} and {self.longest}"
            raise ValueError(f"snr wants 1 <= shortest <= start <= longest; found {found}.")
        if self.refresh < 1 or not self.expansion >= 1.0:
            raise ValueError(f"snr wants refresh >= 1 and expansion >= 1; found {self.refresh} and {self.expansion}.")

    def why_not(self, run: Run) -> str | None:
        if run.model.activation not in ("relu", "leaky_relu"):
            return f"a unit of {run.model.activation!r} does not fall silent: there is no sign by which it fires or not"
        return None

    def setup(self, state) -> dict[str, Tensor]:
        """age, threshold [S, U], U units of all layers; counts [S, U, longest]: of gaps of 1, 2, ... updates."""
        if self.percentile is None:
            return {}
        shape = len(state.seeds), sum(units.size for units in state.units)
        ages = torch.zeros(shape, dtype=torch.int64, device=state.device)
        counts = torch.zeros(*shape, self.longest, dtype=torch.int32, device=state.device)
        return {"age": ages, "threshold": torch.full_like(ages, self.start), "counts": counts}

    @torch.no_grad()
    def after_step(self, state) -> None:
        if self.percentile is None:
            return
        age, threshold, counts = (state.slots[self.name][key] for key in ("age", "threshold", "counts"))
        fired_SU = torch.cat([fires(state.acts[units.name]) for units in state.units], dim=1)
        self._count(counts, age, fired_SU)
        age.add_(1).masked_fill_(fired_SU, 0)
        due_SU = age >= threshold
        if due_SU.any():  # of a GPU the one question in an update that waits for the answer
            self._count(counts, age, due_SU)
            age.masked_fill_(due_SU, 0)
            layers = zip(state.units, due_SU.split([units.size for units in state.units], dim=1), strict=True)
            totals = [(units, due, due.sum(dim=1).tolist()) for units, due in layers]
            chosen = [(units, each, due.nonzero(as_tuple=True)) for units, due, each in totals if any(each)]
            restart(state, chosen, self.name, reset_norm=self.reset_norm)
        if state.step % self.refresh == 0:
            self._refresh(counts, threshold)

    @staticmethod
    def _count(counts: Tensor, age: Tensor, ended_SU: Tensor) -> None:
        """Count gaps that ended after `age` silent updates; all beyond the longest as the longest."""
        place_SU1 = age.clamp(max=counts.shape[2] - 1).unsqueeze(2)
        counts.scatter_add_(2, place_SU1, ended_SU.unsqueeze(2).to(counts.dtype))

    def _refresh(self, counts: Tensor, threshold: Tensor) -> None:
        upto = counts.cumsum(dim=2)  # int64
        total_SU = upto[:, :, -1]
        quantile_SU = (upto < self.percentile * total_SU.double().unsqueeze(2)).sum(dim=2) + 1
        grown_SU = (threshold * self.expansion).ceil().long().clamp(max=self.longest)
        found_SU = torch.where(quantile_SU <= threshold, quantile_SU, grown_SU)
        threshold.copy_(torch.where(total_SU > 0, found_SU.clamp(min=self.shortest), threshold))
        counts.zero_()


def fires(act: Tensor) -> Tensor:
    """Which units [S, U] are positive anywhere in post-activations [S, B, U] or [S, B, U, H, W]."""
    return act.amax(dim=(1, *range(3, act.dim()))) > 0
