"""The AscendC operator package: its sources, where an installed one is, and what it has to contain.

Plain Python without NumPy or MindSpore, because commands import it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from neonext_ms.common.errors import InputError
from neonext_ms.common.files import read_json

# `vendor_name` in ascendc/CMakePresets.json: the folder that CANN installs the package into.
VENDOR = "neonext"
PROJECT = Path(__file__).resolve().parent / "ascendc"
# Families of ops/soc.py that the kernels support (FAMILIES in ascendc/op_host/neo_cell_host.h).
FAMILIES = ("ascend310p", "ascend310b", "ascend910b", "ascend910_93")
# Name of the file and of the kernel of each operator -> its type.
OPERATORS: Mapping[str, str] = {"neo_cell": "NeoCell", "neo_cell_grad": "NeoCellGrad"}


def installed_package(environ: Mapping[str, str] | None = None) -> Path | None:
    """Return the folder of the installed operator package, `.../vendors/<vendor>`, or None.

    The search follows CANN: first the folders in ASCEND_CUSTOM_OPP_PATH, then those in vendors/ of ASCEND_OPP_PATH.
    """
    environ = os.environ if environ is None else environ
    folders = [Path(part) for part in environ.get("ASCEND_CUSTOM_OPP_PATH", "").split(":") if part]
    if environ.get("ASCEND_OPP_PATH"):
        vendors = Path(environ["ASCEND_OPP_PATH"]) / "vendors"
        folders += [vendors / VENDOR, *sorted(vendors.glob("*"))]
    return next((f for f in folders if (f / "op_api" / "include" / "aclnn_neo_cell.h").is_file()), None)


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
