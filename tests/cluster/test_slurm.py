"""The same Snakefile through a real Slurm: one job killed in mid-run and retried, results as in the local run.

`make test-cluster` starts Slurm (slurm.sh) and runs this. The local results are those of `make book`.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
from chapters import all_chapters, build_folder  # noqa: E402
from folders import stamp  # noqa: E402

SLUGS = os.environ.get("CHAPTERS", "").split() or [chapter.slug for chapter in all_chapters()]
SCRATCH = ROOT / "build" / "through-slurm"
TIMES = ("date", "runtime_s")
# Measured seconds: a picture with an axis in seconds (the data beside it have none, and are compared), and a figure of
# nothing but seconds, on which no claim rests.
TIMED = {
    "dln-compression": {"factorization.dark.png"},
    "blast": {"speed.npz", "speed.csv", "speed.dark.png"},
}
STEP_MB = 100  # peak memory is rounded up to a multiple, and may fall on either side of one


def squeue(form: str) -> list[str]:
    return subprocess.run(["squeue", "-h", "-o", form], capture_output=True, text=True, check=True).stdout.split("\n")


@pytest.fixture(scope="module")
def through_slurm():
    """Run the chapters; returns the messages, the jobs that were seen, and the one that was killed."""
    local = {slug: build_folder("quick", slug) / "results.json" for slug in SLUGS}
    missing = [slug for slug, path in local.items() if not path.exists()]
    assert not missing, f"no local results of {', '.join(missing)}: run `make book` first"
    shutil.rmtree(SCRATCH, ignore_errors=True)
    settings = {"LOWDIM_BUILD": "build/through-slurm", "SNAKEMAKE_PROFILE": str(ROOT / "tests/cluster/profile")}
    command = [sys.executable, "tools/execute.py", "--on", "slurm", *SLUGS]
    begun = time.time()
    log = ROOT / "build/through-slurm.log"
    with log.open("w") as file:
        build = subprocess.Popen(command, cwd=ROOT, env=os.environ | settings, stdout=file, stderr=file)
    jobs, killed = {}, None
    while build.poll() is None and time.time() < begun + 3600:
        for line in filter(None, squeue("%i %T %m %l %c %b")):
            jobs[line.split()[0]] = line
        working = sorted(SCRATCH.glob("chapters/quick/*/.run-*/input.ipynb"))
        if working and killed is None:
            time.sleep(1)
            killed = next((j for j, line in jobs.items() if "RUNNING" in line), None)
            if killed:
                subprocess.run(["scancel", "--signal=KILL", "--full", killed], check=True)
        time.sleep(0.5)
    print(f"\n{len(SLUGS)} chapters through Slurm: {time.time() - begun:.0f} s, {len(jobs)} jobs, job {killed} killed")
    return build.wait(10), log.read_text(), jobs, killed


def test_all_chapters_are_done_though_a_job_was_killed(through_slurm):
    status, words, jobs, killed = through_slurm
    assert status == 0, words[-4000:]
    assert killed is not None, "no job was caught at work"
    assert len(jobs) == len(SLUGS) + 1, f"one job a chapter, and the retry: {jobs}"


def test_memory_and_time_are_asked_for(through_slurm):
    for line in through_slurm[2].values():
        memory, limit = line.split()[2:4]
        assert (memory, limit) == ("4000M", "30:00"), line


@pytest.mark.parametrize("slug", SLUGS)
def test_the_results_are_those_of_the_local_run(through_slurm, slug):
    """Byte for byte apart from times: results.json, the data of the figures, the figures.

    The peak memory is measured too: pages of shared libraries count, and how many are loaded is up to the system.
    """
    ours, theirs = SCRATCH / "chapters/quick" / slug, build_folder("quick", slug)
    assert stamp(ours)["key"] == stamp(theirs)["key"], "the local run is of other code: run `make book` first"
    pair = [json.loads((folder / "results.json").read_text()) for folder in (ours, theirs)]
    memory = [results.pop("peak_memory_mb") for results in pair]
    assert abs(memory[0] - memory[1]) <= STEP_MB
    apart = TIMES if pair[0]["commit"] == pair[1]["commit"] else (*TIMES, "commit")  # commits that left the code alone
    texts = [json.dumps({k: v for k, v in results.items() if k not in apart}, indent=1) for results in pair]
    assert texts[0] == texts[1]
    names = {path.name for path in theirs.iterdir() if path.suffix in (".npz", ".csv", ".png")}
    assert names
    for name in sorted(names - TIMED.get(slug, set())):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name
