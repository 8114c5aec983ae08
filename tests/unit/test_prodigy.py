"""Prodigy against its algorithm written out for one seed, and what a reset forgets."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from nap_bench.optimizers import OPTIMIZERS, Prodigy


def slow_steps(x0, gradient_of, num_steps, *, lr, beta1=0.9, beta2=0.999, eps=1e-8, d=1e-6):
    """Algorithm 4 of arXiv 2306.06101, in float64, entry by entry."""
    x, m, v, s, r = x0.copy(), *(np.zeros_like(x0) for _ in range(3)), 0.0
    for _ in range(num_steps):
        g = gradient_of(x)
        m = beta1 * m + (1 - beta1) * d * g
        v = beta2 * v + (1 - beta2) * d**2 * g**2
        r = math.sqrt(beta2) * r + (1 - math.sqrt(beta2)) * lr * d**2 * float(g @ (x0 - x))
        s = math.sqrt(beta2) * s + (1 - math.sqrt(beta2)) * lr * d**2 * g
        x = x - lr * d * m / (np.sqrt(v) + d * eps)
        d = max(d, r / np.abs(s).sum())
    return x, d


@pytest.mark.parametrize("lr", [0.5, 1.0])
def test_every_seed_takes_the_algorithms_steps(lr):
    curvature = np.array([[1.0, 3.0, 0.2], [2.0, 0.5, 1.0]])
    start = np.array([[1.0, -2.0, 3.0], [0.5, 4.0, -1.0]])
    prodigy, flat = Prodigy(), torch.tensor(start)
    memory = prodigy.start(flat)
    for _ in range(300):
        prodigy.step(flat, torch.tensor(curvature) * flat, memory, torch.tensor(lr, dtype=torch.float64))
    for seed in range(2):
        x, d = slow_steps(start[seed], lambda x, seed=seed: curvature[seed] * x, 300, lr=lr)
        np.testing.assert_allclose(flat[seed], x, rtol=1e-9, atol=1e-12)
        assert float(prodigy.rate(memory, torch.tensor(lr, dtype=torch.float64))[seed]) == pytest.approx(
            lr * d, rel=1e-9
        )
        assert d > 1e-3  # it grew from 1e-6: the rate was found


def test_after_a_reset_it_is_as_new():
    prodigy, flat = Prodigy(), torch.tensor([[1.0, -2.0]])
    memory = prodigy.start(flat)
    for _ in range(50):
        prodigy.step(flat, flat.clone(), memory, torch.tensor(1.0))
    for tensor in memory.values():
        tensor.zero_()
    again, fresh = flat.clone(), prodigy.start(flat)
    prodigy.step(flat, flat.clone(), memory, torch.tensor(1.0))
    prodigy.step(again, again.clone(), fresh, torch.tensor(1.0))
    assert torch.equal(flat, again) and all(torch.equal(memory[name], fresh[name]) for name in memory)


def test_it_wants_somewhere_to_start():
    with pytest.raises(ValueError, match="start_distance > 0; found 0.0"):
        Prodigy(start_distance=0.0)
    assert OPTIMIZERS["prodigy"] is Prodigy
