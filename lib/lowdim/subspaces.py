"""Training in subspaces: theta = theta_0 + P x, with few coordinates x in place of many parameters theta.

``Subspace`` wraps a population, and ``lowdim.trainer`` trains it like any other. The runs of a group share their
matrix, and may use only its first columns, so that several dimensions train side by side::

    net = MLP(start, x, y)  # groups * 3 runs
    P = Sparse(net.size, 200, groups, generator)
    train(Subspace(net, P, dims=[50, 100, 200]), 400, 0.1, "adam", batch=100, generator=generator)

``intrinsic_dimension`` reads off where accuracy reaches a threshold.
"""

import torch
from torch import Tensor

from lowdim import checks as ok
from lowdim.checks import ParameterError, brief
from lowdim.populations import Population
from lowdim.projections import Projection


class Subspace(Population):
    """A population whose runs move in subspaces: theta = theta_0 + P x, where x, from zero, is what is trained.

    Args:
        population: its parameters are theta_0 and become theta; runs of a group are neighbours.
        projection: ``population.runs`` is a multiple of its ``groups``.
        dims: number of columns that a run uses, one for each run of a group or of the population; all by default.
        decay: weight decay of theta, as a part of the gradient.

    Attributes:
        parameters: ``{"x": (runs, d)}``; coordinates beyond ``dims`` stay zero.
        population: the networks, with ``theta`` of the last ``backward`` or ``lift``.

    Raises:
        ParameterError: another number of parameters, runs that are no multiple of the groups, or more dimensions than
            columns.
    """

    @ok.takes(
        population=ok.has("flat", "flat_gradients", "parameters", "backward", "take"),
        projection=ok.kind(Projection, "a projection of lowdim.projections"),
        decay=ok.real(at_least=0),
    )
    def __init__(self, population, projection: Projection, dims=None, *, decay: float = 0.0):
        kind = brief(projection)
        if projection.parameters != population.size:
            raise ParameterError(
                f"projection must have the {population.size} parameters of a run, got {kind} with "
                f"{projection.parameters}."
            )
        if population.runs % projection.groups:
            raise ParameterError(
                f"projection must have a number of groups that divides {population.runs} runs, got {kind} with "
                f"{projection.groups}."
            )
        k, flat = population.runs // projection.groups, population.flat
        if projection.dtype != flat.dtype or projection.device.type != flat.device.type:
            raise ParameterError(
                f"projection must be {flat.dtype} on {flat.device}, as the population, got {kind} with "
                f"{projection.dtype} on {projection.device}."
            )
        if dims is not None:
            ok.sizes(1)("dims", dims, {})
            if len(dims) not in (k, population.runs):
                raise ParameterError(f"dims must be {k} or {population.runs} numbers, got {len(dims)}.")
            ok.integer("the largest of dims", max(dims), at_least=1, at_most=projection.d)
        start = {"x": flat.new_zeros(population.runs, projection.d)}
        super().__init__(start, population.inputs, population.targets, population.per_run, population.kind)
        dims = [projection.d] * k if dims is None else [int(n) for n in dims]
        self.dims = torch.tensor(dims if len(dims) == self.runs else dims * projection.groups, device=flat.device)
        self.population, self.projection, self.decay = population, projection, float(decay)
        self._used = torch.arange(projection.d, device=flat.device) < self.dims.unsqueeze(1)
        self._start = [p.flatten(1).clone() for p in population.state]

    def _moved(self, x: Tensor) -> list[Tensor]:
        """P x cut into the parameters, ``(runs, numbers)`` each."""
        moved = self.projection.apply(x.view(self.projection.groups, -1, x.shape[1])).flatten(0, 1)
        return moved.split([p.shape[1] for p in self._start], 1)

    def lift(self) -> None:
        """Put theta_0 + P x into the population."""
        moved = self._moved(self.parameters["x"])
        for p, start, part in zip(self.population.state, self._start, moved, strict=True):
            torch.add(start, part, out=p.view(self.runs, -1))

    def outputs(self, inputs=None, parameters=None):
        if parameters is None:
            self.lift()
            return self.population.outputs(inputs)
        parts = zip(self.population.parameters.items(), self._start, self._moved(parameters["x"]), strict=True)
        theta = {name: (start + part).view(p.shape) for (name, p), start, part in parts}
        return self.population.outputs(inputs, theta)

    def backward(self, inputs, targets):
        self.lift()
        losses = self.population.backward(inputs, targets)
        if self.decay:
            self.population.flat_gradients.add_(self.population.flat, alpha=self.decay)
        g = torch.cat([g.view(self.runs, -1) for g in self.population.gradients.values()], 1)
        pulled = self.projection.pull(g.view(self.projection.groups, -1, g.shape[1]))
        torch.mul(pulled.reshape(self.runs, -1), self._used, out=self.gradients["x"])
        return losses


@ok.takes(values=ok.array("points ...", finite=False))
def rising(values) -> Tensor:
    """The closest curves (least squares) that never fall, along the first axis: ``(points, ...)``, float64."""
    y = torch.as_tensor(values, dtype=torch.float64)
    sums = torch.cat([torch.zeros_like(y[:1]), y.cumsum(0)])
    n = len(y)
    means = lambda a: (sums[a + 1 :] - sums[a]) / torch.arange(1, n - a + 1).view(-1, *[1] * (y.dim() - 1))
    lowest = [means(a).flip(0).cummin(0).values.flip(0) for a in range(n)]  # mean of a..b, least over b from i on
    return torch.stack([torch.stack([lowest[a][i - a] for a in range(i + 1)]).amax(0) for i in range(n)])


@ok.takes(d=ok.array("numbers"), performance=ok.array("points ...", finite=False))
def intrinsic_dimension(d, performance, threshold) -> Tensor:
    """Where performance reaches a threshold: interpolated in log d, on the closest curve that never falls.

    Args:
        d: ``(points,)``, rising.
        performance: ``(points, ...)``.
        threshold: a number, or ``(...)``.

    Returns:
        ``(...)``, float64; NaN where the threshold is not reached, the first d where it is there from the beginning.
    """
    d, y = torch.as_tensor(d, dtype=torch.float64), rising(performance)
    if len(d) != len(y) or not (d.diff() > 0).all() or d[0] <= 0:
        raise ParameterError(f"d must be {len(y)} rising numbers above 0, got {brief(d.tolist())}.")
    level = torch.as_tensor(threshold, dtype=torch.float64)
    if not level.isfinite().all() or (level.dim() and level.shape != y.shape[1:]):
        raise ParameterError(f"threshold must be one finite number or {tuple(y.shape[1:])}, got {brief(threshold)}.")
    above = y >= level
    at = above.to(torch.int8).argmax(0)
    low = (at - 1).clamp(min=0)
    pick = lambda i: y.gather(0, i.unsqueeze(0))[0]
    share = torch.where(at > 0, (level - pick(low)) / (pick(at) - pick(low)), 0.0)
    found = (d[low].log() + share * (d[at].log() - d[low].log())).exp()
    return torch.where(above.any(0), found, torch.nan)
