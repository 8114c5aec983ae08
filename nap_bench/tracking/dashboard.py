"""Serve MLflow's pages for the published results, on this machine only."""

from __future__ import annotations

import getpass
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from typing import Any

from nap_bench.tracking import DEFAULT_URI, TrackerError, artifacts_folder, heartbeat, is_database, sqlite_file
from nap_bench.tracking.publish import VIEWS

_MODE = "workflowType=machine_learning"
"""MLflow's pages for training runs; its default is those for language model applications."""
_START_SECONDS = 120
_STOP_SECONDS = 10


def serve(tracking_uri: str = DEFAULT_URI, port: int | None = None) -> None:
    """Start `mlflow server` on 127.0.0.1, print its URL once it answers, and stay until Ctrl-C or SIGTERM.

    Opens no browser; the line for ssh that brings the pages to another machine is printed beside the URL.

    port: a free one by default. A tracking URI that names a server is printed as it is.
    Raises TrackerError if there is no database yet, if the port is taken, or if the server does not start.
    """
    if not is_database(tracking_uri):
        print(f"{tracking_uri} (a server already: nothing to start)", flush=True)
        return
    path = sqlite_file(tracking_uri)
    if path and not path.exists():
        raise TrackerError(
            f"There is no MLflow database at {path.absolute()}: nothing was published yet. Run `make reproduce` first "
            f"(or `nap-bench publish`, if there are results)."
        )
    port = _free_port(port)
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", tracking_uri, "--artifacts-destination", str(artifacts_folder(tracking_uri))]
    before = {number: signal.signal(number, _stop) for number in (signal.SIGTERM, signal.SIGINT)}
    with tempfile.TemporaryFile("w+") as log:
        began = time.monotonic()
        print("dashboard: starting MLflow's server, about ten seconds", file=sys.stderr, flush=True)
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        # A session of its own, so that the server and all its workers can be stopped together.
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        try:
            with heartbeat(lambda: f"dashboard: still starting ({time.monotonic() - began:.0f} s)", 5):
                _wait_until_it_answers(url, server, log, began)
            print(f"{url}/#/experiments?{_MODE}", flush=True)
            for name, page in _grouped_pages(url):
                print(f"dashboard: {name}, methods compared: {page}", file=sys.stderr)
            there = f"{getpass.getuser()}@{socket.gethostname()}"
            print(f"dashboard: from another machine: ssh -N -L {port}:127.0.0.1:{port} {there}", file=sys.stderr)
            print("dashboard: Ctrl-C stops it", file=sys.stderr, flush=True)
            server.wait()
            raise TrackerError(f"MLflow's server stopped by itself (exit status {server.returncode}): {_tail(log)}")
        except KeyboardInterrupt:
            print("dashboard: stopped", file=sys.stderr, flush=True)
        finally:
            for number in before:
                signal.signal(number, signal.SIG_IGN)
            _stop_group(server)
            for number, handler in before.items():
                signal.signal(number, handler)


def _stop(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _free_port(port: int | None) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port or 0))
        except OSError as error:
            raise TrackerError(
                f"Port {port} of 127.0.0.1 cannot be used ({error.strerror}). Leave it out for a free one."
            ) from error
        return probe.getsockname()[1]


def _wait_until_it_answers(url: str, server: subprocess.Popen[Any], log: Any, began: float) -> None:
    while time.monotonic() - began < _START_SECONDS:
        if server.poll() is not None:
            raise TrackerError(f"MLflow's server did not start (exit status {server.returncode}): {_tail(log)}")
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(0.2)
    raise TrackerError(f"MLflow's server did not answer at {url} within {_START_SECONDS} s: {_tail(log)}")


def _tail(log: Any) -> str:
    log.seek(0)
    lines = [line.strip() for line in log.read().splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


def _grouped_pages(url: str) -> list[tuple[str, str]]:
    """Name and address of each experiment of ours, with the saved view of arms over their seeds."""
    request = urllib.request.Request(
        f"{url}/api/2.0/mlflow/experiments/search",
        data=json.dumps({"max_results": 1000, "filter": "name LIKE 'nap_bench/%'"}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        experiments = json.load(answer).get("experiments", [])
    view = f"runs?viewStateShareKey={VIEWS[0]}&compareRunsMode=CHART&{_MODE}"
    return sorted((e["name"], f"{url}/#/experiments/{e['experiment_id']}/{view}") for e in experiments)


def _stop_group(server: subprocess.Popen[Any]) -> None:
    """SIGTERM to the server and everything it started, then SIGKILL to what is left."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(server.pid, number)
            server.wait(_STOP_SECONDS)
            deadline = time.monotonic() + _STOP_SECONDS
            while time.monotonic() < deadline:
                os.killpg(server.pid, 0)
                time.sleep(0.1)
        except subprocess.TimeoutExpired:
            continue
        except ProcessLookupError:
            return
