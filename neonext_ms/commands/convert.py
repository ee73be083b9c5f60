"""neonext-convert: convert a checkpoint between PyTorch, MindSpore and safetensors, or average several."""

from __future__ import annotations

import os
from collections.abc import Sequence

from neonext_ms.checkpoint.options import add_weights_options
from neonext_ms.common.cli import Parser, note, parse_shifts, print_json, run

_EXAMPLES = """\
examples:
  neonext-convert epoch_286.pt neonext_t.ckpt --shifts 1,1,1,0
  neonext-convert training.pth weights.safetensors --ema
  neonext-convert distilled.pth.tar student.ckpt --key student
  neonext-convert best.safetensors small.safetensors --dtype float16
  neonext-convert run1/final.safetensors mean.safetensors --average run2/final.safetensors run3/final.safetensors

The suffix of OUT selects the format: .pt and .pth (PyTorch), .ckpt (MindSpore), .safetensors. The format of IN is
detected from its content. Without --dtype tensors keep their bits. Nothing in IN is executed."""


def build_parser() -> Parser:
    """Build the command line of neonext-convert."""
    parser = Parser(
        prog="neonext-convert",
        description="Convert a checkpoint between PyTorch, MindSpore and safetensors, or write the mean of several.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("input", metavar="IN", help="checkpoint to read")
    parser.add_argument("output", metavar="OUT", help="checkpoint to write")
    weights = parser.add_argument_group("weights")
    add_weights_options(weights.add_argument)
    weights.add_argument("--dtype", choices=("float16", "float32"), help="dtype of all tensors (default: that of each)")
    weights.add_argument(
        "--average",
        nargs="+",
        default=(),
        metavar="FILE",
        help="write the mean of the weights of IN and of these checkpoints of the same network",
    )
    recorded = parser.add_argument_group("metadata recorded in OUT")
    recorded.add_argument("--shifts", type=parse_shifts, metavar="A,B,C,D", help="shifts of the four stages")
    recorded.add_argument("--labels", metavar="FILE", help="class names: one per line, JSON or YAML")
    parser.add_argument_group("output").add_argument("--json", action="store_true", help="print one JSON document")
    return parser


def _main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    from neonext_ms.checkpoint.average import average
    from neonext_ms.checkpoint.checkpoint import format_for, load_checkpoint, save_checkpoint
    from neonext_ms.common.files import check_distinct
    from neonext_ms.images.folder import check_order, read_labels
    from neonext_ms.models.registry import candidates

    written_as = format_for(args.output)
    inputs = [args.input, *args.average]
    check_distinct(args.output, [*inputs, args.labels])
    checkpoints = [load_checkpoint(path, args.shifts, args.ema, args.key, args.activation) for path in inputs]
    checkpoint = average(checkpoints) if args.average else checkpoints[0]
    architecture, notes, metadata = checkpoint.architecture, list(checkpoint.notes), dict(checkpoint.metadata)
    if architecture.shifts is None:
        notes.append("the shifts are unknown and not recorded; pass them with --shifts a,b,c,d")
    else:
        metadata["shifts"] = list(architecture.shifts)
    if args.activation:
        metadata["activation"] = args.activation
    if args.labels:
        labels = read_labels(args.labels, notes.append)
        check_order(labels, metadata.get("labels") or [], args.input)
        metadata["labels"] = labels
    arrays = checkpoint.cast(args.dtype) if args.dtype else checkpoint.arrays
    save_checkpoint(args.output, arrays, metadata, checkpoint.counters)

    name = " or ".join(candidates(architecture)) or None
    size = os.path.getsize(args.output)
    if args.json:
        print_json(
            {
                "input": args.input,
                "averaged": inputs if args.average else [],
                "input_format": checkpoint.format,
                "output": args.output,
                "output_format": written_as,
                "output_bytes": size,
                "model": name,
                "architecture": architecture.to_dict(),
                "tensors": len(checkpoint.arrays),
                "parameters": architecture.parameters(),
                "input_dtypes": checkpoint.dtypes,
                "dtypes": [args.dtype] if args.dtype else checkpoint.dtypes,
                "recorded": sorted(metadata),
                "notes": notes,
            }
        )
        return
    elements = sum(array.size for array in checkpoint.arrays.values())
    for part in checkpoints:
        print(f"read     {part.path} ({part.format})")
    print(f"model    {name or 'not a registered one'}: {architecture.summary()}")
    print(f"tensors  {len(checkpoint.arrays)} of {', '.join(checkpoint.dtypes)}, {elements:,} numbers")
    print(f"written  {args.output} ({written_as}, {f'{args.dtype}, ' if args.dtype else ''}{size:,} bytes)")
    if metadata:
        print(f"recorded {', '.join(sorted(metadata))}")
    for text in notes:
        note(f"note: {text}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run neonext-convert and return its exit code."""
    return run(_main, argv)
