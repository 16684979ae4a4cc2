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

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

from lowdim import checks as ok
from lowdim.checks import ParameterError, choice, number
from lowdim.tensors import CP, khatri_rao, unfold

HINGE_WIDTH = 0.05  # t: the hinge is rounded over this width, since Newton's method needs a second derivative
WEIGHTS = {"logistic": 1.0, "hinge": 0.5, "squared": 1.0}  # c = weight * C
LOSS = ok.one_of(*WEIGHTS)
DATA = dict(  # entries are looked at by check_data, in one pass
    inputs=ok.tensor("sets n i ...", finite=False), labels=ok.tensor("sets n", finite=False), loss=LOSS
)
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


@ok.takes(labels=ok.tensor("... n", finite=False), loss=LOSS)
def check_labels(labels: Tensor, loss: str) -> None:
    """Labels of a classifier are -1 and +1, and both occur in every data set.

    Raises:
        ParameterError: other labels, labels that are not finite, or only one class (the message says which set).
    """
    choice("loss", loss, tuple(WEIGHTS))
    if not bool(labels.isfinite().all()):
        raise ParameterError("labels must be finite numbers, got NaN or infinity.")
    if loss == "squared":
        return
    odd = labels[labels.abs() != 1]
    if odd.numel():
        raise ParameterError(f"labels must be -1 or +1 for the {loss} loss, got {odd[0].item()!r}.")
    lonely = (labels.amin(-1) == labels.amax(-1)).nonzero().flatten().tolist()
    if lonely:
        raise ParameterError(f"labels must hold both classes, -1 and +1, but data set {lonely[0]} has only one.")


@ok.takes(inputs=ok.tensor(finite=False), labels=ok.tensor(finite=False), loss=LOSS)
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
        raise ParameterError("inputs must be finite numbers, got NaN or infinity.")
    check_labels(labels, loss)


@ok.takes(
    **DATA,
    factors=ok.tensors("sets fits size rank", finite=False),
    penalty=ok.values(at_least=0),
    width=ok.real(above=0),
)
def objective(inputs: Tensor, labels: Tensor, factors: list[Tensor], loss: str, penalty, width: float = HINGE_WIDTH):
    """The penalised loss ``(sets, fits)`` and its gradient in each factor, in closed form.

    With ``G = 1/n sum_i l'(f_i) X_i``, the gradient in factor ``k`` is ``G_(k) KR + 2 c B_k``, where ``KR`` is the
    Khatri-Rao product of the other factors.
    """
    fits = (len(inputs), factors[0].shape[1])
    if [b.shape[-2] for b in factors] != list(inputs.shape[2:]) or any(b.shape[:2] != fits for b in factors):
        raise ParameterError(
            f"factors must be ({len(inputs)}, fits, I_k, R) for I = {tuple(inputs.shape[2:])}, "
            f"got {[tuple(b.shape) for b in factors]}."
        )
    scores = torch.einsum("sn...,sf...->sfn", inputs.flatten(2), CP(factors).full().flatten(2))
    value, slope, _ = loss_terms(loss, scores, labels.unsqueeze(1), width)
    c = WEIGHTS[loss] * torch.as_tensor(penalty, dtype=inputs.dtype, device=inputs.device)
    pull = torch.einsum("sfn,sn...->sf...", slope, inputs) / labels.shape[1]
    total = value.mean(-1) + c * sum(b.square().sum((-2, -1)) for b in factors)
    others = lambda k: khatri_rao([b for j, b in enumerate(factors) if j != k])
    weight = 2 * c.unsqueeze(-1).unsqueeze(-1) if c.dim() else 2 * c
    return total, [unfold(pull, k, len(factors)) @ others(k) + weight * b for k, b in enumerate(factors)]


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


def hinge_width(loss: str, t: int) -> float:
    """The hinge starts wide and narrows: where it is nearly straight, Newton's method has nothing to go by."""
    return max(HINGE_WIDTH, 0.6**t) if loss == "hinge" else HINGE_WIDTH


@ok.takes(penalty=ok.values(at_least=0))
def check_penalty(penalty) -> None:
    """Raises ParameterError unless every penalty is a finite number >= 0."""
    for value in torch.as_tensor(penalty).flatten().tolist():
        number("penalty", value, at_least=0)


# ---------------------------------------------------------------- no structure, and a convex one


@ok.takes(penalty=ok.values(at_least=0), steps=ok.count(), tol=ok.real(at_least=0), **DATA)
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
    x, y = inputs.flatten(2).mT.contiguous(), labels.unsqueeze(1)  # samples last: products with few vectors are fast
    sets, size, n = x.shape
    c = WEIGHTS[loss] * torch.as_tensor(penalty, dtype=x.dtype, device=x.device)
    c = (c if c.dim() == 2 else c.expand(sets, 1)).unsqueeze(2)  # (sets, fits, 1)
    fits = c.shape[1]
    w, scores = x.new_zeros(sets, fits, size), x.new_zeros(sets, fits, n)
    tries = x.new_tensor(SHORTER).view(-1, 1, 1, 1)
    value = lambda f, w, width: loss_terms(loss, f, y, width)[0].mean(-1) + (c * w.square()).sum(-1)
    taken = torch.full((sets, fits), steps, device=x.device)
    for t in range(steps):
        width = hinge_width(loss, t)
        solve = _direct if loss == "hinge" and width < 0.3 else _conjugate_gradients
        _, slope, curvature = loss_terms(loss, scores, y, width)
        gradient = torch.bmm(x, slope.mT).mT / n + 2 * c * w
        size_now = gradient.norm(dim=2)
        small = (size_now < tol) & (width == HINGE_WIDTH)
        taken = torch.where(small, taken.clamp(max=t), taken)
        if bool(small.all()):
            break
        move, along = solve(x, curvature, c, -gradient, size_now)
        pick = value(scores + tries * along, w + tries * move, width).argmin(0)
        length = tries.flatten()[pick].unsqueeze(2)
        w, scores = w + length * move, scores + length * along
    return Fit(w.view(sets, fits, *inputs.shape[2:]), value(scores, w, HINGE_WIDTH), taken, taken < steps)


def _conjugate_gradients(x: Tensor, curvature: Tensor, c: Tensor, right: Tensor, size: Tensor, most: int = 40):
    """Solves ``(X^T diag(curvature) X / n + 2 c) move = right`` about as well as Newton's method can use it.

    Takes ``x (sets, p, n)``; returns the move ``(sets, fits, p)`` and the change of the scores ``(sets, fits, n)``.
    """
    goal = (size * size.sqrt().clamp(max=0.3)).square().unsqueeze(2)
    move, along, rest, way = torch.zeros_like(right), torch.zeros_like(curvature), right, right
    energy = rest.square().sum(2, keepdim=True)
    for _ in range(most):
        seen = torch.bmm(way, x)
        image = torch.bmm(x, (curvature * seen).mT).mT / x.shape[2] + 2 * c * way
        bent = (way * image).sum(2, keepdim=True)
        length = torch.where((energy > goal) & (bent > 0), energy / bent.clamp(min=1e-300), 0.0)
        move, along, rest = move + length * way, along + length * seen, rest - length * image
        before, energy = energy, rest.square().sum(2, keepdim=True)
        way = torch.where(energy > goal, rest + energy / before.clamp(min=1e-300) * way, 0.0)
        if not bool(((energy > goal) & (bent > 0)).any()):
            break
    return move, along


def _direct(x: Tensor, curvature: Tensor, c: Tensor, right: Tensor, size: Tensor):
    """The same by Cholesky, for the hinge: few samples are on its bend, and conjugate gradients are slow with few."""
    move, n = torch.empty_like(right), x.shape[2]
    for i, j in np.ndindex(*curvature.shape[:2]):
        bend = (curvature[i, j] > 1e-9 * curvature[i, j].max()).nonzero().squeeze(1)
        part = x[i][:, bend] * curvature[i, j, bend].sqrt()
        hessian = part @ part.T / n
        hessian.diagonal().add_(2 * c[i, j] + 1e-9 * hessian.diagonal().mean())
        root, failed = torch.linalg.cholesky_ex(hessian)
        move[i, j] = right[i, j] if failed else torch.cholesky_solve(right[i, j].unsqueeze(1), root).squeeze(1)
    return move, torch.bmm(move, x)


@ok.takes(**DATA, weight=ok.tensor("sets fits", at_least=0), steps=ok.count(), tol=ok.real(at_least=0))
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


@ok.takes(fit=ok.function, penalties=ok.values(single=False, at_least=0), share=ok.real(above=0, below=1), **DATA)
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
        The fits, one a set, and the penalties chosen ``(sets,)``, those with the smallest mean loss on the samples held
        out, without penalty. (The share of errors on them is a much coarser judge.)

    Raises:
        ParameterError: a share that leaves one of the two parts empty, or one class alone in the part that is fitted.
    """
    kept = inputs.shape[1] - round(number("share", share, above=0, below=1) * inputs.shape[1])
    if not 0 < kept < inputs.shape[1]:
        raise ParameterError(f"share must leave samples on both sides, got {share:g} of {inputs.shape[1]} samples.")
    grid = inputs.new_tensor(penalties).expand(len(inputs), -1)
    trial = fit(inputs[:, :kept], labels[:, :kept], grid)
    scores = torch.einsum("snp,sfp->sfn", inputs[:, kept:].flatten(2), trial.predictor.flatten(2).to(inputs))
    cost = loss_terms(loss, scores, labels[:, kept:].unsqueeze(1))[0].mean(-1)
    chosen = grid.gather(1, cost.argmin(1, keepdim=True))
    return fit(inputs, labels, chosen), chosen.squeeze(1)


@ok.takes(predictor=ok.tensor(finite=False), truth=ok.tensor())
def alignment(predictor: Tensor, truth: Tensor) -> Tensor:
    """Cosine between predictors ``(..., I_1, ..., I_K)`` and the true one: ``(...)``; 0 where a predictor is zero.

    With unit norms, ``|b - b*|^2 = 2 - 2 cos``; with Gaussian inputs and no noise, accuracy is
    ``1 - arccos(cos)/pi``.
    """
    if tuple(predictor.shape[predictor.dim() - truth.dim() :]) != tuple(truth.shape):
        raise ParameterError(
            f"predictor must be (..., {', '.join(map(str, truth.shape))}), got {tuple(predictor.shape)}."
        )
    flat, true = predictor.flatten(-truth.dim()), truth.flatten().to(predictor)
    flat = flat / flat.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(flat.dtype).tiny)  # squares may underflow
    return (flat @ true) / (flat.norm(dim=-1) * true.norm()).clamp(min=1e-300)
