"""Random matrices from few coordinates to many parameters, batched, with exact adjoints.

A projection is ``groups`` independent matrices P, ``(parameters, d)``, with columns of unit length over the whole
parameter vector (Li et al., ICLR 2018): Gaussian, sparse, or Fastfood, and low-rank changes of layers as a structured
rival. ``apply`` is P x and ``pull`` its adjoint. All are drawn from a generator, in float32 or float64, on its device.
"""

import math
import warnings
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from lowdim import checks as ok
from lowdim.checks import ParameterError, brief


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
    """Given columns, ``(groups, parameters, d)``; they are used as they are.

    Raises:
        ParameterError: more columns than parameters.
    """

    @ok.takes(columns=ok.tensor("groups parameters d", finite=True))
    def __init__(self, columns: Tensor):
        if columns.shape[2] > columns.shape[1]:
            raise ParameterError(
                f"columns must be at most as many as the {columns.shape[1]} parameters, got {tuple(columns.shape)}."
            )
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
        short = max(len(rows), *shape) < 2**31  # as the products want them: else they convert at every call
        return torch.sparse_csr_tensor(
            *((t.int() if short else t) for t in (starts, columns[order])), values[order], shape
        )


@ok.takes(x=ok.tensor("... n", finite=False))
def walsh_hadamard(x: Tensor) -> Tensor:
    """H x along the last axis, unnormalised, in stages of at most four of its log2(n) levels; a new tensor.

    H is symmetric, has entries ±1, and H H = n. A stage is a product with a matrix of at most 16 rows, which processors
    do faster than four passes of sums and differences; H itself is never written out.

    Raises:
        ParameterError: a length that is no power of two.
    """
    n, shape, h = x.shape[-1], x.shape, 1
    if n & (n - 1):
        raise ParameterError(f"x must have a power of two as its last size, got {tuple(shape)}.")
    if n == 1:
        return x.clone()
    while h < n:
        r = min(16, n // h)
        signs = _hadamard(r, x.dtype, x.device)
        x = x.reshape(-1, r) @ signs if h == 1 else signs @ x.view(-1, r, h)
        h *= r
    return x.view(shape)


@lru_cache(maxsize=32)
def _hadamard(n: int, dtype, device) -> Tensor:
    """The matrix of one stage, at most 16 rows."""
    found = torch.ones(1, 1, dtype=dtype, device=device)
    while len(found) < n:
        found = torch.cat([torch.cat([found, found], 1), torch.cat([found, -found], 1)])
    return found


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
            found[:, first : first + 64] += (
                self._forward(units[None, :, None], slice(whole, None))[..., 0, :rest].square().sum(-1)
            )
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


class OuterProducts(Projection):
    """Low-rank changes of the layers of an ``MLP``: W_l + U_l X_l V_l^T, X_l of ``rank`` rows and columns; no biases.

    U_l and V_l are fixed and random, with orthonormal columns, so that the columns of P are orthonormal. They are
    ordered so that for every r the first ``layers r^2`` are those of rank r. P is never written out.

    Args:
        sizes: of the network, from inputs to outputs.
        rank: at most the smallest size; d is ``layers rank^2``.

    Raises:
        ParameterError: a rank larger than a size.
    """

    @ok.takes(sizes=ok.sizes(2), rank=ok.count(), groups=ok.count(), generator=ok.generator, dtype=_dtype)
    def __init__(self, sizes: Sequence[int], rank: int, groups: int, generator, dtype=torch.float32):
        ok.integer("rank", rank, at_least=1, at_most=min(sizes))
        self.sizes, self.rank, layers = list(sizes), rank, len(sizes) - 1
        count = sum(n * (m + 1) for m, n in pairwise(sizes))
        super().__init__(count, layers * rank**2, groups, dtype, generator.device)
        draw = dict(generator=generator, dtype=dtype, device=generator.device)
        frames = lambda size: torch.linalg.qr(torch.randn(groups, 1, size, rank, **draw)).Q
        self._right, self._left = [frames(m) for m in sizes[:-1]], [frames(n) for n in sizes[1:]]
        place = torch.arange(rank, device=generator.device)
        shell = torch.maximum(place.unsqueeze(1), place).repeat(layers, 1, 1).flatten()
        self._order = shell.argsort(stable=True)  # of a coordinate: where its entry of X lies
        self._rank_of = self._order.argsort()

    def apply(self, x):
        blocks, parts = x[..., self._rank_of].split(self.rank**2, -1), []
        for block, U, V in zip(blocks, self._left, self._right, strict=True):
            weight = U @ block.unflatten(-1, (self.rank, self.rank)) @ V.mT
            parts += [weight.flatten(2), weight.new_zeros(*weight.shape[:2], weight.shape[2])]
        return torch.cat(parts, -1)

    def pull(self, g):
        parts = g.split([c for m, n in pairwise(self.sizes) for c in (m * n, n)], -1)[::2]
        blocks = []
        for part, U, V in zip(parts, self._left, self._right, strict=True):
            blocks.append((U.mT @ part.unflatten(-1, (U.shape[2], V.shape[2])) @ V).flatten(2))
        return torch.cat(blocks, -1)[..., self._order]


KINDS = {"dense": gaussian, "sparse": Sparse, "fastfood": Fastfood}


@ok.takes(kind=ok.one_of("direct", *KINDS), parameters=ok.count(), d=ok.count())
def operations(kind: str, parameters: int, d: int) -> int:
    """Multiplications of one P x and one P^T g; for ``"fastfood"``, additions of two-way transforms, too."""
    _fits(parameters, d)
    if kind in ("direct", "dense"):
        return 0 if kind == "direct" else 2 * parameters * d
    if kind == "sparse":
        return 2 * d * math.isqrt(parameters)
    n = 1 << (d - 1).bit_length()
    rows = -(-parameters // n) * n
    return 2 * (rows * (2 * (n.bit_length() - 1) + 2) + d)
