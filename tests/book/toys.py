"""What the toy chapters of the tests share."""

import shutil

from chapters import ROOT

HEADER = """---
jupytext:
  text_representation:
    extension: .md
    format_name: myst
    format_version: 0.13
kernelspec:
  display_name: Python 3
  language: python
  name: python3
---
"""

# Quick, because it does not load torch: it writes by hand what lowdim.results would write.
LIGHT = (
    HEADER
    + """
# A light chapter

```{code-cell} ipython3
:tags: [parameters]

profile: str = "quick"  # profile
seed: int = 0  # seed
device: str = "cpu"  # device
mood: str = "calm"  # what it does
```

```{code-cell} ipython3
import json
import time
from pathlib import Path

if mood == "hang":
    time.sleep(1000)
if mood == "greedy":
    hoard = []
    while True:
        hoard.append(b"x" * 20_000_000)
        time.sleep(0.01)
figures = [f"part-{k}" for k in range(3)]
for name in figures:
    Path(f"{name}.npz").write_bytes(f"{seed}".encode() * 1000)
    Path(f"{name}.csv").write_text(f"y\\n{seed}\\n")
    time.sleep(0.03)
```

```{code-cell} ipython3
parameters = {"profile": profile, "seed": seed, "device": device, "mood": mood}
facts = {"runtime_s": 0.1, "peak_memory_mb": 100, "device": "CPU", "versions": {}, "commit": "unknown", "date": "2026"}
claim = {"id": "runs", "statement": "This chapter runs.", "source": "here", "kind": "holds", "expected": 1}
claim |= {"origin": "derived", "measured": 1, "spread": 0, "n_seeds": 1, "tolerance": "exact", "verdict": "reproduced"}
results = {"slug": "SLUG", "profile": profile, "parameters": parameters, "claims": [claim | {"note": ""}]}
results |= {"figures": {name: {"data": f"{name}.npz"} for name in figures}, "glue": {}}
Path("results.json").write_text(json.dumps(results | facts))
print(f"seed {seed}")
```
"""
)


def project_with(chapters: dict[str, str], root):
    """A project with these chapters (slug -> text) and this project's tools and library."""
    for name in ("tools", "profiles"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Snakefile", "requirements.txt", "Makefile"):
        shutil.copy(ROOT / name, root / name)
    (root / "lib").symlink_to(ROOT / "lib")
    (root / "book/part").mkdir(parents=True)
    for slug, text in chapters.items():
        (root / f"book/part/{slug}.md").write_text(text.replace("SLUG", slug))
    files = "".join(f"      - file: book/part/{slug}\n" for slug in chapters)
    (root / "_toc.yml").write_text(f"format: jb-book\nroot: book/index\nparts:\n  - chapters:\n{files}")
    return root
