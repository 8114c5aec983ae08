"""Runs in an image: which one, what must hold before work starts, and what a job in it is told. See containers/README.md.

The workflow loads this file by its path. Standard library only. The image brings Python and packages; the code is the working
copy's own, so that an edited method needs no new image. An image is made anew when the lock changes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

LOCK_FILE = "containers/images.lock.json"
FLAVOURS = {"cpu": "requirements/lock-cpu.txt", "gpu": "requirements/lock-cuda.txt"}
"""Flavour -> the lock that it is installed from."""


class Image(NamedTuple):
    """flavour: cpu or gpu. sha256: what the file must hash to, as containers/images.lock.json says."""

    flavour: str
    path: Path
    sha256: str


def flavour_of(device: str) -> str:
    return "cpu" if device == "cpu" else "gpu"


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def recorded(root: Path, flavour: str, folder: str) -> Image:
    """The image that the lock file names for a flavour. Refuses one of other packages than the repository wants.

    folder: where images lie; a relative one is the repository's.
    """
    root, build = Path(root), f"python3 containers/build.py {flavour}"
    path = root / LOCK_FILE
    try:
        entry = json.loads(path.read_text() if path.exists() else "{}").get(flavour)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}). Take it back from git, or build again: {build}") from None
    if entry is None:
        raise ValueError(f"No {flavour} image is recorded in {path}. Build one: {build}")
    found = Image(flavour, root / folder / entry["file"], entry["sha256"])
    wanted = sha256(root / FLAVOURS[flavour])
    if entry["lock_sha256"] != wanted:
        raise ValueError(
            f"The {flavour} image {found.path.name} holds other packages than {FLAVOURS[flavour]} asks for now (built from "
            f"{entry['lock_sha256'][:12]}, wanted {wanted[:12]}). Build it again: {build}"
        )
    if not found.path.exists():
        raise ValueError(
            f"No image at {found.path}. Copy {found.path.name} there, name its folder (--config images_dir=FOLDER), or build "
            f"one: {build}"
        )
    return found


def verify(image: Image) -> None:
    """Refuse a file that is not the image it is named. Reads all of it: seconds."""
    found = sha256(image.path)
    if found != image.sha256:
        raise ValueError(
            f"{image.path} is not the image that {LOCK_FILE} records: wanted sha256 {image.sha256[:12]}, found {found[:12]}. "
            f"Copy it again, or build it: python3 containers/build.py {image.flavour}"
        )


def program() -> str:
    """apptainer, or singularity where there is no apptainer."""
    found = next(filter(shutil.which, ("apptainer", "singularity")), None)
    if found is None:
        raise ValueError(
            "Wanted apptainer to run jobs in an image, found none on the PATH. On a cluster: module load apptainer"
        )
    return found


def told(image: Image, root: Path) -> dict[str, str]:
    """Environment variables of the caller that reach a job in the image, also under --cleanenv.

    The code, the commit it is at, the image's hash, and the GPUs that a cluster gave the job.
    """
    inside = {
        "PYTHONPATH": str(root),
        "NAP_BENCH_CONTAINER": f"sha256:{image.sha256}",
        "NAP_BENCH_COMMIT": commit(root),
    }
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        inside["CUDA_VISIBLE_DEVICES"] = os.environ["CUDA_VISIBLE_DEVICES"]
    return {f"{program().upper()}ENV_{name}": value for name, value in inside.items()}


def commit(root: Path) -> str:
    """The working copy's commit, with "+changes" if it has any; empty where git cannot say. The image has no git."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True).stdout

    try:
        changed = git("status", "--porcelain", "--", ".", f":(exclude){LOCK_FILE}")
        return git("rev-parse", "HEAD").strip() + ("+changes" if changed else "")
    except (FileNotFoundError, subprocess.CalledProcessError):
        return ""


def inside(image: Image, arguments: str) -> list[str]:
    """The command that runs another one in the image, as Snakemake runs jobs."""
    return [program(), "exec", "--home", os.getcwd(), *shlex.split(arguments), str(image.path)]


def check(image: Image, arguments: str, folders: Iterable[str | Path]) -> None:
    """Before the first job: the image is what it should be, and sees the folders that jobs use (a line for each it does not).

    arguments: Snakemake's apptainer-args. Of a folder that does not exist yet, the nearest one above it must be seen.
    """
    verify(image)
    above = [Path(folder).absolute() for folder in folders]
    wanted = {next(path for path in (folder, *folder.parents) if path.exists()): folder for folder in above}
    look = 'for folder; do stat -L -c "%d:%i" "$folder" 2>/dev/null || echo none; done'
    command = [*inside(image, arguments), "bash", "-c", look, "look", *map(str, wanted)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seen = done.stdout.split()
    if done.returncode != 0 or len(seen) != len(wanted):
        said = (done.stderr.strip() or "it said nothing").splitlines()[-1]
        raise ValueError(
            f"The image {image.path} does not start: {said} (the command: {shlex.join(command[: -len(wanted) - 4])})"
        )
    problems = [
        f"{folder} cannot be seen in the image. Bind it: add --bind {path} to apptainer-args of the profile (now: "
        f"{arguments.strip() or 'empty'})."
        for (path, folder), identity in zip(wanted.items(), seen, strict=True)
        if identity != f"{path.stat().st_dev}:{path.stat().st_ino}"
    ]
    if problems:
        raise ValueError("\n".join(problems))
