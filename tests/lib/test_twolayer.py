"""Closed-form Hessians of networks with one hidden layer against products, autograd and a double loop."""

import pytest
import torch

from lowdim import curvature as cv
from lowdim import twolayer
from lowdim.checks import ParameterError
from lowdim.mlps import MLP, mlp_parameters
from lowdim.spectra import fisher_rows

F64 = torch.float64


def networks(random, sizes=(4, 5, 3), runs=3, samples=7, activation="tanh"):
    inputs = torch.randn(runs, samples, sizes[0], generator=random, dtype=F64)
    labels = torch.randint(0, sizes[-1], (runs, samples), generator=random)
    return MLP(mlp_parameters(sizes, runs, random, dtype=F64), inputs, labels, activation=activation)


def losses_of(net):
    return lambda *state: net.loss(parameters=dict(zip(net.parameters, state, strict=True)))


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_the_closed_form_is_the_matrix_of_the_products(random, activation):
    net = networks(random, activation=activation)
    exact = twolayer.hessian(net.inputs, net.targets, net.parameters, activation)
    part = twolayer.gauss_newton(net.inputs, net.parameters, activation)
    like = torch.zeros(3, net.size, dtype=F64)
    product = cv.population_hessian_product(losses_of(net), net.state)
    torch.testing.assert_close(exact, cv.dense(product, like, chunk=7), rtol=0, atol=1e-12)
    outputs = lambda *state: net.outputs(parameters=dict(zip(net.parameters, state, strict=True)))
    loss = lambda z: torch.vmap(torch.nn.functional.cross_entropy)(z, net.targets)
    product = cv.gauss_newton_product(outputs, net.state, loss)
    torch.testing.assert_close(part, cv.dense(product, like), rtol=0, atol=1e-12)
    rows = fisher_rows(twolayer.jacobians(net.inputs, net.parameters, activation), net.outputs().softmax(-1))
    torch.testing.assert_close(part, rows.mT @ rows, rtol=0, atol=1e-12)


def test_the_hessian_is_that_of_a_double_loop_over_second_derivatives(random):
    net = networks(random, sizes=(2, 3, 2), runs=1, samples=4)
    state = [p.clone().requires_grad_() for p in net.state]
    loss = losses_of(net)(*state)[0]
    first = torch.cat([g.flatten() for g in torch.autograd.grad(loss, state, create_graph=True)])
    size = len(first)
    brute = torch.zeros(size, size, dtype=F64)
    for i in range(size):
        row = torch.cat([g.flatten() for g in torch.autograd.grad(first[i], state, retain_graph=True)])
        for j in range(size):
            brute[i, j] = row[j]
    exact = twolayer.hessian(net.inputs, net.targets, net.parameters, "tanh")
    torch.testing.assert_close(exact[0], brute, rtol=0, atol=1e-10)
    product = cv.population_hessian_product(losses_of(net), net.state)
    torch.testing.assert_close(cv.dense(product, brute[:1]), brute[None], rtol=0, atol=1e-10)


def test_jacobians_are_those_of_the_samples(random):
    net = networks(random)
    predict = lambda *args: net.outputs(args[-1], dict(zip(net.parameters, args[:-1], strict=True)))
    brute = cv.sample_jacobians(predict, net.state, net.inputs)
    ours = twolayer.jacobians(net.inputs, net.parameters, "tanh")
    torch.testing.assert_close(ours, brute, rtol=0, atol=1e-12)


def test_a_label_outside_the_classes_and_foreign_parameters_are_refused(random):
    net = networks(random)
    with pytest.raises(ParameterError, match="the largest of labels must be a whole number >= 0 and <= 2, got 9"):
        twolayer.hessian(net.inputs, torch.full_like(net.targets, 9), net.parameters)
    with pytest.raises(
        ParameterError, match=r"inputs must be \(3, samples, 4\), as the parameters have it, got \(3, 7, 2\)"
    ):
        twolayer.hessian(net.inputs[..., :2].clone(), net.targets, net.parameters)
