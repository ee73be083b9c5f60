"""NeoNeXt vision models on MindSpore, and the way onto Ascend hardware.

Names load on first use, so that a command which needs no MindSpore does not import it.
"""

from __future__ import annotations

from .lazy import lazy

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
__getattr__ = lazy(__name__, _HOME)


def __dir__():
    return sorted(set(globals()) | set(__all__))
