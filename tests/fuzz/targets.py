"""Every reader of the package with a generator of inputs: valid seeds, made here, and structured mutations of them."""

from __future__ import annotations

import hashlib
import io
import json
import math
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import checkpoints
import numpy as np
from mutate import mutate_bytes, mutate_protobuf, mutate_text, mutate_value

import board_stand_in as board
import om_stand_in as om
from neonext_ms.lite.driver import missing

ROOT = Path(__file__).parents[2]
LITE = missing() is None
SEEDS = ROOT / "build" / "fuzz" / "seeds"
Files = dict[str, bytes]


@dataclass(frozen=True)
class Target:
    """A reader under test.

    Attributes:
        generate: function that makes an input: the content of a file, or of the files of a folder by name.
        read: function that reads the file or folder with the real reader.
        file: name of the file or folder; suffixes matter to some readers.
    """

    generate: Callable[[Random], bytes | Files]
    read: Callable[[Path], object]
    file: str = "input"


def _text(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _json(rng: Random, value: Any) -> bytes:
    return _text(json.dumps(mutate_value(rng, value)) if rng.random() < 0.8 else mutate_text(rng, json.dumps(value)))


def _from_text(*seeds: str) -> Callable[[Random], bytes]:
    def generate(rng: Random) -> bytes:
        content = _text(mutate_text(rng, rng.choice(seeds)))
        return mutate_bytes(rng, content) if rng.random() < 0.1 else content

    return generate


def _from_json(*seeds: Any) -> Callable[[Random], bytes]:
    return lambda rng: _json(rng, rng.choice(seeds))


def prepare() -> None:
    """Export the smallest network once, as seeds of ONNX, MindIR and Lite files, of manifests and of a kit."""
    if (SEEDS / "kit").exists() and (not LITE or (SEEDS / "tiny.ms").exists()):
        return
    SEEDS.mkdir(parents=True, exist_ok=True)
    from neonext_ms.checkpoint.checkpoint import save_checkpoint
    from neonext_ms.models.architecture import make_architecture
    from neonext_ms.models.initialization import initial_arrays

    architecture = make_architecture(num_classes=2, per_stage_layers=(1, 0, 0, 0), dims=(2, 2, 2, 2), kernel_spec="2")
    arrays = initial_arrays(architecture, rng=np.random.RandomState(0))
    metadata = {"shifts": [1, 1, 1, 0], "image_size": [32, 32], "labels": ["a", "b"]}
    save_checkpoint(SEEDS / "tiny.pt", arrays, metadata)
    command = [sys.executable, "-m", "neonext_ms.export.command", "--checkpoint", str(SEEDS / "tiny.pt")]
    command += ["--target", "onnx,mindir,lite" if LITE else "onnx,mindir", "--output", str(SEEDS)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    command = [sys.executable, "-m", "neonext_ms.commands.board", "pack", "--checkpoint", str(SEEDS / "tiny.pt")]
    command += ["--soc", "Ascend310P3", "--batch", "1", "--output", str(SEEDS / "kit")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


@cache
def _exported(suffix: str) -> bytes:
    return (SEEDS / f"tiny{suffix}").read_bytes()


def _model(suffix: str) -> Callable[[Random], bytes]:
    def generate(rng: Random) -> bytes:
        content = mutate_protobuf(rng, _exported(suffix))
        return mutate_bytes(rng, content) if rng.random() < 0.1 else content

    return generate


def _read_onnx(path: Path) -> None:
    from neonext_ms.benchmarks.latency import reader
    from neonext_ms.export.compare.onnx_side import OnnxActivations
    from neonext_ms.export.om.check_file import check_file
    from neonext_ms.runtime.onnx import describe_onnx
    from neonext_ms.runtime.open import open_runtime

    def run() -> None:
        with open_runtime(path, image_size=(32, 32), threads=1) as model:
            model.run(np.zeros((1, 3, *model.input_size), np.float32))

    def activations() -> None:
        side = OnnxActivations(path, (32, 32))
        for _ in side.values(np.zeros((1, 3, *side.input_size), np.float32)):
            pass

    def check() -> None:
        result = check_file(path)
        _ = json.dumps(result.to_dict(), allow_nan=False), str(result)

    _each(lambda: describe_onnx(path), run, activations, lambda: reader.read(path, 1), check)


@cache
def _oms() -> tuple[bytes, ...]:
    models = [[(om.INOUT, om.inout_info(batches=(1, 8))), (om.MODEL_DEF, om.model_def())], [(om.MODEL_DEF, b"")]]
    return om.small_om(), om.om_bytes(models, dynamic=1), om.om_bytes(models[:1], wide=False)


def _om(rng: Random) -> bytes:
    """Damage an OM file, or only its description, so that the sizes still add up."""
    if rng.random() < 0.4:
        return mutate_bytes(rng, rng.choice(_oms()))
    model = mutate_protobuf(rng, om.model_def(batches=(1, 8)))
    info = mutate_bytes(rng, om.inout_info(batches=(1, 8)))
    parts = [(om.MODEL_DEF, model), (om.INOUT, info), (om.WEIGHTS, b"w")]
    return om.om_bytes([rng.sample(parts, rng.randint(1, 3))], wide=rng.random() < 0.8)


def _read_om(path: Path) -> None:
    from neonext_ms.commands import info

    info._print_facts(info._describe_export(str(path)))


_calls = count()


def _one_in(calls: int) -> bool:
    """Return True for one in so many calls, for what takes long."""
    return next(_calls) % calls == 0


def _each(*readers: Callable[[], object]) -> None:
    """Run all readers of one file; the last error of ours is the result."""
    from neonext_ms.common.errors import NeoNextError

    problem = None
    for reader in readers:
        try:
            reader()
        except NeoNextError as error:
            problem = error
    if problem:
        raise problem


def _read_mindir(path: Path) -> None:
    from neonext_ms.runtime.mindspore import mindir_signature
    from neonext_ms.runtime.open import open_runtime

    mindir_signature(str(path))
    # Starting MindSpore takes seconds.
    if not _one_in(10):
        return
    with open_runtime(path, image_size=(32, 32), threads=1) as model:
        model.run(np.zeros((1, 3, *model.input_size), np.float32))


def _read_lite(path: Path) -> None:
    from neonext_ms.runtime.open import open_runtime

    with open_runtime(path, image_size=(32, 32), threads=1) as model:
        model.run(np.zeros((1, 3, *model.input_size), np.float32))


def _manifest(rng: Random) -> Files:
    text = _json(rng, json.loads(_exported(".json")))
    return {"tiny.mindir": b"", rng.choice(("tiny.json", "tiny.json", "other.json")): text}


def _read_manifest(folder: Path) -> None:
    from neonext_ms.commands import info
    from neonext_ms.runtime.manifest import read_manifest

    def shown() -> None:
        info._print_facts(info._describe_manifest(str(next(folder.glob("*.json")))))

    _each(lambda: read_manifest(folder / "tiny.mindir"), shown)


def _config(rng: Random) -> Files:
    files = {path.name: path.read_bytes() for path in (ROOT / "configs").glob("*.yaml")}
    name = rng.choice(sorted(files))
    text = _text(mutate_text(rng, files[name].decode()))
    return {**files, "config.yaml": text if rng.random() < 0.9 else mutate_bytes(rng, text)}


def _override(rng: Random) -> bytes:
    from neonext_ms.training.config.schema import known_keys

    value = rng.choice(("1", "0.5", "a", "1,2,3,4", "[1, 2]", "true", "null", "2026_11_28", "1e-3"))
    return _text(f"{rng.choice(sorted(known_keys()))}={mutate_text(rng, value) if rng.random() < 0.7 else value}")


def _read_override(path: Path) -> None:
    from neonext_ms.training.config.load import config_yaml, load_config

    config_yaml(load_config(ROOT / "configs" / "digits.yaml", [path.read_bytes().decode("utf-8", "surrogateescape")]))


def _read_config(folder: Path) -> None:
    from neonext_ms.training.config.load import config_yaml, load_config

    config_yaml(load_config(folder / "config.yaml"))


def _read_preprocessing(path: Path) -> None:
    from neonext_ms.images.preprocessing import preprocessing_from_file

    preprocessing_from_file(path)


def _read_labels(path: Path) -> None:
    from neonext_ms.images.folder import read_labels

    read_labels(path)


@cache
def _images() -> tuple[bytes, ...]:
    from PIL import Image, PngImagePlugin

    rng = np.random.RandomState(0)
    contents = []
    for mode, shape, kind, formats in (
        ("RGB", (9, 7, 3), np.uint8, ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM")),
        ("RGBA", (9, 7, 4), np.uint8, ("PNG", "WEBP", "TIFF")),
        ("L", (9, 7), np.uint8, ("PNG", "JPEG", "BMP", "PPM")),
        ("CMYK", (9, 7, 4), np.uint8, ("JPEG", "TIFF")),
        ("I;16", (9, 7), np.uint16, ("PNG", "TIFF")),
        ("F", (9, 7), np.float32, ("TIFF",)),
    ):
        image = Image.fromarray((rng.random_sample(shape) * 250).astype(kind))
        image = image if mode != "CMYK" else image.convert("RGB").convert(mode)
        text, exif = PngImagePlugin.PngInfo(), Image.Exif()
        text.add_text("Comment", "x" * 99, zip=True)
        exif[0x0112] = 6
        for name in formats:
            options = {"pnginfo": text} if name == "PNG" else {"exif": exif} if name in ("JPEG", "WEBP") else {}
            buffer = io.BytesIO()
            image.save(buffer, name, **options)
            contents.append(buffer.getvalue())
    return tuple(contents)


def _image(rng: Random) -> bytes:
    content, other = rng.choice(_images()), rng.choice(_images())
    return _png(rng, content) if content[1:4] == b"PNG" and rng.random() < 0.6 else mutate_bytes(rng, content, other)


def _png(rng: Random, content: bytes) -> bytes:
    """Mutate one chunk of a PNG file and correct its CRC-32, which would hide the chunk from the decoder."""
    import zlib

    chunks, at = [], 8
    while at + 12 <= len(content):
        size = int.from_bytes(content[at : at + 4], "big")
        chunks.append([content[at + 4 : at + 8], content[at + 8 : at + 8 + size]])
        at += 12 + size
    chosen = rng.choice(chunks)
    chosen[1] = mutate_bytes(rng, chosen[1])
    if rng.random() < 0.2:
        chunks.insert(rng.randrange(1, len(chunks)), list(rng.choice(chunks)))
    sealed = (len(b).to_bytes(4, "big") + k + b + zlib.crc32(k + b).to_bytes(4, "big") for k, b in chunks)
    return content[:8] + b"".join(sealed)


def _read_image(path: Path) -> None:
    from neonext_ms.images.images import load_images
    from neonext_ms.images.preprocessing import Preprocessing

    load_images([path], Preprocessing(), (8, 8))


_VALUES = {"stem": (4, 8, 8), "logits": (2,), "norm": (64, 4)}


def _dump(rng: Random) -> Files:
    """Make a folder of dumped values, one file of which is damaged, of another shape or badly described."""
    files: Files = {}
    for name, shape in _VALUES.items():
        shape = (1, *shape)
        if rng.random() < 0.3:
            shape = tuple(rng.choice((0, 1, 2, 3, 16, side)) for side in shape) * rng.choice((1, 1, 8))
        array = np.zeros(
            shape if math.prod(max(side, 1) for side in shape) < 1e5 and len(shape) < 32 else (1,),
            rng.choice(("f4", "f2", "f8", "i4", "?", "c8", "S3")),
        )
        if rng.random() < 0.5:
            buffer = io.BytesIO()
            np.save(buffer, array)
            form = rng.choice((f"{name}.npy", f"Conv.{name}.3.7.170000.output.0.npy", f"{name}.0.1700000000000.npy"))
            files[form] = buffer.getvalue()
        else:
            files[f"{name}.bin"] = array.tobytes()
            if rng.random() < 0.7:
                files[f"{name}.json"] = _json(rng, {"shape": list(shape), "dtype": "float32"})
    name = rng.choice(sorted(files))
    files[name] = mutate_bytes(rng, files[name])
    if rng.random() < 0.3:
        files[mutate_text(rng, name).replace("/", "_").replace("\0", "").strip(".")[:80] or "x.npy"] = files[name]
    return files


def _read_dump(folder: Path) -> None:
    from neonext_ms.export.compare.dump_side import DumpActivations
    from neonext_ms.export.compare.side import Node

    nodes = tuple(Node(f"/{name}/Conv", "Conv", (), (name,)) for name in _VALUES)
    other = SimpleNamespace(
        path="model.onnx", outputs=("logits",), names=tuple(_VALUES), nodes=nodes, aliases={}, shape=_VALUES.get,
        input_size=(32, 32), factors={}, int8=False,
    )  # fmt: skip
    side = DumpActivations(folder)
    side.bind(other)
    for _ in side.values(np.zeros((1, 3, 32, 32), np.float32)):
        pass


@cache
def _state() -> bytes:
    from neonext_ms.training.run_state import Progress, save_state

    path = SEEDS / "step.safetensors"
    arrays = {"model.a": np.zeros((2, 3), np.float32), "optimizer.step": np.zeros((), np.int64)}
    best = {"epoch": 0, "step": 3, "weights": "ema", "top1": 0.5}
    save_state(path, arrays, Progress(3, 1, 0, best, 7, 1, {"run": {"seed": 7}}), {"shifts": [1, 1, 0, 0]})
    return path.read_bytes()


def _run(rng: Random) -> Files:
    rows = [f"{i},0,{2 / i:.4g},0.5,0.001,1.5,65536,0,99.5" for i in range(1, 6)]
    starts = {"starts": [{"command": ["neonext-train"], "versions": {"python": "3.11"}, "git": None}]}
    files = {
        "steps.csv": "\n".join(["step,epoch,loss,accuracy,rate,norm,scale,skipped,images_per_second", *rows, ""]),
        "epochs.csv": "step,epoch,loss,top1,top5,ema_loss,ema_top1,ema_top5,seconds\n3,0,1.5,0.5,0.9,1.4,0.6,0.9,3.2\n",
        "run.json": json.dumps(starts),
        "log.jsonl": '{"event": "step", "time": 1.5, "step": 1}\n',
    }
    content = {name: text.encode() for name, text in files.items()}
    content["checkpoints/step-000000003.safetensors"] = _state()
    name = rng.choice(sorted(content))
    if name.endswith(".safetensors"):
        size = int.from_bytes(_state()[:8], "little")
        header = json.loads(_state()[8 : 8 + size])
        texts = header["__metadata__"]
        if rng.random() < 0.7:
            key = rng.choice(sorted(texts))
            texts[key] = _json(rng, json.loads(texts[key])).decode() if key != "format" else "np"
        else:
            header = mutate_value(rng, header)
        encoded = json.dumps(header).encode()
        content[name] = len(encoded).to_bytes(8, "little") + encoded + _state()[8 + size :]
    elif name == "run.json":
        content[name] = _json(rng, starts)
    else:
        content[name] = _text(mutate_text(rng, files[name]))
    return content


def _read_run(folder: Path) -> None:
    from neonext_ms.commands import plot
    from neonext_ms.training.run_state import Checkpoints
    from neonext_ms.training.runlog import RunLog, write_run

    _each(
        lambda: Checkpoints(folder / "checkpoints", 2).newest(lambda text: None),
        lambda: plot._main([str(folder)]) if _one_in(10) else None,
        lambda: write_run(folder, {"command": []}),
        lambda: RunLog(folder, 3),
    )


_LOG = """\
$ atc --model=tiny.onnx --framework=5 --soc_version=Ascend310P3
ATC start working now, please wait for a moment.
[ERROR] GE(4242,atc.bin):2024-05-06-07:08:09.123.456 [op.cc:99]4242 Check:ErrorNo: 1343225860(Parameter's error!)
E19010: 2024-05-06-07:08:09 No parser is registered for Op [stem, optype [ai.onnx::13::NeoCell]].
        Solution: Check the version.  TraceBack (most recent call last):
E19999: Inner Error! Please contact support engineer. soc_version Ascend310 is invalid
ATC run failed, Please check the detail log, Try 'atc --help' for more information
"""


def _read_log(path: Path) -> None:
    from neonext_ms.export.om.cann_log import read_log

    with open(path, encoding="utf-8", errors="replace") as lines:
        read_log(lines, r"ATC run success", "ATC run failed")


@cache
def _bench_result() -> dict:
    result = json.loads((ROOT / "docs" / "results" / "forms.json").read_text())
    for group in result["batches"]:
        for row in group["rows"]:
            row["samples"] = row["samples"][:3]
            row["parts"] = {name: times[:3] for name, times in row["parts"].items()}
    return result


_TRIAL = {"value": "neoinit", "seed": 0, "top1": 0.4, "loss": 1.5, "diverged": False}
_TRIAL["epochs"] = [{"epoch": 1, "loss": 2.0, "top1": 0.3}, {"epoch": 2, "loss": None, "top1": 0.4}]


def _ablation(rng: Random) -> Files:
    return {f"neoinit-{i}/result.json": _json(rng, _TRIAL) if i else json.dumps(_TRIAL).encode() for i in range(2)}


def _read_ablation(path: Path) -> None:
    from neonext_ms.benchmarks.claims import neoinit

    summary = neoinit.summarise(neoinit.read_trials(path))
    _ = json.dumps(summary, allow_nan=False), list(neoinit.lines({"summary": summary, "plot": None}))


def _read_bench(path: Path) -> None:
    from neonext_ms.benchmarks import report_command

    words = [str(path)], [str(path), "--json"], [str(path), "--compare", str(ROOT / "docs" / "results" / "forms.json")]
    _each(*(lambda w=w: report_command._main(w) for w in words))


_PROFILE = [{"cat": "Node", "name": "stem_kernel_time", "dur": 12, "ts": 3, "args": {"op_name": "Conv"}}] * 2
_MSPROF = "Device_id,Op Name,OP Type,Task Duration(us)\n0,stem,Conv2D,12.5\n0,head,MatMulV2,N/A\n"
_AIS = (
    "[INFO] H2D_latency (ms): min = 0.1, max = 0.2, mean = 0.15, median = 0.15, percentile(99%) = 0.2\n"
    "[INFO] NPU_compute_time (ms): min = 1.0, max = 2.0, mean = 1.5, median = 1.5, percentile(99%) = 2.0\n"
    "[INFO] throughput 1000*batchsize.mean(8)/NPU_compute_time.mean(1.5): 5333.3\n"
)
_SUMMARY = {"NPU_compute_time": {"min": 1.0, "mean": 1.5, "count": 9}, "throughput": 5333.3}


def _profile(rng: Random) -> bytes:
    if rng.random() < 0.5:
        return _json(rng, rng.choice((_PROFILE, _SUMMARY)))
    return _from_text(_MSPROF, _AIS)(rng)


def _read_profile(path: Path) -> None:
    from neonext_ms.benchmarks import profiles

    found = profiles.read(path)
    found.lines()
    json.dumps(found.to_dict(), allow_nan=False)


def _read_keep_dtype(path: Path) -> None:
    from neonext_ms.export.compare.keep_dtype import read_keep_dtype

    read_keep_dtype(path)


_SCALES = {
    "kind": "scales of an 8-bit network",
    "version": 1,
    "network": "0" * 64,
    "calibration": {"method": "percentile", "images": 128, "source": "digits"},
    "layers": {
        "stem.conv": {"scale": 0.02, "offset": -14, "exponents": [], "bias_correction": [1e-3, -2.5e-4]},
        "head.fc": {"scale": 0.04, "offset": 2, "exponents": [0, -1, 3], "bias_correction": []},
    },
}


def _read_scales(path: Path) -> None:
    from neonext_ms.models.scales import read_scales

    read_scales(path).text()


def _read_spec(path: Path) -> None:
    from neonext_ms.commands.simulate import _subject

    spec, size = _subject(SimpleNamespace(model=None, stage=None, spec=str(path), map=(13, 9)))
    spec.output_size(*size)
    repr((spec.shapes_a, spec.shapes_b))


_BOARD = {
    "board_report": 1,
    "kit": {"name": "t", "soc": "Ascend310P3", "level": "quick", "neonext_ms": "0.2.0"},
    "finished": True,
    "builds": [
        {
            "name": "a_b1",
            "form": "a",
            "batches": [1],
            "predicted": {"1": {"us": 9.5, "kinds": {"conv": 4.0}}},
            "export": "x",
        }
    ],
    "steps": {
        "machine": {"status": "done", "result": {"soc": "Ascend310P3", "cann": "8.0", "stand_in": False}},
        "compile/a_b1": {"status": "done"},
        "parity/a_b1": {"status": "done", "result": {"1": {"right": True, "relative_l2": 1e-3, "top1_agree": 4}}},
        "profile/a_b1": {"status": "done", "result": {"us_by_type": {"Conv2D": 3.5}}},
        "layers/a_b1": {"status": "done", "result": {"diverged_at": "stem"}},
        "latency/1": {"status": "done", "result": {"a_b1": {"compute_ms": {"p50": 1.5}, "images_per_second": 600}}},
    },
}


def _kit(rng: Random) -> Files:
    """Damage a file of a kit, or what is compressed in it, and set its checksum right."""
    kit = SEEDS / "kit"
    names = ["kit.json", *(str(path.relative_to(kit)) for path in sorted(kit.rglob("*.z")))]
    files = {name: (kit / name).read_bytes() for name in names}
    name = "kit.json" if rng.random() < 0.5 else rng.choice(names)
    if name == "kit.json":
        files[name] = _json(rng, json.loads(files[name]))
    elif rng.random() < 0.5:
        files[name] = mutate_bytes(rng, files[name])
    else:
        files[name] = zlib.compress(mutate_bytes(rng, zlib.decompress(files[name])) * rng.choice((1, 1, 1000)))
    sums = "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in files.items())
    report = board.measured_report(kit)
    report["kit"]["digest"] = hashlib.sha256(sums.encode()).hexdigest()[:16]
    return {**files, "SHA256SUMS": sums.encode(), "report.json": json.dumps(report).encode()}


def _read_kit(folder: Path) -> None:
    from neonext_ms.benchmarks.board.fit import board_rows
    from neonext_ms.benchmarks.board.report import read_report

    board_rows(read_report(folder / "report.json"), folder)


# What `board.fit.store` writes, of one measured row.
_DEMAND = {"kind": "conv", "cube_us": 1.0, "vector_us": 2.0, "tensors": [100, 200], "between": [0, 0], "weights": 10}
_FITTED = {
    "parameters": {}, "errors": {},
    "rows": [{
        "model": "x", "network": "x", "image_size": 32, "int8": False, "aipp": False, "soc": "Ascend310P3", "batch": 1,
        "images_per_second": 900.0, "source": "r.json", "demands": [_DEMAND],
    }],
}  # fmt: skip


def _read_fitted(path: Path) -> None:
    from neonext_ms.benchmarks.board.fit import read_rows

    read_rows(path)


def _read_board(path: Path) -> None:
    from neonext_ms.benchmarks.board.report import compared, lines, read_report, summary

    report = read_report(path)
    lines(report), compared(report, report)
    json.dumps(summary(report), allow_nan=False)


_SPECS = (
    {"kernel": 7, "channels": 96, "shift": 1},
    [{"h_in": 4, "h_out": 2, "w_in": 4, "w_out": 2, "channels": 8}, {"kernel": 4, "channels": 9, "shift": 0}],
)


def _records(rng: Random) -> Files:
    index = {
        "format": 1,
        "classes": ["a", "b"],
        "parts": {"train": {"images": 0, "files": []}, "val": {"images": 0, "files": []}},
    }
    index["parts"]["train"] = {"images": 1, "files": ["train.mindrecord0"]}
    header = json.dumps({"header_size": 1024, "page_size": 1024}).encode()
    files = {
        "index.json": _json(rng, index) if rng.random() < 0.6 else json.dumps(index).encode(),
        "train.mindrecord0": len(header).to_bytes(8, "little") + header + bytes(100),
        "train.mindrecord0.db": _database(),
    }
    name = rng.choice(sorted(files))
    return {**files, name: mutate_bytes(rng, files[name])}


@cache
def _database() -> bytes:
    import sqlite3

    path = SEEDS / "records.db"
    path.unlink(missing_ok=True)
    columns = (
        "position_0 INT, label_0 INT, name_0 TEXT, PAGE_ID_BLOB INT, PAGE_OFFSET_BLOB INT, PAGE_OFFSET_BLOB_END INT"
    )
    with sqlite3.connect(path) as database:
        database.execute(f"CREATE TABLE INDEXES ({columns})")
        database.execute("INSERT INTO INDEXES VALUES (0, 1, 'a/x.png', 0, 0, 90)")
    database.close()
    return path.read_bytes()


def _read_records(folder: Path) -> None:
    from neonext_ms.training.data.mindrecord import RecordSet

    part = RecordSet(folder, "train")
    for i in range(min(len(part), 3)):
        part.read(i)


def _cifar(rng: Random) -> Files:
    names = "\n".join(f"class{i}" for i in range(100))
    record = bytes([3, 5]) + bytes(3072)
    content = {"fine_label_names.txt": names.encode(), "train.bin": record * 2, "test.bin": record}
    name = rng.choice(sorted(content))
    return {**content, name: mutate_bytes(rng, content[name])}


def _read_cifar(folder: Path) -> None:
    from neonext_ms.training.config.load import make_config
    from neonext_ms.training.data.datasets import open_dataset

    for images in open_dataset(make_config({"data": {"dataset": "cifar100", "path": str(folder)}}).data):
        images.read(len(images) - 1)


def _package(rng: Random) -> Files:
    files = {"op_impl/ai_core/tbe/config/ascend310p/aic-ascend310p-ops-info.json": _json(rng, {"NeoCell": {"a": []}})}
    return {**files, "compiler/version.info": _from_text("Version=8.5.0\n")(rng), "compiler/tikcpp/x": b""}


def _read_package(folder: Path) -> None:
    from neonext_ms.ops import package, package_build

    _each(lambda: package.package_files(folder), lambda: package_build.find_cann(str(folder), {}))


_PREPROCESSING = "mean: [0.485, 0.456, 0.406]\nstd: [0.229, 0.224, 0.225]\ncrop: 0.875\ninterpolation: bilinear\n"

TARGETS: dict[str, Target] = {
    **{f"checkpoint-{name}": Target(make, checkpoints.read, name) for name, make in checkpoints.FORMATS.items()},
    "onnx": Target(_model(".onnx"), _read_onnx, "input.onnx"),
    "mindir": Target(_model(".mindir"), _read_mindir, "input.mindir"),
    "board-report": Target(_from_json(_BOARD), _read_board, "input.json"),
    "board-kit": Target(_kit, _read_kit),
    "board-fit": Target(_from_json(_FITTED), _read_fitted, "input.json"),
    # Each file is read by a process of its own.
    **({"lite": Target(lambda rng: mutate_bytes(rng, _exported(".ms")), _read_lite, "input.ms")} if LITE else {}),
    "om": Target(_om, _read_om, "input.om"),
    "manifest": Target(_manifest, _read_manifest),
    "config": Target(_config, _read_config),
    "override": Target(_override, _read_override),
    "preprocessing": Target(_from_text(_PREPROCESSING, "mode: as-is\n"), _read_preprocessing, "input.yaml"),
    "labels": Target(
        _from_text("tench\ngoldfish\n", "a\r\nb\r\n", '["a", "b"]', "0: a\n1: b\n"), _read_labels, "input.txt"
    ),
    "image": Target(_image, _read_image, "input.png"),
    "dump": Target(_dump, _read_dump),
    "run": Target(_run, _read_run),
    "records": Target(_records, _read_records),
    "cifar": Target(_cifar, _read_cifar),
    "cann-log": Target(_from_text(_LOG), _read_log, "input.log"),
    "bench-result": Target(lambda rng: _json(rng, _bench_result()), _read_bench, "input.json"),
    "ablation": Target(_ablation, _read_ablation),
    "profile": Target(_profile, _read_profile, "input.json"),
    "keep-dtype": Target(_from_text("stem_conv\nOpType::MatMul\n\n"), _read_keep_dtype, "input.cfg"),
    "package": Target(_package, _read_package),
    "scales": Target(_from_json(_SCALES), _read_scales, "input.json"),
    "spec": Target(_from_json(*_SPECS), _read_spec, "input.json"),
}
