"""Results that travel: runs into one archive, and from an archive or another store into this one. Imports no torch.

    manifest.json                every other file's size and SHA-256
    results/runs/<run_id>.json   the result
    store/<run_id>/...           the store's entry, from which the result is made again; of an unfinished run, its checkpoint

What comes in is copied aside, checked file by file and run by run, and compared with what is here. Only then is it renamed into
place, all of it or none; killed in between, it leaves whole runs, and importing again brings the others. A run that is here with
the same numbers stays as it is. One with other numbers is a conflict, and then nothing comes in. What it cost and where it ran
may differ.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import tarfile
import threading
import zlib
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

from nap_bench import plan
from nap_bench.jobs import Job, results_in
from nap_bench.spec import PROTOCOL, Run
from nap_bench.store import (
    BEAT_SECONDS,
    SPARE_BYTES,
    Lease,
    LeaseLost,
    RunFolder,
    as_json,
    check_protocol,
    explain_os_error,
    leased,
    read_result,
    result_of,
    result_path,
    write_whole,
)

FORMAT = 1
MANIFEST = "manifest.json"
FINISHED = ("spec.json", "metrics.csv", "env.json", "done.json")
UNFINISHED = ("spec.json", "metrics.csv", "checkpoint")
NAME = re.compile(
    r"results/runs/([^/.][^/]*)\.json|store/([^/.][^/]*)/(spec\.json|metrics\.csv|env\.json|done\.json|checkpoint)"
)
"""What a file of an archive may be called."""
MANIFEST_BYTES = 2**28
PIECE_BYTES = 2**20
SHOWN = 3
"""Conflicts that are described; the others are counted."""
BROKEN = (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile)
"""What reading an archive that is cut off or is none raises."""


class Place(NamedTuple):
    """A run store and its results."""

    store: Path
    results: Path


@dataclass
class Account:
    """What was shared: ids of finished and of unfinished runs; those that were here already; what was left out, and why."""

    finished: list[str] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)
    here: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        said = f"{len(self.finished)} finished runs"
        said += f", {len(self.unfinished)} unfinished ones with their checkpoints" if self.unfinished else ""
        return said + (f"; {len(self.here)} were here already, with the same numbers" if self.here else "")

    def left(self) -> str:
        """A sentence about what was left out, if anything."""
        why = ", ".join(f"{number} {reason}" for reason, number in Counter(self.left_out.values()).items())
        return f" Left out: {why}." if why else ""


def present(run_ids: Collection[str], place: Place) -> list[str]:
    """Those of which there is something; refused if there is nothing of any."""
    found = [i for i in run_ids if result_path(place.results, i).exists() or (place.store / i / "spec.json").exists()]
    if not found:
        raise ValueError(f"Nothing to export: none of {len(run_ids)} runs is in {place.store} or {place.results}/runs.")
    return found


def export(path: Path, run_ids: Collection[str], place: Place, *, checkpoints: bool = False) -> Account:
    """Write an archive of runs; of all that is there, if no ids are given. Gzipped if its name ends in gz.

    checkpoints: unfinished runs too, with what it takes to go on elsewhere; else they are left out, as are runs that a
    process is training. Raises ValueError for an id that is not there, and for an entry that its result does not follow from.
    """
    with ExitStack() as stack:
        files, account, leases = _files_of(run_ids, place, checkpoints, stack)
        if not account.finished and not account.unfinished:
            raise ValueError(f"Nothing to export: no finished run in {place.results}/runs and {place.store}.")
        for run_id in account.finished:
            _check_run(run_id, files)
        listed = {name: {"bytes": file.stat().st_size, "sha256": _sha256(file)} for name, file in sorted(files.items())}
        manifest = as_json({"format": FORMAT, "protocol": PROTOCOL, "files": listed}).encode()

        def fill(file: IO[bytes]) -> None:
            packed = gzip.GzipFile("", "wb", fileobj=file, mtime=0) if path.suffix.endswith("gz") else None
            with packed or contextlib.nullcontext(), tarfile.open(fileobj=packed or file, mode="w") as archive:
                archive.addfile(_member(MANIFEST, len(manifest)), io.BytesIO(manifest))
                for name, about in listed.items():
                    with open(files[name], "rb") as content:
                        archive.addfile(_member(name, about["bytes"]), content)
            _refuse_lost(leases)

        write_whole(path, fill)
    return account


def import_(path: Path, place: Place) -> Account:
    """Bring the runs of an archive here, all or none. Raises ValueError if it is damaged, foreign, or in conflict."""
    if not path.is_file():
        raise ValueError(f"No archive at {path}. One is made with: nap-bench store export {path}")
    with _staged(place) as aside:
        try:
            files = _unpack(path, aside)
        except BROKEN as error:
            raise ValueError(
                f"{path} is no whole archive ({type(error).__name__}: {error}). Nothing was imported; copy it again."
            ) from None
        return _bring(files, path, aside, place)


def merge(other: Place, place: Place, *, checkpoints: bool = False) -> Account:
    """Bring the runs of another store and its results here, all or none; the other is left as it is."""
    if not (other.results / "runs").is_dir() and not other.store.is_dir():
        raise ValueError(f"Nothing to merge: neither {other.store} nor {other.results}/runs is there.")
    with _staged(place) as aside, ExitStack() as stack:
        found, left, leases = _files_of([], other, checkpoints, stack)
        files = {name: aside.of(name) for name in found}
        _refuse_a_short_disk(sum(file.stat().st_size for file in found.values()), aside)
        for name, file in found.items():
            with _full_disk_told(files[name], file.stat().st_size):
                files[name].parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, files[name])
        _refuse_lost(leases)
        account = _bring(files, other.results, aside, place)
    account.left_out = left.left_out
    return account


# What goes out


def _files_of(
    run_ids: Collection[str], place: Place, checkpoints: bool, stack: ExitStack
) -> tuple[dict[str, Path], Account, list[Lease]]:
    """Name in an archive -> file, and whose they are. Unfinished runs are held, by the leases, until `stack` is closed."""
    entries, results = {path.parent.name for path in place.store.glob("[!.]*/spec.json")}, results_in(place.results)
    if missing := sorted(set(run_ids) - entries - results):
        raise ValueError(
            f"Nothing of {missing[0]} in {place.store} or {place.results}/runs. Give ids of runs, or none for all."
        )
    files: dict[str, Path] = {}
    account, leases = Account(), []
    for run_id in sorted(run_ids or entries | results):
        folder, result = place.store / run_id, result_path(place.results, run_id)
        names: tuple[str, ...] = FINISHED if (folder / "done.json").exists() else ()
        if names or result.exists():
            files |= {f"results/runs/{run_id}.json": result} if result.exists() else {}
            account.finished.append(run_id)
        elif not checkpoints:
            account.left_out[run_id] = "unfinished (--checkpoints takes them along)"
            continue
        elif (lease := stack.enter_context(leased(RunFolder(place.store, _run(folder / "spec.json", run_id))))) is None:
            account.left_out[run_id] = "being trained"
            continue
        else:
            names = UNFINISHED
            account.unfinished.append(run_id)
            leases.append(lease)
        files |= {f"store/{run_id}/{name}": folder / name for name in names if (folder / name).exists()}
    stack.enter_context(_beaten(leases))
    return files, account, leases


@contextmanager
def _beaten(leases: list[Lease]) -> Iterator[None]:
    """From a thread, since one file can take minutes. Who lost a lease learns it from `_refuse_lost`."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(BEAT_SECONDS):
            for lease in leases:
                with contextlib.suppress(LeaseLost, OSError):
                    lease.beat()

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _refuse_lost(leases: list[Lease]) -> None:
    """For when all is copied: nobody else wrote meanwhile."""
    try:
        for lease in leases:
            lease.check()
    except LeaseLost as lost:
        raise OSError(f"{lost} Start again; a run that is being trained is left out.") from None


def _member(name: str, num_bytes: int) -> tarfile.TarInfo:
    """The same for the same content, whoever packs it and when."""
    member = tarfile.TarInfo(name)
    member.size, member.mode = num_bytes, 0o644
    return member


# What comes in


class _Aside(NamedTuple):
    """Folders beside the store's entries and the results, on their file systems, where files wait until all are checked."""

    store: Path
    results: Path

    def of(self, name: str) -> Path:
        """Where a file of an archive waits."""
        kind, _, rest = name.partition("/")
        return self.store / rest if kind == "store" else self.results / rest


@contextmanager
def _staged(place: Place) -> Iterator[_Aside]:
    """An empty place aside, gone afterwards. No invocation of the workflow and no other import works here meanwhile."""
    aside = _Aside(*(folder / ".import" for folder in place))
    held = plan.hold("store", place.store)
    try:
        for folder in aside:
            shutil.rmtree(folder, ignore_errors=True)  # of a killed one
            with _full_disk_told(folder, 0):
                folder.mkdir(parents=True)
        yield aside
    finally:
        for folder in aside:
            shutil.rmtree(folder, ignore_errors=True)
        held.close()


@contextmanager
def _full_disk_told(path: Path, num_bytes: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise explain_os_error(error, path, num_bytes) from None


def _refuse_a_short_disk(num_bytes: int, aside: _Aside) -> None:
    free = min(shutil.disk_usage(folder).free for folder in aside)
    if free < num_bytes + SPARE_BYTES:
        raise ValueError(
            f"Disk too full at {aside.store.parent}: wanted {(num_bytes + SPARE_BYTES) / 2**20:.0f} MiB, found "
            f"{free / 2**20:.0f} MiB free. Nothing was imported; make room, or name another --store and --results."
        )


def _unpack(path: Path, aside: _Aside) -> dict[str, Path]:
    """The files of an archive, each as its manifest says. Nothing else is in it: no other name, no link, nothing missing."""
    files: dict[str, Path] = {}
    with open(path, "rb") as file:
        kind = "r:gz" if file.read(2) == b"\x1f\x8b" else "r:"
    with tarfile.open(path, kind) as archive:
        listed = _manifest(path, archive)
        _refuse_a_short_disk(sum(about["bytes"] for about in listed.values()), aside)
        for member in archive:
            if member.name == MANIFEST and not files:
                continue
            about = listed.get(member.name) if NAME.fullmatch(member.name) and member.isreg() else None
            if about is None or about["bytes"] != member.size or member.name in files:
                raise ValueError(
                    f"{path} holds {member.name!r} other than its manifest lists it. Nothing was imported."
                )
            files[member.name] = target = aside.of(member.name)
            with _full_disk_told(target, about["bytes"]):
                target.parent.mkdir(parents=True, exist_ok=True)
                found = _copy(archive.extractfile(member), target)
            if found != about["sha256"]:
                raise ValueError(
                    f"{path}: {member.name} is not what the manifest says (sha256 {found[:12]}, wanted {about['sha256'][:12]}). "
                    f"Nothing was imported; copy the archive again."
                )
    if missing := sorted(set(listed) - set(files)):
        raise ValueError(f"{path} lacks {missing[0]}, which its manifest lists. Nothing was imported; copy it again.")
    return files


def _manifest(path: Path, archive: tarfile.TarFile) -> dict[str, dict[str, Any]]:
    first = archive.next()
    try:
        if first is None or first.name != MANIFEST or not first.isreg() or first.size > MANIFEST_BYTES:
            raise ValueError("its first file is no manifest.json")
        manifest = json.loads(archive.extractfile(first).read())
        listed = {
            str(name): {"bytes": int(a["bytes"]), "sha256": str(a["sha256"])} for name, a in manifest["files"].items()
        }
        found = (manifest["format"], manifest["protocol"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} was not made by `nap-bench store export` ({error}). Nothing was imported.") from None
    if found != (FORMAT, PROTOCOL):
        raise ValueError(
            f"{path} has format {found[0]} and protocol {found[1]}; this version reads format {FORMAT} and protocol {PROTOCOL}. "
            f"Numbers of different protocols are not comparable. Nothing was imported."
        )
    return listed


def _copy(source: IO[bytes], target: Path) -> str:
    """Copy; returns the SHA-256."""
    hasher = hashlib.sha256()
    with open(target, "wb") as file:
        while piece := source.read(PIECE_BYTES):
            hasher.update(piece)
            file.write(piece)
    return hasher.hexdigest()


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _bring(files: dict[str, Path], origin: Path, aside: _Aside, place: Place) -> Account:
    """Check the waiting files, compare them with what is here, and put them in place."""
    run_ids = sorted({match[1] or match[2] for match in map(NAME.fullmatch, files)})
    account, conflicts = Account(), []
    for run_id in run_ids:
        theirs = _check_run(run_id, files)
        ours = Job({"run_id": run_id}, store=place.store, results=place.results)
        if ours.is_done() or ours.remake():
            here = read_result(result_path(place.results, run_id))
            if theirs and (difference := _difference(here, theirs)):
                conflicts.append(
                    f"{run_id}: {difference}, in {ours.results}/runs ({_made(here)}) and {origin} ({_made(theirs)})"
                )
            account.here.append(run_id)
        elif theirs:
            account.finished.append(run_id)
            _complete(run_id, theirs, files, aside)
        elif (place.store / run_id / "spec.json").exists():
            account.left_out[run_id] = "begun here, too"
        else:
            account.unfinished.append(run_id)
    if conflicts:
        more = f"\nand {len(conflicts) - SHOWN} more" if len(conflicts) > SHOWN else ""
        raise ValueError(
            f"{len(conflicts)} of {len(run_ids)} runs are here with other numbers; nothing was imported. Import into folders of "
            f"their own (--store, --results), or move one of the two away.\n" + "\n".join(conflicts[:SHOWN]) + more
        )
    check_protocol(place.results)
    _put(account, aside, place)
    return account


def _put(account: Account, aside: _Aside, place: Place) -> None:
    """Rename everything into place, or take it all back. Entries first: a result that is missing is made from its entry."""
    moves = [(aside.store / run_id, place.store / run_id) for run_id in account.finished + account.unfinished]
    moves += [(aside.results / "runs" / f"{i}.json", result_path(place.results, i)) for i in account.finished]
    (place.results / "runs").mkdir(parents=True, exist_ok=True)
    os.sync()  # what is renamed is on the disk
    done: list[tuple[Path, Path]] = []
    with ExitStack() as stack:
        try:
            for source, target in moves:
                if target.is_dir():  # a run that was begun here and is finished there
                    run = _run(source / "spec.json", target.name)
                    if stack.enter_context(leased(RunFolder(place.store, run))) is None:
                        raise ValueError(
                            f"{target.name} is being trained here. Nothing was imported; wait for it, or stop it."
                        )
                if (target / "done.json").exists() or target.is_file():  # it was not when they were compared
                    raise ValueError(
                        f"{target.name.removesuffix('.json')} was finished here meanwhile. Nothing was imported; import again."
                    )
                if target.is_dir():
                    os.rename(target, begun := source.with_name(f"{source.name}.begun"))
                    done.append((target, begun))
                os.rename(source, target)
                done.append((source, target))
        except BaseException:
            for source, target in reversed(done):
                os.rename(target, source)
            raise
    os.sync()


# Runs


def _run(spec: Path, run_id: str) -> Run:
    """The run that a spec describes, if it is the one it is filed under."""
    try:
        run = Run.from_dict(json.loads(spec.read_text()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{spec} does not describe a run ({type(error).__name__}: {error}).") from None
    if run.run_id != run_id:
        raise ValueError(f"{spec} describes {run.run_id}, filed under {run_id}: it was edited, renamed or copied.")
    return run


def _check_run(run_id: str, files: dict[str, Path]) -> dict[str, Any] | None:
    """A run's result, None if it is unfinished; refused if it is another run's, or not what its entry says."""
    entry = {name: files.get(f"store/{run_id}/{name}") for name in (*FINISHED, "checkpoint")}
    path = files.get(f"results/runs/{run_id}.json")
    found = read_result(path) if path else None
    if found and (described := Run.from_dict(found["spec"]).run_id) != run_id:
        raise ValueError(f"{path} describes {described}: it was edited, renamed or copied.")
    if found and not entry["done.json"]:
        return found
    if not entry["spec.json"] or not entry["metrics.csv"]:
        raise ValueError(f"{run_id} has neither a result nor a whole entry. Export it again.")
    run = _run(entry["spec.json"], run_id)
    if run.protocol != PROTOCOL:
        raise ValueError(
            f"{run_id} is of protocol {run.protocol}, this version of {PROTOCOL}: their numbers are not comparable."
        )
    if not entry["done.json"]:
        return None
    again = result_of(RunFolder(entry["spec.json"].parents[1], run))
    if found and _numbers(again) != _numbers(found):
        raise ValueError(
            f"{path} says other than the store's entry {entry['spec.json'].parent}: one of them was changed. Delete the wrong one; "
            f"a deleted result is made again from its entry."
        )
    return found or again


def _numbers(result: dict[str, Any]) -> str:
    """What may not differ, as text."""
    return as_json({key: result[key] for key in ("spec", "status", "metrics")})


def _difference(ours: dict[str, Any], theirs: dict[str, Any]) -> str | None:
    """The first number in which two results of a run differ, in words."""
    if _numbers(ours) == _numbers(theirs):
        return None
    for metric in sorted({*ours["metrics"], *theirs["metrics"]}):
        here, there = ({} if metric not in r["metrics"] else _rows(r["metrics"][metric]) for r in (ours, theirs))
        for step in sorted({*here, *there}):
            if here.get(step) != there.get(step):
                return f"{metric} at step {step} is {here.get(step)} and {there.get(step)}"
    return f"status is {ours['status']} and {theirs['status']}"


def _rows(table: dict[str, list]) -> dict[int, list]:
    return dict(zip(table["steps"], table["values"], strict=True))


def _made(result: dict[str, Any]) -> str:
    about = result["environment"]
    return f"commit {str(about.get('commit'))[:7]}, torch {about.get('torch')}, {about.get('device_name')}"


def _complete(run_id: str, result: dict[str, Any], files: dict[str, Path], aside: _Aside) -> None:
    """Make the result of an entry that came alone, and the entry of a result that did: a store may have been deleted.

    With an entry, a result that the workflow deletes is made again instead of trained.
    """
    if f"results/runs/{run_id}.json" not in files:
        write_whole(aside.results / "runs" / f"{run_id}.json", as_json(result))
    if f"store/{run_id}/done.json" in files:
        return
    run, folder = Run.from_dict(result["spec"]), aside.store / run_id
    rows = [
        f"{step},{seed},{metric},{'nan' if value is None else repr(value)}\n"
        for metric, table in result["metrics"].items()
        for step, values in zip(table["steps"], table["values"], strict=True)
        for seed, value in zip(run.seeds, values, strict=True)
    ]
    write_whole(folder / "spec.json", as_json(run.as_dict()))
    write_whole(folder / "metrics.csv", "step,seed,metric,value\n" + "".join(rows))
    write_whole(folder / "env.json", as_json(result["environment"]))
    write_whole(folder / "done.json", as_json({"status": result["status"], "cost": result["cost"]}))
    if _numbers(result_of(RunFolder(aside.store, run))) != _numbers(result):
        raise ValueError(
            f"{result['run_id']}.json is not a table of its seeds and steps: it was edited. Export it again."
        )
