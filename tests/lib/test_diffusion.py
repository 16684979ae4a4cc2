"""Schedules, Tweedie and Gaussian mixtures against autograd, Bayes' rule and quadrature."""

import math

import pytest
import torch

from lowdim.checks import ParameterError
from lowdim.diffusion import (
    GaussianMixture,
    LatentDiffusion,
    Schedule,
    add_noise,
    ddim,
    mean_uncertainty,
    normal,
    tweedie,
    tweedie_covariance,
)
from lowdim.runtime import generator

F64 = torch.float64
SCHEDULE = Schedule.scaled_linear()


@pytest.fixture
def mixture(random):
    root = torch.randn(4, 3, 3, generator=random, dtype=F64) / 2
    means = torch.randn(4, 3, generator=random, dtype=F64)
    weights = torch.rand(4, generator=random, dtype=F64) + 0.1
    return GaussianMixture(weights, means, root @ root.mT + 0.05 * torch.eye(3), SCHEDULE)


def test_schedule_has_the_published_values():
    picked = SCHEDULE.abar[[0, 250, 500, 750, 999]]
    expected = torch.tensor([0.9985, 0.5084, 0.1149, 0.0083, 0.00014], dtype=F64)
    torch.testing.assert_close(picked, expected, rtol=0, atol=5.1e-5)


def test_levels_visit_the_released_times():
    levels = SCHEDULE.levels(500)
    assert levels.times[:3].tolist() == [1, 3, 5]
    assert levels.times[-1] == 999
    assert levels.before[0] == 1
    torch.testing.assert_close(levels.before[1:], levels.abar[:-1])


def test_score_and_hessian_are_those_of_autograd(mixture, random):
    z = torch.randn(5, 3, generator=random, dtype=F64)
    density = lambda point: mixture.log_density(point[None], 0.4)[0]
    for k in range(5):
        torch.testing.assert_close(mixture.score(z, 0.4)[k], torch.func.grad(density)(z[k]), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(
            mixture.hessian(z, 0.4)[k], torch.func.hessian(density)(z[k]), rtol=1e-10, atol=1e-10
        )


@pytest.mark.parametrize("abar", [0.99, 0.4, 0.01])
def test_tweedie_and_theorem_2_equal_bayes_rule(mixture, random, abar):
    z = torch.randn(6, 3, generator=random, dtype=F64)
    mean, covariance = mixture.posterior(z, abar)
    noise = -math.sqrt(1 - abar) * mixture.score(z, abar)
    torch.testing.assert_close(tweedie(z, noise, abar), mean, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(tweedie_covariance(mixture.hessian(z, abar), abar), covariance, rtol=1e-10, atol=1e-10)


def test_posterior_of_a_mixture_by_quadrature():
    """In one dimension, with nothing but the definition."""
    weights, means = torch.tensor([0.3, 0.7], dtype=F64), torch.tensor([[-1.0], [0.8]], dtype=F64)
    mixture = GaussianMixture(weights, means, torch.tensor([[[0.04]], [[0.1]]], dtype=F64), SCHEDULE)
    abar, z = 0.6, torch.tensor([[0.2]], dtype=F64)
    grid = torch.linspace(-4, 4, 20001, dtype=F64)[:, None]
    weight = (mixture.log_density(grid) - 0.5 * (z - abar**0.5 * grid)[:, 0] ** 2 / (1 - abar)).softmax(0)
    mean = (weight * grid[:, 0]).sum()
    variance = (weight * (grid[:, 0] - mean) ** 2).sum()
    found_mean, found = mixture.posterior(z, abar)
    assert abs(float(found_mean) - float(mean)) < 1e-10
    assert abs(float(found) - float(variance)) < 1e-10


def test_ddim_with_the_true_noise_stays_on_the_path(random):
    clean, noise = torch.randn(2, 4, 3, generator=random, dtype=F64)
    z = add_noise(clean, 0.3, noise)
    torch.testing.assert_close(
        ddim(tweedie(z, noise, 0.3), noise, 0.7), add_noise(clean, 0.7, noise), rtol=1e-12, atol=1e-12
    )


def test_samples_of_the_exact_model_have_the_moments_of_the_mixture(mixture):
    random = generator(3)
    model = LatentDiffusion(lambda x: x, lambda z: z, mixture.noise, SCHEDULE, (3,), (3,))
    drawn = model.sample(torch.randn(4000, 3, generator=random, dtype=F64), 200)
    exact = mixture.sample(4000, random)
    torch.testing.assert_close(drawn.mean(0), exact.mean(0), rtol=0, atol=0.08)
    torch.testing.assert_close(drawn.T.cov(), exact.T.cov(), rtol=0, atol=0.12)


def test_one_generator_a_sample_gives_numbers_that_do_not_depend_on_the_batch():
    whole = normal(torch.zeros(3, 2, dtype=F64), [generator(k) for k in range(3)])
    alone = normal(torch.zeros(1, 2, dtype=F64), [generator(2)])
    assert torch.equal(whole[2:], alone)
    with pytest.raises(ParameterError, match="one generator or one a sample: 4 samples, got 3"):
        normal(torch.zeros(4, 2), [generator(k) for k in range(3)])


def test_mean_uncertainty_is_that_of_the_exact_posterior(mixture, random):
    model = LatentDiffusion(lambda x: x, lambda z: z, mixture.noise, SCHEDULE, (3,), (3,))
    v = mean_uncertainty(model, mixture.sample(4000, random), random)
    time = int(torch.linspace(0, 999, 20).round()[8])
    abar = float(SCHEDULE.abar[time])
    clean = mixture.sample(4000, random)
    z = add_noise(clean, abar, torch.randn(clean.shape, generator=random, dtype=F64))
    exact = float(mixture.posterior(z, abar)[1].diagonal(dim1=1, dim2=2).mean())
    assert v(abar, z) == pytest.approx(exact, rel=0.05)


def test_bad_input():
    with pytest.raises(ParameterError, match="abar must be a list of numbers between 0 and 1 that fall"):
        Schedule(torch.tensor([0.5, 0.6]))
    with pytest.raises(ParameterError, match="steps must be a whole number >= 1 and <= 999, got 1000"):
        SCHEDULE.levels(1000)
    with pytest.raises(ParameterError, match=r"weights must be \(2,\) and covariances \(2, 1, 1\)"):
        GaussianMixture(torch.ones(3), torch.zeros(2, 1), torch.ones(2, 1, 1), SCHEDULE)
    with pytest.raises(ParameterError, match="eigenvalues of all covariances must be positive"):
        GaussianMixture(torch.ones(1), torch.zeros(1, 1), -torch.ones(1, 1, 1), SCHEDULE)
    model = LatentDiffusion(lambda x: x, lambda z: z, lambda z, t: z, SCHEDULE, (4,), (1, 2, 2))
    with pytest.raises(ParameterError, match=r"images must be \(samples, 1, 2, 2\), got \(3, 1, 4, 4\)"):
        model.check_images(torch.zeros(3, 1, 4, 4))
    with pytest.raises(ParameterError, match="images must have values from -1 to 1, got 0 to 255"):
        model.check_images(torch.tensor([0.0, 255, 1, 2]).reshape(1, 1, 2, 2))
    with pytest.raises(ParameterError, match="images must have values from -1 to 1, got nan"):
        model.check_images(torch.full((1, 1, 2, 2), float("nan")))
