"""What an exhibit is made of: entries (a run under a label), and the results that its score reads.

Importing an exhibit imports no torch: scores, claims and report are made without it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from nap_bench.report.scores import Score

if TYPE_CHECKING:
    from nap_bench.spec import ModelSpec, Run

TUNED = Path(__file__).parents[2] / "config" / "tuned.json"
NUM_LAST = 10
"""Tasks that a late score averages over."""


class Entry(NamedTuple):
    """A run under the labels by which an exhibit's scores, claims and figures know it."""

    arm: str
    setting: str
    run: Run


def make_run(
    *, benchmark: Any, model: ModelSpec, stack: str, optimizer: Any, schedule: Any, seeds: tuple[int, ...]
) -> Run:
    """A run from components and a stack written `a+b`."""
    from nap_bench.methods import parse_stack
    from nap_bench.spec import Part, Run

    return Run(
        benchmark=Part.of(benchmark),
        model=model,
        methods=parse_stack(stack),
        optimizer=Part.of(optimizer),
        schedule=Part.of(schedule),
        seeds=seeds,
    )


def tuned_section(scale: str) -> Mapping[str, Any]:
    """Exhibit -> what `nap-bench tune` tried and chose, from config/tuned.json; empty before it has run at that scale."""
    if not TUNED.exists():
        return {}
    return json.loads(TUNED.read_text()).get(scale, {})


def tuned(exhibit: str, scale: str) -> Mapping[str, Mapping[str, float]]:
    """Arm -> chosen hyperparameters."""
    return tuned_section(scale).get(exhibit, {}).get("chosen", {})


def sweep_of_decay(
    entry: Callable[..., Entry], scale: str, seeds: tuple[int, ...], lr: float, grid: tuple[float, ...]
) -> dict[str, list[tuple[dict[str, float], Entry]]]:
    """What `nap-bench tune` tries for the rival of NaP, LayerNorm with weight decay, at the learning rate chosen before."""
    tried = [{"lr": lr, "weight_decay": coef} for coef in grid]
    return {"ln_weight_decay": [(hyper, entry(scale, "ln_weight_decay", hyper, seeds=seeds)) for hyper in tried]}


@dataclass(frozen=True)
class Labelled:
    """A result (results/runs/<run_id>.json) under an exhibit's labels."""

    arm: str
    setting: str
    result: Mapping[str, Any]

    @property
    def seeds(self) -> list[int]:
        return self.result["spec"]["seeds"]

    @property
    def params(self) -> Mapping[str, Any]:
        """Parameters of the benchmark."""
        return self.result["spec"]["benchmark"]["params"]

    def series(self, metric: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps [T] and values [T, S] of a metric; NaN where a value was not finite."""
        table = self.result["metrics"][metric]
        return np.array(table["steps"]), np.array(table["values"], dtype=float)


def curve(labelled: Labelled, measure: str, xs: np.ndarray, values_TS: np.ndarray) -> Iterator[Score]:
    """Score rows of a measure over x."""
    for x, values_S in zip(xs, values_TS, strict=True):
        for seed, value in zip(labelled.seeds, values_S, strict=True):
            yield Score(labelled.arm, labelled.setting, measure, float(x), seed, float(value))


def scalar(labelled: Labelled, measure: str, values_S: np.ndarray) -> Iterator[Score]:
    """Score rows of one number per seed. A diverged seed stays, as NaN."""
    for seed, value in zip(labelled.seeds, values_S, strict=True):
        yield Score(labelled.arm, labelled.setting, measure, None, seed, float(value))
