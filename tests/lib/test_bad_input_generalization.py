"""Bad input by the hundred, continued: the theory of generalization error and the flow of draws."""

# ruff: noqa: E501
import bad_values as bad
import pytest
import torch
from bad_values import draw, t

from lowdim import features
from lowdim import generalization as gen
from lowdim.checks import ParameterError

Case = bad.Case


def flow(tall=True):
    return gen.Flow(t(2, 5, 3) if tall else t(2, 3, 5), t(2, 5 if tall else 3))


LOADS, POINTS, SIZE = bad.several(above=0), bad.count(2), bad.real(at_least=0)
TIMES = bad.only(
    "wrong", None, "3", [], [-1.0, 2.0], -0.5, [1.0, bad.NAN], torch.tensor([1.0, bad.NAN]), torch.tensor([-1.0])
)
CASES = [
    Case(gen.edges, lambda: dict(load=0.5), {"load": LOADS}),
    Case(gen.density, lambda: dict(s=0.5, load=0.5), {"s": bad.several(at_least=0), "load": bad.real(above=0)}),
    Case(gen.quadrature, lambda: dict(load=0.5), {"load": LOADS, "points": POINTS}),
    Case(gen.generalization_error, lambda: dict(load=[0.5, 2.0], times=[1.0, 2.0], snr=5.0), {"load": LOADS, "times": TIMES, "snr": SIZE, "inr": SIZE, "points": POINTS}),
    Case(gen.training_error, lambda: dict(load=[0.5, 2.0], times=[1.0, 2.0], snr=5.0), {"load": LOADS, "times": TIMES, "snr": SIZE, "inr": SIZE, "points": POINTS}),
    Case(gen.late_error, lambda: dict(load=0.5, snr=5.0), {"load": LOADS, "snr": SIZE, "inr": SIZE}),
    Case(gen.ridge_error, lambda: dict(load=0.5, snr=5.0), {"load": LOADS, "snr": bad.real(above=0), "gamma": bad.only("wrong", "3", -1.0, 0.0, bad.NAN), "points": POINTS}),
    Case(gen.mode_time, lambda: dict(s=0.5, snr=5.0), {"s": bad.several(above=0), "snr": SIZE, "inr": SIZE}),
    Case(gen.stopping, lambda: dict(load=0.5, snr=5.0), {"load": LOADS, "snr": SIZE, "inr": SIZE, "points": POINTS}),
    Case(gen.Flow, lambda: dict(design=t(2, 5, 3), targets=t(2, 5)), {
        "design": bad.tensor(), "targets": bad.tensor(ends=(0, 1)), "start": bad.only("wrong", 3, "zero", t(3), t(2, 4), t(3, 3))}),
    Case(gen.linear_draws, lambda: dict(samples=5, weights=3, runs=2, snr=5.0, inr=0.0, generator=draw()), {
        "samples": bad.count(), "weights": bad.count(), "runs": bad.count(), "snr": SIZE, "inr": SIZE, "generator": bad.generator(),
        "variances": bad.only("wrong", 3, "one", t(4), t(2, 3), -t(3))}),
    Case(features.relu_kernel, lambda: dict(a=t(2, 4, 3), b=t(2, 5, 3)), {"a": bad.tensor(), "b": bad.tensor(ends=(0, 2))}),
    Case(features.relu_values, lambda: dict(x=t(2, 4, 3), first=t(2, 5, 3)), {"x": bad.tensor(), "first": bad.tensor(ends=(0, 2))}),
    Case(features.Teacher, lambda: dict(runs=2, units=3, inputs=4, generator=draw()), {
        "runs": bad.count(), "units": bad.count(), "inputs": bad.count(), "generator": bad.generator()}),
    Case(features.Student, lambda: dict(features=t(2, 5, 4), teacher=features.Teacher(2, 3, 4, draw())), {
        "features": bad.tensor(ends=(0, 2)), "teacher": bad.only("wrong type", None, 3, "teacher")}),
]  # fmt: skip
test_the_good_arguments_are_good, test_bad_input_is_answered = bad.table_tests(CASES)


def test_methods_of_a_flow_answer_what_does_not_fit():
    for one in (flow(True), flow(False)):
        with pytest.raises(ParameterError, match=r"filters must have a value for each of the modes \(2, 3\), got"):
            one.weights(t(2, 4, 1))
        with pytest.raises(ParameterError, match=r"filters must be \(runs, modes, columns\)"):
            one.weights(t(2, 3))
        with pytest.raises(ParameterError, match=r"targets must be \(2, \d\), as the first ones, got \(2, 7\)"):
            one.again(t(2, 7))
        with pytest.raises(ParameterError, match="times"):
            one.decay([-1.0])
        with pytest.raises(ParameterError, match="penalties"):
            one.shrink([0.0])
        with pytest.raises(ParameterError, match="weights must be a tensor"):
            one.losses([1.0])
        with pytest.raises(ParameterError, match=r"weights must have a row for each of \d weights of 2 runs"):
            one.losses(t(2, 9, 1))
