"""Ranks of a matrix per seed, each under a name of its own; the literature shares three names among them.

Shape suffixes: S seeds, B examples, D features, R = min(B, D) singular values, n examples of a kernel.

All but the participation ratio are functions of singular values [S, R], descending, which `singular_values` finds once
for all of them; a kernel's eigenvalues are its singular values. None of them centres. A matrix of zeros has rank 0. A
diverged seed comes out as NaN; the others do not notice. Results are float32 [S]. The paper's own rank is
plasticity.feature_rank.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nap_bench.metrics.plasticity import nan_where_not_finite


@torch.no_grad()
def singular_values(matrix_SBD: Tensor) -> Tensor:
    """[S, R] float64, descending; NaN for a seed whose matrix is not finite.

    From the eigenvalues of the smaller Gram matrix in float64: absolute error about 1e-8 of the largest, so smaller
    ones are noise. Axes after the second are flattened.
    """
    matrix = matrix_SBD.flatten(2).double()
    finite_S = torch.isfinite(matrix).flatten(1).all(dim=1)
    matrix = torch.where(finite_S.view(-1, 1, 1), matrix, 0.0)
    gram = torch.bmm(matrix, matrix.mT) if matrix.shape[1] < matrix.shape[2] else torch.bmm(matrix.mT, matrix)
    found_SR = torch.linalg.eigvalsh(gram).flip(1).clamp(min=0.0).sqrt()
    return torch.where(finite_S.unsqueeze(1), found_SR, torch.nan)


@torch.no_grad()
def kernel_spectrum(kernel_Snn: Tensor) -> Tensor:
    """Eigenvalues [S, n] float64 of positive semidefinite matrices, descending; NaN for a seed that is not finite.

    They are the kernel's singular values, and squares of those of the gradients it is made of.
    """
    finite_S = torch.isfinite(kernel_Snn).flatten(1).all(dim=1)
    kernel = torch.where(finite_S.view(-1, 1, 1), kernel_Snn.double(), 0.0)
    return torch.where(finite_S.unsqueeze(1), torch.linalg.eigvalsh(kernel).flip(1).clamp(min=0.0), torch.nan)


@nan_where_not_finite
def srank(singular_SR: Tensor, delta: float = 0.01) -> Tensor:
    """srank_delta: the fewest singular values that add up to a share 1 - delta of their sum (Kumar et al. 2021).

    Called "stable rank" in several plasticity codes, which it is not; some of them are one too low.
    """
    return _count_to_share(singular_SR, delta)


@nan_where_not_finite
def approximate_rank(singular_SR: Tensor, delta: float = 0.01) -> Tensor:
    """The fewest squared singular values that add up to a share 1 - delta of their sum (Dohare et al. 2024)."""
    return _count_to_share(singular_SR.square(), delta)


def _count_to_share(parts_SR: Tensor, delta: float) -> Tensor:
    total_S1 = parts_SR.sum(dim=1, keepdim=True)
    below_SR = parts_SR.cumsum(dim=1) < (1.0 - delta) * total_S1
    return (below_SR.sum(dim=1) + 1) * (total_S1.squeeze(1) > 0)


@nan_where_not_finite
def effective_rank(singular_SR: Tensor) -> Tensor:
    """exp of the entropy of p_i = sigma_i / sum_k sigma_k (Roy & Vetterli 2007). From 1 to R; 0 for zeros."""
    total_S1 = singular_SR.sum(dim=1, keepdim=True)
    p_SR = singular_SR / total_S1
    rank_S = torch.exp(-torch.xlogy(p_SR, p_SR).sum(dim=1))
    return torch.where(total_S1.squeeze(1) > 0, rank_S, 0.0)


@nan_where_not_finite
def stable_rank(singular_SR: Tensor) -> Tensor:
    """||A||_F^2 / ||A||_2^2, the sum of squared singular values over the largest square. From 1 to R; 0 for zeros."""
    squares_SR = singular_SR.square()
    largest_S = squares_SR[:, 0]
    return torch.where(largest_S > 0, squares_SR.sum(dim=1) / largest_S, 0.0)


@nan_where_not_finite
def participation_ratio(matrix_SBD: Tensor) -> Tensor:
    """(tr G)^2 / tr(G^2) of the Gram matrix G = A^T A, without a decomposition. From 1 to R; 0 for zeros.

    With sigma for A it is (sum sigma^2)^2 / sum sigma^4; called "stable rank" elsewhere too.
    """
    matrix = matrix_SBD.flatten(2).double()
    gram = torch.bmm(matrix, matrix.mT) if matrix.shape[1] < matrix.shape[2] else torch.bmm(matrix.mT, matrix)
    trace_S, squares_S = gram.diagonal(dim1=1, dim2=2).sum(dim=1), gram.square().flatten(1).sum(dim=1)
    return torch.where(squares_S > 0, trace_S.square() / squares_S, 0.0)


@nan_where_not_finite
def numerical_rank(matrix_SBD: Tensor) -> Tensor:
    """Share of singular values above max(B, D) x 2^-23 x the largest: float32's numerical rank over min(B, D).

    For weights. The tolerance is that of torch.linalg.matrix_rank, whatever the precision of the matrix.
    """
    sizes = matrix_SBD.flatten(2).shape[1:]
    singular_SR = singular_values(matrix_SBD)
    tolerance = max(sizes) * torch.finfo(torch.float32).eps
    return (singular_SR > tolerance * singular_SR[:, :1]).double().mean(dim=1)


@nan_where_not_finite
def inverse_condition(singular_SR: Tensor) -> Tensor:
    """Smallest over largest singular value, from 0 to 1: 1 over the condition number, which may be infinite."""
    largest_S = singular_SR[:, 0]
    return torch.where(largest_S > 0, singular_SR[:, -1] / largest_S, 0.0)
