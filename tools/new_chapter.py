"""Write a chapter that passes the contract, to be replaced section by section: make new CH=SLUG

The page goes to the folder of its part, its name into ``_toc.yml``, a draft of its entry into ``references.bib``.
"""

import sys
from pathlib import Path

import yaml
from chapters import ROOT, BadInputError, all_chapters

TEMPLATE = Path(__file__).with_name("chapter_template.md")
# The part's number in the catalogue -> its folder and its caption in the table of contents.
PARTS = {
    "1": ("dynamics", "Learning dynamics"),
    "2": ("optimizers", "Optimizers"),
    "3": ("compression", "Low rank, compression and structured weights"),
    "4": ("inverse", "Inverse problems and tensors"),
    "5": ("generative", "Generative models"),
    "6": ("sequence", "Sequence models and operators"),
    "7": ("linalg", "Linear algebra"),
    "8": ("graphs", "Graphs and robustness"),
}


def paper(slug: str) -> tuple[str, dict]:
    """The part's number and the catalogue's entry.

    Raises:
        BadInputError: the catalogue has no such paper, or it has its chapter already.
    """
    parts = yaml.safe_load((ROOT / "book/catalogue.yml").read_text())["parts"]
    found = {p["slug"]: (part["part"].split(".")[0], p) for part in parts for p in part["papers"]}
    if slug in {chapter.slug for chapter in all_chapters()}:
        raise BadInputError(f"{slug} has a chapter already.")
    if slug not in found:
        free = sorted(found.keys() - {chapter.slug for chapter in all_chapters()})
        raise BadInputError(f"the catalogue has no paper {slug!r}; without a chapter are: {', '.join(free)}.")
    return found[slug]


def with_chapter(contents: str, caption: str, docname: str) -> str:
    """The table of contents with one more chapter, at the end of its part; a new part comes before the claims."""
    lines, entry = contents.splitlines(), f"      - file: {docname}"
    captions = [k for k, line in enumerate(lines) if line.startswith("  - caption:")]
    mine = next((k for k in captions if lines[k].split(":", 1)[1].strip() == caption), None)
    if mine is None:
        at = next(k for k in captions if lines[k].endswith("All claims"))
        lines[at:at] = [f"  - caption: {caption}", "    chapters:", entry]
    else:
        at = next((k for k in captions if k > mine), len(lines))
        lines.insert(at, entry)
    return "\n".join(lines) + "\n"


def main() -> int:
    slug = sys.argv[1] if len(sys.argv) == 2 else ""
    try:
        if not slug:
            raise BadInputError("Which chapter? make new CH=intrinsic-dimension")
        part, entry = paper(slug)
    except BadInputError as error:
        print(error, file=sys.stderr)
        return 2
    folder, caption = PARTS[part]
    page = ROOT / "book" / folder / f"{slug}.md"
    title = entry["title"].replace("{", "").replace("}", "")
    key, prefix = slug.replace("-", ""), slug.replace("-", "_")
    text = TEMPLATE.read_text()
    for mark, value in (("@SLUG@", slug), ("@TITLE@", title), ("@KEY@", key), ("@PREFIX@", prefix)):
        text = text.replace(mark, value)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(text)
    contents = ROOT / "_toc.yml"
    contents.write_text(with_chapter(contents.read_text(), caption, f"book/{folder}/{slug}"))
    draft = f"\n@misc{{{key},\n  title = {{{title}}},\n  author = {{Authors, The}},\n  year = {{0000}},\n}}\n"
    with (ROOT / "book/references.bib").open("a") as bibliography:
        bibliography.write(draft)
    print(f"book/{folder}/{slug}.md: written. Next: fill in {key} in book/references.bib, then make chapter CH={slug}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
