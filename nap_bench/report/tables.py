"""The report's rows: scores, claims, runs, costs and environments turned into text. No HTML here."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

from nap_bench.report.figures import look, middle, ordered, setting_order

if TYPE_CHECKING:
    from nap_bench.report.scores import Scores

Place = tuple[str, str, str]
"""Where an exhibit uses a run: arm, setting, run_id."""
MINUS, DASH = "\u2212", "\u2013"
MIXED = {"commit": "commits", "device": "kinds of device", "device_name": "devices", "torch": "versions of torch"}
"""Differences between environments that the page says in words."""
MAX_OPEN_ROWS = 12
"""A longer table is folded away."""


def amounts(values: Sequence[float | None], *, signed: bool = False) -> list[str]:
    """Numbers that stand together, for people: three decimals where the largest has that size, scientific elsewhere.

    A dash where there is none or it is not finite.
    """
    size = max((abs(v) for v in values if v is not None and math.isfinite(v)), default=0.0)
    form = "d" if size == 0 else ".3f" if 0.001 <= size < 100 else ".1f" if 100 <= size < 10000 else ".2e"
    return [_amount(value, "+" + form if signed else form) for value in values]


def _amount(value: float | None, form: str) -> str:
    if value is None or not math.isfinite(value):
        return DASH
    text = format(int(value) if form.endswith("d") else value, form)
    if float(text) == 0:
        return text.lstrip("+-")
    mantissa, e, exponent = text.partition("e")
    return f"{mantissa}{e}{int(exponent) if e else ''}".replace("-", MINUS)


def estimate_and_span(
    estimate: float | None, low: float | None, high: float | None, *, signed: bool = False
) -> tuple[str, str]:
    """An estimate and its interval as text; a dash where one seed allows no interval."""
    texts = amounts((estimate, low, high), signed=signed)
    return texts[0], DASH if DASH in texts[1:] else f"[{texts[1]}, {texts[2]}]"


def duration(seconds: float) -> str:
    """12 s, 3.4 min or 5.1 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def plural(n: int, noun: str) -> str:
    return f"{n} {noun}" + ("" if n == 1 else "s")


def differences(scores: Scores, added: Mapping[str, str], measures: Iterable[str]) -> list[dict[str, Any]]:
    """Arms that a user's own plan adds, less the arm each is made of, seed by seed; at most one table.

    added: arm -> the arm it is made of.  measures: scalar ones, those that the exhibit's claims are about.
    """
    rows = []
    for measure in dict.fromkeys(measures):
        for (arm, against), setting in product(added.items(), sorted(scores.settings(), key=setting_order)):
            both = [_scalar(scores, measure, name, setting) for name in (arm, against)]
            if None in both:
                continue
            shared = [both[0][seed] - both[1][seed] for seed in both[0].keys() & both[1].keys()]
            finite = [value for value in shared if math.isfinite(value)]
            mean = middle(finite)
            span = estimate_and_span(mean.estimate, mean.low, mean.high, signed=True) if mean else (DASH, DASH)
            rows.append([look(arm).label, look(against).label, setting or DASH, measure, str(len(finite)), *span])
    if not rows:
        return []
    columns = ("your arm", "less", "setting", "measure", "n", "difference", "95 % interval")
    note = "Paired by seed; a seed that diverged on either side is not in n. No claim was declared for these arms."
    return [{"title": "What your arms add", "columns": columns, "rows": rows, "note": note}]


def numbers(scores: Scores, featured: Iterable[str] = ()) -> list[dict[str, Any]]:
    """Each scalar measure, the featured ones first: one row per arm and setting that has it.

    n counts the seeds that stayed finite, and so do mean, interval and IQM; the others are named beside them.
    """
    from nap_bench import stats

    tables = []
    featured = list(featured)
    for measure in sorted(scores.measures(), key=lambda name: (name not in featured, name)):
        rows = []
        for arm in ordered(scores.arms()):
            for setting in sorted(scores.settings(), key=setting_order):
                values = _scalar(scores, measure, arm, setting)
                if values is None:
                    continue
                finite = [v for _, v in sorted(values.items()) if math.isfinite(v)]
                mean = middle(finite)
                text, interval = estimate_and_span(mean.estimate, mean.low, mean.high) if mean else (DASH, DASH)
                rows.append(
                    {
                        "arm": look(arm).label,
                        "color": look(arm).color,
                        "setting": setting,
                        "mean": text,
                        "interval": interval,
                        "iqm": amounts([float(stats.iqm(finite)) if finite else None])[0],
                        "n": len(finite),
                        "lost": ", ".join(str(seed) for seed in sorted(values) if not math.isfinite(values[seed])),
                    }
                )
        if rows:
            is_open = measure in featured and len(rows) <= MAX_OPEN_ROWS
            settings = any(row["setting"] for row in rows)
            tables.append({"measure": measure.replace("_", " "), "rows": rows, "settings": settings, "open": is_open})
    return tables


def _scalar(scores: Scores, measure: str, arm: str, setting: str) -> dict[int, float] | None:
    """Seed -> value, or None where there is nothing or a curve."""
    if not scores.has(measure, arm, setting):
        return None
    try:
        return scores.values(measure, arm, setting)
    except ValueError:  # a curve: figures show it
        return None


def diverged(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The seeds of a run that left the finite numbers, with the step."""
    return [s for s in result["status"] if s["status"] == "diverged"]


def cost(places: Iterable[Place], results: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per arm: what its finished runs took. A block's seeds train together: speed and memory are a block's.

    forwards: extra forward passes per update, those that methods ask for besides the one that is trained on.  kept: what
    methods remember, in a block.  A dash where a result is older than these were recorded.
    """
    arms: dict[str, list[Mapping[str, Any]]] = {}
    for arm, _, run_id in dict.fromkeys(places):
        if run_id in results:
            arms.setdefault(arm, []).append(results[run_id])
    rows = []
    for arm, runs in arms.items():
        speeds = sorted(r["cost"]["steps_per_second"] for r in runs)
        rows.append(
            {
                "arm": look(arm).label,
                "color": look(arm).color,
                "runs": len(runs),
                "seeds": ", ".join(str(n) for n in sorted({len(r["status"]) for r in runs})),
                "wall": duration(sum(r["cost"]["wall_seconds"] for r in runs)),
                "speed": " to ".join(dict.fromkeys(f"{speed:.0f}" for speed in (speeds[0], speeds[-1]))),
                "memory": f"{max(r['cost']['peak_memory_bytes'] for r in runs) / 1e6:.0f} MB",
                "forwards": _most(runs, "extra_forward_passes", lambda n, r: amounts([n / _updates(r)])[0]),
                "kept": _most(runs, "slot_bytes", lambda n, r: _size(n)),
                "hardware": "; ".join(sorted({hardware(r["environment"]) for r in runs})),
            }
        )
    return rows


def _updates(result: Mapping[str, Any]) -> float:
    return max(1.0, result["cost"]["steps_per_second"] * result["cost"]["wall_seconds"])


def _most(runs: Sequence[Mapping[str, Any]], key: str, text: Callable[[float, Mapping[str, Any]], str]) -> str:
    """The largest of a cost that older results lack, as text."""
    known = [run for run in runs if key in run["cost"]]
    most = max(known, key=lambda run: run["cost"][key], default=None)
    return DASH if most is None else text(most["cost"][key], most)


def _size(num_bytes: float) -> str:
    """0, 1.5 kB or 2.00 MB."""
    if num_bytes < 1e5:
        return f"{num_bytes / 1e3:.1f} kB" if num_bytes else "0"
    return f"{num_bytes / 1e6:.2f} MB"


def sweeps(tuned: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What choosing hyperparameters took: one row per exhibit of a scale's section of tuned.json.

    A run that two tables share is counted once; a dash where the seconds were not kept.
    """
    rows = []
    for exhibit, section in tuned.items():
        tables = {name: arms for name, arms in section.items() if name != "chosen"}
        trials = {t["run_id"]: t for arms in tables.values() for found in arms.values() for t in found}
        sizes = sorted({len(found) for arms in tables.values() for found in arms.values()})
        known = [t["wall_seconds"] for t in trials.values() if "wall_seconds" in t]
        rows.append(
            {
                "exhibit": exhibit,
                "rule": ", ".join(name.replace("_", " ") for name, arms in tables.items() if arms),
                "arms": len(section["chosen"]),
                "sizes": " or ".join(str(n) for n in sizes),
                "runs": len(trials),
                "wall": duration(sum(known)) if len(known) == len(trials) else DASH,
                "chosen": [
                    {"arm": look(arm).label, "values": ", ".join(f"{key} {value:g}" for key, value in hyper.items())}
                    for arm, hyper in section["chosen"].items()
                ],
            }
        )
    return rows


def hardware(environment: Mapping[str, Any]) -> str:
    name = environment.get("device_name") or environment.get("processor") or "unknown"
    return f"{environment.get('device', '?')}: {name}, {plural(environment.get('threads', 0), 'thread')}"


def wall_seconds(run_ids: Iterable[str], results: Mapping[str, Mapping[str, Any]]) -> float:
    """Total of finished runs, each counted once."""
    return sum(results[run_id]["cost"]["wall_seconds"] for run_id in sorted(set(run_ids)) if run_id in results)


def environments(results: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Distinct environments as columns, most runs first, with what differs among them said in words."""
    envs = [
        {
            key: DASH if value is None else str(value)
            for key, value in r["environment"].items()
            if key != "resolved_model"
        }
        for r in results
    ]
    counts = Counter(tuple(sorted(env.items())) for env in envs)
    columns = sorted(counts, key=lambda env: (-counts[env], env))
    rows = []
    for key in dict.fromkeys(key for env in envs for key in env):
        cells = [dict(env).get(key, DASH) for env in columns]
        rows.append({"key": key.replace("_", " "), "cells": cells, "differs": len(set(cells)) > 1})
    notes = []
    for key, nouns in MIXED.items():
        kinds = Counter(env.get(key, DASH) for env in envs)
        if len(kinds) > 1:
            listed = ", ".join(f"{name} ({plural(n, 'run')})" for name, n in sorted(kinds.items()))
            notes.append(f"Mixed: the runs come from {len(kinds)} {nouns}: {listed}.")
    nowhere = sum(env.get("commit", DASH) == DASH for env in envs)
    if nowhere:
        notes.append(f"{plural(nowhere, 'run')} name no commit: made outside a git checkout.")
    dirty = sum(env.get("dirty") == "True" for env in envs)
    if dirty:
        notes.append(f"{plural(dirty, 'run')} used a working copy with changes that are in no commit.")
    return {"counts": [plural(counts[env], "run") for env in columns], "rows": rows, "notes": notes}


def pictures(
    measurements: Sequence[Mapping[str, Any]], zone: tuple[float, float], width: float = 180.0
) -> list[dict[str, float] | None]:
    """Where each interval, zero and the zone in which the claim holds lie on one line of `width`, the same for all.

    zone: from, to; an infinite end runs to the edge. A measurement without an estimate has no picture.
    """
    spans = [
        {end: m["estimate"] if m[end] is None else m[end] for end in ("low", "estimate", "high")} for m in measurements
    ]
    marks = [value for span in spans for value in span.values() if value is not None]
    marks += [0.0, *(end for end in zone if math.isfinite(end))]
    pad = 0.12 * (max(marks) - min(marks) or 1.0)
    least, most = min(marks) - pad, max(marks) + pad

    def place(value: float) -> float:
        return round(min(max((value - least) / (most - least), 0.0), 1.0) * width, 1)

    fixed = {"zero": place(0.0), "from": place(zone[0]), "wide": round(place(zone[1]) - place(zone[0]), 1)}
    return [
        None if span["estimate"] is None else fixed | {end: place(value) for end, value in span.items()}
        for span in spans
    ]
