"""Images from strangers: what cannot be an image, or would be too large in memory, is refused before it is decoded."""

import threading
from io import BytesIO

from PIL import Image

from noise2map.app.limits import LIMITS, MEBI, Limits
from noise2map.data.images import decode_image

# Formats whose readers are part of Pillow and run no other program, unlike EPS.
FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "BMP", "GIF", "TIFF", "PPM")
_KNOWN = "PNG, JPEG, WebP, AVIF, BMP, GIF, TIFF or PPM"
_NAME = "your file"

# Decoding takes up to twenty bytes for a pixel of the file: one at a time, whoever uploads.
_decoding = threading.Lock()


def read_upload(content: bytes, limits: Limits = LIMITS) -> Image.Image:
    """An uploaded file as an upright 8-bit RGB image, reduced to `Limits.side`.

    Args:
        content: The file.
        limits: Most bytes, pixels and side.

    Raises:
        ValueError: A sentence for the one who sent it.
    """
    if not content:
        raise ValueError("The file is empty.")
    if len(content) > limits.upload_bytes:
        raise ValueError(f"The file has {len(content) / MEBI:.1f} MiB; at most {limits.upload_bytes // MEBI} MiB are taken.")
    with _decoding:
        width, height = _size(content)
        if width * height > limits.pixels:
            raise ValueError(
                f"The image has {width} x {height} pixels; at most {limits.pixels / 1e6:.0f} million are taken here. "
                "noise2map predict takes images of any size."
            )
        if min(width, height) < 2 or max(width, height) > 100 * min(width, height):
            raise ValueError(f"The image has {width} x {height} pixels; expected sides of at least 2, at most 100 times as long.")
        try:
            image = decode_image(BytesIO(content), _NAME, FORMATS)
        except (OSError, MemoryError) as error:
            raise ValueError(_sentence(error)) from error
        image.thumbnail((limits.side, limits.side), Image.Resampling.LANCZOS, reducing_gap=2.0)
        return image.copy()


def _size(content: bytes) -> tuple[int, int]:
    """Width and height as the header says, upright or not."""
    try:
        with Image.open(BytesIO(content), formats=FORMATS) as image:
            return image.size
    except Exception as error:  # readers of broken headers raise whatever they run into
        raise ValueError(f"This is no image that can be read here: expected {_KNOWN}.") from error


def _sentence(error: BaseException) -> str:
    reason = str(error).removeprefix(f"cannot read image {_NAME}: ") or "there is not enough memory"
    return f"The image cannot be read: {' '.join(reason.split())[:200]}."
