"""A PostgreSQL server as tracker: a real one, started here where its programs are."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
from unit.test_publish import result, write_exhibit

from nap_bench.tracking.publish import publish

PROGRAMS = max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name), default=None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAMS is None, reason="PostgreSQL's programs are not installed (Debian: postgresql)"),
]


def as_somebody(*command: object, home: Path) -> None:
    """PostgreSQL refuses to run as root."""
    drop = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"] if os.getuid() == 0 else []
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "LC_ALL": "C.UTF-8"}
    subprocess.run([*drop, *map(str, command)], check=True, env=environment, stdout=subprocess.DEVNULL, cwd=home)


@pytest.fixture(scope="module")
def server():
    """URI of an empty database on loopback, in a folder that another user may enter."""
    home = Path(f"/tmp/nap_bench-postgres-{os.getpid()}")
    home.mkdir(mode=0o700)
    if os.getuid() == 0:
        shutil.chown(home, "nobody", "nogroup")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    try:
        as_somebody(PROGRAMS / "initdb", "-D", home / "data", "-U", "nap", "-A", "trust", "--no-sync", home=home)
        options = f"-p {port} -k {home} -c listen_addresses=127.0.0.1 -c fsync=off"
        as_somebody(
            PROGRAMS / "pg_ctl", "-D", home / "data", "-w", "-l", home / "log", "-o", options, "start", home=home
        )
        as_somebody(PROGRAMS / "createdb", "-h", "127.0.0.1", "-p", port, "-U", "nap", "mlflow", home=home)
        yield f"postgresql://nap@127.0.0.1:{port}/mlflow"
        as_somebody(PROGRAMS / "pg_ctl", "-D", home / "data", "-m", "immediate", "stop", home=home)
    finally:
        shutil.rmtree(home)


def test_postgresql_is_as_good_a_tracker_as_sqlite_and_publishing_twice_adds_nothing(server, tmp_path, monkeypatch):
    from mlflow import MlflowClient

    monkeypatch.chdir(tmp_path)  # artifacts of a database without a folder lie in the working directory
    (tmp_path / "index.html").write_text("<h1>Report</h1>")
    plain, nap = result("mlp.baseline-1", None, 0.1, diverged_at=200), result("mlp.nap-2", "nap", 0.1)
    suite = {
        "results": [(plain, [("arms", "plain", "lr=0.1")]), (nap, [("arms", "nap", "lr=0.1")])],
        "exhibits": {"arms": write_exhibit(tmp_path, "arms")},
        "report": tmp_path / "index.html",
        "scale": "laptop",
        "tracking_uri": server,
    }
    first, again = publish(**suite), publish(**suite)
    assert (first.created, first.uploaded) == (7, 4)
    assert (again.unchanged, again.created, again.uploaded) == (7, 0, 0)
    client = MlflowClient(server)
    experiment = client.get_experiment_by_name("nap_bench/laptop/arms").experiment_id
    runs = {run.info.run_name: run for run in client.search_runs([experiment])}
    cell = runs["nap · lr=0.1 · 2 seeds"]
    assert cell.data.metrics["iqm/last_accuracy"] == 0.625
    assert cell.inputs.dataset_inputs[0].dataset.name == "digits"
    curve = client.get_metric_history(runs["nap · lr=0.1 · seed 1"].info.run_id, "task_end/accuracy")
    assert [point.step for point in curve] == [100, 200, 300]
