"""Population errors of random features against averages over the circle, autograd and many samples."""

import math

import pytest
import torch

from lowdim import features
from lowdim.checks import ParameterError

F64 = torch.float64


def rand(random, *shape):
    return torch.randn(*shape, generator=random, dtype=F64)


def circle(points=200_000):
    """Standard normal inputs in the plane, their radius integrated: averages of degree two are means times 2."""
    angle = torch.arange(points, dtype=F64) * (2 * math.pi / points)
    return torch.stack([angle.cos(), angle.sin()], 1)


def test_the_relu_kernel_is_an_average_over_normal_inputs(random):
    a, b = rand(random, 1, 2, 2), rand(random, 1, 3, 2)
    x = circle()  # E[r^2] = 2
    brute = 2 * (x @ a[0].mT).relu().mT @ (x @ b[0].mT).relu() / len(x)
    torch.testing.assert_close(features.relu_kernel(a, b)[0], brute, rtol=0, atol=1e-8)
    same = features.relu_kernel(a, a)[0].diagonal()
    torch.testing.assert_close(same, a[0].square().sum(1) / 2, rtol=0, atol=1e-8)


def test_teachers_have_variance_one(random):
    teacher = features.Teacher(3, 6, 4, random)
    out = teacher.outputs(rand(random, 3, 200_000, 4))
    torch.testing.assert_close(out.var(1), torch.ones(3, dtype=F64), rtol=0.03, atol=0)
    torch.testing.assert_close(out.mean(1), teacher.mean, rtol=0, atol=0.02)
    torch.testing.assert_close(out.square().mean(1), teacher.power, rtol=0.03, atol=0)


def test_the_error_is_an_average_over_inputs(random):
    teacher = features.Teacher(2, 5, 2, random)
    student = features.Student(rand(random, 2, 6, 2), teacher)
    a, x = rand(random, 2, 4, 3), circle().expand(2, -1, -1)  # the first four units, three columns
    distance = features.relu_values(x, student.features[:, :4]) @ a - teacher.outputs(x).unsqueeze(2)
    torch.testing.assert_close(student.error(a), 2 * distance.square().mean(1), rtol=0, atol=1e-6)
    values = features.relu_values(x, student.features[:, :4]) @ a
    torch.testing.assert_close(student.squared(a), 2 * values.square().mean(1), rtol=0, atol=1e-6)


def test_the_best_weights_have_no_gradient(random):
    teacher = features.Teacher(2, 5, 8, random)
    student = features.Student(rand(random, 2, 6, 8), teacher)
    best = student.best(4).requires_grad_()
    (gradient,) = torch.autograd.grad(student.error(best).sum(), best)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-10)
    assert (student.error(best.detach() * 1.01) > student.error(best.detach())).all()


def test_what_does_not_fit_is_answered(random):
    teacher = features.Teacher(2, 5, 8, random)
    with pytest.raises(ParameterError, match=r"features must be \(2, units, 8\), as the teacher is, got \(2, 6, 7\)"):
        features.Student(rand(random, 2, 6, 7), teacher)
    with pytest.raises(ParameterError, match="weights"):
        features.Student(rand(random, 2, 6, 8), teacher).error(torch.tensor(1.0))
