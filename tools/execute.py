"""Run every chapter whose code, library modules or pins changed, in parallel: Snakemake behind a lock.

python tools/execute.py [--profile quick|paper] [--jobs N] [--on slurm] [SLUG ...]
"""

import argparse
import os
import shutil
import sys

from chapters import ROOT, BadInputError, Chapter, all_chapters, build_folder, build_root, find
from folders import BUSY, BusyError, build_lock, locked, stamp, whole

CLUSTER = ROOT / "build" / "cluster"
FREE_MB = 100  # less room than this: stop before Snakemake does, whose own files would be half written


def snakemake(*arguments: str) -> int:
    """Snakemake in this process: when the process is killed there is no other one that goes on."""
    from snakemake.cli import main as run

    try:
        run([*arguments, "--directory", str(ROOT), "--snakefile", str(ROOT / "Snakefile")])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def needs_run(chapter: Chapter, profile: str) -> bool:
    """Whether the last run was of other code, or what it left is no longer what it left."""
    out, key = build_folder(profile, chapter.slug), chapter.key()
    if whole(out, key):
        return False
    if stamp(out)["key"] == key:
        print(f"{chapter.slug}: its results were damaged; it runs again.", file=sys.stderr)
    return True


def run_stale(profile: str, slugs: list[str], jobs: int, machine: str) -> int:
    """Run what is not up to date; returns an exit status."""
    if any((ROOT / ".snakemake" / "locks").glob("*")):  # left by a build that was killed: we hold the real lock
        shutil.rmtree(ROOT / ".snakemake" / "locks")
    if machine != "default":  # the packages of requirements-cluster.txt, here and in the jobs
        sys.path.insert(0, str(CLUSTER))
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(CLUSTER), os.environ.get("PYTHONPATH")]))
    else:
        os.environ["LOWDIM_RUNNER"] = str(os.getpid())  # the chapters end when this process is gone
    flags = ["-q", "host", "--show-failed-logs", "--workflow-profile", f"profiles/{machine}"]
    flags += ["--cores", str(jobs)] if machine == "default" else []
    return snakemake(*flags, "--config", f"profile={profile}", f"only={' '.join(slugs)}")


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the chapters that need it.")
    parser.add_argument("slugs", nargs="*")
    parser.add_argument("--profile", default="quick", choices=["quick", "paper"])
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    machines = sorted(path.parent.name for path in ROOT.glob("profiles/*/config.yaml"))
    parser.add_argument("--on", default="default", choices=machines, help="where chapters run: a folder of profiles/")
    options = parser.parse_args()
    try:
        chapters = [find(slug) for slug in options.slugs] or all_chapters()
        build_root().mkdir(parents=True, exist_ok=True)
        with locked(build_lock(), BUSY):
            stale = [chapter.slug for chapter in chapters if needs_run(chapter, options.profile)]
            if stale and (free := shutil.disk_usage(build_root()).free // 1024**2) < FREE_MB:
                print(
                    f"The disk has {free} MB free, too little to run a chapter; nothing was changed.", file=sys.stderr
                )
                return 1
            status = run_stale(options.profile, stale, options.jobs, options.on) if stale else 0
    except BadInputError as error:
        print(error, file=sys.stderr)
        return 2
    except BusyError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"cannot write to the build folder {build_root()}: {error.strerror}.", file=sys.stderr)
        return 1
    if status:
        print("A chapter failed; its message is above, its log in build/logs. The others are done.", file=sys.stderr)
        return status
    print(f"{len(chapters)} chapters are up to date ({options.profile} profile).")
    return 0


if __name__ == "__main__":
    sys.exit(main())
