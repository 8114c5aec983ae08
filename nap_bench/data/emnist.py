"""EMNIST, balanced split (Cohen et al. 2017): 112800 training and 18800 test images of 28 x 28 pixels, 47 classes."""

from __future__ import annotations

import gzip
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nap_bench.data.download import Content, fetch, say_line
from nap_bench.data.images import LabelledImages, standardise
from nap_bench.data.published import Published

if TYPE_CHECKING:
    from torch import Tensor

ARCHIVE = "gzip.zip"
ARCHIVE_CONTENT = Content(None, "58c8d27c78d21e728a6bc7b3cc06412e")
"""The archive of all six splits, the only file with a published checksum (torchvision's; a test compares it)."""

IMAGES = "gzip/emnist-balanced-train-images-idx3-ubyte.gz"
LABELS = "gzip/emnist-balanced-train-labels-idx1-ubyte.gz"

MIRRORS = ("https://biometrics.nist.gov/cs_links/EMNIST/",)

FOLDERS = ("EMNIST/raw", "emnist", ".")
"""Where under data_dir the archive is looked for; the first is torchvision's, and where `download` puts it."""


def load(data_dir: str | Path | None) -> LabelledImages:
    """The training set: inputs [112800, 784] float32, standardised over all pixels; labels [112800] int64.

    Read from the archive itself, without unpacking it. Images lie as published and as torchvision gives them: rows are columns.
    Raises ValueError as `verify` does.
    """
    (archive,) = verify(data_dir).values()
    with zipfile.ZipFile(archive) as packed:
        images, labels = (_idx(gzip.decompress(packed.read(name)), name) for name in (IMAGES, LABELS))
    return LabelledImages(standardise(images.flatten(1)), labels.long())


def _idx(data: bytes, name: str) -> Tensor:
    """The uint8 array of an idx file: two zero bytes, 8 for uint8, the number of axes, each axis's length, the numbers."""
    import torch

    num_axes = data[3]
    shape = [int.from_bytes(data[4 + 4 * axis : 8 + 4 * axis], "big") for axis in range(num_axes)]
    if data[:3] != b"\0\0\x08":
        raise ValueError(f"{name} of {ARCHIVE} is no idx file of bytes: it begins with {data[:4]!r}.")
    return torch.frombuffer(bytearray(data[4 + 4 * num_axes :]), dtype=torch.uint8).view(shape)


def verify(data_dir: str | Path | None) -> dict[str, Path]:
    """Name -> file of the archive under data_dir, its checksum as published. Standard library only, 1 s.

    Raises ValueError if it is missing or wrong.
    """
    return _published().verify(data_dir)


def download(
    data_dir: str | Path, *, mirrors: Sequence[str] = MIRRORS, say: Callable[[str], object] = say_line
) -> dict[str, Path]:
    """Unless it is there and good: fetch the archive (560 MB) to data_dir/EMNIST/raw; check and return it as `verify` does.

    say: receives lines of progress; prints them by default. The file appears whole or not at all. Raises ValueError, in one line,
    without a network.
    """
    published, root = _published(), Path(data_dir)
    if published.problem(root, ARCHIVE) is None:
        say(f"{published.find(root, ARCHIVE)[0]}: already there, checksum as published")
    else:
        fetch(root / FOLDERS[0] / ARCHIVE, [f"{mirror}{ARCHIVE}" for mirror in mirrors], ARCHIVE_CONTENT, say)
    return verify(root)


def _published() -> Published:
    return Published("EMNIST", "emnist", FOLDERS, {ARCHIVE: {ARCHIVE: ARCHIVE_CONTENT}})
