"""Sphinx extension of the book.

* Pages are the MyST sources; the outputs of their cells come from the executed notebooks of the build. Sphinx
  executes nothing. A page that was not run, or whose code changed since, gives a warning, which fails the build.
* Under each figure: its data as .npz and .csv, and where it comes from. On dark pages: its dark version.
* Each page carries a content-security policy, see ``policy``.
* What is filled from the results, such as the scoreboard, is in ``claimpages``.
* The buttons for Colab, Binder and download lead to the published notebook. MathJax and plotly.js come from their
  installed packages, so the book works offline.

The seam is ``myst_nb.core.read.read_myst_markdown_notebook`` of the pinned myst-nb.
"""

import html
import importlib.util
import os
import shutil
import sys
from pathlib import Path

import nbformat
from docutils import nodes
from myst_nb.core import read as myst_nb_read
from sphinx.util import logging

sys.path.insert(0, str(Path(__file__).resolve().parent))
import claimpages
import policy
from claimpages import ROOT, paper_folder, raw, results_of, run_folder

from lowdim.claims import MARKS, anchor

LOG = logging.getLogger(__name__)
_read_plain = myst_nb_read.read_myst_markdown_notebook


# ---------------------------------------------------------------- outputs of the executed notebooks


def code_cells(notebook):
    return [
        c for c in notebook.cells if c.cell_type == "code" and "injected-parameters" not in c.metadata.get("tags", [])
    ]


def read_with_outputs(text, config=None, path=None, **options):
    """The page as a notebook, with the outputs of the last run."""
    page = _read_plain(text, config=config, path=path, **options)
    docname = Path(path).resolve().relative_to(ROOT).with_suffix("").as_posix()
    executed = run_folder(docname) / "notebook.ipynb"
    if not executed.exists():
        LOG.warning("was not executed: run `make run`", location=docname, type="book", subtype="missing")
        return page
    run = nbformat.read(executed, 4)
    wanted, done = code_cells(page), code_cells(run)
    if [c.source.strip() for c in wanted] != [c.source.strip() for c in done]:
        LOG.warning("its code changed since it ran: run `make run`", location=docname, type="book", subtype="stale")
        return page
    for cell, executed_cell in zip(wanted, done, strict=True):
        cell["outputs"], cell["execution_count"] = executed_cell.outputs, executed_cell.execution_count
    page.metadata["language_info"] = run.metadata.get("language_info", {})
    return page


def depend_on_run(app, docname, source):
    for name in ("notebook.ipynb", "results.json"):
        if (run_folder(docname) / name).exists():
            app.env.note_dependency(str(run_folder(docname) / name))


def outdated(app, env, added, changed, removed):
    """Pages that were read before their chapter first ran, here or at the paper's size, and those that show all."""
    new = [d for d in env.found_docs if (run_folder(d) / "notebook.ipynb").exists() and not env.dependencies.get(d)]
    kept = {d: paper_folder(d) / "results.json" for d in env.found_docs}
    new += [d for d, path in kept.items() if path.exists() and str(path) not in env.dependencies.get(d, ())]
    return [*new, *(page for page in claimpages.PAGES if page in env.found_docs)]


# ---------------------------------------------------------------- figures


def finish_figures(app, document):
    """Add the dark version and the line with data and provenance to each figure of a chapter."""
    docname = app.env.docname
    results = results_of(docname)
    if results is None:
        return
    prefix = f"fig-{results['slug']}-"
    for figure in document.findall(nodes.figure):
        name = next((n.removeprefix(prefix) for n in figure["names"] if n.startswith(prefix)), None)
        if name not in results["figures"]:
            continue
        base = f"{'../' * docname.count('/')}_data/{results['slug']}/{name}"
        image = next(figure.findall(nodes.image), None)
        if image is not None:  # the theme's own only-light and only-dark classes would hide the caption too
            image["classes"] += ["on-light", "dark-light"]
            alt, width = html.escape(image.get("alt", ""), quote=True), str(image["width"]).removesuffix("px")
            dark = f'<img class="on-dark dark-light" src="{base}.dark.png" alt="{alt}" loading="lazy" width="{width}">'
            image.parent.insert(image.parent.index(image) + 1, raw(dark))
        next(figure.findall(nodes.caption)).append(raw(figure_line(results, name, base)))


def figure_line(results: dict, name: str, base: str) -> str:
    """Where a figure comes from, its numbers, and the claims that rest on it, in one quiet line."""
    rest = [claim for claim in results["claims"] if name in claim["figures"]]
    runs = max((claim["n_seeds"] for claim in rest), default=0)
    link = lambda id: f'<a href="#{anchor(results["slug"], id)}">{id}</a>'
    marks = [f"{link(claim['id'])} {MARKS[claim['verdict']]}" for claim in rest]
    seeds = f"seed {results['parameters']['seed']}" + (f", claims over up to {runs} runs" if runs > 1 else "")
    return (
        f'<span class="figure-data">Data: <a href="{base}.npz" download>npz</a>, '
        f'<a href="{base}.csv" download>csv</a>. '
        f'<span class="provenance">{results["profile"].capitalize()} profile, {seeds}, '
        f"{html.escape(results['device'])}, "
        f"chapter run in {results['runtime_s']:.0f} s, commit {html.escape(results['commit'])}, "
        f"{results['date'][:10]}.</span>" + (f" Claims: {', '.join(marks)}." if marks else "") + "</span>"
    )


# ---------------------------------------------------------------- page furniture and files


def repository(app) -> str:
    return os.environ.get("BOOK_REPOSITORY") or app.config.html_theme_options["repository_url"]


def rerun_buttons(app, pagename, templatename, context, doctree):
    """Point the buttons that launch and download a chapter at the notebook published beside the site."""
    address, notebook = repository(app).removeprefix("https://github.com/"), f"notebooks/{pagename}.ipynb"
    targets = {
        "Colab": f"https://colab.research.google.com/github/{address}/blob/gh-pages/{notebook}",
        "Binder": f"https://mybinder.org/v2/gh/{address}/gh-pages?urlpath=lab/tree/{notebook}",
        ".ipynb": "../" * pagename.count("/") + notebook,
    }
    for group in context.get("header_buttons", []):
        for button in group.get("buttons", []):
            if isinstance(button, dict) and button.get("text") in targets:
                button["url"] = targets[button["text"]]


def tidy_page(app, pagename, templatename, context, doctree):
    """Leave out the live-code scripts that Jupyter Book adds to every page (unused here, and they clash), and the roles
    that docutils gives to bibliographies and their entries, which ARIA does not allow there."""
    if "body" in context:
        body = context["body"].replace('role="list" class="citation-list"', 'class="citation-list"')
        context["body"] = body.replace(' role="doc-biblioentry"', "")
    scripts = context.get("script_files", [])
    context["script_files"] = [s for s in scripts if "thebe" not in f"{s} {getattr(s, 'attributes', '')}".lower()]


def copy_assets(app, failed):
    """MathJax, plotly.js, and the figures' data and dark versions."""
    if failed or app.builder.format != "html":
        return
    static = Path(app.outdir, "_static")
    mathjax = Path(importlib.util.find_spec("sphinx-mathjax-offline").submodule_search_locations[0], "static/mathjax")
    (static / "mathjax").mkdir(parents=True, exist_ok=True)
    shutil.copy(mathjax / "tex-chtml.js", static / "mathjax")
    for folder in ("input/tex/extensions", "output/chtml/fonts/woff-v2"):
        shutil.copytree(mathjax / folder, static / "mathjax" / folder, dirs_exist_ok=True)
    plotly = importlib.util.find_spec("plotly").submodule_search_locations[0]
    shutil.copy(Path(plotly, "package_data/plotly.min.js"), static)
    for docname in app.env.found_docs:
        results = results_of(docname)
        if results:
            target = Path(app.outdir, "_data", results["slug"])
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir(parents=True)
            for path in run_folder(docname).iterdir():
                if path.suffix in (".npz", ".csv", ".png") or path.name == "results.json":
                    shutil.copy(path, target)
            if (paper_folder(docname) / "results.json").exists():
                shutil.copytree(paper_folder(docname), target / "paper")


def setup(app):
    myst_nb_read.read_myst_markdown_notebook = read_with_outputs
    claimpages.setup(app)
    policy.setup(app)
    app.connect("source-read", depend_on_run)
    app.connect("env-get-outdated", outdated)
    app.connect("doctree-read", finish_figures)
    app.connect("html-page-context", rerun_buttons, priority=900)
    app.connect("html-page-context", tidy_page, priority=900)
    app.connect("build-finished", copy_assets)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
