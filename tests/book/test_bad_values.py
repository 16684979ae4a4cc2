"""Values that a chapter's parameters cannot have: one sentence that names the parameter, and nothing is left behind.

The chapter's cells run in this process, which has the library loaded; the first case of each chapter also goes through
the command, from which the words must come out unchanged.
"""

import re
import subprocess
import sys
import warnings

import matplotlib.pyplot as plt
import pytest
import run_chapter
import torch
from chapters import ROOT, all_chapters, find

from lowdim.checks import ParameterError
from lowdim.data import DataError
from lowdim.descent import DivergenceError

CASES = {
    "edge-of-stability": [
        ("sigma=[]", "sigma must hold at least one number, got an empty list"),
        ("sigma=[3, -1]", "sigma[1] must be a finite number > 0, got -1"),
        ("depth=1", "depth must be a whole number >= 2"),
        ("etas=[-0.1]", "etas[0] must be a finite number > 0, got -0.1"),
        ("etas=[Infinity]", "etas[0] must be a finite number > 0, got inf"),
        ("etas=[]", "etas must hold at least one number"),
        ("etas=[0.02, 0.09]", "run 1 of 2 (learning rate 0.09; the edge 2/S_1 is 0.0309439) diverged at step"),
        ("alpha=0", "alpha must be a finite number > 0"),
        ("depth=9; alpha=0.001", "the number of steps to leave the saddle"),
        ("steps=3", "steps must be a whole number >= 100"),
    ],
    "dln-compression": [
        ("rhat=3", "rhat must be a whole number >= 10 and <= 100, got 3"),
        ("r=60", "r must be a whole number >= 1 and <= 50, got 60"),
        ("p=1.5", "p must be a finite number > 0 and < 1, got 1.5"),
        ("d=20", "d must be a whole number >= 100 and <= 400, got 20"),
        ("eps=0.5", "eps must be a finite number >= 0.003 and <= 0.01, got 0.5"),
        ("lr=400", "(step size 2800 for the averaged loss; try a smaller lr) diverged at step"),
    ],
    "matrix-sensing-curses": [
        ("k=1", "k must be a whole number >= 3 and <= 24, got 1"),
        ("r=0", "r must be a whole number >= 1 and <= 10, got 0"),
        ("n=5", "n must be a whole number >= 10 and <= 200, got 5"),
        ("alphas=[]", "alphas must hold at least one number, got an empty list"),
        ("alphas=[0.5, -1]", "alphas[1] must be a finite number > 0, got -1"),
        ("alphas=[0.001]", "the smallest of alphas must be a finite number >= 0.02 and <= 0.4, got 0.001"),
        ("eta=0", "eta must be a finite number > 0, got 0"),
        (
            "eta=3",
            "run 0 of 1 (step size 3; at the solution the limit is 1/sigma_1 = 1, at a large start less) diverged",
        ),
        (
            "beta=0.1",
            "beta (the descent with eta = 0.1 is unstable outside the limits) must be a finite number >= 0.22",
        ),
    ],
    "robust-matrix-recovery": [
        ("ranks=[2, 6]", "ranks[0] must be a finite number >= 3, got 2"),
        ("ranks=[6, 21]", "ranks[1] must be a whole number >= 3 and <= 20, got 21"),
        ("ranks=[3]", "the number of ranks above r must be a whole number >= 2, got 1"),
        ("p=1", "p must be a finite number >= 0 and < 1, got 1"),
        ("m=0", "m must be a whole number >= 20, got 0"),
        ("alphas=[0.1]", "the number of different alphas must be a whole number >= 2, got 1"),
        ("alphas=[0.1, 2]", "alphas[1] must be a finite number > 0 and < 1, got 2"),
        ("r=7", "r must be a whole number >= 1 and <= 6, got 7"),
    ],
    "tucker-phase-retrieval": [
        ("ranks=[26, 12, 5]", "ranks[0] must be a whole number >= 1 and <= 25, got 26"),
        ("ranks=[7, 12]", "ranks must hold one rank for each of the 3 modes, got [7, 12]"),
        ("ranks=[2, 2, 5]", "ranks[2] must be a whole number >= 1 and <= 4, got 5"),
        ("r=25", "r must be a whole number >= 1 and <= 24, got 25"),
        ("ratios=[0.001, 0.5]", "ratios[0] must be a finite number >= 0.00285714, got 0.001"),
        ("video=nothing.gif", "video must be a file or a folder that exists, got 'nothing.gif'"),
        ("seeds=0", "seeds must be a whole number >= 1"),
    ],
    "tensor-predictors": [
        ("R=16", "R must be a whole number >= 1 and <= 15, got 16"),
        ("I=4", "I must be a whole number >= 9 and <= 64, got 4"),
        ("s=-1", "s must be a finite number >= 0, got -1"),
        ("C=0", "C must be a finite number > 0, got 0"),
        ("penalties=[]", "penalties must hold at least one number"),
        ("penalties=[0.1, -1]", "penalties[1] must be a finite number >= 0, got -1"),
        ("datasets=2", "datasets must be a whole number >= 4 and <= 256, got 2"),
        ('user_data="nowhere.npz"', "nowhere.npz must be a .npz file with numbers X (n, I_1, I_2, ...) and y (n,)"),
    ],
    "blast": [
        ("b=7", "blocks=7 does not divide a 256 x 256 matrix; numbers of blocks that do: 1, 2, 4, 8"),
        ("rank=0", "rank must be a whole number >= 1 and <= 32, got 0"),
        ("K=3", "K must be a whole number >= 20, got 3"),
        ("delta0=0", "delta0 must be a finite number > 0, got 0"),
        ("budget=1.5", "budget must be a finite number >= 0.25 and <= 1, got 1.5"),
        ("n=8", "n must be a whole number >= 16 and <= 4096, got 8"),
        ("gpt_steps=1", "gpt_steps must be a whole number >= 20, got 1"),
    ],
    "resample": [
        ("sigma=0", "sigma must be a finite number > 0, got 0"),
        ("steps=5", "steps must be a whole number >= 30 and <= 999, got 5"),
        ("every=40", "every must be a whole number >= 1 and <= 25, got 40"),
        ("formula=mine", "formula must be one of 'code', 'paper', got 'mine'"),
        ("digits=500", "digits must be a whole number >= 4 and <= 197, got 500"),
        ("gamma=-1", "gamma must be a finite number > 0, got -1"),
    ],
    "dynamical-stability": [
        ("d=10", "d must be a whole number >= 20 and <= 20000, got 10"),
        ("n=600", "n must be a whole number >= 10 and <= 500, got 600"),
        ("etas=[0.01, 0.02]", "the number of different etas must be a whole number >= 3, got 2"),
        ("etas=[0.01, 0.02, 0.5]", "etas[2] must be a finite number > 0 and <= 0.2, got 0.5"),
        ("clip=0", "clip must be a finite number > 0, got 0"),
    ],
    "generalization-dynamics": [
        ("N=50", "N must be a whole number >= 100 and <= 1000, got 50"),
        ("seeds=0", "seeds must be a whole number >= 5, got 0"),
        ("P=60", "P / 2 must be a whole number >= 50 and <= 1000, got 30"),
        ("hidden=[1]", "hidden[0] must be a whole number >= 2 and <= 2400, got 1"),
        ("layers=[]", "the number of layers' widths must be a whole number >= 3, got 0"),
    ],
    "intrinsic-dimension": [
        ("hidden=[8]", "hidden[0] must be a whole number >= 12 and <= 1024, got 8"),
        ("hidden=[]", "the number of hidden layers must be a whole number >= 1 and <= 5, got 0"),
        ("share=1", "share must be a finite number >= 0.5 and <= 0.95, got 1"),
        ("steps=0", "steps must be a whole number >= 20, got 0"),
        ("labels=500", "labels must be a whole number >= 40 and <= 200, got 500"),
    ],
    "neural-collapse": [
        ("K=2", "K must be a whole number >= 3 and <= 8, got 2"),
        ("K=6; d=6", "d must be a whole number >= 7 and <= 20, got 6"),
        ("decays=[0.1, 0]", "decays[1] must be a finite number >= 0.001 and <= 0.6, got 0"),
        ("beta=1", "beta must be a finite number >= 20 and <= 10000, got 1"),
        ("images=100", "images must be a whole number >= 200 and <= 1797, got 100"),
        ("eta=-0.1", "eta must be a finite number > 0 and <= 0.2, got -0.1"),
    ],
    "hessian-spectrum": [
        ("images=500", "images must be a whole number >= 5 and <= 170, got 500"),
        ("classes=[2, 11]", "classes[1] must be a finite number >= 2 and <= 10, got 11"),
        ("target=1", "target must be a finite number >= 0.0005 and <= 0.005, got 1"),
        ("batches=[10]", "the number of batches must be a whole number >= 2 and <= 2, got 1"),
        ("batches=[100, 120]", "the large batch must be a whole number >= 200, got 120"),
    ],
    "linear-mode-connectivity": [
        ("d=8", "d must be a whole number >= 16 and <= 4096, got 8"),
        ("pairs=2", "pairs must be a whole number >= 3 and <= 64, got 2"),
        ("eta=0", "eta must be a finite number > 0 and <= 1, got 0"),
        ("gamma=1", "gamma must be a finite number >= 0 and < 1, got 1"),
    ],
}


def pairs(knobs):
    """``a=1; b=[2, 3]`` as the command line has it: ``[("a", "1"), ("b", "[2, 3]")]``."""
    return [tuple(pair.split("=", 1)) for pair in knobs.split("; ")]


@pytest.fixture(autouse=True)
def as_it_was():
    """Chapters set what holds for a whole process; the next test of this worker finds it as before."""
    kind, rng = torch.get_default_dtype(), torch.get_rng_state()
    with plt.rc_context(), warnings.catch_warnings():
        yield
    torch.set_default_dtype(kind)
    torch.set_rng_state(rng)


def run_cells(chapter, given):
    space = {"__name__": "chapter", "display": lambda *_: None}
    (_, parameters), *cells = chapter.cells
    exec(parameters, space)
    space |= given
    for _, code in cells:
        exec(code, space)


@pytest.mark.parametrize(
    ("slug", "knobs", "words"),
    [pytest.param(slug, *case, id=f"{slug} {case[0]}") for slug, cases in CASES.items() for case in cases],
)
def test_bad_values(slug, knobs, words, tmp_path, monkeypatch):
    chapter = find(slug)
    given = run_chapter.parsed_knobs(chapter, pairs(knobs), "quick")
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ParameterError, DivergenceError, DataError), match=re.escape(words)) as caught:
        run_cells(chapter, given)
    plt.close("all")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "results.json").exists()


@pytest.mark.parametrize("slug", CASES)
def test_the_words_reach_the_command_line(slug, tmp_path):
    knobs, words = CASES[slug][0]
    options = [part for name, value in pairs(knobs) for part in ("-p", name, value)]
    command = [sys.executable, ROOT / "tools/run_chapter.py", slug, *options, "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "results.json").exists()


def test_every_chapter_is_here():
    assert set(CASES) >= {chapter.slug for chapter in all_chapters()}
