"""Build a wheel, install it in an environment of its own, and run the commands from an unrelated folder.

make wheel-test
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
DIGITS = ROOT / "tests" / "data" / "digits_64.pt"
# Run by another interpreter, so no import would miss it.
OFFICIAL = "assert (Path(m.__file__).parent / 'benchmarks/official/forward.py').is_file()"
IMAGE = ROOT / "tests" / "data" / "digits" / "3" / "0023.png"


def _run(*command: object, cwd: Path) -> str:
    print("+", *command, flush=True)
    done = subprocess.run([str(part) for part in command], cwd=cwd, check=True, text=True, stdout=subprocess.PIPE)
    print(done.stdout, end="")
    return done.stdout


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _run(sys.executable, "-m", "build", "--wheel", "--outdir", folder, ROOT, cwd=folder)
        (wheel,) = folder.glob("*.whl")
        venv.create(folder / "env", with_pip=True)
        scripts = folder / "env" / "bin"
        _run(scripts / "python", "-m", "pip", "install", "--quiet", wheel, cwd=folder)
        where = _run(scripts / "python", "-c", "import neonext_ms.ops as m; print(m.__file__)", cwd=folder)
        if not where.startswith(str(folder)):
            raise SystemExit(f"the wheel was not what ran: {where}")
        arguments = ["--checkpoint", DIGITS, "--shifts", "1,1,0,0", "--image-size", "64", "--output", folder / "out"]
        _run(scripts / "neonext-export", *arguments, "--target", "onnx,mindir", cwd=folder)
        for suffix in ("onnx", "mindir"):
            out = _run(scripts / "neonext-predict", "--model", folder / f"out/digits_64.{suffix}", IMAGE, cwd=folder)
            if out.split()[1] != "3":
                raise SystemExit(f"{suffix}: a handwritten 3 was taken for something else")
        _run(scripts / "neonext-info", "--list", cwd=folder)
        _run(scripts / "neonext-convert", DIGITS, folder / "digits.ckpt", "--shifts", "1,1,0,0", cwd=folder)
        _run(scripts / "neonext-validate", "--model", folder / "out/digits_64.onnx", IMAGE.parents[1], cwd=folder)
        model = folder / "out/digits_64.onnx"
        _run(scripts / "neonext-bench", "estimate", model, "--soc", "Ascend310P3", "--batch", "8", cwd=folder)
        _run(scripts / "neonext-bench", model, "--batch", "1", "--rounds", "8", "--seconds", "5", cwd=folder)
        options = ["--spec", '{"kernel": 4, "channels": 16, "shift": 1}', "--map", "8x8", "--soc", "Ascend310P3"]
        _run(scripts / "neonext-ops", "simulate", *options, cwd=folder)
        _run(scripts / "neonext-train", "--config", ROOT / "configs/digits.yaml", "schedule.epochs=1", cwd=folder)
        _run(scripts / "python", "-c", f"from pathlib import Path; import neonext_ms as m; {OFFICIAL}", cwd=folder)
    print("the wheel works")


if __name__ == "__main__":
    main()
