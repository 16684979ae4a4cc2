"""Tensors of low rank: unfoldings, Tucker and CP models, HOSVD, and least squares by conjugate gradients.

A tensor is ``(..., n_1, ..., n_N)``: its modes are the last axes, everything before is a batch. Unfoldings are
row-major, as in tensorly: ``unfold(x, k)`` has mode ``k`` as rows and the other modes, in order, as columns, so that
``unfold(full, 0) = D unfold(core, 0) (E kron F)^T``. Kronecker and Khatri-Rao products are contracted mode by mode and
never formed, except by ``khatri_rao``, which is there for whoever needs the matrix.

Names and formulas: Kolda and Bader, "Tensor Decompositions and Applications", SIAM Review 51 (2009).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lowdim import checks as ok
from lowdim.checks import ParameterError, integer, number

LETTERS = "abcdefghijklmnopq"  # one for each mode; r is the rank
FREE = dict(floating=False, finite=False)  # complex numbers too; entries are not looked at: no cost, no wait for a GPU


def _check_mode(mode: int, order: int, x: Tensor) -> None:
    integer("order", order, at_least=1, at_most=min(x.dim(), len(LETTERS)))
    integer("mode", mode, at_least=0, at_most=order - 1)


@ok.takes(x=ok.tensor(**FREE), mode=ok.count(0), order=ok.count())
def unfold(x: Tensor, mode: int, order: int = 3) -> Tensor:
    """The mode-``mode`` unfolding of ``(..., n_1, ..., n_N)``: ``(..., n_mode, product of the others)``."""
    _check_mode(mode, order, x)
    lead = x.shape[: x.dim() - order]
    return x.movedim(len(lead) + mode, len(lead)).reshape(*lead, x.shape[len(lead) + mode], -1)


@ok.takes(matrix=ok.tensor("... rows columns", **FREE), mode=ok.count(0), shape=ok.sizes(1))
def fold(matrix: Tensor, mode: int, shape: Sequence[int]) -> Tensor:
    """The inverse of ``unfold``: ``(..., n_mode, rest)`` back to ``(..., *shape)``."""
    integer("mode", mode, at_least=0, at_most=len(shape) - 1)
    lead, others = matrix.shape[:-2], [n for k, n in enumerate(shape) if k != mode]
    if tuple(matrix.shape[-2:]) != (wanted := (shape[mode], math.prod(others))):
        raise ParameterError(
            f"matrix must be (..., {wanted[0]}, {wanted[1]}) for this shape, got {tuple(matrix.shape)}."
        )
    return matrix.reshape(*lead, shape[mode], *others).movedim(len(lead), len(lead) + mode)


@ok.takes(x=ok.tensor(**FREE), matrix=ok.tensor("... rows columns", **FREE), mode=ok.count(0), order=ok.count())
def mode_product(x: Tensor, matrix: Tensor, mode: int, order: int = 3) -> Tensor:
    """``x x_mode matrix``: ``(..., m, n_mode)`` applied to every fibre of that mode; batches broadcast."""
    _check_mode(mode, order, x)
    if matrix.shape[-1] != (size := x.shape[x.dim() - order + mode]):
        raise ParameterError(f"matrix must have {size} columns, the size of mode {mode}, got {tuple(matrix.shape)}.")
    modes = LETTERS[:order]
    new = modes.replace(modes[mode], "r")
    return torch.einsum(f"...{modes},...r{modes[mode]}->...{new}", x, matrix)


@ok.takes(x=ok.tensor(**FREE), matrices=ok.kind((list, tuple), "a list of matrices or None"), transpose=ok.flag)
def multi_product(x: Tensor, matrices: Sequence[Tensor | None], transpose: bool = False) -> Tensor:
    """A mode product in every mode, ``None`` for a mode left alone: ``(A_1 kron ... kron A_N) vec(x)``.

    Args:
        x: ``(..., n_1, ..., n_N)``, ``N`` the number of matrices.
        matrices: ``(..., m_k, n_k)``, or ``(..., n_k, m_k)`` with ``transpose``, which applies the adjoint ``A_k^*``.
    """
    for mode, matrix in enumerate(matrices):
        if matrix is not None:
            x = mode_product(x, matrix.mH if transpose else matrix, mode, len(matrices))
    return x


@ok.takes(ranks=ok.sizes(1), shape=ok.sizes(1))
def check_ranks(ranks: Sequence[int], shape: Sequence[int], name: str = "ranks") -> tuple[int, ...]:
    """One rank for each mode, none larger than its dimension.

    Raises:
        ParameterError: another number of ranks than modes, or a rank out of range (the message says which).
    """
    if len(ranks) != len(shape):
        raise ParameterError(f"{name} must hold one rank for each of the {len(shape)} modes, got {list(ranks)}.")
    return tuple(
        integer(f"{name}[{k}]", r, at_least=1, at_most=n) for k, (r, n) in enumerate(zip(ranks, shape, strict=True))
    )


# ---------------------------------------------------------------- Tucker


@dataclass
class Tucker:
    """``core x_1 D x_2 E x_3 F ...``: core ``(..., r_1, ..., r_N)``, factors ``(..., n_k, r_k)``."""

    core: Tensor
    factors: list[Tensor]

    def __post_init__(self):
        ok.tensor(**FREE)("core", self.core, {}), ok.tensors("... n r", **FREE)("factors", self.factors, {})
        ranks = tuple(f.shape[-1] for f in self.factors)
        if tuple(self.core.shape[-len(ranks) :]) != ranks:
            raise ParameterError(f"core must end in the ranks {ranks} of the factors, got {tuple(self.core.shape)}.")

    def full(self) -> Tensor:
        """The tensor, ``(..., n_1, ..., n_N)``."""
        return multi_product(self.core, self.factors)

    @property
    def size(self) -> int:
        """Numbers stored, for one tensor: ``sum r_k n_k + prod r_k``."""
        return tucker_size([f.shape[-2] for f in self.factors], [f.shape[-1] for f in self.factors])

    def orthonormal(self) -> "Tucker":
        """The same tensor with orthonormal factors: QR of each, the triangles pushed into the core."""
        pairs = [torch.linalg.qr(f) for f in self.factors]
        return Tucker(multi_product(self.core, [r for _, r in pairs]), [q for q, _ in pairs])


@ok.takes(shape=ok.sizes(1), ranks=ok.sizes(1))
def tucker_size(shape: Sequence[int], ranks: Sequence[int]) -> int:
    """Numbers in a Tucker model: ``sum r_k n_k + prod r_k``."""
    if len(ranks) != len(shape):
        raise ParameterError(f"ranks must hold one rank for each of the {len(shape)} modes, got {list(ranks)}.")
    return sum(r * n for r, n in zip(ranks, shape, strict=True)) + math.prod(ranks)


@ok.takes(matrix=ok.tensor("... rows columns", floating=False), rank=ok.count())
def leading(matrix: Tensor, rank: int) -> Tensor:
    """The first ``rank`` left singular vectors of ``(..., n, anything)``: ``(..., n, rank)``, most important first."""
    rank = integer("rank", rank, at_least=1, at_most=min(matrix.shape[-2:]))
    return torch.linalg.svd(matrix, full_matrices=False).U[..., :rank]


@ok.takes(x=ok.tensor(floating=False), ranks=ok.sizes(1))
def hosvd(x: Tensor, ranks: Sequence[int]) -> Tucker:
    """Truncated higher-order SVD of ``(..., n_1, ..., n_N)``: leading singular vectors of each unfolding.

    Its error is at most ``sqrt(N)`` times that of the best Tucker model of these ranks (De Lathauwer et al. 2000).

    Raises:
        ParameterError: a rank that is larger than its dimension, or larger than the unfolding has columns.
    """
    order = len(ranks)
    ranks = check_ranks(ranks, x.shape[-order:])
    factors = []
    for mode, rank in enumerate(ranks):
        matrix = unfold(x, mode, order)
        if rank > matrix.shape[-1]:
            raise ParameterError(
                f"ranks[{mode}] must be at most {matrix.shape[-1]}, the size of the other modes together, got {rank}."
            )
        factors.append(leading(matrix, rank))
    return Tucker(multi_product(x, factors, transpose=True), factors)


@ok.takes(matrix=ok.tensor("... rows columns", floating=False))
def truncated(matrix: Tensor, rank: int) -> Tensor:
    """The best approximation of ``(..., rows, columns)`` of a rank (Eckart and Young)."""
    rank = integer("rank", rank, at_least=1, at_most=min(matrix.shape[-2:]))
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return (u[..., :rank] * s[..., None, :rank]) @ vh[..., :rank, :]


# ---------------------------------------------------------------- CP


def _one_rank(factors: Sequence[Tensor]) -> None:
    if len({f.shape[-1] for f in factors}) != 1:
        raise ParameterError(f"factors must share one rank, got {[tuple(f.shape) for f in factors]}.")


@dataclass
class CP:
    """``sum_r a_r o b_r o c_r ...``: factors ``(..., n_k, R)`` with the same rank ``R`` and the same batch."""

    factors: list[Tensor]

    def __post_init__(self):
        ok.tensors("... n r", **FREE)("factors", self.factors, {})
        _one_rank(self.factors)

    @property
    def rank(self) -> int:
        return self.factors[0].shape[-1]

    @property
    def size(self) -> int:
        """Numbers stored, for one tensor of the batch: ``R sum n_k``."""
        return self.rank * sum(f.shape[-2] for f in self.factors)

    def full(self) -> Tensor:
        """The tensor, ``(..., n_1, ..., n_N)``."""
        modes = LETTERS[: len(self.factors)]
        return torch.einsum(",".join(f"...{m}r" for m in modes) + f"->...{modes}", *self.factors)

    def norms(self) -> Tensor:
        """Norms of the columns, ``(..., N, R)``."""
        return torch.stack([f.norm(dim=-2) for f in self.factors], -2)

    def balanced(self) -> "CP":
        """The same tensor with columns of equal norm in all modes: of all ways to scale them, the smallest sum of
        squares. Components with a zero column become zero."""
        norms = self.norms()
        common = norms.prod(-2, keepdim=True) ** (1 / len(self.factors))
        scale = torch.where(norms > 0, common / norms.clamp(min=torch.finfo(norms.dtype).tiny), 0.0)
        return CP([f * scale[..., k, None, :] for k, f in enumerate(self.factors)])


@ok.takes(factors=ok.tensors("... n r", **FREE))
def khatri_rao(factors: Sequence[Tensor]) -> Tensor:
    """Columns ``a_r kron b_r kron ...`` of factors ``(..., n_k, R)``: ``(..., prod n_k, R)``.

    ``mttkrp`` multiplies with it without forming it.
    """
    _one_rank(factors)
    modes = LETTERS[: len(factors)]
    product = torch.einsum(",".join(f"...{m}r" for m in modes) + f"->...{modes}r", *factors)
    return product.flatten(-1 - len(factors), -2)


@ok.takes(x=ok.tensor(**FREE), factors=ok.tensors("... n r", at_least=2, **FREE), mode=ok.count(0))
def mttkrp(x: Tensor, factors: Sequence[Tensor], mode: int) -> Tensor:
    """``unfold(x, mode) @ khatri_rao(the other factors)`` by contraction: ``(..., n_mode, R)``.

    Args:
        x: ``(..., n_1, ..., n_N)``; its batch and that of the factors broadcast.
        factors: ``(..., n_k, R)``, one for each mode; that of ``mode`` is not used.
    """
    _one_rank(factors)
    _check_mode(mode, len(factors), x)
    rows = tuple(x.shape[-len(factors) :])
    if tuple(f.shape[-2] for f in factors) != rows:
        raise ParameterError(f"factors must have {rows} rows, as x does, got {[tuple(f.shape) for f in factors]}.")
    modes, kept = LETTERS[: len(factors)], LETTERS[mode]
    others = [(m, f) for m, f in zip(modes, factors, strict=True) if m != kept]
    spec = ",".join([f"...{modes}"] + [f"...{m}r" for m, _ in others])
    return torch.einsum(f"{spec}->...{kept}r", x, *(f for _, f in others))


@ok.takes(x=ok.tensor(**FREE), factors=ok.tensors("... n r", at_least=2, **FREE))
def cp_inner(x: Tensor, factors: Sequence[Tensor]) -> Tensor:
    """``<x, CP(factors)>`` for each entry of the batch, without forming the tensor (no conjugation)."""
    return (mttkrp(x, factors, 0) * factors[0]).sum((-2, -1))


# ---------------------------------------------------------------- least squares


@ok.takes(
    forward=ok.function,
    adjoint=ok.function,
    rhs=ok.tensor("runs ...", **FREE),
    start=ok.tensor("runs ...", **FREE),
    precondition=ok.function,
    check=ok.count(),
)
def cgls(
    forward: Callable[[Tensor], Tensor],
    adjoint: Callable[[Tensor], Tensor],
    rhs: Tensor,
    start: Tensor,
    steps: int = 50,
    tolerance: float = 1e-6,
    precondition: Callable[[Tensor], Tensor] = lambda s: s,
    check: int = 5,
) -> Tensor:
    """``min_v ||forward(v) - rhs||`` by conjugate gradients on the normal equations, for all runs at once.

    Args:
        forward, adjoint: a linear map and its adjoint, each run on its own.
        rhs: ``(runs, ...)``.
        start: ``(runs, ...)``, the first guess; it is not changed.
        steps: at most that many iterations.
        tolerance: a run stops when its preconditioned normal residual has fallen by this factor since the start, or is
            at the level of rounding errors.
        precondition: an approximation of ``(adjoint forward)^-1``, Hermitian and positive definite.
        check: iterations between two looks on a GPU at whether all runs have stopped (a look costs a synchronisation
            there; on a CPU it is free, and done every time).

    Source: Hestenes and Stiefel 1952; Björck, "Numerical Methods for Least Squares Problems", algorithm 7.4.1.
    """
    steps, tolerance = integer("steps", steps, at_least=0), number("tolerance", tolerance, at_least=0)
    per_run = lambda value, like: value.reshape(-1, *[1] * (like.dim() - 1))
    v, residual = start.clone(), rhs - forward(start)
    normal = adjoint(residual)
    z = precondition(normal)
    direction, gamma = z.clone(), _dot(normal, z)
    target = adjoint(rhs)
    rounding = torch.finfo(gamma.dtype).eps ** 2 * _dot(target, precondition(target))
    floor = torch.maximum(tolerance**2 * gamma, rounding)
    for t in range(steps):
        live = gamma > floor
        if (t % check == 0 or v.device.type == "cpu") and not bool(live.any()):
            break
        image = forward(direction)
        curvature = _dot(image, image)
        alpha = torch.where(live & (curvature > 0), gamma / curvature, 0.0)
        v.addcmul_(direction, per_run(alpha, v))
        residual.addcmul_(image, per_run(alpha, residual), value=-1)
        normal = adjoint(residual)
        z = precondition(normal)
        new = _dot(normal, z)
        direction.mul_(per_run(torch.where(live, new / gamma, 0.0), v)).add_(z)
        gamma = torch.where(live, new, gamma)
    return v


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Real part of the inner product over all axes but the first."""
    return torch.linalg.vecdot(a.flatten(1), b.flatten(1)).real
