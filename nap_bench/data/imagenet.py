"""ImageNet-1k (ILSVRC 2012; Russakovsky et al. 2015): 1.28 million training and 50000 validation images of 1000 classes.

Read from folders while training: the one dataset that does not fit on a device. Its licence lets nobody else hand it out, so
there is no download.

    data_dir/imagenet/train/n01440764/n01440764_10026.JPEG    one folder per class, as the training archive unpacks
    data_dir/imagenet/val/n01440764/ILSVRC2012_val_00000293.JPEG    the validation images, sorted into the same folders

Shape suffixes: B images, C channels, H height, W width.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from nap_bench.data.download import say_line
from nap_bench.data.torchvision_import import import_torchvision

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

NUM_CLASSES = 1000
SIDE = 224
"""Of an image as a network sees it, the customary one, as are the next five."""
SHORTER_SIDE = 256
"""Of a validation image before its middle is cut out."""
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the training set's channels, pixels in [0, 1]."""
AREA, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
"""Share of an image's area, and width over height, that a crop is drawn from (Szegedy et al. 2015)."""
ATTEMPTS = 10
"""Crops drawn until one fits into the image; after them its middle is taken."""
SUFFIXES = (".jpeg", ".jpg", ".png")
FOLDERS = ("imagenet", "ILSVRC2012", ".")
"""Where under data_dir `train` and `val` are looked for."""
SPLITS = ("train", "val")
ADVICE = (
    "ImageNet's licence wants everybody to fetch it from image-net.org: unpack it to DATA_DIR/imagenet/train/CLASS/*.JPEG "
    "and sort the validation images into DATA_DIR/imagenet/val/CLASS, or name another data_dir."
)


class Files(NamedTuple):
    """The images of a split, class after class, each in the order of its files' names."""

    paths: list[str]
    labels: list[int]


def verify(data_dir: str | Path | None) -> dict[str, Path]:
    """Split -> its folder: both there, with the same 1000 class folders, none of them empty. Images are not opened.

    Raises ValueError naming what is missing, where it was looked for and what to do. Standard library only.
    """
    folders = _folders(data_dir)
    names = {split: _classes(folder) for split, folder in folders.items()}
    if names["train"] != names["val"]:
        differing = sorted(set(names["train"]) ^ set(names["val"]))
        raise ValueError(
            f"ImageNet: {folders['train']} and {folders['val']} have different classes: {len(differing)} are in one of the two "
            f"only, {differing[0]!r} among them. {ADVICE}"
        )
    for folder in folders.values():
        for name in names["train"]:
            if not any(_is_image(entry.name) for entry in os.scandir(folder / name)):
                raise ValueError(f"ImageNet: {folder / name} has no images ({', '.join(SUFFIXES)}). {ADVICE}")
    return folders


def download(data_dir: str | Path, *, say: Callable[[str], object] = say_line) -> dict[str, Path]:
    """What `verify` returns: there is nowhere to download from. Raises ValueError as it does."""
    folders = verify(data_dir)
    say(f"{folders['train'].parent}: train and val are there, {NUM_CLASSES} classes each")
    return folders


def load(data_dir: str | Path | None):
    """Not as one tensor: raises ValueError."""
    raise ValueError(
        "ImageNet does not fit on a device: only the benchmark stationary_images reads it, while it trains."
    )


def files(data_dir: str | Path | None) -> tuple[Files, Files]:
    """The images of training and validation; labels count the class folders in alphabetical order. Raises as `verify`."""
    found = []
    for folder in verify(data_dir).values():
        paths, labels = [], []
        for label, name in enumerate(_classes(folder)):
            inside = sorted(entry.path for entry in os.scandir(folder / name) if _is_image(entry.name))
            paths += inside
            labels += [label] * len(inside)
        found.append(Files(paths, labels))
    return found[0], found[1]


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _folders(data_dir: str | Path | None) -> dict[str, Path]:
    if data_dir is None:
        raise ValueError(f"ImageNet wants a data_dir: set it in the config. {ADVICE}")
    for root in (Path(data_dir, folder) for folder in FOLDERS):
        if all((root / split).is_dir() for split in SPLITS):
            return {split: root / split for split in SPLITS}
    places = ", ".join(str(Path(data_dir, folder)) for folder in FOLDERS)
    raise ValueError(f"ImageNet: wanted the folders train and val in one of {places}. {ADVICE}")


def _classes(folder: Path) -> list[str]:
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    if len(names) != NUM_CLASSES:
        raise ValueError(f"ImageNet: wanted {NUM_CLASSES} class folders in {folder}; found {len(names)}. {ADVICE}")
    return names


def _opened(path: str) -> Image:
    """RGB, whatever the file holds. Raises ValueError naming a file that is no image, or a damaged one."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(
            f"Cannot read the image {path}: {error}. Take it from the archive again, or remove it from the folder."
        ) from error


def crop(width: int, height: int, draws: Iterable[Sequence[float]]) -> tuple[int, int, int, int]:
    """(top, left, height, width) of the part of an image that is shown: the first drawn crop that fits, or the middle.

    draws [ATTEMPTS, 4]: uniform numbers in [0, 1) for area, log of the ratio, place down and across. As torchvision's
    RandomResizedCrop does, whose own draws come from a global generator.
    """
    for area, ratio, down, across in draws:
        size = width * height * (AREA[0] + area * (AREA[1] - AREA[0]))
        shape = math.exp(math.log(RATIO[0]) + ratio * (math.log(RATIO[1]) - math.log(RATIO[0])))
        wide, high = round(math.sqrt(size * shape)), round(math.sqrt(size / shape))
        if 0 < wide <= width and 0 < high <= height:
            return int(down * (height - high + 1)), int(across * (width - wide + 1)), high, wide
    wide, high = width, height
    if width / height < RATIO[0]:
        high = round(width / RATIO[0])
    elif width / height > RATIO[1]:
        wide = round(height * RATIO[1])
    return (height - high) // 2, (width - wide) // 2, high, wide


def shown_in_training(path: str, draws: Iterable[Sequence[float]], flip: bool) -> Tensor:
    """[3, SIDE, SIDE] uint8: a crop of random size, shape and place, mirrored or not. draws: as in `crop`."""
    functional = import_torchvision().transforms.functional
    image = _opened(path)
    cut = functional.resized_crop(image, *crop(*image.size, draws), [SIDE, SIDE])
    return functional.pil_to_tensor(functional.hflip(cut) if flip else cut)


def shown_in_evaluation(path: str) -> Tensor:
    """[3, SIDE, SIDE] uint8: the middle of the image, its shorter side brought to SHORTER_SIDE."""
    functional = import_torchvision().transforms.functional
    resized = functional.resize(_opened(path), SHORTER_SIDE)
    return functional.pil_to_tensor(functional.center_crop(resized, [SIDE, SIDE]))


def standardised(pixels: Tensor) -> Tensor:
    """uint8 [..., C, H, W] -> float32: minus MEAN, over DEVIATION, channel by channel, on the pixels' own device."""
    import torch

    mean, deviation = (torch.tensor(v, device=pixels.device).view(-1, 1, 1) * 255 for v in (MEAN, DEVIATION))
    return (pixels - mean) / deviation


class Reader:
    """Images read by threads of this process, some batches ahead of their use. What comes out depends on what is asked alone.

    A thread per core that this process may use: reading and decoding happen outside Python's lock.
    """

    def __init__(self) -> None:
        import_torchvision()  # before the threads, which would import it all at once
        self.pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))
        self.begun: dict[Hashable, list[Future]] = {}

    def take(
        self, key: Hashable, ahead: Sequence[Hashable], jobs: Callable[[Hashable], Iterable[Callable[[], Tensor]]]
    ) -> Tensor:
        """The images of batch `key`, [B, ...]; those of `ahead` are begun, and what was begun besides is given up.

        jobs: key -> one function per image. A key says everything that they depend on. Raises what they raise.
        """
        import torch

        for wanted in (key, *ahead):
            if wanted not in self.begun:
                self.begun[wanted] = [self.pool.submit(job) for job in jobs(wanted)]
        images = torch.stack([future.result() for future in self.begun.pop(key)])
        for given_up in self.begun.keys() - set(ahead):
            for future in self.begun.pop(given_up):
                future.cancel()
        return images
