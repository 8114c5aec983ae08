"""A disk that fills up at any write, and one that is read-only."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from faults import toy
from workflow import small

from nap_bench import cli, sharing

RUN_FILES = ("spec.json", "lease.json", "metrics.csv", "checkpoint", "env.json", "done.json", "results")


def complaints(said: str) -> list[str]:
    return [line for line in said.splitlines() if "FAILED" in line or line.startswith("nap-bench:")]


@pytest.mark.fault(
    "disk: full at any file that a run writes (its spec, lease, table, checkpoint, environment, end, result)",
    outcome="the run fails in one line that names the file and the room left; started again it goes on, to the same bytes",
)
@pytest.mark.parametrize("file", RUN_FILES)
def test_a_full_disk_fails_a_run_in_one_line_and_loses_nothing(file, tmp_path, monkeypatch, capsys):
    (line,), folder = toy.lines(), tmp_path / "full"
    part = f"{line['run_id']}.json" if file == "results" else file
    with toy.full_disk(monkeypatch, part):
        assert toy.do(folder, [line]) == 1
    (said,) = complaints(capsys.readouterr().err)
    assert part in said and "No space left on device" in said and "make room and start again" in said
    assert not list(folder.glob("results/runs/*")) and toy.hidden(folder) == []
    assert toy.do(folder, [line]) == 0
    assert toy.left(folder, line) == toy.whole(tmp_path / "whole", line)


@pytest.mark.fault(
    "disk: full while a run's failure is written down",
    outcome="the failure is said all the same, and the other runs of the pack are done",
)
def test_a_full_disk_at_the_note_of_a_failure_does_not_hide_it(tmp_path, monkeypatch, capsys):
    bad, good = toy.lines(2)
    (tmp_path / "store" / bad["run_id"]).mkdir(parents=True)
    (tmp_path / "store" / bad["run_id"] / "checkpoint").write_bytes(b"no checkpoint")
    with toy.full_disk(monkeypatch, "failed.json"):
        assert toy.do(tmp_path, [bad, good]) == 1
    said = capsys.readouterr().err
    assert f"{bad['run_id']} FAILED: ValueError: Checkpoint" in said and "could not write down why" in said
    assert [path.stem for path in tmp_path.glob("results/runs/*")] == [good["run_id"]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with two runs of `arms` and what follows from them."""
    folder = tmp_path_factory.mktemp("finished")
    small.write_plan(folder, toy.lines(2))
    assert toy.do(folder, toy.lines(2)) == 0
    at = ["--plan", str(folder / "plan.jsonl"), "--results", str(folder / "results")]
    steps = {
        "score": ["score", *at, "--exhibit", "arms"],
        "claims": ["claims", *at, "--exhibit", "arms"],
        "figure": ["figure", *at, "--exhibit", "arms"],
        "report": ["report", *at, "--store", str(folder / "store"), "--reports", str(folder / "reports")],
    }
    for words in steps.values():
        assert cli.main(words) == 0
    return folder, steps


@pytest.mark.fault(
    "disk: full while scores, claims, a figure or the report are written",
    outcome="exit code 2 and one line; the file of before stays as it was",
)
@pytest.mark.parametrize(
    ("step", "file"),
    [
        ("score", "arms.csv"),
        ("claims", "arms.json"),
        ("figure", "arms.svg"),
        ("figure", "arms.png"),
        ("report", "index.html"),
    ],
)
def test_a_full_disk_leaves_what_was_made_before(step, file, finished, monkeypatch, capsys):
    folder, steps = finished
    before = {path: path.read_bytes() for path in folder.rglob(file)}
    with toy.full_disk(monkeypatch, file):
        assert cli.main(steps[step]) == 2
    (said,) = complaints(capsys.readouterr().err)
    assert file in said and "No space left on device" in said
    assert before and {path: path.read_bytes() for path in before} == before and toy.hidden(folder) == []


@pytest.mark.fault(
    "disk: full while results are exported or imported",
    outcome="one line; no archive appears, and nothing is imported",
)
def test_a_full_disk_leaves_no_half_archive_and_no_half_import(finished, tmp_path, monkeypatch, capsys):
    folder, _ = finished
    archive, here = tmp_path / "all.tar", sharing.Place(tmp_path / "store", tmp_path / "results")
    words = ["--store", str(folder / "store"), "--results", str(folder / "results")]
    with toy.full_disk(monkeypatch, archive.name):
        assert cli.main(["store", "export", str(archive), *words]) == 2
    assert "No space left on device" in capsys.readouterr().err and os.listdir(tmp_path) == []
    assert cli.main(["store", "export", str(archive), *words]) == 0
    there = ["--store", str(here.store), "--results", str(here.results)]
    for part in ("metrics.csv", toy.lines()[0]["run_id"]):
        with toy.full_disk(monkeypatch, part):
            assert cli.main(["store", "import", str(archive), *there]) == 2
        assert "No space left on device" in capsys.readouterr().err
        assert not list(here.store.glob("[!.]*")) and not list(here.results.glob("*")) and toy.hidden(tmp_path) == []
    assert cli.main(["store", "import", str(archive), *there]) == 0
    assert small.fingerprint(here.results / "runs") == small.fingerprint(folder / "results" / "runs")


@pytest.mark.fault(
    "disk: really full: a file system of 2 MiB, which only root can make",
    outcome="refused before any work; where space runs out later, as above",
)
def test_a_file_system_without_room_is_refused_before_any_work(tmp_path, capsys, request):
    small_disk = tmp_path / "disk"
    small_disk.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(small_disk)], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("no file system can be mounted here")
    request.addfinalizer(lambda: subprocess.run(["umount", str(small_disk)], check=True))
    assert toy.do(small_disk, toy.lines()) == 1
    (said,) = complaints(capsys.readouterr().err)
    assert "wanted 100 MiB free, found 1 MiB" in said or "found 2 MiB" in said
    from nap_bench import store

    with pytest.raises(OSError, match="No space left on device.*Wanted 8.0 MiB"):
        store.write_whole(small_disk / "file", b"x" * 2**23)
    assert os.listdir(small_disk) == ["store"]


@pytest.fixture
def read_only():
    """A folder that its user cannot write to; a root is another user meanwhile."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o555)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    yield folder
    if root:
        os.seteuid(0)
    folder.chmod(0o755)
    shutil.rmtree(folder)


@pytest.mark.fault(
    "disk: a store, results or reports that may only be read",
    outcome="one line that names the folder; nothing is trained",
)
def test_a_read_only_folder_is_named_in_one_line(read_only, capsys):
    (line,) = toy.lines()
    assert toy.do(read_only, [line]) == 1
    (said,) = complaints(capsys.readouterr().err)
    assert "Permission denied" in said and str(read_only) in said
    at = ["--plan", str(small.ROOT / "config" / "plan.jsonl"), "--results", str(read_only / "results")]
    assert cli.main(["run", *at, "--store", str(read_only / "store"), "no-such-run"]) == 2
    (said,) = complaints(capsys.readouterr().err)
    assert "Permission denied" in said and str(read_only) in said
    assert os.listdir(read_only) == []


@pytest.mark.fault(
    "disk: a store that may only be read, under Snakemake",
    outcome="refused in one line before the first job",
)
def test_an_invocation_on_a_read_only_store_is_refused_in_one_line(read_only):
    from nap_bench import plan

    with pytest.raises(ValueError, match=r"Cannot write to the store .*: Permission denied"):
        plan.hold("store", read_only)


@pytest.mark.fault("disk: results that may only be read are exported", outcome="nothing else is needed")
def test_what_may_only_be_read_can_be_exported(finished, tmp_path):
    folder, _ = finished
    for path in sorted(folder.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        account = sharing.export(tmp_path / "all.tar", [], sharing.Place(folder / "store", folder / "results"))
    finally:
        for path in sorted(folder.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
    assert len(account.finished) == 2
