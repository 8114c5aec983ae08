"""Unit metrics beyond the paper's: known answers, slow references written as their definitions read, and null tests."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist, squareform
from scipy.stats import entropy

from nap_bench.metrics import norms, plasticity

UNIT_METRICS = {
    "zero_entry": plasticity.zero_entry_fraction,
    "rarely_active": lambda acts: plasticity.rarely_active_fraction(acts, 0.2),
    "near_zero": lambda acts: plasticity.near_zero_fraction(acts, 0.3, 0.5),
    "duplicate": lambda acts: plasticity.duplicate_fraction(acts, 0.9),
    "saturated": lambda acts: plasticity.saturated_fraction(acts, 0.9),
    "sign_entropy": plasticity.unit_sign_entropy,
    "mean_shift": plasticity.preactivation_mean_shift,
    "example_norm": plasticity.example_norm,
}
SCALE_FREE = {"zero_entry", "rarely_active", "duplicate", "sign_entropy", "mean_shift"}


def draw(num, *shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(num), dtype=dtype)


def layer(num=0, seeds=3, examples=40, units=12):
    """ReLU activations with a dead, a rare, a doubled and an always active unit among healthy ones."""
    acts = draw(num, seeds, examples, units)
    acts[:, :, 0] = -1.0
    acts[:, 3:, 1] = -1.0
    acts[:, :, 2] = acts[:, :, 2].abs() + 0.1
    acts[:, :, 3] = 2.0 * acts[:, :, 4]
    return acts.relu()


SLOW = {
    "zero_entry": lambda a: np.mean(a == 0),
    "rarely_active": lambda a: np.mean([(unit != 0).mean() < 0.2 for unit in a.T]),
    "near_zero": lambda a: np.mean([(abs(unit) < 0.3).mean() > 0.5 for unit in a.T]),
    "duplicate": lambda a: np.mean(_nearest(a) > 0.9),
    "saturated": lambda a: np.mean(abs(a) > 0.9),
    "sign_entropy": lambda a: np.mean([entropy([(u > 0).mean(), (u <= 0).mean()], base=2) for u in a.T]),
    "mean_shift": lambda a: np.sqrt(np.mean(a.mean(0) ** 2) / np.mean(a.var(0))),
    "example_norm": lambda a: np.mean([np.sqrt((row**2).sum()) for row in a]),
}


def _nearest(acts):
    """Largest cosine of each unit with another one; -1 for a unit without direction."""
    alive = np.flatnonzero((acts != 0).any(axis=0))
    cosines = 1.0 - squareform(pdist(acts.T[alive], "cosine"))
    np.fill_diagonal(cosines, -1.0)
    found = np.full(acts.shape[1], -1.0)
    found[alive] = cosines.max(axis=1)
    return found


@pytest.mark.parametrize("name", UNIT_METRICS)
@pytest.mark.parametrize("num", range(3))
def test_a_metric_agrees_with_its_definition_written_out_in_numpy(name, num):
    acts_SBD = layer(num)
    found = UNIT_METRICS[name](acts_SBD)
    assert found.dtype == torch.float32 and found.shape == (3,)
    wanted = [SLOW[name](acts.double().numpy()) for acts in acts_SBD]
    assert np.allclose(found, wanted, rtol=1e-5)


@pytest.mark.parametrize("name", UNIT_METRICS)
def test_the_order_of_units_and_of_examples_does_not_matter(name):
    acts_SBD = layer()
    gen = torch.Generator().manual_seed(1)
    shuffled = acts_SBD[:, torch.randperm(40, generator=gen)][:, :, torch.randperm(12, generator=gen)]
    assert torch.allclose(UNIT_METRICS[name](shuffled), UNIT_METRICS[name](acts_SBD), rtol=1e-6)


@pytest.mark.parametrize("name", UNIT_METRICS)
@pytest.mark.parametrize("scale", [2.0**-9, 2.0**9])
def test_scale_matters_only_where_the_definition_says_so(name, scale):
    before, after = (UNIT_METRICS[name](acts) for acts in (layer(), scale * layer()))
    assert torch.equal(before, after) == (name in SCALE_FREE)


@pytest.mark.parametrize("name", UNIT_METRICS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_diverged_seed_is_nan_and_the_others_are_as_they_are_alone(name, bad):
    acts_SBD = layer()
    acts_SBD[1, 5, 7] = bad
    found = UNIT_METRICS[name](acts_SBD)
    assert math.isnan(found[1])
    for index in (0, 2):
        assert torch.equal(found[index : index + 1], UNIT_METRICS[name](acts_SBD[index : index + 1].clone()))


@pytest.mark.parametrize("name", UNIT_METRICS)
def test_a_feature_map_is_one_unit_seen_on_every_pixel(name):
    acts_SBCHW = layer(2, 2, 40, 6).unflatten(1, (10, 2, 2)).permute(0, 1, 4, 2, 3)
    flat_SBD = acts_SBCHW.permute(0, 1, 3, 4, 2).flatten(1, 3)
    if name == "example_norm":  # an example is then all of its maps
        flat_SBD = acts_SBCHW.flatten(2)
    assert torch.allclose(UNIT_METRICS[name](acts_SBCHW), UNIT_METRICS[name](flat_SBD), rtol=1e-6)


def test_a_random_relu_network_has_no_degenerate_units():
    pre_SBD = draw(0, 4, 2000, 32)
    acts_SBD = pre_SBD.relu()
    zeros = torch.zeros(4)
    assert torch.allclose(plasticity.zero_entry_fraction(acts_SBD), zeros + 0.5, atol=0.02)
    for metric in (
        plasticity.rarely_active_fraction,
        plasticity.near_zero_fraction,
        plasticity.duplicate_fraction,
    ):
        assert torch.equal(metric(acts_SBD), zeros)
    assert (plasticity.unit_sign_entropy(pre_SBD) > 0.999).all()
    assert (plasticity.preactivation_mean_shift(pre_SBD) < 0.05).all()


def test_on_a_constant_input_every_unit_is_linear_and_all_active_units_are_duplicates():
    acts_SBD = draw(1, 2, 1, 20).relu().expand(2, 50, 20)
    alive = (acts_SBD[:, 0] > 0).float().mean(dim=1)
    assert torch.equal(plasticity.unit_sign_entropy(acts_SBD), torch.zeros(2))
    assert torch.equal(plasticity.duplicate_fraction(acts_SBD), alive)
    assert torch.allclose(plasticity.zero_entry_fraction(acts_SBD), 1 - alive)
    assert torch.equal(plasticity.preactivation_mean_shift(acts_SBD), torch.full((2,), math.inf))


def test_post_activations_of_a_relu_have_the_sign_entropy_of_what_it_was_given():
    pre_SBD = draw(2, 2, 60, 9) - 0.3
    assert torch.equal(plasticity.unit_sign_entropy(pre_SBD), plasticity.unit_sign_entropy(pre_SBD.relu()))


def test_a_unit_that_is_on_for_a_quarter_of_examples_has_the_entropy_of_a_quarter():
    pre_SBD = torch.tensor([[[1.0], [-1.0], [-2.0], [-1.0]]])
    assert plasticity.unit_sign_entropy(pre_SBD).item() == pytest.approx(
        -0.25 * math.log2(0.25) - 0.75 * math.log2(0.75)
    )


def test_a_mirrored_unit_is_no_duplicate_and_a_scaled_one_is():
    unit = draw(3, 30)
    acts_SBD = torch.stack([unit, -unit, draw(4, 30), torch.zeros(30)], dim=1).unsqueeze(0)
    assert plasticity.duplicate_fraction(acts_SBD).item() == 0.0
    acts_SBD[0, :, 3] = 7.0 * unit
    assert plasticity.duplicate_fraction(acts_SBD).item() == 0.5


def test_rarely_active_with_the_share_of_one_example_is_dead():
    acts_SBD = layer()
    assert torch.equal(plasticity.rarely_active_fraction(acts_SBD, 1 / 40), plasticity.dead_fraction(acts_SBD))


def test_gradient_saturation_sees_units_that_pass_no_gradient_and_leaves_dead_ones_out():
    acts_SBD = torch.tensor([[[5.0, 1.0, 0.0], [5.0, 1.0, 0.0]]])
    gradients_SBD = torch.tensor([[[1e-5, 0.1, 0.0], [1e-5, 0.1, 0.0]]])
    assert plasticity.gradient_saturated_fraction(acts_SBD, gradients_SBD).item() == pytest.approx(1 / 3)
    gradients_SBD[0, 1, 0] = 1.0  # one example of two still passes
    assert plasticity.gradient_saturated_fraction(acts_SBD, gradients_SBD).item() == 0.0
    assert plasticity.gradient_saturated_fraction(acts_SBD, gradients_SBD, 1e-4, 0.4).item() == pytest.approx(1 / 3)
    gradients_SBD[0, 0, 0] = math.nan
    assert math.isnan(plasticity.gradient_saturated_fraction(acts_SBD, gradients_SBD).item())


def test_one_step_plasticity_is_1_for_a_fit_in_one_step_and_0_for_no_help():
    before_S, after_S = torch.tensor([2.0, 2.0, 2.0, 0.0, math.nan]), torch.tensor([0.0, 0.5, 3.0, 0.0, 1.0])
    found = plasticity.one_step_plasticity(before_S, after_S)
    assert found[:4].tolist() == [1.0, 0.75, 0.0, 1.0] and math.isnan(found[4])


# Weights


def test_norms_of_weights_are_numpys():
    values_SP = draw(5, 3, 1000)
    wanted = values_SP.double().numpy()
    length = np.linalg.norm(wanted, axis=1)
    assert np.allclose(norms.mean_magnitude(values_SP), abs(wanted).mean(axis=1), rtol=1e-5)
    assert np.allclose(norms.root_mean_square(values_SP), np.sqrt((wanted**2).mean(axis=1)), rtol=1e-5)
    assert np.allclose(norms.norm_per_element(values_SP), length / 1000, rtol=1e-5)
    other = draw(6, 3, 1000)
    assert np.allclose(
        norms.distance(values_SP, other), np.linalg.norm(wanted - other.double().numpy(), axis=1), rtol=1e-5
    )


def test_the_fraction_of_zero_gradients_counts_exact_zeros_and_is_nan_for_a_diverged_seed():
    gradient_SP = torch.tensor([[0.0, -0.0, 1e-30, 2.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, math.nan]])
    found = norms.zero_fraction(gradient_SP)
    assert found[:2].tolist() == [0.5, 0.0] and math.isnan(found[2])
