"""Diagonal and two-layer networks: every step against autograd, Gram matrices against Jacobians, stability by force."""

import pytest
import torch

from lowdim.checks import ParameterError
from lowdim.descent import train
from lowdim.diagonal import DiagonalNetwork, ReluNetwork, gram_measures, sample_order, stability_ratio
from lowdim.runtime import generator

F64 = torch.float64
N, D, M, RUNS = 7, 5, 4, 6
ETA = torch.linspace(0.02, 0.08, RUNS, dtype=F64)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=F64)


def made(model, groups=1, eta=ETA, order=None, dtype=F64, **options):
    inputs, targets = random(groups, N, D, seed=1), random(groups, N, seed=2)
    if model is DiagonalNetwork:
        parameters = [random(RUNS, D, seed=3), random(RUNS, D, seed=4)]
    else:
        parameters = [random(RUNS, M, seed=3), random(RUNS, M, D, seed=4)]
    network = model(*(p.to(dtype) for p in parameters), inputs, targets, eta, order=order, **options)
    return network, parameters, inputs, targets


def output(model, parameters, x):
    """f(x) of one run, plainly."""
    first, second = parameters
    return x @ (first * second) if model is DiagonalNetwork else (x @ second.T).clamp(min=0) @ first


def by_hand(model, parameters, x, y, eta, clip):
    """One step on a batch, by autograd."""
    leaves = [p.clone().requires_grad_() for p in parameters]
    loss = 0.5 * (output(model, leaves, x) - y).square().mean()
    grads = torch.autograd.grad(loss, leaves)
    norm = torch.cat([g.flatten() for g in grads]).norm()
    scale = eta * (1.0 if clip is None else min(1.0, clip / max(float(norm), 1e-300)))
    return [p - scale * g for p, g in zip(parameters, grads, strict=True)]


def now(model, network):
    return (network.a, network.b) if model is DiagonalNetwork else (network.a, network.w)


def same(first, second, tolerance=1e-10):
    torch.testing.assert_close(first, second, rtol=tolerance, atol=tolerance)


models = pytest.mark.parametrize("model", [DiagonalNetwork, ReluNetwork])


@models
@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("clip", [None, 1.5, 1e-2])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("batch", [1, 3, None, [1, 2, 3, 3, 1, 2]])
def test_steps_are_autograds(model, native, clip, groups, batch):
    most = 3 if isinstance(batch, list) else batch
    order = None if batch is None else sample_order(N, 4, most, generator(5))
    options = dict(batch=batch) if isinstance(batch, list) else {}
    network, parameters, inputs, targets = made(model, groups, order=order, clip=clip, **options)
    if not native:  # the arithmetic of a GPU, here
        network._prepare(native=False)
    runs = [[p[r] for p in parameters] for r in range(RUNS)]
    for t in range(6):  # the order starts again after four
        network.step()
        for r in range(RUNS):
            g = r // (RUNS // groups)
            seen = torch.arange(N) if order is None else order[t % 4][: batch[r] if isinstance(batch, list) else None]
            runs[r] = by_hand(model, runs[r], inputs[g, seen], targets[g, seen], float(ETA[r]), clip)
    for i, tensor in enumerate(now(model, network)):
        same(tensor, torch.stack([run[i] for run in runs]))
    for r in range(RUNS):
        g = r // (RUNS // groups)
        f = output(model, runs[r], inputs[g])
        same(network.loss()[r], 0.5 * (f - targets[g]).square().mean())
        same(network.predict(inputs)[r], f)


@models
@pytest.mark.parametrize("groups", [1, 3])
def test_gram_matrix_is_that_of_the_jacobian(model, groups):
    network, parameters, inputs, targets = made(model, groups)
    gram, trace = network.gram(), network.trace()
    for r in range(RUNS):
        own = tuple(p[r] for p in parameters)
        jacobian = torch.autograd.functional.jacobian(lambda *p: output(model, p, inputs[r // (RUNS // groups)]), own)  # noqa: B023
        jacobian = torch.cat([j.flatten(1) for j in jacobian], 1)
        same(gram[r], jacobian @ jacobian.T / N)
        fisher = jacobian.T @ jacobian / N
        found = {name: value[r] for name, value in gram_measures(gram).items()}
        same(found["trace"], fisher.trace())
        same(trace[r], fisher.trace())
        same(network.squares()[r], jacobian.square().sum(1))
        residual = network.predict(network.inputs)[r] - targets[r // (RUNS // groups)]
        same(network.gradient_norms()[r], (residual.unsqueeze(1) * jacobian).norm(dim=1))
        same(found["frobenius"], fisher.norm())
        same(found["top"], torch.linalg.eigvalsh(fisher)[-1])
        same(found["fourth"], jacobian.square().sum(1).square().mean())


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_stability_ratio_is_that_of_the_second_moment_map(batch):
    """<I, T(I)> for batches drawn with replacement, by the average over all pairs of samples."""
    jacobian, eta = random(4, 3), 0.3
    fisher, outer = jacobian.T @ jacobian / 4, jacobian.unsqueeze(2) * jacobian.unsqueeze(1)
    pairs = torch.stack([(outer[i] @ outer[k]).trace() for i in range(4) for k in range(4)]).mean()
    equal = torch.stack([(outer[i] @ outer[i]).trace() for i in range(4)]).mean()
    second = (1 - 1 / batch) * pairs + equal / batch  # E Tr G_B^2
    moved = 3 - 2 * eta * fisher.trace() + eta**2 * second
    ratio = stability_ratio(jacobian @ jacobian.T / 4, eta, batch)
    same(moved - 3, 2 * eta * fisher.trace() * (ratio - 1))


def test_second_moments_grow_where_the_ratio_is_above_one():
    """The bound is necessary: beyond it the exact second-moment map of SGD, B = 1, has a spectral radius above 1."""
    jacobian = random(6, 3)
    edge = 1 / float(stability_ratio(jacobian @ jacobian.T / 6, 1.0, 1))
    assert _second_moment(jacobian, 1.001 * edge) > 1.0  # necessary: no step beyond the edge is stable
    assert _second_moment(jacobian, 0.3 * edge) < 1.0


def _second_moment(jacobian, eta):
    """Spectral radius of T for B = 1, as a matrix on vec(M)."""
    p = jacobian.shape[1]
    steps = [torch.eye(p, dtype=F64) - eta * g.outer(g) for g in jacobian]
    return torch.linalg.eigvals(sum(torch.kron(s, s) for s in steps) / len(steps)).abs().max()


@models
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("batch", [1, 2, None])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_many_steps_at_once_are_as_many_single_steps(model, groups, batch, clip):
    order = None if batch is None else sample_order(N, 50, batch, generator(5))
    single, *_ = made(model, groups, order=order, clip=clip)
    for _ in range(117):  # blocks of 32 steps, cut where the order of 50 starts again
        single.step()
    many, *_ = made(model, groups, order=order, clip=clip)
    for count in (3, 100, 14):
        many.walk(count)
    for first, second in zip(single.state, many.state, strict=True):
        same(first, second)


@models
def test_groups_are_runs_on_their_own(model):
    order = sample_order(N, 50, 1, generator(5))
    together, parameters, inputs, targets = made(model, 3, order=order, clip=1.0)
    train(together, 50)
    for r in range(RUNS):
        alone = model(
            *(p[r : r + 1] for p in parameters), inputs[r // 2], targets[r // 2], ETA[r], order=order, clip=1.0
        )
        train(alone, 50)
        for i, tensor in enumerate(now(model, together)):
            same(tensor[r : r + 1], now(model, alone)[i])


@models
@pytest.mark.parametrize("groups", [1, 2, 3])
@pytest.mark.parametrize("batch", [1, 2, None])
def test_runs_that_leave_end_as_they_were_and_others_go_on(model, groups, batch):
    order = None if batch is None else sample_order(N, 40, batch, generator(5))
    plain, *_ = made(model, groups, order=order, clip=1.0)
    train(plain, 20)
    ends = [tensor.clone() for tensor in now(model, plain)]
    train(plain, 20)
    other, *_ = made(model, groups, order=order, clip=1.0)
    first, second = ETA[1], ETA[4]
    stop = lambda: (other.eta == first) | (other.eta == second)
    path = train(other, 40, stop=stop, narrow=other.narrow, check=20, record={"loss": other.loss})
    assert path.stopped_at.tolist() == [-1, 20, -1, -1, 20, -1]
    for i, tensor in enumerate(now(model, other)):
        for r in range(RUNS):
            same(tensor[r], ends[i][r] if r in (1, 4) else now(model, plain)[i][r])


@models
@pytest.mark.parametrize("groups", [1, 3])
def test_all_runs_may_leave(model, groups):
    network, *_ = made(model, groups, order=sample_order(N, 40, 1, generator(5)))
    path = train(network, 40, stop=lambda: network.loss() < 1e9, narrow=network.narrow, check=5)
    assert path.stopped_at.tolist() == [5] * RUNS
    network.step()
    assert network.loss().shape == (RUNS,)


@models
def test_a_run_that_diverges_is_dated_and_leaves_the_others_alone(model):
    order = sample_order(N, 300, 1, generator(5))
    eta = ETA.clone()
    eta[0] = 30.0
    network, *_ = made(model, eta=eta, order=order)
    path = train(network, 150, on_divergence="mask")
    good, *_ = made(model, order=order)
    train(good, 150)
    assert 0 < int(path.diverged_at[0]) < 100
    assert path.diverged_at[1:].tolist() == [-1] * (RUNS - 1)
    for i, tensor in enumerate(now(model, network)):
        assert tensor[0].isnan().all()
        same(tensor[1:], now(model, good)[i][1:])
    assert network.gram()[0].isnan().any()
    assert gram_measures(network.gram())["top"][0].isnan()


@models
def test_single_precision_follows_double(model):
    order = sample_order(N, 100, 1, generator(5))
    double, *_ = made(model, order=order, clip=1.0)
    single, *_ = made(model, order=order, clip=1.0, dtype=torch.float32)
    train(double, 100)
    train(single, 100)
    torch.testing.assert_close(single.predict(single.inputs), double.predict(double.inputs), rtol=1e-4, atol=1e-4)


def test_balance_and_path_norm():
    network, (a, b), *_ = made(DiagonalNetwork)
    same(network.balance(), (a.square() + b.square()).sum(1) / (2 * (a * b).abs().sum(1)))
    same(network.beta(), a * b)
    relu, (a, w), *_ = made(ReluNetwork)
    same(relu.path_norm(), (a.abs() * w.norm(dim=2)).sum(1))


def test_no_step_allocates_what_grows_with_the_data():
    order = sample_order(N, 10, 1, generator(5))
    network, *_ = made(DiagonalNetwork, order=order, clip=1.0)
    places = [tensor.data_ptr() for tensor in network.state]
    train(network, 10)
    assert [tensor.data_ptr() for tensor in network.state] == places


def test_what_is_not_allowed():
    with pytest.raises(ParameterError, match="batch must be a whole number >= 1 and <= 7, got 8"):
        sample_order(7, 3, 8, generator(0))
    with pytest.raises(
        ParameterError, match="order must hold whole numbers from 0 to 6, got Tensor of shape .1, 1., 7 to 7"
    ):
        made(DiagonalNetwork, order=torch.tensor([[7]]))
    with pytest.raises(ParameterError, match="batch must be 1"):
        made(DiagonalNetwork, order=sample_order(N, 3, 1, generator(0)), batch=2)
    with pytest.raises(ParameterError, match="batch .its largest. must be a whole number >= 1 and <= 3, got 4"):
        made(DiagonalNetwork, order=sample_order(N, 3, 3, generator(0)), batch=4)
    with pytest.raises(ParameterError, match="groups that divides 6 runs"):
        made(ReluNetwork, groups=4)
