"""Neural collapse: a classifier on free features that stay near given ones, its minimisers, and how it reacts.

The model has N samples in K classes (n = N / K of each on average), features H, a classifier W without bias, one-hot
labels Y, and features H_0 of the layer below:

    N f = ||H W^T - Y||^2 / 2 + n l_W ||W||^2 / 2 + l_H ||H||^2 / 2 + beta ||H - H_0||^2 / 2

(Tirer, Huang and Niles-Weed 2023.) Here samples are rows: H is ``(runs, N, d)``, W ``(runs, K, d)``, and every run can
have its own weights l_W, l_H and beta. Given W the best H is one linear solve and the other way round, and the Hessian
of what is left is a sum of Kronecker products of small moments, so that Newton's method costs nothing in N.
"""

import itertools

import torch
from torch import Tensor

from lowdim import checks as ok
from lowdim.checks import ParameterError

POSITIVE, WEIGHT = ok.values(above=0), ok.values(at_least=0)
CLOSE = 0.25  # a step of the central path, in units of its fastest rate


def _spread(name: str, value, like: Tensor) -> Tensor:
    """One number for each run, ``(runs, 1, 1)``."""
    ok.one_or_each(name, value, len(like))
    return torch.as_tensor(value, dtype=like.dtype, device=like.device).flatten().expand(len(like)).view(-1, 1, 1)


def _labels(name: str, value, known: dict) -> None:
    """Whole numbers ``(samples,)``; every class from 0 to the largest must be there."""
    ok.tensor("samples", floating=False)(name, value, known)
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise ParameterError(f"{name} must be a tensor of whole numbers, got {value.dtype}.")
    if value.min() < 0 or value.bincount().eq(0).any():
        raise ParameterError(f"{name} must be from 0 up and leave out no class, got {value.unique().tolist()}.")


def _one_hot(labels: Tensor, like: Tensor) -> Tensor:
    """Labels ``(N,)`` as unit vectors ``(N, K)``."""
    return torch.nn.functional.one_hot(labels.long()).to(like)


class BetaModel:
    """The model for many runs at once.

    Args:
        start: H_0 ``(runs, N, d)``.
        labels: ``(N,)``, the same for all runs; classes may differ in size.
        decay_w, decay_h, beta: l_W > 0, l_H >= 0 and beta >= 0, each one number or one for each run; of the last two
            at least one is positive.

    Raises:
        ParameterError: numbers that are neither one nor one for each run, l_H and beta both zero, a class without
            samples.
    """

    @ok.takes(start=ok.tensor("runs samples d"), labels=_labels, decay_w=POSITIVE, decay_h=WEIGHT, beta=WEIGHT)
    def __init__(self, start: Tensor, labels: Tensor, decay_w, decay_h, beta):
        self.start, self.labels, self.targets = start, labels, _one_hot(labels, start)
        self.samples, self.classes = self.targets.shape
        self.decay_w = _spread("decay_w", decay_w, start) * self.samples / self.classes  # n l_W
        self.decay_h, self.beta = _spread("decay_h", decay_h, start), _spread("beta", beta, start)
        if not (self.decay_h + self.beta > 0).all():
            raise ParameterError("decay_h and beta must not both be zero, got a run in which they are.")
        self._eye = torch.eye(start.shape[2], dtype=start.dtype, device=start.device)

    def objective(self, W: Tensor, H: Tensor) -> Tensor:
        """f ``(runs,)``."""
        square = lambda t: t.square().sum((1, 2), keepdim=True)
        whole = square(H @ W.mT - self.targets) + self.decay_w * square(W) + self.decay_h * square(H)
        return (whole + self.beta * square(H - self.start)).view(-1) / (2 * self.samples)

    def gradients(self, W: Tensor, H: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of f in W ``(runs, K, d)`` and H ``(runs, N, d)``."""
        R = H @ W.mT - self.targets
        pull = R @ W + self.decay_h * H + self.beta * (H - self.start)
        return (R.mT @ H + self.decay_w * W) / self.samples, pull / self.samples

    def best_classifier(self, H: Tensor) -> Tensor:
        """The W that minimises f for these features, ``(runs, K, d)``."""
        return torch.linalg.solve(H.mT @ H + self.decay_w * self._eye, H.mT @ self.targets).mT

    def best_features(self, W: Tensor) -> Tensor:
        """The H that minimises f for this classifier, ``(runs, N, d)``."""
        return torch.linalg.solve(self._stiffness(W), (self.targets @ W + self.beta * self.start).mT).mT

    def _stiffness(self, W: Tensor) -> Tensor:
        """B = W^T W + (l_H + beta) I, the Hessian of N f in the features of one sample."""
        return W.mT @ W + (self.decay_h + self.beta) * self._eye

    def reduced_hessian(self, W: Tensor, H: Tensor) -> Tensor:
        """Schur complement onto W of the Hessian of N f, ``(runs, K d, K d)``; rows of W one after another.

        At H = ``best_features(W)`` it is the Hessian of what f becomes when H is always the best.
        """
        P, R, HH = torch.linalg.inv(self._stiffness(W)), H @ W.mT - self.targets, H.mT @ H
        I = torch.eye(self.classes, dtype=W.dtype, device=W.device)
        PW, RH = P @ W.mT, R.mT @ H
        product = lambda a, b: torch.einsum("rac,rbe->rabce", a, b)
        S = product(I.expand(len(W), -1, -1), HH + self.decay_w * self._eye)
        S = S - product(R.mT @ R, P) - product(W @ PW, HH)
        cross = torch.einsum("rbc,rae->rabce", PW, RH)
        S = S - cross - cross.permute(0, 3, 4, 1, 2)
        return S.flatten(3).flatten(1, 2)

    @ok.takes(start=ok.optional(ok.tensor("runs classes d")), steps=ok.count(), tolerance=ok.real(above=0))
    def solve(self, start: Tensor | None = None, steps: int = 200, tolerance=1e-10) -> tuple[Tensor, Tensor]:
        """The minimiser (W, H) that is reached from a classifier ``(runs, K, d)``: the best one of H_0, or another.

        Each step is the best of Newton's (of modulus where the curvature is negative), a tenth of it, and an exact
        minimisation in H and then in W, so that f never rises.

        Args:
            tolerance: a run is done when no entry of N times its gradient is larger. With a beta far below the decays
                minima form a curved valley, and it takes many steps.

        Raises:
            ParameterError: a classifier of another shape, or runs that are not done after ``steps`` steps.
        """
        wanted = (len(self.start), self.classes, self.start.shape[2])
        if start is not None and tuple(start.shape) != wanted:
            raise ParameterError(f"start must be {wanted}, to fit the model, got {tuple(start.shape)}.")
        W = self.best_classifier(self.start) if start is None else start.clone()
        left = torch.arange(len(W), device=W.device)
        for _ in range(steps + 1):
            now, V = self._runs(left), W[left]
            H = now.best_features(V)
            slope = now.gradients(V, H)[0] * self.samples
            off = slope.abs().amax((1, 2))
            going = off > tolerance
            if not going.any():
                return W, self.best_features(W)
            left, now, V, H, slope = left[going], now._runs(going), V[going], H[going], slope[going]
            W[left] = now._improved(V, H, now.newton_step(V, H, slope))
        raise ParameterError(
            f"steps must be more than {steps}, got {len(left)} runs left, off by up to {off.max():.1g}."
        )

    def _improved(self, W: Tensor, H: Tensor, step: Tensor) -> Tensor:
        """The best of three classifiers: an exact minimisation, a tenth of the step, the step."""
        value = lambda W: self.objective(W, self.best_features(W))
        best = self.best_classifier(H)
        least = value(best) + 1e-13  # within rounding the last one wins
        for length in (0.1, 1.0):
            other = W - length * step
            low = value(other)
            best = torch.where((low <= least).view(-1, 1, 1), other, best)
            least = torch.minimum(low, least)
        return best

    def newton_step(self, W: Tensor, H: Tensor, slope: Tensor) -> Tensor:
        """The reduced Hessian's inverse times a slope ``(runs, K, d)``; negative curvatures count by their modulus."""
        S, slope = self.reduced_hessian(W, H), slope.flatten(1).unsqueeze(2)
        root, bad = torch.linalg.cholesky_ex(S)
        bad = bad > 0
        root[bad] = torch.eye(root.shape[-1], dtype=root.dtype, device=root.device)
        step = torch.cholesky_solve(slope, root)
        if bad.any():
            values, vectors = torch.linalg.eigh(S[bad])
            size = values.abs().clamp(min=1e-6 * values.abs().amax())
            step[bad] = vectors @ ((vectors.mT @ slope[bad]) / size.unsqueeze(2))
        return step.view_as(W)

    def _runs(self, picks: Tensor) -> "BetaModel":
        """The same model for some of the runs."""
        part = object.__new__(BetaModel)
        part.__dict__.update(self.__dict__)
        for name in ("start", "decay_w", "decay_h", "beta"):
            setattr(part, name, getattr(self, name)[picks])
        return part

    def influence(self, W: Tensor, H: Tensor) -> Tensor:
        """F ``(runs, N d, N d)``: a small change of H_0 moves the minimiser (W, H) by F times it, sample by sample.

        F is beta times the inverse of the Schur complement onto H of the Hessian of N f, found through the small
        complement onto W (Woodbury's identity).
        """
        P, R = torch.linalg.inv(self._stiffness(W)), H @ W.mT - self.targets
        C = torch.einsum("ria,rbe->ribae", R, P) + torch.einsum("rba,rie->ribae", P @ W.mT, H)
        C = C.flatten(3).flatten(1, 2)
        F = C @ torch.linalg.solve(self.reduced_hessian(W, H), C.mT)
        blocks = F.view(len(W), self.samples, len(self._eye), self.samples, len(self._eye))
        blocks.diagonal(dim1=1, dim2=3).add_(P.unsqueeze(-1))
        return F.mul_(self.beta)

    def within_factor(self, W: Tensor) -> Tensor:
        """The matrix ``(runs, d, d)`` that takes deviations from class means of H_0 to those of H, at any minimiser."""
        return self.beta * torch.linalg.inv(self._stiffness(W))


@ok.takes(influence=ok.tensor("runs size size"), labels=_labels, k=ok.count(0), l=ok.count(0))
def class_block(influence: Tensor, labels: Tensor, k: int, l: int) -> Tensor:
    """How class k reacts to a change of class l: a block of ``influence``, ``(runs, n_k d, n_l d)``.

    Raises:
        ParameterError: a class that is not there, or labels that do not fit.
    """
    if influence.shape[1] % len(labels):
        raise ParameterError(
            f"labels must be one for each sample, a divisor of {influence.shape[1]}, got {len(labels)}."
        )
    d = influence.shape[1] // len(labels)
    rows = []
    for name, which in (("k", k), ("l", l)):
        ok.integer(name, which, at_least=0, at_most=int(labels.max()))
        rows.append((labels == which).repeat_interleave(d))
    return influence[:, rows[0]][:, :, rows[1]]


@ok.takes(basis=ok.tensor("runs d classes"), labels=_labels, decay_w=POSITIVE, decay_h=POSITIVE)
def orthogonal_collapse(basis: Tensor, labels: Tensor, decay_w, decay_h) -> tuple[Tensor, Tensor]:
    """A global minimiser (W, H) of the model without H_0: every class at one point, on an axis of its own.

    W H is Y with its singular values, the roots of the class sizes n_k, lowered by sqrt(n l_W l_H). With r_k = n_k / n
    and c_k = sqrt(l_W l_H / r_k) a mean has squared length (1 - c_k) sqrt(l_W / (l_H r_k)), or 0 once c_k >= 1.

    Args:
        basis: orthonormal columns, one for each class, ``(runs, d, K)``.
        labels: ``(N,)``; classes may differ in size.
        decay_w, decay_h: l_W and l_H, one number or one for each run.

    Raises:
        ParameterError: columns that are not orthonormal, or another number of them than of classes.
    """
    Y = _one_hot(labels, basis)
    gram = basis.mT @ basis
    if (gram - torch.eye(basis.shape[2]).to(gram)).abs().max() > 1e-6:
        raise ParameterError(f"basis must have orthonormal columns, got {ok.brief(basis)} that has not.")
    if Y.shape[1] != basis.shape[2]:
        raise ParameterError(f"basis must have one column for each of {Y.shape[1]} classes, got {basis.shape[2]}.")
    decay_w, decay_h = (_spread(name, v, basis)[:, 0] for name, v in (("decay_w", decay_w), ("decay_h", decay_h)))
    share = Y.mean(0) * Y.shape[1]  # r_k
    length = (1 - (decay_w * decay_h / share).sqrt()).clamp(min=0) * (decay_w / (decay_h * share)).sqrt()
    means = (basis * length.sqrt().unsqueeze(1)).mT
    return (decay_h * share / decay_w).sqrt().unsqueeze(2) * means, Y @ means


@ok.takes(features=ok.tensor("... samples d", finite=False), labels=_labels)
def scatter(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Traces of the covariance within classes and of that between them, both ``(...)``; features ``(..., N, d)``."""
    within, between, _ = _parts(features, labels)
    return within.square().sum((-2, -1)), between.square().sum((-2, -1))


@ok.takes(features=ok.tensor("... samples d", finite=False), labels=_labels, cutoff=ok.real(at_least=0, below=1))
def collapse_measures(features: Tensor, labels: Tensor, cutoff: float = 1e-6) -> dict[str, Tensor]:
    """How far features ``(..., N, d)`` are from collapse; each measure is ``(...)``, 0 at collapse, NaN for NaN.

    ``"nc1t"``: trace within over trace between (the measure of the theory); ``"nc1"``: trace of the covariance within
    times the pseudo-inverse of the one between, over K; ``"nc2"``: distance of the normalised Gram matrix of the
    centred means from that of a simplex.

    Args:
        cutoff: the pseudo-inverse leaves out directions whose standard deviation is below this share of the largest.
    """
    within, between, means = _parts(features, labels)
    ratio = within.square().sum((-2, -1)) / between.square().sum((-2, -1))
    sigma, V = torch.linalg.svd(between.nan_to_num(0, 0, 0), full_matrices=False)[1:]
    used = sigma > cutoff * sigma[..., :1]
    used[..., means.shape[-2] - 1 :] = False  # K centred means have rank K - 1 at most
    along = (within @ V.mT).square().sum(-2)
    classes = means.shape[-2]
    nc1 = torch.where(used, along / sigma.square(), 0.0).sum(-1) / classes + 0 * ratio  # a diverged run stays NaN
    centred = means - means.mean(-2, keepdim=True)
    gram = centred @ centred.mT
    simplex = torch.eye(classes).to(gram) - 1 / classes
    gap = gram / gram.flatten(-2).norm(dim=-1)[..., None, None] - simplex / (classes - 1) ** 0.5
    nc2 = gap.flatten(-2).norm(dim=-1)
    return {"nc1t": ratio, "nc1": nc1, "nc2": nc2}


def _parts(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Roots A of both covariances A^T A, within ``(..., N, d)`` and between ``(..., K, d)``, and the class means."""
    if len(labels) != features.shape[-2]:
        raise ParameterError(f"labels must be {features.shape[-2]}, one for each sample, got {len(labels)}.")
    Y = _one_hot(labels, features)
    sizes = Y.sum(0).unsqueeze(1)
    means = (Y / sizes.mT).mT @ features
    within = (features - means[..., labels, :]) / len(Y) ** 0.5
    between = (means - features.mean(-2, keepdim=True)) * (sizes / len(Y)).sqrt()
    return within, between, means


@ok.takes(start=ok.tensor("runs samples d"), labels=_labels, decay_w=POSITIVE, decay_h=WEIGHT)
def velocity(start: Tensor, labels: Tensor, decay_w, decay_h) -> Tensor:
    """dH/dt ``(runs, N, d)`` of the central path: minus N times the gradient of min_W f at beta = 0."""
    return _Path(start, labels, decay_w, decay_h).slope(start)


@ok.takes(
    start=ok.tensor("runs samples d"), labels=_labels, decay_w=POSITIVE, decay_h=WEIGHT, times=ok.values(at_least=0)
)
def central_path(start: Tensor, labels: Tensor, decay_w, decay_h, times) -> Tensor:
    """Features along the central path at given times, ``(times, runs, N, d)``: gradient flow with the best W.

    The flow is that of features that are pulled to H_0 ever less: H at time t is close to the minimiser with
    beta = 1 / t. Runge-Kutta steps of fourth order, as long as the fastest rate of all runs allows.

    Args:
        times: rising numbers; time 0 is ``start``.

    Raises:
        ParameterError: times that do not rise.
    """
    times = torch.as_tensor(times, dtype=torch.float64).flatten().tolist()
    if any(b <= a for a, b in itertools.pairwise(times)):
        raise ParameterError(f"times must rise, got {ok.brief(times)}.")
    path, H, t, found = _Path(start, labels, decay_w, decay_h), start, 0.0, []
    for end in times:
        while t < end:
            step = min(end - t, CLOSE / path.rate(H))
            t = end if step == end - t else t + step
            H = path.runge_kutta(H, step)
        found.append(H)
    return torch.stack(found)


class _Path:
    """The central path; rates are those at which deviations within a class decay."""

    def __init__(self, start, labels, decay_w, decay_h):
        self.targets = _one_hot(labels, start)
        if len(labels) != start.shape[1]:
            raise ParameterError(f"labels must be {start.shape[1]}, one for each sample, got {len(labels)}.")
        n = len(labels) / self.targets.shape[1]
        self.decay_w, self.decay_h = n * _spread("decay_w", decay_w, start), _spread("decay_h", decay_h, start)
        self.ridge = self.decay_w * torch.eye(start.shape[2]).to(start)

    def classifier(self, H):
        return torch.linalg.solve(H.mT @ H + self.ridge, H.mT @ self.targets)  # W^T

    def slope(self, H):
        Wt = self.classifier(H)
        return (self.targets - H @ Wt) @ Wt.mT - self.decay_h * H

    def rate(self, H) -> float:
        W = self.classifier(H)
        return float((torch.linalg.matrix_norm(W.mT @ W) + self.decay_h.view(-1)).max())

    def runge_kutta(self, H, step: float):
        a = self.slope(H)
        b = self.slope(H + a * (step / 2))
        c = self.slope(H + b * (step / 2))
        d = self.slope(H + c * step)
        return H + (a + 2 * b + 2 * c + d) * (step / 6)
