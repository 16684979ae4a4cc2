"""Inverse problems with a latent diffusion prior: Latent-DPS, latent optimisation and ReSample behind one interface.

``solve(model, operator, y, sigma, method, random)`` runs any of them on a batch. Sources: Song et al. (ICLR 2024) for
ReSample, whose two formulas for the resampling variance and whose stages are switches here.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lowdim import checks as ok
from lowdim.checks import ParameterError, choice, integer, number
from lowdim.consistency import Adam, Setting, minimise, per_sample, resample, resampling_variance, rms, setting
from lowdim.diffusion import Generators, LatentDiffusion, Levels, add_noise, ddim, normal, tweedie
from lowdim.operators import Operator

ADAM = ok.kind(Adam, "an Adam")
Uncertainty = Callable[[float, Tensor], Tensor | float]
SHORT, LONG = Adam(1e-2, 100), Adam(1e-2, 600)


def _tolerance(value: Setting | str) -> None:
    if isinstance(value, str):
        choice("tolerance", value, ("noise",))
    else:
        setting("tolerance", value, at_least=0)


@dataclass(frozen=True)
class LatentDPS:
    """DDIM, and after each step one step along the gradient of the residual's norm, through decoder and denoiser.

    Attributes:
        steps: DDIM steps.
        scale: the step size is ``scale * abar_t``; one for all, or one a sample.
    """

    steps: int = 100
    scale: Setting = 0.5

    def __post_init__(self):
        integer("steps", self.steps, at_least=1), setting("scale", self.scale, at_least=0)


@dataclass(frozen=True)
class LatentOptimisation:
    """No diffusion: fit the latent to the data from a random start."""

    adam: Adam = LONG
    tolerance: Setting | str = "noise"

    def __post_init__(self):
        ADAM("adam", self.adam, {}), _tolerance(self.tolerance)


@dataclass(frozen=True)
class ReSample:
    """Hard data consistency on some of the DDIM steps, each followed by a way back to the noisy manifold.

    Attributes:
        steps: DDIM steps.
        every: a hard step whenever the index of the step is a multiple; 0 for none.
        rest: share of the steps, the noisiest, without hard steps.
        stages: ``"both"`` (pixels in the middle third, latents in the last), ``"pixel"`` or ``"latent"``.
        renoise: ``"resample"``, ``"encode"`` (fresh noise), ``"deterministic"`` (the predicted noise) or ``"none"``.
        formula: of the resampling variance: ``"code"``, ``"paper"`` or ``"theorem"`` (``abar_t v_t``, no ``gamma``).
        gamma: its factor; one for all, or one a sample.
        tolerance: an optimisation of a sample ends when the root mean square of its residual is at most this;
            ``"noise"`` for the noise level; one for all, or one a sample.
        pixel, latent, last: settings of the optimisations; ``last=None`` for none after the last step.
        travel: further DDIM steps before the estimate of ``z_0`` that starts a hard step.
        dps: scale of a Latent-DPS step on top, at every step.
        uncertainty: ``v_t(abar_t, z_t)``, the variance of ``z_0`` given ``z_t``, a number or ``(samples, 1, ...)``.
        proximal: latent stage: minimise ``|y - A(D(z))|^2 / sigma^2 + |z - zhat_0|^2 / v_t``, without early stopping.
    """

    steps: int = 100
    every: int = 4
    rest: float = 1 / 3
    stages: str = "both"
    renoise: str = "resample"
    formula: str = "code"
    gamma: Setting = 40.0
    tolerance: Setting | str = "noise"
    pixel: Adam = SHORT
    latent: Adam = SHORT
    last: Adam | None = SHORT
    travel: int = 0
    dps: float = 0.0
    uncertainty: Uncertainty | None = None
    proximal: bool = False

    def __post_init__(self):
        integer("steps", self.steps, at_least=1), integer("every", self.every, at_least=0)
        number("rest", self.rest, at_least=0, at_most=1), setting("gamma", self.gamma, above=0)
        choice("stages", self.stages, ("both", "pixel", "latent"))
        choice("renoise", self.renoise, ("resample", "encode", "deterministic", "none"))
        choice("formula", self.formula, ("code", "paper", "theorem"))
        integer("travel", self.travel, at_least=0), number("dps", self.dps, at_least=0)
        _tolerance(self.tolerance), ok.flag("proximal", self.proximal, {})
        ADAM("pixel", self.pixel, {}), ADAM("latent", self.latent, {}), ok.optional(ADAM)("last", self.last, {})
        ok.optional(ok.function)("uncertainty", self.uncertainty, {})
        if (self.formula == "theorem" or self.proximal) and self.uncertainty is None:
            raise ParameterError("formula 'theorem' and proximal need the uncertainty v_t, got uncertainty=None.")

    def is_hard(self, index: int) -> bool:
        """Whether this step of the grid (0 is the cleanest) optimises."""
        return (
            bool(self.every) and index > 0 and index % self.every == 0 and index <= round(self.steps * (1 - self.rest))
        )

    def stage(self, index: int) -> str:
        """``"pixel"`` or ``"latent"``."""
        if self.stages != "both":
            return self.stages
        return "pixel" if index >= self.steps // 3 else "latent"


Method = LatentDPS | LatentOptimisation | ReSample


@dataclass
class Moment:
    """What a callback sees after each step: the batch on its way. Tensors of a hard step are None elsewhere."""

    index: int
    abar: float
    predicted: Tensor  # zhat_0 from the unconditional step
    moved: Tensor  # z'_t, after the DDIM step
    z: Tensor  # z_t, after the step as a whole
    estimate: Tensor | None = None  # zhat_0(z'_t), where the optimisation starts
    consistent: Tensor | None = None  # zhat_0(y), where it ends


@dataclass
class Solution:
    """Latents ``(samples, ...)``, their images, the root mean square residual, and what it took.

    ``iterations`` ``(samples,)`` counts optimisation steps of each sample; ``denoiser`` and ``decoder`` count calls,
    those with a gradient twice more (a backward pass costs about two forward ones).
    """

    latents: Tensor
    images: Tensor
    residual: Tensor
    iterations: Tensor
    calls: dict[str, int] = field(default_factory=dict)


@ok.takes(
    model=ok.kind(LatentDiffusion, "a LatentDiffusion"),
    operator=ok.kind(Operator, "an Operator"),
    y=ok.tensor("samples ...", finite=False),
    method=ok.kind(Method, "LatentDPS, LatentOptimisation or ReSample"),
    random=ok.generators,
    callback=ok.optional(ok.function),
)
def solve(
    model: LatentDiffusion,
    operator: Operator,
    y: Tensor,
    sigma: float,
    method: Method,
    random: Generators,
    callback: Callable[[Moment], None] | None = None,
) -> Solution:
    """Reconstruct images from ``y = A(x) + sigma n``.

    Args:
        y: ``(samples, *operator.shape)``.
        method: which solver, with its settings.
        random: one generator, or one a sample; then a sample's result does not depend on the rest of the batch.
        callback: called after each diffusion step.

    Raises:
        ParameterError: an operator for other images, a ``y`` that it cannot have made, or a noise level of 0 where the
            tolerance is the noise level.
    """
    if tuple(operator.image_shape) != tuple(model.image_shape):
        raise ParameterError(
            f"operator must fit the model, got {type(operator).__name__}: "
            f"the operator measures images {tuple(operator.image_shape)}, the model makes {tuple(model.image_shape)}."
        )
    if not bool(operator.check(y).isfinite().all()):
        raise ParameterError("y must be finite, got NaN or infinity.")
    number("sigma", sigma, at_least=0)
    with torch.no_grad():
        return _Run(model, operator, y, sigma, method, random, callback).result()


class _Run:
    """One call of ``solve``: the batch and the counters."""

    def __init__(self, model, operator, y, sigma, method, random, callback):
        self.model, self.operator, self.y, self.sigma = model, operator, y, sigma
        self.method, self.random, self.callback = method, random, callback
        self.calls = {"denoiser": 0, "decoder": 0}
        self.iterations = torch.zeros(len(y), dtype=torch.long, device=y.device)
        self.tolerance = getattr(method, "tolerance", 0.0)
        if isinstance(self.tolerance, str):
            if sigma == 0:
                raise ParameterError(
                    "tolerance is the noise level, but sigma is 0: give the tolerance as a number > 0."
                )
            self.tolerance = sigma
        per_sample(self.tolerance, y)
        if getattr(method, "proximal", False) and sigma == 0:
            raise ParameterError("a proximal step weighs the data by 1 / sigma^2: sigma must be > 0, got 0.")

    def result(self) -> Solution:
        z = normal(self.y.new_empty(len(self.y), *self.model.latent_shape), self.random)
        if isinstance(self.method, LatentOptimisation):
            z = self.fit_latents(z, self.method.adam)
        else:
            z = self.diffuse(z, self.model.schedule.levels(self.method.steps))
        images = self.model.decode(z)
        return Solution(z, images, rms(self.operator(images) - self.y), self.iterations, self.calls)

    def diffuse(self, z: Tensor, levels: Levels) -> Tensor:
        method, hard = self.method, isinstance(self.method, ReSample)
        scale = per_sample(method.dps if hard else method.scale, z)
        guided = bool(torch.as_tensor(scale).max() > 0)
        for i in reversed(range(len(levels))):
            abar, before = float(levels.abar[i]), float(levels.before[i])
            predicted, noise, slope = self.predict(z, int(levels.times[i]), abar, guided)
            moved = ddim(predicted, noise, before)
            if guided:
                moved = moved - scale * abar * slope
            moment = Moment(i, before, predicted, moved, moved)
            if hard and method.is_hard(i):
                self.hard_step(moment, levels)
            z = moment.z
            if self.callback is not None:
                self.callback(moment)
        return self.fit_latents(z, method.last) if hard and method.last is not None else z

    def predict(self, z: Tensor, time: int, abar: float, gradient: bool = False):
        """``zhat_0``, the predicted noise and, if asked for, the gradient of the residual's norm in ``z``."""
        self.calls["denoiser"] += 3 if gradient else 1
        if not gradient:
            noise = self.model.noise(z, time)
            return tweedie(z, noise, abar), noise, None
        self.calls["decoder"] += 3
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            noise = self.model.noise(z, time)
            predicted = tweedie(z, noise, abar)
            error = self.y - self.operator(self.model.decode(predicted))
            (slope,) = torch.autograd.grad(error.flatten(1).norm(dim=1).sum(), z)
        return predicted.detach(), noise.detach(), slope

    @property
    def pull(self):
        """The operator's own gradient, where it has one: cheaper than autograd's."""
        own = self.operator.linear or type(self.operator).pull is not Operator.pull
        return (lambda x, operator, error: operator.pull(x, error)) if own else None

    def hard_step(self, moment: Moment, levels: Levels) -> None:
        """Estimate ``z_0``, make it consistent with the data, and go back to the noise level of the step."""
        method, at, z = self.method, moment.index - 1, moment.moved
        estimate, noise, _ = self.predict(z, int(levels.times[at]), moment.abar)
        first = noise
        for _ in range(min(method.travel, at)):
            z, at = ddim(estimate, noise, float(levels.before[at])), at - 1
            estimate, noise, _ = self.predict(z, int(levels.times[at]), float(levels.abar[at]))
        moment.estimate = estimate
        if method.stage(moment.index) == "pixel":
            self.calls["decoder"] += 1
            pixels, used = minimise(self.model.decode(estimate), lambda x, operator: operator(x), self.operator, self.y,
                                    method.pixel, self.tolerance, pull=self.pull)  # fmt: skip
            self.iterations += used
            moment.consistent = self.model.encode(pixels)
        else:
            moment.consistent = self.fit_latents(estimate, method.latent, moment)
        moment.z = self.renoise(moment, levels, first)

    def fit_latents(self, start: Tensor, adam: Adam, moment: Moment | None = None) -> Tensor:
        prior, tolerance = None, self.tolerance
        if moment is not None and self.method.proximal:
            v = self.method.uncertainty(moment.abar, moment.moved)
            prior, tolerance = (self.sigma**2, torch.as_tensor(v, dtype=start.dtype, device=start.device)), 0.0
        forward = lambda z, operator: operator(self.model.decode(z))
        pull = self.pull if self.model.plain else None
        z, used = minimise(start, forward, self.operator, self.y, adam, tolerance, prior, pull=pull)
        self.iterations += used
        self.calls["decoder"] += 3 * int(used.max())
        return z

    def renoise(self, moment: Moment, levels: Levels, noise: Tensor) -> Tensor:
        """``z_t`` from the consistent estimate, in the way that the method asks for."""
        method, abar, clean = self.method, moment.abar, moment.consistent
        if method.renoise == "none":
            return moment.moved
        if method.renoise == "deterministic":
            return add_noise(clean, abar, noise)
        fresh = normal(clean, self.random)
        if method.renoise == "encode":
            return add_noise(clean, abar, fresh)
        if method.formula == "theorem":  # what is left to know about sqrt(abar) z_0 when z'_t is seen
            variance = abar * method.uncertainty(abar, moment.moved)
        else:
            above = float(levels.abar[moment.index])
            variance = resampling_variance(above, abar, per_sample(method.gamma, clean), method.formula)
        return resample(clean, moment.moved, abar, variance, fresh)
