"""`Scales`: the result of a calibration, as a small JSON file that both forms of file and later exports share."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from neonext_ms.common.cli import MIN_WEIGHT_BITS, WEIGHT_BITS
from neonext_ms.common.errors import InputError
from neonext_ms.common.files import read_json
from neonext_ms.common.text import list_names, nearest, shorten

from .architecture import Architecture
from .quantizer import HIGHEST, LOWEST, MAX_SCALE, MIN_SCALE, Quantizer

KIND = "scales of an 8-bit network"
# 2: bias corrections are in the units of the network itself, whichever layers are equalized.
VERSION = 2
# End of the file's name, behind the model's name.
SCALES_SUFFIX = ".scales.json"
MAX_EXPONENT = 30


@dataclass(frozen=True)
class LayerScale:
    """The quantization of a layer; its weights follow from the network.

    Attributes:
        quantizer: quantizer of its input.
        exponents: powers of two that divide its input channels (`export.quantize.apply.equalize`); empty for none.
        correction: what is added to its bias, for each output channel, in the units of the network before channels
            are divided; empty for none.
        weight_bits: bits of its weights, 2 to 8.
    """

    quantizer: Quantizer
    exponents: tuple[int, ...] = ()
    correction: tuple[float, ...] = ()
    weight_bits: int = WEIGHT_BITS


@dataclass(frozen=True)
class Scales:
    """The scales of a network.

    Attributes:
        network: digest of the network (`network_digest`); "" inside a checkpoint, whose weights they are for.
        layers: scale of each quantized layer by its name; a layer without one stays in floating point.
        calibration: method, images and their number, for the record.
    """

    network: str
    layers: Mapping[str, LayerScale]
    calibration: Mapping[str, Any] = field(default_factory=dict)

    def without(self, names: Sequence[str]) -> Scales:
        """Return the scales without those of some layers."""
        kept = {name: layer for name, layer in self.layers.items() if name not in names}
        return Scales(self.network, kept, self.calibration)

    def without_correction(self) -> Scales:
        """Return the scales without bias correction, for a network whose biases are trained."""
        layers = {name: replace(layer, correction=()) for name, layer in self.layers.items()}
        return Scales(self.network, layers, self.calibration)

    def check_network(self, known: Mapping[str, Sequence[int]]) -> None:
        """Check that every scale belongs to a layer of a network.

        Args:
            known: shape of the weight of each layer that can be quantized, outputs and inputs first, by its name.

        Raises:
            InputError: a layer that the network does not have, or another number of channels.
        """
        unknown = [name for name in self.layers if name not in known]
        if unknown:
            raise InputError(
                f"scales of another network: it has no layer {unknown[0]!r}{nearest(unknown[0], known)}. Calibrate "
                f"this network with --calibrate. Its layers:\n{list_names(known)}"
            )
        for name, scale in self.layers.items():
            outputs, inputs = known[name][:2]
            for what, values, count in (("exponents", scale.exponents, inputs), ("bias", scale.correction, outputs)):
                if len(values) not in (0, count):
                    raise InputError(
                        f"scales of another network: {name} has {count} channels, not {len(values)} ({what}). "
                        "Calibrate this network with --calibrate."
                    )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        layers = {
            name: {
                "scale": layer.quantizer.scale,
                "offset": layer.quantizer.offset,
                "exponents": list(layer.exponents),
                "bias_correction": list(layer.correction),
                **({} if layer.weight_bits == WEIGHT_BITS else {"weight_bits": layer.weight_bits}),
            }
            for name, layer in self.layers.items()
        }
        return {
            "kind": KIND,
            "version": VERSION,
            "network": self.network,
            "calibration": dict(self.calibration),
            "layers": layers,
        }

    def text(self) -> str:
        """Return the JSON text of the file: one line for each layer."""
        values = self.to_dict()
        layers = values.pop("layers")
        head = json.dumps(values, indent=2, ensure_ascii=False)[:-2]
        rows = ",\n".join(f"    {json.dumps(name)}: {json.dumps(layer)}" for name, layer in layers.items())
        return f'{head},\n  "layers": {{\n{rows}\n  }}\n}}\n'


def network_digest(arrays: Mapping[str, np.ndarray], architecture: Architecture) -> str:
    """Return a digest of a network, the same whatever file it comes from.

    Args:
        arrays: weights by official name.
        architecture: its shifts and its activation, which no weight shows.
    """
    digest = hashlib.sha256(f"{architecture.shifts} {architecture.activation}\n".encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name], np.float32)
        digest.update(f"{name} {array.shape}\n".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def read_scales(path: str | os.PathLike) -> Scales:
    """Read a file of scales; an edited scale becomes the nearest one that `Quantizer` can hold, at most 0.1 % away.

    Raises:
        InputError: the file cannot be read, or a value is not what it should be.
    """
    return parse_scales(read_json(path, KIND), os.fspath(path))


def parse_scales(values: Any, source: str) -> Scales:
    """Return the scales that plain values stand for, those of `Scales.to_dict`.

    Args:
        values: contents of a file of scales, or of the metadata of a checkpoint.
        source: name of the file, for messages.

    Raises:
        InputError: a value is not what it should be.
    """
    if not isinstance(values, dict) or values.get("kind") != KIND:
        raise InputError(f"{source}: not {KIND}. Pass the file that --quantize wrote, NAME.scales.json.")
    if values.get("version") != VERSION:
        raise InputError(f"{source}: version {shorten(values.get('version'))}, expected {VERSION}. Calibrate again.")
    layers, network, calibration = (values.get(key) for key in ("layers", "network", "calibration"))
    if not isinstance(network, str) or not isinstance(layers, dict) or not isinstance(calibration, dict):
        raise InputError(f"{source}: expected the keys network, calibration and layers. Calibrate again.")
    return Scales(network, {name: _layer(layer, f"{source}: {name}") for name, layer in layers.items()}, calibration)


def _layer(values: Any, where: str) -> LayerScale:
    known = ("scale", "offset", "exponents", "bias_correction", "weight_bits")
    if not isinstance(values, dict):
        raise InputError(f"{where}: {shorten(values)}, expected an object with {', '.join(known)}")
    if unknown := [key for key in values if key not in known]:
        raise InputError(f"{where}: unknown key {unknown[0]!r}{nearest(unknown[0], known)}; known: {', '.join(known)}")
    scale, offset = values.get("scale"), values.get("offset")
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not MIN_SCALE <= scale <= MAX_SCALE:
        raise InputError(f"{where}: scale {shorten(scale)}, expected a number from {MIN_SCALE:g} to {MAX_SCALE:g}")
    if type(offset) is not int or offset % 2 or not LOWEST <= offset < HIGHEST:
        raise InputError(f"{where}: offset {shorten(offset)}, expected an even number from {LOWEST} to {HIGHEST - 1}")
    exponents = _whole_numbers(values.get("exponents", []), MAX_EXPONENT, f"{where}: exponents")
    correction = values.get("bias_correction", [])
    if not isinstance(correction, list) or not all(type(x) in (int, float) and abs(x) <= MAX_SCALE for x in correction):
        raise InputError(f"{where}: bias_correction: expected a list of numbers from {-MAX_SCALE:g} to {MAX_SCALE:g}")
    bits = values.get("weight_bits", WEIGHT_BITS)
    if type(bits) is not int or not MIN_WEIGHT_BITS <= bits <= WEIGHT_BITS:
        raise InputError(f"{where}: weight_bits {shorten(bits)}, expected {MIN_WEIGHT_BITS} to {WEIGHT_BITS}")
    return LayerScale(Quantizer.near(float(scale), offset), exponents, tuple(map(float, correction)), bits)


def _whole_numbers(values: Any, limit: int, where: str) -> tuple[int, ...]:
    if not isinstance(values, list) or not all(type(value) is int and abs(value) <= limit for value in values):
        raise InputError(f"{where}: expected a list of whole numbers from {-limit} to {limit}")
    return tuple(values)
