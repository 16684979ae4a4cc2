"""Bad input by the hundred, continued: projections and subspaces."""

# ruff: noqa: E501
import bad_values as bad
import pytest
import torch
from bad_values import draw, t

from lowdim import mlps, projections, subspaces
from lowdim.checks import ParameterError

Case = bad.Case
F64 = torch.float64


def net():
    return mlps.MLP(mlps.mlp_parameters((3, 4, 2), 4, draw(), dtype=F64), t(6, 3), torch.arange(6) % 2)


DTYPE = bad.only("wrong type", "float64", 3, None, torch.int64, torch.float16)
DRAWN = {"parameters": bad.count(1)[:1], "d": bad.count(1) + bad.only("more than parameters", 10, 11, 10**6),
         "groups": bad.count(1), "generator": bad.generator(), "dtype": DTYPE}  # fmt: skip
RANDOM = [Case(make, lambda: dict(parameters=9, d=5, groups=2, generator=draw()), DRAWN)
          for make in (projections.gaussian, projections.Sparse, projections.Fastfood)]  # fmt: skip
CASES = [
    *RANDOM,
    Case(projections.Dense, lambda: dict(columns=t(2, 9, 5)), {"columns": bad.tensor(dims=True) + bad.only("wide", t(2, 5, 9))}),
    Case(projections.OuterProducts, lambda: dict(sizes=[5, 4, 3], rank=2, groups=2, generator=draw()), {
        "sizes": bad.sizes(2), "rank": bad.count(1) + bad.only("larger than a layer", 4, 100), "groups": bad.count(1),
        "generator": bad.generator(), "dtype": DTYPE}),
    Case(projections.walsh_hadamard, lambda: dict(x=t(3, 8)), {
        "x": bad.only("wrong type", None, 3, "x", [1.0, 2.0]) + bad.only("no power of two", t(3, 6), t(12))}),
    Case(projections.operations, lambda: dict(kind="dense", parameters=9, d=5), {
        "kind": bad.choice(), "parameters": bad.count(1)[:1], "d": bad.count(1) + bad.only("more than parameters", 10, 11)}),
    Case(subspaces.Subspace, lambda: dict(population=net(), projection=projections.gaussian(26, 5, 2, draw(), F64)), {
        "population": bad.only("wrong type", None, 3, "population"),
        "projection": bad.only("wrong type", None, 3, t(2, 26, 5)) + bad.only("other size", projections.gaussian(27, 5, 2, draw(), F64))
        + bad.only("other groups", projections.gaussian(26, 5, 3, draw(), F64)) + bad.only("other type", projections.gaussian(26, 5, 2, draw())),
        "dims": bad.only("wrong type", 3, "3", [0.5, 1]) + bad.only("wrong length", [1], [1, 2, 3]) + bad.only("too large", [1, 6], [0, 3]),
        "decay": bad.real(at_least=0)}),
    Case(subspaces.rising, lambda: dict(values=[0.1, 0.3, 0.2]), {"values": bad.only("wrong type", None, "values", object)}),
    Case(subspaces.intrinsic_dimension, lambda: dict(d=[1, 2, 4], performance=t(3, 2), threshold=0.9), {
        "d": bad.only("wrong", None, "d", [1, 2], [2, 1, 4], [0, 1, 2], [1.0, bad.NAN, 2.0]), "performance": bad.only("wrong", None, "x", object),
        "threshold": bad.only("wrong", bad.NAN, bad.INF, t(3))}),
]  # fmt: skip
test_the_good_arguments_are_good, test_bad_input_is_answered = bad.table_tests(CASES)


@pytest.mark.parametrize("make", projections.KINDS.values())
def test_a_subspace_larger_than_the_parameters_names_both_numbers(make):
    with pytest.raises(ParameterError, match="d must be at most 26, the number of parameters, got 27"):
        make(26, 27, 1, draw())
