"""Profile `apptainer` on the real workflow and a small suite, with an Apptainer that runs commands on the host."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import fake_apptainer
import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "workflow"))
import small  # noqa: E402

pytestmark = pytest.mark.timeout(300)
COPIED = ("Snakefile", "workflows", "config", "profiles", "nap_bench", "requirements")
CONTENT = b"an image"
NAME = f"nap-bench-cpu-{hashlib.sha256(CONTENT).hexdigest()[:12]}.sif"


@pytest.fixture
def repository(tmp_path):
    """A copy of the repository with an image and the lock that names it, and a fake apptainer beside it."""
    root = tmp_path / "repository"
    for name in COPIED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        root.mkdir(exist_ok=True)
        copy(ROOT / name, root / name)
    (root / "containers" / "images").mkdir(parents=True)
    (root / "containers" / "images" / NAME).write_bytes(CONTENT)
    entry = {"file": NAME, "sha256": hashlib.sha256(CONTENT).hexdigest(), "lock_sha256": sha256(root, "lock-cpu.txt")}
    (root / "containers" / "images.lock.json").write_text(json.dumps({"cpu": entry}))
    fake_apptainer.install(tmp_path / "fake")
    small.write_plan(root, small.lines(num_tasks=1, steps_per_task=10)[:2])
    return root


def sha256(root: Path, lock: str) -> str:
    return hashlib.sha256((root / "requirements" / lock).read_bytes()).hexdigest()


def snakemake(root: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Snakemake started in the repository, as a user starts it; small.lines' first two results."""
    names = [f"results/runs/{line['run_id']}.json" for line in small.lines(1, 10)[:2]]
    words = [sys.executable, "-m", "snakemake", "--workflow-profile", "profiles/apptainer", "--cores", "1"]
    path = f"{root.parent / 'fake' / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    told = {**os.environ, "PATH": path, "PYTHONPATH": "/the/callers/own", **environment}
    config = arguments if "--config" in arguments else ("--config", *arguments)
    words += [*config, "plan=plan.jsonl", "--", *names]
    return subprocess.run(
        words, cwd=root, env=told, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=200
    )


def reason(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that says why nothing was started."""
    assert done.returncode != 0
    said = [line for line in done.stdout.splitlines() if line.strip() and "WorkflowError" not in line]
    found = [line for line in said if "containers/" in line or "Bind it" in line or "module load" in line]
    assert len(found) == 1, done.stdout
    assert "Traceback" not in done.stdout and "[run]" not in done.stdout
    return found[0]


def test_every_job_runs_in_the_image_with_driver_and_binds_and_its_hash_is_in_the_result(repository, tmp_path):
    (tmp_path / "scratch").mkdir()
    profile = repository / "profiles" / "apptainer" / "config.yaml"
    profile.write_text(profile.read_text().replace('"--nv"', f'"--nv --cleanenv --bind {tmp_path}/scratch"'))
    done = snakemake(repository, CUDA_VISIBLE_DEVICES="3")
    assert done.returncode == 0, done.stdout
    looked, *jobs = fake_apptainer.calls(tmp_path / "fake", "exec")
    assert "look" in looked["command"] and len(jobs) >= 1
    for call in jobs:
        assert Path(call["image"]) == repository / "containers" / "images" / NAME
        assert {"--nv", "--cleanenv"} <= set(call["options"])
        assert f"{tmp_path}/scratch" in call["values"]["--bind"] and call["values"]["--home"] == [str(repository)]
        assert "nap-bench run" in call["command"][-1]
    for path in (repository / "results" / "runs").glob("*.json"):
        assert (
            json.loads(path.read_text())["environment"]["container"] == f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
        )


def test_gpus_that_a_cluster_gave_reach_the_job_also_under_cleanenv(repository, tmp_path):
    told = {"PATH": os.environ["PATH"], "CUDA_VISIBLE_DEVICES": "2"}
    code = (
        "import os, sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\nfrom nap_bench import apptainer\n"
        "image = apptainer.recorded(Path(sys.argv[1]), 'cpu', 'containers/images')\n"
        "os.environ.update(apptainer.told(image, Path(sys.argv[1])))\n"
        "os.execvp('apptainer', [*apptainer.inside(image, '--cleanenv'), 'env'])"
    )
    told["PATH"] = f"{tmp_path / 'fake' / 'bin'}:{told['PATH']}"
    done = subprocess.run(
        [sys.executable, "-c", code, repository], env=told, capture_output=True, text=True, check=True
    )
    assert "CUDA_VISIBLE_DEVICES=2\n" in done.stdout and f"PYTHONPATH={repository}\n" in done.stdout


def test_without_the_profile_jobs_run_on_the_host_and_no_image_is_asked_for(repository, tmp_path):
    shutil.rmtree(repository / "containers")
    words = [sys.executable, "-m", "snakemake", "--cores", "1", "--config", "plan=plan.jsonl", "--dry-run", "--quiet"]
    path = f"{tmp_path / 'fake' / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(words, cwd=repository, env={**os.environ, "PATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "fake" / "calls").exists()


@pytest.mark.fault(
    "image: missing, changed, or of other packages than the lock's", outcome="refused in one line before any work"
)
def test_a_missing_image_a_changed_one_and_one_of_other_packages_stop_before_any_work(repository):
    image = repository / "containers" / "images" / NAME
    image.write_bytes(b"another")
    assert "is not the image that containers/images.lock.json records" in reason(snakemake(repository))
    image.unlink()
    assert f"No image at {image}" in reason(snakemake(repository))
    assert "No gpu image is recorded" in reason(snakemake(repository, "device=cuda"))
    with (repository / "requirements" / "lock-cpu.txt").open("a") as lock:
        lock.write("# changed\n")
    assert "holds other packages" in reason(snakemake(repository))
    assert not (repository / "store").exists() or not list((repository / "store").glob("*/"))


@pytest.mark.fault("image: a folder is not visible in it", outcome="refused in one line with the bind that helps")
def test_a_folder_that_the_image_cannot_see_is_named_with_the_bind_that_helps(repository, tmp_path):
    (tmp_path / "fake" / "hides_tmp").touch()
    outside = tmp_path / "elsewhere"
    outside.mkdir()
    assert (
        f"{outside}/store cannot be seen in the image. Bind it: add --bind {outside}/store to apptainer-args"
        in reason(snakemake(repository, f"store_dir={outside}/store"))
    )


@pytest.mark.fault("image: no Apptainer", outcome="one line")
def test_no_apptainer_is_one_line(repository, tmp_path):
    shutil.rmtree(tmp_path / "fake" / "bin")
    (tmp_path / "fake" / "bin").mkdir()
    assert "found none on the PATH" in reason(snakemake(repository, PATH=_without_apptainer(tmp_path)))


def _without_apptainer(tmp_path: Path) -> str:
    return f"{Path(sys.executable).parent}:/usr/bin:/bin"
