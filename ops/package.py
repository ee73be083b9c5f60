"""The AscendC operator package: its sources, where an installed one is, and what it has to contain.

Plain Python without NumPy or MindSpore, because commands import it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from neonext_ms.common.errors import InputError
from neonext_ms.common.files import read_json, read_lines

# `vendor_name` in ascendc/CMakePresets.json: the folder that CANN installs the package into.
VENDOR = "neonext"
PROJECT = Path(__file__).resolve().parent / "ascendc"
# Families of ops/soc.py that the kernels support (FAMILIES in ascendc/op_host/neo_cell_host.h).
FAMILIES = ("ascend310p", "ascend310b", "ascend910b", "ascend910_93")
# Name of the file and of the kernel of each operator -> its type.
OPERATORS: Mapping[str, str] = {"neo_cell": "NeoCell", "neo_cell_grad": "NeoCellGrad"}
# A file that only our package has.
_MARK = Path("op_api", "include", "aclnn_neo_cell.h")


def installed_package(environ: Mapping[str, str] | None = None) -> Path | None:
    """Return the folder of the installed operator package, `.../vendors/<vendor>`, or None.

    The search follows CANN: first the folders in ASCEND_CUSTOM_OPP_PATH, then those in vendors/ of ASCEND_OPP_PATH.
    """
    environ = os.environ if environ is None else environ
    folders = [Path(part) for part in environ.get("ASCEND_CUSTOM_OPP_PATH", "").split(":") if part]
    if environ.get("ASCEND_OPP_PATH"):
        vendors = Path(environ["ASCEND_OPP_PATH"]) / "vendors"
        folders += [vendors / VENDOR, *sorted(vendors.glob("*"))]
    return next((f for f in folders if (f / _MARK).is_file()), None)


def loading(folder: Path, environ: Mapping[str, str] | None = None) -> dict[str, str] | None:
    """Return whether CANN loads an installed package, as a row of `package_files`, or None if nothing here tells.

    Its parser looks into the folders in ASCEND_CUSTOM_OPP_PATH, and into those below vendors/ that the first line of
    vendors/config.ini names (hicann/ge ffdcbc9f7496, parser/parser/common/tbe_plugin_loader.cc). It passes over all
    others without a word, and then says that there is no plugin for NeoCell (E13010).
    """
    environ = os.environ if environ is None else environ
    folder = folder.resolve()
    named = [Path(part).resolve() for part in environ.get("ASCEND_CUSTOM_OPP_PATH", "").split(":") if part]
    variable = {"what": "loaded by CANN", "where": "ASCEND_CUSTOM_OPP_PATH"}
    if folder in named:
        return {**variable, "problem": ""}
    above = next((path for path in named if path in folder.parents), None)
    if above is not None:
        return {**variable, "problem": f"too high: it names {above}, but has to name {folder} itself"}
    opp = environ.get("ASCEND_OPP_PATH")
    vendors, config = folder.parent, folder.parent / "config.ini"
    if not (config.is_file() or (opp and vendors == (Path(opp) / "vendors").resolve())):
        return None
    row = {"what": "loaded by CANN", "where": f"../{config.name}"}
    try:
        first = next(iter(read_lines(config)), "")
    except InputError:
        return {**row, "problem": f"missing or not text: write load_priority={folder.name} into {config}"}
    parts = [part.strip() for part in first.split("=")]
    if len(parts) != 2 or parts[0] != "load_priority":
        return {**row, "problem": f"its first line is not load_priority=...: write load_priority={folder.name}"}
    listed = [name.strip() for name in parts[1].split(",") if name.strip()]
    if folder.name in listed:
        return {**row, "problem": ""}
    return {**row, "problem": f"does not name {folder.name}: write load_priority={','.join([folder.name, *listed])}"}


def misplaced_package(environ: Mapping[str, str] | None = None) -> Path | None:
    """Return a package inside a folder that ASCEND_CUSTOM_OPP_PATH names instead of the package, or None."""
    environ = os.environ if environ is None else environ
    for part in filter(None, environ.get("ASCEND_CUSTOM_OPP_PATH", "").split(":")):
        for pattern in ("*", "vendors/*"):
            for folder in sorted(Path(part).glob(pattern)):
                if (folder / _MARK).is_file():
                    return folder
    return None


def package_files(folder: Path, families: Sequence[str] | None = None) -> list[dict[str, str]]:
    """Return the state of every file that an installed package has to contain.

    Args:
        folder: `.../vendors/<vendor>`.
        families: families that need compiled kernels; None for those that the package has a configuration of.

    Returns:
        one row per file: its purpose under "what", the expected path under "where", and under "problem" an empty
        string if the file is good.
    """
    tbe = "op_impl/ai_core/tbe"
    if families is None:
        families = sorted(path.name for path in (folder / tbe / "config").glob("*") if path.is_dir())
    rows = []

    def row(what: str, pattern: str, check: Callable[[Path], str] | None = None) -> None:
        files = [path for path in sorted(folder.glob(pattern)) if path.is_file() and path.stat().st_size]
        problem = "missing" if not files else check(files[0]) if check else ""
        rows.append({"what": what, "where": pattern, "problem": problem})

    for name in OPERATORS:
        row("function for MindSpore", f"op_api/include/aclnn_{name}.h")
    row("library of the functions", "op_api/lib/libcust_opapi.so")
    row("shapes and types", "op_proto/lib/linux/*/libcust_opsproto*.so")
    row("tiling", f"{tbe}/op_tiling/lib/linux/*/libcust_opmaster*.so")
    row("ONNX plugin, for ATC", "framework/onnx/libcust_onnx_parsers.so")
    for name in OPERATORS:
        row("kernel source, for ATC", f"{tbe}/*_impl/dynamic/{name}.cpp", _source_problem)
        row("kernel's compiler script, for ATC", f"{tbe}/*_impl/dynamic/{name}.py")
    for header in sorted((PROJECT / "op_kernel").glob("*.h")):
        row("header of the kernels, for ATC", f"{tbe}/*_impl/dynamic/{header.name}", _source_problem)
    if not families:
        rows.append({"what": "kernels", "where": f"{tbe}/config/*", "problem": "missing"})
    for family in families:
        row(f"{family}: operators", f"{tbe}/config/{family}/aic-{family}-ops-info.json", _description_problem)
        for name in OPERATORS:
            row(f"{family}: compiled kernel", f"{tbe}/kernel/{family}/{name}/*.o")
    return rows


def _source_problem(path: Path) -> str:
    # ATC compiles the installed sources again, so an old copy would silently run old kernels.
    own = PROJECT / "op_kernel" / path.name
    digests = [hashlib.sha256(file.read_bytes()).digest() for file in (path, own) if file.is_file()]
    return "" if len(digests) == 2 and digests[0] == digests[1] else "of another version of neonext_ms: build it again"


def _description_problem(path: Path) -> str:
    try:
        operators = read_json(path, "a description of operators")
    except InputError:
        operators = None
    if not isinstance(operators, dict):
        return "not JSON: install the package again"
    missing = [name for name in OPERATORS.values() if name not in operators]
    return f"without {', '.join(missing)}" if missing else ""
