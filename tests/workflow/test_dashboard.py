"""The dashboard, started for real: its pages in a headless browser, its URL as a tracker, its end."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from unit.test_publish import result, write_exhibit

from nap_bench.tracking import TrackerError
from nap_bench.tracking.dashboard import serve
from nap_bench.tracking.publish import publish

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --window-size=1600,1000 --virtual-time-budget=20000"
).split()


def start(uri: str) -> tuple[subprocess.Popen, str]:
    """A dashboard in a process of its own, and the line it printed."""
    code = f"from nap_bench.tracking.dashboard import serve; serve({uri!r})"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    return process, process.stdout.readline().strip()


def descendants(pid: int) -> list[int]:
    children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return children + [grandchild for child in children for grandchild in descendants(child)]


def listened_on(pids: list[int]) -> set[str]:
    """Addresses of the sockets on which these processes take connections, as /proc writes them."""
    links = [link for pid in pids for link in Path(f"/proc/{pid}/fd").iterdir()]
    inodes = {os.readlink(link).removeprefix("socket:[").rstrip("]") for link in links if link.is_symlink()}
    rows = [row.split() for name in ("tcp", "tcp6") for row in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    return {row[1].partition(":")[0] for row in rows if row[3] == "0A" and row[9] in inodes}


@pytest.fixture(scope="module")
def suite(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("suite")
    (folder / "index.html").write_text("<h1>Report</h1>")
    plain, nap = result("mlp.baseline-1", None, 0.1, diverged_at=200), result("mlp.nap-2", "nap", 0.1)
    return {
        "results": [(plain, [("arms", "plain", "lr=0.1")]), (nap, [("arms", "nap", "lr=0.1")])],
        "exhibits": {"arms": write_exhibit(folder, "arms")},
        "report": folder / "index.html",
    }


@pytest.fixture(scope="module")
def database(suite, tmp_path_factory) -> str:
    uri = f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"
    publish(**suite, scale="laptop", tracking_uri=uri)
    return uri


@pytest.fixture(scope="module")
def dashboard(database):
    """URL of a dashboard over a small published suite, without the page. SIGTERM ends it."""
    process, line = start(database)
    yield line.partition("/#")[0]
    process.terminate()
    assert process.wait(30) == 0


def runs_of(url: str, scale: str) -> tuple[str, dict[str, str]]:
    """The experiment's id and its runs, name -> id."""
    from mlflow import MlflowClient

    client = MlflowClient(url)
    experiment = client.get_experiment_by_name(f"nap_bench/{scale}/arms").experiment_id
    return experiment, {run.info.run_name: run.info.run_id for run in client.search_runs([experiment])}


def browse(browser: str, url: str, tmp_path: Path, *flags: str) -> str:
    command = [browser, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", *flags, url]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.browser
def test_the_run_table_opens_in_a_browser_and_names_every_seed(browser, dashboard, tmp_path):
    experiment, runs = runs_of(dashboard, "laptop")
    page = f"{dashboard}/#/experiments/{experiment}/runs?viewStateShareKey=seeds"
    seen = browse(browser, page, tmp_path, "--dump-dom")
    assert len(runs) == 7
    for name in runs:
        assert (name in seen) == ("· seed " in name), "the seeds, and nothing else"
    assert "Group by: nap.cell" in re.sub(r"<[^>]*>", "", seen), "the saved view is understood by this MLflow"


@pytest.mark.browser
def test_the_page_of_a_diverged_seed_opens_in_a_browser(browser, dashboard, tmp_path):
    experiment, runs = runs_of(dashboard, "laptop")
    name = "plain · lr=0.1 · seed 1 · diverged at step 200"
    page = f"{dashboard}/#/experiments/{experiment}/runs/{runs[name]}"
    seen = browse(browser, page, tmp_path, "--dump-dom")
    for expected in (name, "task_end/accuracy", "final/diverged", "benchmark.steps_per_task", "git checkout 0123abc"):
        assert expected in seen
    browse(browser, page, tmp_path, f"--screenshot={tmp_path / 'page.png'}")
    image = (tmp_path / "page.png").read_bytes()
    assert image.startswith(b"\x89PNG") and len(image) > 20_000, "not an empty page"


def test_a_server_is_as_good_a_tracker_as_a_database(dashboard, suite):
    known = publish(**suite, scale="laptop", tracking_uri=dashboard)
    assert (known.unchanged, known.created, known.uploaded) == (7, 0, 0), "what went into the database is recognised"
    new = publish(**suite, scale="workstation", tracking_uri=dashboard)
    again = publish(**suite, scale="workstation", tracking_uri=dashboard)
    assert (new.created, new.uploaded) == (7, 4)
    assert (again.unchanged, again.created, again.uploaded) == (7, 0, 0)
    for scale in ("laptop", "workstation"):
        summary = runs_of(dashboard, scale)[1][f"summary · arms · {scale}"]
        with urllib.request.urlopen(f"{dashboard}/get-artifact?run_id={summary}&path=report/index.html") as answer:
            assert answer.read() == b"<h1>Report</h1>"


@pytest.mark.browser
def test_the_view_of_methods_and_the_chart_and_compare_pages_show_what_was_published(browser, dashboard, tmp_path):
    experiment, runs = runs_of(dashboard, "laptop")
    page = f"{dashboard}/#/experiments/{experiment}/runs?viewStateShareKey=cells"
    seen = browse(browser, page, tmp_path, "--dump-dom")
    for name in runs:
        assert (name in seen) == name.endswith("2 seeds"), "the cells, and nothing else"
    assert "iqm/last_accuracy" in seen and "0.625" in seen
    chart = browse(browser, f"{page}&compareRunsMode=CHART", tmp_path, "--dump-dom")
    assert "iqm/last_accuracy" in chart and "nap · lr=0.1 · 2 seeds" in chart
    both = [runs[f"{arm} · lr=0.1 · 2 seeds"] for arm in ("nap", "plain")]
    place = f"{dashboard}/#/compare-runs?runs={json.dumps(both)}&experiments={json.dumps([experiment])}"
    compared = browse(browser, place.replace('"', "%22"), tmp_path, "--dump-dom")
    assert "Comparing 2 Runs" in compared and all(f"{arm} · lr=0.1 · 2 seeds" in compared for arm in ("nap", "plain"))


def test_the_page_about_dashboards_reads_the_store_as_it_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    nap, plain = result("mlp.nap-2", "nap", 0.1), result("mlp.baseline-1", None, 0.1)
    publish(
        [(nap, [("fig5_continual", "nap", "lr=0.1")]), (plain, [("fig5_continual", "plain", "lr=0.1")])],
        {"fig5_continual": write_exhibit(tmp_path, "fig5_continual", "average_online_accuracy")},
        scale="laptop",
    )
    page = Path(__file__).parents[2] / "docs" / "dashboards.md"
    (code,) = re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    found: dict = {}
    exec(code, found)
    assert capsys.readouterr().out.startswith("nap · lr=0.1 0.625\nmade of digits abab")
    assert [point.step for point in found["curve"]] == [100, 200, 300]
    for picture in re.findall(r"\]\((dashboards/\S+)\)", page.read_text()):
        assert (page.parent / picture).read_bytes().startswith(b"\x89PNG"), picture


@pytest.mark.fault(
    "server: who can reach the dashboard", outcome="this machine alone: all sockets that it listens on are loopback's"
)
@pytest.mark.fault("killed: the dashboard, by Ctrl-C", outcome="nothing that it started lives on")
def test_ctrl_c_stops_all_that_was_started(dashboard, database):
    process, line = start(database)
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/#/experiments\?workflowType=machine_learning", line)
    assert line.partition("/#")[0] != dashboard, "a free port"
    started = descendants(process.pid)
    assert started
    assert listened_on([process.pid, *started]) == {"0100007F"}, "127.0.0.1 and nothing else"
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0
    deadline = time.monotonic() + 10
    while any(os.path.exists(f"/proc/{pid}") for pid in started) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [pid for pid in started if os.path.exists(f"/proc/{pid}")]


def test_without_a_database_it_says_what_to_run_first(tmp_path):
    with pytest.raises(TrackerError, match="Run `make reproduce` first"):
        serve(f"sqlite:///{tmp_path}/mlflow.db")


@pytest.mark.fault("server: a port that is in use", outcome="refused in one line")
def test_a_port_in_use_is_refused_by_name(dashboard, database):
    taken = int(dashboard.rpartition(":")[2])
    with pytest.raises(TrackerError, match=f"Port {taken} of 127.0.0.1 cannot be used"):
        serve(database, port=taken)
