"""Measurement operators: adjoints by the dot-product test, and against the functions they stand for."""

import pytest
import torch
import torch.nn.functional as F

from lowdim.checks import ParameterError
from lowdim.operators import (
    Convolution,
    Inpainting,
    ParallelBeam,
    Pointwise,
    gaussian_blur,
    motion_kernel,
    random_inpainting,
    super_resolution,
)
from lowdim.quality import psnr

F64 = torch.float64


def linear_operators(random):
    size, square = (3, 8, 12), (1, 9, 9)
    return {
        "one mask": random_inpainting(size, 0.7, random),
        "a mask each": random_inpainting(size, 0.7, random, samples=5),
        "averages": super_resolution(size, 4),
        "bicubic": super_resolution(size, 2, "bicubic"),
        "blur": gaussian_blur(size, 5, 1.0),
        "motion": Convolution(motion_kernel(7, 0.5, random), size),
        "tomography": ParallelBeam(9, 5),
        "square": Convolution(motion_kernel(5, 1.0, random), square),
    }


@pytest.mark.parametrize("name", list(linear_operators(torch.Generator().manual_seed(0))))
def test_adjoint_by_the_dot_product_test(name, random):
    operator = linear_operators(random)[name]
    x = torch.randn(5, *operator.image_shape, generator=random, dtype=F64)
    y = torch.randn(5, *operator.shape, generator=random, dtype=F64)
    forward, back = operator(x), operator.adjoint(y)
    assert operator.check(forward) is forward
    torch.testing.assert_close((forward * y).sum(), (x * back).sum(), rtol=1e-12, atol=1e-12)


def test_shrinking_and_blurring_are_torchs_own(random):
    x = torch.randn(2, 3, 8, 12, generator=random, dtype=F64)
    torch.testing.assert_close(super_resolution((3, 8, 12), 4)(x), F.avg_pool2d(x, 4))
    bicubic = F.interpolate(x, scale_factor=0.5, mode="bicubic", antialias=True)
    torch.testing.assert_close(super_resolution((3, 8, 12), 2, "bicubic")(x), bicubic, rtol=1e-10, atol=1e-10)
    taps = torch.exp(-0.5 * torch.arange(-2, 3, dtype=F64) ** 2)
    kernel = torch.outer(taps, taps) / taps.sum() ** 2
    padded = F.pad(x, (2, 2, 2, 2), mode="reflect")
    slow = F.conv2d(padded, kernel.expand(3, 1, 5, 5), groups=3)
    torch.testing.assert_close(gaussian_blur((3, 8, 12), 5, 1.0)(x), slow, rtol=1e-10, atol=1e-10)


def test_inpainting_sees_the_kept_pixels_and_puts_noise_nowhere_else(random):
    operator = Inpainting(torch.tensor([0, 5]), (2, 2, 3))
    x = torch.arange(12, dtype=F64).reshape(1, 2, 2, 3)
    assert operator(x).tolist() == [[[0, 5], [6, 11]]]
    assert operator.measure(x, 0.1, random).shape == (1, 2, 2)
    each = random_inpainting((1, 4, 4), 0.5, random, samples=3)
    assert each.shape == (1, 8)
    part = each.select(torch.tensor([2]))
    y = torch.randn(3, 1, 4, 4, generator=random)
    assert torch.equal(part(y[2:]), each(y)[2:])


def test_tomography_keeps_the_sum_in_every_view_and_inverts_with_many():
    image = torch.zeros(1, 1, 32, 32, dtype=F64)
    image[..., 8:24, 12:20] = 1
    scan = ParallelBeam(32, 90)
    views = scan(image)
    torch.testing.assert_close(views.sum(2), (image.sum() / 32).expand(1, 90), rtol=1e-12, atol=0)
    assert psnr(scan.filtered_back_projection(views), image, 0, 1) > 20
    few = ParallelBeam(32, 4)
    assert psnr(few.filtered_back_projection(few(image)), image, 0, 1) < psnr(
        scan.filtered_back_projection(views), image, 0, 1
    )


def test_motion_kernels_are_seeded_and_normalised():
    first, again = (motion_kernel(9, 0.5, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, again)
    assert float(first.sum()) == pytest.approx(1)
    assert bool((first >= 0).all())


def test_bad_input(random):
    blur = gaussian_blur((1, 8, 8), 5, 1.0)
    with pytest.raises(
        ParameterError, match=r"y must be what the operator gives, \(samples, 1, 8, 8\), got \(2, 1, 4, 4\)"
    ):
        blur.check(torch.zeros(2, 1, 4, 4))
    with pytest.raises(ParameterError, match="Pointwise is not linear: it has no adjoint"):
        Pointwise(blur, torch.tanh).adjoint(torch.zeros(1, 1, 8, 8))
    with pytest.raises(ParameterError, match="size must be odd, got 4"):
        gaussian_blur((1, 8, 8), 4, 1.0)
    with pytest.raises(ParameterError, match="factor must divide the sides 8 and 8 of the image, got 3"):
        super_resolution((1, 8, 8), 3)
    with pytest.raises(ParameterError, match="dropped must be a finite number > 0 and < 1, got 1"):
        random_inpainting((1, 8, 8), 1, random)
    with pytest.raises(ParameterError, match="sigma must be a finite number >= 0, got -1"):
        blur.measure(torch.zeros(1, 1, 8, 8), -1, random)
    with pytest.raises(ParameterError, match="images and truth must have one shape"):
        psnr(torch.zeros(1, 2), torch.zeros(1, 3))
