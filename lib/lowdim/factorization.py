"""Deep matrix factorization: networks without activations, their closed-form gradients and their curvature.

A deep linear network is a product ``W_L ... W_1`` fitted to a target ``M`` by gradient descent on
``1/2 ||W_L ... W_1 - M||_F^2``. Two forms of it run here, both batched over runs (seeds x step sizes x ...):

* ``MatrixNetwork``: the factors themselves;
* ``ModeNetwork``: the reduction to scalars. While the singular vectors of all factors stay aligned with the target's,
  each singular mode is a product of ``L`` numbers and evolves alone (Ghosh et al. 2025, stationary set).

Both share prefix and suffix products between the gradients of the layers and work in place. Thresholds assume the
factor 1/2 in the loss.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lowdim import checks as ok
from lowdim.checks import ParameterError
from lowdim.networks import Factorization, MatrixNetwork  # noqa: F401  names of this module too

STARTS = ("zero-layer", "balanced")


# ---------------------------------------------------------------- targets and initial factors


@ok.takes(shape=ok.sizes(1), generator=ok.generator)
def haar(shape: Sequence[int], generator: torch.Generator, dtype=torch.float64) -> Tensor:
    """Orthogonal matrices ``(*batch, d, d)`` from the Haar measure: QR of a Gaussian, signs fixed by R's diagonal."""
    gauss = torch.randn(*shape, shape[-1], generator=generator, dtype=dtype, device=generator.device)
    q, r = torch.linalg.qr(gauss)
    return q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)


@ok.takes(sigma=ok.values(single=False, at_least=0), width=ok.count(1))
def spectrum_target(sigma: Sequence[float], width: int, rotations: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """A ``width x width`` target with the given singular values, diagonal or ``U diag(sigma) V^T``.

    Args:
        sigma: the non-zero singular values, at most ``width`` of them.
        rotations: ``U`` and ``V``, each ``(*batch, width, width)``; the result then is ``(*batch, width, width)``.

    Raises:
        ParameterError: more singular values than rows.
    """
    if len(sigma) > width:
        raise ParameterError(f"sigma must have at most {width} singular values, got {len(sigma)} for width {width}.")
    values = torch.zeros(width, dtype=torch.float64)
    values[: len(sigma)] = torch.tensor(list(sigma), dtype=torch.float64)
    if rotations is None:
        return torch.diag(values)
    u, v = rotations
    return (u * values.to(u.device)) @ v.mT


@ok.takes(depth=ok.count(2), runs=ok.count(1), width=ok.count(1), alpha=ok.real(above=0), start=ok.one_of(*STARTS))
def identity_layers(depth: int, runs: int, width: int, alpha: float, start: str = "zero-layer") -> list[Tensor]:
    """Factors ``alpha I``, first to last, each ``(runs, width, width)``; ``"zero-layer"`` sets the last one to zero."""
    layers = [alpha * torch.eye(width, dtype=torch.float64).repeat(runs, 1, 1) for _ in range(depth)]
    if start == "zero-layer":
        layers[-1].zero_()
    return layers


@ok.takes(depth=ok.count(2), runs=ok.count(1), modes=ok.count(1), alpha=ok.real(above=0), start=ok.one_of(*STARTS))
def mode_layers(depth: int, runs: int, modes: int, alpha: float, start: str = "zero-layer") -> Tensor:
    """The same start for the scalar reduction: ``(depth, runs, modes)``, layer 1 first."""
    layers = torch.full((depth, runs, modes), alpha, dtype=torch.float64)
    if start == "zero-layer":
        layers[-1] = 0.0
    return layers


@ok.takes(depth=ok.count(2), runs=ok.count(1), width=ok.count(1), scale=ok.real(above=0), generator=ok.generator)
def gaussian_layers(depth: int, runs: int, width: int, scale: float, generator: torch.Generator) -> list[Tensor]:
    """Factors with independent entries ``N(0, scale^2 / width)``, each ``(runs, width, width)``."""
    draw = torch.randn(depth, runs, width, width, generator=generator, dtype=torch.float64, device=generator.device)
    return list(draw.mul_(scale / math.sqrt(width)).unbind(0))


# ---------------------------------------------------------------- the networks


class ModeNetwork:
    """Gradient descent on singular modes: ``s_l <- s_l - eta (pi - sigma) prod_{k != l} s_k``.

    Source: Ghosh et al. 2025, dynamics on the singular-vector stationary set.

    Args:
        layers: ``(depth, runs, modes)``, changed in place by ``step``.
        sigma: target singular values, broadcastable to ``(runs, modes)``.
        eta: step sizes, broadcastable to ``(runs, modes)``; a ``(runs,)`` vector is taken as one per run.

    Raises:
        ParameterError: fewer than two layers, or shapes that do not fit.
    """

    run_dim = 1

    @ok.takes(layers=ok.tensor("depth runs modes"), sigma=ok.values(at_least=0), eta=ok.values(at_least=0))
    def __init__(self, layers: Tensor, sigma: Tensor, eta: Tensor | float):
        if len(layers) < 2:
            raise ParameterError(f"layers must be (depth >= 2, runs, modes), got {tuple(layers.shape)}.")
        shape = layers.shape[1:]
        eta = torch.as_tensor(eta, dtype=layers.dtype, device=layers.device)
        given = tuple(eta.shape)
        eta = eta.unsqueeze(-1) if eta.dim() == 1 else eta
        sigma = torch.as_tensor(sigma, dtype=layers.dtype, device=layers.device)
        try:
            self.eta, self.sigma = eta.expand(shape).contiguous(), sigma.expand(shape).contiguous()
        except RuntimeError as error:
            raise ParameterError(
                f"sigma {tuple(sigma.shape)} and eta {given} must fit (runs, modes) = {tuple(shape)}."
            ) from error
        self.layers = layers
        self._prefix = [layers[0]] + [torch.empty_like(layers[0]) for _ in layers[1:]]
        self._pull = [torch.empty_like(layers[0]) for _ in layers]

    @property
    def state(self) -> list[Tensor]:
        return [self.layers]

    def product(self) -> Tensor:
        """End-to-end singular values ``(runs, modes)``."""
        return self.layers.prod(0)

    def loss(self) -> Tensor:
        """``1/2 sum_i (pi_i - sigma_i)^2`` of each run, ``(runs,)``."""
        return 0.5 * (self.product() - self.sigma).square().sum(-1)

    def gap(self, upper: int = -1, lower: int = 0) -> Tensor:
        """Balancing gap ``s_upper^2 - s_lower^2`` between two layers, ``(runs, modes)``."""
        return self.layers[upper].square() - self.layers[lower].square()

    def step(self) -> None:
        """One step for all layers, runs and modes, in place."""
        layers, prefix, pull = self.layers, self._prefix, self._pull
        for l in range(1, len(layers)):
            torch.mul(prefix[l - 1], layers[l], out=prefix[l])  # s_1 ... s_l
        torch.sub(prefix[-1], self.sigma, out=pull[-1]).mul_(self.eta)  # eta (pi - sigma)
        for l in range(len(layers) - 1, 0, -1):
            torch.mul(pull[l], layers[l], out=pull[l - 1])  # eta (pi - sigma) s_L ... s_l
            layers[l].addcmul_(pull[l], prefix[l - 1], value=-1)
        layers[0].sub_(pull[0])


# ---------------------------------------------------------------- what theory says


@ok.takes(sigma=ok.values(lists=False, at_least=0), depth=ok.count(2))
def sharpness(sigma, depth: int):
    """Curvature of one mode at its balanced minimum, ``S = L sigma^(2 - 2/L)`` (Ghosh et al. 2025)."""
    return depth * sigma ** (2 - 2 / depth)


@ok.takes(sigma=ok.values(lists=False, above=0), depth=ok.count(2))
def edge(sigma, depth: int):
    """The learning rate ``2/S`` above which the balanced minimum of a mode is unstable."""
    return 2 / sharpness(sigma, depth)


@ok.takes(sigma=ok.values(single=False, at_least=0), width=ok.count(1), depth=ok.count(2))
def minimum_hessian_eigenvalues(sigma: Sequence[float], width: int, depth: int) -> Tensor:
    """All ``L d^2`` Hessian eigenvalues at the balanced minimum, falling.

    For a pair of modes ``(i, j)``: ``sum_l (sigma_i^(1-1/L-l/L) sigma_j^(l/L))^2``, ``l = 0..L-1``, with ``0^0 = 1``;
    all others are zero (Ghosh et al. 2025, lemma on the sharpness of the minimum; checked against autograd).
    """
    if len(sigma) > width:
        raise ParameterError(f"sigma must have at most {width} singular values, got {len(sigma)} for width {width}.")
    root = torch.zeros(width, dtype=torch.float64)
    root[: len(sigma)] = torch.tensor(list(sigma), dtype=torch.float64) ** (1 / depth)
    power = torch.stack([root**l for l in range(depth)])  # torch has 0^0 = 1
    pairs = torch.einsum("li,lj->ij", power.flip(0).square(), power.square())
    zeros = torch.zeros(depth * width**2 - width**2, dtype=torch.float64)
    return torch.cat([pairs.flatten(), zeros]).sort(descending=True).values


@ok.takes(
    product=ok.tensor(finite=False),
    sigma=ok.values(lists=False, at_least=0),
    eta=ok.values(lists=False, at_least=0),
    s_upper=ok.tensor(finite=False),
    s_lower=ok.tensor(finite=False),
)
def gap_factor(product: Tensor, sigma, eta, s_upper: Tensor, s_lower: Tensor) -> Tensor:
    """What one step multiplies the balancing gap by: ``1 - eta^2 (pi - sigma)^2 pi^2 / (s_j s_k)^2``.

    Exact for gradient descent; gradient flow keeps the gap (factor 1).
    """
    return 1 - (eta * (product - sigma) * product / (s_upper * s_lower)) ** 2


@ok.takes(sigma=ok.real(above=0), depth=ok.count(2), alpha=ok.real(above=0), eta=ok.real(above=0))
def escape_steps(sigma: float, depth: int, alpha: float, eta: float) -> float:
    """About how many steps a mode needs to leave the saddle from ``mode_layers(..., "zero-layer")``.

    The zero layer reaches ``alpha`` after ``1/(eta sigma alpha^(L-2))`` steps; then the mode grows like
    ``rho' = eta sigma rho^(L-1)`` (gradient flow, small ``rho``).
    """
    top = sigma ** (1 / depth)
    fill = alpha ** (2 - depth)
    grow = math.log(top / alpha) if depth == 2 else (fill - top ** (2 - depth)) / (depth - 2)
    return (fill + max(grow, 0.0)) / (eta * sigma)


@ok.takes(
    a=ok.tensor(finite=False),
    b=ok.tensor(finite=False),
    sigma_a=ok.values(lists=False, finite=False),
    sigma_b=ok.values(lists=False, finite=False),
    depth=ok.count(2),
)
def transverse_hessian(a: Tensor, b: Tensor, sigma_a, sigma_b, depth: int) -> Tensor:
    """Hessian of the loss for rotating the singular vectors of two balanced modes into each other.

    All layers are ``diag(a, b)``. The perturbation puts ``x_l`` above and ``y_l`` below the diagonal of layer ``l``;
    to second order the loss is a quadratic form in ``(x_1..x_L, y_1..y_L)``, whose matrix this is. Gradient descent
    multiplies the perturbation by ``I - eta H``. (Derived here, not in the paper; checked against autograd.)

    Args:
        a, b: per-layer values ``rho`` of the two modes, same shape ``(...)``.
        sigma_a, sigma_b: their targets, broadcastable to ``(...)``.

    Returns:
        ``(..., 2L, 2L)``.
    """
    r_a, r_b = a**depth - sigma_a, b**depth - sigma_b
    power_a = torch.stack([a**k for k in range(depth)], -1)
    power_b = torch.stack([b**k for k in range(depth)], -1)
    u = power_a.flip(-1) * power_b  # how x_l moves the upper corner: a^(L-l) b^(l-1)
    upper = u.unsqueeze(-1) * u.unsqueeze(-2)
    v = u.flip(-1)  # how y_l moves the lower corner
    lower = v.unsqueeze(-1) * v.unsqueeze(-2)
    cross = torch.zeros_like(upper)
    for l in range(depth):
        for m in range(depth):
            between = abs(l - m) - 1  # layers between the two
            if l > m:
                cross[..., l, m] = r_a * power_a[..., depth - 2 - between] * power_b[..., between]
            elif l < m:
                cross[..., l, m] = r_b * power_b[..., depth - 2 - between] * power_a[..., between]
    return torch.cat([torch.cat([upper, cross], -1), torch.cat([cross.mT, lower], -1)], -2)


@ok.takes(
    rho=ok.tensor("... modes", finite=False),
    sigma=ok.tensor("... modes", at_least=0),
    depth=ok.count(2),
    width=ok.count(1),
)
def balanced_top_eigenvalue(rho: Tensor, sigma: Tensor, depth: int, width: int) -> Tensor:
    """Largest Hessian eigenvalue where every layer is ``diag(rho)``, on or off the minimum.

    The Hessian splits into one block per mode, whose eigenvalues are
    ``L rho^(2L-2) + (L-1) (rho^L - sigma) rho^(L-2)`` (once) and ``-(rho^L - sigma) rho^(L-2)`` (``L - 1`` times),
    and one block per pair of modes, which ``transverse_hessian`` gives.

    Args:
        rho: ``(..., modes)`` per-layer singular values.
        sigma: ``(..., modes)`` their targets.
        width: size of the layers; modes beyond those given are zero.

    Returns:
        ``(...)``.
    """
    if width > rho.shape[-1]:  # one zero mode stands for all of them
        rho = torch.cat([rho, torch.zeros_like(rho[..., :1])], -1)
        sigma = torch.cat([sigma, torch.zeros_like(sigma[..., :1])], -1)
    pull = (rho**depth - sigma) * rho ** (depth - 2)
    along = depth * rho ** (2 * depth - 2) + (depth - 1) * pull
    best = torch.maximum(along, -pull).amax(-1)
    for i in range(rho.shape[-1]):
        for j in range(i):
            block = transverse_hessian(rho[..., i], rho[..., j], sigma[..., i], sigma[..., j], depth)
            best = torch.maximum(best, torch.linalg.eigvalsh(block)[..., -1])
    return best
