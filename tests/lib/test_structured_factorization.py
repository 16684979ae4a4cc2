"""Factorization: closed forms against autograd, batches against single runs, exact recovery, bad input."""

import pytest
import torch

from lowdim.checks import ParameterError
from lowdim.structured_factorization import (
    BlastDescent,
    BlastFactors,
    _Buffers,
    _eliminate,
    _largest,
    _solve,
    blast_start,
    block_low_rank,
    factorize,
    low_rank,
)


def problem(random, runs=3, b=4, p=3, q=5, r=2):
    matrices = torch.randn(runs, b * p, b * q, generator=random, dtype=torch.float64)
    return matrices, blast_start(runs, b * p, b * q, b, r, random, std=0.3)


def one_by_autograd(a, start, iterations, preconditioned, form, delta0=0.1):
    """The same updates for one matrix, gradients by autograd, Gram matrices from the stacked factors."""
    u, v, s = start
    for t in range(iterations):
        for name in "uvs":
            leaves = {"u": u, "v": v, "s": s}
            leaves[name] = leaves[name].detach().requires_grad_()
            square = (a - BlastFactors(**leaves).dense()).square().sum()
            loss = square if form == "released" else 0.5 * square
            (gradient,) = torch.autograd.grad(loss, leaves[name])
            if name == "u":
                stack = torch.einsum("jqr,ijr->ijqr", v, s).flatten(1, 2)
            elif name == "v":
                stack = torch.einsum("ipr,ijr->jipr", u, s).flatten(1, 2)
            gram = stack.mT @ stack if name != "s" else (u.mT @ u)[:, None] * (v.mT @ v)
            eta = 1 - t / iterations
            if preconditioned:
                gram = gram + delta0 * loss.detach().sqrt() * torch.eye(u.shape[-1], dtype=u.dtype)
                change = torch.linalg.solve(gram, gradient if name == "s" else gradient.mT)
                change = change if name == "s" else change.mT
            else:
                top = torch.linalg.eigvalsh(gram)[..., -1]
                change = gradient / (top[..., None] if name == "s" else top[..., None, None])
            leaves[name] = leaves[name].detach() - eta * change
            u, v, s = leaves["u"], leaves["v"], leaves["s"]
    return u, v, s


@pytest.mark.parametrize("many", [1, 1024])  # systems that are eliminated side by side
@pytest.mark.parametrize("form", ["paper", "released"])
def test_preconditioned_steps_equal_autograd(form, many, random, monkeypatch):
    monkeypatch.setattr("lowdim.structured_factorization.MANY", many)
    matrices, start = problem(random)
    fit = BlastDescent(matrices, start, 6, form=form)
    for _ in range(6):
        fit.step()
    for run in range(3):
        expected = one_by_autograd(matrices[run], [f[run] for f in start], 6, True, form)
        for ours, theirs in zip(fit.factors(), expected, strict=True):
            torch.testing.assert_close(ours[run], theirs, rtol=1e-10, atol=1e-10)
    residual = matrices - fit.factors().dense()
    torch.testing.assert_close(fit.loss(), 0.5 * residual.square().sum((1, 2)), rtol=1e-12, atol=0)


@pytest.mark.parametrize("rank", [1, 2, 8, 12])
def test_elimination_side_by_side(rank, random):
    roots = torch.randn(40, rank, rank + 2, generator=random, dtype=torch.float64)
    gram, right = roots @ roots.mT, torch.randn(40, rank, generator=random, dtype=torch.float64)
    expected = torch.linalg.solve(gram, right)
    found = _eliminate(gram.permute(1, 2, 0).clone(), right.T.clone()).T  # overwrites both
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


def test_plain_steps_are_near_the_exact_eigenvalue_and_never_above(random):
    matrices, start = problem(random, r=6)
    fit = BlastDescent(matrices, start, 50, preconditioned=False, step=(1.0, 1.0))
    for _ in range(20):
        fit.step()
    u, v, _ = fit.factors()
    gram = (u.mT @ u)[:, :, None] * (v.mT @ v)[:, None]
    exact = torch.linalg.eigvalsh(gram)[..., -1]
    top, image = _largest(gram, fit._tops[2], _Buffers(gram), also=gram[..., 0])
    torch.testing.assert_close(image, (gram @ gram[..., :1]).squeeze(-1))
    ratio = top / exact
    assert ratio.min() > 0.98
    assert ratio.median() < 1.1


@pytest.mark.parametrize("rank", [3, 12])
def test_plain_descent_is_monotone(rank, random):
    matrices, start = problem(random, r=rank)
    fit = BlastDescent(matrices, start, 80, preconditioned=False)
    losses = [fit.loss().clone()]
    for _ in range(80):
        fit.step()
        losses.append(fit.loss().clone())
    assert bool((torch.stack(losses).diff(dim=0) <= 0).all())


@pytest.mark.parametrize("preconditioned", [True, False])
def test_a_batch_equals_one_by_one_also_in_small_pieces(preconditioned, random, monkeypatch):
    matrices, start = problem(random, runs=4)
    deltas = torch.tensor([0.1, 0.1, 1.0, 0.01], dtype=torch.float64)
    whole = BlastDescent(matrices, start, 8, delta0=deltas, preconditioned=preconditioned)
    monkeypatch.setattr("lowdim.structured_factorization.CACHE_NUMBERS", 20)
    pieces = BlastDescent(matrices, start, 8, delta0=deltas, preconditioned=preconditioned)
    for _ in range(8):
        whole.step(), pieces.step()
    for run in range(4):
        single = BlastDescent(matrices[run : run + 1], BlastFactors(*(f[run : run + 1] for f in start)), 8,
                              delta0=float(deltas[run]), preconditioned=preconditioned)  # fmt: skip
        for _ in range(8):
            single.step()
        torch.testing.assert_close(single.u[0], whole.u[run], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(pieces.s[run], whole.s[run], rtol=1e-10, atol=1e-10)


def test_the_state_is_all_that_a_step_needs(random):
    matrices, start = problem(random)
    fit = BlastDescent(matrices, start, 8)
    fit.step()
    saved = [part.clone() for part in fit.state]
    fit.step(), fit.step()
    once = [part.clone() for part in fit.state]
    for part, old in zip(fit.state, saved, strict=True):
        part.copy_(old)
    fit.step(), fit.step()
    assert all(torch.equal(part, old) for part, old in zip(fit.state, once, strict=True))


@pytest.mark.parametrize(("count", "rank"), [(300, 3), (4, 64), (4, 65), (2, 150)])
def test_solves(count, rank, random):
    roots = torch.randn(count, rank, rank + 20, generator=random, dtype=torch.float64)
    gram, right = roots @ roots.mT, torch.randn(count, rank, 2, generator=random, dtype=torch.float64)
    kept = right.clone()
    torch.testing.assert_close(_solve(gram.clone(), right), torch.linalg.solve(gram, right), rtol=1e-9, atol=1e-11)
    assert torch.equal(right, kept)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("n", "blocks", "rank", "delta0"),
    # the rank of the Gram matrices of s is at most p q: 64, 4, 4, 64
    [(64, 8, 64, 1e-4), (16, 8, 16, 0.1), (32, 16, 8, 0.0), (16, 2, 80, 1e-4)],
)
def test_singular_gram_matrices_do_not_stop_a_fit(n, blocks, rank, delta0, dtype, random):
    a = torch.randn(2, n, 8, generator=random) @ torch.randn(2, 8, n, generator=random)
    start = blast_start(2, n, n, blocks, rank, random, dtype=torch.float64)
    fit = BlastDescent((a / a.std()).to(dtype), BlastFactors(*(f.to(dtype) for f in start)), 20, delta0=delta0)
    for _ in range(20):
        fit.step()
    assert fit.error().max() < 1e-4  # NaN is not less
    assert all(bool(torch.isfinite(part).all()) for part in fit.factors())


def test_recovery_balance_and_types(random):
    a = torch.randn(2, 32, 3, generator=random) @ torch.randn(2, 3, 48, generator=random)
    factors, errors = factorize(a, blocks=4, rank=3, iterations=60)
    assert errors.max() < 1e-5
    assert factors.u.dtype == torch.float32
    torch.testing.assert_close(factors.u.norm(dim=-2), torch.ones(2, 4, 3))
    torch.testing.assert_close(factors.dense(), a, rtol=1e-3, atol=1e-4)
    half, _ = factorize(a.bfloat16(), blocks=4, rank=3, iterations=5)
    assert half.s.dtype == torch.bfloat16


def test_weighted_columns_fit_the_weighted_error_better(random):
    a = torch.randn(1, 32, 32, generator=random, dtype=torch.float64)
    scale = torch.logspace(-1, 1, 32, dtype=torch.float64)
    missed = lambda f: float(((f.dense() - a) * scale).norm())
    plain, _ = factorize(a, 4, 6)
    aware, _ = factorize(a, 4, 6, column_scale=scale)
    assert missed(aware) < 0.7 * missed(plain)


def test_closed_forms(random):
    a = torch.randn(2, 12, 20, generator=random, dtype=torch.float64)
    left, right = low_rank(a, 4)
    sigma = torch.linalg.svdvals(a)
    torch.testing.assert_close((a - left @ right).square().sum((1, 2)), sigma[:, 4:].square().sum(1))
    left, right = block_low_rank(a, 4, 2)
    for i in range(4):
        for j in range(4):
            block = a[0, 3 * i : 3 * i + 3, 5 * j : 5 * j + 5]
            ours = left[0, i, :, 2 * j : 2 * j + 2] @ right[0, j, :, 2 * i : 2 * i + 2].T
            assert float((block - ours).norm()) == pytest.approx(float(torch.linalg.svdvals(block)[2]), rel=1e-9)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda a, s: BlastDescent(a[:, :11], s, 5), "matrices must be (3, 12, 20), as the factors, got (3, 11, 20)"),
        (lambda a, s: BlastDescent(a, s, 0), "iterations must be a whole number >= 1, got 0"),
        (lambda a, s: BlastDescent(a, s, 5, form="other"), "form must be one of 'paper', 'released', got 'other'"),
        (lambda a, s: factorize(a, 7, 2), "blocks=7 does not divide a 12 x 20 matrix; numbers of"),
        (lambda a, s: factorize(a, 4, 0), "rank must be a whole number >= 1, got 0"),
        (lambda a, s: factorize(a.long(), 4, 2), "weights must be a floating-point tensor"),
        (lambda a, s: factorize(a, 4, 2, column_scale=torch.zeros(20)), "column_scale must be a finite number > 0"),
    ],
)  # fmt: skip
def test_bad_input(make, words, random):
    with pytest.raises(ParameterError) as caught:
        make(*problem(random))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("rank", "delta0", "dtype", "form"),
    [(30, 1e-4, torch.float32, "paper"), (8, 0.1, torch.float32, "released"), (40, 0.0, torch.float64, "paper")],
)
def test_singular_gram_matrices_do_no_harm(rank, delta0, dtype, form, random):
    """More columns than a block has numbers, and hardly any damping: the fit ends at rounding error, not in NaN."""
    a = torch.randn(3, 32, 32, generator=random, dtype=dtype)
    fit = BlastDescent(a, blast_start(3, 32, 32, 16, rank, random, dtype=dtype), 100, delta0=delta0, form=form)
    for _ in range(100):
        fit.step()
        assert torch.isfinite(fit.loss()).all()
    assert fit.error().max() < 100 * torch.finfo(dtype).eps


def test_constant_and_zero_matrices_are_fitted():
    factors, errors = factorize(torch.stack([torch.ones(16, 16), torch.zeros(16, 16)]), 4, 4)
    assert errors.max() < 1e-4
    assert all(bool(torch.isfinite(part).all()) for part in factors)
