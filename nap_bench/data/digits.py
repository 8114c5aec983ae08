"""scikit-learn's handwritten digits: 1797 images of 8 x 8 pixels, 10 classes, embedded in the package.

The test set of Alpaydin & Kaynak, Optical Recognition of Handwritten Digits (UCI, 1998).
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
from pathlib import Path

from nap_bench.data.images import LabelledImages, standardise

NUM_EXAMPLES = 1797
NUM_COLUMNS = 65
"""64 pixels and the label."""

SHA256 = "68aea062d35a127749050fa0e52dca09d6569ac08092c925610e0954e172dde2"
"""Of the table [1797, 65] as bytes, row by row: the numbers, not the file, which another packing could change."""


def load(data_dir: str | None = None) -> LabelledImages:
    """inputs [1797, 64] float32, standardised over all pixels; labels [1797] int64. data_dir is not needed.

    Reads scikit-learn's file without importing scikit-learn. Raises ValueError if it holds other data.
    """
    import torch

    table = _read(_file())
    found = hashlib.sha256(table).hexdigest()
    if found != SHA256:
        raise ValueError(
            f"Wanted scikit-learn's digits with sha256 {SHA256}; found {found} in {_file()}. This scikit-learn "
            f"ships other data, so results would not be comparable: install the version in the requirements."
        )
    rows = torch.frombuffer(bytearray(table), dtype=torch.uint8).view(NUM_EXAMPLES, NUM_COLUMNS)
    return LabelledImages(standardise(rows[:, :-1]), rows[:, -1].long())


def _file() -> Path:
    package = importlib.util.find_spec("sklearn")  # found, not imported: importing takes a second
    if package is None:
        raise ValueError("The digits come with scikit-learn, which is not installed here: pip install scikit-learn.")
    return Path(package.submodule_search_locations[0], "datasets", "data", "digits.csv.gz")


def _read(path: Path) -> bytes:
    """All numbers of the file, a byte each."""
    try:
        return bytes(map(int, gzip.decompress(path.read_bytes()).replace(b"\n", b",").rstrip(b",").split(b",")))
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(f"Cannot read scikit-learn's digits in {path}: {error}. Reinstall scikit-learn.") from error
