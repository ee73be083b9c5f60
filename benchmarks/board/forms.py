"""The forms of a network that a kit compares on a board: one table. A new form is a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

LEVELS = ("quick", "full")


@dataclass(frozen=True)
class Form:
    """A way to write and compile the network.

    Attributes:
        name: name in files and reports: letters, digits and `_`.
        summary: description in a few words.
        level: smallest level of a kit that has it.
        request: options of `export.request.Request` that make its ONNX file; forms with the same share one.
        options: options of `export.om.options.OmOptions`.
        dynamic: whether one file takes all batch sizes; otherwise every batch size has a file of its own.
        dtype: dtype of the computation, for the tolerance and the device model: "float16" or "int8".
        export: arguments of neonext-export that make this form, besides those of the source.
    """

    name: str
    summary: str
    level: str = "quick"
    request: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    dynamic: bool = False
    dtype: str = "float16"
    export: str = ""

    @property
    def operator(self) -> bool:
        """Return whether it needs the AscendC operator package."""
        return self.request.get("neocell") == "custom"

    @property
    def gelu(self) -> str:
        """The form of GELU, for the tolerance."""
        return self.request.get("gelu", "auto")

    @property
    def aipp(self) -> bool:
        """Return whether the device normalizes, from uint8 images."""
        return bool(self.options.get("aipp"))

    def batches(self, sizes: Sequence[int]) -> list[tuple[int, ...]]:
        """Return the batch sizes of each of its OM files."""
        # ATC wants at least two sizes for a file of several.
        return [tuple(sizes)] if self.dynamic and len(sizes) > 1 else [(size,) for size in sizes]


FORMS = (
    Form("matmul", "NeoCells as two products"),
    Form("padded", "the same on maps padded to 16", request={"neocell": "padded"}, export="--neocell padded"),
    Form("custom", "NeoCells as the AscendC operator", request={"neocell": "custom"}, export="--neocell custom"),
    Form("aipp", "normalized on the device, from uint8 images", options={"aipp": True}, export="--aipp"),
    Form("dynamic", "one file for all batch sizes", level="full", dynamic=True),
    Form("tanh", "GELU in its tanh form", level="full", request={"gelu": "tanh"}, export="--gelu tanh"),
    Form(
        "mixed", "operators in float32 where ATC prefers it", level="full",
        options={"precision_mode": "mixed_float16"}, export="--precision mixed_float16",
    ),
    Form(
        "int8", "layers in 8 bit, calibrated on the labelled images", level="full", dtype="int8",
        export="--quantize int8",
    ),
)  # fmt: skip


def forms_of(level: str, operator: bool = True, images: bool = True) -> list[Form]:
    """Return the forms of a level.

    Args:
        level: one of LEVELS.
        operator: whether forms that need the operator package are wanted.
        images: whether there are images, on which forms of 8 bit are calibrated.
    """
    return [
        form
        for form in FORMS
        if LEVELS.index(form.level) <= LEVELS.index(level)
        and (operator or not form.operator)
        and (images or form.dtype != "int8")
    ]
