"""Killed in the middle of a write, and killed above: what is left goes on, or is waited for."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time

import pytest
from faults import toy
from workflow import small

from nap_bench import session


def killed_at(folder, line, file: str, after: bool, number: int = 1) -> int:
    """Do a run in another process that is killed as the `number`-th `file` is put in place, before or after."""

    def work() -> int:
        real, seen = os.replace, 0

        def replace(source, target):
            nonlocal seen
            if os.path.basename(target) == file:
                seen += 1
                if seen == number and not after:
                    os.kill(os.getpid(), signal.SIGKILL)
            real(source, target)
            if os.path.basename(target) == file and seen == number:
                os.kill(os.getpid(), signal.SIGKILL)

        os.replace, session.SAVING_SHARE = replace, float("inf")  # a checkpoint at every step
        return toy.do(folder, [line])

    return toy.ended(toy.forked(work))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    (line,) = toy.lines()
    return line, toy.whole(tmp_path_factory.mktemp("whole"), line)


@pytest.mark.fault(
    "killed: while a run's file is written, before or after it is put in place: spec, checkpoints, environment, end, result",
    outcome="the file of before stays, or the new one is there; the run goes on, to the same bytes, and no piece stays",
)
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    ("file", "number"),
    [("spec.json", 1), ("checkpoint", 1), ("checkpoint", 17), ("env.json", 1), ("done.json", 1), ("result", 1)],
)
def test_a_run_killed_while_it_writes_a_file_goes_on_to_the_same_bytes(file, number, after, whole, tmp_path):
    line, expected = whole
    name = f"{line['run_id']}.json" if file == "result" else file
    assert killed_at(tmp_path, line, name, after, number) == -signal.SIGKILL
    assert toy.do(tmp_path, [line]) == 0
    assert toy.left(tmp_path, line) == expected
    assert toy.hidden(tmp_path) == []
    left = {path.name for path in (tmp_path / "store" / line["run_id"]).iterdir()}
    assert left - {"lease.json"} == {"spec.json", "metrics.csv", "env.json", "done.json"}


@pytest.mark.fault(
    "killed: Snakemake alone, at work; its jobs live on as orphans, and it is started again",
    outcome="the new jobs wait for the old ones; every run is trained once",
)
def test_orphans_of_a_killed_snakemake_are_waited_for(tmp_path):
    planned = toy.lines(2, num_tasks=3, steps_per_task=400)
    small.write_plan(tmp_path, planned)
    targets = [f"results/runs/{line['run_id']}.json" for line in planned]
    words, settings = small.command(tmp_path, *targets, pack_size=1, checkpoint_seconds=0.2)
    with open(tmp_path / "log", "w") as log:
        first = subprocess.Popen(words, **settings, stdout=log, stderr=log, start_new_session=True)
        while not list(tmp_path.glob("store/*/checkpoint")):
            assert first.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.02)
        first.kill()
        first.wait()
    holders = [json.loads(path.read_text())["pid"] for path in tmp_path.glob("store/*/lease.json")]
    assert holders and all(os.path.exists(f"/proc/{pid}") for pid in holders), "they live on"
    again = small.snakemake(tmp_path, *targets, pack_size=1, checkpoint_seconds=0.2)
    assert again.returncode == 0, again.stdout
    for line in planned:
        result = json.loads((tmp_path / "results" / "runs" / f"{line['run_id']}.json").read_text())
        assert result["cost"]["num_sessions"] == 1
