"""Data: what ships inside scikit-learn, and real sets through a cache with checksums.

Nothing is downloaded unless a loader of a real set is called. Files go to ``$LOWDIM_DATA`` or ``~/.cache/lowdim``.
"""

import gzip
import hashlib
import http.client
import importlib.util
import os
import re
import tarfile
import urllib.error
import urllib.request
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lowdim import checks as ok
from lowdim.checks import ParameterError, choice, integer


class DataError(RuntimeError):
    """Data could not be had: the message says what is missing and how to get it."""


def cache_folder() -> Path:
    """Where downloads live."""
    return Path(os.environ.get("LOWDIM_DATA", Path.home() / ".cache" / "lowdim"))


@ok.takes(name=ok.filename, url=ok.text, checksum=ok.text, timeout=ok.real(above=0))
def fetch(name: str, url: str, checksum: str, timeout: float = 60.0) -> Path:
    """A file from the cache, downloaded once and checked against its checksum every time.

    The checksum is SHA-256, or SHA-1 or MD5 where a source publishes no other; its length tells. Nothing that is
    fetched is ever unpickled.

    Raises:
        DataError: the host cannot be reached, the disk is full, or the content is cut short or differs from what is
            expected. No half file is left, and a good file is never replaced by one that is not.
        ParameterError: an address that is not https, or what cannot be a checksum.
    """
    if not url.startswith("https://"):
        raise ParameterError(f"url must start with https://, got {url!r}.")
    if not re.fullmatch("[0-9a-f]{32}|[0-9a-f]{40}|[0-9a-f]{64}", checksum):
        raise ParameterError(f"checksum must have 32, 40 or 64 hexadecimal digits, got {checksum!r}.")
    path, kind = cache_folder() / name, {32: "md5", 40: "sha1"}.get(len(checksum), "sha256")
    by_hand = f"put the file into {path.parent} by hand"
    if path.exists():
        if _digest(path, kind) == checksum:
            return path
        raise DataError(
            f"{path.name} in the data folder {path.parent} has another checksum than expected: delete it and run again."
        )
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _download(url, part, timeout)
        if _digest(part, kind) != checksum:
            raise DataError(
                f"{name} was downloaded from {url}, but its checksum is not the expected one; it was not kept."
            )
        os.replace(part, path)
    except (urllib.error.URLError, TimeoutError, ConnectionError, http.client.HTTPException) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{name} could not be downloaded from {url} ({reason}); {by_hand}.") from error
    except OSError as error:
        raise DataError(
            f"{name} could not be written to the data folder {path.parent} ({error.strerror or error}): make room, or "
            "set LOWDIM_DATA to another folder."
        ) from error
    finally:
        with suppress(OSError):
            part.unlink()
    return path


def _download(url: str, part: Path, timeout: float) -> None:
    """The content of an address, into a file; all that was announced."""
    with urllib.request.urlopen(url, timeout=timeout) as source, open(part, "wb") as sink:
        while block := source.read(1 << 20):
            sink.write(block)
        announced, got = source.headers.get("Content-Length"), sink.tell()
    if announced and got != int(announced):
        raise ConnectionError(f"{got} of {announced} bytes arrived")


def _digest(path: Path, kind: str = "sha256") -> str:
    digest = hashlib.new(kind)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@ok.takes(inputs=ok.array("samples ..."))
def standardise(inputs: np.ndarray) -> np.ndarray:
    """Each column with mean 0 and standard deviation 1; constant columns become 0."""
    inputs = np.asarray(inputs)
    deviation = inputs.std(0)
    return (inputs - inputs.mean(0)) / np.where(deviation > 0, deviation, 1)


@ok.takes(name=ok.text)
def shipped(name: str) -> Path:
    """A data file inside the installed scikit-learn, which is found but not imported: importing it takes seconds.

    Raises:
        DataError: scikit-learn is not installed, or has no such file.
    """
    found = importlib.util.find_spec("sklearn")
    if found is None:
        raise DataError("scikit-learn, which this data comes with, is not installed: pip install scikit-learn.")
    path = Path(found.submodule_search_locations[0]) / "datasets" / name
    if not path.exists():
        raise DataError(f"the installed scikit-learn has no file {name}: version 1.3 and later have it.")
    return path


def digit_images() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's 1,797 handwritten digits: grey values 0 to 16, ``(1797, 8, 8)``, and labels ``(1797,)``."""
    table = np.loadtxt(shipped("data/digits.csv.gz"), delimiter=",")
    return table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(int)


def digits() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's 1,797 handwritten digits: standardised pixels ``(1797, 64)`` and labels ``(1797,)``."""
    inputs, labels = digit_images()
    return standardise(inputs.reshape(-1, 64)), labels


def photograph(side: int = 256) -> np.ndarray:
    """The middle of scikit-learn's photograph of a Chinese temple in grey, ``(side, side)``, with mean zero.

    Raises:
        ParameterError: a side that is longer than the photograph's 427 rows.
    """
    from PIL import Image

    integer("side", side, at_least=1, at_most=427)
    with Image.open(shipped("images/china.jpg")) as picture:
        grey = np.asarray(picture.convert("RGB")) @ np.array([0.299, 0.587, 0.114])
    top, left = (grey.shape[0] - side) // 2, (grey.shape[1] - side) // 2
    grey = grey[top : top + side, left : left + side]
    return grey - grey.mean()


@ok.takes(share=ok.real(above=0, below=1))
def characters(share: float = 0.9) -> tuple[Tensor, Tensor, list[str]]:
    """Python's own language reference (``pydoc_data.topics``) as numbers of characters: training, held out, symbols.

    Topics stand in the order of their names; the first ``share`` of the characters is for training.
    """
    from pydoc_data.topics import topics

    text = "".join(topics[name] for name in sorted(topics))
    symbols = sorted(set(text))
    number_of = {symbol: i for i, symbol in enumerate(symbols)}
    numbers = torch.tensor([number_of[symbol] for symbol in text])
    cut = int(share * len(numbers))
    return numbers[:cut], numbers[cut:], symbols


CIFAR10 = (
    "cifar-10-binary.tar.gz",  # not the archive "for Python", which holds pickles
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
)


CIFAR100 = (
    "cifar-100-binary.tar.gz",
    "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
    "03b5dce01913d631647c71ecec9e9cb8",
)


def cifar100(part: str = "train") -> tuple[np.ndarray, np.ndarray]:
    """CIFAR-100: pixels in 0..1 ``(samples, 3072)`` and the fine labels; 50,000 to train with, 10,000 to test.

    Raises:
        DataError: the archive cannot be had, or its checksum differs.
        ParameterError: a part that is neither ``"train"`` nor ``"test"``.
    """
    choice("part", part, ("train", "test"))
    with tarfile.open(fetch(*CIFAR100)) as archive:
        content = archive.extractfile(f"cifar-100-binary/{part}.bin").read()
    rows = np.frombuffer(content, np.uint8).reshape(-1, 3074)  # a coarse label, a fine one, red, green, blue
    return rows[:, 2:] / np.float32(255), rows[:, 1].astype(np.int64)


def cifar10(samples: int = 10_000) -> tuple[np.ndarray, np.ndarray]:
    """The first training images of CIFAR-10, standardised ``(samples, 3072)``, and their labels.

    Raises:
        DataError: the archive cannot be had, or its checksum differs.
        ParameterError: more than the 50,000 training images.
    """
    integer("samples", samples, at_least=1, at_most=50_000)
    batches = []
    with tarfile.open(fetch(*CIFAR10)) as archive:  # read in memory: nothing is extracted to the disk
        for batch in range(1, -(-samples // 10_000) + 1):
            content = archive.extractfile(f"cifar-10-batches-bin/data_batch_{batch}.bin").read()
            batches.append(np.frombuffer(content, np.uint8).reshape(-1, 3073))  # a label, then red, green, blue
    rows = np.concatenate(batches)[:samples]
    return standardise(rows[:, 1:] / 255.0), rows[:, 0].astype(np.int64)


MOVIELENS = (
    "ml-100k.zip",
    "https://files.grouplens.org/datasets/movielens/ml-100k.zip",
    "cd4dcac4241c8a4ad7badc7ca635da8a69dddb83",
)
FASHION_URL = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/"
FASHION = {
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}
MNIST_URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"
MNIST = {
    "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
}


def movielens() -> Tensor:
    """MovieLens-100K: ratings 1 to 5, 0 where there is none, ``(943, 1682)`` in float64.

    Raises:
        DataError: the archive cannot be had, or its checksum differs.
    """
    with zipfile.ZipFile(fetch(*MOVIELENS)) as archive:
        table = np.loadtxt(archive.read("ml-100k/u.data").decode().splitlines(), dtype=np.int64)
    ratings = torch.zeros(943, 1682, dtype=torch.float64)
    ratings[table[:, 0] - 1, table[:, 1] - 1] = torch.as_tensor(table[:, 2], dtype=torch.float64)
    return ratings


def fashion_mnist() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Fashion-MNIST: pixels in 0..1 and labels, ``(60000, 784)`` for training, then ``(10000, 784)`` for test.

    Raises:
        DataError: a file cannot be had, or its checksum differs.
    """
    return _idx("fashion", FASHION_URL, FASHION)


def mnist() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """MNIST: pixels in 0..1 and labels, ``(60000, 784)`` for training, then ``(10000, 784)`` for test.

    Raises:
        DataError: a file cannot be had, or its checksum differs.
    """
    return _idx("mnist", MNIST_URL, MNIST)


def _idx(prefix: str, url: str, checksums: dict[str, str]) -> tuple[np.ndarray, ...]:
    """Images and labels in the format of MNIST's files, in the order of the names."""
    parts = []
    for name, checksum in checksums.items():
        raw = gzip.decompress(fetch(f"{prefix}-{name}", url + name, checksum).read_bytes())
        header, shape = (16, (-1, 784)) if "images" in name else (8, (-1,))
        values = np.frombuffer(raw, np.uint8, offset=header).reshape(shape)
        parts.append(values / np.float32(255) if "images" in name else values.astype(np.int64))
    return tuple(parts)


@ok.takes(
    rows=ok.count(1),
    columns=ok.count(1),
    rank=ok.count(1),
    share=ok.real(above=0, at_most=1),
    noise=ok.real(at_least=0),
    generator=ok.generator,
)
def synthetic_ratings(rows: int, columns: int, rank: int, share: float, noise: float, generator) -> Tensor:
    """Made-up ratings 1 to 5 of a low-rank taste plus noise, rounded; 0 where there is none, ``(rows, columns)``."""
    users, items, errors = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((rows, rank), (rank, columns), (rows, columns))
    )
    ratings = (3.5 + users @ items / rank**0.5 + noise * errors).round().clamp(1, 5)
    return ratings * (torch.rand(rows, columns, generator=generator) < share)


@ok.takes(path=ok.path)
def labelled_tensors(path: str | Path) -> tuple[Tensor, Tensor]:
    """A reader's own tensors ``X (n, I_1, ..., I_K)``, K >= 2, and labels ``y (n,)`` from a ``.npz`` file, in float64.

    Raises:
        DataError: no such file, or not a ``.npz`` with ``X`` and ``y``.
        ParameterError: shapes that do not fit, or fewer than 16 samples.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            x, y = (torch.as_tensor(file[name].astype(np.float64)) for name in ("X", "y"))
    except (OSError, KeyError, ValueError, AttributeError, TypeError) as error:
        raise DataError(
            f"{Path(path).name} must be a .npz file with numbers X (n, I_1, I_2, ...) and y (n,)."
        ) from error
    if x.dim() < 3 or y.shape != x.shape[:1] or len(y) < 16:
        raise ParameterError(
            f"X must be (n, I_1, I_2, ...) and y (n,) with n >= 16, got {tuple(x.shape)} and {tuple(y.shape)}."
        )
    return x, y


@ok.takes(inputs=ok.array("n ..."), labels=ok.array("n"), samples=ok.count(1), runs=ok.count(1), generator=ok.generator)
def subsets(
    inputs: np.ndarray, labels: np.ndarray, samples: int, runs: int, generator: torch.Generator, dtype=torch.float32
) -> tuple[Tensor, Tensor]:
    """A random subset for each run: inputs ``(runs, samples, features)``, one-hot labels ``(runs, samples, classes)``.

    Raises:
        ParameterError: more samples than the data has.
    """
    if samples > len(inputs):
        raise ParameterError(f"samples must be at most {len(inputs)}, the size of the data, got {samples}.")
    picks = [torch.randperm(len(inputs), generator=generator)[:samples].numpy() for _ in range(runs)]
    x = torch.stack([torch.as_tensor(inputs[p], dtype=dtype) for p in picks])
    y = torch.stack([torch.nn.functional.one_hot(torch.as_tensor(labels[p]), int(labels.max()) + 1) for p in picks])
    return x, y.to(dtype)
