"""Faults of the machine and of text files that every command meets in the same way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import DATA
from neonext_ms.common import cli
from neonext_ms.common import processors as module
from neonext_ms.common.cli import Parser
from neonext_ms.common.errors import InputError
from neonext_ms.common.files import check_regular, explained, read_lines, read_text, staging
from neonext_ms.common.text import DECIMAL, printable, shorten
from neonext_ms.common.yaml_file import MAX_VALUES, parse_yaml, read_yaml
from neonext_ms.training.config.load import load_config

BIN = Path(sys.executable).parent


def shell(line, **options):
    path = os.pathsep.join([str(BIN), os.environ["PATH"]])
    env = {**os.environ, "PATH": path, **options.pop("env", {})}
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=env, timeout=120, **options)


@pytest.mark.parametrize(
    ("redirection", "code"), [(">&-", 0), ("2>&-", 0), (">&- 2>&- <&-", 0), (">/dev/full", 1), ("| head -c 1", 0)]
)
def test_streams_that_cannot_be_written(redirection, code):
    ended = shell(f"set -o pipefail; neonext-info --list {redirection}")
    assert ended.returncode == code or (redirection.startswith("|") and ended.returncode in (0, 1))
    assert "unexpected" not in ended.stderr and "Exception" not in ended.stderr
    if code:
        assert ended.stderr.startswith("error: standard output: the disk is full")


def test_an_ascii_terminal_gets_escapes(tmp_path):
    folder = tmp_path / "ünï"
    folder.mkdir()
    ended = shell(
        f"neonext-convert {DATA / 'digits_64.pt'} {folder}/ø.pt --shifts 1,1,0,0",
        env={"LC_ALL": "C", "PYTHONIOENCODING": "ascii"},
    )
    assert ended.returncode == 0, ended.stderr
    assert "\\xfcn\\xef/\\xf8.pt" in ended.stdout and (folder / "ø.pt").is_file()


def test_a_working_folder_that_is_gone(tmp_path):
    folder = tmp_path / "gone"
    folder.mkdir()
    ended = shell(f"rmdir {folder}; neonext-info --list", cwd=folder)
    assert (ended.returncode, ended.stderr[:31]) == (1, "error: the working folder does ")


def test_hangup_is_kept_ignored_and_ends_otherwise():
    program = "from neonext_ms.common.cli import run; import os, signal; "
    program += "run(lambda a: os.kill(os.getpid(), signal.SIGHUP) or print('went on'))"
    ended = shell(f'{sys.executable} -c "{program}"')
    assert "went on" not in ended.stdout and ended.stderr.startswith("interrupted")
    assert "went on" in shell(f'nohup {sys.executable} -c "{program}"').stdout


@pytest.mark.parametrize(("name", "problem"), [("a\0b", "a null character"), ("a\ud800b", "half of a character")])
def test_a_path_that_no_file_can_have(name, problem, tmp_path):
    for read in (check_regular, read_text, lambda name: staging(tmp_path / name).__enter__()):
        with pytest.raises(InputError, match=f"not a path, because it has {problem}"):
            read(name)
    path = tmp_path / "c.yaml"
    path.write_text(json.dumps({"run": {"output": name}}))
    with pytest.raises(InputError, match=r"wrong value for run\.output"):
        load_config(path, [])
    # Text that cannot be written is no fault of the path.
    with pytest.raises(UnicodeEncodeError), explained(tmp_path):
        "\ud800".encode()


@pytest.mark.parametrize(("text", "fits"), [("1" * 60_000 + "]", False), ("1" * 60_000, True), ("-.5e-3", True)])
def test_decimals_take_linear_time(text, fits):
    assert bool(DECIMAL.fullmatch(text)) == fits
    assert not any(map(DECIMAL.fullmatch, ("", ".", "+", "1e", "1.e", "e5", "1 ", "1_0")))
    assert all(map(DECIMAL.fullmatch, ("1.", "-.5", "+1.e5")))


def test_text_files(tmp_path):
    path = tmp_path / "labels.txt"
    path.write_bytes("\ufeffzero\r\none\n\n".encode())
    assert read_lines(path) == ["zero", "one"]
    os.mkfifo(tmp_path / "pipe")
    for bad, message in (("pipe", "not a regular file"), (".", "a folder"), ("none", "no such file")):
        with pytest.raises(InputError, match=message):
            read_text(tmp_path / bad)
    path.write_bytes(b"\xff")
    with pytest.raises(InputError, match="not a UTF-8 text file"):
        read_text(path)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: 1e-3\nb: 2026-11-28\nc: 16\nd: -3\ne: 1.5", {"a": 1e-3, "b": "2026-11-28", "c": 16, "d": -3, "e": 1.5}),
        ("x: &a [1, 2]\ny: *a", {"x": [1, 2], "y": [1, 2]}),
        ("a: '010'\nb: \"12:30\"", {"a": "010", "b": "12:30"}),
        ("base: &b {a: 1, c: 3}\nd:\n  <<: *b\n  a: 2", {"base": {"a": 1, "c": 3}, "d": {"a": 2, "c": 3}}),
    ],
)
def test_yaml(text, value):
    assert parse_yaml(text, "x.yaml") == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "x.yaml, line 3: .*'a' is given twice"),
        ("a:\n  b: 1\n  b: 1", "line 3: .*'b' is given twice"),
        ("a:\n  <<: [{seed: 1}, {seed: 2}]", "line 2: .*'seed' is in two merged mappings"),
        ("a: 010", "line 1: .*010 is octal"),
        ("a: 12:30", "12:30 is octal, sexagesimal"),
        ("a: 12:30.5", "12:30.5 is octal, sexagesimal"),
        ("a: 2026_11_28", "underscores"),
        ("a: !!bool foo", "tag"),
        ("a: !!python/object/apply:os.system [x]", "tag"),
        ("[" * 3000, r"line 1: not valid YAML \(more than 50 levels"),
        ("- " * 3000, r"line 1: not valid YAML \(more than 50 levels"),
        ("{a: " * 60 + "1" + "}" * 60, "more than 50 levels"),
        ("&a [*a]", "not valid YAML"),
        ("? [a]\n: b", "unhashable"),
    ],
)
def test_yaml_is_strict(text, message):
    with pytest.raises(InputError, match=message):
        parse_yaml(text, "x.yaml")


def test_aliases_expand_within_a_bound(tmp_path):
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{c}: &{c} [{', '.join([f'*{p}'] * 9)}]" for p, c in zip("abcdefgh", "bcdefghi", strict=True)]
    (tmp_path / "laughs.yaml").write_text("\n".join(lines))
    with pytest.raises(InputError, match=f"more than {MAX_VALUES:,} values"):
        read_yaml(tmp_path / "laughs.yaml", "a file")


def test_text_for_messages():
    shared = ["x" * 1000] * 10
    assert len(shorten([[shared] * 1000] * 1000)) <= 100 and shorten([1, "a"]) == "[1, 'a']"
    assert printable("a\x1b[31m\nb\udcffé") == "a\\x1b[31m\\nb\\udcffé"


@pytest.mark.parametrize(("limit", "count"), [("max 100000", 4), ("150000 100000", 2), ("50000 100000", 1), ("x", 4)])
def test_processors_of_a_container(tmp_path, monkeypatch, limit, count):
    (tmp_path / "cpu.max").write_text(limit)
    monkeypatch.setattr(module, "_CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    assert module.processors() == count


def test_merged_mappings_without_common_keys():
    text = "x: &x {seed: 1}\ny: &y {<<: *x, lr: 2, seed: 3}\na:\n  <<: [*y, {step: 4}]\n  lr: 5"
    assert parse_yaml(text, "x.yaml")["a"] == {"seed": 3, "lr": 5, "step": 4}


def test_empty_arguments_are_not_taken_as_none(capsys):
    parser = Parser()
    parser.add_argument("--init")
    parser.add_argument("rest", nargs="*")
    assert parser.parse_args(["--init", "a", "b=="]).init == "a"
    for words in (["--init", ""], ["--init="], ["x", ""]):
        with pytest.raises(SystemExit, match="2"):
            parser.parse_args(words)
        assert "an argument is empty" in capsys.readouterr().err


def test_a_home_that_no_shell_has_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("~/new", "~root/new"):
        with pytest.raises(InputError, match=r"named '~(root)?' here.*Write the whole path"), staging(name):
            pass
    with staging("~no user"):
        pass
    os.mkdir("~")
    with staging("~/new"):
        pass
    assert os.listdir() == ["~"]


def test_control_characters_are_escaped_wherever_a_command_prints(capsys):
    def body(argv):
        print("a\x1b[31m\tb\u202e", end="\n")
        print("two\nlines", flush=True)

    assert cli.run(body, []) == 0
    assert capsys.readouterr().out == "a\\x1b[31m\\tb\\u202e\ntwo\nlines\n"
    with pytest.raises(SystemExit):
        Parser(prog="p").parse_args(["--\x1b[2J"])
    assert "unrecognized arguments: --\\x1b[2J" in capsys.readouterr().err
