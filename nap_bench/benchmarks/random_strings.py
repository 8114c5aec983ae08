"""Memorising random strings that are replaced again and again (paper B.3, C.3, Fig. 10)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from nap_bench.benchmarks.base import SupervisedBenchmark, losses
from nap_bench.rng import generator

STEPS_PER_CHUNK = 256
"""Batch indices are drawn for this many steps at a time; each chunk starts a new pass over the task's strings."""


@dataclass(frozen=True, eq=False)  # equal only to itself
class Place:
    """Strings are drawn, not loaded: where to put them."""

    inputs: Tensor  # empty, on the device


@dataclass(frozen=True)
class RandomStrings(SupervisedBenchmark):
    """Predict the next token of every prefix of `num_strings` strings of `length` tokens, uniform over `vocabulary` symbols.

    All strings are replaced before every update whose number is a multiple of `steps_per_task`, `num_tasks` - 1 times in
    all; nothing tells the learner. Batches are drawn without replacement, pass after pass over a fresh permutation of the
    strings. Loss and accuracy are means over all positions but a string's first, which nothing precedes.

    eval_strings: of how many of the task's strings evaluation reads, the first; None for all.
    probes_per_task: how often within a task the diagnostics are taken, evenly spaced, the last at its end.
    first_task: the number of the first task, which meets fresh parameters: with `num_tasks=1` the run that an aged network's
        task is compared with, on the very strings and batches.
    """

    name: ClassVar[str] = "random_strings"

    num_strings: int
    length: int
    vocabulary: int
    num_tasks: int
    steps_per_task: int
    batch_size: int
    eval_strings: int | None = None
    probes_per_task: int = 1
    first_task: int = 0

    def __post_init__(self) -> None:
        sizes = dict(num_strings=1, length=2, vocabulary=2, num_tasks=1, steps_per_task=1, batch_size=1)
        for name, least in {**sizes, "probes_per_task": 1, "first_task": 0}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{self.name} wants {name} >= {least}; found {getattr(self, name)}.")
        if self.eval_strings is not None and not 0 < self.eval_strings <= self.num_strings:
            raise ValueError(
                f"{self.name} wants eval_strings from 1 to num_strings = {self.num_strings}; found {self.eval_strings}."
            )
        if self.probes_per_task > self.steps_per_task:
            raise ValueError(
                f"{self.name} wants at most one probe per step; found probes_per_task={self.probes_per_task}."
            )

    @property
    def num_steps(self) -> int:
        return self.num_tasks * self.steps_per_task

    @property
    def shapes(self) -> tuple[tuple[int, ...], int]:
        """An input is a string without its last token."""
        return (self.length - 1,), self.vocabulary

    def task_at(self, step: int) -> int:
        return self.first_task + step // self.steps_per_task

    def load(self, data_dir: str | None, device: str) -> Place:
        return Place(torch.empty(0, dtype=torch.int64, device=device))

    def strings(self, seed: int, task: int) -> Tensor:
        """[N, L] int64 on the CPU: what is to be memorised during a task."""
        return torch.randint(
            self.vocabulary, (self.num_strings, self.length), generator=generator(seed, "strings", task)
        )

    def order(self, seed: int, task: int, chunk: int) -> Tensor:
        """[steps, B] indices of strings: permutations of all of them, one after another."""
        wanted = min(STEPS_PER_CHUNK, self.steps_per_task) * self.batch_size
        passes = -(-wanted // self.num_strings)
        keys = torch.rand(passes, self.num_strings, generator=generator(seed, "order", task, chunk))
        return keys.argsort(dim=1).flatten()[:wanted].view(-1, self.batch_size)

    @lru_cache(maxsize=2)  # noqa: B019 (keyed by value, a frozen dataclass; two tasks at most)
    def _block_strings(self, seeds: tuple[int, ...], task: int, device: torch.device) -> Tensor:
        return torch.stack([self.strings(seed, task) for seed in seeds]).to(device)

    @lru_cache(maxsize=2)  # noqa: B019 (as above; two chunks at most)
    def _block_order(self, seeds: tuple[int, ...], task: int, chunk: int, device: torch.device) -> Tensor:
        return torch.stack([self.order(seed, task, chunk) for seed in seeds], dim=1).to(device)

    def batch(self, data: Place, seeds: tuple[int, ...], step: int) -> tuple[Tensor, Tensor]:
        """(inputs [S, B, T], targets [S, B, T]): every token, and the one after it."""
        chunk, row = divmod(step % self.steps_per_task, STEPS_PER_CHUNK)
        task, device = self.task_at(step), data.inputs.device
        index_SB = self._block_order(seeds, task, chunk, device)[row]
        strings_SBL = self._block_strings(seeds, task, device).gather(
            1, index_SB.unsqueeze(2).expand(-1, -1, self.length)
        )
        return strings_SBL[..., :-1], strings_SBL[..., 1:]

    def probe(self, data: Place, seeds: tuple[int, ...], task: int) -> tuple[Tensor, Tensor]:
        """(inputs, targets) [S, E, T] of what evaluation reads: the first `eval_strings` that are being memorised."""
        strings_SEL = self._block_strings(seeds, task, data.inputs.device)[:, : self.eval_strings]
        return strings_SEL[..., :-1], strings_SEL[..., 1:]

    def loss(self, out_SBTK: Tensor, y_SBT: Tensor) -> Tensor:
        return losses(out_SBTK, y_SBT).flatten(1).mean(dim=1)

    def eval_steps(self) -> frozenset[int]:
        k, probes = self.steps_per_task, self.probes_per_task
        within = [k * (i + 1) // probes for i in range(probes)]
        return frozenset(task * k + step for task in range(self.num_tasks) for step in within)

    @torch.no_grad()
    def evaluate(self, state, data: Place) -> dict[str, Tensor]:
        """Accuracy and loss [S] on `probe` of the task of the last update done, and post-activations `acts`, by token."""
        inputs, y_SET = self.probe(data, state.seeds, self.task_at(state.step - 1))
        acts: dict[str, Tensor] = {}
        out_SETK = state.forward(inputs, acts)
        return {"accuracy": self.accuracy(out_SETK, y_SET), "loss": self.loss(out_SETK, y_SET), "acts": acts}
