"""A real image: built, tested, used both ways, and equal to the host in every byte. `make test-cluster`; about ten minutes."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "workflow"))
import small  # noqa: E402

pytestmark = [
    pytest.mark.apptainer,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(shutil.which("apptainer") is None, reason="no apptainer on the PATH"),
]
PLANNED = ("--cores", "2", "--config", "plan=plan.jsonl")


def command(*words: object, cwd: Path, **environment: str) -> str:
    settings = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **environment}
    done = subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env=settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A clone with the working copy's files, a cpu image made there, and the small suite run without it."""
    folder = tmp_path_factory.mktemp("image")
    clone = folder / "clone"
    command("git", "clone", "--quiet", ROOT, clone, cwd=folder)
    spec = importlib.util.spec_from_file_location("build", ROOT / "containers" / "build.py")
    builder = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(builder)
    builder.source(clone)
    words = [sys.executable, "containers/build.py", "cpu"]
    if shutil.which("mmdebstrap"):  # needs no image registry
        command(sys.executable, "containers/base_archive.py", folder / "base.tar", cwd=clone)
        words += ["--base", f"docker-archive:{folder}/base.tar"]
    said = command(*words, "--", *shlex.split(os.environ.get("NAP_BENCH_BUILD_OPTIONS", "")), cwd=clone)
    entry = json.loads((clone / "containers" / "images.lock.json").read_text())["cpu"]
    small.write_plan(clone, small.lines())
    host = folder / "host"
    host.mkdir()
    small.write_plan(host, small.lines())
    command(*small.SNAKEMAKE[:3], "--snakefile", clone / "Snakefile", *PLANNED, cwd=host, PYTHONPATH=str(clone))
    image = clone / "containers" / "images" / entry["file"]
    return SimpleNamespace(clone=clone, image=image, entry=entry, said=said, host=small.fingerprint(host / "results"))


def environments(folder: Path) -> list[dict]:
    return [json.loads(path.read_text())["environment"] for path in (folder / "results" / "runs").glob("*.json")]


def test_the_image_passes_its_own_test_while_built_and_again_later(built):
    assert "%test passed" in built.said
    assert "%test passed" in command("apptainer", "test", built.image, cwd=built.clone)
    labels = json.loads(command("apptainer", "inspect", "--json", built.image, cwd=built.clone))
    labels = labels["data"]["attributes"]["labels"]
    lock = hashlib.sha256((built.clone / "requirements" / "lock-cpu.txt").read_bytes()).hexdigest()
    assert labels["nap-bench.lock-sha256"] == lock == built.entry["lock_sha256"]
    assert labels["nap-bench.commit"] == built.entry["commit"]


@pytest.mark.fault("image: a real one, built here", outcome="every rule in it ends with the host's bytes")
def test_every_rule_in_the_image_ends_with_the_hosts_bytes(built):
    words = ("--workflow-profile", "profiles/apptainer", *PLANNED)
    command(*small.SNAKEMAKE[:3], *words, cwd=built.clone, PYTHONPATH="/not/there")
    assert small.fingerprint(built.clone / "results") == built.host
    assert {found["container"] for found in environments(built.clone)} == {f"sha256:{built.entry['sha256']}"}
    assert {found["commit"] for found in environments(built.clone)} == {built.entry["commit"].partition("+")[0]}


def test_everything_in_one_image_ends_with_the_hosts_bytes_and_leaves_no_caches(built, tmp_path):
    small.write_plan(tmp_path, small.lines())
    command("apptainer", "run", built.image, "snakemake", *PLANNED, cwd=tmp_path, PYTHONPATH="/not/there")
    assert small.fingerprint(tmp_path / "results") == built.host
    assert {found["container"] for found in environments(tmp_path)} == {f"sha256:{built.entry['sha256']}"}
    left = {path.name for path in tmp_path.iterdir()}
    assert left <= {
        "plan.jsonl",
        "results",
        "store",
        "reports",
        "logs",
        "mlflow.db",
        "mlflow.db.lock",
        "mlartifacts",
        ".snakemake",
    }, left


def test_the_image_says_what_it_needs(built, tmp_path):
    assert "snakemake --cores all" in command("apptainer", "run", built.image, cwd=tmp_path)
    done = subprocess.run(
        ["apptainer", "run", "--no-mount", "home,cwd", "--pwd", "/opt", built.image, "snakemake"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2 and "wanted to write results to /opt" in done.stderr


def test_gpus_of_a_cluster_survive_cleanenv(built, monkeypatch):
    from nap_bench import apptainer

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    image = apptainer.recorded(built.clone, "cpu", "containers/images")
    monkeypatch.chdir(built.clone)
    said = command(
        *apptainer.inside(image, "--nv --cleanenv"), "env", cwd=built.clone, **apptainer.told(image, built.clone)
    )
    assert "CUDA_VISIBLE_DEVICES=1\n" in said and f"PYTHONPATH={built.clone}\n" in said
