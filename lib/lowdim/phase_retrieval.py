"""Phase retrieval of a clip with Tucker structure (TSPR), and what its rivals share: errors, floors, batches.

The clip is ``(n1, n2, q)``; measurements ``y = |A_k^* x_k|^2`` are ``(runs, q, m)`` of a map from
``lowdim.measurements``. All frames are computed at once, and so are as many runs as fit into a CPU's cache.

TSPR (Kwon, Li, Sarwate, ICASSP 2022) alternates over temporal factor, phases, spatial factors and core. Ours is
corrected: RWF in orthonormal coordinates and with a step that cannot overflow, a warm start and a preconditioner for
the least squares, factors kept orthonormal, and the conjugates that complex data need. ``published=True`` switches to
what the authors' program does. The low-rank rivals are in ``lowdim.lowrank_phase``.
"""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from lowdim import checks as ok
from lowdim.checks import ParameterError, integer
from lowdim.measurements import MAP, check_clip, check_magnitudes, frames_first
from lowdim.tensors import Tucker, cgls, check_ranks, hosvd, truncated, tucker_size
from lowdim.wirtinger import pooled_basis, rwf, spectral_frames, truncated_weights

RIDGE = 1e-7  # keeps small Gram matrices invertible; relative to their mean diagonal
CLIP = ok.tensor("... n1 n2 q", floating=False, finite=False)
SOLVER = dict(  # what all solvers take; what fits y and the map is checked by check_magnitudes
    y=ok.tensor("runs q m", finite=False), op=MAP, iterations=ok.count(0), generator=ok.generator,
    truth=ok.optional(ok.tensor("n1 n2 frames", "any n1 n2 frames", floating=False)), published=ok.flag,
    inner=ok.count(), tolerance=ok.real(at_least=0),
)  # fmt: skip
CACHE = 10 * 2**20  # bytes of sensing vectors that are worked on at once on a CPU


@dataclass
class Recovery:
    """What a solver returns.

    Attributes:
        clip: ``(runs, n1, n2, q)``, each frame up to a phase.
        errors: ``(iterations + 1, runs)`` phase-aligned relative errors, the start first; None without ``truth``.
        size: numbers in the model.
    """

    clip: Tensor
    errors: Tensor | None
    size: int


# ---------------------------------------------------------------- errors and floors


@ok.takes(estimate=CLIP, truth=CLIP)
def aligned(estimate: Tensor, truth: Tensor) -> Tensor:
    """The estimate with each frame turned by the phase that brings it closest to the truth.

    Args:
        estimate: ``(runs, n1, n2, q)``.
        truth: ``(n1, n2, q)`` or ``(runs, n1, n2, q)``.
    """
    inner = (estimate.conj() * truth).sum((-3, -2), keepdim=True)
    return torch.where(inner == 0, torch.ones_like(inner), torch.sgn(inner)) * estimate


@ok.takes(estimate=CLIP, truth=CLIP)
def aligned_error(estimate: Tensor, truth: Tensor) -> Tensor:
    """``sqrt(sum_k min_theta ||x_k - e^(i theta) xhat_k||^2) / ||X||``, ``(runs,)``; arguments as in ``aligned``."""
    gap = (truth - aligned(estimate, truth)).abs().square().sum((-3, -2, -1))
    return (gap / truth.abs().square().sum((-3, -2, -1))).sqrt()


@ok.takes(clip=ok.tensor("n1 n2 q", floating=False), rank=ok.count())
def matrix_floor(clip: Tensor, rank: int) -> float:
    """Relative error of the best rank-``rank`` matrix with the frames of ``(n1, n2, q)`` as columns."""
    matrix = clip.flatten(0, 1)
    return float((matrix - truncated(matrix, rank)).norm() / matrix.norm())


@ok.takes(clip=ok.tensor("n1 n2 q", floating=False), ranks=ok.sizes(3))
def tucker_floor(clip: Tensor, ranks) -> float:
    """Relative error of the HOSVD of ``(n1, n2, q)`` at the given ranks."""
    return float((clip - hosvd(clip, ranks).full()).norm() / clip.norm())


def recorder(truth, op, errors: list):
    """``record(estimate, *arguments)`` appends the error of ``estimate(*arguments)``, if there is a truth."""
    if truth is None:
        return lambda estimate, *arguments: None
    frames = frames_first(truth, op).movedim(1, -1)
    return lambda estimate, *arguments: errors.append(aligned_error(estimate(*arguments).movedim(1, -1), frames))


# ---------------------------------------------------------------- batches


def in_groups(solver):
    """Let a solver take its runs in groups whose maps fit into ``CACHE`` bytes: memory is what binds, not arithmetic.

    Runs do not depend on one another, but the groups draw their random starts one after another from one generator.
    """

    @functools.wraps(solver)
    def grouped(y: Tensor, op, *arguments, truth: Tensor | None = None, **options) -> Recovery:
        check_magnitudes(y, op)
        if truth is not None:
            check_clip("truth", truth, op)
        size = op.runs_within(CACHE)
        if size >= op.runs:
            return solver(y, op, *arguments, truth=truth, **options)
        done, model = [], options.get("start")
        for first in range(0, op.runs, size):
            part = slice(first, first + size)
            if isinstance(model, Tucker):
                options["start"] = Tucker(model.core[part], [f[part] for f in model.factors])
            own = truth[part] if truth is not None and truth.dim() == 4 else truth
            done.append(solver(y[part], op.part(part), *arguments, truth=own, **options))
        errors = None if truth is None else torch.cat([run.errors for run in done], 1)
        return Recovery(torch.cat([run.clip for run in done]), errors, done[0].size)

    return grouped


# ---------------------------------------------------------------- TSPR


@ok.takes(
    **SOLVER,
    ranks=ok.sizes(3),
    orthonormal=ok.flag,
    controlled=ok.flag,
    rwf_steps=ok.count(0),
    start=ok.kind((str, Tucker), "'frames', 'pooled', 'random' or a Tucker model"),
)
@in_groups
def tspr(
    y: Tensor, op, ranks, iterations: int, generator: torch.Generator, *, truth: Tensor | None = None,
    orthonormal: bool = True, controlled: bool = True, published: bool = False, start: str | Tucker = "frames",
    inner: int = 15, tolerance: float = 1e-2, rwf_steps: int = 50,
) -> Recovery:  # fmt: skip
    """Tucker-structured phase retrieval, ``X = G x_1 D x_2 E x_3 F``.

    Each iteration: ``F`` frame by frame with RWF, then the phases, then ``D``, ``E`` and ``G`` by least squares.

    Args:
        y: ``(runs, q, m)`` squared magnitudes.
        op: the measurement map.
        ranks: ``(r1, r2, r3)``.
        iterations: outer iterations.
        truth: ``(n1, n2, q)`` or with runs in front; with it, errors are recorded.
        orthonormal: RWF in orthonormal coordinates, and orthonormal factors. Off, as in the authors' program.
        controlled: RWF's step is cut where the curvature is above one. Off, as in the authors' program.
        published: all of the authors' choices at once: not orthonormal, not controlled, frames of norm one at the
            start, least squares from zero with 50 steps and without preconditioner, ``E`` conjugated.
        start: ``"frames"`` (spectral, frame by frame, then HOSVD), ``"pooled"`` or ``"random"``; or a Tucker model, of
            which the first two factors and the core are taken.
        inner, tolerance: of the conjugate gradients.

    Raises:
        ParameterError: ranks out of range, measurements that are no squared magnitudes, an unknown start.
    """
    root = check_magnitudes(y, op)
    ranks = check_ranks(ranks, (*op.shape, op.q))
    if ranks[2] > ranks[0] * ranks[1]:
        raise ParameterError(f"ranks[2] must be at most ranks[0] * ranks[1] = {ranks[0] * ranks[1]}, got {ranks[2]}.")
    iterations = integer("iterations", iterations, at_least=0)
    orthonormal, controlled = orthonormal and not published, controlled and not published
    d, e, core = _tucker_start(root.square(), op, ranks, start, generator, published)
    best = dict(steps=50, tolerance=1e-6) if published else dict(steps=inner, tolerance=tolerance)
    f, errors = core.new_zeros(op.runs, op.q, ranks[2]), []
    wide, half, small = None, None, op.restrict(left=d, right=e)
    record = recorder(truth, op, errors)
    for t in range(iterations + 1):
        if orthonormal:  # absorbed by f, which is computed next
            core = torch.linalg.qr(core.flatten(2).mT).Q.mT.unflatten(-1, ranks[:2])
        eff = small.columns(core.movedim(1, -1))
        f = rwf(root, eff, op.m, rwf_steps, controlled=controlled)
        target = torch.sgn(eff @ f.unsqueeze(-1)).squeeze(-1) * root
        record(_images, d, e, core, f)
        if t == iterations:
            break
        wide = op.restrict(right=e, reuse=wide)
        d, core = _update_left(wide, target, d, core, f, orthonormal, best)
        half = op.restrict(left=d, reuse=half)
        e, core = _update_right(half, target, e, core, f, orthonormal, best)
        if published:
            e = e.conj().resolve_conj()
        small = half.restrict(right=e, reuse=small)
        core = _update_core(small, target, core, f, orthonormal, best)
    clip = _images(d, e, core, f).movedim(1, -1)
    return Recovery(clip, torch.stack(errors) if truth is not None else None, tucker_size((*op.shape, op.q), ranks))


def _tucker_start(y, op, ranks, start: str | Tucker, generator, published: bool):
    """First factors ``(runs, n_k, r_k)`` and slices of the core ``(runs, r3, r1, r2)``."""
    if isinstance(start, Tucker):
        found = [tuple(part.shape) for part in (*start.factors[:2], start.core)]
        if found != [(op.runs, op.shape[0], ranks[0]), (op.runs, op.shape[1], ranks[1]), (op.runs, *ranks)]:
            raise ParameterError(f"start must be a Tucker model of {op.runs} runs and the ranks {ranks}, got {found}.")
        return *start.factors[:2], start.core.movedim(-1, 1).contiguous()
    if start == "frames":
        crude = spectral_frames(y, op, generator, unit=published).movedim(1, -1)
    elif start == "pooled":
        crude = pooled_basis(op, truncated_weights(y, op, pooled=True), ranks[2], generator)
    elif start == "random":
        shape = (op.runs, *op.shape, ranks[2])
        crude = torch.randn(shape, generator=generator, dtype=op.real, device=generator.device).to(op.device, op.dtype)
    else:
        raise ParameterError(f"start must be 'frames', 'pooled' or 'random', got {start!r}.")
    model = hosvd(crude, ranks)
    return *model.factors[:2], model.core.movedim(-1, 1).contiguous()


def _slices(core: Tensor, f: Tensor) -> Tensor:
    """``G_k = sum_l F[k, l] G[:, :, l]``: ``(runs, q, r1, r2)``."""
    return (f @ core.flatten(2)).unflatten(-1, core.shape[2:])


def _images(d: Tensor, e: Tensor, core: Tensor, f: Tensor) -> Tensor:
    """``X_k = D G_k E^T``: ``(runs, q, n1, n2)``."""
    return d[:, None] @ _slices(core, f) @ e.mT[:, None]


def _update_left(op, target, d, core, f, orthonormal: bool, best: dict):
    """``D`` by least squares; orthonormal again, with the triangle pushed into the core."""
    slices = _slices(core, f)
    forward = lambda v: op.forward(v[:, None] @ slices)
    adjoint = lambda z: (op.adjoint(z) @ slices.mH).sum(1)
    if not orthonormal:
        return cgls(forward, adjoint, target, torch.zeros_like(d), **best), core
    inverse = small_inverse(
        (slices @ slices.mH).sum(1)
    )  # m times this Gram is what the normal matrix is in expectation
    d = cgls(forward, adjoint, target, d, precondition=lambda s: s @ inverse, **best)
    d, r = torch.linalg.qr(d)
    return d, r[:, None] @ core


def _update_right(op, target, e, core, f, orthonormal: bool, best: dict):
    """``E`` likewise; it enters transposed, not conjugated."""
    slices = _slices(core, f)
    forward = lambda v: op.forward(slices @ v.mT[:, None])
    adjoint = lambda z: (slices.mH @ op.adjoint(z)).sum(1).mT
    if not orthonormal:
        return cgls(forward, adjoint, target, torch.zeros_like(e), **best), core
    inverse = small_inverse((slices.mH @ slices).sum(1)).mT
    e = cgls(forward, adjoint, target, e, precondition=lambda s: s @ inverse, **best)
    e, r = torch.linalg.qr(e)
    return e, core @ r.mT[:, None]


def _update_core(op, target, core, f, orthonormal: bool, best: dict):
    """``G`` by least squares, as slices ``(runs, r3, r1, r2)``."""
    forward = lambda v: op.forward(_slices(v, f))
    adjoint = lambda z: (f.mH @ op.adjoint(z).flatten(2)).unflatten(-1, op.shape)
    if not orthonormal:
        return cgls(forward, adjoint, target, torch.zeros_like(core), **best)
    inverse = small_inverse(f.mH @ f)
    return cgls(
        forward, adjoint, target, core,
        precondition=lambda s: (inverse @ s.flatten(2)).unflatten(-1, op.shape), **best,
    )  # fmt: skip


def small_inverse(gram: Tensor) -> Tensor:
    """Inverse of small Hermitian Gram matrices ``(runs, r, r)``, with a ridge."""
    size = gram.shape[-1]
    ridge = RIDGE * gram.diagonal(dim1=-2, dim2=-1).real.mean(-1) + torch.finfo(gram.real.dtype).tiny
    return torch.linalg.inv(gram + ridge[:, None, None] * torch.eye(size, dtype=gram.dtype, device=gram.device))
