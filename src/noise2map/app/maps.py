"""A request for the map of an image, and its answer with all that can be asked about it afterwards."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from noise2map.app.limits import GIBI, LIMITS, Limits, check_known, choice, number, whole_number
from noise2map.data.transforms.covering import cover
from noise2map.diffusion import image_generator
from noise2map.inference.batches import batches
from noise2map.inference.memory import Workload, estimate_bytes
from noise2map.inference.predictor import Predictor
from noise2map.models.decoding import AVERAGES, SAMPLERS, SAMPLINGS, PredictionOptions
from noise2map.report.animation import denoising_steps, noisy_images
from noise2map.tasks.prediction import Prediction, predictions_of

MAX_FRAMES = 24
_FIELDS = ("image", "model", "steps", "samples", "average", "sampler", "sampling", "seed", "fov_deg", "cover")
SEED_RANGE = (0, 2**31 - 1)


@dataclass(frozen=True, kw_only=True)
class MapRequest:
    """The dials of a map.

    Attributes:
        steps: Denoising steps.
        samples: Noise samples.
        average: ``"last"`` or ``"steps"``; None for the checkpoint's choice, likewise the next two.
        sampler: See `DecodingOptions`.
        sampling: See `DecodingOptions`.
        seed: With the name of the image it fixes its noise.
        fov_deg: Horizontal field of view of the camera, degrees, for the point cloud.
        cover: Part of the image that is covered: left, top, right, bottom as shares of its sides; None for none.
    """

    steps: int = 1
    samples: int = 1
    average: str | None = None
    sampler: str | None = None
    sampling: str | None = None
    seed: int = 0
    fov_deg: float = 60.0
    cover: tuple[float, float, float, float] | None = None

    @classmethod
    def read(cls, fields: Mapping[str, Any], limits: Limits = LIMITS) -> "MapRequest":
        """The dials that a page sent.

        Raises:
            ValueError: Naming the field, its value and what was expected.
        """
        check_known(fields, _FIELDS)
        one = cls(
            steps=whole_number(fields, "steps", 1, 1, limits.calls),
            samples=whole_number(fields, "samples", 1, 1, limits.calls),
            average=choice(fields, "average", AVERAGES),
            sampler=choice(fields, "sampler", SAMPLERS),
            sampling=choice(fields, "sampling", SAMPLINGS),
            seed=whole_number(fields, "seed", 0, *SEED_RANGE),
            fov_deg=number(fields, "fov_deg", 60.0, 10, 150),
            cover=_rectangle(fields.get("cover")),
        )
        if one.steps * one.samples > limits.calls:
            raise ValueError(
                f"{one.steps} steps of {one.samples} samples are {one.steps * one.samples} calls of the model; "
                f"at most {limits.calls} are made here"
            )
        return one

    def options(self) -> PredictionOptions:
        """As the options of a prediction."""
        return PredictionOptions(
            num_inference_steps=self.steps,
            ensemble_size=self.samples,
            average=self.average,
            sampler=self.sampler,
            sampling=self.sampling,
            seed=self.seed,
        )


def _rectangle(value: Any) -> tuple[float, float, float, float] | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 4 or not all(isinstance(one, int | float) for one in value):
        raise ValueError("cover is no list of four numbers; expected left, top, right, bottom as shares from 0 to 1")
    left, top, right, bottom = value
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise ValueError(f"cover is {value}; expected left < right and top < bottom, from 0 to 1")
    return float(left), float(top), float(right), float(bottom)


@dataclass
class MapResult:
    """The map of an image and what its run said on the way.

    Attributes:
        prediction: Map and uncertainty at the size of the image.
        predictor: The model.
        model: Its name.
        request: The dials.
        output: Of the model, on the CPU, at the size `computed`: without steps and samples.
        computed: Height and width of `output`, and of a further size in between, if any, from small to large.
        samples: Maps of the single samples ``(R, K, h, w)``.
        step_maps: Maps of the first sample after each step ``(S, K, h, w)``; empty where they would be too large to keep.
        times: Of the steps, 1 (noise) to 0.
        noisy: What went into them, painted, ``(h, w, 3)`` uint8.
    """

    prediction: Prediction
    predictor: Predictor
    model: str
    request: MapRequest
    output: Any = field(repr=False)
    computed: tuple[tuple[int, int], ...]
    samples: np.ndarray = field(repr=False)
    step_maps: np.ndarray = field(repr=False)
    times: list[float] = field(default_factory=list)
    noisy: list[np.ndarray] = field(default_factory=list, repr=False)

    @property
    def bytes(self) -> int:
        """Memory that it takes, about."""
        pixels = self.prediction.map.shape[0] * self.prediction.map.shape[1]
        parts = sum(value.nbytes for value in self.output.values() if torch.is_tensor(value))
        return 24 * pixels + parts + self.samples.nbytes + self.step_maps.nbytes + sum(one.nbytes for one in self.noisy)

    def painted_steps(self) -> list[np.ndarray]:
        """The map of the first sample after each step in the colors of the final map, ``(h, w, 3)`` uint8."""
        task, model, processor = self.predictor.image_task, self.predictor.model, self.predictor.processor
        size = self.step_maps.shape[-2:]
        outputs = [model.make_output(torch.from_numpy(one)[None]) for one in self.step_maps]
        maps = [task.maps(one, processor, [size])[0] for one in outputs]
        return [task.paint(one, maps[-1], self.predictor.palette) for one in maps]


@contextmanager
def watched(module: torch.nn.Module, tick: Callable[[], object]) -> Iterator[None]:
    """Calls ``tick`` before each call of a module; what it raises stops the run."""
    handle = module.register_forward_pre_hook(lambda *_: tick() and None)
    try:
        yield
    finally:
        handle.remove()


def covered(image: Image.Image, shares: Sequence[float]) -> Image.Image:
    """An image with a rectangle covered as in the training of completion; shares are left, top, right, bottom."""
    hidden = np.zeros((image.height, image.width), bool)
    left, top, right, bottom = shares
    rows = slice(int(top * image.height), max(round(bottom * image.height), int(top * image.height) + 1))
    hidden[rows, int(left * image.width) : max(round(right * image.width), int(left * image.width) + 1)] = True
    return cover({"image": image}, hidden)["image"]


@torch.inference_mode()
def run_map(
    predictor: Predictor,
    model_name: str,
    image: Image.Image,
    image_id: str,
    request: MapRequest,
    tick: Callable[[], object] = lambda: None,
    limits: Limits = LIMITS,
) -> MapResult:
    """Predicts the map of an image: that of `Predictor` for the same options, with the steps and samples of its run.

    Args:
        predictor: The model.
        model_name: What it is called.
        image: RGB.
        image_id: With the seed it fixes the noise.
        request: The dials.
        tick: Called before each call of the decoder; may raise to stop the run.
        limits: How much memory a run may take, and how many bytes of steps are kept.

    Raises:
        ValueError: If the model cannot do what is asked, or it does not fit in memory.
    """
    model, task = predictor.model, predictor.image_task
    if request.cover is not None:
        image = covered(image, request.cover)
    options = request.options().resolved(model.config)
    batch = next(batches([(0, image)], model, predictor.processor, options, 1))
    width, height = batch.size
    work = Workload(1, height, width, request.samples, max(image.width * image.height, width * height))
    if (needed := estimate_bytes(model.config, work, model.dtype.itemsize)) > limits.run_bytes:
        raise ValueError(
            f"{request.samples} samples of {width}x{height} pixels need about {needed / GIBI:.1f} GiB; expected at most "
            f"{limits.run_bytes / GIBI:.1f} GiB: choose fewer samples, or a smaller image"
        )
    cells = width * height // 16 * (model.config.num_labels + 2) * 8
    keep = cells * request.steps * request.samples <= limits.kept_step_bytes
    pixels = predictor.pixel_values(batch)
    with watched(model.decoder, tick):
        if task.reads_cells:
            out = options.decode(model, model.encode_image(pixels), [image_id], output_steps=keep, output_samples=True)
        else:
            out = model(
                pixel_values=pixels,
                **options.dials,
                generator=[image_generator(options.seed, image_id)],
                output_steps=keep,
                output_samples=True,
            )
    before = [(height, width)] if task.reads_cells else []
    kind = model.config.uncertainty or model.default_uncertainty
    prediction = predictions_of(out, task, predictor.processor, batch.images, [image_id], kind, before=before)[0]
    prediction.processed_size, prediction.id2label, prediction.palette = batch.size, predictor.id2label, predictor.palette
    shown = _evenly(denoising_steps(out.steps)) if out.steps and model.config.diffusion else []
    samples = out.samples[0].float().cpu().numpy()
    return MapResult(
        prediction=prediction,
        predictor=predictor,
        model=model_name,
        request=request,
        output=_without_runs(out),
        computed=tuple(before) or ((height, width),),
        samples=samples,
        step_maps=np.stack([one.prediction for one in shown]) if shown else np.zeros((0, 1, 1, 1), np.float32),
        times=[one.t for one in shown],
        noisy=noisy_images(shown) if shown else [],
    )


def _evenly(steps: list[Any]) -> list[Any]:
    """At most `MAX_FRAMES` of all, first and last among them."""
    if len(steps) <= MAX_FRAMES:
        return steps
    return [steps[round(place)] for place in np.linspace(0, len(steps) - 1, MAX_FRAMES)]


def _without_runs(out: Any) -> Any:
    """The output emptied of what is kept elsewhere, its tensors on the CPU."""
    for name in ("steps", "samples", "hidden_states", "attentions", "loss"):
        if name in out:
            out[name] = None
    for name, value in list(out.items()):
        if torch.is_tensor(value):
            out[name] = value.float().cpu()
    return out
