"""Bad input by the hundred, continued: whole models with structured layers, and published ones."""

# ruff: noqa: E501
from pathlib import Path

import bad_values as bad
import pytest
import torch
from torch import nn

from lowdim import structured_models, structured_pretrained
from lowdim.checks import ParameterError

Case = bad.Case


def two_layers() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 8))


def batches() -> list:
    return [torch.ones(3, 8)]


MODULE = bad.only("wrong type", None, 3, "model", nn.Linear, [], {})
PATTERNS = (
    bad.only("wrong type", None, 3, 0.5, {}, object, b"*")
    + bad.only("empty", [], ())
    + bad.only("entry", [3], ["*", None])
)
NO_PATH = bad.only("wrong type", None, 3, 0.5, b"x", []) + bad.only("no path", "", "a\0b")
CASES = [
    Case(structured_models.chosen, lambda: dict(model=two_layers(), patterns="*"), {"model": MODULE, "patterns": PATTERNS}),
    Case(structured_models.replace_linear, lambda: dict(model=two_layers(), patterns="*", rank=1, fresh=True), {
        "model": MODULE, "patterns": PATTERNS}),
    Case(structured_models.input_scales, lambda: dict(model=two_layers(), patterns=["0"], batches=batches()), {
        "model": MODULE, "patterns": PATTERNS, "batches": bad.only("wrong type", None, 3, torch.ones(3, 8)) + bad.only("empty", [], ())}),
    Case(structured_models.multiplications, lambda: dict(model=two_layers(), patterns="*"), {"model": MODULE, "patterns": PATTERNS}),
    Case(structured_models.parameters, lambda: dict(model=two_layers()), {"model": MODULE}),
    Case(structured_models.save, lambda: dict(model=two_layers(), path="model.safetensors"), {"model": MODULE, "path": NO_PATH}),
    Case(structured_models.load, lambda: dict(model=two_layers(), path="model.safetensors"), {
        "model": MODULE, "path": NO_PATH + bad.only("not there", "elsewhere.safetensors", Path("folder/file"))
        + bad.only("no such format", "words.txt")}),
    Case(structured_pretrained.tokens, lambda: dict(text="abc", name="none/none"), {"text": bad.text(), "name": bad.text()}),
    Case(structured_pretrained.unwrap_conv1d, lambda: dict(model=two_layers()), {"model": MODULE}),
    Case(structured_pretrained.keep_first, lambda: dict(model=nn.Sequential(nn.ModuleList([nn.Linear(2, 2)])), layers=1), {
        "model": MODULE + bad.only("no blocks", two_layers())}),
]  # fmt: skip
NEED_THE_NET = (structured_pretrained.tokens,)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder with a file that is good and one that is not."""
    monkeypatch.chdir(tmp_path)
    structured_models.save(two_layers(), "model.safetensors")
    Path("words.txt").write_text("words")


test_the_good_arguments_are_good, test_bad_input_is_answered = bad.table_tests(CASES, unless=NEED_THE_NET)


def test_layers_that_are_not_there_or_not_used_are_named():
    with pytest.raises(ParameterError, match="no linear layer of the model matches 'nothing'.*linear layers: 0, 2"):
        structured_models.input_scales(two_layers(), "nothing", batches())
    idle = two_layers()
    idle.add_module("spare", nn.Linear(2, 2))
    idle.forward = lambda x: idle[0](x)
    with pytest.raises(ParameterError, match="patterns must name layers that the model uses, got 2, spare, which"):
        structured_models.input_scales(idle, "*", batches())
