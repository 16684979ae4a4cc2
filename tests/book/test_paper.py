"""`make paper` on a machine without a GPU, and its results on the page beside the quick ones."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from chapters import ROOT
from test_kills import end, start
from toys import LIGHT, project_with

PAGE = LIGHT.replace("# A light chapter", "# A light chapter\n\nOf {cite:t}`light`.") + "\n## Claims\n\n## References\n"
CONF = """
import sys
sys.path.insert(0, "book/_ext")
project, author, copyright, master_doc = "Toys", "Us", "2026", "book/part/one"
extensions = ["myst_nb", "sphinxcontrib.bibtex", "bookpages"]
bibtex_bibfiles, nb_execution_mode = ["book/references.bib"], "off"
html_theme, html_theme_options = "sphinx_book_theme", {"repository_url": "https://github.com/us/toys"}
exclude_patterns = ["lib", "build", "tools", ".venv", "site", "jupyter_execute"]
"""
BIB = "@article{light, title={On light}, author={A. Writer}, journal={J}, year={2020}}\n"


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    root = project_with({"one": PAGE, "two": PAGE}, tmp_path_factory.mktemp("project"))
    (root / ".venv").symlink_to(sys.prefix)
    shutil.copytree(ROOT / "book/_ext", root / "book/_ext", ignore=shutil.ignore_patterns("__pycache__"))
    (root / "book/references.bib").write_text(BIB)
    (root / "conf.py").write_text(CONF)
    return root


def make_paper(project, slug=""):
    command = ["make", "-o", ".venv/.complete", "paper", f"CH={slug}"]  # the environment is the tests' own
    return subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=120)


def page_of(project):
    """The text of the page, built again."""
    command = ["-m", "sphinx", "-q", "-b", "html", ".", "site"]
    status, words = end(start(project, *command))
    assert status == 0, words
    return (project / "site/book/part/one.html").read_text()


def test_paper_results_are_kept_and_shown(project):
    quick = project / "build/chapters/quick/one/results.json"
    assert end(start(project, "tools/execute.py", "one"))[0] == 0
    assert "At the paper" not in page_of(project)

    done = make_paper(project, "one")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "results/paper/one: CPU, 0.1 s" in done.stdout
    kept = project / "results/paper/one"
    assert sorted(p.name for p in kept.iterdir()) == ["part-0.npz", "part-1.npz", "part-2.npz", "results.json"]
    results = json.loads((kept / "results.json").read_text())
    assert (results["profile"], results["parameters"]["profile"]) == ("paper", "paper")
    assert {"device", "versions", "commit", "date"} <= results.keys()
    assert json.loads(quick.read_text())["profile"] == "quick"
    assert not (project / "results/paper/two").exists()

    text = page_of(project)
    box = re.search(r'<section id="at-the-papers-size">.*?</section>', text, re.S)[0]
    assert "CPU, 0 s, commit unknown, 2026." in box
    assert "This chapter runs." in box
    address = re.search(r'href="([^"]+results.json)" download', box)[1]
    assert json.loads(Path(os.path.normpath(project / "site/book/part" / address)).read_text()) == results


def test_what_fails_keeps_what_was_there_and_the_others_are_kept(project):
    page, kept = project / "book/part/one.md", project / "results/paper"
    assert make_paper(project, "one").returncode == 0
    before = (kept / "one/results.json").read_bytes()
    page.write_text(page.read_text().replace("import json", "import json\n\nraise RuntimeError('no')"))
    done = make_paper(project)
    assert done.returncode != 0
    assert "one did not run to its end; results/paper/one keeps what it had." in done.stderr
    assert (kept / "one/results.json").read_bytes() == before
    assert (kept / "two/results.json").exists()
