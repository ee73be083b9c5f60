"""The C++ program of a kit, built by its CMake project against a stand-in of libascendcl that computes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from board_stand_in import TESTS, install
from neonext_ms.benchmarks.board.pack import KIT

pytestmark = pytest.mark.skipif(not (shutil.which("cmake") and shutil.which("g++")), reason="needs cmake and g++")
STAND_IN = TESTS / "stand_ins" / "cpp"


@pytest.fixture(scope="module")
def classify(tmp_path_factory) -> Path:
    cann, build = tmp_path_factory.mktemp("cann"), tmp_path_factory.mktemp("build")
    shutil.copytree(STAND_IN / "acl", cann / "include" / "acl")
    (cann / "lib64").mkdir()
    library = [
        "g++",
        "-std=c++17",
        "-shared",
        "-fPIC",
        "-o",
        cann / "lib64" / "libascendcl.so",
        STAND_IN / "ascendcl.cpp",
    ]
    subprocess.run(library, check=True)
    environ = {**os.environ, "ASCEND_HOME_PATH": str(cann), "CXXFLAGS": "-O0 -Wall -Wextra -Werror"}
    for command in (["cmake", "-S", KIT / "cpp", "-B", build], ["cmake", "--build", build]):
        subprocess.run(command, check=True, env=environ, capture_output=True)
    return build / "classify"


def run(program: Path, *argv) -> subprocess.CompletedProcess:
    script = TESTS / "stand_ins" / "run_om.py"
    environ = {**os.environ, "STAND_IN_RUN": f"{sys.executable} {script}", "PYTHONPATH": str(TESTS.parent)}
    return subprocess.run([str(program), *map(str, argv)], env=environ, capture_output=True, text=True)


@pytest.mark.parametrize("batches", ["1", "1,3"])
def test_the_program_classifies(classify, digits, data, tmp_path, batches, monkeypatch):
    from neonext_ms.export import command
    from neonext_ms.images.images import load_images
    from neonext_ms.images.preprocessing import Preprocessing

    for name, value in install(tmp_path / "board").items():
        monkeypatch.setenv(name, value)
    argv = ["--checkpoint", digits, "--shifts", "1,1,0,0", "--image-size", "64", "--target", "om", "--batch", batches]
    assert command.main([*argv, "--soc", "Ascend310P3", "--output", str(tmp_path)]) == 0
    files = [data / "digits" / "3" / "0023.png", *sorted((data / "digits" / "7").glob("*.png"))[:1]]
    images = load_images(files[: len(batches.split(","))], Preprocessing(), (64, 64))
    images.tofile(tmp_path / "input.bin")
    (tmp_path / "labels.txt").write_text("".join(f"digit {i}\n" for i in range(10)))
    om, labels = tmp_path / "digits_64.om", ("--labels", tmp_path / "labels.txt")
    done = run(classify, om, tmp_path / "input.bin", *labels, "--loop", 1)
    assert done.returncode == 0, done.stderr
    best = re.findall(r"image \d\n\s+[\d.e+-]+ %  (.*)\n", done.stdout)
    assert best == ["digit 3", "digit 7"][: len(images)] and "ms a run of batch" in done.stdout
    np.zeros(5, np.float32).tofile(tmp_path / "short.bin")
    done = run(classify, om, tmp_path / "short.bin", "--loop", 0)
    assert done.returncode == 1 and "20 bytes (expected 1 to" in done.stderr


def test_wrong_usage_and_files_that_are_not_there(classify, tmp_path):
    assert run(classify).returncode == 2
    done = run(classify, tmp_path / "no.om", tmp_path / "no.bin")
    assert done.returncode == 1 and "no.bin: cannot be read" in done.stderr
    (tmp_path / "x.bin").write_bytes(b"1234")
    done = run(classify, tmp_path / "no.om", tmp_path / "x.bin")
    assert done.returncode == 1 and "aclmdlLoadFromFile failed with 545001" in done.stderr
