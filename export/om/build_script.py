"""Scripts that compile on another machine what `target.compile_job` compiles on this one."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from neonext_ms.common.external_tools import quoted
from neonext_ms.common.files import explained

from .cann_log import CODES, UNKNOWN
from .job import Job


def write_script(path: Path, jobs: Sequence[Job]) -> None:
    """Write a POSIX shell script that compiles jobs of one compiler as strictly as `target.compile_job`.

    It needs the files of the jobs beside it, and nothing of this package.

    Raises:
        UsageError: options that the compiler rejects or ignores.
        InputError: the script cannot be written.
    """
    compiler = jobs[0].compiler
    values = {
        "TOOL": compiler.tool.name,
        "NAME": compiler.script,
        "SUFFIX": Path(jobs[0].output).suffix,
        "SUCCESS": shlex.quote(f"^[[:space:]]*{compiler.success}"),
        "FAILURE": shlex.quote(f"^[[:space:]]*{compiler.failure}"),
        "NEEDS_SET_ENV": compiler.needs_set_env,
        "MISSING": shlex.quote(compiler.missing),
        "SETUP": compiler.setup,
        "ADVICE": "\n".join(
            f"        {code}) echo {shlex.quote(f'{advice.meaning}; {advice.remedy}')} ;;"
            for code, advice in (*CODES.items(), ("*", UNKNOWN))
        ),
    }
    text = re.sub(r"@([A-Z_]+)@", lambda match: values[match[1]], _SCRIPT)
    with explained(path):
        path.write_text(text + "".join(map(_calls, jobs)), encoding="utf-8")
        path.chmod(0o755)


def _calls(job: Job) -> str:
    """Return the lines that compile one job."""
    invocation = job.invocation()
    lines = ["", quoted(["begin", Path(job.output).stem, job.plain])]
    lines += [quoted(["take", source, name]) for name, source in invocation.inputs.items()]
    lines += [
        f'printf %s {shlex.quote(text)} > "$work"/{shlex.quote(name)}' for name, text in invocation.configs.items()
    ]
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

failed() {
    echo "error: $*" >&2
    line=$(grep -E '(^|[^A-Za-z0-9_./=-])E[0-9A-Z][0-9]{4}([]:) ]|$)' "$log" | head -n 1) || true
    if [ -n "$line" ]; then
        printf '  %s\n' "$line" >&2
        code=$(printf '%s\n' "$line" | awk 'match($0, /E[0-9A-Z][0-9][0-9][0-9][0-9]/) { print substr($0, RSTART, 6) }')
        printf '  %s: %s\n' "$code" "$(advice "$code")" >&2
    else
        tail -n 5 -- "$log" | sed 's/^/  /' >&2
    fi
    echo "  everything that @TOOL@ printed is in $log" >&2
    exit 1
}

# An OM file starts with IMOD, and has its length without the header at byte 184, in old files at byte 76.
check() {
    [ "@SUFFIX@" = .om ] || return 0
    broken="@TOOL@ reported success, but the $stem@SUFFIX@ that it wrote is broken:"
    [ "$(head -c 4 -- "$1")" = IMOD ] || failed "$broken it is not an OM file"
    length=$(od -A n -t u8 -j 184 -N 8 -- "$1" | tr -d ' ')
    [ "${length:-0}" != 0 ] || length=$(od -A n -t u4 -j 76 -N 4 -- "$1" | tr -d ' ')
    size=$(wc -c <"$1")
    [ "$((size - 256))" = "$length" ] || failed "$broken it has $size bytes, $((length + 256)) by its header"
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
    check "$made"
    suffix=${made#"$work/$name"}
    mv -f -- "$made" "$here/.$stem$suffix.part"
    mv -f -- "$here/.$stem$suffix.part" "$here/$stem$suffix"
    rm -rf -- "$work"
    work=
    echo "built    $stem$suffix"
}
"""
