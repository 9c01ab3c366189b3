"""Features, depth features and plausibility of a set of pictures, kept by content: what has been measured once is not again."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from noise2map.generation.evaluation.depth_models import DepthEstimator
from noise2map.metrics import DepthFeatures, FeatureExtractor, PlausibilityScores
from noise2map.runs.files import write_bytes

_CHUNK = 256

_VERSION = "2"  # of the measurements: raise it when their definition changes

Probe = Callable[[Tensor, Sequence[str]], tuple[Tensor, Tensor]]

"""Images `(B, 3, H, W)` uint8 and their ids -> strong and weak depth signal `(B, 1, h, w)`."""


class Pictures(Protocol):
    """A sequence of pictures of one size."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> np.ndarray:
        """`(H, W, 3)` uint8."""
        ...


@dataclass(frozen=True)
class Instruments:
    """What pictures are measured with.

    Attributes:
        extractor: Of features.
        estimator: Of depth.
        rendering: Of depth as pictures, `"disparity"` or `"metric"`.
        probe: Strong and weak depth, if there is a generator with a predictor.
        probe_name: Tells probes apart, weights included.
    """

    extractor: FeatureExtractor
    estimator: DepthEstimator
    rendering: str = "disparity"
    probe: Probe | None = None
    probe_name: str = ""

    def depth_features(self) -> DepthFeatures:
        """Features of the estimated depth."""
        estimator = self.estimator
        # Without a unit, painting by metres would mean nothing.
        if self.rendering == "metric" and not estimator.metric:
            raise ValueError(f"the rendering 'metric' needs depth in metres, which {estimator.name} does not give; use 'disparity'")
        return DepthFeatures(estimator, self.extractor, self.rendering, estimator.name, estimator.depth_range)  # type: ignore[arg-type]

    @property
    def name(self) -> str:
        """All that decides a measurement."""
        return "|".join([_VERSION, self.extractor.name, self.depth_features().name, self.probe_name])


@dataclass
class Measured:
    """Measurements of N pictures, in their order.

    Attributes:
        image_features: `(N, D)` float32.
        depth_features: `(N, D)` float32, of the estimated depth.
        plausibility: `(N, S)` float64, in the order of `PLAUSIBILITY_SCORES`.
    """

    image_features: Tensor
    depth_features: Tensor
    plausibility: Tensor

    def __len__(self) -> int:
        return len(self.image_features)

    def first(self, count: int) -> "Measured":
        """The first pictures."""
        return Measured(*(getattr(self, one.name)[:count] for one in fields(self)))


def measure(
    pictures: Pictures,
    ids: Sequence[str],
    instruments: Instruments,
    *,
    batch_size: int = 16,
    cache: Path | None = None,
    on_pictures: Callable[[int], object] = lambda count: None,
) -> Measured:
    """Measure pictures.

    Args:
        pictures: The pictures.
        ids: A name for each; it fixes the noise of the probe.
        instruments: What with.
        batch_size: Pictures at a time.
        cache: Folder in which measurements are kept by the content of the pictures and the names of the instruments, 256
            pictures to a file: an interrupted run goes on, and references are measured once.
        on_pictures: Called with the number of pictures done.

    Returns:
        The measurements.

    Raises:
        ValueError: If there is no picture, their sizes differ, or the number of ids is another.
    """
    if len(pictures) != len(ids) or not len(pictures):
        raise ValueError(f"got {len(pictures)} pictures and {len(ids)} ids; expected at least one, and one id for each")
    if cache is not None:
        cache.mkdir(parents=True, exist_ok=True)
    parts = []
    for start in range(0, len(pictures), _CHUNK):
        images = stack_pictures(pictures, range(start, min(start + _CHUNK, len(pictures))))
        names = list(ids[start : start + len(images)])
        path = cache / f"{_key(images, names, instruments)}.safetensors" if cache is not None else None
        part = _load(path)
        if part is None:
            part = _measure_chunk(images, names, instruments, batch_size, on_pictures)
            if path is not None:
                write_bytes(path, save({one.name: getattr(part, one.name) for one in fields(part)}, {"of": instruments.name}))
        else:
            on_pictures(len(images))
        parts.append(part)
    return Measured(*(torch.cat([getattr(part, one.name) for part in parts]) for one in fields(Measured)))


def stack_pictures(pictures: Pictures, indices: Sequence[int] | range) -> Tensor:
    """Some pictures as `(B, 3, H, W)` uint8.

    Raises:
        ValueError: If their sizes differ.
    """
    arrays = [np.asarray(pictures[index]) for index in indices]
    shapes = {array.shape for array in arrays}
    if len(shapes) != 1:
        raise ValueError(f"pictures of one set must have one size, got {sorted(shapes)}")
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


def content_hash(batches: Iterator[Tensor]) -> str:
    """Sixteen hexadecimal digits of the content of pictures."""
    digest = hashlib.sha256()
    for images in batches:
        digest.update(images.numpy().tobytes())
    return digest.hexdigest()[:16]


def _key(images: Tensor, names: Sequence[str], instruments: Instruments) -> str:
    digest = hashlib.sha256(instruments.name.encode())
    digest.update(str(tuple(images.shape)).encode())
    digest.update(images.numpy().tobytes())
    if instruments.probe is not None:
        digest.update("\0".join(names).encode())
    return digest.hexdigest()[:32]


def _load(path: Path | None) -> Measured | None:
    if path is None or not path.is_file():
        return None
    try:
        return Measured(**load_file(path))
    except (SafetensorError, TypeError):  # a file of another origin: measured anew and replaced
        return None


@torch.no_grad()
def _measure_chunk(
    images: Tensor, names: Sequence[str], instruments: Instruments, batch_size: int, on_pictures: Callable[[int], Any]
) -> Measured:
    extractor, depth_extractor = instruments.extractor, instruments.depth_features()
    device = next((one.device for one in extractor.parameters()), torch.device("cpu"))
    scores = PlausibilityScores()
    image_rows, depth_rows = [], []
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size].to(device)
        depth = instruments.estimator(batch)
        image_rows.append(extractor(batch).float().cpu())
        depth_rows.append(depth_extractor.of_depth(depth).float().cpu())
        readings: tuple[Tensor | None, Tensor | None] = (None, None)
        if instruments.probe is not None:
            strong, weak = instruments.probe(batch, names[start : start + batch_size])
            readings = (strong.float().cpu(), weak.float().cpu())
        scores.update(batch.cpu(), depth.float().cpu(), *readings)
        on_pictures(len(batch))
    return Measured(torch.cat(image_rows), torch.cat(depth_rows), scores.per_image())
