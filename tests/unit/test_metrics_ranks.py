"""Ranks: matrices with known singular values, scipy as a reference, and what each rank must not depend on."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from scipy.stats import entropy

from nap_bench.metrics import ranks
from nap_bench.metrics.plasticity import feature_rank

OF_SPECTRUM = {
    "srank": ranks.srank,
    "approximate": ranks.approximate_rank,
    "effective": ranks.effective_rank,
    "stable": ranks.stable_rank,
}
OF_MATRIX = {
    **{name: lambda a, rank=rank: rank(ranks.singular_values(a)) for name, rank in OF_SPECTRUM.items()},
    "participation": ranks.participation_ratio,
    "numerical": ranks.numerical_rank,
}


def draw(num, *shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(num), dtype=dtype)


def with_spectrum(singular, examples, features, num=0):
    """[1, B, D] with these singular values."""
    left = torch.linalg.qr(draw(num, examples, len(singular))).Q
    right = torch.linalg.qr(draw(num + 1, features, len(singular))).Q
    return ((left * torch.tensor(singular, dtype=torch.float64)) @ right.T).unsqueeze(0)


def slow(name, matrix):
    """Each rank as its definition reads, with scipy's singular values."""
    s = scipy.linalg.svdvals(matrix)
    if name in ("srank", "approximate"):
        parts = s if name == "srank" else s**2
        return next(k for k in range(1, len(s) + 1) if parts[:k].sum() >= 0.99 * parts.sum())
    if name == "effective":
        return math.exp(entropy(s / s.sum()))
    if name == "stable":
        return np.linalg.norm(matrix, "fro") ** 2 / np.linalg.norm(matrix, 2) ** 2
    if name == "participation":
        return np.trace(matrix.T @ matrix) ** 2 / np.trace(matrix.T @ matrix @ matrix.T @ matrix)
    return np.linalg.matrix_rank(matrix, tol=s.max() * max(matrix.shape) * 2.0**-23) / min(matrix.shape)


@pytest.mark.parametrize("name", OF_MATRIX)
@pytest.mark.parametrize("shape", [(60, 20), (20, 60), (30, 30)])
def test_a_rank_agrees_with_its_definition_on_scipys_singular_values(name, shape):
    matrix = draw(3, 4, *shape) * torch.logspace(0, -3, shape[1], dtype=torch.float64)
    matrix[1, :, 5:] = 0.0
    matrix[2] = 1.0
    found = OF_MATRIX[name](matrix)
    assert found.dtype == torch.float32 and found.shape == (4,)
    assert np.allclose(found, [slow(name, m.numpy()) for m in matrix], rtol=1e-6)


def test_every_rank_of_known_singular_values():
    singular = [2.0, 1.0, 1.0, 1e-4, 1e-10]
    for shape in ((40, 12), (12, 40)):
        matrix = with_spectrum(singular, *shape)
        found = {name: rank(matrix).item() for name, rank in OF_MATRIX.items()}
        assert found["srank"] == 3 and found["approximate"] == 3  # 3 / 4 and 5 / 6 are not enough; all three are
        assert found["stable"] == pytest.approx(6 / 4)
        assert found["participation"] == pytest.approx(36 / 18)
        assert found["effective"] == pytest.approx(math.exp(1.5 * math.log(2)), rel=1e-3)  # p = 1/2, 1/4, 1/4
        assert found["numerical"] == pytest.approx(4 / 12)


def test_srank_looks_at_singular_values_and_the_approximate_rank_at_their_squares():
    singular_SR = torch.tensor([[1.0] + [0.1] * 10, [1.0] * 11])
    assert ranks.srank(singular_SR).tolist() == [11, 11]  # 0.99 of 2 is 1.98
    assert ranks.srank(singular_SR, 0.25).tolist() == [6, 9]
    assert ranks.approximate_rank(singular_SR, 0.05).tolist() == [6, 11]  # 0.95 x 1.1 = 1.045: five of the small ones


@pytest.mark.parametrize("name", OF_MATRIX)
def test_random_features_have_full_rank_and_equal_ones_rank_one(name):
    full = OF_MATRIX[name](torch.linalg.qr(draw(5, 2, 50, 10)).Q)
    one = OF_MATRIX[name](draw(6, 2, 1, 10).expand(2, 50, 10))  # a constant input
    if name == "numerical":
        full, one = 10 * full, 10 * one
    assert torch.allclose(full, torch.full((2,), 10.0), rtol=1e-5) and torch.allclose(one, torch.ones(2), rtol=1e-5)


@pytest.mark.parametrize("name", OF_MATRIX)
def test_a_matrix_of_zeros_has_rank_zero(name):
    assert OF_MATRIX[name](torch.zeros(2, 7, 5)).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("name", OF_MATRIX)
def test_neither_order_nor_scale_nor_a_rotation_matters(name):
    matrix = draw(7, 3, 25, 8) * torch.logspace(0, -2, 8, dtype=torch.float64)
    gen = torch.Generator().manual_seed(2)
    rotation = torch.linalg.qr(draw(8, 8, 8)).Q
    reference = OF_MATRIX[name](matrix)
    for changed in (
        matrix[:, torch.randperm(25, generator=gen)].flip(2),
        1e-4 * matrix,
        1e4 * matrix,
        matrix @ rotation,
    ):
        assert torch.allclose(OF_MATRIX[name](changed), reference, rtol=1e-5)


@pytest.mark.parametrize("name", OF_MATRIX)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_diverged_seed_is_nan_and_the_others_are_as_they_are_alone(name, bad):
    matrix = draw(9, 3, 20, 6)
    matrix[1, 0, 0] = bad
    found = OF_MATRIX[name](matrix)
    assert math.isnan(found[1])
    for index in (0, 2):
        assert torch.equal(found[index : index + 1], OF_MATRIX[name](matrix[index : index + 1].clone()))


def test_ranks_are_ordered_as_mathematics_orders_them():
    for num in range(5):
        matrix = draw(num, 1, 30, 12) * torch.logspace(0, -num, 12, dtype=torch.float64)
        stable, effective = (OF_MATRIX[name](matrix).item() for name in ("stable", "effective"))
        assert 1 <= stable <= OF_MATRIX["participation"](matrix).item() <= effective <= feature_rank(matrix).item() + 12
        assert OF_MATRIX["approximate"](matrix) <= OF_MATRIX["srank"](matrix)


def test_the_spectrum_of_a_kernel_is_that_of_its_eigenvalues_and_its_inverse_condition_their_quotient():
    factor = draw(10, 2, 6, 40)
    kernel = factor @ factor.mT
    found = ranks.kernel_spectrum(kernel)
    wanted = np.stack([scipy.linalg.eigvalsh(k)[::-1] for k in kernel.numpy()])
    assert np.allclose(found, wanted, rtol=1e-9)
    assert np.allclose(ranks.inverse_condition(found), wanted[:, -1] / wanted[:, 0], rtol=1e-6)
    kernel[0] = torch.eye(6)
    kernel[1, 2, 3] = math.nan
    found = ranks.inverse_condition(ranks.kernel_spectrum(kernel))
    assert found[0] == 1.0 and math.isnan(found[1])
    singular = torch.stack([torch.diag(torch.tensor([1.0, 0.0])), torch.zeros(2, 2)])
    assert ranks.inverse_condition(ranks.kernel_spectrum(singular)).tolist() == [0.0, 0.0]
