"""The test bed of samplers: ambiguous by construction, and posteriors that a closed form confirms."""

import pytest
import torch

from lowdim.checks import ParameterError
from lowdim.diffusion import GaussianMixture, Schedule
from lowdim.operators import Operator
from lowdim.posterior import ReSample, solve
from lowdim.rings import GridPosterior, ambiguous_instruments, plane_model, ring
from lowdim.runtime import generator

SCHEDULE = Schedule.scaled_linear()


def test_each_instrument_confuses_its_two_modes_and_its_value_is_the_formula(random):
    prior = ring(SCHEDULE)
    instruments, pair = ambiguous_instruments(prior, 20, random)
    first, second = (instruments(prior.means[pair[:, k]]) for k in (0, 1))
    torch.testing.assert_close(first, second, rtol=1e-10, atol=1e-10)
    assert bool((pair[:, 0] != pair[:, 1]).all())
    z = torch.randn(20, 2, generator=random, dtype=torch.float64)
    x = torch.tanh(z[7] @ instruments.W[7])
    expected = x @ instruments.a[7] + (x @ instruments.b[7]) ** 2 / 8
    assert float(instruments(z)[7]) == pytest.approx(float(expected), abs=1e-12)
    assert torch.equal(instruments.select(torch.tensor([7]))(z[7:8]), instruments(z)[7:8])


class First(Operator):
    """The first coordinate: linear, so that the posterior of a Gaussian is one."""

    image_shape, shape = (2,), (1,)

    def __call__(self, z):
        return z[:, :1]


def test_grid_posterior_is_the_closed_form_of_a_gaussian(random):
    cov = torch.tensor([[0.06, 0.03], [0.03, 0.05]], dtype=torch.float64)
    mean, sigma, y = torch.tensor([[0.1, -0.2]], dtype=torch.float64), 0.2, torch.tensor([[0.4]], dtype=torch.float64)
    prior = GaussianMixture(torch.ones(1, dtype=torch.float64), mean, cov[None], SCHEDULE)
    exact = GridPosterior(prior, First(), y, sigma, 20_000, random)
    gain = cov[:, 0] / (cov[0, 0] + sigma**2)
    torch.testing.assert_close(exact.reference[0].mean(0), mean[0] + gain * (0.4 - 0.1), rtol=0, atol=0.01)
    inside = cov - gain[:, None] * cov[0]
    torch.testing.assert_close(exact.reference[0].T.cov(), inside, rtol=0.05, atol=1e-4)
    assert float(exact.mass) == pytest.approx(1)


def test_exact_samples_are_close_and_strangers_are_not(random):
    prior = ring(SCHEDULE)
    instruments, pair = ambiguous_instruments(prior, 6, random)
    y = instruments(prior.means[pair[:, 0]])
    exact = GridPosterior(prior, instruments, y, 0.02, 400, random)
    assert bool((exact.mass.gather(1, pair) > 0.05).all())  # both modes are in the posterior
    good = exact.compare(exact.reference[:, :100].flatten(0, 1))
    assert float(good["distance"].max()) < 0.2
    assert float(good["off"].max()) < 0.05
    assert float(good["wrong"].max()) < 0.1
    bad = exact.compare(torch.zeros(600, 2, dtype=torch.float64))
    assert bool((bad["off"] == 1).all())
    assert bool((bad["distance"] > good["distance"]).all())


def test_a_solver_runs_on_it_with_one_instrument_a_sample(random):
    prior = ring(SCHEDULE)
    instruments, pair = ambiguous_instruments(prior, 5, random)
    y = instruments(prior.means[pair[:, 0]])
    solution = solve(plane_model(prior), instruments, y, 0.02, ReSample(40, 4, stages="latent"), generator(1))
    assert float(solution.residual.median()) < 0.1


def test_bad_input(random):
    with pytest.raises(ParameterError, match="modes must be a whole number >= 2, got 1"):
        ring(SCHEDULE, modes=1)
    with pytest.raises(ParameterError, match="sigma must be a finite number > 0, got 0"):
        GridPosterior(ring(SCHEDULE), First(), torch.zeros(1, 1), 0, 10, random)


def test_the_gradient_of_an_instrument_is_autograds(random):
    instruments, _ = ambiguous_instruments(ring(SCHEDULE), 20, random)
    z = torch.randn(20, 2, generator=random, dtype=torch.float64, requires_grad=True)
    error = torch.randn(20, 1, generator=random, dtype=torch.float64)
    (expected,) = torch.autograd.grad(instruments(z), z, error)
    torch.testing.assert_close(instruments.pull(z.detach(), error), expected, rtol=1e-12, atol=1e-12)
