"""The cache of compiled files: what is damaged, foreign or cannot be written is never loaded and never in the way."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from neonext_ms.common import files
from neonext_ms.common.errors import ToolchainError
from neonext_ms.ops import compiled


@pytest.fixture
def one(tmp_path, monkeypatch):
    """Compile a function that returns 7, in a cache of the test's own; return the object and the compiler's runs."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = tmp_path / "source"
    source.mkdir()
    (source / "one.cpp").write_text('extern "C" int value() { return 7; }\n')
    runs = []
    run = compiled._run

    def counted(command, temporary=None):
        runs.append(command) if "-shared" in command else None
        return run(command, temporary)

    monkeypatch.setattr(compiled, "_run", counted)
    return lambda: (compiled.shared_object("test", source, ["-shared", "-fPIC"]), len(runs))


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """A folder for temporary files, and no private folder yet; it has to be empty after the test."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    monkeypatch.setattr(files, "_private", {})
    yield folder
    files.remove_private_folder()
    assert not list(folder.iterdir())


def _value(path: Path) -> int:
    return ctypes.CDLL(str(path)).value()


@pytest.mark.parametrize("damage", ["cut", "empty", "other bytes", "writable by others", "a folder", "gone", "a link"])
def test_a_damaged_object_is_compiled_again(one, tmp_path, temporary, damage):
    path, runs = one()
    assert one() == (path, runs) == (path, 1)
    content = path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "other bytes":
        path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    elif damage == "writable by others":
        path.chmod(0o666)
    else:
        path.rename(tmp_path / "moved.so")
        if damage == "a folder":
            path.mkdir()
        elif damage == "a link":
            path.symlink_to(tmp_path / "moved.so")
    again, runs = one()
    # A folder cannot be replaced.
    assert again == path or (damage == "a folder" and again.is_relative_to(temporary))
    assert again.read_bytes() == content and _value(again) == 7
    assert damage == "a folder" or one() == (again, runs)


def test_a_foreign_file_is_not_loaded(one, monkeypatch, temporary):
    path, _ = one()
    own = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: own + 1)
    # The folder is another user's too, so the object comes from a temporary folder.
    other, runs = one()
    assert runs == 2 and other.is_relative_to(temporary) and other.name == path.name


def test_no_home(one, monkeypatch, temporary):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: exec("raise RuntimeError('Could not determine home directory.')"))
    assert compiled.cache_directory("test") is None
    assert _value(one()[0]) == 7


@pytest.mark.parametrize("home", ["/proc", "", "/dev/null"])
def test_a_home_that_cannot_be_written(one, monkeypatch, temporary, home):
    monkeypatch.setenv("HOME", home)
    monkeypatch.setenv("XDG_CACHE_HOME", "" if home else "/proc/self/cache")
    path, _ = one()
    assert path.is_relative_to(temporary) and _value(path) == 7


def test_a_full_disk(one, tmp_path, monkeypatch, temporary):
    run, cache = compiled._run, tmp_path / "cache"

    def full(command, stage=None):
        if stage is not None and stage.is_relative_to(cache):
            raise ToolchainError("`g++` failed with exit code 1:\n  ld: final link failed: No space left on device")
        return run(command, stage)

    monkeypatch.setattr(compiled, "_run", full)
    path, _ = one()
    assert path.is_relative_to(temporary) and _value(path) == 7
    assert not list((cache / "neonext_ms" / "test").iterdir())


def test_a_disk_that_is_full_when_the_record_is_written(one, tmp_path, monkeypatch, temporary):
    publish, cache = compiled.publish, tmp_path / "cache"

    def full(staged, final, mode=None):
        if final.suffix == ".json" and final.is_relative_to(cache):
            with files.explained(final):
                raise OSError(28, "No space left on device")
        return publish(staged, final, mode)

    monkeypatch.setattr(compiled, "publish", full)
    path, _ = one()
    assert path.is_relative_to(temporary) and _value(path) == 7


def test_a_folder_that_others_can_write_is_closed_to_them(one):
    path, _ = one()
    path.parent.chmod(0o777)
    assert one() == (path, 1) and path.parent.stat().st_mode & 0o777 == 0o755


def test_a_killed_process_leaves_its_folder_to_the_next(tmp_path):
    program = "import os, sys, time; from neonext_ms.common.files import private_folder, _STAGE; p = private_folder(); "
    program += "(p / 'x').write_text(''); sys.argv[1:] and os.kill(os.getpid(), 9)"
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", program, "die"], env=env, check=False)
    (left,) = tmp_path.iterdir()
    os.utime(left, (0, 0))
    subprocess.run([sys.executable, "-c", program], env=env, check=True)
    assert not list(tmp_path.iterdir())
