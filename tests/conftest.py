"""Shared by all tests: one thread, the paths of the build, and a browser."""

import os
import re
import shutil
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch; kernels that nbval starts inherit it
# the readers' kernel, in which nbval runs the notebooks
os.environ["JUPYTER_PATH"] = str(Path(__file__).resolve().parent.parent / "build/nbval/jupyter")

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "book/_ext"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
from make_pdf import BROWSERS
from xdist.scheduler import LoadFileScheduling

torch.set_num_threads(1)


UNITS = {"tests/book/test_browser.py": r"[\w/-]+\.html"}


class _Units(LoadFileScheduling):
    """A file stays on one worker, but each page in the browser is a unit of its own.

    A notebook's cells and dear fixtures belong together; a single file with all pages would keep one core busy while
    the others wait.
    """

    def _split_scope(self, nodeid):
        file = super()._split_scope(nodeid)
        found = re.search(UNITS[file], nodeid) if file in UNITS else None
        return f"{file} {found.group()}" if found else file


def pytest_xdist_make_scheduler(config, log):
    return _Units(config, log)


@pytest.fixture
def random():
    """A generator with a fixed seed, new for each test."""
    return torch.Generator().manual_seed(7)


@pytest.fixture(scope="session")
def browser():
    """The system's Chromium, headless. Missing: skipped with a reason on a desk, an error where CI=true."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        words = f"no browser found (looked for {', '.join(BROWSERS)})"
        if os.environ.get("CI") == "true":
            pytest.fail(words)
        pytest.skip(words)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--enable-unsafe-swiftshader", "--disable-background-networking"]
        chromium = playwright.chromium.launch(executable_path=path, args=flags)
        yield chromium
        chromium.close()
