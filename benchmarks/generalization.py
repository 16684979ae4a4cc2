"""Benchmark of exact gradient flow: all draws and times at once against draw by draw, and against taking steps."""

import numpy as np
import torch
from timing import race

from lowdim.generalization import Flow, linear_draws
from lowdim.runtime import generator


def flow(samples: int = 100, weights: int = 100, runs: int = 20, times: int = 60, last: float = 30.0):
    """Weights of 20 linear students of 100 weights at 60 times up to t = 30."""
    drawn, _ = linear_draws(samples, weights, runs, 5.0, 0.0, generator(0))
    clock = torch.logspace(-2, np.log10(last), times, dtype=torch.float64)
    X, y = drawn.design.numpy(), drawn.targets.numpy()
    step = float(1 / drawn.values.max())  # half of the largest that is stable

    def ours():
        run = Flow(drawn.design, drawn.targets)
        return run.weights(run.decay(clock))

    def one_by_one():
        """What one writes first: a draw and a time after the other, in its eigenbasis."""
        found = np.empty((runs, weights, times))
        for i in range(runs):
            s, v = np.linalg.eigh(X[i].T @ X[i])
            s = np.maximum(s, 1e-15)
            turned = v.T @ (X[i].T @ y[i])
            for k, t in enumerate(clock.tolist()):
                found[i, :, k] = v @ (-np.expm1(-s * t) / s * turned)
        return found

    def stepping():
        """Gradient descent of all draws at once to the last time."""
        w = torch.zeros(runs, weights, 1, dtype=torch.float64)
        gram, pull = drawn.design.mT @ drawn.design, drawn.design.mT @ drawn.targets.unsqueeze(2)
        for _ in range(round(last / step)):
            w = w + step * (pull - gram @ w)
        return w

    apart = float(np.abs(ours().numpy() - one_by_one()).max())
    error = float((stepping()[..., 0] - ours()[..., -1]).abs().max())
    contestants = {"ours": ours, "draw by draw (NumPy)": one_by_one, "steps to the last time": stepping}
    seconds = race(contestants, repeats=5)
    shares = {
        "draw by draw / ours": seconds["draw by draw (NumPy)"]["seconds"] / seconds["ours"]["seconds"],
        "steps / ours": seconds["steps to the last time"]["seconds"] / seconds["ours"]["seconds"],
        "largest difference from draw by draw": apart,
        "error of steps at the last time": error,
    }
    return seconds, shares, {"largest difference from draw by draw": -1e-8}
