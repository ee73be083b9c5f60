"""neonext-mindrecord: a folder of images becomes MindRecord files for training."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from neonext_ms.common.cli import Parser, note, positive_int, print_json, progress, run

DESCRIPTION = """\
Write the images of FOLDER/train/<class>/ and FOLDER/val/<class>/ to MindRecord files in OUTPUT, a new folder.

  neonext-mindrecord /data/imagenet /data/imagenet_records --shards 64
  neonext-train --config configs/t_official.yaml data.dataset=mindrecord data.path=/data/imagenet_records

Training from them gives the same batches as from the folder. Every image is decoded once to check it; broken ones are
named and left out. The files hold the image files as they are. See docs/training.md."""


def build_parser() -> Parser:
    """The command line of neonext-mindrecord."""
    parser = Parser(prog="neonext-mindrecord", description=DESCRIPTION)
    parser.add_argument("folder", metavar="FOLDER", help="images in one folder per class, below train and val")
    parser.add_argument("output", metavar="OUTPUT", help="the folder to write; it must not exist yet")
    parser.add_argument("--shards", type=positive_int, default=8, metavar="N", help="files of each part (default 8)")
    parser.add_argument("--train", default="train", metavar="NAME", help="training images below FOLDER")
    parser.add_argument("--val", default="val", metavar="NAME", help="validation images below FOLDER")
    parser.add_argument(
        "--broken-limit", type=int, default=10, metavar="N", help="broken images before it is an error (default 10)"
    )
    parser.add_argument(
        "--workers",
        type=positive_int,
        default=min(8, os.cpu_count() or 1),
        metavar="N",
        help="threads that check images",
    )
    parser.add_argument("--json", action="store_true", help="print what was written as JSON")
    return parser


def _main(argv: Sequence[str] | None = None) -> int:
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
        parts = {part: {**vars(one)} for part, one in written.items()}
        print_json({"folder": args.folder, "output": args.output, "parts": parts})
        return 0
    for part, one in written.items():
        skipped = f", {len(one.broken)} left out" if one.broken else ""
        print(f"{part:8} {one.images:,} images ({one.bytes:,} bytes) in {len(one.files)} files{skipped}")
    print(args.output)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of neonext-mindrecord; returns the exit code."""
    return run(_main, argv)


if __name__ == "__main__":
    sys.exit(main())
