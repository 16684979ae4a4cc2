"""Deep matrix recovery: closed-form gradients, batches, surrogates, starts and compressed networks."""

import math
from itertools import pairwise

import pytest
import torch

from lowdim.checks import ParameterError
from lowdim.descent import descend
from lowdim.factorization import Factorization
from lowdim.networks import MatrixNetwork, PackedNetwork, network
from lowdim.recovery import (
    Completion,
    Sensing,
    ThinFactorization,
    ThinNetwork,
    alpha_speed_up,
    alternating_least_squares,
    balanced_layers,
    compressed,
    low_rank_target,
    orthogonal_layers,
    outer_scale,
    padded,
    spectral_layers,
)
from lowdim.runtime import generator

F64 = torch.float64


def random(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=F64)


def problem_and_reference(kind, runs, rows, columns, shared):
    """A problem, and its loss written out term by term for one run."""
    lead = () if shared else (runs,)
    target = random(*lead, rows, columns, seed=1)
    pick = lambda tensor, i: tensor if shared else tensor[i]
    if kind == "factorization":
        return Factorization(target), lambda w, i: 0.5 * ((w - pick(target, i)) ** 2).sum()
    if kind == "factorization-mean":
        return Factorization(target, mean=True), lambda w, i: 0.5 * ((w - pick(target, i)) ** 2).mean()
    if kind == "completion":
        mask = (torch.rand(*lead, rows, columns, generator=generator(2)) < 0.5).to(F64)
        mask[..., 0, 0] = 1

        def loss(w, i):
            seen = pick(mask, i).bool()
            return 0.5 * ((w - pick(target, i))[seen] ** 2).mean()

        return Completion(mask, target), loss
    operators, y = random(*lead, 7, rows, columns, seed=3), random(*lead, 7, seed=4)

    def loss(w, i):
        return 0.5 * sum(((a * w).sum() - b) ** 2 for a, b in zip(pick(operators, i), pick(y, i), strict=True))

    return Sensing(operators, y), loss


def autograd_step(layers, loss, eta, scale, run):
    leaves = [w[run].clone().requires_grad_() for w in layers]
    end = leaves[0]
    for leaf in leaves[1:]:
        end = leaf @ end
    grads = torch.autograd.grad(loss(end, run), leaves)
    return [(w - eta * s * g).detach() for w, s, g in zip(leaves, scale, grads, strict=True)]


KINDS = ["factorization", "factorization-mean", "completion", "sensing"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("depth", [2, 3, 4, 5])
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "per-run"])
@pytest.mark.parametrize("block", [0, 2], ids=["whole", "blocks"])
def test_step_is_autograds(kind, depth, shared, block):
    runs, sizes = 5, [6, 3, 4, 2, 5, 7][:depth] + [8]
    problem, loss = problem_and_reference(kind, runs, 8, 6, shared)
    layers = [random(runs, o, i, seed=10 + l) for l, (i, o) in enumerate(pairwise(sizes))]
    eta = torch.linspace(0.01, 0.05, runs, dtype=F64)
    scale = [2.0, *[1.0] * (depth - 2), torch.linspace(0.5, 3, runs, dtype=F64)]
    expected = [
        autograd_step(layers, loss, float(eta[i]), [s if isinstance(s, float) else float(s[i]) for s in scale], i)
        for i in range(runs)
    ]
    net = MatrixNetwork([w.clone() for w in layers], problem, eta, scale, block)
    wanted = torch.stack([loss(end, i) for i, end in enumerate(net.product())])
    assert torch.allclose(net.loss(), wanted, rtol=1e-12)
    net.step()
    for l in range(depth):
        assert (net.layers[l] - torch.stack([e[l] for e in expected])).abs().max() < 1e-10


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_is_autograds_and_may_overwrite_the_product(kind):
    problem, loss = problem_and_reference(kind, 3, 4, 5, False)
    w = random(3, 4, 5, seed=9).requires_grad_()
    (expected,) = torch.autograd.grad(sum(loss(w[i], i) for i in range(3)), w)
    w = w.detach()
    assert (problem.gradient(w, torch.empty_like(w)) - expected).abs().max() < 1e-10
    assert (problem.gradient(w, w) - expected).abs().max() < 1e-10


@pytest.mark.parametrize("depth", [2, 3, 5])
@pytest.mark.parametrize("kind", KINDS[:3])
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "per-run"])
def test_packed_layout_takes_the_same_steps(kind, depth, shared):
    problem, _ = problem_and_reference(kind, 6, 4, 3, shared)
    sizes = [3, 5, 2, 4, 3][:depth] + [4]
    # weights of size 0.4: descent is stable there, so that rounding errors do not grow from step to step
    layers = [0.4 * random(6, o, i, seed=10 + l) for l, (i, o) in enumerate(pairwise(sizes))]
    eta = torch.linspace(0.001, 0.005, 6, dtype=F64)
    for scale in (None, outer_scale(depth, torch.linspace(1, 2, 6, dtype=F64))):
        plain = MatrixNetwork([w.clone() for w in layers], problem, eta, scale)
        packed = PackedNetwork(layers, problem, eta, scale)
        for _ in range(5):
            plain.step()
            packed.step()
        for a, b in zip(plain.layers, packed.layers, strict=True):
            assert torch.allclose(a, b, rtol=1e-12, atol=1e-14)


def test_network_chooses_the_layout_by_size():
    many = network([random(500, 5, 5)] * 3, Factorization(random(5, 5)), 0.1)
    few = network([random(2, 5, 5)] * 3, Factorization(random(5, 5)), 0.1)
    assert isinstance(many, PackedNetwork)
    assert not isinstance(few, PackedNetwork)


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_thin_network_takes_the_steps_of_the_full_one(depth):
    left, right = random(12, 3), random(9, 3, seed=1)
    thin = compressed(ThinFactorization(left, right), 4, depth, 0.3, 0.2, torch.tensor([1.0, 2.0, 5.0], dtype=F64))
    full = compressed(Factorization(left @ right.mT, mean=True), 4, depth, 0.3, 0.2, torch.tensor([1.0, 2.0, 5.0]))
    assert isinstance(thin, ThinNetwork)
    assert len(thin.layers[0]) == 3
    for _ in range(20):
        thin.step()
        full.step()
    for a, b in zip(thin.layers, full.layers, strict=True):
        assert torch.allclose(a, b, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_its_single_runs(kind):
    runs = 4
    problem, _ = problem_and_reference(kind, runs, 6, 6, False)
    layers = orthogonal_layers([6, 6, 6, 6], runs, 0.5, generator(5))
    eta = torch.tensor([0.01, 0.02, 0.03, 0.04], dtype=F64)
    batch = MatrixNetwork([w.clone() for w in layers], problem, eta)
    descend(batch.step, batch.state, 30)
    for i in range(runs):
        one = torch.tensor([i])
        alone = MatrixNetwork([w[one].clone() for w in layers], problem.select(one), eta[one])
        descend(alone.step, alone.state, 30)
        for a, b in zip(batch.layers, alone.layers, strict=True):
            assert torch.allclose(a[one], b, rtol=1e-11, atol=1e-12)


def test_early_stop_freezes_each_run_where_it_stopped():
    def make(runs):
        target = low_rank_target(10, 2, 1, generator(0))["target"][0]
        rates = torch.tensor([5.0, 1.25, 2.5, 1e-6], dtype=F64)[runs]
        return compressed(Factorization(target, mean=True), 4, 3, 0.1, rates, runs=len(rates))

    net, calls = make(torch.arange(4)), []
    given, step = net.layers, net.step

    def counted():
        calls.append(len(net.layers[0]))
        net.step()

    path = descend(counted, net.state, 2000, stop=lambda: net.loss() < 1e-6, narrow=net.narrow, check=10,
                   record={"loss": net.loss, "run": lambda: net.runs.double()}, every=25)  # fmt: skip
    stops = path.stopped_at.tolist()
    assert stops[3] == -1  # never gets there
    assert 0 < stops[0] < stops[2] < stops[1] < 2000
    assert net.layers is given
    assert net.step == step
    assert calls[0] == 4
    assert calls[-1] == 1  # finished runs left the computation
    assert sum(calls) == stops[0] + stops[1] + stops[2] + 2000
    assert torch.equal(path["run"], torch.arange(4.0, dtype=F64).expand(81, 4))
    for i, stop in enumerate(stops):
        alone = make(torch.tensor([i]))
        for _ in range(2000 if stop < 0 else stop):
            alone.step()
        for a, b in zip(net.layers, alone.layers, strict=True):
            assert torch.allclose(a[i], b[0], rtol=1e-10, atol=1e-13)
        assert torch.allclose(path["loss"][-1, i], alone.loss()[0], rtol=1e-6, atol=1e-30)
    rows = path.steps > stops[0]
    assert (path["loss"][rows, 0] == path["loss"][-1, 0]).all()


@pytest.mark.parametrize("kind", ["plain", "packed", "thin"])
def test_all_runs_may_stop(kind):
    made = low_rank_target(6, 1, 1, generator(0))
    target = made["target"][0]
    if kind == "thin":
        net = compressed(ThinFactorization(made["u"][0] * made["sigma"], made["v"][0]), 1, 3, 0.5, 1.0, runs=3)
    else:
        layers = spectral_layers(target, 1, 3, 0.5, 3)
        net = (PackedNetwork if kind == "packed" else MatrixNetwork)(layers, Factorization(target, mean=True), 1.0)
    path = descend(net.step, net.state, 3000, stop=lambda: net.loss() < 1e-8, narrow=net.narrow, check=7,
                   record={"loss": net.loss}, every=100)  # fmt: skip
    assert (path.stopped_at > 0).all()
    assert (path.stopped_at % 7 == 0).all()
    assert torch.isfinite(path["loss"]).all()
    assert (path["loss"][-1] < 1e-8).all()
    assert (net.loss() < 1e-8).all()


def test_a_masked_divergence_leaves_the_computation_and_the_rest_goes_on():
    target = low_rank_target(6, 1, 1, generator(0))["target"][0]
    net = MatrixNetwork(spectral_layers(target, 1, 3, 0.5, 2), Factorization(target), torch.tensor([10.0, 0.05]))
    path = descend(net.step, net.state, 2000, stop=lambda: net.loss() < 1e-8, narrow=net.narrow, check=20,
                   on_divergence="mask")  # fmt: skip
    assert path.diverged_at[0] > 0
    assert path.stopped_at[0] == -1
    assert torch.isnan(net.layers[0][0]).all()
    assert path.stopped_at[1] > 0
    assert net.loss()[1] < 1e-8


def test_surrogates():
    target = random(3, 5, 4)
    assert Factorization(target).surrogate() is target
    mask = torch.zeros(5, 4, dtype=F64)
    mask[0, 1] = mask[2, 3] = 1
    expected = torch.zeros(3, 5, 4, dtype=F64)
    expected[:, 0, 1], expected[:, 2, 3] = 10 * target[:, 0, 1], 10 * target[:, 2, 3]  # 2 of 20 entries are seen
    assert torch.allclose(Completion(mask, target).surrogate(), expected, rtol=1e-14)
    operators, y = random(7, 5, 4, seed=1), random(3, 7, seed=2)
    expected = torch.stack([sum(y[i, k] * operators[k] for k in range(7)) / 7 for i in range(3)])
    assert torch.allclose(Sensing(operators, y).surrogate(), expected, atol=1e-14)
    assert torch.allclose(Sensing(operators, y[0]).surrogate(), expected[0], atol=1e-14)
    own = operators.expand(3, -1, -1, -1)
    assert torch.allclose(Sensing(own, y).surrogate(), expected, atol=1e-14)


def test_unseen_error_ignores_what_is_seen():
    target, mask = torch.zeros(2, 2, dtype=F64), torch.tensor([[1.0, 0.0], [1.0, 1.0]], dtype=F64)
    product = torch.tensor([[[5.0, 2.0], [5.0, 5.0]]], dtype=F64)
    assert Completion(mask, target).unseen_error(product).item() == pytest.approx(2.0)
    assert Completion(mask, target).loss(product).item() == pytest.approx(12.5)


def test_starts():
    for layer in orthogonal_layers([6, 6, 4, 8], 3, 0.1, generator(0)):
        small = layer.mT @ layer if layer.shape[2] <= layer.shape[1] else layer @ layer.mT
        assert torch.allclose(small, 0.01 * torch.eye(small.shape[1], dtype=F64), atol=1e-14)
    layers = balanced_layers([6, 3, 5, 8], 2, 0.2, generator(0))
    for below, above in pairwise(layers):
        assert torch.allclose(above.mT @ above, below @ below.mT, atol=1e-14)
        assert below.norm() > 0.2
    target = low_rank_target(8, 2, 3, generator(1))["target"]
    first, inner, last = spectral_layers(target, 2, 3, 0.1)
    assert torch.allclose(last @ last.mT @ target, 0.01 * target, atol=1e-12)  # the columns span the target's
    assert torch.allclose(target @ first.mT @ first, 0.01 * target, atol=1e-12)
    assert torch.equal(inner, 0.1 * torch.eye(2, dtype=F64).expand(3, 2, 2))


def test_runs_of_different_rank_share_a_batch():
    target = low_rank_target(8, 2, 1, generator(1))["target"][0]
    problem = Factorization(target, mean=True)
    both = compressed(problem, torch.tensor([2, 4]), 3, 0.1, 5.0)
    small = compressed(problem, 2, 3, 0.1, 5.0)
    for _ in range(100):
        both.step()
        small.step()
    assert torch.allclose(both.product()[:1], small.product(), rtol=1e-10, atol=1e-13)
    assert both.layers[0][0, 2:].abs().max() == 0


def test_targets_have_their_rank_and_singular_values():
    top, spread = (low_rank_target(20, 4, 2, generator(3), pick) for pick in ("top", "spread"))
    for made in (top, spread):
        values = torch.linalg.svdvals(made["target"])
        assert torch.allclose(values[:, :4], made["sigma"], rtol=1e-12)
        assert values[:, 4:].max() < 1e-12
    full = torch.linalg.svdvals(random(2, 20, 20, seed=3))
    assert torch.allclose(top["sigma"], full[:, :4])
    assert torch.allclose(spread["sigma"], full[:, [0, 2, 5, 7]])


def test_alpha_law_against_integration():
    """x' = alpha m x, m' = x^2 from x = m = 1 until both are huge, in small Runge-Kutta steps of log x."""

    def blow_up(alpha):
        time, log_x = 0.0, 0.0  # the first integral: alpha (m^2 - 1) = x^2 - 1, so d(log x) = alpha m dt
        slope = lambda u: 1 / math.sqrt(alpha * (alpha - 1 + math.exp(2 * u)))
        h = 1e-3
        while log_x < 25:
            time += h / 6 * (slope(log_x) + 4 * slope(log_x + h / 2) + slope(log_x + h))
            log_x += h
        return time

    for alpha in (0.5, 1.0, 2.0, 5.0, 9.75):
        assert alpha_speed_up(alpha) == pytest.approx(blow_up(alpha) / blow_up(1.0), rel=1e-9)


TWO = [random(2, 4, 4)] * 2
BAD = [
    (
        lambda: Completion(torch.ones(3, 3), random(4, 4)),
        r"mask must be .* with columns = 4 and rows = 4, got \(3, 3\)",
    ),
    (lambda: Completion(torch.zeros(4, 4), random(4, 4)), "at least one entry"),
    (lambda: Sensing(random(5, 4, 4), random(6)), r"measurements must be .* m = 5, got \(6,\)"),
    (lambda: MatrixNetwork(TWO, Sensing(random(5, 4, 3), random(5)), 0.1), "do not fit"),
    (lambda: MatrixNetwork(TWO, Factorization(random(3, 3)), 0.1), "to fit the network"),
    (lambda: MatrixNetwork(TWO, Factorization(random(3, 4, 4)), 0.1), "to fit the network"),
    (lambda: MatrixNetwork(TWO, Factorization(random(4, 4)), torch.ones(3)), "one for each of 2 runs"),
    (lambda: MatrixNetwork(TWO, Factorization(random(4, 4)), 0.1, [1.0]), "one entry for each"),
    (lambda: MatrixNetwork([random(2, 4, 4)], Factorization(random(4, 4)), 0.1), "at least 2 tensors, got 1"),
    (lambda: MatrixNetwork([random(2, 4, 4), random(2, 4, 5)], Factorization(random(4, 4)), 0.1), "does not feed"),
    (lambda: compressed(Factorization(random(4, 5)), 6, 3, 0.1, 0.1), "rank must be a whole number >= 1 and <= 4"),
    (lambda: compressed(Factorization(random(4, 5)), 0, 3, 0.1, 0.1), "rank must be a whole number >= 1"),
    (lambda: compressed(Factorization(random(4, 5)), 2, 1, 0.1, 0.1), "depth must be a whole number >= 2"),
    (lambda: orthogonal_layers([4, 4], 1, 0.1, generator(0)), "at least 3 sizes"),
    (lambda: orthogonal_layers([4, 4, 4], 1, 0.0, generator(0)), "eps must be"),
    (lambda: low_rank_target(4, 5, 1, generator(0)), "rank must be a whole number"),
    (lambda: low_rank_target(4, 2, 1, generator(0), "middle"), "pick must be one of"),
    (lambda: ThinFactorization(random(4, 2), random(4, 3)), r"right must be \(columns, r\) with r = 2, got \(4, 3\)"),
]


@pytest.mark.parametrize(("call", "words"), BAD)
def test_bad_input_gives_one_clear_sentence(call, words):
    with pytest.raises(ParameterError, match=words) as caught:
        call()
    assert str(caught.value).count("\n") == 0
    assert str(caught.value).endswith(".")


def test_stop_needs_a_trainer_that_narrows():
    net = MatrixNetwork(TWO, Factorization(random(4, 4)), 0.1)
    with pytest.raises(ParameterError, match="go together"):
        descend(net.step, net.state, 5, stop=lambda: net.loss() < 1)


def test_padding_changes_nothing():
    problem = Factorization(low_rank_target(8, 2, 1, generator(1))["target"][0], mean=True)
    small = compressed(problem, 3, 4, 0.3, 2.0)
    wide = MatrixNetwork(padded(spectral_layers(problem.surrogate(), 3, 4, 0.3), 6), problem, 2.0)
    for _ in range(50):
        small.step()
        wide.step()
    assert wide.layers[1].shape == (1, 6, 6)
    assert torch.allclose(small.product(), wide.product(), rtol=1e-11, atol=1e-13)


def test_alternating_least_squares_completes_a_low_rank_matrix():
    target = low_rank_target(30, 2, 1, generator(1))["target"][0]
    mask = (torch.rand(30, 30, generator=generator(2)) < 0.5).to(F64)
    *_, last = alternating_least_squares(mask, target, 2, 60)
    assert (last - target).norm() < 1e-4 * target.norm()
    wrong = (1 - mask) * (last - target)
    assert wrong.abs().max() < 1e-3


def test_sensing_gradient_of_a_single_run_may_overwrite_the_product():
    problem = Sensing(random(7, 4, 5), random(7, seed=1))
    w = random(1, 4, 5, seed=2)
    expected = torch.einsum("m,mij->ij", problem.measure(w)[0] - problem.measurements, problem.operators)
    assert (problem.gradient(w, w)[0] - expected).abs().max() < 1e-12
