"""BatchNorm before every nonlinearity (Ioffe & Szegedy 2015; placed as the norms of the NaP paper, 3.1)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from nap_bench.methods.base import Method
from nap_bench.models import CAUSAL
from nap_bench.spec import ModelSpec, Run


@dataclass(frozen=True)
class BatchNorm(Method):
    """Each unit normalised over the batch; in evaluation by running statistics. Biases in front of the norm are dropped."""

    name: ClassVar[str] = "batch_norm"

    def why_not(self, run: Run) -> str | None:
        if dict(run.benchmark.params).get("batch_size") == 1:
            return "normalises over a batch, and batch_size is 1: choose a larger one"
        if run.model.family in CAUSAL:
            return f"its statistics would show a token of a {run.model.family} those that follow it"
        if dict(run.model.size).get("own_norm") == "batch":
            return "the network has batch norm of its own before every nonlinearity"
        return None

    def transform_model(self, spec: ModelSpec) -> ModelSpec:
        return dataclasses.replace(spec, norm="batch")
