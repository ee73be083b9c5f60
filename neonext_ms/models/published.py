"""Published accuracies on ImageNet-1k of NeoNeXt and of the networks it is compared with; none was measured here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Accuracy:
    """A published result of a network trained on ImageNet-1k alone.

    Attributes:
        family: family of networks.
        name: name in the publication.
        image_size: side of the image in pixels.
        parameters: learned numbers, in millions.
        multiply_adds: multiply-adds of one image in billions, or None if not published.
        top1: top-1 accuracy in percent.
        source: the publication.
    """

    family: str
    name: str
    image_size: int
    parameters: float
    multiply_adds: float | None
    top1: float
    source: str


_NEONEXT = "README of HapKoM/neonext"
_CONVNEXT = "README of facebookresearch/ConvNeXt"
_DEIT = "README of facebookresearch/deit; parameters and multiply-adds: timm"

ACCURACIES = (
    Accuracy("NeoNeXt", "NeoNeXt-T", 224, 27.5, 4.4, 81.44, _NEONEXT),
    Accuracy("NeoNeXt", "NeoNeXt-S", 224, 49.3, 8.6, 82.58, _NEONEXT),
    Accuracy("NeoNeXt", "NeoNeXt-B", 224, 86.8, 15.2, 83.09, _NEONEXT),
    Accuracy("NeoNeXt", "NeoNeXt-T", 384, 27.5, 13.3, 82.00, _NEONEXT),
    Accuracy("NeoNeXt", "NeoNeXt-S", 384, 49.3, 25.7, 82.94, _NEONEXT),
    Accuracy("NeoNeXt", "NeoNeXt-B", 384, 86.8, 45.2, 83.26, _NEONEXT),
    Accuracy("NeoNeXt", "NeoNeXt-L", 384, 193.5, None, 83.68, _NEONEXT),
    Accuracy("ConvNeXt", "ConvNeXt-T", 224, 28, 4.5, 82.1, _CONVNEXT),
    Accuracy("ConvNeXt", "ConvNeXt-S", 224, 50, 8.7, 83.1, _CONVNEXT),
    Accuracy("ConvNeXt", "ConvNeXt-B", 224, 89, 15.4, 83.8, _CONVNEXT),
    Accuracy("ConvNeXt", "ConvNeXt-L", 224, 198, 34.4, 84.3, _CONVNEXT),
    Accuracy("ConvNeXt", "ConvNeXt-B", 384, 89, 45.0, 85.1, _CONVNEXT),
    Accuracy("ConvNeXt", "ConvNeXt-L", 384, 198, 101.0, 85.5, _CONVNEXT),
    Accuracy("DeiT", "DeiT-tiny", 224, 5.7, 1.3, 72.2, _DEIT),
    Accuracy("DeiT", "DeiT-small", 224, 22.1, 4.6, 79.9, _DEIT),
    Accuracy("DeiT", "DeiT-base", 224, 86.6, 17.6, 81.8, _DEIT),
    Accuracy("DeiT", "DeiT-base", 384, 86.9, 55.5, 82.9, _DEIT),
)


def accuracy_lines() -> Iterator[str]:
    """Yield `ACCURACIES` as the lines of a table."""
    for row in ACCURACIES:
        counts = "" if row.multiply_adds is None else f"{row.multiply_adds:6.1f} G multiply-adds"
        yield (
            f"{row.name:11} {row.image_size}  {row.parameters:6.1f} M parameters  {counts:22}  {row.top1:.2f} %  "
            f"{row.source}"
        )
