"""Random numbers as a pure function of (seed, purpose, counters).

Nothing in the suite touches a global generator. A stream never depends on the method, so two methods with the same seed
see the same initialisation, the same tasks and the same batches; and a resumed run draws what it would have drawn.
"""

from __future__ import annotations

import hashlib

import torch


def generator(seed: int, purpose: str, *counters: int, device: str | torch.device = "cpu") -> torch.Generator:
    """A generator for one purpose of one seed, e.g. generator(3, "labels", task).

    On the CPU but for noise that is drawn anew at every update, whose bits may depend on the kind of device.
    The stream is keyed by a BLAKE2b hash of the arguments, of which torch's CPU generator (mt19937) keeps 32 bits: two different
    arguments share a stream with probability 2^-32.
    """
    key = "/".join([str(seed), purpose, *map(str, counters)])
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "little") >> 1)
