"""NeoNeXt as MindSpore cells, from the operator to the whole network.

Paper: "NeoNeXt: Novel neural network operator and architecture based on the patch-wise matrix multiplications",
V. Korviakov and D. Koposov, arXiv:2403.11251: equations 1 and 2 define NeoCell, equation 5 its cost, section 3.7 its
initialization, Table 1 the sizes. Code of the authors: HapKoM/neonext (PyTorch, BSD-3-Clause, see NOTICE). This file
is under Apache-2.0.

Cells, parameters and shapes carry the official names, except for MindSpore's names of the normalization parameters
(`names.mindspore_name`). `factory` has the named models.

Maps stay NCHW throughout. The linear layers of a block are 1x1 convolutions here, because that is faster on MindSpore's
CPU backend than a transpose for `Dense`, and the deployment graph does the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from neonext_ms.common.errors import InputError
from neonext_ms.ops.cpu import operators
from neonext_ms.ops.init import neo_init
from neonext_ms.ops.neocell import neo_cell
from neonext_ms.ops.spec import NeoCellSpec

from .activations import GELU, HARDSWISH, LEAKY_SLOPE, LEAKYRELU, RELU
from .architecture import (
    BATCH_NORM_EPS,
    LAYER_NORM_EPS,
    MLP_RATIO,
    STAGES,
    STEM_STRIDE,
    Architecture,
    make_architecture,
)
from .initialization import initial_arrays
from .weights import load_arrays

# MindSpore's momentum is the share of the old statistics, PyTorch's (default 0.1) the share of the new.
BATCH_NORM_KEEP = 0.9


def _zeros(*shape: int, name: str | None = None) -> Parameter:
    # Values come from `initial_arrays` or a checkpoint once the whole network exists.
    return Parameter(Tensor(np.zeros(shape, np.float32)), name=name)


class NeoCell(nn.Cell):
    """The NeoCell operator with its matrices, `weight_a.i` and `weight_b.i` for every channel group i.

    Args:
        spec: geometry; `NeoCellSpec.resampling` makes one that enlarges or reduces a map.
        bias: None; "channel" for `bias`, one number per channel; or "patch" for `bias.i` of shape `(channels, h_out,
            w_out)`, which is added to every output patch (section 3.1). A bias starts at 0.
        rng: source of NeoInit's noise; None leaves all matrices zero for a caller who sets them.

    Raises:
        InputError: unknown `bias`.

    Example:
        >>> double = NeoCell(NeoCellSpec.resampling(64, 1, 2), bias="patch", rng=np.random.RandomState(0))
        >>> double(Tensor(np.zeros((1, 64, 7, 7), np.float32))).shape
        (1, 64, 14, 14)
    """

    def __init__(self, spec: NeoCellSpec, bias: str | None = None, rng: np.random.RandomState | None = None):
        super().__init__()
        if bias not in (None, "channel", "patch"):
            raise InputError(f"NeoCell: unknown bias (got {bias!r}, expected 'channel', 'patch' or None)")
        self.spec = spec
        self.weight_a = ParameterTuple([_zeros(*shape, name=f"weight_a.{i}") for i, shape in enumerate(spec.shapes_a)])
        self.weight_b = ParameterTuple([_zeros(*shape, name=f"weight_b.{i}") for i, shape in enumerate(spec.shapes_b)])
        self.bias = None
        if bias == "channel":
            self.bias = _zeros(spec.channels, name="bias")
        elif bias == "patch":
            shapes = enumerate(group.shape_bias for group in spec.groups)
            self.bias = ParameterTuple([_zeros(*shape, name=f"bias.{i}") for i, shape in shapes])
        if rng is not None:
            for weight in (*self.weight_a, *self.weight_b):
                weight.set_data(Tensor(neo_init(weight.shape, rng)))

    def construct(self, x):
        return neo_cell(x, self.weight_a, self.weight_b, self.spec, self.bias)


class Pointwise(nn.Cell):
    """A linear layer over the channels of an NCHW map; `weight` is `(outputs, inputs)` as in the official Linear."""

    def __init__(self, inputs: int, outputs: int, bias: bool):
        super().__init__()
        self.weight = _zeros(outputs, inputs)
        self.bias = _zeros(outputs) if bias else None
        self.conv = ops.Conv2D(outputs, 1)

    def construct(self, x):
        if operators.products_usable(x.dtype):
            return operators.pointwise(x, self.weight, self.bias)
        outputs, inputs = self.weight.shape
        y = self.conv(x, self.weight.reshape(outputs, inputs, 1, 1))
        if self.bias is not None:
            y = y + self.bias.reshape(1, -1, 1, 1)
        return y


class Conv1x1(nn.Cell):
    """A 1x1 convolution without bias; `weight` is `(outputs, inputs, 1, 1)`."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.weight = _zeros(outputs, inputs, 1, 1)
        self.conv = ops.Conv2D(outputs, 1)

    def construct(self, x):
        if operators.products_usable(x.dtype):
            outputs, inputs, _, _ = self.weight.shape
            return operators.pointwise(x, self.weight.reshape(outputs, inputs))
        return self.conv(x, self.weight)


class Gelu(nn.Cell):
    """GELU in its exact form, with erf."""

    def construct(self, x):
        if operators.usable(x.dtype):
            return operators.gelu(x)
        return ops.gelu(x, approximate="none")


class LeakyRelu(nn.LeakyReLU):
    """ReLU that multiplies negative numbers by `LEAKY_SLOPE`."""

    def __init__(self):
        super().__init__(LEAKY_SLOPE)


# Name of the activation -> its cell.
ACTIVATION_CELLS: dict[str, type[nn.Cell]] = {
    GELU: Gelu,
    RELU: nn.ReLU,
    LEAKYRELU: LeakyRelu,
    HARDSWISH: nn.HSwish,
}


# The result is used, as a compiled graph drops a call whose result is not.
@ops.constexpr
def _fitting_patch(patch, wanted, channels, height, width):
    """Return `patch` for a map that it divides: of the rest, the reshape would make more images, without a word."""
    # -1 is a size that is only known at run time.
    if wanted is not None and channels not in (wanted, -1):
        raise InputError(f"input: wrong number of channels (got {channels}, expected {wanted}). Convert images to RGB.")
    if any(side != -1 and side % patch for side in (height, width)):
        raise InputError(f"input {height}x{width}: both sides must be multiples of {patch}. Resize or crop it.")
    return patch


class Patchify(nn.Cell):
    """Space to depth: `(N, C, H, W)` to `(N, C * p * p, H / p, W / p)`, channels in the order (C, p, p).

    Args:
        patch: side of a patch, p.
        channels: number of channels to insist on, C; None for any.

    Raises:
        InputError: a side of the map is not a multiple of p, or it has another number of channels.
    """

    def __init__(self, patch: int, channels: int | None = None):
        super().__init__()
        self.patch = patch
        self.channels = channels

    def construct(self, x):
        # N may be dynamic, so the reshapes leave it open.
        _, c, h, w = x.shape
        p = _fitting_patch(self.patch, self.channels, c, h, w)
        x = x.reshape(-1, c, h // p, p, w // p, p).transpose(0, 1, 3, 5, 2, 4)
        return x.reshape(-1, c * p * p, h // p, w // p)


class LayerScale(nn.Cell):
    """A learned factor for every channel."""

    def __init__(self, channels: int):
        super().__init__()
        self.gamma = _zeros(channels)

    def construct(self, x):
        if operators.usable(x.dtype):
            return operators.layer_scale(x, self.gamma)
        return x * self.gamma.reshape(1, -1, 1, 1)


class DropPath(nn.Cell):
    """Stochastic depth: zeroes the branch of a sample with probability `rate` during training."""

    def __init__(self, rate: float):
        super().__init__()
        self.dropout = nn.Dropout(p=rate)

    def construct(self, x):
        return x * self.factors(x).reshape(-1, 1, 1, 1)

    def factors(self, x):
        """Return one number per sample, `(N,)`."""
        # Dropout scales the survivors, so the expected value stays the same.
        return self.dropout(ops.ones_like(x[:, 0, 0, 0]))


class _ExactBatchNorm(nn.Cell):
    """MindSpore's fused training BatchNorm with a backward pass that sums accurately.

    The CPU kernel of BatchNormGrad adds in float32 one by one. Its input gradient, whose sum should vanish, keeps a
    small constant part, and the gradients of all earlier layers inherit that: at 224 pixels the bias of an early
    BatchNorm is off by 3e-4. ReduceSum adds pairwise, the C++ kernel in float64.
    """

    def __init__(self):
        super().__init__()
        self.forward = ops.BatchNorm(is_training=True, epsilon=BATCH_NORM_EPS, momentum=1 - BATCH_NORM_KEEP)
        self.sum = ops.ReduceSum(keep_dims=True)
        self.epsilon = Tensor(np.full(1, BATCH_NORM_EPS, np.float32))

    def construct(self, x, gamma, beta, moving_mean, moving_variance):
        return self.forward(x, gamma, beta, moving_mean, moving_variance)[0]

    def bprop(self, x, gamma, beta, moving_mean, moving_variance, out, dout):
        # The moving statistics have no gradient, but MindSpore expects one for every input.
        zeros = ops.zeros_like(gamma)
        if operators.usable(x.dtype):
            return *operators.batch_norm_grad(x, dout, gamma, self.epsilon), zeros, zeros
        axes = (0, 2, 3)
        count = x.shape[0] * x.shape[2] * x.shape[3]
        centred = x - self.sum(x, axes) / count
        inverse = ops.rsqrt(self.sum(centred * centred, axes) / count + BATCH_NORM_EPS)
        normalized = centred * inverse
        dbeta = self.sum(dout, axes)
        dgamma = self.sum(dout * normalized, axes)
        dx = (dout - (dbeta + normalized * dgamma) / count) * (inverse * gamma.reshape(1, -1, 1, 1))
        return dx, dgamma.reshape(-1), dbeta.reshape(-1), zeros, zeros


class BatchNorm(nn.BatchNorm2d):
    """BatchNorm over `(N, H, W)`, with accurate gradients on the CPU, where those of MindSpore's kernel are not."""

    def __init__(self, channels: int):
        super().__init__(channels, eps=BATCH_NORM_EPS, momentum=BATCH_NORM_KEEP)
        self.exact = _ExactBatchNorm() if ms.get_context("device_target") == "CPU" else None

    def construct(self, x):
        if self.training and self.exact is not None:
            return self.exact(x, self.gamma, self.beta, self.moving_mean, self.moving_variance)
        return super().construct(x)


class _Content(nn.Cell):
    """The branch of a block: NeoCell, BatchNorm, linear layer, activation, linear layer, layer scale."""

    def __init__(self, spec: NeoCellSpec, channels: int, layer_scale: bool, linear_bias: bool, activation: str):
        super().__init__()
        self.neocell = NeoCell(spec)
        self.norm = BatchNorm(channels)
        self.fc_1 = Pointwise(channels, MLP_RATIO * channels, linear_bias)
        self.act = ACTIVATION_CELLS[activation]()
        self.activation_cell = ACTIVATION_CELLS[activation]
        self.fc_2 = Pointwise(MLP_RATIO * channels, channels, linear_bias)
        self.layer_scale = LayerScale(channels) if layer_scale else None
        # What the kernel of a whole block takes in place of parts that are missing.
        self.zeros = Tensor(np.zeros(channels, np.float32)), Tensor(np.zeros(MLP_RATIO * channels, np.float32))
        self.ones = Tensor(np.ones(channels, np.float32))
        kind = operators.ACTIVATION_KINDS[activation], LEAKY_SLOPE
        self.settings = Tensor(np.array([BATCH_NORM_EPS, BATCH_NORM_KEEP, *kind], np.float32))

    def construct(self, x):
        x = self.norm(self.neocell(x))
        x = self.fc_2(self.act(self.fc_1(x)))
        if self.layer_scale is not None:
            x = self.layer_scale(x)
        return x

    def fusable(self, dtype):
        """Return True if `fused` can compute the block: in training, as it was made, statistics of this card alone."""
        # Another activation may have taken the place of its own, and BatchNorm may be frozen.
        plain = isinstance(self.act, self.activation_cell) and isinstance(self.norm.exact, _ExactBatchNorm)
        return plain and self.training and self.norm.training and operators.products_usable(dtype)

    def fused(self, x, keep):
        """Return `x` plus the branch times `keep`, one number per sample or one for all."""
        bias_1 = self.zeros[1] if self.fc_1.bias is None else self.fc_1.bias
        bias_2 = self.zeros[0] if self.fc_2.bias is None else self.fc_2.bias
        scale = self.ones if self.layer_scale is None else self.layer_scale.gamma
        norm, cell = self.norm, self.neocell
        linear = norm.gamma, norm.beta, self.fc_1.weight, bias_1, self.fc_2.weight, bias_2, scale
        y, mean, variance = operators.block(
            x, cell.weight_a, cell.weight_b, cell.spec, linear, keep, norm.moving_mean, norm.moving_variance,
            self.settings,
        )  # fmt: skip
        ops.assign(norm.moving_mean, ops.stop_gradient(mean))
        ops.assign(norm.moving_variance, ops.stop_gradient(variance))
        return y


class _Residual(nn.Cell):
    """A residual connection around `content`, which is dropped at random during training."""

    def __init__(self, content: _Content, drop_path: float):
        super().__init__()
        self.content = content
        self.drop_path = DropPath(drop_path) if drop_path > 0 else None
        self.keep_all = Tensor(np.ones(1, np.float32))

    def construct(self, x):
        if self.content.fusable(x.dtype):
            keep = self.keep_all if self.drop_path is None else self.drop_path.factors(x)
            return self.content.fused(x, keep)
        y = self.content(x)
        if self.drop_path is not None:
            y = self.drop_path(y)
        return y + x


class NeoBottleneck(nn.Cell):
    """A block: `x + drop_path(layer_scale(fc_2(act(fc_1(norm(neocell(x)))))))`, `(N, C, H, W)` to the same."""

    def __init__(
        self, spec: NeoCellSpec, channels: int, layer_scale: bool, linear_bias: bool, drop_path: float,
        activation: str = GELU,
    ):  # fmt: skip
        super().__init__()
        # The official state dict has the levels `ops` and `content`; parameter names follow the attributes.
        self.ops = _Residual(_Content(spec, channels, layer_scale, linear_bias, activation), drop_path)

    def construct(self, x):
        return self.ops(x)


class Downsample(nn.Cell):
    """The transition between stages in the official order: 1x1 convolution, NeoCell (2 -> 1), BatchNorm."""

    def __init__(self, spec: NeoCellSpec, inputs: int, outputs: int):
        super().__init__()
        self.conv = Conv1x1(inputs, outputs)
        self.neocell = NeoCell(spec)
        self.norm_1 = BatchNorm(outputs)

    def construct(self, x):
        return self.norm_1(self.neocell(self.conv(x)))


class PaperDownsample(nn.Cell):
    """The transition in the order of the paper: NeoCell (2 -> 1), BatchNorm, GELU, 1x1 convolution, BatchNorm, GELU.

    Another activation takes the place of both GELUs.
    """

    def __init__(self, spec: NeoCellSpec, inputs: int, outputs: int, activation: str = GELU):
        super().__init__()
        self.neocell = NeoCell(spec)
        self.norm_1 = BatchNorm(inputs)
        self.act = ACTIVATION_CELLS[activation]()
        self.conv = Conv1x1(inputs, outputs)
        self.norm_2 = BatchNorm(outputs)

    def construct(self, x):
        x = self.act(self.norm_1(self.neocell(x)))
        return self.act(self.norm_2(self.conv(x)))


class Stem(nn.Cell):
    """Space to depth by 4, 1x1 convolution, BatchNorm: `(N, 3, H, W)` to `(N, C, H / 4, W / 4)`."""

    def __init__(self, channels: int):
        super().__init__()
        self.patchify = Patchify(STEM_STRIDE, 3)
        self.conv = Conv1x1(3 * STEM_STRIDE**2, channels)
        self.norm = BatchNorm(channels)

    def construct(self, x):
        return self.norm(self.conv(self.patchify(x)))


class Head(nn.Cell):
    """Mean over the map, LayerNorm, linear classifier: `(N, C, H, W)` to `(N, classes)`."""

    def __init__(self, channels: int, classes: int):
        super().__init__()
        self.ln = nn.LayerNorm((channels,), epsilon=LAYER_NORM_EPS)
        self.fc = nn.Dense(channels, classes)

    def construct(self, x):
        return self.fc(self.ln(x.mean((2, 3))))


class NeoNeXt(nn.Cell):
    """A NeoNeXt with the official keyword arguments.

    Args:
        num_classes: outputs of the classifier.
        per_stage_layers: blocks in each of the four stages, numbers or `"3,3,9,3"`.
        dims: channels in each stage.
        drop_path: largest drop-path rate, reached in the last block.
        conv_init: None (PyTorch's default), "xavier_uniform" or "kaiming_normal" for convolutions and linear layers.
        shifts: shift of NeoCell in each stage, 0 for none, numbers or `"1,1,1,0"`.
        layer_scale_init_value: initial layer scale, 0 for none.
        linear_bias: whether the linear layers of a block have a bias.
        kernel_spec: "default", a code such as "4+7" for all stages, or four codes.
        downsample: "official" or "paper", the order of layers between stages (see `Architecture`).
        activation: "gelu" (official), "relu", "leakyrelu" or "hardswish".
        features_only: whether to return the outputs of the four stages instead of logits; there is no head then.

    Inputs:
        x: Tensor `(N, 3, H, W)`, float32, H and W multiples of 4 and at least 32; N may be dynamic.

    Outputs:
        logits `(N, num_classes)`, or with `features_only` a tuple of four maps `(N, dims[i], H / 4 / 2^i, ...)`.

    Raises:
        InputError: an option is out of range; or, when called, the input has other than 3 channels or does not divide.

    The initial weights come from NumPy's global generator, which `mindspore.set_seed` seeds.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        per_stage_layers: str | Sequence[int] = (1, 1, 1, 1),
        dims: str | Sequence[int] = (96, 192, 384, 768),
        drop_path: float = 0.0,
        conv_init: str | None = None,
        shifts: str | Sequence[int] = (1, 1, 1, 0),
        layer_scale_init_value: float = 0,
        linear_bias: bool = False,
        kernel_spec: str | Sequence[str] = "default",
        downsample: str = "official",
        features_only: bool = False,
        activation: str = GELU,
    ):
        architecture = make_architecture(
            num_classes, per_stage_layers, dims, drop_path, shifts, layer_scale_init_value, linear_bias, kernel_spec,
            downsample, activation,
        )  # fmt: skip
        self._build(architecture, features_only)
        load_arrays(self, initial_arrays(architecture, conv_init or None))

    def _build(self, architecture: Architecture, features_only: bool) -> None:
        if architecture.shifts is None:
            raise InputError("NeoNeXt: the shifts of the stages are required, for example shifts=(1, 1, 1, 0)")
        super().__init__()
        self.architecture = architecture
        self.features_only = features_only
        a = architecture
        self.stem = Stem(a.dims[0])
        for stage, rates in enumerate(a.drop_path_rates()):
            blocks = [
                NeoBottleneck(a.stage_spec(stage), a.dims[stage], a.layer_scale, a.linear_bias, rate, a.activation)
                for rate in rates
            ]
            setattr(self, f"stage_{stage + 1}", nn.SequentialCell(blocks))
            if stage < STAGES - 1:
                sizes = a.downsample_spec(stage), a.dims[stage], a.dims[stage + 1]
                official = a.downsample == "official"
                cell = Downsample(*sizes) if official else PaperDownsample(*sizes, a.activation)
                setattr(self, f"downsample_{stage + 1}", cell)
        self.head: nn.Cell = None if features_only else Head(a.dims[3], a.num_classes)

    @classmethod
    def from_architecture(
        cls, architecture: Architecture, arrays: Mapping[str, np.ndarray] | None = None, features_only: bool = False
    ) -> NeoNeXt:
        """Build a network from an architecture and arrays under their official names (None for new weights)."""
        self = cls.__new__(cls)
        self._build(architecture, features_only)
        load_arrays(self, initial_arrays(architecture) if arrays is None else arrays)
        return self

    def construct(self, x):
        x_1 = self.stage_1(self.stem(x))
        x_2 = self.stage_2(self.downsample_1(x_1))
        x_3 = self.stage_3(self.downsample_2(x_2))
        x_4 = self.stage_4(self.downsample_3(x_3))
        if self.features_only:
            return x_1, x_2, x_3, x_4
        return self.head(x_4)
