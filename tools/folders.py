"""A chapter's output folder: one writer at a time, all of a run or nothing of it, and whether it is still whole.

A run works in ``.run-PID`` inside the folder. What it leaves is listed with checksums in ``stamp.json``; then the work
folder is renamed to ``.ready``, which decides: before it, the old files stand; after it, the new ones do, and what a
kill left to be moved is moved by the next run.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time
from pathlib import Path

from chapters import ROOT

STAMP = "stamp.json"
BUSY = "Another build runs in this folder; wait for it to end."


class BusyError(RuntimeError):
    """Somebody else writes here; the message is one sentence."""


@contextlib.contextmanager
def locked(path: Path, words: str, patience: float = 0):
    """Hold the lock file ``path``. The system drops the lock when this process ends, even by a kill.

    Raises:
        BusyError: another process holds it, also after ``patience`` seconds.
        OSError: the file cannot be written.
    """
    with open(path, "a") as file:
        deadline = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise BusyError(words) from None
                time.sleep(0.1)
        yield


def build_lock() -> Path:
    """The lock of everything that builds in this checkout: Snakemake, and the site."""
    (ROOT / "build").mkdir(exist_ok=True)
    return ROOT / "build" / ".lock"


@contextlib.contextmanager
def workplace(out: Path):
    """A fresh work folder inside ``out``, which this process has to itself; what earlier runs left behind goes.

    Raises:
        BusyError, OSError: as in ``locked``. A chapter whose build was killed ends soon: hence the patience.
    """
    out.mkdir(parents=True, exist_ok=True)
    with locked(out / ".lock", f"Another run writes to {out}; wait for it to end, or give another --out.", 10):
        finish(out)
        for left in out.glob(".run-*"):
            shutil.rmtree(left, ignore_errors=True)
        work = out / f".run-{os.getpid()}"
        work.mkdir()
        try:
            yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)


def deliver(work: Path, out: Path, names: list[str], key: str) -> None:
    """Replace what the folder had by these files of the work folder: all of them, or none."""
    sums = {name: checksum(work / name) for name in sorted(names)}
    (work / STAMP).write_text(json.dumps({"key": key, "files": sums}, indent=1))
    os.rename(work, out / ".ready")
    finish(out)


def finish(out: Path) -> None:
    """Move the files of a run that was delivered; figure data that only an older run had is dropped."""
    ready = out / ".ready"
    if not (ready / STAMP).exists():
        shutil.rmtree(ready, ignore_errors=True)
        return
    new, old = stamp(ready), stamp(out)
    for name in old["files"].keys() - new["files"].keys():
        (out / name).unlink(missing_ok=True)
    for name in [*new["files"], STAMP]:
        if (ready / name).exists():
            os.replace(ready / name, out / name)
    (out / "failed.ipynb").unlink(missing_ok=True)
    shutil.rmtree(ready, ignore_errors=True)


def stamp(folder: Path) -> dict:
    """The key and the checksums of what is in the folder; empty where there is none that can be read."""
    try:
        read = json.loads((folder / STAMP).read_bytes())
        return {"key": str(read["key"]), "files": dict(read["files"])}
    except (OSError, ValueError, TypeError, KeyError):
        return {"key": "", "files": {}}


def whole(out: Path, key: str) -> bool:
    """Whether the folder holds all files of a run with this key, as they were delivered."""
    if (out / ".ready").exists():
        with contextlib.suppress(OSError, BusyError), locked(out / ".lock", "busy"):
            finish(out)
    known = stamp(out)
    if known["key"] != key or "results.json" not in known["files"]:
        return False
    try:
        return all(checksum(out / name) == wanted for name, wanted in known["files"].items())
    except OSError:
        return False


def checksum(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
