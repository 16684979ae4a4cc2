"""Where a run happens: device, random generators, and the provenance that is printed under its figures."""

import json
import os
import platform
import re
import resource
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch

from lowdim import checks as ok
from lowdim.checks import ParameterError


def pick_device(name: str = "auto") -> torch.device:
    """The device to run on: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, or ``"auto"`` (a GPU if there is one).

    Raises:
        ParameterError: if the name is unknown, or a GPU is asked for that PyTorch does not see.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda" if gpus else "cpu")
    kind, _, index = str(name).partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()):
        raise ParameterError(f"device must be 'auto', 'cpu', 'cuda' or 'cuda:N', got {name!r}.")
    if kind == "cuda" and int(index or 0) >= gpus:
        raise ParameterError(f"device {name!r} was asked for, but PyTorch sees {gpus} GPUs here: use 'cpu' or 'auto'.")
    return torch.device(name)


@ok.takes(seed=ok.count(0, 2**63 - 1))
def generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A random generator of its own: the library never touches the global seed."""
    return torch.Generator(device=device).manual_seed(int(seed))


@ok.takes(random=ok.generator, count=ok.count())
def spawn(random: torch.Generator, count: int) -> list[torch.Generator]:
    """Independent generators on the same device, seeded by draws from one: for jobs that run side by side."""
    seeds = torch.randint(2**62, (count,), generator=random, device=random.device)
    return [generator(seed, random.device) for seed in seeds.tolist()]


@ok.takes(function=ok.function, workers=ok.count(), cost=ok.optional(ok.function))
def parallel(function, jobs, workers: int = 2, cost=None) -> list:
    """``[function(job) for job in jobs]``, in as many threads as there are cores, at most ``workers``.

    For independent jobs that spend their time inside PyTorch, each with a generator of its own: with one thread an
    operation, results do not depend on who runs beside whom.

    Args:
        cost: a rough measure ``cost(job)`` of a job's time; the longest start first, that no thread idles at the end.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    jobs = list(jobs)
    order = sorted(range(len(jobs)), key=lambda k: 0 if cost is None else -cost(jobs[k]))
    with ThreadPoolExecutor(max(1, min(workers, cores))) as pool:
        done = dict(zip(order, pool.map(function, [jobs[k] for k in order]), strict=True))
    return [done[k] for k in range(len(jobs))]


@ok.takes(jobs=ok.mapping, random=ok.optional(ok.generator), workers=ok.count())
def run_jobs(jobs: Mapping, random: torch.Generator | None = None, workers: int = 2) -> dict:
    """``{name: job()}`` for named, independent jobs, side by side as in :func:`parallel`.

    Args:
        random: if given, each job is called with a generator of its own, spawned from this one, so that what a job
            draws depends on its place among the jobs and not on the threads.
    """
    if random is None:
        done = parallel(lambda job: job(), jobs.values(), workers)
    else:
        own = spawn(random, max(1, len(jobs)))
        done = parallel(lambda pair: pair[0](pair[1]), list(zip(jobs.values(), own, strict=False)), workers)
    return dict(zip(jobs, done, strict=True))


@ok.takes(device=ok.kind(torch.device, "a torch.device"))
def device_name(device: torch.device) -> str:
    """The device in words, as printed on a page: ``"CPU (AMD EPYC, x86_64)"`` or the GPU's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    listed = Path("/proc/cpuinfo")  # where it is missing, the architecture has to do
    found = re.search(r"^model name\s*: *(.+?) *$", listed.read_text(), re.M) if listed.exists() else None
    return f"CPU ({found[1] + ', ' if found else ''}{platform.machine()})"


@ok.takes(device=ok.kind(torch.device, "a torch.device"))
def peak_memory_mb(device: torch.device) -> int:
    """Peak memory of this process (and of the GPU, if one is used) in MB, rounded up to a multiple of 100.

    The rounding is on purpose: a budget needs no more, and a second run prints the same.
    """
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024**2 if sys.platform == "darwin" else 1024)
    card = torch.cuda.max_memory_allocated(device) / 1024**2 if device.type == "cuda" else 0.0
    return 100 * -int(-max(host, card) // 100)


@ok.takes(device=ok.kind(torch.device, "a torch.device"))
def free_memory(device: torch.device) -> int:
    """Bytes that can still be used on a device: the GPU's free memory, or the host's within the limits of this process.

    The host's are what Linux calls available, less where a container or ``ulimit -v`` allows less.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):  # a system that does not say
        free = 1024**3
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        free = int(lines.get("MemAvailable", f"{free // 1024} kB").split()[0]) * 1024
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            most, now = (int(Path("/sys/fs/cgroup", name).read_text()) for name in (limit, used))
        except (OSError, ValueError):  # no container, or "max"
            continue
        free = min(free, max(most - now, 0))
    soft = resource.getrlimit(resource.RLIMIT_AS)[0]
    if soft != resource.RLIM_INFINITY and Path("/proc/self/statm").exists():
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        free = min(free, max(soft - mapped, 0))
    return free


def commit() -> str:
    """The commit of the code that runs, with ``+`` where the checkout had changes; ``"unknown"`` outside git."""
    if "LOWDIM_COMMIT" in os.environ:
        return os.environ["LOWDIM_COMMIT"]
    here = Path(__file__).parent

    def git(*args):
        return subprocess.run(["git", "-C", here, *args], capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        pass
    try:  # installed by pip from a git address: pip left the commit in the package's metadata
        record = json.loads(metadata.distribution("lowdim").read_text("direct_url.json") or "{}")
        return record["vcs_info"]["commit_id"][:12]
    except (metadata.PackageNotFoundError, KeyError):
        return "unknown"


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    found = {"python": platform.python_version()}
    for package in ("lowdim", "torch", "numpy", "scipy"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


@ok.takes(device=ok.kind(torch.device, "a torch.device"))
def provenance(device: torch.device) -> dict:
    """What must be known to run this again: device, versions, commit and date (UTC)."""
    return {
        "device": device_name(device),
        "versions": versions(),
        "commit": commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
