"""Two processes that want the same run, leases that nobody holds any more, and clocks that jump."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest
from faults import toy

from nap_bench import session, store


@pytest.mark.fault(
    "two: processes that are given the same run at the same time",
    outcome="one trains it, the other waits and finds it done",
)
def test_of_two_processes_with_one_run_one_trains_it(tmp_path):
    (line,) = toy.lines(steps_per_task=60)
    pids = [toy.forked(lambda: toy.do(tmp_path, [line])) for _ in range(2)]
    assert [toy.ended(pid) for pid in pids] == [0, 0]
    left = toy.left(tmp_path, line)
    (result,) = tmp_path.glob("results/runs/*.json")
    assert json.loads(result.read_text())["cost"]["num_sessions"] == 1
    assert left == toy.whole(tmp_path / "alone", line)


@pytest.fixture
def at_work(tmp_path):
    """A run at work in another process, slowly, which beats its lease once and then not for a minute."""
    (line,) = toy.lines(num_tasks=6, steps_per_task=150)

    def work() -> int:
        store.BEAT_SECONDS = 60.0
        after = session.Session.after
        session.Session.after = lambda *words: (time.sleep(0.01), after(*words))
        return toy.do(tmp_path, [line])

    pid = toy.forked(work)
    folder = tmp_path / "store" / line["run_id"]
    while not (folder / "checkpoint").exists() or "step" not in _holder(folder):
        assert not (folder / "done.json").exists()
        time.sleep(0.01)
    yield line, pid, folder


def _holder(folder) -> dict:
    return store.Lease(folder / "lease.json").holder()


@pytest.mark.fault(
    "clock: jumps by hours (a suspended laptop, a corrected clock) while a run is at work, forwards or backwards",
    outcome="another process may take the run over; the first one notices before it writes, stops and waits: the same bytes",
)
@pytest.mark.parametrize("hours", [8, -8])
def test_a_clock_that_jumps_gives_a_run_two_owners_and_one_writer(hours, at_work, tmp_path):
    line, pid, folder = at_work
    jumped = time.time() - 3600 * hours  # what a lease's time looks like from after the jump
    os.utime(folder / "lease.json", (jumped, jumped))
    assert toy.do(tmp_path, [line]) == 0
    assert toy.ended(pid) == 0
    assert toy.left(tmp_path, line) == toy.whole(tmp_path / "alone", line)
    (result,) = tmp_path.glob("results/runs/*.json")
    assert json.loads(result.read_text())["cost"]["num_sessions"] == 2, "it was taken over in the middle"


@pytest.mark.parametrize("file", ["env.json", "done.json"])
@pytest.mark.fault(
    "clock: a disk hangs for minutes over a finished run's last files; another process takes the run over, and is killed",
    outcome="the first one gives up what it was about to write; a third goes on from the checkpoint: the same bytes",
)
def test_an_owner_whose_disk_hangs_at_the_end_makes_no_result_of_a_table_that_another_has_cut(tmp_path, file):
    (line,) = toy.lines(num_tasks=3, steps_per_task=100)
    hangs, taken_over = tmp_path / "hangs", tmp_path / "taken over"

    def first() -> int:
        fsync = store.os.fsync

        def hanging(number: int) -> None:
            if f".{file}." in os.readlink(f"/proc/self/fd/{number}"):
                hangs.touch()
                _wait_for(taken_over)
            fsync(number)

        store.os.fsync = hanging
        return toy.do(tmp_path, [line])

    def second() -> int:
        def begin(self, step: int) -> None:
            taken_over.touch()  # its table is cut back to the checkpoint
            time.sleep(1.0)  # time enough for the first to do what it must not
            os._exit(9) if (folder / "done.json").exists() else os.kill(os.getpid(), signal.SIGKILL)

        session.Session.begin = begin
        return toy.do(tmp_path, [line])

    pid, folder = toy.forked(first), tmp_path / "store" / line["run_id"]
    _wait_for(hangs)
    old = time.time() - store.STALE_SECONDS - 5
    os.utime(folder / "lease.json", (old, old))
    assert toy.ended(toy.forked(second)) == -signal.SIGKILL
    assert toy.do(tmp_path, [line]) == 0 and toy.ended(pid) == 0
    assert toy.left(tmp_path, line) == toy.whole(tmp_path / "alone", line)


def _wait_for(path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.005)


@pytest.mark.fault(
    "clock: of this machine and of the file system's differ by a day",
    outcome="a lease's age is told by the file system's clock alone",
)
def test_a_lease_is_as_old_as_the_file_system_says(tmp_path, monkeypatch):
    folder = store.RunFolder(tmp_path, toy.expand(toy.lines()[0]))
    folder.open()
    folder.lease.write_text(json.dumps({"host": "elsewhere", "pid": 1, "token": "theirs"}))
    for day in (86400, -86400):
        now = time.time() + day
        monkeypatch.setattr(time, "time", lambda now=now: now)
        with store.leased(folder) as lease:
            assert lease is None


@pytest.mark.fault(
    "clock: was put back after the owner of a lease died elsewhere, so that the lease is of the future",
    outcome="it is as stale as one of the past",
)
def test_a_lease_of_the_future_is_stale(tmp_path):
    folder = store.RunFolder(tmp_path, toy.expand(toy.lines()[0]))
    folder.open()
    folder.lease.write_text(json.dumps({"host": "elsewhere", "pid": 1, "token": "theirs"}))
    tomorrow = time.time() + 86400
    os.utime(folder.lease, (tomorrow, tomorrow))
    with store.leased(folder) as lease:
        assert lease is not None


@pytest.mark.fault(
    "clock: a lease whose writer was killed or ran out of disk within it: empty, half, or no JSON",
    outcome="respected until it is two minutes old, then taken over",
)
@pytest.mark.parametrize("content", ["", '{"host": "elsew', "\x00\x00\x00", "\xff"])
def test_a_half_written_lease_is_waited_for_and_then_taken_over(content, tmp_path):
    folder = store.RunFolder(tmp_path, toy.expand(toy.lines()[0]))
    folder.open()
    folder.lease.write_text(content, encoding="latin-1")
    with store.leased(folder) as lease:
        assert lease is None
    old = time.time() - store.STALE_SECONDS - 5
    os.utime(folder.lease, (old, old))
    with store.leased(folder) as lease:
        assert lease is not None
