"""ImageNet: its code path on tiny folders of the real layout, with three classes taken for all there are."""

from __future__ import annotations

import dataclasses
import math
import threading

import pytest
import torch
from PIL import Image
from unit.test_stationary_images import NETWORKS, trained

from nap_bench import cli, doctor
from nap_bench.benchmarks import StationaryImages, TrueLabels
from nap_bench.data import imagenet
from nap_bench.data.torchvision_import import import_torchvision
from nap_bench.experiments.base import make_run
from nap_bench.methods import parse_stack, stack_of
from nap_bench.models.resnet import RESNET50
from nap_bench.optimizers import SGD
from nap_bench.schedules import Cosine
from nap_bench.spec import ModelSpec
from nap_bench.state import build

CLASSES = ("n01440764", "n01443537", "n01484850")
TASK = StationaryImages(
    dataset="imagenet",
    num_evaluations=2,
    steps_per_evaluation=6,
    batch_size=4,
    augment="resized_crop_flip",
    label_smoothing=0.1,
    eval_examples=3,
)


def picture(width, height, shade):
    """A gradient, so that where a crop lies and whether it is mirrored can be seen."""
    across = Image.linear_gradient("L").rotate(90).resize((width, height))
    return Image.merge(
        "RGB", (across, Image.linear_gradient("L").resize((width, height)), Image.new("L", across.size, shade))
    )


@pytest.fixture
def data_dir(tmp_path, monkeypatch):
    """Five training and two validation images of each class, of many shapes."""
    monkeypatch.setattr(imagenet, "NUM_CLASSES", len(CLASSES))
    for label, name in enumerate(CLASSES):
        for split, count in (("train", 5), ("val", 2)):
            folder = tmp_path / "imagenet" / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                made = picture(40 + 60 * index, 300 - 50 * index, 80 * label)
                made.save(folder / f"{name}_{index}.JPEG", "JPEG", quality=95)
    return tmp_path


@pytest.fixture
def data(data_dir):
    return TASK.load(data_dir, "cpu")


def test_labels_count_the_class_folders_in_alphabetical_order(data_dir):
    train, val = imagenet.files(data_dir)
    assert train.labels == [0] * 5 + [1] * 5 + [2] * 5 and val.labels == [0, 0, 1, 1, 2, 2]
    assert all(CLASSES[label] in path for path, label in zip(train.paths, train.labels, strict=True))
    theirs = import_torchvision().datasets.ImageFolder(data_dir / "imagenet" / "train")
    assert theirs.samples == list(zip(*train, strict=True))


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB", "RGBA"])
def test_whatever_a_file_holds_an_image_is_three_channels_of_224(tmp_path, mode):
    path = tmp_path / "image.JPEG"
    picture(300, 260, 7).convert(mode).save(path, "PNG" if mode == "RGBA" else "JPEG")
    draws = torch.rand(imagenet.ATTEMPTS, 4).tolist()
    for shown in (imagenet.shown_in_training(str(path), draws, True), imagenet.shown_in_evaluation(str(path))):
        assert shown.shape == (3, 224, 224) and shown.dtype == torch.uint8


def test_evaluation_shows_what_torchvisions_transforms_show(data_dir):
    transforms = import_torchvision().transforms
    theirs = transforms.Compose(
        [
            transforms.Resize(256),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize(imagenet.MEAN, imagenet.DEVIATION),
        ]
    )
    for path in imagenet.files(data_dir)[1].paths:
        ours = imagenet.standardised(imagenet.shown_in_evaluation(path))
        assert torch.allclose(ours, theirs(Image.open(path).convert("RGB")), atol=1e-5)


def test_a_mirrored_image_is_the_mirror_of_the_other(data_dir):
    path = imagenet.files(data_dir)[0].paths[2]
    draws = torch.rand(imagenet.ATTEMPTS, 4, generator=torch.Generator().manual_seed(0)).tolist()
    plain, mirrored = (imagenet.shown_in_training(path, draws, flip) for flip in (False, True))
    assert torch.equal(plain.flip(2), mirrored) and not torch.equal(plain, mirrored)


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (100, 2000), (2000, 100), (1, 1)])
def test_a_drawn_crop_lies_in_the_image_and_has_the_area_and_shape_asked_for(size):
    width, height = size
    shares = []
    for draws in torch.rand(400, imagenet.ATTEMPTS, 4, generator=torch.Generator().manual_seed(0)).tolist():
        top, left, high, wide = imagenet.crop(width, height, draws)
        assert 0 <= top <= height - high and 0 <= left <= width - wide and high > 0 and wide > 0
        shares.append(wide * high / (width * height))
        if min(size) > 300:
            assert 0.74 < wide / high < 1.35
    if min(size) > 300:
        assert 0.07 < min(shares) < 0.12 and 0.9 < max(shares) <= 1.0 and 0.4 < sum(shares) / len(shares) < 0.6


def test_a_crop_that_fits_at_the_first_attempt_is_the_one_drawn():
    area = (0.5 - imagenet.AREA[0]) / (imagenet.AREA[1] - imagenet.AREA[0])
    ratio = math.log(1.0 / imagenet.RATIO[0]) / math.log(imagenet.RATIO[1] / imagenet.RATIO[0])
    assert imagenet.crop(400, 200, [(area, ratio, 0.0, 0.999)]) == (0, 200, 200, 200)
    assert imagenet.crop(400, 200, [(1.0, ratio, 0.5, 0.5)]) == (0, 66, 200, 267)  # does not fit: the middle


def test_a_batch_is_a_pure_function_of_seed_and_step_read_ahead_or_not(data, data_dir):
    again, fresh = dataclasses.replace(TASK), TASK.load(data_dir, "cpu")
    for step in (0, 1, 2, 7, 3):
        first = TASK.batch(data, (0, 1), step)
        assert first[0].shape == (2, 4, 3, 224, 224) and first[1].shape == (2, 4)
        TASK.batch(data, (9,), 5)
        for left, right in zip(first, again.batch(fresh, (0, 1), step), strict=True):
            assert torch.equal(left, right)
        alone = TASK.batch(data, (1,), step)
        assert torch.equal(first[0][1], alone[0][0]) and torch.equal(first[1][1], alone[1][0])
        assert not torch.equal(first[0][0], first[0][1])


def test_two_settings_on_the_same_data_do_not_get_each_others_images(data):
    plain = dataclasses.replace(TASK, augment="none")
    TASK.batch(data, (0,), 0)  # begins to read the next ones, augmented
    index_B = plain._order(15, (0,), 0, torch.device("cpu"))[1, 0]
    wanted = torch.stack([imagenet.shown_in_evaluation(data.train.paths[index]) for index in index_B])
    assert torch.equal(plain.batch(data, (0,), 1)[0][0], imagenet.standardised(wanted))


def test_images_are_read_by_other_threads_ahead_of_their_use(data, monkeypatch):
    readers, plain = set(), imagenet.shown_in_training
    monkeypatch.setattr(imagenet, "shown_in_training", lambda *a: readers.add(threading.get_ident()) or plain(*a))
    TASK.batch(data, (0,), 0)
    ahead = [step for _, _, step in data.reader.begun]
    assert ahead == [1, 2, 3, 4] and threading.get_ident() not in readers
    TASK.batch(data, (0,), 11)
    assert not data.reader.begun  # after the last batch nothing is begun, and what was is given up


def test_a_run_stopped_at_any_step_resumes_to_the_same_bytes(tmp_path, data_dir):
    run = make_run(
        benchmark=TASK,
        model=ModelSpec(family="resnet", size=tuple((dict(NETWORKS["resnet"]) | {"stem": "large"}).items())),
        stack="l2(coef=0.0001, over='weights')+nap",
        optimizer=SGD(momentum=0.9, nesterov=True),
        schedule=Cosine(0.1, 0.0),
        seeds=(0,),
    )
    whole = trained(run, tmp_path / "whole", data_dir=data_dir)
    assert "task_end/test_accuracy" in whole
    assert trained(run, tmp_path / "stopped", stops=(1, 6, 9), data_dir=data_dir) == whole


def test_validation_is_on_all_validation_images(data):
    from nap_bench.spec import Part

    spec = ModelSpec(family="resnet", size=tuple((dict(NETWORKS["resnet"]) | {"stem": "large"}).items()))
    state = build(spec, Part.of(SGD()), (0,), TASK.shapes, "cpu")
    found = TASK.evaluate(state, data)
    pixels = torch.stack([imagenet.shown_in_evaluation(path) for path in data.val.paths])
    out = state.forward(imagenet.standardised(pixels).unsqueeze(0))
    assert found["test_loss"].item() == pytest.approx(TASK.loss(out, data.test_labels.unsqueeze(0)).item(), rel=1e-5)
    assert found["acts"]["features"].shape[:2] == (1, 3)


@pytest.mark.parametrize(
    ("num", "labels"), [(2, [0, 1]), (3, [0, 1, 2]), (4, [0, 0, 1, 2]), (15, [0] * 5 + [1] * 5 + [2] * 5)]
)
def test_diagnostics_read_images_of_all_classes_with_their_labels(data, num, labels):
    inputs, y_N = data.some(num)
    assert y_N.tolist() == labels
    shown = torch.stack([imagenet.shown_in_evaluation(path) for path in data.train.paths])
    among = [torch.equal(imagenet.standardised(shown[i]), image) for image in inputs for i in range(15)]
    assert sum(among) == num and len(inputs) == num
    found = [data.train.labels[i % 15] for i, is_there in enumerate(among) if is_there]
    assert found == labels


def test_resnet50_on_imagenet_builds_on_the_meta_device():
    from nap_bench.spec import Part

    spec = stack_of(parse_stack("nap")).transform_model(ModelSpec(family="resnet", size=RESNET50))
    state = build(spec, Part.of(SGD(momentum=0.9, nesterov=True)), (0,), TASK.shapes, "meta")
    assert state.flat.is_meta and TASK.download == "imagenet" and TASK.resources == "image"


# What is refused


@pytest.mark.fault("download: an image of ImageNet is damaged", outcome="the run fails in one line that names the file")
def test_a_damaged_image_is_named_when_it_is_read(data, data_dir):
    broken = data_dir / "imagenet" / "train" / CLASSES[1] / f"{CLASSES[1]}_0.JPEG"
    for content in (broken.read_bytes()[:300], b"no image", b""):
        broken.write_bytes(content)
        task = dataclasses.replace(TASK, batch_size=15)
        with pytest.raises(ValueError, match=f"Cannot read the image {broken}.*archive again"):
            task.batch(task.load(data_dir, "cpu"), (0,), 0)


def remove(folder):
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()


def test_everything_that_is_missing_is_said_with_the_place_and_the_remedy(data_dir):
    root = data_dir / "imagenet"
    with pytest.raises(ValueError, match="wants a data_dir.*image-net.org"):
        imagenet.verify(None)
    with pytest.raises(
        ValueError, match=f"train and val in one of {data_dir / 'elsewhere' / 'imagenet'}, .*image-net.org"
    ):
        imagenet.verify(data_dir / "elsewhere")
    (root / "val" / CLASSES[0]).rename(root / "val" / "n99999999")
    with pytest.raises(ValueError, match=f"different classes: 2 are in one of the two only, '{CLASSES[0]}' among them"):
        imagenet.verify(data_dir)
    remove(root / "val" / "n99999999")
    with pytest.raises(ValueError, match=f"wanted 3 class folders in {root / 'val'}; found 2"):
        imagenet.verify(data_dir)
    (root / "val" / CLASSES[0]).mkdir()
    (root / "val" / CLASSES[0] / "notes.txt").write_text("no image")
    with pytest.raises(ValueError, match=f"{root / 'val' / CLASSES[0]} has no images"):
        imagenet.verify(data_dir)
    remove(root / "val")
    with pytest.raises(ValueError, match="wanted the folders train and val"):
        TASK.load(data_dir, "cpu")


@pytest.mark.parametrize("folder", imagenet.FOLDERS)
def test_it_is_found_in_every_layout(data_dir, tmp_path, folder):
    if folder == ".":
        data_dir = data_dir / "imagenet"
    elif folder != "imagenet":
        (data_dir / "imagenet").rename(data_dir / folder)
    assert set(imagenet.verify(data_dir)) == {"train", "val"}


def test_the_command_that_downloads_says_that_it_cannot_and_is_content_where_the_folders_are(
    data_dir, tmp_path, capsys
):
    assert cli.main(["data", "imagenet", "--data-dir", str(tmp_path / "none")]) == 2
    assert "image-net.org" in capsys.readouterr().err
    assert cli.main(["data", "imagenet", "--data-dir", str(data_dir), "--done", str(tmp_path / "done.json")]) == 0
    assert '"train"' in (tmp_path / "done.json").read_text()


def test_doctor_says_what_it_found_and_promises_no_checksum(data_dir):
    found = {check.name: check for check in doctor.datasets(str(data_dir), [])}
    assert found["imagenet"].status == doctor.OK and "contents were not read" in found["imagenet"].finding
    found = {check.name: check for check in doctor.datasets(str(data_dir / "none"), [])}
    assert found["imagenet"].status == doctor.OPTIONAL


def test_doctor_does_not_promise_to_download_it():
    lines = [{"uses": {"paper": {}}, "data": name} for name in ("cifar10", "imagenet")]
    _, _, words, _ = doctor.prospect("paper", lines, [])
    assert "once there is cifar10, which it downloads first" in words and "imagenet has to be in data_dir" in words


def test_streams_of_tasks_do_not_take_what_does_not_fit_on_a_device():
    sizes = dict(num_examples=4, num_tasks=1, steps_per_task=1, batch_size=2)
    with pytest.raises(ValueError, match="Known: cifar10, cifar100, digits, emnist, mnist, patches"):
        TrueLabels(dataset="imagenet", **sizes)
    with pytest.raises(ValueError, match="only the benchmark stationary_images"):
        imagenet.load(None)
