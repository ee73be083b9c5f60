"""`Quantization`: the scales of an export and what they cost, from calibration or from a file."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from neonext_ms.common.cli import WEIGHT_BITS
from neonext_ms.common.errors import InputError, UsageError
from neonext_ms.common.text import format_size, plural, printable, shorten
from neonext_ms.images.preprocessing import Preprocessing
from neonext_ms.models.scales import Scales, read_scales

from ..graph import DeployGraph
from .apply import quantizable, quantizable_shapes
from .calibrate import calibrate, skipped_layers
from .cost import Cost, layer_noise, measure
from .images import Images, open_images
from .options import SOURCES, QuantizeOptions
from .search import search

Progress = Callable[[str], None]
HEAD = "head.fc"


@dataclass(frozen=True)
class Quantization:
    """The scales of an export.

    Attributes:
        scales: scales of the quantized layers.
        layers: number of layers that could be quantized.
        skipped: names of those that stay in floating point.
        cost: what it cost.
        steps: what the search for skipped layers tried, in words.
        notes: remarks on the images, for the user.
    """

    scales: Scales
    layers: int
    skipped: tuple[str, ...]
    cost: Cost
    steps: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for the manifest."""
        return {
            "layers": len(self.scales.layers),
            "of": self.layers,
            "skipped": list(self.skipped),
            **({"search": list(self.steps)} if self.steps else {}),
            "calibration": dict(self.scales.calibration),
            **self.cost.to_dict(),
        }

    def lines(self) -> list[str]:
        """Return the lines that the command prints."""
        record = self.scales.calibration
        # The record may come from a file that anyone has edited.
        method, images, source = (printable(record.get(key, "?")) for key in ("method", "images", "source"))
        how = f"{method}, {images} images of {source}" + ("; then fine-tuned" if record.get("fine_tuned") else "")
        bits = sorted({layer.weight_bits for layer in self.scales.layers.values()} - {WEIGHT_BITS})
        weights = f", weights in {' and '.join(map(str, bits))} bit" if bits else ""
        lines = [f"8 bit     {len(self.scales.layers)} of {self.layers} layers{weights}; calibrated: {how}"]
        lines += [f"search    {step}" for step in self.steps]
        if self.skipped:
            lines.append(f"skipped   --quantize-skip {','.join(self.skipped)}")
        lines += [f"{purpose:9} {accuracy.line()}" for purpose, accuracy in self.cost.accuracy.items()]
        if self.cost.noise:
            worst = ", ".join(f"{name} {value:.1f} dB" for name, value in self.cost.worst())
            lines.append(f"noise     worst layers: {worst}")
        return lines


def build_quantization(
    graph: DeployGraph,
    digest: str,
    options: QuantizeOptions,
    metadata: Mapping[str, Any],
    recorded: Scales | None = None,
    gelu: str = "auto",
    progress: Progress = lambda step: None,
) -> Quantization:
    """Calibrate a network, or read its scales, and measure what 8 bit costs.

    Args:
        graph: folded graph.
        digest: digest of the network (`network_digest`).
        options: images, method, layers to skip.
        metadata: `preprocessing`, `classes` and `labels` of the network.
        recorded: scales that the checkpoint was fine-tuned with, for options that name neither images nor scales.
        gelu: form of GELU in the network.
        progress: function that is called with the state of the work.

    Raises:
        InputError: images or scales that do not fit the network.
        ParityError: the largest drop cannot be reached.
    """
    skip = skipped_layers(graph, options.skip)
    images: dict[str, Images] = {}

    def opened(source: str, count: int | None, validation: bool) -> Images:
        preprocessing = Preprocessing.from_dict(metadata["preprocessing"])
        classes, labels = metadata["classes"], metadata["labels"]
        return open_images(source, graph.image_size, preprocessing, classes, labels, count, validation)

    if options.calibrate is not None:
        images["calibrate"] = opened(options.calibrate, options.count, False)
    if options.validate is not None:
        images["validate"] = opened(options.validate, None, True)
    if options.scales is not None:
        scales = read_network_scales(options.scales, graph, digest).without(skip)
    elif options.calibrate is not None:
        images_of = images["calibrate"]
        scales = calibrate(graph, images_of, options.method, digest, skip, gelu, progress, options.weight_bits)
        record = {**scales.calibration, "preprocessing": dict(metadata["preprocessing"])}
        scales = replace(scales, calibration=record)
    elif recorded is not None:
        scales = _without_head(replace(recorded, network=digest), quantizable_shapes(graph)).without(skip)
    else:
        raise UsageError(f"8 bit needs {SOURCES}, got neither; the checkpoint records no scales of a fine-tuning.")
    if not scales.layers:
        raise InputError("no layer is left to quantize. Shorten --quantize-skip, or leave out --quantize.")
    steps: list[str] = []
    if options.max_drop is not None:
        part = images["validate"]
        noise = layer_noise(graph, scales, images.get("calibrate", part), gelu, progress)
        scales, steps = search(graph, scales, noise, part, options.max_drop, gelu, progress)
    cost = measure(graph, scales, images, gelu, progress)
    names = [layer.name for layer in quantizable(graph)]
    skipped = tuple(name for name in names if name not in scales.layers)
    notes = dict.fromkeys(part.note for part in images.values() if part.note)
    return Quantization(scales, len(names), skipped, cost, tuple(steps), tuple(notes))


def _without_head(scales: Scales, known: Mapping[str, Sequence[int]]) -> Scales:
    """Return the scales of a whole network for one that ends in feature maps, which have no classifier behind them."""
    return scales if HEAD in known else scales.without([HEAD])


def calibration_notes(scales: Scales, sizes: Sequence[tuple[int, int]], preprocessing: Mapping[str, Any]) -> list[str]:
    """Return notes on scales that were calibrated on images of another size, or prepared in another way.

    Args:
        scales: scales; files of earlier releases record neither.
        sizes: heights and widths of the networks that they are used for; what they cost is measured at the first.
        preprocessing: preprocessing of the network.
    """
    notes = []
    size, prepared = (scales.calibration.get(key) for key in ("image_size", "preprocessing"))
    others = [format_size(other) for other in sizes if size not in (None, list(other))]
    if others:
        calibrated = printable(format_size(size)) if isinstance(size, list) and len(size) == 2 else shorten(size)
        notes.append(f"the scales were calibrated at {calibrated} pixels; at {', '.join(others)} values may be larger")
    if len(sizes) > 1:
        notes.append(f"what 8 bit costs was measured at {format_size(sizes[0])} pixels only")
    if prepared not in (None, dict(preprocessing)):
        notes.append("the scales were calibrated on images prepared in another way; values may be larger than there")
    return notes


def check_scales_kept(options: QuantizeOptions, scales: Scales, path: Path) -> None:
    """Reject scales that would take the place of the file that they come from, without layers that it has.

    Args:
        options: file that the scales come from, if any.
        scales: scales of the export.
        path: file that they will be written to.

    Raises:
        UsageError: layers would be lost.
    """
    if options.scales is None:
        return
    lost = [name for name in read_scales(options.scales).layers if name not in scales.layers]
    if lost and path.exists() and path.samefile(options.scales):
        raise UsageError(
            f"{path}: would lose the scales of {plural(len(lost), 'layer')} that stay in floating point, such as "
            f"{lost[0]}. Choose another --output or --name, or copy the file first."
        )


def read_network_scales(path: str, graph: DeployGraph, digest: str) -> Scales:
    """Read the scales of a network.

    Args:
        path: file of scales.
        graph: folded graph of the network.
        digest: its digest (`network_digest`).

    Raises:
        InputError: the file cannot be read, or has the scales of another network.
    """
    known = quantizable_shapes(graph)
    scales = _without_head(read_scales(path), known)
    try:
        scales.check_network(known)
    except InputError as error:
        raise InputError(f"{os.fspath(path)}: {error}") from error
    if scales.network != digest:
        raise InputError(
            f"{os.fspath(path)}: scales of another network: its weights, shifts or activation differ from those that "
            "were calibrated. Calibrate this network with --calibrate."
        )
    return scales
