"""`nap-bench tune`: choose hyperparameters on tuning seeds, and write config/tuned.json. No reported seed is looked at.

What an exhibit declares says by which rule its arms are tuned:

    sweep         One learning rate for all arms that are compared with each other, as in the paper (B.4: one with which every
                  network solves each single task), by first-task accuracy alone: the rate whose worst arm does best, at the
                  task's end to the nearest hundredth, then by how soon it gets there (mean online accuracy over that task).
    sweep_late    After it, a rival's own hyperparameter, by late accuracy.
    sweep_late_online  The same, where accuracy before the update is what is compared.
    sweep_online  Each arm for itself, from equally many configurations, by average online accuracy over the whole stream on
                  the first NUM_ONLINE_SEEDS tuning seeds (Kumar et al. 2023).

The sweep is part of the plan (its runs are used by "tuning") and tuned.json keeps what each took. What stands there under the same
run id is not run again: a run id says everything that can change a number. Several processes of `nap-bench tune` on one store share
the work.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from nap_bench.experiments import EXPERIMENTS
from nap_bench.experiments.base import NUM_LAST, TUNED, Entry, Labelled, tuned, tuned_section
from nap_bench.jobs import Job, Suite, do, say
from nap_bench.plan import compact
from nap_bench.store import read_result, result_path, write_whole

TUNING_SEEDS = tuple(range(1000, 1008))
"""Never reported: exhibits use seeds below 1000."""
NUM_ONLINE_SEEDS = 3
SCALE = "laptop"
"""The scale that the plan tunes: the sweep has to run on a CPU."""
ENOUGH = 0.85
"""First-task accuracy that every arm has to reach for a comparison of late tasks to mean anything."""

Tried = tuple[dict[str, float], Entry]
Sweep = Mapping[str, Sequence[Tried]]
"""Arm -> hyperparameters and run, one pair per configuration."""


def winner(trials: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The trial with the largest scores, compared in order; on a tie the one tried first (grids increase)."""
    return max(trials, key=lambda trial: tuple(trial["scores"].values()))


def shared(tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, dict[str, float]]:
    """Arm -> hyperparameters: for arms of one group (what stands before "/" in their names), the trial whose worst arm does best.

    tables: arm -> trials, in the order of one grid for all arms of a group.
    """
    groups: dict[str, list[str]] = {}
    for arm in tables:
        groups.setdefault(arm.rpartition("/")[0], []).append(arm)
    chosen = {}
    for arms in groups.values():
        worst = [
            min(tuple(trial["scores"].values()) for trial in trials)
            for trials in zip(*(tables[a] for a in arms), strict=True)
        ]
        best = worst.index(max(worst))
        chosen |= {arm: tables[arm][best]["hyper"] for arm in arms}
    return chosen


def first_task(labelled: Labelled) -> dict[str, float]:
    """Means over seeds on the first task, at its end and over it; a diverged seed counts 0."""
    return {
        "first_task_accuracy": round(_mean(labelled.series("task_end/accuracy")[1][:1]), 2),
        "first_task_online_accuracy": _mean(labelled.series("online/accuracy")[1]),
    }


def late(labelled: Labelled) -> dict[str, float]:
    """Mean over seeds of the accuracy over the last tasks; a diverged seed counts 0."""
    return {"late_accuracy": _mean(labelled.series("task_end/accuracy")[1][-NUM_LAST:])}


def late_online(labelled: Labelled) -> dict[str, float]:
    """Mean over seeds of the accuracy before the update over the last third of the stream; a diverged seed counts 0."""
    online_TS = labelled.series("online/accuracy")[1]
    return {"late_online_accuracy": _mean(online_TS[-(len(online_TS) // 3) :])}


def online(labelled: Labelled) -> dict[str, float]:
    """Mean over seeds and the whole stream of the accuracy before the update; a diverged seed counts 0."""
    return {"average_online_accuracy": _mean(labelled.series("online/accuracy")[1])}


RULES: dict[str, tuple[str, Callable[[Labelled], dict[str, float]]]] = {
    "sweep": ("by_first_task_accuracy", first_task),
    "sweep_late": ("by_late_accuracy", late),
    "sweep_late_online": ("by_late_online_accuracy", late_online),
    "sweep_online": ("by_average_online_accuracy", online),
}
"""Declared sweep -> name of its table in tuned.json, and what a run scores."""


def sweeps(module: ModuleType, scale: str, chosen: Mapping[str, Any]) -> Iterator[tuple[str, Sweep]]:
    """(declared as, sweep) of an exhibit at a scale; late ones only once rates are chosen."""
    if hasattr(module, "sweep"):
        yield "sweep", module.sweep(scale, TUNING_SEEDS)
    for declared in ("sweep_late", "sweep_late_online"):
        if hasattr(module, declared) and chosen:
            yield declared, getattr(module, declared)(scale, TUNING_SEEDS, chosen)
    if hasattr(module, "sweep_online"):
        yield "sweep_online", module.sweep_online(scale, TUNING_SEEDS[:NUM_ONLINE_SEEDS])


def planned() -> Iterator[tuple[str, Entry]]:
    """(exhibit, entry) of every run of the sweep at SCALE; an entry's setting says what was tried."""
    for exhibit, module in EXPERIMENTS.items():
        for _, sweep in sweeps(module, SCALE, tuned(exhibit, SCALE)):
            for trials in sweep.values():
                for hyper, entry in trials:
                    words = [entry.setting, *(f"{key}={value:g}" for key, value in hyper.items())]
                    yield exhibit, entry._replace(setting=" ".join(filter(None, words)))


def choose(section: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Arm -> hyperparameters, from the tables of an exhibit's section of tuned.json."""
    chosen = shared(section.get("by_first_task_accuracy", {}))
    for table in ("by_late_accuracy", "by_late_online_accuracy", "by_average_online_accuracy"):
        chosen |= {arm: winner(trials)["hyper"] for arm, trials in section.get(table, {}).items()}
    return chosen


def _mean(values_TS) -> float:
    import numpy as np

    return float(np.nan_to_num(values_TS.mean(axis=0), nan=0.0).mean())


def tune(scale: str, *, store: Path, results: Path, data_dir: str | None, device: str) -> dict[str, Any]:
    """Run what tuned.json does not have of the sweeps of every exhibit, and return the scale's section of it."""
    section = {}
    before = tuned_section(scale)
    places = dict(store=store, results=results, data_dir=data_dir, device=device)
    for exhibit, module in EXPERIMENTS.items():
        tables: dict[str, Any] = {}
        for declared in (name for name in RULES if hasattr(module, name)):
            table, scores = RULES[declared]
            sweep = dict(sweeps(module, scale, choose(tables)))[declared]
            known = before.get(exhibit, {}).get(table, {}).values()  # of the same exhibit and rule: scored alike
            kept = {trial["run_id"]: trial for trials in known for trial in trials}
            tables[table] = _tried(sweep, scores, kept, **places)
        if not tables:
            continue
        for table, arms in tables.items():
            picked = choose({table: arms})
            for arm, trials in arms.items():
                found = next(trial["scores"] for trial in trials if trial["hyper"] == picked[arm])
                low = found.get("first_task_accuracy", 1.0) < ENOUGH
                say(f"[tune] {exhibit} {arm}, {table}: {picked[arm]}, {found}{', TOO LOW' * low}")
        section[exhibit] = {"chosen": choose(tables), **tables}
    return section


def _tried(
    sweep: Sweep,
    scores: Callable[[Labelled], dict[str, float]],
    known: Mapping[str, dict[str, Any]],
    *,
    store: Path,
    results: Path,
    data_dir: str | None,
    device: str,
) -> dict[str, list[dict[str, Any]]]:
    """Arm -> trials (hyper, run_id, scores, wall_seconds), all runs done. known: run id -> its trial in an earlier sweep."""
    from nap_bench.benchmarks import BENCHMARKS

    entries = [entry for trials in sweep.values() for _, entry in trials if entry.run.run_id not in known]
    lines = []
    for entry in entries:
        work = entry.run.benchmark.build(BENCHMARKS, "benchmark").num_steps * len(entry.run.seeds)
        uses = {"tuning": {"sweep": [[entry.arm, entry.setting]]}}
        lines.append({"run_id": entry.run.run_id, "work": work, "uses": uses, "run": compact(entry.run)})
    suite = Suite(lines, "tuning", store=store, results=results)
    jobs = [Job(line, store=store, results=results) for line in lines]
    if do(jobs, data_dir=data_dir, device=device, suite=suite):
        raise ValueError(
            "Some runs of the sweep failed (named above); nothing was chosen. Start `nap-bench tune` again."
        )

    def trial(hyper: dict[str, float], entry: Entry) -> dict[str, Any]:
        if entry.run.run_id in known:
            return {**known[entry.run.run_id], "hyper": hyper}
        result = read_result(result_path(results, entry.run.run_id))
        return {
            "hyper": hyper,
            "run_id": entry.run.run_id,
            "scores": scores(Labelled(entry.arm, entry.setting, result)),
            "wall_seconds": round(result["cost"]["wall_seconds"], 3),
        }

    return {arm: [trial(hyper, entry) for hyper, entry in trials] for arm, trials in sweep.items()}


def write(scale: str, section: Mapping[str, Any]) -> None:
    """Replace one scale's section of config/tuned.json; the other scales' stay."""
    known = json.loads(TUNED.read_text()) if TUNED.exists() else {}
    write_whole(TUNED, json.dumps({**known, scale: section}, indent=1, sort_keys=True) + "\n")
