"""Benchmarks of phase retrieval: seconds of whole runs, memory, and all frames at once against a loop over frames."""

import time

import torch
from timing import peak_memory_mb, race, reset_peak_memory

from lowdim.lowrank_phase import altmin_lowrap, altmin_trunc
from lowdim.measurements import Dense, gaussian, measure
from lowdim.phase_retrieval import tspr
from lowdim.runtime import generator
from lowdim.video import walker
from lowdim.wirtinger import rwf

SINGLE = torch.float32


def small_complex():
    """TSPR, 10 x 30 x 10, m = 0.75 n, complex, two iterations; at most half a second."""
    clip, random = torch.as_tensor(walker(10, 30, 10)), generator(0)
    op = gaussian((10, 30), 10, 225, random, is_complex=True, dtype=SINGLE)
    y = measure(op, clip)
    times = race({"ours": lambda: tspr(y, op, (5, 10, 3), 2, random)}, repeats=5)
    return times, {"seconds": times["ours"]["seconds"]}, {"seconds": -0.5}


def sweep():
    """16 x 28 x 45, sampling ratios 0.15, 0.25, 0.35, 0.5, three methods, 15 iterations; at most 15 s."""
    clip, random = torch.as_tensor(walker(16, 28, 45)), generator(0)
    ops = [gaussian((16, 28), 45, round(ratio * 448), random, dtype=SINGLE) for ratio in (0.15, 0.25, 0.35, 0.5)]
    problems = [(op, measure(op, clip)) for op in ops]

    def all_methods():
        for op, y in problems:
            tspr(y, op, (8, 14, 5), 15, random)
            altmin_lowrap(y, op, 5, 15, random)
            altmin_trunc(y, op, 5, 15, random)

    times = race({"ours": all_methods}, repeats=5)
    return times, {"seconds": times["ours"]["seconds"]}, {"seconds": -15.0}


def large():
    """TSPR, 40 x 72 x 90, m = 0.12 n, 10 iterations, two threads; at most 10 s and twice the measurements' memory."""
    reset_peak_memory()
    before, random = peak_memory_mb(), generator(0)
    torch.set_num_threads(2)
    try:
        clip = torch.as_tensor(walker(40, 72, 90))
        op = gaussian((40, 72), 90, 345, random, dtype=SINGLE)
        y = measure(op, clip)
        samples = []
        for _ in range(5):
            started = time.perf_counter()
            tspr(y, op, (12, 20, 5), 10, random)
            samples.append(time.perf_counter() - started)
    finally:
        torch.set_num_threads(1)
    samples.sort()
    times = {"ours": {"seconds": samples[2], "spread": (samples[-1] - samples[0]) / 2, "repeats": 5, "calls": 1}}
    measurements = op.rows.numel() * op.rows.element_size() / 2**20
    ratios = {"seconds": samples[2], "added memory / measurements": (peak_memory_mb() - before) / measurements}
    return times, ratios, {"seconds": -10.0, "added memory / measurements": -2.0}


def frames():
    """All frames at once against a loop over frames: RWF of 90 frames (m = 100, k = 5, 50 steps), and TSPR's maps."""
    random = generator(0)
    draw = lambda *shape: torch.randn(*shape, generator=random, dtype=SINGLE)
    rows, m = draw(1, 90, 100, 5), torch.full((1, 1, 1), 100.0)
    root = (rows @ draw(1, 90, 5, 1)).squeeze(-1).abs()
    op, x = gaussian((10, 12), 90, 60, random, dtype=SINGLE), draw(1, 90, 10, 12)
    single = [Dense(op.rows[:, k : k + 1], op.shape) for k in range(90)]
    times = race(
        {
            "rwf, all frames": lambda: rwf(root, rows, m),
            "rwf, frame by frame": lambda: [rwf(root[:, k : k + 1], rows[:, k : k + 1], m) for k in range(90)],
            "map, all frames": lambda: op.adjoint(op.forward(x)),
            "map, frame by frame": lambda: [f.adjoint(f.forward(x[:, k : k + 1])) for k, f in enumerate(single)],
        },
        repeats=5,
    )
    ratio = lambda what: times[f"{what}, frame by frame"]["seconds"] / times[f"{what}, all frames"]["seconds"]
    return times, {"rwf": ratio("rwf"), "map": ratio("map")}, {"rwf": 5.0, "map": 5.0}
