"""neonext-bench from the command line to its files, on models of a few kilobytes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from acl_stand_in import StandIn
from neonext_ms.benchmarks import command, gemm, regression, results, session, statistics
from neonext_ms.benchmarks.measure import timed
from neonext_ms.benchmarks.report import markdown
from neonext_ms.common.errors import InputError
from neonext_ms.runtime.acl import PyAcl
from neonext_ms.runtime.base import Settings
from neonext_ms.runtime.onnx import OnnxRuntime


def net(path, shape=("n", 3, 8, 8), dtype=TensorProto.FLOAT, name="pixels", value=None, channels=4):
    """A 3x3 and a 1x1 convolution, a depthwise one, a pooled Gemm: a file of 2 kB."""
    kind = helper.tensor_dtype_to_np_dtype(dtype)
    rng = np.random.default_rng(0)

    def weight(name, *dims):
        array = rng.standard_normal(dims).astype(kind) / np.sqrt(np.prod(dims[1:])).astype(kind)
        return numpy_helper.from_array(np.full(dims, value, kind) if value is not None else array, name)

    graph = helper.make_graph(
        [
            helper.make_node("Conv", [name, "k3"], ["a"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("Conv", ["b", "k1"], ["c"]),
            helper.make_node("Conv", ["c", "dw"], ["d"], pads=[1, 1, 1, 1], group=channels),
            helper.make_node("GlobalAveragePool", ["d"], ["e"]),
            helper.make_node("Flatten", ["e"], ["f"]),
            helper.make_node("Gemm", ["f", "fc"], ["logits"]),
        ],
        "net",
        [helper.make_tensor_value_info(name, dtype, shape)],
        [helper.make_tensor_value_info("logits", dtype, [shape[0], 5])],
        [
            weight("k3", channels, 3, 3, 3),
            weight("k1", channels, channels, 1, 1),
            weight("dw", channels, 1, 3, 3),
            weight("fc", channels, 5),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return str(path)


def bench(capsys, *words):
    """Exit code, standard output and error of neonext-bench."""
    code = command.main(list(map(str, words)))
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def pair(tmp_path):
    return net(tmp_path / "one.onnx"), net(tmp_path / "two.onnx", channels=8)


def test_two_files_side_by_side(pair, tmp_path, capsys):
    output = tmp_path / "result.json"
    code, out, err = bench(capsys, *pair, "--batch", "1,4", "--rounds", 9, "--output", output)
    assert code == 0 and err == ""
    assert "## SingleStream (batch 1): 9 rounds" in out and "## Batch 4: 9 rounds" in out
    assert "Offline: images per second" in out and "GEMM of one.onnx" in out and "Preprocessing" in out
    result = results.read(output)
    assert result["partial"] is False and result["command"][0] == "neonext-bench"
    assert {"cpu", "flags", "load"} <= set(result["machine"]) and "onnxruntime" in result["versions"]
    assert result["settings"]["cores"] and result["settings"]["threads"] == len(result["settings"]["cores"])
    rows = results.entries(result)
    measured = [(f"{name}.onnx", batch) for batch in (1, 4) for name in ("one", "two")]
    assert [(r.label, r.batch) for r in rows if not r.is_gemm] == measured
    assert {len(row["samples"]) for group in result["batches"] for row in group["rows"]} == {9}
    (second,) = [r for r in rows if r.label == "two.onnx" and r.batch == 4]
    samples = {row["label"]: row["samples"] for row in result["batches"][1]["rows"]}
    assert second.ratio == statistics.ratio(samples["two.onnx"], samples["one.onnx"])
    assert second.gemm_share == statistics.ratio(samples["GEMM of two.onnx"], samples["two.onnx"])
    assert second.images_per_second == pytest.approx(4 / np.mean(samples["two.onnx"]))
    assert markdown(result) == out


@pytest.mark.parametrize(
    "shape, dtype, words, batches, size",
    [
        ((2, 3, 8, 6), TensorProto.FLOAT, [], [2], [8, 6]),
        (("n", 3, "h", "w"), TensorProto.FLOAT, ["--image-size", "16x12"], [1, 8], [16, 12]),
        (("n", 3, 8, 8), TensorProto.FLOAT16, ["--batch", "3"], [3], [8, 8]),
        (("n", "c", "h", "w"), TensorProto.FLOAT, ["--image-size", "9", "--batch", "1"], [1], [9, 9]),
    ],
)
def test_models_of_other_makers(shape, dtype, words, batches, size, tmp_path, capsys):
    path = net(tmp_path / "net.onnx", shape, dtype, name="input.1")
    code, out, err = bench(capsys, path, *words, "--rounds", 2, "--json")
    assert code == 0, err
    result = json.loads(out)
    assert [group["batch"] for group in result["batches"]] == batches
    assert result["subjects"][0]["image_size"] == size
    assert result["subjects"][0]["input"] == {
        "name": "input.1",
        "dtype": str(helper.tensor_dtype_to_np_dtype(dtype)),
        "layout": "NCHW",
    }


def test_an_open_image_size_is_told(tmp_path, capsys):
    path = net(tmp_path / "net.onnx", ("n", 3, "h", "w"))
    code, out, _ = bench(capsys, path, "--batch", 1, "--rounds", 1, "--no-gemm")
    assert code == 0 and "leaves the image size open; measured at 224x224" in out and "GEMM of" not in out


def test_a_fixed_batch_beside_an_open_one(pair, tmp_path, capsys):
    fixed = net(tmp_path / "fixed.onnx", (2, 3, 8, 8))
    code, out, _ = bench(capsys, pair[0], fixed, "--rounds", 1, "--json")
    result = json.loads(out)
    assert code == 0 and [group["batch"] for group in result["batches"]] == [1, 2, 8]
    assert "fixed.onnx does not take batches of 1, 8; omitted there" in result["notes"]


def bad(tmp_path):
    (tmp_path / "text.onnx").write_text("hello")
    good = net(tmp_path / "good.onnx")
    fixed = net(tmp_path / "fixed.onnx", (2, 3, 8, 8))
    clone = tmp_path / "clone"
    (clone / "ptvision" / "models" / "neonext").mkdir(parents=True)
    (clone / "ptvision" / "models" / "neonext" / "neonext.py").touch()
    return {
        "nothing": ([], 2, "nothing to measure"),
        "unknown name": (["neonext_tt"], 2, "unknown model 'neonext_tt' (did you mean neonext_t"),
        "unknown name in a list": (["--models", "resnet51"], 2, "did you mean resnet50"),
        "missing file": ([tmp_path / "none.onnx"], 1, "none.onnx: no such file"),
        "no model": ([tmp_path / "text.onnx"], 1, "text.onnx: onnxruntime cannot load it"),
        "another kind of file": ([__file__], 2, "unknown kind of model '.py'"),
        "image size": ([good, "--image-size", 16], 1, "float32 Nx3x8x8, so images of 16x16 do not fit"),
        "batch": ([fixed, "--batch", "1,3"], 1, "takes batches of 2 only (got 1, 3)"),
        "NaN": ([net(tmp_path / "nan.onnx", value=np.nan)], 1, "nan.onnx: it returns NaN values"),
        "zero rounds": ([good, "--rounds", 0], 2, "got '0'"),
        "negative batch": ([good, "--batch=1,-8"], 2, "got '-8'"),
        "zero seconds": ([good, "--seconds", 0], 2, "a positive number of seconds"),
        "no seconds": ([good, "--seconds", "nan"], 2, "a positive number of seconds"),
        "threads": ([good, "--threads", 0], 2, "at least 1"),
        "too many threads": ([good, "--threads", 4096], 2, "this process may use"),
        "device": ([good, "--device", -1], 2, "at least 0"),
        "runtime": ([good, "--runtime", "onnx"], 2, "unknown runtime 'onnx' (did you mean"),
        "missing runtime": ([good, "--runtime", "onnxruntime-cann"], 3, "pip install onnxruntime-cann"),
        "missing board": ([tmp_path / "x.om"], 3, "install CANN"),
        "output": ([good, "--output", tmp_path / "no" / "r.json"], 1, "no such file or folder"),
        "output's name": ([good, "--output", tmp_path / "r.txt"], 2, "ending in .json"),
        "torch alone": (["neonext_t", "--torch", sys.executable], 2, "needs both"),
        "torch without NeoNeXt": ([good, "--torch", sys.executable, "--official", clone], 2, "--torch measures"),
        "no repository": (["neonext_t", "--torch", sys.executable, "--official", tmp_path], 1, "not a clone"),
        "option": ([good, "--round", 3], 2, "did you mean --rounds"),
        "result": (["report", tmp_path / "text.onnx"], 1, "not a JSON file"),
        "missing result": (["report", tmp_path / "none.json"], 1, "no such file"),
        "limit": (["report", "a.json", "--compare", "b.json", "--fail-above", "0.9"], 2, "at least 1"),
        "limit without end": (["report", "a.json", "--compare", "b.json", "--fail-above", "1e9"], 2, "at most 10"),
        "limit alone": (["report", "a.json", "--fail-above", "1.1"], 2, "--compare BASE.json"),
    }


BAD = (
    "nothing", "unknown name", "unknown name in a list", "missing file", "no model", "another kind of file",
    "image size", "batch", "NaN", "zero rounds", "negative batch", "zero seconds", "no seconds", "threads",
    "too many threads", "device", "runtime", "missing runtime", "missing board", "output", "output's name",
    "torch alone", "torch without NeoNeXt", "no repository", "option", "result", "missing result", "limit",
    "limit alone", "limit without end",
)  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_line_and_a_code(case, tmp_path, capsys):
    cases = bad(tmp_path)
    assert set(BAD) == set(cases)
    words, expected, message = cases[case]
    before = sorted(tmp_path.rglob("*"))
    try:
        code, out, err = bench(capsys, *words)
    except SystemExit as stop:
        code = stop.code
        out, err = capsys.readouterr()
    assert code == expected and message in err and out == ""
    assert "Traceback" not in err and "error: " in err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_on_the_stand_in_of_a_board(tmp_path, capsys, monkeypatch):
    stand_in = StandIn()
    monkeypatch.setitem(sys.modules, "acl", stand_in)
    monkeypatch.setattr(PyAcl, "_device", None)
    tensor = {"name": "out", "dims": [-1, 5], "dtype": "float32"}
    model = {"inputs": [{**tensor, "dims": [-1, 3, 8, 8]}], "outputs": [tensor], "batches": [1, 4]}
    for name in ("one.om", "two.om"):
        (tmp_path / name).write_text(json.dumps(model))
    code, out, err = bench(capsys, tmp_path / "one.om", tmp_path / "two.om", net(tmp_path / "net.onnx"), "--rounds", 3)
    assert code == 0 and err == ""
    assert "## Batch 4: 3 rounds" in out and "pyacl, not run on a device" in out and "one.om, batch 1: copy_in" in out
    assert stand_in.live == {} and stand_in.violations == [] and stand_in.calls[-1] == "acl.finalize"
    again = StandIn({"acl.mdl.execute": 507011})
    monkeypatch.setitem(sys.modules, "acl", again)
    code, out, err = bench(capsys, tmp_path / "one.om", "--rounds", 3)
    assert code == 1 and out == "" and "acl.mdl.execute failed with 507011" in err
    assert again.live == {} and again.violations == []


def interrupting(monkeypatch, after):
    """Ctrl-C in the call of this number."""
    calls = iter(range(after + 1))

    def counted(runtime, arrays):
        call = timed(runtime, arrays)

        def counted_call():
            if next(calls) == after:
                raise KeyboardInterrupt
            return call()

        return counted_call

    monkeypatch.setattr(session, "timed", counted)


def test_interrupted_runs_keep_what_was_measured(pair, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("neonext_ms.benchmarks.measure.WARM_UP_ROUNDS", 2)
    interrupting(monkeypatch, 2 * 4 + 6 * 4 + 1)
    output = tmp_path / "result.json"
    code, out, err = bench(capsys, *pair, "--batch", "1,2", "--rounds", 50, "--output", output)
    assert code == 130 and f"interrupted: the result so far is in {output}" in err
    assert "**Partial: the run was interrupted" in out
    result = results.read(output)
    assert result["partial"] is True and [group["rounds"] for group in result["batches"]] == [6]
    assert {len(row["samples"]) for row in result["batches"][0]["rows"]} == {6}


def test_interrupted_in_the_second_batch(pair, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("neonext_ms.benchmarks.measure.WARM_UP_ROUNDS", 2)
    interrupting(monkeypatch, 2 * 4 + 3 * 4 + 1)
    code, out, _ = bench(capsys, *pair, "--batch", "1,2", "--rounds", 3, "--json")
    result = json.loads(out)
    assert code == 130 and result["partial"] and [group["batch"] for group in result["batches"]] == [1]


def test_interrupted_before_anything_was_measured(pair, tmp_path, capsys, monkeypatch):
    interrupting(monkeypatch, 0)
    output = tmp_path / "result.json"
    code, out, err = bench(capsys, *pair, "--output", output)
    assert code == 130 and out == "" and "interrupted" in err and not output.exists()


def test_products_of_a_graph(tmp_path):
    work = gemm.work_of(net(tmp_path / "net.onnx"), (2, 3, 8, 8))
    shapes = [(p.m, p.k, p.n) for p in work.products]
    assert shapes == [(128, 27, 4), (128, 4, 4), (2, 4, 5)]
    assert work.gemm_multiply_adds == 128 * 27 * 4 + 128 * 16 + 40
    assert work.multiply_adds == work.gemm_multiply_adds + 128 * 4 * 9
    path = tmp_path / "gemm.onnx"
    gemm.write_graph(work.products, path)
    onnx.checker.check_model(str(path), full_check=True)
    with OnnxRuntime() as runtime:
        runtime.load(str(path), Settings(2, (8, 8)))
        left = gemm.inputs_of(work.products)
        (corners,) = runtime.run(left)
    weights = [numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer if t.name.startswith("w")]
    expected = [(left[i] @ weights[j])[0, 0] for i, j in enumerate(range(3))]
    assert corners[0] == pytest.approx(np.array(expected), abs=1e-4)


def test_the_exported_network_is_its_products(tmp_path):
    from neonext_ms.export import pipeline
    from neonext_ms.export.request import Request
    from neonext_ms.export.source import Source
    from neonext_ms.models.architecture import make_architecture
    from neonext_ms.models.initialization import initial_arrays

    architecture = make_architecture(7, (1, 1, 1, 1), (8, 16, 24, 32), shifts=(1, 1, 1, 0))
    source = Source(initial_arrays(architecture, rng=np.random.RandomState(0)), architecture, "tiny")
    report = pipeline.export(source, Request(["onnx"], [(64, 64)]), tmp_path)
    work = gemm.work_of(report.files["onnx"], (3, 3, 64, 64))
    # Stem, three downsamplings (2x2), two linear layers in each of four blocks, head; no product of a NeoCell.
    assert len(work.products) == 1 + 3 + 2 * 4 + 1
    assert work.gemm_multiply_adds < work.multiply_adds
    assert (work.products[0].m, work.products[0].k, work.products[0].n) == (3 * 16 * 16, 48, 8)


def made_up(times, batch=1, noise=0.003, seed=0, rounds=30):
    """A result of these seconds by label; the first is the base, "GEMM of a" a GEMM."""
    rng = np.random.default_rng(seed)
    rows = []
    for label, seconds in times.items():
        samples = list(seconds * np.exp(rng.normal(0, noise, rounds)))
        row = {"label": label, "kind": "gemm" if label.startswith("GEMM") else "model", "samples": samples}
        rows.append({**row, "stable": True, "parts": {}, "model": "a", "runtime": "onnxruntime"})
    about = [
        {
            "label": row["label"], "model": row["label"], "form": "file", "runtime": "onnxruntime", "notes": [],
            "image_size": [8, 8], "input": {"dtype": "float32"}, "relative_l2": None,
        }
        for row in rows if row["kind"] == "model"
    ]  # fmt: skip
    return {
        "format": "neonext-bench", "version": 1, "partial": False, "command": ["neonext-bench", "a b.onnx"],
        "started": "now", "machine": {}, "versions": {}, "subjects": about, "preprocessing": [], "notes": [],
        "settings": {"threads": 1, "cores": [0]},
        "batches": [{"batch": batch, "rounds": rounds, "warm_up_rounds": 6, "rows": rows}],
    }  # fmt: skip


def test_order_is_told_only_where_the_run_allows_it():
    text = markdown(made_up({"a": 1.0, "b": 1.2, "c": 1.2}))
    assert "a < b ~ c" in text or "a < c ~ b" in text
    text = markdown(made_up({"a": 1.0, "b": 1.2}, noise=0.5))
    assert "Too noisy to rank all: a ? b, but unsure is b / a = " in text or (
        "b ? a" in text and "Noisy (spread" in text
    )
    assert "`neonext-bench 'a b.onnx'`" in text
    assert "Too noisy to rank" in markdown(made_up({"a": 1.0, "b": 1.2}, rounds=4))


def test_what_was_not_run_on_a_device_says_so_in_its_result():
    result = made_up({"a": 1.0})
    result["subjects"][0]["notes"] = ["not run on a device"]
    assert "onnxruntime, not run on a device" in markdown(result)


def write(path, result):
    results.write(path, result)
    return path


@pytest.mark.parametrize(
    "after, code, message",
    [
        ({"a": 2.0, "b": 2.4, "GEMM of a": 1.6}, 0, ""),
        ({"a": 1.0, "b": 1.5, "GEMM of a": 0.8}, 1, "b at batch 1 takes 1.25 times as long as before"),
        ({"a": 1.3, "b": 1.2, "GEMM of a": 0.8}, 1, "a at batch 1 takes 1.30 times as long as before"),
        ({"a": 0.5, "b": 1.2, "GEMM of a": 0.8}, 0, ""),
    ],
)
def test_regression(after, code, message, tmp_path, capsys):
    before = write(tmp_path / "before.json", made_up({"a": 1.0, "b": 1.2, "GEMM of a": 0.8}))
    now = write(tmp_path / "now.json", made_up(after, seed=1))
    found, out, err = bench(capsys, "report", now, "--compare", before, "--fail-above", "1.1")
    assert (found, err) == (code, "")
    assert ("moved: " in out) == bool(message) and message in out
    found, out, _ = bench(capsys, "report", now, "--compare", before, "--fail-above", "1.1", "--json")
    assert found == code and bool(json.loads(out)["failed"]) == bool(message)
    assert {move["anchor"] for move in json.loads(out)["moves"]} == {"GEMM of a"}


def test_regression_without_gemm_and_with_another_anchor():
    before, now = made_up({"a": 1.0, "b": 1.2, "c": 3.0}), made_up({"a": 1.0, "b": 1.8, "c": 3.0}, noise=0.1)
    moves = regression.compare(now, before)
    assert {m.label: m.anchor for m in moves} == {"b": "a", "c": "a"}
    assert {m.label for m in regression.compare(now, before, "c")} == {"a", "b"}
    (told,) = regression.failures(regression.compare(now, before), 1.1)
    assert told.startswith("b at batch 1") and "too noisy to be sure" in told
    for other, asked, message in (
        (made_up({"x": 1.0}), None, "no model at the same batch in common"),
        (made_up({"a": 1.0}), None, "have only a in common"),
        (now, "aa", r"the anchor 'aa' is not in both .did you mean"),
    ):
        with pytest.raises(InputError, match=message):
            regression.compare(other, before, asked) or pytest.fail("nothing raised")


def test_reports_and_pictures(tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    # A name with dollar signs is no formula.
    result = made_up({"a": 1.0, r"$\b{$": 1.2, "GEMM of a": 0.8})
    result["batches"] += made_up({"a": 7.0, r"$\b{$": 8.0, "GEMM of a": 6.0}, batch=8)["batches"]
    path = write(tmp_path / "run.json", result)
    code, out, err = bench(capsys, "report", path, "--output", tmp_path / "out")
    assert code == 0 and out == ""
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["run.md", "run_latency.png", "run_share.png"]
    text = (tmp_path / "out" / "run.md").read_text()
    assert text.startswith("# ") and "![run_latency.png](run_latency.png)" in text and "run_share.png" in err
    assert (tmp_path / "out" / "run_share.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, _, err = bench(capsys, "report", path, "--output", tmp_path / "plain")
    assert code == 0 and [p.name for p in (tmp_path / "plain").iterdir()] == ["run.md"]
    assert "no pictures: matplotlib is required" in err and len(err.splitlines()) == 2


def test_reports_inside_a_page(tmp_path, capsys):
    page, path = tmp_path / "page.md", write(tmp_path / "run.json", made_up({"a": 1.0, "b": 1.2}))
    page.write_text(f"# Page\n\n    neonext-bench report {path}\n\nold\n\n<!-- end of the table -->\n\nEnd.\n")
    assert bench(capsys, "report", "--update", page) == (0, f"{page}: 1 of 1 tables changed\n", "")
    text = page.read_text()
    assert "\n### SingleStream (batch 1)" in text and text.endswith("<!-- end of the table -->\n\nEnd.\n")
    assert bench(capsys, "report", "--update", page)[1] == f"{page}: 0 of 1 tables changed\n"
    code, _, err = bench(capsys, "report")
    assert code == 2 and "expected results, or --update PAGE.md" in err


def test_the_page_of_results_is_what_the_command_prints(monkeypatch):
    from neonext_ms.benchmarks import documents, report_command

    monkeypatch.chdir(Path(__file__).parents[2])
    tables = documents.tables_of(Path("docs/results.md").read_text(encoding="utf-8"), report_command.COMMAND)
    assert len(tables) == 3
    for arguments, table in tables:
        assert report_command._section(arguments.split()) == table


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda r: r.update(format="other"), "not a result of neonext-bench"),
        (lambda r: r.update(version=9), "unknown version of the format (got 9"),
        (lambda r: r.pop("batches"), "a damaged result"),
        (lambda r: r["batches"][0]["rows"][0].update(samples=[]), "a damaged result"),
        (lambda r: r.update(batches=[]), "a damaged result"),
        (lambda r: r.pop("machine"), "machine is None"),
        (lambda r: r.update(notes=[["a"]]), "notes[0] is ['a']"),
        (lambda r: r["batches"][0]["rows"][0].update(samples=[0.0]), "batches[0].rows[0].samples is [0.0]"),
    ],
)
def test_damaged_results(change, message, tmp_path, capsys):
    result = made_up({"a": 1.0, "b": 2.0})
    change(result)
    code, _, err = bench(capsys, "report", write(tmp_path / "r.json", result))
    assert code == 1 and message in err


def test_lists(capsys):
    code, out, _ = bench(capsys, "--list-models")
    assert code == 0 and {"neonext_t", "convnext_t", "resnet50"} <= set(out.split())
    code, out, _ = bench(capsys, "--list-runtimes", "--json")
    found = {row["runtime"]: row for row in json.loads(out)}
    assert code == 0 and found["onnxruntime"]["missing"] is None
    assert "CANN" in found["pyacl"]["missing"] and found["pyacl"]["note"] == "not run on a device"


TORCH = """
import contextlib
__version__ = "stub"
set_num_threads = lambda n: None
get_num_threads = lambda: 1
inference_mode = contextlib.nullcontext
from_numpy = lambda array: array
load = lambda path, weights_only: {"path": path} if weights_only else None
"""
NEONEXT = """
import numpy as np
print("the official code prints")
class NeoNeXt:
    def __init__(self, **options):
        assert set(options) == {"num_classes", "per_stage_layers", "dims", "kernel_spec", "shifts", "linear_bias",
                                "layer_scale_init_value"}, options
    def load_state_dict(self, weights):
        assert weights["path"].endswith(".pt")
    def eval(self):
        pass
    def __call__(self, images):
        return Logits(images)
class Logits(np.ndarray):
    def __new__(cls, images):
        return np.resize(images, (len(images), 1000)).view(cls)
    def numpy(self):
        return np.asarray(self)
"""


@pytest.fixture
def official(tmp_path, monkeypatch):
    """A repository and a torch that answer as the official ones do."""
    package = tmp_path / "repository" / "ptvision" / "models" / "neonext"
    torch = tmp_path / "stubs" / "torch" / "utils"
    for folder in (package, torch):
        folder.mkdir(parents=True)
        (folder.parent / "__init__.py").write_text("")
        (folder / "__init__.py").write_text("")
    (package.parent.parent / "__init__.py").write_text("")
    (package / "neonext.py").write_text(NEONEXT)
    (torch.parent / "__init__.py").write_text(TORCH)
    (torch / "cpp_extension.py").write_text("import types\nload = lambda name, sources: types.ModuleType(name)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "stubs"))
    return tmp_path / "repository"


def test_official_model_in_its_own_process(official, tmp_path):
    from neonext_ms.benchmarks.subjects import _official
    from neonext_ms.export.source import Source

    torch = (sys.executable, str(official))
    subject = _official("neonext_t.released_224", Source.from_name("neonext_t.released_224"), torch, tmp_path)
    assert subject.label == "neonext_t.released_224/torch" and Path(subject.path).stat().st_size > 1e8
    with subject.make() as runtime:
        runtime.load(subject.path, Settings(2, (8, 8), threads=1))
        assert runtime.package_versions == {"torch": "stub", "threads": 1}
        images = np.ones((2, 3, 8, 8), np.float32)
        (logits,) = runtime.run([images])
        assert logits.shape == (2, 1000) and timed(runtime, [images])()["execute"] > 0
        process = runtime._process._process
    assert process.returncode == 0
    (official / "ptvision" / "models" / "neonext" / "neonext.py").write_text("raise ImportError('no module timm')")
    with pytest.raises(InputError, match="no module timm"), subject.make() as runtime:
        runtime.load(subject.path, Settings(2, (8, 8)))


def test_texts_of_a_result_are_escaped_and_names_that_are_not_utf8_kept(tmp_path, capsys):
    result = made_up({"a": 1.0, "b": 2.0})
    result["notes"] = ["red \x1b[31m", "caf\udcff.onnx"]
    results.write(tmp_path / "r.json", result)
    code, out, _ = bench(capsys, "report", tmp_path / "r.json")
    assert code == 0 and "red \\x1b[31m" in out and "caf\\udcff.onnx" in out
