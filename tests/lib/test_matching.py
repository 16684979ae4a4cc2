"""Permutation matching and interpolation against brute force, known permutations and closed forms."""

from itertools import permutations as every_order

import pytest
import torch
from torch import nn

from lowdim import interpolation as lines
from lowdim import matching
from lowdim.checks import ParameterError
from lowdim.mlps import MLP, mlp_parameters
from lowdim.trainer import train

F64 = torch.float64
SIZES = [4, 8, 7, 3]


def draw(seed=5):
    return torch.Generator().manual_seed(seed)


def nets(pairs=3, seed=5, sizes=SIZES):
    return mlp_parameters(sizes, pairs, draw(seed), dtype=F64)


def task():
    x = torch.randn(40, 4, generator=draw(1), dtype=F64)
    return x, (x @ torch.randn(4, 3, generator=draw(2), dtype=F64)).argmax(1)


def shuffled(a, seed=6):
    """Each pair's network with its hidden units in a random order, and the permutations that undo it."""
    orders = [
        torch.rand(len(p), p.shape[1], generator=draw(seed + l)).argsort(1) for l, p in enumerate(matching.identity(a))
    ]
    return matching.permute(a, orders), [p.argsort(1) for p in orders]


def test_permuting_changes_the_parameters_but_not_the_function():
    a = nets()
    b, back = shuffled(a)
    judge = MLP(a, *task())
    torch.testing.assert_close(judge.outputs(parameters=b), judge.outputs(), rtol=1e-12, atol=1e-12)
    assert (lines.distance(a, b) > 1).all()
    for name, p in matching.permute(b, back).items():
        assert torch.equal(p, a[name])


def test_known_permutations_are_found_from_weights_and_from_activations():
    a = nets()
    b, back = shuffled(a)
    noisy = {name: p + 1e-3 * torch.randn(p.shape, generator=draw(), dtype=F64) for name, p in b.items()}
    judge = MLP(a, *task())
    acts = [judge.hidden(parameters=net)[:-1] for net in (a, b)]
    for found in (matching.weight_matching(a, noisy, draw()), matching.activation_matching(*acts)):
        moved = matching.permute(b, found)
        torch.testing.assert_close(judge.hidden(parameters=moved)[0], acts[0][0], rtol=1e-9, atol=1e-9)
    found = matching.weight_matching(a, b, draw())
    assert all(torch.equal(p, q) for p, q in zip(found, back, strict=True))


def test_an_assignment_is_the_best_of_all():
    gains = torch.randn(4, 5, 5, generator=draw(), dtype=F64)
    for g, p in zip(gains, matching.assign(gains), strict=True):
        best = max(sum(float(g[i, j]) for i, j in enumerate(order)) for order in every_order(range(5)))
        assert float(g[torch.arange(5), p].sum()) == pytest.approx(best, abs=1e-12)


def test_no_single_layer_can_be_improved_and_pairs_do_not_feel_each_other():
    a, b = nets(3, 5), nets(3, 9)
    found = matching.weight_matching(a, b, draw(), slack=0.0)
    reached = matching.agreement(a, b, found)
    assert (reached > matching.agreement(a, b, matching.identity(b))).all()
    for l in range(2):
        other = [p.clone() for p in found]
        other[l] = matching.assign(matching._gains(a, b, found, l))
        torch.testing.assert_close(matching.agreement(a, b, other), reached)
    one = matching.weight_matching(*({k: p[1:2] for k, p in net.items()} for net in (a, b)), draw(), slack=0.0)
    assert all(torch.equal(p[1:2], q) for p, q in zip(found, one, strict=True))


def test_the_straight_through_estimator_lowers_the_loss_in_the_middle():
    x, y = task()
    trained = MLP(nets(4), x, y)
    train(trained, 200, 0.02, "adam")
    a, b = ({name: p[half].clone() for name, p in trained.parameters.items()} for half in (slice(2), slice(2, 4)))
    judge = MLP(a, x, y)
    middle = lambda found: judge.loss(parameters=lines.mix(a, matching.permute(b, found), 0.5))
    found = matching.straight_through(MLP(a, x, y), a, b, 60, 0.05, 40, draw())
    assert (middle(found) < middle(matching.identity(b))).all()


def test_barrier_of_a_parabola_and_of_a_line():
    t = torch.linspace(0, 1, 11, dtype=F64)
    losses = torch.stack([4 * t * (1 - t) + t, 2 - t, -t * (1 - t)], 1)
    torch.testing.assert_close(lines.barrier(losses), torch.tensor([1.0, 0.0, -0.09], dtype=F64))
    with pytest.raises(ParameterError, match="losses must have at least 3 points, got 2"):
        lines.barrier(losses[:2])


def test_along_starts_and_ends_at_the_networks():
    a, b = nets(), nets(seed=8)
    x, y = task()
    judge = MLP(a, x, y)
    losses, hits, ts = lines.along(judge, a, b, 5)
    torch.testing.assert_close(losses[[0, 4]], torch.stack([judge.loss(parameters=n) for n in (a, b)]))
    torch.testing.assert_close(hits[4], judge.accuracy(parameters=b))
    torch.testing.assert_close(losses[1], judge.loss(x, y, lines.mix(a, b, float(ts[1]))))


def test_the_taylor_estimate_is_that_of_the_hessians():
    a, b = nets(2, sizes=[4, 3, 3]), nets(2, 8, sizes=[4, 3, 3])
    x, y = task()
    judge = MLP(a, x, y, activation="tanh")

    def hessian(run, net):
        flat = torch.cat([p[run].flatten() for p in net.values()])
        shapes = {name: p[run].shape for name, p in net.items()}

        def loss(v):
            parts = v.split([s.numel() for s in shapes.values()])
            one = {name: part.view(1, *s) for (name, s), part in zip(shapes.items(), parts, strict=True)}
            return nn.functional.cross_entropy(judge.outputs(x, one)[0], y)

        return torch.autograd.functional.hessian(loss, flat), flat

    for run, ours in enumerate(lines.curvature_estimate(judge, a, b)):
        (ha, fa), (hb, fb) = hessian(run, a), hessian(run, b)
        torch.testing.assert_close(ours, (fa - fb) @ (ha + hb) @ (fa - fb) / 16, rtol=1e-10, atol=1e-12)


def test_alignment_is_the_double_sum_and_one_for_equal_networks():
    a, b = nets(), nets(seed=8)
    sa, sb = lines.spectra(a), lines.spectra(b)
    torch.testing.assert_close(lines.alignment(sa, sa), torch.ones(3, dtype=F64))
    for gamma in (0.0, 0.4):
        total, number = 0.0, 0
        for (ua, s, va), (ub, r, vb) in zip(sa, sb, strict=True):
            rows = [i for i in range(s.shape[1]) if s[0, i] >= gamma * s[0, 0]]
            columns = [j for j in range(r.shape[1]) if r[0, j] >= gamma * r[0, 0]]
            total += sum((ua[0, :, i] @ ub[0, :, j]) * (va[0, :, i] @ vb[0, :, j]) for i in rows for j in columns)
            number += min(len(rows), len(columns))
        torch.testing.assert_close(lines.alignment(sa, sb, gamma)[0], total / number, rtol=1e-10, atol=1e-12)


def test_renormalised_networks_have_the_statistics_of_their_ends():
    a, b = nets(), nets(seed=8)
    judge = MLP(a, *task())
    for name, p in lines.renormalised(judge, a, b, 0.0).items():
        torch.testing.assert_close(p, a[name], rtol=1e-10, atol=1e-10)
    mixed = lines.renormalised(judge, a, b, 0.3)
    first = lambda net: judge.inputs @ net["weight.0"].mT + net["bias.0"].unsqueeze(1)
    mean, deviation = (
        torch.lerp(f(first(a)), f(first(b)), 0.3) for f in (lambda z: z.mean(1), lambda z: z.std(1, correction=0))
    )
    torch.testing.assert_close(first(mixed).mean(1), mean)
    torch.testing.assert_close(first(mixed).std(1, correction=0), deviation)
    assert lines.along(judge, a, b, 3, renormalise=True)[0].isfinite().all()


def test_running_statistics_are_computed_anew():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)).double().eval()
    x = torch.randn(3, 20, 4, generator=draw(), dtype=F64)
    lines.reset_statistics(model, list(x))
    wanted = torch.stack([model[0](batch).mean(0) for batch in x]).mean(0)
    torch.testing.assert_close(model[1].running_mean, wanted.detach())
    assert not model[1].training
    assert model[1].momentum == 0.1
    with pytest.raises(ParameterError, match="model must be a module with running statistics"):
        lines.reset_statistics(model[0], [x[0]])
    with pytest.raises(ParameterError, match="batches must be at least one tensor"):
        lines.reset_statistics(model, [])


def test_truncated_networks_have_their_rank():
    for p in [p for name, p in lines.truncated(nets(), 2).items() if name.startswith("weight")]:
        assert (torch.linalg.matrix_rank(p) == 2).all()
