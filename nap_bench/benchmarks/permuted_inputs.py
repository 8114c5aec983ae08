"""Permuted images: true labels, the pixels in another order in every task (permuted MNIST, Goodfellow et al. 2013)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import ClassVar

import torch
from torch import Tensor

from nap_bench.benchmarks.base import Images, ImageStream
from nap_bench.rng import generator


@dataclass(frozen=True)
class PermutedInputs(ImageStream):
    """Classify images drawn anew for every task, whose pixels stand in another order in every task.

    A task is `num_examples` images drawn anew, without replacement, and one permutation of all their values, the same
    for every image. Task 0 shows them as they are; every other permutation is drawn by itself, so permutations do not
    compound. `steps_per_task` x `batch_size` / `num_examples` is the number of passes.

    Kumar et al. 2023: MNIST, 10000 images, batch 16, one pass of 625 updates, 500 tasks. Their code takes up to 624
    batches before it begins a second pass; here a pass is whole. With colour a permutation also moves values between
    channels.

    Evaluation reads the first `eval_examples` of the task's images (of which the network has trained on those of its
    batches); other fields as in random_labels.
    """

    name: ClassVar[str] = "permuted_inputs"
    own_images: ClassVar[bool] = True

    @property
    def num_loaded(self) -> int | None:
        return None

    def images(self, data: Images, seed: int, task: int) -> Tensor:
        return torch.randperm(len(data.inputs), generator=generator(seed, "images", task))[: self.num_examples]

    def permutation(self, seed: int, task: int) -> Tensor:
        """[D]: which value of an image stands at each place."""
        num_values = prod(self.shapes[0])
        if task == 0:
            return torch.arange(num_values)
        return torch.randperm(num_values, generator=generator(seed, "permutation", task))

    @lru_cache(maxsize=2)  # noqa: B019 (keyed by value, a frozen dataclass; two tasks at most)
    def _block_permutation(self, seeds: tuple[int, ...], task: int, device: torch.device) -> Tensor:
        return torch.stack([self.permutation(seed, task) for seed in seeds]).unsqueeze(1).to(device)

    def shown(self, inputs: Tensor, seeds: tuple[int, ...], task: int) -> Tensor:
        flat_SBD = inputs.flatten(2)
        index_S1D = self._block_permutation(seeds, task, inputs.device)
        return flat_SBD.gather(2, index_S1D.expand_as(flat_SBD)).view(inputs.shape)
