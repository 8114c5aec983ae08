"""Methods that say what weights may be, and the one that freezes some: each against what can be computed by hand.

S seeds, O units, I inputs.
"""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch.nn import functional as F

from nap_bench import update
from nap_bench.experiments.arms import entry
from nap_bench.methods import METHODS, parse_stack, stack_of
from nap_bench.methods.parseval import orthogonal
from nap_bench.metrics import landscape
from nap_bench.models.roles import Role
from nap_bench.optimizers import SGD, Adam
from nap_bench.spec import ModelSpec, Part
from nap_bench.state import build

NETWORKS = {
    "mlp": (ModelSpec(family="mlp", size=(("widths", (6, 4)),)), ((5,), 3)),
    "cnn": (
        ModelSpec(family="cnn", size=(("channels", (3, 4)), ("kernel", 3), ("pool_after", (1,)), ("widths", (5,)))),
        ((1, 4, 4), 3),
    ),
    "rainbow": (
        ModelSpec(
            family="rainbow",
            size=(
                ("atoms", 5),
                ("channels", (3,)),
                ("hidden", 4),
                ("kernels", (2,)),
                ("sigma", 0.1),
                ("strides", (1,)),
            ),
        ),
        ((2, 3, 3), 3),
    ),
}


def made(stack: str, net="mlp", seeds=(0, 1), optimizer=None, precision="fp32", **edits):
    methods = stack_of(parse_stack(stack))
    spec, shapes = NETWORKS[net]
    spec = methods.transform_model(dataclasses.replace(spec, **edits))
    state = build(spec, Part.of(optimizer or Adam()), seeds, shapes, "cpu", precision)
    state.lr.fill_(0.01)
    methods.setup(state)
    return state, methods


def inputs_of(state, step: int = 0, batch: int = 6) -> torch.Tensor:
    drawn = [torch.Generator().manual_seed(1000 * seed + step) for seed in state.seeds]
    return torch.stack([torch.randn(batch, *state.shapes[0], generator=gen) for gen in drawn])


def given_to(state, step: int = 0) -> dict[str, torch.Tensor]:
    """What a network takes besides: noise, where layers are noisy."""
    if state.spec.family != "rainbow":
        return {}
    drawn = [torch.Generator().manual_seed(77 * seed + step) for seed in state.seeds]
    return {"noise": torch.stack([torch.randn(1, state.model.num_noise, generator=gen) for gen in drawn])}


def outputs(state, step: int = 0) -> torch.Tensor:
    return state.forward(inputs_of(state, step), **given_to(state, step)).detach()


def advance(state, methods, num_steps=1) -> None:
    """Train towards targets that depend on the step and the seed alone."""
    for _ in range(num_steps):
        out = update.forward(state, methods, inputs_of(state, state.step), **given_to(state, state.step)).flatten(2)
        targets = torch.stack([torch.randn(1, generator=torch.Generator().manual_seed(seed)) for seed in state.seeds])
        update.grad_step(state, [(out - targets.unsqueeze(1)).square().mean(dim=(1, 2))], methods)
        update.tail(state, methods)


def added(stack: str, net="mlp", **edits):
    """(state, what the stack adds to a gradient of zeros)."""
    state, methods = made(stack, net, precision="fp64", **edits)
    state.gradient.zero_()
    for method in methods:
        method.after_backward(state)
    return state, state.gradient.clone()


def autograd(state, penalty: torch.Tensor) -> torch.Tensor:
    """Its gradient, as `state.gradient` is laid out."""
    how = dict(allow_unused=True, materialize_grads=True)
    return torch.cat([g.flatten(1) for g in torch.autograd.grad(penalty, list(state.params.values()), **how)], dim=1)


def matrix(state, name: str) -> torch.Tensor:
    """[S, out, fan_in], with its graph."""
    weight = state.params[name]
    return weight.mT if weight.dim() == 3 else weight.flatten(2)


# spectral regularisation


@pytest.mark.parametrize("net", NETWORKS)
@pytest.mark.parametrize("k", [1, 2, 3])
def test_spectral_adds_the_gradient_of_its_penalty_with_exact_singular_values(net, k):
    state, found = added(f"layer_norm+spectral(coef=0.3, k={k})", net)
    for name, role in state.roles.items():
        if role in (Role.BIAS, Role.OFFSET, Role.SCALE):
            state.params[name].detach().add_(0.5)
    method, slots = stack_of(parse_stack(f"spectral(coef=0.3, k={k})")).methods[0], state.slots["spectral"]
    for name, v_S1R in slots.items():
        left, _, _ = torch.linalg.svd(method._matrix(state.params[name].detach()))
        v_S1R.copy_(left[:, :, :1].mT)
    state.gradient.zero_()
    method.after_backward(state)
    penalty = 0.0
    for name, role in state.roles.items():
        if role in (Role.WEIGHT, Role.OUTPUT):
            penalty = penalty + (torch.linalg.matrix_norm(matrix(state, name), ord=2) ** k - 1).square().sum()
        elif role in (Role.BIAS, Role.OFFSET):
            penalty = penalty + (state.params[name].square().sum(dim=1) ** k).sum()
        elif role is Role.SCALE:
            penalty = penalty + (state.params[name] - 1).square().sum()
    assert torch.allclose(state.gradient, autograd(state, 0.3 * penalty), rtol=1e-6, atol=1e-9)


def test_spectral_leaves_the_other_singular_values_alone():
    state, _ = added("spectral(coef=1.0)")
    weight = state.params["linears.0.weight"].detach()
    weight.copy_(torch.diag_embed(torch.tensor([[3.0, 2.0, 0.5, 0.2, 0.1]] * 2)).new_zeros(2, 5, 6))
    weight[:, range(5), range(5)] = torch.tensor([3.0, 2.0, 0.5, 0.2, 0.1], dtype=weight.dtype)
    method = stack_of(parse_stack("spectral(coef=1.0)")).methods[0]
    for _ in range(200):
        method._iterate(state, weight, state.slots["spectral"]["linears.0.weight"])
    state.gradient.zero_()
    method.after_backward(state)
    wanted = torch.zeros_like(weight)
    wanted[:, 0, 0] = 2 * 2 * (3.0**2 - 1) * 3.0  # 2 k (sigma^k - 1) sigma^(k - 1)
    assert torch.allclose(state.view(state.gradient, "linears.0.weight"), wanted, atol=1e-9)


def test_spectral_training_brings_every_layer_to_singular_value_one():
    state, methods = made("spectral(coef=0.05)", optimizer=SGD(), init_scale=3.0)
    state.lr.fill_(0.3)
    for _ in range(400):
        logits = update.forward(state, methods, inputs_of(state))
        update.grad_step(state, [0.0 * logits.sum(dim=(1, 2))], methods)
        update.tail(state, methods)
    for name, role in state.roles.items():
        if role in (Role.WEIGHT, Role.OUTPUT):
            assert torch.allclose(torch.linalg.matrix_norm(state.matrix(name), ord=2), torch.ones(2), atol=1e-2), name


def test_spectral_survives_weights_that_are_zero_throughout_and_finds_their_direction_again():
    state, methods = made("spectral")
    weight = state.params["output.weight"].detach()
    kept = weight.clone()
    weight.zero_()
    advance(state, methods)
    assert (
        state.flat.isfinite().all() and state.slots["spectral"]["output.weight"].norm(dim=2).sub(1).abs().max() < 1e-5
    )
    weight.copy_(kept)
    for _ in range(300):
        sigma, _ = methods.methods[0]._iterate(state, weight, state.slots["spectral"]["output.weight"])
    assert torch.allclose(sigma.flatten(), torch.linalg.matrix_norm(weight, ord=2), rtol=1e-4)


# Parseval regularisation


@pytest.mark.parametrize("net", NETWORKS)
def test_parseval_adds_the_gradient_of_its_penalty_whichever_side_is_longer(net):
    state, found = added("parseval(coef=0.3, scale=1.5, orthogonal=False)", net)
    hidden = [name for name, role in state.roles.items() if role is Role.WEIGHT]
    assert net != "mlp" or {state.matrix(n).shape[1] > state.matrix(n).shape[2] for n in hidden} == {True, False}
    penalty = 0.0
    for name in hidden:
        weight = matrix(state, name)
        gram = weight @ weight.mT - 1.5 * torch.eye(weight.shape[1], dtype=weight.dtype)
        penalty = penalty + 0.3 * (64 / weight.shape[1]) ** 2 * gram.square().sum()
    assert torch.allclose(found, autograd(state, penalty), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("net", NETWORKS)
def test_parseval_starts_at_orthogonal_hidden_weights_where_its_penalty_is_least(net):
    state, found = added("parseval(coef=0.3, scale=2.0)", net)
    drawn, _ = made("baseline", net, precision="fp64")
    for name, role in state.roles.items():
        if role is not Role.WEIGHT:
            assert torch.equal(state.params[name], drawn.params[name]), name
            continue
        weight = state.matrix(name)
        gram = weight @ weight.mT if weight.shape[1] <= weight.shape[2] else weight.mT @ weight
        assert torch.allclose(gram, 2.0 * torch.eye(len(gram[0]), dtype=gram.dtype).expand_as(gram), atol=1e-9)
    assert found.abs().max() < 1e-9


def test_the_orthogonal_factor_spans_what_was_drawn_and_is_unique():
    drawn = torch.randn(4, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    q = orthogonal(drawn)
    assert torch.allclose(q @ q.T, torch.eye(4, dtype=q.dtype)) and torch.allclose(drawn @ q.T @ q, drawn)
    assert (drawn @ q.T).diagonal().min() > 0 and torch.equal(orthogonal(drawn.T), q.T)


def test_parsevals_diagonal_is_a_learned_factor_that_starts_at_one():
    with_factor, plain = made("parseval(diagonal=True)")[0], made("parseval")[0]
    assert torch.allclose(outputs(with_factor), outputs(plain), rtol=1e-5)
    factors = [name for name, role in with_factor.roles.items() if role is Role.UNIT_SCALE]
    assert len(factors) == 3 and all(
        torch.equal(with_factor.params[n], torch.ones_like(with_factor.params[n])) for n in factors
    )


# weight clipping


@pytest.mark.parametrize("init", ["torch", "he"])
@pytest.mark.parametrize("net", NETWORKS)
def test_weight_clipping_bounds_weights_and_biases_by_kappa_times_their_initial_range(net, init):
    state, methods = made(
        "layer_norm+weight_clipping(kappa=1.5)" if net == "cnn" else "weight_clipping(kappa=1.5)", net, init=init
    )
    start = state.values.clone()
    state.values.mul_(1e3).add_(1e3)
    far = state.values.clone()
    update.tail(state, methods)
    for name, role in state.roles.items():
        if role in (Role.SCALE, Role.OFFSET, Role.NOISE):
            assert torch.equal(state.params[name], state.view(far, name)), f"{name} was touched"
            continue
        weight = name.rpartition(".")[0] + ".weight"
        bound = 1.5 * math.sqrt((1 if init == "torch" else 6) / state.matrix(weight).shape[2])
        if name.startswith("output") and init == "he":
            bound = 1.5 * math.sqrt(6 / state.matrix(weight).shape[2])
        assert torch.allclose(state.params[name].abs().amax(), torch.tensor(bound), rtol=1e-5), name
        assert (state.params[name].abs() <= bound * (1 + 1e-6)).all()
    if init == "torch":  # uniform: nothing is beyond its own range at the start
        state.values.copy_(start)
        update.tail(state, methods)
        assert torch.equal(state.values, start)


def test_weight_clipping_leaves_what_is_within_and_the_head_if_asked():
    state, methods = made("weight_clipping(kappa=1.0, head=False)")
    bound = 1 / math.sqrt(5)
    weight, head = state.params["linears.0.weight"].detach(), state.params["output.weight"].detach()
    weight[0, 0, :3] = torch.tensor([10.0, -10.0, 0.25])
    head.mul_(100.0)
    kept = head.clone()
    update.tail(state, methods)
    assert torch.allclose(weight[0, 0, :3], torch.tensor([bound, -bound, 0.25])) and torch.equal(head, kept)


# weight normalisation


@pytest.mark.parametrize("net", ["mlp", "cnn"])
def test_weight_norm_starts_as_without_it_and_ignores_the_length_of_directions(net):
    state, _ = made("weight_norm", net)
    plain, _ = made("baseline", net)
    assert torch.allclose(outputs(state), outputs(plain), rtol=1e-4, atol=1e-6)
    before = outputs(state)
    assert all(group.scale_invariant for group in state.groups)
    for group in state.groups:
        state.params[group.members[0]].detach().mul_(7.0)
    assert torch.allclose(outputs(state), before, rtol=1e-5, atol=1e-6)
    state.params["output.unit_scale"].detach().mul_(2.0)
    bias = state.params["output.bias"].unsqueeze(1)
    assert torch.allclose(outputs(state) - bias, 2.0 * (before - bias), rtol=1e-4, atol=1e-6)


def test_weight_norm_is_pytorchs():
    state, _ = made("weight_norm")
    seed = 1
    layers = []
    for path in ("linears.0", "linears.1", "output"):
        weight = state.params[f"{path}.weight"].detach()[seed].T
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0])
        layer.weight.data.copy_(weight)
        layer.bias.data.copy_(state.params[f"{path}.bias"].detach()[seed])
        layers += [torch.nn.utils.parametrizations.weight_norm(layer), torch.nn.ReLU()]
    theirs, inputs = torch.nn.Sequential(*layers[:-1]), inputs_of(state)
    out = state.forward(inputs)
    assert torch.allclose(theirs(inputs[seed]), out[seed], atol=1e-6)
    theirs(inputs[seed]).square().sum().backward()
    ours = torch.autograd.grad(out.square().sum(), list(state.params.values()))
    ours = dict(zip(state.params, ours, strict=True))
    for path, layer in zip(("linears.0", "linears.1", "output"), layers[::2], strict=True):
        pieces = layer.parametrizations.weight
        assert torch.allclose(pieces.original0.grad.squeeze(1), ours[f"{path}.unit_scale"][seed], atol=1e-4)
        assert torch.allclose(pieces.original1.grad.T, ours[f"{path}.weight"][seed], atol=1e-4)


def test_weight_norms_directions_only_grow_under_gradient_descent_and_nap_keeps_them():
    grown, methods = made("weight_norm", optimizer=SGD())
    start = {g.name: grown.group_norm(g).clone() for g in grown.groups}
    advance(grown, methods, 20)
    assert all((grown.group_norm(g) > start[g.name]).all() for g in grown.groups)
    kept, methods = made("weight_norm+nap(norm='none', head=True)", optimizer=SGD())
    advance(kept, methods, 20)
    assert all(torch.allclose(kept.group_norm(g), start[g.name], rtol=1e-5) for g in kept.groups)


@pytest.mark.parametrize("stack", ["weight_norm", "hyperspherical", "parseval(diagonal=True)", "plasticity_injection"])
@pytest.mark.parametrize("net", ["mlp", "cnn"])
def test_gradients_of_single_examples_know_learned_factors_and_frozen_heads(stack, net):
    state, methods = made(stack, net, precision="fp64")
    advance(state, methods, 2)
    update.task_boundary(state, methods, 1)
    inputs = inputs_of(state).double()
    kernel = landscape.tangent_kernel(state, inputs)
    parameters = list(state.params.values())
    rows = []
    for example in range(inputs.shape[1]):
        out_SK = state.forward(inputs)[:, example]
        how = dict(retain_graph=True)
        rows.append(
            torch.stack(
                [
                    torch.cat([g.flatten(1) for g in torch.autograd.grad(out_SK[:, k].sum(), parameters, **how)], dim=1)
                    for k in range(3)
                ]
            )
        )
    gradients_nKSP = torch.stack(rows)
    wanted = torch.einsum("nksp,mksp->snm", gradients_nKSP, gradients_nKSP) / 3
    assert torch.allclose(kernel, wanted, rtol=1e-6)


# hyperspherical projection


@pytest.mark.parametrize("stack", ["hyperspherical(radius=0.5)", "hyperspherical(radius=0.5, scale=False)"])
@pytest.mark.parametrize("net", NETWORKS)
def test_every_units_weights_lie_on_the_sphere_from_the_start_and_after_every_update(stack, net):
    if net == "rainbow" and "scale" not in stack:
        return
    state, methods = made(stack, net)
    for _ in range(3):
        for group in state.groups:
            squares_SO = sum(state.matrix(name).square().sum(dim=2) for name in group.members)
            assert torch.allclose(squares_SO, torch.full_like(squares_SO, 0.25), rtol=1e-5), group.name
        advance(state, methods)


@pytest.mark.parametrize("net", ["mlp", "cnn"])
def test_with_its_learned_factor_the_network_starts_as_without_the_sphere(net):
    state, plain = made("hyperspherical(radius=2.0)", net)[0], made("baseline", net)[0]
    assert torch.allclose(outputs(state), outputs(plain), rtol=1e-4, atol=1e-6)
    assert all(not group.scale_invariant for group in state.groups)


def test_the_sphere_is_per_unit_where_nap_is_per_layer_and_every_period():
    state, methods = made("hyperspherical(period=3)")
    on_sphere = []
    for _ in range(6):
        advance(state, methods)
        lengths_SO = torch.linalg.vector_norm(state.matrix("linears.0.weight"), dim=2)
        on_sphere.append(torch.allclose(lengths_SO, torch.ones_like(lengths_SO), rtol=1e-5))
    assert on_sphere == [False, False, True, False, False, True]


def test_nap_beside_the_sphere_has_nothing_left_to_project():
    both, with_norm = made("hyperspherical+nap")[0], made("hyperspherical+layer_norm")[0]
    methods = stack_of(parse_stack("hyperspherical+nap")), stack_of(parse_stack("hyperspherical+layer_norm"))
    for state, stack in zip((both, with_norm), methods, strict=True):
        advance(state, stack, 8)
    assert torch.allclose(both.values, with_norm.values, rtol=1e-4, atol=1e-6)


# plasticity injection


@pytest.mark.parametrize("norm", ["none", "layer", "batch"])
@pytest.mark.parametrize("net", NETWORKS)
def test_an_injection_changes_no_output_freezes_the_old_head_and_trains_the_fresh_one(net, norm):
    state, methods = made("plasticity_injection(updates=(4,), tasks=())", net, norm=norm)
    advance(state, methods, 3)
    frozen = {name: p.detach().clone() for name, p in state.frozen.items()}
    assert frozen and all(p.eq(0).all() for p in frozen.values())
    head = set(state.model.head.values()) & set(state.params)
    reference, none = made("plasticity_injection(updates=(9,), tasks=())", net, norm=norm)
    advance(reference, none, 4)
    advance(state, methods, 1)  # the fourth, and the injection
    assert torch.allclose(outputs(state), outputs(reference), rtol=1e-4, atol=1e-5)
    for name, parameter in state.params.items():
        assert (
            torch.equal(parameter, reference.params[name]) == (name not in head) or "scale" in name or "noise" in name
        ), name
    for inside, name in state.model.head.items():
        if name in state.params:
            assert torch.equal(state.frozen[f"frozen.heads.0.{inside}"], reference.params[name]), "the old head"
            assert torch.equal(state.frozen[f"frozen.heads.1.{inside}"], state.params[name]), "a copy of the fresh one"
            assert all(m.eq(0).all() for m in state.optimizer.moments(name).values())
    assert not torch.equal(reference.optimizer.memory["exp_avg"], torch.zeros(()))
    assert torch.equal(state.optimizer.memory["step"], reference.optimizer.memory["step"])
    frozen = {name: p.detach().clone() for name, p in state.frozen.items()}
    fresh = {name: state.params[name].detach().clone() for name in head}
    advance(state, methods, 5)
    assert all(torch.equal(p, frozen[name]) for name, p in state.frozen.items()), "frozen is frozen"
    assert all(not torch.equal(state.params[name], value) for name, value in fresh.items()), "the fresh head learns"


@pytest.mark.parametrize("norm", ["none", "layer", "batch"])
@pytest.mark.parametrize("net", NETWORKS)
def test_before_its_injection_it_is_the_baseline_bit_for_bit(net, norm):
    state, methods = made("plasticity_injection(tasks=(2,))", net, norm=norm)
    plain, none = made("baseline", net, norm=norm)
    for each, stack in ((state, methods), (plain, none)):
        advance(each, stack, 4)
        update.task_boundary(each, stack, 1)
        advance(each, stack, 4)
    assert torch.equal(state.values, plain.values) and torch.equal(outputs(state), outputs(plain))


def test_the_encoder_is_taught_through_all_three_heads():
    """As in the paper: what is frozen has no gradient of its own and still passes it on."""
    state, methods = made("plasticity_injection", precision="fp64")
    advance(state, methods, 3)
    update.task_boundary(state, methods, 1)
    advance(state, methods, 3)
    inputs = inputs_of(state).double()
    x = F.relu(torch.baddbmm(state.params["linears.0.bias"].unsqueeze(1), inputs, state.params["linears.0.weight"]))

    def head(of):
        h = F.relu(torch.baddbmm(of[0].unsqueeze(1), x, of[1]))
        return torch.baddbmm(of[2].unsqueeze(1), h, of[3])

    names = ("linears.1.bias", "linears.1.weight", "output.bias", "output.weight")
    inside = ("linears.0.bias", "linears.0.weight", "output.bias", "output.weight")
    original, copy = ([state.frozen[f"frozen.heads.{i}.{name}"] for name in inside] for i in (0, 1))
    by_hand = head([state.params[name] for name in names]) + head(original) - head(copy)
    assert torch.allclose(by_hand, state.forward(inputs))
    encoder = [state.params["linears.0.weight"]]
    ours = torch.autograd.grad(state.forward(inputs).square().sum(), encoder)[0]
    assert torch.allclose(ours, torch.autograd.grad(by_hand.square().sum(), encoder)[0])
    assert not any(p.requires_grad for p in state.frozen.values())


def test_of_a_linear_head_injection_changes_nothing():
    """Training a in a(x) + h(x) - b(x) is training h, where all three are linear: as some frameworks inject, it does nothing."""
    injected, methods = made("plasticity_injection(layers=1)", optimizer=SGD(), precision="fp64")
    plain, none = made("baseline", optimizer=SGD(), precision="fp64")
    for state, stack in ((injected, methods), (plain, none)):
        advance(state, stack, 3)
        update.task_boundary(state, stack, 1)
        advance(state, stack, 20)
    assert torch.allclose(outputs(injected), outputs(plain), rtol=1e-9)
    deeper, methods = made("plasticity_injection", optimizer=SGD(), precision="fp64")
    advance(deeper, methods, 3)
    update.task_boundary(deeper, methods, 1)
    advance(deeper, methods, 20)
    assert not torch.allclose(outputs(deeper), outputs(plain), rtol=1e-3)


def test_every_injection_has_a_pair_of_its_own():
    state, methods = made("plasticity_injection(updates=(2, 4), tasks=(1,))")
    seen = []
    for step in range(1, 7):
        advance(state, methods)
        if step == 5:
            before = outputs(state)
            update.task_boundary(state, methods, 1)
            assert torch.allclose(outputs(state), before, rtol=1e-4, atol=1e-6)
        seen.append(sum(not state.frozen[f"frozen.heads.{i}.output.weight"].eq(0).all() for i in range(6)))
    assert seen == [0, 2, 2, 4, 6, 6] and state.slots["plasticity_injection"]["done"] == 3
    fresh = [state.frozen[f"frozen.heads.{i}.output.weight"] for i in (1, 3, 5)]
    assert not torch.equal(fresh[0], fresh[1]) and not torch.equal(fresh[1], fresh[2])


@pytest.mark.parametrize(
    "beside", ["nap", "nap(norm='none')", "hyperspherical", "weight_norm", "nap(norm='none', head=True)"]
)
def test_an_injection_beside_a_projection_changes_no_output_either(beside):
    state, methods = made(f"{beside}+plasticity_injection")
    advance(state, methods, 4)
    before = outputs(state)
    update.task_boundary(state, methods, 1)
    assert torch.allclose(outputs(state), before, rtol=1e-4, atol=1e-5)
    for method in methods:
        method.restore(state)
    assert torch.allclose(outputs(state), before, rtol=1e-4, atol=1e-5)


def test_penalties_noise_and_decay_do_not_reach_what_is_frozen():
    stack = "l2(over='all')+noisy_updates+shrink_perturb+weight_decay+regenerative(over='all')+spectral+weight_clipping"
    state, methods = made(f"plasticity_injection+{stack}")
    advance(state, methods, 2)
    update.task_boundary(state, methods, 1)
    frozen = state.flat.detach()[:, state.num_parameters :].clone()
    advance(state, methods, 5)
    assert torch.equal(state.flat.detach()[:, state.num_parameters :], frozen) and frozen.abs().max() > 0


def test_frozen_heads_do_not_count_as_parameters_that_are_trained():
    injected, plain = made("plasticity_injection")[0], made("baseline")[0]
    assert injected.num_parameters == plain.num_parameters and list(injected.params) == list(plain.params)
    assert injected.gradient.shape == plain.gradient.shape


# all of them


EVEN = {"widths": ("widths", (8, 8)), "channels": ("channels", (4, 4))}
"""Sizes that a group norm can divide."""
REFUSED = {
    "hyperspherical": {"spectral", "weight_norm"},
    "plasticity_injection": {"full_reset", "hare_tortoise", "layer_reset"},
    "spectral": {"hyperspherical", "weight_norm"},
    "weight_norm": {"hyperspherical", "spectral"},
}
OURS = [
    "hyperspherical",
    "parseval",
    "plasticity_injection(updates=(1,))",
    "spectral",
    "weight_clipping",
    "weight_norm",
]


@pytest.mark.parametrize("stack", OURS)
def test_a_diverged_seed_stays_alone(stack):
    block, methods = made(stack, seeds=(0, 1, 2))
    block.params["linears.0.weight"].detach()[1] = torch.nan
    advance(block, methods, 4)
    assert block.alive.tolist() == [True, False, True]
    alone, methods = made(stack, seeds=(2,))
    advance(alone, methods, 4)
    assert torch.equal(alone.flat[0], block.flat[2])


@pytest.mark.parametrize("stack", OURS)
def test_at_the_size_of_the_cost_table_a_block_equals_each_seed_alone(stack):
    """Kernels for large matrices are others than those for small ones."""
    spec, shapes = ModelSpec(family="mlp", size=(("widths", (100, 100)),)), ((784,), 10)
    finals = []
    for seeds in ((3, 4), (4,)):
        methods = stack_of(parse_stack(stack))
        state = build(methods.transform_model(spec), Part.of(Adam()), seeds, shapes, "cpu")
        state.lr.fill_(0.01)
        methods.setup(state)
        advance(state, methods, 3)
        finals.append(state.flat.detach()[-1])
    assert torch.equal(*finals)


@pytest.mark.parametrize(
    "stack",
    [
        "parseval+spectral",
        "weight_clipping(kappa=1.0)+nap",
        "hyperspherical(scale=False)+rms_norm",
        "plasticity_injection(updates=(2,))+layer_norm",
    ],
)
def test_rainbow_trains_a_seed_in_a_block_as_alone(stack):
    block, methods = made(stack, "rainbow", seeds=(0, 1, 2))
    advance(block, methods, 5)
    alone, methods = made(stack, "rainbow", seeds=(2,))
    advance(alone, methods, 5)
    assert torch.equal(alone.flat[0], block.flat[2])


@pytest.mark.slow
@pytest.mark.parametrize("net", ["mlp", "cnn"])
@pytest.mark.parametrize(
    "ours", ["hyperspherical", "parseval", "plasticity_injection", "spectral", "weight_clipping", "weight_norm"]
)
def test_beside_every_other_method_it_trains_a_seed_in_a_block_as_alone_or_says_why_not(ours, net):
    run = entry("laptop", "baseline", {}, seeds=(0,)).run
    spec = dataclasses.replace(
        NETWORKS[net][0], size=tuple(EVEN.get(key, (key, value)) for key, value in NETWORKS[net][0].size)
    )
    refused = set()
    for other in sorted(set(METHODS) - {ours}):
        stack = f"{ours}+{other}" if other != "implicit_schedule" else f"{ours}+nap+{other}"
        methods = parse_stack(stack)
        if stack_of(methods).why_not(dataclasses.replace(run, methods=methods)):
            refused.add(other)
            continue
        finals = []
        for seeds in ((0, 1), (1,)):
            state, made_of = made(stack, net, seeds=seeds, size=spec.size)
            for task in (1, 2):
                advance(state, made_of, 3)
                update.task_boundary(state, made_of, task)
            assert state.alive.all() and state.flat.isfinite().all(), stack
            finals.append(state.flat.detach()[-1])
        assert torch.equal(*finals), stack
    assert refused == REFUSED.get(ours, set())


@pytest.mark.parametrize(
    ("stack", "family", "reason"),
    [
        ("full_reset+plasticity_injection", "mlp", "would start the fresh head anew"),
        ("layer_reset+plasticity_injection", "mlp", "would start the fresh head anew"),
        ("plasticity_injection(layers=5)", "mlp", "layers=5 of a head that has 3"),
        ("plasticity_injection", "resnet", "no head of a resnet"),
        ("plasticity_injection(layers=1)", "rainbow", "have 2 layers each"),
        ("weight_norm", "rainbow", "no layer of a rainbow has a learned length"),
        ("weight_norm", "transformer", "no layer of a transformer"),
        ("hyperspherical", "rainbow", "scale=False, beside a norm"),
        ("hyperspherical", "transformer", "embeddings and stream"),
        ("parseval(diagonal=True)", "rainbow", "diagonal=False can be"),
        ("hyperspherical+weight_norm", "mlp", "both set the model's 'unit_scale'"),
        ("spectral+weight_norm", "mlp", "stand between"),
        ("spectral", "rainbow", None),
        ("plasticity_injection", "rainbow", None),
        ("parseval+nap+weight_clipping", "transformer", None),
    ],
)
def test_a_cell_that_cannot_be_says_why(stack, family, reason):
    run = entry("laptop", "baseline", {}, seeds=(0,)).run
    sizes = {"mlp": (("widths", (8, 8)),), "resnet": (("blocks", (1,)), ("channels", (8,)), ("stem", "small"))}
    size = sizes.get(family, NETWORKS["rainbow"][0].size)
    run = dataclasses.replace(run, model=ModelSpec(family=family, size=size), methods=parse_stack(stack))
    found = stack_of(parse_stack(stack)).why_not(run)
    assert found is None if reason is None else reason in found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("plasticity_injection(updates=(3, 2))", "updates to be increasing whole numbers >= 1; found (3, 2)"),
        ("plasticity_injection(tasks=(0,))", "tasks to be increasing whole numbers >= 1; found (0,)"),
        ("plasticity_injection(layers=0)", "layers >= 1; found 0"),
        ("spectral(coef=-1.0)", "spectral wants a finite coef >= 0; found -1.0"),
        ("spectral(k=0)", "spectral wants k >= 1; found 0"),
        ("parseval(coef=-1.0)", "parseval wants a finite coef >= 0; found -1.0"),
        ("parseval(scale=0.0)", "parseval wants a finite scale > 0; found 0.0"),
        ("weight_clipping(kappa=0.0)", "weight_clipping wants a finite kappa > 0 or None; found 0.0"),
        ("hyperspherical(radius=0.0)", "hyperspherical wants a finite radius > 0; found 0.0"),
        ("hyperspherical(period=0)", "hyperspherical wants a whole period >= 1 or None; found 0"),
    ],
)
def test_a_bad_hyperparameter_is_refused_with_its_name_value_and_range(text, message):
    with pytest.raises(ValueError) as refused:
        parse_stack(text)
    assert message in str(refused.value)
