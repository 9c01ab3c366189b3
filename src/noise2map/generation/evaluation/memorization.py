"""Are drawn images copies? How near each is to the nearest image that the generator was trained on, beside what real images are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from noise2map.generation.evaluation.measurements import Images, stack_images
from noise2map.metrics import FeatureExtractor
from noise2map.runs.progress import progress_bar

Row = dict[str, Any]

COPY_QUANTILE = 0.01
"""Share of unseen real images that counts as copies by construction: the threshold is this quantile of their distances."""

_BLOCK = 1024


@dataclass(frozen=True)
class NearestImages:
    """The nearest training image of each of N images, by Euclidean distance of features.

    Attributes:
        distance: `(N,)` float32.
        index: `(N,)` long, of the training image.
        mirrored: `(N,)` bool: it is the mirror image of the training image that is so near.
    """

    distance: Tensor
    index: Tensor
    mirrored: Tensor

    def first(self, count: int) -> "NearestImages":
        """Those of the first images."""
        return NearestImages(self.distance[:count], self.index[:count], self.mirrored[:count])


@torch.no_grad()
def image_features(images: Images, extractor: FeatureExtractor, *, mirror: bool = False, batch_size: int = 16) -> Tensor:
    """Features of images, `(N, D)` float32 on the CPU.

    Args:
        images: The images.
        extractor: Of features.
        mirror: Of their mirror images.
        batch_size: Images at a time; shows progress.
    """
    device = next((one.device for one in extractor.parameters()), torch.device("cpu"))
    parts = []
    title = "training images, mirrored" if mirror else "training images"
    for start in progress_bar(range(0, len(images), batch_size), desc=title, unit="batch"):
        batch = stack_images(images, range(start, min(start + batch_size, len(images))))
        parts.append(extractor((batch.flip(-1) if mirror else batch).to(device)).float().cpu())
    return torch.cat(parts)


def nearest_images(features: Tensor, training: Tensor, mirrored: Tensor | None = None, *, skip_same: bool = False) -> NearestImages:
    """The nearest training image of each image.

    Args:
        features: `(N, D)`, of the images.
        training: `(M, D)`.
        mirrored: `(M, D)`, of the mirror images: a generator that is trained with flips may copy those.
        skip_same: The images are the training images: each is compared with the others, and with no mirror image of its own.

    Returns:
        Distances and places; the lower place wins a tie.

    Raises:
        ValueError: If there is nothing to be near to.
    """
    count = len(training)
    if count < 1 + skip_same:
        raise ValueError(f"there are {count} training images; expected at least {1 + skip_same}")
    both = training if mirrored is None else torch.cat([training, mirrored])
    distances, places = [], []
    for start in range(0, len(features), _BLOCK):
        block = features[start : start + _BLOCK].double()
        gaps = torch.cdist(block, both.double(), compute_mode="donot_use_mm_for_euclid_dist")  # exact zeros for copies
        if skip_same:
            own = torch.arange(len(block))
            gaps[own, own + start] = torch.inf
            if mirrored is not None:
                gaps[own, own + start + count] = torch.inf
        least = gaps.min(dim=1)
        distances.append(least.values.float())
        places.append(least.indices)
    place = torch.cat(places)
    return NearestImages(torch.cat(distances), place % count, place >= count)


@dataclass(frozen=True)
class MemorizationScores:
    """How near drawn images are to training images.

    Attributes:
        training: Where the training images are from.
        rows: Row of the main table to the nearest training images of its images.
        unseen: Of the references, which the generator should not have seen.
        seen: Of the training images themselves, to other training images.
    """

    training: str
    rows: dict[str, NearestImages]
    unseen: NearestImages
    seen: NearestImages

    @property
    def threshold(self) -> float:
        """The distance up to which an image counts as a copy; 0 leaves exact copies."""
        return float(self.unseen.distance.quantile(COPY_QUANTILE))

    def table(self) -> list[Row]:
        """A row for each setting, for the references and for the training images: median and low distances, share of copies."""
        found = []
        sets = {**self.rows, "references": self.unseen, "training, to each other": self.seen}
        for name, nearest in sets.items():
            distance = nearest.distance
            low, median = distance.quantile(torch.tensor([0.05, 0.5])).tolist()
            copies = float((distance <= self.threshold).float().mean())
            found.append({"setting": name, "images": len(distance), "median": median, "p05": low, "copies": copies})
        return found

    def most_alike(self, name: str, count: int) -> list[int]:
        """Places of the images of a row that are nearest to a training image, the nearest first."""
        return self.rows[name].distance.argsort(stable=True)[:count].tolist()


def memorization(
    rows: Mapping[str, Tensor],
    references: Tensor,
    training: Images,
    extractor: FeatureExtractor,
    *,
    name: str,
    batch_size: int = 16,
) -> MemorizationScores:
    """Compare drawn and unseen real images with the training images and their mirror images.

    Args:
        rows: Name of a row to the features of its images, `(N, D)`.
        references: Features of real images that the generator has not seen, `(R, D)`.
        training: What it was trained on.
        extractor: What the features are of.
        name: Of the training images.
        batch_size: Images at a time.

    Raises:
        ValueError: If there are fewer than two training images, or the references are training images.
    """
    if len(training) < 2:
        raise ValueError(f"{name} holds {len(training)} image; expected the generator's training images, at least two")
    plain, mirrored = (image_features(training, extractor, mirror=flip, batch_size=batch_size) for flip in (False, True))
    unseen = nearest_images(references, plain, mirrored)
    if float(unseen.distance.median()) == 0:
        raise ValueError(f"most references are training images ({name}); expected references that the generator has not seen")
    found = {row: nearest_images(features, plain, mirrored) for row, features in rows.items()}
    return MemorizationScores(name, found, unseen, nearest_images(plain, plain, mirrored, skip_same=True))


def short_memorization(scores: MemorizationScores) -> Sequence[Row]:
    """Rows for readers: distances in units of the median of unseen images."""
    unit = float(scores.unseen.distance.median())
    return [
        {
            "setting": row["setting"],
            "images": row["images"],
            "nearest training image, median": round(row["median"] / unit, 3),
            "5 % are nearer than": round(row["p05"] / unit, 3),
            "copies %": round(100 * row["copies"], 2),
        }
        for row in scores.table()
    ]
