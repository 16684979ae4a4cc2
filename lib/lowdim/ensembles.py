"""Populations of modules of one shape, trained as one batch: ``torch.func`` maps the model over the runs."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from lowdim import checks as ok
from lowdim.checks import ParameterError, integer, number


def _adamw(
    numbers: Tensor, gradient: Tensor, moments: tuple[Tensor, Tensor], step: int, rate: float, decay: float, betas
) -> None:
    """AdamW's step ``step`` (from 1) on a flat tensor, in place, as ``torch.optim.AdamW`` takes it.

    The same job, but making the first optimizer of ``torch.optim`` imports a compiler, which takes seconds.
    """
    first, second = moments
    first.lerp_(gradient, 1 - betas[0])
    second.mul_(betas[1]).addcmul_(gradient, gradient, value=1 - betas[1])
    size = (second / (1 - betas[1] ** step)).sqrt_().add_(1e-8)
    numbers.mul_(1 - decay * rate).addcdiv_(first, size, value=-rate / (1 - betas[0] ** step))


class Ensemble:
    """Models of one architecture with parameters ``(runs, ...)``, trained by AdamW; every run sees its own batch.

    A step equals the steps of the runs one by one: gradients are clipped run by run, and the moments are elementwise.
    The learning rate rises linearly over ``warmup`` of the steps and falls to zero along a cosine.

    Args:
        models: the runs; they are copied. All have the same modules and shapes.
        loss: ``(outputs, targets) -> number`` for one run.
        steps: length of the schedule.
        lr: largest learning rate.
        decay: AdamW's weight decay; only on matrices, and not on parameters whose name ends in one of ``undecayed``.
        clip: largest norm of a run's gradient; None for no clipping.

    Raises:
        ParameterError: no model, or models that differ in their parameters.
    """

    @ok.takes(
        models=ok.several(nn.Module, "modules"),
        loss=ok.function,
        decay=ok.real(at_least=0),
        clip=ok.optional(ok.real(above=0)),
        undecayed=ok.several(str, "texts", at_least=0),
        betas=ok.several((int, float), "numbers", at_least=2),
    )
    def __init__(
        self, models: Sequence[nn.Module], loss: Callable, steps: int, lr: float, *, warmup=0.1, decay=0.01, clip=1.0,
        undecayed=("gains",), betas=(0.9, 0.99),
    ):  # fmt: skip
        shapes = [{name: p.shape for name, p in model.named_parameters()} for model in models]
        if not shapes or any(s != shapes[0] for s in shapes):
            raise ParameterError(
                "models must be alike, an ensemble needs models with the same parameters, "
                f"got {len(shapes)} that differ."
            )
        self.steps, self.lr = integer("steps", steps, at_least=1), number("lr", lr, above=0)
        self.warmup, self.clip, self.taken = number("warmup", warmup, at_least=0, at_most=1), clip, 0
        stacked, self.buffers = stack_module_state(list(models))
        self._base, self._models, self._fixed = models[0], list(models), {}
        groups = {decay: [], 0.0: []}
        for name, p in stacked.items():
            if not p.requires_grad:
                self._fixed[name] = p
            else:
                groups[decay if p.dim() > 2 and not name.endswith(tuple(undecayed)) else 0.0].append(name)
        # all parameters that share a decay are one tensor (runs, numbers): few and large operations in a step
        self._names = [names for names in groups.values() if names]
        self._shapes = {name: p.shape for name, p in stacked.items()}
        self._flat = [torch.cat([stacked[n].detach().flatten(1) for n in names], 1) for names in self._names]
        self._decays = [d for d, names in groups.items() if names]
        self._moments = [(torch.zeros_like(flat), torch.zeros_like(flat)) for flat in self._flat]
        self._betas = tuple(betas)
        for flat in self._flat:
            flat.requires_grad_()
        one = lambda p, b, x, y: loss(functional_call(self._base, (p, b), (x,)), y)
        self._losses = vmap(one, randomness="different")
        self._outputs = vmap(lambda p, b, x: functional_call(self._base, (p, b), (x,)), in_dims=(0, 0, None))

    @property
    def parameters(self) -> dict[str, Tensor]:
        """Parameters by name, ``(runs, ...)``: views."""
        views = dict(self._fixed)
        for flat, names in zip(self._flat, self._names, strict=True):
            parts = flat.split([self._shapes[name][1:].numel() for name in names], 1)
            views |= {name: part.view(self._shapes[name]) for name, part in zip(names, parts, strict=True)}
        return views

    def rate(self) -> float:
        """The learning rate of the next step."""
        rise = self.warmup * self.steps
        if self.taken < rise:
            return self.lr * (self.taken + 1) / rise
        return self.lr * 0.5 * (1 + math.cos(math.pi * (self.taken - rise) / max(1, self.steps - rise)))

    def step(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """One step of all runs on batches ``(runs, ...)``; their losses before it, ``(runs,)``, without a sync."""
        losses = self._losses(self.parameters, self.buffers, inputs, targets)
        gradients = torch.autograd.grad(losses.sum(), self._flat)
        if self.clip is not None:
            self._clip(gradients)
        rate = self.rate()
        self.taken += 1
        for flat, gradient, moments, decay in zip(self._flat, gradients, self._moments, self._decays, strict=True):
            _adamw(flat.detach(), gradient, moments, self.taken, rate, decay, self._betas)
        return losses.detach()

    def _clip(self, gradients: Sequence[Tensor]) -> None:
        """Scale each run's gradient to norm ``clip`` where it is larger."""
        norms = torch.stack([torch.linalg.vector_norm(g, dim=1) for g in gradients]).norm(dim=0)
        factor = (self.clip / (norms + 1e-6)).clamp(max=1)
        for g in gradients:
            g.mul_(factor[:, None])

    @torch.no_grad()
    def outputs(self, inputs: Tensor) -> Tensor:
        """What every run makes of the same inputs, ``(runs, ...)``."""
        return self._outputs(self.parameters, self.buffers, inputs)

    def models(self) -> list[nn.Module]:
        """The models passed in, with the trained parameters."""
        for name, values in self.parameters.items():
            for model, value in zip(self._models, values, strict=True):
                with torch.no_grad():
                    model.get_parameter(name).copy_(value)
        return self._models
