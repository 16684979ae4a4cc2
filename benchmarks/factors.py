"""Benchmark of batches: one factor, two factors and the sub-gradient method, 64 runs against one."""

import math

import torch
from timing import race

from lowdim.factorization import haar
from lowdim.networks import Factorization
from lowdim.recovery import Sensing
from lowdim.robust import AbsoluteSensing, SubgradientNetwork, outliers
from lowdim.runtime import generator
from lowdim.sensing import SymmetricNetwork, asymmetric, gaussian_factors, signal_rows

RUNS = 64


def batches(n: int = 50, r: int = 2, k: int = 4, m: int = 700, steps: int = 20):
    """64 runs against one: full observation (reduced and not), sensing (m = 700), sub-gradients (d = 20, m = 1,000)."""
    random = generator(0)
    v = haar((1, n), random)[0, :, :r]
    target, reduced = v @ v.mT, torch.diag((torch.arange(r + k) < r).double())
    operators = torch.randn(m, n, n, generator=random, dtype=torch.float64) / math.sqrt(m)
    d, robust_m = 20, 1000
    w = haar((1, d), random)[0, :, :3]
    svecs = torch.randn(robust_m, d * (d + 1) // 2, generator=random, dtype=torch.float32)
    contestants = {}
    for runs in (1, RUNS):
        x = gaussian_factors(runs, n, k, 0.3, random)
        u = gaussian_factors(runs, d, d, 0.1, random)
        robust = AbsoluteSensing(svecs, w @ w.mT, outliers((runs, robust_m), 0.1, 10.0, random))
        problem = Sensing(operators, torch.tensordot(operators, target).expand(runs, -1).contiguous())
        trainers = {
            "symmetric": SymmetricNetwork(x.clone(), Factorization(target), 0.1),
            "symmetric, few rows": SymmetricNetwork(signal_rows(v, x), Factorization(reduced), 0.1),
            "asymmetric, sensing": asymmetric(x.clone(), x / 3, problem, 0.1),
            "sub-gradients": SubgradientNetwork(u, robust, 0.5, 0.999),
        }
        for name, trainer in trainers.items():
            contestants[f"{name}, {runs}"] = lambda step=trainer.step: [step() for _ in range(steps)]
    times = race(contestants)
    names = [name.removesuffix(", 1") for name in contestants if name.endswith(", 1")]
    ratios = {
        f"{name}: 64 runs / 1 run": times[f"{name}, {RUNS}"]["seconds"] / times[f"{name}, 1"]["seconds"]
        for name in names
    }
    return times, ratios, dict.fromkeys(ratios, -16.0)
