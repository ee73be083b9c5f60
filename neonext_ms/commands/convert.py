"""neonext-convert: a checkpoint of one framework becomes one of another."""

from __future__ import annotations

import os
from collections.abc import Sequence

from neonext_ms.common.cli import Parser, note, parse_shifts, print_json, run
from neonext_ms.common.files import read_lines

_EXAMPLES = """\
examples:
  neonext-convert epoch_286.pt neonext_t.ckpt --shifts 1,1,1,0
  neonext-convert training.pth weights.safetensors --ema
  neonext-convert neonext_t.ckpt back.pt

The suffix of OUT decides the format: .pt and .pth (PyTorch), .ckpt (MindSpore), .safetensors.
IN is told by its content. Tensors keep their types bit for bit; nothing in IN is executed.
"""


def _parser() -> Parser:
    parser = Parser(prog="neonext-convert", description=__doc__.partition(": ")[2].capitalize(), epilog=_EXAMPLES)
    parser.add_argument("input", metavar="IN", help="the checkpoint to read")
    parser.add_argument("output", metavar="OUT", help="the checkpoint to write")
    parser.add_argument("--shifts", type=parse_shifts, metavar="A,B,C,D", help="shift of each stage, recorded in OUT")
    parser.add_argument("--ema", action="store_true", help="take the moving average that a training checkpoint holds")
    parser.add_argument("--labels", metavar="FILE", help="names of the classes, one per line, recorded in OUT")
    parser.add_argument("--json", action="store_true", help="print what was done as JSON")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return run(_main, argv)


def _main(argv: Sequence[str] | None) -> int:
    arguments = _parser().parse_args(argv)
    from neonext_ms.checkpoint.checkpoint import format_for, load_checkpoint, save_checkpoint
    from neonext_ms.common.errors import UsageError
    from neonext_ms.models.registry import candidates

    written_as = format_for(arguments.output)
    if _same_file(arguments.input, arguments.output):
        raise UsageError(f"{arguments.output}: OUT is the file that IN is; choose another name")
    checkpoint = load_checkpoint(arguments.input, arguments.shifts, arguments.ema)
    architecture, notes = checkpoint.architecture, list(checkpoint.notes)
    metadata = dict(checkpoint.metadata)
    if architecture.shifts is None:
        notes.append("the shifts are not known and not recorded; give them with --shifts a,b,c,d")
    else:
        metadata["shifts"] = list(architecture.shifts)
    if arguments.labels:
        metadata["labels"] = read_lines(arguments.labels)
    save_checkpoint(arguments.output, checkpoint.arrays, metadata, checkpoint.counters)

    name = " or ".join(candidates(architecture)) or None
    elements = sum(array.size for array in checkpoint.arrays.values())
    size = os.path.getsize(arguments.output)
    if arguments.json:
        print_json(
            {
                "input": arguments.input,
                "input_format": checkpoint.format,
                "output": arguments.output,
                "output_format": written_as,
                "output_bytes": size,
                "model": name,
                "architecture": architecture.to_dict(),
                "tensors": len(checkpoint.arrays),
                "parameters": architecture.parameters(),
                "dtypes": checkpoint.dtypes,
                "recorded": sorted(metadata),
                "notes": notes,
            }
        )
        return 0
    print(f"read     {arguments.input} ({checkpoint.format})")
    print(f"model    {name or 'not a registered one'}: {_summary(architecture)}")
    print(f"tensors  {len(checkpoint.arrays)} of {', '.join(checkpoint.dtypes)}, {elements:,} numbers")
    print(f"written  {arguments.output} ({written_as}, {size:,} bytes)")
    if metadata:
        print(f"recorded {', '.join(sorted(metadata))}")
    for text in notes:
        note(f"note: {text}")
    return 0


def _summary(architecture) -> str:
    def commas(values):
        return ",".join(map(str, values))

    parts = [
        f"dims {commas(architecture.dims)}",
        f"blocks {commas(architecture.per_stage_layers)}",
        f"kernels {architecture.kernel_spec}",
        f"shifts {commas(architecture.shifts) if architecture.shifts is not None else 'unknown'}",
        f"{architecture.downsample} downsample",
        f"{architecture.num_classes} classes",
    ]
    parts += ["linear bias"] * architecture.linear_bias + ["layer scale"] * architecture.layer_scale
    return "; ".join(parts)


def _same_file(one: str, other: str) -> bool:
    if os.path.exists(one) and os.path.exists(other):
        return os.path.samefile(one, other)
    return os.path.abspath(one) == os.path.abspath(other)
