"""Stability of aligned orbits of a deep linear network: measured by descent, and by linearisation across modes.

Learning rates are given as ``c = eta S / 2``, multiples of the edge ``2/S`` of each mode, so that one batch tests
every mode, seed and learning rate at once.
"""

import torch
from torch import Tensor

from lowdim import checks as ok
from lowdim.checks import integer
from lowdim.curvature import floquet_multipliers, lyapunov_exponent
from lowdim.descent import descend
from lowdim.factorization import ModeNetwork, edge, transverse_hessian
from lowdim.orbits import balanced_map, two_cycle


@ok.takes(
    c=ok.tensor("rates", at_least=0),
    sigma=ok.tensor("modes", above=0),
    depth=ok.count(2),
    seeds=ok.count(1),
    generator=ok.generator,
    unbalanced=ok.real(at_least=0),
)
def near_minimum(c: Tensor, sigma: Tensor, depth: int, seeds: int, generator, unbalanced: float) -> ModeNetwork:
    """Modes started near their balanced minimum, ``s = sigma^(1/L) (1 + unbalanced * N(0, 1))``, layer by layer.

    Args:
        c: ``(rates,)``; mode i runs at learning rate ``c * 2/S_i``.
        sigma: ``(modes,)``.

    Returns:
        A network with ``seeds * rates`` runs, seeds outermost.
    """
    runs = c.repeat(seeds)
    draw = dict(generator=generator, dtype=torch.float64, device=sigma.device)
    layers = sigma ** (1 / depth) * (1 + unbalanced * torch.randn(depth, len(runs), len(sigma), **draw))
    return ModeNetwork(layers, sigma, runs[:, None] * edge(sigma, depth))


@ok.takes(
    c=ok.tensor("rates", at_least=0),
    sigma=ok.tensor("modes", above=0),
    depth=ok.count(2),
    steps=ok.count(1),
    seeds=ok.count(1),
    generator=ok.generator,
    unbalanced=ok.real(at_least=0),
    last=ok.count(1),
)
def settle(
    c: Tensor, sigma: Tensor, depth: int, steps: int, *, seeds: int, generator, unbalanced: float = 0.1, last: int = 2
) -> Tensor:
    """The last end-to-end values of modes started near the minimum, ``(last, seeds, rates, modes)``."""
    integer("last", last, at_least=1, at_most=steps + 1)
    network = near_minimum(c, sigma, depth, seeds, generator, unbalanced)
    run = descend(network.step, network.state, steps, run_dim=1, record={"pi": network.product}, start=steps - last + 1)
    return run["pi"].reshape(last, seeds, len(c), len(sigma))


@ok.takes(
    sigma=ok.tensor("modes", above=0),
    depth=ok.count(2),
    seeds=ok.count(1),
    generator=ok.generator,
    half_width=ok.real(above=0, below=1),
    points=ok.count(2),
    steps=ok.count(2),
)
def onset(
    sigma: Tensor,
    depth: int,
    *,
    seeds: int,
    generator,
    half_width: float = 1e-3,
    points: int = 21,
    steps: int = 100_000,
) -> Tensor:
    """Where modes start to oscillate, as a multiple of ``2/S``: the first ``c`` of a grid around 1 with a swing left.

    A swing counts above ``1e-10 sigma`` after ``steps`` steps. Below the edge it shrinks by ``1 - 2 (1 - c)`` a
    step, so ``steps`` should be at least ten divided by the spacing of the grid.

    Returns:
        ``(seeds, modes)``; NaN if no point of the grid swings.
    """
    c = torch.linspace(1 - half_width, 1 + half_width, points, dtype=torch.float64)
    ends = settle(c, sigma, depth, steps, seeds=seeds, generator=generator, unbalanced=1e-3)
    swings = (ends[1] - ends[0]).abs() > 1e-10 * sigma
    first = torch.where(swings, c[None, :, None], torch.inf).amin(1)
    return torch.where(first.isinf(), torch.nan, first)


@ok.takes(
    c=ok.tensor("rates", at_least=0),
    sigma=ok.tensor("modes", above=0),
    depth=ok.count(2),
    seeds=ok.count(1),
    generator=ok.generator,
    steps=ok.count(2),
    floor=ok.real(at_least=0),
)
def two_step_gap_factor(
    c: Tensor, sigma: Tensor, depth: int, *, seeds: int, generator, steps: int = 600, floor: float = 1e-9
) -> Tensor:
    """Measured factor of the balancing gap over the last two steps at which it is above ``floor``.

    Returns:
        ``(seeds, rates, modes)``.
    """
    network = near_minimum(c, sigma, depth, seeds, generator, unbalanced=0.02)
    gap = descend(network.step, network.state, steps, run_dim=1, record={"gap": network.gap})["gap"]
    last = ((gap.abs() > floor) * torch.arange(len(gap))[:, None, None]).amax(0)
    factor = gap.gather(0, last[None])[0] / gap.gather(0, last[None] - 2)[0]
    return factor.reshape(seeds, len(c), len(sigma))


@ok.takes(ratio=ok.tensor(above=0), c=ok.tensor(at_least=0), depth=ok.count(2))
def rotation_multiplier(ratio: Tensor, c: Tensor, depth: int) -> Tensor:
    """Largest Floquet multiplier of a two-cycle for rotating the singular vectors of two modes into each other.

    Mode 1 has ``sigma = 1`` and runs on its two-cycle; mode 2 has ``sigma = ratio`` and rests at its target, or is on
    its own two-cycle beyond its edge (the better of the two relative phases counts). Above 1 the orbit is unstable
    in a matrix network, however stable it is as a pair of scalars. (Derived here, not in the paper.)

    Args:
        ratio, c: same shape ``(...)``.

    Returns:
        ``(...)`` moduli; rescaling layers against each other is neutral, so they are at least 1 up to rounding.
    """
    one, eta = torch.ones_like(c), c * edge(1.0, depth)
    identity = torch.eye(2 * depth, dtype=c.dtype, device=c.device)

    def layer_values(sigma):
        pair = two_cycle(eta, sigma, depth)
        return torch.where(pair.isnan(), sigma.unsqueeze(-1), pair) ** (1 / depth)

    first, second = layer_values(one), layer_values(ratio)
    moduli = []
    for phase in (0, 1):
        bends = [transverse_hessian(first[..., t], second[..., t - phase], one, ratio, depth) for t in (0, 1)]
        jacobians = torch.stack([identity - eta[..., None, None] * bend for bend in bends])
        moduli.append(floquet_multipliers(jacobians)[..., 0].abs())
    return torch.minimum(*moduli)


@ok.takes(
    eta=ok.tensor(at_least=0),
    sigma=ok.real(above=0),
    other=ok.real(above=0),
    depth=ok.count(2),
    generator=ok.generator,
    steps=ok.count(1),
    burn_in=ok.count(0),
)
def rotation_exponent(
    eta: Tensor, sigma: float, other: float, depth: int, *, generator, steps: int = 1500, burn_in: int = 2000
) -> Tensor:
    """Lyapunov exponent of rotations between a swinging mode ``sigma`` and a mode ``other`` at rest, shape of ``eta``.

    Works on any orbit, also a chaotic one: a random rotation is multiplied by ``I - eta H`` step by step.
    """
    rho = torch.full_like(eta, 0.9 * sigma ** (1 / depth))
    rest = torch.full_like(eta, other ** (1 / depth))
    for _ in range(burn_in):
        rho = balanced_map(rho, eta, sigma, depth)

    def carry(vector: Tensor) -> Tensor:
        nonlocal rho
        bend = transverse_hessian(rho, rest, sigma, other, depth) @ vector.unsqueeze(-1)
        rho = balanced_map(rho, eta, sigma, depth)
        return vector - eta.unsqueeze(-1) * bend.squeeze(-1)

    start = torch.randn(*eta.shape, 2 * depth, generator=generator, dtype=eta.dtype, device=eta.device)
    return lyapunov_exponent(carry, start, steps, burn_in=steps // 3)
