"""What ours is compared with: the loop a user would write first (autograd, one run after another), and jitted JAX."""

import os

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")

import numpy as np
import torch

try:
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)
except ModuleNotFoundError:  # an optional rival: pip install -r benchmarks/requirements.txt
    jax = None


def autograd_run(layers, loss, rates, steps):
    """Plain gradient descent of one run with ``torch.autograd``; ``rates`` has one step size a layer."""
    layers = [w.clone().requires_grad_() for w in layers]
    for _ in range(steps):
        end = layers[0]
        for w in layers[1:]:
            end = w @ end
        grads = torch.autograd.grad(loss(end), layers)
        with torch.no_grad():
            for w, rate, grad in zip(layers, rates, grads, strict=True):
                w -= rate * grad
    return layers


def jax_descent(loss, steps):
    """A jitted loop of ``steps`` gradient steps: ``(layers, rates) -> layers``; None where JAX is not installed."""
    if jax is None:
        return None
    gradient = jax.grad(loss)

    @jax.jit
    def run(layers, rates):
        move = lambda _, ws: [w - r * g for w, r, g in zip(ws, rates, gradient(ws), strict=True)]
        return jax.lax.fori_loop(0, steps, move, layers)

    return lambda layers, rates: jax.block_until_ready(run(layers, rates))


def to_jax(tensor):
    """A tensor or list of tensors as JAX arrays."""
    return [to_jax(t) for t in tensor] if isinstance(tensor, list) else jnp.asarray(np.asarray(tensor))


def jax_end(layers):
    """The end-to-end matrix."""
    end = layers[0]
    for w in layers[1:]:
        end = w @ end
    return end
