"""Datasets: what is loaded, and what is refused.

The real MNIST files are used where NAP_BENCH_DATA_DIR names a data_dir that has them.
"""

import errno
import gzip
import hashlib
import os
import socket
import struct
import subprocess
import sys
import urllib.error
from pathlib import Path

import pytest
import torch

from nap_bench.data import digits, download, mnist, torchvision_import
from nap_bench.data.download import Content
from nap_bench.data.images import standardise
from nap_bench.data.torchvision_import import import_torchvision


def content_of(data):
    return Content(len(data), hashlib.md5(data).hexdigest())


def idx(values):
    """uint8 tensor in MNIST's file format."""
    return struct.pack(f">I{values.dim()}I", 0x0800 + values.dim(), *values.shape) + values.numpy().tobytes()


@pytest.fixture
def tiny(monkeypatch):
    """Name -> unpacked bytes of an MNIST of 5 + 2 images, which the loader then takes for the published one."""
    gen = torch.Generator().manual_seed(0)
    files = {}
    for split, num in (("train", 5), ("t10k", 2)):
        files[f"{split}-images-idx3-ubyte"] = idx(torch.randint(256, (num, 28, 28), generator=gen, dtype=torch.uint8))
        files[f"{split}-labels-idx1-ubyte"] = idx(torch.arange(num, dtype=torch.uint8))
    monkeypatch.setattr(mnist, "UNPACKED", {name: content_of(data) for name, data in files.items()})
    monkeypatch.setattr(mnist, "COMPRESSED", {name: content_of(packed(data)) for name, data in files.items()})
    return files


def packed(data):
    return gzip.compress(data, mtime=0)


def lay_out(folder, files, *, as_gz):
    folder.mkdir(parents=True)
    for name, data in files.items():
        Path(folder, f"{name}.gz" if as_gz else name).write_bytes(packed(data) if as_gz else data)


# Standardisation


def test_standardised_pixels_have_mean_zero_and_deviation_one_over_the_whole_dataset():
    pixels = torch.randint(256, (500, 64), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    pixels[:, :8] = 0  # pixels that never change
    found = standardise(pixels)
    wanted = (pixels.double() - pixels.double().mean()) / pixels.double().std(correction=0)
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), wanted, atol=1e-6)


# Digits


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    theirs = load_digits()
    images = digits.load()
    pixels = torch.from_numpy(theirs.data).to(torch.uint8)
    assert torch.equal(images.inputs, standardise(pixels))
    assert torch.equal(images.labels, torch.from_numpy(theirs.target))
    assert (images.inputs.shape, images.inputs.dtype, images.labels.dtype) == ((1797, 64), torch.float32, torch.int64)


def test_other_digits_are_refused(tmp_path, monkeypatch):
    lines = gzip.decompress(digits._file().read_bytes()).splitlines(keepends=True)
    other = tmp_path / "digits.csv.gz"
    other.write_bytes(gzip.compress(b"".join([lines[1], lines[0], *lines[2:]])))
    monkeypatch.setattr(digits, "_file", lambda: other)
    with pytest.raises(ValueError, match="ships other data"):
        digits.load()


@pytest.mark.parametrize(
    "content",
    [b"not gzip", gzip.compress(b"1,2,x\n"), gzip.compress(b"1,2,3\n" * 99)[:-9]],
    ids=["not gzip", "not a number", "cut off"],  # the bytes hold the time
)
def test_broken_digits_are_refused_with_their_path(tmp_path, monkeypatch, content):
    broken = tmp_path / "digits.csv.gz"
    broken.write_bytes(content)
    monkeypatch.setattr(digits, "_file", lambda: broken)
    with pytest.raises(ValueError, match=str(broken)):
        digits.load()


def test_datasets_are_imported_and_digits_read_without_heavy_packages():
    code = (
        "import sys; from nap_bench.data import digits, mnist\n"
        "assert not {'torch', 'torchvision', 'sklearn', 'numpy'} & set(sys.modules)\n"
        "digits.load(); assert not {'torchvision', 'sklearn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(mnist.__file__).parents[2])


# torchvision


def test_torchvision_imports_and_its_models_run():
    resnet = import_torchvision().models.resnet18()
    assert resnet.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 1000)


@pytest.mark.parametrize("pair_matches", [True, False])
def test_operators_are_declared_only_where_they_do_not_load(monkeypatch, pair_matches):
    import_torchvision()
    monkeypatch.delitem(sys.modules, "torchvision")
    monkeypatch.setattr(torchvision_import, "_operators_load", lambda package: pair_matches)
    monkeypatch.setattr(torchvision_import.importlib, "import_module", lambda name: name)
    declared = []
    monkeypatch.setattr(torchvision_import, "_declare_operators", lambda: declared.append(True))
    assert import_torchvision() == "torchvision"
    assert bool(declared) is not pair_matches


# MNIST, synthetic files


@pytest.mark.parametrize("folder", mnist.FOLDERS)
@pytest.mark.parametrize("as_gz", [True, False])
def test_mnist_is_found_in_every_layout_packed_or_not(tmp_path, tiny, folder, as_gz):
    lay_out(tmp_path / "data" / folder, tiny, as_gz=as_gz)
    train = mnist.load(tmp_path / "data")
    raw = torch.frombuffer(bytearray(tiny["train-images-idx3-ubyte"]), dtype=torch.uint8)[16:].view(5, 784)
    assert torch.equal(train.inputs, standardise(raw))
    assert train.labels.tolist() == [0, 1, 2, 3, 4]


def test_without_data_dir_mnist_says_what_to_set():
    with pytest.raises(ValueError, match="data_dir.*nap-bench data mnist"):
        mnist.load(None)


@pytest.mark.fault("download: files of a dataset are missing", outcome="all are named with the place and the command")
def test_missing_files_are_all_named_with_the_place_and_the_remedy(tmp_path, tiny):
    lay_out(tmp_path / "MNIST/raw", dict(list(tiny.items())[:2]), as_gz=True)
    with pytest.raises(ValueError) as refusal:
        mnist.load(tmp_path)
    for part in ("2 of 4", "t10k-images-idx3-ubyte.gz is missing", "t10k-labels-idx1-ubyte.gz is missing"):
        assert part in str(refusal.value)
    assert str(tmp_path / "MNIST/raw") in str(refusal.value) and "nap-bench data mnist" in str(refusal.value)


@pytest.mark.parametrize("as_gz", [True, False])
@pytest.mark.parametrize(
    "spoil, complaint",
    [
        (lambda data: data[:-1], "truncated: wanted {n} bytes, found {less}"),
        (lambda data: data + b"x", "too long"),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "other content: wanted md5"),
    ],
)
@pytest.mark.fault(
    "download: a dataset's file is truncated, too long or has another content",
    outcome="refused in one line that says how; nothing is read from it",
)
def test_a_spoilt_file_is_refused_before_anything_is_read(tmp_path, tiny, monkeypatch, as_gz, spoil, complaint):
    lay_out(tmp_path / "MNIST/raw", tiny, as_gz=as_gz)
    path = tmp_path / "MNIST/raw" / ("train-labels-idx1-ubyte.gz" if as_gz else "train-labels-idx1-ubyte")
    good = path.read_bytes()
    path.write_bytes(spoil(good))
    monkeypatch.setattr(mnist.gzip, "open", lambda *args: pytest.fail("read before it was verified"))
    with pytest.raises(ValueError) as refusal:
        mnist.load(tmp_path)
    assert str(path) in str(refusal.value)
    assert complaint.format(n=len(good), less=len(good) - 1) in str(refusal.value)


def test_an_old_processed_folder_is_not_read_instead_of_the_verified_files(tmp_path, tiny):
    lay_out(tmp_path / "MNIST/raw", tiny, as_gz=False)
    (tmp_path / "MNIST/processed").mkdir()
    for name in ("training.pt", "test.pt"):
        torch.save((torch.zeros(3, 28, 28), torch.zeros(3)), tmp_path / "MNIST/processed" / name)
    assert len(mnist.load(tmp_path).labels) == 5


# Downloads


@pytest.fixture
def mirror(tmp_path, tiny):
    lay_out(tmp_path / "mirror", tiny, as_gz=True)
    return tmp_path / "mirror"


def test_a_download_puts_verified_files_where_the_loader_finds_them(tmp_path, mirror):
    lines = []
    files = mnist.download(tmp_path / "data", mirrors=[f"{mirror.as_uri()}/"], say=lines.append)
    found = {path.name for path in (tmp_path / "data/MNIST/raw").iterdir()}
    assert found == {f"{name}.gz" for name in files}
    assert len(mnist.load(tmp_path / "data").labels) == 5
    assert len(lines) == 4


def test_a_second_download_touches_nothing(tmp_path, mirror):
    files = mnist.download(tmp_path / "data", mirrors=[f"{mirror.as_uri()}/"], say=lambda line: None)
    before = {path: path.stat().st_mtime_ns for path in files.values()}
    lines = []
    mnist.download(tmp_path / "data", mirrors=["file:///nowhere/"], say=lines.append)
    assert before == {path: path.stat().st_mtime_ns for path in files.values()}
    assert all("already there" in line for line in lines)


@pytest.mark.fault("download: what is there is truncated", outcome="fetched again")
def test_a_download_repairs_a_truncated_file_and_a_bad_unpacked_one(tmp_path, mirror, tiny):
    lay_out(tmp_path / "data/MNIST/raw", tiny, as_gz=False)
    (tmp_path / "data/MNIST/raw/train-labels-idx1-ubyte").write_bytes(b"short")
    (tmp_path / "data/MNIST/raw/train-images-idx3-ubyte.gz").write_bytes(b"short")
    mnist.download(tmp_path / "data", mirrors=[f"{mirror.as_uri()}/"], say=lambda line: None)
    assert len(mnist.load(tmp_path / "data").labels) == 5


@pytest.mark.fault("download: a mirror delivers something else", outcome="the next mirror is taken")
def test_a_mirror_that_delivers_something_else_is_passed_over(tmp_path, mirror, tiny, monkeypatch):
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)
    lay_out(tmp_path / "liar", {name: data[:-1] + b"?" for name, data in tiny.items()}, as_gz=True)
    lines = []
    mirrors = [f"{folder.as_uri()}/" for folder in (tmp_path / "liar", mirror)]
    mnist.download(tmp_path / "data", mirrors=mirrors, say=lines.append)
    assert len(mnist.load(tmp_path / "data").labels) == 5
    assert sum("liar" in line for line in lines) == 4


@pytest.mark.fault("download: fails in the middle", outcome="the file of before stays, and no piece does")
def test_a_failed_download_leaves_the_old_file_and_no_pieces(tmp_path, mirror, monkeypatch):
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)
    path = tmp_path / "kept.gz"
    path.write_bytes(b"old")
    (tmp_path / "new.gz").write_bytes(b"neu")
    with pytest.raises(ValueError, match="wanted 9 bytes, found 3"):
        download.fetch(path, [(tmp_path / "new.gz").as_uri()], Content(9, "0" * 32), lambda line: None)
    assert path.read_bytes() == b"old"
    assert not list(tmp_path.glob(".*"))


@pytest.mark.fault("download: no network", outcome="one line, at once")
def test_without_a_network_the_error_is_one_line_and_comes_at_once(tmp_path, monkeypatch):
    def no_network(url, timeout):
        raise urllib.error.URLError(socket.gaierror(-2, "Name or service not known"))

    monkeypatch.setattr(download.urllib.request, "urlopen", no_network)
    monkeypatch.setattr(download.time, "sleep", lambda seconds: seconds and pytest.fail("waited"))
    with pytest.raises(ValueError, match="Name or service not known") as refusal:
        mnist.download(tmp_path, say=lambda line: None)
    assert "\n" not in str(refusal.value)
    assert str(tmp_path / "MNIST/raw") in str(refusal.value)


@pytest.mark.fault("download: the connection is lost", outcome="tried again")
def test_a_lost_connection_is_tried_again(tmp_path, mirror, monkeypatch):
    real, failures = download.urllib.request.urlopen, [ConnectionResetError("reset by peer"), TimeoutError("timed out")]

    def flaky(url, timeout):
        if failures:
            raise failures.pop()
        return real(url, timeout=timeout)

    monkeypatch.setattr(download.urllib.request, "urlopen", flaky)
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)
    mnist.download(tmp_path / "data", mirrors=[f"{mirror.as_uri()}/"], say=lambda line: None)
    assert not failures and len(mnist.load(tmp_path / "data").labels) == 5


@pytest.mark.fault(
    "disk: full while a dataset is downloaded", outcome="one line; the file of before stays, and no piece does"
)
def test_a_full_disk_is_said_and_leaves_nothing(tmp_path, mirror, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(download.os, "fsync", full)
    with pytest.raises(ValueError, match="No space left on device"):
        mnist.download(tmp_path / "data", mirrors=[f"{mirror.as_uri()}/"], say=lambda line: None)
    assert not list((tmp_path / "data/MNIST/raw").iterdir())


def test_a_slow_download_is_not_silent(tmp_path, mirror, monkeypatch):
    monkeypatch.setattr(download, "NOTICE_SECONDS", 0.01)
    real = download.urllib.request.urlopen

    def slow(url, timeout):
        download.time.sleep(0.1)
        return real(url, timeout=timeout)

    monkeypatch.setattr(download.urllib.request, "urlopen", slow)
    lines = []
    mnist.download(tmp_path / "data", mirrors=[f"{mirror.as_uri()}/"], say=lines.append)
    assert any(" MB after " in line for line in lines)


# MNIST, real files


def test_checksums_and_the_first_mirror_are_torchvisions_own():
    theirs = import_torchvision().datasets.MNIST
    assert {f"{name}.gz": content.md5 for name, content in mnist.COMPRESSED.items()} == dict(theirs.resources)
    assert mnist.MIRRORS[0] in theirs.mirrors


def test_real_mnist_has_its_published_sizes_classes_and_pixels(real_data_dir):
    train = mnist.load(real_data_dir)
    assert train.inputs.shape == (60000, 784)
    assert (train.inputs.dtype, train.labels.dtype) == (torch.float32, torch.int64)
    assert train.labels.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    # the customary mean 0.1307 and deviation 0.3081 of pixels in [0, 1] are where black and white end up
    assert train.inputs.min().item() == pytest.approx(-0.1307 / 0.3081, abs=2e-4)
    assert train.inputs.max().item() == pytest.approx((1 - 0.1307) / 0.3081, abs=1e-3)


def test_real_mnist_is_what_torchvision_reads(real_data_dir, tmp_path):
    raw = tmp_path / "MNIST/raw"
    raw.mkdir(parents=True)
    for name, path in mnist.verify(real_data_dir).items():
        (raw / name).write_bytes(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes())
        assert mnist.UNPACKED[name].problem(raw / name) is None
    theirs = import_torchvision().datasets.MNIST(tmp_path)
    images = mnist.load(tmp_path)
    assert torch.equal(images.inputs, standardise(theirs.data.flatten(1)))
    assert torch.equal(images.labels, theirs.targets)
