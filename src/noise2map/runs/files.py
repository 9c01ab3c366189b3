"""Files and folders that appear whole or not at all."""

import contextlib
import errno
import hashlib
import json
import math
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image
    from torch import nn

TEMPORARY_SUFFIX = ".partial"

"""Ends the name of everything that is being written; what is left of a killed process can be told by it."""

_SHOWN_NAME = 40  # characters of the final name within the temporary one: a name may take 255 bytes in all


def temporary_path(path: str | os.PathLike[str]) -> Path:
    """A free hidden name beside ``path``, on the same file system, to write to before the rename."""
    path = Path(path)
    return path.with_name(f".{path.name[:_SHOWN_NAME]}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")


@contextlib.contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A binary file that takes its place at ``path`` when the block ends well, and is gone when it does not.

    Args:
        path: The file to make or to replace. Its folder is made when missing.

    Yields:
        The open file.

    Raises:
        OSError: With ``path`` as its file name, if the file cannot be written (no permission, disk full). ``path`` is untouched.
    """
    path = Path(path)
    temporary = temporary_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            yield file
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        _raise_naming(path, error, temporary)


def _raise_naming(path: Path, error: BaseException, temporary: Path) -> NoReturn:
    """Let an error of the file system name the file that was asked for; one about some other file keeps its name."""
    if isinstance(error, OSError) and error.errno is not None and error.filename in (None, str(temporary)):
        raise OSError(error.errno, error.strerror, str(path)) from error
    raise error


def write_file(path: str | os.PathLike[str], write: Callable[[BinaryIO], object]) -> None:
    """Call ``write`` on an open binary file that takes its place at ``path`` afterwards, see :func:`writing`."""
    with writing(path) as file:
        write(file)


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write ``data`` as the whole content of ``path``, see :func:`writing`."""
    with writing(path) as file:
        file.write(data)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` as the whole content of ``path``, in UTF-8, see :func:`writing`."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write ``value`` to ``path`` as indented JSON; NaN and infinity are refused (``ValueError``), see :func:`json_values`."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def json_values(value: Any) -> Any:
    """``value`` in JSON's types: NaN and infinity become None, numbers of numpy and torch plain, unknown objects their string."""
    if isinstance(value, Mapping):
        return {str(key): json_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [json_values(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    return json_values(value.item()) if hasattr(value, "item") else str(value)


def encode_arrays(arrays: Mapping[str, "np.ndarray"]) -> bytes:
    """Content of an npz file, compressed."""
    import numpy as np  # as late as Pillow

    buffer, named = BytesIO(), dict[str, Any](arrays)  # whose values might be, for a type checker, numpy's own options
    np.savez_compressed(buffer, **named)
    return buffer.getvalue()


def encode_image(image: "Image.Image", suffix: str = ".png", **options: Any) -> bytes:
    """Encode an image in memory.

    Args:
        image: The image.
        suffix: A file suffix that Pillow can write, with its dot.
        **options: Passed to ``Image.save``, e.g. ``optimize=True``.

    Returns:
        The bytes of the file.

    Raises:
        ValueError: If Pillow knows no format of that suffix.
    """
    from PIL import Image

    Image.init()
    if suffix.lower() not in Image.EXTENSION:
        raise ValueError(f"no image format has the suffix {suffix!r}; .png, .webp, .gif and .jpg are known")
    buffer = BytesIO()
    image.save(buffer, format=Image.EXTENSION[suffix.lower()], **options)
    return buffer.getvalue()


def write_image(path: str | os.PathLike[str], image: "Image.Image", **options: Any) -> None:
    """Write an image in the format of the suffix of ``path``, see :func:`writing` and :func:`encode_image`."""
    write_bytes(path, encode_image(image, Path(path).suffix, **options))


def replace_directory(new: Path, target: Path) -> None:
    """Put the finished directory ``new`` in the place of ``target``; at no time is ``target`` half-written."""
    old = temporary_path(target)
    if target.exists():
        os.replace(target, old)
    try:
        os.replace(new, target)
    except OSError:
        if old.exists():
            os.replace(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def writing_directory(target: str | os.PathLike[str], *, replace: bool = True) -> Iterator[Path]:
    """A new directory to fill that takes its place at ``target`` when the block ends well, and is gone when it does not.

    Args:
        target: Where the directory is to appear; the folder it lies in is made when missing.
        replace: Take the place of a directory that holds something; otherwise only of an empty one.

    Yields:
        The empty directory to write to, beside ``target``.

    Raises:
        FileExistsError: If ``target`` is a file, or holds anything and ``replace`` is False.
        OSError: What the file system said. ``target`` is untouched.
    """
    target = Path(os.path.realpath(target))  # a link stays, and what it leads to is replaced
    if target.exists() and not target.is_dir():
        raise FileExistsError(errno.EEXIST, "is a file where a folder is to be written", str(target))
    if not replace and target.is_dir() and any(target.iterdir()):
        raise FileExistsError(errno.EEXIST, "is not empty; expected a new or empty folder", str(target))
    temporary = temporary_path(target)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        replace_directory(temporary, target)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        _raise_naming(target, error, temporary)


def check_writable(folder: Path) -> None:
    """Make, for a moment, ``folder`` and a file in it: a folder that cannot be written is refused before any heavy work.

    Raises:
        OSError: Naming the folder, if that cannot be done.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = temporary_path(folder / "probe")
        probe.touch()
        probe.unlink()
        with contextlib.suppress(OSError):  # the work may still be refused, and leaves nothing behind then
            for path in missing:
                path.rmdir()
    except OSError as error:
        raise type(error)(error.errno, f"cannot write to the output folder ({error.strerror})", str(folder)) from error


def user_cache(kind: str) -> Path:
    """Folder of one kind of cached results: ``$XDG_CACHE_HOME/noise2map/KIND``, by default below ``~/.cache``; not made."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "noise2map" / kind


def settings_checksum(settings: Mapping[str, Any], digits: int = 8) -> str:
    """Checksum of JSON values, independent of their order, in hexadecimal digits."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:digits]


def content_checksum(parts: Iterable[bytes | str], digits: int = 16) -> str:
    """Checksum of bytes and texts in hexadecimal digits, taken one after the other as if they were one."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
    return digest.hexdigest()[:digits]


def weights_checksum(module: "nn.Module", digits: int = 8) -> str:
    """Checksum of all weights and buffers of a module at their precision, in hexadecimal digits."""
    import torch

    digest = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:digits]
