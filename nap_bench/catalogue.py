"""What there is: methods, benchmarks, exhibits, scales, and any one of them or a run from close up. Writes nothing."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from nap_bench import plan, status
from nap_bench.spec import nearest
from nap_bench.store import read_result, result_path

ROOT = Path(__file__).parents[1]
MARKERS = ("<!-- methods: written by nap-bench list methods --markdown README.md -->", "<!-- end of methods -->")
"""Between which a page has the table of methods."""
KINDS = ("methods", "benchmarks", "exhibits", "scales")


def listed(kind: str, plan_path: Path) -> Iterator[str]:
    """The lines of `nap-bench list KIND`."""
    if kind not in KINDS:
        raise ValueError(nearest(kind, KINDS, "kind"))
    if kind == "scales":
        yield from _scales(plan.load(plan_path))
    elif kind == "exhibits":
        yield from _exhibits(plan.load(plan_path))
    else:
        for component in _registry(kind).values():
            yield component.name
            yield from _wrapped(inspect.getdoc(component).partition("\n")[0])
            if parameters := ", ".join(text for text, _ in _parameters(component)):
                yield from _wrapped(parameters)


def methods_table() -> str:
    """The suite's own methods in Markdown, by the first lines of their files: what one does, and in parentheses its source."""
    rows = ["| method | what it does | source |", "|---|---|---|"]
    for name, method in sorted(_registry("methods").items()):
        if method.__module__.startswith("nap_bench."):
            line = inspect.getdoc(importlib.import_module(method.__module__)).partition("\n")[0].removesuffix(".")
            what, sources = re.sub(r" ?\([^()]*\)", "", line), re.findall(r"\(([^()]*)\)", line)
            rows.append(f"| [{name}](docs/methods/{name}.md) | {what} | {'; '.join(sources)} |")
    return "\n".join(rows) + "\n"


def with_methods(text: str) -> str:
    """A page with the table of methods between its markers. Raises where they are not there, once each and in order."""
    before, found, rest = text.partition(MARKERS[0])
    _, ends, after = rest.partition(MARKERS[1])
    if not (found and ends) or any(text.count(marker) > 1 for marker in MARKERS):
        raise ValueError(f"The table of methods wants its place, between {MARKERS[0]} and {MARKERS[1]}, once each.")
    return f"{before}{MARKERS[0]}\n\n{methods_table()}\n{MARKERS[1]}{after}"


def shown(name: str, *, plan_path: Path, store: Path, results: Path, scale: str | None = None) -> Iterator[str]:
    """The lines of `nap-bench show NAME`: a method, a benchmark, an exhibit, a run of the plan or its result's path."""
    from nap_bench.experiments import EXPERIMENTS

    if name in EXPERIMENTS:
        return _exhibit(name, EXPERIMENTS[name], plan.load(plan_path))
    registries = {kind: _registry(kind) for kind in ("methods", "benchmarks")}
    for kind, registry in registries.items():
        if name in registry:
            return _component(kind, registry[name])
    lines = {line["run_id"]: line for line in plan.load(plan_path)}
    name = Path(name).stem if name.endswith(".json") else name
    if name in lines:
        return _run(lines[name], plan_path=plan_path, store=store, results=results, scale=scale)
    known = [*EXPERIMENTS, *(key for registry in registries.values() for key in registry)]
    if "." not in name:
        raise ValueError(nearest(name, known, "name"))
    raise ValueError(f"{nearest(name, lines, 'run').split(' Known:')[0]} {len(lines)} runs are in {plan_path}.")


def _registry(kind: str) -> dict[str, type]:
    module = importlib.import_module(f"nap_bench.{kind}")
    return getattr(module, kind.upper())


def _wrapped(text: str, indent: int = 4, hanging: int = 0) -> list[str]:
    """Lines of at most 79 columns; names are left whole."""
    first, other = " " * indent, " " * (indent + hanging)
    how = dict(initial_indent=first, subsequent_indent=other, break_long_words=False, break_on_hyphens=False)
    return textwrap.wrap(text, 79, **how) if text else [""]


def _parameters(component: type) -> Iterator[tuple[str, str]]:
    """("head=False", "bool"); a parameter without default has to be given."""
    for field in dataclasses.fields(component):
        required = field.default is dataclasses.MISSING
        yield field.name if required else f"{field.name}={field.default!r}", str(field.type)


def _component(kind: str, component: type) -> Iterator[str]:
    yield f"{kind.removesuffix('s')} {component.name}, version {component.version}"
    yield ""
    for line in inspect.getdoc(component).splitlines():
        yield from _wrapped(line, len(line) - len(line.lstrip()), hanging=4)
    parameters = list(_parameters(component))
    if parameters:
        yield ""
        yield "parameters (those without default have to be given):"
        width = min(max(len(text) for text, _ in parameters), 48)  # longer ones keep their own
        for text, kind_of in parameters:
            line = f"    {text:<{width}}  {kind_of}"
            yield from [line] if len(line) < 80 else _wrapped(f"{text}  {kind_of}", 4, hanging=4)
    yield ""
    page = ROOT / "docs" / kind / f"{component.name}.md"
    if page.exists():
        yield f"page: {page.relative_to(ROOT)}"
    yield f"code: {_code(component.__module__)}"


def _code(module: str) -> str:
    return module.replace(".", "/") + ".py"


def _counts(lines: list[dict[str, Any]], exhibit: str) -> str:
    counts = {
        scale: len(plan.exhibits(lines, scale, [exhibit]).get(exhibit, [])) for scale in (*plan.SCALES, plan.TUNING)
    }
    return "runs: " + ", ".join(f"{scale} {n}" for scale, n in counts.items() if n or scale in plan.SCALES)


def _exhibits(lines: list[dict[str, Any]]) -> Iterator[str]:
    from nap_bench.experiments import EXPERIMENTS

    for name, module in EXPERIMENTS.items():
        yield name
        yield from _wrapped(module.TITLE)
        yield from _wrapped(_counts(lines, name))
        yield from _wrapped("claims: " + (", ".join(claim.id for claim in module.CLAIMS) or "none"))


def _exhibit(name: str, module: ModuleType, lines: list[dict[str, Any]]) -> Iterator[str]:
    yield f"exhibit {name}: {module.TITLE}"
    yield ""
    yield from _wrapped(module.PAPER, 0)
    for deviation in module.DEVIATIONS:
        yield ""
        yield from _wrapped(f"Deviation: {deviation}", 0)
    yield ""
    yield "claims:" if module.CLAIMS else "claims: none"
    for claim in module.CLAIMS:
        yield f"    {claim.id}"
        yield from _wrapped(claim.sentence, 8)
        yield from _wrapped(f"({claim.source}; {claim.kind}, margin {claim.margin:g} {claim.unit})", 8)
    yield ""
    yield _counts(lines, name)
    for scale in plan.SCALES:
        places: dict[str, list[str]] = {}
        for line in lines:
            for arm, setting in line["uses"].get(scale, {}).get(name, []):
                places.setdefault(arm, []).append(setting)
        yield from _wrapped(f"{scale}: " + ", ".join(f"{arm} x{len(found)}" for arm, found in places.items()))
        if demand := plan.demand([line for line in lines if name in line["uses"].get(scale, {})]):
            yield from _wrapped(demand)
    yield ""
    yield f"code: {_code(module.__name__)}"


def _scales(lines: list[dict[str, Any]]) -> Iterator[str]:
    for scale in plan.SCALES:
        chosen = [line for line in lines if scale in line["uses"]]
        data = sorted({line["data"] for line in chosen if "data" in line})
        seeds, work = sum(len(line["run"]["seeds"]) for line in chosen), sum(line["work"] for line in chosen)
        yield scale
        yield from _wrapped(f"{len(chosen)} runs, {seeds} trained seeds, {work / 1e6:.1f} million seed-updates")
        yield from _wrapped("data: " + (", ".join(data) if data else "comes with the dependencies"))
        counts = {name: len(runs) for name, runs in plan.exhibits(chosen, scale).items()}
        yield from _wrapped("exhibits: " + ", ".join(f"{name} {count}" for name, count in counts.items()))


def _run(line: dict[str, Any], *, plan_path: Path, store: Path, results: Path, scale: str | None) -> Iterator[str]:
    from nap_bench.methods import stack_of

    run = plan.expand(line["run"])
    first = next((s for s in plan.SCALES if s in line["uses"]), plan.TUNING) if scale is None else scale
    if first not in line["uses"]:
        raise ValueError(f"{run.run_id} is not a run of {first} scale, but of: {', '.join(line['uses'])}.")
    yield f"run {run.run_id}"
    yield ""
    for used, exhibits in line["uses"].items():
        for exhibit, places in exhibits.items():
            for place in places:
                yield from _wrapped(f"{used}: {exhibit}, {' '.join(filter(None, place))}")
    described = run.as_dict()
    described["model"] = stack_of(run.methods).transform_model(run.model).as_dict()
    parts = [(name, described.pop(name)) for name in ("benchmark", "optimizer", "schedule")]
    parts += [(f"method {part['name']}", part) for part in described.pop("methods")]
    for title, part in parts:
        yield ""
        yield f"{title if title.startswith('method ') else f'{title} ' + part['name']}, version {part['version']}"
        yield from _values(part["params"])
    yield ""
    yield "model, as its methods want it" if run.methods else "model"
    yield from _values(described.pop("model"))
    yield ""
    yield from _wrapped(", ".join(f"{key} {_text(value)}" for key, value in described.items()), 0)
    yield ""
    yield from _wrapped(state(line, store, results), 0)
    yield "to run it: " + status.command(line, first, plan_path=plan_path, store=store, results=results)
    if "data" in line:
        yield f"it wants:  nap-bench data {line['data']}"


def _values(values: dict[str, Any]) -> Iterator[str]:
    width = max(map(len, values), default=0)
    for key, value in values.items():
        yield f"    {key:<{width}}  {_text(value)}"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def state(line: dict[str, Any], store: Path, results: Path) -> str:
    """done, running, failed or missing, and what is known about it; from the files of a run alone."""
    path = result_path(results, line["run_id"])
    if not path.exists():
        return f"state: {status.look(line, store, results)}"
    result = read_result(path)
    lost = [seed["seed"] for seed in result["status"] if seed["status"] == "diverged"]
    note = f"; DIVERGED at seeds {', '.join(map(str, lost))}" if lost else ""
    return f"state: done, {result['cost']['wall_seconds']:.1f} s{note}: {path}"
