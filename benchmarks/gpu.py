"""The trainers on a GPU, float64: ``python benchmarks/gpu.py [name ...]`` writes ``results/gpu.json`` and prints a table.

"Graph" is a step as ``lowdim.descent`` takes it on a GPU, captured once and replayed; "launches" is the same step,
each of its operations launched from Python. Limits are measured in the same run: products of n = 100 in a batch, and
copies in the card's memory. ``--try`` runs tiny sizes on any device and writes nothing: a test of this file.
"""

import json
import sys
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import torch
from timing import machine, race

from lowdim import runtime
from lowdim.curvature import hessian_vector_product, top_eigenvalues
from lowdim.descent import _captured, train
from lowdim.factorization import Factorization, ModeNetwork, mode_layers
from lowdim.networks import MatrixNetwork, network
from lowdim.recovery import Completion, Sensing, ThinFactorization, compressed, low_rank_target, outer_scale

TRY = "--try" in sys.argv
GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
WAIT = torch.cuda.synchronize if GPU else lambda: None
F64 = {"dtype": torch.float64, "device": DEVICE}


def size(full, tiny):
    """The size of a benchmark, or the tiny one that only tests this file."""
    return tiny if TRY else full


def draw(*shape, scale=1.0):
    """Normal entries on the device, the same for the same shape."""
    return torch.randn(*shape, generator=runtime.generator(0, DEVICE), **F64).mul_(scale)


def captured(step, state):
    """The step as a graph; where there is no GPU, the step."""
    return _captured(step, state) if GPU else step


def both(net):
    """Graph and launches of one trainer."""
    return {"graph": captured(net.step, net.state), "launches": net.step}


def timed(contestants, repeats=7):
    return race(contestants, repeats, size(0.05, 1e-4), WAIT)


def products(batch, n=100):
    """A batch of ``n x n`` products, captured."""
    a, b = draw(2, batch, n, n)
    out = torch.empty_like(a)
    return captured(lambda: torch.bmm(a, b, out=out), [out])


def limits():
    """What the card can do, measured: large and batched products in TFLOP/s, a copy in GB/s (read and written)."""
    n, batch, numbers = size((8192, 4096, 1 << 29), (64, 8, 1 << 16))
    a, b = draw(2, n, n)
    source, out = torch.empty(2, numbers, **F64), torch.empty_like(a)
    source.normal_()
    run = {
        "gemm": lambda: torch.mm(a, b, out=out),
        "batched gemm": products(batch),
        "copy": lambda: source[0].copy_(source[1]),
    }
    times = timed(run)
    seconds = {name: t["seconds"] for name, t in times.items()}
    return times, {
        f"TFLOP/s at n = {n}": 2e-12 * n**3 / seconds["gemm"],
        f"TFLOP/s, {batch} products of n = 100": 2e-12 * batch * 100**3 / seconds["batched gemm"],
        "GB/s of a copy": 16e-9 * numbers / seconds["copy"],
    }


def batches():
    """Dense network, d = 100, L = 3: steps of all runs of a batch, against its six products alone."""
    times, shares = {}, {}
    target = low_rank_target(100, 10, 1, runtime.generator(0))["target"][0].to(DEVICE)
    for runs in size((1, 8, 64, 512, 4096, 32768), (1, 8)):
        net = MatrixNetwork([draw(runs, 100, 100, scale=0.01) for _ in range(3)], Factorization(target, mean=True), 1.0)
        here = timed(both(net) | {"one product": products(runs)}, 5)
        times |= {f"{runs} runs, {name}": t for name, t in here.items()}
        graph, launches, product = (here[name]["seconds"] for name in ("graph", "launches", "one product"))
        shares |= {
            f"{runs} runs: run-steps a second": runs / graph,
            f"{runs} runs: launches / graph": launches / graph,
            f"{runs} runs: share of the rate of its products": 6 * product / graph,
            f"{runs} runs: TFLOP/s": 12e-6 * runs / graph,
        }
        if runs == 1:  # the whole loop: capture, steps, and its looks for runs that diverge
            steps = size(2000, 20)
            whole = {
                "loop": lambda net=net: train(net, steps),
                "capture": lambda net=net: captured(net.step, net.state),
            }
            loop = timed(whole, 5)
            times |= {"1 run, 2,000 steps of descend": loop["loop"], "1 run, one capture": loop["capture"]}
            shares["1 run: descend, without its capture / graph"] = (
                (loop["loop"]["seconds"] - loop["capture"]["seconds"]) / steps / graph
            )
        del net
    return times, shares


def _scaled(time, factor):
    return time | {"seconds": time["seconds"] * factor, "spread": time["spread"] * factor}


def compressed_sweep():
    """38 outer step sizes of a compressed network, d = 100, r = 5, inner width 10, L = 3."""
    made = low_rank_target(100, 5, 1, runtime.generator(0))
    target, alphas = made["target"][0].to(DEVICE), torch.arange(0.5, 9.76, 0.25, **F64)
    mask = (torch.rand(100, 100, generator=runtime.generator(1)) < 0.2).to(**F64)
    thin = ThinFactorization((made["u"][0] * made["sigma"]).to(DEVICE), made["v"][0].to(DEVICE))
    nets = {f"{name}, 38 runs": compressed(problem, 10, 3, 1e-2, 10.0, alphas)
            for name, problem in (("factorization", thin), ("completion", Completion(mask, target)))}  # fmt: skip
    start = nets["completion, 38 runs"].layers
    one = [w[:1].clone() for w in start]
    nets["completion, 1 run"] = MatrixNetwork(one, Completion(mask, target), 10.0, outer_scale(3, 1.0))
    times = timed({f"{name}, {how}": step for name, net in nets.items() for how, step in both(net).items()})
    shares = {
        f"{name}: launches / graph": times[f"{name}, launches"]["seconds"] / times[f"{name}, graph"]["seconds"]
        for name in nets
    }
    names = ("completion, 1 run, graph", "completion, 38 runs, graph")
    shares["38 runs one after another / the batch"] = 38 * times[names[0]]["seconds"] / times[names[1]]["seconds"]
    return times, shares


def tiny_batch():
    """2,000 and 200,000 networks of three 5 x 5 layers, against ``w - eta * grad`` with ``@``, launched and in a graph."""
    times, shares = {}, {}
    for runs in size((2000, 200_000), (500,)):
        layers, target = [draw(runs, 5, 5, scale=0.2) for _ in range(3)], draw(5, 5)
        rates = torch.linspace(1e-3, 1e-2, runs, **F64)
        net, blocks = (
            make([w.clone() for w in layers], Factorization(target), rates) for make in (network, MatrixNetwork)
        )
        state, eta = [w.clone() for w in layers], rates.view(-1, 1, 1)

        def plain(state=state, eta=eta, target=target):
            w1, w2, w3 = state
            residual = w3 @ w2 @ w1 - target
            grads = (w3 @ w2).mT @ residual, w3.mT @ residual @ w1.mT, residual @ (w2 @ w1).mT
            for w, grad in zip(state, grads, strict=True):
                w.copy_(w - eta * grad)

        here = timed({"graph": captured(net.step, net.state), "launches": net.step, "runs first, graph": captured(blocks.step, blocks.state),
                      "@": plain, "@ in a graph": captured(plain, state)})  # fmt: skip
        times |= {f"{runs}, {name}": t for name, t in here.items()}
        graph = here["graph"]["seconds"]
        shares |= {f"{runs}: x {name}": t["seconds"] / graph for name, t in here.items() if name != "graph"}
        shares[f"{runs}: GB/s, weights read and written once"] = 2 * 75 * 8e-9 * runs / graph
    return times, shares


def scalars():
    """Scalar reduction, 3 modes x 5,000 steps, 2,000 and 2,000,000 rates, against one Python run times the rates."""
    times, shares = {}, {}
    steps, sigma = size(5000, 50), [10.0, 6.0, 3.0]

    def python_run():
        for goal in sigma:
            a, b, c = 0.1, 0.1, 0.0
            for _ in range(steps):
                e = 0.025 * (a * b * c - goal)
                a, b, c = a - e * b * c, b - e * a * c, c - e * a * b

    for runs in size((2000, 2_000_000), (200,)):
        rates = torch.linspace(0.02, 0.03, runs, **F64)
        net = ModeNetwork(mode_layers(3, runs, 3, 0.1).to(DEVICE), torch.tensor(sigma, **F64), rates)
        here = {how: _scaled(t, steps) for how, t in timed(both(net)).items()}
        here["one Python run, unrolled by hand"] = race({"": python_run}, 5)[""]
        times |= {f"{runs}, {how}, all steps": t for how, t in here.items()}
        graph = here["graph"]["seconds"]
        shares |= {f"{runs}: launches / graph": here["launches"]["seconds"] / graph,
                   f"{runs}: x Python, unrolled by hand": runs * here["one Python run, unrolled by hand"]["seconds"] / graph,
                   f"{runs}: GB/s, weights read and written once": 2 * 9 * 8e-9 * runs * steps / graph}  # fmt: skip
    return times, shares


def sensing():
    """Sensing at the paper's size, d = 200, m = 4,000: a step reads 1.28 GB of operators twice."""
    d, m = size((200, 4000), (20, 100))
    operators = draw(m, d, d).div_(m)
    target = low_rank_target(d, 5, 1, runtime.generator(0))["target"][0].to(DEVICE)
    y, flat, vector = operators.flatten(1) @ target.flatten(), operators.flatten(1), draw(d * d)
    out = torch.empty(m, **F64)
    contestants = {
        "reading once: sum": flat.sum,
        "reading once: times a vector": lambda: torch.mv(flat, vector, out=out),
    }
    for runs in (1, 3, 8, 64):
        net = MatrixNetwork([draw(runs, d, d, scale=0.01) for _ in range(3)], Sensing(operators, y), 20.0)
        contestants |= {f"{runs} runs, {how}": step for how, step in both(net).items()}
    times = timed(contestants)
    read = min(t["seconds"] for name, t in times.items() if name.startswith("reading"))
    shares = {"GB/s of one reading": 8e-9 * m * d * d / read}
    for runs in (1, 3, 8, 64):
        graph = times[f"{runs} runs, graph"]["seconds"]
        shares[f"{runs} runs: share of two readings"] = 2 * read / graph
        shares[f"{runs} runs: TFLOP/s"] = 4e-12 * runs * m * d * d / graph
        shares[f"{runs} runs: launches / graph"] = times[f"{runs} runs, launches"]["seconds"] / graph
    return times, shares


def hessian():
    """Top 5 Hessian eigenvalues of a 3-layer tanh network (25,856 weights), 100 Lanczos steps, against its products alone."""
    sizes, samples, steps = size(((64, 128, 128, 10), 1000, 100), ((4, 5, 3), 20, 10))
    random = runtime.generator(0)
    plain = lambda *shape: torch.randn(*shape, generator=random, dtype=torch.float64)
    host = [plain(samples, sizes[0]), plain(samples, sizes[-1]), *(plain(o, i) / i**0.5 for i, o in pairwise(sizes))]
    start = plain(sum(w.numel() for w in host[2:]))

    def product_on(device):
        inputs, targets, *weights = (t.to(device) for t in host)

        def loss(*ws):
            hidden = inputs
            for w in ws[:-1]:
                hidden = torch.tanh(hidden @ w.mT)
            return 0.5 * (hidden @ ws[-1].mT - targets).square().sum(1).mean()

        return hessian_vector_product(loss, weights)

    product, there = product_on(DEVICE), start.to(DEVICE)
    ours, reference = (
        top_eigenvalues(product, there, 5, steps).cpu(),
        top_eigenvalues(product_on("cpu"), start, 5, steps),
    )
    unit = there / there.norm()
    contestants = {
        "ours": lambda: top_eigenvalues(product, there, 5, steps),
        "products alone": lambda: [product(unit) for _ in range(steps)],
    }
    times = timed(contestants, 5)
    shares = {"ours / products alone": times["ours"]["seconds"] / times["products alone"]["seconds"],
              "largest relative difference from the CPU": float((ours / reference - 1).abs().max())}  # fmt: skip
    return times, shares


BENCHMARKS = {"limits": limits, "batches": batches, "compressed-sweep": compressed_sweep, "tiny-batch": tiny_batch,
              "scalars": scalars, "sensing": sensing, "hessian": hessian}  # fmt: skip


def main(names: list[str]) -> None:
    if not GPU and not TRY:
        raise SystemExit(
            "PyTorch sees no GPU here: benchmarks/gpu.py needs one (run.py has the benchmarks for the CPU)."
        )
    if unknown := set(names) - set(BENCHMARKS):
        raise SystemExit(f"unknown benchmark {sorted(unknown)}; there are: {', '.join(BENCHMARKS)}")
    report = {
        "machine": machine() | {"device": runtime.device_name(DEVICE)},
        "commit": runtime.commit(),
        "benchmarks": {},
    }
    if GPU:
        report["machine"] |= {
            "memory_gb": round(torch.cuda.get_device_properties(0).total_memory / 1e9),
            "cuda": torch.version.cuda,
        }
    report["date"] = datetime.now(UTC).isoformat(timespec="seconds")
    for name in names or BENCHMARKS:
        if GPU:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        times, ratios = BENCHMARKS[name]()
        peak = round((torch.cuda.max_memory_allocated() if GPU else 0) / 1024**2)
        report["benchmarks"][name] = {
            "what": BENCHMARKS[name].__doc__,
            "times": times,
            "ratios": ratios,
            "peak_memory_mb": peak,
        }
        print(f"\n{name}: {BENCHMARKS[name].__doc__}  peak {peak} MB on the card")
        for who, t in times.items():
            print(
                f"    {who:50} {1e6 * t['seconds']:14.1f} us  ± {1e6 * t['spread']:.1f}  ({t['repeats']} x {t['calls']})"
            )
        for what, ratio in ratios.items():
            print(f"    {what:50} {ratio:14.4g}", flush=True)
        if not names and not TRY:
            (Path(__file__).parent / "results" / "gpu.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main([name for name in sys.argv[1:] if name != "--try"])
