"""A network with fake quantization: trained as its 8-bit file computes.

Every layer of the scales multiplies the whole numbers of its input, its weights and its bias, and their sum by its
step. In float32 such sums are exact below 2^24, so the integers are those of the file, except where a value lies so
close to the middle between two numbers that the rounding of the layers before decides.

The gradient goes straight through (R. Krishnamoorthi, "Quantizing deep convolutional networks for efficient inference",
arXiv 1806.08342, section 2.4): that of an input is 1 where its number is one of the 256, and 0 where it is clipped;
that of a weight or a bias is 1, since their steps follow them and clip nothing.

What is trained is what is exported, so the layers are those of the folded graph (`export.fold`): each multiplies with
the weights that BatchNorm, layer scale and the NeoCell (2 -> 1) of a downsampling are folded into. BatchNorm uses its
running statistics, which stay as they are; its scale and shift are trained. The parameters are those of the network
itself, so the checkpoint is an ordinary one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from mindspore import Tensor, nn, ops

from neonext_ms.common.cli import WEIGHT_BITS
from neonext_ms.common.errors import InputError
from neonext_ms.models.architecture import BATCH_NORM_EPS, STAGES
from neonext_ms.models.neonext import Downsample, NeoBottleneck, NeoNeXt, PaperDownsample, Patchify, Stem
from neonext_ms.models.quantizer import HIGHEST, LOWEST, MAX_BIAS, Quantizer, largest_weight, least_step
from neonext_ms.models.scales import LayerScale, Scales
from neonext_ms.ops.cpu import operators

# Returns the product of a layer by its name, number of outputs and side of its kernel.
_Products = Callable[..., nn.Cell]


class _Borrowing(nn.Cell):
    """A cell that uses cells of another network without renaming their parameters."""

    def __init__(self):
        super().__init__(auto_prefix=False)


class _Number(nn.Cell):
    """The 8-bit numbers of an input, counted from that of 0, with the gradient of `x / scale` inside their range."""

    def __init__(self, quantizer: Quantizer):
        super().__init__()
        self.scale = quantizer.scale
        self.low, self.high = float(LOWEST - quantizer.offset), float(HIGHEST - quantizer.offset)

    def construct(self, x):
        return ops.clamp(ops.round(x / self.scale), self.low, self.high)

    def bprop(self, x, out, dout):
        number = ops.round(x / self.scale)
        inside = ops.logical_and(number >= self.low, number <= self.high)
        return (dout * inside.astype(dout.dtype) / self.scale,)


class _Rounded(nn.Cell):
    """The nearest whole number of steps, with the gradient of `x / step` for a constant step.

    Args:
        pixels: neighbours in a row whose numbers have the sum of the values, rounded, as
            `export.quantize.apply.whole_numbers` makes them.
    """

    def __init__(self, pixels: int = 1):
        super().__init__()
        self.pixels = pixels
        places = np.arange(pixels)
        self.earlier = Tensor(places[None] < places[:, None])

    def construct(self, x, step):
        number = ops.round(x / step)
        if self.pixels == 1:
            return number
        rest = (x / step - number).reshape(x.shape[0], -1, self.pixels)
        missing = ops.round(rest.sum(2)).expand_dims(2)
        key = rest * ops.sign(missing)
        own, other = key.expand_dims(3), key.expand_dims(2)
        first = ops.logical_or(other > own, ops.logical_and(other == own, self.earlier))
        turned = (first.astype(x.dtype).sum(3) < ops.abs(missing)).astype(x.dtype)
        return number + (ops.sign(missing) * turned).reshape(x.shape)

    def bprop(self, x, step, out, dout):
        return dout / step, ops.zeros_like(step)


class _Product(nn.Cell):
    """A convolution of the folded graph, whose stride is the side of its kernel, in 8 bit or in floating point.

    Inputs:
        x: float32 `(N, I, H, W)`.
        weight: float32 `(O, I, ...)`, folded.
        bias: float32 `(O,)`, folded.

    Outputs:
        float32 `(N, O, H / side, W / side)`.
    """

    def __init__(self, scale: LayerScale | None, outputs: int, side: int = 1):
        super().__init__()
        self.outputs, self.side = outputs, side
        self.patches = Patchify(side) if side > 1 else None
        self.conv = ops.Conv2D(outputs, 1)
        self.number = _Number(scale.quantizer) if scale else None
        self.rounded, self.rounded_weight = _Rounded(), _Rounded(side * side)
        self.scale = scale.quantizer.scale if scale else 1.0
        self.least = least_step(scale.quantizer) if scale else 0.0
        self.largest = largest_weight(scale.weight_bits if scale else WEIGHT_BITS)
        self.factor = self.inverse = None
        if scale and any(scale.exponents):
            factor = np.exp2(np.array(scale.exponents, np.float32))
            self.factor, self.inverse = (Tensor(values.reshape(1, -1, 1, 1)) for values in (factor, 1 / factor))

    def construct(self, x, weight, bias):
        weight = weight.reshape(self.outputs, x.shape[1], -1, 1)
        if self.factor is not None:
            x, weight = x * self.inverse, weight * self.factor
        weight = weight.reshape(self.outputs, -1)
        if self.number is not None:
            x = self.number(x)
            step = self.steps(weight, bias)
            weight, bias = self.rounded_weight(weight, step.reshape(-1, 1)), self.rounded(bias, step * self.scale)
            return self.sums(x, weight, bias) * (step * self.scale).reshape(1, -1, 1, 1)
        return self.sums(x, weight, bias)

    def sums(self, x, weight, bias):
        """Return the products of patches and weights, `(O, I side side)`, with the bias added."""
        if self.patches is not None:
            height, width = x.shape[2] // self.side * self.side, x.shape[3] // self.side * self.side
            x = self.patches(x[:, :, :height, :width])
        if operators.products_usable(x.dtype):
            return operators.pointwise(x, weight, bias)
        return self.conv(x, weight.reshape(self.outputs, -1, 1, 1)) + bias.reshape(1, -1, 1, 1)

    def steps(self, weight, bias):
        """Return the step of the weights of each output, as `export.quantize.apply.weight_steps` does."""
        step = ops.maximum(ops.amax(ops.abs(weight), 1) / self.largest, ops.abs(bias) / (self.scale * MAX_BIAS))
        return ops.stop_gradient(ops.select(step > 0, ops.clamp(step, self.least), ops.ones_like(step)))


def _affine(norm):
    """Return BatchNorm with its running statistics as scale and shift."""
    scale = norm.gamma * ops.rsqrt(norm.moving_variance + BATCH_NORM_EPS)
    return scale, norm.beta - norm.moving_mean * scale


class _Stem(_Borrowing):
    def __init__(self, stem: Stem, products: _Products):
        super().__init__()
        self.conv, self.norm = stem.conv, stem.norm
        self.product = products("stem.conv", stem.conv.weight.shape[0], stem.patchify.patch)

    def construct(self, x):
        scale, shift = _affine(self.norm)
        return self.product(x, self.conv.weight * scale.reshape(-1, 1, 1, 1), shift)


class _Block(_Borrowing):
    def __init__(self, name: str, block: NeoBottleneck, products: _Products):
        super().__init__()
        content = block.ops.content
        self.neocell, self.norm, self.act, self.layer_scale = (
            content.neocell, content.norm, content.act, content.layer_scale,
        )  # fmt: skip
        self.fc_1, self.fc_2, self.drop_path = content.fc_1, content.fc_2, block.ops.drop_path
        self.product_1 = products(f"{name}.ops.content.fc_1", content.fc_1.weight.shape[0])
        self.product_2 = products(f"{name}.ops.content.fc_2", content.fc_2.weight.shape[0])

    def construct(self, x):
        scale, shift = _affine(self.norm)
        weight = self.fc_1.weight
        bias = (weight * shift).sum(1)
        if self.fc_1.bias is not None:
            bias = bias + self.fc_1.bias
        y = self.act(self.product_1(self.neocell(x), weight * scale, bias))
        weight = self.fc_2.weight
        bias = ops.zeros_like(weight[:, 0]) if self.fc_2.bias is None else self.fc_2.bias
        if self.layer_scale is not None:
            gamma = self.layer_scale.gamma
            weight, bias = weight * gamma.reshape(-1, 1), bias * gamma
        y = self.product_2(y, weight, bias)
        if self.drop_path is not None:
            y = self.drop_path(y)
        return y + x


class _Downsample(_Borrowing):
    def __init__(self, name: str, cell: Downsample, products: _Products):
        super().__init__()
        self.conv, self.neocell, self.norm = cell.conv, cell.neocell, cell.norm_1
        self.product = products(f"{name}.conv", cell.conv.weight.shape[0], 2)

    def construct(self, x):
        scale, shift = _affine(self.norm)
        # A NeoCell (2 -> 1) has one group, with A (C, 1, 2) and B (C, 2, 1).
        left, right = self.neocell.weight_a[0], self.neocell.weight_b[0]
        kernel = left.reshape(-1, 1, 2, 1) * right.reshape(-1, 1, 1, 2) * scale.reshape(-1, 1, 1, 1)
        return self.product(x, self.conv.weight * kernel, shift)


class _PaperDownsample(_Borrowing):
    def __init__(self, name: str, cell: PaperDownsample, products: _Products):
        super().__init__()
        self.neocell, self.norm_1, self.act = cell.neocell, cell.norm_1, cell.act
        self.conv, self.norm_2 = cell.conv, cell.norm_2
        self.product = products(f"{name}.conv", cell.conv.weight.shape[0])

    def construct(self, x):
        scale, shift = _affine(self.norm_1)
        x = self.act(self.neocell(x) * scale.reshape(1, -1, 1, 1) + shift.reshape(1, -1, 1, 1))
        scale, shift = _affine(self.norm_2)
        return self.act(self.product(x, self.conv.weight * scale.reshape(-1, 1, 1, 1), shift))


class _Head(_Borrowing):
    def __init__(self, head: nn.Cell, products: _Products):
        super().__init__()
        self.ln, self.fc = head.ln, head.fc
        self.product = products("head.fc", head.fc.weight.shape[0])

    def construct(self, x):
        x = self.ln(x.mean((2, 3)))
        y = self.product(x.reshape(*x.shape, 1, 1), self.fc.weight, self.fc.bias)
        return y.reshape(y.shape[:2])


class FakeQuantized(_Borrowing):
    """A network in 8 bit: the forward pass of its 8-bit file in float32, with gradients.

    Args:
        model: network with a head; its parameters are used, not copied, and keep their names. Its drop path and its
            activations must be those to train with.
        scales: scales of the layers in 8 bit, without bias correction (`Scales.without_correction`).

    Inputs:
        x: float32 `(N, 3, H, W)`.

    Outputs:
        logits, float32 `(N, classes)`.

    Raises:
        InputError: scales of another network, or with bias correction.
    """

    def __init__(self, model: NeoNeXt, scales: Scales):
        super().__init__()
        self.model = model
        shapes: dict[str, tuple[int, ...]] = {}
        parameters = dict(model.parameters_and_names())

        def products(name: str, outputs: int, side: int = 1) -> nn.Cell:
            parameter = parameters[f"{name}.weight"]
            inputs = parameter.shape[1] // side**2 if name == "stem.conv" else parameter.shape[1]
            shapes[name] = (outputs, inputs)
            return _Product(scales.layers.get(name), outputs, side)

        self.stem = _Stem(model.stem, products)
        self.stages = nn.CellList(auto_prefix=False)
        for stage in range(1, STAGES + 1):
            blocks = getattr(model, f"stage_{stage}")
            for i, block in enumerate(blocks):
                self.stages.append(_Block(f"stage_{stage}.{i}", block, products))
            if stage < STAGES:
                cell, name = getattr(model, f"downsample_{stage}"), f"downsample_{stage}"
                kind = _Downsample if isinstance(cell, Downsample) else _PaperDownsample
                self.stages.append(kind(name, cell, products))
        self.head = _Head(model.head, products)
        scales.check_network(shapes)
        if any(any(scale.correction) for scale in scales.layers.values()):
            raise InputError("fake quantization: scales with bias correction, which a network that is trained has not")

    def construct(self, x):
        x = self.stem(x)
        for cell in self.stages:
            x = cell(x)
        return self.head(x)
