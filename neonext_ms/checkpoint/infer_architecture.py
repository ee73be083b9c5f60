"""Which NeoNeXt a set of tensors is: its options read off names and shapes, then every tensor checked.

A single wrong tensor must not turn into a wrong guess, because then everything else would be reported instead of it.
So the tensors vote: on the width of a stage, on the size of a NeoCell matrix, and the options that leave the fewest
tensors unexplained win.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from itertools import product

from neonext_ms.common.errors import InputError, listed
from neonext_ms.models.architecture import DEFAULT_KERNELS, DOWNSAMPLES, MLP_RATIO, STAGES, STATISTICS, Architecture

from .mapped_file import printable

# A model of any published size has fewer wrong tensors than this before the first line says it all.
_LISTED = 500
_LAYER_SCALE = 1e-6
_MAX_GROUPS = 64
_MAX_TENSORS = 5000

_BLOCK = re.compile(r"^stage_([1-4])\.(\d{1,6})\.ops\.content\.(.+)$")
_NEOCELL = re.compile(r"^neocell\.weight_([ab])\.(\d{1,3})$")
_OFFICIAL = re.compile(
    r"^(stem\.(conv|norm)\.|stage_[1-4]\.\d+\.ops\.content\.|downsample_[1-3]\.(conv|neocell|norm_[12])\.|head\.(ln|fc)\.)"
)

Shapes = Mapping[str, tuple[int, ...]]


def read_architecture(shapes: Shapes, source: str) -> Architecture:
    """The architecture that tensors of these names and shapes belong to.

    Args:
        shapes: shape of every tensor by its official name, without `num_batches_tracked`.
        source: name of the file or value, for messages.

    Returns:
        The architecture without shifts, which neither names nor shapes tell, and with a nominal
        `layer_scale_init_value` of 1e-6 if there is a layer scale.

    Raises:
        InputError: the tensors are not those of a NeoNeXt, or some are missing, unexpected or misshapen; the message
            lists them all.
    """
    strange = [name for name in shapes if not _OFFICIAL.match(name)]
    if 2 * len(strange) >= len(shapes):
        raise InputError(
            f"{source}: these are not the weights of a NeoNeXt: {len(strange)} of {len(shapes)} tensors have names "
            "that the official code (stem.conv.weight, stage_1.0.ops.content.fc_1.weight, head.fc.weight ...) does "
            f"not use:\n{listed(map(printable, strange), 8)}"
        )
    if len(shapes) > _MAX_TENSORS:
        raise InputError(f"{source}: {len(shapes)} tensors are too many for a NeoNeXt (at most {_MAX_TENSORS})")
    blocks = _blocks(shapes)
    depths = tuple(_depth(blocks[stage]) for stage in range(STAGES))
    dims = _dims(shapes, blocks, source)
    kernels = _kernels(blocks, dims)
    classes = _classes(shapes, dims[-1])
    best = None
    for downsample, bias, scale in product(DOWNSAMPLES, (True, False), (True, False)):
        try:
            candidate = Architecture(
                num_classes=classes,
                per_stage_layers=depths,
                dims=dims,
                kernels=kernels,
                shifts=None,
                layer_scale_init_value=_LAYER_SCALE if scale else 0.0,
                linear_bias=bias,
                downsample=downsample,
            )
            expected = candidate.tensors()
        except InputError as error:
            raise InputError(f"{source}: {error}") from error
        wrong = sum(shapes.get(name) != shape for name, shape in expected.items())
        wrong += sum(name not in expected for name in shapes)
        if best is None or wrong < best[0]:
            best = wrong, candidate
    _check(shapes, best[1], source)
    return best[1]


def _check(shapes: Shapes, architecture: Architecture, source: str) -> None:
    expected = architecture.tensors()
    missing = [f"{name} {shape}" for name, shape in expected.items() if name not in shapes]
    unexpected = [f"{printable(name)} {shape}" for name, shape in shapes.items() if name not in expected]
    misshapen = [
        f"{name}: {shapes[name]}, expected {shape}"
        for name, shape in expected.items()
        if name in shapes and shapes[name] != shape
    ]
    if not (missing or unexpected or misshapen):
        return
    parts = [
        f"{len(lines)} {what}:\n{listed(lines, _LISTED)}"
        for what, lines in (("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen))
        if lines
    ]
    hint = ""
    if any(name.partition(" ")[0].endswith(STATISTICS) for name in missing):
        hint = (
            "\nBatchNorm statistics are buffers, not parameters: save model.state_dict(), not model.parameters() or "
            "named_parameters()"
        )
    weight, bias = shapes.get("head.fc.weight", ()), shapes.get("head.fc.bias", ())
    if len(weight) == 2 and len(bias) == 1 and weight[0] != bias[0]:
        hint += f"\nhead.fc.weight is for {weight[0]} classes, head.fc.bias for {bias[0]}: one of them is wrong"
    raise InputError(
        f"{source}: does not fit the NeoNeXt that its other tensors make (dims {_commas(architecture.dims)}, blocks "
        f"{_commas(architecture.per_stage_layers)}, kernels {architecture.kernel_spec}, {architecture.downsample} "
        f"downsample, {architecture.num_classes} classes)\n" + "\n".join(parts) + hint
    )


def _commas(values: Iterable[int]) -> str:
    return ",".join(map(str, values))


def _blocks(shapes: Shapes) -> list[dict[int, dict[str, tuple[int, ...]]]]:
    """Per stage, per block: shapes by the name inside the block."""
    blocks: list[dict] = [defaultdict(dict) for _ in range(STAGES)]
    for name, shape in shapes.items():
        if found := _BLOCK.match(name):
            blocks[int(found[1]) - 1][int(found[2])][found[3]] = shape
    return blocks


def _depth(blocks: Mapping[int, Mapping]) -> int:
    """Blocks of a stage; a stray tensor of a block far behind the others makes none."""
    if not blocks:
        return 0
    full = max(map(len, blocks.values()))
    whole = [index for index, names in blocks.items() if 2 * len(names) >= full]
    depth = max(whole) + 1
    return depth if depth <= 2 * len(whole) + 1 else len(whole)


def _dims(shapes: Shapes, blocks: list, source: str) -> tuple[int, ...]:
    votes: list[Counter] = [Counter() for _ in range(STAGES)]

    def vote(stage: int, shape: tuple[int, ...] | None, axes: int, axis: int, ratio: int = 1) -> None:
        if shape is not None and len(shape) == axes and shape[axis] > 0 and shape[axis] % ratio == 0:
            votes[stage][shape[axis] // ratio] += 1

    normalisation = ("weight", "bias", "running_mean", "running_var")
    vote(0, shapes.get("stem.conv.weight"), 4, 0)
    for name in normalisation:
        vote(0, shapes.get(f"stem.norm.{name}"), 1, 0)
    for stage in range(STAGES):
        for names in blocks[stage].values():
            for name in (*(f"norm.{n}" for n in normalisation), "layer_scale.gamma", "fc_2.bias"):
                vote(stage, names.get(name), 1, 0)
            vote(stage, names.get("fc_1.bias"), 1, 0, MLP_RATIO)
            for name, outside in (("fc_1.weight", 1), ("fc_2.weight", 0)):
                vote(stage, names.get(name), 2, outside)
                vote(stage, names.get(name), 2, 1 - outside, MLP_RATIO)
    # norm_1 is as wide as the next stage in the official order, as this one in the paper's, which has norm_2 too.
    paper = sum(bool(re.match(r"downsample_[1-3]\.norm_2\.", name)) for name in shapes) > 6
    for stage in range(STAGES - 1):
        prefix = f"downsample_{stage + 1}"
        vote(stage, shapes.get(f"{prefix}.conv.weight"), 4, 1)
        vote(stage + 1, shapes.get(f"{prefix}.conv.weight"), 4, 0)
        for name in normalisation:
            vote(stage + (not paper), shapes.get(f"{prefix}.norm_1.{name}"), 1, 0)
            vote(stage + 1, shapes.get(f"{prefix}.norm_2.{name}"), 1, 0)
    for name in ("weight", "bias"):
        vote(STAGES - 1, shapes.get(f"head.ln.{name}"), 1, 0)
    vote(STAGES - 1, shapes.get("head.fc.weight"), 2, 1)
    for stage, counted in enumerate(votes):
        if not counted:
            raise InputError(
                f"{source}: only a part of a NeoNeXt: no tensor tells how many channels stage {stage + 1} has (there "
                f"is none named stage_{stage + 1}.*); save the whole state dict"
            )
    return tuple(counted.most_common(1)[0][0] for counted in votes)


def _classes(shapes: Shapes, width: int) -> int:
    weight, bias = shapes.get("head.fc.weight", ()), shapes.get("head.fc.bias", ())
    if len(weight) == 2 and weight[1] == width and weight[0] > 0:
        return weight[0]
    if len(bias) == 1 and bias[0] > 0:
        return bias[0]
    return weight[0] if len(weight) == 2 and weight[0] > 0 else 1000


def _kernels(blocks: list, dims: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Sizes of the NeoCell matrices per stage: the number of groups and the sizes that explain most tensors."""
    cells = []
    sizes_anywhere: Counter = Counter()
    for stage in range(STAGES):
        cell: dict[int, list[tuple[int, ...]]] = defaultdict(list)
        for names in blocks[stage].values():
            for name, shape in names.items():
                if found := _NEOCELL.match(name):
                    cell[int(found[2])].append(shape)
                    if _is_square(shape):
                        sizes_anywhere[shape[1]] += 1
        cells.append(cell)

    def group_size(shapes: Iterable[tuple[int, ...]], width: int, fallback: int) -> int:
        votes: Counter = Counter()
        for shape in shapes:
            if _is_square(shape):
                votes[shape[1]] += 2 if shape[0] == width else 1
        return max(votes, key=lambda size: (votes[size], sizes_anywhere[size]), default=fallback)

    result = []
    for stage, cell in enumerate(cells):
        default = DEFAULT_KERNELS[stage]
        if not cell:
            result.append(default)
            continue
        best = None
        for count in range(1, min(max(cell) + 1, _MAX_GROUPS, dims[stage]) + 1):
            share = dims[stage] // count
            widths = [share] * (count - 1) + [dims[stage] - share * (count - 1)]
            sizes = tuple(
                group_size(cell.get(i, ()), width, default[min(i, len(default) - 1)]) for i, width in enumerate(widths)
            )
            score = 0
            for i, shapes in cell.items():
                expected = (widths[i], sizes[i], sizes[i]) if i < count else None
                score += sum(1 if shape == expected else -1 for shape in shapes)
            # Groups that nothing was found of count against the guess.
            score -= sum(not cell.get(i) for i in range(count))
            if best is None or score > best[0]:
                best = score, sizes
        result.append(best[1])
    return tuple(result)


def _is_square(shape: tuple[int, ...]) -> bool:
    return len(shape) == 3 and shape[1] == shape[2] > 0
