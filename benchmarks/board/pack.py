"""Packing a kit: the files that `kit/run.py` reads on a board, and `kit.json`, which describes them."""

from __future__ import annotations

import gzip
import json
import os
import shlex
import shutil
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import neonext_ms
from neonext_ms import __version__
from neonext_ms.common.errors import InputError, ParityError, ToolchainError, UsageError
from neonext_ms.common.files import check_replaceable, explained, read_lines, sha256, staging
from neonext_ms.common.text import format_bytes, format_size, one_line, plural, printable
from neonext_ms.export import pipeline
from neonext_ms.export.compare import parity
from neonext_ms.export.compare.onnx_side import OnnxActivations
from neonext_ms.export.om import aipp, cann_log
from neonext_ms.export.om.job import Job
from neonext_ms.export.om.options import OmOptions
from neonext_ms.export.om.target import COMPILERS
from neonext_ms.export.quantize.options import QuantizeOptions
from neonext_ms.export.request import Request
from neonext_ms.export.source import Source
from neonext_ms.export.tolerances import INT8, INT8_LOSS, tolerance
from neonext_ms.images.preprocessing import Preprocessing
from neonext_ms.ops.package import FAMILIES, PROJECT
from neonext_ms.ops.soc import SOCS
from neonext_ms.ops.soc import soc as find_soc
from neonext_ms.runtime.acl import MEANING
from neonext_ms.runtime.om_file import ACL_DTYPES

from .forms import Form, forms_of
from .reference import NOISE, Images, Values, layers, logits, read_images, save
from .weights import Pool, join, split

KIT = Path(__file__).with_name("kit")
DESCRIPTION, SUMS, VALUES = "kit.json", "SHA256SUMS", "layers.npy"
FORMAT = 1
# What `ops.device_check` imports, which compares the operator with float64 where MindSpore for Ascend is installed.
CHECK = (
    "__init__", "common/__init__", "common/errors", "common/files", "common/lazy", "common/text", "common/version",
    "ops/__init__", "ops/ascend", "ops/device_check", "ops/package", "ops/packing", "ops/reference", "ops/spec",
)  # fmt: skip
IMAGES = {"quick": 20, "full": 100}
# Bytes of a quick kit, which leaves out images that do not fit, but for a few: the weights alone may be more.
BUDGET, FEWEST_IMAGES = 50_000_000, 5
# Bytes of the largest array of inputs, in float32, that a board is asked to hold: its memory also has the network.
LARGEST_INPUT = 1 << 31
# Values of a layer that a quick kit keeps, spread evenly over it; a full one keeps all.
SAMPLED = {"quick": 256, "full": 1 << 62}


@dataclass(frozen=True)
class Wanted:
    """The contents that were asked of a kit.

    Attributes:
        soc: device, as `atc --soc_version` takes it.
        batches: batch sizes.
        level: one of `forms.LEVELS`.
        images: folder of labelled images, or None for noise alone.
        image_size: height and width, for a checkpoint that does not record them.
        command: arguments of neonext-export for the source, for the commands that a report prints.
    """

    soc: str
    batches: tuple[int, ...] = (1, 8)
    level: str = "quick"
    images: str | None = None
    image_size: tuple[int, int] | None = None
    command: Sequence[str] = field(default_factory=list)


def pack(
    source: Source, wanted: Wanted, output: str | os.PathLike, progress: Callable[[str], None] = lambda step: None
) -> dict[str, Any]:
    """Write a kit into a new folder, byte for byte the same for the same input; return its description.

    Args:
        source: network to test.
        wanted: contents of the kit.
        output: folder to create, or an existing kit to replace.
        progress: function that is called with the name of each step before it starts.

    Raises:
        InputError: a file that cannot be read or written, or an output that is another folder.
        UsageError: an unknown device, a size that is not known, or options that do not go together.
        ParityError: an ONNX file differs from the network.
    """
    output = Path(output)
    _check_output(output)
    device = find_soc(wanted.soc)
    sizes = source.image_sizes((wanted.image_size,) if wanted.image_size else ())
    _check_inputs(wanted, sizes[0])
    forms = forms_of(wanted.level, device.family in FAMILIES, wanted.images is not None)
    with staging(output.parent) as stage:
        kit = stage / "kit"
        kit.mkdir()
        with explained(output):
            content = _Packer(source, wanted, kit, sizes[0], forms, progress).write()
            if output.exists():
                # Deleted with the folder of this run, so that there is a whole kit at almost every moment.
                os.replace(output, stage / "before")
            os.replace(kit, output)
    return content


def _check_inputs(wanted: Wanted, size: tuple[int, int]) -> None:
    """Check that host and board can hold the inputs: all images, and a whole batch.

    Raises:
        UsageError: they are larger than `LARGEST_INPUT`.
    """
    images = max(NOISE + (IMAGES[wanted.level] if wanted.images else 0), *wanted.batches)
    needed = images * 3 * size[0] * size[1] * 4
    if needed > LARGEST_INPUT:
        raise UsageError(
            f"{plural(images, 'input')} of {format_size(size)} in float32 take {format_bytes(needed)}, more than the "
            f"{format_bytes(LARGEST_INPUT)} of a kit. Choose a smaller --image-size or --batch."
        )


def _check_output(output: Path) -> None:
    """Check that a kit may be written: nothing is there, or an empty folder, or a kit to replace and nothing else.

    Raises:
        InputError: another folder or file, or a kit with more in it, such as the results of a run.
        UsageError: the current folder, or one above it, which would be taken from the shell.
    """
    with explained(output):
        if not os.path.lexists(output):
            return
        entries = set(os.listdir(output))
        if os.path.realpath(output) == os.path.commonpath([os.getcwd(), os.path.realpath(output)]):
            raise UsageError(f"--output {output}: the current folder, or one above it. Name a new folder.")
        if output.is_symlink():
            raise InputError(f"{output}: a link. Name the folder itself.")
    if not entries:
        return
    if DESCRIPTION not in entries or SUMS not in entries:
        raise InputError(f"{output}: a folder with other files. Name a new folder, or an earlier kit to replace.")
    own = {SUMS, *(name.partition("/")[0] for name, _ in read_sums(output))}
    if others := sorted(entries - own):
        raise InputError(
            f"{output}: a kit with other files, such as {printable(others[0])}. Name a new folder, or remove what is "
            "not needed any more."
        )


def read_sums(kit: Path) -> list[tuple[str, str]]:
    """Return the names and checksums of the files of a kit."""
    rows = [line.partition("  ") for line in read_lines(kit / SUMS)]
    return [(name, digest) for digest, _, name in rows]


def archive(folder: Path) -> Path:
    """Write `<folder>.tar.gz`, the same bytes for the same kit, and return its path.

    Raises:
        InputError: the archive cannot be written.
    """
    path = folder.with_name(folder.name + ".tar.gz")

    def plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.mtime = entry.uid = entry.gid = 0
        entry.uname = entry.gname = ""
        return entry

    check_replaceable(path)
    with explained(path), staging(path.parent) as stage:
        staged = stage / path.name
        with (
            open(staged, "wb") as raw,
            gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
        ):
            for file in sorted(file for file in folder.rglob("*") if file.is_file()):
                tar.add(file, f"{folder.name}/{file.relative_to(folder)}", filter=plain)
        os.replace(staged, path)
    return path


class _Packer:
    """The steps of `pack`, inside a staging folder."""

    def __init__(
        self,
        source: Source,
        wanted: Wanted,
        kit: Path,
        size: tuple[int, int],
        forms: Sequence[Form],
        progress: Callable[[str], None],
    ):
        self.source, self.wanted, self.kit, self.size = source, wanted, kit, size
        self.forms, self.progress = forms, progress
        self.preprocessing = Preprocessing.from_dict(source.metadata.get("preprocessing") or {})

    def write(self) -> dict[str, Any]:
        """Write all files; return the description."""
        self.progress("images")
        images = read_images(self.wanted.images, IMAGES[self.wanted.level], self.source, self.preprocessing, self.size)
        models = self._models()
        data = self.kit / "data"
        data.mkdir()
        if self.wanted.level == "full" and self.wanted.images:
            self._copy_images(self.wanted.images, images.description["files"])
        self._copy_programs()
        content: dict[str, Any] = {
            "kit": FORMAT,
            "neonext_ms": __version__,
            "name": self.source.name,
            "soc": self.wanted.soc,
            "family": find_soc(self.wanted.soc).family,
            "socs": {name: device.family for name, device in SOCS.items()},
            "level": self.wanted.level,
            "image_size": list(self.size),
            "batches": list(self.wanted.batches),
            "classes": self.source.architecture.num_classes,
            "activation": self.source.architecture.activation,
            "labels": list(self.source.metadata.get("labels") or []) or None,
            "operator": any(form.operator for form in self.forms),
            "export": list(self.wanted.command),
            "models": {},
            "builds": [
                self._build(form, batches, models)
                for form in self.forms
                for batches in form.batches(self.wanted.batches)
            ],
            "errors": errors(),
            "acl": {"codes": {str(code): text for code, text in MEANING.items()}, "dtypes": ACL_DTYPES},
        }
        # Predictions read the ONNX files, so these are cut into pieces afterwards.
        pool, values = Pool(), Values(SAMPLED[self.wanted.level])
        for name, (path, weights) in models.items():
            content["models"][name] = self._model(name, path, images, values)
            if self.wanted.level == "quick" and not weights:
                self._shrink(content["models"][name], path, pool)
        pool.write(data)
        save(data / VALUES, values.joined(np.float16 if self.wanted.level == "quick" else np.float32))
        content["images"] = images.description
        if self.wanted.level == "quick":
            images = self._fitting(images, len(_text(content)))
        content["images"] = images.description
        self.progress("reference")
        expected = logits(self.source, images, self.size, self.kit)
        (data / "frames.z").write_bytes(images.packed())
        save(data / "logits.npy", expected)
        self._check(content["models"], images, expected)
        (self.kit / DESCRIPTION).write_bytes(_text(content))
        self._write_sums()
        return content

    def _fitting(self, images: Images, description: int) -> Images:
        """Return the images with which a quick kit stays within its budget, beside so many bytes of description."""
        sizes = [file.stat().st_size for file in self.kit.rglob("*") if file.is_file()]
        # Also to come: the logits, and a line of checksums for each file.
        rest = description + 4 * self.source.architecture.num_classes * len(images.frames) + 128 * (len(sizes) + 4)
        return max(images.within(BUDGET - sum(sizes) - rest), images.first(FEWEST_IMAGES), key=lambda i: len(i.frames))

    def _models(self) -> dict[str, tuple[Path, list[str]]]:
        """Export one ONNX file for each kind of graph: name -> path in the kit, and files of weights."""
        models: dict[str, tuple[Path, list[str]]] = {}
        for form in self.forms:
            name = _model_name(form)
            if name in models:
                continue
            self.progress(f"export {name}")
            options = OmOptions(self.wanted.soc, compile=False)
            # A single size would be written into the graph, and the others could not use it.
            batches = self.wanted.batches if len(self.wanted.batches) > 1 else (1, 2)
            quantize = QuantizeOptions(self.wanted.images) if form.dtype == "int8" else None
            request = Request(["om"], [self.size], batches, name=name, om=options, quantize=quantize, **form.request)
            report = pipeline.export(self.source, request, self.kit / "onnx")
            files = [file.path for file in report.exported if file.target in ("onnx for om", "weights of onnx for om")]
            for file in report.exported:
                if file.target in ("script for om", "scales"):
                    file.path.unlink()
            models[name] = files[0], [file.name for file in files[1:]]
        return models

    def _model(self, name: str, path: Path, images: Images, values: Values) -> dict[str, Any]:
        self.progress(f"layers {name}")
        rows = layers(path, self.size, images.inputs[:1], values)
        return {"onnx": self._relative(path), "segments": None, "layers": rows, "values": f"data/{VALUES}"}

    def _shrink(self, model: dict[str, Any], path: Path, pool: Pool) -> None:
        """Replace an ONNX file by its parts; run.py puts it together in work/."""
        parts = path.with_suffix(".parts.z")
        model.update(segments=split(path, pool, parts), parts=self._relative(parts), onnx=f"work/onnx/{path.name}")
        path.unlink()

    def _check(self, models: Mapping[str, Any], images: Images, expected: np.ndarray) -> None:
        """Run what the board will put together; the exporter has verified the files before their weights were rounded.

        Raises:
            ParityError: the logits of the first inputs differ.
        """
        for name, model in models.items():
            if not model["segments"]:
                continue
            self.progress(f"check {name}")
            path = self.kit / "check.onnx"
            path.write_bytes(join(self.kit, models, name))
            side = OnnxActivations(path, self.size)
            (output,) = side.outputs
            ((_, values),) = side.values(images.inputs[:4], [output])
            path.unlink()
            found = parity.compare(expected[:4], values, tolerance("float16", "tanh"))
            if not found.agrees():
                raise ParityError(
                    f"{name}: with weights in float16 its logits differ (relative L2 {found.relative_l2:.1e}). Pack a "
                    "kit of --level full, which keeps them in float32."
                )

    def _build(self, form: Form, batches: tuple[int, ...], models: Mapping[str, tuple[Path, list[str]]]) -> dict:
        """Return one OM file: what compiles it, what it takes, and what is predicted of it."""
        model = _model_name(form)
        path, weights = models[model]
        name = f"{form.name}_b{'_'.join(map(str, batches))}" if not form.dynamic else form.name
        options = OmOptions(self.wanted.soc, **form.options)
        job = Job(name, self.size, batches, options, COMPILERS["atc"], self.preprocessing, data=tuple(weights))
        invocation = job.invocation()
        files = {plain: file for plain, file in invocation.inputs.items() if file not in (job.onnx, job.aipp)}
        onnx = self._relative(path)
        if self.wanted.level == "quick" and not weights:
            onnx = f"work/onnx/{path.name}"
        inputs = {f"{job.plain}.onnx": onnx}
        inputs.update((plain, self._relative(path.with_name(file))) for plain, file in files.items())
        configs = dict(invocation.configs)
        if job.aipp:
            configs[f"{job.plain}.aipp.cfg"] = aipp.aipp_config(self.preprocessing, self.size)
        self.progress(f"predict {name}")
        return {
            "name": name,
            "form": form.name,
            "summary": form.summary,
            "batches": list(batches),
            "model": model,
            "command": list(invocation.command),
            "output": job.plain,
            "inputs": inputs,
            "configs": configs,
            "operator": form.operator,
            "feed": "frames" if form.aipp else "float32",
            # Calibration does not know noise.
            "first": NOISE if form.dtype == "int8" else 0,
            "tolerance": INT8_LOSS if form.dtype == "int8" else tolerance("float16", form.gelu),
            "layer_tolerance": tolerance("float16", form.gelu) + (INT8 if form.dtype == "int8" else 0),
            "predicted": {str(batch): self._predict(path, form, batch) for batch in batches},
            "export": self._export_command(form, batches),
        }

    def _export_command(self, form: Form, batches: Sequence[int]) -> str:
        """Return the command that makes an OM file where CANN is installed."""
        words = ["neonext-export", *self.wanted.command, "--target", "om", "--soc", self.wanted.soc]
        words += ["--batch", ",".join(map(str, batches)), *form.export.split()]
        if form.dtype == "int8":
            words += ["--calibrate", Path(self.wanted.images or "").name]
        words += ["--output", f"build/{form.name}"]
        return shlex.join(words)

    def _predict(self, path: Path, form: Form, batch: int) -> dict[str, Any]:
        """Return the device model's microseconds of a run, in total and by kind of task."""
        from ..latency.network_model import estimate

        try:
            dtype = "int8" if form.dtype == "int8" else "float16"
            found = estimate(path, self.wanted.soc, batch=batch, dtype=dtype, aipp=form.aipp)
        except (ToolchainError, UsageError) as error:
            return {"us": None, "why": one_line(error)}
        kinds: dict[str, float] = {}
        for task in found.tasks:
            kinds[task.kind] = kinds.get(task.kind, 0.0) + task.predicted_us
        return {"us": found.predicted_us, "outside_tasks_us": found.predicted_run_us, "kinds": kinds}

    def _copy_programs(self) -> None:
        for source in sorted(KIT.rglob("*")):
            if source.is_file() and "__pycache__" not in source.parts:
                target = self.kit / source.relative_to(KIT)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
        if any(form.operator for form in self.forms):
            ignored = shutil.ignore_patterns("build", "__pycache__")
            shutil.copytree(PROJECT, self.kit / "ops", ignore=ignored)
            self._copy_check()
        (self.kit / "run.py").chmod(0o755)

    def _copy_images(self, folder: str, names: Sequence[str]) -> None:
        """Copy the labelled images as they are, for programs that read JPEG and PNG."""
        for name in names:
            # As `kit.json` and SHA256SUMS, which are lines of UTF-8, can name it.
            target = self.kit / "data" / "images" / printable(name)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(Path(folder) / name, target)

    def _copy_check(self) -> None:
        """Copy the check of the operator in MindSpore, with as much of this package as it imports."""
        package, target = Path(neonext_ms.__file__).parent, self.kit / "python" / "neonext_ms"
        for name in CHECK:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(package / f"{name}.py", target / f"{name}.py")
        shutil.copytree(PROJECT / "pynative", target / "ops" / PROJECT.name / "pynative")

    def _write_sums(self) -> None:
        files = sorted(file for file in self.kit.rglob("*") if file.is_file())
        lines = [f"{sha256(file)}  {self._relative(file)}\n" for file in files]
        (self.kit / SUMS).write_text("".join(lines), encoding="utf-8")

    def _relative(self, path: Path) -> str:
        return path.relative_to(self.kit).as_posix()


def _text(content: Mapping[str, Any]) -> bytes:
    # Names of files and of classes may not be UTF-8.
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def _model_name(form: Form) -> str:
    """Return the name of the ONNX file of a form: what distinguishes its graph."""
    kind = ["int8"] if form.dtype == "int8" else []
    return "_".join(["net", *kind, *(f"{value}" for _, value in sorted(form.request.items()))])


def errors() -> list[list[list[str]]]:
    """Return the exporter's table of the errors of CANN's tools for a program without this package.

    Returns:
        groups of rows: pattern, meaning, remedy. As in `cann_log.read_log`, an earlier group decides: codes, texts, and
        internal errors, which say nothing by themselves.
    """
    codes = {code: [_pattern(code), *advice[:2]] for code, advice in cann_log.CODES.items()}
    internal = [codes.pop(code) for code in cann_log.INTERNAL]
    texts = [[pattern, *advice[:2]] for pattern, advice in cann_log.TEXTS]
    unknown = [_pattern(rf"(?!{'|'.join(cann_log.INTERNAL)})E[0-9A-Z]\d{{4}}"), *cann_log.UNKNOWN[:2]]
    # Texts that come with a code and say more than it does.
    kernels = [row for row in texts if row[0].startswith("No supported Ops kernel")]
    return [[*kernels, *codes.values(), unknown], texts, internal]


def _pattern(code: str) -> str:
    return rf"(?<![\w./=-]){code}(?=[:)\]\s]|$)"
