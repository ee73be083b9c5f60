"""Networks to compare with, as ONNX graphs with seeded random weights: for their cost, not for their accuracy.

`build` gives a network in one of two forms: "plain" is the graph that a PyTorch user exports, and "folded" the
deployment form that this package gives NeoNeXt, with the same weights. `NETWORKS` holds the published counts.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from neonext_ms.common.errors import InputError, UsageError, nearest
from neonext_ms.common.files import atomic
from neonext_ms.common.text import format_size

if TYPE_CHECKING:
    import onnx

    from neonext_ms.export.graph import DeployGraph
    from neonext_ms.export.onnx.format import Format

    from .builder import GraphBuilder

FORMS = ("plain", "folded")
TARGETS = ("onnx", "cann")
_FOLDED = ("convnext", "resnet")  # families that have a folded form
# Modules that define the families which are not in `convolutional`.
_MODULES = {
    **dict.fromkeys(("convnext", "convnext_v2", "convmixer", "vit", "swin"), "transformers"),
    **dict.fromkeys(
        ("mobilenet_v1", "mobilenet_v2", "mobilenet_v3_large", "mnasnet1_0", "efficientnet_b0", "shufflenet_v2"),
        "mobile",
    ),
}


@dataclass(frozen=True)
class Network:
    """A published network.

    Attributes:
        family: name of the function that builds the plain form.
        options: arguments of that function, which distinguish the networks of a family.
        parameters: learned numbers; published as such or rounded.
        multiply_adds: multiply-adds for one image in units of 10^9, rounded as published.
        source: source of these two counts.
        image_size: image size that the count is for.
    """

    family: str
    options: tuple
    parameters: int
    multiply_adds: float
    source: str
    image_size: tuple[int, int] = (224, 224)

    @property
    def forms(self) -> tuple[str, ...]:
        """Forms that exist of the network."""
        return FORMS if self.family in _FOLDED else FORMS[:1]

    def add_to(self, graph: GraphBuilder) -> None:
        """Add the nodes of the plain form to a graph."""
        module = import_module(f".{_MODULES.get(self.family, 'convolutional')}", __name__)
        getattr(module, self.family)(graph, *self.options)


# `num_params` and `_ops` in torchvision/models/*.py; the cards of timm's models on Hugging Face; elsewhere, parameters
# are published in millions.
_TORCHVISION, _TIMM = "torchvision, metadata of the weights", "timm, model card"
_V2 = "facebookresearch/ConvNeXt-V2, README (28.6 M, 89 M)"
_T = ((3, 3, 9, 3), (96, 192, 384, 768))
_S = ((3, 3, 27, 3), (96, 192, 384, 768))
_B = ((3, 3, 27, 3), (128, 256, 512, 1024))
NETWORKS: dict[str, Network] = {
    "convnext_t": Network("convnext", _T, 28_589_128, 4.456, _TORCHVISION),
    "convnext_s": Network("convnext", _S, 50_223_688, 8.684, _TORCHVISION),
    "convnext_b": Network("convnext", _B, 88_591_464, 15.355, _TORCHVISION),
    "convnextv2_t": Network("convnext_v2", _T, 28_635_496, 4.47, _V2),
    "convnextv2_b": Network("convnext_v2", _B, 88_717_800, 15.4, _V2),
    "resnet18": Network("resnet", ((2, 2, 2, 2), False), 11_689_512, 1.814, _TORCHVISION),
    "resnet34": Network("resnet", ((3, 4, 6, 3), False), 21_797_672, 3.664, _TORCHVISION),
    "resnet50": Network("resnet", ((3, 4, 6, 3), True), 25_557_032, 4.089, _TORCHVISION),
    "resnet101": Network("resnet", ((3, 4, 23, 3), True), 44_549_160, 7.801, _TORCHVISION),
    "resnet152": Network("resnet", ((3, 8, 36, 3), True), 60_192_808, 11.514, _TORCHVISION),
    "wide_resnet50_2": Network("resnet", ((3, 4, 6, 3), True, 1, 128), 68_883_240, 11.398, _TORCHVISION),
    "resnext50_32x4d": Network("resnet", ((3, 4, 6, 3), True, 32, 4), 25_028_904, 4.23, _TORCHVISION),
    "resnext101_32x8d": Network("resnet", ((3, 4, 23, 3), True, 32, 8), 88_791_336, 16.414, _TORCHVISION),
    "seresnet50": Network("seresnet", ((3, 4, 6, 3),), 28_088_024, 4.1, _TIMM),
    "mobilenet_v1": Network("mobilenet_v1", (), 4_231_976, 0.569, "arXiv 1704.04861, table 4 (4.2 M, 569 M)"),
    "mobilenet_v2": Network("mobilenet_v2", (), 3_504_872, 0.301, _TORCHVISION),
    "mobilenet_v3_large": Network("mobilenet_v3_large", (), 5_483_032, 0.217, _TORCHVISION),
    "mnasnet1_0": Network("mnasnet1_0", (), 4_383_312, 0.314, _TORCHVISION),
    "efficientnet_b0": Network("efficientnet_b0", (), 5_288_548, 0.386, _TORCHVISION),
    "shufflenet_v2_x1_0": Network("shufflenet_v2", ((24, 116, 232, 464, 1024),), 2_278_604, 0.145, _TORCHVISION),
    "vit_b_16": Network("vit", (768, 12, 12, 16), 86_567_656, 17.564, _TORCHVISION),
    "vit_b_32": Network("vit", (768, 12, 12, 32), 88_224_232, 4.409, _TORCHVISION),
    "vit_b_8": Network("vit", (768, 12, 12, 8), 86_576_872, 78.22, _TIMM),
    "vit_s_16": Network("vit", (384, 12, 6, 16), 22_050_664, 4.6, "arXiv 2012.12877, table 1 (22 M)"),
    "swin_t": Network("swin", (96, (2, 2, 6, 2), (3, 6, 12, 24), 7), 28_288_354, 4.491, _TORCHVISION),
    # timm's counter sees no convolution with padding="same", and counts BatchNorm: 51.10 with the depthwise ones.
    "convmixer_1536_20": Network("convmixer", (1536, 20, 9, 7), 51_625_960, 48.68, _TIMM),
    "regnetx_1_6gf": Network("regnet_x", ((72, 168, 408, 912), (2, 4, 10, 2), 24), 9_190_136, 1.603, _TORCHVISION),
    "densenet121": Network("densenet121", (), 7_978_856, 2.834, _TORCHVISION),
    "squeezenet1_1": Network("squeezenet1_1", (), 1_235_496, 0.349, _TORCHVISION),
    "vgg16": Network("vgg", ((2, 2, 3, 3, 3),), 138_357_544, 15.47, _TORCHVISION),
    "vgg19": Network("vgg", ((2, 2, 4, 4, 4),), 143_667_240, 19.632, _TORCHVISION),
    "alexnet": Network("alexnet", (), 61_100_840, 0.714, _TORCHVISION),
    # Without the auxiliary classifier, which no export has.
    "inception_v3": Network("inception_v3", (), 23_834_568, 5.713, _TORCHVISION, image_size=(299, 299)),
    "googlenet": Network("googlenet", (), 6_624_904, 1.498, _TORCHVISION),
}


def names(form: str = "plain") -> list[str]:
    """Return the names of the networks that exist in a form.

    Raises:
        UsageError: an unknown form.
    """
    _check(form, FORMS, "form")
    return [name for name, network in NETWORKS.items() if form in network.forms]


def assemble(
    name: str, batch: int | None = 1, image_size: tuple[int, int] = (224, 224), seed: int | None = 0, keep: bool = False
) -> GraphBuilder:
    """Return the plain form of a network as a graph builder, before it is a model.

    Args:
        name, batch, image_size, seed: as for `build`.
        keep: keep the weights under PyTorch's names, in `weights.arrays`.
    """
    from .builder import GraphBuilder

    if name not in NETWORKS:
        raise UsageError(f"network {name!r}: unknown{nearest(name, NETWORKS)} (expected {', '.join(NETWORKS)})")
    if batch is not None and batch < 1:
        raise InputError(f"{name}: wrong batch (got {batch}, expected at least 1 image)")
    if min(image_size) < 1:
        raise InputError(f"{name}: wrong image size (got {format_size(image_size)}, expected one such as 224x224)")
    graph = GraphBuilder(name, batch, image_size, seed, keep)
    NETWORKS[name].add_to(graph)
    return graph


def deploy_graph(
    name: str, *, image_size: tuple[int, int] = (224, 224), seed: int = 0, folded: bool = True
) -> DeployGraph:
    """Return a network as a `DeployGraph`, with the weights of its plain form.

    Args:
        name: one of `names("folded")`.
        image_size: height and width in pixels.
        seed: random seed of the weights.
        folded: return the deployment form instead of the network node by node.

    Raises:
        UsageError: an unknown network.
        InputError: an image size that it does not support.
        UsageError: the network has no folded form.
    """
    from . import folded as forms

    arrays = assemble(name, 1, image_size, seed, keep=True).weights.arrays
    network = NETWORKS[name]
    if "folded" not in network.forms:
        raise UsageError(f"{name} has no folded form; these networks have one: {', '.join(names('folded'))}")
    graph = getattr(forms, network.family)(name, arrays, image_size, *network.options)
    return forms.fold(graph) if folded else graph


def build(
    name: str,
    *,
    batch: int | None = 1,
    image_size: tuple[int, int] = (224, 224),
    form: str = "plain",
    seed: int | None = 0,
    target: str = "onnx",
    format: Format | None = None,
) -> onnx.ModelProto:
    """Return a network as ONNX.

    Args:
        name: one of `names(form)`.
        batch: fixed batch size, or None for a dynamic one (named `batch`).
        image_size: height and width in pixels.
        form: "plain" is the graph that PyTorch's exporter gives, "folded" the deployment form.
        seed: random seed of the weights; None writes a plain form without their values, for counts.
        target: "onnx" for onnxruntime, "cann" for ATC (`export.onnx.format.CANN`); the plain form is the same for both.
        format: format of the folded form (default: the target's).

    Returns:
        a model with input `input` (batch, 3, H, W) and output `logits` (batch, 1000), float32.

    Raises:
        UsageError: an unknown network.
        InputError: an image size that it does not support.
        UsageError: an unknown form or target, or a network that does not have the form.
    """
    from neonext_ms.export.onnx import emitter

    if _is_plain(form, target):
        return assemble(name, batch, image_size, seed).model()
    graph, format = _lowered(name, batch, image_size, seed, target, format)
    return emitter.emit(graph, batch, format=format)


def write(
    name: str,
    path: str | os.PathLike,
    *,
    target: str = "onnx",
    batch: int | None = 1,
    image_size: tuple[int, int] = (224, 224),
    form: str = "folded",
    seed: int = 0,
) -> Path:
    """Write a network as an ONNX file, atomically; the other arguments are those of `build`.

    Args:
        path: path of the file.

    Returns:
        the path.

    Raises:
        InputError: as `build`, or the file cannot be written.
        UsageError: as `build`.
    """
    from neonext_ms.export.onnx import emitter
    from neonext_ms.export.onnx.save import write_model

    if _is_plain(form, target):
        model = assemble(name, batch, image_size, seed).model()
        with atomic(path) as staged:
            write_model(model, staged)
    else:
        graph, format = _lowered(name, batch, image_size, seed, target)
        with atomic(path) as staged:
            emitter.save(graph, staged, batch, format)
    return Path(path)


def _lowered(
    name: str,
    batch: int | None,
    image_size: tuple[int, int],
    seed: int | None,
    target: str,
    format: Format | None = None,
) -> tuple[DeployGraph, Format]:
    from neonext_ms.export.lower import lower
    from neonext_ms.export.onnx.format import CANN, Format

    if batch is not None and batch < 1:
        raise InputError(f"{name}: wrong batch (got {batch}, expected at least 1 image)")
    if seed is None:
        raise UsageError(f"{name}: the folded form is computed from its weights. Give a seed.")
    format = format or (CANN if target == "cann" else Format())
    return lower(deploy_graph(name, image_size=image_size, seed=seed), format), format


def _is_plain(form: str, target: str) -> bool:
    _check(form, FORMS, "form")
    _check(target, TARGETS, "target")
    return form == "plain"


def _check(value: str, known: tuple[str, ...], what: str) -> None:
    if value not in known:
        raise UsageError(f"{what} {value!r} of a network: unknown (expected {' or '.join(known)})")
