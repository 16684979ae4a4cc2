"""Bad input for what inverse problems, tensors and predictors take; the check is that of ``test_bad_input``."""

import functools

import bad_values as bad
import torch
from bad_values import draw, t
from torch import nn

from lowdim import (
    consistency,
    cp_predictors,
    diffusion,
    ensembles,
    latent_models,
    lowrank_phase,
    measurements,
    models,
    operators,
    phase_retrieval,
    posterior,
    predictors,
    pretrained,
    rings,
    tensors,
    video,
    wirtinger,
)

Case = bad.Case


def spread(function):
    """A function of ``*sizes`` as one of a list of sizes."""
    return functools.wraps(function)(lambda sizes: function(*sizes))


# ---------------------------------------------------------------- good arguments


def schedule() -> diffusion.Schedule:
    return diffusion.Schedule.scaled_linear(0.001, 0.02, 10)


def mixture() -> diffusion.GaussianMixture:
    return rings.ring(schedule(), modes=3)


def plane() -> diffusion.LatentDiffusion:
    return rings.plane_model(mixture())


def instruments() -> rings.Instruments:
    return rings.Instruments(t(2, 2, 4), t(2, 4), t(2, 4))


def linear_map() -> measurements.Dense:
    return measurements.gaussian((3, 4), 5, 20, draw(), runs=2)


def seen() -> torch.Tensor:
    return measurements.measure(linear_map(), t(3, 4, 5))


def sets(**more) -> dict:
    labels = torch.ones(2, 6, dtype=torch.float64)
    labels[:, ::2] = -1
    return dict(inputs=t(2, 6, 3, 4), labels=labels, loss="logistic") | more


def starts() -> list[torch.Tensor]:
    return [t(2, 1, 3, 2), t(2, 1, 4, 2)]


def parts() -> dict:
    same = lambda z: z
    return dict(encode=same, decode=same, noise=lambda z, time: z, schedule=schedule(), latent_shape=(2,),
                image_shape=(2,))  # fmt: skip


class Scheduler:
    alphas_cumprod = torch.tensor([0.9, 0.5, 0.1])


def autoencoder() -> latent_models.Autoencoder:
    return latent_models.Autoencoder((1, 2, 2), 2, 4)


# ---------------------------------------------------------------- sorts

RUNS, EPS, POSITIVE = bad.count(), bad.real(above=0), bad.real(at_least=0)
FREE = dict(finite=False, floating=False)
OBJECT = bad.only("wrong type", None, 3, "map", t(2))
SHARE = bad.real(above=0, at_most=1)
RANDOM = bad.generator()
OPTIONAL_RANDOM = bad.only("wrong type", 7, "cpu", 0.5, object())
SETTING = bad.only("not finite", bad.NAN, bad.INF, torch.tensor([0.5, bad.NAN])) + bad.only("wrong type", None, [], 3j)
NEGATIVE = SETTING + bad.only("too small", -1.0, torch.tensor([1.0, -2.0]))
VARIANCE = bad.only("wrong type", None, "3", 3j, object) + bad.only("empty", torch.zeros(0), [])
SHAPE = bad.sizes(3) + bad.only("too many", (1, 8, 8, 8), [1, 2, 3, 4])
SIGNED = bad.tensor(dims=False, ends=(0, 1)) + bad.only("no classes", 2 * torch.ones(2, 6), torch.zeros(2, 6))
SETS = bad.only("wrong axes", t(2), t(2, 6))
DATA = {"inputs": bad.tensor(dims=False) + SETS, "labels": SIGNED, "loss": bad.choice()}
PENALTY = bad.several(at_least=0)
FIT = DATA | {"penalty": PENALTY, "starts": bad.tensors(1, ends=(0, 1, 2, 3))}
Y = bad.tensor(ends=(0, 1, 2), at_least=0)
SOLVER = {
    "y": Y, "op": OBJECT, "iterations": bad.count(0), "generator": RANDOM, "published": bad.flag(), "inner": RUNS,
    "tolerance": POSITIVE, "truth": bad.only("wrong type", 3, "x") + bad.only("wrong size", t(3, 4, 6), t(3, 3, 4, 5)),
}  # fmt: skip
RANK = bad.count(1, 5)
CLIP = bad.tensor(finite=False, floating=False, ends=(0, 1, 2))
TRAIN = {"random": RANDOM, "steps": RUNS, "batch": RUNS, "rate": EPS}
START = {"std": EPS, "embedding": [s for s in EPS if s.name != "wrong type"], "generator": OPTIONAL_RANDOM}
WEIGHTS = bad.tensor(finite=False)

CASES = [
    # tensors
    Case(tensors.unfold, lambda: dict(x=t(3, 4, 5), mode=1, order=3), {
        "x": bad.tensor(**FREE, dims=False), "mode": bad.count(0, 2),
        "order": bad.count(1, 3)}),
    Case(tensors.fold, lambda: dict(matrix=t(4, 15), mode=1, shape=(3, 4, 5)), {
        "matrix": bad.tensor(**FREE, dims=False, ends=(0, 1)), "mode": bad.count(0, 2), "shape": bad.sizes(1)}),
    Case(tensors.mode_product, lambda: dict(x=t(3, 4, 5), matrix=t(2, 4), mode=1), {
        "x": bad.tensor(**FREE, dims=False), "matrix": bad.tensor(**FREE, dims=False, ends=(1,)),
        "mode": bad.count(0, 2), "order": bad.count(1, 3)}),
    Case(tensors.multi_product, lambda: dict(x=t(3, 4), matrices=[t(2, 3), None]), {
        "x": bad.tensor(**FREE, dims=False), "matrices": bad.only("wrong type", None, 3, "ab"),
        "transpose": bad.flag()}),
    Case(tensors.check_ranks, lambda: dict(ranks=[2, 2], shape=(3, 4)), {
        "ranks": bad.sizes(2) + bad.only("too large", [4, 2], [2, 5]), "shape": bad.sizes(1)}),
    Case(tensors.Tucker, lambda: dict(core=t(2, 2), factors=[t(3, 2), t(4, 2)]), {
        "core": bad.tensor(**FREE, dims=False, ends=(0, 1)), "factors": bad.tensors(1, **FREE, dims=False)}),
    Case(tensors.tucker_size, lambda: dict(shape=(3, 4), ranks=(2, 2)), {"shape": bad.sizes(1), "ranks": bad.sizes(2)}),
    Case(tensors.leading, lambda: dict(matrix=t(3, 4), rank=2), {
        "matrix": bad.tensor(floating=False, dims=False), "rank": bad.count(1, 3)}),
    Case(tensors.CP, lambda: dict(factors=[t(3, 2), t(4, 2)]), {
        "factors": bad.tensors(1, **FREE, ends=(1,), dims=False)}),
    Case(tensors.khatri_rao, lambda: dict(factors=[t(3, 2), t(4, 2)]), {
        "factors": bad.tensors(1, **FREE, ends=(1,), dims=False)}),
    *[Case(f, lambda f=f: dict(x=t(3, 4), factors=[t(3, 2), t(4, 2)]) | ({"mode": 0} if f is tensors.mttkrp else {}), {
        "x": bad.tensor(**FREE, dims=False, ends=(0, 1)), "factors": bad.tensors(2, **FREE, ends=(0, 1), dims=False)}
        | ({"mode": bad.count(0, 1)} if f is tensors.mttkrp else {})) for f in (tensors.mttkrp, tensors.cp_inner)],
    Case(tensors.cgls, lambda: dict(forward=lambda v: v, adjoint=lambda v: v, rhs=t(2, 3), start=t(2, 3), steps=2), {
        "forward": bad.function(), "adjoint": bad.function(), "rhs": bad.tensor(**FREE, dims=False),
        "start": bad.tensor(**FREE, dims=False, ends=(0,)), "steps": bad.count(0), "tolerance": POSITIVE,
        "precondition": bad.function(), "check": RUNS}),
    # predictors
    Case(predictors.loss_terms, lambda: dict(loss="hinge", scores=t(3), labels=t(3)), {"loss": bad.choice()}),
    Case(predictors.check_labels, lambda: {k: v for k, v in sets().items() if k != "inputs"}, {
        "labels": bad.tensor(dims=False) + bad.only("no classes", torch.zeros(2, 6)), "loss": bad.choice()}),
    Case(predictors.check_data, sets, DATA | {"labels": SIGNED + bad.only("wrong axes", t(2))}),
    Case(predictors.check_penalty, lambda: dict(penalty=0.1), {"penalty": PENALTY}),
    Case(predictors.objective, lambda: sets(factors=starts(), penalty=0.1), {
        "inputs": bad.tensor(finite=False, dims=False) + SETS, "labels": bad.tensor(finite=False, ends=(0, 1)),
        "loss": bad.choice(), "penalty": PENALTY, "width": EPS,
        "factors": bad.tensors(1, finite=False, ends=(0, 1, 2, 3))}),
    Case(predictors.fit_vector, lambda: sets(penalty=0.1, steps=2), DATA | {
        "penalty": PENALTY, "steps": RUNS, "tol": POSITIVE}),
    Case(predictors.fit_nuclear, lambda: sets(weight=t(2, 1), steps=2), DATA | {
        "inputs": bad.tensor(dims=False) + bad.only("no matrices", t(2, 6, 3)), "steps": RUNS, "tol": POSITIVE,
        "weight": bad.tensor(ends=(0,), at_least=0)}),
    Case(predictors.tune, lambda: sets(
        fit=lambda x, y, c: predictors.fit_vector(x, y, penalty=c, steps=2), penalties=[0.1, 0.2], share=0.34), DATA | {
        "fit": bad.function(), "penalties": PENALTY + bad.only("single", 0.1, 3),
        "share": bad.real(above=0, below=1) + bad.only("nothing on one side", 0.01, 0.99)}),
    Case(predictors.alignment, lambda: dict(predictor=t(2, 3, 4), truth=t(3, 4)), {
        "predictor": bad.tensor(finite=False, dims=False, ends=(1, 2)), "truth": bad.tensor(dims=False)}),
    Case(cp_predictors.check_rank, lambda: dict(rank=2, shape=(3, 4)), {
        "rank": bad.count(1, 3), "shape": bad.sizes(2)}),
    Case(cp_predictors.random_starts, lambda: dict(shape=(3, 4), rank=2, sets=2, fits=1, generator=draw()), {
        "shape": bad.sizes(2), "rank": bad.count(1, 3), "sets": RUNS, "fits": RUNS, "generator": RANDOM,
        "dtype": bad.only("wrong type", None, "float64", torch.int64, torch.complex128)}),
    Case(cp_predictors.CPTrainer, lambda: sets(starts=starts(), penalty=0.1), {
        "inputs": bad.tensor(finite=False, dims=False) + SETS, "labels": bad.tensor(finite=False, ends=(0, 1)),
        "loss": bad.choice(), "penalty": PENALTY, "starts": bad.tensors(2, finite=False, ends=(0,))}),
    Case(cp_predictors.fit_cp, lambda: sets(starts=starts(), steps=2), FIT | {"steps": RUNS, "tol": EPS}),
    Case(cp_predictors.fit_alternating, lambda: sets(starts=starts(), sweeps=2), FIT | {
        "sweeps": RUNS, "tol": POSITIVE, "inner": RUNS, "balanced": bad.flag()}),
    # phase retrieval
    Case(measurements.Dense, lambda: dict(rows=t(2, 5, 7, 12), shape=(3, 4)), {
        "rows": bad.tensor(**FREE, ends=(3,)), "shape": bad.sizes(2),
        **dict.fromkeys(("counts", "frames"), bad.only("wrong type", "2", object) + bad.only("wrong length", [1, 2, 3]))
        }),
    Case(measurements.CodedDiffraction, lambda: dict(masks=t(2, 5, 2, 3, 4)), {
        "masks": bad.tensor(**FREE), **{name: bad.only("wrong type", 3, "x") + bad.only("wrong axes", t(3))
                                        for name in ("left", "right")},
        "keep": bad.only("wrong type", 3, "x") + bad.only("wrong axes", t(3, 2))}),
    Case(measurements.frames_first, lambda: dict(clip=t(3, 4, 5), op=linear_map()), {"clip": CLIP, "op": OBJECT}),
    Case(measurements.measure, lambda: dict(op=linear_map(), clip=t(3, 4, 5)), {
        "op": OBJECT, "clip": bad.tensor(floating=False, ends=(0, 1, 2)) + bad.only("other runs", t(3, 3, 4, 5))}),
    Case(measurements.check_clip, lambda: dict(name="clip", clip=t(3, 4, 5), op=linear_map()), {
        "clip": bad.only("wrong size", t(3, 4, 6), t(4, 4, 5), t(3, 3, 4, 5))}),
    Case(measurements.check_magnitudes, lambda: dict(y=seen(), op=linear_map()), {"y": Y, "op": OBJECT}),
    Case(measurements.gaussian, lambda: dict(shape=(3, 4), q=2, m=5, generator=draw()), {
        "frames": bad.only("wrong type", "2", 3j) + bad.only("too small", [0], -1), "is_complex": bad.flag(),
        "dtype": bad.only("wrong type", None, "float64", torch.int64, torch.float16)}),
    Case(measurements.coded_diffraction, lambda: dict(shape=(3, 4), q=2, masks=2, generator=draw()), {
        "dtype": bad.only("wrong type", None, "float64", torch.int64, torch.float16)}),
    *[Case(f, lambda: dict(estimate=t(2, 3, 4, 5), truth=t(3, 4, 5)), {
        "estimate": bad.tensor(**FREE, dims=False),
        "truth": bad.tensor(**FREE, dims=False, ends=(0, 1, 2))})
        for f in (phase_retrieval.aligned, phase_retrieval.aligned_error)],
    Case(phase_retrieval.matrix_floor, lambda: dict(clip=t(3, 4, 5), rank=2), {
        "clip": bad.tensor(floating=False), "rank": bad.count(1, 5)}),
    Case(phase_retrieval.tucker_floor, lambda: dict(clip=t(3, 4, 5), ranks=(2, 2, 2)), {
        "clip": bad.tensor(floating=False), "ranks": bad.sizes(3) + bad.only("too large", (4, 2, 2), (2, 2, 6))}),
    Case(phase_retrieval.tspr, lambda: dict(
        y=seen(), op=linear_map(), ranks=(2, 2, 2), iterations=1, generator=draw(), truth=t(3, 4, 5)), SOLVER | {
        "ranks": bad.sizes(3) + bad.only("too large", (4, 2, 2), (2, 2, 6), (1, 1, 2)), "orthonormal": bad.flag(),
        "controlled": bad.flag(), "rwf_steps": bad.count(0),
        "start": bad.choice() + bad.only("another model", tensors.Tucker(t(2, 2, 2), [t(3, 2), t(4, 2), t(5, 2)]))}),
    Case(lowrank_phase.altmin_lowrap, lambda: dict(
        y=seen(), op=linear_map(), rank=2, iterations=1, generator=draw()), SOLVER | {
        "rank": RANK, "rwf_steps": bad.count(0)}),
    Case(lowrank_phase.altmin_trunc, lambda: dict(
        y=seen(), op=linear_map(), rank=2, iterations=1, generator=draw()), SOLVER | {"rank": RANK}),
    Case(wirtinger.top_vectors, lambda: dict(op=linear_map(), weights=seen(), steps=2, generator=draw()), {
        "op": OBJECT, "weights": WEIGHTS, "steps": RUNS, "generator": RANDOM}),
    Case(wirtinger.truncated_weights, lambda: dict(y=seen(), op=linear_map()), {
        "y": WEIGHTS, "op": OBJECT, "pooled": bad.flag()}),
    Case(wirtinger.spectral_frames, lambda: dict(y=seen(), op=linear_map(), generator=draw()), {
        "y": WEIGHTS, "op": OBJECT, "generator": RANDOM, "steps": RUNS, "unit": bad.flag()}),
    Case(wirtinger.pooled_basis, lambda: dict(op=linear_map(), weights=seen(), rank=2, generator=draw()), {
        "op": OBJECT, "weights": WEIGHTS, "rank": RUNS[:3], "generator": RANDOM, "steps": bad.count(0)}),
    Case(wirtinger.rwf, lambda: dict(root=t(2, 5, 7), rows=t(2, 5, 7, 3), m=torch.full((2, 1, 1), 7.0), steps=2), {
        "root": bad.tensor(finite=False), "rows": bad.tensor(**FREE, ends=(0, 1, 2)),
        "m": bad.tensor(finite=False, dims=False), "steps": bad.count(0), "rate": EPS, "controlled": bad.flag()}),
    # diffusion
    Case(diffusion.normal, lambda: dict(like=t(2, 3), random=draw()), {
        "like": bad.tensor(finite=False, dims=False),
        "random": RANDOM + bad.only("too few", [draw()], []) + bad.only("wrong entry", [draw(), 3], ["a", "b"])}),
    Case(diffusion.Schedule, lambda: dict(abar=torch.tensor([0.9, 0.5, 0.1])), {
        "abar": bad.tensor() + bad.only("not falling", torch.tensor([0.5, 0.5]), torch.tensor([0.1, 0.9]))
            + bad.only("out of range", torch.tensor([1.0, 0.5]), torch.tensor([0.5, -0.5]), torch.tensor([0.5]))}),
    Case(schedule().levels, lambda: dict(steps=3), {"steps": bad.count(1, 9)}),
    Case(diffusion.add_noise, lambda: dict(clean=t(2, 3), abar=0.5, noise=t(2, 3)), {
        "clean": bad.tensor(finite=False, dims=False), "abar": VARIANCE,
        "noise": bad.tensor(finite=False, dims=False)}),
    Case(diffusion.tweedie, lambda: dict(z=t(2, 3), noise=t(2, 3), abar=0.5), {
        "z": bad.tensor(finite=False, dims=False), "noise": bad.tensor(finite=False, dims=False), "abar": SHARE}),
    Case(diffusion.tweedie_covariance, lambda: dict(hessian=t(2, 3, 3), abar=0.5), {
        "hessian": bad.tensor(finite=False, dims=False, ends=(1, 2)), "abar": SHARE}),
    Case(diffusion.ddim, lambda: dict(clean=t(2, 3), noise=t(2, 3), abar=0.5), {
        "clean": bad.tensor(finite=False, dims=False), "noise": bad.tensor(finite=False, dims=False), "abar": SHARE,
        "fresh": bad.only("wrong type", 3, "x", [0.5]), "delta": POSITIVE + bad.only("too large", 0.8, 2.0)}),
    Case(diffusion.check_images, lambda: dict(images=t(2, 1, 4, 4) - 1, shape=(1, 4, 4), pixels=(-1.0, 1.0)), {
        "images": bad.tensor(ends=(1, 2, 3)) + bad.only("out of range", 9.5 * torch.ones(2, 1, 4, 4)),
        "shape": bad.sizes(1)}),
    Case(diffusion.LatentDiffusion, parts, {
        "encode": bad.function(), "decode": bad.function(), "noise": bad.function(), "schedule": OBJECT,
        "latent_shape": bad.sizes(1), "image_shape": bad.sizes(1),
        "pixels": bad.only("wrong type", 3, "ab", (1.0, None))
            + bad.only("no range", (1.0, -1.0), (0.0,), (1.0, 1.0)), "plain": bad.flag()}),
    Case(plane().sample, lambda: dict(start=t(3, 2), steps=3), {
        "start": bad.tensor(finite=False, ends=(1,)), "steps": bad.count(1, 9)}),
    Case(diffusion.mean_uncertainty, lambda: dict(model=plane(), latents=t(3, 2), random=draw(), points=3), {
        "model": OBJECT, "latents": bad.tensor(dims=False), "random": RANDOM, "points": bad.count(2)}),
    Case(diffusion.GaussianMixture, lambda: dict(
        weights=t(3), means=t(3, 2), covariances=torch.eye(2, dtype=torch.float64).repeat(3, 1, 1),
        schedule=schedule()), {
        "weights": bad.tensor(ends=(0,), above=0), "means": bad.tensor(), "schedule": OBJECT,
        "covariances": bad.tensor(ends=(0, 1, 2)) + bad.only("not positive", -torch.eye(2).double().repeat(3, 1, 1))}),
    Case(mixture().sample, lambda: dict(count=3, random=draw()), {"count": RUNS, "random": RANDOM}),
    # data consistency and solvers
    Case(consistency.setting, lambda: dict(name="value", value=0.5), {
        "value": SETTING + bad.only("wrong axes", t(2, 3))}),
    Case(consistency.per_sample, lambda: dict(value=t(2), like=t(2, 3)), {
        "value": bad.only("wrong length", t(3), t(1)) + bad.only("wrong axes", t(2, 2)),
        "like": bad.tensor(finite=False, dims=False)}),
    Case(consistency.resampling_variance, lambda: dict(abar=0.5, before=0.6, gamma=1.0), {
        "abar": bad.real(above=0, below=1), "gamma": VARIANCE,
        "before": SHARE + bad.only("smaller than abar", 0.4, 0.1)}),
    *[Case(f, lambda f=f: dict(clean=t(2, 3), z=t(2, 3), abar=0.5, variance=0.1)
           | ({"fresh": t(2, 3)} if f is consistency.resample else {}), {
        "clean": bad.tensor(finite=False, dims=False), "z": bad.tensor(finite=False, dims=False), "abar": SHARE,
        "variance": VARIANCE} | ({"fresh": bad.tensor(finite=False, dims=False)} if f is consistency.resample else {}))
        for f in (consistency.resampling_moments, consistency.resample)],
    Case(consistency.minimise, lambda: dict(
        start=t(2, 2), forward=lambda x, operator: operator(x), operator=instruments(), y=t(2, 1),
        adam=consistency.Adam(0.1, 2), tolerance=0.0), {
        "start": bad.tensor(finite=False, dims=False), "forward": bad.function(), "operator": OBJECT,
        "y": bad.tensor(finite=False, dims=False, ends=(0,)), "adam": OBJECT, "check": RUNS,
        "tolerance": NEGATIVE + bad.only("wrong length", t(3)), "prior": bad.only("wrong type", 3, "x", [1, 2]),
        "pull": bad.only("wrong type", 3, "x")}),
    Case(posterior.LatentDPS, dict, {"scale": NEGATIVE + bad.only("wrong axes", t(2, 2))}),
    Case(posterior.LatentOptimisation, dict, {
        "adam": OBJECT, "tolerance": NEGATIVE + bad.only("unknown name", "noisy", "")}),
    Case(posterior.ReSample, dict, {
        "gamma": SETTING, "tolerance": NEGATIVE + bad.only("unknown name", "noisy", ""),
        "pixel": OBJECT, "latent": OBJECT, "last": OBJECT[0:0] + bad.only("wrong type", 3, "x"),
        "uncertainty": bad.function(), "proximal": bad.flag()}),
    Case(posterior.solve, lambda: dict(
        model=plane(), operator=instruments(), y=t(2, 1), sigma=0.1, method=posterior.LatentDPS(2), random=draw()), {
        "model": OBJECT, "operator": OBJECT + bad.only("other images", operators.gaussian_blur((1, 8, 8), 3, 1.0)),
        "y": bad.tensor(ends=(1,)), "sigma": POSITIVE, "method": OBJECT,
        "random": RANDOM + bad.only("too few", [draw()], []), "callback": bad.function()}),
    # operators
    Case(operators.Inpainting, lambda: dict(kept=torch.arange(5), image_shape=(1, 4, 4)), {
        "kept": bad.tensor(floating=False, finite=False) + bad.only("no such pixel", torch.arange(17), -torch.arange(5))
            + bad.only("wrong dtype", torch.rand(3), torch.ones(3, dtype=torch.bool)),
        "image_shape": SHAPE}),
    Case(operators.random_inpainting, lambda: dict(image_shape=(1, 4, 4), dropped=0.5, random=draw()), {
        "image_shape": SHAPE, "samples": bad.only("too small", 0, -1) + bad.only("wrong type", "2", 0.5, [2])}),
    Case(operators.Separable, lambda: dict(rows=t(2, 4), columns=t(2, 4)), {
        "rows": bad.tensor(), "columns": bad.tensor(), "channels": RUNS}),
    Case(operators.Convolution, lambda: dict(kernel=t(3, 3), image_shape=(1, 4, 4)), {
        "kernel": bad.tensor(ends=(0, 1)) + bad.only("even", t(2, 2), t(4, 4)), "image_shape": SHAPE}),
    Case(operators.Pointwise, lambda: dict(inner=operators.gaussian_blur((1, 8, 8), 3, 1.0), function=torch.tanh), {
        "inner": OBJECT, "function": bad.function()}),
    Case(operators.super_resolution, lambda: dict(image_shape=(1, 8, 8), factor=2), {"kind": bad.choice()}),
    Case(operators.gaussian_blur((1, 8, 8), 3, 1.0).measure, lambda: dict(
        images=t(2, 1, 8, 8), sigma=0.1, random=draw()), {
        "images": bad.tensor(finite=False, ends=(1, 2, 3)), "sigma": POSITIVE, "random": RANDOM}),
    # rings
    Case(rings.ring, lambda: dict(schedule=schedule(), modes=3), {
        "schedule": OBJECT, "modes": bad.count(2), "std": EPS, "device": bad.only("wrong type", None, 3, [])}),
    Case(rings.plane_model, lambda: dict(mixture=mixture()), {"mixture": OBJECT}),
    Case(rings.Instruments, lambda: dict(W=t(2, 2, 4), a=t(2, 4), b=t(2, 4)), {
        "W": bad.tensor(finite=False, ends=(1,)), "a": bad.tensor(finite=False, ends=(0, 1)),
        "b": bad.tensor(finite=False, ends=(0, 1))}),
    Case(rings.ambiguous_instruments, lambda: dict(mixture=mixture(), count=2, random=draw()), {
        "mixture": OBJECT, "count": RUNS, "random": RANDOM, "n": bad.count(2)}),
    Case(rings.GridPosterior, lambda: dict(
        mixture=mixture(), operator=instruments(), y=t(2, 1), sigma=0.1, samples=2, random=draw(), points=5), {
        "mixture": OBJECT, "operator": OBJECT, "y": bad.tensor(dims=False), "sigma": EPS, "samples": RUNS,
        "random": RANDOM, "points": bad.count(2), "reach": EPS}),
    # models
    Case(spread(latent_models.mlp), lambda: dict(sizes=[3, 4]), {
        "sizes": [s for s in bad.sizes(2) if s.name != "wrong type"]}),
    Case(latent_models.Autoencoder, lambda: dict(image_shape=(1, 2, 2), latent=2, width=4), {
        "image_shape": bad.sizes(1), "latent": RUNS, "width": RUNS}),
    Case(latent_models.ConvAutoencoder, lambda: dict(channels=1, latent_channels=2, width=4), {
        "channels": RUNS, "latent_channels": RUNS, "width": RUNS}),
    Case(latent_models.ResidualMLP, lambda: dict(latent=2, width=4), {"latent": RUNS, "width": RUNS, "blocks": RUNS}),
    Case(latent_models.UNet, lambda: dict(channels=1, width=8, levels=1), {"channels": RUNS}),
    Case(latent_models.initialise, lambda: dict(model=nn.Linear(2, 2), random=draw()), {
        "model": OBJECT, "random": RANDOM}),
    Case(latent_models.train_autoencoder, lambda: dict(
        model=autoencoder(), images=(t(5, 1, 2, 2) - 1).float(), random=draw(), steps=1, batch=2), TRAIN | {
        "model": OBJECT, "images": bad.tensor(ends=(1, 2, 3)), "noise": POSITIVE, "penalty": POSITIVE}),
    Case(latent_models.train_denoiser, lambda: dict(
        model=latent_models.ResidualMLP(2, 4, 1), latents=t(5, 2).float(), schedule=schedule(), random=draw(), steps=1,
        batch=2), TRAIN | {"model": OBJECT, "latents": bad.tensor(dims=False), "schedule": OBJECT}),
    Case(latent_models.latent_diffusion, lambda: dict(
        autoencoder=autoencoder(), denoiser=lambda z, times: z, schedule=schedule(), latent_shape=(2,),
        image_shape=(1, 2, 2)), {
        "autoencoder": OBJECT, "denoiser": bad.function(), "schedule": OBJECT, "latent_shape": bad.sizes(1),
        "image_shape": bad.sizes(1)}),
    Case(latent_models.kept_for_gradient, lambda: dict(forward=lambda: t(2), parameters=[t(2)]), {
        "forward": bad.function(), "parameters": bad.only("wrong type", None, 3, object)}),
    Case(models.Attention, lambda: dict(width=8, heads=2, causal=True), {
        "width": RUNS, "heads": RUNS + bad.only("no divisor", 3, 5), "causal": bad.flag()}),
    Case(models.Feedforward, lambda: dict(width=8, hidden=8), {"width": RUNS, "hidden": RUNS, "gelu": bad.flag()}),
    Case(models.Block, lambda: dict(width=8, heads=2, causal=True), {
        "width": RUNS, "heads": RUNS + bad.only("no divisor", 3, 5), "causal": bad.flag(), "gelu": bad.flag()}),
    Case(models.MLP, lambda: dict(sizes=[3, 4]), {"generator": OPTIONAL_RANDOM}),
    Case(models.GPT, lambda: dict(vocabulary=5, context=4, width=8, depth=1, heads=2), START | {
        "width": RUNS, "gelu": bad.flag()}),
    Case(models.ViT, lambda: dict(image=8, patch=2, channels=1, classes=3, width=8, depth=1, heads=2), {
        "width": RUNS, "generator": OPTIONAL_RANDOM}),
    Case(models.start, lambda: dict(model=nn.Linear(2, 2), generator=draw()), START | {"model": OBJECT}),
    Case(ensembles.Ensemble, lambda: dict(
        models=[nn.Linear(2, 2), nn.Linear(2, 2)], loss=lambda y, z: (y - z).square().mean(), steps=2, lr=0.1), {
        "models": bad.only("wrong type", None, 3, "ab", nn.Linear(2, 2)) + bad.only("empty", [])
            + bad.only("wrong entry", [nn.Linear(2, 2), 3]) + bad.only("differ", [nn.Linear(2, 2), nn.Linear(2, 3)]),
        "loss": bad.function(), "steps": RUNS, "lr": EPS, "warmup": bad.real(at_least=0, at_most=1),
        "decay": POSITIVE, "clip": [s for s in EPS if s.name != "wrong type"],
        "undecayed": bad.only("wrong type", None, 3, "gains", [3]),
        "betas": bad.only("wrong type", None, 3, "ab", ["a", "b"]) + bad.only("too few", [0.9])}),
    # what is read from files
    Case(pretrained.adapt, lambda: dict(unet=nn.Linear(2, 2), vqvae=nn.Linear(2, 2), scheduler=Scheduler()), {
        "unet": OBJECT, "vqvae": OBJECT, "scheduler": bad.only("wrong type", None, 3, "x"),
        "side": RUNS}),
    Case(pretrained.load, dict, {"name": bad.text(), "device": bad.only("wrong type", None, 3, [])}),
    Case(pretrained.images, lambda: dict(folder="faces", count=2), {"folder": bad.text(), "count": RUNS, "side": RUNS}),
    Case(video.load_video, lambda: dict(path=video._scikit_image("no_time_for_that_tiny.gif")), {
        "path": bad.only("wrong type", None, 3, b"x", [], ""), "step": RUNS,
        "size": bad.only("wrong type", 3, "ab", 0.5) + bad.only("wrong length", (3,), (3, 4, 5))
            + bad.only("entry too small", (0, 3), (3, -1))}),
    *[Case(clip, lambda: dict(h=4, w=5, q=3), {"h": RUNS, "w": RUNS, "q": bad.count(2)})
      for clip in (video.walker, video.pan)],
    Case(video.tiny, lambda: dict(h=4, w=5, q=3), {"h": RUNS, "w": RUNS, "q": bad.count(2, 24)}),
]  # fmt: skip
KINDS = bad.kinds(CASES)
NEED_FILES = (pretrained.adapt, pretrained.load, pretrained.images)
test_the_good_arguments_are_good, test_bad_input_is_answered = bad.table_tests(CASES, unless=NEED_FILES)


def test_there_are_hundreds_of_kinds_more():
    assert len(set(map(bad.name_of, KINDS))) == len(KINDS) >= 500
