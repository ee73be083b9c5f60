"""neonext-info: architecture, parameters and multiply-adds of a model or a file, and the published figures."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neonext_ms.checkpoint.options import add_weights_options
from neonext_ms.common.cli import Parser, parse_shifts, parse_size, print_json, run
from neonext_ms.common.errors import InputError, UsageError, usage_errors
from neonext_ms.common.text import format_size, printable

if TYPE_CHECKING:
    from neonext_ms.models.architecture import Architecture

_EXAMPLES = """\
examples:
  neonext-info neonext_t.released_224
  neonext-info neonext_t.pt --image-size 384
  neonext-info neonext_t --receptive-field"""

# Values that a checkpoint may lack, with the option that gives them.
_OPTIONS = {"shifts": "--shifts", "image_size": "--image-size"}


def build_parser() -> Parser:
    """Build the command line of neonext-info."""
    parser = Parser(
        prog="neonext-info",
        description="Describe a registered model, a checkpoint, or an exported file.",
        epilog=_EXAMPLES,
    )
    subject = parser.add_argument_group("subject (one of these)")
    subject.add_argument(
        "model",
        nargs="?",
        metavar="NAME|FILE",
        help="a registered model, a checkpoint, .onnx, .mindir, .om, .ms, or a manifest",
    )
    subject.add_argument("--list", action="store_true", help="list the registered models")
    subject.add_argument("--tables", action="store_true", help="compare the published figures with our counts")
    subject.add_argument(
        "--accuracies", action="store_true", help="list published accuracies of NeoNeXt, ConvNeXt and DeiT"
    )
    options = parser.add_argument_group("options")
    options.add_argument("--shifts", type=parse_shifts, metavar="A,B,C,D", help="shifts of the four stages")
    options.add_argument(
        "--image-size", type=parse_size, metavar="SIZE", help="image size of the counts (default: the model's own)"
    )
    options.add_argument(
        "--receptive-field",
        action="store_true",
        help="add the pixels that an output of each stage depends on, with the shifts and without",
    )
    add_weights_options(options.add_argument)
    parser.add_argument_group("output").add_argument("--json", action="store_true", help="print one JSON document")
    return parser


def _main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    if sum((args.list, args.tables, args.accuracies, args.model is not None)) != 1:
        raise UsageError("expected one of NAME|FILE, --list, --tables and --accuracies")
    if args.receptive_field and args.model is None:
        raise UsageError("--receptive-field: of which network? Name a model or a checkpoint.")
    facts: Any
    show: Callable[[Any], None] = _print_facts
    if args.list:
        from neonext_ms.models.registry import list_models

        facts, show = [_describe_name(name) for name in list_models()], _print_list
    elif args.accuracies:
        from neonext_ms.models.published import ACCURACIES

        facts, show = [asdict(row) for row in ACCURACIES], _print_accuracies
    elif args.tables:
        facts, show = published_rows(), _print_tables
    else:
        facts = _describe(args)
    (print_json if args.json else show)(facts)


def _describe(args: argparse.Namespace) -> dict:
    """Return facts about a registered model or a file as plain values."""
    from neonext_ms.models.registry import list_models
    from neonext_ms.runtime.base import CHECKPOINT_SUFFIXES, model_suffix

    model, image_size = args.model, args.image_size
    chosen = {name: getattr(args, name) for name in ("shifts", "activation") if getattr(args, name) is not None}
    suffix = model_suffix(model)
    if suffix in CHECKPOINT_SUFFIXES:
        return _describe_checkpoint(args)
    if args.ema or args.key:
        raise UsageError(f"{model}: not a checkpoint. Leave out --ema and --key.")
    if suffix in (".onnx", ".mindir", ".om", ".ms", ".json"):
        if chosen or image_size or args.receptive_field:
            raise UsageError(
                f"{model}: shifts, activation and sizes of an exported file are fixed. Leave out --shifts, "
                "--activation, --image-size and --receptive-field."
            )
        return _describe_manifest(model) if suffix == ".json" else _describe_export(model)
    # A name stays one beside a folder called like it, as in neonext-bench.
    if model not in list_models() and Path(model).exists():
        raise InputError(
            f"{model}: not a model file (expected a registered name, a checkpoint, .onnx, .mindir, .om, .ms or a "
            "manifest .json)"
        )
    with usage_errors():
        return _describe_name(model, image_size, args.receptive_field, **chosen)


def _describe_name(
    name: str, image_size: tuple[int, int] | None = None, receptive_field: bool = False, **options: Any
) -> dict[str, Any]:
    from neonext_ms.models.registry import model_config

    config = model_config(name, **options)
    return {
        "model": name,
        **_count(config.architecture, image_size or config.image_size, receptive_field),
        "preprocessing": config.preprocessing.to_dict(),
        "source": config.source,
        "licence": config.licence,
        "official_checkpoint": config.checkpoint,
    }


def _describe_checkpoint(args: argparse.Namespace) -> dict:
    from neonext_ms.checkpoint.checkpoint import load_checkpoint
    from neonext_ms.common.files import sha256
    from neonext_ms.models.registry import candidates, model_config

    path: str = args.model
    checkpoint = load_checkpoint(path, args.shifts, args.ema, args.key, args.activation)
    models = candidates(checkpoint.architecture)
    published = model_config(models[0]).image_size if len(models) == 1 else None
    size = args.image_size or checkpoint.metadata.get("image_size") or published
    if args.receptive_field and (size is None or checkpoint.architecture.shifts is None):
        raise UsageError(f"{path}: --receptive-field needs the shifts and the size. Add --shifts and --image-size.")
    facts = {
        "file": path,
        "sha256": sha256(path),
        "model": " or ".join(models) or None,
        **_count(checkpoint.architecture, size, args.receptive_field),
        "tensors": len(checkpoint.arrays),
        "dtypes": sorted(checkpoint.dtypes),
        "metadata": checkpoint.metadata,
        "notes": checkpoint.notes,
    }
    return _short_int8(facts)


def _describe_export(path: str) -> dict:
    from neonext_ms.common.files import check_regular, sha256
    from neonext_ms.runtime.manifest import is_recorded, read_manifest
    from neonext_ms.runtime.om_file import read_om
    from neonext_ms.runtime.onnx import describe_onnx
    from neonext_ms.runtime.open import describe_file

    check_regular(path)
    facts: dict[str, Any] = {"file": path, "sha256": sha256(path)}
    suffix = Path(path).suffix.lower()
    if suffix == ".onnx":
        # Read, not run: a file for a device may have operators that no runtime here knows.
        return {**facts, **_short_int8(describe_onnx(path))}
    manifest, _ = read_manifest(path)
    # What is not the file of its manifest is described by neither.
    is_recorded(path)
    if suffix == ".om":
        return {**facts, **read_om(path).to_dict(), "metadata": manifest}
    if suffix == ".mindir":
        from neonext_ms.runtime.mindspore import mindir_versions

        facts |= mindir_versions(path)
    runtime, signature = describe_file(path)
    types = signature.output_types or ("",) * len(signature.outputs)
    return {
        **facts,
        "runtime": runtime,
        "inputs": {signature.name or "images": signature.describe()},
        "outputs": dict(zip(signature.outputs, types, strict=True)),
        "batch_sizes": list(signature.batches or ()),
        "classes": signature.classes,
        "weights": signature.weights or None,
        "metadata": manifest,
    }


def _short_int8(facts: dict[str, Any]) -> dict[str, Any]:
    """Return facts about a file with the scales of an 8-bit network as their number and how they were calibrated."""
    short = {}
    # Of an ONNX file, and of a checkpoint that was fine-tuned for 8 bit.
    for key in ("int8", "scales"):
        scales = facts["metadata"].get(key)
        if isinstance(scales, dict) and isinstance(scales.get("layers"), dict):
            short[key] = {"layers in 8 bit": len(scales["layers"]), "calibration": scales.get("calibration")}
    return {**facts, "metadata": {**facts["metadata"], **short}}


def _describe_manifest(path: str) -> dict:
    from neonext_ms.common.files import read_text
    from neonext_ms.runtime.manifest import read_metadata

    values = read_metadata(read_text(path), path)
    # The description of a kit for boards has a version of this package too.
    if "neonext_ms" not in values or "kit" in values:
        raise InputError(f"{path}: not the manifest of an export. neonext-export writes one beside its files.")
    return values


def _count(
    architecture: Architecture, image_size: Sequence[int] | None, receptive_field: bool = False
) -> dict[str, Any]:
    facts: dict[str, Any] = {"architecture": architecture.to_dict(), "parameters": architecture.parameters()}
    facts["image_size"] = None
    if image_size:
        size = (image_size[0], image_size[1])
        facts["image_size"] = list(size)
        facts["maps"] = [list(m) for m in architecture.maps(size)]
        # Shifts cut blocks off at the edges. Unknown ones, of a checkpoint that records none, count as 0.
        facts["multiply_adds"] = architecture.multiply_adds(size)
        facts["multiply_adds_block_diagonal"] = architecture.multiply_adds(size, padded=True)
        if receptive_field:
            facts["receptive_field"] = _fields(architecture, size)
    return facts


def _fields(architecture: Architecture, size: tuple[int, int]) -> dict[str, Any]:
    from neonext_ms.models.receptive_field import describe_fields

    fields: dict[str, Any] = {"shifts": list(architecture.shifts or ())}
    fields["with_shifts"] = describe_fields(architecture, size)
    fields["without_shifts"] = describe_fields(architecture.with_shifts([0] * len(architecture.dims)), size)
    return fields


def published_rows() -> list[dict]:
    """Return every published figure with our counts, and for each count whether it rounds to the figure."""
    from neonext_ms.models.registry import PUBLISHED, model_config

    rows = []
    for figure in PUBLISHED:
        architecture = model_config(figure.model).architecture
        if figure.quantity == "parameters":
            counts = {"counted": architecture.parameters()}
        else:
            size = (figure.image_size, figure.image_size)
            counts = {
                "counted": architecture.multiply_adds(size),
                "counted_block_diagonal": architecture.multiply_adds(size, padded=True),
            }
        agrees = {key: round(value, -figure.digits) == figure.published for key, value in counts.items()}
        facts = {key: value for key, value in asdict(figure).items() if key != "digits"}
        rows.append({**facts, **counts, "agrees": agrees})
    return rows


def _print_list(rows: Sequence[Mapping[str, Any]]) -> None:
    for row in rows:
        print(
            f"{row['model']:24}{row['parameters'] / 1e6:7.1f} M parameters {row['multiply_adds'] / 1e9:6.2f} G "
            f"multiply-adds at {format_size(row['image_size'])}  {row['official_checkpoint'] or ''}".rstrip()
        )


def _print_tables(rows: Sequence[Mapping[str, Any]]) -> None:
    units = {"parameters": (1e6, "M"), "multiply_adds": (1e9, "G")}
    for source in dict.fromkeys(row["source"] for row in rows):
        print(source)
        for row in (r for r in rows if r["source"] == source):
            scale, unit = units[row["quantity"]]
            verdicts = {key: "agrees" if agrees else "differs" for key, agrees in row["agrees"].items()}
            counted = f"{row['counted'] / scale:8.3f} {unit}"
            if "counted_block_diagonal" in row:
                counted += f" by equation 5 ({verdicts['counted']}), {row['counted_block_diagonal'] / scale:.3f} {unit}"
                counted += f" with zeros ({verdicts['counted_block_diagonal']})"
            else:
                counted += f" ({verdicts['counted']})"
            quantity = row["quantity"].replace("_", "-")
            print(
                f"  {row['model']:24}{quantity:14}at {row['image_size']}: published "
                f"{row['published'] / scale:6.1f} {unit}, counted {counted}"
            )


def _print_accuracies(rows: Sequence[Mapping[str, Any]]) -> None:
    from neonext_ms.models.published import accuracy_lines

    print("published by the authors of each network, trained on ImageNet-1k alone; none was measured here")
    for line in accuracy_lines():
        print(line)


def _print_facts(facts: Mapping[str, Any], indent: str = "", names: bool = False) -> None:
    """Print facts, one a line; `names` tells that the keys are names from the file, which stay as they are."""
    for key, value in facts.items():
        # The manifest of several image sizes, which has `files`, records none on purpose.
        if value is None and key in _OPTIONS and "files" not in facts:
            value = f"not recorded (pass {_OPTIONS[key]})"
        if value is None or value in ({}, []):
            continue
        if key == "receptive_field":
            _print_fields(value)
            continue
        label = indent + (printable(key) if names else printable(key).replace("_", " "))
        if isinstance(value, dict):
            print(label)
            _print_facts(value, indent + "  ", key in ("inputs", "outputs"))
        else:
            print(f"{label:<30}{_text(value)}")


def _print_fields(fields: Mapping[str, Any]) -> None:
    """Print, per stage, the smallest, median and largest field over the outputs of its map."""
    for key in ("with_shifts", "without_shifts"):
        shifts = f" {','.join(map(str, fields['shifts']))}" if key == "with_shifts" else ""
        print(f"receptive field, {key.replace('_', ' ')}{shifts}")
        for row in fields[key]:
            pixels, height, width = (list(row[name].values()) for name in ("pixels", "height", "width"))
            boxes = " / ".join(format_size(box) for box in zip(height, width, strict=True))
            print(
                f"  stage {row['stage']}  {format_size(row['map']):8} {' / '.join(f'{n:,}' for n in pixels)} pixels in "
                f"{boxes}, {100 * row['share']:.1f} % of the image"
            )


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return ", ".join(map(_item, value)) if isinstance(value, list) else printable(value)


def _item(value: Any) -> str:
    """Return an element of a list: a size, the file of a manifest's entry, or `N` for a dynamic dimension."""
    if isinstance(value, list):
        return printable(format_size(value))
    if isinstance(value, dict):
        return printable(value.get("file", "..."))
    return "N" if value is None else printable(value)


def main(argv: Sequence[str] | None = None) -> int:
    """Run neonext-info and return its exit code."""
    return run(_main, argv)
