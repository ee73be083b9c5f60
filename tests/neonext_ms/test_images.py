"""Every kind of image file, and the official preprocessing against values computed by hand."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from neonext_ms.common.errors import InputError
from neonext_ms.images import images
from neonext_ms.images.images import (
    BrokenImageError,
    image_batches,
    load_images,
    needs_resize,
    prepare,
    read_image,
    resized_size,
)
from neonext_ms.images.preprocessing import Preprocessing, preprocessing_from_file

ROOT = Path(__file__).parents[2]
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def noise(height, width, channels=3, seed=0):
    shape = (height, width, channels) if channels else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def smooth(height, width):
    y, x = np.mgrid[:height, :width]
    return np.stack([255 * y // height, 255 * x // width, 255 * (x + y) // (height + width)], -1).astype(np.uint8)


def saved(tmp_path, image, name="image.png", **options):
    path = tmp_path / name
    image.save(path, **options)
    return path


def normalised(pixels):
    return ((pixels / 255.0 - MEAN) / STD).transpose(2, 0, 1)


# Reading


def test_png_is_exact(tmp_path):
    pixels = noise(5, 7)
    image = read_image(saved(tmp_path, Image.fromarray(pixels)))
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), pixels)


@pytest.mark.parametrize("name", ["a.bmp", "a.webp", "a.tiff", "a.ppm", "a.gif"])
def test_other_formats(tmp_path, name):
    path = saved(tmp_path, Image.fromarray(smooth(20, 30)), name)
    np.testing.assert_allclose(np.asarray(read_image(path), float).mean((0, 1)), smooth(20, 30).mean((0, 1)), atol=4)


def test_the_name_does_not_decide_the_format(tmp_path):
    pixels = noise(4, 4)
    path = tmp_path / "photo.jpg"
    Image.fromarray(pixels).save(path, format="PNG")
    np.testing.assert_array_equal(np.asarray(read_image(path)), pixels)


def test_grey(tmp_path):
    pixels = noise(4, 6, 0)
    image = read_image(saved(tmp_path, Image.fromarray(pixels)))
    np.testing.assert_array_equal(np.asarray(image), np.repeat(pixels[..., None], 3, 2))


def test_one_bit(tmp_path):
    bits = np.array([[True, False, True], [False, False, True]])
    image = read_image(saved(tmp_path, Image.fromarray(bits)))
    np.testing.assert_array_equal(np.asarray(image)[..., 1], bits * 255)


@pytest.mark.parametrize("name", ["a.png", "a.tiff", "a.pgm"])
def test_16_bit_grey_is_scaled(tmp_path, name):
    values = np.array([[0, 128, 129, 257], [32768, 65278, 65407, 65535]], np.uint16)
    path = saved(tmp_path, Image.fromarray(values), name)
    np.testing.assert_array_equal(np.asarray(read_image(path))[..., 0], [[0, 0, 1, 1], [128, 254, 255, 255]])


def test_dark_16_bit_grey_stays_dark(tmp_path):
    path = saved(tmp_path, Image.fromarray(np.full((3, 3), 200, np.uint16)), "a.pgm")
    assert np.asarray(read_image(path)).max() == 1


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 255]], np.int32), [0, 255]),
        (np.array([[0, 65535]], np.int32), [0, 255]),
        (np.array([[0.0, 0.5, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[0.0, 127.6, 255.0]], np.float32), [0, 128, 255]),
    ],
)
def test_wide_pixels(tmp_path, values, expected):
    path = saved(tmp_path, Image.fromarray(values), "a.tiff")
    np.testing.assert_array_equal(np.asarray(read_image(path))[0, :, 2], expected)


@pytest.mark.parametrize(
    "values",
    [
        np.array([[-1, 5]], np.int32),
        np.array([[0, 70000]], np.int32),
        np.array([[0, 300]], np.float32),
        np.array([[0.0, np.nan]], np.float32),
    ],
)
def test_wide_pixels_of_no_known_scale(tmp_path, values):
    with pytest.raises(InputError, match=r"a\.tiff: .*Convert it to"):
        read_image(saved(tmp_path, Image.fromarray(values), "a.tiff"))


@pytest.mark.parametrize("transparency", [None, 1, b"\x00\x80\xff"])
@pytest.mark.filterwarnings("error")
def test_palette(tmp_path, transparency):
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.putdata([0, 1, 2])
    options = {} if transparency is None else {"transparency": transparency}
    pixels = np.asarray(read_image(saved(tmp_path, image, **options)))
    np.testing.assert_array_equal(pixels[0], [[10, 20, 30], [40, 50, 60], [70, 80, 90]])


def test_alpha_is_dropped(tmp_path):
    pixels = noise(3, 4, 4)
    image = read_image(saved(tmp_path, Image.fromarray(pixels, "RGBA")))
    np.testing.assert_array_equal(np.asarray(image), pixels[..., :3])


def test_grey_alpha_is_dropped(tmp_path):
    pixels = noise(3, 4, 2)
    image = read_image(saved(tmp_path, Image.fromarray(pixels, "LA")))
    np.testing.assert_array_equal(np.asarray(image), np.repeat(pixels[..., :1], 3, 2))


def test_cmyk_jpeg(tmp_path):
    colours = {(255, 0, 0): (0, 255, 255, 0), (0, 0, 0): (0, 0, 0, 255), (255, 255, 255): (0, 0, 0, 0)}
    for i, (rgb, cmyk) in enumerate(colours.items()):
        path = saved(tmp_path, Image.new("CMYK", (16, 16), cmyk), f"{i}.jpg")
        with Image.open(path) as image:
            assert image.mode == "CMYK"
        np.testing.assert_allclose(np.asarray(read_image(path), float), np.full((16, 16, 3), rgb), atol=3)


UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.tiff"])
def test_exif_orientation(tmp_path, orientation, name):
    stored = smooth(64, 192)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path, Image.fromarray(stored), name, exif=exif)
    upright, expected = np.asarray(read_image(path), int), UPRIGHT[orientation](stored)
    assert upright.shape == expected.shape
    assert abs(upright - expected).mean() < 3


def test_exif_orientation_of_16_bit_grey(tmp_path):
    stored = np.array([[0, 257, 514]], np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(tmp_path, Image.fromarray(stored), exif=exif)
    np.testing.assert_array_equal(np.asarray(read_image(path))[:, 0, 0], [0, 1, 2])


@pytest.mark.filterwarnings("ignore")
def test_damaged_exif_does_not_matter(tmp_path):
    pixels = noise(4, 4)
    path = saved(tmp_path, Image.fromarray(pixels), exif=b"Exif\x00\x00MM\x00*\x00\x00\xff\xff\xff\xff garbage")
    np.testing.assert_array_equal(np.asarray(read_image(path)), pixels)


# Files that are no images


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.gif", "a.bmp", "a.webp", "a.tiff"])
@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9])
@pytest.mark.filterwarnings("ignore")
def test_truncated(tmp_path, name, share):
    path = saved(tmp_path, Image.fromarray(noise(64, 64)), name)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(BrokenImageError, match=rf"{name}: "):
        read_image(path)


@pytest.mark.parametrize(
    "data", [b"hello", b"\x00" * 1000, b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"%!PS-Adobe-3.0 EPSF-3.0\n"]
)
def test_not_an_image(tmp_path, data):
    path = tmp_path / "x.png"
    path.write_bytes(data)
    with pytest.raises(BrokenImageError, match=r"x\.png: "):
        read_image(path)


def test_empty_file(tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(b"")
    with pytest.raises(BrokenImageError, match=r"x\.png: the file is empty"):
        read_image(path)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(InputError, match=r"none\.png: no such file"):
        read_image(tmp_path / "none.png")
    with pytest.raises(InputError, match="this is a folder"):
        read_image(tmp_path)


def test_damaged_in_the_middle(tmp_path):
    path = saved(tmp_path, Image.fromarray(noise(64, 64)))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(BrokenImageError, match=r"image\.png: broken image"):
        read_image(path)


def test_decompression_bomb(tmp_path):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    path = tmp_path / "bomb.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100000))))
    with pytest.raises(BrokenImageError, match=r"bomb\.png: more pixels"):
        read_image(path)


# Preparing


@pytest.mark.parametrize(
    ("original", "side", "crop", "resized", "corner"),
    [
        # (height, width), model's side, crop, (height, width) after the resize, (top, left): by hand.
        ((300, 400), 224, 0.875, (256, 341), (16, 58)),
        ((400, 300), 224, 0.875, (341, 256), (58, 16)),
        ((333, 500), 224, 0.875, (256, 384), (16, 80)),
        ((375, 500), 384, 0.875, (439, 585), (28, 100)),
        ((91, 64), 64, 0.875, (103, 73), (20, 4)),
        ((64, 91), 64, 0.875, (73, 103), (4, 20)),
        ((73, 73), 64, 0.875, (73, 73), (4, 4)),
        ((65, 64), 64, 1.0, (65, 64), (0, 0)),
        ((67, 64), 64, 1.0, (67, 64), (2, 0)),
        ((10, 11), 224, 0.875, (256, 281), (16, 28)),
        ((1000, 7), 32, 0.875, (5285, 37), (2626, 2)),
    ],
)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_resize_and_crop_are_torchvisions(original, side, crop, resized, corner, interpolation):
    assert resized_size(original, (side, side), crop) == resized
    pixels = noise(*original)
    result = prepare(Image.fromarray(pixels), Preprocessing(crop=crop, interpolation=interpolation), (side, side))
    method = Image.Resampling.BILINEAR if interpolation == "bilinear" else Image.Resampling.BICUBIC
    whole = np.asarray(Image.fromarray(pixels).resize(resized[::-1], method))
    top, left = corner
    expected = normalised(whole[top : top + side, left : left + side])
    assert result.shape == (3, side, side)
    assert result.dtype == np.float32
    assert result.flags.c_contiguous
    np.testing.assert_allclose(result, expected, atol=2e-6)


def test_resize_is_antialiased():
    checks = np.indices((512, 512)).sum(0) % 2 * 255
    image = Image.fromarray(np.repeat(checks[..., None].astype(np.uint8), 3, 2))
    neutral = Preprocessing(mean=(0, 0, 0), std=(1, 1, 1))
    assert np.ptp(prepare(image, neutral, (32, 32))[:, 2:-2, 2:-2]) < 0.05


@pytest.mark.parametrize("original", [(100, 100), (50, 200), (200, 50), (64, 96), (97, 131)])
@pytest.mark.parametrize("size", [(64, 96), (96, 64), (32, 160)])
def test_other_than_square(original, size):
    height, width = resized_size(original, size, 0.875)
    least = [round(side / 0.875) for side in size]
    assert height >= least[0] and width >= least[1]
    assert height == least[0] or width == least[1]
    assert abs(height / width / (original[0] / original[1]) - 1) < 0.03
    assert prepare(Image.fromarray(noise(*original)), Preprocessing(mode="resize"), size).shape == (3, *size)


def test_modes():
    fitting, other = Image.fromarray(noise(32, 48)), Image.fromarray(noise(48, 32))
    as_it_is = normalised(np.asarray(fitting)).astype(np.float32)
    size = (32, 48)
    for mode in ("auto", "as-is"):
        np.testing.assert_allclose(prepare(fitting, Preprocessing(mode=mode), size), as_it_is, atol=2e-6)
    assert abs(prepare(fitting, Preprocessing(mode="resize"), size) - as_it_is).max() > 0.1
    assert prepare(other, Preprocessing(mode="auto"), size).shape == (3, 32, 48)
    with pytest.raises(InputError, match=r"cat\.png: 48x32 pixels .* exactly 32x48"):
        prepare(other, Preprocessing(mode="as-is"), size, "cat.png")
    assert [needs_resize((32, 48), Preprocessing(mode=m), size) for m in ("auto", "as-is", "resize")] == [0, 0, 1]


def test_normalisation_is_the_official_one():
    pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    result = prepare(Image.fromarray(pixels), Preprocessing(), (16, 16))
    mean, std = (np.array([255 * v for v in values], np.float32) for values in (MEAN, STD))
    np.testing.assert_array_equal(result, ((pixels.astype(np.float32) - mean) / std).transpose(2, 0, 1))


def test_prepare_takes_any_mode():
    assert prepare(Image.new("LA", (8, 8), (100, 7)), Preprocessing(), (8, 8)).shape == (3, 8, 8)
    with pytest.raises(InputError, match="image: floating-point"):
        prepare(Image.new("F", (8, 8), 1e9), Preprocessing(), (8, 8))


def test_elongated_image(tmp_path):
    path = saved(tmp_path, Image.new("RGB", (60000, 1)))
    with pytest.raises(InputError, match=r"image\.png: too elongated; 1x60000 .* would become 1024x"):
        load_images([path], Preprocessing(), (896, 896))


def test_load_images(tmp_path):
    paths = [saved(tmp_path, Image.fromarray(noise(8, 8, seed=i)), f"{i}.png") for i in range(3)]
    images = load_images(paths, Preprocessing(), (8, 8))
    assert images.shape == (3, 3, 8, 8) and images.dtype == np.float32
    for i in range(3):
        np.testing.assert_array_equal(images[i], prepare(Image.fromarray(noise(8, 8, seed=i)), Preprocessing(), (8, 8)))
    assert load_images([], Preprocessing(), (8, 8)).shape == (0, 3, 8, 8)


# Batches


def test_batches_keep_the_order(tmp_path):
    sizes = [8 if i % 3 else 12 for i in range(7)]
    paths = [saved(tmp_path, Image.fromarray(noise(s, s, seed=i)), f"{i}.png") for i, s in enumerate(sizes)]
    batches = list(image_batches(paths, Preprocessing(), (8, 8), 3, workers=2))
    assert [batch.indices for batch in batches] == [[0, 1, 2], [3, 4, 5], [6]]
    assert [flag for batch in batches for flag in batch.resized] == [s == 12 for s in sizes]
    np.testing.assert_array_equal(
        np.concatenate([batch.images for batch in batches]), load_images(paths, Preprocessing(), (8, 8))
    )


def test_broken_images_in_batches(tmp_path):
    paths = [saved(tmp_path, Image.fromarray(noise(8, 8)), f"{i}.png") for i in range(5)]
    for i in (1, 2, 3):
        paths[i].write_bytes(b"broken")
    with pytest.raises(BrokenImageError, match=r"1\.png"):
        list(image_batches(paths, Preprocessing(), (8, 8), 2))
    broken = []
    batches = list(image_batches(paths, Preprocessing(), (8, 8), 2, on_broken=lambda i, error: broken.append(i)))
    assert broken == [1, 2, 3]
    assert [batch.indices for batch in batches] == [[0], [4]]


def test_an_image_of_the_wrong_size_is_not_broken(tmp_path):
    path = saved(tmp_path, Image.fromarray(noise(9, 8)))
    with pytest.raises(InputError, match="9x8"):
        list(image_batches([path], Preprocessing(mode="as-is"), (8, 8), 2, on_broken=lambda *_: None))


# YAML


def test_the_example_configuration():
    path = ROOT / "configs" / "eval_imagenet.yaml"
    assert preprocessing_from_file(path) == Preprocessing(mode="resize")
    assert "neonext-validate --model" in path.read_text(encoding="utf-8")


def test_keys_left_out(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("crop: 0.9\n")
    assert preprocessing_from_file(path) == Preprocessing(crop=0.9)
    base = Preprocessing(interpolation="bicubic", crop=0.5)
    assert preprocessing_from_file(path, base) == Preprocessing(interpolation="bicubic", crop=0.9)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("interpolaton: bicubic", r"unknown key 'interpolaton' .did you mean interpolation\?"),
        ("3: 4", "unknown key 3"),
        ("crop: 1.5", r"crop must be from 0.01 to 1"),
        ("mean: [1, 2]", "mean must be three numbers"),
        ("mean: 123", "mean must be three numbers"),
        ("std: [0.0009, 0.0009, 0.0009]", r"smaller than that of any images \(got \[0.0009.* divided by 255 twice"),
        ("mean: [-0.5, -0.5, -0.5]", "mean has negative values .*It is subtracted"),
        ("mean: [-123.7, -116.3, -103.5]", "mean has negative values"),
        ("mean: '123'", "mean must be three numbers"),
        ("crop: 0.9\nmean: [0.1, 0.2", "line [23]: not valid YAML"),
        ("crop: 0.9\n\tmode: auto", "line 2: not valid YAML"),
        ("a: !!python/object/apply:os.system [true]", "line 1: not valid YAML"),
        ("", "got nothing"),
        ("- crop", "got list"),
        ("\x00", "not valid YAML"),
    ],
)
def test_bad_configurations(tmp_path, text, message):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=rf"a\.yaml.*{message}"):
        preprocessing_from_file(path)


def test_unreadable_configurations(tmp_path):
    with pytest.raises(InputError, match=r"none\.yaml: no such file"):
        preprocessing_from_file(tmp_path / "none.yaml")
    path = tmp_path / "a.yaml"
    path.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(InputError, match=r"a\.yaml: not a UTF-8"):
        preprocessing_from_file(path)


def test_from_memory():
    buffer = io.BytesIO()
    Image.fromarray(noise(8, 8)).save(buffer, "PNG")
    assert prepare(Image.open(buffer), Preprocessing(), (8, 8)).shape == (3, 8, 8)


# What is beside the pixels


def _chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _segment(marker, data):
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


LONG = zlib.compress(b"x" * 3_000_000)


@pytest.mark.parametrize(
    "chunk",
    [
        _chunk(b"zTXt", b"a\0\0" + LONG), _chunk(b"iTXt", b"a\0\1\0\0\0" + LONG), _chunk(b"iCCP", b"a\0\0" + LONG),
        _chunk(b"iCCP", b"a"), _chunk(b"gAMA", b"1"), _chunk(b"zTXt", b"a\0\5junk"), _chunk(b"eXIf", b"junk"),
        _chunk(b"tEXt", b"a\0b")[:-1] + b"x",
    ],
)  # fmt: skip
def test_png_with_long_or_damaged_metadata(tmp_path, chunk):
    pixels = noise(8, 8)
    path = saved(tmp_path, Image.fromarray(pixels))
    content = path.read_bytes()
    # Behind the header, and behind the pixels.
    for at in (33, len(content) - 12):
        path.write_bytes(content[:at] + chunk + content[at:])
        np.testing.assert_array_equal(np.asarray(read_image(path)), pixels)
    path.write_bytes(content[:33] + chunk + content[33:-40])
    with pytest.raises(BrokenImageError):
        read_image(path)


@pytest.mark.parametrize(
    "segment",
    [
        _segment(0xE2, b"ICC_PROFILE\0"), _segment(0xE2, b"MPF\0junk"), _segment(0xED, b"Photoshop 3.0\x008BIM\0"),
        _segment(0xE1, b"Exif\0\0junkjunk"), _segment(0xE0, b"JFIF"), _segment(0xEE, b"Adobe"),
        _segment(0xFE, b"x" * 60000),
    ],
)  # fmt: skip
def test_jpeg_with_damaged_metadata(tmp_path, segment):
    path = saved(tmp_path, Image.fromarray(noise(8, 8)), "image.jpg")
    content, expected = path.read_bytes(), np.asarray(read_image(path))
    path.write_bytes(content[:2] + segment + content[2:])
    np.testing.assert_array_equal(np.asarray(read_image(path)), expected)


def test_names_of_images_are_escaped(tmp_path):
    path = tmp_path / "a\x1b[2J\n.png"
    path.write_bytes(b"x")
    with pytest.raises(BrokenImageError) as caught:
        read_image(path)
    assert "a\\x1b[2J\\n.png: not an image" in str(caught.value)


def test_sixteen_bits_are_scaled_alike_in_parts(monkeypatch):
    values = np.arange(7 * 60, dtype=np.uint16).reshape(7, 60) * 150
    expected = np.floor(values * (255 / 65535) + 0.5)
    for shape in ((7, 60), (60, 7)):
        image = Image.fromarray(values.reshape(shape))
        for most in (1 << 22, 50, 3):
            monkeypatch.setattr(images, "_MOST_CONVERTED", most)
            assert np.array_equal(np.asarray(images.to_rgb(image))[..., 0], expected.reshape(shape))


@pytest.mark.parametrize("function", ["load", "resize"])
def test_an_image_that_memory_cannot_hold_is_named(tmp_path, monkeypatch, function):
    def fail(*arguments, **options):
        raise MemoryError

    path = tmp_path / "large.png"
    Image.new("RGB", (9, 9)).save(path)
    monkeypatch.setattr(PngImageFile if function == "load" else Image.Image, function, fail)
    with pytest.raises(BrokenImageError, match=r"large\.png: too large for the memory"):
        load_images([path], Preprocessing(), (4, 4))
