from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from neonext_ms.export.onnx.save import write_streamed

ARRAYS = {
    "float": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "transposed": np.arange(12, dtype=np.float32).reshape(3, 4).T,
    "scalar": np.float32(3).reshape(()),
    "empty": np.zeros((0, 3), np.float32),
    "half": np.arange(5, dtype=np.float16),
    "bfloat16": np.arange(300).astype(ml_dtypes.bfloat16),
    "integer": np.array([1, -2, 3], np.int64),
    "large": np.random.RandomState(0).standard_normal((2000, 300)).astype(np.float32)[::2],
}


def _model():
    node = helper.make_node("Identity", ["x"], ["y"])
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3]) for name in "xy"]
    graph = helper.make_graph([node], "g", values[:1], values[1:])
    graph.initializer.append(numpy_helper.from_array(np.ones(2, np.float32), "inside"))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model.metadata_props.add(key="k", value="v")
    return model


def test_every_array_arrives(tmp_path):
    model = _model()
    before = model.SerializeToString()
    write_streamed(model, ARRAYS, tmp_path / "m.onnx")
    assert model.SerializeToString() == before
    read = onnx.load(tmp_path / "m.onnx")
    assert [i.name for i in read.graph.initializer] == ["inside", *ARRAYS]
    for tensor in read.graph.initializer[1:]:
        array = numpy_helper.to_array(tensor)
        assert array.dtype == ARRAYS[tensor.name].dtype and array.shape == ARRAYS[tensor.name].shape
        np.testing.assert_array_equal(array.astype(np.float64), ARRAYS[tensor.name].astype(np.float64))
    assert read.metadata_props[0].value == "v" and read.graph.node[0].op_type == "Identity"
    onnx.checker.check_model(read)


def test_it_reads_as_the_message_that_protobuf_would_make(tmp_path):
    write_streamed(_model(), ARRAYS, tmp_path / "m.onnx")
    whole = _model()
    for name, array in ARRAYS.items():
        whole.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
    ours = onnx.load(tmp_path / "m.onnx")
    assert ours.graph.node == whole.graph.node and ours.opset_import == whole.opset_import
    for one, two in zip(ours.graph.initializer, whole.graph.initializer, strict=True):
        assert numpy_helper.to_array(one).tobytes() == numpy_helper.to_array(two).tobytes()


def test_a_place_that_cannot_be_written(tmp_path):
    with pytest.raises(OSError):
        write_streamed(_model(), {}, tmp_path / "missing" / "m.onnx")
