"""Experiments on published models, on small stand-ins with their names: known answers, what moves, what stays."""

import copy
from types import SimpleNamespace

import pytest
import torch
from stand_ins import Bigrams, Denoiser, text
from torch import nn

from lowdim import published
from lowdim.checks import ParameterError
from lowdim.structured_models import replace_linear


def draw() -> torch.Generator:
    return torch.Generator().manual_seed(3)


class Table(nn.Module):
    """Scores of the next token, looked up."""

    def __init__(self, scores, wrapped):
        super().__init__()
        self.scores, self.wrapped = nn.Parameter(scores), wrapped

    def forward(self, tokens):
        return SimpleNamespace(logits=self.scores[tokens]) if self.wrapped else self.scores[tokens]


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("wrapped", [True, False])
def test_perplexity_of_models_whose_answer_is_known(wrapped, batch):
    numbers = torch.arange(50) % 7
    assert published.perplexity(Table(torch.zeros(7, 7), wrapped), numbers, 8, batch) == pytest.approx(7)
    # the next number has probability 3/4, all others share the rest
    after = torch.full((7, 7), 0.25 / 6).fill_diagonal_(0.75).roll(1, 1).log()
    assert published.perplexity(Table(after, wrapped), numbers, 8, batch) == pytest.approx(4 / 3)


def test_retraining_learns_and_moves_only_factors_norms_and_biases():
    torch.manual_seed(0)
    model, numbers = Bigrams(), text(2000)
    replace_linear(model, "transformer.h.*", "blast", rank=3, blocks=6, fresh=True, generator=draw())
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    model.transformer.h[0].ln.requires_grad_(False)
    before = published.perplexity(model, numbers, 50)
    published.retrain(model, numbers, 60, draw(), context=20, batch=8, rate=2e-2)
    assert published.perplexity(model, numbers, 50) < 0.6 * before
    still = {name for name, value in model.state_dict().items() if torch.equal(value, kept[name])}
    frozen = {"transformer.h.0.ln.weight", "transformer.h.0.ln.bias"}
    assert still == {"transformer.wte.weight", "lm_head.weight"} | frozen
    assert all(p.grad is None for p in model.parameters())


def test_a_model_without_structured_layers_is_not_retrained():
    with pytest.raises(ParameterError, match="model must have structured layers, got Bigrams without one"):
        published.retrain(Bigrams(), text(100), 3, draw(), context=20)


def test_perplexities_before_and_after_do_not_depend_on_their_order():
    torch.manual_seed(0)
    model, train, test = Bigrams(), text(1500), text(400)
    kept, options = copy.deepcopy(model.state_dict()), dict(context=20, batch=8, rate=1e-2, share=0.02, iterations=5)
    both = published.perplexities(model, "gpt2", ["blast", "low-rank"], train, test, 15, draw(), **options)
    once = published.perplexities(model, "gpt2", ["low-rank", "blast"], train, test, 15, draw(), **options)
    assert both == once
    assert both["dense"] == (published.perplexity(model, test, 20, 8),) * 2
    assert all(after < before for kind, (before, after) in both.items() if kind != "dense")
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())
    assert len({before for before, _ in both.values()}) == 3


class Gaussian(nn.Module):
    """The noise of data with variance 4, exactly, and a second channel that is none."""

    def __init__(self, abar):
        super().__init__()
        self.abar = abar

    def forward(self, latents, timestep, class_labels):
        abar = self.abar[timestep].view(-1, 1, 1, 1)
        noise = (1 - abar).sqrt() * latents / (4 * abar + 1 - abar)
        return SimpleNamespace(sample=torch.cat([noise, torch.full_like(noise, 7.0)], 1))


def test_samples_of_a_gaussian_follow_the_scalar_recursion():
    abar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    start = torch.randn(3, 1, 2, 2, generator=draw(), dtype=torch.float64)
    found = published.transformer_samples(Gaussian(abar), start, torch.zeros(3, dtype=torch.int64), 100)
    factor, times = 1.0, range(1, 1000, 10)  # every tenth
    for k in reversed(range(100)):
        now, then = float(abar[times[k]]), float(abar[times[k - 1]]) if k else 1.0
        noise = (1 - now) ** 0.5 / (4 * now + 1 - now)
        factor *= then**0.5 * (1 - (1 - now) ** 0.5 * noise) / now**0.5 + (1 - then) ** 0.5 * noise
    torch.testing.assert_close(found, factor * start)
    assert factor == pytest.approx(2, rel=0.02)  # what infinitely many steps give


def test_distances_from_the_same_noise_vanish_where_the_weights_fit():
    torch.manual_seed(0)
    model, start, labels = Denoiser(), torch.randn(4, 1, 6, 6), torch.tensor([0, 1, 2, 0])
    for m in model.transformer_blocks.modules():
        if isinstance(m, nn.Linear):  # rank two
            m.weight.data = torch.randn(m.out_features, 2) @ torch.randn(2, m.in_features) / m.in_features
    kept = copy.deepcopy(model.state_dict())
    coarse, fine = (
        published.same_noise(model, "dit", ["blast", "low-rank"], start, labels, 10, share=share, iterations=100)
        for share in (0.005, 0.02)  # ranks one, and four or more
    )
    for kind in ("blast", "low-rank"):
        assert coarse[kind].shape == (4,)
        assert fine[kind].max() < 1e-6 < 1e-3 < coarse[kind].min()
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())
