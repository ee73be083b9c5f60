"""Where two forms of a network part: their final values, and value by value inside."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from neonext_ms.common.errors import InputError, UsageError, listed
from neonext_ms.common.files import atomic, explained

from ..graph import INPUT
from .dump_side import DumpSide
from .onnx_side import Node, Side, open_side
from .parity import TOLERANCE, noise

__all__ = [
    "TOLERANCES",
    "Comparison",
    "Difference",
    "Side",
    "blamed_nodes",
    "compare_sides",
    "difference",
    "noise",
    "open_side",
    "read_keep_dtype",
    "tolerance_for",
    "write_inputs",
    "write_keep_dtype",
]

# Relative L2 of the final values that passes, by the coarser of the two types.
TOLERANCES = {"float32": TOLERANCE, "float16": 5e-3, "bfloat16": 4e-2}
# A layer is where two sides part if its deviation is this many times what came in.
JUMP = 4.0
# Layers that add at least this share of the largest added deviation are blamed.
SHARE = 0.25
OP_TYPE = "OpType::"
_LARGEST = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class Difference:
    """How far two arrays of one name are apart.

    Attributes:
        name: of the value.
        shape: without the batch axis.
        samples: images compared.
        max_abs: largest absolute difference; infinite if not all numbers are finite.
        max_value: largest absolute number of the reference.
        relative_l2: norm of the difference over the norm of the reference; infinite likewise.
        cosine: of the angle between the two; 0 likewise.
        not_finite: numbers of either side that are not finite.
        sources: the compared values that this one is computed from.
        before: largest `relative_l2` of these.
        after: largest `relative_l2` of the compared values that are computed from this one; None if there are none.
        added: what its own layers add, `sqrt(relative_l2^2 - before^2)`, as far as it lasts: at most `after`. (The mean
            inside a LayerNorm is close to 0, and far off relative to that; nothing of it reaches the next value.)
    """

    name: str
    shape: tuple[int, ...]
    samples: int
    max_abs: float
    max_value: float
    relative_l2: float
    cosine: float
    not_finite: int = 0
    before: float = 0.0
    after: float | None = None
    sources: tuple[str, ...] = ()

    @property
    def added(self) -> float:
        if not math.isfinite(self.before):
            return 0.0
        return self._lasting(math.sqrt(max(self.relative_l2**2 - self.before**2, 0.0)))

    @property
    def lasting(self) -> float:
        """`relative_l2`, at most `after`."""
        return self._lasting(self.relative_l2)

    def _lasting(self, deviation: float) -> float:
        return deviation if self.after is None else min(deviation, self.after)

    def to_dict(self) -> dict:
        """Plain values for JSON; null for what is not finite."""
        numbers = {
            key: getattr(self, key) for key in ("max_abs", "max_value", "relative_l2", "cosine", "before", "added")
        }
        return {
            "name": self.name,
            "shape": list(self.shape),
            "samples": self.samples,
            **{key: value if math.isfinite(value) else None for key, value in numbers.items()},
            "not_finite": self.not_finite,
        }


@dataclass(frozen=True)
class Comparison:
    """Two sides on the same images.

    Attributes:
        a: path of the reference.
        b: path of the other.
        samples: images.
        tolerance: relative L2 of the final values that passes.
        outputs: the final values.
        top1_agree: images whose best class is the same or ties within the tolerance; None if there are no logits.
        layers: the values inside, in the order in which they are computed; empty if not asked for.
        parted: name of the first layer at which the two part, or None.
        skipped: values that both have in shapes that do not agree, and files of a dump that belong to nothing.
        notes: what a person should hear.
    """

    a: str
    b: str
    samples: int
    tolerance: float
    outputs: tuple[Difference, ...]
    top1_agree: int | None
    layers: tuple[Difference, ...] = ()
    parted: str | None = None
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())

    @property
    def holds(self) -> bool:
        """Whether the final values are within the tolerance and every best class agrees."""
        worst = max((output.relative_l2 for output in self.outputs), default=math.inf)
        compared = min((output.samples for output in self.outputs), default=0)
        return worst <= self.tolerance and self.top1_agree in (None, compared)

    @property
    def blamed(self) -> tuple[Difference, ...]:
        """The layers that add most deviation, in the order in which they are computed; none if the two agree.

        Where numbers are not finite, these are the layers whose values float16 cannot hold, and those that read them:
        a layer that is kept at float32 gains nothing if the next one takes its values in float16.
        """
        if self.holds or not self.layers:
            return ()
        most = max(layer.added for layer in self.layers)
        if most <= 0:
            return ()
        if math.isinf(most):
            over = {layer.name for layer in self.layers if math.isinf(layer.added) or layer.max_value > _LARGEST}
            return tuple(layer for layer in self.layers if layer.name in over or over & set(layer.sources))
        return tuple(layer for layer in self.layers if layer.added >= SHARE * most)

    @property
    def verdict(self) -> str:
        """One line."""
        worst = max(self.outputs, key=lambda output: output.relative_l2)
        what = f"{worst.name} relative L2 {worst.relative_l2:.1e}, allowed {self.tolerance:.1e}"
        if self.top1_agree is not None:
            what += f", top-1 {self.top1_agree}/{worst.samples}"
        if self.holds:
            return f"they agree: {what}"
        where = f" at {self.parted}" if self.parted else ""
        return f"they part{where}: {what}"

    def to_dict(self) -> dict:
        """Plain values for JSON."""
        return {
            "a": self.a,
            "b": self.b,
            "samples": self.samples,
            "tolerance": self.tolerance,
            "agree": self.holds,
            "verdict": self.verdict,
            "top1_agree": self.top1_agree,
            "outputs": [output.to_dict() for output in self.outputs],
            "layers": [layer.to_dict() for layer in self.layers],
            "parted": self.parted,
            "blamed": [layer.name for layer in self.blamed],
            "skipped": list(self.skipped),
            "notes": list(self.notes),
        }


def tolerance_for(a: Side, b: Side) -> float:
    """The tolerance of the coarser type of two sides."""
    return max(TOLERANCES.get(side.dtype, TOLERANCE) for side in (a, b))


def difference(name: str, reference: np.ndarray, value: np.ndarray) -> Difference:
    """Compare two arrays of the same shape, batch axis first, in float64, image by image.

    Raises:
        InputError: another shape.
    """
    if reference.shape != value.shape:
        raise InputError(f"{name}: shapes {reference.shape} and {value.shape} cannot be compared")
    squares = np.zeros(3)
    product = largest = largest_value = 0.0
    broken = 0
    for one, other in zip(reference, value, strict=True):
        one, other = one.astype(np.float64), other.astype(np.float64)
        broken += int(one.size - np.isfinite(one).sum() + other.size - np.isfinite(other).sum())
        largest_value = max(largest_value, float(np.abs(one[np.isfinite(one)]).max(initial=0.0)))
        if broken:
            continue
        apart = other - one
        squares += [np.vdot(apart, apart), np.vdot(one, one), np.vdot(other, other)]
        product += float(np.vdot(one, other))
        largest = max(largest, float(np.abs(apart).max(initial=0.0)))
    apart, one, other = (math.sqrt(square) for square in squares)
    if broken:
        return Difference(name, reference.shape[1:], len(reference), math.inf, largest_value, math.inf, 0.0, broken)
    return Difference(
        name=name,
        shape=reference.shape[1:],
        samples=len(reference),
        max_abs=largest,
        max_value=largest_value,
        relative_l2=apart / one if one else apart,
        cosine=min(product / (one * other), 1.0) if one and other else float(apart == 0),
    )


def compare_sides(
    a: Side,
    b: Side,
    images: np.ndarray,
    layers: bool = False,
    tolerance: float | None = None,
    watch: Callable[[str], None] = lambda name: None,
) -> Comparison:
    """Run two sides on the same images and compare what both have.

    Args:
        a: the reference.
        b: the other.
        images: float32 (N, 3, H, W).
        layers: compare the values inside, too.
        tolerance: relative L2 of the final values that passes; by the types of the sides if None.
        watch: called with the name of each value before it is compared.

    Raises:
        InputError: they have no final value in common, or cannot be run.
        UsageError: two dumps.
    """
    _bind(a, b)
    tolerance = tolerance_for(a, b) if tolerance is None else tolerance
    notes, skipped = [*a.notes, *b.notes], []
    for side in (a, b):
        if isinstance(side, DumpSide) and side.unmatched:
            skipped += [f"{file}: belongs to no value of the other side" for file in side.unmatched]
    outputs, top1 = [], None
    pairs = _final(a, b)
    for (name, one), (_, other) in zip(
        a.values(images, [pair[0] for pair in pairs]), b.values(images, [pair[1] for pair in pairs]), strict=True
    ):
        one, other, note = _same_images(name, one, other)
        notes += note
        if one.shape != other.shape:
            raise InputError(f"{name}: {a.path} has shape {one.shape}, {b.path} {other.shape}; not the same network")
        outputs.append(difference(name, one, other))
        if one.ndim == 2 and top1 is None and not outputs[-1].not_finite:
            top1 = _top1(one, other, tolerance)
    found: list[Difference] = []
    parted = None
    if layers:
        found, different = _inside(a, b, images, watch)
        skipped += different
        if not found:
            notes.append("the two have no inner value in common; only their final values were compared")
        parted = _parted(found, tolerance)
    return Comparison(
        a=a.path,
        b=b.path,
        samples=len(images),
        tolerance=tolerance,
        outputs=tuple(outputs),
        top1_agree=top1,
        layers=tuple(found),
        parted=parted,
        skipped=tuple(skipped),
        notes=tuple(dict.fromkeys(notes)),
    )


def _bind(a: Side, b: Side) -> None:
    if isinstance(a, DumpSide) and isinstance(b, DumpSide):
        raise UsageError("two dumps do not say what they hold; compare each with the model that it came from")
    for side, other in ((a, b), (b, a)):
        if isinstance(side, DumpSide):
            side.bind(other)
    if a.input_size != b.input_size:
        sizes = ["x".join(map(str, side.input_size)) for side in (a, b)]
        raise InputError(
            f"{a.path} takes images of {sizes[0]}, {b.path} of {sizes[1]} (height x width); compare models of one size"
        )


def _final(a: Side, b: Side) -> list[tuple[str, str]]:
    """Pairs of final values: by name, or by place if no name agrees and there are as many."""
    common = [(name, name) for name in a.outputs if name in b.outputs]
    if common:
        return common
    if len(a.outputs) == len(b.outputs):
        return list(zip(a.outputs, b.outputs, strict=True))
    raise InputError(
        f"{a.path} and {b.path} have no final value in common: {', '.join(a.outputs) or 'none'} and "
        f"{', '.join(b.outputs) or 'none'}"
    )


def _same_images(name: str, one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """A dump may hold fewer images than are compared: the first ones."""
    count = min(len(one), len(other))
    note = [] if len(one) == len(other) else [f"{name} was dumped for {count} images only; the first were compared"]
    return one[:count], other[:count], note


def _top1(one: np.ndarray, other: np.ndarray, tolerance: float) -> int:
    one, other = one.astype(np.float64), other.astype(np.float64)
    rows = np.arange(len(one))
    margin = one[rows, one.argmax(1)] - one[rows, other.argmax(1)]
    return int((margin <= 2 * tolerance * np.abs(one).max(initial=0.0)).sum())


def _inside(a: Side, b: Side, images: np.ndarray, watch) -> tuple[list[Difference], list[str]]:
    there = set(b.names)
    names = [name for name in a.names if name in there]
    skipped = []
    for name in list(names):
        shapes = a.shape(name), b.shape(name)
        if None not in shapes and not _comparable(*shapes):
            skipped.append(f"{name}: shapes {shapes[0]} and {shapes[1]}")
            names.remove(name)
    before = _ancestors(a if a.nodes else b, names)
    found: dict[str, Difference] = {}
    after: dict[str, float] = {}
    for name, one, other, problem in _together(a, b, images, names):
        if problem:
            skipped.append(f"{name}: {problem}")
            continue
        watch(name)
        one, other, _ = _same_images(name, one, other)
        if one.shape != other.shape and _comparable(one.shape[1:], other.shape[1:]):
            height, width = np.minimum(one.shape[2:], other.shape[2:])
            one, other = one[:, :, :height, :width], other[:, :, :height, :width]
        if one.shape != other.shape:
            skipped.append(f"{name}: shapes {one.shape[1:]} and {other.shape[1:]}")
            continue
        sources = before[name] if before is not None else list(found)[-1:]
        largest = max((found[source].relative_l2 for source in sources if source in found), default=0.0)
        apart = difference(name, one, other)
        found[name] = replace(apart, before=largest, sources=tuple(sorted(sources)))
        for source in sources:
            if source in found:
                after[source] = max(after.get(source, 0.0), apart.relative_l2)
    return [replace(layer, after=after.get(name)) for name, layer in found.items()], skipped


def _comparable(one: Sequence[int], other: Sequence[int]) -> bool:
    """Equal shapes, or maps of which one is padded on the right and below: their common part is compared."""
    if tuple(one) == tuple(other):
        return True
    apart = [a - b for a, b in zip(one[1:], other[1:], strict=False)]
    return len(one) == len(other) == 3 and one[0] == other[0] and (min(apart) >= 0 or max(apart) <= 0)


def _together(a: Side, b: Side, images: np.ndarray, names: Sequence[str]):
    """Values of both sides by name; a dumped file that cannot be read is a problem of its own value only."""
    dump = next((side for side in (a, b) if isinstance(side, DumpSide)), None)
    if dump is None:
        for (name, one), (_, other) in zip(a.values(images, names), b.values(images, names), strict=True):
            yield name, one, other, None
        return
    for name, value in (b if dump is a else a).values(images, names):
        try:
            ((_, dumped),) = dump.values(images, [name])
        except InputError as error:
            yield name, None, None, str(error)
            continue
        yield name, *((dumped, value) if dump is a else (value, dumped)), None


def _ancestors(side: Side, names: Iterable[str]) -> dict[str, set[str]] | None:
    """For each value, the nearest of `names` that it is computed from; None without a graph."""
    if not side.nodes:
        return None
    names = set(names)
    reach: dict[str, set[str]] = {}
    nearest: dict[str, set[str]] = {}
    for node in side.nodes:
        sources = set().union(*(reach.get(name, set()) for name in node.inputs))
        for name in node.outputs:
            nearest[name] = sources
            reach[name] = {name} if name in names else sources
    return nearest


def _parted(layers: Sequence[Difference], tolerance: float) -> str | None:
    """The first layer that is beyond the tolerance and a jump, else the first that is beyond the tolerance."""
    beyond = [layer for layer in layers if layer.lasting > tolerance]
    for layer in beyond:
        if layer.relative_l2 > JUMP * layer.before:
            return layer.name
    return beyond[0].name if beyond else None


def blamed_nodes(comparison: Comparison, *sides: Side) -> list[str]:
    """The operators that compute the blamed values, by their names in a graph, in its order.

    The graph is that of the first ONNX file among the sides, else of the first side that has one; name the side that is
    deployed first. A value that several operators compute (a GELU written as a chain) has all of them, back to the
    values that were compared, too.

    Raises:
        InputError: no side has a graph, or an operator has no name.
    """
    graphs = sorted((side for side in sides if side.nodes), key=lambda side: side.kind != "onnx")
    if not graphs:
        raise InputError("neither side has operators to name; compare with the ONNX file that ATC takes")
    nodes = graphs[0].nodes
    wanted = {layer.name for layer in comparison.blamed}
    compared = {layer.name for layer in comparison.layers} | {INPUT}
    maker: Mapping[str, Node] = {name: node for node in nodes for name in node.outputs}
    chosen: set[int] = set()
    open_names = [name for name in wanted if name in maker]
    while open_names:
        node = maker[open_names.pop()]
        if id(node) in chosen:
            continue
        chosen.add(id(node))
        open_names += [name for name in node.inputs if name in maker and name not in compared]
    found = [node for node in nodes if id(node) in chosen and node.op != "Constant"]
    if any(not node.name for node in found):
        raise InputError(f"{graphs[0].path}: an operator to be named has no name; export the model with node names")
    return [node.name for node in found]


def write_keep_dtype(path: str | os.PathLike, nodes: Sequence[str]) -> None:
    """Write a file for ATC's `--keep_dtype`: one operator name on a line. ATC knows no comments.

    Raises:
        InputError: no names, or a file that cannot be written.
    """
    if not nodes:
        raise InputError(f"{os.fspath(path)}: there are no operators to keep; nothing was written")
    with atomic(path) as staged:
        staged.write_text("".join(f"{name}\n" for name in dict.fromkeys(nodes)), encoding="utf-8")


def read_keep_dtype(path: str | os.PathLike, known: Iterable[str] | None = None) -> tuple[list[str], list[str]]:
    """Read a file for ATC's `--keep_dtype`.

    Args:
        path: one operator name, or `OpType::Name`, on a line; empty lines are skipped.
        known: names of the operators of the graph; older ATC fails on any other name.

    Returns:
        names of operators, and kinds of operators.

    Raises:
        InputError: not a text file, a kind that is not PascalCase, or a name that is not known.
    """
    source = os.fspath(path)
    try:
        with explained(path):
            lines = Path(path).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{source}: not a UTF-8 text file ({error.reason} at byte {error.start})") from error
    lines = [line.strip() for line in lines if line.strip()]
    kinds = [line.removeprefix(OP_TYPE) for line in lines if line.startswith(OP_TYPE)]
    names = [line for line in lines if not line.startswith(OP_TYPE)]
    for kind in kinds:
        if not (kind.isascii() and kind.isalnum() and kind[0].isupper()):
            raise InputError(f"{source}: {OP_TYPE}{kind}: kinds of operators are in PascalCase, as {OP_TYPE}MatMul")
    if known is not None:
        known = set(known)
        strange = [name for name in names if name not in known]
        if strange:
            raise InputError(
                f"{source}: {len(strange)} names are no operators of this graph (comments are not allowed); make the "
                f"list from a comparison with the same graph:\n{listed(strange, 8)}"
            )
    return names, kinds


def write_inputs(folder: str | os.PathLike, images: np.ndarray) -> list[Path]:
    """Write images to feed on a board: `input.npy` with all, and `input_000.bin` ... with one each, raw float32 NCHW.

    Raises:
        InputError: a file that cannot be written.
    """
    folder = Path(folder)
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    images = np.ascontiguousarray(images, np.dtype("<f4"))
    paths = [folder / "input.npy"]
    with atomic(paths[0]) as staged, open(staged, "wb") as file:
        np.save(file, images)
    for i, image in enumerate(images):
        paths.append(folder / f"input_{i:03d}.bin")
        with atomic(paths[-1]) as staged:
            staged.write_bytes(image.tobytes())
    return paths
