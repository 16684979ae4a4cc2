"""What the build knows of the chapters: where they are, their knobs, their code, and what of the library they use."""

import ast
import difflib
import hashlib
import os
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import yaml
from imports import closure

ROOT = Path(__file__).resolve().parent.parent
_CELL = re.compile(r"^```\{code-cell\}[^\n]*\n(.*?)^```$", re.M | re.S)
_OPTIONS = re.compile(r"\A(?:---\n.*?\n---\n|(?::[^\n]*\n)+)", re.S)


KINDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "bool": "true or false",
    "None": "null",
    "list[float]": "a list of numbers",
    "list[int]": "a list of whole numbers",
    "list[str]": "a list of texts",
}


class BadInputError(ValueError):
    """One sentence for the reader: what was wrong and what is allowed."""


@dataclass(frozen=True)
class Knob:
    """One parameter of a chapter, read from its cell tagged ``parameters``."""

    name: str
    kind: str  # the annotation: "int", "list[float]", "list[float] | None", ...
    default: object
    help: str

    def accepts(self, value) -> bool:
        """Whether a JSON value is of the knob's kind."""
        return any(_is_kind(value, kind.strip()) for kind in self.kind.split("|"))

    def words(self) -> str:
        """The kind in words: ``"a list of numbers or null"``."""
        return " or ".join(KINDS.get(kind.strip(), kind.strip()) for kind in self.kind.split("|"))


def _is_kind(value, kind: str) -> bool:
    if kind.startswith("list["):
        return isinstance(value, list) and all(_is_kind(entry, kind[5:-1]) for entry in value)
    if kind == "float":
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind == "int":
        return isinstance(value, int) and not isinstance(value, bool)
    return {"None": value is None, "str": isinstance(value, str), "bool": isinstance(value, bool)}.get(kind, False)


@dataclass(frozen=True)
class Chapter:
    """A page of the book that runs."""

    path: Path  # relative to the root of the book, such as book/dynamics/edge-of-stability.md

    @property
    def slug(self) -> str:
        return self.path.stem

    @property
    def docname(self) -> str:
        return self.path.with_suffix("").as_posix()

    @cached_property
    def text(self) -> str:
        return (ROOT / self.path).read_text()

    @cached_property
    def cells(self) -> list[tuple[str, str]]:
        """Options and code of each code cell."""
        found = []
        for body in _CELL.findall(self.text):
            options = match[0] if (match := _OPTIONS.match(body)) else ""
            found.append((options, body[len(options) :].strip()))
        return found

    def code(self) -> str:
        """The code without prose, captions and tags."""
        return "\n\n".join(code for _, code in self.cells) + "\n"

    def knobs(self) -> dict[str, Knob]:
        """The knobs, in order.

        Raises:
            BadInputError: there is not exactly one cell tagged ``parameters``, or a knob has no annotation.
        """
        tagged = [code for options, code in self.cells if re.search(r"\bparameters\b", options)]
        if len(tagged) != 1:
            raise BadInputError(f"{self.slug} must have one cell tagged 'parameters', it has {len(tagged)}.")
        comments = dict(re.findall(r"^(\w+)\s*:.*?  # (.*)$", tagged[0], re.M))
        knobs = {}
        for node in ast.parse(tagged[0]).body:
            if not isinstance(node, ast.AnnAssign):
                raise BadInputError(f"{self.slug}: every parameter needs an annotation, as in 'depth: int = 3'.")
            name = node.target.id
            knobs[name] = Knob(name, ast.unparse(node.annotation), ast.literal_eval(node.value), comments.get(name, ""))
        return knobs

    def library(self) -> list[str]:
        """The files of the library that the chapter imports, directly or not, relative to the root."""
        return sorted(path.relative_to(ROOT).as_posix() for path in closure(self.code(), ROOT / "lib"))

    def key(self) -> str:
        """What decides whether the chapter runs again: its code, the library that it imports, the pinned versions.

        Contents only: the build does not care about dates of files, so a clock that was wrong does no harm.
        """
        digest = hashlib.sha256(self.code().encode())
        for name in [*self.library(), "requirements.txt"]:
            digest.update(f"\n{name}\n".encode() + ((ROOT / name).read_bytes() if (ROOT / name).exists() else b""))
        return digest.hexdigest()


def all_chapters() -> list[Chapter]:
    """Every page of the table of contents that has code, in order."""
    contents = yaml.safe_load((ROOT / "_toc.yml").read_text())
    pages = [Path(entry["file"] + ".md") for part in contents["parts"] for entry in part["chapters"]]
    return [Chapter(page) for page in pages if (ROOT / page).read_text().startswith("---\njupytext:")]


def find(slug: str) -> Chapter:
    """The chapter of that slug.

    Raises:
        BadInputError: there is none; the message lists those that exist.
    """
    chapters = {chapter.slug: chapter for chapter in all_chapters()}
    if slug not in chapters:
        raise BadInputError(f"unknown chapter {slug!r}{_hint(slug, chapters)}; the chapters are {', '.join(chapters)}.")
    return chapters[slug]


def check_knobs(chapter: Chapter, given: dict) -> None:
    """Refuse unknown knobs and values of the wrong kind.

    Raises:
        BadInputError: the message lists what is allowed.
    """
    knobs = chapter.knobs()
    for name, value in given.items():
        if name not in knobs:
            allowed = ", ".join(knobs)
            raise BadInputError(f"{chapter.slug} has no parameter {name!r}{_hint(name, knobs)}; it has {allowed}.")
        if not knobs[name].accepts(value):
            raise BadInputError(f"parameter {name!r} of {chapter.slug} must be {knobs[name].words()}, got {value!r}.")


def _hint(word: str, known) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def verdict_counts(results: dict) -> dict[str, int]:
    """How many claims of a chapter's results have each verdict, in the order in which they are always shown."""
    verdicts = [claim["verdict"] for claim in results["claims"]]
    return {verdict: verdicts.count(verdict) for verdict in ("reproduced", "failed", "not attempted")}


def build_root() -> Path:
    """Where the build keeps everything: ``build``, or the folder that LOWDIM_BUILD names."""
    return ROOT / os.environ.get("LOWDIM_BUILD", "build")


def build_folder(profile: str, slug: str) -> Path:
    """Where the build keeps a chapter's notebook, results and figure data."""
    return build_root() / "chapters" / profile / slug
