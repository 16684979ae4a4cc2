"""CP-structured predictors: damped Newton steps in all factors at once, and the alternation of Kwon and Sarwate (2021).

Shapes and the objective are those of ``lowdim.predictors``: ``sets`` independent data sets with ``fits`` predictors
each, in one batch of ``runs = sets * fits``.
"""

import torch
from torch import Tensor

from lowdim import checks as ok
from lowdim.checks import ParameterError, integer, number
from lowdim.predictors import DATA, HINGE_WIDTH, WEIGHTS, Fit, check_data, check_penalty, hinge_width, loss_terms
from lowdim.tensors import CP, LETTERS, khatri_rao

FIT = dict(**DATA, starts=ok.tensors("sets fits size rank"), penalty=ok.values(at_least=0))
PIECE_BYTES = 1 << 24  # features of more sets than this are worked on piece by piece
WARM = 3  # sweeps over single factors before all are moved at once
START, BOOST, EASE = 0.03, 6.0, 0.3  # damping: first, after a step that was refused, and after a good one


@ok.takes(shape=ok.sizes(2))
def check_rank(rank: int, shape) -> int:
    """A CP rank between 1 and the largest that can be needed, the product of all dimensions but the largest.

    Raises:
        ParameterError: a rank out of range.
    """
    return integer("rank", rank, at_least=1, at_most=int(torch.tensor(tuple(shape)).prod()) // max(shape))


@ok.takes(
    shape=ok.sizes(2),
    sets=ok.count(),
    fits=ok.count(),
    generator=ok.generator,
    dtype=ok.one_of(torch.float64, torch.float32),
)
def random_starts(
    shape, rank: int, sets: int, fits: int, generator: torch.Generator, dtype=torch.float64
) -> list[Tensor]:
    """Factors with entries ``N(0, 1)``, as in the paper's code: ``(sets, fits, I_k, rank)`` for each mode."""
    rank, device = check_rank(rank, shape), generator.device
    return [torch.randn(sets, fits, i, rank, generator=generator, dtype=dtype, device=device) for i in shape]


class CPTrainer:
    """Damped Newton steps on one factor, or on all factors at once, for a batch of CP predictors.

    The scores are linear in each factor: ``f_i = <B_k, X_(k) KR>``, so ``features`` has them as a matrix and a block
    is an ordinary linear model. The Hessian of all factors adds the mixed derivatives of ``<B, X>`` to the blocks.
    A step that does not lower the objective is refused, and damping grows, for each fit by itself.
    """

    @ok.takes(**DATA, starts=ok.tensors("sets fits size rank", finite=False), penalty=ok.values(at_least=0))
    def __init__(self, inputs: Tensor, labels: Tensor, starts: list[Tensor], loss: str, penalty):
        if [b.shape[2] for b in starts] != list(inputs.shape[2:]):
            raise ParameterError(f"starts must be one for each mode of {tuple(inputs.shape[2:])}, got {len(starts)}.")
        sets, fits = starts[0].shape[:2]
        self.sets, self.fits, self.n, self.shape = sets, fits, inputs.shape[1], tuple(inputs.shape[2:])
        self.order, self.rank = len(self.shape), starts[0].shape[-1]
        self.loss, self.width = loss, HINGE_WIDTH
        self.flat = inputs.flatten(2)
        # (sets, product of other dimensions, I_k n): a product with factors then has the samples last, contiguous
        turned = self.flat.mT.contiguous().view(sets, *self.shape, self.n)
        self.unfolded = [turned.movedim(1 + k, -2).reshape(sets, -1, i * self.n) for k, i in enumerate(self.shape)]
        self.labels = labels.repeat_interleave(fits, 0)
        c = WEIGHTS[loss] * torch.as_tensor(penalty, dtype=inputs.dtype, device=inputs.device)
        self.c = c.expand(sets, fits).reshape(-1, 1).clone()
        self.factors = [b.flatten(0, 1).clone() for b in starts]
        self.factors[0].zero_()  # the first block is solved first, so its start plays no part: begin with scores zero
        self.scores = inputs.new_zeros(sets * fits, self.n)
        self._scratch, self._ahead = {}, None  # arrays used again; features of the first mode, where still right
        self.rounding = 4 * torch.finfo(inputs.dtype).eps  # a step may seem to raise the objective by so much
        self.damping = torch.full_like(self.c, START)
        self.slope = torch.full_like(self.c, torch.inf).squeeze(1)  # size of the last gradient
        self.before = self.slope.clone()  # objective after the sweep before

    def features(self, k: int, factors: list[Tensor]) -> Tensor:
        """``X_(k) KR`` of every sample, ``(runs, R I_k, n)``."""
        mixed = khatri_rao([b for j, b in enumerate(factors) if j != k]).mT
        mixed = mixed.reshape(self.sets, self.fits * self.rank, -1)
        out = self._scratch.get((k, len(mixed)))
        self._scratch[k, len(mixed)] = out = torch.bmm(mixed, self.unfolded[k], out=out)
        return out.view(-1, self.rank * self.shape[k], self.n)

    def _buffers(self, rows: int) -> tuple[Tensor, Tensor]:
        """Two arrays ``(runs, rows, n)`` that every step uses again."""
        shape = (self.sets * self.fits, rows, self.n)
        if self._scratch.get("shape") != shape:
            self._scratch |= {"shape": shape, "pair": (self.scores.new_empty(shape), self.scores.new_empty(shape))}
        return self._scratch["pair"]

    def value(self, scores: Tensor, factors: list[Tensor]) -> Tensor:
        """The objective, ``(runs,)``."""
        data = loss_terms(self.loss, scores, self.labels, self.width)[0].mean(1)
        return data + self.c[:, 0] * sum(b.square().sum((1, 2)) for b in factors)

    def step(self, modes: list[int], again: bool = False) -> None:
        """One damped Newton step in the factors of these modes: one of them, or all.

        Args:
            again: the last step was in this one factor too, so its features are still right.
        """
        ends = [self.rank * self.shape[k] for k in modes]
        phi, weighted = self._buffers(sum(ends))
        for part, k in zip(phi.split(ends, 1), [] if again else modes, strict=not again):
            known = k == 0 and self._ahead is not None
            part.copy_(self._ahead if known else self.features(k, self.factors))
        w = torch.cat([self.factors[k].mT.flatten(1) for k in modes], 1)
        _, slope, curvature = loss_terms(self.loss, self.scores, self.labels, self.width)
        gradient = torch.bmm(phi, slope.unsqueeze(2)).squeeze(2) / self.n + 2 * self.c * w
        hessian = torch.bmm(torch.mul(phi, curvature.unsqueeze(1), out=weighted), phi.mT).div_(self.n)
        if len(modes) > 1:
            self._add_mixed(hessian, slope)
        hessian.diagonal(dim1=1, dim2=2).add_(2 * self.c + self.damping)
        root, failed = torch.linalg.cholesky_ex(hessian)
        move = -torch.cholesky_solve(gradient.unsqueeze(2), root).squeeze(2)
        new = list(self.factors)
        for k, part in zip(modes, move.split(ends, 1), strict=True):
            new[k] = self.factors[k] + part.view(-1, self.rank, self.shape[k]).mT
        ahead = None
        if len(modes) > 1:
            ahead = self.features(0, new)
            scores = torch.bmm(new[0].mT.reshape(len(w), 1, -1), ahead).squeeze(1)
        else:
            scores = self.scores + torch.bmm(move.unsqueeze(1), phi).squeeze(1)
        value = self.value(self.scores, self.factors)
        gain = value - self.value(scores, new)
        better = ((failed == 0) & (gain >= -self.rounding * value)).unsqueeze(1)
        good = better & (gain > -0.25 * (gradient * move).sum(1)).unsqueeze(1)  # half of what the model promised
        self.scores = torch.where(better, scores, self.scores)
        self.factors = [torch.where(better.unsqueeze(2), b, a) for a, b in zip(self.factors, new, strict=True)]
        grown = torch.where(better, self.damping, BOOST * self.damping)
        self.damping = torch.where(good, EASE * self.damping, grown).clamp(1e-12, 1e6)
        self.slope = gradient.norm(dim=1)
        self._ahead = ahead if ahead is not None and bool(better.all()) else None

    def _add_mixed(self, hessian: Tensor, slope: Tensor) -> None:
        """Adds ``sum_i l'(f_i) d^2 f_i / dB_j dB_k / n``: blocks of two different modes and one component."""
        pull = torch.bmm(slope.view(self.sets, self.fits, -1), self.flat).view(-1, *self.shape) / self.n
        letters, start = LETTERS[: self.order], [self.rank * sum(self.shape[:k]) for k in range(self.order)]
        for j in range(self.order):
            for k in range(j + 1, self.order):
                rest = [m for m in range(self.order) if m not in (j, k)]
                spec = ",".join([f"Z{letters}"] + [f"Z{letters[m]}" for m in rest]) + f"->Z{letters[j]}{letters[k]}"
                for r in range(self.rank):
                    block = torch.einsum(spec, pull, *(self.factors[m][..., r] for m in rest))
                    a = slice(start[j] + r * self.shape[j], start[j] + (r + 1) * self.shape[j])
                    b = slice(start[k] + r * self.shape[k], start[k] + (r + 1) * self.shape[k])
                    hessian[:, a, b] += block
                    hessian[:, b, a] += block.mT

    def balance(self) -> None:
        """Equal column norms in all modes: the same predictor with the smallest penalty."""
        self.factors, self._ahead = CP(self.factors).balanced().factors, None

    def narrow(self, keep: Tensor) -> None:
        """Go on with some of the data sets, ``(kept,)`` indices."""
        sets, fits = self.sets, self.fits
        self.unfolded, self.flat = [x[keep] for x in self.unfolded], self.flat[keep]
        pick = lambda x: x.unflatten(0, (sets, fits))[keep].flatten(0, 1)
        self.factors = [pick(b) for b in self.factors]
        for name in ("labels", "c", "scores", "damping", "slope", "before"):
            setattr(self, name, pick(getattr(self, name)))
        self.sets, self._ahead = len(keep), None


@ok.takes(**FIT)
def fit_cp(
    inputs: Tensor, labels: Tensor, starts: list[Tensor], loss: str = "logistic", penalty=0.01, *, steps: int = 300,
    tol: float = 1e-6,
) -> Fit:  # fmt: skip
    """CP predictors by damped Newton steps: a few sweeps over single factors, then all factors at once.

    Args:
        inputs, labels: ``(sets, n, I_1, ..., I_K)``, K >= 2, and ``(sets, n)``.
        starts: ``(sets, fits, I_k, R)``, as from ``random_starts``; the first factor's start plays no part.
        penalty: ``C >= 0``, a number or ``(sets, fits)``.
        steps: at most so many.
        tol: a fit has converged when the gradient's norm is below this; Newton's last step then goes far below.

    Raises:
        ParameterError: labels or shapes as in ``check_data``, a rank out of range, a negative penalty.
    """
    _check_fit(inputs, labels, starts, loss, penalty)
    steps, tol = integer("steps", steps, at_least=1), number("tol", tol, above=0)

    def advance(trainer: CPTrainer, t: int) -> Tensor:
        trainer.width = hinge_width(loss, t)
        for modes in [[k] for k in range(trainer.order)] if t < WARM else [list(range(trainer.order))]:
            trainer.step(modes)
            if t < WARM:  # from there on the penalty itself keeps the columns balanced
                trainer.balance()
        return (trainer.slope < tol) & (trainer.width == HINGE_WIDTH) & (t >= WARM)

    return _run(inputs, labels, starts, loss, penalty, advance, steps)


@ok.takes(tol=ok.real(at_least=0), balanced=ok.flag, **FIT)
def fit_alternating(
    inputs: Tensor, labels: Tensor, starts: list[Tensor], loss: str = "logistic", penalty=1.0, *, sweeps: int = 200,
    tol: float = 1e-6, inner: int = 10, balanced: bool = True,
) -> Fit:  # fmt: skip
    """CP predictors as in the paper: one factor after another, until the objective changes by less than ``tol``.

    Args:
        inputs, labels, starts, penalty: as in ``fit_cp``.
        inner: Newton steps that solve for one factor.
        balanced: make column norms equal after each factor.

    Raises:
        ParameterError: as ``fit_cp``.
    """
    _check_fit(inputs, labels, starts, loss, penalty)
    inner = integer("inner", inner, at_least=1)

    def advance(trainer: CPTrainer, t: int) -> Tensor:
        for k in range(trainer.order):
            for i in range(inner):
                trainer.width = hinge_width(loss, t * inner * trainer.order + 2 * i)
                trainer.step([k], again=i > 0)
                if bool((trainer.slope < max(1e-9, trainer.rounding)).all()):
                    break
            if balanced:
                trainer.balance()
        before, trainer.before = trainer.before, trainer.value(trainer.scores, trainer.factors)
        return (trainer.before - before).abs() < tol

    return _run(inputs, labels, starts, loss, penalty, advance, integer("sweeps", sweeps, at_least=1))


def _check_fit(inputs: Tensor, labels: Tensor, starts: list[Tensor], loss: str, penalty) -> None:
    check_data(inputs, labels, loss)
    shape, sets = inputs.shape[2:], inputs.shape[0]
    if len(shape) < 2:
        raise ParameterError("inputs must have at least two modes, (sets, n, I_1, I_2, ...); fit_vector takes one.")
    wanted = [(sets, starts[0].shape[1], i, starts[0].shape[-1]) for i in shape]
    if [tuple(b.shape) for b in starts] != wanted:
        raise ParameterError(
            f"starts must be (sets, fits, I_k, R) for I = {tuple(shape)}, got {[tuple(b.shape) for b in starts]}."
        )
    check_rank(starts[0].shape[-1], shape)
    check_penalty(penalty)


def _run(inputs, labels, starts, loss, penalty, advance, steps: int) -> Fit:
    """Fit piece by piece; data sets on which all fits are done leave the batch."""
    sets, fits = starts[0].shape[:2]
    one = inputs[0].numel() // max(inputs.shape[2:]) * starts[0].shape[-1] * fits * 8
    one = max(one, inputs[0].numel() * 8)
    c = torch.as_tensor(penalty, dtype=inputs.dtype, device=inputs.device).expand(sets, fits)
    parts = []
    for piece in torch.arange(sets).split(max(1, PIECE_BYTES // one)):
        rows = slice(int(piece[0]), int(piece[-1]) + 1)
        parts.append(_run_piece(inputs[rows], labels[rows], [b[rows] for b in starts], loss, c[rows], advance, steps))
    factors = [torch.cat(b) for b in zip(*(p[0] for p in parts), strict=True)]
    value, taken, done = (torch.cat([p[i] for p in parts]) for i in (1, 2, 3))
    return Fit(CP(factors).full(), value, taken, done, factors)


def _run_piece(inputs, labels, starts, loss, penalty, advance, steps: int):
    trainer = CPTrainer(inputs, labels, starts, loss, penalty)
    sets, fits = starts[0].shape[:2]
    factors, value = [torch.empty_like(b) for b in starts], torch.empty_like(penalty)
    taken, ended = torch.full_like(penalty, steps, dtype=torch.long), torch.zeros_like(penalty, dtype=torch.bool)
    active = torch.arange(sets, device=inputs.device)
    for t in range(steps):
        done = advance(trainer, t).view(-1, fits)
        fresh = done & ~ended[active]
        taken[active] = torch.where(fresh, t + 1, taken[active])
        ended[active] |= done
        left = ~ended[active].all(1)
        few = 4 * int(left.sum()) <= 3 * len(active)  # copying the inputs of the others has its price
        if few or not left.any() or t == steps - 1:
            for whole, now in zip(factors, trainer.factors, strict=True):
                whole[active] = now.unflatten(0, (-1, fits))
            value[active] = trainer.value(trainer.scores, trainer.factors).view(-1, fits)
            if not left.any():
                break
            if few:
                trainer.narrow(left.nonzero().squeeze(1))
                active = active[left]
    return factors, value, taken, ended
