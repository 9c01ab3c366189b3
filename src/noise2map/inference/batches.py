"""Batches of images of mixed sizes: those that are processed at one size, as many together as fit in memory."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

from PIL import Image

from noise2map.inference.memory import Workload, fitting_batch
from noise2map.models import MapModel, Noise2MapImageProcessor
from noise2map.models.decoding import PredictionOptions

if TYPE_CHECKING:
    from noise2map.inference.tiling.plan import TilePlan, Tiling

Key = TypeVar("Key")

# Images of many sizes wait for company of their own size; no more than this many batches of them.
WAITING_BATCHES = 4


@dataclass
class ImageBatch(Generic[Key]):
    """Images that go through a model together.

    Attributes:
        size: Width and height at which they are processed.
        keys: Of the images.
        images: The images, of any size.
        room: The most images that fit.
        tiles: How the only image is cut; None if the images go through the model whole.
    """

    size: tuple[int, int]
    keys: list[Key] = field(default_factory=list)
    images: list[Image.Image] = field(default_factory=list)
    room: int = 0
    tiles: "TilePlan | None" = None

    def __len__(self) -> int:
        return len(self.images)


def batches(
    images: Iterable[tuple[Key, Image.Image]],
    model: MapModel,
    processor: Noise2MapImageProcessor,
    options: PredictionOptions,
    batch_size: int,
    on_too_large: Callable[[Key, str], object] | None = None,
    tiling: "Tiling | None" = None,
) -> Iterator[ImageBatch[Key]]:
    """Gather images into batches; at most four batches of images wait for others of their size.

    Args:
        images: Key of an image, and the image; taken one by one.
        model: The model, on its device.
        processor: Its image processor, which decides at which size an image is processed.
        options: Size and number of samples.
        batch_size: The most images at a time.
        on_too_large: Called with the key and the reason for an image that does not fit in memory; without it that is an error.
        tiling: When images are cut into tiles, and what memory there is for all that is done; None for whole images alone.

    Raises:
        ValueError: If an image does not fit in free memory and nobody is to be told.
    """
    waiting: dict[tuple[int, int], ImageBatch[Key]] = {}
    chosen = options.resolved(model.config)
    samples = chosen.ensemble_size or 1
    if chosen.is_sparse and tiling is not None:
        raise ValueError("refine='uncertain' keeps the values of a whole map; with a tile or a bound on memory expected 'all'")
    kept_layers = model.config.decoder_layers + 2 if chosen.is_sparse else 0
    for key, image in images:
        size = processor.processed_size(*image.size, options.size)
        pixels = max(image.width * image.height, size[0] * size[1])
        work = Workload(batch_size, size[1], size[0], samples, pixels, kept_layers)
        try:
            if tiling is not None and (plan := tiling.plan_unless_whole(model, image.size, work)) is not None:
                yield ImageBatch(size, [key], [image], room=1, tiles=plan)
                continue
            most = None if tiling is None else tiling.room(model)
            room = fitting_batch(model.config, work, model.device, model.dtype.itemsize, most)
        except ValueError as error:
            if on_too_large is None:
                raise
            on_too_large(key, str(error))
            continue
        batch = waiting.setdefault(size, ImageBatch(size, room=room))
        if len(batch) >= room:  # a larger image than those that wait: it leaves room for fewer
            yield waiting.pop(size)
            batch = waiting.setdefault(size, ImageBatch(size, room=room))
        batch.keys.append(key)
        batch.images.append(image)
        batch.room = min(batch.room, room)
        if len(batch) >= batch.room:
            yield waiting.pop(size)
        elif sum(map(len, waiting.values())) >= (WAITING_BATCHES * batch_size if tiling is None else batch_size):
            yield waiting.pop(max(waiting, key=lambda one: len(waiting[one])))
    yield from waiting.values()
