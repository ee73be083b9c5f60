"""Images whose samples Pillow hands on as they are stored, and damage that it does not notice."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from neonext_ms.images.images import BrokenImageError, decode_image, read_image

BITS, PHOTOMETRIC, KIND = 258, 262, 339
UNSIGNED, SIGNED, FLOAT = 1, 2, 3


def tiff(path, data, width, bits, photometric=1, kind=UNSIGNED):
    """Write an uncompressed grey TIFF file of one strip, which Pillow's own writer cannot for these samples."""
    height = 8 * len(data) // (bits * width)
    start = 8 + 2 + 12 * 10 + 4
    tags = [(256, width), (257, height), (BITS, bits), (259, 1), (PHOTOMETRIC, photometric), (273, start), (277, 1)]
    tags += [(278, height), (279, len(data)), (KIND, kind)]
    entries = b"".join(struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, value) for tag, value in tags)
    path.write_bytes(b"II" + struct.pack("<HIH", 42, 8, len(tags)) + entries + bytes(4) + data)
    return path


def grey(path):
    pixels = np.asarray(read_image(path))
    assert (pixels == pixels[:, :, :1]).all()
    return pixels[:, :, 0].tolist()


def test_twelve_bits_are_the_whole_range(tmp_path):
    # Two samples in three bytes: 0, 2048, 4095 and 1000.
    assert grey(tiff(tmp_path / "a.tif", bytes.fromhex("000800fff3e8"), 4, 12)) == [[0, 128, 255, 62]]


@pytest.mark.parametrize("bits, kind, white", [(16, UNSIGNED, 65535), (32, FLOAT, 1.0), (32, FLOAT, 255.0)])
def test_white_is_zero(tmp_path, bits, kind, white):
    dtype = "<f4" if kind == FLOAT else "<u2"
    data = (np.array([0, 0.2, 1]) * white).astype(dtype).tobytes()
    assert grey(tiff(tmp_path / "a.tif", data, 3, bits, photometric=0, kind=kind)) == [[255, 204, 0]]
    assert grey(tiff(tmp_path / "b.tif", data, 3, bits, photometric=1, kind=kind)) == [[0, 51, 255]]


@pytest.mark.parametrize("bits", [8, 16])
def test_signed_samples_have_no_known_scale(tmp_path, bits):
    with pytest.raises(BrokenImageError, match=r"a\.tif: signed pixels of unknown scale"):
        read_image(tiff(tmp_path / "a.tif", bytes(2 * bits // 8), 2, bits, kind=SIGNED))


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 100, "comment": b"\xff\xd9"}])
def test_jpeg_that_ends_in_zeros(tmp_path, options):
    path = tmp_path / "a.jpg"
    NOISE.save(path, **options)
    content = path.read_bytes()
    # Whatever follows the end of the image does no harm.
    path.write_bytes(content + bytes(100))
    read_image(path)
    path.write_bytes(content[:-200] + bytes(200))
    with pytest.raises(BrokenImageError, match=r"a\.jpg: broken image"):
        read_image(path)


def test_png_with_other_checksums(tmp_path):
    path = tmp_path / "a.png"
    NOISE.save(path)
    content = bytearray(path.read_bytes())
    at = content.index(b"IDAT")
    (size,) = struct.unpack_from(">I", content, at - 4)
    (checksum,) = struct.unpack_from(">I", content, at + 4 + size)
    assert checksum == zlib.crc32(content[at : at + 4 + size])
    content[at + 4 + size] ^= 1
    path.write_bytes(content)
    with pytest.raises(BrokenImageError, match="checksum of its pixels differs"):
        read_image(path)
    path.write_bytes(content[: at + 4 + size // 2] + bytes(size - size // 2 + 16))
    with pytest.raises(BrokenImageError):
        read_image(path)


def tiff_of_one_tile(width: int, height: int) -> bytes:
    """Return a TIFF file of 64x64 pixels in one tile of this size."""
    body = zlib.compress(bytes(64 * 64))
    tags = {256: 64, 257: 64, 258: 8, 259: 8, 262: 1, 277: 1, 322: width, 323: height, 324: 8, 325: len(body)}
    tags[324] = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4) + body


@pytest.mark.parametrize(("form", "options"), [("PNG", {}), ("WEBP", {"lossless": True}), ("GIF", {})])
def test_a_small_file_that_stands_for_a_huge_image(form, options):
    file = io.BytesIO()
    Image.new("L", (8000, 5000)).save(file, form, **options)
    with pytest.raises(BrokenImageError, match=r"^x: [0-9,]* bytes expand to 40,000,000 pixels"):
        decode_image(file.getvalue(), "x")
    # Of a photograph, every pixel is stored.
    assert decode_image(file.getvalue() + bytes(400_000), "x").size == (8000, 5000)


def test_tiles_far_larger_than_the_image():
    with pytest.raises(BrokenImageError, match=r"its tiles of 65536x10000 are far larger"):
        decode_image(tiff_of_one_tile(65536, 10000), "x")
    assert decode_image(tiff_of_one_tile(64, 64), "x").size == (64, 64)


def test_a_jpeg_of_many_scans():
    file = io.BytesIO()
    Image.new("L", (3000, 3000)).save(file, "JPEG", progressive=True)
    content = file.getvalue()
    last = content[content.rindex(b"\xff\xda") : -2]
    assert decode_image(content[:-2] + 2 * last + b"\xff\xd9", "x").size == (3000, 3000)
    with pytest.raises(BrokenImageError, match=r"its pixels are scanned 5[0-9][0-9] times"):
        decode_image(content[:-2] + 500 * last + b"\xff\xd9", "x")
