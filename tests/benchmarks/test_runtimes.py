"""Every runtime: what is here on small models, what needs a board on recording stand-ins."""

from __future__ import annotations

import json
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

import lite_stand_in
from acl_stand_in import StandIn
from neonext_ms.benchmarks.inputs import DEFAULT_SIZE, check_batches, random_images
from neonext_ms.benchmarks.measure import timed
from neonext_ms.benchmarks.session import _check_finite
from neonext_ms.common.errors import InputError, ToolchainError, UsageError
from neonext_ms.runtime.acl import PyAcl
from neonext_ms.runtime.base import Settings
from neonext_ms.runtime.onnx import onnx_signature
from neonext_ms.runtime.open import RUNTIMES, choose_runtimes, open_runtime, runtime_class

SIZE = (8, 8)


def classifier(path, shape=("n", 3, 8, 8), dtype=TensorProto.FLOAT, name="pixels", scale=1.0):
    """An ONNX file whose outputs are the mean of each channel, times `scale`."""
    kind = helper.tensor_dtype_to_np_dtype(dtype)
    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", [name], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["flat"]),
            helper.make_node("Mul", ["flat", "scale"], ["logits"]),
        ],
        "net",
        [helper.make_tensor_value_info(name, dtype, shape)],
        [helper.make_tensor_value_info("logits", dtype, [shape[0], 3])],
        [onnx.numpy_helper.from_array(np.array(scale, kind), "scale")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return str(path)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "openvino-bf16"])
def test_onnx_runtimes_agree(name, tmp_path):
    kind = runtime_class(name)
    if kind.missing():
        pytest.skip(kind.missing())
    path = classifier(tmp_path / "net.onnx")
    runtime = kind()
    found = runtime.describe(path, Settings(1, SIZE))
    assert found.name == "pixels" and found.batches is None
    images = random_images(found, 2, SIZE)
    with runtime:
        runtime.load(path, Settings(2, SIZE, threads=1))
        (logits,) = runtime.run([images])
        parts = timed(runtime, [images])()
    assert logits == pytest.approx(images.mean(axis=(2, 3)), abs=0.01)
    assert set(parts) == {"copy_in", "execute", "copy_out"} and min(parts.values()) >= 0
    runtime.close()


def test_mindspore_agrees_with_onnxruntime(tmp_path, digits):
    from neonext_ms.export import pipeline
    from neonext_ms.export.request import Request
    from neonext_ms.export.source import Source

    report = pipeline.export(
        Source.from_checkpoint(digits, (1, 1, 0, 0)),
        Request(["onnx", "mindir"], [(64, 64)], batch=(1,)),
        tmp_path,
    )
    logits = []
    for target, name in (("onnx", "onnxruntime"), ("mindir", "mindspore")):
        path = str(report.files[target])
        with runtime_class(name)() as runtime:
            found = runtime.describe(path, Settings(1, (64, 64)))
            assert found.batches == (1,) and found.size(path, None) == (64, 64)
            runtime.load(path, Settings(1, (64, 64), threads=2))
            logits.append(runtime.run([random_images(found, 1, (64, 64))])[0])
    assert logits[0] == pytest.approx(logits[1], abs=1e-3)


@pytest.mark.parametrize(
    "shape, dtype, batches, size",
    [
        (("n", 3, 8, 8), TensorProto.FLOAT, None, (8, 8)),
        ((4, 3, 8, 6), TensorProto.FLOAT16, (4,), (8, 6)),
        (("n", 3, "h", "w"), TensorProto.DOUBLE, None, (224, 224)),
        ((None, None, None, 32), TensorProto.UINT8, None, (224, 32)),
        ((2, 1, 5, 5), TensorProto.FLOAT, (2,), (5, 5)),
    ],
)
def test_the_input_is_derived_from_the_file(shape, dtype, batches, size, tmp_path):
    found = onnx_signature(classifier(tmp_path / "net.onnx", shape, dtype, name="x.1"))
    assert found.name == "x.1" and found.batches == batches
    assert found.size("net", None, DEFAULT_SIZE) == size
    images = random_images(found, 2, size, seed=3)
    assert images.dtype == helper.tensor_dtype_to_np_dtype(dtype)
    assert images.shape == (2, shape[1] if isinstance(shape[1], int) else 3, *size)
    assert np.array_equal(images, random_images(found, 2, size, seed=3)) and images.std() > 0


def test_sizes_and_batches_that_do_not_fit(tmp_path):
    path = classifier(tmp_path / "net.onnx", (4, 3, 8, 8))
    found = onnx_signature(path)
    with pytest.raises(UsageError, match=r"float32 4x3x8x8, so images of 16x16 do not fit"):
        found.size(path, (16, 16))
    assert check_batches(path, found, [1, 4]) == [4]
    with pytest.raises(InputError, match=r"batches of 4 only \(got 1, 8\)\. Pass --batch 4"):
        check_batches(path, found, [1, 8])


def test_what_is_no_model_of_images(tmp_path):
    wrong = tmp_path / "wrong.onnx"
    wrong.write_bytes(b"this is not a model")
    with pytest.raises(InputError, match="not a valid ONNX file"):
        onnx_signature(wrong)
    (tmp_path / "empty.onnx").write_bytes(b"")
    with pytest.raises(InputError, match="no nodes"):
        onnx_signature(tmp_path / "empty.onnx")
    with pytest.raises(InputError, match="no such file"):
        onnx_signature(tmp_path / "missing.onnx")
    model = onnx.load(classifier(tmp_path / "two.onnx"))
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, [1]))
    onnx.save(model, tmp_path / "two.onnx")
    with pytest.raises(InputError, match="found 2: pixels, mask"):
        onnx_signature(tmp_path / "two.onnx")
    text = classifier(tmp_path / "text.onnx")
    model = onnx.load(text)
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64
    onnx.save(model, text)
    with pytest.raises(InputError, match=r"one input of images.*int64"):
        onnx_signature(text)


@pytest.mark.parametrize("value, word", [(np.nan, "NaN"), (np.inf, "infinite")])
def test_outputs_that_are_not_finite(value, word):
    _check_finite("net", [np.zeros(3, np.float32), np.arange(3)])
    with pytest.raises(InputError, match=f"net: it returns {word} values"):
        _check_finite("net", [np.array([0, value], np.float16)])


def test_choice_of_runtimes(monkeypatch):
    assert [r.name for r in choose_runtimes("a.onnx", [])] == ["onnxruntime"]
    assert [r.name for r in choose_runtimes("a.mindir", ["onnxruntime", "mindspore"])] == ["mindspore"]
    with pytest.raises(UsageError, match=r"unknown runtime 'onxruntime' .did you mean onnxruntime"):
        choose_runtimes("a.onnx", ["onxruntime"])
    with pytest.raises(UsageError, match=r"openvino takes no \.mindir file; these do: mindspore"):
        choose_runtimes("a.mindir", ["openvino"])
    with pytest.raises(UsageError, match=r"unknown kind of model '\.onn'.*did you mean \.onnx"):
        choose_runtimes("a.onn", [])
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ToolchainError, match=r"openvino is not installed; install it with: pip install"):
        choose_runtimes("a.onnx", ["openvino"])
    with pytest.raises(ToolchainError, match=r"pyacl cannot be used here.*install CANN"):
        choose_runtimes("a.om", [])


def test_what_needs_a_board_says_that_it_was_not_run_on_one():
    labels = {name: runtime_class(name).label for name in RUNTIMES}
    assert {name for name, label in labels.items() if label == "not run on a device"} == {
        "onnxruntime-cann", "mindspore-ascend", "pyacl", "ais_bench", "mindspore-lite-ascend",
    }  # fmt: skip


@pytest.fixture
def acl(monkeypatch):
    """The stand-in as the module `acl`; at the end nothing is left on the device and no rule was broken."""
    stand_in = StandIn()
    monkeypatch.setitem(sys.modules, "acl", stand_in)
    monkeypatch.setattr(PyAcl, "_device", None)
    yield stand_in
    PyAcl.shutdown()
    assert stand_in.live == {} and stand_in.violations == []


def om(path, dims=(2, 3, 8, 8), dtype="float32", batches=None, outputs=((2, 5),), out="float32"):
    tensors = [{"name": f"out{i}", "dims": list(d), "dtype": out} for i, d in enumerate(outputs)]
    model = {"inputs": [{"name": "image", "dims": list(dims), "dtype": dtype}], "outputs": tensors}
    path.write_text(json.dumps({**model, **({"batches": batches} if batches else {})}))
    return str(path)


def test_om_of_static_shape(acl, tmp_path):
    path = om(tmp_path / "net.om", outputs=((2, 5), (2, 3)), out="float16")
    runtime = PyAcl()
    found = runtime.describe(path, Settings(1, SIZE))
    assert (found.name, found.shape, found.batches, found.layout) == ("image", (2, 3, 8, 8), (2,), "NCHW")
    images = random_images(found, 2, SIZE)
    with runtime:
        runtime.load(path, Settings(2, SIZE))
        outputs = runtime.run([images])
        assert set(timed(runtime, [images])()) == {"copy_in", "execute", "copy_out"}
    assert [o.shape for o in outputs] == [(2, 5), (2, 3)] and outputs[0].dtype == np.float16
    assert outputs[0][:, 0] == pytest.approx(images.sum(axis=(1, 2, 3)), rel=1e-2)
    PyAcl.shutdown()
    order = [acl.calls.index(f"acl.{name}") for name in ("init", "rt.set_device", "rt.create_context")]
    assert order == sorted(order)
    last = [name.removeprefix("acl.") for name in acl.calls[-3:]]
    assert last == ["rt.destroy_context", "rt.reset_device", "finalize"]


@pytest.mark.parametrize("batch", [1, 8])
def test_om_with_several_batch_sizes(acl, batch, tmp_path):
    path = om(tmp_path / "net.om", (-1, 3, 8, 8), batches=[1, 8], outputs=((-1, 5),))
    with PyAcl() as runtime:
        found = runtime.describe(path, Settings(1, SIZE))
        assert found.batches == (1, 8)
        images = random_images(found, batch, SIZE)
        runtime.load(path, Settings(batch, SIZE))
        (logits,) = runtime.run([images])
    assert logits.shape == (batch, 5)
    assert logits[:, 4] == pytest.approx(images.sum(axis=(1, 2, 3)), rel=1e-3)


def test_om_with_aipp_takes_bytes_with_channels_last(acl, tmp_path):
    path = om(tmp_path / "net.om", (1, 8, 8, 3), dtype="uint8", outputs=((1, 2),))
    with PyAcl() as runtime:
        found = runtime.describe(path, Settings(1, SIZE))
        assert found.layout == "NHWC" and found.size(path, None) == SIZE
        runtime.load(path, Settings(1, SIZE))
        images = random_images(found, 1, SIZE)
        assert runtime.run([images])[0][0, 0] == images.sum()


def test_models_share_one_device(acl, tmp_path):
    paths = [om(tmp_path / f"{i}.om") for i in range(3)]
    with PyAcl() as one, PyAcl() as other:
        one.load(paths[0], Settings(2, SIZE))
        other.load(paths[1], Settings(2, SIZE))
        one.load(paths[2], Settings(2, SIZE))
        with pytest.raises(InputError, match="this run uses device 0 already"):
            PyAcl().load(paths[0], Settings(2, SIZE, device=1))
    assert acl.calls.count("acl.init") == 1


FAILING = [
    "acl.init", "acl.rt.set_device", "acl.rt.create_context", "acl.mdl.load_from_file", "acl.mdl.create_desc",
    "acl.mdl.get_desc", "acl.mdl.get_input_dims", "acl.mdl.get_dynamic_batch", "acl.mdl.create_dataset",
    "acl.rt.malloc", "acl.create_data_buffer", "acl.mdl.add_dataset_buffer", "acl.mdl.get_input_index_by_name",
    "acl.mdl.set_dynamic_batch_size", "acl.mdl.get_output_dims", "acl.rt.memcpy", "acl.mdl.execute",
]  # fmt: skip


@pytest.mark.parametrize("call", FAILING)
def test_every_failing_call_is_named_and_everything_given_back(acl, call, tmp_path):
    path = om(tmp_path / "net.om", (-1, 3, 8, 8), batches=[1, 8], outputs=((-1, 5),))
    acl.fail[call] = 207001
    runtime = PyAcl()
    with pytest.raises(InputError) as caught, runtime:
        runtime.load(path, Settings(8, SIZE))
        runtime.run([np.zeros((8, 3, 8, 8), np.float32)])
    assert call in str(caught.value) and "memory" in str(caught.value)
    acl.fail.clear()


@pytest.mark.parametrize("call", ["acl.rt.free", "acl.mdl.unload"])
def test_what_cannot_be_given_back_is_told_and_the_rest_is(acl, call, tmp_path):
    runtime = PyAcl()
    runtime.load(om(tmp_path / "net.om"), Settings(2, SIZE))
    acl.fail[call] = 507011
    with pytest.raises(InputError, match=f"not everything could be freed: .*{call} returned 507011"):
        runtime.close()
    kinds = {"acl.rt.free": "memory", "acl.mdl.unload": "model"}
    assert set(acl.live) == {kinds[call], "context", "init", "device"}
    acl._live[kinds[call]].clear()
    acl.fail.clear()


def test_wrong_inputs_of_an_om(acl, tmp_path):
    with PyAcl() as runtime:
        runtime.load(om(tmp_path / "net.om"), Settings(2, SIZE))
        with pytest.raises(InputError, match="takes 1536 bytes, these images are 768"):
            runtime.run([np.zeros((1, 3, 8, 8), np.float32)])
    path = om(tmp_path / "open.om", (1, 3, -1, -1))
    with pytest.raises(InputError, match="build it with static sizes"):
        PyAcl().describe(path, Settings(1, SIZE))
    with pytest.raises(InputError, match="no such file"):
        PyAcl().load(str(tmp_path / "missing.om"), Settings(1, SIZE))


def test_something_else_called_acl(monkeypatch):
    monkeypatch.setitem(sys.modules, "acl", json)
    assert "is not pyACL" in PyAcl.missing()


@pytest.fixture
def lite(monkeypatch):
    monkeypatch.setitem(sys.modules, "mindspore_lite", lite_stand_in)
    monkeypatch.setattr(lite_stand_in.Model, "built", [])
    return lite_stand_in


def test_lite_on_ascend_keeps_its_sizes(lite, tmp_path):
    path = tmp_path / "net.mindir"
    path.write_bytes(b"")
    with runtime_class("mindspore-lite-ascend")() as runtime:
        assert runtime.describe(str(path), Settings(1, SIZE)).batches == (1,)
        runtime.load(str(path), Settings(1, SIZE, device=3))
        context = lite.Model.built[-1][1]
        assert (context.target, context.ascend.device_id) == (["ascend"], 3)
        with pytest.raises(InputError, match="rejects the input"):
            runtime.run([np.zeros((2, 3, 8, 8), np.float32)])
    broken = tmp_path / "broken.mindir"
    broken.write_bytes(b"")
    with pytest.raises(InputError, match="MindSpore Lite cannot load it"):
        runtime_class("mindspore-lite-ascend")().load(str(broken), Settings(1, SIZE))


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_sums_of_8_bit_products_do_not_saturate(name, tmp_path):
    kind = runtime_class(name)
    if kind.missing():
        pytest.skip(kind.missing())
    inner, outputs = 64, 16
    constants = {
        "step": np.float32(1),
        "zero": np.uint8(0),
        "weights": np.full((inner, outputs), 127, np.int8),
        "steps": np.ones(outputs, np.float32),
        "zeros": np.zeros(outputs, np.int8),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["pixels"], ["rows"]),
            helper.make_node("QuantizeLinear", ["rows", "step", "zero"], ["codes"]),
            helper.make_node("DequantizeLinear", ["codes", "step", "zero"], ["values"]),
            helper.make_node("DequantizeLinear", ["weights", "steps", "zeros"], ["matrix"], axis=1),
            helper.make_node("Gemm", ["values", "matrix"], ["logits"]),
        ],
        "net",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ("n", 1, 8, 8))],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ("n", outputs))],
        [onnx.numpy_helper.from_array(np.asarray(value), key) for key, value in constants.items()],
    )
    path = tmp_path / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    with kind() as runtime:
        runtime.load(str(path), Settings(4, SIZE))
        (logits,) = runtime.run([np.full((4, 1, 8, 8), 255, np.float32)])
    assert np.array_equal(logits, np.full((4, outputs), 255 * 127 * inner, np.float32))


class CannSession:
    """A session as the CANN provider's documentation shows it, on the CPU's arrays."""

    def __init__(self, path, options, providers):
        self.made = providers
        self._session = _REAL(path, options, providers=["CPUExecutionProvider"])
        self.bound = {}

    def get_providers(self):
        return [self.made[0][0], self.made[1]]

    def get_inputs(self):
        return self._session.get_inputs()

    def get_outputs(self):
        return self._session.get_outputs()

    def io_binding(self):
        return self

    def bind_output(self, name, device, number):
        assert (device, number) == ("cann", 1)

    def bind_ortvalue_input(self, name, value):
        self.bound[name] = value

    def run_with_iobinding(self, binding):
        self._outputs = self._session.run(None, self.bound)

    def synchronize_outputs(self):
        pass

    def copy_outputs_to_cpu(self):
        return self._outputs


_REAL = onnxruntime.InferenceSession


def test_cann_provider_binds_device_memory(monkeypatch, tmp_path):
    def on_device(array, device, number):
        assert (device, number) == ("cann", 1)
        return array

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CANNExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", CannSession)
    monkeypatch.setattr(onnxruntime.OrtValue, "ortvalue_from_numpy", on_device)
    path = classifier(tmp_path / "net.onnx")
    (kind,) = choose_runtimes(path, ["onnxruntime-cann"])
    with kind() as runtime:
        runtime.load(path, Settings(2, SIZE, device=1))
        provider, options = runtime._session.made[0]
        assert provider == "CANNExecutionProvider" and options["device_id"] == 1
        images = random_images(runtime.describe(path, Settings(1, SIZE)), 2, SIZE)
        assert runtime.run([images])[0] == pytest.approx(images.mean(axis=(2, 3)), abs=1e-5)


def test_a_board_file_is_opened_as_a_classifier(acl, tmp_path):
    path = om(tmp_path / "net.om", (-1, 3, 8, 8), batches=[1, 4], outputs=((-1, 5),))
    (tmp_path / "net.json").write_text(json.dumps({"labels": list("abcde"), "image_size": [8, 8]}))
    images = np.random.default_rng(0).standard_normal((6, 3, 8, 8), np.float32)
    with open_runtime(path) as model:
        assert (model.name, model.batch, model.classes, model.input_size) == ("pyacl", 4, 5, SIZE)
        assert model.metadata["labels"] == list("abcde") and model.notes == ["pyacl: not run on a device"]
        assert model.run(images)[:, 2] == pytest.approx(images.sum(axis=(1, 2, 3)), rel=1e-3)
