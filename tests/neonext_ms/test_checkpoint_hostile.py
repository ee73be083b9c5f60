"""Small checkpoints that ask for much: each ends soon, in little memory, and with this package's own error."""

from __future__ import annotations

import json
import struct
import time
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from neonext_ms.checkpoint import mindspore_ckpt, pytorch, safetensors_file
from neonext_ms.checkpoint.budget import NAME_LENGTH, STEPS, Budget
from neonext_ms.checkpoint.checkpoint import load_checkpoint, save_checkpoint
from neonext_ms.checkpoint.metadata import decode, encode
from neonext_ms.common.errors import InputError
from neonext_ms.models.architecture import make_architecture
from neonext_ms.models.registry import model_config
from pickles import Opcodes, field, tensor, text, write_archive

SECONDS, MEGABYTES = 10, 400
PRIME = (1 << 61) - 1
TINY = make_architecture(3, (0, 1, 0, 0), (2, 2, 2, 2), kernel_spec="2", shifts=None)


def weights(architecture=TINY) -> dict[str, np.ndarray]:
    return {name: np.ones(shape, np.float32) for name, shape in architecture.tensors().items()}


def archive(path: Path, body: bytes, extra: dict[str, bytes] | None = None) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", b"\x80\x02" + body)
        file.writestr("a/data/0", bytes(24))
        for name, data in (extra or {}).items():
            file.writestr(name, data)
    return path


def number(value: int) -> bytes:
    size = value.bit_length() // 8 + 1
    return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)


def header(values: object, body: bytes = b"") -> bytes:
    encoded = values if isinstance(values, bytes) else json.dumps(values).encode()
    return struct.pack("<Q", len(encoded)) + encoded + body


def ckpt_value(name: str, rest: bytes = b"") -> bytes:
    return field(1, field(1, name.encode()) + field(2, b"\x08\x01" + rest + field(2, b"Float32") + field(3, bytes(4))))


def rejected(path, *words: str, read=load_checkpoint) -> str:
    start = time.process_time()
    with pytest.raises(InputError) as caught:
        read(path)
    assert time.process_time() - start < SECONDS
    message = str(caught.value)
    assert str(path) in message and len(message) < 100_000 and all(word in message for word in words)
    return message


REPEATED = b"](" + b"N" * 100_000 + b"eq\x000"
PAIRS = b"](" + b"K\x01N\x86q\x05" + b"h\x05" * 100_000 + b"eq\x000"
MAPPING = b"}(" + b"".join(b"J" + struct.pack("<i", i) + b"N" for i in range(50_000)) + b"uq\x000"
PICKLES = {
    "Size of a tensor of empty rows": b"ctorch\nSize\n" + tensor(shape=(1 << 28, 0), strides=(0, 0)) + b"\x85R.",
    "Size of one list, again and again": b"ctorch\nSize\nq\x010" + REPEATED + b"h\x01h\x00\x85R" * 50_000 + b".",
    "OrderedDict of one list, again": b"ccollections\nOrderedDict\nq\x010"
    + PAIRS
    + b"h\x01h\x00\x85R0" * 50_000
    + b".",
    "Counter of one dictionary, again": b"ccollections\nCounter\nq\x010" + MAPPING + b"h\x01h\x00\x85R" * 50_000 + b".",
    "integer keys of one hash": b"}(" + b"".join(number(i * PRIME) + b"N" for i in range(1, 60_000)) + b"u.",
    "integer keys far apart": b"}(" + b"".join(number(i << 40) + b"N" for i in range(1, 60_000)) + b"u.",
    "float keys of one hash": b"}("
    + b"".join(b"G" + struct.pack(">d", float(i * PRIME)) + b"N" for i in range(1, 60_000))
    + b"u.",
    "tuple keys of one hash": b"}(" + b"".join(number(i * PRIME) + b"\x85N" for i in range(1, 60_000)) + b"u.",
    "set of one hash": b"c__builtin__\nset\n](" + b"".join(number(i * PRIME) for i in range(1, 60_000)) + b"e\x85R.",
    "memo of one hash": b"N" + b"".join(b"p%d\n" % (i * PRIME) for i in range(1, 60_000)) + b".",
    "memo at a far position": b"Nr\xff\xff\xff\xff.",
    "memo at a negative position": b"Np-1\n.",
    "memo never set": b"Nr\x05\x00\x00\x00h\x04.",
    "a million dictionaries": b"(" + b"}" * 1_500_000 + b"t.",
    "a million placeholders": b"cx\ny\nq\x000(" + b"h\x00)R" * 500_000 + b"t.",
    "a name of getattr that grows": b"cbuiltins\ngetattr\nq\x000cx\ny\n"
    + b"q\x010(h\x00(h\x01"
    + text("z" * 999)
    + b"tR",
    "nested rebuilds": b"ctorch._tensor\n_rebuild_from_type_v2\nq\x000)" + b"q\x010(h\x00Nh\x01NtR" * 3 + b".",
    "one tensor of many sizes": b"}" + text("w") + tensor(shape=(1 << 40, 6), strides=(0, 1)) + b"s.",
    "containers within each other": b"".join(b"}(" + b"".join(text(str(i)) + b"h\x00" for i in range(0)) for _ in "a")
    + b"}q\x00("
    + text("a")
    + b"h\x00u.",
    "lines without end": b"c" + b"a" * 100_000,
}


@pytest.mark.parametrize("name", PICKLES)
def test_pickles_that_ask_for_much(tmp_path, name):
    rejected(archive(tmp_path / "x.pt", PICKLES[name]))


@pytest.mark.parametrize("name", ["Size of one list, again and again", "OrderedDict of one list, again"])
def test_the_memory_is_bounded(tmp_path, name):
    path = archive(tmp_path / "x.pt", PICKLES[name])
    tracemalloc.start()
    try:
        with pytest.raises(InputError):
            load_checkpoint(path)
        assert tracemalloc.get_traced_memory()[1] < MEGABYTES << 20
    finally:
        tracemalloc.stop()


def test_containers_that_share_their_parts(tmp_path):
    inner = {str(i): None for i in range(100)}
    for _ in range(8):
        inner = {str(i): inner for i in range(100)}
    path = write_archive(tmp_path / "x.pt", inner)
    assert path.stat().st_size < 20_000
    rejected(path, "too many steps")


def test_long_keys_are_not_copied_again_and_again(tmp_path):
    path = write_archive(tmp_path / "x.pt", {"k" * 4_000_000: {str(i): i for i in range(50_000)}})
    assert "no tensors by name" in rejected(path)


@pytest.mark.parametrize(
    "name", ["module." * 200_000 + "x", "a" * (1 << 20), "stage_1.0." * 100_000, "\x1b" * 5000, "." * 9999]
)
def test_long_names_in_every_format(tmp_path, name):
    rejected(archive(tmp_path / "x.pt", b"}(" + text(name) + tensor() + b"u."), "too long", "expected at most 1,000")
    entry = {name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    (tmp_path / "x.safetensors").write_bytes(header(entry, bytes(4)))
    rejected(tmp_path / "x.safetensors", "too long")
    (tmp_path / "x.ckpt").write_bytes(ckpt_value(name))
    message = rejected(tmp_path / "x.ckpt", "too long")
    assert message.isprintable()
    nested = {"k" * 400: {"l" * 400: {"m" * 400: np.ones(2, np.float32)}}}
    rejected(write_archive(tmp_path / "y.pt", nested), "too long")


def test_names_just_below_the_limit_are_read(tmp_path):
    prefix = "p" * (NAME_LENGTH - 60) + "."
    path = write_archive(tmp_path / "x.pt", {prefix + name: array for name, array in weights().items()})
    assert len(load_checkpoint(path).arrays) == len(TINY.tensors())


def test_headers_of_safetensors(tmp_path):
    path = tmp_path / "x.safetensors"
    entry = {"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    path.write_bytes(header({"__metadata__": None, **entry}, bytes(4)))
    assert safetensors_file.read(path)[1] == {}
    path.write_bytes(header({"__metadata__": None}))
    rejected(path, "no tensors by name")
    wrong = [
        header({"__metadata__": [], **entry}, bytes(4)),
        header({"__metadata__": 5, **entry}, bytes(4)),
        header({"__metadata__": {"neonext_ms": 5}, **entry}, bytes(4)),
        header({"__metadata__": {"neonext_ms": None}, **entry}, bytes(4)),
        header(b"[" + b"[]," * 100_000 + b"[]]"),
        header(b'{"a":[' + b"[]," * 2_600_000 + b"[]]}"),
        header(b'{"a":[' + b"{}," * 10_000_000 + b"{}]}"),
        header(b'{"a":' + b"9" * 7_000_000 + b"}"),
        header(b'{"a":' + b"[" * 7_000_000),
        header({"w": {"dtype": "F32", "shape": [1 << 63] * 50_000 + [0], "data_offsets": [0, 0]}}),
        header({"w": {"dtype": "F32", "shape": [0] + [1 << 63] * 50_000, "data_offsets": [0, 0]}}),
        header({"w": {"dtype": "F32", "shape": [1] * 50_000, "data_offsets": [0, 4]}}, bytes(4)),
        header({"w": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, bytes(4)),
        header({"w": {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}}, bytes(4)),
        header({"w": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, bytes(4)),
        header({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 1 << 70]}}, bytes(4)),
        header({"w": {"dtype": "F32", "shape": None, "data_offsets": None}}, bytes(4)),
        header({"w": []}),
        header([]),
        header(b'"text"' + b" " * 5),
    ]
    for data in wrong:
        path.write_bytes(data)
        rejected(path)


def test_a_name_given_twice_in_a_header(tmp_path):
    """The last one would be taken: tensors or shifts other than another reader of the file takes."""
    path = tmp_path / "x.safetensors"
    entry = json.dumps({"dtype": "F32", "shape": [1], "data_offsets": [0, 4]})
    path.write_bytes(header(f'{{"w": {entry}, "w": {entry}}}'.encode(), bytes(4)))
    rejected(path, "'w' is given twice")
    with pytest.raises(InputError, match="'shifts' is given twice"):
        decode('{"shifts": [1, 1, 0, 0], "shifts": [1, 1, 1, 0]}', "x")


def test_many_tensors_in_a_header(tmp_path):
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    path = tmp_path / "x.safetensors"
    path.write_bytes(header({f"{i}": empty for i in range(100_000)}))
    rejected(path)
    path.write_bytes(header({f"{i}.num_batches_tracked": empty for i in range(60_000)}))
    rejected(path)
    path.write_bytes(header({f"g{i}.stem.conv.weight": empty for i in range(15_000)}))
    rejected(path, "several sets of weights")


def test_fields_of_mindspore(tmp_path):
    path = tmp_path / "x.ckpt"
    for data in (
        ckpt_value("w", b"\x78\x01" * 800_000),
        ckpt_value("w", b"\x7a\x00" * 800_000),
        b"\x0a\x00" * 1_000_000,
        field(1, field(1, b"w") * 800_000),
        b"".join(ckpt_value(str(i)) for i in range(100_000)),
        ckpt_value("w", b"\x08\x01" * 1000),
        ckpt_value("w", field(1, b"\x01" * 1_000_000)),
    ):
        path.write_bytes(data)
        rejected(path)
    long = b"a\0\0\0" * (5 << 20)
    path.write_bytes(field(1, field(1, b"neonext_ms") + field(2, b"\x08\x00" + field(2, b"str") + field(3, long))))
    rejected(path, "more than")


def test_zip_archives_of_many_entries(tmp_path):
    extra = {f"a/data/{i}": b"" for i in range(1, 5000)}
    assert load_checkpoint_of_entries(tmp_path, extra) == 5001
    with zipfile.ZipFile(tmp_path / "y.pt", "w") as file:
        entry = zipfile.ZipInfo("a/data.pkl")
        file.writestr(entry, b"\x80\x02}.")
    data = (tmp_path / "y.pt").read_bytes()
    at = data.index(b"PK\x01\x02")
    central, end = data[at : data.index(b"PK\x05\x06")], bytearray(data[data.index(b"PK\x05\x06") :])
    directory = central * 65_535
    struct.pack_into("<HHII", end, 8, 65_535, 65_535, len(directory), at)
    (tmp_path / "y.pt").write_bytes(data[:at] + directory + end)
    rejected(tmp_path / "y.pt", "twice", read=pytorch.read)
    # Extra fields of no content, 16,000 in every entry.
    padded = bytearray(central)
    struct.pack_into("<H", padded, 30, 65_532)
    directory = (bytes(padded) + bytes(65_532)) * 300
    struct.pack_into("<HHII", end, 8, 300, 300, len(directory), at)
    (tmp_path / "z.pt").write_bytes(data[:at] + directory + end)
    rejected(tmp_path / "z.pt", "too many steps", read=pytorch.read)
    record = archive(tmp_path / "w.pt", b"}.", {"a/extra/neonext_ms.json": bytes(5 << 20)})
    rejected(record, "neonext_ms.json is too long")


def load_checkpoint_of_entries(folder: Path, extra: dict[str, bytes]) -> int:
    path = archive(folder / "x.pt", b"}" + text("w") + tensor() + b"s.", extra)
    assert set(pytorch.read(path)[0]) == {"w"}
    with zipfile.ZipFile(path) as file:
        return len(file.namelist())


def test_many_names_for_the_bytes_of_one_tensor(tmp_path):
    """A NeoNeXt whose blocks share their weights takes little in the file and much in memory."""
    architecture = make_architecture(3, (90, 1, 1, 1), (320, 320, 320, 320), kernel_spec="7", shifts=None)
    shared: dict[tuple[int, ...], Opcodes] = {}
    names: dict[str, Opcodes] = {}
    for name, shape in architecture.tensors().items():
        if shape not in shared:
            strides = [int(np.prod(shape[axis + 1 :])) for axis in range(len(shape))]
            at = len(shared) + 10
            shared[shape] = Opcodes(tensor("0", 320 * 1280, 0, shape, strides) + b"r" + struct.pack("<I", 500_000 + at))
            names[name] = shared[shape]
        else:
            names[name] = Opcodes(b"j" + shared[shape][-4:])
    path = write_archive(tmp_path / "x.pt", names)
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("archive/data/0", np.ones(320 * 1280, np.float32).tobytes())
    assert path.stat().st_size < 2 << 20
    rejected(path, "expanded to more than 64 MiB")


def test_metadata_is_as_long_as_it_can_be_read(tmp_path):
    with pytest.raises(InputError, match=r"x\.pt.*metadata: too long"):
        save_checkpoint(tmp_path / "x.pt", weights(), {"other": "a" * (5 << 20)})
    assert not (tmp_path / "x.pt").exists()
    labels = ["\u732b" * 12 + str(i) for i in range(21_841)]
    assert len(encode({"labels": labels})) < 4 << 20
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(InputError, match="shifts must be"):
        encode({"shifts": deep})
    for _ in range(99_900):
        (deep,) = deep
    with pytest.raises(InputError, match="nested more than 64 levels"):
        encode({"other": deep})
    for value in ("[" * 900 + "]" * 900, '{"a":' * 900 + "1" + "}" * 900):
        pytorch.write(tmp_path / "y.pt", weights(), {"neonext_ms.json": f'{{"shifts": {value}}}'.encode()})
        rejected(tmp_path / "y.pt", "nested more than 64 levels")


@pytest.mark.parametrize("read", [pytorch.read, mindspore_ckpt.read, safetensors_file.read])
def test_one_budget_for_a_file(tmp_path, read):
    suffix = {pytorch.read: ".pt", mindspore_ckpt.read: ".ckpt", safetensors_file.read: ".safetensors"}[read]
    path = tmp_path / f"x{suffix}"
    if suffix == ".ckpt":
        path.write_bytes(b"".join(ckpt_value(str(i)) for i in range(100)))
    else:
        save_checkpoint(path, weights())
    budget = Budget(str(path), path.stat().st_size)
    read(path, budget)
    assert 100 < STEPS - budget.steps < 10_000
    budget.steps = 50
    rejected(path, "too many steps", read=lambda path: read(path, budget))


def test_the_largest_model_uses_a_small_part_of_the_budget(tmp_path):
    architecture = model_config("neonext_l").architecture
    arrays = {name: np.broadcast_to(np.float32(1), shape) for name, shape in architecture.tensors().items()}
    scalar = tensor("0", 1, 0, (), ())
    opcodes = {
        name: Opcodes(scalar.replace(b"(t(t\x89", b"(" + b"".join(map(number, array.shape)) + b"t("
        + b"".join(map(number, [0] * array.ndim)) + b"t\x89"))
        for name, array in arrays.items()
    }  # fmt: skip
    path = write_archive(tmp_path / "x.pt", {"model": opcodes})
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("archive/data/0", np.ones(1, np.float32).tobytes())
    budget = Budget(str(path), 1 << 30)
    tree, _ = pytorch.read(path, budget)
    assert len(tree["model"]) == len(arrays) and STEPS - budget.steps < STEPS // 8
