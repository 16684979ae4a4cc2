"""Plans and loaders of published transformers, on small stand-ins with the libraries' names, shapes and layouts."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
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


def released(dense, blocks=4, rank=3):
    """Tensors of a model as the authors store them: ``B``, ``C``, ``D`` instead of the weights of all blocks; fills
    the model with the weights that they stand for."""
    tensors = {name: value.clone() for name, value in dense.state_dict().items()}
    for name, m in dense.named_modules():
        if not isinstance(m, nn.Linear) or "layers" not in name:
            continue
        b, c = torch.randn(blocks, m.out_features // blocks, rank), torch.randn(blocks, rank, m.in_features // blocks)
        d = torch.randn(blocks, blocks, rank)
        rows = [torch.cat([b[i] @ torch.diag(d[i, j]) @ c[j] for j in range(blocks)], 1) for i in range(blocks)]
        m.weight.data.copy_(torch.cat(rows))
        del tensors[f"{name}.weight"]
        tensors |= {f"{name}.B": b, f"{name}.C": c, f"{name}.D": d}
    return tensors


@pytest.fixture
def checkpoint(tmp_path):
    """A small Llama and a folder with its checkpoint, in two files."""
    model = llama(depth=3)
    tensors = released(model)
    names = sorted(tensors)
    for part, some in enumerate((names[:9], names[9:])):
        save_file({name: tensors[name] for name in some}, tmp_path / f"model-{part}.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(dict(model_type="blast_llama", num_hidden_layers=3)))
    return model, tmp_path


class Rotary(nn.Module):
    """Frequencies that are in no file, as in transformers."""

    def __init__(self, config):
        super().__init__()
        self.register_buffer("inv_freq", torch.ones(config.num_hidden_layers), persistent=False)


def stand_in():
    def make(config):
        model = llama(depth=config.num_hidden_layers)
        model.model.rotary_emb = Rotary(config=config)
        return model

    read = lambda folder: SimpleNamespace(**json.loads((folder / "config.json").read_text()))
    return SimpleNamespace(LlamaConfig=SimpleNamespace(from_pretrained=read), LlamaForCausalLM=make)


@pytest.mark.parametrize("layers", [None, 1, 5])
def test_the_released_checkpoint_is_read_without_its_code(layers, checkpoint, monkeypatch):
    dense, folder = checkpoint
    monkeypatch.setitem(sys.modules, "transformers", stand_in())
    model = sp.load_released(folder, layers=layers)
    assert len(model.model.layers) == min(3, layers or 3)
    for name, m in model.named_modules():
        if isinstance(m, BlastLinear):
            x = torch.randn(5, m.in_features)
            torch.testing.assert_close(m(x), dense.get_submodule(name)(x), rtol=1e-4, atol=1e-4)
    assert sum(isinstance(m, BlastLinear) for m in model.modules()) == 7 * len(model.model.layers)
    assert torch.equal(model.lm_head.weight, dense.lm_head.weight)
    assert not any(part.is_meta for part in [*model.parameters(), *model.buffers()])


def test_the_released_checkpoint_comes_from_the_hub(checkpoint, monkeypatch):
    _, folder = checkpoint
    asked = []
    monkeypatch.setitem(sys.modules, "transformers", stand_in())
    hub = SimpleNamespace(snapshot_download=lambda name, allow_patterns: asked.append(name) or folder)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert len(sp.load_released().model.layers) == 3
    assert asked == ["cwoolee/blast-llama-4B"]

    def absent(*args, **kwargs):
        raise OSError("no connection")

    hub.snapshot_download = absent
    with pytest.raises(DataError, match="cwoolee/blast-llama-4B is neither in the cache of huggingface_hub nor"):
        sp.load_released()
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(DataError, match="needs huggingface_hub, which is not installed"):
        sp.load_released()


def test_what_is_no_released_checkpoint_is_named(checkpoint, monkeypatch):
    _, folder = checkpoint
    monkeypatch.setitem(sys.modules, "transformers", stand_in())
    name, file = "model.layers.0.self_attn.q_proj", folder / "all.safetensors"

    model = llama()

    def read(**changes):
        """The checkpoint with some tensors replaced, or left out where they are ``None``."""
        tensors = released(llama()) | changes
        save_file({key: value for key, value in tensors.items() if value is not None}, file)
        return sp.fill_released(model, [file])

    for changes, words in (
        ({f"{name}.C": None}, rf"{name} has factors of shapes \[\(4, 16, 3\), None, \(4, 4, 3\)\]"),
        ({f"{name}.D": torch.ones(3, 4, 4)}, rf"{name} has factors of shapes .*no BLAST matrix for this layer"),
        ({f"{name}.B": torch.ones(4, 15, 3)}, rf"{name} has factors of shapes"),
        ({"lm_head.weight": None}, r"1 tensors missing or of another shape, 0 not known \(lm_head.weight\)"),
        (
            {"lm_head.weight": torch.ones(2, 2)},
            r"1 tensors missing or of another shape, 0 not known \(lm_head.weight\)",
        ),
        ({"lm_head.scale": torch.ones(2)}, r"0 tensors missing or of another shape, 1 not known \(lm_head.scale\)"),
    ):
        with pytest.raises(DataError, match=words):
            read(**changes)
        assert not any(isinstance(m, BlastLinear) for m in model.modules())  # as it was
    read()
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DataError, match="all.safetensors cannot be read as a safetensors file"):
        sp.fill_released(llama(), [file])
    with pytest.raises(DataError, match="nothing has no config.json or no"):
        sp.load_released(folder / "nothing")
