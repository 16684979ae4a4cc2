"""Bad input by the hundred: every kind gets an error that names the argument, what it was, and what is allowed.

A kind is a function, an argument and a sort of badness. ``CASES`` lists functions with good arguments and, for each
argument, the sorts that apply; hypothesis draws the values. A kind fails if nothing is raised, if something
undocumented is, if the sentence leaves something out, or if it takes long. ``test_bad_input_coverage`` looks after
that no public function is missing.
"""

import functools

import bad_values as bad
import numpy as np
import torch
from bad_values import draw, t

from lowdim import (
    claims,
    curvature,
    data,
    descent,
    diagonal,
    factorization,
    networks,
    orbits,
    plots,
    quality,
    recovery,
    results,
    robust,
    runtime,
    sensing,
    spectra,
    stability,
    sweeps,
    training,
    twolayer,
)

Case = bad.Case


def tuned(step=None, runs: int = 2) -> dict:
    """Arguments of a descent that halves its state."""
    state = [t(runs, 3)]
    return dict(step=lambda: state[0].mul_(0.5), state=state, n_steps=3)


def network(runs: int = 2):
    return networks.MatrixNetwork([t(runs, 4, 3), t(runs, 5, 4)], networks.Factorization(t(5, 3)), 0.01)


def two_layers() -> dict:
    return {"weight.0": t(2, 4, 3), "bias.0": t(2, 4), "weight.1": t(2, 3, 4), "bias.1": t(2, 3)}


def symmetric(n: int = 3):
    return networks.Factorization(t(n, n) + t(n, n).mT)


def absolute(runs: int = 2):
    return robust.AbsoluteSensing(t(8, 6), t(3, 3), torch.zeros(8, dtype=torch.float64))


def axes():
    return plots.plt.figure(num=1, clear=True).gca()


def table() -> claims.Claims:
    return claims.Claims("slug")


D, RUNS, EPS = bad.count(2), bad.count(), bad.real(above=0)
ETA = bad.several(at_least=0)
ROW = dict(id="row", statement="It is so.", source="Section 1", origin="paper")
ROWS = dict.fromkeys(("id", "statement", "source"), bad.text()) | {"origin": bad.choice()}
MEASURED = bad.only("wrong type", None, "3", [["a"]], [3j], object) + bad.only("empty", [], [[]])
HALVES = dict(rates=lambda: t(3), modes=lambda: t(2))
LAYERS = bad.tensors(2, ends=(0, 2))
RANK = lambda most: [s for s in bad.count(1, most) if s.name != "wrong type"] + bad.only(
    "wrong type", None, "3", b"3", 3j, object, True, ["a"])  # fmt: skip
PROBLEM = bad.only("wrong type", None, 3, "completion", t(5, 3))
STABLE = dict(c=bad.tensor(at_least=0), sigma=bad.tensor(above=0), depth=D, seeds=RUNS, generator=bad.generator())
ORBIT = lambda **more: dict(c=t(3), sigma=t(2), depth=3, seeds=2, generator=draw()) | more

CASES = [
    # descent
    Case(descent.descend, tuned, {
        "step": bad.function(), "state": bad.tensors(finite=False, dims=False), "n_steps": bad.count(0),
        "record": bad.only("wrong type", 3, "loss", [print], {"loss": 3}), "every": bad.count(), "start": bad.count(0),
        "run_dim": bad.count(0), "bound": EPS, "on_divergence": bad.choice(), "describe": bad.function(),
        "progress": bad.flag(), "check": bad.count(), "walk": bad.only("wrong type", 3, "f"),
        "stop": bad.only("wrong type", 3, "f") + bad.only("alone", lambda: None),
    }),
    Case(descent.train, lambda: dict(network=network(), n_steps=2), {
        "network": bad.only("wrong type", None, 3, "network", t(2)), "n_steps": bad.count(0)}),
    # networks
    Case(networks.Factorization, lambda: dict(target=t(5, 3), mean=True), {"target": bad.tensor(), "mean": bad.flag()}),
    Case(networks.MatrixNetwork, lambda: dict(
        layers=[t(2, 4, 3), t(2, 5, 4)], problem=networks.Factorization(t(5, 3)), eta=0.1), {
        "layers": LAYERS, "problem": PROBLEM, "eta": [*ETA, *bad.only("wrong length", [0.1] * 3, t(5))],
        "scale": bad.only("wrong type", 3, "a", t(2)) + bad.only("wrong length", [1.0], [1.0] * 3)
            + bad.only("entry not finite", [1.0, bad.NAN], [bad.INF, 1.0]) + bad.only("wrong entry", [1.0, "2"]),
        "block": bad.count(0)}),
    Case(networks.network, lambda: dict(
        layers=[t(2, 4, 3), t(2, 5, 4)], problem=networks.Factorization(t(5, 3)), eta=0.1), {
        "layers": LAYERS, "problem": PROBLEM, "eta": ETA}),
    # factorization
    Case(factorization.haar, lambda: dict(shape=(2, 3), generator=draw()), {
        "shape": bad.sizes(1), "generator": bad.generator()}),
    Case(factorization.spectrum_target, lambda: dict(sigma=[2.0, 1.0], width=3), {
        "sigma": bad.several(at_least=0) + bad.only("too many", [1.0] * 4, [1.0] * 9) + bad.only("single", 2.0, 1),
        "width": bad.count(2)}),
    Case(factorization.identity_layers, lambda: dict(depth=3, runs=2, width=2, alpha=0.1), {
        "depth": D, "runs": RUNS, "width": RUNS, "alpha": EPS, "start": bad.choice()}),
    Case(factorization.mode_layers, lambda: dict(depth=3, runs=2, modes=2, alpha=0.1), {
        "depth": D, "runs": RUNS, "modes": RUNS, "alpha": EPS, "start": bad.choice()}),
    Case(factorization.gaussian_layers, lambda: dict(depth=3, runs=2, width=2, scale=0.1, generator=draw()), {
        "depth": D, "runs": RUNS, "width": RUNS, "scale": EPS, "generator": bad.generator()}),
    Case(factorization.ModeNetwork, lambda: dict(layers=t(3, 2, 4), sigma=t(4), eta=0.1), {
        "layers": bad.tensor() + bad.only("one layer", t(1, 2, 4)),
        "sigma": bad.several(at_least=0) + bad.only("wrong length", t(3), t(7)),
        "eta": ETA + bad.only("wrong length", t(3), t(3, 4))}),
    Case(factorization.sharpness, lambda: dict(sigma=2.0, depth=3), {"sigma": bad.several(at_least=0), "depth": D}),
    Case(factorization.edge, lambda: dict(sigma=2.0, depth=3), {"sigma": bad.several(above=0), "depth": D}),
    Case(factorization.minimum_hessian_eigenvalues, lambda: dict(sigma=[2.0, 1.0], width=3, depth=3), {
        "sigma": bad.several(at_least=0) + bad.only("too many", [1.0] * 4), "width": bad.count(2), "depth": D}),
    Case(factorization.gap_factor, lambda: dict(product=t(2), sigma=1.0, eta=0.1, s_upper=t(2), s_lower=t(2)), {
        "product": bad.tensor(finite=False, dims=False), "sigma": bad.several(at_least=0), "eta": ETA,
        "s_upper": bad.tensor(finite=False, dims=False), "s_lower": bad.tensor(finite=False, dims=False)}),
    Case(factorization.escape_steps, lambda: dict(sigma=2.0, depth=3, alpha=0.1, eta=0.1), {
        "sigma": EPS, "depth": D, "alpha": EPS, "eta": EPS}),
    Case(factorization.transverse_hessian, lambda: dict(a=t(2), b=t(2), sigma_a=1.0, sigma_b=2.0, depth=3), {
        "a": bad.tensor(finite=False, dims=False), "b": bad.tensor(finite=False, dims=False), "depth": D}),
    Case(factorization.balanced_top_eigenvalue, lambda: dict(rho=t(2, 3), sigma=t(3), depth=3, width=3), {
        "rho": bad.tensor(finite=False, dims=False), "sigma": bad.tensor(dims=False, ends=(0,), at_least=0), "depth": D,
        "width": RUNS}),
    # recovery
    Case(recovery.Completion, lambda: dict(mask=torch.ones(3, 4), target=t(3, 4)), {
        "mask": bad.tensor(floating=False, ends=(0, 1)) + bad.only("nothing seen", torch.zeros(3, 4))
            + bad.only("no mask", 2 * torch.ones(3, 4), -torch.ones(3, 4)),
        "target": bad.tensor()}),
    Case(recovery.Sensing, lambda: dict(operators=t(5, 3, 4), measurements=t(5)), {
        "operators": bad.tensor(), "measurements": bad.tensor(ends=(0,))}),
    Case(recovery.ThinFactorization, lambda: dict(left=t(4, 2), right=t(3, 2)), {
        "left": bad.tensor(), "right": bad.tensor(ends=(1,)), "mean": bad.flag()}),
    Case(recovery.low_rank_target, lambda: dict(width=4, rank=2, runs=2, generator=draw()), {
        "width": RUNS, "rank": bad.count(1, 4), "runs": RUNS, "generator": bad.generator(), "pick": bad.choice()}),
    *[Case(start, lambda: dict(sizes=[4, 3, 5], runs=2, eps=0.1, generator=draw()), {
        "sizes": bad.sizes(3), "runs": RUNS, "eps": EPS, "generator": bad.generator()})
        for start in (recovery.orthogonal_layers, recovery.balanced_layers)],
    Case(recovery.spectral_layers, lambda: dict(surrogate=t(4, 5), rank=2, depth=3, eps=0.1), {
        "surrogate": bad.tensor(), "rank": RANK(4) + bad.only("empty", [], torch.zeros(0, dtype=torch.long)),
        "depth": D, "eps": EPS, "runs": RUNS}),
    Case(recovery.padded, lambda: dict(layers=[t(2, 3, 4), t(2, 5, 3)], width=4), {
        "layers": bad.tensors(2), "width": bad.count(3)}),
    Case(recovery.outer_scale, lambda: dict(depth=3, alpha=2.0), {"depth": D, "alpha": bad.several(above=0)}),
    Case(recovery.compressed, lambda: dict(
        problem=recovery.Completion(torch.ones(4, 4), t(4, 4)), rank=2, depth=3, eps=0.1, eta=0.1), {
        "problem": PROBLEM, "rank": RANK(4), "depth": D, "eps": EPS, "eta": ETA,
        "alpha": bad.several(above=0), "runs": RUNS}),
    Case(recovery.original, lambda: dict(
        problem=recovery.Completion(torch.ones(4, 4), t(4, 4)), depth=3, eps=0.1, eta=0.1, generator=draw()), {
        "problem": PROBLEM, "depth": D, "eps": EPS, "eta": ETA, "generator": bad.generator(), "runs": RUNS}),
    Case(recovery.alpha_speed_up, lambda: dict(alpha=2.0), {"alpha": EPS}),
    Case(recovery.alternating_least_squares, lambda: dict(mask=torch.ones(4, 5), target=t(4, 5), rank=2, sweeps=1), {
        "mask": bad.tensor(floating=False), "target": bad.tensor(ends=(0, 1)), "rank": bad.count(1, 4),
        "sweeps": bad.count(0), "ridge": EPS}),
    # sensing
    Case(sensing.SymmetricNetwork, lambda: dict(x=t(2, 3, 2), problem=symmetric(), eta=0.1), {
        "x": bad.tensor(), "problem": PROBLEM, "eta": [*ETA, *bad.only("wrong length", t(5))]}),
    Case(sensing.asymmetric, lambda: dict(
        f=t(2, 4, 3), g=t(2, 5, 3), problem=networks.Factorization(t(4, 5)), eta=0.1), {
        "f": bad.tensor(), "g": bad.tensor(ends=(0, 2)), "problem": PROBLEM, "eta": ETA}),
    Case(sensing.factors, lambda: dict(network=network()), {"network": bad.only("wrong type", None, 3, t(2))}),
    Case(sensing.imbalance, lambda: dict(f=t(2, 4, 3), g=t(2, 5, 3)), {
        "f": bad.tensor(finite=False, dims=False), "g": bad.tensor(finite=False, dims=False, ends=(2,))}),
    Case(sensing.gaussian_factors, lambda: dict(runs=2, n=3, k=2, alpha=0.1, generator=draw()), {
        "runs": RUNS, "n": RUNS, "k": RUNS, "alpha": bad.several(at_least=0) + bad.only("wrong length", t(5)),
        "generator": bad.generator()}),
    Case(sensing.signal_rows, lambda: dict(v=t(4, 2), factor=t(2, 4, 3)), {
        "v": bad.tensor(), "factor": bad.tensor(ends=(1,))}),
    Case(sensing.rebalanced, lambda: dict(f=t(2, 4, 3), g=t(2, 5, 3), beta=1.0), {
        "f": bad.tensor(), "g": bad.tensor(ends=(0, 2)),
        "beta": bad.several(above=0) + bad.only("wrong length", t(5))}),
    Case(sensing.beta_range, lambda: dict(eta=0.1, sigma=2.0), {
        "eta": EPS + bad.only("unstable", 0.5, 0.7), "sigma": EPS}),
    Case(sensing.shrinking, lambda: dict(s0=1.0, eta=0.1, t=3), {
        "s0": bad.several(at_least=0), "eta": EPS, "t": bad.several(at_least=0)}),
    Case(sensing.decay_rate, lambda: dict(steps=torch.arange(9.0), values=t(9, 2), high=2.0, low=0.1), {
        "steps": bad.tensor(floating=False), "values": bad.tensor(finite=False, ends=(0,)), "high": EPS,
        "low": bad.real(at_least=0)}),
    Case(sensing.power_law, lambda: dict(x=t(5), values=t(5, 2)), {
        "x": bad.tensor(floating=False, above=0), "values": bad.tensor(finite=False, ends=(0,))}),
    Case(sensing.svec, lambda: dict(matrix=t(2, 3, 3)), {"matrix": bad.tensor(finite=False, dims=False, ends=(1, 2))}),
    Case(sensing.SymmetricSensing, lambda: dict(operators=t(8, 6), measurements=t(8)), {
        "operators": bad.tensor(ends=(1,)), "measurements": bad.tensor(ends=(0,))}),
    # robust
    Case(robust.outliers, lambda: dict(shape=(2, 8), p=0.25, size=3.0, generator=draw()), {
        "shape": bad.sizes(1), "p": bad.several(at_least=0, below=1), "size": bad.several(at_least=0),
        "generator": bad.generator()}),
    Case(robust.dense_noise, lambda: dict(shape=(2, 8), nu=0.1, generator=draw()), {
        "shape": bad.sizes(1), "nu": bad.several(at_least=0), "generator": bad.generator()}),
    Case(robust.AbsoluteSensing, lambda: dict(operators=t(8, 6), truth=t(3, 3), noise=t(8)), {
        "operators": bad.tensor(ends=(1,)), "truth": bad.tensor(dims=False, ends=(0, 1)),
        "noise": bad.tensor(ends=(0,))}),
    Case(robust.SubgradientNetwork, lambda: dict(u=t(2, 3, 2), problem=absolute(), eta=0.1), {
        "u": bad.tensor(), "problem": PROBLEM, "eta": ETA, "rho": bad.several(above=0, at_most=1),
        "rule": bad.choice()}),
    Case(robust.spectral_factors, lambda: dict(problem=absolute(), columns=2, runs=2, alpha=0.1), {
        "problem": PROBLEM, "columns": RANK(3), "runs": RUNS, "alpha": bad.several(above=0)}),
    Case(robust.step_sum, lambda: dict(alpha=0.1, r=2), {"alpha": EPS, "r": RUNS, "stretch": EPS}),
    Case(robust.geometric, lambda: dict(total=9.0, eta=0.1), {
        "total": EPS, "eta": EPS + bad.only("too large", 9.0, 10.0), "last": bad.real(above=0, below=1)}),
    Case(robust.attenuation, lambda: dict(error=0.5), {
        "error": bad.several(above=0), "p": bad.several(at_least=0, at_most=1), "size": bad.several(at_least=0),
        "nu": bad.several(at_least=0)}),
    # orbits
    *[Case(f, lambda: dict(rho=1.0, eta=0.1, sigma=2.0, depth=3), {
        "depth": D, "rho": bad.only("wrong type", None, "3", 3j, object), "eta": bad.only("wrong type", None, "3", 3j)})
        for f in (orbits.balanced_map, orbits.balanced_slope)],
    Case(orbits.two_cycle, lambda: dict(eta=0.5, sigma=2.0, depth=3), {
        "eta": ETA, "sigma": bad.several(above=0), "depth": D}),
    Case(orbits.period_doubling, lambda: dict(depth=3, doublings=1), {"depth": D, "doublings": bad.count(0, 7)}),
    Case(orbits.balanced_lyapunov, lambda: dict(eta=t(3), sigma=1.0, depth=3, steps=3, burn_in=1), {
        "eta": bad.tensor(dims=False, at_least=0), "sigma": EPS, "depth": D, "steps": RUNS, "burn_in": bad.count(0)}),
    Case(orbits.detect_period, lambda: dict(series=t(9, 2), max_period=4), {
        "series": bad.tensor(finite=False, dims=False) + bad.only("too short", t(7, 2)), "max_period": bad.count(1, 4),
        "tolerance": EPS}),
    # stability
    Case(stability.near_minimum, lambda: ORBIT(unbalanced=0.1), STABLE | {"unbalanced": bad.real(at_least=0)}),
    Case(stability.settle, lambda: ORBIT(steps=3), STABLE | {
        "steps": RUNS, "unbalanced": bad.real(at_least=0), "last": bad.count(1, 4)}),
    Case(stability.onset, lambda: dict(sigma=t(2), depth=3, seeds=2, generator=draw(), steps=4), {
        key: sorts for key, sorts in STABLE.items() if key != "c"} | {
        "half_width": bad.real(above=0, below=1), "points": bad.count(2), "steps": bad.count(2)}),
    Case(stability.two_step_gap_factor, lambda: ORBIT(steps=4), STABLE | {
        "steps": bad.count(2), "floor": bad.real(at_least=0)}),
    Case(stability.rotation_multiplier, lambda: dict(ratio=t(2), c=t(2), depth=3), {
        "ratio": bad.tensor(dims=False, above=0), "c": bad.tensor(dims=False, at_least=0), "depth": D}),
    Case(stability.rotation_exponent, lambda: dict(
        eta=t(2), sigma=1.0, other=0.5, depth=3, generator=draw(), steps=3, burn_in=1), {
        "eta": bad.tensor(dims=False, at_least=0), "sigma": EPS, "other": EPS, "depth": D,
        "generator": bad.generator(), "steps": RUNS, "burn_in": bad.count(0)}),
    # curvature
    Case(curvature.flatten, lambda: dict(tensors=[t(2), t(3)]), {
        "tensors": bad.tensors(finite=False, floating=False, dims=False)}),
    Case(curvature.unflatten, lambda: dict(vector=t(5), like=[t(2), t(3)]), {
        "vector": bad.tensor(finite=False, floating=False, ends=(0,)),
        "like": bad.tensors(finite=False, floating=False, dims=False)}),
    *[Case(f, lambda f=f: {"losses" if f is curvature.population_hessian_product else "loss":
            lambda x: x.square().sum(-1), "parameters": [t(2)]}, {
        "losses" if f is curvature.population_hessian_product else "loss": bad.function(),
        "parameters": bad.tensors(finite=False, dims=False)})
        for f in (curvature.hessian, curvature.hessian_vector_product, curvature.population_hessian_product)],
    Case(curvature.lanczos, lambda: dict(product=lambda v: v, start=t(5), steps=3), {
        "product": bad.function(), "start": bad.tensor(dims=False), "steps": bad.count(1, 5)}),
    Case(curvature.top_eigenvalues, lambda: dict(product=lambda v: v, start=t(5), k=1, steps=3), {
        "product": bad.function(), "start": bad.tensor(dims=False), "k": bad.count(1, 3), "steps": RUNS}),
    Case(curvature.floquet_multipliers, lambda: dict(jacobians=t(2, 3, 3)), {
        "jacobians": bad.tensor(dims=False, ends=(1, 2))}),
    Case(curvature.lyapunov_exponent, lambda: dict(tangent_step=lambda v: v, vector=t(3), steps=2), {
        "tangent_step": bad.function(), "vector": bad.tensor(dims=False), "steps": RUNS, "burn_in": bad.count(0)}),
    Case(curvature.gauss_newton_product, lambda: dict(outputs=lambda x: x, parameters=[t(2, 3)],
                                                      output_losses=lambda z: z.sum(1)), {
        "outputs": bad.function(), "parameters": bad.tensors(finite=False, dims=False),
        "output_losses": bad.function()}),
    Case(curvature.fisher_product, lambda: dict(
        log_probabilities=lambda x: x.log_softmax(-1), parameters=[t(2, 4, 3)], labels=torch.ones(2, 4).long()), {
        "log_probabilities": bad.function(), "parameters": bad.tensors(finite=False, dims=False),
        "labels": bad.only("outside the classes", torch.full((2, 4), 3), torch.full((2, 4), -1))
        + bad.only("wrong shape", torch.ones(2, 5).long(), torch.ones(2).long())
        + bad.only("no numbers", t(2, 4), "3")}),
    Case(curvature.dense, lambda: dict(product=lambda v: v, like=t(2, 3)), {
        "product": bad.function(), "like": bad.tensor(finite=False, dims=False), "chunk": RUNS}),
    Case(curvature.sample_jacobians, lambda: dict(
        predict=lambda w, x: x @ w, parameters=[t(2, 3, 4)], inputs=t(2, 5, 3)), {
        "predict": bad.function(), "parameters": bad.tensors(finite=False, dims=False),
        "inputs": bad.tensor(finite=False, dims=False),
        "chunk": bad.only("wrong type", "3", 2.5) + bad.only("too small", 0, -1)}),
    # spectra
    Case(spectra.quadrature, lambda: dict(product=lambda v: v, probes=t(2, 5), steps=3), {
        "product": bad.function(), "probes": bad.tensor(dims=False), "steps": bad.count(1, 5)}),
    Case(spectra.density, lambda: dict(nodes=t(2, 3), weights=t(2, 3), grid=t(4), width=0.1), {
        "nodes": bad.tensor(finite=False, dims=False), "weights": bad.tensor(finite=False, dims=False, ends=(1,)),
        "grid": bad.tensor(), "width": EPS}),
    Case(spectra.trace, lambda: dict(product=lambda v: v, like=t(2, 5), samples=6, generator=draw()), {
        "product": bad.function(), "like": bad.tensor(finite=False, dims=False), "samples": bad.count(3),
        "generator": bad.generator()}),
    Case(spectra.fisher_rows, lambda: dict(jacobians=t(2, 4, 3, 5), probabilities=t(2, 4, 3)), {
        "jacobians": bad.tensor(), "probabilities": bad.tensor(ends=(0, 1, 2), at_least=0)}),
    Case(spectra.gram_eigenvalues, lambda: dict(rows=t(2, 4, 3)), {"rows": bad.tensor(dims=False)}),
    Case(spectra.eigenvalues, lambda: dict(matrices=t(3, 3)), {"matrices": bad.tensor(dims=False, ends=(0,))}),
    Case(spectra.count_outliers, lambda: dict(eigenvalues=t(2, 6), among=3), {
        "eigenvalues": bad.tensor(dims=False), "among": bad.count(2, 6)}),
    Case(spectra.near_zero, lambda: dict(eigenvalues=t(2, 6)), {
        "eigenvalues": bad.tensor(dims=False), "relative": bad.real(above=0, below=1)}),
    # twolayer
    *[Case(f, lambda f=f: dict(inputs=t(2, 5, 3), parameters=two_layers()) | (
            dict(labels=torch.ones(2, 5).long()) if f is twolayer.hessian else {}), {
        "inputs": bad.tensor(ends=() if f is twolayer.hessian else (0,)), "activation": bad.choice(),
        "parameters": bad.only("wrong type", None, 3, "weights", [t(2, 4, 3)])
        + bad.only("one missing", {"bias.0": t(2, 4)})
        + bad.only("not finite", two_layers() | {"bias.0": t(2, 4) * float("nan")})
        + bad.only("wrong sizes", two_layers() | {"weight.1": t(2, 3, 5)}, two_layers() | {"bias.1": t(2, 2)})} | (
        {"labels": bad.only("outside the classes", torch.full((2, 5), 3), torch.full((2, 5), -1))
            + bad.only("wrong shape", torch.ones(2, 4).long())} if f is twolayer.hessian else {}))
        for f in (twolayer.hessian, twolayer.gauss_newton, twolayer.jacobians)],
    # diagonal
    Case(diagonal.sample_order, lambda: dict(n=5, steps=3, batch=2, generator=draw()), {
        "n": RUNS, "steps": RUNS, "batch": bad.count(1, 5), "generator": bad.generator()}),
    *[Case(model, lambda first=first, second=second: {
            first[0]: first[1], second[0]: second[1], "inputs": t(4, 3), "targets": t(4), "eta": 0.1}, {
        first[0]: bad.tensor(), second[0]: bad.tensor(ends=(1,)), "inputs": bad.tensor(ends=(1,)),
        "targets": bad.tensor(ends=(0,)), "eta": ETA + bad.only("wrong length", t(5)),
        "clip": bad.only("too small", 0, -1.0) + bad.only("not finite", bad.NAN, bad.INF)
            + bad.only("wrong type", "3", [1.0]),
        "batch": bad.only("too small", 0, -3) + bad.only("too large", 5, 9) + bad.only("wrong length", [1, 2, 3]),
        "order": bad.only("wrong type", 3, "order") + bad.only("too large", torch.tensor([[4]]), torch.tensor([[0, 9]]))
            + bad.only("too small", torch.tensor([[-1]])) + bad.only("flat", torch.tensor([0, 1]))})
        for model, first, second in ((diagonal.DiagonalNetwork, ("a", t(2, 3)), ("b", t(2, 3))),
                                     (diagonal.ReluNetwork, ("a", t(2, 5)), ("w", t(2, 5, 3))))],
    Case(diagonal.gram_measures, lambda: dict(gram=t(2, 3, 3)), {
        "gram": bad.tensor(finite=False, dims=False, ends=(1, 2))}),
    Case(diagonal.stability_ratio, lambda: dict(gram=t(2, 3, 3), eta=0.1, batch=2), {
        "gram": bad.tensor(finite=False, dims=False, ends=(1, 2)), "eta": ETA,
        "batch": bad.only("too small", 0, -2, [0, 1]) + bad.only("not whole", 1.5)}),
    # training
    Case(training.TanhPopulation, lambda: dict(
        inputs=t(2, 6, 3), targets=t(2, 6, 1), sizes=[3, 4, 1], eta=0.1, scale=1.0, generator=draw()), {
        "inputs": bad.tensor(), "targets": bad.tensor(ends=(0, 1)), "scale": bad.real(at_least=0),
        "sizes": bad.sizes(3) + bad.only("wrong ends", [4, 4, 1], [3, 4, 2]), "generator": bad.generator(),
        "eta": ETA + bad.only("wrong length", t(5))}),
    # sweeps
    Case(sweeps.plan, lambda: dict(make=lambda runs: network(len(runs)), runs=6, steps=2), {
        "make": bad.function(), "runs": RUNS, "steps": RUNS, "memory": bad.count(1)[:3], "pilot": RUNS,
        "quiet": bad.flag()}),
    Case(sweeps.sweep, lambda: dict(
        make=lambda runs: network(len(runs)), runs=6, steps=2, record=lambda net: {"loss": net.loss}, batch=2), {
        "make": bad.function(), "runs": RUNS, "steps": RUNS, "record": bad.function(), "batch": RUNS[:3]}),
    Case(sweeps.bounds, lambda: dict(runs=6, shard=0, shards=2), {
        "runs": RUNS, "shard": bad.count(0, 1), "shards": RUNS, "align": RUNS}),
    # data, results, claims, plots, runtime, quality
    Case(data.fetch, lambda: dict(name="a.npz", url="https://example.org/a.npz", checksum="0" * 64), {
        "name": bad.text() + bad.only("leads elsewhere", "../a", "/etc/passwd", "a/b", ""),
        "url": bad.text() + bad.only("not https", "http://example.org/a", "ftp://example.org/a", "file:///a", ""),
        "checksum": bad.text() + bad.only("not a checksum", "", "12", "g" * 64, "0" * 63), "timeout": EPS}),
    Case(data.shipped, lambda: dict(name="data/digits.csv.gz"), {"name": bad.text()}),
    Case(data.standardise, lambda: dict(inputs=np.ones((4, 2))), {
        "inputs": bad.only("wrong type", None, "3", 3j) + bad.only("empty", np.ones((0, 2)))
            + bad.only("not finite", np.array([[1, np.nan]]), np.array([[np.inf]]))}),
    Case(data.photograph, lambda: dict(side=4), {"side": bad.count(1, 427)}),
    Case(data.cifar10, lambda: dict(samples=4), {"samples": bad.count(1, 50_000)}),
    Case(data.cifar100, lambda: dict(part="test"), {"part": bad.choice()}),
    Case(data.characters, lambda: dict(share=0.5), {"share": bad.real(above=0, below=1)}),
    Case(data.synthetic_ratings, lambda: dict(rows=3, columns=4, rank=2, share=0.5, noise=0.1, generator=draw()), {
        "rows": RUNS, "columns": RUNS, "rank": RUNS, "share": bad.real(above=0, at_most=1),
        "noise": bad.real(at_least=0), "generator": bad.generator()}),
    Case(data.labelled_tensors, lambda: dict(path="x.npz"), {"path": bad.only("wrong type", None, 3, b"x", [], "")}),
    Case(data.subsets, lambda: dict(
        inputs=np.ones((9, 2)), labels=np.arange(9) % 2, samples=3, runs=2, generator=draw()), {
        "inputs": bad.only("wrong type", None, "3") + bad.only("empty", np.ones((0, 2))),
        "labels": bad.only("wrong length", np.arange(8)) + bad.only("wrong type", None, "3"),
        "samples": bad.count(1, 9), "runs": RUNS, "generator": bad.generator()}),
    Case(results.Results, lambda: dict(slug="x", parameters=dict(profile="quick", seed=0, device="cpu")), {
        "slug": bad.text() + bad.only("a path", "../x", "a/b", ""), "folder": bad.only("wrong type", 3, None, []),
        "parameters": bad.only("wrong type", None, 3, [], "quick") + bad.only("incomplete", {}, {"profile": "quick"})}),
    Case(results.csv_text, lambda: dict(arrays={"x": np.arange(3)}), {
        "arrays": bad.only("wrong type", None, 3, "x", []) + bad.only("empty", {})
            + bad.only("no array", {"x": object()})}),
    Case(claims.Claims, lambda: dict(slug="x"), {
        "slug": bad.text() + bad.only("a path", "../x", ""), "elsewhere": bad.text()}),
    Case(table().value, lambda: ROW | dict(expected=1.0, measured=[1.0]), ROWS | {
        "expected": MEASURED + bad.only("not finite", bad.NAN, [bad.INF]) + bad.only("wrong length", [1.0, 2.0]),
        "measured": MEASURED, "atol": bad.real(at_least=0), "rtol": bad.real(at_least=0), "judged": bad.choice()}),
    Case(table().bound, lambda: ROW | dict(below=1.0, measured=[0.5]), ROWS | {
        "measured": MEASURED, "below": bad.only("not finite", bad.NAN, bad.INF) + bad.only("wrong type", "3", [1.0]),
        "above": bad.only("not finite", bad.NAN) + bad.only("wrong type", "3", [1.0]), "judged": bad.choice()}),
    Case(table().order, lambda: ROW | dict(measured=[[1.0, 2.0]], names=["a", "b"]), ROWS | {
        "measured": MEASURED + bad.only("flat", [1.0, 2.0]), "judged": bad.choice(),
        "names": bad.only("wrong type", None, 3, "ab", [1, 2]) + bad.only("wrong length", ["a"], ["a", "b", "c"])}),
    Case(table().slope, lambda: ROW | dict(expected=1.0, measured=[1.0], atol=0.1), ROWS | {
        "expected": bad.real(), "measured": MEASURED, "atol": bad.real(at_least=0)}),
    Case(table().holds, lambda: ROW | dict(measured=[True]), ROWS | {
        "measured": bad.only("wrong type", None, "yes", ["yes"], [None], 0.5, 3) + bad.only("empty", [])
            + bad.only("not finite", [bad.NAN])}),
    Case(plots.mark, lambda: dict(ax=axes(), at=1.0), {
        "ax": bad.only("wrong type", None, 3, "ax"), "at": bad.real(), "label": bad.text(), "axis": bad.choice(),
        "where": bad.real()}),
    Case(plots.branches, lambda: dict(ax=axes(), x=np.arange(3), values=np.ones((4, 3)), colour="blue"), {
        "ax": bad.only("wrong type", None, 3, "ax"),
        "values": bad.only("wrong axes", np.ones(3)) + bad.only("wrong type", None, "x")
            + bad.only("wrong length", np.ones((4, 4)))
            + bad.only("empty", np.ones((0, 3))),
        "colour": bad.only("unknown name", "bluish", "", "#12") + bad.only("wrong type", None, 3, [])}),
    Case(plots.band, lambda: dict(ax=axes(), x=np.arange(3), values=np.ones((3, 4)), colour="blue"), {
        "ax": bad.only("wrong type", None, 3, "ax"),
        "values": bad.only("wrong axes", np.ones(3)) + bad.only("wrong length", np.ones((4, 4)))
            + bad.only("empty", np.ones((3, 0))),
        "colour": bad.only("unknown name", "bluish", "", "#12"), "label": bad.text()}),
    Case(plots.gallery, lambda: dict(ax=axes(), rows=[[(np.ones((2, 2)), {})] * 2], titles=["a"], notes=[["", "x"]]), {
        "ax": bad.only("wrong type", None, 3, "ax"), "wide": bad.real(at_least=1),
        "rows": bad.only("wrong type", None, 3, "ab", [3], [[np.ones((2, 2))]], [[(np.ones((2, 2)), 3)]])
            + bad.only("empty", [], [[]]) + bad.only("wrong axes", [[(np.ones(3), {})] * 2]),
        "titles": bad.only("wrong type", None, 3, [1]) + bad.only("too many", ["a", "b", "c"]),
        "names": bad.only("wrong type", None, 3, [1]) + bad.only("too many", ["a", "b"]),
        "notes": bad.only("wrong type", 3, "x", [["", 3]]) + bad.only("wrong length", [["x"]], [])}),
    Case(plots.png, lambda: dict(figure=axes().figure), {
        "figure": bad.only("wrong type", None, 3, "figure"), "dark": bad.flag(), "dpi": EPS}),
    Case(functools.wraps(runtime.pick_device)(lambda device: runtime.pick_device(device)), lambda: dict(device="cpu"), {
        "device": bad.choice() + bad.only("no such GPU", "cuda:99", "cuda:999")}),
    Case(runtime.parallel, lambda: dict(function=str, jobs=[1, 2]),
         {"function": bad.function(), "workers": RUNS, "cost": bad.function()}),
    Case(runtime.run_jobs, lambda: dict(jobs={"a": lambda own: 1}, random=torch.Generator(), workers=1),
         {"jobs": bad.only("wrong type", 3, [len], None, {"a": 3}), "random": bad.only("wrong type", 7, "cpu", 0.5),
          "workers": RUNS}),
    Case(runtime.spawn, lambda: dict(random=torch.Generator(), count=2), {"random": bad.generator(), "count": RUNS}),
    Case(runtime.generator, lambda: dict(seed=3), {"seed": bad.count(0, 2**63 - 1)}),
    *[Case(f, lambda: dict(device=torch.device("cpu")), {"device": bad.only("wrong type", None, "cpu", 0)})
        for f in (runtime.device_name, runtime.peak_memory_mb, runtime.provenance, runtime.free_memory)],
    Case(quality.psnr, lambda: dict(images=t(2, 1, 3, 3), truth=t(2, 1, 3, 3)), {
        "images": bad.tensor(dims=False), "truth": bad.tensor(dims=False, ends=(0, 2, 3)), "low": bad.real(),
        "high": bad.real() + bad.only("not above low", -1.0, -2.0)}),
    Case(quality.nearest_distance, lambda: dict(samples=t(3, 2), data=t(4, 2)), {
        "samples": bad.tensor(dims=False), "data": bad.tensor(dims=False, ends=(1,))}),
    Case(quality.sliced_wasserstein, lambda: dict(samples=t(2, 3, 2), reference=t(2, 6, 2)), {
        "samples": bad.tensor(ends=(2,)), "reference": bad.tensor(ends=(0, 2)), "directions": RUNS}),
]  # fmt: skip

KINDS = bad.kinds(CASES)
NEED_FILES = (data.fetch, data.cifar10, data.cifar100, data.labelled_tensors)
test_the_good_arguments_are_good, test_bad_input_is_answered = bad.table_tests(CASES, unless=NEED_FILES)


def test_there_are_hundreds_of_kinds():
    assert len(set(map(bad.name_of, KINDS))) == len(KINDS) >= 200
