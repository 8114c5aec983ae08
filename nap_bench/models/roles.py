"""What a parameter is for, read from the type of the module that owns it and never from its name."""

from __future__ import annotations

from enum import Enum, auto

from torch import nn

from nap_bench.models import blocks


class Role(Enum):
    WEIGHT = auto()  # of a hidden layer: what NaP projects
    OUTPUT = auto()  # weight of the final linear layer: not scale-invariant, not projected (paper 3.3)
    BIAS = auto()
    SCALE = auto()  # of a norm layer (sigma in the paper)
    OFFSET = auto()  # of a norm layer (mu in the paper)
    NOISE = auto()  # of a noisy layer: how strongly each of its weights and biases is perturbed
    UNIT_SCALE = auto()  # factor of a unit's output (weight normalisation): how long its weights count
    FROZEN = auto()  # of a frozen head, whatever it is there: never trained
    EMBEDDING = auto()  # table of vectors of tokens or positions: a linear layer on one-hot inputs, projected as one
    AUXILIARY = auto()  # weight of heads that no output comes of


NOISES = {"noise_weight": Role.NOISE, "noise_bias": Role.NOISE}

ROLES: dict[type[nn.Module], dict[str, Role]] = {
    blocks.Auxiliary: {"weight": Role.AUXILIARY},
    blocks.Conv2d: {"weight": Role.WEIGHT, "bias": Role.BIAS, "unit_scale": Role.UNIT_SCALE},
    blocks.Embedding: {"weight": Role.EMBEDDING},
    blocks.Linear: {"weight": Role.WEIGHT, "bias": Role.BIAS, "unit_scale": Role.UNIT_SCALE},
    blocks.Output: {"weight": Role.OUTPUT, "bias": Role.BIAS, "unit_scale": Role.UNIT_SCALE},
    blocks.NoisyLinear: {"weight": Role.WEIGHT, "bias": Role.BIAS, **NOISES},
    blocks.NoisyOutput: {"weight": Role.OUTPUT, **NOISES},
    **{norm: {"scale": Role.SCALE, "offset": Role.OFFSET} for norm in blocks.NORMS.values()},
}


def roles(model: nn.Module) -> dict[str, Role]:
    """Parameter name -> role. A parameter of a module type that is not in ROLES raises: nothing is guessed."""
    found, frozen = {}, set()
    for path, module in model.named_modules():
        if isinstance(module, blocks.Frozen):
            frozen |= {f"{path}.{name}" for name, _ in module.named_parameters()}
        for leaf, _ in module.named_parameters(recurse=False):
            name = f"{path}.{leaf}" if path else leaf
            try:
                found[name] = Role.FROZEN if name in frozen else ROLES[type(module)][leaf]
            except KeyError:
                raise ValueError(
                    f"No role for parameter {leaf!r} of {type(module).__name__} at {path!r}: "
                    f"add one line to ROLES in nap_bench/models/roles.py."
                ) from None
    return found
