"""Fitting structured matrices to given ones: BLAST by gradient descent, the other structures in closed form.

A BLAST matrix with ``b x b`` blocks of rank ``r`` has the blocks ``A_ij = U_i diag(s_ij) V_j^T`` (Lee et al. 2024,
NeurIPS, section 2). Batched over matrices; shapes here are ``u (runs, b, p, r)``, ``v (runs, b, q, r)`` and
``s (runs, b, b, r)`` for matrices ``(runs, b p, b q)``. Nothing is ever inverted.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lowdim import checks as ok
from lowdim.checks import ParameterError, choice, integer, number

FORMS = ("paper", "released")
CACHE_NUMBERS = 1 << 20  # numbers in a temporary that stays in the caches; measured: 2^18 is up to a third slower
CHOLESKY_RANK = 64  # measured: the largest block that is better factorized at once
SMALL_ROW, MANY = 192, 768  # measured: up to rows of so many bytes, at least so many systems are better eliminated
SIDE_BY_SIDE = 1 << 21  # numbers in these systems; measured: the more, the better, while the last cache holds them
ROUNDING = 8  # damping is at least so many eps of a Gram matrix's trace: below that its small eigenvalues are noise
POWER_STEPS = 2  # power iterations for each step size; the vectors are kept from one step to the next


class BlastFactors(NamedTuple):
    """Factors of BLAST matrices; any leading batch shape."""

    u: Tensor  # (..., b, p, r)
    v: Tensor  # (..., b, q, r)
    s: Tensor  # (..., b, b, r)

    def dense(self) -> Tensor:
        """The matrices ``(..., b p, b q)``."""
        left = self.u.unsqueeze(-3) * self.s.unsqueeze(-2)  # (..., i, j, p, r)
        blocks = left @ self.v.unsqueeze(-4).mT  # (..., i, j, p, q)
        return blocks.transpose(-3, -2).flatten(-4, -3).flatten(-2, -1)

    def balanced(self) -> "BlastFactors":
        """The same matrices with unit columns in every ``U_i`` and ``V_j``; their norms move into ``s``."""
        tiny = torch.finfo(self.u.dtype).tiny
        nu, nv = self.u.norm(dim=-2).clamp(min=tiny), self.v.norm(dim=-2).clamp(min=tiny)  # (..., b, r)
        s = self.s * nu.unsqueeze(-2) * nv.unsqueeze(-3)
        return BlastFactors(self.u / nu.unsqueeze(-2), self.v / nv.unsqueeze(-2), s)


def check_blocks(rows: int, columns: int, blocks: int) -> int:
    """The number of blocks along each side, if it divides both.

    Raises:
        ParameterError: it does not; the message names the numbers that do.
    """
    blocks, common = integer("blocks", blocks, at_least=1), math.gcd(rows, columns)
    if common % blocks:
        fine = ", ".join(str(k) for k in range(1, common + 1) if common % k == 0)
        raise ParameterError(
            f"blocks={blocks} does not divide a {rows} x {columns} matrix; numbers of blocks that do: {fine}."
        )
    return blocks


def check_matrices(name: str, matrices: Tensor) -> Tensor:
    """A floating-point tensor ``(..., rows, columns)`` with finite entries."""
    if not torch.is_tensor(matrices) or matrices.dim() < 2 or not matrices.is_floating_point() or not matrices.numel():
        shape = f"{matrices.dtype} {tuple(matrices.shape)}" if torch.is_tensor(matrices) else type(matrices).__name__
        raise ParameterError(f"{name} must be a floating-point tensor (..., rows, columns), got {shape}.")
    if not bool(torch.isfinite(matrices).all()):
        raise ParameterError(f"{name} must have finite entries, got NaN or infinity.")
    return matrices


def blast_start(
    runs: int, rows: int, columns: int, blocks: int, rank: int, generator, *, std=0.01, gains="uniform",
    dtype=torch.float64,
) -> BlastFactors:  # fmt: skip
    """Random factors: ``U, V`` from ``N(0, std^2)``, ``s`` uniform on 0..1 or standard normal (``gains="normal"``)."""
    blocks, rank = check_blocks(rows, columns, blocks), integer("rank", rank, at_least=1)
    std, gains = number("std", std, above=0), choice("gains", gains, ("uniform", "normal"))
    draw = dict(generator=generator, dtype=dtype, device=generator.device)
    u = torch.randn(runs, blocks, rows // blocks, rank, **draw).mul_(std)
    v = torch.randn(runs, blocks, columns // blocks, rank, **draw).mul_(std)
    return BlastFactors(u, v, (torch.rand if gains == "uniform" else torch.randn)(runs, blocks, blocks, rank, **draw))


class BlastDescent:
    """Alternating gradient descent on ``1/2 ||A - A_hat||_F^2`` over ``U``, then ``V``, then ``s``.

    The gradients are those of Lee et al. 2024, section 3. That in ``U`` comes from the residual, while the last loss is
    taken; the others from Gram matrices, ``V_j G_j - sum_i (A_ij^T U_i) s_ij`` with
    ``G_j = sum_i (U_i^T U_i) o (s_ij s_ij^T)`` and so on, and share the products ``A_ij^T U_i``; each ``U_i^T U_i`` and
    ``V_j^T V_j`` serves two updates. ``preconditioned=False`` divides each block's gradient by the largest eigenvalue
    of its Gram matrix (the steps under which the loss cannot rise); ``True`` solves with it plus ``delta0 sqrt(loss)``,
    the loss being taken anew before each of the three, and never less than rounding in the Gram matrix: with
    ``rank > p q``, or a tiny ``delta0`` in single precision, it would be singular.

    Args:
        matrices: ``(runs, rows, columns)``.
        start: the factors to begin with; copied.
        iterations: over which the step falls linearly from ``step[0]`` to ``step[1]``; constant afterwards.
        step: two numbers, or ``(runs, 2)``.
        delta0: one number, or one per run.
        form: ``"paper"``, or ``"released"`` for the gradients of ``||A - A_hat||_F^2`` without the 1/2, as in the
            authors' code: every step is doubled and the damping is ``sqrt(2)`` times as large.

    Raises:
        ParameterError: shapes that do not fit, or a value out of range.
    """

    run_dim = 0

    def __init__(
        self, matrices: Tensor, start: BlastFactors, iterations: int, *, preconditioned=True, step=(1.0, 0.0),
        delta0=0.1, form="paper",
    ):  # fmt: skip
        check_matrices("matrices", matrices)
        ok.kind(BlastFactors, "BlastFactors, as blast_start makes")("start", start, {})
        ok.flag("preconditioned", preconditioned, {})
        ok.values()("step", step, {})
        ok.values(at_least=0)("delta0", delta0, {})
        runs, b, p, r = start.u.shape
        ok.one_or_each("delta0", delta0, runs)
        q = start.v.shape[-2]
        if matrices.shape != (runs, b * p, b * q):
            raise ParameterError(
                f"matrices must be {(runs, b * p, b * q)}, as the factors, got {tuple(matrices.shape)}."
            )
        self.iterations = integer("iterations", iterations, at_least=1)
        twice = 2.0 if choice("form", form, FORMS) == "released" else 1.0
        per_run = lambda value: torch.as_tensor(value, dtype=matrices.dtype, device=matrices.device)
        self._step = (per_run(step) * twice).expand(runs, 2)
        self._delta0 = (per_run(delta0) * math.sqrt(twice)).expand(runs)
        self.preconditioned, self._buffers = preconditioned, {}
        self.u, self.v, self.s = (factor.clone() for factor in start)
        self._rows = matrices.reshape(runs, b, p, b * q)  # block row i
        self._across = self._rows.mT.contiguous()
        self._sizes = matrices.square().sum((-2, -1))
        self._time, self._gradient = torch.zeros_like(self._sizes), torch.empty_like(self.u)
        self._gu, self._gv = (f.mT @ f for f in (self.u, self.v))  # U_i^T U_i and V_j^T V_j, (runs, b, r, r)
        self._loss = self._look(slice(0, runs))
        self._slices = list(_pieces(runs, CACHE_NUMBERS // (b * b * max(p, q) * r)))
        if not preconditioned:
            self._tops = [torch.ones_like(f) for f in (self.s[:, 0], self.s[:, 0], self.s)]

    @property
    def state(self) -> list[Tensor]:
        return [self.u, self.v, self.s, self._loss, self._time, self._gradient, self._gu, self._gv]

    def factors(self) -> BlastFactors:
        """The present factors (views)."""
        return BlastFactors(self.u, self.v, self.s)

    def loss(self) -> Tensor:
        """``1/2 ||A - A_hat||_F^2`` of each run, from the residual itself, ``(runs,)``."""
        return self._loss

    def error(self) -> Tensor:
        """``||A - A_hat||_F / ||A||_F``, ``(runs,)``."""
        return (2 * self._loss / self._sizes).sqrt()

    def step(self) -> None:
        """One iteration of every run, in place; a few runs at a time, so that temporaries stay in the cache."""
        for runs in self._slices:
            share = (1 - self._time[runs] / self.iterations).clamp(min=0)
            eta = self._step[runs, 1] + share * (self._step[runs, 0] - self._step[runs, 1])
            loss = self._loss[runs].clone()
            self._step_u(runs, eta, loss)
            self._step_v(runs, eta, loss)
            self._step_s(runs, eta, loss)
            self._loss[runs] = self._look(runs)
        self._time += 1

    def _step_u(self, runs: slice, eta: Tensor, loss: Tensor) -> None:
        u = self.u[runs]
        self._move(runs, 0, u, self._grams(self._gv[runs], self.s[runs]), self._gradient[runs], eta, loss)
        torch.matmul(u.mT, u, out=self._gu[runs])

    def _step_v(self, runs: slice, eta: Tensor, loss: Tensor) -> None:
        u, v, s, across = self.u[runs], self.v[runs], self.s[runs], self._across[runs]
        au = torch.matmul(across, u, out=self._room("au", *across.shape[:3], u.shape[3]))
        self._au = au.unflatten(2, v.shape[1:3])  # A_ij^T U_i, (runs, i, j, q, r): for the gains too
        gram, pull = self._grams(self._gu[runs], s.transpose(1, 2)), torch.zeros_like(v)
        for i in _pieces(s.shape[1], CACHE_NUMBERS // v.numel()):
            part = torch.mul(self._au[:, i], s[:, i, :, None], out=self._room("stack", *self._au[:, i].shape))
            pull += part.sum(1)
        self._move(runs, 1, v, gram, (v @ gram).sub_(pull), eta, loss)
        torch.matmul(v.mT, v, out=self._gv[runs])

    def _move(self, runs, which: int, factor: Tensor, gram: Tensor, gradient: Tensor, eta, loss) -> None:
        """Step one of the two outer factors ``(runs, b, p, r)`` and bring its loss up to date; ``gram`` is used up."""
        wide = eta.view(-1, 1, 1, 1)
        if not self.preconditioned:  # no damping, and nobody asks for the loss before the next residual
            top, _ = self._largest(which, runs, gram, also=None)
            factor.addcmul_(gradient / top[..., None, None], wide, value=-1)
            return
        diagonal = gram.diagonal(dim1=-2, dim2=-1)
        delta = self._damping(runs, loss[:, None], diagonal.sum(-1))[..., None]  # (runs, b, 1)
        diagonal += delta
        way = _solve(gram, gradient.mT).mT
        # the loss is quadratic in the factor, and way (gram + delta) = gradient: no residual is needed, no product, and
        # nothing cancels against ||A||^2
        bend = torch.mul(way, 0.5 * wide * delta[..., None]).addcmul_(gradient, 1 - 0.5 * wide)
        loss -= eta * bend.mul_(way).sum((-3, -2, -1))
        factor.addcmul_(way, wide, value=-1)

    def _step_s(self, runs: slice, eta: Tensor, loss: Tensor) -> None:
        v, s, eta = self.v[runs], self.s[runs], eta.view(-1, 1, 1, 1)
        gu, gv = self._gu[runs], self._gv[runs]
        traces = gu.diagonal(dim1=-2, dim2=-1) @ gv.diagonal(dim1=-2, dim2=-1).mT  # of the W_ij below, (runs, b, b)
        damping = self._damping(runs, loss[:, None, None], traces)[..., None]
        b, r = s.shape[-2:]
        small = self.preconditioned and r * s.element_size() <= SMALL_ROW and len(s) * b * b >= MANY
        room = SIDE_BY_SIDE if small else CACHE_NUMBERS
        fit = max(1, room // (len(s) * r * max(r, v.shape[2])))  # pairs (i, j) treated at once
        if small:  # systems on the last axis
            gu, gv = (g.permute(2, 3, 0, 1).contiguous() for g in (gu, gv))
        for i in _pieces(b, max(1, fit // b)):
            for j in _pieces(b, min(b, fit)):
                part = self._room("stack", len(s), i, j, *v.shape[2:])
                right, old = torch.mul(self._au[:, i, j], v[:, None, j], out=part).sum(-2), s[:, i, j]  # diag(U'AV)
                delta = damping[:, i, j]
                if self.preconditioned:  # s - eta (W + delta)^-1 (W s - right), without the product W s
                    right.addcmul_(delta, old)
                # W_ij = (U_i^T U_i) o (V_j^T V_j)
                if small:
                    w = torch.mul(gu[..., i, None], gv[..., None, j], out=self._room("w", r, r, len(s), i, j))
                    w.diagonal(dim1=0, dim2=1).add_(delta)
                    best = _eliminate(w.flatten(2), right.flatten(0, 2).T.contiguous()).T.view_as(old)
                    old.lerp_(best, eta.expand_as(old))
                    continue
                w = torch.mul(gu[:, i, None], gv[:, None, j], out=self._room("w", len(s), i, j, r, r))
                if self.preconditioned:
                    w.diagonal(dim1=-2, dim2=-1).add_(delta)
                    best = _solve(w, right.unsqueeze(-1)).squeeze(-1)
                    old.lerp_(best, eta.expand_as(old))
                else:
                    top, image = self._largest(2, runs, w, i, j, also=old)
                    old -= eta * (image - right) / top[..., None]

    def _damping(self, runs: slice, loss: Tensor, traces: Tensor) -> Tensor:
        """``delta0 sqrt(loss)``, but at least rounding in Gram matrices with these traces, so that none is singular."""
        asked = self._delta0[runs].view_as(loss) * loss.clamp(min=0).sqrt()
        return torch.maximum(asked, ROUNDING * torch.finfo(traces.dtype).eps * traces)

    def _largest(self, which: int, runs: slice, gram: Tensor, *rows: slice, also: Tensor):
        """Largest eigenvalues of Gram matrices, and the matrices times ``also (..., r)`` where it is given.

        Power iteration from the last vectors, plus the residual's norm, so that a step is rather too short.
        """
        vectors = self._tops[which][(runs, *rows)]
        # one vector a matrix: batched products take longer than multiplying and adding up
        times = lambda x: torch.mul(gram, x.unsqueeze(-2), out=self._room("image", *gram.shape)).sum(-1)
        unit = vectors
        for _ in range(POWER_STEPS):
            unit = times(unit)
            unit = unit / unit.norm(dim=-1, keepdim=True)
        image = times(unit)
        value = (unit * image).sum(-1, keepdim=True)
        vectors.copy_(unit)
        return (value + (image - value * unit).norm(dim=-1, keepdim=True)).squeeze(-1), None if also is None else times(
            also
        )

    def _look(self, runs: slice) -> Tensor:
        """The loss from the residual, and the gradient in ``U`` on the way."""
        u, rows, total = self.u[runs], self._rows[runs], torch.zeros_like(self._sizes[runs])
        gradient = self._gradient[runs]
        for i, stacked in self._stacks(self.v[runs], self.s[runs]):  # V_bar_i = stack_j V_j diag(s_ij)
            part = rows[:, i]
            residual = torch.matmul(u[:, i], stacked.mT, out=self._room("residual", *part.shape)).sub_(part)
            total += torch.linalg.vector_norm(residual, dim=(-3, -2, -1)).square_()
            torch.matmul(residual, stacked, out=gradient[:, i])
        return 0.5 * total

    def _stacks(self, factor: Tensor, s: Tensor):
        """``stack_j F_j diag(s_ij)`` for a few ``i`` at a time: factor ``(runs, j, q, r)``, s ``(runs, i, j, r)``."""
        for i in _pieces(s.shape[1], CACHE_NUMBERS // factor.numel()):
            room = self._room("stack", *s[:, i].shape[:3], *factor.shape[-2:])
            yield i, torch.mul(factor[:, None], s[:, i, :, None], out=room).flatten(2, 3)

    def _grams(self, products: Tensor, s: Tensor) -> Tensor:
        """Gram matrices of the stacks, not formed: ``sum_j (F_j^T F_j) o (s_ij s_ij^T)``, ``(runs, i, r, r)``."""
        runs, b, _, r = products.shape
        out = products.new_empty(runs, b, r, r)
        for i in _pieces(b, CACHE_NUMBERS // products.numel()):
            terms = torch.mul(products[:, None], s[:, i, :, :, None], out=self._room("w", runs, i, b, r, r))
            torch.sum(terms.mul_(s[:, i, :, None, :]), 2, out=out[:, i])
        return out

    def _room(self, name: str, *shape) -> Tensor:
        """A buffer of this shape; a slice stands for its length. The system takes long to hand out large new ones."""
        shape = [n if isinstance(n, int) else n.stop - n.start for n in shape]
        numbers = math.prod(shape)
        if name not in self._buffers or self._buffers[name].numel() < numbers:
            self._buffers[name] = self.u.new_empty(numbers)
        return self._buffers[name][:numbers].view(shape)


def _pieces(total: int, width: int):
    """Slices of at most ``width`` (at least 1) that cover ``0..total``."""
    width = max(1, width)
    return (slice(first, min(first + width, total)) for first in range(0, total, width))


def _eliminate(w: Tensor, right: Tensor) -> Tensor:
    """``w^-1 right`` for many small positive definite systems ``(r, r, systems)``, ``(r, systems)``; overwrites both.

    Every operation runs along the systems: ``w = L D L^T``, no square roots.
    """
    for k in range(len(w) - 1):
        below, column = w[k + 1 :, k + 1 :], w[k + 1 :, k]
        scaled = column / w[k, k]
        below.addcmul_(scaled[:, None], column[None], value=-1)
        right[k + 1 :].addcmul_(scaled, right[k], value=-1)
        column.copy_(scaled)
    right /= w.diagonal().T
    for k in range(len(w) - 1, 0, -1):
        right[:k].addcmul_(w[k, :k], right[k], value=-1)
    return right


def _solve(gram: Tensor, right: Tensor) -> Tensor:
    """``gram^-1 right`` for positive definite matrices ``(..., r, r)``, by elimination; overwrites ``gram``. No check.

    Cholesky factors block by block: LAPACK is slow on matrices of a few hundred rows, batched products are not.
    """
    rank = gram.shape[-1]
    if rank <= CHOLESKY_RANK:
        lower = gram.mT  # by columns, as LAPACK wants it: factorized in place, without a copy
        torch.linalg.cholesky_ex(
            lower, out=(lower, torch.empty(lower.shape[:-2], dtype=torch.int32, device=lower.device))
        )
        half = torch.linalg.solve_triangular(lower, right, upper=False)
        return torch.linalg.solve_triangular(lower.mT, half, upper=True)
    done, right = [], right.clone()
    for k in _pieces(rank, CHOLESKY_RANK):
        lower = torch.linalg.cholesky_ex(gram[..., k, k])[0]
        right[..., k, :] = half = torch.linalg.solve_triangular(lower, right[..., k, :], upper=False)
        below, across = slice(k.stop, rank), None
        if k.stop < rank:
            across = torch.linalg.solve_triangular(lower, gram[..., k, below], upper=False)
            gram[..., below, below] -= across.mT @ across
            right[..., below, :] -= across.mT @ half
        done.append((k, below, lower, across))
    for k, below, lower, across in reversed(done):
        rest = right[..., k, :] if across is None else right[..., k, :] - across @ right[..., below, :]
        right[..., k, :] = torch.linalg.solve_triangular(lower.mT, rest, upper=True)
    return right


def factorize(
    weights: Tensor, blocks: int, rank: int, *, iterations=100, form="released", delta0=0.1, column_scale=None,
    generator=None,
) -> tuple[BlastFactors, Tensor]:  # fmt: skip
    """BLAST factors of weights ``(runs, rows, columns)``, as the authors fit them, and relative errors ``(runs,)``.

    Each matrix is divided by its standard deviation first, since the damping has its units; columns of ``U`` and ``V``
    end with unit norm, all else is in ``s``. Starts from ``U, V ~ N(0, 1e-6 / rank)``, ``s ~ N(0, 1)``. The error of a
    zero matrix is absolute.

    Args:
        iterations: preconditioned steps, from 1 (``form="paper"``) or 2 (``"released"``) linearly down to 0.
        column_scale: ``(columns,)`` or ``(runs, columns)`` weights of the columns' errors, all > 0: with the root mean
            square of each input feature the error that counts is the one that the layer's output sees.
        generator: on the device of ``weights``; by default one with seed 0.

    Raises:
        ParameterError: blocks that do not divide the sizes, a value out of range, or entries that are not finite.
    """
    if check_matrices("weights", weights).dim() != 3:
        raise ParameterError(f"weights must be (runs, rows, columns), got {tuple(weights.shape)}.")
    runs, rows, columns = weights.shape
    work = weights if weights.dtype == torch.float64 else weights.float()  # half precision cannot be factorized
    if column_scale is not None:
        ok.tensor("columns", "runs columns", above=0)("column_scale", column_scale, dict(runs=runs, columns=columns))
        column_scale = column_scale.expand(runs, columns).to(work)
        work = work * column_scale[:, None]
    size, rms = work.std((-2, -1), keepdim=True), work.square().mean((-2, -1), keepdim=True).sqrt()
    size = torch.where(size > rms * torch.finfo(work.dtype).eps, size, rms)  # a constant matrix
    size = torch.where(size > 0, size, 1)  # zero
    generator = torch.Generator(work.device).manual_seed(0) if generator is None else generator
    ok.generator("generator", generator, {})
    rank = integer("rank", rank, at_least=1)
    start = blast_start(runs, rows, columns, blocks, rank, generator, std=1e-3 / math.sqrt(rank), gains="normal",
                        dtype=work.dtype)  # fmt: skip
    descent = BlastDescent(work / size, start, iterations, form=form, delta0=delta0)
    for _ in range(iterations):
        descent.step()
    u, v, s = descent.factors()
    if column_scale is not None:
        v = v / column_scale.unflatten(-1, (blocks, -1))[..., None]
    factors = BlastFactors(u, v, s * size.unsqueeze(-1)).balanced()
    norms = weights.norm(dim=(-2, -1))
    errors = (factors.dense() - weights).norm(dim=(-2, -1)) / torch.where(norms > 0, norms, 1)
    return BlastFactors(*(factor.to(weights.dtype) for factor in factors)), errors


def low_rank(matrices: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Best approximations of ``(..., rows, columns)``: ``(..., rows, rank)``, ``(..., rank, columns)``, equal norms."""
    rank = integer("rank", rank, at_least=1, at_most=min(matrices.shape[-2:]))
    wide = matrices if matrices.dtype == torch.float64 else matrices.float()
    u, sigma, vt = torch.linalg.svd(wide, full_matrices=False)
    root = sigma[..., :rank].sqrt()
    left, right = u[..., :rank] * root[..., None, :], root[..., None] * vt[..., :rank, :]
    return left.to(matrices.dtype), right.to(matrices.dtype)


def block_low_rank(matrices: Tensor, blocks: int, rank: int) -> tuple[Tensor, Tensor]:
    """Best approximation of every block of ``(..., rows, columns)``: ``(..., b, p, b rank)``, ``(..., b, q, b rank)``.

    The rank columns that belong to block ``(i, j)`` are columns ``j rank ...`` of ``left[i]`` and ``i rank ...`` of
    ``right[j]``.
    """
    check_blocks(*matrices.shape[-2:], blocks)
    cut = matrices.unflatten(-1, (blocks, -1)).unflatten(-3, (blocks, -1)).transpose(-3, -2)  # (..., i, j, p, q)
    left, right = low_rank(cut, rank)
    left = left.transpose(-3, -2).flatten(-2)  # (..., i, p, j rank)
    right = right.permute(*range(right.dim() - 4), -3, -1, -4, -2).flatten(-2)  # (..., j, q, i rank)
    return left, right
