"""CIFAR-10 (Krizhevsky 2009): 50000 training and 10000 test images of 3 x 32 x 32 pixels, 10 classes."""

from __future__ import annotations

import shutil
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from nap_bench.data.download import Content, fetch, say_line, whole
from nap_bench.data.images import LabelledImages, standardise
from nap_bench.data.published import Published
from nap_bench.data.torchvision_import import import_torchvision

ARCHIVE = "cifar-10-python.tar.gz"
ARCHIVE_CONTENT = Content(170498071, "c58f30108f718f92721af3b95e74349a")

FILES = {
    "data_batch_1": Content(31035704, "c99cafc152244af753f735de768cd75f"),
    "data_batch_2": Content(31035320, "d4bba439e000b95fd0a9bffe97cbabec"),
    "data_batch_3": Content(31035999, "54ebc095f3ab1f0389bbae665268c751"),
    "data_batch_4": Content(31035696, "634d18415352ddfa80567beed471001a"),
    "data_batch_5": Content(31035623, "482c414d41f54cd18b22e5b47cb7c3cb"),
    "test_batch": Content(31035526, "40351d587109b95175f43aff81a1287e"),
    "batches.meta": Content(158, "5ff9c542aee3614f3951f8cda6e48888"),
}
"""Of the archive's members. All checksums are torchvision's own (a test compares them); the sizes are of the files that
have them."""

MIRRORS = ("https://www.cs.toronto.edu/~kriz/",)

FOLDERS = ("cifar-10-batches-py", ".")
"""Where under data_dir the files are looked for; the first is torchvision's, and where `download` unpacks them."""


def load(data_dir: str | Path | None) -> LabelledImages:
    """The training set: inputs [50000, 3, 32, 32] float32, standardised over all pixels; labels [50000] int64.

    Raises ValueError as `verify` does.
    """
    (pixels, labels), _ = _read(data_dir)
    return LabelledImages(standardise(pixels), labels)


def load_splits(data_dir: str | Path | None) -> tuple[LabelledImages, LabelledImages]:
    """The training set as `load` returns it, and the test set, [10000, ...], standardised as the training set is."""
    (pixels, labels), (test_pixels, test_labels) = _read(data_dir)
    test = LabelledImages(standardise(test_pixels, like=pixels), test_labels)
    return LabelledImages(standardise(pixels), labels), test


def _read(data_dir: str | Path | None):
    """(pixels [N, 3, 32, 32] uint8, labels [N] int64) of the training set and of the test set.

    Through torchvision's dataset class, which is shown nothing but verified files: they are pickles, and a pickle can
    run code.
    """
    import torch

    files = verify(data_dir)
    with tempfile.TemporaryDirectory(prefix="cifar10-") as root:
        folder = Path(root, FOLDERS[0])
        folder.mkdir()
        for name, path in files.items():
            (folder / name).symlink_to(path.resolve())
        splits = [import_torchvision().datasets.CIFAR10(root, train=train) for train in (True, False)]
    return [
        (torch.from_numpy(split.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(split.targets)) for split in splits
    ]


def verify(data_dir: str | Path | None) -> dict[str, Path]:
    """Name -> file, of all seven files under data_dir, their sizes and checksums as published.

    Raises ValueError naming every file that is missing or wrong. Standard library only, 0.5 s.
    """
    return _published().verify(data_dir)


def download(
    data_dir: str | Path, *, mirrors: Sequence[str] = MIRRORS, say: Callable[[str], object] = say_line
) -> dict[str, Path]:
    """Unless all files are there and good: fetch the archive (170 MB) to data_dir, unpack it; check and return files.

    A good archive in data_dir is used and kept. say: receives lines of progress; prints them by default. Files appear
    whole or not at all; good ones stay untouched. Raises ValueError, in one line, without a network.
    """
    published, root = _published(), Path(data_dir)
    wanted = [name for name in FILES if published.problem(root, name)]
    for name in FILES:
        if name not in wanted:
            say(f"{published.find(root, name)[0]}: already there, checksum as published")
    if wanted:
        archive = root / ARCHIVE
        if archive.is_file() and ARCHIVE_CONTENT.problem(archive) is None:
            say(f"{archive}: already there, checksum as published")
        else:
            fetch(archive, [f"{mirror}{ARCHIVE}" for mirror in mirrors], ARCHIVE_CONTENT, say)
        unpack(archive, wanted, root / FOLDERS[0])
        say(f"{root / FOLDERS[0]}: unpacked {len(wanted)} of {len(FILES)} files")
    return verify(root)


def unpack(archive: Path, names: list[str], folder: Path) -> None:
    """Put an archive's members of these names into a folder, each whole or not at all."""
    with tarfile.open(archive) as members:
        for member in members:
            name = Path(member.name).name
            if name in names:
                with whole(folder / name) as file:
                    shutil.copyfileobj(members.extractfile(member), file)


def _published() -> Published:
    return Published("CIFAR-10", "cifar10", FOLDERS, {name: {name: content} for name, content in FILES.items()})
