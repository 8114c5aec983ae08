"""Diagnostics of activations: dead, dormant and linearised units, feature rank.

Shape suffixes: S seeds, B examples of the probe batch, D units, C feature maps, H height, W width.

Activations are post-nonlinearity, [S, B, D] or [S, B, C, H, W]; a feature map counts as one unit, so what is asked of
"every example" is then asked of every example and pixel. A seed whose activations are not all finite gets NaN; the
others do not notice. Every result is float32 [S].
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

import torch
from torch import Tensor

RANK_THRESHOLD = 0.01
"""Paper C.2: singular values up to this fraction of the largest do not count."""


def _nan_where_not_finite(metric: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Zero the lanes of diverged seeds before the metric (linear algebra raises on NaN) and report NaN for them."""

    @wraps(metric)
    @torch.no_grad()
    def guarded(acts: Tensor, *args: float, **kwargs: float) -> Tensor:
        finite_S = torch.isfinite(acts.abs().flatten(1).amax(dim=1))  # amax hands NaN on
        clean = torch.where(finite_S.view(-1, *[1] * (acts.dim() - 1)), acts, 0.0)
        return torch.where(finite_S, metric(clean, *args, **kwargs).float(), torch.nan)

    return guarded


def _all_but_seed_and_unit(acts: Tensor) -> tuple[int, ...]:
    """Axes to reduce over so that [S, units] is left: examples and, for feature maps, pixels."""
    return (1, *range(3, acts.dim()))


@_nan_where_not_finite
def dead_fraction(acts_SBD: Tensor) -> Tensor:
    """Fraction of ReLU units that are exactly zero on every example of the batch (paper 3.1, Fig. 1).

    Not the fraction of zero entries (a healthy ReLU layer has about one half), not a threshold on small activations,
    and meaningless for activations without an exact zero (leaky ReLU, tanh). It can only fall as the batch grows.
    """
    return (acts_SBD.abs().amax(dim=_all_but_seed_and_unit(acts_SBD)) == 0).float().mean(dim=1)


@_nan_where_not_finite
def dormant_fraction(acts_SBD: Tensor, tau: float) -> Tensor:
    """Fraction of tau-dormant units (Sokar et al. 2023, Definition 3.1): score <= tau, tau >= 0.

        score_i = mean_x |h_i(x)| / ((1/D) sum_k mean_x |h_k(x)|)

    Multiplied out rather than divided, so there is no epsilon: in a layer that is zero everywhere every unit is
    dormant. Relative to its own layer: a layer whose units all shrink together has no dormant unit. Not
    `dead_fraction`, except that tau = 0 gives the same.
    """
    mean_abs_SD = acts_SBD.abs().mean(dim=_all_but_seed_and_unit(acts_SBD), dtype=torch.float64)
    return (mean_abs_SD <= tau * mean_abs_SD.mean(dim=1, keepdim=True)).float().mean(dim=1)


@_nan_where_not_finite
def linearised_fraction(acts_SBD: Tensor) -> Tensor:
    """Fraction of ReLU units that are zero on all examples or non-zero on all of them (paper C.2, Fig. 8).

    Such a unit is linear on the batch. Not the complement of anything: dead units are included, so it is never below
    `dead_fraction`. The paper takes it at the penultimate layer, on a large batch; on one example it is always 1.
    """
    size_SBD, axes = acts_SBD.abs(), _all_but_seed_and_unit(acts_SBD)
    return ((size_SBD.amin(dim=axes) > 0) | (size_SBD.amax(dim=axes) == 0)).float().mean(dim=1)


@_nan_where_not_finite
def feature_rank(features_SBD: Tensor) -> Tensor:
    """Number of singular values with sigma_i / sigma_1 > 0.01 of the B x D matrix of penultimate features (paper C.2).

    Features are not centred; all-zero features have rank 0; at most min(B, D). Not srank_delta (a share of the sum of
    singular values, Kumar et al. 2021), not the effective rank exp(entropy) (Roy & Vetterli 2007), not the stable rank
    ||A||_F^2 / sigma_1^2.

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

    forward: inputs [S, B, ...] -> outputs [S, B, K]. Exact, by K backward passes; parameters collect no gradient. The paper does
    not say which norm or average it takes. Not the gradient norm of the loss.
    """
    inputs = inputs.detach().clone().requires_grad_()
    outputs_SBK = forward(inputs)
    squares_SB = torch.zeros(outputs_SBK.shape[:2], device=inputs.device)
    for output_SB in outputs_SBK.unbind(dim=2):
        (slope,) = torch.autograd.grad(output_SB.sum(), inputs, retain_graph=True)
        squares_SB = squares_SB + slope.flatten(2).square().sum(dim=2)
    return squares_SB.mean(dim=1).sqrt().detach()
