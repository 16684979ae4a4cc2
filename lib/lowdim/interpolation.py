"""Between two networks: losses along the straight line, barriers, and how aligned their singular directions are."""

import torch
from torch import Tensor, nn

from lowdim import checks as ok
from lowdim.checks import ParameterError, brief
from lowdim.matching import Networks, _networks


@ok.takes(a=_networks, b=_networks, t=ok.real())
def mix(a: Networks, b: Networks, t: float) -> dict[str, Tensor]:
    """``(1 - t) a + t b``."""
    return {name: torch.lerp(x, b[name], t) for name, x in a.items()}


@ok.takes(a=_networks, b=_networks)
def distance(a: Networks, b: Networks) -> Tensor:
    """Euclidean distance of all parameters, ``(pairs,)``."""
    return sum((x - b[name]).double().square().flatten(1).sum(1) for name, x in a.items()).sqrt()


@ok.takes(
    population=ok.has("loss", "accuracy"),
    a=_networks,
    b=_networks,
    points=ok.count(2),
    renormalise=ok.flag,
)
def along(population, a: Networks, b: Networks, points: int = 11, inputs=None, targets=None, *, renormalise=False):
    """Loss and accuracy at equally spaced points of the line from a to b: ``(points, pairs)`` each, and the points.

    Args:
        population: an ``MLP`` of the same activation and loss; its data are used unless ``inputs`` and ``targets`` are
            given (shared by all pairs).
        renormalise: give hidden units the statistics that ``renormalised`` describes, measured on the training data.
    """
    ts, losses, shares = torch.linspace(0, 1, points), [], []
    for t in ts.tolist():
        mixed = renormalised(population, a, b, t) if renormalise else mix(a, b, t)
        outputs = population.outputs(inputs, mixed)
        losses.append(population.losses(outputs, targets))
        shares.append(population.hits(outputs, targets))
    return torch.stack(losses), torch.stack(shares), ts


@ok.takes(losses=ok.tensor("points ...", finite=False))
def barrier(losses: Tensor) -> Tensor:
    """Largest excess of the loss over the straight line between its ends; ``losses`` are those of ``along``.

    At the ends the excess is zero, so inner points alone are looked at; it can be negative.

    Raises:
        ParameterError: fewer than three points.
    """
    if len(losses) < 3:
        raise ParameterError(f"losses must have at least 3 points, got {len(losses)}.")
    t = torch.linspace(0, 1, len(losses), dtype=losses.dtype, device=losses.device)
    line = torch.lerp(losses[:1], losses[-1:], t.view(-1, *[1] * (losses.dim() - 1)))
    return (losses - line)[1:-1].amax(0)


@ok.takes(population=ok.has("loss", "inputs"), a=_networks, b=_networks)
def curvature_estimate(population, a: Networks, b: Networks) -> Tensor:
    """``mu^T (H_a + H_b) mu / 16`` with ``mu = a - b``: the barrier at the midpoint by Taylor's formula, ``(pairs,)``.

    The loss at the midpoint is expanded to second order around each end; the gradients there count as zero. Exact
    second derivatives along the line, on the training data.
    """
    ends = []
    for origin, other in ((a, b), (b, a)):
        t = torch.zeros(len(next(iter(a.values()))), dtype=next(iter(a.values())).dtype, requires_grad=True)
        line = {k: x + t.view(-1, *[1] * (x.dim() - 1)) * (other[k] - x) for k, x in origin.items()}
        (slope,) = torch.autograd.grad(population.loss(parameters=line).sum(), t, create_graph=True)
        ends.append(torch.autograd.grad(slope.sum(), t)[0])
    return (ends[0] + ends[1]) / 16


@ok.takes(population=ok.has("hidden", "activation"), a=_networks, b=_networks, t=ok.real(at_least=0, at_most=1))
def renormalised(population, a: Networks, b: Networks, t: float) -> dict[str, Tensor]:
    """``mix(a, b, t)`` whose hidden pre-activations have the interpolated means and standard deviations of both ends.

    One layer after another: the rows of its weights are scaled and its biases shifted (REPAIR of Jordan et al., 2023,
    for networks without normalisation), with statistics over the training inputs.
    """
    mixed, x = mix(a, b, t), population.inputs
    layers, states = len(a) // 2, [x, x, x]
    for l in range(layers - 1):
        weight, bias = f"weight.{l}", f"bias.{l}"
        pre = [h @ net[weight].mT + net[bias].unsqueeze(1) for h, net in zip(states, (a, b, mixed), strict=True)]
        means, deviations = zip(*[(z.mean(1), z.std(1, correction=0)) for z in pre], strict=True)
        scale = torch.lerp(deviations[0], deviations[1], t) / deviations[2].clamp(min=1e-12)
        mixed[bias] = (mixed[bias] - means[2]) * scale + torch.lerp(means[0], means[1], t)
        mixed[weight] = mixed[weight] * scale.unsqueeze(2)
        pre[2] = states[2] @ mixed[weight].mT + mixed[bias].unsqueeze(1)
        states = [population.act(z) for z in pre]
    return mixed


@ok.takes(model=ok.kind(nn.Module, "a module"))
@torch.no_grad()
def reset_statistics(model: nn.Module, batches) -> None:
    """Compute the running statistics of a module's normalisation layers anew, as plain averages over batches of inputs.

    For the mean of two networks: statistics of the ends do not fit the weights in between.

    Raises:
        ParameterError: no batch, or a module that keeps no running statistics.
    """
    parts = [m for m in model.modules() if getattr(m, "track_running_stats", False)]
    batches = list(batches) if not isinstance(batches, Tensor) else [batches]
    if not parts:
        raise ParameterError(f"model must be a module with running statistics, got {brief(model)}.")
    if not batches or not all(isinstance(x, Tensor) for x in batches):
        raise ParameterError(f"batches must be at least one tensor of inputs, got {brief(batches)}.")
    before = [(m, m.momentum, m.training) for m in parts]
    for m in parts:
        m.reset_running_stats()
        m.momentum = None
        m.train()
    for x in batches:
        model(x)
    for m, momentum, training in before:
        m.momentum = momentum
        m.train(training)


# ---------------------------------------------------------------- singular directions


@ok.takes(networks=_networks)
def spectra(networks: Networks) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Singular value decompositions of every weight, ``(pairs, d_out, k)``, ``(pairs, k)`` and ``(pairs, d_in, k)``."""
    found = [torch.linalg.svd(networks[f"weight.{l}"], full_matrices=False) for l in range(len(networks) // 2)]
    return [(u, s, v.mT) for u, s, v in found]


def _decomposed(name: str, value, known: dict) -> None:
    parts = [tuple(p.shape for p in part) for part in value] if isinstance(value, list) else None
    if not parts or known.setdefault("spectra", parts) != parts:
        raise ParameterError(f"{name} must be what spectra gives, for networks of one shape, got {brief(value)}.")


@ok.takes(a=_decomposed, b=_decomposed, gamma=ok.real(at_least=0, at_most=1))
def alignment(a, b, gamma: float = 0.0) -> Tensor:
    """How well singular directions agree: R of Ito, Yamada and Kumagai (2025), ``(pairs,)``, at most 1.

    The sum over layers and pairs of directions of ``(u_i^a . u_j^b) (v_i^a . v_j^b)``, over the number of directions,
    where only directions with ``s >= gamma s_max`` count (of two numbers kept, the smaller one is the divisor).

    Args:
        a, b: ``spectra`` of networks whose units are in the order to be compared.
    """
    total, number = 0.0, 0.0
    for (ua, sa, va), (ub, sb, vb) in zip(a, b, strict=True):
        keep_a, keep_b = ((s >= gamma * s[:, :1]).to(s.dtype) for s in (sa, sb))
        product = (ua.mT @ ub) * (va.mT @ vb)
        total = total + (keep_a.unsqueeze(1) @ product @ keep_b.unsqueeze(2)).flatten()
        number = number + torch.minimum(keep_a.sum(1), keep_b.sum(1))
    return total / number


@ok.takes(networks=_networks, rank=ok.count())
def truncated(networks: Networks, rank: int) -> dict[str, Tensor]:
    """The networks with each weight replaced by its best approximation of a rank; biases are zero.

    For matching by the leading singular directions alone.
    """
    found = {}
    for l, (u, s, v) in enumerate(spectra(networks)):
        found[f"weight.{l}"] = (u[..., :rank] * s[:, None, :rank]) @ v[..., :rank].mT
        found[f"bias.{l}"] = torch.zeros_like(networks[f"bias.{l}"])
    return found
