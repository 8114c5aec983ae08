"""Warm starts: the same problem with more and more data (Ash & Adams 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nap_bench.benchmarks.base import Images, ImageStream, accuracy, outputs
from nap_bench.rng import generator


@dataclass(frozen=True)
class WarmStart(ImageStream):
    """Classify images, of which a larger part is there in every task; what counts is accuracy on images that are never there.

    Each seed draws an order of the first `num_examples` images. Task t is made of the first (t + 1) / `chunks` of them, the old
    ones among them, with their true labels. A network that has learned a part of the data generalises worse from all of them than a
    fresh one, the same run with `first_task=chunks - 1, num_tasks=1`.

    Ash & Adams 2020: chunks=2 on CIFAR-10, two thirds of the training set to learn from and one third to test on, batch 128, SGD or
    Adam at 0.001, no augmentation, each part until 99 % of it are known. Here every part has `steps_per_task` updates, however much
    is known: data never depend on the learner. In theirs each part starts with a new optimizer: that is the method optimizer_reset.

    chunks: parts that the data come in, at least 2.  held_out: number of test images, those after the first `num_examples`;
    task_end/test_accuracy and test_loss are about them.  Other fields as in random_labels.
    """

    name: ClassVar[str] = "warm_start"
    own_images: ClassVar[bool] = True

    eval_examples: int = 256
    chunks: int = 2
    held_out: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.chunks < 2 or self.held_out < 1:
            raise ValueError(
                f"{self.name} wants chunks >= 2 and held_out >= 1; found {self.chunks} and {self.held_out}."
            )
        if self.eval_examples is None or self.eval_examples > self.num_examples // self.chunks:
            raise ValueError(
                f"{self.name} wants eval_examples of at most {self.num_examples // self.chunks}, a part of the data; found "
                f"{self.eval_examples}."
            )

    @property
    def num_loaded(self) -> int:
        return self.num_examples + self.held_out

    def images(self, data: Images, seed: int, task: int) -> Tensor:
        order = torch.randperm(self.num_examples, generator=generator(seed, "images"))
        return order[: self.num_examples * min(task + 1, self.chunks) // self.chunks]

    @torch.no_grad()
    def evaluate(self, state, data: Images) -> dict[str, Tensor]:
        """As any image stream, and test_accuracy and test_loss [S]."""
        found = super().evaluate(state, data)
        out_SEK = outputs(state, data.inputs[self.num_examples :])
        y_SE = data.labels[self.num_examples :].expand(len(state.seeds), -1)
        return found | {"test_accuracy": accuracy(out_SEK, y_SE), "test_loss": self.loss(out_SEK, y_SE)}
