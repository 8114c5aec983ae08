"""Publishing to MLflow: nothing twice, nothing half, nothing lost. Views are compared without MLflow's random ids."""

from __future__ import annotations

import copy
import fcntl
import io
import json
import math
import os
import pickle
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from nap_bench import stats
from nap_bench.tracking import TrackerError, heartbeat
from nap_bench.tracking import publish as publishing
from nap_bench.tracking.publish import Exhibit, publish

STEPS = [100, 200, 300]
FAILURE = {
    "run_id": "random_labels.mlp.large-3",
    "reason": "out of memory",
    "log": "store/random_labels.mlp.large-3/log",
}
NUM_RUNS = 12


def result(run_id: str, method: str | None, lr: float, diverged_at: int | None = None) -> dict:
    """A run of two seeds; the second diverges if told to."""
    model = {"family": "mlp", "size": {"widths": [8, 8]}, "norm": "none"}
    seeds = [0, 1]

    def rows(scale: float) -> list[list[float | None]]:
        late = [diverged_at is not None and step >= diverged_at for step in STEPS]
        return [[scale / step, None if gone else scale / (step + 1)] for step, gone in zip(STEPS, late, strict=True)]

    status = [{"seed": 0, "status": "complete"}, {"seed": 1, "status": "complete"}]
    if diverged_at is not None:
        status[1] = {"seed": 1, "status": "diverged", "step": diverged_at}
    return {
        "run_id": run_id,
        "cell_id": f"{run_id}-cell",
        "spec": {
            "benchmark": {"name": "random_labels", "version": 1, "params": {"steps_per_task": 100}},
            "model": model,
            "methods": [{"name": method, "version": 2, "params": {"head": False}}] if method else [],
            "optimizer": {"name": "adam", "version": 1, "params": {"clip_norm": None}},
            "schedule": {"name": "constant", "version": 1, "params": {"lr": lr}},
            "seeds": seeds,
            "precision": "fp32",
            "protocol": 1,
        },
        "status": status,
        "metrics": {
            "task_end/accuracy": {"steps": STEPS, "values": rows(50.0)},
            "probe/norm/layer0": {"steps": STEPS, "values": rows(7.0)},
        },
        "environment": {
            "commit": "0123abc",
            **({"data": {"digits": "ab" * 32}} if method else {}),
            "dirty": False,
            "python": "3.11",
            "torch": "2.13.0",
            "platform": "Linux",
            "device": "cpu",
            "device_name": "a processor",
            "resolved_model": {**model, "norm": "layer" if method else "none"},
        },
        "cost": {"wall_seconds": 3.0, "steps_per_second": 100.0, "peak_memory_bytes": 1000, "num_sessions": 1},
    }


def write_exhibit(folder: Path, name: str, measure: str = "last_accuracy") -> Exhibit:
    """Scores, claims and a figure of an exhibit; one figure is missing."""
    rows = ["arm,setting,measure,x,seed,value", "nap,lr=0.1,accuracy,100,0,0.5"]
    for arm, values in (("plain", ("0.25", "")), ("nap", ("0.75", "0.5"))):
        rows += [f"{arm},lr=0.1,{measure},,{seed},{value}" for seed, value in enumerate(values)]
    measured = {"label": "NaP - plain", "estimate": 0.5, "low": 0.4, "high": None, "verdict": "SUPPORTED"}
    claim = {"id": "nap_wins", "source": "Fig. 2", "sentence": "NaP wins", "verdict": "SUPPORTED"}
    claim["measurements"] = [measured]
    (folder / f"{name}.csv").write_text("\n".join(rows) + "\n")
    (folder / f"{name}.json").write_text(json.dumps({"exhibit": name, "claims": [claim]}))
    (folder / f"{name}.svg").write_text(f"<svg xmlns='http://www.w3.org/2000/svg'><text>{name}</text></svg>")
    return Exhibit(
        title=f"Title of {name}",
        paper="NaP wins.",
        claims=folder / f"{name}.json",
        scores=folder / f"{name}.csv",
        figures=(folder / f"{name}.svg", folder / f"{name}.png"),
    )


@pytest.fixture(scope="module")
def suite(tmp_path_factory) -> dict:
    """Arguments of `publish`: two runs of two seeds, one of them diverged, one used by both exhibits; and one that failed."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "index.html").write_text("<h1>Report</h1>")
    plain = result("random_labels.mlp.baseline-1", None, 0.1, diverged_at=200)
    nap = result("random_labels.mlp.nap-2", "nap", 0.1)
    return {
        "results": [
            (plain, [("arms", "plain", "lr=0.1"), ("dead", "none", "")]),
            (nap, [("arms", "nap", "lr=0.1")]),
        ],
        "exhibits": {name: write_exhibit(folder, name) for name in ("arms", "dead")},
        "scale": "laptop",
        "report": folder / "index.html",
        "failures": [(FAILURE, [("arms", "large", "lr=0.1")])],
    }


@pytest.fixture(scope="module")
def empty(tmp_path_factory) -> Path:
    """A database without experiments, made beside what a killed creation left: MLflow takes seconds to make one."""
    path = tmp_path_factory.mktemp("empty") / "mlflow.db"
    path.with_name("mlflow.db.new").write_bytes(b"half a database")
    publishing._create_database(path)
    return path


@pytest.fixture
def database(empty, tmp_path) -> Path:
    return Path(shutil.copy(empty, tmp_path / "mlflow.db"))


@pytest.fixture(scope="module")
def published(empty, suite, tmp_path_factory) -> Path:
    """The suite, published once and undisturbed."""
    path = Path(shutil.copy(empty, tmp_path_factory.mktemp("published") / "mlflow.db"))
    publish(**suite, tracking_uri=f"sqlite:///{path}")
    return path


def query(path: Path, sql: str) -> list[tuple]:
    with sqlite3.connect(path) as connection:
        return connection.execute(sql).fetchall()


def view(path: Path, stage: str = "active") -> dict:
    """All that MLflow shows, without ids: experiments, and runs with status, dates, tags, params, metrics, files."""
    tags = "SELECT e.name, t.key, t.value FROM experiments e JOIN experiment_tags t USING (experiment_id)"
    seen: dict = {"experiments": sorted(query(path, tags))}
    runs = query(
        path,
        "SELECT r.run_uuid, e.name, r.name, r.status, r.start_time, r.end_time, e.artifact_location FROM runs r "
        f"JOIN experiments e USING (experiment_id) WHERE r.lifecycle_stage = '{stage}'",
    )
    for run_id, experiment, name, *about, place in runs:
        tables = {
            table: sorted(query(path, f"SELECT {columns} FROM {table} WHERE run_uuid = '{run_id}'"))
            for table, columns in {
                "tags": "key, value",
                "params": "key, value",
                "metrics": "key, step, timestamp, value, is_nan",
                "latest_metrics": "key, step, timestamp, value, is_nan",
            }.items()
        }
        tables["data"] = query(
            path,
            "SELECT d.name, d.digest, d.dataset_source_type, d.dataset_source, t.name, t.value FROM inputs i JOIN datasets d "
            "ON d.dataset_uuid = i.source_id JOIN input_tags t USING (input_uuid) WHERE i.source_type = 'DATASET' "
            f"AND i.destination_type = 'RUN' AND i.destination_id = '{run_id}' ORDER BY 1",
        )
        folder = path.parent / "mlartifacts" / place.removeprefix("mlflow-artifacts:/") / run_id / "artifacts"
        files = {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}
        assert (experiment, name) not in seen, f"{name} is there twice"
        seen[experiment, name] = (about, tables, files)
    return seen


def test_each_seed_cell_and_failure_is_a_run_in_every_exhibit_that_uses_it(published):
    assert sorted(key for key in view(published) if key != "experiments") == [
        ("nap_bench/laptop/arms", "FAILED · large · lr=0.1"),
        ("nap_bench/laptop/arms", "nap · lr=0.1 · 2 seeds"),
        ("nap_bench/laptop/arms", "nap · lr=0.1 · seed 0"),
        ("nap_bench/laptop/arms", "nap · lr=0.1 · seed 1"),
        ("nap_bench/laptop/arms", "plain · lr=0.1 · 2 seeds"),
        ("nap_bench/laptop/arms", "plain · lr=0.1 · seed 0"),
        ("nap_bench/laptop/arms", "plain · lr=0.1 · seed 1 · diverged at step 200"),
        ("nap_bench/laptop/arms", "summary · arms · laptop"),
        ("nap_bench/laptop/dead", "none · 2 seeds"),
        ("nap_bench/laptop/dead", "none · seed 0"),
        ("nap_bench/laptop/dead", "none · seed 1 · diverged at step 200"),
        ("nap_bench/laptop/dead", "summary · dead · laptop"),
    ]


def test_a_run_says_what_it_was_and_how_to_redo_it(published):
    _, tables, _ = view(published)["nap_bench/laptop/arms", "nap · lr=0.1 · seed 1"]
    tags, params = dict(tables["tags"]), dict(tables["params"])
    assert params["methods"] == "nap"
    assert params["method.nap.head"] == "false"
    assert params["model.norm"] == "layer", "the model that trained, not the one the run asked for"
    assert params["benchmark.steps_per_task"] == "100"
    assert (params["lr"], params["optimizer"], params["seed"]) == ("0.1", "adam", "1")
    assert tags["nap.run_id"] == "random_labels.mlp.nap-2"
    assert tags["mlflow.source.git.commit"] == "0123abc"
    note = tags["mlflow.note.content"]
    assert "git checkout 0123abc" in note
    assert "snakemake --cores 1 --config scale=laptop -- results/runs/random_labels.mlp.nap-2.json" in note
    points = {(key, step): value for key, step, _, value, _ in tables["metrics"]}
    assert [points["task_end/accuracy", step] for step in STEPS] == [50.0 / (step + 1) for step in STEPS]
    assert points["final/last_accuracy", 0] == 0.5
    assert tables["data"] == [("digits", "ab" * 18, "nap_bench", "{}", "mlflow.data.context", "training")]


def test_a_cell_has_the_iqm_of_its_seeds_with_its_interval_and_their_mean_curve(published):
    _, tables, _ = view(published)["nap_bench/laptop/arms", "nap · lr=0.1 · 2 seeds"]
    latest = {key: value for key, _, _, value, _ in tables["latest_metrics"]}
    expected = stats.iqm_interval([0.75, 0.5])
    assert latest["iqm/last_accuracy"] == latest["final/last_accuracy"] == expected.estimate == 0.625
    assert (latest["iqm_low/last_accuracy"], latest["iqm_high/last_accuracy"]) == (expected.low, expected.high)
    assert (latest["n/seeds"], latest["final/diverged"], latest["system/wall_seconds"]) == (2, 0, 3)
    curve = {step: value for key, step, _, value, _ in tables["metrics"] if key == "task_end/accuracy"}
    assert curve == {step: pytest.approx((50 / step + 50 / (step + 1)) / 2) for step in STEPS}
    assert dict(tables["params"])["methods"] == "nap" and tables["data"][0][0] == "digits"


def test_a_cell_with_a_diverged_seed_has_no_iqm_and_says_so(published):
    _, tables, _ = view(published)["nap_bench/laptop/arms", "plain · lr=0.1 · 2 seeds"]
    latest = {key: (math.nan if is_nan else value) for key, _, _, value, is_nan in tables["latest_metrics"]}
    assert math.isnan(latest["final/last_accuracy"]) and "iqm/last_accuracy" not in latest
    assert latest["final/diverged"] == 0.5
    tags = dict(tables["tags"])
    assert tags["nap.status"] == "1 diverged" and "1 of 2 diverged" in tags["mlflow.note.content"]
    curve = {step: value for key, step, _, value, _ in tables["metrics"] if key == "task_end/accuracy"}
    assert curve[300] == 50 / 300, "of the seed that lived"


def test_what_was_drawn_from_the_seed_names_the_benchmark_that_drew_it(published):
    _, tables, _ = view(published)["nap_bench/laptop/arms", "plain · lr=0.1 · seed 0"]
    ((name, digest, *_),) = tables["data"]
    assert name == "random_labels (its data by their settings)" and len(digest) == 36


def test_a_failed_run_is_shown_as_failed_with_its_reason_until_it_has_a_result(published, database, suite):
    (status, *_), tables, _ = view(published)["nap_bench/laptop/arms", "FAILED · large · lr=0.1"]
    tags = dict(tables["tags"])
    assert status == "FAILED" and tags["nap.kind"] == "failed"
    for expected in (
        "out of memory",
        FAILURE["log"],
        f"snakemake --cores 1 --config scale=laptop -- results/runs/{FAILURE['run_id']}.json",
    ):
        assert expected in tags["mlflow.note.content"]
    publish(**suite, tracking_uri=f"sqlite:///{database}")
    summary = publish(**{**suite, "failures": []}, tracking_uri=f"sqlite:///{database}")
    assert (summary.superseded, summary.created) == (1, 0)
    assert ("nap_bench/laptop/arms", "FAILED · large · lr=0.1") not in view(database)


def test_every_run_has_the_tags_that_runs_are_grouped_by(published):
    wanted = {"nap.kind", "nap.exhibit", "nap.cell", "nap.arm", "nap.setting", "nap.seed", "nap.scale", "nap.status"}
    for key, shown in view(published).items():
        if key != "experiments":
            assert wanted <= set(dict(shown[1]["tags"])), key


def test_an_experiment_links_to_its_views(published):
    tags = {(name, key): value for name, key, value in view(published)["experiments"]}
    note = tags["nap_bench/laptop/arms", "mlflow.note.content"]
    for key in publishing.VIEWS:
        assert re.search(rf"#/experiments/\d+/runs\?viewStateShareKey={key}\b", note)
        assert json.loads(tags["nap_bench/laptop/arms", f"mlflow.sharedViewState.{key}"])["searchFilter"]


def test_a_diverged_seed_is_visible_and_never_dropped(published):
    shown = view(published)
    (status, *_), tables, _ = shown["nap_bench/laptop/arms", "plain · lr=0.1 · seed 1 · diverged at step 200"]
    latest = {key: (step, is_nan, value) for key, step, _, value, is_nan in tables["latest_metrics"]}
    assert status == "FINISHED"
    assert dict(tables["tags"])["nap.status"] == "diverged"
    assert latest["task_end/accuracy"][:2] == (100, 0), "the curve up to the divergence is there"
    assert latest["final/diverged"] == (0, 0, 1.0)
    assert latest["final/last_accuracy"][1] == 1, "NaN, not a number of the seeds that lived"
    _, summary, _ = shown["nap_bench/laptop/arms", "summary · arms · laptop"]
    totals = {key: math.nan if is_nan else value for key, _, _, value, is_nan in summary["latest_metrics"]}
    assert totals["totals/diverged_seeds"] == 1.0
    assert math.isnan(totals["totals/mean/last_accuracy/plain/lr:0.1"])
    assert totals["totals/mean/last_accuracy/nap/lr:0.1"] == 0.625


def test_the_summary_run_has_verdicts_and_files_and_names_what_is_missing(published, suite):
    _, tables, files = view(published)["nap_bench/laptop/arms", "summary · arms · laptop"]
    metrics = {key: value for key, _, _, value, _ in tables["latest_metrics"]}
    assert dict(tables["tags"])["verdict.nap_wins"] == "SUPPORTED at laptop scale"
    assert (metrics["verdict/nap_wins/estimate"], metrics["verdict/nap_wins/low"]) == (0.5, 0.4)
    assert "verdict/nap_wins/high" not in metrics
    assert set(files) == {"figures/arms.svg", "claims/arms.json", "scores/arms.csv", "report/index.html"}
    assert files["report/index.html"] == suite["report"].read_bytes()
    assert "Missing: figures/arms.png" in dict(tables["tags"])["mlflow.note.content"]


def test_publishing_twice_adds_nothing(published, suite):
    files = {path: path.stat().st_mtime_ns for path in (published.parent / "mlartifacts").rglob("*")}
    before = view(published)
    summary = publish(**suite, tracking_uri=f"sqlite:///{published}")
    assert (summary.created, summary.resumed, summary.superseded, summary.uploaded) == (0, 0, 0, 0)
    assert summary.unchanged == summary.total == NUM_RUNS
    assert view(published) == before
    assert {path: path.stat().st_mtime_ns for path in (published.parent / "mlartifacts").rglob("*")} == files


def test_a_new_database_shows_what_the_old_one_showed(published, database, suite):
    publish(**suite, tracking_uri=f"sqlite:///{database}")
    assert view(database) == view(published)


def test_the_store_can_be_moved(published):
    places = query(published, "SELECT artifact_location FROM experiments WHERE name LIKE 'nap_bench/%'")
    places += query(published, "SELECT artifact_uri FROM runs")
    assert all(place.startswith("mlflow-artifacts:/nap_bench/laptop/") for (place,) in places)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("survived", [0, 3, 8, 13, 17, 24, 31])
@pytest.mark.fault(
    "killed: the publisher, between any two things that it writes",
    outcome="the next one completes it: the same as undisturbed",
)
def test_a_publish_interrupted_anywhere_is_completed_by_the_next(survived, published, database, suite, monkeypatch):
    from mlflow import MlflowClient

    calls = 0

    def interrupting(function):
        def wrapper(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls > survived:
                raise Killed
            return function(*args, **kwargs)

        return wrapper

    with monkeypatch.context() as patch:
        for name in ("create_experiment", "create_run", "set_tag", "set_terminated"):
            patch.setattr(MlflowClient, name, interrupting(getattr(MlflowClient, name)))
        patch.setattr(publishing._Tracker, "_log_into_database", interrupting(publishing._Tracker._log_into_database))
        with pytest.raises(Killed):
            publish(**suite, tracking_uri=f"sqlite:///{database}")
    assert view(database) != view(published)
    publish(**suite, tracking_uri=f"sqlite:///{database}")
    assert view(database) == view(published)


@pytest.mark.fault("killed: the publisher's process", outcome="the next one completes it: the same as undisturbed")
def test_a_publish_that_was_killed_is_completed_by_the_next(published, database, suite, tmp_path):
    (tmp_path / "suite.pickle").write_bytes(pickle.dumps(suite))
    code = f"""
import os, pickle, signal
from pathlib import Path
from mlflow import MlflowClient
from nap_bench.tracking.publish import publish
ends = 0
def die(self, *args, finish=MlflowClient.set_terminated, **kwargs):
    global ends
    ends += 1
    if ends == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    finish(self, *args, **kwargs)
MlflowClient.set_terminated = die
publish(**pickle.loads(Path({str(tmp_path / "suite.pickle")!r}).read_bytes()), tracking_uri="sqlite:///{database}")
"""
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert "RUNNING" in {about[0] for key, (about, *_) in view(database).items() if key != "experiments"}
    summary = publish(**suite, tracking_uri=f"sqlite:///{database}")
    assert (summary.unchanged, summary.resumed, summary.created) == (3, 1, NUM_RUNS - 4)
    assert view(database) == view(published)


@pytest.mark.fault("two: publishers of one tracker", outcome="one waits for the other; every run is published once")
def test_two_publishers_at_once_publish_once(published, database, suite):
    summaries = []
    threads = [
        threading.Thread(target=lambda: summaries.append(publish(**suite, tracking_uri=f"sqlite:///{database}")))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(summary.created for summary in summaries) == [0, NUM_RUNS]
    assert view(database) == view(published)


def test_a_second_publisher_waits_and_says_so(database, suite, monkeypatch):
    said = io.StringIO()  # capfd loses what is written while it is read
    monkeypatch.setattr(sys, "stderr", said)
    with database.with_name("mlflow.db.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("process 7 on elsewhere")
        lock.flush()
        publisher = threading.Thread(target=publish, kwargs={**suite, "tracking_uri": f"sqlite:///{database}"})
        publisher.start()
        deadline = time.monotonic() + 120
        while "waiting" not in said.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert "waiting for another publish (process 7 on elsewhere) to finish" in said.getvalue()
        assert query(database, "SELECT * FROM runs") == []
    publisher.join()
    assert len(query(database, "SELECT * FROM runs")) == NUM_RUNS


@pytest.mark.fault(
    "edited: a result, after it was published", outcome="what was published is marked as superseded; nothing is mixed"
)
def test_a_changed_result_supersedes_and_is_never_mixed(published, database, suite):
    changed = copy.deepcopy(suite["results"])
    changed[1][0]["metrics"]["task_end/accuracy"]["values"][1][0] = 0.123
    publish(**suite, tracking_uri=f"sqlite:///{database}")
    summary = publish(**{**suite, "results": changed}, tracking_uri=f"sqlite:///{database}")
    assert (summary.created, summary.superseded) == (2, 2)
    gone = {k: v for k, v in view(database, "deleted").items() if k != "experiments"}
    key = ("nap_bench/laptop/arms", "nap · lr=0.1 · seed 0")
    assert set(gone) == {key, (key[0], "nap · lr=0.1 · 2 seeds")}, "the seed, and the cell that it is part of"
    old = gone[key]
    assert dict(old[1]["tags"])["nap.superseded"] == "true"
    assert old[1]["metrics"] == view(published)[key][1]["metrics"], "nothing was added to the old run"
    now = view(database)[key][1]["metrics"]
    assert [value for name, step, _, value, _ in now if (name, step) == ("task_end/accuracy", 200)] == [0.123]
    assert len(now) == len(old[1]["metrics"])


def test_only_the_file_that_changed_is_uploaded_again(database, suite, tmp_path):
    report = tmp_path / "index.html"
    report.write_text("first")
    publish(**{**suite, "report": report}, tracking_uri=f"sqlite:///{database}")
    report.write_text("second")
    summary = publish(**{**suite, "report": report}, tracking_uri=f"sqlite:///{database}")
    assert (summary.created, summary.uploaded) == (0, 2), "one report, in the summaries of two exhibits"
    assert view(database)["nap_bench/laptop/arms", "summary · arms · laptop"][2]["report/index.html"] == b"second"


def test_rows_written_at_once_are_those_of_mlflows_own_api(published, database, suite, monkeypatch):
    tracker = publishing._Tracker
    monkeypatch.setattr(tracker, "_log_into_database", tracker._log_to_server)
    publish(**suite, tracking_uri=f"sqlite:///{database}")
    assert view(database) == view(published)


def test_a_long_curve_is_thinned_and_keeps_its_ends():
    curve = [(step, float(step)) for step in range(12_345)]
    thinned = publishing._thinned(curve)
    assert len(thinned) == len(set(thinned)) == publishing.MAX_POINTS
    assert (thinned[0], thinned[-1]) == (curve[0], curve[-1])
    assert publishing._thinned(curve[: publishing.MAX_POINTS]) == curve[: publishing.MAX_POINTS]


def test_two_results_for_one_seed_of_an_arm_are_refused(suite, database):
    twin = copy.deepcopy(suite["results"][1])
    twin[0]["run_id"] = "random_labels.mlp.nap-3"
    with pytest.raises(ValueError, match="found random_labels.mlp.nap-2 and random_labels.mlp.nap-3"):
        publish(**{**suite, "results": [*suite["results"], twin]}, tracking_uri=f"sqlite:///{database}")
    assert query(database, "SELECT * FROM runs") == []


@pytest.mark.fault(
    "tracker: down, or its database is another file", outcome="one line; results and that file are untouched"
)
def test_a_tracker_that_cannot_be_used_is_one_clear_line(suite, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    (tmp_path / "notes.db").write_text("not a database, " * 100)
    for uri in (f"sqlite:///{tmp_path}/notes.db", "http://127.0.0.1:9"):
        with pytest.raises(TrackerError) as caught:
            publish(**suite, tracking_uri=uri)
        assert str(caught.value).startswith(f"MLflow at {uri} cannot be used: ")
        assert "\n" not in str(caught.value)
        assert "Results are untouched" in str(caught.value) and "nap-bench publish" in str(caught.value)
    assert (tmp_path / "notes.db").read_text() == "not a database, " * 100


def test_whoever_waits_is_told(capfd):
    with heartbeat(lambda: "still here", seconds=0.01):
        time.sleep(0.2)
    assert capfd.readouterr().err.count("still here\n") >= 2


def test_mlflow_is_imported_late_and_reports_to_nobody():
    code = """
import os, sys
import nap_bench.tracking.publish, nap_bench.tracking.dashboard
assert "mlflow" not in sys.modules and "torch" not in sys.modules
assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == os.environ["DO_NOT_TRACK"] == "true"
"""
    unset = ("MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK")
    environment = {key: value for key, value in os.environ.items() if key not in unset}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
