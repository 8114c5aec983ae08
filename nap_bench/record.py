"""An append-only long table of metrics: step,seed,metric,value, every bit kept."""

from __future__ import annotations

import os
from pathlib import Path

from torch import Tensor

from nap_bench.store import explain_os_error

HEADER = "step,seed,metric,value\n"


class Recorder:
    """Appends to metrics.csv. `offset`: bytes that a checkpoint vouches for; what a killed run wrote after it is cut off."""

    def __init__(self, path: Path, seeds: tuple[int, ...], offset: int = 0):
        self.path, self.seeds = path, seeds
        self._pending: list[tuple[int, str, Tensor]] = []
        found = path.stat().st_size if path.exists() else 0
        if found < offset:
            raise ValueError(
                f"{path} has {found} bytes, its checkpoint vouches for {offset}: rows were lost. Delete the run's folder "
                f"{path.parent}: the run starts from its beginning."
            )
        try:
            with open(path, "ab") as file:
                file.truncate(offset)
                if offset == 0:
                    file.write(HEADER.encode())
        except OSError as error:
            raise explain_os_error(error, path, len(HEADER)) from None

    def log(self, step: int, metric: str, values_S: Tensor) -> None:
        """One value per seed. Kept on the device until `flush`."""
        self._pending.append((step, metric, values_S))

    def flush(self) -> int:
        """Write what is pending, durably. Returns the length of the table in bytes."""
        lines = []
        for step, metric, values_S in self._pending:
            for seed, value in zip(self.seeds, values_S.tolist(), strict=True):
                lines.append(f"{step},{seed},{metric},{float(value)!r}\n")
        data = "".join(lines).encode()
        try:
            with open(self.path, "ab") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                self._pending.clear()
                return file.tell()
        except OSError as error:
            raise explain_os_error(error, self.path, len(data)) from None
