"""Rainbow's network: its size, its noise, its heads, and what methods see of it."""

from __future__ import annotations

import math

import pytest
import torch

from nap_bench.methods import parse_stack, stack_of
from nap_bench.models.blocks import NoisyLinear
from nap_bench.models.roles import Role
from nap_bench.optimizers import Adam
from nap_bench.spec import ModelSpec, Part
from nap_bench.state import build

NATURE = dict(channels=(32, 64, 64), kernels=(8, 4, 3), strides=(4, 2, 1), hidden=512, atoms=51, sigma=0.1)
SMALL = dict(channels=(4, 6), kernels=(3, 2), strides=(2, 1), hidden=8, atoms=5, sigma=0.1)
FLAT = dict(channels=(), kernels=(), strides=(), hidden=8, atoms=5, sigma=0.1)
SIZES = {"small": SMALL, "flat": FLAT}
SHAPES = ((2, 9, 8), 3)


def make(size=SMALL, stack="baseline", seeds=(0, 1), shapes=SHAPES, device="cpu", precision="fp32", **edits):
    """A state with its methods set up, and the methods."""
    methods = stack_of(parse_stack(stack))
    spec = methods.transform_model(ModelSpec(family="rainbow", size=tuple(size.items()), **edits))
    state = build(spec, Part.of(Adam(clip_norm=10.0)), tuple(seeds), shapes, device, precision)
    state.lr.fill_(0.01)
    methods.setup(state)
    return state, methods


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def inputs_of(state, num_examples=4):
    return normal(len(state.seeds), num_examples, *state.shapes[0])


def noise_of(state, num_draws=1):
    return normal(len(state.seeds), num_draws, state.model.num_noise, seed=1)


def test_the_nature_network_has_as_many_parameters_as_its_closed_form():
    actions, atoms, hidden, features = 18, 51, 512, 64 * 7 * 7
    convs = sum(i * o * k * k + o for i, o, k in ((4, 32, 8), (32, 64, 4), (64, 64, 3)))
    weights = 2 * features * hidden + hidden * (actions + 1) * atoms
    means, noise = weights + 2 * hidden, weights + 2 * hidden + (actions + 1) * atoms
    state, _ = make(NATURE, shapes=((4, 84, 84), actions), device="meta", seeds=(0,))
    assert (convs, means, noise) == (77_984, 3_708_416, 3_709_385)
    assert state.num_parameters == convs + means + noise == 7_495_785
    assert count(state, Role.NOISE) == noise
    assert state.model.num_noise == 2 * (features + hidden + hidden) + (actions + 1) * atoms
    normed, _ = make(NATURE, "layer_norm", shapes=((4, 84, 84), actions), device="meta", seeds=(0,))
    units = 32 + 64 + 64 + 2 * hidden
    assert normed.num_parameters == state.num_parameters - units + 2 * units  # a bias each; a scale and an offset each
    assert count(normed, Role.BIAS) == 0 and count(normed, Role.NOISE) == noise


def count(state, role: Role) -> int:
    return sum(math.prod(shape[1:]) for name, (_, shape) in state.views.items() if state.roles[name] is role)


def test_everything_starts_uniformly_but_the_noise_which_starts_at_its_sigma():
    state, _ = make(NATURE, shapes=((4, 36, 36), 3), seeds=(0,))
    for name, parameter in state.params.items():
        fan_in = {"convs.0": 256, "convs.1": 512, "convs.2": 576}.get(name[:7])
        fan_in = fan_in or (512 if "output" in name else 64)
        bound = 1 / math.sqrt(fan_in)
        if state.roles[name] is Role.NOISE:
            assert torch.allclose(parameter, torch.tensor(0.1 * bound)), name
            continue
        assert 0.9 * bound < parameter.abs().max() <= bound, name
        assert abs(parameter.mean()) < 0.3 * bound, name
    std_P = state.initial_std()
    assert (std_P[state.of_roles(Role.NOISE)] == 0).all() and (std_P[~state.of_roles(Role.NOISE)] > 0).all()


@pytest.mark.parametrize("stack", ["baseline", "nap"])
def test_the_final_layers_have_no_bias_but_that_of_the_noise(stack):
    state, _ = make(stack=stack)
    leaves = {layer: {n.split(".")[1] for n in state.params if n.startswith(f"{layer}.")} for layer in vars_of(state)}
    for layer in ("advantage_output", "value_output"):
        assert leaves[layer] == {"weight", "noise_weight", "noise_bias"}
        assert state.roles[f"{layer}.weight"] is Role.OUTPUT
    hidden = {"weight", "noise_weight", "noise_bias"} | ({"bias"} if stack == "baseline" else set())
    assert leaves["advantage"] == leaves["value"] == hidden


def vars_of(state) -> set[str]:
    return {name.split(".")[0] for name in state.params}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("num_draws", [1, 4])
def test_a_noisy_layer_is_its_definition_entry_by_entry(bias, num_draws):
    layer = NoisyLinear(2, 3, 5, bias=bias, init="torch", sigma=0.1)
    values = {
        name: normal(*parameter.shape, seed=index) for index, (name, parameter) in enumerate(layer.named_parameters())
    }
    for name, value in values.items():
        layer._parameters[name] = torch.nn.Parameter(value)
    x, e_in, e_out = normal(2, 4, 3, seed=7), normal(2, num_draws, 3, seed=8), normal(2, num_draws, 5, seed=9)
    found = layer(x, e_in, e_out).detach()
    for s in range(2):
        for b in range(4):
            row = b if num_draws > 1 else 0
            for o in range(5):
                wanted = float(values["noise_bias"][s, o] * e_out[s, row, o])
                wanted += float(values["bias"][s, o]) if bias else 0.0
                for i in range(3):
                    noise = values["noise_weight"][s, i, o] * e_in[s, row, i] * e_out[s, row, o]
                    wanted += float(x[s, b, i] * (values["weight"][s, i, o] + noise))
                assert float(found[s, b, o]) == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("stack", ["baseline", "layer_norm"])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_the_same_draw_perturbs_weights_as_it_perturbs_rows(size, stack):
    state, _ = make(size, stack)
    inputs, noise = inputs_of(state), noise_of(state)
    by_weights = state.forward(inputs, noise=noise)
    assert torch.allclose(by_weights, state.forward(inputs, noise=noise.expand(-1, 4, -1)), atol=1e-5)
    assert not torch.allclose(by_weights, state.forward(inputs, noise=-noise), atol=1e-3)


def test_each_row_has_its_own_noise_and_no_other():
    state, _ = make()
    inputs, noise = inputs_of(state), noise_of(state, 4)
    together = state.forward(inputs, noise=noise)
    for row in range(4):
        alone = state.forward(inputs[:, row : row + 1], noise=noise[:, row : row + 1])
        assert torch.allclose(together[:, row : row + 1], alone, atol=1e-5)


def test_noise_has_mean_zero_and_the_variance_of_factorised_noise():
    layer = NoisyLinear(1, 6, 4, bias=False, init="torch", sigma=0.1)
    for seed, (name, parameter) in enumerate(layer.named_parameters()):
        layer._parameters[name] = torch.nn.Parameter(normal(*parameter.shape, seed=seed), requires_grad=False)
    draws, x = 200_000, normal(1, 1, 6, seed=9)
    e_in, e_out = (normal(1, draws, n, seed=n).sign() * normal(1, draws, n, seed=n).abs().sqrt() for n in (6, 4))
    noisy = layer(x.expand(1, draws, 6), e_in, e_out)[0] - torch.bmm(x, layer.weight)[0]
    second = math.sqrt(2 / math.pi)  # E f(e)^2 = E|e|
    wanted = second**2 * (x[0].T * layer.noise_weight[0]).square().sum(dim=0) + second * layer.noise_bias[0].square()
    assert torch.allclose(noisy.var(dim=0), wanted, rtol=0.03)
    assert (noisy.mean(dim=0).abs() < 5 * (wanted / draws).sqrt()).all()


def test_dueling_leaves_the_value_as_the_mean_over_actions():
    state, _ = make()
    inputs, noise = inputs_of(state), noise_of(state)
    with torch.no_grad():
        state.params["value_output.weight"].zero_()
        state.params["value_output.noise_weight"].zero_()
        state.params["value_output.noise_bias"].zero_()
        advantage = state.forward(inputs, noise=noise)
        assert advantage.shape == (2, 4, 3, 5)
        assert torch.allclose(advantage.mean(dim=2), torch.zeros(2, 4, 5), atol=1e-6)
        assert advantage.abs().max() > 0.01
        state.params["value_output.noise_bias"].fill_(1.0)
        moved = state.forward(inputs, noise=noise) - advantage
    assert torch.allclose(moved, noise[:, :, -5:].unsqueeze(2).expand_as(moved), atol=1e-6)


@pytest.mark.parametrize("activation", ["relu", "crelu"])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_cutting_a_units_outgoing_weights_makes_its_activation_irrelevant_and_only_its(size, activation):
    state, _ = make(size, activation=activation)
    inputs, noise = inputs_of(state), noise_of(state)
    for units in state.units:
        for name in units.outgoing:
            state.by_unit(units, name)[:, 1] = 0.0
        before = state.forward(inputs, noise=noise)
        for name in units.incoming:
            state.by_unit(units, name)[:, 1] = 7.0
        assert torch.equal(state.forward(inputs, noise=noise), before)
        for name in units.incoming:
            state.by_unit(units, name)[:, 2] = 7.0
        assert not torch.equal(state.forward(inputs, noise=noise), before)


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_incoming_parameters_of_a_unit_are_what_its_activation_depends_on(size):
    state, _ = make(size)
    for units in state.units:
        for name in units.incoming:
            state.by_unit(units, name)[:, 1] = 0.0
        acts: dict = {}
        state.forward(inputs_of(state), acts, noise=noise_of(state))
        assert list(acts) == [u.name for u in state.units]
        assert (acts[units.name][:, :, 1] == 0.0).all() and not (acts[units.name][:, :, 2] == 0.0).all()
        assert acts[units.name].shape[2] == units.size


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_a_view_by_unit_serves_fresh_draws_of_means_and_noise(size):
    state, _ = make(size)
    for units in state.units:
        for name in (*units.incoming, *units.outgoing):
            wanted = state.by_unit(units, name)
            assert wanted.shape[:2] == (2, units.size)
            assert torch.equal(state.by_unit(units, name, state.fresh(name)), wanted)


def test_groups_hold_means_and_noise_together_and_final_layers_are_told_by_their_role():
    state, _ = make(stack="layer_norm")
    groups = {group.name: group for group in state.groups}
    assert list(groups) == ["layer0", "layer1", "advantage", "value", "advantage_output", "value_output"]
    assert [group.scale_invariant for group in state.groups] == [True] * 4 + [False] * 2
    for head in ("advantage", "value", "advantage_output", "value_output"):
        members = [f"{head}.{leaf}" for leaf in ("weight", "noise_weight", "noise_bias")]
        assert list(groups[head].members) == members
        joint = torch.cat([state.params[name].detach().flatten(1) for name in members], dim=1).norm(dim=1)
        assert torch.allclose(state.group_norm(groups[head]), joint, rtol=1e-6)
    grouped = {name for group in state.groups for name in group.members}
    assert {state.roles[name] for name in state.params if name not in grouped} == {Role.SCALE, Role.OFFSET}
    assert not any(group.scale_invariant for group in make()[0].groups)


@pytest.mark.parametrize("norm", ["layer", "rms", "group"])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_outputs_do_not_change_when_a_scale_invariant_group_is_rescaled_as_one(size, norm):
    state, _ = make(size, norm=norm, norm_groups=2, norm_eps=1e-9)
    inputs, noise = inputs_of(state), noise_of(state)
    before = state.forward(inputs, noise=noise).detach()
    for group in state.groups:
        state.params[group.members[-1]].detach().mul_(10.0)
        if len(group.members) > 1 or not group.scale_invariant:
            assert not torch.allclose(state.forward(inputs, noise=noise), before, rtol=1e-4, atol=1e-5), group.name
        for name in group.members[:-1]:
            state.params[name].detach().mul_(10.0)
        now = state.forward(inputs, noise=noise)
        assert torch.allclose(now, before, rtol=1e-4, atol=1e-5) == group.scale_invariant, group.name
        for name in group.members:
            state.params[name].detach().div_(10.0)


def test_a_twin_is_the_network_over_other_parameters_and_follows_what_is_copied_into_them():
    state, _ = make(stack="nap")
    flat = state.flat.detach().clone()
    twin, inputs, noise = state.twin(flat), inputs_of(state), noise_of(state)
    before = state.forward(inputs, noise=noise).detach()
    assert torch.equal(twin(inputs, noise=noise), before)
    state.values.mul_(0.5)
    assert torch.equal(twin(inputs, noise=noise), before)
    flat.copy_(state.flat)
    assert torch.equal(twin(inputs, noise=noise), state.forward(inputs, noise=noise))
    assert not twin(inputs, noise=noise).requires_grad


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(kernels=(3,)), "as many kernels and strides as channels"),
        (dict(atoms=1), "atoms >= 2"),
        (dict(kernels=(3, 4), strides=(4, 1)), r"frames of \(9, 8\) has \(2, 2\) left where a kernel of 4 follows"),
    ],
)
def test_a_size_that_cannot_be_is_refused_with_its_numbers(changes, message):
    with pytest.raises(ValueError, match=message):
        make(SMALL | changes)


def test_crelu_keeps_a_share_of_the_hidden_units_too():
    state, _ = make(stack="crelu(keep=0.5)")
    assert [units.size for units in state.units] == [2, 3, 4, 4]
