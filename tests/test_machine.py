"""Processors, home folder and working folder: how a command uses them, and that it leaves nothing there."""

from __future__ import annotations

import importlib.util
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import DATA
from neonext_ms.common import cli
from neonext_ms.common import processors as module
from neonext_ms.common.environment import prepare_environment
from neonext_ms.common.processors import processors, thread_count

PACKAGE = Path(module.__file__).parents[1]


@pytest.fixture
def environment(monkeypatch):
    """Variables of the test's own; what the test changes is put back."""
    for name in ("OMP_NUM_THREADS", "MS_ROLE", "MS_WORKER_NUM", "GLOG_v", "MS_OM_PATH", "NEONEXT_DEBUG"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return monkeypatch


@pytest.mark.parametrize(
    ("variable", "asked", "count"),
    [
        (None, None, 8),
        ("3", None, 3),
        ("4,2", None, 4),
        ("64", None, 8),
        ("0", None, 8),
        ("many", None, 8),
        ("3", 2, 2),
    ],
)
def test_threads_are_all_processors_unless_told_otherwise(environment, variable, asked, count):
    environment.setattr(module, "processors", lambda: 8)
    if variable:
        environment.setenv("OMP_NUM_THREADS", variable)
    assert thread_count(asked) == count
    prepare_environment(asked)
    assert os.environ["OMP_NUM_THREADS"] == str(count)


@pytest.mark.parametrize(
    ("machine", "flags", "expected"),
    [
        ("x86_64", "fma avx2 avx512f", True),
        ("x86_64", "fma avx2 avx512f avx512_vnni", False),
        ("x86_64", "avx2 avx_vnni", False),
        ("x86_64", None, True),
        ("aarch64", "fp asimd", False),
    ],
)
def test_where_sums_in_8_bit_saturate(environment, tmp_path, machine, flags, expected):
    if flags:
        (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: fpu {flags}\nbugs\t\t: avx_vnni\n")
    environment.setattr(module, "_CPUINFO", tmp_path / "cpuinfo")
    environment.setattr(module.platform, "machine", lambda: machine)
    assert module.saturates.__wrapped__() is expected


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        (["--worker_num=8", "--local_worker_num=4"], 2),
        (["--worker_num", "8", "--local_worker_num", "2"], 4),
        (["--worker_num=16", "--local_worker_num=16"], 1),
        ([], 4),
    ],
)
def test_workers_of_msrun_share_the_processors(environment, arguments, count):
    environment.setattr(module, "processors", lambda: 8)
    environment.setenv("MS_ROLE", "MS_WORKER")
    environment.setenv("MS_WORKER_NUM", "2")
    program = [sys.executable, "-c", "import time; print(flush=True); time.sleep(60)", *arguments]
    with subprocess.Popen(program, stdout=subprocess.PIPE) as launcher:
        launcher.stdout.readline()
        environment.setattr(os, "getppid", lambda: launcher.pid)
        assert thread_count() == count
        environment.setattr(os, "sched_getaffinity", lambda pid: {pid})
        assert thread_count() == 8, "msrun has bound the worker to processors of its own"
        launcher.kill()


def test_what_the_user_has_set_is_kept(environment):
    prepare_environment()
    assert [os.environ.get(name) for name in ("GLOG_v", "MS_OM_PATH")] == ["4", "/dev/null"]
    environment.setenv("GLOG_v", "1")
    environment.setenv("MS_OM_PATH", "/tmp/om")
    prepare_environment()
    assert [os.environ.get(name) for name in ("GLOG_v", "MS_OM_PATH")] == ["1", "/tmp/om"]


@pytest.mark.parametrize(
    "command",
    [
        "neonext_ms.commands.predict --model x.onnx x.png",
        "neonext_ms.commands.validate --model x.onnx x",
        "neonext_ms.benchmarks.command x.onnx",
        "neonext_ms.benchmarks.claims.command complexity",
        "neonext_ms.benchmarks.variants",
        "neonext_ms.benchmarks.profiles x.onnx",
        "neonext_ms.benchmarks.train_step",
    ],
)
@pytest.mark.parametrize("number", [processors() + 1, 10**6, 10**40, 0, -1])
def test_threads_have_the_processors_as_limit(command, number, capsys):
    from importlib import import_module

    name, *arguments = command.split()
    with pytest.raises(SystemExit) as ended:
        cli.run(import_module(name)._main, [*arguments, f"--threads={number}"])
    assert ended.value.code == 2
    assert f"at most {processors()}, the processors that this process may use" in capsys.readouterr().err


def test_a_number_of_threads():
    assert cli.threads("1") == 1 and cli.threads(str(processors())) == processors()


def _run(folder: Path, *command: str, **variables: str) -> subprocess.CompletedProcess:
    """Run a command in an empty working folder, with home and temporary folders of its own."""
    for name in ("home", "temporary", "work"):
        (folder / name).mkdir()
    names = {"HOME": str(folder / "home"), "TMPDIR": str(folder / "temporary"), "XDG_CACHE_HOME": "", **variables}
    # As in a user's shell: the commands themselves prepare what libraries read.
    kept = {n: v for n, v in os.environ.items() if n not in ("OMP_NUM_THREADS", "GLOG_v", "MS_OM_PATH")}
    return subprocess.run(
        command, cwd=folder / "work", env={**kept, **names}, capture_output=True, text=True, timeout=120
    )


def _sources() -> dict[str, str]:
    """Modules of the package by name, with their text; some rooms are links."""
    modules = {}
    for room in [path for path in PACKAGE.iterdir() if path.is_dir()]:
        for path in sorted(room.resolve().glob("**/*.py")):
            parts = path.relative_to(room.resolve()).with_suffix("").parts
            modules[".".join(["neonext_ms", room.name, *parts])] = path.read_text(encoding="utf-8")
    return modules


def _left(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]


def test_onnxruntime_leaves_nothing_at_home(tmp_path):
    program = "from neonext_ms.runtime.onnx import onnx_session; from neonext_ms.export.onnx import int8; import onnx; "
    program += "from onnx.helper import *; v = make_tensor_value_info; x, y = v('x', 1, [1]), v('y', 1, [1]); "
    program += "m = make_model(make_graph([make_node('Abs', ['x'], ['y'])], 'g', [x], [y]), ir_version=8, "
    program += "opset_imports=[make_opsetid('', 17)]); s = onnx_session(m.SerializeToString()); "
    program += "print(s.get_session_options().intra_op_num_threads)"
    ended = _run(tmp_path, sys.executable, "-c", program)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip() == str(processors()) and not _left(tmp_path)


def test_matplotlib_leaves_nothing_at_home(tmp_path):
    pytest.importorskip("matplotlib")
    program = "import sys; from neonext_ms.common.figures import pyplot; pyplot().figure().text(0, 0, 'text')"
    ended = _run(tmp_path, sys.executable, "-c", program)
    assert (ended.returncode, ended.stderr) == (0, "") and not _left(tmp_path)


def test_onnxruntime_is_imported_in_one_place():
    """Its telemetry has to be switched off before the import."""
    importing = re.compile(r"^\s*(import onnxruntime|from onnxruntime import)", re.MULTILINE)
    assert [name for name, text in _sources().items() if importing.search(text)] == ["neonext_ms.runtime.onnx"]


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="openvino is not installed")
def test_openvino_writes_nothing_below_the_home_folder(tmp_path):
    """Its telemetry writes an id there, and reports every import."""
    program = "from neonext_ms.runtime.openvino import import_openvino as i; i(); i().Core()"
    ended = _run(tmp_path, sys.executable, "-c", program)
    assert ended.returncode == 0 and not _left(tmp_path)
    importing = re.compile(r"^\s*(import openvino|from openvino)", re.MULTILINE)
    assert [name for name, text in _sources().items() if importing.search(text)] == ["neonext_ms.runtime.openvino"]


def test_a_graph_that_does_not_compile_leaves_nothing(tmp_path):
    """MindSpore writes the graph into `rank_0` in the working folder."""
    program = """
import ctypes, os, sys
from neonext_ms.common.cli import run
def command(argv):
    import mindspore as ms
    libc = ctypes.CDLL(None)
    libc.getenv.restype = ctypes.c_char_p
    print(libc.getenv(b"OMP_NUM_THREADS").decode())
    class Cell(ms.nn.Cell):
        def construct(self, x):
            return x.no_such_method()
    try:
        ms.jit(Cell().construct)(ms.Tensor([1.0]))
    except Exception as error:
        print("failed")
sys.exit(run(command))
"""
    (tmp_path / "program.py").write_text(program)
    ended = _run(tmp_path, sys.executable, str(tmp_path / "program.py"))
    assert ended.stdout.split() == [str(processors()), "failed"], ended.stderr
    assert _left(tmp_path) == ["program.py"] and "ERROR" not in ended.stderr


HELP = """
import contextlib, importlib, io, sys
for name in {names!r}:
    output = io.StringIO()
    sys.argv = ["x", "--help"]
    with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
        module = importlib.import_module(name)
        main = getattr(module, "_main", None) or module.main
        main(["--help"]) if main.__code__.co_argcount else main()
    print(name, output.getvalue())
"""


def test_help_needs_no_docstrings():
    """python -OO drops them, and asserts."""
    names = [
        name
        for name, text in _sources().items()
        if ("\ndef main(" in text or "\ndef _main(" in text) and "Parser(" in text and not name.endswith("__main__")
    ]
    outputs = []
    for level in ("0", "2"):
        program = HELP.replace("{names!r}", repr(names))
        environment = {**os.environ, "PYTHONOPTIMIZE": level}
        ended = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
        outputs.append(ended.stdout)
    assert outputs[0] == outputs[1] and outputs[0].count("usage:") == len(names) > 15
    assert not [name for name, text in _sources().items() if "=__doc__" in text]


def test_keys_are_listed_without_docstrings():
    """The keys, without the meanings, which are docstrings."""
    listed = {}
    for level in ("0", "2"):
        command = [str(Path(sys.executable).with_name("neonext-train")), "--keys"]
        environment = {**os.environ, "PYTHONOPTIMIZE": level}
        ended = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
        listed[level] = [line for line in ended.stdout.splitlines() if not line.startswith(" " * 8)]
    assert listed["0"] == listed["2"] and "  run.seed=0  (a whole number in [0, 4294967295])" in listed["0"]


def test_a_prediction_where_the_home_cannot_be_written(tmp_path):
    Image.new("RGB", (64, 64), (128, 128, 128)).save(tmp_path / "grey.png")
    command = str(Path(sys.executable).with_name("neonext-predict"))
    options = ["--model", str(DATA / "digits_64.pt"), "--shifts", "1,1,0,0", "--image-size", "64", "--top", "1"]
    # Without the kernels, which tests/ops/test_compiled.py covers: compiling them takes long.
    ended = _run(tmp_path, command, *options, str(tmp_path / "grey.png"), HOME="/proc", NEONEXT_CPU_OPS="0")
    assert ended.returncode == 0 and "%" in ended.stdout, ended.stderr
    assert _left(tmp_path) == ["grey.png"]


def test_memory_that_is_not_there_is_not_granted(tmp_path, monkeypatch):
    before = resource.getrlimit(resource.RLIMIT_DATA)
    facts = module._STATUS.read_text().splitlines()
    used = next(int(line.split()[1]) for line in facts if line.startswith("VmData:"))
    (tmp_path / "meminfo").write_text(f"MemAvailable: {1 << 18} kB\nSwapFree: 0 kB\n")
    monkeypatch.setattr(module, "_MEMINFO", tmp_path / "meminfo")
    with module.limited_memory():
        (limit, _) = resource.getrlimit(resource.RLIMIT_DATA)
        np.ones(1 << 20)
        with pytest.raises(MemoryError):
            np.empty(1 << 27)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    assert abs(limit - (used << 10) - (15 << 24)) < 1 << 26
    # A container may have less, of which only what is filled is gone.
    filled = next(int(line.split()[1]) for line in facts if line.startswith("VmRSS:"))
    monkeypatch.setattr(module, "_groups", lambda: [tmp_path])
    (tmp_path / "memory.max").write_text(f"{(filled << 10) + (1 << 27)}\n")
    with module.limited_memory(reserved=1 << 20):
        (limit, _) = resource.getrlimit(resource.RLIMIT_DATA)
    assert abs(limit - (used << 10) - (15 << 23)) < 1 << 26
    # What is not known is not limited.
    (tmp_path / "meminfo").write_text("")
    with module.limited_memory():
        assert resource.getrlimit(resource.RLIMIT_DATA) == before
