"""Activations of a checkpoint: the original network as ONNX in memory, which needs no MindSpore."""

from __future__ import annotations

import os
from collections.abc import Sequence

from neonext_ms.checkpoint.checkpoint import load_checkpoint, require_shifts
from neonext_ms.common.errors import UsageError
from neonext_ms.models.registry import identify, model_config

from ..fold import fold
from ..graph import original_graph
from ..lower import neocell_to_matmul
from ..onnx.emitter import emit
from .onnx_side import OnnxActivations


class CheckpointActivations(OnnxActivations):
    """A checkpoint, run node by node.

    Args:
        path: a `.pt`, `.pth`, `.ckpt` or `.safetensors` file.
        image_size: height and width; required unless the file records them.
        shifts: shifts of the four stages; required unless the file records them.
        ema: whether to use the moving average of the weights.
        key: key or prefix of the weights in a checkpoint of several models.
        activation: activation, for a file that records none and is not of a network with GELU.

    Raises:
        InputError: not a NeoNeXt checkpoint, or an image size that the network cannot take.
        UsageError: unknown shifts or image size.
    """

    kind = "checkpoint"

    def __init__(
        self,
        path: str | os.PathLike,
        image_size: tuple[int, int] | None = None,
        shifts: Sequence[int] | None = None,
        ema: bool = False,
        key: str | None = None,
        activation: str | None = None,
    ):
        checkpoint = load_checkpoint(path, shifts, ema, key, activation)
        architecture = require_shifts(checkpoint)
        metadata = dict(checkpoint.metadata or {})
        size = image_size or metadata.get("image_size")
        if size is None and (model := identify(architecture)) is not None:
            size = model_config(model).image_size
        if size is None:
            raise UsageError(
                f"{os.fspath(path)}: the checkpoint does not record the size of the images; give --image-size"
            )
        network = original_graph(architecture, checkpoint.float32(), tuple(size))
        super().__init__(path, tuple(size), emit(neocell_to_matmul(network)))
        recorded = {"shifts": list(architecture.shifts or ()), "activation": architecture.activation}
        self.metadata = {**metadata, **recorded}
        # An operator of the folded graph computes the value after everything that was folded into it.
        self.aliases = {layer.name: layer.output for layer in neocell_to_matmul(fold(network)[0]).layers}
        self.notes = list(checkpoint.notes)
