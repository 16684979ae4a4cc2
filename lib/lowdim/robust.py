"""Robust low-rank recovery: absolute errors, sub-gradient steps with their step rules, outliers and dense noise.

A symmetric matrix ``X* >= 0`` is seen through ``y_i = <A_i, X*> + s_i``, with a few arbitrary or many small ``s_i``.
The sub-gradient method of Ma and Fattahi (2023) fits ``U U^T``, with more columns than the rank, to the mean absolute
error:

    ``U <- U - eta_t S U``,   ``S = (1/m) sum_i sign(<A_i, U U^T> - y_i) A_i``

(the factor 2 of the sub-gradient is absorbed in ``eta_t``).
"""

import math

import torch
from torch import Tensor

from lowdim import checks as ok
from lowdim.checks import ParameterError, integer, number
from lowdim.sensing import SymmetricNetwork, SymmetricSensing, svec

RULES = ("geometric", "polyak")

# ---------------------------------------------------------------- noise


@ok.takes(shape=ok.sizes(1), p=ok.values(at_least=0, below=1), size=ok.values(at_least=0), generator=ok.generator)
def outliers(shape, p, size, generator: torch.Generator) -> Tensor:
    """Gaussian outliers: exactly ``round(p m)`` of the ``m`` entries on the last axis are ``N(0, size^2)``, others 0.

    Args:
        shape: ``(..., m)``.
        p, size: numbers, or tensors that broadcast to ``shape[:-1]``.

    Raises:
        ParameterError: a share outside [0, 1), or a negative size.
    """
    m, device = shape[-1], generator.device
    p, size = (torch.as_tensor(value, dtype=torch.float64, device=device) for value in (p, size))
    order = torch.rand(*shape, generator=generator, dtype=torch.float64, device=device).argsort(-1).argsort(-1)
    values = torch.randn(*shape, generator=generator, dtype=torch.float64, device=device)
    return torch.where(order < (p * m).round().unsqueeze(-1), values * size.unsqueeze(-1), 0.0)


@ok.takes(shape=ok.sizes(1), nu=ok.values(at_least=0), generator=ok.generator)
def dense_noise(shape, nu, generator: torch.Generator) -> Tensor:
    """Gaussian noise ``N(0, nu^2)`` on every measurement; ``nu`` broadcasts to ``shape[:-1]``."""
    nu = torch.as_tensor(nu, dtype=torch.float64, device=generator.device)
    draw = torch.randn(*shape, generator=generator, dtype=torch.float64, device=generator.device)
    return draw * nu.unsqueeze(-1)


# ---------------------------------------------------------------- the loss and the method


class AbsoluteSensing(SymmetricSensing):
    """The loss ``(1/m) sum_i |<A_i, W> - y_i|`` for ``y_i = <A_i, X*> + s_i``; ``sign(0) = 0`` in its sub-gradient.

    Residuals are computed as ``<A_i, W - X*> - s_i``: the same numbers without cancellation. So operators may be in
    single precision, which is twice as fast, while iterates stay in double: a residual then has a *relative* error of
    1e-7 however small ``W - X*`` is, and ``U <- (I - eta S) U`` multiplies from the left, which leaks nothing from
    the large columns of ``U`` into the tiny ones.

    Args:
        operators: ``svec`` of the ``A_i``, in groups, as for ``SymmetricSensing``.
        truth: ``X*``, ``(d, d)`` or ``(groups, d, d)``.
        noise: ``s``, ``(m,)`` for a single group, ``(groups, m)`` or ``(runs, m)``.
    """

    @ok.takes(
        operators=ok.tensor("m coordinates", "groups m coordinates"),
        truth=ok.tensor("... d d"),
        noise=ok.tensor("any", "rows any"),
    )
    def __init__(self, operators: Tensor, truth: Tensor, noise: Tensor):
        if noise.shape[-1] != operators.shape[-2]:
            raise ParameterError(
                f"noise must be (m,), (groups, m) or (runs, m), m = {operators.shape[-2]}, got {tuple(noise.shape)}."
            )
        super().__init__(operators, noise.to(operators.dtype))
        self.truth = truth.reshape(-1, 1, *truth.shape[-2:])
        if len(self.truth) not in (1, len(self.operators)) or self.truth.shape[-2:] != (self.n, self.n):
            raise ParameterError(f"truth must be (d, d) or (groups, d, d) with d = {self.n}, got {tuple(truth.shape)}.")
        clean = torch.bmm(svec(self.truth).to(operators.dtype).expand(len(self.operators), -1, -1), self.operators.mT)
        self.data = clean + self._y  # (groups, 1 or runs of a group, m): what the method sees

    def residual(self, product: Tensor) -> Tensor:
        grouped = product.unflatten(0, (len(self.operators), -1)) - self.truth
        return torch.bmm(self.vector(grouped.flatten(0, 1).to(self.operators.dtype)), self._turned).sub_(self._y)

    def direction(self, residual: Tensor, out: Tensor) -> Tensor:
        """``S = (1/m) sum_i sign(residual_i) A_i``, ``(runs, d, d)``; ``residual`` is overwritten."""
        vector = torch.bmm(residual.sign_(), self.operators).div_(self.m)
        return self.matrix(vector.to(out.dtype), out)

    def gradient(self, product: Tensor, out: Tensor) -> Tensor:
        return self.direction(self.residual(product), out)

    def loss(self, product: Tensor) -> Tensor:
        return self.residual(product).abs_().mean(-1).flatten().to(product.dtype)

    def squared(self) -> SymmetricSensing:
        """The same data with the loss ``1/(2m) sum_i (<A_i, W> - y_i)^2``, in double precision."""
        scale = self.m**-0.5
        y = (self.data.double() * scale).flatten(0, 1)
        return SymmetricSensing(self.operators.double() * scale, y)

    def _map_runs(self, change):
        raise ParameterError("runs of a sub-gradient method share operators and cannot leave the batch.")


class SubgradientNetwork(SymmetricNetwork):
    """The sub-gradient method on ``U U^T`` with a step that changes: ``U <- U - eta_t S(U) U``.

    Args:
        u: ``(runs, d, r')``, changed in place.
        problem: an ``AbsoluteSensing``.
        eta: the first step size, or one per run.
        rho: for ``"geometric"``: ``eta_t = eta rho^t``; a number or one per run, 1 for constant steps.
        rule: ``"geometric"``, or ``"polyak"`` for ``eta_t = eta f(U_t)``, which needs data without outliers.

    Raises:
        ParameterError: an unknown rule, ``rho`` outside (0, 1], or sizes that do not fit.
    """

    @ok.takes(
        u=ok.tensor("runs d r"),
        problem=ok.kind(AbsoluteSensing, "an AbsoluteSensing"),
        eta=ok.values(at_least=0),
        rho=ok.values(above=0, at_most=1),
        rule=ok.one_of(*RULES),
    )
    def __init__(self, u: Tensor, problem: AbsoluteSensing, eta, rho=1.0, rule: str = "geometric"):
        self.rule = rule
        self.layers = [u]
        self.rho = self._per_run("rho", rho)
        super().__init__(u, problem, eta)

    def _prepare(self) -> None:
        super()._prepare()
        self.rate = self.eta.clone()  # the step size of the next step

    @property
    def state(self) -> list[Tensor]:
        return [*self.layers, self.rate]

    def step(self) -> None:
        u, product = self.layers[0], self._product
        torch.bmm(u, u.mT, out=product)
        residual = self.problem.residual(product)
        if self.rule == "polyak":
            self.rate.copy_(self.eta * residual.abs().mean(-1).view_as(self.eta))
        change = torch.bmm(self.problem.direction(residual, product), u, out=self._change)
        u.addcmul_(change, self.rate, value=-1)
        if self.rule == "geometric":
            self.rate.mul_(self.rho)


# ---------------------------------------------------------------- starts and schedules


@ok.takes(
    problem=ok.kind(AbsoluteSensing, "an AbsoluteSensing"),
    columns=ok.counts(),
    runs=ok.count(1),
    alpha=ok.values(above=0),
)
def spectral_factors(problem: AbsoluteSensing, columns, runs: int, alpha) -> Tensor:
    """The small spectral start ``alpha B``: ``B`` from the largest eigenvalues of ``(1/m) sum_i sign(y_i) A_i``.

    Negative eigenvalues count as zero, and ``B B^T`` is scaled to spectral norm 1.

    Args:
        columns: how many eigenvectors, a number or ``(runs,)``; fewer ones are padded with zero columns.
        alpha: a number or one per run.

    Returns:
        ``(runs, d, columns.max())``.
    """
    ok.one_or_each("alpha", alpha, runs)
    vector = torch.bmm(problem.data.sign(), problem.operators).double()
    vector = vector.repeat(1, runs // len(vector), 1) if vector.shape[1] == 1 else vector
    values, vectors = torch.linalg.eigh(problem.matrix(vector, vector.new_empty(runs, problem.n, problem.n)))
    values, vectors = values.flip(-1).clamp(min=0), vectors.flip(-1)
    columns = torch.as_tensor(columns, device=values.device).reshape(-1)
    widest = integer("columns", int(columns.max()), at_least=1, at_most=problem.n)
    kept = (torch.arange(widest, device=values.device) < columns.unsqueeze(1)).to(values.dtype)
    b = vectors[..., :widest] * ((values / values[:, :1]).sqrt()[:, :widest] * kept).unsqueeze(1)
    return (b * torch.as_tensor(alpha, dtype=b.dtype, device=b.device).reshape(-1, 1, 1)).contiguous()


@ok.takes(alpha=ok.real(above=0), r=ok.count(1), stretch=ok.real(above=0))
def step_sum(alpha: float, r: int, stretch: float = 1.0) -> float:
    """Sum of all steps that a start of scale ``alpha`` needs, for ``r`` equal eigenvalues and Gaussian operators.

    An eigendirection grows at the rate ``sqrt(2/pi) sigma_i / ||X*||_F`` per unit of step: ``ln(1/alpha)`` over this,
    times 1.6 and plus 15 for convergence. ``stretch`` divides by what noise takes from the rate.
    """
    rate = math.sqrt(2 / math.pi) / math.sqrt(r)
    return stretch * (1.6 * max(math.log(1 / alpha), 0.0) / rate + 15)


@ok.takes(total=ok.real(above=0), eta=ok.real(above=0), last=ok.real(above=0, below=1))
def geometric(total: float, eta: float, last: float = 1e-7) -> tuple[float, int]:
    """``rho`` and the number of steps such that ``eta rho^t`` sums to ``total`` and ends at ``eta last``.

    Raises:
        ParameterError: a first step that is not below the sum.
    """
    number("eta (below the sum of all steps)", eta, above=0, below=total)
    rho = 1 - eta / total
    return rho, math.ceil(math.log(last) / math.log(rho))


# ---------------------------------------------------------------- what theory says


@ok.takes(
    error=ok.values(lists=False, above=0),
    p=ok.values(lists=False, at_least=0, at_most=1),
    size=ok.values(lists=False, at_least=0),
    nu=ok.values(lists=False, at_least=0),
)
def attenuation(error, p=0.0, size=0.0, nu=0.0):
    """``phi``: length of the mean of ``sign(<A, Delta> - s) A`` for ``||Delta||_F = error``, over ``sqrt(2/pi)``.

    Gaussian integration by parts gives ``E[sign(<A, Delta> - s) A] = phi Delta / ||Delta||_F`` with
    ``phi = sqrt(2/pi) E exp(-s^2 / (2 error^2))``. Here every ``s`` is ``N(0, nu^2)``, and a share ``p`` of them has an
    outlier ``N(0, size^2)`` added.
    """
    plain, heavy = (error**2 + nu**2) ** 0.5, (error**2 + nu**2 + size**2) ** 0.5
    return error * ((1 - p) / plain + p / heavy)
