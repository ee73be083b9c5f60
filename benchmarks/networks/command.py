"""neonext-bench write: published networks as ONNX files, to compare with on a board or in another runtime."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from neonext_ms.common.cli import Parser, note, parse_size, print_json, progress, random_seed, run
from neonext_ms.common.errors import UsageError
from neonext_ms.common.files import publish, staging
from neonext_ms.common.text import format_bytes, format_size

from . import FORMS, NETWORKS, TARGETS, names, write

DESCRIPTION = """\
Write published networks with random weights as ONNX files.

examples:
  neonext-bench write convnext_t resnet50 --output peers
  neonext-bench write convnext_t --target cann --soc Ascend310P3 --batch 1,8 --output peers
  neonext-bench write --list

--soc also writes build_om.sh, which compiles the files where CANN is installed, with the options that neonext-export
gives NeoNeXt's own files. None of this has run on a device."""


def build_parser() -> Parser:
    """Return the parser of neonext-bench write."""
    from neonext_ms.export.command import parse_batch
    from neonext_ms.export.om.options import PRECISION_MODES

    parser = Parser(prog="neonext-bench write", description=DESCRIPTION)
    parser.add_argument("names", nargs="*", metavar="NAME", help="networks; see --list")
    parser.add_argument("--list", action="store_true", help="list the networks, their forms and published counts")
    parser.add_argument("--form", choices=FORMS, help="form (default: folded where it exists, otherwise plain)")
    parser.add_argument("--target", choices=TARGETS, help="onnx, or cann for ATC (default: onnx; cann with --soc)")
    parser.add_argument("--image-size", type=parse_size, help="224 or 256x320 (default: the network's own)")
    parser.add_argument(
        "--batch", type=parse_batch, default=(1,), help="dynamic, or batch sizes with a file each (default: 1)"
    )
    parser.add_argument("--soc", help="device for build_om.sh, such as Ascend310P3")
    parser.add_argument("--precision", choices=PRECISION_MODES, default="fp16", help="for build_om.sh (default: fp16)")
    parser.add_argument("--seed", type=random_seed, default=0, help="random seed of the weights (default: 0)")
    parser.add_argument("--output", default=".", metavar="DIR", help="output folder (default: the current one)")
    parser.add_argument("--json", action="store_true", help="print one JSON document on stdout")
    return parser


def _main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    if args.list == bool(args.names):
        raise UsageError("expected names of networks, or --list")
    if args.list:
        return _list(args.json)
    if args.soc and not args.batch:
        raise UsageError("build_om.sh needs batch sizes. Add --batch 1 or --batch 1,8.")
    if args.soc and args.target == "onnx":
        raise UsageError("--soc requires --target cann")
    rows = _write_all(args)
    if args.json:
        return print_json(rows)
    for row in rows:
        print(f"{row['file']}  {format_bytes(row['bytes'])}" if "name" in row else row["file"])


def _write_all(args: argparse.Namespace) -> list[dict]:
    """Write all files that the command line asks for, or none.

    Returns:
        for each network file its path, size, name, form, target, batch (None: dynamic) and image size; with a
        device, a last row for the script.
    """
    from neonext_ms.export.om.options import OmOptions
    from neonext_ms.export.om.target import COMPILERS, Job, write_script

    target = args.target or ("cann" if args.soc else "onnx")
    output, rows, jobs = Path(args.output), [], []
    with staging(output) as stage:
        files = [(name, batch) for name in dict.fromkeys(args.names) for batch in args.batch or (None,)]
        for name, batch in progress(files, what="writing", quiet=args.json):
            form = args.form or ("folded" if name in names("folded") else "plain")
            size = args.image_size or (NETWORKS[name].image_size if name in NETWORKS else (224, 224))
            stem = "_".join([name, form, format_size(size), f"b{batch}" if batch else "dynamic"])
            path = stage / f"{stem}.onnx"
            write(name, path, target=target, batch=batch, image_size=size, form=form, seed=args.seed)
            about = {"name": name, "form": form, "target": target, "batch": batch, "image_size": list(size)}
            rows.append({"file": path.name, "bytes": path.stat().st_size, **about})
            if target == "cann":
                _warn(path)
            if args.soc and batch:
                options = OmOptions(args.soc, args.precision)
                jobs.append(Job(stem, size, (batch,), options, COMPILERS["atc"], onnx_suffix=".onnx"))
                jobs[-1].check()
        if jobs:
            rows.append({"file": write_script(jobs, stage)})
        for row in rows:
            row["file"] = str(publish(stage / row["file"], output / row["file"]))
    if jobs:
        script = Path(rows[-1]["file"])
        script.chmod(script.stat().st_mode | 0o111)
    return rows


def _warn(path: Path) -> None:
    """Print what ATC's parser refuses, but not what only costs it time."""
    import onnx

    from neonext_ms.export.om import parser_support

    problems = [finding for finding in parser_support.check(onnx.load(path)) if finding.refused]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        note(f"{path.name}: ATC rejects it: {problems[0]}{more}")


def _list(as_json: bool) -> None:
    from ..report import table

    rows = [
        {
            "name": name,
            "forms": list(network.forms),
            "parameters": network.parameters,
            "multiply_adds": network.multiply_adds * 1e9,
            "image_size": list(network.image_size),
            "source": network.source,
        }
        for name, network in NETWORKS.items()
    ]
    if as_json:
        return print_json(rows)
    body = [
        [name, ", ".join(network.forms), f"{network.parameters / 1e6:.1f} M", f"{network.multiply_adds:.3g} G",
         format_size(network.image_size), network.source]
        for name, network in NETWORKS.items()
    ]  # fmt: skip
    print(table(["network", "forms", "parameters", "multiply-adds", "at", "counts from"], body))


def main(argv: Sequence[str] | None = None) -> int:
    """Run `neonext-bench write` and return its exit code."""
    return run(_main, argv)
