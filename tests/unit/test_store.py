"""The run store: whole files, leases, results made from it."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
import time

import pytest

from nap_bench import store
from nap_bench.experiments.arms import entry

RUN = entry("laptop", "baseline", {}, seeds=(3, 5)).run


@pytest.fixture
def folder(tmp_path):
    made = store.RunFolder(tmp_path / "store", RUN)
    made.open()
    return made


def complete(folder):
    folder.metrics.write_text(
        "step,seed,metric,value\n2,3,task_end/loss,nan\n2,5,task_end/loss,0.1\n1,5,task_end/loss,0.5\n1,3,task_end/loss,0.25\n"
    )
    folder.environment.write_text('{"torch": "x"}')
    folder.done.write_text('{"status": [{"seed": 3, "status": "complete"}], "cost": {"wall_seconds": 1.0}}')


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "file"
    store.write_whole(path, "first")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left.*MiB free.*Nothing is lost"):
        store.write_whole(path, "second")
    assert path.read_text() == "first" and os.listdir(path.parent) == ["file"]


@pytest.mark.parametrize("reason", [store.LeaseLost("taken over"), ValueError("no bytes"), KeyboardInterrupt()])
@pytest.mark.parametrize("when", ["while it is written", "before the exchange"])
def test_what_stops_a_write_leaves_the_old_content_and_nothing_else(tmp_path, reason, when):
    def stop(*file) -> None:
        raise reason

    store.write_whole(tmp_path / "file", "old")
    with pytest.raises(type(reason)):
        store.write_whole(tmp_path / "file", *([stop] if when == "while it is written" else ["new", stop]))
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "old"


@pytest.mark.fault("killed: a writer, whose pieces lie about", outcome="the next one that writes the file removes them")
def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (tmp_path / f".file.{socket.gethostname()}.{ended.pid}.tmp").write_text("half")
    store.write_whole(tmp_path / "file", "whole")
    assert os.listdir(tmp_path) == ["file"] and (tmp_path / "file").read_text() == "whole"


@pytest.mark.fault(
    "two: six processes write the same file again and again", outcome="the file is whole at every moment"
)
def test_many_processes_writing_one_file_at_once_all_succeed(tmp_path):
    code = (
        "import sys; from nap_bench.store import check_protocol, write_whole; from pathlib import Path\n"
        "for _ in range(60): write_whole(Path(sys.argv[1]) / 'file', 'x' * 50_000)\n"
        "check_protocol(sys.argv[1])"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(6)]
    assert [process.wait() for process in processes] == [0] * 6
    assert (tmp_path / "file").stat().st_size == 50_000 and sorted(os.listdir(tmp_path)) == ["file", "protocol.json"]


def test_a_result_holds_the_table_by_metric_step_and_seed_with_null_for_not_finite(folder, tmp_path):
    complete(folder)
    result = store.read_result(store.make_result(folder, tmp_path / "results"))
    assert result["metrics"] == {"task_end/loss": {"steps": [1, 2], "values": [[0.25, 0.5], [None, 0.1]]}}
    assert result["run_id"] == RUN.run_id and result["spec"]["seeds"] == [3, 5]


def test_a_result_is_remade_from_the_store_without_torch(folder, tmp_path):
    complete(folder)
    code = (
        "import sys; from pathlib import Path; from nap_bench.jobs import Job\n"
        f"at = Path({str(tmp_path)!r})\n"
        f"job = Job({{'run_id': {RUN.run_id!r}}}, store=at / 'store', results=at / 'results')\n"
        "assert not job.is_done() and job.remake() and job.is_done(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert store.result_path(tmp_path / "results", RUN.run_id).exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda r: r.write_text(r.read_text()[:-40]), "not whole JSON"),
        (lambda r: r.write_text(r.read_text().replace('"protocol": 1', '"protocol": 99', 1)), "protocol 99"),
        (lambda r: r.write_text(r.read_text().replace(RUN.run_id, "other")), "holds run other"),
    ],
)
@pytest.mark.fault(
    "edited: a result cut off, of another protocol, or renamed", outcome="refused in one line that says which"
)
def test_a_damaged_or_foreign_result_is_refused(folder, tmp_path, damage, message):
    complete(folder)
    path = store.make_result(folder, tmp_path / "results")
    damage(path)
    with pytest.raises(ValueError, match=message):
        store.read_result(path)


@pytest.mark.fault(
    "edited: results of another protocol, whose numbers are not comparable",
    outcome="refused in one line before any work",
)
def test_a_results_folder_of_another_protocol_is_refused(tmp_path):
    store.check_protocol(tmp_path)
    store.check_protocol(tmp_path)
    (tmp_path / "protocol.json").write_text('{"protocol": 0}')
    with pytest.raises(ValueError, match="made under protocol 0, this version is protocol 1"):
        store.check_protocol(tmp_path)


@pytest.mark.fault("edited: a run's spec in the store, by hand", outcome="refused in one line")
def test_a_folder_that_describes_another_run_is_refused(folder):
    folder.spec.write_text(folder.spec.read_text().replace("digits", "mnist"))
    with pytest.raises(ValueError, match="describes another run"):
        folder.open()


@pytest.mark.fault(
    "disk: nearly full before a run starts", outcome="refused in one line with what was wanted and found"
)
def test_a_disk_without_room_is_refused_before_any_work(folder, monkeypatch):
    monkeypatch.setattr(store.shutil, "disk_usage", lambda _: type("usage", (), {"free": 2**20})())
    with pytest.raises(OSError, match="wanted 100 MiB free, found 1 MiB"):
        folder.open()


@pytest.mark.fault(
    "checkpoint: an entry of the store says that it is done, and is damaged",
    outcome="named in one line with what to do; nothing is made of it",
)
def test_a_damaged_store_entry_is_named_with_what_to_do(folder, tmp_path):
    complete(folder)
    folder.done.write_text("{")
    with pytest.raises(ValueError, match="is damaged.*Delete the folder"):
        store.make_result(folder, tmp_path / "results")


def test_a_second_process_does_not_get_the_lease_and_gets_it_after_release(folder):
    with store.leased(folder) as first:
        assert first is not None
        with store.leased(folder) as second:
            assert second is None
        assert folder.lease.exists(), "a process that did not hold the lease must not remove it"
    with store.leased(folder) as third:
        assert third is not None


@pytest.mark.fault("clock: the lease of a process of this machine that is dead", outcome="taken over at once")
def test_the_lease_of_a_dead_process_is_taken_over_at_once(folder):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    lease = store.Lease(folder.lease)
    content = json.loads(lease._content())
    folder.lease.write_text(json.dumps({**content, "pid": ended.pid, "token": "dead"}))
    with store.leased(folder) as mine:
        assert mine is not None


@pytest.mark.fault(
    "clock: the lease of another machine, fresh or two minutes without a heartbeat", outcome="respected, or taken over"
)
def test_a_lease_of_another_host_is_respected_until_its_heartbeat_is_stale(folder):
    folder.lease.write_text(json.dumps({"host": "elsewhere", "pid": 1, "token": "theirs"}))
    with store.leased(folder) as lease:
        assert lease is None
    old = time.time() - store.STALE_SECONDS - 5
    os.utime(folder.lease, (old, old))
    with store.leased(folder) as lease:
        assert lease is not None


@pytest.mark.fault("clock: a run was taken over by another process", outcome="the first owner stops without writing")
def test_a_process_whose_lease_was_taken_over_stops(folder):
    with store.leased(folder) as lease:
        lease.beat(step=1)
        folder.lease.write_text(json.dumps({"host": "elsewhere", "pid": 1, "token": "theirs"}))
        lease._last = 0.0
        with pytest.raises(store.LeaseLost, match="taken over"):
            lease.beat(step=2)
    assert json.loads(folder.lease.read_text())["token"] == "theirs"
