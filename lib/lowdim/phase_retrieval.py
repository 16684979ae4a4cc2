"""Low-rank phase retrieval: a clip from magnitudes, with a Tucker model (TSPR) or a low-rank matrix (AltMin).

The clip is ``(n1, n2, q)``; measurements ``y = |A_k^* x_k|^2`` are ``(runs, q, m)`` of a map from
``lowdim.measurements``. All frames and all runs are computed at once. The solvers are corrected versions of

* TSPR (Kwon, Li, Sarwate, ICASSP 2022): Tucker structure, alternating over temporal factor, phases, factors and core;
* AltMinLowRaP (Nayer, Narayanamurthy, Vaswani, arXiv 1902.04972) and AltMinTrunc (Vaswani, Nayer, Eldar, 1608.04141);
* reshaped Wirtinger flow, RWF (Zhang, Zhou, Liang, Chi, arXiv 1605.07719), for the small problems inside the first two.

Corrected means: RWF in orthonormal coordinates and with a step that cannot overflow, a warm start and a preconditioner
for the least squares, factors kept orthonormal, and the conjugates that complex data need. ``published=True`` switches
to what the authors' programs do.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lowdim.checks import ParameterError, integer
from lowdim.measurements import check_magnitudes, frames_first
from lowdim.tensors import Tucker, cgls, check_ranks, hosvd, truncated, tucker_size

RIDGE = 1e-7  # keeps small Gram matrices invertible; relative to their mean diagonal


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


def aligned(estimate: Tensor, truth: Tensor) -> Tensor:
    """The estimate with each frame turned by the phase that brings it closest to the truth.

    Args:
        estimate: ``(runs, n1, n2, q)``.
        truth: ``(n1, n2, q)`` or ``(runs, n1, n2, q)``.
    """
    inner = (estimate.conj() * truth).sum((-3, -2), keepdim=True)
    return torch.where(inner == 0, torch.ones_like(inner), torch.sgn(inner)) * estimate


def aligned_error(estimate: Tensor, truth: Tensor) -> Tensor:
    """``sqrt(sum_k min_theta ||x_k - e^(i theta) xhat_k||^2) / ||X||``, ``(runs,)``; arguments as in ``aligned``."""
    gap = (truth - aligned(estimate, truth)).abs().square().sum((-3, -2, -1))
    return (gap / truth.abs().square().sum((-3, -2, -1))).sqrt()


def matrix_floor(clip: Tensor, rank: int) -> float:
    """Relative error of the best rank-``rank`` matrix with the frames of ``(n1, n2, q)`` as columns."""
    matrix = clip.flatten(0, 1)
    return float((matrix - truncated(matrix, rank)).norm() / matrix.norm())


def tucker_floor(clip: Tensor, ranks) -> float:
    """Relative error of the HOSVD of ``(n1, n2, q)`` at the given ranks."""
    return float((clip - hosvd(clip, ranks).full()).norm() / clip.norm())


# ---------------------------------------------------------------- pieces


def top_vectors(op, weights: Tensor, steps: int, generator: torch.Generator) -> Tensor:
    """Top eigenvector of ``(1/m) sum_i w_i a_i a_i^*`` for every frame, by Lanczos: ``(runs, q, n1, n2)``, unit norm.

    Args:
        weights: ``(runs, q, m)``.
        steps: Lanczos steps (each reads the map twice), with full reorthogonalisation.
    """
    n1, n2 = op.shape
    steps = min(steps, n1 * n2)
    start = torch.randn(op.runs, op.q, n1 * n2, generator=generator, dtype=op.real, device=generator.device)
    v = start.to(op.device, op.dtype)
    v /= v.norm(dim=-1, keepdim=True)
    basis = v.new_zeros(op.runs, op.q, steps, n1 * n2)
    small = torch.zeros(op.runs, op.q, steps, steps, dtype=op.real, device=op.device)
    tiny = torch.finfo(op.real).tiny
    for j in range(steps):
        basis[:, :, j] = v
        w = op.adjoint(weights * op.forward(v.unflatten(-1, (n1, n2)))).flatten(2) / op.m
        small[:, :, j, j] = (v.conj() * w).sum(-1).real
        for _ in range(2):  # twice is enough
            known = basis[:, :, : j + 1]
            w = w - (known.mT @ (known.conj() @ w.unsqueeze(-1))).squeeze(-1)
        beta = w.norm(dim=-1)
        largest = small.diagonal(dim1=-2, dim2=-1).amax(-1)
        ended = (beta <= 100 * torch.finfo(op.real).eps * largest).unsqueeze(-1)  # an invariant subspace: stay in it
        beta = torch.where(ended.squeeze(-1), 0.0, beta)
        if j + 1 < steps:
            small[:, :, j, j + 1] = small[:, :, j + 1, j] = beta
        v = torch.where(ended, 0.0, w / beta.clamp(min=tiny).unsqueeze(-1))
    top = torch.linalg.eigh(small).eigenvectors[..., -1].to(op.dtype)
    x = (top.unsqueeze(-2) @ basis).squeeze(-2)
    return (x / x.norm(dim=-1, keepdim=True).clamp(min=tiny)).unflatten(-1, (n1, n2))


def truncated_weights(y: Tensor, op, pooled: bool = False) -> Tensor:
    """``y_i`` where it is at most 9 times the mean, else 0; the mean of its frame, or of all frames (``pooled``)."""
    mean = y.sum(-1, keepdim=True) / op.m
    if pooled:
        mean = y.sum((-2, -1), keepdim=True) / (op.m * op.frames)
    return torch.where(y <= 9 * mean, y, 0.0)


def spectral_frames(y: Tensor, op, generator, steps: int = 24, unit: bool = False) -> Tensor:
    """A crude clip from the magnitudes alone, frame by frame: ``(runs, q, n1, n2)``.

    Frame ``k`` has norm ``sqrt(mean_i y_ik)``, that of ``x_k`` in expectation; with ``unit`` all have norm one.
    """
    crude = top_vectors(op, truncated_weights(y, op), steps, generator)
    return crude if unit else crude * (y.sum(-1) / op.m[..., 0]).sqrt()[..., None, None]


def pooled_basis(op, weights: Tensor, rank: int, generator, steps: int = 15) -> Tensor:
    """Top eigenvectors of the sum over frames of ``A_k diag(w_k) A_k^*``: ``(runs, n1, n2, rank)``, orthonormal.

    Subspace iteration with twice the rank and a Rayleigh-Ritz step at the end.
    """
    size, n = min(2 * rank + 2, op.shape[0] * op.shape[1]), op.shape[0] * op.shape[1]
    start = torch.randn(op.runs, n, size, generator=generator, dtype=op.real, device=generator.device)
    u = torch.linalg.qr(start.to(op.device, op.dtype)).Q
    scale = weights.sum((-2, -1))[:, None, None] + torch.finfo(op.real).tiny
    product = lambda v: op.pull(weights.unsqueeze(-1) * op.columns(v.unflatten(1, op.shape))).flatten(1, 2) / scale
    for _ in range(steps):
        u = torch.linalg.qr(product(u)).Q
    ritz = torch.linalg.eigh(u.mH @ product(u)).eigenvectors[..., -rank:].flip(-1)
    return (u @ ritz).unflatten(1, op.shape)


def rwf(root: Tensor, rows: Tensor, m: Tensor, steps: int = 50, rate: float = 0.8, controlled: bool = True) -> Tensor:
    """Reshaped Wirtinger flow for many small problems ``root ~ |rows z|`` at once.

    ``z <- z - rate (1/m) sum_i (a_i^* z - y_i phase(a_i^* z)) a_i``, from a spectral start; the columns of the problem
    should be orthonormal coordinates of ``x``, else the curvature of the loss varies with the direction.

    Args:
        root: ``(runs, q, m)`` magnitudes (not squared).
        rows: ``(runs, q, m, k)``, row ``i`` is ``a_i^*``.
        m: measurements that count, broadcast against ``(runs, q, 1)``.
        controlled: divide the step by the largest eigenvalue of ``(1/m) sum a_i a_i^*`` where that is above one.

    Returns:
        ``(runs, q, k)``.
    """
    k, tiny = rows.shape[-1], torch.finfo(root.dtype).tiny
    size = rows.abs().sum((-2, -1)).unsqueeze(-1)  # sum_i ||a_i||_1
    scale = k * root.sum(-1, keepdim=True) / size.clamp(min=tiny)
    weights = torch.where((root >= scale) & (root <= 5 * scale), root, 0.0)
    gram = rows.mH @ (weights.unsqueeze(-1) * rows) / m.unsqueeze(-1)
    start = torch.linalg.eigh(torch.nan_to_num(gram)).eigenvectors[..., -1]
    z = (scale * start).unsqueeze(-2)  # a row, (runs, q, 1, k)
    step = rate / m
    if controlled:
        curvature = torch.linalg.eigvalsh(rows.mH @ rows / m.unsqueeze(-1))[..., -1:]
        step = step / curvature.clamp(min=1)
    step, root = step.unsqueeze(-1), root.unsqueeze(-2)
    flat = lambda tensor: tensor.flatten(0, 1)
    forward, back, state = flat(rows.mT.contiguous()), flat(rows.conj().resolve_conj()), flat(z.contiguous())
    z, pull = state.view(z.shape), torch.empty_like(state)
    image = state.new_empty(len(state), 1, rows.shape[-2])
    phase = torch.empty_like(image)
    for _ in range(steps):  # in place: at these sizes allocation would cost more than arithmetic
        torch.bmm(state, forward, out=image)
        torch.sgn(image, out=phase)
        image -= phase.mul_(flat(root))
        torch.bmm(image, back, out=pull)
        z -= step * pull.view(z.shape)
    return z.squeeze(-2)


def _inverse(gram: Tensor) -> Tensor:
    """Inverse of small Hermitian Gram matrices ``(runs, r, r)``, with a ridge."""
    size = gram.shape[-1]
    ridge = RIDGE * gram.diagonal(dim1=-2, dim2=-1).real.mean(-1) + torch.finfo(gram.real.dtype).tiny
    return torch.linalg.inv(gram + ridge[:, None, None] * torch.eye(size, dtype=gram.dtype, device=gram.device))


# ---------------------------------------------------------------- TSPR


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
    record = _recorder(truth, op, errors)
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
    inverse = _inverse((slices @ slices.mH).sum(1))  # m times this Gram is what the normal matrix is in expectation
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
    inverse = _inverse((slices.mH @ slices).sum(1)).mT
    e = cgls(forward, adjoint, target, e, precondition=lambda s: s @ inverse, **best)
    e, r = torch.linalg.qr(e)
    return e, core @ r.mT[:, None]


def _update_core(op, target, core, f, orthonormal: bool, best: dict):
    """``G`` by least squares, as slices ``(runs, r3, r1, r2)``."""
    forward = lambda v: op.forward(_slices(v, f))
    adjoint = lambda z: (f.mH @ op.adjoint(z).flatten(2)).unflatten(-1, op.shape)
    if not orthonormal:
        return cgls(forward, adjoint, target, torch.zeros_like(core), **best)
    inverse = _inverse(f.mH @ f)
    return cgls(
        forward, adjoint, target, core,
        precondition=lambda s: (inverse @ s.flatten(2)).unflatten(-1, op.shape), **best,
    )  # fmt: skip


def _recorder(truth, op, errors: list):
    """``record(estimate, *arguments)`` appends the error of ``estimate(*arguments)``, if there is a truth."""
    if truth is None:
        return lambda estimate, *arguments: None
    frames = frames_first(truth, op).movedim(1, -1)
    return lambda estimate, *arguments: errors.append(aligned_error(estimate(*arguments).movedim(1, -1), frames))


# ---------------------------------------------------------------- low-rank matrix baselines


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
    record = _recorder(truth, op, errors)
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
    record = _recorder(truth, op, errors)
    eff = op.columns(u)
    gram = eff.mH @ (weights.unsqueeze(-1) * eff) / op.m.unsqueeze(-1)
    b = torch.linalg.eigh(gram).eigenvectors[..., -1] * (root.square().sum(-1, keepdim=True) / op.m).sqrt()
    for t in range(iterations + 1):
        record(_frames, u, b.conj() if published else b)
        if t == iterations:
            break
        target = torch.sgn(eff @ b.unsqueeze(-1)).squeeze(-1) * root
        u = _update_basis(op, target, torch.zeros_like(u) if published else u, b, _inverse((b.mH @ b).conj()), best)
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
