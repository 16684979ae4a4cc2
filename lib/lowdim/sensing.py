"""Low-rank recovery with two factors: one factor used twice, ``X X^T``, or two, ``F G^T``.

Gradient descent on ``1/4 ||A(X X^T - M)||^2`` and on ``1/2 ||A(F G^T - M)||^2`` (Xiong, Ding and Du 2024), for any
problem of this library: its gradient ``R = A^T A(W - M)`` in the product ``W`` is all that a step needs,

    ``X <- X - eta R X``         and         ``F <- F - eta R G,  G <- G - eta R^T F``  (at the same time).

The second is a network of two layers, ``W_1 = G^T`` and ``W_2 = F``, so ``MatrixNetwork`` runs it.
"""

import math

import torch
from torch import Tensor

from lowdim import checks as ok
from lowdim.checks import ParameterError
from lowdim.networks import Factorization, MatrixNetwork, Problem

THIN_RUNS = 8  # measured: with fewer runs, fewer calls are worth more than fewer operations

# ---------------------------------------------------------------- the trainers


class SymmetricNetwork(MatrixNetwork):
    """Gradient descent on one factor: ``X <- X - eta R(X X^T) X``.

    Args:
        x: ``(runs, n, k)``, changed in place by ``step``.
        problem: with symmetric gradients, such as ``Factorization`` of a symmetric target or ``SymmetricSensing``. Its
            ``loss`` is reported as it is; the step is minus ``eta`` times the gradient of half of it.
        eta: one step size, or one per run.

    Raises:
        ParameterError: ``x`` is not three-dimensional, or sizes do not fit.
    """

    @ok.takes(x=ok.tensor("runs n k"), problem=ok.has("gradient", "fits"), eta=ok.values(at_least=0))
    def __init__(self, x: Tensor, problem: Problem, eta):
        problem.fits((len(x), x.shape[1], x.shape[1]))
        self.layers, self.problem, self.scale = [x], problem, [1.0]
        self.eta = self._per_run("eta", eta)
        self.runs = torch.arange(len(x), device=x.device)
        self._whole = None
        self._prepare()

    def _prepare(self) -> None:
        x = self.layers[0]
        self._product = x.new_empty(len(x), x.shape[1], x.shape[1])
        self._change = torch.empty_like(x)
        shared = type(self.problem) is Factorization and self.problem.target.dim() == 2 and not self.problem.mean
        self._thin = shared and len(x) >= THIN_RUNS and 2 * x.shape[2] <= x.shape[1]

    def product(self) -> Tensor:
        """``X X^T``, ``(runs, n, n)``."""
        return self.layers[0] @ self.layers[0].mT

    def step(self) -> None:
        x, product = self.layers[0], self._product
        if self._thin:  # R X = X (X^T X) - M X: no n x n matrix, and one product serves all runs
            moved = (x.mT.reshape(-1, x.shape[1]) @ self.problem.target).view(len(x), x.shape[2], -1)
            change = torch.bmm(x, x.mT @ x, out=self._change).sub_(moved.mT)
            x.addcmul_(change, self.eta, value=-1)
            return
        torch.bmm(x, x.mT, out=product)
        self.problem.gradient(product, out=product)
        x.addcmul_(torch.bmm(product, x, out=self._change), self.eta, value=-1)


@ok.takes(
    f=ok.tensor("runs n k"), g=ok.tensor("runs m k"), problem=ok.has("gradient", "fits"), eta=ok.values(at_least=0)
)
def asymmetric(f: Tensor, g: Tensor, problem: Problem, eta) -> MatrixNetwork:
    """Simultaneous gradient descent on ``F G^T``; ``f (runs, n, k)`` is changed in place, ``g (runs, n', k)`` copied.

    Raises:
        ParameterError: widths ``k`` that differ, or sizes that do not fit the problem.
    """
    return MatrixNetwork([g.mT.contiguous(), f], problem, eta)


@ok.takes(network=ok.has("layers"))
def factors(network: MatrixNetwork) -> tuple[Tensor, Tensor]:
    """``F`` and ``G`` of an asymmetric network, views into its state."""
    return network.layers[1], network.layers[0].mT


@ok.takes(f=ok.tensor("... n k", finite=False), g=ok.tensor("... m k", finite=False))
def imbalance(f: Tensor, g: Tensor) -> Tensor:
    """``Delta = F^T F - G^T G``, ``(runs, k, k)``: a step changes it by ``O(eta^2)`` only."""
    return f.mT @ f - g.mT @ g


# ---------------------------------------------------------------- starts


@ok.takes(runs=ok.count(1), n=ok.count(1), k=ok.count(1), alpha=ok.values(at_least=0), generator=ok.generator)
def gaussian_factors(runs: int, n: int, k: int, alpha, generator: torch.Generator) -> Tensor:
    """Factors ``(runs, n, k)`` with independent entries ``N(0, alpha^2 / n)``; ``alpha`` a number or one per run."""
    draw = torch.randn(runs, n, k, generator=generator, dtype=torch.float64, device=generator.device)
    ok.one_or_each("alpha", alpha, runs)
    scale = torch.as_tensor(alpha, dtype=draw.dtype, device=draw.device).reshape(-1, 1, 1)
    return draw.mul_(scale / math.sqrt(n))


@ok.takes(v=ok.tensor("n r", "runs n r"), factor=ok.tensor("runs n k"))
def signal_rows(v: Tensor, factor: Tensor) -> Tensor:
    """The same factor in fewer rows, when ``M = V diag(sigma) V^T`` is fully observed: exact for the whole descent.

    Write ``F = V F_s + F_perp``. Both updates only ever multiply ``F_perp`` from the right, so with
    ``F_perp = Q T`` (QR) the columns of ``Q`` stay and ``n - r`` rows become the ``k`` rows of ``T``. Norms of the
    residual and ``F^T F`` do not change. The target becomes ``diag(sigma, 0)`` of size ``r + k``.

    Args:
        v: ``(n, r)`` or ``(runs, n, r)`` with orthonormal columns.
        factor: ``(runs, n, k)``.

    Returns:
        ``(runs, r + min(n, k), k)``: ``F_s`` above ``T``.
    """
    signal = v.mT @ factor
    _, t = torch.linalg.qr(factor - v @ signal)
    return torch.cat([signal, t], 1)


# ---------------------------------------------------------------- one modified step


@ok.takes(f=ok.tensor("runs n k"), g=ok.tensor("runs m k"), beta=ok.values(above=0))
def rebalanced(f: Tensor, g: Tensor, beta) -> tuple[Tensor, Tensor]:
    """The modified step: ``F = P S Q^T`` (thin SVD) becomes ``beta P``, and ``G`` becomes ``G Q S / beta``.

    The product ``F G^T`` is unchanged and ``F^T F = beta^2 I``, so the rest shrinks by ``1 - eta beta^2`` a step.

    Args:
        f, g: ``(runs, n, k)`` with ``n >= k``.
        beta: a number, or one per run.
    """
    ok.one_or_each("beta", beta, len(f))
    p, s, qt = torch.linalg.svd(f, full_matrices=False)
    beta = torch.as_tensor(beta, dtype=f.dtype, device=f.device).reshape(-1, 1, 1)
    return beta * p, (g @ qt.mT) * s.unsqueeze(1) / beta


@ok.takes(eta=ok.real(above=0), sigma=ok.real(above=0))
def beta_range(eta: float, sigma: float) -> tuple[float, float]:
    """Between which values of ``beta`` the descent after the modified step is stable.

    At the solution mode ``sigma`` has factors ``beta`` and ``sigma / beta``; its curvature is the sum of their squares,
    which must stay below ``2 / eta`` (derived here).

    Raises:
        ParameterError: ``eta sigma >= 1``, where no value is stable.
    """
    if eta * sigma >= 1:
        raise ParameterError(f"eta must be below 1 / sigma = {1 / sigma:g}, got {eta!r}.")
    root = math.sqrt(eta**-2 - sigma**2)
    return math.sqrt(sigma**2 / (1 / eta + root)), math.sqrt(1 / eta + root)


# ---------------------------------------------------------------- closed forms and fits


@ok.takes(s0=ok.values(lists=False, at_least=0), eta=ok.real(above=0), t=ok.values(lists=False, at_least=0))
def shrinking(s0, eta: float, t):
    """Squared singular value of a surplus direction of ``X``: ``s_0 / (1 + 2 eta s_0 t)``.

    The continuous form of ``s <- s (1 - eta s)^2``, which tends to ``1 / (2 eta t)``.
    """
    return s0 / (1 + 2 * eta * s0 * t)


@ok.takes(
    steps=ok.tensor("records", floating=False),
    values=ok.tensor("records runs", finite=False),
    high=ok.real(above=0),
    low=ok.real(at_least=0),
)
def decay_rate(steps: Tensor, values: Tensor, high: float, low: float) -> Tensor:
    """Rate of exponential decay for each run: minus the slope of ``ln(values)`` against the step.

    Fitted by least squares to the second half, in time, of the records between ``high`` and ``low``; up to the first
    one below ``low``, so that rounding errors do not count. NaN with fewer than five of them.

    Args:
        steps: ``(records,)``; values: ``(records, runs)``.
    """
    steps = steps.to(values.dtype).unsqueeze(1)
    used = (values < high) & ~(values < low).cummax(0).values
    first = torch.where(used, steps, torch.inf).amin(0)
    last = torch.where(used, steps, -torch.inf).amax(0)
    weight = (used & (steps >= (first + last) / 2)).to(values.dtype)
    count = weight.sum(0)
    logs = values.clamp(min=torch.finfo(values.dtype).tiny).log()
    t = (steps - (weight * steps).sum(0) / count) * weight
    rate = -(t * logs).sum(0) / (t * t).sum(0)
    return torch.where(count >= 5, rate, torch.nan)


@ok.takes(x=ok.tensor("points", floating=False, above=0), values=ok.tensor("points runs", finite=False))
def power_law(x: Tensor, values: Tensor) -> Tensor:
    """Slope of ``ln(values)`` against ``ln(x)`` by least squares: ``x (points,)``, ``values (points, runs)``."""
    logs = x.to(values.dtype).log()
    centred = (logs - logs.mean()).unsqueeze(1)
    return (centred * values.log()).sum(0) / centred.square().sum()


# ---------------------------------------------------------------- measurements of symmetric matrices


@ok.takes(matrix=ok.tensor("... n n", finite=False))
def svec(matrix: Tensor) -> Tensor:
    """The symmetric part as a vector: ``(..., n, n)`` to ``(..., n(n+1)/2)``, off-diagonals times ``sqrt 2``.

    Inner products are kept: ``<A, W> = svec(A) . svec(W)`` for symmetric ``W``. For a Gaussian matrix ``A`` with
    entries N(0, 1) the entries of ``svec(A)`` are N(0, 1) and independent as well.
    """
    rows, columns, scale = _triangle(matrix.shape[-1], matrix)
    return 0.5 * (matrix[..., rows, columns] + matrix[..., columns, rows]) * scale


def _triangle(n: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, columns and scale ``(1 or sqrt 2)`` of the entries on and below the diagonal."""
    rows, columns = torch.tril_indices(n, n, device=like.device)
    scale = torch.where(rows == columns, 1.0, 2.0).to(like.dtype).sqrt()
    return rows, columns, scale


class SymmetricSensing(Problem):
    """Inner products of symmetric products ``X X^T``: the loss is ``1/2 sum_i (<A_i, W> - y_i)^2``.

    Its gradient ``sum_i (<A_i, W> - y_i) A_i`` is symmetric. Runs come in groups, those of a group sharing operators:
    one matrix product serves them all. With more measurements than coordinates, the gradient uses ``sum_i A_i A_i^T``
    instead of the operators.

    Args:
        operators: ``svec`` of the ``A_i``, ``(m, n(n+1)/2)`` for all runs or ``(groups, m, n(n+1)/2)``; run ``j`` of
            ``runs`` is in group ``j // (runs / groups)``.
        measurements: ``(m,)`` for a single group, ``(groups, m)`` or ``(runs, m)``.

    Raises:
        ParameterError: no measurement, a length that is not ``n(n+1)/2``, or shapes that do not fit each other.
    """

    blocked = False

    @ok.takes(operators=ok.tensor("m coordinates", "groups m coordinates"), measurements=ok.tensor("any", "rows any"))
    def __init__(self, operators: Tensor, measurements: Tensor):
        given = tuple(operators.shape)
        operators = operators.unsqueeze(0) if operators.dim() == 2 else operators
        length = operators.shape[-1]
        self.n = round((math.sqrt(8 * length + 1) - 1) / 2)
        if operators.dim() != 3 or self.n * (self.n + 1) // 2 != length:
            raise ParameterError(f"operators must be (groups, m, n(n+1)/2) or (m, n(n+1)/2), got {given}.")
        self.m = operators.shape[1]
        if measurements.shape[-1] != self.m or (measurements.dim() == 2 and len(measurements) % len(operators)) or (
            measurements.dim() == 1 and len(operators) > 1):  # fmt: skip
            raise ParameterError(
                f"measurements must be (m,), (groups, m) or (runs, m) with m = {self.m} and {len(operators)} groups, "
                f"got {tuple(measurements.shape)}."
            )
        self.operators, self.measurements = operators, measurements
        self._turned = operators.mT.contiguous()  # faster for a product with few rows
        self._y = measurements.view(len(operators), -1, self.m)  # (groups, 1 or runs of a group, m)
        self._gram = None
        if self.m > length and type(self) is SymmetricSensing:
            self._gram, self._pulled = self._turned @ operators, self._y @ operators
        rows, columns, self._scale = _triangle(self.n, operators)
        self._lower = rows * self.n + columns
        spread = torch.empty(self.n, self.n, dtype=torch.long, device=operators.device)
        spread[rows, columns] = spread[columns, rows] = torch.arange(length, device=operators.device)
        self._spread = spread.flatten()

    def fits(self, shape):
        runs, *size = shape
        if size != [self.n, self.n] or runs % len(self.operators) or len(self.operators) * self._y.shape[1] not in (
            runs, len(self.operators)):  # fmt: skip
            raise ParameterError(
                f"operators {tuple(self.operators.shape)} and measurements {tuple(self.measurements.shape)} do not fit "
                f"{runs} products of size {size}."
            )

    def vector(self, product: Tensor) -> Tensor:
        """``svec`` of symmetric products by group, ``(groups, runs of a group, n(n+1)/2)``."""
        flat = product.reshape(len(product), -1).index_select(1, self._lower).mul_(self._scale)
        return flat.view(len(self.operators), -1, flat.shape[1])

    def residual(self, product: Tensor) -> Tensor:
        """``<A_i, W> - y_i``, ``(groups, runs of a group, m)``."""
        return torch.bmm(self.vector(product), self._turned).sub_(self._y)

    def matrix(self, vector: Tensor, out: Tensor) -> Tensor:
        """The inverse of ``vector``, for symmetric matrices."""
        flat = vector.flatten(0, 1) / self._scale
        return torch.index_select(flat, 1, self._spread, out=out.view(len(out), -1)).view_as(out)

    def gradient(self, product: Tensor, out: Tensor) -> Tensor:
        if self._gram is None:
            return self.matrix(torch.bmm(self.residual(product), self.operators), out)
        return self.matrix(torch.bmm(self.vector(product), self._gram).sub_(self._pulled), out)

    def loss(self, product: Tensor) -> Tensor:
        return 0.5 * self.residual(product).square_().sum(-1).flatten()

    def _map_runs(self, change):
        if len(self.operators) > 1:
            raise ParameterError("runs with operators of their own cannot leave the batch.")
        per_run = self.measurements.dim() == 2 and len(self.measurements) > 1
        return type(self)(self.operators, change(self.measurements) if per_run else self.measurements)
