"""MindSpore Lite itself: its package, the target `lite`, and its runtime. Most tests need the package (`make lite`)."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import zipfile
from pathlib import Path

import numpy as np
import pytest

from neonext_ms import export_checkpoint, open_runtime
from neonext_ms.commands import info, validate
from neonext_ms.common.errors import InputError, ToolchainError, UsageError
from neonext_ms.export.compare import command as compare
from neonext_ms.export.om.options import OmOptions
from neonext_ms.lite import __main__ as command
from neonext_ms.lite import package
from neonext_ms.lite.driver import missing
from neonext_ms.runtime.base import Settings
from neonext_ms.runtime.lite import Lite

DATA = Path(__file__).parents[1] / "data"
DIGITS = {"path": DATA / "digits_64.pt", "shifts": (1, 1, 0, 0), "image_size": 64}
needs_lite = pytest.mark.skipif(bool(missing()), reason=f"{missing()}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with the digits model as an ONNX and a Lite file."""
    path = tmp_path_factory.mktemp("lite")
    report = export_checkpoint(targets=["onnx", "lite"], output=path, **DIGITS)
    assert report.parity["lite"].relative_l2 < 1e-5
    return path


def images(count: int) -> np.ndarray:
    return np.random.default_rng(count).standard_normal((count, 3, 64, 64), np.float32)


# The package


def wheel(path: Path, monkeypatch, missing: str = "") -> Path:
    """Write a small file that counts as the wheel of the release."""
    files = {f"mindspore_lite/lib/{name}": name.encode() for name in package.LIBRARIES}
    files["mindspore_lite/include/api/model.h"] = b"// model"
    record = "".join(f"{name},sha256=x,{len(content)}\n" for name, content in files.items())
    files[f"mindspore_lite-{package.VERSION}.dist-info/RECORD"] = record.encode()
    files["mindspore_lite/lib/libtensorrt_plugin_python.so"] = b"not needed"
    with zipfile.ZipFile(path, "w") as archive:
        for name in files:
            if name != missing:
                archive.writestr(name, files[name])
    monkeypatch.setattr(package, "_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


def test_the_package_is_unpacked_once_into_the_named_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("NEONEXT_LITE", str(tmp_path / "a" / "lite"))
    with pytest.raises(ToolchainError, match=r"not installed .looked in .*a/lite.*Run `python -m neonext_ms\.lite`"):
        package.find()
    file = wheel(tmp_path / "w.whl", monkeypatch)
    root, present = package.install(file)
    assert root == tmp_path / "a" / "lite" / "mindspore_lite" and not present
    assert not (root / "lib" / "libtensorrt_plugin_python.so").exists()
    assert package.install("no such file") == (root, True)
    # A library that was cut off is installed again.
    (root / "lib" / package.LIBRARIES[0]).write_bytes(b"")
    with pytest.raises(ToolchainError):
        package.find()
    assert package.install(file) == (root, False)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["lite"]


def test_another_file_is_not_unpacked(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NEONEXT_LITE", str(tmp_path / "lite"))
    (tmp_path / "w.whl").write_bytes(b"something else")
    assert command.main(["--wheel", str(tmp_path / "w.whl")]) == 1
    assert "expected sha256" not in capsys.readouterr().out and not (tmp_path / "lite").exists()


def test_a_folder_with_other_files_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("NEONEXT_LITE", str(tmp_path))
    file = wheel(tmp_path / "w.whl", monkeypatch)
    with pytest.raises(InputError, match="this folder has other files"):
        package.install(file)
    assert file.is_file()


def test_no_access_to_pypi(tmp_path, monkeypatch):
    monkeypatch.setenv("NEONEXT_LITE", str(tmp_path / "lite"))
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.setenv(name, f"file://{tmp_path}/nothing")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(ToolchainError, match=r"cannot be downloaded .*--wheel FILE"):
        package.install()


def test_another_machine(monkeypatch):
    monkeypatch.setattr(package.platform, "machine", lambda: "aarch64")
    with pytest.raises(ToolchainError, match=r"for Linux on x86-64 only .got linux on aarch64"):
        package.find()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"neocell": "custom"}, "no NeoCell"),
        ({"dtype": "bfloat16"}, "bfloat16"),
        ({"float32_io": False}, "--half-io cannot"),
    ],
)
def test_what_lite_has_not_is_refused(options, problem, tmp_path):
    with pytest.raises(UsageError, match=problem):
        export_checkpoint(targets=["lite"], output=tmp_path, **options, **DIGITS)


def test_without_the_package_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("NEONEXT_LITE", str(tmp_path / "nothing"))
    with pytest.raises(ToolchainError, match="is not installed"):
        export_checkpoint(targets=["onnx", "lite"], output=tmp_path / "o", **DIGITS)
    assert not (tmp_path / "o").exists()


# Files


@needs_lite
def test_the_file_is_described_in_the_manifest(folder):
    assert sorted(path.name for path in folder.iterdir()) == ["digits_64.json", "digits_64.ms", "digits_64.onnx"]
    files = json.loads((folder / "digits_64.json").read_text())["files"]
    entry = next(file for file in files if file["target"] == "lite")
    assert entry["mindspore_lite"] == {"version": "2.0.0"} and entry["opset"] == 13 and entry["batch"] is None


@needs_lite
def test_it_takes_any_batch_and_agrees_with_onnxruntime(folder):
    with open_runtime(folder / "digits_64.ms") as lite, open_runtime(folder / "digits_64.onnx") as onnx:
        assert (lite.name, lite.batch, lite.classes, lite.input_size) == ("mindspore-lite", None, 10, (64, 64))
        for count in (1, 5, 2):
            expected = onnx.run(images(count))
            assert np.linalg.norm(lite.run(images(count)) - expected) < 1e-5 * np.linalg.norm(expected)


@needs_lite
def test_its_accuracy_is_that_of_the_network(folder, capsys):
    golden = os.environ.get("NEONEXT_GOLDEN")
    data, right = (Path(golden) / "digits" / "val", "355/360") if golden else (DATA / "digits", "18/20")
    assert validate.main(["--model", str(folder / "digits_64.ms"), str(data)]) == 0
    assert f"({right})" in capsys.readouterr().out


@needs_lite
def test_float16_stores_the_weights_in_half_the_bytes(folder, tmp_path, capsys):
    report = export_checkpoint(targets=["lite"], output=tmp_path, dtype="float16", **DIGITS)
    assert 1e-4 < report.parity["lite"].relative_l2 < 1e-3
    assert report.files["lite"].stat().st_size < 0.51 * (folder / "digits_64.ms").stat().st_size
    # The file itself tells, without its manifest, by which tolerance it is compared.
    report.manifest.unlink()
    assert compare.main([str(folder / "digits_64.onnx"), str(report.files["lite"])]) == 0
    assert "digits_64.ms (ms, float16)" in capsys.readouterr().out


@needs_lite
def test_stage_outputs_of_a_fixed_batch(tmp_path, capsys):
    report = export_checkpoint(targets=["lite"], output=tmp_path, features_only=True, batch=2, **DIGITS)
    with Lite() as runtime:
        signature = runtime.describe(str(report.files["lite"]), Settings())
        assert signature.batches == (2,)
        runtime.load(str(report.files["lite"]), Settings())
        shapes = [output.shape for output in runtime.run([images(2)])]
    assert shapes == [(2, 24, 16, 16), (2, 48, 8, 8), (2, 96, 4, 4), (2, 192, 2, 2)]
    assert info.main([str(report.files["lite"]), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["outputs"]["stage_4"] == "float32 2x192x2x2" and facts["inputs"] == {"input": "float32 2x3x64x64"}
    assert compare.main([str(report.files["lite"]), str(report.files["lite"]), "--json"]) == 0
    assert [output["name"] for output in json.loads(capsys.readouterr().out)["outputs"]][3] == "stage_4"
    with pytest.raises(InputError, match=r"expected one output, or one called 'logits'; found stage_1, stage_2"):
        open_runtime(report.files["lite"])


@needs_lite
def test_an_om_by_lite_is_converted_for_the_host_first(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.delenv("LITE_HOME", raising=False)
    report = export_checkpoint(targets=["om"], output=tmp_path, om=OmOptions("Ascend310P3", via="lite"), **DIGITS)
    assert report.missing and "converter_lite" in str(report.missing)
    entry = report.exported[0].details["mindspore_lite"]
    assert entry["parity"]["relative_l2"] < 1e-5
    assert "in MindSpore Lite on this machine: relative L2" in str(report)
    assert not list(tmp_path.glob("*.ms"))


# Damaged files, and a process that ends


@needs_lite
@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda content: content[: len(content) // 2], "model buffer is invalid"),
        (lambda content: np.random.default_rng(0).bytes(3000), "model buffer is invalid"),
        (lambda content: content[:100] + bytes(200) + content[300:], "model buffer is invalid"),
        (lambda content: b"", "Failed to read buffer"),
    ],
)
def test_a_damaged_file_is_an_error_line(folder, tmp_path, damage, problem):
    path = tmp_path / "m.ms"
    path.write_bytes(damage((folder / "digits_64.ms").read_bytes()))
    with pytest.raises(InputError, match=rf"m\.ms: MindSpore Lite 2\.0\.0 cannot load it .*{problem}"):
        open_runtime(path, image_size=(64, 64))


@needs_lite
def test_a_changed_weight_is_not_what_the_manifest_says(folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    content = bytearray((tmp_path / "digits_64.ms").read_bytes())
    content[-100000] ^= 0x40
    (tmp_path / "digits_64.ms").write_bytes(content)
    with pytest.raises(InputError, match=r"not the file that .*digits_64\.json describes"):
        open_runtime(tmp_path / "digits_64.ms")


@needs_lite
def test_a_wrong_input_and_the_end_of_the_process(folder):
    path = str(folder / "digits_64.ms")
    with Lite() as runtime:
        runtime.load(path, Settings())
        with pytest.raises(InputError, match="cannot take the input of it"):
            runtime.copy_in([np.zeros((1, 3, 64, 64), np.float16)])
        with pytest.raises(InputError, match="2 inputs, expected 1"):
            runtime.copy_in([images(1), images(1)])
        assert runtime.run([images(1)])[0].shape == (1, 10)
        os.kill(runtime._session._worker._process.pid, signal.SIGSEGV)
        with pytest.raises(InputError, match="ended by signal SIGSEGV when it tried to run it"):
            runtime.execute()
