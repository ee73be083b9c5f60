"""Every kind of model file, good and bad, through the one class that runs them."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from neonext_ms.common import worker
from neonext_ms.common.errors import InputError, ToolchainError, UsageError
from neonext_ms.common.files import sha256
from neonext_ms.common.signals import signals_later
from neonext_ms.images.images import load_images
from neonext_ms.images.preprocessing import Preprocessing
from neonext_ms.runtime.base import chunks, run_in_chunks
from neonext_ms.runtime.isolated import IsolatedModel
from neonext_ms.runtime.manifest import is_recorded
from neonext_ms.runtime.mindspore import _mindir_format
from neonext_ms.runtime.open import open_runtime

DATA = Path(__file__).parents[1] / "data"
CLASSES = 5
WEIGHT = np.random.default_rng(0).standard_normal((CLASSES, 3, 1, 1)).astype(np.float32)
METADATA = {"labels": list("abcde"), "preprocessing": Preprocessing(crop=0.9).to_dict(), "shifts": [1, 1, 0, 0]}


def expected(images):
    return np.einsum("nchw,oc->no", images, WEIGHT[:, :, 0, 0]) / np.prod(images.shape[2:])


def images(count, height=8, width=12):
    return np.random.default_rng(1).standard_normal((count, 3, height, width)).astype(np.float32)


def onnx_file(
    path, shape=("n", 3, 8, 12), metadata=None, classes=CLASSES, kind=TensorProto.FLOAT, inputs=1, outputs=("y",)
):
    """A classifier: 1x1 convolution, mean over the image."""
    names = [f"x{i}" for i in range(inputs)]
    nodes = [
        helper.make_node("Conv", ["x0", "w"], ["c"]),
        helper.make_node("GlobalAveragePool", ["c"], ["p"]),
        *[helper.make_node("Flatten", ["p"], [name], axis=1) for name in outputs],
    ]
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, kind, shape) for name in names],
        [helper.make_tensor_value_info(name, kind, [shape[0], classes]) for name in outputs],
        [numpy_helper.from_array(WEIGHT.astype(dtype), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if metadata is not None:
        text = metadata if isinstance(metadata, str) else json.dumps(metadata)
        helper.set_model_props(model, {"neonext_ms": text})
    onnx.save(model, path)
    return path


# ONNX


@pytest.mark.parametrize("count", [0, 1, 4, 5, 9])
@pytest.mark.parametrize("batch", ["n", 1, 4])
def test_onnx(tmp_path, batch, count):
    with open_runtime(onnx_file(tmp_path / "m.onnx", (batch, 3, 8, 12), METADATA)) as runtime:
        assert (runtime.name, runtime.input_size, runtime.classes) == ("onnxruntime", (8, 12), CLASSES)
        assert runtime.batch == (None if batch == "n" else batch)
        assert runtime.metadata == METADATA
        logits = runtime.run(images(count))
    assert logits.shape == (count, CLASSES) and logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected(images(count)), atol=1e-5)


def test_foreign_onnx(tmp_path):
    runtime = open_runtime(onnx_file(tmp_path / "m.onnx", ("n", 3, 8, 12), classes="k"), threads=1)
    assert runtime.metadata == {}
    assert runtime.classes == CLASSES
    np.testing.assert_allclose(runtime.run(images(3)), expected(images(3)), atol=1e-5)


def test_half_precision_onnx(tmp_path):
    runtime = open_runtime(onnx_file(tmp_path / "m.onnx", kind=TensorProto.FLOAT16))
    logits = runtime.run(images(3))
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected(images(3)), atol=1e-2)


def test_onnx_with_open_size(tmp_path):
    path = onnx_file(tmp_path / "m.onnx", ("n", 3, "h", "w"))
    with pytest.raises(UsageError, match="Pass --image-size"):
        open_runtime(path)
    assert open_runtime(path, image_size=(8, 12)).run(images(2)).shape == (2, CLASSES)
    path = onnx_file(tmp_path / "m.onnx", ("n", 3, "h", "w"), {"image_size": [8, 12]})
    assert open_runtime(path).input_size == (8, 12)
    assert open_runtime(path, image_size=(16, 12)).input_size == (16, 12)


def test_onnx_size_that_contradicts(tmp_path):
    path = onnx_file(tmp_path / "m.onnx")
    assert open_runtime(path, image_size=(8, 12)).input_size == (8, 12)
    with pytest.raises(UsageError, match=r"m\.onnx: its input is float32 .*8x12, so images of 16x16 do not fit"):
        open_runtime(path, image_size=(16, 16))
    with pytest.raises(InputError, match="the graph has images of 8 pixels, its metadata says 9"):
        open_runtime(onnx_file(path, metadata={"image_size": [9, 12]}))


def test_images_that_do_not_fit(tmp_path):
    runtime = open_runtime(onnx_file(tmp_path / "m.onnx"))
    for bad in (images(2, 12, 8), images(2).astype(np.float64), images(2)[0]):
        with pytest.raises(InputError, match=r"m\.onnx: expected float32 images of shape \(N, 3, 8, 12\)"):
            runtime.run(bad)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inputs": 2}, "one input, the images; found 2: x0, x1"),
        ({"outputs": ("y", "z")}, "expected one output, or one called 'logits'; found y, z"),
        ({"shape": ("n", 3, 8, 12, 1)}, r"expected an input of floating-point images|cannot load it"),
        ({"shape": ("n", 1, 8, 12)}, "expected an input of floating-point images|cannot load it"),
        ({"kind": TensorProto.DOUBLE}, "operators or types that a CPU lacks"),
        ({"metadata": {"labels": ["a"]}}, "1 labels, but the model has 5 classes"),
        ({"metadata": {"image_size": "large"}}, "image_size must be"),
        ({"metadata": {"preprocessing": {"crp": 1}}}, "unknown key 'crp' .did you mean crop"),
        ({"metadata": {"batch": -1}}, "batch must be"),
        ({"metadata": "{"}, "not the metadata of an export in JSON"),
        ({"metadata": "[]"}, "expected a JSON object"),
    ],
)
def test_unsuitable_onnx(tmp_path, options, message):
    with pytest.raises(InputError, match=rf"m\.onnx.*({message})"):
        open_runtime(onnx_file(tmp_path / "m.onnx", **options))


def test_onnx_of_bytes(tmp_path):
    nodes = [helper.make_node("Cast", ["x"], ["f"], to=1), helper.make_node("ReduceMean", ["f"], ["y"], axes=[2, 3])]
    values = [
        helper.make_tensor_value_info("x", TensorProto.UINT8, ["n", 3, 8, 8]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
    ]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    with pytest.raises(InputError, match=r"expected an input of floating-point images .* uint8"):
        open_runtime(tmp_path / "m.onnx")


def test_onnx_that_is_no_classifier(tmp_path):
    path = onnx_file(tmp_path / "m.onnx")
    model = onnx.load(path)
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("c", TensorProto.FLOAT, None))
    onnx.save(model, path)
    with pytest.raises(InputError, match=r"expected logits of shape \(1, classes\).* is it a classifier"):
        open_runtime(path)


def test_output_called_logits(tmp_path):
    runtime = open_runtime(onnx_file(tmp_path / "m.onnx", outputs=("features", "logits")))
    assert runtime.run(images(2)).shape == (2, CLASSES)


@pytest.mark.parametrize("share", [0, 0.3, 0.9])
def test_truncated_onnx(tmp_path, share):
    path = onnx_file(tmp_path / "m.onnx")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(InputError, match=r"m\.onnx: onnxruntime cannot load it"):
        open_runtime(path)


def test_onnx_with_texts_that_are_not_utf8(tmp_path):
    path = onnx_file(tmp_path / "m.onnx", metadata={"labels": ["ABCDEFGH"] * CLASSES})
    path.write_bytes(path.read_bytes().replace(b"ABCDEFGH", b"\xff" * 8))
    with pytest.raises(InputError, match=r"m\.onnx: .*UnicodeDecodeError"):
        open_runtime(path)


def test_onnx_with_an_operator_of_a_device(tmp_path):
    path = onnx_file(tmp_path / "m.onnx")
    model = onnx.load(path)
    model.graph.node[1].op_type = "NeoCell"
    onnx.save(model, path)
    with pytest.raises(InputError, match="operators or types that a CPU lacks"):
        open_runtime(path)


def test_unknown_files(tmp_path, monkeypatch):
    monkeypatch.setenv("NEONEXT_LITE", str(tmp_path / "nothing"))
    for name in ("m.onx", "m"):
        with pytest.raises(UsageError, match=r"unknown kind of model .* \.onnx, \.mindir, \.om, \.ms, \.pt"):
            open_runtime(tmp_path / name)
    with pytest.raises(UsageError, match="this is a folder"):
        open_runtime(tmp_path)
    for name, missing in (("m.om", "install CANN"), ("m.ms", "Run `python -m neonext_ms.lite`")):
        with pytest.raises(ToolchainError, match=missing):
            open_runtime(tmp_path / name)
    for name in ("m.onnx", "m.mindir", "m.pt"):
        with pytest.raises(InputError, match=f"{name}: no such file"):
            open_runtime(tmp_path / name)
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(InputError, match="this is a folder"):
        open_runtime(tmp_path / "folder.onnx")


def test_options_of_checkpoints(tmp_path):
    path = onnx_file(tmp_path / "m.onnx", metadata=METADATA)
    open_runtime(path, shifts=(1, 1, 0, 0)).close()
    with pytest.raises(UsageError, match="built in, and has 1,1,0,0; --shifts 1,1,1,0 cannot"):
        open_runtime(path, shifts=(1, 1, 1, 0))
    with pytest.raises(UsageError, match="--ema is for checkpoints"):
        open_runtime(path, ema=True)


def test_onnx_needs_no_mindspore(tmp_path):
    path = onnx_file(tmp_path / "m.onnx")
    code = (
        "import sys, numpy as np; from neonext_ms.runtime.open import open_runtime;"
        f"open_runtime({str(path)!r}).run(np.zeros((2, 3, 8, 12), np.float32)); sys.exit('mindspore' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_closed_twice(tmp_path):
    runtime = open_runtime(onnx_file(tmp_path / "m.onnx"))
    runtime.close()
    runtime.close()


@pytest.mark.parametrize("batch", ["n", 4])
def test_a_runtime_of_choice(tmp_path, batch):
    pytest.importorskip("openvino")
    path = onnx_file(tmp_path / "m.onnx", (batch, 3, "h", "w"), METADATA)
    with open_runtime(path, image_size=(8, 12), threads=1, runtime="openvino") as runtime:
        assert (runtime.name, runtime.classes, runtime.metadata) == ("openvino", CLASSES, METADATA)
        for count in (1, 5):
            np.testing.assert_allclose(runtime.run(images(count)), expected(images(count)), atol=1e-5)
    with pytest.raises(UsageError, match=r"unknown runtime 'openvno' .did you mean openvino"):
        open_runtime(path, runtime="openvno")
    with pytest.raises(UsageError, match=r"mindspore takes no \.onnx file; these do: onnxruntime"):
        open_runtime(path, runtime="mindspore")


def test_chunks():
    parts = list(chunks(np.arange(1, 6)[:, None], 2))
    assert [(chunk.ravel().tolist(), count) for chunk, count in parts] == [([1, 2], 2), ([3, 4], 2), ([5, 0], 1)]
    doubled, summed = run_in_chunks(lambda x: [2 * x, x.sum(1)], np.arange(1, 6)[:, None], 2)
    assert doubled.ravel().tolist() == [2, 4, 6, 8, 10] and summed.tolist() == [1, 2, 3, 4, 5]


# MindIR


@pytest.fixture(scope="module")
def mindir_folder(tmp_path_factory):
    import mindspore as ms
    from mindspore import nn

    class Net(nn.Cell):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, CLASSES, 1, weight_init=ms.Tensor(WEIGHT))

        def construct(self, x):
            return self.conv(x).mean((2, 3))

    folder = tmp_path_factory.mktemp("mindir")
    ms.set_device("CPU")
    net = Net()
    for name, (batch, *size) in (("fixed", (4, 8, 12)), ("dynamic", (None, 8, 12)), ("open", (None, None, None))):
        x = ms.Tensor(shape=[batch, 3, *size], dtype=ms.float32)
        ms.export(net, x, file_name=str(folder / name), file_format="MINDIR")
    return folder


@pytest.mark.parametrize("count", [1, 6, 19])
@pytest.mark.parametrize("name", ["fixed", "dynamic"])
def test_mindir_with_manifest(mindir_folder, name, count):
    batch = 4 if name == "fixed" else None
    # The digest vouches for the file, so that MindSpore loads it in this process.
    files = [{"file": f"{name}.mindir", "sha256": sha256(mindir_folder / f"{name}.mindir")}]
    manifest = {**METADATA, "image_size": [8, 12], "batch": batch, "format": "MindIR", "files": files}
    (mindir_folder / f"{name}.json").write_text(json.dumps(manifest))
    with open_runtime(mindir_folder / f"{name}.mindir") as runtime:
        assert (runtime.name, runtime.input_size, runtime.classes) == ("mindspore", (8, 12), CLASSES)
        assert runtime.batch == batch
        assert runtime.metadata["labels"] == list("abcde")
        logits = runtime.run(images(count))
    assert logits.shape == (count, CLASSES) and logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected(images(count)), atol=1e-5)


def test_mindir_without_manifest(mindir_folder, tmp_path):
    path = tmp_path / "m.mindir"
    path.write_bytes((mindir_folder / "open.mindir").read_bytes())
    with pytest.raises(UsageError, match=r"there is no .*m\.json.*Pass --image-size"):
        open_runtime(path)
    with open_runtime(path, image_size=(8, 12)) as runtime:
        np.testing.assert_allclose(runtime.run(images(5)), expected(images(5)), atol=1e-5)
    path.write_bytes((mindir_folder / "fixed.mindir").read_bytes())
    with open_runtime(path) as runtime:
        assert (runtime.input_size, runtime.batch) == ((8, 12), 4)
        np.testing.assert_allclose(runtime.run(images(5)), expected(images(5)), atol=1e-5)
    with pytest.raises(UsageError, match="8x12, so images of 8x8 do not fit"):
        open_runtime(path, image_size=(8, 8))
    (tmp_path / "m.json").write_text("{")
    with pytest.raises(InputError, match=r"m\.json: not "):
        open_runtime(path)
    (tmp_path / "m.json").write_text('{"image_size": [8, 16]}')
    with pytest.raises(InputError, match="the graph has images of 12 pixels, its manifest says 16"):
        open_runtime(path)


@pytest.mark.parametrize("share", [0, 0.5, 0.95])
def test_truncated_mindir(mindir_folder, tmp_path, capfd, share):
    data = (mindir_folder / "fixed.mindir").read_bytes()
    path = tmp_path / "m.mindir"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(InputError, match=r"m\.mindir: not a (whole )?MindIR file"):
        open_runtime(path, image_size=(8, 12))
    assert capfd.readouterr() == ("", "")


def test_onnx_called_mindir(tmp_path, capfd):
    path = onnx_file(tmp_path / "m.onnx").rename(tmp_path / "m.mindir")
    with pytest.raises(InputError, match=r"m\.mindir: not a (whole )?MindIR file"):
        open_runtime(path, image_size=(8, 12))
    assert capfd.readouterr() == ("", "")


def _changed(mindir_folder, path, change):
    """Write a MindIR file with a change of its messages."""
    model = _mindir_format().ModelProto()
    model.ParseFromString((mindir_folder / "fixed.mindir").read_bytes())
    change(model)
    path.write_bytes(model.SerializeToString())
    return path


def _set(target, name, value):
    setattr(target, name, value)


def _elsewhere(model, location, offset, length):
    """Say that the values of the first parameter are in another file."""
    data = model.graph.parameter[0].external_data
    data.location, data.offset, data.length = location, offset, length
    model.graph.parameter[0].raw_data = b""


def test_a_mindir_input_of_a_size_that_nothing_holds(mindir_folder, tmp_path):
    sides = [1, 3, 1 << 40, 1 << 40]
    change = lambda m: m.graph.input[0].tensor[0].dims.__setitem__(slice(None), sides)  # noqa: E731
    with pytest.raises(InputError, match="its input is too large"):
        open_runtime(_changed(mindir_folder, tmp_path / "m.mindir", change))


def test_a_manifest_with_a_batch_that_nothing_holds(mindir_folder, tmp_path):
    path = tmp_path / "m.mindir"
    path.write_bytes((mindir_folder / "open.mindir").read_bytes())
    for size, batch, problem in ((64, 65536, "a batch of 65536 images of 64x64"), (64, 65537, "batch must be")):
        path.with_suffix(".json").write_text(json.dumps({"neonext_ms": "1", "image_size": size, "batch": batch}))
        with pytest.raises(InputError, match=problem):
            open_runtime(path)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda m: m.graph.node[-1].input.__setitem__(0, "nothing\x1b[2J"), r"reads 'nothing\\x1b\[2J', which nothing"),
        (lambda m: _set(m.graph.node[0], "op_type", ""), "has no operator"),
        (lambda m: _set(m.graph.node[-1], "op_type", "REF::Nothing:1"), "has an unknown operator 'Nothing:1'"),
        (lambda m: _set(m.graph.output[0], "name", "y" * 1000), r"output 'y+\.\.\.y+' is computed by nothing"),
        (lambda m: m.graph.parameter[0].dims.__setitem__(0, 1 << 40), "has 60 bytes for FLOAT"),
        (lambda m: m.graph.parameter[0].dims.__setitem__(0, -5), "has 60 bytes for FLOAT"),
        (lambda m: _set(m.graph.parameter[0], "data_type", 10), "has 60 bytes for FLOAT16"),
        # MindSpore would compute with what is in its memory.
        (lambda m: _set(m.graph.parameter[0], "raw_data", b""), "has 0 bytes for FLOAT"),
        (lambda m: _elsewhere(m, "inside", 64, 60), "has 0 bytes for FLOAT"),
        (lambda m: _elsewhere(m, "inside", 0, 59), "has 59 bytes for FLOAT"),
        (lambda m: _elsewhere(m, "missing", 0, 60), "has 0 bytes for FLOAT"),
        (lambda m: _elsewhere(m, "../outside", 0, 60), "has 0 bytes for FLOAT"),
        (lambda m: _elsewhere(m, "/dev/zero", 0, 60), "has 0 bytes for FLOAT"),
    ],
)
def test_a_mindir_graph_that_leads_nowhere(mindir_folder, tmp_path, change, problem):
    (tmp_path / "folder").mkdir()
    for name in ("outside", "folder/inside"):
        (tmp_path / name).write_bytes(bytes(100))
    path = _changed(mindir_folder, tmp_path / "folder" / "m.mindir", change)
    with pytest.raises(InputError, match=rf"m\.mindir: a damaged MindIR file \((.*{problem}.*)\)\. Export"):
        open_runtime(path, image_size=(8, 12))


# A process that says that it has loaded the file.
LOADED = "from multiprocessing.connection import Connection; c = Connection([{arguments}][0][0]); "
LOADED += "c.recv_bytes(); c.recv_bytes(); c.send_bytes(b''); c.send_bytes(b'0'); "


@pytest.mark.parametrize("moment", ["load", "run"])
def test_mindspore_dies(mindir_folder, tmp_path, monkeypatch, moment):
    """The process that loads a MindIR file ends by a signal; the command lives and says so."""
    program = "import os, signal; "
    if moment == "run":
        program += LOADED + "c.recv_bytes(); "
    monkeypatch.setattr(worker, "_PROGRAM", program + "os.kill(os.getpid(), signal.SIGSEGV)")
    path = tmp_path / "m.mindir"
    path.write_bytes((mindir_folder / "fixed.mindir").read_bytes())
    with pytest.raises(InputError, match=rf"MindSpore ended by signal SIGSEGV when it tried to {moment} it\. Export"):
        open_runtime(path, image_size=(8, 12)).run(images(4))


def test_a_changed_mindir_is_not_what_the_manifest_says(mindir_folder, tmp_path):
    path = tmp_path / "m.mindir"
    path.write_bytes((mindir_folder / "fixed.mindir").read_bytes())
    entry = {"file": "m.mindir", "sha256": sha256(path)}
    (tmp_path / "m.json").write_text(json.dumps({"neonext_ms": "0", "files": ["x", {"file": "other"}, entry]}))
    assert is_recorded(path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"m\.mindir: not the file that .*m\.json describes.* Export the model again"):
        open_runtime(path, image_size=(8, 12))
    (tmp_path / "m.json").write_text('{"files": 1}')
    assert not is_recorded(path)
    (tmp_path / "m.json").unlink()
    assert not is_recorded(path)


def test_an_isolated_model_ends_with_its_parent(monkeypatch):
    program = "import time; from neonext_ms.common.worker import end_with; end_with([{arguments}][0][1]); "
    monkeypatch.setattr(worker, "_PROGRAM", program + LOADED + "time.sleep(60)")
    process = IsolatedModel("m.mindir")._worker._process
    assert process.wait(20) == -signal.SIGIO


def test_signals_wait_for_an_import():
    # A test run in the background may have inherited that Ctrl-C is ignored.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    steps = []
    with pytest.raises(KeyboardInterrupt), signals_later():
        signal.raise_signal(signal.SIGINT)
        steps.append("imported")
    assert steps == ["imported"]
    assert signal.signal(signal.SIGINT, inherited) is signal.default_int_handler


# Checkpoints


@pytest.fixture(scope="module")
def checkpoint():
    return DATA / "digits_64.pt"


def test_checkpoint_has_the_official_logits(checkpoint):
    golden = np.load(DATA / "digits_20.npz")
    pixels = load_images([DATA / "digits" / name for name in golden["files"]], Preprocessing(), (64, 64))
    with open_runtime(checkpoint, shifts=(1, 1, 0, 0), image_size=(64, 64)) as runtime:
        assert (runtime.name, runtime.batch, runtime.classes) == ("mindspore", None, 10)
        for chunk in (pixels, pixels[:3]):
            np.testing.assert_allclose(runtime.run(chunk), golden["logits"][: len(chunk)], atol=2e-5)


def test_checkpoint_that_says_too_little(checkpoint):
    with pytest.raises(UsageError, match="--shifts"):
        open_runtime(checkpoint, image_size=(64, 64))
    with pytest.raises(UsageError, match="Pass --image-size"):
        open_runtime(checkpoint, shifts=(1, 1, 0, 0))
    with pytest.raises(InputError, match=r"digits_64\.pt: image size 63x64"):
        open_runtime(checkpoint, shifts=(1, 1, 0, 0), image_size=(63, 64))
