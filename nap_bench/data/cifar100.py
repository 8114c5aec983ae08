"""CIFAR-100 (Krizhevsky 2009): 50000 training and 10000 test images of 3 x 32 x 32 pixels, 100 classes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from nap_bench.data.cifar10 import MIRRORS, unpack
from nap_bench.data.download import Content, fetch, say_line
from nap_bench.data.images import LabelledImages, standardise
from nap_bench.data.published import Published
from nap_bench.data.torchvision_import import import_torchvision

ARCHIVE = "cifar-100-python.tar.gz"
ARCHIVE_CONTENT = Content(None, "eb9058c3a382ffc7106e4002c42a8d85")

FILES = {
    "train": Content(None, "16019d7e3df5f24257cddd939b257f8d"),
    "test": Content(None, "f0ef6b0ae62326f3e7ffdfab6717acfc"),
    "meta": Content(None, "7973b15100ade9c7d40fb424638fde48"),
}
"""Of the archive's members. All checksums are torchvision's own (a test compares them), which publishes no sizes."""

FOLDERS = ("cifar-100-python", ".")
"""Where under data_dir the files are looked for; the first is torchvision's, and where `download` unpacks them."""


def load(data_dir: str | Path | None) -> LabelledImages:
    """The training set: inputs [50000, 3, 32, 32] float32, standardised over all pixels; fine labels [50000] int64.

    Through torchvision's dataset class, which is shown nothing but verified files: they are pickles, and a pickle can run code.
    Raises ValueError as `verify` does.
    """
    import torch

    files = verify(data_dir)
    with tempfile.TemporaryDirectory(prefix="cifar100-") as root:
        folder = Path(root, FOLDERS[0])
        folder.mkdir()
        for name, path in files.items():
            (folder / name).symlink_to(path.resolve())
        train = import_torchvision().datasets.CIFAR100(root, train=True)
    pixels = torch.from_numpy(train.data).permute(0, 3, 1, 2).contiguous()
    return LabelledImages(standardise(pixels), torch.tensor(train.targets))


def verify(data_dir: str | Path | None) -> dict[str, Path]:
    """Name -> file, of all three files under data_dir, their checksums as published.

    Raises ValueError naming every file that is missing or wrong. Standard library only.
    """
    return _published().verify(data_dir)


def download(
    data_dir: str | Path, *, mirrors: Sequence[str] = MIRRORS, say: Callable[[str], object] = say_line
) -> dict[str, Path]:
    """Unless all files are there and good: fetch the archive (169 MB) to data_dir, unpack it; check and return files.

    As `cifar10.download` in everything else.
    """
    published, root = _published(), Path(data_dir)
    wanted = [name for name in FILES if published.problem(root, name)]
    if wanted:
        archive = root / ARCHIVE
        if archive.is_file() and ARCHIVE_CONTENT.problem(archive) is None:
            say(f"{archive}: already there, checksum as published")
        else:
            fetch(archive, [f"{mirror}{ARCHIVE}" for mirror in mirrors], ARCHIVE_CONTENT, say)
        unpack(archive, wanted, root / FOLDERS[0])
        say(f"{root / FOLDERS[0]}: unpacked {len(wanted)} of {len(FILES)} files")
    return verify(root)


def _published() -> Published:
    return Published("CIFAR-100", "cifar100", FOLDERS, {name: {name: content} for name, content in FILES.items()})
