"""Class-incremental classification: true labels, and more and more classes (Dohare et al. 2024, on CIFAR-100)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from nap_bench.benchmarks.base import Images, ImageStream, outputs
from nap_bench.rng import generator


@dataclass(frozen=True)
class ClassIncremental(ImageStream):
    """Classify images of a growing set of classes: every task adds `classes_per_task` to those of the tasks before it.

    Each seed draws an order of the classes. Task i of a round is made of all images, among the first `num_examples`, of
    the first (i + 1) x `classes_per_task` classes of that order; the old ones stay. Once all classes have come, a new
    round begins with the first classes of a new order (task number K / classes_per_task is the first of round 1), so
    that a stream is as long as is wanted. Labels are the true ones throughout.

    Choices, where Dohare et al. 2024 (CIFAR-100, 5 classes more every 200 passes, ResNet-18) is another protocol:

    - `steps_per_task` is the same for all tasks, so later ones make fewer passes; theirs grows with the data.
    - All K outputs take part in the softmax from the start: theirs leaves those of classes to come out of loss and
    accuracy,
      which tells the learner of the switch.
    - One round is theirs; rounds are ours. No augmentation, no early stopping, no learning-rate steps.
    - Held-out images are the last of the dataset's training set (`held_out`, after the first `num_examples`).

    held_out: number of images never trained on. test_accuracy and test_loss are about those of classes that have come.
    eval_examples: accuracy, loss and diagnostics read so many of the task's images, the first: the same number for
    every seed,
        so at most what the smallest classes have.
    Other fields as in random_labels.
    """

    name: ClassVar[str] = "class_incremental"
    own_images: ClassVar[bool] = True

    eval_examples: int = 256
    classes_per_task: int = 2
    held_out: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        num_classes = self.shapes[1]
        if not 0 < self.classes_per_task <= num_classes or num_classes % self.classes_per_task:
            raise ValueError(
                f"{self.name} wants classes_per_task to divide the {num_classes} classes; "
                f"found {self.classes_per_task}."
            )
        if self.eval_examples is None or self.held_out < 0:
            raise ValueError(f"{self.name} wants a number of eval_examples and held_out >= 0; found {self}.")

    @property
    def num_loaded(self) -> int:
        return self.num_examples + self.held_out

    def load(self, data_dir: str | None, device: str) -> Images:
        data = super().load(data_dir, device)
        counts = data.labels[: self.num_examples].bincount(minlength=self.shapes[1])
        fewest = int(counts.sort().values[: self.classes_per_task].sum())
        if self.eval_examples > fewest:
            raise ValueError(
                f"{self.name} wants eval_examples of at most {fewest}: the first {self.num_examples} images of "
                f"{self.dataset} hold no more of the smallest {self.classes_per_task} classes; "
                f"found {self.eval_examples}."
            )
        return data

    def classes(self, seed: int, task: int) -> Tensor:
        """The classes that have come by a task."""
        num_classes = self.shapes[1]
        cycle, index = divmod(task, num_classes // self.classes_per_task)
        order = torch.randperm(num_classes, generator=generator(seed, "classes", cycle))
        return order[: (index + 1) * self.classes_per_task]

    def images(self, data: Images, seed: int, task: int) -> Tensor:
        labels = data.labels[: self.num_examples].cpu()
        return torch.isin(labels, self.classes(seed, task)).nonzero().squeeze(1)

    @lru_cache(maxsize=2)  # noqa: B019 (keyed by value, a frozen dataclass; two tasks at most)
    def _block_held_out(self, data: Images, seeds: tuple[int, ...], task: int) -> Tensor:
        """[S, held_out] float, 1 where a held-out image's class has come."""
        labels = data.labels[self.num_examples :]
        return torch.stack([torch.isin(labels, self.classes(seed, task).to(labels.device)) for seed in seeds]).float()

    @torch.no_grad()
    def evaluate(self, state, data: Images) -> dict[str, Tensor]:
        """As any image stream; with `held_out` also test_accuracy and test_loss [S]."""
        found = super().evaluate(state, data)
        if self.held_out:
            task = self.task_at(state.step - 1)
            weight_SE = self._block_held_out(data, state.seeds, task)
            weight_SE = weight_SE / weight_SE.sum(dim=1, keepdim=True)
            inputs, y_E = data.inputs[self.num_examples :], data.labels[self.num_examples :]
            out_SEK = outputs(state, inputs)
            y_SE = y_E.expand(len(state.seeds), -1)
            found["test_accuracy"] = ((out_SEK.argmax(dim=-1) == y_SE) * weight_SE).sum(dim=1)
            found["test_loss"] = (self.losses(out_SEK, y_SE) * weight_SE).sum(dim=1)
        return found
