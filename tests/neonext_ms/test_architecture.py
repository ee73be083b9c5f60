from __future__ import annotations

import pytest

from neonext_ms import list_models, model_config
from neonext_ms.commands.info import published_rows
from neonext_ms.common.errors import InputError
from neonext_ms.models.architecture import make_architecture
from neonext_ms.models.names import mindspore_name, official_name
from neonext_ms.models.registry import identify


def test_counts_of_the_issue():
    released = model_config("neonext_t.released_224").architecture
    assert released.parameters() == 27_532_552
    assert model_config("neonext_t").architecture.parameters() == 27_682_888
    assert round(released.multiply_adds((224, 224)) / 1e9, 3) == 4.374


def test_published_parameters_are_reproduced():
    rows = [row for row in published_rows() if row["quantity"] == "parameters"]
    assert len(rows) == 7
    assert all(row["agrees"]["counted"] for row in rows)


@pytest.mark.parametrize("name", list_models())
def test_every_model_is_identified(name):
    config = model_config(name)
    # With known shifts the name is unique; 224 and 384 differ in nothing else.
    assert identify(config.architecture) == name
    assert sum(1 for n in config.architecture.tensors()) == len(config.architecture.tensors())
    assert config.architecture.maps(config.image_size)[3] == (config.image_size[0] // 32,) * 2


@pytest.mark.parametrize("name", ["neonext_t", "neonext_t.released_224", "neonext_t.paper"])
def test_names_map_one_to_one(name):
    official = list(model_config(name).architecture.tensors())
    mapped = [mindspore_name(n) for n in official]
    assert len(set(mapped)) == len(official)
    assert [official_name(n) for n in mapped] == official
    assert mindspore_name("stem.norm.num_batches_tracked") is None
    # A NeoCell's biases, which no published network has, keep their names: by channel, and by patch for each group.
    for name in ("up.neocell.bias", "up.neocell.bias.0"):
        assert mindspore_name(name) == official_name(name) == name


def test_official_strings_are_taken():
    one = make_architecture(shifts="1,1,0,0", per_stage_layers="1,1,2,1", dims="16,32,64,128", kernel_spec="4+7+9")
    assert one.shifts == (1, 1, 0, 0)
    assert [g.channels for g in one.stage_spec(0).groups] == [5, 5, 6]
    assert one.kernel_spec == "4+7+9"
    assert make_architecture(kernel_spec="4+7,4+7,7,7").kernel_spec == "default"


def test_drop_path_grows_linearly():
    rates = make_architecture(per_stage_layers=(1, 2, 1, 1), drop_path=0.4).drop_path_rates()
    assert [rate for stage in rates for rate in stage] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shifts": (1, 1, 1)}, "four whole numbers"),
        ({"shifts": (4, 1, 1, 0)}, "smaller than its matrix"),
        ({"shifts": "1,1,x,0"}, "whole numbers"),
        ({"kernel_spec": "4-7"}, "kernel_spec"),
        ({"dims": (1, 2, 3, 4)}, "too few"),
        ({"dims": (0, 2, 3, 4)}, "at least 1"),
        ({"num_classes": 0}, "num_classes"),
        ({"drop_path": 1.0}, "drop_path"),
        ({"layer_scale_init_value": float("nan")}, "layer_scale"),
        ({"downsample": "papers"}, "downsample"),
    ],
)
def test_bad_options_are_rejected(options, message):
    with pytest.raises(InputError, match=message):
        make_architecture(**options)


@pytest.mark.parametrize(
    ("size", "message"), [((66, 64), "68x64|64x64"), ((16, 64), "would vanish"), ((0, 64), "multiples of 4")]
)
def test_image_sizes_that_cannot_be(size, message):
    with pytest.raises(InputError, match=message):
        make_architecture().maps(size)


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(InputError, match="did you mean neonext_t"):
        model_config("neonext-t")
    with pytest.raises(InputError, match="did you mean num_classes"):
        model_config("neonext_t", num_class=10)
