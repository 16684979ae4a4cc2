"""Checks of what a reader passes in: each returns the clean value or says, in one sentence, what is allowed."""

import math
from collections.abc import Sequence
from numbers import Integral, Real


class ParameterError(ValueError):
    """A parameter has a value that is not allowed; the message names it and says what is."""


def number(name: str, value, *, above=None, at_least=None, below=None, at_most=None) -> float:
    """A finite real number within the given limits.

    Raises:
        ParameterError: if it is not a number, not finite, or out of range.
    """
    limits = [(above, ">"), (at_least, ">="), (below, "<"), (at_most, "<=")]
    allowed = " ".join(["a finite number", " and ".join(f"{sign} {end:g}" for end, sign in limits if end is not None)])
    fine = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    fine = fine and (above is None or value > above) and (at_least is None or value >= at_least)
    if not (fine and (below is None or value < below) and (at_most is None or value <= at_most)):
        raise ParameterError(f"{name} must be {allowed.strip()}, got {value!r}.")
    return float(value)


def integer(name: str, value, *, at_least: int, at_most: int | None = None) -> int:
    """A whole number of at least ``at_least``.

    Raises:
        ParameterError: if it is not whole or is out of range.
    """
    fine = isinstance(value, Integral) and not isinstance(value, bool) and value >= at_least
    if not (fine and (at_most is None or value <= at_most)):
        upto = "" if at_most is None else f" and <= {at_most}"
        raise ParameterError(f"{name} must be a whole number >= {at_least}{upto}, got {value!r}.")
    return int(value)


def numbers(name: str, values, *, above=None, at_least=None, below=None) -> list[float]:
    """A non-empty flat list of finite numbers within the given limits.

    Raises:
        ParameterError: if it is not a flat list, is empty, or one entry is out of range (the message says which).
    """
    if isinstance(values, str | bytes) or not isinstance(values, Sequence):
        raise ParameterError(f"{name} must be a list of numbers, got {values!r}.")
    if not values:
        raise ParameterError(f"{name} must hold at least one number, got an empty list.")
    return [number(f"{name}[{i}]", v, above=above, at_least=at_least, below=below) for i, v in enumerate(values)]


def choice(name: str, value, allowed: Sequence):
    """One of a few values.

    Raises:
        ParameterError: if it is none of them; the message lists them.
    """
    if value not in allowed:
        raise ParameterError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}.")
    return value
