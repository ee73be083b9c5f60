"""`neonext-export --check`: what it prints, and its exit codes."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from neonext_ms.export import command


def _write(path, *nodes, opset=13, imports=()):
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3, 8, 8]) for name in ("x", "y")]
    weight = numpy_helper.from_array(np.zeros((3, 3, 1, 1), np.float32), "w")
    graph = helper.make_graph(list(nodes), "g", values[:1], values[1:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset), *imports])
    path.write_bytes(model.SerializeToString())
    return path


def _run(capsys, *argv):
    code = command.main([str(a) for a in argv])
    return code, *capsys.readouterr()


def _other_exporter(path, opset=20):
    """A file as another exporter would write it: a convolution, an activation that CANN lacks, and a transpose."""
    return _write(
        path,
        helper.make_node("Conv", ["x", "w"], ["a"], name="/stem/Conv", kernel_shape=[1, 1]),
        helper.make_node("Gelu", ["a"], ["b"], name="/act/Gelu"),
        helper.make_node("Transpose", ["b"], ["y"], name="/Transpose"),
        opset=opset,
    )


def test_a_file_that_the_parser_takes(tmp_path, capsys):
    path = _write(tmp_path / "m.onnx", helper.make_node("Conv", ["x", "w"], ["y"], name="c", kernel_shape=[1, 1]))
    code, out, err = _run(capsys, "--check", path)
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        f"{path}: 1 node, opset ai.onnx 13",
        "parsers  every operator has one at opset 8 to 18",
        "verdict  taken by the parser; kernels and fusion are not checked here",
    ]


def test_which_node_and_what_to_do(tmp_path, capsys):
    code, out, err = _run(capsys, "--check", _other_exporter(tmp_path / "m.onnx"))
    assert code == 1 and "ATC's parser would refuse it (3 findings). Change what the findings name" in err
    assert (
        "refused  node '/stem/Conv', operator Conv, opset 20: CANN's parser takes it at opsets 8 to 18; export" in out
    )
    assert "operator Gelu, opset 20: CANN has no parser for it; write it as a chain" in out
    assert "parsers  at no opset for all; at 13 without Gelu" in out and "verdict  refused" in out
    code, out, _ = _run(capsys, "--check", _other_exporter(tmp_path / "m.onnx", 13))
    assert (
        code == 1 and out.count("refused  ") == 2 and "'/Transpose', operator Transpose, opset 13: without perm" in out
    )


def test_the_same_in_json(tmp_path, capsys):
    code, out, _ = _run(capsys, "--check", _other_exporter(tmp_path / "m.onnx", 17), "--json")
    result = json.loads(out)
    assert code == 1 and result["taken"] is False and result["opsets"] == {"ai.onnx": 17} and result["nodes"] == 3
    assert [(f["node"], f["operator"], f["refused"]) for f in result["findings"]] == [
        ("/act/Gelu", "Gelu", True),
        ("/Transpose", "Transpose", True),
    ]
    assert result["operators_without_parser"]["13"] == ["Gelu"] and len(result["operators_without_parser"]) == 11


def test_equal_findings_are_one_line(tmp_path, capsys):
    nodes = [helper.make_node("Relu", [f"t{i}"], [f"t{i + 1}"], name=f"n{i}") for i in range(9)]
    nodes[0].input[0], nodes[-1].output[0] = "x", "y"
    _, out, _ = _run(capsys, "--check", _write(tmp_path / "m.onnx", *nodes, opset=19))
    assert (
        "refused  nodes 'n0', 'n1', 'n2' and 6 more, operator Relu, opset 19: " in out and out.count("refused  n") == 1
    )


def test_our_own_files(digits, tmp_path, capsys):
    argv = ["--checkpoint", digits, "--shifts", "1,1,0,0", "--image-size", "64", "--output", tmp_path, "--opset"]
    assert command.main([str(a) for a in (*argv, 17, "--target", "onnx")]) == 0
    capsys.readouterr()
    code, out, _ = _run(capsys, "--check", tmp_path / "digits_64.onnx")
    assert code == 0 and "every operator has one at opset 17 to 18" in out


@pytest.mark.parametrize("content", [b"", b"not ONNX", b"\x08\x07:\x02\x12\x00"])
def test_what_is_no_model(content, tmp_path, capsys):
    (tmp_path / "m.onnx").write_bytes(content)
    code, out, err = _run(capsys, "--check", tmp_path / "m.onnx")
    assert (code, out) == (1, "") and "m.onnx" in err and "Traceback" not in err


def _relu(source, result, name="n"):
    return helper.make_node("Relu", [source], [result], name=name)


def _branches(reads):
    """A node with two graphs inside that read a value around them."""
    graph = helper.make_graph(
        [_relu(reads, "b", "inner")], "g", [], [helper.make_tensor_value_info("b", TensorProto.FLOAT, [1])]
    )
    return helper.make_node("If", ["x"], ["y"], name="if", then_branch=graph, else_branch=graph)


LOOP = [_relu("c", "a", "n1"), _relu("a", "b", "n2"), _relu("b", "c", "n3"), _relu("c", "y", "n4")]
# Nodes between x and y, with the constant w beside them, and what is said about them.
UNSOUND = {
    "dangling": ([_relu("nowhere", "y")], "node 'n', operator Relu, opset 13: nothing makes its input 0 (nowhere)"),
    "dangling inside": ([_branches("nowhere")], "nodes 'inner', 'inner', operator Relu, opset 13: nothing makes"),
    "no output": ([_relu("x", "z")], "refused  nothing makes the output 'y'; export the model again"),
    "cycle": (LOOP, "node 'n1', operator Relu, opset 13: it reads its own result, through 'n2', 'n3'; exp"),
    "its own": ([_relu("y", "y")], "node 'n', operator Relu, opset 13: it reads its own result; export"),
    "twice": (
        [_relu("x", "y", "a"), _relu("x", "y", "b")],
        "node 'b', operator Relu, opset 13: it makes 'y', which an",
    ),
    "a constant": ([_relu("x", "w", "a"), _relu("x", "y")], "it makes 'w', which a constant of the model makes, too"),
    "an input": ([_relu("w", "x", "a"), _relu("x", "y")], "it makes 'x', which an input of the model makes, too"),
    "pads": (
        [helper.make_node("Conv", ["x", "w"], ["y"], name="c\x1b[2J", pads=1)],
        "operator Conv, opset 13: its attribute pads is INT, and INTS is read; write it as INTS",
    ),
    "scale": (
        [helper.make_node("AscendQuant", ["x"], ["y"], name="q", scale=1)],
        "its attribute scale is INT, and FLOAT is read",
    ),
    "perm": (
        [helper.make_node("Transpose", ["x"], ["y"], name="t", perm="0,2,3,1")],
        "its attribute perm is STRING, and INTS is read",
    ),
}


@pytest.mark.parametrize("case", UNSOUND)
def test_values_that_do_not_hang_together(case, tmp_path, capsys):
    nodes, message = UNSOUND[case]
    code, out, err = _run(capsys, "--check", _write(tmp_path / "m.onnx", *nodes))
    assert code == 1 and message in out and "verdict  refused by the parser" in out, out
    assert "finding" in err and "\x1b" not in out + err and "Error:" not in err


def test_values_that_do(tmp_path, capsys):
    sound = [
        [_branches("x")],
        [_relu("a", "y", "n2"), _relu("x", "a", "n1")],
        [helper.make_node("Clip", ["x", "", "w"], ["y"], name="c")],
    ]
    for nodes in sound:
        code, out, _ = _run(capsys, "--check", _write(tmp_path / "m.onnx", *nodes, opset=16))
        assert code == 0 and "nothing" not in out, out


def _with_weights(path, **place):
    """A model whose constant lies in another file."""
    _write(path, helper.make_node("Conv", ["x", "w"], ["y"], name="c", kernel_shape=[1, 1]))
    model = onnx.load_model(path)
    (tensor,) = model.graph.initializer
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in place.items():
        tensor.external_data.add(key=key, value=str(value))
    path.write_bytes(model.SerializeToString())
    return path


def test_weights_that_are_missing(tmp_path, capsys):
    path, weights = tmp_path / "m.onnx", tmp_path / "m.data"
    code, out, err = _run(capsys, "--check", _with_weights(path, location="m.data", offset=4, length=36))
    assert code == 1 and "refused  1 tensor cannot be read: the file 'm.data' is missing; put it beside" in out
    assert "(1 finding)" in err
    weights.write_bytes(bytes(39))
    assert "the file 'm.data' has 39 bytes, and 40 are read" in _run(capsys, "--check", path)[1]
    weights.write_bytes(bytes(40))
    assert _run(capsys, "--check", path)[0] == 0
    assert (
        "has 40 bytes, and 104 are read"
        in _run(capsys, "--check", _with_weights(path, location="m.data", offset=68))[1]
    )
    for place, problem in (
        ({"location": weights}, "named by an absolute path"),
        ({"location": "m.data", "offset": "four"}, "where 'w' lies in its file is not a number"),
        ({"location": "m.data\0"}, "is missing"),
    ):
        code, out, _ = _run(capsys, "--check", _with_weights(path, **place))
        assert code == 1 and problem in out and "\0" not in out
    _write(path, helper.make_node("Conv", ["x", "w"], ["y"], name="c", kernel_shape=[1, 1]))
    model = onnx.load_model(path)
    model.graph.initializer[0].ClearField("raw_data")
    path.write_bytes(model.SerializeToString())
    assert "1 tensor has no values ('w'); export the model again" in _run(capsys, "--check", path)[1]


@pytest.mark.parametrize("other", [["--model", "neonext_t"], ["--output", "o"], ["--target", "om"]])
def test_a_check_is_no_export(other, tmp_path, capsys):
    code, _, err = _run(capsys, "--check", _other_exporter(tmp_path / "m.onnx"), *other)
    assert code == 2 and f"--check and {other[0]}" in err
