"""Benchmarks of curvature for populations: exact Hessians against their products, many densities at once."""

import torch
from timing import race

from lowdim import twolayer
from lowdim.curvature import dense, population_hessian_product
from lowdim.mlps import MLP, mlp_parameters
from lowdim.runtime import generator
from lowdim.spectra import quadrature

F64 = torch.float64


def _network(runs: int, sizes, samples: int):
    random = generator(0)
    inputs = torch.rand(runs, samples, sizes[0], generator=random, dtype=F64)
    labels = torch.randint(0, sizes[-1], (runs, samples), generator=random)
    return MLP(mlp_parameters(sizes, runs, random, dtype=F64), inputs, labels)


def _product(net: MLP):
    return population_hessian_product(
        lambda *state: net.loss(parameters=dict(zip(net.parameters, state, strict=True))), net.state
    )


def exact_hessian(sizes=(64, 24, 5), samples: int = 200, chunk: int = 64):
    """Exact Hessian of 1,685 parameters: from products, in closed form, and its batched products alone."""
    net = _network(1, sizes, samples)
    product, like = _product(net), torch.zeros(1, net.size, dtype=F64)
    units = torch.eye(net.size, dtype=F64).unsqueeze(1)

    def products_alone():
        for part in units.split(chunk):
            torch.func.vmap(product)(part)

    closed = lambda: twolayer.hessian(net.inputs, net.targets, net.parameters)
    apart = float((dense(product, like, chunk) - closed()).abs().max())
    times = race(
        {"from products": lambda: dense(product, like, chunk), "products alone": products_alone, "closed form": closed},
        repeats=5,
    )
    seconds = {name: t["seconds"] for name, t in times.items()}
    shares = {
        "from products / products alone": seconds["from products"] / seconds["products alone"],
        "products alone / closed form": seconds["products alone"] / seconds["closed form"],
        "largest difference of the two": apart,
    }
    return times, shares, {"from products / products alone": -1.2, "largest difference of the two": -1e-10}


def densities(runs: int = 16, sizes=(64, 16, 5), samples: int = 50, steps: int = 40):
    """Lanczos quadrature of 16 networks: at once against one after another."""
    net = _network(runs, sizes, samples)
    probes = torch.randn(1, runs, net.size, generator=generator(1), dtype=F64)
    alone = [
        _product(
            MLP({n: p[i : i + 1] for n, p in net.parameters.items()}, net.inputs[i : i + 1], net.targets[i : i + 1])
        )
        for i in range(runs)
    ]
    together = _product(net)
    times = race(
        {
            "at once": lambda: quadrature(together, probes, steps),
            "one after another": lambda: [quadrature(f, probes[:, i : i + 1], steps) for i, f in enumerate(alone)],
        },
        repeats=5,
    )
    ratio = times["one after another"]["seconds"] / times["at once"]["seconds"]
    return times, {"one after another / at once": ratio}, {"one after another / at once": 4}
