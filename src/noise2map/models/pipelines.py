"""Pipelines of transformers for map models: batches of any sizes, decoding options and seeds as keywords.

``pipeline("depth-estimation")`` and ``pipeline("image-segmentation")`` of transformers give these classes for our models and their
own for all others. See :mod:`noise2map.registration`.
"""

import os
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from PIL import Image, ImageOps
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.modeling_outputs import ModelOutput
from transformers.pipelines.base import Pipeline
from transformers.pipelines.depth_estimation import DepthEstimationPipeline
from transformers.pipelines.image_segmentation import ImageSegmentationPipeline

from noise2map.diffusion import image_generator
from noise2map.models.image_processing import to_rgb
from noise2map.models.map_model import MapModel
from noise2map.zoo import resolve_model

_DECODING = ("num_inference_steps", "ensemble_size", "average", "sampler", "sampling", "seed", "generator")
# What `pipeline` itself hands on after having used it.
_LOADING = ("local_files_only", "torch_dtype", "use_fast")
# The id that `Predictor` gives to a single image.
_ONE_IMAGE = "0"


class MapPipeline(Pipeline):
    """Base class of the pipelines with a map model.

    Keywords, in ``pipeline(...)`` or in a call:

    - ``num_inference_steps``, ``ensemble_size``, ``average``, ``sampler``, ``sampling``: as in `MapModel.decode_map`.
    - ``seed``: fixes the noise, the same for every image in any batch. One image gives the map of ``Predictor`` with that seed.
    - ``generator``: a `torch.Generator`, or a list with one for each image of a batch, instead of a seed.

    Without seed and generator the noise is drawn from PyTorch's global generator. Other keywords are refused.
    """

    plain: type[Pipeline]
    task_keywords: tuple[str, ...]

    def __new__(cls, model: Any = None, *args: Any, **kwargs: Any) -> Any:
        """The pipeline, or that of transformers if the model is not a map model."""
        if not isinstance(model, MapModel):
            return cls.plain(model, *args, **kwargs)
        return super().__new__(cls)

    def check_model_type(self, supported_models: Any) -> None:
        """Nothing to check: the model chose this class."""

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict, dict, dict]:
        known = {*_DECODING, *_LOADING, *self.task_keywords}
        for name in kwargs:
            if name not in known:
                expected = ", ".join((*_DECODING, *self.task_keywords))
                raise ValueError(f"the {self.task} pipeline of map models has no keyword {name!r}; expected {expected}")
        decoding = {name: kwargs[name] for name in _DECODING if kwargs.get(name) is not None}
        if {"seed", "generator"} <= set(decoding):
            raise ValueError("got a seed and a generator; expected one of them")
        rest = {name: value for name, value in kwargs.items() if name in self.task_keywords}
        preprocess, _, postprocess = super()._sanitize_parameters(**rest)
        return preprocess, decoding, postprocess

    def preprocess(self, image: Any, **kwargs: Any) -> Any:
        """The inputs of one image; its pixels in a list, so that images of several sizes make a batch."""
        if isinstance(image, (str, os.PathLike)) and os.path.isfile(image):
            image = Image.open(image)
        if isinstance(image, Image.Image):  # transformers cuts off greys of 16 bits, and drops what is transparent
            image = to_rgb(ImageOps.exif_transpose(image))
        inputs = super().preprocess(image, **kwargs)
        inputs["pixel_values"] = [inputs["pixel_values"]]
        return inputs

    def _forward(self, model_inputs: Any, seed: int | None = None, generator: Any = None, **decoding: Any) -> ModelOutput:
        pixels = _flat(model_inputs["pixel_values"])
        generators: list[Any] | None = None
        if seed is not None:
            generators = [image_generator(seed, _ONE_IMAGE) for _ in pixels]
        elif generator is not None:
            generators = list(generator) if isinstance(generator, Sequence) else [generator] * len(pixels)
            if len(generators) != len(pixels):
                raise ValueError(f"got {len(generators)} generators; expected one for each of the {len(pixels)} images of a batch")
        found: dict[int, dict[str, Tensor]] = {}
        for members in _by_shape(pixels):
            chosen = [generators[index] for index in members] if generators else None
            out = self.model(pixel_values=torch.cat([pixels[index] for index in members]), generator=chosen, **decoding)
            fields = {name: value for name, value in out.items() if isinstance(value, Tensor)}
            if out.get("log_probabilities"):  # as a tensor, of which a batch can be taken apart
                fields["log_probabilities"] = torch.ones(len(members), dtype=torch.bool)
            for place, index in enumerate(members):
                found[index] = {name: value[place] for name, value in fields.items()}
        together = {name: _joined([found[index][name] for index in range(len(pixels))]) for name in found[0]}
        return ModelOutput({**together, "target_size": model_inputs["target_size"]})


def _flat(pixels: list[Any]) -> list[Tensor]:
    """Pixels ``(1, 3, H, W)`` of one image ``[p]``, or of a batch ``[[p], [q]]``."""
    return [one for item in pixels for one in (item if isinstance(item, list) else [item])]


def _by_shape(pixels: list[Tensor]) -> list[list[int]]:
    groups: dict[torch.Size, list[int]] = {}
    for index, one in enumerate(pixels):
        groups.setdefault(one.shape, []).append(index)
    return list(groups.values())


def _joined(values: list[Tensor]) -> Tensor | list[Tensor]:
    return torch.stack(values) if len({value.shape for value in values}) == 1 else values


class MapDepthPipeline(MapPipeline, DepthEstimationPipeline):
    """``pipeline("depth-estimation")`` of `Noise2MapForDepthEstimation`; keywords as in `MapPipeline`."""

    plain = DepthEstimationPipeline
    task_keywords = ("timeout", "parameters")


class MapSegmentationPipeline(MapPipeline, ImageSegmentationPipeline):
    """``pipeline("image-segmentation")`` of `Noise2MapForSemanticSegmentation`; keywords as in `MapPipeline`."""

    plain = ImageSegmentationPipeline
    task_keywords = ("timeout", "subtask", "threshold", "mask_threshold", "overlap_mask_area_threshold")


# Model -> the pipeline of transformers that it has.
_TASKS = {
    "Noise2MapForDepthEstimation": "depth-estimation",
    "Noise2MapForSemanticSegmentation": "image-segmentation",
}


def pipeline(model: str | os.PathLike[str], task: str | None = None, **keywords: Any) -> Pipeline:
    """The pipeline of a checkpoint by name: ``transformers.pipeline``, which by itself knows folders and hub ids alone.

    Args:
        model: A shipped name, a folder, or a hub id.
        task: Name of transformers for the pipeline; by default that of the model.
        **keywords: As of ``transformers.pipeline`` and `MapPipeline`, e.g. ``device``, ``num_inference_steps``, ``seed``.

    Raises:
        OSError: If there is no such folder or hub id.
        ValueError: If there is no such shipped model, or transformers has no pipeline for its maps (surface normals, bird's-eye
            views).
    """
    source = resolve_model(model)
    if task is None:
        settings, _ = PreTrainedConfig.get_config_dict(source)
        architecture = next(iter(settings.get("architectures") or []), None)
        if architecture not in _TASKS:
            raise ValueError(
                f"transformers has no pipeline for {str(model)!r}, a {architecture}; expected a model for "
                f"{' or '.join(_TASKS.values())} (noise2map.inference.Predictor takes maps of every kind)"
            )
        task = _TASKS[architecture]
    return transformers.pipeline(task, model=source, **keywords)
