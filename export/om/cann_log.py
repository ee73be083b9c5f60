"""Errors of CANN's tools in plain words: one table of codes, one of texts, and the reader of a log.

`python -m neonext_ms.export.om.cann_log` prints the table of codes as docs/deploy.md shows it.

Sources of codes, messages and remedies: docs/en/user_guides/error_codes in hicann/ge,
src/dfx/error_manager/error_code.json in hicann/runtime. E19010 is E16002 of older releases; EZ9010, EZ0501 and E13003
are other spellings of E19010, E10501 and EZ3003. No source explains E10502, so it is not in the table.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Advice(NamedTuple):
    """An error in plain words.

    Attributes:
        meaning: what happened.
        remedy: what to do about it.
        broken_toolchain: whether the installation is at fault, not the model or an option.
    """

    meaning: str
    remedy: str
    broken_toolchain: bool = False


class LogReport(NamedTuple):
    """Summary of a log: whether its lines of success and of failure occur, and the first error that was recognized.

    `broken_toolchain` tells whether that error is the installation's.
    """

    success: bool
    failure: bool
    explanation: str | None
    broken_toolchain: bool


_OPTION = "check the option named in the log line; if this package set it, please report that"
_OPERATOR = "export with `--opset 13`, and with `--neocell matmul` unless the NeoCell operator package is installed"
_PLUGIN = "source set_env.sh, and install the NeoCell operator package if the graph was exported with --neocell custom"
_BATCH = "give two or more different batch sizes, or a single one"
_INTERNAL = ("E19999", "EZ9999")

# Codes, meaning, remedy.
_ROWS = (
    ("E10001 E10003 E10014 E10015 E10061", "ATC rejects the value of an option", _OPTION),
    ("E10002", "ATC cannot read --input_shape", "write it as name:n,c,h,w with integers"),
    ("E10004 E10058", "an option of ATC has no value", _OPTION),
    ("E10005", "an option of ATC must be true or false", _OPTION),
    ("E10006", "an option of ATC must be 0 or 1", _OPTION),
    ("E10007 E10054", "a required option of ATC is missing or empty", _OPTION),
    (
        "E10016",
        "an option names an operator that the graph does not have",
        "use a name of the ONNX graph; its input's name is that in --input_shape",
    ),
    ("E10018", "--dynamic_batch_size allows -1 for the batch only", "give the image size as numbers"),
    ("E10031 E10040", "--dynamic_batch_size needs -1 for the batch in --input_shape", _BATCH),
    ("E10035", "there are too few batch sizes", _BATCH),
    ("E10036", "there are too many batch sizes", "give at most 100"),
    ("E10039", "a batch size occurs twice", "list every size once"),
    (
        "E10041",
        "ATC could not load the model",
        "check that the ONNX file is complete, and that its weights file, if it has one, is beside it",
    ),
    ("E10047 E10056", "two options of ATC exclude each other", "leave one of them out"),
    (
        "E10055",
        "this version of ATC does not support what an option requests",
        "read the reason; a newer CANN may support it",
    ),
    ("E10057", "two options of ATC belong together", "read which; give both or neither"),
    ("E10410", "a file that an option names does not exist", "check its path, which must be absolute"),
    ("E10501 EZ0501", "CANN has no definition of an operator in the graph", _PLUGIN),
    ("E13000", "a path does not exist", "check the path in the log line"),
    ("E13001", "a file cannot be opened", "check that it exists and is readable"),
    ("E13003 EZ3003", "no kernel of this device can run an operator", _OPERATOR),
    ("E13004", "a file cannot be written", "check permissions and free space of the output folder"),
    ("E13010", "CANN has no plugin for an operator in the graph", _PLUGIN),
    ("E13023", "the OM would be larger than ATC can write", "use a smaller model or batch"),
    ("E13024 E40001", "an environment variable has a value that CANN rejects", "unset it, or source set_env.sh again"),
    ("E14001", "an operator's inputs or attributes do not fit this device", _OPERATOR),
    ("E16001", "the ONNX model lacks a node", "export it again"),
    ("E16002 E19010 EZ9010", "CANN's ONNX parser does not know an operator at this opset", f"{_OPERATOR}; {_PLUGIN}"),
    ("E16004", "the ONNX model has no graph", "export it again"),
    ("E16005", "the ONNX model imports several opsets", "export it again with one"),
    (
        "E19999 EZ9999",
        "an internal error of CANN",
        "try another --opset, precision mode or CANN release; `export ASCEND_SLOG_PRINT_TO_STDOUT=1` and "
        "ASCEND_GLOBAL_LOG_LEVEL=1 make it print more",
    ),
    ("E40002", "this Python is too old for CANN", "put a newer one into PATH"),
    ("E40020", "CANN needs a Python module that is not installed", "install it with pip for the Python in PATH"),
    ("E40021", "an operator failed to compile", "read the Python traceback in the log; check CANN's release"),
    ("E40024", "CANN's own Python code failed", "source set_env.sh, and check the Python in PATH"),
    ("EZ3002", "this device does not support an operator as the graph uses it", _OPERATOR),
)
# Codes that mean that the installation is at fault.
_BROKEN = ("E40002", "E40020")
CODES = {code: Advice(meaning, remedy, code in _BROKEN) for codes, meaning, remedy in _ROWS for code in codes.split()}
UNKNOWN = Advice("an error that this package does not know", "look the code up in CANN's error code reference")

# Texts of a shell, the loader or Python where CANN's environment is incomplete, and of a full disk.
_TEXTS = (
    (
        r"error while loading shared libraries",
        Advice("a library of CANN was not found", "source set_env.sh in this shell", broken_toolchain=True),
    ),
    (
        r"(atc|set_env\.sh)\S*: .*(not found|No such file)",
        Advice("a part of ATC is missing", "reinstall the CANN toolkit", broken_toolchain=True),
    ),
    (
        r"ASCEND_OPP_PATH.*(not|empty|invalid|[Ff]ail)",
        Advice("CANN's operators were not found", "source set_env.sh in this shell", broken_toolchain=True),
    ),
    (
        r"(ModuleNotFoundError|ImportError): ",
        Advice(
            "a Python module of CANN is missing",
            "install it for the Python in PATH, and source set_env.sh",
            broken_toolchain=True,
        ),
    ),
    (r"No space left on device", Advice("the disk is full", "free some space")),
)
_LONGEST = 2000
_CODE = re.compile(r"(?<![\w./=-])(E[0-9A-Z]\d{4})(?=[:)\]\s]|$)")


def read_log(lines: Iterable[str], success: str, failure: str, texts: Sequence[tuple[str, Advice]] = ()) -> LogReport:
    """Summarize a log.

    The first code decides. An internal error says nothing by itself, so there the first recognized text goes before it.

    Args:
        lines: lines of the log. Those that start with `$ ` are commands and are ignored.
        success: start of the line that reports success, as a regular expression.
        failure: start of the line that reports a failure.
        texts: more patterns to recognize, for a tool around CANN. They count where neither a code nor a text of CANN
            explains the log.
    """
    succeeded = failed = incomplete = False
    code = code_line = ""
    first_text: dict[bool, tuple[Advice, str]] = {}
    for raw in lines:
        # The time of a search grows faster than the line.
        line = raw.strip()[:_LONGEST]
        if line.startswith("$ "):
            continue
        succeeded = succeeded or bool(re.match(success, line))
        failed = failed or line.startswith(failure)
        if incomplete and line:
            code_line, incomplete = f"{code_line} {line}", False
        match = None if code else _CODE.search(line)
        if match:
            code, code_line = match[1], line[match.start() :]
            # Some releases print the message on the next line.
            incomplete = len(code_line) < 30
        for is_own, patterns in ((False, _TEXTS), (True, texts)):
            advice = next((advice for pattern, advice in patterns if re.search(pattern, line)), None)
            if advice:
                first_text.setdefault(is_own, (advice, line))
    explained = first_text.get(False)
    if code and not (code in _INTERNAL and explained):
        explained = CODES.get(code, UNKNOWN), code_line
    explained = explained or first_text.get(True)
    if explained is None:
        return LogReport(succeeded, failed, None, False)
    advice, line = explained
    return LogReport(
        succeeded, failed, f"{_shortened(line)}: {advice.meaning}; {advice.remedy}", advice.broken_toolchain
    )


def _shortened(line: str, limit: int = 300) -> str:
    line = " ".join(line.split()).rstrip(".:")
    return line if len(line) <= limit else line[: limit - 3] + "..."


def table() -> str:
    """Return the table of codes in Markdown."""
    rows = [f"| {codes.replace(' ', ', ')} | {meaning} | {remedy} |" for codes, meaning, remedy in _ROWS]
    return "\n".join(["| code | what happened | what to do |", "|---|---|---|", *rows])


if __name__ == "__main__":
    from neonext_ms.common.cli import Parser

    Parser(
        prog="python -m neonext_ms.export.om.cann_log", description="Print the error codes of CANN's tools as a table."
    ).parse_args()
    print(table())
