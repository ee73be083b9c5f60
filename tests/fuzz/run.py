"""Fuzz every reader: each input must give a good read or an error of this package, in bounded time and memory.

python tests/fuzz/run.py [--minutes 5] [--jobs 2] [--targets onnx,image] [--json]     (make fuzz MINUTES=n)
python tests/fuzz/run.py --replay build/fuzz/onnx-1a2b3c4d.onnx                       what a saved input does now
python tests/fuzz/run.py --minimise build/fuzz/onnx-1a2b3c4d.onnx                     make it shorter

Anything else is a finding, saved once per place in the code with its smallest input: another exception, a signal,
more than 2 GB of memory, more than 10 seconds of processor time. Inputs that reach new lines of the package are kept
and mutated further.
"""

from __future__ import annotations

import argparse
import faulthandler
import hashlib
import json
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

ROOT = Path(__file__).parents[2]
# The repository comes first: tests/ has folders named like the package.
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from mutate import mutate_bytes  # noqa: E402
from targets import TARGETS, Files, prepare  # noqa: E402

FOUND = ROOT / "build" / "fuzz"
MEMORY = 2 << 30
SECONDS = 10
# A reader that waits uses no processor time; a machine with other work is slow.
STUCK_SECONDS = 90
COUNTS = ("inputs", "good", "rejected", "found", "kept")
_PACKAGE = tuple(f"{ROOT / name}{os.sep}" for name in ("neonext_ms", "export", "ops", "benchmarks"))


class Coverage:
    """The lines of the package that were reached so far; `grew` tells whether the last call reached new ones.

    Atheris would count branches too, but it takes over the process, and its mutations know no structure.
    """

    def __init__(self) -> None:
        self.lines: set[tuple] = set()
        self.grew = False

    def run(self, call: Callable[[], Any]) -> Any:
        before = len(self.lines)
        sys.settrace(self._enter)
        try:
            return call()
        finally:
            sys.settrace(None)
            self.grew = len(self.lines) > before

    def _enter(self, frame, event, argument):
        return self._line(frame, event, argument) if frame.f_code.co_filename.startswith(_PACKAGE) else None

    def _line(self, frame, event, argument):
        self.lines.add((frame.f_code, frame.f_lineno))
        return self._line


def write(content: bytes | Files, path: Path) -> None:
    """Write an input to a path, as a file or as a folder."""
    shutil.rmtree(path, ignore_errors=True)
    path.unlink(missing_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
        return
    path.mkdir()
    for name, body in content.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(body)


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files of a folder."""
    return sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file())


def judge(read: Callable[[Path], object], path: Path) -> tuple[str, str]:
    """Read an input, and return "good" or "rejected" and "", or a signature of what went wrong and its traceback."""
    from neonext_ms.common.errors import NeoNextError

    try:
        read(path)
        return "good", ""
    except Exception as error:
        chain: BaseException | None = error
        while chain is not None and not isinstance(chain, MemoryError):
            chain = chain.__cause__ or chain.__context__
        if isinstance(error, NeoNextError) and chain is None:
            return "rejected", ""
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(_PACKAGE)]
        place = f"{Path(frames[-1].filename).relative_to(ROOT)} {frames[-1].name}" if frames else "outside"
        return f"{type(chain or error).__name__} in {place}", traceback.format_exc()


def save(target: str, path: Path, signature: str, details: str) -> None:
    """Keep an input in `FOUND` under the digest of its signature, unless a smaller one is there."""
    place = FOUND / f"{target}-{hashlib.sha256(signature.encode()).hexdigest()[:8]}{path.suffix}"
    if place.exists() and size_of(place) <= size_of(path):
        return
    shutil.rmtree(place, ignore_errors=True)
    (shutil.copytree if path.is_dir() else shutil.copyfile)(path, place)
    place.with_suffix(".why").write_text(f"{signature}\n\n{details}", encoding="utf-8", errors="replace")


def quiet() -> None:
    """Send output to nowhere: the readers print notes, and their libraries log."""
    warnings.simplefilter("ignore")
    os.environ["GLOG_v"] = "4"  # noqa: SIM112
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)


def limit_memory() -> int:
    """Limit the address space of this process to `MEMORY` above what it has now, and return its resident bytes."""
    pages = list(map(int, Path("/proc/self/statm").read_text().split()))[:2]
    used, resident = (count * resource.getpagesize() for count in pages)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))
    return resident


def work(name: str, path: Path, seconds: float, seed: str, counts) -> None:
    """Fuzz a target in this process; `counts` are shared with the parent, the input lies at `path` while it is read."""
    quiet()
    with open(path.with_suffix(".fault"), "w") as fault:
        # The parent reads where a signal arrived, or what is wrong with a generator.
        faulthandler.enable(fault)
        try:
            explore(name, path, seconds, seed, counts)
        except BaseException:
            traceback.print_exc(file=fault)
            fault.flush()
            os._exit(1)
    # Nothing of the parent, such as its threads, is waited for.
    os._exit(0)


def explore(name: str, path: Path, seconds: float, seed: str, counts) -> None:
    """Generate inputs and mutate those that reached new lines, for some seconds."""
    target, coverage = TARGETS[name], Coverage()
    corpus: list[bytes | Files] = []
    warm_up = Random(seed)
    for _ in range(3):
        write(target.generate(warm_up), path)
        judge(target.read, path)
    limit_memory()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        rng = Random(f"{seed} {counts[0]}")
        content = grow(rng, rng.choice(corpus), corpus) if corpus and rng.random() < 0.4 else target.generate(rng)
        write(content, path)
        counts[len(COUNTS)] = int(1000 * time.process_time())
        counts[len(COUNTS) + 1] = int(time.monotonic())
        counts[0] += 1
        # Tracing is several times slower than reading, so that only some inputs are traced.
        run = coverage.run if rng.random() < 0.2 else lambda call: call()
        outcome, details = run(lambda: judge(target.read, path))
        if run == coverage.run and coverage.grew:
            corpus.append(content)
            counts[4] += 1
        if outcome in COUNTS:
            counts[COUNTS.index(outcome)] += 1
        else:
            counts[3] += 1
            save(name, path, outcome, details)


def grow(rng: Random, content: bytes | Files, corpus: list) -> bytes | Files:
    """Mutate an input of the corpus; parts of another one may be spliced in."""
    other = rng.choice(corpus)
    if isinstance(content, bytes):
        return mutate_bytes(rng, content, other)
    name = rng.choice(sorted(content))
    return {**content, name: mutate_bytes(rng, content[name], other.get(name, b""))}


def supervise(name: str, seconds: float, seed: str) -> dict:
    """Fuzz a target in worker processes, a new one after each crash, and return the counts."""
    from multiprocessing.sharedctypes import RawArray

    counts = RawArray("q", len(COUNTS) + 2)
    end, crashes = time.monotonic() + seconds, 0
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        path = Path(folder) / TARGETS[name].file
        while (left := end - time.monotonic()) > 0:
            counts[len(COUNTS) + 1] = 0
            worker = multiprocessing.Process(target=work, args=(name, path, left, f"{seed} {crashes}", counts))
            worker.start()
            reason = ""
            while worker.is_alive():
                worker.join(0.5)
                if worker.is_alive() and (reason := _overdue(worker.pid, counts)):
                    os.kill(worker.pid, signal.SIGKILL)
                    worker.join()
            if not worker.exitcode:
                break
            crashes += 1
            counts[3] += 1
            reason = reason or (f"signal {signal.Signals(-worker.exitcode).name}" if worker.exitcode < 0 else "exit")
            fault = path.with_suffix(".fault").read_text(errors="replace")
            lines = [line for line in fault.splitlines() if "neonext_ms" in line or f"{ROOT}{os.sep}" in line]
            save(name, path, f"{reason} {lines[0].split(' line ')[0].strip() if lines else ''}", fault)
    return {"target": name, **dict(zip(COUNTS, counts, strict=False)), "crashes": crashes}


def _overdue(pid: int, counts) -> str:
    """Return why the current input takes too long, or an empty string."""
    began = counts[len(COUNTS) + 1]
    if not began:
        return ""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    used = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") - counts[len(COUNTS)] / 1000
    if used > SECONDS:
        os.kill(pid, signal.SIGABRT)  # faulthandler writes where it is
        time.sleep(0.5)
        return f"more than {SECONDS} s"
    return f"stuck for {STUCK_SECONDS} s" if time.monotonic() - began > STUCK_SECONDS else ""


def replay(saved: Path) -> tuple[str, str]:
    """Read a saved input under the same name as when it was found, and return its outcome."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        target = TARGETS[saved.stem.rpartition("-")[0]]
        path = Path(folder) / target.file
        (shutil.copytree if saved.is_dir() else shutil.copyfile)(saved, path)
        return judge(target.read, path)


def minimise(saved: Path) -> None:
    """Remove pieces of a saved file, or of the files of a folder, as long as the outcome stays the same."""
    wanted = replay(saved)[0]
    for file in [saved] if saved.is_file() else sorted(p for p in saved.rglob("*") if p.is_file()):
        content = file.read_bytes()
        size = max(1, len(content) // 2)
        while size:
            at = 0
            while at < len(content):
                file.write_bytes(content[:at] + content[at + size :])
                if replay(saved)[0] == wanted:
                    content = content[:at] + content[at + size :]
                else:
                    at += size
            size //= 2
        file.write_bytes(content)


def _named(text: str) -> list[str]:
    """Return the targets that a comma list names; `checkpoint` stands for all whose names start so."""
    names = [name for part in text.split(",") for name in TARGETS if name == part or name.startswith(f"{part}-")]
    if not names:
        raise argparse.ArgumentTypeError(f"no target {text!r}; known: {', '.join(TARGETS)}")
    return names


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5, help="minutes for all targets together (default: 5)")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="worker processes")
    parser.add_argument("--targets", type=_named, default=list(TARGETS), help=f"some of {', '.join(TARGETS)}")
    parser.add_argument("--seed", default=str(int(time.time())))
    parser.add_argument("--json", action="store_true", help="print the counts as JSON")
    parser.add_argument("--replay", type=Path, metavar="INPUT", help="read one saved input and print the outcome")
    parser.add_argument("--minimise", type=Path, metavar="INPUT", help="make a saved input of an exception smaller")
    args = parser.parse_args()
    if saved := args.replay or args.minimise:
        if args.minimise:
            minimise(saved)
        print("\n".join(replay(saved)))
        return 0
    prepare()
    from concurrent.futures import ThreadPoolExecutor

    seconds = 60 * args.minutes * args.jobs / len(args.targets)
    with ThreadPoolExecutor(args.jobs) as pool:
        rows = list(pool.map(lambda name: supervise(name, seconds, args.seed), args.targets))
    total = {"target": "all", **{key: sum(row[key] for row in rows) for key in (*COUNTS, "crashes")}}
    reports = {path.stem: path.read_text().partition("\n")[0] for path in sorted(FOUND.glob("*.why"))}
    if args.json:
        print(json.dumps({"seed": args.seed, "targets": rows, "total": total, "saved": reports}, indent=1))
    else:
        for row in [dict(zip(total, total, strict=True)), *rows, total]:
            print(f"{row['target']:24}" + "".join(f"{row[key]:>10}" for key in (*COUNTS, "crashes")))
        for name, reason in reports.items():
            print(f"{FOUND / name}: {reason}")
    return 1 if total["found"] else 0


if __name__ == "__main__":
    sys.exit(main())
