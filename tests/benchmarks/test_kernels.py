"""`neonext-bench claims kernels` and `resample`."""

from __future__ import annotations

import json

import pytest

from conftest import DATA
from neonext_ms import load_checkpoint
from neonext_ms.benchmarks.claims import command
from neonext_ms.checkpoint.checkpoint import save_checkpoint
from neonext_ms.models.scales import Scales

CONFIG = """\
model: {dims: [4, 4, 4, 4], per_stage_layers: [1, 1, 1, 1], shifts: [1, 1, 0, 0], image_size: 32}
data: {dataset: digits, share: 0.1, batch_size: 47, val_batch_size: 360, workers: 1}
augmentation: {crop: none, flip: 0, randaugment_ops: 0, erasing: 0, mixup: 0, cutmix: 0}
optimizer: {lr: 1e-2, lr_rule: none}
schedule: {epochs: 1, warmup_epochs: 0}
ema: {decay: 0}
run: {jit: false, log_every: 1}
"""


def test_kernels_and_shifts_are_compared_and_resume(tmp_path, capsys):
    (tmp_path / "small.yaml").write_text(CONFIG)
    arguments = ["kernels", "--config", str(tmp_path / "small.yaml"), "--output", str(tmp_path / "out")]
    arguments += ["--seeds", "1", "--kernels", "2,4+7", "--shifts", "on,off"]
    assert command.main([*arguments, "run.stop_after=2"]) == 130
    (folder,) = (tmp_path / "out").iterdir()
    assert folder.name == "2-shifted-0"
    assert command.main(arguments) == 0
    table = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in table[-4:]] == [
        ["2", "on", "128"], ["2", "off", "128"], ["4+7", "on", "1,040"], ["4+7", "off", "1,040"],
    ]  # fmt: skip
    results = [json.loads(path.read_text()) for path in (tmp_path / "out").glob("*/result.json")]
    assert sorted(result["value"] for result in results) == [
        "2-shifted", "2-unshifted", "4+7-shifted", "4+7-unshifted",
    ]  # fmt: skip
    with pytest.raises(SystemExit, match="2"):
        command.main([*arguments, "--shifts", "1"])
    for wrong, code in ((["--kernels", "1"], 1), (["--kernels", "x"], 1)):
        assert command.main([*arguments, *wrong]) == code, capsys.readouterr().err
    assert command.main([*arguments, "model.shifts=[0,0,0,0]"]) == 2


def test_a_resampled_network_hardly_loses(tmp_path, capsys):
    checkpoint, output = tmp_path / "digits.safetensors", tmp_path / "resampled.safetensors"
    # As after a fine-tuning for 8 bit, whose scales are not those of other matrices.
    metadata = {"shifts": [1, 1, 0, 0], "image_size": [64, 64], "scales": Scales("", {}).to_dict()}
    save_checkpoint(checkpoint, load_checkpoint(DATA / "digits_64.pt").arrays, metadata)
    arguments = ["resample", "--checkpoint", str(checkpoint), "--limit", "60"]
    chosen = ["--kernels", "5+8", "--reading", "offset", "--output", str(output)]
    assert command.main([*arguments, *chosen, "--json", "digits"]) == 0
    before, after = json.loads(capsys.readouterr().out)["rows"]
    assert (before["kernels"], after["kernels"]) == ("4+7", "5+8")
    assert after["correct"] >= before["correct"] - 2 and before["correct"] >= 57
    written = load_checkpoint(output)
    assert written.architecture.kernels[0] == (5, 8) and "scales" not in written.metadata
    assert command.main([*arguments, *chosen, "--activation", "relu", "digits"]) == 0
    assert load_checkpoint(output).architecture.activation == "relu"
    for place in (checkpoint, tmp_path / "x.npz"):
        assert command.main([*arguments, *chosen[:-1], str(place), "digits"]) == 2
    assert "scales" in load_checkpoint(checkpoint).metadata
    for wrong in (["--kernels", "5+8;3+6", "--output", str(output)], ["--kernels", "4"], ["--kernels", "1+7"]):
        assert command.main([*arguments, *wrong, "digits"]) != 0
    assert "another number of kernel sizes" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--reading=x", "--limit=0"])
def test_wrong_options(option):
    with pytest.raises(SystemExit) as caught:
        command.main(["resample", "--checkpoint", "x", "--kernels", "4", option, "digits"])
    assert caught.value.code == 2


def test_activations_from_scratch_and_from_gelu(tmp_path, capsys):
    (tmp_path / "small.yaml").write_text(CONFIG)
    arguments = ["activations", "--config", str(tmp_path / "small.yaml"), "--output", str(tmp_path / "out")]
    arguments += ["--seeds", "1", "--tune-epochs", "1", "--activations"]
    assert command.main([*arguments, "relu,gelu", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    summary = result["summary"]
    assert list(summary) == ["gelu", "relu", "gelu-tuned", "relu-tuned"]
    # The device joins ReLU to its convolutions, from wherever the weights come.
    for form in ("MatMul", "AscendC"):
        rates = {name: row["predicted"][form] for name, row in summary.items()}
        assert rates["relu"] > rates["gelu"] and rates["relu-tuned"] == rates["relu"]
    tuned = (tmp_path / "out/relu-tuned-0/config.yaml").read_text()
    assert "gelu-0/final.safetensors" in tuned and "activation: relu" in tuned
    assert command.main([*arguments, "gelu,relu"]) == 0
    table = capsys.readouterr().out
    assert [line.split()[:2] for line in table.splitlines()[2:6]] == [
        ["gelu", "scratch"], ["relu", "scratch"], ["gelu", "GELU"], ["relu", "GELU"],
    ]  # fmt: skip
    assert "not measured" in table
    for wrong in (["relu"], ["gelu", "--soc", "Ascend999"]):
        assert command.main([*arguments, *wrong]) == 2
    for wrong in (["swish"], ["gelu", "--tune-epochs", "-1"]):
        with pytest.raises(SystemExit, match="2"):
            command.main([*arguments, *wrong])
