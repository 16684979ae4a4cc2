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
    import jsonschema
    import jupytext
    import nbformat
    import papermill
    from chapters import ROOT, BadInputError, Chapter, build_folder, check_knobs, find, verdict_counts
    from folders import BusyError, deliver, workplace
    from watchdog import Watchdog
except ModuleNotFoundError as error:  # started with a Python that has not got the book's environment
    inside = Path(__file__).resolve().parent.parent / ".venv" / "bin" / "python"
    if not inside.exists() or Path(sys.prefix) == inside.parent.parent:
        sys.exit(f"The book's environment is missing ({error}): run `make env` first.")
    os.execv(inside, [str(inside), *sys.argv])

from lowdim.files import SCHEMA, write_atomically  # noqa: E402 (after the check of the environment)

MINUTES = {"quick": 30, "paper": 600}
MEMORY_MB = {"quick": 4000, "paper": 32000}


class ChapterError(RuntimeError):
    """A chapter raised; the message is one sentence."""


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
            )  # fmt: skip
    except papermill.PapermillExecutionError as error:
        message = " ".join(str(error.evalue).split())
        raise ChapterError(f"{chapter.slug}: {error.ename} in section {_section(work, error)!r}: {message}") from error
    except Exception as error:
        words = f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
        if watchdog.reason:
            words = f"stopped, {watchdog.reason}."
        elif "Kernel died" in words:
            words = "its kernel was killed, by hand or by the system (which does so when memory runs out)."
        raise ChapterError(f"{chapter.slug}: {words}") from error
    return nbformat.read(work / "failed.ipynb", 4)


def _section(work: Path, error) -> str:
    cells = nbformat.read(work / "failed.ipynb", 4).cells
    at = next((k for k, c in enumerate(cells) if c.cell_type == "code" and _raised(c)), 0)
    headings = [
        line for c in cells[:at] if c.cell_type == "markdown" for line in c.source.splitlines() if line[:1] == "#"
    ]
    return headings[-1].lstrip("# ") if headings else "?"


def _raised(cell) -> bool:
    return any(output.output_type == "error" for output in cell.get("outputs", []))


def finished(chapter: Chapter, notebook: nbformat.NotebookNode, work: Path) -> dict:
    """Check the results against the schema, add captions and alt texts to the figures, write both files."""
    if not (work / "results.json").exists():
        raise ChapterError(f"{chapter.slug}: the chapter ended without writing results.json (see out.write).")
    results = json.loads((work / "results.json").read_text())
    for cell in notebook.cells:
        options = cell.metadata.get("mystnb", {})
        name = options.get("figure", {}).get("name", "").removeprefix(f"fig-{chapter.slug}-")
        if name in results["figures"]:
            caption, alt = options["figure"]["caption"], options["image"]["alt"]
            results["figures"][name] |= {"caption": " ".join(caption.split()), "alt": " ".join(alt.split())}
    form = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))
    if fault := jsonschema.exceptions.best_match(form.iter_errors(results)):
        where = "/".join(map(str, fault.absolute_path))
        raise ChapterError(f"{chapter.slug}: results.json breaks its schema at {where!r}: {fault.message}.")
    write_atomically(work / "results.json", json.dumps(results, indent=1, ensure_ascii=False).encode())
    notebook.metadata.pop("papermill", None)
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell.metadata.tags.append("remove-cell")
    write_atomically(work / "notebook.ipynb", nbformat.writes(notebook).encode())
    return results


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
    except (ChapterError, OSError) as error:
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
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a polite kill ends like Ctrl-C: tidily
    started = time.time()
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
    print(f"{chapter.slug}: {time.time() - started:.1f} s, {results['peak_memory_mb']} MB, {words}")
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "tools"))
    sys.exit(main())
