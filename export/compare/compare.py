"""Compare two forms of a network, value by value, and find the first layer that diverges."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from neonext_ms.common.errors import InputError, UsageError
from neonext_ms.common.text import format_size

from ..tolerances import INT8, INT8_LOSS, check_tolerance
from ..tolerances import tolerance as tolerance_of
from .difference import Difference, difference, top1_agreement
from .dump_side import DumpActivations
from .side import Activations, Node

# Two sides diverge at a layer if its deviation is this many times that of its inputs.
JUMP = 4.0
# Suspects add at least this share of the largest added deviation.
SHARE = 0.25
_FLOAT16_MAX = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class Comparison:
    """Result of a comparison on the same images.

    Attributes:
        a: path of the reference.
        b: path of the other side.
        samples: number of images.
        tolerance: relative L2 of the final values that passes.
        outputs: differences of the final values.
        top1_agree: images whose best class is the same or ties within the tolerance; None without logits.
        layers: differences of the values inside, in order of computation; empty unless asked for.
        diverged_at: name of the first layer that diverges, or None.
        skipped: values whose shapes differ, and files of a dump that match no value.
        notes: messages to show to the user.
    """

    a: str
    b: str
    samples: int
    tolerance: float
    outputs: tuple[Difference, ...]
    top1_agree: int | None
    layers: tuple[Difference, ...] = ()
    diverged_at: str | None = None
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def agrees(self) -> bool:
        """Return whether the final values are within the tolerance and every best class agrees."""
        worst = max((output.relative_l2 for output in self.outputs), default=math.inf)
        compared = min((output.samples for output in self.outputs), default=0)
        return worst <= self.tolerance and self.top1_agree in (None, compared)

    @property
    def suspects(self) -> tuple[Difference, ...]:
        """Layers that add most deviation, in order of computation; empty if the final values agree.

        Where numbers are not finite, these are the layers whose values float16 cannot hold, and those that read them:
        a layer that is kept in float32 gains nothing if the next one reads its values in float16.
        """
        if self.agrees or not self.layers:
            return ()
        most = max(layer.added for layer in self.layers)
        if most <= 0:
            return ()
        if math.isinf(most):
            over = {layer.name for layer in self.layers if math.isinf(layer.added) or layer.max_value > _FLOAT16_MAX}
            return tuple(layer for layer in self.layers if layer.name in over or over & set(layer.sources))
        return tuple(layer for layer in self.layers if layer.added >= SHARE * most)

    @property
    def verdict(self) -> str:
        """The result in one line."""
        worst = max(self.outputs, key=lambda output: output.relative_l2)
        numbers = f"{worst.name} relative L2 {worst.relative_l2:.1e} (tolerance {self.tolerance:.1e})"
        if len(self.outputs) > 1:
            beyond = [output.name for output in self.outputs if output.relative_l2 > self.tolerance]
            which = f"{len(beyond)} of {len(self.outputs)}, {', '.join(beyond)}"
            if not beyond:
                which = f"all {len(self.outputs)}" if self.agrees else f"none of {len(self.outputs)} by relative L2"
            numbers = f"{which}; most in {numbers}"
        if self.top1_agree is not None:
            numbers += f", top-1 {self.top1_agree}/{worst.samples}"
        if self.agrees:
            return f"outputs agree: {numbers}"
        return f"outputs diverge{f' at {self.diverged_at}' if self.diverged_at else ''}: {numbers}"

    def to_dict(self) -> dict:
        """Return plain values for JSON."""
        return {
            "a": self.a,
            "b": self.b,
            "samples": self.samples,
            "tolerance": self.tolerance,
            "agree": self.agrees,
            "verdict": self.verdict,
            "top1_agree": self.top1_agree,
            "outputs": [output.to_dict() for output in self.outputs],
            "layers": [layer.to_dict() for layer in self.layers],
            "diverged_at": self.diverged_at,
            "suspects": [layer.name for layer in self.suspects],
            "skipped": list(self.skipped),
            "notes": list(self.notes),
        }


def tolerance_for(a: Activations, b: Activations) -> float:
    """Return the tolerance of the coarser dtype, plus what an approximate GELU or 8 bit on one side only may add."""
    if a.int8 != b.int8:
        return INT8_LOSS
    forms = ("auto",) if a.gelu == b.gelu else (a.gelu, b.gelu)
    return max(tolerance_of(side.dtype, form) for side in (a, b) for form in forms) + (INT8 if a.int8 else 0.0)


def compare_activations(
    a: Activations,
    b: Activations,
    images: np.ndarray,
    layers: bool = False,
    tolerance: float | None = None,
    progress: Callable[[str], None] = lambda name: None,
) -> Comparison:
    """Compare the values that two networks compute from the same images.

    Args:
        a: the reference.
        b: the other side.
        images: float32 (N, 3, H, W).
        layers: whether to compare the values inside, too.
        tolerance: relative L2 of the final values that passes; None for `tolerance_for`.
        progress: function that receives the name of each value before it is compared.

    Raises:
        InputError: no final value in common, or a side that cannot be run.
        UsageError: two dumps, or a tolerance that verifies nothing.
    """
    if tolerance is not None:
        check_tolerance(tolerance)
    _bind(a, b)
    tolerance = tolerance_for(a, b) if tolerance is None else tolerance
    notes, skipped = [*a.notes, *b.notes], []
    for side in (a, b):
        if isinstance(side, DumpActivations):
            skipped += [f"{file}: matches no value of the other side" for file in side.unmatched]
    outputs, top1 = [], None
    pairs = _final_pairs(a, b)
    for side, names in zip((a, b), zip(*pairs, strict=True), strict=True):
        if others := [name for name in side.outputs if name not in names]:
            notes.append(f"only {side.path} has the outputs {', '.join(others)}; they were not compared")
    for (name, reference), (_, value) in zip(
        a.values(images, [pair[0] for pair in pairs]), b.values(images, [pair[1] for pair in pairs]), strict=True
    ):
        count = min(len(reference), len(value))
        if len(reference) != len(value):
            notes.append(f"{name} was dumped for {count} images only; the first {count} images were compared")
        reference, value = reference[:count], value[:count]
        if reference.shape != value.shape:
            raise InputError(
                f"{name}: {a.path} has shape {reference.shape}, {b.path} {value.shape}; these are different networks"
            )
        outputs.append(difference(name, reference, value))
        if reference.ndim == 2 and top1 is None and not outputs[-1].not_finite:
            top1 = top1_agreement(reference, value, tolerance)
    inner: list[Difference] = []
    if layers:
        inner, problems = _compare_inside(a, b, images, progress)
        skipped += problems
        if not inner:
            notes.append("the two have no inner value in common; only their final values were compared")
    return Comparison(
        a=a.path,
        b=b.path,
        samples=len(images),
        tolerance=tolerance,
        outputs=tuple(outputs),
        top1_agree=top1,
        layers=tuple(inner),
        diverged_at=_diverged_at(inner, tolerance),
        skipped=tuple(skipped),
        notes=tuple(dict.fromkeys(notes)),
    )


def _bind(a: Activations, b: Activations) -> None:
    if isinstance(a, DumpActivations) and isinstance(b, DumpActivations):
        raise UsageError("two dumps do not say what they hold. Compare each with the model that it came from.")
    for side, other in ((a, b), (b, a)):
        if isinstance(side, DumpActivations):
            side.bind(other)
    if a.input_size != b.input_size:
        raise InputError(
            f"{a.path} takes images of {format_size(a.input_size or ())}, {b.path} of "
            f"{format_size(b.input_size or ())} (height x width). Compare models of one size."
        )


def _final_pairs(a: Activations, b: Activations) -> list[tuple[str, str]]:
    """Return pairs of final values: by name, or by position if no name agrees and there are as many."""
    common = [(name, name) for name in a.outputs if name in b.outputs]
    if common:
        return common
    if len(a.outputs) == len(b.outputs):
        return list(zip(a.outputs, b.outputs, strict=True))
    raise InputError(
        f"{a.path} and {b.path} have no final value in common: {', '.join(a.outputs) or 'none'} and "
        f"{', '.join(b.outputs) or 'none'}"
    )


def _compare_inside(
    a: Activations, b: Activations, images: np.ndarray, progress: Callable[[str], None]
) -> tuple[list[Difference], list[str]]:
    """Compare the values that both sides have; return the differences and what was skipped."""
    in_b = set(b.names)
    names, skipped = [], []
    for name in a.names:
        one, other = a.shape(name), b.shape(name)
        if name in in_b and (one is None or other is None or _comparable(one, other)):
            names.append(name)
        elif name in in_b:
            skipped.append(f"{name}: shapes {one} and {other}")
    sources_of = ancestors((a if a.nodes else b).nodes, names)
    inner: dict[str, Difference] = {}
    after: dict[str, float] = {}
    for name, reference, value in _together(a, b, images, names, skipped):
        progress(name)
        count = min(len(reference), len(value))
        reference, value = reference[:count], value[:count]
        if reference.shape != value.shape and _comparable(reference.shape[1:], value.shape[1:]):
            height, width = np.minimum(reference.shape[2:], value.shape[2:])
            reference, value = reference[:, :, :height, :width], value[:, :, :height, :width]
        if reference.shape != value.shape:
            skipped.append(f"{name}: shapes {reference.shape[1:]} and {value.shape[1:]}")
            continue
        sources = sources_of[name] if sources_of else set(list(inner)[-1:])
        before = max((inner[source].relative_l2 for source in sources if source in inner), default=0.0)
        apart = difference(name, reference, value)
        inner[name] = replace(apart, before=before, sources=tuple(sorted(sources)))
        for source in sources & inner.keys():
            after[source] = max(after.get(source, 0.0), apart.relative_l2)
    return [replace(layer, after=after.get(name)) for name, layer in inner.items()], skipped


def _comparable(one: Sequence[int], other: Sequence[int]) -> bool:
    """Return whether shapes are equal, or differ only by padding on the right and below.

    Of padded maps the part that both sides have is compared.
    """
    if tuple(one) == tuple(other):
        return True
    excess = [a - b for a, b in zip(one[1:], other[1:], strict=False)]
    return len(one) == len(other) == 3 and one[0] == other[0] and (min(excess) >= 0 or max(excess) <= 0)


def _together(
    a: Activations, b: Activations, images: np.ndarray, names: Sequence[str], skipped: list[str]
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield values of both sides by name; a dumped file that cannot be read is only added to `skipped`."""
    dump = next((side for side in (a, b) if isinstance(side, DumpActivations)), None)
    if dump is None:
        for (name, one), (_, other) in zip(a.values(images, names), b.values(images, names), strict=True):
            yield name, one, other
        return
    for name, value in (b if dump is a else a).values(images, names):
        try:
            ((_, dumped),) = dump.values(images, [name])
        except InputError as error:
            skipped.append(f"{name}: {error}")
            continue
        yield (name, dumped, value) if dump is a else (name, value, dumped)


def ancestors(nodes: Sequence[Node], names: Iterable[str]) -> dict[str, set[str]]:
    """Return for each value of a graph the nearest of `names` that it is computed from; empty without a graph."""
    names = set(names)
    reach: dict[str, set[str]] = {}
    nearest: dict[str, set[str]] = {}
    for node in nodes:
        sources: set[str] = set().union(*(reach.get(name, set()) for name in node.inputs))
        for name in node.outputs:
            nearest[name] = sources
            reach[name] = {name} if name in names else sources
    return nearest


def _diverged_at(layers: Sequence[Difference], tolerance: float) -> str | None:
    """Return the first layer beyond the tolerance that is a jump, or else the first beyond the tolerance."""
    beyond = [layer for layer in layers if layer.lasting > tolerance]
    jumps = [layer for layer in beyond if layer.relative_l2 > JUMP * layer.before]
    return next((layer.name for layer in (*jumps, *beyond)), None)
