"""Random numbers as a pure function of (seed, purpose, counters).

Nothing in the suite touches a global generator. A stream never depends on the method, so two methods with the same seed
see the same initialisation, the same tasks and the same batches; and a resumed run draws what it would have drawn.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

TABLE, PIECE = 2**20, 512
"""Draws in a table of noise, and in the pieces that are cut out of it."""
AHEAD = 64
"""Steps for which places are chosen at once: a GPU is not waited for at every step."""


def generator(seed: int, purpose: str, *counters: int) -> torch.Generator:
    """A CPU generator for one purpose of one seed, e.g. generator(3, "labels", task).

    The stream is keyed by a BLAKE2b hash of the arguments, of which torch's CPU generator (mt19937) keeps 32 bits: two different
    arguments share a stream with probability 2^-32.
    """
    key = "/".join([str(seed), purpose, *map(str, counters)])
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


class Noise:
    """Standard normal draws for every entry at every update: pieces cut at random places out of a table, with random signs.

    Drawn one by one they cost several times an Adam step on a CPU; this way about one. Evolution strategies draw so (Salimans
    et al. 2017, arXiv 1703.03864). An entry has mean 0 and variance 1 over steps; two entries of a piece correlate as far as
    the table does with itself (0.001), others not at all.
    Shape suffixes: S seeds, P entries, N pieces of all seeds.
    """

    def __init__(
        self, purpose: str, seeds: tuple[int, ...], num_entries: int, device: torch.device, dtype: torch.dtype
    ):
        self.purpose, self.seeds, self.num_entries = purpose, seeds, num_entries
        self.num_pieces = -(-num_entries // PIECE)
        table = torch.empty(TABLE).normal_(generator=generator(0, f"{purpose}/table"))  # the same for all seeds
        table /= table.square().mean().sqrt()
        self._pieces = table.to(device, dtype).unfold(0, PIECE, 1)
        self._block, self._places = -1, torch.empty(0, dtype=torch.int64)
        self._drawn = torch.empty(len(seeds) * self.num_pieces, PIECE, device=device, dtype=dtype)

    def draw(self, step: int) -> Tensor:
        """[S, P], a buffer that the next draw overwrites; a pure function of (seed, purpose, step), the same on every device."""
        block, row = divmod(step, AHEAD)
        if block != self._block:
            shape = (AHEAD, self.num_pieces)
            drawn = [
                torch.randint(2 * len(self._pieces), shape, generator=generator(seed, self.purpose, block))
                for seed in self.seeds
            ]
            self._places, self._block = torch.cat(drawn, dim=1).to(self._drawn.device), block
        places_N = self._places[row]
        torch.index_select(self._pieces, 0, places_N >> 1, out=self._drawn)
        self._drawn.mul_(1 - 2 * (places_N & 1).unsqueeze(1))
        return self._drawn.view(len(self.seeds), -1)[:, : self.num_entries]


class Uniform:
    """Uniform draws in [0, 1) as a pure function of (seed, purpose, counter), made for AHEAD counters at a time on the CPU."""

    def __init__(self, purpose: str, seeds: tuple[int, ...], shape: tuple[int, ...], device: torch.device | str):
        self.purpose, self.seeds, self.shape, self.device = purpose, seeds, shape, device
        self._block, self._drawn = -1, torch.empty(0)

    def draw(self, counter: int) -> Tensor:
        """[S, *shape] float64."""
        block, row = divmod(counter, AHEAD)
        if block != self._block:
            drawn = [
                torch.rand(AHEAD, *self.shape, generator=generator(seed, self.purpose, block), dtype=torch.float64)
                for seed in self.seeds
            ]
            self._drawn, self._block = torch.stack(drawn, dim=1).to(self.device), block
        return self._drawn[row]
