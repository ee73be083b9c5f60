"""neonext-train: train a network, from one CPU to a cluster."""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path

from neonext_ms.common.cli import INTERRUPTED, Parser, note, print_json, run

DESCRIPTION = """\
Train a network as a configuration says.

  neonext-train --config configs/digits.yaml
  neonext-train --config configs/t_official.yaml data.path=/data/imagenet data.batch_size=64
  neonext-train --config configs/digits.yaml --resume auto
  msrun --worker_num=8 --local_worker_num=8 --join=True $(which neonext-train) --config configs/t_official.yaml ...

key=value changes one value of the configuration, such as optimizer.lr=1e-3; --keys lists all of them. A run writes into
run.output (default: runs/ and the name of the configuration), where no other run may be. SIGTERM and Ctrl-C save and
end it with code 130. Several cards are started by msrun. See docs/training.md."""


_OTHERS_END_SECONDS = 3


class _Keys(argparse.Action):
    """List the keys of a configuration and end, as --help does."""

    def __call__(self, parser, namespace, values, option_string=None):
        from neonext_ms.training.config.describe import describe_keys

        part = ""
        for key, default, meaning in describe_keys():
            if key.partition(".")[0] != part:
                part = key.partition(".")[0]
                print(f"{part}:")
            print(textwrap.fill(f"{key}={default}  {meaning}", 110, initial_indent="  ", subsequent_indent=" " * 8))
        parser.exit()


class _Digits(argparse.Action):
    """Write the digits to a folder and end."""

    def __call__(self, parser, namespace, values, option_string=None):
        from neonext_ms.training.data.datasets import write_digits

        write_digits(Path(values))
        print(values)
        parser.exit()


def build_parser() -> Parser:
    """The command line of neonext-train."""
    parser = Parser(prog="neonext-train", description=DESCRIPTION)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values that differ from the configuration")
    parser.add_argument("--config", required=True, metavar="FILE.yaml", help="the configuration")
    parser.add_argument(
        "--resume",
        metavar="auto|PATH",
        help="go on from the newest whole checkpoint of this run (start if there is none), or from a file or a run",
    )
    parser.add_argument("--init", metavar="CHECKPOINT", help="start from these weights, official or ours (fine-tuning)")
    parser.add_argument("--keys", action=_Keys, nargs=0, help="list all keys with defaults and meaning, and end")
    parser.add_argument(
        "--write-digits", action=_Digits, metavar="FOLDER", help="write the images of data.dataset=digits, and end"
    )
    parser.add_argument("--json", action="store_true", help="print what came out as JSON")
    return parser


def _main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_intermixed_args(argv)
    from dataclasses import replace

    from neonext_ms.training.config.schema import load_config

    config = load_config(args.config, args.overrides)
    if args.init:
        config = replace(config, model=replace(config.model, init=args.init))
    if config.run.output is None:
        config = replace(config, run=replace(config.run, output=os.path.join("runs", Path(args.config).stem)))
    from neonext_ms.common.signals import signals_later

    with signals_later():
        from neonext_ms.training.trainer import StoppedError, Trainer

        def report(text: str) -> None:
            print(text, file=sys.stderr if args.json else sys.stdout, flush=True)

        command = [Path(sys.argv[0]).name, *(sys.argv[1:] if argv is None else argv)]
        trainer = Trainer(config, args.resume, command, lambda text: note(f"note: {text}"), report)
    try:
        result = trainer.run()
    except StoppedError as stopped:
        if not trainer.cards.first:
            return 0
        note(f"stopped: {stopped}")
        if trainer.cards.world > 1:
            # At the first exit code that is not 0, msrun kills the others; its scheduler waits long for one that was.
            time.sleep(_OTHERS_END_SECONDS)
        return INTERRUPTED
    if not trainer.cards.first:
        return 0
    if args.json:
        print_json(result)
    else:
        _print(result)
    return 0


def _print(result: dict) -> None:
    best = result["best"]
    print(f"trained  {result['steps']:,} steps of {result['global_batch']} images in {result['seconds']:g} s")
    for name, figures in result["last"].items():
        print(
            f"{name:8} top-1 {100 * figures['top1']:.2f} %, top-5 {100 * figures['top5']:.2f} % of "
            f"{figures['images']:,} images: {result['files'][name]}"
        )
    where = f"{best['weights']}, epoch {best['epoch'] + 1}"
    print(f"best     top-1 {100 * best['top1']:.2f} % ({where}): {result['files']['best']}")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of neonext-train; returns the exit code."""
    return run(_main, argv)


if __name__ == "__main__":
    sys.exit(main())
