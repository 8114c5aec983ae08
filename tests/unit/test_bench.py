"""The programs of bench/ run, and say on what and from how many blocks. What they measure is never tested."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHON": sys.executable}
sys.path.insert(0, str(ROOT / "bench"))

import measure  # noqa: E402
import methods  # noqa: E402

from nap_bench.methods import METHODS  # noqa: E402


def call(*command: object) -> subprocess.CompletedProcess:
    return subprocess.run([*map(str, command)], env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("program", "rows"),
    [
        ("seeds", ("plain loop", "8 seeds")),
        ("projection", ("  100    16", "  512   128")),
        ("streams", ("plain loop", "regression, Adam, NaP", "permuted labels, SGD")),
        ("cnn", ("separate", "by_seed", "grouped")),
        ("rainbow", ("data-efficient  reference", "data-efficient  one run", "goal: one run on a GPU")),
        ("images", ("fixed batch", "with data", "images read per second")),
        ("lm", ("norm_only", "goal: model FLOPs utilisation, nap", "goal: nap over norm_only")),
        ("pack", ("a process of its own", "pack, 2 slots", "goal: overhead per small run, pack, 1 slot")),
        ("methods", ("l2 ", "shrink_perturb ", "goal: noisy_updates over the baseline")),
    ],
)
def test_a_program_prints_its_table_with_hardware_versions_load_and_n(program, rows):
    done = call(sys.executable, f"bench/{program}.py", "--tiny")
    assert done.returncode == 0, done.stderr
    for wanted in ("hardware: ", "versions: python 3", "load average", "n: 2 interleaved blocks", *rows):
        assert wanted in done.stdout, wanted
    verdicts = [line for line in done.stdout.splitlines() if line.startswith("goal: ")]
    assert verdicts and all(line.endswith(": NOT MEASURED") for line in verdicts), "a tiny run measures nothing"


@pytest.mark.parametrize(
    ("measured", "at_most", "verdict"),
    [
        (4.0, True, "MET"),
        (6.0, True, "NOT MET"),
        (6.0, False, "MET"),
        (4.0, False, "NOT MET"),
        (None, True, "NOT MEASURED"),
    ],
)
def test_a_goal_stands_beside_what_was_measured(measured, at_most, verdict, capsys):
    measure.goal("a step", measured, 5.0, at_most=at_most, unit="us", tiny=False)
    line = capsys.readouterr().out.strip()
    assert line.endswith(f": {verdict}") and f"{'<=' if at_most else '>='} 5 us" in line
    assert measured is None or f"measured {measured:.2f} us" in line


def test_every_subject_meets_every_round_and_the_first_round_is_not_counted():
    order = []
    subjects = {name: lambda name=name: order.append(name) for name in ("a", "b")}
    times = measure.interleaved(subjects, blocks=3, device="cpu")
    assert order == ["a", "b"] * 4 and {name: len(seconds) for name, seconds in times.items()} == {"a": 3, "b": 3}


@pytest.mark.parametrize("name", METHODS)
def test_the_page_of_a_method_quotes_its_cost_from_the_table_of_one_run(name):
    text, page = methods.TABLE.read_text(), (ROOT / "docs" / "methods" / f"{name}.md").read_text()
    wanted = methods.paragraph(name, text)
    assert page.endswith(wanted) and page.count("Measured over") == 1, "python bench/methods.py --pages"
    (row,) = [line for line in text.splitlines() if line.startswith(f"{name} ")]
    numbers = row.split(maxsplit=1)[1].split("  ")
    assert all(number.strip() in wanted.replace("\n", " ") for number in numbers if number.strip() not in ("", "-"))
    for part in ("8 seeds", "torch", "load average", "15 interleaved blocks"):
        assert part in wanted.replace("\n", " ")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_gpu_session_passes_without_a_gpu_and_skips_what_is_done(tmp_path):
    done = call("bash", "bench/gpu_session.sh", tmp_path, "--tiny")
    tiny = tmp_path / "tiny"
    summary = (tiny / "summary.txt").read_text()
    assert done.returncode == 0, done.stdout + done.stderr + summary
    assert "stacked_seeds: PASSED" in summary and "NOT MEASURED" not in summary
    written = {path: path.stat().st_mtime_ns for path in tiny.glob("*.txt") if path.name != "summary.txt"}
    (tiny / "cnn.txt").unlink()
    assert call("bash", "bench/gpu_session.sh", tmp_path, "--tiny").returncode == 0
    changed = {path.name for path, when in written.items() if path.stat().st_mtime_ns != when}
    assert changed == {"cnn.txt"}
