"""The one training loop: an in-place step, batched over runs, recorded on the device.

A trainer of this library is a *state* (tensors with one axis of runs) and a *step* that updates it in place.
``descend`` drives it: it records what is asked for into buffers allocated once, finds runs that diverge, and says
which, when and with what step size. On a GPU the step is captured once as a CUDA graph and replayed.
"""

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lowdim import checks as ok
from lowdim.checks import ParameterError, brief, choice, integer

CHUNK = 100  # steps between two looks at whether a run has diverged


class DivergenceError(ArithmeticError):
    """A run left every bound. ``run`` and ``step`` say which and when."""

    def __init__(self, message: str, run: int, step: int):
        super().__init__(message)
        self.run, self.step = run, step


@dataclass(frozen=True)
class Trajectory:
    """What a descent recorded.

    Attributes:
        steps: ``(records,)`` how many steps had been taken at each record; 0 is the initial state.
        values: name -> ``(records, ...)``, whatever the recorded function returned, stacked.
        diverged_at: ``(runs,)`` the first step at which a run was out of bounds, -1 for runs that stayed.
        stopped_at: ``(runs,)`` the step after which ``stop`` held for a run, -1 for runs that used all their steps.
            From there on its recorded values repeat.
    """

    steps: Tensor
    values: dict[str, Tensor]
    diverged_at: Tensor
    stopped_at: Tensor

    def __getitem__(self, name: str) -> Tensor:
        return self.values[name]

    def cpu(self) -> "Trajectory":
        """The same record in the host's memory, for plotting."""
        values = {name: value.cpu() for name, value in self.values.items()}
        return Trajectory(self.steps.cpu(), values, self.diverged_at.cpu(), self.stopped_at.cpu())


@ok.takes(
    step=ok.function,
    state=ok.tensors(finite=False),
    n_steps=ok.count(0),
    record=ok.optional(ok.mapping),
    every=ok.count(1),
    start=ok.count(0),
    run_dim=ok.count(0),
    bound=ok.real(above=0),
    on_divergence=ok.one_of("raise", "mask"),
    describe=ok.function,
    progress=ok.flag,
    stop=ok.optional(ok.function),
    narrow=ok.optional(ok.function),
    check=ok.count(1),
    walk=ok.optional(ok.function),
)
def descend(
    step: Callable[[], None],
    state: Sequence[Tensor],
    n_steps: int,
    *,
    record: Mapping[str, Callable[[], Tensor]] | None = None,
    every: int = 1,
    start: int = 0,
    run_dim: int = 0,
    bound: float = 1e8,
    on_divergence: str = "raise",
    describe: Callable[[int], str] = lambda run: "",
    progress: bool = False,
    stop: Callable[[], Tensor] | None = None,
    narrow: Callable[[Tensor | None], Sequence[Tensor]] | None = None,
    check: int = CHUNK,
    walk: Callable[[int], None] | None = None,
) -> Trajectory:
    """Take ``n_steps`` steps and record on the way.

    Args:
        step: updates the tensors of ``state`` in place; called once per iteration.
        state: the tensors that the step changes; all have the runs on axis ``run_dim``.
        n_steps: number of iterations.
        record: name -> function without arguments, evaluated at steps ``start, start + every, ...`` up to ``n_steps``.
        every: iterations between two records. Pick an odd number if a period of two may occur.
        start: first step recorded.
        run_dim: axis of the runs in every tensor of ``state``.
        bound: a run diverges when an entry of its state is larger in size, or is not finite.
        on_divergence: ``"raise"`` stops with a DivergenceError; ``"mask"`` fills that run with NaN and goes on.
        describe: run index -> words for the message, such as its step size.
        progress: show a progress bar (needs tqdm).
        stop: gives ``(runs,)`` truth values for the runs still computed; where true, a run is finished. Finished runs
            keep their state and leave the computation.
        narrow: a trainer's ``narrow``: it goes on with some of the present runs and gives its new state. With ``stop``,
            recorded functions have the runs on axis 0 and read everything from the trainer.
        check: steps between two evaluations of ``stop``.
        walk: takes a number of steps at once, if the trainer does that faster than by ``step``; not used on a GPU.

    Raises:
        DivergenceError: a run diverged and ``on_divergence="raise"``; the message has run, step and its description.
        ParameterError: a count that is negative, an unknown ``on_divergence``, or ``stop`` without ``narrow``.
    """
    if (stop is None) != (narrow is None):
        raise ParameterError(
            "stop and narrow must go together, since a finished run can leave only a trainer that can narrow, "
            f"got {brief(stop)} and {brief(narrow)}."
        )
    n_steps, every = integer("n_steps", n_steps, at_least=0), integer("every", every, at_least=1)
    start = integer("start", start, at_least=0)
    choice("on_divergence", on_divergence, ("raise", "mask"))
    check = integer("check", check, at_least=1) if stop else CHUNK
    advance = _captured(step, state) if state[0].is_cuda else step
    walk = None if state[0].is_cuda else walk
    runs = state[0].shape[run_dim]
    recorded = _Recorder(record or {}, range(start, n_steps + 1, every), runs, state[0].device)
    diverged_at = torch.full((runs,), -1, dtype=torch.long, device=state[0].device)
    stopped_at, whole = diverged_at.clone(), state
    recorded.at(0)
    for first in _chunks(n_steps, check, progress):
        last = min(first + check, n_steps)
        before = [s.clone() for s in state]
        t = first
        while t < last:
            here, t = t, recorded.after(t, last) if walk else t + 1
            walk(t - here) if walk else advance()
            recorded.at(t)
        alive = recorded.alive
        out = _out_of_bounds(state, run_dim, bound) & (diverged_at[alive] < 0)
        if out.any():
            dates = _date(out, advance, state, before, first, last, run_dim, bound)
            diverged_at[alive[out]] = dates[out]
            if on_divergence == "raise":
                raise _divergence(out, dates, alive, runs, describe, bound)
            for s in state:
                s.movedim(run_dim, 0)[out] = float("nan")
        if stop is None:
            continue
        finished = stop()
        done = finished | out
        if not done.any():
            continue
        stopped_at[alive[finished]] = last
        for w, s in zip(whole, state, strict=True):
            w.movedim(run_dim, 0)[alive[done]] = s.movedim(run_dim, 0)[done]
        recorded.freeze(done)
        state = narrow((~done).nonzero().squeeze(1))
        if done.all():
            break
        advance = _captured(step, state) if state[0].is_cuda else step
    if state is not whole:
        for w, s in zip(whole, state, strict=True):
            w.movedim(run_dim, 0)[recorded.alive] = s.movedim(run_dim, 0)
        narrow(None)
    return Trajectory(recorded.steps, recorded.finish(), diverged_at, stopped_at)


@ok.takes(network=ok.has("step", "state", "run_dim"))
def train(network, n_steps: int, **options) -> Trajectory:
    """``descend`` for networks of this library: what has ``step``, ``state``, ``run_dim`` and perhaps ``walk``."""
    walk = getattr(network, "walk", None)
    return descend(network.step, network.state, n_steps, run_dim=network.run_dim, walk=walk, **options)


def _divergence(out, dates, alive, runs: int, describe, bound: float) -> DivergenceError:
    """The error that names the first run that diverged."""
    first = int(dates.masked_fill(~out, dates.max() + 1).argmin())
    run, when = int(alive[first]), int(dates[first])
    words = f" ({words})" if (words := describe(run)) else ""
    message = f"run {run} of {runs}{words} diverged at step {when}: its state passed {bound:g}."
    return DivergenceError(message, run, when)


def _chunks(n_steps: int, size: int, progress: bool):
    firsts = range(0, n_steps, size)
    if not progress:
        return firsts
    from tqdm.auto import tqdm

    return tqdm(firsts, unit=f"x{size} steps", leave=False)


class _Recorder:
    """Buffers for the recorded values, allocated at the first record; finished runs repeat their last values."""

    def __init__(self, functions, steps: range, runs: int, device):
        self.functions, self.wanted, self.runs = functions, steps, runs
        self.steps = torch.tensor(list(steps), dtype=torch.long, device=device)
        self.values: dict[str, Tensor] = {}
        self.alive = torch.arange(runs, device=device)
        self.frozen: dict[str, Tensor] | None = None  # name -> (runs, ...), filled in as runs finish
        self.row = 0

    def at(self, t: int) -> None:
        if not self.functions or t not in self.wanted:
            return
        for name, function in self.functions.items():
            value = function()
            if name not in self.values:
                shape = value.shape if self.frozen is None else (self.runs, *value.shape[1:])
                self.values[name] = torch.empty((len(self.wanted), *shape), dtype=value.dtype, device=value.device)
            if self.frozen is None:
                self.values[name][self.row] = value
            else:
                self.values[name][self.row] = self.frozen[name]
                self.values[name][self.row, self.alive] = value
        self.row += 1

    def after(self, t: int, last: int) -> int:
        """The next step after ``t`` to record, ``last`` at most."""
        return min([last, *self.wanted[bisect_right(self.wanted, t) :][:1]]) if self.functions else last

    def freeze(self, done: Tensor) -> None:
        """Keep the present values of these of the runs still computed, and forget the runs."""
        now = {name: function() for name, function in self.functions.items()}
        if self.frozen is None:
            self.frozen = {name: value.clone() for name, value in now.items()}
        for name, value in now.items():
            self.frozen[name][self.alive[done]] = value[done]
        self.alive = self.alive[~done]

    def finish(self) -> dict[str, Tensor]:
        """The values; rows after the end of all runs repeat the last ones."""
        for name, values in self.values.items():
            values[self.row :] = self.frozen[name] if self.frozen is not None else values[self.row :]
        return self.values


def _out_of_bounds(state: Sequence[Tensor], run_dim: int, bound: float) -> Tensor:
    """``(runs,)`` whether any entry is NaN, infinite or larger than the bound."""
    sizes = [s.movedim(run_dim, 0).reshape(s.shape[run_dim], -1).abs().amax(1) for s in state]
    return ~(torch.stack(sizes).nan_to_num(nan=float("inf")).amax(0) <= bound)


def _date(out, advance, state, before, first, last, run_dim, bound) -> Tensor:
    """Replay the chunk in which runs diverged, step by step, to date them ``(runs,)``; the state ends where it was."""
    dates = torch.full_like(out, -1, dtype=torch.long)
    after = [s.clone() for s in state]
    for s, b in zip(state, before, strict=True):
        s.copy_(b)
    for t in range(first + 1, last + 1):
        advance()
        dates[_out_of_bounds(state, run_dim, bound) & out & (dates < 0)] = t
    for s, a in zip(state, after, strict=True):
        s.copy_(a)
    return dates


def _captured(step: Callable[[], None], state: Sequence[Tensor]) -> Callable[[], None]:
    """The step as a CUDA graph. Warm-up and capture run on a copy's worth of state, which is restored."""
    saved = [s.clone() for s in state]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    for s, b in zip(state, saved, strict=True):
        s.copy_(b)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for s, b in zip(state, saved, strict=True):
        s.copy_(b)
    return graph.replay
