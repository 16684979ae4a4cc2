"""Checks of what a reader passes in: each returns the clean value or says, in one sentence, what is allowed.

``takes`` declares what a whole function accepts, one rule an argument, and the sizes that arguments must share:

    @takes(f=tensor("runs n k"), g=tensor("runs m k"), steps=count(0))
    def fit(f, g, steps): ...
"""

import functools
import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from os import PathLike


class ParameterError(ValueError):
    """A parameter has a value that is not allowed; the message names it and says what is."""


def number(name: str, value, *, above=None, at_least=None, below=None, at_most=None) -> float:
    """A finite real number within the given limits.

    Raises:
        ParameterError: if it is not a number, not finite, or out of range.
    """
    limits = [(above, ">"), (at_least, ">="), (below, "<"), (at_most, "<=")]
    allowed = " ".join(["a finite number", " and ".join(f"{sign} {end:g}" for end, sign in limits if end is not None)])
    value = value.item() if getattr(value, "shape", None) == () else value  # of an array or tensor
    fine = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    fine = fine and (above is None or value > above) and (at_least is None or value >= at_least)
    if not (fine and (below is None or value < below) and (at_most is None or value <= at_most)):
        raise ParameterError(f"{name} must be {allowed.strip()}, got {brief(value)}.")
    return float(value)


def integer(name: str, value, *, at_least: int, at_most: int | None = None) -> int:
    """A whole number of at least ``at_least``.

    Raises:
        ParameterError: if it is not whole or is out of range.
    """
    fine = isinstance(value, Integral) and not isinstance(value, bool) and value >= at_least
    if not (fine and (at_most is None or value <= at_most)):
        upto = "" if at_most is None else f" and <= {at_most}"
        raise ParameterError(f"{name} must be a whole number >= {at_least}{upto}, got {brief(value)}.")
    return int(value)


def numbers(name: str, values, **limits) -> list[float]:
    """A non-empty flat list of finite numbers within the given limits.

    Raises:
        ParameterError: if it is not a flat list, is empty, or one entry is out of range (the message says which).
    """
    if isinstance(values, str | bytes) or not isinstance(values, Sequence):
        raise ParameterError(f"{name} must be a list of numbers, got {brief(values)}.")
    if not values:
        raise ParameterError(f"{name} must hold at least one number, got an empty list.")
    return [number(f"{name}[{i}]", value, **limits) for i, value in enumerate(values)]


def choice(name: str, value, allowed: Sequence):
    """One of a few values.

    Raises:
        ParameterError: if it is none of them; the message lists them.
    """
    if not isinstance(value, type(allowed[0])) or value not in allowed:
        raise ParameterError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {brief(value)}.")
    return value


def brief(value) -> str:
    """A value as a message shows it: its shape if it has one, else at most 80 characters on one line."""
    if getattr(value, "shape", ()):
        return f"{type(value).__name__} of shape {tuple(value.shape)}"
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


# ---------------------------------------------------------------- rules for the arguments of a function

Rule = Callable[[str, object, dict], object]  # name, value, sizes known so far


def takes(**rules: Rule) -> Callable:
    """Check the arguments of a function that have a rule; a default that is not overridden is not looked at.

    Raises:
        ParameterError: when called with a value that is not allowed; one sentence with the argument, its value or
            shape, and what is allowed.
    """

    def decorate(function):
        names = list(inspect.signature(function).parameters)
        places = [(names.index(name), name, rule) for name, rule in rules.items()]

        @functools.wraps(function)
        def checked(*args, **named):
            known = {}
            for place, name, rule in places:
                if place < len(args):
                    rule(name, args[place], known)
                elif name in named:
                    rule(name, named[name], known)
            return function(*args, **named)

        return checked

    return decorate


def count(at_least: int = 1, at_most: int | None = None) -> Rule:
    """A whole number."""
    return lambda name, value, known: integer(name, value, at_least=at_least, at_most=at_most)


def real(**limits) -> Rule:
    """A finite number within limits, as for ``number``."""
    return lambda name, value, known: number(name, value, **limits)


def one_of(*allowed) -> Rule:
    """One of a few values."""
    return lambda name, value, known: choice(name, value, allowed)


def optional(rule: Rule) -> Rule:
    """``None``, or what the rule allows."""
    return lambda name, value, known: None if value is None else rule(name, value, known)


def kind(types, words: str) -> Rule:
    """An instance of a type (or of one of several), such as ``kind(bool, "True or False")``."""

    def check(name, value, known):
        if not isinstance(value, types):
            raise ParameterError(f"{name} must be {words}, got {brief(value)}.")

    return check


def several(types, words: str, at_least: int = 1) -> Rule:
    """A list of instances of a type, such as ``several(nn.Module, "modules")``."""

    def check(name, value, known):
        if not isinstance(value, list | tuple) or len(value) < at_least:
            got = f"{len(value)} of them" if isinstance(value, list | tuple) else brief(value)
            raise ParameterError(f"{name} must be a list of at least {at_least} {words}, got {got}.")
        for i, entry in enumerate(value):
            if not isinstance(entry, types):
                raise ParameterError(f"{name}[{i}] must be one of {words}, got {brief(entry)}.")

    return check


flag = kind(bool, "True or False")
text = kind(str, "a text")


def function(name: str, value, known: dict) -> None:
    """Something that can be called."""
    if not callable(value):
        raise ParameterError(f"{name} must be a function, got {brief(value)}.")


def generator(name: str, value, known: dict) -> None:
    """A ``torch.Generator``."""
    import torch

    if not isinstance(value, torch.Generator):
        raise ParameterError(
            f"{name} must be a torch.Generator, as lowdim.runtime.generator makes, got {brief(value)}."
        )


def device(name: str, value, known: dict) -> None:
    """What stands for a device of PyTorch that is there."""
    import torch

    try:
        found = None if isinstance(value, bool) else torch.device(value)
    except (RuntimeError, TypeError, ValueError):
        found = None
    if found is None:
        raise ParameterError(f"{name} must be a device such as 'cpu' or 'cuda:0', got {brief(value)}.")
    gpus = torch.cuda.device_count()
    if found.type == "cuda" and (found.index or 0) >= gpus:
        raise ParameterError(f"{name} must be a device that PyTorch sees (GPUs here: {gpus}), got {brief(value)}.")


def floating(name: str, value, known: dict) -> None:
    """A real floating-point type of PyTorch."""
    import torch

    if not isinstance(value, torch.dtype) or not value.is_floating_point:
        raise ParameterError(f"{name} must be a floating-point type such as torch.float32, got {brief(value)}.")


def generators(name: str, value, known: dict) -> None:
    """One ``torch.Generator``, or a list with one for each sample."""
    if not isinstance(value, list | tuple) or not value:
        return generator(name, value, known)
    for i, entry in enumerate(value):
        generator(f"{name}[{i}]", entry, known)


def has(*attributes: str) -> Rule:
    """An object with these attributes, such as a trainer with ``step`` and ``state``."""

    def check(name, value, known):
        missing = [attribute for attribute in attributes if not hasattr(value, attribute)]
        if missing:
            raise ParameterError(f"{name} must have {', '.join(attributes)}, got {brief(value)} without {missing[0]}.")

    return check


def tensor(*shapes: str, finite: bool = True, floating: bool = True, empty: bool = False, **limits) -> Rule:
    """A tensor of one of the given shapes.

    Args:
        shapes: names or numbers with blanks between them: ``"runs n k"``, ``"n 2"``; ``...`` stands for any axes.
            A name stands for one size in all arguments of the function. None given: any shape.
        finite: refuse NaN and infinity. Measures of trajectories pass them on instead: a diverged run is NaN.
        floating: refuse whole numbers, truth values and complex numbers.
        empty: allow tensors without entries.
        limits: ``above``, ``at_least``, ``below``, ``at_most`` for every entry.
    """
    patterns = [_pattern(shape) for shape in shapes]
    words = " or ".join(_shape_words(shape.split()) for shape in shapes)
    look = finite or bool(limits)

    def check(name, value, known):
        import torch

        if not isinstance(value, torch.Tensor):
            raise ParameterError(f"{name} must be a tensor{f' {words}' * bool(words)}, got {brief(value)}.")
        if floating and not value.is_floating_point():
            raise ParameterError(f"{name} must be a tensor of floating-point numbers, got {value.dtype}.")
        shape = tuple(value.shape)
        bound = next((b for p in patterns if (b := _bound(p, shape, known)) is not None), None)
        if patterns and bound is None:
            used = {part for head, tail, _ in patterns for part in head + tail} & known.keys()
            fixed = " with " * bool(used) + " and ".join(f"{part} = {known[part]}" for part in sorted(used))
            raise ParameterError(f"{name} must be {words}{fixed}, got {shape}.")
        known.update(bound or {})
        if 0 in shape:
            if not empty:
                raise ParameterError(f"{name} must have at least one entry, got {shape}.")
            return
        if look and value.dtype != torch.bool:
            _entries(name, torch.view_as_real(value) if value.is_complex() else value, finite, limits)

    return check


def whole(*shapes: str) -> Rule:
    """A tensor of whole numbers, such as labels or indices; shapes as for ``tensor``."""
    rule = tensor(*shapes, floating=False)

    def check(name, value, known):
        rule(name, value, known)
        if value.is_floating_point() or value.is_complex() or value.element_size() == 1:
            raise ParameterError(f"{name} must be a tensor of whole numbers such as torch.int64, got {value.dtype}.")

    return check


def tensors(*shapes: str, at_least: int = 1, **options) -> Rule:
    """A list of tensors, each as for ``tensor``; names of sizes stand for one size in each tensor alone."""
    rule = tensor(*shapes, **options)

    def check(name, value, known):
        if not isinstance(value, list | tuple) or len(value) < at_least:
            got = f"{len(value)} of them" if isinstance(value, list | tuple) else brief(value)
            raise ParameterError(f"{name} must be a list of at least {at_least} tensors, got {got}.")
        for i, entry in enumerate(value):
            rule(f"{name}[{i}]", entry, dict(known))

    return check


def values(finite: bool = True, single: bool = True, lists: bool = True, **limits) -> Rule:
    """A number (if ``single``), or a list (if ``lists``), array or tensor of numbers, all finite and within limits."""

    def check(name, value, known):
        if not single and getattr(value, "shape", None) != () and isinstance(value, Real):
            raise ParameterError(f"{name} must be a list of numbers, got {brief(value)}.")
        if not lists and isinstance(value, list | tuple):
            raise ParameterError(f"{name} must be a number or a tensor, got {brief(value)}.")
        if isinstance(value, Real) or not hasattr(value, "__len__"):
            if isinstance(value, Real) and not isinstance(value, bool) and not finite and not math.isfinite(value):
                return
            number(name, value, **limits) if not hasattr(value, "shape") else _entries(name, value, finite, limits)
        elif hasattr(value, "shape"):
            if not math.prod(value.shape):
                raise ParameterError(f"{name} must hold at least one number, got {brief(value)}.")
            _entries(name, value, finite, limits)
        else:
            numbers(name, value, **limits)

    return check


def array(shape: str, finite: bool = True) -> Rule:
    """A numpy array or tensor of numbers, or lists that make one; shapes as for ``tensor``."""

    def check(name, value, known):
        import numpy as np

        words = _shape_words(shape.split())
        if value is None or isinstance(value, str | bytes):
            raise ParameterError(f"{name} must be an array of numbers {words}, got {brief(value)}.")
        try:
            value = value if hasattr(value, "shape") else np.asarray(value, float)
        except (TypeError, ValueError) as error:
            raise ParameterError(f"{name} must be an array of numbers {words}, got {brief(value)}.") from error
        if (bound := _bound(_pattern(shape), tuple(value.shape), known)) is None:
            fixed = "".join(f", {part} = {known[part]}" for part in shape.split() if part in known)
            raise ParameterError(f"{name} must be an array {words}{fixed}, got {tuple(value.shape)}.")
        known.update(bound)
        if not math.prod(value.shape):
            raise ParameterError(f"{name} must have at least one entry, got {tuple(value.shape)}.")
        _entries(name, value, finite, {})

    return check


def sizes(at_least: int = 1) -> Rule:
    """A list of whole numbers >= 1, such as a shape."""

    def check(name, value, known):
        if isinstance(value, str | bytes) or not isinstance(value, Sequence) or len(value) < at_least:
            raise ParameterError(f"{name} must be a list of at least {at_least} sizes, got {brief(value)}.")
        for i, size in enumerate(value):
            integer(f"{name}[{i}]", size, at_least=1)

    return check


def path(name: str, value, known: dict) -> None:
    """A path, as a text or a ``Path``."""
    if not isinstance(value, str | PathLike) or not str(value) or "\0" in str(value):
        raise ParameterError(f"{name} must be the path of a file, got {brief(value)}.")


def filename(name: str, value, known: dict) -> None:
    """The name of a file without folders, so that it cannot lead out of the folder that it is for."""
    if not isinstance(value, str) or not re.fullmatch(r"[\w][\w.+-]*", value):
        raise ParameterError(
            f"{name} must be a file name of letters, digits, '.', '-', '+' and '_', got {brief(value)}."
        )


def counts(at_least: int = 0) -> Rule:
    """A whole number, or a list or tensor of whole numbers."""

    def check(name, value, known):
        entries = value.flatten().tolist() if hasattr(value, "flatten") else value
        entries = entries if isinstance(entries, list | tuple) else [entries]
        if not entries:
            raise ParameterError(f"{name} must hold at least one whole number, got {brief(value)}.")
        for entry in entries:
            integer(name, entry, at_least=at_least)

    return check


def one_or_each(name: str, value, runs: int) -> None:
    """Check that there is one number, or one for each run.

    Raises:
        ParameterError: with both numbers.
    """
    found = math.prod(value.shape) if hasattr(value, "shape") else len(value) if hasattr(value, "__len__") else 1
    if found not in (1, runs):
        raise ParameterError(f"{name} must be one number or one for each of {runs} runs, got {found}.")


def mapping(name: str, value, known: dict) -> None:
    """A dictionary of functions, as ``record`` is."""
    if not isinstance(value, Mapping) or not all(callable(entry) for entry in value.values()):
        raise ParameterError(f"{name} must be a dictionary of functions, got {brief(value)}.")


def _entries(name: str, value, finite: bool, limits: dict) -> None:
    """Look at every entry of a tensor or array; the message shows the first that is not allowed."""
    import torch

    try:
        value = torch.as_tensor(value)
    except (TypeError, ValueError) as error:
        raise ParameterError(f"{name} must hold numbers, got {brief(value)}.") from error
    if value.is_complex() or value.dtype == torch.bool:
        raise ParameterError(f"{name} must hold real numbers, got {value.dtype}.")
    if not finite and not limits:
        return
    for entry in (value.amin(), value.amax()):  # NaN passes through both
        entry = entry.item()
        if finite or math.isfinite(entry):
            number(f"every entry of {name}" if value.numel() > 1 else name, entry, **limits)


def _pattern(shape: str) -> tuple[list, list, bool]:
    """The parts before and after ``...``, and whether it is there."""
    parts = [int(part) if part.isdigit() else part for part in shape.split()]
    at = parts.index("...") if "..." in parts else len(parts)
    return parts[:at], parts[at + 1 :], at < len(parts)


def _bound(pattern: tuple[list, list, bool], shape: tuple, known: dict) -> dict | None:
    """The sizes that names stand for when a shape follows the pattern; ``None`` when it does not."""
    head, tail, more = pattern
    rest = len(shape) - len(head) - len(tail)
    if rest < 0 or (rest and not more):
        return None
    bound = {}
    for part, size in zip(head + tail, shape[: len(head)] + shape[len(head) + rest :], strict=True):
        wanted = part if isinstance(part, int) else bound.setdefault(part, known.get(part, size))
        if size != wanted:
            return None
    return bound


def _shape_words(pattern: list[str]) -> str:
    return f"({', '.join(pattern)}{',' * (len(pattern) == 1)})"
