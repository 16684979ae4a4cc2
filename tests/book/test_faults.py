"""What goes wrong around a chapter: each case ends in one clear sentence, and the last good output is there."""

import os
import re
import resource
import shutil
import subprocess
import sys
import time

import psutil
import pytest
from chapters import ROOT
from test_kills import end, kernel_of, seed_of, start
from toys import LIGHT, project_with


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    root = project_with({"one": LIGHT, "two": LIGHT}, tmp_path_factory.mktemp("project"))
    status, words = end(start(root, "tools/execute.py", "--jobs", "2"))
    assert status == 0, words
    return root


@pytest.fixture
def good(project, tmp_path):
    """A folder with the results of seed 0."""
    shutil.copytree(project / "build/chapters/quick/one", tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 60 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=60m", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def run(project, out, *more):
    return end(start(project, "tools/run_chapter.py", "one", "--out", str(out), *more))


def fill(disk, leave):
    """Fill a disk but for so many bytes."""
    with open(disk / "filler", "wb", buffering=0) as file:
        while (free := shutil.disk_usage(disk).free) > leave:
            file.write(bytes(min(free - leave, 1_000_000)))


def clear(words, status, *wanted):
    """One sentence, no traceback."""
    assert status not in (0, -9)
    assert "Traceback" not in words, words
    for part in wanted:
        assert part in words, words


@pytest.mark.parametrize("leave", [0, 30_000_000])
def test_a_full_disk(project, good, small_disk, leave):
    shutil.copytree(good, small_disk / "out")
    fill(small_disk, leave)
    status, words = run(project, small_disk / "out", "-p", "seed", "1")
    clear(words, status, "No space left on device" if leave == 0 else "MB free, too little to write results.json")
    assert seed_of(small_disk / "out") == 0
    (small_disk / "filler").unlink()
    assert run(project, small_disk / "out", "-p", "seed", "1")[0] == 0
    assert seed_of(small_disk / "out") == 1


def test_a_full_disk_stops_the_build_before_it_begins(project, small_disk, monkeypatch):
    monkeypatch.setenv("LOWDIM_BUILD", str(small_disk))
    clear(*reversed(end(start(project, "tools/execute.py"))), "MB free, too little to run a chapter")


def test_files_may_not_grow(project, good):
    """A quota, on any machine: no file of this process may exceed some bytes."""
    command = [sys.executable, "tools/run_chapter.py", "one", "-p", "seed", "1", "--out", str(good)]
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
    done = subprocess.run(command, cwd=project, preexec_fn=limit, capture_output=True, text=True, timeout=120)
    clear(done.stdout + done.stderr, done.returncode, "File too large")
    assert seed_of(good) == 0


def test_read_only_output(project, small_disk, good, monkeypatch):
    shutil.copytree(good, small_disk / "out")
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    clear(*reversed(run(project, small_disk / "out", "-p", "seed", "1")), "cannot write to", "Read-only file system")
    assert seed_of(small_disk / "out") == 0
    monkeypatch.setenv("LOWDIM_BUILD", str(small_disk / "build"))
    clear(*reversed(end(start(project, "tools/execute.py"))), "cannot write to the build", "Read-only file system")


@pytest.mark.parametrize("days", [1, -1])
def test_a_wrong_clock(project, days):
    """Every file dated tomorrow, or yesterday: nothing runs again, and a change is still seen."""
    now = time.time() + 86400 * days
    build = project / "build/chapters/quick"
    before = (build / "one/results.json").read_bytes()
    for path in project.rglob("*"):
        if path.is_file() and "lib" not in path.parts:
            os.utime(path, (now, now))
    stamps = {slug: (build / slug / "results.json").stat().st_mtime_ns for slug in ("one", "two")}
    assert end(start(project, "tools/execute.py"))[0] == 0
    assert {slug: (build / slug / "results.json").stat().st_mtime_ns for slug in ("one", "two")} == stamps
    page = project / "book/part/two.md"
    page.write_text(page.read_text().replace("seed: int = ", "seed: int = 1"))
    os.utime(page, (now - 5, now - 5))
    status, words = end(start(project, "tools/execute.py"))
    assert status == 0, words
    assert (build / "two/results.json").stat().st_mtime_ns != stamps["two"]
    assert (build / "one/results.json").read_bytes() == before


BACKWARDS = """
import time
real, begun, mark = time.time, time.monotonic(), time.time()
time.time = lambda: mark - 600 * (time.monotonic() - begun)  # ten minutes back with every second
"""


def test_a_clock_that_goes_backwards_during_the_run(project, tmp_path, monkeypatch):
    """In the build, the runner of a chapter and its kernel: all complete, and durations are durations."""
    (tmp_path / "sitecustomize.py").write_text(BACKWARDS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    shown = end(start(project, "-c", "import time; a = time.time(); time.sleep(0.1); print(time.time() < a)"))
    assert shown == (0, "True\n"), "the clock of these processes does go backwards"
    out = project / "build/chapters/quick/two"
    page = project / "book/part/two.md"
    page.write_text(re.sub(r"seed: int = \d+", "seed: int = 7", page.read_text()))
    status, words = end(start(project, "tools/execute.py"))
    assert status == 0, words
    assert seed_of(out) == 7
    log = (project / "build/logs/quick/two.log").read_text()
    assert 0 < float(re.search(r"two: (-?[\d.]+) s,", log)[1]) < 60
    written = (out / "results.json").stat().st_mtime_ns
    assert end(start(project, "tools/execute.py"))[0] == 0
    assert (out / "results.json").stat().st_mtime_ns == written, "a finished chapter is not repeated"


def half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGE = {
    "half of the results": lambda out: half(out / "results.json"),
    "a figure's data": lambda out: (out / "part-1.npz").write_bytes(b"1" * 1000),
    "no notebook": lambda out: (out / "notebook.ipynb").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_results_are_noticed_and_made_again(project, damage):
    out, other = (project / "build/chapters/quick" / slug for slug in ("one", "two"))
    wanted, untouched = seed_of(out), (other / "results.json").stat().st_mtime_ns
    damage(out)
    status, words = end(start(project, "tools/execute.py"))
    assert status == 0, words
    assert "one: its results were damaged; it runs again." in words
    assert seed_of(out) == wanted
    assert (other / "results.json").stat().st_mtime_ns == untouched


def test_a_damaged_stamp_and_leftovers_of_killed_runs(project, good):
    (good / "stamp.json").write_text("{")
    (good / "results.json").write_text("nonsense")
    (good / ".run-1").mkdir()
    (good / ".run-1/part-0.npz").touch()
    (good / ".ready").mkdir()
    assert run(project, good, "-p", "seed", "1")[0] == 0
    assert seed_of(good) == 1
    assert not list(good.glob(".r*"))


def test_two_runs_in_one_folder(project, good):
    first = start(project, "tools/run_chapter.py", "one", "-p", "mood", "hang", "--out", str(good))
    kernel = kernel_of(first)
    clear(*reversed(run(project, good, "-p", "seed", "1")), f"Another run writes to {good}; wait for it to end")
    first.terminate()
    clear(*reversed(end(first)), "one: ")
    assert seed_of(good) == 0
    psutil.wait_procs([kernel], timeout=5)
    assert not kernel.is_running()


def test_the_site_waits_for_the_chapters(project):
    """Site and chapters are built under one lock."""
    hold = "import fcntl, time; f = open('build/.lock', 'a'); fcntl.flock(f, fcntl.LOCK_EX); print(1, flush=True);"
    holder = start(project, "-c", hold + "time.sleep(60)")
    holder.stdout.readline()
    for tool in ("build_site.py", "execute.py"):
        clear(*reversed(end(start(project, f"tools/{tool}"))), "Another build runs in this folder; wait for it to end.")
    holder.kill()
    end(holder)


def test_a_chapter_that_hangs(project, good):
    status, words = run(project, good, "-p", "mood", "hang", "--minutes", "0.1")
    clear(words, status, "one: stopped, it ran longer than its limit of 0.1 minutes (--minutes sets another).")
    assert seed_of(good) == 0


def test_a_chapter_that_takes_too_much_memory(project, good):
    status, words = run(project, good, "-p", "mood", "greedy", "--memory", "400")
    clear(words, status, "one: stopped, it used ", "its limit is 400 MB (--memory sets another).")
    assert seed_of(good) == 0


def test_the_others_go_on_when_one_takes_too_much(project):
    """With the limit of the Snakefile, which is also what a cluster gives."""
    snakefile = project / "Snakefile"
    snakefile.write_text(snakefile.read_text().replace("4000", "400"))
    build = project / "build/chapters/quick"
    last = seed_of(build / "one")
    for slug, old, new in (("one", '"calm"', '"greedy"'), ("two", "seed: int = ", "seed: int = 2")):
        page = project / f"book/part/{slug}.md"
        page.write_text(page.read_text().replace(old, new))
    status, words = end(start(project, "tools/execute.py", "--jobs", "2"))
    clear(words, status, "one: stopped, it used ", "A chapter failed; its message is above")
    assert seed_of(build / "one") == last
    assert str(seed_of(build / "two")).startswith("2")


def test_the_limits_of_this_project_reach_the_chapters():
    text = (ROOT / "Snakefile").read_text()
    assert "--minutes {resources.runtime} --memory {resources.mem_mb}" in text
