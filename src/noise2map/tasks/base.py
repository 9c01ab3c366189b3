"""Base of every task: the `Task` object."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from noise2map.data.maps import MAP_KINDS
from noise2map.data.opening import open_dataset
from noise2map.models import MapModel, Noise2MapImageProcessor
from noise2map.models.resizing import resize_map
from noise2map.report.panels import Panel
from noise2map.tasks.calibrating import Calibrator
from noise2map.tasks.prediction import Prediction
from noise2map.tasks.scoring import Scorer, ScoringOptions

if TYPE_CHECKING:
    from torchmetrics import Metric


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

    @property
    def crops_allowed(self) -> bool:
        """Whether a magnified part of an image has the same true map as before, so that training may zoom."""
        return self.name not in MAP_KINDS or MAP_KINDS[self.name].may_zoom

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
    def training_metric(self, config: Any) -> "Metric":
        """An empty metric with the model's classes or range; a few numbers whatever the size of the dataset."""

    @abstractmethod
    def update_metric(self, metric: "Metric", output: Any, batch: Mapping[str, Any], processor: Any) -> None:
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

    @abstractmethod
    def calibrator(self, model: Any) -> Calibrator:
        """What fits a calibration of a model."""

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
    reads_cells: ClassVar[bool] = False  # maps are read from the decoder's cells by strips: never all channels at full size
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

    def blendable(self, prediction: Tensor, log_probabilities: bool) -> Tensor:
        """A prediction ``(B, K', h, w)`` as what may be averaged over tiles that overlap.

        Args:
            prediction: Map and parameters, see `MapModel.whole_prediction`.
            log_probabilities: Class scores are logarithms of averaged probabilities.
        """
        return prediction.float()

    def blended(self, mean: Tensor) -> Tensor:
        """The prediction for a mean ``(B, K', h, w)`` of what `blendable` gave; the mean may be overwritten."""
        return mean

    def aligned(self, tile: Tensor, anchor: Tensor) -> Tensor:
        """What `blendable` gave for a tile ``(1, K', h, w)``, brought to the level of the same place in a map of the whole image.

        Tasks whose maps are absolute have nothing to align.
        """
        return tile

    def arrays(
        self, output: Any, processor: Any, sizes: Sequence[tuple[int, int]], before: Sequence[tuple[int, int]] = ()
    ) -> list[np.ndarray]:
        """The maps of an output as files hold them, each at the size of its image.

        Args:
            output: Of the model.
            processor: The model's image processor.
            sizes: Height and width of each image.
            before: Sizes to bring the maps to before that, where the task reads cells.
        """
        return [one.numpy() for one in self.maps(output, processor, sizes)]

    def computed(self, output: Any) -> dict[str, Tensor]:
        """Maps of an output to be kept at the size at which it was computed, ``(B, h, w, ...)``."""
        return {}

    @abstractmethod
    def check_interval(self, model: Any, level: float) -> None:
        """Refuses to state where the truth is for a model that does not say so.

        Args:
            model: The model.
            level: Probability that the truth is there.

        Raises:
            ValueError: If it says nothing.
        """

    @abstractmethod
    def interval(self, output: Any, row: int, level: float, *sizes: tuple[int, int]) -> dict[str, np.ndarray]:
        """Where the truth of an image is with a probability, see `Prediction.interval`.

        Args:
            output: Of the model.
            row: Number of the image in the batch.
            level: The probability.
            *sizes: Heights and widths, to be brought to one after the other; the last is that of the image.
        """

    @abstractmethod
    def interval_images(self, prediction: Prediction, config: Any) -> dict[str, np.ndarray]:
        """What images are made of `Prediction.interval`: kind to values ``(H, W)``, uint8 or uint16."""

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

    def color_range(self, reference: Tensor) -> dict[str, Any]:
        """What the ends of the colors of `paint` mean, JSON values for a record; empty where colors have no ends."""
        return {}

    def update_metric(self, metric: "Metric", output: Any, batch: Mapping[str, Any], processor: Any) -> None:
        """See `Task.update_metric`: images are scored at their own size, one by one."""
        truths = [self.truth(sample) for sample in batch["samples"]]
        for predicted, truth in zip(self.maps(output, processor, [(truth.shape[-2], truth.shape[-1]) for truth in truths]), truths):
            metric.update(predicted[None], truth[None])
