from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest

from neonext_ms.common.errors import InputError, UsageError
from neonext_ms.images.preprocessing import INTERPOLATIONS, MODES
from neonext_ms.models.activations import ACTIVATIONS
from neonext_ms.models.architecture import DOWNSAMPLES
from neonext_ms.models.initialization import CONV_INITS
from neonext_ms.models.registry import model_config
from neonext_ms.training.config.describe import describe_keys
from neonext_ms.training.config.load import config_yaml, load_config, make_config
from neonext_ms.training.config.schema import Config, Range, ScheduleConfig, annotated_keys, known_keys
from neonext_ms.training.data import augment
from neonext_ms.training.data.datasets import DATASETS
from neonext_ms.training.optimizers import LR_RULES, OPTIMIZERS, full_rate
from neonext_ms.training.precision import LEVELS
from neonext_ms.training.schedule import SCHEDULES, learning_rate

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
        ("optimizer: {lrate: 1}", "unknown key 'optimizer.lrate' (did you mean"),
        ("optimiser: {lr: 1}", "unknown key 'optimiser' (did you mean optimizer"),
        ("lr: 1", "unknown key 'lr' (did you mean optimizer.lr?"),
        ("optimizer: {lr: fast}", "wrong value for optimizer.lr (got 'fast', expected a number > 0)"),
        ("optimizer: {lr: .nan}", "optimizer.lr (got nan, expected a number > 0)"),
        ("optimizer: {lr: 0}", "optimizer.lr (got 0, expected a number > 0)"),
        ("optimizer: 3", "optimizer (got 3, expected keys of its own)"),
        ("data.path: x", "unknown key 'data.path' (write path below data, as in data: {path: ...})"),
        ("schedule: {epochs: 1.5}", "schedule.epochs (got 1.5, expected a whole number in [1, 2147483647])"),
        ("data: {batch_size: true}", "data.batch_size (got True, expected a whole number in [1, 2147483647])"),
        ("data: {dataset: imagenet}", "data.dataset (got 'imagenet', expected one of digits, imagefolder"),
        ("model: {shifts: [1, a]}", "model.shifts (got [1, 'a'], expected a list of whole numbers in [0, "),
        (
            "data: {mean: [0.5]}",
            "data.mean (got [0.5], expected a list of 3 numbers in [0, 1], after division by 255)",
        ),
        ("loss: {smoothing: 1}", "loss.smoothing (got 1, expected a number in [0, 1))"),
        ("precision: {loss_scale: often}", "precision.loss_scale (got 'often', expected a number > 0 or one of auto,"),
        ("precision: {loss_scale: 0}", "precision.loss_scale (got 0, expected a number > 0 or one of auto,"),
        ("precision: {level: bf15}", "expected one of O0, O2, O3, bf16) (did you mean bf16?"),
        ("optimizer: {betas: [0.9, 1]}", "optimizer.betas (got [0.9, 1], expected a list of 2 numbers in [0, 1))"),
        (
            "augmentation: {scale: [0.5, 2]}",
            "augmentation.scale (got [0.5, 2], expected a list of 2 numbers in (0, 1])",
        ),
        ("augmentation: {ratio: [2, 1]}", "wrong order in augmentation.ratio (got [2, 1]"),
        ("run: {seed: 4294967296}", "run.seed (got 4294967296, expected a whole number in [0, 4294967295])"),
        (
            "model: {image_size: [1, 2, 3]}",
            "a whole number in [1, 16384] or a list of 2 whole numbers in [1, 16384] or null",
        ),
        ("schedule: {epochs: 5}", "schedule.warmup_epochs (20) is more than schedule.epochs (5)"),
        ("schedule: {blend_epochs: 301}", "schedule.blend_epochs (301) is more than schedule.epochs (300)"),
        ("data: {mean: [123.675, 116.28, 103.53]}", "in [0, 1], after division by 255)"),
        ("data: {std: [0.0009, 0.0009, 0.0009]}", "in [0.002, 1], after division by 255)"),
        ("data: {std: [58.395, 57.12, 57.375]}", "in [0.002, 1], after division by 255)"),
        ("run: {output: 1.10}", "run.output (got 1.1, expected a text or null). Put it in quotes"),
        ("run: {output: no}", "run.output (got False, expected a text or null). Put it in quotes"),
        ("run: {seed: 010}", "octal"),
        ("run: {output: 0x10}", "0x10 is octal, sexagesimal"),
        ("run: {output: +7}", "+7 is octal"),
        ("run: {<<: {seed: 1}, <<: {seed: 2}}", "the key '<<' is given twice"),
        ('run: {output: "a\\0b"}', "run.output (got 'a\\x00b', expected a text"),
        ('base: "a\\0b"', "wrong value for base (got 'a\\x00b'"),
        ("run: {seed: !!int ''}", "a tag, tag:yaml.org,2002:int, is not allowed"),
        ("run: {jit: !!bool foo}", "a tag"),
        ("run: {seed: 1, seed: 2}", "given twice"),
        ("optimizer: {lr: '1_000'}", "optimizer.lr (got '1_000'"),
        ("optimizer: {lr: 1e300}", "optimizer.lr (got 1e+300"),
        ("model: {dims: [1, 2, 3, 99999999999]}", "model.dims (got [1, 2, 3, 99999999999]"),
        ("model: {shifts: '1,1,010,0'}", "model.shifts (got '1,1,010,0'"),
        ("a: [", "not valid YAML"),
        ("[1]", "got list, expected lines 'key: value'"),
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
        ("optimizer.lrr=1", "unknown key 'optimizer.lrr' (did you mean optimizer.lr"),
        ("batch_size=1", "unknown key 'batch_size' (did you mean data.batch_size"),
        ("optimizer=1", "unknown key 'optimizer'"),
        ("optimizer.lr=[", "not valid YAML"),
        ("optimizer.lr=big", "optimizer.lr (got 'big', expected a number > 0)"),
        ("optimizer.lr=-1", "optimizer.lr (got -1, expected a number > 0)"),
    ],
)
def test_wrong_overrides_are_named(text, expected):
    with pytest.raises(UsageError, match=re.escape(expected)):
        load_config(CONFIGS / "digits.yaml", [text])


@pytest.mark.parametrize(
    "text",
    ["2026_11_28", "no", "1.10", "#x", "007", "12:30", "2026-11-28", "~", "a: b", "[", "'x'", " x ", "!!int"],
)
def test_text_is_taken_as_typed(text):
    assert load_config(CONFIGS / "digits.yaml", [f"run.output={text}"]).run.output == text
    assert load_config(CONFIGS / "digits.yaml", [f"data.train={text}"]).data.train == text
    assert load_config(CONFIGS / "digits.yaml", [f"model.init_key={text}"]).model.init_key == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model.dims=1,2", "dims must be four whole numbers"),
        ("model.shifts=9,9,9,9", "shift_a=9 must be smaller than its matrix"),
        ("model.kernel_spec=0", "not a list of matrix sizes"),
        ("model.image_size=33", "both sides must be multiples of 4"),
    ],
)
def test_a_network_that_cannot_be_is_found_at_once(tmp_path, text, message):
    with pytest.raises(UsageError, match=message):
        load_config(CONFIGS / "digits.yaml", [text])
    key, _, value = text.removeprefix("model.").partition("=")
    (tmp_path / "a.yaml").write_text(
        f'base: {CONFIGS / "digits.yaml"}\nmodel: {{{key}: "{value}"}}\n'.replace('"33"', "33")
    )
    with pytest.raises(InputError, match=rf"a\.yaml: model: .*{message}") as error:
        load_config(tmp_path / "a.yaml")
    assert not isinstance(error.value, UsageError)


@pytest.mark.parametrize(
    "text",
    ["model.init=", "data.path=", "run.output= ", "data.val=", "model.image_size=", "model.shifts=#", "model.dims=&a"],
)
def test_an_empty_value_is_not_taken_as_null(text):
    with pytest.raises(UsageError, match=f"{text.partition('=')[0]} is empty .*Is a variable of the shell not set"):
        load_config(CONFIGS / "digits.yaml", [text])
    assert load_config(CONFIGS / "digits.yaml", ["model.image_size=null"]).model.image_size is None


def test_null_and_choices_in_overrides():
    assert load_config(CONFIGS / "digits.yaml", ["run.output=x", "run.output=null"]).run.output is None
    assert load_config(CONFIGS / "digits.yaml", ["data.classes=by-number"]).data.classes == "by-number"
    with pytest.raises(UsageError, match="got 'no', expected one of"):
        load_config(CONFIGS / "digits.yaml", ["data.classes=no"])


@pytest.mark.parametrize(
    "text",
    [
        "run.jit=!!bool foo", 'run.seed=!!int ""', "run.seed=" + "[" * 3000, "optimizer.lr=1" + "0" * 400,
        "run.seed=010", "data.batch_size=-1" + "0" * 400, "optimizer.lr=1_000",
        "run.seed=0x" + "f" * 9000, "run.seed=" + "9" * 9000,
        "schedule.epochs=2147483648", "data.mean=[123.675, 116.28, 103.53]", "a" * 9000 + "=1", "a" * 9000,
        "optimizer.lr={a: 1, a: 2}", "run.seed=12:30", "model.image_size=99999999",
    ],
)  # fmt: skip
def test_hostile_overrides_are_usage_errors(text):
    with pytest.raises(UsageError) as caught:
        load_config(CONFIGS / "digits.yaml", [text])
    assert len(str(caught.value)) < 600 and "unexpected" not in str(caught.value)


def test_an_alias_bomb_is_cut(tmp_path):
    lists = ["&a [x,x,x,x,x,x,x,x,x,x]"]
    lists += [f"&{b} [{','.join([f'*{a}'] * 10)}]" for a, b in pairwise("abcdefghi")]
    for count in (3, 9):
        path = _write(tmp_path / "x.yaml", "optimizer:\n  lr:\n" + "".join(f"    - {text}\n" for text in lists[:count]))
        with pytest.raises(InputError) as caught:
            load_config(path)
        assert len(str(caught.value)) < 600


def test_overrides_and_bases(tmp_path):
    _write(tmp_path / "base.yaml", "optimizer: {lr: 1e-2, weight_decay: 0.1}\nmodel: {dims: [1, 2, 3, 4]}\n")
    path = _write(tmp_path / "x.yaml", "base: base.yaml\noptimizer: {lr: 1e-3}\n")
    config = load_config(path, ["model.shifts=1,1,0,0", "data.path=/a=b", "model.kernel_spec=7", "optimizer.lr=2e-3"])
    assert (config.optimizer.lr, config.optimizer.weight_decay) == (2e-3, 0.1)
    assert (config.model.dims, config.model.shifts, config.model.kernel_spec) == ((1, 2, 3, 4), (1, 1, 0, 0), "7")
    assert config.data.path == "/a=b"
    assert make_config({}) == Config()


@pytest.mark.parametrize(
    ("key", "table"),
    [
        ("data.dataset", DATASETS), ("data.val_interpolation", INTERPOLATIONS), ("data.val_mode", MODES),
        ("augmentation.interpolation", augment._RESAMPLING), ("optimizer.name", OPTIMIZERS),
        ("optimizer.lr_rule", LR_RULES), ("schedule.name", SCHEDULES), ("precision.level", LEVELS),
        ("model.downsample", DOWNSAMPLES), ("model.activation", ACTIVATIONS), ("model.conv_init", CONV_INITS),
    ],
)  # fmt: skip
def test_choices_are_those_of_the_tables(key, table):
    part, _, leaf = key.partition(".")
    annotation = annotated_keys(annotated_keys(Config)[part])[leaf]
    choices = [kind for kind in (annotation, *get_args(annotation)) if get_origin(kind) is Literal]
    assert set(get_args(choices[0])) == set(table)


def test_ranges():
    assert 0 in Range() and -1e-9 not in Range() and 1e9 in Range()
    half_open = Range(0, 1, open_high=True)
    assert 0 in half_open and 1 not in half_open and str(half_open) == "in [0, 1)"
    assert 0 not in Range(open_low=True) and str(Range(open_low=True)) == "> 0" and str(Range(1)) == ">= 1"


def test_every_key_is_described():
    rows = describe_keys()
    assert [row[0] for row in rows] == known_keys() and all(all(row) for row in rows)
    assert ("ema.decay", "0.9999", "a number in [0, 1)") in {row[:3] for row in rows}


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
