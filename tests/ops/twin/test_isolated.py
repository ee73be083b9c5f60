"""A kernel in a forked process gives the same results, and Python survives its crash."""

import signal
import threading
from pathlib import Path

import numpy as np
import pytest

from neonext_ms.common.errors import InputError
from neonext_ms.ops import twin

KERNELS = Path(__file__).with_name("kernels")


def _add(**options):
    x, y = np.arange(5120, dtype=np.float16) % 64, np.ones(5120, np.float16)
    z = np.zeros_like(x)
    tiling = np.array([5120], np.uint32).view(np.uint8)
    kernel = twin.compile(KERNELS / "add.cpp", soc="Ascend310P3", entry="add_queues")
    return z, x + y, kernel.launch([x.astype(np.float16), y, z, tiling], blocks=8, outputs=(2,), **options)


def test_the_same_results_and_counts():
    before = [signal.getsignal(number) for number in (signal.SIGALRM, signal.SIGSEGV)]
    z, expected, counts = _add(isolated=True)
    assert np.array_equal(z, expected)
    assert counts == _add()[2]
    assert before == [signal.getsignal(number) for number in (signal.SIGALRM, signal.SIGSEGV)]


def test_a_broken_rule_is_reported():
    kernel = twin.compile(KERNELS / "rules.cpp", soc="Ascend310P3", entry="gm_past_the_end")
    x, y = np.zeros(4096, np.float16), np.full(4096, 7, np.float16)
    with pytest.raises(twin.SimulatorError, match="gm-bounds"):
        kernel.launch([x, y, None], blocks=1, outputs=(1,), isolated=True)
    assert np.all(y == 7)


def test_launches_of_several_threads():
    found = []
    threads = [threading.Thread(target=lambda: found.append(_add(isolated=True))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3 and all(np.array_equal(z, expected) for z, expected, _ in found)


@pytest.mark.parametrize("timeout", [0, -1, float("nan")])
def test_a_wrong_time(timeout):
    with pytest.raises(InputError, match="timeout is"):
        _add(isolated=True, timeout=timeout)


STACK = """
#include "kernel_operator.h"
volatile int deep(volatile int n) { volatile char room[4096]; room[n & 4095] = 1; return deep(n + 1) + room[0]; }
extern "C" __global__ __aicore__ void fall(GM_ADDR) { deep(0); }
extern "C" __global__ __aicore__ void divide(GM_ADDR gx) { volatile int zero = 0; gx[0] = 7 / zero; }
extern "C" __global__ __aicore__ void leave(GM_ADDR) { _exit(3); }
"""


@pytest.mark.parametrize(
    ("entry", "text"),
    [("fall", "access outside of memory"), ("divide", "division by zero"), ("leave", "exit code 3")],
)
def test_other_ways_to_die(entry, text, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "isolated"
    folder.mkdir(exist_ok=True)
    source = folder / "die.cpp"
    source.write_text(STACK)
    kernel = twin.compile(source, soc="Ascend310P3", entry=entry)
    with pytest.raises(twin.SimulatorError, match=text) as caught:
        kernel.launch([np.zeros(1, np.int32)], blocks=1, outputs=(0,), isolated=True, timeout=20)
    assert caught.value.rule == "crash" and caught.value.file == str(source.resolve())
