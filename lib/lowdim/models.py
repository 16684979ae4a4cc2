"""Small models with their sizes as arguments: MLP, vision transformer, GPT. Plain modules, for any trainer.

Layers that one may want to replace are ``nn.Linear`` with the names ``blocks.N.attn.qkv``, ``blocks.N.attn.proj``,
``blocks.N.mlp.fc1`` and ``blocks.N.mlp.fc2``.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowdim.checks import ParameterError, integer


class MLP(nn.Module):
    """Linear layers ``fc0, fc1, ...`` of the given sizes with ReLU between them."""

    def __init__(self, sizes: Sequence[int], generator: torch.Generator | None = None):
        super().__init__()
        if len(sizes) < 2:
            raise ParameterError(f"sizes must have at least an input and an output, got {list(sizes)}.")
        for l, (inp, out) in enumerate(pairwise(sizes)):
            setattr(self, f"fc{l}", nn.Linear(integer("size", inp, at_least=1), integer("size", out, at_least=1)))
        self.depth = len(sizes) - 1
        start(self, generator)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., sizes[0])`` to ``(..., sizes[-1])``."""
        for l in range(self.depth):
            x = getattr(self, f"fc{l}")(x)
            x = F.relu(x) if l < self.depth - 1 else x
        return x


class Attention(nn.Module):
    """Multi-head self-attention ``(..., tokens, width)``."""

    def __init__(self, width: int, heads: int, causal: bool):
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).movedim(-4, -2).unbind(-3)
        q, k, v = (part.movedim(-2, -3) if False else part for part in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.proj(y.movedim(-3, -2).flatten(-2))


class Feedforward(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Block(nn.Module):
    """A transformer block with the norms first."""

    def __init__(self, width: int, heads: int, causal: bool):
        super().__init__()
        self.ln1, self.attn = nn.LayerNorm(width), Attention(width, heads, causal)
        self.ln2, self.mlp = nn.LayerNorm(width), Feedforward(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln1(x))
        return x + self.mlp(self.ln2(x))


class GPT(nn.Module):
    """A language model in the form of GPT-2: learned positions, norms first, the head tied to the embedding.

    Raises:
        ParameterError: a size that is not positive, or heads that do not divide the width.
    """

    def __init__(self, vocabulary: int, context: int, width: int, depth: int, heads: int, generator=None):
        super().__init__()
        _check(width, heads, vocabulary=vocabulary, context=context, depth=depth)
        self.context = context
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads, causal=True) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.tokens.weight
        start(self, generator)

    def forward(self, tokens: Tensor) -> Tensor:
        """Token numbers ``(..., time)`` to logits ``(..., time, vocabulary)``."""
        x = self.tokens(tokens) + self.positions.weight[: tokens.shape[-1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class ViT(nn.Module):
    """A vision transformer: patches, learned positions, norms first, the mean over patches classified.

    Raises:
        ParameterError: a size that is not positive, or a patch or heads that do not divide what they cut.
    """

    def __init__(
        self, image: int, patch: int, channels: int, classes: int, width: int, depth: int, heads: int, generator=None
    ):
        super().__init__()
        _check(width, heads, image=image, patch=patch, channels=channels, classes=classes, depth=depth)
        if image % patch:
            raise ParameterError(f"patch must divide the image's side {image}, got {patch}.")
        self.patch = patch
        self.embed = nn.Linear(channels * patch**2, width)
        self.positions = nn.Parameter(torch.zeros((image // patch) ** 2, width))
        self.blocks = nn.ModuleList(Block(width, heads, causal=False) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)
        start(self, generator)

    def forward(self, images: Tensor) -> Tensor:
        """Images ``(..., channels, side, side)`` to logits ``(..., classes)``."""
        x = images.unflatten(-1, (-1, self.patch)).unflatten(-3, (-1, self.patch))  # (..., c, y, dy, x, dx)
        x = x.movedim(-5, -3).movedim(-2, -4).flatten(-3).flatten(-3, -2)
        x = self.embed(x) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(-2))


def start(model: nn.Module, generator: torch.Generator | None) -> None:
    """GPT-2's start: matrices and embeddings ``N(0, 0.02^2)``, but ``N(0, 1 / fan_in)`` where that is larger; no bias."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            fan = module.weight.shape[-1] if isinstance(module, nn.Linear) else 2500
            nn.init.normal_(module.weight, 0, max(0.02, fan**-0.5), generator=generator)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)
    if isinstance(model, GPT):  # the tied head was drawn last, as a head
        nn.init.normal_(model.tokens.weight, 0, 0.02, generator=generator)


def _check(width: int, heads: int, **sizes: int) -> None:
    for name, value in dict(width=width, heads=heads, **sizes).items():
        integer(name, value, at_least=1)
    if width % heads:
        raise ParameterError(f"heads must divide the width {width}, got {heads}.")
