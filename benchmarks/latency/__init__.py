"""The device model: predicted time of any ONNX network on an Atlas device. Nothing here was run on one.

See docs/device-model.md.
"""

from typing import TYPE_CHECKING

from neonext_ms.common.lazy import lazy

if TYPE_CHECKING:
    from .network_model import Estimate, TaskEstimate, estimate

_HOME = {"estimate": "network_model", "Estimate": "network_model", "TaskEstimate": "network_model"}
__getattr__ = lazy(__name__, _HOME)
__all__ = ["Estimate", "TaskEstimate", "estimate"]
