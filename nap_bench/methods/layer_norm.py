"""LayerNorm before every nonlinearity (Ba et al. 2016; placed as in the NaP paper, 3.1)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from nap_bench.methods.base import Method
from nap_bench.spec import ModelSpec


@dataclass(frozen=True)
class LayerNorm(Method):
    """The norm of NaP without its projection. Biases in front of the norm are dropped; scale and offset are free."""

    name: ClassVar[str] = "layer_norm"

    def transform_model(self, spec: ModelSpec) -> ModelSpec:
        return dataclasses.replace(spec, norm="layer")
