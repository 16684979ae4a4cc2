"""The audit of the dependencies is of the pins that are installed: every one is in it, none is older than a fix."""

import re
import subprocess
import sys
from datetime import date

import audit
import pytest
from chapters import ROOT
from packaging.version import Version

TEXT = (ROOT / "AUDIT.md").read_text()
PINS = {name: version for name, (_, version, _) in audit.pins().items()}
LINES = re.compile(r"^\| ([\w.-]+) \| ((?:CVE|PYSEC|GHSA|advisor)[^|]*) \| ([\d.]+) \|", re.M)
ADVISORIES = [(name, what, fixed) for name, what, fixed in LINES.findall(TEXT.partition("## Packages")[0])]


def test_every_pinned_package_is_in_the_audit_with_its_version():
    assert {name: row[1] for name, row in audit.rows().items()} == PINS


def test_every_package_has_a_licence_and_somebody_who_asks_for_it():
    bare = [row[0] for row in audit.rows().values() if len(row) != 5 or not all(row) or "not stated" in row[2]]
    assert bare == []


def test_every_requirement_is_pinned_to_one_version():
    """One version each, in files without other options: nothing is installed that the audit does not name."""
    for file in audit.PINS:
        lines = [line.partition("#")[0].strip() for line in (ROOT / file).read_text().splitlines()]
        loose = [line for line in lines if line and not re.fullmatch(r"[\w.-]+==[\w.]+", line)]
        assert loose == [], file


def test_what_is_installed_is_what_is_pinned():
    found = audit.installed()
    wrong = {
        name: found[name].version
        for name, (_, version, file) in audit.pins().items()
        if file == "requirements.txt" and (name not in found or found[name].version.partition("+")[0] != version)
    }
    assert wrong == {}


@pytest.mark.parametrize(("package", "what", "fixed"), ADVISORIES, ids=[row[0] for row in ADVISORIES])
def test_no_pin_is_older_than_a_fix(package, what, fixed):
    assert Version(PINS[audit.plain(package)]) >= Version(fixed), what


def test_the_advisories_are_read():
    assert len(ADVISORIES) >= 10
    assert Version("12.2.0") < Version({row[0]: row[2] for row in ADVISORIES}["pillow"]), "and would be seen"


def test_the_audit_has_a_date():
    date.fromisoformat(re.search(r"Looked at on (\d{4}-\d\d-\d\d)", TEXT)[1])


def test_the_table_is_what_the_tool_writes(tmp_path):
    """But for packages that are installed elsewhere: their rows are kept."""
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'tools')!r}); import audit; print(audit.table(), end='')"
    table = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    ours = {line.split(" | ")[0]: line for line in table.splitlines() if "| requirements.txt |" in line}
    theirs = {line.split(" | ")[0]: line for line in TEXT.splitlines() if "| requirements.txt |" in line}
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if ours[name].split(" | ")[1:3] != theirs[name].split(" | ")[1:3]]
    assert different == []
