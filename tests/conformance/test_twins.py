"""The implicit schedule: a projected network that is its free twin, exactly where the paper's argument is exact (4.1, 1.6)."""

from __future__ import annotations

import pytest
import torch

from nap_bench import update
from nap_bench.benchmarks import BENCHMARKS
from nap_bench.methods import parse_stack, stack_of
from nap_bench.optimizers import SGD, Adam
from nap_bench.spec import ModelSpec, Part
from nap_bench.state import build

TASK = BENCHMARKS["random_labels"](dataset="digits", num_examples=64, num_tasks=1, steps_per_task=200, batch_size=32)
NETWORKS = {
    "mlp": ModelSpec(family="mlp", size=(("widths", (24, 24)),), norm_eps=0.0),
    "cnn": ModelSpec(
        family="cnn", size=(("channels", (4, 4)), ("kernel", 3), ("pool_after", (0,)), ("widths", (12,))), norm_eps=0.0
    ),
}


def losses(stack, optimizer, lr, net="mlp", num_steps=100, precision="fp64"):
    """Losses [T, S] and final state. With eps = 0 the network is exactly scale-invariant."""
    methods = stack_of(parse_stack(stack))
    state = build(methods.transform_model(NETWORKS[net]), Part.of(optimizer), (0, 1), TASK.shapes, "cpu", precision)
    state.lr.fill_(lr)
    methods.setup(state)
    data, found = TASK.load(None, "cpu"), []
    for step in range(num_steps):
        inputs, y_SB = TASK.batch(data, state.seeds, step)
        losses_S = TASK.loss(update.forward(state, methods, inputs), y_SB)
        update.grad_step(state, [losses_S], methods)
        update.tail(state, methods)
        found.append(losses_S.detach())
    return torch.stack(found), state


def gap(stack, optimizer, lr, net="mlp"):
    """Largest relative difference of the losses between a projected network and its free twin."""
    free, twin = losses("layer_norm", optimizer, lr, net)
    projected, state = losses(stack, optimizer, lr, net)
    for group in state.groups[:-1]:
        assert (twin.group_norm(group) > 1.01 * state.slots["nap"][group.name]).all(), (
            "norms must grow for this to mean anything"
        )
    return ((projected - free).abs() / free).max().item()


@pytest.mark.parametrize("net", NETWORKS)
@pytest.mark.parametrize(
    ("optimizer", "lr"), [(SGD(), 0.1), (SGD(momentum=0.9), 0.02), (Adam(), 3e-3)], ids=["sgd", "momentum", "adam"]
)
def test_by_layer_with_rescaled_gradients_the_twins_are_one(optimizer, lr, net):
    assert gap("nap+implicit_schedule", optimizer, lr, net=net) < 1e-10


def test_the_projected_twin_is_recorded_at_the_free_ones_effective_rate():
    from nap_bench.train import diagnose

    _, free = losses("layer_norm", Adam(), 3e-3)
    _, projected = losses("nap+implicit_schedule", Adam(), 3e-3)
    rates = []
    for state in (free, projected):
        found = diagnose(
            state, {"layer0": torch.ones(2, 4, 24), "layer1": torch.ones(2, 4, 24)}, state.flat.detach().clone()
        )
        rates.append(found["probe/effective_learning_rate/layer0"])
    start = 3e-3 / projected.slots["nap"]["layer0"]
    torch.testing.assert_close(rates[1], rates[0], rtol=1e-9, atol=0.0)
    assert (rates[1] < 0.95 * start).all(), "it falls, as the free twin's norm grows"


def test_for_plain_sgd_the_rate_alone_is_enough():
    assert gap("nap+implicit_schedule(gradients=False)", SGD(), 0.1) < 1e-10


def test_for_adam_the_rate_alone_is_not_enough():
    """The paper's 'identical by construction' holds for Adam only approximately (erratum 3)."""
    assert gap("nap+implicit_schedule(gradients=False)", Adam(), 3e-3) > 1e-3


@pytest.mark.parametrize(("optimizer", "lr"), [(SGD(), 0.1), (Adam(), 3e-3)], ids=["sgd", "adam"])
def test_a_global_rate_and_no_rescaling_leave_a_gap(optimizer, lr):
    assert gap("nap+implicit_schedule(rescale='global')", optimizer, lr) > 1e-6
    assert gap("nap", optimizer, lr) > 1e-6


def test_the_projected_twin_keeps_its_norms_and_remembers_the_free_ones():
    _, free = losses("layer_norm", Adam(), 3e-3)
    _, projected = losses("nap+implicit_schedule", Adam(), 3e-3)
    for group in projected.groups[:-1]:
        rho = projected.slots["nap"][group.name]
        assert torch.allclose(projected.group_norm(group), rho, rtol=1e-12)
        assert torch.allclose(projected.rate_divisor(group) * rho, free.group_norm(group), rtol=1e-10)


@pytest.mark.parametrize(
    "stack",
    [
        "implicit_schedule",
        "implicit_schedule+layer_norm",
        "nap(period=2)+implicit_schedule",
        "nap(project=False)+implicit_schedule",
    ],
)
def test_without_a_projection_at_every_update_the_cell_cannot_exist(stack):
    from nap_bench.experiments.arms import entry

    run = entry("laptop", "baseline", {}, seeds=(0,)).run
    run = type(run)(**{**{f: getattr(run, f) for f in run.__dataclass_fields__}, "methods": parse_stack(stack)})
    assert "projecting at every update" in stack_of(run.methods).why_not(run)
