from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from acl_stand_in import StandIn
from neonext_ms import load_checkpoint
from neonext_ms.common.errors import InputError, UsageError
from neonext_ms.export.compare import command, compare, dump_side, keep_dtype, onnx_side
from neonext_ms.export.compare.difference import difference
from neonext_ms.export.compare.open import open_activations
from neonext_ms.export.compare.parity import noise
from neonext_ms.export.compare.side import Activations
from neonext_ms.export.fold import fold
from neonext_ms.export.graph import original_graph
from neonext_ms.export.lower import lower, neocell_to_matmul
from neonext_ms.export.onnx import emitter
from neonext_ms.export.onnx.format import CANN, Format
from neonext_ms.export.onnx.save import write_model
from neonext_ms.export.source import Source
from neonext_ms.export.tolerances import TOLERANCES, tolerance
from neonext_ms.models.architecture import make_architecture
from neonext_ms.models.initialization import initial_arrays
from neonext_ms.runtime.acl import PyAcl

SHIFTS = ["--shifts", "1,1,0,0"]


def _graph(size=(32, 32), features_only=False, **options):
    options = {"dims": (8, 16, 24, 32), "kernel_spec": "4+7", "num_classes": 5, "shifts": (1, 1, 0, 0)} | options
    architecture = make_architecture(per_stage_layers=(1, 0, 1, 0), **options)
    return original_graph(architecture, initial_arrays(architecture, rng=np.random.RandomState(0)), size, features_only)


def _models(folder, batch=None, opset=20, **options):
    """Naive and folded ONNX files of a small network."""
    network = _graph(**options)
    paths = folder / "naive.onnx", folder / "folded.onnx"
    for path, graph in zip(paths, (network, fold(network)[0]), strict=True):
        write_model(emitter.emit(neocell_to_matmul(graph), batch, Format(opset)), path)
    return paths


def _digits(path):
    """The folded graph of the digits checkpoint."""
    checkpoint = load_checkpoint(path, (1, 1, 0, 0))
    return neocell_to_matmul(fold(original_graph(checkpoint.architecture, checkpoint.float32(), (64, 64)))[0])


def _half(source: Path, target: Path) -> Path:
    """A float16 copy of a model."""
    model = onnx.load(source)
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            with np.errstate(over="ignore"):
                array = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    onnx.save(model, target)
    return target


def _spoiled(source: Path, target: Path, name: str, factor: float) -> Path:
    """A copy of a model with one constant multiplied."""
    model = onnx.load(source)
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(factor), name))
    onnx.save(model, target)
    return target


def _dump(source: Path, folder: Path, images, name_of, suffix=".npy", change=lambda name, value: value) -> Path:
    """Write the dump of a board: a file for every operator of a model."""
    side = open_activations(source)
    makers = {node.outputs[0]: node for node in side.nodes}
    for name, value in side.values(images):
        path = folder / (name_of(makers[name]) + suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        value = np.ascontiguousarray(change(name, value))
        np.save(path, value) if suffix == ".npy" else path.write_bytes(value.tobytes())
    return folder


def _run(argv, capsys):
    try:
        code = command.main([str(a) for a in argv])
    except SystemExit as stop:
        code = stop.code
    return code, *capsys.readouterr()


def _compare(a, b, images=None, **options):
    a, b = open_activations(a), open_activations(b)
    images = noise(2, a.input_size or b.input_size, 0) if images is None else images
    return compare.compare_activations(a, b, images, **{"layers": True, **options})


@pytest.mark.parametrize("options", [{}, {"size": (36, 44)}, {"downsample": "paper"}, {"opset": 13}, {"batch": 3}])
def test_naive_and_folded_agree_value_by_value(tmp_path, options):
    naive, folded = _models(tmp_path, **options)
    result = _compare(naive, folded)
    assert result.agrees and result.diverged_at is None and not result.suspects and not result.skipped
    assert result.top1_agree == 2 and "outputs agree" in result.verdict
    inner = {layer.name for layer in result.layers}
    assert {"stage_1.0.ops.content.fc_1", "stage_1.0.ops.content.act", "stage_3.0", "logits"} <= inner
    assert max(layer.relative_l2 for layer in result.layers) < 5e-6
    assert min(layer.cosine for layer in result.layers) > 1 - 1e-9


def test_layouts_are_told_apart_even_in_a_cube(tmp_path):
    naive, folded = _models(tmp_path, dims=(2, 2, 2, 2), size=(32, 32))
    result = _compare(naive, folded)
    assert {layer.name: layer.shape for layer in result.layers}["stage_1.0.ops.content.fc_1"] == (8, 8, 8)
    assert max(layer.relative_l2 for layer in result.layers) < 5e-6


def test_a_checkpoint_needs_no_mindspore(digits, tmp_path):
    code = (
        "import sys; from neonext_ms.export.compare import command as c; "
        "code = c.main(sys.argv[1:]); assert code == 0, code; assert 'mindspore' not in sys.modules"
    )
    argv = [digits, digits, *SHIFTS, "--image-size", "64", "--samples", "1"]
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True)
    assert done.returncode == 0 and "relative L2 0.0e+00" in done.stdout, done.stderr


def test_where_they_diverge_and_what_to_keep(tmp_path, capsys):
    naive, folded = _models(tmp_path)
    bad = _spoiled(folded, tmp_path / "bad.onnx", "stage_3.0.ops.content.fc_1.weight", 1.5)
    keep = tmp_path / "keep.txt"
    code, out, err = _run([naive, bad, "--keep-dtype", keep], capsys)
    assert (code, err) == (4, "")
    assert "verdict   outputs diverge at stage_3.0.ops.content.fc_1: logits relative L2" in out
    names = keep_dtype.read_keep_dtype(keep)
    assert "stage_3.0.ops.content.fc_1" in names and not any("stage_1" in name for name in names)
    assert set(names) <= {node.name for node in open_activations(bad).nodes}


def test_the_nodes_of_a_chain_are_kept_together(tmp_path):
    naive, folded = _models(tmp_path, opset=13)
    bad = onnx.load(folded)
    (half,) = (tensor for tensor in bad.graph.initializer if tensor.name == "half")
    half.CopyFrom(numpy_helper.from_array(np.float32(0.7), "half"))
    onnx.save(bad, tmp_path / "bad.onnx")
    reference = open_activations(tmp_path / "naive.onnx")
    # A reference that does not show the values inside the chain, as a file with one Gelu node does not.
    reference.names = tuple(name for name in reference.names if ".act." not in name)
    other = open_activations(tmp_path / "bad.onnx")
    result = compare.compare_activations(reference, other, noise(1, (32, 32), 0), layers=True)
    assert result.diverged_at == "stage_1.0.ops.content.act"
    kept = keep_dtype.suspect_nodes(result, other)
    assert {f"stage_1.0.ops.content.act{end}" for end in ("", ".scaled", ".erf", ".product")} <= set(kept)
    assert naive.exists()


def test_float16(tmp_path):
    naive, folded = _models(tmp_path)
    half = open_activations(_half(folded, tmp_path / "half.onnx"))
    assert half.dtype == "float16" and compare.tolerance_for(open_activations(naive), half) == TOLERANCES["float16"]
    result = _compare(naive, tmp_path / "half.onnx")
    assert result.agrees and 1e-5 < max(layer.relative_l2 for layer in result.layers) < 5e-3
    assert not _compare(naive, tmp_path / "half.onnx", tolerance=2e-5).agrees


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("gelu", ["auto", "tanh", "fast"])
def test_what_an_export_verified_agrees_in_a_comparison(dtype, gelu, digits, tmp_path, capsys):
    from neonext_ms.export import command as export_command

    targets = "onnx" if dtype == "bfloat16" else "onnx,mindir"
    argv = ["--checkpoint", digits, *SHIFTS, "--image-size", "64", "--target", targets, "--dtype", dtype]
    assert export_command.main([*argv, "--gelu", gelu, "--output", str(tmp_path)]) == 0
    for target in targets.split(","):
        capsys.readouterr()
        code, out, _ = _run([digits, tmp_path / f"digits_64.{target}", *SHIFTS, "--json"], capsys)
        assert (code, json.loads(out)["tolerance"]) == (0, tolerance(dtype, gelu))


def test_overflow_of_float16_is_found(tmp_path):
    naive, folded = _models(tmp_path)
    content = "stage_3.0.ops.content"
    for source, name in ((naive, "naive_big.onnx"), (folded, "folded_big.onnx")):
        _spoiled(source, tmp_path / name, f"{content}.fc_1.weight", 3e5)
        _spoiled(tmp_path / name, tmp_path / name, f"{content}.fc_2.weight", 1e-5)
    half = _half(tmp_path / "folded_big.onnx", tmp_path / "half.onnx")
    result = _compare(tmp_path / "naive_big.onnx", half)
    assert not result.agrees and result.diverged_at == f"{content}.fc_1" and result.suspects[0].not_finite
    assert [layer.name for layer in result.suspects] == [f"{content}.{name}" for name in ("fc_1", "act", "hwc2chw")]
    kept = keep_dtype.suspect_nodes(result, open_activations(half))
    assert kept == [f"{content}.{name}" for name in ("fc_1", "act", "fc_2")]
    json.dumps(result.to_dict(), allow_nan=False)


def test_values_come_in_groups_of_bounded_size(tmp_path, monkeypatch):
    naive, folded = _models(tmp_path)
    whole = _compare(naive, folded).to_dict()
    monkeypatch.setattr(onnx_side, "GROUP_BYTES", 20_000)
    monkeypatch.setattr(onnx_side, "STEP", 1)
    side = open_activations(naive)
    groups = list(side._groups(side.names, 2))
    assert len(groups) > 5 and [name for group in groups for name in group] == list(side.names)
    parts = _compare(naive, folded).to_dict()
    assert [layer["name"] for layer in parts["layers"]] == [layer["name"] for layer in whole["layers"]]
    assert parts["agree"]


def test_weights_in_a_file_of_their_own(tmp_path):
    naive, folded = _models(tmp_path)
    onnx.save(
        onnx.load(folded), tmp_path / "apart.onnx", save_as_external_data=True, location="apart.data", size_threshold=64
    )
    result = _compare(naive, tmp_path / "apart.onnx")
    assert result.agrees and len(result.layers) > 10


def test_a_foreign_model_is_compared_by_place(tmp_path, capsys):
    naive, folded = _models(tmp_path)
    model = onnx.load(folded)
    renamed = {}
    for i, node in enumerate(model.graph.node):
        node.name = f"/node/{i}"
        renamed |= {name: f"/v/{i}" for name in node.output}
    for node in model.graph.node:
        for values in (node.input, node.output):
            values[:] = [renamed.get(name, name) for name in values]
    model.graph.output[0].name = renamed["logits"]
    onnx.save(model, tmp_path / "foreign.onnx")
    code, out, err = _run([naive, tmp_path / "foreign.onnx", "--layers"], capsys)
    assert code == 0 and "no inner value in common" in err and "outputs agree: logits" in out


def test_mindir(digits, tmp_path, capsys):
    from neonext_ms.export import mindir

    mindir.write(_digits(digits), tmp_path / "d.mindir", None)
    argv = [digits, tmp_path / "d.mindir", *SHIFTS, "--image-size", "64", "--layers", "--samples", "2"]
    code, out, err = _run(argv, capsys)
    assert code == 0 and "only the outputs" in err and "top-1 2/2" in out


def test_stage_outputs_of_a_mindir_in_half_precision_without_a_manifest(digits, tmp_path, capsys):
    from neonext_ms.commands import info
    from neonext_ms.export import mindir

    source = Source.from_checkpoint(digits, (1, 1, 0, 0))
    graph = lower(fold(original_graph(source.architecture, source.arrays, (64, 64), True))[0], Format())
    mindir.write(graph, tmp_path / "d.mindir", 2, Format(dtype="float16", float32_io=False))
    emitter.save(graph, tmp_path / "d.onnx", 2)
    assert info.main([str(tmp_path / "d.mindir"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["inputs"] == {"images": "float16 2x3x64x64"} and facts["weights"] == "float16"
    assert facts["outputs"]["output_3"] == "float16 2x192x2x2" and len(facts["outputs"]) == 4
    code, out, _ = _run([tmp_path / "d.onnx", tmp_path / "d.mindir", "--samples", "3"], capsys)
    assert code == 0 and "d.mindir (mindir, float16)" in out and out.count("output    stage_") == 4
    assert "verdict   outputs agree: all 4; most in stage_" in out and "(tolerance 9.8e-03)" in out


def test_om_files_on_the_stand_in_of_a_board(tmp_path, capsys, monkeypatch):
    stand_in = StandIn()
    monkeypatch.setitem(sys.modules, "acl", stand_in)
    monkeypatch.setattr(PyAcl, "_device", None)
    tensor = {"name": "out", "dims": [2, 5], "dtype": "float32"}
    paths = [tmp_path / "one.om", tmp_path / "two.om"]
    for path in paths:
        path.write_text(json.dumps({"inputs": [{**tensor, "dims": [2, 3, 8, 8]}], "outputs": [tensor]}))
    code, out, err = _run([*paths, "--layers"], capsys)
    assert code == 0 and "one.om (om, float16)" in out and "not run on a device" in err
    stages = [{**tensor, "dims": [2, 5, side, side]} for side in (2, 1)]
    for path in paths:
        path.write_text(json.dumps({"inputs": [{**tensor, "dims": [2, 3, 8, 8]}], "outputs": stages}))
    code, out, _ = _run(paths, capsys)
    assert code == 0 and "outputs agree: all 2; most in output_" in out and "top-1" not in out
    PyAcl.shutdown()
    assert stand_in.live == {} and stand_in.violations == []


def test_shifts_and_size_come_from_the_other_file(digits, tmp_path, capsys):
    model = emitter.emit(_digits(digits))
    model.metadata_props.add(key="neonext_ms", value='{"shifts": [1, 1, 0, 0], "image_size": [64, 64]}')
    write_model(model, tmp_path / "d.onnx")
    code, _, err = _run([digits, tmp_path / "d.onnx", "--samples", "1"], capsys)
    assert code == 0 and "uses the shifts 1,1,0,0 of the other file" in err


def _mangled(node):
    return dump_side.mangled(node.name)


NAMINGS = {
    "value": lambda node: node.outputs[0],
    "operator": _mangled,
    "npy": lambda node: f"{_mangled(node)}.0.1700000000000000",
    "npy with dots": lambda node: f"{node.name}.0.1700000000000000",
    "older": lambda node: f"{node.op}.{_mangled(node)}.12.1700000000000000.output.0",
    "converted": lambda node: f"{node.op}.{_mangled(node)}.12.3.1700000000000000.output.0",
    "converted with shape": lambda node: f"{node.op}.{_mangled(node)}.12.3.1700000000000000.output.0.2x3",
    "task fields": lambda node: f"{node.op}.{_mangled(node)}.3.12.1700000000000000.5.6.7.0.output.0",
    "fused": lambda node: f"{node.op}.stem_conv{_mangled(node)}.12.3.1700000000000000.output.0",
    "numbered": lambda node: f"{_mangled(node)}_0",
    "data_index": lambda node: f"20260101000000/0/model/1/0/{node.op}.{_mangled(node)}.1.2.1700000000000000.output.0",
}


@pytest.mark.parametrize("naming", NAMINGS)
def test_names_of_dumped_files(tmp_path, naming):
    _, folded = _models(tmp_path)
    images = noise(2, (32, 32), 0)
    dump = _dump(folded, tmp_path / "dump", images, NAMINGS[naming])
    result = _compare(folded, dump)
    assert result.agrees and not result.skipped
    assert len(result.layers) == len(open_activations(folded).names)
    assert max(layer.relative_l2 for layer in result.layers) == 0
    assert _compare(dump, folded).agrees


@pytest.mark.parametrize("missing", ["stage_4", "stage_2"])
def test_a_dump_without_an_output_does_not_agree(tmp_path, missing):
    _, path = _models(tmp_path, features_only=True)
    dump = _dump(path, tmp_path / "dump", noise(2, (32, 32), 0), NAMINGS["value"])
    assert _compare(path, dump).agrees
    (dump / f"{missing}.npy").unlink()
    with pytest.raises(InputError, match=rf"no file holds {missing}, which .*folded\.onnx computes too"):
        _compare(path, dump)


def _msprobe(folder: Path, source: Path, images, stamp="20260101120000") -> Path:
    """Write what `msprobe compare` leaves: raw and converted values of the device, those of onnxruntime, the inputs."""
    root = folder / stamp
    device = root / "dump_data" / "npu" / stamp / "0" / "net" / "1" / "0"
    converted = lambda node: f"{node.op}.{_mangled(node)}.12.3.1700000000000000.output.0"  # noqa: E731
    _dump(source, device, images, converted, change=lambda name, value: value.astype(np.float16))
    (device / "Conv2D.stem_conv.3.5.1682067845380164").write_bytes(b"raw")
    (device / "Transpose.4.1682148295048447").write_bytes(b"raw")
    onnx_folder = root / "dump_data" / "onnx"
    # Values that differ from the device's show which side was read.
    numbered = lambda node: f"{_mangled(node)}.0.1700000000000000"  # noqa: E731
    _dump(source, onnx_folder, images, numbered, change=lambda name, value: value * 3)
    (stem,) = onnx_folder.glob("stem*.npy")
    stem.rename(onnx_folder / "17000000000000001.npy")
    (onnx_folder / "mapping.csv").write_text(f"17000000000000001.npy,{stem.name}\n")
    np.save(onnx_folder / f"input_{stem.name}", images)
    outputs = root / "dump_data" / "npu" / "20260101120001"
    outputs.mkdir()
    ((_, logits),) = open_activations(source).values(images, ["logits"])
    np.save(outputs / "output_0.npy", logits)
    (outputs / "output_0.bin").write_bytes(logits.tobytes())
    (root / "input").mkdir()
    (root / "input" / "input_0.bin").write_bytes(np.ascontiguousarray(images).tobytes())
    return folder


def test_folders_of_msprobe(tmp_path, capsys, monkeypatch):
    _, folded = _models(tmp_path)
    images = noise(2, (32, 32), 5)
    folder = _msprobe(tmp_path / "out", folded, images)
    monkeypatch.chdir(tmp_path)
    for place in ("out", "out/20260101120000", "out/20260101120000/dump_data", "out/20260101120000/dump_data/npu"):
        code, out, err = _run([folded, place, "--layers", "--json"], capsys)
        result = json.loads(out)
        assert code == 0, err
        assert "those of dump_data/npu, and those of dump_data/onnx are ignored" in err and "2 raw dumps" in err
        assert "assumed" not in err and "input_0.bin" in result["inputs"] and result["samples"] == 2
        # The values that the model returned, not the operator's in float16.
        assert result["outputs"][0]["relative_l2"] == 0 and result["outputs"][0]["samples"] == 2
        assert len(result["layers"]) == len(open_activations(folded).names)
        assert 0 < max(layer["relative_l2"] for layer in result["layers"]) < 1e-3
    code, _, err = _run([folded, folder, "--samples", "3", "--seed", "0"], capsys)
    assert code == 0 and "note: --samples 3 is for noise and not used; the images are 2 images of " in err
    assert "note: --seed 0 is for noise" in err
    code, out, err = _run([folded, folder / "20260101120000/dump_data/onnx", "--layers"], capsys)
    assert code == 4 and "(dump, float32)" in out and "skipped" not in out
    _msprobe(folder, folded, images, "20260101130000")
    code, _, err = _run([folded, folder], capsys)
    assert code == 1 and "2 runs of msprobe" in err and "20260101130000" in err
    (folder / "20260101120000" / "input" / "input_0.bin").write_bytes(bytes(100))
    code, _, err = _run([folded, folder / "20260101120000"], capsys)
    assert code == 1 and "not float32 images of Nx3x32x32" in err and "--inputs" in err


@pytest.mark.parametrize(
    ("suffix", "change"),
    [
        (".npy", lambda v: v.astype(np.float16)),
        (".npy", lambda v: v.transpose(0, 2, 3, 1) if v.ndim == 4 else v),
        (".npy", lambda v: v.ravel()),
        (".npy", lambda v: _nc1hwc0(v) if v.ndim == 4 else v),
        (".npy", lambda v: v[:1]),
        (".bin", lambda v: v),
        (".bin", lambda v: v.astype(np.float16)),
    ],
)
def test_layouts_and_types_of_dumped_files(tmp_path, suffix, change):
    _, folded = _models(tmp_path, size=(48, 32))
    images = noise(2, (48, 32), 0)
    dump = _dump(folded, tmp_path / "dump", images, _mangled, suffix, lambda name, v: change(v))
    result = _compare(folded, dump, images)
    assert result.agrees and len(result.layers) > 15 and not result.skipped
    assert max(layer.relative_l2 for layer in result.layers) < 1e-3


def test_a_dump_against_its_checkpoint(digits, tmp_path, capsys):
    write_model(emitter.emit(_digits(digits)), tmp_path / "d.onnx")
    images = noise(2, (64, 64), 0)
    dump = _dump(tmp_path / "d.onnx", tmp_path / "dump", images, _mangled)
    argv = [dump, "--layers", "--samples", "2", "--image-size", "64", *SHIFTS]
    code, out, err = _run([digits, *argv], capsys)
    assert code == 0 and "skipped" not in out and out.count("e-0") > 100 and "BatchNorm" not in err
    write_model(open_activations(digits, (64, 64), (1, 1, 0, 0))._model, tmp_path / "naive.onnx")
    code, out, err = _run([tmp_path / "naive.onnx", dump, "--layers", "--samples", "2"], capsys)
    assert "the dump has no BatchNorm" in err and "skipped   downsample_1.conv: " in out


# What CANN's parser makes of a node that it replaces by several: their types and names, in its order.
EXPANDED = {
    "Gemm": ["MatMulV2 _MatMulV2", "Add _add"],
    "ReduceMean": ["ReduceMean _ReduceMean"],
    "Transpose": ["Transpose _Transpose"],
    "LayerNormalization": [
        *("Identity identity_0", "Shape _shape", "Identity identity_1", "BroadcastTo _broadcastto1"),
        *("LayerNorm _LayerNorm", "Adds _Adds", "Rsqrt _Rsqrt", "Identity identity_3", "Cast _cast1", "Cast _cast2"),
    ],
}
VALUE_PART = {
    "Gemm": "_add",
    "ReduceMean": "_ReduceMean",
    "LayerNormalization": "_LayerNorm",
    "Transpose": "_Transpose",
}


def _parsed(node, start=0):
    """The operators that CANN's parser makes of an ONNX node: type, name, and whether it has the node's value."""
    parts = EXPANDED.get(node.op)
    if parts is None:
        return [(node.op, node.name, True)]
    return [
        (kind, f"PartitionedCall_{node.name}{part}_{start + i}", part == VALUE_PART[node.op])
        for i, (kind, part) in enumerate(map(str.split, parts))
    ]


PARSED_NAMINGS = {
    "converted": "{kind}.{operator}.{i}.3.1700000000000000.output.0.npy",
    "npy": "{operator}.0.1700000000000000.npy",
    "operator": "{operator}.npy",
    "numbered": "{operator}_0.npy",
    "fused": "{kind}.stem_conv{operator}.{i}.3.1700000000000000.output.0.npy",
}


def _parsed_dump(source: Path, folder: Path, images, operators=_parsed, naming="converted") -> Path:
    """The dump of a model as CANN's parser reads it; what is not a value of the ONNX file has other numbers."""
    side = open_activations(source)
    makers = {node.outputs[0]: node for node in side.nodes}
    folder.mkdir()
    for name, value in side.values(images):
        for i, (kind, operator, right) in enumerate(operators(makers[name])):
            file = PARSED_NAMINGS[naming].format(kind=kind, operator=dump_side.mangled(operator), i=i)
            np.save(folder / file, value if right else value + 7)
    return folder


@pytest.mark.parametrize("naming", PARSED_NAMINGS)
@pytest.mark.parametrize("format", [CANN, CANN.with_(opset=17, chains=False)], ids=["opset 13", "opset 17"])
@pytest.mark.parametrize("folded", [True, False], ids=["folded", "naive"])
def test_names_that_the_parser_gives_to_nodes_that_it_expands(folded, format, naming, tmp_path):
    graph = neocell_to_matmul(fold(_graph())[0] if folded else _graph())
    write_model(emitter.emit(graph, format=format), tmp_path / "m.onnx")
    images = noise(2, (32, 32), 0)
    dump = _parsed_dump(tmp_path / "m.onnx", tmp_path / "dump", images, naming=naming)
    result = _compare(tmp_path / "m.onnx", dump)
    assert result.agrees and max(layer.relative_l2 for layer in result.layers) == 0
    assert {layer.name for layer in result.layers} == set(open_activations(tmp_path / "m.onnx").names)
    # Without the addition, the product stands for the whole only with a warning.
    for path in (tmp_path / "dump").glob("*_add_*"):
        path.unlink()
    dump = open_activations(tmp_path / "dump")
    dump.bind(open_activations(tmp_path / "m.onnx"))
    assert "logits" in dump.names and "of logits only the product was dumped" in dump.notes[0]
    # What the model returned goes before its parts.
    (logits,) = (value for _, value in open_activations(tmp_path / "m.onnx").values(images, ["logits"]))
    np.save(tmp_path / "dump" / "logits.npy", logits)
    assert _compare(tmp_path / "m.onnx", tmp_path / "dump").agrees


CASES = os.environ.get("NEONEXT_CASES")


@pytest.mark.skipif(not CASES, reason="needs NEONEXT_CASES")
@pytest.mark.parametrize(
    ("nodes", "format", "features_only"),
    [
        ("om_b1", CANN, False),
        ("om_padded", CANN.with_(neocell="padded"), False),
        ("om_features", CANN, True),
        ("onnx_op17", Format(17), False),
    ],
)
def test_node_lists_of_the_real_parser(nodes, format, features_only, digits, tmp_path):
    """A dump with the names that the graph engine's own parser gave to our file: every value is found."""
    checkpoint = load_checkpoint(digits, (1, 1, 0, 0))
    network = original_graph(checkpoint.architecture, checkpoint.float32(), (64, 64), features_only)
    source = tmp_path / "m.onnx"
    write_model(emitter.emit(lower(fold(network)[0], format), 1, format), source)
    made: dict[str, list] = {}
    for line in Path(CASES, "ge", f"nodes_{nodes}.txt").read_text().splitlines():
        name, kind = re.match(r"(\S+) \[(\w+)\]", line).groups()
        origin = re.search(r" origin=(\S+)", line)
        right = "PartitionedCall" not in name or re.search(r"_(add|ReduceMean|LayerNorm)_\d+$", name) is not None
        made.setdefault(origin[1] if origin else name, []).append((kind, name, right))
    images = noise(1, (64, 64), 0)
    dump = _parsed_dump(source, tmp_path / "dump", images, lambda node: made[node.name])
    result = _compare(source, dump, images)
    assert result.agrees and max(layer.relative_l2 for layer in result.layers) == 0
    assert {layer.name for layer in result.layers} == set(open_activations(source).names)


def _nc1hwc0(value):
    n, c, h, w = value.shape
    value = np.pad(value, ((0, 0), (0, -c % 16), (0, 0), (0, 0)))
    return value.reshape(n, -1, 16, h, w).transpose(0, 1, 3, 4, 2)


def test_one_run_per_image_and_files_of_nothing(tmp_path, capsys):
    _, folded = _models(tmp_path)
    images = noise(3, (32, 32), 0)
    for i in range(3):
        _dump(folded, tmp_path / f"dump/{i}", images[i : i + 1], lambda node: f"{node.op}.{_mangled(node)}.1.2.3")
    np.save(tmp_path / "dump/0/TransData.trans_TransData_5.1.2.3.npy", np.zeros(3))
    np.save(tmp_path / "dump/0/Conv2D.stem_conv.1.2.3.input.0.npy", np.zeros(3))
    np.save(tmp_path / "dump/0/Conv2D.stem_conv_lxslice0.1.2.3.npy", np.zeros(3))
    code, out, err = _run([folded, tmp_path / "dump", "--layers", "--samples", "3"], capsys)
    assert code == 0 and "skipped   0/TransData.trans_TransData_5.1.2.3.npy: matches no value" in out
    assert out.count("skipped") == 1 and "assumed to be computed from" in err
    code, _, err = _run([folded, tmp_path / "dump", "--samples", "2"], capsys)
    assert code == 1 and "dumped for 3 images, but 2" in err


def test_outputs_of_ais_bench(tmp_path, capsys):
    naive, folded = _models(tmp_path)
    board = tmp_path / "board"
    code, _, err = _run(["--write-inputs", board, "--image-size", "32", "--samples", "3", "--seed", "7"], capsys)
    assert code == 0 and "3 noise images (seed 7)" in err
    assert sorted(p.name for p in board.iterdir()) == ["input.npy", *(f"input_{i:03d}.bin" for i in range(3))]
    side = open_activations(folded)
    out = tmp_path / "out"
    out.mkdir()
    for path in board.glob("*.bin"):
        image = np.fromfile(path, np.float32).reshape(1, 3, 32, 32)
        ((_, logits),) = side.values(image, ["logits"])
        logits.astype(np.float16).tofile(out / f"{path.stem}_0.bin")
    code, text, err = _run([naive, out, "--inputs", board / "input.npy"], capsys)
    assert (code, err) == (0, "") and "top-1 3/3" in text
    code, text, _ = _run([naive, out, "--samples", "3"], capsys)
    assert code == 4 and "outputs diverge" in text


def test_a_sidecar_says_shape_and_type(tmp_path):
    _, folded = _models(tmp_path)
    images = noise(2, (32, 32), 0)
    dump = tmp_path / "dump"
    dump.mkdir()
    ((_, logits),) = open_activations(folded).values(images, ["logits"])
    (dump / "logits.bin").write_bytes(logits.astype(np.float64).tobytes())
    (dump / "logits.json").write_text('{"shape": [2, 5], "dtype": "float64"}')
    assert _compare(folded, dump, images).agrees
    (dump / "logits.json").write_text('{"shape": [2, 5], "dtype": "float63"}')
    with pytest.raises(InputError, match=r"logits\.json: expected"):
        _compare(folded, dump, images)
    (dump / "logits.json").unlink()
    (dump / "logits.bin").write_bytes(b"1234567")
    with pytest.raises(InputError, match="7 bytes are not float32 or float16 of shape Nx5"):
        _compare(folded, dump, images)


def test_folders_that_are_no_dump(tmp_path):
    _, folded = _models(tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match=r"expected \.npy or \.bin"):
        open_activations(empty)
    (empty / "Conv2D.stem_conv.12.3.1700000000000000").write_bytes(b"raw")
    with pytest.raises(InputError, match=r"raw dumps; convert them first: .*msaccucmp\.py"):
        open_activations(empty)
    np.save(empty / "something.npy", np.zeros(3))
    with pytest.raises(InputError, match="none of 1 files belongs to a value"):
        _compare(folded, empty)
    with pytest.raises(UsageError, match="two dumps"):
        compare.compare_activations(open_activations(empty), open_activations(empty), np.zeros((1, 3, 8, 8)))
    (empty / "logits.npy").write_bytes(b"\x93NUMPY and nothing else")
    with pytest.raises(InputError, match=r"logits\.npy: not a complete \.npy file"):
        _compare(folded, empty)


def test_json_and_given_inputs(tmp_path, capsys):
    naive, folded = _models(tmp_path)
    np.save(tmp_path / "x.npy", noise(3, (32, 32), 5))
    code, out, _ = _run([naive, folded, "--layers", "--json", "--inputs", tmp_path / "x.npy"], capsys)
    report = json.loads(out)
    assert code == 0 and report["agree"] and report["samples"] == report["top1_agree"] == 3
    assert report["layers"][0].keys() >= {"name", "max_abs", "relative_l2", "cosine", "added"}
    np.save(tmp_path / "y.npy", np.zeros((1, 3, 8, 8), np.float32))
    code, _, err = _run([naive, folded, "--inputs", tmp_path / "y.npy"], capsys)
    assert code == 1 and "expected shape (N, 3, 32, 32), got (1, 3, 8, 8)" in err


def test_image_files(tmp_path, data, capsys):
    naive, folded = _models(tmp_path)
    code, out, _ = _run([naive, folded, "--images", data / "digits" / "3" / "0023.png"], capsys)
    assert code == 0 and "inputs    1 image file, 32x32" in out


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        ([], 2, "expected two files or folders, A and B (got 0)"),
        (["A.onnx"], 2, "expected two files or folders, A and B (got 1)"),
        (["missing.onnx", "{naive}"], 1, "missing.onnx: no such file"),
        ([__file__, "{naive}"], 2, "unknown kind of file '.py'"),
        (["{naive}", "{other}"], 1, "Compare models of one size"),
        (["{naive}", "{naive}", "--image-size", "64"], 2, "which --image-size 64x64 cannot change"),
        (["{naive}", "{naive}", "--tolerance", "0"], 2, "a number above 0"),
        (["{naive}", "{naive}", "--samples", "0"], 2, "at least 1"),
        (["{naive}", "{naive}", "--images", "a", "--inputs", "b"], 2, "exclude each other"),
        (["{naive}", "{naive}", "--inputs", "{naive}"], 1, "not a complete .npy file"),
        (["{naive}", "{naive}", "--layer"], 2, "did you mean --layers"),
        (["{naive}", "{broken}"], 1, "not a valid ONNX file"),
        (["{naive}", "{digits}"], 2, "--shifts"),
        (["--write-inputs", "{folder}/x"], 2, "give --image-size"),
    ],
)
def test_bad_input(tmp_path, digits, capsys, argv, code, message):
    naive, _ = _models(tmp_path)
    (tmp_path / "o").mkdir()
    other, _ = _models(tmp_path / "o", size=(64, 64))
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(naive.read_bytes()[:1000])
    names = {"naive": naive, "other": other, "broken": broken, "digits": digits, "folder": tmp_path}
    found, out, err = _run([part.format(**names) for part in argv], capsys)
    assert (found, out) == (code, "") and message in err and "Traceback" not in err


def test_keep_dtype_files(tmp_path):
    path = tmp_path / "keep.txt"
    keep_dtype.write_keep_dtype(path, ["a.b", "c", "a.b"])
    assert path.read_text() == "a.b\nc\n"
    path.write_text("\n  a.b \nOpType::MatMul\n")
    assert keep_dtype.read_keep_dtype(path) == ["a.b", "OpType::MatMul"]
    path.write_text("OpType::matmul\n")
    with pytest.raises(InputError, match="PascalCase"):
        keep_dtype.read_keep_dtype(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="not a UTF-8"):
        keep_dtype.read_keep_dtype(path)
    with pytest.raises(InputError, match="no operators to keep"):
        keep_dtype.write_keep_dtype(path, [])


def test_padded_maps_are_compared_where_both_have_them():
    class Fixed(Activations):
        kind, input_size, outputs, names = "onnx", (8, 8), ("logits",), ("map", "other", "logits")

        def __init__(self, pad):
            super().__init__("x")
            self.pad = pad

        def values(self, images, names=None):
            ones = np.ones((len(images), 2, 5, 5))
            found = {
                "map": np.pad(ones, ((0, 0), (0, 0), (0, self.pad), (0, self.pad))),
                "other": np.ones((len(images), 2 + self.pad)),
                "logits": ones[:, :, 0, 0],
            }
            yield from ((name, found[name]) for name in names)

    result = compare.compare_activations(Fixed(0), Fixed(3), np.zeros((2, 3, 8, 8)), layers=True)
    assert [(layer.name, layer.relative_l2) for layer in result.layers] == [("map", 0), ("logits", 0)]
    assert result.skipped == ("other: shapes (2,) and (5,)",)


def test_a_verdict_names_every_output_that_diverges():
    parts = [replace(difference(name, np.ones((1, 2, 1, 1)), np.ones((1, 2, 1, 1))), relative_l2=far)
             for name, far in (("a", 1e-6), ("b", 1e-1), ("c", 2e-1))]  # fmt: skip
    result = compare.Comparison("a", "b", 1, 1e-3, tuple(parts), None)
    assert result.verdict == "outputs diverge: 2 of 3, b, c; most in c relative L2 2.0e-01 (tolerance 1.0e-03)"


def test_difference():
    one, other = np.array([[3.0, 4.0]]), np.array([[3.0, 4.5]])
    found = difference("x", one, other)
    assert (found.max_abs, found.max_value, found.relative_l2) == (0.5, 4.0, 0.1)
    assert found.cosine == pytest.approx(27 / (5 * np.hypot(3, 4.5)))
    zero = difference("x", np.zeros((1, 2)), np.zeros((1, 2)))
    assert (zero.relative_l2, zero.cosine) == (0, 1)
    with pytest.raises(InputError, match="cannot be compared"):
        difference("x", one, other[:, :1])
    # Their squares overflow; NaN would pass as no deviation where there are several outputs.
    assert difference("x", 1e200 * one, 1e200 * other).relative_l2 == np.inf


def test_a_single_number_inside_a_network(tmp_path):
    nodes = [helper.make_node("ReduceMax", ["x"], ["top"], keepdims=0), helper.make_node("Div", ["x", "top"], ["y"])]
    ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3, 4, 4])] for name in "xy"]
    model = helper.make_model(helper.make_graph(nodes, "g", *ends), opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, tmp_path / "m.onnx")
    result = _compare(tmp_path / "m.onnx", tmp_path / "m.onnx", layers=True)
    assert [layer.name for layer in result.layers] == ["top", "y"] and result.agrees


def test_a_model_with_two_inputs(tmp_path):
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 4, 4]) for name in "abc"]
    graph = helper.make_graph([helper.make_node("Add", ["a", "b"], ["c"])], "g", values[:2], values[2:])
    onnx.save(helper.make_model(graph), tmp_path / "two.onnx")
    with pytest.raises(InputError, match="found 2: a, b"):
        open_activations(tmp_path / "two.onnx")


def test_help_imports_nothing_heavy():
    code = (
        "import sys, neonext_ms.export.compare.command as m\n"
        "try:\n    m.main(['--help'])\nexcept SystemExit as stop:\n    assert stop.code == 0\n"
        "print(sorted({'numpy', 'mindspore', 'onnx', 'onnxruntime', 'PIL'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]" and "neonext-compare" in done.stdout
