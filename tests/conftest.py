"""Golden cases of the official code: the small ones beside the tests, all of them where NEONEXT_GOLDEN points."""

from __future__ import annotations

import gc
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from neonext_ms.common import cli
from neonext_ms.common.processors import processors

# A command that is called as a program, as test_docs.py does to parse its line, would end this process after the
# first signal of any later test.
cli.own_process = lambda: None

# What is imported stays. To look through it again and again takes a quarter of the time in which tests are collected.
gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


DATA = Path(__file__).parent / "data"
SMALL = DATA / "golden"
FULL = Path(os.environ["NEONEXT_GOLDEN"]) if os.environ.get("NEONEXT_GOLDEN") else None
MANIFEST = json.loads((SMALL / "manifest.json").read_text())

os.environ.setdefault("GLOG_v", "3")

# Processes of pytest-xdist share the processors: two pools of two threads each on two processors wait for each other.
WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if WORKERS > 1:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, processors() // WORKERS)))


@dataclass(frozen=True)
class Golden:
    """One golden case."""

    name: str
    folder: Path

    @property
    def entry(self) -> dict:
        return MANIFEST[self.name]

    def load(self, suffix: str):
        return np.load(self.folder / f"{self.name}{suffix}")

    @property
    def checkpoint(self) -> Path:
        return self.folder / self.entry.get("state_dict", f"{self.name}.pt")

    @property
    def options(self) -> dict:
        return dict(self.entry["kwargs"])

    @property
    def image_size(self) -> tuple[int, int]:
        return tuple(self.entry["input_shape"][2:])


def goldens(kind: str) -> list[Golden]:
    """Cases of a kind that are here; `neocell`, `NeoNeXt`, `neonext_t`."""
    found = []
    for name, entry in MANIFEST.items():
        if entry["kind"] != kind:
            continue
        for folder in (SMALL, FULL):
            if folder and list(folder.glob(f"{name}[._]*")):
                found.append(pytest.param(Golden(name, folder), id=name))
                break
    return found


@pytest.fixture
def data() -> Path:
    return DATA


@pytest.fixture
def digits() -> str:
    return str(DATA / "digits_64.pt")


def relative_l2(value: np.ndarray, expected: np.ndarray) -> float:
    """Norm of the difference over the norm of what is expected."""
    return float(np.linalg.norm(value - expected) / np.linalg.norm(expected))


def relative_max(value: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference over the largest expected magnitude."""
    return float(np.abs(value - expected).max() / np.abs(expected).max())


@pytest.fixture(params=["kernels", "mindspore"])
def cpu_operations(request, monkeypatch):
    """Both ways in which operators can run on the CPU: C++ kernels and MindSpore's own operations."""
    from neonext_ms.ops.cpu.library import SWITCH, library

    if request.param == "mindspore":
        monkeypatch.setenv(SWITCH, "0")
    elif library() is None:
        pytest.skip("no C++ compiler")
