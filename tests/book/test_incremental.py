"""What reruns and what does not, with two toy chapters in a project of their own."""

import os
import shutil
import subprocess
import sys
import time

import pytest
from chapters import ROOT
from toys import HEADER

CHAPTER = (
    HEADER
    + """
# The chapter {slug}

A sentence.

```{{code-cell}} ipython3
:tags: [parameters]

profile: str = "quick"  # profile
seed: int = 0  # seed
device: str = "cpu"  # device
```

```{{code-cell}} ipython3
from lowdim import {module}
from lowdim.claims import Claims
from lowdim.results import Results

out, claims = Results("{slug}", dict(profile=profile, seed=seed, device=device)), Claims("{slug}")
claims.holds("yes", "This always holds.", source="here", origin="derived", measured={measured}, reason="toy")
out.write(claims)
```
"""
)


class Project:
    def __init__(self, root):
        self.root = root
        for name in ("tools", "lib", "profiles"):
            shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        for name in ("Snakefile", "requirements.txt"):
            shutil.copy(ROOT / name, root / name)
        (root / "book/part").mkdir(parents=True)
        self.write("first", "checks")
        self.write("second", "orbits")
        files = "".join(f"      - file: book/part/{slug}\n" for slug in ("first", "second"))
        (root / "_toc.yml").write_text(f"format: jb-book\nroot: book/index\nparts:\n  - chapters:\n{files}")

    def write(self, slug, module, measured="True"):
        (self.root / f"book/part/{slug}.md").write_text(CHAPTER.format(slug=slug, module=module, measured=measured))

    def edit(self, path, old, new):
        text = (self.root / path).read_text()
        assert old in text
        (self.root / path).write_text(text.replace(old, new))

    def execute(self, *arguments):
        command = [sys.executable, "tools/execute.py", "--jobs", "2", *arguments]
        return subprocess.run(command, cwd=self.root, capture_output=True, text=True, timeout=180)

    def results(self):
        found = self.root.glob("build/chapters/quick/*/results.json")
        return {path.parent.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in found}

    def rerun(self):
        """Slugs that run again now."""
        before = self.results()
        done = self.execute()
        assert done.returncode == 0, done.stdout + done.stderr
        return {slug for slug, result in self.results().items() if before.get(slug) != result}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    project = Project(tmp_path_factory.mktemp("project"))
    assert project.rerun() == {"first", "second"}
    return project


def test_nothing_changed(project):
    started = time.perf_counter()
    assert project.rerun() == set()
    assert time.perf_counter() - started < 15


def test_a_sentence_changed(project):
    project.edit("book/part/first.md", "A sentence.", "Another sentence.")
    assert project.rerun() == set()


def test_code_changed(project):
    project.edit("book/part/first.md", 'measured=True, reason="toy"', 'measured=True, reason="still a toy"')
    assert project.rerun() == {"first"}


def test_a_module_changed_that_one_chapter_imports(project):
    project.edit("lib/lowdim/orbits.py", '"""One singular mode', '"""A single mode')
    assert project.rerun() == {"second"}


def test_a_module_changed_that_is_imported_indirectly(project):
    project.edit("lib/lowdim/factorization.py", '"""Deep matrix factorization', '"""Factorization')
    assert project.rerun() == {"second"}


def test_a_pin_changed(project):
    project.edit("requirements.txt", "# Every version", "# Each version")
    assert project.rerun() == {"first", "second"}


def test_a_failing_chapter_keeps_its_last_results_and_the_others_go_on(project):
    good = project.results()
    project.write("first", "checks", measured="1 / 0")
    project.write("second", "orbits", measured="[True]")
    done = project.execute()
    assert done.returncode != 0
    assert "first: ZeroDivisionError in section" in done.stdout + done.stderr
    assert project.results()["first"] == good["first"]
    assert project.results()["second"] != good["second"]
    project.write("first", "checks")
    assert project.rerun() == {"first"}


def test_a_killed_build_is_taken_up_again(project):
    project.write("first", "checks", measured="__import__('time').sleep(60) or True")
    build = subprocess.Popen([sys.executable, "tools/execute.py"], cwd=project.root, start_new_session=True,
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    deadline = time.time() + 60
    while not list(project.root.glob("build/chapters/quick/first/.run-*/input.ipynb")) and time.time() < deadline:
        time.sleep(0.2)
    again = project.execute()
    assert again.returncode == 1
    assert "Another build runs in this folder" in again.stderr
    os.killpg(build.pid, 9)
    build.wait()
    project.write("first", "checks", measured="[True]")
    assert project.rerun() == {"first"}


def test_a_reverted_edit_reruns_nothing(project):
    project.write("first", "checks", measured="1 / 0")
    assert project.execute().returncode != 0
    project.write("first", "checks", measured="[True]")
    assert project.rerun() == set()


def test_an_unknown_chapter(project):
    done = project.execute("third")
    assert done.returncode == 2
    assert "unknown chapter 'third'; the chapters are first, second." in done.stderr
