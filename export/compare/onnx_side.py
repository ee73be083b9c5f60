"""The values inside a network, wherever it lies: a checkpoint, an ONNX or MindIR file, or a folder of dumped values.

Every `Side` hands out named arrays for the same images. Maps are (N, C, H, W): a value that its graph holds channels
last is transposed. Names are those of `graph.DeployGraph`; files that another program made have its names.
"""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from neonext_ms.checkpoint.metadata import KEY, check
from neonext_ms.common.errors import InputError, UsageError, nearest
from neonext_ms.common.files import explained
from neonext_ms.runtime.base import CHECKPOINT_SUFFIXES
from neonext_ms.runtime.open import open_runtime

from ..graph import LOGITS

# What the values of one run may take, and how many images are run at once.
GROUP_BYTES = 1 << 28
STEP = 8
_UNKNOWN_BYTES = 1 << 24
_ORT_DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(bfloat16)": "bfloat16"}
# These keep the order of the axes of what they read.
_POINTWISE = frozenset(
    (
        *("Add", "Sub", "Mul", "Div", "Pow", "Sqrt", "Exp", "Neg", "Cast", "Clip", "Identity", "Where"),
        *("Erf", "Tanh", "Gelu", "Relu", "Sigmoid", "Softplus", "MatMul", "LayerNormalization"),
    )
)


@dataclass(frozen=True)
class Node:
    """An operator of a graph: its name, kind, and the values it reads and makes."""

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class Side(ABC):
    """One of two things that are compared.

    Attributes:
        path: the file or folder.
        kind: "checkpoint", "onnx", "mindir" or "dump".
        dtype: of the computation, as far as the file tells: "float32", "float16" or "bfloat16".
        input_size: height and width of the images, or None if it does not say (a dump).
        outputs: names of the final values.
        names: every value it can hand out, in the order in which they are computed.
        nodes: its operators, if it has a graph.
        aliases: operator -> value of the graph that would be deployed, for a side that is not in that form itself.
        metadata: what the file says of itself (`labels`, `preprocessing`, `shifts`).
        notes: what a person should hear.
    """

    path: str
    kind: str
    dtype: str = "float32"
    input_size: tuple[int, int] | None = None
    outputs: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    nodes: tuple[Node, ...] = ()
    aliases: Mapping[str, str] = {}
    metadata: Mapping = {}

    def __init__(self, path: str | os.PathLike):
        self.path = os.fspath(path)
        self.notes: list[str] = []

    @abstractmethod
    def values(self, images: np.ndarray, names: Sequence[str] | None = None) -> Iterator[tuple[str, np.ndarray]]:
        """Values by name, a few at a time in memory.

        Args:
            images: float32 (N, 3, H, W).
            names: which ones, and in which order; all in the order of `names` if None.

        Yields:
            name and float array, batch axis first, maps as (N, C, H, W).

        Raises:
            InputError: images of another shape, or the file cannot be run.
        """

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Shape of a value without its batch axis, if it is known."""
        return None

    def _check_images(self, images: np.ndarray) -> np.ndarray:
        images = np.asarray(images)
        height, width = self.input_size
        if images.ndim != 4 or images.shape[1:] != (3, height, width) or not len(images):
            raise InputError(f"{self.path}: expected images of shape (N, 3, {height}, {width}), got {images.shape}")
        return images.astype(np.float32, copy=False)


class OnnxSide(Side):
    """An ONNX model in onnxruntime.

    Values inside a float32 model are made outputs of the model, as many at a time as `GROUP_BYTES` hold. A float16
    model is run operator by operator: onnxruntime's CPU computes float16 in float32 and does not always round in
    between, so that an overflow would not show. Each operator then reads and writes float16 and computes in float32.
    NeoCell nodes and bfloat16, which it has no kernels for, are run as `emitter.runnable` writes them.

    Args:
        path: the file; for a model in memory, what messages call it.
        image_size: height and width, for a graph that leaves them open.
        model: a model in memory instead of the file.

    Raises:
        InputError: not an ONNX model with one input of images.
        UsageError: the size of the images is not known, or contradicts the graph.
    """

    kind = "onnx"

    def __init__(self, path: str | os.PathLike, image_size: tuple[int, int] | None = None, model=None):
        super().__init__(path)
        import onnx

        from ..onnx import emitter

        if model is None:
            with explained(path):
                content = Path(path).read_bytes()
            try:
                # Weights in files of their own are left there; onnxruntime is told where they lie.
                model = onnx.load_model_from_string(content)
            except Exception as error:
                raise InputError(f"{self.path}: not a whole ONNX file; export it again") from error
        if not model.graph.node:
            raise InputError(f"{self.path}: not an ONNX model, or one without nodes; export it again")
        weights = {tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) > 1}
        self.dtype = "float16" if 10 in weights else "bfloat16" if 16 in weights else "float32"
        self._model = model = emitter.runnable(model)
        graph = model.graph
        constants = {tensor.name for tensor in graph.initializer}
        inputs = [value for value in graph.input if value.name not in constants]
        if len(inputs) != 1:
            found = ", ".join(value.name for value in inputs) or "none"
            raise InputError(f"{self.path}: expected a model with one input, the image; found {len(inputs)}: {found}")
        self.input = inputs[0].name
        self._input_type = inputs[0].type.tensor_type.elem_type
        self.metadata = self._metadata()
        self.batch, self.input_size = self._sizes(inputs[0], image_size)
        self.nodes = tuple(
            Node(node.name, node.op_type, tuple(filter(None, node.input)), tuple(filter(None, node.output)))
            for node in graph.node
        )
        self.outputs = tuple(value.name for value in graph.output)
        self._last = _channels_last(graph.node)
        self._types = self._infer()
        self.names = tuple(
            name
            for node in self.nodes
            for name in node.outputs
            if node.op != "Constant" and self._types.get(name, (None, None))[0] in (None, 1, 10)
        )

    def _metadata(self) -> dict:
        for entry in self._model.metadata_props:
            if entry.key == KEY:
                try:
                    values = json.loads(entry.value)
                except (ValueError, RecursionError):
                    values = None
                if not isinstance(values, dict):
                    raise InputError(f"{self.path}: its metadata {KEY!r} is not a JSON object; export the model again")
                return check(values, f"{self.path}: metadata {KEY!r}")
        return {}

    def _sizes(self, value, asked) -> tuple[int | None, tuple[int, int]]:
        shape = [d.dim_value if d.dim_value > 0 else None for d in value.type.tensor_type.shape.dim]
        if len(shape) != 4 or shape[1] not in (3, None):
            raise InputError(f"{self.path}: expected an input of images (N, 3, H, W), found {value.name!r} of {shape}")
        size = []
        for i, known in enumerate(shape[2:]):
            wanted = asked[i] if asked else (self.metadata.get("image_size") or (None, None))[i]
            if asked and known not in (None, wanted):
                raise UsageError(
                    f"{self.path}: the model is made for {shape[2]}x{shape[3]} pixels; --image-size "
                    f"{asked[0]}x{asked[1]} cannot change that: leave it out"
                )
            size.append(known or wanted)
        if None in size:
            raise UsageError(f"{self.path}: the graph leaves the size of the images open; give --image-size")
        return shape[0], (size[0], size[1])

    def _infer(self) -> dict[str, tuple[int, tuple[int | None, ...] | None]]:
        """Type and shape of every value, from a copy of the graph without its large weights."""
        import onnx

        graph = self._model.graph
        light = onnx.ModelProto(ir_version=max(self._model.ir_version, 4))
        light.opset_import.extend(self._model.opset_import)
        light.graph.name = "shapes"
        light.graph.node.extend(graph.node)
        light.graph.input.extend(graph.input)
        light.graph.output.extend(graph.output)
        for tensor in graph.initializer:
            if int(np.prod(tensor.dims)) <= 64 and not tensor.external_data:
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
        found = {}
        for value in (*light.graph.value_info, *light.graph.output):
            kind = value.type.tensor_type
            shape = [d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim]
            found[value.name] = kind.elem_type, tuple(shape) if kind.HasField("shape") else None
        return found

    def shape(self, name: str) -> tuple[int, ...] | None:
        shape = self._types.get(name, (0, None))[1]
        if not shape or None in shape[1:]:
            return None
        shape = shape[1:]
        return (shape[-1], *shape[:-1]) if name in self._last and len(shape) == 3 else shape

    def values(self, images: np.ndarray, names: Sequence[str] | None = None) -> Iterator[tuple[str, np.ndarray]]:
        images = self._check_images(images)
        names = list(self.names if names is None else names)
        known = {*self.names, *self.outputs}
        for name in names:
            if name not in known:
                raise InputError(f"{self.path}: there is no value {name!r}{nearest(name, known)}")
        if self.dtype == "float16":
            yield from self._step_by_step(images, names)
            return
        for group in self._groups(names, len(images)):
            yield from self._run(images, group)

    def _groups(self, names: Sequence[str], count: int) -> Iterator[list[str]]:
        group, total = [], 0
        for name in names:
            shape = self.shape(name)
            size = count * (4 * int(np.prod(shape)) if shape else _UNKNOWN_BYTES)
            if group and total + size > GROUP_BYTES:
                yield group
                group, total = [], 0
            group.append(name)
            total += size
        if group:
            yield group

    def _chunks(self, images: np.ndarray, dtype: np.dtype) -> list[np.ndarray]:
        """The images as they are run: a few at a time, or as many as the model is made for, filled up with zeros."""
        step = self.batch or min(len(images), STEP)
        chunks = [images[start : start + step].astype(dtype, copy=False) for start in range(0, len(images), step)]
        lack = step - len(chunks[-1])
        if lack and self.batch:
            chunks[-1] = np.concatenate([chunks[-1], np.zeros((lack, *images.shape[1:]), dtype)])
        return chunks

    def _whole(self, name: str, parts: Sequence[np.ndarray], count: int) -> np.ndarray:
        value = np.concatenate(parts)[:count]
        return value.transpose(0, 3, 1, 2) if name in self._last and value.ndim == 4 else value

    def _run(self, images: np.ndarray, names: list[str]) -> Iterator[tuple[str, np.ndarray]]:
        session, dtype = self._session(names)
        parts: dict[str, list[np.ndarray]] = {name: [] for name in names}
        for chunk in self._chunks(images, dtype):
            try:
                results = session.run(names, {self.input: chunk})
            except Exception as error:
                raise InputError(f"{self.path}: onnxruntime cannot run it ({_gist(error)})") from error
            for name, result in zip(names, results, strict=True):
                parts[name].append(np.asarray(result))
        del session
        for name in names:
            yield name, self._whole(name, parts.pop(name), len(images))

    def _step_by_step(self, images: np.ndarray, names: list[str]) -> Iterator[tuple[str, np.ndarray]]:
        from onnx import numpy_helper

        folder = str(Path(self.path).resolve().parent)
        weights = {tensor.name: tensor for tensor in self._model.graph.initializer}
        uses: dict[str, int] = {}
        for node in self.nodes:
            for name in node.inputs:
                uses[name] = uses.get(name, 0) + 1
        dtype = {1: np.dtype(np.float32), 10: np.dtype(np.float16)}.get(self._input_type)
        if dtype is None:
            raise InputError(f"{self.path}: expected an input of float32 or float16 images")
        live = {self.input: self._chunks(images, dtype)}
        waiting: dict[str, list[np.ndarray]] = {}
        wanted, turn = set(names), 0
        for proto, node in zip(self._model.graph.node, self.nodes, strict=True):
            fixed = {
                name: numpy_helper.to_array(weights[name], base_dir=folder) for name in node.inputs if name in weights
            }
            chunks = max((len(live[name]) for name in node.inputs if name in live), default=1)
            results = self._operator(proto, node, fixed, [
                {name: live[name][min(i, len(live[name]) - 1)] for name in node.inputs if name in live}
                for i in range(chunks)
            ])  # fmt: skip
            for place, name in enumerate(node.outputs):
                live[name] = [result[place] for result in results]
                if name in wanted:
                    waiting[name] = live[name]
            for name in (*node.inputs, *node.outputs):
                uses[name] = uses.get(name, 0) - (name in node.inputs)
                if uses[name] <= 0:
                    live.pop(name, None)
            while turn < len(names) and names[turn] in waiting:
                yield names[turn], self._whole(names[turn], waiting.pop(names[turn]), len(images))
                turn += 1

    def _operator(self, proto, node: Node, fixed: Mapping, runs: Sequence[Mapping]) -> list[list[np.ndarray]]:
        """One operator on each of several inputs."""
        import onnx
        import onnxruntime as ort

        model = onnx.ModelProto(ir_version=self._model.ir_version)
        model.opset_import.extend(self._model.opset_import)
        model.graph.name = "operator"
        model.graph.node.append(proto)
        for name, array in {**fixed, **runs[0]}.items():
            kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
            model.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, [None] * array.ndim))
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in node.outputs)
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
            return [session.run(None, {**fixed, **run}) for run in runs]
        except Exception as error:
            raise InputError(f"{self.path}: onnxruntime cannot run {node.name or node.op} ({_gist(error)})") from error

    def _session(self, names: list[str]):
        """A session whose outputs are these values. Only the list of outputs of the model is changed, and put back."""
        import onnx
        import onnxruntime as ort

        graph = self._model.graph
        own = list(graph.output)
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.add_session_config_entry("session.force_spinning_stop", "1")
        folder = str(Path(self.path).resolve().parent)
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
        extra = [name for name in dict.fromkeys(names) if name not in self.outputs]
        try:
            graph.output.extend(onnx.ValueInfoProto(name=name) for name in extra)
            session = ort.InferenceSession(self._model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise InputError(f"{self.path}: onnxruntime cannot load it ({_gist(error)})") from error
        finally:
            del graph.output[:]
            graph.output.extend(own)
        kind = session.get_inputs()[0].type
        if kind not in ("tensor(float)", "tensor(float16)"):
            raise InputError(f"{self.path}: expected an input of float32 or float16 images, found {kind}")
        return session, np.dtype(_ORT_DTYPES[kind])


def _channels_last(nodes) -> frozenset[str]:
    """The values between a transpose to NHWC and one back, from the nodes of an ONNX graph."""
    last: set[str] = set()
    for node in nodes:
        order = [list(attribute.ints) for attribute in node.attribute if attribute.name == "perm"]
        if node.op_type == "Transpose":
            if order == [[0, 2, 3, 1]]:
                last.update(node.output)
        elif node.op_type in _POINTWISE and any(name in last for name in node.input):
            last.update(node.output)
    return frozenset(last)


def _gist(error: Exception) -> str:
    return " ".join(str(error).split("\n----")[0].split())[:300] or type(error).__name__


class CheckpointSide(OnnxSide):
    """A checkpoint: the network written down node by node, as ONNX in memory. No MindSpore is needed.

    Args:
        path: a `.pt`, `.pth`, `.ckpt` or `.safetensors` file.
        image_size: height and width, where the file does not say.
        shifts: of the four stages, where the file does not say.
        ema: take the moving average of the weights.

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
    ):
        from neonext_ms.checkpoint.checkpoint import load_checkpoint, require_shifts
        from neonext_ms.models.registry import identify, model_config

        from ..fold import fold, neocell_to_matmul
        from ..graph import unfolded
        from ..onnx.emitter import emit

        checkpoint = load_checkpoint(path, shifts, ema=ema)
        architecture = require_shifts(checkpoint)
        metadata = dict(checkpoint.metadata or {})
        size = image_size or metadata.get("image_size")
        if size is None and (model := identify(architecture)) is not None:
            size = model_config(model).image_size
        if size is None:
            raise UsageError(
                f"{os.fspath(path)}: the checkpoint does not say the size of the images; give --image-size"
            )
        network = unfolded(architecture, checkpoint.float32(), tuple(size))
        super().__init__(path, tuple(size), emit(neocell_to_matmul(network)))
        self.metadata = {**metadata, "shifts": list(architecture.shifts)}
        # An operator of the folded graph makes the value behind everything that was folded into it.
        self.aliases = {layer.name: layer.output for layer in neocell_to_matmul(fold(network)[0]).layers}
        self.notes = list(checkpoint.notes)


class MindIRSide(Side):
    """A MindIR file in MindSpore: its logits only, because MindSpore hands out nothing between input and output.

    Raises:
        InputError: not a MindIR file, or not a classifier.
        UsageError: the size of the images is not known.
    """

    kind = "mindir"

    def __init__(self, path: str | os.PathLike, image_size: tuple[int, int] | None = None):
        super().__init__(path)
        self._runtime = open_runtime(path, image_size=image_size)
        self.input_size = self._runtime.input_size
        self.metadata = self._runtime.metadata
        self.dtype = str(self.metadata.get("dtype") or "float32")
        self.outputs = self.names = (LOGITS,)
        self.notes = [*self._runtime.notes, f"{self.path}: a MindIR file shows its logits only, no values inside"]

    def values(self, images: np.ndarray, names: Sequence[str] | None = None) -> Iterator[tuple[str, np.ndarray]]:
        images = self._check_images(images)
        for name in self.names if names is None else names:
            if name != LOGITS:
                raise InputError(f"{self.path}: there is no value {name!r}; a MindIR file shows its logits only")
            yield name, self._runtime.run(images)


def aligned(value: np.ndarray, shape: tuple[int, ...] | None, source: str) -> np.ndarray:
    """A dumped array with its batch axis first and maps as (N, C, H, W).

    Args:
        value: as dumped: of this shape, channels last, NC1HWC0, or flat.
        shape: without the batch axis; the value is taken as it is if None.
        source: what messages call it.

    Raises:
        InputError: it cannot be brought to that shape.
    """
    if shape is None or value.shape[1:] == tuple(shape):
        return value
    if len(shape) == 3 and value.ndim == 4 and value.shape[1:] == (*shape[1:], shape[0]):
        return value.transpose(0, 3, 1, 2)
    if len(shape) == 3 and value.ndim == 5:
        n, c1, h, w, c0 = value.shape
        if (h, w) == tuple(shape[1:]) and c1 * c0 >= shape[0] > (c1 - 1) * c0:
            return value.transpose(0, 1, 4, 2, 3).reshape(n, c1 * c0, h, w)[:, : shape[0]]
    one = int(np.prod(shape))
    squeezed = tuple(side for side in value.shape[1:] if side != 1) == tuple(side for side in shape if side != 1)
    if value.size and value.size % one == 0 and (squeezed or value.ndim == 1):
        return value.reshape(-1, *shape)
    raise InputError(
        f"{source}: shape {'x'.join(map(str, value.shape))} cannot be read as Nx{'x'.join(map(str, shape))}; convert "
        "it to NCHW (msaccucmp.py convert -f NCHW)"
    )


def open_side(
    path: str | os.PathLike,
    image_size: tuple[int, int] | None = None,
    shifts: Sequence[int] | None = None,
    ema: bool = False,
) -> Side:
    """One of two things to compare; a folder is a dump, and a file's suffix says what it is.

    Args:
        path: a checkpoint, an `.onnx` or `.mindir` file, or a folder of dumped values.
        image_size: height and width, where the file does not say.
        shifts: of the four stages, for a checkpoint that does not say.
        ema: take the moving average of a checkpoint's weights.

    Raises:
        InputError: it is not what its suffix says.
        UsageError: unknown suffix, or an argument is missing or contradicts the file.
    """
    from . import dump_side

    suffix = Path(path).suffix.lower()
    if Path(path).is_dir():
        return dump_side.DumpSide(path)
    if suffix in CHECKPOINT_SUFFIXES:
        return CheckpointSide(path, image_size, shifts, ema)
    if suffix == ".onnx":
        return OnnxSide(path, image_size)
    if suffix == ".mindir":
        return MindIRSide(path, image_size)
    with explained(path):
        os.stat(path)
    raise UsageError(
        f"{os.fspath(path)}: unknown kind of file {suffix!r}; expected a folder of dumped values, or a file ending in "
        f".onnx, .mindir, {', '.join(CHECKPOINT_SUFFIXES)}"
    )
