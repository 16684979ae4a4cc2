"""What a chapter left behind when it ended: where it failed, or its results, checked and completed."""

import json
from pathlib import Path

import jsonschema
import nbformat
from chapters import Chapter

from lowdim.files import SCHEMA, write_atomically


class ChapterError(RuntimeError):
    """A chapter raised; the message is one sentence."""


def section_that_failed(work: Path) -> str:
    """The heading above the cell that raised, in ``work/failed.ipynb``."""
    cells = nbformat.read(work / "failed.ipynb", 4).cells
    at = next((k for k, c in enumerate(cells) if c.cell_type == "code" and _raised(c)), 0)
    headings = [
        line for c in cells[:at] if c.cell_type == "markdown" for line in c.source.splitlines() if line[:1] == "#"
    ]
    return headings[-1].lstrip("# ") if headings else "?"


def _raised(cell) -> bool:
    return any(output.output_type == "error" for output in cell.get("outputs", []))


def finished(chapter: Chapter, notebook: nbformat.NotebookNode, work: Path) -> dict:
    """Check the results against the schema, add captions and alt texts to the figures, write both files."""
    if not (work / "results.json").exists():
        raise ChapterError(f"{chapter.slug}: the chapter ended without writing results.json (see out.write).")
    results = json.loads((work / "results.json").read_text())
    for cell in notebook.cells:
        options = cell.metadata.get("mystnb", {})
        name = options.get("figure", {}).get("name", "").removeprefix(f"fig-{chapter.slug}-")
        if name in results["figures"]:
            caption, alt = options["figure"]["caption"], options["image"]["alt"]
            results["figures"][name] |= {"caption": " ".join(caption.split()), "alt": " ".join(alt.split())}
    form = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))
    if fault := jsonschema.exceptions.best_match(form.iter_errors(results)):
        where = "/".join(map(str, fault.absolute_path))
        raise ChapterError(f"{chapter.slug}: results.json breaks its schema at {where!r}: {fault.message}.")
    write_atomically(work / "results.json", json.dumps(results, indent=1, ensure_ascii=False).encode())
    notebook.metadata.pop("papermill", None)
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell.metadata.tags.append("remove-cell")
    write_atomically(work / "notebook.ipynb", nbformat.writes(notebook).encode())
    return results
