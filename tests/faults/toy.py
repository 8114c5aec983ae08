"""Runs of a second, to be broken: made in this process or in one of their own, and what they left."""

from __future__ import annotations

import builtins
import errno
import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from workflow import small

from nap_bench import jobs, plan

NAP_BENCH = "import sys; from nap_bench.cli import main; sys.exit(main())"


def lines(num: int = 1, num_tasks: int = 3, steps_per_task: int = 12) -> list[dict[str, Any]]:
    """The first lines of the small suite's plan."""
    return small.lines(num_tasks, steps_per_task)[:num]


def job(folder: Path, line: dict[str, Any]) -> jobs.Job:
    return jobs.Job(line, store=folder / "store", results=folder / "results")


def do(folder: Path, planned: list[dict[str, Any]], checkpoint_seconds: float = 0.0) -> int:
    """Do runs in this process. Exit code."""
    made = [job(folder, line) for line in planned]
    suite = jobs.Suite([], "laptop", store=folder / "store", results=folder / "results")
    return jobs.do(made, data_dir=None, device="cpu", suite=suite, checkpoint_seconds=checkpoint_seconds)


def start(folder: Path, *arguments: str, code: str = NAP_BENCH, **more: Any) -> subprocess.Popen[str]:
    """nap-bench in a process of its own. code: what it executes instead, to be killed or starved inside."""
    how: dict[str, Any] = dict(cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return subprocess.Popen([sys.executable, "-c", code, *arguments], **{**how, **more})


def run(folder: Path, planned: list[dict[str, Any]], *options: str, **more: Any) -> subprocess.Popen[str]:
    """`nap-bench run` of planned runs in a process of its own, which writes a checkpoint at every step."""
    small.write_plan(folder, planned)
    words = ["run", "--pack"] if len(planned) > 1 else ["run"]
    words += ["--plan", "plan.jsonl", "--checkpoint-seconds", "0", *options, *(line["run_id"] for line in planned)]
    return start(folder, *words, **more)


def left(folder: Path, line: dict[str, Any]) -> tuple[dict[str, str], bytes]:
    """What a finished run left: its result (timings aside) and its table."""
    run_id = line["run_id"]
    found = small.fingerprint(folder / "results")
    return {name: found[name] for name in found if run_id in name}, (
        folder / "store" / run_id / "metrics.csv"
    ).read_bytes()


def whole(folder: Path, line: dict[str, Any]) -> tuple[dict[str, str], bytes]:
    """What the run leaves if nothing disturbs it."""
    assert do(folder, [line]) == 0
    return left(folder, line)


def hidden(folder: Path) -> list[str]:
    """Temporary files below a folder: there must be none in the end."""
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob(".*")
        if path.name[1:] not in ("suite-line", "invocation")
    )


class _Full(io.FileIO):
    """A file on a disk without room: it opens, and takes no byte."""

    def write(self, data: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextmanager
def full_disk(monkeypatch: Any, part: str) -> Iterator[None]:
    """While the block runs, files with `part` in their names can be opened and take no byte."""
    real = io.open

    def opened(file, mode="r", *arguments, **more):
        name = os.readlink(f"/proc/self/fd/{file}") if isinstance(file, int) else os.fspath(file)
        if part not in Path(name).name or not set(mode) & set("wax+"):
            return real(file, mode, *arguments, **more)
        binary = io.BufferedWriter(_Full(file, mode.replace("b", "").replace("t", "")))
        return binary if "b" in mode else io.TextIOWrapper(binary, encoding="utf-8")

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", opened)
        patch.setattr(io, "open", opened)  # which pathlib and os.fdopen call
        yield


def forked(work: Callable[[], int]) -> int:
    """The pid of a copy of this process that does `work` and exits with its code: torch need not be imported anew."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            code = work()
        finally:
            os._exit(code)
    return pid


def ended(pid: int) -> int:
    """How a forked process ended: its exit code, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def expand(line: dict[str, Any]):
    return plan.expand(line["run"])
