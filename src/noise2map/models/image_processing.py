"""Image processor of the map models, on Pillow and numpy alone (no torchvision)."""

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling, SizeDict
from transformers.processing_utils import ImagesKwargs

from noise2map.models.resizing import STRIP_FLOATS, UncertainMaps, normalized_pixels, resize_map, resized_strips
from noise2map.zoo import ShippedNames

# The encoder's coarsest map is at 1/32, so nothing smaller than this goes in.
MIN_SIDE = 32

# Images are enlarged at most until their long side is this many short sides of the processor: a strip of 2000 x 2 pixels would
# else become one of 120000 x 120. It does not concern images whose sides differ less.
MAX_STRIP = 8


class Noise2MapImageProcessorKwargs(ImagesKwargs, total=False):
    """Keywords beyond those of every image processor.

    do_reduce_labels (`bool`): class id 0 means "unlabelled" in the files (ADE20K): it becomes 255 and the others move down by one.
    keep_aspect_ratio (`bool`): of a size of height and width the shorter one is what the short side becomes.
    """

    do_reduce_labels: bool
    keep_aspect_ratio: bool


class Noise2MapImageProcessor(ShippedNames, PilBackend):
    """Images -> ``pixel_values``, maps -> ``labels``, and model outputs -> maps at the size of the image.

    Args:
        do_resize: resize images (bilinear) and maps (nearest).
        size: ``{"shortest_edge": s}`` keeps the ratio; with ``"longest_edge"`` as an upper bound; or ``{"height", "width"}``, what
            the model was trained at.
        keep_aspect_ratio: of ``{"height", "width"}`` the shorter one is what the short side of an image becomes, so that images
            of another shape are not squashed; if not, every image gets exactly that size.
        do_rescale: multiply by ``rescale_factor`` (0..255 -> 0..1).
        do_normalize: subtract ``image_mean``, divide by ``image_std``.
        do_reduce_labels: see `Noise2MapImageProcessorKwargs`.
    """

    valid_kwargs = Noise2MapImageProcessorKwargs
    model_input_names = ["pixel_values"]
    resample = PILImageResampling.BILINEAR
    image_mean = list(IMAGENET_DEFAULT_MEAN)
    image_std = list(IMAGENET_DEFAULT_STD)
    size = {"shortest_edge": 512, "longest_edge": 2048}
    default_to_square = False
    do_resize = True
    keep_aspect_ratio = True
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = True
    do_reduce_labels = False

    def __init__(self, **kwargs: Any) -> None:
        """Stores the fields.

        Raises:
            ValueError: for a field that does not exist or cannot work.
        """
        for name in kwargs:
            if name not in _KNOWN and not name.startswith("_"):
                close = difflib.get_close_matches(name, _OPTIONS, 1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                raise ValueError(f"Noise2MapImageProcessor has no field {name!r}{hint}")
        _check_unused(kwargs)
        super().__init__(**kwargs)
        _check_options({name: getattr(self, name) for name in _OPTIONS})

    def preprocess(
        self,
        images: Any,
        segmentation_maps: Any = None,
        depth_maps: Any = None,
        maps: Any = None,
        return_tensors: str | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Prepares images, and maps for training.

        Args:
            images: one image or a list: Pillow images of any mode, or arrays ``(H, W, 3)``, ``(3, H, W)``, ``(H, W)`` of bytes or
                16 bits. Transparent parts are laid on white; greys of 16 bits are scaled to 8.
            segmentation_maps: class ids ``(H, W)`` for each image, Pillow or array.
            depth_maps: metres ``(H, W)`` for each image, 0 where there is no depth.
            maps: maps of any other task for each image: numbers ``(H, W)``, or ``(H, W, C)`` such as normals.
            return_tensors: ``"pt"`` stacks into tensors; all images must then have one size after resizing.
            **kwargs: overrides of the processor's fields for this call.

        Returns:
            ``pixel_values`` ``(B, 3, H, W)`` and, if maps were given, ``labels`` ``(B, H, W)`` or ``(B, C, H, W)``.

        Raises:
            ValueError: if an image cannot be used, images and maps do not pair up, an argument cannot work, or sizes differ
                where one tensor is asked for.
        """
        unknown = set(kwargs) - _KNOWN
        if unknown:
            raise ValueError(f"Noise2MapImageProcessor has no argument {sorted(unknown)[0]!r}")
        _check_unused(kwargs)
        options = {name: kwargs.get(name, getattr(self, name)) for name in _OPTIONS if kwargs.get(name) is not None}
        options = {**{name: getattr(self, name) for name in _OPTIONS}, **options}
        _check_options(options)
        kinds = {"segmentation_maps": segmentation_maps, "depth_maps": depth_maps, "maps": maps}
        given = [name for name, value in kinds.items() if value is not None]
        if len(given) > 1:
            raise ValueError(f"got {' and '.join(given)}; expected the maps of one task")
        images = [to_rgb(image) for image in _as_list(images)]
        if not images:
            raise ValueError("got no images; expected at least one")
        pixels = [self._prepare_image(image, options) for image in images]
        data: dict[str, Any] = {"pixel_values": pixels}
        if given:
            targets, is_real = _as_maps(kinds[given[0]], len(images)), segmentation_maps is None
            if len(targets) != len(images):
                raise ValueError(f"got {len(images)} images and {len(targets)} maps; expected one map for each image")
            data["labels"] = [self._prepare_map(m, p, x, is_real, options) for m, p, x in zip(targets, images, pixels)]
        sizes = {x.shape[-2:] for x in pixels}
        if return_tensors is not None and len(sizes) > 1:
            raise ValueError(
                f"images have {len(sizes)} different sizes after resizing, such as {sorted(sizes)[:2]}; expected one (process "
                "them one at a time, in groups of equal size, or with size={'height': ..., 'width': ...}, keep_aspect_ratio=False)"
            )
        return BatchFeature(data=data, tensor_type=return_tensors)

    def output_size(self, height: int, width: int, size: Any = None, keep_aspect_ratio: bool | None = None) -> tuple[int, int]:
        """Height and width that an image is resized to: the rule of the processor, the pipelines and `Predictor`.

        The short side becomes ``shortest_edge``, or the shorter of ``height`` and ``width``, and the ratio is kept. An image is
        not enlarged beyond a long side of 8 such short sides: long strips stay smaller. Each side is at least 32.

        Args:
            height: Of the image.
            width: Of the image.
            size: Instead of the processor's.
            keep_aspect_ratio: Instead of the processor's.
        """
        size = _size_dict(self.size if size is None else size)
        keep = self.keep_aspect_ratio if keep_aspect_ratio is None else keep_aspect_ratio
        if size.height and size.width and not keep:
            return max(MIN_SIDE, size.height), max(MIN_SIDE, size.width)
        shortest = min(size.height, size.width) if size.height and size.width else size.shortest_edge
        ratio = shortest / min(height, width)
        if ratio > 1:
            ratio = min(ratio, max(1.0, MAX_STRIP * shortest / max(height, width)))
        if size.longest_edge:
            ratio = min(ratio, size.longest_edge / max(height, width))
        return max(MIN_SIDE, round(height * ratio)), max(MIN_SIDE, round(width * ratio))

    def processed_size(self, width: int, height: int, size: Any = None) -> tuple[int, int]:
        """Width and height at which an image is predicted.

        By default as `output_size` says: the short side becomes what the model was trained at, and the ratio is kept.

        Args:
            width: Of the image.
            height: Of the image.
            size: ``(width, height)`` instead; ``"native"`` for the size of the image, each side at least 32.
        """
        if isinstance(size, tuple):
            return size
        if size == "native" or not self.do_resize:
            return max(width, MIN_SIDE), max(height, MIN_SIDE)
        rows, columns = self.output_size(height, width)
        return columns, rows

    def normalized_batch(self, images: Tensor) -> Tensor:
        """Images ``(B, 3, H, W)`` uint8 as the model is shown them, on their own device; resized by torch, so not to the bit."""
        columns, rows = self.processed_size(images.shape[-1], images.shape[-2])
        return normalized_pixels(images, (rows, columns), self.image_mean, self.image_std)

    def _prepare_image(self, image: Image.Image, options: dict[str, Any]) -> np.ndarray:
        height, width = image.height, image.width
        target = (height, width)
        if options["do_resize"]:
            target = self.output_size(height, width, options["size"], options["keep_aspect_ratio"])
        if target != (height, width):
            image = image.resize((target[1], target[0]), options["resample"])
        pixels = np.asarray(image, dtype=np.float32).transpose(2, 0, 1)
        if options["do_rescale"]:
            pixels = pixels * np.float32(options["rescale_factor"])
        if options["do_normalize"]:
            mean = np.asarray(options["image_mean"], dtype=np.float32)[:, None, None]
            pixels = (pixels - mean) / np.asarray(options["image_std"], dtype=np.float32)[:, None, None]
        return np.ascontiguousarray(pixels)

    def _prepare_map(
        self, target: Any, image: Image.Image, pixels: np.ndarray, is_real: bool, options: dict[str, Any]
    ) -> np.ndarray:
        array = np.asarray(target.cpu() if isinstance(target, Tensor) else target)
        if array.shape[:2] != (image.height, image.width) or array.ndim > (3 if is_real else 2):
            raise ValueError(f"map has shape {array.shape}; expected the image's ({image.height}, {image.width})")
        if not is_real and not np.issubdtype(array.dtype, np.integer) and array.dtype != bool:
            raise ValueError(f"segmentation map has type {array.dtype}; expected integers, ids of classes")
        array = array.astype(np.float32) if is_real else array.astype(np.int64)
        if options["do_reduce_labels"] and not is_real:
            array = np.where((array == 0) | (array == 255), 255, array - 1)
        if array.shape[:2] != pixels.shape[-2:]:  # nearest: a mean of class ids or of depth and holes means nothing
            channels = torch.from_numpy(np.atleast_3d(array).astype(np.float64)).movedim(-1, 0)[None]
            resized = functional.interpolate(channels, size=pixels.shape[-2:], mode="nearest-exact")[0].movedim(0, -1)
            array = resized.numpy().astype(array.dtype).reshape(*pixels.shape[-2:], *array.shape[2:])
        return array if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))

    def post_process_semantic_segmentation(self, outputs: Any, target_sizes: Sequence[Any] | None = None) -> list[Tensor]:
        """Class maps at the size of the images.

        Args:
            outputs: of `Noise2MapForSemanticSegmentation`.
            target_sizes: ``(H, W)`` for each image; by default the size of the logits.

        Returns:
            One int64 tensor ``(H, W)`` of class ids for each image.
        """
        if target_sizes is None:
            return [logits.argmax(0) for logits in outputs.logits]
        sizes = _checked_sizes(outputs.logits, target_sizes)
        averaged = getattr(outputs, "log_probabilities", None)  # of a pipeline one for each image
        as_p = averaged is not None and bool(torch.as_tensor(averaged).all())
        return [resized_argmax(logits.exp() if as_p else logits, size) for logits, size in zip(outputs.logits, sizes)]

    def post_process_depth_estimation(self, outputs: Any, target_sizes: Sequence[Any] | None = None) -> list[dict[str, Tensor]]:
        """Depth maps in metres at the size of the images: a list of ``{"predicted_depth": (H, W)}``."""
        depths = _resize_each(outputs.predicted_depth.unsqueeze(1), target_sizes)
        return [{"predicted_depth": depth.squeeze(0)} for depth in depths]

    def post_process_uncertainty(self, outputs: Any, target_sizes: Sequence[Any] | None = None) -> list[Tensor]:
        """Uncertainty in [0, 1] at the size of the images, ``(H, W)`` each.

        Raises:
            ValueError: if the run had none (one step of one sample of depth).
        """
        if outputs.uncertainty is None:
            raise ValueError("the output holds no uncertainty; expected a run of several steps or samples")
        known = (outputs.uncertainties or {}) if isinstance(outputs, UncertainMaps) else {}
        named = [name for name, value in known.items() if value is outputs.uncertainty]
        if target_sizes is None or not named:
            return [value.squeeze(0).clamp(0, 1) for value in _resize_each(outputs.uncertainty.unsqueeze(1), target_sizes)]
        sizes = _checked_sizes(outputs.uncertainty, target_sizes)
        found = [outputs.uncertainties_at(size, rows=[index], kinds=named) for index, size in enumerate(sizes)]
        return [maps[named[0]][0] for maps in found]


_OPTIONS = (
    "do_resize", "size", "resample", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std", "do_reduce_labels",
    "keep_aspect_ratio",
)  # fmt: skip

# Further fields that transformers reads from and writes to a processor's file, or passes in a call.
_KNOWN = {
    *_OPTIONS, *ImagesKwargs.__annotations__, "image_processor_type", "feature_extractor_type", "processor_class", "auto_map",
    "name_or_path", "backend",
}  # fmt: skip


def _check_options(options: dict[str, Any]) -> None:
    """Refuses what no image can be processed with."""
    if options["do_resize"]:
        size = _size_dict(options["size"])
        given = {name: value for name, value in dict(size).items() if value is not None}
        pair = {"height", "width"} <= set(given)
        if not (pair or "shortest_edge" in given) or not all(isinstance(v, int) and v > 0 for v in given.values()):
            raise ValueError(f"size is {given or options['size']}; expected positive 'height' and 'width', or 'shortest_edge'")
    if options["do_normalize"]:
        check_colors(options["image_mean"], options["image_std"])


def check_colors(mean: Any, std: Any) -> None:
    """Refuses what no color can be normalised with.

    Raises:
        ValueError: if they are not three finite numbers each, the latter positive.
    """
    both = [np.asarray(values, dtype=object) for values in (mean, std)]
    numbers = all(values.shape == (3,) and all(isinstance(one, int | float | np.number) for one in values) for values in both)
    if not numbers or not all(map(math.isfinite, (*mean, *std))) or not all(value > 0 for value in std):
        raise ValueError(f"image_mean is {mean} and image_std {std}; expected three numbers each, the latter positive")


def _check_unused(fields: Mapping[str, Any]) -> None:
    """Refuses what other processors do to images and this one does not."""
    for name in ("do_center_crop", "crop_size", "do_pad", "pad_size"):
        if fields.get(name):
            raise ValueError(f"{name} is {fields[name]!r}; Noise2MapImageProcessor neither crops nor pads: expected none")


def _as_list(items: Any) -> list[Any]:
    if isinstance(items, (list, tuple)):
        return list(items)
    if isinstance(items, (np.ndarray, Tensor)) and items.ndim == 4:
        return list(items)
    return [items]


def _as_maps(maps: Any, count: int) -> list[Any]:
    """One map for each image; an array ``(B, H, W)`` beside B images holds B of them."""
    stacked = isinstance(maps, (np.ndarray, Tensor)) and maps.ndim == 3 and len(maps) == count > 1
    return list(maps) if stacked else _as_list(maps)


def _size_dict(size: Any) -> SizeDict:
    if isinstance(size, int):
        return SizeDict(shortest_edge=size)
    try:
        return size if isinstance(size, SizeDict) else SizeDict(**dict(size))
    except (TypeError, ValueError) as error:
        raise ValueError(f"size is {size!r}; expected 'height' and 'width', or 'shortest_edge'") from error


def to_rgb(image: Any) -> Image.Image:
    """Pillow image in mode RGB from an image of any mode or an array of bytes."""
    if isinstance(image, Tensor):
        image = image.cpu().numpy()
    if isinstance(image, np.ndarray):
        if image.ndim == 3 and image.shape[0] in (1, 3, 4) and image.shape[-1] not in (1, 3, 4):
            image = image.transpose(1, 2, 0)
        if image.dtype == np.uint16:
            image = _to_8_bits(image)
        if image.dtype != np.uint8:
            raise ValueError(f"image array has type {image.dtype}; expected uint8 values 0..255 or a Pillow image")
        if image.ndim == 3 and image.shape[-1] == 1:
            image = image[..., 0]
        if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[-1] not in (3, 4)):
            raise ValueError(f"image array has shape {image.shape}; expected (H, W, 3), (3, H, W) or (H, W)")
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image):
        raise ValueError(f"image is a {type(image).__name__}; expected a Pillow image or an array")
    if 0 in image.size:
        raise ValueError(f"image has {image.width}x{image.height} pixels; expected at least one")
    if image.mode == "F" or image.mode.startswith("I"):  # a plain conversion would clip them
        image = Image.fromarray(_to_8_bits(np.asarray(image)))
    elif image.mode in _TRANSPARENT or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
    return image if image.mode == "RGB" else image.convert("RGB")


_TRANSPARENT = ("RGBA", "LA", "PA", "La", "RGBa")


def _to_8_bits(values: np.ndarray) -> np.ndarray:
    """Greys to bytes, any shape: integers of 16 bits; floats up to 1, up to 255, or up to 65535."""
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 65535):
        raise ValueError(f"image holds values from {values.min():g} to {values.max():g}; expected 0..65535, or 0..1")
    floats = np.issubdtype(values.dtype, np.floating)
    top = next(top for top in (1, 255, 65535) if values.max() <= top) if floats else 65535
    return np.rint(values.astype(np.float64) * (255 / top)).astype(np.uint8)


def _resize_each(values: Tensor, target_sizes: Sequence[Any] | None) -> list[Tensor]:
    """``(B, K, h, w)`` -> a list of ``(K, H, W)``."""
    if target_sizes is None:
        return list(values)
    return [resize_map(value[None].float(), size)[0] for value, size in zip(values, _checked_sizes(values, target_sizes))]


def _checked_sizes(values: Tensor, target_sizes: Sequence[Any]) -> list[tuple[int, int]]:
    if len(target_sizes) != len(values):
        raise ValueError(f"got {len(target_sizes)} target sizes; expected one for each of the {len(values)} maps")
    try:
        sizes = [(int(height), int(width)) for height, width in target_sizes]
    except TypeError:
        raise ValueError(f"target_sizes is {target_sizes!r}; expected a height and a width for each map") from None
    if any(min(size) < 1 for size in sizes):
        raise ValueError(f"target_sizes is {sizes}; expected positive heights and widths")
    return sizes


def resized_argmax(logits: Tensor, *sizes: tuple[int, int], strip_floats: int = STRIP_FLOATS) -> Tensor:
    """Class map at another size: bilinear enlargement and argmax, one strip of rows after the other.

    Args:
        logits: ``(K, h, w)``.
        *sizes: ``(H, W)`` of the map, or several, to be brought to one after the other.
        strip_floats: How many floats a strip may hold.

    Returns:
        Class ids ``(H, W)`` int64, equal to ``interpolate(..., mode="bilinear", align_corners=False).argmax(0)``.
    """
    return torch.cat([strip.argmax(0) for strip in resized_strips(logits, *sizes, strip_floats=strip_floats)])
