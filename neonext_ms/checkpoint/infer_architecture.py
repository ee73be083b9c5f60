"""Infer the architecture of a set of tensors from their names and shapes, then check every tensor against it.

A single wrong tensor must not lead to a wrong guess, because then all other tensors would be reported instead of it.
So the tensors vote on the width of a stage and on the sizes of the NeoCell matrices, and among the remaining options
those win that leave the fewest tensors unexplained.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from itertools import product

from neonext_ms.common.errors import InputError
from neonext_ms.common.text import list_names
from neonext_ms.models.architecture import DEFAULT_KERNELS, DOWNSAMPLES, MLP_RATIO, STAGES, STATISTICS, Architecture

from .mapped_file import printable

# A model of any published size has fewer tensors than this in a message whose first lines say it all.
_LISTED = 500
_LAYER_SCALE = 1e-6
_MAX_GROUPS = 64
_MAX_TENSORS = 5000

_BLOCK = re.compile(r"^stage_([1-4])\.(\d{1,6})\.ops\.content\.(.+)$")
_NEOCELL = re.compile(r"^neocell\.weight_([ab])\.(\d{1,3})$")
_OFFICIAL = re.compile(
    r"^(stem\.(conv|norm)\.|stage_[1-4]\.\d+\.ops\.content\.|downsample_[1-3]\.(conv|neocell|norm_[12])\.|head\.(ln|fc)\.)"
)

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
# Per block of a stage: shapes by the name inside the block.
Blocks = dict[int, dict[str, Shape]]


def infer_architecture(shapes: Shapes, source: str) -> Architecture:
    """Return the architecture that tensors of these names and shapes belong to.

    Args:
        shapes: shape of every tensor by its official name, without `num_batches_tracked`.
        source: name of the file or value in messages.

    Returns:
        The architecture without shifts, which neither names nor shapes reveal, and with a nominal
        `layer_scale_init_value` of 1e-6 if there is a layer scale.

    Raises:
        InputError: the tensors are not those of a NeoNeXt, or some are missing, unexpected or misshapen; the message
            lists them all.
    """
    strange = [name for name in shapes if not _OFFICIAL.match(name)]
    if 2 * len(strange) >= len(shapes):
        raise InputError(
            f"{source}: not the weights of a NeoNeXt. Of {len(shapes)} tensors {len(strange)} have names that the "
            "official code (stem.conv.weight, stage_1.0.ops.content.fc_1.weight, head.fc.weight ...) does not use:\n"
            + list_names(map(printable, strange), 8)
        )
    if len(shapes) > _MAX_TENSORS:
        raise InputError(f"{source}: too many tensors (got {len(shapes)}, expected at most {_MAX_TENSORS})")
    blocks: list[Blocks] = [defaultdict(dict) for _ in range(STAGES)]
    for name, shape in shapes.items():
        if match := _BLOCK.match(name):
            blocks[int(match[1]) - 1][int(match[2])][match[3]] = shape
    dims = _dims(shapes, blocks, source)
    try:
        candidates = [
            Architecture(
                num_classes=_classes(shapes, dims[-1]),
                per_stage_layers=tuple(map(_depth, blocks)),
                dims=dims,
                kernels=_kernels(blocks, dims),
                shifts=None,
                layer_scale_init_value=_LAYER_SCALE if scale else 0.0,
                linear_bias=bias,
                downsample=downsample,
            )
            for downsample, bias, scale in product(DOWNSAMPLES, (True, False), (True, False))
        ]
        best = min(candidates, key=lambda architecture: _unexplained(architecture.tensors(), shapes))
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    _check(shapes, best, source)
    return best


def _unexplained(expected: Shapes, shapes: Shapes) -> int:
    wrong = sum(shapes.get(name) != shape for name, shape in expected.items())
    return wrong + sum(name not in expected for name in shapes)


def _check(shapes: Shapes, architecture: Architecture, source: str) -> None:
    expected = architecture.tensors()
    missing = [f"{name} {shape}" for name, shape in expected.items() if name not in shapes]
    unexpected = [f"{printable(name)} {shape}" for name, shape in shapes.items() if name not in expected]
    misshapen = [
        f"{name}: {shapes[name]}, expected {shape}"
        for name, shape in expected.items()
        if name in shapes and shapes[name] != shape
    ]
    problems = [
        f"{len(lines)} {kind}:\n{list_names(lines, _LISTED)}"
        for kind, lines in (("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen))
        if lines
    ]
    if not problems:
        return
    if any(name.partition(" ")[0].endswith(STATISTICS) for name in missing):
        problems.append(
            "BatchNorm statistics are buffers, not parameters: save model.state_dict(), not model.parameters() or "
            "named_parameters()"
        )
    weight, bias = shapes.get("head.fc.weight", ()), shapes.get("head.fc.bias", ())
    if len(weight) == 2 and len(bias) == 1 and weight[0] != bias[0]:
        problems.append(f"head.fc.weight is for {weight[0]} classes, head.fc.bias for {bias[0]}: one of them is wrong")
    raise InputError(
        f"{source}: does not fit the NeoNeXt that its other tensors form ({architecture.summary()})\n"
        + "\n".join(problems)
    )


def _depth(blocks: Blocks) -> int:
    """Count the blocks of a stage; a stray tensor of a block far behind the others does not count as one."""
    if not blocks:
        return 0
    largest = max(map(len, blocks.values()))
    complete = [index for index, names in blocks.items() if 2 * len(names) >= largest]
    depth = max(complete) + 1
    return depth if depth <= 2 * len(complete) + 1 else len(complete)


def _dims(shapes: Shapes, blocks: list[Blocks], source: str) -> Shape:
    votes: list[Counter] = [Counter() for _ in range(STAGES)]

    def vote(stage: int, shape: Shape | None, axes: int, axis: int, ratio: int = 1) -> None:
        if shape is not None and len(shape) == axes and shape[axis] > 0 and shape[axis] % ratio == 0:
            votes[stage][shape[axis] // ratio] += 1

    normalization = ("weight", "bias", "running_mean", "running_var")
    vote(0, shapes.get("stem.conv.weight"), 4, 0)
    for name in normalization:
        vote(0, shapes.get(f"stem.norm.{name}"), 1, 0)
    for stage in range(STAGES):
        for names in blocks[stage].values():
            for name in (*(f"norm.{n}" for n in normalization), "layer_scale.gamma", "fc_2.bias"):
                vote(stage, names.get(name), 1, 0)
            vote(stage, names.get("fc_1.bias"), 1, 0, MLP_RATIO)
            for name, outside in (("fc_1.weight", 1), ("fc_2.weight", 0)):
                vote(stage, names.get(name), 2, outside)
                vote(stage, names.get(name), 2, 1 - outside, MLP_RATIO)
    # norm_1 is as wide as the next stage in the official order and as this one in the paper's, which also has norm_2.
    # A few stray norm_2 tensors must not decide it: the paper's three downsamples have twelve.
    paper = sum(bool(re.match(r"downsample_[1-3]\.norm_2\.", name)) for name in shapes) > 6
    for stage in range(STAGES - 1):
        prefix = f"downsample_{stage + 1}"
        vote(stage, shapes.get(f"{prefix}.conv.weight"), 4, 1)
        vote(stage + 1, shapes.get(f"{prefix}.conv.weight"), 4, 0)
        for name in normalization:
            vote(stage + (not paper), shapes.get(f"{prefix}.norm_1.{name}"), 1, 0)
            vote(stage + 1, shapes.get(f"{prefix}.norm_2.{name}"), 1, 0)
    for name in ("weight", "bias"):
        vote(STAGES - 1, shapes.get(f"head.ln.{name}"), 1, 0)
    vote(STAGES - 1, shapes.get("head.fc.weight"), 2, 1)
    for stage, counts in enumerate(votes, 1):
        if not counts:
            raise InputError(
                f"{source}: only a part of a NeoNeXt; no tensor tells how many channels stage {stage} has (none is "
                f"named stage_{stage}.*). Save the whole state dict."
            )
    return tuple(counts.most_common(1)[0][0] for counts in votes)


def _classes(shapes: Shapes, width: int) -> int:
    weight, bias = shapes.get("head.fc.weight", ()), shapes.get("head.fc.bias", ())
    if len(weight) == 2 and weight[1] == width and weight[0] > 0:
        return weight[0]
    if len(bias) == 1 and bias[0] > 0:
        return bias[0]
    return weight[0] if len(weight) == 2 and weight[0] > 0 else 1000


def _kernels(blocks: list[Blocks], dims: Shape) -> tuple[Shape, ...]:
    """Return the sizes of the NeoCell matrices of each stage."""
    # Per stage and channel group: the shapes of its matrices in all blocks.
    cells: list[dict[int, list[Shape]]] = [defaultdict(list) for _ in blocks]
    for cell, stage_blocks in zip(cells, blocks, strict=True):
        for names in stage_blocks.values():
            for name, shape in names.items():
                if match := _NEOCELL.match(name):
                    cell[int(match[2])].append(shape)
    everywhere = Counter(s[1] for cell in cells for shapes in cell.values() for s in shapes if _is_square(s))
    return tuple(
        _stage_kernels(cell, channels, default, everywhere) if cell else default
        for cell, channels, default in zip(cells, dims, DEFAULT_KERNELS, strict=True)
    )


def _stage_kernels(cell: Mapping[int, list[Shape]], channels: int, default: Shape, everywhere: Counter) -> Shape:
    """Return the group sizes that explain the most matrices of a stage; ties go to the fewest groups.

    Args:
        cell: shapes of the matrices by channel group.
        channels: width of the stage.
        default: sizes of groups without any matrix.
        everywhere: number of matrices of each size in the whole network, which breaks ties.
    """

    def group_size(shapes: Iterable[Shape], width: int, fallback: int) -> int:
        votes: Counter = Counter()
        for shape in shapes:
            if _is_square(shape):
                votes[shape[1]] += 2 if shape[0] == width else 1
        return max(votes, key=lambda size: (votes[size], everywhere[size]), default=fallback)

    scored: list[tuple[int, Shape]] = []
    for count in range(1, min(max(cell) + 1, _MAX_GROUPS, channels) + 1):
        share = channels // count
        widths = [share] * (count - 1) + [channels - share * (count - 1)]
        sizes = tuple(
            group_size(cell.get(i, ()), width, default[min(i, len(default) - 1)]) for i, width in enumerate(widths)
        )
        score = 0
        for i, shapes in cell.items():
            expected = (widths[i], sizes[i], sizes[i]) if i < count else None
            score += sum(1 if shape == expected else -1 for shape in shapes)
        # A group without any matrix counts against the guess.
        scored.append((score - sum(not cell.get(i) for i in range(count)), sizes))
    return max(scored, key=lambda entry: entry[0])[1]


def _is_square(shape: Shape) -> bool:
    return len(shape) == 3 and shape[1] == shape[2] > 0
