"""What a suite will take, before it starts: hours, wall time, disk; from config/speeds.json. Standard library only.

The workflow loads this file by its path. Speeds are kept for kinds of runs (benchmark, network, batch, number of seeds), averaged
over methods. What was never measured is said to be so: nothing is guessed from smaller networks.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SPEEDS = ROOT / "config" / "speeds.json"
NOT_MEASURED = "NOT MEASURED"
RUNS_PER_PROCESS = 4
"""As packs of the default size; the rest of what a suite does besides training is in no estimate."""


def kind(line: dict[str, Any]) -> str:
    """What decides a run's speed, methods aside: "random_labels mlp: digits, widths 64-64, batch 32, 8 seeds"."""
    run = line["run"]
    params, model = run["benchmark"].get("params", {}), run["model"]

    def text(value: Any) -> str:
        return "-".join(map(str, value)) if isinstance(value, list) else str(value)

    words = [params["dataset"]] if "dataset" in params else []
    words += [f"{name} {text(value)}" for name, value in sorted(model.get("size", {}).items()) if value != []]
    words += [f"batch {params['batch_size']}"] if "batch_size" in params else []
    words += [f"{len(run['seeds'])} seeds" if len(run["seeds"]) > 1 else "1 seed"]
    words += [run["precision"]] if run.get("precision", "fp32") != "fp32" else []
    return f"{family(line)}: {', '.join(words)}"


def family(line: dict[str, Any]) -> str:
    """The kinds that an estimate shows as one: "random_labels mlp"."""
    return f"{line['run']['benchmark']['name']} {line['run']['model']['family']}"


def updates(line: dict[str, Any]) -> float:
    """Updates of a run: its seeds make them together."""
    return line["work"] / len(line["run"]["seeds"])


class Speeds:
    """Measured speeds of one kind of device.

    hardware: its name, "" if none was measured.  about: what else is known of it.  kinds: kind -> what was measured.
    """

    def __init__(self, device: str, path: Path = SPEEDS, processor: str = ""):
        found = json.loads(path.read_text()) if path.exists() else {}
        wanted = device.partition(":")[0]
        fitting = {name: about for name, about in found.items() if about["device"] == wanted}
        self.hardware = processor if processor in fitting else next(iter(fitting), "")
        self.about: dict[str, Any] = fitting.get(self.hardware, {})
        self.kinds: dict[str, dict[str, Any]] = self.about.get("kinds", {})

    def seconds(self, line: dict[str, Any]) -> float | None:
        """Of one run on one core, or one GPU; None if its kind was never measured."""
        measured = self.kinds.get(kind(line))
        if measured is None:
            return None
        if "frames_per_second" in measured:
            return line["demand"]["frames"] / measured["frames_per_second"]
        return updates(line) * measured["milliseconds"] / 1e3

    def bytes(self, line: dict[str, Any]) -> float | None:
        """That a finished run leaves in store and results."""
        return self.kinds.get(kind(line), {}).get("bytes")


class Estimate:
    """Of some runs: how many, how long, how large. seconds: of what was measured; unmeasured: the rest."""

    def __init__(self, lines: Sequence[dict[str, Any]], speeds: Speeds):
        self.lines, self.speeds = lines, speeds
        seconds = [speeds.seconds(line) for line in lines]
        self.measured = [value for value in seconds if value is not None]
        self.unmeasured = [line for line, value in zip(lines, seconds, strict=True) if value is None]
        self.seconds = sum(self.measured)

    def wall_seconds(self, num_workers: int) -> float:
        """Of what was measured, with starts of processes: no shorter than the longest run."""
        start = self.speeds.about.get("start_seconds", 0.0) * len(self.measured) / RUNS_PER_PROCESS
        return max((self.seconds + start) / num_workers, max(self.measured, default=0.0))

    def disk_bytes(self) -> float | None:
        """What finished runs leave. A kind that never finished here is taken for as large as the mean of those that did."""
        kinds = [about["bytes"] for about in self.speeds.kinds.values() if "bytes" in about]
        if not kinds:
            return None
        sizes = [self.speeds.bytes(line) for line in self.lines]
        return sum(sum(kinds) / len(kinds) if size is None else size for size in sizes)

    def has_unknown_bytes(self) -> bool:
        return any(self.speeds.bytes(line) is None for line in self.lines)

    def under_way_bytes(self) -> int:
        """The largest checkpoint of a run, where a benchmark says it."""
        return max((line.get("demand", {}).get("disk_bytes", 0) for line in self.lines), default=0)


def told(
    lines: Sequence[dict[str, Any]],
    num_done: int,
    *,
    scale: str,
    device: str,
    num_workers: int,
    speeds: Speeds | None = None,
) -> Iterator[str]:
    """The first lines of an invocation. lines: what is to be done; num_workers: runs at a time, 0 if unknown (a cluster)."""
    speeds = speeds or Speeds(device, processor=processor())
    made = Estimate(lines, speeds)
    yield f"{scale} scale: {_count(len(lines), 'run')} to do, {num_done} done already" + "." * (not lines)
    if not lines:
        return
    unit = "core" if device == "cpu" else "GPU"
    if made.measured:
        where = f"measured on {speeds.hardware}, torch {speeds.about['torch']}"
        time = f"{_hours(made.seconds, unit)} ({where})"
        if num_workers:
            time += f"; about {duration(made.wall_seconds(num_workers))} {_on(num_workers, unit)}"
        yield f"  time: {time}"
    if made.unmeasured:
        yield f"  time of {_count(len(made.unmeasured), 'run')} on a {unit}: {NOT_MEASURED}"
    if (disk := made.disk_bytes()) is not None:
        guess = ", if other kinds of runs leave as much as those measured" * made.has_unknown_bytes()
        yield f"  disk: about {size(disk)} when done{guess}"
    if made.under_way_bytes() > 1e8:
        yield f"        and up to {size(made.under_way_bytes())} for each run under way"


def table(
    lines: Sequence[dict[str, Any]], done: set[str], *, scale: str, device: str, num_workers: int
) -> Iterator[str]:
    """The lines of `nap-bench plan --estimate`."""
    todo = [line for line in lines if line["run_id"] not in done]
    yield from told(
        todo,
        len(lines) - len(todo),
        scale=scale,
        device=device,
        num_workers=num_workers,
    )
    cpu, gpu = Speeds("cpu", processor=processor()), Speeds("cuda")
    yield ""
    yield f"{'kind of run':<32} {'runs':>6} {'to do':>6} {'M updates':>10} {'core-hours':>13} {'GPU-hours':>13}"
    groups: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        groups.setdefault(family(line), []).append(line)
    rows = [(name, members, [m for m in members if m["run_id"] not in done]) for name, members in groups.items()]
    for name, members, left in [*rows, ("all", list(lines), todo)]:
        cells = [_cell(Estimate(left, speeds)) for speeds in (cpu, gpu)]
        million = sum(map(updates, left)) / 1e6
        yield f"{name:<32} {len(members):>6} {len(left):>6} {million:>10,.2f} {cells[0]:>13} {cells[1]:>13}"
    yield ""
    yield from _legend(todo, cpu, gpu)


def _legend(todo: Sequence[dict[str, Any]], cpu: Speeds, gpu: Speeds) -> Iterator[str]:
    """What the numbers rest on."""
    if cpu.hardware:
        yield f"core-hours: one core of {cpu.hardware}, torch {cpu.about['torch']}; config/speeds.json, renewed by nap-bench speeds"
    yield f"GPU-hours:  {f'{gpu.hardware}, torch ' + gpu.about['torch'] if gpu.hardware else f'{NOT_MEASURED} on any GPU'}"
    short = sorted({family(line) for line in todo if cpu.kinds.get(kind(line), {}).get("how", "").startswith("first")})
    if short:
        yield from _wrapped(f"of short trials, not of finished runs: {', '.join(short)}")
    for name, speeds in (("a CPU", cpu), ("a GPU", gpu)):
        lacking = sorted({family(line) for line in todo if speeds.seconds(line) is None})
        if lacking and speeds.hardware:
            yield from _wrapped(f"{NOT_MEASURED} on {name}, and in no sum (+): {', '.join(lacking)}")
    yield "not counted: data, scores, figures, report and MLflow"


def _cell(made: Estimate) -> str:
    if not made.lines:
        return "-"
    if not made.measured:
        return NOT_MEASURED
    hours = made.seconds / 3600
    return f"{hours:,.{2 if hours < 100 else 0}f}" + " +" * bool(made.unmeasured)


def _wrapped(text: str) -> list[str]:
    import textwrap

    return textwrap.wrap(text, 99, subsequent_indent="  ", break_long_words=False)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _on(number: int, unit: str) -> str:
    return f"on {_count(number, unit)}"


def _hours(seconds: float, unit: str) -> str:
    if seconds < 2 * 3600:
        return f"{seconds / 60:,.0f} {unit}-minutes"
    return f"{seconds / 3600:,.0f} {unit}-hours"


def duration(seconds: float) -> str:
    """12 s, 3 min 20 s, 5 h 10 min, 12 days, 3 years."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 2 * 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole / 86400:,.0f} days" if whole < 730 * 86400 else f"{whole / 86400 / 365:,.0f} years"


def size(num_bytes: float) -> str:
    """35 kB, 120 MB, 7.1 GB."""
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if num_bytes >= unit:
            return f"{num_bytes / unit:,.1f} {name}" if num_bytes < 10 * unit else f"{num_bytes / unit:,.0f} {name}"
    return f"{num_bytes / 1e3:,.0f} kB"


def processor() -> str:
    """This machine's, as results name it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except FileNotFoundError:
        return platform.processor()
    found = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(found, platform.processor())


# Before the first job of an invocation of the workflow


def begin(
    workflow: Any, config: Mapping[str, Any], lines: Sequence[dict[str, Any]], asked: Path
) -> list[dict[str, Any]]:
    """Print what the invocation will take, and write down which runs it wants, done or not, for progress to count.

    workflow: Snakemake's.  asked: the file to write.  Returns the runs that are to be done.
    """
    results = f"{config['results_dir']}/runs/"
    wanted = {str(file) for job in workflow.dag.jobs for file in job.output if str(file).startswith(results)}
    mine = [line for line in lines if f"{results}{line['run_id']}.json" in wanted]
    temporary = asked.with_name(f"{asked.name}.{os.getpid()}")
    temporary.write_text(json.dumps([line["run_id"] for line in mine]))
    os.replace(temporary, asked)
    todo = [line for line in mine if not os.path.exists(f"{results}{line['run_id']}.json")]
    at_once = workflow.resource_settings.cores or (workflow.resource_settings.nodes or 0) * config["pack_slots"]
    device = config["device"]
    how = dict(scale=config["scale"], device=device, num_workers=at_once if device == "cpu" else 0)
    print(*told(todo, len(mine) - len(todo), **how), sep="\n", file=sys.stderr)
    return todo
