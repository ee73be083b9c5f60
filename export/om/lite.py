"""MindIR files for MindSpore Lite on Ascend, through `converter_lite`, which holds an OM inside.

Flags, keys and the success line are those of mindspore-ai/mindspore-lite and of its documentation for 2.x
(docs/om.md names the places); no converter has run here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from neonext_ms.common import external_tools
from neonext_ms.common.errors import InputError, ToolchainError, UsageError
from neonext_ms.common.files import explained
from neonext_ms.ops.soc import Soc

from . import atc, build_script

SCRIPT = "build_lite.sh"
# What runs of the converter print at their end (converter.cc, main.cc); releases before 2.0 wrote CONVERTER.
SUCCESS = re.compile(r"CONVERT(ER)? RESULT SUCCESS:0\b")
FAILURE = "Convert failed"
FORMATS = {".onnx": "ONNX", ".mindir": "MINDIR"}

# ATC's precisions in the converter's words (kPrecision map in acl_utils.h); it has none for mixed_bfloat16.
PRECISIONS = {
    "fp16": "enforce_fp16",
    "mixed_float16": "preferred_optimal",
    "origin": "enforce_origin",
    "cube_fp16in_fp32out": "enforce_fp32",
}
# What `plugin_custom_ops` takes besides All and None.
CUSTOM_OPS = (
    "FlashAttention",
    "LayerNormV3",
    "GeGluV2",
    "GroupNormSilu",
    "FFN",
    "AddLayerNorm",
    "MatMulAllReduce",
    "BatchMatmulToMatmul",
)

CONVERTER = external_tools.Tool(
    name="converter_lite",
    package="MindSpore Lite for the cloud side (the package with Ascend support)",
    homes=("LITE_HOME",),
    folders=("tools/converter/converter",),
    advice="If it is here, set LITE_HOME to its folder; if not, copy the folder with "
    f"{SCRIPT} to a machine that has it and CANN and run `sh {SCRIPT}` there, or take `--via atc`",
    libraries=("tools/converter/lib", "runtime/lib"),
)


@dataclass(frozen=True)
class LiteOptions:
    """What a MindIR file for Ascend is built for.

    Attributes:
        soc: the device.
        image_size: height and width of the input.
        batch: one size, or several of which each run takes one.
        precision: a key of PRECISIONS.
        input_name: of the model's one input, which is N x 3 x height x width.
        aipp: configuration file of a static AIPP; the model is then fed N x height x width x 3 in uint8.
        fusion_switch: file that turns fusion passes off.
        plugin_custom_ops: of CUSTOM_OPS; none if empty.
    """

    soc: Soc
    image_size: tuple[int, int]
    batch: tuple[int, ...] = (1,)
    precision: str = "fp16"
    input_name: str = "input"
    aipp: str | Path | None = None
    fusion_switch: str | Path | None = None
    plugin_custom_ops: tuple[str, ...] = ()

    def check(self) -> None:
        """Raises:
        UsageError: options that the converter refuses.
        """
        atc.check_batch(self.batch)
        atc.check_precision(self.precision, self.soc)
        if self.precision not in PRECISIONS:
            raise UsageError(
                f"converter_lite has no precision {self.precision}; take one of {', '.join(PRECISIONS)}, or `--via atc`"
            )
        height, width = self.image_size
        if height < 1 or width < 1:
            raise UsageError(f"image size {height}x{width}: expected height and width above 0")
        # The converter's configuration file has no quoting: it cuts lines at `=` and drops quotation marks.
        if not self.input_name or re.search(r"[;=\"'\s]", self.input_name):
            raise UsageError(
                f"input name {self.input_name!r}: converter_lite needs one without spaces, ';', '=', quotes"
            )
        for name in self.plugin_custom_ops:
            if name not in (*CUSTOM_OPS, "All"):
                raise UsageError(f"unknown plugin_custom_ops {name!r}; known: All, {', '.join(CUSTOM_OPS)}")


def config_text(options: LiteOptions) -> str:
    """The converter's configuration file.

    A fixed shape is not in it: the converter takes that from `--inputShape` only.

    Raises:
        UsageError: options that the converter refuses.
    """
    options.check()
    lines = ["[ascend_context]", "input_format=NCHW"]
    if len(options.batch) > 1:
        height, width = options.image_size
        lines.append(f"input_shape={options.input_name}:[-1,3,{height},{width}]")
        lines.append(f"dynamic_dims={','.join(f'[{size}]' for size in options.batch)}")
    lines.append(f"precision_mode={PRECISIONS[options.precision]}")
    if options.aipp:
        lines.append(f"insert_op_config_file_path={options.aipp}")
    if options.fusion_switch:
        lines.append(f"fusion_switch_config_file_path={options.fusion_switch}")
    if options.plugin_custom_ops:
        lines.append(f"plugin_custom_ops={','.join(options.plugin_custom_ops)}")
    # Without this the converter builds for the device that it finds, and finds none on a machine without one.
    lines += ["", "[acl_init_options]", f"ge.socVersion={options.soc.name}"]
    return "\n".join(lines) + "\n"


def lite_command(model: str | Path, output_stem: str | Path, options: LiteOptions, config: str | Path) -> list[str]:
    """The converter's command line, the same for the same input.

    Args:
        model: an ONNX or MindIR file.
        output_stem: without `.mindir`, which the converter adds.
        options: for the file.
        config: file with `config_text(options)`.

    Raises:
        UsageError: options that the converter refuses, or a file of another kind.
    """
    options.check()
    kind = FORMATS.get(Path(model).suffix)
    if kind is None:
        raise UsageError(f"{model}: converter_lite is given an .onnx or a .mindir file")
    command = [
        "converter_lite",
        f"--fmk={kind}",
        f"--modelFile={model}",
        f"--outputFile={output_stem}",
        "--saveType=MINDIR",
        "--optimize=ascend_oriented",
        f"--configFile={config}",
    ]
    if len(options.batch) == 1:
        shape = (options.batch[0], 3, *options.image_size)
        command.append(f"--inputShape={options.input_name}:{','.join(map(str, shape))}")
    return command


def staged_command(
    model: str | Path, stem: str, options: LiteOptions
) -> tuple[list[str], dict[str, Path], dict[str, str]]:
    """The converter's command line inside a working folder of its own.

    Returns:
        the command, files that it reads there (plain name -> file, the model first), and those to be written there
        (plain name -> text).

    Raises:
        UsageError: options that the converter refuses, or a file of another kind.
    """
    name = external_tools.plain(stem)
    # The converter writes name.mindir, which must not be the file that it reads.
    source = f"{name}.source{Path(model).suffix}"
    files, inside = {source: Path(model)}, {}
    for field, suffix in (("aipp", ".aipp.cfg"), ("fusion_switch", ".fusion_switch.cfg")):
        if getattr(options, field):
            files[name + suffix] = Path(getattr(options, field))
            inside[field] = f"./{name}{suffix}"
    config = f"{name}.lite.cfg"
    texts = {config: config_text(replace(options, **inside))}
    return lite_command(f"./{source}", f"./{name}", options, f"./{config}"), files, texts


def compile_lite(
    model: str | Path,
    output: str | Path,
    options: LiteOptions,
    stage: Path,
    log: str | Path,
    timeout: float | None = None,
    environ: Mapping[str, str] | None = None,
) -> Path:
    """Build a MindIR file for Ascend in a staging folder.

    The converter has succeeded when its exit code is 0, it printed its success line, and it wrote a file that is not
    empty; anything else is an error and leaves nothing but the log.

    Args:
        model: an ONNX or MindIR file.
        output: the new file's final name; nothing is written there.
        options: for the file.
        stage: folder inside which the converter works and in which the file is left.
        log: final name of the file with everything that it printed; it is written whatever happens.
        timeout: seconds, or None for no limit.
        environ: to find the converter in and to run it with; this process's own if None.

    Returns:
        the file in `stage`.

    Raises:
        ToolchainError: the converter is not installed, or its installation is not complete.
        InputError: it failed, or the time limit passed.
        UsageError: options that it refuses.
    """
    output, log = Path(output), Path(log)
    stem = output.name.removesuffix(".mindir")
    command, files, texts = staged_command(model, stem, options)
    external_tools.check_timeout(timeout)
    executable = external_tools.find(CONVERTER, environ)
    staged_log = stage / f"{log.name}.part"
    with (
        external_tools.kept(staged_log, log),
        external_tools.work_folder(stage, f"{external_tools.plain(stem)}.lite") as work,
    ):
        for name, source in files.items():
            external_tools.place(source, work / name, link=False)
        if Path(model).suffix == ".onnx":
            for location in atc.external_data(Path(model)):
                external_tools.place(Path(model).parent / location, work / location)
        for name, text in texts.items():
            with explained(work / name):
                (work / name).write_text(text, encoding="utf-8")
        finished = external_tools.run(
            [str(executable), *command[1:]],
            work,
            staged_log,
            log,
            timeout,
            external_tools.environment(CONVERTER, executable, environ),
        )
        made = _checked(finished, work, external_tools.plain(stem), output.name, log)
        staged = stage / f"{stem}.mindir"
        external_tools.move(made, staged)
    return staged


def _checked(finished: external_tools.Finished, work: Path, stem: str, final: str, log: Path) -> Path:
    success = failure = False
    for line in external_tools.lines(finished.log):
        success = success or bool(SUCCESS.match(line.strip()))
        failure = failure or line.strip().startswith(FAILURE)
    made = work / f"{stem}.mindir"
    size = made.stat().st_size if made.is_file() else None
    if finished.exit_code == 0 and success and not failure and size:
        return made
    if finished.exit_code != 0:
        what = f"converter_lite failed ({finished.how})"
        if success:
            what += ", although it reported success"
        if size is not None:
            what += f"; the {final} that it wrote is not used"
    elif failure:
        what = f"converter_lite printed {FAILURE!r}, although its exit code is 0"
    elif not success:
        what = "converter_lite ended with exit code 0, but without its line 'CONVERT RESULT SUCCESS:0'"
        what += f", and wrote no {final}" if size is None else f"; the {final} that it wrote is not used"
    elif size == 0:
        what = f"converter_lite reported success, but the {final} that it wrote is empty"
    elif (work / f"{stem}_graph.mindir").exists():
        what = (
            f"converter_lite reported success, but wrote {stem}_graph.mindir and a folder of weights, as it does "
            f"above 2 GB, and not the one file {final}; take a smaller model, or `--via atc`"
        )
    else:
        what = f"converter_lite reported success, but wrote no {final}"
    why, broken = _why(finished)
    kind = ToolchainError if broken else InputError
    raise kind(f"{what}. {why + '. ' if why else ''}Everything that it printed is in {log}")


_NO_CANN = "the converter did not find CANN"
# What the converter prints, from converter_flags.cc, main.cc and converter_context.h.
_MESSAGES = (
    (r"INPUT (ILLEGAL|MISSING|INVALID)", "the converter refuses an option", "check the value that the line names"),
    (r"(Flag missing|Invalid flag|unknown flag)", "the converter does not know an option", "use MindSpore Lite 2.x"),
    (r"NOT SUPPORT|not support(ed)? op|unsupported op", "the converter does not know an operator", "take `--via atc`"),
    (
        r"Get soc version failed|libascendcl|libge_compiler|libascend_pass_plugin",
        _NO_CANN,
        "source CANN's set_env.sh, and take the MindSpore Lite package with Ascend support",
    ),
    (r"encounter an unknown error", "the converter crashed", "check the model with neonext-info; try `--via atc`"),
)


def _why(finished: external_tools.Finished) -> tuple[str | None, bool]:
    """What the log says about the failure, and whether the installation is at fault."""
    explanation, broken = _explained(finished.log)
    if explanation is not None or finished.exit_code == 0:
        return explanation, broken
    said = [line for line in finished.tail if not line.startswith("$ ") and not SUCCESS.match(line)]
    return (f"its last line: {said[-1][:300]}" if said else "it printed nothing"), False


def _explained(log: Path) -> tuple[str | None, bool]:
    report = atc.read_log(external_tools.lines(log))
    if report.explanation is not None:
        return report.explanation, report.broken_toolchain
    for line in external_tools.lines(log):
        found = None if line.startswith("$ ") else _message(line)
        if found is not None:
            return found, _NO_CANN in found
    return None, False


def _message(line: str) -> str | None:
    for pattern, what, do in _MESSAGES:
        if re.search(pattern, line):
            return f"{atc.shortened(line)}: {what}; {do}"
    return None


def explain(log_text: str) -> str | None:
    """What the first recognised error in the converter's or CANN's output means; None if there is none."""
    return atc.explain(log_text) or next(filter(None, map(_message, log_text.splitlines())), None)


@dataclass(frozen=True)
class LiteJob:
    """One MindIR file for a script to build.

    Attributes:
        model: name of the ONNX or MindIR file, beside the script.
        stem: of the new file, without `.mindir`; not that of a MindIR model.
        options: for the file; the files that they name are expected beside the script, too.
        data: names of files, beside the script, that hold the model's weights.
    """

    model: str
    stem: str
    options: LiteOptions
    data: tuple[str, ...] = ()


def write_script(path: str | Path, jobs: Sequence[LiteJob]) -> Path:
    """Write a POSIX shell script that builds MindIR files where MindSpore Lite and CANN are installed.

    It needs the files beside it that its jobs name, and nothing of this package. It holds what `compile_lite` holds.

    Raises:
        UsageError: no job, options that the converter refuses, or a file that would replace its model.
        InputError: it cannot be written.
    """
    if not jobs:
        raise UsageError("a script needs at least one model to build")
    advice = {code: f"{entry.what}; {entry.do}" for code, entry in atc.ERRORS.items()}
    build_script.write_script(path, _SCRIPT, advice, map(_task, jobs))
    return Path(path)


def _task(job: LiteJob) -> build_script.Task:
    if job.model == f"{job.stem}.mindir":
        raise UsageError(f"{job.model}: the new file would replace its model; give it another name")
    named = {field: getattr(job.options, field) for field in ("aipp", "fusion_switch")}
    options = replace(job.options, **{field: Path(path).name for field, path in named.items() if path})
    command, files, texts = staged_command(Path(job.model).name, job.stem, options)
    takes = [(str(source), inside) for inside, source in files.items()] + [(data, data) for data in job.data]
    return build_script.Task(job.stem, external_tools.plain(job.stem), takes, texts, command[1:])


_FIND = """\
home=${LITE_HOME:-/nowhere}
if ! command -v converter_lite >/dev/null 2>&1 && [ -x "$home/tools/converter/converter/converter_lite" ]; then
    PATH=$home/tools/converter/converter:$PATH
    LD_LIBRARY_PATH=$home/tools/converter/lib:$home/runtime/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
    export PATH LD_LIBRARY_PATH
fi
"""

_SCRIPT = build_script.Script(
    tool=CONVERTER.name,
    name=SCRIPT,
    suffix=".mindir",
    makes="MindIR files for Ascend with MindSpore Lite",
    success="CONVERT(ER)? RESULT SUCCESS:0([^0-9]|$)",
    failure=FAILURE,
    set_env=atc.SET_ENV,
    needs_set_env='[ -z "${ASCEND_TOOLKIT_HOME:-}${ASCEND_HOME_PATH:-}" ]',
    missing="Unpack MindSpore Lite, set LITE_HOME to its folder, then run this script again",
    find=_FIND,
)
