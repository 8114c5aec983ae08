"""Image classification where nothing changes: does a method cost accuracy there? (paper 5.2, Table 1)

Shape suffixes: S seeds, B batch, N images, K classes, C channels, H height, W width, T steps.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from nap_bench.benchmarks.base import DATASETS, SupervisedBenchmark, accuracy
from nap_bench.data import imagenet
from nap_bench.data.images import sha256
from nap_bench.rng import generator
from nap_bench.spec import nearest

KNOWN = ("cifar10", "digits", "imagenet")
AUGMENTS = {"imagenet": ("none", "resized_crop_flip")}
"""Of datasets in folders; of those on the device:"""
AUGMENTS_ON_DEVICE = ("none", "crop", "crop_flip")
STEPS_PER_CHUNK = 1024
"""Batches and their augmentation are drawn for this many steps at a time."""
IMAGES_AT_ONCE = 500
"""Test images are looked at in pieces, so that memory stays small."""
BATCHES_AHEAD = 4
"""Read from folders before they are wanted."""


@dataclass(frozen=True, eq=False)
class OnDevice:
    """Training and test images as tensors [N, C, H, W] on the device."""

    inputs: Tensor
    labels: Tensor
    test_inputs: Tensor
    test_labels: Tensor

    def some(self, num: int) -> tuple[Tensor, Tensor]:
        """Training images and their labels, the first."""
        return self.inputs[:num], self.labels[:num]

    def test(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(self.test_inputs.split(IMAGES_AT_ONCE), self.test_labels.split(IMAGES_AT_ONCE), strict=True)


@dataclass(frozen=True, eq=False)
class InFolders:
    """Images that stay where they are and are read as they are wanted; labels [N] on the device."""

    train: imagenet.Files
    val: imagenet.Files
    labels: Tensor
    test_labels: Tensor
    reader: imagenet.Reader = field(default_factory=imagenet.Reader)
    test_reader: imagenet.Reader = field(default_factory=imagenet.Reader)

    def on_device(self, pixels: Tensor) -> Tensor:
        return imagenet.standardised(pixels.to(self.labels.device))

    def some(self, num: int) -> tuple[Tensor, Tensor]:
        """Training images and their labels, evenly spaced: the files stand class after class."""
        total = len(self.train.paths)
        index = [i * total // num for i in range(num)]
        pixels = [imagenet.shown_in_evaluation(self.train.paths[i]) for i in index]
        return self.on_device(torch.stack(pixels)), self.labels[index]

    def test(self) -> Iterator[tuple[Tensor, Tensor]]:
        pieces = self.test_labels.split(IMAGES_AT_ONCE)
        for index, y_N in enumerate(pieces):
            ahead = range(index + 1, min(index + 2, len(pieces)))
            yield self.on_device(self.test_reader.take(index, ahead, self._piece)), y_N

    def _piece(self, index: int) -> list[Callable[[], Tensor]]:
        some = slice(index * IMAGES_AT_ONCE, (index + 1) * IMAGES_AT_ONCE)
        return [partial(imagenet.shown_in_evaluation, path) for path in self.val.paths[some]]


@dataclass(frozen=True)
class StationaryImages(SupervisedBenchmark):
    """Learn a dataset's training images with their labels, pass after pass; its test images are never trained on.

    Every pass is a fresh permutation of all training images; a batch may end one pass and begin the next. What is recorded
    as task_end/... is recorded at every evaluation; there are no tasks, and no method is told of any.

    dataset: "cifar10" or "imagenet" with their own test (validation) sets, or "digits".
    num_evaluations, steps_per_evaluation: how often, and after how many updates each.
    held_out: how many images of "digits" are the test set; drawn once, the same for all seeds. 0 elsewhere.
    augment: of training batches, drawn for every image of every batch:
        "none"
        "crop"               padded by `padding` pixels of the mean grey and cut out at a random place ("cifar10", "digits")
        "crop_flip"          the same, and mirrored with probability 1/2
        "resized_crop_flip"  a crop of random size and shape brought to size, and mirrored or not ("imagenet")
    label_smoothing: in [0, 1): share of a label's weight spread over all classes, in training and test loss alike.
    eval_examples: accuracy, loss and diagnostics read so many training images as they are: the first, or of "imagenet", whose files
        stand class after class, evenly spaced ones.
    """

    name: ClassVar[str] = "stationary_images"

    dataset: str
    num_evaluations: int
    steps_per_evaluation: int
    batch_size: int
    held_out: int = 0
    augment: str = "none"
    padding: int = 4
    label_smoothing: float = 0.0
    eval_examples: int = 256

    def __post_init__(self) -> None:
        if self.dataset not in KNOWN:
            raise ValueError(nearest(self.dataset, KNOWN, f"dataset of {self.name}"))
        augments = AUGMENTS.get(self.dataset, AUGMENTS_ON_DEVICE)
        if self.augment not in augments:
            raise ValueError(nearest(self.augment, augments, f"augment of {self.name} on {self.dataset}"))
        sizes = (self.num_evaluations, self.steps_per_evaluation, self.batch_size, self.padding, self.eval_examples)
        if min(sizes) < 1:
            raise ValueError(f"{self.name} wants positive sizes; found {self}.")
        if (self.held_out > 0) == DATASETS[self.dataset].downloaded or self.held_out < 0:
            wanted = "0, it has a test set" if DATASETS[self.dataset].downloaded else "positive, it has no test set"
            raise ValueError(f"{self.name} wants held_out of {self.dataset} to be {wanted}; found {self.held_out}.")
        if not 0.0 <= self.label_smoothing < 1.0:
            raise ValueError(f"{self.name} wants label_smoothing in [0, 1); found {self.label_smoothing}.")

    @property
    def resources(self) -> str:
        return "image" if self.download else "small"

    @property
    def steps_per_task(self) -> int:
        return self.steps_per_evaluation

    @property
    def num_steps(self) -> int:
        return self.num_evaluations * self.steps_per_evaluation

    def demand(self, num_seeds: int) -> dict[str, int]:
        """Of "imagenet", images that are trained on."""
        return {"images": self.num_steps * self.batch_size * num_seeds} if self.dataset == "imagenet" else {}

    @property
    def shapes(self) -> tuple[tuple[int, ...], int]:
        return DATASETS[self.dataset][:2]

    @property
    def download(self) -> str | None:
        return self.dataset if DATASETS[self.dataset].downloaded else None

    def task_at(self, step: int) -> int:
        return 0

    def eval_steps(self) -> frozenset[int]:
        return frozenset(range(self.steps_per_evaluation, self.num_steps + 1, self.steps_per_evaluation))

    def identity(self, data: OnDevice | InFolders) -> dict[str, str]:
        """Of what lies on the device: images and labels; of folders: the labels, in the order of their files."""
        if isinstance(data, InFolders):
            return {f"{self.dataset}, labels": sha256(data.labels, data.test_labels)}
        return {self.dataset: sha256(data.inputs, data.labels, data.test_inputs, data.test_labels)}

    def load(self, data_dir: str | None, device: str) -> OnDevice | InFolders:
        if not DATASETS[self.dataset].fits:
            files = imagenet.files(data_dir)
            return InFolders(*files, *(torch.tensor(split.labels, device=device) for split in files))
        module = importlib.import_module(f"nap_bench.data.{self.dataset}")
        if self.held_out:
            inputs, labels = module.load(data_dir)
            if self.held_out >= len(inputs):
                raise ValueError(
                    f"{self.name} holds out {self.held_out} images; {self.dataset} has {len(inputs)} in all."
                )
            mixed = torch.randperm(len(inputs), generator=generator(0, "held_out"))
            test, train = mixed[: self.held_out].sort().values, mixed[self.held_out :].sort().values
            splits = [(inputs[some], labels[some]) for some in (train, test)]
        else:
            splits = module.load_splits(data_dir)
        on_device = [
            part.to(device) for inputs, labels in splits for part in (inputs.view(-1, *self.shapes[0]), labels)
        ]
        return OnDevice(*on_device)

    @lru_cache(maxsize=4)  # noqa: B019 (keyed by value, a frozen dataclass; few chunks at most)
    def _order(self, num_images: int, seeds: tuple[int, ...], chunk: int, device: torch.device) -> Tensor:
        """[T, S, B]: which images the steps of a chunk are about."""
        first = chunk * STEPS_PER_CHUNK * self.batch_size
        stop = first + STEPS_PER_CHUNK * self.batch_size
        passes = range(first // num_images, -(-stop // num_images))
        start = first - passes[0] * num_images
        orders = []
        for seed in seeds:
            drawn = [torch.randperm(num_images, generator=generator(seed, "order", number)) for number in passes]
            orders.append(torch.cat(drawn)[start : start + stop - first].view(-1, self.batch_size))
        return torch.stack(orders, dim=1).to(device)

    @lru_cache(maxsize=2)  # noqa: B019 (as above)
    def _places(self, seeds: tuple[int, ...], chunk: int, device: torch.device) -> Tensor:
        """[T, 3, S x B]: how far down and across each image is cut out, and whether it is mirrored."""
        shape, drawn = (STEPS_PER_CHUNK, self.batch_size), []
        for seed in seeds:
            stream = generator(seed, "augment", chunk)
            places = torch.randint(2 * self.padding + 1, (2, *shape), generator=stream)
            flips = torch.randint(2, (1, *shape), generator=stream) * (self.augment == "crop_flip")
            drawn.append(torch.cat([places, flips]))
        return torch.cat(drawn, dim=2).transpose(0, 1).contiguous().to(device)

    def batch(self, data: OnDevice | InFolders, seeds: tuple[int, ...], step: int) -> tuple[Tensor, Tensor]:
        chunk, row = divmod(step, STEPS_PER_CHUNK)
        index_SB = self._order(len(data.labels), seeds, chunk, data.labels.device)[row]
        if isinstance(data, InFolders):
            wanted, *ahead = [(self, seeds, at) for at in range(step, min(step + 1 + BATCHES_AHEAD, self.num_steps))]
            inputs = data.on_device(data.reader.take(wanted, ahead, partial(self._to_read, data)))
        else:
            inputs = data.inputs.index_select(0, index_SB.flatten())
            if self.augment != "none":
                inputs = cut_out(inputs, *self._places(seeds, chunk, inputs.device)[row], padding=self.padding)
        return inputs.unflatten(0, index_SB.shape), data.labels[index_SB]

    def _to_read(self, data: InFolders, batch: tuple) -> Iterator[Callable[[], Tensor]]:
        """One function per image of a batch (benchmark, seeds, step), seed after seed."""
        _, seeds, step = batch
        chunk, row = divmod(step, STEPS_PER_CHUNK)
        index_SB = self._order(len(data.labels), seeds, chunk, torch.device("cpu"))[row]
        for seed, index_B in zip(seeds, index_SB.tolist(), strict=True):
            paths = [data.train.paths[index] for index in index_B]
            if self.augment == "none":
                yield from (partial(imagenet.shown_in_evaluation, path) for path in paths)
                continue
            stream = generator(seed, "augment", step)
            crops = torch.rand(len(paths), imagenet.ATTEMPTS, 4, generator=stream).tolist()
            flips = torch.randint(2, (len(paths),), generator=stream).tolist()
            for path, draws, flip in zip(paths, crops, flips, strict=True):
                yield partial(imagenet.shown_in_training, path, draws, bool(flip))

    def losses(self, out_SBK: Tensor, y_SB: Tensor) -> Tensor:
        """Cross-entropy [S, B] with the smoothed label."""
        losses = F.cross_entropy(
            out_SBK.flatten(0, 1), y_SB.flatten(), reduction="none", label_smoothing=self.label_smoothing
        )
        return losses.view(y_SB.shape)

    def loss(self, out_SBK: Tensor, y_SB: Tensor) -> Tensor:
        return self.losses(out_SBK, y_SB).mean(dim=1)

    @torch.no_grad()
    def evaluate(self, state, data: OnDevice | InFolders) -> dict[str, Tensor]:
        """accuracy, loss and acts on `eval_examples` training images; test_accuracy and test_loss [S] on all test images."""

        def of_all_seeds(tensor: Tensor) -> Tensor:
            return tensor.expand(len(state.seeds), *tensor.shape)

        acts: dict[str, Tensor] = {}
        inputs, y_N = data.some(self.eval_examples)
        out_SNK, y_SN = state.forward(of_all_seeds(inputs), acts), of_all_seeds(y_N)
        found = {"accuracy": accuracy(out_SNK, y_SN), "loss": self.loss(out_SNK, y_SN), "acts": acts}
        correct_S, loss_S = torch.zeros(2, len(state.seeds), device=y_SN.device)
        for inputs, y_N in data.test():
            out_SNK, y_SN = state.forward(of_all_seeds(inputs)), of_all_seeds(y_N)
            correct_S += (out_SNK.argmax(dim=-1) == y_SN).sum(dim=1)
            loss_S += self.losses(out_SNK, y_SN).sum(dim=1)
        num_tested = len(data.test_labels)
        return found | {"test_accuracy": correct_S / num_tested, "test_loss": loss_S / num_tested}


def cut_out(inputs_NCHW: Tensor, down_N: Tensor, across_N: Tensor, flip_N: Tensor, *, padding: int) -> Tensor:
    """Images of the same size, cut out of images padded with zeros, which is the mean once standardised.

    down, across: in [0, 2 padding], where the cut begins; padding leaves an image as it is.  flip: 1 to mirror what was cut out.
    """
    height, width = inputs_NCHW.shape[2:]
    padded = F.pad(inputs_NCHW, (padding,) * 4)
    rows_NH = down_N.unsqueeze(1) + torch.arange(height, device=down_N.device)
    columns_W = torch.arange(width, device=down_N.device)
    mirrored_NW = torch.where(flip_N.unsqueeze(1) == 1, width - 1 - columns_W, columns_W)
    columns_NW = across_N.unsqueeze(1) + mirrored_NW
    places = rows_NH.unsqueeze(2) * padded.shape[3] + columns_NW.unsqueeze(1)
    places = places.flatten(1).unsqueeze(1).expand(-1, inputs_NCHW.shape[1], -1)
    return padded.flatten(2).gather(2, places).view_as(inputs_NCHW)
