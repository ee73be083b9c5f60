"""NeoNeXt vision models on MindSpore, and the way onto Ascend hardware.

Names load on first use, so that a command which needs no MindSpore does not import it.
"""

from __future__ import annotations

from neonext_ms.common.lazy import lazy

__version__ = "0.1.0"

_HOME = {
    "Architecture": "models.architecture",
    "Checkpoint": "checkpoint.checkpoint",
    "NeoNeXt": "models.neonext",
    "create_model": "models.factory",
    "list_models": "models.registry",
    "load_checkpoint": "checkpoint.checkpoint",
    "load_weights": "models.factory",
    "mindspore_name": "models.names",
    "model_arrays": "models.weights",
    "model_config": "models.registry",
    "official_name": "models.names",
    "save_checkpoint": "checkpoint.checkpoint",
}

__all__ = ["__version__", *sorted(_HOME)]
__getattr__ = lazy(__name__, _HOME)


def __dir__():
    return sorted(set(globals()) | set(__all__))
