"""Gradient descent on populations of small networks: one batch of seeds and step sizes, closed-form gradients."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from lowdim import checks as ok
from lowdim.checks import ParameterError


class TanhPopulation:
    """Many tanh networks of one shape, each on its own data, trained by full-batch gradient descent.

    The loss of a run is ``1/2 mean_n ||f(x_n) - y_n||^2``; the output layer is linear.

    Args:
        inputs: ``(runs, samples, sizes[0])``.
        targets: ``(runs, samples, sizes[-1])``.
        sizes: widths from input to output.
        eta: one step size, or one per run, ``(runs,)``.
        scale: weights start as ``scale N(0, 1 / fan_in)``, biases at zero.
        generator: source of the initial weights.

    Raises:
        ParameterError: sizes that do not fit the data, or fewer than two layers.
    """

    run_dim = 0

    @ok.takes(
        inputs=ok.tensor("runs samples features"),
        targets=ok.tensor("runs samples outputs"),
        sizes=ok.sizes(3),
        eta=ok.values(at_least=0),
        scale=ok.real(at_least=0),
        generator=ok.generator,
    )
    def __init__(self, inputs: Tensor, targets: Tensor, sizes: Sequence[int], eta, scale: float, generator):
        if len(sizes) < 3 or inputs.shape[-1] != sizes[0] or targets.shape[-1] != sizes[-1]:
            raise ParameterError(
                f"sizes {list(sizes)} must have at least 3 entries, the first {inputs.shape[-1]} (inputs) and the last "
                f"{targets.shape[-1]} (targets)."
            )
        runs, samples, _ = inputs.shape
        self.inputs, self.targets = inputs, targets
        draw = dict(generator=generator, dtype=inputs.dtype, device=generator.device)  # the same weights on any device
        self.weights = [
            torch.randn(runs, fan_in, fan_out, **draw).mul_(scale / fan_in**0.5).to(inputs.device)
            for fan_in, fan_out in pairwise(sizes)
        ]
        self.biases = [inputs.new_zeros(runs, 1, fan_out) for fan_out in sizes[1:]]
        ok.one_or_each("eta", eta, runs)
        eta = torch.as_tensor(eta, dtype=inputs.dtype, device=inputs.device).reshape(-1, 1, 1)
        self._rate = (eta / samples).expand(runs, 1, 1).contiguous()
        self._hidden = [inputs.new_empty(runs, samples, size) for size in sizes[1:]]
        self._pull = [torch.empty_like(hidden) for hidden in self._hidden[:-1]]
        self._square = [torch.empty_like(hidden) for hidden in self._hidden[:-1]]

    @property
    def state(self) -> list[Tensor]:
        return self.weights + self.biases

    @property
    def size(self) -> int:
        """Number of parameters of one network."""
        return sum(tensor[0].numel() for tensor in self.state)

    def step(self) -> None:
        """One step of every run, in place: forward, then the gradients from the last layer to the first."""
        weights, biases, hidden = self.weights, self.biases, self._hidden
        below = [self.inputs, *hidden[:-1]]
        for l, weight in enumerate(weights):
            torch.baddbmm(biases[l], below[l], weight, out=hidden[l])
            if l < len(weights) - 1:
                hidden[l].tanh_()
        delta = hidden[-1].sub_(self.targets).mul_(self._rate)
        for l in range(len(weights) - 1, -1, -1):
            if l > 0:  # eta dL/d(pre-activation) of the layer below, before this layer's weights move
                torch.bmm(delta, weights[l].mT, out=self._pull[l - 1])
                torch.mul(below[l], below[l], out=self._square[l - 1])
                self._pull[l - 1].addcmul_(self._pull[l - 1], self._square[l - 1], value=-1)
            weights[l].baddbmm_(below[l].mT, delta, alpha=-1)
            biases[l].sub_(delta.sum(1, keepdim=True))
            delta = self._pull[l - 1] if l > 0 else delta

    def loss(self, *parameters: Tensor) -> Tensor:
        """Loss of each run, ``(runs,)``, at the current or at given parameters (weights, then biases)."""
        parameters = parameters or tuple(self.state)
        layers = len(self.weights)
        out = self.inputs
        for l, (weight, bias) in enumerate(zip(parameters[:layers], parameters[layers:], strict=True)):
            out = out @ weight + bias
            out = out.tanh() if l < layers - 1 else out
        return 0.5 * (out - self.targets).square().sum(-1).mean(-1)
