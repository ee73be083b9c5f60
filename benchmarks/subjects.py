"""Subjects of a measurement: files as they are, and named networks written as ONNX files in the selected forms."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from neonext_ms.common.errors import UsageError
from neonext_ms.common.text import nearest
from neonext_ms.models.activations import GELU
from neonext_ms.models.registry import list_models
from neonext_ms.runtime.base import Runtime
from neonext_ms.runtime.open import SUFFIXES, choose_runtimes, default_runtime, runtime_class

from . import networks
from .official_torch import OfficialTorch, official_options


@dataclass(frozen=True)
class Subject:
    """One model in one form and one runtime.

    Attributes:
        label: name in results.
        model: name of the network or the file; subjects that share it compute the same function.
        form: "file", "folded", "plain" (as PyTorch exports it), "naive" (node by node), "onnxslim" (naive, optimised
            by onnxslim) or "torch".
        path: the file.
        runtime: name of the runtime.
        make: function that returns a runtime, not loaded.
        notes: remarks for readers of the results.
    """

    label: str
    model: str
    form: str
    path: str
    runtime: str
    make: Callable[[], Runtime]
    notes: tuple[str, ...] = ()


@dataclass
class Selection:
    """Models to measure, as the command line names them.

    Attributes:
        models: names and files.
        runtimes: names of runtimes, or empty for the default of each file.
        image_size: height and width for models that leave them open.
        naive: whether to add the node-by-node form of named networks, and its optimisation by onnxslim if that is
            installed.
        torch: interpreter and repository of the official model, or None.
        seed: random seed of the weights.
        notes: messages to show to the user; `subjects` adds to them.
    """

    models: Sequence[str]
    runtimes: Sequence[str] = ()
    image_size: tuple[int, int] | None = None
    naive: bool = False
    torch: tuple[str, str] | None = None
    seed: int = 0
    notes: list[str] = field(default_factory=list)


def known_names() -> list[str]:
    """Return the names of all networks that can be measured without a file."""
    return [*list_models(), *networks.names()]


def check_name(name: str) -> bool:
    """Return whether this is the name of a network; otherwise it is a file.

    Raises:
        UsageError: it looks like neither.
    """
    if name in known_names():
        return True
    if Path(name).suffix.lower() in SUFFIXES or Path(name).exists():
        return False
    raise UsageError(
        f"unknown model {name!r}{nearest(name, known_names())}; expected a name (neonext-bench --list-models) or a "
        f"file ending in {', '.join(SUFFIXES)}"
    )


def subjects(selection: Selection, folder: Path, status: Callable[[str], None] = lambda step: None) -> list[Subject]:
    """Return everything to measure, in the selected order; files of named networks are written to `folder`.

    Raises:
        UsageError: a model is unknown.
        InputError: a model cannot be written.
        UsageError: nothing is selected, or options contradict each other.
        ToolchainError: a runtime cannot be used here.
    """
    if not selection.models:
        raise UsageError("nothing to measure; name models or files, such as: neonext-bench neonext_t resnet50")
    named = {name: check_name(name) for name in dict.fromkeys(selection.models)}
    for name in selection.runtimes:
        runtime_class(name)
    # A runtime that is missing is reported before minutes are spent on writing networks.
    for name, is_network in named.items():
        choose_runtimes("network.onnx" if is_network else name, selection.runtimes)
    result: list[Subject] = []
    files = [Path(name).name for name, is_network in named.items() if not is_network]
    if selection.torch and not any(name.startswith("neonext_") for name, is_network in named.items() if is_network):
        raise UsageError("--torch measures the official code of the NeoNeXt networks that are named; name one")
    for name, is_network in named.items():
        if is_network:
            status(f"writing {name}")
            result += _of_name(name, selection, folder)
        else:
            label = Path(name).name if files.count(Path(name).name) == 1 else name
            result += _in_runtimes(label, label, "file", name, selection)
    return result


def _of_name(name: str, selection: Selection, folder: Path) -> list[Subject]:
    if name.startswith("neonext_"):
        return _of_neonext(name, selection, folder)
    import onnx

    size = selection.image_size or (224, 224)
    folded = name in networks.names("folded")
    result: list[Subject] = []
    for form in (["folded"] if folded else []) + (["plain"] if selection.naive or not folded else []):
        path = folder / f"{name}_{form}.onnx"
        onnx.save(networks.build(name, batch=None, image_size=size, form=form, seed=selection.seed), path)
        label = name if not result else f"{name}/{form}"
        result += _in_runtimes(label, name, form, str(path), selection)
        if selection.naive and form == "plain":
            result += _slimmed(name, path, selection)
    return result


def _of_neonext(name: str, selection: Selection, folder: Path) -> list[Subject]:
    from neonext_ms.export import pipeline
    from neonext_ms.export.request import Request
    from neonext_ms.export.source import Source

    source = Source.from_name(name, seed=selection.seed)
    sizes = [selection.image_size] if selection.image_size else ()
    request = Request(["onnx", *(["onnx-naive"] if selection.naive else [])], sizes)
    report = pipeline.export(source, request, folder / name)
    result = _in_runtimes(name, name, "folded", str(report.files["onnx"]), selection)
    if selection.naive:
        path = report.files["onnx-naive"]
        result += _in_runtimes(f"{name}/naive", name, "naive", str(path), selection)
        result += _slimmed(name, path, selection)
    if selection.torch:
        if source.architecture.downsample != "official":
            selection.notes.append(f"{name}: the official PyTorch code lacks the downsampling of the paper; omitted")
        elif source.architecture.activation != GELU:
            selection.notes.append(f"{name}: the official PyTorch code has no activation but GELU; omitted")
        else:
            result.append(_official(name, source, selection.torch, folder))
    return result


def _slimmed(name: str, path: Path, selection: Selection) -> list[Subject]:
    try:
        import onnxslim
    except ImportError:
        selection.notes.append(
            "onnxslim is not installed, so that form is omitted; install it with: pip install onnxslim"
        )
        return []
    slim = path.with_name(f"{path.stem}_onnxslim.onnx")
    # It prints a table of its changes.
    with contextlib.redirect_stdout(io.StringIO()):
        onnxslim.slim(str(path), str(slim))
    return _in_runtimes(f"{name}/onnxslim", name, "onnxslim", str(slim), selection)


def _official(name: str, source, torch: tuple[str, str], folder: Path) -> Subject:
    from neonext_ms.checkpoint.checkpoint import save_checkpoint

    options = official_options(source.architecture)
    path = folder / f"{name}.pt"
    save_checkpoint(path, source.arrays)
    return Subject(f"{name}/torch", name, "torch", str(path), "torch", partial(OfficialTorch, *torch, options))


def _in_runtimes(label: str, model: str, form: str, path: str, selection: Selection) -> list[Subject]:
    default = default_runtime(path)
    return [
        Subject(
            label if runtime.name == default else f"{label}@{runtime.name}",
            model,
            form,
            path,
            runtime.name,
            runtime,
            (runtime.label,) if runtime.label else (),
        )
        for runtime in choose_runtimes(path, selection.runtimes)
    ]
