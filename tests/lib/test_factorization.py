"""Closed forms against automatic differentiation and brute force, in float64."""

import math
from itertools import pairwise

import pytest
import torch

from lowdim import factorization as fz
from lowdim.checks import ParameterError
from lowdim.curvature import hessian
from lowdim.descent import train

F64 = torch.float64


def product_of(layers):
    end = layers[0]
    for layer in layers[1:]:
        end = layer @ end
    return end


@pytest.mark.parametrize("sizes", [(4, 3), (5, 4, 3), (3, 6, 2, 5), (4, 4, 4, 4, 4, 4)])
def test_matrix_step_is_the_gradient_step_of_autograd(sizes, random):
    runs = 3
    layers = [torch.randn(runs, o, i, generator=random, dtype=F64) for i, o in pairwise(sizes)]
    if len(layers) < 2:
        with pytest.raises(ParameterError, match="at least 2 tensors, got 1"):
            fz.MatrixNetwork(layers, fz.Factorization(torch.zeros(sizes[-1], sizes[0])), 0.1)
        return
    target = torch.randn(runs, sizes[-1], sizes[0], generator=random, dtype=F64)
    eta = torch.tensor([0.01, 0.02, 0.05], dtype=F64)
    leaves = [layer.clone().requires_grad_() for layer in layers]
    loss = 0.5 * (product_of(leaves) - target).square().sum()
    gradients = torch.autograd.grad(loss, leaves)
    network = fz.MatrixNetwork([layer.clone() for layer in layers], fz.Factorization(target), eta)
    assert torch.allclose(network.loss().sum(), loss, rtol=1e-12)
    network.step()
    for moved, old, gradient in zip(network.layers, layers, gradients, strict=True):
        torch.testing.assert_close(moved, old - eta[:, None, None] * gradient, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("depth", [2, 3, 4, 7])
def test_mode_step_is_the_gradient_step_of_autograd(depth, random):
    layers = torch.randn(depth, 5, 3, generator=random, dtype=F64)
    layers[1, 2] = 0.0  # a zero layer must not divide anything
    sigma, eta = torch.tensor([3.0, 2.0, 0.5], dtype=F64), torch.linspace(0.01, 0.05, 5, dtype=F64)
    leaf = layers.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(0.5 * (leaf.prod(0) - sigma).square().sum(), leaf)
    network = fz.ModeNetwork(layers.clone(), sigma, eta)
    network.step()
    torch.testing.assert_close(network.layers, layers - eta[:, None] * gradient, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("start", fz.STARTS)
@pytest.mark.parametrize("depth", [2, 3, 5])
def test_matrices_stay_on_the_scalar_reduction(depth, start, random):
    sigma, width, runs = [4.0, 2.5, 1.0], 5, 2
    u, v = fz.haar((runs, width), random), fz.haar((runs, width), random)
    rotations = (u, v) if start == "zero-layer" else (u, u)  # alpha I is aligned with symmetric targets only
    target = fz.spectrum_target(sigma, width, rotations)
    eta = torch.tensor([0.3, 0.8], dtype=F64) * fz.edge(4.0, depth)
    matrices = fz.MatrixNetwork(fz.identity_layers(depth, runs, width, 0.4, start), fz.Factorization(target), eta)
    modes = fz.ModeNetwork(fz.mode_layers(depth, runs, 3, 0.4, start), torch.tensor(sigma), eta)
    for steps in (20, 130):  # on the way and at the end
        train(matrices, steps)
        train(modes, steps)
        values = (rotations[0].mT @ matrices.product() @ rotations[1]).diagonal(dim1=-2, dim2=-1)[:, :3]
        torch.testing.assert_close(values, modes.product(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("depth", "width", "sigma"), [(3, 5, [10, 6, 3]), (2, 4, [5, 2]), (4, 4, [3, 1.5, 0.7]), (6, 2, [2.5])]
)
def test_hessian_eigenvalues_at_the_minimum(depth, width, sigma):
    root = torch.zeros(width, dtype=F64)
    root[: len(sigma)] = torch.tensor(sigma, dtype=F64) ** (1 / depth)
    target = torch.diag(root**depth)
    layers = [torch.diag(root)] * depth
    dense = hessian(lambda *w: 0.5 * (product_of(w) - target).square().sum(), layers)
    brute = torch.linalg.eigvalsh(dense).flip(0)
    torch.testing.assert_close(fz.minimum_hessian_eigenvalues(sigma, width, depth), brute, rtol=0, atol=1e-10)
    assert math.isclose(float(brute[0]), fz.sharpness(float(max(sigma)), depth), rel_tol=1e-10) or max(sigma) < 1


@pytest.mark.parametrize("depth", [2, 3, 4, 5])
def test_transverse_hessian_is_the_off_diagonal_block_of_autograd(depth, random):
    a, b = torch.rand(2, generator=random, dtype=F64) + 0.5
    sigma_a, sigma_b = 2.0, 1.3
    target = torch.diag(torch.tensor([sigma_a, sigma_b], dtype=F64))

    def loss(corners):
        end = torch.eye(2, dtype=F64)
        for l in range(depth):
            rows = [torch.stack([a, corners[l]]), torch.stack([corners[depth + l], b])]
            end = torch.stack(rows) @ end
        return 0.5 * (end - target).square().sum()

    brute = torch.func.hessian(loss)(torch.zeros(2 * depth, dtype=F64))
    torch.testing.assert_close(fz.transverse_hessian(a, b, sigma_a, sigma_b, depth), brute, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_top_eigenvalue_off_the_minimum(depth, random):
    sigma = torch.tensor([5.0, 2.0, 1.0], dtype=F64)
    rho = sigma ** (1 / depth) * (0.7 + 0.6 * torch.rand(6, 3, generator=random, dtype=F64))
    target = torch.diag(torch.cat([sigma, torch.zeros(1, dtype=F64)]))
    found = fz.balanced_top_eigenvalue(rho, sigma, depth, width=4)
    for values, top in zip(rho, found, strict=True):
        layers = [torch.diag(torch.cat([values, torch.zeros(1, dtype=F64)]))] * depth
        dense = hessian(lambda *w: 0.5 * (product_of(w) - target).square().sum(), layers)
        assert torch.linalg.eigvalsh(dense)[-1] == pytest.approx(float(top), rel=1e-10)


@pytest.mark.parametrize("depth", [2, 3, 5])
def test_gap_factor_is_exact(depth, random):
    layers = 0.5 + torch.rand(depth, 40, 2, generator=random, dtype=F64)
    network = fz.ModeNetwork(layers, torch.tensor([3.0, 1.0]), 0.03)
    before, product, eta = network.gap(), network.product(), network.eta
    factor = fz.gap_factor(product, network.sigma, eta, layers[-1].clone(), layers[0].clone())
    network.step()
    torch.testing.assert_close(network.gap(), factor * before, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("depth", "alpha"), [(2, 0.01), (3, 0.05), (3, 0.3), (5, 0.4)])
def test_escape_time_is_right_within_a_factor_of_two(depth, alpha):
    eta = 0.2 * fz.edge(6.0, depth)
    network = fz.ModeNetwork(fz.mode_layers(depth, 1, 1, alpha), torch.tensor([6.0]), eta)
    steps = int(fz.escape_steps(6.0, depth, alpha, eta) * 3) + 20
    run = train(network, steps, record={"pi": network.product})
    reached = int((run["pi"][:, 0, 0] > 3.0).nonzero()[0])
    assert 0.5 < reached / fz.escape_steps(6.0, depth, alpha, eta) < 2


def test_haar_matrices_are_orthogonal_and_centred(random):
    q = fz.haar((400, 3), random)
    torch.testing.assert_close(q @ q.mT, torch.eye(3, dtype=F64).expand(400, 3, 3), rtol=0, atol=1e-12)
    assert q.mean(0).abs().max() < 0.15  # without the sign fix the diagonal's mean is far from zero
    assert (torch.linalg.det(q) > 0).double().mean() == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: fz.mode_layers(1, 1, 1, 0.1), "depth must be a whole number >= 2"),
        (lambda: fz.mode_layers(3, 1, 1, -0.1), "alpha must be a finite number > 0"),
        (lambda: fz.identity_layers(3, 1, 2, 0.1, start="random"), "start must be one of 'zero-layer', 'balanced'"),
        (lambda: fz.spectrum_target([1, 2, 3], 2), "at most 2 singular values, got 3"),
        (lambda: fz.ModeNetwork(torch.zeros(3, 4), torch.ones(1), 0.1), "layers must be"),
        (lambda: fz.ModeNetwork(torch.zeros(3, 4, 2), torch.ones(3), 0.1), "must fit"),
        (
            lambda: fz.MatrixNetwork([torch.zeros(1, 2, 3), torch.zeros(1, 2, 4)], fz.Factorization(torch.eye(2)), 0.1),
            "does not feed layer 2",
        ),
    ],
)
def test_bad_input_is_one_clear_sentence(call, words):
    with pytest.raises(ParameterError, match=words):
        call()
