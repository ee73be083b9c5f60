"""Fold rules: each takes a `DeployGraph` and returns an equal one with fewer or cheaper layers.

Every rule is exact in real arithmetic; it computes in float64 and stores float32. No rule changes its argument or
the arrays in it. `fold` applies them in order. What each rule rests on is derived in docs/folding.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from neonext_ms.common.errors import InputError

from .graph import INPUT, NCHW, NHWC, DeployGraph, Layer

Rule = Callable[[DeployGraph], DeployGraph]
# 16 float16 numbers are the 32 bytes that the cube unit's tiles and the vector unit's copies come in.
ALIGNMENT = 16
# CANN's AvgPool takes windows below 256 and strides up to 63.
_LARGEST_WINDOW, _LARGEST_STRIDE = 255, 63


@dataclass(frozen=True)
class Folded:
    """What folding did: layers by kind before and after."""

    before: Mapping[str, int]
    after: Mapping[str, int]

    def gone(self, op: str) -> int:
        """Layers of a kind that are no longer there."""
        return self.before.get(op, 0) - self.after.get(op, 0)

    def to_dict(self) -> dict[str, int]:
        """Plain values for JSON."""
        return {
            "batch_norms": self.gone("batch_norm"),
            "layer_scales": self.gone("scale"),
            "neocells": self.gone("neocell"),
            "transposes": self.gone("transpose"),
            "layers_before": sum(self.before.values()),
            "layers_after": sum(self.after.values()),
        }


def channels_first(graph: DeployGraph) -> DeployGraph:
    """Linear layers between a transpose to NHWC and one back become 1x1 convolutions in NCHW."""
    consumers = graph.consumers()
    changes = []
    for start in graph.layers:
        if start.op != "transpose" or start.attributes["order"] != NHWC:
            continue
        run = [start]
        while (
            run[-1].output not in graph.outputs
            and len(readers := consumers.get(run[-1].output, [])) == 1
            and readers[0].op in ("layer_norm", "linear", "gelu", "scale", "transpose")
        ):
            run.append(readers[0])
            if run[-1].op == "transpose":
                break
        if len(run) > 2 and run[-1].op == "transpose" and run[-1].attributes["order"] == NCHW:
            inside = [_in_nchw(layer) for layer in run[1:-1]]
            inside[0] = replace(inside[0], inputs=start.inputs)
            inside[-1] = replace(inside[-1], output=run[-1].output)
            changes.append((run, inside))
    return graph.replaced(changes)


def channels_last(graph: DeployGraph) -> DeployGraph:
    """Pairs of 1x1 convolutions with a GELU between them become linear layers over NHWC: the way back.

    Not among `RULES`; `int8` needs it.
    """
    changes = []
    for first, gelu, second in graph.chains("conv", "gelu", "conv"):
        if not (_pointwise(first) and _pointwise(second)):
            continue
        entry, end = f"{first.name}.nhwc", f"{second.name}.nhwc"
        there = Layer("transpose", entry, first.inputs, entry, {}, {"order": NHWC})
        back = Layer("transpose", f"{second.name}.nchw", (end,), second.output, {}, {"order": NCHW})
        inside = [replace(_in_nhwc(first), inputs=(entry,)), gelu, replace(_in_nhwc(second), output=end)]
        changes.append(([first, gelu, second], [there, *inside, back]))
    return graph.replaced(changes)


def _in_nhwc(conv: Layer) -> Layer:
    arrays = {**conv.arrays, "weight": conv.arrays["weight"][:, :, 0, 0]}
    return replace(conv, op="linear", arrays=arrays, attributes={})


def _in_nchw(layer: Layer) -> Layer:
    if layer.op == "linear":
        arrays = {**layer.arrays, "weight": layer.arrays["weight"][:, :, None, None]}
        return replace(layer, op="conv", arrays=arrays, attributes={"groups": 1})
    if layer.op in ("scale", "layer_norm"):
        return replace(layer, attributes={**layer.attributes, "axis": 1})
    return layer


def _pointwise(conv: Layer) -> bool:
    """Whether a convolution is a linear layer on every pixel."""
    plain = not {"stride", "padding", "pads"} & set(conv.attributes)
    return plain and conv.attributes["groups"] == 1 and conv.arrays["weight"].shape[2:] == (1, 1)


def merge_stem(graph: DeployGraph) -> DeployGraph:
    """Space to depth and a 1x1 convolution become one convolution with kernel and stride of the block's size."""
    changes = []
    for depth, conv in graph.chains("space_to_depth", "conv"):
        p, weight = depth.attributes["block"], conv.arrays["weight"]
        if not _pointwise(conv):
            continue
        whole = weight.reshape(weight.shape[0], -1, p, p)
        changes.append(([depth, conv], [replace(conv, inputs=depth.inputs, arrays={**conv.arrays, "weight": whole})]))
    return graph.replaced(changes)


def merge_downsample(graph: DeployGraph) -> DeployGraph:
    """A 1x1 convolution without bias and a NeoCell (k -> 1) become one k x k convolution with stride k.

    `W[o, i, y, x] = L_o[y] R_o[x] w[o, i]`: as many multiply-adds as the 1x1 convolution alone.
    """
    changes = []
    for conv, cell in graph.chains("conv", "neocell"):
        kernel = _reduction(cell)
        # A bias of the convolution would be scaled by the sum of the kernel; the official model has none.
        if kernel is None or "bias" in conv.arrays or not _pointwise(conv):
            continue
        arrays = {"weight": _times(conv.arrays["weight"], kernel[:, None])}
        if "bias" in cell.arrays:
            arrays["bias"] = cell.arrays["bias"]
        changes.append(([conv, cell], [replace(conv, output=cell.output, arrays=arrays)]))
    return graph.replaced(changes)


def reduction_to_depthwise(graph: DeployGraph) -> DeployGraph:
    """A NeoCell (k -> 1) becomes a depthwise k x k convolution with stride k: one node for two products and a bias."""
    changes = []
    for (cell,) in graph.chains("neocell"):
        kernel = _reduction(cell)
        if kernel is None:
            continue
        arrays = {"weight": _float32(kernel[:, None])}
        if "bias" in cell.arrays:
            arrays["bias"] = cell.arrays["bias"]
        changes.append(([cell], [replace(cell, op="conv", arrays=arrays, attributes={"groups": len(kernel)})]))
    return graph.replaced(changes)


def _reduction(cell: Layer) -> np.ndarray | None:
    """The kernel `(channels, h_in, w_in)` in float64 of a NeoCell that makes one pixel of each patch, or None."""
    groups = cell.attributes["spec"].groups
    sizes = {(g.h_in, g.h_out, g.w_in, g.w_out) for g in groups}
    if len(sizes) != 1 or next(iter(sizes))[1::2] != (1, 1):
        return None
    left, right = (
        np.concatenate([cell.arrays[f"weight_{side}.{i}"] for i in range(len(groups))]).astype(np.float64)
        for side in "ab"
    )
    return left[:, 0, :, None] * right[:, None, :, 0]


def batch_norm_into_conv(graph: DeployGraph) -> DeployGraph:
    """BatchNorm after a convolution: its scale into the weights, its shift into the bias."""
    changes = []
    for conv, norm in graph.chains("conv", "batch_norm"):
        scale, shift = _affine(norm)
        arrays = {
            "weight": _times(conv.arrays["weight"], scale[:, None, None, None]),
            "bias": _float32(conv.arrays.get("bias", np.float32(0)) * scale + shift),
        }
        changes.append(([conv, norm], [replace(conv, output=norm.output, arrays=arrays)]))
    return graph.replaced(changes)


def batch_norm_into_next(graph: DeployGraph) -> DeployGraph:
    """BatchNorm between a NeoCell and a 1x1 convolution goes forward: `W diag(s)`, `b + W t`."""
    changes = []
    for cell, norm, conv in graph.chains("neocell", "batch_norm", "conv"):
        if not _pointwise(conv):
            continue
        weight = conv.arrays["weight"]
        scale, shift = _affine(norm)
        arrays = {
            "weight": _times(weight, scale[:, None, None]),
            "bias": _float32(conv.arrays.get("bias", np.float32(0)) + weight[:, :, 0, 0] @ shift),
        }
        # The value behind BatchNorm no longer exists; the one before it keeps its name.
        changes.append(([cell, norm, conv], [cell, replace(conv, inputs=(cell.output,), arrays=arrays)]))
    return graph.replaced(changes)


def batch_norm_into_neocell(graph: DeployGraph) -> DeployGraph:
    """BatchNorm after a NeoCell: its scale into L, its shift as the NeoCell's bias."""
    changes = []
    for cell, norm in graph.chains("neocell", "batch_norm"):
        scale, shift = _affine(norm)
        arrays = dict(cell.arrays)
        for i, (_, where) in enumerate(cell.attributes["spec"].slices()):
            arrays[f"weight_a.{i}"] = _times(arrays[f"weight_a.{i}"], scale[where, None, None])
        arrays["bias"] = _float32(arrays.get("bias", np.float32(0)) * scale + shift)
        changes.append(([cell, norm], [replace(cell, output=norm.output, arrays=arrays)]))
    return graph.replaced(changes)


def layer_norm_into_next(graph: DeployGraph) -> DeployGraph:
    """The scale and shift of a LayerNorm go into the linear layer or unpadded convolution behind it."""
    changes = []
    for after in ("conv", "linear"):
        for norm, layer in graph.chains("layer_norm", after):
            attributes = layer.attributes
            if "weight" not in norm.arrays or attributes.get("groups", 1) != 1 or {"padding", "pads"} & set(attributes):
                continue
            weight = layer.arrays["weight"]
            scale, shift = (norm.arrays[key].astype(np.float64) for key in ("weight", "bias"))
            bias = (
                layer.arrays.get("bias", np.float32(0))
                + weight.reshape(*weight.shape[:2], -1).sum(2, np.float64) @ shift
            )
            arrays = {"weight": _times(weight, scale.reshape(-1, *[1] * (weight.ndim - 2))), "bias": _float32(bias)}
            changes.append(([norm, layer], [replace(norm, arrays={}), replace(layer, arrays=arrays)]))
    return graph.replaced(changes)


def layer_norm_to_depthwise(graph: DeployGraph) -> DeployGraph:
    """The scale and shift of a LayerNorm over channels become a depthwise 1x1 convolution behind it.

    Where more than one layer reads the result, onnxruntime keeps it in the convolutions' blocked layout that way.
    """
    changes = []
    for norm in graph.layers:
        if norm.op != "layer_norm" or norm.attributes.get("axis", -1) != 1 or "weight" not in norm.arrays:
            continue
        plain = replace(norm, arrays={}, output=f"{norm.name}.plain")
        arrays = {"weight": norm.arrays["weight"][:, None, None, None], "bias": norm.arrays["bias"]}
        groups = {"groups": len(arrays["bias"])}
        affine = Layer("conv", f"{norm.name}.affine", (plain.output,), norm.output, arrays, groups)
        changes.append(([norm], [plain, affine]))
    return graph.replaced(changes)


def layer_scale_into_conv(graph: DeployGraph) -> DeployGraph:
    """A layer scale after a convolution multiplies the convolution's outputs, bias included."""
    changes = []
    for conv, scale in graph.chains("conv", "scale"):
        gamma = scale.arrays["gamma"].astype(np.float64)
        arrays = {key: _times(a, gamma.reshape(-1, *[1] * (a.ndim - 1))) for key, a in conv.arrays.items()}
        changes.append(([conv, scale], [replace(conv, output=scale.output, arrays=arrays)]))
    return graph.replaced(changes)


def neocell_to_matmul(graph: DeployGraph) -> DeployGraph:
    """A NeoCell becomes two constant block-diagonal matrices per channel for the size of its map (equation 2)."""
    shapes = graph.shapes()
    changes = []
    for (cell,) in graph.chains("neocell"):
        changes.append(([cell], _products(cell, *_matrices(cell, shapes[cell.inputs[0]][1:]))))
    return graph.replaced(changes)


def neocell_to_padded_matmul(graph: DeployGraph, multiple: int = ALIGNMENT) -> DeployGraph:
    """As `neocell_to_matmul`, on maps whose height and width are multiples: no product has another M, N or K.

    The map sits in the upper left corner. The convolution that makes a stage's map makes it larger, by rows of zeros
    below its input and columns to the right; everything between works on the whole; what lies outside the map is
    finite and never read: the matrices are zero there, a downsampling convolution reads 2x2 patches that lie inside
    or outside as a whole, and the head averages the map alone. Outputs that are maps are cropped.

    Args:
        graph: a folded graph.
        multiple: of rows and columns.

    Raises:
        InputError: a graph with transposes, which has not been folded, or a multiple below 1.
    """
    if multiple < 1:
        raise InputError(f"maps are padded to a multiple of at least 1, got {multiple}")
    real, layers = graph.shapes(), []
    size = {INPUT: real[INPUT][1:]}
    for layer in graph.layers:
        inside = size.get(layer.inputs[0])
        shape = real[layer.output]
        if len(shape) != 3:
            if layer.op == "global_mean":
                layers.extend(_mean_of_part(layer, real[layer.inputs[0]][1:], inside))
            else:
                layers.append(layer)
            continue
        if (
            layer.op in ("transpose", "linear", "space_to_depth", "max_pool")
            or {"stride", "padding"} & set(layer.attributes)
            or (layer.op == "add" and size[layer.inputs[1]] != inside)
        ):
            raise InputError(f"{layer.name}: a {layer.op} layer does not fit padded maps; fold the graph first")
        size[layer.output] = inside
        if layer.op == "conv":
            kernel = layer.arrays["weight"].shape[2:]
            # What the convolution makes of the padded part anyway counts as padding too.
            wanted = [_aligned(max(r, i // k), multiple) for r, i, k in zip(shape[1:], inside, kernel, strict=True)]
            pads = tuple(max(w * k - i, 0) for w, i, k in zip(wanted, inside, kernel, strict=True))
            if any(pads):
                layer = replace(layer, attributes={**layer.attributes, "pads": pads})
            size[layer.output] = tuple(wanted)
            layers.append(layer)
        elif layer.op == "neocell":
            matrices = _matrices(layer, real[layer.inputs[0]][1:])
            outside = inside
            if shape[1:] != real[layer.inputs[0]][1:] or any(n % multiple for n in inside):
                outside = tuple(_aligned(n, multiple) for n in shape[1:])
            size[layer.output] = outside
            a, b = _embedded(matrices[0], outside[0], inside[0]), _embedded(matrices[1], inside[1], outside[1])
            layers.extend(_products(layer, a, b))
        else:
            layers.append(layer)
    padded = {name: f"{name}.padded" for name in graph.outputs if size.get(name, real[name][1:]) != real[name][1:]}
    outputs = {value: name for name, value in padded.items()}
    whole = []
    for layer in replace(graph, layers=tuple(layers)).renamed(padded).layers:
        whole.append(layer)
        if layer.output in outputs:
            name = outputs[layer.output]
            whole.append(Layer("crop", f"{name}.crop", (layer.output,), name, {}, {"size": real[name][1:]}))
    return replace(graph, layers=tuple(whole))


def _matrices(cell: Layer, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    spec, arrays = cell.attributes["spec"], cell.arrays
    a, b = ([arrays[f"weight_{side}.{i}"] for i in range(len(spec.groups))] for side in "ab")
    return spec.matrices(a, b, *size)


def _products(cell: Layer, a: np.ndarray, b: np.ndarray) -> list[Layer]:
    left, right = f"{cell.name}.left", f"{cell.name}.right"
    layers = [
        Layer("left", left, cell.inputs, left, {"matrix": a}),
        Layer("right", right, (left,), cell.output, {"matrix": b}),
    ]
    if "bias" in cell.arrays:
        layers[-1] = replace(layers[-1], output=right)
        layers.append(Layer("shift", f"{cell.name}.bias", (right,), cell.output, {"bias": cell.arrays["bias"]}))
    return layers


def _aligned(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _embedded(matrices: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Matrices with rows and columns of zeros behind their own."""
    _, own_rows, own_columns = matrices.shape
    return np.pad(matrices, ((0, 0), (0, rows - own_rows), (0, columns - own_columns)))


def _mean_of_part(mean: Layer, part: tuple[int, int], whole: tuple[int, int]) -> list[Layer]:
    """The mean over a part of the map: one pooling where its window can be large enough, else a crop before it."""
    if part == whole:
        return [mean]
    stride = max(w - p + 1 for w, p in zip(whole, part, strict=True))
    if part[0] * part[1] <= _LARGEST_WINDOW and stride <= _LARGEST_STRIDE:
        return [replace(mean, attributes={**mean.attributes, "size": part})]
    name = f"{mean.name}.crop"
    return [Layer("crop", name, mean.inputs, name, {}, {"size": part}), replace(mean, inputs=(name,))]


def _affine(norm: Layer) -> tuple[np.ndarray, np.ndarray]:
    """BatchNorm in evaluation as `scale * x + shift`, float64."""
    arrays = {key: array.astype(np.float64) for key, array in norm.arrays.items()}
    scale = arrays["weight"] / np.sqrt(arrays["running_var"] + norm.attributes["eps"])
    return scale, arrays["bias"] - arrays["running_mean"] * scale


def _times(array: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """`array * factor` in float64, rounded once to float32, without float64 copies of large arrays."""
    out = np.empty(np.broadcast_shapes(array.shape, factor.shape), np.float32)
    return np.multiply(array, factor, out=out, dtype=np.float64, casting="same_kind")


def _float32(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32)


# In this order: layouts first, then convolutions that swallow their neighbours, then BatchNorm forward where a linear
# layer follows and into the NeoCell where none does.
RULES: tuple[Rule, ...] = (
    channels_first,
    merge_stem,
    merge_downsample,
    batch_norm_into_conv,
    batch_norm_into_next,
    batch_norm_into_neocell,
    reduction_to_depthwise,
    layer_scale_into_conv,
)


def fold(graph: DeployGraph) -> tuple[DeployGraph, Folded]:
    """The deployment graph of a network, and what was folded; NeoCells that remain are still NeoCells."""
    before = Counter(layer.op for layer in graph.layers)
    for rule in RULES:
        graph = rule(graph)
    return graph, Folded(before, Counter(layer.op for layer in graph.layers))
