"""The doctor: finds what is wrong with a machine, says what to do, and leaves no trace."""

from __future__ import annotations

import json
import socket
import sqlite3
import sys
from types import SimpleNamespace

import pytest

from nap_bench import cli, doctor, plan
from nap_bench.doctor import FAILS, OK, OPTIONAL, Check


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A folder with a plan of three runs, one of which wants MNIST."""
    monkeypatch.chdir(tmp_path)
    uses = [
        {"laptop": {"arms": [["nap", ""]]}},
        {"laptop": {"arms": [["off", ""]]}},
        {"workstation": {"arms": [["nap", ""]]}},
    ]
    part = {"methods": [], "resources": "small", "work": 1000, "run": {"seeds": [0]}}
    lines = [{"run_id": f"r{i}", "uses": use, **part} for i, use in enumerate(uses)]
    lines[2]["data"] = "mnist"
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "plan.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [{}, *lines]))
    return tmp_path


def rows(text: str) -> dict[str, str]:
    """Name -> status of a printed table."""
    found = [line for line in text.splitlines() if line and not line.startswith(" ")]
    return {line[14:28].strip(): line[:14].strip() for line in found}


def everything(folder) -> set[str]:
    return {str(path) for path in folder.rglob("*")}


def test_a_good_machine_is_ready_for_laptop_scale_and_nothing_is_written(repository, capsys):
    before = everything(repository)
    assert cli.main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert everything(repository) == before
    found = rows(printed)
    assert found["plan"] == found["torch"] == found["laptop"] == OK
    assert found["mnist"] == OPTIONAL
    assert "-> nap-bench data mnist --data-dir data" in printed
    assert "Wanted in data at workstation scale" in " ".join(printed.split())
    assert "-> make reproduce" in printed
    assert all(len(line) < 80 or "-> " in line or "/" in line for line in printed.splitlines())


def test_a_bad_plan_and_a_bad_tracker_are_named_with_what_to_do(repository, capsys):
    (repository / "config" / "plan.jsonl").write_text('{"digest": "old"}\n')
    (repository / "mlflow.db").write_text("no database, but long enough to be looked at as one" * 100)
    assert cli.main(["doctor"]) == 1
    printed = capsys.readouterr().out
    found = rows(printed)
    assert [found[name] for name in ("plan", "tracker", "laptop", "paper")] == [FAILS] * 4
    assert "No planned run" not in printed  # nobody knows
    assert "-> nap-bench plan" in printed and "plan, tracker" in printed and "tracking_uri" in printed


def test_without_a_plan_the_doctor_says_how_to_make_one(tmp_path):
    lines, check = doctor.planned(tmp_path / "plan.jsonl")
    assert (lines, check.status, check.command) == ([], FAILS, "nap-bench plan")


@pytest.mark.parametrize(
    ("text", "reason"),
    [('{"digest": "old"}', "older than the sources"), ("{}\n{", "is not JSON"), ("", "is empty"), ("{}\n{}", "lacks")],
)
def test_a_plan_that_cannot_be_used_says_how_to_renew_it(text, reason, tmp_path):
    (tmp_path / "plan.jsonl").write_text(text)
    _, check = doctor.planned(tmp_path / "plan.jsonl")
    assert (check.status, check.command) == (FAILS, "nap-bench plan") and reason in check.finding


def test_too_little_disk_is_refused_with_both_numbers(tmp_path, monkeypatch):
    assert doctor.disk(tmp_path / "store" / "deep", 10).status == OK
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: SimpleNamespace(free=2**30))
    assert doctor.disk(tmp_path / "store", 400).status == OK
    check = doctor.disk(tmp_path / "store", 1000)
    assert check.status == FAILS and "1.0 GiB free" in check.finding and "2.1 GiB wanted" in check.finding


def test_a_folder_that_cannot_be_written_to_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor.os, "access", lambda *_: False)  # the tests may run as root
    assert doctor.disk(tmp_path / "store", 1).status == FAILS
    assert doctor.tracker(f"sqlite:///{tmp_path}/mlflow.db").status == FAILS


def test_every_kind_of_tracker_is_tried_and_none_is_created(tmp_path):
    path = tmp_path / "new" / "mlflow.db"
    assert doctor.tracker(f"sqlite:///{path}").status == OK
    assert not path.parent.exists()

    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("CREATE TABLE t (x)")
    before = everything(tmp_path)
    assert doctor.tracker(f"sqlite:///{tmp_path}/mlflow.db").status == OK
    database.execute("BEGIN EXCLUSIVE")
    assert "being written" in doctor.tracker(f"sqlite:///{tmp_path}/mlflow.db").finding
    database.close()
    assert everything(tmp_path) == before

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert doctor.tracker(f"http://127.0.0.1:{port}").status == OK
        assert doctor.tracker(f"postgresql+psycopg://u:p@127.0.0.1:{port}/x").status == OK
    check = doctor.tracker(f"http://127.0.0.1:{port}")
    assert check.status == FAILS and f"127.0.0.1:{port}" in check.finding
    assert doctor.tracker("nonsense://").status == FAILS
    assert doctor.tracker("http://host:port").status == FAILS


@pytest.mark.parametrize(
    ("version", "status"), [((3, 10, 9), FAILS), ((3, 11, 0), OK), ((3, 14, 2), OK), ((3, 15, 0), FAILS)]
)
def test_python_has_to_be_one_that_the_package_declares(version, status, monkeypatch):
    monkeypatch.setattr(sys, "version_info", version)
    assert doctor.python().status == status


def test_packages_that_are_not_installed_are_named(monkeypatch):
    assert doctor.packages().status == OK
    monkeypatch.setattr(doctor, "SUITE", ("no-such-package",))
    assert "no-such-package: runs can be made" in doctor.packages().finding
    monkeypatch.setattr(doctor, "CORE", ("neither-this",))
    assert "neither-this, no-such-package: no run can be made" in doctor.packages().finding


def test_a_torch_that_does_not_import_fails_and_what_needs_it_is_not_looked_at(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (check,) = doctor.torch_and_what_needs_it("data", [])
    assert (check.status, check.name, check.command) == (FAILS, "torch", "make env")


def test_gpus_are_named_with_their_memory_and_a_wrong_build_is_said(monkeypatch):
    cards = [
        SimpleNamespace(name="H200", total_memory=139 * 2**30),
        SimpleNamespace(name="T4", total_memory=15 * 2**30),
    ]
    cuda = SimpleNamespace(is_available=lambda: True, device_count=lambda: 2, get_device_properties=cards.__getitem__)
    torch = SimpleNamespace(version=SimpleNamespace(cuda="13.0"), cuda=cuda)
    assert doctor.gpu(torch) == Check(OK, "GPU", "cuda:0 H200, 139 GiB; cuda:1 T4, 15 GiB.")
    cuda.is_available = lambda: False
    assert doctor.gpu(torch).status == OPTIONAL
    torch.version.cuda = None
    monkeypatch.setattr(doctor.shutil, "which", lambda _: None)
    assert doctor.gpu(torch).finding == "no GPU: laptop scale and --device cpu only."
    monkeypatch.setattr(doctor.shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    assert "built for the CPU" in doctor.gpu(torch).finding


def test_what_follows_for_a_scale_is_read_off_the_checks():
    lines = [{"run_id": "r", "uses": {"laptop": {}}}, {"run_id": "s", "uses": {"workstation": {}}, "data": "mnist"}]
    good, gpu, mnist = Check(OK, "torch", ""), Check(OK, "GPU", ""), Check(OK, "mnist", "")
    assert doctor.prospect("laptop", lines, [good])[0] == OK
    assert doctor.prospect("workstation", lines, [good])[0] == OPTIONAL
    status, _, words, command = doctor.prospect("workstation", lines, [good, gpu])
    assert status == OK and "mnist" in words and "device=cuda" in command
    assert doctor.prospect("workstation", lines, [good, gpu, mnist])[2] == "will work."
    for scale in plan.SCALES:
        assert doctor.prospect(scale, lines, [good, Check(FAILS, "disk", "")])[0] == FAILS
