"""Populations against plain PyTorch: gradients, optimisers, orders, checkpoints, divergence."""

import pytest
import torch
from torch import nn

from lowdim.checks import ParameterError
from lowdim.data import digits
from lowdim.descent import DivergenceError
from lowdim.mlps import ACTIVATIONS, MLP, mlp_parameters
from lowdim.populations import Functional, modules, write_back
from lowdim.trainer import Trainer, cosine, side_by_side, train

F64 = torch.float64
CLOSE = dict(rtol=1e-10, atol=1e-12)
LAYER = dict(relu=nn.ReLU, tanh=nn.Tanh, sigmoid=nn.Sigmoid, softplus=nn.Softplus, identity=nn.Identity)


def draw(seed=3):
    return torch.Generator().manual_seed(seed)


def task(samples=30, features=5, classes=3, runs=None, loss="cross-entropy"):
    lead = (samples,) if runs is None else (runs, samples)
    x = torch.randn(*lead, features, generator=draw(), dtype=F64)
    if loss == "mse":
        return x, torch.randn(*lead, classes, generator=draw(4), dtype=F64)
    return x, torch.randint(classes, lead, generator=draw(4))


def mlp(runs=3, sizes=(5, 7, 6, 3), loss="cross-entropy", activation="relu", per_run=False):
    x, y = task(features=sizes[0], classes=sizes[-1], runs=runs if per_run else None, loss=loss)
    return MLP(mlp_parameters(sizes, runs, draw(), dtype=F64), x, y, loss, activation)


def sequential(population, run, activation="relu"):
    """The same network in plain PyTorch."""
    layers = []
    for l, (weight, bias) in enumerate(zip(population.weights, population.biases, strict=True)):
        layer = nn.Linear(weight.shape[2], weight.shape[1], dtype=weight.dtype)
        layer.weight.data, layer.bias.data = weight[run].clone(), bias[run].clone()
        layers += [layer] + [LAYER[activation]()] * (l < population.layers - 1)
    return nn.Sequential(*layers)


@pytest.mark.parametrize("per_run", [False, True])
@pytest.mark.parametrize("loss", ["cross-entropy", "mse"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_closed_form_gradients_are_autograds(activation, loss, per_run):
    nets = mlp(loss=loss, activation=activation, per_run=per_run)
    leaves = {name: p.clone().requires_grad_() for name, p in nets.parameters.items()}
    losses = nets.loss(parameters=leaves)
    wanted = torch.autograd.grad(losses.sum(), list(leaves.values()))
    torch.testing.assert_close(nets.backward(nets.inputs, nets.targets), losses.detach(), **CLOSE)
    for ours, theirs in zip(nets.gradients.values(), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)
    alone = sequential(nets, 1, activation)(nets.inputs[1] if per_run else nets.inputs)
    torch.testing.assert_close(nets.outputs()[1], alone.detach(), **CLOSE)


OPTIONS = {
    "gd": dict(eta=0.3),
    "sgd": dict(eta=[0.1, 0.2, 0.3], batch=7, decay=0.01),
    "momentum": dict(eta=[0.1, 0.05, 0.2], batch=10, momentum=0.8, clip=0.5),
    "adam": dict(eta=0.01, batch=8, decay=0.02, schedule=cosine(20, 3)),
    "adamw": dict(eta=[0.01, 0.02, 0.03], batch=9, decay={"weight.*": 0.1}),
}


def plain(trainer, model, run, steps, x, y):
    """Plain PyTorch on the trainer's order of samples."""
    eta = trainer.eta[run].item()
    groups = [dict(params=[p], weight_decay=trainer.decay_of(f"{'weight' if p.dim() > 1 else 'bias'}.0"))
              for p in model.parameters()]  # fmt: skip
    kind, b = trainer.optimiser, trainer.betas
    optimiser = {
        "gd": lambda: torch.optim.SGD(groups, lr=eta),
        "sgd": lambda: torch.optim.SGD(groups, lr=eta),
        "momentum": lambda: torch.optim.SGD(groups, lr=eta, momentum=trainer.momentum),
        "adam": lambda: torch.optim.Adam(groups, lr=eta, betas=b),
        "adamw": lambda: torch.optim.AdamW(groups, lr=eta, betas=b),
    }[kind]()
    for t in range(steps):
        picks = slice(None) if trainer.batch is None else trainer.picks(t)[run]
        for group in optimiser.param_groups:
            group["lr"] = eta * (trainer.schedule(t) if trainer.schedule else 1)
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x[picks]), y[picks]).backward()
        if trainer.clip:
            nn.utils.clip_grad_norm_(model.parameters(), trainer.clip)
        optimiser.step()
    return model


@pytest.mark.parametrize("per_run", [False, True])
@pytest.mark.parametrize("optimiser", OPTIONS)
def test_every_optimiser_is_pytorchs(optimiser, per_run):
    nets = mlp(per_run=per_run)
    twins = [sequential(nets, run) for run in range(3)]
    trainer = Trainer(nets, optimiser=optimiser, generator=draw(5), **OPTIONS[optimiser])
    trainer.run(15)
    for run, twin in enumerate(twins):
        data = (nets.inputs[run], nets.targets[run]) if per_run else (nets.inputs, nets.targets)
        plain(trainer, twin, run, 15, *data)
        ours = dict(zip(twin.state_dict(), [p[run] for p in nets.state], strict=True))
        for name, p in twin.state_dict().items():
            torch.testing.assert_close(ours[name], p, **CLOSE)


def test_modules_train_as_the_closed_form_does():
    nets = mlp(activation="tanh")
    models = [sequential(nets, run, "tanh") for run in range(3)]
    others = modules(models, nets.inputs, nets.targets)
    for population in (nets, others):
        train(population, 12, [0.1, 0.2, 0.3], "momentum", batch=6, generator=draw())
    for ours, theirs in zip(nets.state, others.state, strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)
    write_back(others, models)
    torch.testing.assert_close(models[2](nets.inputs), nets.outputs()[2], **CLOSE)


def test_any_function_and_loss_with_own_data():
    x = torch.randn(2, 12, 4, generator=draw(), dtype=F64)
    line = lambda p, x: x @ (p["u"] * p["u"] - p["v"] * p["v"])
    start = dict(u=torch.full((2, 4), 0.3, dtype=F64), v=torch.full((2, 4), 0.2, dtype=F64))
    square = lambda out, y: (out - y).square().mean()
    nets = Functional(line, start, x, x[..., 0], square, per_run=True)
    train(nets, 400, 0.05)
    first = (nets.parameters["u"] ** 2 - nets.parameters["v"] ** 2)[:, 0]
    torch.testing.assert_close(first, torch.ones(2, dtype=F64), rtol=0, atol=1e-3)


def test_convolutions_with_dropout_off_and_bfloat16():
    model = lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.GroupNorm(1, 2), nn.GELU(), nn.Flatten(), nn.Linear(32, 3))
    x, y = torch.randn(20, 1, 6, 6, generator=draw()), torch.randint(3, (20,), generator=draw())
    nets = modules([model(), model()], x, y)
    run = train(nets, 40, 0.01, "adam", batch=10, generator=draw(), record={"loss": nets.loss}, every=40)
    assert (run["loss"][1] < 0.5 * run["loss"][0]).all()
    assert run["batch loss"].shape == (40, 2)
    half = modules([model(), model()], x, y, bf16=True)
    train(half, 20, 0.01, "adam")
    assert half.state[0].dtype == torch.float32
    assert half.outputs().isfinite().all()


@pytest.mark.parametrize("optimiser", OPTIONS)
def test_a_trainer_goes_on_from_its_file_as_if_nothing_had_happened(optimiser, tmp_path):
    make = lambda: Trainer(mlp(), optimiser=optimiser, generator=draw(9), **OPTIONS[optimiser])
    whole, first, second = make(), make(), make()
    whole.run(23)
    first.run(11)
    first.save(tmp_path / "state.safetensors")
    second.seed = 0
    second.load(tmp_path / "state.safetensors")
    second.run(12)
    assert torch.equal(whole.population.flat, second.population.flat)
    assert whole.state_dict().keys() == second.state_dict().keys()


def test_a_state_that_does_not_fit_changes_nothing(tmp_path):
    trainer, other = Trainer(mlp(), 0.1), Trainer(mlp(sizes=(5, 4, 3)), 0.1, "adam")
    before = trainer.population.flat.clone()
    with pytest.raises(ParameterError, match="state must hold the tensors of this trainer"):
        trainer.load_state_dict(other.state_dict())
    with pytest.raises(ParameterError, match=r"state must have parameter weight.0 \(3, 7, 5\)"):
        trainer.load_state_dict(Trainer(mlp(sizes=(5, 4, 6, 3)), 0.1).state_dict())
    with pytest.raises(ParameterError, match="path must be a file of Trainer.save"):
        trainer.load(tmp_path / "none")
    assert torch.equal(before, trainer.population.flat)


def test_orders_are_those_of_an_epoch_and_of_the_seed_alone():
    trainer = Trainer(mlp(), 0.1, batch=10, generator=draw())
    epoch = torch.cat([trainer.picks(t) for t in (3, 4, 5)], 1)
    assert torch.equal(epoch.sort(1).values, torch.arange(30).expand(3, 30))
    assert not torch.equal(epoch[0], epoch[1])
    assert torch.equal(trainer.picks(4), Trainer(mlp(), 0.1, batch=10, generator=draw()).picks(4))
    fewer = Trainer(mlp(runs=2), 0.1, batch=10, generator=draw())
    assert torch.equal(fewer.picks(4), trainer.picks(4)[:2])  # a run's order does not depend on those after it


def test_runs_that_diverge_stop_and_the_others_go_on():
    eta = [0.01, 1e6, 0.02]
    nets, calm = mlp(loss="mse"), mlp(loss="mse")
    run = train(nets, 150, eta)
    train(calm, 150, [0.01, 0.0, 0.02])
    assert run.diverged_at.tolist()[::2] == [-1, -1]
    assert 1 <= int(run.diverged_at[1]) < 10
    assert nets.parameters["weight.0"][1].isnan().all()
    for keep in (0, 2):
        assert torch.equal(nets.parameters["weight.0"][keep], calm.parameters["weight.0"][keep])
    with pytest.raises(DivergenceError, match=r"run 1 of 3 \(eta 1e\+06\) diverged at step"):
        train(mlp(loss="mse"), 150, eta, on_divergence="raise", describe=lambda run: f"eta {eta[run]:g}")


def test_groups_of_different_shapes_side_by_side():
    shapes = [(5, 7, 3), (5, 4, 4, 3)]
    make = lambda: [Trainer(mlp(sizes=s), 0.1, batch=b, generator=draw()) for s, b in zip(shapes, (5, 7), strict=True)]
    together, alone = make(), make()
    runs = side_by_side(together, 9, record=[{"loss": t.population.loss} for t in together], every=3)
    for one, other, run in zip(together, alone, runs, strict=True):
        other.run(9)
        assert torch.equal(one.population.flat, other.population.flat)
        assert run.steps.tolist() == [0, 3, 6, 9]
        assert run["loss"].shape == (4, 3)


def test_decay_of_groups_and_accuracy():
    nets = mlp()
    before = {name: p.clone() for name, p in nets.parameters.items()}
    nets.flat_gradients.zero_()
    trainer = Trainer(nets, 0.1, "adamw", decay={"weight.0": 0.5})
    trainer.taken = 1
    trainer._move(1.0)
    torch.testing.assert_close(nets.parameters["weight.0"], 0.95 * before["weight.0"])
    assert torch.equal(nets.parameters["weight.1"], before["weight.1"])
    guess = nets.outputs().argmax(-1)
    torch.testing.assert_close(nets.accuracy(), (guess == nets.targets).double().mean(1))


def test_every_run_can_have_its_own_weight_decay():
    values = torch.tensor([0.0, 1e-2, 0.3])
    together = mlp(runs=3)
    Trainer(together, 0.1, "momentum", decay={"weight.*": values}).run(7)
    for run, value in enumerate(values.tolist()):
        alone = mlp(runs=3)
        Trainer(alone, 0.1, "momentum", decay={"weight.*": value}).run(7)
        for ours, theirs in zip(together.state, alone.state, strict=True):
            torch.testing.assert_close(ours[run], theirs[run], **CLOSE)
    with pytest.raises(ParameterError, match="must be one number or one for each of 3 runs, got 2"):
        Trainer(together, 0.1, decay={"weight.0": [0.1, 0.2]})


def test_sixteen_networks_on_the_digits_are_sixteen_plain_runs():
    x, y = (torch.as_tensor(part) for part in digits())
    nets = MLP(mlp_parameters([64, 64, 64, 10], 16, draw(), dtype=F64), x, y)
    twins = [sequential(nets, run) for run in range(16)]
    trainer = Trainer(nets, 0.1, batch=100, generator=draw(5))
    trainer.run(25)  # into the second epoch
    for run, twin in enumerate(twins):
        plain(trainer, twin, run, 25, x, y)
        for ours, theirs in zip(nets.state, twin.parameters(), strict=True):
            torch.testing.assert_close(ours[run], theirs.detach(), **CLOSE)
