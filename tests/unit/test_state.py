"""What methods see of a state: units and their views, roles as a mask, noise; and the norms, against PyTorch's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nap_bench.models.roles import Role
from nap_bench.optimizers import Adam
from nap_bench.spec import ModelSpec, Part
from nap_bench.state import build

SHAPES = ((3, 8, 8), 5)
MLP = dict(family="mlp", size=(("widths", (6, 4)),))
CNN = dict(family="cnn", size=(("channels", (4, 6)), ("kernel", 3), ("pool_after", (0,)), ("widths", (8,))))
VALID = dict(CNN, size=(*CNN["size"], ("padding", 0)))
"""Without padding: maps shrink."""


def make(model, seeds=(0, 1), **edits):
    return build(ModelSpec(**model, **edits), Part.of(Adam()), seeds, SHAPES, "cpu")


@pytest.mark.parametrize("activation", ["relu", "crelu"])
@pytest.mark.parametrize("model", [MLP, CNN, VALID], ids=["mlp", "cnn", "valid"])
def test_cutting_a_units_outgoing_weights_makes_its_activation_irrelevant_and_only_its(model, activation):
    state = make(model, activation=activation)
    inputs = torch.randn(2, 3, *SHAPES[0], generator=torch.Generator().manual_seed(0))
    for units in state.units:
        for name in units.outgoing:
            state.by_unit(units, name)[:, 1] = 0.0
        before = state.forward(inputs)
        for name in units.incoming:  # whatever unit 1 computes now, nobody reads it
            state.by_unit(units, name)[:, 1] = 7.0
        assert torch.equal(state.forward(inputs), before)
        for name in units.incoming:
            state.by_unit(units, name)[:, 2] = 7.0
        assert not torch.equal(state.forward(inputs), before)


@pytest.mark.parametrize("model", [MLP, CNN, VALID], ids=["mlp", "cnn", "valid"])
def test_incoming_parameters_of_a_unit_are_what_its_activation_depends_on(model):
    state = make(model, norm="layer")
    inputs = torch.randn(2, 3, *SHAPES[0], generator=torch.Generator().manual_seed(0))
    for units in state.units:
        state.by_unit(units, units.norm[0])[:, 1] = 0.0  # scale
        state.by_unit(units, units.norm[1])[:, 1] = 3.0  # offset
        acts: dict = {}
        state.forward(inputs, acts)
        assert (acts[units.name][:, :, 1] == 3.0).all() and not (acts[units.name][:, :, 2] == 3.0).any()
        assert acts[units.name].shape[2] == units.size * units.features


def test_a_view_by_unit_serves_moments_and_fresh_draws_too():
    state = make(CNN)
    for units in state.units:
        for name in (*units.incoming, *units.outgoing):
            wanted = state.by_unit(units, name)
            assert (
                state.by_unit(units, name, state.fresh(name)).shape
                == wanted.shape
                == (2, units.size, *wanted.shape[2:])
            )
            assert torch.equal(state.by_unit(units, name, state.fresh(name)), wanted)  # as it was initialised


def test_roles_as_a_mask_cover_every_parameter_once():
    state = make(CNN, norm="layer")
    masks = [state.of_roles(role) for role in Role]
    assert torch.equal(torch.stack(masks).sum(dim=0), torch.ones(state.num_parameters, dtype=torch.int64))
    assert state.of_roles(Role.SCALE).sum() == 4 + 6 + 8
    assert torch.equal(state.of_roles(Role.SCALE, Role.OFFSET), masks[3] | masks[4])


def test_noise_is_a_pure_function_of_seed_purpose_and_step_and_standard_normal():
    state, alone = make(CNN, seeds=(3, 5)), make(CNN, seeds=(5,))
    first = state.normal("a").clone()
    assert torch.equal(alone.normal("a")[0], first[1])
    assert not torch.equal(state.normal("b"), first)
    assert torch.equal(state.normal("a"), first)
    state.step += 1
    assert not torch.equal(state.normal("a"), first)
    assert first.shape == (2, state.num_parameters)
    assert abs(first.mean()) < 0.05 and abs(first.std() - 1) < 0.05


def test_values_are_the_parameters_and_editing_them_edits_the_network():
    state = make(MLP)
    state.values.zero_()
    assert all((parameter == 0).all() for parameter in state.params.values())


@pytest.mark.parametrize("model", [MLP, CNN], ids=["mlp", "cnn"])
def test_batch_norm_is_pytorchs_seed_by_seed_in_training_and_in_evaluation(model):
    state = make(model, norm="batch")
    h = torch.randn(2, 16, 6, *([4, 4] if model is CNN else []), generator=torch.Generator().manual_seed(0)) * 3 + 1
    ours = state.model.norms[1] if model is CNN else state.model.norms[0]
    theirs = [(nn.BatchNorm2d if model is CNN else nn.BatchNorm1d)(6, eps=1e-5) for _ in range(2)]
    for training in (True, True, False):
        out = ours.train(training)(h)
        for index, norm in enumerate(theirs):
            assert torch.allclose(out[index], norm.train(training)(h[index]), atol=1e-5)
    for index, norm in enumerate(theirs):
        assert torch.allclose(ours.running_mean[index], norm.running_mean, atol=1e-6)
        assert torch.allclose(ours.running_var[index], norm.running_var, atol=1e-5)


def test_batch_norms_statistics_belong_to_the_checkpoint_and_evaluation_leaves_them():
    state = make(MLP, norm="batch")
    inputs = torch.randn(2, 16, *SHAPES[0], generator=torch.Generator().manual_seed(0))
    start = {name: buffer.clone() for name, buffer in state.buffers.items()}
    state.forward(inputs)
    assert all(torch.equal(state.buffers[name], value) for name, value in start.items())
    state.forward(inputs, training=True)
    assert not any(torch.equal(state.buffers[name], value) for name, value in start.items())
    other = make(MLP, norm="batch")
    other.load_state_dict(state.state_dict())
    assert torch.equal(other.forward(inputs), state.forward(inputs))


def test_batch_norm_refuses_a_batch_of_one():
    with pytest.raises(ValueError, match="more than one example"):
        make(MLP, norm="batch").forward(torch.zeros(2, 1, *SHAPES[0]), training=True)


@pytest.mark.parametrize("model", [MLP, CNN], ids=["mlp", "cnn"])
def test_group_norm_is_pytorchs(model):
    state = make(model, norm="group", norm_groups=2)
    h = torch.randn(2, 7, 6, *([4, 4] if model is CNN else []), generator=torch.Generator().manual_seed(0)) * 3 + 1
    ours = state.model.norms[1] if model is CNN else state.model.norms[0]
    for index in range(2):
        assert torch.allclose(ours(h)[index], nn.GroupNorm(2, 6, eps=1e-5)(h[index]), atol=1e-5)


def test_group_norm_refuses_a_layer_that_it_cannot_divide():
    with pytest.raises(ValueError, match="multiple of norm_groups=4.*a layer of 6"):
        make(MLP, norm="group")


def test_he_initialisation_knows_the_slope_of_a_leaky_relu():
    plain, leaky = make(MLP, init="he"), make(MLP, init="he", activation="leaky_relu", negative_slope=0.5)
    assert torch.allclose(leaky.params["linears.0.weight"] * (1 + 0.5**2) ** 0.5, plain.params["linears.0.weight"])
    assert torch.equal(leaky.params["output.weight"], plain.params["output.weight"])
