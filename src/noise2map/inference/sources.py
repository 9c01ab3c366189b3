"""Images to predict: files, folders, http(s) addresses and arrays, with ids that tell them apart."""

import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

import numpy as np
from PIL import Image

from noise2map.data.images import decode_image, image_suffixes, is_image_name, open_image, why_no_image
from noise2map.runs.output_folder import is_output_folder

MAX_DOWNLOAD_BYTES = 100 * 2**20
DOWNLOAD_TIMEOUT_S = 30.0
_CHUNK = 2**18


@dataclass
class FoundImages:
    """The images of one command.

    Attributes:
        images: Id to file or http(s) address, in the order of the ids.
        skipped: What was met and left out, name to reason.
    """

    images: dict[str, Path | str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


def is_url(source: Any) -> bool:
    """Test for an http(s) address."""
    return isinstance(source, str) and source.lower().startswith(("http://", "https://"))


def find_images(sources: str | Path | Sequence[str | Path], leave_out: Path | None = None) -> FoundImages:
    """Images by id: the path below the folder, or the name of a single file or address.

    Ids hold no control characters and no bytes that are not UTF-8: these are written as escapes. Equal ids get the names of
    the folders above them, as many as it takes to tell them apart.

    Args:
        sources: Image files, http(s) addresses, and folders, which are searched with their sub-folders. Hidden files and
            output folders of this library are passed over.
        leave_out: A folder not to search, such as the one written to.

    Raises:
        FileNotFoundError: If there is no such file or folder.
        ValueError: If there is no image, or a folder to search is the one to leave out.
    """
    found: list[tuple[str, Path | str]] = []
    skipped: dict[str, str] = {}
    given = [sources] if isinstance(sources, (str, Path)) else list(sources)
    for source in given:
        if is_url(source):
            name = unquote(urlsplit(str(source)).path).rpartition("/")[2]
            found.append((name or str(urlsplit(str(source)).hostname), str(source)))
            continue
        path = Path(source)
        if path.is_dir():
            found += _search(path, leave_out, skipped)
        elif path.exists():
            found.append((path.name, path))
        else:
            raise FileNotFoundError(f"there is no image or folder '{printable(str(path))}'")
    if not found:
        what = f"folder '{printable(str(given[0]))}' holds" if len(given) == 1 else f"{len(given)} folders hold"
        raise ValueError(f"{what} no image ({', '.join(sorted(image_suffixes()))}){_told(skipped)}")
    return FoundImages(_distinct(found), skipped)


def _told(skipped: Mapping[str, str]) -> str:
    return f"; skipped: {describe_skipped(skipped)}" if skipped else ""


def describe_skipped(skipped: Mapping[str, str], shown: int = 8) -> str:
    """``"a.mp4 (no image), old/ (written by noise2map) and 3 more"``."""
    names = [f"{name} ({reason})" for name, reason in list(skipped.items())[:shown]]
    return ", ".join(names) + (f" and {len(skipped) - shown} more" if len(skipped) > shown else "")


def _search(root: Path, leave_out: Path | None, skipped: dict[str, str]) -> list[tuple[str, Path | str]]:
    excluded = leave_out.resolve() if leave_out is not None else None
    if excluded == root.resolve():
        raise ValueError(f"the folder of the images, {root}, is also the one to write to; choose another --out")
    found: list[tuple[str, Path | str]] = []
    for folder, names, files in os.walk(root):
        kept = []
        for name in sorted(names):
            path = Path(folder, name)
            if name.startswith(".") or path.resolve() == excluded:
                continue
            if is_output_folder(path):
                skipped[printable(f"{path.relative_to(root).as_posix()}/")] = "written by noise2map"
            else:
                kept.append(name)
        names[:] = kept
        for name in sorted(files):
            path = Path(folder, name)
            below = path.relative_to(root).as_posix()
            if name.startswith("."):
                continue
            if is_image_name(path) and path.is_file():
                found.append((below, path))
            elif path.is_symlink() and not path.exists():
                skipped[printable(below)] = "a link to nothing"
            elif not path.is_dir():
                skipped[printable(below)] = why_no_image(path)
    return sorted(found)


def printable(name: str) -> str:
    """A name as it can be printed, drawn and stored anywhere: control characters and stray bytes become escapes."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(one.encode("unicode_escape").decode() if unicodedata.category(one) == "Cc" else one for one in text)


def _distinct(found: list[tuple[str, Path | str]]) -> dict[str, Path | str]:
    """Ids by source; sources given twice are taken once, equal ids are lengthened."""
    once: dict[str, tuple[str, Path | str]] = {}
    for name, source in found:
        once.setdefault(source if isinstance(source, str) else os.path.abspath(source), (name, source))
    names = [printable(name) for name, _ in once.values()]
    images: dict[str, Path | str] = {}
    for name, source in once.values():
        plain = printable(name)
        candidates = longer_ids(plain, source) if names.count(plain) > 1 else chain([plain], longer_ids(plain, source))
        images[next(one for one in candidates if one not in images)] = source
    return dict(sorted(images.items()))


def longer_ids(image_id: str, source: Path | str) -> Iterable[str]:
    """Ids of an image whose own is taken: with more and more names of the folders above it, then with a number."""
    if isinstance(source, str):
        above = [str(urlsplit(source).hostname), *unquote(urlsplit(source).path).split("/")[1:-1]]
    else:
        depth = image_id.count("/") + 1
        above = list(source.absolute().parts[1:-depth])
    # The nearest folder that is not part of the id already comes first.
    for count in range(1, len(above) + 1):
        yield printable("/".join([*above[-count:], image_id]))
    number = 2
    while True:
        yield f"{image_id}~{number}"
        number += 1


def output_names(ids: Iterable[str], taken: Iterable[str] = ()) -> dict[str, str]:
    """A name without suffix for the files of each image: ``rooms/a.jpg`` -> ``rooms/a``.

    Images that differ in the suffix only keep it (``rooms/a.jpg`` and ``rooms/a.png``), so that no file is written twice.

    Args:
        ids: Of the images.
        taken: Names that files of other images have.
    """
    ids, taken = list(ids), set(taken)
    stems = {one: one[: -len(Path(one).suffix)] if Path(one).suffix else one for one in ids}
    counts: dict[str, int] = {}
    for stem in stems.values():
        counts[stem] = counts.get(stem, 0) + 1
    every, names = {*ids, *taken}, {}
    for one, stem in stems.items():
        name = stem if counts[stem] == 1 and stem not in every else one
        while name in taken:
            name += "~"
        names[one] = name
    return names


def read_image(source: Path | str) -> Image.Image:
    """Read a file or an http(s) address as 8-bit RGB, upright; see :func:`noise2map.data.images.open_image`.

    Raises:
        OSError: Naming the source and the reason, if it cannot be read.
    """
    if is_url(source):
        return decode_image(download(str(source)), str(source))
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
    except (OSError, ValueError) as error:
        raise OSError(f"cannot fetch image {url}: {getattr(error, 'reason', None) or error}") from error
    content.seek(0)
    return content


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
    """A Pillow image from a Pillow image, a path, an http(s) address, or an array.

    Raises:
        ValueError: If it is something else, or an array that is no image.
        OSError: If a file or an address cannot be read.
    """
    from noise2map.models.image_processing import to_rgb

    if isinstance(image, Image.Image):
        return image
    if isinstance(image, (str, Path)):
        if not is_url(image) and Path(image).is_dir():
            raise ValueError(f"image is the folder {str(image)!r}; expected a file, or noise2map.inference.predict_folder")
        return read_image(image)
    if isinstance(image, np.ndarray) or hasattr(image, "cpu"):
        return to_rgb(image)
    raise ValueError(
        f"image is a {type(image).__name__}; expected a Pillow image, an array (H, W, 3) of bytes, a path or an http(s) address"
    )
