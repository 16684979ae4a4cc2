"""Claims of a paper, checked against its own numbers: expected, measured, tolerance, verdict.

The verdict is computed from what was measured; nothing sets it by hand. An expected value never comes from the run
that it judges, so every claim says where it does come from:

* ``"paper"``: printed in the paper;
* ``"code"``: stored output of the authors' code;
* ``"derived"``: a closed form, or a computation that shares nothing with the run;
* ``"independent"``: an earlier measurement by other code.
"""

import html
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from lowdim import checks as ok
from lowdim.checks import ParameterError, brief, choice

ORIGINS = {"paper": "paper", "code": "authors' code", "derived": "closed form", "independent": "independent run"}
WORDS = {"every": "", "median": ", median of the runs"}
MARKS = {"reproduced": "✓", "failed": "✗", "not attempted": "–"}
VERDICTS = tuple(MARKS)


def _identifier(name: str, value, known: dict) -> None:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9][\w.-]*", value):
        raise ParameterError(f"{name} must be letters, digits, '-', '_' and '.', got {brief(value)}.")


def _names(name: str, value, known: dict) -> None:
    if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(word, str) for word in value):
        raise ParameterError(f"{name} must be a list of texts, got {brief(value)}.")
    if len(value) != known.get("names", len(value)):
        raise ParameterError(f"{name} must name the {known['names']} columns of measured, got {len(value)} names.")


def _truths(name: str, value, known: dict) -> None:
    try:
        seen = np.asarray(value)
    except ValueError:
        seen = np.array("ragged")
    if not seen.size or not (seen.dtype == bool or (seen.dtype.kind in "iuf" and np.all((seen == 0) | (seen == 1)))):
        raise ParameterError(f"{name} must be truth values, one or more, got {brief(value)}.")


@dataclass(frozen=True)
class Claim:
    """One row of the table; see ``results.schema.json`` for the fields."""

    id: str
    statement: str
    source: str
    kind: str
    expected: object
    origin: str
    measured: object
    spread: object
    n_seeds: int
    tolerance: str
    verdict: str
    note: str = ""
    figures: list[str] = field(default_factory=list)


class Claims:
    """The claims of one chapter, in the order in which they are added.

    ``measured`` always has the seeds on its first axis; a number without seeds counts as one. A claim is reproduced
    only if *every* seed satisfies it. Where the paper shows one run of something that scatters, or claims something of
    the typical run, ``judged="median"`` asks it of the median over the seeds, and the table says so.

    Args:
        slug: the chapter's.
        elsewhere: where a run has other settings than the references, what a comparison would need: rows of the
            origins ``"independent"`` and ``"code"`` are not attempted then, and say so. Empty where settings agree.
    """

    @ok.takes(slug=_identifier, elsewhere=ok.text)
    def __init__(self, slug: str, elsewhere: str = ""):
        self.slug, self.elsewhere = slug, elsewhere
        self.rows: list[Claim] = []

    @ok.takes(
        id=_identifier,
        statement=ok.text,
        source=ok.text,
        expected=ok.array("..."),
        measured=ok.array("...", finite=False),
        atol=ok.real(at_least=0),
        rtol=ok.real(at_least=0),
        reason=ok.text,
    )
    def value(self, id, statement, *, source, expected, origin, measured, atol=0.0, rtol=0.0, reason="", judged="every",
              **more):  # fmt: skip
        """Measured numbers equal the expected ones: ``|measured - expected| <= atol + rtol |expected|``.

        Args:
            expected: a number, or a list compared entry by entry.
            measured: ``(seeds,)`` or ``(seeds, entries)``.
            reason: why this tolerance.
            judged: ``"every"`` run or the ``"median"``.
        """
        wanted, seen = np.asarray(expected, float), _seeds(measured)
        if wanted.ndim and wanted.shape not in (seen.shape, seen.shape[1:]):
            raise ParameterError(f"expected must have the shape of one seed, {seen.shape[1:]}, got {wanted.shape}.")
        fine = bool(np.all(np.abs(_judged(seen, judged) - wanted) <= atol + rtol * np.abs(wanted)))
        width = " + ".join([f"{atol:.3g}"] * (atol > 0) + [f"{rtol:.3g} relative"] * (rtol > 0)) or "exact"
        self._add(id, statement, source, "value", expected, origin, seen, f"± {width}{WORDS[judged]}", reason, fine,
                  **more)  # fmt: skip

    @ok.takes(
        id=_identifier,
        statement=ok.text,
        source=ok.text,
        measured=ok.array("...", finite=False),
        below=ok.optional(ok.real()),
        above=ok.optional(ok.real()),
        reason=ok.text,
    )
    def bound(
        self, id, statement, *, source, origin, measured, below=None, above=None, reason="", judged="every", **more
    ):
        """Measured numbers stay below, above or between bounds, strictly; ``judged`` as in ``value``."""
        if below is None and above is None:
            raise ParameterError(f"claim {id!r} needs a bound: below, above or both.")
        seen = _seeds(measured)
        low, high = (-math.inf if above is None else above), (math.inf if below is None else below)
        typical = _judged(seen, judged)
        fine = bool(np.all((typical > low) & (typical < high)))
        words = " and ".join(f"{sign} {end:.6g}" for sign, end in ((">", above), ("<", below)) if end is not None)
        self._add(id, statement, source, "bound", words, origin, seen, f"strict{WORDS[judged]}", reason, fine, **more)

    @ok.takes(
        id=_identifier,
        statement=ok.text,
        source=ok.text,
        measured=ok.array("seeds names", finite=False),
        names=_names,
        reason=ok.text,
    )
    def order(self, id, statement, *, source, origin, measured, names, reason="", judged="every", **more):
        """The columns of ``measured`` ``(seeds, len(names))`` rise from first to last, strictly, for every seed."""
        seen = _seeds(measured)
        fine = bool(np.all(np.diff(_judged(seen, judged), axis=1) > 0))
        wanted = " < ".join(names)
        self._add(id, statement, source, "order", wanted, origin, seen, f"strict{WORDS[judged]}", reason, fine, **more)

    @ok.takes(
        id=_identifier,
        statement=ok.text,
        source=ok.text,
        expected=ok.real(),
        measured=ok.array("...", finite=False),
        atol=ok.real(at_least=0),
        reason=ok.text,
    )
    def slope(self, id, statement, *, source, expected, origin, measured, atol, reason="", **more):
        """A fitted slope or exponent, ``(seeds,)``, equals the expected one within ``atol``."""
        seen = _seeds(measured)
        fine = bool(np.all(np.abs(seen - expected) <= atol))
        self._add(id, statement, source, "slope", expected, origin, seen, f"± {atol:.3g}", reason, fine, **more)

    @ok.takes(id=_identifier, statement=ok.text, source=ok.text, measured=_truths, reason=ok.text)
    def holds(self, id, statement, *, source, origin, measured, reason="", **more):
        """A yes-or-no statement, ``(seeds,)`` truth values: it must hold for every seed."""
        seen = np.atleast_1d(np.asarray(measured, bool))
        share = f"{int(seen.sum())} of {seen.size}"
        self._add(id, statement, source, "holds", "always", origin, seen.astype(float), "every case", reason,
                  bool(seen.all()), shown=share, **more)  # fmt: skip

    @ok.takes(id=_identifier, statement=ok.text, source=ok.text, needs=ok.text)
    def not_attempted(self, id, statement, *, source, needs):
        """A claim that was not tested here; ``needs`` says what it would take."""
        self._append(Claim(id, statement, source, "holds", None, "paper", None, None, 0, "", "not attempted", needs))

    def _add(self, id, statement, source, kind, expected, origin, seen, tolerance, reason, fine, *,
             note="", n_seeds=None, figures=(), shown=None):  # fmt: skip
        choice("origin", origin, tuple(ORIGINS))
        if self.elsewhere and origin in ("independent", "code"):
            self.not_attempted(id, statement, source=source, needs=self.elsewhere)
            return
        if not np.all(np.isfinite(seen)):
            fine = False
        if not fine and not note:
            note = "Outside the tolerance in this run."
        with np.errstate(invalid="ignore"):  # an infinite value has no spread; the verdict is "failed" already
            centre, spread = np.median(seen, 0), np.ptp(seen, 0) / 2
        self._append(
            Claim(id, statement, source, kind, _plain(expected), origin, shown or _plain(centre), _plain(spread),
                  n_seeds or len(seen), f"{tolerance}: {reason}" if reason else tolerance,
                  VERDICTS[0] if fine else VERDICTS[1], note, list(figures))
        )  # fmt: skip

    def _append(self, claim: Claim) -> None:
        if any(row.id == claim.id for row in self.rows):
            raise ParameterError(f"claim id {claim.id!r} is used twice in {self.slug}.")
        self.rows.append(claim)

    def counts(self) -> dict[str, int]:
        """Number of claims per verdict."""
        return {verdict: sum(row.verdict == verdict for row in self.rows) for verdict in VERDICTS}

    def summary(self) -> str:
        """One line: ``"14 claims: 12 reproduced, 1 failed, 1 not attempted"``."""
        return f"{len(self.rows)} claims: " + ", ".join(f"{n} {verdict}" for verdict, n in self.counts().items())

    def as_dicts(self) -> list[dict]:
        """Rows for ``results.json``."""
        return [asdict(row) for row in self.rows]

    def __repr__(self) -> str:
        return "\n".join([self.summary()] + [f"  {row.verdict:13}  {row.id}" for row in self.rows])

    def _repr_html_(self) -> str:
        return table(self.as_dicts(), self.slug)


def anchor(slug: str, id: str) -> str:
    """The id of a claim's row on a page."""
    return f"claim-{slug}-{id}"


def table(rows: Sequence[dict], slug: str = "") -> str:
    """The claims as an HTML table: claim, expected, ours, tolerance, verdict. With a slug, rows can be linked to."""
    head = "".join(
        f'<th scope="col">{name}</th>' for name in ("Claim", "Paper or reference", "Ours", "Tolerance", "Verdict")
    )
    return (
        '<table class="claims"><caption class="claims-caption">Claims: expected, ours, tolerance, verdict</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(_row(row, slug) for row in rows)}</tbody></table>"
    )


def _row(row: dict, slug: str) -> str:
    text = {key: html.escape(str(row[key])) for key in ("id", "statement", "source", "tolerance", "verdict", "note")}
    mark = MARKS[row["verdict"]]
    many = row["n_seeds"] > 1 and not isinstance(row["measured"], str)
    ours = _stacked(_ours(row), f"{row['n_seeds']} runs, median ± half range" if many else "")
    expected = _stacked(show(row["expected"]), ORIGINS[row["origin"]])
    if row["verdict"] == "not attempted":
        expected = ours = "–"
    note = f"<br><small>{text['note']}</small>" if row["note"] else ""
    tolerance, _, reason = text["tolerance"].partition(": ")
    cells = [
        ("Claim", f"{text['statement']}<br><small>{text['source']} · <code>{text['id']}</code></small>"),
        ("Paper or reference", expected),
        ("Ours", ours),
        ("Tolerance", (tolerance or "–") + (f"<br><small>{reason}</small>" if reason else "")),
        ("Verdict", f'<strong class="verdict">{mark} {text["verdict"]}</strong>{note}'),
    ]
    kind = row["verdict"].replace(" ", "-")
    target = f' id="{anchor(slug, row["id"])}"' if slug else ""
    return (
        f'<tr class="{kind}"{target}>'
        + "".join(f'<td data-label="{label}">{cell}</td>' for label, cell in cells)
        + "</tr>"
    )


def _stacked(text: str, small: str) -> str:
    """A value with a small remark below; a list already ends its line."""
    return f"{text}{'' if 'entry' in text else '<br>'}<small>{small}</small>" if small else text


def _ours(row: dict) -> str:
    if isinstance(row["measured"], str):
        return row["measured"]
    if row["n_seeds"] < 2 or not np.any(np.asarray(row["spread"], float)):
        return show(row["measured"])
    if isinstance(row["measured"], list):
        return _entries(map(_plus_minus, row["measured"], row["spread"]))
    return _plus_minus(row["measured"], row["spread"])


def _plus_minus(value, spread) -> str:
    return f"{show(value)} ± {spread:.1g}" if isinstance(spread, float) else show(value)


def show(value) -> str:
    """A number, a list of numbers or a string for reading: six significant digits."""
    if isinstance(value, list):
        return _entries(map(show, value))
    return f"{value:.6g}" if isinstance(value, float | int) else html.escape(str(value))


def _entries(texts) -> str:
    """One line for each entry of a list; the style sheet of the book puts them side by side on a phone."""
    return " ".join(f'<span class="entry">{text}</span>' for text in texts)


def _seeds(measured) -> np.ndarray:
    """Measured values with the seeds on the first axis."""
    return np.atleast_1d(np.asarray(measured, float))


def _judged(seen: np.ndarray, judged: str) -> np.ndarray:
    """What the verdict looks at: every run, or their median as a single one."""
    choice("judged", judged, tuple(WORDS))
    return seen if judged == "every" else np.median(seen, 0, keepdims=True)


def _plain(value):
    """JSON's numbers, lists and strings; what is not finite becomes a string, so that the file stays valid JSON."""
    if isinstance(value, str) or value is None:
        return value
    array = np.asarray(value, float)
    if array.ndim:
        return [_plain(entry) for entry in array]
    return float(array) if np.isfinite(array) else str(float(array))
