"""Offline check of the built site: links, anchors, images and alt texts, downloads, errors, other hosts, policies."""

import argparse
import re
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bs4 import BeautifulSoup
from chapters import ROOT

sys.path.insert(0, str(ROOT / "book" / "_ext"))
import policy

LOADED = (("link", "href"), ("img", "src"), ("script", "src"), ("iframe", "src"), ("source", "src"))
NOT_LOADED = {"canonical", "edit", "author", "license"}  # values of rel that only name an address


def pages(site: Path) -> dict[Path, BeautifulSoup]:
    found = [p for p in site.rglob("*.html") if not {"_static", "_data"} & set(p.relative_to(site).parts)]
    return {page: BeautifulSoup(page.read_text(), "html.parser") for page in found}


def anchors(page: BeautifulSoup) -> set[str]:
    return {tag["id"] for tag in page.find_all(id=True)} | {
        tag["name"] for tag in page.find_all("a", attrs={"name": True})
    }


def problems(site: Path) -> list[str]:
    """One sentence for each thing that is wrong."""
    site, found = site.resolve(), []
    read = pages(site)
    if len(read) < 3:
        found.append(f"{site} has {len(read)} pages: the site was not built")
    known = {page: anchors(soup) for page, soup in read.items()}
    for page, soup in read.items():
        name = page.relative_to(site).as_posix()
        for tag, attribute in (("a", "href"), *LOADED):
            for element in soup.find_all(tag, attrs={attribute: True}):
                address = element[attribute]
                parts = urlsplit(address)
                if parts.scheme in ("http", "https") or address.startswith("//"):
                    if tag != "a" and not NOT_LOADED & set(element.get("rel", [])):
                        found.append(f"{name}: loads {address} from another host")
                    continue
                if parts.scheme or address in ("", "#", "#!"):
                    continue
                target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
                target = target / "index.html" if target.is_dir() else target
                if not target.exists():
                    found.append(f"{name}: <{tag}> leads to {address}, which is missing")
                elif parts.fragment and target in known and unquote(parts.fragment) not in known[target]:
                    found.append(f"{name}: there is no anchor {address}")
        found += [f"{name}: {words}" for words in content_problems(soup)]
        text = page.read_text()
        bare = not soup.find(["head", "script"])  # the page that only leads from the site's root to its first page
        if not bare and policy.META.findall(text) != [policy.policy(text)]:
            found.append(f"{name}: its content-security policy is missing or not that of its scripts")
    for sheet in (site / "_static").rglob("*.css"):
        for address in re.findall(r"(?:@import\s+|url\()\s*['\"]?(https?://[^'\")\s]+)", sheet.read_text()):
            found.append(f"{sheet.relative_to(site)}: loads {address} from another host")
    return found


def content_problems(soup: BeautifulSoup):
    for image in soup.select("article img[src]"):
        alt = image.get("alt", "")
        if len(alt) < 15 or "_images/" in alt:
            yield f"image {image['src'][-40:]} has no alt text"
    for figure in soup.select("article figure"):
        if not figure.select(".figure-data a[download]"):
            yield f"figure {figure.get('id')} has no data download"
        if not figure.select(".provenance"):
            yield f"figure {figure.get('id')} does not say where it comes from"
    for output in soup.select("article .output.traceback, article .output.stderr"):
        yield f"a cell printed an error: {output.get_text().strip()[-100:]}"
    for wrong in soup.select("article .problematic, article .system-message"):
        yield f"markup that did not work: {wrong.get_text().strip()[:100]}"


def main() -> int:
    parser = argparse.ArgumentParser(description="Check the built site.")
    parser.add_argument("--profile", default="quick")
    parser.add_argument("--site", type=Path, default=ROOT / "_build" / "html")
    found = problems(parser.parse_args().site)
    print("\n".join(found) or "The site is whole: links, anchors, alt texts, downloads; no request to another host.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
