"""Images to predict: files, folders and http(s) addresses, with ids that tell them apart."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from noise2map.data.images import image_suffixes, is_image_name, why_no_image
from noise2map.runs.output_folder import is_output_folder
from noise2map.runs.words import printable


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
