"""Nothing is unpickled, no shell is called, only one place reaches the network, and notebooks run one install."""

import ast
import json
import re

import jupytext
import nbformat
import policy
import publish_notebooks
import pytest
from chapters import ROOT, all_chapters
from check_site import problems
from publish_notebooks import INSTALL, published

FILES = sorted(p for folder in ("lib", "tools", "book/_ext", "benchmarks") for p in (ROOT / folder).rglob("*.py"))
CHAPTERS = [p for p in sorted((ROOT / "book").rglob("*.md")) if p.read_text().startswith("---\njupytext:")]
PICKLES = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "_pickle", "jsonpickle"}
SHELLS = {"os.system", "os.popen", "os.execl", "os.spawnl", "subprocess.getoutput", "pty.spawn", "commands.getoutput"}
PROCESSES = {
    "subprocess.run",
    "subprocess.Popen",
    "subprocess.call",
    "subprocess.check_call",
    "subprocess.check_output",
}
NETWORK = {"urllib.request.urlopen", "urllib.request.urlretrieve", "requests.get", "socket.socket", "http.client"}


def called(node: ast.Call) -> str:
    return ast.unparse(node.func)


def keyword(node: ast.Call, name: str):
    """The value of a keyword that is written out, else None."""
    found = next((k.value for k in node.keywords if k.arg == name), None)
    return found.value if isinstance(found, ast.Constant) else found


def unpickling(tree: ast.AST):
    """What could unpickle: imports, loaders that do so by default, and those told to."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            yield from (f"imports {name}" for name in names if name.split(".")[0] in PICKLES)
        if not isinstance(node, ast.Call):
            continue
        name = called(node)
        if keyword(node, "allow_pickle") not in (None, False):
            yield f"{name} with allow_pickle"
        if name.endswith("torch.load") and keyword(node, "weights_only") is not True:
            yield "torch.load without weights_only=True"
        if name.endswith(("torch.save", "read_pickle", "to_pickle", "yaml.load", "yaml.unsafe_load", "torch.jit.load",
                          "torch.hub.load")):  # fmt: skip
            yield name
        if name.endswith((".extractall", ".extract")):
            yield f"{name}: archives are read, not unpacked"


def shells(tree: ast.AST):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if called(node) in SHELLS or keyword(node, "shell") not in (None, False):
                yield called(node)
            if called(node) in ("eval", "exec", "__import__"):
                yield called(node)


def trees(paths):
    return {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text()) for path in paths}


def test_nothing_is_unpickled():
    assert {name: found for name, tree in trees(FILES).items() if (found := list(unpickling(tree)))} == {}


def test_no_shell_and_no_evaluation_of_text():
    assert {name: found for name, tree in trees(FILES).items() if (found := list(shells(tree)))} == {}


def test_one_function_reaches_the_network():
    found = {
        name: {called(node) for node in ast.walk(tree) if isinstance(node, ast.Call)} & NETWORK
        for name, tree in trees(FILES).items()
        if not name.startswith("benchmarks")
    }
    assert {name for name, calls in found.items() if calls} == {"lib/lowdim/data.py"}
    plain = [name for name in found if re.search(r"http://(?!127\.0\.0\.1|localhost)", (ROOT / name).read_text())]
    assert plain == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from joblib import load",
        "import numpy as np; np.load('x', allow_pickle=True)",
        "np.load('x', allow_pickle=flag)",
        "torch.load('x')",
        "torch.load('x', weights_only=False)",
        "pd.read_pickle('x')",
        "yaml.load(text)",
        "archive.extractall('.')",
    ],
)
def test_the_search_for_pickles_finds_them(code):
    assert list(unpickling(ast.parse(code)))


def test_the_search_for_shells_finds_them():
    for code in ("os.system('ls')", "subprocess.run('ls', shell=True)", "eval('1')"):
        assert list(shells(ast.parse(code)))
    assert not list(unpickling(ast.parse("np.load('x', allow_pickle=False); torch.load('x', weights_only=True)")))


# ---------------------------------------------------------------- notebooks


def commands(notebook) -> list[str]:
    """What the code cells of a notebook would have a shell or a process do."""
    found = []
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        lines = [line for line in cell.source.splitlines() if re.match(r"\s*[!%]|\s*\w+\s*=\s*!", line)]
        if lines:
            found += lines
            continue
        tree = ast.parse(cell.source)
        found += shells(tree)
        found += [
            ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Call) and called(node) in PROCESSES
        ]
        names = [
            alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
        ]
        found += [
            name for name in names if name in ("subprocess", "pty", "ctypes") and cell.source != first_cell(notebook)
        ]
    return found


def first_cell(notebook) -> str:
    return next(cell.source for cell in notebook.cells if cell.cell_type == "code")


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapter_runs_no_command(path):
    notebook = jupytext.reads(path.read_text(), fmt="md:myst")
    notebook.cells.insert(0, nbformat.v4.new_code_cell("pass"))
    assert commands(notebook) == []


@pytest.mark.parametrize("chapter", all_chapters(), ids=lambda chapter: chapter.slug)
def test_a_published_notebook_runs_one_install_and_no_other_command(chapter, tmp_path, monkeypatch):
    """The reader's notebook made from the chapter's text and its stored results."""
    results = ROOT / "tests" / "reference" / f"{chapter.slug}.results.json"
    glued = set(re.findall(r"\{glue:text\}`(\w+)", chapter.text))
    content = json.loads(results.read_text())
    content = {"glue": dict.fromkeys(glued, 1), "runtime_s": 1.0, "device": "CPU"} | {"claims": content["claims"]}
    (tmp_path / "results.json").write_text(json.dumps(content))
    notebook = jupytext.reads(chapter.text, fmt="md:myst")
    notebook.metadata["language_info"] = {"name": "python"}  # the kernel's, in an executed one
    nbformat.write(notebook, tmp_path / "notebook.ipynb")
    monkeypatch.setattr(publish_notebooks, "build_folder", lambda profile, slug: tmp_path)
    notebook = published(chapter, "quick", publish_notebooks.references())
    assert first_cell(notebook).startswith(INSTALL.splitlines()[0])
    install = "subprocess.check_call([sys.executable, '-m', 'pip', 'install', '--quiet', "
    runs = commands(notebook)
    assert len(runs) == first_cell(notebook).count("check_call") == INSTALL.count("check_call")
    assert all(run.startswith(install) for run in runs)
    source = re.search(r'"(git\+https://github\.com/[\w-]+/[\w-]+@[0-9a-f]{40})"', first_cell(notebook))
    assert source, "the library is installed over https at a full commit"


def test_commands_are_found():
    cells = ["pass", "!ls", "%%bash\nls", "x = !ls", "import subprocess", "import os; os.system('ls')"]
    for source in cells[1:]:
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(s) for s in ("pass", source)])
        assert commands(notebook), source


# ---------------------------------------------------------------- the policy of the pages

PAGE = """<html>
<head><title>t</title><script>let a = 1;</script><script src="x.js"></script></head>
<body onload="go(&quot;x&quot;)"><script type="application/json">{"a": 1}</script></body></html>"""


def test_a_policy_allows_the_scripts_of_its_page_and_no_others():
    page = policy.protected(PAGE)
    rules = dict(rule.split(" ", 1) for rule in policy.META.findall(page)[0].split("; "))
    assert page.index("Content-Security-Policy") < page.index("<title>")
    assert rules["default-src"] == "'self'"
    assert rules["object-src"] == rules["base-uri"] == "'none'"
    assert rules["script-src"].count("sha256-") == 2  # the script and the handler; data is no script
    assert "unsafe-inline" not in rules["script-src"]
    assert "unsafe-eval" not in rules["script-src"]
    assert not re.search(r"https?:|\*", " ".join(rules.values()))
    assert policy.protected(page) == page
    assert policy.policy(page.replace("a = 1", "a = 2")) != policy.policy(page)


def test_the_check_of_the_site_finds_a_missing_or_stale_policy(tmp_path):
    good = policy.protected(PAGE.replace('<script src="x.js"></script>', ""))
    for name in "abc":
        (tmp_path / f"{name}.html").write_text(good)
    assert problems(tmp_path) == []
    (tmp_path / "a.html").write_text(policy.META.sub("", good))
    (tmp_path / "b.html").write_text(good.replace("let a = 1", "steal()"))
    words = "its content-security policy is missing or not that of its scripts"
    assert sorted(problems(tmp_path)) == [f"a.html: {words}", f"b.html: {words}"]
