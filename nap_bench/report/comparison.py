"""Methods compared across tasks: aggregates, profiles, improvement, paired differences and ranks, as data for the page.

Scores of different tasks are put on one scale, here and nowhere else:

    normalised = (score - chance) / (best - chance)

chance: what guessing reaches, best: what cannot be surpassed (1 for an accuracy). Returns come normalised by their exhibits
(0 a policy that does not look or acts at random, 1 the best policy, or a human on Atari). A diverged seed counts as the
score 0, so as -chance / (best - chance): worse than guessing, for no finite accuracy is below it.

Methods are compared within a group of tasks, on the seeds and tasks that all of them have results of: no method is compared by
what another was not asked. Aggregates and their intervals are those of Agarwal et al. 2021, over seeds and tasks together,
with the intervals that nap_bench/stats.py states. Paired differences are means over tasks and paired seeds; their p-values are
adjusted for the number of pairs in the group (Holm). A method's rank is its place by interquartile mean; the places that
it could have as well count only those methods as better or worse from which it differs significantly after adjustment.

Shape suffixes: S seeds, T tasks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from nap_bench import stats
from nap_bench.report import svg
from nap_bench.report.figures import look, ordered
from nap_bench.report.tables import DASH, amounts, estimate_and_span

if TYPE_CHECKING:
    from nap_bench.report.scores import Scores

ALPHA = 0.05
MOST_TASKS_LISTED = 12
MOST_LINES = 6
"""A profile of more methods shows these many at first: the core ones and the best."""
CORE = ("baseline", "layer_norm", "nap", "nap_linear")
SAME = {"norm_only": "layer_norm", "none": "baseline"}
"""Names that exhibits use for the same arm."""
POOLS = {
    "iqm": ("IQM", "higher"),
    "mean": ("mean", "higher"),
    "median": ("median", "higher"),
    "optimality gap": ("optimality gap", "lower"),
}


@dataclass(frozen=True, kw_only=True)
class Task:
    """One column of a comparison. chance: of the score, by scale where it differs. setting None: each setting is a task."""

    label: str
    exhibit: str
    measure: str
    setting: str | None = ""
    chance: float | Mapping[str, float] = 0.1
    best: float = 1.0

    def normalised(self, value: float, scale: str) -> float:
        chance = self.chance if isinstance(self.chance, int | float) else self.chance[scale]
        return ((value if math.isfinite(value) else 0.0) - chance) / (self.best - chance)


_ONLINE = "average_online_accuracy"
RELABELLED = Task(label="re-drawn labels", exhibit="interactions", setting="random_labels", measure=_ONLINE)
CLASSES = Task(
    label="more and more classes",
    exhibit="interactions",
    setting="class_incremental",
    measure=_ONLINE,
    chance=sum(1 / classes for classes in (2, 4, 6, 8, 10)) / 5,
)
"""Chance: the mean over a round's tasks, which are as long as each other; at every scale the rounds are whole."""
TASKS = (
    RELABELLED,
    CLASSES,
    Task(label="shuffled labels", exhibit="streams_kumar", setting="shuffled_labels", measure=_ONLINE),
    Task(label="permuted pixels", exhibit="streams_kumar", setting="permuted_pixels", measure=_ONLINE),
    Task(label="permuted classes", exhibit="streams_kumar", setting="permuted_classes", measure=_ONLINE),
    Task(label="stationary images", exhibit="table1_images", measure="test_accuracy"),
    Task(
        label="random strings",
        exhibit="fig10_memorisation",
        measure="late_online_accuracy",
        chance={"laptop": 1 / 32, "workstation": 1 / 256, "paper": 1 / 256},
    ),
    Task(
        label="copying",
        exhibit="fig9_copying",
        measure="average_accuracy",
        chance={"laptop": 1 / 20, "workstation": 1 / 256, "paper": 1 / 256},
    ),
    Task(label="catch, in sequence", exhibit="rl_sequence", measure="last_cycle", chance=0.0),
)
FIELD = tuple(
    Task(label=label, exhibit="field_comparison", setting=setting, measure="performance", chance=chance)
    for setting, label, chance in (
        ("permuted_mnist", "online permuted MNIST", 0.1),
        ("permuted_inputs", "input-permuted MNIST", 0.1),
        ("permuted_emnist", "label-permuted EMNIST", 1 / 47),
        ("permuted_cifar10", "label-permuted CIFAR-10", 0.1),
    )
)
"""Streams of accuracies whose chance is that of their number of classes; an error has neither chance nor best."""


@dataclass(frozen=True)
class Group:
    name: str
    title: str
    tasks: tuple[Task, ...]


GROUPS = (
    Group("all", "Every kind of task", TASKS),
    Group("streams", "Two streams of classification", (RELABELLED, CLASSES)),
    Group("relabelled", "Re-drawn labels alone, where most methods are tuned", (RELABELLED,)),
    Group(
        "field",
        "The field on re-drawn labels",
        (Task(label="re-drawn labels", exhibit="field_comparison", measure="performance"),),
    ),
    Group("field_streams", "The field on its own streams", FIELD),
    Group(
        "games",
        "Atari",
        (Task(label="", exhibit="fig6_atari57", setting=None, measure="human_normalised", chance=0.0),),
    ),
)


def compare(scores: Mapping[str, Scores], scale: str, groups: Sequence[Group] = GROUPS) -> list[dict[str, Any]]:
    """The groups of which at least two methods share a task, each as data: tasks, methods [S, T], aggregates, pairs."""
    found = (_group(group, scores, scale) for group in groups)
    return [group for group in found if group is not None]


def _columns(task: Task, scores: Scores) -> list[tuple[str, str]]:
    """(label, setting) of the task's columns."""
    if task.setting is not None:
        return [(task.label, task.setting)]
    return [
        (s.replace("_", " "), s)
        for s in scores.settings()
        if any(scores.has(task.measure, a, s) for a in scores.arms())
    ]


def _group(group: Group, scores: Mapping[str, Scores], scale: str) -> dict[str, Any] | None:
    columns: list[tuple[str, Task, str, dict[str, dict[int, float]]]] = []
    absent = []
    for task in group.tasks:
        table = scores.get(task.exhibit)
        for label, setting in _columns(task, table) if table is not None else []:
            arms = {SAME.get(arm, arm): arm for arm in table.arms() if table.has(task.measure, arm, setting)}
            values = {name: table.values(task.measure, arm, setting) for name, arm in arms.items()}
            if len(values) > 1:
                columns.append((label, task, setting, values))
        if not any(column[1] is task for column in columns):
            absent.append(task.label)
    shared = ordered(set.intersection(*(set(values) for *_, values in columns))) if columns else []
    if len(shared) < 2:
        return None
    without: dict[tuple[str, ...], list[str]] = {}
    for arm in ordered(set().union(*(values for *_, values in columns)) - set(shared)):
        lacking = tuple(label for label, *_, values in columns if arm not in values)
        without.setdefault(lacking, []).append(look(arm).label)
    seeds_T = [sorted(set.intersection(*(set(values[arm]) for arm in shared))) for *_, values in columns]
    num_seeds = min(map(len, seeds_T))
    if not num_seeds:
        return None
    scores_by = {
        arm: np.array(
            [
                [task.normalised(values[arm][seed], scale) for seed in seeds[:num_seeds]]
                for (_, task, _, values), seeds in zip(columns, seeds_T, strict=True)
            ]
        ).T
        for arm in shared
    }
    diverged = {
        arm: sum(
            not math.isfinite(values[arm][seed])
            for (*_, values), seeds in zip(columns, seeds_T, strict=True)
            for seed in seeds[:num_seeds]
        )
        for arm in shared
    }
    pairs = _pairs(scores_by)
    aggregates = {
        pool: {arm: stats.pooled_interval(scores_ST, pool) for arm, scores_ST in scores_by.items()} for pool in POOLS
    }
    best_first = sorted(shared, key=lambda arm: (-aggregates["iqm"][arm].estimate, shared.index(arm)))
    return {
        "name": group.name,
        "title": group.title,
        "tasks": [
            {"label": label, "exhibit": task.exhibit, "setting": setting, "measure": task.measure}
            for label, task, setting, _ in columns
        ],
        "absent": absent,
        "without": without,
        "num_seeds": num_seeds,
        "dropped": max(len(values[arm]) for *_, values in columns for arm in shared) - num_seeds,
        "arms": best_first,
        "scores": {arm: scores_by[arm] for arm in best_first},
        "diverged": diverged,
        "aggregates": aggregates,
        "pairs": pairs,
        "ranks": _ranks(best_first, pairs),
    }


def _pairs(scores_by: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Every pair of methods: mean paired difference, adjusted p-value, probability of improvement."""
    found = []
    for a, b in combinations(scores_by, 2):
        difference, p = stats.paired_tasks(scores_by[a], scores_by[b])
        chance = stats.probability_of_improvement(scores_by[a], scores_by[b])
        found.append({"a": a, "b": b, "difference": difference, "p": p, "improvement": chance})
    for pair, adjusted in zip(found, stats.holm([pair["p"] for pair in found]), strict=True):
        pair["adjusted"] = float(adjusted)
    return found


def _ranks(best_first: Sequence[str], pairs: Sequence[Mapping[str, Any]]) -> dict[str, tuple[int, int, int]]:
    """Arm -> place by interquartile mean, and the first and last place that it could have as well."""
    better = dict.fromkeys(best_first, 0)
    worse = dict.fromkeys(best_first, 0)
    for pair in pairs:
        if pair["adjusted"] < ALPHA:
            winner, loser = (pair["a"], pair["b"]) if pair["difference"].estimate > 0 else (pair["b"], pair["a"])
            worse[winner] += 1
            better[loser] += 1
    return {
        arm: (place, min(place, better[arm] + 1), max(place, len(best_first) - worse[arm]))
        for place, arm in enumerate(best_first, 1)
    }


def cost(
    group: Mapping[str, Any],
    planned: Mapping[str, Sequence[tuple[str, str, str]]],
    done: Mapping[str, Mapping[str, Any]],
) -> dict[str, dict[str, Any]]:
    """Arm -> time per update relative to the baseline (geometric mean over tasks), largest peak memory, what its methods keep.

    A result older than a field has a dash. Only tasks where both have finished runs count for the time.
    """
    found: dict[str, dict[str, Any]] = {}
    by_task: list[dict[str, list[Mapping[str, Any]]]] = []
    for task in group["tasks"]:
        runs: dict[str, list[Mapping[str, Any]]] = {}
        for arm, setting, run_id in planned.get(task["exhibit"], ()):
            if setting == task["setting"] and run_id in done:
                runs.setdefault(SAME.get(arm, arm), []).append(done[run_id])
        by_task.append(runs)
    for arm in group["arms"]:
        own = [result for runs in by_task for result in runs.get(arm, ())]
        ratios = [
            _seconds_per_update(runs[arm]) / _seconds_per_update(runs["baseline"])
            for runs in by_task
            if arm in runs and "baseline" in runs
        ]
        memory = [result["cost"]["peak_memory_bytes"] for result in own]
        kept = [result["cost"]["slot_bytes"] for result in own if "slot_bytes" in result["cost"]]
        forwards = [
            result["cost"]["extra_forward_passes"]
            / max(1.0, result["cost"]["steps_per_second"] * result["cost"]["wall_seconds"])
            for result in own
            if "extra_forward_passes" in result["cost"]
        ]
        found[arm] = {
            "time": float(np.exp(np.mean(np.log(ratios)))) if ratios else None,
            "wall": sum(result["cost"]["wall_seconds"] for result in own),
            "memory": max(memory, default=None),
            "kept": max(kept, default=None),
            "forwards": max(forwards, default=None),
        }
    return found


def _seconds_per_update(results: Sequence[Mapping[str, Any]]) -> float:
    """Median over an arm's runs."""
    return float(np.median([1 / max(1e-9, result["cost"]["steps_per_second"]) for result in results]))


def drawn(
    group: Mapping[str, Any],
    costs: Mapping[str, Mapping[str, Any]],
    inliner: svg.Inliner,
) -> dict[str, Any]:
    """A group as the page shows it: rows of text with places for bars, a profile, a matrix, pairs."""
    arms, aggregates = group["arms"], group["aggregates"]
    limits = {pool: _limits(found.values()) for pool, found in aggregates.items()}
    by_task = {arm: [stats.mean_interval(values) for values in group["scores"][arm].T] for arm in arms}
    limits_T = [_limits(column) for column in zip(*by_task.values(), strict=True)]
    rows = []
    for arm in arms:
        place, first, last = group["ranks"][arm]
        spent = costs[arm]
        rows.append(
            {
                "arm": arm,
                "label": look(arm).label,
                "color": inliner.color(look(arm).color),
                "place": place,
                "places": f"{first} to {last}" if first < last else str(place),
                "from": (first - 1) / len(arms),
                "wide": (last - first + 1) / len(arms),
                "pools": [_cell(aggregates[pool][arm], limits[pool]) for pool in POOLS],
                "diverged": group["diverged"][arm],
                "tasks": [_cell(found, at) for found, at in zip(by_task[arm], limits_T, strict=True)],
                "time": DASH if spent["time"] is None else f"\u00d7{spent['time']:.2f}",
                "time_value": spent["time"],
                "wall": spent["wall"],
                "memory": DASH if spent["memory"] is None else f"{spent['memory'] / 1e6:.0f} MB",
                "memory_value": spent["memory"],
                "forwards": DASH if spent["forwards"] is None else amounts([spent["forwards"]])[0],
                "kept": DASH if spent["kept"] is None else _size(spent["kept"]),
                "kept_value": spent["kept"],
            }
        )
    shown = {*(arm for arm in CORE if arm in arms), *arms[:MOST_LINES]} if len(arms) > MOST_LINES else set(arms)
    most = max(1.0, max(float(scores.max()) for scores in group["scores"].values()))
    thresholds = np.linspace(0.0, most, 51)
    series = []
    for arm in arms:
        share, low, high = stats.performance_profile(group["scores"][arm], thresholds)
        known = bool(np.isfinite(low).all())
        series.append(
            {
                "arm": arm,
                "ys": share,
                "low": low if known else None,
                "high": high if known else None,
                "shown": arm in shown,
            }
        )
    chart = svg.lines(
        series,
        inliner,
        title=f"Performance profiles: {group['title']}",
        xlabel="normalised score x",
        xs=thresholds.tolist(),
        ylim=(0.0, 1.0),
    )
    return {
        **{key: group[key] for key in ("name", "title", "tasks", "absent", "without", "num_seeds", "dropped")},
        "list_tasks": len(group["tasks"]) <= MOST_TASKS_LISTED and len(group["tasks"]) > 1,
        "rows": rows,
        "pools": [name for name, _ in POOLS.values()],
        "profile": chart,
        "legend": svg.legend(arms, inliner, shown),
        "matrix": _matrix(arms, group["pairs"]),
        "pairs": [_pair(pair) for pair in sorted(group["pairs"], key=lambda p: -abs(p["difference"].estimate))],
        "num_pairs": len(group["pairs"]),
        "significant": sum(pair["adjusted"] < ALPHA for pair in group["pairs"]),
    }


def _size(num_bytes: float) -> str:
    if num_bytes < 1e5:
        return f"{num_bytes / 1e3:.1f} kB" if num_bytes else "0"
    return f"{num_bytes / 1e6:.2f} MB"


def _limits(intervals: Any) -> tuple[float, float]:
    """From the lowest to the highest end of some intervals, with a little room."""
    ends = [v for i in intervals for v in (i.low, i.estimate, i.high) if math.isfinite(v)]
    room = 0.04 * (max(ends) - min(ends)) or 0.5
    return min(ends) - room, max(ends) + room


def _cell(found: stats.Interval, limits: tuple[float, float]) -> dict[str, Any]:
    """An interval as text, as a number to sort by, and as places on a line of 100."""
    low, high = limits
    text, span = estimate_and_span(found.estimate, found.low, found.high)

    def place(value: float) -> float:
        return round(100 * (value - low) / (high - low), 1)

    known = math.isfinite(found.low)
    ends = (found.low if known else found.estimate, found.high if known else found.estimate)
    return {
        "text": text,
        "span": span,
        "value": found.estimate,
        "low": place(ends[0]),
        "high": place(ends[1]),
        "at": place(found.estimate),
    }


def _matrix(arms: Sequence[str], pairs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the probability that the row's method beats the column's on a task drawn at random, in per cent.

    sure: the pair's adjusted p is below ALPHA.
    """
    known = {}
    for pair in pairs:
        i = pair["improvement"]
        sure = pair["adjusted"] < ALPHA
        known[pair["a"], pair["b"]] = (i.estimate, i.low, i.high, sure)
        known[pair["b"], pair["a"]] = (1 - i.estimate, 1 - i.high, 1 - i.low, sure)

    def cell(a: str, b: str) -> dict[str, Any] | None:
        if a == b:
            return None
        estimate, low, high, sure = known[a, b]
        span = f"{low:.2f} to {high:.2f}" if math.isfinite(low) else ""
        return {"text": f"{100 * estimate:.0f}", "share": round(estimate, 2), "sure": sure, "span": span}

    return [{"label": look(a).label, "cells": [cell(a, b) for b in arms]} for a in arms]


def _pair(pair: Mapping[str, Any]) -> dict[str, Any]:
    """A pair as text, the better method first."""
    found, i = pair["difference"], pair["improvement"]
    a, b, sign = pair["a"], pair["b"], 1.0
    if found.estimate < 0:
        a, b, sign = b, a, -1.0
    low, high = (found.low, found.high) if sign > 0 else (-found.high, -found.low)
    text, span = estimate_and_span(sign * found.estimate, low, high, signed=True)
    chance = i.estimate if sign > 0 else 1 - i.estimate
    p = pair["adjusted"]
    return {
        "better": look(a).label,
        "worse": look(b).label,
        "difference": text,
        "span": span,
        "value": sign * found.estimate,
        "p": DASH if not math.isfinite(p) else "< 0.001" if p < 0.001 else f"{p:.3f}",
        "p_value": p if math.isfinite(p) else 2.0,
        "significant": p < ALPHA,
        "improvement": f"{chance:.2f}",
    }
