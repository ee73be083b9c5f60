"""The target `om`: an ONNX file that CANN takes, an AIPP file, a script, and the OM file itself where a compiler is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from neonext_ms.common import external_tools
from neonext_ms.common.errors import InputError, ToolchainError, UsageError, listed, nearest
from neonext_ms.common.files import explained
from neonext_ms.images.preprocessing import Preprocessing
from neonext_ms.ops.soc import soc

from ..request import Om
from . import aipp, atc, lite, parser_support

ONNX_SUFFIX = "_cann.onnx"


@dataclass(frozen=True)
class Job:
    """One OM file: its ONNX file and what belongs to it, by their names in one folder.

    Attributes:
        stem: name before the suffixes.
        image_size: height and width of the model's input.
        batch: sizes; one, or several of which each run takes one.
        request: device, precision and the rest.
        preprocessing: for AIPP.
        data: names of files with the weights of a large ONNX model.
    """

    stem: str
    image_size: tuple[int, int]
    batch: tuple[int, ...]
    request: Om
    preprocessing: Preprocessing
    data: tuple[str, ...] = ()

    @property
    def onnx(self) -> str:
        return f"{self.stem}{ONNX_SUFFIX}"

    @property
    def aipp(self) -> str | None:
        return f"{self.stem}.aipp.cfg" if self.request.aipp else None

    @property
    def output(self) -> str:
        return f"{self.stem}{'.om' if self.request.via == 'atc' else '_ascend.mindir'}"

    @property
    def log(self) -> str:
        return f"{self.stem}.{'atc' if self.request.via == 'atc' else 'converter_lite'}.log"

    def options(self, folder: Path | None = None) -> atc.OmOptions | lite.LiteOptions:
        """For the compiler; the AIPP file is named inside `folder`, or alone."""
        config = self.aipp and (str(folder / self.aipp) if folder else self.aipp)
        common = {
            "soc": soc(self.request.soc),
            "image_size": self.image_size,
            "batch": self.batch,
            "precision": self.request.precision,
            "aipp": config,
        }
        if self.request.via == "atc":
            return atc.OmOptions(**common, keep_dtype=self.request.keep_dtype, extra=self.request.extra)
        if self.request.keep_dtype or self.request.extra:
            raise UsageError("keep_dtype and extra arguments are options of atc; leave them out, or use --via atc")
        return lite.LiteOptions(**common)

    def check(self) -> None:
        """Raises:
        InputError: an unknown device.
        UsageError: options that the compiler refuses.
        """
        self.options().check()

    def command(self) -> str:
        """The exact command line; it runs in a folder of its own, where files have names that CANN takes."""
        build = atc.staged_command if self.request.via == "atc" else lite.staged_command
        return external_tools.quoted(build(self.onnx, Path(self.output).stem, self.options())[0])

    def feed(self) -> dict:
        """What the host has to feed to the model, in plain values for a manifest."""
        if self.request.aipp:
            return aipp.host_feed(self.preprocessing, self.image_size)
        return {"dtype": "float32", "layout": "NCHW", "channels": "RGB, normalised as preprocessing says"}


def check_graph(model, path: str, keep_dtype: Sequence[str] = ()) -> None:
    """Raises:
    InputError: what CANN's parser does not take, node by node, or operators to keep that are not in the graph.
    """
    names = [node.name for node in model.graph.node]
    for name in keep_dtype:
        if not name.startswith("OpType::") and name not in names:
            raise InputError(
                f"--keep-dtype: {path} has no operator {name!r}{nearest(name, names)}; names are those of its nodes, "
                "as `neonext-compare --keep-dtype FILE` writes them"
            )
    problems = parser_support.check(model)
    if problems:
        raise InputError(f"{path}: ATC would refuse this graph:\n{listed(problems)}")


def write_companions(jobs: Sequence[Job], stage: Path) -> list[str]:
    """Write the AIPP files of the jobs; returns their names."""
    names = []
    for job in jobs:
        if job.aipp:
            with explained(job.aipp):
                (stage / job.aipp).write_text(aipp.aipp_config(job.preprocessing, job.image_size), encoding="utf-8")
            names.append(job.aipp)
    return names


def write_script(jobs: Sequence[Job], stage: Path) -> str:
    """Write the script that builds the files on another machine; returns its name."""
    if jobs[0].request.via == "atc":
        made = [atc.OmJob(job.onnx, job.stem, job.options(), job.data) for job in jobs]
        return atc.write_script(stage / atc.SCRIPT, made).name
    made = [lite.LiteJob(job.onnx, job.output.removesuffix(".mindir"), job.options(), job.data) for job in jobs]
    return lite.write_script(stage / lite.SCRIPT, made).name


def find_compiler(jobs: Sequence[Job]) -> ToolchainError | None:
    """None if the compiler is here, else the error that says where it was looked for."""
    try:
        external_tools.find(atc.ATC if jobs[0].request.via == "atc" else lite.CONVERTER)
    except ToolchainError as error:
        return error
    return None


def compile_job(job: Job, stage: Path, output: Path) -> Path:
    """Build one file in the staging folder; its log goes to the output folder whatever happens."""
    build = atc.compile_om if job.request.via == "atc" else lite.compile_lite
    return build(
        stage / job.onnx, output / job.output, job.options(stage), stage, output / job.log, job.request.timeout
    )
