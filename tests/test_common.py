"""Text and argument types that every command shares."""

from __future__ import annotations

import argparse

import pytest

from neonext_ms.common import cli, text


@pytest.mark.parametrize(
    ("parse", "good", "value", "bad"),
    [
        (cli.positive_int, "8", 8, ["0", "-1", "1.5", "", "x"]),
        (cli.non_negative_int, "0", 0, ["-1", "1.5", "x"]),
        (cli.positive_float, "2e-5", 2e-5, ["0", "-1", "nan", "inf", "x"]),
        (cli.seconds, "0.5", 0.5, ["0", "nan", "inf"]),
        (cli.fraction, "0.875", 0.875, ["0", "1.1", "nan", "x"]),
        (cli.comma_list(), "a, b,,a", ("a", "b"), ["", ","]),
        (cli.comma_list(cli.positive_int), "1,8,1", (1, 8), ["1,0", ""]),
        (cli.parse_shifts, "1,1,1,0", (1, 1, 1, 0), ["1,1,1", "1,1,1,-1", "a,b,c,d"]),
        (cli.parse_size, "256x320", (256, 320), ["0", "1x2x3", "x"]),
        (cli.parse_sizes, "224,256x320", ((224, 224), (256, 320)), ["224,0", ""]),
    ],
)
def test_argument_types(parse, good, value, bad):
    assert parse(good) == value
    for wrong in bad:
        with pytest.raises(argparse.ArgumentTypeError, match="expected"):
            parse(wrong)


def test_text():
    assert text.format_size((224, 320)) == "224x320"
    assert [text.format_bytes(n) for n in (0, 999, 1000, 2_400_000, 3.1e9, 5e13)] == [
        "0 B", "999 B", "1.0 kB", "2.4 MB", "3.1 GB", "50000.0 GB",
    ]  # fmt: skip
    assert [text.plural(1, "image"), text.plural(1000, "class", "classes")] == ["1 image", "1,000 classes"]
    assert text.one_line(ValueError("a\n  b")) == "a b" and text.one_line(KeyError()) == "KeyError"
