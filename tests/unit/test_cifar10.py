"""CIFAR-10: what is loaded, and what is refused.

The real files are used where NAP_BENCH_DATA_DIR names a data_dir that has them.
"""

import gzip
import hashlib
import io
import pickle
import socket
import tarfile
import urllib.error

import numpy as np
import pytest
import torch

from nap_bench.benchmarks import BENCHMARKS
from nap_bench.data import cifar10, download
from nap_bench.data.download import Content
from nap_bench.data.images import standardise
from nap_bench.data.torchvision_import import import_torchvision

BASE = cifar10.FOLDERS[0]
PER_BATCH = 3


def content_of(data):
    return Content(len(data), hashlib.md5(data).hexdigest())


def archived(files):
    """Bytes of the archive: the files in their folder, beside a readme, as published."""
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as zipped, tarfile.open(fileobj=zipped, mode="w") as archive:
        for name, data in {"readme.html": b"<html>", **files}.items():
            member = tarfile.TarInfo(f"{BASE}/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return packed.getvalue()


def pixels_of(files):
    """[N, 3, 32, 32] uint8, from the pickles of the training batches."""
    batches = [pickle.loads(files[f"data_batch_{i}"])["data"] for i in range(1, 6)]
    return torch.from_numpy(np.concatenate(batches)).view(-1, 3, 32, 32)


@pytest.fixture
def tiny(monkeypatch):
    """Name -> bytes of a CIFAR-10 of 6 x 3 images, which the loader and torchvision then take for the published one."""
    rng = np.random.default_rng(0)
    files = {}
    for index, name in enumerate([f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]):
        data = rng.integers(256, size=(PER_BATCH, 3072), dtype=np.uint8)
        files[name] = pickle.dumps({"data": data, "labels": [(index + i) % 10 for i in range(PER_BATCH)]})
    files["batches.meta"] = pickle.dumps({"label_names": [f"class {i}" for i in range(10)]})
    contents = {name: content_of(data) for name, data in files.items()}
    monkeypatch.setattr(cifar10, "FILES", contents)
    monkeypatch.setattr(cifar10, "ARCHIVE_CONTENT", content_of(archived(files)))
    theirs = import_torchvision().datasets.CIFAR10
    monkeypatch.setattr(theirs, "train_list", [[n, c.md5] for n, c in contents.items() if n.startswith("data")])
    monkeypatch.setattr(theirs, "test_list", [["test_batch", contents["test_batch"].md5]])
    monkeypatch.setattr(theirs, "meta", {**theirs.meta, "md5": contents["batches.meta"].md5})
    return files


@pytest.fixture
def mirror(tmp_path, tiny):
    folder = tmp_path / "mirror"
    folder.mkdir()
    (folder / cifar10.ARCHIVE).write_bytes(archived(tiny))
    return f"{folder.as_uri()}/"


def lay_out(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)


# Synthetic files


@pytest.mark.parametrize("folder", cifar10.FOLDERS)
def test_cifar10_is_found_in_every_layout(tmp_path, tiny, folder):
    lay_out(tmp_path / "data" / folder, tiny)
    train = cifar10.load(tmp_path / "data")
    assert train.inputs.shape == (5 * PER_BATCH, 3, 32, 32) and train.inputs.is_contiguous()
    assert torch.equal(train.inputs, standardise(pixels_of(tiny)))
    assert train.labels.tolist() == [(index + i) % 10 for index in range(5) for i in range(PER_BATCH)]
    assert (train.inputs.dtype, train.labels.dtype) == (torch.float32, torch.int64)


def test_random_labels_takes_the_first_images_of_cifar10(tmp_path, tiny):
    lay_out(tmp_path, tiny)
    sizes = dict(num_tasks=1, steps_per_task=2, batch_size=2)
    benchmark = BENCHMARKS["random_labels"](dataset="cifar10", num_examples=4, **sizes)
    assert benchmark.download == "cifar10"
    assert torch.equal(benchmark.load(tmp_path, "cpu").inputs, cifar10.load(tmp_path).inputs[:4])
    with pytest.raises(ValueError, match="wants 16 images; cifar10 has 15"):
        BENCHMARKS["random_labels"](dataset="cifar10", num_examples=16, **sizes).load(tmp_path, "cpu")


def test_without_data_dir_cifar10_says_what_to_set():
    with pytest.raises(ValueError, match="data_dir.*nap-bench data cifar10"):
        cifar10.load(None)


def test_everything_missing_or_wrong_is_named_at_once_with_the_place_and_the_remedy(tmp_path, tiny):
    spoilt = {**tiny, "data_batch_2": tiny["data_batch_2"][:-1], "test_batch": tiny["test_batch"][:-1] + b"?"}
    del spoilt["batches.meta"]
    lay_out(tmp_path / BASE, spoilt)
    with pytest.raises(ValueError) as refusal:
        cifar10.load(tmp_path)
    length = len(tiny["data_batch_2"])
    for part in (
        "3 of 7 files",
        f"{tmp_path / BASE / 'data_batch_2'} is truncated: wanted {length} bytes, found {length - 1}",
        f"{tmp_path / BASE / 'test_batch'} is other content: wanted md5",
        "batches.meta is missing",
        "nap-bench data cifar10",
    ):
        assert part in str(refusal.value)


@pytest.mark.parametrize("spoil", [lambda data: data[:-1], lambda data: data + b"x", lambda data: data[:-1] + b"?"])
@pytest.mark.parametrize("name", ["data_batch_5", "test_batch", "batches.meta"])
@pytest.mark.fault(
    "untrusted: CIFAR-10's files, which are pickles", outcome="opened only if their checksums are the published ones"
)
def test_a_spoilt_file_is_refused_before_any_pickle_is_opened(tmp_path, tiny, monkeypatch, name, spoil):
    lay_out(tmp_path, {**tiny, name: spoil(tiny[name])})
    monkeypatch.setattr(pickle, "load", lambda *args, **kwargs: pytest.fail("opened before it was verified"))
    with pytest.raises(ValueError, match=f"1 of 7 files.*\n.*{name}"):
        cifar10.load(tmp_path)


# Downloads


def test_a_download_puts_verified_files_where_loader_and_torchvision_find_them(tmp_path, tiny, mirror):
    lines = []
    files = cifar10.download(tmp_path / "data", mirrors=[mirror], say=lines.append)
    assert {path.name for path in (tmp_path / "data" / BASE).iterdir()} == set(tiny) == set(files)
    assert torch.equal(cifar10.load(tmp_path / "data").inputs, standardise(pixels_of(tiny)))
    assert len(import_torchvision().datasets.CIFAR10(tmp_path / "data", train=False)) == PER_BATCH
    assert len(lines) == 2


def test_a_second_download_touches_nothing(tmp_path, mirror):
    files = cifar10.download(tmp_path / "data", mirrors=[mirror], say=lambda line: None)
    before = {path: path.stat().st_mtime_ns for path in files.values()}
    lines = []
    cifar10.download(tmp_path / "data", mirrors=["file:///nowhere/"], say=lines.append)
    assert before == {path: path.stat().st_mtime_ns for path in files.values()}
    assert len(lines) == 7 and all("already there" in line for line in lines)


def test_a_download_replaces_only_what_is_wrong(tmp_path, tiny, mirror):
    lay_out(tmp_path / "data" / BASE, {**tiny, "data_batch_3": b"short"})
    untouched = tmp_path / "data" / BASE / "data_batch_1"
    before = untouched.stat().st_mtime_ns
    cifar10.download(tmp_path / "data", mirrors=[mirror], say=lambda line: None)
    assert untouched.stat().st_mtime_ns == before
    assert len(cifar10.load(tmp_path / "data").labels) == 15


def test_an_archive_that_lies_in_data_dir_is_unpacked_without_a_network(tmp_path, tiny):
    lay_out(tmp_path, {cifar10.ARCHIVE: archived(tiny)})
    cifar10.download(tmp_path, mirrors=["file:///nowhere/"], say=lambda line: None)
    assert len(cifar10.load(tmp_path).labels) == 15
    assert (tmp_path / cifar10.ARCHIVE).exists()


def test_a_truncated_archive_is_fetched_again(tmp_path, tiny, mirror):
    lay_out(tmp_path / "data", {cifar10.ARCHIVE: archived(tiny)[:-9]})
    cifar10.download(tmp_path / "data", mirrors=[mirror], say=lambda line: None)
    assert len(cifar10.load(tmp_path / "data").labels) == 15


@pytest.mark.fault("untrusted: an archive of CIFAR-10 with another checksum", outcome="never unpacked")
def test_an_archive_with_another_checksum_is_never_unpacked(tmp_path, tiny, monkeypatch):
    lay_out(tmp_path / "liar", {cifar10.ARCHIVE: archived(tiny)[:-1] + b"?"})
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(cifar10.tarfile, "open", lambda path: pytest.fail("unpacked before it was verified"))
    with pytest.raises(ValueError, match="other content: wanted md5") as refusal:
        cifar10.download(tmp_path / "data", mirrors=[f"{(tmp_path / 'liar').as_uri()}/"], say=lambda line: None)
    assert "\n" not in str(refusal.value)
    assert not list((tmp_path / "data").iterdir())


def test_without_a_network_the_error_is_one_line_and_comes_at_once(tmp_path, monkeypatch):
    def no_network(url, timeout):
        raise urllib.error.URLError(socket.gaierror(-2, "Name or service not known"))

    monkeypatch.setattr(download.urllib.request, "urlopen", no_network)
    monkeypatch.setattr(download.time, "sleep", lambda seconds: seconds and pytest.fail("waited"))
    with pytest.raises(ValueError, match="Name or service not known") as refusal:
        cifar10.download(tmp_path, say=lambda line: None)
    assert "\n" not in str(refusal.value) and cifar10.ARCHIVE in str(refusal.value)


# Real files


def test_checksums_archive_and_folder_are_torchvisions_own():
    theirs = import_torchvision().datasets.CIFAR10
    published = dict(theirs.train_list + theirs.test_list) | {theirs.meta["filename"]: theirs.meta["md5"]}
    assert {name: content.md5 for name, content in cifar10.FILES.items()} == published
    assert (cifar10.ARCHIVE, cifar10.ARCHIVE_CONTENT.md5) == (theirs.filename, theirs.tgz_md5)
    assert theirs.url == cifar10.MIRRORS[0] + cifar10.ARCHIVE
    assert theirs.base_folder == BASE


def test_real_cifar10_has_its_published_sizes_classes_and_pixels(real_data_dir):
    train = cifar10.load(real_data_dir)
    assert train.inputs.shape == (50000, 3, 32, 32)
    assert (train.inputs.dtype, train.labels.dtype) == (torch.float32, torch.int64)
    assert train.labels.bincount().tolist() == [5000] * 10
    theirs = import_torchvision().datasets.CIFAR10(cifar10.verify(real_data_dir)["data_batch_1"].parents[1])
    assert torch.equal(train.labels, torch.tensor(theirs.targets))
    # the customary means of the three channels, and deviation 0.2516 of all pixels in [0, 1], are where black ends up
    assert train.inputs.min().item() == pytest.approx(-np.mean([0.4914, 0.4822, 0.4465]) / 0.2516, abs=2e-3)
    mean, deviation = theirs.data.mean(), theirs.data.reshape(-1)[::7].std()  # a seventh of the pixels will do
    for index in (0, 31415, 49999):
        wanted = (torch.from_numpy(theirs.data[index]).permute(2, 0, 1).double() - mean) / deviation
        assert torch.allclose(train.inputs[index].double(), wanted, atol=5e-3)
