"""Populations of networks: many runs of one shape, their parameters stacked, runs first, and the data they learn from.

A population knows its losses and its gradients; ``lowdim.trainer`` moves its parameters. ``Functional`` takes any
function of parameters, and ``modules`` any ``nn.Module``, through ``torch.func``; ``lowdim.mlps`` has fully connected
networks with closed-form gradients. All parameters of a population lie in one flat tensor, so that an optimiser moves
them at once.
"""

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

from lowdim import checks as ok
from lowdim.checks import ParameterError, brief

LOSSES = ("cross-entropy", "mse")


class Population:
    """What all populations share: parameters, data, evaluation.

    Attributes:
        parameters: name -> ``(runs, ...)``, views of ``flat``; change them in place only.
        gradients: name -> ``(runs, ...)``, views of ``flat_gradients``, filled by ``backward``.
        inputs, targets: the training data, shared by all runs, or with the runs first where ``per_run``.
        runs, samples: their numbers.
    """

    run_dim = 0
    classes: int | None = None  # a subclass sets it: the size of the outputs' last axis

    def __init__(self, parameters: Mapping[str, Tensor], inputs: Tensor, targets: Tensor, per_run: bool, loss):
        check_stacked(parameters)
        first = next(iter(parameters.values()))
        self.runs, self.per_run, self.kind = len(first), per_run, loss
        self.flat = torch.cat([p.detach().reshape(-1) for p in parameters.values()])
        self.flat_gradients = torch.zeros_like(self.flat)
        self.parameters = _views(self.flat, parameters)
        self.gradients = _views(self.flat_gradients, parameters)
        self.inputs, self.targets = inputs.to(first.device), targets.to(first.device)
        self.samples = inputs.shape[1 if per_run else 0]

    @property
    def size(self) -> int:
        """Number of parameters of one run."""
        return len(self.flat) // self.runs

    @property
    def state(self) -> list[Tensor]:
        """The parameters as a list, runs first."""
        return list(self.parameters.values())

    def take(self, picks: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets of the samples ``picks``, ``(runs, batch)`` whole numbers: ``(runs, batch, ...)``."""
        data = (self.inputs, self.targets)
        if self.per_run:
            picks = picks + torch.arange(0, self.runs * self.samples, self.samples, device=picks.device).unsqueeze(1)
            data = [x.flatten(0, 1) for x in data]
        rows = picks.flatten()
        return tuple(x.index_select(0, rows).unflatten(0, picks.shape) for x in data)

    def outputs(self, inputs: Tensor | None = None, parameters: Mapping[str, Tensor] | None = None) -> Tensor:
        """Outputs of every run, ``(runs, samples, ...)``, on the training inputs or on others, shaped as they are.

        ``parameters`` puts others in place of the population's, with any number of runs where inputs are shared.
        """
        raise NotImplementedError

    def backward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Fill ``gradients`` for a batch, shared or ``(runs, batch, ...)``; returns the losses, ``(runs,)``."""
        raise NotImplementedError

    def loss(self, inputs=None, targets=None, parameters=None) -> Tensor:
        """Mean loss of each run, ``(runs,)``, on the training data or on other data."""
        return self.losses(self.outputs(inputs, parameters), targets)

    def losses(self, outputs: Tensor, targets: Tensor | None = None) -> Tensor:
        """Mean loss of each run, ``(runs,)``, of given outputs."""
        targets = self.targets if targets is None else targets
        return vmap(self.one_loss, in_dims=(0, 0 if self.per_run else None))(outputs, targets)

    def one_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean loss of one run."""
        if callable(self.kind):
            return self.kind(outputs, targets)
        if self.kind == "mse":
            return 0.5 * (outputs - targets).square().flatten(1).sum(1).mean()
        return F.cross_entropy(outputs.flatten(0, -2), targets.flatten())

    def accuracy(self, inputs=None, targets=None, parameters=None) -> Tensor:
        """Share of samples whose largest output is their label's, ``(runs,)``."""
        return self.hits(self.outputs(inputs, parameters), targets)

    def hits(self, outputs: Tensor, targets: Tensor | None = None) -> Tensor:
        """Share of given outputs that are right, ``(runs,)``."""
        targets = self.targets if targets is None else targets
        return (outputs.argmax(-1) == targets).flatten(1).double().mean(1)


class Functional(Population):
    """Any function of parameters and inputs, mapped over the runs by ``torch.func``.

    Args:
        function: ``(parameters, inputs) -> outputs`` of one run; ``parameters`` is a dictionary.
        parameters: name -> ``(runs, ...)``.
        inputs: ``(samples, ...)``, or ``(runs, samples, ...)`` with ``per_run``.
        targets: labels ``(samples,)`` or what the loss takes; with ``per_run`` runs first.
        loss: ``"cross-entropy"``, ``"mse"`` (half the squared error, summed over outputs, averaged over samples), or
            ``(outputs, targets) -> number`` for one run, a mean over its samples.
        per_run: whether every run has its own data.
        bf16: compute in bfloat16 where autocast does; parameters stay as they are.

    Raises:
        ParameterError: parameters that do not agree on the runs, data that does not fit them, is not finite, or has
            labels outside the classes.
    """

    @ok.takes(function=ok.function, per_run=ok.flag, bf16=ok.flag)
    def __init__(self, function: Callable, parameters, inputs: Tensor, targets: Tensor, loss="cross-entropy", *,
                 per_run=False, bf16=False):  # fmt: skip
        check_stacked(parameters)
        runs = len(next(iter(parameters.values())))
        loss = loss if callable(loss) else ok.choice("loss", loss, LOSSES)
        check_data(inputs, targets, runs, per_run, loss)
        super().__init__(parameters, inputs, targets, per_run, loss)
        self.function, self.bf16 = function, bf16
        self._leaves = {name: p.detach().requires_grad_() for name, p in self.parameters.items()}
        one = self.inputs[:, :1] if per_run else self.inputs[:1]
        try:
            shape = self.outputs(one).shape
        except (RuntimeError, TypeError, KeyError, IndexError, ValueError) as error:
            words = " ".join(str(error).split())
            raise ParameterError(
                f"function must map one run's parameters and inputs {tuple(inputs.shape)} to outputs, got {words[:160]}"
            ) from error
        if loss == "cross-entropy":
            check_labels(self.targets, shape[-1])

    def outputs(self, inputs=None, parameters=None) -> Tensor:
        inputs = self.inputs if inputs is None else inputs
        with torch.no_grad():
            return self._mapped(inputs, self.per_run)(parameters or self.parameters, inputs)

    def _mapped(self, inputs: Tensor, own: bool):
        cast = torch.autocast(inputs.device.type, torch.bfloat16, enabled=self.bf16)

        def one(p, x):
            with cast:
                out = self.function(p, x)
            return out.float() if self.bf16 else out

        return vmap(one, in_dims=(0, 0 if own else None))

    def backward(self, inputs, targets) -> Tensor:
        own = self.per_run or inputs is not self.inputs  # a batch comes with the runs first
        outputs = self._mapped(inputs, own)(self._leaves, inputs)
        losses = vmap(self.one_loss, in_dims=(0, 0 if own else None))(outputs, targets)
        found = torch.autograd.grad(losses.sum(), list(self._leaves.values()))
        for kept, gradient in zip(self.gradients.values(), found, strict=True):
            kept.copy_(gradient)
        return losses.detach()


@ok.takes(models=ok.kind((list, tuple), "a list of modules"), per_run=ok.flag, bf16=ok.flag)
def modules(models: Sequence[nn.Module], inputs: Tensor, targets: Tensor, loss="cross-entropy", *, per_run=False,
            bf16=False) -> Functional:  # fmt: skip
    """A population of ``nn.Module``s of one architecture; their parameters are copied, ``write_back`` returns them.

    Raises:
        ParameterError: no module, modules whose parameters differ in name or shape, or modules that keep running
            statistics or draw random numbers in training mode; and what ``Functional`` raises.
    """
    if not models or not all(isinstance(m, nn.Module) for m in models):
        raise ParameterError(f"models must be a list of at least one nn.Module, got {brief(models)}.")
    shapes = [{name: tuple(p.shape) for name, p in m.named_parameters()} for m in models]
    if not shapes[0]:
        raise ParameterError(f"models must have parameters, got {brief(models[0])} without any.")
    for run, other in enumerate(shapes):
        if other != shapes[0]:
            name = next(iter({k for k in other.keys() | shapes[0].keys() if other.get(k) != shapes[0].get(k)}))
            raise ParameterError(
                f"models must have parameters of the same shapes, got {name} {other.get(name)} in model {run} and "
                f"{shapes[0].get(name)} in model 0; train groups of different shapes with lowdim.trainer.side_by_side."
            )
    for name, part in models[0].named_modules():
        if part.training and getattr(part, "track_running_stats", False):
            raise ParameterError(
                f"models must not update running statistics in a batch of runs, got {type(part).__name__} {name!r} in "
                "training mode: make it with track_running_stats=False, call eval() on it to keep its statistics "
                "fixed, or use GroupNorm."
            )
        if part.training and getattr(part, "p", 0) and "Dropout" in type(part).__name__:
            raise ParameterError(
                f"models must not draw from the global generator, got {type(part).__name__} {name!r} in training mode: "
                "set p=0 or call eval() on it."
            )
    base = copy.deepcopy(models[0])
    buffers = [dict(m.named_buffers()) for m in models]
    fixed = buffers[0]
    for name, buffer in fixed.items():
        if not all(torch.equal(other[name], buffer) for other in buffers):
            raise ParameterError(f"models must have the same buffers, got different {name}.")
    stacked = {name: torch.stack([m.get_parameter(name).detach() for m in models]) for name in shapes[0]}
    function = lambda parameters, x: functional_call(base, (parameters, fixed), (x,))
    return Functional(function, stacked, inputs, targets, loss, per_run=per_run, bf16=bf16)


@ok.takes(population=ok.has("parameters"), models=ok.kind((list, tuple), "a list of modules"))
def write_back(population: Population, models: Sequence[nn.Module]) -> None:
    """Copy the parameters of a population into modules, one for each run.

    Raises:
        ParameterError: another number of modules than of runs.
    """
    if len(models) != population.runs:
        raise ParameterError(f"models must be {population.runs}, one for each run, got {len(models)}.")
    with torch.no_grad():
        for run, model in enumerate(models):
            for name, p in model.named_parameters():
                p.copy_(population.parameters[name][run])


def _views(flat: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Views of a flat tensor with the shapes of ``like``, each contiguous."""
    parts = flat.split([p.numel() for p in like.values()])
    return {name: part.view(p.shape) for (name, p), part in zip(like.items(), parts, strict=True)}


def check_stacked(parameters) -> None:
    if not isinstance(parameters, Mapping) or not parameters:
        raise ParameterError(f"parameters must be a dictionary of tensors (runs, ...), got {brief(parameters)}.")
    first = None
    for name, p in parameters.items():
        ok.tensor("runs ...", finite=True)(f"parameters[{name!r}]", p, {})
        first = p if first is None else first
        if len(p) != len(first) or p.dtype != first.dtype or p.device != first.device:
            raise ParameterError(
                f"parameters must agree on the number of runs, type and device, got {name} with {len(p)} runs, "
                f"{p.dtype} on {p.device}, after {len(first)} runs, {first.dtype} on {first.device}."
            )


def check_data(inputs, targets, runs: int, per_run: bool, loss) -> None:
    lead = "runs samples" if per_run else "samples"
    known = {"runs": runs}
    ok.tensor(f"{lead} ...")("inputs", inputs, known)
    ok.tensor(f"{lead} ...", floating=loss == "mse", finite=loss == "mse")("targets", targets, known)
    if loss == "cross-entropy" and (targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool):
        raise ParameterError(f"targets must be labels (whole numbers) for the cross-entropy, got {targets.dtype}.")


def check_labels(labels: Tensor, classes: int) -> None:
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise ParameterError(f"targets must be labels from 0 to {classes - 1}, got {low if low < 0 else high}.")
