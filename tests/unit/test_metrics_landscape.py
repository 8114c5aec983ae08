"""Gradients of single examples, tangent kernel, curvature: against autograd one example and one seed at a time."""

import dataclasses
import math
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from nap_bench import update
from nap_bench.benchmarks import ClassIncremental, RandomLabels
from nap_bench.benchmarks.base import PREVIOUS
from nap_bench.experiments.base import make_run
from nap_bench.methods import parse_stack, stack_of
from nap_bench.metrics import landscape, ranks
from nap_bench.metrics.probe import METRICS, OF_UPDATE, Probe, UpdateProbe, measure, measure_update
from nap_bench.optimizers import Adam
from nap_bench.rng import generator
from nap_bench.schedules import Constant
from nap_bench.spec import ModelSpec, Part
from nap_bench.state import build
from nap_bench.store import RunFolder
from nap_bench.train import Control, train

MLP = dict(family="mlp", size=(("widths", (8, 8)),))
TINY = dict(family="mlp", size=(("widths", (3, 3)),))
CNN = dict(family="cnn", size=(("channels", (4, 4)), ("kernel", 3), ("pool_after", (0,)), ("widths", (8,))))
SPECS = {
    "mlp": ModelSpec(**MLP),
    "tanh": ModelSpec(**MLP, activation="tanh"),
    "crelu": ModelSpec(**MLP, activation="crelu"),
    **{f"mlp {norm}": ModelSpec(**MLP, norm=norm) for norm in ("layer", "rms", "batch", "group")},
    "mlp no affine": ModelSpec(**MLP, norm="layer", norm_affine=False),
    "cnn": ModelSpec(**CNN),
    "cnn layer": ModelSpec(**CNN, norm="layer"),
}
SHAPES = (3, 8, 8), 5
NUM = 6


def losses(out_SnK, y_Sn):
    return F.cross_entropy(out_SnK.flatten(0, 1), y_Sn.flatten(), reduction="none").view(y_Sn.shape)


def case(name, seeds=(0, 1), precision="fp64"):
    state = build(SPECS[name], Part.of(Adam()), seeds, SHAPES, "cpu", precision)
    inputs = torch.randn(NUM, *SHAPES[0], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    targets = torch.arange(NUM) % SHAPES[1]
    return state, inputs.expand(len(seeds), *inputs.shape), targets.expand(len(seeds), -1)


def gradients(state, seed_index, scalar):
    """[P]: gradient of a scalar with respect to one seed's parameters, all others' being zero."""
    found = torch.autograd.grad(scalar, list(state.params.values()), retain_graph=True, allow_unused=True)
    zeros = [torch.zeros_like(p) for p in state.params.values()]
    return torch.cat([(z if g is None else g)[seed_index].flatten() for g, z in zip(found, zeros, strict=True)])


@pytest.mark.parametrize("name", SPECS)
def test_the_tangent_kernel_is_the_gram_matrix_of_gradients_taken_one_by_one(name):
    state, inputs, _ = case(name)
    found = landscape.tangent_kernel(state, inputs)
    out_SnK = state.forward(inputs)
    for index in range(2):
        rows = [
            torch.stack([gradients(state, index, out_SnK[index, i, k]) for k in range(SHAPES[1])]) for i in range(NUM)
        ]
        wanted = [[(left * right).sum() / SHAPES[1] for right in rows] for left in rows]
        assert torch.allclose(found[index], torch.tensor(wanted, dtype=torch.float64), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", SPECS)
def test_gradient_covariance_holds_the_cosines_of_single_gradients(name):
    state, inputs, targets = case(name)
    found = landscape.gradient_covariance(state, inputs, targets, losses)
    losses_Sn = losses(state.forward(inputs), targets)
    for index in range(2):
        rows = torch.stack([gradients(state, index, losses_Sn[index, i]) for i in range(NUM)]).numpy()
        wanted = np.array([[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in rows] for a in rows])
        assert np.allclose(found[index], wanted, rtol=1e-9, atol=1e-10)
        off = wanted[~np.eye(NUM, dtype=bool)].mean()
        assert landscape.mean_cosine(found)[index].item() == pytest.approx(off, rel=1e-5, abs=1e-7)


def test_an_example_shown_twice_has_cosine_one_with_itself_and_one_without_gradient_zero_with_all():
    state, inputs, targets = case("mlp")
    inputs = inputs.clone()
    inputs[:, 1] = inputs[:, 0]
    targets = targets.clone()
    targets[:, 1] = targets[:, 0]

    def without_the_last(out_SnK, y_Sn):
        return losses(out_SnK, y_Sn) * (torch.arange(NUM) < NUM - 1)

    found = landscape.gradient_covariance(state, inputs, targets, without_the_last)
    assert torch.allclose(found[:, 0, 1], torch.ones(2, dtype=torch.float64))
    assert torch.equal(found[:, -1], torch.zeros(2, NUM, dtype=torch.float64))


def test_on_a_constant_input_the_tangent_kernel_has_rank_one_and_no_inverse():
    state, inputs, _ = case("mlp")
    spectrum = ranks.kernel_spectrum(landscape.tangent_kernel(state, inputs[:, :1].expand_as(inputs)))
    assert torch.allclose(ranks.effective_rank(spectrum), torch.ones(2)) and ranks.srank(spectrum).tolist() == [1, 1]
    assert (ranks.inverse_condition(spectrum) < 1e-12).all()


@pytest.mark.parametrize("spec", [ModelSpec(**TINY, activation="tanh"), ModelSpec(**TINY, norm="layer")])
def test_the_top_eigenvalue_is_that_of_the_whole_hessian(spec):
    state = build(spec, Part.of(Adam()), (0, 1), ((4,), 3), "cpu", "fp64")
    inputs = torch.randn(NUM, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).expand(2, NUM, 4)
    targets = (torch.arange(NUM) % 3).expand(2, -1)
    found = landscape.top_hessian_eigenvalue(state, inputs, targets, losses)
    for index in range(2):
        loss = losses(state.forward(inputs), targets).mean(dim=1)[index]
        slopes = torch.autograd.grad(loss, list(state.params.values()), create_graph=True)
        slope_P = torch.cat([slope[index].flatten() for slope in slopes])
        hessian = torch.stack([gradients(state, index, entry) for entry in slope_P])
        eigenvalues = torch.linalg.eigvalsh((hessian + hessian.T) / 2)
        wanted = eigenvalues[eigenvalues.abs().argmax()]
        assert found[index].item() == pytest.approx(wanted.item(), rel=1e-4)


def test_least_squares_has_the_hessian_of_its_inputs_whatever_the_parameters():
    """Of the mean of (x w)^2 it is 2 X^T X / n."""
    inputs = torch.randn(7, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64).expand(2, 7, 4)
    weight = torch.randn(2, 4, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(4)).requires_grad_()
    model = SimpleNamespace(params={"weight": weight}, seeds=(0, 1), forward=lambda x: torch.bmm(x, weight))
    found = landscape.top_hessian_eigenvalue(model, inputs, None, lambda out, y: out.squeeze(2).square())
    wanted = torch.linalg.matrix_norm(inputs, 2).square() * 2 / 7
    assert torch.allclose(found, wanted, rtol=1e-6)


def test_the_random_label_gradient_is_the_mean_over_draws_and_falls_when_outputs_are_cut_off():
    state, inputs, _ = case("mlp")
    found = landscape.random_label_gradient(state, inputs, losses, num_draws=3)
    for index, seed in enumerate(state.seeds):
        lengths = []
        for count in range(3):
            labels = torch.randint(SHAPES[1], (NUM,), generator=generator(seed, "redundancy", count))
            loss = losses(state.forward(inputs), labels.expand(2, -1)).mean(dim=1)[index]
            lengths.append(gradients(state, index, loss).square().sum())
        assert found[index].item() == pytest.approx(torch.stack(lengths).mean().item(), rel=1e-9)
    for name in state.params:
        if name.startswith(("linears", "output.weight")):
            state.params[name].detach().zero_()  # dead: only the last bias learns
    assert (landscape.random_label_gradient(state, inputs, losses, num_draws=3) < 0.5 * found).all()


# All of them as a run records them


STREAM = RandomLabels(
    dataset="digits", num_examples=64, num_tasks=2, steps_per_task=4, batch_size=16, metrics=("srank",)
)


def probe_of(seeds=(0, 1, 2), stack="nap", **changes):
    state = build(
        stack_of(parse_stack(stack)).transform_model(ModelSpec(**MLP)), Part.of(Adam()), seeds, STREAM.shapes, "cpu"
    )
    data = STREAM.load(None, "cpu")
    inputs, y_SE = STREAM.probe(data, seeds, 0)
    state.gradient.copy_(state.values)
    acts = {}
    with torch.no_grad():
        out_SEK = state.forward(inputs, acts)
    return Probe(state, inputs, y_SE, out_SEK, acts, STREAM.losses)


@pytest.mark.parametrize("stack", ["baseline", "nap"])
def test_every_metric_gives_one_finite_number_per_seed_and_touches_nothing(stack):
    probe = probe_of(stack=stack)
    state, generator_state = probe.state, torch.get_rng_state()
    before = [state.flat.detach().clone(), state.gradient.clone(), state.model.activation, dict(state.slots)]
    found = measure(METRICS, probe)
    assert found.keys() == METRICS.keys()
    for name, values_S in found.items():
        assert values_S.shape == (3,) and values_S.dtype == torch.float32 and not values_S.requires_grad, name
        assert torch.isfinite(values_S).all(), name
    assert torch.equal(state.flat.detach(), before[0]) and torch.equal(state.gradient, before[1])
    assert state.model.activation is before[2] and state.slots == before[3]
    assert not any(module._forward_hooks for module in state.model.modules())
    assert torch.equal(torch.get_rng_state(), generator_state)


@pytest.mark.parametrize("name", METRICS)
def test_a_seed_alone_has_the_metric_it_has_in_a_block(name):
    block = measure([name], probe_of())[name]
    alone = torch.cat([measure([name], probe_of((seed,)))[name] for seed in (0, 1, 2)])
    assert torch.allclose(block, alone, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", METRICS)
def test_a_diverged_seed_leaves_the_metrics_of_the_others_alone(name):
    healthy = measure([name], probe_of())[name]
    broken = probe_of()
    broken.state.params["linears.0.weight"].detach()[1] = math.nan
    with torch.no_grad():
        broken.acts.clear()
        broken.outputs = broken.state.forward(broken.inputs, broken.acts)
    broken.state.gradient[1] = math.nan
    found = measure([name], broken)[name]
    assert torch.equal(found[[0, 2]], healthy[[0, 2]]) and math.isnan(found[1])


def look_again(probe):
    """The probe of the same examples after the network was edited."""
    acts = {}
    with torch.no_grad():
        out_SEK = probe.state.forward(probe.inputs, acts)
    return Probe(probe.state, probe.inputs, probe.targets, out_SEK, acts, probe.losses)


@pytest.mark.parametrize("name", sorted(set(METRICS) - {"distance_to_init", "zero_gradient_fraction"}))
def test_a_network_whose_units_have_changed_places_has_the_same_metrics(name):
    """The null test of a metric: the function is the same, and so is everything that could matter for learning on.

    Distance to the initial point is about places; the gradient is a record of the last update, not of the network.
    """
    before = measure([name], probe_of(stack="baseline"))[name]
    probe = probe_of(stack="baseline")
    order = torch.tensor([3, 0, 7, 1, 6, 2, 5, 4])
    params = {key: parameter.detach() for key, parameter in probe.state.params.items()}
    params["linears.0.weight"].copy_(params["linears.0.weight"][:, :, order])
    params["linears.0.bias"].copy_(params["linears.0.bias"][:, order])
    params["linears.1.weight"].copy_(params["linears.1.weight"][:, order])
    after = look_again(probe)
    assert torch.allclose(after.outputs, probe.outputs, atol=1e-6)
    assert torch.allclose(measure([name], after)[name], before, rtol=1e-3, atol=1e-6)


def test_a_dead_network_is_told_from_a_healthy_one_by_every_metric_of_what_it_can_learn():
    healthy, dead = probe_of(stack="baseline"), probe_of(stack="baseline")
    for name, parameter in dead.state.params.items():
        if name.startswith("linears.1"):
            parameter.detach().copy_(-parameter.detach().abs())  # the last hidden layer answers to nothing
    before, after = measure(METRICS, healthy), measure(METRICS, look_again(dead))
    for name in ("srank", "effective_rank", "stable_rank", "participation_ratio", "tangent_kernel_effective_rank"):
        assert (after[name] < before[name]).all(), name
    for name in ("zero_entry_fraction", "rarely_active_fraction"):
        assert (after[name] > before[name]).all(), name
    assert torch.equal(after["feature_norm"], torch.zeros(3)) and torch.equal(after["srank"], torch.zeros(3))
    assert torch.equal(after["tangent_kernel_inverse_condition"], torch.zeros(3))


def test_a_benchmark_records_what_it_names_at_the_ends_of_tasks_only():
    stream = RandomLabels(
        **{
            **{f: getattr(STREAM, f) for f in ("dataset", "num_examples", "num_tasks", "steps_per_task", "batch_size")},
            "metrics": ("effective_rank", "distance_to_init", "previous_accuracy"),
        }
    )
    data, state = stream.load(None, "cpu"), probe_of().state
    state.step = 6
    assert stream.evaluate(state, data).keys() == {"accuracy", "loss", "acts"}
    state.step = 8
    found = stream.evaluate(state, data)
    assert found.keys() == {"accuracy", "loss", "acts", *stream.metrics}
    assert torch.equal(found["distance_to_init"], torch.zeros(3))
    state.step = 4
    assert torch.equal(stream.evaluate(state, data)["accuracy"], found["previous_accuracy"])


def test_every_metric_stands_on_the_page_about_metrics():
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    listed = re.findall(r"^\| `(\w+)` \|.*\|.*\|$", page[page.index("## On request") :], re.MULTILINE)
    assert listed == [*METRICS, PREVIOUS, *OF_UPDATE]


def updated(stack, seeds=(0, 1, 2), lr=0.01):
    """A probe of one update on a batch, and the plain facts about it: losses [S] before and after, in training."""
    methods = stack_of(parse_stack(stack))
    state = build(methods.transform_model(ModelSpec(**MLP)), Part.of(Adam()), seeds, STREAM.shapes, "cpu")
    state.lr.fill_(lr)
    methods.setup(state)
    batch = STREAM.batch(STREAM.load(None, "cpu"), seeds, 0)
    before_SP = state.eval_params.clone()
    losses_S = STREAM.loss(update.forward(state, methods, batch[0]), batch[1])
    update.grad_step(state, [losses_S], methods)
    update.tail(state, methods)
    return UpdateProbe(state, batch, STREAM.loss, losses_S.detach(), before_SP)


@pytest.mark.parametrize("stack", ["baseline", "nap", "batch_norm"])
def test_metrics_of_an_update_are_those_of_its_two_ends_and_touch_nothing(stack):
    probe = updated(stack)
    state = probe.state
    kept = [state.flat.detach().clone(), *(buffer.clone() for buffer in state.buffers.values())]
    found = measure_update(("srank", *OF_UPDATE), probe)
    assert found.keys() == {f"probe/{name}" for name in OF_UPDATE}
    after = [state.flat.detach(), *state.buffers.values()]
    assert all(torch.equal(a, b) for a, b in zip(kept, after, strict=True))
    inputs, y_SB = probe.batch
    with torch.no_grad():
        loss_S = STREAM.loss(state.forward(inputs, training=True), y_SB)
    share_S = (1 - loss_S / probe.before_S).clamp(0, 1)
    assert torch.equal(found["probe/one_step_plasticity"], share_S) and (share_S > 0.01).all()
    angles = []
    for name in ("linears.0.weight", "linears.1.weight"):
        u, v = (state.view(flat, name).flatten(1).double() for flat in (probe.before_SP, state.eval_params))
        angles.append(torch.acos(F.cosine_similarity(u, v, dim=1)))
    expected = (angles[0] * angles[1]).sqrt().float()
    assert torch.allclose(found["probe/rotation_angle"], expected, rtol=1e-4) and (expected > 1e-3).all()


def test_an_update_that_changes_nothing_turns_nothing_and_helps_nothing():
    found = measure_update(OF_UPDATE, updated("baseline", lr=0.0))
    assert not any(values_S.any() for values_S in found.values())


def test_metrics_of_updates_are_recorded_at_every_probe_and_change_no_other_number(tmp_path):
    rows = []
    for metrics in ((), tuple(OF_UPDATE)):
        stream = dataclasses.replace(STREAM, metrics=metrics, probes_per_task=2)
        how = dict(model=ModelSpec(**MLP), stack="batch_norm", optimizer=Adam(), schedule=Constant(0.01), seeds=(0, 1))
        folder = RunFolder(tmp_path, make_run(benchmark=stream, **how))
        folder.open()
        result = train(folder.run, folder, data_dir=None, device="cpu", control=Control())
        assert result["cost"]["extra_forward_passes"] == 0
        rows.append(folder.metrics.read_text().splitlines())
    new = [row for row in rows[1] if row.split(",")[2].removeprefix("probe/") in OF_UPDATE]
    assert [row for row in rows[1] if row not in new] == rows[0]
    assert {row.split(",")[0] for row in new} == {"2", "4", "6", "8"}
    assert {row.split(",")[2] for row in new} == {f"probe/{name}" for name in OF_UPDATE}


def test_an_unknown_metric_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="metric of class_incremental 'sranks'.*Did you mean 'srank'"):
        ClassIncremental(
            dataset="digits", num_examples=300, num_tasks=1, steps_per_task=4, batch_size=16, metrics=("sranks",)
        )
