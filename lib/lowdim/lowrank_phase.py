"""Phase retrieval of a clip as a low-rank matrix, frames as columns: the rivals of TSPR.

AltMinLowRaP (Nayer, Narayanamurthy, Vaswani, arXiv 1902.04972) and AltMinTrunc (Vaswani, Nayer, Eldar, 1608.04141),
corrected as in ``lowdim.phase_retrieval``; ``published=True`` switches to what the authors' programs do.
"""

import torch
from torch import Tensor

from lowdim import checks as ok
from lowdim.checks import integer
from lowdim.measurements import check_magnitudes
from lowdim.phase_retrieval import RIDGE, SOLVER, Recovery, in_groups, recorder, small_inverse
from lowdim.tensors import cgls
from lowdim.wirtinger import pooled_basis, rwf, truncated_weights


@ok.takes(**SOLVER, rank=ok.count(), rwf_steps=ok.count(0))
@in_groups
def altmin_lowrap(
    y: Tensor, op, rank: int, iterations: int, generator: torch.Generator, *, truth: Tensor | None = None,
    published: bool = False, inner: int = 25, tolerance: float = 1e-2, rwf_steps: int = 50,
) -> Recovery:  # fmt: skip
    """AltMinLowRaP, ``[x_1 ... x_q] = U B^T``: ``b_k`` by RWF, then phases, then ``U`` by least squares.

    Args as in ``tspr``; ``published`` returns ``U B^*`` with the last triangular factor dropped, takes RWF steps
    without control and restarts the least squares from zero.
    """
    root, rank = _matrix_problem(y, op, rank)
    u = pooled_basis(op, truncated_weights(root.square(), op, pooled=True), rank, generator)
    best = dict(steps=50, tolerance=1e-6) if published else dict(steps=inner, tolerance=tolerance)
    errors = []
    record = recorder(truth, op, errors)
    for t in range(iterations + 1):
        eff = op.columns(u)
        b = rwf(root, eff, op.m, rwf_steps, controlled=not published)
        record(_frames, u, b.conj() if published else b)
        if t == iterations:
            break
        target = torch.sgn(eff @ b.unsqueeze(-1)).squeeze(-1) * root
        basis, triangle = torch.linalg.qr(b)  # (runs, q, rank): U has the scale now
        first = torch.zeros_like(u) if published else u @ triangle.mT[:, None]
        u = _update_basis(op, target, first, basis, None, best)
        u = torch.linalg.qr(u.flatten(1, 2)).Q.unflatten(1, op.shape)
        if published and t == iterations - 1:
            record(_frames, u, b.conj())
            break
    clip = _frames(u, b.conj() if published else b).movedim(1, -1)
    return Recovery(clip, torch.stack(errors) if truth is not None else None, rank * (op.shape[0] * op.shape[1] + op.q))


@ok.takes(**SOLVER, rank=ok.count())
@in_groups
def altmin_trunc(
    y: Tensor, op, rank: int, iterations: int, generator: torch.Generator, *, truth: Tensor | None = None,
    published: bool = False, inner: int = 25, tolerance: float = 1e-2,
) -> Recovery:  # fmt: skip
    """AltMinTrunc (LRPR2): as ``altmin_lowrap``, but ``b_k`` by least squares with the phases of ``U``'s update.

    Args as in ``tspr``; ``published`` returns ``U B^*`` and restarts the least squares from zero.
    """
    root, rank = _matrix_problem(y, op, rank)
    weights = truncated_weights(root.square(), op)
    u = pooled_basis(op, weights, rank, generator)
    best = dict(steps=50, tolerance=1e-6) if published else dict(steps=inner, tolerance=tolerance)
    errors = []
    record = recorder(truth, op, errors)
    eff = op.columns(u)
    gram = eff.mH @ (weights.unsqueeze(-1) * eff) / op.m.unsqueeze(-1)
    b = torch.linalg.eigh(gram).eigenvectors[..., -1] * (root.square().sum(-1, keepdim=True) / op.m).sqrt()
    for t in range(iterations + 1):
        record(_frames, u, b.conj() if published else b)
        if t == iterations:
            break
        target = torch.sgn(eff @ b.unsqueeze(-1)).squeeze(-1) * root
        u = _update_basis(
            op, target, torch.zeros_like(u) if published else u, b, small_inverse((b.mH @ b).conj()), best
        )
        u = torch.linalg.qr(u.flatten(1, 2)).Q.unflatten(1, op.shape)
        eff = op.columns(u)
        normal = eff.mH @ eff
        ridge = RIDGE * normal.diagonal(dim1=-2, dim2=-1).real.mean(-1) + torch.finfo(op.real).tiny
        normal.diagonal(dim1=-2, dim2=-1).add_(ridge.unsqueeze(-1))
        b = torch.linalg.solve(normal, eff.mH @ target.unsqueeze(-1)).squeeze(-1)
    clip = _frames(u, b.conj() if published else b).movedim(1, -1)
    return Recovery(clip, torch.stack(errors) if truth is not None else None, rank * (op.shape[0] * op.shape[1] + op.q))


def _matrix_problem(y: Tensor, op, rank: int):
    root = check_magnitudes(y, op)
    return root, integer("rank", rank, at_least=1, at_most=min(op.shape[0] * op.shape[1], op.q))


def _frames(u: Tensor, b: Tensor) -> Tensor:
    """``x_k = U b_k``: ``(runs, n1, n2, r)`` and ``(runs, q, r)`` to ``(runs, q, n1, n2)``."""
    return (b @ u.flatten(1, 2).mT).unflatten(-1, u.shape[1:3])


def _update_basis(op, target, first, b, inverse, best: dict) -> Tensor:
    """``U`` by least squares on ``sum_k ||target_k - A_k^* U b_k||^2``."""
    forward = lambda v: op.forward(_frames(v, b))
    adjoint = lambda z: (op.adjoint(z).flatten(2).mT @ b.conj()).unflatten(1, op.shape)
    precondition = (lambda s: s) if inverse is None else (lambda s: s @ inverse[:, None])
    return cgls(forward, adjoint, target, first, precondition=precondition, **best)
