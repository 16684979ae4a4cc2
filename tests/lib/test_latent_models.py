"""Small models for latent diffusion, their training, and the adapter for published ones."""

import builtins
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from lowdim import pretrained
from lowdim.checks import ParameterError
from lowdim.consistency import Adam
from lowdim.data import DataError
from lowdim.diffusion import Schedule, add_noise
from lowdim.latent_models import (
    Autoencoder,
    ConvAutoencoder,
    ResidualMLP,
    UNet,
    initialise,
    kept_for_gradient,
    train_autoencoder,
    train_denoiser,
)
from lowdim.operators import super_resolution
from lowdim.posterior import LatentDPS, ReSample, solve
from lowdim.quality import nearest_distance, psnr, sliced_wasserstein
from lowdim.runtime import generator

SCHEDULE = Schedule.scaled_linear()


@pytest.fixture(scope="module")
def images():
    random = generator(0)
    basis = torch.randn(3, 1, 4, 4, generator=random)
    return torch.tanh(torch.einsum("nk,kchw->nchw", torch.randn(200, 3, generator=random), basis))


def test_training_learns_and_is_the_same_twice(images):
    runs = []
    for _ in range(2):
        random = generator(1)
        model = train_autoencoder(Autoencoder((1, 4, 4), 3, 32), images, random, steps=300, batch=32)
        z = model.encode(images)
        denoiser = train_denoiser(ResidualMLP(3, 32, 1), z, SCHEDULE, random, steps=200, batch=64)
        runs.append((model, denoiser, z))
    (model, denoiser, z), (_, _, again) = runs
    assert torch.equal(z, again)
    torch.testing.assert_close(z.mean(0), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(z.std(0), torch.ones(3), rtol=0, atol=1e-5)
    assert psnr(model.decode(z), images).mean() > 20
    noise, times = torch.randn(z.shape, generator=generator(2)), torch.full((1,), 700)
    noisy = add_noise(z, float(SCHEDULE.abar[700]), noise)
    assert (denoiser(noisy, times) - noise).square().mean() < 0.5
    assert not any(p.requires_grad for p in [*model.parameters(), *denoiser.parameters()])


def test_times_of_a_batch_may_be_shared(images):
    z = torch.randn(4, 3, generator=generator(0))
    for net in (ResidualMLP(3, 16, 2), UNet(3, 8, 2)):
        x = z if isinstance(net, ResidualMLP) else torch.randn(4, 3, 8, 8, generator=generator(1))
        torch.testing.assert_close(net(x, torch.tensor([5])), net(x, torch.full((4,), 5)), rtol=1e-5, atol=1e-6)
        assert net(x, torch.tensor([5])).shape == x.shape


def test_a_unet_learns_to_predict_noise():
    pictures = torch.ones(64, 1, 8, 8) * torch.randn(64, 1, 1, 1, generator=generator(3)).sign()
    net = train_denoiser(UNet(1, 8, 2), pictures, SCHEDULE, generator(4), steps=120, batch=16, rate=3e-3)
    noise = torch.randn(pictures.shape, generator=generator(5))
    noisy = add_noise(pictures, float(SCHEDULE.abar[400]), noise)
    assert (net(noisy, torch.tensor([400])) - noise).square().mean() < 0.4


def test_initialise_uses_its_generator_alone():
    first, again = (initialise(Autoencoder((1, 4, 4), 2, 8), generator(7)).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_conv_autoencoder_has_a_quarter_of_the_side():
    model = ConvAutoencoder(3, 4, 8)
    z = model.encode(torch.zeros(2, 3, 16, 16))
    assert z.shape == (2, 4, 4, 4)
    assert model.decode(z).shape == (2, 3, 16, 16)


def test_bytes_kept_for_the_gradient_are_counted():
    x, w = torch.ones(1000, requires_grad=True), torch.ones(1000)
    assert kept_for_gradient(lambda: (x.exp() * w).sum(), [w]) == 4000  # exp keeps its result, w is a parameter
    assert kept_for_gradient(lambda: (2 * x).sum(), []) == 0


def test_distances(random):
    same = torch.randn(2, 50, 2, generator=random)
    assert float(sliced_wasserstein(same, same).max()) == 0
    moved = sliced_wasserstein(same, (same + torch.tensor([1.0, 0.0])).repeat_interleave(2, 1), directions=400)
    torch.testing.assert_close(moved, torch.full((2,), 2 / torch.pi), rtol=1e-3, atol=0)  # mean of |cos|
    assert nearest_distance(same[0, :3], same[0]).tolist() == [0, 0, 0]
    half = torch.zeros(1, 1, 2, 2)
    assert float(psnr(half + 0.2, half)) == pytest.approx(20.0, abs=1e-4)
    with pytest.raises(ParameterError, match="n must divide the reference's 3"):
        sliced_wasserstein(torch.zeros(1, 2, 2), torch.zeros(1, 3, 2))


def test_bad_input(images):
    with pytest.raises(ParameterError, match=r"images must be \(samples, 1, 8, 8\), got \(200, 1, 4, 4\)"):
        train_autoencoder(Autoencoder((1, 8, 8), 3, 8), images, generator(0))
    with pytest.raises(ParameterError, match="images must have values from -1 to 1, got 0 to 16"):
        train_autoencoder(Autoencoder((1, 2, 2), 3, 8), torch.tensor([0.0, 16, 1, 2]).view(1, 1, 2, 2), generator(0))
    with pytest.raises(ParameterError, match="images must have values from -1 to 1, got nan to nan"):
        train_autoencoder(Autoencoder((1, 4, 4), 3, 8), images * float("nan"), generator(0))
    with pytest.raises(ParameterError, match="width must be a multiple of 8, got 12"):
        UNet(3, 12)


class TinyUNet(nn.Module):
    """The attributes of a UNet2DModel of diffusers, at random."""

    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(in_channels=3, sample_size=8)
        self.net = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, z, time):
        assert isinstance(time, int)
        return SimpleNamespace(sample=self.net(z))


class TinyVQ(nn.Module):
    """The attributes of a VQModel."""

    def __init__(self, **config):
        super().__init__()
        self.config = SimpleNamespace(**config)
        self.down, self.up = nn.Conv2d(3, 3, 4, stride=4), nn.ConvTranspose2d(3, 3, 4, stride=4)

    def encode(self, images):
        return SimpleNamespace(latents=self.down(images))

    def decode(self, z, force_not_quantize=False):
        assert force_not_quantize, "the quantiser has no gradient"
        return SimpleNamespace(sample=self.up(z))


def test_adapter_of_published_models_runs_every_solver():
    scheduler = SimpleNamespace(alphas_cumprod=SCHEDULE.abar.float())
    model = pretrained.adapt(TinyUNet(), TinyVQ(scaling_factor=2.0), scheduler, side=32)
    plain = pretrained.adapt(TinyUNet(), vq := TinyVQ(), scheduler, side=32)
    assert plain.latent_shape == (3, 8, 8)
    x = torch.rand(2, 3, 32, 32, generator=generator(0)) * 2 - 1
    torch.testing.assert_close(plain.encode(x), vq.down(x))
    torch.testing.assert_close(model.decode(model.encode(x)).shape, x.shape)
    operator = super_resolution((3, 32, 32), 4, "bicubic")
    y, short = operator.measure(model.check_images(x), 0.01, generator(1)), Adam(0.01, 3)
    for method in (LatentDPS(5), ReSample(10, 2, pixel=short, latent=short, last=short, travel=1)):
        result = solve(model, operator, y, 0.01, method, generator(2))
        assert result.images.shape == x.shape
        assert bool(result.images.isfinite().all())


def test_the_adapter_fits_the_classes_of_diffusers():
    diffusers = pytest.importorskip("diffusers", reason="diffusers is optional and not installed")
    blocks = dict(layers_per_block=1, norm_num_groups=4, in_channels=3, out_channels=3)
    unet = diffusers.UNet2DModel(8, block_out_channels=(8, 8), down_block_types=("DownBlock2D",) * 2,
                                 up_block_types=("UpBlock2D",) * 2, **blocks)  # fmt: skip
    vq = diffusers.VQModel(block_out_channels=(8,) * 3, down_block_types=("DownEncoderBlock2D",) * 3,
                           up_block_types=("UpDecoderBlock2D",) * 3, latent_channels=3, sample_size=32,
                           num_vq_embeddings=16, **blocks)  # fmt: skip
    scheduler = diffusers.DDIMScheduler(beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear")
    model = pretrained.adapt(unet, vq, scheduler, side=32)
    torch.testing.assert_close(model.schedule.abar, SCHEDULE.abar, rtol=1e-4, atol=1e-6)
    operator = super_resolution((3, 32, 32), 4)
    y = operator(torch.zeros(1, 3, 32, 32))
    short = ReSample(6, 2, pixel=Adam(0.01, 2), latent=Adam(0.01, 2), last=None)
    assert solve(model, operator, y, 0.01, short, generator(0)).images.shape == (1, 3, 32, 32)


def test_missing_diffusers_is_one_sentence(monkeypatch):
    real = builtins.__import__

    def missing(name, *more):
        if name == "diffusers":
            raise ImportError(name)
        return real(name, *more)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(DataError, match="needs diffusers, which is not installed: pip install diffusers"):
        pretrained.load()


def test_missing_weights_are_one_sentence(monkeypatch):
    class Absent:
        @staticmethod
        def from_pretrained(name, subfolder):
            raise OSError("offline")

    names = ("DDIMScheduler", "UNet2DModel", "VQModel")
    monkeypatch.setitem(__import__("sys").modules, "diffusers", SimpleNamespace(**dict.fromkeys(names, Absent)))
    with pytest.raises(DataError, match="neither in diffusers' cache nor to be had from the hub: connect once"):
        pretrained.load()


def test_pictures_of_a_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("LOWDIM_DATA", str(tmp_path))
    (tmp_path / "faces").mkdir()
    with pytest.raises(DataError, match=r"2 pictures .* are needed in .*faces, found 0: copy them there"):
        pretrained.images("faces", 2, 8)
    for k in range(2):
        Image.fromarray(np.full((12, 10, 3), 255 * k, np.uint8)).save(tmp_path / "faces" / f"{k}.png")
    assert pretrained.images("faces", 2, 8).flatten(1).mean(1).tolist() == [-1, 1]
