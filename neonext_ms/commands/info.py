"""neonext-info: what a model or a file is: architecture, parameters, multiply-adds, and what was published of it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from neonext_ms.common.cli import Parser, parse_shifts, parse_size, print_json, run
from neonext_ms.common.errors import UsageError

DESCRIPTION = """\
Describe a named model, a checkpoint, or an exported file.

  neonext-info neonext_t.released_224
  neonext-info neonext_t.pt --image-size 384
  neonext-info build/t/neonext_t.onnx
  neonext-info --list
  neonext-info --tables          (published figures beside the counts of this package)"""


def build_parser() -> Parser:
    """The command line of neonext-info."""
    parser = Parser(prog="neonext-info", description=DESCRIPTION)
    parser.add_argument(
        "model", nargs="?", metavar="NAME|FILE", help="a named model, a checkpoint, .onnx, .mindir, or a manifest"
    )
    parser.add_argument("--list", action="store_true", help="the named models")
    parser.add_argument("--tables", action="store_true", help="published figures beside our own counts")
    parser.add_argument("--shifts", type=parse_shifts, help="NeoCell shift of the four stages, such as 1,1,1,0")
    parser.add_argument("--image-size", type=parse_size, help="count for this size (default: the model's own)")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    return parser


def _main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    if sum((args.list, args.tables, args.model is not None)) != 1:
        raise UsageError("give one of NAME|FILE, --list and --tables")
    if args.list:
        rows = [_describe_name(name, None) for name in _list_models()]
        return print_json(rows) if args.json else _print_list(rows)
    if args.tables:
        rows = published_rows()
        return print_json(rows) if args.json else _print_tables(rows)
    facts = describe(args.model, args.shifts, args.image_size)
    return print_json(facts) if args.json else _print_facts(facts)


def _list_models() -> list[str]:
    from neonext_ms.models.registry import list_models

    return list_models()


def describe(model: str, shifts: Sequence[int] | None = None, image_size: Sequence[int] | None = None) -> dict:
    """Facts about a named model or a file, plain values.

    Raises:
        InputError: an unknown name, or a file that cannot be read.
        UsageError: an option that does not go with it.
    """
    from neonext_ms.runtime.base import CHECKPOINT_SUFFIXES

    suffix = Path(model).suffix.lower()
    if suffix in CHECKPOINT_SUFFIXES:
        return _describe_checkpoint(model, shifts, image_size)
    if suffix in (".onnx", ".mindir", ".json"):
        if shifts or image_size:
            raise UsageError(f"{model}: an exported file has its shifts and its size; leave --shifts, --image-size out")
        return _describe_manifest(model) if suffix == ".json" else _describe_export(model)
    return _describe_name(model, image_size, shifts)


def _describe_name(name: str, image_size, shifts=None) -> dict:
    from neonext_ms.models.registry import model_config

    config = model_config(name, **({} if shifts is None else {"shifts": shifts}))
    return {
        "model": name,
        **_count(config.architecture, image_size or config.image_size),
        "preprocessing": config.preprocessing.to_dict(),
        "source": config.source,
        "licence": config.licence,
        "official_checkpoint": config.checkpoint,
    }


def _describe_checkpoint(path: str, shifts, image_size) -> dict:
    from neonext_ms.checkpoint.checkpoint import load_checkpoint
    from neonext_ms.common.files import sha256
    from neonext_ms.models.registry import candidates, model_config

    checkpoint = load_checkpoint(path, shifts)
    models = candidates(checkpoint.architecture)
    published = model_config(models[0]).image_size if len(models) == 1 else None
    size = image_size or checkpoint.metadata.get("image_size") or published
    return {
        "file": path,
        "sha256": sha256(path),
        "model": " or ".join(models) or None,
        **_count(checkpoint.architecture, size),
        "tensors": len(checkpoint.arrays),
        "dtypes": sorted({str(array.dtype) for array in checkpoint.arrays.values()}),
        "metadata": checkpoint.metadata,
        "notes": list(checkpoint.notes),
    }


def _describe_export(path: str) -> dict:
    from neonext_ms.common.files import sha256
    from neonext_ms.runtime.manifest import read_manifest
    from neonext_ms.runtime.onnx import describe_onnx
    from neonext_ms.runtime.open import open_runtime

    if Path(path).suffix.lower() == ".onnx":
        # Read, not run: a file for a device may have operators that no runtime here knows.
        return {"file": path, "sha256": sha256(path), **describe_onnx(path)}
    manifest, _ = read_manifest(path)
    with open_runtime(path) as runtime:
        facts = {"runtime": runtime.name, "input": [runtime.batch, 3, *runtime.input_size], "classes": runtime.classes}
    return {"file": path, "sha256": sha256(path), **facts, "metadata": manifest}


def _describe_manifest(path: str) -> dict:
    import json

    from neonext_ms.common.errors import InputError
    from neonext_ms.common.files import explained

    try:
        with explained(path), open(path, encoding="utf-8") as file:
            values = json.load(file)
    except ValueError as error:
        raise InputError(f"{path}: not a JSON file ({error}); expected the manifest of an export") from error
    if not isinstance(values, dict) or "neonext_ms" not in values:
        raise InputError(f"{path}: not the manifest of an export; neonext-export writes one beside its files")
    return values


def _count(architecture, image_size) -> dict:
    facts = {"architecture": architecture.to_dict(), "parameters": architecture.parameters()}
    if image_size:
        size = tuple(image_size)
        facts["image_size"] = list(size)
        facts["maps"] = [list(m) for m in architecture.maps(size)]
        # Shifts cut blocks at the edges; a checkpoint that does not tell them is counted without.
        facts["multiply_adds"] = architecture.multiply_adds(size)
        facts["multiply_adds_block_diagonal"] = architecture.multiply_adds(size, padded=True)
    return facts


def published_rows() -> list[dict]:
    """Every published figure with our counts, and whether a count rounds to the figure."""
    from neonext_ms.models.registry import PUBLISHED, model_config

    rows = []
    for figure in PUBLISHED:
        architecture = model_config(figure.model).architecture
        size = (figure.image_size, figure.image_size)
        if figure.quantity == "parameters":
            counts = {"counted": architecture.parameters()}
        else:
            counts = {
                "counted": architecture.multiply_adds(size),
                "counted_block_diagonal": architecture.multiply_adds(size, padded=True),
            }
        agrees = {key: round(value, -figure.digits) == figure.value for key, value in counts.items()}
        rows.append(
            {
                "model": figure.model,
                "quantity": figure.quantity,
                "image_size": figure.image_size,
                "published": figure.value,
                "source": figure.source,
                **counts,
                "agrees": agrees,
            }
        )
    return rows


def _print_list(rows: list[dict]) -> None:
    for row in rows:
        size = "x".join(map(str, row["image_size"]))
        print(
            f"{row['model']:24}{row['parameters'] / 1e6:7.1f} M parameters {row['multiply_adds'] / 1e9:6.2f} G "
            f"multiply-adds at {size}  {row['official_checkpoint'] or ''}".rstrip()
        )


def _print_tables(rows: list[dict]) -> None:
    units = {"parameters": (1e6, "M"), "multiply_adds": (1e9, "G")}
    for source in dict.fromkeys(row["source"] for row in rows):
        print(source)
        for row in (r for r in rows if r["source"] == source):
            scale, unit = units[row["quantity"]]
            counted = f"{row['counted'] / scale:8.3f} {unit}"
            verdict = "agrees" if row["agrees"]["counted"] else "differs"
            if "counted_block_diagonal" in row:
                counted += f" by equation 5 ({verdict}), {row['counted_block_diagonal'] / scale:.3f} {unit} with zeros"
                verdict = "agrees" if row["agrees"]["counted_block_diagonal"] else "differs"
            quantity = row["quantity"].replace("_", "-")
            print(
                f"  {row['model']:24}{quantity:14}at {row['image_size']}: published "
                f"{row['published'] / scale:6.1f} {unit}, counted {counted} ({verdict})"
            )


def _print_facts(facts: dict, indent: str = "") -> None:
    for key, value in facts.items():
        if value is None or value in ({}, []):
            continue
        label = f"{indent}{key.replace('_', ' ')}"
        if isinstance(value, dict):
            print(label)
            _print_facts(value, indent + "  ")
        else:
            print(f"{label:<{30}}{_text(value)}")


def _text(value) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list):
        parts = [
            "x".join(map(str, v)) if isinstance(v, list) else v.get("file", "...") if isinstance(v, dict)
            else "N" if v is None else str(v)
            for v in value
        ]  # fmt: skip
        return ", ".join(parts)
    return str(value)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of neonext-info; returns the exit code."""
    return run(_main, argv)


if __name__ == "__main__":
    sys.exit(main())
