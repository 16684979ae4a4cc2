"""One singular mode with equal layers is a map of the line: its fixed points, cycles and route to chaos.

With every layer equal to ``rho``, gradient descent is ``rho <- rho - eta (rho^L - sigma) rho^(L-1)``. In the unit
``rho = sigma^(1/L) u`` it depends on the depth and on ``c = eta S / 2`` alone, where ``S = L sigma^(2-2/L)``:
``u <- u - (2c/L)(u^L - 1) u^(L-1)``. The minimum ``u = 1`` is stable for ``c < 1``.
"""

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor

from lowdim import checks as ok
from lowdim.checks import ParameterError
from lowdim.factorization import sharpness

CYCLE_LIMIT = 1.5  # c up to which the 2-cycle is looked for; it is unstable from about 1.24


@ok.takes(
    rho=ok.values(lists=False, finite=False),
    eta=ok.values(lists=False, finite=False),
    sigma=ok.values(lists=False, finite=False),
    depth=ok.count(2),
)
def balanced_map(rho, eta, sigma, depth: int):
    """One step of gradient descent for a balanced mode (Ghosh et al. 2025); shapes broadcast."""
    return _map(rho, eta, sigma, depth)


@ok.takes(
    rho=ok.values(lists=False, finite=False),
    eta=ok.values(lists=False, finite=False),
    sigma=ok.values(lists=False, finite=False),
    depth=ok.count(2),
)
def balanced_slope(rho, eta, sigma, depth: int):
    """Derivative of ``balanced_map`` in ``rho``."""
    return _slope(rho, eta, sigma, depth)


def _map(rho, eta, sigma, depth: int):
    return rho - eta * (rho**depth - sigma) * rho ** (depth - 1)


def _slope(rho, eta, sigma, depth: int):
    return 1 - eta * ((2 * depth - 1) * rho ** (2 * depth - 2) - (depth - 1) * sigma * rho ** (depth - 2))


@ok.takes(eta=ok.values(at_least=0), sigma=ok.values(above=0), depth=ok.count(2))
def two_cycle(eta: Tensor, sigma: Tensor, depth: int) -> Tensor:
    """The two end-to-end values between which a mode alternates just above its edge of stability.

    They are ``rho^L`` at the roots, other than ``rho = sigma^(1/L)``, of
    ``rho^L (1 + z^(2L-1)) / (1 + z^(L-1)) = sigma`` with ``z = 1 + eta (sigma - rho^L) rho^(L-2)``
    (Ghosh et al. 2025, theorem 1; no factor L in ``z``).

    Args:
        eta, sigma: broadcastable tensors ``(...)``.

    Returns:
        ``(..., 2)``, low value first; NaN where ``c = eta S / 2`` is not in (1, 1.5].
    """
    eta, sigma = torch.broadcast_tensors(
        torch.as_tensor(eta, dtype=torch.float64), torch.as_tensor(sigma, dtype=torch.float64)
    )
    c = eta * sharpness(sigma, depth) / 2
    rate = 2 * c / depth

    def excess(u):
        z = 1 + rate * (1 - u**depth) * u ** (depth - 2)
        return u**depth * (1 + z ** (2 * depth - 1)) / (1 + z ** (depth - 1)) - 1

    inside = (c > 1) & (c <= CYCLE_LIMIT)
    low = torch.full_like(c, 1e-3)
    high = 1 - 0.05 * (c - 1).clamp(min=1e-30).sqrt()  # below the trivial root, above the wanted one
    for _ in range(60):  # bisection: excess < 0 left of the root, > 0 between it and the trivial one
        middle = (low + high) / 2
        left = excess(middle) < 0
        low, high = torch.where(left, middle, low), torch.where(left, high, middle)
    u = (low + high) / 2
    pair = torch.stack([u, _map(u, rate, torch.ones_like(u), depth)], -1) ** depth * sigma.unsqueeze(-1)
    return torch.where(inside.unsqueeze(-1), pair, torch.full_like(pair, float("nan")))


@ok.takes(depth=ok.count(2), doublings=ok.count(0, 7))
def period_doubling(depth: int, doublings: int = 5) -> np.ndarray:
    """The values of ``c`` at which period ``2, 4, 8, ...`` is born, ``(doublings + 1,)``, the first being 1.

    Each is where the multiplier of the cycle before reaches -1, found by a root search on the cycle itself.

    Raises:
        ParameterError: ``depth < 2``, or more than 7 doublings (beyond that float64 does not separate them).
    """
    born = [1.0]
    step = 0.2  # how far to the next threshold; it shrinks by about Feigenbaum's constant, 4.669
    for k in range(1, doublings + 1):
        c, u = born[-1] + step / 4, _critical_point(depth)
        for _ in range(4000):  # the orbit of the critical point finds the attracting cycle
            u = _map(u, 2 * c / depth, 1.0, depth)
        u, multiplier = _cycle(c, u, depth, 2**k)
        while multiplier > -1:  # follow this cycle upwards until it has lost stability
            before, start = c, u
            c += step / 16
            u, multiplier = _cycle(c, start, depth, 2**k)
        lost = brentq(lambda c, u=start, p=2**k: _cycle(c, u, depth, p)[1] + 1, before, c, xtol=1e-15, rtol=1e-14)
        step = (lost - born[-1]) / 4.5
        born.append(lost)
    return np.array(born)


def _critical_point(depth: int) -> float:
    """Where the unit map has slope zero at ``c = 1``, below the minimum."""
    return ((depth - 1) / (2 * depth - 1)) ** (1 / depth)


def _cycle(c: float, u: float, depth: int, period: int) -> tuple[float, float]:
    """The cycle of the given period near ``u``, by Newton's method, and the product of the slopes along it."""
    rate = 2 * c / depth
    for _ in range(50):
        after, slope = u, 1.0
        for _ in range(period):
            slope *= _slope(after, rate, 1.0, depth)
            after = _map(after, rate, 1.0, depth)
        change = (after - u) / (slope - 1)
        u -= change
        if abs(change) < 1e-15:
            break
    return u, slope


@ok.takes(eta=ok.tensor(at_least=0), sigma=ok.real(above=0), depth=ok.count(2), steps=ok.count(1), burn_in=ok.count(0))
def balanced_lyapunov(eta: Tensor, sigma: float, depth: int, steps: int = 20_000, burn_in: int = 2_000) -> Tensor:
    """Lyapunov exponent ``mean log |slope|`` of the balanced mode, shape of ``eta``; NaN where the orbit is lost.

    An orbit is lost when it leaves every bound or lands on the saddle at zero.
    """
    rho = torch.full_like(eta, 0.9 * sigma ** (1 / depth))
    total = torch.zeros_like(eta)
    for t in range(burn_in + steps):
        if t >= burn_in:
            total += _slope(rho, eta, sigma, depth).abs_().log_()
        rho = _map(rho, eta, sigma, depth)
    return torch.where(torch.isfinite(rho) & (rho.abs() > 1e-9), total / steps, torch.nan)


@ok.takes(series=ok.tensor("times", "times ...", finite=False), max_period=ok.count(1), tolerance=ok.real(above=0))
def detect_period(series: Tensor, max_period: int = 32, tolerance: float = 1e-6) -> Tensor:
    """Smallest ``p`` with ``|x_t - x_(t-p)| < tolerance`` at all recorded times; 0 if there is none.

    Args:
        series: ``(times, ...)``, consecutive iterates after the transient; at least ``2 max_period`` of them.

    Returns:
        ``(...)`` integer tensor; 1 for a converged run.

    Raises:
        ParameterError: too few iterates for the longest period.
    """
    if len(series) < 2 * max_period:
        raise ParameterError(
            f"series must be at least twice as long as max_period: a period of up to {max_period} needs "
            f"{2 * max_period} iterates, got {len(series)}."
        )
    found = torch.zeros(series.shape[1:], dtype=torch.long, device=series.device)
    for p in range(max_period, 0, -1):
        same = ((series[p:] - series[:-p]).abs() < tolerance).all(0)
        found[same] = p
    return found
