"""Networks with one hidden layer and a softmax: exact Hessian and Gauss-Newton matrix in closed form, for many runs.

With inputs x (a 1 appended), hidden values ``a = s(x W)`` (a 1 appended), logits ``f = a V`` (biases are last rows),
probabilities p, labels as unit vectors y and the mean cross-entropy over N samples, the second derivatives are sums
over samples of products of small factors, so that every block of the Hessian is one matrix product:

    WW: x x^T (x) [ (s' s'^T) * (V S V^T) + diag(s'' * V r) ],     S = (diag p - p p^T) / N,   r = (p - y) / N
    WV: x (x) [ s' * V S ] (x) a  +  x (x) s' (x) r  on the same hidden unit
    VV: a a^T (x) S

Terms with r belong to the rest R, all others to the Gauss-Newton matrix G. (Written out for this book.)
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from lowdim import checks as ok
from lowdim.checks import ParameterError, brief, integer

ACTIVATIONS = ("relu", "tanh")
NAMES = ("weight.0", "bias.0", "weight.1", "bias.1")


def _four(name: str, value, known: dict) -> None:
    if not isinstance(value, Mapping) or set(value) != set(NAMES):
        raise ParameterError(f"{name} must be a mapping of {', '.join(NAMES)} to tensors, got {brief(value)}.")
    for part in NAMES:
        shape = "runs out in" if part.startswith("weight") else "runs out"
        ok.tensor(shape)(f"{name}[{part!r}]", value[part], {})


def _derivatives(z: Tensor, activation: str) -> tuple[Tensor, Tensor, Tensor]:
    """Value, first and second derivative of the activation."""
    if activation == "tanh":
        a = z.tanh()
        slope = 1 - a * a
        return a, slope, -2 * a * slope
    slope = (z > 0).to(z.dtype)
    return z * slope, slope, torch.zeros_like(z)


def _with_one(x: Tensor) -> Tensor:
    return torch.cat([x, x.new_ones(*x.shape[:-1], 1)], -1)


class _Forward:
    """What the blocks need of the samples, ones appended; sizes: runs r, samples n, inputs d, hidden h, classes k."""

    def __init__(self, inputs, parameters, activation):
        W, b, V, c = (parameters[name] for name in NAMES)
        runs, hidden, size = W.shape
        wanted = [(runs, hidden, size), (runs, hidden), (runs, V.shape[1], hidden), (runs, V.shape[1])]
        for name, shape in zip(NAMES, wanted, strict=True):
            if tuple(parameters[name].shape) != shape:
                raise ParameterError(
                    f"parameters must be those of networks with one hidden layer, {name!r} {shape}, got "
                    f"{tuple(parameters[name].shape)}."
                )
        if (len(inputs), inputs.shape[2]) != (runs, size):
            raise ParameterError(
                f"inputs must be ({runs}, samples, {size}), as the parameters have it, got {tuple(inputs.shape)}."
            )
        self.x, self.V = _with_one(inputs), V.mT
        a, self.slope, self.bend = _derivatives(torch.baddbmm(b.unsqueeze(1), inputs, W.mT), activation)
        self.a = _with_one(a)
        self.p = torch.baddbmm(c.unsqueeze(1), a, V.mT).softmax(-1)


def _tail(t: Tensor) -> Tensor:
    """Last axes (hidden + 1, classes) as one, in the order of the output layer's parameters: weights, then biases."""
    return torch.cat([t[..., :-1, :].mT.flatten(-2), t[..., -1, :]], -1)


def _assemble(now: _Forward, residuals: Tensor | None) -> Tensor:
    """The matrix of all blocks, ``(runs, n, n)``: H with the residuals ``(runs, samples, classes)``, G without."""
    x, a, V, p, slope = now.x, now.a, now.V, now.p, now.slope
    samples, size, h = p.shape[1], x.shape[2] - 1, V.shape[1]
    S = (torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)) / samples
    pull = slope.unsqueeze(-1) * (V.unsqueeze(1) @ S)  # (r, n, h, k): s' * V S
    inner = slope.unsqueeze(-2) * (pull @ V.mT.unsqueeze(1))  # (r, n, h, h)
    mixed = pull.unsqueeze(3) * a.unsqueeze(2).unsqueeze(-1)  # (r, n, h, h + 1, k)
    if residuals is not None:
        inner.diagonal(dim1=2, dim2=3).add_(now.bend * (residuals @ V.mT))
        mixed.diagonal(dim1=2, dim2=3).add_((slope.unsqueeze(-1) * residuals.unsqueeze(2)).mT)
    mixed = _tail((x.mT @ mixed.flatten(2)).unflatten(2, mixed.shape[2:]))  # (r, d + 1, h, m)
    outer = ((a.unsqueeze(-1) * a.unsqueeze(-2)).flatten(2).mT @ S.flatten(2)).view(
        *a.shape[:1], h + 1, h + 1, *S.shape[2:]
    )
    outer = _tail(_tail(outer.permute(0, 1, 3, 2, 4)).permute(0, 3, 1, 2))  # (r, m, m)

    first = h * (size + 1)  # parameters of the first layer: h rows of weights, then h biases
    matrix = x.new_empty(len(x), first + outer.shape[1], first + outer.shape[1])
    weights = matrix[:, : h * size, : h * size].unflatten(2, (h, size)).unflatten(1, (h, size))
    biases = matrix[:, h * size : first]
    pairs = (x.unsqueeze(-1) * x.unsqueeze(-2)).flatten(2)  # (r, n, (d + 1)^2)
    for u in range(h):  # all blocks of unit u with itself and the later ones
        block = (inner[:, :, u, u:].mT @ pairs).view(len(x), h - u, size + 1, size + 1)
        weights[:, u, :, u:] = block[..., :size, :size].transpose(1, 2)
        weights[:, u:, :, u] = block[..., :size, :size]
        biases[:, u, : h * size].view(len(x), h, size)[:, u:] = block[..., size, :size]
        biases[:, u:, u * size : (u + 1) * size] = block[..., size, :size]
        biases[:, u, h * size + u : first] = block[..., size, size]
        biases[:, u:, h * size + u] = block[..., size, size]
    matrix[:, : h * size, first:] = mixed[:, :size].transpose(1, 2).flatten(1, 2)
    biases[:, :, first:] = mixed[:, size]
    matrix[:, first:, first:] = outer
    matrix[:, : h * size, h * size : first] = biases[:, :, : h * size].mT
    matrix[:, first:, :first] = matrix[:, :first, first:].mT
    return matrix


@ok.takes(
    inputs=ok.tensor("runs samples features"),
    labels=ok.tensor("runs samples", floating=False, at_least=0),
    parameters=_four,
    activation=ok.one_of(*ACTIVATIONS),
)
def hessian(inputs: Tensor, labels: Tensor, parameters: Mapping[str, Tensor], activation: str = "relu") -> Tensor:
    """The Hessian of the mean cross-entropy ``(runs, n, n)``.

    Args:
        inputs: ``(runs, samples, d)``.
        labels: ``(runs, samples)`` whole numbers.
        parameters: as ``lowdim.mlps.mlp_parameters`` makes them for sizes (d, h, k); rows and columns are in their
            order, as in ``lowdim.curvature``.
        activation: ``"relu"`` (whose second derivative counts as zero) or ``"tanh"``.

    Raises:
        ParameterError: shapes that do not fit, or a label outside the classes.
    """
    now = _Forward(inputs, parameters, activation)
    samples, classes = now.p.shape[1:]
    integer("the largest of labels", int(labels.max()), at_least=0, at_most=classes - 1)
    return _assemble(now, (now.p - torch.nn.functional.one_hot(labels.long(), classes).to(now.p)) / samples)


@ok.takes(
    inputs=ok.tensor("runs samples features"),
    parameters=_four,
    activation=ok.one_of(*ACTIVATIONS),
)
def gauss_newton(inputs: Tensor, parameters: Mapping[str, Tensor], activation: str = "relu") -> Tensor:
    """The Gauss-Newton part of ``hessian``, which is the Fisher matrix, ``(runs, n, n)``; arguments as there."""
    return _assemble(_Forward(inputs, parameters, activation), None)


@ok.takes(
    inputs=ok.tensor("runs samples features"),
    parameters=_four,
    activation=ok.one_of(*ACTIVATIONS),
)
def jacobians(inputs: Tensor, parameters: Mapping[str, Tensor], activation: str = "relu") -> Tensor:
    """Gradients of the logits ``(runs, samples, k, n)``, in the order of ``hessian``; arguments as there."""
    now = _Forward(inputs, parameters, activation)
    k = now.V.shape[2]
    outer = (now.slope.unsqueeze(-1) * now.V.unsqueeze(1)).transpose(2, 3)  # (r, n, k, h)
    W = outer.unsqueeze(-1) * inputs.unsqueeze(2).unsqueeze(2)  # (r, n, k, h, d)
    eye = torch.eye(k, dtype=inputs.dtype, device=inputs.device)
    V = now.a.unsqueeze(2).unsqueeze(-1) * eye.unsqueeze(1)  # (r, n, k, h + 1, k)
    return torch.cat([W.flatten(3), outer, _tail(V)], -1)
