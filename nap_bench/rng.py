"""Random numbers as a pure function of (seed, purpose, counters).

Nothing in the suite touches a global generator. A stream never depends on the method, so two methods with the same seed
see the same initialisation, the same tasks and the same batches; and a resumed run draws what it would have drawn.
"""

from __future__ import annotations

import hashlib

import torch


def generator(seed: int, purpose: str, *counters: int) -> torch.Generator:
    """A CPU generator for one purpose of one seed, e.g. generator(3, "labels", task).

    The stream is keyed by a BLAKE2b hash of the arguments, of which torch's CPU generator (mt19937) keeps 32 bits: two different
    arguments share a stream with probability 2^-32.
    """
    key = "/".join([str(seed), purpose, *map(str, counters)])
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
