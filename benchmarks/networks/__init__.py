"""Networks to compare with, as ONNX graphs with seeded random weights: what they cost, not what they recognise.

`build` gives a network as a PyTorch user's export has it ("plain"). Their published counts are in `NETWORKS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...errors import InputError, UsageError, nearest

if TYPE_CHECKING:
    import onnx

    from .builder import GraphBuilder

FORMS = ("plain",)


@dataclass(frozen=True)
class Network:
    """A published network.

    Attributes:
        recipe: gives the function that adds its nodes to a `GraphBuilder`.
        parameters: learned numbers, as published.
        multiply_adds: for one image of 224x224 in units of 10^9, as published.
        source: where these two counts are from.
    """

    recipe: Callable[[], Callable[[GraphBuilder], str]]
    parameters: int
    multiply_adds: float
    source: str


def _convolutional(name: str, *args) -> Callable:
    def load():
        from . import convolutional

        recipe = getattr(convolutional, name)
        return recipe(*args) if args else recipe

    return load


def _transformer(name: str, *args) -> Callable:
    def load():
        from . import transformers

        return getattr(transformers, name)(*args)

    return load


_TORCHVISION = "torchvision, weights' metadata"
_TIMM = "timm, results of its model zoo"
_T, _S, _B = (
    ((3, 3, 9, 3), (96, 192, 384, 768)),
    ((3, 3, 27, 3), (96, 192, 384, 768)),
    ((3, 3, 27, 3), (128, 256, 512, 1024)),
)
NETWORKS: dict[str, Network] = {
    "convnext_t": Network(_transformer("convnext", *_T), 28_589_128, 4.456, _TORCHVISION),
    "convnext_s": Network(_transformer("convnext", *_S), 50_223_688, 8.684, _TORCHVISION),
    "convnext_b": Network(_transformer("convnext", *_B), 88_591_464, 15.355, _TORCHVISION),
    "convnextv2_t": Network(_transformer("convnext", *_T, 2), 28_635_496, 4.47, _TIMM),
    "convnextv2_b": Network(_transformer("convnext", *_B, 2), 88_717_800, 15.38, _TIMM),
    "resnet18": Network(_convolutional("resnet", (2, 2, 2, 2), False), 11_689_512, 1.814, _TORCHVISION),
    "resnet34": Network(_convolutional("resnet", (3, 4, 6, 3), False), 21_797_672, 3.664, _TORCHVISION),
    "resnet50": Network(_convolutional("resnet", (3, 4, 6, 3), True), 25_557_032, 4.089, _TORCHVISION),
    "resnet101": Network(_convolutional("resnet", (3, 4, 23, 3), True), 44_549_160, 7.801, _TORCHVISION),
    "mobilenet_v1": Network(_convolutional("mobilenet_v1"), 4_231_976, 0.569, "arXiv 1704.04861, table 8"),
    "vit_b_16": Network(_transformer("vit", 768, 12, 12, 16), 86_567_656, 17.564, _TORCHVISION),
    "convmixer_1536_20": Network(_transformer("convmixer", 1536, 20, 9, 7), 51_625_960, 48.68, _TIMM),
    "regnetx_1_6gf": Network(
        _convolutional("regnet_x", (72, 168, 408, 912), (2, 4, 10, 2), 24), 9_190_136, 1.603, _TORCHVISION
    ),
    "densenet121": Network(_convolutional("densenet121"), 7_978_856, 2.834, _TORCHVISION),
    "squeezenet1_1": Network(_convolutional("squeezenet1_1"), 1_235_496, 0.349, _TORCHVISION),
    "googlenet": Network(_convolutional("googlenet"), 6_624_904, 1.498, _TORCHVISION),
}


def names(form: str = "plain") -> list[str]:
    """Names of the networks that exist in a form.

    Raises:
        UsageError: an unknown form.
    """
    _check_form(form)
    return list(NETWORKS)


def assemble(
    name: str, batch: int | None = 1, image_size: tuple[int, int] = (224, 224), seed: int | None = 0
) -> GraphBuilder:
    """The plain form of a network, before it is a model; arguments as for `build`."""
    from .builder import GraphBuilder

    if name not in NETWORKS:
        raise InputError(f"unknown network {name!r}{nearest(name, NETWORKS)}; known: {', '.join(NETWORKS)}")
    if batch is not None and batch < 1:
        raise InputError(f"{name}: a batch has at least 1 image, got {batch}")
    height, width = image_size
    if height < 1 or width < 1:
        raise InputError(f"{name}: image size {height}x{width}: expected at least 1x1, such as 224x224")
    graph = GraphBuilder(name, batch, (height, width), seed)
    NETWORKS[name].recipe()(graph)
    return graph


def build(
    name: str,
    *,
    batch: int | None = 1,
    image_size: tuple[int, int] = (224, 224),
    form: str = "plain",
    seed: int | None = 0,
) -> onnx.ModelProto:
    """A network as ONNX.

    Args:
        name: one of `names()`.
        batch: fixed batch size, or None for a dynamic one (named `batch`).
        image_size: height and width in pixels.
        form: "plain" is the graph that PyTorch's exporter gives.
        seed: of the random weights; None leaves their values out and keeps names and shapes, for who only counts.

    Returns:
        a model with input `input` (batch, 3, H, W) and output `logits` (batch, 1000), float32.

    Raises:
        InputError: an unknown network, or an image that it cannot take.
        UsageError: an unknown form.
    """
    _check_form(form)
    return assemble(name, batch, image_size, seed).model()


def _check_form(form: str) -> None:
    if form not in FORMS:
        raise UsageError(f"unknown form {form!r} of a network; expected {' or '.join(FORMS)}")
