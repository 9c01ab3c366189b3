"""Features of a frozen image encoder, computed once for several views of every training image and kept on disk."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from noise2map.data.transforms import HorizontalFlip, Transform, sample_generator
from noise2map.data.transforms.geometric import cut
from noise2map.runs.files import content_checksum, settings_checksum, weights_checksum, write_json
from noise2map.runs.output_folder import locked
from noise2map.runs.run_directory import read_config

logger = logging.getLogger(__name__)

_FILE = "features.bin"
_CHUNK = 64  # images between two records of how far the work has come
_BATCH = 8  # views that are encoded together
_LOOKED_AT = 16  # images whose pixels enter the fingerprint: all would be read as long as encoding takes


class Views:
    """The views of an image that are encoded: as it is and mirrored in turn, each covered by a draw of its own.

    Args:
        count: views of each image.
        flip: whether every second view is mirrored.
        cover: what covers part of an image, or `None`.
    """

    def __init__(self, count: int, flip: bool, cover: Transform | None = None) -> None:
        self.count, self.flip, self.cover = count, flip, cover

    def __call__(self, sample: Mapping[str, Any], index: int, view: int) -> dict[str, Any]:
        """A view of sample ``index``, maps included: a function of the two numbers alone, whatever the seed of a run."""
        rng = sample_generator(0, view, index)
        result = HorizontalFlip(1.0 if self.flip and view % 2 else 0.0)(sample, rng)
        return result if self.cover is None else self.cover(result, rng)

    def __repr__(self) -> str:
        return f"Views({self.count}, {self.flip}, {self.cover!r})"


class FeatureCache:
    """Features ``(N, V, C, h, w)`` in bfloat16 of V views of N images, in a folder.

    The folder belongs to one encoder, one list of images and one choice of views: their fingerprint stands in its ``config.json``.
    Work that was cut off is gone on with.

    Args:
        folder: where to.
        encode: pixels of a batch of views, as raw samples, to features ``(B, C, h, w)``.
        dataset: raw samples.
        views: their views.
        fingerprint: what `fingerprint_of` gave.

    Raises:
        OSError: if the folder cannot be written, or another process fills it.
        ValueError: if it holds features of another encoder, other images or other views.
    """

    def __init__(
        self,
        folder: str | Path,
        encode: Callable[[Sequence[Mapping[str, Any]]], Tensor],
        dataset: Any,
        views: Views,
        fingerprint: str,
    ) -> None:
        self.folder, self.views, self.length = Path(folder), views, len(dataset)
        record = read_config(self.folder)
        if record and record.get("fingerprint") != fingerprint:
            raise ValueError(
                f"{self.folder} holds features of another encoder, other images or other views (fingerprint "
                f"{record.get('fingerprint')}, expected {fingerprint}); choose another train.cache_features"
            )
        if record.get("done") != self.length:
            with locked(self.folder):
                self._fill(encode, dataset, {"fingerprint": fingerprint, "views": repr(views), "done": 0, **record})
        shape = tuple(read_config(self.folder)["shape"])
        self._array = np.memmap(self.folder / _FILE, np.uint16, "r", shape=(self.length, views.count, *shape))

    def _fill(self, encode: Callable[[Sequence[Mapping[str, Any]]], Tensor], dataset: Any, record: dict[str, Any]) -> None:
        done = int(record["done"])
        record["shape"] = list(encode([self.views(dataset[0], 0, 0)]).shape[1:])
        mode: Any = "r+" if done else "w+"
        array = np.memmap(self.folder / _FILE, np.uint16, mode, shape=(self.length, self.views.count, *record["shape"]))
        logger.info("%s: features of %d images, %d views each", self.folder, self.length - done, self.views.count)
        for start in tqdm(range(done, self.length, _CHUNK), desc="features", unit=f"x{_CHUNK} images"):
            stop = min(start + _CHUNK, self.length)
            samples = [dataset[index] for index in range(start, stop)]
            for view in range(self.views.count):
                shown = [self.views(sample, start + place, view) for place, sample in enumerate(samples)]
                parts = [encode(shown[at : at + _BATCH]) for at in range(0, len(shown), _BATCH)]
                array[start:stop, view] = torch.cat(parts).bfloat16().cpu().view(torch.uint16).numpy()
            array.flush()
            write_json(self.folder / "config.json", {**record, "done": stop})

    def __getitem__(self, place: tuple[int, int]) -> Tensor:
        """Features ``(C, h, w)`` in bfloat16 of an image and a view."""
        return torch.from_numpy(np.array(self._array[place])).view(torch.bfloat16)


def fingerprint_of(encoder: torch.nn.Module, processor: Any, dataset: Any, views: Views) -> str:
    """What features depend on: the encoder's weights, the processor, the number of images, some of their pixels, the views."""
    indices = np.unique(np.linspace(0, len(dataset) - 1, _LOOKED_AT).round().astype(int))
    samples = [dataset[int(index)] for index in indices]
    parts = [part for sample in samples for part in (str(sample["id"]), np.asarray(sample["image"]).tobytes())]
    # JSON of the processor's fields, without those that name versions and files.
    settings = settings_checksum({name: str(value) for name, value in processor.to_dict().items() if not name.startswith("_")})
    return content_checksum([weights_checksum(encoder, 32), settings, str(len(dataset)), repr(views), *parts])


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
