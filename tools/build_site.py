"""Build the site from the executed chapters, publish the readers' notebooks, check the result.

Does nothing when neither texts, results, extension nor settings changed since the last good build.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from chapters import ROOT, all_chapters, build_folder
from folders import BUSY, BusyError, build_lock, locked

OUT = ROOT / "_build" / "html"
STAMP = ROOT / "_build" / "inputs.sha256"


def inputs(profile: str) -> list[Path]:
    """Everything that the site is made of."""
    files = [ROOT / name for name in ("_config.yml", "_toc.yml", "requirements.txt")]
    files += [p for p in (ROOT / "book").rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    files += (ROOT / "tools").glob("*.py")
    files += (ROOT / "results").rglob("*.json")
    for chapter in all_chapters():
        files += [build_folder(profile, chapter.slug) / name for name in ("notebook.ipynb", "results.json")]
    return sorted(p for p in files if p.exists())


def fingerprint(profile: str) -> str:
    digest = hashlib.sha256(f"{profile} {os.environ.get('BOOK_REPOSITORY', '')}".encode())
    for path in inputs(profile):
        digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def build(profile: str) -> int:
    """Jupyter Book with every warning an error; a failed build starts from scratch the next time."""
    jupyter_book = Path(sys.executable).parent / "jupyter-book"
    command = [jupyter_book, "build", str(ROOT), "-W", "-n", "--keep-going", "-q"]
    status = subprocess.run(command, cwd=ROOT, env=os.environ | {"BOOK_PROFILE": profile}).returncode
    if status:
        shutil.rmtree(ROOT / "_build" / ".doctrees", ignore_errors=True)
    return status


def build_and_check(profile: str) -> int:
    """The site, if anything that it is made of changed; returns an exit status."""
    now = fingerprint(profile)
    if STAMP.exists() and STAMP.read_text() == now and (OUT / "index.html").exists():
        return 0
    STAMP.unlink(missing_ok=True)
    tools = [[sys.executable, ROOT / "tools" / name] for name in ("publish_notebooks.py", "check_site.py")]
    steps = [lambda: build(profile)]
    steps += [lambda t=tool: subprocess.run([*t, "--profile", profile], cwd=ROOT).returncode for tool in tools]
    for step in steps:
        if status := step():
            print("The site was not built; its messages are above.", file=sys.stderr)
            return status
    STAMP.write_text(now)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description="Build and check the site.")
    parser.add_argument("--profile", default="quick", choices=["quick", "paper"])
    profile = parser.parse_args().profile
    try:
        with locked(build_lock(), BUSY):
            if status := build_and_check(profile):
                return status
    except (BusyError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    report = [sys.executable, ROOT / "tools" / "scoreboard.py", "--profile", profile]
    return subprocess.run(report, cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
