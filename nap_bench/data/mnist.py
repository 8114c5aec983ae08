"""MNIST (LeCun, Cortes & Burges 1998): 60000 training and 10000 test images of 28 x 28 pixels, 10 classes."""

from __future__ import annotations

import gzip
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from nap_bench.data.download import Content, fetch, say_line
from nap_bench.data.images import LabelledImages, standardise
from nap_bench.data.published import Published
from nap_bench.data.torchvision_import import import_torchvision

COMPRESSED = {
    "train-images-idx3-ubyte": Content(9912422, "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
    "train-labels-idx1-ubyte": Content(28881, "d53e105ee54ea40749a09fcbcd1e9432"),
    "t10k-images-idx3-ubyte": Content(1648877, "9fb629c4189551a2d022fa330f9573f3"),
    "t10k-labels-idx1-ubyte": Content(4542, "ec29112dd5afa0611ce80d1b7f02629c"),
}
"""Of NAME.gz. The checksums are torchvision's own (a test compares them); the sizes are of the files that have them."""

UNPACKED = {
    "train-images-idx3-ubyte": Content(47040016, "6bbc9ace898e44ae57da46a324031adb"),
    "train-labels-idx1-ubyte": Content(60008, "a25bea736e30d166cdddb491f175f624"),
    "t10k-images-idx3-ubyte": Content(7840016, "2646ac647ad5339dbf082846283269ea"),
    "t10k-labels-idx1-ubyte": Content(10008, "27ae3e4e09519cfbb04c329615203637"),
}
"""Of NAME, unpacked from the files above."""

MIRRORS = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/")

FOLDERS = ("MNIST/raw", "raw", "mnist", ".")
"""Where under data_dir the files are looked for; the first is torchvision's, and where `download` puts them."""


def load(data_dir: str | Path | None) -> LabelledImages:
    """The training set: inputs [60000, 784] float32, standardised over all pixels; labels [60000] int64.

    Through torchvision's dataset class, which is shown nothing but verified files. Raises ValueError as `verify` does.
    """
    files = verify(data_dir)
    with tempfile.TemporaryDirectory(prefix="mnist-") as root:
        raw = Path(root, "MNIST", "raw")
        raw.mkdir(parents=True)
        for name, path in files.items():
            if path.suffix == ".gz":
                with gzip.open(path) as packed, (raw / name).open("wb") as unpacked:
                    shutil.copyfileobj(packed, unpacked)
            else:
                (raw / name).symlink_to(path.resolve())
        dataset = import_torchvision().datasets.MNIST(root)
    return LabelledImages(standardise(dataset.data.flatten(1)), dataset.targets)


def verify(data_dir: str | Path | None) -> dict[str, Path]:
    """Name -> file, packed or not, of all four files under data_dir, their sizes and checksums as published.

    A packed file is preferred to an unpacked one. Raises ValueError naming every file that is missing or wrong.
    Standard library only, 0.1 s.
    """
    return _published().verify(data_dir)


def download(
    data_dir: str | Path, *, mirrors: Sequence[str] = MIRRORS, say: Callable[[str], object] = say_line
) -> dict[str, Path]:
    """Fetch what is missing or wrong (at most 11.6 MB) to data_dir/MNIST/raw; check and return files as `verify` does.

    say: receives lines of progress; prints them by default. Files appear whole or not at all; good ones stay untouched.
    Raises ValueError, in one line, without a network.
    """
    published, root = _published(), Path(data_dir)
    for name, content in COMPRESSED.items():
        if published.problem(root, name) is None:
            say(f"{published.find(root, name)[0]}: already there, checksum as published")
        else:
            fetch(root / FOLDERS[0] / f"{name}.gz", [f"{mirror}{name}.gz" for mirror in mirrors], content, say)
    return verify(root)


def _published() -> Published:
    files = {name: {f"{name}.gz": COMPRESSED[name], name: UNPACKED[name]} for name in COMPRESSED}
    return Published("MNIST", "mnist", FOLDERS, files)
