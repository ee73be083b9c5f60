"""ONNX files: their signature, and onnxruntime on the CPU or, through its CANN provider, on an Ascend device."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from neonext_ms.checkpoint.metadata import KEY
from neonext_ms.common.errors import InputError
from neonext_ms.common.processors import saturates, thread_count
from neonext_ms.common.signals import faults_told
from neonext_ms.common.text import one_line

from .base import NOT_RUN_ON_A_DEVICE, Runtime, Settings, Signature, check_file
from .manifest import read_metadata
from .onnx_file import dims_of, read_onnx, sound

if TYPE_CHECKING:
    import onnx

# Operators that only change type or shape.
_PASSING = ("Identity", "Cast", "Flatten", "Reshape", "Squeeze", "QuantizeLinear", "DequantizeLinear")
# Operators whose output is still the images: clipped, enlarged, cut, or with their channels in another order.
_PICTURES = (
    *(*_PASSING, "Transpose", "Unsqueeze", "Clip", "Min", "Max", "Pad", "Resize", "Upsample", "Slice", "Gather"),
    *("Split", "Concat"),
)
_ARITHMETIC = ("Sub", "Add", "Mul", "Div")
_CHANNELS = 3
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
            with faults_told(path):
                self._session = onnx_session(path, settings.threads)
        except Exception as error:
            text = one_line(error, 400).replace(f"Load model from {path} failed:", "")
            hint = "is it a whole ONNX file?"
            if any(sign in text for sign in ("No Op registered", "is not a registered function", "NOT_IMPLEMENTED")):
                hint = "it has operators or types that a CPU lacks; export it for onnxruntime"
            raise InputError(f"{path}: onnxruntime cannot load it ({text[:300]}); {hint}") from error
        with sound(path):
            self._names = [value.name for value in self._session.get_inputs()]

    def run(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        # Not in `execute`, whose time is measured.
        with faults_told(self._path):
            return super().run(arrays)

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
            session = onnxruntime.InferenceSession(
                path, session_options(settings.threads), providers=[(self.provider, options), "CPUExecutionProvider"]
            )
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


def session_options(threads: int | None = None):
    """Return the options of every session of onnxruntime on the CPU."""
    options = import_onnxruntime().SessionOptions()
    # Its messages go to stderr with the names of the file as they are, escape sequences included; errors are raised.
    options.log_severity_level = 4
    # By default the threads of a session go on spinning after a run, and take the cores from whatever follows:
    # another model that is compared with this one, or the decoding of the next images.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if saturates():
        # Exact sums of 8-bit products. With VNNI they are exact anyway, and this would take slower instructions.
        options.add_session_config_entry("session.x64quantprecision", "1")
    options.intra_op_num_threads = thread_count(threads)
    return options


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
    options = session_options(threads)
    if lean:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.add_session_config_entry("session.disable_prepacking", "1")
    options.enable_cpu_mem_arena = arena and not lean
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, profile
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def onnx_signature(path: str | os.PathLike) -> Signature:
    """Read the signature of an ONNX file, without its weights.

    Raises:
        InputError: no such file, not an ONNX file, or not a model with one input (N, C, H, W) or (N, H, W, C).
    """
    model = read_onnx(path)
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs, outputs = (
        [
            _Value(value.name, _dtype(value.type.tensor_type.elem_type), [d.dim_value for d in dims_of(value)])
            for value in values
            if value.name not in weights
        ]
        for values in (model.graph.input, model.graph.output)
    )
    return _signature(os.fspath(path), inputs, outputs, _metadata_text(model))


class Conventions(NamedTuple):
    """Computations of an ONNX file of another exporter besides logits of normalized images.

    Attributes:
        ending: type of the operator that the logits come from, such as "Gemm" or "Softmax"; changes of type and shape
            do not count. Empty if there is none.
        rounded: whether the outputs are rounded to 8 bit behind it.
        normalization: name of the node that normalizes the images; empty if there is none.
    """

    ending: str = ""
    rounded: bool = False
    normalization: str = ""


def conventions(path: str | os.PathLike) -> Conventions:
    """Return the conventions of an ONNX file.

    Raises:
        InputError: no such file, or not an ONNX file.
    """
    graph = read_onnx(path).graph
    with sound(os.fspath(path)):
        return Conventions(*_ending(graph), _normalization(graph))


def _ending(graph: onnx.GraphProto) -> tuple[str, bool]:
    """Return the type of the operator that the logits come from, and whether they are rounded behind it."""
    producers = {name: node for node in graph.node for name in node.output}
    names = [value.name for value in graph.output]
    name = "logits" if "logits" in names else names[0] if names else ""
    rounded = False
    for _ in range(len(graph.node)):
        node = producers.get(name)
        if node is None or not node.input or node.op_type not in _PASSING:
            break
        name, rounded = node.input[0], rounded or node.op_type == "QuantizeLinear"
    return producers[name].op_type if name in producers else "", rounded


def _normalization(graph: onnx.GraphProto) -> str:
    """Return the first node that shifts or scales the images by one constant, or by one for each channel."""
    constants = {tensor.name: math.prod(tensor.dims) for tensor in graph.initializer}
    images = {value.name for value in graph.input} - constants.keys()
    # A single convolution is the network itself.
    single = sum(node.op_type == "Conv" for node in graph.node) < 2
    most_weights = _CHANNELS if single else _CHANNELS**2
    for node in graph.node:
        if not images & set(node.input):
            # What is computed from constants alone is one, of about their size.
            if all(name in constants for name in node.input):
                sizes = [math.prod(a.t.dims) for a in node.attribute if a.HasField("t")]
                size = max([*sizes, *(constants[name] for name in node.input)], default=0)
                constants.update(dict.fromkeys(node.output, size))
        elif node.op_type == "Shape":
            constants.update(dict.fromkeys(node.output, 1))
        elif node.op_type in _PICTURES:
            images.update(node.output)
        elif node.op_type == "BatchNormalization" or _is_scaling(node, constants, most_weights):
            return node.name or node.output[0]
    return ""


def _is_scaling(node: onnx.NodeProto, constants: Mapping[str, int], most_weights: int) -> bool:
    """Return whether a node computes with constants alone, or mixes the channels of single pixels by its weights.

    A map as large as the images is a mean or a deviation too, unless it is added: then it may be learnt.
    """
    if node.op_type == "Conv":
        return constants.get(node.input[1], math.inf) <= most_weights
    most = _CHANNELS if node.op_type == "Add" else math.inf
    return node.op_type in _ARITHMETIC and any(name in constants and constants[name] <= most for name in node.input)


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
            + "x".join(str(d.dim_value or (d.dim_param if axis else "N")) for axis, d in enumerate(dims_of(v)))
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
    classes = next((_fixed(value.shape)[1:] for value in outputs if value.name == "logits" or len(outputs) == 1), ())
    return Signature(
        name=inputs[0].name,
        dtype=inputs[0].dtype,
        shape=shape,
        batches=(shape[0],) if shape and shape[0] else None,
        layout=layout_of(shape),
        outputs=tuple(value.name for value in outputs),
        classes=classes[0] if len(classes) == 1 else None,
        metadata={} if metadata is None else read_metadata(metadata, f"{path}: metadata {KEY!r}"),
    ).checked(path)


def layout_of(shape: Sequence[int | None]) -> str:
    """Return the layout of images of this shape, None for open dimensions; exporters of TensorFlow keep "NHWC"."""
    return "NHWC" if len(shape) == 4 and shape[3] == _CHANNELS != shape[1] else "NCHW"


def _fixed(shape: Sequence) -> tuple[int | None, ...]:
    return tuple(d if isinstance(d, int) and d > 0 else None for d in shape)


def _dtype(code: int) -> str:
    import onnx

    try:
        return str(onnx.helper.tensor_dtype_to_np_dtype(code))
    except (KeyError, ValueError):
        return onnx.TensorProto.DataType.Name(code).lower() if code else "unknown"


def _metadata_text(model) -> str | None:
    return next((entry.value for entry in model.metadata_props if entry.key == KEY), None)
