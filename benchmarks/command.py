"""neonext-bench: how fast a model is here, against what one would use instead and what the machine allows."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from neonext_ms.commands.predict import positive
from neonext_ms.common.cli import INTERRUPTED, Parser, note, parse_size, print_json, run
from neonext_ms.common.errors import UsageError

DESCRIPTION = """\
Measure models side by side: files (.onnx, .mindir, .om, .ms) or names of networks with random weights.

  neonext-bench neonext_t.onnx other.onnx --batch 1,8
  neonext-bench --models neonext_t,convnext_t,resnet50 --image-size 224 --batch 1,8
  neonext-bench --models neonext_t --naive --torch PYTHON --official REPOSITORY --output result.json
  neonext-bench report result.json --output DIR
  neonext-bench report result.json --compare earlier.json --fail-above 1.1
  neonext-bench predict MODEL.onnx --soc Ascend310P3 --batch 8
  neonext-bench claims complexity|patchwise|share|convnext|neoinit
  neonext-bench variants                              (bfloat16 and 8 bit)
  neonext-bench profile MODEL.onnx|op_summary.csv
  neonext-bench write convnext_t resnet50 --soc Ascend310P3 --batch 1,8 --output peers

Ratios are to the first model. See docs/benchmarks.md."""

# First word -> where its command is.
WORDS = {
    "report": "neonext_ms.benchmarks.report_command:main",
    "predict": "neonext_ms.benchmarks.latency.command:main",
    "claims": "neonext_ms.benchmarks.claims.command:main",
    "profile": "neonext_ms.benchmarks.profiles:main",
    "variants": "neonext_ms.benchmarks.variants:main",
    "write": "neonext_ms.benchmarks.networks.command:main",
}


def _names(text: str) -> list[str]:
    names = [part.strip() for part in text.split(",") if part.strip()]
    if not names:
        raise argparse.ArgumentTypeError(f"expected names separated by commas, got {text!r}")
    return names


def batches(text: str) -> tuple[int, ...]:
    """Batch sizes from a command line, such as `1,8`."""
    return tuple(dict.fromkeys(positive(part.strip()) for part in text.split(",")))


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"expected seconds above 0, got {text!r}")
    return seconds


def _device(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = -1
    if number < 0:
        raise argparse.ArgumentTypeError(f"expected the number of a device, 0 or more, got {text!r}")
    return number


def build_parser() -> Parser:
    """The command line of neonext-bench, without its first words."""
    parser = Parser(prog="neonext-bench", description=DESCRIPTION)
    what = parser.add_argument_group("what")
    what.add_argument("files", nargs="*", metavar="MODEL", help="files and names")
    what.add_argument("--models", type=_names, default=[], metavar="A,B", help="the same, separated by commas")
    what.add_argument(
        "--runtime", type=_names, default=[], metavar="A,B", help="runtimes (default: by the kind of file)"
    )
    what.add_argument("--naive", action="store_true", help="also networks node by node, and through onnxslim")
    what.add_argument("--torch", metavar="PYTHON", help="also the official PyTorch model, in this interpreter ...")
    what.add_argument("--official", metavar="REPOSITORY", help="... from this clone of HapKoM/neonext")
    what.add_argument("--no-gemm", action="store_true", help="without the matrix products alone")
    what.add_argument("--list-models", action="store_true", help="names of networks")
    what.add_argument("--list-runtimes", action="store_true", help="runtimes, and whether they can be used here")
    how = parser.add_argument_group("how")
    how.add_argument("--batch", type=batches, metavar="1,8", help="batch sizes (default: 1,8 and what files fix)")
    how.add_argument("--image-size", type=parse_size, help="224 or 256x320 (height x width), where it is open")
    how.add_argument("--rounds", type=positive, default=100, help="timed calls of each at each batch (default 100)")
    how.add_argument("--seconds", type=_seconds, default=60.0, help="at most so long at each batch (default 60)")
    how.add_argument("--threads", type=positive, help="of a model on the CPU (default: all cores)")
    how.add_argument("--device", type=_device, default=0, help="number of the accelerator (default 0)")
    how.add_argument("--seed", type=_device, default=0, help="of weights, images and order (default 0)")
    how.add_argument("--profile", action="store_true", help="then where the time of each ONNX model goes")
    out = parser.add_argument_group("output")
    out.add_argument("--output", metavar="FILE.json", help="keep everything: machine, versions, every sample")
    out.add_argument("--json", action="store_true", help="the same on standard output instead of tables")
    return parser


class _Progress:
    """One line on stderr, if that is a terminal."""

    def __init__(self):
        self._on = sys.stderr.isatty()
        self._step = ""

    def watch(self, step: str) -> None:
        self._step = step
        self._show(step)

    def rounds(self, step: str, done: int, most: int) -> None:
        self._show(f"{self._step}: {step}, round {done} of at most {most}")

    def _show(self, text: str) -> None:
        if self._on:
            print(f"\r\x1b[K{text[:100]}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        self._show("")


def _main(argv: Sequence[str] | None = None) -> int | None:
    args = build_parser().parse_args(argv)
    if args.list_models:
        return _list_models(args.json)
    if args.list_runtimes:
        return _list_runtimes(args.json)
    import os

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = args.threads or cores
    if threads > cores:
        raise UsageError(f"--threads {threads}: this process may use {cores} cores; ask for no more")
    if args.output and not args.output.lower().endswith(".json"):
        raise UsageError(f"--output {args.output}: expected a name ending in .json")
    from neonext_ms.common.files import explained

    from . import results, session
    from . import subjects as models

    if args.output:
        with explained(args.output):
            if not Path(args.output).absolute().parent.is_dir():
                raise FileNotFoundError(2, "no such folder")
    choice = models.Choice(
        models=[*args.models, *args.files],
        runtimes=args.runtime,
        image_size=args.image_size,
        naive=args.naive,
        torch=models.check_torch(args.torch, args.official),
        seed=args.seed,
    )
    plan = session.Plan(
        batches=args.batch,
        image_size=args.image_size,
        rounds=args.rounds,
        seconds=args.seconds,
        threads=threads,
        device=args.device,
        gemm=not args.no_gemm,
        seed=args.seed,
    )
    words = list(sys.argv[1:] if argv is None else argv)
    about = results.circumstances(["neonext-bench", *words])
    show = _Progress()
    with models.temporary_folder() as folder:
        subjects = models.subjects(choice, Path(folder), show.watch)
        result = {**about, **session.run(subjects, plan, Path(folder), show.watch, show.rounds)}
        show.clear()
        result["notes"] = [*choice.notes, *result["notes"]]
        result["summary"] = [row.to_dict() for row in results.rows(result)]
        if args.profile and not result["partial"]:
            result["profiles"] = _profiles(subjects, result, threads, show.watch)
            show.clear()
        if args.output:
            results.write(args.output, result)
        _print(result, args.json)
    if result["partial"]:
        note(f"interrupted: what was measured until then is {f'in {args.output}' if args.output else 'above'}")
        return INTERRUPTED
    return None


def _print(result: dict, as_json: bool) -> None:
    if as_json:
        print_json(result)
        return
    from .report import markdown

    print(markdown(result), end="")


def _profiles(subjects, result: dict, threads: int, watch) -> list[dict]:
    """Where the time of each ONNX model in onnxruntime goes; Ctrl-C leaves the rest out and marks the result."""
    from . import profiles

    sizes = {subject["label"]: tuple(subject["image_size"]) for subject in result["subjects"]}
    found = []
    try:
        for group in result["batches"]:
            for subject in subjects:
                if subject.runtime == "onnxruntime" and subject.label in {row["label"] for row in group["rows"]}:
                    watch(f"profiling {subject.label}, batch {group['batch']}")
                    profile = profiles.of_onnxruntime(
                        subject.path, group["batch"], threads, image_size=sizes[subject.label]
                    )
                    found.append({"model": subject.label, "batch": group["batch"], **profile.to_dict()})
    except KeyboardInterrupt:
        result["partial"] = True
    return found


def _list_models(as_json: bool) -> None:
    from .subjects import known_names

    names = known_names()
    if as_json:
        print_json(names)
    else:
        print("\n".join(names))


def _list_runtimes(as_json: bool) -> None:
    from . import runtimes
    from .report import table

    found = []
    for name in runtimes.names():
        runtime = runtimes.runtime(name)
        reason = runtime.missing()
        found.append({"runtime": name, "takes": list(runtime.suffixes), "missing": reason, "note": runtime.label})
    if as_json:
        print_json(found)
        return
    body = [
        [
            row["runtime"],
            " ".join(row["takes"]),
            row["note"] or "-",
            f"no: {row['missing']}" if row["missing"] else "yes",
        ]
        for row in found
    ]
    print(table(["runtime", "takes", "note", "here"], body))


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of neonext-bench; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in WORDS:
        module, name = WORDS[words[0]].split(":")
        try:
            command = getattr(import_module(module), name)
        except ModuleNotFoundError as error:
            if not module.startswith(error.name or "?"):
                raise
            print(f"error: neonext-bench {words[0]} is not part of this installation", file=sys.stderr)
            return 1
        return command(words[1:])
    return run(_main, words)


if __name__ == "__main__":
    sys.exit(main())
