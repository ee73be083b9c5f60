"""The front door: the public names, the list of commands, and the Python lines of README and the quickstart."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import neonext_ms
from neonext_ms.__main__ import COMMANDS
from neonext_ms.common.renamed import RENAMED

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "docs" / "quickstart.md"]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def type_checking_imports(package) -> dict[str, str]:
    """Return name -> module of the imports that a package makes for type checkers only."""
    tree = ast.parse(Path(package.__file__).read_text(encoding="utf-8"))
    return {
        alias.name: statement.module.removeprefix(f"{package.__name__}.")
        for node in tree.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for statement in node.body
        for alias in statement.names
    }


def test_a_type_checker_sees_the_names_that_are_imported_lazily():
    assert type_checking_imports(neonext_ms) == neonext_ms._HOME
    assert set(neonext_ms.__all__) <= set(dir(neonext_ms))
    assert (Path(neonext_ms.__file__).parent / "py.typed").is_file()


@pytest.mark.parametrize("name", neonext_ms.__all__)
def test_every_public_name_can_be_imported(name):
    value = getattr(neonext_ms, name)
    if name in neonext_ms._HOME:
        assert value is getattr(importlib.import_module(f"neonext_ms.{neonext_ms._HOME[name]}"), name)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="creat_model"):
        _ = neonext_ms.creat_model


def test_the_package_imports_nothing_before_a_name_is_used():
    code = "import sys, neonext_ms; sys.exit(bool({'numpy', 'mindspore', 'onnx', 'PIL'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_version_is_that_of_the_project():
    assert f'\nversion = "{neonext_ms.__version__}"\n' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_every_command_is_listed():
    scripts = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("[project.scripts]\n")[2]
    names = re.findall(r"^([\w-]+) = ", scripts.partition("\n\n")[0], re.MULTILINE)
    # Earlier names still run, but are not listed.
    assert list(COMMANDS) == [name for name in names if name not in RENAMED]
    listed = subprocess.run([sys.executable, "-m", "neonext_ms"], capture_output=True, text=True, check=True).stdout
    assert [line.split()[0] for line in listed.splitlines()[2:]] == list(COMMANDS)
    assert all(len(line) <= 120 for line in listed.splitlines())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_python_lines_of_a_page_run(page, tmp_path):
    blocks = BLOCK.findall(page.read_text(encoding="utf-8"))
    assert blocks
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    done = subprocess.run([sys.executable, "-c", "\n".join(blocks)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # A comment behind print() is its output.
    assert done.stdout.splitlines() == re.findall(r"print\(.*\)  # (.*)$", "\n".join(blocks), re.MULTILINE)
