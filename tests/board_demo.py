"""Pack the digits checkpoint, run the kit on stand-ins of a board, and print the report (`make board-demo`).

With --kill N it also stops the run at N random moments by SIGKILL, and checks that the report is that of an undisturbed
run.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

from board_stand_in import TESTS, install, without_times

DIGITS = ["--checkpoint", str(TESTS / "data" / "digits_64.pt"), "--shifts", "1,1,0,0", "--image-size", "64"]


def comparable(kit: Path) -> dict:
    """Return the report of a kit without times."""
    return without_times(json.loads((kit / "board_report.json").read_text()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("build/board-demo"))
    parser.add_argument("--seconds", default="1")
    parser.add_argument("--kill", type=int, default=0, metavar="N")
    args = parser.parse_args()
    shutil.rmtree(args.output, ignore_errors=True)
    kit, other, environ = args.output / "kit", args.output / "killed", install(args.output.resolve() / "board")
    command = [sys.executable, "-m", "neonext_ms.commands.board"]
    images = ["--images", str(TESTS / "data" / "digits")]
    pack = ["pack", *DIGITS, *images, "--soc", "Ascend310P3", "--output"]
    subprocess.run([*command, *pack, str(kit)], check=True)
    shutil.copytree(kit, other)
    run = [sys.executable, "run.py", "--seconds", args.seconds]
    print("\n$ python3 run.py    # in the kit, on stand-ins of atc, npu-smi and acl", flush=True)
    subprocess.run(run, cwd=kit, env=environ, check=True)
    print("\n$ neonext-board report kit/board_report.json", flush=True)
    subprocess.run([*command, "report", str(kit / "board_report.json")], check=True)
    for number in range(args.kill):
        process = subprocess.Popen(run, cwd=other, env=environ, stdout=subprocess.DEVNULL)
        time.sleep(random.Random(number).uniform(0, 8))
        process.kill()
        process.wait()
    if args.kill:
        subprocess.run(run, cwd=other, env=environ, check=True, stdout=subprocess.DEVNULL)
        same = comparable(kit) == comparable(other)
        print(f"killed {args.kill} times and run again: the report is {'the same' if same else 'ANOTHER ONE'}")
        sys.exit(not same)


if __name__ == "__main__":
    main()
