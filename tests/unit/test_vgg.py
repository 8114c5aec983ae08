"""VGG-like networks: what they are made of, and where norms stand when the network has its own."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nap_bench import update
from nap_bench.methods import METHODS, parse_stack, stack_of
from nap_bench.models.blocks import BatchNorm, LayerNorm
from nap_bench.models.roles import Role
from nap_bench.models.vgg import VGG16
from nap_bench.optimizers import SGD, Adam
from nap_bench.spec import ModelSpec, Part
from nap_bench.state import build

CIFAR = ((3, 32, 32), 10)
SMALL = (("channels", (4, 6, 8)), ("own_norm", "batch"), ("stages", (1, 2)), ("widths", (8,)))
SHAPES = ((3, 8, 8), 5)


def make(stack="baseline", size=SMALL, shapes=SHAPES, seeds=(0, 1), device="cpu", **edits):
    spec = ModelSpec(family="vgg", size=size, **edits)
    return build(stack_of(parse_stack(stack)).transform_model(spec), Part.of(Adam()), seeds, shapes, device)


def images(num_seeds=2, batch=6):
    return torch.randn(num_seeds, batch, *SHAPES[0], generator=torch.Generator().manual_seed(0))


def closed_form(channels, width, classes, *, per_unit):
    """Kernels of 3 x 3, one hidden linear layer over one pixel, the output layer, and `per_unit` parameters of norms or biases."""
    kernels = sum(9 * before * after for before, after in zip((3, *channels), channels, strict=False))
    return kernels + channels[-1] * width + (width + 1) * classes + per_unit * (sum(channels) + width)


@pytest.mark.parametrize(
    ("stack", "own", "per_unit"), [("baseline", "batch", 2), ("layer_norm", "batch", 3), ("nap", "batch", 3)]
)
def test_vgg16_has_the_parameters_of_the_closed_form(stack, own, per_unit):
    state = make(stack, VGG16, CIFAR, device="meta")
    channels = dict(VGG16)["channels"]
    assert state.num_parameters == closed_form(channels, 512, 10, per_unit=per_unit)
    assert sum(role is Role.WEIGHT for role in state.roles.values()) == 14  # 13 convolutions and a linear layer
    kernels = sum(p[0].numel() for p in state.params.values() if p.dim() == 5)
    assert kernels == 14_714_688 - 4_224  # of the published network's 13 convolutions, less their biases


def test_without_any_norm_there_are_biases_and_nothing_else_per_unit():
    size = tuple((key, "none" if key == "own_norm" else value) for key, value in VGG16)
    channels = dict(VGG16)["channels"]
    assert make("baseline", size, CIFAR, device="meta").num_parameters == closed_form(channels, 512, 10, per_unit=1)


def test_the_baseline_is_what_pytorch_makes_of_it():
    """Convolution, BatchNorm, ReLU, and a max-pool after each stage; then linear, BatchNorm, ReLU, linear."""
    state = make(seeds=(3,))
    params = {name: p.detach()[0] for name, p in state.params.items()}
    x = images(1)
    for training in (True, False):
        theirs = [nn.BatchNorm2d(n) if i < 3 else nn.BatchNorm1d(n) for i, n in enumerate((4, 6, 8, 8))]
        found = state.forward(x, training=training) if training else state.forward(x)
        h = x[0]
        for index, norm in enumerate(theirs):
            norm.train(training)
            if not training:
                norm.running_mean.copy_(state.buffers[f"norms.{index}.running_mean"][0])
                norm.running_var.copy_(state.buffers[f"norms.{index}.running_var"][0])
            weight = params[f"layers.{index}.weight"]
            h = F.conv2d(h, weight, padding=1) if index < 3 else h.flatten(1) @ weight
            h = norm(h).relu()
            h = F.max_pool2d(h, 2) if index in (0, 2) else h
        assert torch.allclose(found[0], h @ params["output.weight"] + params["output.bias"], atol=1e-5)


@pytest.mark.parametrize("stack", ["layer_norm", "nap", "nap(norm='rms')", "nap(norm='group')"])
def test_what_a_method_adds_stands_before_the_networks_own_norm_and_has_no_offset(stack):
    state = make(stack, tuple((k, (4, 8, 8) if k == "channels" else (8,) if k == "widths" else v) for k, v in SMALL))
    for pair in state.model.norms:
        added, own = pair
        assert isinstance(added, LayerNorm) and not isinstance(added, BatchNorm) and isinstance(own, BatchNorm)
        assert added.scale is not None and added.offset is None
        assert own.scale is not None and own.offset is not None
    assert Role.OFFSET in state.roles.values() and "norms.0.0.offset" not in state.params


def test_layer_norm_before_batch_norm_is_that():
    norms = make("layer_norm").model.norms[1]
    h = images()[:, :, :1].expand(2, 6, 6, 8, 8) * torch.arange(1.0, 7).view(6, 1, 1) + 2
    unit = F.layer_norm(h, h.shape[2:])
    mean, var = (
        f(unit, dim=(1, 3, 4), keepdim=True) for f in (torch.mean, lambda *a, **k: torch.var(*a, **k, correction=0))
    )
    assert torch.allclose(norms.train()(h), (unit - mean) * torch.rsqrt(var + 1e-5), atol=1e-4)


def test_a_norm_without_offset_keeps_the_policies_of_scale_and_offset():
    """Decay pulls a scale without an offset to 1; jointly normalised, it keeps its own norm."""
    for policy in ("decay", "joint"):
        stack = f"nap(scale_offset={policy!r}, decay=0.5)"
        (nap,), state = stack_of(parse_stack(stack)), make(stack)
        state.slots["nap"] = nap.setup(state)
        scale, own = state.params["norms.0.0.scale"].detach(), state.params["norms.0.1.offset"].detach()
        scale.mul_(3.0), own.add_(1.0)
        state.step = 1
        nap.after_step(state)
        assert torch.allclose(scale, torch.full_like(scale, 2.0 if policy == "decay" else 1.0))
        assert torch.allclose(own, torch.full_like(own, 0.5 if policy == "decay" else 0.5**0.5))


def advanced(stack, seeds, num_steps=4):
    """A state trained for a few steps, on noise that depends on seed and step alone, and its methods."""
    methods = stack_of(parse_stack(stack))
    spec = methods.transform_model(ModelSpec(family="vgg", size=SMALL, init="he"))
    state = build(spec, Part.of(SGD(momentum=0.9, nesterov=True)), seeds, (SHAPES[0], 10), "cpu")
    state.lr.fill_(0.05)
    methods.setup(state)
    start = {group.name: state.group_norm(group).clone() for group in state.groups}
    for _ in range(num_steps):
        drawn = [torch.Generator().manual_seed(100 * seed + state.step) for seed in seeds]
        out_SBK = update.forward(state, methods, torch.stack([torch.randn(16, *SHAPES[0], generator=g) for g in drawn]))
        update.grad_step(state, [out_SBK.logsumexp(dim=2).mean(dim=1) - out_SBK[:, :, 3].mean(dim=1)], methods)
        update.tail(state, methods)
    return state, start


@pytest.mark.parametrize("stack", ["baseline", "nap", "nap+redo(period=2, tau=0.9)", "nap(norm='rms')+shrink_perturb"])
def test_a_seed_in_a_block_equals_the_seed_alone(stack):
    block, _ = advanced(stack, (0, 1, 2))
    for index, seed in enumerate(block.seeds):
        alone, _ = advanced(stack, (seed,))
        assert torch.equal(alone.flat.detach()[0], block.flat.detach()[index])


@pytest.mark.parametrize("stack", ["nap", "nap(norm='none')", "nap(norm='rms')"])
def test_nap_holds_every_layer_at_its_norm_and_the_function_does_not_know_it(stack):
    state, start = advanced(stack, (0, 1))
    for group in state.groups:
        assert torch.allclose(state.group_norm(group), start[group.name], rtol=1e-6) == (group.name != "output")
        assert group.scale_invariant == (group.name != "output")
    before = state.forward(images(), training=True)  # BatchNorm alone is invariant to a kernel's scale while it trains
    for group in state.groups[:-1]:
        state.params[group.members[0]].detach().mul_(10.0)
    assert torch.allclose(state.forward(images(), training=True), before, rtol=1e-2, atol=1e-2)


def test_batch_norm_before_batch_norm_is_refused():
    with pytest.raises(ValueError, match="normalises twice"):
        make("batch_norm")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stages": (1, 1)}, "add up to its 3 channels"),
        ({"stages": (3, 0)}, "at least one convolution"),
        ({"stages": ()}, "found \\(\\)"),
        ({"own_norm": "bach"}, "Did you mean 'batch'"),
        ({"stages": (1, 1, 1), "channels": (4, 4, 4)}, None),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change, message):
    size = tuple((dict(SMALL) | change).items())
    if message is None:
        make(size=size)
    else:
        with pytest.raises(ValueError, match=message):
            make(size=size)


def test_an_image_too_small_for_its_stages_is_refused():
    with pytest.raises(ValueError, match="nothing left after convolution"):
        make(size=VGG16, shapes=((1, 8, 8), 10), device="meta")


@pytest.mark.parametrize("stack", ["baseline", "nap", "crelu+nap"])
def test_units_name_every_parameter_around_a_hidden_layer(stack):
    state = make(stack)
    for units in state.units:
        assert len(units.norm) == (2 if stack == "baseline" else 3)
        for name in (*units.incoming, *units.norm, *units.outgoing):
            assert state.by_unit(units, name).shape[:2] == (2, units.size)
    hidden = {name for name, role in state.roles.items() if role is not Role.OUTPUT and name != "output.bias"}
    assert {name for units in state.units for name in (*units.incoming, *units.norm)} == hidden


def test_every_method_can_be_set_up_on_it_or_says_why_not():
    for name in METHODS:
        stack = "nap+implicit_schedule" if name == "implicit_schedule" else name
        stack = "group_norm(groups=1)" if name == "group_norm" else stack
        if name == "batch_norm":
            continue
        state = make(stack)
        for method in stack_of(parse_stack(stack)):
            method.setup(state)
