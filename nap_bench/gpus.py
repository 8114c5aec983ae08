"""Which GPU a process may use: a lease for each (GPU, slot), held as a lock on a file of this machine. Standard library only.

A lock ends with the process that holds it, however that ends, and no clock is read: a lease is never stale.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

NONE = ("", "-1", "NoDevFiles")
"""What stands in CUDA_VISIBLE_DEVICES where there is no GPU; CUDA ignores what follows it."""


@dataclass
class Held:
    """The right to one slot of a GPU. It ends with the process, or with `release`."""

    gpu: str
    slot: int
    file: IO[str]

    def release(self) -> None:
        fcntl.flock(self.file, fcntl.LOCK_UN)  # also where a forked process has the file open
        self.file.close()


def present(environment: Mapping[str, str] = os.environ) -> list[str]:
    """The GPUs that this process may use: those of CUDA_VISIBLE_DEVICES, or else all of this machine.

    By UUID where nvidia-smi tells it, so that index 0 of two allocations of a node is not one GPU; else as they are named.
    An index counts as nvidia-smi does: CUDA_DEVICE_ORDER=PCI_BUS_ID, not the fastest first, which is what CUDA does by itself.
    """
    known = _known()
    named = environment.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return list(known.values())
    found: list[str] = []
    for word in map(str.strip, named.split(",")):
        if word in NONE:
            break
        whole = [uuid for uuid in known.values() if uuid.startswith(word)]  # CUDA takes the beginning of a UUID
        found.append(known.get(word) or (whole[0] if len(whole) == 1 else word))
    return found


def _known() -> dict[str, str]:
    """Index -> UUID of the GPUs that the driver shows here."""
    words = ["nvidia-smi", "--query-gpu=index,uuid", "--format=csv,noheader"]
    try:
        answer = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return {}
    rows = [line.split(",") for line in answer.stdout.splitlines()] if answer.returncode == 0 else []
    return {row[0].strip(): row[1].strip() for row in rows if len(row) == 2}


def leases_folder() -> Path:
    """Where the locks of this user on this machine are: never on a shared file system, and never removed."""
    return Path(tempfile.gettempdir()) / f"nap_bench-gpus-{os.getuid()}"


def try_lease(gpus: Sequence[str], num_slots: int, folder: Path | None = None) -> Held | None:
    """A free slot of a GPU, of the least used one first; None if all are held.

    num_slots: of each GPU, how many processes may share it.
    """
    folder = folder or leases_folder()
    folder.mkdir(parents=True, exist_ok=True)
    for slot in range(num_slots):
        for gpu in gpus:
            file = open(folder / f"{gpu.replace('/', '_')}.{slot}", "a+")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                continue
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
            return Held(gpu, slot, file)
    return None


def holders(gpus: Sequence[str], num_slots: int, folder: Path | None = None) -> list[int]:
    """The processes that last took a slot of these GPUs, for people to read."""
    paths = [
        (folder or leases_folder()) / f"{gpu.replace('/', '_')}.{slot}" for slot in range(num_slots) for gpu in gpus
    ]
    words = [path.read_text().strip() for path in paths if path.exists()]
    return sorted({int(word) for word in words if word.isdigit()})
