"""NeoNeXt vision models on MindSpore, and the way onto Ascend hardware.

Names load on first use, so that a command which needs no MindSpore does not import it.
"""

from __future__ import annotations

__version__ = "0.1.0"

_HOME = {
    "Architecture": "architecture",
    "Checkpoint": "checkpoint",
    "NeoNeXt": "models",
    "create_model": "models",
    "list_models": "registry",
    "load_checkpoint": "checkpoint",
    "load_weights": "models",
    "mindspore_name": "names",
    "model_arrays": "models",
    "model_config": "registry",
    "official_name": "names",
    "save_checkpoint": "checkpoint",
}

__all__ = ["__version__", *sorted(_HOME)]


def __getattr__(name: str):
    if name in _HOME:
        from importlib import import_module

        value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted(set(globals()) | set(__all__))
