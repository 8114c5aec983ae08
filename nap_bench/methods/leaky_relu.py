"""Leaky ReLU instead of ReLU (Maas et al. 2013; an arm of the NaP paper, Fig. 5)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from nap_bench.methods.base import Method
from nap_bench.spec import ModelSpec


@dataclass(frozen=True)
class LeakyReLU(Method):
    """h where h > 0, `negative_slope` h elsewhere: a unit that is off for every input still has a gradient.

    A post-activation is never exactly 0, so no unit counts as dead.

    negative_slope: in [0, 1]; 0 is ReLU, the baseline bit for bit.
    """

    name: ClassVar[str] = "leaky_relu"

    negative_slope: float = 0.01

    def __post_init__(self) -> None:
        if not 0.0 <= self.negative_slope <= 1.0:
            raise ValueError(f"leaky_relu wants negative_slope in [0, 1]; found {self.negative_slope}.")

    def transform_model(self, spec: ModelSpec) -> ModelSpec:
        if not self.negative_slope:
            return spec
        return dataclasses.replace(spec, activation="leaky_relu", negative_slope=self.negative_slope)
