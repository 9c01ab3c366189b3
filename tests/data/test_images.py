import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from noise2map.data.images import image_size, list_images, open_class_map, open_depth_map, open_image

GRADIENT = np.linspace(0, 65535, 12 * 8).reshape(8, 12)


def test_sixteen_bit_greys_keep_their_tones(tmp_path):
    Image.fromarray(GRADIENT.astype(np.uint16)).save(tmp_path / "grey.png")
    Image.fromarray(GRADIENT.astype(np.int32)).save(tmp_path / "grey32.tif")
    Image.fromarray((GRADIENT / 65535).astype(np.float32)).save(tmp_path / "float.tif")
    for name in ("grey.png", "grey32.tif", "float.tif"):
        image = open_image(tmp_path / name)
        assert image.mode == "RGB"
        assert np.abs(np.asarray(image)[..., 0] - GRADIENT / 257).max() <= 1
        assert (np.asarray(image)[..., 0] == np.asarray(image)[..., 2]).all()


def test_transparency_is_laid_on_white(tmp_path):
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[..., 0], pixels[:2, :, 3], pixels[2:, :, 3] = 200, 255, 0
    Image.fromarray(pixels).save(tmp_path / "rgba.png")
    result = np.asarray(open_image(tmp_path / "rgba.png"))
    assert (result[:2] == (200, 0, 0)).all()
    assert (result[2:] == 255).all()
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.save(tmp_path / "p.png", transparency=1)
    assert (np.asarray(open_image(tmp_path / "p.png")) == 255).all()
    Image.new("LA", (4, 4), (100, 255)).save(tmp_path / "la.png")
    assert (np.asarray(open_image(tmp_path / "la.png")) == 100).all()


@pytest.mark.parametrize(
    ("mode", "color", "suffix"), [("L", 90, "png"), ("1", 1, "png"), ("CMYK", (0, 255, 255, 0), "jpg"), ("P", 0, "gif")]
)
def test_every_mode_becomes_rgb(mode, color, suffix, tmp_path):
    Image.new(mode, (5, 3), color).save(tmp_path / f"a.{suffix}")
    image = open_image(tmp_path / f"a.{suffix}")
    assert (image.mode, image.size) == ("RGB", (5, 3))
    if mode == "CMYK":  # no cyan, all magenta and yellow: red
        red, green, blue = np.asarray(image)[1, 1].astype(int)
        assert red > 200 and green < 60 and blue < 60
    if mode == "L":
        assert (np.asarray(image) == 90).all()


@pytest.mark.parametrize("size", [(1, 1), (20000, 100), (1, 300)])
def test_odd_sizes_open(size, tmp_path):
    Image.new("RGB", size, (1, 2, 3)).save(tmp_path / "a.png")
    assert open_image(tmp_path / "a.png").size == size == image_size(tmp_path / "a.png")


def test_pictures_are_turned_upright(tmp_path):
    picture = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3) * 40)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held so that the picture must be turned clockwise
    picture.save(tmp_path / "a.png", exif=exif)
    upright = open_image(tmp_path / "a.png")
    assert upright.size == (2, 3) == image_size(tmp_path / "a.png")
    assert (np.asarray(upright)[..., 0] == np.rot90(np.asarray(picture), -1)).all()


def test_broken_files_are_named_with_the_reason(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    for suffix in ("png", "jpg"):
        whole = tmp_path / f"whole.{suffix}"
        Image.fromarray(noise).save(whole)
        half = tmp_path / f"half.{suffix}"
        half.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
        with pytest.raises(OSError, match=rf"cannot read image .*half\.{suffix}: .+"):
            open_image(half)
    flipped = bytearray((tmp_path / "whole.png").read_bytes())
    flipped[200] ^= 255
    (tmp_path / "flipped.png").write_bytes(flipped)
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "empty.png").write_bytes(b"")
    for name in ("flipped.png", "text.jpg", "empty.png"):
        with pytest.raises(OSError, match=f"cannot read image .*{name}"):
            open_image(tmp_path / name)
    with pytest.raises(OSError, match=r"text\.jpg: not an image file of a known format"):
        image_size(tmp_path / "text.jpg")
    with pytest.raises(FileNotFoundError, match=r"there is no image .*none\.png"):
        open_image(tmp_path / "none.png")
    with pytest.raises(OSError, match="cannot read image"):
        open_image(tmp_path)


def test_values_that_are_not_a_picture_are_refused(tmp_path):
    for name, values in (("nan", np.full((3, 3), np.nan)), ("high", np.full((3, 3), 1e6)), ("low", np.full((3, 3), -5.0))):
        Image.fromarray(values.astype(np.float32)).save(tmp_path / f"{name}.tif")
        with pytest.raises(OSError, match=rf"{name}\.tif: its values reach from"):
            open_image(tmp_path / f"{name}.tif")


def test_list_images_sorts_and_leaves_out(tmp_path):
    for name in ("b.png", "a.JPG", ".hidden.png", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "c.png").mkdir()
    assert [path.name for path in list_images(tmp_path)] == ["a.JPG", "b.png"]
    with pytest.raises(ValueError, match="holds no image"):
        list_images(tmp_path / "c.png")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        list_images(tmp_path / "none")
    with pytest.raises(NotADirectoryError, match=r"b\.png is not a folder"):
        list_images(tmp_path / "b.png")


def test_class_maps_keep_ids(tmp_path):
    ids = np.array([[0, 1, 2], [3, 200, 255]])
    Image.fromarray(ids.astype(np.uint8)).save(tmp_path / "l.png")
    palette = Image.fromarray(ids.astype(np.uint8))
    palette.putpalette(list(range(256)) * 3)
    palette.save(tmp_path / "p.png")
    Image.fromarray((ids * 100).astype(np.uint16)).save(tmp_path / "i.png")
    assert (open_class_map(tmp_path / "l.png") == ids).all()
    assert (open_class_map(tmp_path / "p.png") == ids).all()
    assert (open_class_map(tmp_path / "i.png") == ids * 100).all()
    Image.new("RGB", (3, 2)).save(tmp_path / "rgb.png")
    with pytest.raises(ValueError, match=r"rgb\.png has mode RGB; class ids need a single-channel"):
        open_class_map(tmp_path / "rgb.png")


def test_depth_maps_are_scaled_to_metres(tmp_path):
    Image.fromarray(np.array([[0, 1500], [65535, 2]], np.uint16)).save(tmp_path / "d.png")
    depth = open_depth_map(tmp_path / "d.png", 0.001)
    assert depth.dtype == np.float32
    assert np.allclose(depth, [[0, 1.5], [65.535, 0.002]])
    Image.new("L", (2, 2)).save(tmp_path / "l.png")
    with pytest.raises(ValueError, match=r"l\.png has mode L; depth needs a 16-bit"):
        open_depth_map(tmp_path / "l.png", 0.001)
    Image.fromarray(np.array([[-4, 1]], np.int32)).save(tmp_path / "n.tif")
    with pytest.raises(ValueError, match=r"n\.tif holds negative depth \(-4\)"):
        open_depth_map(tmp_path / "n.tif", 0.001)


def grey_png(path, rows, bits):
    """A grey PNG of 1, 2, 4 or 16 bits, written by hand."""
    packed = b""
    for row in rows:
        number = "".join(format(value, f"0{bits}b") for value in row)
        number += "0" * (-len(number) % 8)
        packed += b"\0" + int(number, 2).to_bytes(len(number) // 8, "big")
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", len(rows[0]), len(rows), bits, 0, 0, 0, 0)), (b"IDAT", zlib.compress(packed))]
    data = b"\x89PNG\r\n\x1a\n"
    for kind, content in [*chunks, (b"IEND", b"")]:
        data += struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    path.write_bytes(data)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_ids_of_few_bits_are_those_that_the_file_holds(tmp_path, bits):
    rows = [[value % 2**bits for value in range(start, start + 6)] for start in (0, 5, 11)]
    grey_png(tmp_path / "ids.png", rows, bits)
    found = open_class_map(tmp_path / "ids.png")
    assert found.dtype == np.int32 and found.tolist() == rows


@pytest.mark.parametrize(("maxval", "kind"), [(3, "P5"), (3, "P2"), (254, "P5"), (255, "P5"), (1000, "P5"), (65535, "P5")])
def test_portable_greys_hold_their_own_numbers(tmp_path, maxval, kind):
    values = np.linspace(0, maxval, 12).round().astype(int).reshape(3, 4)
    stored = (
        values.astype(">u2" if maxval > 255 else ">u1").tobytes() if kind == "P5" else " ".join(map(str, values.ravel())).encode()
    )
    (tmp_path / "a.pgm").write_bytes(f"{kind}\n4 3\n{maxval}\n".encode() + stored)
    assert open_class_map(tmp_path / "a.pgm").tolist() == values.tolist()
    if maxval > 255:
        assert np.allclose(open_depth_map(tmp_path / "a.pgm", 0.001), values / 1000)


def test_the_size_of_a_turned_tiff_is_that_of_the_image_read(tmp_path):
    from PIL import TiffImagePlugin

    facts = TiffImagePlugin.ImageFileDirectory_v2()
    facts[0x112] = 6
    Image.new("RGB", (6, 4)).save(tmp_path / "a.tif", tiffinfo=facts)
    assert image_size(tmp_path / "a.tif") == open_image(tmp_path / "a.tif").size == (4, 6)


def test_whatever_a_decoder_raises_names_the_file(tmp_path, monkeypatch):
    Image.new("RGB", (6, 4)).save(tmp_path / "a.png")

    def broken(self):
        raise RuntimeError("Failed to decode image")  # so does Pillow on a damaged AVIF

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", broken)
    with pytest.raises(OSError, match=r"cannot read image .*a.png: Failed to decode image"):
        open_image(tmp_path / "a.png")
