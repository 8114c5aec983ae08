"""Definition, build command and image lock, without a real Apptainer: what is refused, and what a lock says."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path

import fake_apptainer
import pytest
import yaml

from nap_bench import apptainer, doctor, jobs

ROOT = Path(__file__).parents[2]
CONTAINERS = ROOT / "containers"
DEFINITION = (CONTAINERS / "nap-bench.def").read_text()
NO_BASE = "docker-archive:base.tar"


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, CONTAINERS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


builder, archiver = load("build"), load("base_archive")


def section(name: str) -> str:
    return re.search(rf"^%{name}\n(.*?)(?=^%|\Z)", DEFINITION, re.MULTILINE | re.DOTALL)[1]


# the definition


def test_one_templated_header_serves_a_registry_and_an_archive():
    assert DEFINITION.startswith("Bootstrap: {{ BOOTSTRAP }}\nFrom: {{ FROM }}\n")
    assert re.search(r"^ *BOOTSTRAP=docker$", section("arguments"), re.MULTILINE)


def test_the_production_base_is_pinned_by_digest_and_nothing_says_latest():
    assert re.fullmatch(builder.PINNED, builder.default_base(DEFINITION))
    assert "latest" not in DEFINITION


def test_every_argument_that_is_used_is_declared_and_every_declared_one_is_used():
    declared = set(re.findall(r"^ *([A-Z_0-9]+)=", section("arguments"), re.MULTILINE))
    assert set(re.findall(r"\{\{ (\w+) \}\}", DEFINITION)) == declared


def test_packages_are_installed_by_hash_from_the_lock_that_the_label_names():
    installs = [line for line in section("post").splitlines() if "pip install" in line]
    assert all("--require-hashes" in line or "--no-index" in line for line in installs) and len(installs) == 3
    assert 'echo "{{ LOCK_SHA256 }}  {{ LOCK }}" | sha256sum --check' in section("post")
    assert "lock-sha256 {{ LOCK_SHA256 }}" in section("labels") and "commit {{ COMMIT }}" in section("labels")


def test_an_image_names_no_host_and_no_path_of_the_machine_that_builds_it():
    for path in (*CONTAINERS.glob("*.def"), *CONTAINERS.glob("*.py"), CONTAINERS / "USAGE"):
        text = path.read_text()
        assert not re.search(r"https?://|/home/|/root\b", text), path


def test_caches_lie_outside_the_working_directory():
    for name in ("XDG_CACHE_HOME", "MPLCONFIGDIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        assert re.search(rf"\b{name}=(/tmp|\$XDG_CACHE_HOME)/", section("environment"))


def test_builder_and_workflow_agree_on_flavours_and_on_where_the_lock_is():
    assert (builder.FLAVOURS, builder.LOCK_FILE) == (apptainer.FLAVOURS, apptainer.LOCK_FILE)


@pytest.mark.parametrize("name", ("build.py", "base_archive.py"))
def test_an_old_python_can_read_what_runs_on_a_login_node(name):
    ast.parse((CONTAINERS / name).read_text(), feature_version=(3, 6))


def test_the_committed_lock_is_of_this_repository():
    """Its images may be old; what it says of them has to be whole."""
    for flavour, entry in json.loads((ROOT / apptainer.LOCK_FILE).read_text()).items():
        assert entry["file"] == f"nap-bench-{flavour}-{entry['sha256'][:12]}.sif"
        assert set(entry) == WRITTEN
        assert re.fullmatch(builder.PINNED, entry["base"])


# the build command


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A clone with what a build needs, on a PATH with a fake apptainer."""
    root = tmp_path / "clone"
    for name in ("containers/nap-bench.def", *builder.FLAVOURS.values()):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    (root / ".gitignore").write_text("/containers/images/\n")
    git(root, "init", "--quiet")
    git(root, "add", ".")
    git(root, "-c", "user.name=n", "-c", "user.email=e", "commit", "--quiet", "-m", "m")
    monkeypatch.setattr(builder, "ROOT", root)
    monkeypatch.setattr(builder, "GIGABYTES", {"cpu": 0, "gpu": 0})
    monkeypatch.setattr(builder, "pip_settings", dict)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{fake_apptainer.install(tmp_path / 'fake')}:/usr/bin:/bin")
    (tmp_path / "base.tar").write_bytes(b"a base")
    return root


def git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", root, *arguments], check=True, capture_output=True, text=True).stdout


def build(*arguments: str) -> None:
    builder.main([*arguments[:1], "--images", str(builder.ROOT / "containers" / "images"), *arguments[1:]])


def refused(*arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        build(*arguments)
    assert not (builder.ROOT / apptainer.LOCK_FILE).exists()
    assert "\n" not in str(stopped.value)
    return str(stopped.value)


WRITTEN = {
    *("file", "sha256", "bytes", "commit", "lock", "lock_sha256", "base", "definition_sha256", "apptainer", "built"),
}


@pytest.mark.parametrize("flavour", ("cpu", "gpu"))
def test_an_image_is_named_by_its_content_and_written_down_with_its_origin(repository, flavour, tmp_path):
    build(flavour, "--base", NO_BASE, "--", "--fakeroot")
    entry = json.loads((repository / apptainer.LOCK_FILE).read_text())[flavour]
    assert set(entry) == WRITTEN
    image = repository / "containers" / "images" / entry["file"]
    assert hashlib.sha256(image.read_bytes()).hexdigest() == entry["sha256"]
    assert image.name == f"nap-bench-{flavour}-{entry['sha256'][:12]}.sif"
    assert entry["commit"] == git(repository, "rev-parse", "HEAD").strip()
    assert entry["lock_sha256"] == hashlib.sha256((repository / entry["lock"]).read_bytes()).hexdigest()
    assert entry["base"] == f"docker-archive@sha256:{hashlib.sha256(b'a base').hexdigest()}"
    (call,) = fake_apptainer.calls(tmp_path / "fake", "build")
    assert call["options"][0] == "--fakeroot"
    told = dict(word.split("=", 1) for word in call["values"]["--build-arg"])
    declared = set(re.findall(r"^ *([A-Z_0-9]+)=", section("arguments"), re.MULTILINE))
    assert set(told) == declared and told["LOCK_SHA256"] == entry["lock_sha256"]
    assert [path.name for path in image.parent.iterdir()] == [image.name], "nothing else is left behind"
    assert apptainer.recorded(repository, flavour, "containers/images").path == image


def test_the_definitions_own_base_is_used_where_none_is_named(repository, tmp_path):
    build("cpu")
    (call,) = fake_apptainer.calls(tmp_path / "fake", "build")
    assert f"FROM={builder.default_base(DEFINITION)}" in call["values"]["--build-arg"]
    assert "BOOTSTRAP=docker" in call["values"]["--build-arg"]


def test_a_changed_working_copy_says_so_and_its_own_lock_is_no_change(repository):
    build("cpu", "--base", NO_BASE)
    build("gpu", "--base", NO_BASE)
    (repository / "new.py").touch()
    build("cpu", "--base", NO_BASE)
    entries = json.loads((repository / apptainer.LOCK_FILE).read_text())
    assert entries["cpu"]["commit"].endswith("+changes") and "+" not in entries["gpu"]["commit"]


@pytest.mark.parametrize("base", ("python:3.11-slim", "python:latest", "python@sha256:12", "docker://python"))
def test_a_base_that_could_be_another_image_tomorrow_is_refused(repository, base):
    assert re.search(r"Wanted a base by digest.*found", refused("cpu", "--base", base))


def test_a_missing_archive_is_refused_with_the_command_that_makes_it(repository):
    assert "python3 containers/base_archive.py none.tar" in refused("cpu", "--base", "docker-archive:none.tar")


def test_no_apptainer_or_an_old_one_is_refused(repository, monkeypatch, tmp_path):
    old = fake_apptainer.install(tmp_path / "old", version="1.1.9")
    monkeypatch.setenv("PATH", f"{old}:/usr/bin:/bin")
    assert re.search(r"1\.2 or newer, found 'apptainer version 1\.1\.9'", refused("cpu", "--base", NO_BASE))
    monkeypatch.setattr(builder.shutil, "which", lambda name: None)
    assert "module load apptainer" in refused("cpu", "--base", NO_BASE)


def test_a_short_disk_a_folder_with_a_space_and_no_clone_are_refused(repository, monkeypatch, tmp_path):
    monkeypatch.setattr(builder, "GIGABYTES", {"cpu": 10**6})
    assert re.search(r"Wanted 1000000 GB .* found \d+ GB free .*APPTAINER_TMPDIR", refused("cpu", "--base", NO_BASE))
    monkeypatch.setattr(builder, "GIGABYTES", {"cpu": 0})
    assert "without spaces" in refused("cpu", "--images", str(tmp_path / "a b"), "--base", NO_BASE)
    shutil.rmtree(repository / ".git")
    assert "clone of the repository" in refused("cpu", "--base", NO_BASE)


@pytest.mark.fault("image: its build fails", outcome="lock and folder stay as they were")
def test_a_failed_build_leaves_the_lock_and_the_folder_as_they_were(repository, tmp_path):
    (tmp_path / "fake" / "fails").touch()
    assert "exit code 255" in refused("cpu", "--base", NO_BASE)
    assert list((repository / "containers" / "images").iterdir()) == []


def test_pip_settings_of_the_machine_reach_the_build_with_the_folders_they_name(tmp_path):
    for folder in ("wheels", "index/simple", "settings"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "ca.crt").write_text("certificates")
    named = {
        "find-links": str(tmp_path / "wheels"),
        "extra-index-url": f"file://{tmp_path}/index/simple https://index.example/simple",
        "cert": str(tmp_path / "ca.crt"),
    }
    binds = builder.bound(named, tmp_path / "settings")
    written = (tmp_path / "settings" / "pip.conf").read_text()
    assert binds == [
        f"{tmp_path}/settings:/mnt",
        f"{tmp_path}/index:/mnt/1",
        f"{tmp_path}/wheels:/mnt/2",
    ]
    assert "extra-index-url = file:///mnt/1/simple https://index.example/simple\n" in written
    assert "find-links = /mnt/2\n" in written and "cert = /mnt/ca.crt\n" in written
    assert str(tmp_path) not in written
    assert {path.name for path in (tmp_path / "settings").iterdir()} == {"pip.conf", "ca.crt", "1", "2"}


# the archive


def test_a_base_archive_is_what_docker_would_load_and_has_no_devices(tmp_path):
    import io
    import tarfile

    with tarfile.open(tmp_path / "whole.tar", "w") as file:
        device = tarfile.TarInfo("./dev/null")
        device.type = tarfile.CHRTYPE
        file.addfile(device)
        text = tarfile.TarInfo("./etc/os-release")
        text.size = 3
        file.addfile(text, io.BytesIO(b"abc"))
    archiver.without_devices(tmp_path / "whole.tar", tmp_path / "layer.tar")
    archiver.pack(str(tmp_path / "layer.tar"), str(tmp_path / "packed.tar"))
    with tarfile.open(tmp_path / "packed.tar") as file:
        (manifest,) = json.load(file.extractfile("manifest.json"))
        configuration = json.load(file.extractfile(manifest["Config"]))
        layer = file.extractfile(manifest["Layers"][0]).read()
        assert configuration["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(layer).hexdigest()}"]
        assert tarfile.open(fileobj=io.BytesIO(layer)).getnames() == ["./etc/os-release"]


def test_the_archives_mirror_is_the_one_apt_is_configured_with(monkeypatch):
    rows = "Debian|http://m.example/debian/|bookworm|main\nOther|http://o.example/|stable|main\nDebian|http://m.example/debian/|sid|main\n"
    answer = subprocess.CompletedProcess([], 0, stdout=rows.encode())
    monkeypatch.setattr(archiver.subprocess, "run", lambda *_, **__: answer)
    assert archiver.sources() == "deb http://m.example/debian/ bookworm main\n"
    answer.stdout = b""
    with pytest.raises(ValueError, match="found none"):
        archiver.sources()


# what a job is told, and what results say


def test_an_image_of_other_packages_a_missing_one_and_a_changed_one_are_one_line_each(repository):
    build("cpu", "--base", NO_BASE)
    image = apptainer.recorded(repository, "cpu", "containers/images")
    apptainer.verify(image)
    with pytest.raises(ValueError, match="No gpu image is recorded .*containers/build.py gpu$"):
        apptainer.recorded(repository, "gpu", "containers/images")
    image.path.write_bytes(b"another")
    with pytest.raises(ValueError, match=r"wanted sha256 \w{12}, found \w{12}\. Copy it again"):
        apptainer.verify(image)
    image.path.unlink()
    with pytest.raises(ValueError, match="No image at .*images_dir=FOLDER"):
        apptainer.recorded(repository, "cpu", "containers/images")
    (repository / "requirements" / "lock-cpu.txt").write_text("changed")
    with pytest.raises(ValueError, match="holds other packages than requirements/lock-cpu.txt"):
        apptainer.recorded(repository, "cpu", "containers/images")


def test_a_job_is_told_its_code_commit_image_and_gpus(repository, monkeypatch):
    build("cpu", "--base", NO_BASE)
    image = apptainer.recorded(repository, "cpu", "containers/images")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    told = apptainer.told(image, repository)
    assert told == {
        "APPTAINERENV_PYTHONPATH": str(repository),
        "APPTAINERENV_NAP_BENCH_CONTAINER": f"sha256:{image.sha256}",
        "APPTAINERENV_NAP_BENCH_COMMIT": git(repository, "rev-parse", "HEAD").strip(),
        "APPTAINERENV_CUDA_VISIBLE_DEVICES": "2,3",
    }
    shutil.rmtree(repository / ".git")
    assert apptainer.told(image, repository)["APPTAINERENV_NAP_BENCH_COMMIT"] == ""


def test_results_made_in_an_image_say_its_hash_and_the_codes_commit(monkeypatch):
    assert jobs.environment("cpu")["container"] is None
    monkeypatch.setenv("NAP_BENCH_CONTAINER", "sha256:12")
    monkeypatch.setenv("NAP_BENCH_COMMIT", "abc+changes")
    found = jobs.environment("cpu")
    assert (found["container"], found["commit"], found["dirty"]) == ("sha256:12", "abc", True)
    monkeypatch.setenv("NAP_BENCH_COMMIT", "abc")
    assert jobs.environment("cpu")["dirty"] is False


def test_the_doctor_reports_images_and_what_to_do(repository, monkeypatch):
    monkeypatch.setattr(doctor.plan, "ROOT", repository)
    build("cpu", "--base", NO_BASE)
    cpu, gpu = doctor.images("containers/images")
    assert cpu.status == doctor.OK and "--workflow-profile profiles/apptainer" in cpu.command
    assert gpu.status == doctor.OPTIONAL and gpu.command == "python3 containers/build.py gpu"
    apptainer.recorded(repository, "cpu", "containers/images").path.write_bytes(b"another")
    assert next(doctor.images("containers/images")).status == doctor.OPTIONAL
    monkeypatch.setenv("NAP_BENCH_CONTAINER", "sha256:12")
    (check,) = doctor.images("containers/images")
    assert check.status == doctor.OK and "sha256:12" in check.finding


def test_the_profile_passes_the_driver_in_and_keeps_what_the_default_one_says():
    default, profile = (
        yaml.safe_load((ROOT / "profiles" / name / "config.yaml").read_text()) for name in ("default", "apptainer")
    )
    assert profile.pop("software-deployment-method") == "apptainer"
    assert "--nv" in profile.pop("apptainer-args").split()
    assert profile == default


def test_the_readme_names_the_commands_of_both_ways():
    text = (CONTAINERS / "README.md").read_text()
    for words in (
        "containers/build.py cpu",
        "base_archive.py",
        "--workflow-profile profiles/apptainer",
        "apptainer run",
    ):
        assert words in text
