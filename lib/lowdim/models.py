"""Small models with their sizes as arguments: MLP, vision transformer, GPT. Plain modules, for any trainer.

Layers that one may want to replace are ``nn.Linear`` with the names ``blocks.N.attn.qkv``, ``blocks.N.attn.proj``,
``blocks.N.mlp.fc1`` and ``blocks.N.mlp.fc2``.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowdim import checks as ok
from lowdim.checks import ParameterError, integer

STD = 0.02  # of initial weights, as in GPT-2
RANDOM = ok.optional(ok.generator)
START = dict(generator=RANDOM, std=ok.real(above=0), embedding=ok.optional(ok.real(above=0)))


class MLP(nn.Module):
    """Linear layers ``fc0, fc1, ...`` of the given sizes with ReLU between them."""

    @ok.takes(sizes=ok.sizes(2), generator=RANDOM)
    def __init__(self, sizes: Sequence[int], generator: torch.Generator | None = None):
        super().__init__()
        if len(sizes) < 2:
            raise ParameterError(f"sizes must have at least an input and an output, got {list(sizes)}.")
        for l, (inp, out) in enumerate(pairwise(sizes)):
            setattr(self, f"fc{l}", nn.Linear(integer("size", inp, at_least=1), integer("size", out, at_least=1)))
            nn.init.normal_(getattr(self, f"fc{l}").weight, 0, (2 / inp) ** 0.5, generator=generator)
            nn.init.zeros_(getattr(self, f"fc{l}").bias)
        self.depth = len(sizes) - 1

    def forward(self, x: Tensor) -> Tensor:
        """``(..., sizes[0])`` to ``(..., sizes[-1])``."""
        for l in range(self.depth):
            x = getattr(self, f"fc{l}")(x)
            x = F.relu(x) if l < self.depth - 1 else x
        return x


class Attention(nn.Module):
    """Multi-head self-attention ``(..., tokens, width)``."""

    @ok.takes(causal=ok.flag)
    def __init__(self, width: int, heads: int, causal: bool):
        super().__init__()
        _check(width, heads)
        self.heads, self.causal = heads, causal
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(-3)  # three times (..., tokens, heads, size)
        q, k, v = (part.transpose(-3, -2) for part in parts)
        y = attention(q, k, v, self.causal)
        return self.proj(y.transpose(-3, -2).flatten(-2))


def attention(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """Scaled dot-product attention ``(..., heads, tokens, size)``; short contexts as products, which vmap batches."""
    tokens = q.shape[-2]
    if tokens > 128:
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    scores = (q * q.shape[-1] ** -0.5) @ k.mT
    if causal:
        scores = scores + torch.full((tokens, tokens), -torch.inf, dtype=q.dtype, device=q.device).triu(1)
    return scores.softmax(-1) @ v


class Feedforward(nn.Module):
    """Two linear layers with a ReLU between them (or a tanh-approximated GELU, as in GPT-2)."""

    @ok.takes(width=ok.count(), hidden=ok.count(), gelu=ok.flag)
    def __init__(self, width: int, hidden: int, gelu: bool = False):
        super().__init__()
        self.gelu = gelu
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.fc1(x)
        return self.fc2(F.gelu(hidden, approximate="tanh") if self.gelu else F.relu(hidden))


class Block(nn.Module):
    """A transformer block with the norms first."""

    @ok.takes(width=ok.count(), causal=ok.flag, gelu=ok.flag)
    def __init__(self, width: int, heads: int, causal: bool, gelu: bool = False):
        super().__init__()
        self.ln1, self.attn = nn.LayerNorm(width), Attention(width, heads, causal)
        self.ln2, self.mlp = nn.LayerNorm(width), Feedforward(width, 4 * width, gelu)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln1(x))
        return x + self.mlp(self.ln2(x))


class GPT(nn.Module):
    """A language model in the form of GPT-2: learned positions, norms first, the head tied to the embedding.

    ``std`` and ``embedding`` as in ``start``; a narrow model learns faster from larger ones than GPT-2's.

    Raises:
        ParameterError: a size that is not positive, or heads that do not divide the width.
    """

    @ok.takes(gelu=ok.flag, **START)
    def __init__(
        self, vocabulary: int, context: int, width: int, depth: int, heads: int, generator=None, gelu=False, *,
        std=STD, embedding=None,
    ):  # fmt: skip
        super().__init__()
        _check(width, heads, vocabulary=vocabulary, context=context, depth=depth)
        self.context = context
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads, causal=True, gelu=gelu) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.tokens.weight
        start(self, generator, std, embedding)

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

    @ok.takes(generator=RANDOM)
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
        x = x.movedim((-4, -2), (-5, -4)).flatten(-3).flatten(-3, -2)  # (..., y x, c dy dx)
        x = self.embed(x) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(-2))


@ok.takes(model=ok.kind(nn.Module, "a module"), **START)
def start(
    model: nn.Module, generator: torch.Generator | None, std: float = STD, embedding: float | None = None
) -> None:
    """GPT-2's start for any model: linear layers and embeddings ``N(0, 0.02^2)``, biases zero.

    ``embedding`` is the standard deviation of embeddings (and of a head tied to one) where it is not ``std``.
    """
    widths = {nn.Linear: std, nn.Embedding: std if embedding is None else embedding}
    tied = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            kind = nn.Embedding if id(module.weight) in tied else nn.Linear
            nn.init.normal_(module.weight, 0, widths[kind], generator=generator)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)


def _check(width: int, heads: int, **sizes: int) -> None:
    for name, value in dict(width=width, heads=heads, **sizes).items():
        integer(name, value, at_least=1)
    if width % heads:
        raise ParameterError(f"heads must divide the width {width}, got {heads}.")
