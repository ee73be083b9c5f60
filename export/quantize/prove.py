"""Proof of an 8-bit export: both forms of file compute the same integers in every layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from neonext_ms.common.errors import ParityError
from neonext_ms.common.text import plural

from ..graph import DeployGraph
from ..lower import lower
from ..onnx import emitter
from ..onnx.format import CANN, Format
from .forms import host_graph
from .integers import compare_integers, evaluator

# Inputs on which the integers are compared; the outputs are compared on all.
IMAGES = 2
# Inputs of a layer that take no more numbers than this on noise have a wrong scale; 64 and more are usual.
_COARSE = 4
_WHOLE = (TensorProto.INT8, TensorProto.INT32, TensorProto.UINT64)


@dataclass(frozen=True)
class Proof:
    """The integers of both forms of file on the same images.

    Attributes:
        layers: 8-bit layers.
        images: images.
        integers: integers compared: the 8-bit numbers and the sums of every layer.
        coarse: layers whose inputs become but a few different numbers, as by a wrong scale.
    """

    layers: int
    images: int
    integers: int
    coarse: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    def notes(self) -> list[str]:
        """Return a note on layers whose scales are probably wrong, if there are any."""
        if not self.coarse:
            return []
        others = f" and {plural(len(self.coarse) - 1, 'other layer')}" if len(self.coarse) > 1 else ""
        return [
            f"noise becomes at most {_COARSE} different 8-bit numbers in front of {self.coarse[0]}{others}, so the "
            "scale is far too large or too small. Check the scales, or the images of the calibration"
        ]

    def line(self) -> str:
        """Return the line that the command prints."""
        return (
            f"integers  equal in all {self.layers} layers of both forms, on {self.images} noise inputs "
            f"({self.integers:,} integers)"
        )


def prove(
    network: DeployGraph,
    files: Mapping[str, tuple[Path, Format]],
    samples: np.ndarray,
    gelu: str = "auto",
    progress: Callable[[str], None] = lambda step: None,
) -> tuple[Proof, np.ndarray]:
    """Compare the integers of the two forms of an 8-bit network.

    Args:
        network: quantized graph.
        files: written files and their formats by form, "qdq" or "ascend"; a form without one is made in memory.
        samples: float32 images `(N, 3, H, W)`.
        gelu: form of GELU in the network.
        progress: function that is called with the state of the work.

    Returns:
        the proof, and the exact outputs for all images, float32 `(N, numbers)`.

    Raises:
        ParityError: an integer differs.
    """
    models = {form: _model(form, network, files.get(form), gelu) for form in ("qdq", "ascend")}
    host, device = (evaluator(models[form]) for form in ("qdq", "ascend"))
    rows, compared = [], 0
    numbers: dict[str, set[int]] = {}
    for i, image in enumerate(samples):
        progress(f"integers {i}/{len(samples)}")
        rows.append(np.concatenate([value.reshape(1, -1) for value in host.run(image[None])], axis=1))
        if i < IMAGES:
            device.run(image[None])
            apart = {name: count for name, count in compare_integers(host, device).items() if count}
            if apart:
                name, count = next(iter(apart.items()))
                raise ParityError(
                    f"the two forms of the 8-bit network compute different integers: {count} in {name}, and others in "
                    f"{len(apart) - 1} more layers. Nothing was written."
                )
            compared += sum(part.codes.size + part.accumulated.size for part in host.integers.values())
            for name, part in host.integers.items():
                numbers[name] = numbers.get(name, set()).union(np.unique(part.codes).tolist())
    coarse = tuple(name for name, seen in numbers.items() if len(seen) <= _COARSE)
    proof = Proof(len(host.integers), min(len(samples), IMAGES), compared, coarse)
    return proof, np.concatenate(rows).astype(np.float32)


def _model(form: str, network: DeployGraph, file: tuple[Path, Format] | None, gelu: str) -> onnx.ModelProto:
    """Return the model of a form with float32 between its 8-bit layers."""
    model = None if file is None else onnx.load(file[0])
    if model is not None and file is not None and file[1].dtype == "float32":
        return model
    if form == "qdq":
        format = Format(gelu=gelu)
        return emitter.emit(lower(host_graph(network), format), None, format)
    format = file[1].with_(dtype="float32") if file else CANN.with_(gelu="erf" if gelu == "auto" else gelu)
    exact = emitter.emit(lower(network, format), None, format)
    if model is not None:
        _check_same_integers(model, exact)
    return exact


def _check_same_integers(model: onnx.ModelProto, exact: onnx.ModelProto) -> None:
    """Check that a file in half precision has the whole numbers and the quantizers of the same file in float32."""
    if _whole_numbers(model) != _whole_numbers(exact):
        raise ParityError("the integers of the half-precision file are not those of the float32 network")


def _whole_numbers(model: onnx.ModelProto) -> dict[str, Any]:
    values: dict[str, Any] = {t.name: t.raw_data for t in model.graph.initializer if t.data_type in _WHOLE}
    for node in model.graph.node:
        if node.op_type == "AscendQuant":
            values[node.name] = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return values
