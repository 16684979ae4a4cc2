"""Shared by all tests: one thread, the paths of the build, and a browser."""

import os
import shutil
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch; kernels that nbval starts inherit it

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "book/_ext"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
from make_pdf import BROWSERS

torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)  # before xdist reads the marks
def pytest_collection_modifyitems(items):
    """Who runs where, for ``--dist=loadgroup``: a file stays on one worker, but each chapter and each page is its own.

    A notebook's cells and fixtures that are dear belong together; one file with all chapters would keep one core busy
    while the others wait.
    """
    for item in items:
        group = item.nodeid.split("::")[0]
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        if item.path.name in ("test_rerun.py", "test_browser.py"):
            group += f" {getattr(parameters.get('chapter'), 'slug', parameters.get('page', ''))}"
        item.add_marker(pytest.mark.xdist_group(group))


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
