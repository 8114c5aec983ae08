"""Metrics on cases whose answer is known, null tests, and properties that hold for any activations."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nap_bench.metrics import plasticity
from nap_bench.metrics.norms import (
    effective_learning_rate,
    global_norm,
    relative_update,
    rotation_angle,
    update_parts,
)
from nap_bench.metrics.plasticity import dead_fraction, dormant_fraction, feature_rank, linearised_fraction

settings.register_profile("steady", deadline=None, derandomize=True, max_examples=50)  # the machine may be busy
settings.load_profile("steady")

UNIT_METRICS = {
    "dead": dead_fraction,
    "dormant": lambda acts: dormant_fraction(acts, 0.1),
    "linearised": linearised_fraction,
}
METRICS = {**UNIT_METRICS, "rank": feature_rank}


def draw(num, *shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(num), dtype=dtype)


@st.composite
def activations(draw_):
    """[S, B, D] after a ReLU, with dead, weak and always-active units among the others."""
    seeds, examples, units = draw_(st.integers(1, 4)), draw_(st.integers(2, 40)), draw_(st.integers(2, 40))
    acts = draw(draw_(st.integers(0, 10**6)), seeds, examples, units)
    kinds = torch.tensor(draw_(st.lists(st.integers(0, 3), min_size=units, max_size=units)))
    variants = torch.stack([torch.full_like(acts, -1.0), acts.abs() + 0.1, 0.01 * acts, acts])
    return torch.relu(variants.gather(0, kinds.expand(1, *acts.shape)).squeeze(0))


# Unit metrics on known cases


def test_dead_means_exactly_zero_on_every_example():
    acts_SBD = torch.tensor([[[0.0, 0.0, 1e-30, 2.0], [0.0, 3.0, 0.0, 1.0]]])
    assert dead_fraction(acts_SBD).tolist() == [0.25]


def test_linearised_means_zero_on_all_or_on_none():
    acts_SBD = torch.tensor([[[0.0, 0.0, 1e-30, 2.0], [0.0, 3.0, 0.0, 1.0]]])
    assert linearised_fraction(acts_SBD).tolist() == [0.5]


def test_dormant_compares_a_units_mean_with_its_layers_mean():
    # means 0, 0.1, 1.9, 2 of mean 1: scores are the means themselves
    acts_SBD = torch.tensor([[[0.0, 0.2, 1.9, 3.0], [0.0, 0.0, 1.9, 1.0]]])
    found = [dormant_fraction(acts_SBD, tau).item() for tau in (0.0, 0.05, 0.15, 1.95, 2.5)]
    assert found == [0.25, 0.25, 0.5, 0.75, 1.0]


def test_dormant_takes_the_size_of_negative_activations():
    assert dormant_fraction(torch.tensor([[[-1.0, 1.0], [-1.0, 1.0]]]), 0.5).tolist() == [0.0]


def test_in_a_layer_of_zeros_every_unit_is_dead_dormant_and_linearised_and_the_rank_is_zero():
    zeros_SBD = torch.zeros(2, 8, 5)
    assert all(metric(zeros_SBD).tolist() == [1.0, 1.0] for metric in UNIT_METRICS.values())
    assert feature_rank(zeros_SBD).tolist() == [0.0, 0.0]


def test_a_feature_map_is_one_unit():
    acts_SBCHW = torch.zeros(1, 2, 3, 4, 4)
    acts_SBCHW[0, 1, 0, 3, 3] = 1.0  # one pixel of one example keeps map 0 alive
    acts_SBCHW[0, :, 1] = 1.0
    assert dead_fraction(acts_SBCHW).tolist() == [pytest.approx(1 / 3)]
    assert linearised_fraction(acts_SBCHW).tolist() == [pytest.approx(2 / 3)]
    # means over examples and pixels 1/32, 1, 0, of mean 0.34: scores 0.09, 2.91, 0
    assert [dormant_fraction(acts_SBCHW, tau).item() for tau in (0.05, 0.1)] == pytest.approx([1 / 3, 2 / 3])


def test_a_random_network_has_no_dead_units_and_full_rank():
    acts_SBD = torch.relu(draw(0, 3, 500, 16))
    assert dead_fraction(acts_SBD).tolist() == [0.0] * 3
    assert linearised_fraction(acts_SBD).tolist() == [0.0] * 3
    assert dormant_fraction(acts_SBD, 0.025).tolist() == [0.0] * 3
    assert feature_rank(acts_SBD).tolist() == [16.0] * 3


# Feature rank


@pytest.mark.parametrize("shape", [(60, 20), (20, 60)])
def test_feature_rank_counts_singular_values_above_a_hundredth_of_the_largest(shape):
    singular = torch.tensor([5.0, 1.0, 0.0501, 0.0499, 1e-3, 1e-9], dtype=torch.float64)
    left = torch.linalg.qr(draw(1, shape[0], 6, dtype=torch.float64)).Q
    right = torch.linalg.qr(draw(2, shape[1], 6, dtype=torch.float64)).Q
    features_SBD = ((left * singular) @ right.T).float().unsqueeze(0)
    assert feature_rank(features_SBD).tolist() == [3.0]


@given(activations())
def test_feature_rank_agrees_with_an_independent_decomposition(acts_SBD):
    singular = torch.linalg.svdvals(acts_SBD.double())
    away = ((singular / singular[:, :1] - 0.01).abs() > 1e-6) | (singular[:, :1] == 0)  # not a coin toss
    wanted = (singular > 0.01 * singular[:, :1]).sum(dim=1)
    assert torch.equal(feature_rank(acts_SBD)[away.all(dim=1)], wanted[away.all(dim=1)].float())


def test_feature_rank_does_not_centre():
    assert feature_rank(torch.ones(1, 10, 4)).tolist() == [1.0]


# Properties


@pytest.mark.parametrize("name", METRICS)
@given(acts_SBD=activations(), seed=st.integers(0, 10**6))
def test_the_order_of_units_and_examples_does_not_matter(name, acts_SBD, seed):
    gen = torch.Generator().manual_seed(seed)
    examples, units = (torch.randperm(n, generator=gen) for n in acts_SBD.shape[1:])
    assert torch.equal(METRICS[name](acts_SBD[:, examples][:, :, units]), METRICS[name](acts_SBD))


@pytest.mark.parametrize("name", METRICS)
@given(acts_SBD=activations(), exponent=st.integers(-20, 20))
def test_the_scale_of_activations_does_not_matter(name, acts_SBD, exponent):
    assert torch.equal(METRICS[name](acts_SBD * 2.0**exponent), METRICS[name](acts_SBD))


@pytest.mark.parametrize("name", METRICS)
@given(acts_SBD=activations())
def test_a_seed_alone_equals_the_seed_in_a_block(name, acts_SBD):
    alone = torch.cat([METRICS[name](acts_SBD[i : i + 1].clone()) for i in range(len(acts_SBD))])
    assert torch.equal(METRICS[name](acts_SBD), alone)


@pytest.mark.parametrize("name", METRICS)
@given(acts_SBD=activations(), bad=st.sampled_from([math.nan, math.inf, -math.inf]))
def test_a_diverged_seed_is_nan_and_leaves_the_others_alone(name, acts_SBD, bad):
    block = torch.cat([acts_SBD, acts_SBD[:1]])
    block[-1, 0, 0] = bad
    found = METRICS[name](block)
    assert math.isnan(found[-1].item())
    assert torch.equal(found[:-1], METRICS[name](acts_SBD))


@given(activations())
def test_the_unit_metrics_are_ordered_as_their_definitions(acts_SBD):
    dead, dormant0 = dead_fraction(acts_SBD), dormant_fraction(acts_SBD, 0.0)
    assert torch.equal(dead, dormant0)
    assert (dead <= dormant_fraction(acts_SBD, 0.025)).all()
    assert (dead <= linearised_fraction(acts_SBD)).all()
    assert (feature_rank(acts_SBD) <= (1 - dead) * acts_SBD.shape[2] + 1e-4).all()


@given(activations())
def test_a_constant_input_linearises_every_unit_and_leaves_rank_one_at_most(acts_SBD):
    constant_SBD = acts_SBD[:, :1].expand_as(acts_SBD)
    assert (linearised_fraction(constant_SBD) == 1).all()
    assert torch.equal(feature_rank(constant_SBD), (constant_SBD != 0).flatten(1).any(dim=1).float())


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_metrics_change_nothing_they_are_given_and_keep_no_graph(metric):
    acts_SBD = torch.relu(draw(3, 2, 6, 4)).requires_grad_()
    before = acts_SBD.detach().clone()
    assert not metric(acts_SBD).requires_grad
    assert torch.equal(acts_SBD.detach(), before)


# Norms and updates


def test_the_global_norm_is_the_root_sum_of_squares_of_the_tensors_norms():
    tensors = {"w": torch.tensor([[[3.0, 0.0]], [[1.0, 2.0]]]), "b": torch.tensor([[4.0], [2.0]])}
    flat_SP = torch.cat([t.flatten(1) for t in tensors.values()], dim=1)
    assert global_norm(flat_SP).tolist() == [5.0, 3.0]
    assert torch.equal(global_norm(torch.nn.functional.pad(flat_SP, (0, 61))), global_norm(flat_SP))


def test_the_effective_learning_rate_has_two_cases():
    norm_S = torch.tensor([2.0, 4.0])
    sgd = effective_learning_rate(0.1, norm_S, steps_are_normalised=False)
    adam = effective_learning_rate(torch.tensor(0.1), norm_S, steps_are_normalised=True)
    assert sgd.tolist() == pytest.approx([0.025, 0.00625])
    assert adam.tolist() == pytest.approx([0.05, 0.025])


def test_a_known_update_has_known_size_angle_and_parts():
    before, after = torch.tensor([[[2.0], [0.0]]]), torch.tensor([[[3.0], [1.0]]])
    assert relative_update(before, after).item() == pytest.approx(math.sqrt(2) / 2)
    assert rotation_angle(before, after).item() == pytest.approx(math.atan(1 / 3))
    assert update_parts(before, after) == (torch.tensor([1.0]), torch.tensor([1.0]))
    assert update_parts(before, 0.5 * before) == (torch.tensor([-1.0]), torch.tensor([0.0]))


@settings(max_examples=30)
@given(angle=st.floats(1e-6, math.pi - 1e-3), size=st.floats(0.01, 100.0), growth=st.floats(0.1, 10.0))
def test_the_rotation_angle_is_exact_at_every_size_and_blind_to_growth(angle, size, growth):
    before = size * torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
    after = growth * size * torch.tensor([[math.cos(angle), 0.0, math.sin(angle)]], dtype=torch.float64)
    assert rotation_angle(before, after).item() == pytest.approx(angle, rel=1e-7)


def test_a_tiny_rotation_of_float32_parameters_is_seen():
    before = draw(4, 1, 10_000)
    after = before + 1e-6 * draw(5, 1, 10_000)
    exact = rotation_angle(before.double(), after.double()).item()
    assert exact == pytest.approx(1e-6, rel=0.05)
    assert rotation_angle(before, after).item() == pytest.approx(exact, rel=1e-6)


@given(st.integers(0, 10**6))
def test_the_parts_of_an_update_make_up_its_size(num):
    before, step = draw(num, 3, 5, 7), 0.1 * draw(num + 1, 3, 5, 7)
    parts = update_parts(before, before + step)
    whole_S = torch.hypot(parts.radial, parts.tangential)
    assert torch.allclose(whole_S, relative_update(before, before + step) * global_norm(before), rtol=1e-4)


@given(st.integers(0, 10**6), st.integers(1, 300))
def test_norms_and_updates_of_a_seed_alone_equal_those_in_a_block(num, size):
    before, after = draw(num, 3, size), draw(num + 1, 3, size)
    parts = lambda a, b: torch.stack(update_parts(a, b), dim=1)  # noqa: E731
    for metric in (relative_update, rotation_angle, parts, lambda a, _: global_norm(a)):
        alone = torch.cat([metric(before[i : i + 1].clone(), after[i : i + 1].clone()) for i in range(3)])
        assert torch.equal(metric(before, after), alone)


def test_a_diverged_seeds_norms_are_not_finite_and_leave_the_others_alone():
    before, after = draw(6, 2, 9), draw(7, 2, 9)
    broken = after.clone()
    broken[1, 4] = math.nan
    for metric in (relative_update, rotation_angle, lambda a, b: update_parts(a, b).tangential):
        found = metric(before, broken)
        assert math.isnan(found[1].item())
        assert found[0] == metric(before, after)[0]


def test_the_jacobian_norm_of_a_linear_map_is_the_frobenius_norm_of_its_matrix():
    matrices_SDK = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    inputs_SBD = torch.randn(3, 7, 5, generator=torch.Generator().manual_seed(1))
    found_S = plasticity.jacobian_norm(lambda x: torch.bmm(x, matrices_SDK), inputs_SBD)
    assert torch.allclose(found_S, torch.linalg.matrix_norm(matrices_SDK), rtol=1e-6)


def test_the_jacobian_norm_agrees_with_autograd_jacobian_on_a_network_and_takes_a_root_mean_square():
    weight = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    inputs = torch.randn(1, 6, 4, generator=torch.Generator().manual_seed(1))

    def forward(x):
        return torch.tanh(x @ weight)

    slopes = [torch.autograd.functional.jacobian(forward, x.view(1, 1, 4)).norm() for x in inputs[0]]
    expected = torch.stack(slopes).square().mean().sqrt()
    assert torch.allclose(plasticity.jacobian_norm(forward, inputs), expected.view(1), rtol=1e-5)
