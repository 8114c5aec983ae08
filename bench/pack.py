"""What a small run takes besides its own seconds: in a process of its own, and in packs. On a CPU, one thread a process.

python bench/pack.py [--tiny]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from measure import goal, header, spread

from nap_bench import plan
from nap_bench.experiments import arms

LIMIT_SECONDS = 0.2
NAP_BENCH = "import sys; from nap_bench.cli import main; sys.exit(main())"


def planned(num_runs: int, num_updates: int) -> list[dict]:
    """Lines of a plan: small runs of the laptop scale that differ by their seeds."""
    lines = []
    for number in range(num_runs):
        task = dict(num_tasks=2, steps_per_task=num_updates // 2)
        seeds = tuple(range(8 * number, 8 * number + 8))
        run = arms.entry("laptop", "nap", {}, seeds=seeds, task=task).run
        lines.append({"run_id": run.run_id, "uses": {"laptop": {"arms": [["nap", ""]]}}, "run": plan.compact(run)})
    return lines


def take(lines: list[dict], *options: str) -> tuple[float, list[float]]:
    """(seconds of a process that does these runs, seconds that each says it took itself)."""
    with tempfile.TemporaryDirectory() as folder:
        text = "".join(json.dumps(line) + "\n" for line in [{}, *lines])
        Path(folder, "plan.jsonl").write_text(text)
        words = [sys.executable, "-c", NAP_BENCH, "run", "--plan", "plan.jsonl", *options]
        began = time.perf_counter()
        done = subprocess.run([*words, *(line["run_id"] for line in lines)], cwd=folder, capture_output=True, text=True)
        seconds = time.perf_counter() - began
        assert done.returncode == 0, done.stderr
        results = [json.loads(path.read_text()) for path in Path(folder).glob("results/runs/*.json")]
    return seconds, [result["cost"]["wall_seconds"] for result in results]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="seconds; numbers mean nothing")
    tiny = parser.parse_args().tiny
    torch.set_num_threads(1)
    num_rounds, num_runs, num_updates = (2, 3, 20) if tiny else (5, 9, 200)
    lines = planned(num_runs, num_updates)
    header(
        f"Packs of small runs: 8 seeds of a perceptron with NaP, {num_updates} updates each",
        "cpu",
        f"{num_rounds} interleaved blocks; a pack has {num_runs} runs; median [min, max]",
    )
    subjects = {"a process of its own": ((), 1), "pack, 1 slot": (("--pack",), num_runs)}
    subjects["pack, 2 slots"] = (("--pack", "--slots", "2"), num_runs)
    alone, besides, rate = [], {name: [] for name in subjects}, {name: [] for name in subjects}
    for _ in range(num_rounds):
        start, _own = take(lines[:1], "--pack")
        for name, (options, count) in subjects.items():
            seconds, own = take(lines[:count], *options)
            rate[name].append(60 * count / seconds)
            if count == 1:
                besides[name].append(seconds - own[0])
                alone.append(own[0])
            else:  # the start is the same for a pack of one
                slots = 2 if "2" in name else 1
                besides[name].append((seconds - start) * slots / (count - slots) - statistics.fmean(own))
    print(f"{'':<24}{'seconds besides a run’s own':>34}{'runs a minute':>34}")
    for name in subjects:
        print(f"{name:<24}{spread(besides[name]):>34}{spread(rate[name]):>34}")
    print(f"\na run's own seconds, alone: {spread(alone).strip()}\n")
    for name in list(subjects)[1:]:
        goal(
            f"overhead per small run, {name}",
            statistics.median(besides[name]),
            LIMIT_SECONDS,
            at_most=True,
            unit="s",
            tiny=tiny,
        )


if __name__ == "__main__":
    main()
