"""Cycles, doublings and exponents of the balanced map against brute-force iteration."""

import math

import numpy as np
import pytest
import torch

from lowdim import orbits
from lowdim.checks import ParameterError
from lowdim.factorization import edge

F64 = torch.float64


@pytest.mark.parametrize("depth", [2, 3, 4, 6, 9])
@pytest.mark.parametrize("sigma", [10.0, 1.0, 0.2])
def test_two_cycle_is_where_iteration_ends(depth, sigma):
    c = torch.tensor([1.01, 1.05, 1.12, 1.2, 1.23], dtype=F64)
    eta = c * edge(sigma, depth)
    rho = torch.full_like(c, (0.8 * sigma) ** (1 / depth))
    for _ in range(30_000):
        rho = orbits.balanced_map(rho, eta, sigma, depth)
    ends = torch.stack([rho, orbits.balanced_map(rho, eta, sigma, depth)], -1).sort(-1).values ** depth
    torch.testing.assert_close(orbits.two_cycle(eta, sigma, depth), ends, rtol=1e-9, atol=0)


def test_two_cycle_in_closed_form_for_two_layers():
    eta, sigma = torch.linspace(0.101, 0.12, 7, dtype=F64), 10.0
    pair = orbits.two_cycle(eta, sigma, 2)
    torch.testing.assert_close(pair.prod(-1), 1 / eta**2, rtol=1e-11, atol=0)
    torch.testing.assert_close(pair.sum(-1), sigma + 1 / eta, rtol=1e-11, atol=0)


def test_no_two_cycle_below_the_edge():
    assert orbits.two_cycle(torch.tensor([0.5, 0.999]) * edge(3.0, 3), 3.0, 3).isnan().all()


@pytest.mark.parametrize("depth", [2, 3, 5, 12])
def test_slope_is_the_derivative(depth):
    rho = torch.linspace(0.2, 1.6, 9, dtype=F64).requires_grad_()
    (slope,) = torch.autograd.grad(orbits.balanced_map(rho, 0.1, 1.7, depth).sum(), rho)
    torch.testing.assert_close(orbits.balanced_slope(rho.detach(), 0.1, 1.7, depth), slope, rtol=1e-10, atol=1e-12)


# Measured once with independent code (Newton's method on the one-dimensional map).
KNOWN = {
    2: [1, 1.236068, 1.288032, 1.299228],
    3: [1, 1.244607, 1.300416, 1.312482],
    4: [1, 1.247169, 1.304150, 1.316478],
    5: [1, 1.248377, 1.305913, 1.318366],
    10: [1, 1.250264, 1.308671, 1.321318],
}


@pytest.mark.parametrize("depth", KNOWN)
def test_period_doubling_table(depth):
    np.testing.assert_allclose(orbits.period_doubling(depth, 3), KNOWN[depth], atol=1e-6)


@pytest.mark.parametrize("depth", [2, 3, 7, 15, 20])
def test_period_doubling_by_iteration(depth):
    born = orbits.period_doubling(depth, 3)
    c = torch.tensor([born[k] + side * 3e-4 for k in (1, 2, 3) for side in (-1, 1)], dtype=F64)
    u, seen = torch.full_like(c, 0.9), []
    for t in range(40_000):
        u = orbits.balanced_map(u, 2 * c / depth, 1.0, depth)
        if t >= 40_000 - 64:
            seen.append(u)
    assert orbits.detect_period(torch.stack(seen)).tolist() == [2, 4, 4, 8, 8, 16]


def test_first_doubling_of_two_layers_is_exact():
    assert orbits.period_doubling(2, 1)[1] == pytest.approx(math.sqrt(5) - 1, abs=1e-12)


def test_lyapunov_exponent_of_fixed_point_and_cycle():
    c = torch.tensor([0.9, 1.1], dtype=F64)
    found = orbits.balanced_lyapunov(c * edge(2.0, 3), 2.0, 3, steps=2000)
    pair = orbits.two_cycle(c[1:] * edge(2.0, 3), 2.0, 3)[0] ** (1 / 3)
    cycle = orbits.balanced_slope(pair, c[1] * edge(2.0, 3), 2.0, 3).abs().log().mean()
    torch.testing.assert_close(
        found, torch.stack([torch.tensor(abs(1 - 2 * 0.9), dtype=F64).log(), cycle]), rtol=1e-4, atol=0
    )


def test_lost_orbits_have_no_exponent():
    assert orbits.balanced_lyapunov(torch.tensor([2.6], dtype=F64) * edge(2.0, 3), 2.0, 3, steps=200).isnan().all()


def test_detect_period():
    t = torch.arange(80)
    series = torch.stack([torch.zeros(80), t % 2, t % 6, t.double().sin()], -1)
    assert orbits.detect_period(series).tolist() == [1, 2, 6, 0]
    with pytest.raises(ParameterError, match="needs 64 iterates, got 10"):
        orbits.detect_period(torch.zeros(10, 1))
