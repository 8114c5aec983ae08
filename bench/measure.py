"""What the programs here share: interleaved timing, a header that says on what, and goals beside what was measured."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

Times = dict[str, list[float]]
"""Subject -> seconds of each of its blocks."""


def settle(device: str) -> None:
    """Wait until the device has done all it was asked for, so that a clock read next is true."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def interleaved(subjects: dict[str, Callable[[], object]], *, blocks: int, device: str) -> Times:
    """Seconds of every block. A round times one block of each subject, so that a slow moment meets all; round 0 is warm-up."""
    times: Times = {name: [] for name in subjects}
    for round_ in range(blocks + 1):
        for name, block in subjects.items():
            settle(device)
            start = time.perf_counter()
            block()
            settle(device)
            if round_:
                times[name].append(time.perf_counter() - start)
    return times


def spread(values: list[float]) -> str:
    """Median with minimum and maximum."""
    return f"{statistics.median(values):10.2f} [{min(values):.2f}, {max(values):.2f}]"


def ratios(times: Times, over: str, under: str) -> list[float]:
    """over / under, round by round."""
    return [a / b for a, b in zip(times[over], times[under], strict=True)]


def header(title: str, device: str, n: str) -> None:
    """Title, hardware, versions, load and n."""
    cpuinfo = Path("/proc/cpuinfo")
    names = (
        [line.split(": ")[1] for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        if cpuinfo.exists()
        else []
    )
    gpu = f"; {torch.cuda.get_device_name(device)}" if device.startswith("cuda") else ""
    print(f"# {title}")
    print(
        f"hardware: {names[0] if names else platform.machine()}, {os.cpu_count()} cores{gpu}; "
        f"device {device}, {torch.get_num_threads()} thread"
    )
    print(f"versions: python {platform.python_version()}, torch {torch.__version__}")
    print(f"load average (1, 5, 15 min): {', '.join(f'{load:.2f}' for load in os.getloadavg())}")
    print(f"n: {n}\n")


def goal(name: str, measured: float | None, limit: float, *, at_most: bool, unit: str, tiny: bool) -> None:
    """One line: goal and measured side by side. measured None: it was not; nor is anything by a `tiny` run."""
    if measured is None or tiny:
        found, verdict = "-", "NOT MEASURED"
    else:
        found, verdict = (
            f"{measured:.2f} {unit}",
            "MET" if (measured <= limit if at_most else measured >= limit) else "NOT MET",
        )
    print(f"goal: {name:58} {'<=' if at_most else '>='} {limit:g} {unit}; measured {found}: {verdict}")
