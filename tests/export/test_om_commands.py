"""OM files in predict, validate, compare and info, on stand-ins that compute: labels and preprocessing as exported."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest

from acl_stand_in import StandIn, open_om, run_onnx
from board_stand_in import install
from neonext_ms.commands import info, predict, validate
from neonext_ms.export import command as export_command
from neonext_ms.export.compare import command as compare_command
from neonext_ms.runtime.acl import PyAcl


@pytest.fixture(params=["1", "1,4"], ids=["one batch size", "two"])
def om(request, digits, tmp_path, monkeypatch, capsys):
    for name, value in install(tmp_path / "board").items():
        monkeypatch.setenv(name, value)
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(f"digit {i}" for i in range(10)))
    argv = ["--checkpoint", digits, "--shifts", "1,1,0,0", "--image-size", "64", "--target", "om", "--batch"]
    argv += [request.param, "--soc", "Ascend310P3", "--labels", str(labels), "--output", str(tmp_path / "out")]
    assert export_command.main(argv) == 0, capsys.readouterr().err
    stand_in = StandIn()
    monkeypatch.setitem(sys.modules, "acl", stand_in)
    monkeypatch.setattr(PyAcl, "_device", None)
    capsys.readouterr()
    yield tmp_path / "out" / "digits_64.om"
    PyAcl.shutdown()
    assert stand_in.live == {} and stand_in.violations == []


class Session:
    """A stand-in for `ais_bench.infer.interface.InferSession`, by its source."""

    def __init__(self, device_id: int, model_path: str):
        self.model, self.batch = open_om(model_path), None

    def set_staticbatch(self):
        assert not self.model["batches"]
        self.batch = self.model["inputs"][0]["dims"][0]

    def set_dynamic_batchsize(self, batch: int):
        assert batch in self.model["batches"]
        self.batch = batch

    def run(self, feeds, out_array=False):
        (images,) = feeds
        assert out_array and len(images) == self.batch and images.flags.c_contiguous
        return run_onnx(self.model, images)

    def free_resource(self):
        self.model = None


def test_om_files_run_in_ais_bench_where_acl_is_missing(om, data, capsys, monkeypatch):
    argv = ["--model", str(om), str(data / "digits"), "--classes", "by-number", "--json"]
    monkeypatch.setitem(sys.modules, "acl", None)
    assert validate.main(argv) == 3 and "pyacl cannot be used here" in capsys.readouterr().err
    interface = SimpleNamespace(InferSession=Session)
    for name in ("ais_bench", "ais_bench.infer", "ais_bench.infer.interface"):
        monkeypatch.setitem(sys.modules, name, interface)
    monkeypatch.setattr(interface, "infer", SimpleNamespace(interface=interface), raising=False)
    assert validate.main(argv) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found["top1"]["correct"] == 18 and found["runtime"] == "ais_bench" and "not run on a device" in captured.err
    assert compare_command.main([str(om.with_name("digits_64_cann.onnx")), str(om), "--json", "--samples", "2"]) == 0
    assert json.loads(capsys.readouterr().out)["agree"]


def test_a_file_without_its_manifest_says_so(om, data, capsys):
    om.with_suffix(".json").unlink()
    assert predict.main(["--model", str(om), str(data / "digits" / "3" / "0023.png"), "--json"]) == 0
    assert "digits_64.om: no manifest beside it, so it has no labels" in capsys.readouterr().err


def test_om_files_run_in_the_commands(om, data, capsys):
    assert predict.main(["--model", str(om), str(data / "digits" / "3" / "0023.png"), "--json"]) == 0
    captured = capsys.readouterr()
    (answer,) = json.loads(captured.out)["images"]
    assert answer["top"][0]["label"] == "digit 3" and "not run on a device" in captured.err
    assert validate.main(["--model", str(om), str(data / "digits"), "--classes", "by-number", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    # The same two images are wrong as in float32.
    assert found["top1"]["correct"] == 18 and found["images"] == 20 and found["runtime"] == "pyacl"
    onnx = om.with_name("digits_64_cann.onnx")
    assert compare_command.main([str(onnx), str(om), "--json", "--samples", "3"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["agree"] and 1e-5 < result["outputs"][0]["relative_l2"] < 9.8e-3 and result["top1_agree"] == 3
    assert info.main([str(om), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["soc"] == "Ascend310P3" and facts["metadata"]["labels"][3] == "digit 3"
    assert set(facts["outputs"].values()) <= {"float32 1x10", "float32 Nx10"}
