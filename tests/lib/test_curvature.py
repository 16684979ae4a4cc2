"""Hessian products, Lanczos, multipliers and exponents against dense linear algebra."""

import pytest
import torch

from lowdim import curvature as cv
from lowdim.checks import ParameterError
from lowdim.training import TanhPopulation

F64 = torch.float64


def symmetric(n, random):
    matrix = torch.randn(n, n, generator=random, dtype=F64)
    return matrix + matrix.mT


def small_loss(w, b):
    return ((w @ b).tanh().sum() + w.square().sum()) ** 2


def test_hessian_products_agree_with_the_dense_hessian(random):
    point = [torch.randn(3, 4, generator=random, dtype=F64), torch.randn(4, generator=random, dtype=F64)]
    dense = cv.hessian(small_loss, point)
    vector = torch.randn(16, generator=random, dtype=F64)
    torch.testing.assert_close(
        cv.hessian_vector_product(small_loss, point)(vector), dense @ vector, rtol=1e-10, atol=1e-10
    )
    torch.testing.assert_close(dense, dense.mT, rtol=1e-10, atol=1e-10)


def test_hessian_by_finite_differences(random):
    point = [torch.randn(2, 2, generator=random, dtype=F64), torch.randn(2, generator=random, dtype=F64)]
    flat, h = cv.flatten(point), 1e-4

    def value(x):
        return small_loss(*cv.unflatten(x, point))

    def second_difference(a, b):
        around = value(flat + a + b) - value(flat + a - b) - value(flat - a + b) + value(flat - a - b)
        return around / (4 * h * h)

    n = len(flat)
    eye = h * torch.eye(n, dtype=F64)
    brute = torch.stack([
        torch.stack([second_difference(a, b) for b in eye])
        for a in eye
    ])  # fmt: skip
    torch.testing.assert_close(cv.hessian(small_loss, point), brute, rtol=1e-5, atol=1e-5)


def test_population_products_are_the_products_of_each_run(random):
    inputs = torch.randn(3, 6, 4, generator=random, dtype=F64)
    answers = torch.randn(3, 6, 2, generator=random, dtype=F64)
    nets = TanhPopulation(inputs, answers, [4, 5, 2], 0.1, 1.0, random)
    vectors = torch.randn(3, nets.size, generator=random, dtype=F64)
    together = cv.population_hessian_product(nets.loss, nets.state)(vectors)
    for run in range(3):
        alone = TanhPopulation(inputs[run : run + 1], answers[run : run + 1], [4, 5, 2], 0.1, 1.0, random)
        own = [p[run : run + 1].clone() for p in nets.state]
        product = cv.hessian_vector_product(lambda *p, net=alone: net.loss(*p)[0], own)
        torch.testing.assert_close(together[run], product(vectors[run]), rtol=1e-9, atol=1e-10)


def test_products_of_losses_without_curvature_in_some_parameters(random):
    a, b = torch.randn(2, 3, generator=random, dtype=F64), torch.randn(2, 2, generator=random, dtype=F64)
    product = cv.population_hessian_product(lambda a, b: a.square().sum(1) + b.sum(1), [a, b])
    expected = torch.tensor([2.0, 2, 2, 0, 0], dtype=F64).diag().expand(2, 5, 5)
    torch.testing.assert_close(cv.dense(product, torch.zeros(2, 5, dtype=F64), chunk=2), expected)
    linear = cv.population_hessian_product(lambda a: a.sum(1), [a])
    assert linear(torch.ones(2, 3, dtype=F64)).abs().max() == 0


def softmax_models(random, runs=3, samples=6):
    inputs = torch.randn(runs, samples, 4, generator=random, dtype=F64)
    parameters = [
        torch.randn(runs, 4, 5, generator=random, dtype=F64),
        torch.randn(runs, 5, 3, generator=random, dtype=F64),
    ]
    return inputs, parameters, lambda w, v, x=inputs: (x @ w).tanh() @ v


def test_gauss_newton_products_are_those_of_the_jacobians(random):
    inputs, parameters, logits = softmax_models(random)
    labels = torch.randint(0, 3, (3, 6), generator=random)
    loss = lambda z: -z.log_softmax(-1).gather(-1, labels.unsqueeze(-1)).mean((1, 2))
    like = torch.zeros(3, 35, dtype=F64)
    found = cv.dense(cv.gauss_newton_product(logits, parameters, loss), like)
    jacobians = cv.sample_jacobians(logits, parameters, inputs)
    p = logits(*parameters).softmax(-1)
    middle = torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)
    brute = torch.einsum("rnka,rnkl,rnlb->rab", jacobians, middle, jacobians) / 6
    torch.testing.assert_close(found, brute, rtol=0, atol=1e-12)
    true = cv.dense(cv.fisher_product(lambda *w: logits(*w).log_softmax(-1), parameters), like)
    torch.testing.assert_close(true, brute, rtol=0, atol=1e-12)  # for a softmax they are one matrix


def test_empirical_fisher_is_the_covariance_of_the_samples_gradients(random):
    inputs, parameters, logits = softmax_models(random, runs=1)
    labels = torch.randint(0, 3, (1, 6), generator=random)
    product = cv.fisher_product(lambda *w: logits(*w).log_softmax(-1), parameters, labels)
    brute = torch.zeros(35, 35, dtype=F64)
    for i in range(6):
        own = [w[0].clone().requires_grad_() for w in parameters]
        loss = torch.nn.functional.cross_entropy((inputs[0, i] @ own[0]).tanh() @ own[1], labels[0, i])
        g = torch.cat([part.flatten() for part in torch.autograd.grad(loss, own)])
        brute += torch.outer(g, g) / 6
    torch.testing.assert_close(cv.dense(product, torch.zeros(1, 35, dtype=F64))[0], brute, rtol=0, atol=1e-12)


def test_lanczos_finds_the_top_eigenvalues(random):
    matrix = symmetric(60, random)
    start = torch.randn(60, generator=random, dtype=F64)
    found = cv.top_eigenvalues(lambda v: matrix @ v, start, k=5, steps=60)
    torch.testing.assert_close(found, torch.linalg.eigvalsh(matrix).flip(0)[:5], rtol=1e-10, atol=1e-10)


def test_lanczos_basis_is_orthonormal_and_batched(random):
    matrices = torch.stack([symmetric(30, random) for _ in range(4)])
    start = torch.randn(4, 30, generator=random, dtype=F64)
    diagonal, off, basis = cv.lanczos(lambda v: (matrices @ v.unsqueeze(-1)).squeeze(-1), start, 20)
    torch.testing.assert_close(basis @ basis.mT, torch.eye(20, dtype=F64).expand(4, 20, 20), rtol=0, atol=1e-12)
    inside = basis @ matrices @ basis.mT
    expected = torch.diag_embed(diagonal) + torch.diag_embed(off, 1) + torch.diag_embed(off, -1)
    torch.testing.assert_close(inside, expected, rtol=0, atol=1e-10)


def test_lanczos_stops_when_the_space_is_exhausted():
    matrix = torch.diag(torch.tensor([3.0, 3, 1, 1, 1, 1], dtype=F64))
    found = cv.top_eigenvalues(lambda v: matrix @ v, torch.ones(6, dtype=F64), k=2, steps=6)
    torch.testing.assert_close(found, torch.tensor([3.0, 1.0], dtype=F64), rtol=1e-12, atol=1e-12)


def test_floquet_multipliers_are_those_of_the_product_in_time_order(random):
    steps = torch.randn(3, 2, 4, 4, generator=random, dtype=F64)
    found = cv.floquet_multipliers(steps)
    brute = torch.linalg.eigvals(steps[2] @ steps[1] @ steps[0])
    torch.testing.assert_close(found.abs(), brute.abs().sort(-1, descending=True).values, rtol=1e-10, atol=1e-12)


def test_lyapunov_exponent_of_a_constant_matrix(random):
    matrix = torch.diag(torch.tensor([0.5, 1.3, 0.9], dtype=F64))
    start = torch.randn(2, 3, generator=random, dtype=F64)
    found = cv.lyapunov_exponent(lambda v: v @ matrix, start, steps=50, burn_in=200)
    torch.testing.assert_close(found, torch.tensor([1.3, 1.3], dtype=F64).log(), rtol=1e-10, atol=0)


def test_bad_input_is_one_clear_sentence():
    with pytest.raises(ParameterError, match="k must be between 1 and the 5 Lanczos steps, got 9"):
        cv.top_eigenvalues(lambda v: v, torch.ones(5), k=9)
