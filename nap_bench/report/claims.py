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

from nap_bench import stats
from nap_bench.report.scores import Scores
from nap_bench.store import write_whole

SUPPORTED = "SUPPORTED"
CONTRADICTED = "CONTRADICTED"
INCONCLUSIVE = "INCONCLUSIVE"
NOT_RUN = "NOT RUN"
KINDS = ("superiority", "noninferiority", "equivalence")


@dataclass(frozen=True, kw_only=True)
class Paired:
    """One paired comparison: `measure` of `arm` minus that of `against`, seed by seed; sign flipped if lower is better.

    against_setting, against_measure: where `against` differs; by default both sides share setting and measure. An arm
    may stand against itself at another setting or measure (late against early). if_diverged: what `measure` counts as
    for a diverged seed, the worst value it can take (accuracy 0.0, dead fraction 1.0); None if there is no such
    value.
    """

    label: str
    measure: str
    better: str
    arm: str
    against: str
    setting: str = ""
    against_setting: str | None = None
    against_measure: str | None = None
    if_diverged: float | None = None

    def __post_init__(self) -> None:
        if self.better not in ("higher", "lower"):
            raise ValueError(f"Measurement {self.label!r}: better must be 'higher' or 'lower'; found {self.better!r}.")
        if self.if_diverged is not None and not math.isfinite(self.if_diverged):
            raise ValueError(
                f"Measurement {self.label!r}: if_diverged must be finite or None; found {self.if_diverged}."
            )
        if self.sides[0] == self.sides[1]:
            raise ValueError(f"Measurement {self.label!r} compares {self.sides[0]} with itself.")

    @property
    def sides(self) -> tuple[tuple[str, str, str], tuple[str, str, str]]:
        """(measure, arm, setting) of the arm and of what it is compared with, as `Scores.values` takes them."""
        measure = self.measure if self.against_measure is None else self.against_measure
        setting = self.setting if self.against_setting is None else self.against_setting
        return (self.measure, self.arm, self.setting), (measure, self.against, setting)


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
    measurements: tuple[Paired, ...]
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
    """The verdict of a claim from those of its measurements: all must hold."""
    verdicts = set(verdicts)
    return next(verdict for verdict in (NOT_RUN, CONTRADICTED, INCONCLUSIVE, SUPPORTED) if verdict in verdicts)


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
    measurements = [_measure(claim, paired, scores, scale, expected_seeds) for paired in claim.measurements]
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


def _measure(claim: Claim, paired: Paired, scores: Scores, scale: str, expected_seeds: Any) -> dict[str, Any]:
    cells = [f"{arm} ({setting})" if setting else arm for _, arm, setting in paired.sides]
    planned = [_planned(expected_seeds, arm, setting) for _, arm, setting in paired.sides]
    found = [_found(scores, side, seeds) for side, seeds in zip(paired.sides, planned, strict=True)]
    seeds = sorted(found[0].keys() & found[1].keys())
    missing = sorted((planned[0] & planned[1]) - set(seeds))
    diverged = [[seed for seed in seeds if not math.isfinite(values[seed])] for values in found]

    sign = 1.0 if paired.better == "higher" else -1.0
    differences = sign * stats.paired_difference(*(_counted(paired, values) for values in found))
    effects = dict(zip(seeds, differences.tolist(), strict=True))
    finite = [effect for effect in effects.values() if math.isfinite(effect)]
    interval = stats.mean_interval(finite) if finite else None

    notes = [f"No result yet for {_seeds(missing)}."] if missing else []
    counted_as = "" if paired.if_diverged is None else f", counted as {paired.if_diverged:g}"
    notes += [
        f"{cell} diverged at {_seeds(lost)}{counted_as}." for cell, lost in zip(cells, diverged, strict=True) if lost
    ]
    both = sorted(set(diverged[0]) & set(diverged[1]))
    if len(seeds) < 2:
        verdict = NOT_RUN
        absent = [f"{cell}: not planned at {scale} scale." for cell, p in zip(cells, planned, strict=True) if not p]
        absent = absent or [f"{cell}: no result." for cell, values in zip(cells, found, strict=True) if not values]
        notes = absent or [f"An interval needs at least 2 paired seeds; found {len(seeds)}.", *notes]
    elif len(finite) < len(seeds):
        verdict = INCONCLUSIVE
        notes.append("What a diverged seed counts as is not declared for this measure, so nothing is decided.")
    else:
        verdict = decide(claim.kind, claim.margin, interval.low, interval.high)
        if verdict == SUPPORTED and both and claim.kind != "superiority":
            verdict = INCONCLUSIVE
            notes.append(f"Both sides diverged at {_seeds(both)}: failing alike is no evidence of {claim.kind}.")
    return {
        "label": paired.label,
        "measure": paired.measure,
        "against_measure": paired.sides[1][0],
        "unit": claim.unit,
        "better": paired.better,
        "arms": [paired.arm, paired.against],
        "settings": [setting for _, _, setting in paired.sides],
        "estimate": interval.estimate if finite else None,
        "low": interval.low if len(finite) > 1 else None,
        "high": interval.high if len(finite) > 1 else None,
        "confidence": stats.CONFIDENCE,
        "method": "paired t",
        "n": len(finite),
        "num_diverged": len({*diverged[0], *diverged[1]}),
        "num_missing": len(missing),
        "verdict": verdict,
        "note": " ".join(notes),
        "per_seed": {str(seed): effect if math.isfinite(effect) else None for seed, effect in effects.items()},
    }


def _planned(expected_seeds: Any, arm: str, setting: str) -> set[int]:
    return set(expected_seeds.get((arm, setting), ()) if isinstance(expected_seeds, Mapping) else expected_seeds)


def _found(scores: Scores, side: tuple[str, str, str], planned: set[int]) -> dict[int, float]:
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


def _counted(paired: Paired, values: Mapping[int, float]) -> dict[int, float]:
    """The values with diverged seeds counted as declared, or as NaN. Refuses a declared value that is not the worst."""
    if paired.if_diverged is None:
        return {seed: value if math.isfinite(value) else math.nan for seed, value in values.items()}
    sign = 1.0 if paired.better == "higher" else -1.0
    rounding = 1e-9 * max(1.0, abs(paired.if_diverged))
    for seed, value in values.items():
        if math.isfinite(value) and sign * (value - paired.if_diverged) < -rounding:
            raise ValueError(
                f"Measurement {paired.label!r} counts a diverged seed as {paired.if_diverged}, but seed {seed} has "
                f"{value}, which is worse: if_diverged must be the worst value the measure can take."
            )
    return {seed: value if math.isfinite(value) else paired.if_diverged for seed, value in values.items()}


def _seeds(seeds: list[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
