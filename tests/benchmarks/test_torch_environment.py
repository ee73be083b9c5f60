"""The environment for the official model, with every installer replaced: what is run, what is kept, what is refused."""

import sys
from pathlib import Path

import pytest

from neonext_ms.benchmarks import torch_environment


@pytest.fixture
def calls(monkeypatch):
    """Commands that would run; `venv` leaves its files, and `installed` is False until pip ran."""
    made = []

    def call(command, what):
        made.append(command)
        if "venv" in command:
            folder = Path(command[-1])
            (folder / "bin").mkdir(parents=True)
            (folder / "lib" / "python3" / "site-packages").mkdir(parents=True)
            (folder / "pyvenv.cfg").touch()
            torch_environment.python_of(folder).touch()
        if command[0] == "git":
            official(Path(command[-1]))

    monkeypatch.setattr(torch_environment, "_call", call)
    monkeypatch.setattr(torch_environment, "installed", lambda python, package: any(package in c for c in made))
    monkeypatch.setattr(torch_environment.shutil, "which", lambda name: f"/usr/bin/{name}")
    return made


def official(folder):
    model = folder / "ptvision" / "models" / "neonext" / "neonext.py"
    model.parent.mkdir(parents=True)
    model.touch()
    return folder


def test_everything_is_installed_once(calls, tmp_path, capsys):
    folder = tmp_path / "torch"
    assert torch_environment.main([str(folder)]) == 0
    assert [command[0] for command in calls] == [sys.executable, *[str(folder / "bin/python")] * 3, "git"]
    assert calls[1][-3:] == ["--index-url", torch_environment.TORCH_INDEX, "torch"]
    assert "--torch " + str(folder / "bin/python") in capsys.readouterr().out
    (beside,) = folder.glob("lib/*/site-packages/*.pth")
    assert "addsitedir" in beside.read_text()
    calls_before = len(calls)
    assert torch_environment.main([str(folder)]) == 0 and len(calls) == calls_before


def test_a_clone_that_is_here(calls, tmp_path):
    clone = official(tmp_path / "clone")
    made = torch_environment.make(tmp_path / "torch", "https://example.org", str(clone))
    assert made["official"] == str(clone) and not any(command[0] == "git" for command in calls)


def test_refusals(calls, tmp_path, capsys, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    assert torch_environment.main([str(tmp_path / "full")]) == 1
    assert torch_environment.main([str(tmp_path / "a"), "--official", str(tmp_path / "full")]) == 1
    monkeypatch.setattr(torch_environment.shutil, "which", lambda name: None)
    assert torch_environment.main([str(tmp_path / "b")]) == 3
    assert not calls and capsys.readouterr().err.count("error: ") == 3


def test_a_tool_that_fails_is_named():
    with pytest.raises(torch_environment.ToolchainError, match="trying: exit code 3: no luck"):
        torch_environment._call(
            [sys.executable, "-c", "import sys; print('no luck', file=sys.stderr); sys.exit(3)"], "trying"
        )
    with pytest.raises(torch_environment.ToolchainError, match="cannot be started"):
        torch_environment._call(["/none/of/that"], "trying")
