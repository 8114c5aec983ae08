"""Packs as they really run: the same bytes as runs made alone, whatever is killed, in a shell and in the workflow."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import small
import yaml

from nap_bench import cli, estimate, plan
from nap_bench.experiments import EXPERIMENTS

pytestmark = pytest.mark.timeout(300)
PAGE = small.ROOT / "docs" / "packing.md"
NAP_BENCH = [sys.executable, "-c", "import sys; from nap_bench.cli import main; sys.exit(main())"]


def start(folder: Path, *words: str, **more) -> subprocess.Popen:
    folder.mkdir(exist_ok=True)
    command = [*NAP_BENCH, "run", "--plan", "plan.jsonl", "--checkpoint-seconds", "0.1", *words]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **more)


def made(folder: Path) -> dict[str, object]:
    """What determines the results of a folder, and the full metrics."""
    metrics = {path.parent.name: path.read_bytes() for path in sorted(folder.glob("store/*/metrics.csv"))}
    return {"runs": small.fingerprint(folder / "results"), **metrics}


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(condition, process, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None or time.monotonic() < deadline, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Three runs, each in a process of its own."""
    folder = tmp_path_factory.mktemp("alone")
    planned = small.lines(num_tasks=4, steps_per_task=200)[1:4]
    small.write_plan(folder, planned)
    for line in planned:
        process = start(folder, line["run_id"])
        said, _ = process.communicate(timeout=200)
        assert process.returncode == 0, said
    return planned, made(folder)


def test_runs_that_share_a_pack_leave_the_bytes_of_runs_made_alone(alone, tmp_path):
    planned, expected = alone
    small.write_plan(tmp_path, planned)
    pack = start(tmp_path, "--pack", "--slots", "2", *(line["run_id"] for line in planned))
    said, _ = pack.communicate(timeout=200)
    assert pack.returncode == 0, said
    assert made(tmp_path) == expected
    assert "[suite] laptop: 3/3 runs done" in said


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.fault(
    "pack: the whole of it is killed, or asked to stop", outcome="no worker outlives it; started again, the same bytes"
)
def test_a_pack_that_is_killed_or_stopped_ends_its_workers_and_goes_on_to_the_same_bytes(alone, tmp_path, number):
    planned, expected = alone
    small.write_plan(tmp_path, planned)
    words = ("--pack", "--slots", "2", *(line["run_id"] for line in planned))
    pack = start(tmp_path, *words)
    wait_for(lambda: len(list(tmp_path.glob("store/*/checkpoint"))) == 2, pack)
    workers = children(pack.pid)
    assert len(workers) == 2
    pack.send_signal(number)
    assert pack.wait(60) == (75 if number == signal.SIGTERM else -signal.SIGKILL)
    deadline = time.monotonic() + 60
    while any(map(alive, workers)):
        assert time.monotonic() < deadline, "a worker outlives its pack"
        time.sleep(0.05)
    assert list(tmp_path.glob("store/*/checkpoint")) and not list(tmp_path.glob("store/*/lease.json"))
    again = start(tmp_path, *words)
    said, _ = again.communicate(timeout=200)
    assert again.returncode == 0, said
    assert made(tmp_path) == expected


@pytest.mark.fault(
    "pack: one of its workers is killed",
    outcome="its run is named; the others are done, and the next start does that run alone",
)
def test_a_worker_killed_by_the_system_costs_its_own_run_and_no_other(alone, tmp_path):
    planned, expected = alone
    small.write_plan(tmp_path, planned)
    words = ("--pack", *(line["run_id"] for line in planned))
    pack = start(tmp_path, *words)
    wait_for(lambda: list(tmp_path.glob("store/*/checkpoint")), pack)
    os.kill(children(pack.pid)[0], signal.SIGKILL)
    said, _ = pack.communicate(timeout=200)
    assert pack.returncode == 1 and "1 of 3 runs failed" in said and "was killed by SIGKILL" in said, said
    assert len(list(tmp_path.glob("results/runs/*.json"))) == 2
    again = start(tmp_path, *words)
    said, _ = again.communicate(timeout=200)
    assert again.returncode == 0 and said.count(": done,") == 1, said
    assert made(tmp_path) == expected


def test_progress_counts_what_was_asked_for_and_not_the_whole_scale(tmp_path):
    small.write_plan(tmp_path, small.lines(num_tasks=1, steps_per_task=10))
    done = small.snakemake(tmp_path, "quick")
    assert done.returncode == 0, done.stdout
    assert "laptop scale: 2 runs to do" in done.stdout and "[suite] laptop: 2/2 runs done" in done.stdout, done.stdout
    assert len(json.loads((tmp_path / "store" / ".asked.json").read_text())) == 2


def commands_of_the_page() -> list[list[str]]:
    """Every command that docs/packing.md gives, as words."""
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    lines = [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]
    return [words for words in lines if words]


def test_the_commands_of_the_page_on_packing_do_what_it_says(tmp_path, monkeypatch, capfd):
    planned = small.lines(num_tasks=1, steps_per_task=10)[:2]
    small.write_plan(tmp_path, planned)
    monkeypatch.chdir(tmp_path)
    shutil.copy(estimate.SPEEDS, tmp_path)
    monkeypatch.setattr(estimate, "SPEEDS", tmp_path / estimate.SPEEDS.name)
    ours = [line["run_id"] for line in planned]
    theirs = dict.fromkeys(
        word for words in commands_of_the_page() for word in words if word.startswith("random_labels.")
    )
    known = [json.loads(line)["run_id"] for line in (plan.ROOT / "config" / "plan.jsonl").read_text().splitlines()[1:]]
    assert set(theirs) <= set(known)
    schema = yaml.safe_load((small.ROOT / "config" / "schema.yaml").read_text())
    did = set()
    for program, *words in commands_of_the_page():
        if program == "snakemake":
            settings = [word.split("=", 1) for word in words if "=" in word and not word.startswith(("run_", "slurm_"))]
            plan.check_config({key: yaml.safe_load(value) for key, value in settings}, schema)
            continue
        assert program == "nap-bench"
        words = [ours[list(theirs).index(word)] if word in theirs else word for word in words]
        parsed = cli._parser().parse_args(words)
        if {"--experiments", "--try"} & set(words):
            assert set(getattr(parsed, "experiments", [])) <= set(EXPERIMENTS)
            continue
        assert cli.main([words[0], "--plan", "plan.jsonl", *words[1:]]) == 0, words
        did.add(words[0])
    assert did == {"plan", "status", "run", "speeds"}
    assert all((tmp_path / "results" / "runs" / f"{run_id}.json").exists() for run_id in ours)
    said = capfd.readouterr().out
    assert "laptop scale: 2 runs to do" in said and "paper scale: 0 runs to do" in said and "would run" in said


def test_files_and_links_of_the_page_on_packing_exist():
    text = PAGE.read_text()
    for target in re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", text):
        assert (PAGE.parent / target).exists(), target
    for path in re.findall(r"`((?:config|bench|docs)/[\w./-]*)`", text):
        assert (small.ROOT / path).exists(), path
