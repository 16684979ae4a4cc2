"""Experiments on published models: compress, train again for a while, compare with the model as it came.

Weights and texts come from the loaders of ``structured_pretrained``. Everything here works on any module with layers of
those names, so that it can be tried on small ones.
"""

import copy
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowdim import checks as ok
from lowdim.checks import ParameterError
from lowdim.diffusion import LatentDiffusion, Schedule
from lowdim.structured import KINDS, StructuredLinear
from lowdim.structured_models import MODULE
from lowdim.structured_pretrained import PLANS, compress

TOKENS = ok.whole("length")
LATENTS = ok.tensor("samples channels height width")
WARM_UP = 0.03  # of the steps, as in the authors' code


def _kinds(name: str, value, known: dict) -> None:
    ok.several(str, "structures")(name, value, known)
    for entry in value:
        ok.choice(name, entry, tuple(KINDS))


@ok.takes(model=MODULE, numbers=TOKENS, context=ok.count(2), batch=ok.count())
@torch.no_grad()
def perplexity(model: nn.Module, numbers: Tensor, context: int = 1024, batch: int = 1) -> float:
    """Perplexity of a text under a causal language model, in disjoint windows; what does not fill one is left out.

    Args:
        model: token numbers ``(batch, context)`` -> scores ``(batch, context, vocabulary)``, or an object with them as
            ``logits``, as models of transformers return.
        numbers: token numbers ``(length,)`` of the text.

    Raises:
        ParameterError: fewer tokens than one window.
    """
    _one_window("numbers", numbers, context)
    total, windows = 0.0, numbers[: len(numbers) // context * context].view(-1, context)
    for some in windows.split(batch):
        total += float(_loss(model, some.to(_place(model)), "sum"))
    return math.exp(total / (windows.numel() - len(windows)))


def _one_window(name: str, numbers: Tensor, context: int) -> None:
    if len(numbers) < context:
        raise ParameterError(f"{name} must hold at least one window of {context} tokens, got {len(numbers)}.")


def _place(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _loss(model: nn.Module, tokens: Tensor, reduction: str = "mean") -> Tensor:
    """Cross-entropy of each next token in windows ``(batch, context)``."""
    scores = model(tokens)
    scores = getattr(scores, "logits", scores)[:, :-1].float()
    return F.cross_entropy(scores.flatten(0, 1), tokens[:, 1:].flatten(), reduction=reduction)


@ok.takes(
    model=MODULE, numbers=TOKENS, steps=ok.count(0), generator=ok.generator, context=ok.count(2), batch=ok.count(),
    rate=ok.real(above=0),
)  # fmt: skip
def retrain(
    model: nn.Module, numbers: Tensor, steps: int, generator: torch.Generator, *, context=1024, batch=8, rate=2e-4
) -> None:
    """Train the structured layers of a causal language model on random windows of a text, in place.

    As in the authors' code for Llama: AdamW without weight decay, the rate rising over 3 % of the steps and falling as
    a cosine, bfloat16 on a GPU; only factors of structured layers, norms and biases move, if they require gradients.

    Args:
        numbers: token numbers ``(length,)``.
        generator: draws the windows.

    Raises:
        ParameterError: fewer tokens than one window, or a model without a structured layer.
    """
    _one_window("numbers", numbers, context)
    layers = [m for m in model.modules() if isinstance(m, StructuredLinear)]
    if not layers:
        raise ParameterError(f"model must have structured layers, got {type(model).__name__} without one.")
    inner = {id(p) for m in layers for p in m.parameters()}
    moving = [p for p in model.parameters() if p.requires_grad and (p.dim() == 1 or id(p) in inner)]
    place = _place(model)
    warm = max(1, round(WARM_UP * steps))
    optimizer = torch.optim.AdamW(moving, lr=rate, weight_decay=0.0)
    share = lambda t: min((t + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * max(0, t - warm) / max(1, steps - warm)))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    for _ in range(steps):
        begin = torch.randint(len(numbers) - context + 1, (batch, 1), generator=generator)
        windows = numbers[begin + torch.arange(context)].to(place)
        with torch.autocast(place.type, torch.bfloat16, enabled=place.type == "cuda"):
            loss = _loss(model, windows)
        for parameter, gradient in zip(moving, torch.autograd.grad(loss, moving, allow_unused=True), strict=True):
            parameter.grad = gradient
        torch.nn.utils.clip_grad_norm_(moving, 1.0)
        optimizer.step()
        schedule.step()
    optimizer.zero_grad()


@ok.takes(
    model=MODULE, key=ok.one_of(*PLANS), kinds=_kinds, train=TOKENS, test=ok.whole("tokens"),
    steps=ok.count(0), generator=ok.generator, context=ok.count(2), batch=ok.count(), rate=ok.real(above=0),
    share=ok.real(above=0),
)  # fmt: skip
def perplexities(
    model: nn.Module, key: str, kinds: Sequence[str], train: Tensor, test: Tensor, steps: int,
    generator: torch.Generator, *, context=1024, batch=8, rate=2e-4, share=1.0, **fit,
) -> dict[str, tuple[float, float]]:  # fmt: skip
    """Perplexities of a model compressed by several structures: ``{kind: (before, after retraining)}``; ``"dense"``.

    Args:
        model: as from ``structured_pretrained.load``; it is left as it is.
        key, share, fit: as for ``structured_pretrained.compress``.
        train, test: token numbers of two texts.
        steps, generator, context, batch, rate: as for ``retrain``; the windows are the same for every structure.

    Raises:
        ParameterError: a text shorter than one window, or what the functions above refuse.
    """
    _one_window("train", train, context), _one_window("test", test, context)
    once = perplexity(model, test, context, batch)
    found, state = {"dense": (once, once)}, generator.get_state()
    for kind in kinds:
        small = copy.deepcopy(model)
        compress(small, key, kind, share=share, **(fit if kind == "blast" else {}))
        before = perplexity(small, test, context, batch)
        generator.set_state(state)
        retrain(small, train, steps, generator, context=context, batch=batch, rate=rate)
        found[kind] = before, perplexity(small, test, context, batch)
    return found


@ok.takes(model=MODULE, start=LATENTS, labels=ok.whole("samples"), steps=ok.count(1, 999))
def transformer_samples(model: nn.Module, start: Tensor, labels: Tensor, steps: int = 50) -> Tensor:
    """Latents of a class-conditional diffusion transformer (DiT) by DDIM from noise ``start``, without guidance.

    Args:
        model: ``model(latents, timestep=, class_labels=).sample``, whose first half of the channels is the noise, as
            ``DiTTransformer2DModel`` of diffusers.
        labels: classes ``(samples,)``.
    """
    schedule = Schedule(torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0))

    def noise(z, time):
        times = torch.full((len(z),), time, device=z.device)
        return model(z, timestep=times, class_labels=labels).sample[:, : z.shape[1]]

    same = lambda x: x
    return LatentDiffusion(same, same, noise, schedule, start.shape[1:], start.shape[1:], None).sample(start, steps)


@ok.takes(
    model=MODULE, key=ok.one_of(*PLANS), kinds=_kinds, start=LATENTS, labels=ok.whole("samples"),
    steps=ok.count(1, 999), share=ok.real(above=0),
)  # fmt: skip
def same_noise(
    model: nn.Module, key: str, kinds: Sequence[str], start: Tensor, labels: Tensor, steps: int = 50, share=1.0, **fit
) -> dict[str, Tensor]:
    """Distances between samples of a diffusion transformer and of its compressed copies, from the same noise.

    Returns:
        ``{kind: (samples,)}``: mean squared differences, relative to the variance of the original's samples.
    """
    original, found = transformer_samples(model, start, labels, steps), {}
    for kind in kinds:
        small = copy.deepcopy(model)
        compress(small, key, kind, share=share, **(fit if kind == "blast" else {}))
        missed = transformer_samples(small, start, labels, steps) - original
        found[kind] = missed.square().flatten(1).mean(1) / original.var()
    return found
