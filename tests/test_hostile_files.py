"""Files of any maker: ONNX, .npy, .bin, JSON and results are read strictly, and end in an error of our own at worst."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
import zipfile

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from neonext_ms.benchmarks import command as bench
from neonext_ms.commands import info
from neonext_ms.common import files
from neonext_ms.common.errors import InputError
from neonext_ms.common.npy import read_npy
from neonext_ms.export import command as export
from neonext_ms.export.compare import command as compare
from neonext_ms.runtime.onnx import describe_onnx
from neonext_ms.runtime.onnx_file import check_tensor, read_onnx

SHAPE = [4, 3, 1, 1]


def network(
    path=None, dtype=np.float32, weight=None, group=1, side: int | str = 8, metadata=None, kind=None, attributes=None
) -> onnx.ModelProto:
    """Return a classifier of one 1x1 convolution, and write it to `path`."""
    values = np.arange(12, dtype=np.float32).reshape(SHAPE).astype(dtype)
    weight = numpy_helper.from_array(values, "w") if weight is None else weight
    kind = kind or helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes = [
        helper.make_node("Conv", ["input", "w"], ["map"], "conv", group=group, **(attributes or {})),
        helper.make_node("GlobalAveragePool", ["map"], ["pooled"], "pool"),
        helper.make_node("Flatten", ["pooled"], ["logits"], "flatten"),
    ]
    ends = [
        helper.make_tensor_value_info("input", kind, ["N", 3, side, side]),
        helper.make_tensor_value_info("logits", kind, ["N", 4]),
    ]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    if metadata is not None:
        model.metadata_props.add(key="neonext_ms", value=metadata)
    if path is not None:
        path.write_bytes(model.SerializeToString())
    return model


def tensor(**changes) -> TensorProto:
    values = {"name": "w", "data_type": TensorProto.FLOAT, "dims": SHAPE, "raw_data": b"\0" * 48, **changes}
    return TensorProto(**{name: value for name, value in values.items() if value is not None})


BAD_TENSORS = {
    "short": tensor(raw_data=b"\0" * 47),
    "long": tensor(raw_data=b"\0" * 52),
    "type": tensor(data_type=99),
    "no type": tensor(data_type=0),
    "text in bytes": tensor(data_type=TensorProto.STRING),
    "negative": tensor(dims=[-1, 3, 1, 1]),
    "huge": tensor(dims=[1 << 40, 1 << 40, 1, 1]),
    "many dimensions": tensor(dims=[1] * 1000),
    "two fields": tensor(float_data=[0.0] * 12),
    "wrong field": tensor(raw_data=None, int64_data=[0] * 12),
    "few": tensor(raw_data=None, float_data=[0.0] * 11),
    "segment": tensor(segment=TensorProto.Segment(begin=0, end=1)),
    "elsewhere": tensor(raw_data=None, data_location=TensorProto.EXTERNAL),
}


@pytest.mark.parametrize("name", BAD_TENSORS)
@pytest.mark.parametrize("half", [False, True])
def test_a_bad_initializer_is_an_error_of_every_command(name, half, tmp_path, capsys):
    weight = TensorProto()
    weight.CopyFrom(BAD_TENSORS[name])
    if half and weight.data_type == TensorProto.FLOAT:
        weight.data_type = TensorProto.FLOAT16
        weight.raw_data = weight.raw_data[: len(weight.raw_data) // 2]
    path = tmp_path / "m.onnx"
    network(path, np.float16 if half else np.float32, weight)
    for main, arguments in (
        (info.main, [str(path)]),
        (compare.main, [str(path), str(path)]),
        (export.main, ["--check", str(path)]),
        (bench.main, ["estimate", str(path), "--batch", "1"]),
        (bench.main, [str(path), "--rounds", "1"]),
        (bench.main, ["profile", str(path), "--rounds", "1"]),
    ):
        # onnxruntime reads some of them all the same.
        assert main(arguments) == 1 or (main is bench.main and "--rounds" in arguments), arguments
        err = capsys.readouterr().err
        assert "unexpected" not in err and ("m.onnx" in err or "--rounds" in arguments), err


@pytest.mark.parametrize(
    ("kind", "dims", "values"),
    [
        ("INT4", [3], {"raw_data": b"\0\0"}),
        ("INT4", [3], {"int32_data": [0, 0]}),
        ("COMPLEX64", [2], {"float_data": [1, 2, 3, 4]}),
        ("FLOAT", [], {"float_data": [1]}),
        ("STRING", [2], {"string_data": [b"a", b"b"]}),
        ("FLOAT", [0], {}),
        ("FLOAT", [2], {}),
        ("BFLOAT16", [2], {"int32_data": [1, 2]}),
        ("FLOAT8E4M3FN", [2], {"raw_data": b"ab"}),
        ("BOOL", [2], {"int32_data": [0, 1]}),
    ],
)
def test_tensors_that_exporters_write_are_accepted(kind, dims, values):
    check_tensor(TensorProto(name="t", data_type=TensorProto.DataType.Value(kind), dims=dims, **values))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"group": 0}, "nodes do not fit together|0 groups"),
        ({"group": -1}, "-1 groups|shapes"),
        ({"attributes": {"strides": [0, 0]}}, "m.onnx"),
        ({"kind": 99}, "unknown type 99"),
        ({"side": 1 << 41}, "has the shape"),
    ],
)
def test_bad_nodes_and_values(changes, text, tmp_path, capsys):
    path = tmp_path / "m.onnx"
    network(path, **changes)
    for arguments in (["estimate", str(path), "--batch", "1"], [str(path), "--rounds", "1", "--batch", "1"]):
        assert bench.main(arguments) == 1
        assert "unexpected" not in capsys.readouterr().err
    assert compare.main([str(path), str(path)]) == 1
    assert "unexpected" not in capsys.readouterr().err
    bench.main(["estimate", str(path), "--batch", "1"])
    assert re.search(text, capsys.readouterr().err)


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("arguments", [["compare"], ["bench", "--rounds", "1"], ["bench", "profile", "--rounds", "1"]])
def test_a_division_that_the_processor_refuses(constant, arguments, tmp_path):
    """The largest negative number has no positive one; where it is divided by -1, the processor sends SIGFPE."""
    model = network()
    nodes = [
        helper.make_node("Cast", ["pooled"], ["whole"], to=TensorProto.INT64),
        helper.make_node("Sub", ["whole", "whole"], ["zero"]),
        helper.make_node("Add", ["zero", "least"], ["sum"]),
        helper.make_node("Div", ["least" if constant else "sum", "minus"], ["quotient"]),
        helper.make_node("Cast", ["quotient"], ["number"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["pooled", "number"], ["total"]),
    ]
    flatten = model.graph.node.pop()
    flatten.input[0] = "total"
    model.graph.node.extend([*nodes, flatten])
    numbers = {"least": -(2**63), "minus": -1}
    model.graph.initializer.extend(numpy_helper.from_array(np.array(n, np.int64), name) for name, n in numbers.items())
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    command, *words = arguments
    module = {"compare": "neonext_ms.export.compare.command", "bench": "neonext_ms.benchmarks.command"}[command]
    files = [str(path)] * (2 if command == "compare" else 1)
    # As a command, whose own thread ends it; Python without a command is not changed.
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; from {module} import main; sys.exit(main())", *words, *files],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1, done
    assert re.search(r"^error: .*m\.onnx: damaged or hostile; a library .* fails \(SIGFPE\)", done.stderr, re.MULTILINE)


def test_images_of_a_size_that_nothing_holds(tmp_path, capsys):
    path = tmp_path / "m.onnx"
    network(path, side=1 << 20)
    assert compare.main([str(path), str(path)]) == 1
    assert "too large (got batch N of 1048576x1048576" in capsys.readouterr().err


def test_sizes_are_not_computed_without_bound(tmp_path, capsys):
    path = tmp_path / "m.onnx"
    model = network()
    for op, inputs in (("ConstantOfShape", ["big"]), ("Expand", ["one", "big"]), ("Range", ["zero", "end", "one"])):
        model.graph.node.append(helper.make_node(op, inputs, [f"out {op}"], op))
    for name, value in (("big", [1 << 30, 1 << 9]), ("one", 1), ("zero", 0), ("end", 1 << 39)):
        model.graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), name))
    path.write_bytes(model.SerializeToString())
    assert bench.main(["estimate", str(path), "--batch", "1"]) in (0, 1)
    assert "unexpected" not in capsys.readouterr().err


def test_the_shape_of_a_long_vector_is_not_made_of_its_numbers(tmp_path):
    """Propagation of data in onnx holds a message for each number of a vector of known length."""
    path = tmp_path / "m.onnx"
    model = network()
    model.graph.node.append(helper.make_node("Range", ["zero", "end", "one"], ["long"]))
    model.graph.node.append(helper.make_node("Cast", ["long"], ["cast"], to=TensorProto.FLOAT))
    for name, value in (("zero", 0), ("end", 1 << 26), ("one", 1)):
        model.graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), name))
    path.write_bytes(model.SerializeToString())
    code = "import resource as r, sys; r.setrlimit(r.RLIMIT_DATA, (1 << 30,) * 2)\n"
    code += "from neonext_ms.benchmarks.command import main; sys.exit(main())"
    words = [sys.executable, "-c", code, "estimate", str(path), "--batch", "1"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "m.onnx on Ascend310P3, batch 1" in done.stdout, done


def test_structure_of_onnx(tmp_path):
    path = tmp_path / "m.onnx"
    model = network(path)
    assert read_onnx(path) == model and describe_onnx(path)["inputs"] == {"input": "float Nx3x8x8"}
    broken = []
    for change in (
        lambda m: m.ClearField("opset_import"),
        lambda m: m.graph.node[0].ClearField("output"),
        lambda m: m.graph.node[0].ClearField("op_type"),
        lambda m: m.graph.node[0].attribute.add(name="a", t=tensor(raw_data=b"")).t.ClearField("data_type"),
        lambda m: m.graph.ClearField("node"),
    ):
        broken.append(onnx.ModelProto())
        broken[-1].CopyFrom(model)
        change(broken[-1])
    nested = onnx.GraphProto(node=[helper.make_node("Relu", ["x"], ["y"])])
    for _ in range(30):
        nested = onnx.GraphProto(node=[helper.make_node("If", ["c"], ["y"], then_branch=nested)])
    broken[1].graph.node[0].CopyFrom(nested.node[0])
    for content in [m.SerializeToString() for m in broken] + [b"", b"\x08", b"x" * 100]:
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"m\.onnx: not (a|an|a whole|a valid) "):
            read_onnx(path)
    os.remove(path)
    os.mkfifo(path)
    with pytest.raises(InputError, match="not a regular file"):
        read_onnx(path)
    with open(tmp_path / "large.onnx", "wb") as file:
        file.truncate(1 << 33)
    with pytest.raises(InputError, match="no protobuf has"):
        read_onnx(tmp_path / "large.onnx")


# Text of files on the terminal.
LABEL = "a\x1b]0;x\x07b\r\n\x9b31m\u202e\ud800"


def test_info_escapes_what_a_file_says(tmp_path, capsys):
    path = tmp_path / "m.onnx"
    labels = json.dumps({"labels": [LABEL, "ü", "c", "d"], "batch": None})
    network(path, metadata=labels)
    assert info.main([str(path)]) == 0
    out = capsys.readouterr().out
    assert r"a\x1b]0;x\x07b\r\n\x9b31m\u202e\ud800, ü, c, d" in out
    assert info.main([str(path), "--json"]) == 0
    out = capsys.readouterr().out
    assert json.loads(out)["metadata"]["labels"][0] == LABEL and not set("\x1b\x07\r\x9b\u202e") & set(out)


def test_names_of_nodes_are_escaped(tmp_path, capsys):
    path = tmp_path / "m.onnx"
    model = network()
    for node in model.graph.node:
        node.name += "\x1b[31m\nnext"
    model.graph.node[0].output[0] = model.graph.node[1].input[0] = "map\x1b[31m\nnext"
    path.write_bytes(model.SerializeToString())
    for main, arguments in (
        (compare.main, [str(path), str(path), "--layers"]),
        (bench.main, ["estimate", str(path), "--batch", "1", "--nodes"]),
        (bench.main, ["profile", str(path), "--rounds", "1"]),
    ):
        assert main(arguments) == 0
        out = capsys.readouterr().out
        assert r"\x1b[31m\nnext" in out and "\x1b" not in out and "\nnext" not in out


# Arrays.


def write_npy(path, header: str, data: bytes = b"\0" * 48, version: int = 1) -> None:
    text = header.encode("latin-1")
    path.write_bytes(
        b"\x93NUMPY" + bytes([version, 0]) + len(text).to_bytes(2 if version == 1 else 4, "little") + text + data
    )


GOOD_HEADER = "{'descr': '<f4', 'fortran_order': False, 'shape': (4, 3), }"
BAD_HEADERS = [
    GOOD_HEADER.replace("(4, 3)", "(True, 12)"),
    GOOD_HEADER.replace("(4, 3)", "(-4, -3)"),
    GOOD_HEADER.replace("(4, 3)", "(4.0, 3)"),
    GOOD_HEADER.replace("(4, 3)", "(4294967296, 4294967296)"),
    GOOD_HEADER.replace("(4, 3)", "(" + "9" * 5000 + ",)"),
    GOOD_HEADER.replace("(4, 3)", "(" + "1," * 5000 + ")"),
    GOOD_HEADER.replace("(4, 3)", "[4, 3]"),
    GOOD_HEADER.replace("(4, 3)", "(4, 2)"),
    GOOD_HEADER.replace("(4, 3)", "(" * 5000),
    GOOD_HEADER.replace("'<f4'", "'|O'"),
    GOOD_HEADER.replace("'<f4'", "'<U12'"),
    GOOD_HEADER.replace("'<f4'", "'<f16'"),
    GOOD_HEADER.replace("'<f4'", "'<c8'"),
    GOOD_HEADER.replace("'<f4'", "[('a', '<f4')]"),
    GOOD_HEADER.replace("'<f4'", "True"),
    GOOD_HEADER.replace("False", "0"),
    GOOD_HEADER.replace("'shape'", "'descr'"),
    GOOD_HEADER.replace("}", "'x': 1}"),
    GOOD_HEADER[:-1],
    "",
    "{}",
    "{" * 5000,
    "__import__('os').abort()",
]


@pytest.mark.parametrize("header", BAD_HEADERS, ids=range(len(BAD_HEADERS)))
def test_bad_headers_of_npy(header, tmp_path):
    write_npy(tmp_path / "x.npy", header)
    with pytest.raises(InputError, match=r"x\.npy: not a complete \.npy file of numbers"):
        read_npy(tmp_path / "x.npy")


@pytest.mark.parametrize(
    "array",
    [np.arange(12, dtype="<f4").reshape(4, 3), np.arange(12, dtype=">f2").reshape(2, 3, 2), np.float64(3).reshape(()),
     np.asfortranarray(np.arange(6, dtype="i8").reshape(2, 3)), np.zeros((0, 4), "u1"), np.array([True, False])],
)  # fmt: skip
def test_arrays_of_numpy_are_read(array, tmp_path):
    np.save(tmp_path / "x.npy", array)
    value = read_npy(tmp_path / "x.npy")
    np.testing.assert_array_equal(value, array)
    assert value.dtype == array.dtype.newbyteorder("=") and value.dtype.isnative
    with open(tmp_path / "x.npy", "ab") as file:
        file.write(b"\0")
    with pytest.raises(InputError, match="by its header"):
        read_npy(tmp_path / "x.npy")


def test_headers_of_other_programs(tmp_path):
    data = np.arange(12, dtype="<f4")
    for version in (1, 2, 3):
        write_npy(tmp_path / "x.npy", '{"shape":(12,),"descr":"<f4","fortran_order":False}\n', data.tobytes(), version)
        np.testing.assert_array_equal(read_npy(tmp_path / "x.npy"), data)


def test_pickles_archives_and_pipes_are_not_arrays(tmp_path, capsys):
    network(tmp_path / "m.onnx")
    dump = tmp_path / "dump"
    dump.mkdir()
    model, value = str(tmp_path / "m.onnx"), dump / "logits.npy"

    def archive(path):
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("x", pickle.dumps(print))

    for make in (
        archive,
        lambda path: path.write_bytes(pickle.dumps(np.zeros(4))),
        lambda path: path.write_bytes(b"\x93NUMPY"),
        lambda path: path.write_bytes(b""),
        os.mkfifo,
    ):
        value.unlink(missing_ok=True)
        make(value)
        assert compare.main([model, model, "--inputs", str(value)]) == 1
        assert compare.main([model, str(dump)]) == 1
        assert "unexpected" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "sidecar",
    ["[" * 100_000, '{"shape": [4294967296, 4294967296]}', '{"shape": 4}', '{"shape": [true, 4]}', '{"shape": [1e400]}',
     '{"dtype": ["float32"]}', '{"dtype": {}}', "[]", "4", '{"shape": [1], "shape": [2]}', "\xff", "NaN"],
)  # fmt: skip
def test_bad_sidecars(sidecar, tmp_path, capsys):
    network(tmp_path / "m.onnx")
    dump = tmp_path / "dump"
    dump.mkdir()
    (dump / "logits.bin").write_bytes(b"\0" * 16)
    (dump / "logits.json").write_bytes(sidecar.encode("latin-1"))
    assert compare.main([str(tmp_path / "m.onnx"), str(dump)]) == 1
    err = capsys.readouterr().err
    assert "logits" in err and "unexpected" not in err


# JSON.


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000 + "]" * 100_000, "more than 64 levels"),
        ("[" * 65 + "]" * 65, "more than 64 levels"),
        ('{"neonext_ms": NaN}', "NaN is not JSON"),
        ('{"neonext_ms": 1e999}', "too large"),
        ('{"neonext_ms": ' + "1" * 5000 + "}", "digits"),
        ('{"neonext_ms": 1, "neonext_ms": 2}', "given twice"),
        ('"neonext_ms"', "expected a JSON object"),
        ('{"neonext_ms": 1, "batch": 18446744073709551616}', "batch"),
        ('{"neonext_ms": 1, "labels": {}}', "labels"),
        ("{}", "not the manifest"),
        ("", "not the metadata"),
    ],
)
def test_bad_manifests(text, message, tmp_path, capsys):
    path = tmp_path / "m.json"
    path.write_text(text)
    for options in ([], ["--json"]):
        assert info.main([str(path), *options]) == 1
        err = capsys.readouterr().err
        assert "m.json" in err and message in err and len(err) < 1000


def test_a_manifest_of_odd_values_is_printed(tmp_path, capsys):
    path = tmp_path / "m.json"
    values = {"neonext_ms": "x\ud800\x1b", "a": [[1, None], {"file": 3}, True], "b": {"c": [[[1]]]}, "n": 10**4000}
    path.write_text(json.dumps(values))
    assert info.main([str(path)]) == 0
    assert r"x\ud800\x1b" in capsys.readouterr().out
    assert info.main([str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n"] == 10**4000


def test_read_json_is_strict(tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": [1, 2.5, "\\u00fc"]}')
    assert files.read_json(path, "a thing") == {"a": [1, 2.5, "ü"]}
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(InputError, match="not a regular file"):
        files.read_json(path, "a thing")


RESULT = {
    "format": "neonext-bench",
    "version": 1,
    "subjects": [{"label": "a", "model": "a", "form": "file", "runtime": "r", "notes": []}],
    "batches": [{"batch": 1, "rows": [{"label": "a", "kind": "model", "samples": [1.0], "parts": {}, "stable": True}]}],
}


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r["subjects"][0].pop("model"),
        lambda r: r["batches"][0]["rows"][0].update(samples=[1e308] * 9),
        lambda r: r["batches"][0]["rows"][0].update(samples=["1"]),
        lambda r: r["batches"][0]["rows"][0].update(samples=[0]),
        lambda r: r["batches"][0]["rows"][0].update(samples=[10**400]),
        lambda r: r["batches"][0].update(batch="x"),
        lambda r: r.update(subjects=[]),
        lambda r: r.update(version=[1] * 1000),
        lambda r: r.update(batches={}),
    ],
)
def test_bad_results(change, tmp_path, capsys):
    values = json.loads(json.dumps(RESULT))
    change(values)
    path = str(tmp_path / "r.json")
    with open(path, "w") as file:
        json.dump(values, file)
    for options in ([], ["--compare", path], ["--output", str(tmp_path / "out.md")]):
        assert bench.main(["report", path, *options]) == 1
        err = capsys.readouterr().err
        assert "r.json" in err and "unexpected" not in err and len(err) < 1000
