"""The training loop: records, divergence, masks, and runs that do not feel each other."""

import pytest
import torch

from lowdim.checks import ParameterError
from lowdim.descent import CHUNK, DivergenceError, descend, train
from lowdim.factorization import (
    Factorization,
    MatrixNetwork,
    ModeNetwork,
    identity_layers,
    mode_layers,
    spectrum_target,
)
from lowdim.networks import PackedNetwork
from lowdim.recovery import Completion, Sensing, ThinFactorization, compressed
from lowdim.robust import AbsoluteSensing, SubgradientNetwork
from lowdim.sensing import SymmetricNetwork, SymmetricSensing, asymmetric

F64 = torch.float64


def counter(runs=2):
    """A state that adds one at each step."""
    state = torch.zeros(runs, dtype=F64)
    return state, lambda: state.add_(1)


@pytest.mark.parametrize(
    ("steps", "every", "start"), [(10, 1, 0), (10, 3, 0), (250, 7, 5), (10, 1, 10), (5, 9, 0), (0, 1, 0)]
)
def test_records_are_taken_where_they_say(steps, every, start):
    state, step = counter()
    run = descend(step, [state], steps, record={"x": lambda: state}, every=every, start=start)
    wanted = list(range(start, steps + 1, every))
    assert run.steps.tolist() == wanted
    assert run["x"][:, 0].tolist() == wanted
    assert state[0] == steps


def growing(factors):
    state = torch.ones(len(factors), 1, dtype=F64)
    rate = torch.tensor(factors, dtype=F64)[:, None]
    return state, lambda: state.mul_(rate)


@pytest.mark.parametrize("when", [3, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK - 5])
def test_divergence_is_dated_to_the_step(when):
    state, step = growing([1.0, 10 ** (8 / (when - 0.5)), 0.5])
    with pytest.raises(
        DivergenceError, match=rf"run 1 of 3 \(eta = 2\) diverged at step {when}: its state passed 1e\+08"
    ) as caught:
        descend(step, [state], 5 * CHUNK, describe=lambda run: f"eta = {2 * run}")
    assert (caught.value.run, caught.value.step) == (1, when)


def test_the_first_run_to_diverge_is_named():
    state, step = growing([1.5, 3.0, 1.0])
    with pytest.raises(DivergenceError) as caught:
        descend(step, [state], 60)
    assert caught.value.run == 1


def test_masked_runs_become_nan_and_the_others_go_on():
    state, step = growing([1.0, 3.0, 0.9])
    run = descend(step, [state], 300, on_divergence="mask")
    assert run.diverged_at.tolist()[0] == -1
    assert run.diverged_at.tolist()[2] == -1
    assert 16 <= run.diverged_at[1] <= 18
    assert state[1].isnan().all()
    assert state[0] == 1.0
    assert state[2] == pytest.approx(0.9**300)


def test_nan_counts_as_divergence():
    state = torch.zeros(2, dtype=F64)
    with pytest.raises(DivergenceError):
        descend(lambda: state.copy_(torch.tensor([0.0, float("nan")])), [state], 5)


def test_a_batch_equals_its_runs_one_by_one(random):
    rates = torch.tensor([0.02, 0.03, 0.035], dtype=F64)
    together = ModeNetwork(mode_layers(3, 3, 2, 0.2), torch.tensor([10.0, 4.0]), rates)
    train(together, 700)
    for k, rate in enumerate(rates):
        alone = ModeNetwork(mode_layers(3, 1, 2, 0.2), torch.tensor([10.0, 4.0]), rate)
        train(alone, 700)
        assert torch.equal(alone.product()[0], together.product()[k])
    target = Factorization(spectrum_target([10.0, 4.0], 3))
    matrices = MatrixNetwork(identity_layers(3, 3, 3, 0.2), target, rates)
    train(matrices, 700)
    torch.testing.assert_close(
        matrices.product().diagonal(dim1=-2, dim2=-1)[:, :2], together.product(), rtol=1e-10, atol=1e-10
    )


def test_progress_bar_changes_nothing(capsys):
    state, step = counter()
    descend(step, [state], 250, progress=True)
    assert state[0] == 250


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"n_steps": -1}, "n_steps must be a whole number >= 0"),
        ({"n_steps": 5, "every": 0}, "every must be a whole number >= 1"),
        ({"n_steps": 5, "on_divergence": "ignore"}, "on_divergence must be one of 'raise', 'mask'"),
    ],
)
def test_bad_input_is_one_clear_sentence(arguments, words):
    state, step = counter()
    with pytest.raises(ParameterError, match=words):
        descend(step, [state], **arguments)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_graph_gives_the_same_run():
    here = ModeNetwork(mode_layers(3, 4, 2, 0.2), torch.tensor([10.0, 4.0]), 0.03)
    there = ModeNetwork(mode_layers(3, 4, 2, 0.2).cuda(), torch.tensor([10.0, 4.0]), 0.03)
    train(here, 333)
    train(there, 333)
    torch.testing.assert_close(there.product().cpu(), here.product(), rtol=1e-9, atol=1e-9)


def trainer(kind, place):
    """Small trainers of every kind, four runs each, with the same start on any device."""
    random = torch.Generator().manual_seed(3)
    draw = lambda *shape: torch.randn(*shape, generator=random, dtype=F64).to(place)
    target, layers = draw(6, 6), [0.4 * draw(4, 6, 6) for _ in range(3)]
    x, rates = 0.3 * draw(4, 6, 2), torch.tensor([0.01, 0.02, 0.03, 0.04], dtype=F64)
    svecs, operators = draw(40, 21) / 6, draw(60, 6, 6) / 8
    signal, left = draw(6, 2) / 3, draw(6, 2)
    mask = (draw(6, 6) > 0).double()
    seen = Sensing(operators, torch.tensordot(operators, target))
    symmetric = SymmetricSensing(svecs, draw(4, 40))
    robust = AbsoluteSensing(svecs, signal @ signal.mT, draw(4, 40))
    return {
        "dense": lambda: MatrixNetwork(layers, Factorization(target), rates),
        "packed": lambda: PackedNetwork(layers, Factorization(target), rates, [rates, 1.0, 1.0]),
        "completion": lambda: MatrixNetwork(layers, Completion(mask, target), rates),
        "sensing": lambda: MatrixNetwork(layers, seen, rates / 2),
        "compressed": lambda: compressed(ThinFactorization(left, left), 3, 3, 0.1, 0.5, 1 + rates),
        "symmetric": lambda: SymmetricNetwork(x, symmetric, rates),
        "two factors": lambda: asymmetric(x, x / 3, Factorization(target), rates),
        "sub-gradients": lambda: SubgradientNetwork(x, robust, rates, 0.99),
    }[kind]()


KINDS = ("dense", "packed", "completion", "sensing", "compressed", "symmetric", "two factors", "sub-gradients")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", KINDS)
def test_every_trainer_is_the_same_on_a_gpu(kind):
    runs = []
    for place in ("cpu", "cuda"):
        network = trainer(kind, place)
        runs.append(train(network, 230, record={"loss": network.loss}, every=10).cpu())
    here, there = runs
    assert there["loss"].isfinite().all()
    torch.testing.assert_close(there["loss"], here["loss"], rtol=1e-9, atol=1e-12)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_runs_stop_and_diverge_alike_on_a_gpu():
    runs = []
    for place in ("cpu", "cuda"):
        target = torch.diag(torch.tensor([2.0, 1.0, 0.5], dtype=F64)).to(place)
        layers = [w.to(place) for w in identity_layers(3, 4, 3, 0.5, "balanced")]
        rates = torch.tensor([0.02, 0.05, 5.0, 0.1], dtype=F64)
        network = MatrixNetwork(layers, Factorization(target), rates)
        stop = dict(stop=lambda network=network: network.loss() < 1e-8, narrow=network.narrow, check=20)
        path = train(network, 900, record={"loss": network.loss}, every=50, on_divergence="mask", **stop).cpu()
        runs.append((path, [w.cpu() for w in layers]))
    (here, weights), (there, moved) = runs
    assert here.diverged_at.tolist() == there.diverged_at.tolist()
    assert here.stopped_at.tolist() == there.stopped_at.tolist()
    assert int((here.stopped_at > 0).sum()) >= 2
    assert int(here.diverged_at[2]) > 0
    torch.testing.assert_close(there["loss"], here["loss"], rtol=1e-9, atol=1e-12, equal_nan=True)
    torch.testing.assert_close(moved, weights, rtol=1e-9, atol=1e-12, equal_nan=True)
