"""Run chapters in the paper profile and keep their results, with provenance, under results/paper/SLUG.

    python tools/paper.py [--on slurm] [SLUG ...]

Kept are results.json and the data of the figures as .npz, each at most 1 MB. They are meant to be committed.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from chapters import ROOT, BadInputError, all_chapters, build_folder, find
from folders import whole

from lowdim.files import write_atomically

LARGEST = 1_000_000  # bytes of one figure's data


def keep(made: Path, kept: Path) -> dict:
    """Copy what is kept of a run, results.json last; data of figures that are no more goes. Returns the results."""
    kept.mkdir(parents=True, exist_ok=True)
    results = json.loads((made / "results.json").read_text())
    small = {f"{name}.npz" for name in results["figures"] if (made / f"{name}.npz").stat().st_size <= LARGEST}
    for name in [*sorted(small), "results.json"]:
        write_atomically(kept / name, (made / name).read_bytes())
    for path in kept.glob("*.npz"):
        if path.name not in small:
            path.unlink()
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description="Results at the paper's size.")
    parser.add_argument("slugs", nargs="*")
    parser.add_argument("--on", default="default", help="where chapters run: a folder of profiles/")
    options = parser.parse_args()
    try:
        chapters = [find(slug) for slug in options.slugs] or all_chapters()
    except BadInputError as error:
        print(error, file=sys.stderr)
        return 2
    run = [sys.executable, ROOT / "tools" / "execute.py", "--profile", "paper", "--jobs", "1", "--on", options.on]
    status = subprocess.run([*run, *(c.slug for c in chapters)], cwd=ROOT).returncode
    for chapter in chapters:
        made, name = build_folder("paper", chapter.slug), f"results/paper/{chapter.slug}"
        if not whole(made, chapter.key()):
            print(f"{chapter.slug} did not run to its end; {name} keeps what it had.", file=sys.stderr)
            status = status or 1
            continue
        try:
            results = keep(made, ROOT / name)
        except OSError as error:
            print(f"cannot write to {name}: {error.strerror or error}.", file=sys.stderr)
            return 1
        print(f"{name}: {results['device']}, {results['runtime_s']} s")
    return status


if __name__ == "__main__":
    sys.exit(main())
