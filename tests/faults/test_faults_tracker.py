"""A tracker that is locked, slow, deleted or full: results are untouched, and the next publish makes it whole."""

from __future__ import annotations

import json
import shutil
import socket
import sqlite3
import threading
import time
from pathlib import Path

import pytest
from faults import toy
from unit import test_publish
from workflow import small

from nap_bench.tracking import TrackerError
from nap_bench.tracking import publish as publishing
from nap_bench.tracking.publish import publish

suite = test_publish.suite


@pytest.fixture(scope="module")
def empty(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("empty") / "mlflow.db"
    publishing._create_database(path)
    return path


@pytest.fixture
def database(empty, tmp_path) -> Path:
    return Path(shutil.copy(empty, tmp_path / "mlflow.db"))


def refused(suite: dict, uri: str) -> str:
    with pytest.raises(TrackerError) as caught:
        publish(**suite, tracking_uri=uri)
    said = str(caught.value)
    assert "\n" not in said and "nap-bench publish" in said
    return said


@pytest.mark.fault(
    "tracker: its database is locked by another program for a while", outcome="the publisher waits for it"
)
def test_a_database_that_is_locked_for_a_moment_is_waited_for(database, suite):
    other = sqlite3.connect(database, check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    release = threading.Timer(1.5, lambda: (other.rollback(), other.close()))
    release.start()
    assert publish(**suite, tracking_uri=f"sqlite:///{database}").created > 0
    release.join()


@pytest.mark.fault(
    "tracker: its database stays locked",
    outcome="one line after some seconds; publishing again, once it is free, makes it whole",
)
def test_a_database_that_stays_locked_is_one_line_and_nothing_is_half_written(database, suite):
    other, began = sqlite3.connect(database), time.monotonic()
    other.execute("BEGIN EXCLUSIVE")
    assert "database is locked" in refused(suite, f"sqlite:///{database}")
    assert time.monotonic() - began < 60
    other.rollback()
    other.close()
    assert test_publish.query(database, "SELECT * FROM runs") == []
    assert publish(**suite, tracking_uri=f"sqlite:///{database}").created > 0


@pytest.mark.fault(
    "tracker: a server that takes the connection and never answers",
    outcome="one line after the time-out; results are untouched",
)
def test_a_server_that_never_answers_is_one_line(suite, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        said = refused(suite, f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert "Results are untouched" in said


@pytest.mark.fault(
    "tracker: an experiment of ours was deleted in MLflow",
    outcome="one line with the command that brings it back, and then all is there",
)
def test_an_experiment_deleted_in_mlflow_is_named_with_the_command_that_restores_it(database, suite):
    from mlflow import MlflowClient

    uri = f"sqlite:///{database}"
    publish(**suite, tracking_uri=uri)
    client = MlflowClient(uri)
    gone = client.get_experiment_by_name("nap_bench/laptop/arms").experiment_id
    client.delete_experiment(gone)
    with pytest.raises(TrackerError, match=f"mlflow experiments restore --experiment-id {gone}"):
        publish(**suite, tracking_uri=uri)
    client.restore_experiment(gone)
    again = publish(**suite, tracking_uri=uri)
    assert again.created == 0 and again.total == again.unchanged + again.resumed


@pytest.mark.fault(
    "tracker: its database is deleted", outcome="the next publish makes it anew from the results, the same as before"
)
def test_a_deleted_database_is_made_anew(database, suite):
    first = publish(**suite, tracking_uri=f"sqlite:///{database}")
    seen = test_publish.view(database)
    shutil.rmtree(database.parent)
    assert publish(**suite, tracking_uri=f"sqlite:///{database}").created == first.created
    assert test_publish.view(database) == seen


@pytest.mark.fault(
    "disk: full while the tracker's database is written", outcome="one line; publishing again makes it whole"
)
def test_a_database_that_cannot_grow_is_one_line(database, suite, capfd):
    import resource

    uri = f"sqlite:///{database}"

    def work() -> int:
        limit = database.stat().st_size + 4096
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            publish(**suite, tracking_uri=uri)
        except TrackerError as error:
            print(f"<<{error}>>", flush=True)
            return 7
        return 0

    assert toy.ended(toy.forked(work)) == 7
    (said,) = (line for line in capfd.readouterr().out.splitlines() if line.startswith("<<"))
    assert said.startswith(f"<<MLflow at {uri} cannot be used: ") and said.endswith(">>")
    assert publish(**suite, tracking_uri=uri).done == publish(**suite, tracking_uri=uri).unchanged


@pytest.mark.slow
@pytest.mark.fault(
    "tracker: down, while a suite runs",
    outcome="the suite trains and makes its report all the same; publishing alone fails, and is made up for by the next start",
)
@pytest.mark.fault(
    "paths: the suite's folder has spaces, accents and characters of three scripts in its name",
    outcome="nothing else happens there",
)
def test_a_suite_without_its_tracker_in_a_folder_of_any_name_has_its_report(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    folder = tmp_path / "größe 数据 и 'ещё'"
    folder.mkdir()
    planned = toy.lines(2)
    small.write_plan(folder, planned)
    down = small.snakemake(folder, tracking_uri="http://127.0.0.1:9")
    assert down.returncode != 0 and "MLflow at http://127.0.0.1:9 cannot be used" in down.stdout, down.stdout
    html = (folder / "reports" / "laptop" / "index.html").read_text()
    assert all(line["run_id"] in html for line in planned) and "Traceback" not in down.stdout
    up = small.snakemake(folder)
    assert up.returncode == 0 and "steps/s" not in up.stdout, up.stdout
    published = json.loads((folder / "results" / "laptop" / "published.json").read_text())
    assert published["runs"] == sorted(line["run_id"] for line in planned)
