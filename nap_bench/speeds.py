"""Makes config/speeds.json, which estimates rest on: from finished runs, and short trials of kinds that never finished here."""

from __future__ import annotations

import contextlib
import importlib
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nap_bench import plan
from nap_bench.estimate import kind, updates
from nap_bench.jobs import LOOPS, environment, say
from nap_bench.store import RunFolder, read_result, result_path, write_whole

STARTS = 3
"""Fresh processes that are timed; the median is kept."""


def of_finished(lines: Sequence[dict[str, Any]], store: Path, results: Path) -> dict[str, dict[str, Any]]:
    """Hardware -> what is known of it and its kinds of runs, from every finished run of the plan."""
    found: dict[str, dict[str, Any]] = {}
    samples: dict[tuple[str, str], list[tuple[float, int]]] = {}
    for line in lines:
        path = result_path(results, line["run_id"])
        if not path.exists():
            continue
        result = read_result(path)
        made_with, cost = result["environment"], result["cost"]
        hardware = made_with["device_name"]
        found.setdefault(
            hardware, {name: made_with[name] for name in ("device", "torch", "cpu_capability", "num_cores")}
        )
        left = [path, *(file for file in (Path(store) / line["run_id"]).glob("*") if file.is_file())]
        sample = (1e3 * cost["wall_seconds"] / updates(line), sum(file.stat().st_size for file in left))
        samples.setdefault((hardware, kind(line)), []).append(sample)
    for (hardware, name), values in sorted(samples.items()):
        milliseconds = [value for value, _ in values]
        found[hardware].setdefault("kinds", {})[name] = {
            "milliseconds": _short(statistics.fmean(milliseconds)),
            "range": [_short(min(milliseconds)), _short(max(milliseconds))],
            "num_runs": len(values),
            "bytes": round(statistics.fmean(size for _, size in values)),
            "how": "finished runs",
        }
    return found


def trials(
    lines: Sequence[dict[str, Any]], known: dict[str, Any], *, seconds: float, data_dir: str | None, device: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(kind, speed), for kinds that are not known, each from the first `seconds` of one of its runs, with NaP if there is one.

    Atari's network on a CPU is taken from bench/rainbow.py: the first seconds of a run would only fill its replay.
    """
    kinds: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        if kind(line) not in known:
            kinds.setdefault(kind(line), []).append(line)
    for name, members in kinds.items():
        line = next((member for member in members if "nap" in member["methods"]), members[0])
        if "frames" in line.get("demand", {}):
            if device == "cpu":
                yield name, {"frames_per_second": plan.MEASURED_FPS, "how": "bench/rainbow.py"}
            continue
        try:
            rate = _trial(line, seconds, data_dir, device)
        except ValueError as error:  # its data are not here
            say(f"[speeds] {name}: not measured. {str(error).splitlines()[0]}")
            continue
        say(f"[speeds] {name}: {1e3 / rate:.3g} ms an update")
        yield name, {"milliseconds": _short(1e3 / rate), "num_runs": 1, "how": f"first {seconds:.0f} s of a run"}


def _trial(line: dict[str, Any], seconds: float, data_dir: str | None, device: str) -> float:
    """Updates per second of a run's beginning, of which nothing is kept. On a CPU by the processor's own seconds, which others that
    use the machine do not count in."""
    import torch

    from nap_bench.benchmarks import BENCHMARKS
    from nap_bench.session import Control, Interrupted

    torch.set_num_threads(1)
    run = plan.expand(line["run"])
    module, function = LOOPS[BENCHMARKS[run.benchmark.name].loop]
    control, marks = Control(checkpoint_seconds=float("inf")), []
    clock = time.process_time if device == "cpu" else time.monotonic

    def report(step: int, rate: float) -> None:
        marks.append((step, clock()))
        control.stop = len(marks) > 1 and marks[-1][1] - marks[0][1] > seconds

    control.report = report
    with tempfile.TemporaryDirectory() as scratch:
        folder = RunFolder(scratch, run)
        folder.open()
        how = dict(data_dir=data_dir, device=device, control=control)
        with contextlib.suppress(Interrupted):
            getattr(importlib.import_module(module), function)(run, folder, **how)
    if len(marks) < 2:
        raise ValueError(f"A run of {run.run_id} was over before it could be timed.")
    (first, began), (last, ended) = marks[0], marks[-1]
    return (last - first) / (ended - began)


def start_seconds() -> float:
    """A processor's seconds until a fresh process could do its first run."""
    taken = []
    for _ in range(STARTS):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", "import nap_bench.cli, nap_bench.train"], check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return _short(statistics.median(taken))


def renew(
    path: Path,
    lines: Sequence[dict[str, Any]],
    *,
    store: Path,
    results: Path,
    seconds: float,
    data_dir: str | None,
    device: str,
) -> None:
    """Rewrite the table: finished runs come first, then what the table has, then trials of `seconds` each, if any are wanted."""
    table: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}
    for hardware, about in of_finished(lines, store, results).items():
        table[hardware] = {**table.get(hardware, {}), **about, "kinds": _merged(table, hardware, about["kinds"])}
    _write(path, table, lines)
    if seconds:
        here = environment(device)
        about = {name: here[name] for name in ("device", "torch", "cpu_capability", "num_cores")}
        section = table.setdefault(here["device_name"], {**about, "kinds": {}})
        section["start_seconds"] = start_seconds()
        for name, measured in trials(lines, section["kinds"], seconds=seconds, data_dir=data_dir, device=device):
            section["kinds"] = {**section["kinds"], name: measured}
            _write(path, table, lines)  # so that a trial that is stopped has not been for nothing


def _write(path: Path, table: dict[str, Any], lines: Sequence[dict[str, Any]]) -> None:
    """The table, of planned kinds alone."""
    planned = {kind(line) for line in lines}
    for about in table.values():
        about["kinds"] = {name: value for name, value in sorted(about["kinds"].items()) if name in planned}
    write_whole(path, _text(table))


def _merged(table: dict[str, Any], hardware: str, kinds: dict[str, Any]) -> dict[str, Any]:
    return {**table.get(hardware, {}).get("kinds", {}), **kinds}


def _short(value: float) -> float:
    return float(f"{value:.3g}")


def _text(table: dict[str, Any]) -> str:
    """JSON with a line for each kind, so that a change is one line."""
    sections = []
    for hardware, about in sorted(table.items()):
        rest = {name: value for name, value in sorted(about.items()) if name != "kinds"}
        kinds = [f"  {json.dumps(name)}: {json.dumps(value, sort_keys=True)}" for name, value in about["kinds"].items()]
        head = ", ".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in rest.items())
        sections.append(f'{json.dumps(hardware)}: {{{head}, "kinds": {{\n' + ",\n".join(kinds) + "\n}}")
    return "{\n" + ",\n".join(sections) + "\n}\n"
