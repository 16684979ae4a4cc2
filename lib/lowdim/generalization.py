"""Generalisation error of least squares trained by gradient flow: the Marchenko-Pastur theory, and exact flow of draws.

A teacher ``y = <w*, x> + noise`` has N weights of variance SNR and noise of variance 1; inputs have entries of variance
1/N; a student starts from weights of variance INR. With ``load = P / N`` samples a weight and time in units of the
flow's own, ``dw/dt = X (y - X' w)``, every eigenvalue s of X X' has a mode with its own error, and for large N

    E_g(t) = 1 + int rho(s) [(SNR + INR) exp(-2 s t) + (1 - exp(-s t))^2 / s] ds

with the Marchenko-Pastur density rho (Advani, Saxe and Sompolinsky, 2020). Loads below 1 have a share 1 - load of modes
with s = 0 that never move. Simulated draws are solved in the eigenbasis as well: no steps are taken anywhere.
"""

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor

from lowdim import checks as ok
from lowdim.checks import ParameterError

F64 = torch.float64
LOADS = ok.values(above=0)
POINTS = ok.count(2)


def _list(values) -> Tensor:
    """A number, a list or a tensor as a tensor with one axis, in double precision."""
    return torch.as_tensor(values, dtype=F64).flatten()


def _times(name: str, value, known: dict) -> None:
    """Times from 0 to infinity: a number, a list or a tensor."""
    if isinstance(value, list | tuple) and all(isinstance(entry, int | float) for entry in value):
        value = torch.tensor(value, dtype=F64)
    ok.values(finite=False, at_least=0)(name, value, known)
    if isinstance(value, Tensor) and value.isnan().any():
        raise ParameterError(f"{name} must be numbers >= 0, got nan among them.")


# ---------------------------------------------------------------- Marchenko-Pastur


@ok.takes(load=LOADS)
def edges(load) -> tuple[Tensor, Tensor]:
    """The two ends of the bulk, ``(1 - sqrt(load))^2`` and ``(1 + sqrt(load))^2``, ``(loads,)`` each."""
    root = _list(load).sqrt()
    return (1 - root) ** 2, (1 + root) ** 2


@ok.takes(s=ok.values(at_least=0), load=ok.real(above=0))
def density(s, load: float) -> Tensor:
    """The continuous part of the Marchenko-Pastur density at eigenvalues ``s``; its mass is ``min(1, load)``."""
    s = torch.as_tensor(s, dtype=F64)
    low, high = edges(load)
    return ((high - s) * (s - low)).clamp(min=0).sqrt() / (2 * math.pi * s.clamp(min=1e-300))


@ok.takes(load=LOADS, points=POINTS)
def quadrature(load, points: int = 1000) -> tuple[Tensor, Tensor, Tensor]:
    """Nodes and weights ``(loads, points)`` for integrals over the bulk, and the mass at zero ``(loads,)``.

    The midpoint rule in theta after ``s = c + r cos(theta)``: it turns the square roots at the ends, and the 1/s that
    diverges at load 1, into smooth functions.
    """
    load = _list(load).unsqueeze(1)
    theta = (torch.arange(points, dtype=F64) + 0.5) * (math.pi / points)
    radius = 2 * load.sqrt()
    # (1 + cos) and (1 - sqrt(load))^2 apart: no cancellation near the lower end
    nodes = (1 - load.sqrt()) ** 2 + radius * 2 * torch.cos(theta / 2) ** 2
    weights = (radius * torch.sin(theta)) ** 2 / (2 * math.pi * nodes) * (math.pi / points)
    return nodes, weights, (1 - load[:, 0]).clamp(min=0)


def _integral(load, points: int, function: Callable[[Tensor], Tensor]) -> Tensor:
    """``int rho(s) function(s) ds`` over the bulk; ``function`` maps nodes ``(loads, 1, points)``."""
    nodes, weights, _ = quadrature(load, points)
    return (function(nodes.unsqueeze(1)) * weights.unsqueeze(1)).sum(2)


# ---------------------------------------------------------------- theory

SNR = dict(snr=ok.real(at_least=0), inr=ok.real(at_least=0))


@ok.takes(load=LOADS, times=_times, points=POINTS, **SNR)
def generalization_error(load, times, snr: float, inr: float = 0.0, points: int = 1000) -> Tensor:
    """E_g of gradient flow ``(loads, times)``, in units of the noise; ``math.inf`` is a time, too."""
    t = _list(times).view(1, -1, 1)
    left = lambda s: torch.exp(-s * t)
    bulk = _integral(load, points, lambda s: (snr + inr) * left(s) ** 2 + (1 - left(s)) ** 2 / s)
    frozen = (1 - _list(load)).clamp(min=0) * (snr + inr)
    return 1 + bulk + frozen.unsqueeze(1)


@ok.takes(load=LOADS, times=_times, points=POINTS, **SNR)
def training_error(load, times, snr: float, inr: float = 0.0, points: int = 1000) -> Tensor:
    """The mean squared error on the training samples ``(loads, times)``, in units of the noise."""
    t, load = _list(times).view(1, -1, 1), _list(load)
    bulk = _integral(load, points, lambda s: (s * (snr + inr) + 1) * torch.exp(-2 * s * t))
    return bulk / load.unsqueeze(1) + (1 - 1 / load).clamp(min=0).unsqueeze(1)


@ok.takes(load=LOADS, **SNR)
def late_error(load, snr: float, inr: float = 0.0) -> Tensor:
    """E_g after all time in closed form, ``(loads,)``; infinite at load 1."""
    load = _list(load)
    frozen = (1 - load).clamp(min=0)
    return torch.where(load == 1, math.inf, torch.where(load > 1, load / (load - 1), 1 / (1 - load))) + frozen * (
        snr + inr
    )


@ok.takes(load=LOADS, snr=ok.real(above=0), gamma=ok.optional(ok.real(above=0)), points=POINTS)
def ridge_error(load, snr: float, gamma: float | None = None, points: int = 1000) -> Tensor:
    """E_g of ridge regression with penalty ``gamma``, ``(loads,)``; None: the best one, 1 / SNR."""
    gamma = 1 / snr if gamma is None else gamma
    bulk = _integral(load, points, lambda s: (gamma**2 * snr + s) / (s + gamma) ** 2)[:, 0]
    return 1 + bulk + (1 - _list(load)).clamp(min=0) * snr


@ok.takes(s=ok.values(above=0), **SNR)
def mode_time(s, snr: float, inr: float = 0.0) -> Tensor:
    """When to stop the mode of an eigenvalue: its error is smallest at ``log(1 + (SNR + INR) s) / s``."""
    s = torch.as_tensor(s, dtype=F64)
    return torch.log1p((snr + inr) * s) / s


@ok.takes(load=LOADS, points=POINTS, **SNR)
def stopping(load, snr: float, inr: float = 0.0, points: int = 1000) -> tuple[Tensor, Tensor]:
    """The best time to stop and E_g there, ``(loads,)`` each.

    The smallest of 60 values over eight decades, then a golden-section search between its neighbours in log t.
    """
    load = _list(load)
    nodes, weights, _ = quadrature(load, points)
    frozen = (1 - load).clamp(min=0) * (snr + inr)

    def error(log_t):  # (loads, times)
        left = torch.exp(-nodes.unsqueeze(1) * log_t.exp().unsqueeze(2))
        return (((snr + inr) * left**2 + (1 - left) ** 2 / nodes.unsqueeze(1)) * weights.unsqueeze(1)).sum(2)

    grid = torch.linspace(math.log(1e-3), math.log(1e5), 60, dtype=F64)
    at = error(grid.expand(len(load), -1)).argmin(1).clamp(1, 58)
    low, high, gold = grid[at - 1], grid[at + 1], (math.sqrt(5) - 1) / 2
    for _ in range(32):
        inner = torch.stack([high - gold * (high - low), low + gold * (high - low)], 1)
        first, second = error(inner).unbind(1)
        low, high = torch.where(first < second, low, inner[:, 0]), torch.where(first < second, inner[:, 1], high)
    best = (low + high) / 2
    return best.exp(), 1 + frozen + error(best.unsqueeze(1))[:, 0]


# ---------------------------------------------------------------- draws


class Flow:
    """Gradient flow of linear least squares, ``dw/dt = A' (y - A w)``, exact at any time, for many runs at once.

    The solution is ``w(t) = w(0) + h(A' A) A' (y - A w(0))`` with a filter h of the eigenvalues s of the Gram matrix;
    ``decay`` is the filter of the flow, ``shrink`` that of ridge regression around w(0). The smaller one of A' A and
    A A' is diagonalised once. Eigenvalues below rounding count as zero, and those modes keep their start.

    Args:
        design: A, one row a sample, ``(runs, samples, weights)``.
        targets: y, ``(runs, samples)``.
        start: w(0), ``(runs, weights)``; None for zero.

    Attributes:
        values: the eigenvalues, rising, ``(runs, min(samples, weights))``.
    """

    @ok.takes(
        design=ok.tensor("runs samples weights"),
        targets=ok.tensor("runs samples"),
        start=ok.optional(ok.tensor("runs weights")),
    )
    def __init__(self, design: Tensor, targets: Tensor, start: Tensor | None = None):
        self.design, self.targets = design, targets
        self.start = design.new_zeros(len(design), design.shape[2]) if start is None else start
        self._tall = design.shape[1] >= design.shape[2]
        values, vectors = torch.linalg.eigh(design.mT @ design if self._tall else design @ design.mT)
        rounding = max(design.shape[1:]) * torch.finfo(design.dtype).eps
        self.values = values.clamp(min=0).masked_fill(values < rounding * values[:, -1:], 0)
        # w(t) = start + basis @ (h * coefficients)
        self.basis, self._vectors = vectors if self._tall else design.mT @ vectors, vectors
        self.coefficients = self._project(targets)

    def _project(self, targets: Tensor) -> Tensor:
        residual = (targets - (self.design @ self.start.unsqueeze(2))[..., 0]).unsqueeze(2)
        return self._vectors.mT @ (self.design.mT @ residual if self._tall else residual)

    @ok.takes(targets=ok.tensor("runs samples"))
    def again(self, targets: Tensor) -> "Flow":
        """The flow to other targets ``(runs, samples)`` of the same design, without a second diagonalisation."""
        if targets.shape != self.targets.shape:
            wanted, got = tuple(self.targets.shape), tuple(targets.shape)
            raise ParameterError(f"targets must be {wanted}, as the first ones, got {got}.")
        other = copy.copy(self)
        other.targets, other.coefficients = targets, self._project(targets)
        return other

    @ok.takes(times=_times)
    def decay(self, times) -> Tensor:
        """Gradient flow's filter ``(1 - exp(-s t)) / s`` at times ``(times,)``, ``(runs, modes, times)``."""
        s, t = self.values.unsqueeze(2), _list(times).to(self.values)
        late = torch.where(s > 0, s, 1.0)
        return torch.where(s > 0, -torch.expm1(-late * t) / late, 0.0)

    @ok.takes(penalties=ok.values(above=0))
    def shrink(self, penalties) -> Tensor:
        """Ridge regression's filter ``1 / (s + penalty)``, ``(runs, modes, penalties)``."""
        s, gamma = self.values.unsqueeze(2), _list(penalties).to(self.values)
        return torch.where(s > 0, 1 / (s + gamma), 0.0)

    @ok.takes(filters=ok.tensor("runs modes columns"))
    def weights(self, filters: Tensor) -> Tensor:
        """The weights for each filter, ``(runs, weights, columns)``."""
        if filters.shape[:2] != self.values.shape:
            wanted, got = tuple(self.values.shape), tuple(filters.shape)
            raise ParameterError(f"filters must have a value for each of the modes {wanted}, got {got}.")
        return self.start.unsqueeze(2) + self.basis @ (filters * self.coefficients)

    @ok.takes(weights=ok.tensor("runs weights columns"))
    def losses(self, weights: Tensor) -> Tensor:
        """Mean squared error on the training samples, ``(runs, columns)``."""
        if weights.shape[:2] != self.start.shape:
            runs, size = self.start.shape
            raise ParameterError(
                f"weights must have a row for each of {size} weights of {runs} runs, got {tuple(weights.shape)}."
            )
        return (self.targets.unsqueeze(2) - self.design @ weights).square().mean(1)


@ok.takes(samples=ok.count(), weights=ok.count(), runs=ok.count(), generator=ok.generator, **SNR)
def linear_draws(
    samples: int, weights: int, runs: int, snr: float, inr: float, generator, variances: Tensor | None = None
) -> tuple[Flow, Tensor]:
    """Draws of teacher, inputs, noise of variance 1 and start: their flow, and the teachers ``(runs, weights)``.

    Args:
        variances: of the input's entries in units of 1 / weights, ``(weights,)``; None: all are 1.

    Raises:
        ParameterError: variances that are not one for each weight.
    """
    draw = lambda *shape: torch.randn(runs, *shape, generator=generator, dtype=F64, device=generator.device)
    design = draw(samples, weights) / weights**0.5
    if variances is not None:
        ok.tensor("weights", at_least=0)("variances", variances, {"weights": weights})
        design = design * variances.sqrt()
    teacher = draw(weights) * snr**0.5
    targets = (design @ teacher.unsqueeze(2))[..., 0] + draw(samples)
    return Flow(design, targets, draw(weights) * inr**0.5), teacher
