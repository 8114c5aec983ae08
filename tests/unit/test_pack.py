"""Packs: what becomes of a member is its own affair; workers share GPUs by leases; nothing of it reaches a number."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time

import pytest

from nap_bench import jobs, pack, plan
from nap_bench.experiments import arms
from nap_bench.spec import PROTOCOL
from nap_bench.store import Lease, as_json, result_path, write_whole

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Jobs whose training is a function of their number, called in the worker."""

    def jobs_of(trainings) -> list[jobs.Job]:
        task = dict(num_examples=48, num_tasks=1, steps_per_task=10)
        made, by_id = [], {}
        for number, training in enumerate(trainings):
            run = arms.entry("laptop", "baseline", {}, seeds=(number,), task=task).run
            line = {"run_id": run.run_id, "uses": {}, "work": 10, "run": plan.compact(run)}
            made.append(jobs.Job(line, store=tmp_path / "store", results=tmp_path / "results"))
            by_id[run.run_id] = training

        def train(job, lease, **how):
            by_id[job.run_id]()
            result = {"format": 1, "protocol": PROTOCOL, "run_id": job.run_id}
            write_whole(result_path(job.results, job.run_id), as_json(result))

        monkeypatch.setattr(jobs.Job, "train", train)
        return made

    return jobs_of


def do(made, **more) -> int:
    suite = jobs.Suite([], "laptop", store=made[0].store, results=made[0].results)
    return pack.do(made, **{"slots": 2, "data_dir": None, "device": "cpu", "suite": suite, **more})


def reason(job) -> str:
    return json.loads((job.store / job.run_id / "failed.json").read_text())["reason"]


def fine() -> None:
    time.sleep(0.01)


def fails() -> None:
    raise RuntimeError("out of luck")


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def leaves() -> None:
    os._exit(3)


def hangs() -> None:
    time.sleep(600)


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.fault(
    "pack: of eight members one fails, one is killed, one hangs and one leaves without a word",
    outcome="each is named with its reason; the other four are done",
)
def test_members_that_fail_are_killed_or_hang_are_named_and_the_others_results_are_kept(make, slots, capfd):
    made = make([fine, fails, fine, killed, hangs, leaves, fine, fine])
    assert do(made, slots=slots, hang_seconds=6.0) == 1
    assert [job.is_done() for job in made] == [True, False, True, False, False, False, True, True]
    assert reason(made[1]) == "RuntimeError: out of luck"
    assert "was killed by SIGKILL (out of memory?)" in reason(made[3])
    assert "was killed: no progress for 6 s" in reason(made[4])
    assert "ended with exit code 3" in reason(made[5])
    said = capfd.readouterr().err
    assert "[pack] 4 of 8 runs failed, the others' results are kept" in said
    assert all(f"{made[number].run_id} FAILED" in said for number in (1, 3, 4, 5))
    assert "out of luck" in (made[1].store / made[1].run_id / "log").read_text(), "the trace is in the run's log"


def test_a_second_attempt_does_only_what_failed(make):
    made = make([fine, fails, fine])
    assert do(made) == 1
    made = make([fails, fine, fails])  # who is done is not asked again
    assert do(made) == 0 and all(job.is_done() for job in made)


@pytest.mark.parametrize(("slots", "at_once"), [(1, 1), (3, 3)])
def test_as_many_runs_go_on_at_a_time_as_there_are_slots(make, tmp_path, slots, at_once):
    def training() -> None:
        mark = tmp_path / f"now-{os.getpid()}"
        mark.touch()
        deadline = time.monotonic() + 20
        while len(list(tmp_path.glob("now-*"))) < at_once and time.monotonic() < deadline:
            time.sleep(0.01)
        with open(tmp_path / "seen", "a") as seen:
            seen.write(f"{len(list(tmp_path.glob('now-*')))}\n")
        time.sleep(0.3)  # for the others to see it
        mark.unlink()

    assert do(make([training] * at_once), slots=slots) == 0
    assert max(map(int, (tmp_path / "seen").read_text().split())) == at_once


def test_one_worker_does_many_runs_and_a_new_one_follows_a_failure(make, tmp_path):
    def training() -> None:
        with open(tmp_path / "pids", "a") as file:
            file.write(f"{os.getpid()}\n")

    assert do(make([training, training, fails, training, training]), slots=1) == 1
    pids = (tmp_path / "pids").read_text().split()
    assert pids[0] == pids[1] != pids[2] == pids[3] and str(os.getpid()) not in pids


@pytest.mark.fault(
    "two: a member of a pack is being trained by another process", outcome="it is left for last and waited for"
)
def test_a_run_that_another_process_holds_is_done_last_and_waited_for(make, tmp_path, monkeypatch):
    def training() -> None:
        with open(tmp_path / "order", "a") as file:
            file.write("x")

    made = make([training, training, training])
    folder = made[0].store / made[0].run_id
    folder.mkdir(parents=True)
    lease = Lease(folder / "lease.json")
    assert lease.try_acquire()

    def release() -> None:
        while not all(result_path(job.results, job.run_id).exists() for job in made[1:]):
            time.sleep(0.05)
        lease.release()

    releases = threading.Thread(target=release)
    releases.start()
    assert do(made, slots=1) == 0
    releases.join()
    seconds = [result_path(job.results, job.run_id).stat().st_mtime for job in made]
    assert seconds[0] == max(seconds) and (tmp_path / "order").read_text() == "xxx"


def test_asked_to_stop_a_pack_stops_its_workers_and_says_so_by_its_exit_code(make, tmp_path):
    def training() -> None:
        (tmp_path / f"begun-{os.getpid()}").touch()
        time.sleep(600)

    def ask() -> None:
        while len(list(tmp_path.glob("begun-*"))) < 2:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    made = make([training] * 4)
    asks = threading.Thread(target=ask)
    asks.start()
    assert do(made, hang_seconds=4.0) == 75, "they do not look at what they are asked, and are killed"
    asks.join()
    assert len(list(made[0].store.glob("*/spec.json"))) == 2, "nothing new is begun"


@pytest.mark.fault(
    "pack: a worker is told to end between its last word and the run it is given",
    outcome="that run did not begin, nor fail",
)
def test_a_run_given_to_a_worker_that_was_told_to_end_before_it_looked_has_not_failed(make, monkeypatch):
    send, here = multiprocessing.connection.Connection.send, os.getpid()

    def told_to_end(self, said):
        send(self, said)
        if os.getpid() != here and said[0] == pack.READY:
            time.sleep(0.5)  # the pack gives it a run
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(multiprocessing.connection.Connection, "send", told_to_end)
    made = make([fine] * 4)
    assert do(made) == 75
    assert not list(made[0].store.glob("*/failed.json"))


def end(worker) -> None:
    worker.process.kill()
    worker.process.join()


@pytest.mark.fault("pack: an idle worker is killed just before it is given a run", outcome="another one does the run")
def test_a_worker_that_ends_before_it_is_given_a_run_costs_none(make, monkeypatch):
    give, ended = pack.Worker.give, []

    def late(worker, number, job):
        if not ended:
            ended.append(end(worker))
        give(worker, number, job)

    monkeypatch.setattr(pack.Worker, "give", late)
    made = make([fine] * 3)
    assert do(made) == 0 and ended and all(job.is_done() for job in made)


@pytest.mark.fault(
    "pack: an idle worker is killed just before all are dismissed", outcome="so are the others; the exit code stays"
)
def test_a_worker_that_ends_before_it_is_dismissed_hides_neither_the_others_nor_the_exit_code(make, monkeypatch):
    dismiss, handler = pack.Pack.dismiss, signal.getsignal(signal.SIGTERM)

    def late(self):
        self.stopped = True
        end(next(worker for worker in self.workers if worker.state == pack.IDLE))
        dismiss(self)

    monkeypatch.setattr(pack.Pack, "dismiss", late)
    assert do(make([fine] * 3), slots=3) == 75
    assert multiprocessing.active_children() == [] and signal.getsignal(signal.SIGTERM) == handler


# GPUs, which are names here


@pytest.fixture
def fake_gpus(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))  # no nvidia-smi
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr(pack, "check_device", lambda device: None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b")


def test_each_worker_sees_one_gpu_and_they_are_spread_evenly(make, fake_gpus, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")

    def training() -> None:
        assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID", "as nvidia-smi counts"
        mark = tmp_path / f"now-{os.getpid()}-{os.environ['CUDA_VISIBLE_DEVICES']}"
        mark.touch()
        deadline = time.monotonic() + 20
        while len(list(tmp_path.glob("now-*"))) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)

    assert do(make([training] * 4), slots=4, device="cuda") == 0
    seen = [path.name.partition("GPU-")[2] for path in tmp_path.glob("now-*")]
    assert sorted(seen) == ["a", "a", "b", "b"]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-a,GPU-b"


def test_a_pack_waits_for_a_gpu_that_another_pack_uses(make, fake_gpus, monkeypatch, capfd):
    from nap_bench import gpus

    monkeypatch.setattr(pack, "LINE_SECONDS", 0.5)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a")
    held = gpus.try_lease(["GPU-a"], 1)
    threading.Timer(2.0, held.release).start()
    began = time.monotonic()
    assert do(make([fine]), slots=1, device="cuda") == 0
    assert time.monotonic() - began > 1.5
    assert f"waiting for a GPU: 1 x 1 slots are taken by processes {os.getpid()}" in capfd.readouterr().err


@pytest.mark.fault("pack: it was to use a GPU and there is none", outcome="one line; nothing is begun")
def test_without_a_gpu_a_pack_says_so_and_nothing_is_begun(make, fake_gpus, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    made = make([fine])
    with pytest.raises(
        ValueError, match="no GPU was found here: nvidia-smi names none, and CUDA_VISIBLE_DEVICES is ''"
    ):
        do(made, device="cuda")
    assert not made[0].is_done() and not (made[0].store / made[0].run_id).exists()


def test_a_pack_without_slots_is_refused(make):
    with pytest.raises(ValueError, match="at least 1 slot, found 0"):
        do(make([fine]), slots=0)
