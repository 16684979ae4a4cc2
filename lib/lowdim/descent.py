"""The one training loop: an in-place step, batched over runs, recorded on the device.

A trainer of this library is a *state* (tensors with one axis of runs) and a *step* that updates it in place.
``descend`` drives it: it records what is asked for into buffers allocated once, finds runs that diverge, and says
which, when and with what step size. On a GPU the step is captured once as a CUDA graph and replayed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lowdim.checks import choice, integer

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
    """

    steps: Tensor
    values: dict[str, Tensor]
    diverged_at: Tensor

    def __getitem__(self, name: str) -> Tensor:
        return self.values[name]


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

    Raises:
        DivergenceError: a run diverged and ``on_divergence="raise"``; the message has run, step and its description.
        ParameterError: a count that is negative, or an unknown ``on_divergence``.
    """
    n_steps, every = integer("n_steps", n_steps, at_least=0), integer("every", every, at_least=1)
    start = integer("start", start, at_least=0)
    choice("on_divergence", on_divergence, ("raise", "mask"))
    advance = _captured(step, state) if state[0].is_cuda else step
    recorded = _Recorder(record or {}, range(start, n_steps + 1, every), state[0].device)
    diverged_at = torch.full((state[0].shape[run_dim],), -1, dtype=torch.long, device=state[0].device)
    recorded.at(0)
    for first in _chunks(n_steps, progress):
        last = min(first + CHUNK, n_steps)
        before = [s.clone() for s in state]
        for t in range(first + 1, last + 1):
            advance()
            recorded.at(t)
        out = _out_of_bounds(state, run_dim, bound) & (diverged_at < 0)
        if out.any():
            _date(out, diverged_at, advance, state, before, first, last, run_dim, bound)
            if on_divergence == "raise":
                run = int(diverged_at.masked_fill(~out, n_steps + 1).argmin())
                words = f" ({words})" if (words := describe(run)) else ""
                when = int(diverged_at[run])
                raise DivergenceError(
                    f"run {run} of {len(out)}{words} diverged at step {when}: its state passed {bound:g}.", run, when
                )
            for s in state:
                s.movedim(run_dim, 0)[out] = float("nan")
    return Trajectory(recorded.steps, recorded.values, diverged_at)


def train(network, n_steps: int, **options) -> Trajectory:
    """``descend`` for an object that has ``step``, ``state`` and ``run_dim``, as the networks of this library have."""
    return descend(network.step, network.state, n_steps, run_dim=network.run_dim, **options)


def _chunks(n_steps: int, progress: bool):
    firsts = range(0, n_steps, CHUNK)
    if not progress:
        return firsts
    from tqdm.auto import tqdm

    return tqdm(firsts, unit=f"x{CHUNK} steps", leave=False)


class _Recorder:
    """Buffers for the recorded values, allocated at the first record."""

    def __init__(self, functions, steps: range, device):
        self.functions, self.wanted = functions, steps
        self.steps = torch.tensor(list(steps), dtype=torch.long, device=device)
        self.values: dict[str, Tensor] = {}
        self.row = 0

    def at(self, t: int) -> None:
        if not self.functions or t not in self.wanted:
            return
        for name, function in self.functions.items():
            value = function()
            if name not in self.values:
                self.values[name] = torch.empty(
                    (len(self.wanted), *value.shape), dtype=value.dtype, device=value.device
                )
            self.values[name][self.row] = value
        self.row += 1


def _out_of_bounds(state: Sequence[Tensor], run_dim: int, bound: float) -> Tensor:
    """``(runs,)`` whether any entry is NaN, infinite or larger than the bound."""
    sizes = [s.movedim(run_dim, 0).reshape(s.shape[run_dim], -1).abs().amax(1) for s in state]
    return ~(torch.stack(sizes).nan_to_num(nan=float("inf")).amax(0) <= bound)


def _date(out, diverged_at, advance, state, before, first, last, run_dim, bound) -> None:
    """Replay the chunk in which runs diverged, step by step, to date them; the state ends where it was."""
    after = [s.clone() for s in state]
    for s, b in zip(state, before, strict=True):
        s.copy_(b)
    for t in range(first + 1, last + 1):
        advance()
        now = _out_of_bounds(state, run_dim, bound) & out & (diverged_at < 0)
        diverged_at[now] = t
    for s, a in zip(state, after, strict=True):
        s.copy_(a)


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
