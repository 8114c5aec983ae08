"""MLflow: results copied into a tracker to look at (`publish`) and a server to look with (`dashboard`).

Nothing here is needed to train, to claim or to report: a tracker that is down costs a warning. mlflow is imported late.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

DEFAULT_URI = "sqlite:///mlflow.db"
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
"""Kinds of tracking URI that name a database; the others name a server."""

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("MLFLOW_CONFIGURE_LOGGING", "false")


class TrackerError(OSError):
    """The tracker cannot be used. One line: what happened, where, what to do. Results are never touched."""


def is_database(uri: str) -> bool:
    return uri.partition(":")[0].partition("+")[0] in DATABASES


def sqlite_file(uri: str) -> Path | None:
    """The file behind `sqlite:///relative` or `sqlite:////absolute`; None for every other tracker."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def artifacts_folder(uri: str) -> Path:
    """Where artifacts of a database lie: `mlartifacts` beside an SQLite file, else in the working directory.

    The database names them relative to this folder (`mlflow-artifacts:/...`), so both can be moved together.
    """
    path = sqlite_file(uri)
    return (path.parent if path else Path()) / "mlartifacts"


@contextmanager
def heartbeat(line: Callable[[], str], seconds: float = 8.0) -> Iterator[None]:
    """Print `line()` on stderr every few seconds until the block ends."""
    done = threading.Event()

    def beat() -> None:
        while not done.wait(seconds):
            print(line(), file=sys.stderr, flush=True)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
