"""The same chapter again: with one job and two, in another folder, another locale, time zone and hash seed."""

import json

import pytest
from test_kills import end, start
from toys import HEADER, project_with

HEAD = (
    HEADER
    + """
# A chapter that trains

```{code-cell} ipython3
:tags: [parameters]

profile: str = "quick"  # profile
seed: int = 0  # seed
device: str = "cpu"  # device
```

```{code-cell} ipython3
import matplotlib.pyplot as plt
import torch

from lowdim.claims import Claims
from lowdim.results import Results
from lowdim.runtime import generator

out, claims = Results("SLUG", dict(profile=profile, seed=seed, device=device)), Claims("SLUG")
random = generator(seed)
```
"""
)
TAIL = """
```{code-cell} ipython3
---
mystnb:
  figure:
    caption: The measured numbers, one after the other, as they are.
    name: fig-SLUG-line
  image:
    alt: A line through the measured numbers, one after the other.
---
figure, axes = plt.subplots(figsize=(2, 1))
axes.plot(measured)
out.figure(figure, "line", {"y": measured})
out.glue("last", measured[-1])
claims.holds("finite", "All numbers are finite.", source="here", origin="derived",
             measured=[bool(torch.isfinite(torch.as_tensor(measured)).all())], reason="toy")
out.write(claims)
```
"""
DESCENT = """
```{code-cell} ipython3
from lowdim.descent import train
from lowdim.factorization import ModeNetwork, edge, mode_layers

rates = torch.linspace(0.9, 1.3, 50, dtype=torch.float64) * edge(10.0, depth=3)
network = ModeNetwork(mode_layers(depth=3, runs=50, modes=1, alpha=0.1), torch.tensor([10.0]), rates)
run = train(network, 500, record={"pi": network.product}, start=450)
measured = run["pi"][-1, :, 0].double()
```
"""
RANDOM = """
```{code-cell} ipython3
basis = torch.linalg.qr(torch.randn(40, 6, dtype=torch.float64, generator=random))[0]
noisy = basis @ basis.T + 0.01 * torch.randn(40, 40, dtype=torch.float64, generator=random)
names = {f"mode {k}" for k in range(40)}  # a set: its order changes with the hash seed, results must not
measured = torch.stack([torch.linalg.svdvals(noisy)[int(name.split()[1])] for name in sorted(names)])
```
"""
CHAPTERS = {"descends": HEAD + DESCENT + TAIL, "draws": HEAD + RANDOM + TAIL}
TIMES = ("date", "runtime_s")


def outcome(project):
    """Everything that a run leaves, apart from times, the notebooks and the stamps, which hold them."""
    found = {}
    for path in sorted(project.glob("build/chapters/quick/*/*")):
        name = f"{path.parent.name}/{path.name}"
        if path.name == "results.json":
            found[name] = json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k not in TIMES})
        elif path.suffix in (".npz", ".csv", ".png"):
            found[name] = path.read_bytes()
    return found


def execute(project, jobs):
    status, words = end(start(project, "tools/execute.py", "--jobs", str(jobs)))
    assert status == 0, words
    return outcome(project)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    project = project_with(CHAPTERS, tmp_path_factory.mktemp("first"))
    found = execute(project, 1)
    assert len(found) == 8, "results.json, npz, csv and png of two chapters"
    return project, found


def test_two_jobs_side_by_side(first):
    project, found = first
    for path in project.glob("build/chapters/quick/*/stamp.json"):
        path.unlink()
    assert execute(project, 2) == found


def test_another_folder_locale_time_zone_and_hash_seed(first, tmp_path, monkeypatch):
    foreign = {"LC_ALL": "tr_TR.UTF-8", "LANG": "tr_TR.UTF-8", "TZ": "Asia/Kathmandu", "PYTHONHASHSEED": "4711"}
    for name, value in foreign.items():
        monkeypatch.setenv(name, value)
    place = tmp_path / "a folder, with spaces é"
    place.mkdir()
    assert execute(project_with(CHAPTERS, place), 2) == first[1]


def test_another_seed_is_seen(first, tmp_path):
    """The comparison can fail: a run with another seed differs."""
    project, found = first
    slug, out = "draws", tmp_path / "out"
    assert end(start(project, "tools/run_chapter.py", slug, "-p", "seed", "1", "--out", str(out)))[0] == 0
    assert (out / "line.npz").read_bytes() != found[f"{slug}/line.npz"]
