"""Small models for latent diffusion: autoencoder, noise predictors, and their training in seconds.

The networks are plain ``nn.Module``; a batch is ``(samples, ...)``. On a GPU training uses bfloat16 autocast.
"""

import math
from collections.abc import Callable, Iterable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowdim import checks as ok
from lowdim.checks import ParameterError, integer
from lowdim.diffusion import LatentDiffusion, Schedule, add_noise, check_images
from lowdim.ensembles import _adamw

MODEL = ok.kind(nn.Module, "a module")
FIT = dict(random=ok.generator, steps=ok.count(), batch=ok.count(), rate=ok.real(above=0))


def embedding(times: Tensor, size: int, longest: float = 1000.0) -> Tensor:
    """Sines and cosines of the time, ``(samples, size)``, with wavelengths from ``2 pi`` to ``2 pi longest``."""
    rates = torch.exp(-torch.arange(size // 2, device=times.device) * torch.log(torch.tensor(longest)) / (size // 2))
    angles = times.float()[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1)


def mlp(*sizes: int) -> nn.Sequential:
    """Linear layers with SiLU between them."""
    ok.sizes(2)("sizes", sizes, {})
    layers = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), nn.SiLU()]
    return nn.Sequential(*layers[:-1])


class Autoencoder(nn.Module):
    """Images to latents and back; latents are standardised once trained, so that the diffusion sees unit variance.

    Args:
        image_shape: of one image.
        latent: number of latent dimensions.
        width: of the two hidden layers on each side.
    """

    @ok.takes(image_shape=ok.sizes(1), latent=ok.count(), width=ok.count())
    def __init__(self, image_shape: tuple[int, ...], latent: int, width: int):
        super().__init__()
        self.image_shape, pixels = tuple(image_shape), int(torch.tensor(image_shape).prod())
        self.inward, self.outward = mlp(pixels, width, width, latent), mlp(latent, width, width, pixels)
        self.register_buffer("mean", torch.zeros(latent))
        self.register_buffer("deviation", torch.ones(latent))

    def encode(self, images: Tensor) -> Tensor:
        return (self.inward(images.flatten(1)) - self.mean) / self.deviation

    def decode(self, latents: Tensor) -> Tensor:
        return self.outward(latents * self.deviation + self.mean).unflatten(1, self.image_shape)


class ConvAutoencoder(nn.Module):
    """The same for larger images: two strided convolutions down, two up, a latent picture a quarter of the side."""

    @ok.takes(channels=ok.count(), latent_channels=ok.count(), width=ok.count())
    def __init__(self, channels: int, latent_channels: int, width: int):
        super().__init__()
        down, up = dict(kernel_size=4, stride=2, padding=1), dict(scale_factor=2)
        same = lambda a, b: nn.Conv2d(a, b, 3, padding=1)
        self.encode = nn.Sequential(
            nn.Conv2d(channels, width, **down), nn.SiLU(),
            nn.Conv2d(width, 2 * width, **down), nn.SiLU(),
            same(2 * width, latent_channels),
        )  # fmt: skip
        self.decode = nn.Sequential(
            same(latent_channels, 2 * width), nn.SiLU(),
            nn.Upsample(**up), same(2 * width, width), nn.SiLU(),
            nn.Upsample(**up), same(width, width), nn.SiLU(),
            same(width, channels),
        )  # fmt: skip


class ResidualMLP(nn.Module):
    """Noise predictor for flat latents: residual blocks whose hidden layer is shifted by the time.

    Args:
        latent: dimensions.
        width, blocks: of the residual stream.
    """

    @ok.takes(latent=ok.count(), width=ok.count(), blocks=ok.count())
    def __init__(self, latent: int, width: int = 256, blocks: int = 4):
        super().__init__()
        self.inward, self.outward = nn.Linear(latent, width), nn.Linear(width, latent)
        self.first = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.shift = nn.Linear(64, width * blocks)
        self.second = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))

    def forward(self, z: Tensor, times: Tensor) -> Tensor:
        shifts = self.shift(embedding(times, 64).to(z.dtype)).chunk(len(self.first), 1)  # one row if the time is shared
        h = self.inward(z)
        for first, shift, second in zip(self.first, shifts, self.second, strict=True):
            h = h + second(F.silu(first(F.silu(h)) + shift))
        return self.outward(F.silu(h))


class _Block(nn.Module):
    """A residual block of the U-Net."""

    def __init__(self, inward: int, outward: int, times: int):
        super().__init__()
        self.first, self.second = nn.Conv2d(inward, outward, 3, padding=1), nn.Conv2d(outward, outward, 3, padding=1)
        self.norm, self.norm2 = nn.GroupNorm(min(8, inward), inward), nn.GroupNorm(8, outward)
        self.shift = nn.Linear(times, outward)
        self.skip = nn.Identity() if inward == outward else nn.Conv2d(inward, outward, 1)

    def forward(self, x: Tensor, when: Tensor) -> Tensor:
        h = self.first(F.silu(self.norm(x))) + self.shift(when)[:, :, None, None]
        return self.skip(x) + self.second(F.silu(self.norm2(h)))


class UNet(nn.Module):
    """A small U-Net that predicts the noise of pictures ``(samples, channels, side, side)``.

    Args:
        channels: of the picture.
        width: channels of the first level, a multiple of 8; they double at each level.
        levels: the side must be divisible by ``2^(levels - 1)``.
    """

    @ok.takes(channels=ok.count())
    def __init__(self, channels: int, width: int = 32, levels: int = 3):
        super().__init__()
        integer("levels", levels, at_least=1)
        if integer("width", width, at_least=8) % 8:
            raise ParameterError(f"width must be a multiple of 8, got {width}.")
        sizes = [width * 2**k for k in range(levels)]
        self.times = nn.Sequential(nn.Linear(64, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.inward = nn.Conv2d(channels, width, 3, padding=1)
        self.down = nn.ModuleList(_Block(a, b, width) for a, b in zip([width, *sizes[:-1]], sizes, strict=True))
        self.middle = _Block(sizes[-1], sizes[-1], width)
        befores = [sizes[-1], *sizes[:0:-1]]
        self.up = nn.ModuleList(_Block(a + b, b, width) for a, b in zip(befores, reversed(sizes), strict=True))
        self.outward = nn.Sequential(nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, channels, 3, padding=1))

    def forward(self, z: Tensor, times: Tensor) -> Tensor:
        when, h, kept = self.times(embedding(times, 64).to(z.dtype)), self.inward(z), []
        for k, block in enumerate(self.down):
            h = block(h if k == 0 else F.avg_pool2d(h, 2), when)
            kept.append(h)
        h = self.middle(h, when)
        for k, block in enumerate(self.up):
            h = block(torch.cat([h if k == 0 else F.interpolate(h, scale_factor=2.0), kept.pop()], 1), when)
        return self.outward(h)


@ok.takes(model=MODEL, random=ok.generator)
def initialise(model: nn.Module, random: torch.Generator) -> nn.Module:
    """Draw all weights from a generator (uniform, variance 1/(3 fan-in); biases zero): no global seed counts."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            limit = module.weight[0].numel() ** -0.5
            draw = torch.rand(module.weight.shape, generator=random, device=random.device, dtype=module.weight.dtype)
            with torch.no_grad():
                module.weight.copy_((2 * draw - 1) * limit)
                if module.bias is not None:
                    module.bias.zero_()
    return model


def _fit(model: nn.Module, loss: Callable, samples: int, steps: int, batch: int, rate: float, random) -> None:
    """AdamW (weight decay 0.01) with a cosine to zero; ``loss`` gets the numbers of the samples in the batch.

    All parameters and gradients live in two flat vectors, so that a step is a handful of operations however many layers
    there are.
    """
    parameters = list(model.parameters())
    device, sizes = parameters[0].device, [p.numel() for p in parameters]
    flat = torch.cat([p.detach().flatten() for p in parameters])
    slope, moments = torch.zeros_like(flat), (torch.zeros_like(flat), torch.zeros_like(flat))
    for p, value, gradient in zip(parameters, flat.split(sizes), slope.split(sizes), strict=True):
        p.data, p.grad = value.view_as(p), gradient.view_as(p)
    for k, pick in enumerate(torch.randint(samples, (steps, batch), generator=random).to(device)):
        slope.zero_()
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            value = loss(pick)
        value.backward()
        now = rate * (1 + math.cos(math.pi * k / steps)) / 2
        _adamw(flat, slope, moments, k + 1, now, 0.01, (0.9, 0.999))
    model.eval().requires_grad_(False)
    for p in parameters:
        p.grad = None


@ok.takes(
    model=ok.has("encode", "decode", "image_shape"),
    noise=ok.real(at_least=0),
    penalty=ok.real(at_least=0),
    images=ok.tensor("samples ...", finite=False),
    **FIT,
)
def train_autoencoder(model: Autoencoder, images: Tensor, random: torch.Generator, steps: int = 1500, batch: int = 128,
                      rate: float = 2e-3, noise: float = 0.1, penalty: float = 1e-3) -> Autoencoder:  # fmt: skip
    """Reconstruct ``images`` ``(samples, *image_shape)`` through noisy latents; standardise the latents at the end.

    Args:
        noise: standard deviation of the noise on the latent while training: it makes the decoder smooth.
        penalty: weight of the latent's mean square, which keeps the noise from being out-scaled.

    Raises:
        ParameterError: images that are not finite, of another size than the model's, or not within -1 to 1.
    """
    check_images(images, model.image_shape, (-1.0, 1.0))
    initialise(model, random)

    def loss(pick: Tensor) -> Tensor:
        x = images[pick]
        z = model.encode(x)
        bumps = torch.randn(z.shape, generator=random).to(z)
        return F.mse_loss(model.decode(z + noise * bumps), x) + penalty * z.square().mean()

    _fit(model, loss, len(images), steps, batch, rate, random)
    z = model.encode(images)
    model.mean, model.deviation = z.mean(0), z.std(0)
    return model


@ok.takes(model=MODEL, latents=ok.tensor("samples ..."), schedule=ok.kind(Schedule, "a Schedule"), **FIT)
def train_denoiser(model: nn.Module, latents: Tensor, schedule: Schedule, random: torch.Generator, steps: int = 2000,
                   batch: int = 128, rate: float = 1e-3) -> nn.Module:  # fmt: skip
    """Learn to predict the noise on ``latents`` at random times; ``model(z, times)``."""
    initialise(model, random)
    abar = schedule.abar.to(latents)

    def loss(pick: Tensor) -> Tensor:
        clean = latents[pick]
        times = torch.randint(len(abar), (len(pick),), generator=random).to(pick.device)
        noise = torch.randn(clean.shape, generator=random).to(clean)
        noisy = add_noise(clean, abar[times].reshape(-1, *[1] * (clean.ndim - 1)), noise)
        return F.mse_loss(model(noisy, times), noise)

    _fit(model, loss, len(latents), steps, batch, rate, random)
    return model


@ok.takes(
    autoencoder=ok.has("encode", "decode"), denoiser=ok.function, latent_shape=ok.sizes(1), image_shape=ok.sizes(1)
)
def latent_diffusion(
    autoencoder: nn.Module, denoiser: nn.Module, schedule: Schedule, latent_shape, image_shape
) -> LatentDiffusion:
    """The parts as one model; all samples of a batch share the time."""
    noise = lambda z, time: denoiser(z, torch.full((1,), time, device=z.device))
    return LatentDiffusion(
        autoencoder.encode, autoencoder.decode, noise, schedule, tuple(latent_shape), tuple(image_shape)
    )


@ok.takes(forward=ok.function, parameters=ok.kind(Iterable, "tensors"))
def kept_for_gradient(forward: Callable[[], Tensor], parameters: Iterable[Tensor]) -> int:
    """Bytes that autograd keeps for the backward pass of ``forward``, beside the parameters: a count, not a timing."""
    owned, kept = {p.untyped_storage().data_ptr() for p in parameters}, {}

    def remember(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor), torch.enable_grad():
        value = forward()
    del value
    return sum(kept.values())
