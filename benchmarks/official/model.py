"""The official PyTorch model, loaded from its repository, in the interpreter that has torch."""

from __future__ import annotations

import contextlib
import importlib
import sys
import types
from pathlib import Path
from typing import Any


def load_official(repository: str, options: dict):
    """Return the official `NeoNeXt` with these options.

    Args:
        repository: clone of HapKoM/neonext.
        options: keyword arguments of the class.
    """
    folder = Path(repository) / "ptvision" / "models" / "neonext"
    sys.path.insert(0, str(repository))
    # The package itself imports more than torch, so a stub takes its place and only the model's module is loaded.
    package = "ptvision.models.neonext"
    importlib.import_module("ptvision.models")
    stub: Any = types.ModuleType(package)
    stub.__path__ = [str(folder)]
    sys.modules[package] = stub
    extension = f"{package}.neonext_cpp_module"
    if not (folder / "neonext_cpp_module.so").is_file():
        from torch.utils.cpp_extension import load

        sys.modules[extension] = load("neonext_cpp_module", [str(folder / "csrc" / "neocell.cpp")])
    stub.neonext_cpp_module = importlib.import_module(extension)
    # The official code prints while it builds a model; standard output carries answers.
    with contextlib.redirect_stdout(sys.stderr):
        return importlib.import_module(f"{package}.neonext").NeoNeXt(**options)
