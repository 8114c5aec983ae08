"""The same images with their own labels, and nothing that changes (paper 4.1, Fig. 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nap_bench.benchmarks.base import ImageStream


@dataclass(frozen=True)
class TrueLabels(ImageStream):
    """Learn the true labels of the first `num_examples` images, in the same order of batches as random_labels.

    Every task is the same; `num_tasks` and `steps_per_task` say only when evaluation takes place. Other fields as
    there.
    """

    name: ClassVar[str] = "true_labels"
