"""Plans and loaders of published transformers, on small stand-ins with the libraries' names, shapes and layouts."""

import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lowdim import structured_pretrained as sp
from lowdim.checks import ParameterError
from lowdim.data import DataError
from lowdim.structured import BlastLinear


class Conv1D(nn.Module):
    """As in transformers: the weight is ``(in, out)``."""

    def __init__(self, out, inp):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(inp, out) / inp**0.5), nn.Parameter(torch.randn(out))

    def forward(self, x):
        return torch.addmm(self.bias, x.flatten(0, -2), self.weight).unflatten(0, x.shape[:-1])


def tree(**parts):
    """A module with these children; dots in the names open new levels."""
    root = nn.Module()
    for name, part in parts.items():
        *path, last = name.split("__")
        at = root
        for step in path:
            if not hasattr(at, step):
                at.add_module(step, nn.Module())
            at = getattr(at, step)
        at.add_module(last, part)
    return root


def gpt2(width=24, depth=2):
    block = lambda: tree(attn__c_attn=Conv1D(3 * width, width), attn__c_proj=Conv1D(width, width),
                         mlp__c_fc=Conv1D(4 * width, width), mlp__c_proj=Conv1D(width, 4 * width))  # fmt: skip
    head = nn.Linear(width, 50, bias=False)
    return tree(transformer__h=nn.ModuleList(block() for _ in range(depth)), lm_head=head)


def llama(width=64, hidden=160, depth=2, layer=nn.Linear, head=320):
    part = lambda out, inp: layer(inp, out, bias=False)
    block = lambda: tree(**{f"self_attn__{w}_proj": part(width, width) for w in "qkvo"},
                         mlp__gate_proj=part(hidden, width), mlp__up_proj=part(hidden, width),
                         mlp__down_proj=part(width, hidden))  # fmt: skip
    return tree(model__layers=nn.ModuleList(block() for _ in range(depth)), lm_head=part(head, width))


def dit(width=36, depth=2, layer=nn.Linear):
    block = lambda: tree(
        norm1__linear=layer(width, 6 * width),
        **{f"attn1__to_{w}": layer(width, width) for w in "qkv"},
        attn1__to_out=nn.ModuleList([layer(width, width)]),
        ff__net=nn.ModuleList([tree(proj=layer(width, 4 * width)), nn.Identity(), layer(4 * width, width)]),
    )
    return tree(transformer_blocks=nn.ModuleList(block() for _ in range(depth)))


MODELS = {"gpt2": gpt2, "llama": llama, "dit": dit}
PER_BLOCK = {"gpt2": 3, "llama": 7, "dit": 5}


@pytest.mark.parametrize("kind", ["blast", "low-rank"])
@pytest.mark.parametrize("key", list(MODELS))
def test_plans_find_their_layers_and_keep_their_cost(key, kind):
    model = sp.unwrap_conv1d(MODELS[key]())
    options, share = (dict(iterations=2) if kind == "blast" else {}), 0.005
    report = sp.compress(model, key, kind, share=share, **options)
    assert len(report) == 2 * PER_BLOCK[key]
    blocks = sp.PLANS[key].blocks
    for row in report:
        ranks = [max(1, int(share * g.rank)) for g in sp.PLANS[key].groups]
        costs = [BlastLinear.count(*row.shape, r, blocks).parameters for r in ranks]
        if kind == "blast":
            assert row.blocks == blocks
            assert row.parameters in costs
        else:
            assert row.parameters <= max(costs)
    x = torch.randn(3, next(iter(report)).shape[1])
    assert torch.isfinite(model.get_submodule(report[0].name)(x)).all()


def test_conv1d_becomes_the_same_linear_layer():
    model, x = gpt2(), torch.randn(2, 5, 24)
    expected = model.transformer.h[0].attn.c_attn(x)
    sp.unwrap_conv1d(model)
    assert isinstance(model.transformer.h[0].attn.c_attn, nn.Linear)
    torch.testing.assert_close(model.transformer.h[0].attn.c_attn(x), expected)


def shapes(model):
    return [(name, tuple(m.weight.shape)) for name, m in model.named_modules() if isinstance(m, nn.Linear)]


def test_true_sizes_have_the_published_counts():
    """Llama-7B: 3.564 B of 6.738 B parameters (embedding and norms added); blocks of DiT-XL/2 at half their cost."""
    meta = lambda inp, out, bias=True: nn.Linear(inp, out, bias=bias, device="meta")
    after, before = sp.parameters_of_plan("llama", shapes(llama(4096, 11008, 32, meta, head=32000)))
    rest = 32000 * 4096 + 65 * 4096
    assert round((before + rest) / 1e9, 3) == 6.738
    assert round((after + rest) / 1e9, 3) == 3.564
    after, before = sp.parameters_of_plan("dit", shapes(dit(1152, 28, meta)))
    assert after / before == pytest.approx(0.503, abs=1e-3)


def test_only_the_first_blocks():
    assert len(sp.keep_first(llama(depth=3), 1).model.layers) == 1


def test_loading_needs_its_package(monkeypatch):
    for package in ("transformers", "diffusers", "datasets"):
        monkeypatch.setitem(sys.modules, package, None)
    for call in (lambda: sp.load("gpt2"), lambda: sp.load("dit"), sp.wikitext103, lambda: sp.tokens("a")):
        with pytest.raises(DataError, match="which is not installed: pip install"):
            call()
    with pytest.raises(ParameterError, match="key must be"):
        sp.load("bert")


def test_load_and_texts_through_stand_in_packages(monkeypatch):
    fake = SimpleNamespace(
        GPT2LMHeadModel=SimpleNamespace(from_pretrained=lambda name: gpt2(depth=3)),
        AutoTokenizer=SimpleNamespace(from_pretrained=lambda name: lambda text: {"input_ids": [len(text), 7]}),
    )
    monkeypatch.setitem(sys.modules, "transformers", fake)
    model = sp.load("gpt2", layers=2)
    assert len(model.transformer.h) == 2
    assert isinstance(model.transformer.h[1].mlp.c_fc, nn.Linear)
    assert sp.tokens("abc").tolist() == [3, 7]

    def absent(*args, **kwargs):
        raise OSError("no connection")

    fake.GPT2LMHeadModel.from_pretrained = fake.AutoTokenizer.from_pretrained = absent
    for call in (lambda: sp.load("gpt2"), lambda: sp.tokens("abc")):
        with pytest.raises(DataError, match="nor to be had"):
            call()
    texts = SimpleNamespace(load_dataset=lambda *names, split: {"text": ["one ", "two"]})
    monkeypatch.setitem(sys.modules, "datasets", texts)
    assert sp.wikitext103("test", characters=6) == "one tw"
