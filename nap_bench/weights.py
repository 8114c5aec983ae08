"""Weights of examples from importance ratios: clipped, self-normalised, scaled; and how many examples they amount to.

Pure functions of tensors [S, N] (S seeds, N examples) that reduce over N alone, for any loss that owns its examples' weights:

    loss_S = -(coefficients(rule, log_ratio_SN, advantage_SN, clip) * advantage_SN * log_likelihood_SN).sum(dim=1)

log_ratio = log pi(y) - log pi_old(y), detached: its gradient is the log-likelihood's, since grad r = r grad log pi. Where the
likelihood is estimated the ratio is noisy, and its exponential heavy-tailed. Everything that can be is computed from logarithms,
so that ratios beyond the range of a float do no harm where a rule does not need them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from nap_bench.spec import nearest

Clip = tuple[float, float]
"""Smallest and largest ratio: 0 <= low <= 1 <= high. (1 - eps, 1 + eps) is PPO's; (0, c) caps large ratios only."""


def effective_sample_size(weight_SN: Tensor) -> Tensor:
    """(sum w)^2 / sum w^2 [S] of weights >= 0, whatever their scale (Kish 1965): N if all are equal, 1 if one has all, or 0."""
    largest_S1 = weight_SN.amax(dim=1, keepdim=True)
    share_SN = torch.where(largest_S1 > 0, weight_SN / largest_S1, 0.0)  # squares of small weights would vanish
    sum_S, squares_S = share_SN.sum(dim=1), share_SN.square().sum(dim=1)
    return torch.where(squares_S > 0, sum_S.square() / squares_S, 0.0)


def clipped(log_ratio_SN: Tensor, clip: Clip) -> Tensor:
    """The logarithm of the ratio, clipped whatever the advantage."""
    low, high = clip
    return log_ratio_SN.clamp(math.log(low) if low > 0.0 else -math.inf, math.log(high))


def normalised(log_ratio_SN: Tensor) -> Tensor:
    """r_i / sum_j r_j: a point of the simplex, so that the update is a convex combination of examples' own."""
    return log_ratio_SN.softmax(dim=1)


def conditional(log_ratio_SN: Tensor, advantage_SN: Tensor, clip: Clip) -> Tensor:
    """The gradient of PPO's mean of min(r A, clip(r) A) (Schulman et al. 2017): r_i / N, or 0 where the clip is active.

    It is where r > high and A > 0, or r < low and A < 0, and nowhere else: a large ratio of a bad example counts in full. An
    example without advantage counts nothing, however large its ratio (infinity times zero would be no number).
    """
    low, high = clip
    ratio_SN = log_ratio_SN.exp()
    is_active_SN = ((advantage_SN > 0) & (ratio_SN > high)) | ((advantage_SN < 0) & (ratio_SN < low))
    return torch.where(is_active_SN | (advantage_SN == 0), 0.0, ratio_SN) / ratio_SN.shape[1]


def unconditional(log_ratio_SN: Tensor, advantage_SN: Tensor, clip: Clip) -> Tensor:
    """clip(r_i) / N, whatever the advantage's sign."""
    return clipped(log_ratio_SN, clip).exp() / log_ratio_SN.shape[1]


def self_normalised(log_ratio_SN: Tensor, advantage_SN: Tensor, clip: Clip) -> Tensor:
    """r_i / sum_j r_j, without a clip."""
    return normalised(log_ratio_SN)


def stable(log_ratio_SN: Tensor, advantage_SN: Tensor, clip: Clip) -> Tensor:
    """clip(r_i) / sum_j clip(r_j): StableDRL (Zhong et al. 2026), both together."""
    return normalised(clipped(log_ratio_SN, clip))


def gradient_scaling(log_ratio_SN: Tensor, advantage_SN: Tensor, clip: Clip) -> Tensor:
    """The batch's gradient divided by its own scale, the root mean square of what multiplies examples' gradients, c_i = r_i A_i:

        r_i / (N sqrt(mean_j c_j^2)),  so that  sum_i |weight_i| = sqrt(ESS(|c|) / N) <= 1

    No ratio is clipped. The fewer examples the batch amounts to, the shorter the step. 0 where every advantage is 0.
    """
    peak_S1 = log_ratio_SN.amax(dim=1, keepdim=True)
    ratio_SN = (log_ratio_SN - peak_S1).exp()  # the common factor cancels
    scale_S1 = (ratio_SN * advantage_SN).square().sum(dim=1, keepdim=True).div(ratio_SN.shape[1]).sqrt()
    return torch.where(scale_S1 > 0, ratio_SN / scale_S1, 0.0) / ratio_SN.shape[1]


RULES: dict[str, Callable[[Tensor, Tensor, Clip], Tensor]] = {
    rule.__name__: rule for rule in (conditional, gradient_scaling, self_normalised, stable, unconditional)
}


def check(rule: str, clip: Clip) -> None:
    """Refuse an unknown rule, or bounds that are none."""
    if rule not in RULES:
        raise ValueError(nearest(rule, RULES, "rule of weights"))
    low, high = clip
    if not 0.0 <= low <= 1.0 <= high < math.inf:
        raise ValueError(f"A clip of ratios wants 0 <= low <= 1 <= high, finite; found {clip}.")


def coefficients(rule: str, log_ratio_SN: Tensor, advantage_SN: Tensor, clip: Clip) -> Tensor:
    """What multiplies advantage x log-likelihood of each example [S, N], >= 0. Carries no gradient."""
    return RULES[rule](log_ratio_SN.detach(), advantage_SN.detach(), clip)
