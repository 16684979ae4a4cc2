"""Structured linear layers: BLAST, low rank, block diagonal, block low rank, in place of ``torch.nn.Linear``.

A weight ``(out, in)`` is cut into ``blocks x blocks`` blocks of ``p = out / blocks`` rows and ``q = in / blocks``
columns. BLAST (Lee et al. 2024, NeurIPS) writes block ``(i, j)`` as ``U_i diag(s_ij) V_j^T`` with inner size ``rank``.
Every layer knows its exact costs, can be fitted to a given weight, and can be turned back into one.
``structured_models`` replaces the layers of a whole model.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowdim import checks as ok
from lowdim.checks import ParameterError, integer, number
from lowdim.structured_factorization import (
    BlastFactors,
    block_low_rank,
    check_blocks,
    check_matrices,
    factorize,
    low_rank,
)

FEW_TOKENS = 24  # measured: up to this many the products with tokens as rows win, beyond it with tokens as columns


class Counts(NamedTuple):
    """Costs of one layer without its bias; multiplications are those of one token."""

    parameters: int
    multiplications: int
    dense: int  # both, of a dense layer of the same size

    @property
    def ratio(self) -> float:
        """Multiplications relative to dense."""
        return self.multiplications / self.dense


class StructuredLinear(nn.Module):
    """What the structured layers share. Input ``(..., in_features)``, output ``(..., out_features)``.

    Args:
        in_features, out_features, bias, device, dtype: as in ``torch.nn.Linear``.
        rank: inner size; for block low rank that of each block; block diagonal makes no use of it.
        blocks: blocks along each side.
        std: standard deviation of the entries of a dense layer whose start is to be matched; by default that of
            ``torch.nn.Linear``, ``1 / sqrt(3 in_features)``.
        generator: source of the initial values; by default PyTorch's own, as for ``torch.nn.Linear``.

    Raises:
        ParameterError: a size that is not positive, blocks that do not divide both sizes, a device that is not there.
    """

    kind = ""

    @ok.takes(
        bias=ok.flag, std=ok.optional(ok.real(at_least=0)), generator=ok.optional(ok.generator),
        device=ok.optional(ok.device), dtype=ok.optional(ok.floating),
    )  # fmt: skip
    def __init__(
        self, in_features: int, out_features: int, rank: int = 0, blocks: int = 1, bias: bool = True, *, std=None,
        generator=None, device=None, dtype=None,
    ):  # fmt: skip
        super().__init__()
        self.in_features = integer("in_features", in_features, at_least=1)
        self.out_features = integer("out_features", out_features, at_least=1)
        self.blocks = check_blocks(self.out_features, self.in_features, blocks)
        self.rank = integer("rank", rank, at_least=0 if self.kind == "block-diagonal" else 1)
        for name, shape in self.shapes(self.out_features, self.in_features, self.rank, self.blocks).items():
            setattr(self, name, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        self.bias = nn.Parameter(torch.empty(self.out_features, device=device, dtype=dtype)) if bias else None
        self.reset_parameters(std, generator)

    @staticmethod
    def shapes(out: int, inp: int, rank: int, blocks: int) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the factors."""
        raise NotImplementedError

    @classmethod
    def count(cls, out: int, inp: int, rank: int, blocks: int) -> Counts:
        """Exact costs of a layer of these sizes: each stored number is used in one multiplication a token."""
        numbers = sum(map(math.prod, cls.shapes(out, inp, rank, blocks).values()))
        return Counts(numbers, numbers, out * inp)

    @classmethod
    def rank_for(cls, out: int, inp: int, blocks: int, budget: float) -> int:
        """The largest rank that costs at most ``budget`` times the dense layer.

        Raises:
            ParameterError: not even rank 1 fits; the message says what it costs.
        """
        number("budget", budget, above=0, at_most=1)
        one = cls.count(out, inp, 1, check_blocks(out, inp, blocks))
        if (rank := int(budget * one.dense / one.parameters + 1e-9)) < 1:
            raise ParameterError(f"budget must be >= {one.ratio:.4g} for a {cls.kind} layer {out} x {inp} with "
                                 f"{blocks} x {blocks} blocks (rank 1), got {budget!r}.")  # fmt: skip
        return rank

    def counts(self) -> Counts:
        """Exact costs of this layer."""
        return self.count(self.out_features, self.in_features, self.rank, self.blocks)

    def reset_parameters(self, std: float | None = None, generator=None) -> None:
        """Factors such that the dense matrix has the variance of a dense start; the bias as in ``torch.nn.Linear``.

        On the meta device there is nothing to draw (and drawing there would import a compiler, which takes seconds).
        """
        bound = 1 / math.sqrt(self.in_features)
        std = bound / math.sqrt(3) if std is None else number("std", std, at_least=0)
        if next(self.parameters()).is_meta:
            return
        with torch.no_grad():
            self._start(std, generator)
            if self.bias is not None:
                place = None if generator is None else generator.device
                self.bias.copy_(torch.empty_like(self.bias, device=place).uniform_(-bound, bound, generator=generator))

    @classmethod
    def from_dense(
        cls, weight: Tensor | nn.Linear, bias: Tensor | None = None, *, rank=None, budget=None, blocks=1, **fit
    ) -> "StructuredLinear":  # fmt: skip
        """A layer fitted to a weight ``(out, in)`` or to a whole ``nn.Linear``.

        Args:
            rank, budget: one of the two; ``budget`` is the share of the dense layer's parameters.
            fit: further arguments of ``fit``: for BLAST those of ``structured_factorization.factorize``.

        Raises:
            ParameterError: both or neither of rank and budget, a weight that is no matrix or not finite, bad blocks.
        """
        if isinstance(weight, nn.Linear):
            weight, bias = weight.weight, weight.bias
        weight = check_matrices("weight", weight.detach() if torch.is_tensor(weight) else weight)
        if weight.dim() != 2:
            raise ParameterError(f"weight must be one matrix (out, in), got {tuple(weight.shape)}.")
        rank, blocks = cls.size(*weight.shape, rank, budget, blocks)
        (factors,) = cls.fit(weight[None], rank, blocks, **fit)
        return cls.from_factors(weight, bias, factors, rank, blocks)

    @classmethod
    def size(cls, out: int, inp: int, rank, budget, blocks) -> tuple[int, int]:
        """Rank and number of blocks from a rank or a budget."""
        if (rank is None) == (budget is None):
            raise ParameterError(f"give either rank or budget, got rank={rank!r} and budget={budget!r}.")
        blocks = check_blocks(out, inp, blocks)
        if rank is None:
            return cls.rank_for(out, inp, blocks, budget), blocks
        return integer("rank", rank, at_least=1), blocks

    @classmethod
    def from_factors(cls, weight: Tensor, bias: Tensor | None, factors: dict, rank: int, blocks: int):
        """A layer like ``weight`` with these factors."""
        made = dict(rank=rank, blocks=blocks, bias=bias is not None, device="meta", dtype=weight.dtype)
        layer = cls(weight.shape[1], weight.shape[0], **made).to_empty(device=weight.device)
        with torch.no_grad():
            for name, value in factors.items():
                getattr(layer, name).copy_(value)
            if bias is not None:
                layer.bias.copy_(bias)
        return layer

    def to_dense(self) -> Tensor:
        """The weight ``(out, in)``, differentiable in the factors."""
        raise NotImplementedError

    def to_linear(self) -> nn.Linear:
        """An ordinary layer with the same weight and bias."""
        weight = self.to_dense().detach()
        made = nn.Linear(self.in_features, self.out_features, self.bias is not None, weight.device, weight.dtype)
        with torch.no_grad():
            made.weight.copy_(weight)
            if self.bias is not None:
                made.bias.copy_(self.bias)
        return made

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.in_features:
            raise ParameterError(f"the last axis of the input must be {self.in_features}, got {tuple(x.shape)}.")
        y = self._product(x.reshape(-1, self.in_features)).reshape(*x.shape[:-1], self.out_features)
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        sizes = f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        return f"{sizes}, rank={self.rank}, blocks={self.blocks}, cost={self.counts().ratio:.3f}"


def _normal(parameter: Tensor, std: float, generator) -> None:
    """Normal values, drawn where the generator is: the same on every device."""
    place = None if generator is None else generator.device
    parameter.copy_(torch.empty_like(parameter, device=place).normal_(0, std, generator=generator))


class LowRankLinear(StructuredLinear):
    """``U V^T`` with ``rank`` columns."""

    kind = "low-rank"

    @staticmethod
    def shapes(out, inp, rank, blocks):
        return {"left": (out, rank), "right": (rank, inp)}

    @staticmethod
    def fit(weights: Tensor, rank: int, blocks: int) -> list[dict]:
        """The best approximations of ``(runs, out, in)``: truncated singular value decompositions."""
        left, right = low_rank(weights, rank)
        return [{"left": u, "right": v} for u, v in zip(left, right, strict=True)]

    def _start(self, std, generator):
        for factor in (self.left, self.right):
            _normal(factor, math.sqrt(std) / self.rank**0.25, generator)

    def to_dense(self):
        return self.left @ self.right

    def _product(self, x):
        return F.linear(F.linear(x, self.right), self.left)


class BlockDiagonalLinear(StructuredLinear):
    """``blocks`` dense blocks on the diagonal."""

    kind = "block-diagonal"

    @staticmethod
    def shapes(out, inp, rank, blocks):
        return {"diagonal": (blocks, out // blocks, inp // blocks)}

    @classmethod
    def size(cls, out, inp, rank, budget, blocks):
        """A budget means the fewest blocks that keep to it; a rank means nothing here."""
        if budget is None:
            return 0, check_blocks(out, inp, blocks)
        number("budget", budget, above=0, at_most=1)
        common = math.gcd(out, inp)
        fine = [k for k in range(1, common + 1) if common % k == 0 and 1 / k <= budget + 1e-9]
        if not fine:
            raise ParameterError(
                f"budget must be >= {1 / common:.4g} for a block-diagonal layer {out} x {inp}, got {budget!r}."
            )
        return 0, fine[0]

    @staticmethod
    def fit(weights: Tensor, rank: int, blocks: int) -> list[dict]:
        """The diagonal blocks themselves."""
        cut = weights.unflatten(-2, (blocks, -1)).unflatten(-1, (blocks, -1)).diagonal(dim1=-4, dim2=-2)
        return [{"diagonal": one} for one in cut.permute(0, 3, 1, 2)]

    def _start(self, std, generator):
        _normal(self.diagonal, std * math.sqrt(self.blocks), generator)  # the same norm on fewer entries

    def to_dense(self):
        return torch.block_diag(*self.diagonal)

    def _product(self, x):
        return (x.unflatten(-1, (self.blocks, -1)).transpose(0, 1) @ self.diagonal.mT).transpose(0, 1).flatten(1)


class BlockLowRankLinear(StructuredLinear):
    """Every block has its own factorization of rank ``rank``: after a permutation, Monarch's family."""

    kind = "block-low-rank"

    @staticmethod
    def shapes(out, inp, rank, blocks):
        # the rank columns for the other side's block k are columns k rank to (k + 1) rank
        return {"left": (blocks, out // blocks, blocks * rank), "right": (blocks, inp // blocks, blocks * rank)}

    @staticmethod
    def fit(weights: Tensor, rank: int, blocks: int) -> list[dict]:
        """The best approximation of every block."""
        left, right = block_low_rank(weights, blocks, rank)
        return [{"left": u, "right": v} for u, v in zip(left, right, strict=True)]

    def _start(self, std, generator):
        for factor in (self.left, self.right):
            _normal(factor, math.sqrt(std) / self.rank**0.25, generator)

    def to_dense(self):
        left, right = (f.unflatten(-1, (self.blocks, self.rank)) for f in (self.left, self.right))
        return torch.einsum("ipjr,jqir->ipjq", left, right).reshape(self.out_features, self.in_features)

    def _product(self, x):
        z = x.unflatten(-1, (self.blocks, -1)).transpose(0, 1) @ self.right  # (j, tokens, i r)
        z = z.unflatten(-1, (self.blocks, self.rank)).permute(2, 1, 0, 3).flatten(2)  # (i, tokens, j r)
        return (z @ self.left.mT).transpose(0, 1).flatten(1)


class BlastLinear(StructuredLinear):
    """Blocks ``U_i diag(s_ij) V_j^T``: ``left (b, p, r)``, ``right (b, q, r)``, ``gains (b, b, r)``.

    ``product`` chooses how tokens are multiplied: ``"few"`` (tokens as rows; the coupling sum goes a few rows of blocks
    at a time, in float32 or better), ``"many"`` (tokens as columns, no copies between the three batched products),
    ``"dense"`` (form the weight first, as the authors do in training) or ``"auto"``, which takes one of the first two
    by the number of tokens. None makes a tensor of blocks x blocks x tokens x rank numbers for more than one token.
    """

    kind, product = "blast", "auto"

    @staticmethod
    def shapes(out, inp, rank, blocks):
        return {
            "left": (blocks, out // blocks, rank),
            "right": (blocks, inp // blocks, rank),
            "gains": (blocks, blocks, rank),
        }

    @staticmethod
    def fit(weights: Tensor, rank: int, blocks: int, **options) -> list[dict]:
        """Preconditioned gradient descent on all weights ``(runs, out, in)`` at once; see ``factorize``."""
        factors, _ = factorize(weights, blocks, rank, **options)
        return [{"left": u, "right": v, "gains": s} for u, v, s in zip(*factors, strict=True)]

    def _start(self, std, generator):
        # Var(A_ij) = r sigma^4 E[s^2], with standard normal gains
        _normal(self.left, math.sqrt(std) / self.rank**0.25, generator)
        _normal(self.right, math.sqrt(std) / self.rank**0.25, generator)
        _normal(self.gains, 1.0, generator)

    def factors(self) -> BlastFactors:
        """The factors as the fitting functions use them."""
        return BlastFactors(self.left, self.right, self.gains)

    def to_dense(self):
        return self.factors().dense()

    def _product(self, x):
        how = self.product if self.product != "auto" else ("few" if len(x) <= FEW_TOKENS else "many")
        return {"few": self._few, "many": self._many, "dense": self._formed}[how](x)

    def _few(self, x):  # few calls: with one token each costs as much as a hundredth of the time
        z = torch.bmm(x.unflatten(-1, (self.blocks, -1)).transpose(0, 1), self.right)  # z_j = V_j^T x_j, (j, tokens, r)
        wide = z.to(torch.promote_types(z.dtype, torch.float32))
        if len(x) == 1:
            w = (self.gains * wide.transpose(0, 1)).sum(1).unsqueeze(1)  # w_i = sum_j s_ij o z_j, (i, tokens, r)
        else:
            some = self.gains.unsqueeze(2).split(max(1, self.blocks // (2 * len(x))))  # rows of blocks
            w = torch.cat([(gains * wide).sum(1) for gains in some])
        return torch.bmm(w.to(z.dtype), self.left.mT).transpose(0, 1).flatten(1)  # y_i = U_i w_i

    def _many(self, x):
        z = self.right.mT @ x.unflatten(-1, (self.blocks, -1)).permute(1, 2, 0)  # (j, r, tokens)
        w = self.gains.permute(2, 0, 1) @ z.transpose(0, 1)  # one small product for each of the r components
        return (self.left @ w.transpose(0, 1)).permute(2, 0, 1).flatten(1)  # (i, p, tokens) -> (tokens, i p)

    def _formed(self, x):
        return F.linear(x, self.to_dense())


KINDS = {layer.kind: layer for layer in (BlastLinear, LowRankLinear, BlockLowRankLinear, BlockDiagonalLinear)}
