"""Streams of tasks: what a task is made of, that it is a function of (seed, task), and that evaluation reads it.

Real MNIST and CIFAR-10 are used where NAP_BENCH_DATA_DIR names a data_dir that has them.
"""

import dataclasses

import pytest
import torch

from nap_bench.benchmarks import BENCHMARKS, ClassIncremental, PermutedInputs, RandomLabels, TrueLabels
from nap_bench.optimizers import Adam
from nap_bench.spec import ModelSpec, Part
from nap_bench.state import build

SIZES = dict(dataset="digits", num_examples=60, num_tasks=4, steps_per_task=5, batch_size=12)
STREAMS = {
    "uniform": RandomLabels(**SIZES),
    "permuted": RandomLabels(**SIZES, labels="permuted"),
    "shuffled": RandomLabels(**SIZES, labels="shuffled"),
    "true_labels": TrueLabels(**SIZES),
    "permuted_inputs": PermutedInputs(**SIZES),
    "class_incremental": ClassIncremental(**{**SIZES, "num_examples": 300}, eval_examples=30, held_out=200),
}
SEEDS = (0, 1, 2)


def one_task(stream, task, **changes):
    """The stream that consists of one task of another, seen by fresh parameters."""
    return dataclasses.replace(stream, first_task=task, num_tasks=1, **changes)


def whole_pass(stream, data, seeds, task):
    """Images and answers [S, N...] of one pass of a task, in the order in which the network meets them."""
    num_steps = stream.num_examples // stream.batch_size
    task = one_task(stream, task, steps_per_task=num_steps)
    pairs = [task.batch(data, seeds, step) for step in range(num_steps)]
    return tuple(torch.cat(parts, dim=1) for parts in zip(*pairs, strict=True))


def state_of(stream, seeds=SEEDS, step=0):
    state = build(
        ModelSpec(family="mlp", size=(("widths", (20,)),)), Part.of(Adam()), tuple(seeds), stream.shapes, "cpu"
    )
    state.step = step
    return state


def lookup(data, inputs_ND):
    """Index of each image among the dataset's."""
    return torch.cdist(inputs_ND.flatten(1).double(), data.inputs.flatten(1).double()).argmin(dim=1)


@pytest.fixture(scope="module")
def digits():
    return {name: stream.load(None, "cpu") for name, stream in STREAMS.items()}


# What all streams have in common


@pytest.mark.parametrize("name", STREAMS)
def test_a_batch_depends_on_the_seed_and_the_step_alone(name, digits):
    stream, data = STREAMS[name], digits[name]
    for step in range(stream.num_steps):
        inputs, y_SB = stream.batch(data, SEEDS, step)
        for index, seed in enumerate(SEEDS):
            alone = dataclasses.replace(stream, num_tasks=9).batch(data, (seed,), step)
            assert torch.equal(alone[0][0], inputs[index]) and torch.equal(alone[1][0], y_SB[index])
        assert not torch.equal(inputs[0], inputs[1])


@pytest.mark.parametrize("name", STREAMS)
def test_a_fresh_network_meets_the_very_batches_of_the_task_it_starts_at(name, digits):
    stream, data = STREAMS[name], digits[name]
    for task in range(stream.num_tasks):
        fresh = one_task(stream, task)
        assert fresh.num_steps == stream.steps_per_task and fresh.task_at(0) == task
        for step in range(stream.steps_per_task):
            aged = stream.batch(data, SEEDS, task * stream.steps_per_task + step)
            assert all(map(torch.equal, fresh.batch(data, SEEDS, step), aged))


@pytest.mark.parametrize("name", STREAMS)
def test_evaluation_of_a_fresh_network_reads_what_that_of_the_aged_one_reads(name, digits):
    stream, data = STREAMS[name], digits[name]
    aged = stream.evaluate(state_of(stream, step=2 * stream.steps_per_task + 1), data)
    fresh = one_task(stream, 2).evaluate(state_of(stream, step=1), data)
    assert aged.keys() == fresh.keys()
    assert all(torch.equal(aged[key], fresh[key]) for key in aged.keys() - {"acts"})


@pytest.mark.parametrize("name", STREAMS)
def test_evaluation_agrees_with_a_count_by_hand_seed_by_seed(name, digits):
    stream, data = STREAMS[name], digits[name]
    state = state_of(stream, step=stream.num_steps)
    found = stream.evaluate(state, data)
    inputs, y_SE = stream.probe(data, SEEDS, stream.num_tasks - 1)
    for index, seed in enumerate(SEEDS):
        logits = state_of(stream, (seed,)).forward(inputs[index : index + 1])[0]
        hits = [int(row.argmax() == y) for row, y in zip(logits, y_SE[index], strict=True)]
        assert found["accuracy"][index].item() == pytest.approx(sum(hits) / len(hits))
        surprise = [
            -row.double().log_softmax(dim=0)[y].item() for row, y in zip(logits.detach(), y_SE[index], strict=True)
        ]
        assert found["loss"][index].item() == pytest.approx(sum(surprise) / len(surprise), rel=1e-5)


@pytest.mark.parametrize("name", sorted(set(STREAMS) - {"class_incremental"}))
def test_a_pass_shows_every_image_of_the_task_once(name, digits):
    stream, data = STREAMS[name], digits[name]
    for task in (0, 2):
        shown, _ = whole_pass(stream, data, SEEDS, task)
        probed, _ = stream.probe(data, SEEDS, task)
        for left, right in zip(shown.flatten(2), probed.flatten(2), strict=True):
            assert torch.equal(left.unique(dim=0), right.unique(dim=0)) and len(left.unique(dim=0)) == len(left)


def test_eval_examples_limits_what_evaluation_reads_to_the_first(digits):
    for name in ("uniform", "permuted_inputs"):
        whole = STREAMS[name].probe(digits[name], SEEDS, 1)
        some = dataclasses.replace(STREAMS[name], eval_examples=7).probe(digits[name], SEEDS, 1)
        assert all(torch.equal(left[:, :7], right) for left, right in zip(whole, some, strict=True))


@pytest.mark.parametrize("kind", [RandomLabels, TrueLabels, PermutedInputs, ClassIncremental])
@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"dataset": "digit"}, "Did you mean 'digits'"),
        ({"num_examples": 0}, "positive sizes"),
        ({"batch_size": -1}, "positive sizes"),
        ({"probes_per_task": 6}, "at most one probe per step"),
        ({"first_task": -1}, "first_task >= 0; found -1"),
        ({"eval_examples": 61}, "eval_examples from 1 to num_examples = 60; found 61"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name_and_value(kind, changes, complaint):
    with pytest.raises(ValueError, match=complaint) as refusal:
        kind(**{**SIZES, "eval_examples": 10, **changes})
    assert kind.name in str(refusal.value)


# Random labels


def test_uniform_labels_are_independent_of_the_image_and_of_the_task_before(digits):
    stream, data = dataclasses.replace(STREAMS["uniform"], num_examples=1797), None
    data = stream.load(None, "cpu")
    everything = torch.arange(1797).expand(1, -1)
    first, second = (stream.answers(data, (0,), task, everything)[0] for task in (0, 1))
    for left, right in ((first, second), (first, data.labels)):
        table = torch.zeros(10, 10, dtype=torch.float64).index_put_(
            (left, right), torch.ones(1797).double(), accumulate=True
        )
        expected = table.sum(1, keepdim=True) * table.sum(0) / 1797
        assert ((table - expected) ** 2 / expected).sum() < 130  # chi-squared, 81 degrees of freedom: p = 4e-4
    assert first.bincount().tolist() != data.labels.bincount().tolist()


def test_permuted_labels_rename_classes(digits):
    stream, data = STREAMS["permuted"], digits["permuted"]
    everything = torch.arange(60).expand(3, -1)
    seen = []
    for task in range(4):
        for y_N in stream.answers(data, SEEDS, task, everything):
            pairs = {(int(true), int(new)) for true, new in zip(data.labels, y_N, strict=True)}
            assert len(pairs) == 10 and len({new for _, new in pairs}) == 10
            seen.append(frozenset(pairs))
    assert len(set(seen)) == 12


def test_shuffled_labels_keep_the_class_counts_and_forget_the_image(digits):
    stream = dataclasses.replace(STREAMS["shuffled"], num_examples=1200)
    data = stream.load(None, "cpu")
    y_SN = stream.answers(data, SEEDS, 0, torch.arange(1200).expand(3, -1))
    for y_N in y_SN:
        assert y_N.bincount().tolist() == data.labels.bincount().tolist()
        assert 0.05 < (y_N == data.labels).float().mean() < 0.15  # chance is 0.1, four deviations are 0.035
    assert not torch.equal(y_SN[0], y_SN[1])


def test_kumars_random_label_protocol_can_be_written_and_lasts_1_5_million_updates():
    sizes = dict(num_examples=1200, num_tasks=50, steps_per_task=30000, batch_size=16, labels="shuffled")
    for dataset in ("mnist", "cifar10"):
        stream = RandomLabels(dataset=dataset, **sizes)
        assert stream.num_steps == 1_500_000 and stream.steps_per_task * 16 == 400 * 1200
        assert stream.task_at(29999) == 0 and stream.task_at(30000) == 1


def test_fields_added_later_leave_the_identity_of_older_runs_alone():
    assert dict(Part.of(STREAMS["uniform"]).params) == {**SIZES, "probes_per_task": 1}
    with_labels = dict(Part.of(STREAMS["shuffled"]).params)
    assert with_labels == {**SIZES, "probes_per_task": 1, "labels": "shuffled"}


def test_an_unknown_kind_of_labels_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="Did you mean 'shuffled'"):
        RandomLabels(**SIZES, labels="shufled")


# Permuted inputs


def test_task_0_shows_the_images_as_they_are_with_their_labels(digits):
    stream, data = STREAMS["permuted_inputs"], digits["permuted_inputs"]
    inputs, y_SN = stream.probe(data, SEEDS, 0)
    for shown, y_N in zip(inputs, y_SN, strict=True):
        index_N = lookup(data, shown)
        assert torch.equal(data.inputs[index_N], shown) and torch.equal(data.labels[index_N], y_N)


def test_a_later_task_shows_all_images_through_one_permutation_drawn_for_the_seed_and_the_task(digits):
    stream, data = STREAMS["permuted_inputs"], digits["permuted_inputs"]
    seen = set()
    for task in (1, 2, 3):
        inputs, y_SN = stream.probe(data, SEEDS, task)
        for index, seed in enumerate(SEEDS):
            permutation = stream.permutation(seed, task)
            seen.add(tuple(permutation.tolist()))
            back = torch.empty_like(inputs[index].flatten(1))
            for place, value in enumerate(permutation):
                back[:, value] = inputs[index].flatten(1)[:, place]
            index_N = lookup(data, back)
            assert torch.equal(data.inputs[index_N].flatten(1), back)
            assert torch.equal(data.labels[index_N], y_SN[index])
    assert len(seen) == 9


def test_permutations_do_not_compound():
    """Task 2 is drawn by itself: were it applied on top of task 1's, reading task 2 alone would be something else."""
    stream = STREAMS["permuted_inputs"]
    first, second = stream.permutation(0, 1), stream.permutation(0, 2)
    data = stream.load(None, "cpu")
    image = data.inputs[:1].unsqueeze(0)
    assert torch.equal(stream.shown(image, (0,), 2).flatten(), image.flatten()[second])
    assert not torch.equal(stream.shown(image, (0,), 2).flatten(), image.flatten()[first][second])


def test_images_are_drawn_anew_for_every_task_from_the_whole_dataset(digits):
    stream, data = STREAMS["permuted_inputs"], digits["permuted_inputs"]
    assert len(data.inputs) == 1797
    drawn = [frozenset(stream.images(data, seed, task).tolist()) for seed in SEEDS for task in range(4)]
    assert len(set(drawn)) == 12 and all(len(images) == 60 for images in drawn)
    assert max(map(max, drawn)) > 1700 and min(map(min, drawn)) < 100


def test_kumars_permuted_mnist_is_one_whole_pass_of_625_updates():
    stream = PermutedInputs(dataset="mnist", num_examples=10000, num_tasks=500, steps_per_task=625, batch_size=16)
    assert stream.num_steps == 312_500 and stream.steps_per_task * stream.batch_size == stream.num_examples


# Class-incremental


def test_classes_are_added_to_those_that_came_before_until_all_have_come(digits):
    stream, data = STREAMS["class_incremental"], digits["class_incremental"]
    for seed in SEEDS:
        groups = [set(stream.classes(seed, task).tolist()) for task in range(6)]
        assert [len(group) for group in groups] == [2, 4, 6, 8, 10, 2]
        assert all(before < after for before, after in zip(groups[:4], groups[1:5], strict=True))
        for task, group in enumerate(groups):
            found = stream.images(data, seed, task)
            wanted = [i for i, label in enumerate(data.labels[:300].tolist()) if label in group]
            assert found.tolist() == wanted
    orders = {tuple(stream.classes(seed, 4).tolist()) for seed in SEEDS}
    rounds = {tuple(stream.classes(0, 4 + 5 * cycle).tolist()) for cycle in range(4)}
    assert len(orders) == 3 and len(rounds) == 4


def test_batches_hold_true_labels_of_classes_that_have_come_and_of_nothing_else(digits):
    stream, data = STREAMS["class_incremental"], digits["class_incremental"]
    task = one_task(stream, 1, steps_per_task=40)
    batches = [task.batch(data, SEEDS, step) for step in range(40)]
    for index, seed in enumerate(SEEDS):
        classes = set(stream.classes(seed, 1).tolist())
        met = torch.cat([y_SB[index] for _, y_SB in batches])
        assert set(met.tolist()) == classes
        shown = torch.cat([inputs[index] for inputs, _ in batches])
        index_N = lookup(data, shown)
        assert torch.equal(data.labels[index_N], met) and index_N.max() < 300, "a held-out image was trained on"
        passes = index_N[: len(stream.images(data, seed, 1))]
        assert len(passes.unique()) == len(passes), "an image came twice within a pass"


def test_accuracy_on_held_out_images_counts_the_classes_that_have_come(digits):
    stream, data = STREAMS["class_incremental"], digits["class_incremental"]
    for step, task in ((1, 0), (stream.num_steps, 3)):
        found = stream.evaluate(state_of(stream, step=step), data)
        for index, seed in enumerate(SEEDS):
            keep = [i for i in range(300, 500) if data.labels[i] in stream.classes(seed, task)]
            logits = state_of(stream, (seed,)).forward(data.inputs[keep].unsqueeze(0))[0]
            accuracy = (logits.argmax(dim=1) == data.labels[keep]).double().mean().item()
            loss = torch.nn.functional.cross_entropy(logits.double(), data.labels[keep]).item()
            assert found["test_accuracy"][index].item() == pytest.approx(accuracy, abs=1e-6)
            assert found["test_loss"][index].item() == pytest.approx(loss, rel=1e-5)


def test_without_held_out_images_nothing_is_said_about_them(digits):
    stream = dataclasses.replace(STREAMS["class_incremental"], held_out=0)
    found = stream.evaluate(state_of(stream, step=1), stream.load(None, "cpu"))
    assert found.keys() == {"accuracy", "loss", "acts"}


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"classes_per_task": 3}, "classes_per_task to divide the 10 classes; found 3"),
        ({"classes_per_task": 0}, "classes_per_task to divide the 10 classes; found 0"),
        ({"eval_examples": None}, "a number of eval_examples"),
        ({"held_out": -1}, "held_out >= 0"),
    ],
)
def test_class_increments_that_cannot_be_are_refused(changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        dataclasses.replace(STREAMS["class_incremental"], **changes)


def test_more_eval_examples_than_the_first_classes_may_have_are_refused_when_the_data_are_known():
    stream = dataclasses.replace(STREAMS["class_incremental"], eval_examples=100)
    with pytest.raises(ValueError, match="eval_examples of at most 58.*smallest 2 classes; found 100"):
        stream.load(None, "cpu")
    patches = dataclasses.replace(STREAMS["class_incremental"], dataset="patches")
    with pytest.raises(ValueError, match="eval_examples of at most 0"):
        patches.load(None, "cpu")


def test_more_images_than_there_are_are_refused():
    with pytest.raises(ValueError, match="class_incremental wants 1997 images; digits has 1797"):
        dataclasses.replace(STREAMS["class_incremental"], num_examples=1797).load(None, "cpu")
    with pytest.raises(ValueError, match="permuted_inputs wants 1798 images; digits has 1797"):
        dataclasses.replace(STREAMS["permuted_inputs"], num_examples=1798).load(None, "cpu")


# What was drawn, once and for all: a change of these numbers is a change of version

RECORDED_ANSWERS = {
    "uniform": [8, 2, 9, 6, 7, 1, 7, 9, 7, 9],
    "permuted": [8, 6, 7, 5, 9, 1, 4, 0, 3, 2],
    "shuffled": [8, 2, 3, 5, 1, 5, 7, 7, 3, 4],
}
RECORDED_PERMUTATION = [35, 7, 44, 52, 47, 39, 31, 53]
RECORDED_IMAGES = [1172, 1213, 817, 474, 256, 1653, 1110, 1585]
RECORDED_CLASSES = [2, 6, 3, 9, 7, 1, 5, 0, 8, 4]


def test_the_draws_of_version_1_stay_what_they_are(digits):
    everything = torch.arange(10).expand(1, -1)
    drawn = {
        name: STREAMS[name].answers(digits[name], (3,), 1, everything)[0].tolist()
        for name in ("uniform", "permuted", "shuffled")
    }
    assert drawn == RECORDED_ANSWERS
    assert STREAMS["permuted_inputs"].permutation(3, 1)[:8].tolist() == RECORDED_PERMUTATION
    images = STREAMS["permuted_inputs"].images(digits["permuted_inputs"], 3, 1)
    assert images[:8].tolist() == RECORDED_IMAGES
    assert STREAMS["class_incremental"].classes(3, 4).tolist() == RECORDED_CLASSES
    assert all(stream.version == 1 for stream in STREAMS.values())


# Real data


def test_permuted_mnist_draws_10000_of_60000_and_permutes_784_values(real_data_dir):
    stream = PermutedInputs(dataset="mnist", num_examples=10000, num_tasks=2, steps_per_task=625, batch_size=16)
    data = stream.load(real_data_dir, "cpu")
    assert len(data.inputs) == 60000 and len(stream.images(data, 0, 1).unique()) == 10000
    inputs, y_SB = stream.batch(data, (0,), 625)
    plain = dataclasses.replace(stream).order(data, 0, 1, 0)[0]
    assert torch.equal(inputs[0].flatten(1), data.inputs[plain].flatten(1)[:, stream.permutation(0, 1)])
    assert torch.equal(y_SB[0], data.labels[plain])


def test_class_incremental_mnist_holds_out_the_last_images(real_data_dir):
    sizes = dict(num_tasks=5, steps_per_task=100, batch_size=32)
    stream = BENCHMARKS["class_incremental"](dataset="mnist", num_examples=50000, held_out=10000, **sizes)
    data = stream.load(real_data_dir, "cpu")
    assert torch.equal(stream.images(data, 0, 4), torch.arange(50000))
    assert stream.batch(data, (0, 1), 0)[0].shape == (2, 32, 1, 28, 28)
