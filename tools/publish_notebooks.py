"""From executed notebooks to notebooks that a reader opens in Colab or Jupyter.

A first cell installs the library at the commit of the build and nothing else; MyST roles and directives become plain
markdown; captions and outputs stay. The files go to ``_build/html/notebooks``, where Colab, Binder and the download
button find them; ``_build/html/binder`` says what Binder installs.
"""

import argparse
import json
import os
import posixpath
import re
import subprocess
from pathlib import Path

import nbformat
import yaml
from chapters import ROOT, Chapter, all_chapters, build_folder, verdict_counts
from pybtex.database import parse_file

SITE = ROOT / "_build" / "html"
LABEL = re.compile(r"^\(([\w-]+)\)=$|^    name: (fig-[\w-]+)$", re.M)
HOME = {label or name: chapter.docname for chapter in all_chapters() for label, name in LABEL.findall(chapter.text)}
INSTALL = """# Installs the book's library where it is missing (Colab, Kaggle, a bare Jupyter) and touches nothing else.
import importlib.util, subprocess, sys, os
wanted = [] if importlib.util.find_spec("lowdim") else [os.environ.get("LOWDIM_SOURCE", "{source}")]
if wanted:
    subprocess.check_call([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", *wanted])
missing = [p for m, p in (("sklearn", "scikit-learn"), ("plotly", "plotly")) if not importlib.util.find_spec(m)]
if missing:
    subprocess.check_call([sys.executable, "-m", "pip", "install", "--quiet", *missing])"""


def repository() -> str:
    return os.environ.get("BOOK_REPOSITORY") or yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]["url"]


def commit() -> str:
    found = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True)
    return found.stdout.strip() if found.returncode == 0 else "main"


def page_address(docname: str) -> str:
    owner, name = repository().removeprefix("https://github.com/").split("/")
    return f"https://{owner}.github.io/{name}/{docname}.html"


def references() -> dict[str, tuple[str, str, str]]:
    """Key -> (authors and year in the text, the same in brackets, full entry)."""
    found = {}
    for key, entry in parse_file(str(ROOT / "book/references.bib")).entries.items():
        people = entry.persons["author"]
        last = [" ".join(person.last_names) for person in people]
        short = last[0] if len(last) == 1 else " and ".join(last) if len(last) == 2 else f"{last[0]} et al."
        names = ", ".join(str(" ".join(p.first_names + p.last_names)) for p in people)
        fields = entry.fields
        full = f"{names}. {fields['title']}. {fields.get('booktitle') or fields.get('journal', '')}, {fields['year']}."
        found[key] = (f"{short} ({fields['year']})", f"{short}, {fields['year']}", full.replace(" ,", ","))
    return found


class Plain:
    """MyST markdown -> plain markdown for one chapter."""

    def __init__(self, chapter: Chapter, results: dict, bib: dict):
        self.chapter, self.results, self.bib, self.cited = chapter, results, bib, []
        labels = re.findall(r"^:label: (\S+)", chapter.text, re.M)
        self.numbers = {label: k for k, label in enumerate(labels, 1)}

    def convert(self, text: str) -> str:
        text = re.sub(r"\{glue:text\}`(\w+)(?::([^`]+))?`", self.glued, text)
        text = re.sub(r"\{cite(?::([tp]))?\}`([^`]+)`", self.citation, text)
        text = re.sub(r"\{eq\}`([^`]+)`", lambda m: f"({self.numbers.get(m[1], m[1])})", text)
        text = re.sub(r"\{(doc|ref|numref)\}`(?:([^`<]+?)\s*<([^`>]+)>|([^`]+))`", self.link, text)
        text = re.sub(r"^\([\w-]+\)=\n", "", text, flags=re.M)
        text = re.sub(r"```\{math\}\n(.*?)```", self.display_math, text, flags=re.S)
        text = re.sub(r"```\{chapter-status\}\n```", self.status(), text)
        text = re.sub(r"```\{bibliography\}.*?```", lambda m: self.entries(), text, flags=re.S)
        text = re.sub(
            r"^:::+\{(\w+)\} ?([^\n]*)\n(?::\w+:[^\n]*\n)*(.*?)\n:::+", self.admonition, text, flags=re.S | re.M
        )
        return text

    def glued(self, match):
        value = self.results["glue"][match[1]]
        return format(value, match[2]) if match[2] else str(value)

    def citation(self, match):
        keys = [key.strip() for key in match[2].split(",")]
        self.cited += [key for key in keys if key not in self.cited]
        return (
            "; ".join(self.bib[k][0] for k in keys)
            if match[1] == "t"
            else f"({'; '.join(self.bib[k][1] for k in keys)})"
        )

    def link(self, match):
        role, target = match[1], match[3] or match[4]
        if role == "doc":  # relative to the page, as in Sphinx
            page = page_address(posixpath.normpath(posixpath.join(posixpath.dirname(self.chapter.docname), target)))
        else:
            page = f"{page_address(HOME.get(target, self.chapter.docname))}#{target}"
        return f"[{match[2] or target}]({page})"

    def display_math(self, match):
        label = re.match(r":label: (\S+)\n+", match[1])
        body = match[1][label.end() :] if label else match[1]
        tag = f" \\tag{{{self.numbers[label[1]]}}}" if label else ""
        return f"$$\n{body.strip()}{tag}\n$$"

    def status(self) -> str:
        counts = ", ".join(f"{number} {verdict}" for verdict, number in verdict_counts(self.results).items())
        return f"Claims: {counts}. {self.results['runtime_s']:.0f} s on {self.results['device']}."

    def entries(self) -> str:
        return "\n".join(f"- {self.bib[key][2]}" for key in sorted(self.cited))

    def admonition(self, match):
        body = "\n".join(f"> {line}" for line in match[3].strip().splitlines())
        return f"> **{match[2] or match[1].title()}**\n>\n{body}"


def published(chapter: Chapter, profile: str, bib: dict) -> nbformat.NotebookNode:
    """The reader's notebook of one chapter."""
    folder = build_folder(profile, chapter.slug)
    notebook = nbformat.read(folder / "notebook.ipynb", 4)
    plain = Plain(chapter, json.loads((folder / "results.json").read_text()), bib)
    source = f"git+{repository()}@{commit()}"
    page = page_address(chapter.docname)
    cells = [
        nbformat.v4.new_markdown_cell(
            f"*The notebook of a page of the book: [{chapter.slug}]({page}). Outputs are from its last run.*"
        ),
        nbformat.v4.new_code_cell(INSTALL.format(source=source), metadata={"cellView": "form"}),
    ]
    for cell in notebook.cells:
        if "injected-parameters" in cell.metadata.get("tags", []):
            continue
        options = cell.metadata.pop("mystnb", {})
        cell.metadata = {"tags": cell.metadata["tags"]} if "tags" in cell.metadata else {}
        if cell.cell_type == "markdown":
            cell.source = plain.convert(cell.source)
        cells.append(cell)
        if "figure" in options:
            cells.append(
                nbformat.v4.new_markdown_cell(f"*{plain.convert(' '.join(options['figure']['caption'].split()))}*")
            )
    for index, cell in enumerate(cells):
        cell["id"] = f"cell-{index:03d}"
    notebook.cells = cells
    notebook.metadata = {
        "kernelspec": notebook.metadata["kernelspec"],
        "language_info": notebook.metadata.get("language_info", {}),
    }
    nbformat.validate(notebook)
    return notebook


def binder_requirements() -> str:
    """The first block of the pins, which is what chapters import, and the library at the commit of the build."""
    pins = (ROOT / "requirements.txt").read_text()
    block = re.search(r"# the library and its chapters\n(.*?)\n\n", pins, re.S)[1]
    return f"{block}\nipykernel\nlowdim @ git+{repository()}@{commit()}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the readers' notebooks into the site.")
    parser.add_argument("--profile", default="quick", choices=["quick", "paper"])
    profile = parser.parse_args().profile
    bib = references()
    for chapter in all_chapters():
        path = Path(SITE, "notebooks", f"{chapter.docname}.ipynb")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(nbformat.writes(published(chapter, profile, bib)))
        Path(SITE, "_sources", f"{chapter.docname}.ipynb").unlink(missing_ok=True)  # the theme's copy of the page
    (SITE / "binder").mkdir(exist_ok=True)
    (SITE / "binder/requirements.txt").write_text(binder_requirements())
    (SITE / ".nojekyll").touch()


if __name__ == "__main__":
    main()
