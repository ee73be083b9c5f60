"""Compiling a kernel against the twin's headers, once: objects are kept in the user's cache folder."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from ...errors import InputError, ToolchainError
from ...files import explained, publish, staging

INCLUDE = Path(__file__).with_name("include")

# Architecture, and what the device's compiler defines for it.
_ARCH_DEFINES = {
    2002: {"__CCE_AICORE__": "200", "__DAV_M200__": "1"},
    2201: {"__CCE_AICORE__": "220", "__DAV_C220__": "1", "__DAV_C220_VEC__": "1", "__DAV_VEC__": "1"},
    3002: {"__CCE_AICORE__": "300", "__DAV_M300__": "1"},
}

# Two refusals have to see the same arithmetic on every host, so no fused multiply-add and no fast mathematics; and two
# kernels in one process have each their own state, so no unique symbols.
_FLAGS = (
    *("-std=c++17", "-O2", "-g1", "-shared", "-fPIC", "-ffp-contract=off", "-fvisibility=hidden", "-fno-gnu-unique"),
    *("-fno-strict-aliasing", "-w"),
)

_COMPILE_SECONDS = 600
_SHOWN_LINES = 20


def compiler() -> tuple[str, ...]:
    """The C++ compiler's command: `CXX`, or `g++`.

    Raises:
        ToolchainError: there is none.
    """
    command = tuple(shlex.split(os.environ.get("CXX", ""))) or ("g++",)
    if shutil.which(command[0]) is None:
        raise ToolchainError(
            f"C++ compiler {command[0]!r} not found; the twin compiles kernels with it. "
            "Install g++ (version 9 or later), or set CXX to a compiler that takes the same options"
        )
    return command


@functools.lru_cache(maxsize=8)
def _version(command: tuple[str, ...]) -> str:
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=60, check=False)
    if done.returncode != 0:
        raise ToolchainError(f"`{shlex.join(command)} --version` failed: {done.stderr.strip()[:500]}")
    return done.stdout


def cache_directory() -> Path:
    """Where compiled kernels are kept: `neonext_ms/twin` in `XDG_CACHE_HOME` or `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME")
    root = Path(base) if base and os.path.isabs(base) else Path.home() / ".cache"
    return root / "neonext_ms" / "twin"


def build(source: Path, arch: int, defines: Mapping[str, str | int | None], include: Sequence[Path]) -> Path:
    """The shared object of a kernel, compiled if no earlier call did.

    Args:
        source: the kernel's C++ file.
        arch: `__NPU_ARCH__`.
        defines: preprocessor names and values; None defines a name without a value.
        include: folders searched for `#include` before the twin's own.

    Raises:
        InputError: the architecture is unknown, or the source cannot be read or does not compile.
        ToolchainError: there is no C++ compiler.
    """
    if arch not in _ARCH_DEFINES:
        known = ", ".join(map(str, _ARCH_DEFINES))
        raise InputError(f"the twin has no architecture {arch}; it has {known}")
    with explained(source), open(source, "rb"):
        pass
    command = compiler()
    every = {"__NPU_ARCH__": arch, **_ARCH_DEFINES[arch], **defines}
    options = [
        *_FLAGS,
        *(f"-D{name}" if value is None else f"-D{name}={value}" for name, value in every.items()),
        *(f"-I{folder}" for folder in [*include, INCLUDE]),
    ]
    key = _digest(_version(command), *command, *options, str(source))
    cache = _usable(cache_directory())
    manifest = cache / f"{key}.json"
    known = _read_manifest(manifest)
    if known is not None and _unchanged(known["files"]) and (cache / known["object"]).is_file():
        return cache / known["object"]
    with staging(cache) as stage:
        made = stage / "kernel.so"
        files = _compile([*command, *options, str(source), "-o", str(made)], source, stage)
        name = f"{_digest(key, json.dumps(files, sort_keys=True))}.so"
        publish(made, cache / name)
        listing = stage / "manifest"
        listing.write_text(json.dumps({"object": name, "files": files}))
        publish(listing, manifest)
    return cache / name


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _usable(cache: Path) -> Path:
    try:
        cache.mkdir(parents=True, exist_ok=True)
        if os.access(cache, os.W_OK | os.X_OK):
            return cache
    except OSError:
        pass
    return _temporary_cache()


@functools.lru_cache(maxsize=1)
def _temporary_cache() -> Path:
    return Path(tempfile.mkdtemp(prefix="neonext_twin_"))


def _read_manifest(path: Path) -> dict | None:
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return known if isinstance(known, dict) and {"object", "files"} <= known.keys() else None


def _unchanged(files: Mapping[str, str]) -> bool:
    return all(_file_digest(path) == digest for path, digest in files.items())


def _file_digest(path: str | os.PathLike) -> str | None:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:32]
    except OSError:
        return None


def _compile(command: list[str], source: Path, stage: Path) -> dict[str, str]:
    """Compile, and give every file that was read, but the system's headers, with its digest."""
    depends = stage / "depends"
    try:
        done = subprocess.run(
            [*command, "-MMD", "-MF", str(depends), "-MT", "object"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_COMPILE_SECONDS,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "LC_ALL": "C"},
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise InputError(f"{source}: the C++ compiler did not finish within {_COMPILE_SECONDS} s") from error
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        shown = "\n".join(f"  {line}" for line in lines[:_SHOWN_LINES])
        more = f"\n  ... and {len(lines) - _SHOWN_LINES} more lines" if len(lines) > _SHOWN_LINES else ""
        raise InputError(f"{source} does not compile against the twin's headers:\n{shown}{more}")
    listed = depends.read_text().replace("\\\n", " ").partition(":")[2]
    names = [name.replace("\\ ", " ") for name in re.findall(r"(?:\\ |\S)+", listed)]
    return {name: _file_digest(name) or "" for name in names}
