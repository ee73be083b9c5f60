"""Checkpoints of every format: one meaning, nothing lost, and errors that name the tensor."""

from __future__ import annotations

import json
import random
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from neonext_ms.checkpoint import mindspore_ckpt, pytorch, safetensors_file
from neonext_ms.checkpoint.checkpoint import (
    Checkpoint,
    load_checkpoint,
    require_shifts,
    save_checkpoint,
)
from neonext_ms.checkpoint.infer_architecture import infer_architecture
from neonext_ms.checkpoint.mapped_file import BFLOAT16
from neonext_ms.checkpoint.metadata import decode
from neonext_ms.common.errors import InputError, UsageError
from neonext_ms.models.architecture import DOWNSAMPLES, make_architecture
from neonext_ms.models.initialization import initial_arrays
from neonext_ms.models.names import mindspore_name
from neonext_ms.models.registry import identify, list_models, model_config
from pickles import number, tensor
from pickles import text as pickled

FORMATS = (".pt", ".safetensors", ".ckpt")
SMALL = make_architecture(
    10, (1, 1, 2, 1), (8, 12, 16, 20), kernel_spec="4+7", linear_bias=True, layer_scale_init_value=1e-6, shifts=None
)
COUNTER = "stem.norm.num_batches_tracked"


def random_arrays(architecture=SMALL, dtype=np.float32, seed=0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {name: generator.uniform(0.1, 1, shape).astype(dtype) for name, shape in architecture.tensors().items()}


def proto(field: int, body: bytes | int) -> bytes:
    def varint(value):
        out = b""
        while value > 0x7F:
            out += bytes([value & 0x7F | 0x80])
            value >>= 7
        return out + bytes([value])

    if isinstance(body, int):
        return varint(field << 3) + varint(body)
    return varint(field << 3 | 2) + varint(len(body)) + body


def value(name: str, array: np.ndarray | str | bytes, kind: str | None = None, dims=None) -> bytes:
    """One Value of a MindSpore checkpoint."""
    if isinstance(array, str):
        array, kind, dims = array.encode("utf-32-le"), "str", [0]
    if isinstance(array, np.ndarray):
        kind = kind or {"bfloat16": "BFloat16"}.get(str(array.dtype), str(array.dtype).capitalize())
        dims = array.shape if dims is None else dims
        array = array.tobytes()
    tensor = b"".join(proto(1, size) for size in dims) + proto(2, kind.encode()) + proto(3, array)
    return proto(1, proto(1, name.encode()) + proto(2, tensor))


def make_ckpt(path: Path, arrays: dict, extra: bytes = b"") -> Path:
    """A `.ckpt` as MindSpore writes it, without MindSpore."""
    path.write_bytes(b"".join(value(mindspore_name(name), array) for name, array in arrays.items()) + extra)
    return path


def make_pt(path: Path, arrays: dict) -> Path:
    pytorch.write(path, arrays)
    return path


def nested(path: Path, **groups: dict) -> Path:
    """A training checkpoint: groups of tensors below their names, and what else a training script saves."""
    body, bodies = b"\x80\x02}(", []
    for group, arrays in groups.items():
        body += pickled(group) + b"}("
        for name, array in arrays.items():
            strides = [step // array.itemsize for step in array.strides]
            body += pickled(name) + tensor(str(len(bodies)), array.size, 0, array.shape, strides)
            bodies.append(array.tobytes())
        body += b"u"
    body += pickled("epoch") + number(3) + pickled("optimizer") + b"}u."
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", body)
        for i, data in enumerate(bodies):
            archive.writestr(f"a/data/{i}", data)
    return path


def message(path, **options) -> str:
    with pytest.raises(InputError) as caught:
        load_checkpoint(path, **options)
    assert str(path) in str(caught.value)
    return str(caught.value)


def same(one: dict, other: dict) -> bool:
    return list(one) == list(other) and all(
        a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
        for a, b in zip(one.values(), other.values(), strict=True)
    )


def test_the_trained_digits_checkpoint(digits):
    checkpoint = load_checkpoint(digits)
    architecture = checkpoint.architecture
    assert architecture.dims == (24, 48, 96, 192) and architecture.per_stage_layers == (1, 1, 2, 1)
    assert architecture.kernel_spec == "4+7" and architecture.linear_bias and architecture.layer_scale
    assert architecture.num_classes == 10 and architecture.shifts is None and checkpoint.metadata == {}
    assert list(checkpoint.arrays) == list(architecture.tensors())
    assert len(checkpoint.counters) == 9 and checkpoint.format == "PyTorch" and checkpoint.dtypes == ["float32"]
    with pytest.raises(UsageError, match="Pass --shifts a,b,c,d"):
        require_shifts(checkpoint)
    given = load_checkpoint(digits, shifts=(1, 1, 0, 0))
    assert require_shifts(given).shifts == (1, 1, 0, 0)
    assert "shifts 1,7,0,0" in message(digits, shifts=(1, 7, 0, 0))


def test_reading_needs_neither_framework(tmp_path, digits):
    paths = [digits]
    for suffix in (".pt", ".safetensors"):
        save_checkpoint(tmp_path / f"x{suffix}", random_arrays())
        paths.append(str(tmp_path / f"x{suffix}"))
    paths.append(str(make_ckpt(tmp_path / "x.ckpt", random_arrays())))
    code = (
        "import sys; from neonext_ms import load_checkpoint\n"
        f"for path in {paths!r}: load_checkpoint(path).float32()\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'mindspore', 'google.protobuf')))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16, np.float32, np.float64])
def test_round_trip_through_every_format_is_lossless(tmp_path, dtype):
    arrays = random_arrays(dtype=dtype)
    metadata = {
        "shifts": (1, 1, 1, 0),
        "image_size": 64,
        "labels": [f"class «{i}»" for i in range(10)],
        "preprocessing": {"crop": 0.9},
        "accuracy": 0.75,
    }
    counters = {COUNTER: (1 << 40) + 1}
    previous = Checkpoint("", arrays, SMALL, metadata, counters=counters)
    for i, suffix in enumerate((".pt", ".ckpt", ".safetensors", ".ckpt", ".pth")):
        path = tmp_path / f"{i}{suffix}"
        save_checkpoint(path, previous.arrays, previous.metadata, previous.counters)
        previous = load_checkpoint(path)
        assert same(previous.arrays, arrays)
        assert previous.counters[COUNTER] == (1 << 40) + 1 and sum(previous.counters.values()) == (1 << 40) + 1
        assert previous.architecture == SMALL.with_shifts((1, 1, 1, 0))
        assert previous.metadata["image_size"] == [64, 64] and previous.metadata["labels"] == metadata["labels"]
        assert previous.metadata["preprocessing"]["crop"] == 0.9 and previous.metadata["accuracy"] == 0.75
    whole = previous.float32()
    assert all(a.dtype == np.float32 and a.flags.c_contiguous and a.flags.aligned for a in whole.values())
    np.testing.assert_array_equal(whole["head.fc.weight"], arrays["head.fc.weight"].astype(np.float32))
    assert np.shares_memory(whole["head.ln.bias"], previous.arrays["head.ln.bias"]) == (dtype == np.float32)
    first, last = tmp_path / "0.pt", tmp_path / "4.pth"
    assert first.read_bytes() == last.read_bytes()


def test_the_suffix_does_not_matter_for_reading(tmp_path):
    for suffix in FORMATS:
        save_checkpoint(tmp_path / f"x{suffix}", random_arrays())
        (tmp_path / f"x{suffix}").rename(tmp_path / "weights.bin")
        assert same(load_checkpoint(tmp_path / "weights.bin").arrays, random_arrays())
    with pytest.raises(UsageError, match=r"unknown suffix .*\.bin.*\.safetensors"):
        save_checkpoint(tmp_path / "weights.bin", random_arrays())


def test_written_state_dicts_have_the_official_entries(tmp_path, digits):
    save_checkpoint(tmp_path / "x.pt", load_checkpoint(digits).arrays)
    save_checkpoint(tmp_path / "x.safetensors", load_checkpoint(digits).arrays)
    official = {name.removeprefix("module."): array for name, array in pytorch.read(digits)[0].items()}
    written = pytorch.read(tmp_path / "x.pt")[0]
    assert same(written, {name: a * 0 if a.dtype == np.int64 else a for name, a in official.items()})
    assert set(safetensors_file.read(tmp_path / "x.safetensors")[0]) == set(official)


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    path = tmp_path / "x.pt"
    path.write_text("before")
    monkeypatch.setattr(pytorch, "write", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(InputError, match="disk is full"):
        save_checkpoint(path, random_arrays())
    assert [p.name for p in tmp_path.iterdir()] == ["x.pt"] and path.read_text() == "before"


@pytest.mark.parametrize("name", [name for name in list_models() if name.startswith(("neonext_t", "neonext_l"))])
def test_registered_models_are_recognized(name):
    architecture = model_config(name).architecture
    found = infer_architecture(architecture.tensors(), name)
    assert found.tensors() == architecture.tensors() and found.shifts is None
    found = found.with_shifts(architecture.shifts).with_activation(architecture.activation)
    assert identify(found) == name


def variants():
    for downsample in DOWNSAMPLES:
        for bias, scale in ((True, 0.0), (False, 1e-6)):
            for dims in ((8, 12, 16, 20), (8, 8, 8, 8)):
                yield make_architecture(
                    5,
                    (1, 2, 1, 1),
                    dims,
                    kernel_spec=("3+4+5", "7", "4+7", "2"),
                    linear_bias=bias,
                    layer_scale_init_value=scale,
                    downsample=downsample,
                    shifts=None,
                )


@pytest.mark.parametrize("architecture", list(variants()), ids=lambda a: f"{a.downsample}-{a.linear_bias}-{a.dims[1]}")
def test_one_wrong_tensor_is_reported_as_that_tensor(architecture):
    shapes = architecture.tensors()
    assert infer_architecture(shapes, "file") == architecture

    def reported(changed: dict) -> list[str]:
        with pytest.raises(InputError) as caught:
            infer_architecture(changed, "file")
        return [line.strip().split(":")[0].split(" ")[0] for line in str(caught.value).split("\n") if line[:2] == "  "]

    for name, shape in shapes.items():
        assert reported({n: s for n, s in shapes.items() if n != name}) == [name]
        wrong = [(*shape, 2), tuple(size + 1 for size in shape)]
        if shape[::-1] != shape:
            wrong.append(shape[::-1])
        for other in wrong:
            assert reported({**shapes, name: other}) == [name]
    for name in ("extra", "stage_1.0.ops.content.fc_3.weight", "stage_2.900000.ops.content.norm.weight"):
        assert reported({**shapes, name: (8,)}) == [name]


def test_every_wrong_tensor_is_listed(tmp_path):
    arrays = random_arrays()
    text = message(make_pt(tmp_path / "x.pt", {n: a for n, a in arrays.items() if "running" not in n}))
    missing = [name for name in arrays if "running" in name]
    assert all(name in text for name in missing) and f"{len(missing)} missing" in text
    assert "model.parameters()" in text
    arrays["head.fc.bias"] = arrays["head.fc.bias"][:-1]
    arrays["more"] = arrays.pop("stem.conv.weight")
    text = message(make_pt(tmp_path / "x.pt", arrays))
    assert "1 missing:\n  stem.conv.weight (8, 48, 1, 1)" in text
    assert "1 unexpected:\n  more (8, 48, 1, 1)" in text
    assert "1 misshapen:\n  head.fc.bias: (9,), expected (10,)" in text and "one of them is wrong" in text


def test_what_is_no_neonext(tmp_path):
    resnet = {"conv1.weight": np.zeros((4, 3, 7, 7)), "layer1.0.conv1.weight": np.zeros((4, 4, 3, 3))}
    assert "layer1.0.conv1.weight" in message(make_pt(tmp_path / "x.pt", resnet))
    part = {
        name: array for name, array in random_arrays().items() if "stage_3" not in name and "downsample" not in name
    }
    assert "how many channels stage 3 has" in message(make_pt(tmp_path / "x.pt", part))
    huge = {**SMALL.tensors(), "stem.conv.weight": (1 << 62, 48, 1, 1), "head.fc.bias": (1 << 62,)}
    with pytest.raises(InputError, match="2 misshapen"):
        infer_architecture(huge, "file")
    with pytest.raises(InputError, match="too many"):
        infer_architecture({f"stage_1.{i}.ops.content.norm.bias": (8,) for i in range(9999)}, "file")
    with pytest.raises(InputError):
        infer_architecture({}, "file")


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16, np.float32, np.float64])
def test_nan_infinity_and_negative_variances(tmp_path, dtype, suffix):
    arrays = random_arrays(dtype=dtype)
    arrays["stem.conv.weight"][-1, -1] = np.nan
    arrays["head.fc.bias"][0] = -np.inf
    arrays["stem.norm.running_var"][2] = -1
    path = tmp_path / f"x{suffix}"
    if suffix == ".ckpt":
        make_ckpt(path, arrays)
    elif suffix == ".pt":
        make_pt(path, arrays)
    else:
        safetensors_file.write(path, arrays, {})
    text = message(path)
    assert "3 tensors" in text and "stem.conv.weight: NaN or infinity" in text
    assert "head.fc.bias: NaN" in text and "stem.norm.running_var: a negative variance" in text
    with pytest.raises(InputError, match="3 tensors"):
        save_checkpoint(tmp_path / "out.pt", arrays)


def test_values_at_the_edge_are_finite(tmp_path):
    arrays = random_arrays()
    arrays["head.fc.bias"][:4] = np.finfo(np.float32).max, np.finfo(np.float32).min, 1e-45, -0.0
    save_checkpoint(tmp_path / "x.pt", arrays)
    assert same(load_checkpoint(tmp_path / "x.pt").arrays, arrays)
    large = random_arrays(dtype=np.float64)
    large["head.fc.bias"][0] = 1e300
    save_checkpoint(tmp_path / "y.pt", large)
    with pytest.raises(InputError, match=r"head\.fc\.bias has a value beyond the range of float32"):
        load_checkpoint(tmp_path / "y.pt").float32()


def test_integers_where_floats_belong(tmp_path):
    arrays = random_arrays()
    arrays["head.fc.weight"] = arrays["head.fc.weight"].astype(np.int8)
    assert "head.fc.weight: int8" in message(make_pt(tmp_path / "x.pt", arrays))
    for wrong in (np.zeros(2, np.int64), np.array(0.5), np.array(-1)):
        assert COUNTER in message(make_pt(tmp_path / "x.pt", {**random_arrays(), COUNTER: wrong}))
    text = message(make_pt(tmp_path / "x.pt", {**random_arrays(), "foo.num_batches_tracked": np.array(1)}))
    assert "foo.num_batches_tracked" in text
    with pytest.raises(InputError, match="unexpected counters"):
        save_checkpoint(tmp_path / "y.pt", random_arrays(), counters={"foo.num_batches_tracked": 1})


def test_prefixes_and_collisions(tmp_path):
    arrays = random_arrays()
    some = {("module._orig_mod.module." if i % 3 else "") + n: a for i, (n, a) in enumerate(arrays.items())}
    assert same(load_checkpoint(make_pt(tmp_path / "x.pt", some)).arrays, arrays)
    arrays["module.head.fc.bias"] = arrays["head.fc.bias"]
    assert "head.fc.bias and module.head.fc.bias" in message(make_pt(tmp_path / "x.pt", arrays))
    mixed = {**random_arrays(), "stem.norm.gamma": np.ones(8, np.float32)}
    assert "stem.norm.weight and stem.norm.gamma" in message(make_pt(tmp_path / "x.pt", mixed))


def test_training_checkpoints_and_the_moving_average(tmp_path):
    one, two = random_arrays(seed=1), random_arrays(seed=2)
    moved = {f"module.{name}": array for name, array in two.items()}
    path = nested(tmp_path / "x.pt", model=one, model_ema=moved)
    regular = load_checkpoint(path)
    assert same(regular.arrays, one) and "model_ema" in regular.notes[0] and "--ema" in regular.notes[0]
    averaged = load_checkpoint(path, ema=True)
    ignored = "ignored entries that are not weights: epoch, optimizer"
    assert same(averaged.arrays, two) and averaged.notes == ["read 'model_ema'", ignored]
    only = nested(tmp_path / "y.pt", state_dict_ema=two)
    assert same(load_checkpoint(only).arrays, two) and "no other weights" in load_checkpoint(only).notes[0]
    assert "'state_dict'" in message(nested(tmp_path / "z.pt", state_dict=one), ema=True)
    assert "bare state dict" in message(make_pt(tmp_path / "b.pt", one), ema=True)
    flat = {**{f"ema.{name}": array for name, array in two.items()}, **one}
    assert same(load_checkpoint(make_pt(tmp_path / "f.pt", flat)).arrays, one)
    assert same(load_checkpoint(make_pt(tmp_path / "f.pt", flat), ema=True).arrays, two)
    lightning = {f"state_dict.model.{name}": array for name, array in one.items()}
    assert same(load_checkpoint(make_pt(tmp_path / "l.pt", lightning)).arrays, one)
    empty = message(nested(tmp_path / "e.pt", nothing={}))
    assert "nothing" in empty and "optimizer" in empty and "no tensors" in empty


def test_mindspore_files_with_optimizer_state_and_strings(tmp_path):
    arrays = random_arrays()
    extra = b"".join(
        value(f"{head}.{name}", array) for head in ("moment1", "exp_avg_sq") for name, array in arrays.items()
    )
    extra += value("epoch_num", np.array(3, np.int32)) + value("who", "me")
    extra += value("learning_rate", np.array(0.5, np.float32), dims=[0])
    checkpoint = load_checkpoint(make_ckpt(tmp_path / "x.ckpt", arrays, extra))
    assert same(checkpoint.arrays, arrays) and checkpoint.format == "MindSpore"
    assert checkpoint.notes == [
        "ignored entries that are not weights: moment1.*, exp_avg_sq.*, epoch_num, who, learning_rate"
    ]
    assert "surprise" in message(make_ckpt(tmp_path / "x.ckpt", arrays, value("surprise", np.zeros(3, np.float32))))
    recorded = value("neonext_ms", json.dumps({"shifts": [1, 0, 0, 0], "counters": {COUNTER: 4}}))
    checkpoint = load_checkpoint(make_ckpt(tmp_path / "x.ckpt", arrays, recorded))
    assert checkpoint.architecture.shifts == (1, 0, 0, 0) and checkpoint.counters == {COUNTER: 4}
    assert "1,0,0,0" in message(tmp_path / "x.ckpt", shifts=(1, 1, 1, 0))


def test_ckpt_wire_format(tmp_path):
    path = tmp_path / "x.ckpt"
    whole = np.arange(10, dtype=np.float32).reshape(2, 5)
    pieces = [value("w", whole.tobytes()[at : at + 20], "Float32", whole.shape) for at in (0, 20)]
    packed = proto(
        1, proto(1, b"p") + proto(2, proto(1, b"\x02\x05") + proto(2, b"Float32") + proto(3, whole.tobytes()))
    )
    path.write_bytes(b"".join(pieces) + packed + value("t", "text") + value("b", np.array([True])))
    read = mindspore_ckpt.read(path)
    np.testing.assert_array_equal(read["w"], whole)
    np.testing.assert_array_equal(read["p"], whole)
    assert read["t"] == "text" and read["b"].dtype == bool and not read["p"].flags.writeable
    body = path.read_bytes()
    path.write_bytes(body + b"crc_num" + zlib.crc32(body).to_bytes(10, "big"))
    assert set(mindspore_ckpt.read(path)) == {"w", "p", "t", "b"}
    path.write_bytes(body + b"crc_num" + (zlib.crc32(body) ^ 1).to_bytes(10, "big"))
    wrong = {
        "CRC-32": path.read_bytes(),
        "encrypted": mindspore_ckpt.ENCRYPTED_MAGIC + body,
        "truncated": body[:-1],
        "twice": pieces[0] + packed + pieces[1],
        "has 20 bytes": pieces[0],
        "type Complex64": value("w", whole.tobytes(), "Complex64", [2, 5]),
        "MapParameter": proto(1, proto(1, b"m") + proto(3, b"")),
        "no name": proto(1, proto(2, b"")),
        "no type": proto(1, proto(1, b"w") + proto(2, proto(1, 3))),
        "wire type": proto(1, b"\x0b"),
        "field 2": proto(2, b""),
        "field 1": proto(1, 5),
        "ten bytes": b"\x0a" + b"\xff" * 11,
        "more than 32 axes": value("w", b"", "Float32", [1] * 50),
        "has 4 bytes": value("w", b"abcd", "Float32", [1 << 63, 1 << 63]),
        "UnicodeDecodeError": value("w", b"\xff\xff\xff\xff", "str", [0]),
    }
    for words, data in wrong.items():
        path.write_bytes(data)
        with pytest.raises(InputError, match=words):
            mindspore_ckpt.read(path)


def test_mindspore_reads_what_is_written_and_the_other_way_round(tmp_path):
    ms = pytest.importorskip("mindspore")
    arrays = random_arrays()
    save_checkpoint(tmp_path / "x.ckpt", arrays, {"shifts": [1, 1, 1, 0]}, {COUNTER: 3})
    read = ms.load_checkpoint(str(tmp_path / "x.ckpt"))
    assert json.loads(read.pop("neonext_ms")) == {"shifts": [1, 1, 1, 0], "counters": {COUNTER: 3}}
    assert same({n: p.asnumpy() for n, p in read.items()}, {mindspore_name(n): a for n, a in arrays.items()})
    values = [{"name": n, "data": p} for n, p in read.items()]
    ms.save_checkpoint(values, str(tmp_path / "y.ckpt"), crc_check=True, append_dict={"epoch_num": 3})
    assert same(load_checkpoint(tmp_path / "y.ckpt").arrays, arrays)
    ms.save_checkpoint(values, str(tmp_path / "y.safetensors"), format="safetensors")
    assert same(load_checkpoint(tmp_path / "y.safetensors").arrays, arrays)
    ms.save_checkpoint(values, str(tmp_path / "z.ckpt"), enc_key=b"0123456789abcdef")
    assert "encrypted" in message(tmp_path / "z.ckpt")


def test_safetensors_damage(tmp_path):
    path = tmp_path / "x.safetensors"
    header = {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}

    def make(header, body=bytes(8)) -> Path:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + body)
        return path

    assert safetensors_file.read(make(header))[0]["w"].tolist() == [0, 0]
    wrong = {
        "truncated": make(header, bytes(7)).read_bytes(),
        "truncated in its header": make(header).read_bytes()[:20],
        "too long": struct.pack("<Q", 1 << 39) + b"{}",
        "damaged": make({"w": {**header["w"], "shape": [3]}}).read_bytes(),
        "not a valid": make({"w": {**header["w"], "dtype": "X9"}}).read_bytes(),
        "type F8_E4M3": make({"w": {"dtype": "F8_E4M3", "shape": [8], "data_offsets": [0, 8]}}).read_bytes(),
        "not a valid ": make({**header, "v": header["w"]}).read_bytes(),
        "JSONDecodeError": make(b"{]").read_bytes(),
        "RecursionError": make(b'{"a":' + b"[" * 99999).read_bytes(),
        "TypeError": make({"w": 3}).read_bytes(),
        "not a safetensors file": b"x" * 20,
    }
    for words, data in wrong.items():
        path.write_bytes(data)
        with pytest.raises(InputError, match=words):
            safetensors_file.read(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b'{"metadata": {}, "weight_map": {}}', "index of several files"),
        (b"hello\n", "text file"),
        (b"\nhello", "not a MindSpore checkpoint"),
        (b"\x1f\x8b\x08", "gzip"),
        (b"\x93NUMPY", "NumPy array"),
        (b"\x00" * 64, "unknown format"),
        (b"", "empty"),
    ],
)
def test_what_is_no_checkpoint_at_all(tmp_path, content, words):
    (tmp_path / "x.pt").write_bytes(content)
    assert words in message(tmp_path / "x.pt")


def test_bad_metadata(tmp_path):
    wrong = {
        b"[]": "JSON object",
        b"{": "not JSON",
        b"\xff": "not JSON",
        b'{"a":' + b"[" * 99999: "not JSON",
        b'{"a": NaN}': "NaN is not JSON",
        b'{"a": [1e400]}': "the number 1e400 is too large",
        b'{"shifts": [1, 1, 1]}': "four whole numbers",
        b'{"shifts": [1, 1, 1, true]}': "four whole numbers",
        b'{"shifts": "1,1,1,0"}': "four whole numbers",
        b'{"shifts": [9, 1, 1, 0]}': "shifts 9,1,1,0",
        b'{"image_size": 0}': "image_size",
        b'{"image_size": [64, 64, 3]}': "image_size",
        b'{"labels": "abc"}': "labels",
        b'{"labels": ["a"]}': "1 labels for 10 classes",
        b'{"preprocessing": {"crop": 7}}': "crop",
        b'{"preprocessing": 7}': "preprocessing",
        b'{"counters": {"a": 1}}': "counters",
        b'{"counters": {"a.num_batches_tracked": -1}}': "counters",
    }
    for text, words in wrong.items():
        pytorch.write(tmp_path / "x.pt", random_arrays(), {"neonext_ms.json": text})
        assert words in message(tmp_path / "x.pt")
    assert decode('{"shifts": null, "other": [1]}', "file") == ({"other": [1]}, {})
    for bad in (
        {"shifts": (1, 1)},
        {"x": object()},
        {"x": float("nan")},
        {"labels": ["a"]},
        {"shifts": (7, 7, 7, 7)},
        {1: 2},
    ):
        with pytest.raises(InputError, match=r"y\.pt"):
            save_checkpoint(tmp_path / "y.pt", random_arrays(), bad)
    assert not (tmp_path / "y.pt").exists()


@pytest.mark.parametrize("suffix", FORMATS)
def test_damage_anywhere_ends_in_one_error(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    tiny = make_architecture(2, (0, 1, 0, 0), (2, 2, 2, 2), kernel_spec="2", shifts=None)
    arrays = random_arrays(tiny)
    recorded = value("neonext_ms", '{"shifts": [0, 1, 0, 0]}')
    if suffix == ".ckpt":
        make_ckpt(path, arrays, recorded)
    else:
        save_checkpoint(path, arrays, {"shifts": [0, 1, 0, 0]})
    whole = path.read_bytes()
    assert load_checkpoint(path).architecture.shifts == (0, 1, 0, 0)
    chosen = random.Random(suffix)
    for size in sorted(chosen.sample(range(len(whole) - len(recorded) if suffix == ".ckpt" else len(whole)), 300)):
        path.write_bytes(whole[:size])
        message(path)
    rejected = 0
    for _ in range(700):
        data = bytearray(whole)
        at = chosen.randrange(len(data))
        data[at : at + chosen.choice((0, 1, 1, 1))] = bytes([chosen.randrange(256)])
        path.write_bytes(data)
        try:
            load_checkpoint(path)
        except InputError as error:
            rejected += 1
            assert str(error).isprintable() or "\n" in str(error)
    assert rejected > 50


def test_a_flipped_bit_in_a_tensor_of_a_pt_is_noticed(tmp_path, digits):
    data = bytearray(Path(digits).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "x.pt").write_bytes(data)
    assert "CRC-32" in message(tmp_path / "x.pt")


def test_a_safetensors_header_of_any_length(tmp_path):
    """The length of a header may begin with the byte of a pickle, or with those of a zip archive."""
    arrays = initial_arrays(make_architecture(num_classes=2, dims=(4, 4, 4, 4), shifts=(1, 1, 0, 0)))
    for size in (0x2080, 0x4B50):
        save_checkpoint(tmp_path / "a.safetensors", arrays)
        content = (tmp_path / "a.safetensors").read_bytes()
        length = int.from_bytes(content[:8], "little")
        # Blanks after the JSON are allowed.
        header = content[8 : 8 + length] + b" " * ((size - length) % 0x10000)
        (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])
        assert load_checkpoint(tmp_path / "a.safetensors").format == "safetensors"
