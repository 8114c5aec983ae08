"""Concatenated ReLU instead of ReLU (Shang et al. 2016; against the loss of plasticity Abbas et al. 2023, 2303.07507)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from nap_bench.methods.base import Method
from nap_bench.models.resnet import BOTTLENECK
from nap_bench.spec import ModelSpec, Run


@dataclass(frozen=True)
class CReLU(Method):
    """relu(h) and relu(-h) side by side, so that one of them always has a gradient; the next layer reads twice the features.

    keep: share of every hidden layer's units or channels that is kept, in (0, 1], to have about as many parameters as the ReLU
      network (Kumar et al. 2023 remove 9 % of an MLP's units and 27 % of a CNN's). 1 keeps all, and has more parameters.
    """

    name: ClassVar[str] = "crelu"

    keep: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 < self.keep <= 1.0:
            raise ValueError(f"crelu wants keep in (0, 1]; found {self.keep}.")

    def why_not(self, run: Run) -> str | None:
        for wide in dict(run.model.size)["channels"] if run.model.family == "resnet" else ():
            if wide % BOTTLENECK:
                return f"keep={self.keep} leaves {wide} channels, and a resnet wants multiples of {BOTTLENECK}: choose another"
        return None

    def transform_model(self, spec: ModelSpec) -> ModelSpec:
        size = tuple(
            (key, self._kept(value) if key in ("widths", "channels", "hidden") else value) for key, value in spec.size
        )
        return dataclasses.replace(spec, activation="crelu", size=size)

    def _kept(self, size: int | tuple[int, ...]) -> int | tuple[int, ...]:
        return tuple(map(self._kept, size)) if isinstance(size, tuple) else max(1, round(self.keep * size))
