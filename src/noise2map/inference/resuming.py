"""Resuming a folder of predictions: images done and to do, with ids and file names that no other image has."""

import hashlib
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from noise2map.inference.maps_on_disk import LEFT_OUT
from noise2map.inference.sources import FoundImages, Source, longer_ids
from noise2map.inference.stored.images import StoredImage
from noise2map.runs.files import content_checksum
from noise2map.runs.output_folder import OutputFolder
from noise2map.runs.words import printable
from noise2map.zoo import resolve_model

_CHUNK = 2**22
_LONGEST_BYTES = 240  # of a name without suffix: file systems take 255


@dataclass
class PlannedImage:
    """An image to predict.

    Attributes:
        id: Its id in the records; with the seed it fixes the noise.
        name: Of its files, without folder of the kind and suffix.
        source: Where it is.
        position: Among the images found.
        record: What tells whether the source has changed.
    """

    id: str
    name: str
    source: Source
    record: dict[str, Any]
    position: int


@dataclass
class Plan:
    """Images to predict, done and failed.

    Attributes:
        images: To predict, in the order of the ids found.
        done: Ids of what an earlier run has done.
        failed: Id to message, for files that cannot be looked at.
    """

    images: list[PlannedImage] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def plan_images(found: FoundImages, folder: OutputFolder, wanted: Collection[str] = ()) -> Plan:
    """Tell new and changed images from done ones.

    Another image of an id that the folder holds, such as ``x.png`` from another folder, gets a longer id: nothing is replaced
    but the maps of an image that has changed itself.

    Args:
        found: The images.
        folder: Where they are predicted to.
        wanted: ``"panels"``, ``"arrays"``: an image whose files of such a kind an earlier run left out is done again.
    """
    plan = Plan(failed=dict(found.failed))
    chosen: dict[str, tuple[Source, dict[str, Any], int]] = {}
    for position, (plain, source) in enumerate(found.images.items()):
        try:
            record = _record(source)
        except OSError as error:
            plan.failed[plain] = printable(error.strerror or str(error))
            continue
        for image_id in chain([plain], longer_ids(plain, source)):
            line = folder.done.get(image_id)
            if image_id not in chosen and (line is None or _same_image(line.get("source") or {}, record)):
                break
        whole = line is not None and not {*wanted} & {*line.get(LEFT_OUT, ())}
        if line is not None and whole and _unchanged(line["source"], record) and folder.is_done(image_id, line["source"]):
            plan.done.append(image_id)
        else:
            chosen[image_id] = (source, record, position)
    names = _names(list(chosen), folder.done)
    plan.images = [PlannedImage(one, names[one], *rest) for one, rest in chosen.items()]
    return plan


def _record(source: Source) -> dict[str, Any]:
    if isinstance(source, StoredImage):
        return source.record()
    if isinstance(source, str):
        return {"url": source}
    status = source.stat()
    return {"path": os.path.abspath(source), "bytes": status.st_size, "modified_ns": status.st_mtime_ns}


def _same_image(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Test of a record for this image, changed or not; a folder that was moved with its times is the same."""
    if before.get("member") != now.get("member"):
        return False
    if "url" in now or "url" in before:
        return before.get("url") == now.get("url")
    old = before.get("path", now["path"])
    return old == now["path"] or (_unchanged(before, now) and not os.path.exists(old))  # else two that look alike, as frames do


def _unchanged(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    return all(before.get(key) == now.get(key) for key in ("url", "member", "bytes", "version", "modified_ns"))


def _names(ids: list[str], done: Mapping[str, Any]) -> dict[str, str]:
    """Names of files for ids: those they have, or new ones that no other image has."""
    written = {one: name for one, line in done.items() for name in [_name_of(line)] if name is not None}
    new = output_names([one for one in ids if one not in written], written.values())
    return {one: written[one] if one in written else new[one] for one in ids}


def output_names(ids: Iterable[str], taken: Iterable[str] = ()) -> dict[str, str]:
    """A name without suffix for the files of each image: ``rooms/a.jpg`` -> ``rooms/a``.

    Images that differ in the suffix only keep it (``rooms/a.jpg`` and ``rooms/a.png``), so that no file is written twice. What is
    too long for the name of a file ends in a checksum instead.

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
        name = _shortened(stem if counts[stem] == 1 and stem not in every else one)
        while name in taken:
            name += "~"
        names[one] = name
    return names


def _shortened(name: str) -> str:
    folder, slash, last = name.rpartition("/")
    if len(last.encode()) <= _LONGEST_BYTES:
        return name
    checksum = hashlib.sha256(last.encode()).hexdigest()[:16]
    kept = last.encode()[: _LONGEST_BYTES - len(checksum) - 1].decode(errors="ignore")
    return f"{folder}{slash}{kept}~{checksum}"


def _name_of(line: Mapping[str, Any]) -> str | None:
    """``labels/rooms/a.png`` -> ``rooms/a``."""
    path = next(iter(line["files"].values()), None)
    return None if path is None else path.partition("/")[2].rpartition(".")[0]


def prediction_request(model: str, **options: Any) -> dict[str, Any]:
    """Request for ``OutputFolder.recall``: the content of a checkpoint's folder and the options of the command.

    Returns:
        JSON values; empty for a checkpoint of the hub, whose files are not looked at.
    """
    folder = Path(resolve_model(model))
    if not folder.is_dir():
        return {}
    names = sorted(path for path in folder.iterdir() if path.suffix in (".json", ".safetensors"))
    return {"model": model, "checkpoint": content_checksum(chain.from_iterable(map(_chunks, names))), **options}


def _chunks(path: Path) -> Iterator[bytes]:
    yield path.name.encode()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk
