"""neonext-bench claims: the paper's claims, measured on this machine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib import import_module

from neonext_ms.common.cli import THREADS_HELP, Parser, print_json, run, threads
from neonext_ms.common.processors import thread_count

# Name -> claim of the paper. Each is a module of this package with `options`, `measure` and `lines`.
CLAIMS = {
    "complexity": "a NeoCell takes 2k multiply-adds for each value, a depthwise convolution k^2 (equations 4 and 5)",
    "patchwise": "products with block-diagonal matrices are 15 times as fast as patch by patch; compiled code 3 times "
    "as fast as Python (both on a V100, in PyTorch)",
    "memory": "a NeoCell needs no im2col, whose copies of the map are k^2 times as large (section 1)",
    "share": "NeoCells are a small part of the whole model",
    "convnext": "NeoNeXt is as fast as ConvNeXt of the same depths and widths",
    "resample": "weights can be made continuous: matrices resampled to another size (future work)",
    "kernels": "block sizes and shifts matter, to different extents (future work)",
    "activations": "an activation that the device joins to its convolutions costs little accuracy (not in the paper)",
    "quantize": "BatchNorm everywhere, as in NeoNeXt, loses less in 8 bit than LayerNorm (a question of ours)",
    "neoinit": "networks train better from NeoInit than from normal noise, with which most runs diverge (Table 3)",
}

EXAMPLES = {
    "complexity": "--kernels 2,4,7 --maps 56,28",
    "patchwise": "--kernel 7 --maps 56",
    "memory": "--kernels 4,7 --maps 56 --batch 8",
    "share": "--models neonext_t --batch 1",
    "convnext": "--sizes t --batch 1,8",
    "resample": "--checkpoint tests/data/digits_64.pt --shifts 1,1,0,0 --kernels '5+8;7+7' digits",
    "kernels": "--config configs/ablate_neoinit.yaml --kernels 4,4+7 --seeds 2",
    "activations": "--config configs/digits.yaml --activations gelu,relu --tune-epochs 4 model.image_size=64",
    "quantize": "--config configs/digits.yaml --weight-bits 8,4 --seeds 3 model.image_size=64",
    "neoinit": "--config configs/ablate_neoinit.yaml --initialization neoinit,noise --seeds 3",
}


def _examples(names: Iterable[str]) -> str:
    return "\n".join(f"  neonext-bench claims {name} {EXAMPLES[name]}" for name in names)


def build_parser() -> Parser:
    """Return the parser of neonext-bench claims."""
    parser = Parser(
        prog="neonext-bench claims",
        description="Measure the claims of the paper on this machine.\n\nexamples:\n" + _examples(EXAMPLES),
    )
    claims = parser.add_subparsers(dest="claim", required=True, metavar="|".join(CLAIMS))
    for name, text in CLAIMS.items():
        example = f"examples:\n{_examples([name])}"
        claim = claims.add_parser(name, help=text, description=f"Claim of the paper: {text}.\n\n{example}")
        claim.add_argument(
            "--threads",
            type=threads,
            default=thread_count(),
            help=THREADS_HELP,
        )
        claim.add_argument("--json", action="store_true", help="print one JSON document")
        import_module(f".{name}", __package__).options(claim)
    return parser


def _main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    claim = import_module(f".{args.claim}", __package__)
    result = {"claim": CLAIMS[args.claim], "threads": args.threads, **claim.measure(args)}
    if args.json:
        print_json(result)
        return
    print(f"claim: {result['claim']}")
    for line in claim.lines(result):
        print(line)


def main(argv: Sequence[str] | None = None) -> int:
    """Run neonext-bench claims; return the exit code."""
    return run(_main, argv)
