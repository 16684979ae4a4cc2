"""Hard data consistency: optimise each latent or image of a batch until it explains its measurement, then add noise.

Source: Song et al. (ICLR 2024), whose two formulas for the resampling variance are a switch here.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lowdim import checks as ok
from lowdim.checks import ParameterError, choice, integer, number
from lowdim.operators import Operator

Setting = float | Tensor  # one number for all samples, or ``(samples,)``
STATE = ok.tensor(finite=False)  # entries are not looked at: these functions are called in every step
SHARE = ok.real(above=0, at_most=1)


def setting(name: str, value: Setting, **limits) -> Setting:
    """A number within the limits of ``checks.number``, or a tensor ``(samples,)`` of such numbers.

    Raises:
        ParameterError: a value out of range, or a tensor with more than one axis.
    """
    if not isinstance(value, Tensor):
        return number(name, value, **limits)
    if value.ndim != 1 or not len(value):
        raise ParameterError(f"{name} must be a number or a tensor (samples,), got shape {tuple(value.shape)}.")
    (
        number(f"the least {name}", float(value.min()), **limits),
        number(f"the largest {name}", float(value.max()), **limits),
    )
    return value


@ok.takes(like=ok.tensor("samples ...", finite=False))
def per_sample(value: Setting, like: Tensor) -> Setting:
    """The setting, shaped to multiply ``like`` ``(samples, ...)``.

    Raises:
        ParameterError: another number of samples.
    """
    if not isinstance(value, Tensor):
        return value
    if value.ndim != 1 or len(value) != len(like):
        got = len(value) if value.ndim == 1 else tuple(value.shape)
        raise ParameterError(f"the value of a setting a sample must have {len(like)} entries, one for each, got {got}.")
    return value.to(like).reshape(-1, *[1] * (like.ndim - 1))


@ok.takes(abar=ok.real(above=0, below=1), before=SHARE, gamma=ok.values(finite=False))
def resampling_variance(abar: float, before: float, gamma: Setting, formula: str = "code") -> Setting:
    """``sigma_t^2`` at the level ``before`` that a step from ``abar`` reached: smaller trusts the DDIM iterate more.

    Args:
        formula: ``"code"``, ``gamma (1 - before) / (1 - abar) (1 - abar / before)``, as released; ``"paper"`` divides
            by ``abar`` instead of ``1 - abar``.
    """
    choice("formula", formula, ("code", "paper"))
    if before < abar:
        raise ParameterError(f"before must be at least abar = {abar:g}, the step goes to less noise, got {before!r}.")
    return gamma * (1 - before) / (1 - abar if formula == "code" else abar) * (1 - abar / before)


@ok.takes(clean=STATE, z=STATE, abar=SHARE, variance=ok.values(finite=False))
def resampling_moments(clean: Tensor, z: Tensor, abar: float, variance) -> tuple[Tensor, Tensor]:
    """Mean and variance of stochastic resampling: the product of two Gaussians (ReSample, proposition on resampling).

    Args:
        clean: ``zhat_0(y)``, consistent with the data. Noised to the level it is ``N(sqrt(abar) clean, 1 - abar)``.
        z: the DDIM iterate at that level, an observation of the same variable with this ``variance``, a number or
            ``(samples, 1, ...)``.
    """
    variance = torch.as_tensor(variance, dtype=z.dtype, device=z.device)
    total = variance + 1 - abar
    return (variance * abar**0.5 * clean + (1 - abar) * z) / total, variance * (1 - abar) / total


@ok.takes(clean=STATE, z=STATE, abar=SHARE, variance=ok.values(finite=False), fresh=STATE)
def resample(clean: Tensor, z: Tensor, abar: float, variance, fresh: Tensor) -> Tensor:
    """Stochastic resampling: a sample of ``resampling_moments``, from standard normal numbers ``fresh``."""
    mean, variance = resampling_moments(clean, z, abar, variance)
    return mean + variance.sqrt() * fresh


@dataclass(frozen=True)
class Adam:
    """Settings of one optimisation: step size and largest number of iterations."""

    rate: float = 1e-2
    iterations: int = 100

    def __post_init__(self):
        number("rate", self.rate, above=0), integer("iterations", self.iterations, at_least=0)


def rms(error: Tensor) -> Tensor:
    """Root mean square of each sample, ``(samples,)``."""
    return error.flatten(1).square().mean(1).sqrt()


@ok.takes(
    start=ok.tensor("samples ...", finite=False),
    forward=ok.function,
    operator=ok.kind(Operator, "an Operator"),
    y=ok.tensor("samples ...", finite=False),
    adam=ok.kind(Adam, "an Adam"),
    tolerance=lambda name, value, known: setting(name, value, at_least=0),
    prior=ok.optional(ok.kind(tuple, "a pair (sigma^2, v)")),
    check=ok.count(),
    pull=ok.optional(ok.function),
)
def minimise(
    start: Tensor,
    forward: Callable[[Tensor, Operator], Tensor],
    operator: Operator,
    y: Tensor,
    adam: Adam,
    tolerance: Setting,
    prior: tuple[float, Tensor] | None = None,
    check: int = 10,
    pull: Callable[[Tensor, Operator, Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Adam on ``1/2 |y - forward(x)|^2`` from ``start``, each sample until its own residual is within the tolerance.

    Args:
        forward: ``forward(x, operator)``, the prediction of ``y``; the operator is that of the samples in ``x``.
        tolerance: of the root mean square residual; a sample below it does not move. One for all, or
            one a sample; 0 for no early stop.
        prior: ``(sigma^2, v)``: minimise ``|y - forward(x)|^2 / sigma^2 + |x - start|^2 / v`` instead (over 2).
        check: iterations between two looks at who is finished; finished samples leave the batch.
        pull: ``pull(x, operator, error)``, the gradient of ``<forward(x), error>`` in ``x``; by default autograd's.

    Returns:
        The minimiser and the iterations each sample took, ``(samples,)``.
    """
    if isinstance(tolerance, Tensor) and len(tolerance) != len(start):
        raise ParameterError(f"tolerance must be one number or one for each of {len(start)}, got {len(tolerance)}.")
    done, used = start.clone(), torch.zeros(len(start), dtype=torch.long, device=start.device)
    alive = torch.arange(len(start), device=start.device)
    x, first, second, centre = start.clone(), torch.zeros_like(start), torch.zeros_like(start), start
    wide, count = (-1,) + (1,) * (start.ndim - 1), used
    if isinstance(tolerance, Tensor):
        tolerance = tolerance.to(start)
    for k in range(1, adam.iterations + 1):
        if pull is not None:
            error = forward(x, operator) - y
            slope = pull(x, operator, error)
        else:
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                error = forward(x, operator) - y
                (slope,) = torch.autograd.grad(error, x, error.detach())  # of 1/2 |error|^2
            x, error = x.detach(), error.detach()
        moving = rms(error) > tolerance
        if prior is not None:
            slope = slope / prior[0] + (x - centre) / (prior[1] if prior[1].ndim == 0 else prior[1][alive])
        first.lerp_(slope, 0.1), second.mul_(0.999).addcmul_(slope, slope, value=0.001)
        size = adam.rate / (1 - 0.9**k)
        move = first / ((second / (1 - 0.999**k)).sqrt_().add_(1e-8))
        x = torch.addcmul(x, move, moving.to(x.dtype).reshape(wide), value=-size)
        count = count + moving
        if (k % check == 0 or k == adam.iterations) and not bool(moving.all()):
            done[alive], used[alive] = x, count
            left = moving.nonzero().squeeze(1)
            if len(left) == 0:
                return done, used
            x, first, second, y, centre, count = (t[left] for t in (x, first, second, y, centre, count))
            tolerance = tolerance[left] if isinstance(tolerance, Tensor) else tolerance
            alive, operator = alive[left], operator.select(left)
    done[alive], used[alive] = x, count
    return done, used
