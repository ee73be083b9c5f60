"""Activations of an ONNX model, computed by onnxruntime."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neonext_ms.checkpoint.metadata import KEY
from neonext_ms.common.cli import MAX_BATCH, MAX_SIDE
from neonext_ms.common.errors import InputError, UsageError
from neonext_ms.common.signals import faults_told
from neonext_ms.common.text import format_size, nearest, one_line
from neonext_ms.models.scales import MAX_EXPONENT
from neonext_ms.runtime.base import chunks
from neonext_ms.runtime.manifest import read_metadata
from neonext_ms.runtime.onnx import import_onnxruntime, session_options
from neonext_ms.runtime.onnx_file import read_onnx, sound, tensor_array

from ..fast_gelu import CONSTANT
from .side import Activations, Node

if TYPE_CHECKING:
    import onnx

# Memory for the values of one run, and the number of images in one run.
GROUP_BYTES = 1 << 28
STEP = 8
_UNKNOWN_BYTES = 1 << 24
_ORT_DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16"}
# These operators keep the order of axes of what they read.
_POINTWISE = frozenset(
    (
        *("Add", "Sub", "Mul", "Div", "Pow", "Sqrt", "Exp", "Neg", "Abs", "Cast", "Clip", "Identity", "Where"),
        *("Erf", "Tanh", "Gelu", "Relu", "LeakyRelu", "HardSwish", "Sigmoid", "Softplus", "MatMul"),
        "LayerNormalization",
        *("QuantizeLinear", "DequantizeLinear"),
    )
)


class OnnxActivations(Activations):
    """An ONNX model in onnxruntime.

    Values inside a float32 model become outputs of the model, as many at a time as `GROUP_BYTES` hold. A float16 model
    is run operator by operator: onnxruntime's CPU computes float16 in float32 and does not always round in between,
    which would hide an overflow. Each operator then reads and writes float16 and computes in float32. onnxruntime has
    no kernels for NeoCell nodes and bfloat16; these are run as `runnable_model` rewrites them.

    Args:
        path: ONNX file; for a model in memory, its name in messages.
        image_size: height and width, for a graph that leaves them open.
        model: model in memory to use instead of the file.

    Raises:
        InputError: not an ONNX model with one input of images.
        UsageError: the size of the images is not known, or contradicts the graph.
    """

    kind = "onnx"

    def __init__(
        self, path: str | os.PathLike, image_size: tuple[int, int] | None = None, model: onnx.ModelProto | None = None
    ):
        super().__init__(path)
        original = read_onnx(self.path) if model is None else model
        with sound(self.path):
            self._read(original, image_size)

    def _read(self, original: onnx.ModelProto, image_size: tuple[int, int] | None) -> None:
        """Read everything but the values."""
        from ..onnx.runnable import runnable_model

        weights = {tensor.data_type for tensor in original.graph.initializer if len(tensor.dims) > 1}
        self.dtype = "float16" if 10 in weights else "bfloat16" if 16 in weights else "float32"
        self.int8 = any(node.op_type in ("QuantizeLinear", "AscendQuant") for node in original.graph.node)
        self._model = runnable_model(original)
        graph = self._model.graph
        constants = {tensor.name for tensor in graph.initializer}
        inputs = [value for value in graph.input if value.name not in constants]
        if len(inputs) != 1:
            names = ", ".join(value.name for value in inputs) or "none"
            raise InputError(f"{self.path}: expected a model with one input, the image; found {len(inputs)}: {names}")
        self.input = inputs[0].name
        self._input_type = inputs[0].type.tensor_type.elem_type
        self.metadata = self._metadata()
        self.factors = _factors(self.metadata.get("int8"))
        self.batch, self.input_size = self._sizes(inputs[0], image_size)
        self.nodes = tuple(
            Node(node.name, node.op_type, tuple(filter(None, node.input)), tuple(filter(None, node.output)))
            for node in graph.node
        )
        self.gelu = "tanh" if any(map(_is_tanh, graph.node)) else "fast" if CONSTANT in constants else "auto"
        self.outputs = tuple(value.name for value in graph.output)
        self._channels_last = _channels_last(graph.node)
        self._types = self._infer()
        self._maps = self._rows_of_maps() if self.int8 else {}
        self.names = tuple(
            name
            for node in self.nodes
            for name in node.outputs
            if node.op != "Constant" and self._types.get(name, (None, None))[0] in (None, 1, 10)
        )

    def _metadata(self) -> dict:
        for entry in self._model.metadata_props:
            if entry.key == KEY:
                return read_metadata(entry.value, f"{self.path}: metadata {KEY!r}")
        return {}

    def _sizes(
        self, value: onnx.ValueInfoProto, image_size: tuple[int, int] | None
    ) -> tuple[int | None, tuple[int, int]]:
        """Return batch size and image size of the input; the batch size may be None."""
        batch, channels, *known = [d.dim_value if d.dim_value > 0 else None for d in value.type.tensor_type.shape.dim]
        if len(known) != 2 or channels not in (3, None):
            shape = [batch, channels, *known]
            raise InputError(f"{self.path}: expected an input of images (N, 3, H, W), found {value.name!r} of {shape}")
        if image_size and any(side not in (None, wanted) for side, wanted in zip(known, image_size, strict=True)):
            raise UsageError(
                f"{self.path}: the model is made for {format_size([side or '?' for side in known])} pixels, which "
                f"--image-size {format_size(image_size)} cannot change. Leave it out."
            )
        recorded = image_size or self.metadata.get("image_size") or (None, None)
        height, width = (side or wanted for side, wanted in zip(known, recorded, strict=True))
        if height is None or width is None:
            raise UsageError(f"{self.path}: the graph leaves the size of the images open; give --image-size")
        if max(height, width) > MAX_SIDE or (batch or 1) > MAX_BATCH:
            raise InputError(
                f"{self.path}: its input is too large (got batch {batch or 'N'} of {height}x{width}, expected at most "
                f"{MAX_BATCH} and {MAX_SIDE}). Export it again."
            )
        return batch, (height, width)

    def _infer(self) -> dict[str, tuple[int, tuple[int | None, ...] | None]]:
        """Return type and shape of every value, inferred from a copy of the graph without its large weights."""
        import onnx

        graph = self._model.graph
        light = onnx.ModelProto(ir_version=max(self._model.ir_version, 4))
        light.opset_import.extend(self._model.opset_import)
        light.graph.name = "shapes"
        light.graph.node.extend(graph.node)
        light.graph.input.extend(graph.input)
        light.graph.output.extend(graph.output)
        for tensor in graph.initializer:
            if math.prod(tensor.dims) <= 64 and not tensor.external_data:
                light.graph.initializer.append(tensor)
            else:
                light.graph.input.append(
                    onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
                )
        try:
            light = onnx.shape_inference.infer_shapes(light)
        except Exception:
            # Shapes only decide how many values are held at once.
            return {}
        types = {}
        for value in (*light.graph.value_info, *light.graph.output):
            tensor_type = value.type.tensor_type
            shape = tuple(d.dim_value if d.HasField("dim_value") else None for d in tensor_type.shape.dim)
            types[value.name] = tensor_type.elem_type, shape if tensor_type.HasField("shape") else None
        return types

    def _rows_of_maps(self) -> dict[str, tuple[int, int]]:
        """Return height and width of the map that each value holds the pixels of as rows, in our 8-bit files."""
        maps: dict[str, tuple[int, int]] = {}
        for node in self.nodes:
            before = self._types.get(node.inputs[0], (0, None))[1] if node.inputs else None
            after = self._types.get(node.outputs[0], (0, None))[1]
            if node.op == "Reshape" and before and after and len(before) == 4 and len(after) == 2:
                _, height, width, channels = before
                if node.inputs[0] in self._channels_last and channels == after[1] and height and width:
                    maps[node.outputs[0]] = height, width
            elif node.op == "Gemm" or node.op in _POINTWISE:
                size = next((maps[name] for name in node.inputs if name in maps), None)
                maps.update(dict.fromkeys(node.outputs, size) if size else {})
        return maps

    def shape(self, name: str) -> tuple[int, ...] | None:
        shape = self._types.get(name, (0, None))[1]
        sides = tuple(side for side in (shape or ())[1:] if side is not None)
        if not shape or len(sides) < len(shape) - 1:
            return None
        if name in self._maps:
            return (*sides, *self._maps[name])
        return (sides[-1], *sides[:-1]) if name in self._channels_last and len(sides) == 3 else sides

    def values(self, images: np.ndarray, names: Sequence[str] | None = None) -> Iterator[tuple[str, np.ndarray]]:
        images = self._check_images(images)
        names = list(self.names if names is None else names)
        known = {*self.names, *self.outputs}
        for name in names:
            if name not in known:
                raise InputError(f"{self.path}: there is no value {name!r}{nearest(name, known)}")
        with sound(self.path):
            if self.dtype == "float16":
                yield from self._run_by_operator(images, names)
                return
            for group in self._groups(names, len(images)):
                yield from self._run(images, group)

    def _groups(self, names: Sequence[str], count: int) -> Iterator[list[str]]:
        """Split names into groups whose values fit into `GROUP_BYTES`."""
        group: list[str] = []
        total = 0
        for name in names:
            shape = self.shape(name)
            size = count * (4 * math.prod(shape) if shape else _UNKNOWN_BYTES)
            if group and total + size > GROUP_BYTES:
                yield group
                group, total = [], 0
            group.append(name)
            total += size
        if group:
            yield group

    def _chunks(self, images: np.ndarray, dtype: np.dtype) -> list[np.ndarray]:
        """Cut images into runs of `STEP`, or of the model's fixed batch, filled up with zeros."""
        size = self.batch or min(len(images), STEP)
        return [chunk for chunk, _ in chunks(images.astype(dtype, copy=False), size)]

    def _join(self, name: str, parts: Sequence[np.ndarray], count: int) -> np.ndarray:
        # A scale, for example, may be a single number for all images.
        value = np.concatenate([np.atleast_1d(part) for part in parts])
        if name in self._maps:
            value = value.reshape(-1, *self._maps[name], value.shape[1]).transpose(0, 3, 1, 2)
        value = value[:count]
        return self._unscaled(
            name, value.transpose(0, 3, 1, 2) if name in self._channels_last and value.ndim == 4 else value
        )

    def _run(self, images: np.ndarray, names: list[str]) -> Iterator[tuple[str, np.ndarray]]:
        """Run the whole model, with these values as outputs."""
        session, dtype = self._session(names)
        parts: dict[str, list[np.ndarray]] = {name: [] for name in names}
        for chunk in self._chunks(images, dtype):
            try:
                with faults_told(self.path):
                    results = session.run(names, {self.input: chunk})
            except Exception as error:
                raise InputError(f"{self.path}: onnxruntime cannot run it ({one_line(error, 300)})") from error
            for name, result in zip(names, results, strict=True):
                parts[name].append(np.asarray(result))
        del session
        for name in names:
            yield name, self._join(name, parts.pop(name), len(images))

    def _run_by_operator(self, images: np.ndarray, names: list[str]) -> Iterator[tuple[str, np.ndarray]]:
        """Run one operator after the other, and free every value after its last reader."""
        folder = str(Path(self.path).resolve().parent)
        weights = {tensor.name: tensor for tensor in self._model.graph.initializer}
        readers: dict[str, int] = {}
        for node in self.nodes:
            for name in node.inputs:
                readers[name] = readers.get(name, 0) + 1
        if self._input_type not in (1, 10):
            raise InputError(f"{self.path}: expected an input of float32 or float16 images")
        dtype = np.dtype(np.float16 if self._input_type == 10 else np.float32)
        live = {self.input: self._chunks(images, dtype)}
        waiting: dict[str, list[np.ndarray]] = {}
        wanted, turn = set(names), 0
        for proto, node in zip(self._model.graph.node, self.nodes, strict=True):
            constants = {
                name: tensor_array(weights[name], self.path, folder) for name in node.inputs if name in weights
            }
            inputs = {name: live[name] for name in node.inputs if name in live}
            count = max(map(len, inputs.values()), default=1)
            # A value that does not depend on the images has one part for all runs.
            runs = [{name: parts[min(i, len(parts) - 1)] for name, parts in inputs.items()} for i in range(count)]
            results = self._run_operator(proto, node, constants, runs)
            for place, name in enumerate(node.outputs):
                live[name] = [result[place] for result in results]
                if name in wanted:
                    waiting[name] = live[name]
            for name in (*node.inputs, *node.outputs):
                readers[name] = readers.get(name, 0) - (name in node.inputs)
                if readers[name] <= 0:
                    live.pop(name, None)
            while turn < len(names) and names[turn] in waiting:
                yield names[turn], self._join(names[turn], waiting.pop(names[turn]), len(images))
                turn += 1

    def _run_operator(
        self, proto: onnx.NodeProto, node: Node, constants: Mapping, runs: Sequence[Mapping]
    ) -> list[list[np.ndarray]]:
        """Run one operator on each of several inputs."""
        import onnx

        model = onnx.ModelProto(ir_version=self._model.ir_version)
        model.opset_import.extend(self._model.opset_import)
        model.graph.name = "operator"
        model.graph.node.append(proto)
        for name, array in {**constants, **runs[0]}.items():
            element_type = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
            model.graph.input.append(onnx.helper.make_tensor_value_info(name, element_type, [None] * array.ndim))
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in node.outputs)
        try:
            with faults_told(self.path):
                session = _open_session(model)
                return [session.run(None, {**constants, **run}) for run in runs]
        except Exception as error:
            operator = node.name or node.op
            raise InputError(f"{self.path}: onnxruntime cannot run {operator} ({one_line(error, 300)})") from error

    def _session(self, names: list[str]) -> tuple[Any, np.dtype]:
        """Return a session whose outputs include these values, and the dtype of its input."""
        import onnx

        outputs = self._model.graph.output
        own = list(outputs)
        # The outputs of the model are extended and restored, because a copy of a model copies its weights.
        try:
            outputs.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(names) if name not in self.outputs)
            # Onnxruntime moves a quantization in front of a Transpose, and with it the value that is read there.
            with faults_told(self.path):
                session = _open_session(self._model, str(Path(self.path).resolve().parent), literal=self.int8)
        except Exception as error:
            raise InputError(f"{self.path}: onnxruntime cannot load it ({one_line(error, 300)})") from error
        finally:
            del outputs[:]
            outputs.extend(own)
        input_type = session.get_inputs()[0].type
        if input_type not in _ORT_DTYPES:
            raise InputError(f"{self.path}: expected an input of float32 or float16 images, found {input_type}")
        return session, np.dtype(_ORT_DTYPES[input_type])


def _open_session(model: onnx.ModelProto, weights_folder: str | None = None, literal: bool = False):
    ort = import_onnxruntime()
    options = session_options()
    if literal:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if weights_folder:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", weights_folder)
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _factors(int8: Any) -> dict[str, np.ndarray]:
    """Return the factors of equalized values from the metadata of an 8-bit file; nothing from any other."""
    try:
        layers = int8["layers"]
        powers = {value: [int(e) for e in layers[name]["exponents"]] for value, name in int8["equalized"].items()}
        if any(abs(e) > MAX_EXPONENT for values in powers.values() for e in values):
            return {}
        return {value: np.exp2(np.array(values, np.float32)) for value, values in powers.items()}
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
        return {}


def _is_tanh(node: onnx.NodeProto) -> bool:
    """Return whether a node belongs to the tanh form of GELU; a NeoNeXt has no other Tanh."""
    return node.op_type == "Tanh" or any(a.name == "approximate" and a.s == b"tanh" for a in node.attribute)


def _channels_last(nodes: Iterable[onnx.NodeProto]) -> frozenset[str]:
    """Return the values between a transpose to NHWC and one back."""
    names: set[str] = set()
    for node in nodes:
        order = [list(attribute.ints) for attribute in node.attribute if attribute.name == "perm"]
        if node.op_type == "Transpose":
            if order == [[0, 2, 3, 1]]:
                names.update(node.output)
        elif node.op_type in _POINTWISE and any(name in names for name in node.input):
            names.update(node.output)
    return frozenset(names)
