"""neonext-bench: measure models on this machine, against other models and against the GEMM rate of the machine."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from neonext_ms.common.cli import (
    INTERRUPTED,
    THREADS_HELP,
    Parser,
    StatusLine,
    batch_size,
    comma_list,
    non_negative_int,
    note,
    own_process,
    parse_size,
    positive_int,
    print_json,
    random_seed,
    run,
    seconds,
    threads,
)
from neonext_ms.common.errors import UsageError
from neonext_ms.common.files import temporary_folder
from neonext_ms.common.processors import thread_count
from neonext_ms.common.renamed import current_words

# First word -> module with `main`, and its line in --help.
WORDS = {
    "report": ("report_command", "tables and pictures of a result, or its comparison with an earlier one"),
    "estimate": ("latency.command", "predicted time of a model on an Ascend device"),
    "claims": ("claims.command", "claims of the paper, measured on this machine"),
    "variants": ("variants", "speed and deviation of bfloat16 and of 8 bit"),
    "profile": ("profiles", "time by layer of an ONNX model, or of a file of msprof"),
    "write": ("networks.command", "published networks as ONNX files, to compare with elsewhere"),
}

DESCRIPTION = """\
Measure models side by side: model files (.onnx, .mindir, .om, .ms, checkpoints) or named networks with random
weights. Ratios are relative to the first model.

examples:
  neonext-bench neonext_t.onnx other.onnx --batch 1,8
  neonext-bench --models neonext_t,convnext_t,resnet50 --image-size 224 --batch 1,8
  neonext-bench --models neonext_t --naive --torch PYTHON --official REPOSITORY --output result.json
  neonext-bench report result.json --compare earlier.json --fail-above 1.1
  neonext-bench estimate MODEL.onnx --soc Ascend310P3 --batch 8

subcommands (each has its own --help):
""" + "\n".join(f"  {word:10}{text}" for word, (_, text) in WORDS.items())


def build_parser() -> Parser:
    """Return the parser of neonext-bench, without its subcommands."""
    parser = Parser(prog="neonext-bench", description=DESCRIPTION, epilog="See docs/benchmarking.md.")
    models = parser.add_argument_group("models")
    models.add_argument("files", nargs="*", metavar="MODEL", help="model files and names of networks")
    models.add_argument("--models", type=comma_list(), default=(), metavar="NAMES", help="the same, as one list")
    models.add_argument(
        "--runtime", type=comma_list(), default=(), metavar="NAMES", help="runtimes (default: chosen by the suffix)"
    )
    models.add_argument("--naive", action="store_true", help="add networks node by node, and through onnxslim")
    models.add_argument("--torch", metavar="PYTHON", help="add the official PyTorch model, in this interpreter")
    models.add_argument("--official", metavar="REPOSITORY", help="clone of HapKoM/neonext, for --torch")
    models.add_argument("--list-models", action="store_true", help="list the names of networks")
    models.add_argument("--list-runtimes", action="store_true", help="list the runtimes, and which can be used here")
    conditions = parser.add_argument_group("conditions")
    conditions.add_argument(
        "--batch", type=comma_list(batch_size), metavar="SIZES", help="batch sizes (default: 1,8, or fixed by files)"
    )
    conditions.add_argument(
        "--image-size", type=parse_size, help="224 or 256x320 (height x width), for models that leave it open"
    )
    conditions.add_argument(
        "--rounds", type=positive_int, default=100, help="timed calls of each model at each batch (default 100)"
    )
    conditions.add_argument(
        "--seconds", type=seconds, default=60.0, help="time limit at each batch, without warm-up (default 60)"
    )
    conditions.add_argument("--threads", type=threads, help=THREADS_HELP)
    conditions.add_argument("--device", type=non_negative_int, default=0, help="number of the accelerator (default 0)")
    conditions.add_argument(
        "--seed", type=random_seed, default=0, help="random seed of weights, images and order (default 0)"
    )
    conditions.add_argument("--no-gemm", action="store_true", help="omit the models' matrix products")
    conditions.add_argument("--profile", action="store_true", help="profile each ONNX model afterwards")
    output = parser.add_argument_group("output")
    output.add_argument("--output", metavar="FILE.json", help="write the result: machine, versions, every sample")
    output.add_argument("--json", action="store_true", help="print the result as JSON instead of tables")
    return parser


def _main(argv: Sequence[str] | None = None) -> int | None:
    args = build_parser().parse_args(argv)
    if args.list_models or args.list_runtimes:
        (_list_models if args.list_models else _list_runtimes)(args.json)
        return None
    if args.files and not Path(args.files[0]).exists():
        close = difflib.get_close_matches(args.files[0], WORDS, n=1, cutoff=0.75)
        if close:
            raise UsageError(f"{args.files[0]!r}: unknown subcommand (did you mean {close[0]}?)")
    count = thread_count(args.threads)
    _check_output(args.output)

    from . import official_torch, results, session, subjects

    selection = subjects.Selection(
        models=[*args.models, *args.files],
        runtimes=args.runtime,
        image_size=args.image_size,
        naive=args.naive,
        torch=official_torch.check_torch(args.torch, args.official),
        seed=args.seed,
    )
    conditions = session.Conditions(
        batches=args.batch,
        image_size=args.image_size,
        rounds=args.rounds,
        seconds=args.seconds,
        threads=count,
        device=args.device,
        gemm=not args.no_gemm,
        seed=args.seed,
    )
    environment = results.environment(["neonext-bench", *(sys.argv[1:] if argv is None else argv)])
    status = _Status()
    with temporary_folder() as folder:
        selected = subjects.subjects(selection, folder, status.step)
        result = {
            **environment,
            **session.run(selected, conditions, folder, status.step, status.round),
        }
        result["notes"] = [*selection.notes, *result["notes"]]
        result["summary"] = [entry.to_dict() for entry in results.entries(result)]
        if args.profile and not result["partial"]:
            result["profiles"] = _profiles(selected, result, count, status.step)
        status.line.clear()
        if args.output:
            results.write(args.output, result)
        _print(result, args.json)
    if result["partial"]:
        note(f"interrupted: the result so far is {f'in {args.output}' if args.output else 'above'}")
        return INTERRUPTED
    return None


def _check_output(output: str | None) -> None:
    from neonext_ms.common.files import explained

    if output is None:
        return
    if not output.lower().endswith(".json"):
        raise UsageError(f"--output {output}: expected a name ending in .json")
    with explained(output):
        if not Path(output).absolute().parent.is_dir():
            raise FileNotFoundError(2, "no such folder")


class _Status:
    """Progress of a run in one line on stderr."""

    def __init__(self):
        self.line = StatusLine()
        self._step = ""

    def step(self, name: str) -> None:
        self._step = name
        self.line.show(name)

    def round(self, phase: str, done: int, limit: int) -> None:
        self.line.show(f"{self._step}: {phase}, round {done} of at most {limit}")


def _print(result: dict, as_json: bool) -> None:
    if as_json:
        print_json(result)
        return
    from .report import markdown

    print(markdown(result), end="")


def _profiles(subjects, result: dict, threads: int, status) -> list[dict]:
    """Profile each ONNX model in onnxruntime; Ctrl-C omits the rest and marks the result as partial."""
    from . import profiles

    sizes = {subject["label"]: tuple(subject["image_size"]) for subject in result["subjects"]}
    profiled = []
    try:
        for group in result["batches"]:
            for subject in subjects:
                if subject.runtime == "onnxruntime" and subject.label in {row["label"] for row in group["rows"]}:
                    status(f"profiling {subject.label}, batch {group['batch']}")
                    profile = profiles.of_onnxruntime(
                        subject.path, group["batch"], threads, image_size=sizes[subject.label]
                    )
                    profiled.append({"model": subject.label, "batch": group["batch"], **profile.to_dict()})
    except KeyboardInterrupt:
        result["partial"] = True
    return profiled


def _list_models(as_json: bool) -> None:
    from .subjects import known_names

    names = known_names()
    if as_json:
        print_json(names)
    else:
        print("\n".join(names))


def _list_runtimes(as_json: bool) -> None:
    from neonext_ms.runtime.open import RUNTIMES, runtime_class

    from .report import table

    rows = []
    for name in RUNTIMES:
        kind = runtime_class(name)
        rows.append({"runtime": name, "takes": list(kind.suffixes), "missing": kind.missing(), "note": kind.label})
    if as_json:
        print_json(rows)
        return
    body = [
        [
            str(row["runtime"]),
            " ".join(row["takes"] or ()),
            str(row["note"] or "-"),
            f"no: {row['missing']}" if row["missing"] else "yes",
        ]
        for row in rows
    ]
    print(table(["runtime", "takes", "note", "here"], body))


def main(argv: Sequence[str] | None = None) -> int:
    """Run neonext-bench or one of its subcommands; return the exit code."""
    words = current_words("neonext-bench", sys.argv[1:] if argv is None else argv)
    if argv is None:
        own_process()
    if words and words[0] in WORDS:
        return import_module(f"{__package__}.{WORDS[words[0]][0]}").main(words[1:])
    return run(_main, words)


def ablate(argv: Sequence[str] | None = None) -> int:
    """Run the claim that neonext-ablate measured; return the exit code."""
    return main(current_words("neonext-ablate", sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    sys.exit(main())
