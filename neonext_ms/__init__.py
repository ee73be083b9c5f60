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

# For type checkers and editors, which cannot follow the table below; `as` marks a name as public. A test holds the two
# to each other.
if TYPE_CHECKING:
    from neonext_ms.checkpoint.checkpoint import Checkpoint as Checkpoint
    from neonext_ms.checkpoint.checkpoint import load_checkpoint as load_checkpoint
    from neonext_ms.checkpoint.checkpoint import save_checkpoint as save_checkpoint
    from neonext_ms.export.pipeline import export_checkpoint as export_checkpoint
    from neonext_ms.export.report import Report as Report
    from neonext_ms.images.images import load_images as load_images
    from neonext_ms.images.preprocessing import Preprocessing as Preprocessing
    from neonext_ms.models.architecture import Architecture as Architecture
    from neonext_ms.models.factory import create_model as create_model
    from neonext_ms.models.factory import load_weights as load_weights
    from neonext_ms.models.names import mindspore_name as mindspore_name
    from neonext_ms.models.names import official_name as official_name
    from neonext_ms.models.neonext import NeoCell as NeoCell
    from neonext_ms.models.neonext import NeoNeXt as NeoNeXt
    from neonext_ms.models.registry import list_models as list_models
    from neonext_ms.models.registry import model_config as model_config
    from neonext_ms.models.resample import resample_kernels as resample_kernels
    from neonext_ms.models.weights import model_arrays as model_arrays
    from neonext_ms.ops.resample import resample_matrices as resample_matrices
    from neonext_ms.ops.spec import NeoCellSpec as NeoCellSpec
    from neonext_ms.runtime.open import open_runtime as open_runtime

_HOME = {
    "Architecture": "models.architecture",
    "Checkpoint": "checkpoint.checkpoint",
    "NeoCell": "models.neonext",
    "NeoCellSpec": "ops.spec",
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
    "resample_kernels": "models.resample",
    "resample_matrices": "ops.resample",
    "save_checkpoint": "checkpoint.checkpoint",
}
__all__ = ["__version__", *_HOME]
__getattr__ = lazy(__name__, _HOME)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
