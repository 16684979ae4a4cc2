"""The loader of real data: cache, checksum, and what happens when something is wrong; no network is used."""

import gzip
import hashlib
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


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source.bin"
    path.write_bytes(CONTENT)
    return path.as_uri()


def test_a_file_is_fetched_once(cache, source, tmp_path):
    path = data.fetch("set.bin", source, GOOD)
    (tmp_path / "source.bin").unlink()
    assert data.fetch("set.bin", source, GOOD).read_bytes() == path.read_bytes() == CONTENT


def test_a_wrong_download_is_not_kept(cache, source):
    with pytest.raises(data.DataError, match="its checksum is not the expected one; it was not kept"):
        data.fetch("set.bin", source, "0" * 64)
    assert list(cache.iterdir()) == []


def test_a_damaged_cache_is_named_and_left_alone(cache, source):
    data.fetch("set.bin", source, GOOD).write_bytes(b"damaged")
    with pytest.raises(data.DataError, match="another checksum than expected: delete it and run again"):
        data.fetch("set.bin", source, GOOD)
    assert (cache / "set.bin").read_bytes() == b"damaged"


def test_a_host_that_is_away(cache, monkeypatch):
    def away(*_, **__):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(data.urllib.request, "urlopen", away)
    with pytest.raises(data.DataError, match=r"set\.bin could not be downloaded .* put the file into"):
        data.fetch("set.bin", "https://example.org/set.bin", GOOD)
    assert list(cache.iterdir()) == []


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


def test_cifar_reads_its_archive(cache, monkeypatch, tmp_path):
    """The reading code on a small archive of the same layout."""
    import io
    import pickle
    import tarfile

    path = tmp_path / "small.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        content = pickle.dumps(
            {b"data": np.random.default_rng(0).integers(0, 255, (20, 3072), np.uint8), b"labels": [1] * 20}
        )
        entry = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    monkeypatch.setattr(data, "CIFAR10", ("small.tar.gz", path.as_uri(), hashlib.sha256(path.read_bytes()).hexdigest()))
    inputs, labels = data.cifar10(15)
    assert (inputs.shape, labels.shape) == ((15, 3072), (15,))


def test_cifar100_reads_its_archive(cache, monkeypatch, tmp_path):
    import io
    import pickle
    import tarfile

    path = tmp_path / "hundred.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        content = pickle.dumps({b"data": np.full((5, 3072), 255, np.uint8), b"fine_labels": [3, 99, 0, 1, 2]})
        entry = tarfile.TarInfo("cifar-100-python/test")
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    source = ("hundred.tar.gz", path.as_uri(), hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setattr(data, "CIFAR100", source)
    inputs, labels = data.cifar100("test")
    assert (inputs.min(), inputs.max(), labels.tolist()) == (1, 1, [3, 99, 0, 1, 2])
    with pytest.raises(ParameterError, match="part must be"):
        data.cifar100("validation")


def test_movielens_reads_its_archive(cache, monkeypatch, tmp_path):
    path = tmp_path / "small.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("ml-100k/u.data", "1\t2\t5\t881250949\n943\t1682\t1\t881250949\n")
    monkeypatch.setattr(data, "MOVIELENS", ("small.zip", path.as_uri(), hashlib.sha256(path.read_bytes()).hexdigest()))
    ratings = data.movielens()
    assert ratings.shape == (943, 1682)
    assert (ratings > 0).sum() == 2
    assert (ratings[0, 1], ratings[942, 1681]) == (5, 1)


def test_fashion_mnist_reads_its_files(cache, monkeypatch, tmp_path):
    """Images have a header of 16 bytes, labels one of 8; the order is training, then test."""
    pixels = np.arange(2 * 784, dtype=np.uint8).tobytes()
    content = {"images": bytes(16) + pixels, "labels": bytes(8) + bytes([3, 9])}
    checksums = {}
    for name in data.FASHION:
        packed = gzip.compress(content["images" if "images" in name else "labels"], mtime=0)
        (tmp_path / name).write_bytes(packed)
        checksums[name] = hashlib.sha256(packed).hexdigest()
    monkeypatch.setattr(data, "FASHION", checksums)
    monkeypatch.setattr(data, "FASHION_URL", tmp_path.as_uri() + "/")
    inputs, labels, test_inputs, test_labels = data.fashion_mnist()
    assert (inputs.shape, test_inputs.shape) == ((2, 784), (2, 784))
    assert inputs[0, 255] == 1.0
    assert labels.tolist() == test_labels.tolist() == [3, 9]


@pytest.mark.parametrize("kind", ["md5", "sha1", "sha256"])
def test_checksums_of_other_lengths(cache, source, kind):
    """The publishers of some sets give MD5 or SHA-1 only; the kind follows from the length."""
    good = hashlib.new(kind, CONTENT).hexdigest()
    assert data.fetch("set.bin", source, good).read_bytes() == CONTENT
    with pytest.raises(data.DataError, match="another checksum"):
        data.fetch("set.bin", source, "0" * len(good))


def test_synthetic_ratings_look_like_ratings(random):
    ratings = data.synthetic_ratings(60, 80, 3, 0.2, 0.5, random)
    assert set(ratings.unique().tolist()) <= {0, 1, 2, 3, 4, 5}
    assert (ratings > 0).double().mean() == pytest.approx(0.2, abs=0.03)
