"""What is measured: files as they are, and named networks written as ONNX files in the forms that are asked for."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from neonext_ms.common.errors import InputError, ToolchainError, UsageError, nearest
from neonext_ms.models.architecture import Architecture
from neonext_ms.models.registry import list_models

from . import networks, runtimes
from .runtimes import Runtime


@dataclass(frozen=True)
class Subject:
    """One model in one form and one runtime.

    Attributes:
        label: what it is called in results.
        model: the network or the file's name; subjects that share it compute the same function.
        form: "file", "folded", "plain" (as PyTorch exports it), "naive" (node by node), "onnxslim" (that, optimised)
            or "torch".
        path: the file.
        runtime: name of the runtime.
        make: gives a runtime, not loaded.
        notes: what a reader should know.
    """

    label: str
    model: str
    form: str
    path: str
    runtime: str
    make: Callable[[], Runtime]
    notes: tuple[str, ...] = ()


@dataclass
class Choice:
    """What the command line asks for.

    Attributes:
        models: names and files.
        runtimes: names, or empty for the default of each file.
        image_size: for what leaves it open.
        naive: also the node-by-node form of named networks, and what onnxslim makes of it where that is installed.
        torch: interpreter and repository of the official model, or None.
        seed: of random weights.
    """

    models: Sequence[str]
    runtimes: Sequence[str] = ()
    image_size: tuple[int, int] | None = None
    naive: bool = False
    torch: tuple[str, str] | None = None
    seed: int = 0
    notes: list[str] = field(default_factory=list)


def known_names() -> list[str]:
    """Names of all networks that can be measured without a file."""
    return [*list_models(), *networks.names()]


def check_name(name: str) -> bool:
    """Whether this is the name of a network; otherwise it is a file.

    Raises:
        InputError: it looks like neither; the nearest name is in the message.
    """
    if name in known_names():
        return True
    if Path(name).suffix.lower() in runtimes.SUFFIXES or Path(name).exists():
        return False
    raise InputError(
        f"unknown model {name!r}{nearest(name, known_names())}; expected a name (neonext-bench --list-models) or a "
        f"file ending in {', '.join(runtimes.SUFFIXES)}"
    )


def subjects(choice: Choice, folder: Path, watch: Callable[[str], None] = lambda step: None) -> list[Subject]:
    """Everything to measure, in the order asked for; files of named networks are written to `folder`.

    Raises:
        InputError, UsageError, ToolchainError: as the message says.
    """
    if not choice.models:
        raise UsageError("nothing to measure; name models or files, such as: neonext-bench neonext_t resnet50")
    named = {name: check_name(name) for name in dict.fromkeys(choice.models)}
    for name in choice.runtimes:
        runtimes.runtime(name)
    # What cannot work is said before minutes are spent on the rest.
    for name, is_network in named.items():
        runtimes.choose("network.onnx" if is_network else name, list(choice.runtimes))
    found: list[Subject] = []
    files = [Path(name).name for name, is_network in named.items() if not is_network]
    if choice.torch and not any(name.startswith("neonext_") for name, is_network in named.items() if is_network):
        raise UsageError("--torch measures the official code of the NeoNeXt networks that are named; name one")
    for name, is_network in named.items():
        if is_network:
            watch(f"writing {name}")
            found += _of_name(name, choice, folder)
        else:
            label = Path(name).name if files.count(Path(name).name) == 1 else name
            found += _in_runtimes(label, label, "file", name, choice)
    return found


def _of_name(name: str, choice: Choice, folder: Path) -> list[Subject]:
    if name.startswith("neonext_"):
        return _of_neonext(name, choice, folder)
    import onnx

    size = choice.image_size or (224, 224)
    folded = name in networks.names("folded")
    found = []
    for form in (["folded"] if folded else []) + (["plain"] if choice.naive or not folded else []):
        path = folder / f"{name}_{form}.onnx"
        onnx.save(networks.build(name, batch=None, image_size=size, form=form, seed=choice.seed), path)
        label = name if not found else f"{name}/{form}"
        found += _in_runtimes(label, name, form, str(path), choice)
        if choice.naive and form == "plain":
            found += _slimmed(name, path, choice)
    return found


def _of_neonext(name: str, choice: Choice, folder: Path) -> list[Subject]:
    from neonext_ms.export import pipeline
    from neonext_ms.export.request import Request
    from neonext_ms.export.source import Source

    source = Source.from_name(name, seed=choice.seed)
    sizes = [choice.image_size] if choice.image_size else ()
    request = Request(["onnx", *(["onnx-naive"] if choice.naive else [])], sizes)
    report = pipeline.export(source, request, folder / name)
    found = _in_runtimes(name, name, "folded", str(report.files["onnx"]), choice)
    if choice.naive:
        path = report.files["onnx-naive"]
        found += _in_runtimes(f"{name}/naive", name, "naive", str(path), choice)
        found += _slimmed(name, path, choice)
    if choice.torch:
        if source.architecture.downsample != "official":
            choice.notes.append(f"{name}: the official PyTorch code has no downsampling of the paper; left out")
        else:
            found.append(_official(name, source, choice, folder))
    return found


def _slimmed(name: str, path: Path, choice: Choice) -> list[Subject]:
    try:
        import onnxslim
    except ImportError:
        choice.notes.append("onnxslim is not installed, so there is no column for it; pip install onnxslim")
        return []
    slim = path.with_name(f"{path.stem}_onnxslim.onnx")
    # It prints a table of what it did.
    with contextlib.redirect_stdout(io.StringIO()):
        onnxslim.slim(str(path), str(slim))
    return _in_runtimes(f"{name}/onnxslim", name, "onnxslim", str(slim), choice)


def _official(name: str, source, choice: Choice, folder: Path) -> Subject:
    from neonext_ms.checkpoint.checkpoint import save_checkpoint

    from .runtimes.torch_runtime import OfficialTorch

    options = official_options(source.architecture)
    path = folder / f"{name}.pt"
    save_checkpoint(path, source.arrays)
    python, repository = choice.torch
    return Subject(
        f"{name}/torch", name, "torch", str(path), "torch", lambda: OfficialTorch(python, repository, options)
    )


def official_options(architecture: Architecture) -> dict:
    """Keyword arguments of the official code's `NeoNeXt`, as JSON can carry them.

    Raises:
        InputError: the official code cannot build this model.
    """
    if architecture.downsample != "official" or "," in architecture.kernel_spec:
        raise InputError("the official code cannot build this model; measure another one, or leave out --torch")
    names = (
        "num_classes",
        "per_stage_layers",
        "dims",
        "kernel_spec",
        "shifts",
        "layer_scale_init_value",
        "linear_bias",
    )
    return {name: getattr(architecture, name) for name in names}


def _in_runtimes(label: str, model: str, form: str, path: str, choice: Choice) -> list[Subject]:
    chosen = runtimes.choose(path, list(choice.runtimes))
    default = runtimes.choose_default(path)
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
        for runtime in chosen
    ]


def check_torch(python: str | None, repository: str | None) -> tuple[str, str] | None:
    """Interpreter and repository of the official model, if both are given.

    Raises:
        UsageError: only one is given.
        InputError: the repository is not one.
        ToolchainError: the interpreter is not there.
    """
    import shutil

    if python is None and repository is None:
        return None
    if python is None or repository is None:
        raise UsageError("the official model needs both: --torch PYTHON (that has torch) and --official REPOSITORY")
    if not (Path(repository) / "ptvision" / "models" / "neonext" / "neonext.py").is_file():
        raise InputError(f"{repository}: not a clone of HapKoM/neonext; it has no ptvision/models/neonext/neonext.py")
    if shutil.which(python) is None:
        raise ToolchainError(f"--torch {python}: no such program; give a Python that has torch")
    return python, str(Path(repository).resolve())


def temporary_folder() -> tempfile.TemporaryDirectory:
    """Where the files of named networks are until the end of a run."""
    return tempfile.TemporaryDirectory(prefix="neonext-bench-")
