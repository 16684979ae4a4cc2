"""Densities, traces, Gram matrices and counts against dense linear algebra and closed forms."""

import math

import pytest
import torch

from lowdim import spectra as sp
from lowdim.checks import ParameterError

F64 = torch.float64


def matrices(random, runs=4, n=30):
    square = torch.randn(runs, n, n, generator=random, dtype=F64)
    return square + square.mT


def product_of(matrix):
    return lambda v: (matrix @ v.unsqueeze(-1)).squeeze(-1)


def test_quadrature_has_the_moments_of_its_probes(random):
    matrix = matrices(random)
    probes = torch.randn(2, 4, 30, generator=random, dtype=F64)
    nodes, weights = sp.quadrature(product_of(matrix), probes, steps=6)
    assert nodes.shape == weights.shape == (4, 12)
    unit = probes / probes.norm(dim=-1, keepdim=True)
    v = unit
    for power in range(12):  # exact up to degree 2 * 6 - 1
        brute = (unit * v).sum(-1).mean(0)
        torch.testing.assert_close((weights * nodes**power).sum(-1), brute, rtol=1e-9, atol=1e-9)
        v = product_of(matrix)(v)


def test_quadrature_of_all_steps_has_the_eigenvalues(random):
    matrix = matrices(random, runs=2, n=8)
    nodes, weights = sp.quadrature(product_of(matrix), torch.randn(1, 2, 8, generator=random, dtype=F64), steps=8)
    torch.testing.assert_close(nodes, torch.linalg.eigvalsh(matrix), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, dtype=F64), rtol=0, atol=1e-12)


def test_density_integrates_to_one_and_follows_the_semicircle(random):
    n = 400
    matrix = matrices(random, runs=1, n=n) / math.sqrt(2 * n)  # eigenvalues fill (-2, 2)
    nodes, weights = sp.quadrature(product_of(matrix), torch.randn(4, 1, n, generator=random, dtype=F64), steps=60)
    grid = torch.linspace(-3, 3, 601, dtype=F64)
    found = sp.density(nodes, weights, grid, width=0.1)[0]
    assert abs(float(torch.trapezoid(found, grid)) - 1) < 1e-3
    wigner = (4 - grid**2).clamp(min=0).sqrt() / (2 * math.pi)
    inner = grid.abs() < 1.7
    assert float((found - wigner).abs()[inner].max()) < 0.05  # the peak is 0.318; four probes, n = 400


def test_trace_is_exact_for_low_rank_and_unbiased_otherwise(random):
    factor = torch.randn(3, 20, 4, generator=random, dtype=F64)
    low = factor @ factor.mT
    like = torch.zeros(3, 20, dtype=F64)
    exact = low.diagonal(dim1=1, dim2=2).sum(1)
    torch.testing.assert_close(sp.trace(product_of(low), like, 12, random), exact, rtol=1e-10, atol=1e-10)
    full = matrices(random, runs=1, n=10)[0]
    draws = sp.trace(lambda v: v @ full, torch.zeros(2000, 10, dtype=F64), 6, random)
    error = draws.mean() - full.trace()
    assert abs(float(error)) < 4 * float(draws.std()) / math.sqrt(2000)


def test_trace_beats_hutchinson_on_a_falling_spectrum(random):
    n, runs = 100, 40
    basis = torch.linalg.qr(torch.randn(n, n, generator=random, dtype=F64)).Q
    matrix = (basis / torch.arange(1, n + 1) ** 2) @ basis.mT
    ours = sp.trace(lambda v: v @ matrix, torch.zeros(runs, n, dtype=F64), 60, random)
    signs = (2 * torch.randint(0, 2, (60, runs, n), generator=random) - 1).to(F64)
    plain = (signs * (signs @ matrix)).sum(-1).mean(0)
    exact = float(matrix.trace())
    assert float((ours - exact).square().mean().sqrt()) < 0.2 * float((plain - exact).square().mean().sqrt())


@pytest.mark.parametrize("shape", [(2, 5, 9), (2, 9, 5)])
def test_gram_eigenvalues_are_those_of_the_large_matrix(random, shape):
    rows = torch.randn(*shape, generator=random, dtype=F64)
    brute = torch.linalg.eigvalsh(rows.mT @ rows).flip(-1)
    torch.testing.assert_close(sp.gram_eigenvalues(rows), brute, rtol=1e-10, atol=1e-10)


def test_fisher_rows_are_the_covariance_of_the_logits_gradients(random):
    jacobians = torch.randn(2, 6, 3, 8, generator=random, dtype=F64)
    p = torch.randn(2, 6, 3, generator=random, dtype=F64).softmax(-1)
    rows = sp.fisher_rows(jacobians, p)
    middle = torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)
    brute = torch.einsum("rnka,rnkl,rnlb->rab", jacobians, middle, jacobians) / 6
    torch.testing.assert_close(rows.mT @ rows, brute, rtol=1e-10, atol=1e-12)
    many = torch.randn(1, 4, 3, 20, generator=random, dtype=F64)
    assert int(torch.linalg.matrix_rank(sp.fisher_rows(many, p[:1, :4]))) == 4 * 2  # N (K - 1)


def test_counts():
    values = torch.tensor([[0.0, 1e-5, 9.0, 8.0, 0.5, 0.4], [-1.0, 0.02, 20.0, 1.0, 0.9, 0.019]], dtype=F64)
    assert sp.count_outliers(values, among=4).tolist() == [2, 3]  # 8 / 0.5 = 16 and 0.9 / 0.02 = 45
    assert sp.near_zero(values).tolist() == [2 / 6, 1 / 6]
    with pytest.raises(ParameterError, match="among must be a whole number >= 2 and <= 6, got 15"):
        sp.count_outliers(values)


def test_eigenvalues_leave_empty_rows_out(random):
    matrix = matrices(random, runs=2, n=9)
    matrix[0, [1, 4]] = 0
    matrix[0, :, [1, 4]] = 0
    brute = torch.linalg.eigvalsh(matrix).flip(-1)
    torch.testing.assert_close(sp.eigenvalues(matrix), brute, rtol=0, atol=1e-12)
    assert int((sp.eigenvalues(matrix)[0] == 0).sum()) == 2
    assert sp.eigenvalues(torch.zeros(3, 3, dtype=F64)).tolist() == [0, 0, 0]
