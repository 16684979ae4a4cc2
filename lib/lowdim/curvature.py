"""Curvature of a loss and stability of an iteration: Hessians, Lanczos, Lyapunov and Floquet exponents.

The Hessian of a mean loss of outputs f splits exactly into ``G + R``: the Gauss-Newton matrix ``G = mean J^T l'' J``,
with J the Jacobian of the outputs, and ``R = mean l' d^2 f``. For a loss that is minus the logarithm of a softmax (or
of any exponential family in its natural parameters), G is the Fisher matrix. Products of all of them take populations:
parameters have the runs on their first axis, vectors are ``(runs, n)``. ``lowdim.spectra`` goes on from products.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lowdim import checks as ok
from lowdim.checks import ParameterError, integer


@ok.takes(tensors=ok.tensors(finite=False, floating=False))
def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """One vector from many tensors."""
    return torch.cat([t.reshape(-1) for t in tensors])


@ok.takes(vector=ok.tensor("n", finite=False, floating=False), like=ok.tensors(finite=False, floating=False))
def unflatten(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """The inverse of ``flatten``, with shapes taken from ``like``."""
    wanted = sum(t.numel() for t in like)
    if len(vector) != wanted:
        raise ParameterError(f"vector must have the {wanted} entries of like, got {len(vector)}.")
    pieces = vector.split([t.numel() for t in like])
    return [piece.reshape(t.shape) for piece, t in zip(pieces, like, strict=True)]


@ok.takes(loss=ok.function, parameters=ok.tensors(finite=False))
def hessian(loss: Callable[..., Tensor], parameters: Sequence[Tensor]) -> Tensor:
    """The full Hessian ``(n, n)`` of ``loss(*parameters)``, by automatic differentiation; for small ``n``.

    Row by row from the graph of the gradient: ``torch.func.hessian`` would import a compiler, which takes seconds.
    """
    point = flatten([p.detach() for p in parameters]).requires_grad_()
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(
            loss(*unflatten(point, parameters)), point, create_graph=True, materialize_grads=True
        )
    if not slope.requires_grad:
        return torch.zeros(len(point), len(point), dtype=point.dtype, device=point.device)
    row = lambda unit: torch.autograd.grad(slope, point, unit, retain_graph=True, materialize_grads=True)[0]
    return torch.stack([row(unit) for unit in torch.eye(len(point), dtype=point.dtype, device=point.device)])


@ok.takes(loss=ok.function, parameters=ok.tensors(finite=False))
def hessian_vector_product(loss: Callable[..., Tensor], parameters: Sequence[Tensor]) -> Callable[[Tensor], Tensor]:
    """A function ``v -> H v`` for flat vectors ``(n,)``: forward mode over the reverse-mode gradient."""
    point = flatten([p.detach() for p in parameters])
    gradient = torch.func.grad(lambda x: loss(*unflatten(x, parameters)))
    return lambda v: torch.func.jvp(gradient, (point,), (v,))[1]


@ok.takes(losses=ok.function, parameters=ok.tensors(finite=False))
def population_hessian_product(
    losses: Callable[..., Tensor], parameters: Sequence[Tensor]
) -> Callable[[Tensor], Tensor]:
    """Hessian-vector products of many independent runs at once: ``(runs, n) -> (runs, n)``.

    The gradient is computed once, and its graph kept; a product is one backward pass through it.

    Args:
        losses: parameters -> ``(runs,)``, the loss of each run, which depends on that run's parameters alone.
        parameters: tensors with the runs on their first axis.
    """
    point = tuple(p.detach().clone().requires_grad_() for p in parameters)
    with torch.enable_grad():
        slopes = torch.autograd.grad(losses(*point).sum(), point, create_graph=True, materialize_grads=True)
    curved = [i for i, slope in enumerate(slopes) if slope.requires_grad]

    def product(vectors: Tensor) -> Tensor:
        pieces = _split(vectors, point)
        if not curved:
            return torch.zeros_like(vectors)
        seeds = [pieces[i] for i in curved]
        found = torch.autograd.grad(
            [slopes[i] for i in curved], point, seeds, retain_graph=True, materialize_grads=True
        )
        return _joined(found)

    return product


def _split(vectors: Tensor, like: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """``(runs, n)`` as tensors of the shapes of ``like``, which have the runs on their first axis."""
    pieces = vectors.split([p[0].numel() for p in like], dim=-1)
    return tuple(piece.reshape(p.shape) for piece, p in zip(pieces, like, strict=True))


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    """The inverse of ``_split``."""
    return torch.cat([t.flatten(1) for t in tensors], -1)


@ok.takes(outputs=ok.function, parameters=ok.tensors(finite=False), output_losses=ok.function)
def gauss_newton_product(
    outputs: Callable[..., Tensor], parameters: Sequence[Tensor], output_losses: Callable[[Tensor], Tensor]
) -> Callable[[Tensor], Tensor]:
    """Products with the Gauss-Newton matrices of many runs at once: ``(runs, n) -> (runs, n)``.

    Args:
        outputs: parameters -> ``(runs, ...)``, what each run's model says about its samples.
        parameters: tensors with the runs on their first axis.
        output_losses: ``(runs, ...) -> (runs,)``, the loss as a function of the outputs. The matrix is
            ``J^T (its Hessian) J``, positive semidefinite where this loss is convex.
    """
    point = tuple(p.detach() for p in parameters)
    said, pull = torch.func.vjp(outputs, *point)
    slope = torch.func.grad(lambda z: output_losses(z).sum())

    def product(vectors: Tensor) -> Tensor:
        moved = torch.func.jvp(outputs, point, _split(vectors, point))[1]
        return _joined(pull(torch.func.jvp(slope, (said,), (moved,))[1]))

    return product


@ok.takes(
    log_probabilities=ok.function,
    parameters=ok.tensors(finite=False),
    labels=ok.optional(ok.tensor("runs samples", floating=False, at_least=0)),
)
def fisher_product(
    log_probabilities: Callable[..., Tensor], parameters: Sequence[Tensor], labels: Tensor | None = None
) -> Callable[[Tensor], Tensor]:
    """Products with the Fisher matrices of many runs at once: ``(runs, n) -> (runs, n)``.

    The matrix is the mean over samples of ``g g^T``, g the gradient of a label's log-probability. The *true* one
    averages over labels that the model itself would draw; the *empirical* one takes the labels of the data.

    Args:
        log_probabilities: parameters -> ``(runs, samples, classes)``.
        parameters: tensors with the runs on their first axis.
        labels: ``(runs, samples)`` whole numbers for the empirical matrix, ``None`` for the true one.

    Raises:
        ParameterError: labels that do not fit the log-probabilities, or outside the classes.
    """
    point = tuple(p.detach() for p in parameters)
    said, pull = torch.func.vjp(log_probabilities, *point)
    if labels is None:
        weights = said.exp()
    else:
        if labels.shape != said.shape[:-1] or labels.is_floating_point():
            raise ParameterError(
                f"labels must be whole numbers {tuple(said.shape[:-1])}, got {labels.dtype} {tuple(labels.shape)}."
            )
        integer("the largest of labels", int(labels.max()), at_least=0, at_most=said.shape[-1] - 1)
        weights = torch.nn.functional.one_hot(labels.long(), said.shape[-1]).to(said.dtype)
    weights = weights / said.shape[1]

    def product(vectors: Tensor) -> Tensor:
        moved = torch.func.jvp(log_probabilities, point, _split(vectors, point))[1]
        return _joined(pull(weights * moved))

    return product


@ok.takes(product=ok.function, like=ok.tensor("... n", finite=False), chunk=ok.count(1))
def dense(product: Callable[[Tensor], Tensor], like: Tensor, chunk: int = 64) -> Tensor:
    """The symmetric matrices ``(..., n, n)`` behind a product, from its values at the unit vectors.

    Args:
        product: ``(..., n) -> (..., n)``, as the functions of this module give them.
        like: a tensor of the shape, type and device of the product's vectors; its values do not matter.
        chunk: how many unit vectors are multiplied at once.
    """
    size = like.shape[-1]
    matrix = like.new_empty(*like.shape, size)
    for first in range(0, size, chunk):
        count = min(chunk, size - first)
        units = like.new_zeros(count, size)
        units[:, first : first + count].fill_diagonal_(1)
        units = units.reshape(count, *[1] * (like.dim() - 1), size).expand(count, *like.shape)
        matrix[..., first : first + count, :] = torch.func.vmap(product)(units).movedim(0, -2)
    return (matrix + matrix.mT).div_(2)


@ok.takes(
    predict=ok.function,
    parameters=ok.tensors(finite=False),
    inputs=ok.tensor("runs samples ...", finite=False),
    chunk=ok.optional(ok.count()),
)
def sample_jacobians(
    predict: Callable[..., Tensor], parameters: Sequence[Tensor], inputs: Tensor, chunk: int | None = None
) -> Tensor:
    """The Jacobian of every output for every sample with respect to the parameters, ``(runs, samples, outputs, n)``.

    Each sample's rows cost one backward pass of that sample alone.

    Args:
        predict: ``(*parameters, inputs (runs, 1, ...)) -> (runs, 1, outputs)``.
        parameters: tensors with the runs on their first axis.
        inputs: ``(runs, samples, ...)``.
        chunk: samples at once; all by default.
    """
    point = tuple(p.detach() for p in parameters)

    def rows(x: Tensor) -> Tensor:  # (runs, ...) -> (outputs, runs, n)
        said, pull = torch.func.vjp(lambda *p: predict(*p, x.unsqueeze(1)).squeeze(1).sum(0), *point)
        eye = torch.eye(len(said), dtype=said.dtype, device=said.device)
        return torch.func.vmap(lambda unit: _joined(pull(unit)))(eye)

    return torch.func.vmap(rows, in_dims=1, chunk_size=chunk)(inputs).movedim(2, 0)


@ok.takes(product=ok.function, start=ok.tensor("... n"), steps=ok.count(1))
def lanczos(product: Callable[[Tensor], Tensor], start: Tensor, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Lanczos tridiagonalisation with full reorthogonalisation (twice), on the device of ``start``.

    No value travels to the host during the iteration.

    Args:
        product: ``(..., n) -> (..., n)``, the symmetric matrix (one per leading index) times a vector.
        start: ``(..., n)`` starting vectors.
        steps: size of the Krylov space.

    Returns:
        diagonal ``(..., steps)``, off-diagonal ``(..., steps - 1)``, basis ``(..., steps, n)`` with orthonormal rows
        (a row is zero once the space is exhausted).
    """
    steps = integer("steps", steps, at_least=1, at_most=start.shape[-1])
    basis = start.new_zeros(*start.shape[:-1], steps, start.shape[-1])
    diagonal, off = start.new_zeros(*start.shape[:-1], steps), start.new_zeros(*start.shape[:-1], steps)
    q = start / start.norm(dim=-1, keepdim=True)
    floor = 10 * torch.finfo(start.dtype).eps
    scale = start.new_zeros(start.shape[:-1])
    for k in range(steps):
        basis[..., k, :] = q
        w = product(q)
        diagonal[..., k] = (w * q).sum(-1)
        scale = torch.maximum(scale, w.norm(dim=-1))
        seen = basis[..., : k + 1, :]
        for _ in range(2):
            w = w - ((seen @ w.unsqueeze(-1)).mT @ seen).squeeze(-2)
        size = w.norm(dim=-1)
        alive = size > floor * scale  # otherwise the Krylov space is invariant: stop with zeros
        off[..., k] = torch.where(alive, size, 0.0)
        q = torch.where(alive.unsqueeze(-1), w / size.unsqueeze(-1), 0.0)
    return diagonal, off[..., :-1], basis


@ok.takes(product=ok.function, start=ok.tensor("... n"), k=ok.count(1), steps=ok.count(1))
def top_eigenvalues(product: Callable[[Tensor], Tensor], start: Tensor, k: int = 1, steps: int = 30) -> Tensor:
    """The ``k`` largest eigenvalues ``(..., k)``, falling, of a symmetric matrix given by its products.

    Args:
        product, start: as in ``lanczos``; ``start`` should be random.
        steps: size of the Krylov space; more is more accurate.

    Raises:
        ParameterError: ``k`` larger than ``steps``.
    """
    steps = min(steps, start.shape[-1])
    if not 1 <= k <= steps:
        raise ParameterError(f"k must be between 1 and the {steps} Lanczos steps, got {k}.")
    diagonal, off, _ = lanczos(product, start, steps)
    tridiagonal = torch.diag_embed(diagonal) + torch.diag_embed(off, 1) + torch.diag_embed(off, -1)
    return torch.linalg.eigvalsh(tridiagonal).flip(-1)[..., :k]


@ok.takes(jacobians=ok.tensor("period n n", "period ... n n"))
def floquet_multipliers(jacobians: Tensor) -> Tensor:
    """Eigenvalues, largest modulus first, of the product of the Jacobians along one period.

    Args:
        jacobians: ``(period, ..., n, n)``, in the order in which the steps are taken.

    Returns:
        ``(..., n)`` complex. The orbit is stable if all have modulus below 1.
    """
    period = jacobians[0]
    for jacobian in jacobians[1:]:
        period = jacobian @ period
    values = torch.linalg.eigvals(period)
    return values.gather(-1, values.abs().argsort(dim=-1, descending=True))


@ok.takes(tangent_step=ok.function, vector=ok.tensor("... n"), steps=ok.count(1), burn_in=ok.count(0))
def lyapunov_exponent(tangent_step: Callable[[Tensor], Tensor], vector: Tensor, steps: int, burn_in: int = 0) -> Tensor:
    """Largest Lyapunov exponent: the mean logarithmic growth of a tangent vector carried along an orbit.

    Args:
        tangent_step: ``(..., n) -> (..., n)``; multiplies by the Jacobian at the current state and moves the state on.
        vector: ``(..., n)`` starting vectors.
        steps: steps that count, after ``burn_in`` steps that only align the vector.

    Returns:
        ``(...)`` growth per step; NaN where an orbit is lost.
    """
    total = vector.new_zeros(vector.shape[:-1])
    for t in range(burn_in + steps):
        vector = tangent_step(vector)
        size = vector.norm(dim=-1)
        vector = vector / size.unsqueeze(-1)
        if t >= burn_in:
            total += size.log()
    return total / steps
