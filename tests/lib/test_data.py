"""The loader of real data: cache, checksum, and what happens when something is wrong; no network is used."""

import hashlib
import urllib.error

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
