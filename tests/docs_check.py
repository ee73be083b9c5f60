"""Commands of README.md, CONTRIBUTING.md and docs/: extracted, parsed, and run.

    python tests/docs_check.py [PAGE.md ...]     # `make docs-check`: run what the pages show being run

In a fenced block, a line that starts with `$ ` is a command whose output follows. It is run, page by page, in a copy of
the repository. An HTML comment `<!-- not run: REASON -->` before the block exempts it. Every other command line, in a
block or in inline code, is only parsed (`tests/test_docs.py`), since it has placeholders or takes too long.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
_START = re.compile(r"(?:neonext-[a-z]+|python -m neonext_ms[\w.]*|make [a-z][a-z-]*)(?= |$)")
_EXEMPT = re.compile(r"<!-- not run: .+ -->")


@dataclass(frozen=True)
class Line:
    """A command line of a page.

    Attributes:
        page: file name of the page.
        number: line number, from 1.
        text: the command, without prompt, comment and environment variables.
        shown: whether the page shows it being run.
        fails: whether the page shows an error as its output.
    """

    page: str
    number: int
    text: str
    shown: bool = False
    fails: bool = False


def command_lines(page: Path) -> Iterator[Line]:
    """Yield the command lines of a page: those of fenced and indented blocks, and those of inline code."""
    lines = page.read_text(encoding="utf-8").split("\n")
    fenced = exempt = False
    for index, line in enumerate(lines):
        if line.startswith("```"):
            fenced = not fenced
            exempt = fenced and bool(_EXEMPT.fullmatch(lines[index - 1].strip() or lines[index - 2].strip()))
            continue
        if not fenced and not line.startswith("    "):
            for code in re.findall(r"`([^`]+)`", line):
                if found := _command(code):
                    yield Line(page.name, index + 1, found)
            continue
        if index and lines[index - 1].endswith("\\"):
            continue
        text, following = line.strip(), index + 1
        while text.endswith("\\"):
            text, following = text[:-1].rstrip() + " " + lines[following].strip(), following + 1
        shown = fenced and text.startswith("$ ")
        if found := _command(text.removeprefix("$ ")):
            output = lines[following:]
            end = next((i for i, other in enumerate(output) if other.startswith(("$ ", "```"))), 0)
            fails = any(other.startswith("error:") for other in output[:end])
            yield Line(page.name, index + 1, found, shown and not exempt, fails)


def _command(text: str) -> str | None:
    """Return a text without comment and leading environment variables if it is one of this project's commands."""
    text = re.sub(r"^(?:[A-Z_]+=\S+ )+", "", re.sub(r"\s+#\s.*$", "", text)).removeprefix(".venv/bin/")
    return text if _START.match(text) else None


class _Parsed(BaseException):
    """Raised in place of running a command whose arguments were accepted."""


def parse(line: Line) -> str | None:
    """Check the arguments of a command line with the command's own parser; return the problem or None."""
    words = shlex.split(line.text)
    if words[0] == "make":
        targets = re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        unknown = [word for word in words[1:] if "=" not in word and word not in targets]
        return f"no make target {', '.join(unknown)}" if unknown else None
    if words[0] == "python" and len(words) == 3:
        # Without arguments, there is nothing to parse.
        return None if find_spec(words[2]) else f"no module {words[2]}"
    if len(words) == 1 or "..." in words or re.search(r"[\[|…]", line.text):
        # A name in running text, or a synopsis such as `[--top 5]`.
        return None
    if all(word.isalpha() for word in words[1:]):
        # The name of a subcommand in running text.
        words.append("--help")

    def accepting(method):
        def parse_args(self, *args, **kwargs):
            method(self, *args, **kwargs)
            raise _Parsed

        return parse_args

    parsers = {
        name: accepting(getattr(argparse.ArgumentParser, name)) for name in ("parse_args", "parse_intermixed_args")
    }
    errors = io.StringIO()
    # This option writes its folder while it is parsed.
    writing = "neonext_ms.training.data.datasets.write_digits"
    with (
        mock.patch(writing) if "--write-digits" in words else contextlib.nullcontext(),
        mock.patch.multiple(argparse.ArgumentParser, **parsers),
        mock.patch.object(sys, "argv", words[2:]),
        contextlib.redirect_stderr(errors),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        try:
            if words[0] == "python":
                runpy.run_module(words[2], run_name="__main__")
            else:
                module, _, function = scripts()[words[0]].partition(":")
                getattr(import_module(module), function)(words[1:])
        except _Parsed:
            return None
        except SystemExit as end:
            return errors.getvalue().strip().split("\n")[-1] if end.code else None
        except (ImportError, KeyError) as error:
            return f"no such command: {error}"
    return errors.getvalue().strip() or "its arguments were never parsed"


def scripts() -> dict[str, str]:
    """Return the installed commands and their functions."""
    entries = entry_points(group="console_scripts")
    return {entry.name: entry.value for entry in entries if entry.name.startswith("neonext-")}


def main(pages: list[str]) -> int:
    """Run every command that the pages show; return the number of those that ended otherwise than shown."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    problems = 0
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder) / "repository"
        names = subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).split("\n")
        for name in filter(None, names):
            (work / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, work / name, follow_symlinks=False)
        (work / ".venv").symlink_to(ROOT / ".venv")
        for page in map(Path, pages) if pages else PAGES:
            for line in command_lines(page):
                if not line.shown:
                    continue
                print(f"{line.page}:{line.number}: {line.text}", flush=True)
                ended = subprocess.run(
                    line.text, shell=True, cwd=work, env={**os.environ, "PATH": path}, capture_output=True, text=True
                )
                if (ended.returncode != 0) != line.fails:
                    problems += 1
                    print(f"  exit code {ended.returncode}: {ended.stderr.strip()[-2000:]}", flush=True)
    print("every command ended as shown" if not problems else f"{problems} commands did not end as shown")
    return min(problems, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
