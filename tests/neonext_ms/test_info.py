from __future__ import annotations

import json

import pytest

from neonext_ms.commands import info
from neonext_ms.export import pipeline
from neonext_ms.export.request import Request
from neonext_ms.export.source import Source
from neonext_ms.runtime.open import open_runtime


def _run(capsys, *argv):
    try:
        code = info.main([str(a) for a in argv])
    except SystemExit as stop:
        code = stop.code
    return code, *capsys.readouterr()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    from conftest import DATA

    source = Source.from_checkpoint(str(DATA / "digits_64.pt"), (1, 1, 0, 0))
    folder = tmp_path_factory.mktemp("exported")
    sizes = [(64, 64), (64, 96)]
    pipeline.export(source, Request(["onnx"], sizes, batch=(2,), neocell="custom", opset=15, name="c"), folder)
    pipeline.export(source, Request(["onnx", "mindir"], sizes, batch=(2,), command="c"), folder)
    return folder


def test_a_named_model(capsys):
    code, out, _ = _run(capsys, "neonext_t.released_224", "--json")
    facts = json.loads(out)
    assert code == 0 and facts["parameters"] == 27_532_552 and facts["maps"][-1] == [7, 7]
    assert json.loads(_run(capsys, "neonext_t", "--image-size", "256x320", "--json")[1])["maps"][0] == [64, 80]


def test_a_name_is_no_folder(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("neonext_t", "runs"):
        (tmp_path / name).mkdir()
    assert _run(capsys, "neonext_t")[0] == 0
    assert "not a model file" in _run(capsys, "runs")[2]


def test_published_accuracies(capsys):
    code, out, _ = _run(capsys, "--accuracies", "--json")
    assert code == 0 and json.loads(out)[0]["top1"] == 81.44
    assert "none was measured here" in _run(capsys, "--accuracies")[1]
    assert _run(capsys, "--accuracies", "--list")[0] == 2


def test_a_checkpoint(capsys, digits):
    code, out, _ = _run(capsys, digits, "--image-size", "64", "--json")
    facts = json.loads(out)
    assert code == 0 and facts["architecture"]["dims"] == [24, 48, 96, 192] and facts["architecture"]["shifts"] is None
    assert "528,418" in _run(capsys, digits)[1]


def test_an_onnx_file_that_nothing_here_can_run(capsys, exported):
    code, out, err = _run(capsys, exported / "c_64x96.onnx", "--json")
    facts = json.loads(out)
    assert code == 0, err
    assert facts["opset"] == {"ai.onnx": 15} and facts["inputs"] == {"input": "float 2x3x64x96"}
    assert facts["metadata"]["image_size"] == [64, 96]


def test_one_manifest_for_several_sizes(capsys, exported):
    code, out, _ = _run(capsys, exported / "digits_64.json", "--json")
    assert code == 0 and json.loads(out)["command"] == "c"
    assert "digits_64_64x64.onnx" in _run(capsys, exported / "digits_64.json")[1]
    with open_runtime(exported / "digits_64_64x96.mindir") as runtime:
        assert (runtime.input_size, runtime.batch, runtime.metadata["shifts"]) == ((64, 96), 2, [1, 1, 0, 0])
    facts = json.loads(_run(capsys, exported / "digits_64_64x96.mindir", "--json")[1])
    assert facts["inputs"] == {"images": "float32 2x3x64x96"} and facts["outputs"] == {"logits": "float32 2x10"}
    assert facts["batch_sizes"] == [2] and facts["weights"] == "float32" and facts["runtime"] == "mindspore"


def test_lists_and_tables(capsys):
    assert "neonext_xl.paper" in _run(capsys, "--list")[1]
    code, out, _ = _run(capsys, "--tables")
    assert code == 0 and out.count("(agrees)") >= 7 and "(differs)" in out


@pytest.mark.parametrize("option", ["--list", "--tables"])
def test_the_page_has_what_the_command_prints(capsys, data, option):
    page = (data.parents[1] / "docs" / "models.md").read_text(encoding="utf-8")
    assert f"$ neonext-info {option}\n{_run(capsys, option)[1]}```" in page


def test_bad_input(capsys, tmp_path, digits):
    (tmp_path / "m.json").write_text("{}")
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "m.onnx").write_text("no")
    for argv, code, message in (
        ([], 2, "expected one of NAME|FILE"),
        (["neonext_t", "--list"], 2, "expected one of NAME|FILE"),
        (["neonext-t"], 2, "did you mean neonext_t"),
        ([tmp_path / "missing.pt"], 1, "no such file"),
        ([tmp_path / "m.json"], 1, "not the manifest"),
        ([tmp_path / "list.json"], 1, "JSON object"),
        ([tmp_path / "m.onnx"], 1, "not"),
        ([tmp_path / "m.onnx", "--shifts", "1,1,1,0"], 2, "Leave out"),
        ([digits, "--image-size", "65"], 1, "multiples of 4"),
    ):
        found, out, err = _run(capsys, *argv)
        assert (found, out) == (code, "") and message in err, (argv, err)
