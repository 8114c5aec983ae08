"""The run store: what a run leaves on disk, who may write it, and the one small result made from it. Standard library only.

    store/<run_id>/   spec.json  metrics.csv  checkpoint  env.json  done.json | failed.json  lease.json  log
    results/runs/<run_id>.json   made whole from a complete folder; all that scores, claims, report and MLflow read

The store is no output of the workflow, so resuming, retrying, requeueing and sharing runs between scales are harmless. A file
is written under a temporary name of its writer, flushed, and renamed: it is whole or absent. What a killed writer left is removed
by the next one that writes the same file.
"""

from __future__ import annotations

import csv
import errno
import json
import math
import os
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from nap_bench.spec import PROTOCOL, Run

FORMAT = 1
STALE_SECONDS = 120.0
"""A lease whose heartbeat is older than this belongs to a dead process."""
BEAT_SECONDS = 5.0
LONGEST_NAME = 200
"""Bytes of a run's name. File systems take 255, and a file has a longer name while it is written."""
SPARE_BYTES = 100 * 2**20
"""Free space without which no run starts."""


def write_whole(
    path: Path, data: bytes | str | Callable[[IO[bytes]], None], check: Callable[[], None] | None = None
) -> None:
    """Replace a file by new content, whole or not at all. A full disk is a clear OSError and leaves the old content.

    data: the content, or what writes it to an open file, so that gigabytes need not lie in memory twice.  check: called when all is
    on the disk and only the exchange is left: what it raises leaves the old content.
    """
    _make_folder(path.parent)
    host = socket.gethostname()
    for left in path.parent.glob(f".{path.name}.{host}.*.tmp"):
        if not _process_exists(int(left.name.split(".")[-2])):
            left.unlink(missing_ok=True)
    temporary = path.with_name(f".{path.name}.{host}.{os.getpid()}.tmp")
    written = 0
    try:
        with open(temporary, "wb") as file:
            if callable(data):
                data(file)
            else:
                file.write(data.encode() if isinstance(data, str) else data)
            written = file.tell()
            file.flush()
            os.fsync(file.fileno())
        if check:
            check()
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise explain_os_error(error, path, len(data) if isinstance(data, (bytes, str)) else written) from None
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise explain_os_error(error, path, 0) from None


def explain_os_error(error: OSError, path: Path, wanted_bytes: int) -> OSError:
    """The same error, saying what was wanted, what was found, where and what to do."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
        return error
    free = shutil.disk_usage(next(folder for folder in path.absolute().parents if folder.exists())).free
    mend = "make room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "make it writable, or name another folder,"
    return OSError(
        error.errno,
        f"Cannot write {path}: {os.strerror(error.errno)}. Wanted {wanted_bytes / 2**20:.1f} MiB, found "
        f"{free / 2**20:.0f} MiB free. Nothing is lost: {mend} and start again, the run goes on from its last checkpoint",
    )


def as_json(value: Any) -> str:
    """JSON text that is equal for equal values, one line per top-level key."""
    if not isinstance(value, dict):
        return json.dumps(value, sort_keys=True, allow_nan=False)
    lines = [f"{json.dumps(k)}: {json.dumps(value[k], sort_keys=True, allow_nan=False)}" for k in sorted(value)]
    return "{\n" + ",\n".join(lines) + "\n}\n"


class RunFolder:
    """Paths of one run in the store."""

    def __init__(self, store: Path | str, run: Run):
        self.run = run
        self.path = Path(store) / run.run_id
        self.spec = self.path / "spec.json"
        self.metrics = self.path / "metrics.csv"
        self.checkpoint = self.path / "checkpoint"
        self.environment = self.path / "env.json"
        self.done = self.path / "done.json"
        self.failed = self.path / "failed.json"
        self.lease = self.path / "lease.json"
        self.log = self.path / "log"

    @property
    def is_complete(self) -> bool:
        return self.done.exists()

    def open(self) -> None:
        """Make the folder, or refuse one that holds another run under this name."""
        if len(self.run.run_id) > LONGEST_NAME:
            raise ValueError(
                f"The name {self.run.run_id[:60]}... has {len(self.run.run_id)} bytes, a file system wants at most {LONGEST_NAME}: "
                f"stack fewer methods."
            )
        _make_folder(self.path)
        free = shutil.disk_usage(self.path).free
        if free < SPARE_BYTES:
            raise OSError(
                errno.ENOSPC,
                f"Disk nearly full at {self.path.parent}: wanted {SPARE_BYTES // 2**20} MiB free, found "
                f"{free // 2**20} MiB. Make room, or set store_dir in config/config.yaml to another disk",
            )
        text = as_json(self.run.as_dict())
        if self.spec.exists() and self.spec.read_text() != text:
            raise ValueError(
                f"{self.spec} describes another run than {self.run.run_id}. It was edited or damaged: move the folder "
                f"away and start again."
            )
        write_whole(self.spec, text)


class LeaseLost(RuntimeError):
    """Another process took this run over; this one must stop writing."""


class Lease:
    """The right to train one run: a file with host, process and progress; its modification time is the heartbeat.

    A second process waits. A lease is stale when its process is gone (same host) or its heartbeat is STALE_SECONDS old.
    """

    def __init__(self, path: Path):
        self.path = path
        self.token = uuid.uuid4().hex
        self._last = 0.0

    def _content(self, **progress: Any) -> str:
        return json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "token": self.token, **progress})

    def try_acquire(self) -> bool:
        """Take the lease if it is free or stale."""
        for _ in range(2):
            try:
                handle = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            except FileExistsError:
                if not self._remove_if_stale():
                    return False
                continue
            try:
                with os.fdopen(handle, "w") as file:
                    file.write(self._content())
            except OSError as error:  # a full disk: an empty lease would keep everybody waiting
                self.path.unlink(missing_ok=True)
                raise explain_os_error(error, self.path, 100) from None
            return True
        return False

    def holder(self, path: Path | None = None) -> dict[str, Any]:
        """Who holds it; empty if nobody or unreadable (being written, or its writer was killed)."""
        try:
            return json.loads((path or self.path).read_text())
        except (FileNotFoundError, ValueError):
            return {}

    def age_seconds(self) -> float:
        """Seconds since the last heartbeat, by the clock of the file system."""
        probe = self.path.with_name(f".{self.token}.clock")
        probe.touch()
        try:
            return probe.stat().st_mtime - self.path.stat().st_mtime
        except FileNotFoundError:
            return 0.0
        finally:
            probe.unlink()

    def _remove_if_stale(self) -> bool:
        holder = self.holder()
        gone = holder.get("host") == socket.gethostname() and not _process_exists(holder["pid"])
        beats = abs(self.age_seconds()) < STALE_SECONDS  # one of the future is stale too: the clock was put back
        if beats and not gone:
            return False
        aside = self.path.with_name(f".{self.token}.stale")
        try:
            os.rename(self.path, aside)
        except FileNotFoundError:
            return True
        if self.holder(aside).get("token") != holder.get("token"):
            os.rename(aside, self.path)  # renewed between the look and the rename: give it back
            return False
        aside.unlink()
        return True

    def check(self) -> None:
        """Raise LeaseLost if somebody else took over."""
        if self.holder().get("token") != self.token:
            raise LeaseLost(
                f"{self.path}: taken over by {self.holder() or 'nobody'}; this process stops without writing."
            )

    def beat(self, **progress: Any) -> None:
        """Renew the heartbeat, at most every BEAT_SECONDS. Raises LeaseLost if somebody else took over."""
        now = time.monotonic()
        if now - self._last < BEAT_SECONDS:
            return
        self._last = now
        self.check()
        aside = self.path.with_name(f".{self.token}.beat")
        try:
            aside.write_text(self._content(**progress))
            os.replace(aside, self.path)
        except OSError as error:
            aside.unlink(missing_ok=True)
            raise explain_os_error(error, self.path, 100) from None

    def release(self) -> None:
        if self.holder().get("token") == self.token:
            self.path.unlink(missing_ok=True)


def _process_exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:  # a zombie has ended
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, NotADirectoryError):
        return not Path("/proc/self/stat").exists()


@contextmanager
def leased(folder: RunFolder) -> Iterator[Lease | None]:
    """The lease of a run while the block runs, or None if another process holds it."""
    lease = Lease(folder.lease)
    if not lease.try_acquire():
        yield None
        return
    try:
        yield lease
    finally:
        lease.release()


def result_path(results: Path | str, run_id: str) -> Path:
    return Path(results) / "runs" / f"{run_id}.json"


def make_result(folder: RunFolder, results: Path | str) -> Path:
    """Make results/runs/<run_id>.json from a complete folder. Equal folders give equal bytes, timings aside."""
    path = result_path(results, folder.run.run_id)
    write_whole(path, as_json(result_of(folder)))
    return path


def result_of(folder: RunFolder) -> dict[str, Any]:
    """What a complete folder says."""
    try:
        done, environment, metrics = (
            json.loads(folder.done.read_text()),
            json.loads(folder.environment.read_text()),
            _pivot(folder.metrics, folder.run.seeds),
        )
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"The store's entry {folder.path} is damaged ({type(error).__name__}: {error}). Delete the folder: "
            f"the run is made anew."
        ) from None
    return {
        "format": FORMAT,
        "protocol": folder.run.protocol,
        "run_id": folder.run.run_id,
        "cell_id": folder.run.cell_id,
        "spec": folder.run.as_dict(),
        "status": done["status"],
        "metrics": metrics,
        "environment": environment,
        "cost": done["cost"],
    }


def _pivot(path: Path, seeds: tuple[int, ...]) -> dict[str, Any]:
    """The long table step,seed,metric,value as metric -> steps and one row of values per step; null if not finite."""
    column = {seed: index for index, seed in enumerate(seeds)}
    tables: dict[str, dict[int, list[float | None]]] = {}
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            value = float(row["value"])
            rows = tables.setdefault(row["metric"], {}).setdefault(int(row["step"]), [None] * len(seeds))
            rows[column[int(row["seed"])]] = value if math.isfinite(value) else None
    return {
        metric: {"steps": sorted(rows), "values": [rows[step] for step in sorted(rows)]}
        for metric, rows in sorted(tables.items())
    }


def read_result(path: Path | str) -> dict[str, Any]:
    """A result, checked: not truncated, of this format and protocol, under its own name."""
    path = Path(path)
    try:
        result = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not whole JSON ({error}). Delete it: it is remade from the store.") from None
    if (result.get("format"), result.get("protocol")) != (FORMAT, PROTOCOL):
        raise ValueError(
            f"{path} has format {result.get('format')} and protocol {result.get('protocol')}; this version reads format "
            f"{FORMAT} and protocol {PROTOCOL}. Numbers of different protocols are not comparable: move the results folder "
            f"away, or use the release that made it."
        )
    if result["run_id"] != path.stem:
        raise ValueError(f"{path} holds run {result['run_id']}: it was renamed or copied. Delete it.")
    return result


def check_protocol(results: Path | str) -> None:
    """Refuse a results folder of another protocol before any work; mark a new one."""
    marker = Path(results) / "protocol.json"
    if marker.exists():
        try:
            found = json.loads(marker.read_text()).get("protocol")
        except json.JSONDecodeError:
            found = "unreadable"
        if found != PROTOCOL:
            raise ValueError(
                f"{results}/ was made under protocol {found}, this version is protocol {PROTOCOL}: their numbers are not "
                f"comparable. Move the folder away, or set results_dir in config/config.yaml to a new one."
            )
    else:
        write_whole(marker, as_json({"protocol": PROTOCOL}))  # several at once write the same bytes
