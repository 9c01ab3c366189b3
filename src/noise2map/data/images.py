"""Opens image and map files of any common kind; an error always names the file and the reason."""

import functools
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jfif", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
# Read where the package pillow-heif is installed.
HEIF_SUFFIXES = frozenset({".heic", ".heif"})

# What Pillow raises on broken files, by format and by place.
_BROKEN = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, RuntimeError, struct.error, zlib.error, Image.DecompressionBombError
)  # fmt: skip
_MAX_16_BITS = 65535


def list_images(folder: str | Path) -> list[Path]:
    """Image files of a folder (not of its sub-folders), sorted by name; hidden files are left out.

    Raises:
        FileNotFoundError: If there is no such folder.
        NotADirectoryError: If it is a file.
        ValueError: If it holds no image.
    """
    folder = Path(folder)
    if not folder.exists():
        raise FileNotFoundError(f"there is no folder {folder}")
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder")
    found = sorted(path for path in folder.iterdir() if is_image_name(path) and path.is_file())
    if not found:
        raise ValueError(f"{folder} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return found


def is_image_name(path: PurePath) -> bool:
    """True if a file's name says that it is an image that can be read here."""
    return path.suffix.lower() in image_suffixes() and not path.name.startswith(".")


@functools.cache
def image_suffixes() -> frozenset[str]:
    """Suffixes, in lower case, of the images that can be read here; HEIC among them if ``pillow-heif`` is installed."""
    try:
        import pillow_heif
    except ImportError:
        return IMAGE_SUFFIXES
    pillow_heif.register_heif_opener()
    return IMAGE_SUFFIXES | HEIF_SUFFIXES


def why_no_image(path: PurePath) -> str:
    """Why a file is not taken for an image."""
    return "needs pip install pillow-heif" if path.suffix.lower() in HEIF_SUFFIXES else "not an image"


def image_size(path: str | Path) -> tuple[int, int]:
    """Width and height that :func:`open_image` will give, read from the header only (a TIFF is decoded).

    Raises:
        OSError: Naming the file, if it is missing or not an image.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            if image.format == "TIFF":  # newer versions of Pillow have turned this size themselves, older ones have not
                return ImageOps.exif_transpose(image).size
            turned = image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
    except _BROKEN as error:
        raise _unreadable(path, error) from error
    return (height, width) if turned else (width, height)


_ORIENTATION = 0x0112


def open_image(path: str | Path) -> Image.Image:
    """Read an image as 8-bit RGB, upright.

    The EXIF orientation is applied, 16-bit greys are scaled to 8 bits, greys and CMYK are converted, transparent parts are
    laid on white, of an animation the first image is taken.

    Raises:
        FileNotFoundError: If there is no such file.
        OSError: Naming the file and the reason, if it cannot be decoded (not an image, truncated, too large).
    """
    return _to_rgb(load_image(path), path)


def decode_image(content: BinaryIO, name: str, formats: Sequence[str] | None = None) -> Image.Image:
    """As :func:`open_image`, from the content of a file.

    Args:
        content: The open file.
        name: What errors call it.
        formats: Pillow's names of the formats that are taken; None for all.

    Raises:
        OSError: Naming it and the reason, if it cannot be decoded.
    """
    return _to_rgb(load_image(name, content, formats), name)


def load_image(path: str | Path, content: BinaryIO | None = None, formats: Sequence[str] | None = None) -> Image.Image:
    """Decode a file, or what was read of it, in its own mode.

    Raises:
        OSError: Naming the file, if it cannot be decoded.
    """
    image_suffixes()  # registers the reader of HEIC, if there is one
    try:
        with Image.open(path if content is None else content, formats=None if formats is None else tuple(formats)) as image:
            image.load()
            return ImageOps.exif_transpose(image)
    except _BROKEN as error:
        raise _unreadable(path, error) from error


def _load_stored(path: str | Path) -> tuple[np.ndarray, str, str | None]:
    """Numbers as a file stores them, the mode and the format. Pillow stretches greys of other depths than 8 and 16 bits."""
    try:
        with Image.open(path) as image:
            stretch = _stretch(image)
            image.load()
            upright, kind = ImageOps.exif_transpose(image), image.format
    except _BROKEN as error:
        raise _unreadable(path, error) from error
    values = np.asarray(upright)
    return (values if stretch == 1 else np.rint(values / stretch).astype(np.int32)), upright.mode, kind


def _stretch(image: Image.Image) -> float:
    """By what Pillow will multiply the numbers of a grey image, known from how it is about to decode it."""
    tiles = getattr(image, "tile", None)  # of images in files
    if image.mode == "P" or not tiles:
        return 1
    codec, arguments = tiles[0][0], tiles[0][3]
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    if codec in ("ppm", "ppm_plain") and isinstance(arguments, tuple) and isinstance(arguments[-1], int):
        return (255 if image.mode == "L" else _MAX_16_BITS) / arguments[-1]
    bits = {"L;2": 2, "L;4": 4}.get(str(first))
    return 1 if bits is None else 255 / (2**bits - 1)


def _unreadable(path: str | Path, error: Exception) -> OSError:
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(f"there is no image {path}")
    if isinstance(error, (PermissionError, IsADirectoryError)):
        return type(error)(f"cannot read image {path}: {error.strerror}")
    if isinstance(error, Image.UnidentifiedImageError):
        return OSError(f"cannot read image {path}: not an image file of a known format")
    return OSError(f"cannot read image {path}: {error}")


def _to_rgb(image: Image.Image, path: str | Path) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_to_8_bits(np.asarray(image), path)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image).convert("RGB")
    return image.convert("RGB")


def _to_8_bits(values: np.ndarray, path: str | Path) -> np.ndarray:
    """Greys ``(H, W)`` of more than 8 bits to uint8: integers of 16 bits; floats up to 1, up to 255, or up to 65535."""
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > _MAX_16_BITS:
        low, high = values.min(), values.max()
        raise OSError(f"cannot read image {path}: its values reach from {low:g} to {high:g}, expected 16 bits, 0..255 or 0..1")
    return np.rint(values.astype(np.float64) * (255 / _white(values))).astype(np.uint8)


def _white(values: np.ndarray) -> int:
    """The value that means white: 65535 of integers; of floats the least of 1, 255 and 65535 that none exceeds."""
    if not np.issubdtype(values.dtype, np.floating):
        return _MAX_16_BITS
    return next(top for top in (1, 255, _MAX_16_BITS) if values.max() <= top)


def open_class_map(path: str | Path) -> np.ndarray:
    """Read class ids ``(H, W)`` int32 from a single-channel image (grey or palette, 8 or 16 bits).

    Raises:
        OSError: If the file cannot be decoded.
        ValueError: If it is a color image, or a JPEG, whose compression makes up ids that nobody drew.
    """
    values, mode, kind = _load_stored(path)
    if kind in ("JPEG", "MPO"):
        raise ValueError(f"{path} is a JPEG, whose compression changes class ids; save class maps as PNG")
    if mode not in ("L", "P", "1") and not mode.startswith("I"):
        raise ValueError(f"{path} has mode {mode}; class ids need a single-channel image (grey or palette)")
    return values.astype(np.int32)


def open_depth_map(path: str | Path, scale: float) -> np.ndarray:
    """Read depth in metres ``(H, W)`` float32 from a 16-bit image; 0 stays 0 (not known).

    Args:
        path: The file.
        scale: Metres per unit of the file: 0.001 if it holds millimetres.

    Raises:
        OSError: If the file cannot be decoded.
        ValueError: If it is not a 16-bit single-channel image.
    """
    values, mode, _ = _load_stored(path)
    if not mode.startswith("I"):
        raise ValueError(f"{path} has mode {mode}; depth needs a 16-bit single-channel image")
    if values.min() < 0:
        raise ValueError(f"{path} holds negative depth ({values.min()}); 0 marks pixels without depth")
    return (values * float(scale)).astype(np.float32)
