"""Run every chapter whose code, library modules or pins changed, in parallel: Snakemake behind a lock.

python tools/execute.py [--profile quick|paper] [--jobs N] [SLUG ...]
"""

import argparse
import fcntl
import os
import subprocess
import sys

from chapters import ROOT, BadInputError, all_chapters, find


def snakemake(*arguments: str, **more) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "snakemake", "--cores", str(more.pop("jobs", 1)), *arguments]
    return subprocess.run(command, cwd=ROOT, text=True, **more)


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the chapters that need it.")
    parser.add_argument("slugs", nargs="*")
    parser.add_argument("--profile", default="quick", choices=["quick", "paper"])
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    options = parser.parse_args()
    try:
        slugs = [find(slug).slug for slug in options.slugs]
    except BadInputError as error:
        print(error, file=sys.stderr)
        return 2
    (ROOT / "build").mkdir(exist_ok=True)
    with open(ROOT / "build" / ".lock", "w") as lock:
        try:
            fcntl.flock(
                lock, fcntl.LOCK_EX | fcntl.LOCK_NB
            )  # the system drops it when this process ends, even by a kill
        except BlockingIOError:
            print("Another build runs in this folder; wait for it to end.", file=sys.stderr)
            return 1
        if any((ROOT / ".snakemake" / "locks").glob("*")):  # left by a build that was killed: we hold the real lock
            snakemake("--unlock", "-q", "all", capture_output=True)
        settings = ["--config", f"profile={options.profile}"] + ([f"only={' '.join(slugs)}"] if slugs else [])
        flags = ["-q", "host", "--show-failed-logs", "--workflow-profile", "profiles/default"]
        status = snakemake(*flags, *settings, jobs=options.jobs).returncode
    if status:
        print("A chapter failed; its message is above, its log in build/logs. The others are done.", file=sys.stderr)
        return status
    print(f"{len(slugs or all_chapters())} chapters are up to date ({options.profile} profile).")
    return 0


if __name__ == "__main__":
    sys.exit(main())
