"""How good a reconstruction or a sample is: PSNR, distance to the data, distance between distributions.

Short exact formulas of our own; perceptual measures such as LPIPS need downloaded weights and stay out of the library.
"""

import torch
from torch import Tensor

from lowdim import checks as ok
from lowdim.checks import ParameterError


@ok.takes(images=ok.tensor("samples ..."), truth=ok.tensor("samples ..."), low=ok.real(), high=ok.real())
def psnr(images: Tensor, truth: Tensor, low: float = -1.0, high: float = 1.0) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB, ``(samples,)``, after clipping to the range of the pixels.

    Raises:
        ParameterError: two shapes.
    """
    if high <= low:
        raise ParameterError(f"high must be larger than low, got {high!r} and {low!r}.")
    if images.shape != truth.shape:
        raise ParameterError(
            f"images and truth must have one shape, got {tuple(images.shape)} and {tuple(truth.shape)}."
        )
    error = (images.clamp(low, high) - truth).flatten(1).square().mean(1)
    return 10 * torch.log10((high - low) ** 2 / error)


@ok.takes(samples=ok.tensor("samples ..."), data=ok.tensor("points ..."))
def nearest_distance(samples: Tensor, data: Tensor) -> Tensor:
    """Euclidean distance from each sample to the nearest point of the data, ``(samples,)``."""
    if samples[0].numel() != data[0].numel():
        raise ParameterError(
            f"data must have points of {samples[0].numel()} numbers, as samples {tuple(samples.shape)} do, "
            f"got {tuple(data.shape)}."
        )
    exact = "donot_use_mm_for_euclid_dist"  # matrix products would round small distances away
    return torch.cdist(samples.flatten(1), data.flatten(1), compute_mode=exact).amin(1)


@ok.takes(samples=ok.tensor("runs n 2"), reference=ok.tensor("runs m 2"), directions=ok.count(1))
def sliced_wasserstein(samples: Tensor, reference: Tensor, directions: int = 32) -> Tensor:
    """Mean over directions of the Wasserstein-1 distance of projections, in the plane: ``(runs,)``.

    Args:
        samples: ``(runs, n, 2)``.
        reference: ``(runs, m, 2)``; ``m`` a multiple of ``n``.
        directions: spread evenly over half a turn.

    Raises:
        ParameterError: sizes that do not fit.
    """
    n, m = samples.shape[1], reference.shape[1]
    if samples.shape[-1] != 2 or m % n:
        raise ParameterError(
            f"samples must be (runs, n, 2) and n must divide the reference's {m}, got {tuple(samples.shape)}."
        )
    angle = torch.arange(directions, dtype=samples.dtype, device=samples.device) * torch.pi / directions
    axes = torch.stack([angle.cos(), angle.sin()])
    ours = (samples @ axes).sort(1).values.repeat_interleave(m // n, 1)
    return (ours - (reference @ axes).sort(1).values).abs().mean((1, 2))
