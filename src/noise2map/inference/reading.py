"""Reads an image whatever it is given as: Pillow image, array, file, http(s) address, stored image."""

from collections.abc import Callable, Iterable, Iterator
from http.client import HTTPException
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar
from urllib.request import Request, urlopen

import numpy as np
from PIL import Image, ImageOps

from noise2map.data.images import decode_image, open_image
from noise2map.inference.sources import Source, is_url
from noise2map.inference.stored.images import StoredImage
from noise2map.runs.words import printable

MAX_DOWNLOAD_BYTES = 100 * 2**20
DOWNLOAD_TIMEOUT_S = 30.0
_CHUNK = 2**18

Key = TypeVar("Key")


def read_image(source: Source) -> Image.Image:
    """Read a file, an http(s) address or a stored image as 8-bit RGB, upright; see :func:`noise2map.data.images.open_image`.

    Raises:
        OSError: Naming the source and the reason, if it cannot be read.
    """
    if isinstance(source, StoredImage):
        return decode_image(BytesIO(source.read()), str(source))
    if isinstance(source, str) and is_url(source):
        return decode_image(download(source), source)
    return open_image(source)


def download(url: str, max_bytes: int = MAX_DOWNLOAD_BYTES, timeout_s: float = DOWNLOAD_TIMEOUT_S) -> BytesIO:
    """Content of an http(s) address.

    Args:
        url: The address.
        max_bytes: More than this is refused, however much the server says that there is.
        timeout_s: Seconds without an answer after which it is given up.

    Raises:
        OSError: Naming the address and the reason.
    """
    from noise2map import __version__

    content = BytesIO()
    try:
        with urlopen(Request(url, headers={"User-Agent": f"noise2map/{__version__}"}), timeout=timeout_s) as answer:
            while chunk := answer.read(_CHUNK):
                content.write(chunk)
                if content.tell() > max_bytes:
                    raise OSError(f"it is larger than {max_bytes / 2**20:.0f} MiB")
    except (OSError, ValueError, HTTPException) as error:
        raise OSError(f"cannot fetch image {url}: {getattr(error, 'reason', None) or error}") from error
    content.seek(0)
    return content


def read_images(
    sources: Iterable[tuple[Key, Source]], on_failure: Callable[[Key, str], object]
) -> Iterator[tuple[Key, Image.Image]]:
    """Read files and addresses one by one, as they are asked for; those that cannot be read do not stop the others.

    Args:
        sources: Key of an image, and where it is.
        on_failure: Called with the key and the reason for an image that cannot be read.
    """
    for key, source in sources:
        try:
            image = read_image(source)
        except (OSError, ValueError, MemoryError) as error:
            on_failure(key, printable(str(error)) or type(error).__name__)
            continue
        yield key, image


def as_images(images: Any) -> list[Any]:
    """One image or several, whatever they are, as a list of what :func:`as_image` takes."""
    if isinstance(images, (str, bytes, Path, Image.Image)) or images is None:
        return [images]
    if hasattr(images, "ndim") and hasattr(images, "shape"):
        return list(images) if images.ndim == 4 else [images]
    try:
        return list(images)
    except TypeError:
        return [images]


def as_image(image: Any) -> Image.Image:
    """A Pillow image, upright, from a Pillow image, a path, an http(s) address, or an array.

    Raises:
        ValueError: If it is something else, or an array that is no image.
        OSError: If a file or an address cannot be read.
    """
    from noise2map.models.image_processing import to_rgb

    if isinstance(image, Image.Image):
        return ImageOps.exif_transpose(image)
    if isinstance(image, (str, Path)):
        if not is_url(image) and Path(image).is_dir():
            raise ValueError(f"image is the folder {str(image)!r}; expected a file, or noise2map.inference.predict_folder")
        return read_image(image)
    if isinstance(image, np.ndarray) or hasattr(image, "cpu"):
        return to_rgb(image)
    raise ValueError(
        f"image is a {type(image).__name__}; expected a Pillow image, an array (H, W, 3) of bytes, a path or an http(s) address"
    )
