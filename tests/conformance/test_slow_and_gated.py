"""Hare & Tortoise, UPGD, DASH and InFeR, each against a trace that can be computed by hand.

S seeds, B batch, P parameters.
"""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from conformance.test_resets import NETWORKS, advance, made
from torch.nn import functional as F

from nap_bench import session, update
from nap_bench import train as loop
from nap_bench.benchmarks import RandomLabels
from nap_bench.experiments.arms import entry
from nap_bench.experiments.base import make_run
from nap_bench.methods import parse_stack, stack_of
from nap_bench.models.roles import Role
from nap_bench.optimizers import SGD, Adam
from nap_bench.schedules import Constant
from nap_bench.spec import ModelSpec, Part
from nap_bench.state import build
from nap_bench.store import RunFolder


def only(methods):
    """The one method of a stack."""
    (method,) = methods
    return method


# --- Hare & Tortoise


def test_the_tortoise_is_the_running_mean_of_the_hare_and_the_hare_returns_to_it():
    """Momentum 0.5, the hare at 1, 2, 4 after a start at 0: the tortoise is at 0.5, 1.25, 2.625, where the hare then goes."""
    state, methods = made("hare_tortoise(momentum=0.5, period=3)")
    state.values.zero_()
    state.slots["hare_tortoise"]["eval_params"].zero_()
    seen = []
    for hare in (1.0, 2.0, 4.0, 5.0):
        state.values.fill_(hare)
        state.step += 1
        only(methods).after_step(state)
        seen.append((state.values[0, 0].item(), state.eval_params[0, 0].item()))
    assert seen == [(1.0, 0.5), (2.0, 1.25), (2.625, 2.625), (5.0, 3.8125)]


def test_hare_and_tortoise_never_share_memory():
    """The authors' code lets the hare's parameters be the tortoise's tensors until the next average."""
    state, methods = made("hare_tortoise(momentum=0.9, period=1)")
    advance(state, methods, 2)
    slow = state.slots["hare_tortoise"]["eval_params"]
    assert torch.equal(slow, state.flat) and slow.data_ptr() != state.flat.data_ptr()
    state.values.add_(1.0)
    assert not torch.equal(slow, state.flat)
    identity = {name: p.data_ptr() for name, p in state.params.items()}
    advance(state, methods, 3)
    assert {name: p.data_ptr() for name, p in state.params.items()} == identity


def test_running_statistics_are_averaged_and_whole_numbers_copied():
    state, methods = made("hare_tortoise(momentum=0.5, period=2)", norm="batch")
    state.buffers["seen"] = torch.tensor([3, 4])  # a counter, as PyTorch's batch norm has one
    state.slots["hare_tortoise"] = only(methods).setup(state)
    for value in (1.0, 3.0):
        state.buffers["norms.0.running_mean"].fill_(value)
        state.buffers["seen"] += 1
        state.step += 1
        only(methods).after_step(state)
    assert state.slots["hare_tortoise"]["eval_params/norms.0.running_mean"].eq(1.75).all()  # 0.5 * 0.5 + 0.5 * 3
    assert state.buffers["norms.0.running_mean"].eq(1.75).all(), "the hare takes them over"
    counter = state.slots["hare_tortoise"]["eval_params/seen"]
    assert counter.tolist() == [5, 6] and counter.dtype == torch.int64 and state.buffers["seen"].tolist() == [5, 6]


@pytest.mark.parametrize("moments", ["keep", "reset"])
def test_what_becomes_of_the_moments_is_what_was_declared(moments):
    state, methods = made(f"hare_tortoise(period=3, moments={moments!r})")
    advance(state, methods, 2)
    assert state.optimizer.memory["exp_avg"].ne(0).any()
    advance(state, methods, 1)
    kept = state.optimizer.memory
    assert kept["exp_avg"].ne(0).any().item() == kept["exp_avg_sq"].ne(0).any().item() == (moments == "keep")
    assert kept["step"] == (3 if moments == "keep" else 0)


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_evaluation_reads_the_tortoise_and_leaves_the_hare_bit_for_bit(norm):
    state, methods = made("hare_tortoise(momentum=0.9, period=None)", norm=norm)
    advance(state, methods, 5)
    hare = state.flat.detach().clone()
    buffers = {name: buffer.clone() for name, buffer in state.buffers.items()}
    inputs = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0))
    ours = state.forward(inputs)
    with state.as_evaluated():
        assert torch.equal(state.flat, state.slots["hare_tortoise"]["eval_params"])
        slow = state.forward(inputs)
    assert torch.equal(state.flat, hare) and all(torch.equal(state.buffers[n], b) for n, b in buffers.items())
    assert torch.equal(state.forward(inputs), ours) and not torch.allclose(ours, slow)
    twin = state.twin(state.slots["hare_tortoise"]["eval_params"])
    for name, buffer in state.buffers.items():
        buffer.copy_(state.slots["hare_tortoise"][f"eval_params/{name}"])
    assert torch.equal(twin(inputs), slow)


def test_an_evaluation_that_fails_gives_the_hare_back():
    state, methods = made("hare_tortoise(momentum=0.9)")
    advance(state, methods, 3)
    hare = state.flat.detach().clone()
    with pytest.raises(RuntimeError, match="looked too closely"), state.as_evaluated():
        raise RuntimeError("looked too closely")
    assert torch.equal(state.flat, hare)


def metrics_of(stack: str, path) -> dict[tuple[str, str], str]:
    """(metric, step and seed) -> value of a short run."""
    run = make_run(
        benchmark=RandomLabels(dataset="digits", num_examples=64, num_tasks=2, steps_per_task=6, batch_size=16),
        model=ModelSpec(family="mlp", size=(("widths", (16, 16)),)),
        stack=stack,
        optimizer=Adam(),
        schedule=Constant(1e-2),
        seeds=(0, 1),
    )
    folder = RunFolder(path, run)
    folder.open()
    loop.train(run, folder, data_dir=None, device="cpu", control=session.Control())
    rows = [line.split(",") for line in folder.metrics.read_text().splitlines()[1:]]
    return {(metric, f"{step}/{seed}"): value for step, seed, metric, value in rows}


def test_a_tortoise_that_nobody_returns_to_changes_what_evaluation_sees_and_nothing_else(tmp_path):
    plain = metrics_of("baseline", tmp_path / "plain")
    watched = metrics_of("hare_tortoise(period=None)", tmp_path / "watched")
    assert plain.keys() == watched.keys()
    differ = {metric for (metric, at), value in plain.items() if watched[metric, at] != value}
    assert {"task_end/accuracy", "task_end/loss"} <= differ
    assert not {m for m in differ if m.startswith(("online/", "probe/relative_update", "probe/norm"))}
    assert {m for m, _ in plain} - differ >= {"online/loss", "probe/parameter_norm", "probe/gradient_norm"}


# --- UPGD


def gated(utility: float, largest: float) -> float:
    """1 - sigmoid(u / max u)."""
    return 1.0 - 1.0 / (1.0 + math.exp(-utility / largest))


def test_under_plain_sgd_a_step_is_the_papers():
    """w = 1, 2, 4 with gradients 1, -1, 0: utilities -w g are -1, 2, 0, the largest 2; no noise."""
    state, methods = made("upgd(sigma=0.0, decay=0.5)", seeds=(0,), optimizer=SGD())
    state.lr.fill_(0.1)
    state.values.fill_(0.0)
    state.gradient.zero_()
    state.values[0, :3] = torch.tensor([1.0, 2.0, 4.0])
    state.gradient[0, :3] = torch.tensor([1.0, -1.0, 0.0])
    upgd = only(methods)
    upgd.after_backward(state)
    state.optimizer.step()
    upgd.after_step(state)
    wanted = [1.0 - 0.1 * gated(-1.0, 2.0), 2.0 + 0.1 * gated(2.0, 2.0), 4.0]
    assert torch.allclose(state.values[0, :3], torch.tensor(wanted), rtol=1e-6)
    assert state.values[0, 3:].eq(0.0).all()
    assert torch.allclose(state.slots["upgd"]["utility"][0, :3], torch.tensor([-0.5, 1.0, 0.0]))


def test_under_adam_the_optimizers_step_is_gated_and_not_the_gradient():
    """Adam's first step is lr whatever the gradient: a gated gradient would be rescaled to the same step."""
    state, methods = made("upgd(sigma=0.0)", seeds=(0,))
    before = state.values.clone()
    state.lr.fill_(0.1)
    state.gradient.fill_(1.0)
    upgd = only(methods)
    upgd.after_backward(state)
    state.optimizer.step()
    upgd.after_step(state)
    utility = -before
    wanted = 0.1 * (1.0 - torch.sigmoid(utility / utility.max()))
    assert torch.allclose(before - state.values, wanted, atol=1e-6)
    assert wanted.max() / wanted.min() > 1.5


def test_the_largest_utility_is_each_seeds_own():
    state, methods = made("upgd(sigma=0.0)", seeds=(0, 1), optimizer=SGD())
    state.gradient.copy_(state.values)
    state.gradient[:, ::2] *= -1.0
    state.gradient[1] *= 100.0
    only(methods).after_backward(state)
    only(methods).after_step(state)
    gate = state.slots["upgd"]["gate"][:, : state.num_parameters]
    assert torch.allclose(gate.amin(dim=1), torch.tensor(gated(1.0, 1.0)))


def test_where_no_utility_is_positive_all_weights_take_half_a_step():
    """The authors' code divides by the largest utility whatever its sign, and so protects the most harmful weights."""
    state, methods = made("upgd(sigma=0.0)", optimizer=SGD())
    state.gradient.copy_(state.values)  # -g w < 0 everywhere
    before = state.values.clone()
    state.lr.fill_(0.2)
    only(methods).after_backward(state)
    state.optimizer.step()
    only(methods).after_step(state)
    assert torch.allclose(state.values, 0.9 * before, rtol=1e-6)


def test_the_bias_of_the_running_mean_cancels_in_the_ratio():
    """The authors' code corrects the utility and not the largest one: at first s is 1 for all useful weights."""
    state, methods = made("upgd(sigma=0.0, decay=0.999)", optimizer=SGD())
    state.gradient.copy_(-state.values)
    only(methods).after_backward(state)
    only(methods).after_step(state)
    gate = state.slots["upgd"]["gate"][:, : state.num_parameters]
    assert gate.min() == pytest.approx(gated(1.0, 1.0)) and gate.max() <= 0.5


def test_noise_is_gated_as_the_step_is_and_has_the_stated_size():
    quiet, methods = made("upgd(sigma=0.0)", optimizer=SGD())
    noisy, with_noise = made("upgd(sigma=3.0)", optimizer=SGD())
    for state, stack in ((quiet, methods), (noisy, with_noise)):
        state.lr.fill_(0.1)
        state.gradient.copy_(-state.values)
        only(stack).after_backward(state)
        only(stack).after_step(state)
    gate = noisy.slots["upgd"]["gate"][:, : noisy.num_parameters]
    added = (noisy.values - quiet.values) / (-0.1 * 3.0 * gate)
    assert torch.allclose(added, noisy.normal("upgd"), atol=1e-4)


def test_a_reset_is_no_step_and_is_not_gated():
    state, methods = made("upgd(sigma=0.0)+full_reset(period=2, told_of_tasks=False)")
    advance(state, methods, 2)
    assert all(torch.equal(p, state.fresh(name, "full_reset", 2)) for name, p in state.params.items())


def test_the_utility_is_that_of_the_loss_whatever_penalty_is_beside_it():
    alone, with_l2 = made("upgd(sigma=0.0)", optimizer=SGD()), made("upgd(sigma=0.0)+l2(coef=10.0)", optimizer=SGD())
    for state, methods in (alone, with_l2):
        advance(state, methods, 1)
    assert torch.equal(alone[0].slots["upgd"]["utility"], with_l2[0].slots["upgd"]["utility"])
    assert not torch.allclose(alone[0].values, with_l2[0].values)


# --- DASH


def test_a_unit_is_scaled_by_the_cosine_to_its_negative_gradient_within_its_bounds():
    """Five weights come into each unit. Cosines: 1 along -G, -1 along G, 0 at right angles, 0.8 between."""
    state, methods = made("dash(floor=0.3, newest=1.0)", seeds=(0,))
    weight = state.params["linears.0.weight"].detach()
    weight[0] = torch.eye(5)[:, :4]
    pull = torch.zeros(5, 4)
    pull[0, 0], pull[1, 1], pull[0, 2] = 2.0, -2.0, 1.0
    pull[3, 3], pull[0, 3] = 0.8, 0.6
    state.view(state.slots["dash"]["task"], "linears.0.weight")[0] = -pull
    others = {name: p.detach().clone() for name, p in state.params.items() if state.roles[name] is not Role.WEIGHT}
    update.task_boundary(state, methods, 1)
    assert torch.allclose(weight[0], torch.eye(5)[:, :4] * torch.tensor([1.0, 0.3, 0.3, 0.8]))
    for name, before in others.items():  # without gradient the cosine is 0
        assert torch.allclose(state.params[name], 0.3 * before)


def test_a_kernel_is_scaled_by_itself_and_all_biases_of_a_layer_together():
    state, methods = made("dash(floor=0.1, newest=1.0)", "cnn", seeds=(0,))
    kernels = state.params["layers.1.weight"].detach()
    before = {name: p.detach().clone() for name, p in state.params.items()}
    pull = state.view(state.slots["dash"]["task"], "layers.1.weight")
    pull.copy_(-kernels)
    pull[0, 2, 1] *= -1.0
    bias = state.params["layers.1.bias"].detach()
    pull = state.view(state.slots["dash"]["task"], "layers.1.bias")
    pull[0] = -bias[0] * torch.tensor([1.0, 0.0, 0.0, 0.0])
    update.task_boundary(state, methods, 1)
    ratio = (kernels / before["layers.1.weight"])[0]
    wanted = torch.ones(4, 3)
    wanted[2, 1] = 0.1
    assert torch.allclose(ratio, wanted.view(4, 3, 1, 1).expand_as(ratio), rtol=1e-4)
    cosine = before["layers.1.bias"][0, 0].abs() / before["layers.1.bias"][0].norm()
    assert torch.allclose(bias / before["layers.1.bias"], cosine.clamp(0.1, 1.0), rtol=1e-4)


def test_gradients_are_averaged_over_updates_and_then_over_tasks():
    """Two tasks of two updates, decay 0.5, newest 0.25: g = 0.25 + 0.5 * 3 of gradients 1 and 3, then 0.75 of 1 and 1."""
    state, methods = made("dash(decay=0.5, newest=0.25)", seeds=(0,))
    for task, gradients in ((1, (1.0, 3.0)), (2, (1.0, 1.0))):
        for value in gradients:
            state.gradient.fill_(value)
            only(methods).after_backward(state)
        update.task_boundary(state, methods, task)
    slots = state.slots["dash"]
    assert slots["tasks"][0, 0].item() == 0.75 * (0.25 * 1.75) + 0.25 * 0.75
    assert not slots["task"].any()


def test_dash_leaves_norms_and_moments_and_is_followed_by_a_projection():
    state, methods = made("dash+nap(period=1000)")
    start = {group.name: state.group_norm(group).clone() for group in state.groups[:-1]}
    advance(state, methods, 4)
    norms = {name: p.detach().clone() for name, p in state.params.items() if name.startswith("norms")}
    moments = state.optimizer.memory["exp_avg"].clone()
    update.task_boundary(state, methods, 1)
    assert norms and all(torch.equal(state.params[name], before) for name, before in norms.items())
    assert torch.equal(state.optimizer.memory["exp_avg"], moments)
    for group in state.groups[:-1]:
        assert torch.allclose(state.group_norm(group), start[group.name], rtol=1e-5)


# --- InFeR


def frozen_penalty(state, start, inputs, *, scale: float, heads: int) -> torch.Tensor:
    """sum over heads of the squared error [S, B], with weights as matrices and a network written out."""

    def features(flat):
        x = inputs
        for index in (0, 1):
            weight, bias = (state.view(flat, f"linears.{index}.{leaf}") for leaf in ("weight", "bias"))
            x = F.relu(torch.einsum("sbi,sio->sbo", x, weight) + bias.unsqueeze(1))
        return torch.einsum("sbf,sfh->sbh", x, state.view(flat, "auxiliary.weight"))

    errors = features(state.flat.detach()) - scale * features(start)
    assert errors.shape[2] == heads
    return errors.square().sum(dim=2)


@pytest.mark.parametrize(("over_heads", "divisor"), [("sum", 1), ("mean", 3)])
def test_the_penalty_is_the_squared_distance_to_the_scaled_initial_heads(over_heads, divisor):
    state, methods = made(f"infer(coef=0.2, heads=3, scale=5.0, over_heads={over_heads!r})")
    start = state.flat.detach().clone()
    advance(state, methods, 3)
    inputs = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(1))
    update.forward(state, methods, inputs)
    found_S = only(methods).loss_penalty(state)
    wanted_S = 0.2 / divisor * frozen_penalty(state, start, inputs, scale=5.0, heads=3).mean(dim=1)
    assert torch.allclose(found_S, wanted_S, rtol=1e-5)


@pytest.mark.parametrize("beside", ["", "+parseval", "+hyperspherical", "+weight_norm"])
def test_at_the_start_and_scale_one_heads_and_frozen_heads_agree_whatever_moved_the_start(beside):
    state, methods = made(f"infer(scale=1.0){beside}")
    update.forward(state, methods, torch.randn(2, 6, 5))
    (infer,) = (method for method in methods if method.name == "infer")
    assert infer.loss_penalty(state).abs().max() == 0.0


def test_the_gradient_of_loss_and_penalty_is_that_of_their_sum():
    state, methods = made("infer(coef=0.3, heads=2, scale=4.0)", optimizer=SGD())
    inputs = torch.randn(2, 6, 5)
    start = state.flat.detach().clone()
    update.grad_step(state, [update.forward(state, methods, inputs).square().mean(dim=(1, 2))], methods)
    found = state.gradient.clone()
    flat = start.clone().requires_grad_()
    x = x0 = inputs
    for index in (0, 1):
        for_layer = [state.view(f, f"linears.{index}.{leaf}") for f in (flat, start) for leaf in ("weight", "bias")]
        x = F.relu(torch.baddbmm(for_layer[1].unsqueeze(1), x, for_layer[0]))
        x0 = F.relu(torch.baddbmm(for_layer[3].unsqueeze(1), x0, for_layer[2]))
    out = torch.baddbmm(state.view(flat, "output.bias").unsqueeze(1), x, state.view(flat, "output.weight"))
    heads, heads0 = (state.view(f, "auxiliary.weight") for f in (flat, start))
    errors = torch.bmm(x, heads) - 4.0 * torch.bmm(x0, heads0)
    loss_S = out.square().mean(dim=(1, 2)) + 0.3 * errors.square().sum(dim=2).mean(dim=1)
    (wanted,) = torch.autograd.grad(loss_S.sum(), flat)
    assert torch.allclose(found, wanted[:, : state.num_parameters], atol=1e-5)


def test_heads_are_in_the_optimizer_and_the_frozen_ones_are_not():
    """Elsewhere what a method adds is sometimes not handed to the optimizer, and never learns."""
    state, methods = made("infer")
    heads = state.params["auxiliary.weight"].detach().clone()
    assert state.roles["auxiliary.weight"] is Role.AUXILIARY
    frozen = state.slots["infer"]["initial"].clone()
    advance(state, methods, 3)
    assert state.params["auxiliary.weight"].ne(heads).any(dim=1).all(), "every head learns"
    assert torch.equal(state.slots["infer"]["initial"], frozen)
    assert state.optimizer.moments("auxiliary.weight")["exp_avg"].ne(0).any()


def test_initial_parameters_outputs_and_batches_do_not_depend_on_the_heads():
    with_heads, methods = made("infer")
    without, _ = made("baseline")
    assert all(torch.equal(p, with_heads.params[name]) for name, p in without.params.items())
    inputs = torch.randn(2, 6, 5)
    assert torch.equal(with_heads.forward(inputs), without.forward(inputs))


@pytest.mark.parametrize("net", NETWORKS)
def test_a_frozen_norm_over_the_batch_neither_learns_nor_lends_its_statistics(net):
    state, methods = made("batch_norm+infer(scale=1.0)", net)
    start = {name: slot.clone() for name, slot in state.slots["infer"].items()}
    alone, only_norm = made("batch_norm", net)
    state.slots["infer"]["initial"].copy_(state.flat)
    for one, stack in ((state, methods), (alone, only_norm)):
        advance(one, stack, 1, net)
    assert all(torch.equal(state.buffers[name], buffer) for name, buffer in alone.buffers.items())
    assert all(torch.equal(state.slots["infer"][name], slot) for name, slot in start.items())


def test_penalties_and_resets_of_other_methods_leave_the_heads_alone():
    for stack in ("l2(coef=1.0)", "layer_reset(layers=3)", "shrink_perturb", "regenerative(coef=1.0)"):
        state, _ = made("infer")
        methods = stack_of(parse_stack(stack))
        methods.setup(state)
        state.gradient.zero_()
        heads = state.params["auxiliary.weight"].detach().clone()
        state.step = 1
        for method in methods:
            method.after_backward(state)
            method.after_step(state)
        update.task_boundary(state, methods, 1)
        assert torch.equal(state.params["auxiliary.weight"], heads), stack
        assert not state.view(state.flat.grad, "auxiliary.weight").any(), stack


def test_features_are_what_output_layers_read_in_every_family_that_has_such():
    small = dict(channels=(), kernels=(), strides=(), hidden=8, atoms=5, sigma=0.1)
    networks = {
        "cnn": (dict(channels=(4, 6), kernel=3, pool_after=(1,), widths=()), 6),  # maps count by their mean
        "rainbow": (small, 2 * 8),  # both heads' hidden layers
        "resnet": (dict(blocks=(1,), channels=(16,), own_norm="batch", stem="small"), 16),
        "mlp": (dict(widths=(5, 7)), 7),
    }
    methods = stack_of(parse_stack("infer(heads=3)"))
    for family, (size, num_features) in networks.items():
        spec = ModelSpec(family=family, size=tuple(size.items()))
        state = build(methods.transform_model(spec), Part.of(Adam()), (0, 1), ((2, 8, 8), 4), "cpu")
        state.slots["infer"] = only(methods).setup(state)
        given = {"noise": torch.zeros(2, 1, state.model.num_noise)} if family == "rainbow" else {}
        update.forward(state, methods, torch.rand(2, 6, 2, 8, 8), **given)
        assert state.params["auxiliary.weight"].shape == (2, num_features, 3), family
        assert state.features(state.acts).shape == (2, 6, num_features), family
        assert only(methods).loss_penalty(state).min() > 0.0, family


def test_one_more_forward_is_counted_for_every_update():
    state, methods = made("infer")
    advance(state, methods, 4)
    assert state.num_forwards == 8


# --- all of them


@pytest.mark.parametrize(
    "stack", ["hare_tortoise(momentum=0.5, period=2)", "upgd(sigma=0.1)", "infer(scale=1.0)", "dash(decay=0.5)"]
)
def test_a_diverged_seed_does_not_touch_the_others(stack):
    block, methods = made(stack, seeds=(0, 1, 2))
    block.params["linears.0.weight"].detach()[1] = float("nan")
    advance(block, methods, 3)
    update.task_boundary(block, methods, 1)
    advance(block, methods, 3)
    for index, seed in ((0, 0), (2, 2)):
        alone, methods = made(stack, seeds=(seed,))
        advance(alone, methods, 3)
        update.task_boundary(alone, methods, 1)
        advance(alone, methods, 3)
        assert torch.equal(alone.flat[0], block.flat[index])
    assert block.alive.tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("stack", "reason"),
    [
        ("nap+implicit_schedule+upgd", "rescales weights between gradient and step"),
        ("nap+implicit_schedule+upgd(gated=False)", None),
        ("hare_tortoise+nap", None),
        ("redo+hyperspherical(radius=2.0)", "redo draws units for radius 1, found 2.0"),
        ("redo+hyperspherical", None),
        ("dash+nap(period=3)", None),
    ],
)
def test_stacks_that_cannot_be_say_why(stack, reason):
    run = entry("laptop", "baseline", {}, seeds=(0,)).run
    found = stack_of(parse_stack(stack)).why_not(dataclasses.replace(run, methods=parse_stack(stack)))
    assert found is None if reason is None else reason in found


def test_a_transformer_has_no_features_to_keep():
    from golden.test_golden import TRANSFORMER

    run = entry("laptop", "baseline", {}, seeds=(0,)).run
    run = dataclasses.replace(run, model=TRANSFORMER, methods=parse_stack("infer"))
    assert "residual stream" in stack_of(run.methods).why_not(run)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hare_tortoise(momentum=1.0)", r"hare_tortoise wants momentum in \[0, 1\); found 1.0"),
        ("hare_tortoise(period=0)", "hare_tortoise wants a whole period >= 1 or None; found 0"),
        ("hare_tortoise(moments='forget')", "hare_tortoise wants moments 'keep' or 'reset'; found 'forget'"),
        ("upgd(sigma=-1)", "upgd wants a finite sigma >= 0; found -1"),
        ("upgd(decay=1.0)", r"upgd wants decay in \[0, 1\); found 1.0"),
        ("dash(floor=1.5)", r"dash wants floor in \[0, 1\]; found 1.5"),
        ("dash(newest=0)", r"dash wants newest in \(0, 1\]; found 0"),
        ("dash(decay=1.0)", r"dash wants decay in \[0, 1\); found 1.0"),
        ("infer(coef=-0.1)", "infer wants a finite coef >= 0; found -0.1"),
        ("infer(heads=0)", "infer wants heads >= 1 and a finite scale; found 0 and 100.0"),
        ("infer(over_heads='men')", "Did you mean 'mean'"),
    ],
)
def test_a_bad_hyperparameter_is_named_with_its_value_and_range(text, message):
    with pytest.raises(ValueError, match=message):
        parse_stack(text)
