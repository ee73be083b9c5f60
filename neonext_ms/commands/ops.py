"""neonext-ops: build, install and check the AscendC operator package; run its kernels in the twin."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from neonext_ms.common.cli import Parser, note, print_json, run
from neonext_ms.common.errors import InputError, ParityError, ToolchainError, UsageError, listed, nearest
from neonext_ms.common.files import explained, publish, staging
from neonext_ms.ops.package import FAMILIES, OPERATORS, PROJECT, VENDOR, installed_package

OLDEST_CANN = 8
USUAL_PLACES = ("/usr/local/Ascend/ascend-toolkit/latest", "/usr/local/Ascend/cann")
LOG = "neonext_ops_build.log"
# Largest difference from the reference, relative to the largest value, that `check` accepts.
TOLERANCE = {"float32": 1e-4, "float16": 1e-2}

DESCRIPTION = """\
The AscendC operator package of NeoCell.

  neonext-ops build --soc Ascend310P3 --output build     (needs the CANN toolkit)
  neonext-ops install build/custom_opp_ubuntu_aarch64.run
  neonext-ops check                                      (files; on an Ascend host also the operator itself)
  neonext-ops twin --help                                (the kernels on any host)

Nothing of this has run with an installed CANN or on a device yet; see docs/ascendc.md."""


def build_parser() -> Parser:
    """The command line of neonext-ops."""
    parser = Parser(prog="neonext-ops", description=DESCRIPTION)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)

    build = commands.add_parser("build", help="build custom_opp_<system>_<machine>.run with an installed CANN")
    build.add_argument("--soc", default="", help="devices, such as Ascend310P3,Ascend910B3 (default: all families)")
    build.add_argument("--output", default=".", metavar="DIR", help="folder for the package (default: this one)")
    build.add_argument(
        "--with",
        dest="way",
        choices=("cann", "mindspore"),
        default="cann",
        help="cann: the project's build.sh; mindspore: MindSpore's custom compiler, without the ONNX plugin",
    )
    build.add_argument("--cann", metavar="DIR", help="the CANN toolkit (default: ASCEND_HOME_PATH and its like)")

    install = commands.add_parser("install", help="install a built package")
    install.add_argument("package", metavar="FILE.run")
    install.add_argument("--install-path", metavar="DIR", help="absolute; default: where CANN keeps its operators")

    check = commands.add_parser("check", help="an installed package: its files, and on Ascend the operator itself")
    check.add_argument("--package", metavar="DIR", help="its folder, .../vendors/<vendor> (default: where CANN looks)")
    check.add_argument("--soc", default="", help="devices that it must have kernels for (default: those that it has)")

    simulate = commands.add_parser("twin", help="run the kernels on this host", add_help=False)
    simulate.add_argument("arguments", nargs=argparse.REMAINDER)

    for command in (build, install):
        command.add_argument("--timeout", type=float, default=3600.0, metavar="SECONDS", help="default: 3600")
        command.add_argument("--dry-run", action="store_true", help="print the command and do nothing")
    for command in (build, install, check):
        command.add_argument("--json", action="store_true", help="one JSON document on stdout")
    return parser


def _main(argv: Sequence[str] | None = None) -> int | None:
    given = list(sys.argv[1:] if argv is None else argv)
    if given[:1] == ["twin"]:
        # The twin has a command line of its own, --help included.
        from . import simulate

        return simulate.main(given[1:])
    args = build_parser().parse_args(given)
    return {"build": _build, "install": _install, "check": _check}[args.command](args)


def families(text: str) -> list[str]:
    """Families of the devices in a list such as `Ascend310P3,Ascend910B3`; a family may be named itself.

    Raises:
        InputError: an unknown device.
        UsageError: one that the kernels are not made for, or a list that is empty.
    """
    from neonext_ms.ops.soc import soc

    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise UsageError(f"--soc {text!r}: expected devices separated by commas, such as Ascend310P3,Ascend910B3")
    result = []
    for name in names:
        family = name if name in FAMILIES else soc(name).family
        if family not in FAMILIES:
            raise UsageError(
                f"{name}: the operator is made for {', '.join(FAMILIES)}, not for {family}{nearest(family, FAMILIES)}"
            )
        if family not in result:
            result.append(family)
    return result


def find_cann(folder: str | None, environ: Mapping[str, str]) -> tuple[Path, str | None]:
    """The CANN toolkit and its version, None if it does not say.

    Raises:
        ToolchainError: there is none, it is not complete, or it is too old.
    """
    looked = (
        [("--cann", folder)] if folder else [(v, environ.get(v)) for v in ("ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME")]
    )
    looked += [] if folder else [("the usual place", place) for place in USUAL_PLACES]
    found = next((Path(place) for _, place in looked if place and Path(place).is_dir()), None)
    if found is None:
        places = ", ".join(f"{what} ({place or 'not set'})" for what, place in looked)
        raise ToolchainError(
            f"no CANN toolkit; looked in {places}. Install it and source its set_env.sh, or copy this package to a "
            "machine that has it"
        )
    home = Path(os.path.realpath(found))
    if not any((home / part).is_dir() for part in ("tools/op_project_templates/ascendc/customize", "compiler/tikcpp")):
        raise ToolchainError(
            f"{home}: has no tools/op_project_templates/ascendc/customize; this is not the CANN toolkit (the runtime "
            "alone, perhaps); install the toolkit"
        )
    version = None
    info = home / "compiler" / "version.info"
    if info.is_file():
        with explained(info):
            match = re.search(r"^version=(\S+)", info.read_text(encoding="utf-8", errors="replace"), re.M | re.I)
        version = match and match[1]
    major = re.match(r"\d+", version or "")
    if major and int(major[0]) < OLDEST_CANN:
        raise ToolchainError(f"CANN {version} at {home} is too old; install {OLDEST_CANN}.0 or newer")
    return home, version


def _require_tools(environ: Mapping[str, str]) -> None:
    path = environ.get("PATH", os.defpath)
    missing = [tool for tool in ("bash", "cmake", "make", "g++", "python3") if not shutil.which(tool, path=path)]
    if missing:
        raise ToolchainError(f"{', '.join(missing)} not found in PATH; the build needs them: install them")


def _build(args) -> None:
    from neonext_ms.common import external_tools

    external_tools.check_timeout(args.timeout)
    chosen = families(args.soc) if args.soc else list(FAMILIES)
    environ = dict(os.environ)
    if args.dry_run:
        cann = Path(args.cann or environ.get("ASCEND_HOME_PATH") or "$ASCEND_HOME_PATH")
        command = _build_command(args.way, chosen, cann, Path("WORK"))
        return print_json({"command": command, "soc": chosen}) if args.json else print(external_tools.quoted(command))
    cann, version = find_cann(args.cann, environ)
    _require_tools(environ)
    output = Path(args.output)
    note(f"CANN {version or 'of unknown version'} at {cann}; kernels for {', '.join(chosen)}")
    environ["ASCEND_HOME_PATH"] = str(cann)
    # A copy: an installed project may be read-only, and CANN builds inside it.
    with staging(output) as stage, external_tools.work_folder(stage, "ops") as work:
        with explained(PROJECT):
            shutil.copytree(PROJECT, work / "project", ignore=shutil.ignore_patterns("build", "__pycache__"))
        command = _build_command(args.way, chosen, cann, work)
        if args.way == "mindspore":
            with explained(work):
                shutil.copytree(_mindspore_compiler(), work / "compiler")
        log = output / LOG
        staged = stage / f"{LOG}.part"
        with external_tools.kept(staged, log):
            folder = work / ("compiler" if args.way == "mindspore" else "project")
            finished = external_tools.run(command, folder, staged, log, args.timeout, environ)
            made = sorted((work / "compiler" if args.way == "mindspore" else work / "out").rglob("custom_opp_*.run"))
            if finished.exit_code or not made or not made[0].stat().st_size:
                raise _build_failure(finished, bool(made), log)
        final = output / made[0].name
        package = stage / made[0].name
        external_tools.move(made[0], package)
        publish(package, final)
    facts = {"package": str(final), "bytes": final.stat().st_size, "soc": chosen, "cann": version, "log": str(log)}
    if args.json:
        return print_json(facts)
    print(f"written  {final} ({facts['bytes']:,} bytes), kernels for {', '.join(chosen)}")
    if args.way == "mindspore":
        note(
            "note: MindSpore's compiler leaves out the ONNX plugin; ATC needs a package built without --with mindspore"
        )
    print(f"install  neonext-ops install {final}")
    return None


def _build_command(way: str, chosen: Sequence[str], cann: Path, work: Path) -> list[str]:
    project = work / "project"
    if way == "cann":
        command = ["bash", str(project / "build.sh"), "--soc", ",".join(chosen), "--cann", str(cann)]
        return [*command, "--work", str(work / "build"), "--output", str(work / "out")]
    # Its scripts call each other by relative names, so it runs in its own folder.
    command = [sys.executable, "setup.py", "--op_host_path", str(project / "op_host")]
    command += ["--op_kernel_path", str(project / "op_kernel"), "--soc_version", ";".join(chosen)]
    return [*command, "--ascend_cann_package_path", str(cann), "--vendor_name", VENDOR]


def _mindspore_compiler() -> Path:
    from importlib.util import find_spec

    found = find_spec("mindspore")
    for place in (found and found.submodule_search_locations) or ():
        folder = Path(place) / "lib" / "plugin" / "ascend" / "custom_compiler"
        if (folder / "setup.py").is_file():
            return folder
    raise ToolchainError("MindSpore has no lib/plugin/ascend/custom_compiler; build without --with mindspore")


def _build_failure(finished, made: bool, log: Path) -> Exception:
    told = [line for line in finished.tail if line.startswith("error: ")]
    if finished.exit_code == 3 and told:
        return ToolchainError(told[-1].removeprefix("error: "))
    if finished.exit_code == 0:
        return InputError(f"the build ended well, but wrote {'an empty' if made else 'no'} custom_opp_*.run; see {log}")
    why = next((line for line in reversed(finished.tail) if re.search(r"\berror\b|failed", line, re.I)), "")
    return InputError(f"the build failed ({finished.how}){': ' + why[:300] if why else ''}; see {log}")


def _install(args) -> None:
    from neonext_ms.common import external_tools

    external_tools.check_timeout(args.timeout)
    package = Path(args.package)
    if not package.is_file():
        raise InputError(f"{package}: no such file; `neonext-ops build` makes it")
    environ = dict(os.environ)
    command = ["bash", str(package.resolve())]
    if args.install_path:
        if not Path(args.install_path).is_absolute():
            raise UsageError(f"--install-path {args.install_path}: expected an absolute path")
        command.append(f"--install-path={args.install_path}")
    elif not environ.get("ASCEND_OPP_PATH") and not environ.get("ASCEND_CUSTOM_OPP_PATH") and not args.dry_run:
        raise ToolchainError(
            "ASCEND_OPP_PATH is not set, so the package has no place to go; source CANN's set_env.sh, or name one "
            "with --install-path"
        )
    if args.dry_run:
        return print_json({"command": command}) if args.json else print(external_tools.quoted(command))
    with staging(package.resolve().parent) as stage:
        finished = external_tools.run(
            command, stage, stage / "install.log", stage / "install.log", args.timeout, environ
        )
        text = "\n".join(finished.tail)
    if finished.exit_code:
        raise InputError(f"the installation failed ({finished.how}); it said:\n{text}")
    if args.install_path:
        environ["ASCEND_CUSTOM_OPP_PATH"] = str(Path(args.install_path) / "vendors" / VENDOR)
    folder = installed_package(environ)
    if folder is None:
        raise InputError(
            f"{package.name} ended well, but no operator is where it was to be installed; it said:\n{text}"
        )
    activate = folder / "bin" / "set_env.bash"
    if args.json:
        return print_json({"package": str(folder), "activate": str(activate) if args.install_path else None})
    print(f"installed {folder}")
    if args.install_path:
        print(f"activate  source {activate}   (in every shell that is to use it)")
    print("check     neonext-ops check")
    return None


def inspect(folder: Path, chosen: Sequence[str] | None = None) -> list[dict]:
    """What of an installed package is there.

    Args:
        folder: `.../vendors/<vendor>`.
        chosen: families that it must have kernels for; if None, those that it has a configuration of.

    Returns:
        rows with `what` a part is for, `where` it is expected, and `problem`, empty if it is good.
    """
    tbe = folder / "op_impl" / "ai_core" / "tbe"
    if chosen is None:
        chosen = sorted(path.name for path in (tbe / "config").glob("*") if path.is_dir())
    rows = []

    def row(what: str, pattern: str, check=None) -> None:
        found = [path for path in sorted(folder.glob(pattern)) if path.is_file() and path.stat().st_size]
        problem = "missing" if not found else (check(found) if check else "")
        rows.append({"what": what, "where": pattern, "problem": problem})

    for name in OPERATORS:
        row("function for MindSpore", f"op_api/include/aclnn_{name}.h")
    row("functions' library", "op_api/lib/libcust_opapi.so")
    row("shapes and types", "op_proto/lib/linux/*/libcust_opsproto*.so")
    row("tiling", "op_impl/ai_core/tbe/op_tiling/lib/linux/*/libcust_opmaster*.so")
    row("ONNX plugin, for ATC", "framework/onnx/libcust_onnx_parsers.so")
    for name in OPERATORS:
        row("kernel source, for ATC", f"op_impl/ai_core/tbe/*_impl/dynamic/{name}.cpp", _same_source)
        row("kernel's compiler script, for ATC", f"op_impl/ai_core/tbe/*_impl/dynamic/{name}.py")
    for header in sorted((PROJECT / "op_kernel").glob("*.h")):
        row("kernels' header, for ATC", f"op_impl/ai_core/tbe/*_impl/dynamic/{header.name}", _same_source)
    if not chosen:
        rows.append({"what": "kernels", "where": "op_impl/ai_core/tbe/config/*", "problem": "missing"})
    for family in chosen:
        row(f"{family}: operators", f"op_impl/ai_core/tbe/config/{family}/aic-{family}-ops-info.json", _has_operators)
        for name in OPERATORS:
            row(f"{family}: compiled kernel", f"op_impl/ai_core/tbe/kernel/{family}/{name}/*.o")
    return rows


def _same_source(found: Sequence[Path]) -> str:
    own = PROJECT / "op_kernel" / found[0].name
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (found[0], own) if path.is_file()]
    return "" if len(digests) == 2 and digests[0] == digests[1] else "of another version of neonext_ms: build it again"


def _has_operators(found: Sequence[Path]) -> str:
    try:
        operators = json.loads(found[0].read_text(encoding="utf-8"))
    except ValueError:
        return "not JSON: install the package again"
    missing = [name for name in OPERATORS.values() if name not in operators]
    return f"without {', '.join(missing)}" if missing else ""


def _check(args) -> None:
    folder = Path(args.package) if args.package else installed_package(os.environ)
    if folder is None:
        raise ToolchainError(
            "the operator package is not installed; looked in ASCEND_CUSTOM_OPP_PATH "
            f"({os.environ.get('ASCEND_CUSTOM_OPP_PATH', 'not set')}) and vendors/ of ASCEND_OPP_PATH "
            f"({os.environ.get('ASCEND_OPP_PATH', 'not set')}); `neonext-ops install` puts it there"
        )
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; name that of the package, .../vendors/<vendor>")
    rows = inspect(folder, families(args.soc) if args.soc else None)
    bad = [f"{row['where']} ({row['what']}): {row['problem']}" for row in rows if row["problem"]]
    facts = {"package": str(folder), "files": rows, "device": None}
    if not args.json:
        for row in rows:
            print(f"{row['problem'] or 'good':8} {row['what']:34} {row['where']}")
    if bad:
        if args.json:
            print_json(facts)
        raise InputError(f"{folder}: {len(bad)} of {len(rows)} parts are not good:\n{listed(bad)}")
    try:
        facts["device"] = run_on_device()
    except ToolchainError:
        if args.json:
            print_json(facts)
        raise
    wrong = [entry for entry in facts["device"] if not entry["difference"] <= entry["tolerance"]]
    if args.json:
        print_json(facts)
    else:
        for entry in facts["device"]:
            print(f"{entry['case']:28} {entry['dtype']:8} {entry['of']:5} {entry['difference']:.2e}")
    if wrong:
        names = [f"{e['case']}, {e['dtype']}, {e['of']}: {e['difference']:.2e} above {e['tolerance']:g}" for e in wrong]
        raise ParityError(f"the operator does not compute what the reference computes:\n{listed(names)}")


# Shifted and mixed as in the released models, ragged, one that halves its map.
CASES = {
    "stage 2 of T, 224": (
        [{"kernel": 4, "channels": 96, "shift": 1}, {"kernel": 7, "channels": 96, "shift": 1}],
        28,
        28,
    ),
    "ragged": ([{"kernel": 4, "channels": 20, "shift": 1}, {"kernel": 7, "channels": 21, "shift": 1}], 14, 13),
    "2 to 1": ([{"h_in": 2, "h_out": 1, "w_in": 2, "w_out": 1, "channels": 40}], 14, 14),
}


def run_on_device() -> list[dict]:
    """The operator on this host's device against the reference: forward and every gradient, for every case and type.

    Raises:
        ToolchainError: MindSpore has no device here, or does not choose the operator.
    """
    try:
        import mindspore as ms

        ms.set_device("Ascend")
    except (ImportError, RuntimeError, ValueError) as error:
        text = " ".join(str(error).split())
        raise ToolchainError(
            f"the files are good; the operator itself was not run, for MindSpore finds no Ascend device here "
            f"({text[:120]}): run `neonext-ops check` on an Ascend host"
        ) from error
    from neonext_ms.ops import NeoCellSpec, ascend

    results = []
    for case, (groups, height, width) in CASES.items():
        spec = NeoCellSpec(groups)
        for dtype, tolerance in TOLERANCE.items():
            kind = getattr(ms, dtype)
            if not ascend.chosen(spec, kind):
                raise ToolchainError("MindSpore does not find the package: set ASCEND_CUSTOM_OPP_PATH, or install it")
            for of, difference in ascend.compare_with_reference(spec, height, width, kind).items():
                results.append(
                    {"case": case, "dtype": dtype, "of": of, "difference": difference, "tolerance": tolerance}
                )
    return results


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of neonext-ops; returns the exit code."""
    return run(_main, argv)


if __name__ == "__main__":
    sys.exit(main())
