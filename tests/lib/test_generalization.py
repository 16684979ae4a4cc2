"""The theory of generalization error against brute force and closed forms; the flow of draws against small steps."""

import math

import pytest
import torch
from scipy.integrate import quad
from scipy.linalg import expm

from lowdim import generalization as gen

F64 = torch.float64
LOADS = [0.25, 0.5, 1.0, 1.25, 4.0]


def rand(random, *shape):
    return torch.randn(*shape, generator=random, dtype=F64)


@pytest.mark.parametrize("load", LOADS)
def test_mass_and_moments_of_the_quadrature_are_those_of_marchenko_and_pastur(load):
    nodes, weights, zero = gen.quadrature(load)
    assert float(weights.sum()) == pytest.approx(min(1, load), abs=1e-10)
    assert float(weights.sum() + zero) == pytest.approx(1, abs=1e-10)
    assert float((weights * nodes).sum()) == pytest.approx(load, abs=1e-10)  # mean of the eigenvalues
    assert float((weights * nodes**2).sum()) == pytest.approx(load * (1 + load), abs=1e-10)
    low, high = gen.edges(load)
    assert float(nodes.min()) > float(low) - 1e-15
    assert float(nodes.max()) < float(high)


@pytest.mark.parametrize("load", LOADS)
def test_errors_are_integrals_of_the_density(load):
    low, high = (float(end) for end in gen.edges(load))
    t, snr, inr, gamma = 2.3, 5.0, 0.7, 0.4
    rho = lambda s: float(gen.density(s, load))

    def integral(function):  # s = low + u^2 takes the edge away
        return quad(lambda u: rho(low + u * u) * function(low + u * u) * 2 * u, 0, math.sqrt(high - low),
                    epsabs=1e-12, epsrel=1e-12, limit=500)[0]  # fmt: skip

    frozen = max(0.0, 1 - load)
    left = lambda s: math.exp(-s * t)
    test = 1 + integral(lambda s: (snr + inr) * left(s) ** 2 + (1 - left(s)) ** 2 / s) + frozen * (snr + inr)
    assert float(gen.generalization_error(load, t, snr, inr)) == pytest.approx(test, rel=1e-9)
    train = integral(lambda s: (s * (snr + inr) + 1) * left(s) ** 2) / load + max(0.0, 1 - 1 / load)
    assert float(gen.training_error(load, t, snr, inr)) == pytest.approx(train, rel=1e-9)
    ridge = 1 + integral(lambda s: (gamma**2 * snr + s) / (s + gamma) ** 2) + frozen * snr
    assert float(gen.ridge_error(load, snr, gamma)) == pytest.approx(ridge, rel=1e-9)


def test_late_errors_and_the_best_ridge():
    loads = [0.25, 0.5, 0.8, 1.25, 2.0, 8.0]
    closed = gen.late_error(loads, 5.0, 0.3)
    torch.testing.assert_close(gen.generalization_error(loads, 1e5, 5.0, 0.3)[:, 0], closed, rtol=1e-9, atol=0)
    assert gen.late_error([0.5, 1.0, 2.0], 5.0).tolist() == [4.5, math.inf, 2.0]
    best = gen.ridge_error(loads, 5.0)
    for gamma in (0.1, 0.19, 0.21, 0.4):
        assert (gen.ridge_error(loads, 5.0, gamma) > best).all()
    torch.testing.assert_close(gen.ridge_error([0.5], 5.0, 1e9), torch.tensor([6.0], dtype=F64), rtol=1e-6, atol=0)


@pytest.mark.parametrize("snr", [0.3, 5.0, 100.0])
def test_the_best_time_is_the_best_on_a_fine_grid(snr):
    times = torch.logspace(-2, 3, 4001, dtype=F64)
    curve = gen.generalization_error(LOADS, times, snr, 0.1)
    at, error = gen.stopping(LOADS, snr, 0.1)
    assert (error <= curve.min(1).values + 1e-12).all()
    torch.testing.assert_close(at.log(), times[curve.argmin(1)].log(), rtol=0, atol=3e-3)
    s = torch.tensor([0.1, 1.0, 3.0], dtype=F64)
    mode = lambda t: (snr + 0.1) * torch.exp(-2 * s * t) + (1 - torch.exp(-s * t)) ** 2 / s
    when = gen.mode_time(s, snr, 0.1)
    assert (mode(when) <= mode(when * 1.01)).all()
    assert (mode(when) <= mode(when / 1.01)).all()


@pytest.mark.parametrize("samples", [3, 5, 8])
def test_the_flow_is_the_solution_of_its_equation(random, samples):
    A, y, w0 = rand(random, 2, samples, 5), rand(random, 2, samples), rand(random, 2, 5)
    flow, times = gen.Flow(A, y, w0), [0.0, 0.3, 2.0]
    found = flow.weights(flow.decay(times))
    for run in range(2):
        for column, t in enumerate(times):  # dw/dt = A'(y - A w), by the exponential of the augmented matrix
            whole = torch.zeros(6, 6, dtype=F64)
            whole[:5, :5], whole[:5, 5] = -A[run].mT @ A[run], A[run].mT @ y[run]
            exact = torch.tensor(expm((whole * t).numpy()) @ torch.cat([w0[run], torch.ones(1, dtype=F64)]).numpy())
            torch.testing.assert_close(found[run, :, column], exact[:5], rtol=0, atol=1e-10)
    residual = y.unsqueeze(2) - A @ found
    torch.testing.assert_close(flow.losses(found), residual.square().mean(1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("samples", [3, 8])
def test_the_end_of_the_flow_and_ridge_are_the_known_solutions(random, samples):
    A, y, w0 = rand(random, 2, samples, 5), rand(random, 2, samples), rand(random, 2, 5)
    flow = gen.Flow(A, y, w0)
    end = flow.weights(flow.decay(torch.tensor([math.inf])))[..., 0]
    pseudo = torch.linalg.pinv(A)
    residual = (y - (A @ w0.unsqueeze(2))[..., 0]).unsqueeze(2)
    torch.testing.assert_close(end, w0 + (pseudo @ residual)[..., 0], rtol=0, atol=1e-10)
    ridge = flow.weights(flow.shrink([0.7]))[..., 0]
    exact = w0 + torch.linalg.solve(A.mT @ A + 0.7 * torch.eye(5, dtype=F64), A.mT @ residual)[..., 0]
    torch.testing.assert_close(ridge, exact, rtol=0, atol=1e-10)
    other = rand(random, 2, samples)
    again, fresh = flow.again(other), gen.Flow(A, other, w0)
    torch.testing.assert_close(again.weights(again.decay([1.3])), fresh.weights(fresh.decay([1.3])), rtol=0, atol=1e-10)
    torch.testing.assert_close(flow.targets, y)


def test_frozen_directions_keep_their_start(random):
    A = rand(random, 3, 8, 5)
    A[..., 3:] = 0  # two inputs that never appear
    w0 = rand(random, 3, 5)
    flow = gen.Flow(A, rand(random, 3, 8), w0)
    end = flow.weights(flow.decay(torch.tensor([1e9, math.inf])))
    assert (flow.values == 0).sum() == 6
    torch.testing.assert_close(end[:, 3:], w0[:, 3:].unsqueeze(2).expand(-1, -1, 2), rtol=0, atol=1e-12)


def test_draws_have_the_sizes_that_were_asked_for(random):
    flow, teacher = gen.linear_draws(400, 50, 40, 4.0, 9.0, random, torch.linspace(0, 2, 50, dtype=F64))
    assert float(teacher.var()) == pytest.approx(4, rel=0.1)
    assert float(flow.start.var()) == pytest.approx(9, rel=0.1)
    torch.testing.assert_close(flow.design.var((0, 1)) * 50, torch.linspace(0, 2, 50, dtype=F64), rtol=0.06, atol=1e-12)
    noise = flow.targets - (flow.design @ teacher.unsqueeze(2))[..., 0]
    assert float(noise.var()) == pytest.approx(1, rel=0.05)


def test_draws_follow_the_theory(random):
    flow, teacher = gen.linear_draws(300, 200, 40, 5.0, 1.0, random)
    times = [0.0, 0.5, 3.0, 30.0]
    w = flow.weights(flow.decay(times))
    error = 1 + (w - teacher.unsqueeze(2)).square().mean(1)
    theory = gen.generalization_error(1.5, times, 5.0, 1.0)[0]
    assert ((error.mean(0) - theory).abs() < 5 * error.std(0) / 40**0.5 + 0.01 * theory).all()
    train, fitted = gen.training_error(1.5, times, 5.0, 1.0)[0], flow.losses(w)
    assert ((fitted.mean(0) - train).abs() < 5 * fitted.std(0) / 40**0.5 + 0.01 * train).all()
