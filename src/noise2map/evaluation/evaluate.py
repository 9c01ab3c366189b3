"""Evaluation of a model: each image is encoded once, its map decoded under every protocol."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from noise2map.evaluation.official import EvaluationPlan
from noise2map.evaluation.test_time import PlannedImage, ViewPlan
from noise2map.models.decoding import DecodingOptions
from noise2map.tasks.base import Scorer, task_of, true_map
from noise2map.tasks.depth import DepthScorer
from noise2map.tasks.segmentation import SegmentationScorer


@dataclass
class ProtocolResult:
    """Scores of one protocol.

    Attributes:
        protocol: The setting of the dials.
        scorer: The metrics, with one row for each image.
        mean_steps: Decoder calls of an image, on average.
        encode_seconds: Time of the image encoder, seconds per image.
        decode_seconds: Time of all decoder calls, seconds per image.
    """

    protocol: DecodingOptions
    scorer: Scorer
    mean_steps: float = 0.0
    encode_seconds: float = 0.0
    decode_seconds: float = 0.0

    @property
    def images_per_second(self) -> float:
        """Rate of encoder and decoder together, without reading files and without scoring."""
        total = self.encode_seconds + self.decode_seconds
        return 1 / total if total > 0 else float("nan")


@dataclass
class Evaluation:
    """Scores of one model on one data set.

    Attributes:
        task: `"segmentation"` or `"depth"`.
        image_ids: Ids of the images, in the order of the data set.
        results: One for each protocol.
    """

    task: str
    image_ids: list[str]
    results: list[ProtocolResult]


@dataclass
class _Batch:
    indices: list[int] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    pixels: list[Tensor] = field(default_factory=list)
    truths: list[Tensor] = field(default_factory=list)


class Stopwatch:
    """Adds up seconds on a device, leaving out the first batch where there are others: it pays for warming up."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.batches: list[tuple[float, int]] = []

    def run(self, call: Callable[[], Any], images: int) -> Any:
        """The call's result; its time counts for this many images."""
        self._wait()
        start = time.perf_counter()
        result = call()
        self._wait()
        self.batches.append((time.perf_counter() - start, images))
        return result

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()

    @property
    def seconds_per_image(self) -> float:
        """Mean time of an image."""
        counted = self.batches[1:] or self.batches
        return sum(seconds for seconds, _ in counted) / max(1, sum(images for _, images in counted))


def _batches(dataset: Any, processor: Any, task: str, batch_size: int) -> Iterator[_Batch]:
    """Batches of images that are processed at one size; those of rare sizes come last."""
    waiting: dict[tuple[int, ...], _Batch] = {}
    wanted = "labels" if task == "segmentation" else "depth_m"
    for index in range(len(dataset)):
        sample = dataset[index]
        if wanted not in sample:
            raise ValueError(f"sample {sample.get('id', index)!r} has no {wanted!r}, which scores for {task} need")
        pixels = processor(images=sample["image"], return_tensors="pt")["pixel_values"][0]
        batch = waiting.setdefault(tuple(pixels.shape), _Batch())
        batch.indices.append(index)
        batch.ids.append(str(sample["id"]))
        batch.pixels.append(pixels)
        batch.truths.append(true_map(sample, task))
        if len(batch.indices) == batch_size:
            yield waiting.pop(tuple(pixels.shape))
    yield from waiting.values()


def make_scorer(model: Any, depth_range: tuple[float, float] | None = None, temperature_images: int = 0) -> Scorer:
    """An empty scorer for a model.

    Args:
        model: A map model.
        depth_range: Where depth is scored, metres; the model's own range where it is not given.
        temperature_images: See `SegmentationScorer`.
    """
    config = model.config
    # Scores are summed in double precision, which MPS does not have.
    device = torch.device("cpu") if model.device.type == "mps" else model.device
    if task_of(model) == "segmentation":
        names = {int(index): str(name) for index, name in config.id2label.items()}
        ignore_index, temperature = config.semantic_loss_ignore_index, float(config.temperature)
        return SegmentationScorer(names, ignore_index, device, temperature_images, temperature)
    model_range = (float(config.min_depth), float(config.max_depth))
    return DepthScorer(*(depth_range or model_range), model_range, device)


@torch.no_grad()
def evaluate_model(
    model: Any,
    processor: Any,
    dataset: Any,
    protocols: Sequence[DecodingOptions],
    batch_size: int = 8,
    seed: int = 0,
    depth_range: tuple[float, float] | None = None,
    fit_temperature: bool = False,
    progress: Callable[[int], object] | None = None,
) -> Evaluation:
    """Score a model on a data set under several protocols.

    The noise of an image follows from `(seed, id)`: scores do not depend on the batch size, and protocols and models are
    compared on the same noise.

    Args:
        model: A map model in evaluation mode.
        processor: Its image processor.
        dataset: Raw samples with `labels` or `depth_m`.
        protocols: Settings of the dials.
        batch_size: Images at a time.
        seed: Seed of the start noise.
        depth_range: Where depth is scored, metres; the model's own range where it is not given.
        fit_temperature: Also fit the temperature of the logits (segmentation, protocols with `average="last"`).
        progress: Called with the number of images just done.

    Returns:
        The scores.

    Raises:
        ValueError: If there is no image or no protocol, a sample has no map for the task, two samples share an id, or
            the model's output is not finite.
    """
    if not len(dataset):
        raise ValueError("the data set holds no images")
    if not protocols:
        raise ValueError("need at least one protocol")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    task = task_of(model)
    # A mean over steps is taken of probabilities: no temperature of its logarithm is the one of the logits.
    images = len(dataset) if fit_temperature and task == "segmentation" else 0
    results = [ProtocolResult(p, make_scorer(model, depth_range, images * (p.average == "last"))) for p in protocols]
    encode_clock, clocks = Stopwatch(model.device), [Stopwatch(model.device) for _ in results]
    ids: dict[int, str] = {}
    for batch in _batches(dataset, processor, task, batch_size):
        repeated = set(batch.ids).intersection(ids.values()) or len(set(batch.ids)) < len(batch.ids)
        if repeated:  # they would get the same noise, and rows could not be told apart
            raise ValueError(f"two samples of the data set share an id, near {batch.ids[0]!r}")
        ids.update(zip(batch.indices, batch.ids))
        pixels = torch.stack(batch.pixels).to(model.device)
        count = len(batch.indices)
        features = encode_clock.run(lambda pixels=pixels: model.encode_image(pixels), count)
        for result, clock in zip(results, clocks):
            output = clock.run(lambda p=result.protocol, f=features, b=batch: replace(p, seed=seed).decode(model, f, b.ids), count)
            try:
                result.scorer.update(output, result.protocol.average, pixels.shape[-2:], batch.indices, batch.truths)
            except ValueError as error:
                raise ValueError(f"{result.protocol.name}, image {batch.ids[0]!r} or a neighbour: {error}") from error
        if progress is not None:
            progress(count)
    for result, clock in zip(results, clocks):
        result.mean_steps = sum(result.scorer.steps) / len(result.scorer.steps)
        result.encode_seconds, result.decode_seconds = encode_clock.seconds_per_image, clock.seconds_per_image
    return Evaluation(task, [ids[index] for index in range(len(ids))], results)


@torch.no_grad()
def evaluate_with_plan(
    model: Any,
    processor: Any,
    dataset: Any,
    protocols: Sequence[DecodingOptions],
    plan: EvaluationPlan,
    batch_size: int = 8,
    seed: int = 0,
    depth_range: tuple[float, float] | None = None,
    fit_temperature: bool = False,
    progress: Callable[[int], object] | None = None,
) -> Evaluation:
    """Score a model on a data set under several protocols, looking at pictures as a plan says.

    Each view of a picture is encoded once, whatever the number of protocols. With the plain plan this is ``evaluate_model``,
    batches and all; any other goes picture by picture. The map
    that is scored has been averaged over views at the size of the truth.

    Args:
        model: A map model in evaluation mode.
        processor: Its image processor.
        dataset: Raw samples with ``labels`` or ``depth_m``.
        protocols: Settings of the dials.
        plan: How pictures are looked at.
        batch_size: Images at a time under the plain plan.
        seed: Seed of the start noise.
        depth_range: Where depth is scored, metres; the plan's or the model's own where it is not given.
        fit_temperature: Also fit the temperature of the logits (plain plan alone).
        progress: Called with the number of images just done.

    Raises:
        ValueError: As ``evaluate_model``; or if a temperature is asked of averaged probabilities.
    """
    depth_range = depth_range or plan.depth_range_m
    if plan.views == ViewPlan() and plan.farthest_m is None:
        return evaluate_model(model, processor, dataset, protocols, batch_size, seed, depth_range, fit_temperature, progress)
    if fit_temperature:
        raise ValueError("the temperature is that of the logits of whole pictures; fit it with the plain protocol")
    if not len(dataset):
        raise ValueError("the data set holds no images")
    if not protocols:
        raise ValueError("need at least one protocol")
    task = task_of(model)
    wanted = "labels" if task == "segmentation" else "depth_m"
    results = [ProtocolResult(protocol, _scorer(model, depth_range, plan)) for protocol in protocols]
    encoding, decoding = Stopwatch(model.device), [Stopwatch(model.device) for _ in results]
    ids: list[str] = []
    for index in range(len(dataset)):
        sample = dataset[index]
        image_id = str(sample.get("id", index))
        if wanted not in sample:
            raise ValueError(f"sample {image_id!r} has no {wanted!r}, which scores for {task} need")
        ids.append(image_id)
        truth = true_map(sample, task)
        size = (int(truth.shape[0]), int(truth.shape[1]))
        seen = encoding.run(lambda image=sample["image"]: PlannedImage(model, processor, image, plan.views), 1)
        for result, watch in zip(results, decoding):
            output = watch.run(lambda p=result.protocol, s=seen, i=image_id, t=size: s.decode(replace(p, seed=seed), i, t), 1)
            try:
                result.scorer.update(output, "last", size, [index], [truth])
            except ValueError as error:
                raise ValueError(f"{result.protocol.name}, image {image_id!r}: {error}") from error
        if progress is not None:
            progress(1)
    if len(set(ids)) < len(ids):
        raise ValueError("two samples of the data set share an id")
    for result, watch in zip(results, decoding):
        result.mean_steps = sum(result.scorer.steps) / len(result.scorer.steps)
        result.encode_seconds, result.decode_seconds = encoding.seconds_per_image, watch.seconds_per_image
    return Evaluation(task, ids, results)


def _scorer(model: Any, depth_range: tuple[float, float] | None, plan: EvaluationPlan) -> Any:
    scorer = make_scorer(model, depth_range)
    if isinstance(scorer, DepthScorer) and plan.farthest_m is not None:
        scorer.model_range = (scorer.model_range[0], min(scorer.model_range[1], plan.farthest_m))
    return scorer
