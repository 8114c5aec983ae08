"""Results that travel: what goes out comes in whole or not at all, and nothing is overwritten."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import json
import os
import shutil
import signal
import tarfile
import time

import pytest
from faults import toy

from nap_bench import cli, plan, sharing, store
from nap_bench.experiments.arms import entry

RUN = entry("laptop", "baseline", {}, seeds=(3, 5)).run
OTHER = dataclasses.replace(RUN, seeds=(7,))
ENVIRONMENT = {"commit": "0123abc", "torch": "2.13.0", "device_name": "a processor", "dirty": False, "container": None}


def place(folder) -> sharing.Place:
    return sharing.Place(folder / "store", folder / "results")


def make(where: sharing.Place, run=RUN, value: float = 0.1, seconds: float = 1.0) -> store.RunFolder:
    """A finished run: its entry and its result."""
    folder = store.RunFolder(where.store, run)
    folder.open()
    rows = [f"{step},{seed},task_end/loss,{value * step!r}\n" for step in (1, 2) for seed in run.seeds]
    folder.metrics.write_text("step,seed,metric,value\n" + "".join(rows).replace(repr(value * 2), "nan", 1))
    folder.environment.write_text(store.as_json(ENVIRONMENT))
    status = [{"seed": seed, "status": "complete"} for seed in run.seeds]
    folder.done.write_text(store.as_json({"status": status, "cost": {"wall_seconds": seconds}}))
    store.make_result(folder, where.results)
    return folder


def begin(where: sharing.Place, run=RUN, content: bytes = b"a checkpoint") -> store.RunFolder:
    folder = store.RunFolder(where.store, run)
    folder.open()
    folder.metrics.write_text("step,seed,metric,value\n")
    folder.checkpoint.write_bytes(content)
    return folder


def everything(folder) -> dict[str, bytes]:
    """Every file below, locks and marks aside."""
    aside = (".invocation", "protocol.json")
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in aside
    }


@pytest.fixture
def there(tmp_path):
    made = place(tmp_path / "there")
    make(made)
    make(made, OTHER, value=0.3)
    return made


@pytest.fixture
def archive(there, tmp_path):
    sharing.export(tmp_path / "all.tar.gz", [], there)
    return tmp_path / "all.tar.gz"


def test_what_is_exported_here_is_the_same_there(archive, there, tmp_path):
    account = sharing.import_(archive, place(tmp_path / "here"))
    assert account.finished == sorted([RUN.run_id, OTHER.run_id])
    assert everything(tmp_path / "here") == everything(tmp_path / "there")


@pytest.mark.parametrize("name", ["one.tar", "one.tar.gz", "one.tgz"])
def test_equal_files_give_equal_archives_whenever_and_wherever_they_are_packed(name, there, tmp_path):
    sharing.export(tmp_path / name, [], there)
    first = (tmp_path / name).read_bytes()
    for path in there.store.rglob("*"):
        os.utime(path, (1, 1))
    sharing.import_(tmp_path / name, place(tmp_path / "here"))
    (tmp_path / "again").mkdir()
    sharing.export(tmp_path / "again" / name, [], place(tmp_path / "here"))
    assert (tmp_path / "again" / name).read_bytes() == first
    assert (first[:2] == b"\x1f\x8b") == name.endswith("gz")


def test_only_the_runs_that_are_named_go_out_and_an_unknown_one_is_refused(there, tmp_path):
    sharing.export(tmp_path / "one.tar", [OTHER.run_id], there)
    assert sharing.import_(tmp_path / "one.tar", place(tmp_path / "here")).finished == [OTHER.run_id]
    with pytest.raises(ValueError, match="Nothing of absent in"):
        sharing.export(tmp_path / "two.tar", ["absent"], there)
    with pytest.raises(ValueError, match="Nothing to export"):
        sharing.export(tmp_path / "three.tar", [], place(tmp_path / "nowhere"))


def test_a_scale_of_the_plan_goes_out_by_name(there, tmp_path, capsys):
    planned = [
        {"run_id": run.run_id, "uses": {scale: {"arms": [["baseline", ""]]}}, "run": plan.compact(run)}
        for run, scale in ((RUN, "laptop"), (OTHER, "paper"))
    ]
    (tmp_path / "plan.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [{"num_runs": 2}, *planned]))
    at = ["--plan", str(tmp_path / "plan.jsonl"), "--store", str(there.store), "--results", str(there.results)]
    assert cli.main(["store", "export", str(tmp_path / "a.tar"), "--scale", "paper", *at]) == 0
    assert "1 finished runs" in capsys.readouterr().out
    assert sharing.import_(tmp_path / "a.tar", place(tmp_path / "here")).finished == [OTHER.run_id]
    assert cli.main(["store", "export", str(tmp_path / "b.tar"), "--scale", "workstation", *at]) == 2


def test_importing_twice_changes_nothing(archive, tmp_path):
    here = place(tmp_path / "here")
    sharing.import_(archive, here)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("here/*/*/*")}
    account = sharing.import_(archive, here)
    assert (account.finished, len(account.here)) == ([], 2)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("here/*/*/*")} == before


def test_the_same_numbers_from_another_machine_are_no_conflict_and_what_is_here_stays(archive, tmp_path):
    here = place(tmp_path / "here")
    make(here, seconds=99.0)
    before = everything(tmp_path / "here")
    account = sharing.import_(archive, here)
    assert (account.finished, account.here) == ([OTHER.run_id], [RUN.run_id])
    assert before.items() <= everything(tmp_path / "here").items()


@pytest.mark.fault(
    "sharing: a run that is here too, with another number",
    outcome="nothing is imported; the run, the first number that differs, both places and who made what are named",
)
def test_other_numbers_are_refused_with_both_named_and_nothing_comes_in(archive, tmp_path):
    here = place(tmp_path / "here")
    make(here, value=0.2)
    before = everything(tmp_path / "here")
    with pytest.raises(ValueError) as refused:
        sharing.import_(archive, here)
    said = str(refused.value)
    assert "1 of 2 runs are here with other numbers; nothing was imported" in said
    assert f"{RUN.run_id}: task_end/loss at step 1 is [0.2, 0.2] and [0.1, 0.1]" in said
    assert f"in {here.results}/runs (commit 0123abc" in said and f"and {archive} (commit 0123abc" in said
    assert everything(tmp_path / "here") == before


def test_a_status_that_differs_is_a_conflict_too(archive, tmp_path):
    here = place(tmp_path / "here")
    folder = make(here)
    done = json.loads(folder.done.read_text())
    done["status"][0] = {"seed": 3, "status": "diverged", "step": 1}
    folder.done.write_text(store.as_json(done))
    store.make_result(folder, here.results)
    with pytest.raises(ValueError, match="status is .*diverged"):
        sharing.import_(archive, here)


def repacked(archive, target, change):
    """The archive with its files changed: change(name -> bytes)."""
    with tarfile.open(archive) as packed:
        files = {member.name: packed.extractfile(member).read() for member in packed}
    change(files)
    with tarfile.open(target, "w") as packed:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            packed.addfile(member, io.BytesIO(content))
    return target


def honest(files):
    """Make the manifest fit what is there: who repacks on purpose would."""
    listed = {
        n: {"bytes": len(c), "sha256": hashlib.sha256(c).hexdigest()} for n, c in files.items() if n != "manifest.json"
    }
    files["manifest.json"] = store.as_json({**json.loads(files["manifest.json"]), "files": listed}).encode()


RESULT, METRICS, SPEC = (
    f"results/runs/{RUN.run_id}.json",
    f"store/{RUN.run_id}/metrics.csv",
    f"store/{RUN.run_id}/spec.json",
)
SPOILT = {
    "a byte changed": (lambda f: f.update({METRICS: f[METRICS][:-2] + b"9\n"}), "is not what the manifest says", False),
    "a file missing": (lambda f: f.pop(METRICS), "lacks store/", False),
    "a file too many": (lambda f: f.update({"store/x/spec.json": b"{}"}), "other than its manifest lists it", False),
    "a file outside": (lambda f: f.update({"../../evil": b"x"}), "other than its manifest lists it", True),
    "a file with an absolute name": (lambda f: f.update({"/tmp/evil": b"x"}), "other than its manifest lists it", True),
    "a file of another kind": (
        lambda f: f.update({f"store/{RUN.run_id}/run.sh": b"x"}),
        "other than its manifest lists it",
        True,
    ),
    "no manifest": (lambda f: f.pop("manifest.json"), "was not made by `nap-bench store export`", False),
    "another format": (
        lambda f: f.update({"manifest.json": f["manifest.json"].replace(b'"format": 1', b'"format": 9')}),
        "has format 9 and protocol 1",
        False,
    ),
    "another protocol": (
        lambda f: f.update({"manifest.json": f["manifest.json"].replace(b'"protocol": 1', b'"protocol": 9')}),
        "has format 1 and protocol 9",
        False,
    ),
    "a number edited": (
        lambda f: f.update({RESULT: f[RESULT].replace(b"0.1", b"0.9")}),
        "says other than the store's entry",
        True,
    ),
    "a spec edited": (lambda f: f.update({SPEC: f[SPEC].replace(b"digits", b"mnist")}), "filed under", True),
    "a result of another run": (
        lambda f: f.update({RESULT: f[RESULT].replace(b"[3, 5]", b"[3, 6]", 1)}),
        "describes|other than",
        True,
    ),
    "an entry without its end": (
        lambda f: [f.pop(RESULT), f.pop(METRICS), f.pop(METRICS.replace("metrics.csv", "done.json"))],
        "neither a result nor a whole entry",
        True,
    ),
}


@pytest.mark.fault(
    "sharing: an archive with a byte changed, files missing, added, placed outside or of another kind, numbers edited",
    outcome="refused in one line before anything is visible",
)
@pytest.mark.parametrize("case", SPOILT)
def test_an_archive_that_is_not_what_was_exported_is_refused_before_anything_is_visible(case, archive, tmp_path):
    spoil, said, is_honest = SPOILT[case]

    def change(files):
        spoil(files)
        if is_honest:
            honest(files)

    bad = repacked(archive, tmp_path / "bad.tar", change)
    with pytest.raises(ValueError, match=said) as refused:
        sharing.import_(bad, place(tmp_path / "here"))
    assert "\n" not in str(refused.value)
    assert everything(tmp_path / "here") == {} and not (tmp_path.parent / "evil").exists()


@pytest.mark.fault(
    "untrusted: an archive with a link in it, to write through", outcome="refused in one line; nothing is followed"
)
def test_a_link_in_an_archive_is_refused(archive, tmp_path):
    with tarfile.open(archive) as packed:
        files = [(member, packed.extractfile(member).read()) for member in packed]
    with tarfile.open(tmp_path / "bad.tar", "w") as packed:
        for member, content in files:
            if member.name == METRICS:
                member.type, member.linkname, member.size = tarfile.SYMTYPE, str(tmp_path / "target"), 0
            packed.addfile(member, io.BytesIO(content))
    with pytest.raises(ValueError, match="other than its manifest lists it"):
        sharing.import_(tmp_path / "bad.tar", place(tmp_path / "here"))
    assert everything(tmp_path / "here") == {} and not (tmp_path / "target").exists()


@pytest.mark.fault(
    "sharing: an archive cut off anywhere, or none at all", outcome="refused in one line before anything is visible"
)
@pytest.mark.parametrize("name", ["all.tar", "all.tar.gz"])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9])
def test_an_archive_that_was_cut_off_is_refused(share, name, there, tmp_path):
    sharing.export(tmp_path / name, [], there)
    data = (tmp_path / name).read_bytes()
    used = len(data) if name.endswith("gz") else len(data.rstrip(b"\0"))
    (tmp_path / name).write_bytes(data[: int(share * used)])
    with pytest.raises(ValueError, match=r"Nothing was imported") as refused:
        sharing.import_(tmp_path / name, place(tmp_path / "here"))
    assert "\n" not in str(refused.value) and everything(tmp_path / "here") == {}
    (tmp_path / name).write_bytes(gzip.compress(b"no tar at all" * 1000))
    with pytest.raises(ValueError, match="is no whole archive"):
        sharing.import_(tmp_path / name, place(tmp_path / "here"))


@pytest.mark.fault(
    "sharing: an import killed at each of its renames",
    outcome="whole runs are there or are not; importing again brings the rest",
)
@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_an_import_that_was_killed_leaves_whole_runs_and_the_next_one_the_rest(number, archive, there, tmp_path):
    here = place(tmp_path / "here")

    def work() -> int:
        real, seen = os.rename, 0

        def rename(source, target):
            nonlocal seen
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)
            real(source, target)

        os.rename = rename
        sharing.import_(archive, here)
        return 0

    assert toy.ended(toy.forked(work)) == -signal.SIGKILL
    for spec in here.store.glob("[!.]*/spec.json"):
        assert {path.name for path in spec.parent.iterdir()} == set(sharing.FINISHED)
    sharing.import_(archive, here)
    assert everything(tmp_path / "here") == everything(tmp_path / "there")


def test_an_import_that_fails_halfway_takes_back_what_it_put_in_place(archive, tmp_path, monkeypatch):
    here, real = place(tmp_path / "here"), os.rename
    begun = begin(here)
    before = everything(tmp_path / "here")

    def rename(source, target):
        if str(target).endswith(f"{OTHER.run_id}.json"):
            raise OSError(5, "Input/output error")
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(OSError, match="Input/output error"):
        sharing.import_(archive, here)
    assert everything(tmp_path / "here") == before and not begun.lease.exists()


def test_a_run_that_was_begun_here_is_replaced_by_the_finished_one(archive, there, tmp_path):
    begin(place(tmp_path / "here"))
    assert len(sharing.import_(archive, place(tmp_path / "here")).finished) == 2
    assert everything(tmp_path / "here") == everything(tmp_path / "there")


@pytest.mark.fault(
    "sharing: a run that a process is training here", outcome="refused in one line; neither is disturbed"
)
def test_a_run_that_is_being_trained_here_is_not_touched(archive, tmp_path):
    here = place(tmp_path / "here")
    folder = begin(here)
    with store.leased(folder):
        before = everything(tmp_path / "here")
        with pytest.raises(ValueError, match=f"{RUN.run_id} is being trained here. Nothing was imported"):
            sharing.import_(archive, here)
        assert everything(tmp_path / "here") == before


@pytest.mark.fault(
    "sharing: a run is finished here after an import has compared",
    outcome="refused in one line; what was made here stays, and importing again compares the two",
)
@pytest.mark.parametrize("is_entry_kept", [True, False])
def test_a_run_that_is_finished_here_during_its_import_is_not_replaced(is_entry_kept, archive, tmp_path, monkeypatch):
    here, check = place(tmp_path / "here"), sharing.check_protocol
    begin(here)
    made = {}

    def finish(results):
        check(results)
        folder = make(here, value=0.2)
        if not is_entry_kept:
            shutil.rmtree(folder.path)
        made.update({name: data for name, data in everything(tmp_path / "here").items() if ".import" not in name})

    monkeypatch.setattr(sharing, "check_protocol", finish)
    with pytest.raises(
        ValueError, match=f"{RUN.run_id} was finished here meanwhile. Nothing was imported; import again"
    ):
        sharing.import_(archive, here)
    assert everything(tmp_path / "here") == made
    with pytest.raises(ValueError, match="are here with other numbers"):
        sharing.import_(archive, here)


@pytest.mark.fault(
    "two: an import while a workflow, or another import, works on the store", outcome="refused in one line"
)
def test_an_import_beside_a_workflow_is_refused(archive, tmp_path):
    here = place(tmp_path / "here")
    held = plan.hold("store", here.store)
    with pytest.raises(ValueError, match="Another invocation"):
        sharing.import_(archive, here)
    held.close()
    assert everything(tmp_path / "here") == {}


def test_unfinished_runs_stay_unless_their_checkpoints_are_asked_for_and_then_go_on_elsewhere(tmp_path):
    there, here = place(tmp_path / "there"), place(tmp_path / "here")
    make(there, OTHER)
    begin(there)
    account = sharing.export(tmp_path / "a.tar", [], there)
    assert account.left().startswith(" Left out: 1 unfinished")
    account = sharing.export(tmp_path / "b.tar", [], there, checkpoints=True)
    assert (account.finished, account.unfinished) == ([OTHER.run_id], [RUN.run_id])
    assert sharing.import_(tmp_path / "b.tar", here).unfinished == [RUN.run_id]
    assert everything(tmp_path / "here") == everything(tmp_path / "there")
    assert sharing.import_(tmp_path / "b.tar", here).left_out == {RUN.run_id: "begun here, too"}


def test_a_run_that_is_being_trained_is_left_out(tmp_path):
    there = place(tmp_path / "there")
    make(there, OTHER)
    with store.leased(begin(there)):
        account = sharing.export(tmp_path / "a.tar", [], there, checkpoints=True)
    assert account.left_out == {RUN.run_id: "being trained"}


def send(how: str, there: sharing.Place, tmp_path) -> None:
    if how == "export":
        sharing.export(tmp_path / "a.tar", [], there, checkpoints=True)
    else:
        sharing.merge(there, place(tmp_path / "here"), checkpoints=True)


COPIES = {"export": (sharing, "_sha256"), "merge": (shutil, "copyfile")}


@pytest.mark.parametrize("how", COPIES)
def test_a_run_that_takes_long_to_copy_cannot_be_taken_over(how, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "STALE_SECONDS", 2.0)
    monkeypatch.setattr(store, "BEAT_SECONDS", 0.01)
    monkeypatch.setattr(sharing, "BEAT_SECONDS", 0.02)
    there, copy, taken = place(tmp_path / "there"), getattr(*COPIES[how]), []
    folder = begin(there)

    def slowly(*files):
        if files[0] == folder.checkpoint:
            time.sleep(2.5)
            taken.append(store.Lease(folder.lease).try_acquire())
        return copy(*files)

    monkeypatch.setattr(*COPIES[how], slowly)
    send(how, there, tmp_path)
    assert taken == [False] and not folder.lease.exists()


@pytest.mark.fault(
    "sharing: another process takes a run over while it is copied",
    outcome="refused in one line; there is no archive, and nothing came in",
)
@pytest.mark.parametrize("how", COPIES)
def test_a_run_that_is_taken_over_while_it_is_copied_is_refused(how, tmp_path, monkeypatch):
    there, copy = place(tmp_path / "there"), getattr(*COPIES[how])
    folder = begin(there)

    def late(*files):
        folder.lease.unlink(missing_ok=True)
        assert store.Lease(folder.lease).try_acquire()
        return copy(*files)

    monkeypatch.setattr(*COPIES[how], late)
    with pytest.raises(OSError, match="taken over by .*Start again"):
        send(how, there, tmp_path)
    assert not list(tmp_path.glob("*a.tar*")) and everything(tmp_path / "here") == {}
    assert folder.lease.exists()


def test_results_whose_store_was_deleted_travel_alone_and_get_an_entry_again(there, tmp_path):
    for path in there.store.glob("*/*"):
        path.unlink()
    for path in there.store.glob("*"):
        path.rmdir()
    sharing.export(tmp_path / "a.tar", [], there)
    here = place(tmp_path / "here")
    sharing.import_(tmp_path / "a.tar", here)
    for run in (RUN, OTHER):
        before = store.result_path(here.results, run.run_id).read_bytes()
        assert before == store.result_path(there.results, run.run_id).read_bytes()
        assert store.make_result(store.RunFolder(here.store, run), here.results).read_bytes() == before


def test_an_entry_whose_result_was_deleted_travels_alone_and_makes_it_again(there, tmp_path):
    before = everything(tmp_path / "there")
    for path in there.results.glob("runs/*"):
        path.unlink()
    sharing.export(tmp_path / "a.tar", [], there)
    sharing.import_(tmp_path / "a.tar", place(tmp_path / "here"))
    assert everything(tmp_path / "here") == before


@pytest.mark.fault(
    "sharing: a result that was edited where it is exported",
    outcome="not exported; the result and the entry that it does not follow from are named",
)
def test_a_result_that_does_not_follow_from_its_entry_is_not_exported(there, tmp_path):
    path = store.result_path(there.results, RUN.run_id)
    path.write_text(path.read_text().replace("0.1", "0.9"))
    with pytest.raises(ValueError, match="says other than the store's entry"):
        sharing.export(tmp_path / "a.tar", [], there)
    assert not (tmp_path / "a.tar").exists()


def test_two_stores_become_one_and_the_other_is_left_as_it_was(tmp_path):
    there, here = place(tmp_path / "there"), place(tmp_path / "here")
    make(there)
    begin(there, dataclasses.replace(RUN, seeds=(11,)))
    make(here, OTHER, value=0.3)
    other, ours = everything(tmp_path / "there"), everything(tmp_path / "here")
    account = sharing.merge(there, here)
    assert account.finished == [RUN.run_id] and len(account.left_out) == 1
    assert everything(tmp_path / "there") == other
    now = everything(tmp_path / "here")
    assert (
        ours.items() <= now.items()
        and {name: now[name] for name in other if RUN.run_id in name}.items() <= other.items()
    )
    assert len(now) == 2 * (1 + len(sharing.FINISHED))
    make(there, OTHER, value=0.5)
    with pytest.raises(ValueError, match="other numbers; nothing was imported"):
        sharing.merge(there, here)
    assert everything(tmp_path / "here") == now


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(archive, tmp_path, monkeypatch):
    monkeypatch.setattr(sharing.shutil, "disk_usage", lambda _: type("usage", (), {"free": 2**20})())
    with pytest.raises(ValueError, match="Disk too full at .*: wanted 100 MiB, found 1 MiB free. Nothing was imported"):
        sharing.import_(archive, place(tmp_path / "here"))
    assert everything(tmp_path / "here") == {}
