"""The board kit from pack to report, on stand-ins that compute: `atc_stand_in`, `acl_stand_in`, `board_stand_in`."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from acl_stand_in import StandIn, dump_file
from atc_stand_in import halves, spoil
from board_stand_in import install, measured_report, without_times
from neonext_ms.benchmarks.board import forms
from neonext_ms.benchmarks.board import pack as pack_module
from neonext_ms.benchmarks.board.kit import run as run_py
from neonext_ms.benchmarks.board.pack import KIT, Wanted, archive, pack
from neonext_ms.benchmarks.board.reference import Images
from neonext_ms.benchmarks.board.report import lines, read_report, summary
from neonext_ms.benchmarks.board.weights import join
from neonext_ms.benchmarks.latency import command as estimate_command
from neonext_ms.commands import board
from neonext_ms.common.errors import NeoNextError
from neonext_ms.export.om import cann_log
from neonext_ms.export.onnx.runnable import expand_custom
from neonext_ms.export.source import Source
from neonext_ms.models.architecture import make_architecture
from neonext_ms.models.initialization import initial_arrays
from neonext_ms.runtime.om_file import ACL_DTYPES

RUN = KIT / "run.py"
OPTIONS = ort.SessionOptions()
# Pairs of casts that round would be removed.
OPTIONS.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
QUICK = ("--seconds", "0.1")


@pytest.fixture(scope="module")
def source() -> Source:
    architecture = make_architecture(num_classes=5, per_stage_layers=(1, 1, 1, 0), dims=(8, 8, 16, 16), kernel_spec="4")
    arrays = initial_arrays(architecture, rng=np.random.RandomState(0))
    return Source(arrays, architecture.with_shifts((1, 1, 0, 0)), "tiny", metadata={"image_size": [32, 32]})


@pytest.fixture(scope="module")
def packed(source, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("packed") / "kit"
    pack(source, Wanted("Ascend310P3", (1, 2)), folder)
    return folder


@pytest.fixture
def kit(packed, tmp_path) -> Path:
    return Path(shutil.copytree(packed, tmp_path / "a kit"))


def start(kit: Path, environ: dict[str, str], *argv: str) -> subprocess.Popen:
    command = [sys.executable, str(kit / "run.py"), *QUICK, *argv]
    return subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def ran(kit: Path, environ: dict[str, str], *argv: str) -> tuple[int, str, dict]:
    process = start(kit, environ, *argv)
    out, _ = process.communicate(timeout=300)
    report = kit / "board_report.json"
    return process.returncode, out, json.loads(report.read_text()) if report.exists() else {}


def status(report: dict) -> dict[str, str]:
    return {name: entry["status"] for name, entry in report["steps"].items()}


def test_from_pack_to_report(digits, data, tmp_path, capsys):
    folder, environ = tmp_path / "a kit", install(tmp_path / "board")
    argv = ["pack", "--checkpoint", digits, "--shifts", "1,1,0,0", "--image-size", "64", "--soc", "Ascend310P3"]
    argv += ["--images", str(data / "digits"), "--batch", "1", "--output", str(folder)]
    assert board.main(argv) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    assert "4 noise images, 20 labelled images (classes by number)" in out and "custom (batch 1)" in out
    code, printed, report = ran(folder, environ, "--forms", "matmul,custom,aipp")
    assert code == 0, printed
    assert report["finished"] and set(status(report).values()) == {"done"}
    assert report["steps"]["machine"]["result"]["chips"] == ["310P3"]
    # The stand-in of msprof reports a convolution and a product for each of 24 runs.
    (profile,) = (entry["result"] for name, entry in report["steps"].items() if name.startswith("profile/"))
    assert profile == {"tasks": 2, "us_by_type": {"Conv2D": 30.0, "MatMulV2": 10.0}}
    assert report["steps"]["ais_bench/1"]["result"]["p50_ms"] == 2.4
    # An output and four gradients of three NeoCells in two dtypes.
    assert report["steps"]["mindspore"]["result"]["compared"] == 30
    found = read_report(folder / "board_report.json")
    rows = {(row.build, row.batch): row for row in found.rows}
    row = rows["matmul_b1", 1]
    # fp16 is emulated, so it is close to float32 and not the same; 18 of the 20 images are what float32 gets right.
    assert row.right and 1e-5 < row.parity["relative_l2"] < 9.8e-3 and row.parity["top1_agree"] == 24
    assert row.parity["correct"] == row.parity["correct_in_float32"] == 18
    assert row.ratio == pytest.approx(1e3 * row.measured_ms / row.predicted_us)
    assert rows["aipp_b1", 1].right and rows["padded_b1", 1].compiled is None
    assert board.main(["report", str(folder / "board_report.json")]) == 0
    out = capsys.readouterr().out
    assert "this ran on stand-ins" in out and "neonext-export --checkpoint digits_64.pt --shifts 1,1,0,0" in out
    assert "profile" in out and "Conv2D 30, MatMulV2 10" in out
    assert ", 2.40 ms, " in out and "30 results as in float64" in out
    (kinds,) = summary(found)["by_kind"].values()
    assert kinds["conv"]["measured_us"] == 30 and kinds["conv"]["predicted_us"] > 0 and "vector" in kinds
    assert board.main(["report", *[str(folder / "board_report.json")] * 2]) == 0
    text = (folder / "board_report.json").read_text() + (folder / "board_report.html").read_text()
    # Of the machine nothing may be in it.
    for secret in (str(tmp_path), os.path.expanduser("~") + "/", os.uname().nodename):
        assert secret not in text


def test_the_8_bit_form_has_a_rule_of_its_own(digits, data, tmp_path, monkeypatch, capsys):
    (form,) = (form for form in forms.FORMS if form.dtype == "int8")
    assert form not in forms.forms_of("quick") and form not in forms.forms_of("full", images=False)
    monkeypatch.setattr(pack_module, "forms_of", lambda *arguments: [form])
    argv = ["pack", "--checkpoint", digits, "--shifts", "1,1,0,0", "--image-size", "64", "--soc", "Ascend310P3"]
    argv += ["--images", str(data / "digits"), "--batch", "1", "--level", "full", "--output", str(tmp_path / "kit")]
    assert board.main(argv) == 0, capsys.readouterr().err
    assert len(list((tmp_path / "kit" / "data" / "images").rglob("*.png"))) == 20
    code, out, report = ran(tmp_path / "kit", install(tmp_path / "board"))
    assert code == 0, out
    parity = report["steps"]["parity/int8_b1"]["result"]["1"]
    # Compared on the 20 images alone: 8 bit loses more than float16 would, and noise is not what it is for.
    assert parity["right"] and parity["samples"] == 20 and parity["tolerance"] == 0.1
    assert 2e-3 < parity["relative_l2"] < 0.06 and parity["correct"] >= 17
    assert "--quantize int8 --calibrate digits" in report["builds"][0]["export"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--image-size", "16384"], "8 inputs of 16384x16384 in float32 take 25.8 GB, more than the 2.1 GB of a kit"),
        (["--image-size", "64", "--batch", "65536"], "65,536 inputs of 64x64 in float32 take 3.2 GB"),
    ],
)
def test_inputs_that_a_board_cannot_hold(options, expected, digits, tmp_path, capsys):
    argv = ["pack", "--checkpoint", digits, "--shifts", "1,1,0,0", "--soc", "Ascend310P3", *options]
    assert board.main([*argv, "--output", str(tmp_path / "kit")]) == 2
    assert expected in capsys.readouterr().err and not (tmp_path / "kit").exists()


def test_the_kit_is_the_same_for_the_same_input(source, packed, tmp_path):
    pack(source, Wanted("Ascend310P3", (1, 2)), tmp_path / "kit")
    names = sorted(path.relative_to(packed) for path in packed.rglob("*") if path.is_file())
    assert names == sorted(
        path.relative_to(tmp_path / "kit") for path in (tmp_path / "kit").rglob("*") if path.is_file()
    )
    assert [name for name in names if (packed / name).read_bytes() != (tmp_path / "kit" / name).read_bytes()] == []
    first = archive(tmp_path / "kit").read_bytes()
    time.sleep(1.1)
    (tmp_path / "kit" / "kit.json").touch()
    assert archive(tmp_path / "kit").read_bytes() == first


def test_run_py_is_one_file_for_python_3_7():
    text = RUN.read_text()
    tree = ast.parse(text, feature_version=(3, 7))
    imports = {
        alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    assert imports - set(sys.stdlib_module_names) == {"numpy", "acl"}
    assert text.count("\n") <= 900
    assert [path.name for path in KIT.glob("*.py")] == ["run.py"]


@pytest.mark.parametrize(
    "text",
    [
        "EZ3003: [PID: 1] No supported Ops kernel and engine are found for [a], optype [Conv2D].",
        "Failure(EZ3003): No supported Ops kernel and engine are found for [b], optype [NeoCell].",
        "E19999: Inner Error!\nE10041: Failed to load the model.\nNo space left on device",
        "E19999: Inner Error!\nwrite: No space left on device",
        "E19999: Inner Error! It says nothing by itself.",
        "first\nE12345: nobody knows this one\nE10041: nor that it follows",
        "[ERROR] ONNX node NeoCell: attribute 'groups' is missing",
    ],
)
def test_errors_are_explained_as_neonext_export_does(text, tmp_path):
    (tmp_path / "log").write_text(f"$ atc --model=E10001:\n{text}\n")
    expected = cann_log.read_log(text.splitlines(), "x", "x").explanation
    found = run_py.explain({"errors": pack_module.errors()}, tmp_path / "log")
    assert found.partition("; ")[2] == expected.partition("; ")[2] and found.partition(": ")[0] in text
    (tmp_path / "log").write_text("nothing that anyone knows, E10001/x.py\n")
    assert run_py.explain({"errors": pack_module.errors()}, tmp_path / "log").startswith("its last line: nothing")


@pytest.mark.parametrize("form", forms.FORMS, ids=lambda form: form.name)
def test_every_form_has_a_plain_name_and_a_known_level(form):
    assert form.name.isidentifier() and form.level in forms.LEVELS and form.dtype in ("float16", "int8")


def test_a_quick_kit_leaves_out_images_that_do_not_fit(digits, data, tmp_path, monkeypatch):
    wanted = Wanted("Ascend310P3", (1,), images=str(data / "digits"), image_size=(64, 64))
    source = Source.from_checkpoint(digits, (1, 1, 0, 0))
    sizes, numbers = [], []
    for budget in (10**9, None, 1):
        monkeypatch.setattr(pack_module, "BUDGET", budget or sizes[0] - 3000)
        content = pack(source, wanted, tmp_path / "kit")
        sizes.append(sum(path.stat().st_size for path in (tmp_path / "kit").rglob("*") if path.is_file()))
        numbers.append(len(content["images"]["expected"]))
    assert numbers[0] == 20 and 5 < numbers[1] < 20 and numbers[2] == 5
    assert sizes[0] - 9000 < sizes[1] <= sizes[0] - 3000
    assert len(np.load(tmp_path / "kit" / "data" / "logits.npy")) == 4 + 5
    assert len(run_py.read_frames(tmp_path / "kit", content["images"])) == 4 + 5


def test_frames_are_stored_without_loss(tmp_path):
    images = {"noise": 4, "shape": [7, 5, 6, 3]}
    noise = run_py.noise_frames(images)
    frames = np.random.RandomState(0).randint(0, 256, (3, 5, 6, 3)).astype(np.uint8)
    # The same on every machine.
    assert noise.shape == (4, 5, 6, 3) and noise.ravel()[:4].tolist() == [39, 94, 170, 252]
    (tmp_path / "data").mkdir()
    for some in (frames, frames[:0]):
        (tmp_path / "data" / "frames.z").write_bytes(Images(images, np.concatenate([noise, some])).packed())
        assert np.array_equal(run_py.read_frames(tmp_path, images), np.concatenate([noise, some]))


@pytest.mark.parametrize("name", ["net", "net_padded", "net_custom"])
def test_the_first_wrong_layer_is_named_wherever_it_is(packed, name):
    models = json.loads((packed / "kit.json").read_text())["models"]
    rows, reference = models[name]["layers"], np.load(packed / models[name]["values"])
    known = {node: number for number, row in enumerate(rows) for node in row["nodes"]}
    images = json.loads((packed / "kit.json").read_text())["images"]
    pixels = run_py.normalized(run_py.read_frames(packed, images)[:1], images)
    model = onnx.load_from_string(join(packed, models, name))
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    model = expand_custom(model)
    for number, row in enumerate(rows):
        wrong = onnx.ModelProto()
        wrong.CopyFrom(model)
        wrong = halves(spoil(wrong, row["name"]))
        wrong.graph.output.extend(onnx.ValueInfoProto(name=r["name"]) for r in rows[:-1])
        session = ort.InferenceSession(wrong.SerializeToString(), OPTIONS)
        values = dict(enumerate(session.run([r["name"] for r in rows], {"input": pixels})))
        layers, diverged = run_py.compare_layers(rows, reference, values, 9.8e-3)
        assert len(layers) == len(rows) and number == known[row["nodes"][0]]
        # Even where the logits do not show the fault.
        assert diverged == row["name"]


def test_dumps_are_read_in_the_layouts_of_the_device(tmp_path):
    rng = np.random.RandomState(0)
    plain = rng.rand(1, 20, 3, 5).astype(np.float16)
    blocks = np.zeros((1, 32, 3, 5), np.float16)
    blocks[:, :20] = plain
    blocks = blocks.reshape(1, 2, 16, 3, 5).transpose(0, 1, 3, 4, 2)
    matrix = rng.rand(2, 7, 30).astype(np.float16)
    fractal = np.zeros((2, 16, 32), np.float16)
    fractal[:, :7, :30] = matrix
    fractal = fractal.reshape(2, 1, 16, 2, 16).transpose(0, 3, 1, 2, 4)
    cases = [(plain, 0, plain), (blocks, 3, plain), (fractal, 29, matrix)]
    for value, layout, expected in cases:
        path = tmp_path / "Conv2D.x.1.0.1700000000000000"
        path.write_bytes(dump_file("stage_1/0.fc", np.ascontiguousarray(value), layout, list(expected.shape)))
        name, found = run_py.read_dump(path)
        assert name == "stage_1_0_fc" and np.array_equal(found, expected)
    content = path.read_bytes()
    for damaged in (b"", b"x" * 100, content[:-1], content[:60], b"\xff" * 8 + content[8:]):
        path.write_bytes(damaged)
        assert run_py.read_dump(path) == ("x", None)


def test_the_device_gets_back_all_that_a_model_took(tmp_path, monkeypatch):
    device = StandIn()
    monkeypatch.setitem(sys.modules, "acl", device)
    sides = {"inputs": [("input", [-1, 3, 4, 4])], "outputs": [("logits", [-1, 2])]}
    content = {side: [{"name": n, "dims": d, "dtype": "float32"} for n, d in rows] for side, rows in sides.items()}
    (tmp_path / "net.om").write_text(json.dumps({**content, "batches": [1, 2]}))
    known = {"codes": {"207001": "out of device memory"}, "dtypes": ACL_DTYPES}
    kit = json.loads(json.dumps({"acl": known}))
    images = np.arange(96, dtype=np.float32).reshape(2, 3, 4, 4)
    opened = run_py.Device(kit, 0)
    model = run_py.Model(opened, tmp_path / "net.om", 2)
    out, compute, total = model.run(images)
    assert np.array_equal(out, np.repeat(images.sum((1, 2, 3))[:, None], 2, 1)) and 0 < compute <= total
    # Both copies of the images, and of their sums.
    assert model.memory == images.nbytes + out.nbytes + 4
    model.close()
    opened.close()
    assert device.violations == [] and device.live == {}
    monkeypatch.setitem(sys.modules, "acl", StandIn({"acl.rt.malloc": 207001}))
    with pytest.raises(run_py.Problem, match=r"acl.rt.malloc failed with 207001 \(out of device memory\)"):
        run_py.Model(run_py.Device(kit, 0), tmp_path / "net.om", 2)


def test_a_wrong_form_is_compared_layer_by_layer(kit, tmp_path):
    environ = install(tmp_path / "board", {"atc": {"matmul_b1": "wrong:stage_1.0"}})
    code, out, report = ran(kit, environ, "--forms", "matmul")
    assert code == 0 and "diverges is stage_1.0" in out, out
    assert report["steps"]["parity/matmul_b1"]["result"]["1"]["right"] is False
    assert report["steps"]["layers/matmul_b1"]["result"]["diverged_at"] == "stage_1.0"
    assert "layers/matmul_b2" not in report["steps"] and report["steps"]["latency/1"]["status"] == "skipped"
    printed = "\n".join(lines(read_report(kit / "board_report.json")))
    assert "the first layer that diverges is stage_1.0" in printed
    assert "(activation gelu) for Ascend310P3, quick" in printed


def test_failures_of_atc_and_of_the_device_are_reported_and_explained(kit, tmp_path):
    faults = {"atc": {"matmul_b1": "no-kernels", "matmul_b2": "broken-file"}}
    faults["acl"] = {"padded_b1": "crash", "padded_b2": "memory"}
    code, out, report = ran(kit, install(tmp_path / "board", faults), "--forms", "matmul,padded")
    steps = report["steps"]
    problems = {name: entry.get("problem", "") for name, entry in steps.items()}
    assert code == 1 and "No supported Ops kernel" in problems["compile/matmul_b1"], out
    assert "the file that it wrote is broken" in problems["compile/matmul_b2"]
    assert steps["parity/matmul_b1"]["status"] == "skipped" and steps["parity/padded_b1"]["status"] == "crashed"
    assert "SIGSEGV" in problems["parity/padded_b1"] and "out of device memory" in problems["parity/padded_b2"]
    assert summary(read_report(kit / "board_report.json"))["fastest"] == {}
    hangs = install(tmp_path / "board", {"acl": {"padded_b1": "hang"}})
    code, out, report = ran(kit, hangs, "--forms", "padded", "--only", "run", "--timeout", "15")
    assert code == 1 and report["steps"]["parity/padded_b1"]["status"] == "timeout", out
    assert report["steps"]["latency/2"]["result"].keys() == {"padded_b2"}
    # The next run tries again what failed, and nothing else.
    code, out, report = ran(kit, install(tmp_path / "board"), "--forms", "matmul,padded")
    assert code == 0 and set(status(report).values()) == {"done"}, out


def test_without_tools_and_without_a_device(kit, tmp_path):
    code, out, report = ran(kit, install(tmp_path / "a", without=("atc",)), "--forms", "matmul")
    assert code == 1 and report["steps"]["compile/matmul_b1"]["status"] == "missing" and "set_env.sh" in out
    no_device = install(tmp_path / "b", without=("acl",))
    code, out, report = ran(kit, no_device, "--forms", "matmul", "--only", "compile")
    assert code == 0 and not any(name.startswith("parity/") for name in report["steps"]), out
    code, out, report = ran(kit, no_device, "--forms", "matmul", "--only", "run")
    assert code == 1 and report["steps"]["parity/matmul_b1"]["status"] == "missing"
    code, out, report = ran(kit, install(tmp_path / "c", without=("atc",)), "--forms", "matmul", "--only", "run")
    assert code == 0 and report["steps"]["latency/1"]["status"] == "done", out
    # What was compiled elsewhere stays in the report, but the machine is this one.
    assert report["steps"]["machine"]["result"]["soc"] == "Ascend310P3"
    assert report["steps"]["compile/matmul_b1"]["status"] == "done"


def test_a_kit_for_another_device_and_a_damaged_one(kit, tmp_path):
    code, out, report = ran(kit, install(tmp_path / "a", {"soc": "Ascend310B4"}), "--forms", "matmul")
    assert code == 1 and "neonext-board pack --soc Ascend310B4" in report["steps"]["machine"]["problem"]
    assert report["steps"]["compile/matmul_b1"]["status"] == "skipped"
    code, out, report = ran(kit, install(tmp_path / "b", {"soc": "Ascend310P1"}), "--forms", "matmul")
    assert code == 0 and "the device is Ascend310P1" in report["steps"]["machine"]["result"]["note"], out
    with open(kit / "onnx" / "net_cann.parts.z", "r+b") as file:
        file.seek(1000)
        file.write(b"damage")
    code, out, report = ran(kit, install(tmp_path / "c"), "--again")
    assert code == 1 and "onnx/net_cann.parts.z is damaged" in report["steps"]["files"]["problem"]
    assert set(list(status(report).values())[1:]) == {"skipped"}
    (kit / "kit.json").write_text("{")
    code, out, _ = ran(kit, install(tmp_path / "c"))
    assert code == 1 and "not a complete kit" in out and "Traceback" not in out


def test_a_kit_replaces_a_kit_alone(source, packed, tmp_path, monkeypatch):
    wanted = Wanted("Ascend310P3", (1,))
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "kit.json").write_text("{}")
    (mine / "thesis.txt").write_text("precious")
    ran = Path(shutil.copytree(packed, tmp_path / "ran"))
    (ran / "board_report.json").write_text("{}")
    (tmp_path / "link").symlink_to(packed)
    monkeypatch.chdir(tmp_path)
    refused = {
        "mine": "with other files",
        "ran": "such as board_report.json",
        "link": "a link",
        "mine/thesis.txt": "a folder was",
    }
    for place, problem in {**refused, ".": "current folder", "..": "current folder"}.items():
        with pytest.raises(NeoNextError, match=problem):
            pack(source, wanted, place)
    assert (mine / "thesis.txt").read_text() == "precious" and len(list(tmp_path.iterdir())) == 3
    # A kit, and nothing else.
    old = Path(shutil.copytree(packed, tmp_path / "old"))
    assert pack(source, wanted, old)["batches"] == [1]
    assert json.loads((old / "kit.json").read_text())["batches"] == [1]


@pytest.mark.parametrize(("way", "encoding"), [(">&-", "utf-8"), (">/dev/full", "utf-8"), (">{}/said", "ascii")])
def test_a_run_needs_nobody_who_reads(way, encoding, tmp_path):
    way = way.format(tmp_path)
    code = "import run; run.say('\u8bbe'); run.say('done'); open('ended', 'w').close()"
    shutil.copy(RUN, tmp_path)
    command = ["sh", "-c", f'exec {sys.executable} -c "$0" {way}', code]
    environ = {**os.environ, "PYTHONIOENCODING": encoding}
    ended = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "") and (tmp_path / "ended").exists()
    if "said" in way:
        assert (tmp_path / "said").read_text() == "\\u8bbe\ndone\n"


def test_a_ratio_beyond_all_numbers_is_none(packed, tmp_path, capsys):
    report = measured_report(packed)
    build = next(build for build in report["builds"] if build["batches"] == [1])
    build["predicted"]["1"]["us"] = 5e-324
    (tmp_path / "r.json").write_text(json.dumps(report))
    assert board.main(["report", str(tmp_path / "r.json"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"][0]["measured_over_predicted"] is None


def test_a_run_that_is_killed_goes_on(kit, packed, tmp_path):
    environ = install(tmp_path / "board", {"atc": {"matmul_b2": "wrong:stage_1.0"}})
    for seconds in (0.3, 1.2, 2.5):
        process = start(kit, environ, "--forms", "matmul")
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    code, out, report = ran(kit, environ, "--forms", "matmul")
    other = Path(shutil.copytree(packed, tmp_path / "other"))
    assert code == 0, out
    assert without_times(report) == without_times(ran(other, environ, "--forms", "matmul")[2])


def test_measured_rows_reach_the_device_model(packed, tmp_path, capsys, monkeypatch):
    from neonext_ms.benchmarks.board import fit
    from neonext_ms.benchmarks.latency.figures import read

    content = json.loads((packed / "kit.json").read_text())
    report = measured_report(packed)
    steps = report["steps"]
    (tmp_path / "r.json").write_text(json.dumps(report))
    figures = [figure for figure in read() if figure.model == "ResNet-18"][:2]
    monkeypatch.setattr(fit, "read_figures", lambda: figures)
    argv = ["report", str(tmp_path / "r.json"), "--fit", "--kit", str(packed), "--json"]
    assert board.main(argv) == 0
    errors = json.loads(capsys.readouterr().out)["errors"]["measured"]
    assert errors["before"]["rows"] == 4 and errors["before"]["median"] == pytest.approx(2, rel=0.02)
    assert errors["after"]["median"] < 1.5
    stored = tmp_path / "fitted.json"
    for rows in (4, 4):
        # The second time the rows of the file are there, and those of the report replace them.
        assert board.main([*argv, "--output", str(stored)]) == 0, capsys.readouterr().err
        assert json.loads(capsys.readouterr().out)["errors"]["measured"]["before"]["rows"] == rows
    model = tmp_path / "net.onnx"
    model.write_bytes(join(packed, content["models"], "net"))
    estimate = [str(model), "--soc", "Ascend310P3", "--batch", "1", "--json"]
    predicted = {}
    for name, options in (("package", []), ("fitted", ["--fitted", str(stored)])):
        assert estimate_command.main([*estimate, *options]) == 0
        predicted[name] = json.loads(capsys.readouterr().out)["predicted_images_per_second"]
    assert predicted["fitted"] < 0.75 * predicted["package"]
    for text in ("{}", '{"rows": [{"demands": []}], "parameters": {}}', stored.read_text().replace('"conv"', "[]")):
        (tmp_path / "bad.json").write_text(text)
        assert board.main([*argv, "--output", str(tmp_path / "bad.json")]) == 1
        assert "not a file of neonext-board report --fit" in capsys.readouterr().err
    fitted = json.loads(stored.read_text())
    fitted["parameters"]["cube_share"] = 50.0
    (tmp_path / "fast.json").write_text(json.dumps(fitted))
    for name in ("r.json", "fast.json"):
        assert estimate_command.main([*estimate, "--fitted", str(tmp_path / name)]) == 1
        assert "not a fitted device model" in capsys.readouterr().err
    impossible = json.loads(json.dumps(steps))
    for p50, problem in ((-1.0, "expected a number from 0"), (10**400, "expected a number"), (1e-320, "cannot have")):
        next(iter(impossible["latency/1"]["result"].values()))["compute_ms"]["p50"] = p50
        (tmp_path / "i.json").write_text(json.dumps({**report, "steps": impossible}))
        assert board.main(["report", str(tmp_path / "i.json"), *argv[2:]]) == 1
        assert problem in capsys.readouterr().err
    copy = Path(shutil.copytree(packed, tmp_path / "copy"))
    for damage, problem in ((lambda: (copy / "kit.json").write_text("{}"), "kit.json: damaged"),
                            (lambda: (copy / "kit.json").unlink(), "no such file"),
                            (lambda: os.mkfifo(copy / "kit.json"), "not a regular file"),
                            (lambda: (copy / "SHA256SUMS").write_text(""), "not the kit of")):  # fmt: skip
        damage()
        assert board.main([*argv[:3], "--kit", str(copy)]) == 1
        assert problem in capsys.readouterr().err
    steps["machine"]["result"]["stand_in"] = True
    (tmp_path / "r.json").write_text(json.dumps({**report, "steps": steps}))
    assert board.main(argv) == 1 and "it ran on stand-ins" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("data/dense_low.z", lambda content: zlib.compress(bytes(10**8)), "larger inside than kit.json says"),
        ("parts", lambda content: zlib.compress(bytes(10**8)), "larger inside than kit.json says"),
        ("data/places.z", lambda content: content[:-4], "places.z: damaged"),
        ("data/sparse_high.z", lambda content: b"x", "not the description of a kit"),
        ("kit.json", lambda content: b"{}", "not the description of a kit"),
        ("kit.json", lambda content: re.sub(rb'"segments":\s*\[', b'"segments": ["",', content), "not the description"),
        ("kit.json", lambda content: re.sub(b'"parts": *"[^"]*', b'"parts": "../fifo', content), "not a regular file"),
    ],
)
def test_checksums_of_a_kit_prove_nothing(kit, name, change, message, tmp_path, capsys):
    """A kit that was made to do harm has right checksums."""
    os.mkfifo(tmp_path / "fifo")
    report = measured_report(kit)
    name = json.loads((kit / "kit.json").read_text())["models"]["net"]["parts"] if name == "parts" else name
    (kit / name).write_bytes(change((kit / name).read_bytes()))
    sums = [f"{run_py.sha256(kit / file)}  {file}\n" for file, _ in pack_module.read_sums(kit)]
    (kit / "SHA256SUMS").write_text("".join(sums))
    report["kit"]["digest"] = run_py.sha256(kit / "SHA256SUMS")[:16]
    (tmp_path / "r.json").write_text(json.dumps(report))
    assert board.main(["report", str(tmp_path / "r.json"), "--fit", "--kit", str(kit)]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("batch", ["²", "٣", "0", "1" * 5000])
def test_a_step_for_no_batch_size_is_passed_over(batch, tmp_path, capsys):
    result = {"status": "done", "result": {"file": "a", "p50_ms": 2.5}}
    steps = {f"ais_bench/{batch}": result, "ais_bench/4": result}
    (tmp_path / "r.json").write_text(json.dumps({"board_report": 1, "steps": steps}))
    assert board.main(["report", str(tmp_path / "r.json"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ais_bench"] == {"4": {"build": "a", "p50_ms": 2.5}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "not the report of a board"),
        ('{"board_report": 2}', "not the report of a board"),
        ('{"board_report": 1, "steps": []}', "steps: expected dict"),
        ('{"board_report": 1, "builds": [1]}', "expected an object, got 1"),
        ('{"board_report": 1, "builds": [{"name": "a", "batches": [0]}]}', "whole numbers above 0"),
        ('{"board_report": 1, "steps": {"machine": {"result": {"soc": 3}}}}', "machine.result.soc"),
    ],
)
def test_reports_of_others_are_read_with_care(text, message, tmp_path, capsys):
    (tmp_path / "r.json").write_text(text)
    assert board.main(["report", str(tmp_path / "r.json")]) == 1
    err = capsys.readouterr().err
    assert message in err or message.split(".")[-1] in err
