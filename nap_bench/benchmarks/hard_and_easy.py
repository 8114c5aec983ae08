"""Hard and easy tasks in turn: several new classes, then one (Kumar et al. 2023, "5+1" on CIFAR-100)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from nap_bench.benchmarks.base import Images, ImageStream
from nap_bench.rng import generator


@dataclass(frozen=True)
class HardAndEasy(ImageStream):
    """Classify images of new classes: `hard_classes` of them in tasks 0, 2, 4, ..., `easy_classes` in tasks 1, 3, 5, ...

    Each seed draws an order of the classes and takes them from its front, none twice; once too few for a pair of tasks are left, a
    round is over and a new order is drawn. A task is made of all images of its classes among the first `num_examples`; answers are
    their true labels, and all outputs take part. What counts is accuracy on the hard tasks: on easy ones the right answer is always
    the same, and learning to give it costs the network what the next task needs.

    Kumar et al. 2023: all of CIFAR-100, 30 tasks of 780 updates, batch 32 (their configuration file: 625, batch 16), a
    convolutional
    network, 5 and 1 classes. They end where the classes do, so rounds are ours; and their batches leave out the last of each pass.

    eval_examples: accuracy, loss and diagnostics read so many of the task's images, the first, so at most what the smallest classes
        of an easy task have. Other fields as in random_labels.
    """

    name: ClassVar[str] = "hard_and_easy"
    own_images: ClassVar[bool] = True

    eval_examples: int = 128
    hard_classes: int = 5
    easy_classes: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.easy_classes <= self.hard_classes or self.hard_classes + self.easy_classes > self.shapes[1]:
            raise ValueError(
                f"{self.name} wants 0 < easy_classes <= hard_classes, together at most the {self.shapes[1]} classes of "
                f"{self.dataset}; found {self.easy_classes} and {self.hard_classes}."
            )
        if self.eval_examples is None:
            raise ValueError(f"{self.name} wants a number of eval_examples; found None.")

    def load(self, data_dir: str | None, device: str) -> Images:
        data = super().load(data_dir, device)
        counts = data.labels.bincount(minlength=self.shapes[1])
        fewest = int(counts.sort().values[: self.easy_classes].sum())
        if self.eval_examples > fewest:
            raise ValueError(
                f"{self.name} wants eval_examples of at most {fewest}: the first {self.num_examples} images of {self.dataset} hold "
                f"no more of the smallest {self.easy_classes} classes; found {self.eval_examples}."
            )
        return data

    def classes(self, seed: int, task: int) -> Tensor:
        """The classes of a task."""
        num_classes, per_pair = self.shapes[1], self.hard_classes + self.easy_classes
        pair, is_easy = divmod(task, 2)
        cycle, place = divmod(pair, num_classes // per_pair)
        order = torch.randperm(num_classes, generator=generator(seed, "classes", cycle))
        of_pair = order[place * per_pair : (place + 1) * per_pair]
        return of_pair[self.hard_classes :] if is_easy else of_pair[: self.hard_classes]

    @lru_cache(maxsize=64)  # noqa: B019 (keyed by value, a frozen dataclass; a block's tasks)
    def images(self, data: Images, seed: int, task: int) -> Tensor:
        return torch.isin(data.labels.cpu(), self.classes(seed, task)).nonzero().squeeze(1)
