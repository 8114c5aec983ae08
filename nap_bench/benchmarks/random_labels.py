"""Random-label memorisation, labels re-drawn every k steps (paper 3.1, Fig. 1; 3.2, Fig. 2; 5.1)."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from nap_bench.benchmarks.base import SupervisedBenchmark
from nap_bench.metrics.plasticity import jacobian_norm
from nap_bench.rng import generator
from nap_bench.spec import later, nearest


class Dataset(NamedTuple):
    shape: tuple[int, ...]  # of one image
    num_classes: int
    downloaded: bool  # or embedded in a dependency


DATASETS = {
    "cifar10": Dataset((3, 32, 32), 10, True),
    "digits": Dataset((1, 8, 8), 10, False),
    "mnist": Dataset((1, 28, 28), 10, True),
    "patches": Dataset((3, 8, 8), 10, False),
}
"""By the name of their module in nap_bench.data."""

STEPS_PER_CHUNK = 1024
"""Batch indices are drawn for this many steps at a time; each chunk starts a new pass over the data."""


class Images(NamedTuple):
    inputs: Tensor  # [N, C, H, W] float32, on the device
    labels: Tensor  # [N] int64, the true ones


@dataclass(frozen=True)
class RandomLabels(SupervisedBenchmark):
    """Memorise uniformly random labels of the first `num_examples` images; a new task re-draws all labels.

    The network learns for `steps_per_task` updates on batches drawn without replacement (pass after pass over a fresh
    permutation), then the labels of every image are drawn anew, `num_tasks` times in all. Nothing tells the learner.

    jacobian_examples: of how many images the Jacobian norm is taken at a task's end; 0 for not at all.
    probes_per_task: how often within a task the diagnostics are taken, evenly spaced, the last at its end.
    flow: also measure every update (metrics/flow.py) and record it with the diagnostics.
    """

    name: ClassVar[str] = "random_labels"

    dataset: str
    num_examples: int
    num_tasks: int
    steps_per_task: int
    batch_size: int
    probes_per_task: int = 1
    jacobian_examples: int = later(0)
    flow: bool = later(False)

    def __post_init__(self) -> None:
        if self.dataset not in DATASETS:
            raise ValueError(nearest(self.dataset, DATASETS, "dataset of random_labels"))
        if (
            not 0 < self.probes_per_task <= self.steps_per_task
            or min(self.num_examples, self.batch_size, self.num_tasks) < 1
        ):
            raise ValueError(f"random_labels wants positive sizes, at most one probe per step; found {self}.")

    @property
    def num_steps(self) -> int:
        return self.num_tasks * self.steps_per_task

    @property
    def shapes(self) -> tuple[tuple[int, ...], int]:
        return DATASETS[self.dataset][:2]

    @property
    def download(self) -> str | None:
        return self.dataset if DATASETS[self.dataset].downloaded else None

    def task_at(self, step: int) -> int:
        return step // self.steps_per_task

    def load(self, data_dir: str | None, device: str) -> Images:
        inputs, labels = importlib.import_module(f"nap_bench.data.{self.dataset}").load(data_dir)
        if self.num_examples > len(inputs):
            raise ValueError(f"{self.name} wants {self.num_examples} images; {self.dataset} has {len(inputs)}.")
        some = slice(self.num_examples)
        return Images(inputs[some].view(-1, *self.shapes[0]).to(device), labels[some].to(device))

    def labels(self, seed: int, task: int) -> Tensor:
        """[N] int64, uniform over classes, independent of every other task."""
        return torch.randint(self.shapes[1], (self.num_examples,), generator=generator(seed, "labels", task))

    def order(self, seed: int, task: int, chunk: int) -> Tensor:
        """[STEPS_PER_CHUNK, B] indices into the images: permutations of all of them, one after another."""
        wanted = STEPS_PER_CHUNK * self.batch_size
        passes = -(-wanted // self.num_examples)
        keys = torch.rand(passes, self.num_examples, generator=generator(seed, "order", task, chunk))
        return keys.argsort(dim=1).flatten()[:wanted].view(STEPS_PER_CHUNK, self.batch_size)

    def targets(self, data: Images, seeds: tuple[int, ...], task: int) -> Tensor:
        """[S, N]: what each seed's network is to answer for every image during a task."""
        return self._block_labels(seeds, task, data.inputs.device)

    @lru_cache(maxsize=2)  # noqa: B019 (keyed by value, a frozen dataclass; two chunks at most)
    def _block_labels(self, seeds: tuple[int, ...], task: int, device: torch.device) -> Tensor:
        return torch.stack([self.labels(seed, task) for seed in seeds]).to(device)

    @lru_cache(maxsize=2)  # noqa: B019
    def _block_order(self, seeds: tuple[int, ...], task: int, chunk: int, device: torch.device) -> Tensor:
        return torch.stack([self.order(seed, task, chunk) for seed in seeds], dim=1).to(device)

    def batch(self, data: Images, seeds: tuple[int, ...], step: int) -> tuple[Tensor, Tensor]:
        task, local = divmod(step, self.steps_per_task)
        chunk, row = divmod(local, STEPS_PER_CHUNK)
        device = data.inputs.device
        index_SB = self._block_order(seeds, task, chunk, device)[row]
        inputs = data.inputs.index_select(0, index_SB.flatten()).unflatten(0, index_SB.shape)
        return inputs, self.targets(data, seeds, task).gather(1, index_SB)

    def loss(self, out_SBK: Tensor, y_SB: Tensor) -> Tensor:
        losses_SB = F.cross_entropy(out_SBK.flatten(0, 1), y_SB.flatten(), reduction="none").view(y_SB.shape)
        return losses_SB.mean(dim=1)

    def eval_steps(self) -> frozenset[int]:
        k, probes = self.steps_per_task, self.probes_per_task
        within = [k * (i + 1) // probes for i in range(probes)]
        return frozenset(task * k + step for task in range(self.num_tasks) for step in within)

    @torch.no_grad()
    def evaluate(self, state, data: Images) -> dict[str, Tensor]:
        """Accuracy and loss [S] on the whole memorised set under the current labels, and post-activations `acts`.

        "Current" is the task of the last update done. Also jacobian_norm [S], if it is asked for.
        """
        y_SN = self.targets(data, state.seeds, self.task_at(state.step - 1))
        acts: dict[str, Tensor] = {}
        out_SNK = state.forward(data.inputs.expand(len(state.seeds), *data.inputs.shape), acts)
        accuracy_S = (out_SNK.argmax(dim=-1) == y_SN).float().mean(dim=1)
        found = {"accuracy": accuracy_S, "loss": self.loss(out_SNK, y_SN), "acts": acts}
        if self.jacobian_examples:
            some = data.inputs[: self.jacobian_examples]
            with torch.enable_grad():
                found["jacobian_norm"] = jacobian_norm(state.forward, some.expand(len(state.seeds), *some.shape))
        return found
