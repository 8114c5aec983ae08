"""What every benchmark offers, and what streams of images share. A benchmark makes data; it does not train.

Shape suffixes: S seeds, B batch, N images on the device, E images that evaluation reads, K classes.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from nap_bench.data.images import sha256
from nap_bench.metrics.plasticity import jacobian_norm
from nap_bench.metrics.probe import METRICS, OF_UPDATE, Probe, measure
from nap_bench.rng import generator
from nap_bench.spec import Component, later, nearest


class Data(Protocol):
    """A dataset on the device, whole."""

    inputs: Tensor


class Benchmark(Component):
    """What the plan asks of every benchmark.

    loop: key of `jobs.LOOPS`.  resources: class of the workflow's rule.  download: the dataset in nap_bench.data that has to be on
    disk, None if what is needed comes with a dependency.
    """

    loop: ClassVar[str]
    resources: ClassVar[str] = "small"
    download: str | None = None

    def demand(self, num_seeds: int) -> dict[str, int]:
        """`frames` and `disk_bytes`, or `images`: what a run takes, where people should know before it starts; else nothing."""
        return {}


class SupervisedBenchmark(Benchmark):
    """A stream of tasks.

    Data are a pure function of (seed, step): resuming, blocks of seeds and paired comparison need nothing else.
    """

    loop: ClassVar[str] = "supervised"
    has_classes: ClassVar[bool] = True
    """Whether a target is one of the outputs: a stream of numbers has a loss and no accuracy."""
    micro_batches: int = 1
    """Pieces of equal size in which a batch is looked at, one after another; their gradients are added up."""
    steps_per_task: int
    flow: bool = False
    """Whether every update is measured for the gradient-flow check (metrics/flow.py): costs a copy of the parameters."""
    metrics: tuple[str, ...] = ()
    """What is recorded besides (metrics/probe.py)."""

    @property
    def num_steps(self) -> int:
        """Updates of a whole run."""
        raise NotImplementedError

    @property
    def shapes(self) -> tuple[tuple[int, ...], int]:
        """Shape of one input, number of outputs."""
        raise NotImplementedError

    def task_at(self, step: int) -> int:
        """The task that the update number `step` (from 0) belongs to."""
        raise NotImplementedError

    def load(self, data_dir: str | None, device: str) -> Data:
        raise NotImplementedError

    def batch(self, data: Data, seeds: tuple[int, ...], step: int) -> tuple[Tensor, Tensor]:
        """(inputs [S, B, ...], targets [S, B], or [S, B, T] where every token has one) of update number `step`; pure."""
        raise NotImplementedError

    def pieces(self, inputs: Tensor, y_SB: Tensor) -> list[tuple[Tensor, Tensor]]:
        """A batch as its micro-batches."""
        if self.micro_batches == 1:
            return [(inputs, y_SB)]
        return list(zip(inputs.chunk(self.micro_batches, dim=1), y_SB.chunk(self.micro_batches, dim=1), strict=True))

    def identity(self, data: Data) -> dict[str, str]:
        """Hashes of data that another machine may have otherwise, for the run's environment."""
        return {}

    def loss(self, out_SBK: Tensor, y_SB: Tensor) -> Tensor:
        """[S], without regularisation."""
        raise NotImplementedError

    def accuracy(self, out_SBK: Tensor, y_SB: Tensor) -> Tensor:
        """[S]: share of the targets that the largest output hits."""
        return accuracy(out_SBK, y_SB)

    def evaluate(self, state, data: Data) -> dict[str, Tensor]:
        """accuracy, loss and whatever else -> [S], and acts: layer -> post-activations, which the diagnostics read.

        Reads the state and leaves it, and every generator, as they were.
        """
        raise NotImplementedError

    def eval_steps(self) -> frozenset[int]:
        """Numbers of updates done at which `evaluate` is called."""
        raise NotImplementedError


class Dataset(NamedTuple):
    shape: tuple[int, ...]  # of one image
    num_classes: int
    downloaded: bool  # or embedded in a dependency
    fits: bool = True  # as one tensor on a device, from files of which each has a published checksum


DATASETS = {
    "c4": Dataset((512,), 32000, True, fits=False),
    "cifar10": Dataset((3, 32, 32), 10, True),
    "cifar100": Dataset((3, 32, 32), 100, True),
    "digits": Dataset((1, 8, 8), 10, False),
    "emnist": Dataset((1, 28, 28), 47, True),
    "imagenet": Dataset((3, 224, 224), 1000, True, fits=False),
    "mnist": Dataset((1, 28, 28), 10, True),
    "patches": Dataset((3, 8, 8), 10, False),
}
"""By the name of their module in nap_bench.data."""

STEPS_PER_CHUNK = 1024
"""Batch indices are drawn for this many steps at a time; each chunk starts a new pass over the task's images."""

PIXELS = {"standardised": None, "symmetric": (-1.0, 1.0), "unit": (0.0, 1.0)}
"""How pixels are given to a network: less the dataset's mean, over its deviation; or its darkest to its lightest onto these."""

IMAGES_AT_ONCE = 1000
"""Held-out images are looked at in pieces, so that memory stays small."""

PREVIOUS = "previous_accuracy"
"""The one metric that needs other examples than the task's own: accuracy on what evaluation read in the task before."""


@dataclass(frozen=True, eq=False)  # equal only to itself: what is drawn for it is cached by it
class Images:
    inputs: Tensor  # [N, C, H, W] float32, on the device
    labels: Tensor  # [N] int64, the true ones


@dataclass(frozen=True)
class ImageStream(SupervisedBenchmark):
    """`num_tasks` tasks, one after another, of `steps_per_task` updates each, made of one dataset of images.

    Batches are drawn without replacement, pass after pass over a fresh permutation of the task's images. A stream says
    what a task is by up to three functions of (seed, task): which images it is made of (`images`), how they look
    (`shown`) and what they are answered with (`answers`). Nothing tells the learner of a switch.
    """

    own_images: ClassVar[bool] = False
    """Whether `images` depends on the seed or the task. Where it does not, evaluation copies nothing."""

    dataset: str
    num_examples: int
    num_tasks: int
    steps_per_task: int
    batch_size: int
    probes_per_task: int = 1
    jacobian_examples: int = later(0)
    flow: bool = later(False)
    first_task: int = later(0)
    eval_examples: int | None = later(None)
    metrics: tuple[str, ...] = later(())
    pixels: str = later("standardised")
    """A key of PIXELS."""
    whole_passes: bool = later(False)
    """Whether an image comes again only after all others of a task, however long that takes; else a new pass begins every
    STEPS_PER_CHUNK updates, which cuts off only passes that are longer (a batch of one)."""

    def __post_init__(self) -> None:
        known = [name for name, dataset in DATASETS.items() if dataset.fits]
        if self.dataset not in known:
            raise ValueError(nearest(self.dataset, known, f"dataset of {self.name}"))
        if (
            not 0 < self.probes_per_task <= self.steps_per_task
            or min(self.num_examples, self.batch_size, self.num_tasks) < 1
        ):
            raise ValueError(f"{self.name} wants positive sizes, at most one probe per step; found {self}.")
        if self.first_task < 0:
            raise ValueError(f"{self.name} wants first_task >= 0; found {self.first_task}.")
        if self.eval_examples is not None and not 0 < self.eval_examples <= self.num_examples:
            raise ValueError(
                f"{self.name} wants eval_examples from 1 to num_examples = {self.num_examples}; "
                f"found {self.eval_examples}."
            )
        if self.pixels not in PIXELS:
            raise ValueError(nearest(self.pixels, PIXELS, f"pixels of {self.name}"))
        if self.whole_passes and self.num_examples % self.batch_size:
            raise ValueError(
                f"{self.name} wants a batch_size that divides num_examples = {self.num_examples} for whole_passes; found "
                f"{self.batch_size}."
            )
        for metric in self.metrics:
            if metric not in (known := (*METRICS, *OF_UPDATE, PREVIOUS)):
                raise ValueError(nearest(metric, known, f"metric of {self.name}"))

    @property
    def num_steps(self) -> int:
        return self.num_tasks * self.steps_per_task

    @property
    def shapes(self) -> tuple[tuple[int, ...], int]:
        return DATASETS[self.dataset][:2]

    @property
    def download(self) -> str | None:
        return self.dataset if DATASETS[self.dataset].downloaded else None

    @property
    def num_loaded(self) -> int | None:
        """How many images are put on the device, the first of the dataset; None for all."""
        return self.num_examples

    def task_at(self, step: int) -> int:
        return self.first_task + step // self.steps_per_task

    def identity(self, data: Images) -> dict[str, str]:
        return {self.dataset: sha256(data.inputs, data.labels)}

    def load(self, data_dir: str | None, device: str) -> Images:
        inputs, labels = importlib.import_module(f"nap_bench.data.{self.dataset}").load(data_dir)
        wanted = self.num_loaded or self.num_examples
        if wanted > len(inputs):
            raise ValueError(f"{self.name} wants {wanted} images; {self.dataset} has {len(inputs)}.")
        some = slice(self.num_loaded)
        if (ends := PIXELS[self.pixels]) is not None:
            darkest, lightest = inputs.aminmax()
            inputs = (inputs - darkest) / (lightest - darkest) * (ends[1] - ends[0]) + ends[0]
        return Images(inputs[some].view(-1, *self.shapes[0]).to(device), labels[some].to(device))

    def images(self, data: Images, seed: int, task: int) -> Tensor:
        """Indices, on the CPU, of the images that a task is made of: all of the first `num_examples`."""
        return torch.arange(self.num_examples)

    def shown(self, inputs: Tensor, seeds: tuple[int, ...], task: int) -> Tensor:
        """Images [S, B, C, H, W] as a task shows them: as they are."""
        return inputs

    def answers(self, data: Images, seeds: tuple[int, ...], task: int, index_SB: Tensor) -> Tensor:
        """[S, B] int64: what each seed's network is to answer for these images during a task; their true labels."""
        return data.labels[index_SB]

    def probe(self, data: Images, seeds: tuple[int, ...], task: int) -> tuple[Tensor, Tensor]:
        """(inputs [S, E, C, H, W], targets [S, E]) of what evaluation reads: the first `eval_examples` images."""
        if self.own_images:
            index_SE = torch.stack([self.images(data, seed, task)[: self.eval_examples] for seed in seeds])
            return self._pairs(data, seeds, task, index_SE.to(data.inputs.device))
        inputs = data.inputs[: self.eval_examples]
        index_SE = torch.arange(len(inputs), device=inputs.device).expand(len(seeds), -1)
        inputs = self.shown(inputs.expand(len(seeds), *inputs.shape), seeds, task)
        return inputs, self.answers(data, seeds, task, index_SE)

    @property
    def steps_per_chunk(self) -> int:
        """Batches are drawn for this many updates of a task at a time."""
        if not self.whole_passes:
            return STEPS_PER_CHUNK
        steps_per_pass = self.num_examples // self.batch_size
        return steps_per_pass * max(1, STEPS_PER_CHUNK // steps_per_pass)

    def order(self, data: Images, seed: int, task: int, chunk: int) -> Tensor:
        """[steps, B] indices of images: permutations of all of the task's, one after another."""
        images, stream = self.images(data, seed, task), generator(seed, "order", task, chunk)
        wanted = min(self.steps_per_chunk, self.steps_per_task) * self.batch_size
        passes = -(-wanted // len(images))
        if self.whole_passes:  # faster where a pass is long
            places = torch.cat([torch.randperm(len(images), generator=stream) for _ in range(passes)])
        else:
            places = torch.rand(passes, len(images), generator=stream).argsort(dim=1).flatten()
        return images[places[:wanted]].view(-1, self.batch_size)

    @lru_cache(maxsize=2)  # noqa: B019 (keyed by value, a frozen dataclass; two chunks at most)
    def _block_order(self, data: Images, seeds: tuple[int, ...], task: int, chunk: int) -> Tensor:
        orders = [self.order(data, seed, task, chunk) for seed in seeds]
        return torch.stack(orders, dim=1).to(data.inputs.device)

    def _pairs(self, data: Images, seeds: tuple[int, ...], task: int, index_SB: Tensor) -> tuple[Tensor, Tensor]:
        inputs = data.inputs.index_select(0, index_SB.flatten()).unflatten(0, index_SB.shape)
        return self.shown(inputs, seeds, task), self.answers(data, seeds, task, index_SB)

    def batch(self, data: Images, seeds: tuple[int, ...], step: int) -> tuple[Tensor, Tensor]:
        chunk, row = divmod(step % self.steps_per_task, self.steps_per_chunk)
        task = self.task_at(step)
        return self._pairs(data, seeds, task, self._block_order(data, seeds, task, chunk)[row])

    def losses(self, out_SBK: Tensor, y_SB: Tensor) -> Tensor:
        return losses(out_SBK, y_SB)

    def loss(self, out_SBK: Tensor, y_SB: Tensor) -> Tensor:
        return self.losses(out_SBK, y_SB).mean(dim=1)

    def eval_steps(self) -> frozenset[int]:
        k, probes = self.steps_per_task, self.probes_per_task
        within = [k * (i + 1) // probes for i in range(probes)]
        return frozenset(task * k + step for task in range(self.num_tasks) for step in within)

    @torch.no_grad()
    def evaluate(self, state, data: Images) -> dict[str, Tensor]:
        """Accuracy and loss [S] on `probe` of the task of the last update done, and post-activations `acts`.

        At a task's end also jacobian_norm [S], if it is asked for, and each of `metrics` but those of an update.
        """
        task = self.task_at(state.step - 1)
        inputs, y_SE = self.probe(data, state.seeds, task)
        acts: dict[str, Tensor] = {}
        out_SEK = state.forward(inputs, acts)
        found = {"accuracy": accuracy(out_SEK, y_SE), "loss": self.loss(out_SEK, y_SE), "acts": acts}
        if state.step % self.steps_per_task:
            return found
        if self.jacobian_examples:
            with torch.enable_grad():
                found["jacobian_norm"] = jacobian_norm(state.forward, inputs[:, : self.jacobian_examples])
        names = [name for name in self.metrics if name in METRICS]
        found |= measure(names, Probe(state, inputs, y_SE, out_SEK, acts, self.losses))
        if PREVIOUS in self.metrics:
            inputs, y_SE = self.probe(data, state.seeds, max(task - 1, 0))
            found[PREVIOUS] = accuracy(state.forward(inputs), y_SE)
        return found


def outputs(state, inputs: Tensor) -> Tensor:
    """[S, N, K] of every seed's network on the same images [N, C, H, W]."""
    parts = (part.expand(len(state.seeds), *part.shape) for part in inputs.split(IMAGES_AT_ONCE))
    return torch.cat([state.forward(part) for part in parts], dim=1)


def losses(out_SBK: Tensor, y_SB: Tensor) -> Tensor:
    """Cross-entropy over all outputs, of the targets' shape: [S, B] or [S, B, T]."""
    return F.cross_entropy(out_SBK.flatten(0, -2), y_SB.flatten(), reduction="none").view(y_SB.shape)


def accuracy(out_SBK: Tensor, y_SB: Tensor) -> Tensor:
    """[S]: over examples, or over examples and tokens."""
    return (out_SBK.argmax(dim=-1) == y_SB).float().flatten(1).mean(dim=1)
