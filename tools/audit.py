"""Write the table of packages in AUDIT.md from the pins and from what the installed packages say of themselves.

python tools/audit.py        rewrites the table at the end

Licences and who asks for whom are read from the metadata of the environment (and of build/cluster, if it is there); a
package that is not installed keeps the row that it has. What is known to be wrong with a version is looked up by hand.
"""

import importlib.metadata as metadata
import re
import sys

from chapters import ROOT

FILE, MARK = ROOT / "AUDIT.md", "Written by `tools/audit.py`"
PINS = {"requirements.txt": "the book", "requirements-cluster.txt": "a Slurm cluster",
        "benchmarks/requirements.txt": "the benchmarks"}  # fmt: skip
HEAD = "| package | version | licence | asked for by | pinned in |\n| --- | --- | --- | --- | --- |\n"


def plain(name: str) -> str:
    """A name as the registries compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins() -> dict[str, tuple[str, str, str]]:
    """Plain name -> the name as written, the version, and the file."""
    found = {}
    for file in PINS:
        for line in (ROOT / file).read_text().splitlines():
            if match := re.match(r"([\w.-]+)==([\w.]+)$", line.strip()):
                found[plain(match[1])] = (match[1], match[2], file)
    return found


def rows() -> dict[str, list[str]]:
    """The table as it stands: plain name -> its cells."""
    if not FILE.exists():
        return {}
    below = FILE.read_text().partition(MARK)[2].partition("\n")[2]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in below.splitlines() if line[:2] == "| "]
    return {plain(row[0]): row for row in cells if row[0] not in ("package", "---")}


def installed() -> dict[str, metadata.Distribution]:
    places = [*sys.path, str(ROOT / "build" / "cluster")]
    return {plain(one.metadata["Name"]): one for one in metadata.distributions(path=places) if one.metadata["Name"]}


def licence(package: metadata.Distribution) -> str:
    """What the package says: the expression, else the classifiers, else the first line of its licence."""
    words = package.metadata.get("License-Expression")
    if not words:
        kinds = [c.split("::")[-1].strip() for c in package.metadata.get_all("Classifier") or [] if "License ::" in c]
        words = ", ".join(kinds) or (package.metadata.get("License") or "").strip().split("\n")[0]
    if not words or words == "UNKNOWN":
        files = [f for f in package.files or [] if re.search(r"licen[cs]e", f.name, re.I) and "dist-info" in str(f)]
        text = files[0].read_text() if files else ""
        words = next((line.strip() for line in text.splitlines() if line.strip()), "not stated in the package")
    return words


def asked_for_by(everything: dict[str, metadata.Distribution]) -> dict[str, list[str]]:
    """Plain name -> the pinned packages that need it (extras apart)."""
    found: dict[str, dict] = {}
    for name, package in everything.items():
        for line in package.requires or []:
            if "extra ==" not in line:
                found.setdefault(plain(re.match(r"[\w.-]+", line)[0]), {})[name] = None  # in order, once
    return {name: list(users) for name, users in found.items()}


def table() -> str:
    everything, known, direct = installed(), rows(), (ROOT / "README.md").read_text()
    wanted = pins()
    users = asked_for_by({name: one for name, one in everything.items() if name in wanted})
    lines = []
    for name, (written, version, file) in sorted(wanted.items()):
        if name not in everything:
            lines.append([written, version, known.get(name, [""] * 5)[2], PINS[file], file])
            continue
        reasons = (
            [PINS[file]]
            if file != "requirements.txt"
            or re.search(rf"^\| [^|]*(?<![\w-]){re.escape(written)}(?![\w-])", direct, re.M)
            else []
        )
        reasons += users.get(name, [])
        few = ", ".join(reasons[:4]) + (f" and {len(reasons) - 4} more" if len(reasons) > 4 else "")
        lines.append([written, version, licence(everything[name]), few, file])
    return HEAD + "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    before, mark, below = FILE.read_text().partition(MARK)
    FILE.write_text(f"{before}{mark}{below.partition(chr(10))[0]}\n\n{table()}")
    print(f"{FILE.name}: {len(pins())} packages")
