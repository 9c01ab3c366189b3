"""Features of a frozen encoder, computed once for several views of every training sample and kept on disk."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from noise2map.data.subsets import sample_ids
from noise2map.data.transforms import HorizontalFlip, Transform, sample_generator
from noise2map.data.transforms.geometric import cut
from noise2map.runs.files import content_checksum, settings_checksum, weights_checksum, write_json
from noise2map.runs.output_folder import locked
from noise2map.runs.run_directory import read_config
from noise2map.training.recipe_sections import world_size

logger = logging.getLogger(__name__)

_FILE = "features.bin"
_LABELS = "labels.bin"
_CHUNK = 64  # samples between two records of how far the work has come
_BATCH = 8  # views that are encoded together
_PATIENCE_S = 1.0  # between two looks at what another process has filled
_LOOKED_AT = 16  # samples whose pixels enter the fingerprint: all would be read as long as encoding takes


class Views:
    """The views of an image that are encoded: as it is and mirrored in turn, each covered by a draw of its own.

    Args:
        count: views of each image.
        flip: whether every second view is mirrored.
        cover: what covers part of an image, or `None`.
    """

    keeps_labels = False  # an image and its map are read and mirrored at once

    def __init__(self, count: int, flip: bool, cover: Transform | None = None) -> None:
        self.count, self.flip, self.cover = count, flip, cover

    def __call__(self, sample: Mapping[str, Any], index: int, view: int) -> dict[str, Any]:
        """A view of sample ``index``, maps included: a function of the two numbers alone, whatever the seed of a run."""
        rng = sample_generator(0, view, index)
        result = HorizontalFlip(1.0 if self.flip and view % 2 else 0.0)(sample, rng)
        return result if self.cover is None else self.cover(result, rng)

    def __repr__(self) -> str:
        return f"Views({self.count}, {self.flip}, {self.cover!r})"


class SceneViews:
    """The views of a surround sample that are encoded: turned, shifted and colored by the augmentation, each by a draw of its own.

    Args:
        count: views of each sample.
        augmentation: the augmentation of training samples.
        description: what it depends on, for the record.
    """

    keeps_labels = True  # else every step would read a sample's sensors, and draw its map, for nothing but that map

    def __init__(self, count: int, augmentation: Transform, description: str) -> None:
        self.count, self.augmentation, self.description = count, augmentation, description

    def __call__(self, sample: Mapping[str, Any], index: int, view: int) -> dict[str, Any]:
        """A view of sample ``index``, its layers turned with it: a function of the two numbers alone."""
        return self.augmentation(sample, sample_generator(0, view, index))

    def __repr__(self) -> str:
        return f"SceneViews({self.count}, {self.description})"


class FeatureCache:
    """Features ``(N, V, C, h, w)`` in bfloat16 of V views of N samples, in a folder; and their layers, where views keep them.

    The folder belongs to one encoder, one list of samples and one choice of views: their fingerprint stands in its ``config.json``.
    Work that was cut off is gone on with. Of the processes of one run one fills the folder, and the others wait for it.

    Args:
        folder: where to.
        encode: pixels of a batch of views, as raw samples, to features ``(B, C, h, w)``.
        dataset: raw samples.
        views: their views.
        fingerprint: what `fingerprint_of` gave.

    Raises:
        OSError: if the folder cannot be written, or a process of another run fills it.
        ValueError: if it holds features of another encoder, other images or other views.
    """

    def __init__(
        self,
        folder: str | Path,
        encode: Callable[[Sequence[Mapping[str, Any]]], Tensor],
        dataset: Any,
        views: Views | SceneViews,
        fingerprint: str,
    ) -> None:
        self.folder, self.views, self.length = Path(folder), views, len(dataset)
        new = {"fingerprint": fingerprint, "views": repr(views), "done": 0}
        while self._record(fingerprint).get("done") != self.length:
            try:
                with locked(self.folder):
                    record = self._record(fingerprint)  # another process may have filled it up to here
                    if record.get("done") != self.length:
                        self._fill(encode, dataset, {**new, **record})
            except BlockingIOError:
                if world_size() == 1:
                    raise
                time.sleep(_PATIENCE_S)  # a process of this run fills it; were it to die, the next one goes on
        self._array, self._labels = self._open(read_config(self.folder), "r")

    def _record(self, fingerprint: str) -> dict[str, Any]:
        record = read_config(self.folder)
        if record and record.get("fingerprint") != fingerprint:
            raise ValueError(
                f"{self.folder} holds features of another encoder, other images or other views (fingerprint "
                f"{record.get('fingerprint')}, expected {fingerprint}); choose another train.cache_features"
            )
        return record

    def _open(self, record: Mapping[str, Any], mode: Any) -> tuple[Any, Any]:
        whole = (self.length, self.views.count)
        features = np.memmap(self.folder / _FILE, np.uint16, mode, shape=(*whole, *record["shape"]))
        if not self.views.keeps_labels:
            return features, None
        return features, np.memmap(self.folder / _LABELS, np.uint8, mode, shape=(*whole, *record["label_shape"]))

    def _fill(self, encode: Callable[[Sequence[Mapping[str, Any]]], Tensor], dataset: Any, record: dict[str, Any]) -> None:
        done, first = int(record["done"]), self.views(dataset[0], 0, 0)
        record["shape"] = list(encode([first]).shape[1:])
        if self.views.keeps_labels:
            record["label_shape"] = list(first["labels"].shape)
        array, labels = self._open(record, "r+" if done else "w+")
        logger.info("%s: features of %d samples, %d views each", self.folder, self.length - done, self.views.count)
        for start in tqdm(range(done, self.length, _CHUNK), desc="features", unit=f"x{_CHUNK} samples"):
            stop = min(start + _CHUNK, self.length)
            samples = [dataset[index] for index in range(start, stop)]
            for view in range(self.views.count):
                shown = [self.views(sample, start + place, view) for place, sample in enumerate(samples)]
                parts = [encode(shown[at : at + _BATCH]) for at in range(0, len(shown), _BATCH)]
                array[start:stop, view] = torch.cat(parts).bfloat16().cpu().view(torch.uint16).numpy()
                if labels is not None:
                    labels[start:stop, view] = np.stack([one["labels"] for one in shown])
            array.flush()
            if labels is not None:
                labels.flush()
            write_json(self.folder / "config.json", {**record, "done": stop})

    def labels(self, place: tuple[int, int]) -> np.ndarray:
        """Layers ``(K, X, Y)`` in uint8 of a sample and a view, of views that keep them."""
        return np.array(self._labels[place])

    def __getitem__(self, place: tuple[int, int]) -> Tensor:
        """Features ``(C, h, w)`` in bfloat16 of a sample and a view."""
        return torch.from_numpy(np.array(self._array[place])).view(torch.bfloat16)


def fingerprint_of(encoder: torch.nn.Module, processor: Any, dataset: Any, views: Views | SceneViews) -> str:
    """What features depend on: encoder, processor, number and ids of the samples, what some of them hold, the views.

    Of the encoder the weights and the description of its layers: a number of groups or heads has no weight of its own.
    """
    indices = np.unique(np.linspace(0, len(dataset) - 1, _LOOKED_AT).round().astype(int))
    samples = [dataset[int(index)] for index in indices]
    names = content_checksum(f"{name}\n" for name in sample_ids(dataset) or ())
    parts = [part for sample in samples for part in (str(sample["id"]), *_content(sample))]
    # JSON of the processor's fields, without those that name versions and files.
    settings = settings_checksum({name: str(value) for name, value in processor.to_dict().items() if not name.startswith("_")})
    return content_checksum([weights_checksum(encoder, 32), repr(encoder), names, settings, str(len(dataset)), repr(views), *parts])


def _content(sample: Mapping[str, Any]) -> list[bytes]:
    """Pixels of an image; of a surround sample all arrays, its layers, too, which are kept with the features."""
    if "image" in sample:
        return [np.asarray(sample["image"]).tobytes()]
    arrays = [sample[name] for name in sorted(sample) if isinstance(sample[name], np.ndarray)]
    return [np.asarray(one).tobytes() for one in (*sample.get("images", ()), *arrays)]


class CachedViews(Dataset):
    """A dataset of raw samples addressed by ``(epoch, index)``, each a view with its features under ``"features"``.

    Args:
        dataset: raw samples.
        cache: their features.
        seed: seed of the choice of views and windows.
        window: ``(width, height)`` in pixels of a random window of each view, whole cells; None for whole images.
    """

    def __init__(self, dataset: Any, cache: FeatureCache, seed: int, window: tuple[int, int] | None = None) -> None:
        self.dataset, self.cache, self.seed, self.window = dataset, cache, seed, window

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        epoch, index = key
        rng = sample_generator(self.seed, epoch, index)
        view = int(rng.integers(self.cache.views.count))
        if self.cache.views.keeps_labels:
            return {"labels": self.cache.labels((index, view)), "features": self.cache[index, view]}
        sample, features = self.cache.views(self.dataset[index], index, view), self.cache[index, view]
        if self.window is None:
            return {**sample, "features": features}
        return self._cut(sample, features, rng)

    def _cut(self, sample: dict[str, Any], features: Tensor, rng: np.random.Generator) -> dict[str, Any]:
        """A random window of a view and of its features.

        Raises:
            ValueError: if cells are not squares of the image, or the window is larger than it.
        """
        assert self.window is not None
        (height, width), image = features.shape[-2:], sample["image"].size
        side = image[0] // width
        if image != (side * width, side * height):
            raise ValueError(
                f"sample {sample['id']!r} is {image[0]}x{image[1]} and has {width}x{height} features; windows of cached features "
                "need images of data.size, in whole cells"
            )
        across, down = (pixels // side for pixels in self.window)
        if across > width or down > height:
            raise ValueError(
                f"train.cache_window is {self.window[0]}x{self.window[1]}; expected at most the size of sample {sample['id']!r}, "
                f"{image[0]}x{image[1]}"
            )
        left, top = int(rng.integers(width - across + 1)), int(rng.integers(height - down + 1))
        part = cut(sample, left * side, top * side, *self.window)
        return {**part, "features": features[:, top : top + down, left : left + across].contiguous()}
