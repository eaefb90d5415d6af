"""The house of README's tree: who may import whom, and that importing the words loads nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "virft"

LAYER_0 = {
    "types",
    "errors",
    "completions",
    "files",
    "prompts",
    "parsing",
    "notation",
    "answer_tags",
    "boxes",
    "predictions",
    "image_header",
}
LAYER_1 = {"rewards", "data", "metrics"}
PROGRAMS = {"grpo", "sft", "score", "evaluate", "merge", "doctor"}
STANDARD = set(sys.stdlib_module_names)


def top(path: Path) -> str:
    """The module's name directly below virft: ``data`` for data/coco.py, ``boxes`` for boxes.py."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")
LIBRARY = [p for p in MODULES if top(p) not in PROGRAMS]


def imports(path: Path, module_level_only: bool = False) -> set[str]:
    """Absolute names that a file imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    type_only = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and "TYPE_CHECKING" in ast.dump(branch.test)
        for node in ast.walk(branch)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in type_only or (module_level_only and id(node) in inside):
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: relative import"
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def own(names: set[str]) -> set[str]:
    """The modules directly below virft among imported names."""
    return {name.split(".")[1] for name in names if name.startswith("virft.")}


def foreign(names: set[str]) -> set[str]:
    """Imported packages that are neither virft nor the standard library."""
    return {name.split(".")[0] for name in names} - STANDARD - {"virft", "__future__"}


@pytest.mark.parametrize("path", [p for p in MODULES if top(p) in LAYER_0], ids=top)
def test_words_use_the_standard_library_and_each_other(path: Path) -> None:
    assert foreign(imports(path)) == set()
    assert own(imports(path)) <= LAYER_0


@pytest.mark.parametrize(
    "path",
    # data/validate.py is a program that stands beside what it checks: it runs rewards on solutions.
    [p for p in MODULES if top(p) in LAYER_1 and p.name != "validate.py"],
    ids=lambda p: str(p.relative_to(PACKAGE)),
)
def test_meaning_imports_words_and_loads_heavy_libraries_inside_functions(path: Path) -> None:
    assert own(imports(path)) <= LAYER_0 | {top(path)}
    assert foreign(imports(path, module_level_only=True)) == set()


MACHINERY = [p for p in LIBRARY if top(p) not in LAYER_0 | LAYER_1]


@pytest.mark.parametrize("path", MACHINERY, ids=top)
def test_machinery_knows_no_task_and_no_program(path: Path) -> None:
    assert own(imports(path)) & (LAYER_1 | PROGRAMS) == set()


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nothing_imports_a_program(path: Path) -> None:
    assert own(imports(path)) & PROGRAMS <= {top(path)}  # evaluate is a package: its parts may


@pytest.mark.parametrize(
    "module", ["virft", "virft.rewards", "virft.parsing", "virft.data.coco", "virft.score"]
)
def test_importing_loads_neither_torch_nor_numpy(module: str) -> None:
    code = f"import sys, {module}; print([m for m in ('torch', 'numpy', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_exception_is_swallowed_whole(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ExceptHandler):
            caught = (
                {"everything"}
                if node.type is None
                else {n.id for n in ast.walk(node.type) if isinstance(n, ast.Name)}
            )
            assert not caught & {"everything", "Exception", "BaseException"}, f"{path.name}:{node.lineno}"
