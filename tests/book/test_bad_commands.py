"""Bad input on the command line: every knob of every chapter, with every sort of value that is not of its kind.

The functions behind ``tools/run_chapter.py`` are called in this process; some real calls are in ``test_run_chapter``.
"""

import re

import pytest
import run_chapter
from chapters import BadInputError, all_chapters, find
from hypothesis import given, settings
from hypothesis import strategies as st

CHAPTERS = {chapter.slug: chapter for chapter in all_chapters()}
SORTS = {
    "a text": ["x", "[1, 2"],
    "not JSON": ["{", "1,2", "--", "0x10", "1e", "None", "nan"],
    "true or false": ["true", "false"],
    "null": ["null"],
    "an object": ['{"a": 1}', "{}"],
    "a fraction": ["0.5", "-1.25", "1e-3"],
    "a list": ["[1]", "[0.5]"],
    "a nested list": ["[[1]]", "[[1], [2]]"],
    "a list with a text": ['["x", 1]'],
    "a list with null": ["[1, null]"],
    "not finite": ["NaN", "Infinity", "-Infinity", "1e999"],
    "a list that is not finite": ["[1, NaN]", "[Infinity]", "[-1e999]"],
    "a whole number": ["3", "-7"],
}
ALLOWED = {  # which of these a kind of knob takes
    "int": {"a whole number"},
    "float": {"a whole number", "a fraction", "not finite"},  # the chapter itself refuses NaN: see test_run_chapter
    "bool": {"true or false"},
    "str": {"a text", "not JSON"},
    "None": {"null"},
    "list[float]": {"a list", "a list that is not finite"},
    "list[int]": {"a list"},
    "list[str]": set(),
}
KINDS = [
    (slug, knob, sort)
    for slug, chapter in CHAPTERS.items()
    for knob in chapter.knobs().values()
    for sort in SORTS
    if not any(sort in ALLOWED[kind.strip()] for kind in knob.kind.split("|"))
]


@pytest.mark.parametrize(("slug", "knob", "sort"), KINDS, ids=lambda value: getattr(value, "name", value))
def test_a_value_of_another_kind_is_refused(slug, knob, sort):
    for text in SORTS[sort]:
        with pytest.raises(BadInputError) as caught:
            run_chapter.parsed_knobs(CHAPTERS[slug], [(knob.name, text)], "quick")
        message = str(caught.value)
        assert message.startswith(f"parameter {knob.name!r} ")
        assert f"must be {knob.words()}" in message
        assert re.search(r"got .+\.$", message)
        assert "\n" not in message


def test_there_are_hundreds_of_kinds():
    assert len(KINDS) >= 200


@pytest.mark.parametrize("slug", CHAPTERS)
@settings(max_examples=10, derandomize=True, database=None, deadline=None)
@given(name=st.text("abcdefghijklmnopqrstuvwxyz_", min_size=1, max_size=9).map(lambda name: f"{name}_"))
def test_unknown_knobs_are_named_with_those_that_exist(slug, name):
    with pytest.raises(BadInputError) as caught:
        run_chapter.parsed_knobs(CHAPTERS[slug], [(name, "1")], "quick")
    assert f"{slug} has no parameter {name!r}" in str(caught.value)
    assert all(knob in str(caught.value) for knob in CHAPTERS[slug].knobs())


@settings(max_examples=30, derandomize=True, database=None, deadline=None)
@given(st.text(max_size=20).filter(lambda slug: slug not in CHAPTERS))
def test_unknown_chapters_are_named_with_those_that_exist(slug):
    with pytest.raises(BadInputError) as caught:
        find(slug)
    assert repr(slug) in str(caught.value)
    assert all(known in str(caught.value) for known in CHAPTERS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "arguments", [[], ["--profile", "huge", "x"], ["x", "-p", "seed"], ["x", "--nosuch"], ["x", "y"]]
)
def test_a_command_that_cannot_be_read(arguments, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["run_chapter.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        run_chapter.arguments()
    assert ended.value.code == 2
    assert "error: " in capsys.readouterr().err.splitlines()[-1]
