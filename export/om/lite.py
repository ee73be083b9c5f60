"""`converter_lite` of MindSpore Lite, which writes MindIR files for Ascend with an OM inside.

Flags, keys and log lines come from mindspore-ai/mindspore-lite and its documentation for 2.x; docs/deploy.md names the
places. What it prints without CANN and for an unknown operator is what the converter of release 2.0.0 printed here. No
`converter_lite` has compiled for Ascend here.
"""

from __future__ import annotations

from collections.abc import Sequence

from neonext_ms.common.errors import UsageError
from neonext_ms.common.external_tools import Tool

from ..graph import INPUT
from .cann_log import Advice
from .job import Invocation, Job

# ATC's precision modes in the converter's words (kPrecision map in acl_utils.h). It has none for mixed_bfloat16.
PRECISION_MODES = {
    "fp16": "enforce_fp16",
    "mixed_float16": "preferred_optimal",
    "origin": "enforce_origin",
    "cube_fp16in_fp32out": "enforce_fp32",
}

# Messages of converter_flags.cc, main.cc, converter_context.h, onnx_op_parser.cc, dlutils.h and of the pass plugin.
_TEXTS = (
    (
        r"INPUT (ILLEGAL|MISSING|INVALID)",
        Advice("the converter rejects an option", "check the value that the line names"),
    ),
    (
        r"(Flag missing|Invalid flag|unknown flag)",
        Advice("the converter does not know an option", "use MindSpore Lite 2.x"),
    ),
    (
        r"NOT SUPPORT|UNSUPPORTED OP|not support(ed)? (op|onnx)|unsupported op",
        Advice("the converter does not know an operator", "use `--via atc`"),
    ),
    (
        r"Get soc version failed|libascendcl|libge_compiler|libgraph\.so|libascend_pass_plugin|"
        r"Failed to create acl pass",
        Advice(
            "the converter did not find CANN",
            "source CANN's set_env.sh, and use the MindSpore Lite package with Ascend support",
            broken_toolchain=True,
        ),
    ),
    (
        r"maximum mind ir version",
        Advice("the converter is older than the MindIR file", "use `--target om --via lite`, which gives it ONNX"),
    ),
    (
        r"encounter an unknown error",
        Advice("the converter crashed", "check the model with neonext-info; try `--via atc`"),
    ),
)


class Lite:
    """The converter of MindSpore Lite."""

    suffix = "_ascend.mindir"
    script = "build_lite.sh"
    # Releases before 2.0 print CONVERTER (converter.cc, main.cc).
    success = "CONVERT(ER)? RESULT SUCCESS:0([^0-9]|$)"
    success_text = "CONVERT RESULT SUCCESS:0"
    failure = "Convert failed"
    texts: Sequence[tuple[str, Advice]] = _TEXTS
    other_output = "; above 2 GB it writes a graph and a folder of weights, so use a smaller model, or `--via atc`"
    needs_set_env = '[ -z "${ASCEND_TOOLKIT_HOME:-}${ASCEND_HOME_PATH:-}" ]'
    setup = """\
home=${LITE_HOME:-/nowhere}
if ! command -v converter_lite >/dev/null 2>&1 && [ -x "$home/tools/converter/converter/converter_lite" ]; then
    PATH=$home/tools/converter/converter:$PATH
    LD_LIBRARY_PATH=$home/tools/converter/lib:$home/runtime/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
    export PATH LD_LIBRARY_PATH
fi
"""
    missing = "Unpack MindSpore Lite, set LITE_HOME to its folder, then run this script again"
    tool = Tool(
        name="converter_lite",
        package="MindSpore Lite for the cloud side (the package with Ascend support)",
        homes=("LITE_HOME",),
        folders=("tools/converter/converter",),
        advice="If it is installed here, set LITE_HOME to its folder; if not, copy the folder with "
        f"{script} to a machine that has it and CANN and run `sh {script}` there, or use `--via atc`",
        libraries=("tools/converter/lib", "runtime/lib"),
    )

    def check(self, job: Job) -> None:
        """Raise a `UsageError` for options that the converter does not have."""
        options = job.options
        if options.keep_dtype or options.extra:
            raise UsageError("--keep-dtype and extra arguments are options of atc. Leave them out, or use --via atc.")
        if options.precision_mode not in PRECISION_MODES:
            raise UsageError(
                f"--precision {options.precision_mode}: converter_lite has no such mode. Use one of "
                f"{', '.join(PRECISION_MODES)}, or --via atc."
            )

    def invocation(self, job: Job) -> Invocation:
        """Return the command for a checked job, the same for the same job."""
        command = [
            "converter_lite",
            "--fmk=ONNX",
            f"--modelFile=./{job.plain}.onnx",
            f"--outputFile=./{job.plain}",
            "--saveType=MINDIR",
            "--optimize=ascend_oriented",
            f"--configFile=./{job.plain}.lite.cfg",
        ]
        lines = ["[ascend_context]", "input_format=NCHW"]
        if len(job.batch) == 1:
            # The converter reads a fixed shape from the command line only.
            command.append(f"--inputShape={INPUT}:{','.join(map(str, job.shape))}")
        else:
            lines.append(f"input_shape={INPUT}:[{','.join(map(str, job.shape))}]")
            lines.append(f"dynamic_dims={','.join(f'[{size}]' for size in job.batch)}")
        lines.append(f"precision_mode={PRECISION_MODES[job.options.precision_mode]}")
        if job.options.aipp:
            lines.append(f"insert_op_config_file_path=./{job.plain}.aipp.cfg")
        # Without this the converter compiles for the device that it finds, and fails on a machine without one.
        lines += ["", "[acl_init_options]", f"ge.socVersion={job.soc.name}"]
        return Invocation(command, job.inputs(), {f"{job.plain}.lite.cfg": "\n".join(lines) + "\n"})
