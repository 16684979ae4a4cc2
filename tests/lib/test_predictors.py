"""Tensor predictors: closed forms against autograd, solvers against SciPy and scikit-learn, batches, bad input."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from lowdim.checks import ParameterError
from lowdim.cp_predictors import CPTrainer, fit_alternating, fit_cp, random_starts
from lowdim.data import DataError, labelled_tensors
from lowdim.predictors import (
    HINGE_WIDTH,
    WEIGHTS,
    alignment,
    fit_nuclear,
    fit_vector,
    loss_terms,
    objective,
    tune,
)
from lowdim.runtime import generator
from lowdim.tensors import CP

F64 = torch.float64
LOSSES = list(WEIGHTS)


def made(sets, n, shape, seed=0, soft=False, rank=1, noise=0.5):
    """Gaussian inputs and the labels of a predictor of low rank."""
    random = generator(seed)
    truth = CP([torch.randn(i, rank, generator=random, dtype=F64) for i in shape]).full()
    inputs = torch.randn(sets, n, *shape, generator=random, dtype=F64)
    scores = (inputs * truth).flatten(2).sum(2) + noise * torch.randn(sets, n, generator=random, dtype=F64)
    return inputs, scores if soft else scores.sign(), truth


def plain_objective(inputs, labels, factors, loss, penalty):
    """The objective written out for one fit, for autograd and SciPy."""
    spec = ",".join(f"{m}r" for m in "abc"[: len(factors)]) + "->" + "abc"[: len(factors)]
    scores = (inputs * torch.einsum(spec, *factors)).flatten(1).sum(1)
    if loss == "squared":
        data = (labels - scores) ** 2
    elif loss == "logistic":
        data = torch.logaddexp(torch.zeros(()).to(scores), -labels * scores)
    else:
        data = HINGE_WIDTH * torch.logaddexp(torch.zeros(()).to(scores), (1 - labels * scores) / HINGE_WIDTH)
    weight = {"logistic": 1.0, "hinge": 0.5, "squared": 1.0}[loss]
    return data.mean() + weight * penalty * sum((b**2).sum() for b in factors)


@pytest.mark.parametrize("loss", LOSSES)
def test_derivatives_of_the_losses_are_autograds(loss):
    scores = torch.linspace(-3, 3, 41, dtype=F64).requires_grad_()
    labels = torch.where(torch.arange(41) % 2 == 0, 1.0, -1.0).to(F64)
    value, slope, curvature = loss_terms(loss, scores, labels)
    (first,) = torch.autograd.grad(value.sum(), scores, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), scores)
    assert (slope - first).abs().max() < 1e-10
    assert (curvature - second).abs().max() < 1e-9 * max(1.0, float(second.abs().max()))


def test_the_rounded_hinge_is_above_the_hinge_by_at_most_t_log_2_and_does_not_overflow():
    scores, labels = torch.linspace(-1e4, 1e4, 20_001, dtype=F64), torch.ones(20_001, dtype=F64)
    value = loss_terms("hinge", scores, labels)[0]
    excess = value - (1 - scores).clamp(min=0)
    assert excess.min() >= -1e-9
    assert excess.max() <= HINGE_WIDTH * math.log(2) + 1e-12
    assert loss_terms("logistic", scores, labels)[0].isfinite().all()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("shape", [(4, 5), (3, 4, 2)])
def test_objective_and_gradient_are_autograds(loss, shape):
    inputs, labels, _ = made(2, 30, shape, soft=loss == "squared")
    factors = random_starts(shape, 2, 2, 3, generator(1))
    penalty = torch.tensor([[0.1, 0.2, 0.0], [1.0, 0.3, 0.01]], dtype=F64)
    value, gradients = objective(inputs, labels, factors, loss, penalty)
    for i in range(2):
        for j in range(3):
            leaves = [b[i, j].clone().requires_grad_() for b in factors]
            wanted = plain_objective(inputs[i], labels[i], leaves, loss, penalty[i, j])
            assert abs(float(wanted.detach() - value[i, j])) < 1e-10
            for ours, theirs in zip(gradients, torch.autograd.grad(wanted, leaves), strict=True):
                assert (ours[i, j] - theirs).abs().max() < 1e-10


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("shape", [(4, 5), (3, 4, 2)])
def test_a_step_in_all_factors_is_newtons_with_the_exact_hessian(loss, shape):
    inputs, labels, _ = made(1, 40, shape, soft=loss == "squared")
    starts = random_starts(shape, 2, 1, 1, generator(3))
    trainer = CPTrainer(inputs, labels, starts, loss, 0.3)
    trainer.factors = [0.3 * b.flatten(0, 1) for b in starts]
    trainer.scores = torch.einsum("sn...,sf...->sfn", inputs, CP([0.3 * b for b in starts]).full()).flatten(0, 1)
    trainer.damping.fill_(50.0)  # so large that the step lowers the objective and is taken
    before = torch.cat([b[0].mT.flatten() for b in trainer.factors])
    sizes = [2 * i for i in shape]

    def value(flat):
        factors = [p.view(2, i).mT for p, i in zip(flat.split(sizes), shape, strict=True)]
        return plain_objective(inputs[0], labels[0], factors, loss, 0.3)

    hessian = torch.autograd.functional.hessian(value, before)
    gradient = torch.autograd.functional.jacobian(value, before)
    wanted = before - torch.linalg.solve(hessian + 50 * torch.eye(len(before), dtype=F64), gradient)
    trainer.step(list(range(len(shape))))
    after = torch.cat([b[0].mT.flatten() for b in trainer.factors])
    assert (after - before).abs().max() > 1e-5
    assert (after - wanted).abs().max() < 1e-10


@pytest.mark.parametrize("loss", LOSSES)
def test_cp_reaches_what_scipy_reaches_from_the_same_start(loss):
    shape, rank, penalty = (6, 5), 2, 0.02
    inputs, labels, _ = made(3, 120, shape, rank=2, soft=loss == "squared")
    starts = random_starts(shape, rank, 3, 1, generator(5))
    ours = fit_cp(inputs, labels, starts, loss, penalty, tol=1e-9)
    assert ours.converged.all()
    recomputed, gradients = objective(inputs, labels, ours.factors, loss, penalty)
    assert (recomputed - ours.objective).abs().max() < 1e-12
    assert max(float(g.abs().max()) for g in gradients) < 1e-8
    for i in range(3):

        def function(flat, i=i):
            parts = torch.as_tensor(flat).split([rank * k for k in shape])
            factors = [p.view(1, 1, k, rank) for p, k in zip(parts, shape, strict=True)]
            value, slope = objective(inputs[i : i + 1], labels[i : i + 1], factors, loss, penalty)
            return float(value), torch.cat([g.flatten() for g in slope]).numpy()

        ends = []
        for seed in range(3):  # SciPy may find a worse local minimum from one start: the best of three
            first = np.random.default_rng(seed).standard_normal(rank * sum(shape))
            ends.append(
                minimize(
                    function, first, jac=True, method="L-BFGS-B", options=dict(maxiter=5000, ftol=1e-15, gtol=1e-9)
                ).fun
            )
        assert abs(float(ours.objective[i, 0]) - min(ends)) < 1e-6


def test_alternation_ends_where_newton_ends_and_its_objective_never_rises():
    inputs, labels, _ = made(2, 150, (6, 6))
    starts = random_starts((6, 6), 1, 2, 2, generator(0))
    newton = fit_cp(inputs, labels, starts, "logistic", 0.05)
    slow = fit_alternating(inputs, labels, starts, "logistic", 0.05, tol=1e-12)
    free = fit_alternating(inputs, labels, starts, "logistic", 0.05, tol=1e-12, balanced=False)
    assert (newton.objective - slow.objective).abs().max() < 1e-8
    assert (newton.objective - free.objective).abs().max() < 1e-6
    values = [
        fit_alternating(inputs, labels, starts, "logistic", 0.05, sweeps=k, tol=1e-15).objective for k in range(1, 6)
    ]
    assert all((b <= a + 1e-14).all() for a, b in pairwise(values))


@pytest.mark.parametrize("loss", ["logistic", "hinge"])
def test_a_penalty_above_the_gradients_norm_leaves_nothing(loss):
    inputs, labels, _ = made(2, 200, (6, 6))
    edge = float(torch.linalg.matrix_norm(torch.einsum("sn,snij->sij", labels, inputs) / 200, 2).max())
    slope, c = (0.5, 1.0) if loss == "logistic" else (1.0, 0.5)
    above = 1.05 * slope * edge / (2 * c)
    starts = random_starts((6, 6), 2, 2, 1, generator(0))
    assert fit_cp(inputs, labels, starts, loss, above).predictor.abs().max() < 1e-3
    assert fit_cp(inputs, labels, starts, loss, above / 2).predictor.flatten(2).norm(dim=2).min() > 0.05


@pytest.mark.parametrize("loss", LOSSES)
def test_batches_equal_one_by_one(loss, monkeypatch):
    inputs, labels, _ = made(5, 60, (5, 4), soft=loss == "squared")
    starts = random_starts((5, 4), 2, 5, 3, generator(0))
    penalty = torch.tensor([0.3, 0.1, 0.05], dtype=F64).expand(5, 3)
    whole = fit_cp(inputs, labels, starts, loss, penalty)
    monkeypatch.setattr("lowdim.cp_predictors.PIECE_BYTES", 1)  # a data set at a time
    pieces = fit_cp(inputs, labels, starts, loss, penalty)
    assert (whole.predictor - pieces.predictor).abs().max() < 1e-8
    single = fit_cp(inputs[3:4], labels[3:4], [b[3:4, 1:2] for b in starts], loss, 0.1)
    assert (whole.predictor[3, 1] - single.predictor[0, 0]).abs().max() < 1e-7
    plain = fit_vector(inputs, labels, loss, penalty, tol=1e-9)
    alone = fit_vector(inputs[3:4], labels[3:4], loss, 0.1, tol=1e-9)
    assert (plain.predictor[3, 1] - alone.predictor[0, 0]).abs().max() < 1e-7
    best = whole.best()
    assert torch.equal(best.objective[:, 0], whole.objective.amin(1))


def test_vectors_are_scikit_learns():
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import LinearSVC

    inputs, labels, _ = made(1, 200, (4, 5))
    x, y = inputs[0].flatten(1).numpy(), labels[0].numpy()
    ours = fit_vector(inputs, labels, "logistic", 0.05, tol=1e-9).predictor.flatten()
    theirs = (
        LogisticRegression(C=1 / (2 * 200 * 0.05), fit_intercept=False, tol=1e-10, max_iter=5000).fit(x, y).coef_[0]
    )
    assert np.abs(ours.numpy() - theirs).max() < 1e-5
    ours = fit_vector(inputs, labels, "hinge", 0.5).predictor.flatten()
    theirs = torch.as_tensor(
        LinearSVC(loss="hinge", C=1 / (200 * 0.5), fit_intercept=False, tol=1e-8, max_iter=200_000).fit(x, y).coef_[0]
    )
    assert alignment(ours, theirs) > 0.999  # the rounding of the hinge
    ours = fit_vector(inputs, labels, "squared", 0.3, tol=1e-9).predictor.flatten().numpy()
    ridge = np.linalg.solve(x.T @ x / 200 + 0.3 * np.eye(20), x.T @ y / 200)
    assert np.abs(ours - ridge).max() < 1e-8


@pytest.mark.parametrize("loss", ["logistic", "squared"])
def test_the_nuclear_norm_solution_is_optimal_and_is_what_cp_of_enough_components_finds(loss):
    inputs, labels, _ = made(2, 150, (6, 5), rank=2, soft=loss == "squared")
    weight = torch.tensor([[0.05, 0.2]], dtype=F64).expand(2, 2)
    convex = fit_nuclear(inputs, labels, loss, weight, tol=1e-11, steps=20_000)
    assert convex.converged.all()
    scores = torch.einsum("snij,sfij->sfn", inputs, convex.predictor)
    slope = loss_terms(loss, scores, labels.unsqueeze(1))[1]
    pull = torch.einsum("sfn,snij->sfij", slope, inputs) / 150
    assert (torch.linalg.matrix_norm(pull, 2) <= weight * (1 + 1e-6)).all()  # the conditions for a minimum
    nuclear = torch.linalg.matrix_norm(convex.predictor, "nuc")
    assert ((pull * convex.predictor).sum((2, 3)) + weight * nuclear).abs().max() < 1e-6
    cp = fit_cp(inputs, labels, random_starts((6, 5), 5, 2, 2, generator(0)), loss, weight / 2, tol=1e-8)
    assert (cp.objective - convex.objective).abs().max() < 1e-6


def test_the_penalty_is_chosen_on_samples_held_out():
    inputs, labels, truth = made(4, 300, (8, 8), noise=2.0)
    seen = []

    def fit(x, y, penalty):
        seen.append((x.shape[1], penalty))
        return fit_vector(x, y, "logistic", penalty)

    found, chosen = tune(fit, inputs, labels, [100.0, 0.1], "logistic", share=0.2)
    assert [n for n, _ in seen] == [240, 300]
    assert found.predictor.shape == (4, 1, 8, 8)
    assert torch.equal(seen[1][1].flatten(), chosen)
    soft, ridge = torch.einsum("snij,ij->sn", inputs, truth), lambda x, y, penalty: fit_vector(x, y, "squared", penalty)
    sizes = tune(ridge, inputs, soft, [100.0, 0.001], "squared")[1]
    assert (sizes == 0.001).all()  # without noise the small penalty must win


@pytest.mark.parametrize("loss", ["logistic", "squared"])
def test_single_precision_gives_the_same_predictor(loss):
    inputs, labels, _ = made(3, 200, (6, 6), soft=loss == "squared", rank=2)
    starts = random_starts((6, 6), 2, 3, 1, generator(0))
    double = fit_cp(inputs, labels, starts, loss, 0.02, tol=1e-3)
    single = fit_cp(inputs.float(), labels.float(), [b.float() for b in starts], loss, 0.02, tol=1e-3)
    assert single.converged.all()
    assert single.predictor.dtype == torch.float32
    apart = (single.predictor - double.predictor).flatten(2).norm(dim=2) / double.predictor.flatten(2).norm(dim=2)
    assert apart.max() < 1e-2  # the tolerance of the fit, not of the numbers


def test_a_hinge_without_penalty_on_separable_samples_is_solved():
    """More weights than samples: the direct solve must stand a singular Hessian."""
    inputs, labels, _ = made(2, 20, (6, 6))
    fit = fit_vector(inputs, labels, "hinge", 0.0)
    scores = torch.einsum("snij,sfij->sn", inputs, fit.predictor)
    assert (scores * labels > 0).all()
    assert fit.objective.max() < 1e-3


def test_alignment_gives_all_measures():
    truth = torch.zeros(3, 3, dtype=F64)
    truth[1] = 1
    other = torch.randn(2, 4, 3, 3, generator=generator(0), dtype=F64)
    cos = alignment(other, truth)
    unit = other / other.flatten(2).norm(dim=2)[..., None, None]
    assert torch.allclose((unit - truth / 3**0.5).square().sum((2, 3)), 2 - 2 * cos)
    assert alignment(torch.zeros(3, 3, dtype=F64), truth) == 0
    assert torch.allclose(alignment(1e-200 * other, truth), cos)  # a predictor that shrank to almost nothing


def test_a_readers_own_tensors(tmp_path):
    np.savez(tmp_path / "good.npz", X=np.ones((20, 2, 3), np.float32), y=np.ones(20, int))
    x, y = labelled_tensors(tmp_path / "good.npz")
    assert x.shape == (20, 2, 3)
    assert y.dtype == x.dtype == F64
    (tmp_path / "text.npz").write_text("no numbers")
    np.savez(tmp_path / "other.npz", images=np.ones(3))
    for name in ("text.npz", "other.npz", "missing.npz"):
        with pytest.raises(DataError, match="must be a .npz file with numbers X"):
            labelled_tensors(tmp_path / name)
    np.savez(tmp_path / "flat.npz", X=np.ones((20, 6)), y=np.ones(20))
    with pytest.raises(ParameterError, match="X must be"):
        labelled_tensors(tmp_path / "flat.npz")


GOOD = made(2, 30, (4, 5))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(labels=GOOD[1] * 2), "labels must be -1 or \\+1 for the logistic loss, got"),
        (dict(labels=(GOOD[1] + 1) / 2), "labels must be -1 or \\+1 for the logistic loss, got 0"),
        (
            dict(labels=torch.cat([GOOD[1][:1], torch.ones(1, 30, dtype=F64)])),
            "both classes, -1 and \\+1, but data set 1",
        ),
        (dict(labels=GOOD[1] * torch.nan), "labels must be finite"),
        (dict(labels=GOOD[1][:, :7]), "labels must be \\(sets, n\\) with n = 30"),
        (dict(inputs=GOOD[0] * torch.inf), "inputs must be finite"),
        (dict(loss="cubic"), "loss must be one of 'logistic', 'hinge', 'squared', got 'cubic'"),
        (dict(penalty=-1.0), "penalty must be a finite number >= 0, got -1.0"),
        (dict(penalty=math.nan), "penalty must be a finite number >= 0, got nan"),
    ],
)
def test_bad_input_is_one_sentence(change, words):
    case = dict(inputs=GOOD[0], labels=GOOD[1], loss="logistic", penalty=0.1) | change
    starts = random_starts((4, 5), 1, 2, 1, generator(0))
    with pytest.raises(ParameterError, match=words):
        fit_cp(case["inputs"], case["labels"], starts, case["loss"], case["penalty"])
    with pytest.raises(ParameterError, match=words):
        fit_vector(case["inputs"], case["labels"], case["loss"], case["penalty"])


def test_bad_shapes_ranks_and_shares():
    inputs, labels, _ = GOOD
    for rank in (0, 5, 2.5):
        with pytest.raises(ParameterError, match="rank must be a whole number >= 1 and <= 4"):
            random_starts((4, 5), rank, 2, 1, generator(0))
    with pytest.raises(ParameterError, match="rank must be a whole number >= 1 and <= 4"):
        fit_cp(inputs, labels, [torch.zeros(2, 1, i, 9, dtype=F64) for i in (4, 5)])
    with pytest.raises(ParameterError, match="starts must be"):
        fit_cp(inputs, labels, random_starts((5, 4), 1, 2, 1, generator(0)))
    with pytest.raises(ParameterError, match="inputs must have at least two modes"):
        fit_cp(inputs.flatten(2), labels, [torch.zeros(2, 1, 20, 1, dtype=F64)])
    with pytest.raises(ParameterError, match="inputs must be matrices"):
        fit_nuclear(inputs.flatten(2), labels, "logistic", torch.ones(2, 1, dtype=F64))
    with pytest.raises(ParameterError, match="share must leave samples on both sides"):
        tune(lambda *a: None, inputs, labels, [0.1], "logistic", share=0.001)
