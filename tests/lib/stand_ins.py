"""Small models that run, with the layer names of published ones."""

from types import SimpleNamespace

import torch
from torch import nn


class Block(nn.Module):
    """A block of GPT-2 without attention proper: each token by itself."""

    def __init__(self, width: int):
        super().__init__()
        self.attn, self.mlp, self.ln = nn.Module(), nn.Module(), nn.LayerNorm(width)
        self.attn.c_attn = nn.Linear(width, 3 * width)
        self.mlp.c_fc, self.mlp.c_proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        return x + self.attn.c_attn(x)[..., : x.shape[-1]] + self.mlp.c_proj(self.mlp.c_fc(self.ln(x)).relu())


class Bigrams(nn.Module):
    """A language model with GPT-2's names that sees only the last token."""

    def __init__(self, vocabulary: int = 12, width: int = 24):
        super().__init__()
        self.transformer = nn.Module()
        self.transformer.wte = nn.Embedding(vocabulary, width)
        self.transformer.h = nn.ModuleList([Block(width)])
        self.lm_head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens):
        return SimpleNamespace(logits=self.lm_head(self.transformer.h[0](self.transformer.wte(tokens))))


class Denoiser(nn.Module):
    """A diffusion transformer with DiT's names, for latents ``(samples, 1, 6, 6)``; predicts a variance too."""

    def __init__(self, classes: int = 3, width: int = 36):
        super().__init__()
        block, net = nn.Module(), nn.Module()
        block.norm1, block.attn1, block.ff = nn.Module(), nn.Module(), nn.Module()
        block.norm1.linear, net.proj = nn.Linear(width, 6 * width), nn.Linear(width, 4 * width)
        for which in "qkv":
            setattr(block.attn1, f"to_{which}", nn.Linear(width, width))
        block.ff.net = nn.ModuleList([net, nn.Linear(4 * width, width)])
        self.transformer_blocks, self.classes = nn.ModuleList([block]), nn.Embedding(classes, width)

    def forward(self, latents, timestep, class_labels):
        x, block = latents.flatten(1) + self.classes(class_labels), self.transformer_blocks[0]
        x = x + (block.attn1.to_q(x) * block.attn1.to_k(x)).tanh() * block.attn1.to_v(x)
        x = x * block.norm1.linear(x)[:, : x.shape[1]].tanh()
        x = x + block.ff.net[1](block.ff.net[0].proj(x).relu())
        return SimpleNamespace(sample=torch.cat([x, -x], 1).view(len(x), 2, 6, 6))


def text(length: int, vocabulary: int = 12) -> torch.Tensor:
    """Numbers of which each is mostly the one before plus five."""
    noise = torch.rand(length, generator=torch.Generator().manual_seed(4)) < 0.1
    return (5 * torch.arange(length) + noise.cumsum(0)) % vocabulary
