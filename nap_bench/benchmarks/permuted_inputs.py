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
from nap_bench.spec import later, nearest

PERMUTATIONS = ("compounding", "fresh", "identity_first")


@dataclass(frozen=True)
class PermutedInputs(ImageStream):
    """Classify images drawn anew for every task, whose pixels stand in another order in every task.

    A task is `num_examples` images drawn anew, without replacement, and one permutation of all their values, the same
    for every image. `steps_per_task` x `batch_size` / `num_examples` is the number of passes.

    permutations: how they are drawn.
        "identity_first"  each by itself; task 0 shows images as they are (Kumar et al.)
        "fresh"           each by itself, the first included (Elsayed & Mahmood)
        "compounding"     each permutes what the task before showed, the first the images themselves (Dohare et al.); the same in
                          distribution as "fresh"

    Kumar et al. 2023: MNIST, 10000 images, batch 16, one pass of 625 updates, 500 tasks. Their code takes up to 624
    batches before it begins a second pass; here a pass is whole. With colour a permutation also moves values between
    channels.

    Dohare et al. 2024, online permuted MNIST: all 60000 images once per task, one at a time (`batch_size=1`, `whole_passes=True`),
    800 tasks, pixels="unit", compounding. Elsayed & Mahmood 2024, input-permuted MNIST: 5000 images, one at a time, 200
    tasks, pixels="symmetric", fresh.

    Evaluation reads the first `eval_examples` of the task's images (of which the network has trained on those of its
    batches); other fields as in random_labels.
    """

    name: ClassVar[str] = "permuted_inputs"
    own_images: ClassVar[bool] = True

    permutations: str = later("identity_first")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.permutations not in PERMUTATIONS:
            raise ValueError(nearest(self.permutations, PERMUTATIONS, f"permutations of {self.name}"))

    @property
    def num_loaded(self) -> int | None:
        return None

    def images(self, data: Images, seed: int, task: int) -> Tensor:
        return torch.randperm(len(data.inputs), generator=generator(seed, "images", task))[: self.num_examples]

    def permutation(self, seed: int, task: int) -> Tensor:
        """[D]: which value of an image stands at each place."""
        num_values = prod(self.shapes[0])
        if task == 0 and self.permutations == "identity_first":
            return torch.arange(num_values)
        order = torch.randperm(num_values, generator=generator(seed, "permutation", task))
        for earlier in range(task - 1, -1, -1) if self.permutations == "compounding" else ():
            order = torch.randperm(num_values, generator=generator(seed, "permutation", earlier))[order]
        return order

    @lru_cache(maxsize=2)  # noqa: B019 (keyed by value, a frozen dataclass; two tasks at most)
    def _block_permutation(self, seeds: tuple[int, ...], task: int, device: torch.device) -> Tensor:
        return torch.stack([self.permutation(seed, task) for seed in seeds]).unsqueeze(1).to(device)

    def shown(self, inputs: Tensor, seeds: tuple[int, ...], task: int) -> Tensor:
        flat_SBD = inputs.flatten(2)
        index_S1D = self._block_permutation(seeds, task, inputs.device)
        return flat_SBD.gather(2, index_S1D.expand_as(flat_SBD)).view(inputs.shape)
