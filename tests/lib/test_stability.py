"""Measured onsets and factors against theory, for spectra and depths that no chapter uses."""

import pytest
import torch

from lowdim import stability
from lowdim.curvature import hessian
from lowdim.descent import train
from lowdim.factorization import Factorization, MatrixNetwork, edge, gap_factor
from lowdim.orbits import period_doubling, two_cycle

F64 = torch.float64


@pytest.mark.parametrize("depth", [2, 3, 5])
def test_onset_is_the_edge(depth, random):
    sigma = torch.tensor([37.0, 1.0, 0.3], dtype=F64)
    found = stability.onset(sigma, depth, seeds=2, generator=random, half_width=5e-3, points=11, steps=12_000)
    torch.testing.assert_close(found, torch.ones(2, 3, dtype=F64), rtol=0, atol=1.1e-3)


@pytest.mark.parametrize("depth", [2, 3, 4, 6])
def test_gap_factor_on_the_cycle(depth, random):
    sigma, c = torch.tensor([5.0, 0.7], dtype=F64), torch.linspace(1.05, 1.2, 4, dtype=F64)
    eta = c[:, None] * edge(sigma, depth)
    pair = two_cycle(eta, sigma, depth)
    rho = pair ** (1 / depth)
    law = gap_factor(pair, sigma[:, None], eta.unsqueeze(-1), rho, rho).prod(-1)
    found = stability.two_step_gap_factor(c, sigma, depth, seeds=3, generator=random)
    torch.testing.assert_close(found, law.expand(3, -1, -1), rtol=0, atol=1e-3)
    if depth == 2:
        torch.testing.assert_close(law, (3 - 2 * c[:, None]).expand_as(law), rtol=0, atol=1e-10)


def test_rotation_multiplier_by_autograd():
    """One case by brute force: Jacobian of two steps of a 2 x 2 network, from the Hessian of all its entries."""
    depth, ratio, c = 3, 0.93, 1.1
    eta = c * edge(1.0, depth)
    high_low = two_cycle(eta, 1.0, depth) ** (1 / depth)
    target = torch.diag(torch.tensor([1.0, ratio], dtype=F64))

    def loss(*layers):
        return 0.5 * (layers[2] @ layers[1] @ layers[0] - target).square().sum()

    period = torch.eye(12, dtype=F64)
    for rho in high_low:
        layers = [torch.diag(torch.stack([rho, torch.tensor(ratio ** (1 / depth), dtype=F64)]))] * depth
        period = (torch.eye(12, dtype=F64) - eta * hessian(loss, layers)) @ period
    off = torch.tensor([1, 2, 5, 6, 9, 10])
    brute = torch.linalg.eigvals(period[off][:, off]).abs().max()
    found = stability.rotation_multiplier(torch.tensor(ratio, dtype=F64), torch.tensor(c, dtype=F64), depth)
    assert float(found) == pytest.approx(float(brute), rel=1e-9)


@pytest.mark.parametrize(("ratio", "survives"), [(0.6, True), (0.95, False)])
def test_rotation_multiplier_predicts_a_matrix_network(ratio, survives, random):
    c, depth = 1.15, 3
    multiplier = stability.rotation_multiplier(torch.tensor(ratio, dtype=F64), torch.tensor(c, dtype=F64), depth)
    assert (multiplier < 1 + 1e-6) == survives
    pair = two_cycle(c * edge(1.0, depth), 1.0, depth) ** (1 / depth)
    values = torch.stack([pair[0], torch.tensor(ratio ** (1 / depth), dtype=F64)])
    layers = [
        (torch.diag(values) + 1e-7 * torch.randn(2, 2, generator=random, dtype=F64)).unsqueeze(0) for _ in range(depth)
    ]
    target = torch.diag(torch.tensor([1.0, ratio], dtype=F64))
    network = MatrixNetwork(layers, Factorization(target), c * edge(1.0, depth))
    train(network, 4000, on_divergence="mask")
    off = (network.product()[0] - torch.diag(network.product()[0].diagonal())).abs().max()  # NaN if it diverged
    assert (off < 1e-5) == survives


def test_rotation_exponent_agrees_with_the_multiplier_on_a_cycle(random):
    c, depth = torch.tensor([1.06], dtype=F64), 3  # mode 2 still rests: its own edge is at c = 1.07
    multiplier = stability.rotation_multiplier(torch.tensor([0.95], dtype=F64), c, depth)
    assert multiplier > 1.01
    growth = stability.rotation_exponent(c * edge(1.0, depth), 1.0, 0.95, depth, generator=random, steps=4000)
    assert float(growth) == pytest.approx(float(multiplier.log() / 2), abs=2e-3)


def test_settled_runs_are_on_the_cycle(random):
    c = torch.tensor([0.9, 1.1, 0.5 * (1 + period_doubling(4, 1)[1])], dtype=F64)
    sigma = torch.tensor([2.0, 0.4], dtype=F64)
    ends = stability.settle(c, sigma, 4, 8000, seeds=2, generator=random).sort(0).values
    torch.testing.assert_close(ends[:, :, 0], sigma.expand(2, 2, 2), rtol=1e-9, atol=0)
    pairs = two_cycle(c[1:, None] * edge(sigma, 4), sigma, 4)
    torch.testing.assert_close(ends[:, 0, 1:], pairs.movedim(-1, 0), rtol=1e-8, atol=0)
