"""Spectra of many symmetric matrices at once, from products alone or exactly: densities, traces, Gram matrices, counts.

A product is a function ``(..., n) -> (..., n)`` that multiplies by one matrix per leading index, as the functions of
``lowdim.curvature`` make them for populations of networks.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from lowdim import checks as ok
from lowdim.checks import integer
from lowdim.curvature import lanczos


@ok.takes(product=ok.function, probes=ok.tensor("probes ... n"), steps=ok.count(1))
def quadrature(product: Callable[[Tensor], Tensor], probes: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of stochastic Lanczos quadrature, for all matrices and all probes at once.

    ``sum(weights * f(nodes))`` estimates ``trace f(A) / n``; for one probe v it is the Gauss rule of ``v^T f(A) v``,
    exact for polynomials of degree ``2 steps - 1``. (Golub and Welsch 1969; Ubaru, Chen and Saad 2017.)

    Args:
        product: ``(..., n) -> (..., n)``.
        probes: ``(probes, ..., n)`` random vectors, independent of the matrices; only their directions count.
        steps: Lanczos steps, at most n.

    Returns:
        nodes and weights, both ``(..., probes * steps)``; the weights of a matrix sum to 1.
    """
    diagonal, off, _ = lanczos(torch.func.vmap(product), probes, steps)
    tridiagonal = torch.diag_embed(diagonal) + torch.diag_embed(off, 1) + torch.diag_embed(off, -1)
    nodes, vectors = torch.linalg.eigh(tridiagonal)
    weights = vectors[..., 0, :].square() / len(probes)
    return nodes.movedim(0, -2).flatten(-2), weights.movedim(0, -2).flatten(-2)


@ok.takes(
    nodes=ok.tensor("... k", finite=False),
    weights=ok.tensor("... k", finite=False),
    grid=ok.tensor("points"),
    width=ok.real(above=0),
)
def density(nodes: Tensor, weights: Tensor, grid: Tensor, width: float) -> Tensor:
    """Weighted nodes as a smooth density on a grid, ``(..., points)``: each becomes a Gaussian of the given width."""
    apart = (grid - nodes.unsqueeze(-1)) / width
    bells = torch.exp(-apart.square() / 2) / (width * (2 * torch.pi) ** 0.5)
    return (weights.unsqueeze(-1) * bells).sum(-2)


@ok.takes(product=ok.function, like=ok.tensor("... n", finite=False), samples=ok.count(3), generator=ok.generator)
def trace(product: Callable[[Tensor], Tensor], like: Tensor, samples: int, generator: torch.Generator) -> Tensor:
    """Unbiased estimates ``(...)`` of the traces of many matrices by Hutch++ (Meyer, Musco, Musco and Woodruff 2021).

    A third of the products finds the large directions, whose part of the trace is then exact; Hutchinson's estimator
    does the rest. For positive semidefinite matrices the error falls like ``1 / samples``, not like its root.

    Args:
        product: ``(..., n) -> (..., n)``.
        like: a tensor of the shape, type and device of the product's vectors.
        samples: products for each matrix, at least 3; exact from ``3 n`` on.
    """
    third = min(samples // 3, like.shape[-1])

    def signs() -> Tensor:
        flips = torch.randint(0, 2, (third, *like.shape), generator=generator, device=generator.device)
        return (2 * flips - 1).to(like)

    multiply = torch.func.vmap(product)
    basis = torch.linalg.qr(multiply(signs()).movedim(0, -1)).Q  # (..., n, third)
    exact = (basis * multiply(basis.movedim(-1, 0)).movedim(0, -1)).sum((-2, -1))
    rest = signs().movedim(0, -1)
    rest = rest - basis @ (basis.mT @ rest)
    return exact + (rest * multiply(rest.movedim(-1, 0)).movedim(0, -1)).sum((-2, -1)) / third


@ok.takes(jacobians=ok.tensor("runs samples outputs n"), probabilities=ok.tensor("runs samples outputs", at_least=0))
def fisher_rows(jacobians: Tensor, probabilities: Tensor) -> Tensor:
    """The factor A of the Fisher matrix of a softmax, ``G = A^T A``, which is also its Gauss-Newton matrix.

    Row (i, k) is ``sqrt(p_ik / N)`` times the gradient of ``log p_ik``, that is ``J_ik - sum_j p_ij J_ij``.

    Args:
        jacobians: of the logits, as ``lowdim.curvature.sample_jacobians`` gives them.
        probabilities: of the classes, for each run and sample.

    Returns:
        ``(runs, samples * outputs, n)``; the rank is at most ``samples * (outputs - 1)``.
    """
    p = probabilities.unsqueeze(-1)
    rows = (jacobians - (p * jacobians).sum(2, keepdim=True)).mul_((p / p.shape[1]).sqrt())
    return rows.flatten(1, 2)


@ok.takes(rows=ok.tensor("... m n"))
def gram_eigenvalues(rows: Tensor) -> Tensor:
    """All eigenvalues of ``A^T A`` ``(..., n)``, falling, from the smaller of ``A A^T`` and ``A^T A``."""
    m, n = rows.shape[-2:]
    values = torch.linalg.eigvalsh(rows @ rows.mT if m < n else rows.mT @ rows).flip(-1).clamp_(min=0)
    return torch.cat([values, values.new_zeros(*values.shape[:-1], n - m)], -1) if m < n else values


@ok.takes(eigenvalues=ok.tensor("... n"), among=ok.count(2))
def count_outliers(eigenvalues: Tensor, among: int = 15) -> Tensor:
    """Outliers at the top of each spectrum, ``(...)``: where the ratio of neighbours is largest among the first few.

    Args:
        eigenvalues: ``(..., n)`` in any order.
        among: how many of the largest are looked at; those that are not positive are not.
    """
    among = integer("among", among, at_least=2, at_most=eigenvalues.shape[-1])
    top = eigenvalues.sort(-1, descending=True).values[..., :among]
    ratios = torch.where(top[..., 1:] > 0, top[..., :-1] / top[..., 1:], 0.0)
    return ratios.argmax(-1) + 1


@ok.takes(eigenvalues=ok.tensor("... n"), relative=ok.real(above=0, below=1))
def near_zero(eigenvalues: Tensor, relative: float = 1e-3) -> Tensor:
    """The share of eigenvalues ``(...)`` whose modulus is below a share of the largest eigenvalue of each spectrum."""
    return (eigenvalues.abs() < relative * eigenvalues.amax(-1, keepdim=True)).double().mean(-1)


@ok.takes(matrices=ok.tensor("... n n"))
def eigenvalues(matrices: Tensor) -> Tensor:
    """All eigenvalues of symmetric matrices, falling, ``(..., n)``; exact.

    Rows and columns that are zero (of inputs that never vary, of units that are never active) give exact zeros and are
    left out of the decomposition.
    """
    found = []
    for matrix in matrices.flatten(0, -3) if matrices.dim() > 2 else [matrices]:
        used = matrix.ne(0).any(0)
        part = matrix if bool(used.all()) else matrix[used][:, used]
        values = matrix.new_zeros(len(matrix))
        if len(part):
            if part.device.type == "cpu":
                values[: len(part)] = torch.from_numpy(np.linalg.eigvalsh(part.numpy()))
            else:
                values[: len(part)] = torch.linalg.eigvalsh(part)
        found.append(values.sort(descending=True).values)
    return torch.stack(found).view(matrices.shape[:-1])
