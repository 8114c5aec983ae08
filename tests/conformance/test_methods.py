"""Each method against a trace that can be computed by hand, and stacks that cannot be."""

from __future__ import annotations

import math

import pytest
import torch

from nap_bench.methods import METHODS, parse_stack, stack_of
from nap_bench.models.roles import Role, roles
from nap_bench.optimizers import SGD, Adam
from nap_bench.spec import ModelSpec, Part
from nap_bench.state import build

NEURAL = ModelSpec(family="mlp", size=(("widths", (4, 3)),))


def made(stack: str, optimizer=None):
    methods = stack_of(parse_stack(stack))
    state = build(methods.transform_model(NEURAL), Part.of(optimizer or SGD()), (0, 1), ((5,), 2), "cpu")
    methods.setup(state)
    return state, {method.name: method for method in methods}


def test_nap_divides_by_the_frobenius_norm_and_multiplies_by_the_initial_one():
    state, methods = made("nap")
    weight = state.params["linears.1.weight"].detach()
    direction = weight / torch.linalg.vector_norm(weight, dim=(1, 2), keepdim=True)
    rho = torch.linalg.vector_norm(weight, dim=(1, 2))
    head = state.params["output.weight"].detach().clone()
    weight.mul_(torch.tensor([3.0, 0.2]).view(2, 1, 1))
    methods["nap"].after_step(state)
    assert torch.allclose(weight, direction * rho.view(2, 1, 1), rtol=1e-6)
    assert torch.equal(state.params["output.weight"], head)


def test_nap_projects_a_layer_as_a_whole_and_not_each_neuron():
    state, methods = made("nap")
    weight = state.params["linears.0.weight"].detach()
    weight[:, :, 0] *= 5.0
    ratio = (weight[:, :, 0].norm(dim=1) / weight[:, :, 1].norm(dim=1)).clone()
    methods["nap"].after_step(state)
    assert torch.allclose(weight[:, :, 0].norm(dim=1) / weight[:, :, 1].norm(dim=1), ratio, rtol=1e-5)


@pytest.mark.parametrize(
    ("stack", "scale", "offset"),
    [
        ("nap", 3.0, 4.0),
        ("nap(scale_offset='decay', decay=0.9)", 0.9 * 3.0 + 0.1, 0.9 * 4.0),
        ("nap(scale_offset='joint')", 3.0 / 5.0, 4.0 / 5.0),
    ],
)
def test_scale_and_offset_follow_the_declared_policy(stack, scale, offset):
    state, methods = made(stack)
    state.params["norms.0.scale"].detach().fill_(3.0)
    state.params["norms.0.offset"].detach().fill_(4.0)
    methods["nap"].after_step(state)  # joint: (3, 4) has norm 5 sqrt(D), its target is sqrt(D)
    assert torch.allclose(state.params["norms.0.scale"], torch.tensor(scale))
    assert torch.allclose(state.params["norms.0.offset"], torch.tensor(offset))


def test_the_joint_policy_leaves_scale_and_offset_as_they_start():
    state, methods = made("nap(scale_offset='joint')")
    methods["nap"].after_step(state)
    assert torch.allclose(state.params["norms.1.scale"], torch.ones(2, 3))
    assert state.params["norms.1.offset"].abs().max() == 0


def test_nap_drops_the_biases_in_front_of_norms_and_projection_only_keeps_them():
    with_norm, without = made("nap")[0], made("nap(norm='none')")[0]
    biases = {name for name, role in without.roles.items() if role is Role.BIAS}
    assert biases == {"linears.0.bias", "linears.1.bias", "output.bias"}
    assert {name for name, role in with_norm.roles.items() if role is Role.BIAS} == {"output.bias"}
    assert all(not group.scale_invariant for group in without.groups)


def test_weight_decay_shrinks_weights_by_lr_times_coef_and_nothing_else():
    state, methods = made("layer_norm+weight_decay(coef=0.5)")
    state.lr.fill_(0.2)
    before = {name: p.detach().clone() for name, p in state.params.items()}
    methods["weight_decay"].after_step(state)
    for name, role in state.roles.items():
        factor = 0.9 if role in (Role.WEIGHT, Role.OUTPUT) else 1.0
        assert torch.allclose(state.params[name], before[name] * factor)


def test_optimizer_reset_forgets_moments_and_step_count():
    state, methods = made("optimizer_reset", Adam())
    fresh = {name: tensor.clone() for name, tensor in state.optimizer.memory.items()}
    assert set(fresh) == {"exp_avg", "exp_avg_sq", "step"}
    state.flat.grad.normal_()
    state.optimizer.step()
    assert not any(torch.equal(state.optimizer.memory[name], tensor) for name, tensor in fresh.items())
    methods["optimizer_reset"].on_task_boundary(state, 1)
    assert all(torch.equal(state.optimizer.memory[name], tensor) for name, tensor in fresh.items())


@pytest.mark.parametrize(
    ("stack", "reason"),
    [
        ("nap+layer_norm", "both set the model's 'norm'"),
        ("layer_norm+rms_norm", "both set the model's 'norm'"),
        ("nap+nap", "twice"),
        ("nap(norm='none', scale_offset='decay')", "nothing to act on"),
    ],
)
def test_an_impossible_stack_says_why(stack, reason):
    from nap_bench.experiments.arms import entry

    run = entry("laptop", "baseline", {}, seeds=(0,)).run
    methods = stack_of(parse_stack(stack))
    assert reason in methods.why_not(run)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("napp", "Did you mean 'nap'"),
        ("nap(perod=3)", "Did you mean 'period'"),
        ("nap+", "Cannot read the stack"),
        ("weight_decay(0.5)", "Cannot read the stack"),
        ("nap(**{})", "Cannot read the stack"),
        ("nap(decay=x)", "Cannot read the stack"),
        ("nap(period=2.5)", "period of type int; found 2.5"),
        ("nap(head=1)", "head of type bool; found 1"),
        ("weight_decay(coef=None)", "coef of type float"),
        ("nap(norm='batsh')", "norm of nap"),
        ("nap(period=0)", "period >= 1"),
        ("weight_decay(coef=-1)", "coef >= 0"),
    ],
)
def test_a_stack_that_cannot_be_read_is_refused_with_the_nearest_name(text, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        parse_stack(text)


def test_a_parameter_of_an_unknown_module_raises_instead_of_being_guessed():
    with pytest.raises(ValueError, match="No role for parameter 'weight' of Linear"):
        roles(torch.nn.Sequential(torch.nn.Linear(2, 2)))


def test_every_method_states_its_source_and_every_parameter():
    import dataclasses

    for name, method in METHODS.items():
        assert method.__doc__ and method.name == name
        for field in dataclasses.fields(method):
            assert field.name in method.__doc__, f"{name}: {field.name} is not documented"


def test_initial_weights_are_as_pytorch_draws_them_and_scale_with_init_scale():
    wide = ModelSpec(family="mlp", size=(("widths", (256, 256)),), init_scale=2.0)
    state = build(wide, Part.of(SGD()), (0,), ((64,), 10), "cpu")
    weight = state.params["linears.0.weight"]
    bound = 2.0 / math.sqrt(64)
    assert 0.99 * bound < weight.abs().max() <= bound
    assert math.isclose(weight.std().item(), bound / math.sqrt(3), rel_tol=0.02)
    assert state.params["output.weight"].abs().max() <= 1 / math.sqrt(256)
