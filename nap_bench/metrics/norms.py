"""Norms, effective learning rates and what an update does to parameters.

Shape suffixes: S seeds, P parameters of one seed. A tensor written [S, ...] is one vector per seed, whatever its other
axes: a weight, a group of weights laid side by side, or all parameters. Norms are 2-norms of that vector (Frobenius for
a matrix).
A diverged seed comes out as NaN or infinite; the others do not notice.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


def global_norm(flat_SP: Tensor) -> Tensor:
    """2-norm [S] of the flattened vector: parameter norm or gradient norm of the paper (C.2, Fig. 8).

    The norm, not its square, its mean or its root mean square. Zero padding does not change it.
    """
    return torch.linalg.vector_norm(flat_SP.flatten(1), dim=1)


def mean_magnitude(values_SP: Tensor) -> Tensor:
    """Mean of |w|, [S] ("weight magnitude" of Dohare et al. 2024). Padding would change it: give it none."""
    return values_SP.flatten(1).abs().mean(dim=1)


def root_mean_square(values_SP: Tensor) -> Tensor:
    """||w|| / sqrt(number of elements), [S]: a norm that does not grow with the network."""
    return global_norm(values_SP) / math.sqrt(values_SP[0].numel())


def norm_per_element(values_SP: Tensor) -> Tensor:
    """||w|| / number of elements, [S]: what some codes log as weight norm. Falls as the network grows."""
    return global_norm(values_SP) / values_SP[0].numel()


def distance(before: Tensor, after: Tensor) -> Tensor:
    """||after - before||, [S]: from the initial point, or over an update."""
    return global_norm(after - before)


def zero_fraction(gradient_SP: Tensor) -> Tensor:
    """Fraction of elements that are exactly zero, [S]: of a gradient, the parameters that one batch teaches nothing.

    NaN for a diverged seed. Padding counts: give it none.
    """
    zero_S = (gradient_SP == 0).flatten(1).float().mean(dim=1)
    return torch.where(torch.isfinite(global_norm(gradient_SP)), zero_S, torch.nan)


def effective_learning_rate(lr: float | Tensor, norm_S: Tensor, *, steps_are_normalised: bool) -> Tensor:
    """Effective learning rate [S] by formula (paper, Definition 1): of a scale-invariant group of norm `norm_S`.

        lr / ||W||^2   where the step is the learning rate times the gradient (SGD)
        lr / ||W||     where the step's length does not depend on the gradient's (Adam, RMSProp; steps_are_normalised)

    It says what rate would move the group scaled to norm 1 in the same way. For a group that is not scale-invariant it
    is just this quotient. Momentum's 1 / (1 - momentum) and Adam's actual step length are not in it: `relative_update`.
    """
    return lr / norm_S if steps_are_normalised else lr / norm_S.square()


def relative_update(before: Tensor, after: Tensor) -> Tensor:
    """||after - before|| / ||before||, [S]: the effective step that was really taken, radial part included.

    Measured, so it contains everything between the two moments (projection too, if it fell there). Not a learning rate:
    under Adam it is about the effective learning rate by formula times sqrt(number of elements).
    """
    return distance(before, after) / global_norm(before)


def rotation_angle(before: Tensor, after: Tensor) -> Tensor:
    """Angle [S] between the two vectors in radians, in [0, pi]; NaN if one of them is zero.

    All that an update of a scale-invariant group can change. By 2 atan2(||u - v||, ||u + v||) of the unit vectors in
    float64: the arc cosine of a float32 inner product cannot see angles below 3e-4.
    """
    u_SP, v_SP = (_unit(tensor.flatten(1).double()) for tensor in (before, after))
    return (2.0 * torch.atan2(global_norm(u_SP - v_SP), global_norm(u_SP + v_SP))).to(before.dtype)


class UpdateParts(NamedTuple):
    """An update seen from the parameters it starts at, both [S] and in the parameters' unit."""

    radial: Tensor
    """Length along the parameters, signed: positive moves outwards, as far as first order goes."""
    tangential: Tensor
    """Length of what is perpendicular to the parameters, >= 0."""


def update_parts(before: Tensor, after: Tensor) -> UpdateParts:
    """Radial and tangential part of after - before; squares add up to ||after - before||^2. NaN if before is zero.

    A gradient step of a scale-invariant group is tangential only (paper A.5); momentum and Adam's division make it less
    so.
    """
    before_SP = before.flatten(1).double()
    step_SP = after.flatten(1).double() - before_SP
    direction_SP = _unit(before_SP)
    radial_S = (step_SP * direction_SP).sum(dim=1)
    tangential_S = global_norm(step_SP - radial_S.unsqueeze(1) * direction_SP)
    return UpdateParts(radial_S.to(before.dtype), tangential_S.to(before.dtype))


def _unit(vector_SP: Tensor) -> Tensor:
    return vector_SP / global_norm(vector_SP).unsqueeze(1)
