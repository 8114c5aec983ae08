"""Penalties, noise, and other nonlinearities and norms, each against what can be computed by hand.

Shape suffixes: S seeds, P parameters, T steps.
"""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from nap_bench import update
from nap_bench.experiments.arms import entry
from nap_bench.methods import parse_stack, stack_of
from nap_bench.models.roles import Role
from nap_bench.optimizers import SGD, Adam
from nap_bench.rng import Noise
from nap_bench.spec import ModelSpec, Part
from nap_bench.state import build

SPEC = ModelSpec(family="mlp", size=(("widths", (40, 30)),))
SHAPES = ((50,), 10)
WEIGHTS, NORMS = (Role.WEIGHT, Role.OUTPUT), (Role.SCALE, Role.OFFSET)


def made(stack: str, *, optimizer=None, seeds=(0, 1), lr=0.1, spec=SPEC, precision="fp32"):
    methods = stack_of(parse_stack(stack))
    part = Part.of(optimizer or SGD())
    state = build(methods.transform_model(spec), part, seeds, SHAPES, "cpu", precision)
    state.lr.fill_(lr)
    methods.setup(state)
    return state, methods


def step(state, methods, num_steps: int = 1) -> None:
    """Updates whose loss is constant, so that only the methods move anything."""
    for _ in range(num_steps):
        logits = update.forward(state, methods, torch.zeros(len(state.seeds), 4, *SHAPES[0]))
        update.grad_step(state, [0.0 * logits.sum(dim=(1, 2))], methods)
        update.tail(state, methods)


def pull(stack: str, moved: float = 0.0):
    """(state, what the stack adds to a gradient of zeros) with every parameter `moved` from where it started."""
    state, methods = made(stack)
    state.values.add_(moved)
    state.gradient.zero_()
    for method in methods:
        method.after_backward(state)
    return state, state.gradient.clone()


@pytest.mark.parametrize("over", ["all", "weights_and_biases", "weights"])
def test_l2_adds_the_gradient_of_half_its_coefficient_times_the_squared_norm(over):
    state, added_SP = pull(f"l2(coef=0.3, over={over!r})+layer_norm", moved=0.5)
    roles = {"all": tuple(Role), "weights_and_biases": (*WEIGHTS, Role.BIAS), "weights": WEIGHTS}[over]
    parameters = list(state.params.values())
    penalty = sum(
        0.5 * 0.3 * p.square().sum() for p, role in zip(parameters, state.roles.values(), strict=True) if role in roles
    )
    wanted = torch.autograd.grad(penalty, parameters, allow_unused=True, materialize_grads=True)
    assert torch.allclose(added_SP, torch.cat([g.flatten(1) for g in wanted], dim=1), rtol=1e-6)
    assert torch.equal(added_SP != 0, (state.of_roles(*roles) & (state.values != 0)).expand_as(added_SP))


def test_under_sgd_l2_shrinks_by_one_minus_lr_times_coef_and_under_adam_it_is_not_weight_decay():
    state, methods = made("l2(coef=0.5)")
    start = state.values.clone()
    step(state, methods, 3)
    assert torch.allclose(state.values, 0.95**3 * start, rtol=1e-5)
    coupled, methods = made("l2(coef=0.5)", optimizer=Adam())
    step(coupled, methods)
    assert torch.allclose(
        (start - coupled.values).abs(), torch.tensor(0.1), atol=0.01
    )  # Adam steps by lr, whatever the size


def test_a_penalty_is_added_after_clipping_and_so_not_clipped():
    state, methods = made("l2(coef=10.0)", optimizer=SGD(clip_norm=1e-3))
    start = state.values.clone()
    step(state, methods)
    assert torch.equal(state.gradient, 10.0 * start) and state.gradient.norm(dim=1).min() > 1


@pytest.mark.parametrize("distance", ["squared", "l1", "norm"])
def test_regenerative_pulls_every_parameter_to_where_it_started(distance):
    state, added_SP = pull(f"regenerative(coef=0.2, distance={distance!r})", moved=0.5)
    wanted = {"squared": 0.2 * 0.5, "l1": 0.2, "norm": 0.2 / math.sqrt(state.num_parameters)}[distance]
    assert torch.allclose(added_SP, torch.full_like(added_SP, wanted), rtol=1e-4)
    at_start, added_SP = pull(f"regenerative(coef=0.2, distance={distance!r})")
    assert added_SP.abs().max() < 1e-8


def test_regenerative_returns_to_the_saved_point_and_leaves_norms_alone_unless_asked():
    state, methods = made("layer_norm+regenerative(coef=1.0)")
    start, norms = state.values.clone(), state.of_roles(*NORMS)
    state.values.add_(1.0)
    step(state, methods, 200)
    assert torch.allclose(state.values[:, ~norms], start[:, ~norms], atol=1e-6)
    assert torch.equal(state.values[:, norms], start[:, norms] + 1.0)
    state, methods = made("layer_norm+regenerative(coef=1.0, over='all')")
    state.values.add_(1.0)
    step(state, methods, 200)
    assert torch.allclose(state.values, start, atol=1e-6)


def test_under_sgd_regenerative_is_shrinking_towards_the_initial_point_by_lr_times_coef():
    regenerative, shrunk = (
        made("regenerative(coef=0.5)"),
        made("shrink_perturb(variant='initial', shrink=0.95, noise=0.05)"),
    )
    for state, methods in (regenerative, shrunk):
        state.values.mul_(3.0)
        step(state, methods, 5)
    assert torch.allclose(regenerative[0].values, shrunk[0].values, rtol=1e-4, atol=1e-7)


def initial_std_of(state, name: str) -> float:
    """PyTorch's initial distribution, U(+-1/sqrt(fan_in)), of weights and biases."""
    fan_in = {"linears.0": 50, "linears.1": 40, "output": 30}[name.rpartition(".")[0]]
    return 1 / math.sqrt(3 * fan_in)


@pytest.mark.parametrize("variant", ["fresh", "weights", "gaussian", "lr_gaussian"])
def test_the_noise_of_shrink_and_perturb_has_the_stated_size_in_every_parameter(variant):
    state, methods = made(f"layer_norm+shrink_perturb(variant={variant!r}, shrink=0.5, noise=0.3)", seeds=(0, 1, 2, 3))
    rate = 0.1 if variant == "lr_gaussian" else 1.0  # of which lr is 0.1
    added = []
    for _ in range(60):
        before = state.values.clone()
        step(state, methods)
        added.append(state.values - (1 - rate * 0.5) * before)
    for name, role in state.roles.items():
        noise_TSD = torch.stack([state.view(moved, name).flatten(1) for moved in added])
        if role in NORMS or (variant == "weights" and role is Role.BIAS):
            assert torch.equal(state.params[name], state.fresh(name)), f"{name} was touched"
            continue
        size = initial_std_of(state, name) if variant in ("fresh", "weights") else 1.0
        assert math.isclose(noise_TSD.std().item(), rate * 0.3 * size, rel_tol=4 / math.sqrt(2 * noise_TSD.numel())), (
            name
        )
        assert abs(noise_TSD.mean().item()) < 4 * rate * 0.3 * size / math.sqrt(noise_TSD.numel())


def test_shrink_and_perturb_settles_at_its_stationary_variance():
    state, methods = made("shrink_perturb(variant='gaussian', shrink=0.8, noise=0.3)", seeds=(0, 1, 2, 3))
    step(state, methods, 60)
    found = []
    for _ in range(40):
        step(state, methods, 5)
        found.append(state.values.square().mean().item())
    assert math.isclose(sum(found) / 40, 0.3**2 / (1 - 0.8**2), rel_tol=0.01)


def test_at_a_task_switch_the_draw_is_from_the_initial_distribution_itself_and_drawn_anew():
    stack = "shrink_perturb(shrink=0.0, noise=2.0, period=None, told_of_tasks=True)"
    state, methods = made(stack)
    start = state.values.clone()
    step(state, methods, 2)
    assert torch.equal(state.values, start), "between switches nothing moves"
    for name in state.params:
        update.task_boundary(state, methods, 1)
        bound = initial_std_of(state, name) * math.sqrt(3)
        drawn = state.params[name].abs()
        assert drawn.max() <= 2 * bound * (1 + 1e-6) and (drawn.numel() < 500 or drawn.max() > 1.9 * bound)
    assert not torch.allclose(state.values, 2 * start), "a new draw, not the initial one"
    first = state.values.clone()
    step(state, methods)
    update.task_boundary(state, methods, 2)
    assert not torch.equal(state.values, first)


def test_shrink_and_perturb_acts_every_period_and_towards_the_initial_point_moves_nothing_at_it():
    state, methods = made("shrink_perturb(period=3)")
    moved = []
    for _ in range(6):
        before = state.values.clone()
        step(state, methods)
        moved.append(not torch.equal(before, state.values))
    assert moved == [False, False, True, False, False, True]
    state, methods = made("shrink_perturb(variant='initial', shrink=0.75, noise=0.25)")
    start = state.values.clone()
    step(state, methods, 10)
    assert torch.allclose(state.values, start, rtol=1e-5)


@pytest.mark.parametrize(
    ("scaling", "size"),
    [("lr", 0.1 * 0.3), ("langevin", math.sqrt(2 * 0.1) * 0.3), ("absolute", 0.3), ("gradient", 0.1 * 0.3 * 5.0)],
)
def test_noise_on_updates_has_the_stated_size_everywhere(scaling, size):
    state, methods = made(f"layer_norm+noisy_updates(sigma=0.3, scaling={scaling!r})")
    before = state.values.clone()
    state.gradient.zero_()
    state.gradient[:, 0], state.gradient[:, -1] = 3.0, 4.0
    update.tail(state, methods)
    noise = state.values - before
    assert math.isclose(noise.std().item(), size, rel_tol=0.05)
    for name in state.params:
        assert state.view(noise, name).abs().max() > 0
    assert not torch.equal(noise[0], noise[1]), "every seed has its own"


def test_langevin_dynamics_on_a_quadratic_settle_at_their_temperature():
    """theta' = (1 - lr) theta + sqrt(2 lr T) n has the variance T / (1 - lr / 2)."""
    state, methods = made("l2(coef=1.0)+noisy_updates(scaling='langevin', sigma=0.7)", seeds=(0, 1, 2, 3))
    step(state, methods, 80)
    found = []
    for _ in range(40):
        step(state, methods, 5)
        found.append(state.values.square().mean().item())
    assert math.isclose(sum(found) / 40, 0.7**2 / (1 - 0.1 / 2), rel_tol=0.02)


def test_draws_are_standard_normal_and_independent_between_entries_seeds_and_steps():
    noise = Noise("a test", (0, 1), 3000, torch.device("cpu"), torch.float32)
    drawn_TSP = torch.stack([noise.draw(step).clone() for step in range(600)])
    n = drawn_TSP.numel()
    assert abs(drawn_TSP.mean().item()) < 5 / math.sqrt(n) and math.isclose(
        drawn_TSP.var().item(), 1, rel_tol=5 * math.sqrt(2 / n)
    )
    assert math.isclose(drawn_TSP.pow(4).mean().item(), 3, rel_tol=0.02)
    assert torch.all((drawn_TSP.var(dim=0) - 1).abs() < 6 * math.sqrt(2 / 600))
    pairs = {
        "entries": (drawn_TSP[:, :, :-1], drawn_TSP[:, :, 1:]),
        "far entries": (drawn_TSP[:, :, :-1500], drawn_TSP[:, :, 1500:]),
        "seeds": (drawn_TSP[:, 0], drawn_TSP[:, 1]),
        "steps": (drawn_TSP[:-1], drawn_TSP[1:]),
    }
    for between, (left, right) in pairs.items():
        assert abs((left * right).mean().item()) < 0.004, between


def test_a_draw_depends_on_seed_purpose_and_step_alone():
    device = torch.device("cpu")
    block, alone = (Noise("x", seeds, 700, device, torch.float32) for seeds in ((4, 5), (5,)))
    block.draw(1)
    assert torch.equal(block.draw(9)[1], alone.draw(9)[0])
    assert not torch.equal(alone.draw(9)[0], Noise("y", (5,), 700, device, torch.float32).draw(9)[0])


OURS = [
    "l2",
    "regenerative",
    "regenerative(distance='norm')",
    *(f"shrink_perturb(variant={variant!r})" for variant in ("fresh", "weights", "initial", "gaussian", "lr_gaussian")),
    *(f"noisy_updates(scaling={scaling!r})" for scaling in ("lr", "langevin", "absolute", "gradient")),
    "leaky_relu",
    "crelu",
    "batch_norm",
    "group_norm(groups=5)",
]


@pytest.mark.parametrize("stack", OURS)
def test_a_diverged_seed_stays_alone(stack):
    block, methods = made(stack, seeds=(0, 1, 2))
    block.params["linears.0.weight"].detach()[1] = torch.nan
    step(block, methods, 3)
    assert block.alive.tolist() == [True, False, True]
    alone, methods = made(stack, seeds=(2,))
    step(alone, methods, 3)
    assert torch.equal(alone.values[0], block.values[2])


@pytest.mark.parametrize("stack", OURS)
def test_double_precision_and_nap_beside_it_work(stack):
    nap = "nap(norm='none')" if "norm" in stack.partition("(")[0] else "nap"
    state, methods = made(f"{stack}+{nap}", precision="fp64")
    step(state, methods, 2)
    assert state.values.dtype == torch.float64 and state.alive.all()
    for group in state.groups[:-1]:
        assert torch.allclose(state.group_norm(group), state.slots["nap"][group.name], rtol=1e-12)


def test_leaky_relu_keeps_a_slope_below_zero_and_slope_zero_is_relu():
    state, _ = made("leaky_relu(negative_slope=0.2)")
    h = torch.tensor([-2.0, 0.0, 3.0])
    assert torch.equal(state.model.activation(h), torch.tensor([-0.4, 0.0, 3.0]))
    assert stack_of(parse_stack("leaky_relu(negative_slope=0.0)")).transform_model(SPEC) == SPEC


def test_hes_gain_knows_the_slope():
    he = dataclasses.replace(SPEC, init="he")
    relu, leaky = made("baseline", spec=he)[0], made("leaky_relu(negative_slope=0.5)", spec=he)[0]
    assert torch.allclose(leaky.params["linears.0.weight"], relu.params["linears.0.weight"] / math.sqrt(1.25))
    assert torch.equal(leaky.params["output.weight"], relu.params["output.weight"])


def test_crelu_shows_both_signs_and_doubles_what_the_next_layer_reads():
    state, methods = made("crelu", seeds=(0,))
    inputs = torch.randn(1, 4, 50, generator=torch.Generator().manual_seed(0))
    acts = {}
    state.forward(inputs, acts)
    h = torch.baddbmm(state.params["linears.0.bias"].unsqueeze(1), inputs, state.params["linears.0.weight"])
    assert torch.equal(acts["layer0"], torch.cat([h.clamp(min=0), (-h).clamp(min=0)], dim=2))
    assert state.params["linears.1.weight"].shape == (1, 80, 30) and state.params["output.weight"].shape == (1, 60, 10)


def test_crelu_keeps_a_share_of_the_units_so_that_parameters_match():
    """Kumar et al.'s MLP, 784-100-100-10, with 9 % of its units removed."""
    wide = ModelSpec(family="mlp", size=(("widths", (100, 100)),))

    def num_parameters(stack: str) -> int:
        spec = stack_of(parse_stack(stack)).transform_model(wide)
        return build(spec, Part.of(SGD()), (0,), ((784,), 10), "meta").num_parameters

    relu, whole, matched = map(num_parameters, ("baseline", "crelu", "crelu(keep=0.91)"))
    assert whole > 1.1 * relu and math.isclose(matched, relu, rel_tol=0.005)
    cnn = ModelSpec(family="cnn", size=(("channels", (8, 4)), ("kernel", 3), ("pool_after", (0,)), ("widths", (10,))))
    edited = dict(stack_of(parse_stack("crelu(keep=0.75)")).transform_model(cnn).size)
    assert edited == {"channels": (6, 3), "kernel": 3, "pool_after": (0,), "widths": (8,)}


def test_group_norm_of_one_group_is_layer_norm():
    inputs = torch.randn(2, 4, 50, generator=torch.Generator().manual_seed(0))
    layer, group = made("layer_norm")[0], made("group_norm(groups=1)")[0]
    assert torch.equal(layer.values, group.values) and torch.equal(layer.forward(inputs), group.forward(inputs))


@pytest.mark.parametrize(
    ("stack", "reason"),
    [
        ("group_norm(groups=7)", "groups=7 does not divide a hidden layer of 64"),
        ("batch_norm+nap", "both set the model's 'norm'"),
        ("batch_norm+group_norm", "both set the model's 'norm'"),
        ("crelu+leaky_relu", "both set the model's 'activation'"),
    ],
)
def test_a_stack_that_cannot_exist_says_why(stack, reason):
    assert reason in stack_of(parse_stack(stack)).why_not(entry("laptop", "baseline", {}, seeds=(0,)).run)


def test_batch_norm_refuses_batches_of_one():
    run = entry("laptop", "baseline", {}, seeds=(0,), task={"batch_size": 1}).run
    assert "batch_size is 1" in stack_of(parse_stack("batch_norm")).why_not(run)
    assert stack_of(parse_stack("batch_norm")).why_not(entry("laptop", "baseline", {}, seeds=(0,)).run) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("l2(coef=-0.1)", "l2 wants a finite coef >= 0; found -0.1"),
        ("l2(over='weigths')", "over of l2 'weigths'. Did you mean 'weights'"),
        ("regenerative(coef=-1.0)", "regenerative wants a finite coef >= 0; found -1.0"),
        ("regenerative(distance='l2')", "distance of regenerative 'l2'. Known: l1, norm, squared"),
        ("regenerative(over='none')", "over of regenerative 'none'"),
        ("shrink_perturb(shrink=1.5)", "shrink in [0, 1]; found 1.5"),
        ("shrink_perturb(noise=-0.5)", "noise >= 0; found -0.5"),
        ("shrink_perturb(period=0)", "period >= 1 or None; found 0"),
        ("shrink_perturb(variant='frsh')", "Did you mean 'fresh'"),
        ("noisy_updates(sigma=-2.0)", "sigma >= 0; found -2.0"),
        ("noisy_updates(scaling='rl')", "scaling of noisy_updates 'rl'"),
        ("leaky_relu(negative_slope=2.0)", "negative_slope in [0, 1]; found 2.0"),
        ("crelu(keep=0.0)", "keep in (0, 1]; found 0.0"),
        ("group_norm(groups=0)", "groups >= 1; found 0"),
    ],
)
def test_a_bad_hyperparameter_is_refused_with_its_name_value_and_range(text, message):
    with pytest.raises(ValueError) as refused:
        parse_stack(text)
    assert message in str(refused.value)
