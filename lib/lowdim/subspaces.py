"""Training in random subspaces: theta = theta_0 + P x, with few coordinates x in place of many parameters theta.

A projection P is a batch of ``groups`` independent matrices ``(parameters, d)`` with columns of unit length over the
whole parameter vector, after Li et al., ICLR 2018. ``apply`` is P x and ``pull`` is its exact adjoint. The runs of a
group share their matrix, and may use only its first columns, so that several dimensions train side by side::

    net = MLP(start, x, y)                                     # groups * 3 runs
    P = Sparse(net.size, 200, groups, generator)
    train(Subspace(net, P, dims=[50, 100, 200]), 400, 0.1, "adam", batch=100, generator=generator)
"""

import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from lowdim import checks as ok
from lowdim.checks import ParameterError, brief
from lowdim.populations import Population


def _dtype(name: str, value, known: dict) -> None:
    if value not in (torch.float32, torch.float64):
        raise ParameterError(f"{name} must be torch.float32 or torch.float64, got {brief(value)}.")


_takes = ok.takes(parameters=ok.count(), d=ok.count(), groups=ok.count(), generator=ok.generator, dtype=_dtype)


def _fits(parameters: int, d: int) -> None:
    if d > parameters:
        raise ParameterError(f"d must be at most {parameters}, the number of parameters, got {d}.")


class Projection:
    """``groups`` matrices ``(parameters, d)``; ``dtype`` and ``device`` are those of their numbers."""

    def __init__(self, parameters: int, d: int, groups: int, dtype, device):
        _fits(parameters, d)
        self.parameters, self.d, self.groups, self.dtype, self.device = parameters, d, groups, dtype, device

    def apply(self, x: Tensor) -> Tensor:
        """P x: ``(groups, k, d)`` to ``(groups, k, parameters)``."""
        raise NotImplementedError

    def pull(self, g: Tensor) -> Tensor:
        """The adjoint, P^T g: ``(groups, k, parameters)`` to ``(groups, k, d)``."""
        raise NotImplementedError

    def matrix(self) -> Tensor:
        """All columns written out, ``(groups, parameters, d)``; for small sizes."""
        units = torch.eye(self.d, dtype=self.dtype, device=self.device)
        return self.apply(units.expand(self.groups, -1, -1)).mT


class Dense(Projection):
    """Given columns, ``(groups, parameters, d)``; they are used as they are."""

    @ok.takes(columns=ok.tensor("groups parameters d", finite=True))
    def __init__(self, columns: Tensor):
        super().__init__(columns.shape[1], columns.shape[2], len(columns), columns.dtype, columns.device)
        self.columns = columns

    def apply(self, x):
        return torch.bmm(x, self.columns.mT)

    def pull(self, g):
        return torch.bmm(g, self.columns)


@_takes
def gaussian(parameters: int, d: int, groups: int, generator, dtype=torch.float32) -> Dense:
    """Gaussian columns of unit length: d D numbers, and 2 d D multiplications a step.

    Raises:
        ParameterError: more columns than parameters.
    """
    _fits(parameters, d)
    columns = torch.randn(groups, parameters, d, generator=generator, dtype=dtype, device=generator.device)
    return Dense(columns.div_(torch.linalg.vector_norm(columns, dim=1, keepdim=True)))


class Sparse(Projection):
    """Columns with m = floor(sqrt(D)) entries ±1/sqrt(m): density 1/sqrt(D), d sqrt(D) multiplications.

    A column has one entry in each of m strata of neighbouring parameters, so that its length is exactly one.

    Raises:
        ParameterError: more columns than parameters.
    """

    @_takes
    def __init__(self, parameters: int, d: int, groups: int, generator, dtype=torch.float32):
        super().__init__(parameters, d, groups, dtype, generator.device)
        m, device = math.isqrt(parameters), generator.device
        self.entries = m
        edges = torch.arange(m + 1, device=device) * parameters // m
        draw = dict(generator=generator, device=device)
        places = torch.rand(groups, d, m, dtype=torch.float64, **draw)
        rows = edges[:-1] + (places * edges.diff()).long()
        values = (torch.randint(2, (groups, d, m), **draw) * 2 - 1).to(dtype) / math.sqrt(m)
        rows = rows + parameters * torch.arange(groups, device=device).view(-1, 1, 1)
        columns = torch.arange(groups * d, device=device).view(groups, d, 1).expand_as(rows)
        shape = (groups * parameters, groups * d)
        self._down = _compressed(rows.flatten(), columns.flatten(), values.flatten(), shape)
        self._up = _compressed(columns.flatten(), rows.flatten(), values.flatten(), shape[::-1])

    def _times(self, matrix: Tensor, x: Tensor, rows: int) -> Tensor:
        """One block-diagonal product for all groups."""
        tall = x.mT.reshape(-1, x.shape[1])
        return (matrix @ tall).view(self.groups, rows, -1).mT

    def apply(self, x):
        return self._times(self._down, x, self.parameters)

    def pull(self, g):
        return self._times(self._up, g, self.d)


def _compressed(rows: Tensor, columns: Tensor, values: Tensor, shape) -> Tensor:
    """A matrix by compressed rows."""
    order = (rows * shape[1] + columns).argsort()
    starts = torch.cat([rows.new_zeros(1), torch.bincount(rows, minlength=shape[0]).cumsum(0)])
    with warnings.catch_warnings():  # "sparse CSR support is in beta"
        warnings.simplefilter("ignore")
        return torch.sparse_csr_tensor(starts, columns[order], values[order], shape)


@ok.takes(x=ok.tensor("... n", finite=False))
def walsh_hadamard(x: Tensor) -> Tensor:
    """H x along the last axis, unnormalised, by log2(n) stages of sums and differences; a new tensor.

    H is symmetric, has entries ±1, and H H = n.

    Raises:
        ParameterError: a length that is no power of two.
    """
    n = x.shape[-1]
    if n & (n - 1):
        raise ParameterError(f"x must have a power of two as its last size, got {n}.")
    x, h = x.clone(memory_format=torch.contiguous_format), 1
    while h < n:
        a, b = x.view(*x.shape[:-1], n // (2 * h), 2, h).unbind(-2)
        difference = a - b
        a.add_(b)
        b.copy_(difference)
        h *= 2
    return x


class Fastfood(Projection):
    """Stacked blocks H G Π H B of n rows, n the power of two from d on: D log d operations, D numbers.

    B is a diagonal of signs, Π a permutation, G a Gaussian diagonal, H the Hadamard matrix, never written out; then
    each column is scaled to unit length (Le, Sarlos and Smola, ICML 2013, without their diagonal S, which would give
    the rows the lengths of Gaussian ones).

    Raises:
        ParameterError: more columns than parameters.
    """

    @_takes
    def __init__(self, parameters: int, d: int, groups: int, generator, dtype=torch.float32):
        super().__init__(parameters, d, groups, dtype, generator.device)
        n = 1 << (d - 1).bit_length()
        self.block, self.blocks = n, -(-parameters // n)
        shape, draw = (groups, 1, self.blocks, n), dict(generator=generator, device=generator.device)
        self._signs = (torch.randint(2, shape, **draw) * 2 - 1).to(dtype)
        self._order = torch.rand(shape, dtype=torch.float64, **draw).argsort(-1)
        self._back = self._order.argsort(-1)
        self._gauss = torch.randn(shape, dtype=dtype, **draw)
        self._scale = self._lengths().rsqrt_().unsqueeze(1)

    def _lengths(self) -> Tensor:
        """Squared lengths of the columns, ``(groups, d)``: a closed form, but for a last block that is cut off."""
        whole, rest = divmod(self.parameters, self.block)
        found = (self.block * self._gauss[:, 0, :whole].square().sum((1, 2))).unsqueeze(1).repeat(1, self.d)
        for first in range(0, self.d if rest else 0, 64):
            units = torch.eye(self.d, self.block, dtype=self.dtype, device=self.device)[first : first + 64]
            found[:, first : first + 64] += self._forward(units[None, :, None], slice(whole, None))[
                ..., 0, :rest
            ].square().sum(-1)
        return found

    def _forward(self, x: Tensor, blocks=slice(None)) -> Tensor:
        """``(..., k, 1, n)`` to ``(groups, k, blocks, n)``."""
        x = walsh_hadamard(x * self._signs[:, :, blocks])
        x = x.gather(-1, self._order[:, :, blocks].expand_as(x))
        return walsh_hadamard(x.mul_(self._gauss[:, :, blocks]))

    def apply(self, x):
        x = torch.nn.functional.pad(x * self._scale, (0, self.block - self.d)).unsqueeze(2)
        return self._forward(x).flatten(2)[..., : self.parameters]

    def pull(self, g):
        g = torch.nn.functional.pad(g, (0, self.blocks * self.block - self.parameters))
        g = walsh_hadamard(g.unflatten(2, (self.blocks, self.block))).mul_(self._gauss)
        g = walsh_hadamard(g.gather(-1, self._back.expand_as(g))).mul_(self._signs)
        return g.sum(2)[..., : self.d] * self._scale


@ok.takes(ranks=ok.sizes(1), groups=ok.count(), generator=ok.generator, dtype=_dtype)
def outer_products(sizes: Sequence[int], ranks: Sequence[int], groups: int, generator, dtype=torch.float32) -> Dense:
    """Low-rank changes of the layers of an ``MLP``: W_l + U_l X_l V_l^T with X_l of ``ranks[l]`` rows and columns.

    U_l and V_l are fixed and random, with orthonormal columns, and so are the columns of P; biases stay.

    Args:
        sizes: of the network, from inputs to outputs; ``len(ranks) + 1`` numbers.
        ranks: of the layers; d is the sum of their squares.

    Raises:
        ParameterError: sizes and ranks that do not fit.
    """
    ok.sizes(2)("sizes", sizes, {})
    if len(ranks) != len(sizes) - 1:
        raise ParameterError(f"ranks must be {len(sizes) - 1}, one for each layer, got {len(ranks)}.")
    parts = []
    for l, rank in enumerate(ranks):
        least = min(sizes[l : l + 2])
        ok.integer(f"ranks[{l}]", rank, at_least=1, at_most=least)
        draw = dict(generator=generator, dtype=dtype, device=generator.device)
        V, U = (torch.linalg.qr(torch.randn(groups, size, rank, **draw)).Q for size in sizes[l : l + 2])
        outer = torch.einsum("goa,gib->goiab", U, V).reshape(groups, sizes[l] * sizes[l + 1], rank * rank)
        parts.append(torch.cat([outer, outer.new_zeros(groups, sizes[l + 1], rank * rank)], 1))  # no biases
    columns = parts[0].new_zeros(groups, sum(p.shape[1] for p in parts), sum(p.shape[2] for p in parts))
    row = column = 0
    for part in parts:
        columns[:, row : row + part.shape[1], column : column + part.shape[2]] = part
        row, column = row + part.shape[1], column + part.shape[2]
    return Dense(columns)


KINDS = {"dense": gaussian, "sparse": Sparse, "fastfood": Fastfood}


@ok.takes(kind=ok.one_of("direct", *KINDS), parameters=ok.count(), d=ok.count())
def operations(kind: str, parameters: int, d: int) -> int:
    """Multiplications of one P x and one P^T g; for ``"fastfood"``, additions of the transforms, too."""
    _fits(parameters, d)
    if kind in ("direct", "dense"):
        return 0 if kind == "direct" else 2 * parameters * d
    if kind == "sparse":
        return 2 * d * math.isqrt(parameters)
    n = 1 << (d - 1).bit_length()
    rows = -(-parameters // n) * n
    return 2 * (rows * (2 * (n.bit_length() - 1) + 2) + d)


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
        projection=ok.kind(Projection, "a projection of lowdim.subspaces"),
        decay=ok.real(at_least=0),
    )
    def __init__(self, population, projection: Projection, dims=None, *, decay: float = 0.0):
        if projection.parameters != population.size:
            raise ParameterError(
                f"projection must have the {population.size} parameters of a run, got {projection.parameters}."
            )
        if population.runs % projection.groups:
            raise ParameterError(
                f"projection must have a number of groups that divides {population.runs} runs, got {projection.groups}."
            )
        k, flat = population.runs // projection.groups, population.flat
        if projection.dtype != flat.dtype or projection.device.type != flat.device.type:
            raise ParameterError(
                f"projection must be {flat.dtype} on {flat.device}, as the population, got {projection.dtype} on "
                f"{projection.device}."
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


@ok.takes(d=ok.array("points"), performance=ok.array("points ...", finite=False))
def first_crossing(d, performance, threshold):
    """Where curves first reach a threshold, interpolated in log d; NaN where they never do.

    Args:
        d: ``(points,)``, rising.
        performance: ``(points, ...)``.
        threshold: a number, or ``(...)``.

    Returns:
        ``(...)``, float64; the first d where a curve begins above the threshold.
    """
    d, y = torch.as_tensor(d, dtype=torch.float64), torch.as_tensor(performance, dtype=torch.float64)
    if len(d) > 1 and not (d.diff() > 0).all() or d[0] <= 0:
        raise ParameterError(f"d must rise and be above 0, got {brief(d.tolist())}.")
    level = torch.as_tensor(threshold, dtype=torch.float64)
    if not level.isfinite().all() or level.dim() and level.shape != y.shape[1:]:
        raise ParameterError(f"threshold must be one finite number or {tuple(y.shape[1:])}, got {brief(threshold)}.")
    above = y >= level
    at = above.to(torch.int8).argmax(0)
    low = (at - 1).clamp(min=0)
    pick = lambda i: y.gather(0, i.unsqueeze(0))[0]
    share = ((level - pick(low)) / (pick(at) - pick(low))).nan_to_num(0.0)
    share = torch.where(at > 0, share, torch.zeros_like(share))
    found = (d[low].log() + share * (d[at].log() - d[low].log())).exp()
    return torch.where(above.any(0), found, torch.nan)
