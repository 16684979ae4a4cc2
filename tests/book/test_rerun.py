"""The published notebooks in the hands of a reader: an empty folder, an environment with only what Colab has."""

import json
import os
import subprocess
import sys

import pytest
from chapters import ROOT, all_chapters

SITE = ROOT / "_build/html"
PYTHON = ROOT / "build/colab/bin/python"  # made by `make test`
CHAPTERS = all_chapters()
RUN = (
    "import papermill, sys; papermill.execute_notebook(sys.argv[1], 'out.ipynb', kernel_name='reader',"
    " progress_bar=False, execution_timeout=600)"
)


def reader(folder, source):
    """The settings of a reader's session: a kernel of the bare environment, the library to come from a local clone."""
    kernel = folder / "jupyter/kernels/reader"
    kernel.mkdir(parents=True)
    arguments = [str(PYTHON), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(json.dumps({"argv": arguments, "display_name": "reader", "language": "python"}))
    (folder / "site").mkdir()
    bare = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "LOWDIM_BUILD", "LOWDIM_DATA")}
    site = str(folder / "site")  # where pip puts things: a place of its own for each test, beside the environment
    return bare | {
        "JUPYTER_PATH": str(folder / "jupyter"),
        "LOWDIM_SOURCE": source,
        "PIP_TARGET": site,
        "PYTHONPATH": site,
    }


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """The library as it stands, built as pip builds it from a clone."""
    clone, target = tmp_path_factory.mktemp("clone"), tmp_path_factory.mktemp("wheel")
    command = ["git", "ls-files", "-co", "--exclude-standard", "lib", "pyproject.toml", "README.md", "LICENSE"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in listed:
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run([PYTHON, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", target, clone], check=True)
    return str(next(target.glob("lowdim-*.whl")))


def test_the_first_cell_installs_the_library_and_nothing_else(wheel, tmp_path):
    """Torch and numpy stay as they are; a second call finds the library and does nothing."""
    notebook = json.loads((SITE / "notebooks" / f"{CHAPTERS[0].docname}.ipynb").read_text())
    first = "".join(next(c for c in notebook["cells"] if c["cell_type"] == "code")["source"])
    environment = reader(tmp_path, wheel)
    times = []
    for _ in range(2):
        done = subprocess.run([PYTHON, "-c", first], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        times.append((tmp_path / "site/lowdim").stat().st_mtime_ns)
    assert {path.name.split("-")[0] for path in (tmp_path / "site").iterdir()} == {"lowdim"}
    assert times[0] == times[1]


@pytest.mark.parametrize("chapter", CHAPTERS, ids=[chapter.slug for chapter in CHAPTERS])
def test_a_published_notebook_gives_the_numbers_of_its_page(chapter, wheel, tmp_path):
    source = SITE / "notebooks" / f"{chapter.docname}.ipynb"
    environment = reader(tmp_path, wheel)
    done = subprocess.run(
        [sys.executable, "-c", RUN, source], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads((tmp_path / "results.json").read_text())
    built = json.loads((SITE / "_data" / chapter.slug / "results.json").read_text())
    assert [c["verdict"] for c in results["claims"]] == [c["verdict"] for c in built["claims"]]
    assert [c["measured"] for c in results["claims"]] == [c["measured"] for c in built["claims"]]  # a second run
