"""Measurement models against dense matrices, solvers against brute force and exact recovery."""

import numpy as np
import pytest
import torch

from lowdim import phase_retrieval as pr
from lowdim import wirtinger
from lowdim.checks import ParameterError
from lowdim.lowrank_phase import altmin_lowrap, altmin_trunc
from lowdim.measurements import Dense, check_magnitudes, coded_diffraction, gaussian, measure
from lowdim.runtime import generator
from lowdim.tensors import Tucker

F64, C128 = torch.float64, torch.complex128


def random(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, generator=generator(seed), dtype=dtype)


def films(shape, ranks, runs, seed=0, dtype=F64):
    factors = [random(runs, n, r, seed=seed + n, dtype=dtype) for n, r in zip(shape, ranks, strict=True)]
    return Tucker(random(runs, *ranks, seed=seed, dtype=dtype), factors).full()


MODELS = {
    "real": lambda: gaussian((4, 5), 3, 7, generator(0), runs=2),
    "complex": lambda: gaussian((4, 5), 3, 7, generator(0), runs=2, is_complex=True),
    "padded": lambda: gaussian((4, 5), 3, [7, 4], generator(0), frames=[3, 2]),
    "coded": lambda: coded_diffraction((4, 5), 3, 2, generator(0), runs=2),
    "coded, kept": lambda: coded_diffraction((4, 5), 3, 2, generator(0), runs=2, keep=11),
}


def as_matrix(op):
    """The rows of any model, ``(runs, q, m, n1, n2)``, by applying it to every pixel."""
    n1, n2 = op.shape
    eye = torch.eye(n1 * n2, dtype=op.dtype).view(n1 * n2, n1, n2)
    return torch.stack([op.forward(e.expand(op.runs, op.q, n1, n2)) for e in eye], -1).unflatten(-1, (n1, n2))


@pytest.mark.parametrize("name", MODELS)
def test_maps_are_their_matrices(name):
    op = MODELS[name]()
    rows, x = as_matrix(op), random(2, 3, 4, 5, dtype=op.dtype, seed=1)
    z, basis = random(2, 3, op.width, seed=2, dtype=op.dtype), random(2, 4, 5, 3, seed=3, dtype=op.dtype)
    assert torch.allclose(op.forward(x), torch.einsum("rqiab,rqab->rqi", rows, x), rtol=0, atol=1e-10)
    assert torch.allclose(op.adjoint(z), torch.einsum("rqiab,rqi->rqab", rows.conj(), z), rtol=0, atol=1e-10)
    assert torch.allclose(op.columns(basis), torch.einsum("rqiab,rabk->rqik", rows, basis), rtol=0, atol=1e-10)
    block = random(2, 3, op.width, 3, seed=4, dtype=op.dtype)
    pulled = torch.einsum("rqiab,rqik->rabk", rows.conj(), block)
    assert torch.allclose(op.pull(block), pulled, rtol=0, atol=1e-10)


@pytest.mark.parametrize("tiny", [0, 10**9], ids=["by modes", "formed"])
@pytest.mark.parametrize("name", MODELS)
def test_restrictions_in_any_order_measure_the_product(name, tiny, monkeypatch):
    monkeypatch.setattr("lowdim.measurements.TINY", tiny)
    op = MODELS[name]()
    left, right = random(2, 4, 2, dtype=op.dtype), random(2, 5, 3, seed=1, dtype=op.dtype)
    z = random(2, 3, 2, 3, seed=2, dtype=op.dtype)
    wanted = op.forward(left[:, None] @ z @ right.mT[:, None])
    back = random(2, 3, op.width, seed=3, dtype=op.dtype)
    pulled = left.mH[:, None] @ op.adjoint(back) @ right.conj()[:, None]
    first = op.restrict(left=left)
    ways = [op.restrict(left, right), first.restrict(right=right), op.restrict(right=right).restrict(left=left)]
    ways.append(first.restrict(right=right, reuse=ways[1]))
    for way in ways:
        assert way.shape == (2, 3)
        assert torch.allclose(way.forward(z), wanted, rtol=0, atol=1e-10)
        assert torch.allclose(way.adjoint(back), pulled, rtol=0, atol=1e-10)


def test_sensing_vectors_have_unit_variance():
    for is_complex in (False, True):
        rows = gaussian((8, 8), 10, 60, generator(0), is_complex=is_complex).rows
        assert abs(float(rows.abs().square().mean()) - 1) < 0.02
    masks = coded_diffraction((4, 5), 3, 2, generator(0))
    assert torch.allclose(as_matrix(masks).abs(), torch.ones(()).double(), atol=1e-12)
    assert set(np.unique(masks.masks.numpy()).tolist()) == {1, -1, 1j, -1j}


@pytest.mark.parametrize("name", ["real", "complex", "coded"])
def test_lanczos_finds_the_top_eigenvector(name):
    op = MODELS[name]()
    weights = random(2, 3, op.width, seed=5).abs()
    rows = as_matrix(op).flatten(3)
    dense = rows.mH @ (weights.unsqueeze(-1) * rows) / op.width
    top = torch.linalg.eigh(dense).eigenvectors[..., -1]
    found = wirtinger.top_vectors(op, weights, 20, generator(1)).flatten(2)
    assert float((1 - (top.conj() * found).sum(-1).abs()).max()) < 1e-10


def test_pooled_basis_spans_the_top_eigenvectors():
    op = gaussian((4, 5), 6, 30, generator(0), runs=2)
    y = measure(op, films((4, 5, 6), (2, 2, 2), 2))
    weights = wirtinger.truncated_weights(y, op, pooled=True)
    rows = op.rows.flatten(1, 2)
    dense = rows.mH @ (weights.flatten(1).unsqueeze(-1) * rows)
    top = torch.linalg.eigh(dense).eigenvectors[..., -2:]
    found = wirtinger.pooled_basis(op, weights, 2, generator(1), steps=400).flatten(1, 2)
    assert float((1 - torch.linalg.svdvals(top.mH @ found)).abs().max()) < 1e-8


def test_aligned_error_is_the_smallest_over_all_phases():
    truth, estimate = random(4, 5, 3, dtype=C128), random(1, 4, 5, 3, seed=1, dtype=C128)
    turns = torch.exp(1j * torch.linspace(0, 2 * torch.pi, 20_001, dtype=F64))
    best = [
        min(float((truth[..., k] - t * estimate[0, ..., k]).norm() ** 2) for t in turns[:: 1 if k == 0 else 40])
        for k in range(3)
    ]
    error = float(pr.aligned_error(estimate, truth)[0])
    assert abs(error - (sum(best) ** 0.5 / float(truth.norm()))) < 1e-4
    assert float(pr.aligned_error(1j * truth[None], truth)[0]) < 1e-15


@pytest.mark.parametrize("dtype", [F64, C128])
def test_rwf_solves_small_problems_and_each_on_its_own(dtype):
    rows, z = random(2, 3, 60, 4, dtype=dtype), random(2, 3, 4, seed=1, dtype=dtype)
    root, m = (rows @ z.unsqueeze(-1)).squeeze(-1).abs(), torch.full((1, 1, 1), 60.0, dtype=F64)
    found = wirtinger.rwf(root, rows, m, steps=400)
    phase = (found.conj() * z).sum(-1, keepdim=True).sgn()
    assert float((phase * found - z).abs().max()) < 1e-8
    alone = wirtinger.rwf(root[1:, 2:], rows[1:, 2:], m, steps=400)
    turn = (alone.conj() * found[1:, 2:]).sum(-1, keepdim=True).sgn()
    assert float((turn * alone - found[1:, 2:]).abs().max()) < 1e-10


def test_rwf_step_control_keeps_a_correlated_problem_bounded():
    rows, z = 10 * random(1, 1, 30, 3), random(1, 1, 3, seed=1)
    root, m = (rows @ z.unsqueeze(-1)).squeeze(-1).abs(), torch.full((1, 1, 1), 30.0, dtype=F64)
    wild = wirtinger.rwf(root, rows, m, steps=200, controlled=False)
    tame = wirtinger.rwf(root, rows, m, steps=200)
    assert not bool(torch.isfinite(wild).all()) or float(wild.norm()) > 1e6
    assert float(tame.norm()) < 10 * float(z.norm())


@pytest.mark.parametrize("is_complex", [False, True])
def test_all_methods_recover_exactly_with_enough_measurements(is_complex):
    shape, ranks = (6, 7, 12), (2, 2, 2)
    truth = films(shape, ranks, 2, dtype=C128 if is_complex else F64)
    op = gaussian(shape[:2], shape[2], 6 * 42, generator(1), runs=2, is_complex=is_complex)
    y = measure(op, truth)
    for solver, rank in ((pr.tspr, ranks), (altmin_lowrap, 2), (altmin_trunc, 2)):
        run = solver(y, op, rank, 40, generator(2), truth=truth)
        assert float(run.errors[-1].max()) < 1e-5, solver.__name__
        assert run.clip.shape == truth.shape
        assert torch.allclose(pr.aligned_error(run.clip, truth), run.errors[-1], atol=1e-12)


def test_a_batch_with_padding_is_its_single_runs():
    shape, ranks, counts = (5, 6, 8), (2, 2, 2), [60, 90]
    truth = films(shape, ranks, 2)
    op = gaussian(shape[:2], shape[2], counts, generator(1))
    y = measure(op, truth)
    start = Tucker(random(2, 2, 2, 2), [torch.linalg.qr(random(2, n, 2, seed=n)).Q for n in (5, 6)])
    both = pr.tspr(y, op, ranks, 2, generator(0), start=start, inner=200, tolerance=1e-13)
    for k, count in enumerate(counts):
        one = Dense(op.rows[k : k + 1, :, :count].contiguous(), op.shape)
        first = Tucker(start.core[k : k + 1], [f[k : k + 1] for f in start.factors])
        single = pr.tspr(y[k : k + 1, :, :count], one, ranks, 2, generator(0), start=first, inner=200, tolerance=1e-13)
        assert float(pr.aligned_error(single.clip, both.clip[k]).max()) < 1e-8


def test_published_conjugates_are_harmless_for_real_data_only():
    shape = (6, 7, 12)
    for is_complex in (False, True):
        truth = films(shape, (2, 2, 2), 1, dtype=C128 if is_complex else F64)
        op = gaussian(shape[:2], shape[2], 6 * 42, generator(1), is_complex=is_complex)
        run = altmin_trunc(measure(op, truth), op, 2, 15, generator(2), truth=truth, published=True)
        assert bool(run.errors[-1] > 0.3) == is_complex


def test_floors():
    clip = random(6, 7, 8)
    values = torch.linalg.svdvals(clip.flatten(0, 1))
    assert abs(pr.matrix_floor(clip, 3) - float(values[3:].norm() / values.norm())) < 1e-12
    assert pr.tucker_floor(clip, (6, 7, 8)) < 1e-12


OP = gaussian((4, 5), 3, 7, generator(0))
Y = torch.ones(1, 3, 7)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: pr.tspr(Y, OP, (5, 5, 3), 1, generator(0)), r"ranks\[0\] must be a whole number >= 1 and <= 4, got 5"),
        (
            lambda: pr.tspr(Y, OP, (1, 1, 2), 1, generator(0)),
            r"ranks\[2\] must be at most ranks\[0\] \* ranks\[1\] = 1",
        ),
        (lambda: pr.tspr(-Y, OP, (2, 2, 2), 1, generator(0)), "squared magnitudes >= 0 and finite"),
        (
            lambda: pr.tspr(Y + 0j, OP, (2, 2, 2), 1, generator(0)),
            "y must be a tensor of floating-point numbers, got torch.complex",
        ),
        (lambda: check_magnitudes(Y[..., :3], OP), r"y must be \(runs, q, m\) = \(1, 3, 7\), got \(1, 3, 3\)"),
        (lambda: check_magnitudes(Y * float("nan"), OP), "finite"),
        (
            lambda: pr.tspr(Y, OP, (2, 2, 2), 1, generator(0), start="guess"),
            "start must be 'frames', 'pooled' or 'random'",
        ),
        (lambda: altmin_lowrap(Y, OP, 4, 1, generator(0)), "rank must be a whole number >= 1 and <= 3, got 4"),
        (lambda: gaussian((4, 5), 3, 0, generator(0)), "m must be a whole number >= 1, got 0"),
        (lambda: coded_diffraction((4, 5), 3, 0, generator(0)), "masks must be a whole number >= 1"),
        (lambda: coded_diffraction((4, 5), 3, 1, generator(0), keep=21), "keep must be a whole number >= 1 and <= 20"),
        (lambda: measure(OP, random(4, 5, 4)), "clip must be 4 x 5 x 3"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(ParameterError, match=words):
        call()


@pytest.mark.parametrize("start", ["model", "frames"])
def test_groups_give_what_the_runs_give_alone(start, monkeypatch):
    """Runs in groups of two (the last one smaller) against one run at a time, with a truth for each run."""
    op, truth = gaussian((5, 6), 8, 40, generator(0), runs=5), films((5, 6, 8), (2, 2, 2), 5)
    y, first = measure(op, truth), Tucker(random(5, 2, 2, 2, seed=3), [random(5, n, 2, seed=4 + n) for n in (5, 6, 8)])
    sizes, solve = [], lambda y, op, truth, given, seed: pr.tspr(y, op, (2, 2, 2), 2, seed, truth=truth, start=given)
    monkeypatch.setattr(Dense, "part", lambda self, runs, part=Dense.part: sizes.append(runs) or part(self, runs))
    monkeypatch.setattr(pr, "CACHE", 2 * op.rows[0].numel() * op.rows.element_size())
    together = solve(y, op, truth, first if start == "model" else start, generator(1))
    assert [range(5)[part] for part in sizes] == [range(2), range(2, 4), range(4, 5)]
    assert together.errors.shape == (3, 5)
    assert torch.allclose(together.errors[-1], pr.aligned_error(together.clip, truth), rtol=0, atol=1e-10)
    if start == "model":  # no random start: every run must be what it is on its own
        for k in range(5):
            part = slice(k, k + 1)
            alone = Tucker(first.core[part], [f[part] for f in first.factors])
            one = solve(y[part], Dense(op.rows[part], op.shape), truth[part], alone, generator(1))
            assert torch.allclose(together.clip[part], one.clip, rtol=0, atol=1e-8)
            assert torch.allclose(together.errors[:, part], one.errors, rtol=0, atol=1e-8)
