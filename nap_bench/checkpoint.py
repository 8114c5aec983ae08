"""Save and load the state of a run: whole or absent, and never another run's."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import torch

from nap_bench.store import write_whole


def save(path: Path, run_id: str, device: str, content: dict[str, Any]) -> None:
    """Replace the checkpoint. Its last 32 bytes are the SHA-256 of the rest."""
    buffer = io.BytesIO()
    torch.save({"run_id": run_id, "device": torch.device(device).type, **content}, buffer)
    data = buffer.getvalue()
    write_whole(path, data + hashlib.sha256(data).digest())


def load(path: Path, run_id: str, device: str) -> dict[str, Any] | None:
    """The checkpoint's content, None if there is none; refuses a damaged one, another run's, another kind of device's."""
    if not path.exists():
        return None
    data = path.read_bytes()
    if hashlib.sha256(data[:-32]).digest() != data[-32:]:
        raise ValueError(
            f"Checkpoint {path} is damaged ({len(data)} bytes, checksum differs). Delete it: the run starts from its beginning."
        )
    content = torch.load(io.BytesIO(data[:-32]), map_location=device, weights_only=True)
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
