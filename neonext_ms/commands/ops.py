"""neonext-ops: build, install and check the AscendC operator package, and run its kernels in the simulator."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from neonext_ms.common.cli import EXIT_CODES, Parser, note, print_json, run, seconds
from neonext_ms.common.errors import InputError, ParityError, ToolchainError
from neonext_ms.common.renamed import current_words
from neonext_ms.common.text import list_names
from neonext_ms.ops.package import FAMILIES, installed_package, loading, misplaced_package, package_files

from . import simulate

DESCRIPTION = f"""\
Build, install and check the AscendC operator package of NeoCell, and run its kernels in the simulator.

examples:
  neonext-ops build --soc Ascend310P3 --output build     needs the CANN toolkit
  neonext-ops simulate --spec '{{"kernel": 7, "channels": 96, "shift": 1}}' --map 56     runs on any host with g++

The package has not run with an installed CANN or on a device yet; see docs/operator.md.

{EXIT_CODES}"""


def build_parser() -> Parser:
    """Return the argument parser of neonext-ops."""
    parser = Parser(prog="neonext-ops", description=DESCRIPTION)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)

    def add(name: str, summary: str, *examples: str) -> Parser:
        lines = "\n".join(f"  neonext-ops {name} {example}".rstrip() for example in examples)
        description = f"{summary[0].upper()}{summary[1:]}.\n\nexamples:\n{lines}\n\n{EXIT_CODES}"
        return commands.add_parser(name, help=summary, description=description)

    build = add(
        "build",
        "build custom_opp_<system>_<machine>.run with an installed CANN",
        "--soc Ascend310P3 --output build",
        "--soc Ascend310P3 --dry-run",
    )
    build.add_argument("--soc", default="", help="devices, such as Ascend310P3,Ascend910B3 (default: all families)")
    build.add_argument("--output", default=".", metavar="DIR", help="folder for the package (default: current folder)")
    build.add_argument(
        "--with",
        dest="way",
        choices=("cann", "mindspore"),
        default="cann",
        help="cann: build.sh of the project; mindspore: MindSpore's own compiler, without the ONNX plugin "
        "(default: cann)",
    )
    build.add_argument("--cann", metavar="DIR", help="CANN toolkit (default: ASCEND_HOME_PATH or the usual places)")

    install = add("install", "install a package that `build` wrote", "build/custom_opp_ubuntu_aarch64.run")
    install.add_argument("package", metavar="FILE.run", help="package to install")
    install.add_argument("--install-path", metavar="DIR", help="absolute path (default: the operators of CANN)")

    check = add(
        "check", "check the files of an installed package, and on Ascend its results", "", "--soc Ascend310P3 --json"
    )
    check.add_argument("--package", metavar="DIR", help="folder .../vendors/<vendor> (default: where CANN searches)")
    check.add_argument("--soc", default="", help="devices that need compiled kernels (default: those configured)")

    for command in (build, install):
        command.add_argument(
            "--timeout", type=seconds, default=3600.0, metavar="SECONDS", help="time limit (default: 3600)"
        )
        command.add_argument("--dry-run", action="store_true", help="print the command without running it")
    for command in (build, install, check):
        command.add_argument("--json", action="store_true", help="print one JSON document on stdout")
    simulate.add_parser(commands)
    return parser


def _main(argv: Sequence[str] | None = None) -> int | None:
    args = build_parser().parse_args(current_words("neonext-ops", sys.argv[1:] if argv is None else argv))
    return {"build": _build, "install": _install, "check": _check, "simulate": simulate.simulate}[args.command](args)


def _build(args: argparse.Namespace) -> None:
    from neonext_ms.common.external_tools import quoted
    from neonext_ms.ops import package_build

    families = package_build.parse_families(args.soc) if args.soc else list(FAMILIES)
    if args.dry_run:
        cann = Path(args.cann or os.environ.get("ASCEND_HOME_PATH") or "$ASCEND_HOME_PATH")
        command = package_build.build_command(args.way, families, cann, Path("WORK"))
        return print_json({"command": command, "soc": families}) if args.json else print(quoted(command))
    cann, version = package_build.find_cann(args.cann, os.environ)
    package_build.check_build_tools()
    note(f"CANN {version or 'of unknown version'} at {cann}; kernels for {', '.join(families)}")
    package = package_build.build_package(args.way, families, cann, Path(args.output), args.timeout)
    size = package.stat().st_size
    if args.json:
        log = str(Path(args.output) / package_build.LOG)
        return print_json({"package": str(package), "bytes": size, "soc": families, "cann": version, "log": log})
    print(f"written  {package} ({size:,} bytes), kernels for {', '.join(families)}")
    if args.way == "mindspore":
        note("note: MindSpore's compiler omits the ONNX plugin; ATC needs a package built without --with mindspore")
    print(f"install  neonext-ops install {package}")
    return None


def _install(args: argparse.Namespace) -> None:
    from neonext_ms.common.external_tools import quoted
    from neonext_ms.ops import package_build

    package = Path(args.package)
    if args.dry_run:
        command = package_build.install_command(package, args.install_path)
        return print_json({"command": command}) if args.json else print(quoted(command))
    folder = package_build.install_package(package, args.install_path, args.timeout)
    # CANN finds its own operators by itself; any other place has to be named in the environment.
    activate = str(folder / "bin" / "set_env.bash") if args.install_path else None
    if args.json:
        return print_json({"package": str(folder), "activate": activate})
    print(f"installed {folder}")
    if activate:
        print(f"activate  source {activate}   (in every shell that uses the operator)")
    print("check     neonext-ops check")
    return None


def _check(args: argparse.Namespace) -> None:
    folder = Path(args.package) if args.package else installed_package(os.environ)
    if folder is None:
        searched = ", ".join(
            f"{name} ({os.environ.get(name, 'not set')})" for name in ("ASCEND_CUSTOM_OPP_PATH", "ASCEND_OPP_PATH")
        )
        misplaced = misplaced_package()
        if misplaced is not None:
            raise ToolchainError(
                f"the operator package is not loaded: ASCEND_CUSTOM_OPP_PATH is too high "
                f"(got {os.environ['ASCEND_CUSTOM_OPP_PATH']}, expected {misplaced.resolve()}). Set it, or source "
                f"{misplaced.resolve() / 'bin' / 'set_env.bash'}."
            )
        raise ToolchainError(
            f"the operator package is not installed; searched {searched}. Install it with `neonext-ops install`."
        )
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected the folder of a package, .../vendors/<vendor>")
    families = None
    if args.soc:
        from neonext_ms.ops.package_build import parse_families

        families = parse_families(args.soc)
    rows = package_files(folder, families)
    loaded = loading(folder)
    if loaded is not None:
        rows.append(loaded)
    else:
        note("note: neither ASCEND_OPP_PATH nor ASCEND_CUSTOM_OPP_PATH leads to this package, so CANN does not load it")
    report: dict[str, Any] = {"package": str(folder), "files": rows, "device": None}
    if not args.json:
        for row in rows:
            print(f"{row['problem'] or 'good':8} {row['what']:34} {row['where']}")
    try:
        bad = [f"{row['where']} ({row['what']}): {row['problem']}" for row in rows if row["problem"]]
        if bad:
            raise InputError(f"{folder}: {len(bad)} of {len(rows)} files are missing or wrong:\n{list_names(bad)}")
        report["device"] = results = _device_results()
    finally:
        if args.json:
            print_json(report)
    if not args.json:
        for row in results:
            print(f"{row['case']:28} {row['dtype']:8} {row['of']:5} {row['difference']:.2e}")
    # A NaN is not within any tolerance.
    wrong = [
        f"{row['case']}, {row['dtype']}, {row['of']}: {row['difference']:.2e} above {row['tolerance']:g}"
        for row in results
        if not row["difference"] <= row["tolerance"]
    ]
    if wrong:
        raise ParityError(f"the results of the operator differ from the reference:\n{list_names(wrong)}")


def _device_results() -> list[dict[str, Any]]:
    try:
        from neonext_ms.ops import device_check
    except ImportError as error:
        raise ToolchainError(
            f"the files are good, but the operator did not run because MindSpore cannot be imported ({error})"
        ) from error
    return device_check.run_on_device()


def main(argv: Sequence[str] | None = None) -> int:
    """Run neonext-ops and return its exit code."""
    return run(_main, argv)


if __name__ == "__main__":
    sys.exit(main())
