"""Errors of CANN's tools in plain words: tables of codes, of operators without a plugin and of texts, and their reader.

`python -m neonext_ms.export.om.cann_log` prints the tables as docs/deploy.md shows them.

Sources of codes, messages and remedies: docs/en/user_guides/error_codes and base/common/error_registry in hicann/ge,
src/dfx/error_manager/error_code.json in hicann/runtime. E19010 is E16002 of older releases; EZ9010 and EZ0501 are other
spellings of E19010 and E10501. No source explains E10502, so it is not in the table. Today's parser checks every node
before it reads one (hicann/ge, parser/parser/common/pre_checker.cc), so E13010 is what comes for every operator
without a plugin, whatever the cause; E16002 would be raised later, and E16005 is raised nowhere any more.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from .onnx_plugins import OWN, parsers


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
_KERNELS = (
    "install the package Ascend-cann-kernels-<soc> of the device that --soc names; if it is installed, the device "
    "cannot run the operator as the graph uses it"
)
_PACKAGE = (
    "install the operator package (`neonext-ops install`, then `neonext-ops check`); load_priority in "
    "vendors/config.ini has to name it, or ASCEND_CUSTOM_OPP_PATH its own folder .../vendors/neonext, not one above it"
)
_OWN_PACKAGE = (
    "build and install the operator package again (`neonext-ops build`), and export the model again, with one version "
    "of neonext_ms"
)
# They say nothing by themselves. E11010 follows when a plugin refuses a node.
INTERNAL = ("E19999", "EZ9999", "E11010")

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
    ("E11010", "a plugin of CANN refuses a node", "check the model with `neonext-export --check FILE.onnx`"),
    ("E13003", "a file cannot be read", "check that it is there, whole and readable"),
    ("E13004", "a file cannot be written", "check permissions and free space of the output folder"),
    ("E13005", "a file is not what its option says", "check that the ONNX file is whole, with neonext-info"),
    (
        "E13009",
        "two operators of the graph have one name, or one has the name of an input",
        "give every node a name of its own; `neonext-export --check FILE.onnx` lists them",
    ),
    ("E13010", "CANN has no plugin for an operator in the graph", _PLUGIN),
    ("E13015", "a file is empty, or larger than CANN reads", "check its size; keep weights over 2 GB in a second file"),
    ("E13023", "the OM would be larger than ATC can write", "use a smaller model or batch"),
    ("E13024 E40001", "an environment variable has a value that CANN rejects", "unset it, or source set_env.sh again"),
    ("E14001", "an operator's inputs or attributes do not fit this device", _OPERATOR),
    ("E16001", "the ONNX model lacks a node", "export it again"),
    (
        "E16002 E19010 EZ9010",
        "CANN's ONNX parser does not know an operator at this opset",
        f"{_OPERATOR}; {_PLUGIN}",
    ),
    ("E16004", "the ONNX file has no graph, so it is not a whole model", "check it with neonext-info; export it again"),
    (
        "E16005",
        "this release takes models with one opset only",
        "export with the default domain alone, without `--gelu npu`",
    ),
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
    ("EZ3003", "no kernel of this device can run an operator", _KERNELS),
)
# Codes that mean that the installation is at fault.
_BROKEN = ("E40002", "E40020", "EZ3003")
CODES = {code: Advice(meaning, remedy, code in _BROKEN) for codes, meaning, remedy in _ROWS for code in codes.split()}
UNKNOWN = Advice("an error that this package does not know", "look the code up in CANN's error code reference")

# Codes of an operator that has no plugin, whose line names it as `<domain>::<opset>::<operator>`.
PLUGIN_CODES = ("E13010", "E16002", "E19010", "EZ9010")
OPERATOR_PATTERN = r"([A-Za-z0-9_.]+)::([0-9]{1,9})::([A-Za-z0-9_]+)"
# Operators that are GELU. The parser asks for plugins node by node, so it has found those of the nodes before.
GELUS = ("Gelu", "NPUGeluV2")
# What such a line means, by what `onnx_plugins` says of the operator.
PLUGIN_ADVICE = {
    "own": Advice("CANN did not load the plugin of NeoCell", _PACKAGE, broken_toolchain=True),
    "known": Advice(
        "CANN has a plugin for this operator, but did not load it",
        "source set_env.sh in this shell, or install the CANN toolkit again; older releases end at opset 13 or 15, so "
        "export with `--opset 13`",
        broken_toolchain=True,
    ),
    "later": Advice("CANN's plugins end before this opset", "export with a lower one: `--opset 13`"),
    "earlier": Advice("CANN's plugin for this operator starts at a later opset", "export with `--opset 17`"),
    "gelu": Advice(
        "this release of CANN has no plugin for GELU as one node",
        "export for --target om without `--gelu`, or with `--gelu erf` or `--gelu tanh`: chains of ordinary operators",
    ),
    "unknown": Advice(
        "CANN has no plugin for this operator at any opset",
        "write it with other operators; `neonext-export --check FILE.onnx` lists all such nodes",
    ),
}

# Texts of the operator package, of a shell, the loader or Python where CANN's environment is incomplete, and of a full
# disk. The script that compiles elsewhere searches for them with `grep -E`, so they are written for grep as well.
TEXTS = (
    (
        r"Failed to load .* library .* via dlopen",
        Advice(
            "CANN could not load the library of an operator package",
            "read the line `Error detail` in the log; build the package again for this machine and CANN",
            broken_toolchain=True,
        ),
    ),
    (r"^\[ERROR\] ONNX node NeoCell: ", Advice("the plugin of NeoCell refuses a node", _OWN_PACKAGE)),
    # CANN's own log lines have brackets or a date before the first colon.
    (r"^\[ERROR\] [^][(): ]+: ", Advice("the operator package refuses a node", _OWN_PACKAGE)),
    (
        r"No supported Ops kernel and engine are found.*optype \[NeoCell",
        Advice(
            "no kernel of NeoCell is installed for this device",
            "build the operator package with this --soc (`neonext-ops build`), and install it",
            broken_toolchain=True,
        ),
    ),
    (
        r"No supported Ops kernel and engine are found",
        Advice("no kernel of this device can run an operator", _KERNELS, broken_toolchain=True),
    ),
    (
        r"error while loading shared libraries",
        Advice("a library of CANN was not found", "source set_env.sh in this shell", broken_toolchain=True),
    ),
    (
        r"(atc|set_env\.sh)[^ ]*: .*(not found|No such file)",
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


def plugin_case(domain: str, opset: int, operator: str) -> str:
    """Return the key of PLUGIN_ADVICE for an operator that the parser found no plugin for."""
    opsets = parsers().get((domain, operator), ())
    if operator in GELUS:
        return "gelu"
    if not opsets:
        return "unknown"
    if opset not in opsets:
        return "later" if opset > opsets[-1] else "earlier"
    return "own" if operator in OWN.operators else "known"


def _advice(code: str, line: str) -> Advice:
    """Return the advice for a code and the line that it stands in."""
    named = re.findall(OPERATOR_PATTERN, line) if code in PLUGIN_CODES else []
    if named:
        domain, opset, operator = named[-1]
        return PLUGIN_ADVICE[plugin_case(domain, int(opset), operator)]
    if code == "EZ3003":
        return next((advice for pattern, advice in TEXTS if re.search(pattern, line)), CODES[code])
    return CODES.get(code, UNKNOWN)


def read_log(lines: Iterable[str], success: str, failure: str, texts: Sequence[tuple[str, Advice]] = ()) -> LogReport:
    """Summarize a log.

    The first code decides that is not in INTERNAL, then the first recognized text, then an internal error.

    Args:
        lines: lines of the log. Those that start with `$ ` are commands and are ignored.
        success: start of the line that reports success, as a regular expression.
        failure: start of the line that reports a failure.
        texts: more patterns to recognize, for a tool around CANN. They count where neither a code nor a text of CANN
            explains the log.
    """
    succeeded = failed = False
    codes: dict[bool, tuple[str, str]] = {}
    incomplete: bool | None = None
    first_text: dict[bool, tuple[Advice, str]] = {}
    for raw in lines:
        # The time of a search grows faster than the line.
        line = raw.strip()[:_LONGEST]
        if line.startswith("$ "):
            continue
        succeeded = succeeded or bool(re.match(success, line))
        failed = failed or line.startswith(failure)
        if incomplete is not None and line:
            code, text = codes[incomplete]
            codes[incomplete], incomplete = (code, f"{text} {line}"), None
        for match in _CODE.finditer(line):
            internal = match[1] in INTERNAL
            if internal not in codes:
                text = f"{match[1]}: {line[match.end() :].lstrip(')]: ')}"
                codes[internal] = match[1], text
                # Some releases print the message on the next line.
                incomplete = internal if len(text) < 30 else incomplete
        for is_own, patterns in ((False, TEXTS), (True, texts)):
            advice = next((advice for pattern, advice in patterns if re.search(pattern, line)), None)
            if advice:
                first_text.setdefault(is_own, (advice, line))
    code_lines = {internal: (_advice(code, line), line) for internal, (code, line) in codes.items()}
    explained = code_lines.get(False) or first_text.get(False) or code_lines.get(True) or first_text.get(True)
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
    """Return the table of codes, and that of operators without a plugin, in Markdown."""
    codes = [f"| {codes.replace(' ', ', ')} | {meaning} | {remedy} |" for codes, meaning, remedy in _ROWS]
    operators = {
        "NeoCell at opset 11 to 18": "own",
        "in `export/om/onnx_plugins.csv` at this opset": "known",
        "there at lower opsets only": "later",
        "there at higher opsets only": "earlier",
        f"{' or '.join(GELUS)} of any domain and opset": "gelu",
        "not there": "unknown",
    }
    cases = [
        f"| {which} | {PLUGIN_ADVICE[key].meaning} | {PLUGIN_ADVICE[key].remedy} |" for which, key in operators.items()
    ]
    return "\n".join(
        [
            *("| code | what happened | what to do |", "|---|---|---|", *codes, ""),
            *(f"| operator named by {', '.join(PLUGIN_CODES)} | what happened | what to do |", "|---|---|---|", *cases),
        ]
    )


if __name__ == "__main__":
    from neonext_ms.common.cli import Parser

    Parser(
        prog="python -m neonext_ms.export.om.cann_log", description="Print the error codes of CANN's tools as tables."
    ).parse_args()
    print(table())
