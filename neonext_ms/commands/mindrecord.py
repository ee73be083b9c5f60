"""neonext-mindrecord: convert a folder of images to MindRecord files for training."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from neonext_ms.common.cli import (
    MAX_SHARDS,
    Parser,
    int_range,
    non_negative_int,
    note,
    print_json,
    progress,
    run,
    threads,
)
from neonext_ms.common.processors import processors
from neonext_ms.common.text import plural

DESCRIPTION = """\
Convert the images of FOLDER/train/<class>/ and FOLDER/val/<class>/ to MindRecord files in OUTPUT, a new folder.

Training from these files gives the same batches as training from the folder. The files contain the unchanged image
files. Every image is decoded once; broken images are named and skipped. See docs/training.md.

examples:
  neonext-mindrecord /data/imagenet /data/imagenet_records --shards 64
  neonext-train --config configs/t_official.yaml data.dataset=mindrecord data.path=/data/imagenet_records"""


def build_parser() -> Parser:
    """Return the command-line parser of neonext-mindrecord."""
    parser = Parser(prog="neonext-mindrecord", description=DESCRIPTION)
    parser.add_argument("folder", metavar="FOLDER", help="folder of the images")
    parser.add_argument("output", metavar="OUTPUT", help="folder to create")
    source = parser.add_argument_group("source")
    source.add_argument("--train", default="train", metavar="NAME", help="training images below FOLDER (default train)")
    source.add_argument("--val", default="val", metavar="NAME", help="validation images below FOLDER (default val)")
    source.add_argument(
        "--broken-limit", type=non_negative_int, default=10, metavar="N", help="broken images to skip (default 10)"
    )
    source.add_argument(
        "--workers", type=threads, default=min(8, processors()), metavar="N",
        help="threads that check images (default: all processors, at most 8)",
    )  # fmt: skip
    output = parser.add_argument_group("output")
    output.add_argument(
        "--shards", type=int_range(1, MAX_SHARDS), default=8, metavar="N", help="files per part (default 8)"
    )
    output.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser


def _main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    from neonext_ms.common.signals import signals_later

    with signals_later():
        from neonext_ms.training.data.mindrecord import write_records
    written = write_records(
        args.folder,
        args.output,
        (args.train, args.val),
        args.shards,
        args.broken_limit,
        args.workers,
        lambda text: note(f"note: {text}"),
        progress,
    )
    if args.json:
        print_json({"folder": args.folder, "output": args.output, "parts": written})
        return
    for part, entry in written.items():
        skipped = f", {len(entry['broken'])} skipped" if entry["broken"] else ""
        print(
            f"{part:8} {plural(entry['images'], 'image')} ({entry['bytes']:,} bytes) in "
            f"{plural(len(entry['files']), 'file')}{skipped}"
        )
    print(args.output)


def main(argv: Sequence[str] | None = None) -> int:
    """Run neonext-mindrecord and return its exit code."""
    return run(_main, argv)


if __name__ == "__main__":
    sys.exit(main())
