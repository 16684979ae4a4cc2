"""Bad input by the hundred, continued: tensors, models, structured layers, operators, diffusion, measurements."""

# ruff: noqa: E501

import bad_values as bad
import torch
from bad_values import draw, t
from torch import nn

from lowdim import (
    diffusion,
    latent_models,
    measurements,
    models,
    operators,
    posterior,
    structured,
    structured_factorization,
    structured_models,
    structured_pretrained,
    tensors,
    video,
)

Case = bad.Case


def two_layers() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 8))


RUNS, EPS = bad.count(), bad.real(above=0)
SHAPE = (1, 8, 8)
GPT = dict(vocabulary=5, context=4, width=8, depth=1, heads=2)
VIT = dict(image=8, patch=2, channels=1, classes=3, width=8, depth=1, heads=2)
MATRIX = (
    bad.only("wrong type", None, 3, "x", [[1.0]], object)
    + bad.only("wrong dtype", torch.ones(4, 6, dtype=torch.int64))
    + bad.only("not finite", t(4, 6) * bad.NAN)
    + bad.only("wrong shape", t(4), torch.ones(()), torch.zeros(0, 4))
)
DEVICE = bad.only("wrong type", "nowhere", 3.5, [], object, True) + bad.only(
    "not there", "cuda:99", torch.device("cuda", 98)
)
DTYPE = bad.only("wrong type", "float32", 3, float, torch.int64, torch.complex64, [])
LAYER = {  # None stands for PyTorch's defaults
    "bias": bad.flag(), "std": EPS[:1] + bad.only("wrong type", "3", [], True, object) + bad.only("negative", -0.5, -1),
    "generator": bad.only("wrong type", 3, "3", [], object), "device": DEVICE, "dtype": DTYPE,
}  # fmt: skip
CASES = [
    Case(tensors.hosvd, lambda: dict(x=t(3, 4, 5), ranks=[2, 2, 2]), {
        "ranks": bad.sizes(1) + bad.only("too large", [4, 2, 2], [2, 2, 6]),
        "x": bad.tensor(floating=False, dims=False)}),
    Case(tensors.truncated, lambda: dict(matrix=t(3, 4), rank=2), {
        "matrix": bad.tensor(floating=False, dims=False), "rank": bad.count(1, 3)}),
    Case(models.MLP, lambda: dict(sizes=[3, 4, 2]), {"sizes": bad.sizes(2)}),
    Case(models.GPT, lambda: dict(GPT), {
        "vocabulary": RUNS, "context": RUNS, "depth": RUNS, "heads": RUNS + bad.only("no divisor", 3, 5)}),
    Case(models.ViT, lambda: dict(VIT), {
        "image": RUNS, "channels": RUNS, "classes": RUNS, "depth": RUNS, "patch": RUNS + bad.only("no divisor", 3, 5),
        "heads": RUNS + bad.only("no divisor", 3, 5)}),
    *[Case(layer, lambda: dict(in_features=8, out_features=4, rank=2, blocks=2), {
        "in_features": RUNS, "out_features": RUNS, "rank": RUNS, "blocks": RUNS + bad.only("no divisor", 3, 8), **LAYER})
        for layer in (structured.BlastLinear, structured.BlockLowRankLinear)],
    Case(structured.LowRankLinear, lambda: dict(in_features=8, out_features=4, rank=2), {
        "in_features": RUNS, "out_features": RUNS, "rank": RUNS, "blocks": RUNS + bad.only("no divisor", 3, 8), **LAYER}),
    Case(structured.BlockDiagonalLinear, lambda: dict(in_features=8, out_features=4, blocks=2), {
        "in_features": RUNS, "out_features": RUNS, "rank": bad.count(0), **LAYER,
        "blocks": RUNS + bad.only("no divisor", 3, 8)}),
    Case(structured_factorization.check_blocks, lambda: dict(rows=4, columns=6, blocks=2), {
        "rows": RUNS, "columns": RUNS, "blocks": RUNS + bad.only("no divisor", 3, 4)}),
    Case(structured_factorization.blast_start, lambda: dict(
        runs=1, rows=4, columns=6, blocks=2, rank=1, generator=draw()), {
        "runs": RUNS, "rows": RUNS, "columns": RUNS, "blocks": RUNS + bad.only("no divisor", 3, 4), "rank": RUNS, "std": EPS,
        "gains": bad.choice(), "generator": bad.generator(), "dtype": DTYPE + bad.only("none", None)}),
    Case(structured_factorization.BlastDescent, lambda: dict(
        matrices=t(1, 4, 6), start=structured_factorization.blast_start(1, 4, 6, 2, 1, draw()), iterations=2), {
        "matrices": bad.tensor(ends=(0, 1, 2)), "iterations": RUNS, "form": bad.choice()}),
    Case(structured_factorization.block_low_rank, lambda: dict(matrices=t(4, 6), blocks=2, rank=1), {
        "matrices": MATRIX, "blocks": RUNS + bad.only("no divisor", 3, 4), "rank": bad.count(1, 2)}),
    Case(structured_models.replace_linear, lambda: dict(
        model=two_layers(), patterns="*", blocks=2, rank=1, fresh=True), {
        "kind": bad.choice(), "blocks": RUNS + bad.only("no divisor", 3, 8), "rank": RUNS[:3]}),
    Case(structured_pretrained.keep_first, lambda: dict(
        model=nn.Sequential(nn.ModuleList([nn.Linear(2, 2)])), layers=1), {"layers": RUNS}),
    Case(structured_pretrained.parameters_of_plan, lambda: dict(key="gpt2", shapes=[("head", (3, 4))]), {
        "key": bad.choice(), "shapes": bad.only("wrong type", None, 3, object) + bad.only(
            "entry", [3], [("head",)], [("head", 3)], [("head", (3, 0))], [("head", (3,))], [("head", (3, 4, 5))], [(3, (3, 4))])}),
    Case(structured_pretrained.compress, lambda: dict(model=two_layers(), key="gpt2"), {
        "key": bad.choice(), "kind": bad.choice(), "share": EPS, "model": bad.only("wrong type", None, 3, "x", nn.Linear)}),
    Case(structured_pretrained.load, lambda: dict(key="gpt2"), {
        "key": bad.choice(), "device": DEVICE + bad.only("none", None), "layers": RUNS[:3]}),
    Case(structured_pretrained.wikitext103, dict, {"part": bad.choice(), "characters": RUNS[:3]}),
    Case(structured_factorization.factorize, lambda: dict(weights=t(1, 4, 6), blocks=2, rank=1, iterations=2), {
        "weights": bad.tensor(dims=False), "blocks": RUNS + bad.only("no divisor", 3, 4), "rank": RUNS,
        "iterations": RUNS, "form": bad.choice()}),
    Case(structured_factorization.low_rank, lambda: dict(matrices=t(4, 6), rank=2), {"rank": bad.count(1, 4), "matrices": MATRIX}),
    Case(operators.random_inpainting, lambda: dict(image_shape=SHAPE, dropped=0.5, random=draw()), {
        "image_shape": bad.sizes(3), "dropped": bad.real(above=0, below=1), "random": bad.generator()}),
    Case(operators.gaussian_blur, lambda: dict(image_shape=SHAPE, size=3, std=1.0), {
        "image_shape": bad.sizes(3), "size": bad.count(1, 15) + bad.only("even", 2, 4), "std": EPS}),
    Case(operators.super_resolution, lambda: dict(image_shape=SHAPE, factor=2), {
        "image_shape": bad.sizes(3), "factor": RUNS + bad.only("no divisor", 3, 5, 16)}),
    Case(operators.motion_kernel, lambda: dict(size=5, intensity=0.5, random=draw()), {
        "size": bad.count(3), "intensity": bad.real(at_least=0, at_most=1), "random": bad.generator(),
        "points": RUNS}),
    Case(operators.ParallelBeam, lambda: dict(side=6, angles=3), {"side": bad.count(2), "angles": RUNS}),
    Case(diffusion.Schedule.scaled_linear, lambda: dict(first=0.001, last=0.02, times=10), {
        "first": bad.real(above=0, below=1), "last": bad.real(above=0, below=1), "times": bad.count(2)}),
    Case(latent_models.UNet, lambda: dict(channels=1, width=8, levels=1), {
        "width": bad.count(8) + bad.only("no multiple", 9, 12), "levels": RUNS}),
    Case(posterior.Adam, lambda: dict(rate=0.1, iterations=3), {"rate": EPS, "iterations": bad.count(0)}),
    Case(posterior.LatentDPS, lambda: dict(steps=3, scale=0.5), {
        "steps": RUNS, "scale": bad.real(at_least=0)}),
    Case(posterior.ReSample, dict, {
        "steps": RUNS, "every": bad.count(0), "rest": bad.real(at_least=0, at_most=1), "gamma": EPS,
        "stages": bad.choice(), "renoise": bad.choice(), "formula": bad.choice(), "travel": bad.count(0),
        "dps": bad.real(at_least=0)}),
    Case(posterior.resampling_variance, lambda: dict(abar=0.5, before=0.6, gamma=1.0), {"formula": bad.choice()}),
    Case(measurements.gaussian, lambda: dict(shape=(3, 4), q=2, m=5, generator=draw()), {
        "shape": bad.sizes(2), "q": RUNS, "m": RUNS[:3], "generator": bad.generator(), "runs": RUNS}),
    Case(measurements.coded_diffraction, lambda: dict(shape=(3, 4), q=2, masks=2, generator=draw()), {
        "shape": bad.sizes(2), "q": RUNS, "masks": RUNS, "keep": bad.only("out of range", 0, -1, 25, 10**9),
        "generator": bad.generator(), "runs": RUNS}),
    Case(video.clip_named, lambda: dict(name="tiny"), {"name": bad.text()}),
]  # fmt: skip
KINDS = bad.kinds(CASES)
NEED_FILES = (structured_pretrained.load, structured_pretrained.compress, structured_pretrained.wikitext103)
test_the_good_arguments_are_good, test_bad_input_is_answered = bad.table_tests(CASES, unless=NEED_FILES)


def test_there_are_a_hundred_kinds_more():
    assert len(set(map(bad.name_of, KINDS))) == len(KINDS) >= 100
