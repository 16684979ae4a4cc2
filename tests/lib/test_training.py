"""Closed-form gradients of the tanh population against autograd."""

import pytest
import torch

from lowdim.checks import ParameterError
from lowdim.descent import train
from lowdim.training import TanhPopulation

F64 = torch.float64


@pytest.mark.parametrize("sizes", [[5, 4, 2], [5, 6, 4, 2], [5, 3, 3, 3, 3, 2]])
def test_step_is_the_gradient_step_of_autograd(sizes, random):
    inputs = torch.randn(3, 7, 5, generator=random, dtype=F64)
    answers = torch.randn(3, 7, 2, generator=random, dtype=F64)
    eta = torch.tensor([0.1, 0.2, 0.3], dtype=F64)
    nets = TanhPopulation(inputs, answers, sizes, eta, 0.7, random)
    train(nets, 3)  # biases are no longer zero
    leaves = [p.clone().requires_grad_() for p in nets.state]
    gradients = torch.autograd.grad(nets.loss(*leaves).sum(), leaves)
    nets.step()
    for moved, old, gradient in zip(nets.state, leaves, gradients, strict=True):
        torch.testing.assert_close(moved, (old - eta.view(3, 1, 1) * gradient).detach(), rtol=1e-10, atol=1e-12)


def test_sizes_that_do_not_fit():
    with pytest.raises(ParameterError, match=r"sizes \[4, 3, 2\] must have at least 3 entries, the first 5"):
        TanhPopulation(torch.zeros(1, 2, 5), torch.zeros(1, 2, 2), [4, 3, 2], 0.1, 1.0, torch.Generator())
