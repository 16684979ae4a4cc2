"""The code that the README and the pages about the book show works as it stands."""

import re

import pytest
from chapters import ROOT

PAGES = ["README.md", "book/how-this-book-works.md"]


@pytest.mark.parametrize("page", PAGES)
def test_the_library_example_runs(page):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.S)
    code = next(block for block in blocks if "from lowdim" in block)
    names = {}
    exec(code, names)
    assert names["run"]["pi"].shape == (101, 1000, 1)


def test_the_commands_of_the_readme_exist():
    text = (ROOT / "README.md").read_text()
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"\bmake ([a-z]+)\b", text)) <= targets | {"sets"}
    for path in re.findall(r"`((?:tools|tests|book|benchmarks|profiles|results)/[\w./-]+)`", text):
        if "PART" not in path:
            assert (ROOT / path).exists(), path
