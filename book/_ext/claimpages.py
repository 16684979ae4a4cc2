"""What the pages say from the results: status lines, the scoreboard, claims by verdict, how to cite.

Nothing here is written by hand: every number and every sentence about a claim comes from ``results.json``.
"""

import html
import json
import os
import re
import sys
from pathlib import Path

import yaml
from docutils import nodes
from pybtex.database import parse_file
from sphinx.util.docutils import SphinxDirective

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
from chapters import ROOT, all_chapters, build_folder, verdict_counts

from lowdim.claims import MARKS, table

PROFILE = os.environ.get("BOOK_PROFILE", "quick")
PAGES = ["book/index", "book/claims/failed", "book/claims/not-attempted", "book/claims/reproduced"]
COLUMNS = ("Paper", "Status", "Reproduced", "Failed", "Not attempted", "Time", "Memory", "Device")


def run_folder(docname: str) -> Path:
    return build_folder(PROFILE, docname.rsplit("/", 1)[-1])


def paper_folder(docname: str) -> Path:
    """Where results at the paper's size are kept, if they were measured."""
    return ROOT / "results/paper" / docname.rsplit("/", 1)[-1]


def results_of(docname: str) -> dict | None:
    path = run_folder(docname) / "results.json"
    return json.loads(path.read_text()) if path.exists() else None


def raw(text: str) -> nodes.raw:
    return nodes.raw("", text, format="html")


class ChapterStatus(SphinxDirective):
    """One line below a chapter's head: claims by verdict, run time, memory, device."""

    def run(self):
        results = results_of(self.env.docname)
        if results is None:
            return [nodes.paragraph("", "This chapter has not been run yet.")]
        n = verdict_counts(results)
        text = (
            '<p class="chapter-status" role="note"><a href="#claims">'
            f'<span class="ok">✓ {n["reproduced"]} reproduced</span> '
            f'<span class="bad">✗ {n["failed"]} failed</span> '
            f'<span class="open">– {n["not attempted"]} not attempted</span></a> '
            f"<span>{results['runtime_s']:.0f} s</span> <span>{results['peak_memory_mb']} MB</span> "
            f"<span>{html.escape(results['device'])}</span> <span>{results['profile']} profile</span></p>"
        )
        plain = f"Claims: {n['reproduced']} reproduced, {n['failed']} failed, {n['not attempted']} not attempted."
        return [raw(text), nodes.raw("", plain, format="latex")]


class Scoreboard(SphinxDirective):
    """Every paper of the catalogue with the state of its chapter, part by part. A script makes it sortable."""

    def run(self):
        self.env.note_dependency(str(ROOT / "book/catalogue.yml"))
        parts = yaml.safe_load((ROOT / "book/catalogue.yml").read_text())["parts"]
        chapters = {docname.rsplit("/", 1)[-1]: docname for docname in self.env.found_docs}
        bodies, totals, papers, done = [], dict.fromkeys(MARKS, 0), 0, 0
        for part in parts:
            rows = []
            for paper in part["papers"]:
                docname = chapters.get(paper["slug"])
                results = results_of(docname) if docname else None
                rows.append(self.row(paper, docname, results))
                done += results is not None
                for verdict, number in verdict_counts(results).items() if results else ():
                    totals[verdict] += number
            heading = (
                f'<tr class="part"><th colspan="{len(COLUMNS)}" scope="colgroup">{html.escape(part["part"])}</th></tr>'
            )
            bodies.append(f"<tbody>{heading}{''.join(rows)}</tbody>")
            papers += len(rows)
        head = "".join(f'<th scope="col">{name}</th>' for name in COLUMNS)
        summary = f"{done} of {papers} papers have a chapter; the others are planned."
        table = f'<table class="scoreboard"><thead><tr>{head}</tr></thead>{"".join(bodies)}</table>'
        lines = f'{self.totals(totals)}<p class="scoreboard-summary">{summary}</p><div class="scoreboard-tools"></div>'
        return [raw(lines + table), nodes.raw("", summary, format="latex")]

    @staticmethod
    def totals(totals: dict) -> str:
        kinds = {"reproduced": "ok", "failed": "bad", "not attempted": "open"}
        words = {v: f'<span class="{kinds[v]}">{MARKS[v]} {number} {v}</span>' for v, number in totals.items()}
        links = " ".join(f'<a href="claims/{v.replace(" ", "-")}.html">{text}</a>' for v, text in words.items())
        return f'<p class="chapter-status" role="note">Claims: {links}</p>'

    def row(self, paper, docname, results):
        title = html.escape(paper["title"])
        if results is None:
            kind, cells = "planned", [title, "planned"] + ["–"] * (len(COLUMNS) - 2)
        else:
            link = f'<a href="{"../" * self.env.docname.count("/")}{docname}.html">{title}</a>'
            machine = [
                f"{results['runtime_s']:.0f} s",
                f"{results['peak_memory_mb']} MB",
                html.escape(results["device"]),
            ]
            kind, cells = "chapter", [link, "chapter", *map(str, verdict_counts(results).values()), *machine]
        tds = "".join(f'<td data-label="{label}">{cell}</td>' for label, cell in zip(COLUMNS, cells, strict=True))
        return f'<tr class="{kind}" id="paper-{paper["slug"]}">{tds}</tr>'


class ClaimList(SphinxDirective):
    """All claims of the book with one verdict, chapter by chapter."""

    required_arguments, final_argument_whitespace = 1, True

    def run(self):
        verdict = self.arguments[0]
        titles, sections = self.titles(), []
        for chapter in all_chapters():
            rows = [
                row for row in (results_of(chapter.docname) or {"claims": []})["claims"] if row["verdict"] == verdict
            ]
            if rows:
                section = nodes.section(ids=[f"claims-of-{chapter.slug}"], names=[f"claims of {chapter.slug}"])
                link = (
                    f'<p><a href="{"../" * self.env.docname.count("/")}{chapter.docname}.html">To the chapter</a></p>'
                )
                section += [nodes.title("", titles[chapter.slug]), raw(link + table(rows, chapter.slug))]
                sections.append(section)
        return sections or [nodes.paragraph("", "There is none.")]

    @staticmethod
    def titles() -> dict[str, str]:
        parts = yaml.safe_load((ROOT / "book/catalogue.yml").read_text())["parts"]
        return {paper["slug"]: paper["title"] for part in parts for paper in part["papers"]}


def finish_chapter(app, document):
    """Add the paper-size results, where they were measured, and how to cite, to a chapter's page."""
    docname = app.env.docname
    if results_of(docname) is None:
        return
    slug = docname.rsplit("/", 1)[-1]
    sections = {section["ids"][0]: section for section in document.findall(nodes.section)}
    measured = paper_folder(docname) / "results.json"
    if measured.exists() and "claims" in sections:
        app.env.note_dependency(str(measured))
        paper = json.loads(measured.read_text())
        words = f"{paper['device']}, {paper['runtime_s']:.0f} s, commit {paper['commit']}, {paper['date'][:10]}."
        data = f"{'../' * docname.count('/')}_data/{slug}/paper/results.json"
        link = raw(f'<p>With parameters and versions: <a href="{data}" download>results.json</a>.</p>')
        box = nodes.section(ids=["at-the-papers-size"], names=["at the paper's size"])
        box += [nodes.title("", "At the paper's size"), nodes.paragraph("", words), raw(table(paper["claims"])), link]
        sections["claims"] += box
    if "references" in sections:
        sections["references"] += citation(app, docname)


def citation(app, docname: str) -> nodes.section:
    """The paper's BibTeX entry and the companion's."""
    text = Path(app.env.doc2path(docname)).read_text()
    key = re.search(r"\{cite(?::[tp])?\}`([\w-]+)", text)[1]
    slug, title = docname.rsplit("/", 1)[-1], re.search(r"^# (.+)$", text, re.M)[1]
    entry = parse_file(str(ROOT / "book/references.bib")).entries[key]
    address = app.config.html_theme_options["repository_url"]
    ours = (
        f"@misc{{lowdim-{slug},\n  title = {{{title}}},\n  author = {{{{{app.config.author}}}}},\n"
        f"  howpublished = {{A chapter of Low-Dimensional Learning, {address}}},\n"
        f"  year = {{{app.config.copyright}}},\n}}"
    )
    section = nodes.section(ids=["how-to-cite"], names=["how to cite"])
    section += nodes.title("", "How to cite")
    section += nodes.paragraph("", "The paper, and this chapter if its numbers or code were of use:")
    for bibtex in (entry.to_string("bibtex").strip(), ours):
        section += nodes.literal_block(bibtex, bibtex, language="bibtex")
    return section


def setup(app):
    app.add_directive("chapter-status", ChapterStatus)
    app.add_directive("scoreboard", Scoreboard)
    app.add_directive("claim-list", ClaimList)
    app.connect("doctree-read", finish_chapter)
