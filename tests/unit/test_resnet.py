"""Residual networks, version 2: parameters and function against closed forms, groups and units as they are declared."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nap_bench import update
from nap_bench.benchmarks import StationaryImages
from nap_bench.methods import parse_stack, stack_of
from nap_bench.models.resnet import RESNET50
from nap_bench.models.roles import Role
from nap_bench.optimizers import SGD, Adam
from nap_bench.schedules import Constant
from nap_bench.spec import ModelSpec, Part, Run
from nap_bench.state import build

IMAGENET = ((3, 224, 224), 1000)
SMALL = (("blocks", (2, 1)), ("channels", (8, 16)), ("own_norm", "batch"), ("stem", "small"))
SHAPES = ((3, 8, 8), 5)


def made(stack="baseline", size=SMALL, shapes=SHAPES, seeds=(0, 1), device="cpu", optimizer=None):
    methods = stack_of(parse_stack(stack))
    spec = methods.transform_model(ModelSpec(family="resnet", size=size, init="he"))
    state = build(spec, Part.of(optimizer or Adam()), seeds, shapes, device)
    if device == "cpu":
        state.lr.fill_(0.01)
        methods.setup(state)
    return state, methods


def images(seeds=(0, 1), batch=16, step=0):
    drawn = [torch.randn(batch, *SHAPES[0], generator=torch.Generator().manual_seed(99 * s + step)) for s in seeds]
    return torch.stack(drawn)


def advance(state, methods, num_steps):
    for _ in range(num_steps):
        out_SBK = update.forward(state, methods, images(state.seeds, step=state.step))
        losses_S = out_SBK.logsumexp(dim=2).mean(dim=1) - out_SBK[:, :, 1].mean(dim=1)
        update.grad_step(state, [losses_S], methods)
        update.tail(state, methods)


def test_resnet50_has_the_parameters_of_the_closed_form():
    kernels, norms, width = 49 * 3 * 64, 0, 64
    for count, wide in zip((3, 4, 6, 3), (256, 512, 1024, 2048), strict=True):
        inside = wide // 4
        for index in range(count):
            kernels += width * inside + 9 * inside * inside + inside * wide + (width * wide if index == 0 else 0)
            norms += width + 2 * inside
            width = wide
    norms += width
    assert kernels == 23_454_912  # of torchvision's ResNet-50: the same convolutions in another order
    counts = {"baseline": 2, "layer_norm": 3, "nap": 3}
    for stack, per_channel in counts.items():
        state, _ = made(stack, RESNET50, IMAGENET, device="meta")
        assert state.num_parameters == kernels + per_channel * norms + 2049 * 1000
        assert len(state.groups) == 1 + 16 * 3 + 4 + 1 and len(state.units) == 32


def test_its_kernels_are_torchvisions():
    from nap_bench.data.torchvision_import import import_torchvision

    with torch.device("meta"):
        theirs = import_torchvision().models.resnet50()
    wanted = sorted(tuple(p.shape) for p in theirs.parameters() if p.dim() == 4)
    state, _ = made("baseline", RESNET50, IMAGENET, device="meta")
    assert sorted(tuple(p.shape[1:]) for p in state.params.values() if p.dim() == 5) == wanted


@pytest.mark.parametrize("stem", ["small", "large"])
def test_the_baseline_is_what_pytorch_makes_of_it(stem):
    size = tuple((dict(SMALL) | {"stem": stem}).items())
    state, _ = made(size=size, seeds=(3,))
    params = {name: p.detach()[0] for name, p in state.params.items()}

    def fresh_norm(h):
        return F.relu(nn.BatchNorm2d(h.shape[1])(h))

    x = images((3,))[0]
    x = F.conv2d(x, params["stem.weight"], stride=2 if stem == "large" else 1, padding=3 if stem == "large" else 1)
    x = nn.MaxPool2d(3, 2, 1)(x) if stem == "large" else x
    for index, stride in enumerate((1, 1, 2)):
        kernel = lambda i, index=index: params[f"blocks.{index}.convs.{i}.weight"]  # noqa: E731
        first = fresh_norm(x)
        h = fresh_norm(F.conv2d(first, kernel(0)))
        h = fresh_norm(F.conv2d(h, kernel(1), stride=stride, padding=1))
        shortcut = f"blocks.{index}.shortcut.weight"
        x = (F.conv2d(first, params[shortcut], stride=stride) if shortcut in params else x) + F.conv2d(h, kernel(2))
    wanted = fresh_norm(x).mean(dim=(2, 3)) @ params["output.weight"] + params["output.bias"]
    assert torch.allclose(state.forward(images((3,)), training=True)[0], wanted, atol=1e-5)


def test_a_stage_but_the_first_halves_the_image_and_acts_come_in_order():
    state, _ = made()
    acts: dict = {}
    state.forward(images(), acts)
    sides = [act.shape[3] for act in acts.values() if act.dim() == 5]
    assert sides == [8] * 8 + [4]  # block2_1 is still 8 wide: its 3 x 3 convolution halves
    assert list(acts)[-1] == "features" and acts["features"].shape == (2, 16, 16)
    assert {units.name for units in state.units} < set(acts)


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_groups_flagged_scale_invariant_are_and_those_that_write_into_a_sum_are_not(norm):
    state, methods = made(f"nap(norm={norm!r})")
    advance(state, methods, 3)
    x = images(step=77)
    before = state.forward(x)
    flagged = [group.name for group in state.groups if group.scale_invariant]
    assert flagged == ["stem"] + [f"block{b}_conv{i}" for b in range(3) for i in (0, 1)]
    for group in state.groups:
        (name,) = group.members
        state.params[name].detach().mul_(10.0)
        is_same = torch.allclose(state.forward(x), before, rtol=1e-2, atol=1e-3)
        assert is_same == group.scale_invariant, group.name
        state.params[name].detach().div_(10.0)


def test_the_kernels_that_write_into_one_stream_are_invariant_together():
    state, methods = made("nap")
    advance(state, methods, 3)
    x = images(step=77)
    before = state.forward(x)
    for name in ("blocks.0.shortcut", "blocks.0.convs.2", "blocks.1.convs.2"):
        state.params[f"{name}.weight"].detach().mul_(10.0)
    assert torch.allclose(state.forward(x), before, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("stack", ["nap", "nap(norm='none')", "nap+redo(period=2, tau=0.9)"])
def test_nap_holds_every_kernel_at_its_norm_and_leaves_the_output_layer(stack):
    state, methods = made(stack)
    start = {group.name: state.group_norm(group).clone() for group in state.groups}
    advance(state, methods, 5)
    for group in state.groups:
        held = torch.allclose(state.group_norm(group), start[group.name], rtol=1e-6)
        assert held == (group.name != "output"), group.name


@pytest.mark.parametrize(
    "stack", ["baseline", "nap", "crelu+nap", "continual_backprop(rate=0.1, maturity=2)+nap+redo(period=2, tau=0.9)"]
)
def test_a_seed_in_a_block_equals_the_seed_alone(stack):
    block, methods = made(stack, seeds=(0, 1, 2), optimizer=SGD(momentum=0.9, nesterov=True))
    advance(block, methods, 4)
    for index, seed in enumerate(block.seeds):
        alone, methods = made(stack, seeds=(seed,), optimizer=SGD(momentum=0.9, nesterov=True))
        advance(alone, methods, 4)
        assert torch.equal(alone.flat.detach()[0], block.flat.detach()[index])


@pytest.mark.parametrize("activation", ["relu", "crelu"])
def test_units_are_made_by_one_kernel_and_read_by_one(activation):
    stack = "crelu" if activation == "crelu" else "baseline"
    state, _ = made(stack)
    for units in state.units:
        (outgoing,) = units.outgoing
        state.by_unit(units, outgoing)[:, 1] = 0.0
        before = state.forward(images())
        for name in (*units.incoming, *units.norm):
            state.by_unit(units, name)[:, 1] = 7.0
        assert torch.equal(state.forward(images()), before)
        for name in units.norm:
            state.by_unit(units, name)[:, 0] = 7.0
        assert not torch.equal(state.forward(images()), before)


def run_of(stack, size=SMALL):
    task = StationaryImages(dataset="digits", num_evaluations=1, steps_per_evaluation=1, batch_size=8, held_out=100)
    return Run(
        benchmark=Part.of(task),
        model=ModelSpec(family="resnet", size=size),
        methods=parse_stack(stack),
        optimizer=Part.of(Adam()),
        schedule=Part.of(Constant(0.1)),
        seeds=(0,),
    )


def test_methods_that_cannot_be_say_why_not():
    for stack, reason in (
        ("layer_reset(layers=2)", "do not follow each other"),
        ("batch_norm", "batch norm of its own"),
    ):
        assert reason in stack_of(parse_stack(stack)).why_not(run_of(stack))
    assert "batch norm of its own" in stack_of(parse_stack("nap(norm='batch')")).why_not(run_of("nap(norm='batch')"))
    for stack in ("layer_reset", "redo", "continual_backprop", "nap", "group_norm(groups=2)"):
        assert stack_of(parse_stack(stack)).why_not(run_of(stack)) is None


@pytest.mark.parametrize(
    ("stack", "size", "reason"),
    [
        ("group_norm(groups=4)", SMALL, "groups=4 does not divide a hidden layer of 2"),  # inside the bottlenecks
        ("nap(norm='group')", SMALL, "groups=4 does not divide a hidden layer of 2"),
        ("group_norm(groups=4)", RESNET50, None),
        ("crelu(keep=0.71)", RESNET50, "keep=0.71 leaves 182 channels, and a resnet wants multiples of 4"),
        ("crelu(keep=0.75)", RESNET50, None),
        ("crelu(keep=0.75)+group_norm(groups=64)", RESNET50, "groups=64 does not divide a hidden layer of 48"),
    ],
)
def test_sizes_that_a_method_cannot_have_are_said_where_building_would_fail(stack, size, reason):
    run = run_of(stack, size)
    found = stack_of(run.methods).why_not(run)
    if reason is None:
        assert found is None and made(stack, size, seeds=(0,), device="meta")[0].flat.is_meta
    else:
        assert reason in found
        with pytest.raises(ValueError, match="multiple"):
            made(stack, size, seeds=(0,), device="meta")


def test_projection_alone_lets_the_scales_and_offsets_of_the_networks_own_norm_decay():
    stack = "nap(norm='none', scale_offset='decay', decay=0.5)"
    assert stack_of(parse_stack(stack)).why_not(run_of(stack)) is None
    bare = run_of(stack, tuple((dict(SMALL) | {"own_norm": "none"}).items()))
    assert "nothing to act on" in stack_of(bare.methods).why_not(bare)
    left_out = "nap(norm='none', scale_offset='none')"
    assert "nothing to act on" in stack_of(parse_stack(left_out)).why_not(run_of(left_out))
    state, (nap,) = made(stack)
    for name, role in state.roles.items():
        if role in (Role.SCALE, Role.OFFSET):
            state.params[name].data.fill_(3.0)
    nap.after_step(state)
    found = {role: {state.params[n].mean().item() for n, r in state.roles.items() if r is role} for role in Role}
    assert (found[Role.SCALE], found[Role.OFFSET]) == ({2.0}, {1.5})


def test_a_reset_of_the_last_layer_leaves_every_kernel():
    state, methods = made("layer_reset(period=1, to='zero')")
    state.values.add_(1.0)  # biases start at zero
    before = {name: p.detach().clone() for name, p in state.params.items()}
    state.step = 1
    methods.methods[0].after_step(state)
    changed = {name for name, p in state.params.items() if not torch.equal(p, before[name])}
    assert changed == {"output.weight", "output.bias"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks": (2,)}, "as many stages"),
        ({"channels": (8, 18)}, "multiples of 4"),
        ({"blocks": (2, 0)}, "as many stages"),
        ({"stem": "big"}, "stem of a resnet"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        made(size=tuple((dict(SMALL) | change).items()))


def test_without_any_norm_every_convolution_has_a_bias():
    state, _ = made(size=tuple((dict(SMALL) | {"own_norm": "none"}).items()))
    convolutions = sum(p.dim() == 5 for p in state.params.values())
    assert sum(role is Role.BIAS for role in state.roles.values()) == convolutions + 1
    assert not any(group.scale_invariant for group in state.groups)
