"""Benchmarks of structured matrices: factorization against autograd, batches, products against dense layers."""

import torch
import torch.nn.functional as F
from timing import race

from lowdim.runtime import generator
from lowdim.structured import BlastLinear
from lowdim.structured_factorization import BlastDescent, BlastFactors, blast_start


def autograd_step(a, u, v, s, delta0=0.1):
    """One preconditioned iteration with step one as one would write it first; gradients by autograd."""
    eye = torch.eye(u.shape[-1], dtype=a.dtype, device=a.device)
    for name in "uvs":
        leaves = [x.detach().requires_grad_(key == name) for key, x in zip("usv", (u, s, v), strict=True)]
        fitted = torch.einsum("ipr,ijr,jqr->ipjq", *leaves).reshape(a.shape)
        loss = 0.5 * (a - fitted).square().sum()
        (gradient,) = torch.autograd.grad(loss, [x for x in leaves if x.requires_grad])
        delta = delta0 * loss.detach().sqrt() * eye
        if name == "u":
            stack = torch.einsum("jqr,ijr->ijqr", v, s).flatten(1, 2)
            u = u - torch.linalg.solve(stack.mT @ stack + delta, gradient.mT).mT
        elif name == "v":
            stack = torch.einsum("ipr,ijr->jipr", u, s).flatten(1, 2)
            v = v - torch.linalg.solve(stack.mT @ stack + delta, gradient.mT).mT
        else:
            s = s - torch.linalg.solve((u.mT @ u)[:, None] * (v.mT @ v) + delta, gradient)
    return u, v, s


def factorization():
    """One preconditioned iteration, float64: n = 256 with b = 16, r = 32, and n = 1024 with b = 16, r = 128."""
    times, shares = {}, {}
    for n, b, r in ((256, 16, 32), (1024, 16, 128)):
        random = generator(0)
        a = torch.randn(1, n, n, generator=random, dtype=torch.float64)
        begin = blast_start(1, n, n, b, r, random)
        fit, theirs = BlastDescent(a, begin, 1, step=(1.0, 1.0)), [f[0] for f in begin]
        for _ in range(3):
            fit.step()
            theirs = autograd_step(a[0], *theirs)
        shares[f"n = {n}: largest difference after 3"] = max(
            float((x[0] - y).abs().max()) for x, y in zip(fit.factors(), theirs, strict=True)
        )
        run = lambda a=a, x=theirs: autograd_step(a[0], *x)
        measured = race({f"ours, n = {n}": fit.step, f"autograd, n = {n}": run}, repeats=5)
        times |= measured
        shares[f"x autograd, n = {n}"] = (
            measured[f"autograd, n = {n}"]["seconds"] / measured[f"ours, n = {n}"]["seconds"]
        )
    targets = {f"x autograd, n = {n}": 3.0 for n in (256, 1024)}
    return times, shares, targets | {f"n = {n}: largest difference after 3": -1e-10 for n in (256, 1024)}


def batches():
    """A batch against one after another: 32 matrices with n = 64, and 4 with n = 1024."""
    times, shares = {}, {}
    for n, b, r, runs in ((64, 4, 8, 32), (1024, 16, 64, 4)):
        random = generator(0)
        a = torch.randn(runs, n, n, generator=random, dtype=torch.float64)
        begin = blast_start(runs, n, n, b, r, random)
        whole = BlastDescent(a, begin, 1, step=(1.0, 1.0))
        ones = [BlastDescent(a[k : k + 1], BlastFactors(*(f[k : k + 1] for f in begin)), 1) for k in range(runs)]
        singly = lambda ones=ones: [d.step() for d in ones]
        measured = race({f"batch, n = {n}": whole.step, f"one by one, n = {n}": singly},
                        repeats=5)  # fmt: skip
        times |= measured
        shares[f"x one by one, n = {n}"] = (
            measured[f"one by one, n = {n}"]["seconds"] / measured[f"batch, n = {n}"]["seconds"]
        )
    return times, shares, {"x one by one, n = 64": 4.0, "x one by one, n = 1024": 0.95}


def product(threads=1):
    """Layers 4096 x 4096 at half the multiplications, float32, against a dense layer: one token and 256 tokens."""
    n, times, shares, targets = 4096, {}, {}, {}
    weight = torch.randn(n, n, generator=generator(0))
    torch.set_num_threads(threads)
    for tokens, limit in ((1, 0.65), (256, 0.6)):
        x = torch.randn(tokens, n, generator=generator(1))
        contestants = {f"dense, {tokens} tokens": lambda x=x: F.linear(x, weight)}
        for b in (2, 4, 8, 16):
            layer = BlastLinear(n, n, BlastLinear.rank_for(n, n, b, 0.5), b, bias=False, generator=generator(b))
            contestants[f"blast b = {b}, {tokens} tokens"] = lambda layer=layer, x=x: layer(x)
        with torch.no_grad():
            measured = race(contestants, repeats=9)
        times |= measured
        for b in (2, 4, 8, 16):
            name = f"time over dense, b = {b}, {tokens} tokens"
            shares[name] = (
                measured[f"blast b = {b}, {tokens} tokens"]["seconds"] / measured[f"dense, {tokens} tokens"]["seconds"]
            )
            targets[name] = -limit
    torch.set_num_threads(1)
    return times, shares, targets
