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
    rows, columns = integer("rows", rows, at_least=1), integer("columns", columns, at_least=1)
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


@ok.takes(runs=ok.count(), generator=ok.generator, dtype=ok.floating)
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
        self.preconditioned = preconditioned
        self.u, self.v, self.s = (factor.clone() for factor in start)
        self._rows = matrices.reshape(runs, b, p, b * q)  # block row i
        self._across = self._rows.mT.contiguous()
        self._sizes = matrices.square().sum((-2, -1))
        self._loss, self._time, self._eta = (torch.zeros_like(self._sizes) for _ in range(3))
        self._gradient = torch.empty_like(self.u)
        self._gu, self._gv = (f.mT @ f for f in (self.u, self.v))  # U_i^T U_i and V_j^T V_j, (runs, b, r, r)
        self._tops = None if preconditioned else [torch.ones_like(f) for f in (self.s[:, 0], self.s[:, 0], self.s)]
        room = _Buffers(self.u)
        pieces = _pieces(runs, CACHE_NUMBERS // (b * b * max(p, q) * r))
        self._groups = [_Group(self, piece, room) for piece in pieces]
        for group in self._groups:
            group.look()

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
        share = (self._time / self.iterations).clamp_(max=1)
        torch.lerp(self._step[:, 0], self._step[:, 1], share, out=self._eta)
        for group in self._groups:
            group.step()
        self._time += 1


class _Group:
    """The steps of those runs of a descent that are taken together, in place on its tensors.

    Views and buffers are made once: for a matrix of 64 rows they would take a third of a step, of 256 rows a tenth.
    """

    def __init__(self, descent: BlastDescent, runs: slice, room: "_Buffers"):
        self._room, self._damped = room, descent.preconditioned
        self.u, self.v, self.s = u, v, s = [factor[runs] for factor in descent.factors()]
        self._gu, self._gv = gu, gv = descent._gu[runs], descent._gv[runs]
        self._loss, self._delta0 = descent._loss[runs], descent._delta0[runs, None]
        self._eta = eta = descent._eta[runs, None, None, None]
        self._eta_s, self._flat_eta = eta.expand_as(s), descent._eta[runs]
        self._tops = descent._tops and [vectors[runs] for vectors in descent._tops]
        flat = lambda x: x.view(-1, *x.shape[2:])  # for bmm; a view, or an error
        self._flat_u, self._flat_v, self._flat_gu, self._flat_gv = map(flat, (u, v, gu, gv))

        count, b, q, r = v.shape
        rows, across, gradient = descent._rows[runs], descent._across[runs], descent._gradient[runs]
        self._gram, self._grad_u, self._grad_v = room("gram", *gu.shape), gradient, room("gradient", *v.shape)
        self._flat_gram, self._flat_grad_v = flat(self._gram), flat(self._grad_v)
        self._gram_u = _gram_sums(gv, s, self._gram, room)
        self._gram_v = _gram_sums(gu, s.transpose(1, 2), self._gram, room)
        self._across, au = flat(across), room("au", *across.shape[:3], r)
        self._flat_au, self._au = flat(au), au.unflatten(2, (b, q))  # A_ij^T U_i, (count, i, j, q, r)
        self._residuals, self._pulls = [], []
        for i in _pieces(b, CACHE_NUMBERS // v.numel()):  # V_bar_i = stack_j V_j diag(s_ij)
            stack, residual = room("stack", count, i, b, q, r), room("residual", *rows[:, i].shape)
            views = [flat(x) for x in (rows[:, i], u[:, i], stack.flatten(2, 3), residual, gradient[:, i])]
            self._residuals.append((v[:, None], s[:, i, :, None], stack, residual, views))
            self._pulls.append((self._au[:, i], s[:, i, :, None], stack))

    def step(self) -> None:
        self._gram_u()
        self._move(0, self.u, self._grad_u)
        torch.bmm(self._flat_u.mT, self._flat_u, out=self._flat_gu)
        self._gram_v()
        self._find_gradient_v()
        self._move(1, self.v, self._grad_v)
        torch.bmm(self._flat_v.mT, self._flat_v, out=self._flat_gv)
        self._step_s()
        self.look()

    def look(self) -> None:
        """The loss from the residual, and the gradient in ``U`` on the way."""
        self._loss.zero_()
        for v, s, stack, residual, (rows, u, flat_stack, flat_residual, gradient) in self._residuals:
            torch.mul(v, s, out=stack)
            torch.baddbmm(rows, u, flat_stack.mT, beta=-1, out=flat_residual)
            self._loss.add_(torch.linalg.vector_norm(residual, dim=(-3, -2, -1)).square_(), alpha=0.5)
            torch.bmm(flat_residual, flat_stack, out=gradient)

    def _find_gradient_v(self) -> None:
        torch.bmm(self._across, self._flat_u, out=self._flat_au)
        pull = torch.zeros_like(self.v)
        for au, s, part in self._pulls:
            pull += torch.mul(au, s, out=part).sum(1)
        torch.baddbmm(pull.flatten(0, 1), self._flat_v, self._flat_gram, beta=-1, out=self._flat_grad_v)

    def _move(self, which: int, factor: Tensor, gradient: Tensor) -> None:
        """Step one of the two outer factors ``(count, b, p, r)`` and bring its loss up to date; uses its Gram up."""
        gram, eta = self._gram, self._eta
        if not self._damped:  # no damping, and nobody asks for the loss before the next residual
            top, _ = _largest(gram, self._tops[which], self._room)
            factor.addcmul_(gradient / top[..., None, None], eta, value=-1)
            return
        diagonal = gram.diagonal(dim1=-2, dim2=-1)
        delta = self._damping(diagonal.sum(-1)).unsqueeze(-1)  # (count, b, 1)
        diagonal += delta
        way = _solve(gram, gradient.mT).mT
        # the loss is quadratic in the factor, and way (gram + delta) = gradient: no residual is needed, no product, and
        # nothing cancels against ||A||^2
        half = 0.5 * eta
        bend = torch.mul(way, half * delta.unsqueeze(-1)).addcmul_(gradient, 1 - half)
        self._loss.addcmul_(self._flat_eta, bend.mul_(way).sum((-3, -2, -1)), value=-1)
        factor.addcmul_(way, eta, value=-1)

    def _step_s(self) -> None:
        v, s, gu, gv = self.v, self.s, self._gu, self._gv
        count, b, r = len(s), *s.shape[-2:]
        small = self._damped and r * s.element_size() <= SMALL_ROW and count * b * b >= MANY
        room = SIDE_BY_SIDE if small else CACHE_NUMBERS
        fit = max(1, room // (count * r * max(r, v.shape[2])))  # pairs (i, j) treated at once
        if self._damped:
            traces = gu.diagonal(dim1=-2, dim2=-1) @ gv.diagonal(dim1=-2, dim2=-1).mT  # of the W_ij, (count, b, b)
            damping = self._damping(traces.flatten(1)).view_as(traces).unsqueeze(-1)
        if small:  # systems on the last axis
            gu, gv = (g.permute(2, 3, 0, 1).contiguous() for g in (gu, gv))
        for i in _pieces(b, max(1, fit // b)):
            for j in _pieces(b, min(b, fit)):
                part, old = self._room("stack", count, i, j, *v.shape[2:]), s[:, i, j]
                right = torch.mul(self._au[:, i, j], v[:, None, j], out=part).sum(-2)  # diag(U_i^T A_ij V_j)
                if self._damped:  # s - eta (W + delta)^-1 (W s - right), without the product W s
                    delta = damping[:, i, j]
                    right.addcmul_(delta, old)
                # W_ij = (U_i^T U_i) o (V_j^T V_j)
                if small:
                    w = torch.mul(gu[..., i, None], gv[..., None, j], out=self._room("w", r, r, count, i, j))
                    w.diagonal(dim1=0, dim2=1).add_(delta)
                    best = _eliminate(w.flatten(2), right.flatten(0, 2).T.contiguous()).T.view_as(old)
                    old.lerp_(best, self._eta_s[:, i, j])
                    continue
                w = torch.mul(gu[:, i, None], gv[:, None, j], out=self._room("w", count, i, j, r, r))
                if self._damped:
                    w.diagonal(dim1=-2, dim2=-1).add_(delta)
                    old.lerp_(_solve(w, right.unsqueeze(-1)).squeeze(-1), self._eta_s[:, i, j])
                else:
                    top, image = _largest(w, self._tops[2][:, i, j], self._room, also=old)
                    old -= self._eta * (image - right) / top[..., None]

    def _damping(self, traces: Tensor) -> Tensor:
        """``delta0 sqrt(loss)``, but at least rounding in Gram matrices with these traces, so that none is singular.

        Traces ``(count, matrices)``, used up.
        """
        asked = self._loss.clamp(min=0).sqrt_().unsqueeze(-1) * self._delta0
        return torch.maximum(asked, traces.mul_(ROUNDING * torch.finfo(traces.dtype).eps))


class _Buffers:
    """Buffers by name, for one use after another. The system takes long to hand out large new ones."""

    def __init__(self, like: Tensor):
        self._like, self._held = like, {}

    def __call__(self, name: str, *shape) -> Tensor:
        """A buffer of this shape; a slice stands for its length."""
        shape = [n if isinstance(n, int) else n.stop - n.start for n in shape]
        numbers = math.prod(shape)
        if name not in self._held or self._held[name].numel() < numbers:
            self._held[name] = self._like.new_empty(numbers)
        return self._held[name][:numbers].view(shape)


def _gram_sums(products: Tensor, s: Tensor, out: Tensor, room: _Buffers):
    """A function that writes the stacks' Gram matrices, ``sum_j (F_j^T F_j) o (s_ij s_ij^T)``, ``(runs, i, r, r)``."""
    work = []
    for i in _pieces(s.shape[1], CACHE_NUMBERS // products.numel()):
        terms = room("w", len(s), i, *products.shape[1:])
        work.append((products[:, None], s[:, i, :, :, None], s[:, i, :, None, :], terms, out[:, i]))

    def write():
        for product, left, right, terms, sums in work:
            torch.sum(torch.mul(product, left, out=terms).mul_(right), 2, out=sums)

    return write


def _largest(gram: Tensor, vectors: Tensor, room: _Buffers, also: Tensor | None = None):
    """Largest eigenvalues of Gram matrices, and the matrices times ``also (..., r)`` where it is given.

    Power iteration from the last ``vectors``, which it keeps, plus the residual's norm, so that a step is rather too
    short.
    """
    # one vector a matrix: batched products take longer than multiplying and adding up
    times = lambda x: torch.mul(gram, x.unsqueeze(-2), out=room("image", *gram.shape)).sum(-1)
    unit = vectors
    for _ in range(POWER_STEPS):
        unit = times(unit)
        unit = unit / unit.norm(dim=-1, keepdim=True)
    image = times(unit)
    value = (unit * image).sum(-1, keepdim=True)
    vectors.copy_(unit)
    top = (value + (image - value * unit).norm(dim=-1, keepdim=True)).squeeze(-1)
    return top, None if also is None else times(also)


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
    rank = integer("rank", rank, at_least=1, at_most=min(check_matrices("matrices", matrices).shape[-2:]))
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
    check_blocks(*check_matrices("matrices", matrices).shape[-2:], blocks)
    cut = matrices.unflatten(-1, (blocks, -1)).unflatten(-3, (blocks, -1)).transpose(-3, -2)  # (..., i, j, p, q)
    left, right = low_rank(cut, rank)
    left = left.transpose(-3, -2).flatten(-2)  # (..., i, p, j rank)
    right = right.permute(*range(right.dim() - 4), -3, -1, -4, -2).flatten(-2)  # (..., j, q, i rank)
    return left, right
