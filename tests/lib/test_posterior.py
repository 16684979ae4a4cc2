"""Solvers of inverse problems with a latent diffusion prior: exact formulas, batches, early stopping, bad input."""

from dataclasses import replace

import pytest
import torch

from lowdim.checks import ParameterError
from lowdim.consistency import Adam, minimise, resample, resampling_moments, resampling_variance, rms
from lowdim.diffusion import GaussianMixture, LatentDiffusion, Schedule, tweedie
from lowdim.operators import Separable, gaussian_blur, random_inpainting
from lowdim.posterior import LatentDPS, LatentOptimisation, ReSample, solve
from lowdim.runtime import generator

F64 = torch.float64
SCHEDULE = Schedule.scaled_linear()


@pytest.fixture
def model():
    """An exact prior in three dimensions with a non-linear decoder to 4 x 4 images."""
    random = generator(5)
    weights = torch.randn(3, 16, generator=random, dtype=F64)
    means = 1.5 * torch.randn(4, 3, generator=random, dtype=F64)
    mixture = GaussianMixture(torch.ones(4, dtype=F64), means, 0.05 * torch.eye(3, dtype=F64).expand(4, 3, 3), SCHEDULE)
    decode = lambda z: torch.tanh(z @ weights).reshape(-1, 1, 4, 4)
    encode = lambda x: torch.atanh(x.clamp(-0.999, 0.999)).flatten(1) @ torch.linalg.pinv(weights)
    return LatentDiffusion(encode, decode, mixture.noise, SCHEDULE, (3,), (1, 4, 4)), mixture


def problem(model, count, seed=3):
    random = generator(seed)
    truth = model[0].decode(model[1].sample(count, random))
    operator = random_inpainting((1, 4, 4), 0.5, random, count)
    return operator, operator.measure(truth, 0.02, random), truth


SHORT = Adam(0.05, 15)
METHODS = {
    "dps": LatentDPS(20, 0.3),
    "latent": LatentOptimisation(Adam(0.05, 40)),
    "both": ReSample(20, 3, pixel=SHORT, latent=SHORT, last=SHORT),
    "encode": ReSample(20, 3, stages="pixel", renoise="encode", last=None),
    "deterministic": ReSample(20, 3, stages="latent", renoise="deterministic", latent=SHORT, travel=2),
    "paper": ReSample(20, 3, formula="paper", latent=SHORT, dps=0.2),
    "proximal": ReSample(
        20, 3, stages="latent", formula="theorem", proximal=True, uncertainty=lambda a, z: (1 - a) / 2, latent=SHORT
    ),
}


def test_resampling_is_the_product_of_two_gaussians_on_a_grid():
    clean, z, abar, variance = torch.tensor([0.7], dtype=F64), torch.tensor([-0.4], dtype=F64), 0.6, 0.3
    grid = torch.linspace(-8, 8, 40001, dtype=F64)
    logs = -0.5 * (grid - abar**0.5 * clean) ** 2 / (1 - abar) - 0.5 * (grid - z) ** 2 / variance
    weight = logs.softmax(0)
    mean = (weight * grid).sum()
    spread = (weight * (grid - mean) ** 2).sum()
    found_mean, found = resampling_moments(clean, z, abar, variance)
    assert abs(float(found_mean - mean)) < 1e-12
    assert abs(float(found - spread)) < 1e-12


def test_variance_of_resampling_over_encoding_is_the_weight(random):
    clean, z, abar = torch.zeros(200_000, dtype=F64), torch.ones(200_000, dtype=F64), 0.5
    variance = resampling_variance(0.45, abar, 40.0)
    drawn = resample(clean, z, abar, variance, torch.randn(200_000, generator=random, dtype=F64))
    assert float(drawn.var()) / (1 - abar) == pytest.approx(variance / (variance + 1 - abar), rel=0.03)


@pytest.mark.parametrize(
    ("formula", "expected"),
    [("code", (0.476, 0.418, 0.389, 0.418, 0.516, 0.795)), ("paper", (0.973, 0.848, 0.563, 0.312, 0.189, 0.121))],
)
def test_weights_of_both_formulas(formula, expected):
    levels = SCHEDULE.levels(500)
    for index, weight in zip((330, 250, 170, 100, 50, 10), expected, strict=True):
        abar, before = float(levels.abar[index]), float(levels.before[index])
        variance = resampling_variance(abar, before, 40.0, formula)
        assert variance / (variance + 1 - before) == pytest.approx(weight, abs=6e-4)


@pytest.mark.parametrize("name", list(METHODS))
def test_a_batch_gives_what_each_image_gives_alone(model, name):
    operator, y, _ = problem(model, 5)
    method = METHODS[name]
    batch = solve(model[0], operator, y, 0.02, method, [generator(k) for k in range(5)])
    for k in range(5):
        only = torch.tensor([k])
        alone = solve(model[0], operator.select(only), y[only], 0.02, method, [generator(k)])
        torch.testing.assert_close(batch.images[only], alone.images, rtol=0, atol=1e-8)
        assert batch.iterations[k] == alone.iterations[0]


def test_minimise_is_adam_and_solves_linear_problems(random):
    rows = torch.eye(4, dtype=F64) + 0.1 * torch.randn(4, 4, generator=random, dtype=F64)
    operator, target = Separable(rows, rows), torch.randn(2, 1, 4, 4, generator=random, dtype=F64)
    y, start = operator(target), torch.zeros_like(target)
    forward = lambda x, operator: operator(x)
    found, used = minimise(start, forward, operator, y, Adam(0.05, 7), 0.0)
    leaf = start.clone().requires_grad_()
    adam = torch.optim.Adam([leaf], lr=0.05)
    for _ in range(7):
        adam.zero_grad()
        (0.5 * (y - operator(leaf)).square().sum()).backward()
        adam.step()
    torch.testing.assert_close(found, leaf.detach(), rtol=1e-10, atol=1e-10)
    assert used.tolist() == [7, 7]
    found, used = minimise(start, forward, operator, y, Adam(0.05, 2000), 1e-3)
    assert bool((rms(operator(found) - y) <= 1e-3).all())
    assert int(used.max()) < 2000


def test_each_sample_stops_at_its_own_residual(model):
    operator, y, truth = problem(model, 4)
    start = torch.randn(4, 3, generator=generator(1), dtype=F64)
    start[2] = model[0].encode(truth)[2]  # this one is done before it starts
    forward = lambda z, operator: operator(model[0].decode(z))
    found, used = minimise(start, forward, operator, y, Adam(0.05, 300), 0.1, check=7)
    assert used[2] == 0
    assert torch.equal(found[2], start[2])
    slow, count = minimise(start, forward, operator, y, Adam(0.05, 300), 0.1, check=1)
    assert torch.equal(used, count)
    torch.testing.assert_close(found, slow, rtol=0, atol=1e-10)


def test_the_proximal_minimum_is_the_gaussian_posterior_mean(random):
    """For a linear forward map it has a closed form."""
    rows = torch.randn(3, 4, generator=random, dtype=F64)
    operator, centre = Separable(rows, torch.eye(1, dtype=F64)), torch.randn(1, 1, 4, 1, generator=random, dtype=F64)
    y, sigma, v = torch.randn(1, 1, 3, 1, generator=random, dtype=F64), 0.5, 0.3
    precision = rows.T @ rows / sigma**2 + torch.eye(4, dtype=F64) / v
    exact = torch.linalg.solve(precision, rows.T @ y[0, 0] / sigma**2 + centre[0, 0] / v)
    prior = (sigma**2, torch.tensor(v, dtype=F64))
    found, _ = minimise(centre, lambda x, operator: operator(x), operator, y, Adam(0.01, 3000), 0.0, prior)
    torch.testing.assert_close(found[0, 0], exact, rtol=0, atol=1e-6)


def test_settings_may_differ_from_sample_to_sample(model):
    """Three values in one batch are three runs."""
    operator, y, _ = problem(model, 6)
    run = lambda method, samples: solve(
        model[0], operator.select(samples), y[samples], 0.02, method, [generator(int(k)) for k in samples]
    )
    cases = {"gamma": (ReSample, (0.5, 4.0, 40.0)), "tolerance": (ReSample, (1e-3, 0.02, 0.3)),
             "scale": (LatentDPS, (0.0, 0.3, 1.0))}  # fmt: skip
    for name, (kind, values) in cases.items():
        more = dict(every=3, latent=SHORT, pixel=SHORT, last=SHORT) if kind is ReSample else {}
        each = kind(20, **{name: torch.tensor(values).repeat_interleave(2)}, **more)
        together = run(each, torch.arange(6))
        for k, value in enumerate(values):
            pair = torch.arange(2 * k, 2 * k + 2)
            alone = run(kind(20, **{name: torch.tensor([value]).expand(2)}, **more), pair)
            torch.testing.assert_close(together.images[pair], alone.images, rtol=0, atol=1e-8)
            number = run(kind(20, **{name: value}, **more), pair)  # float64 where the tensor is float32
            torch.testing.assert_close(together.images[pair], number.images, rtol=0, atol=1e-4)


def test_dps_takes_the_gradient_of_the_norm(model):
    operator, y, _ = problem(model, 2)
    seen = []
    solve(model[0], operator, y, 0.02, LatentDPS(4, 0.3), generator(0), seen.append)
    z, levels = torch.randn(2, 3, generator=generator(0), dtype=F64), SCHEDULE.levels(4)
    abar, time = float(levels.abar[3]), int(levels.times[3])
    leaf = z.clone().requires_grad_()
    guess = tweedie(leaf, model[0].noise(leaf, time), abar)
    (y - operator(model[0].decode(guess))).flatten(1).norm(dim=1).sum().backward()
    plain = solve(model[0], operator, y, 0.02, LatentDPS(4, 0.0), generator(0), seen.append)
    torch.testing.assert_close(seen[0].moved, seen[4].moved - 0.3 * abar * leaf.grad, rtol=1e-10, atol=1e-10)
    assert plain.calls == {"denoiser": 4, "decoder": 0}


def test_the_callback_sees_hard_steps_and_stages(model):
    operator, y, _ = problem(model, 2)
    seen, method = [], METHODS["both"]
    solve(model[0], operator, y, 0.02, method, generator(0), seen.append)
    hard = [m.index for m in seen if m.consistent is not None]
    assert [m.index for m in seen] == list(range(19, -1, -1))
    assert hard == [12, 9, 6, 3]
    assert [method.stage(i) for i in hard] == ["pixel", "pixel", "pixel", "latent"]
    assert replace_stage("latent").stage(12) == "latent"


def replace_stage(stage):
    return ReSample(20, 3, stages=stage)


def test_bad_input(model):
    operator, y, _ = problem(model, 2)
    run = lambda method, y=y, sigma=0.02, operator=operator: solve(model[0], operator, y, sigma, method, generator(0))
    with pytest.raises(
        ParameterError, match="tolerance is the noise level, but sigma is 0: give the tolerance as a number"
    ):
        run(ReSample(20), sigma=0)
    with pytest.raises(ParameterError, match=r"y must be what the operator gives, \(samples, 1, 8\), got \(2, 1, 3\)"):
        run(ReSample(20), y=torch.zeros(2, 1, 3, dtype=F64))
    with pytest.raises(ParameterError, match=r"the operator measures images \(1, 8, 8\), the model makes \(1, 4, 4\)"):
        run(ReSample(20), operator=gaussian_blur((1, 8, 8), 3, 1.0))
    with pytest.raises(ParameterError, match="sigma must be a finite number >= 0, got -1"):
        run(ReSample(20), sigma=-1)
    with pytest.raises(ParameterError, match="stages must be one of 'both', 'pixel', 'latent', got 'all'"):
        ReSample(stages="all")
    with pytest.raises(ParameterError, match="need the uncertainty v_t, got uncertainty=None"):
        ReSample(proximal=True)
    with pytest.raises(ParameterError, match="formula must be one of 'code', 'paper', got 'other'"):
        resampling_variance(0.5, 0.6, 40.0, "other")
    with pytest.raises(ParameterError, match="y must be finite"):
        run(ReSample(20), y=y * float("nan"))
    with pytest.raises(ParameterError, match="tolerance must be one of 'noise', got 'noisy'"):
        run(ReSample(20, tolerance="noisy"))
    with pytest.raises(ParameterError, match="the least gamma must be a finite number > 0, got 0"):
        ReSample(gamma=torch.tensor([0.0, 1.0]))
    with pytest.raises(ParameterError, match=r"scale must be a number or a tensor \(samples,\), got shape \(2, 1\)"):
        LatentDPS(scale=torch.ones(2, 1))
    with pytest.raises(ParameterError, match="a setting a sample must have 2 entries, one for each, got 3"):
        run(ReSample(20, tolerance=torch.ones(3)))
    with pytest.raises(ParameterError, match="sigma must be > 0, got 0"):
        run(replace(METHODS["proximal"], tolerance=0.1), sigma=0)
    with pytest.raises(ParameterError, match="rate must be a finite number > 0, got 0"):
        Adam(0)


def test_an_operators_own_gradient_changes_nothing(random):
    """Pixels are fitted with the adjoint; autograd gives the same."""
    operator = gaussian_blur((1, 8, 8), 3, 1.0)
    y = torch.randn(5, *operator.shape, generator=random)
    start = torch.randn(5, 1, 8, 8, generator=random)
    both = [
        minimise(start, lambda x, op: op(x), operator, y, Adam(0.05, 25), 1e-3, pull=pull)[0]
        for pull in (None, lambda x, op, error: op.pull(x, error))
    ]
    torch.testing.assert_close(*both, rtol=1e-4, atol=1e-5)
