"""Diagonal linear networks and two-layer ReLU networks under SGD: many runs in lock-step, closed-form gradients.

Both models have one output and the loss ``1/(2n) sum_i (f(x_i) - y_i)^2``. Runs (step sizes, seeds, batch sizes) share
the *order* in which samples are seen; their data may differ, in groups. So a step needs no gather: one row of each
group's data serves all of its runs. Nothing of the size of the state is allocated in a step, and nothing is read back
from the device.

On a CPU the large operations are PyTorch's; inner products and arithmetic on one number a run go to NumPy through
views of the same memory, since they are short and its calls cost a quarter. Elsewhere all of it is PyTorch.

The first layer of a ReLU network needs no update after every step: its outputs for the next samples follow from those
before the steps and the inner products of the samples. So steps come in blocks, with two large products for each.

The *Gram matrix* of a run is ``K = J J^T / n`` with the gradients ``g_i`` of ``f(x_i)`` as rows of ``J``. Its non-zero
eigenvalues are those of ``G = (1/n) sum_i g_i g_i^T``, which is the Hessian of the loss where all residuals vanish
(Wu and Su, 2023).
"""

import math

import numpy as np
import torch
from torch import Tensor

from lowdim import checks as ok
from lowdim.checks import ParameterError, brief

BLOCK = 32  # steps on one sample each at most between two updates of a first layer
DATA = dict(inputs=ok.tensor("n d", "groups n d"), targets=ok.tensor("n", "groups n"), eta=ok.values(at_least=0))


def _order(name: str, value, known: dict) -> None:
    if value is None:
        return
    ok.tensor("steps batch", floating=False)(name, value, {})
    if value.dtype != torch.long or not 0 <= int(value.min()) <= int(value.max()) < known["n"]:
        low, high = value.min().item(), value.max().item()
        raise ParameterError(
            f"{name} must hold whole numbers from 0 to {known['n'] - 1}, got {brief(value)}, {low} to {high}."
        )


OPTIONS = dict(order=_order, batch=ok.optional(ok.counts(1)), clip=ok.optional(ok.real(above=0)))


@ok.takes(n=ok.count(1), steps=ok.count(1), batch=ok.count(1), generator=ok.generator)
def sample_order(n: int, steps: int, batch: int, generator: torch.Generator) -> Tensor:
    """Which samples each step sees, drawn with replacement, ``(steps, batch)``.

    Raises:
        ParameterError: a batch larger than the data.
    """
    ok.integer("batch", batch, at_least=1, at_most=n)
    return torch.randint(n, (steps, batch), generator=generator, device=generator.device)


class _Network:
    """What both models share: data, the order of samples, step sizes, clipping, and runs that leave."""

    run_dim = 0
    _names: tuple[str, ...] = ()  # tensors with the runs on axis 0 that a step changes

    def _setup(self, inputs, targets, eta, order, batch, clip) -> None:
        first = getattr(self, self._names[0])
        runs, options = len(first), dict(dtype=first.dtype, device=first.device)
        self.inputs = inputs.reshape(-1, *inputs.shape[-2:]).to(**options)
        self.targets = targets.reshape(-1, targets.shape[-1]).to(**options)
        groups = len(self.inputs)
        if runs % groups or len(self.targets) != groups:
            raise ParameterError(
                f"inputs must have a number of groups that divides {runs} runs, as targets have, "
                f"got {groups} and {len(self.targets)} groups."
            )
        ok.one_or_each("eta", eta, runs)
        self.eta = torch.as_tensor(eta, **options).reshape(-1).expand(runs).clone()
        self.order, self.clip = order, clip
        self.weights = None  # (runs, samples of a batch): 1 / batch for those that a run uses
        if order is None or order.shape[1] > 1:
            most = self.inputs.shape[1] if order is None else order.shape[1]
            sizes = torch.as_tensor(most if batch is None else batch, device=first.device).reshape(-1)
            ok.one_or_each("batch", sizes, runs)
            ok.integer("batch (its largest)", int(sizes.max()), at_least=1, at_most=most)
            used = torch.arange(most, device=first.device) < sizes.unsqueeze(1)
            self.weights = (used.to(**options) / sizes.unsqueeze(1)).expand(runs, most).contiguous()
        elif batch is not None and int(torch.as_tensor(batch).max()) > 1:
            raise ParameterError(f"batch must be 1, as many as order has columns, got {brief(batch)}.")
        self.clock = torch.zeros(
            runs, dtype=torch.float64, device=first.device
        )  # steps taken; a run out of bounds: NaN
        self._whole = None
        self._prepare(native=first.device.type == "cpu")

    def _prepare(self, native: bool) -> None:
        """Buffers for the present runs. ``native``: short arithmetic by NumPy, on views of them."""
        runs, groups = len(self.clock), len(self.inputs)
        self._native, self._ops = native, np if native else torch
        view = (lambda tensor: tensor.numpy()) if native else (lambda tensor: tensor)
        gap, square, size, change = (torch.empty_like(self.eta) for _ in range(4))
        self._c = change
        self._gap, self._square, self._size, self._change = map(view, (gap, square, size, change))
        self._limit = (self.clip or 1.0) / self._norm  # of |gap| sqrt(square), which is the norm over _norm
        self._limits = view(torch.full_like(self.eta, self._limit))
        self._rate = view(-self.eta * (self._limit if self.clip else 1.0))
        self._now = view(self.clock)
        self._lead = 0
        n = self.inputs.shape[1]
        each = self.targets.repeat_interleave(runs // groups, 0).mT.contiguous()  # (n, runs)
        if self.order is None:
            self._x, self._y = self.inputs, self.targets.unsqueeze(1)
        elif self.weights is not None:
            batch = self.order.shape[1]
            self._x = self.inputs.new_empty(groups, batch, self.inputs.shape[2])
            self._y = self.inputs.new_empty(groups, 1, batch)
        self._each, self._n = each, n

    def _dot(self, first, second, out) -> None:
        """Inner products of rows, ``(runs, k)`` each."""
        if not self._native:
            torch.linalg.vecdot(first, second, out=out)
        elif hasattr(np, "vecdot"):
            np.vecdot(first, second, out=out)
        else:
            np.einsum("ij,ij->i", first, second, out=out)

    def _scaled(self) -> None:
        """``change = -eta gap min(1, clip / norm)``, where the norm of the gradient is ``_norm |gap| sqrt(square)``."""
        ops, size = self._ops, self._size
        if self.clip:
            ops.multiply(self._gap, self._gap, out=size)
            ops.multiply(size, self._square, out=size)
            ops.sqrt(size, out=size)
            ops.maximum(size, self._limits, out=size)
            ops.divide(self._gap, size, out=self._gap)
        ops.multiply(self._gap, self._rate, out=self._change)

    def _time(self):
        """The number of steps taken: a number on a CPU, a tensor elsewhere."""
        if not self._native:
            return self.clock.nan_to_num(0.0).amax().long().reshape(1) % len(self.order)
        now = self._now[self._lead]
        if now != now:  # this run is out of bounds: ask one that is not
            alive = np.flatnonzero(np.isfinite(self._now))
            self._lead = int(alive[0]) if alive.size else self._lead
            now = self._now[self._lead] if alive.size else 0.0
        return int(now) % len(self.order)

    def step(self) -> None:
        """One step of every run, in place."""
        self._walk(1)

    @ok.takes(count=ok.count(1))
    def walk(self, count: int) -> None:
        """``count`` steps of every run, in place; many at once are faster than one after another."""
        self._walk(count)

    def _walk(self, count: int) -> None:
        size = min(count, BLOCK if self.weights is None and self._native else 1)
        with np.errstate(all="ignore"):  # a run may diverge: descend finds it
            while count:
                seen = None
                if self.order is not None:
                    t = self._time()
                    seen = self.order[t : t + min(size, count)] if self._native else self.order.index_select(0, t)
                if self.weights is None:
                    self._each_alone(seen[:, 0])
                else:
                    if seen is not None:
                        torch.index_select(self.inputs, 1, seen[0], out=self._x)
                        torch.index_select(self.targets, 1, seen[0], out=self._y.squeeze(1))
                    self._together()
                taken = 1 if seen is None else len(seen)
                self.clock.add_(taken)
                count -= taken

    def _each_alone(self, seen: Tensor) -> None:
        """Steps on one sample each, those of the indices ``seen``."""
        raise NotImplementedError

    def _together(self) -> None:
        """A step on the samples ``_x`` and their labels ``_y``."""
        raise NotImplementedError

    @property
    def state(self) -> list[Tensor]:
        return [*(getattr(self, name) for name in self._names), self.clock]

    def narrow(self, keep: Tensor | None) -> list[Tensor]:
        """Go on with the runs ``keep``, or with all again (``None``); see ``descend``."""
        own = [*self._names, "clock", "eta", "weights", "inputs", "targets"]
        if self._whole is None:
            self._whole = {name: getattr(self, name) for name in own}
        if keep is None:
            vars(self).update(self._whole)
        else:
            groups, each = len(self.inputs), self._runs // len(self.inputs)
            where = torch.arange(self._runs, device=keep.device).view(groups, each)
            wanted = torch.isin(where, keep)
            if bool((wanted == wanted[0]).all()):  # the same of each group: runs still share its data
                own = own[:-2]
            else:
                self.inputs, self.targets = (t.repeat_interleave(each, 0) for t in (self.inputs, self.targets))
            for name in own:
                if (tensor := getattr(self, name)) is not None:
                    setattr(self, name, tensor[keep].contiguous())
        if len(self.clock):  # else none is left, and descend asks for all again next
            self._prepare(self._native)
        return self.state

    @property
    def _runs(self) -> int:
        return len(self._gap)

    @ok.takes(inputs=ok.tensor("samples d", "groups samples d"))
    def predict(self, inputs: Tensor) -> Tensor:
        """``f`` at samples that all runs share, or those of each group; ``(runs, samples)`` in double precision."""
        inputs = inputs.reshape(-1, *inputs.shape[-2:]).double()
        return self._outputs(inputs)

    def loss(self) -> Tensor:
        """``1/(2n) sum_i (f(x_i) - y_i)^2`` of each run, ``(runs,)`` in double precision."""
        return 0.5 * (self.predict(self.inputs) - self._each.mT.double()).square().mean(1)

    def gram(self) -> Tensor:
        """``K = J J^T / n`` of each run, ``(runs, n, n)`` in double precision."""
        raise NotImplementedError

    def squares(self) -> Tensor:
        """``|g_i|^2``, squared norms of gradients: ``n`` times the diagonal of ``K``, ``(runs, n)``."""
        raise NotImplementedError

    def trace(self) -> Tensor:
        """``Tr K`` of each run, ``(runs,)``, without the matrix."""
        return self.squares().mean(1)

    def gradient_norms(self) -> Tensor:
        """``|f(x_i) - y_i| |g_i|``, norms of a step's gradient for ``B = 1`` before clipping, ``(runs, n)``."""
        residual = self.predict(self.inputs) - self._each.mT.double()
        return residual.abs() * self.squares().sqrt()


class DiagonalNetwork(_Network):
    """``f(x) = <a * b, x>``, entrywise product: SGD or gradient descent on ``a`` and ``b``.

    The state holds ``u = (a + b) / 2`` and ``v = (a - b) / 2``. In these a step on one sample is entrywise,

        ``u <- u (1 - eta r x)``,   ``v <- v (1 + eta r x)``,   ``f(x) = <x, u^2 - v^2>``,   ``r = f(x) - y``

    and the products ``x * u`` and ``-x * v`` give the output, the norm of the gradient and the step.

    Args:
        a, b: ``(runs, d)``; copied.
        inputs: ``(n, d)``, or ``(groups, n, d)``: runs come in as many equal groups, one after another.
        targets: ``(n,)`` or ``(groups, n)``.
        eta: one step size, or one per run.
        order: ``(steps, batch)``, see ``sample_order``; it starts again when it ends. ``None``: gradient descent.
        batch: how many samples of each batch a run uses, one number or one per run; all by default.
        clip: the largest norm of a gradient, beyond which it is shortened.

    Raises:
        ParameterError: shapes that do not fit, a batch larger than ``order`` gives, indices that are not there.
    """

    _names = ("uv",)
    _norm = math.sqrt(2.0)

    @ok.takes(a=ok.tensor("runs d"), b=ok.tensor("runs d"), **DATA, **OPTIONS)
    def __init__(
        self, a: Tensor, b: Tensor, inputs: Tensor, targets: Tensor, eta, *, order=None, batch=None, clip=None
    ):
        self.uv = torch.stack([a + b, a - b], 1) / 2  # (runs, 2, d)
        self._setup(inputs, targets, eta, order, batch, clip)

    def _prepare(self, native: bool) -> None:
        super()._prepare(native)
        groups, (runs, _, d) = len(self.inputs), self.uv.shape
        view = (lambda tensor: tensor.numpy()) if native else (lambda tensor: tensor)
        self._pull = torch.empty_like(self.uv)
        self._grouped = [tensor.view(groups, -1, 2 * d) for tensor in (self.uv, self._pull)]
        self._factor = self._c.view(groups, -1, 1)
        self._flat = [view(tensor.view(runs, -1)) for tensor in (self.uv, self._pull)]
        if self.weights is not None:
            beta, slope = self.uv.new_empty(runs, d), self.uv.new_empty(runs, d)
            out = self.uv.new_empty(groups, runs // groups, self._x.shape[1])
            self._predictor, self._slope = (
                (beta, beta.view(groups, -1, d)),
                (slope.unsqueeze(1), slope.view(groups, -1, d)),
            )
            self._out, self._share, self._halves = out, self.weights.view_as(out), self._pull.unbind(1)
            self._signs = self.uv.new_tensor([1.0, -1.0]).view(1, 2, 1)
            self._factors = self._c.view(-1, 1, 1), self.uv.new_empty(runs, 2, 1)
        else:
            x = self.inputs.transpose(0, 1)
            self._rows = torch.cat([x, -x], 2).unsqueeze(2)  # (n, groups, 1, 2 d)
            self._samples = list(zip(self._rows, view(self._each), strict=True)) if native else None

    def _each_alone(self, seen: Tensor) -> None:
        (uv, pull), (flat, pulled) = self._grouped, self._flat
        if self._native:
            samples = [self._samples[i] for i in seen.tolist()]
        else:
            samples = [(self._rows.index_select(0, seen)[0], self._each.index_select(0, seen)[0])]
        for x, y in samples:
            torch.mul(uv, x, out=pull)
            self._dot(flat, pulled, self._gap)
            if self.clip:
                self._dot(pulled, pulled, self._square)
            self._ops.subtract(self._gap, y, out=self._gap)
            self._scaled()
            uv.addcmul_(pull, self._factor)

    def _together(self) -> None:
        uv, pull, out = self.uv, self._pull, self._out
        (beta, grouped), (slope, gathered), (change, factor) = self._predictor, self._slope, self._factors
        torch.mul(uv, uv, out=pull)
        torch.sub(*self._halves, out=beta)
        torch.bmm(grouped, self._x.mT, out=out)
        out.sub_(self._y).mul_(self._share)
        torch.bmm(out, self._x, out=gathered)
        torch.mul(uv, slope, out=pull)
        if self.clip:
            self._dot(self._flat[1], self._flat[1], self._square)
        self._gap[:] = 1.0
        self._scaled()
        uv.addcmul_(pull, torch.mul(change, self._signs, out=factor))

    @property
    def a(self) -> Tensor:
        return self.uv.sum(1)

    @property
    def b(self) -> Tensor:
        return self.uv[:, 0] - self.uv[:, 1]

    def beta(self) -> Tensor:
        """``a * b``, the linear predictor, ``(runs, d)`` in double precision."""
        square = self.uv.double().square()
        return square[:, 0] - square[:, 1]

    def balance(self) -> Tensor:
        """``(|a|^2 + |b|^2) / (2 |a * b|_1) >= 1`` of each run; 1 where ``|a_j| = |b_j|`` for all ``j``."""
        return self.uv.double().square().sum((1, 2)) / self.beta().abs().sum(1)

    def _outputs(self, inputs: Tensor) -> Tensor:
        return (self.beta().unflatten(0, (len(inputs), -1)) @ inputs.mT).flatten(0, 1)

    def _sizes(self) -> Tensor:
        """``a^2 + b^2``, ``(groups, runs of a group, d)``."""
        return (2 * self.uv.double().square().sum(1)).unflatten(0, (len(self.inputs), -1))

    def gram(self) -> Tensor:
        x = self.inputs.double().unsqueeze(1)
        return ((x * self._sizes().unsqueeze(2)) @ x.mT / self._n).flatten(0, 1)

    def squares(self) -> Tensor:
        return (self._sizes() @ self.inputs.double().square().mT).flatten(0, 1)


class ReluNetwork(_Network):
    """``f(x) = sum_j a_j max(<w_j, x>, 0)``: SGD or gradient descent on both layers.

    Args:
        a: ``(runs, m)``; copied.
        w: ``(runs, m, d)``; copied.
        inputs, targets, eta, order, batch, clip: as for ``DiagonalNetwork``.

    Raises:
        ParameterError: as there.
    """

    _names = ("w", "a")
    _norm = 1.0

    @ok.takes(a=ok.tensor("runs m"), w=ok.tensor("runs m d"), **DATA, **OPTIONS)
    def __init__(
        self, a: Tensor, w: Tensor, inputs: Tensor, targets: Tensor, eta, *, order=None, batch=None, clip=None
    ):
        self.a, self.w = a.clone().contiguous(), w.clone().contiguous()
        self._setup(inputs, targets, eta, order, batch, clip)

    def _prepare(self, native: bool) -> None:
        super()._prepare(native)
        (runs, m, d), groups = self.w.shape, len(self.inputs)
        view = (lambda tensor: tensor.numpy()) if native else (lambda tensor: tensor)
        batch = 1 if self.weights is None else self._x.shape[1]
        self._wide = self.w.view(groups, -1, d)
        self._hidden = self.w.new_empty(groups, runs // groups * m, batch)
        if self.weights is None:
            self._lengths = self.inputs.square().sum(2).repeat_interleave(runs // groups, 0).mT.contiguous()
            self._short = [view(tensor) for tensor in (self.a, *(torch.empty_like(self.a) for _ in range(3)))]
            self._more, self._zero = view(torch.empty_like(self._c)), view(torch.zeros_like(self._c[0]))
            self._factor = view(self._c.view(groups, -1, 1))
        else:
            self._active, self._pull = torch.empty_like(self._hidden), torch.empty_like(self.w)
            self._out = self.w.new_empty(runs, 1, batch)

    def _each_alone(self, seen: Tensor) -> None:
        ops, (a, hidden, active, pull), groups = self._ops, self._short, len(self.inputs)
        view = (lambda tensor: tensor.numpy()) if self._native else (lambda tensor: tensor)
        x = self.inputs.index_select(1, seen)  # (groups, k, d)
        before = torch.bmm(x, self._wide.mT)  # (groups, k, runs of a group * m)
        moves = torch.empty_like(before)
        first, inner, past = view(before), view(x @ x.mT), view(moves)
        layer, split = hidden.reshape(groups, 1, -1), pull.reshape(groups, -1, a.shape[1])
        move, change, factor = past.reshape(groups, len(seen), *split.shape[1:]), self._change[:, None], self._factor
        samples = zip(view(self._each[seen]), view(self._lengths[seen]), strict=True)
        for i, (y, length) in enumerate(samples):
            ops.matmul(inner[:, i : i + 1, :i], past[:, :i], out=layer)  # what the steps of this block have added
            ops.add(layer, first[:, i : i + 1], out=layer)
            ops.maximum(hidden, self._zero, out=active)
            ops.multiply(ops.sign(active, out=pull), a, out=pull)
            self._dot(a, active, self._gap)
            ops.subtract(self._gap, y, out=self._gap)
            if self.clip:
                self._dot(active, active, self._square)
                self._dot(pull, pull, self._more)
                ops.multiply(self._more, length, out=self._more)
                ops.add(self._square, self._more, out=self._square)
            self._scaled()
            ops.multiply(split, factor, out=move[:, i])
            ops.multiply(active, change, out=active)
            ops.add(a, active, out=a)
        self._wide.baddbmm_(moves.mT, x)

    def _together(self) -> None:
        runs, m, _ = self.w.shape
        torch.bmm(self._wide, self._x.mT, out=self._hidden)
        torch.clamp(self._hidden, min=0, out=self._active)
        hidden, active = self._hidden.view(runs, m, -1), self._active.view(runs, m, -1)
        torch.bmm(self.a.unsqueeze(1), active, out=self._out)
        grouped = self._out.view(len(self.inputs), -1, self._out.shape[2])
        grouped.sub_(self._y)
        self._out.mul_(self.weights.unsqueeze(1))
        slope = torch.bmm(active, self._out.mT).squeeze(2)
        torch.mul(torch.sign(active, out=hidden), self._out, out=hidden)
        torch.bmm(self._hidden, self._x, out=self._pull.view_as(self._wide))
        self._pull.mul_(self.a.unsqueeze(2))
        self._gap[:] = 1.0
        if self.clip:
            square = self._pull.square().sum((1, 2)).add_(slope.square().sum(1))
            self._square[:] = square.numpy() if self._native else square
        self._scaled()
        self.w.addcmul_(self._pull, self._c.view(-1, 1, 1))
        self.a.addcmul_(slope, self._c.unsqueeze(1))

    def path_norm(self) -> Tensor:
        """``sum_j |a_j| |w_j|`` of each run, ``(runs,)``."""
        return (self.a.double().abs() * self.w.double().norm(dim=2)).sum(1)

    def _layers(self, inputs: Tensor) -> Tensor:
        """Hidden inputs, ``(runs, samples, m)``."""
        w = self.w.double().unflatten(0, (len(inputs), -1))
        return (inputs.unsqueeze(1) @ w.mT).flatten(0, 1)

    def _outputs(self, inputs: Tensor) -> Tensor:
        return (self._layers(inputs).clamp_(min=0) @ self.a.double().unsqueeze(2)).squeeze(2)

    def gram(self) -> Tensor:
        x = self.inputs.double()
        hidden, inner = self._layers(x), x @ x.mT
        pull = (hidden > 0) * self.a.double().unsqueeze(1)
        inner = inner.repeat_interleave(len(hidden) // len(inner), 0)
        hidden.clamp_(min=0)
        return (hidden @ hidden.mT + inner * (pull @ pull.mT)) / self._n

    def squares(self) -> Tensor:
        x = self.inputs.double()
        hidden, length = self._layers(x), x.square().sum(2).repeat_interleave(self._runs // len(x), 0)
        pull = (hidden > 0) * self.a.double().unsqueeze(1)
        return hidden.clamp_(min=0).square().sum(2) + length * pull.square().sum(2)


# ---------------------------------------------------------------- what the Gram matrix says about stability


@ok.takes(gram=ok.tensor("... n n", finite=False))
def gram_measures(gram: Tensor) -> dict[str, Tensor]:
    """``Tr G``, ``|G|_F``, ``|G|_2`` and ``mean_i |g_i|^4`` from ``K = J J^T / n``, each ``(...)``; NaN stays NaN."""
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    fine = gram.isfinite().all(-1).all(-1)
    top = torch.linalg.eigvalsh(torch.where(fine[..., None, None], gram, 0.0))[..., -1]
    return {
        "trace": diagonal.sum(-1),
        "frobenius": gram.square().sum((-2, -1)).sqrt(),
        "top": torch.where(fine, top, torch.nan),
        "fourth": (gram.shape[-1] * diagonal).square().mean(-1),
    }


@ok.takes(gram=ok.tensor("... n n", finite=False), eta=ok.values(at_least=0), batch=ok.counts(1))
def stability_ratio(gram: Tensor, eta, batch) -> Tensor:
    """``eta [(1 - 1/B) |G|_F^2 + mean_i |g_i|^4 / B] / (2 Tr G)``, ``(...)``: at most 1 where SGD is linearly stable.

    For batches drawn with replacement, ``T(M) = M - eta (G M + M G) + eta^2 E[G_B M G_B]`` maps second moments of the
    distance to an interpolating minimum. It is self-adjoint and positive, so that spectral radius at most 1 needs
    ``<I, T(I)> <= <I, I>``, which is this. Since ``mean |g|^4 >= (Tr G)^2`` it implies ``Tr G <= 2 B / eta``.

    Args:
        gram: ``K = J J^T / n``.
        eta, batch: numbers, or tensors that broadcast to ``(...)``.
    """
    eta, batch = (torch.as_tensor(value, dtype=gram.dtype, device=gram.device) for value in (eta, batch))
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    fourth = (gram.shape[-1] * diagonal).square().mean(-1)
    square = gram.square().sum((-2, -1))
    return eta * ((1 - 1 / batch) * square + fourth / batch) / (2 * diagonal.sum(-1))
