"""Files of strangers: either an upright RGB image of bounded size, or a sentence."""

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from noise2map.app.limits import Limits
from noise2map.app.uploads import read_upload


def encoded(kind, mode="RGB", size=(40, 30), **options):
    buffer = BytesIO()
    values = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(values).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width, height, *chunks):
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + chunk(b"IEND", b"")


def gif_header(width, height):
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6)


ZEROS = zlib.compress(bytes(200 * 2**20 // 8), 9)
SVG = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'

HOSTILE = {
    "empty": b"",
    "text": b"hello, I am an image",
    "html": b"<!doctype html><script>alert(1)</script>",
    "svg": SVG,
    "zip": b"PK\x03\x04" + bytes(200),
    "pdf": b"%PDF-1.7\n1 0 obj <<>> endobj",
    "eps, which Pillow hands to Ghostscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n",
    "program": b"\x7fELF" + bytes(300),
    "zeros": bytes(5000),
    "only the signature": b"\x89PNG\r\n\x1a\n",
    "truncated PNG": encoded("PNG")[:-900],
    "truncated JPEG": encoded("JPEG", size=(200, 150))[:900],
    "truncated WebP": encoded("WEBP", size=(200, 150))[:300],
    "truncated GIF": encoded("GIF", size=(200, 150))[:400],
    "PNG bomb: 60000 x 60000 from a few kilobytes": png(60000, 60000, chunk(b"IDAT", ZEROS[:3000])),
    "PNG text bomb": png(20, 20, *[chunk(b"zTXt", b"a\0\0" + ZEROS)] * 5, chunk(b"IDAT", zlib.compress(bytes(20 * 61)))),
    "PNG of no width": png(0, 50, chunk(b"IDAT", b"")),
    "GIF bomb": gif_header(65535, 65535) + b"\x2c" + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0) + b"\x08\x01\x00\x3b",
    "BMP that lies": b"BM"
    + struct.pack("<IHHI", 60, 0, 0, 54)
    + struct.pack("<IiiHHIIiiII", 40, 99999, 99999, 1, 24, 0, 0, 0, 0, 0, 0),
    "TIFF with a loop": b"II*\0\x08\0\0\0\0\0\x08\0\0\0",
    "a line of pixels": encoded("PNG", size=(3000, 2)),
    "wrong checksum": encoded("PNG")[:60] + b"\0\0\0\0" + encoded("PNG")[64:],
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_files_get_a_sentence(kind):
    with pytest.raises(ValueError) as error:
        read_upload(HOSTILE[kind])
    text = str(error.value)
    assert text.endswith(".") and len(text) < 300 and "Traceback" not in text and "/tmp" not in text and "<" not in text


def test_a_file_that_is_too_long_is_not_opened():
    with pytest.raises(ValueError, match=r"has 2\.0 MiB; at most 1 MiB"):
        read_upload(bytes(2 * 2**20), Limits(upload_bytes=2**20))


def test_pixels_are_bounded_before_decoding():
    with pytest.raises(ValueError, match="200 x 100 pixels"):
        read_upload(encoded("PNG", size=(200, 100)), Limits(pixels=19_999))


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("JPEG", "CMYK", {}), ("PNG", "LA", {}), ("PNG", "P", {}), ("PNG", "1", {}), ("GIF", "P", {}), ("WEBP", "RGBA", {}),
        ("TIFF", "L", {}), ("BMP", "RGB", {}), ("PPM", "RGB", {}),
    ],
)  # fmt: skip
def test_modes_of_all_kinds_become_rgb(kind, mode, options):
    image = read_upload(encoded(kind, mode, **options))
    assert image.mode == "RGB" and image.size == (40, 30)


def test_16_bits_are_scaled():
    values = np.linspace(0, 65535, 1200).reshape(30, 40).astype(np.uint16)
    buffer = BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    found = np.asarray(read_upload(buffer.getvalue()))[..., 0].astype(int)
    assert np.abs(found - values.astype(float) / 257).max() <= 1


def test_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert read_upload(encoded("JPEG", exif=exif)).size == (30, 40)


def test_large_images_are_reduced():
    assert read_upload(encoded("JPEG", size=(900, 300)), Limits(side=300)).size == (300, 100)


def test_of_an_animation_the_first_image_is_taken():
    frames = [Image.new("RGB", (20, 16), color) for color in ("red", "blue")]
    buffer = BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    assert read_upload(buffer.getvalue()).getpixel((5, 5)) == (255, 0, 0)
