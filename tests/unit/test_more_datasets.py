"""CIFAR-100 and EMNIST: what is loaded and what is refused, on files made up in the published formats.

Real files are used where NAP_BENCH_DATA_DIR names a data_dir that has them.
"""

import gzip
import hashlib
import io
import pickle
import struct
import tarfile
import zipfile

import numpy as np
import pytest
import torch

from nap_bench.benchmarks import HardAndEasy, RandomLabels
from nap_bench.data import cifar100, emnist
from nap_bench.data.download import Content
from nap_bench.data.images import standardise
from nap_bench.data.torchvision_import import import_torchvision


def content_of(data):
    return Content(None, hashlib.md5(data).hexdigest())


@pytest.fixture
def tiny_cifar100(monkeypatch):
    """Name -> bytes of a CIFAR-100 of 12 training images, which the loader and torchvision then take for the published one."""
    rng = np.random.default_rng(0)

    def split(num):
        labels = [int(label) for label in rng.integers(100, size=num)]
        pixels = rng.integers(256, size=(num, 3072), dtype=np.uint8)
        return pickle.dumps({"data": pixels, "fine_labels": labels, "coarse_labels": [0] * num})

    files = {
        "train": split(12),
        "test": split(2),
        "meta": pickle.dumps({"fine_label_names": [str(i) for i in range(100)]}),
    }
    contents = {name: content_of(data) for name, data in files.items()}
    monkeypatch.setattr(cifar100, "FILES", contents)
    theirs = import_torchvision().datasets.CIFAR100
    monkeypatch.setattr(theirs, "train_list", [["train", contents["train"].md5]])
    monkeypatch.setattr(theirs, "test_list", [["test", contents["test"].md5]])
    monkeypatch.setattr(theirs, "meta", {**theirs.meta, "md5": contents["meta"].md5})
    return files


def idx(values):
    return struct.pack(f">I{values.dim()}I", 0x0800 + values.dim(), *values.shape) + values.numpy().tobytes()


@pytest.fixture
def tiny_emnist(monkeypatch):
    """The archive's bytes, with 8 images, and pixels and labels in it."""
    gen = torch.Generator().manual_seed(0)
    pixels, labels = torch.randint(256, (8, 28, 28), generator=gen, dtype=torch.uint8), torch.arange(39, 47).byte()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr(emnist.IMAGES, gzip.compress(idx(pixels), mtime=0))
        archive.writestr(emnist.LABELS, gzip.compress(idx(labels), mtime=0))
        archive.writestr("gzip/emnist-letters-train-labels-idx1-ubyte.gz", b"?")
    monkeypatch.setattr(emnist, "ARCHIVE_CONTENT", content_of(packed.getvalue()))
    return packed.getvalue(), pixels, labels


def lay_out(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)


@pytest.mark.parametrize("folder", cifar100.FOLDERS)
def test_cifar100_is_found_in_every_layout_with_its_fine_labels(tmp_path, tiny_cifar100, folder):
    lay_out(tmp_path / folder, tiny_cifar100)
    train, raw = cifar100.load(tmp_path), pickle.loads(tiny_cifar100["train"])
    assert torch.equal(train.inputs, standardise(torch.from_numpy(raw["data"]).view(-1, 3, 32, 32)))
    assert train.labels.tolist() == raw["fine_labels"] and train.labels.dtype == torch.int64


@pytest.mark.parametrize("folder", emnist.FOLDERS)
def test_emnist_is_read_from_its_archive_as_it_lies_there(tmp_path, tiny_emnist, folder):
    archive, pixels, labels = tiny_emnist
    lay_out(tmp_path / folder, {emnist.ARCHIVE: archive})
    train = emnist.load(tmp_path)
    assert torch.equal(train.inputs, standardise(pixels.flatten(1))) and torch.equal(train.labels, labels.long())
    stream = RandomLabels(
        dataset="emnist",
        num_examples=8,
        num_tasks=1,
        steps_per_task=8,
        batch_size=1,
        labels="permuted",
        pixels="symmetric",
    )
    data = stream.load(tmp_path, "cpu")
    assert torch.allclose(data.inputs.flatten(1), pixels.flatten(1) / 127.5 - 1.0, atol=1e-5)
    assert stream.batch(data, (0, 1), 3)[0].shape == (2, 1, 1, 28, 28)


def test_easy_tasks_of_cifar100_that_lack_images_are_refused(tmp_path, tiny_cifar100):
    lay_out(tmp_path, tiny_cifar100)
    stream = HardAndEasy(
        dataset="cifar100", num_examples=12, num_tasks=2, steps_per_task=2, batch_size=2, eval_examples=4
    )
    with pytest.raises(ValueError, match="eval_examples of at most 0"):
        stream.load(tmp_path, "cpu")


def test_without_data_dir_both_say_what_to_set():
    for module, name in ((cifar100, "cifar100"), (emnist, "emnist")):
        with pytest.raises(ValueError, match=f"data_dir.*nap-bench data {name}"):
            module.load(None)


def test_what_is_missing_or_wrong_is_named_with_the_place_and_the_remedy(tmp_path, tiny_cifar100, tiny_emnist):
    lay_out(
        tmp_path, {"train": tiny_cifar100["train"][:-1] + b"?", "test": tiny_cifar100["test"], emnist.ARCHIVE: b"?"}
    )
    with pytest.raises(ValueError) as refusal:
        cifar100.load(tmp_path)
    for part in (
        "2 of 3 files",
        f"{tmp_path / 'train'} is other content: wanted md5",
        "meta is missing",
        "nap-bench data cifar100",
    ):
        assert part in str(refusal.value)
    with pytest.raises(ValueError, match=r"gzip\.zip is other content: wanted md5"):
        emnist.load(tmp_path)


def test_both_are_downloaded_whole_checked_and_left_alone_when_good(tmp_path, tiny_cifar100, tiny_emnist, monkeypatch):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, data in tiny_cifar100.items():
            member = tarfile.TarInfo(f"{cifar100.FOLDERS[0]}/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    monkeypatch.setattr(cifar100, "ARCHIVE_CONTENT", content_of(packed.getvalue()))
    mirror, said = tmp_path / "mirror", []
    lay_out(mirror, {cifar100.ARCHIVE: packed.getvalue(), emnist.ARCHIVE: tiny_emnist[0]})
    for module in (cifar100, emnist):
        how = dict(mirrors=[f"{mirror.as_uri()}/"], say=said.append)
        files = module.download(tmp_path / "data", **how)
        assert all(path.is_relative_to(tmp_path / "data" / module.FOLDERS[0]) for path in files.values())
        stamps = {path: path.stat().st_mtime_ns for path in files.values()}
        assert {path: path.stat().st_mtime_ns for path in module.download(tmp_path / "data", **how).values()} == stamps
        module.load(tmp_path / "data")
    assert sum("checksum as published" in line for line in said) >= 3


def test_the_checksums_are_torchvisions():
    theirs = import_torchvision().datasets
    assert cifar100.ARCHIVE_CONTENT.md5 == theirs.CIFAR100.tgz_md5 and theirs.CIFAR100.url.endswith(cifar100.ARCHIVE)
    published = dict([*theirs.CIFAR100.train_list, *theirs.CIFAR100.test_list], meta=theirs.CIFAR100.meta["md5"])
    assert {name: content.md5 for name, content in cifar100.FILES.items()} == published
    assert emnist.ARCHIVE_CONTENT.md5 == theirs.EMNIST.md5
    assert f"{emnist.MIRRORS[0]}{emnist.ARCHIVE}" == theirs.EMNIST.url


@pytest.mark.parametrize(("module", "size", "classes"), [(cifar100, 50000, 100), (emnist, 112800, 47)])
def test_the_real_files_have_as_many_images_of_every_class(module, size, classes, real_data_dir):
    if any(module._published().problem(real_data_dir, name) for name in module._published().files):
        pytest.skip("NAP_BENCH_DATA_DIR names no data_dir with these files")
    train = module.load(real_data_dir)
    assert len(train.inputs) == size and set(train.labels.bincount().tolist()) == {size // classes}
