"""A board of stand-ins: `install` writes atc, npu-smi and a CANN toolkit into a folder, and returns the environment.

As a program it runs a command on it: `python board_stand_in.py FOLDER COMMAND ...`.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent
# Lays the package out as the installer of CANN does.
_PACKAGE = """\
for argument in "$@"; do case $argument in --install-path=*) place=${argument#*=} ;; esac; done
mkdir -p "$place/vendors/neonext/op_api/include" && touch "$place/vendors/neonext/op_api/include/aclnn_neo_cell.h"
echo SUCCESS
"""
_BUILD = f"""\
set -e
[ -f op_host/neo_cell.cpp ] && [ -f op_kernel/neo_cell.cpp ]
mkdir build_out
cat > build_out/custom_opp_linux_x86_64.run <<'END'
{_PACKAGE}END
"""
_AIS_BENCH = """\
import argparse, pathlib
parser = argparse.ArgumentParser()
for name in ("--model", "--device", "--loop", "--warmup_count", "--dymBatch"):
    parser.add_argument(name)
args = parser.parse_args()
assert pathlib.Path(args.model).read_bytes()[:4] == b"IMOD" and int(args.loop) > 1
print("[INFO] load model", args.model, "success")
print("\\rloop inference exec: (100/100)")
times = "min = 2.1, max = 3.3, mean = 2.5, median = 2.4, percentile(99%) = 3.25"
print("[INFO] -----------------Performance Summary------------------")
print(f"[INFO] NPU_compute_time (ms): {times}")
print("[INFO] throughput 1000*batchsize.mean(1)/NPU_compute_time.mean(2.5): 400.0")
"""
_MSPROF = """\
import pathlib, subprocess, sys
given = dict(argument[2:].split("=", 1) for argument in sys.argv[1:])
# Quotation marks mean nothing to it.
subprocess.run(given["application"].split(" "), check=True)
folder = pathlib.Path(given["output"]) / "PROF_1" / "mindstudio_profiler_output"
folder.mkdir(parents=True)
rows = ["Op Name,OP Type,Task Duration(us)", *["a,Conv2D,30.0", "b,MatMulV2,10.0", "c,TransData,N/A"] * 24]
(folder / "op_summary_1.csv").write_text("\\n".join(rows) + "\\n")
"""
_NPU_SMI = """\
| npu-smi 24.1.rc1                                Version: 24.1.rc1                                     |
| 0       310P3                 | OK              | NA           52                0     / 0             |
| 0       0                     | 0000:01:00.0    | 0            1842 / 21527                            |
"""


def measured_report(kit: Path) -> dict:
    """Return the report of a board that took twice the predicted time for every file of batch 1 of a kit."""
    builds = json.loads((kit / "kit.json").read_text())["builds"]
    times = {
        build["name"]: {"compute_ms": {"p50": 2e-3 * build["predicted"]["1"]["us"]}, "images_per_second": 1.0}
        for build in builds
        if build["batches"] == [1]
    }
    steps = {f"parity/{name}": {"status": "done", "result": {"1": {"right": True}}} for name in times}
    steps["latency/1"] = {"status": "done", "result": times}
    steps["machine"] = {"status": "done", "result": {"soc": "Ascend310P3"}}
    digest = hashlib.sha256((kit / "SHA256SUMS").read_bytes()).hexdigest()[:16]
    made_of = {"name": "tiny", "soc": "Ascend310P3", "digest": digest}
    return {"board_report": 1, "kit": made_of, "builds": builds, "steps": steps}


def without_times(report: dict) -> dict:
    """Return a report of a board without what differs between two runs: times, and which form was the fastest."""
    steps = {}
    for name, entry in report["steps"].items():
        kind = name.split("/")[0]
        entry.pop("seconds", None)
        if kind == "latency":
            entry["result"] = sorted(entry.get("result", ()))
        if kind == "mindspore":
            entry.get("result", {}).pop("rows", None)
        if kind == "ais_bench":
            entry.get("result", {}).pop("file", None)
        # A file is named after its form and its batch size.
        steps[f"profile/{name.rpartition('_b')[2]}" if kind == "profile" else name] = entry
    return {**report, "steps": steps}


def install(folder: Path, faults: dict | None = None, without: tuple[str, ...] = ()) -> dict[str, str]:
    """Write the stand-ins.

    Args:
        folder: folder to create.
        faults: see `atc_stand_in` and `acl_stand_in`.
        without: programs that are missing: "atc", "acl", "npu-smi", "msprof", "ais_bench".
    """
    programs, cann = folder / "bin", folder / "cann"
    template = cann / "tools" / "op_project_templates" / "ascendc" / "customize"
    texts = {
        programs / "atc": f'#!/bin/sh\nexec {sys.executable} {TESTS / "atc_stand_in.py"} "$@"\n',
        programs / "npu-smi": f"#!/bin/sh\ncat <<'END'\n{_NPU_SMI}END\n",
        programs / "msprof": f"#!{sys.executable}\n{_MSPROF}",
        **{programs / name: "#!/bin/sh\nexit 0\n" for name in ("cmake", "make", "g++")},
        template / "build.sh": _BUILD,
        template / "cmake" / "util" / "tool.py": "",
        **{template / name / "CMakeLists.txt": "" for name in ("op_host", "op_kernel", "framework")},
        cann / "compiler" / "version.info": "Version=8.1.RC1\n",
        cann / "opp" / "built-in/op_impl/ai_core/tbe/kernel/ascend310p/conv.o": "",
        folder / "modules" / "ais_bench.py": _AIS_BENCH,
    }
    for path, text in texts.items():
        if path.stem in without:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        if path.parent == programs:
            path.chmod(0o755)
    keep = {key: value for key, value in os.environ.items() if not key.startswith("ASCEND")}
    modules = [str(TESTS.parent), str(folder / "modules"), *([] if "acl" in without else [str(TESTS / "stand_ins")])]
    return {
        **keep,
        "PATH": f"{programs}:{os.defpath}",
        "PYTHONPATH": os.pathsep.join(modules),
        "ASCEND_TOOLKIT_HOME": str(cann),
        "STAND_IN_FAULTS": json.dumps(faults or {}),
    }


if __name__ == "__main__":
    environment = install(Path(sys.argv[1]).resolve())
    sys.exit(subprocess.run(sys.argv[2:], env=environment).returncode)
