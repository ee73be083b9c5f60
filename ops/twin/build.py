"""Compilation of a kernel against the headers of the simulator; objects are kept in the user's cache folder."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from neonext_ms.common.errors import InputError
from neonext_ms.common.files import explained

from ..compiled import attempt, check_written, compiler, compiler_version, kept_object, messages
from .host import has_host, without_host

INCLUDE = Path(__file__).with_name("include")

# Architecture -> macros that the device's compiler defines for it.
_ARCH_DEFINES = {
    2002: {"__CCE_AICORE__": "200", "__DAV_M200__": "1"},
    2201: {"__CCE_AICORE__": "220", "__DAV_C220__": "1", "__DAV_C220_VEC__": "1", "__DAV_VEC__": "1"},
    3002: {"__CCE_AICORE__": "300", "__DAV_M300__": "1"},
}

# Results have to be the same on every host: no fused multiply-add, no fast math. Two kernels in one process each need
# their own state: no unique symbols.
_FLAGS = (
    *("-std=c++17", "-O2", "-g1", "-shared", "-fPIC", "-ffp-contract=off", "-fvisibility=hidden", "-fno-gnu-unique"),
    *("-fno-strict-aliasing", "-w"),
)

# Headers of AscendC that kernels include by name. Each forwards to kernel_operator.h, which has everything that the
# simulator implements of them.
_PARTS = {
    "": ("kernel_basic_intf kernel_tensor kernel_tpipe kernel_type kernel_common kernel_vec_intf",),
    "activation": ("geglu gelu logsoftmax reglu sigmoid silu simplesoftmax softmax swiglu swish",),
    "filter": ("dropout",),
    "index": ("arithprogression",),
    "math": (
        "acos acosh asin asinh atan atanh axpy bitwise_and bitwise_not bitwise_or bitwise_xor ceil clamp cos cosh",
        "cumsum digamma erf erfc exp floor fma fmod frac is_finite is_inf is_nan lgamma log logical_and logical_not",
        "logical_or logical_xor power rint round sign sin sincos sinh tan tanh trunc where xor",
    ),
    "normalization": ("batchnorm deepnorm layernorm layernormgrad normalize rmsnorm welfordfinalize",),
    "pad": ("broadcast pad",),
    "quantization": ("ascend_antiquant ascend_dequant ascend_quant quantize",),
    "reduce": ("mean reduce sum",),
    "select": ("selectwithbytesmask",),
    "sort": ("sort topk",),
    "transpose": ("confusion_transpose transdata",),
    "utils/debug": ("asc_assert asc_dump asc_printf asc_time",),
    "utils/std": ("algorithm cmath tuple type_traits utility",),
}
_INTERFACES = (
    "atomic block_sync cache common data_copy determine_compute_sync dump_tensor list_tensor proposal scalar "
    "set_atomic swap_mem sys_var utils vec_binary vec_binary_scalar vec_brcb vec_cmpsel vec_createvecindex "
    "vec_duplicate vec_gather vec_gather_mask vec_mulcast vec_reduce vec_scatter vec_ternary_scalar vec_transpose "
    "vec_unary vec_vconv vec_vpadding"
)


def build(
    source: Path,
    arch: int,
    defines: Mapping[str, str | int | None],
    include: Sequence[Path],
    entry: str | None = None,
) -> Path:
    """Return the shared object of a kernel, compiled unless an earlier call did.

    Args:
        source: C++ file of the kernel. If it also contains host code (`<<<>>>`, acl functions), the bodies of the host
            functions are left out.
        arch: `__NPU_ARCH__`.
        defines: preprocessor names and values; None defines a name without a value.
        include: folders searched for `#include` before those of the simulator.
        entry: expression that names one function; the object then has an entry point that knows its parameter types.

    Raises:
        InputError: the architecture is unknown, or the source cannot be read or does not compile.
        ToolchainError: there is no C++ compiler.
    """
    if arch not in _ARCH_DEFINES:
        supported = ", ".join(map(str, _ARCH_DEFINES))
        raise InputError(f"the simulator has no architecture {arch}; it supports {supported}")
    with explained(source):
        text = source.read_text(encoding="utf-8", errors="replace")
    command = compiler()
    macros = {"__NPU_ARCH__": arch, **_ARCH_DEFINES[arch], **defines}
    options = [
        *_FLAGS,
        *(f"-D{name}" if value is None else f"-D{name}={value}" for name, value in macros.items()),
        *(f"-I{folder}" for folder in [*include, INCLUDE]),
    ]
    key = _digest(compiler_version(command), *command, *options, str(source), entry or "")

    def compile_in(stage: Path) -> tuple[Path, Mapping[str, str]]:
        staged = stage / "kernel.so"
        unit = source
        if entry is not None or has_host(text):
            unit = stage / "kernel.cpp"
            unit.write_text(_unit(source, text, entry), encoding="utf-8")
        quoted = ["-iquote", str(source.parent), "-idirafter", str(_forward(stage)), "-x", "c++", str(unit)]
        return staged, _compile([*command, *options, *quoted, "-o", str(staged)], source, stage)

    def current(files: Mapping[str, str]) -> bool:
        # The key does not cover headers, which only the compiler knows.
        return all(_file_digest(path) == digest for path, digest in files.items())

    return kept_object("twin", key, compile_in, current)


def _unit(source: Path, text: str, entry: str | None) -> str:
    """Return the text to compile: the kernel without its host code, and the typed entry point."""
    quoted = json.dumps(str(source), ensure_ascii=False)
    kernel = f"#line 1 {quoted}\n{without_host(text)}\n" if has_host(text) else f"#include {quoted}\n"
    return kernel if entry is None else f"{kernel}#line 1 {quoted}\nNEONEXT_TWIN_ENTRY({entry})\n"


def _forward(stage: Path) -> Path:
    """Write a folder of headers that each include kernel_operator.h, and return it."""
    folder = stage / "include"
    names = [f"{place}kernel_operator_{name}_intf" for name in _INTERFACES.split() for place in ("", "basic_api/")]
    for part, rows in _PARTS.items():
        for name in " ".join(rows).split():
            if not part:
                names += [name, f"basic_api/{name}"]
            elif part.startswith("utils"):
                names.append(f"{part}/{name}")
            else:
                old = name.replace("_", "") if part == "math" else name
                names += [f"adv_api/{part}/{name}", f"lib/{part}/{name}", f"lib/{part}/kernel_operator_{old}_intf"]
    for name in names:
        path = folder / f"{name}.h"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('#include "kernel_operator.h"\n')
    return folder


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _file_digest(path: str | os.PathLike) -> str | None:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:32]
    except OSError:
        return None


def _compile(command: list[str], source: Path, stage: Path) -> dict[str, str]:
    """Compile and return the digest of every file that the compiler read, except the system's headers."""
    depends = stage / "depends"
    done = attempt([*command, "-MMD", "-MF", str(depends), "-MT", "object"], stage)
    if done.returncode != 0:
        raise InputError(f"{source} does not compile against the headers of the simulator:{messages(done)}")
    check_written(command, depends, Path(command[-1]))
    listed = depends.read_text().replace("\\\n", " ").partition(":")[2]
    names = [name.replace("\\ ", " ") for name in re.findall(r"(?:\\ |\S)+", listed)]
    names = [name for name in names if not Path(name).is_relative_to(stage)]
    return {name: _file_digest(name) or "" for name in [str(source), *names]}
