"""Let the disk be full at each write of each command: it must end orderly and leave nothing half-written.

python tests/disk_full.py [--moments 20] [--commands export,train]     (make disk-full)

`disk_full.c` counts the writes below a folder and fails those from the n-th on. Each command is run once to count its
writes, then once for each n (a spread of them if there are more than --moments), in copies of a process that has
imported what is slow to import, so that every write can be tried. Its standard output lies on the full disk too.
Afterwards the exit code must be that of an error with a message that names a path on the disk, or 0 with all files
there; every file under a final name must be complete, and no temporary folder may remain.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from safetensors.numpy import load_file

from board_stand_in import install, measured_report, without_times
from copies import ROOT, Copies

DIGITS = ROOT / "tests" / "data" / "digits"
RESULT = ROOT / "docs" / "results" / "forms.json"
SMALL = (
    "model.dims=[4,4,4,4] model.per_stage_layers=[1,1,1,1] model.image_size=32 schedule.epochs=1 "
    "schedule.warmup_epochs=0 data.batch_size=300 run.checkpoint_every=2 run.log_every=1"
)
DIGITS_CONFIG = f"{ROOT}/configs/digits.yaml"
# {given} is a folder of inputs, {out} the folder that fills up.
COMMANDS = {
    "export": "export --checkpoint {given}/tiny.pt --target onnx,mindir --output {out}/new",
    "export-one": "export --checkpoint {given}/tiny.pt --target onnx --output {out}/x.onnx",
    "export-om": "export --checkpoint {given}/tiny.pt --target om --soc Ascend310P3 --output {out}/new",
    "export-int8": (
        "export --checkpoint {given}/tiny.pt --target onnx,om --soc Ascend310P3 --quantize int8 "
        "--calibrate {given}/images/train --output {out}/new"
    ),
    "export-lite": "export --checkpoint {given}/tiny.pt --target lite --output {out}/new",
    "convert-pt": "convert {given}/tiny.pt {out}/x.pt",
    "convert-ckpt": "convert {given}/tiny.pt {out}/x.ckpt",
    "convert-safetensors": "convert {given}/tiny.pt {out}/x.safetensors",
    "average": "convert {given}/tiny.pt {out}/x.safetensors --average {given}/tiny.pt",
    "predict": "predict --model {given}/tiny.onnx --json {given}/images/train/0/0036.png",
    "validate": "validate --model {given}/tiny.onnx {given}/images/train --predictions {out}/p.csv --json",
    "compare": "compare {given}/tiny.pt {given}/tiny.onnx --layers --write-inputs {out}/i --keep-dtype {out}/k --json",
    "train": f"train --config {DIGITS_CONFIG} {SMALL} run.output={{out}}/run",
    "claims": (
        f"bench claims neoinit --config {DIGITS_CONFIG} --initialization noise --seeds 1 --output {{out}}/run {SMALL}"
    ),
    "write-digits": "train --write-digits {out}/digits",
    "mindrecord": "mindrecord {given}/images {out}/records --shards 1",
    "plot": "plot {given}/run --output {out}/curves.png",
    "plot-figure": "plot --figure 4 --output {out}/figure.png --json",
    "bench": "bench {given}/tiny.onnx --rounds 2 --batch 1 --no-gemm --output {out}/b.json",
    "bench-write": (
        "bench write mobilenet_v2 --image-size 32 --target cann --soc Ascend310P3 --batch 1,2 --output {out}/peers"
    ),
    "bench-report": f"bench report {RESULT} --output {{out}}/report",
    "variants": (
        "bench variants --checkpoint {given}/tiny.pt --variants int8 --no-speed --images {given}/images/train "
        "--batch 1 --write {out}/v.onnx --json"
    ),
    "resample": (
        "bench claims resample --checkpoint {given}/tiny.pt --kernels 3,3+6,6,6 --reading offset --output {out}/r.pt "
        "--json {given}/images/train"
    ),
    "segmentation": "segmentation --steps 1 --batch 1 --soc Ascend310P3 --output {out}/shapes",
    "ops-build": "ops build --dry-run --soc Ascend310P3 --output {out}/package",
    "simulate": "ops simulate --spec {given}/spec.json --map 8 --output {out}/x.npz",
    "info": "info {given}/tiny.onnx --json",
    "board-pack": "board pack --checkpoint {given}/tiny.pt --soc Ascend310P3 --batch 1 --output {out}/kit --archive",
    "board-fit": "board report {given}/measured.json --fit --kit {given}/kit --output {out}/fitted.json",
    # A kit on stand-ins of a board, the folder of the kit on the disk.
    "board-run": "board-run",
}
MODULES = {
    "export": "neonext_ms.export.command",
    "compare": "neonext_ms.export.compare.command",
    "bench": "neonext_ms.benchmarks.command",
    "segmentation": "neonext_ms.benchmarks.segmentation.command",
}
# Files that grow line by line; a run that continues removes an incomplete line.
LOGS = ("steps.csv", "epochs.csv", "log.jsonl", "events.out")


class Disk:
    """A folder that fills up, the library that makes it so, and the process that runs a command on it."""

    def __init__(self, folder: Path, name: str):
        self.library, self.count, self.folder = folder / "disk_full.so", folder / "count", folder / "disk"
        self.given = folder / "given"
        source = str(Path(__file__).with_suffix(".c"))
        subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", str(self.library), source, "-ldl"], check=True)
        verb, *self.words = COMMANDS[name].format(given=self.given, out=self.folder).split()
        self.is_kit = verb == "board-run"
        if not self.is_kit:
            module = MODULES.get(verb, f"neonext_ms.commands.{verb}")
            self.copies = Copies(module, folder / "stderr", self.given, {"LD_PRELOAD": str(self.library)})

    def run(self, after: int) -> tuple[int, str, int]:
        """Run the command on an empty disk whose `after`-th write fails; return exit code, stderr and writes."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        self.count.write_bytes(bytes(8))
        if self.is_kit:
            return self.run_kit(self.given, after)
        variables = {name: text for name, text in self.environment(after).items() if name != "LD_PRELOAD"}
        copy = self.copies.start(self.words, str(self.folder / "stdout"), variables)
        _, errors = copy.communicate()
        (writes,) = struct.unpack("<q", self.count.read_bytes())
        return copy.returncode, errors, writes

    def close(self) -> None:
        """End the process."""
        if not self.is_kit:
            self.copies.close()

    def environment(self, after: int) -> dict[str, str]:
        """Return the variables that `disk_full.c` reads."""
        return {
            "LD_PRELOAD": str(self.library), "FULL_FOLDER": f"{self.folder}/", "FULL_AFTER": str(after),
            "FULL_COUNT": str(self.count),
        }  # fmt: skip

    def run_kit(self, given: Path, after: int) -> tuple[int, str, int]:
        """Run a board kit on stand-ins, its folder on the disk that fills up; then once more with room.

        Returns:
            exit code of the second run, the messages of the first, and the writes of the first.
        """
        shutil.copytree(given / "kit", self.folder / "kit")
        environ = install(given / "board")
        command = [sys.executable, str(self.folder / "kit" / "run.py"), "--forms", "matmul", "--seconds", "0.1"]
        full = {**environ, **self.environment(after)}
        process = subprocess.run(command, env=full, capture_output=True, text=True, timeout=300)
        (writes,) = struct.unpack("<q", self.count.read_bytes())
        again = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=300)
        return again.returncode, process.stderr + again.stderr, writes

    def report(self) -> dict:
        """Return the report of the kit on the disk, without times."""
        return without_times(json.loads((self.folder / "kit" / "board_report.json").read_text()))


def files(folder: Path) -> dict[str, bytes]:
    """Return the contents of all files of a folder by their names in it, but for standard output."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "stdout"
    }


def complete(path: Path, content: bytes, expected: bytes | None) -> bool:
    """Return whether a file under its final name is whole."""
    if content == expected or path.name.startswith(LOGS):
        return True
    try:
        if path.suffix == ".json":
            json.loads(content)
        elif path.suffix == ".safetensors":
            load_file(path)
        elif path.suffix == ".png":
            Image.open(path).load()
        else:
            # Dates, names of folders and the classes that an earlier epoch predicted make files differ, but not longer.
            alike = expected is not None and len(content) == len(expected)
            return alike and path.suffix in (".mindir", ".db", ".yaml", ".csv")
    except Exception:
        return False
    return True


def problems(disk: Disk, outcome: tuple[int, str, int], reference: tuple[int, dict[str, bytes]]) -> list[str]:
    """Return what is wrong after a command met a full disk."""
    code, errors, _ = outcome
    expected_code, expected = reference
    left, found = files(disk.folder), []
    for name, content in left.items():
        if any(part.startswith(".neonext-") for part in Path(name).parts):
            found.append(f"left {name}")
        elif not complete(disk.folder / name, content, expected.get(name)):
            found.append(f"half-written {name} ({len(content)} bytes of {len(expected.get(name, b''))})")
    if code == expected_code:
        # Checkpoints and logs of a run have names of their own.
        found += [f"exit code {code} without {name}" for name in expected.keys() - left.keys()]
        return found
    if code != 1 or "Traceback" in errors or "unexpected" in errors:
        found.append(f"exit code {code}: {errors[-600:]}")
    elif "full" not in errors or not (str(disk.folder) in errors or "standard output" in errors):
        found.append(f"unclear message: {errors[-600:]}")
    return found


def kit_problems(disk: Disk, outcome: tuple[int, str, int], reference: dict) -> list[str]:
    """Return what is wrong with a kit that met a full disk and was run again."""
    code, errors, _ = outcome
    found = [f"exit code {code} of the run after it"] if code else []
    found += [f"a traceback: {errors[-600:]}"] if "Traceback" in errors else []
    return found + (["another report than without a full disk"] if not code and disk.report() != reference else [])


def prepare(given: Path) -> None:
    """Make the inputs: a tiny checkpoint and its ONNX file, images in folders, a finished run."""
    sys.path.insert(0, str(ROOT / "tests" / "fuzz"))
    from targets import SEEDS, prepare

    prepare()
    shutil.copytree(SEEDS, given, dirs_exist_ok=True)
    for part in ("train", "val"):
        for label in "01":
            folder = given / "images" / part / label
            folder.mkdir(parents=True)
            for image in sorted((DIGITS / label).iterdir())[:2]:
                shutil.copy(image, folder)
    pack = f"pack --checkpoint {given}/tiny.pt --soc Ascend310P3 --batch 1 --output {given}/kit".split()
    command = [sys.executable, "-m", "neonext_ms.commands.board", *pack]
    subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, stdout=subprocess.DEVNULL)
    (given / "measured.json").write_text(json.dumps(measured_report(given / "kit")))
    (given / "spec.json").write_text('{"kernel": 4, "channels": 4, "shift": 1}')
    (given / "run").mkdir()
    (given / "run" / "steps.csv").write_text(
        "step,epoch,loss,accuracy,rate,norm\n1,0,2.5,0.1,0.001,1\n2,0,2,0.2,0.1,2\n"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=20, help="full disks of each command (default: 20)")
    parser.add_argument("--commands", default=",".join(COMMANDS), help=f"some of {', '.join(COMMANDS)}")
    args = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory(prefix="disk-full-") as name:
        given = Path(name) / "given"
        prepare(given)
        for command in args.commands.split(","):
            disk = Disk(Path(name), command)
            code, errors, writes = disk.run(1 << 60)
            reference = code, files(disk.folder)
            report = disk.report() if command == "board-run" else {}
            if code not in (0, 3):
                print(f"{command}: exit code {code} on an empty disk\n{errors[-2000:]}")
                failed += 1
                continue
            count = min(writes, args.moments)
            moments = sorted({1 + round(i * (writes - 1) / max(1, count - 1)) for i in range(count)})
            wrong = 0
            for after in moments:
                outcome = disk.run(after)
                check = (kit_problems, report) if command == "board-run" else (problems, reference)
                found = check[0](disk, outcome, check[1])
                wrong += bool(found)
                for text in found:
                    print(f"{command}, full at write {after} of {writes}: {text}", flush=True)
            disk.close()
            print(f"{command}: {writes} writes, a full disk at {len(moments)} of them, {wrong} wrong", flush=True)
            failed += wrong
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
