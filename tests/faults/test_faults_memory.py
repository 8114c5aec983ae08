"""A run that wants more memory than there is, on the host and on a GPU."""

from __future__ import annotations

import dataclasses
import json
import resource
from pathlib import Path

import pytest
import torch
from faults import toy
from faults.test_faults_disk import complaints

from nap_bench import jobs, plan


def too_large(line: dict) -> dict:
    """The same run with a hidden layer of 40 GB."""
    run = toy.expand(line)
    run = dataclasses.replace(run, model=dataclasses.replace(run.model, size=(("widths", (100_000, 100_000)),)))
    return {**line, "run_id": run.run_id, "run": plan.compact(run)}


def starved(work) -> int:
    """Do it in a process that may take half a GB more than this one has."""

    def limited() -> int:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**29,) * 2)
        return work()

    return toy.ended(toy.forked(limited))


@pytest.mark.fault(
    "memory: of the host is not enough for a run",
    outcome="it fails in one line that says so; the other runs of the pack are done",
)
def test_a_run_that_needs_more_memory_than_there_is_fails_alone(tmp_path, capfd):
    line, other = toy.lines(2)
    large = too_large(line)
    assert starved(lambda: toy.do(tmp_path, [large, other])) == 1
    (said,) = complaints(capfd.readouterr().err)
    assert f"{large['run_id']} FAILED: Out of memory" in said and "pack_size" not in said
    assert [path.stem for path in tmp_path.glob("results/runs/*")] == [other["run_id"]]
    assert "can't allocate memory" in (tmp_path / "store" / large["run_id"] / "log").read_text()


@pytest.mark.fault(
    "memory: of the GPU is not enough for a run (as torch says it; no GPU is needed)",
    outcome="it fails in one line that says so; the other runs of the pack are done",
)
def test_a_gpu_without_memory_fails_its_run_in_one_line(tmp_path, capfd, monkeypatch):
    import nap_bench.train

    real, (line, other) = nap_bench.train.train, toy.lines(2)

    def train(run, *arguments, **more):
        if run.run_id == line["run_id"]:
            raise torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 20.00 GiB.\nGPU 0 has a total capacity of 16.00 GiB"
            )
        return real(run, *arguments, **more)

    monkeypatch.setattr(nap_bench.train, "train", train)
    assert toy.do(tmp_path, [line, other]) == 1
    (said,) = complaints(capfd.readouterr().err)
    assert "Out of memory" in said and "Tried to allocate 20.00 GiB" in said
    assert json.loads((tmp_path / "store" / line["run_id"] / "failed.json").read_text())["reason"].count("\n") == 0
    assert jobs.Job(other, store=tmp_path / "store", results=tmp_path / "results").is_done()
