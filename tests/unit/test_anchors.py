"""Anchors outside ourselves: what the paper (arXiv 2407.01800) proves, checked in float64 by autograd.

Small networks written out here stand against the suite's norms, metrics and effective learning rates. At the end: the
numbers of other public work that a CPU can reach, each with its source and tolerance. These are counts and closed forms. Of an
accuracy after training there is none: the papers on plasticity show theirs in figures, and the one public table of a small
NaP comparison that we know of (five arms on MNIST, 512 updates) leaves out what would be needed to repeat it.
S seeds, B examples, D units.
"""

import math

import pytest
import torch
from torch import Tensor
from torch.func import jacrev
from torch.nn import functional as F

from nap_bench.experiments import field_comparison, streams_kumar
from nap_bench.methods import parse_stack, stack_of
from nap_bench.metrics.norms import effective_learning_rate, global_norm, relative_update, rotation_angle, update_parts
from nap_bench.metrics.plasticity import dead_fraction, linearised_fraction
from nap_bench.models.blocks import LayerNorm, RMSNorm
from nap_bench.optimizers import Adam
from nap_bench.spec import ModelSpec, Part
from nap_bench.state import build

PHI = {"relu": torch.relu, "tanh": torch.tanh}


def draw(num: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(num), dtype=torch.float64)


def f_rms(h: Tensor) -> Tensor:
    """The paper's RMSNorm, h / ||h||: without the factor sqrt(D)."""
    return h / torch.linalg.vector_norm(h, dim=-1, keepdim=True)


def network(weights: list[Tensor], x_BD: Tensor, norm=f_rms) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Bias-free ReLU MLP, the last weight its head: output, pre-activations before the norm, post-activations."""
    h, pre, acts = x_BD, [], []
    for weight in weights[:-1]:
        pre.append(h @ weight.T)
        h = torch.relu(norm(pre[-1]))
        acts.append(h)
    return h @ weights[-1].T, pre, acts


def small_network(num: int = 0) -> tuple[list[Tensor], Tensor, Tensor]:
    """Weights, inputs and regression targets."""
    shapes = [(16, 6), (12, 16), (3, 12)]
    weights = [draw(num + i, *shape) / math.sqrt(shape[1]) for i, shape in enumerate(shapes)]
    return weights, draw(90, 20, 6), draw(91, 20, 3)


def loss_of(weights: list[Tensor], x_BD: Tensor, y_BK: Tensor) -> Tensor:
    return (network(weights, x_BD)[0] - y_BK).square().mean()


def gradients(weights: list[Tensor], x_BD: Tensor, y_BK: Tensor) -> list[Tensor]:
    leaves = [weight.detach().requires_grad_() for weight in weights]
    return list(torch.autograd.grad(loss_of(leaves, x_BD, y_BK), leaves))


# Proposition 1


@pytest.mark.parametrize("phi", PHI.values(), ids=PHI)
def test_prop_1_gives_the_derivative_of_a_pre_activation_norm(phi):
    h = draw(1, 7)
    slope = torch.diag(jacrev(phi)(f_rms(h)))
    size = torch.linalg.vector_norm(h)
    closed_form = -slope.unsqueeze(1) * torch.outer(h, h) / size**3 + torch.diag(slope / size)
    assert torch.allclose(jacrev(lambda h: phi(f_rms(h)))(h), closed_form, rtol=1e-12, atol=1e-15)


def test_prop_1_a_saturated_unit_gets_a_gradient_before_the_activation_and_none_after_it():
    h = draw(1, 7)
    saturated, active = (h < 0).nonzero().flatten(), (h > 0).nonzero().flatten()
    assert len(saturated) and len(active)
    before = jacrev(lambda h: torch.relu(f_rms(h)))(h)
    after = jacrev(lambda h: f_rms(torch.relu(h)))(h)
    assert (before[active][:, saturated] != 0).all()
    assert (after[:, saturated] == 0).all()
    assert (after[:, active] != 0).any()


@pytest.mark.parametrize("kind", [RMSNorm, LayerNorm])
def test_prop_1_holds_for_the_suites_own_norms(kind):
    h = draw(1, 7)
    norm = kind(ModelSpec(family="mlp", size=(), norm_eps=0.0, norm_affine=False), 1, 7)
    jacobian = jacrev(lambda h: torch.relu(norm(h.view(1, 1, -1))).flatten())(h)
    if kind is RMSNorm:
        assert torch.allclose(jacobian, math.sqrt(7) * jacrev(lambda h: torch.relu(f_rms(h)))(h), rtol=1e-12)
    outputs = norm(h.view(1, 1, -1)).flatten()
    assert (jacobian[outputs > 0][:, outputs < 0] != 0).all()


# Scale invariance, effective learning rate (Definition 1)


@pytest.mark.parametrize("layer", [0, 1])
def test_the_gradient_of_scale_invariant_weights_is_orthogonal_to_them(layer):
    weights, *data = small_network()
    grad = gradients(weights, *data)[layer]
    weight_SP, step_SP = weights[layer].reshape(1, -1), grad.reshape(1, -1)
    parts = update_parts(weight_SP, weight_SP - 0.1 * step_SP)
    assert parts.tangential.item() > 1e-3
    assert abs(parts.radial.item()) < 1e-14


def test_the_gradient_of_the_unnormalised_head_is_not_orthogonal_to_it():
    weights, *data = small_network()
    head, grad = weights[2].flatten(), gradients(weights, *data)[2].flatten()
    assert abs(torch.dot(head, grad)) > 0.1 * head.norm() * grad.norm()


@pytest.mark.parametrize("c", [0.01, 3.0, 1e4])
@pytest.mark.parametrize("layer", [0, 1])
def test_scaling_weights_by_c_divides_their_gradient_by_c_and_leaves_the_other_layers(layer, c):
    weights, *data = small_network()
    scaled = [c * weight if i == layer else weight for i, weight in enumerate(weights)]
    for i, (ours, theirs) in enumerate(zip(gradients(scaled, *data), gradients(weights, *data), strict=True)):
        assert torch.allclose(ours, theirs / c if i == layer else theirs, rtol=1e-11, atol=1e-14 / c)
    assert torch.allclose(loss_of(scaled, *data), loss_of(weights, *data), rtol=1e-13)


@pytest.mark.parametrize("steps_are_normalised", [False, True], ids=["sgd", "normalised"])
@pytest.mark.parametrize("norm", [0.2, 1.0, 30.0])
def test_a_step_at_the_effective_rate_from_the_unit_sphere_is_the_same_step(steps_are_normalised, norm):
    weights, *data = small_network()
    theta = norm * weights[0] / weights[0].norm()
    unit = theta / theta.norm()
    lr = 0.7 * norm

    def stepped(weight: Tensor, rate: float) -> list[Tensor]:
        grad = gradients([weight, *weights[1:]], *data)[0]
        return [weight - rate * (grad / grad.norm() if steps_are_normalised else grad), *weights[1:]]

    norm_S = global_norm(theta.unsqueeze(0))
    elr = effective_learning_rate(lr, norm_S, steps_are_normalised=steps_are_normalised).item()
    wanted = network(stepped(theta, lr), data[0])[0]
    assert torch.allclose(network(stepped(unit, elr), data[0])[0], wanted, rtol=1e-10, atol=1e-12)
    assert rotation_angle(theta.unsqueeze(0), stepped(theta, lr)[0].unsqueeze(0)) > 1e-3
    if norm != 1.0:
        wrong = effective_learning_rate(lr, norm_S, steps_are_normalised=not steps_are_normalised)
        assert not torch.allclose(network(stepped(unit, wrong.item()), data[0])[0], wanted, rtol=1e-3)


def test_the_norm_grows_with_the_square_root_of_time_under_unit_steps():
    # the paper prints Theta(t) (A.5), which holds for the squared norm
    alpha, num_steps = 0.1, 1000
    theta = f_rms(draw(5, 30))
    targets = draw(6, num_steps, 30)
    for step, target in enumerate(targets, start=1):
        grad = jacrev(lambda theta, target=target: f_rms(theta) @ target)(theta)
        before, theta = theta, theta - alpha * grad / grad.norm()
        if step in (1, 10, 100):
            assert theta.norm().item() == pytest.approx(math.sqrt(1 + alpha**2 * step), rel=1e-12)
    assert theta.norm().item() == pytest.approx(3.3166, abs=5e-5)
    measured = relative_update(before.unsqueeze(0), theta.unsqueeze(0))
    by_formula = effective_learning_rate(alpha, global_norm(before.unsqueeze(0)), steps_are_normalised=True)
    assert torch.allclose(measured, by_formula, rtol=1e-12)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_projected_twin_with_rescaled_rates_follows_the_free_network(optimizer):
    # Adam's moments mix gradients taken at different norms: the twin also needs gradients of the free network's size
    def train(*, project: bool, rescale: bool, num_steps: int = 200) -> tuple[float, float]:
        weights, *data = small_network()
        moments = [(torch.zeros_like(weight), torch.zeros_like(weight)) for weight in weights]
        targets = [weight.norm() for weight in weights]
        growth = [1.0, 1.0, 1.0]  # of the free twin: norm before projection over target, accumulated
        rate = 0.5 if optimizer == "sgd" else 0.02
        for step in range(1, num_steps + 1):
            for i, grad in enumerate(gradients(weights, *data)):
                c = growth[i] if rescale else 1.0
                norm_S = torch.as_tensor(c, dtype=torch.float64).reshape(1)
                lr = effective_learning_rate(rate, norm_S, steps_are_normalised=optimizer == "adam").item()
                update = grad
                if optimizer == "adam":
                    mean, square = moments[i]
                    mean.mul_(0.9).add_(0.1 * grad / c)
                    square.mul_(0.999).add_(0.001 * (grad / c).square())
                    update = (mean / (1 - 0.9**step)) / (square / (1 - 0.999**step)).sqrt()
                weights[i] = weights[i] - lr * update
                if project and i < 2:
                    factor = weights[i].norm() / targets[i]
                    weights[i] = weights[i] / factor
                    growth[i] *= factor.item()
        return loss_of(weights, *data).item(), (weights[0].norm() / targets[0]).item()

    free, growth = train(project=False, rescale=False)
    twin, held = train(project=True, rescale=True)
    constant, _ = train(project=True, rescale=False)
    assert growth > 1.05 and held == pytest.approx(1.0, rel=1e-12)
    assert twin == pytest.approx(free, rel=1e-8)
    assert constant != pytest.approx(free, rel=1e-3)


# Proposition 2


def test_prop_2_normalising_changes_neither_activation_patterns_nor_decisions():
    weights, x_BD, _ = small_network(3)
    x_BD = draw(7, 500, 6)
    plain, plain_pre, plain_acts = network(weights, x_BD, norm=lambda h: h)
    normed, normed_pre, normed_acts = network(weights, x_BD)
    for ours, theirs in zip(normed_acts, plain_acts, strict=True):
        assert torch.equal(ours > 0, theirs > 0)
        for metric in (dead_fraction, linearised_fraction):
            assert torch.equal(metric(ours.unsqueeze(0)), metric(theirs.unsqueeze(0)))
    assert torch.equal(normed.argmax(dim=1), plain.argmax(dim=1))
    assert len(plain.argmax(dim=1).unique()) == 3
    # f~(x) = f(x) / prod_l ||h_l(x)||, the norms being those that the normalised network divides by
    factor_B1 = torch.stack([torch.linalg.vector_norm(h, dim=1, keepdim=True) for h in normed_pre]).prod(dim=0)
    assert torch.allclose(normed, plain / factor_B1, rtol=1e-11)
    assert torch.allclose(factor_B1, torch.linalg.vector_norm(plain_pre[-1], dim=1, keepdim=True), rtol=1e-11)


def test_prop_2_a_normalised_network_is_no_longer_piecewise_linear():
    weights, x_BD, _ = small_network(3)
    segment_BD = x_BD[0] + torch.linspace(0, 1e-3, 3, dtype=torch.float64).unsqueeze(1) * x_BD[1]

    def bend(norm) -> float:
        out, _, acts = network(weights, segment_BD, norm)
        assert all(torch.equal(act[0] > 0, act[2] > 0) for act in acts)  # one linear region of the plain network
        return (out[0] - 2 * out[1] + out[2]).abs().max().item()

    assert bend(lambda h: h) < 1e-14
    assert bend(f_rms) > 1e-9


# Numbers of other public work


@pytest.mark.parametrize(
    ("net", "shapes", "kept"),
    [
        ("mlp", ((1, 28, 28), 10), {"widths": (91, 91)}),
        ("cnn", ((3, 32, 32), 10), {"channels": (11, 11), "widths": (73, 73)}),
    ],
)
def test_crelu_has_as_many_parameters_where_kumar_et_al_remove_their_share_of_units(net, shapes, kept):
    """Kumar et al. 2023 remove 9 % of the units of 784-100-100-10, and 27 % of their convolutional network's, for CReLU to have
    as many parameters; of 16 channels, rounded down. Tolerance: 1 %, about a unit of a hundred."""

    def num_parameters(stack: str = "baseline", **changes) -> int:
        model = stack_of(parse_stack(stack)).transform_model(ModelSpec(**{**streams_kumar.NETS[net], **changes}))
        return build(model, Part.of(Adam()), (0,), shapes, "meta").num_parameters

    relu = num_parameters()
    size = tuple((key, kept.get(key, value)) for key, value in streams_kumar.NETS[net]["size"])
    assert num_parameters(activation="crelu", size=size) / relu == pytest.approx(1.0, abs=0.01)
    assert num_parameters(f"crelu(keep={streams_kumar.KEEP[net]})") / relu == pytest.approx(1.0, abs=0.01)
    assert num_parameters("crelu") / relu > 1.1  # so the share matters


def test_the_network_of_elsayed_and_mahmood_has_as_many_parameters_as_theirs():
    """LeNet-5 for CIFAR-10 as in PyTorch's tutorial: 456 + 2416 + 48120 + 10164 + 850. Exact."""
    model = field_comparison.streams("paper")["permuted_cifar10"][1]
    assert build(model, Part.of(Adam()), (0,), ((3, 32, 32), 10), "meta").num_parameters == 62006


@pytest.mark.parametrize("padding", [0, 1, None])
def test_a_convolutional_network_is_pytorchs_with_the_same_padding(padding):
    size = (("channels", (3, 4)), ("kernel", 5), ("pool_after", (0,)), ("widths", (6,)))
    size += () if padding is None else (("padding", padding),)
    state = build(ModelSpec(family="cnn", size=size), Part.of(Adam()), (0, 1), ((2, 14, 16), 5), "cpu")
    kept = {name: tensor.detach()[1] for name, tensor in state.params.items()}
    x = torch.randn(2, 3, 2, 14, 16, generator=torch.Generator().manual_seed(0))
    zeros, h = 2 if padding is None else padding, x[1]
    for index in range(2):
        h = F.relu(F.conv2d(h, kept[f"layers.{index}.weight"], kept[f"layers.{index}.bias"], padding=zeros))
        h = F.max_pool2d(h, 2) if index == 0 else h
    h = F.relu(h.flatten(1) @ kept["layers.2.weight"] + kept["layers.2.bias"])
    wanted = h @ kept["output.weight"] + kept["output.bias"]
    assert torch.allclose(state.forward(x)[1], wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"padding": 2}, r"kernel of 3 wants padding in \[0, 1\]; found 2"),
        ({"padding": 0, "channels": (2, 2, 2, 2)}, "nothing left after convolution 3"),
    ],
)
def test_padding_that_cannot_be_is_refused(changed, message):
    size = {"channels": (2,), "kernel": 3, "pool_after": (), "widths": (), **changed}
    with pytest.raises(ValueError, match=message):
        build(ModelSpec(family="cnn", size=tuple(size.items())), Part.of(Adam()), (0,), ((1, 8, 8), 2), "meta")


def test_tasks_of_kumar_et_al_are_as_many_passes_as_they_say():
    """Kumar et al. 2023: 1200 images for 400 passes in batches of 16; 10,000 images for one. Exact."""
    tasks = streams_kumar.TASKS["paper"]
    for stream, num_images, num_passes in (("shuffled_labels", 1200, 400), ("permuted_pixels", 10000, 1)):
        task = tasks[stream]
        assert task["num_examples"] == num_images
        assert task["steps_per_task"] * task["batch_size"] == num_passes * num_images
    assert (tasks["shuffled_labels"]["num_tasks"], tasks["permuted_pixels"]["num_tasks"]) == (50, 500)


def test_a_unit_of_age_100_has_a_raw_utility_of_0_634_of_its_own():
    """Loss-of-plasticity's decay 0.99: the running mean of a unit that is always as useful is 0.634 of it at age 100, so that one
    that ranks by it replaces what has just matured (reported of public code, SlopDotCash/asi #2343). Tolerance: rounding."""
    methods = stack_of(parse_stack("continual_backprop(rate=1e-9, maturity=1000)"))
    spec = ModelSpec(family="mlp", size=(("widths", (4,)),))
    state = build(spec, Part.of(Adam()), (0, 1), ((1, 3, 3), 2), "cpu")
    (method,) = methods
    state.slots[method.name] = method.setup(state)
    state.acts = {units.name: torch.ones(2, 5, units.size) for units in state.units}
    for _ in range(100):
        state.step += 1
        method.after_step(state)
    weights_SU = state.params["output.weight"].detach().abs().sum(dim=2)
    ratio = state.slots[method.name]["utility"] / weights_SU
    assert torch.allclose(ratio, torch.full_like(ratio, 0.634), atol=5e-4)
