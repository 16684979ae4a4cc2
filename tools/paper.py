"""Run chapters in the paper profile and keep their results, with provenance, under results/paper/SLUG.

    python tools/paper.py [SLUG ...]

Kept are results.json and the data of the figures as .npz, each at most 1 MB. They are meant to be committed.
"""

import json
import shutil
import subprocess
import sys

from chapters import ROOT, BadInputError, all_chapters, build_folder, find

LARGEST = 1_000_000  # bytes of one figure's data


def main() -> int:
    try:
        chapters = [find(slug) for slug in sys.argv[1:]] or all_chapters()
    except BadInputError as error:
        print(error, file=sys.stderr)
        return 2
    run = [sys.executable, ROOT / "tools" / "execute.py", "--profile", "paper", "--jobs", "1"]
    if status := subprocess.run([*run, *(c.slug for c in chapters)], cwd=ROOT).returncode:
        return status
    for chapter in chapters:
        made, kept = build_folder("paper", chapter.slug), ROOT / "results" / "paper" / chapter.slug
        kept.mkdir(parents=True, exist_ok=True)
        results = json.loads((made / "results.json").read_text())
        for name in results["figures"]:
            if (made / f"{name}.npz").stat().st_size <= LARGEST:
                shutil.copy(made / f"{name}.npz", kept)
        shutil.copy(made / "results.json", kept)
        print(f"results/paper/{chapter.slug}: {results['device']}, {results['runtime_s']} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
