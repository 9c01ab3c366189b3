"""Features of a set of images: image and depth features and plausibility scores, kept by content."""

import hashlib
import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from tqdm import tqdm

from noise2map.generation.depth_reading import DepthProbe
from noise2map.inference.depth_models import DepthModel
from noise2map.metrics import (
    EYE_HEIGHT_M,
    PLAUSIBILITY_SCORES,
    ROOM_SCORES,
    DepthFeatures,
    FeatureExtractor,
    PlausibilityScores,
    room_scores,
)
from noise2map.metrics.fid import ENOUGH_SAMPLES, check_samples
from noise2map.runs.files import content_checksum, write_bytes
from noise2map.runs.progress import progress_bar

logger = logging.getLogger(__name__)

_CHUNK = 256

_VERSION = "3"  # of the measurements: raise it when their definition changes

GEOMETRY_SCORES = (*PLAUSIBILITY_SCORES, *ROOM_SCORES)
"""Scores of an image's geometry that need no reference."""

_CAPPED = 0.99  # of an estimator's farthest depth: what lies beyond may be sky


class Images(Protocol):
    """A sequence of images of one size."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> np.ndarray:
        """`(H, W, 3)` uint8."""
        ...


@dataclass(frozen=True)
class FeatureModels:
    """The networks that images are measured with.

    Attributes:
        extractor: Of features.
        depth_model: Of depth.
        rendering: Of depth as images, `"disparity"` or `"metric"`.
        probe: Strong and weak depth, if there is a generator with a predictor.
        probe_name: Tells probes apart, weights included.
        camera: `fx, fy, cx, cy` of the images in px, for the laws of rooms; None leaves them out.
        eye_height_m: Height of the camera above the floor.
    """

    extractor: FeatureExtractor
    depth_model: DepthModel
    rendering: str = "disparity"
    probe: DepthProbe | None = None
    probe_name: str = ""
    camera: tuple[float, ...] | None = None
    eye_height_m: float = EYE_HEIGHT_M

    def depth_features(self) -> DepthFeatures:
        """Features of the estimated depth."""
        depth = self.depth_model
        # Without a unit, painting by metres would mean nothing.
        if self.rendering == "metric" and not depth.metric:
            raise ValueError(f"the rendering 'metric' needs depth in metres, which {depth.name} does not give; use 'disparity'")
        return DepthFeatures(depth, self.extractor, self.rendering, depth.name, depth.depth_range)  # type: ignore[arg-type]

    def check_counts(self, counts: Mapping[str, int], *, allow_singular: bool = False) -> None:
        """Refuses, before images are drawn, numbers of images that could not be scored, and warns of few.

        Args:
            counts: What the images are to their number.
            allow_singular: Accept no more images than features.

        Raises:
            ValueError: If the covariance of features would be singular.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for side, count in counts.items():
                check_samples("FID", side, count, self.extractor.size, allow_singular=allow_singular)
        few = [f"{count} {side}" for side, count in counts.items() if count < ENOUGH_SAMPLES]
        if few:
            told = f"FID and dFID of fewer than {ENOUGH_SAMPLES} images mostly measure their number: {', '.join(few)}"
            logger.warning("warning: %s", told)

    @property
    def name(self) -> str:
        """All that decides a measurement."""
        camera = [] if self.camera is None else [f"{self.camera} {self.eye_height_m}"]
        return "|".join([_VERSION, self.extractor.name, self.depth_features().name, self.probe_name, *camera])

    def room_scores(self, depth: Tensor) -> Tensor:
        """Depth `(B, H, W)` -> rows of `ROOM_SCORES` `(B, 7)` float64; NaN without a camera or a unit of depth."""
        if self.camera is None or not self.depth_model.metric:
            return torch.full((len(depth), len(ROOM_SCORES)), torch.nan, dtype=torch.float64)
        found = room_scores(depth, self.camera, _CAPPED * self.depth_model.depth_range[1], self.eye_height_m)
        return torch.stack(list(found.values()), dim=1)


@dataclass
class ImageFeatures:
    """Measurements of N images, in their order.

    Attributes:
        image_features: `(N, D)` float32.
        depth_features: `(N, D)` float32, of the estimated depth.
        plausibility: `(N, S)` float64, in the order of `GEOMETRY_SCORES`.
    """

    image_features: Tensor
    depth_features: Tensor
    plausibility: Tensor

    def __len__(self) -> int:
        return len(self.image_features)

    def first(self, count: int) -> "ImageFeatures":
        """Those of the first images."""
        return ImageFeatures(*(getattr(self, one.name)[:count] for one in fields(self)))


def extract(
    images: Images,
    ids: Sequence[str],
    models: FeatureModels,
    *,
    batch_size: int = 16,
    cache: Path | None = None,
    title: str = "",
) -> ImageFeatures:
    """Measure images.

    Args:
        images: The images.
        ids: A name for each; it fixes the noise of the probe.
        models: What with.
        batch_size: Images at a time.
        cache: Folder in which measurements are kept by the content of the images and the names of the models, 256 images to a
            file: an interrupted run goes on, and references are measured once.
        title: Of the progress bar; without one there is none.

    Returns:
        The measurements.

    Raises:
        ValueError: If there is no image, their sizes differ, or the number of ids is another.
    """
    if len(images) != len(ids) or not len(images):
        raise ValueError(f"got {len(images)} images and {len(ids)} ids; expected at least one, and one id for each")
    if cache is not None:
        cache.mkdir(parents=True, exist_ok=True)
    parts = []
    with progress_bar(total=len(images), desc=title, unit="image", shown=bool(title)) as bar:
        for start in range(0, len(images), _CHUNK):
            chunk = stack_images(images, range(start, min(start + _CHUNK, len(images))))
            names = list(ids[start : start + len(chunk)])
            path = cache / f"{_key(chunk, names, models)}.safetensors" if cache is not None else None
            part = _load(path)
            if part is None:
                part = _measure_chunk(chunk, names, models, batch_size, bar)
                if path is not None:
                    write_bytes(path, save({one.name: getattr(part, one.name) for one in fields(part)}, {"of": models.name}))
            else:
                bar.update(len(chunk))
            parts.append(part)
    return ImageFeatures(*(torch.cat([getattr(part, one.name) for part in parts]) for one in fields(ImageFeatures)))


def stack_images(images: Images, indices: Sequence[int] | range | None = None) -> Tensor:
    """Some images, or all, as `(B, 3, H, W)` uint8.

    Raises:
        ValueError: If their sizes differ.
    """
    arrays = [np.asarray(images[index]) for index in (range(len(images)) if indices is None else indices)]
    shapes = {array.shape for array in arrays}
    if len(shapes) != 1:
        raise ValueError(f"images of one set must have one size, got {sorted(shapes)}")
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


def images_checksum(images: Images) -> str:
    """Sixteen hexadecimal digits of the content of images."""
    return content_checksum(stack_images(images, [index]).numpy().tobytes() for index in range(len(images)))


def _key(images: Tensor, names: Sequence[str], models: FeatureModels) -> str:
    digest = hashlib.sha256(models.name.encode())
    digest.update(str(tuple(images.shape)).encode())
    digest.update(images.numpy().tobytes())
    if models.probe is not None:
        digest.update("\0".join(names).encode())
    return digest.hexdigest()[:32]


def _load(path: Path | None) -> ImageFeatures | None:
    if path is None or not path.is_file():
        return None
    try:
        return ImageFeatures(**load_file(path))
    except (SafetensorError, TypeError):  # a file of another origin: measured anew and replaced
        return None


@torch.no_grad()
def _measure_chunk(images: Tensor, names: Sequence[str], models: FeatureModels, batch_size: int, bar: tqdm) -> ImageFeatures:
    extractor, depth_extractor = models.extractor, models.depth_features()
    device = next((one.device for one in extractor.parameters()), torch.device("cpu"))
    scores = PlausibilityScores()
    image_rows, depth_rows, room_rows = [], [], []
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size].to(device)
        depth = models.depth_model(batch)
        image_rows.append(extractor(batch).float().cpu())
        depth_rows.append(depth_extractor.of_depth(depth).float().cpu())
        readings: tuple[Tensor | None, Tensor | None] = (None, None)
        if models.probe is not None:
            strong, weak = models.probe(batch, names[start : start + batch_size])
            readings = (strong.float().cpu(), weak.float().cpu())
        scores.update(batch.cpu(), depth.float().cpu(), *readings)
        if models.camera is not None:
            room_rows.append(models.room_scores(depth.float().cpu()))
        bar.update(len(batch))
    rooms = torch.cat(room_rows) if room_rows else torch.full((len(images), len(ROOM_SCORES)), torch.nan, dtype=torch.float64)
    return ImageFeatures(torch.cat(image_rows), torch.cat(depth_rows), torch.cat([scores.per_image(), rooms], dim=1))
