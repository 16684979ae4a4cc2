"""Whole files or none. Light on purpose: the runner of chapters uses it without loading torch."""

import os
import shutil
from pathlib import Path

SCHEMA = Path(__file__).with_name("results.schema.json")  # the form of results.json
FREE_MB = 50  # less room than this on the disk: stop before anything is half written


def write_atomically(path: Path, content: bytes) -> None:
    """Write a whole file or nothing: a reader sees the old file or the new one, also after a kill.

    Raises:
        TypeError: content that is not bytes.
        OSError: too little room on the disk, or a folder that cannot be written; the old file is untouched.
    """
    if not isinstance(content, bytes):
        raise TypeError(f"content must be bytes, got {type(content).__name__}.")
    path = Path(path)
    free = shutil.disk_usage(path.parent).free
    if free < len(content) + FREE_MB * 1024**2:
        raise OSError(
            f"{path.parent} has {free // 1024**2} MB free, too little to write {path.name}; nothing was changed."
        )
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        beside.write_bytes(content)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
