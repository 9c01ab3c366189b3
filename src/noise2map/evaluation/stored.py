"""Evaluation of maps that lie in a folder, whoever made them: inference writes, evaluation reads."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from noise2map.data.images import IMAGE_SUFFIXES
from noise2map.evaluation.evaluate import Batch, Evaluation, ProtocolResult, evaluate
from noise2map.inference.loading import class_names_of, depth_range_of
from noise2map.models.decoding import DecodingOptions
from noise2map.models.resizing import resize_map
from noise2map.runs.output_folder import LINES, SETTINGS
from noise2map.tasks import TASKS
from noise2map.tasks.base import ImageTask
from noise2map.tasks.scoring import ScoringOptions

logger = logging.getLogger(__name__)

_ARRAYS = frozenset({".npy", ".npz"})
_UNCERTAINTY = "uncertainty"
_FULL_16_BITS = 65535
_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class AsStored(DecodingOptions):
    """Decoding of stored maps: not known."""

    @property
    def name(self) -> str:
        """Name in tables."""
        return "as stored"


@dataclass
class StoredMap:
    """The files of one image.

    Attributes:
        file: Its map.
        uncertainty: Its uncertainty, an image of 8 or 16 bits, if there is one.
        kind: What kind of uncertainty it is.
        record: What the command that wrote the map said of it.
    """

    file: Path
    uncertainty: Path | None = None
    kind: str = _UNCERTAINTY
    record: Mapping[str, Any] = field(default_factory=dict)


class MapFolder:
    """A folder of maps by the name of their image, without its suffix.

    What ``noise2map predict`` wrote is read by its records. Else the files are those of ``labels/``, ``depth/`` or ``normals/`` if
    there is such a folder (their uncertainty in ``uncertainty/``), or of the folder itself: PNG or TIFF, ``.npy``, or ``.npz`` with
    one array or one of the name of the map (``labels``, ``depth_m``, ``normals``).

    Args:
        root: The folder.
        task: What its maps are; by default what its records or sub-folders say.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it holds no map, or it cannot be told what its maps are.
    """

    def __init__(self, root: Path, task: str | None = None) -> None:
        self.root = root
        if not root.is_dir():
            raise FileNotFoundError(f"there is no folder of maps {root}")
        records = self._records()
        found = [name for name, one in TASKS.items() if isinstance(one, ImageTask) and self._holds(one, records)]
        if task is None and len(found) != 1:
            folders = ", ".join(one.stored_folder for one in TASKS.values() if isinstance(one, ImageTask))
            what = f"maps for {' and '.join(found)}" if found else f"none of the folders {folders}"
            raise ValueError(f"{root} has {what}; say with --task what its maps are")
        chosen = TASKS[task or found[0]]
        if not isinstance(chosen, ImageTask):
            raise ValueError(f"maps for {chosen} cannot be read from files; expected one for images")
        self.task = chosen
        self.maps = self._recorded(records) if records else self._plain()
        if not self.maps:
            kinds = ", ".join(sorted(_ARRAYS | {".png", ".tif"}))
            raise ValueError(f"{root} holds no map for {chosen} ({kinds})")

    @property
    def depth_range(self) -> tuple[float, float] | None:
        """Nearest and farthest depth of the model that made the maps, metres, if its checkpoint is here."""
        return None if self.model is None else depth_range_of(self.model)

    @property
    def classes(self) -> dict[int, str] | None:
        """Names of the classes of the model that made the maps, if its checkpoint is here."""
        return None if self.model is None else class_names_of(self.model)

    @property
    def model(self) -> str | None:
        """The model that made the maps, if the folder tells."""
        try:
            return str(json.loads((self.root / SETTINGS).read_text(encoding="utf-8"))["model"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _records(self) -> list[dict[str, Any]]:
        path = self.root / LINES
        if not path.is_file():
            return []
        lines = path.read_text(encoding="utf-8").splitlines()
        try:
            return [record for record in map(json.loads, lines) if isinstance(record.get("files"), dict)]
        except (ValueError, AttributeError) as error:
            raise ValueError(f"{path} holds a line that is not a record: {error}") from error

    def _holds(self, task: ImageTask, records: Sequence[Mapping[str, Any]]) -> bool:
        if records:
            return any(task.stored_folder in record["files"] for record in records)
        return (self.root / task.stored_folder).is_dir()

    def _recorded(self, records: Sequence[Mapping[str, Any]]) -> dict[str, StoredMap]:
        maps = {}
        for record in records:
            files = record["files"]
            path = files.get("arrays") or files.get(self.task.stored_folder)
            if path is not None:
                unsure = record.get("uncertainty") or {}
                scored = self.root / files[_UNCERTAINTY] if _UNCERTAINTY in files else None
                name = bare_name(str(record["id"]))
                if name in maps:
                    raise ValueError(f"{maps[name].file} and {self.root / path} are maps of one name, {name}; which one is meant?")
                maps[name] = StoredMap(self.root / path, scored, unsure.get("kind", _UNCERTAINTY), record)
        return maps

    def _plain(self) -> dict[str, StoredMap]:
        folder = self.root / self.task.stored_folder
        files = _files(folder if folder.is_dir() else self.root)
        unsure = _files(self.root / _UNCERTAINTY) if folder.is_dir() else {}
        return {name: StoredMap(path, unsure.get(name)) for name, path in files.items()}

    def of(self, image_ids: Sequence[str]) -> list[StoredMap]:
        """The maps of images, in their order; maps of no image are pointed out.

        Raises:
            ValueError: If images have no map, saying how many, which, and what was looked for; or some have an uncertainty, others
                none.
        """
        names = [bare_name(one) for one in image_ids]
        missing = [one for one, name in zip(image_ids, names) if name not in self.maps]
        if missing:
            there = ", ".join(sorted(self.maps)[:_SHOWN])
            raise ValueError(
                f"{self.root} has no map for {len(missing)} of {len(names)} images, such as {missing[0]!r}: maps bear the name of "
                f"their image without its suffix, and here they are called {there} ..."
            )
        extra = sorted(set(self.maps) - set(names))
        if extra:
            logger.warning(f"{len(extra)} maps of {self.root} belong to none of the images, such as {extra[0]}")
        chosen = [self.maps[name] for name in names]
        self._check_uncertainty(chosen)
        return chosen

    def _check_uncertainty(self, chosen: Sequence[StoredMap]) -> None:
        """Refuses uncertainty of some images alone: scores of others could not be told from theirs."""
        for kind in sorted({one.kind for one in chosen if one.uncertainty is not None}):
            missing = [one for one in chosen if one.kind != kind or one.uncertainty is None or not one.uncertainty.is_file()]
            if missing:
                expected = missing[0].uncertainty or self.root / _UNCERTAINTY / missing[0].file.name
                raise ValueError(
                    f"{len(chosen) - len(missing)} of {len(chosen)} maps in {self.root} have a file of their {kind}, and "
                    f"{missing[0].file.name} has none, such as {expected}; expected one for every map, or for none"
                )


def bare_name(name: str) -> str:
    """An id or a path without the suffix of an image or of an array, with forward slashes."""
    path = Path(name)
    bare = path.with_suffix("") if path.suffix.lower() in IMAGE_SUFFIXES | _ARRAYS else path
    return bare.as_posix()


def _files(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        if not path.is_file() or path.suffix.lower() not in {".png", ".tif", ".tiff"} | _ARRAYS or path.name.startswith("."):
            continue
        name = bare_name(path.relative_to(folder).as_posix())
        if name in found:
            # An array has all digits; the image beside it is there to be looked at.
            if {found[name].suffix, path.suffix} & _ARRAYS and found[name].suffix != path.suffix:
                found[name] = path if path.suffix in _ARRAYS else found[name]
                continue
            raise ValueError(f"{found[name]} and {path} are maps of one name; which one is meant?")
        found[name] = path
    return found


def read_array(path: Path, key: str) -> np.ndarray:
    """The array of an ``.npy`` or ``.npz`` file.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it holds several arrays and none of the name ``key``.
    """
    try:
        content = np.load(path, allow_pickle=False)
        if isinstance(content, np.ndarray):
            return content
        with content:
            names = list(content)
            if key not in names and len(names) != 1:
                raise ValueError(f"{path} holds the arrays {', '.join(names) or 'none'}; expected {key!r}")
            return content[key if key in names else names[0]]
    except (EOFError, OSError) as error:
        raise OSError(f"{path} cannot be read: {error}") from error


@dataclass
class StoredBatch(Batch):
    """One image whose map is read from files.

    Attributes:
        task: What the map is.
        stored: Its files.
        depth_scale: Metres per unit of depth images that no record describes.
    """

    task: Any = None
    stored: StoredMap | None = None
    depth_scale: float = 0.001

    @property
    def processed(self) -> tuple[int, int]:
        """See `Batch.processed`: the size of the truth."""
        height, width = self.truths[0].shape[-2:]
        return int(height), int(width)

    def encode(self) -> None:
        """Nothing is encoded."""

    def decode(self, options: DecodingOptions) -> Any:
        """Reads the map, and its uncertainty."""
        assert self.stored is not None
        path = self.stored.file
        if path.suffix.lower() in _ARRAYS:
            values = self.task.map_from_array(read_array(path, self.task.sample_key), path)
        else:
            values = self.task.map_from_image(path, self.stored.record, self.depth_scale)
            if tuple(values.shape[-2:]) != self.processed:
                raise ValueError(f"{path} is {values.shape[-1]}x{values.shape[-2]}; the true map is {_size(self.truths[0])}")
        kinds = {}
        if self.stored.uncertainty is not None:
            kinds[self.stored.kind] = resize_map(
                _read_unit(self.stored.uncertainty, self.stored.record)[None, None], self.processed
            )[0]
        return self.task.stored_output(values[None], uncertainties=kinds, num_steps=torch.ones(1, dtype=torch.long))


def _size(values: Tensor) -> str:
    return f"{values.shape[-1]}x{values.shape[-2]}"


def _read_unit(path: Path, record: Mapping[str, Any]) -> Tensor:
    """Uncertainty ``(H, W)`` in [0, 1] of a grey image of 8 or 16 bits."""
    with Image.open(path) as image:
        if image.mode != "L" and not image.mode.startswith("I"):
            raise ValueError(f"{path} has mode {image.mode}; uncertainty needs a grey image of 8 or 16 bits")
        units = 255 if image.mode == "L" else (record.get("uncertainty") or {}).get("png_units_per_1", _FULL_16_BITS)
        return torch.from_numpy(np.asarray(image).astype(np.float32) / np.float32(units)).clamp(0, 1)


def stored_batches(dataset: Any, maps: MapFolder, depth_scale: float) -> Iterator[StoredBatch]:
    """The images of a dataset, one by one, with their maps of a folder."""
    ids = [str(dataset[index]["id"]) for index in range(len(dataset))]
    for index, stored in enumerate(maps.of(ids)):
        sample = dataset[index]
        maps.task.check_sample(sample)
        batch = StoredBatch(task=maps.task, stored=stored, depth_scale=depth_scale)
        batch.add(index, sample, maps.task.truth(sample))
        yield batch


def evaluate_maps(
    maps: MapFolder,
    dataset: Any,
    depth_range: tuple[float, float] = (1e-3, 80.0),
    depth_scale: float = 0.001,
    progress: Any = None,
    sample_scores: bool = False,
    farthest_m: float | None = None,
) -> Evaluation:
    """Scores a folder of maps; of class maps what can be said without class scores.

    Args:
        maps: The maps.
        dataset: Raw samples with true maps, whose ids the maps bear.
        depth_range: Where depth is scored, metres.
        depth_scale: Metres per unit of depth images that no record describes.
        progress: Called with the number of images just done.
        sample_scores: Also score each map as the only sample there is.
        farthest_m: Depths beyond are set to this, metres, as a test protocol says.

    Raises:
        OSError: If a file cannot be read.
        ValueError: If an image has no map, or a map has another size, impossible values or another kind of content.
    """
    config = SimpleNamespace(
        id2label=getattr(dataset, "id2label", {}),
        semantic_loss_ignore_index=255,
        temperature=1.0,
        min_depth=depth_range[0],
        max_depth=depth_range[1],
    )
    source = SimpleNamespace(config=config, device=torch.device("cpu"))
    options = ScoringOptions(
        depth_range_m=depth_range, without_probabilities=True, sample_scores=sample_scores, farthest_m=farthest_m
    )
    results = [ProtocolResult(AsStored(), maps.task.scorer(source, options), lambda: maps.task.scorer(source, options))]
    evaluation = evaluate(maps.task, stored_batches(dataset, maps, depth_scale), results, source.device, progress)
    for result in results:
        result.encode_seconds = result.decode_seconds = 0.0  # the time of reading files says nothing of a model
    return evaluation
