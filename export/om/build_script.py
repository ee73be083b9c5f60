"""Scripts that build on another machine what `atc` and `lite` build on this one."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from neonext_ms.common.external_tools import quoted
from neonext_ms.common.files import explained


@dataclass(frozen=True)
class Task:
    """One file for a script to build.

    Attributes:
        stem: of the file.
        name: the same as a plain name.
        takes: names of files beside the script, and their plain names in the working folder.
        texts: plain names of files that the script writes there, and their contents.
        arguments: of the tool, which runs there.
    """

    stem: str
    name: str
    takes: Sequence[tuple[str, str]]
    texts: Mapping[str, str]
    arguments: Sequence[str]


@dataclass(frozen=True)
class Script:
    """A kind of script that runs a tool on another machine.

    Attributes:
        tool: name of the executable.
        name: of the script.
        suffix: of what the tool makes.
        makes: what that is, in words.
        success, failure: extended regular expressions of how the lines begin by which the tool says how it ended.
        set_env: where CANN's environment may be.
        needs_set_env: shell condition under which it is looked for.
        missing: what to do where the tool is missing.
        find: shell lines that look for the tool.
    """

    tool: str
    name: str
    suffix: str
    makes: str
    success: str
    failure: str
    set_env: Sequence[str]
    needs_set_env: str
    missing: str
    find: str = ""


def write_script(path: str | os.PathLike, kind: Script, advice: Mapping[str, str], tasks: Iterable[Task]) -> None:
    """Write a POSIX shell script that does what `run` and the checks of a tool's module do.

    Args:
        path: of the script.
        kind: the tool and how it behaves.
        advice: error code -> what it means and what to do.
        tasks: what to build, in order.

    Raises:
        InputError: it cannot be written.
    """
    cases = [f"        {code}) echo {shlex.quote(text)} ;;" for code, text in advice.items()]
    values = {
        "TOOL": kind.tool,
        "NAME": kind.name,
        "SUFFIX": kind.suffix,
        "MAKES": kind.makes,
        "SUCCESS": shlex.quote(f"^[[:space:]]*{kind.success}"),
        "FAILURE": shlex.quote(f"^[[:space:]]*{kind.failure}"),
        "PLACES": " ".join(map(shlex.quote, kind.set_env)),
        "NEEDS_SET_ENV": kind.needs_set_env,
        "MISSING": shlex.quote(kind.missing),
        "FIND": kind.find,
        "ADVICE": "\n".join([*cases, "        *) echo 'look the code up in the error code reference of CANN' ;;"]),
    }
    text = re.sub(r"@([A-Z_]+)@", lambda match: values[match[1]], _SCRIPT)
    path = Path(path)
    with explained(path):
        path.write_text(text + "".join(map(_task_text, tasks)), encoding="utf-8")
        path.chmod(0o755)


def _task_text(task: Task) -> str:
    rows = ["", quoted(["begin", task.stem, task.name])]
    rows += [quoted(["take", source, inside]) for source, inside in task.takes]
    rows += [f'printf %s {shlex.quote(text)} > "$work"/{shlex.quote(name)}' for name, text in task.texts.items()]
    rows.append(quoted(["build", *task.arguments]))
    return "\n".join(rows) + "\n"


_SCRIPT = r"""#!/bin/sh
# Builds @MAKES@, on a machine that has CANN: sh @NAME@
# A file gets its name only after the exit code, the success line and the file itself were checked.
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

# set_env.sh is written for bash, so it is sourced there, and this script starts once more with what it set.
if @NEEDS_SET_ENV@; then
    if [ -z "${NEONEXT_SET_ENV:-}" ]; then
        for file in "${ASCEND_TOOLKIT_HOME:-/nowhere}/set_env.sh" "${ASCEND_TOOLKIT_HOME:-/nowhere}/../set_env.sh" \
            "${ASCEND_HOME_PATH:-/nowhere}/set_env.sh" "${ASCEND_HOME_PATH:-/nowhere}/../set_env.sh" \
            @PLACES@ \
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
@FIND@
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
    # CANN refuses paths with other characters than these.
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
    suffix=${made#"$work/$name"}
    mv -f -- "$made" "$here/.$stem$suffix.part"
    mv -f -- "$here/.$stem$suffix.part" "$here/$stem$suffix"
    rm -rf -- "$work"
    work=
    echo "built    $stem$suffix"
}
"""
