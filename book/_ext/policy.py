"""What every page gets at the end: scripts that wait for the text, and a content-security policy.

The policy: a page loads from its own site only, and runs the scripts it was built with.

Inline scripts are allowed by their hashes, which are computed from the finished pages; so whatever the theme or a
figure puts into a page works, and nothing that gets in later does. Styles may be inline, since MathJax and plotly
write them as they draw. ``tools/check_site.py`` compares pages and policies.
"""

import base64
import hashlib
import html
import re
import shutil
from pathlib import Path

INLINE = re.compile(r"<script(?![^>]*\bsrc=)([^>]*)>(.*?)</script>", re.S | re.I)
HANDLER = re.compile(r"<[^>]*?\son\w+=(?:\"([^\"]*)\"|'([^']*)')", re.I)
META = re.compile(r'\n?<meta http-equiv="Content-Security-Policy" content="([^"]*)" ?/?>', re.I)
# Scripts that would hold up the first paint; inline ones read documentation_options.js, so that one stays.
HASTY = re.compile(
    r'<script((?![^>]*(?:\bdefer\b|\basync\b|type="late"))[^>]*\bsrc="(?![^"]*documentation_options)[^"]+"[^>]*)>', re.I
)
# More than half of a page's script, which only changes how it looks: late.js runs them after the first paint.
LATE = re.compile(
    r'<script\b(?![^>]*type="late")[^>]*\bsrc="([^"]*(?:/mathjax/tex-chtml|/scripts/fontawesome)\.js[^"]*)"[^>]*>'
)
FETCHED = r'<link rel="preload" as="script" fetchpriority="low" href="\1"><script type="late" src="\1">'
RULES = {
    "default-src": "'self'",
    "img-src": "'self' data: blob:",  # still images are part of the page; plotly draws through blobs
    "style-src": "'self' 'unsafe-inline'",
    "font-src": "'self' data:",
    "object-src": "'none'",
    "base-uri": "'none'",
    "form-action": "'self'",
}


def digests(page: str) -> list[str]:
    """The hashes of all scripts written into a page: script elements, and attributes such as ``onclick``."""
    scripts = [body for kind, body in INLINE.findall(page) if "json" not in kind and "math/tex" not in kind]
    without = INLINE.sub("", page)
    handlers = [html.unescape(a or b) for a, b in HANDLER.findall(without)]
    found = {base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in [*scripts, *handlers]}
    return sorted(f"'sha256-{digest}'" for digest in found)


def policy(page: str) -> str:
    """The policy that fits a page."""
    scripts = " ".join(["'self'", "'unsafe-hashes'", *digests(page)])  # without 'unsafe-hashes' no handler runs
    return "; ".join(f"{name} {value}" for name, value in ({"script-src": scripts} | RULES).items())


def patient(page: str) -> str:
    """The page with its script files put off until it is parsed, in their order, or until after the first paint."""
    return LATE.sub(FETCHED, HASTY.sub(r"<script defer\1>", page))


def protected(page: str) -> str:
    """The page with its policy, which comes before anything that it governs."""
    page = META.sub("", page)
    return re.sub(
        r"<head>",
        lambda _: f'<head>\n<meta http-equiv="Content-Security-Policy" content="{policy(page)}">',
        page,
        count=1,
    )


def protect_pages(app, failed):
    if failed or app.builder.format != "html":
        return
    for path in Path(app.outdir).rglob("*.html"):
        if not {"_static", "_data"} & set(path.relative_to(app.outdir).parts):
            text = path.read_text()
            if (new := protected(patient(text))) != text:
                path.write_text(new)


def leave_out(app, failed):
    """What no reader's browser asks for, a tenth of the site: maps from minified to source text, the theme's words in
    other languages, fonts in a format for browsers that cannot read the smaller one, and pictures that have changed."""
    if not failed and app.builder.format == "html":
        static = Path(app.outdir, "_static")
        shutil.rmtree(static / "locales", ignore_errors=True)
        shown = "".join(page.read_text() for page in Path(app.outdir).rglob("*.html"))
        old = [path for path in Path(app.outdir, "_images").glob("*") if path.name not in shown]  # of earlier builds
        for path in [*static.rglob("*.map"), *static.glob("vendor/**/*.ttf"), *old]:
            path.unlink()


def setup(app):
    app.connect("build-finished", protect_pages)
    app.connect("build-finished", leave_out)
