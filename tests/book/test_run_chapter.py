"""The runner from the command line: knobs, bad input, and what is kept when something goes wrong.

A toy chapter in a copy of the project keeps these tests quick; the bad inputs of real chapters are tested on them.
"""

import json
import os
import shutil
import subprocess
import sys

import nbformat
import pytest
from chapters import ROOT, all_chapters
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


BAD = [
    (["-p", "sigma", "[]"], "sigma must hold at least one number, got an empty list"),
    (["-p", "sigma", "[3, -1]"], "sigma[1] must be a finite number > 0, got -1"),
    (["-p", "depth", "1"], "depth must be a whole number >= 2"),
    (["-p", "etas", "[-0.1]"], "etas[0] must be a finite number > 0, got -0.1"),
    (["-p", "etas", "[Infinity]"], "etas[0] must be a finite number > 0, got inf"),
    (["-p", "etas", "[]"], "etas must hold at least one number"),
    (["-p", "etas", "[0.02, 0.09]"], "run 1 of 2 (learning rate 0.09; the edge 2/S_1 is 0.0309439) diverged at step"),
    (["-p", "alpha", "0"], "alpha must be a finite number > 0"),
    (["-p", "depth", "9", "-p", "alpha", "0.001"], "the number of steps to leave the saddle"),
    (["-p", "steps", "3"], "steps must be a whole number >= 100"),
]


BAD_RECOVERY = [
    (["-p", "rhat", "3"], "rhat must be a whole number >= 10 and <= 100, got 3"),
    (["-p", "r", "60"], "r must be a whole number >= 1 and <= 50, got 60"),
    (["-p", "p", "1.5"], "p must be a finite number > 0 and < 1, got 1.5"),
    (["-p", "d", "20"], "d must be a whole number >= 100 and <= 400, got 20"),
    (["-p", "eps", "0.5"], "eps must be a finite number >= 0.003 and <= 0.01, got 0.5"),
    (["-p", "lr", "400"], "(step size 2800 for the averaged loss; try a smaller lr) diverged at step"),
]
BAD_CURSES = [
    (["-p", "k", "1"], "k must be a whole number >= 3 and <= 24, got 1"),
    (["-p", "r", "0"], "r must be a whole number >= 1 and <= 10, got 0"),
    (["-p", "n", "5"], "n must be a whole number >= 10 and <= 200, got 5"),
    (["-p", "alphas", "[]"], "alphas must hold at least one number, got an empty list"),
    (["-p", "alphas", "[0.5, -1]"], "alphas[1] must be a finite number > 0, got -1"),
    (["-p", "alphas", "[0.001]"], "the smallest of alphas must be a finite number >= 0.02 and <= 0.4, got 0.001"),
    (["-p", "eta", "0"], "eta must be a finite number > 0, got 0"),
    (
        ["-p", "eta", "3"],
        "run 0 of 1 (step size 3; at the solution the limit is 1/sigma_1 = 1, at a large start less) diverged",
    ),
    (
        ["-p", "beta", "0.1"],
        "beta (the descent with eta = 0.1 is unstable outside the limits) must be a finite number >= 0.22",
    ),
]
BAD_ROBUST = [
    (["-p", "ranks", "[2, 6]"], "ranks[0] must be a finite number >= 3, got 2"),
    (["-p", "ranks", "[6, 21]"], "ranks[1] must be a whole number >= 3 and <= 20, got 21"),
    (["-p", "ranks", "[3]"], "the number of ranks above r must be a whole number >= 2, got 1"),
    (["-p", "p", "1"], "p must be a finite number >= 0 and < 1, got 1"),
    (["-p", "m", "0"], "m must be a whole number >= 20, got 0"),
    (["-p", "alphas", "[0.1]"], "the number of different alphas must be a whole number >= 2, got 1"),
    (["-p", "alphas", "[0.1, 2]"], "alphas[1] must be a finite number > 0 and < 1, got 2"),
    (["-p", "r", "7"], "r must be a whole number >= 1 and <= 6, got 7"),
]
BAD_PHASES = [
    (["-p", "ranks", "[26, 12, 5]"], "ranks[0] must be a whole number >= 1 and <= 25, got 26"),
    (["-p", "ranks", "[7, 12]"], "ranks must hold one rank for each of the 3 modes, got [7, 12]"),
    (["-p", "ranks", "[2, 2, 5]"], "ranks[2] must be a whole number >= 1 and <= 4, got 5"),
    (["-p", "r", "25"], "r must be a whole number >= 1 and <= 24, got 25"),
    (["-p", "ratios", "[0.001, 0.5]"], "ratios[0] must be a finite number >= 0.00285714, got 0.001"),
    (["-p", "video", "nothing.gif"], "video must be a file or a folder that exists, got 'nothing.gif'"),
    (["-p", "seeds", "0"], "seeds must be a whole number >= 1"),
]
BAD_PREDICTORS = [
    (["-p", "R", "16"], "R must be a whole number >= 1 and <= 15, got 16"),
    (["-p", "I", "4"], "I must be a whole number >= 9 and <= 64, got 4"),
    (["-p", "s", "-1"], "s must be a finite number >= 0, got -1"),
    (["-p", "C", "0"], "C must be a finite number > 0, got 0"),
    (["-p", "penalties", "[]"], "penalties must hold at least one number"),
    (["-p", "penalties", "[0.1, -1]"], "penalties[1] must be a finite number >= 0, got -1"),
    (["-p", "datasets", "2"], "datasets must be a whole number >= 4 and <= 256, got 2"),
    (
        ["-p", "user_data", '"nowhere.npz"'],
        "nowhere.npz must be a .npz file with numbers X (n, I_1, I_2, ...) and y (n,)",
    ),
]
BAD_BLAST = [
    (["-p", "b", "7"], "blocks=7 does not divide a 256 x 256 matrix; numbers of blocks that do: 1, 2, 4, 8"),
    (["-p", "rank", "0"], "rank must be a whole number >= 1 and <= 32, got 0"),
    (["-p", "K", "3"], "K must be a whole number >= 20, got 3"),
    (["-p", "delta0", "0"], "delta0 must be a finite number > 0, got 0"),
    (["-p", "budget", "1.5"], "budget must be a finite number >= 0.25 and <= 1, got 1.5"),
    (["-p", "n", "8"], "n must be a whole number >= 16 and <= 4096, got 8"),
    (["-p", "gpt_steps", "1"], "gpt_steps must be a whole number >= 20, got 1"),
]
BAD_RESAMPLE = [
    (["-p", "sigma", "0"], "sigma must be a finite number > 0, got 0"),
    (["-p", "steps", "5"], "steps must be a whole number >= 30 and <= 999, got 5"),
    (["-p", "every", "40"], "every must be a whole number >= 1 and <= 25, got 40"),
    (["-p", "formula", "mine"], "formula must be one of 'code', 'paper', got 'mine'"),
    (["-p", "digits", "500"], "digits must be a whole number >= 4 and <= 197, got 500"),
    (["-p", "gamma", "-1"], "gamma must be a finite number > 0, got -1"),
]
CASES = [
    (slug, *case)
    for slug, cases in {
        "edge-of-stability": BAD,
        "dln-compression": BAD_RECOVERY,
        "matrix-sensing-curses": BAD_CURSES,
        "robust-matrix-recovery": BAD_ROBUST,
        "tucker-phase-retrieval": BAD_PHASES,
        "tensor-predictors": BAD_PREDICTORS,
        "blast": BAD_BLAST,
        "resample": BAD_RESAMPLE,
    }.items()
    if slug in {chapter.slug for chapter in all_chapters()}  # the others are drafts
    for case in cases
]


@pytest.mark.parametrize(("slug", "arguments", "words"), CASES, ids=[f"{c[0]} {' '.join(c[1])}" for c in CASES])
def test_bad_input_of_the_chapters(slug, arguments, words, tmp_path):
    done = run(ROOT, slug, *arguments, "--out", str(tmp_path))
    assert done.returncode == 1
    assert words in sentence(done)
    assert not (tmp_path / "results.json").exists()


def test_a_missing_gpu(tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = run(ROOT, "edge-of-stability", "-p", "device", "cuda", "--out", str(tmp_path))
    assert done.returncode == 1
    assert "device 'cuda' was asked for, but PyTorch sees 0 GPUs here: use 'cpu' or 'auto'." in sentence(done)
