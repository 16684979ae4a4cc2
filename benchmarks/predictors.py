"""CP predictors: a batch of Newton fits against SciPy's L-BFGS on the same objective, one fit after another."""

import numpy as np
import torch
from scipy.optimize import minimize
from timing import race

from lowdim.cp_predictors import fit_cp, random_starts
from lowdim.predictors import objective
from lowdim.runtime import generator

SIDE, RANK, SAMPLES, FITS, PENALTY = 15, 2, 500, 64, 0.003


def cp_fits():
    """64 CP fits of rank 2 to 500 images of 15 x 15, logistic loss, C = 0.003, against SciPy (4 fits, scaled to 64)."""
    random = generator(0)
    bar = torch.zeros(SIDE, dtype=torch.float64)
    bar[SIDE // 2 - 1 : SIDE // 2 + 2] = 1
    cross = bar[:, None] + bar
    inputs = torch.randn(FITS, SAMPLES, SIDE, SIDE, generator=random, dtype=torch.float64)
    noise = 1.5 * torch.randn(FITS, SAMPLES, generator=random, dtype=torch.float64)
    labels = (torch.einsum("snij,ij->sn", inputs, cross) + noise).sign()
    starts = random_starts((SIDE, SIDE), RANK, FITS, 1, random)
    ours = lambda: fit_cp(inputs, labels, starts, "logistic", PENALTY)

    def scipy_fit(k):
        """All factors at once, with our closed-form gradient, from the same start."""
        x, y = inputs[k : k + 1], labels[k : k + 1]
        split = lambda flat: [p.view(1, 1, SIDE, RANK) for p in torch.as_tensor(flat).split(SIDE * RANK)]

        def function(flat):
            value, slope = objective(x, y, split(flat), "logistic", PENALTY)
            return float(value), torch.cat([g.flatten() for g in slope]).numpy()

        first = torch.cat([b[k].flatten() for b in starts]).numpy()
        return minimize(
            function,
            first,
            jac=True,
            method="L-BFGS-B",
            options=dict(maxiter=5000, maxfun=10_000, ftol=1e-15, gtol=1e-8),
        ).fun

    few = range(4)
    times = race({"ours, 64 fits": ours, "SciPy L-BFGS, 4 fits": lambda: [scipy_fit(k) for k in few]}, repeats=5)
    fitted = ours().objective[:, 0]
    above = fitted.numpy() - np.array([scipy_fit(k) for k in range(FITS)])
    seconds = times["ours, 64 fits"]["seconds"] / FITS
    shares = {
        "ms a fit": 1e3 * seconds,
        "x scipy": times["SciPy L-BFGS, 4 fits"]["seconds"] / len(few) / seconds,
        "objective above SciPy's, worst of 64": max(float(above.max()), 0.0),
        "difference of objectives, median": float(np.median(np.abs(above))),
    }
    return times, shares, {"ms a fit": -20.0, "objective above SciPy's, worst of 64": -1e-6}
