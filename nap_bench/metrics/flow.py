"""The gradient-flow check: every update's radial and tangential part, and the norm that tangential updates predict.

Shape suffixes: S seeds, P parameters of one seed, G scale-invariant groups, N elements of a group. All in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nap_bench.metrics.norms import global_norm, update_parts
from nap_bench.models.blocks import Group
from nap_bench.state import TrainState


class Flow:
    """Sums over updates, on the device, for every scale-invariant group.

    A gradient step of such a group is perpendicular to it (paper A.5), so between two edits by anything but the
    optimizer, a projection above all,

        ||W_T||^2 = ||W_0||^2 + sum over updates of ||dW_t||^2

    and the norm grows as the square root of the number of updates where their length is constant (A.5 prints linearly).
    The prediction starts anew wherever the norm before an update is not the norm after the one before it.
    """

    def __init__(self, state: TrainState):
        self.groups = tuple(group for group in state.groups if group.scale_invariant)
        shape = (len(self.groups), len(state.seeds))
        zeros_GS = torch.zeros(shape, dtype=torch.float64, device=state.device)
        names = ("norm", "start_norm", "predicted_squared", "radial_update", "tangential_update")
        self.memory = {name: zeros_GS.clone() for name in names}
        """norm: after the last update, before what followed it.  start_norm: where the prediction started.
        radial_update (signed) and tangential_update: summed lengths since the last `read`."""

    @torch.no_grad()
    def add(self, state: TrainState, before_SP: Tensor) -> None:
        """Take in an update: between the optimizer's step and the tail. before_SP: parameters before the step."""
        flats = (before_SP, state.flat.detach())
        pairs = [tuple(self._vector(state, group, flat_SP) for flat_SP in flats) for group in self.groups]
        before_GS = torch.stack([global_norm(before_SN) for before_SN, _ in pairs])
        parts = [update_parts(*pair) for pair in pairs]
        radial_GS, tangential_GS = (torch.stack(part) for part in zip(*parts, strict=True))
        memory = self.memory
        edited_GS = before_GS != memory["norm"]
        memory["start_norm"] = torch.where(edited_GS, before_GS, memory["start_norm"])
        squared_GS = torch.where(edited_GS, before_GS.square(), memory["predicted_squared"])
        memory["predicted_squared"] = squared_GS + radial_GS.square() + tangential_GS.square()
        memory["norm"] = torch.stack([global_norm(after_SN) for _, after_SN in pairs])
        memory["radial_update"] += radial_GS
        memory["tangential_update"] += tangential_GS

    def read(self) -> dict[str, Tensor]:
        """Metric -> [S], and start the sums of lengths anew."""
        found_GS = {
            "norm_before_projection": self.memory["norm"],
            "predicted_norm": self.memory["predicted_squared"].sqrt(),
            "start_norm": self.memory["start_norm"],
            "radial_update": self.memory["radial_update"],
            "tangential_update": self.memory["tangential_update"],
        }
        for name in ("radial_update", "tangential_update"):
            self.memory[name] = torch.zeros_like(self.memory[name])
        return {
            f"flow/{name}/{group.name}": values_GS[index]
            for name, values_GS in found_GS.items()
            for index, group in enumerate(self.groups)
        }

    @staticmethod
    def _vector(state: TrainState, group: Group, flat_SP: Tensor) -> Tensor:
        """The group's parameters side by side, [S, N]."""
        return torch.cat([state.view(flat_SP, name).flatten(1) for name in group.members], dim=1).double()
