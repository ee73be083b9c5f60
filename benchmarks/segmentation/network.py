"""A segmentation network: a NeoNeXt, and a decoder that doubles maps with NeoCells (1 -> 2) up to the input's size."""

from __future__ import annotations

from mindspore import nn

from neonext_ms.export.graph import LOGITS, DeployGraph, LayerList, original_graph
from neonext_ms.export.source import Size, Source
from neonext_ms.models.architecture import BATCH_NORM_EPS, STEM_STRIDE, Architecture
from neonext_ms.models.neonext import BatchNorm, Conv1x1, Gelu, NeoCell, NeoNeXt
from neonext_ms.models.weights import load_arrays
from neonext_ms.ops.spec import NeoCellSpec

from .shapes import check_size

# Stages that the decoder joins, from the smallest map but one to the largest.
_JOINED = (3, 2, 1)


class _Lateral(nn.Cell):
    """A 1x1 convolution to the width of the decoder, and BatchNorm."""

    def __init__(self, inputs: int, width: int):
        super().__init__()
        self.conv = Conv1x1(inputs, width)
        self.norm = BatchNorm(width)

    def construct(self, x):
        return self.norm(self.conv(x))


class _Up(nn.Cell):
    """A NeoCell that enlarges the map `factor` times, with a bias for each value of an output patch, and BatchNorm."""

    def __init__(self, width: int, factor: int):
        super().__init__()
        self.neocell = NeoCell(NeoCellSpec.resampling(width, 1, factor), bias="patch")
        self.norm = BatchNorm(width)

    def construct(self, x):
        return self.norm(self.neocell(x))


class Segmenter(nn.Cell):
    """The network.

    Args:
        architecture: the NeoNeXt; its number of classes is that of the pixels.
        width: channels of the decoder.

    Inputs:
        x: Tensor `(N, 3, H, W)`, float32, H and W multiples of 32.

    Outputs:
        logits `(N, classes, H, W)`.
    """

    def __init__(self, architecture: Architecture, width: int):
        super().__init__()
        self.encoder = NeoNeXt.from_architecture(architecture, features_only=True)
        self.lateral_4 = _Lateral(architecture.dims[3], width)
        for stage in _JOINED:
            setattr(self, f"lateral_{stage}", _Lateral(architecture.dims[stage - 1], width))
            setattr(self, f"up_{stage}", _Up(width, 2))
        self.up_0 = _Up(width, STEM_STRIDE)
        self.classifier = Conv1x1(width, architecture.num_classes)
        self.act = Gelu()

    def construct(self, x):
        x_1, x_2, x_3, x_4 = self.encoder(x)
        y = self.lateral_4(x_4)
        y = self.act(self.up_3(y) + self.lateral_3(x_3))
        y = self.act(self.up_2(y) + self.lateral_2(x_2))
        y = self.act(self.up_1(y) + self.lateral_1(x_1))
        return self.classifier(self.act(self.up_0(y)))


class _DecoderLayers(LayerList):
    def conv(self, name: str, output: str | None = None) -> str:
        return self.add("conv", name, ("weight",), output, groups=1)

    def lateral(self, name: str, source: str) -> str:
        self.value = source
        self.conv(f"{name}.conv")
        return self.batch_norm(f"{name}.norm")

    def up(self, name: str, width: int, factor: int) -> str:
        spec = NeoCellSpec.resampling(width, 1, factor)
        self.add("neocell", f"{name}.neocell", ("weight_a.0", "weight_b.0", "bias.0"), spec=spec)
        return self.batch_norm(f"{name}.norm")

    def batch_norm(self, name: str) -> str:
        keys = ("weight", "bias", "running_mean", "running_var")
        return self.add("batch_norm", name, keys, eps=BATCH_NORM_EPS)


class SegmenterSource(Source):
    """A trained `Segmenter` to export: `pipeline.export` takes it as it takes a classifier.

    The names of the arrays are official ones, those of the encoder behind `encoder.`.
    """

    @property
    def _width(self) -> int:
        return len(self.arrays["up_0.norm.weight"])

    def graph(self, size: Size, features_only: bool = False) -> DeployGraph:
        """Return the network node by node.

        Raises:
            InputError: a side of the image is not a multiple of 32.
        """
        check_size(size)
        prefix = "encoder."
        own = {name.removeprefix(prefix): a for name, a in self.arrays.items() if name.startswith(prefix)}
        encoder = original_graph(self.architecture, own, size, features_only=True)
        b = _DecoderLayers(self.arrays)
        b.layers = list(encoder.layers)
        value = b.lateral("lateral_4", "stage_4")
        for stage in _JOINED:
            side = b.lateral(f"lateral_{stage}", f"stage_{stage}")
            b.value = value
            b.sum(f"join_{stage}", b.up(f"up_{stage}", self._width, 2), side)
            value = b.add("gelu", f"act_{stage}")
        b.up("up_0", self._width, STEM_STRIDE)
        b.add("gelu", "act_0")
        b.conv("classifier", LOGITS)
        return DeployGraph(tuple(b.layers), size, (LOGITS,), "segmenter")

    def model(self, features_only: bool = False) -> nn.Cell:
        """Return the network in MindSpore."""
        model = Segmenter(self.architecture, self._width)
        load_arrays(model, self.arrays)
        return model
