"""Renew the references of chapters from the last quick run: a small notebook for nbval, results for pytest.

    python tools/reference.py [SLUG ...]
    python tools/reference.py --stage      copies the notebooks to build/nbval, where nbval may leave files

Only what was run from the texts as they are becomes a reference. Read the diff like code.
"""

import json
import shutil
import sys

import nbformat
from chapters import ROOT, BadInputError, Chapter, all_chapters, build_folder, find

FOLDER = ROOT / "tests" / "reference"
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
    """nbval runs a notebook in its own folder, which fills up with results: give each one a folder in the build."""
    target = ROOT / "build" / "nbval"
    shutil.rmtree(target, ignore_errors=True)
    for chapter in all_chapters():  # a draft, not in the table of contents, is left out
        if (FOLDER / f"{chapter.slug}.ipynb").exists():
            (target / chapter.slug).mkdir(parents=True)
            shutil.copy(FOLDER / f"{chapter.slug}.ipynb", target / chapter.slug)


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
