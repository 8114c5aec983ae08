"""Continual backprop: the least useful units replaced, a few at a time (Dohare et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import torch
from torch import Tensor

from nap_bench.methods.base import Method
from nap_bench.models.blocks import Units
from nap_bench.models.roles import Role
from nap_bench.spec import Run, nearest

UTILITIES = ("contribution", "zero_contribution", "adaptable_contribution")


@dataclass(frozen=True)
class ContinualBackprop(Method):
    """After every update, in every layer, a fraction `rate` of the mature units with the least utility is replaced.

        a <- a + 1,   u <- decay u + (1 - decay) y,   u_hat = u / (1 - decay^a),   mature if a > maturity

    and n = rate * (number of mature units) are replaced, fractions being saved up until they make one: those of least u_hat. A
    replaced unit's incoming weights are drawn from their initial distribution; its bias, its outgoing weights, both moments of
    all of these, its age and its utility are 0. The biases it feeds and the optimizer's step count stay. All layers choose
    before any is changed, and where a replaced unit feeds a replaced unit the weight between them is 0.

    rate: in [0, 1]; 0 is the baseline, bit for bit.  maturity: updates that a new unit is safe for, >= 0.  decay: in [0, 1).
    utility: y, from the activations h of the update's batch (and of space) and the updated weights:
      "contribution" E|h| sum|w_out|; "zero_contribution" E|h - m| sum|w_out|, m the running mean of h, its bias corrected as
      u's is; "adaptable_contribution" the same over sum|w_in|.
    reset_norm: scale and offset of the norm (and their moments) start anew too.

    How many units are due does not depend on which are chosen, so the host counts along and nothing is read back from the device.
    """

    name: ClassVar[str] = "continual_backprop"
    needs_acts: ClassVar[bool] = True

    rate: float = 1e-4
    maturity: int = 100
    decay: float = 0.99
    utility: str = "contribution"
    reset_norm: bool = True

    def __post_init__(self) -> None:
        if not 0.0 <= self.rate <= 1.0:
            raise ValueError(f"continual_backprop wants rate in [0, 1]; found {self.rate}.")
        if self.maturity < 0:
            raise ValueError(f"continual_backprop wants maturity >= 0; found {self.maturity}.")
        if not 0.0 <= self.decay < 1.0:
            raise ValueError(f"continual_backprop wants decay in [0, 1); found {self.decay}.")
        if self.utility not in UTILITIES:
            raise ValueError(nearest(self.utility, UTILITIES, "utility of continual_backprop"))

    def why_not(self, run: Run) -> str | None:
        if run.model.activation == "crelu":
            return "a unit of crelu is a pair of features of which one is always active: the sources define no utility of it"
        return None

    def setup(self, state) -> dict:
        """age, utility, mean [S, units of all layers]; census: per layer [mature, owed, [[step, units born then], ...]]."""
        if self.rate == 0.0:
            return {}
        total = sum(units.size for units in state.units)
        zeros = torch.zeros(len(state.seeds), total, device=state.device, dtype=state.flat.dtype)
        slots = {"age": zeros, "utility": zeros.clone()}
        if self.utility != "contribution":
            slots["mean"] = zeros.clone()
        return slots | {"census": [[0, 0, [[state.step, units.size]]] for units in state.units]}

    @torch.no_grad()
    def after_step(self, state) -> None:
        if self.rate == 0.0:
            return
        slots = state.slots[self.name]
        age, utility = slots["age"], slots["utility"]
        age.add_(1.0)
        utility.lerp_(self._instant(state, slots), 1.0 - self.decay)
        due = [self._due(layer, state.step) for layer in slots["census"]]
        if any(due):
            candidates = torch.where(age > self.maturity, utility / (1.0 - self.decay**age), torch.inf)
            self._replace(state, slots, candidates, due)

    def _instant(self, state, slots: dict) -> Tensor:
        """y [S, units of all layers]."""
        acts = [state.acts[units.name] for units in state.units]
        over = [(1, *range(3, act.dim())) for act in acts]
        if self.utility != "contribution":
            means = torch.cat([act.mean(dim=dims) for act, dims in zip(acts, over, strict=True)], dim=1)
            slots["mean"].lerp_(means, 1.0 - self.decay)
            unbiased = self._by_layer(state, slots["mean"] / (1.0 - self.decay ** slots["age"]))
            acts = [act - m.view(len(m), 1, -1, *[1] * (act.dim() - 3)) for act, m in zip(acts, unbiased, strict=True)]
        found = []
        for units, act, dims in zip(state.units, acts, over, strict=True):
            y_SU = act.abs().mean(dim=dims) * sum(self._size(state, units, name) for name in units.outgoing)
            if self.utility == "adaptable_contribution":
                y_SU = y_SU / self._size(state, units, units.incoming[0])
            found.append(y_SU)
        return torch.cat(found, dim=1)

    @staticmethod
    def _size(state, units, name: str) -> Tensor:
        """Sum of the absolute weights of every unit [S, U]."""
        view = state.by_unit(units, name)
        return view.abs().sum(dim=tuple(range(2, view.dim())))

    @staticmethod
    def _by_layer(state, tensor: Tensor) -> tuple[Tensor, ...]:
        return tensor.split([units.size for units in state.units], dim=1)

    def _due(self, layer: list, step: int) -> int:
        """How many units of a layer are due now, exactly: `owed` counts in units of 1 / denominator of the rate."""
        mature, owed, young = layer
        while young and step - young[0][0] > self.maturity:
            mature += young.pop(0)[1]
        numerator, denominator = Fraction(str(self.rate)).as_integer_ratio()
        num, owed = divmod(owed + numerator * mature, denominator)
        if num:
            young.append([step, num])
        layer[:2] = mature - num, owed
        return num

    def _replace(self, state, slots: dict, candidates: Tensor, due: list[int]) -> None:
        """Start the `due` units of each layer anew that have the least utility; of equal ones, the first."""
        row_S1 = torch.arange(len(state.seeds), device=state.device).unsqueeze(1)
        start, chosen = 0, []
        for units, scores_SU, num in zip(state.units, self._by_layer(state, candidates), due, strict=True):
            column_SN = scores_SU.argsort(dim=1, stable=True)[:, :num]
            if num:
                at = row_S1.expand_as(column_SN).flatten(), column_SN.flatten()
                chosen.append((units, [num] * len(state.seeds), at))
                for key in slots.keys() - {"census"}:
                    slots[key][row_S1, start + column_SN] = 0.0
            start += units.size
        restart(state, chosen, self.name, reset_norm=self.reset_norm)


Chosen = tuple[Units, list[int], tuple[Tensor, Tensor]]
"""Units of a layer that start anew: how many of each seed, and where: (seed [N], unit [N]), seed after seed."""


def restart(state, chosen: list[Chosen], purpose: str, *, reset_norm: bool) -> None:
    """Draw what comes into the units anew, and set biases, what goes out of them, and both moments of all of these to 0."""
    for units, counts, at in chosen:
        for name in (*units.incoming, *(units.norm if reset_norm else ())):
            view = state.by_unit(units, name)
            if state.roles[name] is Role.BIAS:
                view[at] = 0.0
            else:
                view[at] = state.fresh_rows(name, purpose, state.step, counts=counts, shape=view.shape[2:])
            _forget(state, units, name, at)
    for units, _, at in chosen:
        for name in units.outgoing:
            state.by_unit(units, name)[at] = 0.0
            _forget(state, units, name, at)


def _forget(state, units: Units, name: str, at: tuple[Tensor, Tensor]) -> None:
    for moment in state.optimizer.moments(name).values():
        state.by_unit(units, name, moment)[at] = 0.0
