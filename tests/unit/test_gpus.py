"""Leases of GPUs: one holder for a slot, whatever becomes of it and of the clock. GPUs are names here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from nap_bench import gpus

HOLDER = (
    "import subprocess, sys, time; from pathlib import Path; from nap_bench import gpus\n"
    "held = gpus.try_lease(sys.argv[2:], 1, Path(sys.argv[1]))\n"
    "child = subprocess.Popen(['sleep', '60'])  # what a holder starts must not keep the lease\n"
    "print(held and held.gpu, child.pid, flush=True); time.sleep(60)"
)


@pytest.fixture
def holder(tmp_path):
    """Start a process that takes a lease; it and its child end with the test."""
    started = []

    def start(*names: str) -> tuple[subprocess.Popen, str, int]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(tmp_path), *names], stdout=subprocess.PIPE, text=True
        )
        gpu, child = process.stdout.readline().split()
        started.extend([process.pid, int(child)])
        return process, gpu, int(child)

    yield start
    for pid in started:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


@pytest.mark.fault(
    "two: processes that want the same slot of a GPU, and one that is killed in it",
    outcome="one has it at a time; a killed one frees it at once",
)
def test_two_processes_never_hold_the_same_slot_and_a_killed_one_frees_it(holder, tmp_path):
    first, gpu, child = holder("GPU-a", "GPU-b")
    _, other, _ = holder("GPU-a", "GPU-b")
    assert (gpu, other) == ("GPU-a", "GPU-b")
    assert gpus.try_lease(["GPU-a", "GPU-b"], 1, tmp_path) is None
    assert first.pid in gpus.holders(["GPU-a", "GPU-b"], 1, tmp_path)
    first.kill()
    first.wait()
    os.kill(child, 0)  # what it had started lives on
    assert gpus.try_lease(["GPU-a", "GPU-b"], 1, tmp_path).gpu == "GPU-a"


def test_slots_fill_gpus_evenly_and_are_free_again_when_released(tmp_path):
    held = [gpus.try_lease(["a", "b"], 2, tmp_path) for _ in range(5)]
    assert [(lease.gpu, lease.slot) for lease in held[:4]] == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    assert held[4] is None
    held[1].release()
    assert gpus.try_lease(["a", "b"], 2, tmp_path).gpu == "b"


@pytest.mark.parametrize("jump_seconds", [-40 * 365 * 86400, 40 * 365 * 86400])
@pytest.mark.fault(
    "clock: jumps while a slot of a GPU is held; files of dead owners lie about",
    outcome="nothing changes: these leases read no clock",
)
def test_neither_a_jump_of_the_clock_nor_a_left_over_file_changes_who_holds_what(holder, tmp_path, jump_seconds):
    (tmp_path / "GPU-b.0").write_text("1\n")  # process 1 lives, and holds nothing
    _, gpu, _ = holder("GPU-a")
    for path in tmp_path.iterdir():
        os.utime(path, (time.time() + jump_seconds,) * 2)
    assert gpu == "GPU-a" and gpus.try_lease(["GPU-a"], 1, tmp_path) is None
    assert gpus.try_lease(["GPU-b"], 1, tmp_path).gpu == "GPU-b"


@pytest.mark.parametrize(
    ("visible", "found"),
    [
        (None, ["GPU-11aa", "GPU-22bb", "GPU-22cc"]),
        ("1,0", ["GPU-22bb", "GPU-11aa"]),
        ("GPU-11", ["GPU-11aa"]),  # the beginning of a UUID names it
        ("GPU-22,2", ["GPU-22", "GPU-22cc"]),  # which of two it is, CUDA may say
        ("MIG-7f", ["MIG-7f"]),
        ("0,-1,1", ["GPU-11aa"]),  # CUDA stops there
        ("", []),
        ("NoDevFiles", []),
    ],
)
def test_gpus_are_those_of_the_environment_by_their_uuid(visible, found, tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nprintf '0, GPU-11aa\\n1, GPU-22bb\\n2, GPU-22cc\\n'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert gpus.present({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}) == found


def test_without_a_driver_gpus_are_called_what_the_environment_calls_them(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpus.present({"CUDA_VISIBLE_DEVICES": "3, 1"}) == ["3", "1"]
    assert gpus.present({}) == []
