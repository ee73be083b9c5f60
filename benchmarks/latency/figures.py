"""Published throughput of networks on Atlas devices: the rows of `benchmarks/data/atlas_figures.csv`.

The first rows are those the project was given; the others were read from the same places, the READMEs of
ModelZoo-PyTorch (snapshot 6a2804a35 of 15 December 2023; ShuffleNet v2 from ACL_PyTorch/README.md).
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from neonext_ms.common.errors import InputError
from neonext_ms.common.files import explained

FILE = Path(__file__).parents[1] / "data" / "atlas_figures.csv"
COLUMNS = ("model", "image_size", "precision", "soc", "cann", "images_per_second_by_batch", "source")
# Name in the table -> name of `networks.build`.
NETWORKS = {
    "ConvNeXt-T": "convnext_t",
    "ResNet-18": "resnet18",
    "ResNet-34": "resnet34",
    "ResNet-50": "resnet50",
    "ResNet-101": "resnet101",
    "ResNet-152": "resnet152",
    "Wide-ResNet-50-2": "wide_resnet50_2",
    "ResNeXt-101-32x8d": "resnext101_32x8d",
    "SE-ResNet-50": "seresnet50",
    "MobileNet-v1": "mobilenet_v1",
    "MobileNet-v2": "mobilenet_v2",
    "MobileNet-v3-Large": "mobilenet_v3_large",
    "MNASNet-1.0": "mnasnet1_0",
    "EfficientNet-B0": "efficientnet_b0",
    "ShuffleNet-v2-1.0x": "shufflenet_v2_x1_0",
    "ViT-B/16": "vit_b_16",
    "ViT-B/32": "vit_b_32",
    "ViT-S/16": "vit_s_16",
    "Swin-T": "swin_t",
    "ConvMixer-1536/20": "convmixer_1536_20",
    "RegNetX-1.6GF": "regnetx_1_6gf",
    "DenseNet-121": "densenet121",
    "SqueezeNet1.1": "squeezenet1_1",
    "GoogLeNet": "googlenet",
    "VGG-16": "vgg16",
    "VGG-19": "vgg19",
    "AlexNet": "alexnet",
    "Inception-v3": "inception_v3",
    "ConvNeXtV2 classifier": "convnextv2_t",
}
# Rows that are neither fitted nor counted among the errors, with the reason. Tables list them as not used.
_UNCERTAIN_MODELS = {"ConvNeXtV2 classifier": "which ConvNeXt V2 was measured is not known; predicted as the tiny one"}
_UNCERTAIN_ROWS = {
    ("SqueezeNet1.1", "Ascend310B1", 64): "4.3 times below the same network's figure at batch 32, for no known reason"
}
_UNCERTAIN_SOURCES = {
    "ModelZoo-PyTorch built-in Resnet50_Pytorch_Infer with amct_onnx": "found after the fit, as a check of it"
}
# The recipe of these rows passes an AIPP configuration, though the row does not say so.
_WITH_AIPP = ("SqueezeNet1.1",)


@dataclass(frozen=True)
class Figure:
    """One published figure: throughput of a network, measured by others.

    `model` is the name as published, `network` the one for `networks.build`, `soc` the device as `ops/soc.py` names it.
    With `aipp`, images arrive as bytes.
    """

    model: str
    network: str
    image_size: int
    int8: bool
    aipp: bool
    soc: str
    batch: int
    images_per_second: float
    source: str

    @property
    def uncertain(self) -> str:
        """The reason why the figure is not used, or an empty string."""
        row = (self.model, self.soc, self.batch)
        reasons = _UNCERTAIN_MODELS.get(self.model), _UNCERTAIN_ROWS.get(row), _UNCERTAIN_SOURCES.get(self.source)
        return next(filter(None, reasons), "")

    @property
    def name(self) -> str:
        """The network with its image size and type, for a table."""
        dtype = ("int8" if self.int8 else "fp16") + ("+AIPP" if self.aipp else "")
        return f"{self.model} {self.image_size} {dtype}"


def read(path: str | os.PathLike = FILE) -> list[Figure]:
    """Return all figures of a table, in its order.

    Raises:
        InputError: a column is missing, or a field has a wrong value; the message names the line.
    """
    with explained(path), open(path, encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        if tuple(rows.fieldnames or ()) != COLUMNS:
            raise InputError(f"{path}: wrong columns (got {rows.fieldnames}, expected {', '.join(COLUMNS)})")
        return [figure for row in rows for figure in _figures(f"{path}, line {rows.line_num}", row)]


def _figures(place: str, row: dict[str, str]) -> Iterator[Figure]:
    if None in row or None in row.values():
        raise InputError(f"{place}: expected {len(COLUMNS)} fields")
    model = row["model"]
    if model not in NETWORKS:
        raise InputError(f"{place}: no network is known for {model!r}. Add it to benchmarks/latency/figures.py.")
    dtype, _, suffix = row["precision"].partition("+")
    if dtype not in ("fp16", "int8") or suffix not in ("", "AIPP"):
        raise InputError(f"{place}: precision {row['precision']!r}: expected fp16 or int8, with or without +AIPP")
    for part in row["images_per_second_by_batch"].split():
        try:
            batch, rate = part.split(":")
            numbers = int(row["image_size"]), int(batch), float(rate)
        except ValueError as error:
            raise InputError(f"{place}: {part!r}: expected batch:images per second, such as 8:511") from error
        aipp = suffix == "AIPP" or model in _WITH_AIPP
        image_size, images, images_per_second = numbers
        yield Figure(
            model, NETWORKS[model], image_size, dtype == "int8", aipp, f"Ascend{row['soc']}", images,
            images_per_second, row["source"],
        )  # fmt: skip
