"""Base of every task: the `Task` object and the base of its scorer."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from noise2map.data.opening import open_dataset
from noise2map.metrics import UncertaintyScores, nan_mean
from noise2map.models import MapModel, Noise2MapImageProcessor
from noise2map.models.resizing import resize_map
from noise2map.report.panels import Panel
from noise2map.tasks.prediction import Prediction

# Floats of class probabilities at full size that are held at a time.
_CHUNK_FLOATS = 16 * 2**20


@dataclass(frozen=True, kw_only=True)
class ScoringOptions:
    """Options of scoring: which pixels count and how; each task takes what concerns it.

    Attributes:
        depth_range_m: Where depth is scored, metres; the model's own range where it is not given.
        farthest_m: Predicted depths beyond are set to this, metres; the model's own limit where it is not given.
        temperature_images: If not 0, the number of images to come: fit the temperature of class scores.
        without_probabilities: Class maps come as ids, without a score for each class.
    """

    depth_range_m: tuple[float, float] | None = None
    farthest_m: float | None = None
    temperature_images: int = 0
    without_probabilities: bool = False


class Scorer(ABC):
    """Collects the scores of one protocol.

    Images may come in any order and with maps of any size; `order` remembers which row belongs to which image.
    """

    # The statistics that get confidence intervals, by name.
    statistics: tuple[str, ...]

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.order: list[int] = []
        self.steps: list[int] = []
        self.uncertainties: dict[str, UncertaintyScores] = {}
        self.uncertainty_order: dict[str, list[int]] = {}

    @abstractmethod
    def update(self, output: Any, processed: tuple[int, int], indices: Sequence[int], truths: Sequence[Tensor]) -> None:
        """Add a batch.

        Args:
            output: What `decode_map` gave for B images.
            processed: Height and width that went into the model.
            indices: Place of each image in the dataset.
            truths: True map of each image.
        """

    def _score_uncertainties(
        self, kinds: dict[str, Tensor], error: Tensor, wrong: Tensor, valid: Tensor, indices: Sequence[int]
    ) -> None:
        for name, value in kinds.items():
            if name not in self.uncertainties:
                self.uncertainties[name] = UncertaintyScores(self.error_kind).to(self.device)
                self.uncertainty_order[name] = []
            self.uncertainties[name].update(value, error, wrong, valid)
            self.uncertainty_order[name] += indices

    error_kind: Any

    @abstractmethod
    def scores(self) -> dict[str, float]:
        """Scores of the maps by name."""

    @abstractmethod
    def image_rows(self) -> Tensor:
        """Rows that the bootstrap resamples, `(N, ...)`, in the order of the dataset."""

    @abstractmethod
    def image_scores(self) -> dict[str, Tensor]:
        """Scores of every image by name, `(N,)` each, in the order of the dataset."""

    def statistic(self) -> Callable[[Tensor], Tensor]:
        """Maps `image_rows` to the values of `statistics`."""
        return nan_mean

    def extras(self) -> dict[str, Any]:
        """Results that do not fit into a row of a table."""
        return {}

    def uncertainty_rows(self, name: str) -> Tensor:
        """Scores `(N, 12)` of one kind of uncertainty for every image, in the order of the dataset."""
        return sort_rows(self.uncertainties[name].per_image().cpu(), self.uncertainty_order[name])


class ImageScorer(Scorer):
    """Scores maps of images, which may be of any size: predictions are resized to that of the truth."""

    def update(self, output: Any, processed: tuple[int, int], indices: Sequence[int], truths: Sequence[Tensor]) -> None:
        """Add a batch.

        Args:
            output: What `decode_map` gave for B images.
            processed: Height and width that went into the model.
            indices: Place of each image in the dataset.
            truths: True map `(..., H, W)` of each image; sizes may differ.
        """
        # A checkpoint may ask for too much memory at once: images of one size go together, in chunks.
        for part, size in self._parts(output, [tuple(truth.shape[-2:]) for truth in truths]):
            truth = torch.stack([truths[i] for i in part]).to(self.device)
            kinds = {
                name: resize_map(value[part, None].float(), processed, size)[:, 0].clamp(0, 1).to(self.device)
                for name, value in (output.uncertainties or {}).items()
            }
            chosen = [indices[i] for i in part]
            self.order += chosen
            self.steps += [int(output.num_steps[i]) for i in part]
            self._update(self._prediction(output, part, processed, size), truth, kinds, chosen)

    def _parts(self, output: Any, sizes: list[Any]) -> Iterator[tuple[list[int], tuple[int, int]]]:
        for size in dict.fromkeys(sizes):
            members = [i for i, one in enumerate(sizes) if one == size]
            room = max(1, _CHUNK_FLOATS // (self._channels(output) * size[0] * size[1]))
            for start in range(0, len(members), room):
                yield members[start : start + room], size

    def _channels(self, output: Any) -> int:
        return output.prediction.shape[1]

    @abstractmethod
    def _prediction(self, output: Any, part: list[int], processed: tuple[int, int], size: tuple[int, int]) -> Tensor: ...

    @abstractmethod
    def _update(self, prediction: Tensor, truth: Tensor, kinds: dict[str, Tensor], indices: list[int]) -> None: ...


def sort_rows(rows: Tensor, order: list[int]) -> Tensor:
    """Rows `(N, ...)` that came in some order of images, in the order of the dataset."""
    return rows[torch.tensor(order).argsort()]


def as_floats(scores: dict[str, Tensor]) -> dict[str, float]:
    """The scalar scores as Python numbers."""
    return {name: float(value) for name, value in scores.items() if value.ndim == 0}


class Task(ABC):
    """Everything that depends on the kind of map outside the network.

    Tasks have no state; `noise2map.tasks.TASKS` holds one of each.

    Attributes:
        name: What recipes, options and checkpoints call it.
        model_class: Its model.
        processor_class: The processor of its model.
        sample_key: Where a raw sample holds the true map.
        has_classes: Maps of named classes, which data and model must agree on.
        in_metres: Maps of lengths, whose unit and range matter.
        crops_allowed: Whether a magnified part of an image has the same true map as before, so that training may zoom.
        of_images: One map for each image; else maps of several sensors on a grid of their own.
        binary_errors: Whether a pixel is right or wrong, or more or less wrong.
        screen_scores: Scores in the table of an evaluation.
        compared_scores: Scores whose differences get intervals, the main one first.
        card_scores: Scores in a model card.
        percent_scores: Scores that are shown in percent.
        pipeline_tag: transformers' name for the task, for model cards.
    """

    name: ClassVar[str]
    model_class: ClassVar[type[MapModel]]
    processor_class: ClassVar[Any]
    sample_key: ClassVar[str]
    has_classes: ClassVar[bool] = False
    in_metres: ClassVar[bool] = False
    crops_allowed: ClassVar[bool] = True
    of_images: ClassVar[bool] = True
    binary_errors: ClassVar[bool] = False
    screen_scores: ClassVar[tuple[str, ...]]
    compared_scores: ClassVar[tuple[str, ...]]
    card_scores: ClassVar[tuple[str, ...]]
    percent_scores: ClassVar[tuple[str, ...]] = ()
    pipeline_tag: ClassVar[str]

    @property
    def main_score(self) -> str:
        """The score that stands for all."""
        return self.compared_scores[0]

    @property
    def things(self) -> str:
        """Plural noun for the samples of a dataset."""
        return "images" if self.of_images else "samples"

    def __str__(self) -> str:
        return self.name

    def check_sample(self, sample: Mapping[str, Any]) -> None:
        """Refuses a raw sample without a map for the task.

        Raises:
            ValueError: Naming the sample and what it lacks.
        """
        if self.sample_key not in sample:
            raise ValueError(f"sample {sample.get('id', '?')!r} has no {self.sample_key!r}, the map for {self.name}")

    @abstractmethod
    def truth(self, sample: Mapping[str, Any]) -> Tensor:
        """The true map of a raw sample on the CPU, ``(..., H, W)``."""

    @abstractmethod
    def batch(self, processor: Any, samples: Sequence[Mapping[str, Any]], **options: Any) -> dict[str, Any]:
        """Raw samples to the model's inputs, with ``labels``.

        Args:
            processor: The model's processor.
            samples: Raw samples.
            **options: Fields of the processor for this call.

        Raises:
            ValueError: If a sample has no map for the task.
        """

    @abstractmethod
    def encode(self, model: Any, batch: Mapping[str, Any]) -> Tensor:
        """The features of a batch as `batch` makes it; labels and raw samples are passed over."""

    @abstractmethod
    def training_metric(self, config: Any) -> Metric:
        """An empty metric with the model's classes or range; a few numbers whatever the size of the dataset."""

    @abstractmethod
    def update_metric(self, metric: Metric, output: Any, batch: Mapping[str, Any], processor: Any) -> None:
        """Adds the maps of a batch to a `training_metric`.

        Args:
            metric: The metric.
            output: What `decode_map` gave.
            batch: What was decoded, with ``labels`` and the raw ``samples``.
            processor: The model's processor.
        """

    @abstractmethod
    def scorer(self, model: Any, options: ScoringOptions) -> Scorer:
        """An empty scorer for maps of a model: intervals, calibration, uncertainty."""

    def open_dataset(self, name: str, root: Any, split: str, model: Any, processor: Any, depth_scale: float = 0.001) -> Any:
        """A split of a dataset as a model needs it.

        Raises:
            OSError: If files are missing.
            ValueError: If the name is unknown, the root is missing, or the split holds nothing.
        """
        return open_dataset(name, root, split, self.name, model.config.id2label if self.has_classes else None, depth_scale)


class ImageTask(Task):
    """A task whose maps lie on the pixels of an image.

    Attributes:
        processor_argument: How the processor calls its maps.
        stored_folder: What the folder of its maps is called in the output of ``noise2map predict``.
    """

    processor_class = Noise2MapImageProcessor
    processor_argument: ClassVar[str] = "maps"
    stored_folder: ClassVar[str]

    def batch(self, processor: Any, samples: Sequence[Mapping[str, Any]], **options: Any) -> dict[str, Any]:
        """``pixel_values`` ``(B, 3, H, W)`` and ``labels`` ``(B, ..., H, W)``."""
        for sample in samples:
            self.check_sample(sample)
        images, maps = [sample["image"] for sample in samples], [self.true_array(sample) for sample in samples]
        encoded = processor(images=images, return_tensors="pt", **{self.processor_argument: maps}, **options)
        return {"pixel_values": encoded["pixel_values"], "labels": torch.as_tensor(encoded["labels"])}

    @abstractmethod
    def true_array(self, sample: Mapping[str, Any]) -> np.ndarray:
        """The true map of a raw sample as it is in files, ``(H, W)`` or ``(H, W, C)``."""

    def encode(self, model: Any, batch: Mapping[str, Any]) -> Tensor:
        """See `Task.encode`."""
        return model.encode_image(batch["pixel_values"].to(model.device))

    @abstractmethod
    def maps(self, output: Any, processor: Any, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """The maps of an output, each at the size of its image, like `truth`, on the CPU."""

    def at_size(self, model: Any, prediction: Tensor, probabilities: bool, *sizes: tuple[int, int]) -> Tensor:
        """A prediction ``(B, K, h, w)`` brought to one size after the other, as what may be averaged over views.

        Args:
            model: What predicted it.
            prediction: The prediction.
            probabilities: Class scores are probabilities already, not logits.
            *sizes: Heights and widths.
        """
        return resize_map(prediction, *sizes)

    def mirror(self, values: Tensor) -> Tensor:
        """A map ``(B, K, H, W)`` with left and right exchanged."""
        return values.flip(-1)

    @abstractmethod
    def mean_output(self, mean: Tensor, **fields: Any) -> Any:
        """The model's output for a mean of `at_size` over views."""

    def arrays(self, output: Any, processor: Any, sizes: Sequence[tuple[int, int]]) -> list[np.ndarray]:
        """The maps of an output as files hold them, each at the size of its image."""
        return [one.numpy() for one in self.maps(output, processor, sizes)]

    def computed(self, output: Any) -> dict[str, Tensor]:
        """Maps of an output to be kept at the size at which it was computed, ``(B, h, w, ...)``."""
        return {}

    @abstractmethod
    def files(self, prediction: Prediction, name: str, config: Any) -> dict[str, tuple[str, bytes]]:
        """The image files of a map: kind to relative path and content.

        Args:
            prediction: The map.
            name: The files' name without suffix.
            config: The model's configuration.
        """

    @abstractmethod
    def summary(self, prediction: Prediction, config: Any) -> dict[str, Any]:
        """Numbers of a map for the record."""

    @abstractmethod
    def panel(self, prediction: Prediction, image: np.ndarray, heading: str, kind: str, truth: np.ndarray | None = None) -> Panel:
        """Image, map and uncertainty, and the truth with the errors where it is known.

        Args:
            prediction: The map.
            image: ``(H, W, 3)`` uint8.
            heading: A line above all.
            kind: The title of the uncertainty.
            truth: The true map, like the prediction's.
        """

    @abstractmethod
    def map_from_image(self, path: Path, record: Mapping[str, Any], depth_scale: float) -> Tensor:
        """A stored map, like `truth`.

        Args:
            path: An image file.
            record: What the command that wrote it said of it; empty if nobody knows.
            depth_scale: Metres per unit of depth, if the record does not say.

        Raises:
            OSError: If the file cannot be read.
            ValueError: If it is no image of such a map.
        """

    @abstractmethod
    def map_from_array(self, values: np.ndarray, path: Path) -> Tensor:
        """A stored array as a map, like `truth`.

        Raises:
            ValueError: If it has another shape or type.
        """

    @abstractmethod
    def stored_output(self, maps: Tensor, **fields: Any) -> Any:
        """Stored maps ``(B, ..., H, W)`` as an output that the scorer takes."""

    @abstractmethod
    def paint(self, values: Tensor, reference: Tensor, palette: np.ndarray) -> np.ndarray:
        """A map in colors.

        Args:
            values: The map, like `truth`.
            reference: The map that sets the range of colors.
            palette: Colors of the classes ``(K, 3)`` uint8.

        Returns:
            ``(H, W, 3)`` uint8.
        """

    def update_metric(self, metric: Metric, output: Any, batch: Mapping[str, Any], processor: Any) -> None:
        """See `Task.update_metric`: images are scored at their own size, one by one."""
        truths = [self.truth(sample) for sample in batch["samples"]]
        for predicted, truth in zip(self.maps(output, processor, [tuple(truth.shape[-2:]) for truth in truths]), truths):
            metric.update(predicted[None], truth[None])


def scoring_device(model: Any) -> torch.device:
    """Where maps of a model are scored: scores are summed in double precision, which MPS does not have."""
    return torch.device("cpu") if model.device.type == "mps" else model.device
