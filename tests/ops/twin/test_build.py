"""Compilation, cache and arguments: the errors before a kernel runs."""

import json
import os
import threading

import numpy as np
import pytest

from neonext_ms.common.errors import InputError, ToolchainError
from neonext_ms.ops import compiled, twin
from neonext_ms.ops.compiled import cache_directory
from neonext_ms.ops.twin import build

SOURCE = """
#include "kernel_operator.h"
#include "value.h"
extern "C" __global__ __aicore__ void put(GM_ADDR gy)
{
    AscendC::GlobalTensor<int32_t> y;
    y.SetGlobalBuffer((__gm__ int32_t*)gy, 1);
    y.SetValue(0, VALUE + OFFSET);
}
__global__ __aicore__ void plain(GM_ADDR gy, GM_ADDR) { put(gy); }
"""


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A kernel that no test changes, compiled once."""
    folder = tmp_path_factory.mktemp("shared")
    (folder / "value.h").write_text("#define VALUE 40\n")
    path = folder / "put.cpp"
    path.write_text(SOURCE)
    return path


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A kernel of the test's own, with a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "value.h").write_text("#define VALUE 40\n")
    path = tmp_path / "put.cpp"
    path.write_text(SOURCE)
    return path


def _put(source, entry="put", extra=(), **options):
    y = np.zeros(1, np.int32)
    kernel = twin.compile(source, soc="Ascend310P3", entry=entry, **{"defines": {"OFFSET": 2}, **options})
    kernel.launch([y, *extra], blocks=1, outputs=(0,))
    return int(y[0]), kernel.path


def test_the_cache_follows_every_input(source, monkeypatch):
    value, first = _put(source)
    assert value == 42
    runs = []
    run = build._compile
    monkeypatch.setattr(build, "_compile", lambda *arguments: runs.append(1) or run(*arguments))
    assert _put(source) == (42, first) and not runs
    assert _put(source, defines={"OFFSET": 3})[0] == 43
    (source.parent / "value.h").write_text("#define VALUE 50\n")
    assert _put(source)[0] == 52
    assert len(runs) == 2
    names = os.listdir(cache_directory("twin"))
    assert all(name.endswith((".so", ".json")) for name in names), "partial files are left"


def test_a_damaged_record_is_made_again(source):
    _put(source)
    record = next(cache_directory("twin").glob("*.json"))
    for text in ("{", "[]", '{"object": "x.so"}', '{"object": "../x.so", "size": 1, "sha256": "", "files": {}}'):
        record.write_text(text)
        assert compiled._read_record(record) is None
    record.write_text(json.dumps({"object": "gone.so", "size": 1, "sha256": "", "files": {}}))
    assert _put(source)[0] == 42


def test_two_builds_at_once(source):
    built = []

    def put():
        built.append(build.build(source, 2002, {"OFFSET": 2}, ()))

    both = [threading.Thread(target=put) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert built[0] == built[1] and built[0].is_file()
    assert _put(source) == (42, built[0])


def test_an_entry_without_extern_c(shared):
    assert _put(shared, entry="plain", extra=(None,))[0] == 42


def test_a_missing_entry(shared):
    with pytest.raises(InputError, match=r"no entry 'get'.*was not declared"):
        _put(shared, entry="get")


def test_a_compile_error_shows_the_compilers_words(source):
    source.write_text(SOURCE + "\nint x = undeclared_name;\n")
    with pytest.raises(InputError, match=r"(?s)put\.cpp does not compile.*undeclared_name"):
        _put(source)


def test_a_missing_source(tmp_path):
    with pytest.raises(InputError, match=r"nothing\.cpp"):
        twin.compile(tmp_path / "nothing.cpp", soc="Ascend310P3", entry="f")


def test_an_unknown_architecture(shared):
    with pytest.raises(InputError, match="no architecture 1001"):
        twin.compile(shared, soc="Ascend910A", entry="put")


def test_no_compiler(shared, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ToolchainError, match=r"no-such-compiler.*CXX") as caught:
        _put(shared)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ([np.zeros((4, 4), np.float32)[:, 1]], {}, "C-contiguous"),
        ([[1, 2]], {}, "C-contiguous"),
        ([np.zeros(1, np.int32)], {"blocks": 0}, "blocks is 0"),
        ([np.zeros(1, np.int32)], {"outputs": (1,)}, "outputs names argument 1"),
        ([np.zeros(1, np.int32)], {"outputs": (), "shared": (0,)}, "not one of the outputs"),
        ([np.zeros(1, np.int32)], {"hazards": "ignore"}, "hazards is 'ignore'"),
        ([None] * 25, {"outputs": ()}, "at most 24"),
    ],
)
def test_wrong_arguments(shared, arguments, options, message):
    kernel = twin.compile(shared, soc="Ascend310P3", entry="put", defines={"OFFSET": 2})
    with pytest.raises(InputError, match=message):
        kernel.launch(arguments, **{"blocks": 1, "outputs": (0,), **options})


def test_a_bare_pointer_beyond_the_end(source):
    source.write_text(
        '#include "kernel_operator.h"\n'
        'extern "C" __global__ __aicore__ void put(GM_ADDR gy) { reinterpret_cast<int32_t*>(gy)[1] = 7; }\n'
    )
    with pytest.raises(twin.SimulatorError, match="bare pointer"):
        _put(source)
