"""The whole book as one PDF, printed from the built site by the system's Chromium: make pdf

Interactive figures appear as their still image; the outline has a line for each page.
"""

import argparse
import io
import shutil
import sys
from pathlib import Path

import yaml
from chapters import ROOT
from playwright.sync_api import Error, sync_playwright
from pypdf import PdfWriter

SITE = ROOT / "_build" / "html"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
READY = """async () => { const late = () => document.querySelector('script[type="late"]') ||
    document.querySelector('script[src*=mathjax]') && !(window.MathJax && MathJax.startup && MathJax.startup.promise);
  while (late()) await new Promise(done => setTimeout(done, 20));
  if (window.MathJax && MathJax.startup) await MathJax.startup.promise;
  for (const image of document.images) { image.loading = 'eager'; await image.decode().catch(() => {}); } }"""


def documents() -> list[str]:
    """Pages in the order of the table of contents."""
    contents = yaml.safe_load((ROOT / "_toc.yml").read_text())
    return [contents["root"]] + [entry["file"] for part in contents["parts"] for entry in part["chapters"]]


def printed(names: list[str]):
    """Title and PDF of each page."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        sys.exit(f"make pdf needs a browser: none of {', '.join(BROWSERS)} was found.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(color_scheme="light")
        for name in names:
            try:
                page.goto((SITE / f"{name}.html").as_uri(), wait_until="load")
                page.evaluate(READY)
                margins = dict(top="18mm", bottom="18mm", left="16mm", right="16mm")
                yield (
                    page.locator("h1").first.inner_text().strip("# \n"),
                    page.pdf(format="A4", margin=margins, scale=0.75),
                )
            except Error as error:
                sys.exit(f"{name}.html could not be printed: {str(error).splitlines()[0]}")
        browser.close()


def main() -> int:
    parser = argparse.ArgumentParser(description="The whole book as one PDF.")
    parser.add_argument("--out", type=Path, default=ROOT / "_build" / "low-dimensional-learning.pdf")
    parser.add_argument("pages", nargs="*", help="such as book/notation; all of them if none is given")
    options = parser.parse_args()
    if not (SITE / "index.html").exists():
        sys.exit("There is no site to print: run `make book` first.")
    known = documents()
    if unknown := [page for page in options.pages if page not in known]:
        sys.exit(f"unknown page {unknown[0]!r}; the pages are {', '.join(known)}.")
    book = PdfWriter()
    for title, pdf in printed(options.pages or known):
        book.append(io.BytesIO(pdf), outline_item=title)
    book.add_metadata({"/Title": "Low-Dimensional Learning"})
    partial = options.out.with_suffix(".part")
    book.write(partial)
    partial.replace(options.out)
    print(f"{options.out}: {len(book.pages)} pages")
    return 0


if __name__ == "__main__":
    sys.exit(main())
