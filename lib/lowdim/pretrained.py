"""Published latent diffusion models behind this library's interface. diffusers is optional, and imported only here."""

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from lowdim import checks as ok
from lowdim.data import DataError, cache_folder
from lowdim.diffusion import LatentDiffusion, Schedule

CELEBAHQ = "CompVis/ldm-celebahq-256"


@ok.takes(
    unet=ok.kind(nn.Module, "a module"),
    vqvae=ok.kind(nn.Module, "a module"),
    scheduler=ok.has("alphas_cumprod"),
    side=ok.count(),
)
def adapt(unet: nn.Module, vqvae: nn.Module, scheduler, side: int = 256) -> LatentDiffusion:
    """The three parts of an unconditional latent diffusion pipeline of diffusers as a ``LatentDiffusion``.

    Args:
        unet: ``unet(z, time).sample`` predicts the noise; ``unet.config`` has ``in_channels`` and ``sample_size``.
        vqvae: ``encode(x).latents`` and ``decode(z, force_not_quantize=True).sample``: the continuous latent is used,
            because the quantiser has no gradient. Latents are multiplied by ``config.scaling_factor``, if any.
        scheduler: has ``alphas_cumprod``.
        side: of the images.

    The noise predictor runs in bfloat16 on a GPU, the decoder, which is optimised through, in float32.
    """
    for part in (unet, vqvae):
        part.eval().requires_grad_(False)
    factor = getattr(vqvae.config, "scaling_factor", None) or 1.0

    def noise(z: Tensor, time: int) -> Tensor:
        with torch.autocast(z.device.type, torch.bfloat16, enabled=z.device.type == "cuda"):
            return unet(z, time).sample.to(z.dtype)

    return LatentDiffusion(
        encode=lambda images: factor * vqvae.encode(images).latents,
        decode=lambda z: vqvae.decode(z / factor, force_not_quantize=True).sample,
        noise=noise,
        schedule=Schedule(scheduler.alphas_cumprod.double().cpu()),
        latent_shape=(unet.config.in_channels, unet.config.sample_size, unet.config.sample_size),
        image_shape=(3, side, side),
    )


@ok.takes(name=ok.text, device=ok.kind((str, torch.device), "the name of a device"))
def load(name: str = CELEBAHQ, device: torch.device | str = "cpu") -> LatentDiffusion:
    """A model of the Hugging Face hub with the folders ``unet``, ``vqvae`` and ``scheduler``.

    Raises:
        DataError: diffusers is not installed, or the weights are neither in its cache nor to be had.
    """
    try:
        from diffusers import DDIMScheduler, UNet2DModel, VQModel
    except ImportError as error:
        raise DataError(f"{name} needs diffusers, which is not installed: pip install diffusers.") from error
    try:
        unet, vqvae = (kind.from_pretrained(name, subfolder=folder).to(device)
                       for kind, folder in ((UNet2DModel, "unet"), (VQModel, "vqvae")))  # fmt: skip
        scheduler = DDIMScheduler.from_pretrained(name, subfolder="scheduler")
    except OSError as error:
        raise DataError(
            f"the weights of {name} are neither in diffusers' cache nor to be had from the hub: "
            "connect once, or copy the cache."
        ) from error
    return adapt(unet, vqvae, scheduler)


@ok.takes(folder=ok.text, count=ok.count(), side=ok.count())
def images(folder: str, count: int, side: int = 256) -> Tensor:
    """The first pictures of a folder in the data cache, cut to squares, ``(count, 3, side, side)`` with values -1 to 1.

    Raises:
        DataError: fewer pictures than asked for.
    """
    place = cache_folder() / folder
    paths = sorted(path for path in place.glob("*") if path.suffix.lower() in (".png", ".jpg", ".jpeg"))[:count]
    if len(paths) < count:
        raise DataError(f"{count} pictures (.png or .jpg) are needed in {place}, found {len(paths)}: copy them there.")
    squares = [ImageOps.fit(Image.open(path).convert("RGB"), (side, side), Image.Resampling.BICUBIC) for path in paths]
    return torch.stack([torch.from_numpy(np.array(s)).permute(2, 0, 1) for s in squares]).float() / 127.5 - 1
