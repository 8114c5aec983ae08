"""Save and load the state of a run: whole or absent, and never another run's."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import IO, Any

import torch

from nap_bench.store import write_whole

DIGEST_BYTES = hashlib.sha256().digest_size


class _Hashed:
    """A file that is written from front to back, and the SHA-256 of what was written."""

    def __init__(self, file: IO[bytes]):
        self.file, self.hasher = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.hasher.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def save(path: Path, run_id: str, device: str, content: dict[str, Any]) -> None:
    """Replace the checkpoint. Its last 32 bytes are the SHA-256 of the rest, which torch.load does not mind."""

    def write(file: IO[bytes]) -> None:
        hashed = _Hashed(file)
        torch.save({"run_id": run_id, "device": torch.device(device).type, **content}, hashed)
        file.write(hashed.hasher.digest())

    write_whole(path, write)


def _is_whole(path: Path, num_bytes: int) -> bool:
    hasher, left = hashlib.sha256(), num_bytes - DIGEST_BYTES
    with open(path, "rb") as file:
        while left > 0 and (piece := file.read(min(left, 2**24))):
            hasher.update(piece)
            left -= len(piece)
        return file.read() == hasher.digest()


def load(path: Path, run_id: str, device: str) -> dict[str, Any] | None:
    """The checkpoint's content, None if there is none; refuses a damaged one, another run's, another kind of device's."""
    if not path.exists():
        return None
    num_bytes = path.stat().st_size
    if not _is_whole(path, num_bytes):
        raise ValueError(
            f"Checkpoint {path} is damaged ({num_bytes} bytes, checksum differs). Delete it: the run starts from its beginning."
        )
    on_cpu = torch.device(device).type == "cpu"  # there pages of the file serve as memory until they are written to
    try:
        content = torch.load(path, map_location=device, weights_only=True, mmap=on_cpu)
    except pickle.UnpicklingError:  # it would run code
        raise ValueError(
            f"Checkpoint {path} holds something else than tensors and numbers, which a checkpoint of ours never does. It was not "
            f"opened: delete it, the run starts from its beginning."
        ) from None
    if content["run_id"] != run_id:
        raise ValueError(
            f"Checkpoint {path} belongs to run {content['run_id']}, wanted {run_id}. It was copied here: delete it, the run "
            f"starts from its beginning."
        )
    if content["device"] != torch.device(device).type:
        raise ValueError(
            f"Checkpoint {path} was made on {content['device']}, this is {torch.device(device).type}: going on would change "
            f"numbers. Go on with device={content['device']}, or delete the checkpoint to start from the beginning here."
        )
    return content
