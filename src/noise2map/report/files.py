"""Files appear whole or not at all: each is written beside its final place and renamed."""

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path in the directory of ``path``; rename it to ``path`` if the block ends well.

    Args:
        path: Where the file is to appear. Its directory is made when missing.

    Yields:
        The temporary path to write to, with the suffix of ``path``.

    Raises:
        OSError: What the block or the file system raised; the temporary file is gone and ``path`` untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem[:80]}.{secrets.token_hex(4)}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write ``data`` to ``path`` at once.

    Args:
        path: The file to make or to replace.
        data: Its whole content.

    Raises:
        OSError: If the directory cannot be written or the disk is full; the error names ``path``.
    """
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, f"{error.strerror}, while writing", str(path)) from error


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` to ``path`` at once, as UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write ``value`` to ``path`` at once, as indented JSON; NaN and infinity are refused (``ValueError``)."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_image(path: str | os.PathLike[str], image: Image.Image, **options: Any) -> None:
    """Write a picture to ``path`` at once, in the format of its suffix.

    Args:
        path: The file to make or to replace, e.g. ``panel.png``.
        image: The picture.
        **options: Passed to ``Image.save``, e.g. ``optimize=True``.

    Raises:
        ValueError: If Pillow knows no format of that suffix.
        OSError: If the file cannot be written; the error names ``path``.
    """
    write_bytes(path, encode_image(image, Path(path).suffix, **options))


def encode_image(image: Image.Image, suffix: str = ".png", **options: Any) -> bytes:
    """Encode a picture in memory.

    Args:
        image: The picture.
        suffix: A file suffix that Pillow can write, with its dot.
        **options: Passed to ``Image.save``.

    Returns:
        The bytes of the file.

    Raises:
        ValueError: If Pillow knows no format of that suffix.
    """
    Image.init()
    if suffix.lower() not in Image.EXTENSION:
        raise ValueError(f"no picture format has the suffix {suffix!r}; .png, .webp, .gif and .jpg are known")
    buffer = BytesIO()
    image.save(buffer, format=Image.EXTENSION[suffix.lower()], **options)
    return buffer.getvalue()
