"""Bad input by the hundred, continued: whole models with structured layers, and published ones."""

# ruff: noqa: E501
from pathlib import Path

import bad_values as bad
import pytest
import torch
from bad_values import t
from stand_ins import Bigrams, Denoiser, text
from torch import nn

from lowdim import published, structured_factorization, structured_models, structured_pretrained
from lowdim.checks import ParameterError

Case = bad.Case


def two_layers() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 8))


def batches() -> list:
    return [torch.ones(3, 8)]


def without_type(sorts: list) -> list:
    return [sort for sort in sorts if sort.name != "wrong type"]


MODULE = bad.only("wrong type", None, 3, "model", nn.Linear, [], {})
PATTERNS = (
    bad.only("wrong type", None, 3, 0.5, {}, object, b"*")
    + bad.only("empty", [], ())
    + bad.only("entry", [3], ["*", None])
)
NO_PATH = bad.only("wrong type", None, 3, 0.5, b"x", []) + bad.only("no path", "", "a\0b")
NUMBER = bad.only("wrong type", "3", b"3", [], {}, object, 3j, True)  # None is good
WORDS = bad.only("wrong type", "3", 3, [], {}, object)
NO_SCALES = (
    bad.only("wrong type", 3, "0", [1.0], torch.ones(8))
    + bad.only("layer left out", {}, {"2": torch.ones(4)})
    + bad.only("no tensor", {"0": None}, {"0": [1.0] * 8})
    + bad.only("wrong length", {"0": torch.ones(4)}, {"0": torch.ones(1, 8)})
    + bad.only("entry", {"0": torch.zeros(8)}, {"0": torch.full((8,), bad.NAN)}, {"0": -torch.ones(8)})
    + bad.only("wrong dtype", {"0": torch.ones(8, dtype=torch.int64)})
)
TOKENS = (
    bad.only("wrong type", None, 3, "abc", [1, 2], object) + bad.only("wrong dtype", torch.ones(40))
    + bad.only("wrong shape", torch.ones(8, 8, dtype=torch.int64)) + bad.only("too short", torch.ones(3, dtype=torch.int64))
)  # fmt: skip
KINDS = (
    bad.only("wrong type", None, 3, "blast", object)
    + bad.only("empty", [], ())
    + bad.only("entry", ["x"], ["blast", 3])
)
LATENTS = (
    bad.only("wrong type", None, 3, "x", [1.0]) + bad.only("wrong shape", torch.ones(2, 6, 6))
    + bad.only("wrong dtype", torch.ones(2, 1, 6, 6, dtype=torch.int64)) + bad.only("not finite", torch.full((2, 1, 6, 6), bad.NAN))
)  # fmt: skip
LABELS = (
    bad.only("wrong type", None, 3, "x", [1, 2]) + bad.only("wrong shape", torch.zeros(3, dtype=torch.int64))
    + bad.only("wrong dtype", torch.zeros(2), torch.ones(2, dtype=torch.bool))
)  # fmt: skip
WINDOWS = {"context": bad.count(2), "batch": bad.count()}
DEVICE = bad.only("wrong type", "nowhere", 3.5, [], object, True, None) + bad.only("not there", "cuda:99")


def one_step() -> dict:
    return dict(steps=1, generator=bad.draw(), context=8, batch=2, rate=1e-3)


def structured_bigrams() -> nn.Module:
    model = Bigrams()
    structured_models.replace_linear(model, "transformer.*", rank=1, fresh=True)
    return model


def some_noise() -> dict:
    start = torch.randn(2, 1, 6, 6, generator=bad.draw())
    return dict(model=Denoiser(), start=start, labels=torch.tensor([0, 1]), steps=2)


CASES = [
    Case(published.perplexity, lambda: dict(model=Bigrams(), numbers=text(40), context=8), {
        "model": MODULE, "numbers": TOKENS, **WINDOWS}),
    Case(published.retrain, lambda: dict(model=structured_bigrams(), numbers=text(40), **one_step()), {
        "model": MODULE + bad.only("no layer", Bigrams()), "numbers": TOKENS, "steps": bad.count(0),
        "generator": bad.generator(), **WINDOWS, "rate": bad.real(above=0)}),
    Case(published.perplexities, lambda: dict(
        model=Bigrams(), key="gpt2", kinds=["low-rank"], train=text(40), test=text(40), **one_step(), share=0.02), {
        "model": MODULE, "key": bad.choice(), "kinds": KINDS, "train": TOKENS, "test": TOKENS, "steps": bad.count(0),
        "generator": bad.generator(), **WINDOWS, "rate": bad.real(above=0), "share": bad.real(above=0)}),
    Case(published.transformer_samples, some_noise, {
        "model": MODULE, "start": LATENTS, "labels": LABELS, "steps": bad.count(1, 999)}),
    Case(published.same_noise, lambda: dict(some_noise(), key="dit", kinds=["low-rank"], share=0.02), {
        "model": MODULE, "key": bad.choice(), "kinds": KINDS, "start": LATENTS, "labels": LABELS, "steps": bad.count(1, 999),
        "share": bad.real(above=0)}),
    Case(structured_pretrained.load_released, dict, {
        "folder": bad.only("wrong type", 3, 0.5, b"x", []) + bad.only("no path", "", "a\0b"), "device": DEVICE,
        "layers": bad.count()[:3]}),
    Case(structured_pretrained.fill_released, lambda: dict(model=two_layers(), files=[Path("model.safetensors")]), {
        "model": MODULE, "files": bad.only("wrong type", None, 3, "x", object) + bad.only("empty", [], ())
        + bad.only("entry", [3], ["model.safetensors"])}),
    Case(structured_models.replace_linear, lambda: dict(model=two_layers(), patterns="0", budget=0.9, blocks=2), {
        "budget": NUMBER + without_type(bad.real(above=0, at_most=1)) + bad.only("less than rank 1", 1e-3), "scales": NO_SCALES,
        "generator": WORDS, "fresh": bad.flag(), "std": NUMBER + without_type(bad.real(at_least=0)),
        "blocks": bad.count() + bad.only("no divisor", 3, 8), "kind": bad.choice()}),
    Case(structured_factorization.factorize, lambda: dict(weights=t(1, 4, 6), blocks=2, rank=1, iterations=2), {
        "delta0": bad.several(at_least=0), "generator": WORDS, "weights": bad.only("no batch", t(4, 6)),
        "column_scale": bad.only("wrong type", 3, "x", [1.0]) + bad.only("wrong size", t(5), t(2, 6), t(1, 1, 6))
        + bad.only("entry", -t(6), t(6) * bad.NAN, torch.zeros(6))}),
    Case(structured_factorization.BlastDescent, lambda: dict(
        matrices=t(1, 4, 6), start=structured_factorization.blast_start(1, 4, 6, 2, 1, bad.draw()), iterations=2), {
        "start": WORDS, "preconditioned": bad.flag(), "delta0": bad.several(at_least=0),
        "step": bad.only("not finite", bad.NAN, [1.0, bad.INF]) + bad.only("wrong type", None, "1", object)}),
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
NEED_THE_NET = (structured_pretrained.tokens, structured_pretrained.load_released)


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


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(rank=1, iteratons=3), "further arguments must be one of iterations, form, delta0 here, got iteratons=3."),
        (dict(rank=1, kind="low-rank", delta0=3), "further arguments must be left out here, got delta0=3."),
        (dict(rank=1, kind="low-rank", scales={}), "scales must be left out unless BLAST layers are fitted, got {}."),
        (dict(rank=1, fresh=True, delta0=0.1), "further arguments must be left out here, got delta0=0.1."),
        (dict(rank=1, delta0=-1.0), "delta0 must be a finite number >= 0, got -1.0."),
        (dict(rank=1, iterations=0), "iterations must be a whole number >= 1, got 0."),
        (dict(rank=1, budget=0.5), "give either rank or budget, got rank=1 and budget=0.5."),
        (dict(), "give either rank or budget, got rank=None and budget=None."),
    ],
)
def test_a_refused_replacement_leaves_the_model_as_it_was(options, words):
    model = two_layers()
    kept = [*model]
    with pytest.raises(ParameterError) as caught:
        structured_models.replace_linear(model, "*", **options)
    assert str(caught.value) == words
    assert [*model] == kept
