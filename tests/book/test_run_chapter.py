"""The runner from the command line: knobs, bad input, and what is kept when something goes wrong.

A toy chapter in a copy of the project keeps these tests quick; what real chapters refuse is in ``test_bad_values``.
"""

import json
import os
import shutil
import subprocess
import sys

import nbformat
import pytest
from chapters import ROOT
from toys import HEADER, project_with

TOY = (
    HEADER
    + """
# A toy chapter

```{code-cell} ipython3
:tags: [parameters]

profile: str = "quick"  # profile
seed: int = 0  # seed
device: str = "cpu"  # device
scale: float = 2.0  # a number
rates: list[float] | None = None  # a list
mood: str = "calm"  # a text
```

## Work

```{code-cell} ipython3
from pathlib import Path

import matplotlib.pyplot as plt

from lowdim import checks
from lowdim.claims import Claims
from lowdim.results import Results

knobs = dict(profile=profile, seed=seed, device=device, scale=scale, rates=rates, mood=mood)
out, claims = Results("toy", knobs), Claims("toy")
checks.number("scale", scale, above=0)
if mood == "angry":
    raise RuntimeError("this chapter\\nis angry")
```

```{code-cell} ipython3
---
mystnb:
  figure:
    caption: A straight line that goes up, as straight lines do.
    name: fig-toy-line
  image:
    alt: A straight line that goes up from the left to the right.
---
figure, axes = plt.subplots(figsize=(2, 1))
axes.plot([0, scale])
out.figure(figure, "line" if scale < 5 else "steep", {"y": [0, scale]})
```

```{code-cell} ipython3
claims.value("twice", "The scale is two.", source="here", expected=2, origin="derived", measured=scale, reason="exact")
if mood != "silent":
    out.write(claims)
```
"""
)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project with one toy chapter and this project's tools."""
    return project_with({"toy": TOY}, tmp_path_factory.mktemp("project"))


def run(project, *arguments, **environment):
    command = [sys.executable, project / "tools/run_chapter.py", *arguments]
    settings = os.environ | environment
    return subprocess.run(command, capture_output=True, text=True, cwd=project, env=settings, timeout=120)


def sentence(done):
    """What a reader sees on stderr, without the kernel's own remarks."""
    return "\n".join(line for line in done.stderr.splitlines() if "IPKernelApp" not in line)


@pytest.fixture(scope="module")
def good(project, tmp_path_factory):
    out = tmp_path_factory.mktemp("good") / "new" / "folder"
    done = run(project, "toy", "--out", str(out), "-p", "seed", "3")
    assert done.returncode == 0, done.stderr
    return out


def test_everything_is_left_in_the_folder(good):
    names = sorted(path.name for path in good.iterdir() if path.name != ".lock")
    assert names == ["line.csv", "line.dark.png", "line.npz", "notebook.ipynb", "results.json", "stamp.json"]
    results = json.loads((good / "results.json").read_text())
    assert results["parameters"]["seed"] == 3
    assert results["figures"]["line"]["alt"].startswith("A straight line")
    notebook = nbformat.read(good / "notebook.ipynb", 4)
    assert str(good.parent) not in nbformat.writes(notebook), "no path of this machine in the notebook"


def test_a_second_run_gives_the_same_files(project, good, tmp_path):
    run(project, "toy", "--out", str(tmp_path), "-p", "seed", "3")
    mine, other = (json.loads((folder / "results.json").read_text()) for folder in (good, tmp_path))
    for volatile in ("date", "runtime_s"):
        mine.pop(volatile), other.pop(volatile)
    assert mine == other
    for name in ("line.csv", "line.npz", "line.dark.png"):
        assert (good / name).read_bytes() == (tmp_path / name).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nosuch"], 2, "unknown chapter 'nosuch'; the chapters are toy."),
        (["toyy"], 2, "unknown chapter 'toyy' (did you mean 'toy'?)"),
        (["toy", "-p", "scal", "1"], 2, "no parameter 'scal' (did you mean 'scale'?); it has profile, seed, device"),
        (["toy", "-p", "scale", "[1]"], 2, "parameter 'scale' of toy must be a number, got [1]."),
        (["toy", "-p", "seed", "1.5"], 2, "parameter 'seed' of toy must be a whole number, got 1.5."),
        (["toy", "-p", "seed", "true"], 2, "parameter 'seed' of toy must be a whole number, got True."),
        (["toy", "-p", "rates", '["a"]'], 2, "parameter 'rates' of toy must be a list of numbers or null, got ['a']."),
        (["toy", "-p", "rates", "[1,"], 2, "must be a list of numbers or null, written as JSON, got '[1,'."),
        (["toy", "--profile", "huge"], 2, "invalid choice: 'huge'"),
        (
            ["toy", "-p", "scale", "-1"],
            1,
            "ParameterError in section 'Work': scale must be a finite number > 0, got -1.",
        ),
        (["toy", "-p", "scale", "NaN"], 1, "scale must be a finite number > 0, got nan."),
        (["toy", "-p", "mood", "angry"], 1, "toy: RuntimeError in section 'Work': this chapter is angry"),
        (["toy", "-p", "mood", "silent"], 1, "toy: the chapter ended without writing results.json"),
        (["toy", "-p", "device", "abacus"], 1, "device must be 'auto', 'cpu', 'cuda' or 'cuda:N', got 'abacus'."),
    ],
)
def test_bad_input_is_one_clear_sentence_and_nothing_is_lost(project, good, arguments, code, words):
    before = {path.name: path.read_bytes() for path in good.iterdir() if path.name != "failed.ipynb"}
    done = run(project, *arguments, "--out", str(good))
    assert done.returncode == code
    assert words in sentence(done)
    assert "Traceback" not in done.stderr
    assert {path.name: path.read_bytes() for path in good.iterdir() if path.name != "failed.ipynb"} == before


def test_a_folder_that_cannot_be_written(project, tmp_path):
    (tmp_path / "file").write_text("in the way")
    done = run(project, "toy", "--out", str(tmp_path / "file" / "below"))
    assert done.returncode == 2
    assert sentence(done).startswith("cannot write to the output folder")
    assert "Not a directory" in sentence(done)


def test_files_of_others_in_the_folder_are_left_alone_and_old_figures_go(project, good, tmp_path):
    shutil.copytree(good, tmp_path / "out")
    (tmp_path / "out/notes.txt").write_text("mine")
    done = run(project, "toy", "--out", str(tmp_path / "out"), "-p", "scale", "9")
    assert done.returncode == 0
    assert (tmp_path / "out/notes.txt").read_text() == "mine"
    assert sorted(p.name for p in (tmp_path / "out").glob("*.npz")) == ["steep.npz"]


def test_knobs_are_listed(project):
    done = run(project, "toy", "--knobs")
    assert "scale: float = 2.0  a number" in done.stdout


def test_a_missing_gpu(tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = run(ROOT, "edge-of-stability", "-p", "device", "cuda", "--out", str(tmp_path))
    assert done.returncode == 1
    assert "device 'cuda' was asked for, but PyTorch sees 0 GPUs here: use 'cpu' or 'auto'." in sentence(done)
