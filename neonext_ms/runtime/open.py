"""All runtimes by name, and `open_runtime`, which opens a model file in one of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import import_module

from neonext_ms.common.errors import ToolchainError, UsageError
from neonext_ms.common.text import nearest

from .base import CHECKPOINT_SUFFIXES, Runtime, Settings, Signature, model_suffix
from .classifier import Classifier, ImageModel

# Name -> module and class. Their modules import the runtime only when it is used.
RUNTIMES = {
    "onnxruntime": ("onnx", "OnnxRuntime"),
    "onnxruntime-cann": ("onnx", "OnnxRuntimeCann"),
    "openvino": ("openvino", "OpenVino"),
    "openvino-bf16": ("openvino", "OpenVinoBfloat16"),
    "mindspore": ("mindspore", "MindSpore"),
    "mindspore-ascend": ("mindspore", "MindSporeAscend"),
    "pyacl": ("acl", "PyAcl"),
    "ais_bench": ("ais_bench", "AisBench"),
    "mindspore-lite": ("lite", "Lite"),
    "mindspore-lite-ascend": ("lite", "LiteAscend"),
}
_DEFAULT = {
    ".onnx": "onnxruntime",
    ".mindir": "mindspore",
    ".om": "pyacl",
    ".ms": "mindspore-lite",
    **dict.fromkeys(CHECKPOINT_SUFFIXES, "mindspore"),
}
SUFFIXES = tuple(_DEFAULT)
# Where the default cannot be used and this one can, this one is taken.
_SECOND = {"pyacl": "ais_bench"}


def runtime_class(name: str) -> type[Runtime]:
    """Return the class of a runtime, even if it cannot be used here.

    Raises:
        UsageError: an unknown name.
    """
    if name not in RUNTIMES:
        raise UsageError(f"unknown runtime {name!r}{nearest(name, RUNTIMES)}; known are {', '.join(RUNTIMES)}")
    module, class_name = RUNTIMES[name]
    return getattr(import_module(f"{__package__}.{module}"), class_name)


def default_runtime(path: str | os.PathLike) -> str:
    """Return the name of the runtime that opens a file when none is asked for.

    Raises:
        UsageError: an unknown suffix, or a folder.
    """
    suffix = model_suffix(path)
    if suffix not in _DEFAULT and os.path.isdir(path):
        raise UsageError(f"{os.fspath(path)}: this is a folder (expected a model file). Name a file in it.")
    if suffix not in _DEFAULT:
        raise UsageError(
            f"{os.fspath(path)}: unknown kind of model {suffix!r}; expected a file ending in {', '.join(SUFFIXES)}"
            f"{nearest(suffix, SUFFIXES) if suffix else ''}"
        )
    return _DEFAULT[suffix]


def choose_runtimes(path: str | os.PathLike, asked: Sequence[str] = ()) -> list[type[Runtime]]:
    """Return the runtimes of `asked` that take a file, or the default of its suffix.

    Raises:
        UsageError: an unknown suffix, or none of those asked for takes it.
        ToolchainError: one of them cannot be used here.
    """
    default, suffix = default_runtime(path), model_suffix(path)
    second = _SECOND.get(default)
    if second and not asked and runtime_class(default).missing() and not runtime_class(second).missing():
        default = second
    chosen = [runtime for runtime in map(runtime_class, asked or [default]) if suffix in runtime.suffixes]
    if not chosen:
        fitting = [name for name in RUNTIMES if suffix in runtime_class(name).suffixes]
        raise UsageError(
            f"{os.fspath(path)}: {', '.join(asked)} takes no {suffix} file; these do: {', '.join(fitting)}"
        )
    for runtime in chosen:
        if reason := runtime.missing():
            raise ToolchainError(f"{os.fspath(path)}: the runtime {runtime.name} cannot be used here: {reason}")
    return chosen


def open_runtime(
    path: str | os.PathLike,
    shifts: Sequence[int] | None = None,
    image_size: tuple[int, int] | None = None,
    threads: int | None = None,
    ema: bool = False,
    runtime: str | None = None,
    device: int = 0,
    key: str | None = None,
    activation: str | None = None,
) -> Classifier:
    """Open a model file: ONNX, MindIR, OM, MindSpore Lite, or a checkpoint.

    Args:
        path: the file.
        shifts: shifts of the four stages, for a checkpoint that does not record them.
        image_size: height and width, for a file that does not fix or record them.
        threads: intra-op threads on a CPU (default: see `processors.thread_count`).
        ema: use the moving average of a checkpoint's weights.
        runtime: name of the runtime (default: chosen by the suffix); see `RUNTIMES`.
        device: number of the accelerator.
        key: key or prefix of the weights in a checkpoint of several models.
        activation: activation, for a checkpoint that records none and is not of a network with GELU.

    Raises:
        InputError: the file is not what its suffix says, or not a classifier of images.
        UsageError: an unknown suffix or runtime, or an argument that is missing or contradicts the file.
        ToolchainError: the runtime cannot be used here.
    """
    (kind,) = choose_runtimes(path, [runtime] if runtime else ())
    path = os.fspath(path)
    suffix = model_suffix(path)
    if (ema or key) and suffix not in CHECKPOINT_SUFFIXES:
        option = "--ema" if ema else "--key"
        raise UsageError(f"{path}: the weights of a {suffix} file are fixed; {option} is for checkpoints")
    model = Classifier(kind(), path, Settings(None, image_size, threads, device, shifts, ema, key, activation))
    if suffix not in CHECKPOINT_SUFFIXES:
        try:
            _check_built_in(model, suffix, "shifts", None if shifts is None else ",".join(map(str, shifts)))
            _check_built_in(model, suffix, "activation", activation)
        except UsageError:
            model.close()
            raise
    return model


def open_image_model(path: str | os.PathLike, image_size: tuple[int, int] | None = None) -> ImageModel:
    """Open an exported file in the runtime of its suffix, whatever its outputs are.

    Args:
        path: the file.
        image_size: height and width, for a file that does not fix or record them.

    Raises:
        InputError: the file is not what its suffix says, or not a model of images.
        UsageError: an unknown suffix, or a size that is missing or contradicts the file.
        ToolchainError: the runtime cannot be used here.
    """
    (kind,) = choose_runtimes(path)
    return ImageModel(kind(), os.fspath(path), Settings(image_size=image_size))


def describe_file(path: str | os.PathLike) -> tuple[str, Signature]:
    """Return the name of the runtime that opens an exported file, and what the file says of its input and outputs.

    Raises:
        InputError: the file is not what its suffix says, or not a model of images.
        UsageError: an unknown suffix.
        ToolchainError: the runtime cannot be used here.
    """
    (kind,) = choose_runtimes(path)
    with kind() as runtime:
        return runtime.name, runtime.describe(os.fspath(path), Settings())


def _check_built_in(model: Classifier, suffix: str, what: str, asked: str | None) -> None:
    """Check that an exported file has the shifts or the activation that were asked for, since they are fixed in it.

    Raises:
        UsageError: it has others, or does not record them.
    """
    value = model.metadata.get(what)
    recorded = ",".join(map(str, value)) if isinstance(value, list) else value
    if asked in (None, recorded):
        return
    known = f"and has {recorded}" if recorded else "which it does not record"
    raise UsageError(
        f"{model.path}: a {suffix} file has its {what} built in, {known}; --{what} {asked} cannot change that. Omit "
        f"--{what}."
    )
