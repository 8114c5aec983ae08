"""What an image dataset is once loaded, and how its pixels are standardised."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class LabelledImages(NamedTuple):
    inputs: Tensor  # [N, D] float32, standardised
    labels: Tensor  # [N] int64


def sha256(*tensors: Tensor) -> str:
    """Of what tensors hold, one after another: which data a result was made of."""
    import hashlib

    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.cpu().contiguous().numpy().data)
    return found.hexdigest()


def standardise(pixels: Tensor, like: Tensor | None = None) -> Tensor:
    """uint8 of any shape -> float32: minus the mean, over the standard deviation of all pixels of the dataset together.

    like: the dataset whose mean and deviation are taken, where `pixels` is another part of it; by default `pixels`.
    One mean and one deviation, not one per pixel: pixels that never change stay harmless. Both come from exact counts,
    and subtraction and division are correctly rounded, so the result is the same bits on every machine.
    """
    import torch

    levels = torch.arange(256, dtype=torch.float64)
    like = pixels if like is None else like
    shares = torch.bincount(like.flatten(), minlength=256).double() / like.numel()
    mean = (shares * levels).sum().item()
    variance = (shares * (levels - mean).square()).sum().item()
    return pixels.float().sub_(mean).div_(math.sqrt(variance))
