"""SIGKILL at seeded random moments, 30 times, each followed by the same command: it completes, nothing good is lost."""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import jsonschema
import nbformat
import psutil
import pytest
from folders import checksum, stamp
from toys import LIGHT, project_with

from lowdim.files import SCHEMA

SCHEMA = json.loads(SCHEMA.read_text())
CHAPTER, KERNEL, RUNNER = 12, 12, 6  # kills
LANES = 2  # at a time


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return project_with({"one": LIGHT, "two": LIGHT}, tmp_path_factory.mktemp("project"))


def start(project, *command):
    return subprocess.Popen([sys.executable, *command], cwd=project, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            text=True, start_new_session=True)  # fmt: skip


def end(process):
    out, err = process.communicate(timeout=120)
    return process.returncode, out + err


def seed_of(folder):
    """The seed of the run whose files are in the folder; every file is whole, and of the same run."""
    results = json.loads((folder / "results.json").read_text())
    jsonschema.validate(results, SCHEMA)
    seed = results["parameters"]["seed"]
    printed = nbformat.read(folder / "notebook.ipynb", 4).cells[-1].outputs[0]
    assert printed.text == f"seed {seed}\n"
    for name in ("part-0", "part-1", "part-2"):
        assert (folder / f"{name}.npz").read_bytes() == f"{seed}".encode() * 1000
        assert (folder / f"{name}.csv").read_text() == f"y\n{seed}\n"
    assert all(checksum(folder / name) == wanted for name, wanted in stamp(folder)["files"].items())
    return seed


def kernel_of(process, deadline=30):
    until = time.time() + deadline
    while time.time() < until and process.poll() is None:
        for child in psutil.Process(process.pid).children(recursive=True):
            try:
                if "ipykernel_launcher" in " ".join(child.cmdline()):
                    return child
            except psutil.NoSuchProcess:  # a helper of the runner that ended while it was looked at (a zombie is one)
                continue
        time.sleep(0.1)  # a look goes through all processes of the machine
    raise AssertionError("no kernel was started")


@pytest.fixture(scope="module")
def good(project, tmp_path_factory):
    """A folder with the results of seed 0, and how long a run takes."""
    out = tmp_path_factory.mktemp("good") / "out"
    begun = time.time()
    assert end(start(project, "tools/run_chapter.py", "one", "--out", str(out)))[0] == 0
    assert seed_of(out) == 0
    return out, time.time() - begun


def side_by_side(lane, kills, good, place):
    """Share the kills among ``LANES`` threads, each in a folder of its own: most of the time is spent on waiting."""

    def run(number):
        out = place / f"lane-{number}"
        shutil.copytree(good, out)
        return lane(out, range(number + 1, kills + 1, LANES), random.Random(f"{lane.__name__} {number}"))

    with ThreadPoolExecutor(LANES) as pool:
        return sum(pool.map(run, range(LANES)))


def test_a_chapter_is_killed(project, good, tmp_path):
    seconds = good[1]

    def chapters(out, seeds, moments):
        survived = 0
        for seed in seeds:
            before, command = seed_of(out), ["tools/run_chapter.py", "one", "-p", "seed", str(seed), "--out", str(out)]
            process = start(project, *command)
            time.sleep(moments.uniform(0, seconds))
            process.kill()
            end(process)
            if not (out / ".ready").exists():  # else a delivery was cut short, and the next run ends it
                assert seed_of(out) in (before, seed)
            status, words = end(start(project, *command))
            assert status == 0, words
            assert seed_of(out) == seed
            assert not [path for path in out.iterdir() if path.name.startswith((".run-", ".ready"))]
            survived += 1
        return survived

    assert side_by_side(chapters, CHAPTER, good[0], tmp_path) == CHAPTER


def test_a_kernel_is_killed(project, good, tmp_path):
    """Twice in a row, then the same command completes."""
    seconds = good[1]

    def kernels(out, seeds, moments):
        met = 0
        for number in range(len(seeds)):
            before, wanted = seed_of(out), seeds[number - number % 2]
            command = ["tools/run_chapter.py", "one", "-p", "seed", str(wanted), "--out", str(out)]
            process = start(project, *command)
            kernel = kernel_of(process)
            time.sleep(moments.uniform(0, seconds / 3))
            kernel.kill()
            status, words = end(process)
            assert seed_of(out) == (wanted if status == 0 else before)
            if status:
                met += 1
                assert "one: its kernel was killed" in words or "Kernel died" in words, words
                assert "The output folder keeps what it had." in words
                assert "Traceback" not in words, words
            if number % 2:
                status, words = end(start(project, *command))
                assert status == 0, words
                assert seed_of(out) == wanted
        return met

    assert side_by_side(kernels, KERNEL, good[0], tmp_path) > KERNEL / 2, "most kills met a kernel at work"


def test_the_runner_is_killed(project):
    """What was done stays done, what was started ends, and the same command completes the rest.

    The second of two kills meets the command that takes up what the first one left.
    """
    folders = {slug: project / "build/chapters/quick" / slug for slug in ("one", "two")}
    command, moments = ["tools/execute.py", "--jobs", "2"], random.Random(3)
    begun, seconds, killed = time.time(), 0.0, 0
    for version in range(RUNNER // 2 + 1):
        for slug in folders:
            text = LIGHT.replace("SLUG", slug).replace("seed: int = 0", f"seed: int = {version}")
            (project / f"book/part/{slug}.md").write_text(text)
        done = {}
        for _ in range(2 if version else 0):
            process = start(project, *command)
            time.sleep(moments.uniform(0.3, 1) * seconds)
            killed += process.poll() is None
            process.kill()
            end(process)
            kept = done
            done = {slug: (out / "results.json").stat().st_mtime_ns for slug, out in folders.items()
                    if not (out / ".ready").exists() and seed_of(out) == version}  # fmt: skip
            assert all(done.get(slug) == when for slug, when in kept.items())
        status, words = end(start(project, *command))
        assert status == 0, words
        seconds = seconds or time.time() - begun
        assert all(seed_of(out) == version for out in folders.values())
        assert all((folders[slug] / "results.json").stat().st_mtime_ns == when for slug, when in done.items())
    assert killed > RUNNER / 2, "most kills met a build at work"
    time.sleep(1)
    left = [p.pid for p in psutil.process_iter(["cmdline"]) if str(project) in " ".join(p.info["cmdline"] or [])]
    assert not left, "nothing runs on"


@pytest.mark.parametrize("moves", range(10))
def test_a_delivery_is_cut_short(tmp_path, moves):
    """Killed after so many of its moves: before the first, the old files stand; after it, the new ones do."""
    text = f"""
import os, sys
sys.path.insert(0, {str(os.path.dirname(os.path.abspath(stamp.__code__.co_filename)))!r})
from pathlib import Path
import folders
out, left = Path("out"), {moves}

def counted(move):
    def moved(*args):
        global left
        left -= 1
        if left < 0:
            os._exit(9)
        return move(*args)
    return moved

def run(value):
    with folders.workplace(out) as work:
        for name in ("a.npz", f"only-{{value}}.npz", "results.json"):
            (work / name).write_text(value)
        folders.deliver(work, out, ["a.npz", f"only-{{value}}.npz", "results.json"], value)

if sys.argv[1] == "cut":
    run("old")
    os.rename, os.replace = counted(os.rename), counted(os.replace)
    run("new")
else:
    print(folders.whole(out, "old"), folders.whole(out, "new"))
"""
    command = [sys.executable, "-c", text]
    subprocess.run([*command, "cut"], cwd=tmp_path, check=False)
    seen = subprocess.run([*command, "look"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout.split()
    wanted = "old" if moves == 0 else "new"
    assert seen == [str(wanted == "old"), str(wanted == "new")]
    names = {p.name for p in (tmp_path / "out").iterdir() if p.suffix in (".npz", ".json")}
    assert names == {"a.npz", f"only-{wanted}.npz", "results.json", "stamp.json"}
    assert {(tmp_path / "out" / name).read_text() for name in names - {"stamp.json"}} == {wanted}
