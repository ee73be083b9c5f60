"""MindIR files and checkpoints in MindSpore: on the CPU, and on an Ascend device."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from neonext_ms.common.environment import prepare_environment
from neonext_ms.common.errors import InputError, ToolchainError
from neonext_ms.common.files import check_regular, explained
from neonext_ms.common.signals import signals_later
from neonext_ms.common.text import one_line, printable, shorten

from .base import (
    CHECKPOINT_SUFFIXES,
    NOT_RUN_ON_A_DEVICE,
    Runtime,
    Settings,
    Signature,
    check_file,
    describe_type,
    exported_names,
    model_suffix,
)
from .isolated import IsolatedModel
from .manifest import is_recorded, read_manifest

_FORMAT = "neonext_ms_mind_ir_pb2"
# MindIR's name of a type -> bytes of a value.
_ITEM_SIZES = {
    **{"FLOAT": 4, "DOUBLE": 8, "FLOAT64": 8, "FLOAT16": 2, "BFLOAT16": 2, "BOOL": 1},
    **{f"{sign}INT{8 * size}": size for sign in ("", "U") for size in (1, 2, 4, 8)},
}


class MindSpore(Runtime):
    """A MindIR file or a checkpoint as a compiled graph on the CPU. Its input is (N, 3, H, W).

    What a MindIR file leaves open comes from its manifest. A checkpoint has to record its shifts and its image size,
    or the settings have to.
    """

    name = "mindspore"
    suffixes = (".mindir", *CHECKPOINT_SUFFIXES)
    versions = ("mindspore",)
    # Every batch size is compiled anew, for longer the larger it is, while images per second hardly grow.
    largest_batch = 8

    def __init__(self):
        self._path = ""
        self._cell: Any = None
        self._isolated: IsolatedModel | None = None
        self._checkpoint: Any = None
        self._inputs: list = []
        self._outputs: Sequence = ()

    @classmethod
    def missing(cls) -> str | None:
        return None

    def _import(self, settings: Settings):
        return load_mindspore(settings.threads)

    def describe(self, path: str, settings: Settings) -> Signature:
        check_file(path)
        if model_suffix(path) in CHECKPOINT_SUFFIXES:
            return self._describe_checkpoint(path, settings)
        signature = mindir_signature(path)
        metadata, manifest = read_manifest(path)
        source = "its manifest" if metadata else f"its manifest (there is no {manifest})"
        batch = signature.shape[0] or metadata.get("batch")
        names = exported_names(len(signature.outputs), metadata)
        batches = (batch,) if batch else None
        return replace(signature, batches=batches, outputs=names, metadata=metadata, source=source).checked(path)

    def _describe_checkpoint(self, path: str, settings: Settings) -> Signature:
        from neonext_ms.checkpoint.checkpoint import load_checkpoint, require_shifts

        self._checkpoint = load_checkpoint(path, settings.shifts, settings.ema, settings.key, settings.activation)
        self.notes = list(self._checkpoint.notes)
        classes = require_shifts(self._checkpoint).num_classes
        shape = (None, 3, None, None)
        metadata = {**self._checkpoint.metadata, "activation": self._checkpoint.architecture.activation}
        return Signature("", "float32", shape, classes=classes, metadata=metadata, source="the checkpoint")

    def load(self, path: str, settings: Settings) -> None:
        self._path = path
        if model_suffix(path) not in CHECKPOINT_SUFFIXES:
            if is_recorded(path):
                self.load_here(path, settings)
            else:
                self._isolated = self._isolate(path, settings)
            return
        if self._checkpoint is None:
            self.describe(path, settings)
        architecture = self._checkpoint.architecture
        try:
            architecture.maps(settings.image_size)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        ms = self._import(settings)
        from neonext_ms.models.factory import build_model

        # Operator by operator it takes three to twenty times as long; compiling pays from the second batch on.
        self._cell = ms.jit(build_model(architecture, self._checkpoint.arrays).construct)
        self._checkpoint = None

    def load_here(self, path: str, settings: Settings) -> None:
        """Load a MindIR file in this process, which MindSpore ends by a signal for some damaged files.

        Raises:
            InputError: MindSpore cannot load it.
        """
        self._path = path
        self._import(settings)
        self._cell = load_mindir(path)

    def _isolate(self, path: str, settings: Settings) -> IsolatedModel:
        return IsolatedModel(path, settings.threads)

    def copy_in(self, arrays: Sequence[np.ndarray]) -> None:
        if self._isolated is not None:
            self._inputs = list(arrays)
            return
        import mindspore as ms

        self._inputs = [ms.Tensor(array) for array in arrays]

    def execute(self) -> None:
        if self._isolated is not None:
            self._outputs = self._isolated(*self._inputs)
            return
        try:
            # MindSpore aborts or loses signals while it compiles, which happens in the first call.
            with signals_later():
                outputs = self._cell(*self._inputs)
                self._outputs = outputs if isinstance(outputs, tuple) else (outputs,)
                self._wait()
        except Exception as error:
            raise InputError(f"{self._path}: MindSpore cannot run it ({_gist(error)})") from error

    def _wait(self) -> None:
        # On the CPU MindSpore has no other way to wait; the logits are small.
        for output in self._outputs:
            output.asnumpy()

    def copy_out(self) -> list[np.ndarray]:
        return [output if isinstance(output, np.ndarray) else output.asnumpy() for output in self._outputs]

    def close(self) -> None:
        if self._isolated is not None:
            self._isolated.close()
            self._isolated = None
        self._cell = self._checkpoint = None
        self._inputs, self._outputs = [], ()


class MindSporeAscend(MindSpore):
    """A MindIR file or a checkpoint on an Ascend device."""

    name = "mindspore-ascend"
    label = NOT_RUN_ON_A_DEVICE

    # MindSpore lets a process choose its device once.
    _device: int | None = None

    @classmethod
    def missing(cls) -> str | None:
        with signals_later():
            from mindspore import hal

            if hal.is_available("Ascend"):
                return None
        return "this MindSpore finds no Ascend device; install CANN and the driver, and source CANN's set_env.sh"

    def _import(self, settings: Settings):
        with signals_later():
            import mindspore as ms

            if MindSporeAscend._device != settings.device:
                try:
                    ms.set_device("Ascend", settings.device)
                except RuntimeError as error:
                    raise InputError(f"--device {settings.device}: MindSpore cannot use it ({_gist(error)})") from error
                MindSporeAscend._device = settings.device
        return ms

    def _isolate(self, path: str, settings: Settings) -> IsolatedModel:
        return IsolatedModel(path, settings.threads, settings.device)

    def _wait(self) -> None:
        import mindspore as ms

        ms.runtime.synchronize()


def load_mindspore(threads: int | None = None):
    """Import MindSpore and set it to the CPU; `threads` counts only if it is not imported yet."""
    if "mindspore" not in sys.modules:
        prepare_environment(threads)
    with signals_later():
        import mindspore as ms

        # Code that has computed with MindSpore before has chosen a device, and MindSpore then allows no other.
        with contextlib.suppress(RuntimeError):
            ms.set_device("CPU")
    return ms


def load_mindir(path: str):
    """Load a MindIR file as a MindSpore cell; MindSpore has to be imported already.

    Raises:
        InputError: MindSpore cannot load it.
    """
    import mindspore as ms

    try:
        return ms.nn.GraphCell(ms.load(path))
    except Exception as error:
        raise InputError(f"{path}: MindSpore cannot load it ({_gist(error)})") from error


def mindir_signature(path: str) -> Signature:
    """Read the signature of a MindIR file, without its manifest: types and shapes of its input and outputs.

    MindSpore does not expose them. Reading them also finds files for which MindSpore's loader would print a page of
    its own log. Open dimensions, and an unknown number of classes, are None. An output has the name of the node that
    computes it, which says nothing.

    Raises:
        InputError: not a MindIR file, or not one with a single input of images.
    """
    model = _read_mindir(path)
    graph = model.graph
    inputs = [tensor for value in graph.input for tensor in value.tensor]
    shapes = [list(tensor.dims) for tensor in inputs]
    if not inputs:
        raise InputError(f"{path}: not a MindIR file; expected one that mindspore.export wrote")
    if len(inputs) != 1 or len(shapes[0]) not in (0, 4) or shapes[0][1:2] not in ([], [3], [-1]):
        raise InputError(
            f"{path}: expected a model with one input of shape (N, 3, H, W), found inputs of shape {shapes}"
        )
    if problem := _graph_problem(model, os.path.dirname(path)):
        raise InputError(f"{path}: a damaged MindIR file ({problem}). Export the model again.")
    shape = tuple(d if d > 0 else None for d in shapes[0]) or (None,) * 4
    # Several outputs are a tuple, whose values are attributes of the one output.
    outputs = [
        (value.name, tensor)
        for value in graph.output
        for tensor in (*value.tensor, *(tensor for part in value.attr_info.values for tensor in part.tensors))
    ]
    logits = list(outputs[0][1].dims) if len(outputs) == 1 else []
    sizes: dict[str, int] = {}
    for tensor in graph.parameter:
        sizes[_dtype(tensor)] = sizes.get(_dtype(tensor), 0) + math.prod(tensor.dims)
    return Signature(
        "",
        _dtype(inputs[0]),
        shape,
        outputs=tuple(name for name, _ in outputs),
        output_types=tuple(describe_type(_dtype(tensor), tensor.dims) for _, tensor in outputs),
        classes=logits[-1] if len(logits) == 2 and logits[-1] > 0 else None,
        weights=max(sizes, key=sizes.__getitem__, default=""),
    )


def _dtype(tensor) -> str:
    """Return NumPy's name of the type of a tensor of MindIR."""
    types = _mindir_format().TensorProto.DataType
    name = types.Name(tensor.data_type).lower() if tensor.data_type in types.values() else "unknown"
    return {"float": "float32", "double": "float64"}.get(name, name)


def mindir_versions(path: str) -> dict[str, int | str]:
    """Return the version of a MindIR file's format, `mindir_version`, and of the MindSpore that wrote it.

    A reader takes the formats up to its own: MindSpore Lite 2.0.0 takes 1, MindSpore 2.10 writes 3 (docs/lite.md).

    Raises:
        InputError: not a MindIR file.
    """
    model = _read_mindir(path)
    return {"mindir_version": model.mind_ir_version, "written_by": f"MindSpore {printable(model.model_version)}"}


def _read_mindir(path: str):
    """Parse a MindIR file.

    Raises:
        InputError: not a MindIR file, or not a whole one.
    """
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    model = _mindir_format().ModelProto()
    check_regular(path)
    try:
        with explained(path), open(path, "rb") as file:
            model.ParseFromString(file.read())
    except DecodeError as error:
        raise InputError(f"{path}: not a whole MindIR file ({one_line(error)}); export it again") from error
    if model.producer_name != "MindSpore":
        raise InputError(f"{path}: not a MindIR file; expected one that mindspore.export wrote")
    return model


def _mindir_format():
    """Return the module of MindIR's protobuf messages, without MindSpore, which takes seconds to import.

    Raises:
        ToolchainError: MindSpore is not installed.
    """
    loaded = sys.modules.get("mindspore.train.mind_ir_pb2") or sys.modules.get(_FORMAT)
    if loaded is not None:
        return loaded
    package = importlib.util.find_spec("mindspore")
    folder = package and next(iter(package.submodule_search_locations or ()), None)
    spec = folder and importlib.util.spec_from_file_location(_FORMAT, os.path.join(folder, "train", "mind_ir_pb2.py"))
    if not spec or not spec.loader:
        raise ToolchainError("MindSpore is not installed. Install it with: pip install mindspore")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[_FORMAT] = module
    return module


def _graph_problem(model, folder: str) -> str | None:
    """Return what is wrong with the graphs of a MindIR file in a folder, or None.

    MindSpore follows names without a check, and ends by a signal where one leads nowhere. It computes with whatever is
    in memory where a parameter has no values.
    """
    graphs = [model.graph, *model.functions]
    types = _mindir_format().TensorProto.DataType
    values = {node_output for graph in graphs for node in graph.node for node_output in node.output}
    values.update(value.name for graph in graphs for value in (*graph.input, *graph.parameter, *graph.map_parameter))
    values.update(graph.name for graph in graphs)
    primitives = {primitive.name for primitive in model.primitives}
    for graph in graphs:
        for node in graph.node:
            # Protobuf returns text that is not UTF-8 as bytes.
            if not all(isinstance(text, str) for text in (node.name, node.op_type, *node.input, *node.output)):
                return f"node {shorten(node.name)} has a name that is not text"
            if not node.op_type or not node.output:
                return f"node {shorten(node.name)} has no operator or no output"
            reference, name = node.op_type.startswith("REF::"), node.op_type.removeprefix("REF::")
            # A call of a function names the function.
            if reference and name not in primitives and name not in values:
                return f"node {shorten(node.name)} has an unknown operator {shorten(name)}"
            if missing := next((name for name in node.input if name not in values), None):
                return f"node {shorten(node.name)} reads {shorten(missing)}, which nothing computes"
        if missing := next((value.name for value in graph.output if value.name not in values), None):
            return f"output {shorten(missing)} is computed by nothing"
        for tensor in graph.parameter:
            kind = types.Name(tensor.data_type) if tensor.data_type in types.values() else "an unknown type"
            shape, expected = list(tensor.dims), math.prod(tensor.dims) * _ITEM_SIZES.get(kind, 0)
            stored = len(tensor.raw_data) or _bytes_elsewhere(tensor.external_data, folder)
            if min(shape, default=1) < 1 or expected != stored:
                return f"parameter {shorten(tensor.name)} has {stored} bytes for {kind} {shorten(shape)}"
    return None


def _bytes_elsewhere(data, folder: str) -> int:
    """Return the bytes of a parameter of a large model, which are in a file below the folder of the model; 0 if not."""
    root, path = os.path.realpath(folder), os.path.realpath(os.path.join(folder, data.location))
    if not data.location or "\0" in data.location or os.path.commonpath([root, path]) != root:
        return 0
    there = os.path.isfile(path) and 0 <= data.offset <= os.path.getsize(path) - data.length
    return data.length if there else 0


def _gist(error: Exception) -> str:
    """Return a MindSpore error on one line, without the C++ stack that follows it."""
    return one_line(str(error).split("\n----")[0], 400)
