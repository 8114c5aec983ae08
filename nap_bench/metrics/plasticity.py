"""Diagnostics of units: dead, dormant, linearised, duplicate, saturated; their signs; the paper's feature rank.

Where the literature has several definitions under one name, each has a name of its own here. Other ranks: ranks.py.

Shape suffixes: S seeds, B examples of the probe batch, D units, C feature maps, H height, W width.

Activations are post-nonlinearity, [S, B, D] or [S, B, C, H, W]; a feature map counts as one unit, so what is asked of
"every example" is then asked of every example and pixel. A seed whose activations are not all finite gets NaN; the
others do not notice. Every result is float32 [S].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps

import torch
from torch import Tensor

RANK_THRESHOLD = 0.01
"""Paper C.2: singular values up to this fraction of the largest do not count."""


def nan_where_not_finite(metric: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Zero the lanes of diverged seeds before the metric (linear algebra raises on NaN) and report NaN for them.

    The metric's tensors are its positional arguments, numbers its keywords (or, after the tensors, positional too).
    """

    @wraps(metric)
    @torch.no_grad()
    def guarded(*args: Tensor | float, **kwargs: float) -> Tensor:
        tensors = [arg for arg in args if isinstance(arg, Tensor)]
        finite_S = torch.stack([_finite(tensor) for tensor in tensors]).all(dim=0)
        clean = [torch.where(finite_S.view(-1, *[1] * (t.dim() - 1)), t, 0.0) for t in tensors]
        return torch.where(finite_S, metric(*clean, *args[len(tensors) :], **kwargs).float(), torch.nan)

    return guarded


def _finite(tensor: Tensor) -> Tensor:
    """[S] bool: whether all of a seed's numbers are finite (amax hands NaN on)."""
    return torch.isfinite(tensor.abs().reshape(len(tensor), -1).amax(dim=1))


def _all_but_seed_and_unit(acts: Tensor) -> tuple[int, ...]:
    """Axes to reduce over so that [S, units] is left: examples and, for feature maps, pixels."""
    return (1, *range(3, acts.dim()))


@nan_where_not_finite
def dead_fraction(acts_SBD: Tensor) -> Tensor:
    """Fraction of ReLU units that are exactly zero on every example of the batch (paper 3.1, Fig. 1).

    Not the fraction of zero entries (a healthy ReLU layer has about one half), not a threshold on small activations,
    and meaningless for activations without an exact zero (leaky ReLU, tanh). It can only fall as the batch grows.
    """
    return (acts_SBD.abs().amax(dim=_all_but_seed_and_unit(acts_SBD)) == 0).float().mean(dim=1)


@nan_where_not_finite
def dormant_fraction(acts_SBD: Tensor, tau: float) -> Tensor:
    """Fraction of tau-dormant units (Sokar et al. 2023, Definition 3.1): score <= tau, tau >= 0.

        score_i = mean_x |h_i(x)| / ((1/D) sum_k mean_x |h_k(x)|)

    Multiplied out rather than divided, so there is no epsilon: in a layer that is zero everywhere every unit is
    dormant. Relative to its own layer: a layer whose units all shrink together has no dormant unit. Not
    `dead_fraction`, except that tau = 0 gives the same.
    """
    mean_abs_SD = acts_SBD.abs().mean(dim=_all_but_seed_and_unit(acts_SBD), dtype=torch.float64)
    return (mean_abs_SD <= tau * mean_abs_SD.mean(dim=1, keepdim=True)).float().mean(dim=1)


@nan_where_not_finite
def linearised_fraction(acts_SBD: Tensor) -> Tensor:
    """Fraction of ReLU units that are zero on all examples or non-zero on all of them (paper C.2, Fig. 8).

    Such a unit is linear on the batch. Not the complement of anything: dead units are included, so it is never below
    `dead_fraction`. The paper takes it at the penultimate layer, on a large batch; on one example it is always 1.
    """
    size_SBD, axes = acts_SBD.abs(), _all_but_seed_and_unit(acts_SBD)
    return ((size_SBD.amin(dim=axes) > 0) | (size_SBD.amax(dim=axes) == 0)).float().mean(dim=1)


@nan_where_not_finite
def zero_entry_fraction(acts_SBD: Tensor) -> Tensor:
    """Fraction of activations that are exactly zero, over units and examples.

    What several codes call dead units or one minus active units; a healthy ReLU layer has about one half.
    """
    return (acts_SBD == 0).flatten(1).float().mean(dim=1)


@nan_where_not_finite
def rarely_active_fraction(acts_SBD: Tensor, share: float = 0.01) -> Tensor:
    """Fraction of units that are non-zero on less than `share` of the examples.

    "Dormant" of Dohare et al. 2024 on CIFAR-100 (1 % of 1000 examples), which is not Sokar's tau-dormant. A share of 0
    makes it 0; a share of no more than one example makes it `dead_fraction`.
    """
    return ((acts_SBD != 0).float().mean(dim=_all_but_seed_and_unit(acts_SBD)) < share).float().mean(dim=1)


@nan_where_not_finite
def near_zero_fraction(acts_SBD: Tensor, size: float = 1e-7, share: float = 0.95) -> Tensor:
    """Fraction of units with |h| < size on more than `share` of the examples. `size` is absolute: scale matters."""
    small_SD = (acts_SBD.abs() < size).float().mean(dim=_all_but_seed_and_unit(acts_SBD))
    return (small_SD > share).float().mean(dim=1)


@nan_where_not_finite
def duplicate_fraction(acts_SBD: Tensor, cosine: float = 0.95) -> Tensor:
    """Fraction of units that another unit of the layer repeats: the cosine of their activations is > cosine.

    Not centred and signed: a unit and its negative are no duplicates, units that are always on may be. A dead unit,
    which has no direction, is no duplicate. From the Gram matrix in float64, O(B D^2).
    """
    units_SDN = acts_SBD.double().transpose(1, 2).flatten(2)
    length_SD1 = torch.linalg.vector_norm(units_SDN, dim=2, keepdim=True)
    direction_SDN = torch.where(length_SD1 > 0, units_SDN / length_SD1, 0.0)
    cosine_SDD = torch.bmm(direction_SDN, direction_SDN.mT)
    cosine_SDD.diagonal(dim1=1, dim2=2).fill_(-1.0)
    return (cosine_SDD.amax(dim=2) > cosine).float().mean(dim=1)


@nan_where_not_finite
def saturated_fraction(acts_SBD: Tensor, limit: float = 0.99) -> Tensor:
    """Fraction of activations with |h| > limit, over units and examples: for tanh, whose range is (-1, 1)."""
    return (acts_SBD.abs() > limit).flatten(1).float().mean(dim=1)


@nan_where_not_finite
def gradient_saturated_fraction(
    acts_SBD: Tensor, gradients_SBD: Tensor, ratio: float = 1e-4, share: float = 0.99
) -> Tensor:
    """Fraction of units that hardly pass gradient: |d loss / d h| < ratio |h| on more than `share` of the examples.

    gradients: of each example's own loss. For any nonlinearity. A unit of zeros with zero gradient is not counted: it
    is dead.
    """
    passed_SD = (gradients_SBD.abs() < ratio * acts_SBD.abs()).float().mean(dim=_all_but_seed_and_unit(acts_SBD))
    return (passed_SD > share).float().mean(dim=1)


@nan_where_not_finite
def unit_sign_entropy(preactivations_SBD: Tensor) -> Tensor:
    """Entropy in bits of the sign of a unit's pre-activation over the examples (positive or not), averaged over units.

    1 where every unit is on for half of the examples, 0 where every unit is linear on the batch, on or off.
    Post-activations of a ReLU have the same signs.
    """
    on_SD = (preactivations_SBD > 0).double().mean(dim=_all_but_seed_and_unit(preactivations_SBD))
    bits_SD = -(torch.xlogy(on_SD, on_SD) + torch.xlogy(1 - on_SD, 1 - on_SD)) / math.log(2.0)
    return bits_SD.mean(dim=1)


@nan_where_not_finite
def preactivation_mean_shift(preactivations_SBD: Tensor) -> Tensor:
    """How far units' pre-activations are from centred: their mean over examples, over their standard deviation.

    Root mean square over units of either, then the quotient. 0 where every unit is centred. Infinite where nothing
    varies. The literature has only the name; this is what it is here.
    """
    over = _all_but_seed_and_unit(preactivations_SBD)
    values = preactivations_SBD.double()
    mean = values.mean(dim=over, keepdim=True)
    variance_S = (values - mean).square().flatten(1).mean(dim=1)
    return (mean.square().flatten(1).mean(dim=1) / variance_S).sqrt()


@nan_where_not_finite
def example_norm(outputs_SBD: Tensor) -> Tensor:
    """Mean over examples of the 2-norm of an example's vector: feature norm or logit norm, by what is given."""
    return torch.linalg.vector_norm(outputs_SBD.flatten(2), dim=2).mean(dim=1)


@nan_where_not_finite
def one_step_plasticity(before_S: Tensor, after_S: Tensor) -> Tensor:
    """clamp(1 - after / max(before, 1e-8), 0, 1) of the loss on a batch before and after the update on it.

    "Plasticity" of Elsayed & Mahmood 2024 (UPGD), who have one example in a batch; here losses are means over it. 1
    where one update fits the batch, 0 where it did not help or hurt.
    """
    return (1.0 - after_S / before_S.clamp(min=1e-8)).clamp(0.0, 1.0)


@nan_where_not_finite
def feature_rank(features_SBD: Tensor) -> Tensor:
    """Number of singular values with sigma_i / sigma_1 > 0.01 of the B x D matrix of penultimate features (paper C.2).

    Features are not centred; all-zero features have rank 0; at most min(B, D). Not any of those in
    ranks.py, which go by the same name elsewhere.

    From the eigenvalues of the smaller Gram matrix: sigma_i / sigma_1 > 0.01 is lambda_i / lambda_1 > 1e-4. In float64
    they err by about 1e-15 of lambda_1, eleven orders below the threshold, so squaring loses nothing.
    """
    features = features_SBD.double()
    num_examples, num_units = features.shape[1:]
    gram = torch.bmm(features.mT, features) if num_units <= num_examples else torch.bmm(features, features.mT)
    eigenvalues = torch.linalg.eigvalsh(gram)  # ascending
    return (eigenvalues > RANK_THRESHOLD**2 * eigenvalues[:, -1:]).sum(dim=1)


def jacobian_norm(forward: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """Root mean square over examples of the Frobenius norm of d outputs / d inputs, [S] (paper 3.2, Fig. 2).

    forward: inputs [S, B, ...] -> outputs [S, B, K]. Exact, by K backward passes; parameters collect no gradient. The
    paper does not say which norm or average it takes. Not the gradient norm of the loss.
    """
    inputs = inputs.detach().clone().requires_grad_()
    outputs_SBK = forward(inputs)
    squares_SB = torch.zeros(outputs_SBK.shape[:2], device=inputs.device)
    for output_SB in outputs_SBK.unbind(dim=2):
        (slope,) = torch.autograd.grad(output_SB.sum(), inputs, retain_graph=True)
        squares_SB = squares_SB + slope.flatten(2).square().sum(dim=2)
    return squares_SB.mean(dim=1).sqrt().detach()
