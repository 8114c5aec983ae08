"""DASH: at a task switch weights shrink by how far they point away from where the loss pulls them (Shin et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nap_bench.methods.base import Method
from nap_bench.models.blocks import Conv2d
from nap_bench.models.roles import Role


@dataclass(frozen=True)
class DASH(Method):
    """Direction-aware shrinking: before the first update of a new task each unit's weights are multiplied by

        min(max(cos(-G, w), floor), 1)

    w being what comes into a unit of a linear layer, one kernel of a convolution (from one channel to another), or all biases of a
    layer together. G is a mean over tasks, G <- (1 - newest) G + newest g, of the tasks' gradients g, each a running mean over
    the task's updates: g <- decay g + (1 - decay) gradient. Scales and offsets of norms, noise and embeddings are left alone, and
    so are the optimizer's moments.

    floor: lambda, least factor, in [0, 1]; 1 is the baseline, bit for bit.  newest: alpha, weight of the task that ends, in (0, 1].
    decay: in [0, 1).
    """

    name: ClassVar[str] = "dash"
    told_of_tasks: ClassVar[bool] = True

    floor: float = 0.3
    newest: float = 0.3
    decay: float = 0.99

    def __post_init__(self) -> None:
        if not 0.0 <= self.floor <= 1.0:
            raise ValueError(f"dash wants floor in [0, 1]; found {self.floor}.")
        if not 0.0 < self.newest <= 1.0:
            raise ValueError(f"dash wants newest in (0, 1]; found {self.newest}.")
        if not 0.0 <= self.decay < 1.0:
            raise ValueError(f"dash wants decay in [0, 1); found {self.decay}.")

    @property
    def edits_at_boundaries(self) -> bool:
        return self.floor < 1.0

    def setup(self, state) -> dict[str, Tensor]:
        """task, tasks [S, P]: g of the task under way, and G."""
        return {key: torch.zeros_like(state.flat.grad) for key in ("task", "tasks")} if self.floor < 1.0 else {}

    @torch.no_grad()
    def after_backward(self, state) -> None:
        if self.floor < 1.0:
            state.slots[self.name]["task"].lerp_(state.flat.grad, 1.0 - self.decay)

    @torch.no_grad()
    def on_task_boundary(self, state, task: int) -> None:
        if self.floor == 1.0:
            return
        slots = state.slots[self.name]
        slots["tasks"].lerp_(slots["task"], self.newest)
        slots["task"].zero_()
        for name, role in state.roles.items():
            if role in (Role.WEIGHT, Role.OUTPUT, Role.BIAS):
                parameter = state.params[name].detach()
                is_kernel = isinstance(state.model.get_submodule(name.rpartition(".")[0]), Conv2d) and role != Role.BIAS
                over = (3, 4) if is_kernel else (1,)
                cosine = cosines(-state.view(slots["tasks"], name), parameter, over)
                parameter.mul_(cosine.clamp(self.floor, 1.0))


def cosines(left: Tensor, right: Tensor, over: tuple[int, ...]) -> Tensor:
    """Cosines over some axes, which stay with size 1; 0 where either vector is 0."""
    lengths = torch.linalg.vector_norm(left, dim=over, keepdim=True) * torch.linalg.vector_norm(
        right, dim=over, keepdim=True
    )
    return torch.where(lengths > 0, (left * right).sum(dim=over, keepdim=True) / lengths, 0.0)
