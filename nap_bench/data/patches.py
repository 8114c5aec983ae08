"""Patches of scikit-learn's two sample photographs (china.jpg, flower.jpg): 4240 colour images of 8 x 8 pixels, embedded.

Small natural images: random labels are what they are for. The half with the least contrast is left out: patches of an even sky
cannot be told apart, so no network could memorise their labels.
"""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

from nap_bench.data.images import LabelledImages, standardise

SIDE = 8
SHA256 = "99310b92a8963a4b9118f3a93695bf9d2f7c20a03361f1962972901ccd5560da"
"""Of the decoded pixels: decoders may differ in the last bit."""


def load(data_dir: str | None = None) -> LabelledImages:
    """inputs [4240, 3, 8, 8] float32, standardised over all pixels; labels: which photograph, 0 or 1. data_dir is not needed.

    Patches are interleaved, so that the first N come from both photographs alike. Raises ValueError if the pixels differ.
    """
    import numpy as np
    import torch
    from PIL import Image

    photographs = [np.asarray(Image.open(path).convert("RGB")) for path in _files()]
    found = hashlib.sha256(b"".join(photograph.tobytes() for photograph in photographs)).hexdigest()
    if found != SHA256:
        raise ValueError(
            f"Wanted scikit-learn's sample photographs decoded to sha256 {SHA256}; found {found} in {_files()[0].parent}. Another "
            f"scikit-learn or Pillow decodes them differently, so results would not be comparable: install the pinned versions."
        )
    patches = torch.stack(
        [_cut(torch.from_numpy(photograph.copy())) for photograph in photographs], dim=1
    )  # [N/2, 2, ...]
    labels = torch.arange(2).repeat(len(patches))
    return LabelledImages(standardise(patches.flatten(0, 1)), labels)


def _cut(photograph_HWC):
    """[H, W, 3] -> [patches, 3, SIDE, SIDE]: the half with the most contrast, in a fixed order that mixes neighbours."""
    import torch

    height, width, _ = photograph_HWC.shape
    rows, columns = height // SIDE, width // SIDE
    grid = photograph_HWC[: rows * SIDE, : columns * SIDE].reshape(rows, SIDE, columns, SIDE, 3)
    patches = grid.permute(0, 2, 4, 1, 3).reshape(rows * columns, 3, SIDE, SIDE)
    contrast = patches.double().flatten(1).var(dim=1)
    kept = contrast.argsort(descending=True, stable=True)[: len(patches) // 2]
    return patches[kept[torch.randperm(len(kept), generator=torch.Generator().manual_seed(0))]]


def _files() -> list[Path]:
    package = importlib.util.find_spec("sklearn")
    if package is None:
        raise ValueError(
            "The photographs come with scikit-learn, which is not installed here: pip install scikit-learn."
        )
    folder = Path(package.submodule_search_locations[0], "datasets", "images")
    return [folder / "china.jpg", folder / "flower.jpg"]
