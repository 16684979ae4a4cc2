"""Diffusion models: noise schedules, Tweedie's estimate, DDIM, latent diffusion, and mixtures whose score is exact.

Conventions: ``z_t = sqrt(abar_t) z_0 + sqrt(1 - abar_t) eps``, where ``abar_t`` falls from nearly 1 (clean) to nearly
0 (noise); a noise predictor ``eps(z, t)`` estimates ``eps``, and the score is ``-eps(z, t) / sqrt(1 - abar_t)``.
The first axis of every batch is the samples.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lowdim import checks as ok
from lowdim.checks import ParameterError, integer, number

Generators = torch.Generator | Sequence[torch.Generator]
STATE = ok.tensor("samples ...", finite=False)  # entries are not looked at: these functions are called in every step
ABAR = ok.real(above=0, at_most=1)


@ok.takes(like=STATE, random=ok.generators)
def normal(like: Tensor, random: Generators) -> Tensor:
    """Standard normal numbers with the shape, dtype and device of ``like`` ``(samples, ...)``.

    Args:
        random: one generator for the batch; or one a sample, so that a sample's numbers do not depend on the others.

    Raises:
        ParameterError: a number of generators other than that of the samples.
    """
    if isinstance(random, torch.Generator):
        return torch.randn(like.shape, generator=random, dtype=like.dtype, device=random.device).to(like.device)
    if len(random) != len(like):
        raise ParameterError(f"random must be one generator or one a sample: {len(like)} samples, got {len(random)}.")
    draw = dict(dtype=like.dtype)
    return torch.stack([torch.randn(like.shape[1:], generator=g, device=g.device, **draw) for g in random]).to(like)


@dataclass(frozen=True)
class Schedule:
    """A noise schedule.

    Attributes:
        abar: ``(times,)`` in float64, falling: the share of the signal's variance that is left at each time.
    """

    abar: Tensor

    def __post_init__(self):
        ok.tensor()("abar", self.abar, {})
        fine = self.abar.ndim == 1 and len(self.abar) > 1 and bool(((self.abar > 0) & (self.abar < 1)).all())
        if not fine or bool((self.abar.diff() >= 0).any()):
            shown = ok.brief(self.abar if self.abar.ndim != 1 else self.abar.tolist())
            raise ParameterError(
                f"abar must be a list of numbers between 0 and 1 that fall from each to the next, got {shown}."
            )

    @classmethod
    def scaled_linear(cls, first: float = 0.0015, last: float = 0.0195, times: int = 1000) -> "Schedule":
        """``beta_t`` with a square root that grows linearly; the defaults are those of the latent diffusion models."""
        number("first", first, above=0, below=1), number("last", last, above=0, below=1)
        roots = torch.linspace(first**0.5, last**0.5, integer("times", times, at_least=2), dtype=torch.float64)
        return cls(torch.cumprod(1 - roots**2, 0))

    def levels(self, steps: int) -> "Levels":
        """The times that a sampler with so many steps visits: 1, 1 + c, 1 + 2c, ... with ``c = times // steps``.

        Raises:
            ParameterError: more steps than times.
        """
        stride = len(self.abar) // integer("steps", steps, at_least=1, at_most=len(self.abar) - 1)
        times = torch.arange(steps) * stride + min(1, stride - 1)
        abar = self.abar[times]
        return Levels(times, abar, torch.cat([torch.ones(1, dtype=abar.dtype), abar[:-1]]))


@dataclass(frozen=True)
class Levels:
    """The grid of a sampler, from the cleanest to the noisiest: step ``i`` goes from ``abar[i]`` to ``before[i]``.

    The last step ends at 1, the estimate of ``z_0`` itself.
    """

    times: Tensor
    abar: Tensor
    before: Tensor

    def __len__(self) -> int:
        return len(self.times)


@ok.takes(clean=ok.tensor(finite=False), abar=ok.values(finite=False), noise=ok.tensor(finite=False))
def add_noise(clean: Tensor, abar, noise: Tensor) -> Tensor:
    """``z_t`` for a clean sample; ``abar`` is a number or a tensor ``(samples, 1, ...)``."""
    abar = torch.as_tensor(abar, dtype=clean.dtype, device=clean.device)
    return abar.sqrt() * clean + (1 - abar).sqrt() * noise


@ok.takes(z=ok.tensor(finite=False), noise=ok.tensor(finite=False), abar=ABAR)
def tweedie(z: Tensor, noise: Tensor, abar: float) -> Tensor:
    """The mean of ``z_0`` given ``z_t``, from the predicted noise: ``(z - sqrt(1 - abar) eps) / sqrt(abar)``."""
    return (z - (1 - abar) ** 0.5 * noise) / abar**0.5


@ok.takes(hessian=ok.tensor("... d d", finite=False), abar=ABAR)
def tweedie_covariance(hessian: Tensor, abar: float) -> Tensor:
    """Covariance of ``z_0`` given ``z_t`` from the Hessian of ``log p_t``, ``(samples, d, d)`` (Theorem 2)."""
    eye = torch.eye(hessian.shape[-1], dtype=hessian.dtype, device=hessian.device)
    return (1 - abar) ** 2 / abar * hessian + (1 - abar) / abar * eye


@ok.takes(
    clean=ok.tensor(finite=False),
    noise=ok.tensor(finite=False),
    abar=ABAR,
    fresh=ok.optional(ok.tensor(finite=False)),
    delta=ok.real(at_least=0),
)
def ddim(clean: Tensor, noise: Tensor, abar: float, fresh: Tensor | None = None, delta: float = 0.0) -> Tensor:
    """One DDIM step to the level ``abar`` from the estimate of ``z_0`` and the predicted noise.

    Args:
        fresh, delta: new noise and its standard deviation; none by default.
    """
    if abar + delta**2 > 1:
        raise ParameterError(f"delta must be at most sqrt(1 - abar) = {(1 - abar) ** 0.5:g}, got {delta!r}.")
    moved = abar**0.5 * clean + (1 - abar - delta**2) ** 0.5 * noise
    return moved if fresh is None else moved + delta * fresh


@ok.takes(images=ok.tensor("samples ...", finite=False), shape=ok.sizes(1))
def check_images(images: Tensor, shape: tuple[int, ...], pixels: tuple[float, float] | None) -> Tensor:
    """The images, if they are ``(samples, *shape)`` with values in the range ``pixels`` (None for any).

    Raises:
        ParameterError: another size, values outside the range, or values that are not finite.
    """
    if tuple(images.shape[1:]) != tuple(shape):
        raise ParameterError(f"images must be (samples, {', '.join(map(str, shape))}), got {tuple(images.shape)}.")
    (low, high), slack = pixels or (-float("inf"), float("inf")), 1e-4
    first, last = float(images.min()), float(images.max())
    if not (low - slack <= first and last <= high + slack):
        raise ParameterError(f"images must have values from {low:g} to {high:g}, got {first:.3g} to {last:.3g}.")
    return images


@dataclass(frozen=True)
class LatentDiffusion:
    """A latent diffusion model made of any encoder, decoder and noise predictor.

    Attributes:
        encode: images ``(samples, *image_shape)`` to latents ``(samples, *latent_shape)``.
        decode: latents to images.
        noise: ``noise(z, time)``: the predicted noise; ``time`` is an index of the schedule.
        schedule: the noise schedule.
        latent_shape, image_shape: shapes of one sample.
        pixels: the range of the images' values, checked on input; None for no check.
        plain: the latents are the images: encoder and decoder change nothing.
    """

    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]
    noise: Callable[[Tensor, int], Tensor]
    schedule: Schedule
    latent_shape: tuple[int, ...]
    image_shape: tuple[int, ...]
    pixels: tuple[float, float] | None = (-1.0, 1.0)
    plain: bool = False

    def __post_init__(self):
        for name in ("encode", "decode", "noise"):
            ok.function(name, getattr(self, name), {})
        ok.kind(Schedule, "a Schedule")("schedule", self.schedule, {}), ok.flag("plain", self.plain, {})
        ok.sizes(1)("latent_shape", self.latent_shape, {}), ok.sizes(1)("image_shape", self.image_shape, {})
        if self.pixels is not None and (
            len(ok.numbers("pixels", self.pixels)) != 2 or self.pixels[0] >= self.pixels[1]
        ):
            raise ParameterError(f"pixels must be the smallest and the largest value, got {self.pixels!r}.")

    def check_images(self, images: Tensor) -> Tensor:
        """The images, if their size and range are those of the model.

        Raises:
            ParameterError: another size, values outside the range, or values that are not finite.
        """
        return check_images(images, self.image_shape, self.pixels)

    @ok.takes(start=STATE)
    @torch.no_grad()
    def sample(self, start: Tensor, steps: int) -> Tensor:
        """Latents by DDIM from pure noise ``start`` ``(samples, *latent_shape)``.

        Raises:
            ParameterError: a start of another shape, or more steps than the schedule has times.
        """
        if tuple(start.shape[1:]) != tuple(self.latent_shape):
            shape = ", ".join(map(str, self.latent_shape))
            raise ParameterError(f"start must be (samples, {shape}), got {tuple(start.shape)}.")
        z, levels = start, self.schedule.levels(steps)
        for i in reversed(range(steps)):
            noise = self.noise(z, int(levels.times[i]))
            z = ddim(tweedie(z, noise, float(levels.abar[i])), noise, float(levels.before[i]))
        return z


@ok.takes(
    model=ok.kind(LatentDiffusion, "a LatentDiffusion"),
    latents=ok.tensor("samples ..."),
    random=ok.generators,
    points=ok.count(2),
)
def mean_uncertainty(model: LatentDiffusion, latents: Tensor, random: torch.Generator, points: int = 20) -> Callable:
    """``v_t`` of a trained model: the mean square error a dimension of its estimates of ``latents``, between levels.

    Returns:
        ``v(abar, z)``, interpolated in ``abar``; ``z`` does not matter (it does for an exact score).
    """
    times = torch.linspace(0, len(model.schedule.abar) - 1, points).round().long().unique()
    abar = model.schedule.abar[times]
    errors = []
    with torch.no_grad():
        for time, level in zip(times.tolist(), abar.tolist(), strict=True):
            z = add_noise(latents, level, normal(latents, random))
            errors.append(float((tweedie(z, model.noise(z, time), level) - latents).square().mean()))
    xs, ys = abar.flip(0).numpy(), torch.tensor(errors, dtype=torch.float64).flip(0).numpy()
    return lambda level, z: float(np.interp(level, xs, ys))


class GaussianMixture:
    """A mixture of Gaussians as a distribution of latents: its diffusion has a score in closed form.

    Args:
        weights: ``(modes,)``, positive; they are normalised.
        means: ``(modes, d)``.
        covariances: ``(modes, d, d)``, symmetric and positive definite.
        schedule: the noise schedule.

    Raises:
        ParameterError: shapes that do not fit, a weight that is not positive, or a covariance that is not positive.
    """

    @ok.takes(
        weights=ok.tensor(),
        means=ok.tensor("modes d"),
        covariances=ok.tensor(),
        schedule=ok.kind(Schedule, "a Schedule"),
    )
    def __init__(self, weights: Tensor, means: Tensor, covariances: Tensor, schedule: Schedule):
        modes, d = means.shape
        if weights.shape != (modes,) or covariances.shape != (modes, d, d):
            raise ParameterError(
                f"weights must be ({modes},) and covariances ({modes}, {d}, {d}) to fit the means, "
                f"got {tuple(weights.shape)} and {tuple(covariances.shape)}."
            )
        self.spread, self.axes = torch.linalg.eigh(covariances)  # (modes, d), (modes, d, d)
        if bool((weights <= 0).any()) or bool((self.spread <= 0).any()):
            least = f"{float(weights.min())!r} and {float(self.spread.min())!r}"
            raise ParameterError(
                f"weights and the eigenvalues of all covariances must be positive, got smallest ones of {least}."
            )
        self.weights, self.means, self.schedule = weights / weights.sum(), means, schedule

    def _along(self, z: Tensor, abar: float) -> tuple[Tensor, Tensor]:
        """``C^{-1}(z - m)`` along the axes of each mode ``(modes, samples, d)``, and its weighted log density."""
        variance = abar * self.spread + 1 - abar  # of each mode along its axes
        along = (z - abar**0.5 * self.means[:, None]) @ self.axes
        scaled = along / variance[:, None]
        size = self.weights.log() - 0.5 * (2 * torch.pi * variance).log().sum(1)
        return scaled, size[:, None] - 0.5 * (along * scaled).sum(-1)

    def _parts(self, z: Tensor, abar: float) -> tuple[Tensor, Tensor, Tensor]:
        """Responsibilities ``(samples, modes)``, ``-C^{-1}(z - m)`` a mode, log density ``(samples,)``."""
        scaled, logs = self._along(z, abar)
        return logs.softmax(0).mT, -(scaled @ self.axes.mT).movedim(0, 1), logs.logsumexp(0)

    def log_density(self, z: Tensor, abar: float = 1.0) -> Tensor:
        """``log p_t(z)`` ``(samples,)`` for ``z`` ``(samples, d)``."""
        return self._parts(z, abar)[2]

    def score(self, z: Tensor, abar: float) -> Tensor:
        """``grad log p_t(z)`` ``(samples, d)``."""
        scaled, logs = self._along(z, abar)
        return -((logs.softmax(0)[..., None] * scaled) @ self.axes.mT).sum(0)

    def noise(self, z: Tensor, time: int) -> Tensor:
        """The exact noise prediction, ``-sqrt(1 - abar_t) score``."""
        abar = float(self.schedule.abar[time])
        return -((1 - abar) ** 0.5) * self.score(z, abar)

    def hessian(self, z: Tensor, abar: float) -> Tensor:
        """The Hessian of ``log p_t`` at ``z``, ``(samples, d, d)``."""
        share, pull, _ = self._parts(z, abar)
        precision = (self.axes / (abar * self.spread + 1 - abar)[:, None]) @ self.axes.mT
        mean = (share[..., None] * pull).sum(1)
        outer = torch.einsum("nm,nmi,nmj->nij", share, pull, pull)
        return outer - torch.einsum("nm,mij->nij", share, precision) - mean[:, :, None] * mean[:, None]

    def posterior(self, z: Tensor, abar: float) -> tuple[Tensor, Tensor]:
        """Mean ``(samples, d)`` and covariance ``(samples, d, d)`` of ``z_0`` given ``z_t``, by Bayes' rule."""
        share, pull, _ = self._parts(z, abar)
        cov = (self.axes * self.spread[:, None]) @ self.axes.mT
        means = self.means - abar**0.5 * torch.einsum(
            "mij,nmj->nmi", cov, pull
        )  # m + abar^(1/2) S C^-1 (z - abar^(1/2) m)
        inside = (self.axes * (self.spread * (1 - abar) / (abar * self.spread + 1 - abar))[:, None]) @ self.axes.mT
        mean = (share[..., None] * means).sum(1)
        apart = means - mean[:, None]
        return mean, torch.einsum("nm,mij->nij", share, inside) + torch.einsum("nm,nmi,nmj->nij", share, apart, apart)

    @ok.takes(count=ok.count(), random=ok.generator)
    def sample(self, count: int, random: torch.Generator) -> Tensor:
        """Clean samples ``(count, d)``."""
        mode = torch.multinomial(self.weights, count, replacement=True, generator=random)
        draw = torch.randn(count, self.means.shape[1], generator=random, dtype=self.means.dtype)
        return self.means[mode] + torch.einsum("nij,nj->ni", self.axes[mode], self.spread[mode].sqrt() * draw)
