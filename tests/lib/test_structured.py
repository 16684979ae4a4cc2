"""Structured layers: against their dense matrices, as drop-in layers, and fitted."""

import copy

import pytest
import torch
import torch.nn.functional as F

from lowdim.checks import ParameterError
from lowdim.models import GPT, ViT
from lowdim.structured import FEW_TOKENS, KINDS, BlastLinear, BlockDiagonalLinear, LowRankLinear
from lowdim.structured_models import chosen, input_scales, load, multiplications, parameters, replace_linear, save

each_kind = pytest.mark.parametrize("kind", KINDS)


def layer(kind, random, dtype=torch.float64, **more):
    return KINDS[kind](24, 36, rank=5, blocks=6, generator=random, dtype=dtype, **more)


@each_kind
@pytest.mark.parametrize("tokens", [1, 3, FEW_TOKENS, 40])
def test_forward_equals_the_dense_layer_with_gradients(kind, tokens, random):
    ours = layer(kind, random)
    x = torch.randn(tokens, 24, generator=random, dtype=torch.float64)
    dense = F.linear(x, ours.to_dense(), ours.bias)
    torch.testing.assert_close(ours(x), dense, rtol=1e-10, atol=1e-12)
    factors = list(ours.parameters())
    for a, b in zip(*(torch.autograd.grad(y.sin().sum(), factors) for y in (ours(x), dense)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    assert ours(x.view(1, tokens, 1, 24)).shape == (1, tokens, 1, 36)


@pytest.mark.parametrize("tokens", [1, 9, 30])
def test_all_products_of_blast_agree(tokens, random):
    ours, x = layer("blast", random), torch.randn(tokens, 24, generator=random, dtype=torch.float64)
    results = []
    for ours.product in ("few", "many", "dense", "auto"):
        results.append(ours(x))
    for other in results[1:]:
        torch.testing.assert_close(results[0], other, rtol=1e-10, atol=1e-12)


@each_kind
def test_counts_are_exact(kind, random):
    ours = layer(kind, random, bias=False)
    assert ours.counts().parameters == sum(p.numel() for p in ours.parameters())
    assert ours.counts().dense == 24 * 36
    assert BlastLinear.count(36, 24, 5, 6).multiplications == 5 * (36 + 24 + 6**2)


@each_kind
def test_initial_variance_is_that_of_a_dense_layer(kind, random):
    ours = KINDS[kind](256, 256, rank=32, blocks=4, std=0.1, generator=random)
    assert ours.to_dense().square().mean().sqrt().item() == pytest.approx(0.1, rel=0.05)


@each_kind
def test_a_matrix_of_the_structure_is_recovered(kind, random):
    ours = KINDS[kind](24, 36, rank=2, blocks=2, generator=random, dtype=torch.float64)
    more = dict(iterations=100) if kind == "blast" else {}
    if kind == "blast":  # fits of generic BLAST matrices can stall; those of low rank do not
        torch.nn.init.ones_(ours.gains)
    made = KINDS[kind].from_dense(ours.to_dense(), ours.bias, rank=2, blocks=2, **more)
    error = float((made.to_dense() - ours.to_dense()).detach().norm() / ours.to_dense().detach().norm())
    assert error < 1e-10
    assert torch.equal(made.bias, ours.bias)
    assert torch.allclose(made.to_linear()(torch.eye(24).double()), made(torch.eye(24).double()))


@each_kind
def test_a_budget_is_kept_and_used(kind, random):
    weight = torch.randn(36, 24, generator=random)
    counts = KINDS[kind].from_dense(weight, budget=0.7, blocks=2).counts()
    assert 0.4 < counts.ratio <= 0.7


@each_kind
def test_drop_in(kind, random):
    ours = layer(kind, random, dtype=torch.float32)
    x = torch.randn(12, 24, generator=random)
    twin = layer(kind, random, dtype=torch.float32)
    twin.load_state_dict(ours.state_dict())
    assert torch.equal(twin(x), ours(x))
    assert torch.equal(torch.compile(ours, backend="eager", fullgraph=True)(x), ours(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for rows in (x, x[:1]):
            half = ours(rows)
            assert (half.float() - ours(rows).float()).abs().max() < 0.05
    assert ours.to(torch.bfloat16)(x.bfloat16()).dtype == torch.bfloat16
    assert "in_features=24, out_features=36" in repr(ours)
    assert layer(kind, random, bias=False).bias is None


class Storage(torch.utils._python_dispatch.TorchDispatchMode):
    """Records the largest memory, in numbers of four bytes, behind any tensor that an operation returns.

    Views of the tensors that are there before do not count.
    """

    def __init__(self, there):
        super().__init__()
        self.largest, self.there = 0, {tensor.untyped_storage().data_ptr() for tensor in there}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for leaf in torch.utils._pytree.tree_leaves(result):
            if torch.is_tensor(leaf) and leaf.untyped_storage().data_ptr() not in self.there:
                self.largest = max(self.largest, leaf.untyped_storage().nbytes() // 4)
        return result


def largest_storage(function, x, there):
    with Storage([x, *there]) as watch:
        function(x)
    return watch.largest


@pytest.mark.parametrize("tokens", [1, 8, FEW_TOKENS, FEW_TOKENS + 1, 64])
def test_no_large_temporary(tokens, random):
    """Neither the product nor its gradients make anything of blocks x blocks x tokens x rank numbers."""
    n, b, r = 64, 8, 16
    ours, x = BlastLinear(n, n, rank=r, blocks=b, generator=random), torch.randn(tokens, n, generator=random)
    largest = max(b * tokens * r, tokens * n, n * r, b * b * r)  # what is passed on, and the gradients of the factors
    factors = list(ours.parameters())
    train = lambda x: ours(x).square().sum().backward()
    assert largest_storage(ours, x, factors) <= max(b * tokens * r, tokens * n, b * b * r // (1 if tokens == 1 else 2))
    assert largest_storage(train, x.requires_grad_(), factors) <= largest
    plain = lambda z: (ours.gains.unsqueeze(2) * z).sum(1)  # what is to be avoided, and the watch sees it
    assert largest_storage(plain, torch.randn(b, tokens, r), factors) == b * b * tokens * r
    if tokens > 1:
        assert largest < b * b * tokens * r


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: BlastLinear(24, 36, 4, 5), "blocks=5 does not divide a 36 x 24 matrix; numbers of blocks that do"),
        (lambda: BlastLinear(24, 36, 0, 6), "rank must be a whole number >= 1, got 0"),
        (lambda: LowRankLinear(0, 36, 4), "in_features must be a whole number >= 1, got 0"),
        (lambda: LowRankLinear.from_dense(torch.ones(3, 3)), "give either rank or budget, got rank=None"),
        (lambda: LowRankLinear.from_dense(torch.ones(3), rank=1), "weight must be a floating-point tensor"),
        (lambda: BlastLinear.from_dense(torch.full((4, 4), torch.nan), rank=1), "must have finite entries"),
        (lambda: LowRankLinear.from_dense(torch.ones(4, 4), rank=5), "rank must be a whole number >= 1 and <= 4"),
        (lambda: BlastLinear.rank_for(16, 16, 4, 0.1), "budget must be >= 0.1875 for a blast layer 16 x 16"),
        (lambda: BlastLinear.rank_for(16, 16, 4, 1.5), "budget must be a finite number > 0 and <= 1, got 1.5"),
        (lambda: BlockDiagonalLinear.from_dense(torch.ones(3, 3), budget=0.1), "budget must be >= 0.3333"),
        (lambda: BlastLinear(24, 36, 4, 6)(torch.ones(2, 23)), "the last axis of the input must be 24, got (2, 23)"),
    ],
)  # fmt: skip
def test_bad_input(make, words):
    with pytest.raises(ParameterError) as caught:
        make()
    assert words in str(caught.value)


@pytest.fixture
def model(random):
    return GPT(vocabulary=11, context=8, width=16, depth=2, heads=2, generator=random)


def test_layers_of_a_model_are_replaced_as_one_by_one(model):
    single = BlastLinear.from_dense(model.blocks[0].mlp.fc1, budget=0.5, blocks=2).counts()
    report = replace_linear(model, ["blocks.*.mlp.*", "blocks.0.attn.qkv"], "blast", budget=0.5, blocks=2)
    assert [row.name for row in report][:3] == ["blocks.0.attn.qkv", "blocks.0.mlp.fc1", "blocks.0.mlp.fc2"]
    assert report[1].parameters == single.parameters
    assert report.ratio <= 0.5
    assert all(0 < row.error < 1 for row in report)
    assert "5 layers at" in repr(report)
    assert multiplications(model, "blocks.*.mlp.fc1") == 2 * single.multiplications
    assert model(torch.zeros(3, 8, dtype=torch.long)).shape == (3, 8, 11)


@each_kind
def test_save_and_load(kind, model, random, tmp_path):
    dense, tokens = copy.deepcopy(model), torch.randint(11, (3, 8), generator=random)
    replace_linear(model, "blocks.*", kind, budget=0.6, blocks=2)
    save(model, tmp_path / "m.safetensors")
    again = load(dense, tmp_path / "m.safetensors")
    assert torch.equal(again(tokens), model(tokens))
    assert parameters(again) == parameters(model)
    with pytest.raises(ParameterError, match="does not fit|has a structured layer"):
        load(GPT(11, 8, 16, 1, 2), tmp_path / "m.safetensors")


def test_models_refuse_what_does_not_fit(model):
    with pytest.raises(
        ParameterError, match="no linear layer of the model matches 'nothing.*'; its linear layers: blocks.0"
    ):
        chosen(model, "nothing.*")
    with pytest.raises(ParameterError, match="head cannot be replaced: its weight is tied"):
        replace_linear(model, "*", "low-rank", rank=1)
    with pytest.raises(ParameterError, match="kind must be one of 'blast'"):
        replace_linear(model, "blocks.*", "sparse", rank=1)
    with pytest.raises(ParameterError, match="heads must divide the width 16, got 3"):
        GPT(11, 8, 16, 1, 3)
    with pytest.raises(ParameterError, match="patch must divide the image's side 8, got 3"):
        ViT(8, 3, 1, 10, 16, 1, 2)


def test_input_scales_are_those_of_the_inputs(random):
    from lowdim.models import MLP

    model, x = MLP([6, 8, 4], random), torch.randn(50, 6, generator=random)
    scales = input_scales(model, "fc*", [x[:20], x[20:]])
    torch.testing.assert_close(scales["fc0"], x.square().mean(0).sqrt())
    weighted = copy.deepcopy(model)
    replace_linear(model, "fc*", "blast", rank=2, blocks=2, iterations=30)
    replace_linear(weighted, "fc*", "blast", rank=2, blocks=2, iterations=30, scales=scales)
    assert not torch.equal(model.fc0.left, weighted.fc0.left)


def test_models_are_what_they_say(random):
    vit = ViT(8, 2, 3, 10, 16, 1, 2, random)
    image = torch.randn(2, 3, 8, 8, generator=random)
    patch = vit.embed(torch.cat([image[0, c, 2:4, 4:6].flatten() for c in range(3)]))
    vit.blocks = torch.nn.ModuleList()
    assert vit(image).shape == (2, 10)
    vit.norm, vit.head = torch.nn.Identity(), torch.nn.Identity()
    patches = vit.embed(image.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).flatten(3)).flatten(1, 2)
    torch.testing.assert_close(vit(image), (patches + vit.positions).mean(1))
    torch.testing.assert_close(patches[0, 6], patch)
    gpt = GPT(11, 8, 16, 2, 2, random, std=0.1, embedding=0.5)
    assert gpt.head.weight is gpt.tokens.weight
    assert 0.4 < gpt.tokens.weight.std().item() < 0.6
    assert 0.08 < gpt.blocks[0].attn.qkv.weight.std().item() < 0.12
    tokens = torch.randint(11, (8,), generator=random)
    changed = tokens.clone()
    changed[5] = (changed[5] + 1) % 11
    moved = (gpt(tokens) - gpt(changed)).abs().amax(-1) > 1e-6
    assert moved.tolist() == [False] * 5 + [True] * 3  # nothing looks ahead
