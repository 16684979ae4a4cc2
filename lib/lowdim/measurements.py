"""Measurement models of phase retrieval: every frame of a clip has its own linear map, and only magnitudes are seen.

Inside, frames come first: images are ``(runs, q, n1, n2)``, measurements ``(runs, q, m)``; ``runs`` are independent
problems (seeds, sampling ratios) of one batch. Row ``i`` of a map is ``a_i^*``, so ``forward`` gives ``a_i^* x``.
Sensing vectors have entries of variance one in every model.

``restrict(left, right)`` gives the same measurements as a map of smaller images ``Z``, with ``X = left Z right^T``: a
Tucker model touches the large map once for each factor, and its solvers then work on the small one.
"""

import math

import torch
from torch import Tensor

from lowdim import checks as ok
from lowdim.checks import ParameterError, integer

MAP = ok.has("forward", "adjoint", "columns", "restrict")
CLIP = ok.tensor("n1 n2 q", "runs n1 n2 q", floating=False, finite=False)
REAL = (torch.float32, torch.float64)
TINY = 20_000  # images so small that forming D kron I costs less than many products of a few numbers each


class Dense:
    """Sensing vectors as the rows of one matrix for each frame.

    Args:
        rows: ``(runs, q, m, n1 n2)``, real or complex; images are vectorised row by row.
        shape: ``(n1, n2)``.
        counts: ``(runs,)``, how many of the ``m`` rows of a run are used (the others must be zero); all by default.
        frames: ``(runs,)``, how many of the ``q`` frames of a run are used (the others have zero rows).
    """

    @ok.takes(
        rows=ok.tensor("runs q m size", floating=False, finite=False),
        shape=ok.sizes(2),
        counts=ok.optional(ok.values(finite=False, single=False)),
        frames=ok.optional(ok.values(finite=False, single=False)),
    )
    def __init__(self, rows: Tensor, shape: tuple[int, int], counts=None, frames=None):
        if rows.shape[-1] != shape[0] * shape[1]:
            raise ParameterError(f"rows must have {shape[0]} x {shape[1]} columns, got {tuple(rows.shape)}.")
        self.rows, self.shape = rows, tuple(shape)
        self.dtype, self.device, self.real = (
            rows.dtype,
            rows.device,
            rows.real.dtype if rows.is_complex() else rows.dtype,
        )
        self.runs, self.q, self.width = rows.shape[:3]
        for name, value in (("counts", counts), ("frames", frames)):
            if value is not None and len(value) != self.runs:
                raise ParameterError(f"{name} must hold one number for each of {self.runs} runs, got {list(value)}.")
        self.m = self._per_run(counts, self.width)
        self.frames = self._per_run(frames, self.q)

    def _per_run(self, value, default: int) -> Tensor:
        value = torch.full((self.runs,), default) if value is None else torch.as_tensor(value)
        return value.to(self.device, self.real)[:, None, None]

    def part(self, runs: slice) -> "Dense":
        """The map of some of the runs; it shares their memory."""
        return Dense(self.rows[runs], self.shape, self.m.flatten()[runs], self.frames.flatten()[runs])

    def runs_within(self, size: float) -> int:
        """How many runs have sensing vectors of at most ``size`` bytes together, at least one; all on a GPU."""
        one = self.rows[0].numel() * self.rows.element_size()
        return self.runs if self.device.type != "cpu" else max(1, int(size // one))

    def forward(self, x: Tensor) -> Tensor:
        """``a_i^* x_k``: ``(runs, q, n1, n2)`` to ``(runs, q, m)``."""
        flat = x.reshape(-1, 1, self.rows.shape[-1])
        return torch.bmm(flat, self.rows.flatten(0, 1).mT).view(self.runs, self.q, -1)

    def adjoint(self, z: Tensor) -> Tensor:
        """``sum_i z_i a_i``: ``(runs, q, m)`` to ``(runs, q, n1, n2)``."""
        flat = z.reshape(-1, 1, z.shape[-1]).conj().resolve_conj()  # conjugate the short vector, not the matrix
        return torch.bmm(flat, self.rows.flatten(0, 1)).conj().view(self.runs, self.q, *self.shape)

    def columns(self, basis: Tensor) -> Tensor:
        """The maps of each frame on a basis of images: ``(runs, n1, n2, k)`` to ``(runs, q, m, k)``."""
        flat = basis.reshape(self.runs, -1, basis.shape[-1])
        return torch.bmm(self.rows.flatten(1, 2), flat).view(self.runs, self.q, -1, basis.shape[-1])

    def pull(self, z: Tensor) -> Tensor:
        """The adjoint of ``columns``, summed over frames: ``(runs, q, m, k)`` to ``(runs, n1, n2, k)``."""
        flat = z.flatten(1, 2).conj().resolve_conj()
        return torch.bmm(flat.mT, self.rows.flatten(1, 2)).mT.conj().unflatten(1, self.shape)

    def restrict(
        self, left: Tensor | None = None, right: Tensor | None = None, reuse: "Dense | None" = None
    ) -> "Dense":
        """The map on ``Z`` with ``X = left Z right^T``; left ``(runs, n1, r1)``, right ``(runs, n2, r2)``.

        ``reuse`` is an earlier restriction of the same sizes that is not needed any more: its memory is taken.
        """
        (n1, n2), rows = self.shape, self.rows
        new = (n1 if left is None else left.shape[-1], n2 if right is None else right.shape[-1])
        kind = torch.promote_types(rows.dtype, (right if left is None else left).dtype)
        out = (
            rows.new_empty(self.runs, self.q, self.width, new[0] * new[1], dtype=kind) if reuse is None else reuse.rows
        )
        if left is not None and right is None and n1 * n2 * math.prod(new) < TINY:
            both = torch.einsum("xap,bc->xabpc", left, torch.eye(n2, dtype=left.dtype, device=left.device))
            torch.bmm(rows.flatten(1, 2), both.reshape(self.runs, n1 * n2, -1), out=out.flatten(1, 2))
            return Dense(out, new, self.m.flatten(), self.frames.flatten())
        for run in range(self.runs):  # tall products and expanded factors: one run at a time is faster than a batch
            images, target = rows[run].view(-1, n1, n2), out[run].view(-1, *new)
            if right is not None:
                last = target.view(-1, new[1]) if left is None else None
                images = torch.mm(images.view(-1, n2), right[run], out=last).view(-1, n1, new[1])
            if left is not None:
                torch.bmm(left[run].mT.expand(len(images), -1, -1), images, out=target)
        return Dense(out, new, self.m.flatten(), self.frames.flatten())


class CodedDiffraction:
    """Coded diffraction patterns: ``FFT(mask * X)`` for several random masks, without a dense matrix.

    Args:
        masks: ``(runs, q, L, n1, n2)`` with entries of modulus one; ``m = L n1 n2``.
        keep: ``(m_kept,)`` indices of the measurements that are kept, the same for all frames; all by default.
        left, right: as in ``restrict``.
    """

    @ok.takes(
        masks=ok.tensor("runs q masks n1 n2", floating=False, finite=False),
        keep=ok.optional(ok.tensor("kept", floating=False, finite=False)),
        left=ok.optional(ok.tensor("runs n1 r1", floating=False, finite=False)),
        right=ok.optional(ok.tensor("runs n2 r2", floating=False, finite=False)),
    )
    def __init__(
        self, masks: Tensor, keep: Tensor | None = None, left: Tensor | None = None, right: Tensor | None = None
    ):
        self.masks, self.keep, self.left, self.right = masks, keep, left, right
        self.dtype, self.device, self.real = masks.dtype, masks.device, masks.real.dtype
        self.runs, self.q = masks.shape[:2]
        self.shape = tuple(masks.shape[-2 + k] if f is None else f.shape[-1] for k, f in enumerate((left, right)))
        self.width = math.prod(masks.shape[2:]) if keep is None else len(keep)
        self.m = torch.full((self.runs, 1, 1), float(self.width), dtype=self.real, device=self.device)
        self.frames = torch.full_like(self.m, float(self.q))

    def part(self, runs: slice) -> "CodedDiffraction":
        """The map of some of the runs; it shares their memory."""
        left, right = (None if f is None else f[runs] for f in (self.left, self.right))
        return CodedDiffraction(self.masks[runs], self.keep, left, right)

    def runs_within(self, size: float) -> int:
        """All: the masks are small."""
        return self.runs

    def forward(self, x: Tensor) -> Tensor:
        """``a_i^* x_k``: ``(runs, q, n1, n2)`` to ``(runs, q, m)``."""
        if self.left is not None:
            x = self.left[:, None] @ x
        if self.right is not None:
            x = x @ self.right.mT[:, None]
        z = torch.fft.fft2(self.masks * x[:, :, None]).flatten(2)
        return z if self.keep is None else z[..., self.keep]

    def adjoint(self, z: Tensor) -> Tensor:
        """``sum_i z_i a_i``: ``(runs, q, m)`` to ``(runs, q, n1, n2)``."""
        if self.keep is not None:
            whole = z.new_zeros(*z.shape[:2], math.prod(self.masks.shape[2:]))
            whole[..., self.keep] = z
            z = whole
        images = torch.fft.ifft2(z.view(self.masks.shape), norm="forward")  # the adjoint has no factor 1/n
        x = (self.masks.conj() * images).sum(2)
        if self.left is not None:
            x = self.left.mH[:, None] @ x
        return x if self.right is None else x @ self.right.conj()[:, None]

    def columns(self, basis: Tensor) -> Tensor:
        """The maps of each frame on a basis of images: ``(runs, n1, n2, k)`` to ``(runs, q, m, k)``."""
        images = basis.to(self.dtype).unbind(-1)
        return torch.stack([self.forward(b[:, None].expand(-1, self.q, -1, -1)) for b in images], -1)

    def pull(self, z: Tensor) -> Tensor:
        """The adjoint of ``columns``, summed over frames: ``(runs, q, m, k)`` to ``(runs, n1, n2, k)``."""
        return torch.stack([self.adjoint(c).sum(1) for c in z.unbind(-1)], -1)

    def restrict(
        self, left: Tensor | None = None, right: Tensor | None = None, reuse: "CodedDiffraction | None" = None
    ) -> "CodedDiffraction":
        """The map on ``Z`` with ``X = left Z right^T``; left ``(runs, n1, r1)``, right ``(runs, n2, r2)``."""
        join = lambda old, new: new if old is None else (old if new is None else old @ new)
        return CodedDiffraction(self.masks, self.keep, join(self.left, left), join(self.right, right))


@ok.takes(
    shape=ok.sizes(2),
    q=ok.count(),
    m=ok.counts(1),
    generator=ok.generator,
    runs=ok.count(),
    frames=ok.optional(ok.counts(1)),
    is_complex=ok.flag,
    dtype=ok.one_of(*REAL),
)
def gaussian(
    shape: tuple[int, int], q: int, m, generator: torch.Generator, *, runs: int = 1, frames=None,
    is_complex: bool = False, dtype: torch.dtype = torch.float64,
) -> Dense:  # fmt: skip
    """Gaussian sensing vectors, real N(0, 1) or complex CN(0, 1), independent for each frame.

    Args:
        shape, q: size of a frame, number of frames.
        m: measurements of a frame: a whole number, or one for each run; runs with fewer are filled up with zero rows.
        frames: frames that are used, one number for each run; all ``q`` by default.
        dtype: the real precision, float32 or float64.

    Raises:
        ParameterError: fewer than one measurement a frame.
    """
    counts = [m] * runs if isinstance(m, int) else [int(value) for value in m]
    counts = [integer("m", value, at_least=1) for value in counts]
    kind = {torch.float32: torch.complex64, torch.float64: torch.complex128}[dtype] if is_complex else dtype
    size = (len(counts), q, max(counts), shape[0] * shape[1])
    rows = torch.randn(size, generator=generator, dtype=kind, device=generator.device)
    for run, count in enumerate(counts):
        rows[run, :, count:] = 0
        if frames is not None:
            rows[run, int(frames[run]) :] = 0
    return Dense(rows, shape, counts, frames)


@ok.takes(
    shape=ok.sizes(2), q=ok.count(), masks=ok.count(), generator=ok.generator, runs=ok.count(), dtype=ok.one_of(*REAL)
)
def coded_diffraction(
    shape: tuple[int, int], q: int, masks: int, generator: torch.Generator, *, runs: int = 1,
    keep: int | None = None, dtype: torch.dtype = torch.float64,
) -> CodedDiffraction:  # fmt: skip
    """Coded diffraction with masks drawn from {1, -1, i, -i}, independent for each frame.

    Args:
        masks: number of masks; ``m = masks n1 n2``.
        keep: measurements that are kept, drawn at random and the same for all frames; all by default.

    Raises:
        ParameterError: no mask, or more kept than there are.
    """
    masks = integer("masks", masks, at_least=1)
    kind = {torch.float32: torch.complex64, torch.float64: torch.complex128}[dtype]
    device = generator.device
    turns = torch.randint(4, (runs, q, masks, *shape), generator=generator, device=device)
    alphabet = torch.tensor([1, 1j, -1, -1j], dtype=kind, device=device)
    m = masks * shape[0] * shape[1]
    if keep is not None:
        keep = integer("keep", keep, at_least=1, at_most=m)
        keep = torch.randperm(m, generator=generator, device=device)[:keep].sort().values
    return CodedDiffraction(alphabet[turns], keep)


def check_clip(name: str, clip: Tensor, op) -> None:
    """A clip ``(n1, n2, q)`` or ``(runs, n1, n2, q)`` of the map's size.

    Raises:
        ParameterError: another size, or another number of runs than the map's or one.
    """
    fits = clip.dim() == 3 or (clip.dim() == 4 and len(clip) in (1, op.runs))
    if not fits or tuple(clip.shape[-3:]) != (*op.shape, op.q):
        size = f"{op.shape[0]} x {op.shape[1]} x {op.q}"
        raise ParameterError(f"{name} must be {size}, with runs in front or without, got {tuple(clip.shape)}.")


@ok.takes(clip=CLIP, op=MAP)
def frames_first(clip: Tensor, op) -> Tensor:
    """A clip ``(n1, n2, q)`` or ``(runs, n1, n2, q)`` as images of the map: ``(runs, q, n1, n2)``."""
    check_clip("clip", clip, op)
    clip = clip if clip.dim() == 4 else clip[None]
    return clip.movedim(-1, 1).to(op.device, op.dtype).expand(op.runs, -1, -1, -1)


@ok.takes(op=MAP, clip=ok.tensor("n1 n2 q", "runs n1 n2 q", floating=False))
def measure(op, clip: Tensor) -> Tensor:
    """What is seen of a clip, ``y = |A_k^* x_k|^2``: ``(n1, n2, q)`` or ``(runs, n1, n2, q)`` to ``(runs, q, m)``.

    Raises:
        ParameterError: a clip of another size than the map's.
    """
    return op.forward(frames_first(clip, op)).abs().square()


@ok.takes(y=ok.tensor("runs q m", finite=False), op=MAP)
def check_magnitudes(y: Tensor, op) -> Tensor:
    """Square roots of the measurements, checked.

    Raises:
        ParameterError: complex, negative or non-finite measurements, or of another shape than the map's.
    """
    if y.shape != (op.runs, op.q, op.width):
        raise ParameterError(f"y must be (runs, q, m) = {(op.runs, op.q, op.width)}, got {tuple(y.shape)}.")
    if not bool(torch.isfinite(y).all()) or bool((y < 0).any()):
        raise ParameterError(
            f"y must hold squared magnitudes >= 0 and finite, got values from {float(y.min())!r} to {float(y.max())!r}."
        )
    return y.to(op.device, op.real).sqrt()
