"""The loader of real data: cache, checksum, and what happens when something is wrong; no network is used."""

import errno
import gzip
import hashlib
import http.client
import io
import tarfile
import urllib.error
import zipfile

import numpy as np
import pytest

from lowdim import data
from lowdim.checks import ParameterError

CONTENT = b"numbers"
GOOD = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LOWDIM_DATA", str(tmp_path / "cache"))
    return tmp_path / "cache"


URL = "https://example.org/set.bin"


class Source(io.BytesIO):
    """What urlopen gives."""

    def __init__(self, content: bytes, announced: int | None = None):
        super().__init__(content)
        self.headers = {"Content-Length": str(len(content) if announced is None else announced)}


@pytest.fixture
def host(monkeypatch):
    """A host that serves what the dictionary holds: bytes, a ready source, or an error to raise."""
    files = {URL: CONTENT}

    def urlopen(url, timeout):
        answer = files[url]
        if isinstance(answer, Exception):
            raise answer
        return Source(answer) if isinstance(answer, bytes) else answer

    monkeypatch.setattr(data.urllib.request, "urlopen", urlopen)
    return files


def test_a_file_is_fetched_once(cache, host):
    path = data.fetch("set.bin", URL, GOOD)
    host.clear()
    assert data.fetch("set.bin", URL, GOOD).read_bytes() == path.read_bytes() == CONTENT


def test_a_wrong_download_is_not_kept(cache, host):
    with pytest.raises(data.DataError, match="its checksum is not the expected one; it was not kept"):
        data.fetch("set.bin", URL, "0" * 64)
    assert list(cache.iterdir()) == []


def test_a_damaged_cache_is_named_and_left_alone(cache, host):
    data.fetch("set.bin", URL, GOOD).write_bytes(b"damaged")
    with pytest.raises(data.DataError, match="another checksum than expected: delete it and run again"):
        data.fetch("set.bin", URL, GOOD)
    assert (cache / "set.bin").read_bytes() == b"damaged"


class Broken(Source):
    """A connection that breaks after the first bytes."""

    def read(self, size=-1):
        if self.tell():
            raise self.error
        return super().read(3)


def broken(error: Exception) -> Broken:
    source = Broken(CONTENT)
    source.error = error
    return source


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (urllib.error.URLError("no route to host"), r"could not be downloaded .*no route to host.*; put the file into"),
        (urllib.error.HTTPError(URL, 404, "Not Found", None, None), "HTTP Error 404: Not Found"),
        (TimeoutError("timed out"), "timed out"),
        (http.client.BadStatusLine("?"), "could not be downloaded"),
        (Source(CONTENT[:4], len(CONTENT)), r"could not be downloaded .*\(4 of 7 bytes arrived\); put the file into"),
        (broken(ConnectionResetError("reset by peer")), "reset by peer"),
        (broken(http.client.IncompleteRead(b"num", 4)), "IncompleteRead"),
        (
            broken(OSError(errno.ENOSPC, "No space left on device")),
            r"written to .*No space left on device\): make room",
        ),
        (
            broken(PermissionError(errno.EACCES, "Permission denied")),
            r"Permission denied\): make room, or set LOWDIM_DATA",
        ),
    ],
)
def test_what_goes_wrong_is_one_sentence_and_leaves_no_file(cache, host, answer, words):
    host[URL] = answer
    with pytest.raises(data.DataError, match=words) as caught:
        data.fetch("set.bin", URL, GOOD)
    assert str(caught.value).startswith("set.bin could not be ")
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)
    assert list(cache.iterdir()) == []


def test_a_data_folder_that_cannot_be_made(tmp_path, monkeypatch, host):
    (tmp_path / "file").touch()
    monkeypatch.setenv("LOWDIM_DATA", str(tmp_path / "file" / "cache"))
    with pytest.raises(data.DataError, match="set LOWDIM_DATA to another folder"):
        data.fetch("set.bin", URL, GOOD)


def test_all_addresses_are_https_with_checksums():
    pinned = [
        data.CIFAR10[1:],
        data.MOVIELENS[1:],
        *((data.FASHION_URL + name, sum_) for name, sum_ in data.FASHION.items()),
    ]
    for address, checksum in pinned:
        assert address.startswith("https://")
        assert len(checksum) in (32, 40, 64)
        assert int(checksum, 16)


def test_what_ships_is_what_scikit_learn_loads():
    from sklearn.datasets import load_digits, load_sample_image

    images, labels = data.digit_images()
    loaded = load_digits()
    assert np.array_equal(images, loaded.images)
    assert np.array_equal(labels, loaded.target)
    grey = load_sample_image("china.jpg") @ np.array([0.299, 0.587, 0.114])
    middle = grey[(427 - 64) // 2 : (427 - 64) // 2 + 64, (640 - 64) // 2 : (640 - 64) // 2 + 64]
    np.testing.assert_allclose(data.photograph(64), middle - middle.mean(), atol=1e-9)


def test_a_scikit_learn_that_is_missing_or_lacks_a_file_is_named(monkeypatch):
    with pytest.raises(data.DataError, match=r"has no file data/nosuch\.csv"):
        data.shipped("data/nosuch.csv")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(data.DataError, match="scikit-learn, which this data comes with, is not installed"):
        data.digits()


def test_digits_are_standardised_and_subsets_are_seeded(random):
    inputs, labels = data.digits()
    assert inputs.shape == (1797, 64)
    varied = inputs.std(0) > 0
    np.testing.assert_allclose(inputs[:, varied].std(0), 1)
    x, y = data.subsets(inputs, labels, 30, 4, random)
    assert (x.shape, y.shape) == ((4, 30, 64), (4, 30, 10))
    assert y.sum(-1).eq(1).all()
    assert not np.array_equal(x[0], x[1])
    with pytest.raises(ParameterError, match="samples must be at most 1797"):
        data.subsets(inputs, labels, 5000, 1, random)


def test_cifar_reads_its_archive(cache, host, monkeypatch):
    """The reading code on a small archive of the same layout."""
    rows = np.random.default_rng(0).integers(0, 10, (20, 3073), np.uint8)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        entry = tarfile.TarInfo("cifar-10-batches-bin/data_batch_1.bin")
        entry.size = rows.size
        archive.addfile(entry, io.BytesIO(rows.tobytes()))
    serve(host, monkeypatch, "CIFAR10", packed.getvalue())
    inputs, labels = data.cifar10(15)
    assert (inputs.shape, labels.shape) == ((15, 3072), (15,))
    assert labels.tolist() == rows[:15, 0].tolist()
    assert np.corrcoef(inputs[:, 7], rows[:15, 8])[0, 1] == pytest.approx(1)


def serve(host, monkeypatch, name: str, content: bytes) -> None:
    host[URL] = content
    monkeypatch.setattr(data, name, ("small", URL, hashlib.sha256(content).hexdigest()))


def test_cifar100_reads_its_archive(cache, host, monkeypatch):
    rows = np.full((5, 3074), 255, np.uint8)
    rows[:, 0], rows[:, 1] = 7, [3, 99, 0, 1, 2]
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        entry = tarfile.TarInfo("cifar-100-binary/test.bin")
        entry.size = rows.size
        archive.addfile(entry, io.BytesIO(rows.tobytes()))
    serve(host, monkeypatch, "CIFAR100", packed.getvalue())
    inputs, labels = data.cifar100("test")
    assert (inputs.min(), inputs.max(), labels.tolist()) == (1, 1, [3, 99, 0, 1, 2])
    with pytest.raises(ParameterError, match="part must be"):
        data.cifar100("validation")


def test_movielens_reads_its_archive(cache, host, monkeypatch):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("ml-100k/u.data", "1\t2\t5\t881250949\n943\t1682\t1\t881250949\n")
    serve(host, monkeypatch, "MOVIELENS", packed.getvalue())
    ratings = data.movielens()
    assert ratings.shape == (943, 1682)
    assert (ratings > 0).sum() == 2
    assert (ratings[0, 1], ratings[942, 1681]) == (5, 1)


def test_fashion_mnist_reads_its_files(cache, host, monkeypatch):
    """Images have a header of 16 bytes, labels one of 8; the order is training, then test."""
    pixels = np.arange(2 * 784, dtype=np.uint8).tobytes()
    content = {"images": bytes(16) + pixels, "labels": bytes(8) + bytes([3, 9])}
    checksums = {}
    for name in data.FASHION:
        packed = gzip.compress(content["images" if "images" in name else "labels"], mtime=0)
        host[data.FASHION_URL + name] = packed
        checksums[name] = hashlib.sha256(packed).hexdigest()
    monkeypatch.setattr(data, "FASHION", checksums)
    inputs, labels, test_inputs, test_labels = data.fashion_mnist()
    assert (inputs.shape, test_inputs.shape) == ((2, 784), (2, 784))
    assert inputs[0, 255] == 1.0
    assert labels.tolist() == test_labels.tolist() == [3, 9]


@pytest.mark.parametrize("kind", ["md5", "sha1", "sha256"])
def test_checksums_of_other_lengths(cache, host, kind):
    """The publishers of some sets give MD5 or SHA-1 only; the kind follows from the length."""
    good = hashlib.new(kind, CONTENT).hexdigest()
    assert data.fetch("set.bin", URL, good).read_bytes() == CONTENT
    with pytest.raises(data.DataError, match="another checksum"):
        data.fetch("set.bin", URL, "0" * len(good))


def test_synthetic_ratings_look_like_ratings(random):
    ratings = data.synthetic_ratings(60, 80, 3, 0.2, 0.5, random)
    assert set(ratings.unique().tolist()) <= {0, 1, 2, 3, 4, 5}
    assert (ratings > 0).double().mean() == pytest.approx(0.2, abs=0.03)
