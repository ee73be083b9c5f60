"""The target `om`: an ONNX file that CANN parses, an AIPP file, and the compiled file or a script that compiles it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from neonext_ms.common import external_tools
from neonext_ms.common.errors import InputError, ToolchainError
from neonext_ms.common.files import explained
from neonext_ms.common.text import list_names, nearest
from neonext_ms.runtime import om_file

from . import aipp, build_script, parser_support
from .atc import Atc
from .cann_log import read_log
from .contents import mismatch
from .job import ONNX_SUFFIX, Compiler, Job
from .lite import Lite

__all__ = [
    "COMPILERS",
    "ONNX_SUFFIX",
    "Job",
    "check_graph",
    "compile_job",
    "find_compiler",
    "no_longer_compiled",
    "write_companions",
    "write_script",
]

COMPILERS: Mapping[str, Compiler] = {"atc": Atc(), "lite": Lite()}


def check_graph(model, path: str, keep_dtype: Sequence[str] = ()) -> list[str]:
    """Check that CANN parses every node of an ONNX model, and return what is better avoided although it does.

    Args:
        model: an `onnx.ModelProto`; its weights may be missing.
        path: the model's name, for messages.
        keep_dtype: nodes that keep their dtype; every name must occur in the graph.

    Raises:
        InputError: nodes that CANN does not parse, or names that are not in the graph.
    """
    names = [node.name for node in model.graph.node]
    for name in keep_dtype:
        if not name.startswith("OpType::") and name not in names:
            raise InputError(
                f"--keep-dtype: {path} has no operator {name!r}{nearest(name, names)}. Use the names of its nodes, as "
                "`neonext-compare --keep-dtype FILE` writes them."
            )
    findings = parser_support.check(model)
    refused = [finding for finding in findings if finding.refused]
    if refused:
        raise InputError(f"{path}: ATC would reject this graph:\n{list_names(refused)}")
    return [f"{path}: {finding}" for finding in findings]


def write_companions(jobs: Sequence[Job], stage: Path) -> list[str]:
    """Write the AIPP files of the jobs; return their names."""
    names = []
    for job in jobs:
        if job.aipp:
            with explained(job.aipp):
                (stage / job.aipp).write_text(aipp.aipp_config(job.preprocessing, job.image_size), encoding="utf-8")
            names.append(job.aipp)
    return names


def write_script(jobs: Sequence[Job], stage: Path) -> str:
    """Write the script that compiles the jobs on another machine; return its name."""
    name = jobs[0].compiler.script
    build_script.write_script(stage / name, jobs)
    return name


def no_longer_compiled(jobs: Sequence[Job], output: Path) -> list[str]:
    """Return the names of the files that the script in a folder compiles and a script of these jobs does not."""
    own = {job.output for job in jobs}
    compiler = jobs[0].compiler
    names = [stem + compiler.suffix for stem in build_script.compiled(output / compiler.script)]
    return [name for name in names if name not in own]


def find_compiler(jobs: Sequence[Job]) -> ToolchainError | None:
    """Return None if the compiler is installed, else the error that says where it was searched for."""
    try:
        external_tools.find(jobs[0].compiler.tool)
    except ToolchainError as error:
        return error
    return None


def compile_job(job: Job, stage: Path, output: Path, environ: Mapping[str, str] | None = None) -> Path:
    """Compile one file in the staging folder.

    The compiler has succeeded if its exit code is 0, it printed its success line and no failure line, and it wrote
    exactly one output, which is not empty; an OM file has to be complete, and what the job asked for by what it says of
    itself. Anything else is an error that leaves nothing but the log.

    Args:
        job: the job, with its files in the staging folder.
        stage: staging folder.
        output: folder that receives the log, whatever happens.
        environ: environment to find the compiler in and to run it with; this process's own if None.

    Returns:
        the compiled file in the staging folder. ATC adds the system's name before `.om` if the file holds code for
        that system, and the name should keep it.

    Raises:
        ToolchainError: the compiler is not installed, or its installation is incomplete.
        InputError: the compiler failed, or the time limit passed.
        UsageError: options that the compiler rejects or ignores.
    """
    invocation, tool, log = job.invocation(), job.compiler.tool, output / job.log
    external_tools.check_timeout(job.options.timeout)
    executable = external_tools.find(tool, environ)
    staged_log = stage / f"{job.log}.part"
    with (
        external_tools.kept(staged_log, log),
        external_tools.work_folder(stage, f"{job.plain}.{tool.name}") as work,
    ):
        for name, source in invocation.inputs.items():
            external_tools.place(stage / source, work / name)
        for name, text in invocation.configs.items():
            with explained(work / name):
                (work / name).write_text(text, encoding="utf-8")
        finished = external_tools.run(
            [str(executable), *invocation.command[1:]],
            work,
            staged_log,
            log,
            job.options.timeout,
            external_tools.environment(tool, executable, environ),
        )
        compiled = _check_result(job, finished, work, log)
        staged = stage / (Path(job.output).stem + compiled.name.removeprefix(job.plain))
        external_tools.move(compiled, staged)
    return staged


def _check_result(job: Job, finished: external_tools.Finished, work: Path, log: Path) -> Path:
    """Return the file that a run wrote.

    Raises:
        InputError: it did not succeed.
        ToolchainError: its installation is incomplete.
    """
    compiler, name, suffix = job.compiler, job.compiler.tool.name, Path(job.output).suffix
    report = read_log(external_tools.lines(finished.log), compiler.success, compiler.failure, compiler.texts)
    pattern = re.compile(re.escape(job.plain) + r"(_[A-Za-z0-9]+_[A-Za-z0-9_]+)?" + re.escape(suffix))
    files = sorted(path for path in work.glob(f"*{suffix}") if pattern.fullmatch(path.name))
    unused = f"; the {job.output} that it wrote is not used" if files else ""
    if finished.exit_code != 0:
        problem = f"{name} failed ({finished.how})"
        if finished.exit_code < 0:
            problem += "; if memory ran out, close other programs or try a smaller batch"
        if report.success:
            problem += f", although it printed {compiler.success_text!r}"
        problem += unused
    elif report.failure:
        problem = f"{name} printed {compiler.failure!r}, although its exit code is 0"
    elif not report.success:
        problem = f"{name} ended with exit code 0, but without its line {compiler.success_text!r}"
        problem += unused or f", and wrote no {job.output}"
    elif not files:
        others = sorted(path.name for path in work.rglob(f"*{suffix}"))
        problem = f"{name} reported success, but wrote no {job.output}"
        problem += f" (only {', '.join(others[:3])}){compiler.other_output}" if others else ""
    elif len(files) > 1:
        problem = f"{name} reported success, but wrote {len(files)} files ({', '.join(path.name for path in files)})"
    elif files[0].stat().st_size == 0:
        problem = f"{name} reported success, but the {job.output} that it wrote is empty"
    elif broken := _check_contents(job, files[0]):
        problem = f"{name} reported success, but the {job.output} that it wrote {broken}"
    else:
        return files[0]
    reason = report.explanation
    if reason is None and finished.exit_code and not report.success:
        printed = [line for line in finished.tail if not line.startswith(("$ ", compiler.failure))]
        reason = f"its last line: {printed[-1][:300].rstrip('.')}" if printed else "it printed nothing"
    error = ToolchainError if report.broken_toolchain else InputError
    raise error(f"{problem}. {reason + '. ' if reason else ''}Everything that it printed is in {log}")


def _check_contents(job: Job, path: Path) -> str:
    """Return what is wrong with a compiled file by its contents; empty if nothing is, or if it is no OM file."""
    if path.suffix != om_file.SUFFIX:
        return ""
    try:
        return mismatch(om_file.read_om(path), job)
    except om_file.BrokenOmError as error:
        return f"is {error.problem}"
