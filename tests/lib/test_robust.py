"""Robust recovery: sub-gradients, step rules, noise models, the mean direction, starts and schedules."""

import math

import pytest
import torch

from lowdim.checks import ParameterError
from lowdim.descent import descend
from lowdim.factorization import haar
from lowdim.robust import (
    AbsoluteSensing,
    SubgradientNetwork,
    attenuation,
    dense_noise,
    geometric,
    outliers,
    spectral_factors,
    step_sum,
)
from lowdim.runtime import generator
from lowdim.sensing import svec

F64 = torch.float64
D, M, R = 6, 60, 2


def random(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=F64)


def problem(groups=2, runs=4, m=M, dtype=F64, p=0.2, seed=0):
    """Operators as full matrices, targets, noise for each run, and the problem made of them."""
    v = haar((groups, D), generator(seed))[..., :R]
    full = random(groups, m, D, D, seed=seed + 1)
    noise = outliers((runs, m), p, 5.0, generator(seed + 2))
    return full, v @ v.mT, noise, AbsoluteSensing(svec(full).to(dtype), v @ v.mT, noise)


def loss_by_hand(u, full, truth, noise):
    half = 0.5 * (full + full.mT)
    y = (half * truth).sum((1, 2)) + noise
    return ((half * (u @ u.T)).sum((1, 2)) - y).abs().mean()


@pytest.mark.parametrize("rule", ["geometric", "polyak"])
def test_steps_are_autograds(rule):
    full, truth, noise, made = problem()
    u, eta = random(4, D, 3, seed=9), torch.linspace(0.1, 0.4, 4, dtype=F64)
    network = SubgradientNetwork(u.clone(), made, eta, 0.9, rule)
    for t in range(3):
        before = network.layers[0].clone()
        network.step()
        for i in range(4):
            leaf = before[i].clone().requires_grad_()
            loss = loss_by_hand(leaf, full[i // 2], truth[i // 2], noise[i])
            (grad,) = torch.autograd.grad(loss, leaf)
            step = eta[i] * (0.9**t if rule == "geometric" else loss.detach())
            torch.testing.assert_close(network.layers[0][i], before[i] - step * grad / 2, rtol=1e-10, atol=1e-10)
        values = [loss_by_hand(network.layers[0][i], full[i // 2], truth[i // 2], noise[i]) for i in range(4)]
        torch.testing.assert_close(network.loss(), torch.stack(values), rtol=1e-10, atol=1e-10)


def test_gradient_in_the_product_and_the_squared_loss():
    full, truth, noise, made = problem()
    w = random(4, D, D, seed=9)
    w = w + w.mT
    gradient = made.gradient(w.clone(), torch.empty_like(w))
    square = made.squared()
    pulled = square.gradient(w.clone(), torch.empty_like(w))
    for i in range(4):
        half = 0.5 * (full[i // 2] + full[i // 2].mT)
        residual = (half * (w[i] - truth[i // 2])).sum((1, 2)) - noise[i]
        torch.testing.assert_close(gradient[i], (residual.sign()[:, None, None] * half).mean(0), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(pulled[i], (residual[:, None, None] * half).mean(0), rtol=1e-10, atol=1e-10)


def test_single_precision_operators_reach_the_same_small_error():
    errors = []
    for dtype in (F64, torch.float32):
        _, truth, _, made = problem(groups=1, runs=1, m=300, dtype=dtype)
        network = SubgradientNetwork(spectral_factors(made, R, 1, 1e-3), made, 0.5, 0.97)
        descend(network.step, network.state, 700)
        errors.append(float((network.product()[0] - truth[0]).norm()))
    assert max(errors) < 1e-7


def test_batch_is_one_by_one():
    _, truth, noise, made = problem()
    u = random(4, D, 3, seed=5) * 1e-3
    eta, rho = torch.tensor([0.5, 0.4, 0.3, 0.2], dtype=F64), torch.tensor([0.95, 0.96, 0.97, 1.0], dtype=F64)
    batch = SubgradientNetwork(u.clone(), made, eta, rho)
    descend(batch.step, batch.state, 30)
    for i in range(4):
        single = AbsoluteSensing(made.operators[i // 2], truth[i // 2], noise[i])
        alone = SubgradientNetwork(u[i : i + 1].clone(), single, float(eta[i]), float(rho[i]))
        descend(alone.step, alone.state, 30)
        torch.testing.assert_close(batch.layers[0][i], alone.layers[0][0], rtol=1e-8, atol=1e-10)


def test_outliers_have_their_share_and_size():
    s = outliers((4, 1000), torch.tensor([0.0, 0.1, 0.25, 0.9], dtype=F64), 7.0, generator(0))
    assert (s != 0).sum(1).tolist() == [0, 100, 250, 900]
    assert float(s[3][s[3] != 0].std()) == pytest.approx(7, rel=0.1)
    torch.testing.assert_close(s, outliers((4, 1000), torch.tensor([0.0, 0.1, 0.25, 0.9]).double(), 7.0, generator(0)))
    assert float(dense_noise((20_000,), 0.5, generator(1)).std()) == pytest.approx(0.5, rel=0.03)


@pytest.mark.parametrize("case", [dict(p=0.4, size=3.0), dict(nu=2.0), dict(p=0.3, size=5.0, nu=1.0), {}])
def test_mean_direction(case):
    m, delta = 200_000, random(D, D, seed=1)
    delta = delta + delta.T
    delta *= 1.5 / delta.norm()
    noise = outliers((m,), case.get("p", 0.0), case.get("size", 0.0), generator(2))
    noise = noise + dense_noise((m,), case.get("nu", 0.0), generator(3))
    made = AbsoluteSensing(random(m, D * (D + 1) // 2, seed=4), torch.zeros(D, D, dtype=F64), noise)
    direction = made.gradient(delta.unsqueeze(0), torch.empty(1, D, D, dtype=F64))[0]
    expected = math.sqrt(2 / math.pi) * attenuation(1.5, **case) * delta / 1.5
    assert float((direction - expected).abs().max()) < 5 / math.sqrt(m)


def test_spectral_start():
    full, _, _, made = problem(groups=1, runs=1)
    y = made.data[0, 0]
    half = 0.5 * (full[0] + full[0].mT)
    values, vectors = torch.linalg.eigh((y.sign()[:, None, None] * half).mean(0))
    u = spectral_factors(made, torch.tensor([2, D]), 2, torch.tensor([0.1, 1.0], dtype=F64))
    kept = vectors[:, -2:] * values[-2:].clamp(min=0) @ vectors[:, -2:].T / values[-1]
    torch.testing.assert_close(u[0] @ u[0].T, 0.01 * kept, rtol=1e-9, atol=1e-12)
    assert float(torch.linalg.matrix_norm(u[1], 2)) == pytest.approx(1)
    assert float(u[0, :, 2:].abs().max()) == 0


def test_schedule_sums_to_what_was_asked():
    rho, steps = geometric(63.0, 0.5, 1e-7)
    assert 0.5 * (1 - rho**steps) / (1 - rho) == pytest.approx(63, rel=1e-6)
    assert rho**steps <= 1e-7 < rho ** (steps - 1)
    rate = math.sqrt(2 / math.pi / 3)  # of growth, for three equal eigenvalues
    assert step_sum(1e-6, 3) == pytest.approx(1.6 * math.log(1e6) / rate + 15)
    assert step_sum(1e-6, 3, 2.0) == pytest.approx(2 * step_sum(1e-6, 3))


def test_surplus_columns_are_harmless_from_a_small_start():
    errors = []
    for columns in (R, D):
        _, truth, _, made = problem(groups=1, runs=1, m=400, p=0.1)
        rho, steps = geometric(step_sum(1e-6, R), 0.5, 1e-6)
        network = SubgradientNetwork(spectral_factors(made, columns, 1, 1e-6), made, 0.5, rho)
        descend(network.step, network.state, steps)
        errors.append(float((network.product()[0] - truth[0]).norm()))
    assert max(errors) < 1e-4


def test_bad_input():
    _, _, _, made = problem()
    u = random(4, D, 3)
    for call, words in [
        (
            lambda: outliers((10,), 1.0, 1.0, generator(0)),
            "p must be a finite number >= 0 and < 1",
        ),
        (lambda: outliers((10,), -0.1, 1.0, generator(0)), "p must be"),
        (lambda: outliers((0,), 0.1, 1.0, generator(0)), "shape[0] must be a whole number >= 1, got 0"),
        (lambda: outliers((10,), 0.1, -1.0, generator(0)), "size must be a finite number >= 0"),
        (lambda: dense_noise((10,), -1.0, generator(0)), "nu must be a finite number >= 0"),
        (lambda: SubgradientNetwork(u, made, 0.1, 1.5), "rho must be a finite number > 0 and <= 1"),
        (lambda: SubgradientNetwork(u, made, 0.1, 0.9, "adam"), "rule must be one of 'geometric', 'polyak'"),
        (lambda: SubgradientNetwork(u[:3], made, 0.1), "do not fit 3 products"),
        (lambda: made.select(slice(0, 1)), "cannot leave the batch"),
        (lambda: AbsoluteSensing(made.operators, torch.eye(5, dtype=F64), torch.zeros(2, M)), "truth must be"),
        (lambda: spectral_factors(made, D + 1, 4, 0.1), "columns must be a whole number >= 1 and <= 6"),
        (lambda: geometric(5.0, 6.0), "eta (below the sum of all steps) must be"),
        (lambda: step_sum(0.0, 3), "alpha must be a finite number > 0"),
    ]:
        with pytest.raises(ParameterError) as caught:
            call()
        assert words in str(caught.value)
