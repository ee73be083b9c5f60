from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from aipp_stand_in import emulate, parse
from neonext_ms.common.errors import InputError, UsageError
from neonext_ms.export.om.aipp import aipp_config, crop_offsets, host_feed, host_pixels
from neonext_ms.images.images import prepare, resized_size
from neonext_ms.images.preprocessing import Preprocessing

OFFICIAL = Preprocessing()
RNG = np.random.RandomState(0)


def _image(height, width):
    return Image.fromarray(RNG.randint(0, 256, (height, width, 3)).astype(np.uint8))


def _half(values):
    return values.astype(np.float16).astype(np.float64)


def test_the_official_file():
    text = aipp_config(OFFICIAL, (224, 224))
    fields = parse(text)
    assert text.startswith("aipp_op {\n    aipp_mode: static\n") and text.endswith("}\n")
    assert (fields["input_format"], fields["csc_switch"], fields["rbuv_swap_switch"]) == ("RGB888_U8", False, False)
    assert [fields[f"src_image_size_{side}"] for side in "hw"] == [256, 256]
    assert [fields[f"load_start_pos_{side}"] for side in "hw"] == [16, 16]
    assert [fields[f"mean_chn_{i}"] for i in range(3)] == [123, 116, 103]
    assert [fields[f"min_chn_{i}"] for i in range(3)] == [0.675, 0.28, 0.53]
    assert text == aipp_config(OFFICIAL, (224, 224))


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(4, 40), st.integers(4, 40)),
    original=st.tuples(st.integers(5, 90), st.integers(5, 90)),
    crop=st.sampled_from([0.5, 0.8, 0.875, 0.9, 1.0]),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
    mean=st.tuples(*[st.floats(0, 1)] * 3),
    std=st.tuples(*[st.floats(0.05, 1)] * 3),
)
def test_it_is_the_ordinary_preprocessing(size, original, crop, interpolation, mean, std):
    preprocessing = Preprocessing(mean=mean, std=std, crop=crop, interpolation=interpolation)
    image = _image(*original)
    expected = prepare(image, preprocessing, size)[None]
    text = aipp_config(preprocessing, size)
    pixels = host_pixels(image, preprocessing, size)
    feed = host_feed(preprocessing, size)
    assert pixels.shape == (1, feed["height"], feed["width"], 3) and pixels.nbytes == feed["bytes_per_image"]
    scale = np.maximum(1, np.abs(expected))
    assert (np.abs(emulate(text, pixels, "float32") - expected) <= 1e-5 * scale).all()
    # Four roundings of a relative 2^-11: the remainder of the mean, the factor, the difference, the product. Of the
    # first, what counts is its size, below 1, times the factor.
    device = emulate(text, pixels)
    rest = 2.0**-11 / (255 * np.array(std))[None, :, None, None]
    assert (np.abs(device - expected) <= 3.1 * 2.0**-11 * np.abs(expected) + 2 * rest + 1e-6).all()


def test_float16_is_rounded_step_by_step():
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    device = emulate(aipp_config(OFFICIAL, (16, 16), (16, 16)), pixels)
    for i, (whole, rest) in enumerate(((123, 0.675), (116, 0.28), (103, 0.53))):
        factor = _half(np.array(1 / (255 * OFFICIAL.std[i])))
        steps = _half(_half(np.arange(256.0) - whole - _half(np.array(rest))) * factor)
        np.testing.assert_array_equal(device[0, i].ravel(), steps)


def test_a_whole_mean_would_be_worse():
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    text = aipp_config(OFFICIAL, (16, 16), (16, 16))
    whole = text.replace("mean_chn_0: 123", "mean_chn_0: 0").replace("min_chn_0: 0.675", "min_chn_0: 123.675")
    exact = (np.arange(256) - 123.675) / 58.395
    error = [np.abs(emulate(t, pixels)[0, 0].ravel() - exact)[118:130].max() for t in (text, whole)]
    assert error[0] < error[1] / 3


@pytest.mark.parametrize("size", [(7, 7), (8, 8), (7, 12)])
@pytest.mark.parametrize("original", [(40, 61), (61, 40), (40, 40), (41, 40)])
def test_crop_offsets_are_those_of_the_images(size, original):
    preprocessing = Preprocessing(mean=(0, 0, 0), std=(1 / 255,) * 3, crop=0.7)
    image = _image(*original)
    expected = prepare(image, preprocessing, size)
    resized = resized_size(original, size, 0.7)
    for source in (None, size, resized):
        text = aipp_config(preprocessing, size, source)
        found = emulate(text, host_pixels(image, preprocessing, size, source), "float32")[0]
        np.testing.assert_allclose(found, expected, atol=1e-3)
    assert crop_offsets(size, resized) == tuple(round((r - s) / 2.0) for r, s in zip(resized, size, strict=True))


def test_an_image_of_the_models_size_lies_inside_the_frame():
    image = _image(24, 24)
    pixels = host_pixels(image, OFFICIAL, (24, 24))
    assert pixels.shape == (1, 27, 27, 3)
    expected = prepare(image, OFFICIAL, (24, 24))
    np.testing.assert_allclose(emulate(aipp_config(OFFICIAL, (24, 24)), pixels, "float32")[0], expected, atol=1e-5)
    as_is = Preprocessing(mode="as-is")
    assert host_pixels(image, as_is, (24, 24)).shape == (1, 24, 24, 3)
    assert "crop: false" in aipp_config(as_is, (24, 24)) and host_feed(as_is, (24, 24))["resize"] is None
    with pytest.raises(InputError, match="expects exactly 24x24"):
        host_pixels(_image(24, 25), as_is, (24, 24))


@pytest.mark.parametrize(
    ("preprocessing", "size", "source", "message"),
    [
        (OFFICIAL, (4100, 224), None, "from 1 to 4096"),
        (OFFICIAL, (3800, 224), None, "source size 4343x256"),
        (OFFICIAL, (224, 224), (223, 256), "cannot crop 224x224"),
    ],
)
def test_limits(preprocessing, size, source, message):
    with pytest.raises(InputError, match=message):
        aipp_config(preprocessing, size, source)


def test_odd_sizes_are_fine_for_rgb():
    assert parse(aipp_config(OFFICIAL, (223, 225), (255, 257)))["load_start_pos_h"] == 16


def test_a_source_larger_than_the_resized_image():
    with pytest.raises(InputError, match="less than the source of 30x30"):
        host_pixels(_image(40, 40), OFFICIAL, (24, 24), (30, 30))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("aipp_op {", "aipp {", "expected one 'aipp_op"),
        ("crop: true", "crop true", "expected one 'aipp_op"),
        ("mean_chn_0", "mean_chan_0", "did you mean mean_chn_0"),
        ("mean_chn_1: 116", "mean_chn_0: 116", "given twice"),
        ("mean_chn_1: 116", "mean_chn_1: 116.28", "a whole number"),
        ("mean_chn_1: 116", "mean_chn_1: 256", "from 0 to 255"),
        ("min_chn_1: 0.28", "min_chn_1: -1", "from 0 to 255"),
        ("min_chn_1: 0.28", "min_chn_1: nan", "from 0 to 255"),
        ("crop: true", "crop: 1", "true or false"),
        ("RGB888_U8", "YUV420SP_U8", "input_format must be RGB888_U8"),
        ("aipp_mode: static", "aipp_mode: dynamic", "aipp_mode must be static"),
        ("aipp_mode: static", "", "aipp_mode is missing"),
        ("csc_switch: false", "csc_switch: true", "Switch it off"),
        ("load_start_pos_h: 16", "load_start_pos_h: 33", "inside the source"),
        ("src_image_size_w: 256", "src_image_size_w: 0", "from 1 to 4096"),
    ],
)
def test_a_file_that_is_no_such_file(old, new, message):
    with pytest.raises(InputError, match=message):
        parse(aipp_config(OFFICIAL, (224, 224)).replace(old, new))


def test_comments_and_channel_swap():
    text = aipp_config(OFFICIAL, (8, 8), (8, 8)).replace("rbuv_swap_switch: false", "rbuv_swap_switch: true # BGR")
    pixels = RNG.randint(0, 256, (2, 8, 8, 3)).astype(np.uint8)
    straight = emulate(aipp_config(OFFICIAL, (8, 8), (8, 8)), pixels[..., ::-1])
    np.testing.assert_array_equal(emulate(text, pixels), straight)


def test_pixels_of_another_kind():
    text = aipp_config(OFFICIAL, (8, 8))
    for pixels in (np.zeros((1, 9, 9, 3)), np.zeros((1, 8, 8, 3), np.uint8), np.zeros((1, 3, 9, 9), np.uint8)):
        with pytest.raises(InputError, match=r"expected uint8 pixels of shape \(N, 9, 9, 3\)"):
            emulate(text, pixels)
    with pytest.raises(UsageError, match="unknown dtype"):
        emulate(text, np.zeros((1, 9, 9, 3), np.uint8), "bfloat16")
