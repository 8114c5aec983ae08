"""GroupNorm before every nonlinearity (Wu & He 2018; placed as the norms of the NaP paper, 3.1)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from nap_bench.methods.base import Method
from nap_bench.models.resnet import BOTTLENECK
from nap_bench.spec import ModelSpec, Run


@dataclass(frozen=True)
class GroupNorm(Method):
    """LayerNorm of each group of units or channels by itself. Biases in front of the norm are dropped; scale and offset are free.

    groups: of every hidden layer, >= 1; they divide its size. 1 is LayerNorm.
    """

    name: ClassVar[str] = "group_norm"

    groups: int = 4

    def __post_init__(self) -> None:
        if self.groups < 1:
            raise ValueError(f"group_norm wants groups >= 1; found {self.groups}.")

    def why_not(self, run: Run) -> str | None:
        size = dict(run.model.size)
        channels = size.get("channels", ())
        inside = [wide // BOTTLENECK for wide in channels] if run.model.family == "resnet" else []
        for units in (*channels, *inside, *size.get("widths", ()), size.get("hidden", 0)):
            if units % self.groups:
                return f"groups={self.groups} does not divide a hidden layer of {units}: choose another number or size"
        return None

    def transform_model(self, spec: ModelSpec) -> ModelSpec:
        return dataclasses.replace(spec, norm="group", norm_groups=self.groups)
