"""Measurement operators of imaging: what a camera or a scanner does to an image.

An operator maps images ``(samples, channels, height, width)`` to measurements ``(samples, *shape)``. Linear ones have
an exact adjoint. Convolutions and interpolation matrices are torch's own; a library of operators (deepinv) has more of
them, but pulls in a training framework, and needs no less code to be batched over masks and stopped per sample.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from lowdim import checks as ok
from lowdim.checks import ParameterError, integer, number

Size = tuple[int, int, int]
MATRIX = ok.tensor("rows columns")


def _check_size(image_shape: Size) -> None:
    if len(image_shape) != 3:
        raise ParameterError(f"image_shape must be (channels, height, width), got {tuple(image_shape)}.")


class Operator:
    """A measurement ``y = A(x)``.

    Attributes:
        image_shape: ``(channels, height, width)``.
        shape: shape of one measurement.
        linear: whether there is an adjoint.
    """

    image_shape: Size
    shape: tuple[int, ...]
    linear = True

    def __call__(self, images: Tensor) -> Tensor:
        raise NotImplementedError

    def adjoint(self, measured: Tensor) -> Tensor:
        """``A^T y`` for linear operators.

        Raises:
            ParameterError: the operator is not linear.
        """
        raise ParameterError(f"{type(self).__name__} is not linear: it has no adjoint.")

    def pull(self, images: Tensor, error: Tensor) -> Tensor:
        """The gradient of ``<A(x), error>`` in the images: ``A^T error`` for linear operators.

        Raises:
            ParameterError: the operator is not linear, and has no gradient of its own.
        """
        return self.adjoint(error)

    def select(self, samples: Tensor) -> "Operator":
        """The operator for some of the samples; itself unless it differs from sample to sample."""
        return self

    def check(self, measured: Tensor) -> Tensor:
        """The measurement, if this operator can have made it.

        Raises:
            ParameterError: with both shapes.
        """
        if tuple(measured.shape[1:]) != tuple(self.shape):
            raise ParameterError(
                f"y must be what the operator gives, (samples, {', '.join(map(str, self.shape))}), "
                f"got {tuple(measured.shape)}."
            )
        return measured

    @ok.takes(images=ok.tensor("samples ...", finite=False), sigma=ok.real(at_least=0), random=ok.generator)
    def measure(self, images: Tensor, sigma: float, random: torch.Generator) -> Tensor:
        """``A(x) + sigma n`` with standard normal ``n`` on everything that is observed, and on nothing else."""
        if tuple(images.shape[1:]) != tuple(self.image_shape):
            size = ", ".join(map(str, self.image_shape))
            raise ParameterError(f"images must be (samples, {size}), got {tuple(images.shape)}.")
        clean = self(images)
        noise = torch.randn(clean.shape, generator=random, dtype=clean.dtype, device=random.device)
        return clean + sigma * noise.to(clean.device)


class Inpainting(Operator):
    """Some of the pixels, the same in all channels, as a list: what is not seen is no part of the measurement.

    Args:
        kept: numbers of the pixels seen, ``(pixels,)``, or one list a sample, ``(samples, pixels)``.
        image_shape: ``(channels, height, width)``.
    """

    @ok.takes(kept=ok.tensor("pixels", "samples pixels", floating=False, finite=False), image_shape=ok.sizes(3))
    def __init__(self, kept: Tensor, image_shape: Size):
        _check_size(image_shape)
        if kept.dtype != torch.long:
            raise ParameterError(f"kept must hold numbers of pixels (torch.int64), got {kept.dtype}.")
        if kept.device.type == "cpu":  # elsewhere a look would cost a wait; there gather refuses
            for one in (kept.min(), kept.max()):
                integer("every entry of kept", int(one), at_least=0, at_most=image_shape[1] * image_shape[2] - 1)
        self.kept, self.image_shape = kept, tuple(image_shape)
        self.shape = (image_shape[0], kept.shape[-1])

    def _index(self, like: Tensor) -> Tensor:
        kept = self.kept if self.kept.ndim == 2 else self.kept[None]
        return kept[:, None].to(like.device).expand(len(like), *self.shape)

    def __call__(self, images: Tensor) -> Tensor:
        return images.flatten(2).gather(2, self._index(images))

    def adjoint(self, measured: Tensor) -> Tensor:
        flat = measured.new_zeros(len(measured), self.image_shape[0], self.image_shape[1] * self.image_shape[2])
        return flat.scatter_add(2, self._index(measured), measured).reshape(-1, *self.image_shape)

    def select(self, samples: Tensor) -> "Inpainting":
        return self if self.kept.ndim == 1 else Inpainting(self.kept.to(samples.device)[samples], self.image_shape)


@ok.takes(image_shape=ok.sizes(3), random=ok.generator, samples=ok.optional(ok.count()))
def random_inpainting(
    image_shape: Size, dropped: float, random: torch.Generator, samples: int | None = None
) -> Inpainting:
    """Drop a share of the pixels at random; with ``samples``, every sample has its own mask.

    Raises:
        ParameterError: a share that leaves no pixel or all of them.
    """
    _check_size(image_shape)
    pixels = image_shape[1] * image_shape[2]
    count = round(pixels * (1 - number("dropped", dropped, above=0, below=1)))
    integer("number of pixels seen", count, at_least=1, at_most=pixels - 1)
    order = torch.rand(samples or 1, pixels, generator=random).argsort(1)[:, :count].sort(1).values
    return Inpainting(order if samples else order[0], image_shape)


class Separable(Operator):
    """``y = R x C^T`` for each channel: blurs and resizers that treat rows and columns apart.

    Args:
        rows: ``(height of y, height of x)``.
        columns: ``(width of y, width of x)``.
        channels: of the image.
    """

    @ok.takes(rows=MATRIX, columns=ok.tensor("wide narrow"), channels=ok.count())
    def __init__(self, rows: Tensor, columns: Tensor, channels: int = 1):
        self.rows, self.columns = rows, columns
        self.image_shape = (channels, rows.shape[1], columns.shape[1])
        self.shape = (channels, rows.shape[0], columns.shape[0])

    def __call__(self, images: Tensor) -> Tensor:
        return self.rows.to(images) @ images @ self.columns.to(images).mT

    def adjoint(self, measured: Tensor) -> Tensor:
        return self.rows.to(measured).mT @ measured @ self.columns.to(measured)


@ok.takes(image_shape=ok.sizes(3), kind=ok.one_of("average", "bicubic"))
def super_resolution(image_shape: Size, factor: int, kind: str = "average") -> Separable:
    """Shrink each side by a factor, by averages of blocks or by antialiased bicubic interpolation (``"bicubic"``).

    Raises:
        ParameterError: a factor that does not divide the sides.
    """
    _check_size(image_shape)
    channels, height, width = image_shape
    if integer("factor", factor, at_least=1) and (height % factor or width % factor):
        raise ParameterError(f"factor must divide the sides {height} and {width} of the image, got {factor}.")

    def shrink(size: int) -> Tensor:
        eye = torch.eye(size, dtype=torch.float64)
        if kind == "average":
            return F.avg_pool1d(eye[None], factor)[0].mT.contiguous()
        columns = eye[:, None, :, None].expand(-1, -1, -1, size)  # a constant in the other direction
        small = F.interpolate(columns, scale_factor=1 / factor, mode="bicubic", antialias=True, align_corners=False)
        return small[:, 0, :, 0].mT.contiguous()

    return Separable(shrink(height), shrink(width), channels)


@ok.takes(image_shape=ok.sizes(3))
def gaussian_blur(image_shape: Size, size: int, std: float) -> Separable:
    """A Gaussian kernel of ``size x size`` taps, reflected at the border.

    Raises:
        ParameterError: an even size, or one that reaches beyond the reflected image.
    """
    _check_size(image_shape)
    channels, height, width = image_shape
    if integer("size", size, at_least=1, at_most=2 * min(height, width) - 1) % 2 == 0:
        raise ParameterError(f"size must be odd, got {size}.")
    number("std", std, above=0)
    taps = torch.exp(-0.5 * (torch.arange(size, dtype=torch.float64) - size // 2).square() / std**2)

    def matrix(n: int) -> Tensor:
        padded = F.pad(torch.eye(n, dtype=torch.float64)[:, None], (size // 2, size // 2), mode="reflect")
        return F.conv1d(padded, (taps / taps.sum())[None, None])[:, 0].mT.contiguous()

    return Separable(matrix(height), matrix(width), channels)


class Convolution(Operator):
    """Correlation of every channel with a kernel ``(k, k)`` of odd size, zeros outside the image."""

    @ok.takes(kernel=ok.tensor("k k"), image_shape=ok.sizes(3))
    def __init__(self, kernel: Tensor, image_shape: Size):
        _check_size(image_shape)
        if kernel.shape[0] % 2 == 0:
            raise ParameterError(f"kernel must be of odd size, got {tuple(kernel.shape)}.")
        self.kernel, self.image_shape, self.shape = kernel, tuple(image_shape), tuple(image_shape)

    def _apply(self, images: Tensor, function: Callable) -> Tensor:
        weight = self.kernel.to(images)[None, None].expand(images.shape[1], 1, -1, -1)
        return function(images, weight, padding=self.kernel.shape[-1] // 2, groups=images.shape[1])

    def __call__(self, images: Tensor) -> Tensor:
        return self._apply(images, F.conv2d)

    def adjoint(self, measured: Tensor) -> Tensor:
        return self._apply(measured, F.conv_transpose2d)


@ok.takes(random=ok.generator, points=ok.count())
def motion_kernel(size: int, intensity: float, random: torch.Generator, points: int = 200) -> Tensor:
    """A random shake of the hand ``(size, size)``, summing to 1: a path whose direction drifts, drawn bilinearly.

    Args:
        intensity: 0 for a straight line, 1 for a scribble.
    """
    integer("size", size, at_least=3), number("intensity", intensity, at_least=0, at_most=1)
    turns = torch.randn(points, generator=random, dtype=torch.float64) * intensity * 0.3
    angle = 2 * torch.pi * torch.rand(1, generator=random, dtype=torch.float64) + turns.cumsum(0)
    path = torch.stack([angle.cos(), angle.sin()], 1).cumsum(0)
    path -= path.mean(0)
    path = path / path.abs().max() * (size // 2 - 0.5) + size // 2
    corner = path.floor()
    kernel = torch.zeros(size * size, dtype=torch.float64)
    for di, dj in ((0, 0), (0, 1), (1, 0), (1, 1)):
        shift = torch.tensor([di, dj])
        share = (1 - (path - corner - shift).abs()).prod(1)
        kernel.index_add_(0, ((corner + shift) @ torch.tensor([size, 1.0], dtype=torch.float64)).long(), share)
    return (kernel / kernel.sum()).reshape(size, size)


class Pointwise(Operator):
    """A non-linear function of every entry of a linear measurement, such as a saturating sensor: ``f(A x)``."""

    linear = False

    @ok.takes(inner=ok.kind(Operator, "an Operator"), function=ok.function)
    def __init__(self, inner: Operator, function: Callable[[Tensor], Tensor]):
        self.inner, self.function = inner, function
        self.image_shape, self.shape = inner.image_shape, inner.shape

    def __call__(self, images: Tensor) -> Tensor:
        return self.function(self.inner(images))

    def select(self, samples: Tensor) -> "Pointwise":
        return Pointwise(self.inner.select(samples), self.function)


class ParallelBeam(Operator):
    """Parallel-beam tomography of square images: line sums over ``angles`` directions.

    Every pixel's value is split between the two detectors nearest to its shadow, so that each view keeps the image's
    sum. Divided by the side of the image: values of the size of a mean.

    Args:
        side: pixels along one side.
        angles: number of directions, spread evenly over 180 degrees.
    """

    def __init__(self, side: int, angles: int):
        integer("side", side, at_least=2), integer("angles", angles, at_least=1)
        self.angles, detectors = angles, 2 * (int(side / 2**0.5) + 1) + 1
        self.image_shape, self.shape = (1, side, side), (angles, detectors)
        theta = torch.arange(angles, dtype=torch.float64) * torch.pi / angles
        centred = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
        place = centred * theta.cos()[:, None, None] + centred[:, None] * theta.sin()[:, None, None] + detectors // 2
        left = place.floor()
        rows = left.long() + detectors * torch.arange(angles)[:, None, None]
        pixel = torch.arange(side * side).reshape(side, side).expand_as(rows)
        index = torch.stack([torch.cat([rows, rows + 1]).flatten(), torch.cat([pixel, pixel]).flatten()])
        share = torch.cat([1 - (place - left), place - left]).flatten() / side
        self.matrix = torch.sparse_coo_tensor(
            index, share, (angles * detectors, side * side), check_invariants=False
        ).coalesce()

    def _times(self, matrix: Tensor, flat: Tensor) -> Tensor:
        return (matrix.to(flat.device, flat.dtype) @ flat.mT).mT

    def __call__(self, images: Tensor) -> Tensor:
        return self._times(self.matrix, images.flatten(1)).unflatten(1, self.shape)

    def adjoint(self, measured: Tensor) -> Tensor:
        return self._times(self.matrix.mT, measured.flatten(1)).unflatten(1, self.image_shape)

    def filtered_back_projection(self, measured: Tensor) -> Tensor:
        """The classical inverse for many angles: a ramp filter on each view, then the adjoint."""
        detectors = self.shape[1]
        frequency = torch.fft.rfftfreq(2 * detectors, dtype=measured.dtype, device=measured.device)
        filtered = torch.fft.irfft(torch.fft.rfft(measured, 2 * detectors) * 2 * frequency, 2 * detectors)
        scale = torch.pi / 2 / self.angles * self.image_shape[1] ** 2
        return scale * self.adjoint(filtered[..., :detectors].contiguous())
