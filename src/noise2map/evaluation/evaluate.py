"""Evaluation of a model: each batch is encoded once, its maps decoded under every protocol from the same features.

There is one loop. What differs (images, images looked at in several ways, sensors, maps that lie in a folder) is the batch, which
knows how to ``encode`` itself and to ``decode`` its maps with given options.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from noise2map.evaluation.official import TestProtocol
from noise2map.evaluation.regions import regions_of
from noise2map.evaluation.test_time import AugmentedImage, TestTimeAugmentation
from noise2map.inference.batches import WAITING_BATCHES
from noise2map.models.decoding import DecodingOptions, check_count
from noise2map.tasks import task_of
from noise2map.tasks.base import Task
from noise2map.tasks.scoring import Scorer, ScoringOptions


@dataclass
class ProtocolResult:
    """Scores of one protocol.

    Attributes:
        protocol: How maps were decoded.
        scorer: The metrics, with one row for each image.
        new_scorer: Makes an empty one; regions are scored apart with one of their own.
        regions: The metrics of each region.
        mean_steps: Decoder calls of an image, on average.
        encode_seconds: Time of the image encoder, seconds per image.
        decode_seconds: Time of all decoder calls, seconds per image.
    """

    protocol: DecodingOptions
    scorer: Scorer
    new_scorer: Callable[[], Scorer] | None = None
    regions: dict[str, Scorer] = field(default_factory=dict)
    mean_steps: float = 0.0
    encode_seconds: float = 0.0
    decode_seconds: float = 0.0

    @property
    def images_per_second(self) -> float:
        """Rate of encoder and decoder together, without reading files and without scoring."""
        total = self.encode_seconds + self.decode_seconds
        return 1 / total if total > 0 else float("nan")

    def update(self, output: Any, batch: "Batch") -> None:
        """Scores a batch: all that is known, and each region alone.

        Raises:
            ValueError: If an output cannot be scored, or samples have different regions.
        """
        self.scorer.update(output, batch.processed, batch.indices, batch.truths)
        if self.new_scorer is None:
            return
        names = list(batch.regions[0])
        seen = list(self.regions) if len(self.scorer.order) > len(batch.indices) else names
        if seen != names or any(list(regions) != names for regions in batch.regions):
            raise ValueError(f"some samples have the regions {seen or 'none'}, others not; expected the same of all")
        for name in names:
            scorer = self.regions.setdefault(name, self.new_scorer())
            truths = [scorer.masked(truth, regions[name]) for truth, regions in zip(batch.truths, batch.regions)]
            scorer.update(output, batch.processed, batch.indices, truths)


@dataclass
class Evaluation:
    """Scores of one model on one dataset.

    Attributes:
        task: What the maps are.
        image_ids: Ids of the images, in the order of the dataset.
        results: One for each protocol.
        places: Where each image was taken; None where the dataset does not say.
    """

    task: Task
    image_ids: list[str]
    results: list[ProtocolResult]
    places: list[str] | None = None


@dataclass
class Batch(ABC):
    """Samples that are encoded and decoded together.

    Attributes:
        indices: Their places in the dataset.
        ids: Their ids, which with the seed fix their noise.
        truths: Their true maps.
        regions: What is scored apart in each, see `regions_of`.
        places: Where each was taken, None where nobody says.
    """

    indices: list[int] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    truths: list[Tensor] = field(default_factory=list)
    regions: list[dict[str, Tensor]] = field(default_factory=list)
    places: list[str | None] = field(default_factory=list)

    def add(self, index: int, sample: Mapping[str, Any], truth: Tensor) -> None:
        """Takes what scoring needs of a raw sample."""
        self.indices.append(index)
        self.ids.append(str(sample.get("id", index)))
        self.truths.append(truth)
        self.regions.append(regions_of(sample))
        self.places.append(sample.get("location"))

    @property
    def processed(self) -> tuple[int, int]:
        """Height and width that went into the model, to which predictions are resized first; of no use for maps with a grid."""
        return (0, 0)

    @abstractmethod
    def encode(self) -> None:
        """Does once what does not depend on how maps are decoded."""

    @abstractmethod
    def decode(self, options: DecodingOptions) -> Any:
        """The maps, as `MapModel.decode_map` returns them."""


@dataclass
class EncodedBatch(Batch):
    """Raw samples through processor, encoder and decoder; those of images have one size.

    Attributes:
        model: The model.
        task: Its task.
        inputs: What the processor made of the samples.
        samples: Whether single samples are asked for.
        features: What the encoder made of the images, where it is known.
    """

    model: Any = None
    task: Any = None
    inputs: dict[str, Any] = field(default_factory=dict)
    samples: bool = False
    features: Tensor | None = None

    @property
    def processed(self) -> tuple[int, int]:
        """See `Batch.processed`."""
        return tuple(self.inputs["pixel_values"].shape[-2:]) if self.task.of_images else (0, 0)

    def encode(self) -> None:
        """Runs the encoder, unless the features are known."""
        if self.features is None:
            self.features = self.task.encode(self.model, self.inputs)

    def decode(self, options: DecodingOptions) -> Any:
        """Runs the decoder."""
        return options.decode(self.model, self.features, self.ids, output_samples=self.samples)


@dataclass
class AugmentedBatch(Batch):
    """One image, looked at in several ways.

    Attributes:
        model: The model.
        processor: Its image processor.
        image: The image.
        augmentation: Its views.
    """

    model: Any = None
    processor: Any = None
    image: Any = None
    augmentation: TestTimeAugmentation = field(default_factory=TestTimeAugmentation)
    seen: AugmentedImage | None = None

    @property
    def processed(self) -> tuple[int, int]:
        """The size of the truth: maps of all views have been brought to it."""
        height, width = self.truths[0].shape[-2:]
        return int(height), int(width)

    def encode(self) -> None:
        """Runs the encoder on every view."""
        self.seen = AugmentedImage(self.model, self.processor, self.image, self.augmentation)

    def decode(self, options: DecodingOptions) -> Any:
        """The map averaged over views, at the size of the truth."""
        assert self.seen is not None
        return self.seen.decode(options, self.ids[0], self.processed)


def image_batches(model: Any, processor: Any, dataset: Any, batch_size: int, samples: bool = False) -> Iterator[EncodedBatch]:
    """Batches of images that are processed at one size; those of rare sizes come late, and no more than a few wait at a time."""
    task = task_of(model)
    waiting: dict[tuple[int, ...], EncodedBatch] = {}
    for index in range(len(dataset)):
        sample = dataset[index]
        task.check_sample(sample)
        pixels = processor(images=sample["image"], return_tensors="pt")["pixel_values"]
        size = tuple(pixels.shape[1:])
        batch = waiting.setdefault(size, EncodedBatch(model=model, task=task, inputs={"pixel_values": pixels[:0]}, samples=samples))
        batch.add(index, sample, task.truth(sample))
        batch.inputs["pixel_values"] = torch.cat([batch.inputs["pixel_values"], pixels])
        if len(batch.indices) == batch_size:
            yield waiting.pop(size)
        elif sum(len(one.indices) for one in waiting.values()) >= WAITING_BATCHES * batch_size:
            yield waiting.pop(max(waiting, key=lambda one: len(waiting[one].indices)))
    yield from waiting.values()


def sensor_batches(model: Any, processor: Any, dataset: Any, batch_size: int, samples: bool = False) -> Iterator[EncodedBatch]:
    """Batches of samples of several sensors, in the order of the dataset."""
    task = task_of(model)
    for start in range(0, len(dataset), batch_size):
        indices = list(range(start, min(start + batch_size, len(dataset))))
        chosen = [dataset[index] for index in indices]
        inputs = task.batch(processor, chosen)
        batch = EncodedBatch(model=model, task=task, inputs=inputs, samples=samples)
        for index, sample, truth in zip(indices, chosen, inputs.pop("labels")):
            batch.add(index, sample, truth)
        yield batch


def augmented_batches(model: Any, processor: Any, dataset: Any, augmentation: TestTimeAugmentation) -> Iterator[AugmentedBatch]:
    """Images one by one, each in all views of an augmentation."""
    task = task_of(model)
    for index in range(len(dataset)):
        sample = dataset[index]
        task.check_sample(sample)
        batch = AugmentedBatch(model=model, processor=processor, image=sample["image"], augmentation=augmentation)
        batch.add(index, sample, task.truth(sample))
        yield batch


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


@torch.no_grad()
def evaluate(
    task: Task,
    batches: Iterable[Batch],
    results: Sequence[ProtocolResult],
    device: torch.device,
    progress: Callable[[int], object] | None = None,
) -> Evaluation:
    """Scores maps: the one loop of all evaluations.

    Args:
        task: What the maps are.
        batches: What is scored; each is encoded once, whatever the number of protocols.
        results: How maps are decoded, each with an empty scorer, which is filled.
        device: Where the model is.
        progress: Called with the number of images just done.

    Returns:
        The scores.

    Raises:
        ValueError: If there is no batch or no protocol, two samples share an id, or an output cannot be scored.
    """
    if not results:
        raise ValueError("need at least one protocol")
    encoding, decoding = Stopwatch(device), [Stopwatch(device) for _ in results]
    ids: dict[int, str] = {}
    places: dict[int, str | None] = {}
    seen: set[str] = set()
    for batch in batches:
        if seen.intersection(batch.ids) or len(set(batch.ids)) < len(batch.ids):
            # they would get the same noise, and rows could not be told apart
            raise ValueError(f"two samples of the dataset share an id, near {batch.ids[0]!r}")
        seen.update(batch.ids)
        ids.update(zip(batch.indices, batch.ids))
        places.update(zip(batch.indices, batch.places))
        count = len(batch.ids)
        encoding.run(batch.encode, count)
        for result, clock in zip(results, decoding):
            output = clock.run(lambda b=batch, o=result.protocol: b.decode(o), count)
            try:
                result.update(output, batch)
            except ValueError as error:
                near = f"{batch.ids[0]!r}{' or a neighbour' * (count > 1)}"
                raise ValueError(f"{result.protocol.name}, {task.things[:-1]} {near}: {error}") from error
        if progress is not None:
            progress(count)
    if not ids:
        raise ValueError(f"the dataset holds no {task.things}")
    for result, clock in zip(results, decoding):
        result.mean_steps = sum(result.scorer.steps) / len(result.scorer.steps)
        result.encode_seconds, result.decode_seconds = encoding.seconds_per_image, clock.seconds_per_image
    known = [place for _, place in sorted(places.items()) if place is not None]
    return Evaluation(task, [ids[index] for index in range(len(ids))], list(results), known if len(known) == len(ids) else None)


def evaluate_model(
    model: Any,
    processor: Any,
    dataset: Any,
    protocols: Sequence[DecodingOptions],
    batch_size: int = 8,
    seed: int | None = None,
    depth_range: tuple[float, float] | None = None,
    fit_temperature: bool = False,
    progress: Callable[[int], object] | None = None,
    test_protocol: TestProtocol | None = None,
    sample_scores: bool = False,
) -> Evaluation:
    """Score a model on a dataset under several protocols.

    The noise of an image follows from `(seed, id)`: scores do not depend on the batch size, and protocols and models are
    compared on the same noise.

    Args:
        model: A map model in evaluation mode.
        processor: Its processor.
        dataset: Raw samples with true maps.
        protocols: How maps are decoded.
        batch_size: Images at a time.
        seed: Seed of the start noise; by default that of each protocol.
        depth_range: Where depth is scored, metres; the test_protocol's or the model's own range where it is not given.
        fit_temperature: Also fit the temperature of the logits (segmentation, whole images, protocols with `average="last"`).
        progress: Called with the number of images just done.
        test_protocol: How images are looked at; by default once, as the processor says.
        sample_scores: Also score the single samples, see `noise2map.metrics.samples`.

    Returns:
        The scores.

    Raises:
        ValueError: If there is no image or no protocol, a sample has no map for the task, two samples share an id, a temperature
            is asked of averaged probabilities, or the model's output is not finite.
    """
    task, test_protocol = task_of(model), test_protocol or TestProtocol("plain", TestTimeAugmentation())
    check_count("batch_size", batch_size)
    if not len(dataset):
        raise ValueError(f"the dataset holds no {task.things}")
    augmented = test_protocol.views != TestTimeAugmentation() or test_protocol.farthest_m is not None
    if augmented and fit_temperature:
        raise ValueError("the temperature is that of the logits of whole images; fit it with the plain protocol")
    calibration = getattr(model, "calibration", None)
    if fit_temperature and calibration is not None and calibration.confidences:
        raise ValueError(
            "the model's confidences are calibrated by a curve, not by a temperature alone; noise2map calibrate fits both"
        )
    if augmented and sample_scores:
        raise ValueError("single samples are those of whole images seen once; score them with the plain protocol")
    results = []
    for protocol in protocols:
        if seed is not None:
            protocol = replace(protocol, seed=seed)
        # A mean over steps is taken of probabilities: no temperature of its logarithm is the one of the logits.
        images = len(dataset) if fit_temperature and protocol.resolved(model.config).average == "last" else 0
        scoring = ScoringOptions(
            depth_range_m=depth_range or test_protocol.depth_range_m,
            farthest_m=test_protocol.farthest_m,
            temperature_images=images,
            sample_scores=sample_scores,
            layer_thresholds=getattr(processor, "layer_thresholds", None),
        )
        apart = replace(scoring, temperature_images=0)
        results.append(ProtocolResult(protocol, task.scorer(model, scoring), lambda o=apart: task.scorer(model, o)))
    if augmented:
        batches: Iterable[Batch] = augmented_batches(model, processor, dataset, test_protocol.views)
    else:
        make = image_batches if task.of_images else sensor_batches
        batches = make(model, processor, dataset, batch_size, sample_scores)
    return evaluate(task, batches, results, model.device, progress)
