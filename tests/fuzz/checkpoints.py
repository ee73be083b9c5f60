"""Small checkpoints of every format, damaged in structured ways."""

from __future__ import annotations

import json
import pickle
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random

import numpy as np
from mutate import mutate_bytes, mutate_protobuf, mutate_value


def network() -> tuple[dict[str, np.ndarray], dict]:
    """Return the weights of the smallest NeoNeXt, and metadata."""
    from neonext_ms.models.architecture import make_architecture
    from neonext_ms.models.initialization import initial_arrays

    architecture = make_architecture(num_classes=2, per_stage_layers=(1, 0, 0, 0), dims=(2, 2, 2, 2), kernel_spec="2")
    arrays = initial_arrays(architecture, rng=np.random.RandomState(0))
    return arrays, {"shifts": [1, 1, 1, 0], "image_size": [32, 32], "labels": ["a", "b"]}


@cache
def seed(suffix: str) -> bytes:
    """Return a valid checkpoint in the format of a suffix."""
    from neonext_ms.checkpoint.checkpoint import save_checkpoint

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"seed{suffix}"
        save_checkpoint(path, *network())
        return path.read_bytes()


def pytorch(rng: Random) -> bytes:
    """Mutate the pickle inside the archive and pack it again, or the archive."""
    from neonext_ms.checkpoint.pytorch_zip import StoredZip, write_zip

    content = seed(".pt")
    if rng.random() < 0.2:
        return mutate_bytes(rng, content)
    archive = StoredZip(memoryview(content), "seed")
    records = {name: bytes(archive.read(name)) for name in archive.entries}
    name = rng.choice(["archive/data.pkl"] * 6 + list(records))
    records[name] = mutate_bytes(rng, records[name], records["archive/data.pkl"])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "damaged.pt"
        write_zip(path, records)
        return path.read_bytes()


def legacy(rng: Random) -> bytes:
    """Mutate a file in PyTorch's older format: pickles of plain values, then tensors."""
    parts = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, {"a": [1, (2, 3)], "b": {"c": None}}, ["0"]]
    at = rng.randrange(len(parts))
    if rng.random() < 0.5:
        parts[at] = mutate_value(rng, parts[at], depth=20)
    content = b"".join(pickle.dumps(part, rng.choice((0, 1, 2, 4))) for part in parts)
    return mutate_bytes(rng, content) if rng.random() < 0.5 else content


def mindspore(rng: Random) -> bytes:
    """Mutate the protobuf message of MindSpore."""
    content = mutate_protobuf(rng, seed(".ckpt"))
    return mutate_bytes(rng, content) if rng.random() < 0.1 else content


def safetensors(rng: Random) -> bytes:
    """Mutate the JSON header."""
    content = seed(".safetensors")
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    if rng.random() < 0.5:
        header["__metadata__"] = mutate_value(rng, header["__metadata__"])
    else:
        header = mutate_value(rng, header)
    header = json.dumps(header).encode()
    length = len(header) if rng.random() < 0.9 else rng.choice((0, 2, 1 << 20, (1 << 40) - 1))
    mutated = length.to_bytes(8, "little") + header + content[8 + size :]
    return mutate_bytes(rng, mutated) if rng.random() < 0.2 else mutated


FORMATS: dict[str, Callable[[Random], bytes]] = {
    "zip.pt": pytorch, "legacy.pt": legacy, "x.ckpt": mindspore, "x.safetensors": safetensors,
}  # fmt: skip


def read(path: Path) -> object:
    """Load a checkpoint as every command does."""
    from neonext_ms.checkpoint.checkpoint import load_checkpoint

    return load_checkpoint(path).float32()
