"""Profiles: layer kinds by our exporter's names, and files of other tools. The files of msprof and ais_bench are
written here after their documented formats; none comes from a board."""

import json

import pytest

from neonext_ms.benchmarks import profiles
from neonext_ms.common.errors import InputError
from neonext_ms.export import pipeline
from neonext_ms.export.request import Request
from neonext_ms.export.source import Source

# Columns of op_summary_*.csv as CANN 8.5 documents them; N/A as for communication.
OP_SUMMARY = """\
Device_id,Model ID,Task ID,Stream ID,Op Name,OP Type,OP State,Task Type,Task Start Time(us),Task Duration(us),\
Task Wait Time(us),Block Dim,Mix Block Dim,HF32 Eligible,Input Shapes,Input Data Types,Input Formats,Output Shapes,\
Output Data Types,Output Formats,Context ID,aicore_time(us),total_cycles
0,1,1,3,stem.norm,Conv2D,static,AI_CORE,100.0,20.0,0,8,0,NO,"""
ROW = (
    '0,1,{i},3,{name},{op},static,AI_CORE,{start},{us},0.5,8,0,NO,"1,3;4","FLOAT16","ND","1,4",FLOAT16,ND,N/A,{us},9\n'
)
AIS_BENCH = """\
[INFO] acl init success
[INFO] -----------------Performance Summary------------------
[INFO] H2D_latency (ms): min = 0.5, max = 1.5, mean = 0.75, median = 0.7, percentile(99%) = 1.4
[INFO] NPU_compute_time (ms): min = 15.0, max = 17.0, mean = 16.0, median = 15.9, percentile(99%) = 16.9
[INFO] D2H_latency (ms): min = 0.1, max = 0.1, mean = 0.1, median = 0.1, percentile(99%) = 0.1
[INFO] throughput 1000*batchsize.mean(8)/NPU_compute_time.mean(16.0): 500.0
[INFO] ------------------------------------------------------
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    from conftest import DATA

    source = Source.from_checkpoint(str(DATA / "digits_64.pt"), (1, 1, 0, 0))
    return str(pipeline.export(source, Request(["onnx"], [(64, 64)]), tmp_path_factory.mktemp("out")).files["onnx"])


def test_every_node_of_our_export_has_a_kind(exported):
    found = profiles.of_onnxruntime(exported, batch=2, threads=1, runs=2)
    kinds = found.kinds()
    assert {"NeoCell", "MLP", "GELU", "downsample", "stem", "head"} <= set(kinds)
    assert set(kinds) <= {"NeoCell", "MLP", "GELU", "downsample", "stem", "head", "layout", "residual"}
    assert sum(node.kind == "NeoCell" for node in found.nodes) == 10  # two products in each of five blocks
    assert sum(node.kind == "GELU" for node in found.nodes) == 5
    assert found.microseconds == pytest.approx(sum(kinds.values()))
    assert len(found.slowest()) == 10 and found.slowest()[0].microseconds == max(n.microseconds for n in found.nodes)


@pytest.mark.parametrize(
    ("name", "op", "kind"),
    [
        ("stage_1.0.ops.content.neocell.left", "MatMul", "NeoCell"),
        ("stage_1.0.ops.content.neocell", "NeoCell", "NeoCell"),
        ("stage_3.4.ops.content.hwc2chw_nchwc", "Conv", "MLP"),
        ("stage_1.0.ops.content.act.erf", "Erf", "GELU"),
        ("stage_1.0.ops.content.act.product", "Mul", "GELU"),
        ("stage_1.0.ops.content.norm", "BatchNormalization", "norm"),
        ("stage_1.0", "Add", "residual"),
        ("downsample_1.neocell.left", "MatMul", "downsample"),
        ("trans_TransData_12", "TransData", "layout"),
        ("logits", "Gemm", "head"),
        ("layer1.0.conv1", "Conv", "Conv"),
    ],
)
def test_kind(name, op, kind):
    assert profiles.kind_of(name, op) == kind


def test_bad_arguments(exported):
    for arguments in ((0, 1, 1), (1, 0, 1), (1, 1, 0)):
        with pytest.raises(InputError, match="at least 1"):
            profiles.of_onnxruntime(exported, *arguments)


def op_summary(runs):
    text = OP_SUMMARY.splitlines()[0] + "\n"
    for i in range(runs):
        text += ROW.format(i=i, name="stem.norm", op="Conv2D", start=i, us=20 + i)
        text += ROW.format(i=i, name="stage_1.0.ops.content.neocell", op="NeoCell", start=i, us=30)
        text += ROW.format(i=i, name="trans_TransData_1", op="TransData", start=i, us=5)
    return text + ROW.format(i=9, name="hcom", op="HCCL", start=9, us="N/A")


def test_msprof(tmp_path):
    path = tmp_path / "op_summary_0.csv"
    path.write_text(op_summary(3))
    found = profiles.read(path)
    assert (found.source, found.runs) == ("msprof", 3)
    assert found.kinds() == {"NeoCell": 30, "stem": 21, "layout": 5}
    assert "not tested with a real file" in "\n".join(found.lines())


def test_msprof_without_its_columns(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("Op Name,Task Duration(us)\na,1\n")
    with pytest.raises(InputError, match="OP Type"):
        profiles.of_msprof(path)
    path.write_text(op_summary(1).splitlines()[0] + "\n")
    with pytest.raises(InputError, match="no rows"):
        profiles.read(path)


def test_ais_bench(tmp_path):
    path = tmp_path / "log.txt"
    path.write_text(AIS_BENCH)
    found = profiles.read(path)
    assert (found.batch, found.throughput) == (8, 500)
    assert found.milliseconds["NPU_compute_time"]["percentile(99%)"] == 16.9
    assert found.milliseconds["H2D_latency"]["mean"] == 0.75
    summary = tmp_path / "out_summary.json"
    times = {"min": 15.0, "max": 17.0, "mean": 16.0, "median": 15.9, "percentile(99%)": 16.9, "count": 3}
    summary.write_text(json.dumps({"filesinfo": {}, "NPU_compute_time": times, "throughput": 500.0, "pid": 1}))
    assert profiles.read(summary).batch == 8


def test_other_files(tmp_path, capsys):
    for text in ("", "[]", "[1, 2]", "{}", '{"NPU_compute_time": 3}', "hello", AIS_BENCH.replace("throughput", "x")):
        path = tmp_path / "file"
        path.write_text(text)
        with pytest.raises(InputError, match="file: "):
            profiles.read(path)
    (tmp_path / "file").write_bytes(b"\xff\xfe\x00")
    assert profiles.main([str(tmp_path / "file")]) == 1
    assert profiles.main([str(tmp_path / "none.csv")]) == 1
    assert profiles.main([str(tmp_path / "none.onnx")]) == 1
    assert capsys.readouterr().err.count("error: ") == 3


def test_command(exported, capsys):
    assert profiles.main([exported, "--rounds", "1", "--threads", "1", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["source"] == "onnxruntime" and len(printed["slowest"]) == 10
    with pytest.raises(SystemExit) as stop:
        profiles.main([exported, "--batch", "0"])
    assert stop.value.code == 2


@pytest.mark.parametrize(
    "text",
    [
        "[" * 3000,
        '[{"cat": "Node", "name": "a_kernel_time", "dur": "nan", "args": {"op_name": "Conv"}}]',
        '{"NPU_compute_time": {"mean": 1.5}, "throughput": 1e999}',
        f"Device_id,Op Name,OP Type,Task Duration(us)\n0,stem,Conv2D,1{'5' * 200_000}",
        "NPU_compute_time (ms): mean = 1.-4\nthroughput 1000*batchsize.mean(8)/NPU_compute_time.mean(1.5): 5",
    ],
)
def test_damaged_profiles(text, tmp_path):
    path = tmp_path / "profile"
    path.write_text(text)
    with pytest.raises(InputError, match=r"profile|op_summary"):
        profiles.read(path)
