"""Execute one chapter: MyST text -> notebook -> papermill -> results.

    python tools/run_chapter.py edge-of-stability --profile quick -p depth 4 -p sigma "[5, 2]" --out somewhere

leaves ``notebook.ipynb``, ``results.json`` and the figure data in the output folder. Either all of it is replaced or,
if anything goes wrong, nothing is. ``stamp.json`` lists it with checksums.
"""

import argparse
import json
import logging
import os
import signal
import sys
import time
from pathlib import Path

for _limit in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_limit, "1")  # chapters run side by side; threads inside each make all of them slower

try:
    import jupytext
    import nbformat
    import papermill
    from chapters import ROOT, BadInputError, Chapter, build_folder, check_knobs, find, verdict_counts
    from folders import BusyError, deliver, workplace
    from outcome import ChapterError, finished, section_that_failed
    from traitlets.config import Config
    from watchdog import Watchdog, stop_tidily
except ModuleNotFoundError as error:  # started with a Python that has not got the book's environment
    inside = Path(__file__).resolve().parent.parent / ".venv" / "bin" / "python"
    if not inside.exists() or Path(sys.prefix) == inside.parent.parent:
        sys.exit(f"The book's environment is missing ({error}): run `make env` first.")
    os.execv(inside, [str(inside), *sys.argv])

# Others on the same machine, such as a cluster's node, cannot read along; and the kernel does not warn that they can.
ENCRYPTED = Config(AsyncKernelManager={"transport_encryption": "auto"})
MINUTES = {"quick": 30, "paper": 600}
MEMORY_MB = {"quick": 4000, "paper": 32000}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Execute one chapter of the book.")
    parser.add_argument("slug", help="the chapter, such as edge-of-stability")
    parser.add_argument("--profile", default="quick", choices=["quick", "paper"])
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "JSON"), help="set a knob")
    parser.add_argument("--out", type=Path, help="output folder (default: the build's own)")
    parser.add_argument("--minutes", type=float, help="the longest it may run (quick: 30, paper: 600)")
    parser.add_argument("--memory", type=float, metavar="MB", help="the most it may hold (quick: 4000, paper: 32000)")
    parser.add_argument("--knobs", action="store_true", help="list the chapter's knobs and stop")
    return parser.parse_args()


def parsed_knobs(chapter: Chapter, pairs: list, profile: str) -> dict:
    """The knobs given on the command line as Python values; text needs no quotes."""
    kinds = {name: knob.kind for name, knob in chapter.knobs().items()}
    given = {}
    for name, text in pairs:
        try:
            given[name] = json.loads(text)
        except json.JSONDecodeError as error:
            if kinds.get(name, "str") != "str":
                raise BadInputError(
                    f"parameter {name!r} must be {chapter.knobs()[name].words()}, written as JSON, got {text!r}."
                ) from error
            given[name] = text
    if given.get("profile", profile) != profile and profile != "quick":
        raise BadInputError(f"--profile says {profile!r} and -p profile says {given['profile']!r}: give one of them.")
    given = {"profile": profile} | given
    check_knobs(chapter, given)
    return given


def execute(chapter: Chapter, knobs: dict, work: Path, watchdog: Watchdog) -> nbformat.NotebookNode:
    """Run the notebook in the folder ``work``; returns it executed.

    Raises:
        ChapterError: a cell raised (the notebook as far as it came is ``work/failed.ipynb``), or the kernel died.
    """
    logging.getLogger("papermill").setLevel(logging.ERROR)  # its own guess at unknown parameters; ours is above
    notebook = jupytext.reads(chapter.text, fmt="md:myst")
    for index, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{index:03d}"
    nbformat.write(notebook, work / "input.ipynb")
    try:
        with watchdog:
            papermill.execute_notebook(
                str(work / "input.ipynb"), str(work / "failed.ipynb"), knobs, kernel_name="python3", cwd=str(work),
                progress_bar=False, log_output=False,
                request_save_on_cell_execute=False,  # it saves at the end, and when a cell fails
                shutdown_kernel="immediate",  # everything is written by then; a polite end takes two seconds
                config=ENCRYPTED,
            )  # fmt: skip
    except papermill.PapermillExecutionError as error:
        message = " ".join(str(error.evalue).split())
        raise ChapterError(
            f"{chapter.slug}: {error.ename} in section {section_that_failed(work)!r}: {message}"
        ) from error
    except Exception as error:
        words = f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
        if watchdog.reason:
            words = f"stopped, {watchdog.reason}."
        elif "Kernel died" in words:
            words = "its kernel was killed, by hand or by the system (which does so when memory runs out)."
        raise ChapterError(f"{chapter.slug}: {words}") from error
    return nbformat.read(work / "failed.ipynb", 4)


def run(chapter: Chapter, knobs: dict, work: Path, out: Path, key: str, options: argparse.Namespace) -> dict:
    """Execute, check and deliver; returns the results.

    Raises:
        ChapterError: whatever went wrong, in one sentence; ``failed.ipynb`` is in the output folder if a cell raised.
    """
    profile = knobs["profile"]
    limits = options.minutes or MINUTES[profile], options.memory or MEMORY_MB[profile]
    try:
        notebook = execute(chapter, knobs, work, Watchdog(*limits))
        results = finished(chapter, notebook, work)
        names = [p.name for p in work.iterdir() if p.suffix in (".npz", ".csv", ".png")]
        deliver(work, out, [*names, "notebook.ipynb", "results.json"], key)
    except (ChapterError, OSError, ValueError) as error:
        if (work / "failed.ipynb").exists():
            os.replace(work / "failed.ipynb", out / "failed.ipynb")
        raise ChapterError(str(error)) from error
    return results


def main() -> int:
    options = arguments()
    try:
        chapter = find(options.slug)
        if options.knobs:
            print("\n".join(f"{k.name}: {k.kind} = {k.default!r}  {k.help}" for k in chapter.knobs().values()))
            return 0
        knobs = parsed_knobs(chapter, options.p, options.profile)
    except BadInputError as error:
        print(error, file=sys.stderr)
        return 2
    out = (options.out or build_folder(knobs["profile"], chapter.slug)).absolute()
    key = chapter.key() if knobs == {"profile": options.profile} else f"knobs {json.dumps(knobs)}"
    for polite in (signal.SIGTERM, signal.SIGINT):
        signal.signal(polite, stop_tidily)
    started = time.monotonic()
    try:
        with workplace(out) as work:
            results = run(chapter, knobs, work, out, key, options)
    except ChapterError as error:
        print(f"{error}\nThe output folder keeps what it had.", file=sys.stderr)
        return 1
    except BusyError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{chapter.slug}: stopped.\nThe output folder keeps what it had.", file=sys.stderr)
        return 130
    except OSError as error:
        print(f"cannot write to the output folder {options.out or out}: {error.strerror}.", file=sys.stderr)
        return 2
    words = ", ".join(f"{number} {verdict}" for verdict, number in verdict_counts(results).items())
    print(f"{chapter.slug}: {time.monotonic() - started:.1f} s, {results['peak_memory_mb']} MB, {words}")
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "tools"))
    sys.exit(main())
