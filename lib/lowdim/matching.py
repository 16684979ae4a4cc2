"""Permutations of hidden units: bring one network's units into the order of another's, by three methods.

Networks are stacked parameters as in ``lowdim.mlps``: ``weight.l (pairs, d_{l+1}, d_l)``, ``bias.l (pairs, d_{l+1})``.
A permutation of hidden layer l is a row of indices for each pair, ``(pairs, d)``: unit i of the permuted network is
unit ``p[i]`` of the old one. Weight matching, activation matching and the straight-through estimator are those of
Ainsworth, Hayase and Srinivasa, "Git Re-Basin" (2023).
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from lowdim import checks as ok
from lowdim.checks import ParameterError, brief
from lowdim.populations import check_stacked

Networks = Mapping[str, Tensor]


def _networks(name: str, value, known: dict) -> None:
    """Stacked fully connected networks, with one hidden layer or more; two arguments must agree in all shapes."""
    check_stacked(value)
    layers = len(value) // 2
    if layers < 2 or value.keys() != {f"{kind}.{l}" for l in range(layers) for kind in ("weight", "bias")}:
        raise ParameterError(f"{name} must hold weight.0, bias.0, ... of at least 2 layers, got {brief(list(value))}.")
    shapes = {key: tuple(p.shape) for key, p in value.items()}
    if (other := known.setdefault("networks", shapes)) != shapes:
        key = next(k for k in shapes | other if shapes.get(k) != other.get(k))
        raise ParameterError(
            f"{name} must have networks of one shape, got {key} {shapes.get(key)}, not {other.get(key)}."
        )


def _permutations(name: str, value, known: dict) -> None:
    """A permutation for each hidden layer of the networks and each pair."""
    shapes = known["networks"]
    wanted = [shapes[f"bias.{l}"] for l in range(len(shapes) // 2 - 1)]
    found = [tuple(p.shape) if isinstance(p, Tensor) else None for p in value] if isinstance(value, list) else None
    if found != wanted:
        raise ParameterError(f"{name} must be a list of permutations {wanted}, one a hidden layer, got {brief(value)}.")
    for l, p in enumerate(value):
        if p.dtype != torch.long or not torch.equal(p.sort(1).values, torch.arange(p.shape[1]).expand_as(p)):
            raise ParameterError(f"{name}[{l}] must hold each of 0 to {p.shape[1] - 1} once in each row, got another.")


@ok.takes(networks=_networks)
def identity(networks: Networks) -> list[Tensor]:
    """The permutations that change nothing, ``(pairs, d)`` for each hidden layer."""
    biases = [networks[f"bias.{l}"] for l in range(len(networks) // 2 - 1)]
    return [torch.arange(b.shape[1], device=b.device).expand(len(b), -1).clone() for b in biases]


@ok.takes(networks=_networks, permutations=_permutations)
def permute(networks: Networks, permutations: Sequence[Tensor]) -> dict[str, Tensor]:
    """The same functions with their hidden units in another order."""
    return _permuted(networks, permutations)


def _permuted(networks: Networks, permutations: Sequence[Tensor]) -> dict[str, Tensor]:
    found, layers = {}, len(networks) // 2
    for l in range(layers):
        weight, bias = networks[f"weight.{l}"], networks[f"bias.{l}"]
        weight = weight if l == 0 else _columns(weight, permutations[l - 1])
        if l < layers - 1:
            weight, bias = _rows(weight, permutations[l]), bias.gather(1, permutations[l])
        found[f"weight.{l}"], found[f"bias.{l}"] = weight, bias
    return found


def _rows(weight: Tensor, p: Tensor) -> Tensor:
    return weight.gather(1, p.unsqueeze(2).expand_as(weight))


def _columns(weight: Tensor, p: Tensor) -> Tensor:
    return weight.gather(2, p.unsqueeze(1).expand_as(weight))


@ok.takes(gains=ok.tensor("pairs d d"))
def assign(gains: Tensor) -> Tensor:
    """For each pair the permutation with the largest sum of ``gains[pair, i, p[i]]``: ``(pairs, d)``."""
    rows = [linear_sum_assignment(g, maximize=True)[1] for g in gains.detach().cpu().numpy()]
    return torch.as_tensor(np.stack(rows), device=gains.device)


@ok.takes(
    a=_networks,
    b=_networks,
    generator=ok.generator,
    start=ok.optional(_permutations),
    sweeps=ok.count(),
    slack=ok.real(at_least=0),
)
def weight_matching(a: Networks, b: Networks, generator, *, start=None, sweeps=100, slack=1e-6) -> list[Tensor]:
    """Permutations of b that bring its weights and biases close to those of a.

    Minimising the distance is maximising the sum of all ``<W_l^a, P_l W_l^b P_{l-1}^T>``. For one layer, the others
    fixed, this is an assignment. Layers take turns in random order until no pair gains more than ``slack`` (relative)
    in a sweep: a local optimum that depends on the order.

    Args:
        a, b: networks of one shape, paired along the first axis.
        generator: source of the orders.
        start: permutations to begin with; the identity by default.
    """
    found = identity(b) if start is None else list(start)
    best = agreement(a, b, found)
    for _ in range(sweeps):
        for l in torch.randperm(len(found), generator=generator).tolist():
            found[l] = assign(_gains(a, b, found, l))
        now = agreement(a, b, found)
        if not (now > best + slack * best.abs()).any():
            break
        best = now
    return found


def _gains(a: Networks, b: Networks, permutations: Sequence[Tensor], l: int) -> Tensor:
    """What the agreement gains if unit i of layer l of a meets unit j of b, the other layers' permutations fixed."""
    left, right = b[f"weight.{l}"], b[f"weight.{l + 1}"]
    left = left if l == 0 else _columns(left, permutations[l - 1])
    right = right if l + 1 == len(permutations) else _rows(right, permutations[l + 1])
    gains = a[f"weight.{l}"] @ left.mT
    gains.baddbmm_(a[f"weight.{l + 1}"].mT, right)
    return gains.baddbmm_(a[f"bias.{l}"].unsqueeze(2), b[f"bias.{l}"].unsqueeze(1))


@ok.takes(a=_networks, b=_networks, permutations=_permutations)
def agreement(a: Networks, b: Networks, permutations: Sequence[Tensor]) -> Tensor:
    """Inner product of all parameters of a with those of the permuted b, ``(pairs,)``: what weight matching raises."""
    moved = _permuted(b, permutations)
    return sum((x * moved[name]).flatten(1).double().sum(1) for name, x in a.items())


@ok.takes(a=ok.tensors("pairs samples d"), b=ok.tensors("pairs samples d"))
def activation_matching(a: Sequence[Tensor], b: Sequence[Tensor]) -> list[Tensor]:
    """Permutations of b that bring its hidden activations close to those of a on the same samples.

    Args:
        a, b: one tensor ``(pairs, samples, d)`` for each hidden layer, as ``MLP.hidden`` gives before its last.

    Raises:
        ParameterError: activations of different shapes.
    """
    if [x.shape for x in a] != [x.shape for x in b]:
        raise ParameterError(f"b must have the shapes of a, {[*map(_shape, a)]}, got {[*map(_shape, b)]}.")
    return [assign(x.mT @ y) for x, y in zip(a, b, strict=True)]


def _shape(x: Tensor) -> tuple:
    return tuple(x.shape)


@ok.takes(
    population=ok.has("backward", "parameters", "gradients", "inputs", "targets"),
    a=_networks,
    b=_networks,
    steps=ok.count(0),
    eta=ok.real(above=0),
    batch=ok.count(),
    generator=ok.generator,
)
def straight_through(population, a: Networks, b: Networks, steps, eta, batch, generator) -> list[Tensor]:
    """Permutations of b that make the loss at the midpoint between a and b small: the straight-through estimator.

    Free parameters start at b. Each step matches b to them, takes the gradient of the loss at the midpoint of a and the
    matched b, and moves the free parameters by it (Adam's step). The permutations with the lowest loss, averaged over
    ten batches, are kept.

    Args:
        population: an ``MLP`` with as many runs as there are pairs; its parameters serve as the midpoint and are lost.
        batch: training samples a step.

    Raises:
        ParameterError: a population of another number of runs, with data of its own for each run, or too few samples.
    """
    if population.runs != len(next(iter(a.values()))) or population.per_run or batch > population.samples:
        raise ParameterError(
            f"population must have {len(next(iter(a.values())))} runs on shared data of at least {batch} samples, got "
            f"{population.runs} runs and {population.samples} samples."
        )
    free = {name: p.clone() for name, p in b.items()}
    first, second = ({name: torch.zeros_like(p) for name, p in b.items()} for _ in range(2))
    found = identity(b)
    best, best_loss, recent = [p.clone() for p in found], torch.full((population.runs,), torch.inf), []
    for step in range(1, steps + 1):
        found = weight_matching(free, b, generator, start=found, sweeps=1)
        moved = _permuted(b, found)
        for name, p in population.parameters.items():
            torch.lerp(a[name], moved[name], 0.5, out=p)
        picks = torch.randint(population.samples, (population.runs, batch), generator=generator)
        recent = [*recent[-9:], population.backward(*population.take(picks))]
        if len(recent) == 10:
            better = (mean := torch.stack(recent).mean(0)) < best_loss
            best_loss = torch.where(better, mean, best_loss)
            best = [torch.where(better.unsqueeze(1), p, q) for p, q in zip(found, best, strict=True)]
        for name, g in population.gradients.items():
            first[name].lerp_(g, 0.1)
            second[name].lerp_(g * g, 0.01)
            scaled = first[name] / (1 - 0.9**step) / ((second[name] / (1 - 0.99**step)).sqrt() + 1e-8)
            free[name].sub_(scaled, alpha=eta)
    return best
