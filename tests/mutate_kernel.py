"""Mutations of the NeoCell kernels, each of which the simulator or the reference has to catch.

make mutants
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np

from neonext_ms.ops import NeoCellSpec, reference
from neonext_ms.ops.twin import SimulatorError, neo_cell

BASE, FORWARD, GRAD = (f"op_kernel/neo_cell{end}" for end in ("_base.h", ".cpp", "_grad.cpp"))
TILING = "op_host/neo_cell_make_tiling.h"
MUTATIONS = (
    (
        "a stride off by one: the repeat stride of the inputs",
        BASE,
        "grid.srcAlong = range.from.Step(p.kIn) * across.srcAlong;",
        "grid.srcAlong = (range.from.Step(p.kIn) + 1) * across.srcAlong;",
    ),
    (
        "a stride off by one: the gap of a copy",
        BASE,
        "rows.columns - width) * pixel);",
        "rows.columns - width) * pixel + 1);",
    ),
    ("a dropped EnQue of the output", FORWARD, "        output_.EnQue(stored);\n", ""),
    ("a dropped EnQue of the input", FORWARD, "        input_.EnQue(local);\n", ""),
    (
        "swapped coefficients: A in place of B",
        FORWARD,
        "coefficients[rowsA_ * NEO_CELL_LANES], t.runB",
        "coefficients, t.runB",
    ),
    (
        "swapped coefficients: the next tap's",
        BASE,
        "coefficients[row * NEO_CELL_LANES], all",
        "coefficients[(row + 1) * NEO_CELL_LANES], all",
    ),
    ("one tap too many", BASE, "p.start[phase] + sweep >= p.stop[phase]", "p.start[phase] + sweep > p.stop[phase]"),
    ("the first tap of a cut block added twice", BASE, "cut && tap <= 0", "cut && tap < 0"),
    (
        "a window freed before it is used up",
        FORWARD,
        "            Compute(current, held);\n",
        "            Release(current, held);\n            Compute(current, held);\n",
    ),
    (
        "a window never freed",
        FORWARD,
        "            Release(current, held);\n        }\n        return local;",
        "        }\n        return local;",
    ),
    (
        "a kept row too many",
        FORWARD,
        "NeoCellMax(0, current.bottom - next.top)",
        "NeoCellMax(0, current.bottom - next.top + 1)",
    ),
    ("the mask of a ragged end left out", BASE, "SetBlocks(rest);", "SetBlocks(NEO_CELL_GROUP);"),
    (
        "two cores with the same row",
        BASE,
        "end_ = works ? tiling.first[core + 1] : 0;",
        "end_ = works ? tiling.first[core + 1] + (core + 1 < tiling.cores ? 1 : 0) : 0;",
    ),
    ("a third buffer that does not fit", FORWARD, "InitBuffer(input_, 2,", "InitBuffer(input_, 9,"),
    (
        "an unaligned copy",
        FORWARD,
        "nextA_ * NEO_CELL_LANES);\n        AscendC::DataCopy(local[",
        "nextA_ * NEO_CELL_LANES - 4);\n        AscendC::DataCopy(local[",
    ),
    (
        "a bias of the wrong row",
        FORWARD,
        "coefficients[(rowsA_ + rowsB_) * NEO_CELL_LANES + lane]",
        "coefficients[rowsA_ * NEO_CELL_LANES + lane]",
    ),
    (
        "the mask as a number of lanes",
        BASE,
        "(to, from, factor, mask_,",
        "(to, from, factor, AscendC::MASK_PLACEHOLDER,",
    ),
    ("rows that no core does", TILING, "= problem.planes * problem.images * problem.hOut;", "= problem.planes;"),
    (
        "AI cores that take the rows of the vector cores",
        TILING,
        "tiling.first[tiling.cores] = problem",
        "tiling.first[aiCores] = problem",
    ),
    ("images of one strip over each other", FORWARD, "local[i * width], x_", "local, x_"),
    ("an image of the next core's in a strip", BASE, "end_ - unit_ >= t.hOut) {", "true) {"),
    ("images of two planes in one strip", BASE, " && image_ + images_ < t.images &&", " &&"),
    (
        "a core that splits a map of the gradient",
        TILING,
        "row -= problem_.gradient != 0 ? row % problem_.hOut : 0;",
        "",
    ),
    (
        "coefficients of the wrong block for a core",
        TILING,
        "starts[core] = {start.row + row, start.totalA, start.totalB};",
        "starts[core] = {start.row + row, 0, start.totalB};",
    ),
    ("a sum that does not start from zero", GRAD, "Accumulate(lane == 0, count", "Accumulate(false, count"),
    (
        "a sum of wide maps that does not start from zero",
        GRAD,
        "(count), 1, NEO_CELL_GROUP);",
        "(1), 1, NEO_CELL_GROUP);",
    ),
    ("half of the blocks left out of a sum", GRAD, "blocks > 1; upper", "blocks > 2; upper"),
    (
        "sums of two images in one place",
        GRAD,
        "count, images.count * NEO_CELL_GROUP, grid",
        "count, NEO_CELL_GROUP, grid",
    ),
    (
        "repeats of the wrong image added",
        GRAD,
        "scratch[upper * images * NEO_CELL_GROUP",
        "scratch[upper * NEO_CELL_GROUP",
    ),
    ("the result of one image for all", GRAD, "first = i * NEO_CELL_LANES + lane;", "first = lane;"),
    ("dy of images over each other", GRAD, "upstream[i * strip.Columns() * t.c0], dy_", "upstream, dy_"),
    ("rows of the result as for one image", GRAD, "tap) * images.count * NEO_CELL_LANES", "tap) * NEO_CELL_LANES"),
    ("more images than the scratch buffer has room for", TILING, "NEO_CELL_SCRATCH / periods", "NEO_CELL_SCRATCH"),
    (
        "a result stored before it is complete",
        GRAD,
        "        sum_.EnQue(total_);\n        total_ = sum_.template DeQue<float>();\n",
        "",
    ),
)

# Device on which to run a mutation, where not all of them notice it.
DEVICES = {"the mask as a number of lanes": "Ascend310B4"}


def cases():
    """Yield small problems that together reach every line of the kernels."""
    rng = np.random.RandomState(0)
    shifted = [{"kernel": 4, "channels": 20, "shift": 1}, {"kernel": 7, "channels": 25, "shift": 1}]
    for groups, n, (h, w), kib in (
        (shifted, 2, (29, 19), 256),
        (shifted, 2, (29, 19), 64),
        ({"kernel": 3, "channels": 16, "shift": 1}, 2, (9, 50), 16),
        ({"h_in": 3, "h_out": 2, "w_in": 2, "w_out": 3, "channels": 16}, 2, (13, 9), 256),
        ({"kernel": 4, "channels": 160, "shift": 1}, 9, (7, 7), 256),
        ({"kernel": 2, "channels": 160, "shift": 1}, 12, (12, 7), 256),
    ):
        spec = NeoCellSpec(groups)
        x = rng.standard_normal((n, spec.channels, h, w)).astype(np.float32)
        a, b = (
            [rng.standard_normal(s).astype(np.float32) for s in shapes] for shapes in (spec.shapes_a, spec.shapes_b)
        )
        dy = rng.standard_normal((n, spec.channels, *spec.output_size(h, w))).astype(np.float32)
        yield spec, x, a, b, rng.standard_normal(spec.channels).astype(np.float32), dy, kib << 10


def caught(folder: Path, gradient: bool, soc: str) -> str | None:
    """Return what catches the kernels in a folder, or None."""
    neo_cell.PROJECT = folder
    for spec, x, a, b, bias, dy, ub_bytes in cases():
        try:
            if gradient:
                grads = neo_cell.gradients(x, dy, a, b, spec, soc=soc, dtype="float32").outputs
                exact = reference.backward(x, a, b, spec, dy)[1:3]
                pairs = [pair for one, two in zip(grads, exact, strict=True) for pair in zip(one, two, strict=True)]
            else:
                options = {"soc": soc, "dtype": "float32", "ub_bytes": ub_bytes, "blocks": 14}
                run = neo_cell.forward(x, a, b, spec, bias, **options)
                pairs = [(run.outputs[0], reference.forward(x, a, b, spec, bias))]
        except SimulatorError as error:
            return str(error).splitlines()[0]
        for value, expected in pairs:
            worst = np.abs(value - expected).max() / np.abs(expected).max()
            if not worst < 1e-5:
                return f"differs from the reference by {worst:.2g}"
    return None


def main() -> None:
    project, escaped = neo_cell.PROJECT, []
    with tempfile.TemporaryDirectory() as name:
        for number, (what, file, old, new) in enumerate((("unchanged", FORWARD, "", ""), *MUTATIONS)):
            folder = Path(name) / str(number)
            shutil.copytree(project, folder)
            text = (folder / file).read_text()
            if old not in text:
                raise SystemExit(f"{what}: {file} has no {old!r} any more; update MUTATIONS")
            (folder / file).write_text(text.replace(old, new, 1))
            soc = DEVICES.get(what, "Ascend310P3")
            why = caught(folder, False, soc) if file != GRAD else None
            why = why or (caught(folder, True, soc) if file != FORWARD else None)
            if (why is None) != (what == "unchanged"):
                escaped.append(what)
            print(f"{what}: {why or 'not caught'}", flush=True)
    if escaped:
        raise SystemExit(f"error: {', '.join(escaped)}")
    print(f"{len(MUTATIONS)} of {len(MUTATIONS)} caught")


if __name__ == "__main__":
    main()
