"""Benchmarks of populations: sixteen small networks as one batch against one after another in plain PyTorch."""

import torch
from timing import race
from torch import nn

from lowdim.data import digits
from lowdim.mlps import MLP, mlp_parameters
from lowdim.runtime import generator
from lowdim.trainer import Trainer

RUNS, SIZES, BATCH = 16, [64, 64, 64, 10], 100


def plain_models(parameters: dict) -> list[nn.Module]:
    """The runs as modules."""
    models = []
    for run in range(len(parameters["bias.0"])):
        layers = []
        for l in range(len(parameters) // 2):
            weight, bias = parameters[f"weight.{l}"][run], parameters[f"bias.{l}"][run]
            layer = nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype)
            layer.weight.data, layer.bias.data = weight.clone(), bias.clone()
            layers += [layer, nn.ReLU()]
        models.append(nn.Sequential(*layers[:-1]))
    return models


def plain_steps(models, x, y, steps: int) -> None:
    """SGD, one model after another, each with its own order."""
    for model in models:
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
        order = torch.randperm(len(x))
        for step in range(steps):
            picks = order[step * BATCH : (step + 1) * BATCH]
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x[picks]), y[picks]).backward()
            optimiser.step()


def mlps(steps: int = 17):
    """16 MLPs 64-64-64-10 on the digits, batch 100, SGD, one epoch: a population against plain PyTorch."""
    inputs, labels = digits()
    contestants = {}
    for words, dtype in (("float32", torch.float32), ("float64", torch.float64)):
        x, y = torch.as_tensor(inputs, dtype=dtype), torch.as_tensor(labels)
        start = mlp_parameters(SIZES, RUNS, generator(0), dtype=dtype)
        trainer = Trainer(MLP(start, x, y), 0.1, batch=BATCH, generator=generator(1))
        models = plain_models(start)
        contestants[f"population, {words}"] = lambda trainer=trainer: trainer.run(steps)
        contestants[f"plain, {words}"] = lambda models=models, x=x, y=y: plain_steps(models, x, y, steps)
    times = race(contestants)
    ratios = {
        f"plain / population, {words}": times[f"plain, {words}"]["seconds"] / times[f"population, {words}"]["seconds"]
        for words in ("float32", "float64")
    }
    return times, ratios, {"plain / population, float32": 5.0}
