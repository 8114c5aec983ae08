"""config/plan.jsonl: one line per run, the suite's sample sheet. Standard library only at the top.

The workflow loads this file by its path and calls `load`, `check_config`, `select` and `packs`; it imports neither torch nor the
package. `nap-bench plan` writes the plan from nap_bench/experiments/.

The first line holds a digest of the sources that the plan follows from. A line holds what differs from the components'
defaults, where the run is used (scale -> exhibit -> [arm, setting] pairs) and what the workflow needs to place it. A user's own
plan has no digest; under `added` its lines name arms that the exhibit does not know, and the arms they are made of.
"""

from __future__ import annotations

import dataclasses
import difflib
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[1]
SCALES = ("laptop", "workstation", "paper")
TUNING = "tuning"
"""What stands for a scale where a run is used by `nap-bench tune`, which runs it; the workflow does not."""
OPTIONAL = {"resources": "small", "work": 1}
"""What a line of a user's own plan may leave out."""
SOURCES = (
    "nap_bench/spec.py",
    "nap_bench/plan.py",
    "nap_bench/optimizers.py",
    "nap_bench/schedules.py",
    "nap_bench/benchmarks/*.py",
    "nap_bench/experiments/*.py",
    "nap_bench/methods/*.py",
    "nap_bench/models/*.py",
    "nap_bench/tune.py",
    "config/tuned.json",
)


def digest(root: Path | str) -> str:
    """SHA-256 over names and contents of the sources below the repository's root."""
    found = sorted(path for pattern in SOURCES for path in Path(root).glob(pattern))
    hasher = hashlib.sha256()
    for path in found:
        hasher.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return hasher.hexdigest()


def load(path: Path | str, root: Path | str = ROOT) -> list[dict[str, Any]]:
    """The plan's lines. Refuses a plan older than its sources; a user's own plan file has no digest and is taken as it is."""
    path = Path(path)
    if not path.exists():
        raise ValueError(f"No plan at {path}. Make it with: nap-bench plan")
    if path.is_dir():
        raise ValueError(f"The plan {path} is a folder; wanted a file of JSON lines. Make one with: nap-bench plan")
    parsed, known = [], set()
    for number, text in enumerate(path.read_text().splitlines(), 1):
        try:
            parsed.append(json.loads(text))
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path}, line {number} is not JSON: {error}. Renew the plan with: nap-bench plan"
            ) from None
        if not isinstance(parsed[-1], dict):
            raise ValueError(f"{path}, line {number} is no JSON object. Renew the plan with: nap-bench plan")
        missing = {"run_id", "uses", "run"} - set(parsed[-1]) if number > 1 else ()
        if missing:
            raise ValueError(
                f"{path}, line {number} lacks {', '.join(sorted(missing))}. Renew the plan with: nap-bench plan"
            )
        run_id = parsed[-1].get("run_id")
        if number > 1 and run_id in known:
            raise ValueError(f"{path}, line {number} names {run_id} again. Renew the plan with: nap-bench plan")
        known.add(run_id)
    if not parsed:
        raise ValueError(f"{path} is empty; wanted a header and a line per run. Renew it with: nap-bench plan")
    header, *lines = parsed
    lines = [
        {"methods": [part["name"] for part in line["run"].get("methods", [])], **OPTIONAL, **line} for line in lines
    ]
    if header.get("digest") not in (None, digest(root)):
        raise ValueError(f"{path} is older than the sources it was made from. Renew it with: nap-bench plan")
    return lines


def hold(what: str, folder: Path | str) -> IO[str]:
    """Hold a folder for one invocation of the workflow, or refuse a second one. The lock dies with the process.

    Returns the open lock file: keep it open as long as the folder is held.
    """
    path = Path(folder) / ".invocation"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        raise ValueError(
            f"Another invocation (process {file.read().strip() or 'unknown'}) works on the {what} {folder}/. Wait for it, or "
            f"stop it with Ctrl-C; nothing was started here."
        ) from None
    except OSError as error:
        raise ValueError(
            f"Cannot write to the {what} {folder}/: {error.strerror}. Make it writable, or name another folder ({what}_dir in "
            f"config/config.yaml); nothing was started."
        ) from None
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


def check_config(config: dict[str, Any], schema: dict[str, Any]) -> None:
    """Refuse unknown keys, naming the nearest known one, and values of the wrong kind; all before any work."""
    known = schema["properties"]
    kinds = {"string": str, "integer": int, "number": (int, float), "array": list, "boolean": bool}
    for key, value in config.items():
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"config: unknown key {key!r}.{hint} Known: {', '.join(sorted(known))}.")
        rule = known[key]
        if "type" in rule and not isinstance(value, kinds[rule["type"]]):
            raise ValueError(f"config: {key} wants a value of type {rule['type']}, found {value!r}.")
        if "enum" in rule and value not in rule["enum"]:
            raise ValueError(_unknown(value, rule["enum"], f"config: {key}"))
        if "pattern" in rule and not re.fullmatch(rule["pattern"], value):
            raise ValueError(f"config: {key} wants {rule['pattern']}, found {value!r}.")
        if "minimum" in rule and value < rule["minimum"]:
            raise ValueError(f"config: {key} wants at least {rule['minimum']}, found {value!r}.")


def _unknown(value: str, known: Iterable[str], where: str) -> str:
    known = sorted(known)
    close = difflib.get_close_matches(str(value), known, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"{where}: unknown {value!r}.{hint} Known: {', '.join(known)}."


def select(lines: list[dict], scale: str, experiments: list[str] = (), methods: list[str] = ()) -> list[dict]:
    """The runs of a scale, narrowed to some exhibits, and to stacks made of some methods ("baseline": no method)."""
    of_scale = [line for line in lines if scale in line["uses"]]
    exhibits = {exhibit for line in of_scale for exhibit in line["uses"][scale]}
    stacked = {method for line in of_scale for method in line["methods"] or ["baseline"]}
    for name in experiments:
        if name not in exhibits:
            raise ValueError(_unknown(name, exhibits, f"config: experiments at scale {scale}"))
    for name in methods:
        if name not in stacked:
            raise ValueError(_unknown(name, stacked, f"config: methods at scale {scale}"))
    return [
        line
        for line in of_scale
        if (not experiments or set(line["uses"][scale]) & set(experiments))
        and (not methods or set(line["methods"] or ["baseline"]) <= set(methods))
    ]


def exhibits(lines: list[dict], scale: str, experiments: list[str] = ()) -> dict[str, list[str]]:
    """Exhibit -> ids of its runs at a scale, in the plan's order."""
    found: dict[str, list[str]] = {}
    for line in lines:
        for exhibit in line["uses"].get(scale, {}):
            if not experiments or exhibit in experiments:
                found.setdefault(exhibit, []).append(line["run_id"])
    return found


def added(lines: list[dict]) -> dict[str, str]:
    """The arms that a user's own plan adds, each with the arm it is made of."""
    return {name: arm for line in lines for name, arm in line.get("added", {}).items()}


def packs(lines: list[dict], size: int, selected: list[dict] | None = None) -> dict[str, list[str]]:
    """Name -> ids of the runs that share one process. Only runs of the same exhibits and resource class are packed.

    Packs are cut from all lines of a scale, so they are the same whatever is done already; then only `selected` runs are kept.
    `work` (seed-updates) is levelled: a pack takes at most `size` times the mean work of its kind.
    """
    kept = {line["run_id"] for line in (lines if selected is None else selected)}
    kinds: dict[str, list[dict]] = {}
    for line in lines:
        first_scale = sorted(line["uses"])[0]
        kinds.setdefault(f"{line['resources']}.{'+'.join(sorted(line['uses'][first_scale]))}", []).append(line)
    made: dict[str, list[str]] = {}
    for kind, members in kinds.items():
        limit = size * sum(line["work"] for line in members) / len(members)
        pack, work = [], 0
        for line in members:
            if pack and (work + line["work"] > limit or len(pack) == size):
                made[f"{kind}.{len(made)}"] = pack
                pack, work = [], 0
            pack.append(line["run_id"])
            work += line["work"]
        made[f"{kind}.{len(made)}"] = pack
    narrowed = {name: [run_id for run_id in pack if run_id in kept] for name, pack in made.items()}
    return {name: pack for name, pack in narrowed.items() if pack}


MEASURED_FPS = 49
"""Frames per second of one run with DQN Zoo's network on one core of an AMD EPYC (torch 2.13.0+cpu, bench/rainbow.py, n = 7)."""
AIMED_FPS, AIMED_IPS = 20_000, 1_000
"""The aims for one run on a GPU, in frames of Atari and images of ImageNet per second. NOT MEASURED."""
AIMED_LM_TFLOPS = 396
"""The aim for a language model on an H200: 40 % of the 989 TFLOP/s that it is sold with in bfloat16."""
WORTH_SAYING = 10_000_000
"""Frames; less needs no warning."""


def demand(lines: list[dict]) -> str | None:
    """What runs on Atari, ImageNet and C4 will take, for people; None where it is not worth saying."""
    said = [text for text in (_atari(lines), _imagenet(lines), _language(lines)) if text]
    return "\n".join(said) or None


def _imagenet(lines: list[dict]) -> str | None:
    wanted = [line["demand"]["images"] for line in lines if "images" in line.get("demand", {})]
    if not wanted:
        return None
    return (
        f"ImageNet: {len(wanted)} runs, {sum(wanted) / 1e9:,.2f} G images to train on, read from data_dir (about 150 GB). Speed on "
        f"a GPU: NOT MEASURED; at {AIMED_IPS:,} images/s, the aim, {sum(wanted) / 3600 / AIMED_IPS:,.0f} GPU-hours."
    )


def transformer_size(run: dict[str, Any]) -> tuple[int, int]:
    """(parameters of a seed, FLOPs of a token's forward and backward) of the language model of a plan's line, without methods.

    FLOPs as Chowdhery et al. 2022 (PaLM, App. B) count them: 6 for every weight that a token is multiplied by, and 12 d_model T per
    block for attention's products with T tokens, causal or not.
    """
    size, task = run["model"]["size"], run["benchmark"]["params"]
    d, widths, length, vocabulary = size["d_model"], size["widths"], task["length"], task["vocabulary"]
    weights = sum(4 * d * d + 2 * d * width for width in widths) + d * vocabulary
    norms = 2 * d * (2 * len(widths) + 1) if size["entrance"] == "layer" else 0  # scale and offset
    biases = sum(d + width + d for width in widths) + vocabulary
    return weights + d * (vocabulary + length) + norms + biases, 6 * weights + 12 * d * length * len(widths)


def _language(lines: list[dict]) -> str | None:
    wanted = [line for line in lines if "tokens" in line.get("demand", {})]
    if not wanted:
        return None
    tokens = sum(line["demand"]["tokens"] for line in wanted)
    flops = sum(line["demand"]["tokens"] * transformer_size(line["run"])[1] for line in wanted)
    largest = max(transformer_size(line["run"])[0] * len(line["run"]["seeds"]) for line in wanted)
    return (
        f"C4: {len(wanted)} runs, {tokens / 1e9:,.1f} G tokens to train on, networks of up to {largest / 1e6:,.0f} M parameters, "
        f"{flops / 1e18:,.0f} EFLOP. A run under way keeps a checkpoint of up to {12 * largest / 1e9:.1f} GB. "
        f"Speed on a GPU: NOT MEASURED; at {AIMED_LM_TFLOPS} TFLOP/s, the aim, {flops / 1e12 / 3600 / AIMED_LM_TFLOPS:,.0f} "
        f"GPU-hours."
    )


def _atari(lines: list[dict]) -> str | None:
    wanted = [line["demand"] for line in lines if "frames" in line.get("demand", {})]
    frames, largest = sum(d["frames"] for d in wanted), max((d["disk_bytes"] for d in wanted), default=0)
    if frames < WORTH_SAYING:
        return None
    hours = frames / 3600
    return (
        f"Atari: {len(wanted)} runs, {frames / 1e9:,.1f} G frames, evaluation included. A run under way keeps a checkpoint of up "
        f"to {largest / 1e9:.1f} GB, replay included, and as much in memory. Measured on a CPU core: {MEASURED_FPS} frames/s, so "
        f"{hours / MEASURED_FPS:,.0f} core-hours. On a GPU: NOT MEASURED; at {AIMED_FPS:,} frames/s, the aim, "
        f"{hours / AIMED_FPS:,.0f} GPU-hours."
    )


def _changed(part: dict[str, Any], registry: dict[str, type]) -> dict[str, Any]:
    defaults = {f.name: f.default for f in dataclasses.fields(registry[part["name"]])}
    params = {k: v for k, v in part["params"].items() if v != defaults[k]}
    return {"name": part["name"], "version": part["version"], **({"params": params} if params else {})}


def compact(run) -> dict[str, Any]:
    """A run as the fields that differ from the components' defaults; `expand` is its inverse."""
    from nap_bench.spec import ModelSpec

    data, registries = run.as_dict(), _registries()
    defaults = {f.name: f.default for f in dataclasses.fields(ModelSpec)}
    data["model"] = {k: v for k, v in data["model"].items() if v != defaults[k]}
    for name in ("benchmark", "optimizer", "schedule"):
        data[name] = _changed(data[name], registries[name])
    data["methods"] = [_changed(part, registries["methods"]) for part in data["methods"]]
    for name, default in (("precision", "fp32"), ("methods", [])):
        if data[name] == default:
            del data[name]
    return data


def expand(data: dict[str, Any]):
    """The Run of a plan's line. Checks names, parameters and versions against the components of this version."""
    from nap_bench.spec import ModelSpec, Part, Run

    registries = _registries()

    def whole(part: dict[str, Any], what: str) -> Part:
        described = Part.from_dict({"params": {}, **part})
        return Part.of(described.build(registries[what], what))

    return Run(
        benchmark=whole(data["benchmark"], "benchmark"),
        model=ModelSpec.from_dict(data["model"]),
        methods=tuple(whole(part, "methods") for part in data.get("methods", [])),
        optimizer=whole(data["optimizer"], "optimizer"),
        schedule=whole(data["schedule"], "schedule"),
        seeds=tuple(data["seeds"]),
        precision=data.get("precision", "fp32"),
        protocol=data["protocol"],
    )


def _registries() -> dict[str, dict[str, type]]:
    from nap_bench.benchmarks import BENCHMARKS
    from nap_bench.methods import METHODS
    from nap_bench.optimizers import OPTIMIZERS
    from nap_bench.schedules import SCHEDULES

    return {"benchmark": BENCHMARKS, "methods": METHODS, "optimizer": OPTIMIZERS, "schedule": SCHEDULES}


def _line(run, where: str) -> dict[str, Any]:
    """A run as a line without uses. Refuses one that cannot exist."""
    from nap_bench.benchmarks import BENCHMARKS
    from nap_bench.methods import stack_of

    if reason := stack_of(run.methods).why_not(run):
        raise ValueError(f"{where} plans a run that cannot exist ({run.run_id}): {reason}")
    benchmark = run.benchmark.build(BENCHMARKS, "benchmark")
    return {
        "run_id": run.run_id,
        "methods": [part.name for part in run.methods],
        "resources": benchmark.resources,
        "work": benchmark.num_steps * len(run.seeds),
        "uses": {},
        "run": compact(run),
        **({"data": benchmark.download} if benchmark.download else {}),
        **({"demand": demand} if (demand := benchmark.demand(len(run.seeds))) else {}),
    }


def _text(header: dict[str, Any], lines: dict[str, dict[str, Any]]) -> str:
    header = {**header, "num_runs": len(lines)}
    return "".join(json.dumps(line, sort_keys=True) + "\n" for line in [header, *lines.values()])


def make(root: Path | str = ROOT) -> str:
    """The text of config/plan.jsonl, from every experiment at every scale, and the sweep. Refuses runs that cannot exist."""
    from nap_bench import tune
    from nap_bench.experiments import EXPERIMENTS

    lines: dict[str, dict[str, Any]] = {}
    for exhibit, module in EXPERIMENTS.items():
        for scale in SCALES:
            for entry in module.runs(scale):
                line = lines.setdefault(entry.run.run_id, _line(entry.run, f"{exhibit} at scale {scale}"))
                line["uses"].setdefault(scale, {}).setdefault(exhibit, []).append([entry.arm, entry.setting])
    for exhibit, entry in tune.planned():
        line = lines.setdefault(entry.run.run_id, _line(entry.run, f"the sweep of {exhibit}"))
        line["uses"].setdefault(TUNING, {}).setdefault(exhibit, []).append([entry.arm, entry.setting])
    return _text({"digest": digest(root)}, lines)


def extend(lines: list[dict], scale: str, exhibit: str, stacks: Iterable[str], arms: Iterable[str]) -> str:
    """The text of a user's own plan: an exhibit's runs at a scale as planned, and those of its `arms` with each stack added.

    An added arm is called by the stack, and `stack+arm` where the arm has methods already. It differs from the arm it is made of
    in nothing but the stack: the same seeds, learning rate and settings.
    """
    from nap_bench.methods import parse_stack

    where = f"{exhibit} at scale {scale}"
    if exhibit not in (planned := exhibits(lines, scale)):
        raise ValueError(_unknown(exhibit, planned, f"exhibits at scale {scale}"))
    ours = {
        line["run_id"]: {**line, "uses": {scale: {exhibit: list(line["uses"][scale][exhibit])}}}
        for line in lines
        if exhibit in line["uses"].get(scale, {})
    }
    places = [(*place, line["run"]) for line in ours.values() for place in line["uses"][scale][exhibit]]
    known = {arm for arm, *_ in places}
    made = dict(ours)
    for stack in stacks:
        parts = parse_stack(stack)
        for wanted in arms:
            if wanted not in known:
                raise ValueError(_unknown(wanted, known, f"arms of {where}"))
            for arm, setting, described in places:
                if arm != wanted:
                    continue
                run = expand(described)
                name = f"{stack}+{arm}" if run.methods else stack
                if name in known:
                    raise ValueError(f"{where} has an arm {name!r} already: it needs no adding.")
                run = dataclasses.replace(run, methods=(*run.methods, *parts))
                line = made.setdefault(run.run_id, _line(run, f"{name} in {where}"))
                line["uses"].setdefault(scale, {}).setdefault(exhibit, []).append([name, setting])
                line.setdefault("added", {})[name] = arm
    return _text({}, made)
