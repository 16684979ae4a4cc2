"""Benchmarks of the model of neural collapse: its minimisers, the influence of a layer, a sweep of weight decays."""

import torch
from timing import race

from lowdim.collapse import BetaModel
from lowdim.mlps import MLP, mlp_parameters
from lowdim.runtime import generator
from lowdim.trainer import Trainer

F64 = torch.float64


def _model(runs: int, classes=4, d=10, n=10, beta=1.0) -> BetaModel:
    start = torch.randn(runs, classes * n, d, generator=generator(0), dtype=F64)
    return BetaModel(start, torch.arange(classes).repeat_interleave(n), 0.1, 0.1, beta)


def minimisers(runs: int = 64):
    """Minimisers of 64 models to a gradient of 1e-10: Newton at once, one after another, alternating minimisation."""
    model = _model(runs)
    alone = [BetaModel(start[None], model.labels, 0.1, 0.1, 1.0) for start in model.start]

    def alternating():
        W = model.best_classifier(model.start)
        while True:
            H = model.best_features(W)
            if model.gradients(W, H)[0].abs().max() * model.samples < 1e-10:
                return W
            W = model.best_classifier(H)

    apart = float((alternating() - model.solve()[0]).abs().max())
    times = race(
        {"Newton": model.solve, "one after another": lambda: [m.solve() for m in alone], "alternating": alternating},
        repeats=3,
    )
    seconds = {name: t["seconds"] for name, t in times.items()}
    shares = {f"{name} / Newton": seconds[name] / seconds["Newton"] for name in ("one after another", "alternating")}
    return times, shares | {"largest difference": apart}, {"one after another / Newton": 4, "largest difference": -1e-6}


def influence(runs: int = 4):
    """The influence matrix of 400 rows through the small Schur complement, and by inverting the large one."""
    model = _model(runs)
    W, H = model.solve()
    eye = torch.eye(model.start.shape[2], dtype=F64)

    def large():
        R = H @ W.mT - model.targets
        cross = torch.einsum("ria,be->ribae", R, eye) + torch.einsum("rab,rie->ribae", W, H)
        cross = cross.flatten(3).flatten(1, 2)
        inner = torch.linalg.inv(H.mT @ H + model.decay_w * eye)
        M = torch.stack([torch.kron(torch.eye(model.classes, dtype=F64), m.contiguous()) for m in inner])
        B = torch.stack([torch.kron(torch.eye(model.samples, dtype=F64), b.contiguous()) for b in model._stiffness(W)])
        return model.beta * torch.linalg.inv(B - cross @ M @ cross.mT)

    apart = float((model.influence(W, H) - large()).abs().max())
    times = race({"small": lambda: model.influence(W, H), "large": large}, repeats=5)
    ratio = times["large"]["seconds"] / times["small"]["seconds"]
    return (
        times,
        {"large / small": ratio, "largest difference": apart},
        {"large / small": 3, "largest difference": -1e-10},
    )


def decays(steps: int = 100):
    """Five weight decays, five seeds, 64-64-64-10, batch 20: one population, and one for each weight decay."""
    x, y = torch.rand(25, 400, 64, generator=generator(0)), torch.arange(400).remainder(10).repeat(25, 1)
    start = mlp_parameters([64, 64, 64, 10], 25, generator(1))
    values = torch.tensor([1e-3, 2e-3, 1e-3, 0.0, 1e-4]).repeat_interleave(5)

    def train(part, decay):
        net = MLP({name: p[part] for name, p in start.items()}, x[part], y[part])
        Trainer(net, 0.05, "momentum", batch=20, decay={"*.[01]": decay}, generator=generator(2)).run(steps)

    fives = [(slice(5 * i, 5 * i + 5), float(values[5 * i])) for i in range(5)]
    times = race(
        {"together": lambda: train(slice(None), values), "one by one": lambda: [train(*job) for job in fives]},
        repeats=3,
    )
    return times, {"one by one / together": times["one by one"]["seconds"] / times["together"]["seconds"]}, {}
