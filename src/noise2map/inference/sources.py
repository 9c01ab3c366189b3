"""Images to predict: files, folders, patterns, tars, parquet tables and addresses, with ids that tell them apart."""

import glob
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from noise2map.data.images import image_suffixes, is_image_name, why_no_image
from noise2map.inference.stored import parquet, tar
from noise2map.inference.stored.files import StoredFile, find_files, fixed_part, is_address
from noise2map.inference.stored.images import MemberImage, RemoteImage, StoredImage
from noise2map.runs.output_folder import is_output_folder
from noise2map.runs.words import printable

Source = Path | str | StoredImage
"""Where an image is: a file, an http(s) address, or a stored image."""

_CONTAINERS = (*tar.SUFFIXES, *parquet.SUFFIXES)


@dataclass
class FoundImages:
    """The images of one command.

    Attributes:
        images: Id to source, in the order of the ids.
        skipped: What was met and left out, name to reason.
        failed: What was asked for and cannot be read, such as the rest of a tar that is cut off, name to reason.
    """

    images: dict[str, Source] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def is_url(source: Any) -> bool:
    """Test for an http(s) address."""
    return isinstance(source, str) and source.lower().startswith(("http://", "https://"))


def find_images(sources: str | Path | Sequence[str | Path], leave_out: Path | None = None) -> FoundImages:
    """Images by id: the path below the folder, or the name of a single file or address.

    Tars and parquet tables count as folders of images where they are named, alone or by a pattern. Below a pattern means: below
    the folders that stand before its first wildcard. Ids hold no control characters and no bytes that are not UTF-8: these are
    written as escapes. Equal ids get the names of the folders above them, as many as it takes to tell them apart.

    Args:
        sources: Image files, tars (of WebDataset or any others, not compressed), parquet tables, patterns (``*``, ``?``, ``[...]``,
            ``**``), http(s) addresses of images, addresses that fsspec opens (``s3://bucket/photos/*.tar``), and folders, which
            are searched with their sub-folders. Hidden files and output folders of this library are passed over.
        leave_out: A folder not to search, such as the one written to.

    Raises:
        FileNotFoundError: If there is no such file or folder.
        ImportError: If a package that a source needs is not installed.
        OSError: If an address cannot be listed.
        ValueError: If there is no image, or a folder to search is the one to leave out.
    """
    found: list[tuple[str, Source]] = []
    result = FoundImages()
    given = [sources] if isinstance(sources, (str, Path)) else list(sources)
    for source in given:
        if not str(source):  # as of an unset variable: the current folder is "."
            raise FileNotFoundError("a source is empty; expected an image or a folder")
        if is_url(source):
            name = unquote(urlsplit(str(source)).path).rpartition("/")[2]
            found.append((name or str(urlsplit(str(source)).hostname), str(source)))
            continue
        path = Path(source)
        if path.is_dir():
            found += _search(path, leave_out, result.skipped)
        elif path.exists():
            found += _opened(path, path.name, result) if is_container(path) else [(path.name, path)]
        elif is_address(source):
            found += _at_address(str(source), result)
        elif glob.has_magic(str(path)):
            found += _matching(path, leave_out, result)
        else:
            raise FileNotFoundError(f"there is no image or folder '{printable(str(path))}'")
    if not found and not result.failed:
        what = f"'{printable(str(given[0]))}' holds" if len(given) == 1 else f"{len(given)} sources hold"
        raise ValueError(f"{what} no image ({', '.join(sorted(image_suffixes()))}){_told(result.skipped)}")
    result.images = _distinct(found)
    return result


def is_container(path: Path | PurePosixPath) -> bool:
    """True if a file's name says that it holds many images."""
    return path.suffix.lower() in _CONTAINERS and not path.name.startswith(".")


def _opened(path: Path | StoredFile, name: str, result: FoundImages, prefix: str = "") -> list[tuple[str, Source]]:
    """Images of a tar or a parquet table; one that is broken fails alone.

    Args:
        path: The file.
        name: What it is called in messages.
        result: What cannot be read is added to.
        prefix: Of the ids, with its slash.
    """
    images: Sequence[MemberImage] = ()
    reason: str | None = None
    try:
        file = path if isinstance(path, StoredFile) else StoredFile.here(path)
        if name.lower().endswith(parquet.SUFFIXES):
            images = parquet.list_parquet(file)
        else:
            images, reason = tar.list_tar(file, is_image_name)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
    if reason is not None:
        result.failed[printable(name)] = printable(reason)
    elif not images:
        result.skipped[printable(name)] = "holds no image"
    return [(prefix + image.name, image) for image in images]


def _at_address(address: str, result: FoundImages) -> list[tuple[str, Source]]:
    found: list[tuple[str, Source]] = []
    _, files = find_files(address)
    alone = len(files) == 1 and not glob.has_magic(address) and not address.endswith("/")
    for below, file in files:
        name = PurePosixPath(below)
        if is_container(name) and (alone or glob.has_magic(address)):
            found += _opened(file, below, result, "" if alone else f"{below}/")
        elif is_image_name(name):
            found.append((below, RemoteImage(file)))
        else:
            result.skipped[printable(below)] = _why_passed_over(name)
    return found


def _matching(pattern: Path, leave_out: Path | None, result: FoundImages) -> list[tuple[str, Source]]:
    """Images that match a pattern, those in matching folders, tars and tables among them."""
    root = Path(fixed_part(pattern.as_posix()) or ("/" if pattern.is_absolute() else "."))
    found: list[tuple[str, Source]] = []
    for match in sorted(glob.glob(str(pattern), recursive=True)):
        path = Path(match)
        below = path.relative_to(root)
        inner = [root / parent for parent in (below, *below.parents) if parent != Path(".")]
        if leave_out is not None and any(one.resolve() == leave_out.resolve() for one in inner):
            continue
        if (written := next((one for one in reversed(inner) if is_output_folder(one)), None)) is not None:
            result.skipped[printable(f"{written.relative_to(root).as_posix()}/")] = "written by noise2map"
            continue
        if path.is_dir():
            skipped: dict[str, str] = {}
            found += [((below / name).as_posix(), source) for name, source in _search(path, leave_out, skipped)]
            result.skipped.update({(below / name).as_posix(): reason for name, reason in skipped.items()})
        elif is_container(path):
            found += _opened(path, below.as_posix(), result, f"{below.as_posix()}/")
        elif is_image_name(path):
            found.append((below.as_posix(), path))
        else:
            result.skipped[printable(below.as_posix())] = _why_passed_over(path)
    return found


def _why_passed_over(path: Path | PurePosixPath) -> str:
    return "holds many images: name it, or a pattern for it" if is_container(path) else why_no_image(path)


def _told(skipped: Mapping[str, str]) -> str:
    return f"; skipped: {describe_skipped(skipped)}" if skipped else ""


def describe_skipped(skipped: Mapping[str, str], shown: int = 8) -> str:
    """``"a.mp4 (no image), old/ (written by noise2map) and 3 more"``."""
    names = [f"{name} ({reason})" for name, reason in list(skipped.items())[:shown]]
    return ", ".join(names) + (f" and {len(skipped) - shown} more" if len(skipped) > shown else "")


def _search(root: Path, leave_out: Path | None, skipped: dict[str, str]) -> list[tuple[str, Source]]:
    excluded = leave_out.resolve() if leave_out is not None else None
    if excluded == root.resolve():
        raise ValueError(f"the folder of the images, {root}, is also the one to write to; choose another --out")
    found: list[tuple[str, Source]] = []
    for folder, names, files in os.walk(root):
        kept = []
        for name in sorted(names):
            path = Path(folder, name)
            if name.startswith(".") or path.resolve() == excluded:
                continue
            if is_output_folder(path):
                skipped[printable(f"{path.relative_to(root).as_posix()}/")] = "written by noise2map"
            elif path.is_symlink():  # which could lead back to where it is
                skipped[printable(f"{path.relative_to(root).as_posix()}/")] = "a link to a folder: name it"
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
                skipped[printable(below)] = _why_passed_over(path)
    return found


def _distinct(found: list[tuple[str, Source]]) -> dict[str, Source]:
    """Ids by source; sources given twice are taken once, equal ids are lengthened."""
    once: dict[Source, tuple[str, Source]] = {}
    for name, source in found:
        once.setdefault(os.path.abspath(source) if isinstance(source, Path) else source, (name, source))
    names = [printable(name) for name, _ in once.values()]
    counts = Counter(names)
    images: dict[str, Source] = {}
    for name, source in once.values():
        plain = printable(name)
        candidates = longer_ids(plain, source) if counts[plain] > 1 else chain([plain], longer_ids(plain, source))
        images[next(one for one in candidates if one not in images)] = source
    return {name: images[name] for name in sorted(images)}


def longer_ids(image_id: str, source: Source) -> Iterable[str]:
    """Ids of an image whose own is taken: with more and more names of the folders above it, then with a number."""
    if isinstance(source, str):
        steps = unquote(urlsplit(source).path).split("/")[1:-1]
        above = [str(urlsplit(source).hostname), *(step for step in steps if step not in ("", ".", ".."))]
    else:
        parts = source.parts if isinstance(source, StoredImage) else Path(os.path.abspath(source)).parts[1:]
        above = list(parts[: -(image_id.count("/") + 1)])
    # The nearest folder that is not part of the id already comes first.
    for count in range(1, len(above) + 1):
        yield printable("/".join([*above[-count:], image_id]))
    number = 2
    while True:
        yield f"{image_id}~{number}"
        number += 1
