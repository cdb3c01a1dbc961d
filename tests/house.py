"""Rules of the package that no linter knows; ``make check`` runs this as a program.

* No file has more lines than LINES says; the algorithm (pipeline/run.py) fits on a screen.
* No class name stands twice.
* No files import each other in a circle, imports inside functions included.
* Only files named vllm_* import vLLM.
* Every file that a page of the documentation names is there, and docs/ARCHITECTURE.md names who calls a room.
"""

import ast
import re
import sys
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "masters_ray"
LINES = defaultdict(lambda: 400, {"pipeline/run.py": 150})


def complaints(package: Path) -> list[str]:
    found: list[str] = []
    trees: dict[str, ast.Module] = {}
    classes: dict[str, list[str]] = defaultdict(list)
    for path in sorted(package.rglob("*.py")):
        file, text = path.relative_to(package), path.read_text(encoding="utf-8")
        if (lines := text.count("\n")) > LINES[file.as_posix()]:
            found.append(f"{file}: {lines} lines, {LINES[file.as_posix()]} are allowed")
        if re.search(r"^\s*(from|import) vllm\b", text, re.MULTILINE) and not file.name.startswith("vllm_"):
            found.append(f"{file} imports vLLM")
        module = ".".join((package.name, *file.with_suffix("").parts)).removesuffix(".__init__")
        trees[module] = ast.parse(text)
        for node in ast.walk(trees[module]):
            if isinstance(node, ast.ClassDef):
                classes[node.name].append(module)
    found += [f"class {name} stands in {' and '.join(where)}" for name, where in classes.items() if len(where) > 1]
    imports = {module: _imported(module, tree, set(trees)) for module, tree in trees.items()}
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        found.append("imports in a circle: " + " → ".join(reversed(error.args[1])))
    callers: dict[str, set[str]] = defaultdict(set)  # of each room
    for module, used in imports.items():
        for other in used:
            callers[f"{other}.".split(".")[1]].add(f"{module}.".split(".")[1])
    page = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
    for room, told in re.findall(r"(\w+) ← (\w+(?: \w+)*)", page):
        if set(told.split()) != (rooms := callers[room] - {room}):
            found.append(f"docs/ARCHITECTURE.md: {room} is called by {' '.join(sorted(rooms))}, not {told}")
    return found


def missing(root: Path) -> list[str]:
    """Files with a folder in their name that README.md, CONTRIBUTING.md or a page of docs/ names and that are neither
    in the project nor in the package; conf/mine.yaml is the reader's."""
    found = []
    for page in sorted([*root.glob("*.md"), *root.glob("docs/*.md"), *root.glob("examples/*.md")]):
        for name in re.findall(r"[\w./-]*\w/[\w.-]*\w\.(?:py|md|yaml|toml|cfg)\b", page.read_text(encoding="utf-8")):
            if name != "conf/mine.yaml" and not any((at / name).exists() for at in (root, PACKAGE, page.parent)):
                found.append(f"{page.relative_to(root)}: {name} is not there")
    return found


def _imported(module: str, tree: ast.AST, modules: set[str]) -> set[str]:
    """Of the package. ``from package import name`` means the submodule of that name, or the package itself."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inner if inner <= modules else inner | {node.module}
    return (found & modules) - {module}


if __name__ == "__main__":
    told = complaints(PACKAGE) + missing(ROOT)
    print("\n".join(told) or "the package keeps its rules")
    sys.exit(bool(told))
