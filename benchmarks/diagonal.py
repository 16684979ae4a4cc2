"""Benchmark of SGD with one sample a step: 64 diagonal networks in lock-step against one of them in NumPy."""

import numpy as np
import torch
from timing import race

from lowdim.diagonal import DiagonalNetwork, sample_order
from lowdim.runtime import generator

RUNS, D, N, CLIP = 64, 1000, 300, 50.0


def numpy_steps(x, y, a, b, eta: float, order: list[int], clip: float | None):
    """SGD as one would write it for one network, in place."""
    for i in order:
        r = x[i] @ (a * b) - y[i]
        grad_a, grad_b = r * x[i] * b, r * x[i] * a
        scale = eta
        if clip:
            norm = np.sqrt(grad_a @ grad_a + grad_b @ grad_b)
            scale = eta * min(1.0, clip / max(norm, 1e-300))
        a -= scale * grad_a
        b -= scale * grad_b


def lockstep(steps: int = 200):
    """64 runs (d = 1000) over one run in NumPy (double precision), and the time of one pass over all states."""
    random = generator(0)
    x = 2 * torch.rand(N, D, generator=random, dtype=torch.float64) - 1
    y, order = x[:, :3].sum(1), sample_order(N, steps, 1, random)
    a, b = torch.randn(2, RUNS, D, generator=random, dtype=torch.float64)
    eta = torch.logspace(-3, -1, RUNS, dtype=torch.float64)
    own, seen = (a[0].numpy().copy(), b[0].numpy().copy()), order[:, 0].tolist()
    contestants = {}
    for clip in (CLIP, None):
        word = "clipped" if clip else "not clipped"
        contestants[f"NumPy, one run, {word}"] = lambda clip=clip: numpy_steps(
            x.numpy(), y.numpy(), *own, 1e-3, seen, clip
        )
        for dtype, name in ((torch.float32, "single"), (torch.float64, "double")):
            network = DiagonalNetwork(a.to(dtype), b.to(dtype), x, y, eta if clip else 1e-3, order=order, clip=clip)
            contestants[f"64 runs, {name}, {word}"] = lambda walk=network.walk: walk(steps)
    state = torch.randn(RUNS, 2 * D)
    contestants["one pass over 64 states, single"] = lambda: [state.mul_(1.0) for _ in range(steps)]
    times = race(contestants)
    seconds = {name: value["seconds"] for name, value in times.items()}
    ratios = {}
    for word in ("clipped", "not clipped"):
        for name in ("single", "double"):
            ratios[f"64 runs, {name} / one in NumPy, {word}"] = (
                seconds[f"64 runs, {name}, {word}"] / seconds[f"NumPy, one run, {word}"]
            )
    ratios["passes over the state that a step is worth"] = (
        seconds["64 runs, single, clipped"] / seconds["one pass over 64 states, single"]
    )
    return times, ratios, {"64 runs, single / one in NumPy, clipped": -3.0}
