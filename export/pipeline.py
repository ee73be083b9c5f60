"""The way from a checkpoint or a model to proven files: read, fold, emit, compare, publish."""

from __future__ import annotations

import contextlib
import json
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from neonext_ms.checkpoint.metadata import KEY
from neonext_ms.common.errors import InputError, ParityError, ToolchainError, UsageError
from neonext_ms.common.files import exclusive, explained, publish, sha256, staging
from neonext_ms.common.version import __version__
from neonext_ms.images.preprocessing import Preprocessing
from neonext_ms.models.architecture import Architecture
from neonext_ms.models.registry import identify, model_config
from neonext_ms.runtime.mindspore import load_mindspore

from . import verify
from .compare import parity
from .compare.compare import compare_activations
from .compare.open import open_activations
from .fold import Folded, fold, neocell_to_matmul
from .graph import DeployGraph, unfolded
from .om import target as om
from .onnx import emitter
from .onnx.emitter import count_nodes
from .onnx.format import DEFAULT_OPSET, Flavour, lower, tolerance
from .request import Request
from .targets import Target

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
class Artefact:
    """A file that an export made, or would make.

    Attributes:
        target: name of its target.
        image_size: height and width of its input.
        path: where it is.
        parity: comparison with the unfolded network; None for what cannot run here.
        extra: more about it, for the manifest.
    """

    target: str
    image_size: tuple[int, int]
    path: Path
    parity: parity.Parity | None = None
    extra: dict = field(default_factory=dict)

    def to_dict(self) -> dict:
        """Plain values for JSON."""
        values = {"target": self.target, "file": self.path.name, "image_size": list(self.image_size), **self.extra}
        if self.parity is not None:
            values["parity"] = self.parity.to_dict()
        return values


@dataclass
class Report:
    """What an export made and measured; `to_dict` is also the manifest `<name>.json`.

    Attributes:
        manifest: path of the manifest.
        artefacts: the files.
        reference: what they were compared with.
        folded: what was folded.
        nodes: ONNX nodes of the network before and after folding.
        seconds: time spent in each step.
        metadata: model, sizes, preprocessing, labels, source, versions.
        notes: what a person should hear.
        command: the command line.
        missing: the compiler that is not here; everything else was made.
    """

    manifest: Path
    artefacts: list[Artefact]
    reference: str
    folded: Folded
    nodes: tuple[int, int]
    seconds: dict[str, float]
    metadata: dict
    notes: Sequence[str] = ()
    command: str | None = None
    missing: ToolchainError | None = None

    @property
    def files(self) -> dict[str, Path]:
        """The (last) file of each target."""
        return {artefact.target: artefact.path for artefact in self.artefacts}

    @property
    def parity(self) -> dict[str, parity.Parity]:
        """The comparison of the (last) file of each target that was compared."""
        return {a.target: a.parity for a in self.artefacts if a.parity is not None}

    def to_dict(self) -> dict:
        """Plain values for JSON, the same for the same input: without times."""
        return {
            **self.metadata,
            "command": self.command,
            "folded": {**self.folded.to_dict(), "nodes_before": self.nodes[0], "nodes_after": self.nodes[1]},
            "compared_with": self.reference,
            "files": [artefact.to_dict() for artefact in self.artefacts],
        }


def source_of_checkpoint(path: str, shifts: Sequence[int] | None = None, ema: bool = False) -> Source:
    """A checkpoint file as a source.

    Raises:
        InputError: it cannot be read, or is no NeoNeXt.
        UsageError: its shifts are not known.
    """
    from neonext_ms.checkpoint.checkpoint import load_checkpoint, require_shifts

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
    from neonext_ms.models.initialization import initial_arrays

    config = model_config(name, **({} if shifts is None else {"shifts": shifts}))
    arrays = initial_arrays(config.architecture, rng=np.random.RandomState(seed))
    metadata = {"image_size": config.image_size, "preprocessing": config.preprocessing.to_dict()}
    notes = [f"{name} has random weights (seed {seed}): good for measuring speed, not for recognising anything"]
    return Source(arrays, config.architecture, name, metadata=metadata, notes=notes)


def source_of_model(model, name: str = "neonext") -> Source:
    """A live `NeoNeXt` as a source; the model is only read."""
    from neonext_ms.models.weights import model_arrays

    return Source(model_arrays(model), model.architecture, name)


def resolve_image_sizes(source: Source, image_sizes: Sequence[tuple[int, int]] = ()) -> list[tuple[int, int]]:
    """The sizes that were asked for, or the one that the source records, or that its architecture is published with.

    Raises:
        UsageError: there is none of these.
    """
    if image_sizes:
        return list(dict.fromkeys(map(tuple, image_sizes)))
    if source.metadata.get("image_size"):
        return [tuple(source.metadata["image_size"])]
    model = identify(source.architecture)
    if model is None:
        raise UsageError("the checkpoint does not say its image size; pass --image-size, such as 224 or 256x320")
    return [model_config(model).image_size]


def export(
    source: Source, request: Request, output: str | Path, watch: Callable[[str], None] = lambda step: None
) -> Report:
    """Fold a network, emit it, prove every file against the unfolded network, and only then publish the files.

    Args:
        source: the network; it is only read.
        request: what to make.
        output: folder of the files; made if it is not there.
        watch: called with the name of each step before it starts.

    Returns:
        what was made and measured. If a compiler is not here, `missing` says so.

    Raises:
        InputError: an image size that the network cannot take, wrong labels, a file that cannot be written or compiled.
        UsageError: an image size is needed, or an option that a compiler refuses.
        ParityError: a file deviates by more than the tolerance; no file stands under its final name then.
    """
    sizes = resolve_image_sizes(source, request.image_sizes)
    name = request.name or source.name
    output = Path(output)
    metadata = _metadata(source, request, sizes)
    seconds: dict[str, float] = {}
    builds = []
    with _timed(seconds, "fold", watch):
        for size in sizes:
            stem = name if len(sizes) == 1 else f"{name}_{size[0]}x{size[1]}"
            builds.append(Build(source, request, size, stem))
    jobs = [build.job(metadata["preprocessing"]) for build in builds] if request.om else []
    for job in jobs:
        job.check()
    report = Report(
        manifest=output / f"{name}.json",
        artefacts=[],
        reference="",
        folded=builds[0].what_was_folded(),
        nodes=builds[0].nodes(),
        seconds=seconds,
        metadata=metadata,
        notes=list(source.notes),
        command=request.command,
    )
    if request.om and request.om.dry_run:
        for job in jobs:
            extra = {"command": job.command(), "feed": job.feed()}
            report.artefacts.append(Artefact("om", job.image_size, output / job.output, extra=extra))
        return report
    with _timed(seconds, "hash", watch):
        metadata["source"] = _provenance(source)
    if any(target.mindspore for target in request.chosen):
        with _timed(seconds, "import", watch):
            load_mindspore()
    with staging(output) as stage:
        for build in builds:
            _emit_and_prove(build, metadata, report, output, stage, watch)
        names = [str(artefact.path.relative_to(output)) for artefact in report.artefacts]
        if jobs:
            names += _compile(jobs, report, output, stage, watch)
        _publish(report, names, stage)
    return report


class Build:
    """The graphs of one image size, and what is made of them."""

    def __init__(self, source: Source, request: Request, size: tuple[int, int], stem: str):
        self.source, self.request, self.size, self.stem = source, request, size, stem
        self.network = unfolded(source.architecture, source.arrays, size, request.features_only)
        self._folded: tuple[DeployGraph, Folded] | None = None

    @property
    def folded(self) -> DeployGraph:
        """The folded network; it has weights of its own until `forget_folded`."""
        self._folded = self._folded or fold(self.network)
        return self._folded[0]

    def what_was_folded(self) -> Folded:
        """What folding did."""
        self._folded = self._folded or fold(self.network)
        return self._folded[1]

    def forget_folded(self) -> None:
        """Let go of the folded weights, once they are written."""
        self._folded = None

    def naive(self) -> DeployGraph:
        """The network node by node, without NeoCell layers."""
        return neocell_to_matmul(self.network)

    def nodes(self) -> tuple[int, int]:
        """ONNX nodes before and after folding, in the same form."""
        opset = self.request.opset or DEFAULT_OPSET
        return count_nodes(self.naive(), opset), count_nodes(neocell_to_matmul(self.folded), opset)

    def job(self, preprocessing: Mapping) -> om.Job:
        """The OM file of this size."""
        options, batch = self.request.om, tuple(self.request.batch) or (1,)
        compiler = om.COMPILERS[options.via]
        return om.Job(self.stem, self.size, batch, options, compiler, Preprocessing.from_dict(preprocessing))

    def batch(self, target: Target) -> int | None:
        """Batch size of a target's file, or None for a dynamic one."""
        return 1 if target.name == "om" and not self.request.batch else self.request.fixed_batch()

    def write(self, target: Target, path: Path, metadata: Mapping) -> list[Path]:
        """Write the file of a target; returns the files, the named one first."""
        flavour = self.request.flavour(target)
        graph = lower(self.folded, flavour) if target.folded else self.naive()
        metadata = {**metadata, "image_size": list(self.size)}
        batch = self.batch(target)
        if target.name == "mindir":
            from . import mindir

            return mindir.write(graph, path, batch, flavour)
        if target.name == "om":
            om.check_graph(emitter.skeleton(graph, batch, flavour), path.name, self.request.om.keep_dtype)
        return emitter.save(graph, path, batch, flavour, {KEY: {**metadata, "batch": batch}})


def _emit_and_prove(build: Build, metadata: dict, report: Report, output: Path, stage: Path, watch) -> None:
    """Write the files of one size and compare each with the unfolded network."""
    request = build.request
    made = []
    for target in request.chosen:
        with _timed(report.seconds, target.name, watch):
            path = stage / f"{build.stem}{om.ONNX_SUFFIX if target.name == 'om' else target.suffix}"
            with explained(output / path.name):
                files = build.write(target, path, metadata)
        made.append((target, files))
    if request.dtype == "float32":
        build.forget_folded()
    with _timed(report.seconds, "parity", watch):
        samples = _samples(metadata, build.size, request.images, request.seed)
        report.reference, outputs = _reference(build, samples, stage)
        for target, files in made:
            flavour = request.flavour(target)
            allowed = request.tolerance
            if allowed is None:
                allowed = tolerance(flavour.precision, flavour.gelu)
            found = verify.outputs(files[0], flavour, samples, build.batch(target))
            result = parity.compare(outputs, found, allowed)
            if not result.agrees(allowed):
                raise ParityError(
                    f"{files[0].name} does not compute what the network computes: relative L2 "
                    f"{result.relative_l2:.1e}, largest difference {result.max_abs:.1e} of {result.max_logit:.1e}, "
                    f"top-1 agrees on {result.top1_agree} of {result.samples}; allowed is {allowed:.1e}. "
                    "Nothing was written"
                )
            extra = {"bytes": sum(file.stat().st_size for file in files), "sha256": sha256(files[0])}
            extra |= {
                "batch": build.batch(target),
                "dtype": flavour.precision,
                "gelu": flavour.gelu,
                "neocell": flavour.neocell,
            }
            if target.name != "mindir":
                extra["opset"] = flavour.opset
            # MindSpore hands out nothing between the input of a MindIR file and its outputs.
            if flavour.precision != "float32" and target.name != "mindir":
                extra["layers"] = _layers(build, target, files[0], samples, stage)
            name = "onnx for om" if target.name == "om" else target.name
            report.artefacts.append(Artefact(name, build.size, output / files[0].name, result, extra))
            for file in files[1:]:
                report.artefacts.append(Artefact(f"weights of {name}", build.size, output / file.relative_to(stage)))
        build.forget_folded()


def _layers(build: Build, target: Target, path: Path, samples: np.ndarray, stage: Path) -> list[dict]:
    """How far each layer of a file in half precision is from the same file in float32."""
    flavour = build.request.flavour(target)
    plain = Flavour(gelu=flavour.gelu, neocell=flavour.neocell.replace("custom", "matmul"))
    exact, rounded = stage / "float32.onnx", path
    emitter.save(lower(build.folded, plain), exact)
    if (form := verify.runnable(path, flavour)) is not None:
        rounded = stage / "runnable.onnx"
        emitter.write(form, rounded)
    one, other = (open_activations(file) for file in (exact, rounded))
    found = compare_activations(one, other, samples[:1], layers=True)
    return [
        {"name": d.name, "relative_l2": d.relative_l2, "max_abs": d.max_abs, "added": d.added} for d in found.layers
    ]


def _compile(jobs: Sequence[om.Job], report: Report, output: Path, stage: Path, watch) -> list[str]:
    """Build the OM files, or what builds them elsewhere; returns the names of the files in the staging folder."""
    weights = [a.path.name for a in report.artefacts if a.target == "weights of onnx for om"]
    jobs = [replace(job, data=tuple(n for n in weights if n.startswith(job.onnx))) for job in jobs]
    names = om.write_companions(jobs, stage)
    for job in jobs:
        if job.aipp:
            report.artefacts.append(Artefact("aipp for om", job.image_size, output / job.aipp))
    report.missing = om.find_compiler(jobs)
    if report.missing:
        script = om.write_script(jobs, stage)
        extra = {"commands": [job.command() for job in jobs], "feed": [job.feed() for job in jobs]}
        report.artefacts.append(Artefact("script for om", jobs[0].image_size, output / script, extra=extra))
        return [*names, script]
    for job in jobs:
        with _timed(report.seconds, "compile", watch):
            staged = om.compile_job(job, stage, output)
        extra = {
            "soc": job.options.soc,
            "command": job.command(),
            "feed": job.feed(),
            "log": job.log,
            "run_on_a_device": False,
        }
        report.artefacts.append(Artefact("om", job.image_size, output / staged.name, extra=extra))
        names.append(staged.name)
    return names


@contextlib.contextmanager
def _timed(seconds: dict[str, float], step: str, watch: Callable[[str], None]) -> Iterator[None]:
    watch(step)
    start = time.perf_counter()
    yield
    seconds[step] = seconds.get(step, 0.0) + time.perf_counter() - start


def _metadata(source: Source, request: Request, sizes: Sequence[tuple[int, int]]) -> dict:
    labels = list(request.labels if request.labels is not None else source.metadata.get("labels") or [])
    classes = source.architecture.num_classes
    if labels and len(labels) != classes:
        raise InputError(f"{len(labels)} labels for {classes} classes; give one label for each class, in their order")
    preprocessing = request.preprocessing or Preprocessing.from_dict(source.metadata.get("preprocessing") or {})
    return {
        "neonext_ms": __version__,
        "model": identify(source.architecture),
        "architecture": source.architecture.to_dict(),
        "shifts": list(source.architecture.shifts),
        "image_size": list(sizes[0]) if len(sizes) == 1 else None,
        "batch": request.fixed_batch(),
        "classes": classes,
        "outputs": "stages" if request.features_only else "logits",
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


def _samples(metadata: Mapping, size: tuple[int, int], images: Sequence[str], seed: int) -> np.ndarray:
    samples = parity.noise(NOISE_SAMPLES, size, seed)
    if images:
        from neonext_ms.images.images import load_images

        loaded = load_images(images, Preprocessing.from_dict(metadata["preprocessing"]), size)
        samples = np.concatenate([samples, loaded])
    return samples


def _reference(build: Build, samples: np.ndarray, stage: Path) -> tuple[str, np.ndarray]:
    """The unfolded network's outputs: from MindSpore where that is loaded anyway, else from the node-by-node ONNX."""
    if any(target.mindspore for target in build.request.chosen):
        return "the unfolded network in MindSpore", verify.model_outputs(build, samples)
    path = stage / "reference.onnx"
    with explained(stage.parent):
        files = emitter.save(build.naive(), path)
    outputs = verify.outputs(path, Flavour(), samples)
    for file in files:
        file.unlink()
    return "the unfolded network, node by node, in onnxruntime", outputs


def _publish(report: Report, names: Sequence[str], stage: Path) -> None:
    output = report.manifest.parent
    manifest = stage / report.manifest.name
    with explained(report.manifest):
        manifest.write_text(json.dumps(report.to_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    # Of two exports at once, one has all its files and then the other: files and manifest belong together.
    with exclusive(output):
        for name in dict.fromkeys([*names, manifest.name]):
            mode = (stage / name).stat().st_mode & 0o111
            with explained(output / name):
                (output / name).parent.mkdir(exist_ok=True)
            published = publish(stage / name, output / name)
            if name.endswith(".sh"):
                published.chmod(published.stat().st_mode | mode)
