"""Streams that methods are compared on: what a task is made of, against slow references, one example at a time and in blocks."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from unit.test_random_strings import StopAt

from nap_bench.benchmarks import HardAndEasy, PermutedInputs, RandomLabels, SlowlyChangingRegression, WarmStart
from nap_bench.benchmarks.slowly_changing_regression import STEPS_PER_CHUNK
from nap_bench.data import digits
from nap_bench.experiments.base import make_run
from nap_bench.models.blocks import Linear
from nap_bench.optimizers import SGD, Adam
from nap_bench.schedules import Constant
from nap_bench.session import Control, Interrupted
from nap_bench.spec import ModelSpec, Part
from nap_bench.state import build
from nap_bench.store import RunFolder
from nap_bench.train import train

SEEDS = (0, 1, 4)
SINGLE = dict(dataset="digits", num_examples=30, num_tasks=3, steps_per_task=30, batch_size=1, whole_passes=True)
STREAMS = {
    "regression": SlowlyChangingRegression(num_tasks=3, steps_per_task=30, eval_examples=40),
    "flip_one": SlowlyChangingRegression(num_tasks=3, steps_per_task=30, batch_size=2, flip_one=True),
    "permuted_labels": RandomLabels(**SINGLE, labels="permuted", pixels="symmetric"),
    "permuted_inputs": PermutedInputs(**SINGLE, permutations="fresh"),
    "online_permuted": PermutedInputs(**SINGLE, permutations="compounding", pixels="unit"),
    "hard_and_easy": HardAndEasy(
        dataset="digits",
        num_examples=600,
        num_tasks=5,
        steps_per_task=6,
        batch_size=8,
        eval_examples=20,
        hard_classes=3,
    ),
    "warm_start": WarmStart(
        dataset="digits",
        num_examples=60,
        held_out=40,
        num_tasks=3,
        steps_per_task=5,
        batch_size=8,
        chunks=3,
        eval_examples=15,
    ),
}
SMALL = ModelSpec(family="mlp", size=(("widths", (8,)),), init="he_uniform")


@pytest.fixture(scope="module")
def data():
    return {name: stream.load(None, "cpu") for name, stream in STREAMS.items()}


# What all have in common


@pytest.mark.parametrize("name", STREAMS)
def test_a_batch_depends_on_the_seed_and_the_step_alone(name, data):
    stream = STREAMS[name]
    for step in (stream.num_steps - 1, *range(0, stream.num_steps, 7)):
        inputs, targets = stream.batch(data[name], SEEDS, step)
        for index, seed in enumerate(SEEDS):
            alone = dataclasses.replace(stream, num_tasks=9).batch(data[name], (seed,), step)
            assert torch.equal(alone[0][0], inputs[index]) and torch.equal(alone[1][0], targets[index])
        assert not torch.equal(inputs[0], inputs[1])


@pytest.mark.parametrize("name", STREAMS)
def test_a_fresh_network_meets_the_very_batches_of_the_task_it_starts_at(name, data):
    stream = STREAMS[name]
    for task in (1, 2):
        fresh = dataclasses.replace(stream, first_task=task, num_tasks=1)
        assert fresh.task_at(0) == task
        for step in range(stream.steps_per_task):
            aged = stream.batch(data[name], SEEDS, task * stream.steps_per_task + step)
            assert all(map(torch.equal, fresh.batch(data[name], SEEDS, step), aged))


def trained(stream, folder, *, seeds=SEEDS, stack="baseline", optimizer=None, stops=(), model=SMALL):
    """metrics.csv of a run that is cut at these updates and goes on."""
    run = make_run(
        benchmark=stream,
        model=model,
        stack=stack,
        optimizer=optimizer or SGD(),
        schedule=Constant(0.01),
        seeds=tuple(seeds),
    )
    place = RunFolder(folder, run)
    place.open()
    for stop in stops:
        with pytest.raises(Interrupted, match=f"update {stop} "):
            train(run, place, control=StopAt(stop), data_dir=None, device="cpu")
    ended = train(run, place, control=Control(checkpoint_seconds=1e9), data_dir=None, device="cpu")
    assert {seed["status"] for seed in ended["status"]} == {"complete"}
    return place.metrics.read_text()


NETWORKS = {
    "small": SMALL,
    "odd": ModelSpec(family="mlp", size=(("widths", (22, 12)),)),  # rows of a seed begin anywhere in memory
    "cnn": ModelSpec(family="cnn", size=(("channels", (3,)), ("kernel", 3), ("pool_after", (0,)), ("widths", (13,)))),
}


@pytest.mark.parametrize(
    ("stack", "optimizer"),
    [("baseline", SGD()), ("nap", Adam()), ("layer_norm+redo(period=7)", Adam())],
    ids=lambda value: str(value)[:10],
)
@pytest.mark.parametrize(
    ("name", "net"),
    [
        *((name, "odd") for name in ("regression", "permuted_labels", "hard_and_easy", "warm_start")),
        ("regression", "small"),
        ("permuted_labels", "small"),
        ("permuted_labels", "cnn"),
    ],
)
def test_a_block_of_seeds_equals_each_seed_alone_example_by_example(name, net, stack, optimizer, tmp_path):
    stream = dataclasses.replace(STREAMS[name], num_tasks=2)
    how = dict(stack=stack, optimizer=optimizer, model=NETWORKS[net])

    def of(metrics, seed):
        return [line for line in metrics.splitlines() if line.split(",")[1] == str(seed)]

    block = trained(stream, tmp_path / "block", **how)
    for seed in SEEDS[1:]:
        alone = trained(stream, tmp_path / f"{seed}", seeds=(seed,), **how)
        assert of(alone, seed) == of(block, seed) != []


@pytest.mark.parametrize(
    ("rows", "inputs", "outputs"), [(1, 300, 150), (1, 150, 10), (1, 150, 47), (1, 64, 10), (1000, 5, 1), (40, 21, 1)]
)
@pytest.mark.parametrize("bias", [True, False])
def test_a_product_with_one_row_or_one_column_has_the_same_bits_in_a_block_and_backwards(rows, inputs, outputs, bias):
    def layer(some):
        made = Linear(len(weight_SIO[some]), inputs, outputs, bias=bias, init="torch")
        made.weight = torch.nn.Parameter(weight_SIO[some])
        made.bias = torch.nn.Parameter(weight_SIO[some, 0]) if bias else None
        x = x_SBI[some].clone().requires_grad_()
        out = made(x)
        return [out, *torch.autograd.grad(out.square().sum(), [x, *made.parameters()])]

    gen = torch.Generator().manual_seed(0)
    x_SBI, weight_SIO = (torch.randn(5, *shape, generator=gen) for shape in ((rows, inputs), (inputs, outputs)))
    block = layer(slice(None))
    assert torch.allclose(
        block[0], torch.einsum("sbi,sio->sbo", x_SBI, weight_SIO) + bias * weight_SIO[:, :1], atol=1e-4
    )
    for seed in range(5):
        assert all(torch.equal(a[0], b[seed]) for a, b in zip(layer(slice(seed, seed + 1)), block, strict=True))


@pytest.mark.parametrize("name", ["regression", "online_permuted", "hard_and_easy", "warm_start"])
def test_a_run_cut_at_any_update_goes_on_to_the_same_bytes(name, tmp_path, monkeypatch):
    stream = dataclasses.replace(STREAMS[name], num_tasks=2)
    clock = iter(range(10**9))  # a second passes at every look, so that every update is reported
    monkeypatch.setattr("time.perf_counter", lambda: 2.0 * next(clock))
    how = dict(stack="nap+redo(period=4)", optimizer=Adam())
    whole, last = trained(stream, tmp_path / "whole", **how), stream.num_steps - 1
    for stop in (1, stream.steps_per_task, stream.steps_per_task + 1, last):
        assert trained(stream, tmp_path / f"cut{stop}", stops=(stop,), **how) == whole
    assert trained(stream, tmp_path / "twice", stops=(2, last), **how) == whole


# One example at a time


@pytest.mark.parametrize("batch_size", [1, 5])
def test_whole_passes_show_every_image_once_before_any_comes_again_however_long_a_pass_takes(batch_size):
    stream = RandomLabels(
        dataset="digits",
        num_examples=1500,
        num_tasks=2,
        steps_per_task=6000 // batch_size,
        batch_size=batch_size,
        whole_passes=True,
    )
    data = stream.load(None, "cpu")
    chunks = [stream.order(data, 3, 1, chunk) for chunk in range(-(-stream.steps_per_task // stream.steps_per_chunk))]
    met = torch.cat(chunks)[: stream.steps_per_task].flatten()
    for images in met.split(1500):
        assert torch.equal(images.sort().values, torch.arange(1500))
    row = divmod(1600 // batch_size, stream.steps_per_chunk)
    inputs, _ = stream.batch(data, (3,), stream.steps_per_task + 1600 // batch_size)
    assert torch.equal(inputs[0], data.inputs[chunks[row[0]][row[1]]])


def test_without_whole_passes_a_long_pass_is_cut_off_as_it_always_was():
    stream = RandomLabels(dataset="digits", num_examples=1500, num_tasks=1, steps_per_task=1500, batch_size=1)
    data = stream.load(None, "cpu")
    assert stream.steps_per_chunk == 1024
    met = torch.cat([stream.order(data, 3, 0, chunk) for chunk in (0, 1)]).flatten()[:1500]
    assert len(met[:1024].unique()) == 1024 and len(met.unique()) < 1500


def test_pixels_lie_where_they_are_asked_for():
    raw = torch.frombuffer(bytearray(digits._read(digits._file())), dtype=torch.uint8).view(1797, 65)[:, :64].float()
    for pixels, wanted in (("unit", raw / 16.0), ("symmetric", raw / 8.0 - 1.0)):
        stream = RandomLabels(
            dataset="digits", num_examples=70, num_tasks=1, steps_per_task=1, batch_size=1, pixels=pixels
        )
        assert torch.allclose(stream.load(None, "cpu").inputs.flatten(1), wanted[:70], atol=1e-6)


def test_compounding_permutations_are_the_pixels_of_the_task_before_in_another_order(data):
    stream = STREAMS["online_permuted"]
    images = data["online_permuted"].inputs.flatten(1)
    for seed in SEEDS:
        shown = images
        for task in range(4):
            drawn = dataclasses.replace(stream, permutations="fresh").permutation(seed, task)
            shown = torch.stack([shown[:, place] for place in drawn.tolist()], dim=1)  # in place, task after task
            assert torch.equal(images[:, stream.permutation(seed, task)], shown)
            assert not torch.equal(shown, images), "the first task is permuted, too"


def test_the_published_streams_of_single_examples_can_be_written():
    online = PermutedInputs(
        dataset="mnist",
        num_examples=60000,
        num_tasks=800,
        steps_per_task=60000,
        batch_size=1,
        whole_passes=True,
        permutations="compounding",
        pixels="unit",
    )
    assert online.steps_per_chunk == 60000 and online.num_steps == 48_000_000
    labels = dict(num_tasks=400, steps_per_task=2500, batch_size=1, labels="permuted", whole_passes=True)
    for dataset, num_examples, num_classes in (("emnist", 112800, 47), ("cifar10", 50000, 10)):
        stream = RandomLabels(dataset=dataset, num_examples=num_examples, pixels="symmetric", **labels)
        assert stream.num_steps == 1_000_000 and stream.shapes[1] == num_classes and stream.download == dataset
    inputs = PermutedInputs(
        dataset="mnist",
        num_examples=5000,
        num_tasks=200,
        steps_per_task=5000,
        batch_size=1,
        permutations="fresh",
        pixels="symmetric",
        whole_passes=True,
    )
    assert inputs.num_steps == 1_000_000
    assert SlowlyChangingRegression(num_tasks=100).num_steps == 1_000_000
    assert SlowlyChangingRegression(num_tasks=300, flip_one=True).num_steps == 3_000_000


@pytest.mark.parametrize(
    ("kind", "changes", "complaint"),
    [
        (RandomLabels, {"pixels": "units"}, "Did you mean 'unit'"),
        (RandomLabels, {"batch_size": 7}, "batch_size that divides num_examples = 30 for whole_passes; found 7"),
        (PermutedInputs, {"permutations": "freshly"}, "Did you mean 'fresh'"),
    ],
)
def test_settings_of_single_examples_that_cannot_be_are_refused(kind, changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        kind(**{**SINGLE, **changes})


def test_fields_added_later_leave_the_identity_of_older_runs_alone():
    sizes = dict(dataset="digits", num_examples=30, num_tasks=3, steps_per_task=30, batch_size=1)
    for kind in (RandomLabels, PermutedInputs):
        assert dict(Part.of(kind(**sizes)).params) == {**sizes, "probes_per_task": 1}


# Slowly changing regression


def by_hand(stream, seed, x):
    """The target of one input, from the network's numbers, unit by unit."""
    weight_MF, bias_F, _, out_weight_F, out_bias = (part[0].tolist() for part in stream.target((seed,)))
    y = out_bias
    for unit in range(stream.num_units):
        weights = [row[unit] for row in weight_MF]
        threshold = stream.beta * (stream.num_inputs + 1) - (stream.num_inputs - sum(weights) + bias_F[unit]) / 2
        if sum(w * bit for w, bit in zip(weights, x, strict=True)) + bias_F[unit] > threshold:
            y += out_weight_F[unit]
    return y


@pytest.mark.parametrize("name", ["regression", "flip_one"])
def test_slow_bits_stay_for_a_task_fast_ones_do_not_and_targets_are_the_networks(name, data):
    stream, seen = STREAMS[name], []
    for task in range(3):
        steps = range(task * 30, task * 30 + 30)
        batches = [stream.batch(data[name], SEEDS, step) for step in steps]
        for index, seed in enumerate(SEEDS):
            rows = torch.cat([x[index] for x, _ in batches])
            assert set(rows.unique().tolist()) == {0.0, 1.0}
            assert len(rows[:, :15].unique(dim=0)) == 1 and len(rows[:, 15:].unique(dim=0)) > 10
            seen.append(tuple(rows[0, :15].tolist()))
            answers = torch.cat([y[index] for _, y in batches])
            for x, y in list(zip(rows.tolist(), answers.tolist(), strict=True))[:6]:
                assert y == by_hand(stream, seed, x)
    changes = [sum(a != b for a, b in zip(seen[i], seen[i + len(SEEDS)], strict=True)) for i in range(2 * len(SEEDS))]
    assert set(changes) == {1} if name == "flip_one" else max(changes) > 3
    weights = stream.target(SEEDS).weight_SMF
    assert set(weights.unique().tolist()) == {-1.0, 1.0} and not torch.equal(weights[0], weights[1])


def test_examples_go_on_over_the_border_between_chunks_without_coming_again():
    stream = SlowlyChangingRegression(num_tasks=1, steps_per_task=2 * STEPS_PER_CHUNK, num_inputs=60)
    data = stream.load(None, "cpu")
    rows = torch.stack([stream.batch(data, (0,), step)[0][0, 0] for step in range(2 * STEPS_PER_CHUNK)])
    assert len(rows.unique(dim=0)) == len(rows)


def test_the_loss_is_the_squared_error_and_there_is_no_accuracy(data, tmp_path):
    stream = STREAMS["regression"]
    out_SBK, y_SB = torch.tensor([[[1.5]], [[-2.0]]]), torch.tensor([[1.0], [1.0]])
    assert stream.loss(out_SBK, y_SB).tolist() == [0.25, 9.0]
    metrics = trained(stream, tmp_path)
    assert ",online/loss," in metrics and ",task_end/loss," in metrics and "accuracy" not in metrics


def test_evaluation_reads_the_task_and_leaves_the_state_as_it_was(data):
    stream = STREAMS["regression"]
    state = build(SMALL, Part.of(SGD()), SEEDS, stream.shapes, "cpu")
    state.step = 60
    before = state.flat.detach().clone()
    found = stream.evaluate(state, data["regression"])
    again = stream.evaluate(state, data["regression"])
    assert torch.equal(found["loss"], again["loss"]) and torch.equal(state.flat.detach(), before)
    x_SNM = stream._examples(SEEDS, 1, 40, "probe")
    for index, seed in enumerate(SEEDS):
        assert torch.equal(x_SNM[index, :, :15], stream.slow_bits(seed, 1).expand(40, -1))
        outputs = state.forward(x_SNM)[index, :, 0].detach().tolist()
        errors = [(o - by_hand(stream, seed, x)) ** 2 for o, x in zip(outputs, x_SNM[index].tolist(), strict=True)]
        assert found["loss"][index].item() == pytest.approx(sum(errors) / 40, rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"num_tasks": 0}, "num_tasks >= 1; found 0"),
        ({"num_slow": 20}, "num_slow < num_inputs = 20; found 20"),
        ({"beta": 1.5}, r"beta in \[0, 1\]; found 1.5"),
        ({"batch_size": 0}, "batch_size >= 1; found 0"),
    ],
)
def test_regressions_that_cannot_be_are_refused(changes, complaint):
    with pytest.raises(ValueError, match=complaint) as refusal:
        dataclasses.replace(STREAMS["regression"], **changes)
    assert "slowly_changing_regression" in str(refusal.value)


def test_he_uniform_has_the_bounds_of_kaimings_initialisation_for_a_relu_and_for_a_linear_output():
    state = build(
        ModelSpec(family="mlp", size=(("widths", (400,)),), init="he_uniform"),
        Part.of(SGD()),
        (0, 1),
        ((20,), 30),
        "cpu",
    )
    for name, fan_in, gain in (("linears.0.weight", 20, 2.0), ("output.weight", 400, 1.0)):
        bound = math.sqrt(3.0 * gain / fan_in)
        theirs = torch.empty(4000, fan_in)
        torch.nn.init.kaiming_uniform_(theirs, nonlinearity="relu" if gain == 2.0 else "linear")
        largest = state.params[name].abs().max().item()
        assert 0.99 * bound < largest <= bound and theirs.abs().max().item() == pytest.approx(bound, rel=0.01)
    assert not state.params["linears.0.bias"].any() and not state.params["output.bias"].any()


# Hard and easy tasks


def test_hard_and_easy_tasks_take_turns_and_no_class_comes_twice_in_a_round(data):
    stream = STREAMS["hard_and_easy"]
    for seed in SEEDS:
        groups = [stream.classes(seed, task).tolist() for task in range(8)]
        assert [len(group) for group in groups] == [3, 1] * 4
        for first in (0, 4):  # two pairs of four classes make a round of ten
            met = sum(groups[first : first + 4], [])
            assert len(set(met)) == len(met) == 8
        for task in range(5):
            wanted = [i for i, y in enumerate(data["hard_and_easy"].labels.tolist()) if y in groups[task]]
            assert stream.images(data["hard_and_easy"], seed, task).tolist() == wanted
            inputs, y_SB = stream.batch(data["hard_and_easy"], (seed,), task * 6 + 3)
            assert set(y_SB[0].tolist()) <= set(groups[task])
    assert len({tuple(stream.classes(seed, 0).tolist()) for seed in range(9)}) > 5


def test_kumars_stream_has_30_tasks_of_90_classes():
    stream = HardAndEasy(dataset="cifar100", num_examples=50000, num_tasks=30, steps_per_task=780, batch_size=32)
    met = [label for task in range(30) for label in stream.classes(0, task).tolist()]
    assert len(met) == len(set(met)) == 90 and stream.num_steps == 23_400 and stream.download == "cifar100"


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"easy_classes": 4}, "0 < easy_classes <= hard_classes.*found 4 and 3"),
        ({"hard_classes": 10}, "together at most the 10 classes of digits; found 1 and 10"),
        ({"eval_examples": None}, "a number of eval_examples"),
    ],
)
def test_hard_and_easy_tasks_that_cannot_be_are_refused(changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        dataclasses.replace(STREAMS["hard_and_easy"], **changes)


def test_more_eval_examples_than_an_easy_task_may_have_are_refused_when_the_data_are_known():
    with pytest.raises(ValueError, match="eval_examples of at most .*smallest 1 classes; found 200"):
        dataclasses.replace(STREAMS["hard_and_easy"], eval_examples=200).load(None, "cpu")


# Warm starts


def test_every_task_of_a_warm_start_adds_images_to_those_before_and_holds_some_out_for_ever(data):
    stream = STREAMS["warm_start"]
    for seed in SEEDS:
        parts = [set(stream.images(data["warm_start"], seed, task).tolist()) for task in range(4)]
        assert [len(part) for part in parts] == [20, 40, 60, 60] and parts[0] < parts[1] < parts[2] == set(range(60))
    assert len({tuple(stream.images(data["warm_start"], seed, 0).tolist()) for seed in SEEDS}) == 3


def test_accuracy_on_held_out_images_agrees_with_a_count_by_hand(data):
    stream, spec = STREAMS["warm_start"], ModelSpec(family="mlp", size=(("widths", (20,)),))
    state = build(spec, Part.of(Adam()), SEEDS, stream.shapes, "cpu")
    state.step = 1
    found = stream.evaluate(state, data["warm_start"])
    for index, seed in enumerate(SEEDS):
        alone = build(spec, Part.of(Adam()), (seed,), stream.shapes, "cpu")
        logits = alone.forward(data["warm_start"].inputs[60:].unsqueeze(0))[0]
        labels = data["warm_start"].labels[60:]
        assert len(labels) == 40
        assert found["test_accuracy"][index].item() == pytest.approx(
            (logits.argmax(1) == labels).double().mean().item()
        )
        loss = torch.nn.functional.cross_entropy(logits.double(), labels).item()
        assert found["test_loss"][index].item() == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"chunks": 1}, "chunks >= 2 and held_out >= 1; found 1 and 40"),
        ({"held_out": 0}, "found 3 and 0"),
        ({"eval_examples": 21}, "eval_examples of at most 20, a part of the data; found 21"),
    ],
)
def test_warm_starts_that_cannot_be_are_refused(changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        dataclasses.replace(STREAMS["warm_start"], **changes)


# Real data


def test_online_permuted_mnist_shows_60000_images_once_each_pixels_from_0_to_1(real_data_dir):
    stream = PermutedInputs(
        dataset="mnist",
        num_examples=60000,
        num_tasks=2,
        steps_per_task=60000,
        batch_size=1,
        whole_passes=True,
        permutations="compounding",
        pixels="unit",
    )
    data = stream.load(real_data_dir, "cpu")
    assert (data.inputs.min().item(), data.inputs.max().item()) == (0.0, 1.0)
    assert torch.allclose(data.inputs * 255, (data.inputs * 255).round(), atol=1e-3)
    assert torch.equal(stream.order(data, 0, 1, 0).flatten().sort().values, torch.arange(60000))
    inputs, y_SB = stream.batch(data, (0,), 60001)
    index = stream.order(data, 0, 1, 0)[1]
    assert torch.equal(inputs[0].flatten(1), data.inputs[index].flatten(1)[:, stream.permutation(0, 1)])
    assert torch.equal(y_SB[0], data.labels[index])


# What was drawn, once and for all: a change of these numbers is a change of version


def test_the_draws_of_version_1_stay_what_they_are(data):
    x_SBM, y_SB = STREAMS["regression"].batch(data["regression"], (3,), 31)
    drawn = {
        "regression": (x_SBM[0, 0].int().tolist(), y_SB[0, 0].item()),
        "flip_one": STREAMS["flip_one"].slow_bits(3, 2).int().tolist(),
        "online_permuted": STREAMS["online_permuted"].permutation(3, 1)[:6].tolist(),
        "order": STREAMS["online_permuted"].order(data["online_permuted"], 3, 1, 0)[:6].flatten().tolist(),
        "hard_and_easy": STREAMS["hard_and_easy"].classes(3, 2).tolist(),
        "warm_start": STREAMS["warm_start"].images(data["warm_start"], 3, 0)[:6].tolist(),
    }
    assert drawn == RECORDED
    assert all(stream.version == 1 for stream in STREAMS.values())


RECORDED = {
    "regression": ([0, 1, 0, 1, 0, 1, 1, 1, 1, 1, 1, 0, 0, 0, 1, 1, 0, 1, 0, 0], -1.0),
    "flip_one": [1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 1, 1, 0, 1, 1],
    "online_permuted": [0, 33, 54, 53, 46, 52],
    "order": [1585, 43, 917, 267, 9, 1653],
    "hard_and_easy": [7, 1, 5],
    "warm_start": [26, 7, 30, 38, 41, 21],
}
