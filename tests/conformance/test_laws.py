"""The laws every method keeps, for every method there is. Names of laws: S seeds in a block, bitwise on a CPU at one thread."""

from __future__ import annotations

import copy
import dataclasses
import itertools

import pytest
import torch
from golden.test_golden import TASKS

from nap_bench import update
from nap_bench.benchmarks import BENCHMARKS
from nap_bench.methods import METHODS, Method, Stack, parse_stack, stack_of
from nap_bench.models.roles import Role
from nap_bench.optimizers import SGD, Adam
from nap_bench.spec import ModelSpec, Part
from nap_bench.state import build

TASK = BENCHMARKS["random_labels"](dataset="digits", num_examples=60, num_tasks=3, steps_per_task=4, batch_size=16)
NETWORKS = {
    "mlp": ModelSpec(family="mlp", size=(("widths", (20, 12)),)),
    "cnn": ModelSpec(family="cnn", size=(("channels", (4, 8)), ("kernel", 3), ("pool_after", (0,)), ("widths", (12,)))),
}
STACKS = [
    *sorted(set(METHODS) - {"implicit_schedule"}),
    "nap+implicit_schedule",
    "baseline",
    "layer_norm+weight_decay",
    "noisy_updates+shrink_perturb(told_of_tasks=True)",
    "nap+optimizer_reset+weight_decay",
    "nap(head=True, norm='rms')",
]
STACKS += [f"nap(scale_offset={policy!r}, decay=0.9)" for policy in ("decay", "joint")] + [
    "nap(norm='none')",
    "nap(period=3)",
]
STACKS += [
    "redo(period=2, tau=0.5)",
    "continual_backprop(rate=0.1, maturity=2)",
    "full_reset(period=5, to='initial')",
    "nap+continual_backprop(rate=0.1, maturity=2)+layer_reset(layers=2)+redo(period=2, reset_norm=True, tau=0.5)",
]
STACKS += [
    "snr(percentile=0.5, start=1, refresh=3, longest=8)",
    "regrama(period=2, tau=0.5)",
    "hare_tortoise(momentum=0.5, period=3, moments='reset')",
    "upgd(sigma=0.1, decay=0.5)+l2",
    "dash(decay=0.5)",
    "infer(scale=1.0, over_heads='mean')+layer_norm",
    "nap+dash+hare_tortoise(momentum=0.5, period=3)+infer+regrama(period=2, tau=0.5)+snr(percentile=0.5, start=1)+upgd",
]
STACKS += [
    "hyperspherical(scale=False)+rms_norm",
    "nap+weight_norm",
    "parseval(diagonal=True)",
    "plasticity_injection(updates=(2, 5), layers=1)",
    "hyperspherical+plasticity_injection(updates=(2,))",
    "nap+parseval+plasticity_injection(updates=(2,))+spectral+weight_clipping(kappa=1.0)",
]
"""Settings at which they act within a few updates."""
NEUTRAL = {
    "dash": "dash(floor=1.0)",
    "hare_tortoise": "hare_tortoise(momentum=0.0)",
    "infer": "infer(coef=0.0)",
    "regrama": "regrama(period=None)",
    "snr": "snr(percentile=None)",
    "upgd": "upgd(sigma=0.0, gated=False)",
    "hyperspherical": "hyperspherical(period=None)",
    "l2": "l2(coef=0.0)",
    "leaky_relu": "leaky_relu(negative_slope=0.0)",
    "noisy_updates": "noisy_updates(sigma=0.0)",
    "regenerative": "regenerative(coef=0.0)",
    "shrink_perturb": "shrink_perturb(shrink=1.0, noise=0.0)",
    "weight_decay": "weight_decay(coef=0.0)",
    "nap": "nap(norm='none', project=False)",
    "optimizer_reset": "optimizer_reset(enabled=False)",
    "parseval": "parseval(coef=0.0)",
    "plasticity_injection": "plasticity_injection(tasks=())",
    "spectral": "spectral(coef=0.0)",
    "weight_clipping": "weight_clipping(kappa=None)",
    "continual_backprop": "continual_backprop(rate=0.0)",
    "full_reset": "full_reset(told_of_tasks=False)",
    "layer_reset": "layer_reset(told_of_tasks=False)",
    "redo": "redo(period=None)",
}
"""Method -> the setting that must be the baseline, bit for bit."""
NO_NEUTRAL = {"batch_norm", "crelu", "group_norm", "layer_norm", "rms_norm", "implicit_schedule", "weight_norm"}
"""A norm or a nonlinearity has no strength: it is there or it is not. An implicit schedule exists only beside nap."""
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(scope="module")
def data():
    return {
        device: TASK.load(None, device) for device in ("cpu", "cuda") if device == "cpu" or torch.cuda.is_available()
    }


def make(stack: str, seeds=(0, 1, 2), optimizer=None, device="cpu", net="mlp"):
    methods = stack_of(parse_stack(stack))
    part = Part.of(optimizer or Adam())
    state = build(methods.transform_model(NETWORKS[net]), part, tuple(seeds), TASK.shapes, device)
    state.lr.fill_(0.01)
    methods.setup(state)
    return state, methods


def advance(state, methods, data, num_steps=10):
    """Train on; returns the losses [T, S]."""
    losses = []
    for _ in range(num_steps):
        step = state.step
        if step and TASK.task_at(step) != TASK.task_at(step - 1):
            update.task_boundary(state, methods, TASK.task_at(step))
        inputs, y_SB = TASK.batch(data[state.device.type], state.seeds, step)
        losses_S = TASK.loss(update.forward(state, methods, inputs), y_SB)
        update.grad_step(state, [losses_S], methods)
        update.tail(state, methods)
        losses.append(losses_S.detach())
    return torch.stack(losses)


def same(left: torch.Tensor, right: torch.Tensor, device: str) -> bool:
    """Bitwise on a CPU. On a GPU cuBLAS may choose another kernel for another number of seeds: relative 1e-5 there."""
    return torch.equal(left, right) if device == "cpu" else torch.allclose(left, right, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("optimizer", [Adam(), SGD(momentum=0.9, clip_norm=1.0)], ids=["adam", "sgd"])
@pytest.mark.parametrize("net", NETWORKS)
def test_law_1_a_block_of_seeds_equals_each_seed_alone(stack, net, optimizer, device, data):
    block, methods = make(stack, (0, 1, 2), optimizer, device, net)
    losses_TS = advance(block, methods, data, 6)
    for index, seed in enumerate(block.seeds):
        alone, methods = make(stack, (seed,), optimizer, device, net)
        assert same(advance(alone, methods, data, 6)[:, 0], losses_TS[:, index], device)
        assert same(alone.flat.detach()[0], block.flat.detach()[index], device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("stack", STACKS)
def test_law_2_a_state_saved_and_loaded_goes_on_with_the_same_bits(stack, device, data):
    whole, methods = make(stack, device=device)
    advance(whole, methods, data, 6)
    saved = copy.deepcopy(whole.state_dict())
    expected = advance(whole, methods, data, 6)
    resumed, methods = make(stack, device=device)
    advance(resumed, methods, data, 2)  # whatever it was before, loading replaces it
    resumed.load_state_dict(saved)
    assert torch.equal(advance(resumed, methods, data, 6), expected)
    assert torch.equal(resumed.flat.detach(), whole.flat.detach())


@pytest.mark.parametrize("order", list(itertools.permutations(["nap", "optimizer_reset", "weight_decay(coef=0.3)"])))
def test_law_3_every_permutation_of_a_stack_is_the_same_run(order, data):
    reference, methods = make("nap+optimizer_reset+weight_decay(coef=0.3)")
    permuted, permuted_methods = make("+".join(order))
    assert torch.equal(advance(reference, methods, data), advance(permuted, permuted_methods, data))
    assert parse_stack("+".join(order)) == parse_stack("nap+optimizer_reset+weight_decay(coef=0.3)")


def test_law_4_every_method_has_a_neutral_setting_or_says_that_it_has_none():
    assert set(METHODS) == set(NEUTRAL) | NO_NEUTRAL


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", NEUTRAL)
def test_law_4_the_neutral_setting_is_the_baseline_bit_for_bit(name, device, data):
    baseline, none = make("baseline", device=device)
    neutral, methods = make(NEUTRAL[name], device=device)
    assert torch.equal(advance(baseline, none, data), advance(neutral, methods, data))
    assert torch.equal(baseline.flat.detach(), neutral.flat.detach())


@pytest.mark.parametrize("name", sorted(set(NEUTRAL) - {"nap"}))
@pytest.mark.parametrize("nap", ["nap(scale_offset='decay', decay=0.9)", "nap+implicit_schedule", "nap(period=3)"])
def test_law_4_a_neutral_setting_changes_nothing_beside_nap_either(name, nap, data):
    plain, stacked = make(nap), make(f"{nap}+{NEUTRAL[name]}")
    assert torch.equal(advance(*plain, data), advance(*stacked, data))


def test_law_4_norm_only_is_nap_without_its_projection(data):
    left, right = make("layer_norm"), make("nap(project=False)")
    assert torch.equal(advance(*left, data), advance(*right, data))


@pytest.mark.parametrize("stack", [s for s in STACKS if "nap" in s and "period" not in s])
def test_law_5_every_projected_group_is_at_its_norm_after_a_step(stack, data):
    state, methods = make(stack)
    start = {g.name: state.group_norm(g).clone() for g in state.groups}
    advance(state, methods, data, 7)
    for group in state.groups:
        projected = "head" in stack or all(state.roles[n] is not Role.OUTPUT for n in group.members)
        is_at_norm = torch.allclose(state.group_norm(group), start[group.name], rtol=1e-6)
        assert is_at_norm == projected, group.name


def test_law_5_a_projection_happens_every_period_and_at_no_other_step(data):
    state, methods = make("nap(period=3)")
    group, at_norm = state.groups[0], []
    start = state.group_norm(group).clone()
    for _ in range(6):
        advance(state, methods, data, 1)
        at_norm.append(torch.allclose(state.group_norm(group), start, rtol=1e-6))
    assert at_norm == [False, False, True, False, False, True]


@pytest.mark.parametrize("norm", ["layer", "rms"])
@pytest.mark.parametrize("net", NETWORKS)
def test_law_5_outputs_do_not_change_when_scale_invariant_groups_are_rescaled(norm, net, data):
    state, methods = make(f"nap(norm={norm!r})", net=net)
    advance(state, methods, data, 3)
    inputs, _ = TASK.batch(data["cpu"], state.seeds, 0)
    before = state.forward(inputs).detach()
    rescaled = [group for group in state.groups if group.scale_invariant]
    assert len(rescaled) == len(state.groups) - 1 and state.groups[-1].name == "output"
    for group in rescaled:
        for name in group.members:
            state.params[name].detach().mul_(10.0)
    assert torch.allclose(state.forward(inputs), before, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", TASKS)
def test_law_6_a_batch_is_a_pure_function_of_seed_and_step(name):
    stream, _ = TASKS[name]
    again = dataclasses.replace(stream)
    data = stream.load(None, "cpu")
    for step in (0, 3, stream.num_steps // 2, stream.num_steps - 1):
        first = stream.batch(data, (0, 1), step)
        stream.batch(data, (5,), 9)
        for left, right in zip(first, again.batch(data, (0, 1), step), strict=True):
            assert torch.equal(left, right)
        alone = stream.batch(data, (1,), step)
        assert torch.equal(first[0][1], alone[0][0]) and torch.equal(first[1][1], alone[1][0])
        assert not torch.equal(first[0][0], first[0][1]) and not torch.equal(first[1][0], first[1][1])


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("net", NETWORKS)
def test_law_7_no_parameter_is_replaced_and_every_parameter_is_in_the_optimizer(stack, net, data):
    state, methods = make(stack, net=net)
    identity = {name: id(p) for name, p in state.model.named_parameters()}
    storage = state.flat.untyped_storage().data_ptr()
    before = state.flat.detach().clone()
    advance(state, methods, data, 9)
    assert {name: id(p) for name, p in state.model.named_parameters()} == identity
    assert all(p.untyped_storage().data_ptr() == storage for p in state.model.parameters())
    for name in state.params:
        assert not torch.equal(state.view(before, name), state.params[name]), f"{name} never moved"
    num_frozen = sum(parameter[0].numel() for parameter in state.frozen.values())
    assert state.flat.detach()[:, state.num_parameters + num_frozen :].eq(0).all(), "padding moved"


@pytest.mark.parametrize("stack", STACKS)
def test_law_8_evaluation_leaves_the_state_and_every_generator_as_they_were(stack, data):
    quiet, methods = make(stack)
    expected = advance(quiet, methods, data)
    looked_at, methods = make(stack)
    global_generator = torch.get_rng_state()
    seen = []
    for _ in range(10):
        seen.append(advance(looked_at, methods, data, 1))
        TASK.evaluate(looked_at, data["cpu"])
    assert torch.equal(torch.cat(seen), expected)
    assert torch.equal(torch.get_rng_state(), global_generator)


def test_a_task_boundary_reaches_only_methods_that_asked_and_projects_once_after(data):
    told = []

    @dataclasses.dataclass(frozen=True)
    class Doubler(Method):
        name = "doubler"
        told_of_tasks = True
        edits_at_boundaries = True

        def on_task_boundary(self, state, task):
            told.append(task)
            state.params["linears.0.weight"].detach().mul_(2.0)

    state, _ = make("nap")
    methods = Stack([*stack_of(parse_stack("nap")), Doubler()])
    start = state.group_norm(state.groups[0]).clone()
    update.task_boundary(state, methods, 1)
    assert told == [1] and torch.allclose(state.group_norm(state.groups[0]), start)
    update.task_boundary(state, stack_of(parse_stack("nap")), 2)
    assert told == [1]


@pytest.mark.fault("divergence: of one seed of a block", outcome="the others' numbers do not change by a bit")
def test_a_diverged_seed_does_not_take_its_block_down(data):
    block, methods = make("nap+weight_decay")
    block.params["linears.0.weight"].detach()[1] = float("nan")
    advance(block, methods, data)
    assert block.alive.tolist() == [True, False, True] and block.updates.tolist() == [10, 0, 10]
    for index, seed in ((0, 0), (2, 2)):
        alone, methods = make("nap+weight_decay", (seed,))
        advance(alone, methods, data)
        assert torch.equal(alone.flat.detach()[0], block.flat.detach()[index])


def test_gradients_of_micro_losses_add_up_to_that_of_the_batch(data):
    whole, methods = make("layer_norm", optimizer=SGD())
    parts, _ = make("layer_norm", optimizer=SGD())
    inputs, y_SB = TASK.batch(data["cpu"], whole.seeds, 0)
    update.grad_step(whole, [TASK.loss(whole.forward(inputs), y_SB)], methods)
    halves = (0.5 * TASK.loss(parts.forward(inputs[:, h]), y_SB[:, h]) for h in (slice(0, 8), slice(8, 16)))
    update.grad_step(parts, halves, methods)
    assert torch.allclose(whole.gradient, parts.gradient, rtol=1e-4, atol=1e-6)


def test_gradients_are_those_of_autograd_and_zero_where_a_loss_does_not_reach(data):
    state, _ = make("layer_norm")
    inputs, y_SB = TASK.batch(data["cpu"], state.seeds, 0)
    loss_S = TASK.loss(state.forward(inputs), y_SB)
    parameters = (*state.params.values(), torch.ones(3, 2, requires_grad=True))
    wanted = torch.autograd.grad(loss_S.sum(), parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
    found = update.slopes(loss_S, parameters)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, wanted, strict=True))
    assert not found[-1].any() and all(slope.any() for slope in found[:-1])


def test_losses_that_are_finite_kill_nobody_though_their_sum_is_not(data):
    state, methods = make("baseline", optimizer=SGD())
    inputs, y_SB = TASK.batch(data["cpu"], state.seeds, 0)
    huge_S = TASK.loss(state.forward(inputs), y_SB) * 0.0 + 3e38
    assert huge_S.isfinite().all() and huge_S.sum().isinf()
    update.grad_step(state, [huge_S], methods)
    assert state.alive.all() and state.updates.tolist() == [1, 1, 1]


def test_clipping_bounds_the_gradient_norm_of_each_seed_apart(data):
    state, methods = make("baseline", optimizer=SGD(clip_norm=0.05))
    state.params["output.weight"].detach()[0] *= 50
    advance(state, methods, data, 1)
    norms = torch.linalg.vector_norm(state.gradient, dim=1)
    assert torch.all(norms <= 0.05 * (1 + 1e-5)) and torch.all(norms > 0.049)


def test_a_penalty_is_added_once_whatever_the_number_of_micro_losses(data):
    @dataclasses.dataclass(frozen=True)
    class Pull(Method):
        name = "pull"

        def loss_penalty(self, state):
            return 0.5 * sum(p.flatten(1).square().sum(dim=1) for p in state.params.values())

    state, _ = make("baseline", optimizer=SGD())
    inputs, y_SB = TASK.batch(data["cpu"], state.seeds, 0)
    zero = [0.0 * TASK.loss(state.forward(inputs), y_SB) for _ in range(3)]
    before = state.flat.detach()[:, : state.num_parameters].clone()
    update.grad_step(state, zero, Stack([Pull()]))
    assert torch.allclose(state.gradient, before, atol=1e-7)
