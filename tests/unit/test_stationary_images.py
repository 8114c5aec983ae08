"""Stationary images: pure batches, augmentation against a slow reference, what is held out, runs that resume to the same bytes."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn import functional as F
from unit.test_cifar10 import lay_out, tiny  # noqa: F401 (a fixture)

from nap_bench.benchmarks import StationaryImages
from nap_bench.benchmarks.stationary_images import STEPS_PER_CHUNK, cut_out
from nap_bench.data import cifar10, digits
from nap_bench.experiments.base import make_run
from nap_bench.optimizers import SGD
from nap_bench.schedules import Steps
from nap_bench.session import Control, Interrupted
from nap_bench.spec import ModelSpec, Part
from nap_bench.store import RunFolder
from nap_bench.train import train

TASK = StationaryImages(
    dataset="digits", num_evaluations=2, steps_per_evaluation=6, batch_size=16, held_out=297, augment="crop", padding=1
)
NETWORKS = {
    "vgg": (("channels", (4, 6)), ("own_norm", "batch"), ("stages", (1, 1)), ("widths", (8,))),
    "resnet": (("blocks", (1, 1)), ("channels", (8, 16)), ("own_norm", "batch"), ("stem", "small")),
}


@pytest.fixture(scope="module")
def data():
    return TASK.load(None, "cpu")


def test_training_and_test_images_are_apart_and_all_there(data):
    inputs, labels = digits.load()
    assert len(data.inputs) == 1500 and len(data.test_inputs) == 297
    ours = torch.cat([data.inputs, data.test_inputs]).flatten(1)
    pairs = torch.cat([ours, torch.cat([data.labels, data.test_labels]).unsqueeze(1)], dim=1)
    wanted = torch.cat([inputs, labels.unsqueeze(1)], dim=1)
    assert sorted(map(tuple, pairs.tolist())) == sorted(map(tuple, wanted.tolist()))
    assert torch.equal(TASK.load(None, "cpu").test_inputs, data.test_inputs)  # whoever loads, whatever the seed
    assert min(data.test_labels.bincount(minlength=10)) > 15  # drawn, not the last writer's


def test_cifar10_has_its_own_test_set_on_the_scale_of_its_training_set(tmp_path, tiny):  # noqa: F811
    lay_out(tmp_path, tiny)
    task = dataclasses.replace(TASK, dataset="cifar10", held_out=0, augment="crop_flip", padding=4)
    loaded = task.load(tmp_path, "cpu")
    train_set, test_set = cifar10.load_splits(tmp_path)
    assert task.download == "cifar10" and task.resources == "image" and TASK.download is None
    assert torch.equal(loaded.inputs, cifar10.load(tmp_path).inputs) and len(loaded.inputs) == 15
    assert torch.equal(loaded.test_inputs, test_set.inputs) and loaded.test_labels.tolist() == [5, 6, 7]
    levels = torch.stack([train_set.inputs.flatten(), cifar10._read(tmp_path)[0][0].flatten()])
    slope = (levels[0].max() - levels[0].min()) / (levels[1].max() - levels[1].min())
    test_pixels = cifar10._read(tmp_path)[1][0]
    wanted = (test_pixels - levels[1].mean()) * slope
    assert torch.allclose(test_set.inputs, wanted, atol=1e-4)


def test_every_pass_shows_every_image_once_also_across_chunks(data):
    num, size = 1500, 16
    steps = range(STEPS_PER_CHUNK - 100, STEPS_PER_CHUNK + 100)
    shown = torch.cat(
        [TASK._order(num, (5,), s // STEPS_PER_CHUNK, torch.device("cpu"))[s % STEPS_PER_CHUNK, 0] for s in steps]
    )
    first = steps[0] * size
    for number in range(-(-first // num), (first + len(shown)) // num):
        a_pass = shown[number * num - first : (number + 1) * num - first]
        assert sorted(a_pass.tolist()) == list(range(num))
    assert len(shown) > 2 * num


def test_a_batch_is_a_pure_function_of_seed_and_step(data):
    again = dataclasses.replace(TASK)
    for step in (0, 7, 11, 2000):
        first = TASK.batch(data, (0, 1), step)
        TASK.batch(data, (9,), step + 1)
        for left, right in zip(first, again.batch(data, (0, 1), step), strict=True):
            assert torch.equal(left, right)
        alone = TASK.batch(data, (1,), step)
        assert torch.equal(first[0][1], alone[0][0]) and torch.equal(first[1][1], alone[1][0])
        assert not torch.equal(first[0][0], first[0][1])


def slowly_cut(image_CHW, down, across, flip, padding):
    """Pixel by pixel."""
    channels, height, width = image_CHW.shape
    found = torch.zeros_like(image_CHW)
    for channel in range(channels):
        for row in range(height):
            for column in range(width):
                y, x = row + down - padding, column + across - padding
                if 0 <= y < height and 0 <= x < width:
                    found[channel, row, width - 1 - column if flip else column] = image_CHW[channel, y, x]
    return found


@pytest.mark.parametrize("padding", [1, 4])
def test_a_cut_is_that_of_a_slow_reference(padding):
    gen = torch.Generator().manual_seed(0)
    images = torch.randn(12, 3, 5, 7, generator=gen)
    down, across = torch.randint(2 * padding + 1, (2, 12), generator=gen)
    down[:2], across[:2] = torch.tensor([0, 2 * padding]), torch.tensor([2 * padding, 0])
    flip = torch.arange(12) % 2
    wanted = [
        slowly_cut(*of, padding) for of in zip(images, down.tolist(), across.tolist(), flip.tolist(), strict=True)
    ]
    assert torch.equal(cut_out(images, down, across, flip, padding=padding), torch.stack(wanted))
    still = torch.full((12,), padding)
    assert torch.equal(cut_out(images, still, still, torch.zeros(12), padding=padding), images)


@pytest.mark.parametrize(("augment", "flipped"), [("crop", 0.0), ("crop_flip", 0.5)])
def test_every_place_is_drawn_alike_and_only_where_it_is_asked_for_mirrored(augment, flipped):
    task = dataclasses.replace(TASK, augment=augment, padding=2)
    places = task._places((0, 1, 2), 0, torch.device("cpu"))
    assert places.shape == (STEPS_PER_CHUNK, 3, 48)
    for which in (0, 1):
        shares = places[:, which].flatten().bincount() / places[:, which].numel()
        assert len(shares) == 5 and torch.allclose(shares, torch.full((5,), 0.2), atol=0.01)
    assert abs(places[:, 2].float().mean().item() - flipped) < 0.01


def test_an_augmented_batch_is_the_plain_one_cut_out_at_the_places_drawn(data):
    plain = dataclasses.replace(TASK, augment="none")
    down, across, flip = TASK._places((0, 1), 0, torch.device("cpu"))[3]
    inputs, y_SB = plain.batch(data, (0, 1), 3)
    wanted = cut_out(inputs.flatten(0, 1), down, across, flip, padding=1).view_as(inputs)
    found, labels = TASK.batch(data, (0, 1), 3)
    assert torch.equal(found, wanted) and torch.equal(labels, y_SB) and not torch.equal(found, inputs)


def test_a_smoothed_label_is_a_mixture_with_the_uniform_one():
    task = dataclasses.replace(TASK, label_smoothing=0.1)
    out = torch.randn(2, 7, 10, generator=torch.Generator().manual_seed(0))
    y_SB = torch.arange(14).view(2, 7) % 10
    target = 0.9 * F.one_hot(y_SB, 10) + 0.1 / 10
    wanted = -(target * out.log_softmax(dim=2)).sum(dim=2)
    assert torch.allclose(task.losses(out, y_SB), wanted, atol=1e-6)
    assert torch.allclose(task.loss(out, y_SB), wanted.mean(dim=1), atol=1e-6)


def run_of(family="vgg", stack="nap", seeds=(0, 1), task=TASK, **params):
    return make_run(
        benchmark=dataclasses.replace(task, **params),
        model=ModelSpec(family=family, size=NETWORKS[family], init="he"),
        stack=stack,
        optimizer=SGD(momentum=0.9, nesterov=True),
        schedule=Steps(0.025, (0.5,)),
        seeds=seeds,
    )


def trained(run, folder, *, stops=(), data_dir=None):
    """Train to the end, stopped after each of these updates; returns its metrics as they stand in the file."""
    folder = RunFolder(folder, run)
    folder.open()
    plain = StationaryImages.batch
    for stop in stops:
        control = Control()

        def batch(self, data, seeds, step, stop=stop, control=control):
            control.stop = step + 1 == stop
            return plain(self, data, seeds, step)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(StationaryImages, "batch", batch)
            with pytest.raises(Interrupted, match=f"at update {stop} of {TASK.num_steps}"):
                train(run, folder, data_dir=data_dir, device="cpu", control=control)
    ended = train(run, folder, data_dir=data_dir, device="cpu", control=Control())
    assert [status["status"] for status in ended["status"]] == ["complete"] * len(run.seeds)
    return folder.metrics.read_text()


@pytest.mark.parametrize("family", NETWORKS)
def test_a_run_stopped_at_any_step_resumes_to_the_same_bytes(tmp_path, family):
    run = run_of(family)
    whole = trained(run, tmp_path / "whole")
    assert "task_end/test_accuracy" in whole and "probe/norm/" in whole and "online/accuracy" in whole
    assert trained(run, tmp_path / "stopped", stops=(1, 6, 11)) == whole


@pytest.mark.parametrize("family", NETWORKS)
def test_a_seed_in_a_block_records_what_it_records_alone(tmp_path, family):
    def rows(text, seed):
        return [line for line in text.splitlines() if line.split(",")[1] == str(seed)]

    block = trained(run_of(family), tmp_path / "block")
    alone = trained(run_of(family, seeds=(1,)), tmp_path / "alone")
    assert rows(block, 1) == rows(alone, 1) and len(rows(alone, 1)) > 50


def test_test_accuracy_is_that_of_all_test_images(data):
    from nap_bench.state import build

    state = build(run_of(seeds=(3,)).model, Part.of(SGD()), (3,), TASK.shapes, "cpu")
    found = TASK.evaluate(state, data)
    out = state.forward(data.test_inputs.unsqueeze(0))
    assert found["test_accuracy"].item() == pytest.approx((out.argmax(-1) == data.test_labels).float().mean().item())
    assert found["test_loss"].item() == pytest.approx(F.cross_entropy(out[0], data.test_labels).item(), rel=1e-5)
    assert not any(acts.requires_grad for acts in found["acts"].values())


def test_nobody_is_told_of_a_task_switch():
    assert {TASK.task_at(step) for step in range(TASK.num_steps)} == {0}
    assert TASK.eval_steps() == {6, 12} and TASK.num_steps == 12 and TASK.steps_per_task == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset": "mnist"}, "dataset of stationary_images 'mnist'.*Known: cifar10, digits, imagenet"),
        ({"augment": "crops"}, "Did you mean 'crop'"),
        ({"augment": "resized_crop_flip"}, "augment of stationary_images on digits"),
        ({"dataset": "imagenet", "held_out": 0, "augment": "crop"}, "augment of stationary_images on imagenet"),
        ({"held_out": 0}, "held_out of digits to be positive"),
        ({"held_out": -1}, "held_out of digits"),
        ({"dataset": "cifar10"}, "held_out of cifar10 to be 0"),
        ({"label_smoothing": 1.0}, "label_smoothing in \\[0, 1\\)"),
        ({"batch_size": 0}, "positive sizes"),
        ({"padding": 0}, "positive sizes"),
    ],
)
def test_nonsense_is_refused_with_the_reason(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TASK, **change)


def test_more_held_out_than_there_is_is_refused():
    with pytest.raises(ValueError, match="holds out 1797 images; digits has 1797"):
        dataclasses.replace(TASK, held_out=1797).load(None, "cpu")
