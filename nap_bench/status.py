"""How far a suite is, and why a run would run again; from the files of plan, store and results alone. Writes nothing."""

from __future__ import annotations

import json
import textwrap
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from nap_bench import plan
from nap_bench.estimate import duration
from nap_bench.jobs import failures
from nap_bench.spec import PROTOCOL, nearest
from nap_bench.store import STALE_SECONDS, Lease, read_result, result_path

WIDTH = 99
MOST = 10
"""Runs of a kind that are named; the rest is counted."""
STATES = ("done", "running", "failed", "missing")


class State(NamedTuple):
    """what: one of STATES.  note: what else the files say."""

    what: str
    note: str = ""

    def __str__(self) -> str:
        between = {"done": " ", "missing": ", "}.get(self.what, ": ")
        return f"{self.what}{between if self.note else ''}{self.note}"


def look(line: dict[str, Any], store: Path, results: Path) -> State:
    """The state of a run."""
    path, folder = result_path(results, line["run_id"]), Path(store) / line["run_id"]
    if path.exists():
        return State("done")
    if (folder / "done.json").exists():
        return State("done", f"in {folder}; its result is made from there by running it, without training")
    lease = Lease(folder / "lease.json")
    holder = lease.holder()
    age = time.time() - lease.path.stat().st_mtime if holder and lease.path.exists() else STALE_SECONDS
    if age < STALE_SECONDS:
        where = f"process {holder.get('pid')} on {holder.get('host')}, update {holder.get('step', 0)}"
        return State("running", f"{where}, heartbeat {max(age, 0):.0f} s ago")
    for failure in failures([line], store):
        return State("failed", f"{failure['reason']} (log: {failure['log']})")
    if (folder / "checkpoint").exists():
        return State("missing", f"begun: it goes on from the checkpoint in {folder}")
    return State("missing")


def command(line: dict[str, Any], scale: str, *, plan_path: Path, store: Path, results: Path) -> str:
    """What does this run, now."""
    if scale == plan.TUNING:
        return "nap-bench tune"
    usual = {"--plan": "config/plan.jsonl", "--store": "store", "--results": "results"}
    places = zip(usual, (plan_path, store, results), strict=True)
    words = [f"{option} {path}" for option, path in places if str(path) != usual[option]]
    return " ".join(["nap-bench run", *words, *[f"--scale {scale}"] * (scale != "laptop"), line["run_id"]])


def told(lines: Sequence[dict[str, Any]], scale: str, experiments: Sequence[str], **places: Path) -> Iterator[str]:
    """The lines of `nap-bench status`. places: plan_path, store, results."""
    chosen = plan.select(list(lines), scale, list(experiments))
    states = {line["run_id"]: look(line, places["store"], places["results"]) for line in chosen}
    exhibits = plan.exhibits(chosen, scale, list(experiments))
    width = max(map(len, exhibits), default=0)
    yield f"{'':<{width}}   runs" + "".join(f"{what:>9}" for what in STATES)
    for name, run_ids in exhibits.items():
        yield _row(name, width, [states[run_id] for run_id in run_ids])
    if len(exhibits) > 1:
        yield _row("all (a run counts once)", width, list(states.values()))
    of = {what: [line for line in chosen if states[line["run_id"]].what == what] for what in STATES}
    for what in ("running", "failed"):
        if of[what]:
            yield ""
            yield f"{what}:"
        for line in of[what][:MOST]:
            yield from _wrapped(f"{_where(line, scale)} {line['run_id']}", 2)
            yield from _wrapped(states[line["run_id"]].note, 4)
            if what == "failed":
                yield f"    next: {command(line, scale, **places)}"
        if len(of[what]) > MOST:
            yield f"  and {len(of[what]) - MOST} more"
    yield ""
    left = len(of["missing"]) + len(of["failed"])
    begun = sum(bool(states[line["run_id"]].note) for line in of["missing"])
    if not left and not of["running"]:
        yield f"All {len(chosen)} runs of {scale} scale are done."
    elif left:
        words = [f"scale={scale}"] * (scale != "laptop")
        words += [f"experiments=[{','.join(experiments)}]"] * bool(experiments)
        note = f" ({begun} of them begun: they go on from their checkpoints)" if begun else ""
        yield f"{left} to do{note}. next: " + " ".join(["snakemake", *["--config", *words] * bool(words)])


def _row(name: str, width: int, states: Sequence[State]) -> str:
    counts = [sum(state.what == what for state in states) for what in STATES]
    return f"{name:<{width}} {len(states):>6}" + "".join(f"{count or '.':>9}" for count in counts)


def _where(line: dict[str, Any], scale: str) -> str:
    places = [f"{name}/{' '.join(filter(None, at))}" for name, found in line["uses"][scale].items() for at in found]
    return places[0] + " ..." * (len(places) > 1)


def why(name: str, lines: Sequence[dict[str, Any]], **places: Path) -> Iterator[str]:
    """The lines of `nap-bench status --why RUN`: what is missing, and which stored run comes closest. places: see `told`."""
    known = {line["run_id"]: line for line in lines}
    run_id = Path(name).stem if name.endswith(".json") else name
    stored = _stored(places["store"])
    if run_id not in known:
        if run_id not in stored:
            raise ValueError(
                nearest(run_id, known, "run").split(" Known:")[0] + f" {len(known)} runs are in {places['plan_path']}."
            )
        yield from _wrapped(
            f"{run_id} would not run: it is in {places['store']}, but no run of {places['plan_path']} any more."
        )
        specs = {line["run_id"]: plan.expand(line["run"]).as_dict() for line in lines if _alike(line, stored[run_id])}
        yield from _closest("The planned run closest to it", stored[run_id], specs)
        return
    line = known[run_id]
    scale = next(scale for scale in (*plan.SCALES, plan.TUNING) if scale in line["uses"])
    state, path = look(line, places["store"], places["results"]), result_path(places["results"], run_id)
    again = f"next: {command(line, scale, **places)}"
    if path.exists():
        try:
            cost = read_result(path)["cost"]
        except ValueError as error:
            yield from _wrapped(f"{run_id} would run again: its result cannot be used.")
            yield from _wrapped(str(error), 2)
            return
        yield from _wrapped(
            f"{run_id} would not run again: {path} is whole, of protocol {PROTOCOL}, {duration(cost['wall_seconds'])}."
        )
        yield from _wrapped(
            "Snakemake may name its pack all the same, for another member that is missing; this one is only looked at.",
            2,
        )
        return
    if state.what == "done":
        yield from _wrapped(f"{run_id} would not be trained again: it is {state.note}.")
        yield again
        return
    if state.what == "running":
        yield from _wrapped(f"{run_id} is running: {state.note}. Whoever wants it waits for that.")
        return
    if state.what == "failed":
        yield from _wrapped(f"{run_id} would run again: it failed.")
        yield from _wrapped(state.note, 2)
    elif state.note:
        yield from _wrapped(f"{run_id} would run: it was {state.note}.")
    else:
        yield from _wrapped(f"{run_id} would run: neither {path} nor {places['store'] / run_id} has anything of it.")
        mine = plan.expand(line["run"]).as_dict()
        yield from _closest(
            "The stored run closest to it", mine, {i: spec for i, spec in stored.items() if i != run_id}
        )
    yield again


def _stored(store: Path) -> dict[str, dict[str, Any]]:
    """Run id -> spec of what a store holds; damaged ones aside, which say so when they are used."""
    found = {}
    for path in sorted(Path(store).glob("*/spec.json")):
        try:
            found[path.parent.name] = json.loads(path.read_text())
        except json.JSONDecodeError:
            continue
    return found


def _alike(line: dict[str, Any], spec: dict[str, Any]) -> bool:
    return line["run"]["benchmark"]["name"] == spec["benchmark"]["name"]


def _closest(title: str, mine: dict[str, Any], others: dict[str, dict[str, Any]]) -> Iterator[str]:
    """The one of `others` that differs in the fewest fields, and in which."""
    if not others:
        return
    flat = _flat(mine)
    differences = {name: _differences(flat, _flat(spec)) for name, spec in others.items()}
    name = min(differences, key=lambda name: (len(differences[name]), name))
    yield from _wrapped(f"{title}, {name}, differs in {len(differences[name])} fields:", 2)
    for field, (ours, theirs) in list(differences[name].items())[:MOST]:
        note = " (its numbers changed with the version)" * field.endswith("version")
        yield from _wrapped(f"{field}: {_text(ours)}, there {_text(theirs)}{note}", 4)


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """{"benchmark.params.num_tasks": 8, ...}; methods by their names."""
    if isinstance(value, dict):
        return {key: found for field, part in value.items() for key, found in _flat(part, f"{name}.{field}").items()}
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return {key: found for part in value for key, found in _flat(part, f"{name}.{part['name']}").items()}
    return {name[1:]: value}


def _differences(mine: dict[str, Any], other: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Field -> (mine, other) where they differ; a method that only one has is one field."""
    found: dict[str, tuple[Any, Any]] = {}
    for field in dict.fromkeys([*mine, *other]):
        ours, theirs = json.loads(json.dumps([mine.get(field), other.get(field)]))  # a file knows no tuples
        method = ".".join(field.split(".")[:2])
        there = [f"{method}.name" in spec for spec in (mine, other)]
        if field.startswith("methods.") and not all(there):
            found[method] = (there[0], there[1])
        elif ours != theirs and field != "methods":
            found[field] = (ours, theirs)
    return found


def _text(value: Any) -> str:
    return "nothing" if value is None else json.dumps(value)


def _wrapped(text: str, indent: int = 0) -> list[str]:
    """Lines of at most WIDTH columns; names and commands are left whole."""
    first = " " * indent
    how = dict(initial_indent=first, subsequent_indent=first + "  ", break_long_words=False, break_on_hyphens=False)
    return textwrap.wrap(text, WIDTH, **how)
