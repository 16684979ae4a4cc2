"""Deep linear networks as trainers: what they are fitted to, and gradient descent on their factors.

``MatrixNetwork`` is the general trainer. ``network`` picks the faster of it and ``PackedNetwork``, which puts the runs
on the last axis: for many tiny matrices one elementwise product over all runs beats one matrix product a run.
"""

import copy
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from lowdim import checks as ok
from lowdim.checks import ParameterError

CACHE_BYTES = 3 << 19  # what one block of runs may use: most of a core's second-level cache
PACK_WIDTH, PACK_RUNS = 7, 400  # measured: see benchmarks, where the two layouts cross


@ok.takes(tensor=ok.tensor(finite=False))
def matches(name: str, tensor: Tensor, shape: tuple[int, int, int]) -> None:
    """Check that a tensor is ``(rows, columns)`` or ``(runs, rows, columns)``.

    Raises:
        ParameterError: with both shapes.
    """
    if tuple(tensor.shape) not in (shape, shape[1:]):
        raise ParameterError(f"{name} must be {shape[1:]} or {shape}, to fit the network, got {tuple(tensor.shape)}.")


class Problem:
    """What a network is fitted to: a loss of the end-to-end matrix ``W`` and its gradient in ``W``.

    A problem is immutable. Its tensors are shared by all runs, or have the runs on axis 0; a subclass names the latter
    through ``_map_runs``.
    """

    blocked = True  # whether runs can be treated a few at a time without reading anything large twice

    def gradient(self, product: Tensor, out: Tensor) -> Tensor:
        """The gradient at ``product`` ``(runs, rows, columns)``, written to ``out`` (which may be ``product``)."""
        raise NotImplementedError

    def loss(self, product: Tensor) -> Tensor:
        """``(runs,)``."""
        raise NotImplementedError

    def fits(self, shape: tuple[int, int, int]) -> None:
        """Check that networks with products of this shape ``(runs, rows, columns)`` can be fitted.

        Raises:
            ParameterError: with the sizes that do not fit.
        """

    def bind(self, rate: Tensor) -> Callable[[Tensor], None]:
        """A function that turns ``product`` into ``rate * gradient`` in place; ``rate`` is ``(runs, 1, 1)``."""
        return lambda product: self.gradient(product, out=product).mul_(rate)

    def select(self, runs: Tensor | slice) -> "Problem":
        """The same problem for some of the runs."""
        return self._map_runs(lambda tensor: tensor[runs])

    def _changed(self, **tensors: Tensor) -> "Problem":
        """A shallow copy with some of its tensors exchanged; no check, as the runs left may be none."""
        changed = copy.copy(self)
        for name, tensor in tensors.items():
            setattr(changed, name, tensor)
        return changed

    def _map_runs(self, change: Callable[[Tensor], Tensor]) -> "Problem":
        """A copy of the problem with ``change`` applied to every tensor that has an axis of runs."""
        raise NotImplementedError


class Factorization(Problem):
    """The loss ``1/2 ||W - M||_F^2``, or its mean over the entries.

    Args:
        target: ``(rows, columns)`` or one per run, ``(runs, rows, columns)``.
        mean: divide by ``rows * columns``, as papers on completion do; the step size then means ``eta_eff = eta/(rows
            columns)`` in the thresholds of this module.
    """

    @ok.takes(target=ok.tensor("rows columns", "runs rows columns"), mean=ok.flag)
    def __init__(self, target: Tensor, mean: bool = False):
        self.target, self.mean = target, mean
        self._weight = 1 / (target.shape[-1] * target.shape[-2]) if mean else 1.0

    def fits(self, shape):
        matches("target", self.target, shape)

    def gradient(self, product: Tensor, out: Tensor) -> Tensor:
        torch.sub(product, self.target, out=out)
        return out.mul_(self._weight) if self.mean else out

    def bind(self, rate: Tensor) -> Callable[[Tensor], None]:
        rate = rate * self._weight
        return lambda product: product.sub_(self.target).mul_(rate)

    def loss(self, product: Tensor) -> Tensor:
        return 0.5 * self._weight * (product - self.target).square().sum((-2, -1))

    def surrogate(self) -> Tensor:
        """``A^T A(M)``: here the target itself."""
        return self.target

    def _map_runs(self, change):
        return self._changed(target=change(self.target)) if self.target.dim() == 3 else self


class MatrixNetwork:
    """Gradient descent on the factors: layer ``l`` receives ``(W_L..W_{l+1})^T G (W_{l-1}..W_1)^T``.

    ``G`` is the loss's gradient in the end-to-end matrix. A step costs ``3 (L - 1)`` matrix products. On a CPU the
    runs are treated a few at a time, so that what one block needs stays in the cache; scratch space is one block's.

    Args:
        layers: first to last; layer ``l`` is ``(runs, d_l, d_{l-1})``, changed in place by ``step``.
        problem: what is fitted, such as ``Factorization(target)``.
        eta: one step size, or one per run, ``(runs,)``.
        scale: for each layer, what its step size is multiplied by: a number, or ``(runs,)`` numbers.
        block: runs in a block; 0 chooses from the sizes.

    Raises:
        ParameterError: fewer than two layers, or sizes that do not fit each other.
    """

    run_dim = 0

    @ok.takes(
        layers=ok.tensors("runs out in", at_least=2),
        problem=ok.has("gradient", "fits", "bind"),
        eta=ok.values(at_least=0),
        scale=ok.optional(ok.kind((list, tuple), "a list with a number, or one per run, for each layer")),
        block=ok.count(0),
    )
    def __init__(self, layers: Sequence[Tensor], problem: Problem, eta, scale: Sequence | None = None, block: int = 0):
        for l, (first, then) in enumerate(pairwise(layers), start=1):
            if first.shape[1] != then.shape[2] or len(first) != len(then):
                raise ParameterError(
                    f"layers must be (runs, out, in) and fit each other, but layer {l} {tuple(first.shape)} does not "
                    f"feed layer {l + 1} {tuple(then.shape)}."
                )
        problem.fits((len(layers[0]), layers[-1].shape[1], layers[0].shape[2]))
        scale = [1.0] * len(layers) if scale is None else list(scale)
        if len(scale) != len(layers):
            raise ParameterError(f"scale must have one entry for each of the {len(layers)} layers, got {len(scale)}.")
        for l, factor in enumerate(scale):
            ok.values()(f"scale[{l}]", factor, {})
        self.layers, self.problem = list(layers), problem
        self.eta = self._per_run("eta", eta)
        self.scale = [float(f) if isinstance(f, float | int) else self._per_run("scale", f) for f in scale]
        self.runs = torch.arange(len(layers[0]), device=layers[0].device)
        self._given_block, self._whole = block, None
        self._prepare()

    def _per_run(self, name: str, value) -> Tensor:
        """A number or a vector of one per run as ``(runs, 1, 1)``."""
        first = self.layers[0]
        value = torch.as_tensor(value, dtype=first.dtype, device=first.device).reshape(-1, 1, 1)
        if len(value) not in (1, len(first)):
            raise ParameterError(f"{name} must be one number or one for each of {len(first)} runs, got {len(value)}.")
        return value.expand(len(first), 1, 1).contiguous()

    def _prepare(self) -> None:
        """Cut the runs into blocks and allocate the scratch space of one block."""
        first, runs = self.layers[0], len(self.layers[0])
        columns, heights = first.shape[2], [w.shape[1] for w in self.layers]
        numbers = sum(w[0].numel() for w in self.layers) + 2 * columns * sum(heights)
        whole = first.is_cuda or not self.problem.blocked
        block = self._given_block or (runs if whole else CACHE_BYTES // (numbers * first.element_size()))
        block = max(1, min(block, runs))
        self._slices = [slice(a, min(a + block, runs)) for a in range(0, runs, block)]
        one = len(self._slices) == 1
        self._pulls = [(self.problem if one else self.problem.select(s)).bind(self.eta[s]) for s in self._slices]
        self._prefix = [first.new_empty(block, h, columns) for h in heights[1:]]
        self._pull = [first.new_empty(block, h, columns) for h in heights[:-1]]
        below = [first[:block], first[:block], *self._prefix]  # what layer l receives; the first entry is never used
        self._scaled = [None if isinstance(f, float) else torch.empty_like(p)
                        for f, p in zip(self.scale, below, strict=False)]  # fmt: skip

    @property
    def state(self) -> list[Tensor]:
        return self.layers

    def product(self) -> Tensor:
        """The end-to-end matrices ``(runs, rows, columns)``."""
        end = self.layers[0]
        for layer in self.layers[1:]:
            end = layer @ end
        return end

    def loss(self) -> Tensor:
        """The loss of each run, ``(runs,)``."""
        return self.problem.loss(self.product())

    def step(self) -> None:
        """One step for all layers and runs, in place."""
        if len(self._slices) == 1:
            return self._step(self.layers, self.scale, self._pulls[0], len(self.eta))
        for s, pull in zip(self._slices, self._pulls, strict=True):
            scale = [f if isinstance(f, float) else f[s] for f in self.scale]
            self._step([w[s] for w in self.layers], scale, pull, s.stop - s.start)

    def _step(self, layers: list[Tensor], scale: list, to_gradient: Callable[[Tensor], None], runs: int) -> None:
        """One step of one block of runs."""
        prefix, pull = [layers[0]] + [p[:runs] for p in self._prefix], [p[:runs] for p in self._pull]
        for l in range(1, len(layers)):
            torch.bmm(layers[l], prefix[l - 1], out=prefix[l])  # W_l ... W_1
        to_gradient(prefix[-1])  # the last prefix becomes eta G
        pull.append(prefix[-1])
        for l in range(len(layers) - 1, 0, -1):
            torch.bmm(layers[l].mT, pull[l], out=pull[l - 1])  # (W_L ... W_l)^T eta G
            self._move(layers[l], pull[l], prefix[l - 1], scale[l], l)
        self._move_first(layers[0], pull[0], scale[0])

    @staticmethod
    def _move_first(layer: Tensor, pull: Tensor, scale) -> None:
        """``W_1 -= scale * pull``."""
        if isinstance(scale, float):
            layer.sub_(pull, alpha=scale)
        else:
            layer.addcmul_(pull, scale, value=-1)

    def _move(self, layer: Tensor, pull: Tensor, prefix: Tensor, scale, l: int) -> None:
        """``W_l -= scale * pull prefix^T``; a scale of its own for every run goes on the smaller factor."""
        if not isinstance(scale, float):
            prefix, scale = torch.mul(prefix, scale, out=self._scaled[l][: len(prefix)]), 1.0
        if layer.is_contiguous():
            layer.baddbmm_(pull, prefix.mT, alpha=-scale)
        else:  # stored by columns: a tall layer, whose transposed product is the faster one
            layer.mT.baddbmm_(prefix, pull.mT, alpha=-scale)

    def narrow(self, runs: Tensor | None) -> list[Tensor]:
        """Go on with copies of these of the present runs, or return to all of them (``None``); the new state.

        ``self.runs`` keeps the original numbers of the runs that are left. The tensors passed in at the start stay as
        they were when their runs were dropped: ``descend`` writes the final values there.
        """
        if self._whole is None:
            self._whole = (self.layers, self.problem, self.eta, self.scale, self.runs)
        if runs is None:
            self.layers, self.problem, self.eta, self.scale, self.runs = self._whole
            self._whole = None
        else:
            self.layers = [_kept(w, runs) for w in self.layers]
            self.problem, self.eta, self.runs = self.problem.select(runs), self.eta[runs], self.runs[runs]
            self.scale = [f if isinstance(f, float) else f[runs] for f in self.scale]
        if len(self.runs):
            self._prepare()
        return self.layers


class PackedNetwork(MatrixNetwork):
    """The same descent for many tiny matrices, stored with the runs last.

    A product of ``n x n`` matrices is then ``n`` elementwise multiply-adds over all runs, and transposes cost nothing.
    ``layers`` are copied; ``self.layers`` are views ``(runs, out, in)`` of the packed copies.
    """

    def _prepare(self) -> None:
        self._packed = [w.permute(1, 2, 0).contiguous() for w in self.layers]
        self.layers = [w.permute(2, 0, 1) for w in self._packed]
        self.problem = self.problem._map_runs(_runs_last)
        self._prefix = [w.new_empty(w.shape[0], self._packed[0].shape[1], w.shape[2]) for w in self._packed[1:]]
        self._pull = [w.new_empty(w.shape[0], self._packed[0].shape[1], w.shape[2]) for w in self._packed[:-1]]
        self._scaled = [torch.empty_like(p) for p in (self._packed[0], self._packed[0], *self._prefix[:-1])]
        self._to_gradient = self.problem.bind(self.eta)

    def step(self) -> None:
        layers, prefix, pull = self._packed, [self._packed[0], *self._prefix], [*self._pull, self._prefix[-1]]
        for l in range(1, len(layers)):
            _multiply(layers[l], prefix[l - 1], prefix[l])
        self._to_gradient(prefix[-1].permute(2, 0, 1))
        for l in range(len(layers) - 1, 0, -1):
            _multiply(layers[l].transpose(0, 1), pull[l], pull[l - 1])
            before = self._times(l, prefix[l - 1], self._scaled[l])
            for k in range(before.shape[1]):
                layers[l].addcmul_(pull[l][:, k, None], before[None, :, k], value=-1)
        layers[0].sub_(self._times(0, pull[0], self._scaled[0]))

    def _times(self, l: int, tensor: Tensor, out: Tensor) -> Tensor:
        """The tensor times the scale of layer ``l``."""
        scale = self.scale[l]
        if isinstance(scale, float):
            return tensor if scale == 1.0 else torch.mul(tensor, scale, out=out)
        return torch.mul(tensor, scale.flatten(), out=out)


def _kept(layer: Tensor, runs: Tensor) -> Tensor:
    """Copies of some runs, stored as they were: by rows or by columns."""
    return layer.index_select(0, runs) if layer.is_contiguous() else layer.mT.index_select(0, runs).mT


def _runs_last(tensor: Tensor) -> Tensor:
    """The same values and shape ``(runs, ...)``, stored with the runs last."""
    return tensor.movedim(0, -1).contiguous().movedim(-1, 0)


def _multiply(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """Matrix products ``(n, m, runs)`` of ``(n, k, runs)`` and ``(k, m, runs)``."""
    torch.mul(a[:, 0, None], b[None, 0], out=out)
    for k in range(1, len(b)):
        out.addcmul_(a[:, k, None], b[None, k])
    return out


@ok.takes(
    layers=ok.tensors("runs out in", at_least=2), problem=ok.has("gradient", "fits", "bind"), eta=ok.values(at_least=0)
)
def network(layers: Sequence[Tensor], problem: Problem, eta, scale: Sequence | None = None) -> MatrixNetwork:
    """The trainer that is faster for these sizes, with one interface. Use its ``layers``, not the tensors passed in."""
    runs, widest = len(layers[0]), max(max(w.shape[1:]) for w in layers)
    packed = widest <= PACK_WIDTH and runs >= PACK_RUNS and problem.blocked
    return (PackedNetwork if packed else MatrixNetwork)(layers, problem, eta, scale)
