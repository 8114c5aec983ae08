"""RMSNorm before every nonlinearity (Zhang & Sennrich 2019; placed as in the NaP paper, 3.1)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from nap_bench.methods.base import Method
from nap_bench.spec import ModelSpec


@dataclass(frozen=True)
class RMSNorm(Method):
    """LayerNorm without centring. Biases in front of the norm are dropped; scale and offset are free."""

    name: ClassVar[str] = "rms_norm"

    def transform_model(self, spec: ModelSpec) -> ModelSpec:
        return dataclasses.replace(spec, norm="rms")
