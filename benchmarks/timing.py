"""Timing side by side: repeats of several contestants interleaved, so that a busy machine slows all of them alike."""

import gc
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

REPEATS = 7


def race(
    contestants: dict[str, Callable[[], object]],
    repeats: int = REPEATS,
    least_s: float = 0.02,
    wait: Callable[[], object] = lambda: None,
) -> dict[str, dict]:
    """Time functions in turn after a warm-up; calls are grouped so that one sample takes at least ``least_s``.

    ``wait`` is called before each look at the clock: on a GPU, ``torch.cuda.synchronize``.

    Returns:
        name -> median seconds a call, half the range over the repeats, and the calls in a sample.
    """
    calls = {}
    for name, function in contestants.items():
        function()  # warm-up: compilation, caches, allocation
        wait()
        start = time.perf_counter()
        function()
        wait()
        calls[name] = max(1, round(least_s / (time.perf_counter() - start + 1e-9)))
    samples = {name: [] for name in contestants}
    gc.collect()
    for _ in range(repeats):
        for name, function in contestants.items():
            start = time.perf_counter()
            for _ in range(calls[name]):
                function()
            wait()
            samples[name].append((time.perf_counter() - start) / calls[name])
    return {
        name: {
            "seconds": statistics.median(s),
            "spread": (max(s) - min(s)) / 2,
            "repeats": repeats,
            "calls": calls[name],
        }
        for name, s in samples.items()
    }


def peak_memory_mb() -> int:
    """Peak memory of the process up to now, in MB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024**2 if sys.platform == "darwin" else 1024))


def reset_peak_memory() -> None:
    """Start counting the peak anew where the system allows it (Linux)."""
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")


def machine() -> dict[str, object]:
    """The machine in words, with its measured peak: square products and memory reads, float64, one thread."""
    words = {"processor": platform.processor() or platform.machine(), "system": platform.system()}
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        words["processor"] = next((line.split(": ")[1] for line in lines if line.startswith("model name")), "unknown")
        words["cores"] = sum(line.startswith("processor") for line in lines)
    words |= {"python": platform.python_version(), "torch": torch.__version__, "threads": torch.get_num_threads()}
    words["blas"] = "MKL" if torch.backends.mkl.is_available() else "other"
    words["instructions"] = torch.backends.cpu.get_cpu_capability()
    return words


def gemm_call(n: int, batch: int = 1) -> Callable[[], object]:
    """A product of ``n x n`` float64 matrices into a given output, ``2 batch n^3`` operations."""
    a, b = torch.randn(2, batch, n, n, dtype=torch.float64)
    out = torch.empty_like(a)
    return lambda: torch.bmm(a, b, out=out)
