"""One file to compile for an Atlas board, and the protocol that every compiler follows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from neonext_ms.common import external_tools
from neonext_ms.common.errors import UsageError
from neonext_ms.common.text import format_size, nearest
from neonext_ms.images.preprocessing import Preprocessing
from neonext_ms.ops.soc import Soc, soc

from . import aipp
from .cann_log import Advice
from .options import PRECISION_MODES, OmOptions

ONNX_SUFFIX = "_cann.onnx"
MAX_BATCHES, MAX_BATCH = 100, 2048


@dataclass(frozen=True)
class Invocation:
    """A compiler's command in a working folder of its own, and the files that it reads there.

    CANN rejects paths with spaces and most punctuation, so every file gets a plain name there.

    Attributes:
        command: the tool's name and its arguments.
        inputs: plain name -> name of a file in the job's folder.
        configs: plain name -> contents of a configuration file to write.
    """

    command: Sequence[str]
    inputs: Mapping[str, str]
    configs: Mapping[str, str] = field(default_factory=dict)


class Compiler(Protocol):
    """A tool that compiles ONNX files for Atlas boards.

    Attributes:
        tool: the executable, and where to look for it.
        suffix: end of the output's name, after the stem of a job.
        script: name of the script that compiles on another machine.
        success: start of the line that reports success, as an extended regular expression.
        success_text: the same line, for messages.
        failure: start of the line that reports a failure.
        texts: patterns of the tool's own error messages, and advice for each.
        other_output: advice if the tool wrote only other files than its output.
        needs_set_env: shell condition under which the script looks for CANN's set_env.sh.
        setup: shell lines of the script that look for the tool outside PATH.
        missing: advice of the script if the tool is missing.
    """

    tool: external_tools.Tool
    suffix: str
    script: str
    success: str
    success_text: str
    failure: str
    texts: Sequence[tuple[str, Advice]]
    other_output: str
    needs_set_env: str
    setup: str
    missing: str

    def check(self, job: Job) -> None:
        """Raise a `UsageError` for options that the tool rejects or ignores."""

    def invocation(self, job: Job) -> Invocation:
        """Return the command for a checked job, the same for the same job."""


@dataclass(frozen=True)
class Job:
    """One file to compile, with all files that belong to it named in one folder.

    Attributes:
        stem: start of every file name.
        image_size: height and width of the model's input.
        batch: batch sizes. A run of the compiled model takes one of them.
        options: device, precision mode and the rest.
        compiler: the tool that `options.via` names.
        preprocessing: normalization and crop, for AIPP.
        onnx_suffix: end of the ONNX file's name.
        data: names of the files that hold the weights of a large ONNX model.
    """

    stem: str
    image_size: tuple[int, int]
    batch: tuple[int, ...]
    options: OmOptions
    compiler: Compiler
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    onnx_suffix: str = ONNX_SUFFIX
    data: tuple[str, ...] = ()

    @property
    def onnx(self) -> str:
        """Name of the ONNX file."""
        return self.stem + self.onnx_suffix

    @property
    def aipp(self) -> str | None:
        """Name of the AIPP file, or None without AIPP."""
        return f"{self.stem}.aipp.cfg" if self.options.aipp else None

    @property
    def output(self) -> str:
        """Name of the compiled file."""
        return self.stem + self.compiler.suffix

    @property
    def log(self) -> str:
        """Name of the file with everything that the compiler prints."""
        return f"{self.stem}.{self.compiler.tool.name}.log"

    @property
    def plain(self) -> str:
        """The output's name without its last suffix, in characters that CANN accepts."""
        return external_tools.plain(Path(self.output).stem)

    @property
    def soc(self) -> Soc:
        """The device; an unknown one raises a `UsageError`."""
        return soc(self.options.soc)

    @property
    def shape(self) -> tuple[int, ...]:
        """Input shape N, 3, height, width; N is -1 for several batch sizes."""
        return (self.batch[0] if len(self.batch) == 1 else -1, 3, *self.image_size)

    def inputs(self) -> dict[str, str]:
        """Return plain name -> name in the job's folder for every input that all compilers share."""
        inputs = {f"{self.plain}.onnx": self.onnx, **{name: name for name in self.data}}
        return inputs | ({f"{self.plain}.aipp.cfg": self.aipp} if self.aipp else {})

    def check(self) -> None:
        """Validate device and options.

        Raises:
            UsageError: an unknown device, or options that the compiler rejects or ignores.
        """
        sizes = ",".join(map(str, self.batch))
        if not 1 <= len(self.batch) <= MAX_BATCHES:
            raise UsageError(f"--batch: {len(self.batch)} sizes, expected 1 to {MAX_BATCHES}")
        if len(set(self.batch)) < len(self.batch):
            raise UsageError(f"--batch {sizes}: a size occurs twice. Name every size once.")
        if min(self.batch) < 1 or (len(self.batch) > 1 and max(self.batch) > MAX_BATCH):
            raise UsageError(f"--batch {sizes}: sizes must be at least 1, and at most {MAX_BATCH} if there are several")
        if min(self.image_size) < 1:
            raise UsageError(f"--image-size {format_size(self.image_size)}: height and width must be above 0")
        mode = self.options.precision_mode
        if mode not in PRECISION_MODES:
            hint = nearest(mode, PRECISION_MODES)
            raise UsageError(f"--precision: unknown mode {mode!r}{hint}; known: {', '.join(PRECISION_MODES)}")
        if mode == "mixed_bfloat16" and not self.soc.bf16:
            raise UsageError(
                f"--precision {mode}: {self.soc.name} does not compute in bfloat16. Use mixed_float16 or fp16."
            )
        self.compiler.check(self)

    def invocation(self) -> Invocation:
        """Return the checked command with its files."""
        self.check()
        return self.compiler.invocation(self)

    def command(self) -> str:
        """Return the command line as a POSIX shell reads it."""
        return external_tools.quoted(self.invocation().command)

    def dry_run(self) -> dict:
        """Return the command and the configuration files it reads, with the names that the files have in their folder.

        Returns:
            `command`; `configs`, contents by name; `copies`, the plain name of each file whose own name CANN rejects.
        """
        invocation = self.invocation()
        inputs = {plain: name for plain, name in invocation.inputs.items() if plain != name}
        copies = {plain: name for plain, name in inputs.items() if external_tools.plain(name) != name}

        def rename(text: str) -> str:
            for plain, name in inputs.items():
                if plain not in copies and text.endswith((f"={plain}", f"/{plain}")):
                    return text.removesuffix(plain) + name
            return text

        configs = {
            name: "".join(f"{rename(line)}\n" for line in text.splitlines())
            for name, text in invocation.configs.items()
        }
        command = external_tools.quoted([rename(part) for part in invocation.command])
        return {"command": command, "configs": configs, "copies": copies}

    def feed(self) -> dict:
        """Return what the host has to feed to the model, in plain values for a manifest."""
        if self.options.aipp:
            return aipp.host_feed(self.preprocessing, self.image_size)
        return {"dtype": "float32", "layout": "NCHW", "channels": "RGB, normalised as preprocessing says"}
