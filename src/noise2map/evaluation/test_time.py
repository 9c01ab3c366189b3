"""Test-time augmentation: size, mirror image, several scales, whole images or sliding windows.

Plans are about images. How the map is denoised from what is seen (steps, samples, averaging) is a
:class:`noise2map.models.decoding.DecodingOptions`, and the two are named separately in results.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from noise2map.diffusion import draw_noise, image_generator, multi_resolution_noise
from noise2map.models.decoding import DecodingOptions
from noise2map.models.resizing import resize_map
from noise2map.tasks import task_of

SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)

"""The scales of the published multi-scale evaluation, each with and without mirroring."""

_QUARTER = 4  # maps are at a quarter of the image's size

_WINDOW_STEP = 32  # the encoder's coarsest map


@dataclass(frozen=True)
class TestTimeAugmentation:
    """Sizes, mirror images and windows in which an image is seen.

    Attributes:
        frame: The longer and the shorter side, pixels, that images are fitted into with their ratio kept; None leaves the size to
            the model's image processor.
        scales: Factors of that size.
        flip: Also look at the mirror image, and average.
        window: Height and width of windows, pixels; None looks at the whole image at once.
        stride: Distance of windows, pixels.
        own_size: Leave images at their own size, whatever the image processor says.

    Raises:
        ValueError: If a number cannot work.
    """

    __test__ = False  # for pytest, which takes the name for that of tests

    frame: tuple[int, int] | None = None
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    window: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None
    own_size: bool = False

    def __post_init__(self) -> None:
        if not self.scales or not all(0 < scale < 16 for scale in self.scales):
            raise ValueError(f"scales must be positive factors of the size, got {self.scales}")
        for name in ("window", "stride"):
            value = getattr(self, name)
            if value is not None and not all(side > 0 and side % _WINDOW_STEP == 0 for side in value):
                raise ValueError(f"the sides of a {name} must be positive multiples of {_WINDOW_STEP} pixels, got {value}")
        if self.window is not None and self.stride is not None and any(s > w for s, w in zip(self.stride, self.window)):
            raise ValueError(f"windows of {self.window} at distances of {self.stride} leave gaps")

    @property
    def name(self) -> str:
        """E.g. ``"fitted into 2048x512, 6 scales, flip, whole"``."""
        parts = ["own size"] if self.own_size else [f"fitted into {self.frame[0]}x{self.frame[1]}"] if self.frame else []
        if len(self.scales) > 1:
            parts.append(f"{len(self.scales)} scales")
        if self.flip:
            parts.append("flip")
        parts.append("whole" if self.window is None else f"windows {self.window[1]}x{self.window[0]}")
        return ", ".join(parts)

    @property
    def views(self) -> list["TestTimeAugmentation"]:
        """One for each look at a whole image: a single scale, mirrored (``flip``) or not; the plain one first."""
        scales = sorted(self.scales, key=lambda scale: abs(scale - 1))
        mirrored = (False, True) if self.flip else (False,)
        return [replace(self, scales=(scale,), flip=flip) for scale in scales for flip in mirrored]


def keep_ratio_size(height: int, width: int, frame: tuple[int, int], scale: float = 1.0) -> tuple[int, int]:
    """Height and width of an image fitted into a frame of ``scale`` times ``(long, short)`` pixels, its ratio kept."""
    long, short = (int(side * scale) for side in frame)
    factor = min(long / max(height, width), short / min(height, width))
    return max(32, int(height * factor + 0.5)), max(32, int(width * factor + 0.5))


def resize_image(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """A image at another ``(height, width)``, bilinear between pixel centres and without smoothing, as in the published runs.

    Pillow's own bilinear filter smooths when it shrinks, which is better to look at and not what those models were trained on.
    """
    if (image.height, image.width) == size:
        return image
    pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None].float()
    resized = functional.interpolate(pixels, size=size, mode="bilinear", align_corners=False)[0]
    return Image.fromarray(resized.round().clamp(0, 255).byte().permute(1, 2, 0).numpy())


def view_pixels(image: Image.Image, processor: Any, view: TestTimeAugmentation) -> Tensor:
    """Input of the model for one view of an image, ``(1, 3, H, W)``."""
    height, width = image.height, image.width
    scale = view.scales[0]
    if view.frame is not None:
        size = keep_ratio_size(height, width, view.frame, scale)
    elif view.own_size or not processor.do_resize:
        size = (max(32, round(height * scale)), max(32, round(width * scale)))
    elif scale == 1.0:
        pixels = processor(images=image, return_tensors="pt")["pixel_values"]
        return pixels.flip(-1) if view.flip else pixels
    else:
        size = tuple(max(32, round(side * scale)) for side in processor.output_size(height, width))
    pixels = processor(images=resize_image(image, size), do_resize=False, return_tensors="pt")["pixel_values"]
    return pixels.flip(-1) if view.flip else pixels


def window_spans(length: int, window: int, stride: int) -> list[tuple[int, int]]:
    """First and last pixel (excluded) of windows that cover ``length`` pixels; all start at multiples of four.

    The last one ends with the image, and is up to three pixels longer than the others so that it starts on the map's grid.
    """
    if length <= window:
        return [(0, length)]
    last = (length - window) // _QUARTER * _QUARTER
    starts = [*range(0, last, stride), last]
    return [(start, length if start == last else start + window) for start in starts]


@dataclass
class _Seen:
    """Features of a window ``(1, C, h, w)`` and where its map lies in the map of the image."""

    top: int
    left: int
    features: Tensor


class SharedNoise:
    """One field of noise for a whole map, of which every window gets its part: windows agree where they overlap.

    Args:
        shape: Samples, channels, height and width ``(R, C, h, w)`` of the whole map.
        generator: Where the noise comes from.
        device: Where it goes.
    """

    def __init__(self, shape: tuple[int, int, int, int], generator: torch.Generator, device: torch.device) -> None:
        self.shape, self.generator, self.device = shape, generator, device
        self.start = self._draw()
        self._later: list[Tensor] = []
        self._latent: list[Tensor] = []

    def _draw(self) -> Tensor:
        return draw_noise(self.shape, [self.generator], self.device)

    def window(self, seen: _Seen) -> Tensor:
        """Start noise ``(1, R, C, h, w)`` of a window."""
        return self._cut(self.start, seen)

    def later(self, seen: _Seen) -> Callable[[int, Tensor], Tensor]:
        """Noise that the ancestral sampler adds in a window after each step."""

        def step_noise(index: int, x_t: Tensor) -> Tensor:
            while len(self._later) <= index:
                self._later.append(self._draw())
            return self._cut(self._later[index], seen).flatten(0, 1).to(x_t.dtype)

        return step_noise

    def latent(self, channels: int, seen: _Seen) -> Callable[[int], Tensor]:
        """Noise channels ``(R, n, h, w)`` of each call in a window, for models that have some."""
        samples, _, *size = self.shape

        def latent_noise(index: int) -> Tensor:
            while len(self._latent) <= index:
                field = multi_resolution_noise(channels, samples, (size[0], size[1]), [self.generator], self.device)
                self._latent.append(field)
            return self._cut(self._latent[index], seen).flatten(0, 1)

        return latent_noise

    @staticmethod
    def _cut(field: Tensor, seen: _Seen) -> Tensor:
        height, width = seen.features.shape[-2:]
        return field[..., seen.top : seen.top + height, seen.left : seen.left + width]


def encode_view(model: Any, pixels: Tensor, view: TestTimeAugmentation) -> list[_Seen]:
    """Runs the image encoder on an image ``(1, 3, H, W)``, whole or window by window."""
    if view.window is None:
        return [_Seen(0, 0, model.encode_image(pixels))]
    stride = view.stride or tuple(max(_WINDOW_STEP, side * 2 // 3 // _WINDOW_STEP * _WINDOW_STEP) for side in view.window)
    rows = window_spans(pixels.shape[-2], view.window[0], stride[0])
    columns = window_spans(pixels.shape[-1], view.window[1], stride[1])
    return [
        _Seen(top // _QUARTER, left // _QUARTER, model.encode_image(pixels[..., top:bottom, left:right]))
        for top, bottom in rows
        for left, right in columns
    ]


def decode_windows(model: Any, windows: Sequence[_Seen], options: DecodingOptions, generator: torch.Generator) -> list[Any]:
    """Decodes the map of every window from its part of one field of noise."""
    height = max(seen.top + seen.features.shape[-2] for seen in windows)
    width = max(seen.left + seen.features.shape[-1] for seen in windows)
    options = options.resolved(model.config)
    if options.sampling == "field":  # whose maps are drawn from the marginals of one call: those are what views agree on
        options = replace(options, ensemble_size=1, num_inference_steps=1)
    shape = (options.ensemble_size, model.codec.channels, height, width)
    noise = SharedNoise(shape, generator, windows[0].features.device)
    outputs = []
    for seen in windows:
        fields: dict[str, Any] = {"noise": noise.window(seen), "step_noise": noise.later(seen)}
        if model.config.noise_channels:
            fields["latent_noise"] = noise.latent(model.config.noise_channels, seen)
        outputs.append(options.decode(model, seen.features, (), **fields))
    return outputs


def decode_view(
    model: Any, windows: Sequence[_Seen], options: DecodingOptions, generator: torch.Generator
) -> tuple[Tensor, bool, dict[str, Tensor], int]:
    """The map of one view.

    Returns:
        Prediction ``(1, K, h, w)`` (logits, probabilities, or metres), whether it holds probabilities, uncertainties by kind
        ``(1, 1, h, w)``, and the number of steps.
    """
    outputs = decode_windows(model, windows, options, generator)
    parts = [_prediction(output) for output in outputs]
    kinds = [name for name in outputs[0].uncertainties or {} if all(name in output.uncertainties for output in outputs)]
    uncertainties = {name: _merge([output.uncertainties[name][:, None] for output in outputs], windows) for name in kinds}
    steps = max(int(output.num_steps.max()) for output in outputs)
    return _merge(parts, windows), bool(outputs[0].log_probabilities), uncertainties, steps


def _prediction(output: Any) -> Tensor:
    prediction = output.prediction.float()
    return prediction.exp() if output.log_probabilities else prediction


def _merge(parts: Sequence[Tensor], windows: Sequence[_Seen]) -> Tensor:
    """Maps of windows ``(1, K, h, w)`` to one map, averaged where they overlap."""
    if len(parts) == 1:
        return parts[0]
    pixels = parts[0].shape[-1] // windows[0].features.shape[-1]  # of the map, for each side of a cell: convex upsampling has four
    tops, lefts = [seen.top * pixels for seen in windows], [seen.left * pixels for seen in windows]
    height = max(top + part.shape[-2] for top, part in zip(tops, parts))
    width = max(left + part.shape[-1] for left, part in zip(lefts, parts))
    total = parts[0].new_zeros(1, parts[0].shape[1], height, width)
    count = parts[0].new_zeros(1, 1, height, width)
    for top, left, part in zip(tops, lefts, parts):
        place = (..., slice(top, top + part.shape[-2]), slice(left, left + part.shape[-1]))
        total[place] += part
        count[place] += 1
    return total / count


def noise_key(image_id: str, number: int) -> str:
    """Under which name a view's noise is drawn: the first view has that of the image, each further one its own."""
    return image_id if number == 0 else f"{image_id}|view {number}"


class AugmentedImage:
    """One image under an augmentation: encoded once for each view, decoded as often as asked.

    Args:
        model: A map model in evaluation mode.
        processor: Its image processor.
        image: The image.
        augmentation: Its views.
    """

    def __init__(self, model: Any, processor: Any, image: Image.Image, augmentation: TestTimeAugmentation) -> None:
        self.model, self.views, self.task = model, augmentation.views, task_of(model)
        self.seen: list[tuple[tuple[int, int], list[_Seen]]] = []
        for view in self.views:
            pixels = view_pixels(image, processor, view).to(model.device)
            self.seen.append((tuple(pixels.shape[-2:]), encode_view(model, pixels, view)))

    def decode(self, options: DecodingOptions, image_id: str, size: tuple[int, int]) -> Any:
        """The map averaged over all views, at ``size`` ``(H, W)``.

        Class scores are averaged as probabilities, depths as metres, each after it has been brought to ``size`` and mirrored back.

        Returns:
            The model's output, for classes with the logarithm of the mean probabilities ``(1, K, H, W)``.
        """
        total: Tensor | None = None
        kinds: list[dict[str, Tensor]] = []
        steps = 0
        for number, (view, (pixels, windows)) in enumerate(zip(self.views, self.seen)):
            generator = image_generator(options.seed, noise_key(image_id, number))
            prediction, probabilities, uncertainties, taken = decode_view(self.model, windows, options, generator)
            prediction = self.task.at_size(self.model, prediction, probabilities, pixels, size)
            if view.flip:
                prediction = self.task.mirror(prediction)
            total = prediction if total is None else total.add_(prediction)
            turned = {name: resize_map(value.float(), pixels, size) for name, value in uncertainties.items()}
            kinds.append({name: value.flip(-1) if view.flip else value for name, value in turned.items()})
            steps = max(steps, taken)
        mean = total / len(self.views)
        shared = {name: torch.stack([kind[name] for kind in kinds]).mean(0)[:, 0] for name in kinds[0]}
        fields = {"uncertainties": shared, "num_steps": torch.tensor([steps])}
        return self.task.mean_output(mean, **fields)
