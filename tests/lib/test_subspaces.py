"""Random subspaces: lengths, adjoints, Fastfood against its matrix, gradients against autograd, batches of runs."""

import math

import pytest
import torch

from lowdim.checks import ParameterError
from lowdim.mlps import MLP, mlp_parameters
from lowdim.populations import Functional
from lowdim.projections import (
    KINDS,
    Dense,
    Fastfood,
    OuterProducts,
    Sparse,
    gaussian,
    operations,
    walsh_hadamard,
)
from lowdim.subspaces import Subspace, intrinsic_dimension, rising
from lowdim.trainer import Trainer, train

F64 = torch.float64
CLOSE = dict(rtol=1e-10, atol=1e-12)
each_kind = pytest.mark.parametrize("kind", KINDS)


def draw(seed=3):
    return torch.Generator().manual_seed(seed)


def networks(groups=2, k=3, sizes=(5, 7, 3), seed=3):
    start = {n: p.repeat_interleave(k, 0) for n, p in mlp_parameters(sizes, groups, draw(seed), dtype=F64).items()}
    x = torch.randn(40, sizes[0], generator=draw(1), dtype=F64)
    return MLP(start, x, torch.randint(sizes[-1], (40,), generator=draw(2)))


def hadamard(n):
    """Sylvester's construction."""
    h = torch.ones(1, 1, dtype=F64)
    while len(h) < n:
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)])
    return h


@each_kind
@pytest.mark.parametrize(("size", "d"), [(1, 1), (66, 1), (66, 13), (66, 66), (64, 8), (1000, 130), (200, 129)])
def test_columns_have_unit_length_over_all_parameters(kind, size, d):
    P = KINDS[kind](size, d, 3, draw(), F64)
    torch.testing.assert_close(P.matrix().norm(dim=1), torch.ones(3, d, dtype=F64), rtol=1e-12, atol=0)
    assert P.matrix().shape == (3, size, d)


@each_kind
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_pull_is_the_adjoint(kind, dtype):
    P = KINDS[kind](300, 37, 2, draw(), dtype)
    x, g = torch.randn(2, 4, 37, generator=draw(1), dtype=dtype), torch.randn(2, 4, 300, generator=draw(2), dtype=dtype)
    inner = lambda a, b: (a * b).sum(-1).double()
    close = dict(rtol=1e-12, atol=1e-12) if dtype is F64 else dict(rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(inner(P.apply(x), g), inner(x, P.pull(g)), **close)
    torch.testing.assert_close(P.apply(x), x @ P.matrix().mT, **close)
    torch.testing.assert_close(P.pull(g), g @ P.matrix(), **close)


@each_kind
def test_a_projection_is_a_function_of_its_generator(kind):
    make = lambda seed: KINDS[kind](50, 9, 2, draw(seed), F64).matrix()
    assert torch.equal(make(1), make(1))
    assert not torch.allclose(make(1), make(2))
    assert not torch.allclose(make(1)[0], make(1)[1])


@each_kind
def test_random_columns_are_nearly_orthogonal(kind):
    P = KINDS[kind](4096, 32, 1, draw(), F64).matrix()[0]
    off = (P.mT @ P - torch.eye(32, dtype=F64)).abs().max()
    assert off < 6 / math.sqrt(4096)


def test_the_transform_is_sylvesters_matrix():
    for n in (1, 2, 8, 64):
        x = torch.randn(2, 3, n, generator=draw(), dtype=F64)
        torch.testing.assert_close(walsh_hadamard(x), x @ hadamard(n), **CLOSE)
        torch.testing.assert_close(walsh_hadamard(walsh_hadamard(x)), n * x, **CLOSE)


@pytest.mark.parametrize(("size", "d"), [(96, 20), (100, 20), (20, 20), (64, 16)])
def test_fastfood_is_its_explicit_matrix(size, d):
    P = Fastfood(size, d, 2, draw(), F64)
    H, n = hadamard(P.block), P.block
    for group in range(2):
        blocks = []
        for b in range(P.blocks):
            permutation = torch.eye(n, dtype=F64)[P._order[group, 0, b]]
            blocks.append(H @ torch.diag(P._gauss[group, 0, b]) @ permutation @ H @ torch.diag(P._signs[group, 0, b]))
        whole = torch.cat(blocks)[:size, :d]
        torch.testing.assert_close(P.matrix()[group], whole / whole.norm(dim=0), **CLOSE)


def test_sparse_columns_have_few_entries():
    P = Sparse(1000, 40, 2, draw(), F64)
    assert ((P.matrix() != 0).sum(1) == math.isqrt(1000)).all()
    assert (P.matrix() != 0).any(2).double().mean() > 0.6  # the columns sit in different places


@each_kind
@pytest.mark.parametrize("decay", [0.0, 0.03])
def test_gradients_are_autograds(kind, decay):
    nets = networks()
    P = KINDS[kind](nets.size, 11, 2, draw(4), F64)
    sub = Subspace(nets, P, dims=[4, 11, 7], decay=decay)
    sub.parameters["x"].copy_(torch.randn(6, 11, generator=draw(5), dtype=F64) * sub._used)
    start = torch.cat([p.clone() for p in sub._start], 1)
    x = sub.parameters["x"].clone().requires_grad_()
    theta = start + torch.cat([row @ P.matrix()[i // 3].mT for i, row in enumerate(x.unsqueeze(1))])
    parts = theta.split([p[0].numel() for p in nets.state], 1)
    named = {n: part.view(p.shape) for (n, p), part in zip(nets.parameters.items(), parts, strict=True)}
    losses = nets.loss(parameters=named) + decay / 2 * theta.square().sum(1)
    wanted = torch.autograd.grad(losses.sum(), x)[0] * sub._used
    sub.backward(sub.inputs, sub.targets)
    torch.testing.assert_close(sub.gradients["x"], wanted, **CLOSE)
    torch.testing.assert_close(sub.loss(), nets.loss(parameters=named).detach(), **CLOSE)
    torch.testing.assert_close(sub.loss(parameters={"x": x.detach()}), sub.loss(), **CLOSE)


@each_kind
@pytest.mark.parametrize("optimiser", ["sgd", "momentum", "adam"])
def test_a_population_is_its_single_runs(kind, optimiser):
    dims = [4, 11, 7]
    sub = Subspace(whole := networks(), KINDS[kind](whole.size, 11, 2, draw(4), F64), dims)
    trainer = Trainer(sub, 0.05, optimiser, batch=9, generator=draw(6))
    columns = sub.projection.matrix()
    trainer.run(12)
    for run in range(6):
        net = networks()
        alone = MLP({n: p[run : run + 1] for n, p in net.parameters.items()}, net.inputs, net.targets)
        one = Subspace(alone, Dense(columns[run // 3, None, :, : dims[run % 3]]))
        single = Trainer(one, 0.05, optimiser, batch=9, generator=draw(6))
        single.picks = lambda step, run=run: trainer.picks(step)[run : run + 1]
        single.run(12)
        for ours, theirs in zip(whole.state, alone.state, strict=True):
            torch.testing.assert_close(ours[run], theirs[0], rtol=1e-9, atol=1e-11)
        assert not sub.parameters["x"][run, dims[run % 3] :].any()


def test_all_dimensions_are_direct_training():
    """With P the identity, the subspace is the whole space."""
    nets, twin = networks(k=1), networks(k=1)
    sub = Subspace(nets, Dense(torch.eye(nets.size, dtype=F64).expand(2, -1, -1)))
    for population in (sub, twin):
        train(population, 10, 0.02, "adam", batch=8, generator=draw())
    sub.lift()
    for ours, theirs in zip(nets.state, twin.state, strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)


def test_functional_populations_and_own_data():
    x = torch.randn(4, 12, 6, generator=draw(), dtype=F64)
    line = lambda p, x: x @ p["w"]
    square = lambda out, y: (out - y).square().mean()
    nets = Functional(line, {"w": torch.zeros(4, 6, dtype=F64)}, x, x[..., 0], square, per_run=True)
    turned = torch.linalg.qr(torch.randn(2, 6, 6, generator=draw(), dtype=F64)).Q
    sub = Subspace(nets, Dense(turned))
    train(sub, 3000, 0.3)
    sub.lift()
    torch.testing.assert_close(nets.parameters["w"], torch.eye(6, dtype=F64)[:1].expand(4, 6), rtol=0, atol=1e-2)


def test_a_subspace_trainer_goes_on_from_its_state():
    make = lambda: Trainer(
        Subspace(net := networks(), Sparse(net.size, 8, 2, draw(), F64)), 0.1, "adam", batch=8, generator=draw()
    )
    whole, first, second = make(), make(), make()
    whole.run(9)
    first.run(4)
    second.load_state_dict(first.state_dict())
    second.run(5)
    assert torch.equal(whole.population.flat, second.population.flat)


def test_outer_products_are_low_rank_changes():
    sizes = (5, 7, 4)
    P = OuterProducts(sizes, 3, 2, draw(), F64)
    columns = P.matrix()
    torch.testing.assert_close(columns.mT @ columns, torch.eye(18, dtype=F64).expand(2, -1, -1), rtol=0, atol=1e-12)
    x, g = torch.randn(2, 4, 18, generator=draw(1), dtype=F64), torch.randn(2, 4, 74, generator=draw(2), dtype=F64)
    torch.testing.assert_close(P.apply(x), x @ columns.mT, **CLOSE)
    torch.testing.assert_close(P.pull(g), g @ columns, **CLOSE)
    nets = networks(k=3, sizes=sizes)
    start = {name: p.clone() for name, p in nets.parameters.items()}
    sub = Subspace(nets, P, dims=[2, 8, 18])  # ranks 1, 2, 3
    sub.parameters["x"].copy_(torch.randn(6, 18, generator=draw(), dtype=F64) * sub._used)
    sub.lift()
    for l in range(2):
        change = nets.weights[l] - start[f"weight.{l}"]
        assert torch.linalg.matrix_rank(change, atol=1e-9).tolist() == [1, 2, 3] * 2
        assert torch.equal(nets.biases[l], start[f"bias.{l}"])


def test_the_closest_rising_curve():
    from scipy.optimize import minimize

    y = torch.randn(7, 5, generator=draw(), dtype=F64)
    fit = rising(y)
    assert (fit.diff(dim=0) >= 0).all()
    torch.testing.assert_close(rising(fit), fit)
    for i in range(5):
        steps = [dict(type="ineq", fun=lambda z, j=j: z[j + 1] - z[j]) for j in range(6)]
        target = y[:, i].numpy()
        best = minimize(lambda z, t=target: ((z - t) ** 2).sum(), target.mean() + 0 * target, constraints=steps)
        torch.testing.assert_close(fit[:, i], torch.as_tensor(best.x), rtol=0, atol=1e-5)


def test_dimensions_are_interpolated_in_log_d():
    d = [10, 100, 1000]
    curves = torch.tensor([[0.2, 0.95, 0.1, 0.2], [0.6, 0.96, 0.2, 0.9], [1.0, 0.97, 0.3, 0.7]], dtype=F64)
    found = intrinsic_dimension(d, curves, 0.8)
    torch.testing.assert_close(found[:2], torch.tensor([10**2.5, 10.0], dtype=F64))
    assert found[2].isnan()
    torch.testing.assert_close(found[3], torch.tensor(100.0, dtype=F64))  # 0.9 and 0.7 count as 0.8 twice
    torch.testing.assert_close(intrinsic_dimension(d, curves[:, 0], 0.6), torch.tensor(100.0, dtype=F64))


def test_operations_are_counted():
    assert operations("direct", 1000, 10) == 0
    assert operations("dense", 1000, 10) == 20_000
    P = Sparse(1000, 10, 1, draw(), F64)
    assert operations("sparse", 1000, 10) == 2 * int((P.matrix() != 0).sum())
    P = Fastfood(1000, 10, 1, draw(), F64)
    transform = P.block * int(math.log2(P.block))
    assert operations("fastfood", 1000, 10) == 2 * (P.blocks * (2 * transform + 2 * P.block) + 10)


@each_kind
def test_more_dimensions_than_parameters_is_an_error_with_both_numbers(kind):
    for call in (lambda: KINDS[kind](66, 67, 1, draw()), lambda: operations(kind, 66, 67)):
        with pytest.raises(ParameterError, match=r"66.*67"):
            call()


def test_what_does_not_fit_is_told():
    nets = networks()
    for make, words in (
        (lambda: Subspace(nets, gaussian(nets.size + 1, 3, 2, draw(), F64)), "66 parameters.*67"),
        (lambda: Subspace(nets, gaussian(nets.size, 3, 4, draw(), F64)), "divides 6 runs, got .*4"),
        (lambda: Subspace(nets, gaussian(nets.size, 3, 2, draw())), "float64.*float32"),
        (lambda: Subspace(nets, gaussian(nets.size, 3, 2, draw(), F64), dims=[2, 3, 4]), "<= 3, got 4"),
        (lambda: walsh_hadamard(torch.zeros(3, 6)), "power of two"),
    ):
        with pytest.raises(ParameterError, match=words):
            make()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@each_kind
def test_the_gpu_gives_the_same(kind):
    P = KINDS[kind](300, 37, 2, torch.Generator("cuda").manual_seed(1), F64)
    x, g = torch.randn(2, 4, 37, dtype=F64, device="cuda"), torch.randn(2, 4, 300, dtype=F64, device="cuda")
    torch.testing.assert_close(P.apply(x), x @ P.matrix().mT, **CLOSE)
    torch.testing.assert_close(P.pull(g), g @ P.matrix(), **CLOSE)
