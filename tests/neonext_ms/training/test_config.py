from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest

from neonext_ms.common.errors import InputError, UsageError
from neonext_ms.models.registry import model_config
from neonext_ms.training.config.schema import Config, ScheduleConfig, config_yaml, load_config, make_config
from neonext_ms.training.optimizers import full_rate
from neonext_ms.training.schedule import learning_rate

CONFIGS = Path(__file__).parents[3] / "configs"
RECIPES = sorted(path for path in CONFIGS.glob("*.yaml") if path.stem != "eval_imagenet")


def _write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_are_read_and_say_how_to_run_them(path, tmp_path):
    config = load_config(path)
    assert load_config(_write(tmp_path / "again.yaml", config_yaml(config))) == config
    header = path.read_text().partition("model:")[0]
    header = header.partition("base:")[0]
    assert "msrun" in header and "one CPU:" in header and "Expected:" in header and "Cost" in header
    assert set(re.findall(r"configs/(\w+)\.yaml", header)) == {path.stem}
    if config.model.name:
        model_config(config.model.name, drop_path=config.model.drop_path)


@pytest.mark.parametrize("family", ["paper", "official"])
@pytest.mark.parametrize("size", ["t", "s", "b", "l", "xl"])
def test_families_have_the_recipe_of_the_paper(size, family):
    config = load_config(CONFIGS / f"{size}_{family}.yaml")
    assert config.model.name.startswith(f"neonext_{size}.")
    assert (config.optimizer.name, config.optimizer.betas, config.optimizer.weight_decay) == (
        "adamw",
        (0.9, 0.999),
        0.05,
    )
    augmentation = config.augmentation
    assert (augmentation.randaugment_ops, augmentation.randaugment_magnitude) == (2, 9)
    assert (augmentation.mixup, augmentation.cutmix, augmentation.switch, augmentation.erasing) == (0.8, 1.0, 0.5, 0.25)
    assert (config.schedule.warmup_epochs, config.schedule.epochs, config.loss.smoothing) == (20, 300, 0.1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("optimizer: {lrate: 1}", "unknown key 'optimizer.lrate'; did you mean"),
        ("optimiser: {lr: 1}", "unknown key 'optimiser'; did you mean optimizer"),
        ("lr: 1", "unknown key 'lr'; did you mean optimizer.lr?"),
        ("optimizer: {lr: fast}", "optimizer.lr must be a number, got 'fast'"),
        ("optimizer: {lr: .nan}", "optimizer.lr must be a number"),
        ("optimizer: {lr: 0}", "optimizer.lr must be above 0"),
        ("optimizer: 3", "optimizer must hold keys of its own, got 3"),
        ("schedule: {epochs: 1.5}", "schedule.epochs must be a whole number, got 1.5"),
        ("data: {batch_size: true}", "data.batch_size must be a whole number, got True"),
        ("data: {dataset: imagenet}", "data.dataset must be one of digits, imagefolder"),
        ("model: {shifts: [1, a]}", "model.shifts must be a list, each a whole number or null"),
        ("data: {mean: [0.5]}", "data.mean must be 3 numbers"),
        ("loss: {smoothing: 1}", "loss.smoothing must be at least 0 and below 1"),
        ("precision: {loss_scale: often}", "precision.loss_scale must be auto, dynamic, none or a number"),
        ("schedule: {epochs: 5}", "schedule.warmup_epochs (20) is more than schedule.epochs (5)"),
        ("a: [", "not valid YAML"),
        ("[1]", "expected lines 'key: value', found list"),
        ("base: none.yaml", "none.yaml: no such file"),
        ("base: x.yaml", "base leads back to"),
    ],
)
def test_wrong_values_are_named(tmp_path, text, expected):
    with pytest.raises(InputError) as caught:
        load_config(_write(tmp_path / "x.yaml", text))
    assert expected in str(caught.value) and str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("optimizer.lr", "expected key=value"),
        ("optimizer.lrr=1", "unknown key 'optimizer.lrr'; did you mean optimizer.lr"),
        ("batch_size=1", "unknown key 'batch_size'; did you mean data.batch_size"),
        ("optimizer=1", "unknown key 'optimizer'"),
        ("optimizer.lr=[", "not valid YAML"),
        ("optimizer.lr=big", "optimizer.lr must be a number"),
    ],
)
def test_wrong_overrides_are_named(text, expected):
    with pytest.raises(UsageError, match=re.escape(expected)):
        load_config(CONFIGS / "digits.yaml", [text])


def test_overrides_and_bases(tmp_path):
    _write(tmp_path / "base.yaml", "optimizer: {lr: 1e-2, weight_decay: 0.1}\nmodel: {dims: [1, 2, 3, 4]}\n")
    path = _write(tmp_path / "x.yaml", "base: base.yaml\noptimizer: {lr: 1e-3}\n")
    config = load_config(path, ["model.shifts=1,1,0,0", "data.path=/a=b", "model.kernel_spec=7", "optimizer.lr=2e-3"])
    assert (config.optimizer.lr, config.optimizer.weight_decay) == (2e-3, 0.1)
    assert (config.model.dims, config.model.shifts, config.model.kernel_spec) == ((1, 2, 3, 4), (1, 1, 0, 0), "7")
    assert config.data.path == "/a=b"
    assert make_config({}) == Config()


def test_learning_rate_warms_up_step_by_step_and_falls_to_nothing():
    schedule = ScheduleConfig(epochs=10, warmup_epochs=2)
    rates = [learning_rate(schedule, 1.0, step, 5) for step in range(50)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[10] == 1.0 and all(a > b > 0 for a, b in pairwise(rates[10:]))
    assert rates[30] == pytest.approx(0.5)
    steps = ScheduleConfig(name="step", epochs=10, warmup_epochs=0, milestones=(3, 6))
    assert [learning_rate(steps, 1.0, 5 * epoch, 5) for epoch in (0, 3, 6)] == pytest.approx([1, 0.1, 0.01])


def test_rate_follows_the_global_batch():
    def rate(rule, batch):
        return full_rate(make_config({"optimizer": {"lr": 1e-3, "lr_rule": rule}}).optimizer, batch)

    assert [rate(rule, 256) for rule in ("linear", "sqrt", "none")] == pytest.approx([2.5e-4, 5e-4, 1e-3])
