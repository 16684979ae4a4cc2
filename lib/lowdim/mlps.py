"""Populations of fully connected networks with closed-form gradients, batched over the runs and in place."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from lowdim import checks as ok
from lowdim.checks import ParameterError
from lowdim.populations import LOSSES, Population, check_data, check_labels, check_stacked


class _Relu:
    apply = staticmethod(torch.relu_)
    pull = staticmethod(lambda g, h, out: torch.ops.aten.threshold_backward.grad_input(g, h, 0, grad_input=g))


class _Tanh:
    apply = staticmethod(torch.tanh_)
    pull = staticmethod(lambda g, h, out: g.mul_(torch.mul(h, h, out=out).neg_().add_(1)))


class _Sigmoid:
    apply = staticmethod(torch.sigmoid_)
    pull = staticmethod(lambda g, h, out: g.mul_(torch.mul(h, h, out=out).neg_().add_(h)))


class _Softplus:
    apply = staticmethod(lambda h: v if (v := F.softplus(h, threshold=50)).requires_grad else h.copy_(v))
    pull = staticmethod(lambda g, h, out: g.mul_(torch.neg(h, out=out).expm1_().neg_()))


class _Identity:
    apply = staticmethod(lambda h: h)
    pull = staticmethod(lambda g, h, out: g)


# an activation in place, and the gradient through it in terms of its value h, in place
ACTIVATIONS = {"relu": _Relu, "tanh": _Tanh, "sigmoid": _Sigmoid, "softplus": _Softplus, "identity": _Identity}


@ok.takes(sizes=ok.sizes(2), runs=ok.count(), generator=ok.generator)
def mlp_parameters(sizes: Sequence[int], runs: int, generator, start="torch", dtype=torch.float32) -> dict[str, Tensor]:
    """Initial parameters of ``MLP``: ``weight.l (runs, sizes[l+1], sizes[l])``, ``bias.l (runs, sizes[l+1])``.

    Args:
        start: ``"torch"``: uniform in ±1/sqrt(fan_in), biases, too, as ``nn.Linear``; ``"he"``: N(0, 2/fan_in); or a
            number a: a N(0, 1/fan_in). The last two have zero biases.
    """
    if isinstance(start, str) or not isinstance(start, int | float):
        ok.choice("start", start, ("torch", "he"))
    scale = 2**0.5 if start == "he" else start if start == "torch" else ok.number("start", start, at_least=0)
    ok.kind(torch.dtype, "a torch dtype")("dtype", dtype, {})
    draw = dict(generator=generator, dtype=dtype, device=generator.device)
    found = {}
    for l, (fan_in, fan_out) in enumerate(pairwise(sizes)):
        if scale == "torch":
            found[f"weight.{l}"] = torch.rand(runs, fan_out, fan_in, **draw).mul_(2).sub_(1).mul_(fan_in**-0.5)
            found[f"bias.{l}"] = torch.rand(runs, fan_out, **draw).mul_(2).sub_(1).mul_(fan_in**-0.5)
        else:
            found[f"weight.{l}"] = torch.randn(runs, fan_out, fan_in, **draw).mul_(scale * fan_in**-0.5)
            found[f"bias.{l}"] = torch.zeros(runs, fan_out, dtype=dtype, device=generator.device)
    return found


class MLP(Population):
    """Fully connected networks ``h_l = act(W_l h_{l-1} + b_l)`` with a linear last layer; gradients in closed form.

    Args:
        parameters: as ``mlp_parameters`` makes them: ``weight.0 (runs, d_1, d_0)``, ``bias.0 (runs, d_1)``, ...
        inputs: ``(samples, d_0)`` for all runs, or ``(runs, samples, d_0)``.
        targets: labels or ``(samples, d_L)`` values; with the runs first where inputs have them.
        loss: ``"cross-entropy"``, or ``"mse"`` (half the squared error, summed over outputs, averaged over samples).
        activation: ``"relu"``, ``"tanh"``, ``"sigmoid"``, ``"softplus"`` or ``"identity"``; others through
            ``Functional``.

    Raises:
        ParameterError: parameters that are not those of such networks, or data that does not fit them.
    """

    @ok.takes(inputs=ok.tensor("samples features", "runs samples features"), activation=ok.one_of(*ACTIVATIONS))
    def __init__(self, parameters, inputs: Tensor, targets: Tensor, loss="cross-entropy", activation="relu"):
        check_stacked(parameters)
        layers = len(parameters) // 2
        names = [f"{kind}.{l}" for l in range(layers) for kind in ("weight", "bias")]
        if not layers or set(names) != parameters.keys():
            raise ParameterError(f"parameters must be weight.0, bias.0, weight.1, ..., got {list(parameters)}.")
        weights = [parameters[f"weight.{l}"] for l in range(layers)]
        runs, size = len(weights[0]), inputs.shape[-1]
        self.sizes = [size]
        for l, weight in enumerate(weights):
            bias = parameters[f"bias.{l}"]
            fits = weight.dim() == 3 and weight.shape[2] == size and bias.shape == weight.shape[:2]
            if not fits:
                raise ParameterError(
                    f"weight.{l} must be (runs, d, {size}) and bias.{l} (runs, d), got {tuple(weight.shape)} and "
                    f"{tuple(bias.shape)}."
                )
            size = weight.shape[1]
            self.sizes.append(size)
        per_run = inputs.dim() == 3
        ok.choice("loss", loss, LOSSES)
        check_data(inputs, targets, runs, per_run, loss)
        lead = tuple(inputs.shape[:-1])
        if loss == "cross-entropy":
            check_labels(targets, size)
        wanted = lead if loss == "cross-entropy" else (*lead, size)
        if tuple(targets.shape) != wanted:
            raise ParameterError(f"targets must be {wanted}, to fit inputs and outputs, got {tuple(targets.shape)}.")
        if inputs.dtype != weights[0].dtype:
            raise ParameterError(f"inputs must be {weights[0].dtype}, as the parameters, got {inputs.dtype}.")
        ordered = {name: parameters[name] for name in names}
        super().__init__(ordered, inputs, targets, per_run, loss)
        self.activation, self.layers = activation, layers
        self._act, self._work = ACTIVATIONS[activation], {}
        self._minus = self.flat.new_full((), -1.0)

    @property
    def weights(self) -> list[Tensor]:
        """``W_l`` of all runs, ``(runs, d_l, d_{l-1})`` each, from the first layer to the last."""
        return [self.parameters[f"weight.{l}"] for l in range(self.layers)]

    @property
    def biases(self) -> list[Tensor]:
        """``b_l`` of all runs, ``(runs, d_l)`` each."""
        return [self.parameters[f"bias.{l}"] for l in range(self.layers)]

    def act(self, values: Tensor) -> Tensor:
        """The activation of these values; they may be overwritten."""
        return self._act.apply(values)

    def hidden(self, inputs: Tensor | None = None, parameters: Mapping[str, Tensor] | None = None) -> list[Tensor]:
        """Activations of every layer, ``(runs, samples, d_l)`` each; the last ones are the outputs."""
        h = self.inputs if inputs is None else inputs
        parameters = parameters or self.parameters
        found = []
        for l in range(self.layers):
            weight, bias = parameters[f"weight.{l}"], parameters[f"bias.{l}"]
            if h.dim() == 2:  # shared: one product for all runs
                wide = h @ weight.flatten(0, 1).mT
                h = wide.view(len(h), len(weight), -1).transpose(0, 1) + bias.unsqueeze(1)
            else:
                h = torch.baddbmm(bias.unsqueeze(1), h, weight.mT)
            h = self._act.apply(h) if l < self.layers - 1 else h
            found.append(h)
        return found

    def outputs(self, inputs=None, parameters=None) -> Tensor:
        return self.hidden(inputs, parameters)[-1]

    def _workspace(self, batch: int) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        if batch not in self._work:
            new = lambda sizes: [self.flat.new_empty(self.runs, batch, size) for size in sizes]
            self._work = {batch: (new(self.sizes[1:]), new(self.sizes[1:-1]), new(self.sizes[1:-1]))}
        return self._work[batch]

    def backward(self, inputs, targets) -> Tensor:
        if inputs.dim() == 2:
            inputs, targets = (x.expand(self.runs, *x.shape) for x in (inputs, targets))
        batch = inputs.shape[1]
        hidden, pull, scratch = self._workspace(batch)
        below = [inputs, *hidden[:-1]]
        for l in range(self.layers):
            weight, bias = self.parameters[f"weight.{l}"], self.parameters[f"bias.{l}"]
            torch.baddbmm(bias.unsqueeze(1), below[l], weight.mT, out=hidden[l])
            if l < self.layers - 1:
                self._act.apply(hidden[l])
        losses, delta = self._top(hidden[-1], targets)
        for l in range(self.layers - 1, -1, -1):
            torch.bmm(delta.mT, below[l], out=self.gradients[f"weight.{l}"])
            torch.sum(delta, 1, out=self.gradients[f"bias.{l}"])
            if l > 0:
                torch.bmm(delta, self.parameters[f"weight.{l}"], out=pull[l - 1])
                delta = self._act.pull(pull[l - 1], hidden[l - 1], scratch[l - 1])
        return losses

    def _top(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Losses ``(runs,)`` and their gradient in the outputs, in place of the outputs."""
        batch = outputs.shape[1]
        if self.kind == "mse":
            delta = outputs.sub_(targets)
            losses = delta.square().sum((1, 2)).mul_(0.5 / batch)
            return losses, delta.div_(batch)
        labels = targets.unsqueeze(2)
        outputs.sub_(outputs.amax(2, keepdim=True))
        right = outputs.gather(2, labels)
        total = outputs.exp_().sum(2, keepdim=True)
        losses = torch.log(total).sub_(right).sum((1, 2)).div_(batch)
        delta = outputs.div_(total.mul_(batch))
        return losses, delta.scatter_add_(2, labels, self._minus.div(batch).expand(labels.shape))
