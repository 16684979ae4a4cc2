"""Benchmarks of the trainers: dense, compressed, tiny and batched, scalar, sensing, and how cost grows."""

import math

import numpy as np
import rivals
import torch
from timing import gemm_call, race

from lowdim.factorization import Factorization, ModeNetwork, mode_layers
from lowdim.networks import MatrixNetwork, PackedNetwork, network
from lowdim.recovery import (
    Completion,
    Sensing,
    ThinFactorization,
    compressed,
    low_rank_target,
    orthogonal_layers,
    outer_scale,
)
from lowdim.runtime import generator

EPS = 1e-2


def dense():
    """d = 100, L = 3, one run of matrix factorization."""
    steps, random = 50, generator(0)
    target = low_rank_target(100, 10, 1, random)["target"][0]
    layers = orthogonal_layers([100] * 4, 1, EPS, random)
    net = MatrixNetwork([w.clone() for w in layers], Factorization(target, mean=True), 1.0)
    single = [w[0] for w in layers]
    mean = lambda end: 0.5 * (end - target).square().mean()
    contestants = {
        "ours": lambda: [net.step() for _ in range(steps)],
        "autograd": lambda: rivals.autograd_run(single, mean, [1.0] * 3, steps),
        "gemm 100": gemm_call(100),
    }
    if rivals.jax:
        m, start = rivals.to_jax(target), rivals.to_jax(single)
        run = rivals.jax_descent(lambda ws: 0.5 * ((rivals.jax_end(ws) - m) ** 2).mean(), steps)
        contestants["jax"] = lambda: run(start, [1.0] * 3)
    times = race(contestants)
    ours = times["ours"]["seconds"]
    shares = {"share of the GEMM rate (6 products a step)": 6 * steps * times["gemm 100"]["seconds"] / ours}
    return times, shares | _ratios(times, ours), {"x jax": 1.2, "share of the GEMM rate (6 products a step)": 0.7}


def compressed_sweep(kind: str):
    """38 outer step sizes of a compressed network, d = 100, r = 5, inner width 10, L = 3."""
    steps, random = 20, generator(0)
    made = low_rank_target(100, 5, 1, random)
    target, alphas = made["target"][0], torch.arange(0.5, 9.76, 0.25, dtype=torch.float64)
    if kind == "completion":
        mask = (torch.rand(100, 100, generator=random) < 0.2).double()
        problem, lr = Completion(mask, target), 10.0
        loss = lambda end: 0.5 * (mask * (end - target)).square().sum() / mask.sum()
    else:
        problem, lr = ThinFactorization(made["u"][0] * made["sigma"], made["v"][0]), 10.0
        loss = lambda end: 0.5 * (end - target).square().mean()
    net = compressed(problem, 10, 3, EPS, lr, alphas)
    dense_form = MatrixNetwork(
        [w.clone() for w in net.layers],
        problem if kind == "completion" else Factorization(target, mean=True),
        lr,
        outer_scale(3, alphas),
    )
    single = [w[0].clone() for w in net.layers]

    def one_after_another(run, start):
        return lambda: [run(start, [lr * a, lr, lr * a]) for a in alphas.tolist()]

    contestants = {
        "ours": lambda: [net.step() for _ in range(steps)],
        "ours, full-size residual": lambda: [dense_form.step() for _ in range(steps)],
        "ours, two threads": two_threads(net.step, steps),
        "autograd": one_after_another(lambda ws, rates: rivals.autograd_run(ws, loss, rates, steps), single),
        "gemm 100": gemm_call(100),
    }
    if rivals.jax:
        m, start = rivals.to_jax(target), rivals.to_jax(single)
        if kind == "completion":
            seen = rivals.to_jax(mask)
            jax_loss = lambda ws: 0.5 * ((seen * (rivals.jax_end(ws) - m)) ** 2).sum() / seen.sum()
        else:
            jax_loss = lambda ws: 0.5 * ((rivals.jax_end(ws) - m) ** 2).mean()
        contestants["jax"] = one_after_another(rivals.jax_descent(jax_loss, steps), start)
    times = race(contestants)
    ours = times["ours"]["seconds"]
    limit = 38 * steps * 3 * (2 * 100 * 100 * 10) / (2 * 100**3 / times["gemm 100"]["seconds"])
    shares = {"share of the GEMM rate (3 full-size products a step)": limit / ours}
    if rivals.jax:
        shares["x jax, two threads"] = times["jax"]["seconds"] / times["ours, two threads"]["seconds"]
        shares["jax at the GEMM rate would be"] = times["jax"]["seconds"] / limit
    return times, shares | _ratios(times, ours), {"x jax": 5.0}


def two_threads(step, steps):
    """The steps on two threads: a batch of runs can use them, a single small run cannot."""

    def run():
        torch.set_num_threads(2)
        for _ in range(steps):
            step()
        torch.set_num_threads(1)

    return run


def tiny_batch():
    """2,000 networks of three 5 x 5 layers."""
    random, runs = generator(0), 2000
    layers = orthogonal_layers([5] * 4, runs, 0.3, random)
    target = torch.randn(5, 5, generator=random, dtype=torch.float64)
    rates = torch.linspace(1e-3, 1e-2, runs, dtype=torch.float64)
    net = network(layers, Factorization(target), rates)
    blocks = MatrixNetwork([w.clone() for w in layers], Factorization(target), rates)
    state, eta = [w.clone() for w in layers], rates.view(-1, 1, 1)

    def plain():
        w1, w2, w3 = state
        residual = w3 @ w2 @ w1 - target
        g1, g2, g3 = (w3 @ w2).mT @ residual, w3.mT @ residual @ w1.mT, residual @ (w2 @ w1).mT
        state[:] = [w1 - eta * g1, w2 - eta * g2, w3 - eta * g3]

    times = race(
        {"ours": net.step, "ours, runs first": blocks.step, "plain batched @": plain, "gemm 100": gemm_call(100)}
    )
    ours = times["ours"]["seconds"]
    flops = runs * 6 * 2 * 5**3
    shares = {"share of the GEMM rate at n = 100": flops / ours * times["gemm 100"]["seconds"] / (2 * 100**3)}
    return times, shares | _ratios(times, ours), {"x plain batched @": 4.0}


def scalars():
    """Scalar reduction: 2,000 rates x 3 modes x 5,000 steps, against one Python run (scaled by 2,000)."""
    runs, steps, sigma = 2000, 5000, [10.0, 6.0, 3.0]
    rates = torch.linspace(0.02, 0.03, runs, dtype=torch.float64)

    def ours():
        net = ModeNetwork(mode_layers(3, runs, 3, 0.1), torch.tensor(sigma, dtype=torch.float64), rates)
        for _ in range(steps):
            net.step()

    def python_run():
        for goal in sigma:
            s = [0.1, 0.1, 0.0]
            for _ in range(steps):
                pi = math.prod(s)
                s = [s[l] - 0.025 * (pi - goal) * math.prod(s[:l] + s[l + 1 :]) for l in range(3)]

    def unrolled_run():
        for goal in sigma:
            a, b, c, eta = 0.1, 0.1, 0.0, 0.025
            for _ in range(steps):
                e = eta * (a * b * c - goal)
                a, b, c = a - e * b * c, b - e * a * c, c - e * a * b

    def numpy_run():
        s, goal = np.full((3, 3), 0.1), np.array(sigma)
        s[2] = 0
        for _ in range(steps // 10):
            pull = 0.025 * (s.prod(0) - goal)
            s = s - pull * np.stack([s[1] * s[2], s[0] * s[2], s[0] * s[1]])

    contestants = {
        "ours": ours,
        "one Python run": python_run,
        "one Python run, unrolled by hand": unrolled_run,
        "a tenth of a NumPy run": numpy_run,
    }
    if rivals.jax:
        goal = rivals.to_jax(torch.tensor(sigma, dtype=torch.float64))
        loss = lambda ws: 0.5 * ((ws[0] * ws[1] * ws[2] - goal) ** 2).sum()
        run, start = rivals.jax_descent(loss, steps), rivals.to_jax(list(mode_layers(3, 1, 3, 0.1).unbind(0)))
        contestants["one jax run"] = lambda: run(start, [0.025] * 3)
    times = race(contestants, repeats=5)
    ours_s = times["ours"]["seconds"]
    shares = {
        "x python": runs * times["one Python run"]["seconds"] / ours_s,
        "x python, unrolled by hand": runs * times["one Python run, unrolled by hand"]["seconds"] / ours_s,
        "x numpy": runs * 10 * times["a tenth of a NumPy run"]["seconds"] / ours_s,
    }
    if rivals.jax:
        shares["x jax"] = runs * times["one jax run"]["seconds"] / ours_s
    return times, shares, {"x python": 200.0}


def sensing():
    """Sensing, d = 50, m = 1,000, a batch of 8 that shares the operators."""
    random, d, m, runs = generator(0), 50, 1000, 8
    operators = torch.randn(m, d, d, generator=random, dtype=torch.float64) / m
    target = low_rank_target(d, 3, 1, random)["target"][0]
    y = torch.einsum("mij,ij->m", operators, target)
    layers = orthogonal_layers([d] * 4, runs, EPS, random)
    net = MatrixNetwork([w.clone() for w in layers], Sensing(operators, y), 10.0)
    single, flat = [w[0] for w in layers], operators.flatten(1)
    loss = lambda end: 0.5 * ((operators * end).sum((1, 2)) - y).square().sum()
    vector = torch.randn(d * d, dtype=torch.float64)
    contestants = {
        "ours": net.step,
        "autograd": lambda: [rivals.autograd_run(single, loss, [10.0] * 3, 1) for _ in range(runs)],
        "reading the operators once": lambda: flat.sum(),
        "operators times a vector": lambda: torch.mv(flat, vector),
        "gemm 50": gemm_call(50, 8),
        "gemm 400": gemm_call(400),
    }
    if rivals.jax:
        a, b = rivals.to_jax(flat), rivals.to_jax(y)
        run = rivals.jax_descent(lambda ws: 0.5 * ((a @ rivals.jax_end(ws).ravel() - b) ** 2).sum(), 10)
        start = rivals.to_jax(single)
        contestants["a tenth of jax"] = lambda: run(start, [10.0] * 3)
    times = race(contestants, least_s=0.1)  # long samples: each contestant finds the operators in the cache it left
    ours = times["ours"]["seconds"]
    read = min(times["reading the operators once"]["seconds"], times["operators times a vector"]["seconds"])
    rate, layers_s = 2 * 400**3 / times["gemm 400"]["seconds"], 6 * times["gemm 50"]["seconds"]
    multiply = 2 * 2 * runs * m * d * d / rate
    shares = {
        "share of what binds: two readings + 6 layer products": (2 * read + layers_s) / ours,
        "the same, were the operators read once": (max(read, multiply) + layers_s) / ours,
        "GB/s, two readings": 16 * m * d * d / ours / 1e9,
        "GB/s of one reading alone": 8 * m * d * d / read / 1e9,
    }
    if rivals.jax:
        shares["x jax"] = runs * times["a tenth of jax"]["seconds"] / 10 / ours
    return times, shares | _ratios(times, ours), {"share of what binds: two readings + 6 layer products": 0.7}


def growth():
    """Seconds a step against batch size (d = 20, L = 3), depth (d = 50, one run) and d (L = 3, one run)."""
    axes = {
        "batch": [(b, 3, 20) for b in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)],
        "depth": [(1, depth, 50) for depth in (2, 3, 4, 6, 8, 10)],
        "d": [(1, 3, d) for d in (10, 20, 50, 100, 200, 400)],
    }
    fits = {}
    times = {}
    for name, sizes in axes.items():
        x, seconds = [], []
        nets = {}
        for batch, depth, d in sizes:
            target = torch.randn(d, d, generator=generator(0), dtype=torch.float64)
            layers = orthogonal_layers([d] * (depth + 1), batch, 0.1, generator(1))
            value = {"batch": batch, "depth": depth, "d": d}[name]
            nets[value] = network(layers, Factorization(target), 1e-6)
        measured = race({str(v): net.step for v, net in nets.items()}, repeats=5)
        x, seconds = list(nets), [measured[str(v)]["seconds"] for v in nets]
        upper = slice(
            len(x) // 2, None
        )  # the small end is overhead of the calls; the exponent is that of the upper half
        exponent = float(np.polyfit(np.log(x[upper]), np.log(seconds[upper]), 1)[0])
        fits[f"exponent in {name}"] = exponent
        times |= {f"{name} = {v}": measured[str(v)] for v in x}
    return times, fits, {}


def layouts():
    """Where the two layouts cross: the numbers behind ``networks.PACK_WIDTH`` and ``PACK_RUNS``."""
    shares, times = {}, {}
    for runs in (100, 400, 2000):
        for width in (3, 5, 7, 8):
            layers = orthogonal_layers([width] * 4, runs, 0.1, generator(0))
            problem = Factorization(torch.zeros(width, width, dtype=torch.float64))
            both = {"first": MatrixNetwork([w.clone() for w in layers], problem, 1e-3),
                    "last": PackedNetwork(layers, problem, 1e-3)}  # fmt: skip
            measured = race({name: net.step for name, net in both.items()}, repeats=5, least_s=0.01)
            times |= {f"runs {runs}, width {width}, {name}": m for name, m in measured.items()}
            shares[f"runs {runs}, width {width}: first / last"] = (
                measured["first"]["seconds"] / measured["last"]["seconds"]
            )
    return times, shares, {}


def _ratios(times, ours):
    """How many times faster ours is than each rival."""
    return {
        f"x {name}": times[name]["seconds"] / ours for name in ("jax", "autograd", "plain batched @") if name in times
    }
