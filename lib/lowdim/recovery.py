"""Low-rank recovery with deep linear networks: measurements, starting points, and compressed networks.

A target ``M`` is seen through a linear map ``A``: fully, in some entries (``Completion``), or through inner products
with given matrices (``Sensing``). Losses are averaged as in Kwon et al. 2024; this sets the effective step size:

===============  ==============================================  =====================================
problem          loss                                            step size for ``1/2 ||W - M||_F^2``
===============  ==============================================  =====================================
Factorization    ``1/2`` mean over all entries (``mean=True``)   ``eta / (rows columns)``
Completion       ``1/2`` mean over the entries seen              about ``eta / (rows columns)``
Sensing          ``1/2`` sum over the ``m`` measurements         about ``eta / m`` for entries ``N(0,1)/m``
===============  ==============================================  =====================================

A surrogate ``A^T A(M)`` is what the measurements show of the target; its singular vectors start a compressed network.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from lowdim import checks as ok
from lowdim.checks import ParameterError, integer
from lowdim.factorization import haar
from lowdim.networks import CACHE_BYTES, MatrixNetwork, Problem, matches

# ---------------------------------------------------------------- problems


class Completion(Problem):
    """Some entries are seen: the loss is ``1/2 sum_seen (W - M)^2 / #seen``.

    Args:
        mask: 1 where an entry is seen, 0 elsewhere, ``(rows, columns)`` or one per run.
        target: ``(rows, columns)`` or one per run.

    Raises:
        ParameterError: shapes that differ, or a mask without any entry.
    """

    @ok.takes(
        target=ok.tensor("rows columns", "runs rows columns"),
        mask=ok.tensor("rows columns", "any rows columns", floating=False, at_least=0, at_most=1),
    )
    def __init__(self, mask: Tensor, target: Tensor):
        self.mask, self.target = mask.to(target.dtype), target
        seen = self.mask.sum((-2, -1), keepdim=True)
        if not bool((seen > 0).all()):
            raise ParameterError(
                f"mask must have at least one entry that is seen in every run, got none in {tuple(mask.shape)}."
            )
        self._weights = self.mask / seen

    def fits(self, shape):
        matches("mask", self.mask, shape)
        matches("target", self.target, shape)

    def gradient(self, product: Tensor, out: Tensor) -> Tensor:
        return torch.sub(product, self.target, out=out).mul_(self._weights)

    def bind(self, rate: Tensor) -> Callable[[Tensor], None]:
        """One pass over the product where rate or weights are shared: ``rate w W - rate w M``, both prepared."""
        if self._weights.dim() == 2 and bool((rate != rate[0]).any()):  # one mask, many step sizes: two passes
            shift = self._weights * -self.target
            return lambda product: torch.addcmul(shift, product, self._weights, out=product).mul_(rate)
        weights = (rate[0] if self._weights.dim() == 2 else rate) * self._weights
        shift = weights * -self.target
        return lambda product: torch.addcmul(shift, product, weights, out=product)

    def loss(self, product: Tensor) -> Tensor:
        return 0.5 * ((product - self.target).square() * self._weights).sum((-2, -1))

    def unseen_error(self, product: Tensor) -> Tensor:
        """``1/2`` mean of the squared error over the entries that are *not* seen, ``(runs,)``."""
        hidden = 1 - self.mask
        return 0.5 * ((product - self.target).square() * hidden).sum((-2, -1)) / hidden.sum((-2, -1))

    def surrogate(self) -> Tensor:
        """``A^T A(M)``: the seen entries divided by their share."""
        return self.mask * self.target / self.mask.mean((-2, -1), keepdim=True)

    def _map_runs(self, change):
        mine = {name: getattr(self, name) for name in ("mask", "target", "_weights")}
        return self._changed(**{name: change(tensor) for name, tensor in mine.items() if tensor.dim() == 3})


class Sensing(Problem):
    """Inner products are seen: the loss is ``1/2 sum_i (<A_i, W> - y_i)^2``, a sum and not a mean.

    Args:
        operators: ``(m, rows, columns)``, shared by the runs, or ``(runs, m, rows, columns)``.
        measurements: ``(m,)`` or ``(runs, m)``.

    Raises:
        ParameterError: shapes that do not fit each other.
    """

    blocked = False  # a few runs at a time would read the operators again for each of them

    @ok.takes(
        operators=ok.tensor("m rows columns", "runs m rows columns"), measurements=ok.tensor("m", "runs m", "any m")
    )
    def __init__(self, operators: Tensor, measurements: Tensor):
        self._set(operators, measurements)

    def _set(self, operators: Tensor, measurements: Tensor) -> None:
        self.operators, self.measurements = operators, measurements
        self._flat = operators.flatten(-2)  # (..., m, rows * columns)
        if operators.dim() == 3:
            # a step uses the operators twice: in pieces that stay in the cache, the second use costs no reading
            rows = self._flat.shape[0] if operators.is_cuda else max(1, CACHE_BYTES // self._flat[0].nbytes)
            y = measurements.view(-1, len(operators))  # (runs or 1, m)
            self._pieces = list(zip(self._flat.split(rows), y.split(rows, 1), strict=True))

    def fits(self, shape):
        runs, *size = shape
        if list(self.operators.shape[-2:]) != size or (self.operators.dim() == 4 and len(self.operators) != runs):
            raise ParameterError(f"operators {tuple(self.operators.shape)} do not fit {runs} networks of size {size}.")
        if self.measurements.dim() == 2 and len(self.measurements) != runs:
            raise ParameterError(f"measurements {tuple(self.measurements.shape)} do not fit {runs} runs.")

    def measure(self, product: Tensor) -> Tensor:
        """``<A_i, W>``, ``(runs, m)``."""
        flat = product.flatten(1)
        return flat @ self._flat.mT if self._flat.dim() == 2 else (self._flat @ flat.unsqueeze(-1)).squeeze(-1)

    def gradient(self, product: Tensor, out: Tensor) -> Tensor:
        """``sum_i (<A_i, W> - y_i) A_i``."""
        if self._flat.dim() == 3:
            residual = self.measure(product).sub_(self.measurements).unsqueeze(1)
            return torch.bmm(residual, self._flat, out=out.view(len(out), 1, -1)).view_as(out)
        inputs = product.flatten(1).clone()  # out may be product
        total = out.view(len(out), -1).zero_()
        for operators, y in self._pieces:
            residual = torch.addmm(y, inputs, operators.mT, beta=-1)  # (runs, piece): half the time of its transpose
            total.addmm_(residual, operators)
        return out

    def loss(self, product: Tensor) -> Tensor:
        return 0.5 * (self.measure(product) - self.measurements).square().sum(-1)

    def surrogate(self) -> Tensor:
        """``(1/m) sum_i y_i A_i``; only its singular vectors matter."""
        y, flat = self.measurements, self._flat
        combined = y @ flat if flat.dim() == 2 else (y.unsqueeze(-2) @ flat).squeeze(-2)
        return combined.unflatten(-1, self.operators.shape[-2:]) / flat.shape[-2]

    def _map_runs(self, change):
        operators = change(self.operators) if self.operators.dim() == 4 else self.operators
        new = self._changed()
        new._set(operators, change(self.measurements) if self.measurements.dim() == 2 else self.measurements)
        return new


class ThinFactorization(Problem):
    """The loss of ``Factorization`` for a target given in factors, ``M = left right^T``.

    Args:
        left, right: ``(rows, r)`` and ``(columns, r)``, shared by the runs.
        mean: divide by ``rows * columns``.
    """

    blocked = False  # nothing large belongs to a single run

    @ok.takes(left=ok.tensor("rows r"), right=ok.tensor("columns r"), mean=ok.flag)
    def __init__(self, left: Tensor, right: Tensor, mean: bool = True):
        self.left, self.right, self.target = left, right, left @ right.mT
        self.weight = 1 / self.target.numel() if mean else 1.0

    def fits(self, shape):
        matches("left right^T", self.target, shape)

    def gradient(self, product: Tensor, out: Tensor) -> Tensor:
        return torch.sub(product, self.target, out=out).mul_(self.weight)

    def loss(self, product: Tensor) -> Tensor:
        return 0.5 * self.weight * (product - self.target).square().sum((-2, -1))

    def surrogate(self) -> Tensor:
        return self.target

    def _map_runs(self, change):
        return self


# ---------------------------------------------------------------- targets and starting points


@ok.takes(
    width=ok.count(1), rank=ok.count(1), runs=ok.count(1), generator=ok.generator, pick=ok.one_of("top", "spread")
)
def low_rank_target(width: int, rank: int, runs: int, generator: torch.Generator, pick: str = "top") -> dict:
    """Square targets of a given rank, cut from Gaussian matrices.

    Args:
        pick: ``"top"`` keeps the largest singular values; ``"spread"`` keeps numbers 0, w/(2r), 2w/(2r), ..., which are
            further apart.

    Returns:
        ``target (runs, width, width)``, ``u`` and ``v`` ``(runs, width, rank)``, ``sigma (runs, rank)``.
    """
    rank = integer("rank", rank, at_least=1, at_most=width)
    gauss = torch.randn(runs, width, width, generator=generator, dtype=torch.float64, device=generator.device)
    u, sigma, vh = torch.linalg.svd(gauss)
    kept = [i if pick == "top" else i * width // (2 * rank) for i in range(rank)]
    u, sigma, v = u[..., kept], sigma[:, kept], vh.mT[..., kept]
    return {"target": (u * sigma.unsqueeze(1)) @ v.mT, "u": u, "v": v, "sigma": sigma}


@ok.takes(sizes=ok.sizes(3), runs=ok.count(1), eps=ok.real(above=0), generator=ok.generator)
def orthogonal_layers(sizes: Sequence[int], runs: int, eps: float, generator: torch.Generator) -> list[Tensor]:
    """Factors ``eps Q`` with Haar orthogonal ``Q``; rectangular ones have orthonormal rows or columns.

    Args:
        sizes: ``[d_0, ..., d_L]``; layer ``l`` is ``(runs, d_l, d_(l-1))``.

    Raises:
        ParameterError: fewer than two layers, or ``eps <= 0``.
    """
    return [eps * haar((runs, max(o, i)), generator)[:, :o, :i].contiguous() for i, o in pairwise(sizes)]


@ok.takes(sizes=ok.sizes(3), runs=ok.count(1), eps=ok.real(above=0), generator=ok.generator)
def balanced_layers(sizes: Sequence[int], runs: int, eps: float, generator: torch.Generator) -> list[Tensor]:
    """Factors with ``W_(l+1)^T W_(l+1) = W_l W_l^T`` and random singular vectors, all singular values ``eps``.

    The end-to-end matrix has rank ``min(sizes)``. Raises as ``orthogonal_layers`` does.
    """
    bases = [haar((runs, size), generator)[..., : min(sizes)] for size in sizes]
    return [eps * after @ before.mT for before, after in pairwise(bases)]


@ok.takes(
    surrogate=ok.tensor("rows columns", "runs rows columns"),
    rank=ok.counts(),
    depth=ok.count(2),
    eps=ok.real(above=0),
    runs=ok.count(1),
)
def spectral_layers(surrogate: Tensor, rank: int | Tensor, depth: int, eps: float, runs: int = 1) -> list[Tensor]:
    """The compressed start of Kwon et al. 2024: ``[eps V^T, eps I, ..., eps I, eps U]`` from a surrogate's SVD.

    Args:
        surrogate: ``(rows, columns)`` or ``(runs, rows, columns)``.
        rank: the inner width, or ``(runs,)`` inner widths: all runs then have the largest, and the surplus rows and
            columns are zero, which gradient descent keeps.
        runs: how often a single surrogate is repeated.

    Raises:
        ParameterError: a rank beyond the surrogate's size, fewer than two layers, or ``eps <= 0``.
    """
    surrogate = surrogate.unsqueeze(0) if surrogate.dim() == 2 else surrogate
    ranks = torch.as_tensor(rank, device=surrogate.device).reshape(-1)
    width = integer("rank", int(ranks.max()), at_least=1, at_most=min(surrogate.shape[-2:]))
    u, _, vh = torch.linalg.svd(surrogate, full_matrices=False)
    runs = max(len(surrogate), len(ranks), runs)
    used = (torch.arange(width, device=surrogate.device) < ranks.unsqueeze(-1)).to(surrogate.dtype) * eps
    first = (vh[:, :width] * used.unsqueeze(-1)).expand(runs, -1, -1)
    last = (u[..., :width] * used.unsqueeze(-2)).expand(runs, -1, -1)
    inner = [torch.diag_embed(used.expand(runs, width)).contiguous() for _ in range(depth - 2)]
    return [first.contiguous(), *inner, last.mT.contiguous().mT]  # the tall one by columns: see MatrixNetwork._move


@ok.takes(layers=ok.tensors("runs out in", at_least=2), width=ok.count(1))
def padded(layers: Sequence[Tensor], width: int) -> list[Tensor]:
    """The same network with zero rows and columns up to an inner width: gradient descent keeps them at zero.

    So networks of different inner widths can share a batch.
    """
    widest = max(max(first.shape[1], then.shape[2]) for first, then in pairwise(layers))
    integer("width", width, at_least=widest)
    first, *inner, last = layers
    pad = torch.nn.functional.pad
    grown = [pad(w, (0, width - w.shape[2], 0, width - w.shape[1])) for w in inner]
    return [pad(first, (0, 0, 0, width - first.shape[1])), *grown, pad(last, (0, width - last.shape[2]))]


# ---------------------------------------------------------------- compressed networks


@ok.takes(depth=ok.count(2), alpha=ok.values(above=0))
def outer_scale(depth: int, alpha) -> list:
    """Step-size factors of a compressed network: ``alpha`` (a number or one per run) outside, 1 inside."""
    return [alpha, *[1.0] * (depth - 2), alpha]


@ok.takes(
    problem=ok.has("gradient", "fits", "surrogate"),
    rank=ok.counts(),
    depth=ok.count(2),
    eps=ok.real(above=0),
    eta=ok.values(at_least=0),
    alpha=ok.values(above=0),
    runs=ok.count(1),
)
def compressed(problem: Problem, rank, depth: int, eps: float, eta, alpha=1.0, runs: int = 1) -> MatrixNetwork:
    """The compressed network of a problem: spectral start, and step size ``alpha * eta`` on the outer factors.

    Args:
        problem: with a ``surrogate()``.
        rank, depth, eps, runs: as in ``spectral_layers``.
        eta, alpha: one number, or one per run, which then sets the number of runs.
    """
    runs = max(runs, *(torch.as_tensor(value).numel() for value in (eta, alpha)))
    layers = spectral_layers(problem.surrogate(), rank, depth, eps, runs)
    trainer = ThinNetwork if isinstance(problem, ThinFactorization) else MatrixNetwork
    return trainer(layers, problem, eta, outer_scale(depth, alpha))


@ok.takes(
    problem=ok.has("gradient", "fits", "surrogate"),
    depth=ok.count(2),
    eps=ok.real(above=0),
    eta=ok.values(at_least=0),
    generator=ok.generator,
    runs=ok.count(1),
)
def original(problem: Problem, depth: int, eps: float, eta, generator, runs: int = 1) -> MatrixNetwork:
    """The network that is compressed: square factors from a random orthogonal start."""
    surrogate = problem.surrogate()
    runs, width = max(runs, 1 if surrogate.dim() == 2 else len(surrogate)), surrogate.shape[-1]
    layers = orthogonal_layers([width] * (depth + 1), runs, eps, generator)
    return MatrixNetwork([w.to(surrogate.device) for w in layers], problem, eta)


class ThinNetwork(MatrixNetwork):
    """The same descent when target and network both have small inner sizes: no matrix of the full size is formed.

    With ``P = W_(L-1)..W_1``, ``E = [W_L, -left]`` and ``F = [P; right^T]``, the residual is ``E F``. So
    ``G P^T = E (F P^T)`` and ``W_L^T G = (W_L^T E) F`` cost ``O(d r^2)`` instead of ``O(d^2 r)``, and step sizes
    multiply the small matrices in brackets.
    """

    def _prepare(self) -> None:
        super()._prepare()
        problem, last, block = self.problem, self.layers[-1], self._slices[0].stop
        self._k = last.shape[2]
        self._pulls = [self.eta[s] * problem.weight for s in self._slices]
        self._e = torch.cat([last[:block], -problem.left.expand(block, -1, -1)], 2)
        upper = last.new_zeros(block, self._k, len(problem.right))
        self._f = torch.cat([upper, problem.right.mT.expand(block, -1, -1)], 1)
        both = self._e.shape[2]
        self._we, self._fp = last.new_empty(block, self._k, both), last.new_empty(block, both, self._k)

    def _step(self, layers: list[Tensor], scale: list, eta: Tensor, runs: int) -> None:
        prefix, pull = [layers[0]] + [p[:runs] for p in self._prefix], [p[:runs] for p in self._pull]
        e, f, we, fp = self._e[:runs], self._f[:runs], self._we[:runs], self._fp[:runs]
        for l in range(1, len(layers) - 1):
            torch.bmm(layers[l], prefix[l - 1], out=prefix[l])
        e[..., : self._k] = layers[-1]
        f[:, : self._k] = prefix[len(layers) - 2]
        torch.bmm(layers[-1].mT, e, out=we).mul_(eta)
        torch.bmm(we, f, out=pull[-1])  # W_L^T eta G
        torch.bmm(f, prefix[len(layers) - 2].mT, out=fp).mul_(eta * scale[-1])
        layers[-1].baddbmm_(e, fp, alpha=-1)
        for l in range(len(layers) - 2, 0, -1):
            torch.bmm(layers[l].mT, pull[l], out=pull[l - 1])
            self._move(layers[l], pull[l], prefix[l - 1], scale[l], l)
        self._move_first(layers[0], pull[0], scale[0])


@ok.takes(alpha=ok.real(above=0))
def alpha_speed_up(alpha: float) -> float:
    """Time to fit a mode at outer factor ``alpha`` over the time at 1, for depth 3 and a small start.

    The outer ``x`` and the inner ``m`` obey ``x' = alpha sigma m x``, ``m' = sigma x^2``; integrating gives
    ``acosh(sqrt a)/sqrt(a (a-1))`` for ``a > 1`` and ``arccos(sqrt a)/sqrt(a (1-a))`` for ``a < 1`` (derived here).
    """
    if abs(alpha - 1) < 1e-6:
        return 1.0
    root = math.sqrt(alpha)
    return (math.acosh(root) if alpha > 1 else math.acos(root)) / math.sqrt(alpha * abs(alpha - 1))


@ok.takes(
    mask=ok.tensor("rows columns", floating=False, at_least=0, at_most=1),
    target=ok.tensor("rows columns"),
    rank=ok.count(1),
    sweeps=ok.count(0),
    ridge=ok.real(above=0),
)
def alternating_least_squares(mask: Tensor, target: Tensor, rank: int, sweeps: int, ridge: float = 1e-6):
    """Completion by solving for the rows of ``U`` and of ``V`` in turn, ``W = U V^T``; yields ``W`` after each sweep.

    Args:
        mask, target: ``(rows, columns)``.
        ridge: keeps rows with fewer entries than ``rank`` solvable.
    """
    integer("rank", rank, at_least=1, at_most=min(target.shape))
    return _alternate(mask.to(target.dtype), target, rank, sweeps, ridge)


def _alternate(mask: Tensor, target: Tensor, rank: int, sweeps: int, ridge: float):
    v = torch.linalg.svd(mask * target, full_matrices=False).Vh[:rank].mT.contiguous()
    eye = ridge * torch.eye(rank, dtype=target.dtype, device=target.device)

    def solve(seen, values, fixed):
        outer = (fixed.unsqueeze(2) * fixed.unsqueeze(1)).flatten(1)  # (n, rank^2)
        gram = (seen @ outer).view(-1, rank, rank) + eye
        return torch.linalg.solve(gram, ((seen * values) @ fixed).unsqueeze(-1)).squeeze(-1)

    for _ in range(sweeps):
        u = solve(mask, target, v)
        v = solve(mask.mT, target.mT, u)
        yield u @ v.mT
