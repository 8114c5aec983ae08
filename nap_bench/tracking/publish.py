"""Copy results into MLflow: one experiment per exhibit and scale; a run of it for every seed, every cell, and the whole.

What an MLflow run says is a pure function of the results, its dates included, and the tag `nap.digest` is the hash of
it. So publishing again adds nothing, a publish that was killed is completed by the next one, and a new database shows
what the old one showed. Experiments are named `nap_bench/<scale>/<exhibit>`. The tag `nap.kind` is "seed", "cell" (an arm in a
setting, over its seeds: MLflow itself averages over no more than the runs that it has loaded, and knows no IQM), "summary" (the
exhibit: verdicts, figures, report) or "failed" (a run that has no result, and why). Metrics are named as in the results, plus
`final/<measure>` (the scalar scores, which the claims read), `final/diverged` (0 or 1; of a cell its share), `system/...` (cost of
the whole block of seeds); of a cell `iqm/<measure>` with its 95 % interval `iqm_low/`, `iqm_high/`, and `n/seeds`; of the summary
`verdict/<claim>/...` and `totals/...`. Each run names the data that it was made of, by their hash.

MLflow's pages hide a metric whose last value is NaN. So a curve ends at its last finite value, and a diverged seed says
so in its name, in `nap.status` and in `final/diverged`; its final scores are NaN.
"""

from __future__ import annotations

import csv
import fcntl
import functools
import hashlib
import json
import logging
import math
import os
import re
import shutil
import socket
import sqlite3
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nap_bench import stats
from nap_bench.tracking import DEFAULT_URI, TrackerError, artifacts_folder, heartbeat, is_database, sqlite_file

Use = tuple[str, str, str]
"""Exhibit, arm, setting."""

REDO = """git checkout {commit}
rm -rf store/{run_id} results/runs/{run_id}.json
snakemake --cores 1 --config scale={scale} -- results/runs/{run_id}.json"""

VIEWS = ("cells", "seeds", "failed")
"""Keys of the views saved with every experiment: `#/experiments/<id>/runs?viewStateShareKey=cells`."""

EPOCH_MS = 946_684_800_000
"""2000-01-01 UTC. Results carry no dates (a run is the same bytes whenever it is made), so MLflow's are made up."""

MAX_POINTS = 100
"""Most points of a curve that are published; a longer curve is thinned evenly. MLflow takes about 300 bytes a point."""

_DAY_MS = 86_400_000
_DIGEST = 36
"""Most characters of a dataset's hash that MLflow takes."""
_SOURCE = ("nap_bench", "{}")
_CONTEXT = ("mlflow.data.context", "training")
_BATCH = 1000
"""Most metric points MLflow takes in one request. Params: 100, and 8000 characters of a tag."""


@dataclass(frozen=True)
class Exhibit:
    """What is published about an exhibit besides its runs. Files that do not exist are named in its summary run."""

    title: str
    paper: str
    claims: Path
    scores: Path
    figures: tuple[Path, ...] = ()


@dataclass
class Summary:
    """MLflow runs made, completed after a kill, found as they should be; and what else happened."""

    total: int = 0
    created: int = 0
    resumed: int = 0
    unchanged: int = 0
    superseded: int = 0
    uploaded: int = 0
    not_mentioned: int = 0
    seconds: float = 0.0

    @property
    def done(self) -> int:
        return self.created + self.resumed + self.unchanged

    def __str__(self) -> str:
        parts = [f"{self.created} MLflow runs created", f"{self.unchanged} unchanged"]
        parts += [f"{self.resumed} completed after an interruption"] * bool(self.resumed)
        parts += [f"{self.superseded} superseded"] * bool(self.superseded)
        parts += [f"{self.uploaded} files uploaded"] * bool(self.uploaded)
        parts += [f"{self.not_mentioned} of other plans left as they are"] * bool(self.not_mentioned)
        return ", ".join(parts) + f" ({self.seconds:.0f} s)"


@dataclass(frozen=True)
class Draft:
    """What one MLflow run shall say. points: (metric, value, time in ms, step), steps ascending within a metric."""

    name: str
    tags: dict[str, str]
    params: dict[str, str]
    points: list[tuple[str, float, int, int]]
    start_ms: int
    end_ms: int
    data: tuple[tuple[str, str], ...] = ()
    """Name and hash of what it was made of."""
    status: str = "FINISHED"

    @functools.cached_property
    def digest(self) -> str:
        words = (self.name, sorted(self.tags.items()), sorted(self.params.items()))
        return _sha256(repr((words, self.points, self.start_ms, self.end_ms, self.data, self.status)).encode())


def publish(
    results: Iterable[tuple[Mapping[str, Any], Sequence[Use]]],
    exhibits: Mapping[str, Exhibit],
    *,
    scale: str,
    report: Path | None = None,
    failures: Iterable[tuple[Mapping[str, Any], Sequence[Use]]] = (),
    tracking_uri: str = DEFAULT_URI,
) -> Summary:
    """Bring the tracker up to date with the results, saying on stderr how far it is.

    results: run JSONs, each with the uses made of it; uses by exhibits that are not in `exhibits` are skipped.
    failures: of runs without a result the run_id, the reason and the log, each with the uses that there would be.
    A result that differs from what was published for the same exhibit, arm, setting and seed supersedes it: the old
    MLflow run is tagged `nap.superseded` and moved to MLflow's deleted runs; nothing is added to a finished run.
    Raises TrackerError if the tracker cannot be used, ValueError if two results answer for one seed of an arm.
    """
    began = time.monotonic()
    blocks: dict[str, list[tuple[Mapping[str, Any], Use]]] = {name: [] for name in exhibits}
    for result, uses in results:
        for use in uses:
            if use[0] in blocks:
                blocks[use[0]].append((result, use))
    for name, users in blocks.items():
        _refuse_two_answers(name, users)
    failed = [(failure, use) for failure, uses in failures for use in uses if use[0] in blocks]
    num_seeds = sum(len(result["status"]) for users in blocks.values() for result, _ in users)
    num_cells = sum(len(_cells(users)) for users in blocks.values())
    summary = Summary(total=len(exhibits) + num_cells + num_seeds + len(failed))
    phase = "loading MLflow"

    def progress() -> str:
        if phase != "writing":
            return f"publish: {phase} ({time.monotonic() - began:.0f} s)"
        spent = time.monotonic() - writing_began
        left = f", about {spent / summary.done * (summary.total - summary.done):.0f} s left" if summary.done else ""
        return f"publish: {summary.done} of {summary.total} MLflow runs{left}"

    print(f"publish: {summary.total} MLflow runs to {tracking_uri}", file=sys.stderr, flush=True)
    with heartbeat(progress), _tracker_errors(tracking_uri), _only_writer(tracking_uri):
        tracker = _Tracker(tracking_uri, summary)
        phase, writing_began = "writing", time.monotonic()
        for name, exhibit in exhibits.items():
            scores = _scalar_scores(exhibit.scores)
            tracker.open(name, scale, exhibit)
            for result, use in blocks[name]:
                tracker.write([_seed_draft(result, i, use, scale, scores) for i in range(len(result["status"]))])
            cells = [
                _cell_draft(name, *cell, results_, scale, scores) for cell, results_ in _cells(blocks[name]).items()
            ]
            tracker.write(cells)
            tracker.write([_failed_draft(failure, use, scale) for failure, use in failed if use[0] == name])
            tracker.retire("failed")
            files, missing = _files(name, exhibit, report)
            tracker.write([_summary_draft(name, scale, exhibit, blocks[name], scores, files, missing)], files)
            summary.not_mentioned += tracker.not_mentioned()
    summary.seconds = time.monotonic() - began
    return summary


def _refuse_two_answers(exhibit: str, users: list[tuple[Mapping[str, Any], Use]]) -> None:
    answered: dict[tuple[str, str, int], str] = {}
    for result, (_, arm, setting) in users:
        for status in result["status"]:
            key = (arm, setting, status["seed"])
            if key in answered:
                raise ValueError(
                    f"Exhibit {exhibit!r}, arm {arm!r}, setting {setting!r}, seed {key[2]}: wanted one result, found "
                    f"{answered[key]} and {result['run_id']}. Give them different settings, or drop one from the plan."
                )
            answered[key] = result["run_id"]


# What the MLflow runs say


def _seed_draft(
    result: Mapping[str, Any], index: int, use: Use, scale: str, scores: Mapping[tuple[str, str, str], dict[str, float]]
) -> Draft:
    """One seed of a run, as one exhibit sees it."""
    environment, cost, status = result["environment"], result["cost"], result["status"][index]
    seed, commit = status["seed"], environment["commit"] or "unknown"
    _, arm, setting = use
    last_step = max((metric["steps"][-1] for metric in result["metrics"].values() if metric["steps"]), default=0)
    wall_ms = 1000 * cost["wall_seconds"]
    # MLflow lists and draws the newest runs first: the summary, failed runs, cells, those of seed 0, of seed 1, ...
    start = EPOCH_MS - _DAY_MS * (seed % 1000) - _place(arm, setting)
    end = start + round(wall_ms)
    points = []
    for metric, table in sorted(result["metrics"].items()):
        curve = [(step, row[index]) for step, row in zip(table["steps"], table["values"], strict=True)]
        for step, value in _thinned([(step, value) for step, value in curve if value is not None]):
            points.append((_metric_name(metric), value, start + round(wall_ms * step / max(last_step, 1)), step))
    diverged = status["status"] == "diverged"
    finals = {f"final/{measure}": value for measure, value in scores.get((arm, setting, str(seed)), {}).items()}
    finals["final/diverged"] = float(diverged)
    finals |= {f"system/{name}": float(value) for name, value in cost.items() if value is not None}
    # A metric whose only point is at step 0 is drawn as bars, one per run or cell.
    points += [(_metric_name(name), value, end, 0) for name, value in sorted(finals.items())]

    name = f"{_cell(arm, setting)} · seed {seed}" + (f" · diverged at step {status['step']}" if diverged else "")
    tags = _group("seed", use, scale) | {
        "nap.seed": str(seed),
        "nap.status": status["status"],
        "nap.run_id": result["run_id"],
        "nap.cell_id": result["cell_id"],
        "nap.commit": commit + "-dirty" * bool(environment["dirty"]),
        "nap.device": environment["device"],
        "nap.image": environment.get("container") or "none",
        "mlflow.source.git.commit": commit,
        "mlflow.note.content": _seed_note(result, name, seed, scale),
    }
    return Draft(name, tags, {"seed": str(seed), **_params(result)}, points, start, end, _data(result))


def _cell(arm: str, setting: str) -> str:
    return " · ".join(filter(None, (arm, setting)))


def _group(kind: str, use: Use, scale: str) -> dict[str, str]:
    """The tags that every MLflow run has, so that runs can be filtered and grouped by them."""
    exhibit, arm, setting = use
    cell = _cell(arm, setting)
    return {
        "nap.kind": kind,
        "nap.exhibit": exhibit,
        "nap.cell": cell,
        "nap.arm": arm,
        "nap.setting": setting or "only",
        "nap.scale": scale,
    }


def _place(arm: str, setting: str) -> int:
    """Milliseconds that keep the arms of a setting together where MLflow sorts by date."""
    return 100_000 * (1 + _number(setting) % 800 if setting else 0) + _number(arm) % 100_000


def _data(result: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """What a run was made of: data sets by the hash of what was loaded, or the benchmark that drew all of it from the seed.

    Of results older than these hashes the benchmark too, by its own.
    """
    benchmark = result["spec"]["benchmark"]
    drawn = {
        f"{benchmark['name']} (its data by their settings)": _sha256(json.dumps(benchmark, sort_keys=True).encode())
    }
    return tuple(sorted((result["environment"].get("data") or drawn).items()))


def _cells(users: Iterable[tuple[Mapping[str, Any], Use]]) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    """(arm, setting) -> the results that it is made of."""
    cells: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for result, (_, arm, setting) in users:
        cells[arm, setting].append(result)
    return dict(cells)


def _cell_draft(
    exhibit: str,
    arm: str,
    setting: str,
    results: Sequence[Mapping[str, Any]],
    scale: str,
    scores: Mapping[tuple[str, str, str], dict[str, float]],
) -> Draft:
    """An arm in a setting, over its seeds: curves are means over the seeds alive, final scores have IQM and interval."""
    statuses = [status for result in results for status in result["status"]]
    num_diverged = sum(status["status"] == "diverged" for status in statuses)
    start = EPOCH_MS + _DAY_MS - _place(arm, setting) - 1
    curves: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for result in results:
        for metric, table in result["metrics"].items():
            for step, row in zip(table["steps"], table["values"], strict=True):
                curves[metric][step] += [value for value in row if value is not None]
    points = []
    for metric, by_step in sorted(curves.items()):
        means = [(step, statistics.fmean(values)) for step, values in sorted(by_step.items()) if values]
        points += [(_metric_name(metric), mean, start + step, step) for step, mean in _thinned(means)]
    measured: dict[str, list[float]] = defaultdict(list)
    for status in statuses:
        for measure, value in scores.get((arm, setting, str(status["seed"])), {}).items():
            measured[measure].append(value)
    finals = {"n/seeds": float(len(statuses)), "final/diverged": num_diverged / len(statuses)}
    for measure, values in measured.items():
        finals[f"final/{measure}"] = statistics.fmean(values)
        if all(map(math.isfinite, values)):
            found = stats.iqm_interval(values)
            finals |= {f"iqm/{measure}": found.estimate}
            finals |= {f"iqm_low/{measure}": found.low, f"iqm_high/{measure}": found.high} if len(values) > 1 else {}
    costs = [result["cost"] for result in results]
    finals["system/wall_seconds"] = sum(cost["wall_seconds"] for cost in costs)
    points += [(_metric_name(name), value, start, 0) for name, value in sorted(finals.items())]
    tags = _group("cell", (exhibit, arm, setting), scale) | {
        "nap.seed": "all",
        "nap.status": f"{num_diverged} diverged" if num_diverged else "complete",
        "nap.run_id": ", ".join(result["run_id"] for result in results),
    }
    seeds = ", ".join(str(status["seed"]) for status in statuses)
    redo = REDO.format(
        commit=results[0]["environment"]["commit"] or "UNKNOWN", run_id=results[0]["run_id"], scale=scale
    )
    tags["mlflow.note.content"] = (
        f"**{_cell(arm, setting)}** ({scale} scale), seeds {seeds}. To redo {'the first of ' * (len(results) > 1)}its runs:\n\n"
        f"```\n{redo}\n```\n\n{num_diverged} of {len(statuses)} diverged. Curves are means over the seeds alive at a step; "
        "`iqm/...` is the interquartile mean of the final scores, between `iqm_low/...` and `iqm_high/...` (95 %); it is left out "
        "where a seed diverged. Claims rest on paired differences of seeds: see the report."
    )
    name = f"{_cell(arm, setting)} · {len(statuses)} seed{'s' * (len(statuses) > 1)}"
    params = {"num_seeds": str(len(statuses)), **_params(results[0])}
    data = tuple(sorted({pair for result in results for pair in _data(result)}))
    return Draft(name, tags, params, points, start, start + round(1000 * finals["system/wall_seconds"]), data)


def _failed_draft(failure: Mapping[str, Any], use: Use, scale: str) -> Draft:
    """A run that has no result. It goes once there is one."""
    exhibit, arm, setting = use
    tags = _group("failed", use, scale) | {
        "nap.seed": "none",
        "nap.status": "failed",
        "nap.run_id": failure["run_id"],
        "mlflow.note.content": f"**Failed**: {failure['reason']}\n\nLog: `{failure.get('log', '')}`. To try again:\n\n```\n"
        f"snakemake --cores 1 --config scale={scale} -- results/runs/{failure['run_id']}.json\n```",
    }
    start = EPOCH_MS + _DAY_MS
    return Draft(f"FAILED · {_cell(arm, setting)}", tags, {}, [], start, start, status="FAILED")


def _seed_note(result: Mapping[str, Any], name: str, seed: int, scale: str) -> str:
    environment, seeds = result["environment"], result["spec"]["seeds"]
    redo = REDO.format(commit=environment["commit"] or "UNKNOWN", run_id=result["run_id"], scale=scale)
    dirty = ""
    if environment["dirty"] or not environment["commit"]:
        dirty = "\n\n**The code was not that of a commit** (uncommitted changes, or no git): this may not repeat it."
    return (
        f"**{name}** ({scale} scale). To redo it:\n\n```\n{redo}\n```{dirty}\n\n"
        f"Seed {seed} trained in a block with seeds {', '.join(map(str, seeds))}; `system/...` is of the block. "
        f"{environment['device_name']}, {environment['platform']}, Python {environment['python']}, "
        f"torch {environment['torch']}.\n\n"
        "Results carry no dates: *Created* is made up, *Duration* is the block's training time. "
        f"Curves longer than {MAX_POINTS} points are thinned; `results/runs/{result['run_id']}.json` has them all."
    )


def _params(result: Mapping[str, Any]) -> dict[str, str]:
    """The resolved run as flat keys. The model is the one that trained, after the methods edited it."""
    spec = result["spec"]
    flat: dict[str, Any] = {"methods": "+".join(part["name"] for part in spec["methods"]) or "baseline"}
    parts = [("benchmark", spec["benchmark"]), ("optimizer", spec["optimizer"]), ("schedule", spec["schedule"])]
    parts += [(f"method.{part['name']}", part) for part in spec["methods"]]
    for prefix, part in parts:
        if not prefix.startswith("method."):
            flat[prefix] = part["name"]
        flat[f"{prefix}.version"] = part["version"]
        flat |= {f"{prefix}.{key}": value for key, value in part["params"].items()}
    for key, value in result["environment"]["resolved_model"].items():
        flat |= {f"model.{k}": v for k, v in value.items()} if isinstance(value, dict) else {f"model.{key}": value}
    flat |= {"precision": spec["precision"], "protocol": spec["protocol"]}
    lr = flat.get("schedule.lr", flat.get("optimizer.lr"))
    flat |= {"lr": lr} if lr is not None else {}
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in flat.items()}


def _summary_draft(
    name: str,
    scale: str,
    exhibit: Exhibit,
    users: Sequence[tuple[Mapping[str, Any], Use]],
    scores: Mapping[tuple[str, str, str], dict[str, float]],
    files: Mapping[str, Path],
    missing: Sequence[str],
) -> Draft:
    """The exhibit as a whole: verdicts, and means over seeds (NaN if a seed is: nothing is dropped)."""
    claims = json.loads(exhibit.claims.read_text())["claims"] if exhibit.claims.exists() else []
    statuses = [status["status"] for result, _ in users for status in result["status"]]
    metrics = {"totals/seeds": float(len(statuses)), "totals/diverged_seeds": float(statuses.count("diverged"))}
    tags = {
        "nap.kind": "summary",
        "nap.exhibit": name,
        "nap.cell": "summary",
        "nap.arm": "summary",
        "nap.setting": "only",
        "nap.seed": "all",
        "nap.status": "complete",
        "nap.scale": scale,
        "nap.files": ", ".join(sorted(files)),
    }
    verdicts = []
    for claim in claims:
        tags[f"verdict.{claim['id']}"] = f"{claim['verdict']} at {scale} scale"
        verdicts.append(f"| {claim['sentence']} ({claim['source']}) | {claim['verdict']} |")
        for measured in claim["measurements"]:
            stem = f"verdict/{claim['id']}" + (f"/{measured['label']}" if len(claim["measurements"]) > 1 else "")
            bounds = {f"{stem}/{end}": measured[end] for end in ("estimate", "low", "high")}
            metrics |= {key: value for key, value in bounds.items() if value is not None}
    means: dict[str, list[float]] = defaultdict(list)
    for (arm, setting, _), measures in scores.items():
        for measure, value in measures.items():
            means["/".join(part for part in ("totals/mean", measure, arm, setting) if part)].append(value)
    metrics |= {key: statistics.fmean(values) for key, values in means.items()}

    note = [f"**{exhibit.title}**, {scale} scale.", f"The paper: {exhibit.paper}"]
    note += [f"{statuses.count('diverged')} of {len(statuses)} seeds diverged; none is dropped."]
    note += [f"Missing: {', '.join(missing)}."] if missing else []
    note += ["\n".join([f"| Claim | Verdict at {scale} scale |", "|---|---|", *verdicts])] if verdicts else []
    tags["mlflow.note.content"] = "\n\n".join(note)
    start = EPOCH_MS + 2 * _DAY_MS
    points = [(_metric_name(key), value, start, 0) for key, value in sorted(metrics.items())]
    return Draft(f"summary · {name} · {scale}", tags, {}, points, start, start)


def _scalar_scores(path: Path) -> dict[tuple[str, str, str], dict[str, float]]:
    """(arm, setting, seed) -> measure -> value, of the rows that are no curves and belong to a seed."""
    scores: dict[tuple[str, str, str], dict[str, float]] = defaultdict(dict)
    if path.exists():
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                if row["x"] == "" and row["seed"] != "":
                    scores[row["arm"], row["setting"], row["seed"]][row["measure"]] = float(row["value"] or "nan")
    return dict(scores)


def _files(name: str, exhibit: Exhibit, report: Path | None) -> tuple[dict[str, Path], list[str]]:
    """Artifact path -> file for the files that exist, and the artifact paths of those that do not."""
    wanted = {f"figures/{path.name}": path for path in exhibit.figures}
    wanted |= {f"claims/{name}.json": exhibit.claims, f"scores/{name}.csv": exhibit.scores}
    wanted |= {"report/index.html": report} if report else {}
    return {k: v for k, v in wanted.items() if v.exists()}, [k for k, v in wanted.items() if not v.exists()]


def _thinned(curve: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most MAX_POINTS of a curve, evenly chosen, its first and last point among them."""
    if len(curve) <= MAX_POINTS:
        return list(curve)
    return [curve[round(i * (len(curve) - 1) / (MAX_POINTS - 1))] for i in range(MAX_POINTS)]


def _metric_name(text: str) -> str:
    """MLflow takes letters, digits, spaces and `_-.:/` in the name of a metric."""
    return re.sub(r"[^\w.\-:/ ]", ":", text)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _number(text: str) -> int:
    """A number that depends on the text alone."""
    return int(_sha256(text.encode())[:12], 16)


def _views(measures: Sequence[str], better: Mapping[str, str]) -> dict[str, str]:
    """MLflow's saved states of an experiment page: cells, the first measure's best on top; seeds by cell; failed runs.

    better: "higher" or "lower" of the measures that claims are about; of others the highest is on top.
    """
    falling = measures and better.get(measures[0]) == "lower"
    order = {"orderByKey": f"metrics.`iqm/{measures[0]}`", "orderByAsc": falling} if measures else {}
    by_cell = {"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": "nap.cell"}]}
    columns = {
        "cells": [f"metrics.`{kind}/{measure}`" for measure in measures for kind in ("iqm", "iqm_low", "iqm_high")],
        "seeds": [f"metrics.`final/{measure}`" for measure in measures],
    }
    common = {"runsHiddenMode": "FIRST_20_RUNS"}
    cells = {**common, **order, "selectedColumns": [*columns["cells"], "metrics.`final/diverged`", "params.`lr`"]}
    seeds = {**common, "groupBy": by_cell, "selectedColumns": [*columns["seeds"], "metrics.`final/diverged`"]}
    states = {"cells": ("cell", cells), "seeds": ("seed", seeds), "failed": ("failed", common)}
    return {key: json.dumps({**s, "searchFilter": f"tags.`nap.kind` = '{kind}'"}) for key, (kind, s) in states.items()}


# How they get there


class _Tracker:
    """The tracker with one experiment open. One search per experiment; the rest is remembered."""

    def __init__(self, uri: str, summary: Summary) -> None:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
        path = sqlite_file(uri)
        if path:
            _create_database(path)
        from mlflow import MlflowClient

        self.client = MlflowClient(uri)
        self.summary = summary
        self.artifacts = artifacts_folder(uri) if is_database(uri) else None
        if is_database(uri):
            import sqlalchemy

            self.client._tracking_client.store.engine.dispose()  # of a database that was deleted since this process looked
            self.engine = sqlalchemy.create_engine(uri)
        else:
            self.engine = None

    def open(self, exhibit: str, scale: str, about: Exhibit) -> None:
        """Get or make the experiment, and list its runs by arm, setting and seed."""
        name = f"nap_bench/{scale}/{exhibit}"
        found = self.client.get_experiment_by_name(name)
        if found and found.lifecycle_stage == "deleted":
            raise TrackerError(
                f"The MLflow experiment {name!r} was deleted in MLflow, so nothing can be published to it. Bring it "
                f"back with `mlflow experiments restore --experiment-id {found.experiment_id}`, or `mlflow gc` it."
            )
        measures = list(dict.fromkeys(m for scores in _scalar_scores(about.scores).values() for m in scores))[:4]
        judged = json.loads(about.claims.read_text())["claims"] if about.claims.exists() else []
        better = {m["measure"]: m["better"] for claim in judged for m in claim["measurements"] if "measure" in m}
        tags = {
            "nap.scale": scale,
            "nap.exhibit": exhibit,
            "mlflow.experimentKind": "custom_model_development",
            **{f"mlflow.sharedViewState.{key}": state for key, state in _views(measures, better).items()},
        }
        if found:
            self.experiment_id, old = found.experiment_id, found.tags
        else:
            location = f"mlflow-artifacts:/{name}" if self.artifacts else None
            self.experiment_id, old = (
                self.client.create_experiment(name, artifact_location=location, tags=tags),
                dict(tags),
            )
        links = {key: f"#/experiments/{self.experiment_id}/runs?viewStateShareKey={key}" for key in VIEWS}
        tags["mlflow.note.content"] = (
            f"**{about.title}** ({scale} scale). The paper: {about.paper}\n\n"
            f"[Methods compared]({links['cells']}&compareRunsMode=CHART): one run per arm and setting, over its seeds. "
            f"[Every seed]({links['seeds']}). [Failed runs]({links['failed']}). "
            "The run *summary* has verdicts, figures and the report."
        )
        for key, value in tags.items():
            if old.get(key) != value:
                self.client.set_experiment_tag(self.experiment_id, key, value)
        self.known: dict[tuple[str | None, ...], list[Any]] = defaultdict(list)
        token = ""
        while token is not None:
            page = self.client.search_runs([self.experiment_id], max_results=1000, page_token=token or None)
            for run in page:
                if "nap.digest" in run.data.tags:
                    self.known[_identity(run.data.tags)].append(run)
            token = page.token or None

    def retire(self, kind: str) -> None:
        """Runs of a kind that nothing was written for are no longer so."""
        for identity in [identity for identity in self.known if identity[0] == kind]:
            for run in self.known.pop(identity):
                self._retire(run)

    def not_mentioned(self) -> int:
        """MLflow runs of the open experiment that nothing was written for."""
        return sum(map(len, self.known.values()))

    def write(self, drafts: Sequence[Draft], files: Mapping[str, Path] | None = None) -> None:
        """Make MLflow say each draft exactly once, and bring its files up to date."""
        unfinished: list[tuple[str, Draft]] = []
        leftovers: list[str] = []
        for draft in drafts:
            kept = None
            for run in self.known.pop(_identity(draft.tags), []):
                if kept is None and run.data.tags["nap.digest"] == draft.digest:
                    kept = run
                else:
                    self._retire(run)
            if kept is None:
                kept = self.client.create_run(
                    self.experiment_id,
                    start_time=draft.start_ms,
                    tags={**draft.tags, "nap.digest": draft.digest},
                    run_name=draft.name,
                )
                self.summary.created += 1
                unfinished.append((kept.info.run_id, draft))
            elif kept.info.status == draft.status:
                self.summary.unchanged += 1
            else:
                self.summary.resumed += 1
                leftovers.append(kept.info.run_id)
                unfinished.append((kept.info.run_id, draft))
            if files:
                self._attach(kept, files)
        if unfinished:
            log = self._log_into_database if self.engine else self._log_to_server
            log(unfinished, leftovers)
        for run_id, draft in unfinished:
            self.client.set_terminated(run_id, draft.status, end_time=draft.end_ms)

    def _retire(self, run: Any) -> None:
        self.client.set_tag(run.info.run_id, "nap.superseded", "true")
        self.client.delete_run(run.info.run_id)
        self.summary.superseded += 1

    def _attach(self, run: Any, files: Mapping[str, Path]) -> None:
        uploaded = json.loads(run.data.tags.get("nap.uploaded", "{}"))
        for name, path in files.items():
            digest = _sha256(path.read_bytes())[:16]
            if uploaded.get(name) == digest:
                continue
            scheme, _, place = run.info.artifact_uri.partition(":/")
            if self.artifacts and scheme == "mlflow-artifacts":  # MLflow reaches these through its server only
                target = self.artifacts / place / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
            else:
                self.client.log_artifact(run.info.run_id, str(path), str(Path(name).parent))
            uploaded[name] = digest
            self.client.set_tag(run.info.run_id, "nap.uploaded", json.dumps(uploaded))
            self.summary.uploaded += 1

    def _log_to_server(self, unfinished: list[tuple[str, Draft]], leftovers: list[str]) -> None:
        """Params and points by MLflow's API, for which repeating the same is a no-op."""
        from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param

        for run_id, draft in unfinished:
            datasets = [Dataset(name, digest[:_DIGEST], *_SOURCE) for name, digest in draft.data]
            self.client.log_inputs(run_id, [DatasetInput(data, [InputTag(*_CONTEXT)]) for data in datasets])
            self.client.log_batch(run_id, params=[Param(key, value) for key, value in draft.params.items()])
            points = [Metric(*point) for point in draft.points]
            for first in range(0, len(points), _BATCH):
                self.client.log_batch(run_id, metrics=points[first : first + _BATCH])

    def _log_into_database(self, unfinished: list[tuple[str, Draft]], leftovers: list[str]) -> None:
        """The rows that `_log_to_server` would lead to (a test compares them), in one transaction.

        161 MLflow runs of 720 points on one core: 10 s, against 28 s by MLflow's API (3.17.2, SQLite).
        """
        import sqlalchemy
        from mlflow.store.tracking.dbmodels.models import (
            SqlDataset,
            SqlInput,
            SqlInputTag,
            SqlLatestMetric,
            SqlMetric,
            SqlParam,
        )

        metrics = [
            {
                "run_uuid": run_id,
                "key": key,
                "value": 0.0 if math.isnan(value) else value,
                "is_nan": math.isnan(value),
                "timestamp": timestamp,
                "step": step,
            }
            for run_id, draft in unfinished
            for key, value, timestamp, step in draft.points
        ]
        latest = {(row["run_uuid"], row["key"]): row for row in metrics}
        params = [{"run_uuid": run_id, "key": k, "value": v} for run_id, d in unfinished for k, v in d.params.items()]
        made_of: dict[str, dict[str, Any]] = {}
        inputs: dict[str, dict[str, Any]] = {}
        for run_id, draft in unfinished:
            for name, digest in draft.data:
                data_id = _sha256(repr((self.experiment_id, name, digest)).encode())[:32]
                input_id = _sha256(repr((run_id, data_id)).encode())[:32]
                made_of[data_id] = {
                    "dataset_uuid": data_id,
                    "experiment_id": int(self.experiment_id),
                    "name": name,
                    "digest": digest[:_DIGEST],
                    "dataset_source_type": _SOURCE[0],
                    "dataset_source": _SOURCE[1],
                }
                inputs[input_id] = {
                    "input_uuid": input_id,
                    "source_type": "DATASET",
                    "source_id": data_id,
                    "destination_type": "RUN",
                    "destination_id": run_id,
                }
        tags = [{"input_uuid": input_id, "name": _CONTEXT[0], "value": _CONTEXT[1]} for input_id in inputs]
        with self.engine.begin() as connection:
            for model, key, rows in ((SqlDataset, "dataset_uuid", made_of), (SqlInput, "input_uuid", inputs)):
                column = getattr(model, key)
                there = set(connection.scalars(sqlalchemy.select(column).where(column.in_(list(rows)))))
                if new := [row for id_, row in rows.items() if id_ not in there]:
                    connection.execute(sqlalchemy.insert(model.__table__), new)
                if model is SqlInput and (new := [row for row in tags if row["input_uuid"] not in there]):
                    connection.execute(sqlalchemy.insert(SqlInputTag.__table__), new)
            for model, rows in ((SqlMetric, metrics), (SqlLatestMetric, list(latest.values())), (SqlParam, params)):
                if leftovers:
                    connection.execute(sqlalchemy.delete(model).where(model.run_uuid.in_(leftovers)))
                if rows:
                    connection.execute(sqlalchemy.insert(model.__table__), rows)


def _identity(tags: Mapping[str, str]) -> tuple[str | None, ...]:
    """What a run of MLflow is about; two failed runs of a cell differ by the run alone."""
    about = tuple(tags.get(key) for key in ("nap.kind", "nap.arm", "nap.setting", "nap.seed"))
    return (*about, tags["nap.run_id"]) if about[0] == "failed" else about


def _create_database(path: Path) -> None:
    """Make the SQLite database, whole or not at all: MLflow cannot go on with one whose creation was interrupted."""
    if path.exists():
        with sqlite3.connect(path) as connection:
            connection.execute("PRAGMA schema_version")  # MLflow would retry for minutes what is not a database
        return
    from mlflow import MlflowClient

    new = path.with_name(f"{path.name}.new")
    for leftover in (new, path.with_name(f"{new.name}-journal")):
        leftover.unlink(missing_ok=True)
    MlflowClient(f"sqlite:///{new}").search_experiments(max_results=1)
    new.replace(path)


@contextmanager
def _only_writer(uri: str) -> Iterator[None]:
    """Hold the lock of this tracker; waits for another publish of this machine, saying so."""
    path = sqlite_file(uri)
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_name(f"{path.name}.lock")
    else:
        lock = Path(tempfile.gettempdir()) / f"nap_bench-publish-{os.getuid()}-{_sha256(uri.encode())[:16]}.lock"
    with lock.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            print(f"publish: waiting for another publish ({file.read()}) to finish", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


@contextmanager
def _tracker_errors(uri: str) -> Iterator[None]:
    """Turn what a broken tracker raises into one TrackerError; MLflow's own log lines about it are not wanted twice."""
    loggers = {logging.getLogger(name): logging.getLogger(name).level for name in ("mlflow", "alembic")}
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    except TrackerError:
        raise
    except Exception as error:
        failures: tuple[type[Exception], ...] = (OSError, sqlite3.Error, ImportError)
        if "mlflow" in sys.modules:
            from mlflow.exceptions import MlflowException
            from sqlalchemy.exc import SQLAlchemyError

            failures += (MlflowException, SQLAlchemyError)
        if not isinstance(error, failures):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise TrackerError(
            f"MLflow at {uri} cannot be used: {reason}. Results are untouched. Check tracking_uri in "
            f"config/config.yaml and the tracker, then run `nap-bench publish`."
        ) from error
    finally:
        for logger, level in loggers.items():
            logger.setLevel(level)
