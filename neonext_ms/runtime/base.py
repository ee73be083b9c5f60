"""Running a model from a file, whatever the file: ONNX, MindIR or a checkpoint, behind one small class."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from neonext_ms.checkpoint.metadata import KEY, check
from neonext_ms.common.errors import InputError, UsageError, nearest
from neonext_ms.common.files import explained
from neonext_ms.common.signals import signals_later

CHECKPOINT_SUFFIXES = (".pt", ".pth", ".ckpt", ".safetensors")
SUFFIXES = (".onnx", ".mindir", *CHECKPOINT_SUFFIXES)
MINDSPORE_STEP = 8


class Runtime(ABC):
    """A loaded model. The constructor loads it; `run` computes; `close` frees it (or use it in a `with` block).

    Attributes:
        name: what runs it: "onnxruntime" or "mindspore".
        path: the file.
        input_size: height and width of the input.
        batch: images that one call of the model takes, or None for any number.
        classes: number of logits per image.
        metadata: what the file says of itself; among the keys may be `labels` (list of str), `preprocessing` (as
            `Preprocessing.to_dict`), `image_size` ([height, width]) and `shifts`.
        notes: what a person should hear about the file.
    """

    notes: Sequence[str] = ()
    name: str
    path: str
    input_size: tuple[int, int]
    batch: int | None
    classes: int
    metadata: dict

    def run(self, images: np.ndarray) -> np.ndarray:
        """The logits of prepared images.

        A model of fixed batch is fed in chunks, the last one filled up with zeros whose logits are cut off.

        Args:
            images: float32 (N, 3, H, W) of the model's `input_size`; N may be 0.

        Returns:
            float32 (N, classes).

        Raises:
            InputError: another shape or dtype, or the model fails.
        """
        images = np.asarray(images)
        if images.ndim != 4 or images.shape[1:] != (3, *self.input_size) or images.dtype != np.float32:
            raise InputError(
                f"{self.path}: expected float32 images of shape (N, 3, {self.input_size[0]}, {self.input_size[1]}), "
                f"got {images.dtype} {images.shape}"
            )
        logits = np.empty((len(images), self.classes), np.float32)
        step = self._step(len(images))
        for start in range(0, len(images), step):
            chunk = images[start : start + step]
            count = len(chunk)
            if count < step:
                chunk = np.concatenate([chunk, np.zeros((step - count, *chunk.shape[1:]), np.float32)])
            result = self._checked(self._run(np.ascontiguousarray(chunk)), len(chunk))
            if result.shape[1] != self.classes:
                raise InputError(f"{self.path}: expected {self.classes} logits per image, got {result.shape[1]}")
            logits[start : start + count] = result[:count]
        return logits

    def _step(self, count: int) -> int:
        """How many images the model is given at once, when `count` are to be run."""
        return self.batch or max(count, 1)

    @abstractmethod
    def close(self) -> None:
        """Free the model; `run` cannot be called afterwards."""

    def __enter__(self) -> Runtime:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    @abstractmethod
    def _run(self, images: np.ndarray) -> np.ndarray:
        """Logits of one chunk, of exactly `batch` images if that is fixed."""

    def _checked(self, result: np.ndarray, count: int) -> np.ndarray:
        if result.ndim != 2 or len(result) != count:
            raise InputError(
                f"{self.path}: expected logits of shape ({count}, classes) for {count} images, got {result.shape}; "
                "is it a classifier?"
            )
        return result

    def _count_classes(self) -> int:
        """The classes, by running the model on zeros: for a file that does not say."""
        count = self.batch or 1
        return self._checked(self._run(np.zeros((count, 3, *self.input_size), np.float32)), count).shape[1]

    def _check_labels(self) -> None:
        labels = self.metadata.get("labels")
        if labels and len(labels) != self.classes:
            raise InputError(
                f"{self.path}: its metadata has {len(labels)} labels, but the model has {self.classes} classes; "
                "export it again with the right labels"
            )


class OnnxRuntime(Runtime):
    """An ONNX model in onnxruntime on the CPU.

    Any classifier will do whose one input is (N, 3, H, W), float32 or float16. What our exporter writes into
    `metadata_props["neonext_ms"]`, a JSON object, becomes `metadata`.

    Args:
        path: the file.
        image_size: height and width, for a graph that leaves them open.
        threads: of a single operator; by default as many as cores.

    Raises:
        InputError: no such file, not an ONNX model, or not a classifier of images.
        UsageError: `image_size` is missing or contradicts the graph.
    """

    name = "onnxruntime"

    def __init__(self, path: str | os.PathLike, image_size: tuple[int, int] | None = None, threads: int | None = None):
        self.path = os.fspath(path)
        check_file(path)
        self._session = load_onnx(self.path, threads)
        graph_input = self._single_input()
        self._input = graph_input.name
        self._dtype = {"tensor(float)": np.float32, "tensor(float16)": np.float16}.get(graph_input.type)
        shape = [d if isinstance(d, int) and d > 0 else None for d in graph_input.shape]
        if self._dtype is None or len(shape) != 4 or shape[1] not in (3, None):
            raise InputError(
                f"{self.path}: expected an input of floating-point images (N, 3, H, W), found {self._input!r} of type "
                f"{graph_input.type} and shape {graph_input.shape}; export the model without built-in preprocessing"
            )
        self.metadata = self._read_metadata()
        self.batch = shape[0]
        self.input_size = _agree(
            self.path, image_size, ("the graph", shape[2:]), ("its metadata", self.metadata.get("image_size"))
        )
        output = self._single_output()
        self._output = output.name
        known = output.shape[1] if len(output.shape) == 2 else None
        self.classes = known if isinstance(known, int) and known > 0 else self._count_classes()
        self._check_labels()

    def _single_input(self):
        inputs = self._session.get_inputs()
        if len(inputs) != 1:
            names = ", ".join(i.name for i in inputs) or "none"
            raise InputError(f"{self.path}: expected a model with one input, the image; found {len(inputs)}: {names}")
        return inputs[0]

    def _single_output(self):
        outputs = self._session.get_outputs()
        named = [output for output in outputs if output.name == "logits"]
        if len(outputs) != 1 and not named:
            names = ", ".join(output.name for output in outputs) or "none"
            raise InputError(f"{self.path}: expected one output, or one called 'logits'; found {names}")
        return (named or outputs)[0]

    def _read_metadata(self) -> dict:
        text = self._session.get_modelmeta().custom_metadata_map.get(KEY)
        if text is None:
            return {}
        return _read_json(text, f"{self.path}: metadata {KEY!r}")

    def _run(self, images: np.ndarray) -> np.ndarray:
        try:
            (result,) = self._session.run([self._output], {self._input: images.astype(self._dtype, copy=False)})
        except Exception as error:
            raise InputError(f"{self.path}: onnxruntime cannot run it ({one_line(error)})") from error
        return np.asarray(result)

    def close(self) -> None:
        self._session = None


class _MindSporeRuntime(Runtime):
    """What the two kinds of model that MindSpore runs share."""

    name = "mindspore"
    _largest = 0

    def _step(self, count: int) -> int:
        # Every batch size is compiled anew, for longer the larger it is, while images per second hardly grow.
        self._largest = max(self._largest, min(count, MINDSPORE_STEP), 1)
        return self.batch or self._largest

    def _run(self, images: np.ndarray) -> np.ndarray:
        import mindspore as ms

        try:
            result = self._cell(ms.Tensor(images))
            if isinstance(result, tuple):
                raise InputError(f"{self.path}: expected a model with one output, found {len(result)}")
            return result.asnumpy()
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"{self.path}: MindSpore cannot run it ({one_line(error)})") from error

    def close(self) -> None:
        self._cell = None


def onnx_session(model: str | bytes, threads: int | None = None, lean: bool = False, profile: str | None = None):
    """An onnxruntime session on the CPU; errors are onnxruntime's own.

    Args:
        model: a file, or a serialised model.
        threads: of a single operator; by default as many as cores.
        lean: hold the weights once, at some cost in speed: no second copy in another layout, no arena.
        profile: profile every run; the file that `end_profiling` writes starts with this path.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    # By default the threads of a session go on spinning after a run, and steal the cores from whatever follows:
    # another model that is compared with this one, or the decoding of the next images.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if lean:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.add_session_config_entry("session.disable_prepacking", "1")
        options.enable_cpu_mem_arena = False
    if threads:
        options.intra_op_num_threads = threads
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, profile
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def load_onnx(path: str, threads: int | None = None):
    """An onnxruntime session on the CPU for a file.

    Raises:
        InputError: onnxruntime cannot load it.
    """
    try:
        return onnx_session(path, threads)
    except Exception as error:
        text = one_line(error).replace(f"Load model from {path} failed:", "")
        hint = "is it a whole ONNX file?"
        if any(sign in text for sign in ("No Op registered", "is not a registered function", "NOT_IMPLEMENTED")):
            hint = "it has operators or types that a CPU lacks; export it for onnxruntime"
        raise InputError(f"{path}: onnxruntime cannot load it ({text[:300]}); {hint}") from error


def manifest_of(path: str | os.PathLike) -> dict:
    """What the manifest beside an exported file says of it; empty if there is none.

    Raises:
        InputError: the manifest is damaged.
    """
    return _manifest(Path(path))[1]


def describe_onnx(path: str | os.PathLike) -> dict:
    """Facts about an ONNX file, read without running it: inputs, outputs, opset, nodes, metadata; plain values.

    Raises:
        InputError: no such file, or not an ONNX file.
    """
    import onnx
    from google.protobuf.message import DecodeError

    check_file(path)
    try:
        model = onnx.load(path, load_external_data=False)
    except (DecodeError, ValueError) as error:
        raise InputError(f"{os.fspath(path)}: not a whole ONNX file ({one_line(error)}); export it again") from error
    if not model.graph.node:
        raise InputError(f"{os.fspath(path)}: not an ONNX file; it has no nodes")

    def values(side):
        return {
            v.name: f"{onnx.TensorProto.DataType.Name(v.type.tensor_type.elem_type).lower()} "
            + "x".join(d.dim_param or str(d.dim_value) for d in v.type.tensor_type.shape.dim)
            for v in side
        }

    text = next((entry.value for entry in model.metadata_props if entry.key == KEY), None)
    return {
        "opset": {entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        "nodes": len(model.graph.node),
        "inputs": values(model.graph.input),
        "outputs": values(model.graph.output),
        "metadata": {} if text is None else _read_json(text, f"{os.fspath(path)}: metadata {KEY!r}"),
    }


def _manifest(path: Path) -> tuple[Path, dict]:
    """The manifest that belongs to a file, and what it says of that file; empty if there is none."""
    own = path.with_suffix(".json")
    for candidate in (own, *sorted(path.parent.glob("*.json"))):
        if not candidate.is_file() or (candidate != own and b"neonext_ms" not in candidate.read_bytes()[:200]):
            continue
        with explained(candidate):
            metadata = _read_json(candidate.read_bytes(), str(candidate))
        files = metadata.get("files")
        entries = [e for e in files if isinstance(e, dict)] if isinstance(files, list) else []
        entry = next((e for e in entries if e.get("file") == path.name), None)
        if entry is not None and "image_size" in entry:
            return candidate, check({**metadata, "image_size": entry["image_size"]}, str(candidate))
        if candidate == own:
            return candidate, metadata
    return own, {}


class MindIRRuntime(_MindSporeRuntime):
    """A MindIR file in MindSpore on the CPU.

    The manifest beside the file, `<same name>.json` or one that lists the file, becomes `metadata`; of its keys
    `image_size` and `batch` are used.

    Args:
        path: the file.
        image_size: height and width; needed if there is no manifest that has it.
        threads: of MindSpore, if it is not imported yet; by default as many as cores.

    Raises:
        InputError: no such file, not a MindIR file, or not a classifier of images.
        UsageError: `image_size` is missing or contradicts the file.
    """

    def __init__(self, path: str | os.PathLike, image_size: tuple[int, int] | None = None, threads: int | None = None):
        self.path = os.fspath(path)
        check_file(path)
        manifest, self.metadata = _manifest(Path(path))
        known = self.metadata.get("image_size")
        if image_size is None and known is None:
            lack = f"its manifest {manifest} has no image_size" if self.metadata else f"no manifest {manifest}"
            raise UsageError(f"{self.path}: {lack}, so the size of the images is not known; give --image-size")
        load_mindspore(threads)
        shape, classes = mindir_signature(self.path)
        self.input_size = _agree(self.path, image_size, ("the graph", shape[2:]), ("its manifest", known))
        self.batch = shape[0] or self.metadata.get("batch")
        self._cell = load_mindir(self.path)
        self.classes = classes or self._count_classes()
        self._check_labels()


def load_mindir(path: str):
    """A MindIR file as a MindSpore cell; MindSpore has to be imported already.

    Raises:
        InputError: MindSpore cannot load it.
    """
    import mindspore as ms

    try:
        return ms.nn.GraphCell(ms.load(path))
    except Exception as error:
        raise InputError(f"{path}: MindSpore cannot load it ({one_line(error)})") from error


def mindir_signature(path: str) -> tuple[list[int | None], int | None]:
    """Shape (N, C, H, W) of a MindIR file's input (None for what is open) and its classes, if it says them.

    MindSpore does not tell. It also finds files that MindSpore's loader would refuse with a page of its own log.

    Raises:
        InputError: not a MindIR file, or not one with a single input of images.
    """
    from google.protobuf.message import DecodeError
    from mindspore.train import mind_ir_pb2

    model = mind_ir_pb2.ModelProto()
    try:
        with explained(path), open(path, "rb") as file:
            model.ParseFromString(file.read())
        inputs, outputs = ([list(t.dims) for t in side] for side in _tensors(model.graph))
    except DecodeError as error:
        raise InputError(f"{path}: not a whole MindIR file ({one_line(error)}); export it again") from error
    if model.producer_name != "MindSpore" or not inputs:
        raise InputError(f"{path}: not a MindIR file; expected one that mindspore.export wrote")
    if len(inputs) != 1 or len(inputs[0]) not in (0, 4) or inputs[0][1:2] not in ([], [3], [-1]):
        raise InputError(
            f"{path}: expected a model with one input of shape (N, 3, H, W), found inputs of shape {inputs}"
        )
    shape = [d if d > 0 else None for d in inputs[0]] or [None] * 4
    classes = outputs[0][-1] if outputs and len(outputs[0]) == 2 and outputs[0][-1] > 0 else None
    return shape, classes


def _tensors(graph) -> tuple[list, list]:
    return [t for i in graph.input for t in i.tensor], [t for o in graph.output for t in o.tensor]


class CheckpointRuntime(_MindSporeRuntime):
    """A checkpoint in MindSpore on the CPU, compiled at the first run.

    Args:
        path: a `.pt`, `.pth`, `.ckpt` or `.safetensors` file.
        shifts: of the four stages, where the file does not say.
        image_size: height and width, where the file does not say.
        threads: of MindSpore, if it is not imported yet; by default as many as cores.
        ema: take the moving average of the weights.

    Raises:
        InputError: the file cannot be read or is not a NeoNeXt checkpoint, or the image size does not fit.
        UsageError: `shifts` or `image_size` is needed or contradicts the file.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        shifts: Sequence[int] | None = None,
        image_size: tuple[int, int] | None = None,
        threads: int | None = None,
        ema: bool = False,
    ):
        from neonext_ms.checkpoint.checkpoint import load_checkpoint, require_shifts

        self.path = os.fspath(path)
        check_file(path)
        checkpoint = load_checkpoint(path, shifts=shifts, ema=ema)
        architecture = require_shifts(checkpoint)
        self.metadata = dict(checkpoint.metadata)
        self.notes = list(checkpoint.notes)
        # A network without a fixed size: an explicit size is another size to run it at, not a contradiction.
        size = image_size or self.metadata.get("image_size")
        if size is None:
            raise UsageError(f"{self.path}: the checkpoint does not say the size of the images; give --image-size")
        self.input_size = tuple(size)
        try:
            architecture.maps(self.input_size)
        except InputError as error:
            raise InputError(f"{self.path}: {error}") from error
        self.batch = None
        self.classes = architecture.num_classes
        self._check_labels()
        ms = load_mindspore(threads)
        from neonext_ms.models.factory import build_model

        # Op by op it takes three to twenty times as long; compiling pays from the second batch on.
        self._cell = ms.jit(build_model(architecture, checkpoint.arrays).construct)


def open_runtime(
    path: str | os.PathLike,
    shifts: Sequence[int] | None = None,
    image_size: tuple[int, int] | None = None,
    threads: int | None = None,
    ema: bool = False,
) -> Runtime:
    """Load a model file; its suffix says what it is: `.onnx`, `.mindir`, or a checkpoint.

    Args:
        path: the file.
        shifts: of the four stages, for a checkpoint that does not have them.
        image_size: height and width, for a file that does not have them.
        threads: to compute with; by default as many as cores.
        ema: take the moving average of a checkpoint's weights.

    Raises:
        InputError: the file is not what its suffix says, or not a classifier of images.
        UsageError: unknown suffix, or an argument that is missing or contradicts the file.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise UsageError(
            f"{os.fspath(path)}: unknown kind of model {suffix!r}; expected a file ending in {', '.join(SUFFIXES)}"
            f"{nearest(suffix, SUFFIXES) if suffix else ''}"
        )
    if suffix in CHECKPOINT_SUFFIXES:
        return CheckpointRuntime(path, shifts, image_size, threads, ema)
    if ema:
        raise UsageError(f"{os.fspath(path)}: the weights of a {suffix} file are fixed; --ema is for checkpoints")
    runtime = (OnnxRuntime if suffix == ".onnx" else MindIRRuntime)(path, image_size, threads)
    built_in = runtime.metadata.get("shifts")
    if shifts is not None and (built_in is None or list(built_in) != list(shifts)):
        runtime.close()
        found = f"and has {','.join(map(str, built_in))}" if built_in else "which it does not name"
        raise UsageError(
            f"{runtime.path}: a {suffix} file has its shifts built in, {found}; --shifts "
            f"{','.join(map(str, shifts))} cannot change them: leave it out"
        )
    return runtime


def check_file(path: str | os.PathLike) -> None:
    """Raise the user's error for a file that cannot be read, before a library words it."""
    with explained(path), open(path, "rb"):
        pass


def load_mindspore(threads: int | None = None):
    """MindSpore, imported and set to the CPU; `threads` counts only if it is not imported yet."""
    # Both are read when MindSpore is imported, and never again.
    os.environ.setdefault("GLOG_v", "3")
    if threads and "mindspore" not in sys.modules:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    with signals_later():
        import mindspore as ms

        # Who has computed with MindSpore before has chosen a device, and MindSpore allows no other then.
        with contextlib.suppress(RuntimeError):
            ms.set_device("CPU")
    return ms


def one_line(error: Exception) -> str:
    """The gist of a library's error: without source locations and C++ stacks."""
    text = str(error).split("\n----")[0]
    return " ".join(text.split())[:400] or type(error).__name__


def _read_json(text: str | bytes, source: str) -> dict:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{source}: not valid JSON ({error}); export the model again") from error
    if not isinstance(values, dict):
        raise InputError(f"{source}: expected a JSON object, found {type(values).__name__}; export the model again")
    batch = values.get("batch")
    if batch is not None and (type(batch) is not int or batch < 1):
        raise InputError(f"{source}: batch must be a positive whole number or null, got {batch!r}")
    return check(values, source)


def _agree(
    path: str, asked: tuple[int, int] | None, *known: tuple[str, Sequence[int | None] | None]
) -> tuple[int, int]:
    """The one image size on which the command line and what the file says agree."""
    size: list[int | None] = [None, None]
    source = ["", ""]
    for name, sizes in known:
        for i, pixels in enumerate(sizes or ()):
            if pixels is None:
                continue
            if size[i] is None:
                size[i], source[i] = pixels, name
            elif size[i] != pixels:
                raise InputError(f"{path}: {source[i]} has images of {size[i]} pixels, {name} says {pixels}")
    for i, pixels in enumerate(asked or ()):
        if size[i] not in (None, pixels) and source[i] == "the graph":
            raise UsageError(
                f"{path}: the model is made for images of {size[0] or 'any'}x{size[1] or 'any'} pixels; --image-size "
                f"{asked[0]}x{asked[1]} cannot change that: leave it out, or export the model for that size"
            )
        size[i] = pixels
    if None in size:
        raise UsageError(f"{path}: the graph leaves the size of the images open; give --image-size")
    return size[0], size[1]
