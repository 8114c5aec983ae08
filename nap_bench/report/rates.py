"""Effective learning rates as recorded: each layer's implicit schedule beside the explicit one, dead units, norms.

The rate that is set (`probe/explicit_learning_rate`) is not the rate at which a layer turns: that is the set rate over the norm
of the layer's weights (over its square under plain gradient descent; Definition 1 of the paper), recorded per layer as
`probe/effective_learning_rate/LAYER`. Both are shown relative to where they start, so that a schedule is what one sees. A
curve here is the mean over the seeds that stayed finite, at a few of the recorded steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nap_bench.report.figures import look

EXPLICIT = "probe/explicit_learning_rate"
IMPLICIT, NORM = "probe/effective_learning_rate/", "probe/norm/"
SHARES = {
    "dead units": "probe/dead_fraction",
    "dormant units": "probe/dormant_fraction_tau0.1",
    "linearised units": "probe/linearised_fraction",
}
MOST_POINTS, FEWEST_POINTS = 24, 8
MOST_NUMBERS = 600_000
"""Of all curves together: more runs show fewer points each."""
LEAST = -1400
"""Of a hundred natural logarithms: a rate that has fallen to nothing."""
FAMILIES = (("without norm", ("baseline", "none")), ("with a norm", ("layer_norm", "norm_only")), ("NaP", ("nap",)))


def explorer(
    planned: Mapping[str, Sequence[tuple[str, str, str]]], done: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Every finished run that recorded rates, as compact JSON: where it is used, steps, and curves as whole numbers.

    Rates and norms: 100 times the natural logarithm relative to the start, layers in order. Shares of units: per cent.
    """
    places: dict[str, list[list[str]]] = {}
    for exhibit, uses in planned.items():
        for arm, setting, run_id in uses:
            if run_id in done and EXPLICIT in done[run_id]["metrics"]:
                places.setdefault(run_id, []).append([exhibit, look(arm).label + (f", {setting}" if setting else "")])
    series = sum(3 + len(SHARES) + 2 * len(_layers(done[run_id])) for run_id in places)
    points = max(FEWEST_POINTS, min(MOST_POINTS, MOST_NUMBERS // max(1, series)))
    return {run_id: {"at": used, **_curves(done[run_id], points)} for run_id, used in places.items()}


def _layers(result: Mapping[str, Any]) -> list[str]:
    return [name.removeprefix(IMPLICIT) for name in result["metrics"] if name.startswith(IMPLICIT)]


def _mean(result: Mapping[str, Any], metric: str, points: int) -> tuple[list[int], np.ndarray] | None:
    """Steps and means over finite seeds, thinned to so many points, the first and the last among them."""
    table = result["metrics"].get(metric)
    if table is None or not table["steps"]:
        return None
    kept = np.unique(np.linspace(0, len(table["steps"]) - 1, points).round().astype(int))
    values_TS = np.array([table["values"][i] for i in kept], dtype=float)
    finite_TS = np.isfinite(values_TS)
    counts_T = finite_TS.sum(axis=1)
    means_T = np.where(finite_TS, values_TS, 0.0).sum(axis=1) / np.maximum(counts_T, 1)
    return [int(table["steps"][i]) for i in kept], np.where(counts_T > 0, means_T, np.nan)


def _relative(means_T: np.ndarray) -> list[int | None]:
    """100 times the logarithm of the values over the first, whole."""
    start = means_T[0]
    if not (math.isfinite(start) and start > 0):
        return [None] * len(means_T)
    return [
        None if not math.isfinite(v) else LEAST if v <= 0 else max(LEAST, round(100 * math.log(v / start)))
        for v in means_T
    ]


def _curves(result: Mapping[str, Any], points: int) -> dict[str, Any]:
    steps, explicit = _mean(result, EXPLICIT, points)  # type: ignore[misc]
    layers = _layers(result)
    rates = [_mean(result, IMPLICIT + layer, points) for layer in layers]
    norms = [(layer, _mean(result, NORM + layer, points)) for layer in layers]
    shares = {name: _mean(result, metric, points) for name, metric in SHARES.items()}
    return {
        "t": steps,
        "set": _relative(explicit),
        "layers": layers,
        "rates": [_relative(found[1]) for found in rates if found is not None],
        "norms": {layer: _relative(found[1]) for layer, found in norms if found is not None},
        "units": {
            name: [None if not math.isfinite(v) else round(100 * v) for v in found[1]]
            for name, found in shares.items()
            if found is not None
        },
    }


def overview(
    planned: Mapping[str, Sequence[tuple[str, str, str]]],
    titles: Mapping[str, str],
    curves: Mapping[str, Mapping[str, Any]],
    results: Mapping[str, Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """One row per benchmark and family of networks: plain, with a norm and NaP, of the first exhibit with most of them."""
    best: dict[str, tuple[int, str, list[str | None]]] = {}
    for exhibit, uses in planned.items():
        by_setting: dict[tuple[str, str], dict[str, str]] = {}
        for arm, setting, run_id in uses:
            if run_id in curves:
                spec = results[run_id]["spec"]
                kind = f"{spec['benchmark']['name']}, {spec['model']['family']}".replace("_", " ")
                by_setting.setdefault((kind, setting), {}).setdefault(arm, run_id)
        for (kind, _), arms in by_setting.items():
            row = [next((arms[arm] for arm in names if arm in arms), None) for _, names in FAMILIES]
            found = sum(run_id is not None for run_id in row)
            if found > best.get(kind, (0, "", []))[0]:
                best[kind] = (found, exhibit, row)
    return [
        {
            "kind": kind,
            "exhibit": exhibit,
            "title": titles[exhibit],
            **_row([None if run_id is None else curves[run_id] for run_id in row]),
        }
        for kind, (_, exhibit, row) in best.items()
    ]


def _row(found: Sequence[Mapping[str, Any] | None]) -> dict[str, Any]:
    """The charts of a row, on one axis."""
    values = [
        v for curves in found if curves for line in (*curves["rates"], curves["set"]) for v in line if v is not None
    ]
    low, high = min([-70, *values]), max([10, *values])
    axis = f"{times(high)} to {times(low)}"
    return {"axis": axis, "cells": [None if curves is None else _small(curves, low, high) for curves in found]}


def _small(curves: Mapping[str, Any], low: int, high: int) -> dict[str, Any]:
    """A small chart of the rates, and how units and norms end, in words."""
    import markupsafe

    wide, tall, edge = 220, 92, 4
    t0, t1 = curves["t"][0], curves["t"][-1]

    across, down = (wide - 2 * edge) / max(1, t1 - t0), (tall - 2 * edge) / (high - low)

    def path(values: Sequence[int | None]) -> str:
        at = [
            f"{edge + (t - t0) * across:.0f} {edge + (high - v) * down:.1f}"
            for t, v in zip(curves["t"], values, strict=True)
            if v is not None
        ]
        return "M" + "L".join(at) if at else ""

    start = edge + high * down
    parts = [f'<path class="grid" d="M0 {start:.1f}H{wide}"/>']
    parts += [f'<path class="layer" d="{path(values)}"/>' for values in curves["rates"]]
    parts.append(f'<path class="set" d="{path(curves["set"])}"/>')
    ends = [times(values[-1]) for values in curves["rates"] if values[-1] is not None]
    words = f"set rate {times(curves['set'][-1])}" + (f"; layers {_span(ends)}" if ends else "")
    norms = [times(values[-1]) for values in curves["norms"].values() if values[-1] is not None]
    dead = curves["units"].get("dead units")
    told = [f"rates {_span(ends)}"] if ends else []
    told += [f"norms {_span(norms)}"] if norms else []
    told += [f"dead units {dead[-1]} %"] if dead and dead[-1] is not None else []
    return {
        "told": ", ".join(told),
        "chart": markupsafe.Markup(
            f'<svg class="small" viewBox="0 0 {wide} {tall}" preserveAspectRatio="none" role="img" '
            f'aria-label="{markupsafe.escape(words)}">{"".join(parts)}</svg>'
        ),
    }


def times(hundredths: int | None) -> str:
    """A factor in words."""
    if hundredths is None:
        return "\u2013"
    factor = math.exp(hundredths / 100)
    return (
        f"\u00d7{factor:.2f}"
        if 0.095 <= factor < 100
        else f"\u00d7{factor:.1g}"
        if factor < 1
        else f"\u00d7{factor:.0f}"
    )


def _span(texts: Sequence[str]) -> str:
    """The smallest and the largest of some factors in words."""
    in_order = sorted(texts, key=lambda text: float(text[1:]))
    return " to ".join(dict.fromkeys((in_order[0], in_order[-1])))
