"""The published notebooks in the hands of a reader: an environment with only what Colab has, the library to install.

That all of them run there from an empty folder, and give the numbers of their pages, is what nbval checks: it runs the
references in the readers' environment, as ``tools/reference.py --stage`` prepared them.
"""

import json
import os
import subprocess

import nbformat
import pytest
from chapters import ROOT, all_chapters
from publish_notebooks import INSTALL
from reference import FOLDER, READER, STAGE

SITE = ROOT / "_build/html"
CHAPTERS = all_chapters()


def code_of(path):
    return [cell.source.strip() for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]


def test_the_first_cell_installs_the_library_and_nothing_else(tmp_path):
    """Torch and numpy stay as they are; a second call finds the library and does nothing."""
    notebook = json.loads((SITE / "notebooks" / f"{CHAPTERS[0].docname}.ipynb").read_text())
    first = "".join(next(c for c in notebook["cells"] if c["cell_type"] == "code")["source"])
    site = tmp_path / "site"
    site.mkdir()
    bare = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "LOWDIM_BUILD", "LOWDIM_DATA")}
    library = next((STAGE / "wheel").glob("lowdim-*.whl"))
    environment = bare | {"LOWDIM_SOURCE": str(library), "PIP_TARGET": str(site), "PYTHONPATH": str(site)}
    times = []
    for _ in range(2):
        done = subprocess.run([READER, "-c", first], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        times.append((site / "lowdim").stat().st_mtime_ns)
    assert {path.name.split("-")[0] for path in site.iterdir()} == {"lowdim"}
    assert times[0] == times[1]


@pytest.mark.parametrize("chapter", CHAPTERS, ids=[chapter.slug for chapter in CHAPTERS])
def test_what_nbval_runs_is_what_is_published(chapter):
    """The first cell, up to where the library comes from, and every cell of the chapter; then one that looks back."""
    first, *published = code_of(SITE / "notebooks" / f"{chapter.docname}.ipynb")
    install, *staged, measured = code_of(STAGE / chapter.slug / f"{chapter.slug}.ipynb")
    before, after = INSTALL.split("{source}")
    for text in (first, install):
        assert text.startswith(before)
        assert text.endswith(after)
    assert staged == published == code_of(FOLDER / f"{chapter.slug}.ipynb")
    assert "results.json" in measured
