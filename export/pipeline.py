"""The way from a checkpoint or a model to proven files: read, fold, emit, compare, publish."""

from __future__ import annotations

import contextlib
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .. import __version__
from ..architecture import Architecture
from ..errors import InputError, ParityError, UsageError
from ..files import exclusive, explained, publish, sha256, staging
from ..preprocessing import Preprocessing
from ..registry import identify, model_config
from ..runtime import load_mindspore, open_runtime
from . import parity
from .fold import Folded, fold, neocell_to_matmul
from .graph import DeployGraph, unfolded
from .onnx_emitter import DEFAULT_OPSET, count_nodes
from .targets import resolve_targets

NOISE_SAMPLES = 4


@dataclass
class Source:
    """A network to export: named arrays and what belongs to them.

    Attributes:
        arrays: float32 arrays under their official names.
        architecture: its options, shifts included.
        name: for the files.
        path: the checkpoint it came from, or None.
        metadata: what travelled with it: `labels`, `preprocessing`, `image_size`.
        notes: what a person should hear.
    """

    arrays: Mapping[str, np.ndarray]
    architecture: Architecture
    name: str
    path: str | None = None
    metadata: Mapping = field(default_factory=dict)
    notes: Sequence[str] = ()


@dataclass
class Report:
    """What an export made and measured; `to_dict` is also the manifest `<name>.json`.

    Attributes:
        manifest: path of the manifest.
        files: target name -> path.
        parity: target name -> comparison with `reference`.
        reference: what the files were compared with.
        folded: what was folded.
        nodes: ONNX nodes of the network before and after folding.
        seconds: time spent in each step.
        metadata: model, sizes, preprocessing, labels, source, versions.
    """

    manifest: Path
    files: dict[str, Path]
    parity: dict[str, parity.Parity]
    reference: str
    folded: Folded
    nodes: tuple[int, int]
    seconds: dict[str, float]
    metadata: dict
    notes: Sequence[str] = ()

    def to_dict(self) -> dict:
        """Plain values for JSON, the same for the same input: without times."""
        return {
            **self.metadata,
            "folded": {**self.folded.to_dict(), "nodes_before": self.nodes[0], "nodes_after": self.nodes[1]},
            "files": {name: path.name for name, path in self.files.items()},
            "parity": {
                "against": self.reference,
                **{name: result.to_dict() for name, result in self.parity.items()},
            },
        }


def source_of_checkpoint(path: str, shifts: Sequence[int] | None = None, ema: bool = False) -> Source:
    """A checkpoint file as a source.

    Raises:
        InputError: it cannot be read, or is no NeoNeXt.
        UsageError: its shifts are not known.
    """
    from ..checkpoint import load_checkpoint, require_shifts

    checkpoint = load_checkpoint(path, shifts, ema=ema)
    architecture = require_shifts(checkpoint)
    return Source(
        checkpoint.float32(), architecture, Path(path).stem, path, checkpoint.metadata or {}, list(checkpoint.notes)
    )


def source_of_name(name: str, shifts: Sequence[int] | None = None, seed: int = 0) -> Source:
    """A named model with random weights as a source, for benchmarks; it needs no MindSpore.

    Raises:
        InputError: an unknown name.
    """
    from ..initialization import initial_arrays

    config = model_config(name, **({} if shifts is None else {"shifts": shifts}))
    arrays = initial_arrays(config.architecture, rng=np.random.RandomState(seed))
    metadata = {"image_size": config.image_size, "preprocessing": config.preprocessing.to_dict()}
    notes = [f"{name} has random weights (seed {seed}): good for measuring speed, not for recognising anything"]
    return Source(arrays, config.architecture, name, metadata=metadata, notes=notes)


def source_of_model(model, name: str = "neonext") -> Source:
    """A live `NeoNeXt` as a source; the model is only read."""
    from ..models import model_arrays

    return Source(model_arrays(model), model.architecture, name)


def resolve_image_size(source: Source, image_size: Sequence[int] | None = None) -> tuple[int, int]:
    """The size that was asked for, or that the source records, or that its architecture is published with.

    Raises:
        UsageError: there is none of these.
    """
    if image_size is not None:
        return tuple(image_size)
    if source.metadata.get("image_size"):
        return tuple(source.metadata["image_size"])
    model = identify(source.architecture)
    if model is None:
        raise UsageError("the checkpoint does not say its image size; pass --image-size, such as 224 or 256x320")
    return model_config(model).image_size


def export(
    source: Source,
    targets: Sequence[str],
    output: str | Path,
    image_size: Sequence[int] | None = None,
    batch: int | None = None,
    opset: int = DEFAULT_OPSET,
    name: str | None = None,
    labels: Sequence[str] | None = None,
    preprocessing: Preprocessing | None = None,
    images: Sequence[str] = (),
    seed: int = 0,
    tolerance: float = parity.TOLERANCE,
    watch: Callable[[str], None] = lambda step: None,
) -> Report:
    """Fold a network, emit it, prove every file against the unfolded network, and only then publish the files.

    Args:
        source: the network; it is only read.
        targets: names from `targets.TARGETS`.
        output: folder of the files; made if it is not there.
        image_size: height and width of the input; see `resolve_image_size`.
        batch: fixed batch size, or None for a dynamic one.
        opset: of the ONNX files.
        name: of the files, before their suffixes; the source's own if None.
        labels: class names, one for each class.
        preprocessing: what travels with the files; the source's own, or the official one, if None.
        images: image files to compare on, besides noise.
        seed: of the noise.
        tolerance: largest relative deviation that passes.
        watch: called with the name of each step before it starts.

    Returns:
        what was made and measured.

    Raises:
        InputError: an image size that the network cannot take, wrong labels, a file that cannot be written.
        ParityError: a file deviates by more than the tolerance; no file stands under its final name then.
    """
    chosen = resolve_targets(targets)
    size = resolve_image_size(source, image_size)
    name = name or source.name
    metadata = _metadata(source, size, batch, labels, preprocessing)
    seconds: dict[str, float] = {}

    with _timed(seconds, "fold", watch):
        network = unfolded(source.architecture, source.arrays, size)
        folded, what = fold(network)
        deployed, naive = neocell_to_matmul(folded), neocell_to_matmul(network)
        nodes = count_nodes(naive, opset), count_nodes(deployed, opset)
    with _timed(seconds, "hash", watch):
        metadata["source"] = _provenance(source)
    samples = _samples(metadata, images, seed)
    if any(target.mindspore for target in chosen):
        with _timed(seconds, "import", watch):
            load_mindspore()

    with staging(output) as stage:
        staged = {}
        for target in chosen:
            with _timed(seconds, target.name, watch):
                staged[target.name] = stage / f"{name}{target.suffix}"
                graph = deployed if target.folded else naive
                with explained(Path(output) / staged[target.name].name):
                    target.write(graph, staged[target.name], batch, opset, metadata)
        with _timed(seconds, "parity", watch):
            reference, logits = _reference(chosen, source, naive, size, opset, samples, stage)
            results = _compare(staged, logits, samples, size, tolerance)
        report = Report(
            manifest=Path(output) / f"{name}.json",
            files={target: Path(output) / path.name for target, path in staged.items()},
            parity=results,
            reference=reference,
            folded=what,
            nodes=nodes,
            seconds=seconds,
            metadata=metadata,
            notes=source.notes,
        )
        _publish(report, staged, stage)
    return report


@contextlib.contextmanager
def _timed(seconds: dict[str, float], step: str, watch: Callable[[str], None]) -> Iterator[None]:
    watch(step)
    start = time.perf_counter()
    yield
    seconds[step] = time.perf_counter() - start


def _metadata(source: Source, size, batch, labels, preprocessing) -> dict:
    labels = list(labels if labels is not None else source.metadata.get("labels") or [])
    classes = source.architecture.num_classes
    if labels and len(labels) != classes:
        raise InputError(f"{len(labels)} labels for {classes} classes; give one label for each class, in their order")
    if preprocessing is None:
        preprocessing = Preprocessing.from_dict(source.metadata.get("preprocessing") or {})
    return {
        "neonext_ms": __version__,
        "model": identify(source.architecture),
        "architecture": source.architecture.to_dict(),
        "shifts": list(source.architecture.shifts),
        "image_size": list(size),
        "batch": batch,
        "classes": classes,
        "labels": labels or None,
        "preprocessing": preprocessing.to_dict(),
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    packages = ("numpy", "onnx", "onnxruntime", "mindspore")
    return {"python": platform.python_version(), **{package: version(package) for package in packages}}


def _provenance(source: Source) -> dict | None:
    return source.path and {"file": Path(source.path).name, "sha256": sha256(source.path)}


def _samples(metadata: Mapping, images: Sequence[str], seed: int) -> np.ndarray:
    size = tuple(metadata["image_size"])
    samples = parity.noise(NOISE_SAMPLES, size, seed)
    if images:
        from ..images import load_images

        loaded = load_images(images, Preprocessing.from_dict(metadata["preprocessing"]), size)
        samples = np.concatenate([samples, loaded])
    return samples


def _reference(chosen, source: Source, naive: DeployGraph, size, opset, samples, stage: Path):
    """The unfolded network's logits: from MindSpore where that is loaded anyway, else from the node-by-node ONNX."""
    if any(target.mindspore for target in chosen):
        import mindspore as ms

        from ..models import build_model

        model = build_model(source.architecture, source.arrays)
        logits = [model(ms.Tensor(part)).asnumpy() for part in (samples[:1], samples[1:])]
        return "the unfolded network in MindSpore", np.concatenate(logits)
    from . import onnx_emitter

    path = stage / "reference.onnx"
    with explained(stage.parent):
        onnx_emitter.write(onnx_emitter.emit(naive, opset=opset), path)
    logits = _logits(path, samples, size)
    path.unlink()
    return "the unfolded network, node by node, in onnxruntime", logits


def _logits(path: Path, samples: np.ndarray, size) -> np.ndarray:
    with open_runtime(path, image_size=size) as runtime:
        return parity.run(runtime, samples)


def _compare(staged: Mapping[str, Path], logits, samples, size, tolerance: float) -> dict[str, parity.Parity]:
    results = {}
    for target, path in staged.items():
        results[target] = result = parity.compare(logits, _logits(path, samples, size), tolerance)
        if not result.holds(tolerance):
            raise ParityError(
                f"{path.name} does not compute what the network computes: relative L2 {result.relative_l2:.1e}, "
                f"largest difference {result.max_abs:.1e} of {result.max_logit:.1e}, top-1 agrees on "
                f"{result.top1_agree} of {result.samples}; allowed is {tolerance:.1e}. Nothing was written"
            )
    return results


def _publish(report: Report, staged: Mapping[str, Path], stage: Path) -> None:
    import json

    manifest = stage / report.manifest.name
    with explained(report.manifest):
        manifest.write_text(json.dumps(report.to_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    # Of two exports at once, one has all its files and then the other: files and manifest belong together.
    with exclusive(report.manifest.parent):
        for target, path in report.files.items():
            publish(staged[target], path)
        publish(manifest, report.manifest)
