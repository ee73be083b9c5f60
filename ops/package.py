"""The AscendC operator package: its sources, and where an installed one is. Plain Python, for commands too."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

# `vendor_name` of ascendc/CMakePresets.json: the folder that CANN installs the package into.
VENDOR = "neonext"
PROJECT = Path(__file__).resolve().parent / "ascendc"
# Families of ops/soc.py that the kernels are made for (FAMILIES in ascendc/op_host/neo_cell_host.h).
FAMILIES = ("ascend310p", "ascend310b", "ascend910b", "ascend910_93")
# File and kernel name of each operator -> its type.
OPERATORS: Mapping[str, str] = {"neo_cell": "NeoCell", "neo_cell_grad": "NeoCellGrad"}


def installed_package(environ: Mapping[str, str] | None = None) -> Path | None:
    """Folder of the installed operator package, `.../vendors/<vendor>`, or None.

    Looked for where CANN looks: the folders of ASCEND_CUSTOM_OPP_PATH, then those below vendors/ of ASCEND_OPP_PATH.
    """
    environ = os.environ if environ is None else environ
    folders = [Path(part) for part in environ.get("ASCEND_CUSTOM_OPP_PATH", "").split(":") if part]
    if environ.get("ASCEND_OPP_PATH"):
        vendors = Path(environ["ASCEND_OPP_PATH"]) / "vendors"
        folders += [vendors / VENDOR, *sorted(vendors.glob("*"))]
    return next((f for f in folders if (f / "op_api" / "include" / "aclnn_neo_cell.h").is_file()), None)
