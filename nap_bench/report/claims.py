"""Claims and their verdicts: scores in, results/<scale>/claims/<exhibit>.json out.

A claim names the zone in which its effect has to lie, fixed before the runs:

    superiority     (margin, infinity)     the effect is larger than the smallest one that matters
    noninferiority  (-margin, infinity)    no loss that matters
    equivalence     (-margin, margin)      no difference that matters, either way

and one rule judges all three: SUPPORTED if the whole 95 % interval of the paired difference lies inside the zone,
CONTRADICTED if it lies wholly outside, INCONCLUSIVE otherwise. So a wide interval around zero supports nothing: that
no significant difference was found is not that there is none. A superiority claim is contradicted by an effect that
is real but smaller than its margin.

The effect of a seed is positive in the claim's favour; its interval is Student's t, whose coverage nap_bench/stats.py
states. A claim with several measurements holds if all of them hold (intersection-union test), which needs no
correction for multiplicity: each must pass at full strength.

A diverged seed is never dropped. Either the measurement declares what it counts as, the worst possible value, or the
claim cannot be decided. A planned seed without result is counted as missing and makes the verdict partial.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nap_bench import stats
from nap_bench.report.scores import Scores
from nap_bench.store import write_whole

SUPPORTED = "SUPPORTED"
CONTRADICTED = "CONTRADICTED"
INCONCLUSIVE = "INCONCLUSIVE"
NOT_RUN = "NOT RUN"
KINDS = ("superiority", "noninferiority", "equivalence")
Side = tuple[str, str, str]
"""(measure, arm, setting), as `Scores.values` takes them."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One number that decides: cells compared seed by seed, and an interval for their effect.

    label: unique in its claim. better: "higher" or "lower", of `measure`. if_diverged: what `measure` counts as for a
    diverged seed, the worst value it can take (accuracy 0.0, dead fraction 1.0); None if there is no such value.
    """

    label: str
    measure: str
    better: str
    if_diverged: float | None = None

    def __post_init__(self) -> None:
        if self.better not in ("higher", "lower"):
            raise ValueError(f"Measurement {self.label!r}: better must be 'higher' or 'lower'; found {self.better!r}.")
        if self.if_diverged is not None and not math.isfinite(self.if_diverged):
            raise ValueError(
                f"Measurement {self.label!r}: if_diverged must be finite or None; found {self.if_diverged}."
            )
        plus, minus = self.plus, self.minus
        if set(plus) & set(minus):
            raise ValueError(f"Measurement {self.label!r} compares {min(set(plus) & set(minus))} with itself.")

    @property
    def plus(self) -> tuple[Side, ...]:
        """The cells in whose favour the claim speaks."""
        raise NotImplementedError

    @property
    def minus(self) -> tuple[Side, ...]:
        """The cells that they are compared with."""
        raise NotImplementedError

    @property
    def sign(self) -> float:
        return 1.0 if self.better == "higher" else -1.0

    def effects(self, plus_KS: NDArray, minus_KS: NDArray) -> NDArray:
        """[S], positive in the claim's favour: the sum over `plus` less the sum over `minus`."""
        return self.sign * (plus_KS.sum(axis=0) - minus_KS.sum(axis=0))

    def interval(self, plus_KS: NDArray, minus_KS: NDArray) -> tuple[stats.Interval, str]:
        """The effect over seeds, and the name of the interval's construction. All values are finite."""
        return stats.mean_interval(self.effects(plus_KS, minus_KS)), "paired t"


@dataclass(frozen=True, kw_only=True)
class Paired(Measurement):
    """`measure` of `arm` minus that of `against`, seed by seed; sign flipped if lower is better.

    against_setting, against_measure: where `against` differs; by default both sides share setting and measure. An arm
    may stand against itself at another setting or measure (late against early).
    """

    arm: str
    against: str
    setting: str = ""
    against_setting: str | None = None
    against_measure: str | None = None

    @property
    def plus(self) -> tuple[Side, ...]:
        return ((self.measure, self.arm, self.setting),)

    @property
    def minus(self) -> tuple[Side, ...]:
        measure = self.measure if self.against_measure is None else self.against_measure
        setting = self.setting if self.against_setting is None else self.against_setting
        return ((measure, self.against, setting),)


@dataclass(frozen=True, kw_only=True)
class Contrast(Measurement):
    """The sum of `measure` over `arms` minus the sum over `against`, seed by seed: a difference of differences.

    (a - b) - (c - d) is arms=(a, d), against=(b, c). Both sides have as many arms, so that levels cancel.
    """

    arms: tuple[str, ...]
    against: tuple[str, ...]
    setting: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.arms) != len(self.against):
            raise ValueError(
                f"Measurement {self.label!r}: levels cancel only between as many arms; found {len(self.arms)} against "
                f"{len(self.against)}."
            )

    @property
    def plus(self) -> tuple[Side, ...]:
        return tuple((self.measure, arm, self.setting) for arm in self.arms)

    @property
    def minus(self) -> tuple[Side, ...]:
        return tuple((self.measure, arm, self.setting) for arm in self.against)


@dataclass(frozen=True, kw_only=True)
class Spread(Contrast):
    """How much less `arms` differ from each other than `against` do: standard deviation over arms of their means over seeds.

    The effect is the spread of `against` minus that of `arms`, whichever value of `measure` is better. Its interval
    resamples seeds, all arms together (stats.paired_bootstrap); `effects` gives each seed's own spreads, which noise widens.
    """

    def effects(self, plus_KS: NDArray, minus_KS: NDArray) -> NDArray:
        return minus_KS.std(axis=0, ddof=1) - plus_KS.std(axis=0, ddof=1)

    def interval(self, plus_KS: NDArray, minus_KS: NDArray) -> tuple[stats.Interval, str]:
        num_arms = len(plus_KS)

        def shrinkage(values_KS: NDArray) -> NDArray:
            return stats.spread(values_KS[..., num_arms:, :]) - stats.spread(values_KS[..., :num_arms, :])

        interval = stats.paired_bootstrap(np.concatenate([plus_KS, minus_KS]), shrinkage)
        return interval, interval.method


@dataclass(frozen=True, kw_only=True)
class Pooled(Measurement):
    """`measure` of `arm` minus that of `against`, each pooled over seeds and `settings` together (tasks, games).

    pool: "iqm" or "mean" (Agarwal et al. 2021). The interval resamples seeds within each arm and setting
    (stats.stratified_bootstrap); `effects` pools each seed's settings alone.
    """

    arm: str
    against: str
    settings: tuple[str, ...]
    pool: str = "iqm"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pool not in stats.POOLS or not self.settings:
            raise ValueError(
                f"Measurement {self.label!r} wants settings and a pool of {', '.join(stats.POOLS)}; found {self.settings} "
                f"and {self.pool!r}."
            )

    @property
    def plus(self) -> tuple[Side, ...]:
        return tuple((self.measure, self.arm, setting) for setting in self.settings)

    @property
    def minus(self) -> tuple[Side, ...]:
        return tuple((self.measure, self.against, setting) for setting in self.settings)

    def effects(self, plus_KS: NDArray, minus_KS: NDArray) -> NDArray:
        pool = stats.POOLS[self.pool]
        return self.sign * (pool(plus_KS.T[:, None]) - pool(minus_KS.T[:, None]))

    def interval(self, plus_KS: NDArray, minus_KS: NDArray) -> tuple[stats.Interval, str]:
        pair = (plus_KS.T, minus_KS.T) if self.better == "higher" else (minus_KS.T, plus_KS.T)
        interval = stats.pooled_difference(*pair, self.pool)
        return interval, interval.method


@dataclass(frozen=True, kw_only=True)
class PairedPool(Pooled):
    """As Pooled, where a run holds all settings of a seed, as a chain of games does: seeds are paired, each with its own pool."""

    def interval(self, plus_KS: NDArray, minus_KS: NDArray) -> tuple[stats.Interval, str]:
        return Measurement.interval(self, plus_KS, minus_KS)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A sentence of the paper made decidable.

    id: short, unique in its exhibit. source: "Sec. 3.1, Fig. 1". sentence: one, in the paper's terms. margin: >= 0,
    in `unit`, the smallest effect that would matter, fixed before the runs. paper_claim: its number among the paper's
    21 claims.
    """

    id: str
    source: str
    sentence: str
    kind: str
    margin: float
    unit: str
    measurements: tuple[Measurement, ...]
    paper_claim: int | None = None

    def __post_init__(self) -> None:
        zone(self.kind, self.margin)
        if not self.measurements:
            raise ValueError(f"Claim {self.id!r} has no measurement, so nothing could decide it.")


def zone(kind: str, margin: float) -> tuple[float, float]:
    """The open interval in which an effect has to lie for a claim of this kind to hold."""
    if kind not in KINDS:
        raise ValueError(f"Unknown kind of claim {kind!r}. Known: {', '.join(KINDS)}.")
    if not 0 <= margin < math.inf or (kind == "equivalence" and margin == 0):
        raise ValueError(f"A margin is a finite number >= 0, and > 0 for equivalence; found {margin} for {kind}.")
    return margin if kind == "superiority" else -margin, margin if kind == "equivalence" else math.inf


def decide(kind: str, margin: float, low: float, high: float) -> str:
    """SUPPORTED, CONTRADICTED or INCONCLUSIVE from the interval [low, high] of the effect."""
    least, most = zone(kind, margin)
    if least < low and high < most:
        return SUPPORTED
    if high < least or low > most:
        return CONTRADICTED
    return INCONCLUSIVE


def overall(verdicts: Iterable[str]) -> str:
    """The verdict of a claim from those of its measurements: all must hold, so one that is contradicted settles it."""
    verdicts = set(verdicts)
    return next(verdict for verdict in (CONTRADICTED, NOT_RUN, INCONCLUSIVE, SUPPORTED) if verdict in verdicts)


def phrase(verdict: str, scale: str) -> str:
    """A verdict in words, with its scale: "supported at laptop scale"."""
    return f"{verdict.lower()} at {scale} scale"


def judge(
    claims: Iterable[Claim],
    scores: Scores,
    *,
    exhibit: str,
    scale: str,
    expected_seeds: Iterable[int] | Mapping[tuple[str, str], Iterable[int]],
) -> dict[str, Any]:
    """Verdicts as data for JSON, claims in the order given.

    expected_seeds: the planned seeds; a mapping (arm, setting) -> seeds where cells differ in them, with no entry for
    a cell that is not planned. An arm without results makes its claims NOT RUN; a measure that an existing arm lacks
    is an error, and so is a seed that was not planned (tuning seeds never decide a claim).
    """
    claims = tuple(claims)
    ids = [claim.id for claim in claims]
    if len(set(ids)) < len(ids):
        raise ValueError(f"Exhibit {exhibit!r} has claims of the same id: {', '.join(sorted(ids))}.")
    if not isinstance(expected_seeds, Mapping):
        expected_seeds = tuple(expected_seeds)
    return {
        "exhibit": exhibit,
        "scale": scale,
        "claims": [_judge(claim, scores, scale, expected_seeds) for claim in claims],
    }


def write(path: Path, verdicts: Mapping[str, Any]) -> None:
    """Write what `judge` returned, whole or not at all; the same verdicts give the same bytes."""
    write_whole(Path(path), json.dumps(verdicts, indent=1, allow_nan=False) + "\n")


def read(path: Path) -> dict[str, Any]:
    return json.loads(Path(path).read_text(encoding="utf-8"))


def _judge(claim: Claim, scores: Scores, scale: str, expected_seeds: Any) -> dict[str, Any]:
    measurements = [_measure(claim, asked, scores, scale, expected_seeds) for asked in claim.measurements]
    return {
        "id": claim.id,
        "source": claim.source,
        "sentence": claim.sentence,
        "paper_claim": claim.paper_claim,
        "kind": claim.kind,
        "margin": claim.margin,
        "unit": claim.unit,
        "verdict": overall(m["verdict"] for m in measurements),
        "scale": scale,
        "partial": any(m["num_missing"] > 0 for m in measurements),
        "note": " ".join(f"{m['label']}: {m['note']}" for m in measurements if m["note"]),
        "measurements": measurements,
    }


def _measure(claim: Claim, asked: Measurement, scores: Scores, scale: str, expected_seeds: Any) -> dict[str, Any]:
    sides = asked.plus + asked.minus
    cells = [f"{arm} ({setting})" if setting else arm for _, arm, setting in sides]
    planned = [_planned(expected_seeds, arm, setting) for _, arm, setting in sides]
    found = [_found(scores, side, seeds) for side, seeds in zip(sides, planned, strict=True)]
    seeds = sorted(set.intersection(*(set(values) for values in found)))
    missing = sorted(set.intersection(*planned) - set(seeds))
    diverged = [[seed for seed in seeds if not math.isfinite(values[seed])] for values in found]

    counted = [_counted(asked, values) for values in found]
    values_KS = np.array([[values[seed] for seed in seeds] for values in counted], dtype=np.float64)
    is_finite_S = np.isfinite(values_KS).all(axis=0)
    kept = [values_KS[: len(asked.plus)][:, is_finite_S], values_KS[len(asked.plus) :][:, is_finite_S]]
    num_finite = int(is_finite_S.sum())
    interval, method = asked.interval(*kept) if num_finite else (None, None)
    finite = [seed for seed, is_finite in zip(seeds, is_finite_S, strict=True) if is_finite]
    effects = dict.fromkeys(seeds) | dict(zip(finite, asked.effects(*kept).tolist(), strict=True))

    notes = [f"No result yet for {_seeds(missing)}."] if missing else []
    counted_as = "" if asked.if_diverged is None else f", counted as {asked.if_diverged:g}"
    notes += [
        f"{cell} diverged at {_seeds(lost)}{counted_as}." for cell, lost in zip(cells, diverged, strict=True) if lost
    ]
    alike = sorted(seed for seed in seeds if sum(seed in lost for lost in diverged) > 1)
    if len(seeds) < 2:
        verdict = NOT_RUN
        unplanned = [cell for cell, p in zip(cells, planned, strict=True) if not p]
        absent = [f"{cell}: not planned at {scale} scale." for cell in unplanned]
        if len(unplanned) > 2:
            absent = [f"{unplanned[0]} and {len(unplanned) - 1} more: not planned at {scale} scale."]
        absent = absent or [f"{cell}: no result." for cell, values in zip(cells, found, strict=True) if not values]
        notes = absent or [f"An interval needs at least 2 paired seeds; found {len(seeds)}.", *notes]
    elif num_finite < len(seeds):
        verdict = INCONCLUSIVE
        notes.append("What a diverged seed counts as is not declared for this measure, so nothing is decided.")
    else:
        verdict = decide(claim.kind, claim.margin, interval.low, interval.high)
        if verdict == SUPPORTED and alike and claim.kind != "superiority":
            verdict = INCONCLUSIVE
            notes.append(f"Both sides diverged at {_seeds(alike)}: failing alike is no evidence of {claim.kind}.")
    return {
        "label": asked.label,
        "measure": asked.measure,
        "against_measure": asked.minus[0][0],
        "unit": claim.unit,
        "better": asked.better,
        "arms": [arm for _, arm, _ in sides],
        "settings": [setting for _, _, setting in sides],
        "estimate": interval.estimate if num_finite else None,
        "low": interval.low if num_finite > 1 else None,
        "high": interval.high if num_finite > 1 else None,
        "confidence": stats.CONFIDENCE,
        "method": method or "paired t",
        "n": num_finite,
        "num_diverged": len(set().union(*diverged)),
        "num_missing": len(missing),
        "verdict": verdict,
        "note": " ".join(notes),
        "per_seed": {str(seed): effect for seed, effect in effects.items()},
    }


def _planned(expected_seeds: Any, arm: str, setting: str) -> set[int]:
    return set(expected_seeds.get((arm, setting), ()) if isinstance(expected_seeds, Mapping) else expected_seeds)


def _found(scores: Scores, side: Side, planned: set[int]) -> dict[int, float]:
    _, arm, setting = side
    if not scores.has_cell(arm, setting):
        return {}
    values = scores.values(*side)
    if not values.keys() <= planned:
        raise ValueError(
            f"{scores.source} have seeds {sorted(values.keys() - planned)} of arm {arm!r} at setting {setting!r}, "
            f"which were not planned (planned: {sorted(planned)}). Make the scores anew with `nap-bench score`."
        )
    return values


def _counted(asked: Measurement, values: Mapping[int, float]) -> dict[int, float]:
    """The values with diverged seeds counted as declared, or as NaN. Refuses a declared value that is not the worst."""
    if asked.if_diverged is None:
        return {seed: value if math.isfinite(value) else math.nan for seed, value in values.items()}
    rounding = 1e-9 * max(1.0, abs(asked.if_diverged))
    for seed, value in values.items():
        if math.isfinite(value) and asked.sign * (value - asked.if_diverged) < -rounding:
            raise ValueError(
                f"Measurement {asked.label!r} counts a diverged seed as {asked.if_diverged}, but seed {seed} has "
                f"{value}, which is worse: if_diverged must be the worst value the measure can take."
            )
    return {seed: value if math.isfinite(value) else asked.if_diverged for seed, value in values.items()}


def _seeds(seeds: list[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
