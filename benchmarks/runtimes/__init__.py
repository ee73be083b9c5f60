"""The runtimes that a model can be measured in, one small class each."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from neonext_ms.common.errors import ToolchainError, UsageError, nearest

from .base import NOT_RUN_ON_A_DEVICE, Runtime, Settings, check_finite

# Name -> module and class. The first that takes a suffix is the default for it.
_HOME = {
    "onnxruntime": ("onnx_runtime", "OnnxRuntimeCpu"),
    "onnxruntime-cann": ("onnx_runtime", "OnnxRuntimeCann"),
    "openvino": ("openvino_runtime", "OpenVino"),
    "openvino-bf16": ("openvino_runtime", "OpenVinoBfloat16"),
    "mindspore": ("mindspore_runtime", "MindSporeCpu"),
    "mindspore-ascend": ("mindspore_runtime", "MindSporeAscend"),
    "pyacl": ("pyacl", "PyAcl"),
    "mindspore-lite": ("lite", "LiteCpu"),
    "mindspore-lite-ascend": ("lite", "LiteAscend"),
}
_DEFAULT = {".onnx": "onnxruntime", ".mindir": "mindspore", ".om": "pyacl", ".ms": "mindspore-lite"}
SUFFIXES = tuple(_DEFAULT)

__all__ = [
    "NOT_RUN_ON_A_DEVICE",
    "SUFFIXES",
    "Runtime",
    "Settings",
    "check_finite",
    "choose",
    "choose_default",
    "names",
    "runtime",
]


def names() -> list[str]:
    """The names of all runtimes."""
    return list(_HOME)


def runtime(name: str) -> type[Runtime]:
    """The class of a runtime, whether or not it can be used here.

    Raises:
        UsageError: an unknown name.
    """
    if name not in _HOME:
        raise UsageError(f"unknown runtime {name!r}{nearest(name, _HOME)}; known are {', '.join(_HOME)}")
    module, found = _HOME[name]
    return getattr(import_module(f"{__name__}.{module}"), found)


def choose_default(path: str) -> str:
    """Name of the runtime that a file is measured in when none is asked for.

    Raises:
        UsageError: an unknown suffix.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in _DEFAULT:
        raise UsageError(
            f"{path}: unknown kind of model {suffix!r}; expected a file ending in {', '.join(_DEFAULT)}"
            f"{nearest(suffix, _DEFAULT) if suffix else ''}"
        )
    return _DEFAULT[suffix]


def choose(path: str, asked: list[str]) -> list[type[Runtime]]:
    """The runtimes for a file: those of `asked` that take it, or the default of its suffix.

    Raises:
        UsageError: an unknown suffix, or none of those asked for takes it.
        ToolchainError: one cannot be used here.
    """
    default, suffix = choose_default(path), Path(path).suffix.lower()
    chosen = [found for found in map(runtime, asked or [default]) if suffix in found.suffixes]
    if not chosen:
        fitting = [name for name in _HOME if suffix in runtime(name).suffixes]
        raise UsageError(f"{path}: {', '.join(asked)} takes no {suffix} file; these do: {', '.join(fitting)}")
    for found in chosen:
        if reason := found.missing():
            raise ToolchainError(f"{path}: the runtime {found.name} cannot be used here: {reason}")
    return chosen
