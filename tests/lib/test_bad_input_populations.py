"""Bad input by the hundred, continued: populations, trainers, matching, interpolation."""

# ruff: noqa: E501
import importlib
import inspect

import bad_values as bad
import pytest
import torch
from bad_values import draw, t
from torch import nn

from lowdim import interpolation, matching, mlps, populations, trainer
from lowdim.checks import ParameterError

Case = bad.Case
F64 = torch.float64


def stacked(runs=2, sizes=(3, 4, 2)):
    return mlps.mlp_parameters(sizes, runs, draw(), dtype=F64)


def labels(*shape):
    return torch.arange(6).view(*shape) % 2


def net(runs=2):
    return mlps.MLP(stacked(runs), t(6, 3), labels(6))


def line(p, x):
    return x @ p["w"]


LABELS = (
    bad.only("outside the classes", torch.tensor([0, 1, 0, 1, 0, 2]), torch.tensor([0, 1, 0, 1, 0, -1]))
    + bad.only("no labels", t(6), t(6).bool())
    + bad.only("wrong length", labels(6)[:5])
    + bad.only("wrong type", None, 3, "labels")
)
STACKED = bad.only("wrong type", None, 3, t(2, 3), []) + bad.only("not finite", {"weight.0": torch.full((2, 4, 3), bad.NAN, dtype=F64)})  # fmt: skip
NETWORKS = (
    STACKED + bad.only("no layers", {"w": t(2, 3, 3)}) + bad.only("other runs", stacked(3), stacked(2, (3, 5, 2)))
)
ORDERS = bad.only("wrong type", None, 3, t(2, 4)) + bad.only("not a permutation", [torch.zeros(2, 4, dtype=torch.long)])
EPS, OBJECT = bad.real(above=0), bad.only("wrong type", None, 3, "population")
SEVERAL = bad.several(at_least=0) + bad.only("wrong length", [0.1] * 3, t(5))
TRAIN = {
    "population": OBJECT, "eta": SEVERAL, "optimiser": bad.choice(), "batch": bad.count(1, 6)[:3] + bad.only("larger than the data", 7, 100),
    "momentum": bad.real(at_least=0, below=1), "betas": bad.only("wrong", 3, [0.9], [0.9, 2.0]), "eps": bad.real(at_least=0),
    "decay": bad.real(at_least=0)[:1] + bad.only("no such parameter", {"gain": 0.1}) + bad.only("negative", {"weight.*": -1.0}),
    "clip": EPS[:1] + EPS[2:], "schedule": bad.function(), "generator": bad.only("wrong type", 7, "cpu"), "bound": EPS,
}  # fmt: skip
CASES = [
    Case(populations.Functional, lambda: dict(function=line, parameters={"w": t(2, 3, 2)}, inputs=t(6, 3), targets=labels(6)), {
        "function": bad.function() + bad.only("does not fit", lambda p, x: x @ p["v"]), "parameters": STACKED,
        "inputs": bad.tensor(dims=False), "targets": LABELS, "loss": bad.choice(), "per_run": bad.flag(), "bf16": bad.flag()}),
    Case(populations.modules, lambda: dict(models=[nn.Linear(3, 2).double() for _ in range(2)], inputs=t(6, 3), targets=labels(6)), {
        "models": bad.only("wrong type", None, 3, nn.Linear(3, 2), [3]) + bad.only("empty", []), "inputs": bad.tensor(dims=False),
        "targets": LABELS, "loss": bad.choice(), "per_run": bad.flag(), "bf16": bad.flag()}),
    Case(populations.write_back, lambda: dict(population=populations.modules([nn.Linear(3, 2).double()], t(6, 3), labels(6)), models=[nn.Linear(3, 2)]), {
        "population": OBJECT, "models": bad.only("wrong type", None, 3) + bad.only("wrong length", [])}),
    Case(mlps.mlp_parameters, lambda: dict(sizes=[3, 4, 2], runs=2, generator=draw()), {
        "sizes": bad.sizes(2), "runs": bad.count(), "generator": bad.generator(), "start": bad.choice()[:1] + bad.only("negative", -1.0, bad.NAN),
        "dtype": bad.only("wrong type", "float64", 3)}),
    Case(mlps.MLP, lambda: dict(parameters=stacked(), inputs=t(6, 3), targets=labels(6)), {
        "parameters": STACKED + bad.only("no layers", {"w": t(2, 3, 3)}), "inputs": bad.tensor(dims=True), "targets": LABELS,
        "loss": bad.choice(), "activation": bad.choice()}),
    Case(trainer.cosine, lambda: dict(steps=10), {"steps": bad.count(), "warmup": bad.count(0) + bad.only("too long", 10, 11)}),
    Case(trainer.Trainer, lambda: dict(population=net(), eta=0.1, batch=3, generator=draw()), TRAIN),
    Case(trainer.train, lambda: dict(population=net(), steps=2, eta=0.1, batch=3, generator=draw()), {
        k: v for k, v in TRAIN.items() if k != "population"} | {"population": OBJECT, "steps": bad.count(0), "every": bad.count(),
        "record": bad.only("wrong type", 3, "loss", {"loss": 3}), "on_divergence": bad.choice(), "describe": bad.function()}),
    Case(trainer.side_by_side, lambda: dict(trainers=[trainer.Trainer(net(), 0.1)], steps=2), {
        "trainers": bad.only("wrong type", None, 3, [3]) + bad.only("empty", []), "steps": bad.count(0), "workers": bad.count(),
        "record": bad.only("wrong length", [{}, {}, {}])}),
    Case(matching.identity, lambda: dict(networks=stacked()), {"networks": STACKED}),
    Case(matching.permute, lambda: dict(networks=stacked(), permutations=matching.identity(stacked())), {"networks": STACKED, "permutations": ORDERS}),
    Case(matching.assign, lambda: dict(gains=t(2, 3, 3)), {"gains": bad.tensor(ends=(1, 2))}),
    Case(matching.weight_matching, lambda: dict(a=stacked(), b=stacked(), generator=draw()), {
        "a": STACKED, "b": NETWORKS, "generator": bad.generator(), "start": ORDERS[1:], "sweeps": bad.count(), "slack": bad.real(at_least=0)}),
    Case(matching.agreement, lambda: dict(a=stacked(), b=stacked(), permutations=matching.identity(stacked())), {
        "a": STACKED, "b": NETWORKS, "permutations": ORDERS}),
    Case(matching.activation_matching, lambda: dict(a=[t(2, 5, 3)], b=[t(2, 5, 3)]), {
        "a": bad.only("wrong type", None, 3), "b": bad.only("wrong type", None, 3) + bad.only("other shape", [t(2, 5, 4)])}),
    Case(matching.straight_through, lambda: dict(population=net(), a=stacked(), b=stacked(), steps=2, eta=0.1, batch=3, generator=draw()), {
        "population": OBJECT, "a": STACKED, "b": NETWORKS, "steps": bad.count(0), "eta": EPS, "batch": bad.count() + bad.only("too large", 7),
        "generator": bad.generator()}),
    Case(interpolation.mix, lambda: dict(a=stacked(), b=stacked(), t=0.5), {"a": STACKED, "b": NETWORKS, "t": bad.real()}),
    Case(interpolation.distance, lambda: dict(a=stacked(), b=stacked()), {"a": STACKED, "b": NETWORKS}),
    Case(interpolation.along, lambda: dict(population=net(), a=stacked(), b=stacked()), {
        "population": OBJECT, "a": STACKED, "b": NETWORKS, "points": bad.count(2), "renormalise": bad.flag()}),
    Case(interpolation.barrier, lambda: dict(losses=t(5, 2)), {"losses": bad.tensor(finite=False, dims=False) + bad.only("too few", t(2, 2))}),
    Case(interpolation.curvature_estimate, lambda: dict(population=net(), a=stacked(), b=stacked()), {"population": OBJECT, "a": STACKED, "b": NETWORKS}),
    Case(interpolation.renormalised, lambda: dict(population=net(), a=stacked(), b=stacked(), t=0.5), {
        "population": OBJECT, "a": STACKED, "b": NETWORKS, "t": bad.real(at_least=0, at_most=1)}),
    Case(interpolation.spectra, lambda: dict(networks=stacked()), {"networks": STACKED}),
    Case(interpolation.alignment, lambda: dict(a=interpolation.spectra(stacked()), b=interpolation.spectra(stacked())), {
        "a": bad.only("wrong type", None, 3, []), "b": bad.only("wrong type", None, 3, []) + bad.only("other", interpolation.spectra(stacked(3))),
        "gamma": bad.real(at_least=0, at_most=1)}),
    Case(interpolation.truncated, lambda: dict(networks=stacked(), rank=1), {"networks": STACKED, "rank": bad.count()}),
    Case(interpolation.reset_statistics, lambda: dict(model=nn.BatchNorm1d(3), batches=[t(4, 3).float()]), {
        "model": bad.only("wrong type", None, 3) + bad.only("no statistics", nn.Linear(3, 2)), "batches": bad.only("empty", []) + bad.only("wrong", [3])}),
]  # fmt: skip
NOT_HERE = {"populations.Population": "a base class", "populations.check_stacked": "a check itself", "populations.check_data": "a check itself",
            "populations.check_labels": "a check itself", "mlps.MLP": "in the table"}  # fmt: skip
test_the_good_arguments_are_good, test_bad_input_is_answered = bad.table_tests(CASES)


@pytest.mark.parametrize("module", ["populations", "mlps", "trainer", "matching", "interpolation"])
def test_every_public_function_is_in_the_table(module):
    loaded = importlib.import_module(f"lowdim.{module}")
    public = {
        f"{module}.{name}"
        for name, thing in vars(loaded).items()
        if callable(thing) and getattr(thing, "__module__", "") == loaded.__name__ and not name.startswith("_")
        and (inspect.isclass(thing) or inspect.signature(thing).parameters)
    }  # fmt: skip
    assert public - {case.name for case in CASES} - NOT_HERE.keys() == set()


def test_modules_that_cannot_be_batched_say_what_to_do():
    x, y = t(6, 3), labels(6)
    norm = lambda: nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).double()
    with pytest.raises(ParameterError, match="running statistics.*track_running_stats=False.*eval.*GroupNorm"):
        populations.modules([norm(), norm()], x, y)
    populations.modules([norm().eval(), norm().eval()], x, y)
    drop = lambda: nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5)).double()
    with pytest.raises(ParameterError, match="global generator.*set p=0"):
        populations.modules([drop()], x, y)
    with pytest.raises(ParameterError, match=r"same shapes, got .* in model 1 .*side_by_side"):
        populations.modules([nn.Linear(3, 2), nn.Linear(3, 4)], x, y)


def test_a_batch_needs_a_generator_and_gd_takes_none():
    with pytest.raises(ParameterError, match="generator must be given with a batch"):
        trainer.Trainer(net(), 0.1, batch=3)
    with pytest.raises(ParameterError, match="batch must be left out for 'gd', got 3"):
        trainer.Trainer(net(), 0.1, "gd", batch=3, generator=draw())
