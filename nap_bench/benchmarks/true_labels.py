"""The same images with their own labels, and nothing that changes (paper 4.1, Fig. 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from nap_bench.benchmarks.random_labels import Images, RandomLabels


@dataclass(frozen=True)
class TrueLabels(RandomLabels):
    """Learn the true labels of the first `num_examples` images, in the same order of batches as random_labels.

    Every task is the same; `num_tasks` and `steps_per_task` say only when evaluation takes place. Other fields as there.
    """

    name: ClassVar[str] = "true_labels"

    def targets(self, data: Images, seeds: tuple[int, ...], task: int) -> Tensor:
        return data.labels.expand(len(seeds), -1)
