"""`nap-bench tune`: choose hyperparameters on tuning seeds, and write config/tuned.json.

One learning rate is chosen for all arms that are compared with each other, as in the paper (B.4: one with which every network
solves each single task), by first-task accuracy alone, on tuning seeds: the rate whose worst arm does best, at the task's end to
the nearest hundredth, then by how soon it gets there (mean online accuracy over the first task). No reported seed is looked at.
What an exhibit declares in `sweep_late` (a rival's own hyperparameter) is chosen by late accuracy.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nap_bench.experiments import EXPERIMENTS
from nap_bench.experiments.base import NUM_LAST, TUNED, Entry, Labelled
from nap_bench.jobs import Job, Suite, do, say
from nap_bench.plan import compact
from nap_bench.store import read_result, result_path, write_whole

TUNING_SEEDS = tuple(range(1000, 1008))
"""Never reported: exhibits use seeds below 1000."""
ENOUGH = 0.85
"""First-task accuracy that every arm has to reach for a comparison of late tasks to mean anything."""

Tried = tuple[dict[str, float], Entry]


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


def _mean(values_TS) -> float:
    import numpy as np

    return float(np.nan_to_num(values_TS.mean(axis=0), nan=0.0).mean())


def tune(scale: str, *, store: Path, results: Path, data_dir: str | None, device: str) -> dict[str, Any]:
    """Run the sweeps of every exhibit that has one, and return the scale's section of tuned.json."""
    section = {}
    for exhibit, module in EXPERIMENTS.items():
        if not hasattr(module, "sweep"):
            continue
        places = dict(store=store, results=results, data_dir=data_dir, device=device)
        tables = _tried(module.sweep(scale, TUNING_SEEDS), first_task, **places)
        chosen = shared(tables)
        for arm, trials in tables.items():
            best = next(trial for trial in trials if trial["hyper"] == chosen[arm])["scores"]["first_task_accuracy"]
            say(
                f"[tune] {exhibit} {arm}: {chosen[arm]}, first-task accuracy {best}{'' if best >= ENOUGH else ', TOO LOW'}"
            )
        late_tables = {}
        if hasattr(module, "sweep_late"):
            late_tables = _tried(module.sweep_late(scale, TUNING_SEEDS, chosen), late, **places)
            for arm, trials in late_tables.items():
                chosen[arm] = winner(trials)["hyper"]
                say(f"[tune] {exhibit} {arm}: {chosen[arm]}, {winner(trials)['scores']}")
        section[exhibit] = {"chosen": chosen, "by_first_task_accuracy": tables, "by_late_accuracy": late_tables}
    return section


def _tried(
    sweep: Mapping[str, Sequence[Tried]],
    scores: Callable[[Labelled], dict[str, float]],
    *,
    store: Path,
    results: Path,
    data_dir: str | None,
    device: str,
) -> dict[str, list[dict[str, Any]]]:
    """Arm -> trials (hyper, run_id, score), all runs done."""
    from nap_bench.benchmarks import BENCHMARKS

    entries = [entry for trials in sweep.values() for _, entry in trials]
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
        result = read_result(result_path(results, entry.run.run_id))
        return {
            "hyper": hyper,
            "run_id": entry.run.run_id,
            "scores": scores(Labelled(entry.arm, entry.setting, result)),
        }

    return {arm: [trial(hyper, entry) for hyper, entry in trials] for arm, trials in sweep.items()}


def write(scale: str, section: Mapping[str, Any]) -> None:
    """Replace one scale's section of config/tuned.json; the other scales' stay."""
    known = json.loads(TUNED.read_text()) if TUNED.exists() else {}
    write_whole(TUNED, json.dumps({**known, scale: section}, indent=1, sort_keys=True) + "\n")
