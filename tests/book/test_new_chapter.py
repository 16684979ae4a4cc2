"""`make new` writes a chapter that runs and keeps the contract, and refuses what is not in the catalogue."""

import os
import shutil
import subprocess
import sys

import pytest
import yaml
from chapters import ROOT

SLUG = "transform-once"


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the book as git sees it, in which a chapter may be added."""
    root = tmp_path_factory.mktemp("book")
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    for name in listed.stdout.split():
        if (ROOT / name).exists():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, root / name)
    return root


def tool(project, *command):
    path = os.pathsep.join([str(project / "lib"), os.environ.get("PYTHONPATH", "")])
    return subprocess.run([sys.executable, *command], cwd=project, capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": path})  # fmt: skip


def test_a_new_chapter_runs_and_keeps_the_contract(project):
    done = tool(project, "tools/new_chapter.py", SLUG)
    assert done.returncode == 0, done.stderr
    docname = f"book/sequence/{SLUG}"
    files = [
        entry["file"]
        for part in yaml.safe_load((project / "_toc.yml").read_text())["parts"]
        for entry in part["chapters"]
    ]
    assert files.count(docname) == 1
    assert files.index(docname) < files.index("book/claims/failed")
    done = tool(project, "tools/run_chapter.py", SLUG)
    assert done.returncode == 0, done.stderr
    assert "4 reproduced, 0 failed, 1 not attempted" in done.stdout
    assert tool(project, "tools/reference.py", SLUG).returncode == 0
    checks = tool(project, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/book/test_chapters.py", "-k", SLUG)
    assert checks.returncode == 0, checks.stdout[-3000:]
    assert "13 passed" in checks.stdout

    again = tool(project, "tools/new_chapter.py", SLUG)
    assert again.returncode == 2
    assert again.stderr == f"{SLUG} has a chapter already.\n"


def test_the_second_chapter_of_a_part_joins_the_first(project):
    assert tool(project, "tools/new_chapter.py", "koopman-limits").returncode == 0
    contents = yaml.safe_load((project / "_toc.yml").read_text())["parts"]
    assert [part["caption"] for part in contents].count("Sequence models and operators") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "Which chapter? make new CH="),
        (("nothing-like-it",), "the catalogue has no paper 'nothing-like-it'; without"),
    ],
)
def test_what_cannot_be_added_is_said_in_one_sentence(project, arguments, words):
    before = (project / "_toc.yml").read_text()
    done = tool(project, "tools/new_chapter.py", *arguments)
    assert (done.returncode, words in done.stderr, done.stderr.count("\n")) == (2, True, 1)
    assert (project / "_toc.yml").read_text() == before
