"""neonext-ops simulate: run the NeoCell kernels in the simulator and print results, differences and counts."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from neonext_ms.common.cli import Parser, batch_size, int_range, parse_size, print_json, random_seed
from neonext_ms.common.errors import InputError, ParityError, UsageError, usage_errors
from neonext_ms.common.files import atomic, check_output, parse_json, read_json
from neonext_ms.common.text import plural, shorten

if TYPE_CHECKING:
    import numpy as np

    from neonext_ms.ops.spec import NeoCellSpec

_SPEC = 'a NeoCell such as {"kernel": 7, "channels": 96}, or a list of them'

DESCRIPTION = """\
Run the AscendC kernels of NeoCell in the simulator, on any host with g++. The simulator checks the rules of the device
and compares the results with the float64 reference. It is not a device: it measures no time, and a device may give
other results.

examples:
  neonext-ops simulate --spec '{"kernel": 7, "channels": 96, "shift": 1}' --map 56 --soc Ascend310P3
  neonext-ops simulate --model neonext_t.released_224 --stage 2 --batch 8 --soc Ascend910B3 --gradients"""


def add_parser(commands: Any) -> None:
    """Add the parser of `simulate` to the subparsers of neonext-ops."""
    parser: Parser = commands.add_parser("simulate", help="run the kernels on this host", description=DESCRIPTION)
    subject = parser.add_mutually_exclusive_group(required=True)
    subject.add_argument("--spec", metavar="JSON|FILE", help="NeoCell with the official keys, or a list of such groups")
    subject.add_argument("--model", metavar="NAME", help="named model; requires --stage")
    parser.add_argument(
        "--stage", type=int_range(1, 4), choices=(1, 2, 3, 4), help="stage of the model with the NeoCell"
    )
    parser.add_argument("--map", type=parse_size, metavar="H[xW]", help="map size (default: that of the stage)")
    parser.add_argument("--batch", type=batch_size, default=1, help="number of images (default: 1)")
    parser.add_argument("--soc", default="Ascend310P3", help="device (default: Ascend310P3)")
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        default="float16",
        help="dtype of the maps (default: float16)",
    )
    parser.add_argument("--accumulate-fp32", action="store_true", help="compute float16 maps in float32")
    parser.add_argument("--bias", action="store_true", help="add a bias")
    parser.add_argument("--gradients", action="store_true", help="compute dx, dA and dB too")
    parser.add_argument("--blocks", type=int_range(1, 1024), help="number of cores, AI cores first (default: all)")
    parser.add_argument("--seed", type=random_seed, default=0, help="random seed of the inputs (default: 0)")
    parser.add_argument("--output", metavar="FILE.npz", help="file for inputs and results")
    parser.add_argument("--json", action="store_true", help="print one JSON document with the counts of each core")


def simulate(args: argparse.Namespace) -> None:
    """Run `neonext-ops simulate`."""
    from neonext_ms.ops.twin.check import check_kernels

    if (args.model is None) != (args.stage is None):
        raise UsageError("--model and --stage must be used together")
    if args.output and not args.output.endswith(".npz"):
        raise UsageError(f"--output {args.output}: expected a name that ends in .npz")
    if args.output:
        check_output(args.output)
    spec, size = _subject(args)
    arrays, results = check_kernels(
        spec,
        size,
        batch=args.batch,
        soc=args.soc,
        dtype=args.dtype,
        accumulate_fp32=args.accumulate_fp32,
        with_bias=args.bias,
        with_gradients=args.gradients,
        blocks=args.blocks,
        seed=args.seed,
    )
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
    wrong = [
        f"{name} by {value['difference']:.2g} (at most {value['tolerance']:.2g})"
        for operator in results
        for name, value in operator["outputs"].items()
        if not value["difference"] <= value["tolerance"]
    ]
    if wrong:
        raise ParityError(f"the kernel differs from the reference: {', '.join(wrong)}")


def _subject(args: argparse.Namespace) -> tuple[NeoCellSpec, tuple[int, int]]:
    """Return the NeoCell and the map size that the options name."""
    from neonext_ms.ops.spec import NeoCellSpec

    if args.model is not None:
        from neonext_ms.models.registry import model_config

        with usage_errors():
            config = model_config(args.model)
        size = args.map or config.architecture.maps(config.image_size)[args.stage - 1]
        return config.architecture.stage_spec(args.stage - 1), size
    if args.map is None:
        raise UsageError("--spec requires --map, such as --map 56 or --map 13x9")
    if not args.spec.lstrip().startswith(("{", "[")):
        return NeoCellSpec(_groups(read_json(args.spec, _SPEC), args.spec)), args.map
    with usage_errors():
        return NeoCellSpec(_groups(parse_json(args.spec, "--spec", _SPEC), "--spec")), args.map


def _groups(value: Any, source: str) -> dict | list[dict]:
    if not isinstance(value, (dict, list)) or not all(isinstance(g, dict) for g in value if isinstance(value, list)):
        raise InputError(f"{source}: not {_SPEC} (got {shorten(value)})")
    return value


def _save(path: str, arrays: dict[str, np.ndarray]) -> None:
    import io

    import numpy as np

    # NumPy's files do not support bfloat16.
    plain: dict[str, Any] = {n: v if v.dtype.kind == "f" else v.astype(np.float32) for n, v in arrays.items()}
    # In memory first: on a full disk NumPy leaves an archive that complains when it is collected.
    content = io.BytesIO()
    np.savez(content, **plain)
    with atomic(path) as stage:
        stage.write_bytes(content.getbuffer())


def _print(report: dict[str, Any]) -> None:
    print(f"{report['soc']}, {report['dtype']}, in the simulator: not a device, no time is measured")
    for result in report["operators"]:
        tiling, counts = result["tiling"], result["counts"]
        kinds = f" ({tiling['vector_cores']} without a cube unit)" if tiling["vector_cores"] else ""
        images = f" of {plural(tiling['strip_images'], 'image')}" if tiling["strip_images"] > 1 else ""
        print(
            f"{result['operator']}: {plural(tiling['cores'], 'core')}{kinds}, strips of "
            f"{plural(tiling['strip_rows'], 'row')} and {plural(tiling['strip_columns'], 'column')}{images}"
        )
        for name, value in result["outputs"].items():
            print(
                f"  {name} {tuple(value['shape'])}: {' '.join(f'{v:.4g}' for v in value['first'])} ..., max abs "
                f"{value['largest']:.4g}; max error {value['difference']:.1e} relative to it (tolerance "
                f"{value['tolerance']:.1e})"
            )
        for pipe, numbers in counts["totals"].items():
            words = [f"{number:,} {name.replace('macs', 'multiply-adds')}" for name, number in numbers.items()]
            print(f"  {pipe:5}" + ", ".join(words))
        peak = max(core["ub_bytes"] for core in counts["cores"])
        print(f"  unified buffer: {peak / 1024:.1f} KiB per core")
