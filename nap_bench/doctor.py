"""Will the suite work on this machine? Looks, and says what follows and what to do. Writes nothing, downloads nothing.

The only connection it opens is to a tracker that is a server. Importing torch is most of what it takes: 2 to 5 s.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import itertools
import os
import re
import shutil
import socket
import sqlite3
import sys
import textwrap
import urllib.parse
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from nap_bench import apptainer, plan
from nap_bench.store import SPARE_BYTES
from nap_bench.tracking import heartbeat, is_database, sqlite_file

OK, FAILS, OPTIONAL = "ok", "will not work", "optional"
PYTHON = ((3, 11), (3, 15))
"""The oldest that works, and the first that does not any more (pyproject.toml)."""
CORE = ("numpy", "scipy", "scikit-learn", "pillow")
SUITE = ("snakemake", "matplotlib", "jinja2", "mlflow", "pandas")
"""What runs need; what the workflow, the report and the tracker need."""
RUN_BYTES = 2 * 2**20
"""Room for a run of eight seeds. 122 laptop runs took 0.15 MB each in store and results; MLflow keeps 0.2 MB a seed."""
BY_HAND = ("imagenet",)
"""Datasets that nobody may hand out."""
TRACKER_SECONDS = 2.0
PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
BROKEN = (ImportError, OSError, RuntimeError)
"""What importing a package with compiled parts raises where they do not fit."""


class Check(NamedTuple):
    """One line of the table. status: OK, FAILS or OPTIONAL (missing, and laptop scale works without it)."""

    status: str
    name: str
    finding: str
    command: str = ""


def examine(
    *,
    plan_path: Path,
    store: Path,
    data_dir: str,
    tracking_uri: str,
    images_dir: str,
    say: Callable[[str], object] = print,
) -> int:
    """Print the table, a check as soon as it is made, then what follows for each scale.

    0 if laptop scale will work, 1 otherwise.
    """
    lines, first = planned(plan_path)
    made: list[Check] = []
    with heartbeat(lambda: f"doctor: still looking at what comes after {made[-1].name if made else first.name}"):
        # The quick ones first; torch and what needs it last.
        for check in itertools.chain(
            (first, python(), packages(), disk(store, len(_of(lines, "laptop")))),
            map(tracker, [tracking_uri]),
            programs(),
            images(images_dir),
            torch_and_what_needs_it(data_dir, lines),
        ):
            made.append(check)
            say(_row(check))
    say("")
    for scale in plan.SCALES:
        say(_row(Check(*prospect(scale, lines, made))))
    return 1 if any(check.status == FAILS for check in made) else 0


def _row(check: Check) -> str:
    """At most 80 columns, commands aside: they are to be copied whole."""
    indent = " " * 28
    text = textwrap.fill(
        f"{check.status:<14}{check.name:<14}{check.finding}",
        79,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return text + (f"\n{indent}-> {check.command}" if check.command else "")


def _of(lines: list[dict[str, Any]], scale: str) -> list[dict[str, Any]]:
    return [line for line in lines if scale in line["uses"]]


def prospect(scale: str, lines: list[dict[str, Any]], made: list[Check]) -> tuple[str, str, str, str]:
    """What follows from the checks for a scale."""
    failing = [check.name for check in made if check.status == FAILS]
    if failing:
        return FAILS, scale, f"before this is put right: {', '.join(failing)}.", ""
    if scale == "laptop":
        return OK, scale, "will work.", "make reproduce"
    wanted = sorted({line["data"] for line in _of(lines, scale) if "data" in line})
    found = {check.name for check in made if check.status == OK}
    absent, has_gpu = [name for name in wanted if name not in found], "GPU" in found
    words = ["will work" if has_gpu else "will work on the CPU, but it is made for a GPU"]
    fetched = [name for name in absent if name not in BY_HAND]
    words += [f"once there is {' and '.join(fetched)}, which it downloads first"] * bool(fetched)
    words += [f"{name} has to be in data_dir already (docs/stationary-images.md)" for name in absent if name in BY_HAND]
    command = f"snakemake --config scale={scale}" + " device=cuda" * has_gpu
    return OK if has_gpu else OPTIONAL, scale, ", ".join(words) + ".", command


def planned(path: Path) -> tuple[list[dict[str, Any]], Check]:
    """The plan's lines, none if it cannot be used."""
    try:
        lines = plan.load(path)
    except ValueError as error:
        reason, _, command = re.sub(r" (Make|Renew) (it|the plan) with: ", "\n", str(error)).partition("\n")
        return [], Check(FAILS, "plan", reason, command)
    counts = ", ".join(f"{len(_of(lines, scale))} at {scale} scale" for scale in plan.SCALES)
    return lines, Check(OK, "plan", f"{len(lines)} runs: {counts}.")


def python() -> Check:
    oldest, first_too_new = PYTHON
    version = ".".join(map(str, sys.version_info[:3]))
    if oldest <= sys.version_info[:2] < first_too_new:
        return Check(OK, "python", f"{version}, {sys.executable}")
    words = "at least {}.{} and older than {}.{}".format(*oldest, *first_too_new)
    return Check(FAILS, "python", f"Wanted {words}, found {version}.", "make env PYTHON=/path/to/python3.11")


def packages() -> Check:
    absent = []
    for name in (*CORE, *SUITE):
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            absent.append(name)
    if not absent:
        return Check(OK, "packages", "those of runs, workflow, report and tracker are installed.")
    without = "runs can be made (`nap-bench run`); workflow or report cannot"
    if set(absent) & set(CORE):
        without = "no run can be made"
    return Check(FAILS, "packages", f"not installed: {', '.join(absent)}: {without}.", "make env")


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.exists())


def disk(store: Path, num_runs: int) -> Check:
    folder, another = _existing(store), "set store_dir in config/config.yaml to another"
    wanted, free = SPARE_BYTES + num_runs * RUN_BYTES, shutil.disk_usage(folder).free
    found = f"{free / 2**30:.1f} GiB free at {folder}, {wanted / 2**30:.1f} GiB wanted for laptop scale."
    if not os.access(folder, os.W_OK):
        return Check(FAILS, "disk", f"{folder} cannot be written to.", f"{another} folder")
    if free < wanted:
        return Check(FAILS, "disk", found, f"make room (`make clean`), or {another} disk")
    return Check(OK, "disk", found)


def tracker(uri: str) -> Check:
    """Whether `nap-bench publish` can write there. Only the last step of `make reproduce` waits for it."""
    path, instead = sqlite_file(uri), "set tracking_uri in config/config.yaml to sqlite:///mlflow.db"
    if path is not None:
        return _sqlite(path)
    parts = urllib.parse.urlsplit(uri)
    kind = parts.scheme.partition("+")[0]
    if kind in ("", "file"):
        folder = _existing(Path(urllib.parse.unquote(parts.path)))
        if os.access(folder, os.W_OK):
            return Check(OK, "tracker", f"folder {folder} can be written to.")
        return Check(FAILS, "tracker", f"{folder} cannot be written to.", instead)
    what = "database" if is_database(uri) else "server"
    try:
        host, port = parts.hostname, parts.port or PORTS.get(kind)
    except ValueError as error:
        return Check(FAILS, "tracker", f"not a tracking URI: {error}.", instead)
    if host is None or port is None:
        return Check(FAILS, "tracker", "the tracking URI names no host and port that could be tried.", instead)
    try:
        socket.create_connection((host, port), TRACKER_SECONDS).close()
    except OSError as error:
        reason = f"the {what} at {host}:{port} does not answer ({error}): nothing can be published."
        return Check(FAILS, "tracker", reason, instead)
    return Check(OK, "tracker", f"the {what} at {host}:{port} answers (it was not asked who may write).")


def _sqlite(path: Path) -> Check:
    other = "set tracking_uri in config/config.yaml to another file, or move this one away"
    folder = _existing(path.parent)
    writable = [folder, path] if path.exists() else [folder]  # SQLite makes its journal beside the file
    if not all(os.access(place, os.W_OK) for place in writable):
        return Check(FAILS, "tracker", f"{path} cannot be written to: nothing can be published.", other)
    if not path.exists():
        return Check(OK, "tracker", f"MLflow in {path}, which the first publish makes.")
    try:
        read_only = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=1.0)
        with contextlib.closing(read_only) as database:
            database.execute("SELECT name FROM sqlite_master").fetchall()
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            return Check(OK, "tracker", f"MLflow in {path}, which is being written right now.")
        return Check(FAILS, "tracker", f"{path} cannot be read: {error}.", other)
    except sqlite3.DatabaseError as error:
        return Check(FAILS, "tracker", f"{path} is no SQLite database: {error}.", other)
    return Check(OK, "tracker", f"MLflow in {path}.", "nap-bench dashboard")


def programs() -> Iterator[Check]:
    """Programs that can be there. Nothing at laptop scale needs one."""
    for names, has, has_not in (
        (("apptainer", "singularity"), "runs go into an image if you like.", "`make env` needs none."),
        (("docker",), "not used; images are Apptainer's.", "not used; images are Apptainer's."),
        (("sbatch",), "a cluster: docs/cluster.md says how runs go there.", "no Slurm: runs go on this machine."),
    ):
        found = next(filter(None, map(shutil.which, names)), None)
        yield Check(OPTIONAL, names[0], f"{found}: {has}" if found else f"not found: {has_not}")


def images(folder: str) -> Iterator[Check]:
    """The images that are recorded, hashes verified; or that this is one. folder: see apptainer.recorded."""
    if own := os.environ.get("NAP_BENCH_CONTAINER"):
        yield Check(OK, "image", f"this is inside one: {own}.")
        return
    for flavour in apptainer.FLAVOURS:
        try:
            image = apptainer.recorded(plan.ROOT, flavour, folder)
            apptainer.verify(image)
        except ValueError as error:
            build = f"python3 containers/build.py {flavour}"
            reason = str(error).removesuffix(build).strip().removesuffix(":")
            yield Check(OPTIONAL, f"{flavour} image", f"{reason}:", build)
        else:
            command = "snakemake --workflow-profile profiles/apptainer" + " --config device=cuda" * (flavour == "gpu")
            yield Check(OK, f"{flavour} image", f"{image.path}, as recorded.", command)


def torch_and_what_needs_it(data_dir: str, lines: list[dict[str, Any]]) -> Iterator[Check]:
    try:
        import torch
    except BROKEN as error:
        yield Check(FAILS, "torch", f"cannot be imported ({_first_line(error)}): no run can be made.", "make env")
        return
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    yield Check(OK, "torch", f"{torch.__version__}, {build} build.")
    yield gpu(torch)
    yield torchvision()
    yield from datasets(data_dir, lines)
    yield from surroundings()


def gpu(torch: Any) -> Check:
    """torch: the module."""
    if torch.version.cuda is None:
        driver = shutil.which("nvidia-smi")
        if driver is None:
            return Check(OPTIONAL, "GPU", "no GPU: laptop scale and --device cpu only.")
        words = "there is an NVIDIA driver, but this torch is built for the CPU: --device cpu only."
        return Check(OPTIONAL, "GPU", words, "let pip reach builds for CUDA, remove .venv, and: make env")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        usable = torch.cuda.is_available()
    if not usable:
        reason = f" ({_first_line(said[-1].message)})" if said else ""
        return Check(OPTIONAL, "GPU", f"no GPU that torch can use{reason}: laptop scale and --device cpu only.")
    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    named = "; ".join(f"cuda:{i} {p.name}, {p.total_memory / 2**30:.0f} GiB" for i, p in enumerate(found))
    return Check(OK, "GPU", f"{named}.")


def torchvision() -> Check:
    from nap_bench.data.torchvision_import import import_torchvision

    try:
        version = import_torchvision().__version__
    except (*BROKEN, ValueError) as error:
        reason = f"cannot be imported ({_first_line(error)}): no downloaded dataset can be read."
        return Check(OPTIONAL, "torchvision", reason, "make env")
    return Check(OK, "torchvision", f"{version} can be imported.")


def datasets(data_dir: str, lines: list[dict[str, Any]]) -> Iterator[Check]:
    """The datasets that have to be on disk, sizes and checksums verified. Laptop scale needs none."""
    from nap_bench.benchmarks.base import DATASETS

    for name, dataset in DATASETS.items():
        if not dataset.downloaded:
            continue
        try:
            files = importlib.import_module(f"nap_bench.data.{name}").verify(data_dir)
        except ValueError as error:
            wanting = [scale for scale in plan.SCALES if any(line.get("data") == name for line in _of(lines, scale))]
            who = f"Wanted in {data_dir} at {' and '.join(wanting)} scale." if wanting else "No planned run wants it."
            who = who if lines else "Which scales want it, the plan would say."
            yield Check(OPTIONAL, name, f"{_first_line(error)} {who}", f"nap-bench data {name} --data-dir {data_dir}")
        else:
            folders = ", ".join(sorted({str(path.parent) for path in files.values()}))
            unread = "checksums as packed" if name == "c4" else "contents were not read"
            seen = "checksums as published" if dataset.fits else unread
            yield Check(OK, name, f"{len(files)} {'files' if dataset.fits else 'parts'} in {folders}, {seen}.")


def surroundings() -> Iterator[Check]:
    """What results made here would say about the code and the processor."""
    from nap_bench.jobs import environment

    found = environment("cpu")
    if found["commit"] is None:
        yield Check(OPTIONAL, "git", "no commit can be read: results will not say which code made them.")
    elif found["dirty"]:
        yield Check(OPTIONAL, "git", f"{found['commit'][:10]} with changes: results will say so.", "git status")
    else:
        yield Check(OK, "git", f"{found['commit'][:10]}, unchanged.")
    cores = f"{found['num_cores']} cores, {found['processor']}"
    yield Check(OK, "threads", f"{cores}; a run takes one thread, so one run a core.")


def _first_line(error: object) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
