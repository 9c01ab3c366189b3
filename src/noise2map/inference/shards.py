"""Shards: the images that are batched together and done together, on this machine or elsewhere, with the same maps."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from noise2map.inference.batches import batches
from noise2map.inference.maps_on_disk import encode_prediction
from noise2map.inference.predictor import Predictor
from noise2map.inference.reading import read_images
from noise2map.inference.resuming import PlannedImage
from noise2map.inference.sources import FoundImages
from noise2map.inference.stored.images import StoredImage
from noise2map.models.decoding import PredictionOptions

SHARD_BATCHES = 8
"""Batches in a shard: enough to fill those of images of several sizes, few enough to be done again after a failure."""


@dataclass(frozen=True)
class Job:
    """What is done to every image of a run.

    Attributes:
        options: Steps, samples, averaging, seed, size; resolved.
        model_name: What the model is called in the records.
        batch_size: The most images at a time.
        panels: Whether to draw a panel per image.
        arrays: Whether to store floats, too.
        settings: See :func:`noise2map.inference.folder.run_settings`.
    """

    options: PredictionOptions
    model_name: str
    batch_size: int
    panels: bool
    arrays: bool
    settings: dict[str, Any]


@dataclass
class Shard:
    """Images that are batched together.

    Attributes:
        number: Among the shards of all images that were found.
        images: Those that are not done.
    """

    number: int
    images: list[PlannedImage] = field(default_factory=list)


@dataclass
class Outcome:
    """What became of an image.

    Attributes:
        shard: Number of its shard.
        id: Its id.
        line: Its record; None if it failed.
        files: Path below the output folder to content.
        failure: Why it failed.
    """

    shard: int
    id: str
    line: dict[str, Any] | None = None
    files: dict[str, bytes] = field(default_factory=dict)
    failure: str = ""


Engine = Callable[[Sequence[Shard], Job], Iterator[Outcome]]
"""Does the shards of a job, in any order: one outcome for each image."""


def cut_shards(found: FoundImages, images: Sequence[PlannedImage], batch_size: int) -> list[Shard]:
    """Shards with images to do.

    A shard is a run of ``SHARD_BATCHES * batch_size`` images in the order of the ids, less where a tar or a table ends. Where one
    begins depends on all images that were found: a run that is gone on with has the shards of one that was never stopped, and the
    batches of those of which nothing was done. What is left of a shard is batched anew, which moves the last digits.

    Args:
        found: All images.
        images: Those that are not done.
        batch_size: The most images in a batch.
    """
    numbers: list[int] = []
    number, count, container = 0, 0, None
    for source in found.images.values():
        of = source.container if isinstance(source, StoredImage) else None
        if numbers and (of != container or count == SHARD_BATCHES * batch_size):
            number, count = number + 1, 0
        container, count = of, count + 1
        numbers.append(number)
    shards: dict[int, Shard] = {}
    for one in images:
        shards.setdefault(numbers[one.position], Shard(numbers[one.position])).images.append(one)
    return list(shards.values())


class ShardPredictor:
    """Predicts the images of a shard; whoever does a shard does it by this.

    Args:
        predictor: The model with its processor.
        job: What is done to every image.
    """

    def __init__(self, predictor: Predictor, job: Job) -> None:
        self.predictor, self.job = predictor, job

    def __call__(self, shard: Shard) -> Iterator[Outcome]:
        """One outcome for each image, as they come; one that cannot be read does not stop the others."""
        predictor, job = self.predictor, self.job
        planned = {one.id: one for one in shard.images}
        failed: list[Outcome] = []

        def fail(image_id: str, message: str) -> None:
            failed.append(Outcome(shard.number, image_id, failure=message))

        images = read_images([(one.id, one.source) for one in shard.images], fail)
        for batch in batches(images, predictor.model, predictor.processor, job.options, job.batch_size, fail, predictor.tiling):
            for prediction in predictor.predict_batch(batch, batch.keys, job.options):
                one = planned[prediction.id]
                record, files = encode_prediction(
                    prediction, one.name, predictor.model.config, job.options, panel=job.panels, arrays=job.arrays
                )
                yield Outcome(shard.number, one.id, {"model": job.model_name, **record, "source": one.record}, files)
            while failed:
                yield failed.pop(0)
        yield from failed
