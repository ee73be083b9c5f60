"""Signals end a command soon, also inside a library that does not return, and leave nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

# What the body computes in C takes hours, and no handler of Python runs meanwhile.
PROGRAM = """
import hashlib, os, signal, sys, time
from pathlib import Path
from neonext_ms.common import cli, files, signals
signals._PATIENCE_SECONDS = 0.3

def forever():
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)

def body(argv):
    {body}

sys.exit(cli.run(body))
"""
STAGED = """
    with files.staging(Path(sys.argv[1]) / "new") as stage:
        (stage / "part").write_text("x")
        files.private_folder()
        forever()
"""
CHILD = """
    running, tell = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(tell, b"x")
            time.sleep(60)
        finally:
            os._exit(0)
    os.read(running, 1)
    os.kill(child, signal.SIGTERM)
    os.waitpid(child, 0)
    time.sleep(1)
    print("went on")
"""
UNHURRIED = """
    signal.signal(signal.SIGTERM, lambda *_: None)
    with signals.unhurried():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)
    print("saved")
"""
# A compiler starts programs of its own, and here one of them goes on after the compiler was killed.
COMPILES = """
    from neonext_ms.ops.compiled import attempt
    print("ready", flush=True)
    attempt(["sh", "-c", "sleep 60 & wait"])
"""
CHILDREN = """
    import subprocess
    subprocess.Popen(["sh", "-c", "sleep 60 & wait"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    forever()
"""


def start(body: str, folder) -> subprocess.Popen:
    environment = {"TMPDIR": str(folder), "PATH": "/usr/bin"}
    words = [sys.executable, "-c", PROGRAM.format(body=body), str(folder)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_library_that_does_not_return_is_ended(number, tmp_path):
    process = start(STAGED, tmp_path)
    assert process.stdout.readline() == "ready\n"
    assert len(list(tmp_path.iterdir())) == 2
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, "interrupted; no partial files were left behind\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("body", "printed"), [(CHILD, "went on\n"), (UNHURRIED, "saved\n")])
def test_what_is_not_meant_for_the_command_does_not_end_it(body, printed, tmp_path):
    process = start(body, tmp_path)
    assert process.communicate(timeout=30) == (printed, "")
    assert process.returncode == 0


def members(folder) -> list[str]:
    """Return the processes whose environment names a folder."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/environ", "rb") as file:
                found += [entry] if str(folder).encode() in file.read() else []
        except OSError:
            continue
    return found


@pytest.mark.parametrize("body", [COMPILES, CHILDREN])
def test_no_process_outlives_a_command(body, tmp_path):
    process = start(body, tmp_path)
    assert process.stdout.readline() == "ready\n"
    while process.poll() is None and len(members(tmp_path)) < 3:
        time.sleep(0.05)
    process.terminate()
    process.communicate(timeout=30)
    assert process.returncode == 130
    # The system ends what was killed in a moment.
    for _ in range(200):
        if not members(tmp_path):
            break
        time.sleep(0.05)
    assert not members(tmp_path)
