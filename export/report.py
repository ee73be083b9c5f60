"""`Report`: what an export wrote and measured. It is printed by the command and saved as the manifest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from neonext_ms.common.errors import ToolchainError
from neonext_ms.common.processors import thread_count
from neonext_ms.common.text import format_size, plural

from .compare.parity import Parity
from .fold import FoldSummary
from .quantize.build import Quantization
from .quantize.prove import Proof
from .request import Request


@dataclass
class ExportedFile:
    """A file that an export wrote, or would write.

    Attributes:
        target: name of the target.
        image_size: height and width of the input.
        path: path of the file.
        parity: comparison with the original network; None for a file that cannot run here.
        details: other entries of the manifest.
    """

    target: str
    image_size: tuple[int, int]
    path: Path
    parity: Parity | None = None
    details: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        values = {"target": self.target, "file": self.path.name, "image_size": list(self.image_size), **self.details}
        if self.parity is not None:
            values["parity"] = self.parity.to_dict()
        return values

    def line(self, top1: bool = True) -> str:
        """Return the line that the command prints, with the agreement of the best classes if the outputs are logits."""
        text = f"{self.target:9} {self.path}"
        if self.parity is None:
            return text + (" (compiled, not run on a device)" if self.target == "om" else "")
        parity = self.parity
        text += (
            f" ({self.details['bytes'] / 1e6:.1f} MB): largest difference {parity.max_abs:.1e} of "
            f"{parity.max_logit:.2g}, relative L2 {parity.relative_l2:.1e}"
        )
        if top1:
            text += f", top-1 {parity.top1_agree}/{parity.samples}"
        if on_host := self.details.get("mindspore_lite", {}).get("parity"):
            text += f"\n          the same in MindSpore Lite on this machine: relative L2 {on_host['relative_l2']:.1e}"
        if layers := self.details.get("layers"):
            worst = sorted(layers, key=lambda layer: -layer["added"])[:3]
            text += "\n          most deviation in " + ", ".join(f"{w['name']} ({w['relative_l2']:.1e})" for w in worst)
        return text


@dataclass
class Report:
    """The files of an export and their parity; `str` gives the lines that the command prints.

    Attributes:
        request: the request.
        manifest: path of the manifest, `<name>.json`.
        metadata: model, sizes, preprocessing, labels, source and versions.
        folded: layers by kind before and after folding.
        nodes: ONNX nodes before and after folding.
        seconds: duration of each step.
        notes: messages to show to the user.
        exported: the files in order.
        reference: description of what they were compared with.
        quantization: scales of an 8-bit network and what they cost.
        proof: integers of both forms of the 8-bit network; of several image sizes, the last one.
        missing: error about a compiler that is not installed; everything else was written.
    """

    request: Request
    manifest: Path
    metadata: dict[str, Any]
    folded: FoldSummary
    nodes: tuple[int, int]
    seconds: dict[str, float]
    notes: Sequence[str] = ()
    exported: list[ExportedFile] = field(default_factory=list)
    reference: str = ""
    quantization: Quantization | None = None
    proof: Proof | None = None
    missing: ToolchainError | None = None

    @property
    def files(self) -> dict[str, Path]:
        """Path by target; of several image sizes, the last one."""
        return {file.target: file.path for file in self.exported}

    @property
    def parity(self) -> dict[str, Parity]:
        """Comparison with the original network by target; of several image sizes, the last one."""
        return {file.target: file.parity for file in self.exported if file.parity is not None}

    def to_dict(self) -> dict[str, Any]:
        """Return the manifest: plain values for JSON, the same for the same input, so without durations."""
        return {
            **self.metadata,
            "command": self.request.command,
            "folded": {**self.folded.to_dict(), "nodes_before": self.nodes[0], "nodes_after": self.nodes[1]},
            **self._int8(),
            "compared_with": self.reference,
            "files": [file.to_dict() for file in self.exported],
        }

    def _int8(self) -> dict[str, Any]:
        if self.quantization is None:
            return {}
        return {"int8": {**self.quantization.to_dict(), "integers": self.proof and self.proof.to_dict()}}

    def __str__(self) -> str:
        request, data, removed = self.request, self.metadata, self.folded.removed
        architecture = data["architecture"]
        numbers = {key: ",".join(map(str, architecture[key])) for key in ("per_stage_layers", "dims", "shifts")}
        sizes = dict.fromkeys(format_size(file.image_size) for file in self.exported)
        only_om = all(target.name == "om" for target in request.chosen)
        batch = str(request.fixed_batch or ("1" if only_om and not request.batch else "N"))
        several = f", N = {' or '.join(map(str, request.batch))}" if len(request.batch) > 1 else ""
        images = f" and {len(request.images)} images" if request.images else ""
        noise = next(iter(self.parity.values())).samples - len(request.images)
        lines = [
            f"model     {data['model'] or 'NeoNeXt'}: blocks {numbers['per_stage_layers']}, dims {numbers['dims']}, "
            f"kernels {architecture['kernel_spec']}, shifts {numbers['shifts']}, "
            f"activation {architecture['activation']}, {data['classes']} classes",
            f"input     {', '.join(f'{batch}x3x{size}' for size in sizes)}{several}",
            f"folded    {removed('batch_norm')} BatchNorms, {removed('scale')} layer scales, "
            f"{removed('neocell')} downsampling NeoCells, {removed('transpose')} transposes",
            f"nodes     {self.nodes[0]} before, {self.nodes[1]} after",
            *(self.quantization.lines() if self.quantization else ()),
            *([self.proof.line()] if self.proof else ()),
            f"compared  with {self.reference}, on {noise} noise inputs (seed {request.seed}){images}",
            *(file.line(not request.features_only) for file in self.exported),
            f"manifest  {self.manifest}",
            "seconds   "
            + ", ".join(f"{step} {value:.2f}" for step, value in self.seconds.items())
            + f" ({plural(thread_count(), 'thread')})",
        ]
        return "\n".join(lines)
