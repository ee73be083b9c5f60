"""ONNX files: their signature, and onnxruntime on the CPU or, through its CANN provider, on an Ascend device."""

from __future__ import annotations

import contextlib
import functools
import math
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from neonext_ms.checkpoint.metadata import KEY
from neonext_ms.common.cli import MAX_BATCH, MAX_SIDE
from neonext_ms.common.errors import InputError, NeoNextError
from neonext_ms.common.files import explained
from neonext_ms.common.processors import thread_count
from neonext_ms.common.text import format_size, one_line

from .base import NOT_RUN_ON_A_DEVICE, Runtime, Settings, Signature, check_file
from .manifest import read_metadata

if TYPE_CHECKING:
    import onnx

# A protobuf message has less than 2 GiB.
_MAX_BYTES = 1 << 31
_MAX_ELEMENTS = 1 << 40
_MAX_DIMENSIONS = 32
_MAX_DEPTH = 20
DATA_FIELDS = ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")
# Operators that only change type or shape.
_PASSING = ("Identity", "Cast", "Flatten", "Reshape", "Squeeze", "QuantizeLinear", "DequantizeLinear")
# onnxruntime's names of types -> NumPy's, where they differ.
_NUMPY = {"float": "float32", "double": "float64"}


class OnnxFileRuntime(Runtime):
    """A runtime of ONNX files, whose signature is read from the file itself."""

    suffixes = (".onnx",)

    def describe(self, path: str, settings: Settings) -> Signature:
        return onnx_signature(path)


class OnnxRuntime(Runtime):
    """onnxruntime's CPU execution provider. Inputs and outputs are the host's arrays; nothing is copied."""

    name = "onnxruntime"
    suffixes = (".onnx",)
    versions = ("onnxruntime",)

    def __init__(self):
        self._path = ""
        self._session: Any = None
        self._feeds: dict[str, np.ndarray] = {}
        self._outputs: list[np.ndarray] = []

    @classmethod
    def missing(cls) -> str | None:
        return None

    def describe(self, path: str, settings: Settings) -> Signature:
        # The session states what the file does; reading the file by `onnx_signature` as well would double the time.
        self.load(path, settings)
        with sound(path):
            # Names and metadata need not be UTF-8.
            return _signature(
                path,
                [_Value(v.name, _NUMPY.get(v.type[7:-1], v.type[7:-1]), v.shape) for v in self._session.get_inputs()],
                [_Value(v.name, "", v.shape) for v in self._session.get_outputs()],
                self._session.get_modelmeta().custom_metadata_map.get(KEY),
            )

    def load(self, path: str, settings: Settings) -> None:
        if self._session is not None and self._path == path:
            return
        check_file(path)
        self._path = path
        try:
            self._session = onnx_session(path, settings.threads)
        except Exception as error:
            text = one_line(error, 400).replace(f"Load model from {path} failed:", "")
            hint = "is it a whole ONNX file?"
            if any(sign in text for sign in ("No Op registered", "is not a registered function", "NOT_IMPLEMENTED")):
                hint = "it has operators or types that a CPU lacks; export it for onnxruntime"
            raise InputError(f"{path}: onnxruntime cannot load it ({text[:300]}); {hint}") from error
        with sound(path):
            self._names = [value.name for value in self._session.get_inputs()]

    def copy_in(self, arrays: Sequence[np.ndarray]) -> None:
        self._feeds = dict(zip(self._names, arrays, strict=True))

    def execute(self) -> None:
        try:
            self._outputs = self._session.run(None, self._feeds)
        except Exception as error:
            raise InputError(f"{self._path}: onnxruntime cannot run it ({one_line(error, 400)})") from error

    def copy_out(self) -> list[np.ndarray]:
        return self._outputs

    def close(self) -> None:
        self._session, self._feeds, self._outputs = None, {}, []


class OnnxRuntimeCann(OnnxFileRuntime):
    """onnxruntime's CANN execution provider, with inputs and outputs bound to memory of the device.

    Options follow
    https://onnxruntime.ai/docs/execution-providers/community-maintained/CANN-ExecutionProvider.html. onnxruntime runs
    nodes that CANN does not take on the CPU.
    """

    name = "onnxruntime-cann"
    label = NOT_RUN_ON_A_DEVICE
    versions = ("onnxruntime-cann",)
    provider = "CANNExecutionProvider"

    def __init__(self):
        self._path = ""
        self._session: Any = None
        self._binding: Any = None
        self._device = 0

    @classmethod
    def missing(cls) -> str | None:
        onnxruntime = import_onnxruntime()
        if cls.provider in onnxruntime.get_available_providers():
            return None
        return (
            f"this onnxruntime ({onnxruntime.__version__}) has no {cls.provider}; on a machine with CANN install it "
            "with: pip uninstall onnxruntime && pip install onnxruntime-cann"
        )

    def load(self, path: str, settings: Settings) -> None:
        onnxruntime = import_onnxruntime()
        self._path, self._device = path, settings.device
        options = {"device_id": settings.device, "enable_cann_graph": True, "arena_extend_strategy": "kNextPowerOfTwo"}
        try:
            session = onnxruntime.InferenceSession(path, providers=[(self.provider, options), "CPUExecutionProvider"])
        except Exception as error:
            raise InputError(f"{path}: onnxruntime cannot load it with CANN ({one_line(error, 400)})") from error
        if self.provider not in session.get_providers():
            raise InputError(f"{path}: onnxruntime did not enable {self.provider}; is device {settings.device} there?")
        self._session = session
        self._binding = session.io_binding()
        for output in session.get_outputs():
            self._binding.bind_output(output.name, "cann", settings.device)

    def copy_in(self, arrays: Sequence[np.ndarray]) -> None:
        onnxruntime = import_onnxruntime()
        for value, array in zip(self._session.get_inputs(), arrays, strict=True):
            on_device = onnxruntime.OrtValue.ortvalue_from_numpy(array, "cann", self._device)
            self._binding.bind_ortvalue_input(value.name, on_device)

    def execute(self) -> None:
        try:
            self._session.run_with_iobinding(self._binding)
            self._binding.synchronize_outputs()
        except Exception as error:
            raise InputError(f"{self._path}: onnxruntime cannot run it ({one_line(error, 400)})") from error

    def copy_out(self) -> list[np.ndarray]:
        return self._binding.copy_outputs_to_cpu()

    def close(self) -> None:
        self._session = self._binding = None


def import_onnxruntime():
    """Import onnxruntime without its telemetry, which writes a device id and a database below the home folder."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    return onnxruntime


def onnx_session(
    model: str | bytes,
    threads: int | None = None,
    lean: bool = False,
    profile: str | None = None,
    arena: bool = True,
):
    """Return an onnxruntime session on the CPU; errors are onnxruntime's own.

    Args:
        model: a file, or a serialised model.
        threads: intra-op threads (default: see `thread_count`).
        lean: hold the weights once, at some cost in speed: no second copy in another layout, no arena.
        profile: path prefix of the profile of every run, which `end_profiling` writes.
        arena: keep the memory of a run for the next one.
    """
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # By default the threads of a session go on spinning after a run, and take the cores from whatever follows:
    # another model that is compared with this one, or the decoding of the next images.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if lean:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.add_session_config_entry("session.disable_prepacking", "1")
    options.enable_cpu_mem_arena = arena and not lean
    options.intra_op_num_threads = thread_count(threads)
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, profile
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def read_onnx(path: str | os.PathLike) -> onnx.ModelProto:
    """Read an ONNX file and check its structure (`check_model`); weights in files of their own are not read.

    Raises:
        InputError: no such file, or not a whole ONNX file.
    """
    import onnx

    path = os.fspath(path)
    check_file(path)
    try:
        if os.path.getsize(path) > _MAX_BYTES:
            raise ValueError(f"more than {_MAX_BYTES:,} bytes, which no protobuf has")
        with explained(path), open(path, "rb") as file:
            model = onnx.load_model_from_string(file.read())
    except Exception as error:
        if isinstance(error, (InputError, MemoryError)):
            raise
        raise InputError(f"{path}: not a valid ONNX file ({one_line(error, 400)}); export it again") from error
    if not model.graph.node:
        raise InputError(f"{path}: not an ONNX file; it has no nodes")
    check_model(model, path)
    return model


def check_model(model: onnx.ModelProto, source: str) -> None:
    """Check what every reader of a graph relies on: readable names, outputs, an opset, and tensors of their sizes.

    Raises:
        InputError: a part of the model that no exporter writes; the message begins with `source`.
    """
    try:
        if not model.opset_import:
            raise ValueError("it names no opset")
        _check_text(*(entry.domain for entry in model.opset_import))
        _check_graph(model.graph, 0)
    # A string that is not UTF-8 shows when it is read.
    except ValueError as error:
        raise InputError(f"{source}: not a valid ONNX model ({one_line(error, 400)}); export it again") from error


def _check_graph(graph: onnx.GraphProto, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise ValueError(f"graphs nested more than {_MAX_DEPTH} deep")
    for value in (*graph.input, *graph.output, *graph.value_info):
        if not 0 <= value.type.tensor_type.elem_type <= _last_type():
            raise ValueError(f"value {value.name!r} has the unknown type {value.type.tensor_type.elem_type}")
        if any(not -1 <= d.dim_value <= _MAX_ELEMENTS for d in _dims(value)):
            raise ValueError(f"value {value.name!r} has the shape {[d.dim_value for d in _dims(value)][:8]}")
        # Read, so that a name that is not UTF-8 is found here.
        [d.dim_param for d in _dims(value)]
        _check_text(value.name)
    for tensor in graph.initializer:
        _check_text(tensor.name)
        check_tensor(tensor)
    for sparse in graph.sparse_initializer:
        check_tensor(sparse.values)
    for node in graph.node:
        if not any(node.output) or not node.op_type:
            raise ValueError(f"node {node.name!r} of type {node.op_type!r} has no type or no output")
        _check_text(node.name, node.op_type, node.domain, *node.input, *node.output)
        for attribute in node.attribute:
            _check_text(attribute.name)
            for tensor in (attribute.t, *attribute.tensors) if attribute.HasField("t") else attribute.tensors:
                check_tensor(tensor)
            for inner in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
                _check_graph(inner, depth + 1)


def _check_text(*names: str | bytes) -> None:
    """Refuse a name that is not UTF-8: protobuf raises an error when it is read, or returns bytes."""
    for name in names:
        if isinstance(name, bytes):
            raise ValueError(f"the name {name[:100]!r} is not UTF-8")


@contextlib.contextmanager
def sound(source: str) -> Iterator[None]:
    """Report what a malformed graph makes a reader of it trip over as an `InputError`.

    `check_model` cannot find everything: the rules of every operator would have to be written down once more.
    """
    try:
        yield
    except NeoNextError:
        raise
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"{source}: its nodes do not fit together ({type(error).__name__}: {one_line(error, 300)}); export it again"
        ) from error


def check_tensor(tensor: onnx.TensorProto) -> None:
    """Check that the data of a tensor are as many as its type and shape say.

    A tensor without any data is accepted: the data of large models lie in another file, or were left out.

    Raises:
        ValueError: an unknown type, a shape that cannot be, or too few or too many data.
    """
    import onnx

    kind, dims, label = tensor.data_type, list(tensor.dims), f"tensor {tensor.name[:100]!r}"
    if not 0 < kind <= _last_type():
        raise ValueError(f"{label} has the unknown type {kind}")
    if min(dims, default=0) < 0 or len(dims) > _MAX_DIMENSIONS or math.prod(dims) > _MAX_ELEMENTS:
        raise ValueError(f"{label} has the shape {dims[:8]}")
    if tensor.HasField("segment"):
        raise ValueError(f"{label} is a segment of a tensor, which no exporter writes")
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        if not any(entry.key == "location" and entry.value for entry in tensor.external_data):
            raise ValueError(f"{label} lies in another file, but which one is not said")
        return
    fields = {name: len(getattr(tensor, name)) for name in DATA_FIELDS if len(getattr(tensor, name))}
    if not fields:
        return
    ((name, length), *others) = fields.items()
    wanted = _field_of(kind)
    if others or name not in (wanted, "raw_data") or (name == "raw_data" and kind == onnx.TensorProto.STRING):
        raise ValueError(f"{label} has its data in {' and '.join(fields)} (expected in {wanted})")
    if name == "raw_data" or _bits(kind) < 8:
        expected = raw_bytes(tensor)
    else:
        expected = math.prod(dims) * (2 if kind in (onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128) else 1)
    if length != expected:
        raise ValueError(f"{label} of shape {dims[:8]} has {length} entries of {name} (expected {expected})")


def raw_bytes(tensor: onnx.TensorProto) -> int:
    """Return the bytes that the numbers of a tensor take, as they are stored in `raw_data` and in files."""
    return (math.prod(tensor.dims) * _bits(tensor.data_type) + 7) // 8


def tensor_array(tensor: onnx.TensorProto, source: str, folder: str = "") -> np.ndarray:
    """Return the numbers of a tensor.

    Args:
        tensor: the tensor.
        source: name of the model, for messages.
        folder: folder of the model, where data in files of their own are.

    Raises:
        InputError: the tensor has no numbers, or not those of its shape.
    """
    from onnx import numpy_helper

    try:
        check_tensor(tensor)
        return np.asarray(numpy_helper.to_array(tensor, folder))
    except Exception as error:
        if isinstance(error, MemoryError):
            raise
        raise InputError(f"{source}: tensor {tensor.name!r} cannot be read ({one_line(error, 300)})") from error


@functools.cache
def _last_type() -> int:
    import onnx

    return max(onnx.TensorProto.DataType.values())


@functools.cache
def _field_of(kind: int) -> str:
    import onnx

    return "string_data" if kind == onnx.TensorProto.STRING else onnx.helper.tensor_dtype_to_field(kind)


@functools.cache
def _bits(kind: int) -> int:
    """Return the bits of an element, packed as in `raw_data`."""
    import onnx

    name = onnx.TensorProto.DataType.Name(kind)
    narrow = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}
    return narrow.get(name) or 8 * onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize


def onnx_signature(path: str | os.PathLike) -> Signature:
    """Read the signature of an ONNX file, without its weights.

    Raises:
        InputError: no such file, not an ONNX file, or not a model with one input (N, C, H, W).
    """
    model = read_onnx(path)
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs, outputs = (
        [
            _Value(value.name, _dtype(value.type.tensor_type.elem_type), [d.dim_value for d in _dims(value)])
            for value in values
            if value.name not in weights
        ]
        for values in (model.graph.input, model.graph.output)
    )
    return _signature(os.fspath(path), inputs, outputs, _metadata_text(model))


def ends_in_softmax(path: str | os.PathLike) -> bool:
    """Return whether the logits of an ONNX file come from a Softmax, apart from changes of type and shape.

    Raises:
        InputError: no such file, or not an ONNX file.
    """
    graph = read_onnx(path).graph
    producers = {name: node for node in graph.node for name in node.output}
    names = [value.name for value in graph.output]
    name = "logits" if "logits" in names else names[0] if names else ""
    for _ in range(len(graph.node)):
        node = producers.get(name)
        if node is None or not node.input or node.op_type not in _PASSING:
            break
        name = node.input[0]
    return name in producers and producers[name].op_type == "Softmax"


def describe_onnx(path: str | os.PathLike) -> dict:
    """Return facts about an ONNX file without running it: inputs, outputs, opset, nodes, metadata; plain values.

    Raises:
        InputError: no such file, or not an ONNX file.
    """
    import onnx

    model = read_onnx(path)

    def values(tensors):
        return {
            v.name: f"{onnx.TensorProto.DataType.Name(v.type.tensor_type.elem_type).lower()} "
            + "x".join(str(d.dim_value or (d.dim_param if axis else "N")) for axis, d in enumerate(_dims(v)))
            for v in tensors
        }

    text = _metadata_text(model)
    return {
        "opset": {entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        "nodes": len(model.graph.node),
        "inputs": values(model.graph.input),
        "outputs": values(model.graph.output),
        "metadata": {} if text is None else read_metadata(text, f"{os.fspath(path)}: metadata {KEY!r}"),
    }


class _Value(NamedTuple):
    """An input or output of a graph; `shape` has a positive int for each dimension that is fixed."""

    name: str
    dtype: str
    shape: Sequence


def _signature(path: str, inputs: Sequence[_Value], outputs: Sequence[_Value], metadata: str | None) -> Signature:
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs) or "none"
        raise InputError(f"{path}: expected a model with one input, the images; found {len(inputs)}: {names}")
    shape = _fixed(inputs[0].shape)
    if any(side is not None and side > most for side, most in zip(shape, (MAX_BATCH, *[MAX_SIDE] * 3), strict=False)):
        raise InputError(
            f"{path}: its input is too large (got {format_size(shape)}, expected a batch of at most {MAX_BATCH} and "
            f"sides of at most {MAX_SIDE}). Export it again."
        )
    classes = next((_fixed(value.shape)[1:] for value in outputs if value.name == "logits" or len(outputs) == 1), ())
    return Signature(
        name=inputs[0].name,
        dtype=inputs[0].dtype,
        shape=shape,
        batches=(shape[0],) if shape and shape[0] else None,
        outputs=tuple(value.name for value in outputs),
        classes=classes[0] if len(classes) == 1 else None,
        metadata={} if metadata is None else read_metadata(metadata, f"{path}: metadata {KEY!r}"),
    ).checked(path)


def _fixed(shape: Sequence) -> tuple[int | None, ...]:
    return tuple(d if isinstance(d, int) and d > 0 else None for d in shape)


def _dims(value):
    return value.type.tensor_type.shape.dim


def _dtype(code: int) -> str:
    import onnx

    try:
        return str(onnx.helper.tensor_dtype_to_np_dtype(code))
    except (KeyError, ValueError):
        return onnx.TensorProto.DataType.Name(code).lower() if code else "unknown"


def _metadata_text(model) -> str | None:
    return next((entry.value for entry in model.metadata_props if entry.key == KEY), None)
