"""neonext-ops twin: the NeoCell kernels on this host: result, difference from the reference, counts."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from neonext_ms.common.cli import Parser, parse_size, print_json, run
from neonext_ms.common.errors import InputError, ParityError, UsageError

if TYPE_CHECKING:
    import numpy as np

    from neonext_ms.ops import NeoCellSpec

DESCRIPTION = """\
Run the AscendC kernels of NeoCell on this host, with every rule of the device checked. It is not a device: nothing is
timed, and nothing here says that a device gives the same. Needs g++.

  neonext-ops twin --spec '{"kernel": 7, "channels": 96, "shift": 1}' --map 56 --soc Ascend310P3
  neonext-ops twin --model neonext_t.released_224 --stage 2 --batch 8 --soc Ascend910B3 --dtype bfloat16
  neonext-ops twin --spec cell.json --map 13x9 --gradients --output run.npz --json"""

# Largest difference from the float64 reference of the same rounded numbers, relative to the largest value. In a narrow
# type every product and sum is rounded, in float32 arithmetic the result alone.
_EPSILON = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
_FLOAT32_TOLERANCE = 1e-5


def build_parser() -> Parser:
    """The command line of neonext-ops twin."""
    parser = Parser(prog="neonext-ops twin", description=DESCRIPTION)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--spec", metavar="JSON|FILE", help="a NeoCell in the official keys, or a list of such groups")
    what.add_argument("--model", metavar="NAME", help="a named model; with --stage")
    parser.add_argument("--stage", type=int, choices=(1, 2, 3, 4), help="which of the model's NeoCells")
    parser.add_argument("--map", type=parse_size, metavar="H[xW]", help="size of the map (default: the stage's)")
    parser.add_argument("--batch", type=int, default=1, help="images (default: 1)")
    parser.add_argument("--soc", default="Ascend310P3", help="device (default: Ascend310P3)")
    parser.add_argument("--dtype", choices=tuple(_EPSILON), default="float16", help="default: float16")
    parser.add_argument("--accumulate-fp32", action="store_true", help="float32 arithmetic on float16 maps")
    parser.add_argument("--bias", action="store_true", help="with a bias")
    parser.add_argument("--gradients", action="store_true", help="dx, dA and dB too")
    parser.add_argument("--blocks", type=int, help="cores to use (default: all that the device has)")
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers (default: 0)")
    parser.add_argument("--output", metavar="FILE.npz", help="write inputs and results there")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout, with the counts of each core")
    return parser


def _main(argv: Sequence[str] | None = None) -> int | None:
    args = build_parser().parse_args(argv)
    if (args.model is None) != (args.stage is None):
        raise UsageError("--model and --stage go together")
    for name in ("batch", "blocks"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise UsageError(f"--{name} {getattr(args, name)}: expected at least 1")
    spec, size = _spec(args)
    arrays, results = _run(args, spec, size)
    if args.output:
        _save(args.output, arrays)
    report = {
        "not_a_device": True,
        "soc": args.soc,
        "dtype": args.dtype,
        "x": list(arrays["x"].shape),
        "y": list(arrays["y"].shape),
        "operators": results,
    }
    print_json(report) if args.json else _print(report)
    worst = [
        f"{name} by {value['difference']:.2g} (at most {value['tolerance']:.2g})"
        for operator in results
        for name, value in operator["outputs"].items()
        if not value["difference"] <= value["tolerance"]
    ]
    if worst:
        raise ParityError(f"the kernel differs from the reference: {', '.join(worst)}")
    return None


def _spec(args: argparse.Namespace) -> tuple[NeoCellSpec, tuple[int, int]]:
    from neonext_ms.ops import NeoCellSpec

    if args.model is not None:
        from neonext_ms.models.registry import model_config

        config = model_config(args.model)
        size = args.map or config.architecture.maps(config.image_size)[args.stage - 1]
        return config.architecture.stage_spec(args.stage - 1), size
    if args.map is None:
        raise UsageError("--spec needs --map, such as --map 56 or --map 13x9")
    groups = _groups(args.spec)
    return NeoCellSpec(groups), args.map


def _groups(text: str):
    import json

    from neonext_ms.common.files import explained

    where, given = "--spec", text
    if not text.lstrip().startswith(("{", "[")):
        where = text
        with explained(text):
            given = Path(text).read_text(encoding="utf-8")
    try:
        groups = json.loads(given)
    except ValueError as error:
        raise InputError(f'{where}: not JSON ({error}); expected e.g. {{"kernel": 7, "channels": 96}}') from error
    if not isinstance(groups, (dict, list)) or not all(isinstance(g, dict) for g in groups if isinstance(groups, list)):
        raise InputError(f"{where}: expected a JSON object or a list of objects in the official keys")
    return groups


def _run(args, spec: NeoCellSpec, size: tuple[int, int]) -> tuple[dict[str, np.ndarray], list[dict]]:
    import numpy as np

    from neonext_ms.ops import reference
    from neonext_ms.ops.twin import neo_cell

    number = neo_cell.DTYPES[args.dtype][0]
    rng = np.random.RandomState(args.seed % 2**32)

    def draw(shape, scale=1.0):
        return (scale * rng.standard_normal(shape)).astype(number)

    x = draw((args.batch, spec.channels, *size))
    a = [draw(shape, shape[2] ** -0.5) for shape in spec.shapes_a]
    b = [draw(shape, shape[1] ** -0.5) for shape in spec.shapes_b]
    bias = draw((spec.channels,)) if args.bias else None
    # A crash or an endless loop in a kernel must not take this process with it.
    options = {"soc": args.soc, "dtype": args.dtype, "blocks": args.blocks, "isolated": True}
    exact = [np.asarray(v, np.float64) for v in (x, *a, *b)]
    exact_x, exact_a, exact_b = exact[0], exact[1 : 1 + len(a)], exact[1 + len(a) :]
    run_ = neo_cell.forward(x, a, b, spec, bias, accumulate_fp32=args.accumulate_fp32, **options)
    (y,) = run_.outputs
    arrays = {"x": x, "y": y, **{f"weight_a.{i}": w for i, w in enumerate(a)}}
    arrays |= {f"weight_b.{i}": w for i, w in enumerate(b)} | ({} if bias is None else {"bias": bias})
    wide = args.accumulate_fp32 or args.dtype != "float16"
    rounded = _EPSILON[args.dtype] if wide else _EPSILON[args.dtype] * max(g.h_in + g.w_in for g in spec.groups)
    tolerance = max(rounded, _FLOAT32_TOLERANCE)
    wanted = reference.forward(exact_x, exact_a, exact_b, spec, bias)
    results = [_result("NeoCell", run_, {"y": (y, wanted, tolerance)})]
    if args.gradients:
        dy = draw(y.shape)
        arrays["dy"] = dy
        dx, grad_a, grad_b, _ = reference.backward(exact_x, exact_a, exact_b, spec, np.asarray(dy, np.float64))
        back = neo_cell.forward(
            dy, a, b, spec, accumulate_fp32=args.accumulate_fp32, transposed=True, output_size=size, **options
        )
        arrays["dx"] = back.outputs[0]
        results.append(_result("NeoCell with transposed matrices", back, {"dx": (back.outputs[0], dx, tolerance)}))
        sums = neo_cell.gradients(x, dy, a, b, spec, **options)
        outputs = {}
        for side, found, wanted in (("a", sums.outputs[0], grad_a), ("b", sums.outputs[1], grad_b)):
            for i, pair in enumerate(zip(found, wanted, strict=True)):
                outputs[f"grad/weight_{side}.{i}"] = (*pair, _FLOAT32_TOLERANCE)
        arrays |= {name: value[0] for name, value in outputs.items()}
        results.append(_result("NeoCellGrad", sums, outputs))
    return arrays, results


def _result(operator: str, run_, outputs) -> dict:
    import numpy as np

    described = {}
    for name, (found, wanted, tolerance) in outputs.items():
        largest = float(np.abs(wanted).max())
        worst = float(np.abs(np.asarray(found, np.float64) - wanted).max())
        described[name] = {
            "shape": list(found.shape),
            "mean": float(np.asarray(found, np.float64).mean()),
            "largest": float(np.abs(np.asarray(found, np.float64)).max()),
            "first": [float(value) for value in found.ravel()[:4]],
            "difference": worst / largest if largest else worst,
            "tolerance": tolerance,
        }
    counts = {key: value for key, value in run_.counts.items() if key not in ("hazards", "notes")}
    tiling = {"cores": run_.tiling.cores, "strip_rows": run_.tiling.strip, "strip_columns": run_.tiling.columns}
    return {"operator": operator, "outputs": described, "tiling": tiling, "counts": counts}


def _save(path: str, arrays: dict[str, np.ndarray]) -> None:
    import numpy as np

    from neonext_ms.common.files import atomic

    if not path.endswith(".npz"):
        raise UsageError(f"--output {path}: expected a name that ends in .npz")
    # NumPy's files know no bfloat16.
    plain = {name: v if v.dtype.kind == "f" else v.astype(np.float32) for name, v in arrays.items()}
    with atomic(path) as stage, open(stage, "wb") as file:
        np.savez(file, **plain)


def _print(report: dict) -> None:
    print(f"{report['soc']}, {report['dtype']}, in the twin: not a device, nothing is timed")
    for result in report["operators"]:
        tiling, counts = result["tiling"], result["counts"]
        print(
            f"{result['operator']}: {tiling['cores']} cores, strips of {tiling['strip_rows']} rows and "
            f"{tiling['strip_columns']} columns"
        )
        for name, value in result["outputs"].items():
            print(
                f"  {name} {tuple(value['shape'])}: {' '.join(f'{v:.4g}' for v in value['first'])} ..., largest "
                f"{value['largest']:.4g}; differs from the reference by {value['difference']:.2g} of it "
                f"(at most {value['tolerance']:.2g})"
            )
        for pipe, numbers in counts["totals"].items():
            print(f"  {pipe:5}" + ", ".join(f"{number:,} {name}" for name, number in numbers.items()))
        peak = max(core["ub_bytes"] for core in counts["cores"])
        print(f"  unified buffer: {peak / 1024:.1f} KiB of a core")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 0 done, 1 error, 2 usage, 3 no compiler, 4 not as the reference."""
    return run(_main, argv)


if __name__ == "__main__":
    sys.exit(main())
