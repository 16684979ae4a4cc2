"""Networks with a fixed first layer of ReLU units and normal inputs: values, random teachers, exact population errors.

For standard normal x the average ``E[relu(u x) relu(v x)]`` has a closed form, the arc-cosine kernel of degree 1 (Cho
and Saul, 2009). So the error of output weights over all inputs is a quadratic form, and no test samples are needed.
"""

import math

import torch
from torch import Tensor

from lowdim import checks as ok
from lowdim.checks import ParameterError


@ok.takes(a=ok.tensor("runs m inputs"), b=ok.tensor("runs n inputs"))
def relu_kernel(a: Tensor, b: Tensor) -> Tensor:
    """``E[relu(a_i x) relu(b_j x)]`` over standard normal x, ``(runs, m, n)``."""
    lengths = [v.norm(dim=2, keepdim=True) for v in (a, b)]
    unit_a, unit_b = (v / length.clamp(min=1e-300) for v, length in zip((a, b), lengths, strict=True))
    cosine = (unit_a @ unit_b.mT).clamp_(-1, 1)
    angle = cosine.acos()
    sine = torch.sin(angle)
    mean = angle.neg_().add_(math.pi).mul_(cosine).add_(sine)
    return mean.mul_(lengths[0] / (2 * math.pi)).mul_(lengths[1].mT)


@ok.takes(x=ok.tensor("runs samples inputs"), first=ok.tensor("runs units inputs"))
def relu_values(x: Tensor, first: Tensor) -> Tensor:
    """Values of the hidden units, ``(runs, samples, units)``."""
    return (x @ first.mT).relu_()


class Teacher:
    """Random networks with one layer of ReLU units; over standard normal inputs their outputs have variance 1.

    Args:
        runs, units, inputs: sizes.

    Attributes:
        first: hidden weights ``(runs, units, inputs)``, normal with variance 1 / inputs.
        second: output weights ``(runs, units)``.
        mean: of the outputs over standard normal inputs, ``(runs,)``.
    """

    @ok.takes(runs=ok.count(), units=ok.count(), inputs=ok.count(), generator=ok.generator)
    def __init__(self, runs: int, units: int, inputs: int, generator, device="cpu"):
        draw = lambda *shape: torch.randn(runs, *shape, generator=generator, dtype=torch.float64).to(device)
        self.first, second = draw(units, inputs) / inputs**0.5, draw(units)
        kernel = relu_kernel(self.first, self.first)
        mean = (second * self.first.norm(dim=2)).sum(1) / (2 * math.pi) ** 0.5
        square = (second * (kernel @ second.unsqueeze(2))[..., 0]).sum(1)
        deviation = (square - mean**2).sqrt()
        self.second, self.mean, self.power = second / deviation.unsqueeze(1), mean / deviation, square / deviation**2

    def outputs(self, x: Tensor) -> Tensor:
        """For inputs ``(runs, samples, inputs)``: ``(runs, samples)``."""
        return (relu_values(x, self.first) @ self.second.unsqueeze(2))[..., 0]


class Student:
    """Random features that shall imitate a teacher: the exact error of any output weights of the first h units.

    Args:
        features: hidden weights ``(runs, units, inputs)``.
        teacher: as many runs, and as many inputs.
    """

    @ok.takes(features=ok.tensor("runs units inputs"), teacher=ok.kind(Teacher, "a Teacher"))
    def __init__(self, features: Tensor, teacher: Teacher):
        if features.shape[::2] != teacher.first.shape[::2]:
            runs, _, inputs = teacher.first.shape
            raise ParameterError(
                f"features must be ({runs}, units, {inputs}), as the teacher is, got {tuple(features.shape)}."
            )
        self.features, self.power = features, teacher.power
        self.kernel = relu_kernel(features, features)
        self.cross = relu_kernel(features, teacher.first) @ teacher.second.unsqueeze(2)

    @ok.takes(weights=ok.tensor("runs units columns"))
    def squared(self, weights: Tensor) -> Tensor:
        """Mean square of the output of weights on the first units, ``(runs, columns)``."""
        h = weights.shape[1]
        return (weights * (self.kernel[:, :h, :h] @ weights)).sum(1)

    @ok.takes(weights=ok.tensor("runs units columns"))
    def error(self, weights: Tensor) -> Tensor:
        """Mean squared distance from the teacher, without noise, ``(runs, columns)``."""
        inner = (weights * self.cross[:, : weights.shape[1]]).sum(1)
        return self.power.unsqueeze(1) + self.squared(weights) - 2 * inner

    @ok.takes(units=ok.count())
    def best(self, units: int) -> Tensor:
        """The output weights of the first units with the smallest error, ``(runs, units, 1)``."""
        return torch.linalg.solve(self.kernel[:, :units, :units], self.cross[:, :units])
