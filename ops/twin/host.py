"""Removal of host code from a source that has kernel and host in one file, as the public samples do."""

from __future__ import annotations

import bisect
import re

_QUIET = r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|(?<![0-9a-zA-Z])\'(?:\\.|[^\'\\\n])*\''
_DIRECTIVE = r"^[ \t]*#(?:[^\n\\]|\\.)*"
_SILENT = re.compile(rf"{_QUIET}|{_DIRECTIVE}", re.DOTALL | re.MULTILINE)

# Only host code has these: a launch, functions of the runtime, the tiling library.
_HOST = re.compile(
    r"<<<|\bacl[a-z]*[A-Z]\w*|\bplatform_ascendc\b|\bmatmul_tiling\b|\boptiling\b|\bstd::c(?:out|err)\b|\bTensorShape\b"
    r"|\bGet\w+TmpSize\b|\bGet\w+TilingInfo\b|\b\w+TilingFunc\b|\bSaveToBuffer\b|\bmemcpy_s\b"
)
_DEVICE = re.compile(r"\b__(?:aicore|global|vector|cube|simd_vf|simd_callee)__\b")
_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*[<"]acl/', re.MULTILINE)
_OPENS_SCOPE = re.compile(r"\bnamespace\b[^;()]*$|\bextern\s*$")


def has_host(text: str) -> bool:
    """Return True if a source includes headers of the runtime or launches a kernel."""
    return bool(_INCLUDE.search(text)) or "<<<" in _silenced(text)


def without_host(text: str) -> str:
    """Return the source with empty bodies of the host functions; every line keeps its number.

    A host function is `main`, or a function without a device qualifier that launches a kernel or uses the runtime or
    the tiling library.
    """
    code = _silenced(text)
    kept, done = [], 0
    for start, body, end in _functions(code):
        header = code[start:body]
        host = re.search(r"\bmain\s*\(", header) or _HOST.search(code, start, end)
        if host and not _DEVICE.search(header):
            kept += [text[done : body + 1], "\n" * text.count("\n", body + 1, end - 1)]
            done = end - 1
    return "".join([*kept, text[done:]])


def _silenced(text: str) -> str:
    """Return the text with comments, strings and directives replaced by blanks, so that offsets stay valid."""
    return _SILENT.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)


def _functions(code: str):
    """Yield (start of the header, offset of `{`, offset after `}`) of every function outside a class."""
    braces = [match.start() for match in re.finditer(r"[{}]", code)]
    partner: dict[int, int] = {}
    opened: list[int] = []
    for place in braces:
        if code[place] == "{":
            opened.append(place)
        elif opened:
            partner[opened.pop()] = place
    place = start = 0
    while (index := bisect.bisect_left(braces, place)) < len(braces):
        brace = braces[index]
        start = max(start, code.rfind(";", start, brace) + 1)
        header = code[start:brace]
        if code[brace] == "}" or _OPENS_SCOPE.search(header):
            place = start = brace + 1
            continue
        end = partner.get(brace, len(code) - 1) + 1
        if ")" in header:
            yield start, brace, end
        place = start = end
