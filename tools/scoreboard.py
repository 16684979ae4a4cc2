"""Print the scoreboard and where the page is."""

import argparse
import json

from chapters import ROOT, all_chapters, build_folder, verdict_counts


def main() -> None:
    parser = argparse.ArgumentParser(description="Print the scoreboard.")
    parser.add_argument("--profile", default="quick", choices=["quick", "paper"])
    profile = parser.parse_args().profile
    line = "{:28} {:>10} {:>7} {:>14} {:>7} {:>8}"
    print(line.format("chapter", "reproduced", "failed", "not attempted", "time", "memory"))
    for chapter in all_chapters():
        path = build_folder(profile, chapter.slug) / "results.json"
        if not path.exists():
            print(f"{chapter.slug:28} not run")
            continue
        results = json.loads(path.read_text())
        counts = verdict_counts(results).values()
        print(line.format(chapter.slug, *counts, f"{results['runtime_s']:.0f} s", f"{results['peak_memory_mb']} MB"))
    print(f"\nThe book: {ROOT / '_build' / 'html' / 'index.html'}   (make serve shows it at http://127.0.0.1:8000)")


if __name__ == "__main__":
    main()
