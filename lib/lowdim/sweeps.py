"""Sweeps larger than the memory, or than one machine: planned, run batch by batch, split over jobs, merged exactly.

A sweep is a function ``make(runs)`` that builds the trainer of some of its runs, given as a ``range`` of their numbers:

    make = lambda runs: ModeNetwork(starts[:, runs], sigma, rates[runs])   # an index by a range copies
    print(plan(make, runs=100_000, steps=5000))
    ends = sweep(make, 100_000, 5000, record=lambda network: {"pi": network.product}, start=4900)

Runs are always computed in the same batches, ``batch`` of them at a time from run 0 on, and a shard is some of these
batches. So merged shards equal the sweep of one process bit for bit, whatever the trainer. Two *batch sizes* may
differ in the last bits: a matrix product that serves several runs at once is summed in an order that depends on how
many there are. For this reason a shard keeps the batch size, and shards of different ones are not merged.
"""

import io
import json
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lowdim import checks as ok
from lowdim.checks import ParameterError, brief
from lowdim.descent import Trajectory, train
from lowdim.files import write_atomically
from lowdim.runtime import free_memory

SHARE = 0.5  # of the free memory that a plan uses
ALIGN = 16  # batches start at multiples of it where they can: rows of numbers then lie in memory as in one large batch
MARGIN = 1.5  # temporaries that cannot be seen from outside
FORM = 1  # of the files


class ShardError(RuntimeError):
    """Shards cannot be merged: the message says which are missing, damaged or of another sweep, and what to do."""


# ---------------------------------------------------------------- the plan


@dataclass(frozen=True)
class Plan:
    """What a sweep will take.

    Attributes:
        runs, batch, steps: the sizes; ``batch`` runs are computed at a time.
        seconds: estimated from timed steps of one batch.
        needed, allowed: memory of one batch with its records, estimated, and what it may use, in bytes.
    """

    runs: int
    batch: int
    steps: int
    seconds: float
    needed: int
    allowed: int

    @property
    def batches(self) -> int:
        return -(-self.runs // self.batch)

    def __str__(self) -> str:
        return (
            f"{self.runs} runs of {self.steps} steps: {self.batches} batch{'es' * (self.batches > 1)} "
            f"of up to {self.batch}, "
            f"about {self.seconds:.3g} s, {_megabytes(self.needed)} of {_megabytes(self.allowed)} allowed."
        )


def _megabytes(size: float) -> str:
    return f"{size / 1024**2:.3g} MB"


@ok.takes(
    make=ok.function, runs=ok.count(), steps=ok.count(), record=ok.optional(ok.function),
    memory=ok.optional(ok.count()), pilot=ok.count(), quiet=ok.flag,
)  # fmt: skip
def plan(
    make: Callable[[range], object],
    runs: int,
    steps: int,
    *,
    record: Callable | None = None,
    memory: int | None = None,
    pilot: int = 5,
    quiet: bool = False,
    **options,
) -> Plan:
    """Choose the batch from the memory, time a few steps of it, and print what the sweep will take.

    Args:
        make: numbers of runs, a ``range`` -> trainer with ``step``, ``state`` and ``run_dim``; the same each time.
        memory: bytes that a batch may use; half of what is free if not given.
        pilot: steps that are timed, after one that is not.
        record, options: as for ``sweep``; records count as memory.

    Raises:
        ParameterError: one run does not fit into the memory, or ``make`` gives another start the second time.
    """
    _check_options(options)
    small = _two_sizes(runs)
    sizes = {size: _bytes(_made(make, range(size)), steps, record, options) for size in small}
    _check_repeatable(make, range(small[0]))
    per_run = max(0.0, (sizes[small[1]] - sizes[small[0]]) / max(small[1] - small[0], 1)) or sizes[small[0]] / small[0]
    fixed = max(0.0, sizes[small[0]] - per_run * small[0])
    trainer = _made(make, range(small[0]))
    allowed = int(SHARE * free_memory(trainer.state[0].device)) if memory is None else memory
    batch = min(runs, int((allowed / MARGIN - fixed) // per_run))
    if batch < 1:
        need = int(MARGIN * (fixed + per_run)) + 1
        raise ParameterError(
            f"memory must be at least {need} bytes ({_megabytes(need)}), what one run needs, got {allowed}."
        )
    batch = batch if batch == runs or batch < ALIGN else batch - batch % ALIGN
    trainer = _made(make, range(batch))
    trainer.step()
    started = time.perf_counter()
    for _ in range(pilot):
        trainer.step()
    if trainer.state[0].is_cuda:
        torch.cuda.synchronize(trainer.state[0].device)
    seconds = (time.perf_counter() - started) / pilot * steps * runs / batch
    made = Plan(runs, batch, steps, seconds, int(MARGIN * (fixed + per_run * batch)), allowed)
    if not quiet:
        print(made)
    return made


def _two_sizes(runs: int) -> tuple[int, int]:
    """Small numbers of runs from which memory is extrapolated."""
    return max(1, min(2, runs - 1)), min(4, max(runs, 1))


def _made(make, runs: range):
    trainer = make(runs)
    if not all(hasattr(trainer, name) for name in ("step", "state", "run_dim")):
        raise ParameterError(f"make must give a trainer with step, state and run_dim, got {brief(trainer)}.")
    found = trainer.state[0].shape[trainer.run_dim]
    if found != len(runs):
        raise ParameterError(f"make must give a trainer of the {len(runs)} runs asked for, got one of {found}.")
    return trainer


def _check_repeatable(make, runs: range) -> None:
    first = _made(make, runs)
    start = [s.clone() for s in first.state]
    first.step()
    if not all(torch.equal(a, b) for a, b in zip(start, _made(make, runs).state, strict=True)):
        raise ParameterError(
            f"make must give the same start each time it is called for {runs!r}, got another one: "
            "copy what the trainer changes, and seed every run by its number."
        )


def _bytes(trainer, steps: int, record, options: dict) -> int:
    """Memory of a trainer, the two copies of its state that a descent makes, and its records."""
    seen: dict[int, int] = {}
    _reach(trainer, seen, set())
    copies = 2 * sum(s.nbytes for s in trainer.state)
    records = len(range(options.get("start", 0), steps + 1, options.get("every", 1)))
    recorded = sum(f().nbytes for f in record(trainer).values()) if record else 0
    return sum(seen.values()) + copies + 2 * records * recorded


def _reach(thing, seen: dict[int, int], visited: set[int]) -> None:
    """Storages of all tensors that can be reached from an object, by address."""
    if id(thing) in visited:
        return
    visited.add(id(thing))
    if isinstance(thing, Tensor):
        seen[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
    elif isinstance(thing, dict):
        for entry in thing.values():
            _reach(entry, seen, visited)
    elif isinstance(thing, list | tuple):
        for entry in thing:
            _reach(entry, seen, visited)
    elif getattr(thing, "__closure__", None):
        for cell in thing.__closure__:
            _reach(cell.cell_contents, seen, visited)
    elif hasattr(thing, "__dict__") and type(thing).__module__ not in ("builtins", "torch._C"):
        _reach(vars(thing), seen, visited)


# ---------------------------------------------------------------- running


@ok.takes(
    make=ok.function, runs=ok.count(), steps=ok.count(), record=ok.function, batch=ok.optional(ok.count()),
)  # fmt: skip
def sweep(
    make: Callable[[range], object], runs: int, steps: int, *, record: Callable, batch: int | None = None, **options
) -> Trajectory:
    """Run all runs in this process, batch after batch; records are kept in the host's memory.

    Args:
        make: as for ``plan``.
        record: trainer -> {name: function without arguments}; each function gives the runs on axis 0.
        batch: runs at a time; chosen and stated by ``plan`` if not given.
            The plan's batch is halved, with a message, should the memory run out nevertheless.
        options: ``every``, ``start`` and ``bound`` of ``descend``. A run that diverges becomes NaN, with its date.

    Returns:
        As of ``descend`` for all runs at once; the final states are its values ``state[0]``, ``state[1]``, ...,
        with the runs on their first axis.
    """
    _check_options(options)
    halve = batch is None
    if batch is None:
        batch = plan(make, runs, steps, record=record, **options).batch
    while True:
        try:
            return _joined([_run(make, part, steps, record, options) for part in _batches(range(runs), batch)])
        except (MemoryError, RuntimeError) as error:
            if not (halve and batch > 1 and _out_of_memory(error)):
                raise
        batch = max(1, batch // 2)
        print(f"The memory was too small after all: again from the start, {batch} runs at a time.")


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _check_options(options: dict) -> None:
    rules = {"every": ok.count(), "start": ok.count(0), "bound": ok.real(above=0)}
    for name, value in options.items():
        ok.choice("the name of an option", name, tuple(rules))
        rules[name](name, value, {})


@ok.takes(runs=ok.count(), shards=ok.count(), align=ok.count())
def bounds(runs: int, shard: int, shards: int, align: int = 1) -> range:
    """The runs of shard ``shard`` of ``shards``: whole groups of ``align`` runs, evenly; maybe none."""
    shard = ok.integer("shard", shard, at_least=0, at_most=shards - 1)
    groups = -(-runs // align)
    first, last = groups * shard // shards, groups * (shard + 1) // shards
    return range(min(first * align, runs), min(last * align, runs))


def _batches(runs: range, batch: int) -> list[range]:
    return [range(first, min(first + batch, runs.stop)) for first in range(runs.start, runs.stop, batch)]


def _run(make, part: range, steps: int, record, options: dict) -> Trajectory:
    trainer = _made(make, part)
    run = train(trainer, steps, record=record(trainer), on_divergence="mask", **options).cpu()
    states = {f"state[{i}]": s.movedim(trainer.run_dim, 0).cpu()[None] for i, s in enumerate(trainer.state)}
    return Trajectory(run.steps, run.values | states, run.diverged_at, run.stopped_at)


def _joined(parts: list[Trajectory]) -> Trajectory:
    """Trajectories of consecutive runs as one."""
    values = {name: torch.cat([part[name] for part in parts], 1) for name in parts[0].values}
    values |= {name: value[0] for name, value in values.items() if name.startswith("state[")}
    dates = (torch.cat([getattr(part, name) for part in parts]) for name in ("diverged_at", "stopped_at"))
    return Trajectory(parts[0].steps, values, *dates)


# ---------------------------------------------------------------- shards


@ok.takes(
    folder=ok.path, make=ok.function, runs=ok.count(), steps=ok.count(), shards=ok.count(), batch=ok.count(),
    record=ok.function,
)  # fmt: skip
def run_shard(
    folder: str | Path,
    make: Callable[[range], object],
    runs: int,
    steps: int,
    *,
    shard: int,
    shards: int,
    batch: int,
    record: Callable,
    parameters: dict | None = None,
    **options,
) -> Path:
    """Run one shard of a sweep and leave ``shard-I-of-N.npz`` in the folder, whole or not at all.

    Args:
        make, runs, steps, record, batch, options: as for ``sweep``, and the same in every job.
        shard, shards: this job's number, from 0, and how many there are.
        parameters: what else identifies the sweep, such as the seed; kept, and compared by ``merge``.

    Raises:
        OSError: too little room on the disk, or a folder that cannot be written.
    """
    _check_options(options)
    mine = bounds(runs, shard, shards, batch)
    sweep = {"form": FORM, "runs": runs, "steps": steps, "batch": batch, "shards": shards,
             "parameters": parameters or {}, "options": options, "torch": torch.__version__}  # fmt: skip
    arrays = {"about": np.array(json.dumps(sweep, sort_keys=True)), "runs": np.array([mine.start, mine.stop])}
    if mine:
        parts = [_run(make, part, steps, record, options) for part in _batches(mine, batch)]
        arrays |= {name: torch.cat([part[name] for part in parts], 1).numpy() for name in parts[0].values}
        for name in ("diverged_at", "stopped_at"):
            arrays[name] = torch.cat([getattr(part, name) for part in parts]).numpy()
        arrays["steps"] = parts[0].steps.numpy()
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    Path(folder).mkdir(parents=True, exist_ok=True)
    path = Path(folder) / f"shard-{shard}-of-{shards}.npz"
    write_atomically(path, buffer.getvalue())
    return path


@ok.takes(folder=ok.path)
def merge(folder: str | Path) -> Trajectory:
    """All shards of a folder as the trajectory that ``sweep`` gives, equal to it bit for bit.

    Raises:
        ShardError: no shards, some missing, one damaged, or shards of two sweeps in the folder.
    """
    found = {path: _read(path) for path in sorted(Path(folder).glob("shard-*-of-*.npz"))}
    if not found:
        raise ShardError(f"{folder} must hold the shards of a sweep, got none: run them first.")
    first, abouts = next(iter(found)), {path: json.loads(str(arrays["about"])) for path, arrays in found.items()}
    for path, about in abouts.items():
        differ = [key for key in abouts[first] if about.get(key) != abouts[first][key]]
        if differ:
            raise ShardError(
                f"{path.name} is of another sweep than {first.name} ({differ[0]} {brief(about.get(differ[0]))} instead "
                f"of {brief(abouts[first][differ[0]])}): remove one of them."
            )
    shards = abouts[first]["shards"]
    missing = [n for n in range(shards) if Path(folder) / f"shard-{n}-of-{shards}.npz" not in found]
    if missing:
        raise ShardError(f"{folder} lacks {len(missing)} of {shards} shards: run {', '.join(map(str, missing))} again.")
    parts = []
    for n in range(shards):
        arrays = found[Path(folder) / f"shard-{n}-of-{shards}.npz"]
        mine = bounds(abouts[first]["runs"], n, shards, abouts[first]["batch"])
        if arrays["runs"].tolist() != [mine.start, mine.stop]:
            raise ShardError(f"shard-{n}-of-{shards}.npz does not hold its runs: run shard {n} again.")
        if mine:
            values = {name: torch.from_numpy(array) for name, array in arrays.items() if name not in ("about", "runs")}
            ends = [values.pop(name) for name in ("steps", "diverged_at", "stopped_at")]
            parts.append(Trajectory(ends[0], values, *ends[1:]))
    return _joined(parts)


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        json.loads(str(arrays["about"])), arrays["runs"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ShardError(f"{path.name} is damaged or no shard: remove it and run it again.") from error
    return arrays
