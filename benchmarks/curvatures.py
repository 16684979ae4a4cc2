"""Benchmarks of curvature for populations: exact Hessians against their products, many densities at once."""

import torch
from timing import race

from lowdim import twolayer
from lowdim.curvature import dense, fisher_product, gauss_newton_product, population_hessian_product
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


def population_products(runs: int = 8, sizes=(64, 32, 5), samples: int = 100):
    """Hessian, Gauss-Newton and Fisher products of 8 networks at once, against curvlinops (if installed) one by one."""
    net = _network(runs, sizes, samples)
    named = lambda state: dict(zip(net.parameters, state, strict=True))
    outputs = lambda *state: net.outputs(net.inputs, named(state))
    logs = lambda *state: outputs(*state).log_softmax(-1)
    losses = lambda said: torch.func.vmap(torch.nn.functional.cross_entropy)(said, net.targets)
    vectors = torch.randn(runs, net.size, generator=generator(1), dtype=F64)
    ours = {
        "Hessian": _product(net),
        "Gauss-Newton": gauss_newton_product(outputs, net.state, losses),
        "empirical Fisher": fisher_product(logs, net.state, net.targets),
    }
    times = race({name: lambda f=f: f(vectors) for name, f in ours.items()}, repeats=5)
    true = fisher_product(logs, net.state)(vectors)
    apart = {"true Fisher from Gauss-Newton": _apart(true, ours["Gauss-Newton"](vectors))}
    shares = {}
    try:
        import curvlinops
    except ModuleNotFoundError:
        pass
    else:
        rivals = {"Hessian": curvlinops.HessianLinearOperator, "Gauss-Newton": curvlinops.GGNLinearOperator,
                  "empirical Fisher": curvlinops.EFLinearOperator}  # fmt: skip
        for name, kind in rivals.items():
            theirs = [_rival(kind, net, run) for run in range(runs)]
            one_by_one = lambda theirs=theirs: torch.stack([f @ v for f, v in zip(theirs, vectors, strict=True)])
            apart[f"{name} from curvlinops"] = _apart(ours[name](vectors), one_by_one())
            times |= race({f"{name}, curvlinops": one_by_one}, repeats=5)
            shares[f"{name}: one by one / at once"] = times[f"{name}, curvlinops"]["seconds"] / times[name]["seconds"]
    apart = {f"largest relative difference, {name}": value for name, value in apart.items()}
    return times, shares | apart, dict.fromkeys(apart, -1e-10)


def _apart(ours, theirs) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


def _rival(kind, net: MLP, run: int):
    """curvlinops' matrix of one network of the population."""
    model = torch.nn.Sequential(*[layer for name, weight in net.parameters.items() if weight.dim() == 3 for layer in (
        torch.nn.Linear(weight.shape[2], weight.shape[1], dtype=F64), torch.nn.ReLU())][:-1])  # fmt: skip
    with torch.no_grad():
        for theirs, ours in zip(model.parameters(), net.parameters.values(), strict=True):
            theirs.copy_(ours[run])
    data = [(net.inputs[run], net.targets[run])]
    return kind(model, torch.nn.CrossEntropyLoss(), list(model.parameters()), data, check_deterministic=False)
