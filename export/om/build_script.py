"""Scripts that compile on another machine what `target.compile_job` compiles on this one."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from neonext_ms.common.external_tools import quoted
from neonext_ms.common.files import explained
from neonext_ms.runtime.om_file import SUFFIX

from . import contents
from .cann_log import CODES, GELUS, INTERNAL, PLUGIN_ADVICE, PLUGIN_CODES, TEXTS, UNKNOWN, Advice
from .job import Job
from .onnx_plugins import OWN, parsers


def write_script(path: Path, jobs: Sequence[Job]) -> None:
    """Write a POSIX shell script that compiles jobs of one compiler as strictly as `target.compile_job`.

    It needs the files of the jobs beside it, and nothing of this package.

    Raises:
        UsageError: options that the compiler rejects or ignores.
        InputError: the script cannot be written.
    """
    compiler = jobs[0].compiler
    # In the order of their weight, as `read_log` has it.
    texts = (*TEXTS, *compiler.texts)
    values = {
        "TOOL": compiler.tool.name,
        "NAME": compiler.script,
        "SUFFIX": Path(jobs[0].output).suffix,
        "SUCCESS": shlex.quote(f"^[[:space:]]*{compiler.success}"),
        "FAILURE": shlex.quote(f"^[[:space:]]*{compiler.failure}"),
        "NEEDS_SET_ENV": compiler.needs_set_env,
        "MISSING": shlex.quote(compiler.missing),
        "SETUP": compiler.setup,
        "ADVICE": _cases({**CODES, "*": UNKNOWN}),
        "INTERNAL": "|".join(INTERNAL),
        "PLUGIN_CODES": "|".join(PLUGIN_CODES),
        "OPSETS": _opset_cases(),
        "OWN": "|".join(OWN.operators),
        "GELUS": "|".join(GELUS),
        "PLUGIN_ADVICE": _cases(PLUGIN_ADVICE),
        "TEXTS": " ".join(f"-e {shlex.quote(pattern)}" for pattern, _ in texts),
        "TEXT_ADVICE": "\n".join(
            f"    if matches {shlex.quote(pattern)}; then\n        {_say(advice)}\n        return\n    fi"
            for pattern, advice in texts
        ),
    }
    text = re.sub(r"@([A-Z_]+)@", lambda match: values[match[1]], _SCRIPT)
    with explained(path):
        path.write_text(text + "".join(map(_calls, jobs)), encoding="utf-8")
        path.chmod(0o755)


def compiled(path: Path) -> list[str]:
    """Return the names, without suffix, of the files that a script compiles; none if there is no script."""
    if not path.exists():
        return []
    with explained(path):
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
    return [shlex.split(line)[1] for line in text.splitlines() if line.startswith("begin ")]


def _say(advice: Advice) -> str:
    """Return the shell commands that print advice, and set the exit code to 3 if the installation is at fault."""
    text = f"echo {shlex.quote(f'{advice.meaning}; {advice.remedy}')}"
    return f"{text}; status=3" if advice.broken_toolchain else text


def _cases(advice: Mapping[str, Advice]) -> str:
    return "\n".join(f"    {key}) {_say(value)} ;;" for key, value in advice.items())


def _opset_cases() -> str:
    """Return the shell cases that set `opsets` to those at which an operator of any domain is known."""
    operators: dict[tuple[int, ...], list[str]] = {}
    for (domain, operator), opsets in parsers().items():
        operators.setdefault(opsets, []).append(f"{domain}::{operator}")
    return "\n".join(
        f"    {' | '.join(names)}) opsets=' {' '.join(map(str, opsets))} ' ;;" for opsets, names in operators.items()
    )


def _calls(job: Job) -> str:
    """Return the lines that compile one job."""
    invocation = job.invocation()
    lines = ["", quoted(["begin", Path(job.output).stem, job.plain])]
    lines += [quoted(["take", source, name]) for name, source in invocation.inputs.items()]
    lines += [
        f'printf %s {shlex.quote(text)} > "$work"/{shlex.quote(name)}' for name, text in invocation.configs.items()
    ]
    if job.output.endswith(SUFFIX):
        lines += ["expected() {"]
        for partition, key, alternatives, problem in contents.traces(job):
            lines.append("    " + quoted(["holds", partition, key, " ".join(alternatives), problem]))
        lines += ["}"]
    return "\n".join([*lines, quoted(["build", *invocation.command[1:]])]) + "\n"


_SCRIPT = r"""#!/bin/sh
# Compiles *@SUFFIX@ files with @TOOL@ on a machine that has CANN: sh @NAME@
# A file gets its name only after exit code, success line and the file itself have been checked.
set -eu

script=$(basename -- "$0")
CDPATH= cd -- "$(dirname -- "$0")"
here=$(pwd)
work=

fail() {
    echo "error: $*" >&2
    exit 1
}

clean() {
    if [ -n "$work" ]; then rm -rf -- "$work"; fi
}
trap clean EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# set_env.sh is written for bash, so bash sources it and starts this script again with what it sets.
if @NEEDS_SET_ENV@; then
    if [ -z "${NEONEXT_SET_ENV:-}" ]; then
        for file in "${ASCEND_TOOLKIT_HOME:-/nowhere}/set_env.sh" "${ASCEND_TOOLKIT_HOME:-/nowhere}/../set_env.sh" \
            "${ASCEND_HOME_PATH:-/nowhere}/set_env.sh" "${ASCEND_HOME_PATH:-/nowhere}/../set_env.sh" \
            /usr/local/Ascend/ascend-toolkit/set_env.sh /usr/local/Ascend/cann/set_env.sh \
            "${HOME:-/nowhere}/Ascend/ascend-toolkit/set_env.sh" "${HOME:-/nowhere}/Ascend/cann/set_env.sh"; do
            [ -f "$file" ] || continue
            NEONEXT_SET_ENV=$file
            export NEONEXT_SET_ENV
            shell=sh
            if command -v bash >/dev/null 2>&1; then shell=bash; fi
            exec "$shell" -c '. "$1"; exec sh "$2"' "$shell" "$file" "./$script"
        done
    fi
fi
@SETUP@
if ! command -v @TOOL@ >/dev/null 2>&1; then
    echo 'error: @TOOL@ was not found.' @MISSING@ >&2
    exit 3
fi

advice() {
    case $1 in
@ADVICE@
    esac
}

# What the table of operators says of DOMAIN OPSET OPERATOR.
plugin_advice() {
    opsets=
    case $1::$3 in
@OPSETS@
    esac
    case $3 in
    @GELUS@) opsets=gelu ;;
    esac
    case $opsets in
    '') set -- unknown ;;
    gelu) set -- gelu ;;
    *" $2 "*)
        case $3 in
        @OWN@) set -- own ;;
        *) set -- known ;;
        esac
        ;;
    *)
        last=${opsets% }
        if [ "$2" -gt "${last##* }" ]; then set -- later; else set -- earlier; fi
        ;;
    esac
    case $1 in
@PLUGIN_ADVICE@
    esac
}

matches() { printf '%s\n' "$line" | grep -qE -e "$1"; }

# What the texts say that carry no code.
text_advice() {
@TEXT_ADVICE@
}

begin() {
    stem=$1
    name=$2
    log=$here/$stem.@TOOL@.log
    echo "building $stem@SUFFIX@"
    # CANN rejects paths with other characters.
    case $here in
    *[!A-Za-z0-9._/-]*) work=${TMPDIR:-/tmp}/neonext_build.$$ ;;
    *) work=$here/.neonext_build.$$ ;;
    esac
    rm -rf -- "$work"
    mkdir -- "$work"
}

take() {
    [ -f "$here/$1" ] || fail "$1 is missing; copy it into $here"
    case $2 in
    */*) mkdir -p -- "$work/${2%/*}" ;;
    esac
    ln -- "$here/$1" "$work/$2" 2>/dev/null || cp -- "$here/$1" "$work/$2"
}

# Prints the line that decides, and what to do: the first code that is not internal, a known text, an internal code.
explain() {
    # A log in another encoding is text, too.
    LC_ALL=C
    export LC_ALL
    codes='(^|[^A-Za-z0-9_./=-])E[0-9A-Z][0-9]{4}([]:) ]|$)'
    line=$(grep -E "$codes" "$log" | grep -vE '(^|[^A-Za-z0-9_./=-])(@INTERNAL@)([]:) ]|$)' | head -n 1) || true
    texts=$(grep -E @TEXTS@ "$log" | head -n 1) || true
    if [ -z "$line" ] && [ -n "$texts" ]; then
        line=$texts
        printf '  %s\n  ' "$line" >&2
        text_advice >&2
        return
    fi
    if [ -z "$line" ]; then line=$(grep -E "$codes" "$log" | head -n 1) || true; fi
    if [ -z "$line" ]; then
        tail -n 5 -- "$log" | sed 's/^/  /' >&2
        return
    fi
    code=$(printf '%s\n' "$line" | awk 'match($0, /E[0-9A-Z][0-9][0-9][0-9][0-9]/) { print substr($0, RSTART, 6) }')
    operator=
    case $code in
    @PLUGIN_CODES@)
        operator=$(printf ' %s\n' "$line" |
            sed -n 's/.*[^A-Za-z0-9_.]\([A-Za-z0-9_.]*\)::\([0-9]\{1,9\}\)::\([A-Za-z0-9_]*\).*/\1 \2 \3/p')
        ;;
    esac
    printf '  %s\n  %s: ' "$line" "$code" >&2
    # The operator's domain, opset and name are three words.
    # shellcheck disable=SC2086
    if [ -n "$operator" ]; then plugin_advice $operator >&2; else advice "$code" >&2; fi
}

failed() {
    echo "error: $*" >&2
    status=1
    explain
    echo "  everything that @TOOL@ printed is in $log" >&2
    exit "$status"
}

# Prints a number of the file that was made: its offset and bytes.
number() { od -A n -t "u$2" -j "$1" -N "$2" -- "$made" | tr -d ' '; }

# Sets offset and size to those of a partition of the first model, by its number; fails if the file has none.
partition() {
    i=0
    while [ "$i" -lt "$count" ]; do
        entry=$((table + i * 3 * wide))
        if [ "$(number "$entry" 4)" = "$1" ]; then
            offset=$((table + count * 3 * wide + $(number $((entry + wide)) "$wide")))
            size=$(number $((entry + 2 * wide)) "$wide")
            return 0
        fi
        i=$((i + 1))
    done
    return 1
}

# Checks that a partition with the bytes $2 has one of the bytes $3, too, or else says $4.
holds() {
    partition "$1" || return 0
    od -A n -v -t x1 -j "$offset" -N "$size" -- "$made" | tr -d ' \n' >"$work/bytes"
    [ -z "$2" ] || grep -qF -e "$2" "$work/bytes" || return 0
    for bytes in $3; do
        if grep -qF -e "$bytes" "$work/bytes"; then return 0; fi
    done
    failed "$wrong $4"
}

# An OM file starts with IMOD, and has its length without the header at byte 184; in old files, whose tables are
# narrower, at byte 76. Byte 80 says whether it is encrypted, and partition 0 describes the model.
check() {
    [ "@SUFFIX@" = .om ] || return 0
    wrong="@TOOL@ reported success, but the $stem@SUFFIX@ that it wrote is not what was asked for:"
    [ "$(head -c 4 -- "$made")" = IMOD ] || failed "$wrong it is not an OM file"
    length=$(number 184 8)
    wide=8
    if [ "${length:-0}" = 0 ]; then
        length=$(number 76 4)
        wide=4
    fi
    bytes=$(($(wc -c <"$made")))
    length=${length:-0}
    [ "$((bytes - 256))" = "$length" ] || failed "$wrong it has $bytes bytes, $((length + 256)) by its header"
    [ "$(number 80 1)" = 0 ] || failed "$wrong it is encrypted"
    count=$(number 256 4)
    count=${count:-0}
    table=$((256 + wide))
    [ "$count" -le 4096 ] || failed "$wrong it has $count partitions"
    partition 0 && [ "$size" != 0 ] || failed "$wrong it has no MODEL_DEF"
    expected
}

build() {
    code=0
    (cd -- "$work" && exec @TOOL@ "$@") </dev/null >"$log" 2>&1 || code=$?
    [ "$code" -eq 0 ] || failed "@TOOL@ failed (exit code $code); $stem@SUFFIX@ was not built"
    if grep -qE @FAILURE@ "$log"; then failed "@TOOL@ reported a failure with exit code 0"; fi
    grep -qE @SUCCESS@ "$log" || failed "@TOOL@ ended with exit code 0, but without its success line"
    made=
    for file in "$work/$name@SUFFIX@" "$work/$name"_*_*@SUFFIX@; do
        [ -f "$file" ] || continue
        [ -z "$made" ] || failed "@TOOL@ wrote several files: $made, $file"
        made=$file
    done
    [ -n "$made" ] || failed "@TOOL@ reported success, but wrote no $stem@SUFFIX@"
    [ -s "$made" ] || failed "@TOOL@ reported success, but the $stem@SUFFIX@ that it wrote is empty"
    check
    suffix=${made#"$work/$name"}
    mv -f -- "$made" "$here/.$stem$suffix.part"
    mv -f -- "$here/.$stem$suffix.part" "$here/$stem$suffix"
    rm -rf -- "$work"
    work=
    echo "built    $stem$suffix"
}
"""
