from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from neonext_ms.commands import convert
from neonext_ms.common import cli
from neonext_ms.common.errors import InputError, UsageError
from neonext_ms.common.files import atomic, check_distinct, exclusive, publish, sha256, staging


def test_a_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "x.txt"
    with atomic(path) as staged:
        staged.write_text("part")
        assert not path.exists()
    assert path.read_text() == "part" and os.listdir(path.parent) == ["x.txt"]


def test_what_fails_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), atomic(tmp_path / "a" / "b" / "x.txt") as staged:
        staged.write_text("part")
        raise RuntimeError
    assert not (tmp_path / "a").exists()


def test_what_fails_keeps_the_old_file(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic(path) as staged:
        staged.write_text("new")
        raise RuntimeError
    assert path.read_text() == "old"


def test_what_is_no_file_is_not_replaced(tmp_path):
    # For root, a rename to /dev/null takes it from the whole machine.
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    # As /dev/stdout, whose output goes to an ordinary file.
    stdout = tmp_path / "stdout"
    with open(tmp_path / "file", "w") as file:
        stdout.symlink_to(f"/proc/self/fd/{file.fileno()}")
        for path in (pipe, link, stdout):
            with pytest.raises(InputError, match="pipe, socket or device"), atomic(path) as staged:
                staged.write_text("new")
    with staging(tmp_path) as stage, pytest.raises(InputError, match="pipe, socket or device"):
        (stage / "x").write_text("x")
        publish(stage / "x", pipe)
    assert pipe.is_fifo() and sorted(os.listdir(tmp_path)) == ["file", "link", "pipe", "stdout"]


def test_an_output_is_no_input(tmp_path):
    source, link, other = tmp_path / "in.pt", tmp_path / "link.pt", tmp_path / "out.pt"
    source.write_bytes(b"x")
    link.symlink_to(source)
    for output in (source, link, f"{tmp_path}/./in.pt"):
        with pytest.raises(UsageError, match="the same file as an input"):
            check_distinct(output, [None, "", other, source])
    check_distinct(other, [None, source, link])
    assert convert.main([str(source), str(link)]) == 2 and source.read_bytes() == b"x"


def test_a_missing_temporary_folder_is_said(capsys):
    def fail(argv):
        # As `tempfile` raises it.
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    assert cli.run(fail, []) == 1
    assert capsys.readouterr().err == "error: no temporary folder can be written. Set TMPDIR to one that can.\n"


def test_published_files_have_ordinary_permissions(tmp_path):
    with staging(tmp_path) as stage:
        (stage / "x").write_text("x")
        (stage / "x").chmod(0o400)
        publish(stage / "x", tmp_path / "x")
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o666 & ~umask


def test_errors_name_the_path(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=f"{tmp_path}/file"), atomic(tmp_path / "file" / "x"):
        pass
    with pytest.raises(InputError, match="no such file"):
        sha256(tmp_path / "missing")


_HOLD = """\
import sys, time
from neonext_ms.common.files import staging
with staging(sys.argv[1]) as stage:
    (stage / "half").write_text("half")
    print(stage, flush=True)
    time.sleep(60)
"""


def test_the_stage_of_a_killed_process_is_cleared_and_that_of_a_live_one_kept(tmp_path):
    processes = [
        subprocess.Popen([sys.executable, "-c", _HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    killed, live = (process.stdout.readline().strip() for process in processes)
    processes[0].kill()
    processes[0].wait()
    past = time.time() - 60
    for stage in (killed, live):
        os.utime(stage, (past, past))
    with staging(tmp_path):
        assert not os.path.exists(killed) and os.path.exists(live)
    processes[1].kill()
    processes[1].wait()


def test_a_lock_is_exclusive(tmp_path):
    with exclusive(tmp_path) as first, exclusive(tmp_path, wait=False) as second:
        assert (first, second) == (True, False)
    with exclusive(tmp_path, wait=False) as again:
        assert again
