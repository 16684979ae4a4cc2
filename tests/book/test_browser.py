"""The site as its readers see it: phone and laptop, light and dark, keyboard, print, without scripts."""

import functools
import http.server
import subprocess
import sys
import threading
from pathlib import Path

import axe_core_python
import numpy as np
import pytest
from chapters import ROOT, all_chapters
from make_pdf import documents
from pypdf import PdfReader

SITE = ROOT / "_build/html"
CHAPTERS = [f"{chapter.docname}.html" for chapter in all_chapters()]
PAGES = [f"{name}.html" for name in documents()]
WIDTHS = {"phone": 390, "laptop": 1280}
SCHEMES = ["light", "dark"]
AXE = (Path(axe_core_python.__file__).parent / "axe.min.js").read_text()


IMAGES = """[...document.querySelectorAll('article figure img')].filter(i => i.checkVisibility()).map(
  i => [i.naturalWidth > 0, i.getBoundingClientRect().width, i.className, i.width / i.height,
        i.naturalWidth / i.naturalHeight])"""


# Each visible figure image is brought into view and waited for; one that cannot be decoded is found later.
DECODE = """async () => { for (const i of document.querySelectorAll('article figure img'))
  if (i.checkVisibility()) { i.scrollIntoView(); await i.decode().catch(() => {}); } }"""


# Whether the element that has the focus shows it: by an outline, a shadow, or another look than without the focus.
FOCUS = """() => { const it = document.activeElement, look = () => { const s = getComputedStyle(it);
  return [s.outlineStyle != 'none' && s.outlineWidth != '0px', s.boxShadow, s.backgroundColor, s.color,
          s.textDecorationLine, s.borderColor]; };
  const now = look(); if (now[0] || now[1] != 'none') return true;
  it.blur(); const then = look(); it.focus(); return now.some((value, k) => value != then[k]); }"""


# What axe-core finds: against WCAG anywhere on the page, against good practice inside the article.
VIOLATIONS = """async () => { const wcag = ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa'];
  const within = node => document.querySelector(node.target[0])?.closest('article');
  const options = {runOnly: [...wcag, 'best-practice'], resultTypes: ['violations']};
  return (await axe.run(document, options)).violations.map(v => { const hard = v.tags.some(tag => wcag.includes(tag));
    const nodes = hard ? v.nodes : v.nodes.filter(within);
    return nodes.length && {id: v.id, impact: v.impact, wcag: hard, html: nodes[0].html}; }).filter(Boolean); }"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def address():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=SITE))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


class View:
    """A page in a browser window, with everything it asked for and complained about."""

    def __init__(self, browser, address, page, width=1280, scheme="light", **options):
        self.address, self.scheme = address, scheme
        self.context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, **options)
        self.page, self.requests, self.errors = self.context.new_page(), [], []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("requestfailed", lambda request: self.errors.append(f"failed: {request.url}"))
        self.page.on("response", lambda r: self.errors.append(f"{r.status}: {r.url}") if r.status >= 400 else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        self.page.goto(f"{address}/{page}", wait_until="load")

    def read_through(self):
        """Scroll to the end, so that everything that loads late has loaded."""
        self.page.evaluate(DECODE)
        self.page.evaluate("window.scrollTo(0, document.documentElement.scrollHeight)")
        self.page.wait_for_load_state("networkidle")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.context.close()


@pytest.fixture(scope="module", params=[(page, scheme) for page in PAGES for scheme in SCHEMES], ids="-".join)
def sheet(request, browser, address):
    """A page in one of the two themes, loaded on a phone; its tests share the load, which is what costs."""
    with View(browser, address, request.param[0], WIDTHS["phone"], request.param[1]) as view:
        yield view


@pytest.fixture(scope="module", params=CHAPTERS)
def chapter(request, browser, address):
    """A chapter on a laptop, read to its end; the tests that share it leave it as they found it."""
    with View(browser, address, request.param) as view:
        view.name = request.param.removesuffix(".html")
        view.read_through()
        yield view


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_page_loads_fits_and_shows_its_figures(sheet, width):
    sheet.page.set_viewport_size({"width": width, "height": 900})
    sheet.read_through()
    assert [url for url in sheet.requests if not url.startswith((sheet.address, "data:", "blob:"))] == []
    assert sheet.errors == []
    assert sheet.page.evaluate("document.documentElement.scrollWidth") <= width
    for loaded, wide, classes, ratio, natural in sheet.page.evaluate(IMAGES):
        assert loaded
        assert 200 < wide <= width
        assert ("on-dark" if sheet.scheme == "light" else "on-light") not in classes
        assert ratio == pytest.approx(natural, rel=0.02)


def test_accessibility(sheet):
    """axe-core finds nothing against WCAG A and AA on the whole page, and nothing serious against good practice in the
    article: contrast, names, roles, order of headings, lists, tables."""
    sheet.page.set_viewport_size({"width": WIDTHS["laptop"], "height": 900})
    sheet.page.wait_for_timeout(500)
    sheet.page.evaluate(AXE)
    found = sheet.page.evaluate(VIOLATIONS)
    loud = [v for v in found if v["wcag"] or v["impact"] in ("serious", "critical") or v["id"] == "heading-order"]
    assert [f"{v['id']}: {v['html'][:150]}" for v in loud] == []


def test_mathematics_and_icons_are_rendered(chapter):
    """Their scripts run after the first paint."""
    chapter.page.wait_for_selector(".article-header-buttons svg", timeout=20_000)
    chapter.page.wait_for_selector("mjx-container", timeout=20_000)
    assert chapter.page.locator("mjx-container").count() > 20
    assert chapter.page.locator("mjx-merror").count() == 0


def test_the_page_is_light_and_loads_plotly_at_most_once(chapter):
    """Every interactive figure within 3 MB; the shared script is asked for once, and only when it is needed."""
    for spec in chapter.page.locator(".interactive").all():
        assert len(spec.inner_html()) < 3_000_000
    chapter.page.locator(".interactive").last.scroll_into_view_if_needed()
    chapter.page.wait_for_selector(".interactive .main-svg", timeout=20_000)
    assert sum("plotly" in url for url in chapter.requests) == 1


def test_interactive_figure_with_the_keyboard(chapter):
    box = chapter.page.locator(".interactive").first
    box.scroll_into_view_if_needed()
    box.locator(".main-svg").first.wait_for(timeout=20_000)
    slider, said = box.locator("input[type=range]"), box.locator("output")
    before = said.inner_text(), box.locator(".interactive-plot").inner_html()
    slider.focus()
    last = slider.input_value() == slider.get_attribute("max")
    chapter.page.keyboard.press("ArrowLeft" if last else "ArrowRight")
    chapter.page.wait_for_timeout(300)
    assert said.inner_text() != before[0]
    assert box.locator(".interactive-plot").inner_html() != before[1]
    assert not box.locator(".interactive-still").is_visible()
    chapter.page.emulate_media(media="print")
    assert box.locator(".interactive-still").is_visible()
    chapter.page.emulate_media(media="screen")


def test_a_figure_can_be_downloaded(chapter):
    with chapter.page.expect_download() as download:
        chapter.page.locator(".figure-data a[download]").first.click()
    assert download.value.suggested_filename.endswith(".npz")
    with np.load(download.value.path()) as arrays:  # gone when the window closes
        assert arrays.files


def test_every_way_to_rerun_leads_to_the_published_notebook(chapter):
    notebook = f"notebooks/{chapter.name}.ipynb"
    chapter.page.evaluate("window.scrollTo(0, 0)")
    chapter.page.locator(".dropdown-launch-buttons button").click()
    ends = {"Colab": f"/blob/gh-pages/{notebook}", "Binder": f"/gh-pages?urlpath=lab/tree/{notebook}"}
    for name, end in ends.items():
        link = chapter.page.locator(".dropdown-launch-buttons a", has_text=name)
        assert link.is_visible()
        assert link.get_attribute("href").endswith(end)
    chapter.page.locator(".dropdown-download-buttons button.dropdown-toggle").click()
    with chapter.page.expect_download() as download:
        chapter.page.locator(".dropdown-download-buttons a", has_text=".ipynb").click()
    assert Path(download.value.path()).read_bytes() == (SITE / notebook).read_bytes()


@pytest.mark.parametrize("page", CHAPTERS)
def test_without_scripts_a_still_image_stands_in(browser, address, page):
    with View(browser, address, page, java_script_enabled=False) as view:
        assert view.page.locator(".interactive-still").first.is_visible()


def test_the_theme_button_turns_the_page_and_its_figures_dark(browser, address):
    with View(browser, address, CHAPTERS[0]) as view:
        dark = view.page.locator("article figure img.on-dark").first
        assert not dark.is_visible()
        for _ in range(3):  # automatic, light, dark
            view.page.locator(".theme-switch-button:visible").first.click()
            if view.page.evaluate("document.documentElement.dataset.theme") == "dark":
                break
        assert view.page.evaluate("document.documentElement.dataset.theme") == "dark"
        view.read_through()
        assert dark.is_visible()


def test_a_search_finds_its_page(browser, address):
    with View(browser, address, "search.html?q=surrogate") as view:
        hit = view.page.locator("#search-results a", has_text="Compressing deep linear networks").first
        hit.wait_for(timeout=20_000)
        hit.click()
        view.page.wait_for_url("**/dln-compression.html**")


def test_the_scoreboard_searches_filters_and_sorts(browser, address):
    with View(browser, address, "book/index.html") as view:
        rows = view.page.locator("table.scoreboard tr[id^=paper-]:visible")
        said = view.page.locator(".scoreboard-tools [role=status]")
        assert (rows.count(), said.inner_text()) == (110, "110 of 110 papers")
        view.page.locator(".scoreboard-tools input").fill("edge of stability")
        assert rows.count() == 1
        view.page.locator(".scoreboard-tools input").fill("")
        view.page.locator(".scoreboard-tools select").select_option("with a chapter")
        assert rows.count() == len(CHAPTERS)
        for wanted in (sorted, lambda numbers: sorted(numbers, reverse=True)):
            view.page.get_by_role("button", name="Reproduced").press("Enter")
            numbers = [int(text) for text in view.page.locator("tr.chapter:visible td:nth-child(3)").all_inner_texts()]
            assert numbers == wanted(numbers)
        view.page.get_by_role("button", name="Reproduced").click()
        assert view.page.locator("tr.part:visible").count() >= 1  # the third click is the book's own order again
        view.page.locator(".scoreboard-tools select").select_option("with a failed claim")
        failed = view.page.locator("tr.chapter:visible td:nth-child(4)").all_inner_texts()
        assert failed
        assert "0" not in failed


def test_the_keyboard_alone_reaches_the_text_the_menu_and_the_tools(browser, address):
    """The first stop is the link that skips to the text; each stop is seen."""
    with View(browser, address, CHAPTERS[0]) as view:
        stops, drawn = [], []
        for _ in range(60):
            view.page.keyboard.press("Tab")
            stops.append(view.page.evaluate("(it => it.innerText || it.ariaLabel || '')(document.activeElement)"))
            drawn.append(view.page.evaluate(FOCUS))
        assert "skip" in stops[0].lower()
        assert any("Notation" in stop for stop in stops)  # an entry of the menu
        assert all(drawn), [stop for stop, seen in zip(stops, drawn, strict=True) if not seen]


def test_pages_print_to_one_pdf_with_an_outline(browser, tmp_path):
    command = [sys.executable, ROOT / "tools/make_pdf.py", "--out", tmp_path / "book.pdf"]
    pages = ["book/notation", "book/how-this-book-works"]
    done = subprocess.run([*command, *pages], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    book = PdfReader(tmp_path / "book.pdf")
    assert [item.title for item in book.outline] == ["Notation", "How this book works"]
    assert "sharpness" in "".join(page.extract_text() for page in book.pages)
    done = subprocess.run([*command, "book/nothing"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("unknown page 'book/nothing'; the pages are book/index, ")


@pytest.mark.parametrize("page", ["book/index.html", CHAPTERS[0]])
def test_the_policy_stops_what_does_not_belong_to_the_page(browser, address, page):
    """What breaks the content-security policy is not run or loaded, and is an error that every test here would see."""
    strange = """() => { const script = document.createElement('script'); script.textContent = 'window.strange = 1';
      const image = new Image(); image.src = 'https://example.org/x.png'; document.body.append(script, image);
      const link = document.createElement('a'); link.setAttribute('onclick', 'window.strange = 2');
      document.body.append(link); link.click(); }"""
    with View(browser, address, page) as view:
        view.page.wait_for_load_state("networkidle")
        assert view.errors == []
        view.page.evaluate(strange)
        view.page.wait_for_timeout(500)
        assert view.page.evaluate("window.strange === undefined")
        assert sum("Content Security Policy" in error for error in view.errors) == 3
