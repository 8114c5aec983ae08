"""What an image dataset is once loaded, and how its pixels are standardised."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class LabelledImages(NamedTuple):
    inputs: Tensor  # [N, D] float32, standardised
    labels: Tensor  # [N] int64


def standardise(pixels: Tensor) -> Tensor:
    """uint8 of any shape -> float32: minus the mean, over the standard deviation of all pixels of the dataset together.

    One mean and one deviation, not one per pixel: pixels that never change stay harmless. Both come from exact counts,
    and subtraction and division are correctly rounded, so the result is the same bits on every machine.
    """
    import torch

    levels = torch.arange(256, dtype=torch.float64)
    shares = torch.bincount(pixels.flatten(), minlength=256).double() / pixels.numel()
    mean = (shares * levels).sum().item()
    variance = (shares * (levels - mean).square()).sum().item()
    return pixels.float().sub_(mean).div_(math.sqrt(variance))
