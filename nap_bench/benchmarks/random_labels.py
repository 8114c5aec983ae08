"""Random-label memorisation, labels re-drawn every k steps (paper 3.1, Fig. 1; 3.2, Fig. 2; 5.1, Fig. 5)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from nap_bench.benchmarks.base import Images, ImageStream
from nap_bench.rng import generator
from nap_bench.spec import later, nearest

LABELS = ("permuted", "shuffled", "uniform")


@dataclass(frozen=True)
class RandomLabels(ImageStream):
    """Memorise random labels of the first `num_examples` images; a new task re-draws all labels.

    The network learns for `steps_per_task` updates on batches drawn without replacement (pass after pass over a fresh
    permutation), then the labels of every image are drawn anew, `num_tasks` times in all. Nothing tells the learner.

    labels: how they are drawn, independently for every task, the first included.
        "uniform"   each image's label uniform over the classes, independent of all others (the paper's)
        "permuted"  true labels, their classes renamed by a random permutation (the paper's variant, 5.1)
        "shuffled"  true labels, shuffled among the images, so that class counts stay (Kumar et al. 2023: 1200 images of
                    MNIST or CIFAR-10, batch 16, 30000 updates a task, 50 tasks; their batches leave out the last of
                    each pass, they draw which 1200 images per seed and standardise CIFAR-10 channel by channel)
    Elsayed & Mahmood 2024, label-permuted EMNIST (47 classes) and CIFAR-10: labels="permuted", one image at a time (`batch_size=1`,
    `whole_passes=True`), 400 tasks of 2500 updates, pixels="symmetric".

    pixels: "standardised", less the dataset's mean and over its deviation; "unit", from 0 to 1; "symmetric", from -1 to 1.
    whole_passes: an image comes again only after all others of the task, also where that takes more than 1024 updates.
    probes_per_task: how often within a task the diagnostics are taken, evenly spaced, the last at its end.
    eval_examples: how many of the images evaluation and diagnostics read, the first; None for all.
    jacobian_examples: of how many images the Jacobian norm is taken at a task's end; 0 for not at all.
    metrics: names in nap_bench/metrics/probe.py, or previous_accuracy, recorded at every task's end as task_end/NAME; those about
        an update (OF_UPDATE there) at every measurement, as probe/NAME.
    flow: also measure every update (metrics/flow.py) and record it with the diagnostics.
    first_task: the number of the first task, which meets fresh parameters: with `num_tasks=1` the run that an aged
    network's
        task is compared with, on the very labels and batches.
    """

    name: ClassVar[str] = "random_labels"

    labels: str = later("uniform")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.labels not in LABELS:
            raise ValueError(nearest(self.labels, LABELS, f"labels of {self.name}"))

    def drawn(self, seed: int, task: int) -> Tensor:
        """What a task draws: every image's label [N], the classes' new names [K], or whose label an image gets [N]."""
        stream, (_, num_classes) = generator(seed, "labels", task), self.shapes
        if self.labels == "uniform":
            return torch.randint(num_classes, (self.num_examples,), generator=stream)
        return torch.randperm(num_classes if self.labels == "permuted" else self.num_examples, generator=stream)

    @lru_cache(maxsize=2)  # noqa: B019 (keyed by value, a frozen dataclass; two tasks at most)
    def _block_drawn(self, seeds: tuple[int, ...], task: int, device: torch.device) -> Tensor:
        return torch.stack([self.drawn(seed, task) for seed in seeds]).to(device)

    def answers(self, data: Images, seeds: tuple[int, ...], task: int, index_SB: Tensor) -> Tensor:
        drawn = self._block_drawn(seeds, task, index_SB.device)
        if self.labels == "permuted":
            return drawn.gather(1, data.labels[index_SB])
        chosen_SB = drawn.gather(1, index_SB)
        return chosen_SB if self.labels == "uniform" else data.labels[chosen_SB]
