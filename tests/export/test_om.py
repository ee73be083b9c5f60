"""The target `om` from the command line, with stand-ins for the compilers (see test_atc and test_lite)."""

from __future__ import annotations

import json
import shlex
import stat
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from neonext_ms.export import command
from neonext_ms.export.om.options import VIAS
from neonext_ms.export.om.target import COMPILERS
from neonext_ms.runtime.om_file import read_om

TESTS = str(Path(__file__).parents[1])
STAND_IN = """\
#!{python}
import json, pathlib, sys
arguments = dict(a[2:].split("=", 1) for a in sys.argv[1:])
pathlib.Path({record!r}).open("a").write(json.dumps(sys.argv[1:]) + "\\n")
{body}
"""
ATC_WORKS = """\
assert pathlib.Path(arguments["model"]).read_bytes()
assert "insert_op_conf" not in arguments or "aipp_op" in pathlib.Path(arguments["insert_op_conf"]).read_text()
sys.path.insert(0, TESTS)
from om_stand_in import compiled
pathlib.Path(arguments["output"] + ".om").write_bytes(compiled(arguments))
print("ATC run success, welcome to the next use.")
"""
ATC_FAILS = """\
pathlib.Path(arguments["output"] + ".om").write_bytes(b"half")
print("ATC run failed, Please check the detail log, Try 'atc --help' for more information")
print("E13010: No operator plugin is registered for Op: act, optype: ai.onnx::13::Gelu.")
sys.exit(1)
"""
LITE_WORKS = """\
pathlib.Path(arguments["outputFile"] + ".mindir").write_bytes(b"mindir")
print("CONVERT RESULT SUCCESS:0")
"""


@pytest.fixture
def tool(tmp_path, monkeypatch):
    """Installs a stand-in; returns a function that gives the arguments of its runs."""
    folder = tmp_path / "bin"
    folder.mkdir()
    record = tmp_path / "record"
    # No compiler of the machine itself is to be found.
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    for variable in ("ASCEND_TOOLKIT_HOME", "ASCEND_HOME_PATH", "LITE_HOME"):
        monkeypatch.delenv(variable, raising=False)

    def install(name, body):
        path = folder / name
        path.write_text(
            STAND_IN.format(python=sys.executable, record=str(record), body=body.replace("TESTS", repr(TESTS)))
        )
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    install.runs = lambda: [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
    return install


def _run(digits, output, capsys, *more, size="64"):
    argv = ["--checkpoint", digits, "--shifts", "1,1,0,0", "--image-size", size, "--target", "om", "--soc",
            "Ascend310P3", "--output", str(output), *more]  # fmt: skip
    try:
        code = command.main(argv)
    except SystemExit as stop:
        code = stop.code
    return code, *capsys.readouterr()


def _names(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_without_atc_the_rest_is_there(digits, tmp_path, tool, capsys):
    code, _, err = _run(digits, tmp_path / "o", capsys, "--aipp", "--batch", "1,8")
    assert code == 3 and "atc was not found" in err
    assert _names(tmp_path / "o") == ["build_om.sh", "digits_64.aipp.cfg", "digits_64.json", "digits_64_cann.onnx"]
    model = onnx.load(tmp_path / "o" / "digits_64_cann.onnx")
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 13)]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert not {"Gelu", "LayerNormalization", "Transpose", "Reshape", "Shape"} & {n.op_type for n in model.graph.node}


def test_the_script_builds_what_was_missing(digits, tmp_path, tool, capsys):
    assert _run(digits, tmp_path / "o", capsys, "--aipp")[0] == 3
    tool("atc", ATC_WORKS)
    subprocess.run(["sh", tmp_path / "o" / "build_om.sh"], check=True, capture_output=True)
    assert read_om(tmp_path / "o" / "digits_64.om").soc == "Ascend310P3"
    (tmp_path / "bin" / "atc").unlink()
    assert (
        "digits_64.om: of an earlier export, until build_om.sh has been run" in _run(digits, tmp_path / "o", capsys)[2]
    )


def test_a_script_that_compiles_other_files_is_not_replaced_silently(digits, tmp_path, tool, capsys):
    assert "earlier export" not in _run(digits, tmp_path / "o", capsys, "--name", "it's")[2]
    assert "earlier export" not in _run(digits, tmp_path / "o", capsys, "--name", "it's")[2]
    assert "earlier export compiled it's.om, this one does not" in _run(digits, tmp_path / "o", capsys)[2]


def test_the_dry_run_prints_what_runs(digits, tmp_path, tool, capsys):
    options = ["--aipp", "--batch", "1,8,16", "--precision", "mixed_float16", "--keep-dtype", "head.fc"]
    code, out, _ = _run(digits, tmp_path / "o", capsys, *options, "--dry-run")
    assert code == 0 and _names(tmp_path / "o") == []
    tool("atc", ATC_WORKS)
    code, _, err = _run(digits, tmp_path / "o", capsys, *options)
    assert code == 0, err
    assert out.startswith("# digits_64.keep_dtype.cfg:\n#   head.fc\n")
    printed = shlex.split(out, comments=True)[1:]
    # The compiler runs in a folder of its own, where the ONNX file has a plain name.
    assert "--model=digits_64_cann.onnx" in printed
    assert tool.runs() == [[part.replace("_cann.onnx", ".onnx") for part in printed]]
    assert "digits_64.om" in _names(tmp_path / "o") and "digits_64.atc.log" in _names(tmp_path / "o")
    manifest = json.loads((tmp_path / "o" / "digits_64.json").read_text())
    om = manifest["files"][-1]
    assert om["target"] == "om" and om["feed"]["dtype"] == "uint8" and om["run_on_a_device"] is False
    assert shlex.split(om["command"])[1:] == tool.runs()[0]


def test_several_sizes_are_several_files_with_one_manifest(digits, tmp_path, tool, capsys):
    tool("atc", ATC_WORKS)
    code, _, err = _run(digits, tmp_path / "o", capsys, size="64,64x96")
    assert code == 0, err
    names = _names(tmp_path / "o")
    assert [n for n in names if n.endswith((".om", ".json"))] == [
        "digits_64.json", "digits_64_64x64.om", "digits_64_64x96.om",
    ]  # fmt: skip


def test_a_failure_leaves_the_log_only(digits, tmp_path, tool, capsys):
    tool("atc", ATC_FAILS)
    code, _, err = _run(digits, tmp_path / "o", capsys)
    assert code == 1 and "E13010: No operator plugin" in err and f"{tmp_path}/o/digits_64.atc.log" in err
    assert _names(tmp_path / "o") == ["digits_64.atc.log"]


def test_the_lite_converter(digits, tmp_path, tool, capsys):
    tool("converter_lite", LITE_WORKS)
    code, _, err = _run(digits, tmp_path / "o", capsys, "--via", "lite")
    assert code == 0, err
    assert "digits_64_ascend.mindir" in _names(tmp_path / "o")
    assert any(a.startswith("--optimize=ascend_oriented") for a in tool.runs()[0])


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--soc", "Ascend310P8"], 2, "did you mean"),
        (["--precision", "fp32"], 2, "fp16"),
        (["--precision", "mixed_bfloat16"], 2, "bfloat16"),
        (["--batch", "1,1"], 2, "once"),
        (["--keep-dtype", "no.such.node"], 1, "no operator 'no.such.node'"),
        (["--via", "atcc"], 2, "atc or lite"),
        (["--timeout", "0"], 2, "positive number of seconds"),
        (["--half-io"], 2, "--half-io cannot be chosen for the target om"),
        (["--neocell", "conv"], 2, "neocell must be one of"),
        (["--opset", "19"], 2, "--opset 19: CANN's parser takes no operator above opset 18"),
    ],
)
def test_bad_options(digits, tmp_path, tool, capsys, options, code, message):
    tool("atc", ATC_WORKS)
    found, _, err = _run(digits, tmp_path / "o", capsys, *options)
    assert found == code and message in err and "Traceback" not in err
    assert _names(tmp_path / "o") == [] and tool.runs() == []


def test_options_of_om_need_om(digits, tmp_path, capsys):
    argv = ["--checkpoint", digits, "--shifts", "1,1,0,0", "--image-size", "64", "--target", "onnx"]
    for more, message in (
        (["--aipp"], "--soc"),
        (["--soc", "Ascend310P3"], "target om"),
        (["--batch", "1,2"], "several"),
        (["--half-io"], "the files are in float32. Add --dtype"),
    ):
        assert command.main([*argv, "--output", str(tmp_path / "o"), *more]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--target", "om", "--soc", "Ascend310B4"], "--gelu npu: Ascend310B4 does not have the operator"),
        (["--target", "om", "--soc", "Ascend310P3", "--via", "lite"], "Use --via atc"),
        (["--target", "onnx,mindir"], "Leave mindir out"),
        (["--target", "onnx", "--opset", "20"], "and a file with NPUGeluV2 nodes is for it. Use 13"),
        (["--target", "onnx", "--neocell", "custom", "--opset", "19"], "a file with NeoCell nodes is for it"),
        (["--target", "onnx-naive"], "--gelu cannot be chosen for the target onnx-naive"),
    ],
)
def test_the_gelu_of_cann_is_for_atc_and_devices_that_have_it(options, message, digits, tmp_path, capsys):
    argv = ["--checkpoint", digits, "--shifts", "1,1,0,0", "--image-size", "64", "--gelu", "npu", *options]
    assert command.main([*argv, "--output", str(tmp_path / "o")]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "o").exists()


def test_what_is_better_avoided_is_a_note(digits, tmp_path, tool, capsys):
    tool("atc", ATC_WORKS)
    for options, note in ((["--opset", "18"], "the model has opset 18"), (["--gelu", "npu"], "a second domain, 'npu'")):
        code, _, err = _run(digits, tmp_path / "o", capsys, *options)
        assert code == 0 and "note: digits_64_cann.onnx: " in err and note in err
    code, _, err = _run(digits, tmp_path / "o", capsys, "--opset", "17")
    assert code == 0 and "note" not in err


def test_a_file_that_only_cann_loads_says_so(digits, tmp_path, capsys):
    argv = ["--checkpoint", digits, "--shifts", "1,1,0,0", "--image-size", "64", "--target", "onnx"]
    for options, nodes in ((["--gelu", "npu"], "NPUGeluV2"), (["--neocell", "custom"], "NeoCell")):
        assert command.main([*argv, *options, "--output", str(tmp_path)]) == 0
        err = capsys.readouterr().err
        assert f"digits_64.onnx: only CANN knows its {nodes} nodes" in err and "with each of them expanded" in err
    for options, problem in (
        (["--neocell", "custom"], "--neocell custom: MindIR has no NeoCell operator"),
        (["--dtype", "bfloat16"], "--dtype bfloat16: MindSpore cannot run it on a CPU"),
    ):
        assert command.main([*argv[:-1], "mindir", *options, "--output", str(tmp_path)]) == 2
        err = capsys.readouterr().err
        assert problem in err and err.count("\n") == 1


def test_every_via_has_a_compiler():
    assert list(VIAS) == list(COMPILERS)


def test_list_targets(tool, capsys):
    assert command.main(["--list-targets", "--json"]) == 0
    rows = {row["target"]: row for row in json.loads(capsys.readouterr().out)}
    assert set(rows) == {"onnx", "mindir", "lite", "om", "onnx-naive"} and rows["om"]["here"].startswith(
        "not available"
    )
    tool("atc", ATC_WORKS)
    assert command.main(["--list-targets"]) == 0
    assert "available: " in capsys.readouterr().out


def test_stages_are_named_outputs(digits, tmp_path, capsys):
    argv = ["--checkpoint", digits, "--shifts", "1,1,0,0", "--image-size", "64", "--target", "onnx,mindir",
            "--features-only", "--output", str(tmp_path)]  # fmt: skip
    assert command.main(argv) == 0, capsys.readouterr().err
    graph = onnx.load(tmp_path / "digits_64.onnx").graph
    assert [output.name for output in graph.output] == ["stage_1", "stage_2", "stage_3", "stage_4"]


def test_labels_from_the_folders_of_a_data_set(digits, data, tmp_path, capsys):
    argv = ["--checkpoint", digits, "--shifts", "1,1,0,0", "--image-size", "64", "--target", "onnx", "--labels",
            str(data / "digits"), "--output", str(tmp_path)]  # fmt: skip
    assert command.main(argv) == 0, capsys.readouterr().err
    assert json.loads((tmp_path / "digits_64.json").read_text())["labels"] == list("0123456789")


@pytest.mark.parametrize("form", [["--dtype", "bfloat16"], ["--neocell", "custom", "--opset", "15"], ["--gelu", "npu"]])
def test_files_that_no_runtime_here_takes_are_compared(digits, tmp_path, capsys, form):
    from neonext_ms.export.compare import command as compare_command

    argv = ["--checkpoint", digits, "--shifts", "1,1,0,0", "--image-size", "64", "--target", "onnx", *form,
            "--output", str(tmp_path)]  # fmt: skip
    assert command.main(argv) == 0, capsys.readouterr().err
    capsys.readouterr()
    assert compare_command.main([str(tmp_path / "digits_64.onnx"), digits, "--layers", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["layers"]) > 30


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_says_where_it_deviates(digits, tmp_path, capsys, dtype):
    argv = ["--checkpoint", digits, "--shifts", "1,1,0,0", "--image-size", "64", "--target", "onnx", "--dtype", dtype,
            "--output", str(tmp_path)]  # fmt: skip
    assert command.main(argv) == 0, capsys.readouterr().err
    assert "most deviation in" in capsys.readouterr().out
    (entry,) = json.loads((tmp_path / "digits_64.json").read_text())["files"]
    assert entry["dtype"] == dtype and len(entry["layers"]) > 30
    assert sorted(path.name for path in tmp_path.iterdir()) == ["digits_64.json", "digits_64.onnx"]
