"""What a chapter leaves behind: whole files or none, the same bytes every time."""

import csv
import io
import json

import jsonschema
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from lowdim import files, plots, results, runtime
from lowdim.checks import ParameterError
from lowdim.claims import Claims

KNOBS = {"profile": "quick", "seed": 0, "device": "cpu"}


@pytest.fixture
def shown(monkeypatch):
    """What would be displayed."""
    seen = []
    monkeypatch.setattr(results, "display", lambda data, **options: seen.append((data, options)))
    return seen


def small_figure():
    plots.style()
    figure, axes = plt.subplots(figsize=(2, 1))
    axes.plot([0, 1], [0, 1], color=plots.INK)
    return figure


def write(folder, seed=0):
    out, claims = results.Results("a-chapter", KNOBS | {"seed": seed}, folder), Claims("a-chapter")
    out.figure(small_figure(), "line", {"x": torch.arange(3.0), "y": np.ones((2, 2), int)})
    out.glue("a_number", torch.tensor(1.5))
    claims.value(
        "one", "One equals one here.", source="nowhere", expected=1, origin="derived", measured=1, reason="exact"
    )
    return out.write(claims)


def test_results_follow_the_schema_and_repeat(tmp_path, shown):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = write(tmp_path / "a")
    second = write(tmp_path / "b")
    jsonschema.validate(first, json.loads(files.SCHEMA.read_text()))
    assert json.loads((tmp_path / "a" / "results.json").read_text()) == first
    assert 0 <= second["peak_memory_mb"] - first["peak_memory_mb"] <= 100  # it may pass a multiple in between
    volatile = ("date", "runtime_s", "peak_memory_mb")
    assert {k: v for k, v in first.items() if k not in volatile} == {
        k: v for k, v in second.items() if k not in volatile
    }
    for name in ("line.npz", "line.csv", "line.dark.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_figure_data_comes_back(tmp_path, shown):
    write(tmp_path)
    with np.load(tmp_path / "line.npz") as data:
        assert data["x"].tolist() == [0, 1, 2]
        assert data["y"].shape == (2, 2)
    rows = list(csv.reader((tmp_path / "line.csv").open()))
    assert rows[0] == ["x", "y[0]", "y[1]"]
    assert rows[3] == ["2", "", ""]


def test_dark_version_swaps_ink_and_paper_and_restores():
    figure = small_figure()
    plots.png(figure)  # the first drawing settles the layout
    before = plots.png(figure)
    dark = plots.png(figure, dark=True)
    assert plots.png(figure) == before != dark
    pixels = plt.imread(io.BytesIO(dark))[..., :3]
    assert np.median(pixels) < 0.15


def test_a_gallery_is_one_set_of_axes_with_all_pictures_and_words():
    figure, axes = plots.plt.subplots()
    small, wide = (np.eye(4), {"vmin": 0}), (np.ones((2, 5)), {})
    rows, notes = [[small, wide], [wide, small]], [["", "a"], ["b", ""]]
    image = plots.gallery(axes, rows, ["left", "right"], ["up", "down"], notes)
    assert len(axes.images) == 4
    assert np.array_equal(image.get_array(), small[0])
    assert {text.get_text() for text in axes.texts} == {"left", "right", "up", "down", "a", "b"}
    assert {round(i.get_extent()[1] - i.get_extent()[0], 6) for i in axes.images} == {1.0}
    plots.plt.close(figure)


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    files.write_atomically(path, b"old")
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(OSError, match="MB free, too little to write results.json; nothing was changed"):
        files.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_a_write_that_breaks_off_leaves_nothing_behind(tmp_path, monkeypatch):
    path = tmp_path / "data.csv"
    files.write_atomically(path, b"old")

    def broken(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "replace", broken)
    with pytest.raises(OSError, match="No space left"):
        files.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["data.csv"]


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"profile": "huge"}, "profile must be one of 'quick', 'paper', got 'huge'"),
        ({"device": "tpu"}, "device must be 'auto'"),
    ],
)
def test_bad_input_is_one_clear_sentence(knobs, words, tmp_path):
    with pytest.raises(ParameterError, match=words):
        results.Results("a-chapter", KNOBS | knobs, tmp_path)


def test_a_figure_name_is_used_once(tmp_path, shown):
    out = results.Results("a-chapter", KNOBS, tmp_path)
    out.figure(small_figure(), "line", {"x": [1]})
    with pytest.raises(ParameterError, match="figure 'line' is saved twice"):
        out.figure(small_figure(), "line", {"x": [1]})


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests a machine without a GPU")
def test_a_missing_gpu_is_named():
    with pytest.raises(
        ParameterError, match="device 'cuda:1' was asked for, but PyTorch sees 0 GPUs here: use 'cpu' or 'auto'"
    ):
        runtime.pick_device("cuda:1")


def test_peak_memory_is_rounded_up():
    assert runtime.peak_memory_mb(torch.device("cpu")) % 100 == 0
    assert runtime.peak_memory_mb(torch.device("cpu")) >= 200


def test_provenance_names_what_is_needed():
    facts = runtime.provenance(torch.device("cpu"))
    assert {"python", "torch", "numpy"} <= facts["versions"].keys()
    assert facts["commit"]
