"""Runs of seconds and the workflow that sends them to SLURM, a fake or a real one."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from nap_bench import plan
from nap_bench.experiments import arms

ROOT = Path(__file__).parents[2]
NAP_BENCH = "import sys; from nap_bench.cli import main; sys.exit(main())"


def lines(num_runs: int, num_tasks: int = 4, steps_per_task: int = 120) -> list[dict[str, Any]]:
    """Lines of a plan: one baseline run a seed, which a pack of one calls run_small.arms.<seed>."""
    task = dict(num_examples=48, num_tasks=num_tasks, steps_per_task=steps_per_task)
    made = []
    for seed in range(num_runs):
        entry = arms.entry("laptop", "baseline", {}, seeds=(seed,), task=task)
        made.append(
            {
                "run_id": entry.run.run_id,
                "methods": [],
                "resources": "small",
                "work": num_tasks * steps_per_task,
                "uses": {"laptop": {"arms": [[entry.arm, entry.setting]]}},
                "run": plan.compact(entry.run),
            }
        )
    return made


def write_plan(folder: Path, planned: list[dict[str, Any]]) -> list[str]:
    """Make the folder and its plan.jsonl; returns the runs' ids."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = [{"num_runs": len(planned)}, *planned]
    (folder / "plan.jsonl").write_text("".join(json.dumps(line) + "\n" for line in whole))
    return [line["run_id"] for line in planned]


def result(run_id: str) -> str:
    return f"results/runs/{run_id}.json"


def run_here(folder: Path, run_ids: list[str]) -> subprocess.Popen[str]:
    """The same runs without Snakemake and SLURM."""
    words = [sys.executable, "-c", NAP_BENCH, "run", "--pack", "--plan", "plan.jsonl", *run_ids]
    return subprocess.Popen(words, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def surroundings(first_on_path: Path | None, folder: Path) -> dict[str, str]:
    """An environment in which jobs find this Python's nap-bench, from this repository; which GPUs it sees goes to a file."""
    bin_folder = folder / "bin"
    bin_folder.mkdir(exist_ok=True)
    program = bin_folder / "nap-bench"
    visible = f'echo "\\"${{CUDA_VISIBLE_DEVICES-}}\\"" >> "{folder}/visible"'
    program.write_text(f'#!/bin/sh\n{visible}\nexec {sys.executable} -c "{NAP_BENCH}" "$@"\n')
    program.chmod(0o755)
    path = [str(part) for part in (first_on_path, bin_folder, Path(sys.executable).parent) if part]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    kept |= {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    return {**kept, "USER": kept.get("USER", "root"), "PATH": ":".join([*path, kept["PATH"]]), "PYTHONPATH": str(ROOT)}


def command(folder: Path, *options: str, targets: list[str], profile: str = "slurm", **config: Any) -> list[str]:
    """Snakemake's, in a folder with plan.jsonl."""
    settings = {"plan": "plan.jsonl", "pack_size": 1, "tracking_uri": f"sqlite:///{folder}/mlflow.db", **config}
    configured = [f"{name}={value}" for name, value in settings.items()]
    return [
        *(
            sys.executable,
            str(Path(__file__).with_name("impatient.py")),
            "--snakefile",
            str(ROOT / "Snakefile"),
            "--directory",
            str(folder),
        ),
        *("--workflow-profile", str(ROOT / "profiles" / profile), "--latency-wait", "2"),
        *("--configfile", str(ROOT / "config" / "config.yaml"), *options, "--config", *configured, "--", *targets),
    ]


def fingerprint(folder: Path, run_id: str) -> dict[str, str]:
    """SHA-256 of what a run left, timings and the moment's environment aside."""
    made = json.loads((folder / result(run_id)).read_text())
    kept = {name: value for name, value in made.items() if name not in ("cost", "environment")}
    found = {"result": json.dumps(kept).encode(), "metrics": (folder / "store" / run_id / "metrics.csv").read_bytes()}
    return {name: hashlib.sha256(content).hexdigest() for name, content in found.items()}
