"""Predicted time of any ONNX network on an Atlas device. Nothing here was run on one; `docs/predict.md`."""

from neonext_ms.common.lazy import lazy

_HOME = {"of_onnx": "prediction", "Prediction": "prediction", "NodeTime": "prediction"}
__getattr__ = lazy(__name__, _HOME)
__all__ = ["NodeTime", "Prediction", "of_onnx"]
