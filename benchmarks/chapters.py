"""How long each chapter takes in the quick profile, from the command to its results, and what of it is the chapter.

    python benchmarks/chapters.py [SLUG ...]      on a quiet machine; one chapter after another, one thread

The rate of small matrix products, measured before and after each chapter, says how fast the machine was just then.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
from chapters import ROOT, all_chapters

BUDGET_S = {"matrix-sensing-curses": 25, "robust-matrix-recovery": 25, "blast": 60, "resample": 60}  # else 30


def gemm_rate(repeats: int = 5, calls: int = 1000) -> float:
    """Best of a few bursts, products of 100 x 100 matrices in float64, in GFLOP/s."""
    a, best = torch.randn(5, 100, 100, dtype=torch.float64), 0.0
    for _ in range(repeats):
        started = time.perf_counter()
        for _ in range(calls):
            a @ a
        best = max(best, calls * 5 * 2e6 / (time.perf_counter() - started) / 1e9)
    return best


def main(slugs: list[str]) -> None:
    torch.set_num_threads(1)
    for chapter in all_chapters():
        if slugs and chapter.slug not in slugs:
            continue
        with tempfile.TemporaryDirectory() as folder:
            before, started = gemm_rate(), time.perf_counter()
            command = [sys.executable, ROOT / "tools/run_chapter.py", chapter.slug, "--out", folder]
            subprocess.run(command, check=True, capture_output=True)
            wall = time.perf_counter() - started
            inside = json.loads((Path(folder) / "results.json").read_text())["runtime_s"]
        budget = BUDGET_S.get(chapter.slug, 30)
        rate = f"{min(before, gemm_rate()):.0f} GFLOP/s"
        verdict = "met" if wall <= budget else "NOT MET"
        print(
            f"{chapter.slug:28} {wall:6.1f} s, {inside:6.1f} s in the chapter, {rate}   <= {budget} s {verdict}",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
