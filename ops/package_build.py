"""Building the AscendC operator package with an installed CANN, and installing it."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from neonext_ms.common import external_tools
from neonext_ms.common.errors import InputError, NeoNextError, ToolchainError, UsageError
from neonext_ms.common.files import explained, publish, staging
from neonext_ms.common.text import nearest

from .package import FAMILIES, PROJECT, VENDOR, installed_package
from .soc import soc

LOG = "neonext_ops_build.log"
OLDEST_CANN = 8
USUAL_PLACES = ("/usr/local/Ascend/ascend-toolkit/latest", "/usr/local/Ascend/cann")


def parse_families(text: str) -> list[str]:
    """Return the families of a comma-separated list of devices or families, such as `Ascend310P3,Ascend910B3`.

    Raises:
        UsageError: a device is unknown, the kernels do not support a family, or the list is malformed.
    """
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise UsageError(f"--soc {text!r}: expected devices separated by commas, such as Ascend310P3,Ascend910B3")
    families = [name if name in FAMILIES else soc(name).family for name in names]
    for name, family in zip(names, families, strict=True):
        if family not in FAMILIES:
            raise UsageError(
                f"{name}: the operator supports {', '.join(FAMILIES)}, not {family}{nearest(family, FAMILIES)}"
            )
    return list(dict.fromkeys(families))


def find_cann(folder: str | None, environ: Mapping[str, str]) -> tuple[Path, str | None]:
    """Return the CANN toolkit and its version, or None for the version if the toolkit does not state it.

    Raises:
        ToolchainError: there is no toolkit, or it is incomplete or too old.
    """
    if folder:
        places: list[tuple[str, str | None]] = [("--cann", folder)]
    else:
        places = [(name, environ.get(name)) for name in ("ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME")]
        places += [("the usual place", place) for place in USUAL_PLACES]
    existing = [place for _, place in places if place and Path(place).is_dir()]
    if not existing:
        searched = ", ".join(f"{name} ({place or 'not set'})" for name, place in places)
        raise ToolchainError(
            f"no CANN toolkit; searched {searched}. Install it and source its set_env.sh, or copy this package to a "
            "machine that has it."
        )
    home = Path(os.path.realpath(existing[0]))
    if not any((home / part).is_dir() for part in ("tools/op_project_templates/ascendc/customize", "compiler/tikcpp")):
        raise ToolchainError(
            f"{home}: no tools/op_project_templates/ascendc/customize. This is not the CANN toolkit (perhaps only the "
            "runtime); install the toolkit."
        )
    version = None
    info = home / "compiler" / "version.info"
    if info.is_file():
        with explained(info):
            match = re.search(r"^version=(\S+)", info.read_text(encoding="utf-8", errors="replace"), re.M | re.I)
        version = match[1] if match else None
    major = re.match(r"\d{1,4}", version or "", re.ASCII)
    if major and int(major[0]) < OLDEST_CANN:
        raise ToolchainError(f"CANN {version} at {home} is too old; install {OLDEST_CANN}.0 or newer")
    return home, version


def check_build_tools() -> None:
    """Check that the programs of the build are installed.

    Raises:
        ToolchainError: a program is missing.
    """
    missing = [tool for tool in ("bash", "cmake", "make", "g++", "python3") if not shutil.which(tool)]
    if missing:
        raise ToolchainError(f"{', '.join(missing)} not found in PATH. The build needs these programs; install them.")


def build_command(way: str, families: Sequence[str], cann: Path, work: Path) -> list[str]:
    """Return the command of a build: of the project's build.sh ("cann") or of MindSpore's compiler ("mindspore")."""
    project = work / "project"
    if way == "cann":
        command = ["bash", str(project / "build.sh"), "--soc", ",".join(families), "--cann", str(cann)]
        return [*command, "--work", str(work / "build"), "--output", str(work / "out")]
    # The scripts of MindSpore's compiler call each other by relative names, so it runs in its own folder.
    command = [sys.executable, "setup.py", "--op_host_path", str(project / "op_host")]
    command += ["--op_kernel_path", str(project / "op_kernel"), "--soc_version", ";".join(families)]
    return [*command, "--ascend_cann_package_path", str(cann), "--vendor_name", VENDOR]


def build_package(way: str, families: Sequence[str], cann: Path, output: Path, timeout: float) -> Path:
    """Build the package and return its path, `<output>/custom_opp_<system>_<machine>.run`.

    Args:
        way: "cann" or "mindspore" (see `build_command`).
        families: families to compile kernels for.
        cann: toolkit.
        output: folder for the package and for the log, which is kept after a failure too.
        timeout: time limit in seconds.

    Raises:
        InputError: the build fails.
        ToolchainError: a program or a part of MindSpore is missing.
    """
    environ = {**os.environ, "ASCEND_HOME_PATH": str(cann)}
    # CANN builds inside the project, and an installed one may be read-only, so it builds in a copy.
    with staging(output) as stage, external_tools.work_folder(stage, "ops") as work:
        with explained(PROJECT):
            shutil.copytree(PROJECT, work / "project", ignore=shutil.ignore_patterns("build", "__pycache__"))
        folder, built = work / "project", work / "out"
        if way == "mindspore":
            folder = built = work / "compiler"
            with explained(work):
                shutil.copytree(mindspore_compiler(), folder)
        log = output / LOG
        staged = stage / f"{LOG}.part"
        with external_tools.kept(staged, log):
            command = build_command(way, families, cann, work)
            finished = external_tools.run(command, folder, staged, log, timeout, environ)
            packages = sorted(built.rglob("custom_opp_*.run"))
            if finished.exit_code or not packages or not packages[0].stat().st_size:
                raise _build_failure(finished, bool(packages), log)
        package = stage / packages[0].name
        external_tools.move(packages[0], package)
        return publish(package, output / package.name)


def mindspore_compiler() -> Path:
    """Return the folder of MindSpore's compiler of operator projects.

    Raises:
        ToolchainError: this MindSpore has none.
    """
    spec = find_spec("mindspore")
    for place in (spec and spec.submodule_search_locations) or ():
        folder = Path(place) / "lib" / "plugin" / "ascend" / "custom_compiler"
        if (folder / "setup.py").is_file():
            return folder
    raise ToolchainError("MindSpore has no lib/plugin/ascend/custom_compiler; build without --with mindspore")


def _build_failure(finished: external_tools.Finished, written: bool, log: Path) -> NeoNextError:
    errors = [line for line in finished.tail if line.startswith("error: ")]
    # build.sh exits with 3 if something is missing on this machine, as our commands do.
    if finished.exit_code == 3 and errors:
        return ToolchainError(errors[-1].removeprefix("error: "))
    if finished.exit_code == 0:
        return InputError(
            f"the build succeeded but wrote {'an empty' if written else 'no'} custom_opp_*.run; see {log}"
        )
    reason = next((line for line in reversed(finished.tail) if re.search(r"\berror\b|failed", line, re.I)), "")
    return InputError(f"the build failed ({finished.how}){': ' + reason[:300] if reason else ''}; see {log}")


def install_command(package: Path, install_path: str | None) -> list[str]:
    """Return the command that installs a package.

    Raises:
        InputError: the package does not exist.
        UsageError: the path is not absolute.
    """
    if not package.is_file():
        raise InputError(f"{package}: no such file; `neonext-ops build` writes it")
    command = ["bash", str(package.resolve())]
    if install_path:
        if not Path(install_path).is_absolute():
            raise UsageError(f"--install-path {install_path}: expected an absolute path")
        command.append(f"--install-path={install_path}")
    return command


def install_package(package: Path, install_path: str | None, timeout: float) -> Path:
    """Install a package and return its folder, `.../vendors/<vendor>`.

    Args:
        package: file that `build_package` wrote.
        install_path: absolute folder; None for the operators of CANN.
        timeout: time limit in seconds.

    Raises:
        InputError: the installation fails.
        ToolchainError: there is neither a path nor an environment of CANN.
    """
    command = install_command(package, install_path)
    environ = dict(os.environ)
    if not install_path and not environ.get("ASCEND_OPP_PATH") and not environ.get("ASCEND_CUSTOM_OPP_PATH"):
        raise ToolchainError(
            "ASCEND_OPP_PATH is not set, so the package has no place to go. Source CANN's set_env.sh, or choose a "
            "place with --install-path."
        )
    with staging(package.resolve().parent) as stage:
        log = stage / "install.log"
        finished = external_tools.run(command, stage, log, log, timeout, environ)
    output = "\n".join(finished.tail)
    if finished.exit_code:
        raise InputError(f"the installation failed ({finished.how}). Its output:\n{output}")
    if install_path:
        environ["ASCEND_CUSTOM_OPP_PATH"] = str(Path(install_path) / "vendors" / VENDOR)
    folder = installed_package(environ)
    if folder is None:
        raise InputError(
            f"{package.name} succeeded, but no operator is where it should be installed. Its output:\n{output}"
        )
    return folder
