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
        wanted = [(runs, hidden, inputs.shape[-1]), (runs, hidden), (runs, V.shape[1], hidden), (runs, V.shape[1])]
        if [tuple(part.shape) for part in (W, b, V, c)] != wanted or len(inputs) != runs:
            shapes = ", ".join(str(tuple(part.shape)) for part in (W, b, V, c))
            raise ParameterError(
                f"parameters must be those of {len(inputs)} networks with {inputs.shape[-1]} inputs and one hidden "
                f"layer, got {shapes}."
            )
        self.x, self.V = _with_one(inputs), V.mT
        a, self.slope, self.bend = _derivatives(torch.baddbmm(b.unsqueeze(1), inputs, W.mT), activation)
        self.a = _with_one(a)
        self.p = torch.baddbmm(c.unsqueeze(1), a, V.mT).softmax(-1)
        h, k = self.V.shape[1:]
        place = torch.arange((size + 1) * h, device=inputs.device).view(size + 1, h)
        after = torch.arange((h + 1) * k, device=inputs.device).view(h + 1, k) + place.numel()
        parts = (place[:-1].mT, place[-1], after[:-1].mT, after[-1])
        self.order = torch.cat([part.flatten() for part in parts])  # ours -> that of the parameters


@ok.takes(
    inputs=ok.tensor("runs samples features"),
    labels=ok.tensor("runs samples", floating=False, at_least=0),
    parameters=_four,
    activation=ok.one_of(*ACTIVATIONS),
)
def hessians(
    inputs: Tensor, labels: Tensor, parameters: Mapping[str, Tensor], activation: str = "relu"
) -> tuple[Tensor, Tensor]:
    """The Hessian of the mean cross-entropy and its Gauss-Newton part, both ``(runs, n, n)``.

    Args:
        inputs: ``(runs, samples, d)``.
        labels: ``(runs, samples)`` whole numbers.
        parameters: as ``lowdim.mlps.mlp_parameters`` makes them for sizes (d, h, k).
        activation: ``"relu"`` (whose second derivative counts as zero) or ``"tanh"``.

    Returns:
        H and G, with the parameters of a run in the order of the mapping's names, as ``lowdim.curvature`` has them.

    Raises:
        ParameterError: shapes that do not fit, or a label outside the classes.
    """
    now = _Forward(inputs, parameters, activation)
    x, a, V, p, slope = now.x, now.a, now.V, now.p, now.slope
    (runs, samples, d), h, k = x.shape, V.shape[1], V.shape[2]
    integer("the largest of labels", int(labels.max()), at_least=0, at_most=k - 1)
    r = (p - torch.nn.functional.one_hot(labels.long(), k).to(p)) / samples
    S = (torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)) / samples
    pull = slope.unsqueeze(-1) * (V.unsqueeze(1) @ S)  # (r, n, h, k): s' * V S
    inner = slope.unsqueeze(-2) * (pull @ V.mT.unsqueeze(1))  # (r, n, h, h)
    i, j = torch.triu_indices(d, d, device=x.device)
    pairs = x[..., i] * x[..., j]  # (r, n, d (d + 1) / 2): x x^T is symmetric
    rest = now.bend * (r @ V.mT)  # (r, n, h)

    def block(weight: Tensor) -> Tensor:
        """``sum_n x x^T (x) weight`` for weights (r, n, m): (r, d, d, m)."""
        half = weight.mT @ pairs
        full = half.new_empty(runs, half.shape[1], d, d)
        full[..., i, j] = half
        full[..., j, i] = half
        return full.permute(0, 2, 3, 1)

    G = x.new_empty(runs, d * h + (h + 1) * k, d * h + (h + 1) * k)
    first = d * h
    G[:, :first, :first].view(runs, d, h, d, h).copy_(block(inner.flatten(2)).unflatten(-1, (h, h)).transpose(2, 3))
    mixed = pull.unsqueeze(3) * a.unsqueeze(2).unsqueeze(-1)  # (r, n, h, h + 1, k)
    G[:, :first, first:] = (x.mT @ mixed.flatten(2)).view(runs, first, -1)
    G[:, first:, first:].view(runs, h + 1, k, h + 1, k).copy_(
        ((a.unsqueeze(-1) * a.unsqueeze(-2)).flatten(2).mT @ S.flatten(2))
        .view(runs, h + 1, h + 1, k, k)
        .transpose(2, 3)
    )
    H = G.clone()
    unit = torch.arange(h, device=x.device)
    H[:, :first, :first].view(runs, d, h, d, h)[:, :, unit, :, unit] += block(rest).permute(3, 0, 1, 2)
    drag = slope.unsqueeze(-1) * r.unsqueeze(-2)  # (r, n, h, k)
    drag = (x.mT @ drag.flatten(2)).view(runs, d, h, k)
    H[:, :first, first:].view(runs, d, h, h + 1, k)[:, :, unit, unit] += drag
    for matrix in (G, H):
        matrix[:, first:, :first] = matrix[:, :first, first:].mT
    return tuple(matrix.index_select(1, now.order).index_select(2, now.order) for matrix in (H, G))


@ok.takes(
    inputs=ok.tensor("runs samples features"),
    parameters=_four,
    activation=ok.one_of(*ACTIVATIONS),
)
def jacobians(inputs: Tensor, parameters: Mapping[str, Tensor], activation: str = "relu") -> Tensor:
    """Gradients of the logits ``(runs, samples, k, n)``, in the order of ``hessians``; arguments as there."""
    now = _Forward(inputs, parameters, activation)
    k = now.V.shape[2]
    outer = (now.slope.unsqueeze(-1) * now.V.unsqueeze(1)).transpose(2, 3)  # (r, n, k, h)
    W = now.x.unsqueeze(2).unsqueeze(-1) * outer.unsqueeze(3)  # (r, n, k, d, h)
    eye = torch.eye(k, dtype=inputs.dtype, device=inputs.device)
    V = now.a.unsqueeze(2).unsqueeze(-1) * eye.unsqueeze(1)  # (r, n, k, h + 1, k)
    return torch.cat([W.flatten(3), V.flatten(3)], -1).index_select(-1, now.order)
