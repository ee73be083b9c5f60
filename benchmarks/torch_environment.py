"""An environment with PyTorch, onnxslim and the official repository, to measure against them.

    python -m neonext_ms.benchmarks.torch_environment build/torch

It makes a virtual environment of its own in that folder: torch (the CPU wheels), ninja for the official model's C++
extension, and onnxslim. What it lacks it finds in the environment that made it, so `neonext-bench` runs in it too;
nothing of it reaches that environment. A second call only adds what is missing.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from neonext_ms.common.cli import Parser, note, print_json, run
from neonext_ms.common.errors import InputError, ToolchainError
from neonext_ms.common.files import explained

REPOSITORY = "https://github.com/HapKoM/neonext"
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
# Package -> whether it comes from the index of torch.
PACKAGES = {"torch": True, "ninja": False, "onnxslim": False}
MODEL = "neonext_t.released_224"
BESIDE = "zz_neonext_ms.pth"


def _call(command: Sequence[str], what: str) -> None:
    note(f"$ {shlex.join(command)}")
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise ToolchainError(f"{what}: {command[0]} cannot be started ({error.strerror or error})") from error
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["it printed nothing"]
        raise ToolchainError(f"{what}: exit code {done.returncode}: {lines[-1][:300]}")


def python_of(folder: Path) -> Path:
    """The environment's interpreter."""
    return folder / "bin" / "python"


def installed(python: Path, package: str) -> bool:
    """Whether an interpreter has a package of its own or of the environment beside it."""
    done = subprocess.run([str(python), "-c", f"import {package}"], capture_output=True)
    return done.returncode == 0


def make(folder: Path, index: str, official: str | None = None) -> dict:
    """Make or complete the environment.

    Args:
        folder: of the environment; it may exist if this command made it.
        index: package index of torch.
        official: an existing clone of the official repository, instead of cloning it.

    Returns:
        `python` and `official`, their paths.

    Raises:
        InputError: the folder holds something else, or the clone is not one.
        ToolchainError: a tool is missing or failed; what is there stays, and the next call goes on.
    """
    folder = folder.absolute()
    python = python_of(folder)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "pyvenv.cfg").is_file():
        raise InputError(f"{folder}: not empty and not an environment of this command; name another folder")
    repository = Path(official).absolute() if official else folder / "neonext"
    model = repository / "ptvision" / "models" / "neonext" / "neonext.py"
    if official and not model.is_file():
        raise InputError(f"{official}: not a clone of {REPOSITORY}; it has no {model.relative_to(repository)}")
    if not official and not model.is_file() and shutil.which("git") is None:
        raise ToolchainError(f"git is not installed; install it, or clone {REPOSITORY} and pass --official FOLDER")
    if not python.exists():
        _call([sys.executable, "-m", "venv", str(folder)], "the virtual environment")
    packages = next((folder / "lib").glob("python*/site-packages"))
    with explained(packages / BESIDE):
        (packages / BESIDE).write_text(_behind() + "\n", encoding="utf-8")
    for package, own_index in PACKAGES.items():
        if not installed(python, package):
            extra = ["--index-url", index] if own_index else []
            _call([str(python), "-m", "pip", "install", "--quiet", *extra, package], f"installing {package}")
    if not model.is_file():
        _call(["git", "clone", "--depth", "1", REPOSITORY, str(repository)], "cloning the official repository")
    return {"python": str(python), "official": str(repository)}


def _behind() -> str:
    """A line that adds this environment's packages behind the new one's, editable installs included."""
    return f"import site; site.addsitedir({sysconfig.get_paths()['purelib']!r})"


def bench_command(made: dict) -> str:
    """The command that measures against what is in the environment."""
    python = shlex.quote(made["python"])
    # PyTorch looks for ninja in PATH when it builds the official model's extension.
    path = shlex.quote(str(Path(made["python"]).parent))
    return (
        f"PATH={path}:$PATH {python} -m neonext_ms.benchmarks --models {MODEL} --naive --batch 1,8 --torch {python} "
        f"--official {shlex.quote(made['official'])}"
    )


def _main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(prog="python -m neonext_ms.benchmarks.torch_environment", description=__doc__)
    parser.add_argument("folder", metavar="FOLDER", help="where the environment goes")
    parser.add_argument("--torch-index", default=TORCH_INDEX, metavar="URL", help=f"of torch (default {TORCH_INDEX})")
    parser.add_argument("--official", metavar="FOLDER", help="a clone of the official repository that is here already")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    made = make(Path(args.folder), args.torch_index, args.official)
    if args.json:
        print_json({**made, "command": bench_command(made)})
    else:
        print(f"python    {os.fspath(made['python'])}\nofficial  {made['official']}\nmeasure   {bench_command(made)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return run(_main, argv)


if __name__ == "__main__":
    sys.exit(main())
