"""Which files of the library a piece of code imports, directly or not."""

import ast
from pathlib import Path


def closure(code: str, library: Path) -> set[Path]:
    """Library files reached from this code by import statements; found in the text, nothing is imported."""
    seen, waiting = set(), [code]
    while waiting:
        for module in _imported(waiting.pop()):
            base = library.joinpath(*module.split("."))
            for path in (base.with_suffix(".py"), base / "__init__.py"):
                if path.exists() and path not in seen:
                    seen.add(path)
                    waiting.append(path.read_text())
    data = {path for path in library.glob("lowdim/*.html") if library / "lowdim" / "results.py" in seen}
    return seen | data


def _imported(code: str):
    try:
        tree = ast.parse(code)
    except SyntaxError:  # the chapter will fail when it runs, and say where
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""] + [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "lowdim":
                yield from ({"lowdim", name} if "." in name else {name})
