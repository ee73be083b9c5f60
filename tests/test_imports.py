"""The structure of the package: no circle between files, and no room that imports from one above it.

Every import counts, also those inside functions and under TYPE_CHECKING.
"""

from __future__ import annotations

import ast
import importlib
import os
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1] / "neonext_ms"
# A room may import from rooms of its own or a lower number.
ROOMS = {"common": 0, "ops": 1, "models": 2, "checkpoint": 2, "images": 2, "lite": 2, "runtime": 2, "training": 2,
         "export": 3, "benchmarks": 4}  # fmt: skip
# Former name of a module that other programs import -> its name.
FORMER = {
    "neonext_ms.errors": "neonext_ms.common.errors",
    "neonext_ms.training.state": "neonext_ms.training.run_state",
}


@cache
def modules() -> dict[str, Path]:
    """Return every module of the package with its file; the links to the other rooms are followed."""
    result = {}
    for folder, folders, files in os.walk(ROOT, followlinks=True):
        folders[:] = [name for name in folders if name != "__pycache__"]
        for name in files:
            path = Path(folder) / name
            if path.suffix == ".py":
                parts = [ROOT.name, *path.relative_to(ROOT).with_suffix("").parts]
                result[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return result


@cache
def imports(module: str) -> frozenset[str]:
    """Return the modules of the package that a module names in its import statements."""
    path = modules()[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    result = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            result |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            names = {f"{source}.{alias.name}" for alias in node.names}
            # `from package import module` means the module, `from module import name` the module that defines it.
            result |= {name if name in modules() else source for name in names}
    return frozenset(name for name in result if name in modules())


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def is_command(module: str) -> bool:
    """Return whether a module is a command, a `__main__`, or the front door; these may import from any room."""
    name = module.rpartition(".")[2]
    return module == ROOT.name or room(module) == "commands" or name.endswith("command") or name == "__main__"


def circles() -> list[list[str]]:
    """Return the groups of modules that import each other (strongly connected components, Tarjan 1972)."""
    index, low, stack, found = {}, {}, [], []

    def visit(module):
        index[module] = low[module] = len(index)
        stack.append(module)
        for other in sorted(imports(module)):
            if other not in index:
                visit(other)
                low[module] = min(low[module], low[other])
            elif other in stack:
                low[module] = min(low[module], index[other])
        if low[module] == index[module]:
            group = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(group) > 1:
                found.append(sorted(group))

    for module in sorted(modules()):
        if module not in index:
            visit(module)
    return found


def test_no_circle_between_files():
    assert len(modules()) > 100
    assert circles() == []


def test_rooms_import_from_lower_rooms_only():
    wrong = [
        f"{module} imports {other}"
        for module in sorted(modules())
        if not is_command(module) and module not in FORMER
        for other in sorted(imports(module))
        if other != ROOT.name and (room(other) not in ROOMS or ROOMS[room(other)] > ROOMS[room(module)])
    ]
    assert wrong == []


def test_imports_are_absolute_across_rooms_and_relative_inside():
    wrong = []
    for module, path in sorted(modules().items()):
        depth = len(module.split(".")) - (path.name != "__init__.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                leaves = node.level > depth - 1 and module != ROOT.name
                own = not node.level and room(module) and (node.module or "").startswith(f"{ROOT.name}.{room(module)}.")
                if leaves or own:
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert wrong == []


def test_former_names_are_the_same_modules():
    for former, name in FORMER.items():
        assert importlib.import_module(former) is importlib.import_module(name)
        assert not any(former in imports(module) for module in modules())
