"""Benchmarks of random subspaces: what a projection adds to a step of direct training, for a million parameters."""

import torch
from timing import race

from lowdim.mlps import MLP, mlp_parameters
from lowdim.projections import KINDS
from lowdim.runtime import generator
from lowdim.subspaces import Subspace
from lowdim.trainer import Trainer

SIZES = [784, 600, 600, 256, 10]  # 987,866 parameters


def projections(dims=(100, 500), steps: int = 2):
    """Steps of SGD, batch 128: direct, and in dense, sparse and Fastfood subspaces; ratios to direct."""
    random = generator(0)
    x, y = torch.rand(512, SIZES[0], generator=random), torch.randint(10, (512,), generator=random)
    start = mlp_parameters(SIZES, 1, random, start="he")
    contestants = {}
    for d in (0, *dims):
        for kind in KINDS if d else ("direct",):
            net = MLP(start, x, y)
            moved = Subspace(net, KINDS[kind](net.size, d, 1, random)) if d else net
            trainer = Trainer(moved, 0.01, batch=128, generator=random)
            contestants[f"{kind}, d = {d}" if d else kind] = lambda trainer=trainer: trainer.run(steps)
    times = race(contestants, repeats=5)
    ratios = {f"{name} / direct": t["seconds"] / times["direct"]["seconds"] for name, t in times.items() if "," in name}
    return times, ratios, {}
