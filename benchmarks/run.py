"""Run the benchmarks: ``python benchmarks/run.py [name ...]`` prints a table and writes ``results/latest.json``.

Everything runs in one process, repeats interleaved, one thread. A target is a lower bound of a ratio; targets of the
form "at most" are written as negative numbers.
"""

import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import collapse
import curvatures
import descent
import diagonal
import factors
import generalization
import phases
import populations
import predictors
import sampling
import spectra
import structured
import subspaces
import timing
import torch

from lowdim import runtime

HERE = Path(__file__).parent
BENCHMARKS = {
    "dense": descent.dense,
    "compressed-factorization": lambda: descent.compressed_sweep("factorization"),
    "compressed-completion": lambda: descent.compressed_sweep("completion"),
    "tiny-batch": descent.tiny_batch,
    "scalars": descent.scalars,
    "sensing": descent.sensing,
    "batches": factors.batches,
    "diagonal": diagonal.lockstep,
    "flow": generalization.flow,
    "hessian": spectra.hessian,
    "phases-small": phases.small_complex,
    "phases-sweep": phases.sweep,
    "phases-large": phases.large,
    "phases-frames": phases.frames,
    "digits": sampling.digits,
    "populations": populations.mlps,
    "subspaces": subspaces.projections,
    "exact-hessian": curvatures.exact_hessian,
    "densities": curvatures.densities,
    "population-products": curvatures.population_products,
    "collapse-minimisers": collapse.minimisers,
    "collapse-influence": collapse.influence,
    "collapse-decays": collapse.decays,
    "layouts": descent.layouts,
    "cp-predictors": predictors.cp_fits,
    "blast-factorization": structured.factorization,
    "blast-batches": structured.batches,
    "blast-product": structured.product,
    "blast-product-two-threads": lambda: structured.product(2),
    "growth": descent.growth,
}
WORDS = {"compressed-factorization": descent.compressed_sweep, "compressed-completion": descent.compressed_sweep,
         "blast-product-two-threads": structured.product}  # fmt: skip


def main(names: list[str]) -> None:
    unknown = set(names) - set(BENCHMARKS)
    if unknown:
        raise SystemExit(f"unknown benchmark {sorted(unknown)}; there are: {', '.join(BENCHMARKS)}")
    torch.set_num_threads(1)
    report = {"machine": timing.machine(), "commit": runtime.commit(), "benchmarks": {}}
    report["date"] = datetime.now(UTC).isoformat(timespec="seconds")
    for name in names or BENCHMARKS:
        timing.reset_peak_memory()
        times, ratios, targets = BENCHMARKS[name]()
        met = {k: ratios[k] >= t if t > 0 else ratios[k] <= -t for k, t in targets.items() if k in ratios}
        words = (WORDS.get(name) or BENCHMARKS[name]).__doc__
        report["benchmarks"][name] = {"what": words, "times": times, "ratios": ratios, "targets": targets, "met": met,
                                      "peak_memory_mb": timing.peak_memory_mb()}  # fmt: skip
        show(name, report["benchmarks"][name])
    if not names:  # a partial run does not replace the whole table
        folder = HERE / "results"
        folder.mkdir(exist_ok=True)
        (folder / "latest.json").write_text(json.dumps(report, indent=1) + "\n")
        plot(report, folder / "growth.png")


def show(name: str, result: dict) -> None:
    """Print one benchmark."""
    print(f"\n{name}: {result['what']}  peak {result['peak_memory_mb']} MB")
    for who, t in result["times"].items():
        print(f"    {who:36} {1e6 * t['seconds']:12.1f} us  ± {1e6 * t['spread']:.1f}  ({t['repeats']} x {t['calls']})")
    for what, ratio in result["ratios"].items():
        target = result["targets"].get(what)
        goal = "" if target is None else f"  target {'>=' if target > 0 else '<='} {abs(target):g}"
        verdict = "" if target is None else ("  met" if result["met"][what] else "  NOT MET")
        print(f"    {what:50} {ratio:10.4g}{goal}{verdict}")


def plot(report: dict, path: Path) -> None:
    """Seconds a step against batch, depth and d, with the fitted exponents."""
    import matplotlib

    matplotlib.use("Agg")
    from lowdim import plots

    plots.style()
    result = report["benchmarks"]["growth"]
    figure, axes = plots.plt.subplots(1, 3, figsize=(9, 3))
    for ax, name in zip(axes, ("batch", "depth", "d"), strict=True):
        rows = {k.split(" = ")[1]: t["seconds"] for k, t in result["times"].items() if k.startswith(f"{name} = ")}
        ax.loglog([int(x) for x in rows], [1e6 * s for s in rows.values()], "o-")
        ax.set(xlabel=name, title=f"exponent {result['ratios'][f'exponent in {name}']:.2f} (upper half)")
    axes[0].set_ylabel("microseconds a step")
    path.write_bytes(plots.png(figure))


if __name__ == "__main__":
    main(sys.argv[1:])
