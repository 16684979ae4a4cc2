"""Bad values by the sort, as hypothesis strategies, and the one check for all of them; see ``test_bad_input``."""

import inspect
import re
import signal
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowdim.checks import ParameterError, brief

NAN, INF = float("nan"), float("inf")
SCRAPS = [None, "3", "", b"3", [], {}, object, 3j, ("a", "b")]  # what no number, tensor or function is


@dataclass(frozen=True)
class Sort:
    """One sort of badness; the strategy draws values, or takes the good value and draws a bad one from it."""

    name: str
    draw: object  # a strategy, or good value -> strategy


def t(*shape) -> torch.Tensor:
    """A good tensor: entries between 0.5 and 1.5, the same each time."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.5


def draw() -> torch.Generator:
    """A good generator, the same each time."""
    return torch.Generator().manual_seed(2)


def no_number(*more) -> Sort:
    return Sort("wrong type", st.sampled_from([*SCRAPS, *more]))


def count(least: int = 1, most: int | None = None) -> list[Sort]:
    """Sorts of what is no whole number in the range."""
    fraction = st.floats(0.01, 0.99).map(lambda x: least + x)
    found = [
        Sort("too small", st.integers(-(2**40), least - 1)),
        Sort("not whole", fraction),
        Sort("not finite", st.sampled_from([NAN, INF, -INF])),
        no_number(True, [least]),
    ]
    return found if most is None else [*found, Sort("too large", st.integers(most + 1, most + 2**70))]


def real(above=None, at_least=None, below=None, at_most=None) -> list[Sort]:
    """Sorts of what is no finite number in the range."""
    found = [Sort("not finite", st.sampled_from([NAN, INF, -INF])), no_number(True, [1.0])]
    low, high = above if at_least is None else at_least, below if at_most is None else at_most
    if low is not None:
        found.append(Sort("too small", st.floats(-1e6, low, exclude_max=at_least is not None)))
    if high is not None:
        found.append(Sort("too large", st.floats(high, 1e6, exclude_min=at_most is not None)))
    return found


def several(**limits) -> list[Sort]:
    """Sorts of what is neither a number in the range nor a list or tensor of such."""
    entries = [sort for sort in real(**limits) if sort.name.startswith("too")]
    lists = [Sort(f"entry {s.name}", s.draw.map(lambda x: [1.0, x])) for s in entries]
    tensors = [
        Sort(f"tensor {s.name}", s.draw.map(lambda x: torch.tensor([x, x], dtype=torch.float64))) for s in entries
    ]
    return [
        *entries, *lists, *tensors,
        Sort("not finite", st.sampled_from([NAN, INF, -INF])),
        Sort("entry not finite", st.sampled_from([[0.5, NAN], [INF], torch.tensor([0.5, NAN]), torch.tensor(-INF)])),
        Sort("empty", st.sampled_from([[], torch.zeros(0), torch.zeros(2, 0)])),
        Sort("wrong type", st.sampled_from([None, "3", b"3", 3j, object, True, ["3"], [None], torch.tensor([3j])])),
    ]  # fmt: skip


def choice() -> list[Sort]:
    """Sorts of what is none of a few names."""
    return [
        Sort("unknown name", st.text("abcdefghijklmnop -_", max_size=12).map(lambda s: f"{s}?")),
        Sort("wrong type", st.sampled_from([None, 3, 0.5, [], b"top", object, True])),
    ]


def generator() -> list[Sort]:
    return [Sort("wrong type", st.sampled_from([None, 7, "cpu", 0.5, object()]))]


def function() -> list[Sort]:
    return [Sort("wrong type", st.sampled_from([3, "f", 0.5, [], {}]))]


def flag() -> list[Sort]:
    return [Sort("wrong type", st.sampled_from([None, 0, 1, "yes", [], NAN]))]


def text() -> list[Sort]:
    return [Sort("wrong type", st.sampled_from([None, 3, 0.5, b"x", ["x"], object]))]


def only(name: str, *values) -> list[Sort]:
    """A sort given by its values."""
    return [Sort(name, st.sampled_from(values))]


def sizes(least: int) -> list[Sort]:
    """Sorts of what is no list of at least so many sizes."""
    return [
        Sort("too few", st.lists(st.integers(1, 5), max_size=least - 1)),
        Sort("entry too small", st.integers(-(2**40), 0).map(lambda n: [4] * (least - 1) + [n])),
        Sort("entry not whole", st.floats(1.01, 1.99).map(lambda x: [4] * (least - 1) + [x])),
        Sort("wrong type", st.sampled_from([None, 3, "444", b"444", {}, 0.5, object])),
    ]


def tensor(*, finite=True, floating=True, dims=True, ends=(), nonzero=True, above=None, at_least=None) -> list[Sort]:
    """Sorts of what is no tensor of the shape wanted.

    Args:
        dims: whether the number of axes is fixed.
        ends: axes whose size is tied to another argument: each is made longer by one.
        above, at_least: limits of the entries.
    """
    found = [Sort("wrong type", st.sampled_from([None, "3", 3, 0.5, [[0.5]], object, {}]))]
    if floating:
        kinds = [torch.int64, torch.bool, torch.complex128, torch.uint8]
        found.append(Sort("wrong dtype", lambda good: st.sampled_from(kinds).map(lambda kind: good.abs().to(kind))))
    if finite:
        for name, entry in (("NaN", NAN), ("infinity", INF), ("minus infinity", -INF)):
            found.append(Sort(name, lambda good, entry=entry: st.integers(0, good.numel() - 1).map(
                lambda at: _with(good, at, entry))))  # fmt: skip
    if nonzero:
        found.append(
            Sort("empty", lambda good: st.integers(0, max(good.dim() - 1, 0)).map(lambda k: _emptied(good, k)))
        )
    if dims:
        found.append(Sort("wrong axes", lambda good: st.sampled_from([good[(None,) * 4], good.flatten()[0]])))
    for axis in ends:
        found.append(Sort(f"axis {axis} of another size", lambda good, axis=axis: st.integers(1, 3).map(
            lambda more: torch.cat([good, good.narrow(axis, 0, 1).repeat_interleave(more, axis)], axis))))  # fmt: skip
    low = above if at_least is None else at_least
    if low is not None:
        worse = st.floats(-1e6, low, exclude_max=at_least is not None)
        found.append(Sort("entry too small", lambda good: worse.map(lambda x: _with(good, 0, x))))
    return found


def tensors(least: int = 1, **options) -> list[Sort]:
    """Sorts of what is no list of tensors: wrong lists, and good lists with one bad entry."""
    inner = [Sort(f"entry: {sort.name}", lambda good, sort=sort: (
        sort.draw(good[-1]) if callable(sort.draw) else sort.draw).map(lambda bad: [*good[:-1], bad]))
        for sort in tensor(**options)]  # fmt: skip
    few = Sort("too few", lambda good: st.integers(0, least - 1).map(lambda n: good[:n]))
    return [few, Sort("wrong type", st.sampled_from([None, 3, "layers", 0.5, {}, object])), *inner]


def _with(good, at: int, entry: float):
    bad = good.clone()
    bad.view(-1)[at] = entry
    return bad


def _emptied(good, axis: int):
    return good.narrow(axis, 0, 0) if good.dim() else good.reshape(1)[:0]


# ---------------------------------------------------------------- the check

EXAMPLES, SECONDS = 4, 10


@dataclass(frozen=True)
class Case:
    """A function, good arguments (made anew for every call), and the sorts of bad values for its arguments."""

    call: Callable
    good: Callable[[], dict]
    sorts: dict[str, list]

    @property
    def name(self) -> str:
        return f"{self.call.__module__.removeprefix('lowdim.')}.{self.call.__qualname__}"


def kinds(cases: list[Case]) -> list[tuple[Case, str, Sort]]:
    return [(case, argument, sort) for case in cases for argument, sorts in case.sorts.items() for sort in sorts]


def name_of(kind) -> str:
    case, argument, sort = kind
    return f"{case.name}-{argument}-{sort.name}".replace(" ", "_")


@contextmanager
def time_limit(seconds: float):
    def stop(*_):
        raise TimeoutError(f"no answer within {seconds} s")

    old = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def call(case: Case, arguments: dict):
    """The result; a generator is run to its end."""
    with time_limit(SECONDS):
        result = case.call(**arguments)
        return list(result) if inspect.isgenerator(result) else result


def shown(value, message: str) -> bool:
    """Whether a message shows the value: itself, its shape, its kind, its length, or one of its entries."""
    found = {brief(value), repr(value), type(value).__name__}
    if isinstance(value, torch.Tensor | np.ndarray):
        entries = value.flatten().tolist()
        found |= {"NaN or infinity"} if any(entry != entry or abs(entry) == INF for entry in entries) else set()
        found |= {
            str(tuple(value.shape)),
            str(value.dtype),
            *map(repr, entries),
            *(f"got {len(value)}" for _ in value.shape[:1]),
        }
    elif isinstance(value, list | tuple | dict):
        found |= {f"got {len(value)}", f"{len(value)} of them", "an empty list" if not len(value) else repr(value)}
        with suppress(ValueError):  # lists of several lengths
            found.add(str(np.shape(value)))
        return any(word in message for word in found) or any(shown(entry, message) for entry in value)
    return any(word in message for word in found)


def check(case: Case, argument: str, sort: Sort) -> None:
    """Draw bad values of one kind; each is answered by one sentence: the argument, the value, what is allowed."""
    strategy = sort.draw if isinstance(sort.draw, st.SearchStrategy) else sort.draw(case.good()[argument])

    @settings(max_examples=EXAMPLES, derandomize=True, database=None, deadline=None)
    @given(strategy)
    def answered(value):
        with pytest.raises(ParameterError) as caught:
            call(case, case.good() | {argument: value})
        message = str(caught.value)
        assert re.search(rf"\b{argument}\b", message), message
        assert re.search(r"\b(must|use|that do)\b", message), message
        assert message.endswith("."), message
        assert "\n" not in message
        assert shown(value, message), message

    answered()


def table_tests(cases: list[Case], unless: tuple = ()) -> tuple[Callable, Callable]:
    """The two tests of a table: good arguments are good (``unless`` the call needs files), bad ones are answered."""

    @pytest.mark.parametrize("case", cases, ids=lambda case: case.name)
    def good_ones(case):
        if case.call not in unless:
            call(case, case.good())

    @pytest.mark.parametrize("kind", kinds(cases), ids=name_of)
    def bad_ones(kind):
        check(*kind)

    return good_ones, bad_ones
