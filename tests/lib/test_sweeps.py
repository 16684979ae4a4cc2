"""Sweeps: merged shards equal the sweep of one process bit for bit, batches fit the memory, bad shards are named."""

import numpy as np
import pytest
import torch

from lowdim import sweeps
from lowdim.checks import ParameterError
from lowdim.factorization import ModeNetwork, edge
from lowdim.networks import Factorization, MatrixNetwork
from lowdim.recovery import Completion, Sensing
from lowdim.robust import AbsoluteSensing, SubgradientNetwork
from lowdim.runtime import free_memory
from lowdim.sensing import SymmetricNetwork, SymmetricSensing
from lowdim.training import TanhPopulation

RUNS, STEPS, F64 = 53, 12, torch.float64


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=F64)


STARTS = [0.4 * draw(RUNS, 7, 5), 0.4 * draw(RUNS, 6, 7), 0.4 * draw(RUNS, 9, 6)]
SQUARE, RATES = 0.3 * draw(RUNS, 6, 3), torch.linspace(0.0001, 0.002, RUNS, dtype=F64)
DATA, LABELS = draw(RUNS, 11, 4), draw(RUNS, 11, 2)
A = draw(25, 21)


def matrices(problem):
    return lambda runs: MatrixNetwork([w[runs] for w in STARTS], problem(runs), RATES[runs])


def population(runs):
    network = TanhPopulation(DATA[runs], LABELS[runs], [4, 8, 2], RATES[runs], 1.0, torch.Generator().manual_seed(0))
    for weight, all_weights in zip(network.weights, WEIGHTS, strict=True):
        weight.copy_(all_weights[runs])
    return network


WEIGHTS = [draw(RUNS, 4, 8), draw(RUNS, 8, 2)]
TRAINERS = {
    "matrices": matrices(lambda runs: Factorization(draw(9, 5))),
    "completion": matrices(lambda runs: Completion((draw(RUNS, 9, 5) > 0)[runs], draw(9, 5))),
    "sensing": matrices(lambda runs: Sensing(draw(30, 9, 5), draw(30))),
    "modes": lambda runs: ModeNetwork(0.5 + 0.1 * draw(3, RUNS, 4)[:, runs], draw(4).abs(), RATES[runs]),
    "symmetric": lambda runs: SymmetricNetwork(SQUARE[runs], SymmetricSensing(A, draw(25)), RATES[runs]),
    "robust": lambda runs: SubgradientNetwork(
        SQUARE[runs], AbsoluteSensing(A, torch.eye(6, dtype=F64), draw(RUNS, 25)[runs]), RATES[runs], 0.9
    ),
    "populations": population,
}


def record(trainer):
    return {"loss": trainer.loss}


def bits(tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()


def same(a, b) -> bool:
    """Every bit: values, states, steps and dates."""
    return (
        a.values.keys() == b.values.keys()
        and all(bits(a[name]) == bits(b[name]) and a[name].shape == b[name].shape for name in a.values)
        and all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("steps", "diverged_at", "stopped_at"))
    )


@pytest.mark.parametrize("shards", [1, 3, 5, 9])
@pytest.mark.parametrize("name", TRAINERS)
def test_merged_shards_equal_the_whole_sweep(name, shards, tmp_path):
    one = sweeps.sweep(TRAINERS[name], RUNS, STEPS, record=record, batch=16, every=3)
    for shard in reversed(range(shards)):
        sweeps.run_shard(tmp_path, TRAINERS[name], RUNS, STEPS, shard=shard, shards=shards, batch=16, record=record,
                         every=3)  # fmt: skip
    assert same(one, sweeps.merge(tmp_path))
    assert one["loss"].shape == (5, RUNS)
    assert (one["loss"][0] != one["loss"][-1]).all()
    assert one["loss"].isfinite().all()


@pytest.mark.parametrize("name", TRAINERS)
def test_batches_equal_one_large_batch_up_to_rounding(name):
    """What is promised across batch sizes; the bits are promised for one batch size."""
    whole = sweeps.sweep(TRAINERS[name], RUNS, STEPS, record=record, batch=RUNS)
    for batch in (7, 16):
        parts = sweeps.sweep(TRAINERS[name], RUNS, STEPS, record=record, batch=batch)
        for key in whole.values:
            torch.testing.assert_close(parts[key], whole[key], rtol=1e-9, atol=1e-11)


def test_divergence_is_dated_in_a_sweep_too(tmp_path):
    rates = torch.tensor([0.9, 3.0, 0.9, 0.9, 9.0], dtype=F64) * edge(2.0, 3)
    make = lambda runs: ModeNetwork(torch.full((3, len(runs), 1), 0.7, dtype=F64), torch.tensor([2.0]), rates[runs])
    one = sweeps.sweep(make, 5, 60, record=record, batch=2)
    assert (one.diverged_at > 0).tolist() == [False, True, False, False, True]
    for shard in range(2):
        sweeps.run_shard(tmp_path, make, 5, 60, shard=shard, shards=2, batch=2, record=record)
    merged = sweeps.merge(tmp_path)
    assert torch.equal(merged.diverged_at, one.diverged_at)
    assert same(merged, one)


def test_every_run_is_in_one_shard():
    for runs, shards, align in [(1, 1, 1), (10, 3, 1), (53, 4, 16), (53, 9, 16), (5, 8, 2)]:
        parts = [sweeps.bounds(runs, shard, shards, align) for shard in range(shards)]
        assert [run for part in parts for run in part] == list(range(runs))
        assert all(part.start % align == 0 for part in parts if part)
    with pytest.raises(ParameterError, match="shard must be a whole number >= 0 and <= 2, got 3"):
        sweeps.bounds(10, 3, 3)


# ---------------------------------------------------------------- shards that do not fit


@pytest.fixture
def folder(tmp_path):
    for shard in range(3):
        ran(tmp_path, shard)
    return tmp_path


def ran(folder, shard, shards=3, batch=8, steps=2, seed=0):
    return sweeps.run_shard(folder, TRAINERS["modes"], RUNS, steps, shard=shard, shards=shards, batch=batch,
                            record=record, parameters={"seed": seed})  # fmt: skip


def test_missing_shards_are_named(folder):
    (folder / "shard-1-of-3.npz").unlink()
    with pytest.raises(sweeps.ShardError, match=r"lacks 1 of 3 shards: run 1 again\.$"):
        sweeps.merge(folder)
    with pytest.raises(sweeps.ShardError, match=r"must hold the shards of a sweep, got none: run them first\.$"):
        sweeps.merge(folder / "nowhere")


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (dict(steps=3), "steps 3 instead of 2"),
        (dict(seed=1), "parameters {'seed': 1} instead of {'seed': 0}"),
        (dict(batch=4), "batch 4 instead of 8"),
        (dict(shards=4), "shards 4 instead of 3"),
    ],
)
def test_foreign_shards_are_refused(folder, other, words):
    ran(folder, 2, **other)
    with pytest.raises(sweeps.ShardError) as caught:
        sweeps.merge(folder)
    assert words in str(caught.value)
    assert "is of another sweep than shard-0-of-3.npz" in str(caught.value)


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-9], lambda b: b"", lambda b: b"x" * 50, lambda b: b[:600] + b"?" + b[601:]]
)
def test_damaged_shards_are_named(folder, damage):
    path = folder / "shard-2-of-3.npz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(
        sweeps.ShardError, match=r"^shard-2-of-3.npz is damaged or no shard: remove it and run it again\.$"
    ):
        sweeps.merge(folder)


def test_a_shard_that_holds_pickles_is_not_opened(folder):
    np.savez(folder / "shard-0-of-3.npz", about=np.array({"a": 1}, dtype=object), runs=np.array([0, 1]))
    with pytest.raises(sweeps.ShardError, match="damaged or no shard"):
        sweeps.merge(folder)


def test_a_full_disk_leaves_the_old_shard(folder, monkeypatch):
    before = (folder / "shard-0-of-3.npz").read_bytes()
    monkeypatch.setattr("lowdim.files.FREE_MB", 10**9)
    with pytest.raises(OSError, match="too little to write shard-0-of-3.npz; nothing was changed"):
        ran(folder, 0)
    assert (folder / "shard-0-of-3.npz").read_bytes() == before
    assert not list(folder.glob(".*"))


# ---------------------------------------------------------------- the plan


@pytest.mark.parametrize("name", TRAINERS)
def test_the_plan_keeps_to_the_memory(name, capsys):
    whole = sweeps.plan(TRAINERS[name], RUNS, STEPS, record=record)
    assert whole.batch == RUNS
    assert capsys.readouterr().out.startswith(f"{RUNS} runs of {STEPS} steps: 1 batch of up to {RUNS}, about ")
    least = sweeps.plan(TRAINERS[name], 1, STEPS, record=record, quiet=True).needed
    limit = (least + whole.needed) // 2
    small = sweeps.plan(TRAINERS[name], RUNS, STEPS, record=record, memory=limit, quiet=True)
    assert 1 <= small.batch < RUNS
    assert small.needed <= limit
    assert small.batches * small.batch >= RUNS
    assert 0 < small.seconds < 60
    assert capsys.readouterr().out == ""


def test_a_sweep_larger_than_the_memory_runs_in_batches(monkeypatch, capsys):
    whole = sweeps.sweep(TRAINERS["modes"], RUNS, STEPS, record=record)
    limit = sweeps.plan(TRAINERS["modes"], RUNS, STEPS, record=record, quiet=True).needed
    monkeypatch.setattr(sweeps, "free_memory", lambda device: limit)  # a plan uses half of it
    capsys.readouterr()
    parts = sweeps.sweep(TRAINERS["modes"], RUNS, STEPS, record=record)
    assert "1 batch of" not in capsys.readouterr().out
    assert same(whole, parts)  # elementwise arithmetic: here even the bits agree across batch sizes


def test_a_batch_that_is_too_large_nevertheless_is_halved(capsys):
    def make(runs):
        if len(runs) > 20 and len(runs) < RUNS and planned:
            raise MemoryError
        return TRAINERS["modes"](runs)

    planned = []
    limit = sweeps.plan(make, RUNS, STEPS, record=record, quiet=True).needed

    def few(device):
        return limit * 1.7  # a plan uses half: 32 or 48 runs

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweeps, "free_memory", few)
        made = sweeps.plan(make, RUNS, STEPS, record=record, quiet=True)
        assert 20 < made.batch < RUNS
        patch.setattr(sweeps, "plan", lambda *_, **__: planned.append(1) or made)
        parts = sweeps.sweep(make, RUNS, STEPS, record=record)
    assert same(parts, sweeps.sweep(TRAINERS["modes"], RUNS, STEPS, record=record, batch=16))
    assert f"again from the start, {made.batch // 2} runs at a time" in capsys.readouterr().out


def test_options_are_those_of_a_sweep():
    with pytest.raises(ParameterError, match="must be one of 'every', 'start', 'bound', got 'stop'"):
        sweeps.plan(TRAINERS["modes"], RUNS, STEPS, stop=1)
    with pytest.raises(ParameterError, match="every must be a whole number >= 1, got 0"):
        sweeps.sweep(TRAINERS["modes"], RUNS, STEPS, record=record, every=0)


def test_a_run_that_does_not_fit_is_refused():
    with pytest.raises(ParameterError, match=r"memory must be at least \d+ bytes .* what one run needs, got 100\.$"):
        sweeps.plan(TRAINERS["modes"], RUNS, STEPS, memory=100)


def test_a_start_that_changes_is_found():
    shared = torch.full((2, RUNS, 1), 0.5, dtype=F64)
    for make in (
        lambda runs: ModeNetwork(shared[:, : len(runs)], torch.tensor([2.0]), 0.1),  # a view: stepped in place
        lambda runs: ModeNetwork(torch.rand(2, len(runs), 1), torch.tensor([2.0]), 0.1),
    ):
        with pytest.raises(ParameterError, match="make must give the same start each time"):
            sweeps.plan(make, RUNS, STEPS)
    with pytest.raises(ParameterError, match=r"make must give a trainer of the \d runs asked for, got one of 53"):
        sweeps.plan(lambda runs: TRAINERS["modes"](range(RUNS)), RUNS, STEPS)
    with pytest.raises(ParameterError, match="make must give a trainer with step, state and run_dim, got 3"):
        sweeps.sweep(lambda runs: 3, RUNS, STEPS, record=record, batch=5)


def test_memory_limits_of_the_process_count():
    import resource

    free = free_memory(torch.device("cpu"))
    assert 0 < free < 2**50
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    try:
        resource.setrlimit(resource.RLIMIT_AS, (mapped + 2**26, hard))
        assert free_memory(torch.device("cpu")) <= 2**26
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
