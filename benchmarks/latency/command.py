"""neonext-bench predict: how fast an ONNX network would run on an Atlas device. Predicted; nothing is run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from neonext_ms.common.cli import Parser, note, print_json, run
from neonext_ms.common.cli import positive_int as positive
from neonext_ms.common.errors import InputError, UsageError
from neonext_ms.ops.soc import SOCS

from .. import documents, networks
from . import tables
from .parameters import fitted, stored
from .prediction import DTYPES, Prediction, of_onnx

DESCRIPTION = """\
Predict how fast ATC's OM model of an ONNX file runs on an Atlas device: for every task, what the cube, the vector units
and memory have to do, its launch, and which of them bounds it. Nothing is run. See docs/predict.md for how it is
calibrated and how large its error is.

  neonext-bench predict MODEL.onnx --soc Ascend310P3 --batch 8
  neonext-bench predict MODEL.onnx --soc Ascend310P3 --nodes
  neonext-bench predict resnet50 --soc Ascend310B1 --batch 1 --json      (a network of docs/networks.md)
  neonext-bench predict --tables docs/predict.md                         (print its tables anew)"""
COMMAND = "neonext-bench predict"
_IMAGE = "predict_roofline.png"


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(prog=COMMAND, description=DESCRIPTION)
    parser.add_argument("model", nargs="?", metavar="MODEL.onnx", help="a file, or the name of a built-in network")
    parser.add_argument("--soc", default="Ascend310P3", help="device, as atc --soc_version takes it (Ascend310P3)")
    parser.add_argument("--batch", type=positive, metavar="N", help="images of a run (default: the model's, or 1)")
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help="int8: products in 8 bit (default: float16)")
    parser.add_argument("--aipp", action="store_true", help="images arrive as bytes (AIPP, small channels)")
    parser.add_argument("--image-size", type=positive, default=224, metavar="S", help="of a built-in network (224)")
    parser.add_argument("--nodes", action="store_true", help="a line for every task")
    parser.add_argument("--roofline", metavar="FILE.png", help="draw the tasks under the device's limits")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.add_argument("--table", metavar="NAME", help=f"print a table of docs/predict.md: {', '.join(tables.TABLES)}")
    parser.add_argument("--tables", metavar="FILE.md", nargs="?", const="docs/predict.md",
                        help="print every table of a document anew, and its picture")  # fmt: skip
    return parser


def _main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    chosen = [name for name in ("model", "table", "tables") if getattr(args, name) is not None]
    if len(chosen) != 1:
        raise UsageError("expected one of MODEL.onnx, --table and --tables; see neonext-bench predict --help")
    if args.table:
        print(tables.printed(args.table))
    elif args.tables:
        _update(Path(args.tables))
    else:
        _predict(args)


def _predict(args) -> None:
    if args.batch is not None and args.batch < 1:
        raise InputError(f"--batch {args.batch}: expected a whole number of at least 1")
    model = args.model
    if model in networks.names() and not Path(model).exists():
        size = (args.image_size, args.image_size)
        model = networks.build(model, batch=args.batch or 1, image_size=size, form="plain", seed=None)
    prediction = of_onnx(model, args.soc, batch=args.batch, dtype=args.dtype, aipp=args.aipp)
    if prediction.unknown_ops:
        note(f"not known, counted as memory-bound work of the vector units: {', '.join(prediction.unknown_ops)}")
    if args.roofline:
        from .roofline import draw

        draw({args.model: prediction}, fitted(), args.roofline)
    if args.json:
        print_json(as_dict(args.model, prediction, args.nodes))
    else:
        print(text(args.model, prediction, args.nodes))


def as_dict(name: str, prediction: Prediction, nodes: bool = True) -> dict:
    """Plain values for JSON."""
    low, high = tables.band()
    rate = prediction.predicted_images_per_second
    made = {
        "model": name,
        "soc": prediction.soc.name,
        "batch": prediction.batch,
        "dtype": prediction.dtype,
        "predicted_us": prediction.predicted_us,
        "predicted_images_per_second": rate,
        "predicted_images_per_second_range": [rate * low, rate * high],
        "range_from": f"nine of ten of {stored()['errors'][tables.LEFT_OUT]['rows']} published figures, each with its "
        "network left out of the fit",
        "predicted_share_of_peak": prediction.predicted_share_of_peak,
        "predicted_run_us": prediction.predicted_run_us,
        "predicted_units_us": prediction.predicted_units_us,
        "predicted_bounds_us": prediction.predicted_bounds_us,
        "multiply_adds": prediction.multiply_adds,
        "tasks": len(prediction.nodes),
        "unknown_ops": prediction.unknown_ops,
    }
    if nodes:
        made["nodes"] = [vars(node) for node in prediction.nodes]
    return made


def text(name: str, prediction: Prediction, nodes: bool = False) -> str:
    """The prediction for a terminal."""
    lines = []
    if nodes:
        lines.append(f"{'predicted us':>12} {'cube':>8} {'vector':>8} {'memory':>8}  {'bound':7} {'kind':14} node")
        for node in prediction.nodes:
            units = node.predicted_units_us
            label = node.name if len(node.fused) < 2 else f"{node.name} ({' + '.join(node.fused)})"
            lines.append(
                f"{node.predicted_us:12.1f} {units['cube']:8.1f} {units['vector']:8.1f} {units['memory']:8.1f}  "
                f"{node.predicted_bound:7} {node.kind:14} {label}{'' if node.known else ' [not known]'}"
            )
        lines.append("")
    kinds: dict[str, list[float]] = {}
    for node in prediction.nodes:
        kinds.setdefault(node.kind, []).append(node.predicted_us)
    total = prediction.predicted_us
    shares = ", ".join(f"{kind} {100 * sum(us) / total:.0f} % ({len(us)})" for kind, us in
                       sorted(kinds.items(), key=lambda item: -sum(item[1])))  # fmt: skip
    bounds = ", ".join(f"{bound} {100 * us / total:.0f} %" for bound, us in prediction.predicted_bounds_us.items())
    units = ", ".join(f"{unit} {us:.0f}" for unit, us in prediction.predicted_units_us.items())
    error = stored()["errors"][tables.LEFT_OUT]
    lines += [
        f"{name} on {prediction.soc.name}, batch {prediction.batch}, {prediction.dtype}: PREDICTED, not measured",
        f"  images a second  {tables.with_band(prediction.predicted_images_per_second)}",
        f"  a run            {total:.0f} us, {prediction.predicted_run_us:.0f} of it besides its "
        f"{len(prediction.nodes)} tasks",
        f"  by kind          {shares}",
        f"  bound by         {bounds}",
        f"  units work, us   {units}",
        f"  cube             {100 * prediction.predicted_share_of_peak:.1f} % of its peak",
        f"  the range holds nine of ten of {error['rows']} published figures, their network left out of the fit; "
        f"median error {error['median']:.2f} times, worst {error['worst']:.2f} times",
    ]
    if prediction.soc.family not in {SOCS[row["soc"]].family for row in stored()["rows"]}:
        lines.append(f"  no figure was published for the family {prediction.soc.family}: the range may not hold there")
    return "\n".join(lines)


def _update(path: Path) -> None:
    from .neonext import build
    from .roofline import draw

    print(documents.updated(path, COMMAND, _printed))
    image = path.with_name(_IMAGE)
    draw(
        {
            "ConvNeXt-T": of_onnx(networks.build("convnext_t", batch=8, form="plain", seed=None), "Ascend310P3"),
            "NeoNeXt-T, MatMul": of_onnx(build("t", 224, 8, "MatMul"), "Ascend310P3"),
            "NeoNeXt-T, AscendC": of_onnx(build("t", 224, 8, "AscendC"), "Ascend310P3"),
        },
        fitted(),
        image,
    )
    print(f"{image}: drawn")


def _printed(arguments: Sequence[str]) -> str:
    args = build_parser().parse_args(arguments)
    if not args.table:
        raise InputError(f"{COMMAND} {' '.join(arguments)}: a document's table is made by --table NAME")
    return tables.printed(args.table)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `neonext-bench predict`."""
    return run(_main, argv)


if __name__ == "__main__":
    sys.exit(main())
