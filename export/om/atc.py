"""OM files through ATC: its command, its success, its errors in plain words, and a script for another machine.

Option names, file formats and error codes are those of CANN's sources and documentation (docs/om.md names them);
no ATC has run here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from neonext_ms.common import external_tools
from neonext_ms.common.errors import InputError, ToolchainError, UsageError, nearest
from neonext_ms.common.files import explained, publish
from neonext_ms.ops.soc import Soc

from . import build_script

PRECISIONS = ("fp16", "mixed_float16", "mixed_bfloat16", "origin", "cube_fp16in_fp32out")
IMPLEMENTATIONS = ("high_precision", "high_performance", "high_precision_for_all", "high_performance_for_all")
SUCCESS = "ATC run success"
FAILURE = "ATC run failed"
SCRIPT = "build_om.sh"
MOST_BATCHES, LARGEST_BATCH = 100, 2048

SET_ENV = (
    "/usr/local/Ascend/ascend-toolkit/set_env.sh",
    "/usr/local/Ascend/cann/set_env.sh",
)
_SMALL = 256 << 20

ATC = external_tools.Tool(
    name="atc",
    package="the CANN toolkit",
    homes=("ASCEND_TOOLKIT_HOME", "ASCEND_HOME_PATH"),
    folders=("bin", "compiler/bin", "atc/bin", "x86_64-linux/bin", "aarch64-linux/bin"),
    advice=f"If CANN is installed here, run `source {SET_ENV[0]}` (or where it is) first; "
    f"if not, copy the folder with {SCRIPT} to a machine that has it and run `sh {SCRIPT}` there",
)


@dataclass(frozen=True)
class OmOptions:
    """What an OM file is built for.

    Attributes:
        soc: the device.
        image_size: height and width of the input.
        batch: one size, or several of which each run takes one.
        precision: of PRECISIONS, for `--precision_mode_v2`.
        input_name: of the ONNX graph's one input, which is N x 3 x height x width.
        aipp: configuration file of a static AIPP. The model is then fed N x height x width x 3 in uint8;
            `--input_shape` keeps the ONNX graph's own order.
        keep_dtype: node names, or `OpType::Name` in CANN's names, that keep the ONNX graph's precision.
        fusion_switch: file that turns fusion passes off.
        op_select_implmode: of IMPLEMENTATIONS.
        optypelist_for_implmode: CANN operator types that this is for; all if empty.
        extra: more arguments, each as `--name=value`. Files in them need absolute paths.
    """

    soc: Soc
    image_size: tuple[int, int]
    batch: tuple[int, ...] = (1,)
    precision: str = "fp16"
    input_name: str = "input"
    aipp: str | Path | None = None
    keep_dtype: tuple[str, ...] = ()
    fusion_switch: str | Path | None = None
    op_select_implmode: str | None = None
    optypelist_for_implmode: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()

    def check(self) -> None:
        """Raises:
        UsageError: options that ATC refuses, or ignores.
        """
        check_batch(self.batch)
        check_precision(self.precision, self.soc)
        height, width = self.image_size
        if height < 1 or width < 1:
            raise UsageError(f"image size {height}x{width}: expected height and width above 0")
        if not self.input_name or ";" in self.input_name:
            raise UsageError(f"input name {self.input_name!r}: expected the ONNX graph's, without ';'")
        if self.keep_dtype and self.precision == "origin":
            raise UsageError("keep_dtype has no effect with precision origin, which keeps all; drop one of the two")
        for name in self.keep_dtype:
            if not name.strip() or "\n" in name or re.match(r"OpType::(?![A-Z][A-Za-z0-9]*$)", name):
                raise UsageError(f"keep_dtype {name!r}: expected a node's name, or OpType::Name such as OpType::Relu")
        if self.op_select_implmode not in (None, *IMPLEMENTATIONS):
            hint = nearest(self.op_select_implmode, IMPLEMENTATIONS)
            raise UsageError(
                f"unknown op_select_implmode {self.op_select_implmode!r}{hint}; known: {', '.join(IMPLEMENTATIONS)}"
            )
        if self.optypelist_for_implmode and self.op_select_implmode is None:
            raise UsageError("optypelist_for_implmode needs op_select_implmode beside it")
        if self.optypelist_for_implmode and self.op_select_implmode.endswith("_for_all"):
            raise UsageError(
                f"{self.op_select_implmode} is for all operators; drop optypelist_for_implmode, or _for_all"
            )
        _check_extra(self)


def check_batch(batch: Sequence[int]) -> None:
    """Raises:
    UsageError: no batch size, one out of ATC's range, one twice, or too many.
    """
    text = ",".join(map(str, batch))
    if not batch or len(batch) > MOST_BATCHES:
        raise UsageError(f"{len(batch)} batch sizes: expected 1 to {MOST_BATCHES}")
    if len(set(batch)) < len(batch):
        raise UsageError(f"batch {text}: give every size once")
    if min(batch) < 1 or (len(batch) > 1 and max(batch) > LARGEST_BATCH):
        raise UsageError(f"batch {text}: expected sizes of at least 1, and of at most {LARGEST_BATCH} if several")


def check_precision(precision: str, soc: Soc) -> None:
    """Raises:
    UsageError: an unknown precision, or one that the device does not have.
    """
    if precision not in PRECISIONS:
        raise UsageError(
            f"unknown precision {precision!r}{nearest(precision, PRECISIONS)}; known: {', '.join(PRECISIONS)}"
        )
    if precision == "mixed_bfloat16" and not soc.bf16:
        raise UsageError(f"{soc.name} does not compute in bfloat16; take mixed_float16, or fp16")


def _check_extra(options: OmOptions) -> None:
    taken = {_option(part) for part in _arguments("m", "m", replace(options, extra=()))[1:]}
    taken |= {"precision_mode", "mode", "singleop", "external_weight", "dynamic_image_size", "dynamic_dims"}
    for part in options.extra:
        if not re.match(r"--[A-Za-z][\w-]*=.", part):
            raise UsageError(f"extra argument {part!r}: expected --name=value")
        if _option(part) in taken:
            raise UsageError(f"extra argument {part!r}: it contradicts what is set already; leave it out")


def _option(argument: str) -> str:
    # ATC takes `-` for `_` inside a name.
    return argument.split("=", 1)[0].lstrip("-").replace("-", "_")


def input_shape(options: OmOptions) -> tuple[int, ...]:
    """N, 3, height, width as ATC gets them; N is -1 where there are several batch sizes."""
    return (options.batch[0] if len(options.batch) == 1 else -1, 3, *options.image_size)


def keep_dtype_file(stem: str) -> str:
    """Name of the file with the operators that keep their precision."""
    return f"{stem}.keep_dtype.cfg"


def atc_command(onnx: str | Path, output_stem: str | Path, options: OmOptions) -> list[str]:
    """ATC's command line, the same for the same input.

    Args:
        onnx: as in `--model`.
        output_stem: as in `--output`: without `.om`, which ATC adds. The list of `options.keep_dtype`, if there is
            one, is expected in the file `keep_dtype_file(output_stem)`.
        options: for the file.

    Raises:
        UsageError: options that ATC refuses, or ignores.
    """
    options.check()
    return _arguments(onnx, output_stem, options)


def _arguments(onnx: str | Path, output_stem: str | Path, options: OmOptions) -> list[str]:
    command = [
        "atc",
        "--framework=5",
        f"--model={onnx}",
        f"--output={output_stem}",
        f"--soc_version={options.soc.name}",
        "--input_format=NCHW",
        f"--input_shape={options.input_name}:{','.join(map(str, input_shape(options)))}",
    ]
    if len(options.batch) > 1:
        command.append(f"--dynamic_batch_size={','.join(map(str, options.batch))}")
    command.append(f"--precision_mode_v2={options.precision}")
    if options.aipp:
        command.append(f"--insert_op_conf={options.aipp}")
    if options.keep_dtype:
        command.append(f"--keep_dtype={keep_dtype_file(str(output_stem))}")
    if options.fusion_switch:
        command.append(f"--fusion_switch_file={options.fusion_switch}")
    if options.op_select_implmode:
        command.append(f"--op_select_implmode={options.op_select_implmode}")
    if options.optypelist_for_implmode:
        command.append(f"--optypelist_for_implmode={','.join(options.optypelist_for_implmode)}")
    return [*command, *options.extra]


def staged_command(onnx: str | Path, stem: str, options: OmOptions) -> tuple[list[str], dict[str, Path]]:
    """ATC's command line inside a working folder of its own, and the files that it reads there.

    ATC refuses paths with spaces and most punctuation, so every file gets a plain name.

    Returns:
        the command, and plain name -> file; the first is the ONNX file.

    Raises:
        UsageError: options that ATC refuses, or ignores.
    """
    name = external_tools.plain(stem)
    files = {f"{name}.onnx": Path(onnx)}
    inside = {}
    for field, suffix in (("aipp", ".aipp.cfg"), ("fusion_switch", ".fusion_switch.cfg")):
        if getattr(options, field):
            files[name + suffix] = Path(getattr(options, field))
            inside[field] = name + suffix
    return atc_command(f"{name}.onnx", name, replace(options, **inside)), files


def compile_om(
    onnx: str | Path,
    output: str | Path,
    options: OmOptions,
    stage: Path,
    log: str | Path,
    timeout: float | None = None,
    environ: Mapping[str, str] | None = None,
) -> Path:
    """Build an OM file in a staging folder.

    ATC has succeeded when its exit code is 0, it printed its success line, and it wrote exactly one file of the
    expected name that is not empty; anything else is an error and leaves nothing but the log.

    Args:
        onnx: the model.
        output: the OM file's final name, for its stem; nothing is written there.
        options: for the file.
        stage: folder inside which ATC works and in which the file is left.
        log: final name of the file with everything that ATC printed; it is written whatever happens.
        timeout: seconds, or None for no limit.
        environ: to find ATC in and to run it with; this process's own if None.

    Returns:
        the file in `stage`. It is named as `output`, with the system's name before `.om` where ATC adds that:
        such a file works only there, and should keep that name.

    Raises:
        ToolchainError: ATC is not installed, or its installation is not complete.
        InputError: ATC failed, or the time limit passed.
        UsageError: options that ATC refuses, or ignores.
    """
    output, log = Path(output), Path(log)
    stem = output.name.removesuffix(".om")
    command, files = staged_command(onnx, stem, options)
    external_tools.check_timeout(timeout)
    executable = external_tools.find(ATC, environ)
    staged_log = stage / f"{log.name}.part"
    with (
        external_tools.kept(staged_log, log),
        external_tools.work_folder(stage, f"{external_tools.plain(stem)}.atc") as work,
    ):
        for index, (name, source) in enumerate(files.items()):
            external_tools.place(source, work / name, link=index == 0)
        for location in external_data(Path(onnx)):
            external_tools.place(Path(onnx).parent / location, work / location)
        if options.keep_dtype:
            listed = work / keep_dtype_file(external_tools.plain(stem))
            with explained(listed):
                listed.write_text("\n".join(options.keep_dtype) + "\n", encoding="utf-8")
        finished = external_tools.run([str(executable), *command[1:]], work, staged_log, log, timeout, environ)
        made = _checked(finished, work, external_tools.plain(stem), output.name, log)
        staged = stage / (stem + made.name.removeprefix(external_tools.plain(stem)))
        external_tools.move(made, staged)
    return staged


def publish_om(staged: Path, output: str | Path) -> Path:
    """Publish what `compile_om` left in the staging folder, in the folder of `output`, under the name that it has."""
    return publish(staged, Path(output).with_name(staged.name))


def external_data(onnx: Path) -> list[str]:
    """Files that an ONNX model keeps its weights in; a model that is large itself has none."""
    with explained(onnx):
        if onnx.stat().st_size > _SMALL:
            return []
    import onnx as onnx_package

    try:
        model = onnx_package.load(onnx, load_external_data=False)
    except Exception as error:
        raise InputError(f"{onnx}: not an ONNX file ({' '.join(str(error).split())[:100]}); export it again") from error
    entries = (entry for tensor in model.graph.initializer for entry in tensor.external_data)
    found = {entry.value for entry in entries if entry.key == "location"}
    return sorted(name for name in found if not Path(name).is_absolute() and ".." not in Path(name).parts)


def _checked(finished: external_tools.Finished, work: Path, stem: str, final: str, log: Path) -> Path:
    """The file that ATC made.

    Raises:
        InputError: it did not succeed.
        ToolchainError: its installation is not complete.
    """
    report = read_log(external_tools.lines(finished.log))
    pattern = re.compile(re.escape(stem) + r"(_[A-Za-z0-9]+_[A-Za-z0-9_]+)?\.om")
    made = sorted(path for path in work.glob("*.om") if pattern.fullmatch(path.name))
    size = made[0].stat().st_size if made else 0
    if finished.exit_code == 0 and report.success and not report.failure and len(made) == 1 and size:
        return made[0]
    if finished.exit_code != 0:
        what = f"atc failed ({finished.how})"
        if finished.exit_code < 0:
            what += "; if memory ran out, close other programs or try a smaller batch"
        if report.success:
            what += f", although it printed {SUCCESS!r}"
        if made:
            what += f"; the {final} that it wrote is not used"
    elif report.failure:
        what = f"atc printed {FAILURE!r}, although its exit code is 0"
    elif not report.success:
        what = f"atc ended with exit code 0, but without its line {SUCCESS!r}"
        what += f"; the {final} that it wrote is not used" if made else f", and wrote no {final}"
    elif not made:
        others = sorted(path.name for path in work.rglob("*.om"))
        what = f"atc reported success, but wrote no {final}" + (f" (only {', '.join(others[:3])})" if others else "")
    elif len(made) > 1:
        what = f"atc reported success, but wrote {len(made)} files ({', '.join(path.name for path in made)})"
    else:
        what = f"atc reported success, but the {final} that it wrote is empty"
    why = report.explanation
    if why is None and finished.exit_code and not report.success:
        said = [line for line in finished.tail if not line.startswith(("$ ", FAILURE))]
        why = f"its last line: {said[-1][:300]}" if said else "it printed nothing"
    kind = ToolchainError if report.broken_toolchain else InputError
    raise kind(f"{what}. {why + '. ' if why else ''}Everything that it printed is in {log}")


@dataclass(frozen=True)
class Advice:
    """What an error of ATC means and what to do about it."""

    what: str
    do: str


_OPTION = "check the option that the line names; if this package set it, please report that"
_OPERATOR = "export with `--opset 13`, and with `--neocell matmul` unless the NeoCell operator package is installed"
_PLUGIN = "source set_env.sh, and install the NeoCell operator package if the graph was exported with --neocell custom"
_BATCH = "give two or more different batch sizes, or a single one"

# Messages and remedies: docs/en/user_guides/error_codes in hicann/ge, src/dfx/error_manager/error_code.json in
# hicann/runtime.
# E19010 is E16002 of older releases; EZ9010, EZ0501 and E13003 are other spellings of E19010, E10501 and EZ3003.
ERRORS: dict[str, Advice] = {
    "E10001": Advice("ATC refuses the value of an option", _OPTION),
    "E10002": Advice("ATC cannot read --input_shape", "it has to be name:n,c,h,w with whole numbers"),
    "E10003": Advice("ATC refuses the value of an option", _OPTION),
    "E10004": Advice("an option of ATC has no value", _OPTION),
    "E10005": Advice("an option of ATC has to be true or false", _OPTION),
    "E10006": Advice("an option of ATC has to be 0 or 1", _OPTION),
    "E10007": Advice("a required option of ATC is missing", _OPTION),
    "E10014": Advice("ATC refuses the value of an option", _OPTION),
    "E10015": Advice("ATC refuses the value of an option", _OPTION),
    "E10016": Advice(
        "the graph has no operator of the name that an option gives",
        "use a name of the ONNX graph; its input's name is that in --input_shape",
    ),
    "E10018": Advice("--dynamic_batch_size allows -1 for the batch only", "give the image size as numbers"),
    "E10031": Advice("--dynamic_batch_size needs -1 for the batch in --input_shape", _BATCH),
    "E10035": Advice("there are too few batch sizes", _BATCH),
    "E10036": Advice("there are too many batch sizes", f"give at most {MOST_BATCHES}"),
    "E10039": Advice("a batch size was given twice", "give every size once"),
    "E10040": Advice("--dynamic_batch_size needs -1 in --input_shape", _BATCH),
    "E10041": Advice(
        "ATC could not load the model",
        "check that the ONNX file is whole, and that its weights file, if it has one, lies beside it",
    ),
    "E10047": Advice("two options of ATC exclude each other", "leave one of them out"),
    "E10054": Advice("a required option of ATC is empty", _OPTION),
    "E10055": Advice("this ATC does not support what was asked for", "read the reason; a newer CANN may support it"),
    "E10056": Advice("two options of ATC exclude each other", "leave one of them out"),
    "E10057": Advice("two options of ATC belong together", "read which; give both or neither"),
    "E10058": Advice("an option of ATC has no value", _OPTION),
    "E10061": Advice("ATC refuses the value of an option", _OPTION),
    "E10410": Advice("a file that an option names is not there", "check its path; it has to be absolute"),
    "E10501": Advice("CANN has no definition of an operator in the graph", _PLUGIN),
    "E13000": Advice("a path does not exist", "check the path in the line"),
    "E13001": Advice("a file cannot be opened", "check that it is there and may be read"),
    "E13003": Advice("no kernel of this device can run an operator", _OPERATOR),
    "E13004": Advice("a file cannot be written", "check rights and free space of the output folder"),
    "E13010": Advice("CANN has no plugin for an operator in the graph", _PLUGIN),
    "E13023": Advice("the OM would be larger than ATC can write", "take a smaller model or batch"),
    "E13024": Advice("an environment variable has a value that CANN refuses", "unset it, or source set_env.sh anew"),
    "E14001": Advice("an operator's inputs or attributes do not fit this device", _OPERATOR),
    "E16001": Advice("the ONNX model lacks a node", "export it again"),
    "E16002": Advice("CANN's ONNX parser does not know an operator at this opset", f"{_OPERATOR}; {_PLUGIN}"),
    "E16004": Advice("the ONNX model has no graph", "export it again"),
    "E16005": Advice("the ONNX model imports several opsets", "export it again with one"),
    "E19010": Advice("CANN's ONNX parser does not know an operator at this opset", f"{_OPERATOR}; {_PLUGIN}"),
    "E19999": Advice(
        "an internal error of CANN",
        "try another --opset, precision or CANN release; `export ASCEND_SLOG_PRINT_TO_STDOUT=1` and "
        "ASCEND_GLOBAL_LOG_LEVEL=1 make it print more",
    ),
    "E40001": Advice("an environment variable has a value that CANN refuses", "unset it, or source set_env.sh anew"),
    "E40002": Advice("this Python is too old for CANN", "put a newer one into PATH"),
    "E40020": Advice("CANN needs a Python module that is not installed", "install it with pip for the Python in PATH"),
    "E40021": Advice("an operator failed to compile", "read the Python traceback in the log; check CANN's release"),
    "E40024": Advice("CANN's own Python code failed", "source set_env.sh, and check the Python in PATH"),
    "EZ0501": Advice("CANN has no definition of an operator in the graph", _PLUGIN),
    "EZ3002": Advice("this device does not run an operator in the form that the graph has", _OPERATOR),
    "EZ3003": Advice("no kernel of this device can run an operator", _OPERATOR),
    "EZ9010": Advice("CANN's ONNX parser does not know an operator at this opset", f"{_OPERATOR}; {_PLUGIN}"),
    "EZ9999": Advice("an internal error of CANN", "try another --opset, precision or CANN release"),
}
# The codes of broken installations, and those that say nothing themselves.
_TOOLCHAIN_CODES = {"E40002", "E40020"}
_INTERNAL = {"E19999", "EZ9999"}

# What a shell, the loader or Python print where CANN's environment is incomplete.
_ENVIRONMENT = (
    (r"error while loading shared libraries", "a library of CANN was not found", "source set_env.sh in this shell"),
    (r"(atc\S*|set_env\.sh)\S*: .*(not found|No such file)", "a part of ATC is missing", "reinstall the CANN toolkit"),
    (
        r"ASCEND_OPP_PATH.*(not|empty|invalid|[Ff]ail)",
        "CANN's operators were not found",
        "source set_env.sh in this shell",
    ),
    (
        r"(ModuleNotFoundError|ImportError): ",
        "a Python module of CANN is missing",
        "install it for the Python in PATH, and source set_env.sh",
    ),
)
_SPACE = (r"No space left on device", "the disk is full", "free some space")
_CODE = re.compile(r"(?<![\w./=-])(E[0-9A-Z]\d{4})(?=[:)\]\s]|$)")


def explain(log_text: str) -> str | None:
    """What the first error in ATC's output means, with its own line; None if there is no error to be recognised.

    An internal error, which says nothing, gives way to a recognised fault of the environment.
    """
    return read_log(log_text.splitlines()).explanation


@dataclass(frozen=True)
class LogReport:
    """What a log says: success and failure lines, the first error explained, and whether CANN itself is incomplete."""

    success: bool
    failure: bool
    explanation: str | None
    broken_toolchain: bool


def read_log(lines: Iterable[str]) -> LogReport:
    """What the lines of a log of ATC, or of another CANN tool, say."""
    success = failure = broken = waiting = False
    code = line_of_code = environment = None
    for raw in lines:
        line = raw.strip()
        if line.startswith("$ "):
            continue
        success = success or line.startswith(SUCCESS)
        failure = failure or line.startswith(FAILURE)
        if waiting and line:
            line_of_code, waiting = f"{line_of_code} {line}", False
        match = _CODE.search(line) if code is None else None
        if match:
            code, line_of_code = match[1], line[match.start() :]
            waiting = len(line_of_code) < 30
        if environment is None:
            found = next((entry for entry in (*_ENVIRONMENT, _SPACE) if re.search(entry[0], line)), None)
            environment = found and (found, line)
    explanation = None
    if code is not None and (environment is None or code not in _INTERNAL):
        unknown = Advice("an error that this package does not know", "look the code up in CANN's error code reference")
        advice = ERRORS.get(code, unknown)
        explanation = f"{shortened(line_of_code)}: {advice.what}; {advice.do}"
        broken = code in _TOOLCHAIN_CODES
    elif environment is not None:
        (entry, line) = environment
        explanation = f"{shortened(line)}: {entry[1]}; {entry[2]}"
        broken = entry is not _SPACE
    return LogReport(success, failure, explanation, broken)


def shortened(line: str, limit: int = 300) -> str:
    """A line of a log, for a message."""
    line = " ".join(line.split()).rstrip(".:")
    return line if len(line) <= limit else line[: limit - 3] + "..."


@dataclass(frozen=True)
class OmJob:
    """One OM file for a script to build.

    Attributes:
        onnx: name of the model, beside the script.
        stem: of the OM file, without `.om`.
        options: for the file; the files that they name are expected beside the script, too.
        data: names of files, beside the script, that hold the model's weights.
    """

    onnx: str
    stem: str
    options: OmOptions
    data: tuple[str, ...] = ()


def write_script(path: str | Path, jobs: Sequence[OmJob]) -> Path:
    """Write a POSIX shell script that builds OM files where CANN is installed.

    It needs the files beside it that its jobs name, and nothing of this package. It holds what `compile_om` holds:
    a file gets its name only after ATC's exit code, success line and file were found good.

    Raises:
        UsageError: no job, or options that ATC refuses, or ignores.
        InputError: it cannot be written.
    """
    if not jobs:
        raise UsageError("a script needs at least one model to build")
    build_script.write_script(
        path, _SCRIPT, {code: f"{a.what}; {a.do}" for code, a in ERRORS.items()}, map(_task, jobs)
    )
    return Path(path)


def _task(job: OmJob) -> build_script.Task:
    named = {field: getattr(job.options, field) for field in ("aipp", "fusion_switch")}
    options = replace(job.options, **{field: Path(path).name for field, path in named.items() if path})
    command, files = staged_command(Path(job.onnx).name, job.stem, options)
    name = external_tools.plain(job.stem)
    takes = [(str(source), inside) for inside, source in files.items()] + [(data, data) for data in job.data]
    texts = {keep_dtype_file(name): "\n".join(options.keep_dtype) + "\n"} if options.keep_dtype else {}
    return build_script.Task(job.stem, name, takes, texts, command[1:])


_SCRIPT = build_script.Script(
    tool=ATC.name,
    name=SCRIPT,
    suffix=".om",
    makes="OM files with ATC",
    success=SUCCESS,
    failure=FAILURE,
    set_env=SET_ENV,
    needs_set_env="! command -v atc >/dev/null 2>&1",
    missing="Install the CANN toolkit, source its set_env.sh, then run this script again",
)
