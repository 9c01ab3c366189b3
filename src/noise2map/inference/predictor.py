"""From images of any size to maps of the same size: the model, its processor and the options in one object."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from noise2map.diffusion import image_generator
from noise2map.inference.batches import ImageBatch, batches
from noise2map.inference.loading import load_model
from noise2map.inference.reading import as_image, as_images
from noise2map.models import MapModel, Noise2MapImageProcessor
from noise2map.models.decoding import DecodingOptions, PredictionOptions, Size, check_count
from noise2map.models.image_processing import to_rgb
from noise2map.report.palettes import class_palette
from noise2map.runs.memory import keep_freed_memory, parse_bytes, resident_bytes
from noise2map.tasks import task_of
from noise2map.tasks.base import ImageTask
from noise2map.tasks.prediction import Prediction, predictions_of

if TYPE_CHECKING:
    from noise2map.inference.tiling.plan import Tiling


class Predictor:
    """Predicts maps for images of any size.

    Images that are processed at one size go through the model together, in batches that fit in free memory. The noise of
    an image comes from ``(seed, id)`` alone: its map does not depend on the batch it is in, nor on the order.

    Attributes:
        model: The model, in evaluation mode.
        processor: Its image processor.
        task: ``"segmentation"``, ``"depth"`` or ``"normals"``.
        id2label: Class id to name (segmentation).
        palette: ``(K, 3)`` uint8 (segmentation).
        tiling: When images are cut into tiles; None if never.
    """

    def __init__(
        self, model: MapModel, processor: Noise2MapImageProcessor, *, memory: str | int | None = None, tile: int | None = None
    ) -> None:
        """Wrap a model and its processor; :meth:`from_pretrained` loads both.

        The process keeps freed memory from then on, see `noise2map.keep_freed_memory`.

        Args:
            model: The model, on its device.
            processor: Its image processor.
            memory: Bytes that the process may have in all (on a GPU: on that device), as ``"2GiB"`` or a number. An image that does
                not fit is processed in tiles, see `noise2map.inference.tiling`; one that fits as without a bound.
            tile: Process whatever is larger in tiles of this side, pixels, a multiple of 32.

        Raises:
            ValueError: If the model makes no maps of single images, or the bound or the tile cannot work.
        """
        keep_freed_memory()
        self.model, self.processor = model.eval(), processor
        self._task = task_of(model)
        if not isinstance(self._task, ImageTask):
            raise ValueError(f"the model is one for {self._task}; expected one for maps of single images")
        self.task = self._task.name
        self.id2label = {int(index): str(name) for index, name in model.config.id2label.items()}
        no_colors = np.zeros((0, 3), np.uint8)
        self.palette = class_palette(self.id2label, model.config.palette) if self._task.has_classes else no_colors
        self.tiling: Tiling | None = None
        if memory is not None or tile is not None:
            self.tiling = _tiling(model, memory, tile)

    @property
    def image_task(self) -> ImageTask:
        """What depends on the kind of its maps outside the network."""
        return self._task

    @property
    def has_classes(self) -> bool:
        """True if its maps are of named classes."""
        return self._task.has_classes

    @property
    def in_metres(self) -> bool:
        """True if its maps are of lengths."""
        return self._task.in_metres

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "float32",
        *,
        memory: str | int | None = None,
        tile: int | None = None,
    ) -> "Predictor":
        """Load a checkpoint by shipped name, folder or hub id; see :func:`noise2map.inference.loading.load_model`."""
        return cls(*load_model(name, device, dtype), memory=memory, tile=tile)

    def processed_size(self, width: int, height: int, size: Size = None) -> tuple[int, int]:
        """Width and height at which an image is processed; see `Noise2MapImageProcessor.processed_size`."""
        return self.processor.processed_size(width, height, size)

    def __call__(
        self,
        images: Any,
        ids: Sequence[str] | None = None,
        options: DecodingOptions | None = None,
        *,
        batch_size: int = 8,
        every_uncertainty: bool = False,
        **choices: Any,
    ) -> list[Prediction]:
        """Predict the maps of images.

        Args:
            images: One image or several, of any size: Pillow images of any mode, arrays ``(H, W, 3)``, ``(3, H, W)`` or
                ``(H, W)`` of bytes, paths, http(s) addresses.
            ids: A stable name for each, which with the seed fixes its noise; by default "0", "1", ...
            options: Steps, samples, averaging, seed; in :class:`PredictionOptions` the size, too.
            batch_size: The most images at a time.
            every_uncertainty: Return every kind of uncertainty, not only the one the checkpoint names.
            **choices: Fields of :class:`PredictionOptions` for this call, e.g. ``num_inference_steps=10``.

        Returns:
            One prediction per image, in the order given.

        Raises:
            ValueError: Invalid decoding options, another number of ids, no image, or an image that does not fit in memory.
            TypeError: For an option that does not exist.
            OSError: For a file or an address that cannot be read.
        """
        images = as_images(images)
        ids = [str(index) for index in range(len(images))] if ids is None else [str(one) for one in ids]
        if len(ids) != len(images):
            raise ValueError(f"got {len(images)} images and {len(ids)} ids; expected one id for each image")
        check_count("batch_size", batch_size)
        options = _chosen(options, choices).resolved(self.model.config)
        self.check_interval(options)
        found: dict[int, Prediction] = {}
        read = ((index, to_rgb(as_image(image))) for index, image in enumerate(images))
        for batch in batches(read, self.model, self.processor, options, batch_size, tiling=self.tiling):
            names = [ids[index] for index in batch.keys]
            found.update(zip(batch.keys, self.predict_batch(batch, names, options, every_uncertainty)))
        return [found[index] for index in range(len(images))]

    def check_interval(self, options: PredictionOptions) -> None:
        """Refuses an interval that the model does not state.

        Raises:
            ValueError: Saying why, and what helps.
        """
        if options.interval is not None:
            self._task.check_interval(self.model, options.interval)

    @torch.inference_mode()
    def predict_batch(
        self, batch: ImageBatch[Any], ids: Sequence[str], options: PredictionOptions, every_uncertainty: bool = False
    ) -> list[Prediction]:
        """Predict the maps of images that are processed at one size and fit in memory together.

        Args:
            batch: As `batches` makes it.
            ids: A stable name for each image, which with the seed fixes its noise.
            options: Steps, samples, averaging, seed.
            every_uncertainty: Return every kind of uncertainty, not only the one the checkpoint names.
        """
        width, height = batch.size
        before = [(height, width)] if self._task.reads_cells else []
        out = self.decode_batch(batch, ids, options, at_cells=self._task.reads_cells)
        name = self.model.config.uncertainty or self.model.default_uncertainty
        predictions = predictions_of(out, self._task, self.processor, batch.images, ids, name, every_uncertainty, before)
        for one in predictions:
            one.processed_size, one.id2label, one.palette, one.tiles = batch.size, self.id2label, self.palette, batch.tiles
        if options.interval is not None:
            for row, (one, image) in enumerate(zip(predictions, batch.images)):
                one.interval = self._task.interval(out, row, options.interval, *before, (image.height, image.width))
        return predictions

    @torch.inference_mode()
    def decode_batch(self, batch: ImageBatch[Any], ids: Sequence[str], options: PredictionOptions, at_cells: bool = False) -> Any:
        """The model's output for images that are processed at one size, at that size.

        Args:
            batch: As `batches` makes it.
            ids: A stable name for each image, which with the seed fixes its noise.
            options: Steps, samples, averaging, seed.
            at_cells: Leave it as `MapModel.decode_map` returns it, at the size of the features.
        """
        if batch.tiles is not None:
            from noise2map.inference.tiling.decoding import TiledDecoder

            decoder = TiledDecoder(self.model, self.processor, self._task, options)
            return decoder.decode(batch.images[0], ids[0], batch.tiles)
        pixels = self.pixel_values(batch)
        if at_cells:
            return options.decode(self.model, self.model.encode_image(pixels), ids)
        return self.model(
            pixel_values=pixels,
            **options.dials,
            generator=[image_generator(options.seed, one) for one in ids],
        )

    def pixel_values(self, batch: ImageBatch[Any]) -> torch.Tensor:
        """The images of a batch as the model sees them, ``(B, 3, h, w)``, on its device."""
        width, height = batch.size
        inputs = self.processor(
            images=batch.images,
            do_resize=True,
            size={"height": height, "width": width},
            keep_aspect_ratio=False,
            return_tensors="pt",
        )
        return inputs["pixel_values"].to(self.model.device)


def _tiling(model: MapModel, memory: str | int | None, tile: int | None) -> "Tiling":
    from noise2map.inference.tiling.plan import Tiling

    device = model.device
    resident = torch.cuda.memory_allocated(device) if device.type == "cuda" else resident_bytes()
    tiling = Tiling(None if memory is None else parse_bytes(memory), tile, resident)
    tiling.room(model)
    return tiling


def _chosen(options: DecodingOptions | None, choices: dict[str, Any]) -> PredictionOptions:
    known = [one.name for one in fields(PredictionOptions)]
    for name in choices:
        if name not in known:
            raise TypeError(f"Predictor has no option {name!r}; expected {', '.join(known)}")
    before = {} if options is None else {one.name: getattr(options, one.name) for one in fields(options)}
    return PredictionOptions(**{**before, **choices})
