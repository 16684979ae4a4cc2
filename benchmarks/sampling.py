"""Benchmark of posterior sampling: a batch of digits against one image after another, and training time."""

import time

import torch
from sklearn.datasets import load_digits
from timing import race

from lowdim.diffusion import Schedule
from lowdim.latent_models import Autoencoder, ResidualMLP, latent_diffusion, train_autoencoder, train_denoiser
from lowdim.operators import super_resolution
from lowdim.posterior import ReSample, solve
from lowdim.quality import psnr
from lowdim.runtime import generator

SHAPE = (1, 8, 8)


def digits(images: int = 96):
    """ReSample on 96 digits (100 steps, a hard step every 4), one batch against one image after another; training."""
    random, schedule = generator(0), Schedule.scaled_linear()
    pictures = torch.tensor(load_digits().images, dtype=torch.float32)[:, None] / 8 - 1
    pictures = pictures[torch.randperm(len(pictures), generator=random)]
    train, test = pictures[:1600], pictures[1600:]
    began = time.perf_counter()
    autoencoder = train_autoencoder(Autoencoder(SHAPE, 12, 128), train, random, steps=2000, batch=64, rate=4e-3)
    latents = autoencoder.encode(train)
    denoiser = train_denoiser(ResidualMLP(12, 128, 2), latents, schedule, random, steps=1500, rate=4e-3)
    training = time.perf_counter() - began
    ceiling = float(psnr(autoencoder.decode(autoencoder.encode(test)), test).mean())
    for part in (autoencoder, denoiser):  # comparing to 1e-5 needs more digits than float32 keeps over 100 steps
        part.double()
    model = latent_diffusion(autoencoder, denoiser, schedule, (12,), SHAPE)
    operator, method = super_resolution(SHAPE, 2), ReSample(100, 4)
    y = operator.measure(test[:images].double(), 0.01, random)
    run = lambda first, last: (
        solve(model, operator, y[first:last], 0.01, method, [generator(k) for k in range(first, last)]).images
    )
    times = race({"one batch": lambda: run(0, images)}, repeats=5)
    began = time.perf_counter()
    some = torch.cat([run(k, k + 1) for k in range(0, images, 8)])  # one in eight: the loop is slow
    alone = (time.perf_counter() - began) * images / len(some)
    times["one after another (from a part)"] = {"seconds": alone, "spread": 0.0, "repeats": 1, "calls": len(some)}
    batch = run(0, images)
    ratios = {
        "one after another / one batch": alone / times["one batch"]["seconds"],
        "largest difference of an image": float((batch[::8] - some).abs().max()),
        "seconds of one batch": times["one batch"]["seconds"],
        "seconds of training": training,
        "reconstruction, dB": ceiling,
    }
    targets = {"one after another / one batch": 10, "largest difference of an image": -1e-5, "seconds of one batch": -3,
               "seconds of training": -15, "reconstruction, dB": 22}  # fmt: skip
    return times, ratios, targets
