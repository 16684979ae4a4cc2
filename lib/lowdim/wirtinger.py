"""Inside the solvers of phase retrieval: spectral starts, and reshaped Wirtinger flow for many small problems.

Measurements ``y = |A_k^* x_k|^2`` are ``(runs, q, m)``; maps are those of ``lowdim.measurements``.
"""

import torch
from torch import Tensor

from lowdim import checks as ok

FREE = dict(finite=False)  # entries are not looked at: the solvers have done so
MAP = ok.has("forward", "adjoint", "columns", "pull")


@ok.takes(op=MAP, weights=ok.tensor("runs q m", **FREE), steps=ok.count(), generator=ok.generator)
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


@ok.takes(y=ok.tensor("runs q m", **FREE), op=MAP, pooled=ok.flag)
def truncated_weights(y: Tensor, op, pooled: bool = False) -> Tensor:
    """``y_i`` where it is at most 9 times the mean, else 0; the mean of its frame, or of all frames (``pooled``)."""
    mean = y.sum(-1, keepdim=True) / op.m
    if pooled:
        mean = y.sum((-2, -1), keepdim=True) / (op.m * op.frames)
    return torch.where(y <= 9 * mean, y, 0.0)


@ok.takes(y=ok.tensor("runs q m", **FREE), op=MAP, generator=ok.generator, steps=ok.count(), unit=ok.flag)
def spectral_frames(y: Tensor, op, generator, steps: int = 12, unit: bool = False) -> Tensor:
    """A crude clip from the magnitudes alone, frame by frame: ``(runs, q, n1, n2)``.

    Frame ``k`` has norm ``sqrt(mean_i y_ik)``, that of ``x_k`` in expectation; with ``unit`` all have norm one.
    """
    crude = top_vectors(op, truncated_weights(y, op), steps, generator)
    return crude if unit else crude * (y.sum(-1) / op.m[..., 0]).sqrt()[..., None, None]


@ok.takes(op=MAP, weights=ok.tensor("runs q m", **FREE), rank=ok.count(), generator=ok.generator, steps=ok.count(0))
def pooled_basis(op, weights: Tensor, rank: int, generator, steps: int = 8) -> Tensor:
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


@ok.takes(
    root=ok.tensor("runs q m", **FREE),
    rows=ok.tensor("runs q m k", floating=False, **FREE),
    m=ok.tensor(**FREE),
    steps=ok.count(0),
    rate=ok.real(above=0),
    controlled=ok.flag,
)
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
    flat = lambda tensor: tensor.flatten(0, 1)
    forward, back = flat(rows.mT.contiguous()), flat(rows.conj().resolve_conj() * step.unsqueeze(-1))
    z, root = flat(z.contiguous()), flat(root.unsqueeze(-2))
    image = z.new_empty(len(z), 1, rows.shape[-2])
    phase = torch.empty_like(image)
    for _ in range(steps):  # in place: at these sizes allocation would cost more than arithmetic
        torch.bmm(z, forward, out=image)
        if image.is_complex():
            torch.sgn(image, out=phase)
            phase.mul_(root)
        else:
            torch.copysign(root, image, out=phase)
        z.baddbmm_(image.sub_(phase), back, alpha=-1)
    return z.view(*rows.shape[:2], k)
