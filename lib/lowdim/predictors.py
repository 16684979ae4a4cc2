"""Linear predictors of tensor data, ``f(X) = <B, X>``: with CP structure, without it, and with a nuclear norm.

Shapes: ``inputs (sets, n, I_1, ..., I_K)`` and ``labels (sets, n)`` hold independent data sets; on each of them
``fits`` predictors are fitted at once, which share its inputs and differ in penalty or start. So factors are
``(sets, fits, I_k, R)``, predictors ``(sets, fits, I_1, ..., I_K)``, and penalties a number or ``(sets, fits)``.

The objective of a CP predictor is that of Kwon and Sarwate (2021), ``1/n sum_i loss(f(X_i), y_i) + c sum_k |B_k|^2``.
A predictor without structure is a CP predictor of order one on vectorised inputs, with the same objective.

==========  =============================================  ========  =====================================
loss        of one sample                                  ``c``     remark
==========  =============================================  ========  =====================================
logistic    ``log(1 + exp(-y f))``                         ``C``     the paper's code has no 1/2 here
hinge       ``t log(1 + exp((1 - y f)/t))``, ``t = 0.05``  ``C/2``   above the hinge by at most ``t log 2``
squared     ``(y - f)^2``                                  ``C``     the paper's code has ``C = 0``
==========  =============================================  ========  =====================================
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from lowdim.checks import ParameterError, choice, integer, number
from lowdim.tensors import CP, LETTERS, khatri_rao, unfold

HINGE_WIDTH = 0.05  # t: the hinge is rounded over this width, since Newton's method needs a second derivative
WEIGHTS = {"logistic": 1.0, "hinge": 0.5, "squared": 1.0}  # c = weight * C
PIECE_BYTES = 1 << 24  # features of more sets than this are worked on piece by piece
WARM = 3  # sweeps over single factors before all are moved at once
START, BOOST, EASE = 0.03, 6.0, 0.3  # damping: first, after a step that was refused, and after a good one
SHORTER = (2.0, 1.0, 0.5, 0.25, 0.125, 0.03, 0.0)  # tries along the Newton direction of a vector


def loss_terms(loss: str, scores: Tensor, labels: Tensor, width: float = HINGE_WIDTH) -> tuple[Tensor, Tensor, Tensor]:
    """Loss of each sample and its first two derivatives in the score ``f``; all have the shape of ``scores``.

    Raises:
        ParameterError: an unknown loss.
    """
    choice("loss", loss, tuple(WEIGHTS))
    if loss == "squared":
        residual = scores - labels
        return residual.square(), 2 * residual, torch.full_like(residual, 2.0)
    edge, width = (1.0, width) if loss == "hinge" else (0.0, 1.0)
    margin = (edge - labels * scores) / width
    pull = torch.sigmoid(margin)
    return width * softplus(margin, threshold=700), -labels * pull, pull * (1 - pull) / width


def check_labels(labels: Tensor, loss: str) -> None:
    """Labels of a classifier are -1 and +1, and both occur in every data set.

    Raises:
        ParameterError: other labels, labels that are not finite, or only one class (the message says which set).
    """
    choice("loss", loss, tuple(WEIGHTS))
    if not bool(labels.isfinite().all()):
        raise ParameterError("labels must be finite numbers.")
    if loss == "squared":
        return
    odd = labels[labels.abs() != 1]
    if odd.numel():
        raise ParameterError(f"labels must be -1 or +1 for the {loss} loss, got {odd[0].item():g}.")
    lonely = (labels.amin(-1) == labels.amax(-1)).nonzero().flatten().tolist()
    if lonely:
        raise ParameterError(f"labels must hold both classes, -1 and +1, but data set {lonely[0]} has only one.")


def check_data(inputs: Tensor, labels: Tensor, loss: str) -> None:
    """Inputs ``(sets, n, I_1, ...)`` and labels ``(sets, n)`` fit each other and the loss.

    Raises:
        ParameterError: shapes that differ, inputs that are not finite, or labels as in ``check_labels``.
    """
    if inputs.dim() < 3 or labels.shape != inputs.shape[:2] or not labels.numel():
        raise ParameterError(
            "inputs must be (sets, n, I_1, ...) and labels (sets, n) with n >= 1, "
            f"got {tuple(inputs.shape)} and {tuple(labels.shape)}."
        )
    if not bool(inputs.sum().isfinite()):  # one pass, where a test of every entry takes three
        raise ParameterError("inputs must be finite numbers.")
    check_labels(labels, loss)


def check_rank(rank: int, shape) -> int:
    """A CP rank between 1 and the largest that can be needed, the product of all dimensions but the largest.

    Raises:
        ParameterError: a rank out of range.
    """
    return integer("rank", rank, at_least=1, at_most=int(torch.tensor(tuple(shape)).prod()) // max(shape))


def objective(inputs: Tensor, labels: Tensor, factors: list[Tensor], loss: str, penalty, width: float = HINGE_WIDTH):
    """The penalised loss ``(sets, fits)`` and its gradient in each factor, in closed form.

    With ``G = 1/n sum_i l'(f_i) X_i``, the gradient in factor ``k`` is ``G_(k) KR + 2 c B_k``, where ``KR`` is the
    Khatri-Rao product of the other factors.
    """
    scores = torch.einsum("sn...,sf...->sfn", inputs.flatten(2), CP(factors).full().flatten(2))
    value, slope, _ = loss_terms(loss, scores, labels.unsqueeze(1), width)
    c = WEIGHTS[loss] * torch.as_tensor(penalty, dtype=inputs.dtype, device=inputs.device)
    pull = torch.einsum("sfn,sn...->sf...", slope, inputs) / labels.shape[1]
    total = value.mean(-1) + c * sum(b.square().sum((-2, -1)) for b in factors)
    others = lambda k: khatri_rao([b for j, b in enumerate(factors) if j != k])
    weight = 2 * c.unsqueeze(-1).unsqueeze(-1) if c.dim() else 2 * c
    return total, [unfold(pull, k, len(factors)) @ others(k) + weight * b for k, b in enumerate(factors)]


# ---------------------------------------------------------------- CP predictors


@dataclass(frozen=True)
class Fit:
    """Fitted predictors.

    Attributes:
        predictor: ``(sets, fits, I_1, ..., I_K)``.
        objective: ``(sets, fits)`` penalised loss at the end.
        steps: ``(sets, fits)`` Newton steps or sweeps taken.
        converged: ``(sets, fits)`` whether the stopping rule was met.
        factors: of a CP predictor, ``(sets, fits, I_k, R)`` for each mode.
    """

    predictor: Tensor
    objective: Tensor
    steps: Tensor
    converged: Tensor
    factors: list[Tensor] | None = None

    def best(self) -> "Fit":
        """Of the fits on each data set, such as restarts, the one with the smallest objective: one fit a set."""
        pick = self.objective.argmin(1)
        take = lambda x: x[torch.arange(len(x), device=x.device), pick].unsqueeze(1)
        factors = None if self.factors is None else [take(b) for b in self.factors]
        return Fit(take(self.predictor), take(self.objective), take(self.steps), take(self.converged), factors)


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

    def __init__(self, inputs: Tensor, labels: Tensor, starts: list[Tensor], loss: str, penalty):
        sets, fits = starts[0].shape[:2]
        self.sets, self.fits, self.n, self.shape = sets, fits, inputs.shape[1], tuple(inputs.shape[2:])
        self.order, self.rank = len(self.shape), starts[0].shape[-1]
        self.loss, self.width = loss, HINGE_WIDTH
        self.flat = inputs.flatten(2)
        # (sets, product of other dimensions, I_k n): a product with factors then has the samples last, contiguous
        self.unfolded = [
            unfold(inputs, k, self.order).permute(0, 3, 2, 1).reshape(sets, -1, i * self.n)
            for k, i in enumerate(self.shape)
        ]
        self.labels = labels.repeat_interleave(fits, 0)
        c = WEIGHTS[loss] * torch.as_tensor(penalty, dtype=inputs.dtype, device=inputs.device)
        self.c = c.expand(sets, fits).reshape(-1, 1).clone()
        self.factors = [b.flatten(0, 1).clone() for b in starts]
        self.factors[0].zero_()  # the first block is solved first, so its start plays no part: begin with scores zero
        self.scores = inputs.new_zeros(sets * fits, self.n)
        self._scratch = {}
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
            part.copy_(self.features(k, self.factors))
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
        if len(modes) > 1:
            scores = torch.bmm(new[0].mT.reshape(len(w), 1, -1), self.features(0, new)).squeeze(1)
        else:
            scores = self.scores + torch.bmm(move.unsqueeze(1), phi).squeeze(1)
        gain = self.value(self.scores, self.factors) - self.value(scores, new)
        better = ((failed == 0) & (gain >= 0)).unsqueeze(1)
        good = better & (gain > -0.25 * (gradient * move).sum(1)).unsqueeze(1)  # half of what the model promised
        self.scores = torch.where(better, scores, self.scores)
        self.factors = [torch.where(better.unsqueeze(2), b, a) for a, b in zip(self.factors, new, strict=True)]
        grown = torch.where(better, self.damping, BOOST * self.damping)
        self.damping = torch.where(good, EASE * self.damping, grown).clamp(1e-12, 1e6)
        self.slope = gradient.norm(dim=1)

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
        self.factors = CP(self.factors).balanced().factors

    def narrow(self, keep: Tensor) -> None:
        """Go on with some of the data sets, ``(kept,)`` indices."""
        sets, fits = self.sets, self.fits
        self.unfolded, self.flat = [x[keep] for x in self.unfolded], self.flat[keep]
        pick = lambda x: x.unflatten(0, (sets, fits))[keep].flatten(0, 1)
        self.factors = [pick(b) for b in self.factors]
        for name in ("labels", "c", "scores", "damping", "slope", "before"):
            setattr(self, name, pick(getattr(self, name)))
        self.sets = len(keep)


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
        trainer.width = _width(loss, t)
        for modes in [[k] for k in range(trainer.order)] if t < WARM else [list(range(trainer.order))]:
            trainer.step(modes)
            trainer.balance()
        return (trainer.slope < tol) & (trainer.width == HINGE_WIDTH) & (t >= WARM)

    return _run(inputs, labels, starts, loss, penalty, advance, steps)


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
                trainer.width = _width(loss, t * inner * trainer.order + 2 * i)
                trainer.step([k], again=i > 0)
                if bool((trainer.slope < 1e-9).all()):
                    break
            if balanced:
                trainer.balance()
        before, trainer.before = trainer.before, trainer.value(trainer.scores, trainer.factors)
        return (trainer.before - before).abs() < tol

    return _run(inputs, labels, starts, loss, penalty, advance, integer("sweeps", sweeps, at_least=1))


def _width(loss: str, t: int) -> float:
    """The hinge starts wide and narrows: where it is nearly straight, Newton's method has nothing to go by."""
    return max(HINGE_WIDTH, 0.7**t) if loss == "hinge" else HINGE_WIDTH


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


def check_penalty(penalty) -> None:
    """Raises ParameterError unless every penalty is a finite number >= 0."""
    for value in torch.as_tensor(penalty).flatten().tolist():
        number("penalty", value, at_least=0)


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


# ---------------------------------------------------------------- no structure, and a convex one


def fit_vector(
    inputs: Tensor, labels: Tensor, loss: str = "logistic", penalty=0.01, *, steps: int = 60, tol: float = 1e-6
) -> Fit:
    """Predictors without structure, by Newton's method with conjugate gradients: the convex problem's solution.

    Args:
        inputs: ``(sets, n, I_1, ...)`` of any order.
        penalty: ``C >= 0``, a number or ``(sets, fits)``, as the objective of a CP predictor of order one. The fits on
            a data set share its products with the inputs.

    Raises:
        ParameterError: as ``fit_cp``.
    """
    check_data(inputs, labels, loss)
    check_penalty(penalty)
    x, y = inputs.flatten(2), labels.unsqueeze(2)
    sets, n, size = x.shape
    c = WEIGHTS[loss] * torch.as_tensor(penalty, dtype=x.dtype, device=x.device)
    c = (c if c.dim() == 2 else c.expand(sets, 1)).unsqueeze(1)  # (sets, 1, fits)
    w, scores = x.new_zeros(sets, size, c.shape[2]), x.new_zeros(sets, n, c.shape[2])
    tries = x.new_tensor(SHORTER).view(-1, 1, 1, 1)
    value = lambda f, w, width: loss_terms(loss, f, y, width)[0].mean(-2) + (c * w.square()).sum(-2)
    taken = torch.full((sets, c.shape[2]), steps, device=x.device)
    for t in range(steps):
        width = _width(loss, t)
        _, slope, curvature = loss_terms(loss, scores, y, width)
        gradient = torch.bmm(x.mT, slope) / n + 2 * c * w
        size_now = gradient.norm(dim=1)
        small = (size_now < tol) & (width == HINGE_WIDTH)
        taken = torch.where(small, taken.clamp(max=t), taken)
        if bool(small.all()):
            break
        move, along = _conjugate_gradients(x, curvature, c, -gradient, size_now)
        pick = value(scores + tries * along, w + tries * move, width).argmin(0)
        length = tries.flatten()[pick].unsqueeze(1)
        w, scores = w + length * move, scores + length * along
    predictor = w.mT.reshape(sets, -1, *inputs.shape[2:])
    return Fit(predictor, value(scores, w, HINGE_WIDTH).squeeze(1), taken, taken < steps)


def _conjugate_gradients(x: Tensor, curvature: Tensor, c: Tensor, right: Tensor, size: Tensor, most: int = 40):
    """Solves ``(X^T diag(curvature) X / n + 2 c) move = right`` about as well as Newton's method can use it.

    Returns the move ``(sets, p, fits)`` and what it changes in the scores ``(sets, n, fits)``.
    """
    goal = (size * size.sqrt().clamp(max=0.3)).square().unsqueeze(1)
    move, along, rest, way = torch.zeros_like(right), torch.zeros_like(curvature), right, right
    energy = rest.square().sum(1, keepdim=True)
    for _ in range(most):
        seen = torch.bmm(x, way)
        image = torch.bmm(x.mT, curvature * seen) / x.shape[1] + 2 * c * way
        bent = (way * image).sum(1, keepdim=True)
        length = torch.where((energy > goal) & (bent > 0), energy / bent.clamp(min=1e-300), 0.0)
        move, along, rest = move + length * way, along + length * seen, rest - length * image
        before, energy = energy, rest.square().sum(1, keepdim=True)
        way = torch.where(energy > goal, rest + energy / before.clamp(min=1e-300) * way, 0.0)
        if not bool(((energy > goal) & (bent > 0)).any()):
            break
    return move, along


def fit_nuclear(
    inputs: Tensor, labels: Tensor, loss: str, weight: Tensor, *, steps: int = 2000, tol: float = 1e-6
) -> Fit:
    """Matrix predictors with a nuclear norm, ``1/n sum loss + weight |B|_*``, by accelerated proximal gradients.

    This is what a CP predictor of two modes and enough components minimises, with ``weight = 2 c``: of all
    ``B = B_1 B_2^T``, the smallest ``c (|B_1|^2 + |B_2|^2)`` is ``2 c |B|_*``.

    Args:
        inputs: ``(sets, n, I_1, I_2)``.
        weight: ``(sets, fits)``.
        tol: stops when a step changes no predictor by more than this, relative to 1 + its norm.

    Raises:
        ParameterError: as ``fit_cp``, or inputs that are not matrices.
    """
    check_data(inputs, labels, loss)
    check_penalty(weight)
    if inputs.dim() != 4:
        raise ParameterError(f"inputs must be matrices, (sets, n, I_1, I_2), got {tuple(inputs.shape)}.")
    x, y, n = inputs.flatten(2), labels.unsqueeze(2), inputs.shape[1]
    most = {"logistic": 0.25, "hinge": 0.25 / HINGE_WIDTH, "squared": 2.0}[loss]  # largest second derivative
    rate = 1 / (most * torch.linalg.matrix_norm(x, 2).square() / n).view(-1, 1, 1, 1)
    threshold = weight.unsqueeze(-1) * rate.squeeze(-1)
    b = x.new_zeros(*weight.shape, *inputs.shape[2:])
    ahead, t, changed = b, 1.0, torch.ones_like(weight)
    for step in range(1, steps + 1):
        slope = loss_terms(loss, torch.bmm(x, ahead.flatten(2).mT), y)[1]
        pull = torch.bmm(x.mT, slope).mT.view_as(b) / n
        u, s, vh = torch.linalg.svd(ahead - rate * pull, full_matrices=False)
        new = (u * (s - threshold).clamp(min=0).unsqueeze(-2)) @ vh
        back = ((ahead - new) * (new - b)).sum((-2, -1), keepdim=True) > 0  # momentum against the step: start it anew
        t_new = (1 + (1 + 4 * t * t) ** 0.5) / 2
        ahead = new + torch.where(back, 0.0, (t - 1) / t_new) * (new - b)
        changed = (new - b).flatten(2).norm(dim=2) / (1 + b.flatten(2).norm(dim=2))
        b, t = new, t_new
        if step % 10 == 0 and bool((changed < tol).all()):
            break
    value = loss_terms(loss, torch.bmm(x, b.flatten(2).mT), y)[0].mean(1) + weight * torch.linalg.matrix_norm(b, "nuc")
    return Fit(b, value, torch.full_like(weight, step, dtype=torch.long), changed < tol)


# ---------------------------------------------------------------- choosing and judging


def tune(
    fit: Callable[[Tensor, Tensor, Tensor], Fit], inputs: Tensor, labels: Tensor, penalties, loss: str,
    share: float = 0.25,
) -> tuple[Fit, Tensor]:  # fmt: skip
    """The penalty that does best on samples held out, for each data set, and the fit to all samples with it.

    Args:
        fit: ``fit(inputs, labels, penalty)`` with penalties ``(sets, fits)``.
        penalties: candidates, rising or falling.
        share: of the samples, the last ones, that are held out; they must be in random order.

    Returns:
        The fits, one a set, and the penalties chosen ``(sets,)``. Classifiers are judged by the share of errors, and
        among equals by the mean loss of scores scaled to unit mean size; the squared loss by itself.

    Raises:
        ParameterError: a share that leaves one of the two parts empty, or one class alone in the part that is fitted.
    """
    kept = inputs.shape[1] - round(number("share", share, above=0, below=1) * inputs.shape[1])
    if not 0 < kept < inputs.shape[1]:
        raise ParameterError(f"share must leave samples on both sides, got {share:g} of {inputs.shape[1]} samples.")
    grid = inputs.new_tensor(penalties).expand(len(inputs), -1)
    trial = fit(inputs[:, :kept], labels[:, :kept], grid)
    scores = torch.einsum("snp,sfp->sfn", inputs[:, kept:].flatten(2), trial.predictor.flatten(2))
    y = labels[:, kept:].unsqueeze(1)
    if loss == "squared":
        cost = (scores - y).square().mean(-1)
    else:
        unit = scores / scores.abs().mean(-1, keepdim=True).clamp(min=1e-300)
        cost = (scores * y <= 0).double().mean(-1) + 1e-3 * softplus(-unit * y).mean(-1)
    chosen = grid.gather(1, cost.argmin(1, keepdim=True))
    return fit(inputs, labels, chosen), chosen.squeeze(1)


def alignment(predictor: Tensor, truth: Tensor) -> Tensor:
    """Cosine between predictors ``(..., I_1, ..., I_K)`` and the true one: ``(...)``; 0 where a predictor is zero.

    With unit norms, ``|b - b*|^2 = 2 - 2 cos``; with Gaussian inputs and no noise, accuracy is
    ``1 - arccos(cos)/pi``.
    """
    flat, true = predictor.flatten(-truth.dim()), truth.flatten().to(predictor)
    return (flat @ true) / (flat.norm(dim=-1) * true.norm()).clamp(min=1e-300)
