"""Options of the target `om`: what can be asked of a compiler for Atlas boards."""

from __future__ import annotations

from dataclasses import dataclass

VIAS = ("atc", "lite")
PRECISION_MODES = ("fp16", "mixed_float16", "mixed_bfloat16", "origin", "cube_fp16in_fp32out")
# Families of ops/soc.py that have the operator of `--gelu npu` (hicann/ops-nn e5c3fa9327ea,
# activation/gelu_v2/docs/aclnnGeluV2.md; it excludes the 310B).
NPU_GELU_FAMILIES = ("ascend310p", "ascend910", "ascend910b", "ascend910_93")
# Seconds. A compiler that takes longer has most likely hung.
TIMEOUT = 3600.0


@dataclass(frozen=True)
class OmOptions:
    """Options of the target `om`; `job.Job.check` validates them.

    Attributes:
        soc: device name, as `atc --soc_version` takes it.
        precision_mode: one of PRECISION_MODES, in the words of `atc --precision_mode_v2`.
        aipp: whether the device normalizes; the host then feeds uint8 images.
        keep_dtype: nodes that keep the dtype of the ONNX graph, by name or as `OpType::Name` in CANN's names.
        via: compiler: "atc", or "lite" for the converter of MindSpore Lite.
        dry_run: whether commands are printed and nothing is written.
        timeout: time limit for each file in seconds, or None for no limit.
        compile: whether to compile where the compiler is installed; the script is written otherwise.
        extra: more arguments for `atc`, each as `--name=value`. Paths in them must be absolute.
    """

    soc: str
    precision_mode: str = "fp16"
    aipp: bool = False
    keep_dtype: tuple[str, ...] = ()
    via: str = "atc"
    dry_run: bool = False
    timeout: float | None = TIMEOUT
    compile: bool = True
    extra: tuple[str, ...] = ()
