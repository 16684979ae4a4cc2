"""Symmetric and asymmetric factors: steps against autograd, the exact reduction, the modified step, fits."""

import math

import pytest
import torch

from lowdim.checks import ParameterError
from lowdim.descent import DivergenceError, descend
from lowdim.factorization import haar
from lowdim.networks import Factorization
from lowdim.recovery import Sensing
from lowdim.runtime import generator
from lowdim.sensing import (
    SymmetricNetwork,
    SymmetricSensing,
    asymmetric,
    beta_range,
    decay_rate,
    factors,
    gaussian_factors,
    imbalance,
    power_law,
    rebalanced,
    shrinking,
    signal_rows,
    svec,
)

F64 = torch.float64


def random(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=F64)


def symmetric_problem(kind, runs, n):
    """A problem, and its loss for run ``i`` written with full matrices."""
    if kind == "factorization":
        target = random(runs, n, n, seed=1)
        target = target @ target.mT
        return Factorization(target), lambda w, i: 0.5 * ((w - target[i]) ** 2).sum()
    if kind == "one target":
        target = random(n, n, seed=1)
        target = target @ target.T
        return Factorization(target), lambda w, i: 0.5 * ((w - target) ** 2).sum()
    groups, m = {"shared": (1, 7), "groups": (2, 7), "gram": (2, 40)}[kind]
    operators, y = random(groups, m, n, n, seed=2), random(runs, m, seed=3)

    def loss(w, i):
        of_group = operators[i // (runs // groups)]
        return 0.5 * (((0.5 * (of_group + of_group.mT)) * w).sum((1, 2)) - y[i]).square().sum()

    return SymmetricSensing(svec(operators), y), loss


@pytest.mark.parametrize("runs", [4, 10])
@pytest.mark.parametrize("kind", ["factorization", "one target", "shared", "groups", "gram"])
def test_symmetric_step_is_autograds(kind, runs):
    n, k = 7, 3
    problem, loss = symmetric_problem(kind, runs, n)
    x, eta = random(runs, n, k, seed=4), torch.linspace(0.01, 0.04, runs, dtype=F64)
    network = SymmetricNetwork(x.clone(), problem, eta)
    torch.testing.assert_close(network.loss(), torch.stack([loss(x[i] @ x[i].T, i) for i in range(runs)]))
    network.step()
    for i in range(runs):
        leaf = x[i].clone().requires_grad_()
        (grad,) = torch.autograd.grad(0.5 * loss(leaf @ leaf.T, i), leaf)
        torch.testing.assert_close(network.layers[0][i], x[i] - eta[i] * grad, rtol=1e-10, atol=1e-10)


def test_asymmetric_step_is_autograds_and_simultaneous():
    operators, y = random(9, 5, 6, seed=1), random(9, seed=2)
    f, g = random(2, 5, 3, seed=3), random(2, 6, 3, seed=4)
    network = asymmetric(f.clone(), g, Sensing(operators, y), 0.01)
    network.step()
    for i in range(2):
        leaves = [f[i].clone().requires_grad_(), g[i].clone().requires_grad_()]
        value = 0.5 * ((operators * (leaves[0] @ leaves[1].T)).sum((1, 2)) - y).square().sum()
        grads = torch.autograd.grad(value, leaves)
        for now, leaf, grad in zip(factors(network), leaves, grads, strict=True):
            torch.testing.assert_close(now[i], (leaf - 0.01 * grad).detach(), rtol=1e-10, atol=1e-10)


def test_imbalance_moves_by_order_eta_squared():
    target = random(6, 6, seed=1)
    change = []
    for eta in (0.02, 0.01):
        network = asymmetric(random(1, 6, 3, seed=2), random(1, 6, 3, seed=3), Factorization(target), eta)
        before = imbalance(*factors(network))
        network.step()
        change.append(float((imbalance(*factors(network)) - before).norm()))
    assert change[0] / change[1] == pytest.approx(4, rel=1e-6)


@pytest.mark.parametrize("k", [2, 4, 9])
def test_fewer_rows_are_exact(k):
    n, r, eta = 10, 2, 0.1
    v = haar((1, n), generator(0))[0, :, :r]
    f, g = gaussian_factors(3, n, k, 0.5, generator(1)), gaussian_factors(3, n, k, 0.2, generator(2))
    few_f, few_g = signal_rows(v, f), signal_rows(v, g)
    assert few_f.shape == (3, r + k, k)
    target = torch.diag((torch.arange(r + k) < r).to(F64))
    pairs = [
        (SymmetricNetwork(f.clone(), Factorization(v @ v.T), eta), v @ v.T),
        (SymmetricNetwork(few_f.clone(), Factorization(target), eta), target),
        (asymmetric(f.clone(), g, Factorization(v @ v.T), eta), v @ v.T),
        (asymmetric(few_f.clone(), few_g, Factorization(target), eta), target),
    ]
    norms = []
    for network, goal in pairs:
        descend(network.step, network.state, 60)
        norms.append((network.product() - goal).norm(dim=(1, 2)))
    torch.testing.assert_close(norms[0], norms[1], rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(norms[2], norms[3], rtol=1e-10, atol=1e-13)


def test_batch_is_one_by_one_and_runs_may_leave():
    v = haar((1, 8), generator(0))[0, :, :2]
    x = gaussian_factors(5, 8, 2, torch.linspace(0.1, 0.5, 5), generator(1))
    batch = SymmetricNetwork(x.clone(), Factorization(v @ v.T), 0.1)
    error = lambda: (batch.product() - v @ v.T).norm(dim=(1, 2))
    options = dict(stop=lambda: error() < 1e-6, narrow=batch.narrow, check=10)
    path = descend(batch.step, batch.state, 400, record={"error": error}, every=10, **options)
    assert (path.stopped_at > 0).all()
    for i in range(5):
        alone = SymmetricNetwork(x[i : i + 1].clone(), Factorization(v @ v.T), 0.1)
        descend(alone.step, alone.state, int(path.stopped_at[i]))
        torch.testing.assert_close(batch.layers[0][i], alone.layers[0][0], rtol=1e-9, atol=1e-12)


def test_the_modified_step_keeps_the_product_and_sets_the_rate():
    n, k, eta, beta = 12, 4, 0.1, 0.6
    f, g = random(3, n, k, seed=1), random(3, n + 1, k, seed=2)
    new_f, new_g = rebalanced(f, g, torch.tensor([beta, 1.0, 2.0], dtype=F64))
    torch.testing.assert_close(new_f @ new_g.mT, f @ g.mT, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close((new_f.mT @ new_f)[1], torch.eye(k, dtype=F64), rtol=1e-10, atol=1e-10)
    v = haar((1, n), generator(0))[0, :, :2]
    f, g = gaussian_factors(2, n, k, 0.1, generator(1)), gaussian_factors(2, n, k, 0.03, generator(2))
    network = asymmetric(f, g, Factorization(v @ v.T), eta)
    descend(network.step, network.state, 400)
    network = asymmetric(*rebalanced(*factors(network), beta), Factorization(v @ v.T), eta)
    error = lambda: (network.product() - v @ v.T).norm(dim=(1, 2))
    path = descend(network.step, network.state, 600, record={"error": error})
    rate = decay_rate(path.steps, path["error"], 1e-3, 1e-11)
    torch.testing.assert_close(rate, torch.full((2,), -math.log1p(-eta * beta**2), dtype=F64), rtol=1e-3, atol=0)


def test_limits_of_beta_are_those_of_the_hessian():
    eta, sigma = 0.3, 1.7
    for beta in beta_range(eta, sigma):
        loss = lambda f, g: 0.5 * (f * g - sigma) ** 2
        point = (torch.tensor(beta, dtype=F64), torch.tensor(sigma / beta, dtype=F64))
        hessian = torch.tensor(torch.autograd.functional.hessian(loss, point), dtype=F64)
        assert float(torch.linalg.eigvalsh(hessian)[-1]) == pytest.approx(2 / eta, rel=1e-10)
    with pytest.raises(ParameterError, match="eta"):
        beta_range(0.6, 2.0)


def test_a_surplus_direction_shrinks_as_the_closed_form_says():
    s, eta = 1e-3, 0.1
    for _ in range(20_000):
        s *= (1 - eta * s) ** 2
    assert shrinking(1e-3, eta, 20_000) == pytest.approx(s, rel=1e-3)


def test_fits_find_exact_laws():
    t = torch.arange(0, 500, 5)
    rates = torch.tensor([0.02, 0.1], dtype=F64)
    values = torch.exp(-rates * t.unsqueeze(1)) + 1e-14
    torch.testing.assert_close(decay_rate(t, values, 1e-1, 1e-9), rates, rtol=1e-4, atol=0)
    assert decay_rate(t[:4], values[:4], 1.1, 1e-9).isnan().all()
    x = torch.tensor([1.0, 2.0, 5.0], dtype=F64)
    torch.testing.assert_close(power_law(x, 3 * x.unsqueeze(1) ** -2), torch.tensor([-2.0], dtype=F64))


def test_svec_keeps_inner_products():
    a, w = random(3, 4, 4, seed=1), random(4, 4, seed=2)
    w = w + w.T
    torch.testing.assert_close(svec(a) @ svec(w), (a * w).sum((1, 2)))
    problem = SymmetricSensing(svec(a), torch.zeros(3, dtype=F64))
    back = problem.matrix(problem.vector(w.unsqueeze(0)), torch.empty(1, 4, 4, dtype=F64))
    torch.testing.assert_close(back[0], w)


def test_bad_input():
    x = torch.zeros(2, 4, 3, dtype=F64)
    with pytest.raises(ParameterError, match=r"x must be \(runs, n, k\)"):
        SymmetricNetwork(x[0], Factorization(torch.eye(4, dtype=F64)), 0.1)
    with pytest.raises(ParameterError, match="target must be"):
        SymmetricNetwork(x, Factorization(torch.eye(5, dtype=F64)), 0.1)
    with pytest.raises(ParameterError, match=r"g must be \(runs, m, k\) with k = 3 and runs = 2, got \(2, 4, 2\)"):
        asymmetric(x, torch.zeros(2, 4, 2, dtype=F64), Factorization(torch.eye(4, dtype=F64)), 0.1)
    with pytest.raises(ParameterError, match=r"operators must have at least one entry, got \(0, 10\)"):
        SymmetricSensing(torch.zeros(0, 10), torch.zeros(0))
    with pytest.raises(ParameterError, match=r"n\(n\+1\)/2"):
        SymmetricSensing(torch.zeros(5, 11), torch.zeros(5))
    with pytest.raises(ParameterError, match="with m = 5 and 1 groups"):
        SymmetricSensing(torch.zeros(5, 10), torch.zeros(4))
    with pytest.raises(ParameterError, match="do not fit 3 products"):
        SymmetricSensing(torch.zeros(2, 5, 10), torch.zeros(2, 5)).fits((3, 4, 4))
    with pytest.raises(ParameterError, match="cannot leave the batch"):
        SymmetricSensing(torch.zeros(2, 5, 10), torch.zeros(2, 5)).select(slice(0, 1))


def test_divergence_says_which_run_and_when():
    v = haar((1, 8), generator(0))[0, :, :2]
    eta = torch.tensor([0.1, 3.0], dtype=F64)
    network = SymmetricNetwork(gaussian_factors(2, 8, 3, 1.0, generator(1)), Factorization(v @ v.T), eta)
    with pytest.raises(DivergenceError, match=r"run 1 of 2 \(limit 1\) diverged at step \d+"):
        descend(network.step, network.state, 500, describe=lambda run: "limit 1")
