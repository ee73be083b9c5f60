"""The export: read, fold, emit, verify, and only then publish the files."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from neonext_ms.checkpoint.metadata import KEY
from neonext_ms.common.errors import InputError, UsageError
from neonext_ms.common.files import exclusive, explained, publish, sha256, staging
from neonext_ms.common.text import format_size, plural
from neonext_ms.common.version import __version__
from neonext_ms.images.folder import check_order
from neonext_ms.images.preprocessing import Preprocessing
from neonext_ms.models.activations import GELU
from neonext_ms.models.quantizer import pairs_fit
from neonext_ms.models.registry import identify
from neonext_ms.models.scales import SCALES_SUFFIX, Scales, network_digest
from neonext_ms.runtime.mindspore import load_mindspore

from . import lite, verify
from .compare import parity
from .fold import FoldSummary, fold
from .graph import DeployGraph
from .lower import lower, neocell_to_matmul
from .om import target as om
from .om.options import OmOptions
from .onnx import emitter
from .onnx.format import DEFAULT_OPSET, MAX_OPSET, Format
from .quantize.apply import equalized_values, quantize
from .quantize.build import Quantization, build_quantization, calibration_notes, check_scales_kept
from .quantize.cost import Cost, compare_outputs, outputs_of
from .quantize.forms import host_graph
from .quantize.images import ArrayImages
from .quantize.options import QuantizeOptions
from .quantize.prove import prove
from .report import ExportedFile, Report
from .request import Request
from .source import Source
from .targets import Target
from .tolerances import INT8, INT8_LOSS, NOISE_SAMPLES, tolerance

Size = tuple[int, int]


def export_checkpoint(
    path: str | os.PathLike,
    targets: str | Sequence[str] = ("onnx",),
    shifts: Sequence[int] | None = None,
    image_size: int | Size | None = None,
    output: str | os.PathLike = ".",
    *,
    batch: int | Sequence[int] | None = None,
    ema: bool = False,
    key: str | None = None,
    activation: str | None = None,
    **options: Any,
) -> Report:
    """Export a checkpoint as `neonext-export` does: the same defaults, verification and atomic writing.

    Args:
        path: checkpoint, .pt, .pth, .ckpt or .safetensors.
        targets: names of targets: "onnx", "mindir", "lite", "om", "onnx-naive".
        shifts: NeoCell shifts of the four stages, such as (1, 1, 1, 0); needed if the checkpoint does not record them.
        image_size: side of square images in pixels, or (height, width); needed if the checkpoint does not record it.
        output: folder of the files; it is created if it does not exist.
        batch: fixed batch size, several sizes for the target "om", or None for a dynamic batch.
        ema: use the moving average of the weights.
        key: key or prefix of the weights in a checkpoint of several models.
        activation: activation, for a checkpoint that records none and is not of a network with GELU.
        options: other options of `Request`, such as opset, dtype, neocell, features_only, labels, images, name.

    Returns:
        the written files with their deviations; `report.files["onnx"]` is a path, and `print(report)` shows what the
        command prints. If the compiler of the target "om" is not installed, `report.missing` is the error.

    Raises:
        InputError: a checkpoint that cannot be read, an image size that the network cannot take, wrong labels, or a
            file that cannot be written or compiled.
        UsageError: shifts or an image size are needed, or options that do not go together.
        ParityError: a file deviates from the original network by more than the tolerance; nothing was written.
    """
    sizes = () if image_size is None else ((image_size, image_size) if isinstance(image_size, int) else image_size,)
    batches = () if batch is None else ((batch,) if isinstance(batch, int) else tuple(batch))
    names = targets.split(",") if isinstance(targets, str) else targets
    request = Request(names, sizes, batches, **options)
    return export(Source.from_checkpoint(os.fspath(path), shifts, ema, key, activation), request, output)


def export(
    source: Source, request: Request, output: str | os.PathLike, progress: Callable[[str], None] = lambda step: None
) -> Report:
    """Fold a network, emit it, verify every file against the original network, and only then publish the files.

    Args:
        source: the network; it is only read.
        request: options of the export.
        output: folder of the files; it is created if it does not exist.
        progress: function that is called with the name of each step before it starts.

    Returns:
        what was written and measured. If a compiler is not installed, `missing` is the error.

    Raises:
        InputError: an image size that the network cannot take, wrong labels, or a file that cannot be written or
            compiled.
        UsageError: an image size is needed, or an option that a compiler rejects.
        ToolchainError: MindSpore Lite is not installed, for the target "lite".
        ParityError: a file deviates by more than the tolerance; nothing was written.
    """
    _check_gelu(source, request)
    sizes = source.image_sizes(request.image_sizes)
    name, output = request.name or source.name, Path(output)
    metadata = _metadata(source, request, sizes)
    steps = _Steps(progress)
    with steps("fold"):
        stems = [name if len(sizes) == 1 else f"{name}_{format_size(size)}" for size in sizes]
        networks = [_SizedNetwork(source, request, size, stem) for size, stem in zip(sizes, stems, strict=True)]
        # What is folded does not depend on the size.
        (_, summary), nodes = networks[0].folded, networks[0].count_nodes()
    jobs = [network.job(request.om, metadata["preprocessing"]) for network in networks] if request.om else []
    for job in jobs:
        job.check()
    if any(target.name == "lite" for target in request.chosen):
        lite.check_installed()
    report = Report(request, output / f"{name}.json", metadata, summary, nodes, steps.seconds, list(source.notes))
    if request.om and request.om.dry_run:
        for job in jobs:
            details = {**job.dry_run(), "feed": job.feed()}
            report.exported.append(ExportedFile("om", job.image_size, output / job.output, details=details))
        return report
    report.notes = [*report.notes, *_fine_tuning_notes(source, request.quantize)]
    if request.quantize:
        with steps("quantize"):
            report.quantization = _quantize(networks, request.quantize, metadata, progress)
            check_scales_kept(request.quantize, report.quantization.scales, output / f"{name}{SCALES_SUFFIX}")
        report.notes = [*report.notes, *report.quantization.notes, *_saturation_notes(report)]
    with steps("hash"):
        metadata["source"] = source.path and {"file": Path(source.path).name, "sha256": sha256(source.path)}
    if any(target.mindspore for target in request.chosen):
        with steps("import"):
            load_mindspore()
    with staging(output) as stage:
        for network in networks:
            files = _write(network, report, stage, steps)
            with steps("parity"):
                _verify(network, files, report, stage)
        if report.quantization:
            _write_scales(report, report.quantization.scales, name, sizes[0], stage)
        names = [str(file.path.relative_to(output)) for file in report.exported]
        if jobs:
            names += _compile(jobs, report, stage, steps)
        _publish(report, names, stage)
    return report


def _check_gelu(source: Source, request: Request) -> None:
    """Reject a form of GELU for a network that has none, which would be ignored without a word."""
    activation = source.architecture.activation
    if request.gelu != "auto" and activation != GELU:
        raise UsageError(f"--gelu {request.gelu}: the activation of this network is {activation}. Leave out --gelu.")


def _fine_tuning_notes(source: Source, options: QuantizeOptions | None) -> list[str]:
    """Return a note for a checkpoint that was fine-tuned for 8 bit, unless its own scales are used."""
    if source.scales is None:
        return []
    if options is None:
        return ["the checkpoint was fine-tuned for 8 bit, and this is the network in floating point (--quantize int8)"]
    if options.calibrate is None and options.scales is None:
        return []
    return ["the scales that the checkpoint was fine-tuned with are not used. Leave out --calibrate to use them"]


def _saturation_notes(report: Report) -> list[str]:
    """Return a note on hosts whose sums of 8-bit products saturate, for a file with weights that are large enough."""
    quantization = report.quantization
    if quantization is None or all(target.name != "onnx" for target in report.request.chosen):
        return []
    if all(pairs_fit(layer.weight_bits) for layer in quantization.scales.layers.values()):
        return []
    return [
        "on x86 processors without VNNI, sums in 8 bit saturate in other programs, and classes are wrong. There, set "
        "session.x64quantprecision to 1 in onnxruntime, as the commands of this package do, or use --weight-bits 7"
    ]


class _Steps:
    """The steps of an export: `with steps(name)` announces a step and adds up its seconds."""

    def __init__(self, progress: Callable[[str], None]):
        self.progress = progress
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self.progress(name)
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


class _SizedNetwork:
    """The network at one image size: its graphs, and the files that are made of them."""

    def __init__(self, source: Source, request: Request, size: Size, stem: str):
        self.source, self.request, self.size, self.stem = source, request, size, stem
        self.original = source.graph(size, request.features_only)
        self.quantization: Quantization | None = None
        self.notes: list[str] = []

    @functools.cached_property
    def folded(self) -> tuple[DeployGraph, FoldSummary]:
        """The folded graph, with weights of its own up to `release_folded`, and what was folded."""
        return fold(self.original)

    @property
    def deployed(self) -> DeployGraph:
        """The graph that files are made of: the folded graph, or the quantized one."""
        graph = self.folded[0]
        return graph if self.quantization is None else quantize(graph, self.quantization.scales)

    def release_folded(self) -> None:
        """Free the folded weights; the next access folds again."""
        self.__dict__.pop("folded", None)

    def count_nodes(self) -> tuple[int, int]:
        """Return the number of ONNX nodes before and after folding, in the same format."""
        format = Format(min(self.request.opset or DEFAULT_OPSET, MAX_OPSET))
        return emitter.count_nodes(self.original, format), emitter.count_nodes(self.folded[0], format)

    def job(self, options: OmOptions, preprocessing: Mapping[str, Any]) -> om.Job:
        """Return the OM file of this size."""
        batch, compiler = tuple(self.request.batch) or (1,), om.COMPILERS[options.via]
        return om.Job(self.stem, self.size, batch, options, compiler, Preprocessing.from_dict(preprocessing))

    def write(self, target: Target, path: Path, metadata: Mapping[str, Any]) -> list[Path]:
        """Write the file of a target and return all files, the named one first."""
        format, batch = self.request.format(target), self.request.batch_of(target)
        graph = self._lowered(format) if target.folded else neocell_to_matmul(self.original)
        if target.name == "mindir":
            from . import mindir

            return mindir.write(graph, path, batch, format)
        if target.name == "om" or format.for_cann_only:
            skeleton = emitter.skeleton(graph, batch, format)
            self.notes += om.check_graph(skeleton, path.name, self.request.om.keep_dtype if self.request.om else ())
        if target.name == "onnx" and format.for_cann_only:
            self.notes.append(
                f"{path.name}: only CANN knows its {' and '.join(format.cann_nodes)} nodes, so ATC can load it and "
                "onnxruntime cannot; it was verified with each of them expanded"
            )
        metadata = {**metadata, "image_size": list(self.size), "batch": batch}
        if self.quantization:
            scales = self.quantization.scales
            metadata["int8"] = {**scales.to_dict(), "equalized": equalized_values(self.folded[0], scales)}
        if target.name == "lite":
            return lite.write(graph, path, batch, format, metadata)
        return emitter.save(graph, path, batch, format, {KEY: metadata})

    def _lowered(self, format: Format) -> DeployGraph:
        graph = self.deployed
        return lower(host_graph(graph) if self.quantization and format.int8 == "qdq" else graph, format)


def _quantize(
    networks: Sequence[_SizedNetwork],
    options: QuantizeOptions,
    metadata: Mapping[str, Any],
    progress: Callable[[str], None],
) -> Quantization:
    """Give the networks of all sizes the same scales, calibrated at the first size."""
    first, sizes = networks[0], [network.size for network in networks]
    digest = network_digest(first.source.arrays, first.source.architecture)
    quantization = build_quantization(
        first.folded[0], digest, options, metadata, first.source.scales, first.request.host_gelu, progress
    )
    for network in networks:
        network.quantization = quantization
    notes = calibration_notes(quantization.scales, sizes, metadata["preprocessing"])
    return replace(quantization, notes=(*quantization.notes, *notes))


def _write(network: _SizedNetwork, report: Report, stage: Path, steps: _Steps) -> list[tuple[Target, list[Path]]]:
    """Write the files of one size into the staging folder."""
    written = []
    for target in network.request.chosen:
        with steps(target.name):
            path = stage / f"{network.stem}{om.ONNX_SUFFIX if target.name == 'om' else target.suffix}"
            with explained(report.manifest.with_name(path.name)):
                written.append((target, network.write(target, path, report.metadata)))
    report.notes = [*report.notes, *network.notes]
    if network.request.dtype == "float32" and network.quantization is None:
        # Only the layers of a half-precision file are compared with the folded graph again.
        network.release_folded()
    return written


def _verify(network: _SizedNetwork, files: list[tuple[Target, list[Path]]], report: Report, stage: Path) -> None:
    """Compare the files of one size with the original network and add them to the report."""
    request, output = network.request, report.manifest.parent
    samples, loss = _samples(report.metadata, network.size, request), 0.0
    if network.quantization:
        forms = {request.format(target).int8: (paths[0], request.format(target)) for target, paths in files}
        report.reference = "the 8-bit network in exact integers"
        report.proof, expected = prove(network.deployed, forms, samples, request.host_gelu)
        report.notes = list(dict.fromkeys([*report.notes, *report.proof.notes()]))
        loss = _loss(network, samples, expected, report, stage)
    else:
        report.reference, expected = _expected(network, samples, stage)
    for target, paths in files:
        format, batch, path = request.format(target), request.batch_of(target), paths[0]
        result = verify.verify(path, format, batch, samples, expected, _tolerance(request, format, loss))
        details: dict[str, Any] = {
            "bytes": sum(file.stat().st_size for file in paths),
            "sha256": sha256(paths[0]),
            "batch": batch,
        }
        details |= {"dtype": format.dtype, "gelu": format.gelu, "neocell": format.neocell}
        if target.name == "lite":
            details["mindspore_lite"] = {"version": lite.VERSION}
        if request.om and request.om.via == "lite" and target.name == "om":
            details |= _on_host(path, format, batch, samples, expected, report)
        if target.name != "mindir":
            details["opset"] = format.opset
            # The runtimes of the other files do not expose intermediate values.
            if format.dtype != "float32" and path.suffix == ".onnx" and network.quantization is None:
                details["layers"] = verify.layer_deviations(path, format, network.folded[0], samples[:1], stage)
        name = "onnx for om" if target.name == "om" else target.name
        report.exported.append(ExportedFile(name, network.size, output / path.name, result, details))
        for weights in paths[1:]:
            final = output / weights.relative_to(stage)
            report.exported.append(ExportedFile(f"weights of {name}", network.size, final))
    network.release_folded()


def _loss(network: _SizedNetwork, samples: np.ndarray, expected: np.ndarray, report: Report, stage: Path) -> float:
    """Return the larger relative deviation of exact 8-bit outputs from those of the network in float32.

    Without images, as with a file of scales alone, it is all that is known of the cost of 8 bit, and is reported.

    Raises:
        ParityError: the float32 network that was quantized is not the original one.
    """
    images, gelu = ArrayImages("noise", samples), network.request.host_gelu
    exact = outputs_of(network.folded[0], images, gelu, lambda step: None, "float32")
    _, original = _expected(network, samples, stage)
    name = f"{network.stem} before quantization"
    verify.check(name, Format(gelu=gelu), exact, original, network.request.tolerance)
    apart = parity.compare(exact, expected)
    if report.quantization and not report.quantization.cost.accuracy:
        if network.request.images:
            images.source = f"noise and {plural(len(network.request.images), 'image')}"
        measured = compare_outputs(images, original, expected, not network.request.features_only)
        report.quantization = replace(report.quantization, cost=Cost({"noise": measured}, {}))
        report.notes = [
            *report.notes,
            f"what 8 bit costs was measured on {images.source} alone, and no calibration has seen noise: outputs "
            f"differ by {measured.relative_l2:.1e} (relative L2). Pass --validate FOLDER to measure it on images",
        ]
    return max(apart.relative_l2, apart.relative_max)


def _tolerance(request: Request, format: Format, loss: float) -> float | None:
    """Return the tolerance of a file; `loss` is what 8 bit costs on the same inputs."""
    if request.tolerance is None and request.quantize:
        return max(INT8, min(loss, INT8_LOSS)) + tolerance(format.dtype)
    return request.tolerance


def _write_scales(report: Report, scales: Scales, name: str, size: Size, stage: Path) -> None:
    """Write the scales of an 8-bit network beside its files."""
    path = report.manifest.with_name(f"{name}{SCALES_SUFFIX}")
    with explained(path):
        (stage / path.name).write_text(scales.text(), encoding="utf-8", errors="backslashreplace")
    report.exported.append(ExportedFile("scales", size, path))


def _on_host(
    path: Path, format: Format, batch: int | None, samples: np.ndarray, expected: np.ndarray, report: Report
) -> dict[str, Any]:
    """Convert an ONNX file for this machine and verify the result, before its converter is asked for the device's.

    Returns:
        an entry for the manifest; it is empty where MindSpore Lite is not installed, which the report then says.
    """
    if reason := lite.missing():
        report.notes = [*report.notes, f"{path.name} was not tried in MindSpore Lite on this machine: {reason}"]
        return {}
    converted = path.with_suffix(".ms")
    lite.convert(path, converted)
    result = verify.verify(converted, format, batch, samples, expected, report.request.tolerance)
    converted.unlink()
    return {"mindspore_lite": {"version": lite.VERSION, "parity": result.to_dict()}}


def _samples(metadata: Mapping[str, Any], size: Size, request: Request) -> np.ndarray:
    samples = parity.noise(NOISE_SAMPLES, size, request.seed)
    if request.images:
        from neonext_ms.images.images import load_images

        loaded = load_images(request.images, Preprocessing.from_dict(metadata["preprocessing"]), size)
        samples = np.concatenate([samples, loaded])
    return samples


def _expected(network: _SizedNetwork, samples: np.ndarray, stage: Path) -> tuple[str, np.ndarray]:
    """Return the original network's outputs: from MindSpore if that is loaded anyway, else from onnxruntime."""
    source, request = network.source, network.request
    if any(target.mindspore for target in request.chosen):
        load_mindspore()
        outputs = verify.mindspore_outputs(source.model(request.features_only), samples)
        return "the original network in MindSpore", outputs
    with explained(stage.parent):
        outputs = verify.original_outputs(network.original, samples, stage)
    return "the original (unfolded) graph in onnxruntime", outputs


def _compile(jobs: Sequence[om.Job], report: Report, stage: Path, steps: _Steps) -> list[str]:
    """Compile the OM files, or write what compiles them elsewhere; return the names of the files in the stage."""
    output = report.manifest.parent
    weights = [file.path.name for file in report.exported if file.target == "weights of onnx for om"]
    jobs = [replace(job, data=tuple(name for name in weights if name.startswith(job.onnx))) for job in jobs]
    names = om.write_companions(jobs, stage)
    for job in jobs:
        if job.aipp:
            report.exported.append(ExportedFile("aipp for om", job.image_size, output / job.aipp))
    wanted = all(job.options.compile for job in jobs)
    report.missing = om.find_compiler(jobs) if wanted else None
    if report.missing or not wanted:
        script = om.write_script(jobs, stage)
        if dropped := om.no_longer_compiled(jobs, output):
            report.notes = [
                *report.notes,
                f"{script}: the one of an earlier export compiled {', '.join(dropped)}, this one does not. Give each "
                "export a folder of its own (--output) to keep both",
            ]
        old = [job.output for job in jobs if (output / job.output).exists()]
        report.notes = [*report.notes, *(f"{name}: of an earlier export, until {script} has been run" for name in old)]
        details = {"commands": [job.command() for job in jobs], "feed": [job.feed() for job in jobs]}
        report.exported.append(ExportedFile("script for om", jobs[0].image_size, output / script, details=details))
        return [*names, script]
    for job in jobs:
        with steps("compile"):
            staged = om.compile_job(job, stage, output)
        details = {
            "soc": job.options.soc,
            "command": job.command(),
            "feed": job.feed(),
            "log": job.log,
            "run_on_a_device": False,
        }
        report.exported.append(ExportedFile("om", job.image_size, output / staged.name, details=details))
        names.append(staged.name)
    return names


def _metadata(source: Source, request: Request, sizes: Sequence[Size]) -> dict[str, Any]:
    """Return the metadata that the manifest and every ONNX file record."""
    architecture = source.architecture
    recorded = source.metadata.get("labels") or []
    labels = list(request.labels if request.labels is not None else recorded)
    if labels and len(labels) != architecture.num_classes:
        raise InputError(
            f"{len(labels)} labels for {architecture.num_classes} classes. Pass one label for each class, in order."
        )
    check_order(labels, recorded, source.path or source.name)
    preprocessing = request.preprocessing or Preprocessing.from_dict(source.metadata.get("preprocessing") or {})
    return {
        "neonext_ms": __version__,
        "model": identify(architecture),
        "architecture": architecture.to_dict(),
        "shifts": list(architecture.shifts or ()),
        "activation": architecture.activation,
        "image_size": list(sizes[0]) if len(sizes) == 1 else None,
        "batch": request.fixed_batch,
        "classes": architecture.num_classes,
        "outputs": "stages" if request.features_only else "logits",
        "labels": labels or None,
        "preprocessing": preprocessing.to_dict(),
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in ("numpy", "onnx", "onnxruntime", "mindspore")},
        },
    }


def _publish(report: Report, names: Sequence[str], stage: Path) -> None:
    """Write the manifest and give all files their final names."""
    output = report.manifest.parent
    manifest = stage / report.manifest.name
    with explained(report.manifest):
        text = json.dumps(report.to_dict(), indent=2, ensure_ascii=False) + "\n"
        # Class names that come from names of folders may not be UTF-8.
        manifest.write_text(text, encoding="utf-8", errors="backslashreplace")
    # Files and manifest belong together: of two exports into one folder, one publishes all of its files before the
    # other.
    with exclusive(output):
        for name in dict.fromkeys([*names, manifest.name]):
            mode = (stage / name).stat().st_mode & 0o111
            with explained(output / name):
                (output / name).parent.mkdir(exist_ok=True)
            published = publish(stage / name, output / name)
            if name.endswith(".sh"):
                published.chmod(published.stat().st_mode | mode)
