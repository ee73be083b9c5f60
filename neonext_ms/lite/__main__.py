"""`python -m neonext_ms.lite`: install MindSpore Lite for the target `lite` and its runtime, as `make lite` does."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from neonext_ms.common.cli import Parser, run


def _main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(
        prog="python -m neonext_ms.lite",
        description="Download MindSpore Lite from PyPI (169 MB), unpack it into a folder of this user's cache, or the "
        "folder that NEONEXT_LITE names (300 MB), and compile our drivers for it.",
    )
    parser.add_argument("--wheel", metavar="FILE", help="wheel to unpack instead of downloading it")
    args = parser.parse_args(argv)
    from .driver import driver
    from .package import VERSION, install

    folder, present = install(args.wheel)
    print(f"package   MindSpore Lite {VERSION}: {folder.parent}{' (was there)' if present else ''}")
    print(f"drivers   {driver()}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run(_main, argv)


if __name__ == "__main__":
    sys.exit(main())
