"""The package of MindSpore Lite: download it, check it, unpack what the drivers need, and find that again.

PyPI has one release of `mindspore-lite`, 2.0.0 of June 2023 for Python 3.7. Its Python modules are not used, so any
Python will do.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from neonext_ms.common.errors import InputError, ToolchainError
from neonext_ms.common.files import exclusive, explained, sha256, staging
from neonext_ms.ops.compiled import cache_directory

VERSION = "2.0.0"
VARIABLE = "NEONEXT_LITE"
COMMAND = "python -m neonext_ms.lite"

_WHEEL = f"mindspore_lite-{VERSION}-cp37-cp37m-manylinux1_x86_64.whl"
_SHA256 = "199cd0605cc985b88eddb273db9dfe9000a585ba10ca2292b6b36ebfff07b3ec"
_DOWNLOAD = (
    *("download", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:"),
    *("--python-version", "3.7", "--implementation", "cp", "--abi", "cp37m", "--platform", "manylinux1_x86_64"),
    f"mindspore-lite=={VERSION}",
)
_RECORD = f"mindspore_lite-{VERSION}.dist-info/RECORD"
# What the drivers are linked with. Half of the package is for other devices and for training.
LIBRARIES = (
    *("libmindspore-extendrt_python.so", "libmindspore_converter.so", "libmslite_converter_plugin.so"),
    *("libmindspore_core.so", "libmindspore_glog.so.0", "libdnnl.so.2"),
    *("libopencv_core.so.4.5", "libopencv_imgproc.so.4.5", "libopencv_imgcodecs.so.4.5"),
)
# Opened by the runtime, which looks for them beside itself.
_PLUGINS = ("libmsplugin-ge-litert_python.so",)


def find() -> Path:
    """Return the folder with `include` and `lib` of the unpacked package.

    Raises:
        ToolchainError: it is not installed here, or not whole.
    """
    _check_platform()
    root = _root()
    if root is None or not all(_has_size(root / name, size) for name, size in _sizes(root).items()):
        where = root or f"the cache of this user, which cannot be used; set {VARIABLE} to a folder"
        raise ToolchainError(
            f"MindSpore Lite {VERSION} is not installed (looked in {where}). Run `{COMMAND}`, which downloads 169 MB "
            f"from PyPI, or set {VARIABLE} to the folder of one that did."
        )
    return root / "mindspore_lite"


def install(wheel: str | os.PathLike | None = None) -> tuple[Path, bool]:
    """Download and unpack the package unless it is there, and return its folder, and whether it was there.

    Args:
        wheel: file to unpack instead of downloading it, for a machine without access to PyPI.

    Raises:
        ToolchainError: it cannot be downloaded, or has no release for this machine.
        InputError: the file is not that of the release, or the folder cannot be written.
    """
    _check_platform()
    try:
        return find(), True
    except ToolchainError:
        pass
    root = _root()
    if root is None:
        raise ToolchainError(f"there is no cache folder for this user. Set {VARIABLE} to a folder to install into.")
    _check_replaceable(root)
    with staging(root.parent) as stage:
        source = Path(wheel) if wheel is not None else _download(stage)
        found = sha256(source)
        if found != _SHA256:
            raise InputError(f"{source}: not {_WHEEL} (got sha256 {found}, expected {_SHA256}). Download it again.")
        with explained(root), zipfile.ZipFile(source) as archive:
            names = [name for name in archive.namelist() if _is_needed(name)]
            archive.extractall(stage / "unpacked", names)
            with exclusive(root.parent):
                # One that is not whole, or of another process.
                shutil.rmtree(root, ignore_errors=True)
                os.replace(stage / "unpacked", root)
    return find(), False


def _check_platform() -> None:
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise ToolchainError(
            f"MindSpore Lite {VERSION} on PyPI is for Linux on x86-64 only (got {sys.platform} on "
            f"{platform.machine()}). Use such a machine."
        )


def _root() -> Path | None:
    """Return the folder that the package is or would be unpacked into, or None without a cache folder."""
    named = os.environ.get(VARIABLE)
    if named:
        return Path(os.path.abspath(named))
    cache = cache_directory("mindspore_lite")
    return cache / VERSION if cache else None


def _check_replaceable(root: Path) -> None:
    """Reject a folder of the user's, which an installation would replace.

    Raises:
        InputError: the folder holds something else.
    """
    with explained(root):
        names = os.listdir(root) if root.exists() else []
    if set(names) - {"mindspore_lite", Path(_RECORD).parent.name}:
        raise InputError(
            f"{root}: this folder has other files, and {VARIABLE} must name one for MindSpore Lite alone. Choose "
            "another."
        )


def _is_needed(name: str) -> bool:
    file = name.rpartition("/")[2]
    return name.startswith("mindspore_lite/include/") or name == _RECORD or file in (*LIBRARIES, *_PLUGINS)


def _sizes(root: Path) -> dict[str, int]:
    """Return the sizes of the files in the package by name, as its record states them."""
    try:
        lines = (root / _RECORD).read_text(encoding="utf-8").splitlines()
        rows = [line.split(",") for line in lines]
        return {name: int(size) for name, _, size in rows if _is_needed(name) and size} or {_RECORD: -1}
    except (OSError, ValueError):
        return {_RECORD: -1}


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _download(stage: Path) -> Path:
    done = subprocess.run(
        [sys.executable, "-m", "pip", *_DOWNLOAD, "--dest", str(stage)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    wheel = stage / _WHEEL
    if done.returncode != 0 or not wheel.is_file():
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise ToolchainError(
            f"MindSpore Lite {VERSION} cannot be downloaded ({lines[-1].strip() if lines else 'pip wrote no file'}). "
            f"Where PyPI cannot be reached, copy {_WHEEL} here and pass it: {COMMAND} --wheel FILE"
        )
    return wheel
