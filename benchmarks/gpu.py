"""The trainers on a GPU, float64: ``python benchmarks/gpu.py [name ...]`` prints a table, writes ``results/gpu.json``.

"Graph" is a step as ``lowdim.descent`` takes it on a GPU, captured once and replayed; "launches" is the same step, each
of its operations launched from Python. Limits are measured in the same run. ``--try``: tiny sizes, any device, no file.
"""

import json
import sys
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from structured import autograd_step
from timing import machine, race

from lowdim import runtime
from lowdim.curvature import hessian_vector_product, top_eigenvalues
from lowdim.descent import _captured, train
from lowdim.factorization import Factorization, ModeNetwork, mode_layers
from lowdim.networks import MatrixNetwork, network
from lowdim.recovery import Completion, Sensing, ThinFactorization, compressed, low_rank_target, outer_scale
from lowdim.structured import BlastLinear
from lowdim.structured_factorization import BlastDescent, blast_start

TRY, GPU = "--try" in sys.argv, torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
F64 = {"dtype": torch.float64, "device": DEVICE}
ONE_RUN = "one Python run, unrolled by hand"


def size(full, tiny):
    return tiny if TRY else full


def draw(*shape, scale=1.0):
    """Normal entries on the device, the same for the same shape."""
    return torch.randn(*shape, generator=runtime.generator(0, DEVICE), **F64).mul_(scale)


def captured(step, state):
    """The step as a graph; where there is no GPU, the step."""
    return _captured(step, state) if GPU else step


def both(net, name=""):
    return {f"{name}graph": captured(net.step, net.state), f"{name}launches": net.step}


def timed(contestants, repeats=7):
    return race(contestants, repeats, size(0.05, 1e-4), torch.cuda.synchronize if GPU else lambda: None)


def scaled(time, factor):
    return time | {"seconds": time["seconds"] * factor, "spread": time["spread"] * factor}


def over(times, this, that):
    return times[this]["seconds"] / times[that]["seconds"]


def products(batch, n=100):
    """A batch of ``n x n`` products, captured."""
    (a, b), out = draw(2, batch, n, n), torch.empty(batch, n, n, **F64)
    return captured(lambda: torch.bmm(a, b, out=out), [out])


def limits():
    """What the card can do: large and batched products in TFLOP/s, a copy in GB/s (read and written)."""
    n, batch, numbers = size((8192, 4096, 1 << 29), (64, 8, 1 << 16))
    (a, b), (source, copy), out = draw(2, n, n), draw(2, numbers), torch.empty(n, n, **F64)
    large = lambda: torch.mm(a, b, out=out)
    times = timed({"gemm": large, "batched gemm": products(batch), "copy": lambda: copy.copy_(source)})
    shares = {f"TFLOP/s at n = {n}": 2e-12 * n**3 / times["gemm"]["seconds"]}
    shares[f"TFLOP/s, {batch} products of n = 100"] = 2e-6 * batch / times["batched gemm"]["seconds"]
    return times, shares | {"GB/s of a copy": 16e-9 * numbers / times["copy"]["seconds"]}


def batches():
    """Dense network, d = 100, L = 3: steps of all runs of a batch, against its six products alone."""
    times, shares, steps = {}, {}, size(2000, 20)
    target = low_rank_target(100, 10, 1, runtime.generator(0))["target"][0].to(DEVICE)
    for runs in size((1, 8, 64, 512, 4096, 32768), (1, 8)):
        net = MatrixNetwork([draw(runs, 100, 100, scale=0.01) for _ in range(3)], Factorization(target, mean=True), 1.0)
        here = timed(both(net) | {"one product": products(runs)}, 5)
        graph = here["graph"]["seconds"]
        if runs == 1:  # the whole loop: capture, steps, and its looks for runs that diverge
            loop, capture = (lambda net=net: train(net, steps)), (lambda net=net: captured(net.step, net.state))
            here |= timed({"2,000 steps of descend": loop, "one capture": capture}, 5)
            rest = here["2,000 steps of descend"]["seconds"] - here["one capture"]["seconds"]
            shares["1 run: descend, without its capture / graph"] = rest / steps / graph
        shares[f"{runs} runs: run-steps a second"] = runs / graph
        shares[f"{runs} runs: launches / graph"] = over(here, "launches", "graph")
        shares[f"{runs} runs: share of the rate of its products"] = 6 * over(here, "one product", "graph")
        shares[f"{runs} runs: TFLOP/s"] = 12e-6 * runs / graph
        times |= {f"{runs} runs, {name}": t for name, t in here.items()}
        del net
    return times, shares


def compressed_sweep():
    """38 outer step sizes of a compressed network, d = 100, r = 5, inner width 10, L = 3."""
    made, alphas = low_rank_target(100, 5, 1, runtime.generator(0)), torch.arange(0.5, 9.76, 0.25, **F64)
    mask = (torch.rand(100, 100, generator=runtime.generator(1)) < 0.2).to(**F64)
    thin = ThinFactorization((made["u"][0] * made["sigma"]).to(DEVICE), made["v"][0].to(DEVICE))
    seen = Completion(mask, made["target"][0].to(DEVICE))
    nets = {"factorization, 38 runs": compressed(thin, 10, 3, 1e-2, 10.0, alphas)}
    nets["completion, 38 runs"] = batch = compressed(seen, 10, 3, 1e-2, 10.0, alphas)
    nets["completion, 1 run"] = MatrixNetwork([w[:1].clone() for w in batch.layers], seen, 10.0, outer_scale(3, 1.0))
    times = timed({name: step for key, net in nets.items() for name, step in both(net, f"{key}, ").items()})
    shares = {f"{name}: launches / graph": over(times, f"{name}, launches", f"{name}, graph") for name in nets}
    one_by_one = 38 * over(times, "completion, 1 run, graph", "completion, 38 runs, graph")
    return times, shares | {"38 runs one after another / the batch": one_by_one}


def tiny_batch():
    """2,000 and 200,000 networks of three 5 x 5 layers, against ``w - eta * grad`` with ``@``."""
    times, shares = {}, {}
    for runs in size((2000, 200_000), (500,)):
        layers, target, rates = [draw(runs, 5, 5, scale=0.2)] * 3, draw(5, 5), torch.linspace(1e-3, 1e-2, runs, **F64)
        net, rows = (
            make([w.clone() for w in layers], Factorization(target), rates) for make in (network, MatrixNetwork)
        )
        state, eta = [w.clone() for w in layers], rates.view(-1, 1, 1)

        def plain(state=state, eta=eta, target=target):
            w1, w2, w3 = state
            residual = w3 @ w2 @ w1 - target
            grads = (w3 @ w2).mT @ residual, w3.mT @ residual @ w1.mT, residual @ (w2 @ w1).mT
            for w, grad in zip(state, grads, strict=True):
                w.copy_(w - eta * grad)

        rivals = {
            "runs first, graph": captured(rows.step, rows.state),
            "@": plain,
            "@ in a graph": captured(plain, state),
        }
        here = timed(both(net) | rivals)
        times |= {f"{runs}, {name}": t for name, t in here.items()}
        shares |= {f"{runs}: x {name}": over(here, name, "graph") for name in here if name != "graph"}
        shares[f"{runs}: GB/s, weights read and written once"] = 2 * 75 * 8e-9 * runs / here["graph"]["seconds"]
    return times, shares


def scalars():
    """Scalar reduction, 3 modes x 5,000 steps, 2,000 and 2,000,000 rates, against one Python run times the rates."""
    times, shares, steps, sigma = {}, {}, size(5000, 50), [10.0, 6.0, 3.0]

    def python_run():
        for goal in sigma:
            a, b, c = 0.1, 0.1, 0.0
            for _ in range(steps):
                e = 0.025 * (a * b * c - goal)
                a, b, c = a - e * b * c, b - e * a * c, c - e * a * b

    times[ONE_RUN] = race({"": python_run}, 5)[""]
    for runs in size((2000, 2_000_000), (200,)):
        layers, rates = mode_layers(3, runs, 3, 0.1).to(DEVICE), torch.linspace(0.02, 0.03, runs, **F64)
        net = ModeNetwork(layers, torch.tensor(sigma, **F64), rates)
        times |= {f"{runs}, {how}, all steps": scaled(t, steps) for how, t in timed(both(net)).items()}
        graph = f"{runs}, graph, all steps"
        shares[f"{runs}: launches / graph"] = over(times, f"{runs}, launches, all steps", graph)
        shares[f"{runs}: x Python, unrolled by hand"] = runs * over(times, ONE_RUN, graph)
        shares[f"{runs}: GB/s, weights read and written once"] = 144e-9 * runs * steps / times[graph]["seconds"]
    return times, shares


def sensing():
    """Sensing at the paper's size, d = 200, m = 4,000: a step reads 1.28 GB of operators twice."""
    (d, m), batch = size((200, 4000), (20, 100)), (1, 3, 8, 64)
    operators, vector, out = draw(m, d, d).div_(m), draw(d * d), torch.empty(m, **F64)
    target, flat = low_rank_target(d, 5, 1, runtime.generator(0))["target"][0].to(DEVICE), operators.flatten(1)
    problem = Sensing(operators, flat @ target.flatten())
    steps = {"reading once: sum": flat.sum, "reading once: times a vector": lambda: torch.mv(flat, vector, out=out)}
    for runs in batch:
        net = MatrixNetwork([draw(runs, d, d, scale=0.01) for _ in range(3)], problem, 20.0)
        steps |= both(net, f"{runs} runs, ")
    times = timed(steps)
    read = min(t["seconds"] for name, t in times.items() if name.startswith("reading"))
    shares = {"GB/s of one reading": 8e-9 * m * d * d / read}
    for runs in batch:
        graph = times[f"{runs} runs, graph"]["seconds"]
        shares |= {f"{runs} runs: share of two readings": 2 * read / graph}
        shares |= {f"{runs} runs: TFLOP/s of the two products": 4e-12 * runs * m * d * d / graph}
        shares |= {f"{runs} runs: launches / graph": times[f"{runs} runs, launches"]["seconds"] / graph}
    return times, shares


def hessian():
    """Top 5 Hessian eigenvalues of a 3-layer tanh network, 25,856 weights, 100 Lanczos steps, against its products."""
    sizes, samples, steps = size(((64, 128, 128, 10), 1000, 100), ((4, 5, 3), 20, 10))
    host = [draw(samples, sizes[0]), draw(samples, sizes[-1]), *(draw(o, i) / i**0.5 for i, o in pairwise(sizes))]

    def product_on(device):
        inputs, targets, *weights = (t.to(device) for t in host)

        def loss(*ws):
            hidden = inputs
            for w in ws[:-1]:
                hidden = torch.tanh(hidden @ w.mT)
            return 0.5 * (hidden @ ws[-1].mT - targets).square().sum(1).mean()

        return hessian_vector_product(loss, weights)

    product, start = product_on(DEVICE), draw(sum(w.numel() for w in host[2:]))
    ours, there = (lambda: top_eigenvalues(product, start, 5, steps)), start.cpu()
    unit, moved = start / start.norm(), torch.empty_like(start)
    once, alone = (lambda: moved.copy_(product(unit))), (lambda: [product(unit) for _ in range(steps)])
    times = timed({"ours": ours, "products alone": alone, "one product, graph": captured(once, [moved])}, 5)
    shares = {"ours / products alone": over(times, "ours", "products alone")}
    shares["products, launches / graph"] = over(times, "products alone", "one product, graph") / steps
    difference = ours().cpu() / top_eigenvalues(product_on("cpu"), there, 5, steps) - 1
    return times, shares | {"largest relative difference from the CPU": float(difference.abs().max())}


def blast_products():
    """BLAST layers at half the multiplications, float16, of one token and of 256, against a dense layer; captured."""
    times, shares, numbers = {}, {}, size(1 << 29, 1 << 16)
    half = {"dtype": torch.float16 if GPU else torch.float32, "device": DEVICE}
    source, copy = torch.zeros(2, numbers, **half)
    read = timed({"copy": lambda: copy.copy_(source)})["copy"]["seconds"] / (2 * numbers)  # seconds a number

    def product(layer, x):
        out = torch.empty_like(layer(x))
        return captured(lambda: out.copy_(layer(x)), [out])

    for rows, columns in size(((4096, 4096), (11008, 4096)), ((32, 64),)):
        weight = torch.randn(rows, columns, generator=runtime.generator(0, DEVICE), **half)
        for tokens in (1, 256):
            x = torch.randn(tokens, columns, generator=runtime.generator(1, DEVICE), **half)
            name = f"{rows} x {columns}"
            made = {"dense": lambda x, weight=weight: F.linear(x, weight)}
            for b in size((2, 4, 16), (2, 4)):
                rank = BlastLinear.rank_for(rows, columns, b, 0.5)
                made[f"b = {b}"] = BlastLinear(columns, rows, rank, b, bias=False, **half).requires_grad_(False)
            here = timed({who: product(layer, x) for who, layer in made.items()})
            for who, layer in made.items():
                times[f"{name}, {tokens} tokens, {who}"] = here[who]
                if who != "dense":
                    shares[f"{name}, {tokens} tokens, {who}: time / dense"] = over(here, who, "dense")
                    bound = layer.counts().parameters * read / here[who]["seconds"]
                    shares[f"{name}, {tokens} tokens, {who}: share of reading its numbers"] = bound
    return times, shares


def blast_fits():
    """One preconditioned iteration of a BLAST fit, float32, b = 16, against the same update by autograd."""
    times, shares = {}, {}
    for n, b, rank in size(((1024, 16, 128), (4096, 16, 1024)), ((32, 4, 3),)):
        a = draw(1, n, n).float()
        begin = blast_start(1, n, n, b, rank, runtime.generator(0, DEVICE), dtype=torch.float32)
        fit, theirs = BlastDescent(a, begin, 1, step=(1.0, 1.0)), [factor[0] for factor in begin]
        by_hand = lambda a=a, theirs=theirs: autograd_step(a[0], *theirs)
        here = timed({"launches": fit.step, "graph": captured(fit.step, fit.state), "autograd": by_hand}, 5)
        times |= {f"n = {n}, {who}": t for who, t in here.items()}
        shares[f"n = {n}: autograd / graph"] = over(here, "autograd", "graph")
        shares[f"n = {n}: launches / graph"] = over(here, "launches", "graph")
    return times, shares


BENCHMARKS = {
    f.__name__: f
    for f in (limits, batches, compressed_sweep, tiny_batch, scalars, sensing, hessian, blast_products, blast_fits)
}


def main(names: list[str]) -> None:
    if not GPU and not TRY:
        raise SystemExit("PyTorch sees no GPU here, and benchmarks/gpu.py needs one; run.py measures the CPU.")
    if unknown := set(names) - set(BENCHMARKS):
        raise SystemExit(f"unknown benchmark {sorted(unknown)}; there are: {', '.join(BENCHMARKS)}")
    about = machine() | {"device": runtime.device_name(DEVICE), "cuda": torch.version.cuda}
    report = {"machine": about, "commit": runtime.commit(), "date": datetime.now(UTC).isoformat(timespec="seconds")}
    report["benchmarks"] = {}
    for name in names or BENCHMARKS:
        if GPU:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        times, ratios = BENCHMARKS[name]()
        peak, what = round((torch.cuda.max_memory_allocated() if GPU else 0) / 1024**2), BENCHMARKS[name].__doc__
        report["benchmarks"][name] = {"what": what, "times": times, "ratios": ratios, "peak_memory_mb": peak}
        print(f"\n{name}: {what}  peak {peak} MB on the card")
        for who, t in times.items():
            spread = f"± {1e6 * t['spread']:.1f}  ({t['repeats']} x {t['calls']})"
            print(f"    {who:50} {1e6 * t['seconds']:14.1f} us  {spread}")
        for what, ratio in ratios.items():
            print(f"    {what:50} {ratio:14.4g}", flush=True)
        if not names and not TRY:
            (Path(__file__).parent / "results" / "gpu.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main([name for name in sys.argv[1:] if name != "--try"])
