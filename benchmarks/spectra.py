"""Benchmark of the Hessian's top eigenvalues: Lanczos against its Hessian-vector products alone."""

from itertools import pairwise

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from timing import race

from lowdim.curvature import flatten, hessian_vector_product, top_eigenvalues
from lowdim.runtime import generator


def hessian(samples: int = 1000, sizes=(64, 128, 128, 10), steps: int = 100):
    """Top 5 Hessian eigenvalues of a 3-layer tanh network, to 1e-8 of SciPy's (and curvlinops', if installed)."""
    random = generator(0)
    draw = lambda *shape: torch.randn(*shape, generator=random, dtype=torch.float64)
    inputs, targets = draw(samples, sizes[0]), draw(samples, sizes[-1])
    weights = [draw(o, i) / i**0.5 for i, o in pairwise(sizes)]

    def loss(*ws):
        hidden = inputs
        for w in ws[:-1]:
            hidden = torch.tanh(hidden @ w.mT)
        return 0.5 * (hidden @ ws[-1].mT - targets).square().sum(1).mean()

    product, n = hessian_vector_product(loss, weights), flatten(weights).numel()
    start = draw(n)
    ours = top_eigenvalues(product, start, 5, steps)
    operator = LinearOperator((n, n), matvec=lambda v: product(torch.as_tensor(v)).numpy(), dtype=np.float64)
    scipy = np.sort(eigsh(operator, k=5, which="LA", v0=start.numpy(), tol=1e-12)[0])[::-1]
    shares = {"largest relative difference from SciPy": float(np.max(np.abs(ours.numpy() / scipy - 1)))}
    try:
        from curvlinops import HessianLinearOperator
    except ModuleNotFoundError:
        pass
    else:
        layers = [torch.nn.Linear(w.shape[1], w.shape[0], bias=False, dtype=torch.float64) for w in weights]
        model = torch.nn.Sequential(layers[0], torch.nn.Tanh(), layers[1], torch.nn.Tanh(), layers[2])
        with torch.no_grad():
            for layer, w in zip(layers, weights, strict=True):
                layer.weight.copy_(w)
        # curvlinops' MSELoss averages over outputs too: ours is 1/2 of a sum over them
        theirs = HessianLinearOperator(model, torch.nn.MSELoss(), list(model.parameters()), [(inputs, targets)])
        theirs = eigsh(theirs.to_scipy(), k=5, which="LA", v0=start.numpy(), tol=1e-12)[0]
        theirs = np.sort(theirs)[::-1] * sizes[-1] / 2
        shares["largest relative difference from curvlinops"] = float(np.max(np.abs(ours.numpy() / theirs - 1)))

    def products_alone():
        v = start / start.norm()
        for _ in range(steps):
            product(v)

    times = race(
        {"ours": lambda: top_eigenvalues(product, start, 5, steps), "products alone": products_alone}, repeats=5
    )
    shares["ours / products alone"] = times["ours"]["seconds"] / times["products alone"]["seconds"]
    limits = {"ours / products alone": -1.3}
    limits |= {name: -1e-8 for name in shares if name.startswith("largest")}
    return times, shares, limits
