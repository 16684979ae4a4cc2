"""The built site: whole, and the checker finds what it should."""

import html
import json
import re
import subprocess

import nbformat
import pytest
from chapters import ROOT, all_chapters
from check_site import problems
from policy import patient, protected

SITE = ROOT / "_build/html"
CHAPTERS = all_chapters()
each_chapter = pytest.mark.parametrize("chapter", CHAPTERS, ids=[chapter.slug for chapter in CHAPTERS])


def test_the_site_is_whole():
    assert problems(SITE) == []


PAGE = """<html><head></head><body><article><a href="#here">a</a><p id="here">b</p>{}</article></body></html>"""
BROKEN = {
    "leads to gone.html": '<a href="gone.html">x</a>',
    "no anchor #there": '<a href="#there">x</a>',
    "from another host": '<script src="https://example.org/x.js"></script>',
    "has no alt text": '<img src="i.png" alt="x">',
    "has no data download": "<figure id='f'></figure>",
    "does not say where it comes from": "<figure id='f'></figure>",
    "a cell printed an error": '<div class="output stderr">Warning</div>',
}


@pytest.mark.parametrize(("words", "markup"), BROKEN.items())
def test_the_checker_finds(words, markup, tmp_path):
    for name in ("a.html", "b.html", "c.html"):
        (tmp_path / name).write_text(protected(PAGE.format("")))
    (tmp_path / "i.png").touch()
    assert problems(tmp_path) == []
    (tmp_path / "a.html").write_text(PAGE.format(markup))
    assert any(words in problem for problem in problems(tmp_path))


SCRIPTS = {
    '<script src="a.js?v=1"></script>': '<script defer src="a.js?v=1"></script>',
    '<script data-x="1" src="a.js"></script>': '<script defer data-x="1" src="a.js"></script>',
    '<script src="../documentation_options.js?v=1"></script>': None,  # inline scripts read it
    '<script async src="a.js"></script>': None,
    '<script defer="defer" src="a.js"></script>': None,
    "<script>let a = 1;</script>": None,
    '<script defer src="../_static/mathjax/tex-chtml.js?v=1"></script>': (
        '<link rel="preload" as="script" fetchpriority="low" href="../_static/mathjax/tex-chtml.js?v=1">'
        '<script type="late" src="../_static/mathjax/tex-chtml.js?v=1"></script>'
    ),
    '<script type="late" src="../_static/scripts/fontawesome.js"></script>': None,  # a page that was built before
}


@pytest.mark.parametrize(("before", "after"), SCRIPTS.items())
def test_script_files_wait_for_the_text(before, after):
    assert patient(before) == (after or before)


@each_chapter
def test_no_script_file_holds_up_a_chapter(chapter):
    text = (SITE / f"{chapter.docname}.html").read_text()
    waiting = re.findall(r"<script\b[^>]*\bsrc=[^>]*>", text)
    assert len(waiting) > 10
    hasty = [tag for tag in waiting if not re.search(r'\bdefer\b|\basync\b|type="late"', tag)]
    assert all("documentation_options.js" in tag for tag in hasty)
    late = [tag for tag in waiting if 'type="late"' in tag]
    assert [any(name in tag for tag in late) for name in ("mathjax/tex-chtml.js", "fontawesome.js")] == [True, True]
    assert len(late) == 2
    assert any(re.search(r"\bdefer\b.*/late\.js", tag) for tag in waiting)  # runs them


def test_an_empty_site_is_a_problem(tmp_path):
    assert "the site was not built" in problems(tmp_path)[0]


def test_the_scoreboard_has_every_paper():
    text = (SITE / "book/index.html").read_text()
    assert len(re.findall(r'<tr class="(?:chapter|planned)" id="paper-', text)) == 110
    for chapter in CHAPTERS:
        assert re.search(rf'<tr class="chapter" id="paper-{chapter.slug}"', text)


@pytest.mark.parametrize("verdict", ["reproduced", "failed", "not attempted"])
def test_the_page_of_a_verdict_has_exactly_its_claims(verdict):
    text = (SITE / "book/claims" / f"{verdict.replace(' ', '-')}.html").read_text()
    results = [json.loads((SITE / "_data" / c.slug / "results.json").read_text()) for c in CHAPTERS]
    wanted = {f"claim-{r['slug']}-{c['id']}" for r in results for c in r["claims"] if c["verdict"] == verdict}
    assert set(re.findall(r'<tr class="[\w-]+" id="([\w-]+)"', text)) == wanted
    notes = [c["note"] for r in results for c in r["claims"] if c["verdict"] == verdict != "reproduced"]
    assert all(html.escape(note) in text for note in notes)


def test_every_module_of_the_library_is_in_the_reference():
    modules = {path.stem for path in (ROOT / "lib/lowdim").glob("[a-z]*.py")}
    pages = "".join(path.read_text() for path in (SITE / "book/api").glob("*.html"))
    assert modules == set(re.findall(r'id="module-lowdim\.(\w+)"', pages))


@each_chapter
def test_a_chapter_says_how_to_cite_it(chapter):
    text = (SITE / f"{chapter.docname}.html").read_text()
    section = re.search(r'<section id="how-to-cite">(.*?)</section>', text, re.S)[1]
    assert f"lowdim-{chapter.slug}" in section
    assert len(re.findall("highlight-bibtex", section)) == 2


@each_chapter
def test_the_colab_button_leads_to_a_notebook_that_is_there(chapter):
    text = (SITE / f"{chapter.docname}.html").read_text()
    found = re.search(r"https://colab\.research\.google\.com/github/[\w.-]+/[\w.-]+/blob/gh-pages/([^\"]+ipynb)", text)
    assert (SITE / found[1]).exists()


def test_binder_installs_the_pins_of_the_build_and_the_library_at_its_commit():
    lines = (SITE / "binder/requirements.txt").read_text().splitlines()
    pins = (ROOT / "requirements.txt").read_text().splitlines()
    assert "torch==2.13.0" in lines
    assert all(line in pins for line in lines[:-2])
    assert re.fullmatch(r"lowdim @ git\+https://\S+@([0-9a-f]{40}|main)", lines[-1])


@each_chapter
def test_the_published_notebook_is_plain(chapter):
    notebook = nbformat.read(SITE / "notebooks" / f"{chapter.docname}.ipynb", 4)
    nbformat.validate(notebook)
    first_code = next(cell for cell in notebook.cells if cell.cell_type == "code")
    assert "find_spec" in first_code.source
    assert re.search(r"git\+https://\S+@[0-9a-f]{40}|@main", first_code.source)
    assert "--no-deps" in first_code.source
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            assert not re.search(r"\{[a-z:-]+\}`|^```\{|^\([\w-]+\)=", cell.source, re.M), cell.source
        assert "injected-parameters" not in cell.metadata.get("tags", [])
    assert any("image/png" in output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", []))


@each_chapter
def test_figure_data_is_in_the_site(chapter):
    folder = SITE / "_data" / chapter.slug
    results = json.loads((folder / "results.json").read_text())
    for name in results["figures"]:
        assert (folder / f"{name}.npz").exists()
        assert (folder / f"{name}.csv").exists()


def test_nothing_speaks_of_the_machine_it_was_made_on():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    pattern = re.compile(r"/(?:work|tmp|root|home/[a-z]+)/")
    texts = (".md", ".py", ".ipynb", ".yml", ".json", ".toml", ".txt", ".cfg", ".cff")
    for path in (ROOT / name for name in listed if name != "tests/book/test_site.py"):
        if path.suffix in texts:
            assert not pattern.search(path.read_text()), path
