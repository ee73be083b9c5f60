"""A compiled OM file against the job that it was compiled for, by what the file says of itself."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from neonext_ms.runtime import om_file
from neonext_ms.runtime.om_file import BATCH_INPUT, OmFile, Tensor

from ..graph import INPUT
from .job import Job


def mismatch(om: OmFile, job: Job) -> str:
    """Return in what an OM file is not what a job asked for, to follow the file's name; empty if in nothing.

    Some releases do not record the device, which is not held against the file.
    """
    if om.encrypted:
        return "is encrypted, which was not asked for"
    definition = next((part for part in om.partitions if (part.model, part.kind) == (0, "MODEL_DEF")), None)
    if definition is None or not definition.size:
        return f"has {'no' if definition is None else 'an empty'} MODEL_DEF, the description of the model"
    if om.soc and om.soc.lower() not in (job.soc.name.lower(), job.soc.family):
        return f"is for {om.soc}, not for {job.soc.name}"
    if not om.inputs and definition.size > om_file.MAX_READ:
        return ""
    images = [tensor for tensor in om.inputs if tensor.name != BATCH_INPUT]
    asked = _input(job)
    if [(tensor.name, _kind(tensor), tensor.shape) for tensor in images] != [(asked.name, _kind(asked), asked.shape)]:
        found = ", ".join(f"{tensor.name} {tensor.describe()}" for tensor in images) or "none"
        return f"has other inputs than were asked for (got {found}, expected {asked.name} {asked.describe()})"
    if set(om.batches) != set(_batches(job)):
        found, expected = (", ".join(map(str, sizes)) or "none" for sizes in (om.batches, _batches(job)))
        return f"has other batch sizes than were asked for (got {found}, expected {expected})"
    return ""


def traces(job: Job) -> Iterator[tuple[str, str, list[str], str]]:
    """Yield what a script without a reader of OM files can look for.

    Yields:
        the number of a partition that a file may lack; bytes without which the partition says nothing about the matter;
        alternatives of the bytes of which it has to have one; and what is wrong otherwise. Bytes are in hexadecimal.
    """
    numbers = {kind: str(number) for number, kind in om_file.PARTITIONS.items()}
    # An entry of a map: a name, and as its value a message with a string.
    key = b"\x0a\x0bsoc_version\x12"
    family = job.soc.family
    names = (job.soc.name, job.soc.name.lower(), family, f"Ascend{family.removeprefix('ascend').upper()}")
    recorded = [key + bytes((len(name) + 2, 0x12, len(name))) + name.encode() for name in names]
    yield numbers["MODEL_DEF"], key.hex(), [entry.hex() for entry in recorded], f"it is not for {job.soc.name}"
    asked, sizes = _input(job), _batches(job)
    described = asked.name.encode() + struct.pack("<4q", *asked.shape)
    yield numbers["MODEL_INOUT_INFO"], "", [described.hex()], f"its input is not {asked.name} {asked.describe()}"
    if sizes:
        block = struct.pack(f"<III{len(sizes)}q", 2, 4 + 8 * len(sizes), len(sizes), *sizes)
        problem = f"its batch sizes are not {', '.join(map(str, sizes))}"
        yield numbers["MODEL_INOUT_INFO"], "", [block.hex()], problem


def _input(job: Job) -> Tensor:
    """Return the images that a job's model takes; the batch is -1 for several sizes."""
    if not job.options.aipp:
        return Tensor(INPUT, "float32", job.shape)
    feed = job.feed()
    return Tensor(INPUT, "uint8", (job.shape[0], feed["height"], feed["width"], 3))


def _batches(job: Job) -> tuple[int, ...]:
    """Return the batch sizes among which a job's model chooses; empty for one size."""
    return job.batch if len(job.batch) > 1 else ()


def _kind(tensor: Tensor) -> str:
    """Return the dtype of an input, which may be any in floating point where no device normalises."""
    return "float" if tensor.dtype.startswith("float") else tensor.dtype
