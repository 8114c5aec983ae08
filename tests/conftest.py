"""What tests share. A test that could not run is named in the last line, and fails where everything must run."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: bitwise laws hold at one thread
os.environ.update(MLFLOW_DISABLE_TELEMETRY="true", DO_NOT_TRACK="true")

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def pytest_addoption(parser):
    parser.addoption(
        "--require-browser", action="store_true", help="fail where a browser is wanted and none is installed"
    )
    parser.addoption("--record-golden", action="store_true", help="record golden losses of versions that have none")
    parser.addoption(
        "--record-faults", action="store_true", help="run the tests of faults, slow ones too; write docs/reliability.md"
    )


def pytest_configure(config):
    if config.getoption("--record-faults"):
        config.option.markexpr = "fault and not slurm and not apptainer"
        if not hasattr(config, "workerinput"):
            config.pluginmanager.register(RecordFaults(config), "record_faults")


class RecordFaults:
    """What became of the tests of faults goes to the page of faults."""

    def __init__(self, config):
        from faults.page import Recorder

        self.config, self.recorder = config, Recorder()

    def pytest_runtest_logreport(self, report):
        self.recorder.add(report)

    def pytest_terminal_summary(self, terminalreporter):
        terminalreporter.write_line(self.recorder.write())


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_data_dir() -> Path:
    """The data_dir with real files that the environment names; skips where it names none."""
    if not (data_dir := os.environ.get("NAP_BENCH_DATA_DIR")):
        pytest.skip("NAP_BENCH_DATA_DIR names no data_dir with real files")
    return Path(data_dir)


@pytest.fixture
def browser(request) -> str:
    """Path of an installed browser; skips without one, or fails with --require-browser."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        reason = f"no browser installed ({', '.join(BROWSERS)})"
        (pytest.fail if request.config.getoption("--require-browser") else pytest.skip)(reason)
    return found


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config):
    """The last line names what was skipped and why."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter else []
    if skipped:
        named = {
            f"{report.nodeid.split('::')[-1]} ({report.longrepr[2].removeprefix('Skipped: ')})" for report in skipped
        }
        reporter.write_line(f"not run: {'; '.join(sorted(named))}")
