"""The option of claims that time something."""

from __future__ import annotations

import argparse

from neonext_ms.common.cli import positive_int


def add_rounds(parser: argparse.ArgumentParser) -> None:
    """Add the option for the number of timed calls, None by default."""
    parser.add_argument("--rounds", type=positive_int, help="timed calls of each, in turns")
