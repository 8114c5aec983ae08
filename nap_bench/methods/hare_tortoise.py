"""Hare & Tortoise: a slow average of the network, to which the network returns every so often (Lee et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nap_bench.methods.base import Method, Phase


@dataclass(frozen=True)
class HareTortoise(Method):
    """The tortoise is the running mean of the hare, the network that is trained; every `period` updates the hare starts from it.

        slow <- momentum slow + (1 - momentum) fast           after every update
        fast <- slow                                          after every `period`-th

    Evaluation reads the tortoise; accuracy before the update is the hare's. What running statistics remember (batch norm's) is
    averaged and taken over with the parameters; what is counted in whole numbers is copied. Nothing is aliased: both copies keep
    their own memory.

    momentum: in [0, 1); 0 is the baseline, bit for bit.  period: updates between two returns, >= 1, or None for never (then only
      evaluation differs).
    moments: what becomes of the optimizer's moments at a return: "keep" (the authors' code), or "reset", with its step count.
    """

    name: ClassVar[str] = "hare_tortoise"
    phase: ClassVar[Phase] = Phase.SHRINK

    momentum: float = 0.999
    period: int | None = 2000
    moments: str = "keep"

    def __post_init__(self) -> None:
        if not 0.0 <= self.momentum < 1.0:
            raise ValueError(f"hare_tortoise wants momentum in [0, 1); found {self.momentum}.")
        if self.period is not None and (type(self.period) is not int or self.period < 1):
            raise ValueError(f"hare_tortoise wants a whole period >= 1 or None; found {self.period}.")
        if self.moments not in ("keep", "reset"):
            raise ValueError(f"hare_tortoise wants moments 'keep' or 'reset'; found {self.moments!r}.")

    def setup(self, state) -> dict[str, Tensor]:
        """eval_params [S, P], and eval_params/NAME of every buffer: what evaluation reads, see `TrainState.as_evaluated`."""
        if self.momentum == 0.0:
            return {}
        return {key: fast.clone() for key, fast in self._fast(state).items()}

    @staticmethod
    def _fast(state) -> dict[str, Tensor]:
        buffers = {f"eval_params/{name}": buffer for name, buffer in state.buffers.items()}
        return {"eval_params": state.flat.detach(), **buffers}

    @torch.no_grad()
    def after_step(self, state) -> None:
        if self.momentum == 0.0:
            return
        slots, fasts = state.slots[self.name], self._fast(state)
        for key, fast in fasts.items():
            if fast.is_floating_point():
                slots[key].lerp_(fast, 1.0 - self.momentum)
            else:
                slots[key].copy_(fast)
        if self.period is not None and state.step % self.period == 0:
            for key, fast in fasts.items():
                fast.copy_(slots[key])
            if self.moments == "reset":
                state.optimizer.reset()
