"""From images of any size to maps of the same size: the model, its processor and the options in one object."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from noise2map.diffusion import image_generator
from noise2map.inference.loading import load_model
from noise2map.inference.memory import Workload, fitting_batch
from noise2map.inference.sources import as_image, as_images
from noise2map.models import MapModel, Noise2MapImageProcessor
from noise2map.models.decoding import DecodingOptions, PredictionOptions, Size, check_count
from noise2map.models.image_processing import MIN_SIDE, to_rgb
from noise2map.report.palettes import class_palette
from noise2map.runs.memory import keep_freed_memory
from noise2map.tasks import task_of
from noise2map.tasks.base import ImageTask
from noise2map.tasks.prediction import Prediction


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
    """

    def __init__(self, model: MapModel, processor: Noise2MapImageProcessor) -> None:
        """Wrap a model and its processor; :meth:`from_pretrained` loads both.

        The process keeps freed memory from then on, see `noise2map.keep_freed_memory`.
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
        cls, name: str | Path, device: str | torch.device = "auto", dtype: str | torch.dtype = "float32"
    ) -> "Predictor":
        """Load a checkpoint by shipped name, folder or hub id; see :func:`noise2map.inference.loading.load_model`."""
        return cls(*load_model(name, device, dtype))

    def processed_size(self, width: int, height: int, size: Size = None) -> tuple[int, int]:
        """Width and height at which an image of ``width x height`` is processed.

        By default as the processor does: the short side becomes what the model was trained at, and the ratio is kept.
        """
        if isinstance(size, tuple):
            return size
        if size == "native" or not self.processor.do_resize:
            return max(width, MIN_SIDE), max(height, MIN_SIDE)
        rows, columns = self.processor.output_size(height, width)
        return columns, rows

    def check_fits(self, width: int, height: int, options: PredictionOptions, batch_size: int = 1) -> int:
        """Number of images of a size that can be processed together, at most ``batch_size``.

        Raises:
            ValueError: If free memory does not suffice for one.
        """
        columns, rows = self.processed_size(width, height, options.size)
        work = Workload(
            batch_size, rows, columns, options.resolved(self.model.config).ensemble_size or 1, max(width * height, rows * columns)
        )
        return fitting_batch(self.model.config, work, self.model.device, self.model.dtype.itemsize)

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
        images = [as_image(image) for image in images]
        groups: dict[tuple[int, int], list[int]] = {}
        for index, image in enumerate(images):
            groups.setdefault(self.processed_size(*image.size, options.size), []).append(index)
        found: dict[int, Prediction] = {}
        for size, members in groups.items():
            room = min(self.check_fits(*images[index].size, options, batch_size) for index in members)
            for start in range(0, len(members), room):
                part = members[start : start + room]
                batch = self._predict_batch([images[i] for i in part], [ids[i] for i in part], size, options, every_uncertainty)
                found.update(zip(part, batch))
        return [found[index] for index in range(len(images))]

    @torch.inference_mode()
    def _predict_batch(
        self, images: list[Image.Image], ids: list[str], size: tuple[int, int], options: PredictionOptions, every_uncertainty: bool
    ) -> list[Prediction]:
        images = [to_rgb(image) for image in images]
        height_width = {"height": size[1], "width": size[0]}
        inputs = self.processor(images=images, do_resize=True, size=height_width, keep_aspect_ratio=False, return_tensors="pt")
        out = self.model(
            pixel_values=inputs["pixel_values"].to(self.model.device),
            num_inference_steps=options.num_inference_steps,
            ensemble_size=options.ensemble_size,
            average=options.average,
            sampler=options.sampler,
            generator=[image_generator(options.seed, one) for one in ids],
        )
        shapes = [(image.height, image.width) for image in images]
        found = self._task.arrays(out, self.processor, shapes)
        name = self.model.config.uncertainty or self.model.default_uncertainty
        wanted = list(out.uncertainties) if every_uncertainty else [name] * (out.uncertainty is not None)
        kinds = {kind: _unit_maps(out.uncertainties[kind], shapes) for kind in wanted}
        steps = out.num_steps.tolist()
        computed = self._task.computed(out)
        if name in kinds:
            computed["uncertainty"] = out.uncertainties[name].clamp(0, 1)
        computed = {kind: values.float().cpu().numpy() for kind, values in computed.items()}
        return [
            Prediction(
                id=one,
                task=self._task,
                map=found[i],
                uncertainty=kinds[name][i] if name in kinds else None,
                uncertainty_kind=name,
                num_steps=steps[i],
                processed_size=size,
                uncertainties={kind: maps[i] for kind, maps in kinds.items()} if every_uncertainty else {},
                image=np.asarray(images[i]),
                computed={kind: values[i] for kind, values in computed.items()},
                id2label=self.id2label,
                palette=self.palette,
            )
            for i, one in enumerate(ids)
        ]


def _chosen(options: DecodingOptions | None, choices: dict[str, Any]) -> PredictionOptions:
    known = [one.name for one in fields(PredictionOptions)]
    for name in choices:
        if name not in known:
            raise TypeError(f"Predictor has no option {name!r}; expected {', '.join(known)}")
    before = {} if options is None else {one.name: getattr(options, one.name) for one in fields(options)}
    return PredictionOptions(**{**before, **choices})


def _unit_maps(values: torch.Tensor, shapes: list[tuple[int, int]]) -> list[np.ndarray]:
    """Uncertainties ``(B, h, w)`` at the sizes of the images, clamped to [0, 1]."""
    resized = [
        functional.interpolate(value[None, None].float(), size=shape, mode="bilinear", align_corners=False)[0, 0]
        for value, shape in zip(values, shapes)
    ]
    return [value.clamp(0, 1).cpu().numpy() for value in resized]
