"""Weights from importance ratios: each rule against its closed form, and what makes one safe to use."""

from __future__ import annotations

import math

import pytest
import torch

from nap_bench import weights
from nap_bench.weights import RULES, coefficients, effective_sample_size

CLIP = (0.8, 1.2)
SIMPLEX = ("self_normalised", "stable")


def drawn(num_seeds: int = 3, num_examples: int = 16, spread: float = 1.5):
    stream = torch.Generator().manual_seed(0)
    log_ratio_SN = spread * torch.randn(num_seeds, num_examples, generator=stream, dtype=torch.float64)
    reward_SN = torch.randint(2, (num_seeds, num_examples), generator=stream).double()
    return log_ratio_SN, reward_SN - reward_SN.mean(dim=1, keepdim=True)


def test_conditional_clipping_has_the_gradient_of_ppos_surrogate():
    log_ratio_SN, advantage_SN = drawn()
    log_ratio_SN.requires_grad_()
    ratio_SN = log_ratio_SN.exp()
    surrogate_S = torch.minimum(ratio_SN * advantage_SN, ratio_SN.clamp(*CLIP) * advantage_SN).mean(dim=1)
    (expected_SN,) = torch.autograd.grad(surrogate_S.sum(), log_ratio_SN)
    found_SN = coefficients("conditional", log_ratio_SN, advantage_SN, CLIP) * advantage_SN
    assert torch.allclose(found_SN, expected_SN, rtol=1e-12, atol=0.0)
    assert 0 < (found_SN == 0).sum() < found_SN.numel()


def test_conditional_clipping_lets_a_large_ratio_of_a_bad_example_through_and_the_others_do_not():
    log_ratio_SN, advantage_SN = torch.tensor([[math.log(50.0), 0.0]]), torch.tensor([[-0.5, 0.5]])
    assert coefficients("conditional", log_ratio_SN, advantage_SN, CLIP)[0, 0].item() == pytest.approx(25.0)
    assert coefficients("conditional", log_ratio_SN, -advantage_SN, CLIP)[0, 0].item() == 0.0
    for sign in (1.0, -1.0):
        assert coefficients("unconditional", log_ratio_SN, sign * advantage_SN, CLIP)[0].tolist() == pytest.approx(
            [0.6, 0.5]
        )
        assert coefficients("stable", log_ratio_SN, sign * advantage_SN, CLIP)[0].tolist() == pytest.approx(
            [1.2 / 2.2, 1.0 / 2.2]
        )


def test_rules_are_their_closed_forms():
    log_ratio_SN, advantage_SN = drawn()
    ratio_SN = log_ratio_SN.exp()
    clipped_SN = ratio_SN.clamp(*CLIP)
    scale_S1 = (ratio_SN * advantage_SN).square().mean(dim=1, keepdim=True).sqrt()
    expected = {
        "unconditional": clipped_SN / 16,
        "self_normalised": ratio_SN / ratio_SN.sum(dim=1, keepdim=True),
        "stable": clipped_SN / clipped_SN.sum(dim=1, keepdim=True),
        "gradient_scaling": ratio_SN / scale_S1 / 16,
    }
    for rule, expected_SN in expected.items():
        assert torch.allclose(coefficients(rule, log_ratio_SN, advantage_SN, CLIP), expected_SN, rtol=1e-12), rule


@pytest.mark.parametrize("rule", SIMPLEX)
@pytest.mark.parametrize("spread", [0.0, 1.0, 300.0])
def test_self_normalised_coefficients_are_a_point_of_the_simplex_however_wild_the_ratios(rule, spread):
    log_ratio_SN, advantage_SN = drawn(spread=spread)
    found_SN = coefficients(rule, log_ratio_SN, advantage_SN, (0.0, 5.0))
    assert torch.all(found_SN >= 0)
    assert torch.allclose(found_SN.sum(dim=1), torch.ones(3, dtype=torch.float64), rtol=1e-12)


@pytest.mark.parametrize("rule", SIMPLEX)
def test_a_self_normalised_gradient_lies_in_the_convex_hull_of_the_examples_gradients(rule):
    """Ratios that would multiply the plain estimate a thousandfold: no coordinate leaves the range of the examples'."""
    log_ratio_SN, advantage_SN = drawn(num_seeds=2, num_examples=6, spread=4.0)
    logits = torch.zeros(6, 4, dtype=torch.float64, requires_grad=True)
    actions_N = torch.tensor([0, 1, 2, 3, 1, 2])
    log_likelihood_N = logits.log_softmax(dim=1).gather(1, actions_N.unsqueeze(1)).squeeze(1)
    for seed in range(2):
        own = [
            torch.autograd.grad(a * value, logits, retain_graph=True)[0].sum(dim=0)
            for a, value in zip(advantage_SN[seed], log_likelihood_N, strict=True)
        ]
        coefficient_SN = coefficients(rule, log_ratio_SN, advantage_SN, CLIP)
        objective = (coefficient_SN[seed] * advantage_SN[seed] * log_likelihood_N).sum()
        found = torch.autograd.grad(objective, logits, retain_graph=True)[0].sum(dim=0)
        hull = torch.stack(own)
        assert torch.allclose(found, coefficient_SN[seed] @ hull, rtol=1e-12)
        assert torch.all(found <= hull.amax(dim=0) + 1e-12) and torch.all(found >= hull.amin(dim=0) - 1e-12)


def test_scaling_by_the_batchs_own_gradient_moves_as_far_as_its_effective_sample_size_allows():
    log_ratio_SN, advantage_SN = drawn()
    weight_SN = (coefficients("gradient_scaling", log_ratio_SN, advantage_SN, CLIP) * advantage_SN).abs()
    expected_S = (effective_sample_size(weight_SN) / 16).sqrt()
    assert torch.allclose(weight_SN.sum(dim=1), expected_S, rtol=1e-12)
    shifted_SN = coefficients("gradient_scaling", log_ratio_SN + 500.0, advantage_SN, CLIP)
    assert torch.allclose(shifted_SN, coefficients("gradient_scaling", log_ratio_SN, advantage_SN, CLIP), rtol=1e-9)


@pytest.mark.parametrize("rule", RULES)
def test_equal_rewards_weigh_nothing_and_are_finite(rule):
    log_ratio_SN, _ = drawn()
    zero_SN = torch.zeros_like(log_ratio_SN)
    assert torch.all(coefficients(rule, log_ratio_SN, zero_SN, CLIP) * zero_SN == 0)


@pytest.mark.parametrize("rule", RULES)
def test_a_seed_alone_has_the_coefficients_it_has_in_a_block(rule):
    log_ratio_SN, advantage_SN = (values.float() for values in drawn(num_examples=33))
    block = coefficients(rule, log_ratio_SN, advantage_SN, CLIP)
    for seed in range(3):
        here = slice(seed, seed + 1)
        assert torch.equal(coefficients(rule, log_ratio_SN[here], advantage_SN[here], CLIP), block[here])


@pytest.mark.parametrize("rule", RULES)
def test_coefficients_carry_no_gradient(rule):
    log_ratio_SN, advantage_SN = drawn()
    assert not coefficients(rule, log_ratio_SN.requires_grad_(), advantage_SN, CLIP).requires_grad


def test_effective_sample_size_counts_equal_weights_and_no_others():
    weight_SN = torch.tensor(
        [[1.0, 1.0, 1.0, 1.0], [5.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0], [0.0] * 4, [3.0, 1.0, 0.0, 0.0]]
    )
    assert effective_sample_size(weight_SN).tolist() == pytest.approx([4.0, 1.0, 2.0, 0.0, 1.6])
    assert effective_sample_size(weight_SN * 1e-30).tolist() == pytest.approx([4.0, 1.0, 2.0, 0.0, 1.6])


def test_one_sided_bounds_cap_large_ratios_only():
    log_ratio_SN = torch.tensor([[-800.0, math.log(0.3), 0.0, 2.0, 800.0]], dtype=torch.float64)
    found = weights.clipped(log_ratio_SN, (0.0, 5.0)).exp()
    assert found[0].tolist() == pytest.approx([0.0, 0.3, 1.0, 5.0, 5.0])


@pytest.mark.parametrize("clip", [(1.1, 1.2), (0.5, 0.9), (-0.1, 2.0), (0.5, math.inf)])
def test_bounds_that_are_none_are_refused(clip):
    with pytest.raises(ValueError, match="0 <= low <= 1 <= high"):
        weights.check("stable", clip)


def test_an_unknown_rule_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="Did you mean 'stable'"):
        weights.check("stables", CLIP)
