"""The workflow as a user runs it, on a plan of seconds."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time

import pytest
import small

from nap_bench import plan
from nap_bench.report.figures import look

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder in which the small suite has been run."""
    folder = tmp_path_factory.mktemp("suite with space")
    small.write_plan(folder, small.lines())
    done = small.snakemake(folder)
    assert done.returncode == 0, done.stdout
    return folder, done.stdout


def test_one_command_goes_from_nothing_to_report_and_tracker(finished):
    folder, output = finished
    html = (folder / "reports" / "laptop" / "index.html").read_text()
    assert "laptop scale" in html and "NOT RUN" in html
    for line in small.lines():
        assert (
            json.loads((folder / "results" / "runs" / f"{line['run_id']}.json").read_text())["run_id"] == line["run_id"]
        )
        assert line["run_id"] in html
    assert (folder / "mlflow.db").exists()
    assert "[run]" in output and "[suite] laptop:" in output, "progress of runs and of the suite"


def test_a_second_invocation_does_nothing_and_says_so_in_seconds(finished):
    folder, _ = finished
    before = small.fingerprint(folder / "results")
    began = time.monotonic()
    again = small.snakemake(folder)
    assert again.returncode == 0 and "Nothing to be done" in again.stdout
    assert time.monotonic() - began < 40
    assert small.fingerprint(folder / "results") == before


@pytest.mark.fault(
    "killed: a result is lost after its run was done", outcome="it is made again from the store, without training"
)
def test_a_lost_result_is_remade_from_the_store_without_training(finished):
    folder, _ = finished
    run_id = small.lines()[0]["run_id"]
    path = folder / "results" / "runs" / f"{run_id}.json"
    before = path.read_bytes()
    path.unlink()
    done = small.snakemake(folder, f"results/runs/{run_id}.json")
    assert done.returncode == 0 and "steps/s" not in done.stdout, done.stdout
    assert path.read_bytes() == before


def test_two_arms_that_must_be_equal_are_equal_in_every_recorded_bit(finished):
    folder, _ = finished
    baseline, off = (
        json.loads((folder / "results" / "runs" / f"{line['run_id']}.json").read_text())["metrics"]
        for line in small.lines()[:2]
    )
    assert baseline == off


def test_a_plan_of_ones_own_trains_only_what_it_adds_and_leaves_the_suites_report(finished):
    folder, _ = finished
    report = (folder / "reports" / "laptop" / "index.html").read_bytes()
    lines = plan.load(folder / "plan.jsonl")
    (folder / "mine.jsonl").write_text(plan.extend(lines, "laptop", "arms", ["l2(coef=0.1)"], ["baseline", "nap"]))
    own = dict(plan="mine.jsonl", results_dir="mine/results", reports_dir="mine/reports")
    done = small.snakemake(folder, **own)
    assert done.returncode == 0, done.stdout
    trained = {word for word in done.stdout.split() if word.startswith("random_labels.") and word.endswith(":")}
    added = [line["run_id"] for line in plan.load(folder / "mine.jsonl") if "added" in line]
    assert len(added) == 2 and trained == {f"{run_id}:" for run_id in added}
    assert look("l2(coef=0.1)+nap").label in (folder / "mine" / "reports" / "laptop" / "index.html").read_text()
    assert (folder / "reports" / "laptop" / "index.html").read_bytes() == report


@pytest.mark.fault(
    "checkpoint: of one run of a suite is no checkpoint",
    outcome="the others and the report are made, which names the run, the reason and the command; the exit code says so",
)
def test_a_failed_run_is_named_in_the_report_and_in_the_exit_code(tmp_path):
    planned = small.lines(num_tasks=1, steps_per_task=10)
    broken = planned[3]
    small.write_plan(tmp_path, planned)
    (tmp_path / "store" / broken["run_id"]).mkdir(parents=True)
    (tmp_path / "store" / broken["run_id"] / "checkpoint").write_bytes(b"not a checkpoint" * 10)
    packs = dict(pack_size=6, pack_slots=2)
    done = small.snakemake(tmp_path, **packs)
    assert done.returncode != 0
    assert f"{broken['run_id']} FAILED: ValueError: Checkpoint" in done.stdout
    assert "laptop scale: 6 runs to do, 0 done already" in done.stdout
    partial = tmp_path / "reports" / "laptop" / "partial.html"
    html = partial.read_text()
    assert broken["run_id"] in html and "is damaged" in html
    assert f"{len(planned) - 1} of {len(planned)} runs done" in html, "the good runs of the same pack count"
    assert all(
        (tmp_path / "results" / "runs" / f"{line['run_id']}.json").exists() for line in planned if line != broken
    )
    (tmp_path / "store" / broken["run_id"] / "checkpoint").unlink()
    mended = small.snakemake(tmp_path, **packs)
    assert mended.returncode == 0, mended.stdout
    assert mended.stdout.count(": done,") == 1, "the others were made from the store"
    assert not partial.exists()
    assert "is damaged" not in (tmp_path / "reports" / "laptop" / "index.html").read_text()


@pytest.mark.fault(
    "divergence: of every seed of a run, in a suite",
    outcome="a result like others, marked in log, result, report; the suite succeeds",
)
def test_a_diverged_seed_is_reported_as_diverged_and_its_suite_succeeds(tmp_path):
    from nap_bench.experiments import arms

    planned = small.lines(num_tasks=1, steps_per_task=10)[:1]
    run = arms.entry(
        "laptop", "baseline", {"lr": 1e30}, seeds=(0, 1), task=dict(num_examples=48, num_tasks=1, steps_per_task=10)
    ).run
    planned[0].update(run_id=run.run_id, run=plan.compact(run))
    small.write_plan(tmp_path, planned)
    done = small.snakemake(tmp_path)
    assert done.returncode == 0, done.stdout
    assert "DIVERGED at seeds [0, 1]" in done.stdout
    result = json.loads((tmp_path / "results" / "runs" / f"{run.run_id}.json").read_text())
    assert [entry["status"] for entry in result["status"]] == ["diverged", "diverged"]
    assert all(values == [None, None] for values in result["metrics"]["task_end/accuracy"]["values"])
    assert "diverged" in (tmp_path / "reports" / "laptop" / "index.html").read_text()


@pytest.mark.fault(
    "two: invocations of the workflow on one store",
    outcome="the second is refused in one line that names the first; the first is not disturbed",
)
def test_two_invocations_at_once_do_not_disturb_each_other(tmp_path):
    small.write_plan(tmp_path, small.lines(num_tasks=1, steps_per_task=300))
    words, settings = small.command(tmp_path)
    first = subprocess.Popen(words, **settings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while not list((tmp_path / "store").glob("*/lease.json")):
        assert first.poll() is None
        time.sleep(0.1)
    second = small.snakemake(tmp_path)
    assert second.returncode != 0 and "Another invocation" in second.stdout, second.stdout
    output, _ = first.communicate()
    assert first.returncode == 0, output


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"scal": "paper"}, "Did you mean 'scale'"),
        ({"scale": "papr"}, "Did you mean 'paper'"),
        ({"device": "tpu"}, "device wants"),
        ({"experiments": ["armz"]}, "Did you mean 'arms'"),
        ({"plan": "absent.jsonl"}, "No plan at absent.jsonl"),
    ],
)
def test_bad_input_is_refused_before_any_work(tmp_path, config, message):
    small.write_plan(tmp_path, small.lines())
    done = small.snakemake(tmp_path, **config)
    assert done.returncode != 0 and message in done.stdout
    assert not (tmp_path / "store").exists() and not (tmp_path / "results").exists()


@pytest.mark.fault(
    "download: a dataset is not there and cannot be fetched",
    outcome="one line names its files; no run that needs it starts",
)
def test_a_missing_dataset_is_refused_by_its_own_rule_before_any_run_that_needs_it(tmp_path, monkeypatch):
    planned = small.lines(num_tasks=1, steps_per_task=10)[:1]
    planned[0]["data"] = "mnist"
    small.write_plan(tmp_path, planned)
    (tmp_path / "data" / "MNIST" / "raw").mkdir(parents=True)
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody answers: the same with and without a network
    done = small.snakemake(tmp_path)
    assert done.returncode != 0 and "train-images-idx3-ubyte" in done.stdout, done.stdout
    assert not list((tmp_path / "store").glob("*/spec.json"))


MEASURE = """
import os, subprocess, sys
silent = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
_, code, used = os.wait4(subprocess.Popen(sys.argv[1:], **silent).pid, 0)
print(os.waitstatus_to_exitcode(code), used.ru_utime + used.ru_stime, used.ru_maxrss)
"""
"""A small parent: a process's peak memory begins with that of the one it was forked from."""


@pytest.mark.parametrize("scale", ["laptop", "workstation", "paper"])
def test_a_dry_run_of_every_scale_takes_seconds_and_little_memory(scale):
    """Twelve alone, the largest; measured in seconds of a processor that other tests share."""
    words, settings = small.command(small.ROOT, "--dry-run", plan="config/plan.jsonl", scale=scale)
    words.remove("--")
    measured = subprocess.run(
        [sys.executable, "-c", MEASURE, *words], **settings, capture_output=True, text=True, check=True
    )
    exit_code, seconds, kibibytes = map(float, measured.stdout.split())
    assert exit_code == 0, shlex.join(words)
    assert seconds < 20
    assert kibibytes < 400 * 1024
