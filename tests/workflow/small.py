"""A plan of a few tiny runs of the real exhibits, and the workflow run on it in a folder of its own."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from nap_bench import plan
from nap_bench.experiments import arms, fig1_dead_units

ROOT = Path(__file__).parents[2]
SNAKEMAKE = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile")]


def lines(num_tasks: int = 3, steps_per_task: int = 40) -> list[dict[str, Any]]:
    """Plan lines: four arms and two networks of Fig. 1, at sizes of seconds."""
    task = dict(num_examples=48, num_tasks=num_tasks, steps_per_task=steps_per_task)
    entries = [
        ("arms", arms.entry("laptop", arm, {}, seeds=(0, 1), task=task))
        for arm in ("baseline", "off", "norm_only", "nap")
    ]
    for arm in ("none", "layer_norm"):
        entries.append(
            ("fig1_dead_units", fig1_dead_units.entry("laptop", arm, "adam", 1e-3, seeds=(0, 1), num_tasks=1))
        )
    made = []
    for exhibit, entry in entries:
        params = entry.run.benchmark.as_dict()["params"]
        made.append(
            {
                "run_id": entry.run.run_id,
                "methods": [part.name for part in entry.run.methods],
                "resources": "small",
                "work": params["num_tasks"] * params["steps_per_task"] * 2,
                "uses": {"laptop": {exhibit: [[entry.arm, entry.setting]]}},
                "run": plan.compact(entry.run),
            }
        )
    return made


def write_plan(folder: Path, planned: list[dict[str, Any]]) -> Path:
    path = folder / "plan.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in [{"num_runs": len(planned)}, *planned]))
    return path


def command(folder: Path, *arguments: str, cores: int = 2, **config: Any) -> tuple[list[str], dict[str, Any]]:
    """Arguments of subprocess for the workflow in `folder`, which must hold plan.jsonl."""
    settings = {
        "plan": "plan.jsonl",
        "pack_size": 2,
        "tracking_uri": f"sqlite:///{folder}/mlflow.db",
        **config,
    }
    words = [f"{key}={json.dumps(value) if not isinstance(value, str) else value}" for key, value in settings.items()]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    configured = ["--configfile", str(ROOT / "config" / "config.yaml"), "--config", *words]
    profile = ["--workflow-profile", str(ROOT / "profiles" / "default")]
    return (
        [*SNAKEMAKE, *profile, "--directory", str(folder), "--cores", str(cores), *configured, "--", *arguments],
        dict(env=environment, cwd=folder),
    )


def snakemake(folder: Path, *arguments: str, **config: Any) -> subprocess.CompletedProcess[str]:
    words, settings = command(folder, *arguments, **config)
    return subprocess.run(
        words, **settings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=280
    )


def fingerprint(results: Path) -> dict[str, str]:
    """File -> SHA-256 of everything under results/, timings and the moment's environment aside."""
    found = {}
    for path in sorted(path for path in results.rglob("*") if path.is_file()):
        content = path.read_bytes()
        if path.parent.name == "runs":
            result = json.loads(content)
            result["environment"] = result["environment"]["resolved_model"]
            content = json.dumps({k: v for k, v in result.items() if k != "cost"}).encode()
        found[str(path.relative_to(results))] = hashlib.sha256(content).hexdigest()
    return found
