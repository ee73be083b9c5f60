"""NeoNeXt vision models on MindSpore, and their export to Ascend hardware.

From a checkpoint to a verified ONNX file and its logits:

    report = export_checkpoint("weights.pt", targets=["onnx"], shifts=(1, 1, 1, 0), image_size=224, output="build")
    with open_runtime(report.files["onnx"]) as model:
        logits = model.run(load_images(["cat.jpg"], Preprocessing(), model.input_size))

Names are imported on first use, so that a program that needs no MindSpore does not import it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from neonext_ms.common.lazy import lazy
from neonext_ms.common.version import __version__

# For type checkers and editors, which cannot follow the table below. A test holds both to `__all__`.
if TYPE_CHECKING:
    from neonext_ms.checkpoint.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
    from neonext_ms.export.pipeline import export_checkpoint
    from neonext_ms.export.report import Report
    from neonext_ms.images.images import load_images
    from neonext_ms.images.preprocessing import Preprocessing
    from neonext_ms.models.architecture import Architecture
    from neonext_ms.models.factory import create_model, load_weights
    from neonext_ms.models.names import mindspore_name, official_name
    from neonext_ms.models.neonext import NeoNeXt
    from neonext_ms.models.registry import list_models, model_config
    from neonext_ms.models.weights import model_arrays
    from neonext_ms.runtime.open import open_runtime

__all__ = [
    "Architecture",
    "Checkpoint",
    "NeoNeXt",
    "Preprocessing",
    "Report",
    "__version__",
    "create_model",
    "export_checkpoint",
    "list_models",
    "load_checkpoint",
    "load_images",
    "load_weights",
    "mindspore_name",
    "model_arrays",
    "model_config",
    "official_name",
    "open_runtime",
    "save_checkpoint",
]

_HOME = {
    "Architecture": "models.architecture",
    "Checkpoint": "checkpoint.checkpoint",
    "NeoNeXt": "models.neonext",
    "Preprocessing": "images.preprocessing",
    "Report": "export.report",
    "create_model": "models.factory",
    "export_checkpoint": "export.pipeline",
    "list_models": "models.registry",
    "load_checkpoint": "checkpoint.checkpoint",
    "load_images": "images.images",
    "load_weights": "models.factory",
    "mindspore_name": "models.names",
    "model_arrays": "models.weights",
    "model_config": "models.registry",
    "official_name": "models.names",
    "open_runtime": "runtime.open",
    "save_checkpoint": "checkpoint.checkpoint",
}
__getattr__ = lazy(__name__, _HOME)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
