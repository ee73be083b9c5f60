"""ConvNeXt as a MindSpore cell, trained by the step that trains NeoNeXt, so that the two can be compared.

Z. Liu et al., "A ConvNet for the 2020s", arXiv 2201.03545: a block is a depthwise 7x7 convolution, LayerNorm, a linear
layer to four times the channels, GELU, a linear layer back, a layer scale, and the residual connection. Parameters are
named as in NeoNeXt; `authors_arrays` gives them the names of the authors' code, which `folded.convnext` takes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from mindspore import Parameter, Tensor, nn

from neonext_ms.models.architecture import LAYER_NORM_EPS, MLP_RATIO, STAGES, STEM_STRIDE, Architecture
from neonext_ms.models.names import mindspore_name
from neonext_ms.models.neonext import BatchNorm, DropPath, Gelu, Head, LayerScale, Patchify, Pointwise

KERNEL = 7
_NORMS = {"layer_norm": ("weight", "bias"), "batch_norm": ("weight", "bias", "running_mean", "running_var")}


@dataclass(frozen=True)
class ConvNeXtArchitecture(Architecture):
    """The options of a ConvNeXt; those of NeoCells mean nothing here.

    Attributes:
        norm: "layer_norm", or "batch_norm" in its place everywhere but in the head.
    """

    norm: str = "layer_norm"

    def _tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        dims = self.dims
        yield from _linear("stem.conv", dims[0], 3 * STEM_STRIDE**2)
        yield from self._norm("stem.norm", dims[0])
        for stage, depth in enumerate(self.per_stage_layers):
            c = dims[stage]
            if stage:
                yield from self._norm(f"downsample_{stage}.norm", dims[stage - 1])
                yield from _linear(f"downsample_{stage}.conv", c, 4 * dims[stage - 1])
            for block in range(depth):
                prefix = f"stage_{stage + 1}.{block}"
                yield f"{prefix}.dwconv.weight", (c, 1, KERNEL, KERNEL)
                yield f"{prefix}.dwconv.bias", (c,)
                yield from self._norm(f"{prefix}.norm", c)
                yield from _linear(f"{prefix}.fc_1", MLP_RATIO * c, c)
                yield from _linear(f"{prefix}.fc_2", c, MLP_RATIO * c)
                if self.layer_scale:
                    yield f"{prefix}.layer_scale.gamma", (c,)
        yield "head.ln.weight", (dims[3],)
        yield "head.ln.bias", (dims[3],)
        yield from _linear("head.fc", self.num_classes, dims[3])

    def _norm(self, name: str, channels: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        for key in _NORMS[self.norm]:
            yield f"{name}.{key}", (channels,)


def _linear(name: str, outputs: int, inputs: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (outputs, inputs)
    yield f"{name}.bias", (outputs,)


def initial_arrays(architecture: ConvNeXtArchitecture, rng: np.random.RandomState) -> dict[str, np.ndarray]:
    """Make new weights by PyTorch's defaults, as those of NeoNeXt are outside its NeoCells.

    Weights and biases are uniform within `1 / sqrt(inputs)`, norms neutral.
    """
    arrays: dict[str, np.ndarray] = {}
    for name, shape in architecture.tensors().items():
        layer, _, leaf = name.rpartition(".")
        weight = arrays.get(f"{layer}.weight", np.ones(shape))
        if leaf == "gamma":
            array = np.full(shape, architecture.layer_scale_init_value)
        elif len(shape) > 1 or (leaf == "bias" and weight.ndim > 1):
            bound = 1 / math.sqrt(math.prod((shape if len(shape) > 1 else weight.shape)[1:]))
            array = rng.uniform(-bound, bound, shape)
        else:
            array = np.zeros(shape) if leaf in ("bias", "running_mean") else np.ones(shape)
        arrays[name] = array.astype(np.float32)
    return arrays


def authors_arrays(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return arrays under the names and in the shapes of the authors' code."""
    named = {}
    for name, array in arrays.items():
        part, _, rest = name.partition(".")
        place = int(part[-1]) if part[-1].isdigit() else 0
        for own, theirs in (("fc_1.", "pwconv1."), ("fc_2.", "pwconv2."), ("layer_scale.", "")):
            rest = rest.replace(own, theirs)
        if part.startswith("stage_"):
            name = f"stages.{place - 1}.{rest}"
        elif part == "head":
            name = rest.replace("ln.", "norm.").replace("fc.", "head.")
        else:
            # The convolution comes first in the stem, and the norm in a downsampling.
            first = "conv." if part == "stem" else "norm."
            name = f"downsample_layers.{place}.{int(not rest.startswith(first))}.{rest.partition('.')[2]}"
            if array.ndim == 2:
                patch = STEM_STRIDE if part == "stem" else 2
                array = array.reshape(len(array), -1, patch, patch)
        named[name] = array
    return named


class _LayerNorm(nn.LayerNorm):
    """LayerNorm over the channels of an NCHW map."""

    def __init__(self, channels: int):
        super().__init__((channels,), epsilon=LAYER_NORM_EPS)

    def construct(self, x):
        return super().construct(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


_NORM_CELLS: Mapping[str, type[nn.Cell]] = {"layer_norm": _LayerNorm, "batch_norm": BatchNorm}


class _Patches(nn.Cell):
    """A convolution whose stride is the size of its kernel, and a norm behind it or in front of it."""

    def __init__(self, inputs: int, outputs: int, patch: int, norm: str, norm_first: bool):
        super().__init__()
        self.norm_first = norm_first
        self.patchify = Patchify(patch)
        self.conv = Pointwise(inputs * patch**2, outputs, True)
        self.norm = _NORM_CELLS[norm](inputs if norm_first else outputs)

    def construct(self, x):
        if self.norm_first:
            return self.conv(self.patchify(self.norm(x)))
        return self.norm(self.conv(self.patchify(x)))


class _Block(nn.Cell):
    def __init__(self, channels: int, architecture: ConvNeXtArchitecture, drop_path: float):
        super().__init__()
        self.dwconv = nn.Conv2d(
            channels, channels, KERNEL, pad_mode="pad", padding=KERNEL // 2, group=channels, has_bias=True
        )
        self.norm = _NORM_CELLS[architecture.norm](channels)
        self.fc_1 = Pointwise(channels, MLP_RATIO * channels, True)
        self.act = Gelu()
        self.fc_2 = Pointwise(MLP_RATIO * channels, channels, True)
        self.layer_scale = LayerScale(channels) if architecture.layer_scale else None
        self.drop_path = DropPath(drop_path) if drop_path > 0 else None

    def construct(self, x):
        y = self.fc_2(self.act(self.fc_1(self.norm(self.dwconv(x)))))
        if self.layer_scale is not None:
            y = self.layer_scale(y)
        if self.drop_path is not None:
            y = self.drop_path(y)
        return x + y


class ConvNeXt(nn.Cell):
    """ConvNeXt.

    Args:
        architecture: options of the network.
        arrays: weights and statistics by name.

    Inputs:
        x: Tensor `(N, 3, H, W)`, float32, H and W multiples of 32.

    Outputs:
        logits `(N, classes)`.
    """

    def __init__(self, architecture: ConvNeXtArchitecture, arrays: Mapping[str, np.ndarray]):
        super().__init__()
        self.architecture = architecture
        dims, rates, norm = architecture.dims, architecture.drop_path_rates(), architecture.norm
        self.stem = _Patches(3, dims[0], STEM_STRIDE, norm, norm_first=False)
        for stage in range(STAGES):
            if stage:
                cell = _Patches(dims[stage - 1], dims[stage], 2, norm, norm_first=True)
                setattr(self, f"downsample_{stage}", cell)
            blocks = [_Block(dims[stage], architecture, rate) for rate in rates[stage]]
            setattr(self, f"stage_{stage + 1}", nn.SequentialCell(blocks))
        self.head = Head(dims[3], architecture.num_classes)
        parameters: dict[str, Parameter] = {p.name: p for p in self.get_parameters()}
        for name, array in arrays.items():
            parameters[mindspore_name(name) or name].set_data(Tensor(array))

    def construct(self, x):
        x = self.stage_1(self.stem(x))
        x = self.stage_2(self.downsample_1(x))
        x = self.stage_3(self.downsample_2(x))
        return self.head(self.stage_4(self.downsample_3(x)))
