"""ATC, CANN's compiler of OM files: its options, its command and its log.

Option names, file formats and log lines come from CANN's sources and documentation; docs/deploy.md names them. No ATC
has run here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from neonext_ms.common.errors import UsageError
from neonext_ms.common.external_tools import Tool

from ..graph import INPUT
from .cann_log import Advice
from .job import Invocation, Job

# Options that contradict what the command sets in another way.
_CONFLICTING = ("precision_mode", "mode", "singleop", "external_weight", "dynamic_image_size", "dynamic_dims")


class Atc:
    """ATC of the CANN toolkit."""

    suffix = ".om"
    script = "build_om.sh"
    success = success_text = "ATC run success"
    failure = "ATC run failed"
    texts: Sequence[tuple[str, Advice]] = ()
    other_output = ""
    needs_set_env = "! command -v atc >/dev/null 2>&1"
    setup = ""
    missing = "Install the CANN toolkit, source its set_env.sh, then run this script again"
    tool = Tool(
        name="atc",
        package="the CANN toolkit",
        homes=("ASCEND_TOOLKIT_HOME", "ASCEND_HOME_PATH"),
        folders=("bin", "compiler/bin", "atc/bin", "x86_64-linux/bin", "aarch64-linux/bin"),
        advice="If CANN is installed here, run `source /usr/local/Ascend/ascend-toolkit/set_env.sh` (or wherever it "
        f"is) first; if not, copy the folder with {script} to a machine that has it and run `sh {script}` there",
    )

    def check(self, job: Job) -> None:
        """Raise a `UsageError` for options that ATC rejects or ignores."""
        options = job.options
        if options.keep_dtype and options.precision_mode == "origin":
            raise UsageError("--keep-dtype has no effect with --precision origin, which keeps every dtype. Drop one.")
        for name in options.keep_dtype:
            if not name.strip() or "\n" in name or re.match(r"OpType::(?![A-Z][A-Za-z0-9]*$)", name):
                raise UsageError(f"--keep-dtype {name!r}: expected a node name, or OpType::Name such as OpType::Relu")
        reserved = {_option(part) for part in self._arguments(job)} | set(_CONFLICTING)
        for part in options.extra:
            if not re.match(r"--[A-Za-z][\w-]*=.", part):
                raise UsageError(f"extra argument {part!r}: expected --name=value")
            if _option(part) in reserved:
                raise UsageError(f"extra argument {part!r} contradicts an option that is already set. Leave it out.")

    def invocation(self, job: Job) -> Invocation:
        """Return the command for a checked job, the same for the same job."""
        configs = {_keep_dtype_file(job): "".join(f"{name}\n" for name in job.options.keep_dtype)}
        return Invocation(
            ["atc", *self._arguments(job), *job.options.extra],
            job.inputs(),
            configs if job.options.keep_dtype else {},
        )

    def _arguments(self, job: Job) -> list[str]:
        arguments = [
            "--framework=5",
            f"--model={job.plain}.onnx",
            f"--output={job.plain}",
            f"--soc_version={job.soc.name}",
            "--input_format=NCHW",
            f"--input_shape={INPUT}:{','.join(map(str, job.shape))}",
        ]
        if len(job.batch) > 1:
            arguments.append(f"--dynamic_batch_size={','.join(map(str, job.batch))}")
        arguments.append(f"--precision_mode_v2={job.options.precision_mode}")
        if job.options.aipp:
            arguments.append(f"--insert_op_conf={job.plain}.aipp.cfg")
        if job.options.keep_dtype:
            arguments.append(f"--keep_dtype={_keep_dtype_file(job)}")
        return arguments


def _keep_dtype_file(job: Job) -> str:
    return f"{job.plain}.keep_dtype.cfg"


def _option(argument: str) -> str:
    # ATC accepts `-` for `_` inside a name.
    return argument.split("=", 1)[0].lstrip("-").replace("-", "_")
