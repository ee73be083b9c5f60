"""Reading and writing `.pt` without PyTorch: what it must read, what it must reject, what it must never run."""

from __future__ import annotations

import io
import os
import pickle
import pickletools
import random
import struct
import tracemalloc
import zipfile
from collections import OrderedDict
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from neonext_ms.checkpoint import pytorch
from neonext_ms.common.errors import InputError
from pickles import number, numbers, state_dict, storage, tensor, text

CLASSES = {
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "float32": "FloatStorage",
    "float64": "DoubleStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
    "int16": "ShortStorage",
    "int32": "IntStorage",
    "int64": "LongStorage",
    "bool": "BoolStorage",
}


SIX = np.arange(6, dtype=np.float32)


def make_zip(path, body: bytes, storages=None, order=None, method=zipfile.ZIP_STORED, extra=()) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("a/data.pkl", body)
        if order:
            archive.writestr("a/byteorder", order)
        for key, data in (storages or {"0": SIX.tobytes()}).items():
            archive.writestr(f"a/data/{key}", data)
        archive.writestr("a/version", "3\n")
        for name, data in extra:
            archive.writestr(name, data)
    return path


def make_legacy(path, body: bytes, storages: dict[str, tuple[int, bytes]]) -> Path:
    head = b"\x80\x02\x8a\x0a" + (0x1950A86A20F9469CFC6C).to_bytes(10, "little") + b"."
    head += pickle.dumps(1001, 2) + pickle.dumps({"protocol_version": 1001, "little_endian": True}, 2)
    tail = b"".join(struct.pack("<q", count) + data for count, data in storages.values())
    path.write_bytes(head + body + pickle.dumps(list(storages), 2) + tail)
    return path


def tree_of(path):
    return pytorch.read(path)[0]


def rejected(path, *words: str) -> str:
    with pytest.raises(InputError) as caught:
        tree_of(path)
    message = str(caught.value)
    assert str(path) in message
    for word in words:
        assert word in message
    return message


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """A file that exists as soon as anything hostile has run."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path / "canary"
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("name", CLASSES)
def test_every_dtype_round_trips_bit_for_bit(tmp_path, name):
    dtype = np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
    values = {
        "a": np.arange(-3, 9).astype(dtype).reshape(3, 4),
        "scalar": np.array(1, dtype),
        "none": np.zeros((0, 2), dtype),
    }
    pytorch.write(tmp_path / "x.pt", values)
    read = tree_of(tmp_path / "x.pt")
    assert list(read) == list(values)
    for key, value in values.items():
        assert read[key].dtype == dtype and read[key].shape == value.shape
        assert read[key].tobytes() == value.tobytes() and not read[key].flags.writeable


def test_written_pickle_is_plain_protocol_2_and_the_same_every_time(tmp_path):
    tensors = {"a": np.ones((2, 3), np.float32), "n": np.array(7)}
    for name in ("one.pt", "two.pt"):
        pytorch.write(tmp_path / name, tensors, {"note.json": b"{}"})
    assert (tmp_path / "one.pt").read_bytes() == (tmp_path / "two.pt").read_bytes()
    with zipfile.ZipFile(tmp_path / "one.pt") as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        assert names == [
            f"archive/{n}" for n in ("data.pkl", "byteorder", "data/0", "data/1", "version", "extra/note.json")
        ]
        assert archive.read("archive/version") == b"3\n"
        output = io.StringIO()
        pickletools.dis(archive.read("archive/data.pkl"), output)
    assert "highest protocol among opcodes = 2" in output.getvalue()
    assert pytorch.read(tmp_path / "one.pt")[1] == {"note.json": b"{}"}
    array = tree_of(tmp_path / "one.pt")["a"]
    assert array.ctypes.data % 64 == 0 and array.base is not None


def test_non_contiguous_arrays_are_written_in_order(tmp_path):
    values = np.arange(12, dtype=np.float32).reshape(3, 4).T
    pytorch.write(tmp_path / "x.pt", {"a": values})
    np.testing.assert_array_equal(tree_of(tmp_path / "x.pt")["a"], values)


def test_a_type_that_pytorch_lacks_is_rejected(tmp_path):
    with pytest.raises(InputError, match="w: cannot be written as complex128"):
        pytorch.write(tmp_path / "x.pt", {"w": np.zeros(2, complex)})


def test_views_shared_transposed_expanded(tmp_path):
    body = state_dict(
        whole=tensor(shape=(2, 3), strides=(3, 1)),
        turned=tensor(shape=(3, 2), strides=(1, 3)),
        part=tensor(offset=2, shape=(2,), strides=(2,)),
        expanded=tensor(offset=1, shape=(4, 2), strides=(0, 1)),
        empty=tensor(shape=(0, 5), strides=(5, 1)),
        scalar=tensor(offset=5, shape=(), strides=()),
    )
    read = tree_of(make_zip(tmp_path / "x.pt", body))
    whole = SIX.reshape(2, 3)
    np.testing.assert_array_equal(read["whole"], whole)
    np.testing.assert_array_equal(read["turned"], whole.T)
    np.testing.assert_array_equal(read["part"], [2, 4])
    np.testing.assert_array_equal(read["expanded"], [[1, 2]] * 4)
    assert read["empty"].shape == (0, 5) and read["scalar"] == 5 and read["scalar"].shape == ()
    assert np.shares_memory(read["whole"], read["turned"])


def test_containers_parameters_and_old_rebuilds(tmp_path):
    parameter = b"ctorch._utils\n_rebuild_parameter\n(" + tensor() + b"\x88ccollections\nOrderedDict\n)RtR"
    first = b"ctorch._utils\n_rebuild_tensor\n(" + storage() + number(0) + numbers((6,)) + numbers((1,)) + b"tR"
    untyped = (
        b"ctorch._utils\n_rebuild_tensor_v3\n(("
        + text("storage")
        + b"ctorch.storage\nUntypedStorage\n"
        + text("0")
        + text("cpu")
        + number(24)
        + b"tQ"
        + number(0)
        + numbers((24,))
        + numbers((1,))
        + b"\x89ccollections\nOrderedDict\n)Rctorch\nuint8\ntR"
    )
    ordered = b"ccollections\nOrderedDict\n)R(" + text("k") + number(1) + b"u}" + text("_metadata") + b"}sb"
    python_2 = b"ccollections\nOrderedDict\n(](](U\x01k" + number(2) + b"eetR"
    body = state_dict(
        parameter=parameter,
        first=first,
        untyped=untyped,
        ordered=ordered,
        python_2=python_2,
        size=b"ctorch\nSize\n(" + numbers((2, 3)) + b"tR",
        flag=b"\x88",
        nothing=b"N",
        real=b"G" + struct.pack(">d", 0.5),
        several=b"](" + number(-5) + text("é") + b"e",
    )
    read = tree_of(make_zip(tmp_path / "x.pt", body))
    np.testing.assert_array_equal(read["parameter"], SIX)
    np.testing.assert_array_equal(read["first"], SIX)
    assert read["untyped"].tobytes() == SIX.tobytes() and read["untyped"].dtype == np.uint8
    assert read["ordered"] == {"k": 1} and read["python_2"] == {"k": 2} and read["size"] == (2, 3)
    assert (read["flag"], read["nothing"], read["real"], read["several"]) == (True, None, 0.5, [-5, "é"])


@pytest.mark.parametrize("protocol", range(1, 6))
def test_plain_values_of_every_pickle_protocol(tmp_path, protocol):
    values = {"a": [1, -2, 300, 70000, 1 << 40, 0.25, True, None], "b": (1, (2, ()), {"c": ()}), "d": OrderedDict(x=1)}
    assert tree_of(make_zip(tmp_path / "x.pt", pickle.dumps(values, protocol))) == values


def test_big_endian_records(tmp_path):
    path = make_zip(tmp_path / "x.pt", state_dict(w=tensor()), {"0": SIX.astype(">f4").tobytes()}, order=b"big")
    np.testing.assert_array_equal(tree_of(path)["w"], SIX)
    rejected(make_zip(tmp_path / "y.pt", state_dict(w=tensor()), order=b"middle"), "byte order")


def test_legacy_format_with_a_storage_view(tmp_path):
    body = state_dict(
        w=tensor(key="11", shape=(2, 3), strides=(3, 1), tail=b"N"),
        view=tensor(key="11", shape=(2,), tail=b"(" + text("12") + number(2) + number(3) + b"t"),
        count=tensor(key="22", count=1, shape=(), strides=(), kind="LongStorage", tail=b"N"),
        half=tensor(key="33", count=2, shape=(2,), kind="BFloat16Storage", tail=b"N"),
    )
    data = {"22": (1, struct.pack("<q", 9)), "11": (6, SIX.tobytes()), "33": (2, b"\x80\x3f\x00\x40")}
    path = make_legacy(tmp_path / "x.pt", body, data)
    read = tree_of(path)
    np.testing.assert_array_equal(read["w"], SIX.reshape(2, 3))
    np.testing.assert_array_equal(read["view"], [2, 3])
    assert read["count"] == 9 and read["half"].astype(np.float32).tolist() == [1, 2]
    whole = path.read_bytes()
    for size in range(1, len(whole)):
        path.write_bytes(whole[:size])
        rejected(path)
    path.write_bytes(whole[:-1])
    rejected(path, "truncated")
    beyond = b"(" + text("12") + number(4) + number(3) + b"t"
    rejected(make_legacy(tmp_path / "y.pt", state_dict(w=tensor(key="1", tail=beyond)), {"1": (6, SIX.tobytes())}))
    rejected(make_legacy(tmp_path / "y.pt", state_dict(w=tensor(key="1", tail=b"N")), {"1": (5, SIX.tobytes())}))
    rejected(make_legacy(tmp_path / "y.pt", state_dict(w=tensor(key="1", tail=b"N")), {"2": (6, SIX.tobytes())}))


COMMAND = text("touch canary")
HOSTILE = {
    "posix.system": b"\x80\x02cposix\nsystem\n(" + COMMAND + b"tR.",
    "builtins.eval": b"\x80\x02cbuiltins\neval\n(" + text("open('canary','w')") + b"tR.",
    "os.system": b"\x80\x02" + text("os") + text("system") + b"\x93(" + COMMAND + b"tR.",
    "collections.OrderedDict.__init__": b"\x80\x04" + text("collections") + text("OrderedDict.__init__") + b"\x93)R.",
    "torch.storage._load_from_bytes": b"\x80\x02ctorch.storage\n_load_from_bytes\n(C\x01.tR.",
    "INST": b"\x80\x02(" + COMMAND + b"icollections\nOrderedDict\n.",
    "os.popen": b"(" + COMMAND + b"ios\npopen\n.",
    "OBJ": b"\x80\x02(ccollections\nOrderedDict\n" + COMMAND + b"o.",
    "NEWOBJ": b"\x80\x02ccollections\nOrderedDict\n)\x81.",
    "NEWOBJ_EX": b"\x80\x04ccollections\nOrderedDict\n)}\x92.",
    "EXT1": b"\x80\x02\x82\x01)R.",
    "EXT2": b"\x80\x02\x83\x01\x00)R.",
    "EXT4": b"\x80\x02\x84\x01\x00\x00\x00)R.",
    "numpy.core.multiarray._reconstruct": b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n)R.",
    "argparse.Namespace": b"\x80\x02cargparse\nNamespace\n)\x81}b.",
    "__main__.NeoNeXt": b"\x80\x02c__main__\nNeoNeXt\n)\x81}b.",
    "torch._utils._rebuild_sparse_tensor": b"\x80\x02ctorch._utils\n_rebuild_sparse_tensor\n)R.",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_other_globals_are_rejected_by_name_and_nothing_runs(tmp_path, canary, name):
    body = HOSTILE[name]
    zipped = make_zip(tmp_path / "x.pt", body)
    assert "torch.save(model.state_dict()" in rejected(zipped, name, "nothing of it was executed")
    (tmp_path / "y.pt").write_bytes(b"\x80\x02" + body)
    rejected(tmp_path / "y.pt", name)
    rejected(make_legacy(tmp_path / "z.pt", body, {}), name)


ABUSE = {
    "state of a list": b"\x80\x02]}" + text("__class__") + b"NsbN0.",
    "state of a global": b"\x80\x02ccollections\nOrderedDict\n}" + text("build") + text("x") + b"sb.",
    "state of a tensor": state_dict(w=tensor() + b"}" + text("data") + b"Nsb"),
    "state is a tuple": b"\x80\x02}N}\x86b.",
    "a text is called": b"\x80\x02" + text("os.system") + b"(" + COMMAND + b"tR.",
    "a storage type is called": b"\x80\x02ctorch\nFloatStorage\n(" + number(10**9) + b"tR.",
    "arguments are a list": b"\x80\x02ccollections\nOrderedDict\n]R.",
    "OrderedDict of a text": b"\x80\x02ccollections\nOrderedDict\n(" + text("abcdef") + b"tR.",
    "OrderedDict of a tensor": b"\x80\x02ccollections\nOrderedDict\n(" + tensor() + b"tR.",
    "OrderedDict with two arguments": b"\x80\x02ccollections\nOrderedDict\n(]]tR.",
    "OrderedDict with odd pairs": b"\x80\x02ccollections\nOrderedDict\n(](](" + text("a") + b"eetR.",
    "parameter of a text": b"\x80\x02ctorch._utils\n_rebuild_parameter\n(" + text("a") + b"\x88}tR.",
    "tensor of a text": b"\x80\x02ctorch._utils\n_rebuild_tensor\n("
    + text("a")
    + number(0)
    + numbers(())
    + numbers(())
    + b"tR.",
    "tensor metadata": state_dict(w=tensor()[:-2] + b"}" + text("neg") + b"\x88stR"),
    "Size of a number": b"\x80\x02ctorch\nSize\n(" + number(10**15) + b"tR.",
    "items of a tensor": state_dict(w=tensor() + number(0) + number(1) + b"s"),
    "append to a tensor": state_dict(w=tensor() + number(0) + b"a"),
    "append to a dictionary": b"\x80\x02}" + number(0) + b"a.",
    "a dictionary as key": b"\x80\x02}}Ns.",
    "an odd number of items": b"\x80\x02}(Nu.",
    "an endless tuple as key": b"\x80\x02})" + b"2\x86" * 200 + b"Ns.",
    "an endless tuple as the name of a global": b"\x80\x02)" + b"2\x86" * 200 + b"2\x93.",
    "an endless tuple as text": b"\x80\x02ctorch\nSize\n(" + b")" + b"2\x86" * 200 + b"t}RR.",
    "stack underflow": b"\x80\x02\x87.",
    "empty stack": b"\x80\x02.",
    "no mark": b"\x80\x02t.",
    "no memo": b"\x80\x02h\x07.",
    "no stop": b"\x80\x02}",
    "a huge text": b"\x80\x02\x8d" + struct.pack("<Q", 1 << 62) + b".",
    "a huge number": b"\x80\x02\x8b" + struct.pack("<i", 1 << 30) + b".",
    "a negative length": b"\x80\x02\x8b" + struct.pack("<i", -1) + b".",
    "not UTF-8": b"\x80\x02X\x01\x00\x00\x00\xff.",
    "another persistent id": b"\x80\x02" + text("module") + b"Q.",
    "a persistent id of a module": b"\x80\x02(" + text("module") + text("a") + text("b") + text("c") + b"NtQ.",
    "unknown opcode": b"\x80\x02\xff.",
    "a text line without end": b"\x80\x02c" + b"a" * 9999,
    "a long decimal": b"\x80\x02L" + b"9" * 4000 * 3 + b"L\n.",
}


@pytest.mark.parametrize("name", ABUSE)
def test_abuse_of_the_known_ends_in_one_error(tmp_path, canary, name):
    rejected(make_zip(tmp_path / "x.pt", ABUSE[name]))
    rejected(make_legacy(tmp_path / "y.pt", ABUSE[name], {}))


def test_nested_values_need_no_recursion(tmp_path):
    read = tree_of(make_zip(tmp_path / "x.pt", b"\x80\x02]" + b"2\x86" * 100_000 + b"."))
    assert type(read) is tuple
    deep = tree_of(make_zip(tmp_path / "y.pt", b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."))
    assert type(deep) is list
    rejected(make_zip(tmp_path / "many.pt", b"\x80\x02(" + b"}" * 1_000_000 + b"t."), "too many")
    itself = tree_of(make_zip(tmp_path / "z.pt", b"\x80\x02]q\x00h\x00a."))
    assert itself[0] is itself


BOUNDS = {
    "offset": tensor(offset=1),
    "size": tensor(shape=(7,)),
    "stride": tensor(shape=(2, 2), strides=(5, 2)),
    "far offset": tensor(offset=1 << 61),
    "far stride": tensor(shape=(2,), strides=(1 << 62,)),
    "negative offset": tensor(offset=-1, shape=(2,)),
    "negative size": tensor(shape=(-1, -6), strides=(1, 1)),
    "negative stride": tensor(offset=5, shape=(6,), strides=(-1,)),
    "axes": tensor(shape=(1,) * 40, strides=(1,) * 40),
    "strides": tensor(shape=(6,), strides=(1, 1)),
    "storage": tensor(count=7),
    "negative storage": tensor(count=-1),
    "huge storage": tensor(count=1 << 62),
    "no storage": tensor(key="1"),
    "path": tensor(key="../data.pkl"),
    "wider type": tensor(kind="DoubleStorage"),
    "huge empty": tensor(shape=(0, 1 << 62, 1 << 62), strides=(1, 1, 1)),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_tensors_stay_inside_their_storage(tmp_path, name):
    rejected(make_zip(tmp_path / "x.pt", state_dict(w=BOUNDS[name])))


def test_expansion_is_bounded_alone_and_together(tmp_path):
    rejected(
        make_zip(tmp_path / "x.pt", state_dict(w=tensor(shape=(1 << 40, 6), strides=(0, 1)))), "expanded", "64 MiB"
    )
    allowed = tensor(shape=(1 << 20, 6), strides=(0, 1))
    assert tree_of(make_zip(tmp_path / "y.pt", state_dict(w=allowed)))["w"].shape == (1 << 20, 6)
    rejected(make_zip(tmp_path / "z.pt", state_dict(a=allowed, b=allowed, c=allowed)), "expanded")


def test_zip_bomb_is_rejected_without_unpacking(tmp_path):
    path = make_zip(tmp_path / "x.pt", state_dict(w=tensor()), {"0": bytes(64 << 20)}, method=zipfile.ZIP_DEFLATED)
    tracemalloc.start()
    rejected(path, "compressed")
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


def patched(path: Path, at: bytes, offset: int, layout: str, value: int, last: bool = False) -> Path:
    """The file with one field of a zip header changed."""
    data = bytearray(path.read_bytes())
    struct.pack_into(layout, data, (data.rfind(at) if last else data.find(at)) + offset, value)
    path.write_bytes(data)
    return path


def test_damaged_zip_directories(tmp_path):
    def fresh():
        return make_zip(tmp_path / "x.pt", state_dict(w=tensor()))

    central, local, end = b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06"
    rejected(patched(fresh(), central, 8, "<H", 1), "encrypted")
    rejected(patched(fresh(), central, 10, "<H", 8), "compressed")
    rejected(patched(fresh(), central, 24, "<I", 5), "compressed")
    rejected(patched(fresh(), central, 16, "<I", 1), "CRC-32")
    rejected(patched(fresh(), central, 42, "<I", 1 << 30), "not where the directory says")
    rejected(patched(fresh(), central, 42, "<I", 0, last=True), "name")
    rejected(patched(fresh(), local, 28, "<H", 60000), "beyond the end")
    rejected(patched(fresh(), local, 28, "<H", 40), "share the same bytes")
    rejected(patched(fresh(), end, 10, "<H", 60000), "fewer entries")
    rejected(patched(fresh(), end, 16, "<I", 1 << 31), "beyond the end")
    with pytest.warns(UserWarning, match="Duplicate"):
        twice = make_zip(tmp_path / "y.pt", state_dict(w=tensor()), extra=[("a/data/0", bytes(24))])
    rejected(twice, "twice")
    with zipfile.ZipFile(tmp_path / "n.pt", "w") as archive:
        archive.writestr("w.npy", b"")
    rejected(tmp_path / "n.pt", "no data.pkl")
    rejected(
        make_zip(tmp_path / "j.pt", b"\x80\x02}.", extra=[("a/constants.pkl", b""), ("a/code/x.py", b"")]),
        "TorchScript",
    )
    (tmp_path / "t.pt").write_bytes(bytes(257) + b"ustar" + bytes(250))
    rejected(tmp_path / "t.pt", "tar archive")
    (tmp_path / "p.pt").write_bytes(pickle.dumps({"a": 1}))
    rejected(tmp_path / "p.pt", "not one of torch.save")


def test_no_file_no_content(tmp_path):
    rejected(tmp_path / "missing.pt", "no such file")
    rejected(tmp_path, "folder")
    (tmp_path / "empty.pt").write_bytes(b"")
    rejected(tmp_path / "empty.pt", "empty")
    os.mkfifo(tmp_path / "pipe.pt")
    rejected(tmp_path / "pipe.pt", "not an ordinary file")
    (tmp_path / "text.pt").write_text("hello")
    rejected(tmp_path / "text.pt", "not a file of torch.save")


def test_truncated_anywhere(tmp_path):
    path = make_zip(tmp_path / "x.pt", state_dict(w=tensor()))
    whole = path.read_bytes()
    for size in range(1, len(whole)):
        path.write_bytes(whole[:size])
        rejected(path)
    path.write_bytes(whole[:-30])
    rejected(path, "is truncated")


def test_mutations_never_escape(tmp_path, canary):
    chosen = random.Random(2403)
    originals = [
        make_zip(tmp_path / "a.pt", state_dict(w=tensor(), v=tensor(shape=(2, 3), strides=(3, 1)))).read_bytes(),
        make_legacy(tmp_path / "b.pt", state_dict(w=tensor(tail=b"N")), {"0": (6, SIX.tobytes())}).read_bytes(),
    ]
    path, outcomes = tmp_path / "x.pt", [0, 0]
    for turn in range(3000):
        data = bytearray(originals[turn % 2])
        for _ in range(chosen.randint(1, 3)):
            at = chosen.randrange(len(data))
            data[at : at + chosen.choice((0, 1, 1, 1))] = bytes([chosen.randrange(256)])
        path.write_bytes(data)
        try:
            tree_of(path)
            outcomes[0] += 1
        except InputError:
            outcomes[1] += 1
    assert min(outcomes) > 10


def test_mutated_pickles_never_escape(tmp_path, canary):
    chosen = random.Random(11251)
    seeds = [
        *HOSTILE.values(),
        *ABUSE.values(),
        *map(lambda body: state_dict(w=body), BOUNDS.values()),
        state_dict(w=tensor()),
    ]
    for _ in range(3000):
        data = bytearray(chosen.choice(seeds)[:400])
        other = chosen.choice(seeds)[:400]
        at, start = chosen.randrange(len(data)), chosen.randrange(len(other))
        data[at : at + chosen.randint(0, 8)] = other[start : start + chosen.randint(0, 40)]
        try:
            tree_of(make_zip(tmp_path / "x.pt", bytes(data)))
        except InputError:
            continue


def test_pytorch_agrees(tmp_path):
    torch = pytest.importorskip("torch")
    values = {"a": torch.randn(3, 4).t(), "b": torch.randn(5).bfloat16(), "n": torch.tensor(3)}
    for flag in (True, False):
        torch.save(values, tmp_path / "x.pt", _use_new_zipfile_serialization=flag)
        read = tree_of(tmp_path / "x.pt")
        assert all((read[k].astype(np.float32) == v.float().numpy()).all() for k, v in values.items())
    pytorch.write(tmp_path / "y.pt", read, {"x.json": b"{}"})
    back = torch.load(tmp_path / "y.pt", weights_only=True)
    assert all(torch.equal(back[k], v) and back[k].dtype == v.dtype for k, v in values.items())
