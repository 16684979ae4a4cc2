"""How soon a reader sees a chapter: largest contentful paint in headless Chromium, processor slowed down four times.

python benchmarks/page.py [SLUG ...]      after `make book`; prints a table and the size of the site
"""

import functools
import http.server
import shutil
import statistics
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
from chapters import ROOT, all_chapters
from make_pdf import BROWSERS
from playwright.sync_api import sync_playwright

SITE = ROOT / "_build" / "html"
SLOWER, REPEATS, TARGET_S, TARGET_MB = 4, 5, 1.5, 60
PAINT = """() => new Promise(done => { new PerformanceObserver(list => done(list.getEntries().at(-1).startTime))
  .observe({type: 'largest-contentful-paint', buffered: true}); setTimeout(() => done(NaN), 10000); })"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def paints(browser, address: str) -> list[float]:
    """Seconds to the largest contentful paint, each time in a fresh browser profile."""
    seconds = []
    for _ in range(REPEATS):
        context = browser.new_context(viewport={"width": 1280, "height": 900})
        page = context.new_page()
        context.new_cdp_session(page).send("Emulation.setCPUThrottlingRate", {"rate": SLOWER})
        if not page.goto(address, wait_until="load", timeout=120_000).ok:
            sys.exit(f"{address} is not in the site: run `make book` first.")
        page.wait_for_timeout(1000)
        seconds.append(page.evaluate(PAINT) / 1000)
        context.close()
    return seconds


def main() -> None:
    if not (SITE / "index.html").exists():
        sys.exit("There is no site to measure: run `make book` first.")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=SITE))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with sync_playwright() as playwright:
        path = next(filter(None, map(shutil.which, BROWSERS)), None)
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        for chapter in (c for c in all_chapters() if not sys.argv[1:] or c.slug in sys.argv[1:]):
            seconds = paints(browser, f"http://127.0.0.1:{server.server_port}/{chapter.docname}.html")
            median = statistics.median(seconds)
            verdict = "met" if median <= TARGET_S else "NOT MET"
            spread = f"{min(seconds):.2f} to {max(seconds):.2f}"
            print(f"{chapter.slug:28} {median:5.2f} s ({spread})  <= {TARGET_S} s {verdict}")
        browser.close()
    size = sum(file.stat().st_size for file in SITE.rglob("*") if file.is_file()) / 1e6
    print(f"the site: {size:.1f} MB  <= {TARGET_MB} MB {'met' if size <= TARGET_MB else 'NOT MET'}")


if __name__ == "__main__":
    main()
