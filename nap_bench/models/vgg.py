"""VGG-like networks: stages of 3 x 3 convolutions, a max-pool after each, then linear layers (paper 5.2, B.4: "VGG16-like")."""

from __future__ import annotations

import dataclasses
from itertools import accumulate

from nap_bench.models.cnn import CNN
from nap_bench.spec import ModelSpec

VGG16 = (
    ("channels", (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)),
    ("own_norm", "batch"),
    ("stages", (2, 2, 3, 3, 3)),
    ("widths", (512,)),
)
"""Configuration D of Simonyan & Zisserman (2015) with BatchNorm, for images of 32 x 32: all 13 convolutions, one hidden linear
layer of 512 in place of two of 4096, no dropout."""


class VGG(CNN):
    """x_SBCHW -> logits_SBK: a `CNN` whose sizes are said by stage.

    `size`: channels, of each convolution; stages, how many of them each stage has, before its 2 x 2 max-pool; widths, of the
    hidden linear layers; own_norm, "batch" or "none" (the default), the norm that the network has before every nonlinearity
    whatever the methods: what they add stands before it (paper A.4).  groups, units: as in `CNN`.
    """

    def __init__(self, spec: ModelSpec, num_seeds: int, inputs: tuple[int, int, int], outputs: int):
        size = dict(spec.size)
        channels, stages = size["channels"], size["stages"]
        if not stages or min(stages) < 1 or sum(stages) != len(channels):
            raise ValueError(
                f"A vgg wants stages of at least one convolution that add up to its {len(channels)} channels; found {stages}."
            )
        ends = tuple(end - 1 for end in accumulate(stages))
        sizes = {"channels": channels, "kernel": 3, "pool_after": ends, "widths": size["widths"]}
        sizes |= {key: size[key] for key in ("own_norm",) if key in size}
        super().__init__(dataclasses.replace(spec, size=tuple(sizes.items())), num_seeds, inputs, outputs)
