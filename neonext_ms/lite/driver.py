"""Our drivers of MindSpore Lite, compiled against its headers on first use, and kept in the user's cache."""

from __future__ import annotations

from pathlib import Path

from neonext_ms.common.errors import NeoNextError
from neonext_ms.ops.compiled import shared_object

from . import package


def driver() -> Path:
    """Return the shared object with both drivers, the converter and the runner.

    Raises:
        ToolchainError: MindSpore Lite is not installed, or there is no C++ compiler, or it fails.
    """
    root = package.find()
    options = [
        *("-std=c++17", "-O1", "-shared", "-fPIC", f"-I{root}", f"-I{root / 'include'}"),
        # The options come before the sources. DT_RPATH holds for the libraries of the libraries, too, and some of
        # these name symbols that only a device's libraries have.
        *("-Wl,--no-as-needed", "-Wl,--allow-shlib-undefined", f"-L{root / 'lib'}"),
        f"-Wl,--disable-new-dtags,-rpath,{root / 'lib'}",
        *(f"-l:{name}" for name in package.LIBRARIES),
    ]
    return shared_object("lite", Path(__file__).parent / "cpp", options)


def missing() -> str | None:
    """Return why MindSpore Lite cannot be used here and what to do, or None if it can."""
    try:
        driver()
    except NeoNextError as error:
        return str(error)
    return None
