"""The numbers of every command line: each option has a range, found by walking the parsers of all commands."""

from __future__ import annotations

import argparse
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from neonext_ms.benchmarks.command import WORDS
from neonext_ms.common import cli
from neonext_ms.common.cli import Parser
from neonext_ms.common.renamed import RENAMED

ROOT = Path(__file__).parents[1]
SCRIPTS = dict(re.findall(r'^(neonext-[\w-]+) = "([\w.:]+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
BAD = ("-1", "1e400", "nan", "inf", "-inf", "99999999999999999999", "18446744073709551616", "", "x", "1_0", "٣", "1e")
CONFIG = str(ROOT / "configs" / "digits.yaml")
DIGITS = str(ROOT / "tests" / "data" / "digits_64.pt")
SHIFTS = ("--shifts", "1,1,0,0", "--image-size", "64")
GOOD = ("1", "0.5", "0.05", "13", "1,1,1,0", "224", "7")


class _CaughtError(BaseException):
    pass


def parser_of(main, monkeypatch) -> Parser:
    """Return the parser that a command builds."""
    caught = []

    def catch(self, *args, **kwargs):
        caught.append(self)
        raise _CaughtError

    with monkeypatch.context() as patch, pytest.raises(_CaughtError):
        patch.setattr(Parser, "parse_args", catch)
        patch.setattr(Parser, "parse_intermixed_args", catch)
        main([])
    return caught[0]


def walk(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from walk(inner)


def mains() -> dict:
    commands = {name: target.split(":") for name, target in SCRIPTS.items() if name not in RENAMED}
    modules = [f"neonext_ms.benchmarks.{module}" for module, _ in WORDS.values()]
    modules += ["neonext_ms.benchmarks.cost_watch", "neonext_ms.benchmarks.latency.blocks_command"]
    tools = [
        f"neonext_ms.benchmarks.{name}"
        for name in ("export_cost", "train_step", "scaling", "segmentation.command", "latency.calibrate")
    ]
    return {**commands, **{m: (m, "main") for m in modules}, **{tool: (tool, "_main") for tool in tools}}


def numbers(value) -> bool:
    parts = value if isinstance(value, tuple) else (value,)
    return bool(parts) and all(isinstance(part, (int, float)) and not isinstance(part, bool) for part in parts)


def takes_a_number(action: argparse.Action) -> bool:
    for text in GOOD:
        try:
            if numbers(action.type(text)):
                return True
        except (argparse.ArgumentTypeError, ValueError):
            continue
    return False


@pytest.mark.parametrize("name", mains())
def test_every_number_of_a_command_has_a_range(name, monkeypatch, capsys):
    module, function = mains()[name]
    for parser in walk(parser_of(getattr(importlib.import_module(module), function), monkeypatch)):
        for action in parser._actions:
            if action.type is None:
                # Numbers without a type would be read as text.
                assert not isinstance(action.default, float | int) or isinstance(action.default, bool), action
                continue
            if not takes_a_number(action):
                continue
            option = action.option_strings[-1]
            for bad in BAD:
                with pytest.raises(argparse.ArgumentTypeError, match=r"^expected .*, got "):
                    action.type(bad)
                # Of several values, each is checked; a list may be written with blanks, and end in a comma.
                if bad:
                    with pytest.raises(argparse.ArgumentTypeError):
                        action.type(f"1,{bad}")
            with pytest.raises(SystemExit) as caught:
                parser.parse_args([f"{option}={BAD[0]}"])
            assert caught.value.code == 2
            message = capsys.readouterr().err.splitlines()[-1]
            assert f"argument {'/'.join(action.option_strings)}: expected " in message


def test_there_are_numbers_to_test(monkeypatch):
    found = sum(
        takes_a_number(action)
        for module, function in mains().values()
        for parser in walk(parser_of(getattr(importlib.import_module(module), function), monkeypatch))
        for action in parser._actions
        if action.type is not None
    )
    assert found > 60


def test_ranges_include_their_ends():
    three = cli.int_range(3, 5)
    assert [three("3"), three("5"), three("+4"), three("0005")] == [3, 5, 4, 5]
    for text in ("2", "6", "3.0", " 3", "9" * 5000):
        with pytest.raises(argparse.ArgumentTypeError, match="a whole number of at least 3 and at most 5") as caught:
            three(text)
        assert len(str(caught.value)) < 300
    half = cli.float_range(0, 0.5)
    assert [half("0.5"), half(".5"), half("5e-1"), half("1e-300")] == [0.5, 0.5, 0.5, 1e-300]
    for text in ("0", "0.51", "-0.1", "1e-400", "0x1p-2"):
        with pytest.raises(argparse.ArgumentTypeError, match=r"above 0 and up to 0\.5"):
            half(text)


@pytest.mark.parametrize(
    ("command", "arguments", "text"),
    [
        (
            "neonext-export",
            ["--model", "neonext_t", "--target", "onnx", "--output", "o", "--opset", "99"],
            "at least 11 and at most 22",
        ),
        ("neonext-export", ["--model", "neonext_t", "--target", "onnx", "--output", "o", "--opset", "22"], "11 to 21"),
        (
            "neonext-export",
            ["--model", "neonext_t", "--target", "onnx", "--output", "o", "--dtype", "f8"],
            "dtype must",
        ),
        ("neonext-export", ["--model", "neonext_t", "--target", "onxn", "--output", "o"], "mean onnx"),
        ("neonext-export", ["--model", "neonext_q", "--target", "onnx", "--output", "o"], "'neonext_q': unknown model"),
        (
            "neonext-export",
            ["--model", "neonext_t", "--target", "om", "--soc", "Ascend999X", "--output", "o"],
            "device",
        ),
        ("neonext-export", ["--model", "neonext_t", "--target", "onnx", "--output", "o", "--tolerance", "inf"], "0.1"),
        ("neonext-compare", ["a.onnx", "b.onnx", "--tolerance", "0.2"], "a number above 0 and up to 0.1"),
        ("neonext-info", ["neonext_q"], "unknown model"),
        ("neonext-ops", ["build", "--soc", "Ascend999X", "--dry-run"], "unknown device"),
        ("neonext-ops", ["simulate", "--model", "neonext_q", "--stage", "1"], "unknown model"),
        ("neonext-ops", ["simulate", "--spec", "[" * 5000, "--map", "8"], "more than 64 levels"),
        ("neonext-ops", ["simulate", "--spec", '{"kernel": 99999999999, "channels": 4}', "--map", "8"], "at most"),
        ("neonext-ops", ["simulate", "--spec", '{"kernel": 7, "kernel": 8, "channels": 4}', "--map", "8"], "twice"),
        ("neonext-ops", ["simulate", "--spec", '{"kernel": 1e400, "channels": 4}', "--map", "8"], "too large"),
        ("neonext-bench", ["nosuch"], "nosuch"),
        ("neonext-bench", ["estimate", "nosuch"], "nosuch"),
        ("neonext-bench", ["estimate", "resnet50", "--soc", "Ascend999X"], "unknown device"),
        ("neonext-bench", ["estimate", "--table", "nosuch"], "nosuch"),
        ("neonext-bench", ["estimate", "blocks", "--batch", "1e400"], "batch '1e400'"),
        ("neonext-bench", ["estimate", "blocks", "--soc", "Ascend999X"], "unknown device"),
        ("neonext-bench", ["write", "nosuch"], "nosuch"),
        ("neonext-bench", ["claims", "share", "--models", "q"], "q"),
        ("neonext-bench", ["claims", "convnext", "--sizes", "q"], "q"),
        ("neonext-bench", ["variants", "--model", "q"], "q"),
        (
            "neonext-export",
            ["--model", "neonext_t", "--target", "onnx", "--output", "o", "--image-size", "63"],
            "multiples of 4",
        ),
        (
            "neonext-bench",
            ["claims", "resample", "--checkpoint", DIGITS, *SHIFTS, "--kernels", "5+", "digits"],
            "not a list of matrix sizes",
        ),
        ("neonext-train", ["--config", CONFIG, "model.name=neonext_q"], "'neonext_q': unknown model"),
        ("neonext-train", ["--config", CONFIG, "augmentation.scale=[1,0.5]"], "wrong order in augmentation.scale"),
        ("neonext-train", ["--config", CONFIG, "schedule.blend_epochs=100"], "is more than schedule.epochs"),
    ],
)
def test_a_wrong_value_is_a_usage_error(command, arguments, text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    module, function = SCRIPTS[command].split(":")
    try:
        code = getattr(importlib.import_module(module), function)(arguments)
    except SystemExit as caught:
        code = caught.code
    err = capsys.readouterr().err
    assert (code, text in err) == (2, True), err
    assert "unexpected" not in err and not list(tmp_path.iterdir())
