"""The locks, the installer's refusals, and the Makefile's exit codes. Installs nothing and needs no network."""

import ast
import fcntl
import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = ROOT / "requirements"
LOCKS = ("constraints.txt", "lock-cpu.txt", "lock-cuda.txt")


def load_installer():
    spec = importlib.util.spec_from_file_location("install", REQUIREMENTS / "install.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


install = load_installer()


def direct_requirements() -> list[Requirement]:
    lines = (line.split("#")[0].strip() for line in (REQUIREMENTS / "requirements.in").read_text().splitlines())
    return [Requirement(line) for line in lines if line]


def pins(lock: str) -> dict[str, str]:
    """Version of every package, without the local part (+cpu): a build, not a version."""
    found = re.findall(r"^([A-Za-z0-9_.-]+)==([^\s;+]+)", (REQUIREMENTS / lock).read_text(), re.MULTILINE)
    return {canonicalize_name(name): version for name, version in found}


# locks


@pytest.mark.parametrize("lock", LOCKS)
def test_every_direct_requirement_is_pinned_to_a_version_it_allows(lock):
    versions = pins(lock)
    for requirement in direct_requirements():
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), requirement


@pytest.mark.parametrize("lock", ("lock-cpu.txt", "lock-cuda.txt"))
def test_the_hashed_locks_pin_what_the_constraints_pin(lock):
    constraints = pins("constraints.txt")
    assert {name: constraints.get(name) for name in pins(lock)} == pins(lock)


@pytest.mark.parametrize("lock", ("lock-cpu.txt", "lock-cuda.txt"))
def test_every_pin_of_a_hashed_lock_has_a_hash(lock):
    text = (REQUIREMENTS / lock).read_text()
    entries = re.split(r"^(?=[A-Za-z0-9])", text, flags=re.MULTILINE)[1:]
    assert len(entries) == len(pins(lock)) > 100
    assert [entry for entry in entries if not re.search(r"--hash=sha256:[0-9a-f]{64}\b", entry)] == []


def test_the_cpu_lock_holds_the_cpu_build_and_the_cuda_lock_holds_nvidia_libraries():
    assert re.search(r"^torch==[\d.]+\+cpu ", (REQUIREMENTS / "lock-cpu.txt").read_text(), re.MULTILINE)
    assert not [name for name in pins("lock-cpu.txt") if name.startswith(("nvidia-", "triton"))]
    assert [name for name in pins("lock-cuda.txt") if name.startswith("nvidia-")]


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_names_no_host_and_no_path(lock):
    text = (REQUIREMENTS / lock).read_text()
    assert re.findall(r"\S*://\S*|file:\S*|--find-links.*|--(?:extra-)?index-url.*|(?:^|\s)[~.]*/\S+", text) == []


def test_pyproject_names_the_packages_of_requirements_in():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    extras.pop("lm")  # wanted only by who streams C4: named here, in no lock
    named = project["dependencies"] + [name for names in extras.values() for name in names]
    assert sorted([*named, "pip", "setuptools"]) == sorted(requirement.name for requirement in direct_requirements())


# refusals


def test_a_short_disk_is_refused_with_what_was_wanted_found_and_where(tmp_path):
    download, installed = install.MEGABYTES["CUDA"]
    with pytest.raises(install.Refusal) as refusal:
        install.refuse_short_disk(tmp_path, "CUDA", free=1234)
    for part in (f"{installed + 2 * download:,} MB", "1,234 MB", str(tmp_path), "repeat the command"):
        assert part in str(refusal.value)


def test_what_is_already_installed_is_not_wanted_again(tmp_path):
    download, installed = install.MEGABYTES["CPU"]
    install.refuse_short_disk(tmp_path, "CPU", stored=installed, free=2 * download)


@pytest.mark.parametrize("missing", ("venv", "ensurepip"))
def test_a_missing_module_is_one_line_with_the_command_that_installs_it(missing):
    with pytest.raises(install.Refusal, match=rf"no {missing}\b.*apt-get install python3\.\d+-venv") as refusal:
        install.refuse_without_venv(find=lambda name: None if name == missing else name)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("version", ((3, 6), (3, 10), (3, 15)))
def test_a_python_without_pins_is_one_line_with_the_command_that_installs_the_right_one(version):
    found = f"found {version[0]}.{version[1]} at /bin/old"
    with pytest.raises(install.Refusal, match=f"Wanted Python 3.11.*{found}.*apt-get install"):
        install.python_to_use(version, "/bin/old", which=lambda name: None)


def test_the_tested_python_is_preferred_where_it_runs():
    assert install.python_to_use((3, 11), "/bin/this", which=lambda name: pytest.fail("not needed")) == "/bin/this"
    assert install.python_to_use((3, 9), "/bin/this", which={"python3.11": sys.executable}.get) == sys.executable
    broken_shim = shutil.which("false")
    assert install.python_to_use((3, 12), "/bin/this", which={"python3.11": broken_shim}.get) == "/bin/this"


def test_an_old_python_can_read_the_installer():
    ast.parse((REQUIREMENTS / "install.py").read_text(), feature_version=(3, 6))


# installing

FILES = ("requirements/requirements.in", "requirements/constraints.txt", "pyproject.toml")


@pytest.fixture
def root(tmp_path):
    for file in FILES:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    return tmp_path


class Rehearsal(install.Installation):
    """Does everything but run commands."""

    def __init__(self, root):
        super().__init__(root)
        self.commands = []

    def run(self, name, *command, check=True):
        self.commands.append(" ".join(command))
        return 0

    def build_of_torch(self, torch):
        return "CPU"


def rehearse(root: Path) -> list[str]:
    rehearsal = Rehearsal(root)
    rehearsal.install()
    return rehearsal.commands


def test_a_refusal_is_shown_without_a_traceback_and_leaves_nothing_behind(root):
    code = (
        "import sys, pathlib; sys.path.insert(0, sys.argv[1]); sys.dont_write_bytecode = True; import install\n"
        "install.MEGABYTES['CPU'] = (10**9, 10**9)\ninstall.python_to_use = lambda: sys.executable\n"
        "install.main(pathlib.Path(sys.argv[2]))"
    )
    done = subprocess.run([sys.executable, "-c", code, REQUIREMENTS, root], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("make env: Wanted 3,000,000,000 MB") and done.stderr.count("\n") == 1
    assert not (root / ".venv").exists()


def test_it_says_how_much_will_be_downloaded_and_stored_before_it_installs(root, capsys):
    rehearse(root)
    download, installed = install.MEGABYTES["CPU"]
    said = capsys.readouterr().out
    assert f"about {download:,} MB to download" in said and f"{installed:,} MB in .venv" in said


def test_a_finished_environment_is_recognised_and_nothing_is_run(root, capsys):
    assert rehearse(root) != []
    assert rehearse(root) == []
    assert capsys.readouterr().out.endswith("The environment .venv is complete.\n")


@pytest.mark.parametrize("file", FILES)
def test_a_changed_lock_or_project_is_installed_again(root, file):
    rehearse(root)
    with (root / file).open("a") as stream:
        stream.write("# changed\n")
    assert any("-r requirements/requirements.in" in command for command in rehearse(root))


def test_an_interrupted_installation_is_completed(root, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Rehearsal, "pip", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            rehearse(root)
    packages = root / ".venv/lib/python3.11/site-packages"
    for package, last_file in (("whole", "RECORD"), ("half", "METADATA")):
        (packages / f"{package}-1.0.dist-info").mkdir(parents=True)
        (packages / f"{package}-1.0.dist-info" / last_file).touch()
    assert rehearse(root) != []
    assert [path.name for path in packages.iterdir()] == ["whole-1.0.dist-info"]
    assert rehearse(root) == []


def test_an_environment_of_another_folder_is_made_again_and_a_foreign_one_is_left_alone(root):
    rehearse(root)
    install.write_stamp(root / ".venv", "/elsewhere, Python 3.11", install.digest(root))
    (root / ".venv/old").touch()
    assert rehearse(root) != []
    assert not (root / ".venv/old").exists()

    (root / ".venv/nap_bench.stamp").unlink()
    with pytest.raises(install.Refusal, match="did not make"):
        rehearse(root)
    assert (root / ".venv/install.log").exists()


@pytest.fixture
def installation(root, monkeypatch):
    monkeypatch.setattr(install, "HEARTBEAT_SECONDS", 0.2)
    made = install.Installation(root)
    made.venv.mkdir()
    made.lock()
    return made


def test_a_silent_command_is_reported_at_every_heartbeat(installation, capsys):
    code = "import time; print('Collecting torch', flush=True); print('[notice] new pip', flush=True); time.sleep(1.3)"
    installation.run("pip:", sys.executable, "-c", code)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= 3
    assert re.fullmatch(r" +\d+ s, \d+ MB in \.venv, pip: Collecting torch", lines[-1])


def test_a_failed_command_is_reported_with_its_error_and_the_log(installation):
    code = "print('Collecting torch\\nWARNING: Location x is ignored: it is neither\\nERROR: No space left'); exit(3)"
    with pytest.raises(install.Refusal) as refusal:
        installation.run("pip:", sys.executable, "-c", code)
    text = str(refusal.value)
    assert "pip failed (exit code 3):\n  ERROR: No space left\n" in text and str(installation.log_path) in text
    assert "ignored" in installation.log_path.read_text()


def test_a_second_installation_waits_for_the_first_ones_child(installation, capsys):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3)"], stdout=installation.log)
    installation.log.close()  # as when the parent is killed
    second = install.Installation(installation.root)
    second.lock()
    assert child.poll() is not None or child.wait(timeout=20) == 0
    assert "waiting for another installation" in capsys.readouterr().out
    with open(second.log_path) as stream, pytest.raises(BlockingIOError):
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)


# the Makefile


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = ["make", "--no-print-directory", "-f", str(ROOT / "Makefile"), "PYTHON=true", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize("code", (0, 1))
def test_reproduce_ends_with_where_the_report_is_and_fails_when_the_workflow_does(tmp_path, code):
    snakemake = tmp_path / ".venv/bin/snakemake"
    snakemake.parent.mkdir(parents=True)
    snakemake.write_text(
        f"#!/bin/sh\nmkdir -p reports/laptop; touch mlflow.db reports/laptop/index.html reports/laptop/partial.html; exit {code}\n"
    )
    snakemake.chmod(0o755)
    done = make(tmp_path, "reproduce")
    assert (done.returncode != 0) == (code != 0)
    assert done.stdout.splitlines()[-2:] == [
        f"Report:    {tmp_path}/reports/laptop/{'partial' if code else 'index'}.html",
        "Dashboard: make dashboard",
    ]


def test_clean_says_what_it_frees_and_keeps_what_took_compute(tmp_path):
    for folder in (".venv", "store", "results", "reports/laptop", "reports/published"):
        (tmp_path / folder).mkdir(parents=True)
    said = make(tmp_path, "clean").stdout
    assert re.search(r"Removing:\n.*\.venv\n.*reports/laptop\n.*total\nKept.*ALL=yes.*\n.*store\n.*results\n", said)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["reports", "results", "store"]
    make(tmp_path, "clean", "ALL=yes")
    assert [path.name for path in tmp_path.rglob("*")] == ["reports", "published"]
