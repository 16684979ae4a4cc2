"""Renew the references of chapters from the last quick run: a small notebook for nbval, results for pytest.

    python tools/reference.py [SLUG ...]
    python tools/reference.py --stage      puts them into build/nbval as nbval runs them: as a reader would

Only what was run from the texts as they are becomes a reference. Read the diff like code.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
from chapters import ROOT, BadInputError, Chapter, all_chapters, build_folder, find
from publish_notebooks import INSTALL

FOLDER = ROOT / "tests" / "reference"
STAGE = ROOT / "build" / "nbval"
READER = ROOT / "build/colab/bin/python"  # what a hosted notebook service offers; `make test` makes it
MEASURED = """import json, pathlib
for claim in json.loads(pathlib.Path("results.json").read_text())["claims"]:
    print(f"{claim['id']}: {claim['verdict']}, {claim['measured']}")"""
LONG = 10_000  # characters of text output beyond which nothing is kept


def small_notebook(chapter: Chapter) -> nbformat.NotebookNode:
    """The executed notebook without images, long outputs and metadata of the run."""
    notebook = nbformat.read(build_folder("quick", chapter.slug) / "notebook.ipynb", 4)
    cells = [
        c for c in notebook.cells if c.cell_type == "code" and "injected-parameters" not in c.metadata.get("tags", [])
    ]
    for index, cell in enumerate(cells):
        cell.id = f"cell-{index:03d}"
        cell.metadata = {"tags": cell.metadata["tags"]} if "tags" in cell.metadata else {}
        cell.execution_count = index + 1
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = index + 1
            output.get("metadata", {}).pop("image/png", None)
            for kind in [k for k, v in output.get("data", {}).items() if k[:6] == "image/" or len(str(v)) > LONG]:
                del output.data[kind]
    notebook.cells = cells
    notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"]}
    return notebook


def small_results(chapter: Chapter) -> dict:
    """Claims and glued numbers; no times, machines or versions."""
    results = json.loads((build_folder("quick", chapter.slug) / "results.json").read_text())
    claims = [{key: c[key] for key in ("id", "verdict", "measured", "expected")} for c in results["claims"]]
    return {"parameters": results["parameters"], "claims": claims, "figures": sorted(results["figures"])}


def stage() -> None:
    """What nbval runs: each reference as a reader has it, in an empty folder, with the first cell of the published one.

    A last cell prints what the run measured; the output that it must have is that of the build, so that the run is also
    the second one, which gives the same numbers.
    """
    shutil.rmtree(STAGE, ignore_errors=True)
    library = wheel(STAGE / "wheel")
    for chapter in all_chapters():  # a draft, not in the table of contents, is left out
        if (FOLDER / f"{chapter.slug}.ipynb").exists():
            (STAGE / chapter.slug / "site").mkdir(parents=True)  # where pip puts the library: each has its own
            notebook = nbformat.read(FOLDER / f"{chapter.slug}.ipynb", 4)
            first = nbformat.v4.new_code_cell(INSTALL.format(source=library), id="install")
            last = nbformat.v4.new_code_cell(MEASURED, id="measured", execution_count=len(notebook.cells) + 2)
            last.metadata.tags = ["nbval-check-output"]
            results = json.loads((build_folder("quick", chapter.slug) / "results.json").read_text())
            said = "".join(f"{c['id']}: {c['verdict']}, {c['measured']}\n" for c in results["claims"])
            last.outputs = [nbformat.v4.new_output("stream", name="stdout", text=said)]
            notebook.cells = [first, *notebook.cells, last]
            nbformat.write(notebook, STAGE / chapter.slug / f"{chapter.slug}.ipynb")
    kernel(STAGE / "jupyter/kernels/reader/kernel.json", library)


def wheel(folder: Path) -> Path:
    """The library as it stands, built as pip builds it from a clone."""
    command = ["git", "ls-files", "-co", "--exclude-standard", "lib", "pyproject.toml", "README.md", "LICENSE"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    with tempfile.TemporaryDirectory() as clone:
        for name in listed:
            Path(clone, name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, Path(clone, name))
        subprocess.run([READER, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", folder, clone], check=True)
    return next(folder.glob("lowdim-*.whl"))


def kernel(path: Path, library: Path) -> None:
    """A kernel of the readers' environment; what the first cell installs goes to the notebook's own folder."""
    path.parent.mkdir(parents=True)
    arguments = [str(READER), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    settings = {"LOWDIM_SOURCE": str(library), "PIP_TARGET": "site", "PYTHONPATH": "site"}
    spec = {"argv": arguments, "display_name": "reader", "language": "python", "env": settings}
    path.write_text(json.dumps(spec))


def main() -> int:
    if sys.argv[1:] == ["--stage"]:
        stage()
        return 0
    try:
        chapters = [find(slug) for slug in sys.argv[1:]] or all_chapters()
    except BadInputError as error:
        print(error, file=sys.stderr)
        return 2
    FOLDER.mkdir(parents=True, exist_ok=True)
    for chapter in chapters:
        notebook = small_notebook(chapter)
        if [c.source.strip() for c in notebook.cells] != [code for _, code in chapter.cells]:
            print(f"{chapter.slug} changed since it ran: run `make chapter CH={chapter.slug}` first.", file=sys.stderr)
            return 1
        nbformat.write(notebook, FOLDER / f"{chapter.slug}.ipynb")
        text = json.dumps(small_results(chapter), indent=1, ensure_ascii=False)
        (FOLDER / f"{chapter.slug}.results.json").write_text(text + "\n")
        print(f"tests/reference/{chapter.slug}: renewed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
