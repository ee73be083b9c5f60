"""neonext-bench estimate: predicted speed of an ONNX network on an Atlas device. Nothing is run on a device."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from neonext_ms.common.cli import MAX_SIDE, Parser, batch_size, int_range, note, png_file, print_json, print_text, run
from neonext_ms.common.errors import InputError, UsageError, usage_errors
from neonext_ms.common.text import nearest, printable
from neonext_ms.models.activations import GELU

from . import blocks_command

if TYPE_CHECKING:
    import onnx

    from .network_model import Estimate

COMMAND = "neonext-bench estimate"
DESCRIPTION = """\
Predict the speed of an ONNX file as ATC's OM model on an Atlas device, by a device model: for every task the work of
the cube, the vector units and memory, its launch, and which of them bounds it. Nothing is run on a device.
docs/device-model.md says how the model is calibrated and how large its error is.

examples:
  neonext-bench estimate MODEL.onnx --soc Ascend310P3 --batch 8
  neonext-bench estimate MODEL.onnx --soc Ascend310P3 --nodes
  neonext-bench estimate resnet50 --soc Ascend310B1 --batch 1 --json    (a network of `neonext-bench write --list`)
  neonext-bench estimate neonext_t.relu --neocell custom --batch 8      (a NeoNeXt by name)
  neonext-bench estimate blocks --help                                  (NeoCell kernels and whole blocks)
  neonext-bench estimate --update docs/device-model.md                  (update the tables of a page)"""
PAGE = "docs/device-model.md"
_IMAGE = "device-model-roofline.png"


def build_parser() -> Parser:
    """Return the parser of `neonext-bench estimate`."""
    parser = Parser(prog=COMMAND, description=DESCRIPTION)
    parser.add_argument("model", nargs="?", metavar="MODEL.onnx", help="a file, or the name of a built-in network")
    parser.add_argument("--soc", default="Ascend310P3", help="device as in atc --soc_version (default: %(default)s)")
    parser.add_argument("--batch", type=batch_size, metavar="N", help="batch size (default: the model's, or 1)")
    parser.add_argument("--dtype", choices=("float16", "int8"), default="float16",
                        help="int8: convolutions and linear layers in 8 bit (default: float16)")  # fmt: skip
    parser.add_argument("--aipp", action="store_true", help="images arrive as bytes (AIPP, small channels)")
    parser.add_argument("--image-size", type=int_range(1, MAX_SIDE), metavar="S",
                        help="image size of a built-in network (default: 224, or that of the NeoNeXt)")  # fmt: skip
    neonext = parser.add_argument_group("a NeoNeXt by name, as neonext-export writes it (default: without)")
    neonext.add_argument("--neocell", choices=("matmul", "custom"), help="form of NeoCells (default: matmul)")
    neonext.add_argument("--gelu", choices=("erf", "tanh", "fast"), help="form of GELU (default: erf)")
    neonext.add_argument("--quantize", choices=("int8",), help="the layers in 8 bit that --quantize int8 writes")
    parser.add_argument("--fitted", metavar="FILE.json",
                        help="parameters of neonext-board report --fit --output, instead of the package's")  # fmt: skip
    parser.add_argument("--nodes", action="store_true", help="print a line for every task")
    parser.add_argument(
        "--roofline", type=png_file, metavar="FILE.png", help="draw the tasks under the device's limits"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document on stdout")
    parser.add_argument("--table", metavar="NAME", help=f"print a table of {PAGE}")
    parser.add_argument("--update", metavar="FILE.md", nargs="?", const=PAGE,
                        help=f"update every table of a page, and its picture (default: {PAGE})")  # fmt: skip
    return parser


def _main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    if sum(value is not None for value in (args.model, args.table, args.update)) != 1:
        raise UsageError(f"expected one of MODEL.onnx, --table and --update. See {COMMAND} --help.")
    if args.table is not None:
        from . import network_tables

        print(network_tables.printed(args.table))
    elif args.update is not None:
        _update(Path(args.update))
    else:
        _estimate(args)


def _estimate(args: argparse.Namespace) -> None:
    from neonext_ms.models.registry import list_models

    from .. import networks
    from .network_model import estimate
    from .parameters import read_parameters
    from .reader import has_dynamic_batch

    model, batch = args.model, args.batch
    if model in list_models():
        model = _neonext(args)
    elif args.neocell or args.gelu or args.quantize:
        raise UsageError(f"{model}: --neocell, --gelu and --quantize are for a NeoNeXt by name. Leave them out.")
    elif model in networks.NETWORKS:
        size = (args.image_size or 224,) * 2
        model = networks.build(model, batch=batch or 1, image_size=size, form="plain", seed=None)
    elif not model.lower().endswith(".onnx") and not Path(model).exists():
        raise UsageError(
            f"{model}: neither a file nor a network{nearest(model, [*networks.NETWORKS, *list_models()])}. Name a file "
            "ending in .onnx, or a network of neonext-bench --list-models."
        )
    elif batch is None and has_dynamic_batch(model):
        batch = 1
        note(f"note: {model} has a dynamic batch; estimated for batch 1. Use --batch for another one.")
    parameters = read_parameters(args.fitted) if args.fitted else None
    if args.fitted:
        note(f"note: parameters of {args.fitted}; the range of the prediction is that of the package's own")
    estimated = estimate(model, args.soc, batch=batch, dtype=args.dtype, aipp=args.aipp, parameters=parameters)
    if estimated.unknown_ops:
        note(f"not known, counted as memory-bound work of the vector units: {', '.join(estimated.unknown_ops)}")
    if args.roofline:
        from .roofline import draw

        draw({args.model: estimated}, Path(args.roofline))
    if args.json:
        print_json(as_dict(args.model, estimated, args.nodes))
    else:
        print_text(text(args.model, estimated, args.nodes))


def _neonext(args: argparse.Namespace) -> onnx.ModelProto:
    """Return the registered NeoNeXt that the options describe, as ATC gets it."""
    from neonext_ms.export.onnx.format import CANN
    from neonext_ms.models.registry import model_config

    from .neonext import FORMS, build_network

    config = model_config(args.model)
    architecture, size = config.architecture, (args.image_size,) * 2 if args.image_size else config.image_size
    if args.gelu and architecture.activation != GELU:
        raise UsageError(
            f"--gelu {args.gelu}: the activation of {args.model} is {architecture.activation}. Leave out --gelu."
        )
    if args.quantize and args.dtype == "int8":
        raise UsageError("--dtype int8 is for a network that is wholly in 8 bit. Leave it out with --quantize.")
    with usage_errors():
        architecture.maps(size)
    (form,) = (name for name, neocell in FORMS.items() if neocell == (args.neocell or "matmul"))
    return build_network(architecture, size, args.batch or 1, form, args.gelu or CANN.gelu, args.quantize is not None)


def as_dict(name: str, estimated: Estimate, nodes: bool = True) -> dict:
    """Return an estimate of the network `name` as plain values for JSON, with all its tasks if `nodes`."""
    from .network_tables import band
    from .parameters import LEFT_OUT, stored

    rate = estimated.predicted_images_per_second
    result = {
        "model": name,
        "soc": estimated.soc.name,
        "batch": estimated.batch,
        "dtype": estimated.dtype,
        "predicted_us": estimated.predicted_us,
        "predicted_images_per_second": rate,
        "predicted_images_per_second_range": [rate * factor for factor in band()],
        "range_from": f"nine of ten of {stored()['errors'][LEFT_OUT]['rows']} published figures, each with its "
        "network left out of the fit",
        "predicted_share_of_peak": estimated.predicted_share_of_peak,
        "predicted_run_us": estimated.predicted_run_us,
        "predicted_units_us": estimated.predicted_units_us,
        "predicted_bounds_us": estimated.predicted_bounds_us,
        "multiply_adds": estimated.multiply_adds,
        "tasks": len(estimated.tasks),
        "unknown_ops": estimated.unknown_ops,
    }
    if nodes:
        result["nodes"] = [vars(task) for task in estimated.tasks]
    return result


def text(name: str, estimated: Estimate, nodes: bool = False) -> str:
    """Return an estimate for a terminal; the arguments are those of `as_dict`."""
    from neonext_ms.ops.soc import SOCS

    from .network_tables import with_band
    from .parameters import LEFT_OUT, stored

    lines = []
    kinds: dict[str, list[float]] = {}
    for task in estimated.tasks:
        kinds.setdefault(task.kind, []).append(task.predicted_us)
        units = task.predicted_units_us
        label = printable(task.name) if len(task.fused) < 2 else f"{printable(task.name)} ({' + '.join(task.fused)})"
        lines.append(
            f"{task.predicted_us:12.1f} {units['cube']:8.1f} {units['vector']:8.1f} {units['memory']:8.1f}  "
            f"{task.predicted_bound:7} {task.kind:14} {label}{'' if task.known else ' [not known]'}"
        )
    head = f"{'predicted us':>12} {'cube':>8} {'vector':>8} {'memory':>8}  {'bound':7} {'kind':14} node"
    lines = [head, *lines, ""] if nodes else []
    total = estimated.predicted_us
    largest_first = sorted(kinds.items(), key=lambda item: -sum(item[1]))
    shares = ", ".join(f"{kind} {100 * sum(us) / total:.0f} % ({len(us)})" for kind, us in largest_first)
    bounds = ", ".join(f"{bound} {100 * us / total:.0f} %" for bound, us in estimated.predicted_bounds_us.items())
    work = ", ".join(f"{unit} {us:.0f}" for unit, us in estimated.predicted_units_us.items())
    error = stored()["errors"][LEFT_OUT]
    lines += [
        f"{name} on {estimated.soc.name}, batch {estimated.batch}, {estimated.dtype}: predicted (device model, not "
        "measured)",
        f"  images per second  {with_band(estimated.predicted_images_per_second)}",
        f"  time               {total:.0f} us per run, {estimated.predicted_run_us:.0f} us of it outside the "
        f"{len(estimated.tasks)} tasks",
        f"  by kind            {shares}",
        f"  bound by           {bounds}",
        f"  busy time, us      {work}",
        f"  cube               {100 * estimated.predicted_share_of_peak:.1f} % of its peak rate",
        f"  the range covers 90 % of {error['rows']} published figures (leave-one-network-out); median error factor "
        f"{error['median']:.2f}, worst {error['worst']:.2f}",
    ]
    if estimated.soc.family not in {SOCS[row["soc"]].family for row in stored()["rows"]}:
        lines.append(f"  no figure was published for the family {estimated.soc.family}: the range may not hold there")
    return "\n".join(lines)


def _update(path: Path) -> None:
    from .. import documents, networks
    from .neonext import build
    from .network_model import estimate
    from .roofline import draw

    print(documents.updated(path, COMMAND, printed_table))
    models = {
        "ConvNeXt-T": networks.build("convnext_t", batch=8, form="plain", seed=None),
        "NeoNeXt-T, MatMul": build("t", 224, 8, "MatMul"),
        "NeoNeXt-T, AscendC": build("t", 224, 8, "AscendC"),
    }
    image = path.with_name(_IMAGE)
    draw({name: estimate(model, "Ascend310P3") for name, model in models.items()}, image)
    print(f"{image}: drawn")


def printed_table(arguments: Sequence[str]) -> str:
    """Return what `neonext-bench estimate` prints for the arguments above a table of a page."""
    if arguments[:1] == ["blocks"]:
        return blocks_command.printed(arguments[1:])
    from . import network_tables

    args = build_parser().parse_args(arguments)
    if not args.table:
        raise InputError(f"{COMMAND} {' '.join(arguments)}: not a table (expected --table NAME, or blocks)")
    return network_tables.printed(args.table)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `neonext-bench estimate` and return its exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments[:1] == ["blocks"]:
        return blocks_command.main(arguments[1:])
    return run(_main, arguments)
