"""neonext-train: train a network, on one CPU or many cards."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path

from neonext_ms.common.cli import INTERRUPTED, Parser, note, print_json, run
from neonext_ms.common.files import remove_stages

DESCRIPTION = """\
Train a network from a configuration. key=value changes a value of the configuration, such as optimizer.lr=1e-3.

The run writes into run.output (default: runs/ and the name of the configuration). SIGTERM and Ctrl-C save its state and
end it with exit code 130. See docs/training.md.

examples:
  neonext-train --config configs/digits.yaml
  neonext-train --config configs/digits.yaml --resume auto
  msrun --worker_num=8 --local_worker_num=8 --join=True $(which neonext-train) --config configs/t_official.yaml ..."""

USAGE = """\
neonext-train --config FILE.yaml [--init CHECKPOINT] [--resume auto|PATH] [--json] [key=value ...]
       neonext-train --keys
       neonext-train --write-digits FOLDER"""
_OTHERS_END_SECONDS = 3


class _Keys(argparse.Action):
    """An option that lists the keys of a configuration and exits, as --help does."""

    def __call__(self, parser, namespace, values, option_string=None):
        from neonext_ms.training.config.describe import describe_keys

        part = ""
        for key, default, accepted, meaning in describe_keys():
            if key.partition(".")[0] != part:
                part = key.partition(".")[0]
                print(f"{part}:")
            print(f"  {key}={default}  ({accepted})")
            if meaning:
                print(textwrap.fill(meaning, 110, initial_indent=" " * 8, subsequent_indent=" " * 8))
        parser.exit()


class _Digits(argparse.Action):
    """An option that writes the digits to a folder and exits."""

    def __call__(self, parser, namespace, values, option_string=None):
        from neonext_ms.training.data.datasets import write_digits

        write_digits(Path(values))
        print(values)
        parser.exit()


def build_parser() -> Parser:
    """Return the command-line parser of neonext-train."""
    parser = Parser(prog="neonext-train", usage=USAGE, description=DESCRIPTION)
    config = parser.add_argument_group("configuration")
    config.add_argument("--config", required=True, metavar="FILE.yaml", help="configuration file")
    config.add_argument("overrides", nargs="*", metavar="key=value", help="values to change in the configuration")
    config.add_argument("--keys", action=_Keys, nargs=0, help="list all keys with defaults and meaning, and exit")
    start = parser.add_argument_group("start")
    start.add_argument("--init", metavar="CHECKPOINT", help="fine-tune from these weights, official or ours")
    start.add_argument(
        "--resume",
        metavar="auto|PATH",
        help="resume from a checkpoint or run, or (auto) from the newest checkpoint of this run if there is one",
    )
    output = parser.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="print the result as JSON")
    output.add_argument(
        "--write-digits", action=_Digits, metavar="FOLDER", help="write the images of data.dataset=digits, and exit"
    )
    return parser


def _main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_intermixed_args(argv)
    from dataclasses import replace

    from neonext_ms.training.config.load import load_config

    config = load_config(args.config, args.overrides)
    if args.init:
        config = replace(config, model=replace(config.model, init=args.init))
    if config.run.output is None:
        config = replace(config, run=replace(config.run, output=os.path.join("runs", Path(args.config).stem)))
    from neonext_ms.common.signals import signals_later

    with signals_later():
        from neonext_ms.training.data.loader import ReadingStoppedError
        from neonext_ms.training.reader_watch import killed_text, watch_readers
        from neonext_ms.training.trainer import StoppedError, Trainer

        def report(text: str) -> None:
            print(text, file=sys.stderr if args.json else sys.stdout, flush=True)

        command = [Path(sys.argv[0]).name, *(sys.argv[1:] if argv is None else argv)]
        trainer = Trainer(
            config, args.resume, command, lambda text: note(f"note: {text}"), report, scales_of=_scales_of
        )

    def give_up(killed: signal.Signals) -> None:
        note(f"error: {killed_text(killed)}")
        _end_now(1)

    try:
        with watch_readers(lambda: trainer.progress.step, give_up):
            result = trainer.run()
    except StoppedError as stopped:
        if not trainer.cards.first:
            return 0
        note(f"stopped: {stopped}")
        if trainer.cards.world > 1:
            # msrun kills all processes at the first exit code other than 0, so the other cards exit first. This one
            # ends with MindSpore's clean-up, which signs it off; the scheduler waits half a minute for one that
            # vanished, and reports it as lost.
            time.sleep(_OTHERS_END_SECONDS)
        elif argv is None or isinstance(stopped.__context__, ReadingStoppedError):
            # A thread may wait for an image that never comes. A command does not wait for the clean-up either.
            _end_now(INTERRUPTED)
        return INTERRUPTED
    if not trainer.cards.first:
        return 0
    if args.json:
        print_json(result)
    else:
        _print(result)
    return 0


def _scales_of(*arguments):
    """Return the scales of a network to train in 8 bit; the modules that calibrate load when they are needed."""
    from neonext_ms.export.quantize.fine_tuning import training_scales

    return training_scales(*arguments)


def _end_now(code: int) -> None:
    """End the process without MindSpore's clean-up, which takes seconds or waits for an image that may never come."""
    remove_stages()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _print(result: dict) -> None:
    best = result["best"]
    print(f"trained  {result['steps']:,} steps of {result['global_batch']} images in {result['seconds']:g} s")
    for name, figures in result["last"].items():
        print(
            f"{name:8} top-1 {100 * figures['top1']:.2f} %, top-5 {100 * figures['top5']:.2f} % of "
            f"{figures['images']:,} images: {result['files'][name]}"
        )
    origin = f"{best['weights']}, epoch {best['epoch'] + 1}"
    print(f"best     top-1 {100 * best['top1']:.2f} % ({origin}): {result['files']['best']}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run neonext-train and return its exit code."""
    return run(_main, argv)


if __name__ == "__main__":
    sys.exit(main())
