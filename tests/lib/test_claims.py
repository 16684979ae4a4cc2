"""Verdicts: a claim passes only if every seed does, and what fails says why."""

import json
import math

import jsonschema
import numpy as np
import pytest

from lowdim.checks import ParameterError
from lowdim.claims import Claims, table
from lowdim.files import SCHEMA

COMMON = dict(source="Figure 1", origin="derived", reason="for the test")
CLAIM = {"$ref": "#/$defs/claim"} | {"$defs": json.loads(SCHEMA.read_text())["$defs"]}


def verdict(method, **arguments):
    claims = Claims("chapter")
    getattr(claims, method)("an-id", "A statement to be tested.", **COMMON, **arguments)
    row = claims.as_dicts()[0]
    jsonschema.validate(row, CLAIM)
    assert row["verdict"] in table([row])
    return row["verdict"]


@pytest.mark.parametrize(
    ("method", "arguments", "expected"),
    [
        ("value", dict(expected=1.0, measured=[1.0, 1.09], atol=0.1), "reproduced"),
        ("value", dict(expected=1.0, measured=[1.0, 1.0, 1.11], atol=0.1), "failed"),
        ("value", dict(expected=[1.0, 200.0], measured=[[1.0, 201.0]], rtol=0.01), "reproduced"),
        ("value", dict(expected=[1.0, 200.0], measured=[[1.0, 203.0]], rtol=0.01), "failed"),
        ("value", dict(expected=1.0, measured=[1.0, math.nan], atol=9.0), "failed"),
        ("value", dict(expected=3, measured=3), "reproduced"),
        ("bound", dict(measured=[0.1, 0.2], below=0.3), "reproduced"),
        ("bound", dict(measured=[0.1, 0.3], below=0.3), "failed"),
        ("bound", dict(measured=[0.1, 0.2], above=0.15), "failed"),
        ("bound", dict(measured=math.inf, above=0.15), "failed"),
        ("order", dict(measured=[[1, 2, 3], [0, 1, 9]], names=["a", "b", "c"]), "reproduced"),
        ("order", dict(measured=[[1, 2, 3], [0, 1, 1]], names=["a", "b", "c"]), "failed"),
        ("value", dict(expected=1.0, measured=[1.0, 1.0, 1.11], atol=0.1, judged="median"), "reproduced"),
        ("value", dict(expected=1.0, measured=[1.0, 1.11, 1.12], atol=0.1, judged="median"), "failed"),
        ("bound", dict(measured=[0.1, 0.2, 0.4], below=0.3, judged="median"), "reproduced"),
        ("bound", dict(measured=[0.1, 0.35, 0.4], below=0.3, judged="median"), "failed"),
        ("order", dict(measured=[[1, 2], [0, 3], [2, 1]], names=["a", "b"], judged="median"), "reproduced"),
        ("order", dict(measured=[[1, 2], [3, 1], [3, 1]], names=["a", "b"], judged="median"), "failed"),
        ("slope", dict(expected=-2.0, measured=[-1.96, -2.04], atol=0.05), "reproduced"),
        ("slope", dict(expected=-2.0, measured=[-1.9, -2.04], atol=0.05), "failed"),
        ("holds", dict(measured=[True, True]), "reproduced"),
        ("holds", dict(measured=[True, False]), "failed"),
    ],
)
def test_verdicts(method, arguments, expected):
    assert verdict(method, **arguments) == expected


def test_a_median_verdict_still_shows_all_runs_and_a_wrong_word_is_refused():
    claims = Claims("chapter")
    claims.value(
        "x", "Something is about two.", expected=2.0, measured=[1.9, 2.0, 2.3], atol=0.1, judged="median", **COMMON
    )
    row = claims.as_dicts()[0]
    assert (row["n_seeds"], row["verdict"], "median of the runs" in row["tolerance"]) == (3, "reproduced", True)
    assert row["spread"] == pytest.approx(0.2)
    with pytest.raises(ParameterError, match="judged must be one of 'every', 'median', got 'mean'"):
        claims.bound("y", "Something is small enough.", measured=[1.0], below=2.0, judged="mean", **COMMON)


def test_rows_carry_median_spread_and_runs():
    claims = Claims("chapter")
    claims.value("x", "Something is about two.", expected=2.0, measured=[1.9, 2.0, 2.3], atol=0.5, **COMMON)
    row = claims.as_dicts()[0]
    assert (row["measured"], row["n_seeds"]) == (2.0, 3)
    assert row["spread"] == pytest.approx(0.2)
    assert row["tolerance"] == "± 0.5: for the test"


def test_a_run_with_other_settings_is_not_judged_by_numbers_measured_elsewhere():
    claims = Claims("slug", elsewhere="The settings of the reference.")
    for origin in ("paper", "derived", "independent", "code"):
        claims.bound(origin, "Small.", source="S", origin=origin, measured=[0.5], below=1.0)
    verdicts = {row["id"]: (row["verdict"], row["note"]) for row in claims.as_dicts()}
    assert verdicts["paper"][0] == verdicts["derived"][0] == "reproduced"
    assert verdicts["independent"] == verdicts["code"] == ("not attempted", "The settings of the reference.")


def test_not_attempted_says_what_it_needs():
    claims = Claims("chapter")
    claims.not_attempted("x", "Something large happens.", source="Table 1", needs="A cluster of many GPUs for a week.")
    row = claims.as_dicts()[0]
    jsonschema.validate(row, CLAIM)
    assert row["verdict"] == "not attempted"
    assert "cluster" in table([row])


def test_a_failed_claim_without_a_note_is_not_valid():
    claims = Claims("chapter")
    claims.value("x", "Something is about two.", expected=2.0, measured=5.0, **COMMON)
    row = claims.as_dicts()[0]
    jsonschema.validate(row, CLAIM)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(row | {"note": ""}, CLAIM)


def test_summary_and_html_escape():
    claims = Claims("chapter")
    claims.holds("x", "a < b & c always holds", measured=np.array([True]), **COMMON)
    assert claims.summary() == "1 claims: 1 reproduced, 0 failed, 0 not attempted"
    assert "a &lt; b &amp; c" in claims._repr_html_()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda c: c.value("x", "A statement.", source="s", origin="guess", expected=1, measured=1),
            "origin must be one of",
        ),
        (lambda c: c.bound("x", "A statement.", source="s", origin="paper", measured=1), "needs a bound"),
        (lambda c: [c.holds("x", "A statement.", measured=True, **COMMON) for _ in range(2)], "used twice"),
    ],
)
def test_bad_input_is_one_clear_sentence(call, words):
    with pytest.raises(ParameterError, match=words):
        call(Claims("chapter"))
